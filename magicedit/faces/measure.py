"""From what MediaPipe measures to FACS: blendshapes to action units, transformation matrix to pose."""

from collections.abc import Mapping

import numpy as np

from magicedit.faces.types import Pose

FULL_INTENSITY = 5.0  # a blendshape of 1 is intensity E

# ARKit blendshape -> FACS, from the published correspondence tables (Ozel's ARKit-to-FACS sheet, py-feat's
# region map). The scores of a bilateral unit are averaged. cheekSquint hardly ever moves in this model, so
# AU6 reads low.
BLENDSHAPES_OF_UNIT: dict[str, tuple[str, ...]] = {
    "AU1": ("browInnerUp",),
    "AU2": ("browOuterUpLeft", "browOuterUpRight"),
    "AU4": ("browDownLeft", "browDownRight"),
    "AU5": ("eyeWideLeft", "eyeWideRight"),
    "AU6": ("cheekSquintLeft", "cheekSquintRight"),
    "AU7": ("eyeSquintLeft", "eyeSquintRight"),
    "AU9": ("noseSneerLeft", "noseSneerRight"),
    "AU10": ("mouthUpperUpLeft", "mouthUpperUpRight"),
    "AU12": ("mouthSmileLeft", "mouthSmileRight"),
    "AU15": ("mouthFrownLeft", "mouthFrownRight"),
    "AU16": ("mouthLowerDownLeft", "mouthLowerDownRight"),
    "AU17": ("mouthShrugLower",),
    "AU18": ("mouthPucker",),
    "AU20": ("mouthStretchLeft", "mouthStretchRight"),
    "AU22": ("mouthFunnel",),
    "AU26": ("jawOpen",),
    "AU45": ("eyeBlinkLeft", "eyeBlinkRight"),
}

_EYE_CORNERS = ((33, 133), (362, 263))
_INNER_LIPS = ((82, 87), (13, 14), (312, 317))  # upper, lower: left of, at and right of the midline
# Gaps in interocular distances. On 79 neutral faces with closed lips the gap reads 0.004 (95 % below 0.018);
# broad smiles with teeth reach 0.25.
_LIPS_CLOSED, _LIPS_WIDE_APART = 0.015, 0.30


def lip_gap(landmarks: np.ndarray) -> float:
    """Mean distance of the inner lips near the midline, in interocular distances, of (478, 2) landmarks."""
    left, right = (landmarks[list(corners)].mean(0) for corners in _EYE_CORNERS)
    gaps = [np.linalg.norm(landmarks[upper] - landmarks[lower]) for upper, lower in _INNER_LIPS]
    return float(np.mean(gaps) / np.linalg.norm(left - right))


def blendshapes_to_action_units(blendshapes: Mapping[str, float], landmarks: np.ndarray) -> dict[str, float]:
    """Action units 0..5 from blendshape scores 0..1 and (478, 2) landmarks in pixels.

    Every unit but AU25 is 5 times the mean score of its blendshapes. AU25, lips part, has none of its own: it
    is the gap of the inner lips, 0 where they touch and 5 from 0.30 interocular distances on. (The maximum of
    the opening blendshapes would call a closed-lip smile open, for mouthUpperUp moves with it.)
    """
    units = {
        unit: FULL_INTENSITY * float(np.mean([blendshapes[name] for name in names]))
        for unit, names in BLENDSHAPES_OF_UNIT.items()
    }
    opening = (lip_gap(landmarks) - _LIPS_CLOSED) / (_LIPS_WIDE_APART - _LIPS_CLOSED)
    units["AU25"] = FULL_INTENSITY * float(np.clip(opening, 0.0, 1.0))
    return dict(sorted(units.items(), key=lambda item: int(item[0][2:])))


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
