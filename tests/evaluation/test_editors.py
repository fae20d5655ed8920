"""Whatever can be evaluated: pictures of others, callables by name, our models."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from magicedit import ExpressionEditor
from magicedit.action_units import GEOMETRIC, NAMES
from magicedit.errors import ImageError, MagicEditError, MissingDependencyError
from magicedit.evaluation.editors import ModelEditor, PictureFolder, entry_point
from magicedit.evaluation.protocol import Edit
from magicedit.evaluation.subjects import Subject
from magicedit.imaging import open_photo

ANN = Subject("ann", Path("ann.png"))


@pytest.fixture
def manifest(tmp_path):
    """`manifest(lines...)`: a manifest beside pictures 0.png to 9.png, whose pixels are 0 to 9."""
    for number in range(10):
        Image.new("RGB", (16, 20), (number,) * 3).save(tmp_path / f"{number}.png")

    def write(*lines: str) -> Path:
        path = tmp_path / "manifest.csv"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8-sig")
        return path

    return write


def shown(folder: PictureFolder, asked: dict, seed: int = 0, subject: Subject = ANN) -> int:
    """The number of the picture."""
    pixels = folder.picture(subject, Edit("level", asked, seed))
    assert pixels.shape == (20, 16, 3)
    assert pixels.dtype == np.uint8
    return int(pixels[0, 0, 0])


# --- Pictures of another system ---


def test_pictures_are_found_by_identity_and_request(manifest):
    folder = PictureFolder(
        manifest(
            "note,identity,request,picture",
            "a,ann,AU12=+3,1.png",
            "b,bob,AU12=+3,2.png",
            "c,ann,none,3.png",
            "d,ann (drawn),AU12=+3,4.png",
            "e,ann,AU12L=-1.5,./5.png",
        )
    )
    assert shown(folder, {"AU12": 3.0}) == 1
    assert shown(folder, {"AU12": 3.0}, subject=Subject("bob", Path("b.png"))) == 2
    assert shown(folder, {}) == 3
    assert shown(folder, {"AU12": 3.0}, subject=Subject("ann", Path("ann.png"), style="drawn")) == 4
    assert shown(folder, {"AU12L": -1.5}) == 5


@pytest.mark.parametrize("spelling", ["AU12=+3,AU4=-1", "AU4=-1,AU12=3", " au04 = -1.0, au12=3.0"])
def test_a_request_may_be_spelled_otherwise(manifest, spelling):
    folder = PictureFolder(manifest("identity,request,picture", f'ann,"{spelling}",7.png'))
    assert shown(folder, {"AU12": 3.0, "AU4": -1.0}) == 7
    assert shown(folder, {"AU4": -1.0, "AU12": 3.0}) == 7


def test_pictures_of_a_seed_come_before_those_of_any(manifest):
    folder = PictureFolder(
        manifest(
            "identity,request,picture,seed", "ann,AU1=2,1.png,", "ann,AU1=2,2.png,5", "ann,AU2=2,3.png,5"
        )
    )
    assert (shown(folder, {"AU1": 2.0}, seed=0), shown(folder, {"AU1": 2.0}, seed=5)) == (1, 2)
    assert shown(folder, {"AU2": 2.0}, seed=5) == 3
    with pytest.raises(MagicEditError, match=r"no picture of ann AU2=\+2$"):
        folder.check([(ANN, Edit("level", {"AU2": 2.0}, 0))])


def test_lacking_edits_are_named_before_anything_runs(manifest):
    folder = PictureFolder(manifest("identity,request,picture", "ann,AU1=1,1.png"))
    folder.check([(ANN, Edit("level", {"AU1": 1.0}, 0))])
    wanted = [(ANN, Edit("level", {"AU1": value}, 0)) for value in (1.0, 2.0, 3.0)]
    with pytest.raises(MagicEditError, match=r"manifest\.csv has no picture of ann AU1=\+2; ann AU1=\+3$"):
        folder.check(wanted)
    many = [(ANN, Edit("level", {name: 4.0}, 0)) for name in NAMES]
    with pytest.raises(MagicEditError, match=r"and 4 more$"):
        folder.check(many)


def test_missing_pictures_are_listed_by_line(manifest):
    path = manifest("identity,request,picture", "ann,AU1=1,1.png", "ann,AU1=2,gone.png", "ann,AU1=3,")
    with pytest.raises(MagicEditError, match=r'missing pictures: line 3: gone\.png; line 4: ""$'):
        PictureFolder(path)
    lines = [f"ann,AU1={level / 2},no{level}.png" for level in range(1, 12)]
    with pytest.raises(MagicEditError, match=r"line 9: no8\.png and 3 more"):
        PictureFolder(manifest("identity,request,picture", *lines))


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        (["identity,edit,picture", "ann,AU1=1,1.png"], "lacks request; expected identity, request, picture"),
        (["identity", "ann"], "lacks picture, request"),
        (["identity,request,picture"], "lacks identity, picture, request"),
        (["identity,request,picture", "ann,AU1=1,1.png", "ann,AU99=1,1.png"], "line 3: unknown action unit"),
        (["identity,request,picture", "ann,AU1,1.png"], "line 2: expected NAME=NUMBER"),
        (["identity,request,picture", "ann"], "line 2: expected"),
        (["identity,request,picture", "ann,AU1=1,1.png", "ann,AU1=+1,2.png"], "line 3: a second picture"),
        (["identity,request,picture,seed", "ann,AU1=1,1.png,first"], "line 2: .*first"),
    ],
)
def test_what_is_no_manifest(manifest, lines, problem):
    with pytest.raises(MagicEditError, match=problem) as caught:
        PictureFolder(manifest(*lines))
    assert "manifest.csv" in str(caught.value)


def test_manifests_and_pictures_that_cannot_be_read(tmp_path, manifest):
    with pytest.raises(MagicEditError, match=r"none\.csv does not exist"):
        PictureFolder(tmp_path / "none.csv")
    (tmp_path / "1.png").write_bytes(b"no picture")
    folder = PictureFolder(manifest("identity,request,picture", "ann,AU1=1,1.png"))
    with pytest.raises(ImageError, match=r"1\.png"):
        shown(folder, {"AU1": 1.0})


# --- Callables by name ---


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module `other_editor` in the working directory."""
    (tmp_path / "other_editor.py").write_text(
        "number = 3\n"
        "def darker(photo, au_delta, seed):\n"
        "    return photo.pixels // 2\n"
        "class Editor:\n"
        "    action_units = ('AU1',)\n"
        "    def __call__(self, photo, au_delta, seed):\n"
        "        return photo.pixels + seed\n"
        "class NoEditor:\n"
        "    pass\n"
        "class NeedsArguments:\n"
        "    def __init__(self, weights):\n"
        "        self.weights = weights\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield "other_editor"
    sys.modules.pop("other_editor", None)


def test_editors_by_name(module):
    path = list(sys.path)
    photo = open_photo(np.full((16, 16, 3), 100, np.uint8))
    assert (entry_point(f"{module}:darker")(photo, {}, 0) == 50).all()
    editor = entry_point(f"{module}:Editor")
    assert editor.action_units == ("AU1",)
    assert (editor(photo, {}, 3) == 103).all()
    assert entry_point(f"{module}:Editor") is not editor
    assert sys.path == path


@pytest.mark.parametrize(
    "spec", ["no_such_module:edit", "other_editor:nobody", "other_editor", "", ":edit", ".a:b"]
)
def test_editors_that_are_not_there(module, spec):
    path = list(sys.path)
    with pytest.raises(MissingDependencyError, match=f"cannot load the editor {spec}:"):
        entry_point(spec)
    assert sys.path == path


@pytest.mark.parametrize("name", ["number", "NoEditor"])
def test_what_cannot_be_called_is_no_editor(module, name):
    with pytest.raises(MagicEditError, match=f"editor other_editor:{name} must be a callable"):
        entry_point(f"{module}:{name}")


def test_a_class_that_needs_arguments_is_told_so(module):
    with pytest.raises(MagicEditError, match="NeedsArguments must be made without arguments"):
        entry_point(f"{module}:NeedsArguments")


# --- Our models ---


def test_a_model_edits(astronaut):
    """The embedded one: it does what the editor does with the same settings, and a smile goes."""
    editor = ExpressionEditor.from_pretrained("mini")
    entrant = ModelEditor(editor, steps=2, guidance=1.0)
    photo = open_photo(astronaut)
    assert entrant.action_units == (*NAMES, *GEOMETRIC)
    edited = entrant(photo, {"AU12": -5.0}, 3)
    assert edited.shape == photo.pixels.shape
    assert edited.dtype == np.uint8
    asked = {"add": {"AU12": -5.0}, "face": "largest", "measure": False}
    same = editor.edit(photo, steps=2, guidance=1.0, seed=3, **asked)
    np.testing.assert_array_equal(edited, np.asarray(same.image))
    assert (edited != np.asarray(editor.edit(photo, steps=3, guidance=2.0, seed=3, **asked).image)).any()
    smile = [editor.backend.detect(pixels)[0].action_units["AU12"] for pixels in (photo.pixels, edited)]
    assert smile[1] < smile[0] - 0.5
