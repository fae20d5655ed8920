"""Whether two photographs show the same person."""

import numpy as np

from magicedit.faces.backends import dlib as dlib_backend
from magicedit.faces.types import Face

DESCRIPTOR = 128  # numbers of a descriptor


def check_descriptor() -> None:
    """MissingDependencyError without the evaluation extra, which `identity_descriptor` needs."""
    dlib_backend.check()


def identity_descriptor(pixels: np.ndarray, face: Face) -> np.ndarray:
    """dlib's identity descriptor of a face in an RGB photograph (height, width, 3) uint8: (128,) float32.

    Its L2 distance is below 0.6 for most photographs of one person. MissingDependencyError without the
    evaluation extra.
    """
    return dlib_backend.descriptor(pixels, face).astype(np.float32)


def identity_distance(pixels_a: np.ndarray, face_a: Face, pixels_b: np.ndarray, face_b: Face) -> float | None:
    """L2 distance of the two faces' 128-d descriptors by dlib; None without the evaluation extra.

    0 for equal pictures; 0.6 is the usual threshold for "the same person".
    """
    if not dlib_backend.available():
        return None
    a, b = dlib_backend.descriptor(pixels_a, face_a), dlib_backend.descriptor(pixels_b, face_b)
    return float(np.linalg.norm(a - b))
