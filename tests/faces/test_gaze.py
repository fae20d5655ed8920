"""Gaze from the irises, and everything that is measured by name."""

import numpy as np
import pytest

from magicedit.faces import gaze_of, levels_of, load_backend
from magicedit.faces.gaze import EYEBALL_RADIUS, IRISES


@pytest.fixture(scope="module")
def face(closed_mouth):
    return load_backend().detect(closed_mouth)[0]


def turned(landmarks: np.ndarray, right: float, down: float) -> np.ndarray:
    """Both irises moved by iris diameters in the picture."""
    landmarks = landmarks.astype(np.float64)
    for iris, edges in IRISES:
        (a, b), _ = edges
        ids = [iris, *np.ravel(edges)]
        landmarks[ids] += np.linalg.norm(landmarks[a] - landmarks[b]) * np.array([right, down])
    return landmarks


@pytest.mark.parametrize(("yaw", "pitch"), [(15, 0), (-10, 0), (0, 12), (0, -20)])
def test_gaze_of_follows_moved_irises(face, yaw, pitch):
    before = gaze_of(face.landmarks)
    sines = [
        np.sin(np.radians(b + a)) - np.sin(np.radians(b)) for b, a in zip(before, (yaw, pitch), strict=True)
    ]
    after = gaze_of(turned(face.landmarks, EYEBALL_RADIUS * sines[0], -EYEBALL_RADIUS * sines[1]))
    assert after.yaw - before.yaw == pytest.approx(yaw, abs=1.5)
    assert after.pitch - before.pitch == pytest.approx(pitch, abs=1.5)


@pytest.mark.parametrize("person", ["001", "024"])
def test_gaze_of_people_who_look_at_the_camera_is_straight(london, person):
    gaze = gaze_of(load_backend().detect(london(person, "neutral"))[0].landmarks)
    assert max(abs(gaze.yaw), abs(gaze.pitch)) < 6


def test_gaze_of_clips_irises_beyond_the_eyeball(face):
    assert abs(gaze_of(turned(face.landmarks, 5.0, 0.0)).yaw) < 75


def test_levels_of_holds_units_sides_gaze_and_head(face):
    levels = levels_of(face)
    assert levels["head_yaw"] == face.pose.yaw
    assert levels["gaze_pitch"] == gaze_of(face.landmarks).pitch
    assert levels["AU12L"] == face.sides["AU12L"]
    assert levels["AU43"] == pytest.approx(
        5 * np.mean([face.blendshapes[f"eyeBlink{s}"] for s in ("Left", "Right")])
    )


def test_gaze_of_a_wink_is_that_of_the_open_eye(face):
    open_eyes = gaze_of(face.landmarks)
    landmarks = face.landmarks.astype(np.float64)
    landmarks[[387, 386, 385]] = landmarks[[373, 374, 380]]  # the left lids meet; its iris is anywhere
    landmarks[473:478] += np.linalg.norm(landmarks[474] - landmarks[476]) * np.array([0.4, 0.4])
    wink = gaze_of(landmarks)
    assert wink.yaw == pytest.approx(open_eyes.yaw, abs=6)
    assert wink.pitch == pytest.approx(open_eyes.pitch, abs=4)
