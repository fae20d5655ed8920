"""The eye layer: gaze and closing lids, at the photograph's own resolution; nothing is learned.

The eyeball turns: its iris moves inside the opening, over a white completed from the white of the same eye.
The lids, drawn by `magicedit.warping.lids`, slide over it. All work happens in a window around each eye, in
the eye's own coordinates: across from 0 at the corner on the subject's right to 1 at the other one, and down
the face from the line of the corners, in eye widths.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import cv2
import numpy as np

from magicedit.action_units import GAZE_RANGE
from magicedit.faces.frame import EYE_CORNERS, face_frame
from magicedit.faces.gaze import CLOSED, EYEBALL_RADIUS, eye_openness
from magicedit.faces.regions import smooth
from magicedit.vocabulary import split_sides
from magicedit.warping.lids import (
    Cheek,
    LidCurves,
    bare_cheek,
    box_around,
    draw_lids,
    lid_curves,
    ramp,
    reduced,
    saturating,
)
from magicedit.warping.wink import wink

# A jury reads the anatomical turn as "barely moves". With this gain the iris's outline moves by about 1.15 to
# 1.2 of what is asked to the sides and 1.0 to 1.15 up and down; MediaPipe's iris by 0.8 to 0.9 to the sides.
_GAZE_GAIN = 1.2
_DOWNWARDS = 0.88  # of that: lids that leave the pupil in sight show all of the movement
# Centre, then four points of the outline; the subject's left eye first
IRIS = (slice(473, 478), slice(468, 473))
_CORNERS = EYE_CORNERS["mediapipe478"][::-1]
# Window around an eye, eye widths: beside its corners, above its fold, below its lower lid
_BESIDE, _ABOVE, _BELOW = 0.38, 0.16, 0.42
LEAST_WINDOW = 3  # px a side
# What the lids move while the eye moves upwards, downwards, as shares of the iris's movement. Eyes that look
# down seem sleepy where the pupil stays in the middle of the opening, and narrow ones where a lid hides it
_UPPER_FOLLOWS = (0.6, 0.92)
_LOWER_FOLLOWS = (0.1, 0.0)
_LOWERED = 0.29  # of the opening's height: how far a gaze lowers the upper lid, at most
_SHOWN = 0.015  # eye widths of eyeball that show below the landmarks of the lower lid
_NEAREST_CORNER = (0.17, 0.83)  # between the eye's corners: where an iris's centre may move
_MEETING = 0.90  # of the opening's height: where closed lids meet
_SQUEEZE = 0.08  # of the opening's height: how much higher they meet where one eye closes alone
_VISIBLE = 0.045  # brightening across the iris's outline, of the mean level: less is no visible eye
_LEAST_RADIUS = 2.5  # px of the iris: the outline of a smaller one is not looked for
_LIMBUS = 0.10  # of the iris's radius: width of its soft edge
_HIGHLIGHT_WIDTH = 0.45  # of the iris's radius: what is brighter and narrower reflects a lamp
_HIGHLIGHT = (18.0, 50.0)  # levels above the iris: no highlight, a whole one
_LEAST_WHITE = 0.08  # eye widths beside the iris: less white is completed from the other side
_WORKED_AT = 60.0  # px an iris's radius, or an eye's width, at which wide structures are measured
_SURE_IRIS = (0.45, 0.82)  # radii of the iris from its centre: neither pupil nor white
_DOUBTED = (0.10, 0.30)  # of the opening's height: what is read nearer to a lid may be of the lid
_NO_CORNER = (0.12, 0.88)  # across the eye: white that is mirrored to the other side
_NO_WHITE = 0.55  # of the other side's light: a darker side shows no white but lids
_DARK_CORNER = 0.24  # of the eye's width: mirrored white that a corner darkens
_CORNER_SHADE = (0.65, 0.82, 0.82)  # natural logarithms of its red, green and blue at the corner
_WHITE_INSIDE = 0.2  # of the opening's height from the lids: white
_BESIDE_IRIS = 1.25  # radii of the iris from its centre: white without its tint
_BRIGHTEST_WHITE = 0.85  # share of the white's pixels: what is brighter shines
_CLEANED = 0.8  # how much of its own tint a completed white loses
_LEAST_PIXELS = 12  # of white that show the lid's shade
_NEAR_LIDS = (0.08, 0.16)  # of the opening's height: the iris's outline is not looked for, and is
_LID_EDGE = 0.18  # of the height of the opening: lashes and the lid's shadow darken the eyeball
_SHADE = (0.55, 1.06)  # limits of the change of light when a part of the iris moves
HIDDEN = (0.02, 0.20)  # of the opening's height: the lid's edge hides the eyeball, and no longer does


@dataclass(frozen=True)
class Iris:
    """centre: (2,) px of the window. radius: px."""

    centre: np.ndarray
    radius: float


def move_eyes(
    pixels: np.ndarray,
    landmarks: np.ndarray,
    request: Mapping[str, float],
    glasses: float = 0.0,
    *,
    in_place: bool = False,
) -> np.ndarray:
    """Returns the photograph with closed or half closed lids and another gaze.

    Args:
        pixels: the photograph before its expression moves, (height, width, 3) uint8 RGB.
        landmarks: MediaPipe's (478, 2), photograph px.
        request: name -> value. "AU43", whole or of one side, in intensity steps 0..5: 5 closes the eye, 2.5
            half; values below 0 count as 0. An eye that closes more than the other one takes brow and cheek
            along. "gaze_yaw" in degrees, positive towards the subject's own left; "gaze_pitch" in degrees,
            positive upwards. Irises move `_GAZE_GAIN` times as far as eyeballs would, downwards `_DOWNWARDS`
            of that. Gaze is limited to `GAZE_RANGE`, and where eyes that look aside already would lose their
            irises in the corners. Other names are ignored.
        glasses: 0..1, how strongly rims hold brow and cheek in place, see `magicedit.faces.glasses`.
        in_place: whether `pixels` itself is changed.

    Returns:
        `pixels` itself where nothing changes: without such a request, for eyes that are closed already
        (`eye_openness` below `CLOSED`) and for those whose iris is not seen, as behind sunglasses. Otherwise
        a photograph, new unless `in_place`, that differs around the eyes only.
    """
    landmarks = np.asarray(landmarks, np.float64)
    turn, closures = asked_of_eyes(landmarks, request)
    # 1. What moves, and its cheek before either eye moves: their windows may overlap
    moving = []
    for side in open_eyes(landmarks):
        if not (closures[side] or turn.any()):
            continue
        lids = lid_curves(landmarks, side)
        x0, y0, x1, y1 = _window(lids, pixels.shape)
        if x1 - x0 < LEAST_WINDOW or y1 - y0 < LEAST_WINDOW:
            continue
        lowers = closures[side] > 0 or lids.vector_down(turn) > 0
        moving.append((side, lids, (x0, y0, x1, y1), bare_cheek(pixels, lids) if lowers else None))

    # 2. The eyes
    result = pixels
    for side, lids, (x0, y0, x1, y1), cheek in moving:
        moved = _moved_eye(
            result[y0:y1, x0:x1],
            lids.seen_from(x0, y0),
            landmarks[IRIS[side]] - (x0, y0),
            cheek,
            turn,
            closures[side],
            squeeze=max(closures[side] - closures[1 - side], 0.0),
        )
        if moved is not None:
            result = pixels.copy() if result is pixels and not in_place else result
            result[y0:y1, x0:x1] = moved
            alone = closures[side] - closures[1 - side]
            if alone > 0:
                wink(result, landmarks, side, alone * (1 - glasses))
    return result


def open_eyes(landmarks: np.ndarray) -> list[int]:
    """Returns which eyes are open, 0 the subject's left; landmarks: (478, 2) px."""
    return [side for side, openness in enumerate(eye_openness(landmarks)) if openness >= CLOSED]


def asked_of_eyes(
    landmarks: np.ndarray, request: Mapping[str, float]
) -> tuple[np.ndarray, tuple[float, float]]:
    """Returns the pixels (2,) that irises move, and how far the left and the right eye close, 0..1.

    landmarks: (478, 2) px. request: as of `move_eyes`.
    """
    yaw, pitch = (float(np.clip(request.get(name, 0.0), *GAZE_RANGE)) for name in ("gaze_yaw", "gaze_pitch"))
    left, right = (float(np.clip(side.get("AU43", 0.0) / 5, 0, 1)) for side in split_sides(request))
    radii = [np.linalg.norm(landmarks[ids][1:] - landmarks[ids][0], axis=1).mean() for ids in IRIS]
    # Both eyes turn alike, so a foreshortened iris does not shorten its movement
    eyeball = _GAZE_GAIN * EYEBALL_RADIUS * 2 * np.mean(radii)
    pitch *= _DOWNWARDS if pitch < 0 else 1
    turn = eyeball * np.sin(np.deg2rad([yaw, -pitch])) @ face_frame(landmarks).rotation
    turn = turn * min((_reach(landmarks, side, turn) for side in open_eyes(landmarks)), default=1.0)
    return turn, (left, right)


def _reach(landmarks: np.ndarray, side: int, turn: np.ndarray) -> float:
    """Returns the share 0..1 of a turn (2,) px after which an iris still lies between the eye's corners.

    landmarks: (478, 2) px. An eye that looks aside already cannot turn much farther.
    """
    first, last = landmarks[list(_CORNERS[side])]
    along = (last - first) / ((last - first) @ (last - first))
    place, step = (landmarks[IRIS[side].start] - first) @ along, turn @ along
    room = max(_NEAREST_CORNER[1] - place, 0) if step > 0 else max(place - _NEAREST_CORNER[0], 0)
    return min(1.0, room / max(abs(step), 1e-6))


def _window(lids: LidCurves, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Returns x0, y0, x1, y1 of the photograph around an eye; x1 <= x0 or y1 <= y0 outside it."""
    across = np.array([-_BESIDE, 1 + _BESIDE])
    rows = lids.fold.min() - _ABOVE, lids.lower.max() + _BELOW
    return box_around(np.concatenate([lids.point(across, np.full(2, row)) for row in rows]), shape)


def _moved_eye(
    view: np.ndarray,
    lids: LidCurves,
    landmarks: np.ndarray,
    cheek: Cheek | None,
    turn: np.ndarray,
    closure: float,
    squeeze: float,
) -> np.ndarray | None:
    """Returns the window (h, w, 3) uint8 of one eye after its gaze and lids move; None if no iris is seen.

    landmarks: (5, 2) px of the iris. cheek: see `draw_lids`. turn: (2,) px that it moves. closure: 0 as it
    is .. 1 closed. squeeze: 0..1, how much it closes alone.
    """
    picture = view.astype(np.float32)
    iris = find_iris(picture, landmarks, lids)
    if iris is None:
        return None

    # 1. Where the lids go
    new = moved_lids(lids, turn, closure, squeeze)

    # 2. The eyeball, complete inside the new opening
    eyeball = picture
    if turn.any() and closure < 1:
        eyeball = picture.copy()
        x0, y0, x1, y1 = window_of_openings(lids, new, view.shape)
        if x1 > x0 and y1 > y0:
            eyeball[y0:y1, x0:x1] = turned_eyeball(
                np.ascontiguousarray(picture[y0:y1, x0:x1]),
                lids.seen_from(x0, y0),
                new.seen_from(x0, y0),
                Iris(iris.centre - (x0, y0), iris.radius),
                turn,
            )

    # 3. The lids over it
    changed = draw_lids(picture, eyeball, lids, new, cheek, squeeze)
    return np.rint(np.clip(changed, 0, 255)).astype(np.uint8)


def moved_lids(lids: LidCurves, turn: np.ndarray, closure: float, squeeze: float = 0.0) -> LidCurves:
    """Returns the lids of an eye that turns by `turn` px and closes by `closure`, 0..1: they go with the eye,
    then together. squeeze: see `_moved_eye`."""
    height = np.maximum(lids.lower - lids.upper, 0)
    turn_down = lids.vector_down(turn)
    arch = (height / max(height.max(), 1e-6)) ** 0.8
    downwards = turn_down > 0
    upper = lids.upper + min(_UPPER_FOLLOWS[downwards] * turn_down, _LOWERED * height.max()) * arch
    lower = lids.lower + _LOWER_FOLLOWS[downwards] * turn_down * arch
    if turn.any():
        lower = lower + _SHOWN * np.minimum(height / max(0.3 * height.max(), 1e-6), 1)
    meeting = upper + (_MEETING - _SQUEEZE * squeeze) * np.maximum(lower - upper, 0)
    return lids.moved(upper + closure * (meeting - upper), lower + closure * (meeting - lower))


def window_of_openings(lids: LidCurves, new: LidCurves, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Returns x0, y0, x1, y1 of the window around both openings."""
    across = np.linspace(0, 1, 33)
    margins = [curves.at(curve, across) for curves in (lids, new) for curve in (curves.upper, curves.lower)]
    return box_around(np.concatenate([lids.point(across, margin) for margin in margins]), shape)


def find_iris(picture: np.ndarray, landmarks: np.ndarray, lids: LidCurves) -> Iris | None:
    """Returns the circle of the iris nearest to the landmarks (5, 2) px that has the sharpest outline.

    Landmarks miss it by up to a fifth of its radius. The outline's sharpness is the brightening across its
    visible arcs beside the pupil (J. Daugman, "High confidence visual recognition of persons by a test of
    statistical independence", PAMI 1993).
    Returns None where no outline is seen, as behind dark or mirroring glasses.
    """
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    radius = float(np.linalg.norm(landmarks[1:] - landmarks[0], axis=1).mean())
    grey = cv2.GaussianBlur(grey, (0, 0), max(0.5, 0.06 * radius))
    arc = np.deg2rad(np.concatenate([np.linspace(-35, 55, 16), np.linspace(125, 215, 16)]))
    rays = np.stack([np.cos(arc), np.sin(arc)], -1)  # (angles, 2)
    level = float(grey.mean()) + 10
    steps = np.linspace(-0.24, 0.24, 9)
    centres = landmarks[0] + radius * np.stack(np.meshgrid(steps, steps), -1).reshape(-1, 2)
    ratios = np.linspace(0.80, 1.12, 9)
    best, found = _VISIBLE, None
    if radius < _LEAST_RADIUS:
        return Iris(landmarks[0], radius)
    for ratio in ratios:
        inner, outer = (
            (centres[:, None] + radius * (ratio + offset) * rays).astype(np.float32)
            for offset in (-0.10, 0.10)
        )
        rise = cv2.remap(grey, outer, None, cv2.INTER_LINEAR) - cv2.remap(grey, inner, None, cv2.INTER_LINEAR)
        # The lids' edges and lamps must not count as the outline
        weight = lids.inside(outer, *_NEAR_LIDS) * lids.inside(inner, *_NEAR_LIDS)
        score = (np.clip(rise / level, -0.2, 0.6) * weight).sum(1) / (weight.sum(1) + 6)
        score -= 0.4 * (((centres - landmarks[0]) ** 2).sum(1) / radius**2 + (ratio - 0.96) ** 2)
        if score.max() > best:
            best, found = score.max(), Iris(centres[score.argmax()], radius * float(ratio))
    return found


def turned_eyeball(
    picture: np.ndarray, lids: LidCurves, new: LidCurves, iris: Iris, turn: np.ndarray
) -> np.ndarray:
    """Returns the eyeball with the iris moved by `turn` px, (h, w, 3) float32, valid in the new opening.

    What the lids had hidden of it is completed, also where it does not turn.
    """
    here = pixel_places(picture.shape)
    depth = np.clip(new.depth(here), 0, 1)
    inside = lids.nearness(here)
    radii = np.linalg.norm(here - iris.centre.astype(np.float32), axis=-1) / iris.radius
    highlights = _highlights(picture, iris, inside, radii)
    matte = picture - highlights
    seen_white = matte[(inside > _WHITE_INSIDE) & (radii > _BESIDE_IRIS)]
    white = _completed_white(matte, lids, lids.across(here), depth, iris, turn, seen_white)

    # 1. The iris, turned away, and its mirror image where the lid had hidden it
    centre, step = iris.centre.astype(np.float32), turn.astype(np.float32)
    length = max(float(np.linalg.norm(turn)), 1e-6)
    narrow = np.sqrt(1 - min(length / (2 * iris.radius * EYEBALL_RADIUS), 0.7) ** 2)
    source = here - step - centre
    along = (source @ (step / length))[..., None]
    source = centre + source + along * np.float32(1 / narrow - 1) * (step / np.float32(length))
    down = lids.down_axis.astype(np.float32)
    mirrored = source - 2 * ((source - centre) @ down)[..., None] * down
    opposite = 2 * centre - source  # where a corner of the eye hides both
    near, new_near = lids.nearness(source), new.nearness(here)
    # At an edge of its own, a lid's shadow on the iris is right
    visible = np.clip((near - HIDDEN[0]) / (np.clip(new_near, *HIDDEN) - HIDDEN[0] + 1e-3), 0, 1)[..., None]
    hidden = 1 - lids.inside(mirrored, *HIDDEN)[..., None]
    other = _read(matte, lids.clamped(mirrored, _LID_EDGE))
    other += hidden * (_read(matte, lids.clamped(opposite, _LID_EDGE)) - other)
    seen = visible * _read(matte, source) + (1 - visible) * other
    far = np.linalg.norm(source - centre, axis=-1) / np.float32(iris.radius)
    low, high = _SURE_IRIS
    sure = matte[(radii > low) & (radii < high) & (inside > _NEAR_LIDS[1])]
    seen = _clean_iris(seen, far, lids.inside(source, *_DOUBTED), sure)

    # 2. In the light of its new place
    read_depth = visible[..., 0] * lids.depth(source) + (1 - visible[..., 0]) * lids.depth(mirrored)
    shade = _lid_shade(picture, lids, iris)
    light = np.exp(shade(depth) - shade(np.clip(read_depth, 0, 1)))
    seen = seen * np.clip(light, *_SHADE)[..., None]

    # 3. On the white, with lamps, whose images on the cornea move half as far
    softness = max(_LIMBUS, 1.2 / iris.radius)
    disc = smooth((0.99 + softness - far) / softness)[..., None]
    return white + disc * (seen - white + _read(highlights, here - np.float32(0.5) * step))


def _clean_iris(seen: np.ndarray, far: np.ndarray, trusted: np.ndarray, sure: np.ndarray) -> np.ndarray:
    """Returns an iris (h, w, 3) without hues and lights of lids and white at its edge.

    far: radii from its centre. trusted: 0..1 far from lids. sure: (n, 3) pixels of the photograph that surely
    belong to the iris around its pupil.
    """
    if len(sure) < _LEAST_PIXELS:
        return seen
    level, sure_level = seen.mean(-1, keepdims=True), np.maximum(sure.mean(-1, keepdims=True), 1)
    edge = smooth((far - 0.80) / 0.10)
    doubt = np.maximum(1 - trusted, edge)[..., None]
    usual, brightest = np.quantile(sure_level, (0.5, _BRIGHTEST_WHITE))
    excess = np.maximum(level - (brightest - edge[..., None] * (brightest - usual)), 0)
    hue = np.median(sure / sure_level, 0)
    return seen + doubt * ((level - 0.8 * excess) * hue - seen)


def pixel_places(shape: tuple[int, ...]) -> np.ndarray:
    """Returns x and y of each pixel, (h, w, 2) float32."""
    y, x = np.indices(shape[:2], dtype=np.float32)
    return np.stack([x, y], -1)


def _highlights(picture: np.ndarray, iris: Iris, inside: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """Returns the light of lamps on the iris, (h, w, 3) float32 levels above its surroundings; else 0.

    inside: (h, w), `LidCurves.nearness` of the pixels. radii: (h, w), of the iris, from its centre.
    """
    small, factor = reduced(picture, iris.radius / _WORKED_AT)
    size = 2 * max(round(_HIGHLIGHT_WIDTH * iris.radius * factor / 2), 1) + 1
    element = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
    below = cv2.morphologyEx(small, cv2.MORPH_OPEN, element)
    excess = np.maximum(picture - cv2.resize(below, picture.shape[1::-1]), 0)
    low, high = _HIGHLIGHT
    weight = smooth((excess.min(-1) - low) / (high - low)) * smooth(5 * (0.9 - radii))
    weight = weight * ramp(inside, *_NEAR_LIDS)  # white between iris and lid is narrow and bright too
    weight = cv2.dilate(weight.astype(np.float32), np.ones((3, 3), np.uint8))
    return excess * weight[..., None]


def _completed_white(
    matte: np.ndarray,
    lids: LidCurves,
    u: np.ndarray,
    depth: np.ndarray,
    iris: Iris,
    turn: np.ndarray,
    seen: np.ndarray,
) -> np.ndarray:
    """Returns the white of the eye without its iris, (h, w, 3) float32.

    The white on each side of the iris is stretched, along the lids, up to the middle of the moved iris. So it
    keeps the lid's shadow, its darker corners and its grain. u, depth: (h, w), across the eye and from the
    upper to the lower lid, 0..1. seen: (n, 3) pixels of the white that the photograph shows.
    """
    centre, radius = float(lids.across(iris.centre)), iris.radius * 1.18 / lids.width
    moved = float(np.clip(lids.across(iris.centre + turn), 0.1, 0.9))
    u = np.clip(u, 0, 1)
    right, left = max(centre - radius, 0.0), max(1 - centre - radius, 0.0)  # widths of the white there is
    from_right, from_left = saturating(u, moved, right), 1 - saturating(1 - u, 1 - moved, left)
    mirrored = np.zeros_like(u)  # how far white that another corner shows lies in the darkness of this one
    light = [_light_of_side(matte, lids, *side) for side in ((0.0, right), (1.0, 1 - left))]
    low, high = _NO_CORNER
    if right < min(_LEAST_WHITE, left) or light[0] < _NO_WHITE * light[1]:
        from_right = np.clip(1 - saturating(u, moved, left), low, high)
        mirrored = smooth(1 - u / _DARK_CORNER)
    elif left < _LEAST_WHITE or light[1] < _NO_WHITE * light[0]:
        from_left = np.clip(saturating(1 - u, 1 - moved, right), low, high)
        mirrored = smooth(1 - (1 - u) / _DARK_CORNER)
    on_right, on_left = (_read(matte, lids.place(source, depth)) for source in (from_right, from_left))
    drawn = on_right + smooth((u - moved) / 0.16 + 0.5)[..., None] * (on_left - on_right)
    drawn = drawn * np.exp(-mirrored[..., None] * np.array(_CORNER_SHADE, np.float32))

    # The iris tints what lies beside it, and wet rims shine: neither becomes white
    if len(seen) < _LEAST_PIXELS:
        return drawn
    level, seen_level = drawn.mean(-1, keepdims=True), seen.mean(-1)
    white = seen[seen_level >= np.median(seen_level)]  # the darker half lies in lashes' shadow, or is skin
    hue = np.median(white / np.maximum(white.mean(-1, keepdims=True), 1), 0)
    brightest = np.quantile(seen_level, _BRIGHTEST_WHITE)
    shone = np.maximum(level - brightest, 0)
    clean = (level - 0.8 * shone) * hue
    middle = smooth(np.minimum(u, 1 - u) / 0.2)[..., None]  # corners are red
    return drawn + _CLEANED * middle * (clean - drawn)


def _light_of_side(matte: np.ndarray, lids: LidCurves, corner: float, edge: float) -> float:
    """Returns the level of the white between a corner and the iris's edge, places across the eye."""
    across, depth = np.meshgrid(np.linspace(corner, edge, 7)[2:], np.linspace(0.35, 0.65, 4))
    return float(np.median(_read(matte, lids.place(across, depth)).mean(-1)))


def _lid_shade(
    picture: np.ndarray, lids: LidCurves, iris: Iris
) -> Callable[[np.ndarray], np.ndarray | float]:
    """Returns a function of the depth in the opening, 0..1, to the logarithm of the light on the white."""
    small, factor = reduced(picture, lids.width / _WORKED_AT)
    here = (pixel_places(small.shape) + 0.5) / np.float32(factor) - 0.5
    depth, u = lids.depth(here), lids.across(here)
    far = np.linalg.norm(here - iris.centre.astype(np.float32), axis=-1) / iris.radius
    white = (depth > 0.1) & (depth < 0.9) & (far > 1.2) & (u > 0.12) & (u < 0.88)
    if white.sum() < _LEAST_PIXELS:
        return lambda depth: 0.0
    light = np.log(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)[white] + 8)
    down, across = depth[white].astype(np.float64), u[white] - 0.5
    terms = np.stack([np.ones_like(down), down, down**2, across, across**2], -1)
    ridge = 0.02 * len(terms) * np.diag([0, 1, 1, 1, 1])
    _, slope, bend, *_ = map(float, np.linalg.solve(terms.T @ terms + ridge, terms.T @ light))
    return lambda depth: slope * depth + bend * depth**2


def _read(picture: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Returns a picture (h, w, channels) float32 at places (h, w, 2) px."""
    return cv2.remap(
        picture, places.astype(np.float32), None, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101
    )
