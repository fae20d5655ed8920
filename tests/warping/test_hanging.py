"""Smiles raise corners of the mouth that hang at rest."""

import numpy as np
import pytest

from magicedit.faces import align, load_backend
from magicedit.faces.frame import face_frame
from magicedit.warping import without_hanging
from magicedit.warping.steering import MOUTH_CORNERS


@pytest.fixture(scope="module")
def landmarks(closed_mouth) -> np.ndarray:
    face = load_backend().detect(closed_mouth)[0]
    return align(face, 128).apply(face.landmarks).astype(np.float64)


def hung(landmarks: np.ndarray, by: float) -> np.ndarray:
    """Landmarks with corners `by` interocular distances below the middle of the lips."""
    frame = face_frame(landmarks)
    places, corners = frame.to_face(landmarks), list(MOUTH_CORNERS)
    places[corners, 1] = places[[13, 14], 1].mean() + by
    hanging = landmarks.copy()
    hanging[corners] += frame.vectors_to_picture((places - frame.to_face(landmarks))[corners])
    return hanging


def test_a_smile_raises_corners_as_far_as_they_hang(landmarks):
    straight, slightly, much, very = (
        without_hanging({"AU12": 4.0}, hung(landmarks, by)).get("AU15", 0.0) for by in (0.0, 0.03, 0.05, 0.2)
    )
    assert straight == 0.0
    assert slightly == pytest.approx(-1.0, abs=0.3)  # AU15 lowers corners by about 0.02 a step
    assert much == pytest.approx(2 * slightly)
    assert very == -3.0


def test_only_smiles_do(landmarks):
    hanging = hung(landmarks, 0.05)
    for request in ({}, {"AU12": -3.0}, {"AU25": 3.0}, {"AU12": 4.0, "AU15": 1.0}):
        assert without_hanging(request, hanging) == request
    small, large = (without_hanging({"AU12": steps}, hanging)["AU15"] for steps in (0.25, 4.0))
    assert 0 > small > large / 50  # begins gently
