"""What should make one look twice at an edit, each with the change that must not bring it up."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from skimage import data

from magicedit import ExpressionEditor
from magicedit.action_units import NAMES
from magicedit.editor import unreached
from magicedit.editor.doubts import REACHED_SHARE, doubts_before, doubts_of_folds, doubts_of_paint
from magicedit.faces import align, crop_face, editing_region, load_backend, region_polygon
from magicedit.faces.measure import LANDMARKS_SHOW, SEEN_BY_LANDMARKS
from magicedit.models import PatchModelConfig, create_patch_pipeline
from magicedit.warping import Change, no_change

SIZE = 128
BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
MOUTH, CHEEK, EYE = 13, 50, 159  # landmarks: the upper inner lip, the right cheek, the right upper lid


@pytest.fixture(scope="module")
def face():
    (face,) = load_backend("mediapipe").detect(data.astronaut())
    return face


@pytest.fixture(scope="module")
def cut(face):
    """crop, landmarks, region of the astronaut's face."""
    alignment = align(face, SIZE)
    landmarks = alignment.apply(face.landmarks)
    crop = crop_face(data.astronaut(), alignment)
    return crop, landmarks, editing_region(landmarks, SIZE, "mediapipe478")


def judged(cut, change, **requested):
    crop, landmarks, region = cut
    return [
        *doubts_of_folds(change, landmarks, "mediapipe478", region),
        *doubts_of_paint(change, crop, landmarks, "mediapipe478", region, requested),
    ]


def squeezed(place, strength, mask=0.0):
    """A flow that shrinks a disc of 10 px around `place`: its divergence across is -strength."""
    x, y = np.meshgrid(np.arange(SIZE), np.arange(SIZE))
    weight = np.hypot(x - place[0], y - place[1]) < 10
    flow = np.zeros((SIZE, SIZE, 2), np.float32)
    flow[..., 0] = -strength * (x - place[0]) * weight
    paint = np.zeros((SIZE, SIZE, 3), np.float32)
    return Change(flow, np.full((SIZE, SIZE), mask, np.float32), paint)


def painted(place, colour=(0.0, 1.0, 0.0), radius=8, flow=None):
    """Paint of one colour in a disc around `place`."""
    mask = np.zeros((SIZE, SIZE), np.float32)
    cv2.circle(mask, tuple(int(v) for v in np.rint(place)), radius, 1.0, cv2.FILLED)
    paint = np.broadcast_to(np.float32(colour), (SIZE, SIZE, 3)).copy()
    return Change(no_change(SIZE).flow if flow is None else flow, mask, paint)


def test_nothing_is_said_of_no_change(cut):
    assert judged(cut, no_change(SIZE), AU12=3.0) == []


def test_skin_that_folds_over_itself(cut):
    _, landmarks, region = cut
    (doubt,) = judged(cut, squeezed(landmarks[CHEEK], 1.5), AU12=3.0)
    assert doubt == "the skin folds over itself at the nose and cheeks: ask for less"
    assert judged(cut, squeezed(landmarks[CHEEK], 0.8), AU12=3.0) == []  # shrinks without folding
    lips = region_polygon(landmarks, "mediapipe478", "lips").mean(0)
    assert not any("folds" in doubt for doubt in judged(cut, small(squeezed(lips, 1.5), lips), AU12=3.0))
    assert region[4, 4] == 0
    assert judged(cut, squeezed((4, 4), 1.5), AU12=3.0) == []  # where nothing of it is carried out


def small(change, place):
    """The change within 5 px of `place` alone."""
    x, y = np.meshgrid(np.arange(SIZE), np.arange(SIZE))
    near = np.hypot(x - place[0], y - place[1]) < 5
    return Change(change.flow * near[..., None], change.mask * near, change.paint)


def test_paint_that_no_request_explains(cut):
    crop, landmarks, _ = cut
    (doubt,) = judged(cut, painted(landmarks[CHEEK]), AU12=3.0, AU25=3.0)
    assert doubt == "paint shows outside the lips, at the nose and cheeks, and no request explains it"
    same = painted(landmarks[CHEEK])
    same = Change(same.flow, same.mask, crop.astype(np.float32) / 255)
    assert judged(cut, same, AU12=3.0) == []  # of the colour that is there
    assert judged(cut, painted(landmarks[CHEEK], radius=1), AU12=3.0) == []  # a dot
    assert judged(cut, painted((4, 4)), AU12=3.0) == []


def test_paint_in_the_mouth_needs_a_request_that_moves_it(cut):
    _, landmarks, _ = cut
    teeth = painted(landmarks[MOUTH], radius=4)
    told = ["the mouth is painted, and no request explains it"]
    assert judged(cut, teeth, AU1=3.0) == told
    assert judged(cut, teeth, AU25=0.1, AU1=0.5) == told
    assert judged(cut, teeth, AU25=2.0) == judged(cut, teeth, AU12L=-2.0) == []


def test_a_dropped_jaw_explains_paint_as_far_down_as_the_lip_goes(cut):
    _, landmarks, _ = cut
    x, y = landmarks[17]  # the lower lip's lower edge
    down = no_change(SIZE).flow
    down[int(y) :, int(x) - 8 : int(x) + 9, 1] = -14  # what is below it comes from 14 px above
    below = painted((x, y + 8), radius=5)
    assert judged(cut, Change(down, below.mask, below.paint), AU26=4.0) == []
    (doubt,) = judged(cut, below, AU26=4.0)
    assert "outside the lips, at the mouth and chin" in doubt


def test_eyes_may_be_painted_where_they_open(cut):
    _, landmarks, _ = cut
    lid = painted(landmarks[EYE], radius=5)
    assert judged(cut, lid, AU5=3.0) == []
    (doubt,) = judged(cut, lid, AU1=3.0)
    assert "at the eyes" in doubt


def test_the_editor_tells_of_the_picture_with_one_edit_and_in_the_loop(cut):
    tiny = {"block_out_channels": (16, 32), "resolution": SIZE}
    painting, composing = (
        ExpressionEditor(create_patch_pipeline(PatchModelConfig(**tiny, **more), seed=1), load_backend())
        for more in ({"prediction": "noise"}, {})
    )
    editor = painting
    _, landmarks, _ = cut
    answers = {"paint": painted(landmarks[CHEEK]), "nothing": no_change(SIZE)}
    pair = np.concatenate([data.astronaut(), data.astronaut()[:, ::-1]], axis=1)
    for loop in ({}, {"tolerance": 0.3, "max_edits": 1}):
        for name, answer in answers.items():
            editor.changer.changes = lambda cuts, *_, answer=answer: [answer] * len(cuts)
            (face,) = editor.edit(data.astronaut(), add={"AU12": -2}, **loop).faces
            assert any("paint shows" in text for text in face.warnings) == (name == "paint"), loop
    editor.changer.changes = lambda cuts, *_: [answers["paint"]] * len(cuts)
    result = editor.edit_faces(pair, {0: {"AU12": -2}, 1: {"AU12": 0}}, measure=False)
    assert [len(face.warnings) for face in result.faces] == [1, 0]
    # Of a model whose mouths are a layer of their own nothing is painted
    composing.changer.changes = editor.changer.changes
    (face,) = composing.edit(data.astronaut(), add={"AU12": -2}, measure=False).faces
    assert face.warnings == ()


def test_what_no_scorer_sees_is_not_judged(face):
    """Blendshapes are blind to some units: of these only landmarks count, and nothing without landmarks."""
    zero = dict.fromkeys(NAMES, 0.0)
    for unit in SEEN_BY_LANDMARKS:
        assert unreached({unit: 3.0}, zero, zero, {}) == []
        shown = 3 * LANDMARKS_SHOW.get(unit, 1.0)
        assert unreached({unit: 3.0}, zero, zero, {unit: 0.6 * shown}) == []
        (warning,) = unreached({unit: 3.0}, zero, zero, {unit: 0.4 * shown})
        assert warning == f"{unit} changed by {0.4 * shown:+.1f} of the +3.0 requested, by landmarks"
    assert len(unreached({"AU12": 3.0}, zero, zero, {})) == 1
    assert doubts_before(data.astronaut(), face, {"AU9": -1.0}, 64) == []
    (doubt,) = doubts_before(data.astronaut(), face, {"AU4": -1.0}, 64)
    assert "AU4 would become -" in doubt


def test_who_sees_what_agrees_with_the_calibration():
    """Of the muscles themselves, moved by three steps: see benchmarks/muscle_calibration.py."""
    calibration = json.loads((BENCHMARKS / "muscle_calibration.json").read_text())
    third = calibration["levels"].index(3.0)
    for unit, change in calibration["median_change"].items():
        shown = {scorer: values[third] / 3 for scorer, values in change.items()}
        assert (shown["blendshapes"] < 0.05) == (unit in SEEN_BY_LANDMARKS), unit
        # a muscle that does all that was asked is never warned of
        assert shown["landmarks"] >= REACHED_SHARE * LANDMARKS_SHOW.get(unit, 1.0), unit
