"""The seam between closed lips, found in the picture.

Landmarks of the lips' inner edges are a mesh's guess: they lie beside the dark line in which lips meet, or
apart on lips that touch. Lips that part along them tear: a strip of one lip hangs on the other.
"""

from collections.abc import Sequence

import cv2
import numpy as np

from magicedit.faces.frame import face_frame
from magicedit.faces.regions import smooth
from magicedit.warping.muscles import LOWER_LIP_EDGE, UPPER_LIP_EDGE

UPPER_LIP_OUTLINE = (61, 185, 40, 39, 37, 0, 267, 269, 270, 409, 291)
LOWER_LIP_OUTLINE = (61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291)
_LINES = UPPER_LIP_OUTLINE, UPPER_LIP_EDGE, LOWER_LIP_EDGE, LOWER_LIP_OUTLINE  # from above

# iod between the landmarks of lips that touch, and of those that may if the picture says so: all, and none
_TOUCH, _MAY_TOUCH = (0.018, 0.026), (0.054, 0.062)
_COLUMNS = 41  # from corner to corner
_REACH, _STEP = 0.09, 0.0025  # iod above and below the landmarks that are looked at, and between its rows
_FINE = 0.006  # iod, standard deviation: what is finer is texture
_WORKED_AT = 160.0  # px an interocular distance, at most
# The seam is darker than what lies so many iod above and below it; grey levels that this is by at least
_BESIDE, _FAINT = 0.025, 16.0
_WITHIN = 0.6  # of the way from the landmarks of the seam to the lips' outlines
# Costs, where the darkest place counts -1: of a place at _REACH and how much more at the corners, of a place
# beyond _WITHIN, and of 0, 1, ... rows from a column to the next
_FAR, _CORNERS, _BEYOND = 0.28, 4.0, 1.25
_BENDS = (0.0, 0.02, 0.09, 0.2)
_EVEN = 2.0  # columns, standard deviation of the path's smoothing
# Lips redden towards where they touch, teeth do not: natural logarithm of green by red of what lies between
# the edges, by the paler lip's, from no teeth to teeth, and its percentile
_PALE, _PALEST = (-0.018, -0.002), 85
_DARK = 25.0  # levels that keep colours of the dark from counting


def snap_seam(pixels: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """Returns landmarks (478, 2) px with both inner edges of lips that touch on the dark line between them.

    pixels: (height, width, 3) uint8 RGB. Lips that are apart keep their landmarks. The fainter the line, the
    nearer to the landmarks it is looked for.
    """
    landmarks = np.array(landmarks, np.float64)
    frame = face_frame(landmarks)
    lines = [landmarks[list(ids)] for ids in _LINES]
    seam, interocular, down = (lines[1] + lines[2]) / 2, frame.interocular, frame.rotation[1]
    apart = ((lines[2] - lines[1]) @ down).max() / interocular
    if apart >= _MAY_TOUCH[1]:
        return landmarks

    # 1. The mouth as it lies along the seam, and heights of its lines, iod
    knots, columns = np.linspace(0, len(seam) - 1, _COLUMNS), np.arange(len(seam))
    heights = np.stack([np.interp(knots, columns, (line - seam) @ down) for line in lines]) / interocular
    middle = np.stack([np.interp(knots, columns, side) for side in seam.T], -1)
    rows = np.arange(-_REACH, _REACH + _STEP / 2, _STEP)[:, None]
    mouth = _read(pixels, middle + rows[..., None] * down * interocular, interocular)
    if mouth is None:
        return landmarks
    touch = max(
        1 - _rises(apart, _TOUCH), (1 - _rises(apart, _MAY_TOUCH)) * _without_teeth(mouth, rows, heights)
    )
    if not touch:
        return landmarks

    # 2. The darkest path between lighter flesh, smooth and near the landmarks
    grey, beside = mouth.mean(-1), round(_BESIDE / _STEP)
    around = np.pad(grey, ((beside, beside), (0, 0)), mode="edge")
    dark = grey - (around[: -2 * beside] + around[2 * beside :]) / 2
    costs = dark / max(-dark.min(), _FAINT)
    corner = smooth(1 - 5 * (1 - np.abs(np.linspace(-1, 1, _COLUMNS))))
    costs += _FAR * (rows / _REACH) ** 2 * (1 + (_CORNERS - 1) * corner)
    costs += _BEYOND * ((rows < _WITHIN * heights[0]) | (rows > _WITHIN * heights[3]))
    path = rows[cheapest_path(costs, _BENDS), 0]
    path = cv2.GaussianBlur(path[None], (0, 0), _EVEN, borderType=cv2.BORDER_REPLICATE)[0]

    # 3. Both edges on it, and the corners along with them
    seam += np.interp(columns, knots, path)[:, None] * down * interocular
    corners = list(UPPER_LIP_OUTLINE[:: len(seam) - 1])
    landmarks[corners] += touch * path[[0, -1], None] * down * interocular
    for ids, line in zip((UPPER_LIP_EDGE, LOWER_LIP_EDGE), lines[1:3], strict=True):
        landmarks[list(ids)] = line + touch * (seam - line)
    return landmarks


def _rises(value: float, limits: tuple[float, float]) -> float:
    """0..1, from the first to the second limit: a decision would make the lips of a film jump."""
    return float(smooth((value - limits[0]) / (limits[1] - limits[0])))


def _read(pixels: np.ndarray, at: np.ndarray, interocular: float) -> np.ndarray | None:
    """A picture's colours at places (rows, columns, 2) px, (rows, columns, 3) float32; None outside of it."""
    low = np.maximum(np.floor(at.min((0, 1))).astype(int) - 2, 0)
    high = np.maximum(np.ceil(at.max((0, 1))).astype(int) + 3, 0)
    view = pixels[low[1] : high[1], low[0] : high[0]]
    if not view.size:
        return None
    factor = min(1.0, _WORKED_AT / interocular)
    sides = [max(round(side * factor), 1) for side in view.shape[1::-1]]
    small = cv2.resize(view, sides, interpolation=cv2.INTER_AREA).astype(np.float32)
    small = cv2.GaussianBlur(small, (0, 0), max(_FINE * interocular * factor, 0.5))
    at = (at - low + 0.5) * np.divide(sides, view.shape[1::-1]) - 0.5
    x, y = np.moveaxis(at.astype(np.float32), -1, 0)
    return cv2.remap(small, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _without_teeth(mouth: np.ndarray, rows: np.ndarray, heights: np.ndarray) -> float:
    """0..1: how surely nothing paler than the lips lies between the landmarks of their edges.

    mouth: (rows, columns, 3) RGB. rows: (rows, 1), heights: (4, columns) of _LINES, iod.
    """
    red, green, _ = cv2.split(cv2.GaussianBlur(mouth, (0, 0), 1.0))
    pale = np.log((green + _DARK) / (red + _DARK))
    above, upper, lower, below = heights
    flesh = (
        (rows >= np.maximum(0.7 * above, upper - 0.06)) & (rows <= np.maximum(0.3 * above, upper - 0.025)),
        (rows >= np.minimum(0.3 * below, lower + 0.025)) & (rows <= np.minimum(0.7 * below, lower + 0.06)),
    )
    lips = [np.ma.median(np.ma.array(pale, mask=~lip), 0) for lip in flesh]
    inside = (rows >= upper) & (rows <= lower)
    middle = slice(_COLUMNS // 5, -(_COLUMNS // 5))
    between = (pale - np.ma.maximum(*lips))[:, middle][inside[:, middle]]
    known = between.compressed()
    return 1 - _rises(np.percentile(known, _PALEST), _PALE) if known.size else 0.0


def cheapest_path(costs: np.ndarray, bends: Sequence[float]) -> np.ndarray:
    """Returns the rows (columns,) of the path of least cost through costs (rows, columns), left to right.

    bends: what it costs to go 0, 1, 2, ... rows up or down from one column to the next; no more are gone.
    """
    rows, columns = costs.shape
    numbers = np.arange(rows)
    moves = np.arange(len(bends) - 1, -len(bends), -1)[:, None]
    before = (numbers - moves).clip(0, rows - 1)  # (moves, rows)
    bent = np.asarray(bends)[np.abs(moves)]
    best, back = costs.copy(), np.zeros(costs.shape, int)
    for x in range(1, columns):
        ways = best[before, x - 1] + bent
        chosen = ways.argmin(0)
        back[:, x] = before[chosen, numbers]
        best[:, x] += ways[chosen, numbers]
    path = np.zeros(columns, int)
    path[-1] = best[:, -1].argmin()
    for x in range(columns - 1, 0, -1):
        path[x - 1] = back[path[x], x]
    return path
