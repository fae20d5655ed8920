"""What a mouth shows when it opens: teeth borrowed from a photograph that has them.

Warping a closed mouth cannot show what it never saw. The inside of another open mouth, placed by the skull
(upper teeth do not move with the lips) and cut by the warped lips, gives training pairs an inside that looks
like one.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from magicedit.faces.frame import face_frame
from magicedit.warping.muscles import LOWER_LIP_EDGE, UPPER_LIP_EDGE

NOSE_BASE = 2  # landmark that no expression of the mouth moves much
_SKIN = (50, 280, 117, 346, 101, 330)  # cheeks, for the light
_TONE = (0.6, 1.6)  # limits of the colour match between two photographs
# How far down lips cover what the donor's show: 0 as the skull has it, 1 moved up to the lip. A donor smiles,
# which raises the lip; at the bare skull's place a relaxed lip would cover most teeth.
_FOLLOWS_LIP = 0.7
_STRETCH = 1.4  # at most, to fill a mouth that opens wider than the donor's


@dataclass(frozen=True, eq=False)
class Donor:
    """A face crop whose parted lips show the mouth's inside: pixels (size, size, 3) uint8 RGB, landmarks
    (478, 2) px of it."""

    pixels: np.ndarray
    landmarks: np.ndarray


def inside_colour(pixels: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """A dark red that fits the photograph's light: a fifth of the lips' median colour; (3,) float32."""
    return (
        _median_colour(pixels, landmarks, (*UPPER_LIP_EDGE, *LOWER_LIP_EDGE)) * (0.26, 0.17, 0.17)
    ).astype(np.float32)


def paint_inside(
    pixels: np.ndarray,
    landmarks: np.ndarray,
    donor: Donor,
    edges: tuple[np.ndarray, np.ndarray],
    rows: slice,
) -> np.ndarray:
    """The donor's mouth where that of a face will open: (rows, size, 3) float32 RGB, dark around it.

    pixels (size, size, 3) uint8 and landmarks (478, 2) px: of the face. edges: (points, 2) px each, where the
    edges of its upper and its lower lip will be.
    """
    size = len(pixels)
    frame, theirs = face_frame(landmarks), face_frame(donor.landmarks)
    lips = [frame.to_face(np.asarray(edge, np.float64)) for edge in edges]
    nose = frame.to_face(np.asarray(landmarks, np.float64)[NOSE_BASE])
    their_points = theirs.to_face(np.asarray(donor.landmarks, np.float64))
    their_lips = their_points[list(UPPER_LIP_EDGE)], their_points[list(LOWER_LIP_EDGE)]
    their_nose = their_points[NOSE_BASE]
    middle = len(UPPER_LIP_EDGE) // 2

    # 1. The face's pixel -> its place in the donor's picture, laid on the lip and stretched with the mouth
    lip, their_lip = lips[0][middle] - nose, their_lips[0][middle] - their_nose
    covered = max((1 - _FOLLOWS_LIP) * (lip[1] - their_lip[1]), 0.0)  # by a lip that hangs lower than theirs
    stretch = [
        np.clip((own[1] - own[0]) / max(other[1] - other[0], 1e-3), 1, _STRETCH)
        for own, other in (
            ((lips[0][0, 0], lips[0][-1, 0]), (their_lips[0][0, 0], their_lips[0][-1, 0])),
            ((lips[0][middle, 1], lips[1][middle, 1]), (their_lips[0][middle, 1], their_lips[1][middle, 1])),
        )
    ]
    here = frame.origin + (nose + np.array([0, lip[1]])) @ frame.rotation * frame.interocular
    there = their_nose + np.array([0, their_lip[1] + covered])
    there = theirs.origin + there @ theirs.rotation * theirs.interocular
    linear = theirs.rotation.T @ np.diag(1 / np.array(stretch)) @ frame.rotation
    linear *= theirs.interocular / frame.interocular  # (2, 2)
    matrix = np.concatenate([linear, (there - linear @ here)[:, None]], axis=1)
    matrix[:, 2] += matrix[:, 1] * rows.start  # of the band of rows alone
    side = (size, rows.stop - rows.start)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP

    # 2. Their mouth's inside, a little narrower than its outline, with a soft edge
    mouth = np.zeros(donor.pixels.shape[:2], np.uint8)
    outline = np.asarray(donor.landmarks)[[*UPPER_LIP_EDGE, *LOWER_LIP_EDGE[-2:0:-1]]]
    cv2.fillPoly(mouth, [np.rint(outline * 16).astype(np.int32)], 255, shift=4)
    soft = cv2.GaussianBlur(mouth, (0, 0), 0.012 * theirs.interocular + 0.3)
    inside = np.clip(cv2.warpAffine(soft, matrix, side, flags=flags) / 127.5 - 1, 0, 1)[..., None]

    # 3. In this photograph's light
    tone = _median_colour(pixels, landmarks, _SKIN) / np.maximum(
        _median_colour(donor.pixels, donor.landmarks, _SKIN), 1
    )
    picture = cv2.warpAffine(donor.pixels, matrix, side, flags=flags, borderMode=cv2.BORDER_REFLECT_101)
    picture = np.clip(picture * tone.mean().clip(*_TONE), 0, 255)
    return (inside * picture + (1 - inside) * inside_colour(pixels, landmarks)).astype(np.float32)


def _median_colour(pixels: np.ndarray, landmarks: np.ndarray, ids: tuple[int, ...]) -> np.ndarray:
    at = np.rint(np.asarray(landmarks)[list(ids)]).astype(int).clip(0, len(pixels) - 1)
    return np.median(pixels[at[:, 1], at[:, 0]], axis=0)
