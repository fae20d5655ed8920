"""ARKit's face blendshapes: their names, and their scores as action units and gaze.

A score is 0 to 1. Left and right are the subject's own, as in FACS. Names: Apple,
"ARFaceAnchor.BlendShapeLocation".
"""

from collections.abc import Mapping

import numpy as np

from magicedit.action_units import FACS

FULL_INTENSITY = 5.0  # a blendshape of 1 is intensity E
FULL_GAZE = 30.0  # degrees at a score of 1

_EYES = ("eyeBlink", "eyeLookDown", "eyeLookIn", "eyeLookOut", "eyeLookUp", "eyeSquint", "eyeWide")
_PAIRS = ("mouthSmile", "mouthFrown", "mouthDimple", "mouthStretch")
_LATER_PAIRS = ("mouthPress", "mouthLowerDown", "mouthUpperUp", "browDown")


def _both(*names: str) -> tuple[str, ...]:
    return tuple(name + side for name in names for side in ("Left", "Right"))


# All 52, in Apple's order
BLENDSHAPES = (
    *(f"{name}Left" for name in _EYES),
    *(f"{name}Right" for name in _EYES),
    *("jawForward", "jawLeft", "jawRight", "jawOpen"),
    *("mouthClose", "mouthFunnel", "mouthPucker", "mouthLeft", "mouthRight"),
    *_both(*_PAIRS),
    *("mouthRollLower", "mouthRollUpper", "mouthShrugLower", "mouthShrugUpper"),
    *_both(*_LATER_PAIRS),
    "browInnerUp",
    *_both("browOuterUp"),
    "cheekPuff",
    *_both("cheekSquint", "noseSneer"),
    "tongueOut",
)
# MediaPipe scores all but one
MEASURED = tuple(name for name in BLENDSHAPES if name != "tongueOut")

# ARKit blendshape -> FACS, from the published correspondence tables (Ozel's ARKit-to-FACS sheet, py-feat's
# region map). The scores of a bilateral unit are averaged. cheekSquint hardly ever moves in the model of
# MediaPipe, so AU6 reads low.
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
    "AU14": ("mouthDimpleLeft", "mouthDimpleRight"),
    "AU15": ("mouthFrownLeft", "mouthFrownRight"),
    "AU16": ("mouthLowerDownLeft", "mouthLowerDownRight"),
    "AU17": ("mouthShrugLower",),
    "AU18": ("mouthPucker",),
    "AU20": ("mouthStretchLeft", "mouthStretchRight"),
    "AU22": ("mouthFunnel",),
    "AU24": ("mouthPressLeft", "mouthPressRight"),
    "AU26": ("jawOpen",),
    "AU28": ("mouthRollLower", "mouthRollUpper"),
    "AU43": ("eyeBlinkLeft", "eyeBlinkRight"),
    "AU45": ("eyeBlinkLeft", "eyeBlinkRight"),
}

# Blendshapes that look in a direction, and those that look the other way
_GAZE = {
    "gaze_yaw": (("eyeLookOutLeft", "eyeLookInRight"), ("eyeLookInLeft", "eyeLookOutRight")),
    "gaze_pitch": (_both("eyeLookUp"), _both("eyeLookDown")),
}


def intensity_of(unit: str, scores: Mapping[str, float]) -> float:
    """Returns a unit's intensity, 0 to 5: 5 times the mean score of its blendshapes."""
    return FULL_INTENSITY * float(np.mean([scores[name] for name in BLENDSHAPES_OF_UNIT[unit]]))


def sides_of(unit: str, scores: Mapping[str, float]) -> dict[str, float]:
    """Returns a unit's intensities by side, such as "AU12L", where it has sides and a blendshape for each."""
    names = BLENDSHAPES_OF_UNIT[unit]
    if not FACS[unit].has_sides or len(names) != 2:
        return {}
    # The table lists the left first
    return {unit + side: FULL_INTENSITY * float(scores[name]) for side, name in zip("LR", names, strict=True)}


def levels_of_scores(scores: Mapping[str, float]) -> tuple[dict[str, float], dict[str, float]]:
    """Returns what blendshape scores say of a face: whole controls, and intensities by side.

    Units, 0 to 5, are 5 times the mean score of their blendshapes; those with blendshapes missing from
    `scores` are left out. AU45, the same score as AU43, is left out too. Gaze, -30 to 30 degrees, is 30 times
    the difference of the scores to both sides, mean of the two eyes.
    """
    wholes, sides = {}, {}
    for unit, names in BLENDSHAPES_OF_UNIT.items():
        if unit != "AU45" and scores.keys() >= {*names}:
            wholes[unit] = intensity_of(unit, scores)
            sides |= sides_of(unit, scores)
    for axis, (ahead, back) in _GAZE.items():
        if scores.keys() >= {*ahead, *back}:
            wholes[axis] = (
                FULL_GAZE * sum(scores[a] - scores[b] for a, b in zip(ahead, back, strict=True)) / 2
            )
    return wholes, sides
