"""Relates two photographs of one person in two expressions by their landmarks.

The second mostly shows the same content as the first, moved. The movement (a smooth field through the
landmarks) and what it cannot explain (teeth, folds) teach a model the difference in expression, without what
changed in the studio between them (hair, clothes, a turn of the head, light).
"""

from dataclasses import dataclass

import cv2
import numpy as np

from magicedit.faces.frame import face_frame
from magicedit.faces.regions import face_region, polygon_mask, region_polygon
from magicedit.warping.muscles import LANDMARKS, LOWER_LIP, LOWER_LIP_EDGE, SKIN, UPPER_LIP, UPPER_LIP_EDGE
from magicedit.warping.warp import read_at

_STRIDE = 4  # px between samples of the field
_STIFFNESS = 1e-3  # of the spline: landmarks scatter by about a hundredth of the distance between the eyes
_FINE = 0.02  # interocular distances: finer detail is not compared, because landmarks do not locate it
UNEXPLAINED = (0.05, 0.14)  # colour difference of 1, after moving: compared in full below, not at all above
LIPS_WEIGHT = 3.0  # of pixels on and next to the lips: a small part of a face, but viewers look there first
_NEAR_LIPS = 0.06  # interocular distances
_OPEN = 0.03  # interocular distances between lips that are not closed
_NEWLY_OPEN = 2.0  # a mouth that opens this much wider shows content absent from the source
_EYE_GROWTH = 1.35
_TONE = (0.6, 1.6)  # limits of the factor between the light of two photographs


@dataclass(frozen=True, eq=False)
class Correspondence:
    """How to obtain a target photograph from a source; both are aligned crops of `size` px.

    flow: (size, size, 2) px, target(p) = source(p + flow(p)); NaN where unknown: outside the target's face
    and between its lips. mask: (size, size), 1 where the target shows mouth inside that the source does not,
    else 0; NaN where unknown. weight: (size, size), how comparable the two are: 0 outside the face, between
    opened lips, in the eyes, whose gaze is not expression, and where movement does not explain the target;
    else up to 1, and LIPS_WEIGHT times that around the lips. tone: (3,) factor that matches the target to the
    source's light.
    """

    flow: np.ndarray
    mask: np.ndarray
    weight: np.ndarray
    tone: np.ndarray

    @property
    def nbytes(self) -> int:
        return self.flow.nbytes + self.mask.nbytes + self.weight.nbytes + self.tone.nbytes


def correspond(
    source: np.ndarray,
    source_landmarks: np.ndarray,
    target: np.ndarray,
    target_landmarks: np.ndarray,
    match_tone: bool = True,
) -> Correspondence:
    """Relates two aligned crops (size, size, 3) uint8 RGB by MediaPipe's landmarks (478, 2), px of them.

    match_tone: whether to match the target to the source's light before comparing the two.
    """
    from scipy.interpolate import RBFInterpolator  # 0.5 s, and edits do without

    size = len(source)
    if target.shape != source.shape or source_landmarks.shape != (LANDMARKS, 2):
        raise ValueError(
            f"expected two crops of one size and landmarks ({LANDMARKS}, 2), got {source.shape}, "
            f"{target.shape} and {source_landmarks.shape}"
        )
    source_landmarks = np.asarray(source_landmarks, np.float64)
    target_landmarks = np.asarray(target_landmarks, np.float64)
    frame = face_frame(target_landmarks)

    # 1. Two fields, of the skin above the mouth's opening and of the skin below it
    centres = np.arange(0, size, _STRIDE) + (_STRIDE - 1) / 2
    grid = frame.to_face(np.stack(np.meshgrid(centres, centres), -1).reshape(-1, 2))
    sheets = []
    for other_lip in (LOWER_LIP, UPPER_LIP):
        ids = np.setdiff1d(np.arange(SKIN), other_lip)
        spline = RBFInterpolator(
            frame.to_face(target_landmarks[ids]), source_landmarks[ids] - target_landmarks[ids],
            kernel="thin_plate_spline", smoothing=_STIFFNESS,
        )  # fmt: skip
        field = spline(grid).reshape(len(centres), len(centres), 2).astype(np.float32)
        sheets.append(cv2.resize(field, (size, size), interpolation=cv2.INTER_CUBIC))

    # 2. Which sheet a pixel lies on: by the line between the target's lips
    upper, lower = target_landmarks[list(UPPER_LIP_EDGE)], target_landmarks[list(LOWER_LIP_EDGE)]
    middle = (upper + lower) / 2
    order = np.argsort(middle[:, 0])
    line = np.interp(np.arange(size), middle[order, 0], middle[order, 1])
    below = np.arange(size)[:, None] > line[None]
    flow = np.where(below[..., None], sheets[1], sheets[0])

    # 3. Light, and the residual after movement
    face = face_region(target_landmarks, size, "mediapipe478", grow=0.97)
    mouth = polygon_mask(region_polygon(target_landmarks, "mediapipe478", "mouth"), size)
    eyes = np.zeros((size, size), bool)
    for name in ("left_eye", "right_eye"):
        eye = region_polygon(target_landmarks, "mediapipe478", name)
        eyes |= polygon_mask(eye.mean(0) + (eye - eye.mean(0)) * _EYE_GROWTH, size)
    moved, wanted = read_at(source, flow).astype(np.float32), target.astype(np.float32)
    skin = face & ~mouth & ~eyes
    tone = np.ones(3)
    if match_tone:
        tone = np.median(moved[skin], axis=0) / np.maximum(np.median(wanted[skin], axis=0), 1)
        tone = tone.clip(*_TONE)
    blur = _FINE * frame.interocular
    difference = np.abs(cv2.GaussianBlur(moved - wanted * tone, (0, 0), blur)).mean(-1) / 255
    low, high = UNEXPLAINED
    weight = (face & ~eyes) * (1 - np.clip((difference - low) / (high - low), 0, 1))
    weight[near_lips(target_landmarks, size)] *= LIPS_WEIGHT
    mask = np.zeros((size, size))
    gaps = [
        np.linalg.norm(points[list(UPPER_LIP_EDGE)] - points[list(LOWER_LIP_EDGE)], axis=1).max()
        for points in (source_landmarks, target_landmarks)
    ]
    if gaps[1] > _OPEN * frame.interocular:
        mask[mouth] = 1.0 if gaps[1] > _NEWLY_OPEN * gaps[0] else np.nan
        flow[mouth] = np.nan
        weight[mouth] = 0
    flow[~face] = mask[~face] = np.nan
    return Correspondence(*(values.astype(np.float32) for values in (flow, mask, weight, tone)))


def near_lips(landmarks: np.ndarray, size: int, *others: str) -> np.ndarray:
    """Returns (size, size) bool: the lips of landmarks (478, 2) px, regions `others` and skin near them."""
    lips = np.zeros((size, size), np.uint8)
    for name in ("lips", *others):
        lips |= polygon_mask(region_polygon(landmarks, "mediapipe478", name), size).astype(np.uint8)
    reach = max(1, round(_NEAR_LIPS * face_frame(landmarks).interocular))
    return cv2.dilate(lips, np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)) > 0
