"""Stable Diffusion bases: random weights at true shapes, 2.1's velocity, variants, and other families."""

import json
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from magicedit.cli import main
from magicedit.errors import ModelError
from magicedit.models import from_stable_diffusion, load_pipeline, open_base
from magicedit.models.base import fingerprint_of
from magicedit.models.folder import Base
from magicedit.pipelines.reference_attention import predict_noise
from magicedit.train.config import parse_config
from magicedit.train.loop import Run, train

SCRIPT = Path(__file__).parents[2] / "dev" / "random_stable_diffusion.py"


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(SCRIPT))


@pytest.fixture(scope="module")
def bases(script, tmp_path_factory):
    """Narrow folders by family, and one of 1.5 with files of both precisions."""
    folder = tmp_path_factory.mktemp("bases")
    for family in ("sd15", "sd21"):
        script["write_stable_diffusion"](folder / family, family, tiny=True)
    shutil.copytree(folder / "sd15", folder / "both")
    for name in ("unet", "vae", "text_encoder"):
        (file,) = (folder / "both" / name).glob("*.safetensors")
        halves = {key: tensor.half() for key, tensor in load_file(file).items()}
        save_file(halves, file.with_suffix(".fp16.safetensors"), metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(("family", "unet", "text"), [("sd15", 859.5, 123.1), ("sd21", 865.9, 340.4)])
def test_random_networks_have_the_published_shapes(script, family, unet, text):
    """Millions of parameters of the published models."""
    networks = script["networks"](family, tiny=False)
    sizes = {name: sum(p.numel() for p in network.parameters()) / 1e6 for name, network in networks.items()}
    assert sizes["unet"] == pytest.approx(unet, abs=0.1)
    assert sizes["vae"] == pytest.approx(83.7, abs=0.1)
    assert sizes["text_encoder"] == pytest.approx(text, abs=0.1)


@pytest.mark.parametrize("family", ["sd15", "sd21"])
def test_a_base_of_either_family_becomes_a_pipeline(bases, family):
    pipeline = open_base(Base(str(bases / family)), 64)
    assert pipeline.unet.config.in_channels == 8
    assert pipeline.unet.config.use_linear_projection == (family == "sd21")
    assert pipeline.scheduler.config.prediction_type == {"sd15": "epsilon", "sd21": "v_prediction"}[family]
    assert not pipeline.unet.conv_in.weight[:, 4:].any()
    assert not pipeline.unet.class_embedding.weight.any()
    reference = pipeline.reference_unet.state_dict()
    for name, tensor in pipeline.unet.state_dict().items():
        if not name.startswith(("conv_in.weight", "class_embedding")):
            assert torch.equal(tensor, reference[name])
            assert tensor.data_ptr() != reference[name].data_ptr()


def test_a_velocity_base_is_sampled_by_its_velocity(bases):
    """Guidance of the network's raw output, then the scheduler's step: as a plain loop does it."""
    pipeline = open_base(
        Base(str(bases / "sd21")), 64, dtype=torch.float64
    )  # norms of random weights amplify
    pipeline.set_progress_bar_config(disable=True)
    with torch.no_grad():
        pipeline.unet.class_embedding.weight.normal_(generator=torch.Generator().manual_seed(0))
    crop = torch.linspace(0, 1, 64).repeat(1, 3, 64, 1)
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1)).double()
    delta = torch.linspace(-2, 2, 12)[None]
    faces = pipeline.encode_faces(crop, crop)
    found = pipeline(
        faces=faces,
        au_delta=delta,
        num_inference_steps=2,
        guidance_scale=3.0,
        latents=latents,
        generator=torch.Generator().manual_seed(2),
        output_type="latent",
    ).images

    scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    scheduler.set_timesteps(2)
    generator, expected = torch.Generator().manual_seed(2), latents
    for timestep in scheduler.timesteps:
        inputs = (faces.condition_latents, timestep, faces.prompt_embeds)
        with torch.no_grad():
            plain, guided = (
                predict_noise(pipeline.unet, expected, *inputs, vector.double(), faces.reference)
                for vector in (torch.zeros_like(delta), delta)
            )
        velocity = plain + 3.0 * (guided - plain)
        expected = scheduler.step(velocity, timestep, expected, generator=generator).prev_sample
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("more", [(), ("--lora_rank=2",)], ids=["full", "lora"])
def test_a_velocity_base_trains_on_its_velocity(bases, pairs_folder, tmp_path, more):
    flags = [
        *(
            "--resolution=64",
            "--train_batch_size=2",
            "--max_train_steps=1",
            "--validation_steps=0",
            "--snr_gamma=5",
        ),
        *(f"--pretrained_model_name_or_path={bases / 'sd21'}", f"--train_data_dir={pairs_folder}"),
        *(f"--output_dir={tmp_path}", "--logging_steps=1", *more),
    ]
    run = Run(parse_config(flags))
    batch = next(iter(run._loader()))
    noised = run.method._noised(batch)
    with torch.no_grad():
        output = run.networks["model"](**noised.inputs)
        _, loss, _ = next(run.method.losses(batch, run.networks))
    alphas = noised.alphas.view(-1, 1, 1, 1)
    velocity = alphas.sqrt() * noised.batch["noise"] - (1 - alphas).sqrt() * noised.clean
    snr = noised.alphas / (1 - noised.alphas)
    expected = ((output - velocity).pow(2).mean((1, 2, 3)) * snr.clamp(max=5) / (snr + 1)).mean()
    torch.testing.assert_close(loss, expected)
    run.train()
    trained = load_pipeline(tmp_path, device="cpu")
    assert trained.scheduler.config.prediction_type == "v_prediction"
    crop = torch.zeros(1, 3, 64, 64)
    edited = trained(crop, crop, np.ones((1, 12)), num_inference_steps=2, output_type="pt").images
    assert torch.isfinite(edited).all()


# --- Variants ---


def test_a_variant_of_the_weights_is_read(bases):
    (plain, _), (halves, _) = (from_stable_diffusion(bases / "both", variant=name) for name in (None, "fp16"))
    name = "mid_block.resnets.0.conv1.weight"
    first, second = plain.get_parameter(name), halves.get_parameter(name)
    assert second.dtype == torch.float32
    assert torch.equal(first.half().float(), second)
    assert not torch.equal(first, second)


def test_a_variant_that_is_not_there_is_named(bases):
    with pytest.raises(
        ModelError, match=r"sd15/unet has no fp16 weights but plain ones; name another --variant"
    ):
        from_stable_diffusion(bases / "sd15", variant="fp16")
    with pytest.raises(ModelError, match=r"has no bf16 weights but fp16, plain ones"):
        from_stable_diffusion(bases / "both", variant="bf16")


def test_adapters_of_a_variant_load_on_it_again(bases, pairs_folder, tmp_path):
    flags = [
        *(
            "--resolution=64",
            "--train_batch_size=1",
            "--max_train_steps=1",
            "--validation_steps=0",
            "--lora_rank=2",
        ),
        *(f"--pretrained_model_name_or_path={bases / 'both'}", f"--train_data_dir={pairs_folder}"),
        *(f"--output_dir={tmp_path / 'adapters'}", "--variant=fp16"),
    ]
    train(parse_config(flags))
    loaded = load_pipeline(tmp_path / "adapters", device="cpu").unet
    (expected, _) = from_stable_diffusion(bases / "both", variant="fp16")
    name = "mid_block.resnets.0.conv1.weight"
    assert torch.equal(loaded.get_parameter(name), expected.get_parameter(name))


def test_converting_takes_a_variant(bases, tmp_path, capsys):
    from tiny_models import randomise_new_layers

    unet, reference_unet = from_stable_diffusion(bases / "both")
    randomise_new_layers(unet)
    unet.save_pretrained(tmp_path / "magicface" / "denoising_unet")
    reference_unet.save_pretrained(tmp_path / "magicface" / "ID_enc")
    file = tmp_path / "magicface" / "denoising_unet" / "diffusion_pytorch_model.safetensors"
    save_file({k.replace("class_embedding.", "au_aug_mlp."): v for k, v in load_file(file).items()}, file)
    command = ["convert", str(tmp_path / "magicface"), "-o", str(tmp_path / "whole")]
    assert main(command) == 2
    assert "for a MagicFace checkpoint, add --base" in capsys.readouterr().err
    assert main([*command, "--base", str(bases / "both"), "--variant", "fp16"]) == 0
    with safe_open(tmp_path / "whole" / "vae" / "diffusion_pytorch_model.safetensors", "pt") as stored:
        kernel = stored.get_tensor("decoder.conv_in.weight")
    assert torch.equal(kernel, kernel.half().float())


def test_fingerprints_tell_bases_and_variants_apart(bases, tmp_path):
    named = {name: fingerprint_of(Base(str(bases / name))) for name in ("sd15", "sd21", "both")}
    assert named["sd15"] == named["both"] != named["sd21"]
    assert fingerprint_of(Base(str(bases / "both"), variant="fp16")) != named["both"]
    moved = shutil.copytree(bases / "sd15", tmp_path / "moved")
    assert fingerprint_of(Base(str(moved))) == named["sd15"]


# --- Other families ---


@pytest.mark.parametrize(
    ("named", "parts"),
    [("FluxPipeline", {"transformer": ["diffusers", "FluxTransformer2DModel"]}),
     ("StableDiffusion3Pipeline", {"transformer": ["diffusers", "SD3Transformer2DModel"]})],
)  # fmt: skip
def test_a_model_without_a_unet_is_refused_by_its_name(bases, tmp_path, named, parts):
    """As its index says, which is all that is fetched of a hub's."""
    base = tmp_path / "base"
    base.mkdir()
    (base / "model_index.json").write_text(json.dumps({"_class_name": named} | parts))
    with pytest.raises(ModelError, match=f"is a {named}: it has a transformer in place of a unet"):
        from_stable_diffusion(base)
