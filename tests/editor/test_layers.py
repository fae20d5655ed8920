"""The layers of an edit, and the OpenEXR file of them."""

import json
import sys

import cv2
import numpy as np
import pytest
from PIL import Image

from magicedit import ExpressionEditor
from magicedit.cli import main
from magicedit.editor.layers import BAND, layers_of
from magicedit.imaging import Photo
from magicedit.request import EditRequest


@pytest.fixture(scope="module")
def editor() -> ExpressionEditor:
    return ExpressionEditor.from_pretrained("mini")


def composed(pixels: np.ndarray, source: np.ndarray, *drawn: np.ndarray) -> np.ndarray:
    """uint8: the photograph read at `source`, under layers (height, width, 4) of 0..1."""
    moved = cv2.remap(pixels, source, None, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)
    picture = moved.astype(np.float32) / 255
    for layer in drawn:
        picture = layer[..., 3:] * layer[..., :3] + (1 - layer[..., 3:]) * picture
    return np.rint(picture * 255).astype(np.uint8)


def test_layers_compose_to_the_result(editor, closed_mouth):
    """Two faces side by side; movement alone explains most of what changes."""
    photo = Photo(np.hstack([closed_mouth, closed_mouth[:, ::-1]]))
    request = EditRequest(add={"AU12": 2, "AU25": 3, "AU26": 2}, quality="live")
    (result,) = editor.apply([photo], request)
    assert len(result.faces) == 2
    layers = layers_of(editor, photo, request, result)
    after = np.asarray(result.image)
    assert np.array_equal(composed(photo.pixels, layers.source, layers.paint, layers.mouth), after)
    without = composed(photo.pixels, layers.source)
    changed = (after != photo.pixels).any(-1)
    assert (without != after).any(-1)[changed].mean() < 0.5
    assert not (changed & (layers.mask == 0)).any()
    assert not (layers.paint[..., 3] * layers.mouth[..., 3]).any()
    for edit in result.faces:  # what shows between the lips is in the lower half of each face
        x0, y0, x1, y1 = map(int, edit.box)
        assert layers.mouth[(y0 + y1) // 2 : y1, x0:x1, 3].sum() > 200
    st = layers.st_map()
    np.testing.assert_allclose(st[0, 0], (0.5 / photo.size[0], 1 - 0.5 / photo.size[1]), atol=1e-6)
    assert photo.size[1] % BAND  # the last band is a part of one
    source = np.dstack([st[..., 0], 1 - st[..., 1]]) * photo.size - 0.5
    np.testing.assert_allclose(source, layers.source, atol=1e-3)


def test_layers_of_an_empty_edit_are_empty(editor, closed_mouth):
    photo, request = Photo(closed_mouth), EditRequest(measure=False)
    (result,) = editor.apply([photo], request)
    layers = layers_of(editor, photo, request, result)
    assert np.array_equal(layers.source, np.dstack(np.indices(closed_mouth.shape[:2])[::-1]))
    assert not any(layer.any() for layer in (layers.mask, layers.paint, layers.mouth))


def test_layers_are_for_one_photograph(tmp_path, capsys):
    request = ["edit", str(tmp_path), "-o", str(tmp_path / "out"), "--au", "AU12=3", "--layers", "exr"]
    assert main(request) == 2
    assert "--layers is for one photograph" in capsys.readouterr().err


def test_layers_where_there_is_a_folder_are_refused_before_loading(tmp_path, closed_mouth, capsys):
    Image.fromarray(closed_mouth).save(tmp_path / "a.png")
    (tmp_path / "b.layers.exr").mkdir()
    asked = ["--au", "AU12=3", "--layers", "exr"]
    assert main(["edit", str(tmp_path / "a.png"), "-o", str(tmp_path / "b.png"), *asked]) == 2
    told = capsys.readouterr().err
    assert "b.layers.exr is a folder" in told
    assert "loading" not in told


def test_layers_without_openexr_are_refused_before_loading(tmp_path, closed_mouth, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "OpenEXR", None)
    Image.fromarray(closed_mouth).save(tmp_path / "a.png")
    asked = ["--au", "AU12=3", "--layers", "exr"]
    assert main(["edit", str(tmp_path / "a.png"), "-o", str(tmp_path / "b.png"), *asked]) == 2
    told = capsys.readouterr().err
    assert "exr" in told
    assert "pip install" in told
    assert "loading" not in told


def test_an_exr_file_has_the_layers_in_32_bits(tmp_path, closed_mouth, capsys):
    openexr = pytest.importorskip("OpenEXR", reason="needs the extra exr")
    Image.fromarray(closed_mouth).save(tmp_path / "a.png")
    asked = ["--au", "AU12=2,AU25=3", "--layers", "exr", "--quality", "live", "--json"]
    assert main(["edit", str(tmp_path / "a.png"), "-o", str(tmp_path / "b.png"), *asked]) == 0
    assert json.loads(capsys.readouterr().out)["layers"] == str(tmp_path / "b.layers.exr")
    with openexr.File(str(tmp_path / "b.layers.exr"), separate_channels=True) as file:
        parts = {part.header["name"]: part.channels for part in file.parts}
        layers = {
            name: np.dstack([channels[letter].pixels for letter in "RGBA" if letter in channels])
            for name, channels in parts.items()
        }
    assert [*layers] == ["st", "mask", "paint", "mouth"]
    assert {layer.dtype for layer in layers.values()} == {np.dtype(np.float32)}
    height, width = closed_mouth.shape[:2]
    s, t = layers["st"].transpose(2, 0, 1)
    source = np.dstack([s * width - 0.5, (1 - t) * height - 0.5]).astype(np.float32)
    drawn = [
        np.dstack([np.where(c <= 0.0031308, 12.92 * c, 1.055 * c ** (1 / 2.4) - 0.055), layer[..., 3]])
        for layer in (layers["paint"], layers["mouth"])
        for c in [layer[..., :3]]
    ]
    after = np.asarray(Image.open(tmp_path / "b.png"))
    difference = np.abs(composed(closed_mouth, source, *drawn).astype(int) - after)
    assert difference.max() <= 2  # of coordinates in float32
    assert (difference > 0).mean() < 0.01
