"""The seam of closed lips is found in the picture."""

from itertools import pairwise, product

import cv2
import numpy as np
import pytest

from magicedit.faces import load_backend
from magicedit.faces.frame import face_frame
from magicedit.warping.muscles import LOWER_LIP_EDGE, UPPER_LIP_EDGE
from magicedit.warping.seam import LOWER_LIP_OUTLINE, UPPER_LIP_OUTLINE, cheapest_path, snap_seam

UPPER, LOWER = list(UPPER_LIP_EDGE), list(LOWER_LIP_EDGE)


@pytest.fixture(scope="module")
def landmarks(closed_mouth) -> np.ndarray:
    return load_backend().detect(closed_mouth)[0].landmarks.astype(np.float64)


@pytest.fixture(scope="module")
def drawn(closed_mouth, landmarks) -> np.ndarray:
    """The portrait with lips that redden towards a dark line along the landmarks, in which they touch."""
    outline = np.rint(landmarks[[*UPPER_LIP_OUTLINE, *LOWER_LIP_OUTLINE[::-1]]]).astype(np.int32)
    picture = cv2.fillPoly(closed_mouth.copy(), [outline], (160, 85, 85))
    seam = np.rint((landmarks[UPPER] + landmarks[LOWER]) / 2).astype(np.int32)
    cv2.polylines(picture, [seam], False, (70, 20, 20), 3)
    return cv2.GaussianBlur(picture, (0, 0), 2.0)


def moved(landmarks: np.ndarray, upper: float, lower: float) -> np.ndarray:
    """Landmarks with both inner edges moved down the face by so many iod, the corners left."""
    frame, landmarks = face_frame(landmarks), landmarks.copy()
    for ids, down in ((UPPER, upper), (LOWER, lower)):
        landmarks[ids[1:-1]] += down * frame.interocular * frame.rotation[1]
    return landmarks


def heights(landmarks: np.ndarray, of: np.ndarray) -> np.ndarray:
    """(2, 9) iod by which the inner edges lie below those of other landmarks, without the corners."""
    frame = face_frame(of)
    below = (landmarks - of) @ frame.rotation[1] / frame.interocular
    return np.stack([below[UPPER[1:-1]], below[LOWER[1:-1]]])


@pytest.mark.parametrize("apart", [(-0.03, -0.03), (0.03, 0.03), (-0.04, 0.0), (-0.02, 0.025)])
def test_snap_seam_finds_the_line_wherever_the_landmarks_lie(drawn, landmarks, apart):
    found = snap_seam(drawn, moved(landmarks, *apart))
    assert np.allclose(found[UPPER], found[LOWER], atol=0.1)
    assert np.abs(heights(found, of=landmarks)).max() < 0.015  # of 0.03; a pixel is 0.011


def test_snap_seam_lies_on_the_darkest_line(closed_mouth, landmarks):
    """The portrait's landmarks lie 0.02 iod above it in the middle of the mouth's right half."""
    frame = face_frame(landmarks)
    grey = cv2.GaussianBlur(cv2.cvtColor(closed_mouth, cv2.COLOR_RGB2GRAY).astype(np.float32), (0, 0), 1.0)

    def light(of: np.ndarray, beside: float) -> float:
        at = of[UPPER[2:6]] + beside * frame.interocular * frame.rotation[1]
        return float(cv2.remap(grey, *at.T.astype(np.float32)[..., None], cv2.INTER_LINEAR).mean())

    seam = snap_seam(closed_mouth, landmarks)
    assert light(seam, 0) < min(light(landmarks, 0), light(seam, -0.02), light(seam, 0.02))


def test_snap_seam_of_an_enlarged_photograph_is_the_same(closed_mouth, landmarks):
    large = cv2.resize(closed_mouth, None, fx=3, fy=3, interpolation=cv2.INTER_CUBIC)
    seam = snap_seam(large, (landmarks + 0.5) * 3 - 0.5)
    assert np.abs(heights((seam + 0.5) / 3 - 0.5, of=snap_seam(closed_mouth, landmarks))).max() < 0.004


def test_snap_seam_leaves_lips_between_which_teeth_show(drawn, landmarks):
    apart = moved(landmarks, -0.025, 0.025)
    assert not np.array_equal(snap_seam(drawn, apart), apart)  # the control
    opening = np.rint(np.concatenate([apart[UPPER], apart[LOWER[::-1]]])).astype(np.int32)
    toothed = cv2.fillPoly(drawn.copy(), [opening], (200, 190, 175))
    assert np.array_equal(snap_seam(toothed, apart), apart)
    wide = moved(landmarks, -0.04, 0.04)  # no lips that touch, whatever shows
    assert np.array_equal(snap_seam(drawn, wide), wide)


def test_snap_seam_does_not_jump_while_lips_part(drawn, landmarks):
    """In a film the landmarks of lips part little by little; so do those on the seam, teeth or not."""
    opening = moved(landmarks, -0.012, 0.012)
    opening = np.rint(np.concatenate([opening[UPPER], opening[LOWER[::-1]]])).astype(np.int32)
    for picture in (drawn, cv2.fillPoly(drawn.copy(), [opening], (200, 190, 175))):
        apart = [moved(landmarks, -step, step) for step in np.arange(0, 0.04, 0.0005)]
        gaps = np.stack([np.diff(heights(snap_seam(picture, a), of=landmarks), axis=0).max() for a in apart])
        assert gaps[0] < 0.001
        assert gaps[-1] == pytest.approx(0.08, abs=0.005)
        assert np.abs(np.diff(gaps)).max() < 0.02


def test_snap_seam_keeps_landmarks_where_there_is_no_line(closed_mouth, landmarks):
    grey = np.full_like(closed_mouth, 90)
    assert np.abs(heights(snap_seam(grey, landmarks), of=landmarks)).max() < 0.006
    noisy = (grey + np.random.default_rng(0).normal(0, 3, grey.shape)).astype(np.uint8)
    assert np.abs(heights(snap_seam(noisy, landmarks), of=landmarks)).max() < 0.02
    beyond = landmarks + np.array([0, 2 * len(grey)])  # a mouth below the photograph
    assert np.array_equal(snap_seam(grey, beyond), beyond)


def test_cheapest_path_is_the_best_of_all_paths():
    costs = np.random.default_rng(0).random((4, 5))
    bends = (0.0, 0.1, 0.5)

    def cost(path: tuple[int, ...]) -> float:
        steps = [abs(a - b) for a, b in pairwise(path)]
        return costs[path, range(5)].sum() + sum(bends[s] if s < 3 else np.inf for s in steps)

    assert tuple(cheapest_path(costs, bends)) == min(product(range(4), repeat=5), key=cost)
