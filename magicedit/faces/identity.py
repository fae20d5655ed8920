"""Whether two photographs show the same person."""

from dataclasses import dataclass
from functools import cached_property

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
    a, b = identity_crop(pixels_a, face_a), identity_crop(pixels_b, face_b)
    return None if a is None or b is None else a.distance(b)


@dataclass(frozen=True, eq=False)
class IdentityCrop:
    """A face as dlib's identity network sees it, so that its descriptor can be computed when it is needed.

    pixels: (150, 150, 3) uint8 RGB, upright.
    """

    pixels: np.ndarray

    @cached_property
    def descriptor(self) -> np.ndarray:
        """(128,) float64. It is computed at the first reading, which takes 0.08 CPU seconds, and kept."""
        return dlib_backend.crop_descriptor(self.pixels)

    def distance(self, other: "IdentityCrop") -> float:
        """L2 distance of the descriptors, as of `identity_distance`."""
        return float(np.linalg.norm(self.descriptor - other.descriptor))


def identity_crop(pixels: np.ndarray, face: Face) -> IdentityCrop | None:
    """Cuts a face out of an RGB photograph (height, width, 3) uint8; None without the evaluation extra."""
    if not dlib_backend.available():
        return None
    return IdentityCrop(dlib_backend.descriptor_crop(pixels, face))
