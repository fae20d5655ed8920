"""Eyelids as sheets of skin over the eyeball: their outlines, and how they look when they move.

Skin that an open eye hides in its fold appears on a closing lid. It is drawn from the skin that the photograph
shows: the visible lid, the brow bone and the skin below the eye give its colour, the latter its grain. The
lashes are those of the photograph, turned downwards.
"""

from dataclasses import dataclass, replace

import cv2
import numpy as np

from magicedit.faces.regions import smooth

# MediaPipe's landmarks from the corner on the subject's right to the other one; the subject's left eye first
_UPPER = ((362, 398, 384, 385, 386, 387, 388, 466, 263), (33, 246, 161, 160, 159, 158, 157, 173, 133))
_LOWER = ((362, 382, 381, 380, 374, 373, 390, 249, 263), (33, 7, 163, 144, 145, 153, 154, 155, 133))
_FOLD = ((463, 414, 286, 258, 257, 259, 260, 467, 446), (226, 247, 30, 29, 27, 28, 56, 190, 243))
_RANGE, _SAMPLES = (-0.6, 1.6), 353  # across the eye: where curves are known, and at how many places
# Eye widths
_LEAST_FOLD = 0.05  # the fold above the lid's margin, at least
_LASHES = 0.11  # length of lashes above the margin
_LOWER_SKIN = 0.22  # below the lower lid: how far the skin follows it
_UPPER_SKIN = 0.14  # above the fold: how far the skin follows a lid that rises
_BONE = (0.03, 0.12)  # above the fold: skin of the brow bone
_UNDER = (0.13, 0.30)  # below the lower lid's margin: skin that gives grain and light
_GRAIN = 0.045  # standard deviation below which texture is grain
_LINE = 0.020  # half thickness of the line of lashes
_STRETCH = (1.25, 2.2)  # of the visible lid: the photograph's own skin alone, drawn skin
_COLUMNS, _ROWS = 48, 10  # samples of skin along and across a strip


@dataclass(frozen=True, eq=False)
class LidCurves:
    """The outlines of one eye's lids in a window of a photograph.

    origin: (2,) px, the corner on the subject's right. width: px between the corners. across_axis, down_axis:
    (2,) unit vectors. upper, lower, fold: eye widths down from the line of the corners, at `_SAMPLES` places
    across it.
    """

    origin: np.ndarray
    width: float
    across_axis: np.ndarray
    down_axis: np.ndarray
    upper: np.ndarray
    lower: np.ndarray
    fold: np.ndarray

    def across(self, points: np.ndarray) -> np.ndarray:
        """Points (..., 2) px -> 0 at the corner on the subject's right .. 1 at the other one."""
        return _dot(points - self.origin.astype(points.dtype), self.across_axis / self.width)

    def down(self, points: np.ndarray) -> np.ndarray:
        """Points (..., 2) px -> eye widths down from the line of the corners."""
        return _dot(points - self.origin.astype(points.dtype), self.down_axis / self.width)

    def vector_down(self, vector: np.ndarray) -> float:
        """A displacement (2,) px -> eye widths downwards."""
        return float(vector @ self.down_axis) / self.width

    def at(self, curve: np.ndarray, across: np.ndarray) -> np.ndarray:
        """A curve's values at places across the eye."""
        low, high = _RANGE
        columns = np.clip((across - low) * ((_SAMPLES - 1) / (high - low)), 0, _SAMPLES - 1)
        flat = np.atleast_2d(columns).astype(np.float32)
        values = cv2.remap(curve.astype(np.float32)[None], flat, np.zeros_like(flat), cv2.INTER_LINEAR)
        return values.reshape(np.shape(across))

    def depth(self, points: np.ndarray) -> np.ndarray:
        """Points (..., 2) px -> 0 at the upper lid .. 1 at the lower lid; may lie beyond."""
        u = self.across(points)
        upper, lower = self.at(self.upper, u), self.at(self.lower, u)
        return (self.down(points) - upper) / np.maximum(lower - upper, 0.02)

    def inside(self, points: np.ndarray, hidden: float, seen: float | None = None) -> np.ndarray:
        """Weight 0..1 of points (..., 2) px inside the opening: 0 up to depth `hidden`, 1 from `seen`."""
        seen = 2 * hidden if seen is None else seen
        depth, u = self.depth(points), self.across(points)
        nearest = np.minimum(np.minimum(depth, 1 - depth), np.minimum(u, 1 - u) * 2)
        return np.clip((nearest - hidden) / (seen - hidden), 0, 1)

    def place(self, across: np.ndarray, depth: np.ndarray) -> np.ndarray:
        """Across the eye and depth in the opening (...) -> (..., 2) px."""
        upper, lower = self.at(self.upper, across), self.at(self.lower, across)
        return self.point(across, upper + depth * (lower - upper))

    def point(self, across: np.ndarray, down: np.ndarray) -> np.ndarray:
        """Eye widths across and down (...) -> (..., 2) float32 px."""
        across, down = (np.asarray(values, np.float32)[..., None] for values in (across, down))
        axes = (
            (self.width * self.across_axis).astype(np.float32),
            (self.width * self.down_axis).astype(np.float32),
        )
        return self.origin.astype(np.float32) + across * axes[0] + down * axes[1]

    def clamped(self, points: np.ndarray, edge: float) -> np.ndarray:
        """Points (..., 2) px, those outside the opening moved up or down into it, `edge` of its height deep."""
        u, depth = np.clip(self.across(points), 0.02, 0.98), self.depth(points)
        return self.place(u, np.clip(depth, edge, 1 - edge))

    def moved(self, upper: np.ndarray, lower: np.ndarray) -> "LidCurves":
        """The curves with other margins."""
        return replace(self, upper=upper, lower=lower)


def lid_curves(landmarks: np.ndarray, side: int, shape: tuple[int, int]) -> LidCurves:
    """Returns the outlines of the lids of the subject's left (0) or right (1) eye; landmarks (478, 2) px."""
    first, last = landmarks[_UPPER[side][0]], landmarks[_UPPER[side][-1]]
    width = float(np.linalg.norm(last - first))
    along = (last - first) / width
    down = np.array([-along[1], along[0]])

    def in_eye(ids: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        offsets = (landmarks[list(ids)] - first) / width
        return offsets @ along, offsets @ down

    places = np.linspace(*_RANGE, _SAMPLES)
    upper, lower = (_margin(*in_eye(ids[side]), places) for ids in (_UPPER, _LOWER))
    lower = np.maximum(lower, upper)
    u, v = in_eye(_FOLD[side])
    fit = np.polynomial.Polynomial.fit(u, v, 4)
    fold = np.minimum(fit(np.clip(places, u.min(), u.max())), upper - _LEAST_FOLD)
    return LidCurves(first, width, along, down, upper, lower, fold)


def _margin(u: np.ndarray, v: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Returns a lid's margin at places across the eye, smooth through points (u, v), 0 at and beyond corners."""

    def terms(u: np.ndarray) -> np.ndarray:
        u = np.clip(u, 0, 1)
        arch = u * (1 - u)
        return np.stack([np.sqrt(arch), arch, arch * u, arch * u * u], -1)

    basis = terms(u)
    fitted = np.linalg.solve(basis.T @ basis + 1e-4 * np.eye(basis.shape[1]), basis.T @ v)
    return terms(places) @ fitted


def saturating(distance: np.ndarray, target: float | np.ndarray, source: float | np.ndarray) -> np.ndarray:
    """Maps distances 0..target to 0..source: unchanged near 0, stretched or compressed towards the end."""
    target = np.maximum(target, 1e-3)
    part = np.clip(distance / target, 0, 1)
    missing = target - source
    power = np.where(missing > 0, np.clip(target / np.maximum(missing, 1e-6), 1, 6), 2)
    return part * target - missing * part**power


def draw_lids(
    picture: np.ndarray, eyeball: np.ndarray, lids: LidCurves, new: LidCurves, closure: float
) -> np.ndarray:
    """Returns the window with its lids moved from `lids` to `new` over the eyeball.

    picture, eyeball: (h, w, 3) float32; the latter is shown inside the new opening. closure: 0 .. 1 closed.
    Pixels away from the lids keep their values exactly.
    """
    y, x = np.indices(picture.shape[:2], dtype=np.float32)
    here = np.stack([x, y], -1)
    u, v = lids.across(here), lids.down(here)
    upper, lower = new.at(new.upper, u), new.at(new.lower, u)
    drop = upper - lids.at(lids.upper, u)

    # 1. Skin
    above = _upper_skin(picture, lids, new, u, v)
    rise = lids.at(lids.lower, u) - lower
    follow = smooth(1 - np.maximum(v - lower, 0) / _LOWER_SKIN)
    below = _read_column(picture, lids, u, v + rise * follow)

    # 2. The eyeball in the lid's shadow
    shadow = smooth(drop / 0.12) * 0.45 * np.exp(-np.maximum(v - upper, 0) / 0.06)
    eyeball = eyeball * (1 - shadow)[..., None]

    # 3. One over the other
    soft = max(1.0, 0.018 * lids.width) / lids.width
    lower_cover = smooth((v - lower) / soft + 0.5)[..., None]
    upper_cover = smooth((upper - v) / soft + 0.5)[..., None]
    lined = eyeball + lower_cover * (below - eyeball)
    lined = lined + upper_cover * (above - lined)

    # 4. Lashes
    turned = float(smooth(np.float64(closure) / 0.6))
    if turned:
        lined = lined * np.exp(-turned * _lashes(picture, lids, u, v - upper))[..., None]

    # 5. Nothing else changes
    beside = smooth(np.minimum(u + 0.30, 1.30 - u) / 0.25)
    fold = lids.at(lids.fold, u)
    vertical = smooth((v - fold + _UPPER_SKIN) / 0.10) * smooth(
        (lids.at(lids.lower, u) + _LOWER_SKIN - v) / 0.05
    )
    weight = (beside * vertical)[..., None]
    return picture + weight * (lined - picture)


def _upper_skin(
    picture: np.ndarray, lids: LidCurves, new: LidCurves, u: np.ndarray, v: np.ndarray
) -> np.ndarray:
    """Returns the upper lid's skin, (h, w, 3) float32, valid above the new margin; u, v: each pixel's place."""
    old, margin, fold = lids.at(lids.upper, u), new.at(new.upper, u), lids.at(lids.fold, u)
    drop = margin - old

    # The photograph's own skin; lashes move with the margin
    start = np.where(drop >= 0, fold, fold - _UPPER_SKIN)
    whole = np.minimum(_LASHES, 0.5 * (old - start))
    moving = smooth((v - start) / np.maximum(margin - whole - start, 1e-3))
    own = _read_column(picture, lids, u, v - drop * moving)
    stretch = float(np.max((new.upper - lids.fold) / (lids.upper - lids.fold)))
    drawn_share = float(smooth((np.float64(stretch) - _STRETCH[0]) / (_STRETCH[1] - _STRETCH[0])))
    if not drawn_share:
        return own

    # Drawn skin below the fold
    down = np.clip((v - fold) / np.maximum(margin - fold, 1e-3), 0, 1)
    drawn = _drawn_skin(picture, lids, u, v, down)
    visible = np.maximum(old - whole - fold, 0.02)
    source = fold + saturating(np.maximum(v - fold, 0), margin - fold, visible)
    unlashed = _read_column(picture, lids, u, np.where(v > fold, source, v))
    share = smooth((v - fold + 0.01) / np.clip(0.7 * visible, 0.03, 0.12))
    share = share * np.clip(np.minimum(u + 0.06, 1.06 - u) / 0.12, 0, 1)
    skin = unlashed + (0.9 * share)[..., None] * (drawn - unlashed)
    return own + drawn_share * (skin - own)


def _drawn_skin(
    picture: np.ndarray, lids: LidCurves, u: np.ndarray, v: np.ndarray, down: np.ndarray
) -> np.ndarray:
    """Returns skin for a closed lid, (h, w, 3) float32. down: 0 at the fold .. 1 at the margin."""
    bone, lid, under = _skin_colours(picture, lids)  # (columns, 3) each, logarithms
    reference = 0.5 * (bone + under)
    darker = (lid - reference).mean(-1, keepdims=True)
    trust = 0.15 + 0.75 * smooth((darker + 0.7) / 0.6)
    colour = reference + trust * (lid - reference)
    top = bone + 0.5 * (colour - bone)
    at = np.clip(u, 0, 1).astype(np.float32) * (_COLUMNS - 1)
    upper, lower = (
        cv2.remap(values[None].astype(np.float32), at, np.zeros_like(at), cv2.INTER_LINEAR)
        for values in (top, colour)
    )
    light = upper + smooth(down)[..., None] * (lower - upper)
    # The eyeball below is round
    light += (0.10 * np.exp(-(((down - 0.5) / 0.32) ** 2)) - 0.05)[..., None]
    light += (0.05 - 0.20 * (np.clip(u, 0, 1) - 0.5) ** 2 * 4 * 0.5)[..., None]

    grain = np.log(picture + 8)
    grain = grain - cv2.GaussianBlur(grain, (0, 0), max(0.8, _GRAIN * lids.width))
    shift = _UNDER[0] + float(np.max(lids.lower) - np.min(lids.fold))
    grain = _read_column(grain, lids, u, v + shift)
    most = 2.5 * float(np.median(np.abs(grain))) + 1e-3
    return np.exp(light + np.clip(grain, -most, most)) - 8


def _skin_colours(picture: np.ndarray, lids: LidCurves) -> list[np.ndarray]:
    """Returns the colours of the brow bone, the visible lid and the skin below the eye, (columns, 3) each.

    They are logarithms of levels + 8, smooth along the eye; of each strip across it the brighter half counts,
    which lashes, lines and shadows of folds do not reach.
    """
    u = np.linspace(0, 1, _COLUMNS)
    part = np.linspace(0, 1, _ROWS)[:, None]
    upper, lower, fold = (lids.at(curve, u) for curve in (lids.upper, lids.lower, lids.fold))
    strips = (
        fold - _BONE[1] + part * (_BONE[1] - _BONE[0]),
        fold + part * np.maximum(upper - fold - 0.03, 0.02),
        lower + _UNDER[0] + part * (_UNDER[1] - _UNDER[0]),
    )
    colours = []
    for strip in strips:
        seen = np.log(np.maximum(_read_column(picture, lids, np.broadcast_to(u, strip.shape), strip), 0) + 8)
        brightest = np.argsort(seen.mean(-1), 0)[_ROWS // 2 :]
        colour = np.take_along_axis(seen, brightest[..., None], 0).mean(0)  # (columns, 3)
        colours.append(
            cv2.GaussianBlur(colour[None], (0, 0), 0.09 * _COLUMNS, borderType=cv2.BORDER_REPLICATE)[0]
        )
    return colours


def _lashes(picture: np.ndarray, lids: LidCurves, u: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Returns the darkness of lashes, (h, w) float32 logarithms of light; below: eye widths below the margin."""
    grey = np.log(cv2.cvtColor(np.maximum(picture, 0), cv2.COLOR_RGB2GRAY) + 8)
    place = np.linspace(0, 1, _COLUMNS)
    rows = np.linspace(-0.07, 0.02, _ROWS)[:, None]
    upper = lids.at(lids.upper, place)
    margin = _read_column(grey, lids, np.broadcast_to(place, (_ROWS, _COLUMNS)), upper + rows)
    _, lid, under = (colour.mean(-1) for colour in _skin_colours(picture, lids))
    darkness = np.clip(np.maximum(lid, under) - margin.min(0), 0.35, 1.5)  # (columns,)
    darkness = cv2.GaussianBlur(darkness[None].astype(np.float32), (0, 0), 0.07 * _COLUMNS)
    at = np.clip(u, 0, 1).astype(np.float32) * (_COLUMNS - 1)
    darkness = cv2.remap(darkness, at, np.zeros_like(at), cv2.INTER_LINEAR)
    thick = max(_LINE, 0.8 / lids.width)
    line = 0.8 * np.exp(-(((below - 0.3 * thick) / thick) ** 2)) * darkness

    # The photograph's lashes, turned down and shorter
    width = 2 * max(round(0.035 * lids.width), 1) + 1
    fine = cv2.morphologyEx(grey, cv2.MORPH_CLOSE, np.ones((1, width), np.uint8)) - grey
    old = lids.at(lids.upper, u)
    hairs = _read_column(fine, lids, u, old - 1.2 * below)
    hairs = np.clip(hairs, 0, 0.8) * smooth(below / 0.01) * smooth((0.09 - below) / 0.05)
    ends = smooth(np.minimum(u + 0.02, 1.02 - u) / 0.08)
    return ends * np.maximum(line, hairs)


def _read_column(picture: np.ndarray, lids: LidCurves, across: np.ndarray, down: np.ndarray) -> np.ndarray:
    """Returns a picture (h, w) or (h, w, 3) float32 at places of the eye, eye widths across and down."""
    places = lids.point(across, down)
    return cv2.remap(picture, places, None, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)


def _dot(vectors: np.ndarray, axis: np.ndarray) -> np.ndarray:
    return vectors[..., 0] * vectors.dtype.type(axis[0]) + vectors[..., 1] * vectors.dtype.type(axis[1])
