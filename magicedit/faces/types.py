"""The result types of face measurement, and the protocol of face backends.

All positions are in pixels of the upright photograph with *pixel centres at whole numbers* (the convention of
`cv2.warpAffine` and `cv2.remap`): the photograph covers -0.5 .. width - 0.5.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple, Protocol

import numpy as np

from magicedit.errors import ImageError

Scheme = Literal["mediapipe478", "ibug68"]
Box = tuple[float, float, float, float]
SAME_FACE_OVERLAP = 0.3  # intersection over union of a face's boxes in two pictures, or by two backends
LANDMARK_COUNTS: dict[str, int] = {"mediapipe478": 478, "ibug68": 68}


@dataclass(frozen=True)
class Pose:
    """Head rotation in degrees relative to the line of sight; a frontal face is about (0, 0, 0).

    yaw > 0: the subject turns to their own left (towards the right edge of the picture).
    pitch > 0: the subject looks up. roll > 0: the head tilts clockwise in the picture.
    """

    yaw: float
    pitch: float
    roll: float


class Gaze(NamedTuple):
    """Degrees relative to the head. yaw > 0: to the subject's own left. pitch > 0: up."""

    yaw: float
    pitch: float


@dataclass(frozen=True, eq=False)
class Face:
    """One measured face.

    box: x0, y0, x1, y1 in pixels, hairline to chin; may extend beyond the photograph.
    landmarks: (points, 2) float32, x then y in pixels.
    scheme: what the landmark indices mean: MediaPipe's 478-point mesh or the 68 points of iBUG/300-W.
    score: detection confidence 0..1.
    action_units: name to intensity 0..5; empty when the backend measures none.
    sides: intensity 0..5 of one side of the face, by name: "AU12L" is the subject's left; empty likewise.
    blendshapes: name to score 0..1; empty when the backend measures none.
    gaze: see `magicedit.faces.gaze`; None when the backend measures none.
    embedding: identity vector of the backend (float32, unit length), or None.
    """

    box: Box
    landmarks: np.ndarray
    scheme: Scheme
    score: float
    action_units: dict[str, float] = field(default_factory=dict)
    sides: dict[str, float] = field(default_factory=dict)
    blendshapes: dict[str, float] = field(default_factory=dict)
    pose: Pose | None = None
    gaze: Gaze | None = None
    embedding: np.ndarray | None = None

    @property
    def area(self) -> float:
        """Area of the box in square pixels, by which faces are ordered."""
        x0, y0, x1, y1 = self.box
        return (x1 - x0) * (y1 - y0)


@dataclass(frozen=True, eq=False)
class Found:
    """The result of searching a whole photograph.

    faces: measured, largest first. left_alone: number of detected faces that are ignored because they are far
    smaller than the largest.
    """

    faces: list[Face]
    left_alone: int = 0


class FaceBackend(Protocol):
    """A library that finds and measures faces."""

    name: str

    def detect(self, pixels: np.ndarray) -> list[Face]:
        """Faces of an RGB photograph, (height, width, 3) uint8, largest first; an empty list for none."""
        ...


def shifted(face: Face, x: int, y: int) -> Face:
    """Converts a face from a window that begins at (x, y) to the picture's pixels."""
    x0, y0, x1, y1 = face.box
    return replace(
        face,
        box=(x0 + x, y0 + y, x1 + x, y1 + y),
        landmarks=(face.landmarks + np.float32((x, y))).astype(np.float32),
    )


def search(backend: FaceBackend, pixels: np.ndarray) -> Found:
    """Returns the faces of a whole photograph by the backend's `search`, or by `detect` if it has none."""
    thorough = getattr(backend, "search", None)
    return Found(backend.detect(pixels)) if thorough is None else thorough(pixels)


def check_pixels(pixels: np.ndarray) -> np.ndarray:
    """Returns the array, made contiguous; ImageError unless it is (height, width, 3) uint8."""
    is_array = isinstance(pixels, np.ndarray)
    if not is_array or pixels.dtype != np.uint8 or pixels.shape[2:] != (3,) or not pixels.size:
        got = f"{pixels.dtype} {pixels.shape}" if is_array else type(pixels).__name__
        raise ImageError(
            f"faces are measured on RGB pixels of shape (height, width, 3) and type uint8, got {got}; "
            "open files with magicedit.imaging.open_photo and pass its .pixels"
        )
    return np.ascontiguousarray(pixels)


def box_around(landmarks: np.ndarray) -> Box:
    """x0, y0, x1, y1 of (points, 2) landmarks."""
    (x0, y0), (x1, y1) = landmarks.min(0), landmarks.max(0)
    return float(x0), float(y0), float(x1), float(y1)


def largest_first(faces: list[Face]) -> list[Face]:
    """The faces ordered by the area of their boxes."""
    return sorted(faces, key=lambda face: face.area, reverse=True)


def overlap(a: Box, b: Box) -> float:
    """Intersection over union of two boxes."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def same_face(faces: Iterable[Face], box: Box) -> Face | None:
    """Returns the face whose box overlaps `box` most; None if no overlap reaches `SAME_FACE_OVERLAP`."""
    best = max(faces, key=lambda face: overlap(face.box, box), default=None)
    return best if best is not None and overlap(best.box, box) >= SAME_FACE_OVERLAP else None
