"""Eyeballs rest while a flow moves their lids."""

import numpy as np
import pytest

from magicedit.faces import align, load_backend
from magicedit.warping import backward_flow, displacement_fields, move_eyes, resting_eyeballs
from magicedit.warping.eyes import IRIS, asked_of_eyes

SIZE = 256


@pytest.fixture(scope="module")
def face(closed_mouth):
    return load_backend().detect(closed_mouth)[0]


@pytest.fixture(scope="module")
def alignment(face):
    return align(face, SIZE)


def flow_of(face, alignment, **request: float) -> np.ndarray:
    landmarks = alignment.apply(face.landmarks).astype(np.float64)
    fields = displacement_fields(landmarks, SIZE, list(request))
    vector = np.array([*request.values()], np.float32)
    return backward_flow(fields, vector, landmarks, SIZE)[0].astype(np.float32)


def irises(picture: np.ndarray, landmarks: np.ndarray, turn=(0, 0), share: float = 0.6) -> np.ndarray:
    """The pixels (n, 3) of both irises around their centres."""
    y, x = np.indices(picture.shape[:2])
    where = np.zeros(picture.shape[:2], bool)
    for ids in IRIS:
        centre, *rim = landmarks[ids]
        radius = np.linalg.norm(rim - centre, axis=1).mean()
        where |= np.hypot(x - centre[0] - turn[0], y - centre[1] - turn[1]) < share * radius
    return picture[where].astype(float)


@pytest.mark.parametrize("request_", [{"AU5": 4.0}, {"AU6": 4.0}, {"AU5": 3.0, "AU1": 3.0}])
@pytest.mark.parametrize("gaze", [{}, {"gaze_yaw": 8.0}])
def test_irises_stay_as_they_are_while_lids_move(closed_mouth, face, alignment, request_, gaze):
    before = move_eyes(closed_mouth, face.landmarks, gaze)
    flow = flow_of(face, alignment, **request_)
    eyeballs = resting_eyeballs(before, alignment, flow, face.landmarks, gaze)
    assert len(eyeballs) == 2
    changed = np.full_like(before, 100)
    for eyeball in eyeballs:
        eyeball.draw(changed)
    turn, _ = asked_of_eyes(np.asarray(face.landmarks, float), gaze)
    share = 0.6 if "AU5" in request_ else 0.2  # lids that close hide the upper part
    seen, drawn = (irises(picture, face.landmarks, turn, share) for picture in (before, changed))
    assert np.abs(drawn - seen).mean() < 4
    # Nothing but the eyes
    rows, columns = np.nonzero((changed != 100).any(-1))
    low, high = face.landmarks[[33, 159, 145]].min(0), face.landmarks[[263, 386, 374]].max(0)
    margin = 0.15 * (high[0] - low[0])
    assert low[0] - margin < columns.min() < columns.max() < high[0] + margin
    assert low[1] - margin < rows.min() < rows.max() < high[1] + margin


def test_what_a_lid_had_hidden_is_completed(closed_mouth, face, alignment):
    """Above the old margin of the lid the eyeball shows, not its skin."""
    flow = flow_of(face, alignment, AU5=4.0)
    for eyeball in resting_eyeballs(closed_mouth, alignment, flow, face.landmarks, {}):
        height, width = eyeball.cover.shape
        before = closed_mouth[eyeball.y : eyeball.y + height, eyeball.x : eyeball.x + width].astype(float)
        opened = (eyeball.cover > 0.9) & (np.abs(eyeball.pixels - before).mean(-1) > 15)
        assert opened.sum() > 0.03 * (eyeball.cover > 0.5).sum()


def test_eyes_that_rest_or_close_are_left_alone(closed_mouth, face, alignment):
    still = np.zeros((SIZE, SIZE, 2), np.float32)
    assert resting_eyeballs(closed_mouth, alignment, still, face.landmarks, {}) == []
    smiling = flow_of(face, alignment, AU20=3.0)
    assert resting_eyeballs(closed_mouth, alignment, smiling, face.landmarks, {}) == []
    flow = flow_of(face, alignment, AU5=4.0)
    closed = {"AU43L": 5.0}
    (right,) = resting_eyeballs(closed_mouth, alignment, flow, face.landmarks, closed)
    assert right.x < face.landmarks[168, 0]  # the subject's right eye lies on the left
