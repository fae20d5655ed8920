"""Relates two photographs of one person in two expressions by their landmarks.

The second mostly shows the same content as the first, moved. The movement (a smooth field through the
landmarks) and what it cannot explain (teeth, folds) teach a model the difference in expression, without what
changed in the studio between them (hair, clothes, a turn of the head, light).
"""

from dataclasses import dataclass
from math import ceil

import cv2
import numpy as np

from magicedit.faces.frame import face_frame
from magicedit.faces.regions import face_region, polygon_mask, region_polygon
from magicedit.warping.muscles import (
    LANDMARKS,
    LOWER_LIP,
    LOWER_LIP_EDGE,
    SKIN,
    UPPER_LIP,
    UPPER_LIP_EDGE,
    shared_landmarks,
)
from magicedit.warping.splines import sheet_fields

_STRIDE = 4  # px between samples of the field
_BLUR_REACH = 4  # standard deviations to which OpenCV blurs float32
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
    size = len(source)
    if target.shape != source.shape or source_landmarks.shape != (LANDMARKS, 2):
        raise ValueError(
            f"expected two crops of one size and landmarks ({LANDMARKS}, 2), got {source.shape}, "
            f"{target.shape} and {source_landmarks.shape}"
        )
    source_landmarks = np.asarray(source_landmarks, np.float64)
    target_landmarks = np.asarray(target_landmarks, np.float64)
    frame = face_frame(target_landmarks)

    # 1. The face, whose surroundings stay unknown, and the part of the crop that needs computing
    face = face_region(target_landmarks, size, "mediapipe478", grow=0.97)
    blur = _FINE * frame.interocular
    rows, columns = part = _around(face, ceil(_BLUR_REACH * blur))

    # 2. Two fields, of the skin above the mouth's opening and of the skin below it
    ids = shared_landmarks(SKIN), list(UPPER_LIP), list(LOWER_LIP)
    places = frame.to_face(target_landmarks).astype(np.float32)
    moves = (source_landmarks - target_landmarks).astype(np.float32)
    spans = [range(span.start // _STRIDE - 2, -(-span.stop // _STRIDE) + 2) for span in part]
    down, across = (np.array(span) * _STRIDE + (_STRIDE - 1) / 2 for span in spans)
    grid = frame.to_face(np.stack(np.meshgrid(across, down), -1).reshape(-1, 2))
    fields = sheet_fields(tuple(places[i] for i in ids), tuple(moves[i] for i in ids), grid)
    fields = fields.reshape(len(down), len(across), 4)
    fine = cv2.resize(fields, None, fx=_STRIDE, fy=_STRIDE, interpolation=cv2.INTER_CUBIC)
    first = [span.start - coarse.start * _STRIDE for span, coarse in zip(part, spans, strict=True)]
    height, width = rows.stop - rows.start, columns.stop - columns.start
    sheets = fine[first[0] : first[0] + height, first[1] : first[1] + width]  # px, two values of each sheet

    # 3. Which sheet a pixel lies on: by the line between the target's lips
    edges = target_landmarks[list(UPPER_LIP_EDGE)], target_landmarks[list(LOWER_LIP_EDGE)]
    middle = (edges[0] + edges[1]) / 2
    order = np.argsort(middle[:, 0])
    x, y = (np.arange(span.start, span.stop, dtype=np.float32) for span in (columns, rows))
    below = y[:, None] > np.interp(x, middle[order, 0], middle[order, 1])
    known = np.where(below[..., None], sheets[..., 2:], sheets[..., :2])

    # 4. Light, and the residual after movement
    mouth = polygon_mask(region_polygon(target_landmarks, "mediapipe478", "mouth"), size)[part]
    eyes = np.zeros((size, size), bool)
    for name in ("left_eye", "right_eye"):
        eye = region_polygon(target_landmarks, "mediapipe478", name)
        eyes |= polygon_mask(eye.mean(0) + (eye - eye.mean(0)) * _EYE_GROWTH, size)
    face, eyes = face[part], eyes[part]
    moved = cv2.remap(
        source, known[..., 0] + x, known[..., 1] + y[:, None], cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REFLECT_101,
    )  # fmt: skip
    wanted, tone = target[part], np.ones(3)
    if match_tone:
        skin = face & ~mouth & ~eyes
        tone = (_medians(moved, skin) / np.maximum(_medians(wanted, skin), 1)).clip(*_TONE)
    difference = cv2.multiply(wanted, (*tone, 0.0), dtype=cv2.CV_32F)
    difference = np.abs(cv2.GaussianBlur(moved - difference, (0, 0), blur))
    difference = cv2.transform(difference, np.full((1, 3), 1 / (3 * 255)))
    low, high = UNEXPLAINED
    weight = (1 - (difference - low) / (high - low)).clip(0, 1) * (face & ~eyes)
    weight[near_lips(target_landmarks, size)[part]] *= LIPS_WEIGHT
    mask = np.where(face, np.float32(0), np.float32(np.nan))
    known[~face] = np.nan
    gaps = [
        np.linalg.norm(points[list(UPPER_LIP_EDGE)] - points[list(LOWER_LIP_EDGE)], axis=1).max()
        for points in (source_landmarks, target_landmarks)
    ]
    if gaps[1] > _OPEN * frame.interocular:
        mask[mouth & face] = 1.0 if gaps[1] > _NEWLY_OPEN * gaps[0] else np.nan
        known[mouth] = np.nan
        weight[mouth] = 0
    found = (
        np.full((size, size, 2), np.nan, np.float32),
        np.full((size, size), np.nan, np.float32),
        np.zeros((size, size), np.float32),
    )
    for values, inner in zip(found, (known, mask, weight), strict=True):
        values[part] = inner
    return Correspondence(*found, tone.astype(np.float32))


def _around(region: np.ndarray, reach: int) -> tuple[slice, slice]:
    """Rows and columns of a region (height, width) bool and of `reach` px around it."""
    spans = []
    for axis in (1, 0):
        there = np.flatnonzero(region.any(axis))
        ends = (there[0] - reach, there[-1] + 1 + reach) if len(there) else (0, region.shape[1 - axis])
        spans.append(slice(max(0, int(ends[0])), min(region.shape[1 - axis], int(ends[1]))))
    return tuple(spans)


def _medians(pixels: np.ndarray, region: np.ndarray) -> np.ndarray:
    """The median of each channel of pixels (height, width, 3) uint8 in a region (height, width) bool."""
    region = region.astype(np.uint8)
    counts = [cv2.calcHist([pixels], [channel], region, [256], [0, 256]).ravel() for channel in range(3)]
    counts = np.cumsum(counts, axis=1)
    total = counts[0, -1]
    middle = [(counts > place).argmax(1) for place in ((total - 1) // 2, total // 2)]
    return np.mean(middle, 0)


def near_lips(landmarks: np.ndarray, size: int, *others: str) -> np.ndarray:
    """Returns (size, size) bool: the lips of landmarks (478, 2) px, regions `others` and skin near them."""
    lips = np.zeros((size, size), np.uint8)
    for name in ("lips", *others):
        lips |= polygon_mask(region_polygon(landmarks, "mediapipe478", name), size).astype(np.uint8)
    reach = max(1, round(_NEAR_LIPS * face_frame(landmarks).interocular))
    return cv2.dilate(lips, np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)) > 0
