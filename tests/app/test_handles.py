"""From drags of handles to requests."""

import numpy as np
import pytest
from scipy.optimize import lsq_linear

from magicedit.action_units import FACS
from magicedit.app.handles import CLOSING, HANDLES, _bounded_least_squares, drag_request, handle_places
from magicedit.app.sliders import ADD_RANGE
from magicedit.warping.muscles import neutral_mesh

UNITS = tuple(FACS)
NUMBERS = {handle.label: number for number, handle in enumerate(HANDLES)}
CORNER, LID, CHIN = "the subject's left corner of the mouth", "the subject's left upper lid", "chin"


@pytest.fixture(scope="module")
def landmarks() -> np.ndarray:
    """The table's neutral face, looking into the camera; px, 100 between the eyes."""
    mesh = np.pad(neutral_mesh(), ((0, 10), (0, 0)))  # irises move nothing here
    return mesh[:, :2] * (100, -100) + 256


def dragged(landmarks, label, by, request=(), measured=(), units=UNITS, linked=True):
    """The request, and the handle's place after it, relative to the one before."""
    request, number = dict(request), NUMBERS[label]
    place = handle_places(landmarks, request, units)[number]
    asked = drag_request(
        HANDLES[number], place + by, landmarks, request, dict(measured), units, linked=linked
    )
    return asked, handle_places(landmarks, asked, units)[number] - place


@pytest.mark.parametrize("label", NUMBERS)
def test_a_drag_carries_every_handle_along_its_muscles(landmarks, label):
    handle = HANDLES[NUMBERS[label]]
    unit, number = handle.units[0], NUMBERS[label]
    by = handle_places(landmarks, {unit: 2.0}, UNITS)[number] - handle_places(landmarks, {}, UNITS)[number]
    asked, moved = dragged(landmarks, label, by)
    assert np.linalg.norm(by) > 1
    assert {*asked} <= {*handle.units}
    assert np.linalg.norm(moved - by) < 0.1 * np.linalg.norm(by)


def test_a_corner_up_and_out_is_a_smile_and_down_is_none(landmarks):
    asked, _ = dragged(landmarks, CORNER, (4, -10))
    assert max(asked, key=asked.get) == "AU12"
    asked, _ = dragged(landmarks, CORNER, (0, 8))
    assert "AU15" in asked
    assert asked.get("AU12", 0) >= 0  # no smile to take away
    asked, _ = dragged(landmarks, CORNER, (-4, 0))
    assert max(asked, key=asked.get) == "AU18"
    asked, _ = dragged(landmarks, CORNER, (-4, 10), measured={"AU12": 4.0})
    assert -4 <= asked["AU12"] < -1


def test_a_corner_dragged_far_down_asks_for_more_than_a_slider_has(landmarks):
    asked, moved = dragged(landmarks, CORNER, (0, 9))
    assert ADD_RANGE[1] < asked["AU15"] <= 9
    assert np.linalg.norm(moved - (0, 9)) < 1
    _, back = dragged(landmarks, CORNER, -moved, asked)
    assert np.linalg.norm(back + moved) < 1


def test_requests_stay_within_their_ranges_and_come_back(landmarks):
    asked, moved = dragged(landmarks, CORNER, (100, -300))
    assert all(ADD_RANGE[0] <= value <= ADD_RANGE[1] for value in asked.values())
    assert np.linalg.norm(moved) < 100
    asked, moved = dragged(landmarks, CORNER, (0, 0), {"AU12": 2.0, "AU4": 1.0, "AU12L": 0.5})
    assert asked["AU12"] == pytest.approx(2.5)
    assert asked["AU4"] == 1.0


def test_sides_apart_move_one_side(landmarks):
    asked, _ = dragged(landmarks, CORNER, (4, -10), {"AU12": 1.0, "AU4": 2.0}, linked=False)
    assert asked["AU12R"] == 1.0
    assert asked["AU12L"] > 2
    assert asked["AU4"] == 2.0
    assert "AU18" not in asked  # it has no sides


def test_a_lid_dragged_onto_the_lower_one_closes_the_eye(landmarks):
    by = landmarks[374] - landmarks[386]
    asked, _ = dragged(landmarks, LID, by)
    assert asked[CLOSING] == pytest.approx(5, abs=0.3)
    asked, _ = dragged(landmarks, LID, -by)
    assert asked == {"AU5": pytest.approx(5, abs=3)}


def test_handles_follow_the_model_and_the_head(landmarks):
    assert {HANDLES[number].label for number in handle_places(landmarks, {}, ["AU26"])} == {CHIN}
    assert handle_places(landmarks, {"head_yaw": 5.0, "AU26": 1.0}, UNITS) == {}
    assert len(handle_places(landmarks, {"gaze_yaw": 5.0}, UNITS)) == len(HANDLES)
    asked, _ = dragged(landmarks, CHIN, (0, 10), {"AU1": 1.0}, units=["AU1", "AU26"])
    assert {*asked} == {"AU1", "AU26"}


def test_the_bounded_solver_is_scipys():
    rng = np.random.default_rng(0)
    for count in (1, 2, 3, 4) * 10:
        matrix, values = rng.normal(size=(6, count)), 3 * rng.normal(size=6)
        lows, highs = -rng.uniform(0, 1, count), rng.uniform(0.1, 1, count)
        expected = lsq_linear(matrix, values, (lows, highs), tol=1e-14).x
        found = _bounded_least_squares(matrix, values, lows, highs)
        np.testing.assert_allclose(found, expected, atol=1e-6)
