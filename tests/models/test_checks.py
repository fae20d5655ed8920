"""Model folders that lie are refused in one sentence, before anything is built and without running code."""

import hashlib
import json
import os
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from tiny_models import tiny_patch_pipeline, tiny_stable_diffusion, tiny_unet
from transformers import CLIPTextModel

from magicedit.errors import ModelError
from magicedit.models import from_stable_diffusion, load_magicface, load_pipeline
from magicedit.models.face_model import load_face_model
from magicedit.models.folder import ModelFolder
from magicedit.models.magicface import with_base

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    tiny_patch_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    return shutil.copytree(saved, tmp_path / "model")


def changed(file: Path, **values) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


INDEX_VALUES = [
    *({"resolution": value} for value in (0, -128, 10**6, "128", 64.5, True, 10**400)),
    *({"patch_size": value} for value in (0, -4, 2, 8, "4", 10**9)),
    *({"default_steps": value} for value in (0, 10**9, None, 1.5)),
    *({"default_guidance_scale": value} for value in (float("nan"), float("inf"), "3", -1)),
    *({"prediction": value} for value in ("else", [], None)),
    *({"_class_name": value} for value in ([], {}, [1, 2], ["a"], 5, ["pipeline", []])),
    *(
        {"unet": value}
        for value in (["diffusers", []], ["os", "system"], ["diffusers", "x" * 10**6], [[], []])
    ),
    *({"scheduler": ["diffusers", value]} for value in ("FlowMatchEulerDiscreteScheduler", "UNet2DModel", 5)),
    {"action_units": ""},
    {"action_units": ["AU1"]},
    {"action_units": "AU1,AU2"},
    {"concat_identity": "yes"},
    {"prompt": "x" * 10**5},
    {"controls": [{"name": 5}]},
    {"controls": [{"name": "x" * 10_000}]},
    {"controls": [{"name": "AU1", "x" * 10_000: 5}]},
    {"x" * 1000: ["diffusers", "UNet2DConditionModel"]},
]


@pytest.mark.parametrize("values", INDEX_VALUES, ids=lambda values: str(values)[:60])
def test_an_index_out_of_range_is_refused(folder, values):
    changed(folder / "model_index.json", **values)
    with pytest.raises(ModelError) as told:
        load_face_model(folder, device="cpu")
    assert len(str(told.value)) < 2000
    assert "\n" not in str(told.value)


CONFIG_VALUES = [
    *({"layers_per_block": value} for value in (10**7, 0, "1", None, 1e7, [10**6, 1])),
    *({"block_out_channels": value} for value in ([10**9, 10**9], [16], "16", [], [16, 32] * 10**5, None)),
    *({"norm_num_groups": value} for value in (0, 7, -1)),
    *({"attention_head_dim": value} for value in (0, "8", [])),
    *({"cross_attention_dim": value} for value in (10**10, 17, [])),
    *({"down_block_types": value} for value in (5, ["os.system"], [], ["DownBlock2D"] * 10**5)),
    {"transformer_layers_per_block": 10**8},
    {"in_channels": 10**12},
    {"act_fn": "os.system"},
    {"downsample_padding": 0},
    {"quantization_config": {"quant_method": "bitsandbytes"}},
    {"auto_map": {"AutoModel": "evil.Model"}},
]


@pytest.mark.parametrize("values", CONFIG_VALUES, ids=lambda values: str(values)[:60])
def test_a_configuration_that_lies_is_refused_at_once(folder, values):
    changed(folder / "unet" / "config.json", **values)
    begin = time.process_time()
    with pytest.raises(ModelError) as told:
        load_pipeline(folder, device="cpu")
    assert time.process_time() - begin < 2
    assert len(str(told.value)) < 2000
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    "values",
    [
        {"num_train_timesteps": 10**10},
        {"num_train_timesteps": 0},
        {"num_train_timesteps": "1000"},
        {"num_train_timesteps": 2},  # fewer than the model's steps
        {"beta_schedule": "else"},
        {"beta_schedule": "linear", "beta_start": "0.1"},
        {"beta_start": float("nan")},
        {"trained_betas": "x"},
    ],
    ids=str,
)
def test_a_scheduler_out_of_range_is_refused(folder, values):
    changed(folder / "scheduler" / "scheduler_config.json", **values)
    with pytest.raises(ModelError):
        load_pipeline(folder, device="cpu")


def header(file: Path, change: Callable[[dict], object], more: bytes = b"") -> None:
    """Rewrites the header of a weights file."""
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    read = json.loads(content[8 : 8 + length])
    change(read)
    text = json.dumps(read).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :] + more)


def first(read: dict) -> dict:
    return next(entry for name, entry in read.items() if name != "__metadata__")


SPOILT_WEIGHTS = {
    "a length of 2**63": lambda file: file.write_bytes(b"\xff" * 7 + b"\x7f" + file.read_bytes()[8:]),
    "cut": lambda file: file.write_bytes(file.read_bytes()[:-100]),
    "longer": lambda file: file.write_bytes(file.read_bytes() + bytes(100)),
    "empty": lambda file: file.write_bytes(b""),
    "a shape of 2**40": lambda file: header(file, lambda read: first(read).update(shape=[2**40])),
    "a negative shape": lambda file: header(file, lambda read: first(read).update(shape=[-1, -1])),
    "an unknown dtype": lambda file: header(file, lambda read: first(read).update(dtype="object")),
    "offsets beyond": lambda file: header(file, lambda read: first(read).update(data_offsets=[0, 2**50])),
    "offsets that overlap": lambda file: header(file, lambda read: first(read).update(data_offsets=[4, 0])),
    "no object": lambda file: file.write_bytes(struct.pack("<Q", 2) + b"[]"),
    "a deep header": lambda file: file.write_bytes(struct.pack("<Q", 200_000) + b"[" * 200_000),
    "a pipe": lambda file: (file.unlink(), os.mkfifo(file)),
    "a device": lambda file: (file.unlink(), file.symlink_to("/dev/zero")),
    "a link to nothing": lambda file: (file.unlink(), file.symlink_to("nowhere")),
}


@pytest.mark.parametrize("name", SPOILT_WEIGHTS)
def test_weights_that_lie_are_refused_by_their_header(folder, name):
    SPOILT_WEIGHTS[name](folder / "unet" / WEIGHTS)
    with pytest.raises(ModelError) as told:
        load_pipeline(folder, device="cpu")
    assert str(folder) in str(told.value)


@pytest.mark.parametrize("name", ["config.json", "more.json", "notes"])
def test_pipes_and_devices_are_not_read(folder, name):
    place = folder / "unet" / name
    place.unlink(missing_ok=True)
    os.mkfifo(place)
    with pytest.raises(ModelError, match=f"{name} is not a file"):
        load_pipeline(folder, device="cpu")
    assert ModelFolder.find(folder).fingerprint is not None


def test_an_oversized_index_is_refused(folder):
    (folder / "model_index.json").write_text(" " * 2_000_000)
    with pytest.raises(ModelError, match="more than 1,000,000; is it the right file"):
        load_pipeline(folder, device="cpu")


def test_shards_elsewhere_are_refused(folder):
    (folder / "unet" / f"{WEIGHTS}.index.json").write_text('{"weight_map": {"a": "../vae/a.safetensors"}}')
    with pytest.raises(ModelError, match="weight_map must be files of this folder"):
        load_pipeline(folder, device="cpu")


@pytest.mark.parametrize("prompt_length", [10**10, 0, "77"])
def test_a_tokenizer_that_pads_without_end_is_refused(tmp_path, prompt_length):
    from tiny_models import tiny_stable_diffusion_pipeline

    tiny_stable_diffusion_pipeline(tmp_path / "base").save_pretrained(tmp_path / "model")
    changed(tmp_path / "model" / "tokenizer" / "tokenizer_config.json", model_max_length=prompt_length)
    with pytest.raises(ModelError, match="model_max_length must be an integer"):
        load_pipeline(tmp_path / "model", device="cpu")


def test_networks_of_two_models_are_refused(folder, tmp_path):
    other = tiny_patch_pipeline(block_out_channels=(16, 16))
    shutil.rmtree(folder / "reference_unet")
    other.reference_unet.save_pretrained(folder / "reference_unet")
    with pytest.raises(ModelError, match="reference_unet and unet differ in block_out_channels"):
        load_pipeline(folder, device="cpu")


@pytest.mark.parametrize("name", ["x" * 5000, "a/" + "x" * 5000, "a\0b", "\udcff"], ids=list("abcd"))
def test_names_that_no_model_has(name):
    with pytest.raises(ModelError) as told:
        load_pipeline(name, device="cpu", local_files_only=True)
    assert len(str(told.value)) < 1000


# --- Digests of the parts ---


def listed(folder: Path) -> None:
    files = [file for file in folder.rglob("*") if file.is_file()]
    digests = {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}
    (folder / "parts.json").write_text(json.dumps({"sha256": digests}))


def test_a_model_whose_parts_are_as_listed_is_loaded(folder):
    listed(folder)
    assert load_pipeline(folder, device="cpu").unet is not None


@pytest.mark.parametrize("part", ["unet", "reference_unet"])
def test_a_part_of_another_model_is_noticed(folder, part):
    listed(folder)
    load_pipeline(folder, device="cpu")  # whose digests are remembered
    file = folder / part / WEIGHTS
    tensors = load_file(file)
    next(iter(tensors.values())).view(-1)[0] += 1
    save_file(tensors, file)
    with pytest.raises(ModelError, match=f"{part}/{WEIGHTS} is not the file that parts.json lists"):
        load_pipeline(folder, device="cpu")
    file.unlink()
    file.symlink_to(folder / "unet" / "config.json")
    with pytest.raises(ModelError):
        load_pipeline(folder, device="cpu")


def test_a_missing_part_is_named(folder):
    listed(folder)
    (folder / "scheduler" / "scheduler_config.json").rename(folder / "gone.json")
    with pytest.raises(ModelError, match=r"lacks scheduler/scheduler_config\.json, which its"):
        load_pipeline(folder, device="cpu")


@pytest.mark.parametrize(
    "content", ["[]", "{", '{"sha256": {}}', '{"sha256": {"../x": "a"}}', '{"sha256": {"/etc/passwd": "a"}}']
)
def test_a_damaged_list_of_parts_is_refused(folder, content):
    (folder / "parts.json").write_text(content)
    with pytest.raises(ModelError, match=r"parts\.json"):
        load_pipeline(folder, device="cpu")


def test_saving_over_a_model_removes_its_list_of_parts(folder):
    listed(folder)
    tiny_patch_pipeline(seed=1).save_pretrained(folder)
    assert load_pipeline(folder, device="cpu").unet is not None


# --- Bases that training cannot start from ---


def sdxl(base: Path) -> None:
    changed(base / "unet" / "config.json", addition_embed_type="text_time", addition_time_embed_dim=8)


def channels(count: int) -> Callable[[Path], None]:
    return lambda base: tiny_unet(0, in_channels=count).save_pretrained(base / "unet")


def flow_matching(base: Path) -> None:
    FlowMatchEulerDiscreteScheduler().save_pretrained(base / "scheduler")


def transformer(base: Path) -> None:
    (base / "unet").rename(base / "transformer")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (sdxl, "is Stable Diffusion XL"),
        (channels(9), "takes 9 channels and gives 4: it is an inpainting model"),
        (channels(8), "takes 8 channels and gives 4: it is an InstructPix2Pix model"),
        (channels(5), "it is a depth-guided model"),
        (flow_matching, "is a flow matching model"),
        (transformer, "has a transformer in place of a unet"),
    ],
)
def test_other_bases_are_refused_in_a_sentence_before_weights_are_read(tmp_path, make, message):
    base = tiny_stable_diffusion(tmp_path / "base")
    make(base)
    with pytest.raises(ModelError, match=message) as told:
        from_stable_diffusion(base)
    assert "\n" not in str(told.value)


def test_a_base_of_half_precision_files_alone_is_loaded(tmp_path):
    base = tiny_stable_diffusion(tmp_path / "base")
    plain, _ = from_stable_diffusion(base)
    for name, kind in (
        ("unet", UNet2DConditionModel),
        ("vae", AutoencoderKL),
        ("text_encoder", CLIPTextModel),
    ):
        network = kind.from_pretrained(base / name).half()
        for file in (base / name).glob("*.safetensors"):
            file.unlink()
        network.save_pretrained(base / name, variant="fp16")
    unets = from_stable_diffusion(base)
    assert with_base(unets, base, FlowMatchEulerDiscreteScheduler, 64).vae is not None
    for ours, full in zip(unets[0].parameters(), plain.parameters(), strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, full, atol=1e-3, rtol=1e-3)


def test_a_folder_of_half_precision_files_alone_is_loaded(folder):
    for name in ("unet", "reference_unet"):
        file = folder / name / WEIGHTS
        file.rename(file.with_name("diffusion_pytorch_model.fp16.safetensors"))
    assert load_pipeline(folder, device="cpu").unet.dtype == torch.float32


def test_a_published_checkpoint_that_lies_is_refused(tmp_path):
    place = tmp_path / "denoising_unet"
    tiny_unet(0).save_pretrained(place)
    changed(place / "config.json", layers_per_block=10**7)
    with pytest.raises(ModelError, match="layers_per_block must be"):
        load_magicface(tmp_path)
