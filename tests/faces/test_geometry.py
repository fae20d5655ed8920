"""The scorer that sees movement: on moved landmarks, and on a photograph warped by the muscles."""

import numpy as np
import pytest

from magicedit.action_units import BILATERAL, NAMES, to_vector
from magicedit.faces import align, crop_face, geometric_change, left_side
from magicedit.faces.geometry import MOVEMENTS
from magicedit.warping import displacement_fields, warp_photo
from magicedit.warping.warp import read_at

SIZE = 384


@pytest.fixture
def landmarks(astronaut_face) -> np.ndarray:
    return astronaut_face.landmarks.astype(np.float64)


def moved(landmarks: np.ndarray, name: str, steps: float, sides: str = "LR") -> np.ndarray:
    """The landmarks of one unit pushed along its direction, in the picture's upright face."""
    right, left = landmarks[[33, 133]].mean(0), landmarks[[263, 362]].mean(0)
    across, movement = left - right, MOVEMENTS[name]
    up = np.array([across[1], -across[0]])
    after = landmarks.copy()
    outward, upward = (steps / 5 * share for share in movement.direction)
    for side, ids, sign in (("L", movement.left, 1), ("R", movement.right, -1)):
        if side in sides:
            after[list(ids)] = landmarks[list(ids)] + sign * outward * across + upward * up
    return after


def test_nothing_moved(landmarks):
    assert set(geometric_change(landmarks, landmarks)) == {
        *NAMES, *(name + side for name in BILATERAL for side in "LR")
    }  # fmt: skip
    assert max(abs(value) for value in geometric_change(landmarks, landmarks).values()) < 1e-9


@pytest.mark.parametrize("name", MOVEMENTS)
def test_full_movement_is_five_steps_whatever_the_size_and_turn(landmarks, name):
    after = moved(landmarks, name, 5.0)
    angle, scale = np.radians(20), 1.7
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    assert geometric_change(landmarks, after @ turn.T + 30)[name] == pytest.approx(5.0, abs=1e-6)
    assert geometric_change(after @ turn.T, landmarks)[name] < -3


@pytest.mark.parametrize("name", BILATERAL)
def test_sides_are_told_apart(landmarks, name):
    change = geometric_change(landmarks, moved(landmarks, name, 4.0, "L"))
    assert change[name + "L"] == pytest.approx(4.0, abs=1e-6)
    assert change[name + "R"] == pytest.approx(0.0, abs=1e-6)
    assert change[name] == pytest.approx(2.0, abs=1e-6)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("AU25", "AU12")])
def test_it_sees_the_muscles_work(backend, astronaut, astronaut_face, name):
    """The astronaut smiles broadly, so AU12 and AU25 have nowhere to go."""
    alignment = align(astronaut_face, SIZE)
    crop, landmarks = crop_face(astronaut, alignment), alignment.apply(astronaut_face.landmarks)
    warped = warp_photo(
        crop, displacement_fields(landmarks, SIZE, stride=8), to_vector({name: 4.0}), landmarks
    )
    before, after = (backend.detect(pixels)[0].landmarks for pixels in (crop, warped))
    assert geometric_change(before, after)[name] > 0.8


def test_sides_of_a_photograph(backend, astronaut, astronaut_face):
    """By landmarks and by blendshapes, the smile that leaves one side leaves that side."""
    alignment = align(astronaut_face, SIZE)
    crop, landmarks = crop_face(astronaut, alignment), alignment.apply(astronaut_face.landmarks)
    fields = displacement_fields(landmarks, SIZE, stride=8)
    from magicedit.warping import backward_flow

    flow, _ = backward_flow(fields, to_vector({"AU12": -4.0}), landmarks, SIZE)
    share = left_side(landmarks, SIZE, "mediapipe478")[..., None]
    (before,), (after,) = (
        backend.detect(p) for p in (crop, read_at(crop, (flow * share).astype(np.float32)))
    )
    change = geometric_change(before.landmarks, after.landmarks)
    assert change["AU12L"] < 2 * change["AU12R"] - 0.5
    assert after.sides["AU12L"] < after.sides["AU12R"] - 0.2


def test_other_landmarks_are_refused(landmarks):
    with pytest.raises(ValueError, match="478"):
        geometric_change(landmarks[:68], landmarks[:68])
