"""Guidance on a part of the steps, reuse of deep features, the tiny decoder, and the qualities."""

import copy

import diffusers
import numpy as np
import pytest
import torch
from tiny_models import SHALLOW, random_crop, tiny_stable_diffusion_pipeline

from magicedit.pipelines.pipeline_magicedit import MagicEditPipeline
from magicedit.pipelines.reference_attention import DeepFeatures, predict_noise
from magicedit.pipelines.sampling import QUALITIES, Sampling

SMILE = np.eye(12, dtype=np.float32)[6] * 3


def run(pipeline, **kwargs):
    size = pipeline.config.resolution
    kwargs = {"num_inference_steps": 4, "guidance_scale": 2.0, "output_type": "pt"} | kwargs
    generator = torch.Generator().manual_seed(0)
    return pipeline(random_crop(size), random_crop(size, 1), SMILE, generator=generator, **kwargs).images


def rows_by_step(pipeline, module, **kwargs):
    """Batch sizes that a module of the denoiser saw."""
    rows = []
    handle = module.register_forward_hook(lambda _, args, output: rows.append(len(args[0])))
    try:
        run(pipeline, **kwargs)
    finally:
        handle.remove()
    return rows


def test_guidance_acts_on_a_part_of_the_steps(pipeline):
    conv = pipeline.unet.conv_in
    assert rows_by_step(pipeline, conv) == [2, 2, 2, 2]
    assert rows_by_step(pipeline, conv, guidance_interval=(0.0, 0.5)) == [2, 2, 1, 1]
    assert rows_by_step(pipeline, conv, guidance_interval=(0.25, 0.75)) == [1, 2, 2, 1]
    half = run(pipeline, guidance_interval=(0.0, 0.5))
    assert torch.equal(run(pipeline, guidance_interval=(0.0, 1.0)), run(pipeline))
    assert torch.equal(run(pipeline, guidance_interval=(0.0, 0.0)), run(pipeline, guidance_scale=1.0))
    assert not torch.equal(half, run(pipeline))
    assert not torch.equal(half, run(pipeline, guidance_scale=1.0))


def test_deep_levels_run_at_every_nth_step(pipeline):
    deep, shallow = pipeline.unet.mid_block.resnets[0], pipeline.unet.conv_in
    assert rows_by_step(pipeline, deep, feature_cache_interval=2, num_inference_steps=5) == [2, 2, 2]
    assert rows_by_step(pipeline, shallow, feature_cache_interval=2, num_inference_steps=5) == [2] * 5
    # The unguided half ends in between: its last rows go on to serve
    ended = {"feature_cache_interval": 4, "guidance_interval": (0.0, 0.5)}
    assert rows_by_step(pipeline, deep, **ended) == [2]
    assert rows_by_step(pipeline, shallow, **ended) == [2, 2, 1, 1]
    # and where it begins in between, there is nothing to reuse
    begun = {"feature_cache_interval": 4, "guidance_interval": (0.5, 1.0)}
    assert rows_by_step(pipeline, deep, **begun) == [1, 2]
    assert torch.equal(run(pipeline, feature_cache_interval=1), run(pipeline))
    assert not torch.equal(run(pipeline, feature_cache_interval=2), run(pipeline))


def test_reused_features_of_the_same_step_give_the_same(pipeline):
    """The outermost level alone continues what the whole network computes."""
    faces = pipeline.encode_faces(
        random_crop(pipeline.config.resolution), random_crop(pipeline.config.resolution, 1)
    )
    noisy = torch.randn(faces.identity_latents.shape, generator=torch.Generator().manual_seed(0))
    deep = DeepFeatures()
    arguments = (
        *(pipeline.unet, noisy, faces.condition_latents, torch.tensor(500), faces.prompt_embeds),
        *(torch.from_numpy(SMILE)[None], faces.reference, None, deep),
    )
    with torch.no_grad():
        whole = predict_noise(*arguments)
        assert deep.hidden_states is not None
        assert torch.equal(predict_noise(*arguments), whole)
        deep.hidden_states = deep.hidden_states + 1
        assert not torch.equal(predict_noise(*arguments), whole)


def test_reused_features_are_refused_for_a_compiled_denoiser(patch_pipeline):
    original, patch_pipeline.unet = patch_pipeline.unet, torch.compile(patch_pipeline.unet, backend="eager")
    try:
        with pytest.raises(ValueError, match="not compiled as a whole"):
            run(patch_pipeline, feature_cache_interval=2)
    finally:
        patch_pipeline.unet = original


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"quality": "best"}, "exact, balanced, fast, live, got 'best'"),
        ({"guidance_interval": (0.5, 0.2)}, "two parts of the steps, 0 to 1, got 0.5, 0.2"),
        ({"feature_cache_interval": 0}, "at least 1, got 0"),
        ({"tiny_decoder": True}, "this pipeline has none"),
    ],
)
def test_wrong_sampling_is_an_error(patch_pipeline, wrong, message):
    with pytest.raises(ValueError, match=message):
        run(patch_pipeline, **wrong)


def test_each_quality_costs_less(pipeline):
    plans = [pipeline.sampling(quality) for quality in QUALITIES]
    steps = [plan.steps for plan in plans]
    assert steps == sorted(steps, reverse=True)
    assert len(set(steps)) == 4
    assert plans[0] == Sampling(50, pipeline.config.default_guidance_scale)  # nothing is left out
    for quality, plan in zip(QUALITIES, plans, strict=True):
        rows = rows_by_step(
            pipeline,
            pipeline.unet.conv_in,
            quality=quality,
            num_inference_steps=None,
            guidance_scale=None,
        )
        guided = [plan.guides(step, plan.steps) for step in range(plan.steps)]
        assert rows == [2 if guides else 1 for guides in guided]


def test_a_compiled_denoiser_runs_all_levels(tmp_path):
    pipeline = tiny_stable_diffusion_pipeline(tmp_path, **SHALLOW)
    assert pipeline.sampling("fast").feature_cache_interval == 2
    pipeline.unet = torch.compile(pipeline.unet, backend="eager")
    assert pipeline.sampling("fast").feature_cache_interval == 1
    assert torch.isfinite(run(pipeline, quality="fast", num_inference_steps=None)).all()


def test_what_is_said_wins_over_the_quality(patch_pipeline):
    assert rows_by_step(
        patch_pipeline, patch_pipeline.unet.conv_in, quality="live", num_inference_steps=3
    ) == [2, 2, 2]


def test_a_distilled_model_takes_the_steps_it_was_made_for(patch_pipeline):
    distilled = copy.copy(patch_pipeline)
    distilled._internal_dict = dict(patch_pipeline.config)
    distilled.register_to_config(distilled_steps=2, default_steps=2, default_guidance_scale=1.0)
    assert [distilled.sampling(quality).steps for quality in QUALITIES] == [2, 2, 2, 1]


def test_a_tiny_decoder_is_saved_loaded_and_used_by_live(sd_pipeline, tmp_path):
    torch.manual_seed(0)
    tiny = diffusers.AutoencoderTiny(encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4)
    with_tiny = MagicEditPipeline(
        **sd_pipeline.components | {"tiny_vae": tiny}, resolution=sd_pipeline.config.resolution
    )
    assert not sd_pipeline.sampling("live").tiny_decoder
    assert with_tiny.sampling("live").tiny_decoder
    with_tiny.save_pretrained(tmp_path / "model")
    loaded = MagicEditPipeline.from_pretrained(tmp_path / "model")
    latents = run(loaded, output_type="latent")
    expected = (tiny.decode(latents).sample / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(run(loaded, tiny_decoder=True), expected, rtol=0, atol=1e-6)
    assert not torch.equal(run(loaded), expected)
    live = {"quality": "live", "num_inference_steps": None}
    assert torch.equal(run(loaded, **live), run(loaded, **live, tiny_decoder=True))
    stock = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "model", trust_remote_code=True)
    assert torch.equal(run(stock, tiny_decoder=True), run(loaded, tiny_decoder=True))
