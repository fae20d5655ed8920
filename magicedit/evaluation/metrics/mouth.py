"""The content between the lips, and the part of a crop in which mouths are compared."""

from typing import NamedTuple

import cv2
import numpy as np

from magicedit.faces import region_polygon
from magicedit.faces.frame import face_frame
from magicedit.faces.regions import polygon_mask
from magicedit.faces.types import Scheme

WINDOW = 1.5  # interocular distances a side of the square around a mouth, an open one included
RIM = 1 / 128  # of the crop's side: what is left out along the lips, whose edge is no content of the mouth
LEAST_INSIDE = 0.0004  # of the crop's pixels: less are closed lips


class BetweenLips(NamedTuple):
    """sharpness: mean magnitude of the Sobel gradient, levels (a step of one level between two columns gives
    4). detail: mean absolute Laplacian, levels: structure finer than a band of light, whose strong smooth
    edges are as sharp as teeth. luminance: mean grey level 0..255. teeth: mean grey level of the brighter
    half, which are mostly teeth where any show. pixels: number of pixels measured."""

    sharpness: float
    detail: float
    luminance: float
    teeth: float
    pixels: int


class MouthRatios(NamedTuple):
    """An edit over the person's real smile; 1 is equal. sharpness and detail below 1 are a blur or a hole."""

    sharpness: float
    detail: float
    luminance: float
    teeth: float


def mouth_window(landmarks: np.ndarray, scheme: Scheme, size: int) -> tuple[slice, slice]:
    """Rows and columns of the square around the lips, `WINDOW` wide, shifted into a crop of `size` px."""
    lips = region_polygon(landmarks, scheme, "lips")
    side = min(size, round(WINDOW * face_frame(landmarks, scheme).interocular))
    left, top = (int(np.clip(round(v - side / 2), 0, size - side)) for v in (lips.max(0) + lips.min(0)) / 2)
    return slice(top, top + side), slice(left, left + side)


def between_lips(crop: np.ndarray, landmarks: np.ndarray, scheme: Scheme) -> BetweenLips | None:
    """Measures the content between the lips of a crop (size, size, 3) uint8; None if they are closed.

    landmarks: (points, 2) px of the crop, measured on this very picture.
    """
    size = len(crop)
    inside = polygon_mask(region_polygon(landmarks, scheme, "mouth"), size).astype(np.uint8)
    rim = max(1, round(RIM * size))
    inside = cv2.erode(inside, np.ones((2 * rim + 1, 2 * rim + 1), np.uint8)).astype(bool)
    if inside.mean() < LEAST_INSIDE:
        return None
    grey = cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY).astype(np.float32)
    gradient = np.hypot(cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1))
    levels = np.sort(grey[inside])
    return BetweenLips(
        sharpness=float(gradient[inside].mean()),
        detail=float(np.abs(cv2.Laplacian(grey, cv2.CV_32F))[inside].mean()),
        luminance=float(levels.mean()),
        teeth=float(levels[len(levels) // 2 :].mean()),
        pixels=len(levels),
    )


def mouth_ratios(edited: BetweenLips, real: BetweenLips) -> MouthRatios:
    """Returns the edit's figures over those of the same person's real smile, both from crops of one size."""
    return MouthRatios(
        *(getattr(edited, name) / max(getattr(real, name), 1e-6) for name in MouthRatios._fields)
    )
