"""Eyelids as sheets of skin over the eyeball: their outlines, and how they look when they move.

Skin that an open eye hides in its fold appears on a closing lid. It is drawn from the skin that the
photograph shows: the brow bone, the visible lid and the cheek give its light; the bare skin of the cheek
alone gives its hue and grain, as make-up, brows and bags do not stretch. The lashes are as dark as those of
the photograph, and hang down.
"""

from dataclasses import dataclass, replace

import cv2
import numpy as np

from magicedit.faces.regions import smooth

# MediaPipe's landmarks from the corner on the subject's right to the other one; the subject's left eye first
UPPER_MARGINS = ((362, 398, 384, 385, 386, 387, 388, 466, 263), (33, 246, 161, 160, 159, 158, 157, 173, 133))
LOWER_MARGINS = ((362, 382, 381, 380, 374, 373, 390, 249, 263), (33, 7, 163, 144, 145, 153, 154, 155, 133))
_FOLD = ((463, 414, 286, 258, 257, 259, 260, 467, 446), (226, 247, 30, 29, 27, 28, 56, 190, 243))
_RANGE, _SAMPLES = (-0.6, 1.6), 353  # across the eye: where curves are known, and at how many places
# Eye widths
_LEAST_FOLD = 0.05  # the fold above the lid's margin, at least
_LASHES = 0.11  # length of lashes above the margin
_LOWER_SKIN = 0.22  # below the lower lid: how far the skin follows it
_UPPER_SKIN = 0.14  # above the fold: how far the skin follows a lid that rises
_BONE = (0.03, 0.12)  # above the fold: skin of the brow bone
_UNDER = (0.13, 0.30)  # below the lower lid's margin: skin that gives grain and light
_CHEEK = (0.30, 0.70)  # below the lower lid's margin: bare skin
_CHEEK_VIEW = (0.25, 0.95)  # below the lower lid's margin: the window of the cheek
_GRAIN = 0.10  # standard deviation below which texture is grain
_RIM = 0.035  # thickness of the lower lid's rim
_LINE = 0.020  # thickness of the line of lashes
_HAIR = 0.0095  # thickness of a lash at its root
_LENGTH = (0.07, 0.14)  # of lashes at the nose and at the temple
_FORESHORTENED = 1.4  # share by which lashes that point at the viewer make their line thicker
_SQUEEZED_SKIN = 0.07  # how much farther down skin follows a lid that is squeezed
_TURNED = 0.3  # of the opening's height: how far a lid comes down until its lashes hang
_BALD = 0.20  # of the opening's height: how far it comes down until its lashes no longer stand on it
_STRETCH = (1.15, 1.9)  # of the visible lid: the photograph's own skin alone, drawn skin
_LASH_WIDTH = 0.12  # dark lines up to this wide are lashes and their shadow
_CREASES_SEED = 5
_CREASED = 0.07  # natural logarithm of light: fine creases of a lid on wrinkled skin
_WRINKLED = (0.022, 0.06)  # median texture of a cheek, natural logarithms of light: smooth, wrinkled
_HAIRS, _HAIRS_SEED = 44, 3  # lashes of an upper lid
_DRAWN_AT = 260.0  # px an eye width, at least, at which lashes are drawn
_FINE_HAIRS = (0.03, 0.30)  # natural logarithms of light: lashes hardly seen, and thick
_LASH_DARKNESS = (0.35, 1.8)  # natural logarithms of light, least and most
_LASH_HUE = (0.88, 1.0, 1.06)  # of the darkness of lashes: they are brown rather than grey
_LIGHTS = (0.34, 0.26, 0.40)  # shares of the brow bone, the skin below the eye and the cheek
_DARKEST_BONE, _BRIGHTEST_CHEEK = 0.15, 0.45  # natural logarithms: cheek over bone, brows' hairs; lamps
_BARE = (0.6, 1.5)  # of the cheek's median light: skin without hair, shadow, rims and lamps
_DEEPEST_CREASE = 0.5  # natural logarithm of light: creases above the fold
_PAINT = 0.35  # natural logarithm of light: a lash or liner lifted so much has no hue of skin left
_PALE = 0.2  # share of the cheek's pixels, the palest, that sheen may have paled
_CHEEK_HUE = 0.75  # share of the cheek in a drawn lid's hue; the bone and the skin below the eye: rest
_LIT_SIDE = 0.25  # eye widths that the brightest place lies aside for light that grows by 1 across the eye
_THIN_SKIN = (1.02, 0.998, 0.985)  # a lid's skin is redder than a cheek's
_DEEPER = 0.7  # how much deeper a hue gets where skin is darker by 1 (natural logarithm), of its own depth
_LEAST_CHEEK = 4  # px a side of the window of the cheek
_DARK = 8.0  # levels of light that count as dark
_WORKED_AT = 80.0  # px of an eye width at which lashes are lifted
_COLUMNS, _ROWS = 48, 10  # samples of skin along and across a strip


@dataclass(frozen=True, eq=False)
class Cheek:
    """Bare skin below an eye, of which a closing lid is drawn.

    hue: (columns, 3), each channel over the mean of the three. light: (columns,) logarithms of levels +
    `_DARK`. grain: (h, w, 3) float32, texture of a window of the photograph in such logarithms. lids: the
    eye's curves in that window.
    """

    hue: np.ndarray
    light: np.ndarray
    grain: np.ndarray
    lids: "LidCurves"


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
        return ramp(self.nearness(points), hidden, seen)

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
    first, last = landmarks[UPPER_MARGINS[side][0]], landmarks[UPPER_MARGINS[side][-1]]
    width = float(np.linalg.norm(last - first))
    along = (last - first) / width
    down = np.array([-along[1], along[0]])

    def in_eye(ids: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        offsets = (landmarks[list(ids)] - first) / width
        return offsets @ along, offsets @ down

    places = np.linspace(*_RANGE, _SAMPLES)
    upper, lower = (_margin(*in_eye(ids[side]), places) for ids in (UPPER_MARGINS, LOWER_MARGINS))
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


def ramp(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Returns 0 up to `low`, 1 from `high`, and a straight line between."""
    return np.clip((values - low) / (high - low), 0, 1)


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


def box_around(points: np.ndarray, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Returns x0, y0, x1, y1 of the part of a picture around points (n, 2) px."""
    limits = np.array([shape[1], shape[0]])
    low = np.floor(points.min(0)).clip(0, limits).astype(int)
    high = (np.ceil(points.max(0)) + 1).clip(0, limits).astype(int)
    return int(low[0]), int(low[1]), int(high[0]), int(high[1])


def bare_cheek(pixels: np.ndarray, lids: LidCurves) -> Cheek:
    """Returns the skin below an eye of a photograph (height, width, 3) uint8 that shows a part of the eye."""
    across = np.array([-0.1, 1.1, 1.1, -0.1])
    down = float(lids.lower.max()) + np.array(_CHEEK_VIEW)
    x0, y0, x1, y1 = box_around(lids.point(across, np.repeat(down, 2)), pixels.shape)
    if min(x1 - x0, y1 - y0) < _LEAST_CHEEK:
        down[0] = lids.fold.min()
        x0, y0, x1, y1 = box_around(lids.point(1.5 * across - 0.25, np.repeat(down, 2)), pixels.shape)
    view = pixels[y0:y1, x0:x1].astype(np.float32)
    lids = lids.seen_from(x0, y0)

    # 1. Hue and light, of pixels that are skin
    u = np.linspace(0.12, 0.88, _COLUMNS)
    rows = lids.at(lids.lower, u) + np.linspace(*_CHEEK, _ROWS)[:, None]
    seen = np.maximum(_read(view, lids, np.broadcast_to(u, rows.shape), rows), 0) + 1
    level = seen.mean(-1)
    usual = np.median(level)
    bare = (level > _BARE[0] * usual) & (level < _BARE[1] * usual)
    # Sheen of lamps pales a hue, so its deeper part counts
    depth = (seen[..., 0] - seen[..., 2]) / level
    bare = (bare & (depth >= np.quantile(depth[bare], _PALE))).astype(np.float32)
    sums = np.concatenate([bare[..., None], bare[..., None] * seen], -1).sum(0)  # (columns, 4)
    sums = cv2.GaussianBlur(sums[None], (0, 0), 0.25 * _COLUMNS, borderType=cv2.BORDER_REPLICATE)[0]
    colour = (sums[:, 1:] + 1e-3 * np.median(seen, (0, 1))) / (sums[:, :1] + 1e-3)
    mean = colour.mean(-1)

    # 2. Grain
    logs = np.log(view + _DARK)
    small, factor = reduced(logs, _GRAIN * lids.width / 2)
    small = cv2.GaussianBlur(small, (0, 0), max(0.8, _GRAIN * lids.width * factor))
    grain = logs - cv2.resize(small, logs.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    most = 3.0 * float(np.median(np.abs(grain))) + 1e-3
    return Cheek(colour / mean[:, None], np.log(mean + _DARK), np.clip(grain, -most, most), lids)


def draw_lids(
    picture: np.ndarray,
    eyeball: np.ndarray,
    lids: LidCurves,
    new: LidCurves,
    cheek: Cheek | None,
    squeeze: float = 0.0,
) -> np.ndarray:
    """Returns the window with its lids moved from `lids` to `new` over the eyeball.

    picture, eyeball: (h, w, 3) float32; the latter is shown inside the new opening. cheek: of which a closing
    lid is drawn; None where no upper lid comes down. squeeze: 0..1, how much the skin below the lower lid
    bunches.
    Pixels away from the lids keep their values exactly.
    """
    y, x = np.indices(picture.shape[:2], dtype=np.float32)
    here = np.stack([x, y], -1)
    u, v = lids.across(here), lids.down(here)
    upper, lower = new.at(new.upper, u), new.at(new.lower, u)
    drop = upper - lids.at(lids.upper, u)
    outward = u if lids.outer else 1 - u

    # 1. Skin. Lashes of a lid that comes down do not go on standing on it
    height = np.max(lids.lower - lids.upper)
    down = np.max(new.upper - lids.upper) / height if cheek else 0.0
    lowered, bald = (float(smooth(down / least)) for least in (_TURNED, _BALD))
    stretch = np.max((new.upper - lids.fold) / (lids.upper - lids.fold))
    drawn = float(smooth((stretch - _STRETCH[0]) / (_STRETCH[1] - _STRETCH[0])))
    own = under = picture
    if bald:
        bare = _without_lashes(picture, lids, cheek, u, v)
        colours = _skin_colours(bare, lids)
        lifted = np.float32(0.85 * bald) * (bare - picture)
        # Beyond the outer corner no lid's margin parts the skin
        own, under = picture + lifted, picture + smooth((outward - 0.82) / 0.14)[..., None] * lifted
    above = _own_skin(own, lids, u, v, drop)
    if drawn and bald:
        above = above + drawn * (_unfolded_skin(bare, lids, colours, cheek, u, v, upper) - above)
    rise = lids.at(lids.lower, u) - lower
    reach = _LOWER_SKIN + _SQUEEZED_SKIN * squeeze
    follow = smooth(1 - np.maximum(v - lower, 0) / reach)
    # Landmarks lie up to a rim's width inside the eye: that white is no part of a lid that moves
    below = _read(under, lids, u, v + (rise + _RIM * np.clip(np.abs(rise) / 0.03, 0, 1)) * follow)
    if squeeze:
        below = below * np.exp(squeeze * _bunch(u, v - lower))[..., None]

    # 2. The eyeball in the lid's shadow
    shadow = smooth(drop / 0.12) * 0.38 * np.exp(-np.maximum(v - upper, 0) / 0.08)
    eyeball = eyeball * (1 - shadow)[..., None]

    # 3. One over the other
    # Beyond the corners no margin parts the skin
    soft = max(1.0, 0.018 * lids.width) / lids.width + 0.10 * smooth((np.abs(outward - 0.5) - 0.42) / 0.16)
    lower_cover = smooth((v - lower) / soft + 0.5)[..., None]
    # Lashes hide the edge of a lid that comes down
    upper_cover = smooth((upper - v) / (soft + 0.02 * np.float32(bald)) + 0.5)[..., None]
    lined = eyeball + lower_cover * (below - eyeball)
    lined = lined + upper_cover * (above - lined)

    # 4. Lashes
    if bald:
        darkness = bald * _lashes(picture, lids, new, colours, u, v - upper, lowered)
        lined = lined * np.exp(-darkness[..., None] * np.array(_LASH_HUE, np.float32))

    # 5. Nothing else changes
    beside = smooth(np.minimum(u + 0.34, 1.34 - u) / 0.15)
    fold, end = lids.at(lids.fold, u), lids.at(lids.lower, u) + reach
    weight = beside * smooth((v - fold + _UPPER_SKIN) / 0.10) * smooth((end - v) / 0.05)
    return picture + weight[..., None] * (lined - picture)


def _bunch(u: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Returns the light (h, w), logarithms, of skin that bunches `below` a lower lid's margin, eye widths."""
    ends = smooth(np.minimum(u + 0.05, 1.10 - u) / 0.35)
    roll = 0.05 * np.exp(-(((below - 0.07) / 0.035) ** 2))
    crease = 0.10 * np.exp(-(((below - 0.145) / 0.026) ** 2)) + 0.04 * np.exp(-(((below - 0.02) / 0.03) ** 2))
    return ends * (roll - crease)


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
    cheek: Cheek,
    u: np.ndarray,
    v: np.ndarray,
    margin: np.ndarray,
) -> np.ndarray:
    """Returns the skin of an upper lid drawn out of its fold, (h, w, 3) float32.

    bare: the photograph without lashes. colours: see `_skin_colours`. u, v: each pixel's place, eye widths.
    margin: the lid's new margin there.
    """
    old, fold = lids.at(lids.upper, u), lids.at(lids.fold, u)
    visible = np.maximum(0.6 * (old - 0.03 - fold), 0.02)  # above its lashes
    source = fold + saturating(np.maximum(v - fold, 0), margin - fold, visible)
    own = _read(bare, lids, u, np.where(v > fold, source, v))
    down = np.clip((v - fold) / np.maximum(margin - fold, 1e-3), 0, 1)
    skin = _drawn_skin(lids, colours, cheek, u, v, down)
    # Light must not step at the fold, so the drawn skin sets in slowly
    share = smooth((v - fold + 0.06) / np.clip(0.06 + 0.6 * (margin - fold), 0.16, 0.37))
    outward = u if lids.outer else 1 - u
    share = share * smooth((outward + 0.10) / 0.40) * smooth((1.26 - outward) / 0.42)
    share = share * smooth((margin + 0.04 - v) / (0.04 + 0.3 * np.maximum(outward - 0.9, 0)))
    return own + (0.92 * share)[..., None] * (skin - own)


def _drawn_skin(
    lids: LidCurves,
    colours: list[np.ndarray],
    cheek: Cheek,
    u: np.ndarray,
    v: np.ndarray,
    down: np.ndarray,
) -> np.ndarray:
    """Returns skin for a closed lid, (h, w, 3) float32. down: 0 at the fold .. 1 at the margin."""
    # 1. Light: a dark lid is shadow, lashes or make-up, which do not stretch
    bone, lid, under = (colour.mean(-1) for colour in colours)
    cheek_light = np.minimum(cheek.light, bone + _BRIGHTEST_CHEEK)
    bone = np.maximum(bone, cheek_light - _DARKEST_BONE)
    reference = np.average([bone, under, cheek_light], 0, _LIGHTS)
    darker = lid - reference
    lower = reference + np.minimum(darker * (0.10 + 0.40 * smooth((darker + 0.45) / 0.45)), 0.10)
    upper = bone + 0.5 * (lower - bone)
    upper, lower = (_along_eye(values[:, None], u)[..., 0] for values in (upper, lower))
    light = upper + smooth(1.5 * down) * (lower - upper)

    # 2. Form: the eyeball below is round and bulges towards the light, the fold is a soft shadow
    slope = float(np.polyfit(np.linspace(-0.5, 0.5, _COLUMNS), reference, 1)[0])
    top = 0.5 + float(np.clip(_LIT_SIDE * slope, -0.14, 0.14))
    beside = np.clip((u - top) / np.where(u > top, 1.02 - top, top + 0.02), -1, 1) ** 2
    ball = np.exp(-(((down - 0.60) / 0.24) ** 2))
    fold = np.exp(-(((down - 0.17) / 0.13) ** 2))
    light += (1 - beside) * (0.15 * ball - 0.11 * fold) - 0.15 * beside - 0.07
    light -= 0.14 * smooth((down - 0.78) / 0.22)

    # 3. Hue and grain of bare skin
    shift = _CHEEK_VIEW[0] + float(np.max(lids.lower) - np.min(lids.fold))
    places = cheek.lids.point(u, v + shift)
    grain = cv2.remap(cheek.grain, places, None, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)
    low, high = _WRINKLED
    wrinkled = float(smooth((np.median(np.abs(cheek.grain)) - low) / (high - low)))
    light += _CREASED * wrinkled * _fine_creases(u, down)
    skin = np.maximum(np.exp(light)[..., None] * np.exp(grain) - _DARK, 0)
    deeper = np.maximum(1 + _DEEPER * (_along_eye(cheek.light[:, None], u) - light[..., None]), 0.6)
    around = 0.5 * (colours[0] + colours[2])
    around = np.exp(around - around.mean(-1, keepdims=True))
    hue = _along_eye(cheek.hue**_CHEEK_HUE * around ** (1 - _CHEEK_HUE) * _THIN_SKIN, u)
    return skin * hue**deeper


def _fine_creases(u: np.ndarray, down: np.ndarray) -> np.ndarray:
    """Returns the light, about -1..1 (h, w) float32, of creases along a lid.

    u: 0..1 across the eye. down: 0 at the fold .. 1 at the margin, where there are none.
    """
    table = np.random.default_rng(_CREASES_SEED).normal(0, 0.6, (20, 6)).astype(np.float32)
    places = [np.clip(u, 0, 1) * 5, np.clip(down, 0, 1) * 19]
    across, row = (values.astype(np.float32) for values in places)
    creases = cv2.remap(table, across, row, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    return creases * smooth(np.minimum(down, 1 - down) / 0.2) * smooth(np.minimum(u, 1 - u) / 0.2 + 0.3)


def _without_lashes(
    picture: np.ndarray, lids: LidCurves, cheek: Cheek, u: np.ndarray, v: np.ndarray
) -> np.ndarray:
    """Returns the picture, (h, w, 3) float32, with lashes and dark lines around the upper lid's margin lifted
    to the light of the skin beside them, and to the hue of the cheek."""
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
    above = v - lids.at(lids.fold, u) + _UPPER_SKIN
    outward = u if lids.outer else 1 - u
    around = smooth(above / 0.12) * smooth((0.10 - v) / 0.05)
    around = around * smooth((outward + 0.04) / 0.26) * smooth((1.26 - outward) / 0.30)
    # Above the fold dark lines are creases, but dark areas brows
    below_brow = np.float32(_DEEPEST_CREASE) + 1.5 * smooth((above - 0.06) / 0.06)
    lift = (around * np.minimum(below_brow / np.maximum(lift.mean(-1), 1e-3), 1))[..., None] * lift
    lifted = (picture + _DARK) * np.exp(lift) - _DARK
    painted = 0.4 * smooth(lift.mean(-1, keepdims=True) / _PAINT)
    skin = np.maximum(lifted.mean(-1, keepdims=True), 0) * _along_eye(cheek.hue, u)
    return lifted + painted * (skin - lifted)


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
    picture: np.ndarray,
    lids: LidCurves,
    new: LidCurves,
    colours: list[np.ndarray],
    u: np.ndarray,
    below: np.ndarray,
    lowered: float,
) -> np.ndarray:
    """Returns the darkness of an upper lid's lashes, (h, w) float32 logarithms.

    u, below: pixels' places, eye widths across and below the new margin. lowered: 0 where they point at the
    viewer, so that they are seen as a broad line .. 1 where they hang.
    """
    # 1. How dark the margin is in the photograph, and how thick its lashes
    grey = np.log(cv2.cvtColor(np.maximum(picture, 0), cv2.COLOR_RGB2GRAY) + _DARK)
    width = 2 * max(round(0.035 * lids.width), 1) + 1
    fine = cv2.morphologyEx(grey, cv2.MORPH_CLOSE, np.ones((width, width), np.uint8)) - grey
    place = np.linspace(0.12, 0.88, _COLUMNS)
    rows = np.linspace(-0.08, -0.005, _ROWS)[:, None]
    across, at = np.broadcast_to(place, (_ROWS, _COLUMNS)), lids.at(lids.upper, place) + rows
    skin = np.maximum(colours[1], colours[2]).mean(-1)
    darkest = np.sort(_read(grey, lids, across, at), 0)[: _ROWS // 3].mean(0)
    darkness = np.clip(0.9 * (skin - darkest), *_LASH_DARKNESS).astype(np.float32)
    darkness = cv2.GaussianBlur(darkness[None], (0, 0), 0.1 * _COLUMNS, borderType=cv2.BORDER_REPLICATE)[0]
    darkness = _along_eye(darkness[:, None], u)[..., 0]
    low, high = _FINE_HAIRS
    thick = float(smooth(0.25 + 0.75 * (_read(fine, lids, across, at).mean() - low) / (high - low)))

    # 2. Their roots: a line that is thin at the nose and thicker at the temple, soft as their shadow on skin
    outward = u if lids.outer else 1 - u
    line = np.maximum(_LINE * (0.6 + 0.4 * thick) * (0.5 + 0.5 * smooth(outward / 0.6)), 0.8 / lids.width)
    line = line * np.float32(1 + _FORESHORTENED * (1 - lowered))
    beside = below / np.where(below > 0, line, 1.8 * line)
    roots = (0.50 + 0.2 * thick + 0.45 * (1 - lowered)) * np.exp(-(beside**2))
    roots = roots + 0.12 * np.exp(-(((below - 0.03) / 0.04) ** 2))
    ends = smooth((outward + 0.01) / 0.14) * smooth((1.06 - outward) / 0.16)

    # 3. Hairs that hang from it
    hairs = _hanging_hairs(picture.shape, new, thick, 1.3 - 0.3 * lowered)
    return darkness * np.maximum(ends * roots, (0.65 + 0.3 * thick) * hairs)


def _hanging_hairs(shape: tuple[int, ...], new: LidCurves, thick: float, lowered: float) -> np.ndarray:
    """Returns how much lashes cover the pixels of a window, (h, w) float32 0..1.

    new: the lids from whose upper margin they hang. thick: 0..1. lowered: 0 or more, how far they hang.
    """
    chance = np.random.default_rng(_HAIRS_SEED)
    scale = max(1, int(np.ceil(_DRAWN_AT / new.width)))
    outward = np.linspace(0.10, 1.0, _HAIRS) + chance.uniform(-0.012, 0.012, _HAIRS)
    tall = _LENGTH[0] + (_LENGTH[1] - _LENGTH[0]) * smooth((outward - 0.1) / 0.6)
    tall = tall * (1 - 0.5 * smooth((outward - 0.85) / 0.15))
    tall = tall * (0.55 + 0.45 * thick) * lowered * chance.uniform(0.5, 1.15, _HAIRS)
    # Neighbours lean towards each other at their tips
    tuft = np.repeat(chance.uniform(-0.008, 0.008, _HAIRS // 4), 4)
    lean = tall * (0.75 * (outward - 0.38) + chance.normal(0, 0.10, _HAIRS)) + tuft
    part = np.linspace(0, 1, 5)[:, None]
    aside = outward + lean * part**1.5
    root = outward if new.outer else 1 - outward
    down = new.at(new.upper, root) + tall * np.sin(1.25 * part) / np.sin(1.25)
    curve = new.point(aside if new.outer else 1 - aside, down)  # (points, hairs, 2) px
    half = 0.5 * _HAIR * new.width * (0.6 + 0.4 * thick) * (1.05 - part[..., None]) * new.across_axis
    outline = (np.concatenate([curve - half, (curve + half)[::-1]]) + 0.5) * scale - 0.5
    outline = np.ascontiguousarray(
        np.rint(16 * outline).astype(np.int32).swapaxes(0, 1)
    )  # (hairs, points, 2)
    drawn = np.zeros((shape[0] * scale, shape[1] * scale), np.uint8)
    for hair, level in enumerate(np.linspace(130, 255, _HAIRS)[chance.permutation(_HAIRS)]):
        cv2.fillPoly(drawn, [outline[hair]], float(level), cv2.LINE_AA, 4)
    small = cv2.resize(drawn, shape[1::-1], interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    return cv2.GaussianBlur(small, (0, 0), max(0.5, 0.004 * new.width))


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
