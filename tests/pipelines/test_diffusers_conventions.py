"""What people know from diffusers' own pipelines: arguments of `from_pretrained`, switches, callbacks."""

import json

import diffusers
import numpy as np
import pytest
import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.models.attention_processor import AttnProcessor
from safetensors import safe_open
from tiny_models import SHALLOW, random_crop, tiny_patch_pipeline, tiny_stable_diffusion_pipeline

from magicedit.models import load_pipeline
from magicedit.models.folder import ModelFolder
from magicedit.models.graph_model import GraphModel
from magicedit.pipelines.pipeline_ganimation import (
    GANimationCritic,
    GANimationGenerator,
    GANimationPipeline,
    LabelEmbedding,
)
from magicedit.pipelines.pipeline_magicedit import MagicEditPipeline

SMILE = np.eye(12, dtype=np.float32)[6] * 3


def run(pipeline, **kwargs):
    pipeline.set_progress_bar_config(disable=True)
    side = pipeline.config.resolution
    settings = {"num_inference_steps": 3, "output_type": "pt", "generator": torch.Generator().manual_seed(0)}
    return pipeline(random_crop(side, 0), random_crop(side, 100), SMILE, **settings | kwargs).images


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model of Stable Diffusion's layout, saved, and what it makes."""
    pipeline = tiny_stable_diffusion_pipeline(tmp_path_factory.mktemp("base"), **SHALLOW)
    folder = tmp_path_factory.mktemp("saved")
    pipeline.save_pretrained(folder)
    return folder, run(pipeline)


@pytest.fixture
def loaded(saved):
    return MagicEditPipeline.from_pretrained(saved[0])


# --- Loading ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        {"use_safetensors": True, "trust_remote_code": False, "token": None, "revision": "main"},
        {"device_map": "cpu", "low_cpu_mem_usage": True, "dtype": torch.float32},
        {"low_cpu_mem_usage": False, "torch_dtype": torch.float32, "local_files_only": True},
    ],
)
def test_usual_arguments_of_from_pretrained(saved, arguments):
    folder, expected = saved
    again = MagicEditPipeline.from_pretrained(folder, **arguments)
    torch.testing.assert_close(run(again), expected, rtol=0, atol=1e-5)


def test_dtypes_may_differ_by_component(saved):
    dtypes = {"vae": torch.float32, "default": torch.bfloat16}
    pipeline = MagicEditPipeline.from_pretrained(saved[0], dtype=dtypes)
    assert pipeline.vae.dtype == torch.float32
    networks = (pipeline.unet, pipeline.reference_unet, pipeline.text_encoder)
    assert {network.dtype for network in networks} == {torch.bfloat16}
    torch.testing.assert_close(run(pipeline).float(), saved[1], rtol=0, atol=0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"use_safetensors": False}, "safetensors only"),
        ({"trust_remote_code": True}, "never runs code of a folder"),
        ({"device_map": "balanced"}, "one device.*enable_model_cpu_offload"),
        ({"dtype": torch.float16, "torch_dtype": torch.float16}, "pass one of them"),
        ({"dtype": {"unett": torch.float16}}, "dtype names unett; components: unet, reference_unet"),
        ({"dtype": "float16"}, "must be a torch.dtype.*'float16'"),
        ({"quantization_config": {"load_in_8bit": True}}, "PipelineQuantizationConfig"),
        ({"variant": "fp16"}, "no weights of the variant 'fp16'; leave variant out"),
        ({"subfolder": "x"}, "unknown arguments: subfolder"),
    ],
)
def test_arguments_that_cannot_be_served_are_refused(saved, arguments, message):
    with pytest.raises(ValueError, match=message):
        MagicEditPipeline.from_pretrained(saved[0], **arguments)


def test_quantization_reaches_the_components_it_names(saved):
    """Where its library is not installed, diffusers asks for it when it loads the named component."""
    config = diffusers.PipelineQuantizationConfig(
        quant_mapping={"unet": diffusers.QuantoConfig(weights_dtype="int8")}
    )
    try:
        import optimum.quanto  # noqa: F401
    except ImportError:
        with pytest.raises(ImportError, match="quanto"):
            MagicEditPipeline.from_pretrained(saved[0], quantization_config=config)
        return
    pipeline = MagicEditPipeline.from_pretrained(saved[0], quantization_config=config)
    torch.testing.assert_close(run(pipeline), saved[1], rtol=0, atol=0.1)


def test_a_variant_is_saved_and_loaded(loaded, saved, tmp_path):
    """Components that have no files of the variant load their plain ones."""
    loaded.to(torch.float16).save_pretrained(tmp_path, variant="fp16")
    loaded.text_encoder.save_pretrained(tmp_path / "text_encoder")
    for file in (tmp_path / "text_encoder").glob("*.fp16.*"):
        file.unlink()
    with safe_open(tmp_path / "unet" / "diffusion_pytorch_model.fp16.safetensors", "pt") as file:
        assert file.get_tensor("conv_in.weight").dtype == torch.float16
    both = (
        MagicEditPipeline.from_pretrained(tmp_path, variant="fp16"),
        diffusers.DiffusionPipeline.from_pretrained(tmp_path, variant="fp16", trust_remote_code=True),
    )
    for pipeline in both:
        pipeline.to(torch.float32)
        torch.testing.assert_close(run(pipeline), saved[1], rtol=0, atol=0.02)
    with pytest.raises(ValueError, match="'bf16'; it has fp16"):
        MagicEditPipeline.from_pretrained(tmp_path, variant="bf16")


@pytest.fixture
def ganimation():
    torch.manual_seed(0)
    networks = GANimationGenerator(4, 1, 8), LabelEmbedding(2, 8), GANimationCritic(16, 4, 2)
    return GANimationPipeline(*networks, 16, "AU12,AU26")


def test_families_take_the_same_arguments(ganimation, tmp_path):
    ganimation.save_pretrained(tmp_path, variant="fp16")
    arguments = {"variant": "fp16", "use_safetensors": True, "trust_remote_code": False, "device_map": "cpu"}
    pipeline = GANimationPipeline.from_pretrained(tmp_path, dtype=torch.bfloat16, **arguments)
    assert pipeline.dtype == torch.bfloat16
    with pytest.raises(ValueError, match="unknown arguments: bogus"):
        GANimationPipeline.from_pretrained(tmp_path, bogus=1)


# --- Copies of a folder -------------------------------------------------------------------------------------


def test_a_copy_keeps_card_and_graphs(tmp_path):
    """Of an embedded model, whose graphs are another one's, and of a folder, by either class."""
    load_pipeline("mini-live", "cpu").save_pretrained(tmp_path / "first")
    card = ModelFolder.find("mini-live").path / "README.md"
    classes = MagicEditPipeline, diffusers.DiffusionPipeline
    for number, kind in enumerate(classes):
        options = {"trust_remote_code": True} if kind is diffusers.DiffusionPipeline else {}
        copy = tmp_path / str(number)
        kind.from_pretrained(tmp_path / "first", **options).save_pretrained(copy)
        assert (copy / "README.md").read_text() == card.read_text()
        assert (copy / "pipeline.py").read_text() == (tmp_path / "first" / "pipeline.py").read_text()
        found = ModelFolder.find(copy)
        assert found.action_units == ModelFolder.find("mini-live").action_units
        GraphModel.load(found, threads=1)  # raises where graphs are missing or of another model


def test_graphs_of_other_settings_are_not_copied(tmp_path):
    pipeline = load_pipeline("mini", "cpu")
    pipeline.scheduler = diffusers.UniPCMultistepScheduler.from_config(pipeline.scheduler.config)
    pipeline.save_pretrained(tmp_path)
    assert not (tmp_path / "onnx").exists()


def test_files_of_others_stay(tmp_path):
    other = tmp_path / "notes" / "config.json"
    other.parent.mkdir()
    other.write_text("[2, 1]")
    load_pipeline("mini", "cpu").save_pretrained(tmp_path)
    assert other.read_text() == "[2, 1]"
    assert (tmp_path / "onnx").exists()


def test_a_card_that_is_there_stays(loaded, tmp_path):
    (tmp_path / "README.md").write_text("mine")
    loaded.sources |= {"": ModelFolder.find("mini").path}
    loaded.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


def test_the_working_directory_is_no_model(monkeypatch, tmp_path):
    """A pipeline that was never loaded takes no card from where it is saved."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").write_text("a project's")
    tiny_patch_pipeline().save_pretrained("saved")
    assert not (tmp_path / "saved" / "README.md").exists()


# --- Switches -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("switch", "tolerance"),
    [
        (lambda pipe: pipe.enable_attention_slicing(), 1e-5),
        (lambda pipe: pipe.enable_attention_slicing("max"), 1e-5),
        (lambda pipe: pipe.disable_attention_slicing(), 1e-6),
        (lambda pipe: pipe.disable_xformers_memory_efficient_attention(), 1e-6),
        (lambda pipe: pipe.vae.enable_slicing(), 1e-5),
        (lambda pipe: pipe.fuse_qkv_projections(unet=False), 1e-5),
        (lambda pipe: pipe.reference_unet.set_attn_processor(AttnProcessor()), 1e-5),
        (lambda pipe: pipe.unet.set_attention_backend("native"), 1e-6),
        (lambda pipe: pipe.enable_model_cpu_offload(device="cpu"), 1e-6),
        (lambda pipe: pipe.enable_group_offload(torch.device("cpu"), offload_type="leaf_level"), 1e-6),
        (lambda pipe: pipe.unet.enable_layerwise_casting(torch.float16, torch.float32), 5e-3),
        (lambda pipe: pipe.unet.enable_gradient_checkpointing(), 1e-6),
    ],
)
def test_switches_leave_the_result(loaded, saved, switch, tolerance):
    switch(loaded)
    torch.testing.assert_close(run(loaded), saved[1], rtol=0, atol=tolerance)


def test_slices_are_of_heads(loaded, monkeypatch):
    """Each layer has four heads: "max" attends to one at a time, "auto" to two."""
    processors = [block for block in loaded.unet.attn_processors.values() if hasattr(block, "attend")]
    seen = []
    kind = type(processors[0])
    attend = kind.attend
    monkeypatch.setattr(kind, "attend", lambda self, *qkv: seen.append(qkv[0].shape[1]) or attend(self, *qkv))
    for size, heads in (("auto", 2), ("max", 1), (3, 3), (None, 4)):
        seen.clear()
        loaded.enable_attention_slicing(size)
        run(loaded, num_inference_steps=1)
        assert max(seen) == heads
    for wrong in ("half", True, 0, 5):
        with pytest.raises(ValueError, match=r"slice_size must be .* from 1 to 4"):
            loaded.enable_attention_slicing(wrong)


def test_sequential_offload_to_the_cpu_is_refused(loaded, saved):
    with pytest.raises(ValueError, match="sequential offload computes layers on a GPU"):
        loaded.enable_sequential_cpu_offload(device="cpu")
    torch.testing.assert_close(run(loaded), saved[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "switch",
    [
        lambda pipe: pipe.enable_xformers_memory_efficient_attention(),
        lambda pipe: pipe.fuse_qkv_projections(),
    ],
)
def test_switches_that_would_lose_the_identity_are_refused(loaded, saved, switch):
    with pytest.raises(ValueError, match="would ignore the reference face"):
        switch(loaded)
    torch.testing.assert_close(run(loaded), saved[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "switch",
    [
        lambda unet: unet.set_attn_processor(AttnProcessor()),
        lambda unet: unet.set_attention_slice("auto"),
        lambda unet: unet.fuse_qkv_projections(),
    ],
)
def test_a_call_refuses_what_the_denoiser_itself_was_switched_to(loaded, switch):
    switch(loaded.unet)
    with pytest.raises(ValueError, match="ignores the reference face"):
        run(loaded)


def test_from_pipe_shares_every_component(loaded, saved):
    again = MagicEditPipeline.from_pipe(loaded)
    assert all(again.components[name] is part for name, part in loaded.components.items())
    assert torch.equal(run(again), saved[1])


# --- Calls --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["patch", "sd"])
def test_an_interrupted_call_ends_with_the_step(kind, loaded):
    """What remains of the steps is skipped; the next call is whole again."""
    pipeline = loaded if kind == "sd" else tiny_patch_pipeline()
    steps, latents = [], []

    def stop(pipe, step, timestep, tensors):
        steps.append(step)
        latents.append(tensors["latents"])
        pipe._interrupt = step == 1
        return tensors

    whole = run(pipeline, num_inference_steps=4)
    stopped = run(pipeline, num_inference_steps=4, callback_on_step_end=stop)
    assert steps == [0, 1]
    assert pipeline.interrupt
    if kind == "sd":
        ended = pipeline.image_processor.postprocess(pipeline.decode_latents(latents[-1]), output_type="pt")
        torch.testing.assert_close(stopped, ended, rtol=0, atol=1e-6)
    assert not torch.equal(stopped, whole)
    assert torch.equal(run(pipeline, num_inference_steps=4), whole)


def test_a_composing_call_that_is_interrupted_at_once_returns_the_crop(monkeypatch):
    pipeline = tiny_patch_pipeline()
    monkeypatch.setattr(MagicEditPipeline, "interrupt", True)  # as by another thread
    crop = torch.from_numpy(np.array(random_crop(32, 0))).permute(2, 0, 1)[None] / 255
    torch.testing.assert_close(run(pipeline), crop, rtol=0, atol=1e-6)


def test_calls_of_families_may_return_a_tuple(ganimation):
    crop = random_crop(16)
    output = ganimation(crop, [2.0, 0.0], output_type="pt")
    images, attention, colour = ganimation(crop, [2.0, 0.0], output_type="pt", return_dict=False)
    for one, other in zip((images, attention, colour), output.to_tuple(), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(ValueError, match='"pil", "np" or "pt", got \'latent\''):
        ganimation(crop, [2.0, 0.0], output_type="latent")


class Halve(PipelineCallback):
    """A callback as diffusers ships them."""

    tensor_inputs = ("latents",)

    def callback_fn(self, pipeline, step_index, timestep, callback_kwargs):
        if step_index == 0:
            callback_kwargs["latents"] = callback_kwargs["latents"] / 2
        return callback_kwargs


def test_callback_objects_of_diffusers(loaded, saved):
    one = run(loaded, callback_on_step_end=Halve(cutoff_step_ratio=None, cutoff_step_index=0))
    many = run(
        loaded,
        callback_on_step_end=MultiPipelineCallbacks([Halve(cutoff_step_ratio=None, cutoff_step_index=0)]),
    )
    assert not torch.equal(one, saved[1])
    assert torch.equal(one, many)


def test_callbacks_get_the_tensors_they_name(loaded, saved):
    names = []

    def note(pipe, step, timestep, tensors):
        names.append([*tensors])
        return tensors

    images = run(loaded, callback_on_step_end=note, callback_on_step_end_tensor_inputs=[])
    assert names == [[], [], []]
    assert torch.equal(images, saved[1])


def test_the_index_names_what_diffusers_needs(saved):
    index = json.loads((saved[0] / "model_index.json").read_text())
    assert index["_class_name"] == ["pipeline", "MagicEditPipeline"]
    assert "_name_or_path" not in index
