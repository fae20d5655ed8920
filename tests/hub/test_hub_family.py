"""A family of editors of its own, published and loaded by its id: by the class that its index names."""

import json

import pytest
from machines import OWNER, Machine
from safetensors.torch import save_file

PUBLISH = """
from huggingface_hub import CommitOperationAdd, HfApi
from pathlib import Path

api = HfApi()
api.create_repo(repo)
files = [path for path in Path(folder).rglob("*") if path.is_file()]
added = [CommitOperationAdd(path.relative_to(folder).as_posix(), path) for path in files]
api.create_commit(repo, added, commit_message="A family of its own")
"""
LOAD = """
import sys
sys.path[:0] = [tests]
from test_family import Tint

from magicedit import ExpressionEditor
from magicedit.models.face_model import LOADERS

LOADERS["Tint"] = Tint.load
editor = ExpressionEditor.from_pretrained(repo)
model = editor.changer.model
result.update(family=type(model).__name__, fingerprint=model.fingerprint(), names=editor.action_units)
"""


@pytest.fixture(scope="module")
def tint():
    from test_family import Tint

    return Tint()


@pytest.fixture(scope="module")
def repo(hub, tint, tmp_path_factory) -> str:
    from test_family import SIZE, VOCABULARY

    folder = tmp_path_factory.mktemp("families") / "tint"
    folder.mkdir()
    for name in ("skin", "colour"):
        save_file(getattr(tint, name).state_dict(), folder / f"{name}.safetensors")
    index = {"_class_name": "Tint", "resolution": SIZE} | VOCABULARY.to_index()
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "pipeline.py").write_text("raise SystemExit('the code of the repository was run')")
    publisher = Machine(tmp_path_factory.mktemp("publisher"), hub.url)
    publisher.run(PUBLISH, token=OWNER, repo="alice/tint", folder=str(folder))
    return "alice/tint"


def test_a_family_is_loaded_by_id_as_what_its_index_names(hub, machine, repo, tint, request):
    asked_before = len(hub.requests)
    tests = str(request.config.rootpath / "tests")
    loaded = machine.run(LOAD, repo=repo, tests=tests)
    assert loaded["family"] == "Tint"
    assert loaded["fingerprint"] == tint.fingerprint()
    assert loaded["names"] == ["AU12", "AU26", "tan"]
    fetched = [path.rpartition("/")[2] for _, path in hub.requests[asked_before:] if "/resolve/" in path]
    assert fetched[0] == "model_index.json"
    assert not any(name.endswith(".py") for name in fetched)
    assert machine.run(LOAD, repo=repo, tests=tests, offline=True) == loaded  # from the cache


def test_a_class_without_a_loader_says_what_it_is(machine, repo):
    code = """
from magicedit.errors import ModelError
from magicedit.models.face_model import load_face_model

try:
    load_face_model(repo)
except ModelError as error:
    result["refusal"] = str(error)
"""
    assert "holds a Tint" in machine.run(code, repo=repo)["refusal"]
