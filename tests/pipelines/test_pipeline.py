import concurrent.futures
import importlib
import json
import shutil
import sys

import accelerate
import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import (
    random_crop,
    run_without_package,
    tiny_patch_pipeline,
)

from magicedit.errors import ModelError
from magicedit.models import load_pipeline
from magicedit.pipelines import pipeline_magicedit, reference_attention
from magicedit.pipelines.heads import compose_head, split_head
from magicedit.pipelines.pipeline_magicedit import MagicEditPipeline

SMILE = np.eye(12, dtype=np.float32)[6] * 3
FROWN = np.eye(12, dtype=np.float32)[2] * 2


def seeded(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def run(pipeline, au_delta=SMILE, faces=(0,), size=32, **kwargs):
    kwargs = {
        "num_inference_steps": 3,
        "output_type": "pt",
        "generator": torch.Generator().manual_seed(0),
    } | kwargs
    images = [random_crop(size, seed) for seed in faces]
    conditions = [random_crop(size, seed + 100) for seed in faces]
    return pipeline(images, conditions, au_delta, **kwargs)


# --- What a call gives --------------------------------------------------------------------------------------


def test_aus_identity_condition_and_seed_all_matter(patch_pipeline):
    base = run(patch_pipeline).images
    assert not torch.equal(base, run(patch_pipeline, FROWN).images)
    assert not torch.equal(base, run(patch_pipeline, faces=(1,)).images)
    assert not torch.equal(base, run(patch_pipeline, generator=torch.Generator().manual_seed(1)).images)
    assert torch.equal(base, run(patch_pipeline).images)


@pytest.mark.parametrize("kind", ["patch", "sd"])
def test_batch_equals_singles_with_a_list_of_generators(kind, request):
    pipeline, size = request.getfixturevalue(f"{kind}_pipeline"), {"patch": 32, "sd": 64}[kind]
    together = run(pipeline, np.stack([SMILE, FROWN]), faces=(0, 1), size=size, generator=seeded(5, 6)).images
    for row, (au, face, seed) in enumerate([(SMILE, 0, 5), (FROWN, 1, 6)]):
        alone = run(pipeline, au, faces=(face,), size=size, generator=seeded(seed)).images[0]
        torch.testing.assert_close(
            together[row], alone, rtol=0, atol=2e-5
        )  # other kernels at another batch size


def test_one_face_with_many_aus_is_encoded_once(sd_pipeline, monkeypatch):
    calls = []
    encode = reference_attention.encode_reference
    monkeypatch.setattr(
        reference_attention, "encode_reference", lambda *args: calls.append(len(args[1])) or encode(*args)
    )
    many = run(sd_pipeline, np.stack([SMILE, FROWN, 0 * SMILE]), size=64, generator=seeded(1, 1, 1)).images
    assert calls == [1]
    for row, au in enumerate([SMILE, FROWN, 0 * SMILE]):
        alone = run(sd_pipeline, au, size=64, generator=seeded(1)).images[0]
        torch.testing.assert_close(many[row], alone, rtol=0, atol=2e-5)


def test_reference_is_projected_once_a_call(patch_pipeline, monkeypatch):
    projected = []
    project = reference_attention.ReferenceAttnProcessor.project
    monkeypatch.setattr(
        reference_attention.ReferenceAttnProcessor,
        "project",
        lambda self, attn, x: projected.append(self.layer) or project(self, attn, x),
    )
    run(patch_pipeline, num_inference_steps=4)
    layers = list(reference_attention.transformer_blocks(patch_pipeline.unet))
    assert sorted(projected) == sorted(layers)


def test_guidance_is_skipped_where_it_cannot_matter(patch_pipeline, monkeypatch):
    batches = []
    predict = pipeline_magicedit.predict_noise
    monkeypatch.setattr(
        pipeline_magicedit,
        "predict_noise",
        lambda unet, x, *rest: batches.append(len(x)) or predict(unet, x, *rest),
    )
    run(patch_pipeline, guidance_scale=2.0, num_inference_steps=1)
    run(patch_pipeline, guidance_scale=1.0, num_inference_steps=1)
    run(patch_pipeline, 0 * SMILE, guidance_scale=2.0, num_inference_steps=1)
    assert batches == [2, 1, 1]


def test_guidance_follows_its_formula(sd_pipeline):
    """One DDIM step is affine in the prediction, so the guided latents are the extrapolated ones."""

    def call(**kwargs):
        return run(sd_pipeline, size=64, num_inference_steps=1, output_type="latent", **kwargs).images

    conditioned, guided = call(guidance_scale=1.0), call(guidance_scale=4.0)
    unconditioned = run(
        sd_pipeline, 0 * SMILE, size=64, num_inference_steps=1, output_type="latent", guidance_scale=1.0
    ).images
    expected = unconditioned + 4.0 * (conditioned - unconditioned)
    torch.testing.assert_close(guided, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "scheduler",
    [
        diffusers.DDIMScheduler,
        diffusers.DDPMScheduler,
        diffusers.DPMSolverMultistepScheduler,
        diffusers.EulerDiscreteScheduler,
        diffusers.EulerAncestralDiscreteScheduler,
        diffusers.LMSDiscreteScheduler,
        diffusers.UniPCMultistepScheduler,
        diffusers.LCMScheduler,
    ],
)
@pytest.mark.parametrize("prediction_type", ["sample", "epsilon"])
def test_what_schedulers_want_predicted_is_served(scheduler, prediction_type):
    """A model that always gives one clean image gets there; tests/models/test_mini.py has a real one."""
    pipeline = tiny_patch_pipeline()
    config = {"beta_schedule": "scaled_linear", "prediction_type": prediction_type}
    pipeline.scheduler = scheduler.from_config(config)
    for parameter in pipeline.unet.conv_out.parameters():
        torch.nn.init.zeros_(parameter)  # flow 0, mask sigmoid(-3), paint 0: a constant clean image
    latents = run(pipeline, num_inference_steps=8, output_type="latent").images
    identity = torch.from_numpy(np.asarray(random_crop(32, 0))).permute(2, 0, 1)[None] / 127.5 - 1
    head = split_head(torch.zeros(1, 66, 8, 8), 4)
    expected = pipeline.encode_images(compose_head(head, identity))
    assert torch.isfinite(latents).all()
    if scheduler is not diffusers.DDPMScheduler:  # its last step adds noise of the smallest variance
        assert (latents - expected).pow(2).mean().sqrt() < 0.12


@pytest.mark.parametrize(
    "scheduler", [diffusers.FlowMatchEulerDiscreteScheduler, diffusers.EDMEulerScheduler]
)
def test_schedulers_without_alphas_are_refused(scheduler):
    pipeline = tiny_patch_pipeline()
    pipeline.scheduler = scheduler()
    with pytest.raises(ValueError, match="cumulative alphas"):
        run(pipeline)


def test_schedulers_of_higher_order_are_refused_for_composing_models_alone():
    scheduler = diffusers.HeunDiscreteScheduler()
    composing, predicting = tiny_patch_pipeline(), tiny_patch_pipeline(prediction="noise")
    composing.scheduler = predicting.scheduler = scheduler
    with pytest.raises(ValueError, match="cannot be sampled with HeunDiscreteScheduler"):
        run(composing)
    assert torch.isfinite(run(predicting).images).all()


def test_flow_prediction_schedulers_are_refused(patch_pipeline):
    pipeline = tiny_patch_pipeline()
    pipeline.scheduler = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True
    )
    with pytest.raises(ValueError, match="flow_prediction"):
        run(pipeline)


def test_change_describes_the_image(patch_pipeline):
    """Applying flow, mask and paint to the input by hand gives the returned picture."""
    result = run(patch_pipeline)
    flow, mask, paint = (result.change[name][0] for name in ("flow", "mask", "paint"))
    assert flow.shape == (32, 32, 2)
    assert mask.shape == (32, 32)
    assert paint.shape == (32, 32, 3)
    import cv2

    image = np.asarray(random_crop(32, 0), dtype=np.float32) / 255
    ys, xs = np.mgrid[:32, :32].astype(np.float32)
    moved = cv2.remap(image, xs + flow[..., 0].numpy(), ys + flow[..., 1].numpy(), cv2.INTER_LINEAR,
                      borderMode=cv2.BORDER_REPLICATE)  # fmt: skip
    composed = (1 - mask[..., None].numpy()) * moved + mask[..., None].numpy() * paint.numpy()
    # cv2.remap interpolates with 5 bits of fraction; paint was clamped to colours
    difference = np.abs(composed - result.images[0].permute(1, 2, 0).numpy())
    assert np.median(difference) < 0.01
    assert run(tiny_patch_pipeline(prediction="noise")).change is None


@pytest.mark.parametrize("output_type", ["pil", "np", "pt", "latent"])
def test_output_types(patch_pipeline, output_type):
    images, _ = run(patch_pipeline, output_type=output_type, return_dict=False)
    if output_type == "pil":
        assert images[0].size == (32, 32)
    else:
        expected = {"np": (1, 32, 32, 3), "pt": (1, 3, 32, 32), "latent": (1, 48, 8, 8)}[output_type]
        assert tuple(images.shape) == expected


def test_callback_sees_and_may_replace_latents(patch_pipeline):
    seen = []

    def callback(pipeline, step, timestep, tensors):
        seen.append((step, pipeline.num_timesteps, tuple(tensors["latents"].shape)))
        return {"latents": torch.zeros_like(tensors["latents"])}

    changed = run(patch_pipeline, callback_on_step_end=callback).images
    assert seen == [(step, 3, (1, 48, 8, 8)) for step in range(3)]
    assert not torch.equal(changed, run(patch_pipeline).images)


def test_given_latents_replace_the_generator(patch_pipeline):
    noise = torch.randn(1, 48, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(run(patch_pipeline, latents=noise, generator=None).images, run(patch_pipeline).images)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"au_delta": np.zeros(5)}, r"\(batch, 12\).*got \(1, 5\)"),
        ({"au_delta": np.full(12, np.nan)}, "finite"),
        ({"au_delta": np.zeros((3, 12)), "faces": (0, 1)}, "one row for each of the 2 faces"),
        ({"size": 30}, "divisible by 8"),
        ({"output_type": "jpeg"}, "output_type"),
        ({"latents": torch.zeros(1, 4, 8, 8)}, r"latents must have shape \(1, 48, 8, 8\)"),
        ({"generator": [torch.Generator()] * 2}, "list of 1"),
        ({"num_inference_steps": 0}, "between 1 and 1000"),
        ({"num_inference_steps": 2000}, "between 1 and 1000"),
    ],
)
def test_bad_calls_say_what_was_expected(patch_pipeline, arguments, message):
    with pytest.raises(ValueError, match=message):
        run(patch_pipeline, **arguments)


def test_arrays_must_hold_values_from_0_to_1(patch_pipeline):
    bright = np.full((1, 32, 32, 3), 200, np.uint8)
    for wrong in (bright, bright.astype(np.float32), torch.full((1, 3, 32, 32), -1.0)):
        with pytest.raises(ValueError, match=r"\[0, 1\]"):
            patch_pipeline(wrong, wrong, SMILE)


def test_two_threads_do_not_disturb_each_other(patch_pipeline):
    requests = [(SMILE, 0), (FROWN, 1)] * 3
    alone = [run(patch_pipeline, au, faces=(face,)).images for au, face in requests]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda r: run(patch_pipeline, r[0], faces=(r[1],)).images, requests))
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_without_the_au_layer_aus_change_nothing():
    pipeline = tiny_patch_pipeline()
    torch.nn.init.zeros_(pipeline.unet.class_embedding.linear_1.weight if hasattr(
        pipeline.unet.class_embedding, "linear_1") else pipeline.unet.class_embedding.weight)  # fmt: skip
    assert torch.equal(
        run(pipeline, guidance_scale=1.0).images, run(pipeline, FROWN, guidance_scale=1.0).images
    )


# --- Saving and loading -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["patch", "sd"])
def test_save_and_load(kind, request, tmp_path):
    pipeline, size = request.getfixturevalue(f"{kind}_pipeline"), {"patch": 32, "sd": 64}[kind]
    pipeline.save_pretrained(tmp_path)
    loaded = MagicEditPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    for name in ("prediction", "patch_size", "resolution", "action_units", "concat_identity", "prompt"):
        assert loaded.config[name] == pipeline.config[name]
    for name, tensor in pipeline.unet.state_dict().items():
        assert torch.equal(loaded.unet.state_dict()[name], tensor)
    torch.testing.assert_close(
        run(loaded, size=size).images, run(pipeline, size=size).images, rtol=0, atol=1e-3
    )
    assert not list(tmp_path.rglob("*.bin"))
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == ["pipeline", "MagicEditPipeline"]


EDIT_AND_SAVE = """
    from diffusers import DiffusionPipeline
    from PIL import Image

    pipeline = DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)
    assert type(pipeline).__name__ == "MagicEditPipeline", type(pipeline)
    crop = Image.new("RGB", (32, 32), (200, 150, 120))
    image = pipeline(crop, crop, [0.0] * 6 + [3.0] + [0.0] * 5, num_inference_steps=2).images[0]
    assert image.size == (32, 32)
    pipeline.save_pretrained(sys.argv[2])  # from an instance that was itself loaded from a folder's file
"""


SUBCLASS = """
from diffusers import UNet2DConditionModel

from magicedit.pipelines.pipeline_magicedit import COMPONENT_CLASSES, MagicEditPipeline


class GentlePipeline(MagicEditPipeline):
    \"\"\"Asks for a share of what it is asked for, of the denoiser or of a second one.\"\"\"

    component_classes = COMPONENT_CLASSES | {"second": COMPONENT_CLASSES["unet"]}
    _optional_components = [*MagicEditPipeline._optional_components, "second"]

    def __init__(
        self, unet, reference_unet, scheduler, vae=None, text_encoder=None, tokenizer=None,
        image_encoder=None, au_map=None, tiny_vae=None, prediction="noise", patch_size=4, resolution=512,
        action_units="AU1", concat_identity=False, prompt="", default_steps=50, default_guidance_scale=3.0,
        distilled_steps=0, second=None, share=0.5, remark=None,
    ):
        super().__init__(
            unet, reference_unet, scheduler, vae, text_encoder, tokenizer, image_encoder, au_map, tiny_vae,
            prediction, patch_size, resolution, action_units, concat_identity, prompt, default_steps,
            default_guidance_scale, distilled_steps,
        )
        self.register_modules(second=second)
        self.register_to_config(share=share, remark=remark)

    def __call__(self, image, condition_image, au_delta, **settings):
        return super().__call__(image, condition_image, au_delta * self.config.share, **settings)
"""


@pytest.fixture
def gentle_class(tmp_path, monkeypatch):
    (tmp_path / "gentle_pipeline.py").write_text(SUBCLASS)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("gentle_pipeline").GentlePipeline
    del sys.modules["gentle_pipeline"]


def as_subclass(subclass, pipeline, **more):
    settings = {n: v for n, v in pipeline.config.items() if n[0] != "_" and n not in pipeline.components}
    return subclass(**pipeline.components, **settings, **more)


def test_a_subclass_is_saved_and_loaded_as_itself(patch_pipeline, gentle_class, tmp_path):
    second = tiny_patch_pipeline().unet
    gentle = as_subclass(gentle_class, patch_pipeline, second=second, share=0.25, remark="mild")
    gentle.set_progress_bar_config(disable=True)
    expected = run(patch_pipeline, SMILE * 0.25).images
    assert torch.equal(run(gentle).images, expected)
    assert (expected - run(patch_pipeline).images).abs().max() > 0.01
    folder = tmp_path / "saved"
    gentle.save_pretrained(folder)
    loaded = gentle_class.from_pretrained(folder)
    generic = diffusers.DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    for again in (loaded, generic):
        again.set_progress_bar_config(disable=True)
        assert type(again).__name__ == "GentlePipeline"
        assert (again.config.share, again.config.remark) == (0.25, "mild")
        assert torch.equal(again.second.conv_in.weight, second.conv_in.weight)
        torch.testing.assert_close(run(again).images, expected, rtol=0, atol=1e-3)
    loaded.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "pipeline.py").read_text() == SUBCLASS
    with pytest.raises(ModelError, match="holds a GentlePipeline, which MagicEditPipeline"):
        load_pipeline(folder)


def test_a_subclass_loads_what_the_class_above_it_saved(patch_pipeline, gentle_class, tmp_path):
    patch_pipeline.save_pretrained(tmp_path / "saved")
    loaded = gentle_class.from_pretrained(tmp_path / "saved", share=1.0)
    loaded.set_progress_bar_config(disable=True)
    assert loaded.second is None
    torch.testing.assert_close(run(loaded).images, run(patch_pipeline).images, rtol=0, atol=1e-3)


def test_a_class_without_a_file_is_not_saved(patch_pipeline, tmp_path):
    space = {"MagicEditPipeline": MagicEditPipeline, "__name__": "a_notebook"}
    exec("class Notebook(MagicEditPipeline):\n    pass", space)
    pipeline = as_subclass(space["Notebook"], patch_pipeline)
    with pytest.raises(ValueError, match="Notebook is not defined in a file"):
        pipeline.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_loads_where_the_package_is_not_installed(patch_pipeline, tmp_path):
    patch_pipeline.save_pretrained(tmp_path / "first")
    run_without_package(EDIT_AND_SAVE, tmp_path / "first", tmp_path / "second", work=tmp_path)
    assert (tmp_path / "second" / "pipeline.py").read_text() == (
        tmp_path / "first" / "pipeline.py"
    ).read_text()
    load_pipeline(tmp_path / "second").save_pretrained(tmp_path / "third")
    for config_file in (tmp_path / "third").rglob("*.json"):
        assert str(tmp_path) not in config_file.read_text(), config_file


def test_the_safe_route_never_runs_the_folders_code(patch_pipeline, tmp_path):
    patch_pipeline.save_pretrained(tmp_path)
    (tmp_path / "pipeline.py").write_text("raise SystemExit('the code of the folder was run')")
    MagicEditPipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "component",
    [
        ["unet", "UNet2DConditionModel"],
        ["pipeline", "UNet2DConditionModel"],
        ["diffusers", "DiTTransformer2DModel"],
    ],
)
def test_foreign_component_classes_are_refused(patch_pipeline, tmp_path, component):
    patch_pipeline.save_pretrained(tmp_path)
    index_file = tmp_path / "model_index.json"
    index_file.write_text(json.dumps(json.loads(index_file.read_text()) | {"unet": component}))
    with pytest.raises(ModelError, match="unet must be a stock diffusers class"):
        load_pipeline(tmp_path)


def test_another_pipeline_is_refused(patch_pipeline, tmp_path):
    patch_pipeline.save_pretrained(tmp_path)
    index_file = tmp_path / "model_index.json"
    index_file.write_text(json.dumps(json.loads(index_file.read_text()) | {"_class_name": "FluxPipeline"}))
    with pytest.raises(ModelError, match="FluxPipeline"):
        load_pipeline(tmp_path)


def edit_weights(folder, change):
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    change(state)
    save_file(state, file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"unet": "x"}, r"unet as \[library, class\]"),
        ({"scheduler": ["diffusers", 3]}, "scheduler"),
        ({"action_units": 5}, "action_units must be a text"),
        ({"resolution": "96"}, "resolution must be an integer from 16"),
    ],
)
def test_a_malformed_index_is_named(patch_pipeline, tmp_path, change, message):
    patch_pipeline.save_pretrained(tmp_path)
    index_file = tmp_path / "model_index.json"
    index_file.write_text(json.dumps(json.loads(index_file.read_text()) | change))
    with pytest.raises(ModelError, match=message):
        load_pipeline(tmp_path)
    index_file.write_text("[]")
    with pytest.raises(ModelError, match="must hold an object"):
        load_pipeline(tmp_path)


def test_a_missing_component_folder_is_not_looked_for_on_a_hub(patch_pipeline, tmp_path):
    patch_pipeline.save_pretrained(tmp_path)
    shutil.rmtree(tmp_path / "scheduler")
    with pytest.raises(ModelError, match="has no folder scheduler"):
        load_pipeline(tmp_path)


def test_adapters_that_point_elsewhere_are_refused(sd_pipeline, tmp_path):
    sd_pipeline.save_pretrained(tmp_path)
    (tmp_path / "text_encoder" / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="adapter"):
        load_pipeline(tmp_path)


def test_missing_and_mismatched_tensors_are_named(patch_pipeline, tmp_path):
    patch_pipeline.save_pretrained(tmp_path)
    edit_weights(tmp_path, lambda state: state.pop("conv_norm_out.weight"))
    with pytest.raises(ModelError, match=r"conv_norm_out\.weight"):
        load_pipeline(tmp_path)
    edit_weights(tmp_path, lambda state: state.update({"conv_norm_out.weight": torch.zeros(3)}))
    with pytest.raises(ModelError, match=r"conv_norm_out\.weight"):
        load_pipeline(tmp_path)


def test_truncated_weights_are_an_error(patch_pipeline, tmp_path):
    patch_pipeline.save_pretrained(tmp_path)
    file = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ModelError, match="not a whole safetensors file"):
        load_pipeline(tmp_path)


def test_pickles_are_refused_by_name(patch_pipeline, tmp_path):
    patch_pipeline.save_pretrained(tmp_path)
    file = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(file), file.with_suffix(".bin"))
    file.unlink()
    with pytest.raises(ModelError, match=r"diffusion_pytorch_model\.bin.*refused"):
        load_pipeline(tmp_path)


def test_pickles_are_not_written(patch_pipeline, tmp_path):
    with pytest.raises(ValueError, match="safetensors"):
        patch_pipeline.save_pretrained(tmp_path, safe_serialization=False)


def test_unknown_models_are_named(tmp_path):
    with pytest.raises(ModelError, match="no folder"):
        load_pipeline(tmp_path / "nothing")


def test_scheduler_override_and_dtype(patch_pipeline, tmp_path):
    patch_pipeline.save_pretrained(tmp_path)
    scheduler = diffusers.UniPCMultistepScheduler(prediction_type="sample")
    loaded = MagicEditPipeline.from_pretrained(tmp_path, scheduler=scheduler, torch_dtype=torch.bfloat16)
    assert loaded.scheduler is scheduler
    assert loaded.unet.dtype == torch.bfloat16
    loaded.set_progress_bar_config(disable=True)
    assert torch.isfinite(run(loaded).images).all()
    with pytest.raises(ValueError, match="bogus"):
        MagicEditPipeline.from_pretrained(tmp_path, bogus=1)


# --- With the libraries around it ---------------------------------------------------------------------------


def test_compiled_networks_give_the_same(patch_pipeline):
    expected = run(patch_pipeline).images
    compiled = tiny_patch_pipeline()
    compiled.unet = torch.compile(compiled.unet, backend="eager")
    compiled.reference_unet = torch.compile(compiled.reference_unet, backend="eager")
    torch.testing.assert_close(run(compiled).images, expected, rtol=0, atol=1e-5)


def test_lora_weights_load_and_act(sd_pipeline, tmp_path):
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    before = run(sd_pipeline, size=64).images
    donor, _ = from_stable_diffusion_like(sd_pipeline)
    donor.add_adapter(LoraConfig(r=4, target_modules=["to_q", "to_k", "to_v"], init_lora_weights=False))
    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(donor))
    MagicEditPipeline.save_lora_weights(tmp_path, unet_lora_layers=layers)
    sd_pipeline.load_lora_weights(tmp_path)
    try:
        assert (run(sd_pipeline, size=64).images - before).abs().max() > 1e-3
    finally:
        sd_pipeline.unload_lora_weights()
    torch.testing.assert_close(run(sd_pipeline, size=64).images, before, rtol=0, atol=1e-6)


def from_stable_diffusion_like(pipeline):
    import copy

    return copy.deepcopy(pipeline.unet), pipeline.reference_unet


@pytest.mark.parametrize("kind", ["patch", "sd"])
def test_offloaded_weights_give_the_same(kind, request):
    """accelerate's hooks hold each layer's weights for its own forward only, projections included."""
    pipeline, size = request.getfixturevalue(f"{kind}_pipeline"), {"patch": 32, "sd": 64}[kind]
    expected = run(pipeline, size=size).images
    for network in (pipeline.unet, pipeline.reference_unet):
        accelerate.cpu_offload(network, execution_device=torch.device("cpu"))
        assert all(parameter.device.type == "meta" for parameter in network.parameters())
    try:
        offloaded = run(pipeline, size=size).images
    finally:
        for network in (pipeline.unet, pipeline.reference_unet):
            accelerate.hooks.remove_hook_from_submodules(network)
    torch.testing.assert_close(offloaded, expected, rtol=0, atol=1e-6)
