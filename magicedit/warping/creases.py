"""Creases of the skin, which come and go with muscles: frown lines, crow's feet, lines below the mouth.

Moved pixels keep their lines: brows that part keep the lines of a frown between them, and a smile keeps the
lines below its corners. So where a unit makes or removes creases, those of the photograph are deepened or
lifted: dark and bright bands a few hundredths of the interocular distance wide, in the logarithm of light.
Skin without creases stays as it is, and finer or fainter texture is kept. The areas are those in which FACS
describes lines of a unit (P. Ekman, W. Friesen, J. Hager, "Facial Action Coding System", 2002).
"""

from collections.abc import Mapping

import cv2
import numpy as np

from magicedit.faces.regions import region_polygon, smooth
from magicedit.warping.change import in_channels

# Ellipses of the subject's left half, mirrored on the right: centre across and below the point between the
# eyes, radii across and down, and how far around brows, eyes and lips nothing changes; interocular distances
# of the neutral mesh. Frown lines begin at the brows
AREAS: Mapping[str, tuple[float, float, float, float, float]] = {
    "forehead": (0.0, -0.62, 0.80, 0.26, 0.03),
    "frown": (0.0, -0.30, 0.26, 0.34, 0.015),
    "scowl": (0.0, -0.34, 0.55, 0.32, 0.015),
    "bridge": (0.0, -0.02, 0.18, 0.15, 0.03),
    "crow's feet": (0.88, 0.06, 0.20, 0.22, 0.03),
    "marionette": (0.47, 1.22, 0.15, 0.24, 0.03),
}
# By unit at intensity 5: what is added to the depth of an area's creases, as a share of it
CREASES: Mapping[str, Mapping[str, float]] = {
    "AU1": {"forehead": 1.0},
    "AU2": {"forehead": 0.8},
    "AU4": {"frown": 2.0},
    "AU6": {"crow's feet": 1.2},
    "AU9": {"bridge": 1.5},
    "AU12": {"crow's feet": 0.4, "marionette": -1.2},
    "AU15": {"marionette": 1.0},
}
_MOST = (-0.95, 0.9)  # a trace of a lifted crease stays
_LIFTED_AREAS = {"frown": "scowl"}  # bulges above the brows go with the lines between them
# Interocular distances, standard deviations: what is finer is texture, what is wider is the face's shape. A
# crease is deepened along its dark line alone, or its ridges would shine. Last: px that are finer at least
_LIFTED, _DEEPENED = (0.004, 0.075, 0.35), (0.006, 0.03, 0.6)
# Natural logarithms of light: what differs more is no crease; what is to be lifted and differs less, texture
_LIFTED_RANGE, _DEEPENED_RANGE, _TEXTURE = (-1.5, 0.3), (-1.0, 0.0), 0.02
# Hairs of a beard differ so many times as much as its average; interocular distances, standard deviations, of
# what is finer than they are apart, and of the average
_HAIRS, _ROUGH = 1.5, (0.02, 0.12)
_AROUND = 0.03  # interocular distances around brows, eyes and lips in which no skin is read
_DARK = 8.0  # levels of light that count as dark
_WORKED_AT = 80.0  # px an interocular distance at which wide blurs are made


def crease_amounts(request: Mapping[str, float]) -> dict[str, float]:
    """What a request, whole units' variations in steps, adds to the creases of each area that it changes."""
    amounts = amounts_of(request, CREASES, _MOST)
    return {_LIFTED_AREAS.get(area, area) if amount < 0 else area: amount for area, amount in amounts.items()}


def amounts_of(
    request: Mapping[str, float],
    shares: Mapping[str, Mapping[str, float]],
    limits: tuple[float, float],
    relaxed: float = 1.0,
) -> dict[str, float]:
    """Amounts of parts, within limits, that a request asks for; parts without any are absent.

    request: whole units' variations in steps. shares: unit -> part -> its amount at intensity 5. relaxed:
    what a step less counts, as a share of a step more.
    """
    amounts: dict[str, float] = {}
    for unit, steps in request.items():
        for part, share in shares.get(unit, {}).items():
            amount = share * steps / 5 * (1 if steps > 0 else relaxed)
            amounts[part] = amounts.get(part, 0.0) + amount
    return {part: float(np.clip(amount, *limits)) for part, amount in amounts.items() if amount}


def crease_areas(
    places: np.ndarray, pixel: float, shape: tuple[int, int]
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Where creases change on a neutral face's left half, (rows, columns) float32 of `shape`.

    places: (468, 2) px of its landmarks, the midline at x = 0. pixel: interocular distances of a px.

    Returns:
        weights 0..1 of AREAS, and 1 where there is nothing but skin, 0 at brows, eyes and lips.
    """
    rows, columns = shape
    kept = np.zeros((rows, columns), np.uint8)
    for name in ("left_brow", "left_eye", "lips"):
        polygon = region_polygon(places, "mediapipe478", name)
        cv2.fillPoly(kept, [np.rint(polygon * 16).astype(np.int32)], 1, shift=4)
    middle = region_polygon(places, "mediapipe478", "left_eye").mean(0)[1]
    across = np.arange(columns, dtype=np.float32)[None] * pixel
    down = (np.arange(rows, dtype=np.float32)[:, None] - np.float32(middle)) * pixel
    areas = {
        name: _beyond(kept, around / pixel)
        * smooth(1.5 * (1 - ((across - x) / wide) ** 2 - ((down - y) / tall) ** 2))
        for name, (x, y, wide, tall, around) in AREAS.items()
    }
    return areas, _beyond(kept, _AROUND / pixel)


def _beyond(kept: np.ndarray, width: float) -> np.ndarray:
    """1 beyond `width` px around what is 1 in `kept`, (rows, columns) uint8, 0 within; float32."""
    side = 2 * round(width) + 1
    grown = cv2.dilate(kept, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side)))
    return 1 - cv2.GaussianBlur(grown.astype(np.float32), (0, 0), 0.7 * width)


def change_creases(
    pixels: np.ndarray,
    gain: np.ndarray,
    skin: np.ndarray,
    interocular: float,
    beard: np.ndarray | None = None,
) -> np.ndarray:
    """Returns the picture with creases deepened or lifted, (h, w, 3) float32 levels.

    pixels: (h, w, 3) uint8 RGB. gain: (h, w), what is added to the depth of creases, as a share. skin: (h, w)
    0..1, where what surrounds a crease may be read: brows beside it would hide it. interocular: px. beard:
    (h, w) 0..1, where one may grow: there, what differs no more than its surroundings do is not lifted.
    """
    light = cv2.LUT(pixels, np.log(np.arange(256, dtype=np.float32) + _DARK))
    factor = min(1.0, _WORKED_AT / interocular)
    sums = _skin_light(light, skin, factor)

    def creases(fine: float, wide: float, least: float) -> np.ndarray:
        """(h, w, 3) natural logarithms of light by the skin's."""
        blurred = cv2.GaussianBlur(sums, (0, 0), wide * interocular * factor)
        around = cv2.resize(blurred[..., :3] / blurred[..., 3:], light.shape[1::-1])
        return np.subtract(
            cv2.GaussianBlur(light, (0, 0), max(fine * interocular, least)), around, out=around
        )

    picture = pixels.astype(np.float32)
    deeper, lifted = np.maximum(gain, 0), np.minimum(gain, 0)
    if deeper.any():
        depth = creases(*_DEEPENED)
        np.clip(depth, *_DEEPENED_RANGE, out=depth)
        depth *= in_channels(deeper)
        picture *= np.exp(depth, out=depth)
    if lifted.any():  # all channels by the same share, or what is left of a dark line would be orange
        depth = creases(*_LIFTED)
        grey = cv2.transform(depth, np.full((1, 3), 1 / 3, np.float32))
        removed = np.clip(grey, *_LIFTED_RANGE)
        kept = np.float32(_TEXTURE)
        if beard is not None:
            kept = np.maximum(_HAIRS * beard * _roughness(light, interocular, factor), kept)
        removed -= np.clip(removed, -kept, kept)
        share = np.divide(removed, grey, out=np.zeros_like(grey), where=removed != 0)
        depth *= in_channels(lifted * share)
        picture += _DARK
        picture *= cv2.exp(depth)
        picture -= _DARK
    return picture


def _roughness(light: np.ndarray, interocular: float, factor: float) -> np.ndarray:
    """(h, w) how much light (h, w, 3) differs from place to place, worked out at `factor` its size."""
    small = cv2.resize(light, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA).mean(-1)
    fine, around = (width * interocular * factor for width in _ROUGH)
    rough = cv2.GaussianBlur(np.abs(small - cv2.GaussianBlur(small, (0, 0), fine)), (0, 0), around)
    return cv2.resize(rough, light.shape[1::-1])


def _skin_light(light: np.ndarray, skin: np.ndarray, factor: float) -> np.ndarray:
    """Light (h, w, 3) weighted by skin (h, w), and these weights: (rows, columns, 4), `factor` as large."""
    height, across = light.shape[:2]
    small = max(round(across * factor), 1), max(round(height * factor), 1)
    weight = np.maximum(skin, 1e-3).astype(np.float32)
    sums = cv2.merge([*(channel * weight for channel in cv2.split(light)), weight])
    return cv2.resize(sums, small, interpolation=cv2.INTER_AREA)
