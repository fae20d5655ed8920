"""Carrying a change to a photograph: one copy, layers in windows, and what is remembered between edits."""

import tracemalloc

import cv2
import numpy as np
import pytest

from magicedit import ExpressionEditor
from magicedit.editor import FacePlace
from magicedit.editor import changer as changing
from magicedit.faces import Alignment, load_backend
from magicedit.vocabulary import whole_name
from magicedit.warping import carry_mouth, move_eyes, parts_lips, shade, turn_head

REQUEST = {"AU12": 3.0, "AU26": 3.0, "AU4": 2.0, "AU43L": 4.0, "gaze_yaw": 12.0, "head_yaw": 9.0}


@pytest.fixture(scope="module")
def editor() -> ExpressionEditor:
    return ExpressionEditor.from_pretrained("mini", backend=load_backend("mediapipe"))


@pytest.fixture(scope="module")
def faces(closed_mouth) -> np.ndarray:
    """Six faces, none equal to another, (height, width, 3) uint8 RGB."""
    tiles = [cv2.convertScaleAbs(closed_mouth, alpha=1 - 0.03 * number) for number in range(6)]
    return cv2.vconcat([cv2.hconcat(tiles[:3]), cv2.hconcat(tiles[3:])])


def shifted(alignment: Alignment, origin: tuple[int, int]) -> Alignment:
    """Of a photograph's part that begins at `origin`, (x, y) px."""
    matrix = alignment.matrix.copy()
    matrix[:, 2] += matrix[:, :2] @ origin
    return Alignment(matrix, alignment.size)


@pytest.mark.parametrize("cut_off", [(0, 0), (150, 140)], ids=["whole", "at the corner"])
def test_every_layer_in_place_gives_what_it_gives_in_a_copy(editor, closed_mouth, cut_off):
    changer, settings = editor.changer, editor.sampling(quality="live")
    (face,) = editor.measure(closed_mouth)
    cut = changer.cut(closed_mouth, face)
    (change,) = changer.requested_changes([cut], [REQUEST], settings)
    photo = np.ascontiguousarray(closed_mouth[cut_off[1] :, cut_off[0] :])
    landmarks = cut.landmarks_in_photo - cut_off
    alignment, region = shifted(cut.alignment, cut_off), cut.region(change)
    own_names = changer.model.vocabulary
    geometric = {name: value for name, value in REQUEST.items() if whole_name(name) not in own_names}
    mouth = settings.mouths.mouth(photo, landmarks, alignment, settings.mouths.donor(landmarks, 0))
    layers = [
        lambda picture, **way: shade(picture, alignment, region, landmarks, REQUEST, **way),
        lambda picture, **way: move_eyes(picture, landmarks, geometric, **way),
        lambda picture, **way: carry_mouth(
            picture, alignment, change, region, landmarks, mouth, parts_lips(REQUEST), **way
        ),
        lambda picture, **way: turn_head(picture, landmarks, geometric, **way),
    ]
    own, differing = photo.copy(), 0
    for layer in layers:
        before = photo.copy()
        changed = layer(photo)
        assert np.array_equal(photo, before)
        assert layer(own, in_place=True) is own
        assert np.array_equal(own, changed)
        differing += not np.array_equal(changed, photo)
        photo = changed
    assert differing >= 3  # one eye may lie beyond the border


def test_carry_changes_the_photograph_itself_only_in_place(editor, closed_mouth):
    changer, settings = editor.changer, editor.sampling(quality="live")
    cut = changer.cut(closed_mouth, editor.measure(closed_mouth)[0])
    (change,) = changer.requested_changes([cut], [REQUEST], settings)
    before, own = closed_mouth.copy(), closed_mouth.copy()
    carried = changer.carry(closed_mouth, cut, change, REQUEST, settings)
    assert np.array_equal(closed_mouth, before)
    assert not np.array_equal(carried, before)
    assert changer.carry(own, cut, change, REQUEST, settings, in_place=True) is own
    assert np.array_equal(own, carried)


def test_an_edit_copies_a_large_photograph_once(editor, closed_mouth):
    changer, settings = editor.changer, editor.sampling(quality="live")
    cut = changer.cut(closed_mouth, editor.measure(closed_mouth)[0])
    (change,) = changer.requested_changes([cut], [REQUEST], settings)
    large = cv2.copyMakeBorder(closed_mouth, 900, 3600, 900, 3600, cv2.BORDER_REPLICATE)
    place = FacePlace(
        alignment=shifted(cut.alignment, (-900, -900)), landmarks=cut.landmarks, scheme=cut.scheme
    )

    def peak(**way: bool) -> float:
        tracemalloc.start()  # counts what NumPy allocates
        try:
            changer.carry(large, place, change, REQUEST, settings, **way)
            return tracemalloc.get_traced_memory()[1] / large.nbytes
        finally:
            tracemalloc.stop()

    assert 1 < peak() < 1.5
    assert peak(in_place=True) < 0.5


def test_all_faces_of_a_photograph_stay_encoded_as_far_as_memory_allows(editor, faces, monkeypatch):
    fresh = changing.FaceChanger(editor.changer.model)
    found = editor.measure(faces)
    assert len(found) == 6
    size = changing.bytes_of(fresh.cut(faces, found[0]).encoded)
    encoded = [fresh.cut(faces, face).encoded for face in found]
    assert all(fresh.cut(faces, face).encoded is old for face, old in zip(found, encoded, strict=True))
    assert size > fresh.model.resolution**2  # the arrays in it are counted
    monkeypatch.setattr(changing, "REMEMBERED_BYTES", 5 * size)
    again = [fresh.cut(faces[:, ::-1], face).encoded for face in found]  # other crops
    assert fresh.cut(faces[:, ::-1], found[1]).encoded is again[1]
    assert fresh.cut(faces[:, ::-1], found[0]).encoded is not again[0]


def test_bytes_are_counted_while_another_thread_fills_a_cache():
    class Filling:
        def __init__(self, cache: dict):
            self.cache = cache

        @property
        def nbytes(self) -> int:
            self.cache["another layer"] = np.zeros(3, np.uint8)
            return 5

    cache: dict = {}
    cache |= {"a layer": Filling(cache)}
    assert changing.bytes_of([cache]) == 5
    assert changing.bytes_of([cache]) == 8


def test_what_is_seen_of_a_face_is_not_taken_from_an_edited_photograph(editor, closed_mouth):
    """The face of an edit's result has a crop of its own."""

    def edited(by: ExpressionEditor, photo: np.ndarray, **request: float) -> np.ndarray:
        return np.asarray(by.edit(photo, add=request, quality="live", measure=False).image)

    once = edited(editor, closed_mouth, AU4=4.0)
    twice = edited(editor, once, AU12=3.0)
    assert np.array_equal(
        edited(ExpressionEditor(editor.changer.model, editor.backend), once, AU12=3.0), twice
    )
    assert not np.array_equal(edited(editor, closed_mouth, AU12=3.0), twice)
