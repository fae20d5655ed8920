"""What shows between parted lips: upper teeth out of a picture of a mouth, lower teeth and tongue.

Upper teeth are fixed to the skull, the floor of the mouth hangs on the lower lip. Lengths named iod are
interocular distances.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from magicedit.faces.regions import smooth
from magicedit.warping.change import in_channels
from magicedit.warping.own_smile import moves_to
from magicedit.warping.teeth import (
    Mouth,
    embedded_floor,
    grain_of,
    has_colour,
    light_gain,
    lip_colour,
)

_UPPER_LIP = 13  # landmark of its edge in the middle
_REST = 0.085  # iod that the upper incisors reach below the edge of closed lips
# iod that the incisors of 25 people's smiles lie above that, and from where to where a place farther from it
# is taken for that of a raised or lowered head
_SMILES_ABOVE, _HELD = 0.03, (0.055, 0.115)
# iod that the teeth of another photograph follow the lower lip, and between the two, where they cease to
_TOUCHING = 0.035, 0.09
_TILT = 0.3  # of the closed lips that the teeth follow: limit
_FILLED = 0.93  # of the way from the face's middle to a corner that a row of teeth reaches
_HALVES = (0.6, 1.8)  # of a donor's half row: limits of its width
_ARCH = 0.5  # how far a turned head's row of teeth is laid out as the arch that it is
_STRETCH, _OWN_STRETCH = 1.25, 1.35  # at most, of teeth where the lip uncovers more than their picture shows
# At most, of what an own mouth shows below the upper teeth, and how much more where it is deep
_OWN_BELOW, _OWN_DEEP = 1.6, 2.0
_FLOOR_WIDTH = (0.7, 1.3)  # of the floor's picture: limits
_FLOOR_STRETCH = 2.3  # at most, of a tongue in a mouth deeper than its picture
_FLOOR_HIGH = 0.8  # of the way from the lower teeth to the upper lip that the tongue reaches at most
_LOWER_LIGHT = np.float32((0.78, 0.73, 0.69))  # of the lower teeth, by the upper ones
_LOWER_TOOTH, _LOWER_LINE = 0.082, 0.007  # iod: a lower incisor's width, and the line beside it
_TEETH_SHOW = 0.06  # iod of upper teeth, from which on a mouth shows them
_JAW_SHOWS = (0.08, 0.14)  # iod that the jaw drops before a floor shows below a person's own teeth
_SOFTENED = 0.6  # of the photograph's own blur: teeth that lose the lines between them look like a slab
_UNSMILING = 0.85  # of a smile's light: lips that are not drawn back shade the teeth
_EDGE_EVEN = 0.02  # iod along a donor's row of teeth: its drawn edge is more ragged than teeth are
_DONOR_GRAIN = 1.5  # grey levels


@dataclass(frozen=True, eq=False)
class Parting:
    """Where a change takes the lips: (11, 2) crop px each, from the subject's right corner to the left one.

    source_upper, source_lower: the lips' inner edges in the photograph. upper, lower: after the change.
    upper_hold, lower_hold: after the change, the lines in the lips' flesh at which their movement was read.
    jaw: iod that the chin drops. interocular: crop px.
    """

    source_upper: np.ndarray
    source_lower: np.ndarray
    upper: np.ndarray
    lower: np.ndarray
    upper_hold: np.ndarray
    lower_hold: np.ndarray
    jaw: float
    interocular: float

    @property
    def gap(self) -> float:
        """iod between the lips after the change, in the middle."""
        return float(self.lower[5, 1] - self.upper[5, 1]) / self.interocular

    @property
    def opened(self) -> float:
        """iod that the lips part beyond what the photograph shows, at the widest place."""
        more = (self.lower - self.upper)[:, 1] - (self.source_lower - self.source_upper)[:, 1]
        return float(more[1:-1].max()) / self.interocular

    @property
    def shown(self) -> float:
        """iod between the lips in the photograph, at the widest place."""
        return float((self.source_lower - self.source_upper)[:, 1].max()) / self.interocular


@dataclass(frozen=True, eq=False)
class Opening:
    """A picture's part in which a mouth opens, of (h, w) pixels.

    photo: (height, width, 3) uint8 RGB, and landmarks (478, 2) px of it: for its colours. in_crop: the same
    landmarks, and parting: where the lips go, crop px. size: of the crop. scale: px of the picture a crop px.
    x, y: (h, w) places of the pixels, upper, lower: (h, w) heights of the lips' edges there, crop px. opened:
    (h, w), 0..1, how far a pixel lies between the lips.
    """

    photo: np.ndarray
    landmarks: np.ndarray
    in_crop: np.ndarray
    parting: Parting
    size: int
    scale: float
    x: np.ndarray
    y: np.ndarray
    upper: np.ndarray
    lower: np.ndarray
    opened: np.ndarray

    @property
    def corner(self) -> np.ndarray:
        """(h, w): 0 at the corners of the mouth to 1 in its middle."""
        left, right = self.parting.upper[0, 0], self.parting.upper[-1, 0]
        return np.minimum(self.x - left, right - self.x) / ((right - left) / 2)

    @property
    def middle(self) -> float:
        """Column of the face's middle at the lips, crop px."""
        return 0.5 * (self.in_crop[13, 0] + self.in_crop[0, 0])

    @property
    def teeth(self) -> np.ndarray:
        """(h, w) heights of the upper incisors' edge, crop px: the skull's, level with the closed lips."""
        source = self.parting.source_upper
        across, down = source[-1] - source[0]
        tilt = np.clip(down / max(across, 1e-3), -_TILT, _TILT)
        return source[5, 1] + _REST * self.parting.interocular + tilt * (self.x - self.middle)

    @property
    def slit(self) -> float:
        """Light that comes in, 0..1: little falls through a slit."""
        return 0.55 + 0.45 * smooth(self.parting.gap / 0.13)


def read_curve(curve: np.ndarray, x: np.ndarray) -> np.ndarray:
    """A curve (w,) at places x (rows, columns), level beyond its ends."""
    curve, x = curve[None].astype(np.float32), x.astype(np.float32)
    return cv2.remap(curve, x, np.zeros_like(x), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def render_inside(opening: Opening, mouth: Mouth | None) -> np.ndarray:
    """The mouth's inside without lips, (h, w, 3) float32 RGB.

    mouth: whose upper teeth show; None: no teeth.
    """
    inside = _cavity(opening)
    _draw_floor(inside, opening, mouth)
    if mouth is not None and mouth.is_own:
        _draw_own(inside, opening, mouth)
    elif mouth is not None:
        _draw_upper_teeth(inside, opening, mouth)
    if not has_colour(opening.photo, opening.landmarks):
        inside[:] = inside.mean(-1, keepdims=True)
    shadow = max(0.014 * opening.parting.interocular * opening.scale, 0.6)  # of the lips
    near = cv2.GaussianBlur(opening.opened, (0, 0), shadow)
    return inside * in_channels((0.55 + 0.45 * smooth((near - 0.35) / 0.5)).astype(np.float32))


def _cavity(opening: Opening) -> np.ndarray:
    """Darkest at the back, redder towards the lower lip."""
    lip = lip_colour(opening.photo, opening.landmarks).astype(np.float32)
    depth = smooth((opening.y - opening.upper) / np.maximum(opening.lower - opening.upper, 1e-3))
    light = 0.7 + 1.1 * depth**2
    return cv2.merge([light * part for part in lip * np.float32((0.24, 0.11, 0.10))])


def _draw_floor(inside: np.ndarray, opening: Opening, mouth: Mouth | None) -> None:
    """The embedded floor of the mouth: lower teeth and tongue, which hang on the lower lip.

    mouth: whose upper teeth it is lit like; None: in the photograph's light, with the lower teeth behind the
    lip. Below a person's own teeth it shows where the jaw drops.
    """
    p, iod, floor = opening.parting, opening.parting.interocular, embedded_floor()

    # 1. Columns: the floor is as wide as the lower lip
    left, right = p.lower[0, 0], p.lower[-1, 0]
    across = (opening.x - (left + right) / 2) / iod
    width = float(np.clip((right - left) / 2 / iod / floor.half_row, *_FLOOR_WIDTH))
    column = (floor.ends.mean() + across / width * floor.scale).astype(np.float32)
    top, edge, lip = (read_curve(curve, column) for curve in (floor.upper, floor.edge, floor.lower))

    # 2. Rows: the teeth as they are, the tongue stretched up
    grain = floor.scale / iod / width  # px of the floor's picture a crop px
    bottom = opening.lower + (0 if mouth is not None else (lip - edge) / grain)
    tips = bottom - (lip - edge) / grain  # crop px
    tall = np.maximum(edge - top, 1) / grain
    stretch = np.clip(_FLOOR_HIGH * (tips - opening.upper) / tall, 1, _FLOOR_STRETCH)
    above = (tips - opening.y) * grain
    row = edge - np.where(above > 0, above / stretch, above)
    at = column, np.clip(row, top, lip).astype(np.float32)
    source = _softened(floor.pixels, grain / opening.scale)
    colour = cv2.remap(source, *at, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE).astype(np.float32)

    # 3. Light: less falls behind the upper teeth, into the corners and down the throat
    lit_like = mouth if mouth is not None and mouth.shown > _TEETH_SHOW else None
    gain = light_gain(opening.photo, opening.landmarks, lit_like or floor)
    if lit_like is not None:
        gain = gain * _LOWER_LIGHT * lit_like.teeth_colour / floor.lower_teeth_colour
    between = np.abs((across + _LOWER_TOOTH / 2) % _LOWER_TOOTH - _LOWER_TOOTH / 2)
    is_tooth = np.clip(0.5 + (opening.y - tips) * opening.scale, 0, 1)
    lines = 1 - 0.22 * is_tooth * np.exp(-((between / _LOWER_LINE) ** 2))
    behind = (opening.y - opening.teeth) / iod
    deep = smooth((opening.y - tips + 1.15 * stretch * tall) / (0.5 * stretch * tall))
    light = lines * (0.25 + 0.75 * deep) * (0.4 + 0.6 * smooth(opening.corner / 0.35)) * opening.slit
    light = light * (0.15 + 0.85 * smooth(behind / 0.12))
    shown = (
        smooth((p.jaw - _JAW_SHOWS[0]) / np.ptp(_JAW_SHOWS)) if mouth is not None and mouth.is_own else 1.0
    )
    lit = np.maximum(colour * _tinted(light, gain), inside)  # cheeks are never black
    inside += shown * (lit - inside)


def _tinted(light: np.ndarray, gain: np.ndarray) -> np.ndarray:
    """Light (h, w) times the gain (3,) of each channel, (h, w, 3) float32."""
    return cv2.merge([(part * light).astype(np.float32) for part in gain])


def _softened(pixels: np.ndarray, grain: float) -> np.ndarray:
    """A picture of which `grain` px become one px, blurred so that it does not alias."""
    return cv2.GaussianBlur(pixels, (0, 0), 0.45 * grain) if grain > 1.2 else pixels


def _draw_own(inside: np.ndarray, opening: Opening, mouth: Mouth) -> None:
    """The person's own mouth, stretched with the lips.

    Sideways by the mouth's corners. Between the upper lip and the teeth's edge, which the skull holds, as far
    as _OWN_STRETCH; a lip that is raised further takes the edge along. What lies below the edge hangs on the
    lower lip, stretched as far as _OWN_BELOW, and where it is deep farther; lower teeth that show without
    upper ones as far as _OWN_STRETCH. Above it the cavity shows.
    """
    p, iod = opening.parting, opening.parting.interocular
    crop_px = iod / mouth.scale  # crop px a px of the mouth's picture
    left, right = p.upper[0, 0], p.upper[-1, 0]
    column = mouth.ends[0] + (opening.x - left) / (right - left) * (mouth.ends[1] - mouth.ends[0])
    upper, edge, lower = (read_curve(curve, column) for curve in (mouth.upper, mouth.edge, mouth.lower))
    above, below = np.maximum(edge - upper, 1e-3) * crop_px, np.maximum(lower - edge, 1e-3) * crop_px
    gain = light_gain(opening.photo, opening.landmarks, mouth)
    slit = 1.0 if mouth.origin == "photograph" else opening.slit
    corner = 0.75 + 0.25 * smooth(opening.corner / 0.15)
    light = cv2.merge([(part * corner * slit).astype(np.float32) for part in gain])
    grain = 1 / (crop_px * opening.scale)  # px of the mouth's picture a px
    source = _softened(mouth.pixels, grain)
    soft = max(1.0 / opening.scale, 0.008 * iod)  # crop px over which an edge fades

    def draw(row: np.ndarray, cover: np.ndarray) -> None:
        at = column.astype(np.float32), row.astype(np.float32)
        colour = cv2.remap(source, *at, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
        inside[:] += in_channels(cover) * (colour * light - inside)

    # 1. The teeth's edge
    incisors = mouth.place[1] * opening.size - 0.5
    if mouth.shape is not None:
        lip = moves_to(opening.in_crop, mouth.shape)[_UPPER_LIP, 1] + opening.in_crop[_UPPER_LIP, 1]
        incisors = _of_a_level_head(lip + mouth.shown * iod, p) + _SMILES_ABOVE * iod * (1 - _smile(p))
    held = incisors + (edge - mouth.incisors) * crop_px
    if mouth.shape is not None:  # its place is not known better: no dark line where lip and teeth touched
        dark = max(np.median((opening.lower - below - held)[opening.corner > 0.5]) / iod, 0)
        held = held + iod * min(dark, _TOUCHING[0]) * (1 - smooth((dark - _TOUCHING[1]) / 0.06))
    held = np.minimum(held, opening.upper + _OWN_STRETCH * above)

    # 2. What lies below it
    most = _OWN_BELOW + _OWN_DEEP * smooth((below / iod - 0.08) / 0.10)
    if mouth.shown < _TEETH_SHOW:  # it shows its lower teeth
        most = _OWN_STRETCH
    height = np.maximum(np.minimum(opening.lower - held, most * below), 1e-3)
    top = opening.lower - height
    share = (opening.y - top) / height
    cover = np.clip(0.5 + (opening.y - top) / soft, 0, 1)
    # A sliver is the lip's wet edge, or tips of teeth, which do not stand alone
    alone = smooth((top - held) / (0.03 * iod))
    cover = cover * smooth((below / iod - 0.06 * alone) / 0.04)
    draw(edge + np.clip(share, 0, 1) * (lower - edge), cover)

    # 3. The upper teeth, whose tops an upper lip covers that is less raised than in their picture
    share = (held - opening.y) / np.maximum(held - opening.upper, above)
    cover = np.clip(0.5 + (held - opening.y) / soft, 0, 1)
    draw(edge - np.clip(share, 0, 1) * (edge - upper), cover)


def _of_a_level_head(incisors: float, parting: Parting) -> float:
    """Where the incisors' edge of another photograph lies, crop px, unless a raised head brought it there.

    A head that is raised or lowered shortens the way from the eyes to the teeth.
    """
    iod = parting.interocular
    usual = parting.source_upper[5, 1] + (_REST - _SMILES_ABOVE) * iod
    aside = incisors - usual
    return usual + aside * (1 - smooth((abs(aside) / iod - _HELD[0]) / np.ptp(_HELD)))


def _places(opening: Opening, donor: Mouth) -> tuple[np.ndarray, np.ndarray, float]:
    """Where the pixels lie from the middle of the upper incisors' edge, and how far teeth are stretched down.

    The places are (h, w) iod of the donor's picture, to the left and down.
    """
    p, iod = opening.parting, opening.parting.interocular
    edge = opening.teeth
    # The row of teeth ends near both corners; a turned head's far side is shorter
    corners = np.abs(p.upper[[0, -1], 0] - opening.middle) / iod
    reach = np.clip(_FILLED * corners, *np.multiply(_HALVES, donor.half_row))
    rest = p.source_upper[5, 1] + _REST * iod  # height of the edge in the middle
    needs = (rest - p.upper[5, 1]) / iod
    stretch = float(np.clip(needs / max(donor.shown, 1e-3), 1, _STRETCH))
    # A lip that is raised further takes the teeth along
    edge = edge + min(0, p.upper[5, 1] + donor.shown * stretch * iod - rest)
    across = along_row((opening.x - opening.middle) / iod, reach, donor.half_row)
    return across, (opening.y - edge) / iod, stretch


def along_row(across: np.ndarray, reach: np.ndarray, half_row: float) -> np.ndarray:
    """Where a row of teeth that reaches half_row to both sides is read so that it reaches (2,) to each side.

    across: (h, w) places from the middle; all in iod. A row of teeth is an arch: the nearer side of a turned
    one is seen from aside, and its outer teeth rather than the incisors are longer.
    """
    t = smooth(across / 0.2 + 0.5)
    level = across * half_row / (reach[0] * (1 - t) + reach[1] * t)
    bend = half_row * (1 / reach[1] - 1 / reach[0]) / reach.sum()
    arched = (half_row / reach[0] + bend * reach[0]) * across + bend * across**2
    within = (across > -reach[0]) & (across < reach[1])
    return np.where(within, level + _ARCH * (arched - level), level)


def _smile(parting: Parting) -> float:
    """0..1: how far the corners of the mouth lie above its middle after the change."""
    middle = (parting.upper[5, 1] + parting.lower[5, 1]) / 2
    return float(smooth((middle - parting.upper[[0, -1], 1].mean()) / parting.interocular / 0.12))


def _draw_upper_teeth(inside: np.ndarray, opening: Opening, donor: Mouth) -> None:
    """A donor's upper teeth, on the skull."""
    p, iod = opening.parting, opening.parting.interocular
    across, down, stretch = _places(opening, donor)
    smile = _smile(p)
    flat = 0.55 * (1 - smile)  # a row's curve follows the lower lip's
    shade = (0.35 + 0.65 * smooth(opening.corner / 0.45)) * opening.slit
    shade = shade * (_UNSMILING + (1 - _UNSMILING) * smile)
    shade = shade * (0.72 + 0.28 * smooth((opening.y - opening.upper) / (0.05 * iod)))
    colour, cover = _row(donor, across, down / stretch, iod * opening.scale, flat=flat)
    gain = light_gain(opening.photo, opening.landmarks, donor)
    lit = cv2.merge(
        [part * of_channel * shade for part, of_channel in zip(cv2.split(colour), gain, strict=True)]
    )
    inside += in_channels(cover) * (lit - inside)


def _row(
    mouth: Mouth, x: np.ndarray, y: np.ndarray, interocular: float, flat: float
) -> tuple[np.ndarray, np.ndarray]:
    """A donor's upper teeth: colours (h, w, 3) and how far they cover (h, w).

    x, y: iod from the middle of the incisors' edge. interocular: px of the picture to be made. flat: how far
    the row's curve is straightened, 0..1.
    """
    grain = mouth.scale / interocular  # px of the mouth's picture a px
    source = _softened(mouth.pixels, grain)
    column = (mouth.middle + x * mouth.scale).astype(np.float32)
    curve = cv2.GaussianBlur(mouth.edge[None], (0, 0), 0.06 * mouth.scale)[0]
    row = mouth.incisors + y * mouth.scale
    row = row + flat * np.minimum(read_curve(curve, column) - mouth.incisors, 0)
    smoothed = cv2.GaussianBlur(mouth.edge[None], (0, 0), _EDGE_EVEN * mouth.scale)[0]
    edge, soft = read_curve(smoothed, column), max(1.2 * grain, 0.010 * mouth.scale)
    high = read_curve(mouth.upper, column) + 0.012 * mouth.scale
    low = np.maximum(edge - 0.006 * mouth.scale, high)
    fade = 0.03 * mouth.scale
    cover = np.clip(0.5 + (edge - row) / soft, 0, 1)
    cover = cover * smooth((column - mouth.ends[0]) / fade) * smooth((mouth.ends[1] - column) / fade)
    interpolation = cv2.INTER_LINEAR if grain > 1 else cv2.INTER_CUBIC
    at = column, np.clip(row, high, low).astype(np.float32)
    colour = cv2.remap(source, *at, interpolation, borderMode=cv2.BORDER_REPLICATE)
    return colour.astype(np.float32), cover.astype(np.float32)


def like_photograph(inside: np.ndarray, opening: Opening, mouth: Mouth, blur: float) -> np.ndarray:
    """An inside (h, w, 3) made of another picture, as soft and as grainy as the photograph.

    blur: of the photograph, sigma in px.
    """
    interocular = opening.parting.interocular * opening.scale  # px
    # Blur that resampling leaves
    sharp = 0.4 if mouth.scale > interocular else 0.5 * interocular / mouth.scale
    blur *= _SOFTENED
    if blur > sharp:
        inside = cv2.GaussianBlur(inside, (0, 0), float(np.hypot(blur, 0.3) - 0.7 * sharp))
    noise = np.sqrt(max(grain_of(opening.photo, opening.landmarks) ** 2 - _DONOR_GRAIN**2, 0))
    if noise > 0.5:
        random = np.random.default_rng(0).standard_normal(inside.shape[:2]).astype(np.float32)
        random = cv2.GaussianBlur(random, (0, 0), 0.5)
        light = np.clip(inside.mean(-1) / 120, 0.15, 1)
        inside = inside + (0.7 * min(noise, 8) * light * random / random.std())[..., None]
    return inside
