"""Eyelids as sheets of skin over the eyeball: their outlines, and how they look when they move.

Skin that an open eye hides in its fold appears on a closing lid. It is drawn from the skin that the
photograph shows: the visible lid, the brow bone and the skin below the eye give its colour, the last its
grain. The lashes are as dark as those of the photograph, and hang down.
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
_RIM = 0.035  # thickness of the lower lid's rim
_LINE = 0.028  # thickness of the line of lashes
_STRETCH = (1.15, 1.9)  # of the visible lid: the photograph's own skin alone, drawn skin
_LASH_WIDTH = 0.12  # dark lines up to this wide are lashes and their shadow
_STRANDS = 210.0  # radians of the pattern of lashes across the eye: 33 of them
_LASH_DARKNESS = (0.5, 1.8)  # natural logarithms of light, least and most
_HUES = (0.25, 0.25, 0.5)  # shares of the brow bone, the visible lid and the skin below the eye
_DARK = 8.0  # levels of light that count as dark
_WORKED_AT = 80.0  # px of an eye width at which lashes are lifted
_COLUMNS, _ROWS = 48, 10  # samples of skin along and across a strip


@dataclass(frozen=True, eq=False)
class LidCurves:
    """The outlines of one eye's lids in a window of a photograph.

    origin: (2,) px, the corner on the subject's right. width: px between the corners. across_axis, down_axis:
    (2,) unit vectors. upper, lower, fold: eye widths down from the line of the corners, at `_SAMPLES` places
    across it. outer: whether the corner at 1 is the outer one.
    """

    origin: np.ndarray
    width: float
    across_axis: np.ndarray
    down_axis: np.ndarray
    upper: np.ndarray
    lower: np.ndarray
    fold: np.ndarray
    outer: bool

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

    def nearness(self, points: np.ndarray) -> np.ndarray:
        """Distance of points (..., 2) px from the nearest lid in heights of the opening, negative outside."""
        depth, u = self.depth(points), self.across(points)
        return np.minimum(np.minimum(depth, 1 - depth), np.minimum(u, 1 - u) * 2)

    def inside(self, points: np.ndarray, hidden: float, seen: float) -> np.ndarray:
        """Weight 0..1 of points (..., 2) px in the opening by `nearness`: 0 up to `hidden`, 1 from `seen`."""
        return np.clip((self.nearness(points) - hidden) / (seen - hidden), 0, 1)

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
        """Points (..., 2) px, moved up or down into the opening where they lie outside; `edge`: its share."""
        u, depth = np.clip(self.across(points), 0.02, 0.98), self.depth(points)
        return self.place(u, np.clip(depth, edge, 1 - edge))

    def seen_from(self, x: int, y: int) -> "LidCurves":
        """The curves in a part of the window that begins at (x, y)."""
        return replace(self, origin=self.origin - (x, y))

    def moved(self, upper: np.ndarray, lower: np.ndarray) -> "LidCurves":
        """The curves with other margins."""
        return replace(self, upper=upper, lower=lower)


def lid_curves(landmarks: np.ndarray, side: int) -> LidCurves:
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
    return LidCurves(first, width, along, down, upper, lower, fold, outer=side == 0)


def _margin(u: np.ndarray, v: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Returns a lid's margin at places across the eye, smooth near points (u, v), 0 beyond corners."""

    def terms(u: np.ndarray) -> np.ndarray:
        u = np.clip(u, 0, 1)
        arch = u * (1 - u)
        return np.stack([np.sqrt(arch), arch, arch * u, arch * u * u], -1)

    basis = terms(u)
    fitted = np.linalg.solve(basis.T @ basis + 1e-4 * np.eye(basis.shape[1]), basis.T @ v)
    return terms(places) @ fitted


def saturating(distance: np.ndarray, target: float | np.ndarray, source: float | np.ndarray) -> np.ndarray:
    """Maps distances 0..target to 0..source: unchanged near 0, stretched or compressed towards the end."""
    target = np.maximum(target, np.float32(1e-3))
    part = np.clip(distance / target, 0, 1)
    missing = target - source
    power = np.where(missing > 0, np.clip(target / np.maximum(missing, 1e-6), 1, 6), 2)
    return part * target - missing * part**power


def reduced(picture: np.ndarray, times: float) -> tuple[np.ndarray, float]:
    """Returns a picture (h, w, 3) drawn `times` smaller, never larger, and the factor of its size."""
    factor = min(1.0, 1 / times)
    size = [max(round(length * factor), 1) for length in picture.shape[1::-1]]
    return (cv2.resize(picture, size, interpolation=cv2.INTER_AREA) if factor < 1 else picture), factor


def draw_lids(picture: np.ndarray, eyeball: np.ndarray, lids: LidCurves, new: LidCurves) -> np.ndarray:
    """Returns the window with its lids moved from `lids` to `new` over the eyeball.

    picture, eyeball: (h, w, 3) float32; the latter is shown inside the new opening.
    Pixels away from the lids keep their values exactly.
    """
    y, x = np.indices(picture.shape[:2], dtype=np.float32)
    here = np.stack([x, y], -1)
    u, v = lids.across(here), lids.down(here)
    upper, lower = new.at(new.upper, u), new.at(new.lower, u)
    drop = upper - lids.at(lids.upper, u)

    # 1. Skin
    above = _own_skin(picture, lids, u, v, drop)
    stretch = np.max((new.upper - lids.fold) / (lids.upper - lids.fold))
    drawn = float(smooth((stretch - _STRETCH[0]) / (_STRETCH[1] - _STRETCH[0])))
    if drawn:
        bare = _without_lashes(picture, lids, u, v)
        colours = _skin_colours(bare, lids)
        above = above + drawn * (_unfolded_skin(bare, lids, colours, u, v, upper) - above)
    rise = lids.at(lids.lower, u) - lower
    follow = smooth(1 - np.maximum(v - lower, 0) / _LOWER_SKIN)
    # Landmarks lie up to a rim's width inside the eye, and closed lids hide the lower one's rim
    below = _read(picture, lids, u, v + (rise + _RIM * np.clip(rise / 0.03, 0, 1)) * follow)

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
    height = np.max(lids.lower - lids.upper)
    turned = drawn * float(smooth(np.max(new.upper - lids.upper) / (0.6 * height)))
    if turned:
        lined = lined * np.exp(-turned * _lashes(picture, lids, colours, u, v - upper))[..., None]

    # 5. Nothing else changes
    beside = smooth(np.minimum(u + 0.34, 1.34 - u) / 0.15)
    fold, under = lids.at(lids.fold, u), lids.at(lids.lower, u) + _LOWER_SKIN
    weight = beside * smooth((v - fold + _UPPER_SKIN) / 0.10) * smooth((under - v) / 0.05)
    return picture + weight[..., None] * (lined - picture)


def _own_skin(
    picture: np.ndarray, lids: LidCurves, u: np.ndarray, v: np.ndarray, drop: np.ndarray
) -> np.ndarray:
    """Returns the photograph's own skin of an upper lid moved down by `drop`, (h, w, 3) float32.

    u, v: each pixel's place, eye widths. The lid stretches below its fold; its lashes move with its margin.
    """
    old, fold = lids.at(lids.upper, u), lids.at(lids.fold, u)
    start = np.where(drop >= 0, fold, fold - _UPPER_SKIN)
    whole = np.minimum(_LASHES, 0.5 * (old - start))
    moving = smooth((v - start) / np.maximum(old + drop - whole - start, 1e-3))
    return _read(picture, lids, u, v - drop * moving)


def _unfolded_skin(
    bare: np.ndarray,
    lids: LidCurves,
    colours: list[np.ndarray],
    u: np.ndarray,
    v: np.ndarray,
    margin: np.ndarray,
) -> np.ndarray:
    """Returns the skin of an upper lid drawn out of its fold, (h, w, 3) float32.

    bare: the photograph without lashes. colours: see `_skin_colours`. u, v: each pixel's place, eye widths.
    margin: the lid's new margin there.
    """
    old, fold = lids.at(lids.upper, u), lids.at(lids.fold, u)
    visible = np.maximum(old - 0.03 - fold, 0.02)
    source = fold + saturating(np.maximum(v - fold, 0), margin - fold, visible)
    own = _read(bare, lids, u, np.where(v > fold, source, v))
    down = np.clip((v - fold) / np.maximum(margin - fold, 1e-3), 0, 1)
    share = smooth((v - fold + 0.04) / np.clip(visible + 0.02, 0.11, 0.16))
    outward = u if lids.outer else 1 - u
    share = share * smooth((outward + 0.04) / 0.20) * smooth((1.12 - outward) / 0.26)
    share = share * smooth((margin + 0.04 - v) / 0.04)
    return own + (0.92 * share)[..., None] * (_drawn_skin(bare, lids, colours, u, v, down) - own)


def _drawn_skin(
    bare: np.ndarray,
    lids: LidCurves,
    colours: list[np.ndarray],
    u: np.ndarray,
    v: np.ndarray,
    down: np.ndarray,
) -> np.ndarray:
    """Returns skin for a closed lid, (h, w, 3) float32. down: 0 at the fold .. 1 at the margin."""
    # 1. Hue: brows make the bone grey, and the eye shines on the visible lid
    light_of = [colour.mean(-1, keepdims=True) for colour in colours]
    hue_of = [colour - light for colour, light in zip(colours, light_of, strict=True)]
    hue = np.average(hue_of, 0, _HUES)

    # 2. Light: a dark lid is shadow, lashes or make-up, which do not stretch
    reference = 0.5 * (light_of[0] + light_of[2])
    darker = light_of[1] - reference
    lower = reference + darker * (0.10 + 0.60 * smooth((darker + 0.45) / 0.45))
    upper = light_of[0] + 0.3 * (lower - light_of[0])
    upper, lower = (_along_eye(values + hue, u) for values in (upper, lower))
    light = upper + smooth(1.5 * down)[..., None] * (lower - upper)
    # The eyeball below is round
    beside = 4 * (np.clip(u, 0, 1) - 0.5) ** 2
    light += (0.14 * np.exp(-(((down - 0.5) / 0.3) ** 2)) * (1 - beside) - 0.06 * beside - 0.03)[..., None]

    grain = np.log(bare + _DARK)
    small, factor = reduced(grain, _GRAIN * lids.width / 2)
    small = cv2.GaussianBlur(small, (0, 0), max(0.8, _GRAIN * lids.width * factor))
    grain = grain - cv2.resize(small, grain.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    shift = _UNDER[0] + float(np.max(lids.lower) - np.min(lids.fold))
    most = 2.0 * float(np.median(np.abs(grain))) + 1e-3
    return np.exp(light + np.clip(_read(grain, lids, u, v + shift), -most, most)) - _DARK


def _without_lashes(picture: np.ndarray, lids: LidCurves, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Returns the picture, (h, w, 3) float32, with lashes and dark lines around the upper lid's margin lifted
    to the light of the skin beside them."""
    small, factor = reduced(picture, lids.width / _WORKED_AT)
    light = np.log(np.maximum(small, 0) + _DARK)
    # The white of the eye is no skin to lift lashes to
    across, down = (cv2.resize(values, small.shape[1::-1]) for values in (u, v))
    upper, lower = (lids.at(curve, across) for curve in (lids.upper, lids.lower))
    eyeball = (down > upper - 0.02) & (down < lower + 0.02) & (across > 0) & (across < 1)
    bone, _, under = _skin_colours(picture, lids)
    skin = light.copy()
    skin[eyeball] = 0.5 * (bone + under).mean(0)
    width = 2 * max(round(_LASH_WIDTH * lids.width * factor), 1) + 1
    closed = cv2.morphologyEx(
        skin, cv2.MORPH_CLOSE, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (width, width))
    )
    closed = cv2.GaussianBlur(closed, (0, 0), 0.02 * lids.width * factor + 0.3)
    lift = cv2.resize(np.maximum(closed - light, 0), picture.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    above = v - lids.at(lids.fold, u) + 0.07
    outward = u if lids.outer else 1 - u
    around = smooth(above / 0.08) * smooth((0.10 - v) / 0.05)
    around = around * smooth((outward - 0.04) / 0.10) * smooth((1.30 - outward) / 0.12)
    return (picture + _DARK) * np.exp(around[..., None] * lift) - _DARK


def _skin_colours(bare: np.ndarray, lids: LidCurves) -> list[np.ndarray]:
    """Returns the colours of the brow bone, the visible lid and the skin below the eye, (columns, 3) each.

    They are logarithms of levels + `_DARK`, smooth along the eye; of each strip across it the brighter part
    counts, which lashes, lines and shadows of folds do not reach.
    """
    u = np.linspace(0.12, 0.88, _COLUMNS)
    part = np.linspace(0, 1, _ROWS)[:, None]
    upper, lower, fold = (lids.at(curve, u) for curve in (lids.upper, lids.lower, lids.fold))
    strips = (
        fold - _BONE[1] + part * (_BONE[1] - _BONE[0]),
        fold + part * 0.6 * (upper - fold),
        lower + _UNDER[0] + part * (_UNDER[1] - _UNDER[0]),
    )
    colours = []
    for strip in strips:
        seen = _read(bare, lids, np.broadcast_to(u, strip.shape), strip)
        seen = np.log(np.maximum(seen, 0) + _DARK)  # (rows, columns, 3)
        brightest = np.argsort(seen.mean(-1), 0)[_ROWS // 2 :]
        colour = np.take_along_axis(seen, brightest[..., None], 0).mean(0)
        blurred = cv2.GaussianBlur(colour[None], (0, 0), 0.12 * _COLUMNS, borderType=cv2.BORDER_REPLICATE)
        colours.append(blurred[0])
    return colours


def _lashes(
    picture: np.ndarray, lids: LidCurves, colours: list[np.ndarray], u: np.ndarray, below: np.ndarray
) -> np.ndarray:
    """Returns the darkness of lashes, (h, w) float32 logarithms; below: eye widths below the margin."""
    # 1. How dark the margin is in the photograph
    grey = np.log(cv2.cvtColor(np.maximum(picture, 0), cv2.COLOR_RGB2GRAY) + _DARK)
    place = np.linspace(0.12, 0.88, _COLUMNS)
    rows = np.linspace(-0.08, -0.005, _ROWS)[:, None]
    margin = _read(grey, lids, np.broadcast_to(place, (_ROWS, _COLUMNS)), lids.at(lids.upper, place) + rows)
    skin = np.maximum(colours[1], colours[2]).mean(-1)
    darkness = np.clip(0.9 * (skin - margin.min(0)), *_LASH_DARKNESS).astype(np.float32)
    darkness = cv2.GaussianBlur(darkness[None], (0, 0), 0.1 * _COLUMNS, borderType=cv2.BORDER_REPLICATE)[0]
    darkness = _along_eye(darkness[:, None], u)[..., 0]

    # 2. How long its hairs are, and their strands where the photograph could show them
    width = 2 * max(round(0.035 * lids.width), 1) + 1
    fine = cv2.morphologyEx(grey, cv2.MORPH_CLOSE, np.ones((width, width), np.uint8)) - grey
    hairs = np.clip(2 * _read(fine, lids, u, lids.at(lids.upper, u) - 1.1 * below), 0, 1)
    outward = u if lids.outer else 1 - u
    fanned = outward - 0.9 * np.maximum(below, 0) * (outward - 0.35)
    strands = 0.5 + 0.25 * (np.sin(_STRANDS * fanned) + np.sin(0.618 * _STRANDS * fanned + 2 * outward))
    shown = float(smooth((lids.width - 60) / 80))
    length = 0.45 * _LINE + 0.02 * hairs + 0.018 * (1 + shown * (2 * strands - 1)) * smooth(2 * outward)

    # 3. A line that is thin at the nose and thick at the temple, from which they hang
    thick = np.maximum(_LINE * (0.5 + 0.5 * smooth(outward / 0.6)), 0.7 / lids.width)
    line = np.exp(-((np.minimum(below, 0) / (0.7 * thick)) ** 2))
    hanging = np.exp(-((np.maximum(below - 0.6 * thick, 0) / length) ** 1.5))
    ends = smooth((outward + 0.01) / 0.14) * smooth((1.10 - outward) / 0.20)
    return darkness * ends * line * hanging


def _along_eye(values: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Returns values (columns, channels), measured at 0.12 .. 0.88 across the eye, at places u (h, w)."""
    at = (np.clip((u - 0.12) / 0.76, 0, 1) * (_COLUMNS - 1)).astype(np.float32)
    drawn = cv2.remap(values[None].astype(np.float32), at, np.zeros_like(at), cv2.INTER_LINEAR)
    return drawn.reshape(*u.shape, -1)


def _read(picture: np.ndarray, lids: LidCurves, across: np.ndarray, down: np.ndarray) -> np.ndarray:
    """Returns a picture (h, w) or (h, w, 3) float32 at places of the eye, eye widths across and down."""
    places = lids.point(across, down)
    return cv2.remap(picture, places, None, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)


def _dot(vectors: np.ndarray, axis: np.ndarray) -> np.ndarray:
    return vectors[..., 0] * vectors.dtype.type(axis[0]) + vectors[..., 1] * vectors.dtype.type(axis[1])
