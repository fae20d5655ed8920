"""What a model's files say of it without loading it, and what they say where they are not whole."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_models import tiny_patch_pipeline

from magicedit.embedded import embedded_folder
from magicedit.errors import ModelError
from magicedit.hub import check_pipeline_folder
from magicedit.models import load_pipeline
from magicedit.models.folder import ModelFolder


@pytest.fixture
def folder(tmp_path) -> Path:
    tiny_patch_pipeline().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def installation(tmp_path, monkeypatch) -> Path:
    """A copy of the embedded models, in the place of those in the package."""
    copy = shutil.copytree(embedded_folder("mini").parent, tmp_path / "pretrained")
    monkeypatch.setattr("magicedit.models.folder.embedded_folder", lambda name: copy / name)
    return copy


def flip_last_bit(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def test_a_folder_says_what_its_pipeline_says(folder):
    pipeline, found = load_pipeline(folder, device="cpu"), ModelFolder.find(folder)
    assert (found.origin, found.path) == ("folder", folder)
    assert found.action_units == pipeline.action_units
    assert found.resolution == pipeline.config.resolution
    assert found.components == ("reference_unet", "scheduler", "unet")
    assert found.pipeline_class() == "MagicEditPipeline"


def test_a_model_of_a_hub_says_nothing_before_it_is_downloaded():
    found = ModelFolder.find("owner/name")
    assert (found.origin, found.path, found.has_index) == ("hub", None, False)
    assert (found.action_units, found.resolution, found.fingerprint) == (None, None, None)


def test_reading_a_folder_imports_no_torch(folder):
    script = f"""
import sys
from magicedit.models.folder import ModelFolder
print(ModelFolder.find({str(folder)!r}).fingerprint)
assert not {{"torch", "diffusers"}} & set(sys.modules)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ModelFolder.find(folder).fingerprint


# --- Fingerprints ---


@pytest.mark.parametrize(
    "file", ["unet/*.safetensors", "reference_unet/*.safetensors", "scheduler/*.json", "model_index.json"]
)
def test_a_fingerprint_sees_every_network_and_setting(folder, file):
    before = ModelFolder.find(folder).fingerprint
    (changed,) = folder.glob(file)
    if changed.suffix == ".json":
        changed.write_text(changed.read_text() + "\n")
    else:
        flip_last_bit(changed)
    assert ModelFolder.find(folder).fingerprint not in (before, None)


def test_a_fingerprint_is_of_what_is_loaded_alone(folder, tmp_path):
    before = ModelFolder.find(folder).fingerprint
    (folder / "README.md").write_text("# Card")
    for name in ("checkpoint-5", "report"):
        (folder / name).mkdir()
        (folder / name / "summary.json").write_text("{}")
    os.mkfifo(folder / "unet" / "endless.json")
    assert ModelFolder.find(folder).fingerprint == before
    assert ModelFolder.find(shutil.copytree(embedded_folder("mini"), tmp_path / "copy")).fingerprint == (
        ModelFolder.find("mini").fingerprint
    )


def test_a_fingerprint_sees_a_borrowed_network(installation):
    """The ID encoder of mini-live lies in the folder of mini, whose denoiser is another."""
    before = ModelFolder.find("mini-live").fingerprint
    flip_last_bit(installation / "mini" / "unet" / "diffusion_pytorch_model.safetensors")
    assert ModelFolder.find("mini-live").fingerprint == before
    flip_last_bit(installation / "mini" / "reference_unet" / "diffusion_pytorch_model.safetensors")
    assert ModelFolder.find("mini-live").fingerprint not in (before, None)


def test_fingerprints_of_recorded_reports_are_computed_as_before(tmp_path):
    """Digests of names, sizes and ends of these files, by the first version that wrote them into reports."""
    (tmp_path / "unet").mkdir()
    (tmp_path / "model_index.json").write_text(json.dumps({"unet": ["diffusers", "UNet2DConditionModel"]}))
    (tmp_path / "unet" / "config.json").write_text("{}")
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(bytes(range(256)) * 9000)
    assert ModelFolder.find(tmp_path).fingerprint == "ddd60d180a40776c"


# --- Half there ---


def remove_index(folder: Path) -> None:
    (folder / "model_index.json").unlink()


def cut_index(folder: Path) -> None:
    (folder / "model_index.json").write_text("{")


def list_index(folder: Path) -> None:
    (folder / "model_index.json").write_text("[]")


def remove_component(folder: Path) -> None:
    shutil.rmtree(folder / "scheduler")


def remove_weights(folder: Path) -> None:
    for file in (folder / "unet").glob("*.safetensors"):
        file.rename(file.with_suffix(".bin"))


@pytest.mark.parametrize(
    ("spoil", "missing"),
    [
        (remove_index, "it has no model_index.json"),
        (cut_index, "model_index.json cannot be read"),
        (list_index, "model_index.json must hold an object"),
        (remove_component, "has no folder scheduler, which its model_index.json names"),
        (remove_weights, "no safetensors weights (diffusion_pytorch_model.bin may run code"),
    ],
)
def test_a_folder_that_is_half_there_says_what_is_missing(folder, spoil, missing):
    spoil(folder)
    with pytest.raises(ModelError) as loaded:
        load_pipeline(folder, device="cpu")
    assert missing in str(loaded.value)
    assert str(folder) in str(loaded.value)
    if spoil is not remove_weights:  # what is published is searched for pickles first
        with pytest.raises(ModelError) as published:
            check_pipeline_folder(folder)
        assert str(published.value) == str(loaded.value)


def test_an_installation_without_its_models_says_so(installation):
    remove_index(installation / "mini")
    with pytest.raises(ModelError, match="mini is missing from this installation; reinstall the package"):
        load_pipeline("mini", device="cpu")
    shutil.rmtree(installation / "mini" / "reference_unet")
    with pytest.raises(ModelError, match="mini-live has no folder reference_unet"):
        load_pipeline("mini-live", device="cpu")


def test_a_component_is_never_a_path_out_of_the_folder(folder, tmp_path):
    (tmp_path / "private").mkdir()
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"../private": ["diffusers", "Other"]}))
    assert check_pipeline_folder(folder) == ("reference_unet", "scheduler", "unet")
