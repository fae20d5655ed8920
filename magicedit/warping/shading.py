"""The light on moved skin: folds beside the nose, rolls below the eyes, swelling cheeks, and creases.

Moved pixels keep their original shading, so that a cheek lifted by a warp stays flat. The shading change of
real smiles is therefore applied to the photograph as a ratio of light, an expression ratio image (Z. Liu,
Y. Shan, Z. Zhang, "Expressive expression mapping with ratio images", SIGGRAPH 2001). The photograph keeps its
texture. `face_shading.safetensors`, written by `dev/face_shading.py`, holds the median over people of the
Face Research Lab London Set (CC BY 4.0, without those kept for validation), which shows nobody.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, reduce
from pathlib import Path

import cv2
import numpy as np

from magicedit.faces.alignment import Alignment
from magicedit.faces.frame import face_frame
from magicedit.faces.regions import region_polygon
from magicedit.vocabulary import split_sides, whole_name
from magicedit.warping.change import in_channels, upsampled, window_of
from magicedit.warping.creases import CREASES, amounts_of, change_creases, crease_amounts, crease_areas
from magicedit.warping.muscles import NOSE_BASE, SKIN
from magicedit.warping.reliefs import RELIEFS, relief_light

TABLE = Path(__file__).with_name("face_shading.safetensors")
# Parts of the whole smile's shading by unit, and the amount of each at intensity 5
SHADES: Mapping[str, Mapping[str, float]] = {
    "AU6": {"eyes": 2.4},
    "AU9": {"fold": 2.4},
    "AU10": {"fold": 4.0},
    "AU12": {"cheeks": 2.6, "eyes": 0.8},
    "AU14": {"dimple": 1.0},
    "AU18": {"pout": 1.0},
    "AU27": {"hollow": 1.0},
}
_RELAXED = 0.4  # share that a relaxed unit removes: the depth of a photograph's own folds is unknown
_MOST = 2.6  # times the shading of the mean smile
_MIDLINE = 0.15  # interocular distances over which one side's shading becomes the other's
_SIDE = 256  # px of the crop in which the ratio is drawn, for every model


@dataclass(frozen=True, eq=False)
class _Table:
    """parts: name -> (rows, columns, 3) natural logarithms of the ratio of coded RGB values, of the subject's
    left half. creases, skin: see `crease_areas`. places: (468, 2) landmarks of the neutral face in its px,
    the midline at x = 0; triangles (n, 3) of them. pixel: interocular distances of a px."""

    parts: dict[str, np.ndarray]
    creases: dict[str, np.ndarray]
    skin: np.ndarray
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
    places, pixel = places.astype(np.float64), float(pixel[0])
    middle = region_polygon(places, "mediapipe478", "left_eye").mean(0)[1]
    parts |= relief_light(parts["cheeks"].shape[:2], middle, pixel)
    areas = crease_areas(places, pixel, parts["cheeks"].shape[:2])
    return _Table(parts, *areas, places, triangles.astype(np.int64), pixel)


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


def shade(
    pixels: np.ndarray,
    alignment: Alignment,
    region: np.ndarray,
    landmarks: np.ndarray,
    request: Mapping[str, float],
    *,
    in_place: bool = False,
) -> np.ndarray:
    """Returns the photograph, unmoved, with the shading of a request applied to its skin.

    Args:
        pixels: the photograph, (height, width, 3) uint8 RGB.
        alignment: of the crop in which the face lies upright.
        region: (size, size), 0..1, in the crop: weight of the change.
        landmarks: MediaPipe's (478, 2), photograph px.
        request: AU name, whole or of one side, -> variation in intensity steps; units without SHADES and
            CREASES are ignored.
        in_place: whether `pixels` itself is changed.

    Returns:
        `pixels` itself where nothing changes or `in_place`, else a new photograph, which differs where the
        region is not 0.
    """
    changing = {whole_name(name) for name, steps in request.items() if steps}
    if changing.isdisjoint(SHADES) and changing.isdisjoint(CREASES):
        return pixels
    table, fine = _table(), alignment.scaled(_SIDE)

    # 1. The ratio of light and the depth of creases, in a crop of their own
    places = _flat_places(fine.apply(landmarks), _SIDE)
    read_at = np.abs(places[..., 0]), places[..., 1]
    off_face = np.isnan(places[..., 0])
    towards_left = np.clip(0.5 + places[..., 0] * table.pixel / _MIDLINE, 0, 1)
    changes = np.zeros((_SIDE, _SIDE, 4), np.float32)
    for side, weight in zip(split_sides(request), (towards_left, 1 - towards_left), strict=True):
        drawn = np.zeros((*table.skin.shape, 4), np.float32)
        for part, amount in amounts_of(side, SHADES, (-_MOST, _MOST), _RELAXED).items():
            if amount > 0 or part not in RELIEFS:  # most faces show no dimple or pout that could go
                drawn[..., :3] += amount * table.parts[part]
        for area, amount in crease_amounts(side).items():
            drawn[..., 3] += amount * table.creases[area]
        changes += in_channels(weight, 4) * cv2.remap(drawn, *read_at, cv2.INTER_LINEAR)
    skin = cv2.remap(table.skin, *read_at, cv2.INTER_LINEAR)
    changes[off_face] = skin[off_face] = 0
    changes = cv2.GaussianBlur(changes, (0, 0), 0.7)  # pixels between triangles
    changes *= in_channels(cv2.resize(region, (_SIDE, _SIDE)), 4)

    # 2. The photograph in that light
    window = window_of(reduce(cv2.max, cv2.split(np.abs(changes))) > 1e-3, fine, pixels.shape)
    if window is None:
        return pixels
    x0, y0, x1, y1 = window
    result = pixels if in_place else pixels.copy()
    view = result[y0:y1, x0:x1]
    changes = upsampled(changes, fine, window)
    lit = np.exp(changes[..., :3])
    if changes[..., 3].any():
        interocular = face_frame(landmarks).interocular
        beard = (places[..., 1] > table.places[NOSE_BASE, 1]).astype(np.float32)
        skin, beard = (upsampled(values, fine, window) for values in (skin, beard))
        lit *= change_creases(view, changes[..., 3], skin, interocular, beard)
    else:
        lit *= view
    view[:] = np.rint(np.clip(lit, 0, 255, out=lit), out=lit)
    return result
