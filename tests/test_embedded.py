"""The name of an embedded model means that model everywhere, whatever lies in the working directory."""

import json
import shutil

import pytest

from magicedit.cli.evaluation import fingerprint, short_name
from magicedit.embedded import embedded_folder, model_origin
from magicedit.models import load_pipeline
from magicedit.models.folder import ModelFolder


@pytest.fixture
def namesake(tmp_path, monkeypatch):
    """A local folder `mini`, a model that knows two action units, in the working directory."""
    folder = shutil.copytree(embedded_folder("mini"), tmp_path / "elsewhere" / "other")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"action_units": "AU1,AU2"}))
    (tmp_path / "mini").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "mini"


def test_the_name_of_an_embedded_model_never_means_a_local_folder(namesake):
    pipeline = load_pipeline("mini", device="cpu")
    assert model_origin("mini") == "embedded"
    assert ModelFolder.find("mini").path == embedded_folder("mini")
    assert ModelFolder.find("mini").action_units == pipeline.action_units
    assert fingerprint("mini") == fingerprint(str(embedded_folder("mini"))) != fingerprint("./mini")
    assert short_name("mini") == "mini"


def test_a_local_folder_of_the_same_name_is_meant_by_its_path(namesake):
    for name in ("./mini", str(namesake)):
        assert model_origin(name) == "folder"
        assert ModelFolder.find(name).action_units == ("AU1", "AU2")


def test_other_folders_inside_the_package_are_no_models(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert ModelFolder.find("mini/unet").path is None
    assert ModelFolder.find("mini/unet").fingerprint is None
