"""Converts MediaPipe's measurements: blendshapes to action units, transformation matrix to pose."""

from collections.abc import Mapping

import numpy as np

from magicedit.arkit import BLENDSHAPES_OF_UNIT, FULL_INTENSITY, intensity_of, sides_of
from magicedit.faces.frame import EYE_CORNERS, face_frame
from magicedit.faces.gaze import eye_closure
from magicedit.faces.types import Pose, Scheme
from magicedit.vocabulary import by_number, whole_name

# Units that landmarks show but the scores hardly respond to, even when the muscles themselves move: see
# benchmarks/muscle_calibration.json.
SEEN_BY_LANDMARKS = ("AU5", "AU6", "AU9", "AU15")

# Share of the commanded muscle movement that landmarks show, for units where it is below half, ibid.
LANDMARKS_SHOW = {"AU9": 0.29}

_INNER_BROWS = ((55, 107), (285, 336))  # the subject's right, the left
FULL_BROW_RAISE = 0.086  # interocular distances at intensity 5, see `magicedit.faces.geometry`
_INNER_LIPS = {  # upper, lower: left of, at and right of the midline
    "mediapipe478": ((82, 87), (13, 14), (312, 317)),
    "ibug68": ((61, 67), (62, 66), (63, 65)),
}
# Gaps in interocular distances. On 79 neutral faces with closed lips the gap reads 0.004 (95 % below 0.018);
# broad smiles with teeth reach 0.25.
_LIPS_CLOSED, _LIPS_WIDE_APART = 0.015, 0.30
FULL_LIP_GAP = _LIPS_WIDE_APART - _LIPS_CLOSED  # interocular distances that are five steps of AU25


def is_seen_by_landmarks(name: str) -> bool:
    """Whether landmarks are the better scorer of a requested unit: of SEEN_BY_LANDMARKS, and of one side.

    Of AU12L = +3 the scores see 0.3 steps and landmarks 1.9 (medians of 12 synthetic portraits).
    """
    return name != whole_name(name) or name in SEEN_BY_LANDMARKS


def lip_gap(landmarks: np.ndarray, scheme: Scheme = "mediapipe478") -> float:
    """Mean distance of the inner lips near the midline, in interocular distances."""
    gaps = [np.linalg.norm(landmarks[upper] - landmarks[lower]) for upper, lower in _INNER_LIPS[scheme]]
    return float(np.mean(gaps) / face_frame(landmarks, scheme).interocular)


def blendshapes_to_action_units(blendshapes: Mapping[str, float], landmarks: np.ndarray) -> dict[str, float]:
    """Action units 0..5 from blendshape scores 0..1 and (478, 2) landmarks in pixels.

    Every unit but AU25 and AU43 is 5 times the mean score of its blendshapes. AU25, lips part, has no
    blendshape: it is the gap of the inner lips, 0 where they touch and 5 from 0.30 interocular distances.
    (The maximum of the opening blendshapes would rate a closed-lip smile as open, because mouthUpperUp moves
    with it.) AU43, eyes closed, is the mean of its sides, see `blendshapes_to_sides`.
    """
    units = {unit: intensity_of(unit, blendshapes) for unit in BLENDSHAPES_OF_UNIT}
    units["AU43"] = float(np.mean([*_closed_eyes(blendshapes, landmarks).values()]))
    opening = (lip_gap(landmarks) - _LIPS_CLOSED) / FULL_LIP_GAP
    units["AU25"] = FULL_INTENSITY * float(np.clip(opening, 0.0, 1.0))
    return by_number(units)


def blendshapes_to_sides(blendshapes: Mapping[str, float], landmarks: np.ndarray) -> dict[str, float]:
    """Action units 0..5 by side, such as "AU12L" for the subject's left.

    Each comes from the blendshape of that side. The blendshape of AU1 has no sides; they come from its
    intensity and from how much higher the inner brow of that side is above its eye than the other one. AU43
    is 5 where the lids meet, which the blendshape scores as 2.8 to 3.9.
    """
    sides: dict[str, float] = {}
    for unit in BLENDSHAPES_OF_UNIT:
        sides |= sides_of(unit, blendshapes)
    sides |= _closed_eyes(blendshapes, landmarks)
    down = face_frame(landmarks).to_face(landmarks)[:, 1]
    eyes_and_brows = zip(EYE_CORNERS["mediapipe478"], _INNER_BROWS, strict=True)
    heights = [down[list(eye)].mean() - down[list(brow)].mean() for eye, brow in eyes_and_brows]
    higher = FULL_INTENSITY * float(heights[1] - heights[0]) / 2 / FULL_BROW_RAISE
    raised = intensity_of("AU1", blendshapes)
    for name, value in (("AU1L", raised + higher), ("AU1R", raised - higher)):
        sides[name] = float(np.clip(value, 0.0, FULL_INTENSITY))
    return by_number(sides)


def _closed_eyes(blendshapes: Mapping[str, float], landmarks: np.ndarray) -> dict[str, float]:
    """AU43 of each side, 0..5: the blendshape, or how far the lids' landmarks are closed if that is more."""
    closures = zip(eye_closure(landmarks), sides_of("AU43", blendshapes).items(), strict=True)
    return {name: max(FULL_INTENSITY * closure, score) for closure, (name, score) in closures}


def pose_of(matrix: np.ndarray) -> Pose:
    """Pose from MediaPipe's facial transformation matrix, (4, 4), canonical face to camera.

    Both frames have x to the viewer's right, y up and z towards the viewer; the canonical face looks along
    +z. The rotation is read as turn (yaw), then nod (pitch), then tilt (roll) in the head's own frame.
    """
    rotation = np.asarray(matrix, dtype=np.float64)[:3, :3]
    forward = rotation[:, 2]
    yaw = np.arctan2(forward[0], forward[2])
    pitch = np.arcsin(np.clip(forward[1], -1.0, 1.0))
    roll = -np.arctan2(rotation[1, 0], rotation[1, 1])
    return Pose(*(float(np.degrees(angle)) for angle in (yaw, pitch, roll)))
