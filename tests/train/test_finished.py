"""How a finished model replaces an earlier one."""

import json

import pytest

from magicedit.errors import OutputError
from magicedit.files import sha256_of
from magicedit.models.folder import FINISHED, ModelFolder
from magicedit.train.finished import UNFINISHED, finish, replaced_whole


def write(folder, version):
    """A model of three files, with a network that only the first version has."""
    for name in (
        "unet/weights",
        "model_index.json",
        "README.md",
        *(["extra/weights", "extra/config.json"] if version == 1 else []),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{name} {version}")


def content(folder):
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_text() for path in files}


def replaced(folder, version):
    with replaced_whole(folder) as aside:
        write(aside, version)


def test_a_new_model_takes_the_place_of_all_of_the_old_one(tmp_path):
    (tmp_path / "checkpoint-1").mkdir()
    (tmp_path / "checkpoint-1" / "state.json").write_text("{}")
    replaced(tmp_path, 1)
    replaced(tmp_path, 2)
    files = content(tmp_path)
    parts = json.loads(files.pop("parts.json"))["sha256"]
    assert files == {
        "checkpoint-1/state.json": "{}",
        **{name: f"{name} 2" for name in ("unet/weights", "model_index.json", "README.md")},
    }
    assert parts == {name: sha256_of(tmp_path / name) for name in ("model_index.json", "unet/weights")}


def test_a_model_that_could_not_be_written_leaves_the_old_one(tmp_path):
    replaced(tmp_path, 1)
    before = content(tmp_path)

    def half_written():
        with replaced_whole(tmp_path) as aside:
            write(aside, 2)
            (aside / "unet" / "weights" / "more").write_text("")  # below a file

    with pytest.raises(OutputError, match="could not be written"):
        half_written()
    finish(tmp_path)
    assert content(tmp_path) == before


@pytest.mark.parametrize("linked", [True, False], ids=["links", "a file system without links"])
def test_a_whole_model_beside_the_folder_is_put_into_place(tmp_path, monkeypatch, linked):
    """As a kill leaves it after the rename, with a half of the files in place."""
    if not linked:
        monkeypatch.setattr("os.link", lambda *_: (_ for _ in ()).throw(OSError("no links")))
    replaced(tmp_path / "new", 2)
    folder = tmp_path / "folder"
    replaced(folder, 1)
    (tmp_path / "new").rename(folder / FINISHED)
    (folder / "model_index.json").unlink()
    (folder / "unet" / "weights").write_text("half")
    (folder / UNFINISHED).mkdir()
    assert (ModelFolder.find(folder).path / "unet" / "weights").read_text() == "unet/weights 2"
    finish(folder)
    assert ModelFolder.find(folder).path == folder
    assert content(folder)["unet/weights"] == "unet/weights 2"
    assert set(content(folder)) == {"unet/weights", "model_index.json", "README.md", "parts.json"}


def test_a_torn_model_beside_the_folder_is_deleted(tmp_path):
    replaced(tmp_path, 1)
    before = content(tmp_path)
    write(tmp_path / UNFINISHED, 2)
    finish(tmp_path)
    assert content(tmp_path) == before


@pytest.mark.parametrize(
    "name",
    [
        *("checkpoint-4/manifest.json", "previews/config.json", "logs/config.json", "tmp-4/config.json"),
        *("abandoned-4/config.json", "train_log.jsonl", "notes/thesis.txt", "thesis.txt", "link/config.json"),
    ],
)
@pytest.mark.parametrize("absolute", [True, False], ids=["absolute", "relative"])
def test_a_list_of_files_deletes_nothing_but_a_models(tmp_path, name, absolute):
    folder, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    replaced(folder, 1)
    elsewhere.mkdir()
    (folder / "link").symlink_to(elsewhere)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("mine")
    listed = {str(folder / name) if absolute else name: "0" * 64, "../elsewhere": "", "a\0b": "", "": ""}
    (folder / "parts.json").write_text(json.dumps({"sha256": listed}))
    replaced(folder, 2)
    assert (folder / name).read_text() == "mine"
    assert (folder / "unet" / "weights").read_text() == "unet/weights 2"


def test_a_linked_component_is_replaced_and_what_it_points_to_stays(tmp_path):
    folder, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    write(elsewhere, 1)
    folder.mkdir()
    (folder / "unet").symlink_to(elsewhere / "unet")
    replaced(folder, 2)
    assert (elsewhere / "unet" / "weights").read_text() == "unet/weights 1"
    assert (folder / "unet" / "weights").read_text() == "unet/weights 2"
