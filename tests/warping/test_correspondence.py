"""Two photographs of one person, related by landmarks: the second is made by a known warp of the first."""

import cv2
import numpy as np
import pytest

from magicedit.action_units import NAMES, to_vector
from magicedit.faces import align, crop_face, load_backend
from magicedit.warping import correspond, displacement_fields, warp_landmarks, warp_photo
from magicedit.warping.warp import read_at

SIZE = 160


@pytest.fixture(scope="module")
def face() -> tuple[np.ndarray, np.ndarray]:
    pixels = pytest.importorskip("skimage.data").astronaut()
    found = load_backend("mediapipe").detect(pixels)[0]
    alignment = align(found, SIZE)
    return crop_face(pixels, alignment), alignment.apply(found.landmarks)


@pytest.fixture(scope="module")
def changed(face) -> tuple[np.ndarray, np.ndarray]:
    """The same face with raised brows and less of its smile, and its landmarks."""
    pixels, landmarks = face
    fields, vector = displacement_fields(landmarks, SIZE), to_vector({"AU2": 5.0, "AU12": -3.0}, NAMES)
    return warp_photo(pixels, fields, vector, landmarks), warp_landmarks(landmarks, fields, vector)


def test_a_photograph_corresponds_to_itself(face):
    found = correspond(*face, *face)
    inside = np.isfinite(found.flow).all(-1)
    assert 0.2 < inside.mean() < 0.8  # the face
    assert np.abs(found.flow[inside]).max() < 1e-3
    assert np.nanmax(found.mask) == 0
    np.testing.assert_allclose(found.tone, 1, atol=1e-3)


def test_the_flow_leads_from_the_target_to_the_source(face, changed):
    found = correspond(*face, *changed)
    known = np.isfinite(found.flow).all(-1) & (found.weight > 0)
    moved = read_at(face[0], np.nan_to_num(found.flow)).astype(float)
    left, before = (np.abs(picture - changed[0])[known].mean() for picture in (moved, face[0].astype(float)))
    assert left < 0.5 * before
    assert np.nanmean(found.mask[known]) < 0.02


def test_light_is_matched_and_what_movement_does_not_explain_is_left_out(face, changed):
    """A darker target with a patch that no movement explains."""
    painted = changed[0].copy()
    x, y = np.rint(changed[1][205]).astype(int)  # on the cheek
    cv2.circle(painted, (int(x), int(y)), 6, (30, 30, 200), -1)
    found = correspond(*face, (painted * 0.8).astype(np.uint8), changed[1])
    np.testing.assert_allclose(found.tone, 1.25, atol=0.05)
    assert found.weight[y, x] == 0
    assert found.weight[y - 12, x] > 0.8
    assert np.nanmax(found.mask) == 0  # no mouth opens


def test_what_cannot_be_compared_is_left_out(face, changed):
    found = correspond(*face, *changed)
    left_eye, chin, corner = 473, 152, 0
    for landmark in (left_eye,):
        x, y = np.rint(changed[1][landmark]).astype(int)
        assert found.weight[y, x] == 0
    assert found.weight[corner, corner] == 0
    assert np.isnan(found.flow[corner, corner]).all()
    x, y = np.rint(changed[1][chin]).astype(int)
    assert found.weight[y - 8, x] == 1


def test_crops_of_different_sizes_are_refused(face):
    with pytest.raises(ValueError, match="one size"):
        correspond(*face, face[0][:80, :80], face[1])
