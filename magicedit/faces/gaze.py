"""Where the eyes look, from the places of the irises between their corners, and how far they are open.

An eye turns about the middle of its ball, so an iris moves by the sine of the angle. Angles are relative to
the head, in degrees. On 89 neutral photographs of the Face Research Lab London Set, whose people look at the
camera, the standard deviation of either angle is 1.7 degrees.
"""

from typing import NamedTuple

import numpy as np

from magicedit.faces.frame import EYE_CORNERS
from magicedit.faces.types import Face

# The iris's centre, and opposite points of its edge, in MediaPipe's 478; of the subject's right eye, the left
IRISES = ((468, ((469, 471), (470, 472))), (473, ((474, 476), (475, 477))))
# Iris diameters: 12.1 mm to 11.7 mm (I. Bekerman, P. Gottlieb, M. Vaiman, Journal of Ophthalmology, 2014)
EYEBALL_RADIUS = 1.03
# Iris diameters outwards from the middle of an eye's corners and above their line: where the iris lies in a
# straight gaze, median of the London Set
_OUTWARDS, _ABOVE = 0.147, 0.19
CLOSED = 0.12  # height over width of the opening, below which an eye counts as closed
# Pairs of landmarks, upper lid above lower lid; the subject's left eye first
_LID_PAIRS = (((387, 373), (386, 374), (385, 380)), ((160, 144), (159, 145), (158, 153)))
_RANGE = 0.95  # largest sine


class Gaze(NamedTuple):
    """Degrees relative to the head. yaw > 0: to the subject's own left. pitch > 0: up."""

    yaw: float
    pitch: float


def eye_openness(landmarks: np.ndarray) -> tuple[float, float]:
    """Returns the height over the width of each eye's opening, the subject's left first; see `CLOSED`.

    landmarks: MediaPipe's (478, 2) px. Open eyes have 0.25 to 0.45.
    """
    landmarks = np.asarray(landmarks, np.float64)
    left, right = (
        np.mean([np.linalg.norm(landmarks[up] - landmarks[low]) for up, low in pairs])
        / max(np.linalg.norm(np.subtract(*landmarks[list(corners)])), 1e-6)
        for pairs, corners in zip(_LID_PAIRS, EYE_CORNERS["mediapipe478"][::-1], strict=True)
    )
    return float(left), float(right)


def gaze_of(landmarks: np.ndarray) -> Gaze:
    """Returns the gaze from MediaPipe's landmarks (478, 2) px, of the open eye where one is closed."""
    landmarks = np.asarray(landmarks, np.float64)
    moves = []
    for corners, (iris, edges), outwards in zip(EYE_CORNERS["mediapipe478"], IRISES, (-1, 1), strict=True):
        start, end = landmarks[list(corners)]
        x, y = (end - start) / np.linalg.norm(end - start)
        diameter = np.mean([np.linalg.norm(landmarks[a] - landmarks[b]) for a, b in edges])
        offset = (landmarks[iris] - (start + end) / 2) / diameter
        moves.append((offset @ (x, y) - outwards * _OUTWARDS, offset @ (y, -x) - _ABOVE))
    openness = reversed(eye_openness(landmarks))  # the right eye first, as in IRISES
    seen = [move for move, opening in zip(moves, openness, strict=True) if opening >= CLOSED] or moves
    sines = np.clip(np.mean(seen, 0) / EYEBALL_RADIUS, -_RANGE, _RANGE)
    return Gaze(*np.degrees(np.arcsin(sines)).tolist())


def gaze_of_face(face: Face) -> Gaze | None:
    """Returns the gaze of a face; None where its landmarks lack irises."""
    return gaze_of(face.landmarks) if face.scheme == "mediapipe478" else None


def levels_of(face: Face) -> dict[str, float]:
    """Returns all that is measured of a face, by name: intensities, also by side; gaze, head in degrees."""
    levels = face.action_units | face.sides
    if (gaze := gaze_of_face(face)) is not None:
        levels |= {f"gaze_{axis}": angle for axis, angle in gaze._asdict().items()}
    if face.pose is not None:
        levels |= {f"head_{axis}": getattr(face.pose, axis) for axis in ("yaw", "pitch", "roll")}
    return levels
