"""Our two stock UNets against tensors that the published MagicFace classes computed (random weights)."""

import logging

import pytest
import torch
from diffusers import DDIMScheduler
from safetensors.torch import load_file

from magicedit.models import encode_reference, load_magicface, predict_noise, project_reference


@pytest.fixture(scope="module")
def published(shared):
    folder = shared / "parity"
    if not folder.is_dir():
        pytest.skip("the parity fixture is not here")
    unet, reference_unet = load_magicface(folder)
    io = load_file(folder / "io.safetensors")
    with torch.no_grad():
        features = encode_reference(reference_unet, io["identity_latents"], io["prompt_embeds"])
    return unet, reference_unet, io, features


def denoise(unet, io, features, latents=None, timesteps=None, au=None):
    with torch.no_grad():
        return predict_noise(
            unet,
            io["noisy_latents"] if latents is None else latents,
            io["background_latents"],
            io["timesteps"] if timesteps is None else timesteps,
            io["prompt_embeds"],
            io["au_variation"] if au is None else au,
            features,
        )


def test_features_equal_the_published(published):
    _, _, io, features = published
    assert len(features) == 16
    for index, feature in enumerate(features.values()):
        torch.testing.assert_close(feature, io[f"identity_feature_{index:02d}"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("projected", [False, True])
def test_prediction_equals_the_published(published, projected):
    unet, _, io, features = published
    with torch.no_grad():
        reference = project_reference(unet, features) if projected else features
    torch.testing.assert_close(denoise(unet, io, reference), io["noise_prediction"], rtol=0, atol=1e-5)


def test_guided_sampling_equals_the_published(published):
    unet, _, io, features = published
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    scheduler.set_timesteps(6)
    latents = io["initial_latents"]
    for timestep in scheduler.timesteps:
        without = denoise(unet, io, features, latents, timestep, torch.zeros_like(io["au_variation"]))
        conditioned = denoise(unet, io, features, latents, timestep)
        latents = scheduler.step(without + 3.0 * (conditioned - without), timestep, latents).prev_sample
    # The values have a standard deviation of 6.5: 1e-4 is float32 rounding over six steps
    torch.testing.assert_close(latents, io["ddim_6_steps_cfg3"], rtol=0, atol=1e-4)


def test_the_reference_matters(published):
    unet, _, io, features = published
    with_reference = denoise(unet, io, features)
    without = denoise(unet, io, None)
    swapped = denoise(unet, io, {name: feature.flip(0) for name, feature in features.items()})
    spread = with_reference.std()
    assert (with_reference - without).abs().max() > 0.01 * spread
    assert (with_reference - swapped).abs().max() > 0.01 * spread


def test_one_face_serves_a_batch(published):
    """Features of one face, shared by rows with other AUs, give what each row gives alone."""
    unet, _, io, features = published
    first = {name: feature[:1] for name, feature in features.items()}
    shared = denoise(unet, io, first)
    both = denoise(unet, io, {name: feature.expand(2, -1, -1) for name, feature in first.items()})
    torch.testing.assert_close(shared, both, rtol=0, atol=1e-6)


def test_no_warning_a_step(published, caplog):
    unet, _, io, features = published
    diffusers_logger = logging.getLogger("diffusers")
    diffusers_logger.addHandler(caplog.handler)
    try:
        denoise(unet, io, features)
    finally:
        diffusers_logger.removeHandler(caplog.handler)
    assert not caplog.records
