"""The scorers that see movement: on moved landmarks, and on a photograph warped by the muscles.

By MediaPipe's landmarks, and by dlib's 68, which are found in the picture by another method.
"""

import numpy as np
import pytest

from magicedit.action_units import BILATERAL, NAMES, to_vector
from magicedit.faces import align, crop_face, entangled, geometric_change, left_side
from magicedit.faces.backends import dlib as dlib_backend
from magicedit.faces.geometry import MOVEMENTS, MOVEMENTS_68, MOVEMENTS_OF_SCHEME
from magicedit.warping import displacement_fields, warp_photo
from magicedit.warping.warp import read_at

SIZE = 384
EYES = {"mediapipe478": ((33, 133), (263, 362)), "ibug68": ((36, 39), (42, 45))}  # the subject's right, left
needs_dlib = pytest.mark.skipif(
    not dlib_backend.available(),
    reason="the evaluation extra (dlib, face-recognition-models) is not installed",
)


@pytest.fixture
def landmarks(astronaut_face) -> np.ndarray:
    return astronaut_face.landmarks.astype(np.float64)


@pytest.fixture
def landmarks68(astronaut, astronaut_face) -> np.ndarray:
    return dlib_backend.landmarks68(astronaut, astronaut_face)


def moved(landmarks: np.ndarray, name: str, steps: float, sides="LR", scheme="mediapipe478") -> np.ndarray:
    """The landmarks of one unit pushed along its direction, in the picture's upright face."""
    right, left = (landmarks[list(eye)].mean(0) for eye in EYES[scheme])
    across, movement = left - right, MOVEMENTS_OF_SCHEME[scheme][name]
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
    assert (
        geometric_change(before, after)[name] > 0.5
    )  # AU9, of which the mesh of landmarks shows little, 0.8


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
    with pytest.raises(ValueError, match="ibug68"):
        geometric_change(landmarks, landmarks, "ibug68")
    with pytest.raises(ValueError, match="two schemes"):
        geometric_change(landmarks[:68], landmarks, "ibug68")


# --- By the 68 landmarks ---


@needs_dlib
def test_nothing_moved_68(landmarks68):
    changes = geometric_change(landmarks68, landmarks68, "ibug68")
    assert set(changes) == {*NAMES, *(name + side for name in BILATERAL for side in "LR")}
    assert max(abs(value) for value in changes.values()) < 1e-9


@needs_dlib
@pytest.mark.parametrize("name", MOVEMENTS_68)
def test_full_movement_68_is_five_steps_whatever_the_size_and_turn(landmarks68, name):
    after = moved(landmarks68, name, 5.0, scheme="ibug68")
    angle, scale = np.radians(-25), 0.6
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    assert geometric_change(landmarks68, after @ turn.T - 9, "ibug68")[name] == pytest.approx(5.0, abs=1e-6)
    assert geometric_change(after @ turn.T, landmarks68, "ibug68")[name] < -3


@needs_dlib
@pytest.mark.parametrize("name", BILATERAL)
def test_sides_68_are_told_apart(landmarks68, name):
    change = geometric_change(landmarks68, moved(landmarks68, name, 4.0, "R", "ibug68"), "ibug68")
    assert change[name + "R"] == pytest.approx(4.0, abs=1e-6)
    assert change[name + "L"] == pytest.approx(0.0, abs=1e-6)
    assert change[name] == pytest.approx(2.0, abs=1e-6)


@needs_dlib
def test_lips_68_part_by_their_gap(landmarks68):
    """Five steps are 0.285 interocular distances: the lower lip is pulled away by two fifths of that."""
    right, left = (landmarks68[list(eye)].mean(0) for eye in EYES["ibug68"])
    after = landmarks68.copy()
    for upper, lower in ((61, 67), (62, 66), (63, 65)):
        away = landmarks68[lower] - landmarks68[upper]
        after[lower] += 2 / 5 * 0.285 * np.linalg.norm(left - right) * away / np.linalg.norm(away)
    assert geometric_change(landmarks68, after, "ibug68")["AU25"] == pytest.approx(2.0, abs=1e-6)


@pytest.fixture(scope="module")
def measure68(backend):
    """`measure68({"AU1": 4.0})`: changes that the 68 landmarks see in the warped crop; with "L" or
    "R" that side alone is warped."""
    from magicedit.warping import backward_flow

    photo = pytest.importorskip("skimage.data").astronaut()
    (face,) = backend.detect(photo)
    alignment = align(face, SIZE)
    crop, landmarks = crop_face(photo, alignment), alignment.apply(face.landmarks)
    fields = displacement_fields(landmarks, SIZE, stride=8)
    left = left_side(landmarks, SIZE, "mediapipe478")[..., None]
    before = dlib_backend.landmarks68(crop, backend.detect(crop)[0])

    def measure(asked, side=None):
        if side is None:
            warped = warp_photo(crop, fields, to_vector(asked), landmarks)
        else:
            flow, _ = backward_flow(fields, to_vector(asked), landmarks, SIZE)
            share = left if side == "L" else 1 - left
            warped = read_at(crop, (flow * share).astype(np.float32))
        after = dlib_backend.landmarks68(warped, backend.detect(warped)[0])
        return geometric_change(before, after, "ibug68")

    return measure


@needs_dlib
@pytest.mark.parametrize("steps", [4.0, -4.0])
@pytest.mark.parametrize("name", NAMES)
def test_the_68_landmarks_see_the_muscles_work(measure68, name, steps):
    """All twelve, both ways: +2.2 (AU6) to +4.9 steps of +4, -1.8 (AU25) to -5.0 of -4."""
    assert np.sign(steps) * measure68({name: steps})[name] > 1.2


# Units that move the same points, so that +4 of one reads as two steps or more of the other, either way.
CONFUSED = {
    "AU1": {"AU4"},
    "AU2": {"AU1", "AU4"},
    "AU4": {"AU1", "AU2"},
    "AU9": {"AU1", "AU2", "AU5"},  # a wrinkled nose draws the brows down
    "AU12": {"AU15"},
    "AU20": {"AU15"},
    "AU25": {"AU17"},
    "AU26": {"AU12", "AU15", "AU17", "AU25"},  # AU17 by -11: a falling chin is the opposite of a raised one
}


@needs_dlib
@pytest.mark.parametrize("name", NAMES)
def test_what_the_68_landmarks_cannot_tell_apart(measure68, name):
    """A unit reads as itself, and strongly as the neighbours of `CONFUSED` alone."""
    change = measure68({name: 4.0})
    others = {other: value for other, value in change.items() if other in NAMES and other != name}
    for other, value in others.items():
        if other in CONFUSED.get(name, ()):
            assert abs(value) > 1.5, other
        else:
            assert abs(value) < 2.4, other


@needs_dlib
@pytest.mark.parametrize(("side", "other"), ["LR", "RL"])
def test_sides_of_a_photograph_68(measure68, side, other):
    """By +4: of -4 dlib, in whole pixels, sees between 0.3 and 3 steps, depending on the processor."""
    change = measure68({"AU12": 4.0}, side)
    assert change[f"AU12{side}"] > change[f"AU12{other}"] + 0.8


def test_units_of_the_same_points():
    assert entangled(["AU12"], "ibug68") == entangled(["AU12L"], "ibug68") == {"AU15", "AU20", "AU26"}
    assert entangled(["AU12", "AU20"], "ibug68") == {"AU15", "AU26"}  # what is asked for is never left out
    assert entangled(["AU1"], "ibug68") == {"AU2", "AU4", "AU9"}
    assert entangled(["AU25"], "ibug68") == {"AU17", "AU26"}
    assert entangled(["AU26"], "ibug68") == {"AU12", "AU15", "AU17", "AU25"}
    assert entangled([], "ibug68") == entangled([]) == set()
    assert entangled(["AU12"]) == {"AU15", "AU20", "AU26"}
    assert entangled(NAMES, "ibug68") == entangled(NAMES) == set()
