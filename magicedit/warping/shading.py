"""Smile shading: folds beside the nose, rolls below the eyes, swelling cheeks.

Moved pixels keep their original shading, so that a cheek lifted by a warp stays flat. The shading change of
real smiles is therefore applied to the photograph as a ratio of light, an expression ratio image (Z. Liu,
Y. Shan, Z. Zhang, "Expressive expression mapping with ratio images", SIGGRAPH 2001). The photograph keeps its
texture. `face_shading.safetensors`, written by `dev/face_shading.py`, holds the median over people of the
Face Research Lab London Set (CC BY 4.0, without those kept for validation), which shows nobody.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np

from magicedit.faces.alignment import Alignment
from magicedit.vocabulary import split_sides
from magicedit.warping.change import upsampled, window_of
from magicedit.warping.muscles import SKIN

TABLE = Path(__file__).with_name("face_shading.safetensors")
# Parts of the whole smile's shading by unit, and the amount of each at intensity 5
SHADES: Mapping[str, Mapping[str, float]] = {
    "AU6": {"eyes": 2.4},
    "AU9": {"fold": 2.4},
    "AU12": {"cheeks": 2.6, "eyes": 0.8},
}
_RELAXED = 0.4  # share that a relaxed unit removes: the depth of a photograph's own folds is unknown
_MOST = 2.6  # times the shading of the mean smile
_MIDLINE = 0.15  # interocular distances over which one side's shading becomes the other's
_SIDE = 256  # px of the crop in which the ratio is drawn, for every model


@dataclass(frozen=True, eq=False)
class _Table:
    """parts: name -> (rows, columns, 3) natural logarithms of the ratio of coded RGB values, of the subject's
    left half. places: (468, 2) landmarks of the neutral face in its px, the midline at x = 0; triangles
    (n, 3) of them. pixel: interocular distances of a px."""

    parts: dict[str, np.ndarray]
    places: np.ndarray
    triangles: np.ndarray
    pixel: float


@cache
def _table() -> _Table:
    from safetensors.numpy import load_file

    arrays = load_file(TABLE)
    scale = arrays.pop("scale")[0]
    places, triangles, pixel = (arrays.pop(name) for name in ("places", "triangles", "pixel"))
    parts = {name: values.astype(np.float32) * scale for name, values in arrays.items()}
    return _Table(parts, places.astype(np.float64), triangles.astype(np.int64), float(pixel[0]))


def _flat_places(landmarks: np.ndarray, side: int) -> np.ndarray:
    """Returns the position of crop pixels on the table's neutral face, (side, side, 2) px; NaN elsewhere.

    landmarks: MediaPipe's (478, 2), crop px. Linear within each triangle between them.
    """
    table = _table()
    corners = np.asarray(landmarks, np.float64)[:SKIN][table.triangles]  # (n, 3, 2)
    numbers = np.zeros((side, side), np.int32)
    for number, corner in enumerate(np.rint(corners * 16).astype(np.int32), start=1):
        cv2.fillConvexPoly(numbers, corner, number, shift=4)
    plane = np.concatenate([corners, np.ones((len(corners), 3, 1))], -1)
    flat = np.abs(np.linalg.det(plane)) < 1e-3  # seen from the side, or folded
    plane[flat] = np.eye(3)
    maps = np.linalg.solve(plane, table.places[table.triangles])  # (n, 3, 2)
    maps[flat] = np.nan
    places = np.full((side, side, 2), np.nan, np.float32)
    y, x = np.nonzero(numbers)
    at = np.stack([x, y, np.ones_like(x)], -1).astype(np.float64)
    places[y, x] = np.einsum("ni,nij->nj", at, maps[numbers[y, x] - 1])
    return places


def _amounts(request: Mapping[str, float]) -> dict[str, float]:
    """Amount of each shading part, relative to the table; `request`: whole units' variations in steps."""
    amounts = dict.fromkeys(_table().parts, 0.0)
    for unit, steps in request.items():
        for part, share in SHADES.get(unit, {}).items():
            amounts[part] += share * steps / 5 * (1 if steps > 0 else _RELAXED)
    return {part: float(np.clip(amount, -_MOST, _MOST)) for part, amount in amounts.items()}


def shade(
    pixels: np.ndarray,
    alignment: Alignment,
    region: np.ndarray,
    landmarks: np.ndarray,
    request: Mapping[str, float],
) -> np.ndarray:
    """Returns the photograph, unmoved, with the shading of a request applied to its skin.

    Args:
        pixels: the photograph, (height, width, 3) uint8 RGB.
        alignment: of the crop in which the face lies upright.
        region: (size, size), 0..1, in the crop: weight of the change.
        landmarks: MediaPipe's (478, 2), photograph px.
        request: AU name, whole or of one side, -> variation in intensity steps; units without SHADES are
            ignored.

    Returns:
        `pixels` itself where nothing changes, else a new photograph, which differs where the region is not 0.
    """
    sides = [_amounts(side) for side in split_sides(request)]  # the subject's left, right
    if not any(value for amounts in sides for value in amounts.values()):
        return pixels
    table, fine = _table(), alignment.scaled(_SIDE)
    places = _flat_places(fine.apply(landmarks), _SIDE)
    x, y = places[..., 0], places[..., 1]
    light = np.zeros((_SIDE, _SIDE, 3), np.float32)
    towards_left = np.clip(0.5 + x * table.pixel / _MIDLINE, 0, 1)[..., None]
    for amounts, weight in zip(sides, (towards_left, 1 - towards_left), strict=True):
        part = sum(amount * table.parts[name] for name, amount in amounts.items())
        light += weight * cv2.remap(part, np.abs(x), y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
    light[np.isnan(x)] = 0
    light = cv2.GaussianBlur(light, (0, 0), 0.7)  # pixels between triangles
    light *= cv2.resize(region, (_SIDE, _SIDE))[..., None]

    window = window_of(np.abs(light).max(-1) > 1e-3, fine, pixels.shape)
    if window is None:
        return pixels
    x0, y0, x1, y1 = window
    result = pixels.copy()
    view = result[y0:y1, x0:x1]
    view[:] = np.rint(np.clip(view * np.exp(upsampled(light, fine, window)), 0, 255))
    return result
