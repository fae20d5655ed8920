"""Gaze from the irises in the picture, and everything that is measured by name."""

import cv2
import numpy as np
import pytest

from magicedit.faces import Pose, gaze_of, levels_of, load_backend
from magicedit.faces.gaze import IRISES
from magicedit.warping import move_eyes

STRAIGHT = Pose(0.0, 0.0, 0.0)
LEFT_EYE, RIGHT_EYE = (362, 263), (33, 133)


@pytest.fixture(scope="module")
def backend():
    return load_backend()


@pytest.fixture(scope="module")
def face(backend, closed_mouth):
    return backend.detect(closed_mouth)[0]


@pytest.mark.parametrize("name", ["gaze_yaw", "gaze_pitch"])
@pytest.mark.parametrize("person", ["001", "024", "036"])
def test_gaze_follows_eyes_that_are_moved_by_known_angles(backend, london, person, name):
    """On the median face, see benchmarks/gaze.json: 1.0 to 1.1 across, 1.2 down, 1.1 up; 1.4 down on one."""
    pixels = london(person, "neutral")
    before = backend.detect(pixels)[0]
    looks = [
        levels_of(backend.detect(move_eyes(pixels, before.landmarks, {name: angle}))[0])[name]
        for angle in (-15.0, 0.0, 15.0)
    ]
    for change in np.diff(looks):
        assert 0.6 * 15 < change < 1.45 * 15


@pytest.mark.parametrize("person", ["001", "024"])
def test_gaze_of_people_who_look_at_the_camera_is_straight(backend, london, person):
    gaze = backend.detect(london(person, "neutral"))[0].gaze
    assert abs(gaze.yaw) < 4
    assert abs(gaze.pitch) < 9


def test_gaze_is_relative_to_the_head(face, closed_mouth):
    ahead, turned = (
        gaze_of(closed_mouth, face.landmarks, pose) for pose in (STRAIGHT, Pose(10.0, -5.0, 3.0))
    )
    assert turned.yaw == pytest.approx(ahead.yaw - 4)
    assert turned.pitch == pytest.approx(ahead.pitch + 2)


def test_gaze_does_not_depend_on_the_size_and_turn_of_a_picture(backend, closed_mouth):
    height, width = closed_mouth.shape[:2]
    turn = cv2.getRotationMatrix2D((width / 2, height / 2), 12, 1.0)
    turned = cv2.warpAffine(closed_mouth, turn, (width, height), borderMode=cv2.BORDER_REPLICATE)
    small = cv2.resize(closed_mouth, None, fx=0.6, fy=0.6, interpolation=cv2.INTER_AREA)
    gaze, *others = (backend.detect(picture)[0].gaze for picture in (closed_mouth, turned, small))
    for other in others:
        assert other.yaw == pytest.approx(gaze.yaw, abs=3)
        assert other.pitch == pytest.approx(gaze.pitch, abs=4)


def test_levels_of_holds_units_sides_gaze_and_head(face):
    levels = levels_of(face)
    assert levels["head_yaw"] == face.pose.yaw
    assert levels["gaze_pitch"] == face.gaze.pitch
    assert levels["AU12L"] == face.sides["AU12L"]
    assert levels["AU43"] == pytest.approx(
        5 * np.mean([face.blendshapes[f"eyeBlink{s}"] for s in ("Left", "Right")])
    )


def test_gaze_of_a_wink_is_that_of_the_open_eye(face, closed_mouth):
    landmarks = face.landmarks.astype(np.float64)
    landmarks[[387, 386, 385]] = landmarks[[373, 374, 380]]  # the left lids meet; its iris is anywhere
    wink = gaze_of(closed_mouth, landmarks, STRAIGHT)
    landmarks[473] += np.linalg.norm(landmarks[474] - landmarks[476]) * np.array([0.4, 0.4])
    assert gaze_of(closed_mouth, landmarks, STRAIGHT) == wink
    assert wink == pytest.approx(gaze_of(closed_mouth, face.landmarks, STRAIGHT), abs=6)


def test_gaze_behind_dark_glasses_is_that_of_the_landmarks(face, closed_mouth):
    dark = closed_mouth.copy()
    for corners in (LEFT_EYE, RIGHT_EYE):
        x, y = np.rint(face.landmarks[list(corners)].mean(0)).astype(int)
        cv2.circle(dark, (int(x), int(y)), 40, (12, 12, 12), -1)
    gazes = []
    for aside in (0.0, 0.2):
        landmarks = face.landmarks.astype(np.float64)
        for iris, edges in IRISES:
            (a, b), _ = edges
            landmarks[[iris, *np.ravel(edges)]] += (
                aside * np.linalg.norm(landmarks[a] - landmarks[b]) * np.array([1, 0])
            )
        gazes.append(gaze_of(dark, landmarks, STRAIGHT))
    assert np.sin(np.radians(gazes[1].yaw)) - np.sin(np.radians(gazes[0].yaw)) == pytest.approx(
        0.2 / 1.03, abs=0.02
    )
    assert gazes[1].pitch == pytest.approx(gazes[0].pitch, abs=2)
