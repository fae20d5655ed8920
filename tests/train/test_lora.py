"""LoRA training: small checkpoints and results, which need their base."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file
from tiny_models import SHALLOW, tiny_patch_pipeline, tiny_stable_diffusion, train_for

from magicedit import ExpressionEditor
from magicedit.cli import main
from magicedit.errors import ModelError, TrainingError
from magicedit.hub import check_pipeline_folder, describe_folder, license_of, model_card
from magicedit.hub.push import _contents
from magicedit.models import load_pipeline, open_base
from magicedit.models.folder import Base, ModelFolder
from magicedit.pipelines.pipeline_magicedit import MagicEditPipeline
from magicedit.train.config import parse_config
from magicedit.train.loop import Run, train

ADAPTERS = "pytorch_lora_weights.safetensors"
FLAGS = [
    *(
        "--lora_rank=4",
        "--resolution=64",
        "--train_batch_size=2",
        "--max_train_steps=2",
        "--validation_steps=0",
    ),
    *("--lr_warmup_steps=0", "--learning_rate=1e-2", "--logging_steps=1", "--checkpointing_steps=1"),
]


def lora_flags(base, data, output, *more):
    named = [f"--pretrained_model_name_or_path={base}", f"--train_data_dir={data}", f"--output_dir={output}"]
    return [*FLAGS, *named, *more]


@pytest.fixture(autouse=True)
def other_precisions():
    """accelerate keeps the first precision of a process otherwise."""
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("lora")


@pytest.fixture(scope="module")
def base(place):
    return tiny_stable_diffusion(place / "sd", **SHALLOW)


@pytest.fixture(scope="module")
def trained(place, base, pairs_folder):
    """Adapters beside their base, after two steps."""
    train(parse_config(lora_flags(base, pairs_folder, place / "adapters")))
    return place / "adapters"


def picture(pipeline):
    crop = torch.linspace(0, 1, 64).repeat(1, 3, 64, 1)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    request = np.linspace(-2, 2, 12)[None]
    settings = {"num_inference_steps": 2, "latents": noise, "output_type": "pt"}
    return pipeline(crop, crop, request, **settings, generator=torch.Generator().manual_seed(1)).images


def losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "train_log.jsonl").read_text().splitlines()]


def copied(trained, place):
    """A copy of the adapters that may be damaged, without the list of digests."""
    shutil.copytree(trained, place, ignore=shutil.ignore_patterns("checkpoint-*"))
    (place / "parts.json").unlink()
    return place


# --- What is saved ---


def test_checkpoints_and_result_hold_what_is_not_the_bases(trained, base):
    names = load_file(trained / "checkpoint-2" / "model.safetensors").keys()
    whole = {name for name in names if ".lora_" not in name}
    new = {f"unet.{layer}.{part}" for layer in ("conv_in", "class_embedding") for part in ("weight", "bias")}
    assert whole == new
    assert any(name.startswith("reference_unet.") for name in names)
    result = load_file(trained / ADAPTERS)
    assert {name for name in result if "lora" not in name} == {f"new_layers.{name}" for name in new}
    assert {name.split(".")[0] for name in result} == {"unet", "reference_unet", "new_layers"}
    assert not (trained / "model_index.json").exists()
    assert not (trained / "unet").exists()
    assert ModelFolder.find(trained).base.model == str(base)


def test_saving_lists_no_tensor_twice_in_memory(place, base, pairs_folder, monkeypatch):
    """What is written are the trained tensors themselves, adapters and whole models alike."""
    from magicedit.train import state

    run = Run(parse_config(lora_flags(base, pairs_folder, place / "memory")))
    own = {parameter.untyped_storage().data_ptr() for parameter in run.parameters}
    written = []
    monkeypatch.setattr(state, "save_file", lambda tensors, _: written.extend(tensors.values()))
    with pytest.raises(TrainingError, match="does not verify"):
        run._save()
    assert own <= {tensor.untyped_storage().data_ptr() for tensor in written}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_merged_while_training_converted_and_loaded_are_one_model(place, base, pairs_folder, trained, dtype):
    merged, converted = place / f"merged-{dtype}", place / f"converted-{dtype}"
    train(parse_config(lora_flags(base, pairs_folder, merged, "--merge", f"--save_dtype={dtype}")))
    stored = load_file(merged / "unet" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {getattr(torch, dtype)}
    loaded = picture(load_pipeline(trained, device="cpu"))
    tolerance = {"float32": 1e-5, "float16": 5e-3}[dtype]
    torch.testing.assert_close(picture(load_pipeline(merged, device="cpu")), loaded, rtol=0, atol=tolerance)
    if dtype == "float32":
        assert main(["convert", str(trained), "-o", str(converted)]) == 0
        torch.testing.assert_close(picture(load_pipeline(converted, device="cpu")), loaded, rtol=0, atol=1e-5)
        assert not any(
            "lora" in name
            for name in load_file(converted / "reference_unet" / "diffusion_pytorch_model.safetensors")
        )


def test_load_lora_weights_into_a_pipeline_of_the_base(trained, base):
    pipeline = open_base(Base(str(base)), 64)
    plain, expected = picture(pipeline), picture(load_pipeline(trained, device="cpu"))
    pipeline.load_lora_weights(trained, adapter_name="smiles")
    assert (expected - plain).abs().max() > 1e-2
    torch.testing.assert_close(picture(pipeline), expected, rtol=0, atol=1e-6)
    pipeline.set_adapters("smiles", 0.0)
    torch.testing.assert_close(picture(pipeline), plain, rtol=0, atol=1e-6)
    pipeline.set_adapters("smiles", 0.5)
    half = picture(pipeline)
    assert (half - plain).abs().max() > 1e-4
    assert (half - expected).abs().max() > 1e-4
    pipeline.disable_lora()
    torch.testing.assert_close(picture(pipeline), plain, rtol=0, atol=1e-6)
    pipeline.enable_lora()
    torch.testing.assert_close(picture(pipeline), half, rtol=0, atol=1e-6)
    pipeline.unload_lora_weights()
    assert torch.equal(picture(pipeline), plain)


def test_two_adapters_of_half_the_weight_are_one(trained, base):
    pipeline = open_base(Base(str(base)), 64)
    for name in ("first", "second"):
        pipeline.load_lora_weights(trained, adapter_name=name)
    pipeline.set_adapters(["first", "second"], [0.5, 0.5])
    expected = picture(load_pipeline(trained, device="cpu"))
    torch.testing.assert_close(picture(pipeline), expected, rtol=0, atol=1e-5)
    pipeline.delete_adapters("second")
    pipeline.set_adapters("first", 1.0)
    torch.testing.assert_close(picture(pipeline), expected, rtol=0, atol=1e-5)
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    torch.testing.assert_close(picture(pipeline), expected, rtol=0, atol=1e-5)


def test_fused_by_a_scale_they_are_those_of_that_weight(trained, base):
    pipeline = open_base(Base(str(base)), 64)
    pipeline.load_lora_weights(trained, adapter_name="smiles")
    pipeline.set_adapters("smiles", 0.5)
    expected = picture(pipeline)
    pipeline.set_adapters("smiles", 1.0)
    pipeline.fuse_lora(lora_scale=0.5)
    pipeline.unload_lora_weights()
    torch.testing.assert_close(picture(pipeline), expected, rtol=0, atol=1e-5)


def test_adapters_of_another_base_leave_a_pipeline_as_it_was(trained, place):
    other = open_base(
        Base(str(tiny_stable_diffusion(place / "wide", block_out_channels=(32, 32, 32, 32)))), 64
    )
    before = picture(other)
    with pytest.raises(
        ValueError, match=r"unet\.\w+\.\w+ has the shape .* they were trained on another base"
    ):
        other.load_lora_weights(trained)
    state = {
        name: tensor for name, tensor in load_file(trained / ADAPTERS).items() if "new_layers" not in name
    }
    with pytest.raises(ValueError, match="the adapters do not fit this pipeline"):
        other.load_lora_weights(state)
    assert torch.equal(picture(other), before)
    assert not any(other.get_list_adapters().values())
    patches = tiny_patch_pipeline()
    with pytest.raises(ValueError, match="which this pipeline does not have"):
        patches.load_lora_weights(trained)


# --- Resuming ---


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_killed_and_resumed_run_ends_bit_equal(place, base, pairs_folder, precision):
    straight, killed = place / f"straight-{precision}", place / f"killed-{precision}"
    more = ["--max_train_steps=4", f"--mixed_precision={precision}", "--use_ema"]
    train(parse_config(lora_flags(base, pairs_folder, straight, *more)))
    train_for(2, Run(parse_config(lora_flags(base, pairs_folder, killed, *more))))
    train(parse_config(lora_flags(base, pairs_folder, killed, *more, "--resume_from_checkpoint=latest")))
    assert losses(straight) == losses(killed)
    assert (straight / ADAPTERS).read_bytes() == (killed / ADAPTERS).read_bytes()


def test_a_run_resumes_on_its_own_base_only(trained, place, pairs_folder, base):
    flags = ["--max_train_steps=3", "--resume_from_checkpoint", str(trained / "checkpoint-2")]
    other = tiny_stable_diffusion(place / "other", seed=5)
    message = r"adapters of the base sd \(fingerprint \w+\), not of other"
    with pytest.raises(TrainingError, match=message):
        Run(parse_config(lora_flags(other, pairs_folder, place / "resumed", *flags)))
    moved = shutil.copytree(base, place / "moved")
    assert Run(parse_config(lora_flags(moved, pairs_folder, place / "resumed", *flags))).step == 2


def test_a_checkpoint_with_everything_resumes_as_one_of_adapters_does(trained, place, pairs_folder, base):
    """As runs before checkpoints of adapters wrote them."""
    from magicedit.train.networks import base_parameters
    from magicedit.train.state import load_checkpoint, save_checkpoint

    flags = lora_flags(base, pairs_folder, place / "whole", "--max_train_steps=3")
    run = Run(parse_config([*flags, f"--resume_from_checkpoint={trained / 'checkpoint-2'}"]))
    model = run.modules["model"]
    tensors, state = load_checkpoint(place / "whole" / "checkpoint-2")
    frozen = {name: dict(model.named_parameters())[name] for name in base_parameters(model)}
    del state["base"]
    save_checkpoint(place / "old", 2, {**tensors, "model": tensors["model"] | frozen}, state, None)
    for name in ("whole", "old"):
        resumed = lora_flags(base, pairs_folder, place / name, "--max_train_steps=3")
        train(parse_config([*resumed, "--resume_from_checkpoint=latest"]))
    assert (place / "whole" / ADAPTERS).read_bytes() == (place / "old" / ADAPTERS).read_bytes()


def test_a_kill_while_the_result_is_written_leaves_the_earlier_one_or_the_new(trained, place, monkeypatch):
    from magicedit.train import finished

    folder = shutil.copytree(trained, place / "replaced")
    merged = tiny_patch_pipeline()
    put, left = finished._put, iter(range(3))

    def killed(file, target):
        if next(left, None) is None:
            raise KeyboardInterrupt
        put(file, target)

    monkeypatch.setattr(finished, "_put", killed)
    with pytest.raises(KeyboardInterrupt), finished.replaced_whole(folder) as aside:
        merged.save_pretrained(aside)
    assert not ModelFolder.find(folder).is_adapters  # the new one is whole
    monkeypatch.setattr(finished, "_put", put)
    finished.finish(folder)
    assert load_pipeline(folder, device="cpu").config.prediction == "flow_mask_paint"
    assert not (folder / ADAPTERS).exists()
    assert not (folder / "lora_index.json").exists()


# --- The folder as a model ---


def test_the_editor_and_the_commands_take_a_folder_of_adapters(trained, closed_mouth, tmp_path):
    from PIL import Image

    editor = ExpressionEditor.from_pretrained(trained)
    assert editor.pipeline.get_active_adapters()
    photo = tmp_path / "photo.png"
    Image.fromarray(closed_mouth).save(photo)
    edited = tmp_path / "edited.png"
    command = [
        "edit",
        str(photo),
        "--au",
        "AU12=2",
        "--steps",
        "1",
        "--model",
        str(trained),
        "-o",
        str(edited),
    ]
    assert main(command) == 0
    assert edited.is_file()


def test_the_base_is_found_beside_adapters_that_moved(trained, tmp_path, base):
    shutil.copytree(trained, tmp_path / "models" / "adapters")
    index = tmp_path / "models" / "adapters" / "lora_index.json"
    (index.parent / "parts.json").unlink()
    content = json.loads(index.read_text())
    content["base"]["model"] = "/nowhere/sd"
    index.write_text(json.dumps(content))
    with pytest.raises(
        ModelError, match=r"LoRA adapters of /nowhere/sd, which is not here; put that folder beside"
    ):
        load_pipeline(index.parent, device="cpu")
    expected = picture(load_pipeline(trained, device="cpu"))
    assert torch.equal(picture(load_pipeline(index.parent, device="cpu", base=str(base))), expected)
    shutil.copytree(base, tmp_path / "models" / "sd")
    assert torch.equal(picture(load_pipeline(index.parent, device="cpu")), expected)
    tiny_stable_diffusion(tmp_path / "fresh", seed=3)
    shutil.rmtree(tmp_path / "models" / "sd")
    (tmp_path / "fresh").rename(tmp_path / "models" / "sd")
    with pytest.raises(ModelError, match="were trained on another sd than that in"):
        load_pipeline(index.parent, device="cpu")


def cut(folder):
    file = folder / ADAPTERS
    file.write_bytes(file.read_bytes()[:-10])


def renamed(folder):
    state = load_file(folder / ADAPTERS)
    save_file({name.replace("to_q", "to_x"): tensor for name, tensor in state.items()}, folder / ADAPTERS)


def without_base(folder):
    index = json.loads((folder / "lora_index.json").read_text())
    (folder / "lora_index.json").write_text(json.dumps(index | {"base": 7}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, f"{ADAPTERS} is not a whole safetensors file"),
        (lambda folder: (folder / ADAPTERS).unlink(), f"has no {ADAPTERS}"),
        (renamed, "cannot load the model"),
        (without_base, "must name the base of the adapters"),
        (lambda folder: shutil.rmtree(folder / "scheduler"), "has no folder scheduler"),
    ],
)
def test_damaged_adapters_are_one_sentence(trained, tmp_path, damage, message, base, place):
    folder = copied(trained, tmp_path / "damaged")
    damage(folder)
    with pytest.raises(ModelError, match=message) as told:
        load_pipeline(folder, device="cpu")
    assert "\n" not in str(told.value)


def test_adapters_that_are_their_own_base_are_one_sentence(trained, tmp_path):
    folder = copied(trained, tmp_path / "own")
    index = json.loads((folder / "lora_index.json").read_text())
    index["base"] = {"model": str(folder)}
    (folder / "lora_index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="are their own base"):
        load_pipeline(folder, device="cpu")


def test_a_variant_of_a_recorded_base_is_refused(trained):
    with pytest.raises(ModelError, match="name a base to read its fp16 weights, or no variant"):
        load_pipeline(trained, device="cpu", variant="fp16")


def test_a_folder_of_adapters_is_published_without_its_place(trained, base):
    assert check_pipeline_folder(trained) == ("scheduler",)
    contents = _contents(ModelFolder.find(trained))
    assert {ADAPTERS, "lora_index.json", "scheduler/scheduler_config.json", "README.md"} <= contents.keys()
    assert not any(name.endswith(".py") for name in contents)
    assert json.loads(contents["lora_index.json"])["base"]["model"] == "sd"
    texts = [part if isinstance(part, bytes) else part.read_bytes() for part in contents.values()]
    assert not any(str(base.parent).encode() in text for text in texts)
    card = (trained / "README.md").read_text()
    assert "LoRA adapters of `sd`" in card
    assert "load_lora_weights" in card
    assert license_of(card) == {}  # the base states none
    described = describe_folder(trained)
    assert "LoRA adapters of `sd`" in model_card("smiles", license="mit", **described)


def test_what_was_published_loads_elsewhere(trained, base, tmp_path):
    folder = tmp_path / "downloaded"
    for name, content in _contents(ModelFolder.find(trained)).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.read_bytes())
    shutil.copytree(base, tmp_path / "sd")
    assert torch.equal(
        picture(load_pipeline(folder, device="cpu")), picture(load_pipeline(trained, device="cpu"))
    )


# --- Further bases ---


def test_adapters_of_our_own_pipeline_and_of_a_distillation(place, pairs_folder):
    """A student is its teacher with adapters, other defaults and another schedule."""
    teacher = place / "teacher"
    tiny_patch_pipeline(default_steps=4).save_pretrained(teacher)
    flags = lora_flags(teacher, pairs_folder, place / "student", "--resolution=32", "--objective=distill")
    train(parse_config([*flags, "--distill_steps=2", "--distill_teacher_steps=4"]))
    student = load_pipeline(place / "student", device="cpu")
    assert (student.config.distilled_steps, student.config.default_steps) == (2, 2)
    assert (student.config.prediction, student.config.resolution) == ("flow_mask_paint", 32)
    schedule = load_file(place / "student" / ADAPTERS)
    assert not any(name.startswith("reference_unet") for name in schedule)  # the teacher's own


def test_training_goes_on_from_adapters(place, pairs_folder, trained):
    """As from the whole pipeline that they are; further adapters name them as their base."""
    still = ["--max_train_steps=1", "--learning_rate=1e-12"]
    expected = picture(load_pipeline(trained, device="cpu"))
    for name, more in (("further", []), ("everything", ["--lora_rank=0"])):
        train(parse_config([*lora_flags(trained, pairs_folder, place / name, *still), *more]))
        found = picture(load_pipeline(place / name, device="cpu"))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert ModelFolder.find(place / "further").base.model == str(trained)
    assert not ModelFolder.find(place / "everything").is_adapters


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--lora_rank=2"], "lora_rank needs --pretrained_model_name_or_path"),
        (["--merge"], "merge must be off without --lora_rank"),
        (["--lora_rank=2", "--refine", "--pretrained_model_name_or_path=mini"], "add --merge"),
    ],
)
def test_settings_that_make_no_adapters_are_refused(tiny_flags, tmp_path, more, message):
    with pytest.raises(TrainingError, match=message):
        parse_config(tiny_flags(tmp_path, *more))


def test_adapters_state_their_precision(place, base, pairs_folder):
    train(parse_config(lora_flags(base, pairs_folder, place / "half", "--save_dtype=bfloat16")))
    saved = load_file(place / "half" / ADAPTERS)
    assert {tensor.dtype for tensor in saved.values()} == {torch.bfloat16}
    assert torch.isfinite(picture(load_pipeline(place / "half", device="cpu"))).all()


def test_previews_show_the_adapters_and_change_nothing(place, base, pairs_folder):
    flags = lora_flags(
        base, pairs_folder, place / "previewed", "--validation_steps=1", "--mixed_precision=bf16"
    )
    run = Run(parse_config([*flags, "--validation_pairs=0"]))
    before = {name: tensor.clone() for name, tensor in run.modules["model"].named_parameters()}
    modes = {name: module.training for name, module in run.modules["model"].named_modules()}
    picture = run.method.preview()
    assert picture.dtype == np.uint8
    assert picture.std() > 0
    after = dict(run.modules["model"].named_parameters())
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert {name: module.training for name, module in run.modules["model"].named_modules()} == modes


def test_the_pipelines_own_loader_names_the_way(trained):
    with pytest.raises(ValueError, match="it holds LoRA adapters: call load_lora_weights on a pipeline of"):
        MagicEditPipeline.from_pretrained(trained)


def test_the_index_names_what_a_pipeline_needs(trained):
    index = json.loads((trained / "lora_index.json").read_text())
    assert index["resolution"] == 64
    assert index["scheduler"] == ["diffusers", "DDPMScheduler"]
    assert len(index["base"]["fingerprint"]) == 16
    assert Path(index["base"]["model"]).is_absolute()
