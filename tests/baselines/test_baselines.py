"""The editor that does nothing, and the one that learned nothing."""

import numpy as np
import pytest

from magicedit.action_units import NAMES
from magicedit.baselines import WarpEditor, copy
from magicedit.baselines.warp import SIZE
from magicedit.errors import NoFaceError
from magicedit.faces import align, geometric_change, load_backend
from magicedit.faces.backends import dlib as dlib_backend
from magicedit.faces.regions import reachable_region
from magicedit.imaging import Photo


@pytest.fixture(scope="module")
def backend():
    return load_backend("mediapipe")


@pytest.fixture(scope="module")
def photo() -> Photo:
    return Photo(pytest.importorskip("skimage.data").astronaut())


@pytest.fixture(scope="module")
def mirrored(photo) -> Photo:
    return Photo(np.ascontiguousarray(photo.pixels[:, ::-1]))


@pytest.fixture(scope="module")
def editor(backend) -> WarpEditor:
    return WarpEditor(backend)


@pytest.fixture(scope="module")
def change(backend, photo):
    """`change(pixels)`: what MediaPipe's blendshapes and landmarks, and dlib's, say has changed, by name."""
    (before,) = backend.detect(photo.pixels)

    def measure(pixels):
        (after,) = backend.detect(pixels)
        measured = before.action_units | before.sides, after.action_units | after.sides
        changes = {"blendshapes": {name: measured[1][name] - value for name, value in measured[0].items()}}
        changes["landmarks"] = geometric_change(before.landmarks, after.landmarks)
        if dlib_backend.available():
            both = [dlib_backend.landmarks68(p, f) for p, f in ((photo.pixels, before), (pixels, after))]
            changes["landmarks68"] = geometric_change(*both, "ibug68")
        return changes

    return measure


def test_a_copy_is_the_photograph(photo):
    before = photo.pixels.copy()
    edited = copy(photo, {"AU12": -5.0}, 3)
    np.testing.assert_array_equal(edited, before)
    assert edited.dtype == np.uint8


@pytest.mark.parametrize("asked", [{}, {"AU12": 0.0}, {"AU12L": 0.0, "AU1": 0.0}])
def test_nothing_asked_is_nothing_done(editor, photo, asked):
    np.testing.assert_array_equal(editor(photo, asked), photo.pixels)


def test_a_smile_goes(editor, photo, change):
    """By -2.8 of the four steps for each of the scorers."""
    for scorer, changed in change(editor(photo, {"AU12": -4.0}, seed=0)).items():
        assert changed["AU12"] < -1.5, scorer
    assert change(editor(photo, {"AU12": -1.0}))["landmarks"]["AU12"] > -1.5


@pytest.mark.parametrize("name", NAMES)
def test_every_unit_changes_the_face_and_nothing_else(editor, backend, photo, name):
    before = photo.pixels.copy()
    edited = editor(photo, {name: 4.0})
    np.testing.assert_array_equal(photo.pixels, before)
    alignment = align(backend.detect(photo.pixels)[0], SIZE)
    landmarks = alignment.apply(backend.detect(photo.pixels)[0].landmarks)
    region = reachable_region(landmarks, SIZE, "mediapipe478")
    y, x = np.nonzero((edited != photo.pixels).any(-1))
    assert len(y) > 300
    places = alignment.apply(np.stack([x, y], 1))
    # the region is read bilinearly: where all four pixels around are 0, so is it
    near = np.floor(places[:, None] + [(0, 0), (1, 0), (0, 1), (1, 1)]).astype(int).clip(0, SIZE - 1)
    assert region[near[..., 1], near[..., 0]].any(1).all()
    assert not region.all()


@pytest.mark.parametrize(("side", "other"), ["LR", "RL"])
def test_sides(editor, photo, change, side, other):
    for scorer, changed in change(editor(photo, {f"AU12{side}": -4.0})).items():
        assert changed[f"AU12{side}"] < changed[f"AU12{other}"] - 0.5, scorer


def test_two_sides_are_the_whole(editor, photo):
    both = editor(photo, {"AU12": -3.0, "AU1": 2.0})
    asked = {name + side: value for name, value in (("AU12", -3.0), ("AU1", 2.0)) for side in "LR"}
    np.testing.assert_array_equal(editor(photo, asked), both)
    one = editor(photo, {"AU12L": -3.0})
    assert (one != editor(photo, {"AU12R": -3.0})).any()
    assert (one != both).any()


def test_a_half_face_stays_where_the_other_side_is_asked(editor, backend, photo):
    """The subject's right mouth corner, in the left half of the picture, keeps its pixels to the byte."""
    edited = editor(photo, {"AU12L": -4.0})
    landmarks = backend.detect(photo.pixels)[0].landmarks
    right, left = (landmarks[number].round().astype(int) for number in (61, 291))

    def around(pixels, point):
        return pixels[point[1] - 5 : point[1] + 6, point[0] - 5 : point[0] + 6]

    np.testing.assert_array_equal(around(edited, right), around(photo.pixels, right))
    assert (around(edited, left) != around(photo.pixels, left)).any()


def test_photographs_are_remembered_and_not_confused(editor, backend, photo, mirrored):
    asked = {"AU12": -4.0, "AU1": 3.0}
    fresh = [WarpEditor(backend)(one, asked) for one in (photo, mirrored)]
    assert (fresh[0] != fresh[1]).any()
    for _ in range(2):
        for one, expected in zip((photo, mirrored), fresh, strict=True):
            np.testing.assert_array_equal(editor(one, asked, seed=1), expected)


def test_a_mirrored_photograph_is_edited_as_in_a_mirror(editor, photo, mirrored):
    """To a few levels on average where either changes: the landmarks differ by fractions of a pixel."""
    there = editor(photo, {"AU12L": -4.0})
    back = editor(mirrored, {"AU12R": -4.0})[:, ::-1]
    changed = ((there != photo.pixels) | (back != photo.pixels)).any(-1)
    moved = np.abs(there[changed].astype(int) - photo.pixels[changed]).mean()
    apart = np.abs(there[changed].astype(int) - back[changed]).mean()
    assert apart < 0.5 * moved


def test_without_a_face(editor, photo):
    wall = Photo(np.full((200, 200, 3), 128, np.uint8))
    with pytest.raises(NoFaceError, match="no face was found"):
        editor(wall, {"AU12": 1.0})
    assert (editor(photo, {"AU12": -4.0}) != photo.pixels).any()  # and it goes on


def test_it_knows_our_action_units():
    assert WarpEditor.action_units == NAMES
