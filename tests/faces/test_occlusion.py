"""What covers a face, drawn onto a real one."""

import cv2
import numpy as np
import pytest

from magicedit.faces.occlusion import covered_parts


def covered(astronaut: np.ndarray, face, ids: tuple[int, ...], colour: tuple[int, int, int]) -> np.ndarray:
    """The photograph with the hull of some landmarks painted over, with a little shading."""
    photo = astronaut.copy()
    hull = cv2.convexHull(face.landmarks[list(ids)].astype(np.float32))
    mask = cv2.fillConvexPoly(np.zeros(photo.shape[:2], np.uint8), np.rint(hull).astype(np.int32), 1)
    shade = np.random.default_rng(0).normal(1, 0.05, photo.shape[:2])[..., None]
    return np.where(mask[..., None], np.clip(shade * colour, 0, 255), photo).astype(np.uint8)


LOWER_FACE = (197, 50, 280, 132, 361, 172, 397, 152, 148, 377, 136, 365)
EYES = (70, 105, 107, 336, 334, 300, 261, 450, 452, 232, 230, 31)


def test_a_bare_face_is_not_covered(astronaut, astronaut_face):
    assert covered_parts(astronaut, astronaut_face) == []
    assert covered_parts((astronaut * 0.4).astype(np.uint8), astronaut_face) == []


def test_a_gaudy_picture_is_not_covered(astronaut, astronaut_face):
    """Twice the saturation doubles the distances between the parts of a face."""
    hsv = cv2.cvtColor(astronaut, cv2.COLOR_RGB2HSV)
    hsv[..., 1] = np.clip(hsv[..., 1].astype(float) * 2.2, 0, 255)
    gaudy = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    assert covered_parts(gaudy, astronaut_face) == []
    masked = covered(gaudy, astronaut_face, LOWER_FACE, (240, 240, 240))
    assert {"mouth", "chin"} <= set(covered_parts(masked, astronaut_face))


@pytest.mark.parametrize("colour", [(120, 170, 210), (240, 240, 240), (15, 15, 20)])
def test_masks(astronaut, astronaut_face, colour):
    found = covered_parts(covered(astronaut, astronaut_face, LOWER_FACE, colour), astronaut_face)
    assert {"mouth", "chin"} <= set(found)
    assert not {"forehead", "left eye", "right eye"} & set(found)


def test_dark_glasses(astronaut, astronaut_face):
    found = covered_parts(covered(astronaut, astronaut_face, EYES, (20, 20, 25)), astronaut_face)
    assert {"left eye", "right eye"} <= set(found)
    assert not {"mouth", "chin", "forehead"} & set(found)


def test_landmarks_without_cheeks_tell_nothing(astronaut, astronaut_face):
    from dataclasses import replace

    few = replace(astronaut_face, scheme="ibug68", landmarks=astronaut_face.landmarks[:68])
    assert covered_parts(astronaut, few) == []
