"""Where the eyes look, from the places of the irises between the corners of the eyes.

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
_LIDS = ((159, 145), (386, 374))  # middles of the upper and the lower lid, of the right eye, the left
_OPEN = 0.15  # of an eye's width between them, from which on the iris is seen
_RANGE = 0.95  # largest sine


class Gaze(NamedTuple):
    """Degrees relative to the head. yaw > 0: to the subject's own left. pitch > 0: up."""

    yaw: float
    pitch: float


def gaze_of(landmarks: np.ndarray) -> Gaze:
    """Returns the gaze from MediaPipe's landmarks (478, 2) px, of the open eye where one is closed."""
    landmarks = np.asarray(landmarks, np.float64)
    moves, openings = [], []
    eyes = zip(EYE_CORNERS["mediapipe478"], IRISES, _LIDS, (-1, 1), strict=True)
    for corners, (iris, edges), (upper, lower), outwards in eyes:
        start, end = landmarks[list(corners)]
        width = np.linalg.norm(end - start)
        x, y = (end - start) / width
        diameter = np.mean([np.linalg.norm(landmarks[a] - landmarks[b]) for a, b in edges])
        offset = (landmarks[iris] - (start + end) / 2) / diameter
        moves.append((offset @ (x, y) - outwards * _OUTWARDS, offset @ (y, -x) - _ABOVE))
        openings.append(np.linalg.norm(landmarks[upper] - landmarks[lower]) / width)
    seen = [move for move, opening in zip(moves, openings, strict=True) if opening >= _OPEN] or moves
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
