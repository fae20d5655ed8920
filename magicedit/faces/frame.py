"""The face's own axes in a picture; lengths in them do not depend on the face's size and rotation."""

from dataclasses import dataclass

import numpy as np

from magicedit.faces.types import LANDMARK_COUNTS, Scheme

# Corners of the subject's right eye, and of the left one
EYE_CORNERS: dict[str, tuple[tuple[int, int], tuple[int, int]]] = {
    "mediapipe478": ((33, 133), (362, 263)),
    "ibug68": ((36, 39), (42, 45)),
}


@dataclass(frozen=True, eq=False)
class FaceFrame:
    """The face's own axes in a picture. origin: between the eyes, px. rotation (2, 2): its rows are the unit
    vectors to the subject's left and down the face. interocular: px between the middles of the two eyes."""

    origin: np.ndarray
    rotation: np.ndarray
    interocular: float

    def to_face(self, points: np.ndarray) -> np.ndarray:
        """px (..., 2) -> interocular distances to the subject's left and down, from between the eyes."""
        return self.vectors_to_face(points - self.origin)

    def vectors_to_face(self, vectors: np.ndarray) -> np.ndarray:
        """Displacements in px (..., 2) -> interocular distances to the subject's left and down."""
        return vectors @ self.rotation.T / self.interocular

    def vectors_to_picture(self, vectors: np.ndarray) -> np.ndarray:
        """Displacements in the face's frame (..., 2) -> picture px."""
        return vectors @ self.rotation * self.interocular


def face_frame(landmarks: np.ndarray, scheme: Scheme = "mediapipe478") -> FaceFrame:
    """Returns the frame of landmarks (points, 2) px. ValueError for another scheme, or eyes that coincide."""
    landmarks = np.asarray(landmarks, np.float64)
    count = LANDMARK_COUNTS[scheme]
    if landmarks.shape != (count, 2):
        raise ValueError(f"landmarks must be {scheme}'s, shape ({count}, 2), got {landmarks.shape}")
    right, left = (landmarks[list(corners)].mean(0) for corners in EYE_CORNERS[scheme])
    interocular = float(np.linalg.norm(left - right))
    if not interocular > 0:
        raise ValueError("the two eyes of the landmarks coincide or are not finite; detect the face again")
    x, y = (left - right) / interocular
    return FaceFrame((left + right) / 2, np.array([[x, y], [-y, x]]), interocular)
