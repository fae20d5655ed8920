"""Mouths that show their teeth: those embedded in the package, and those of a person's own photographs.

`dev/mouth_donors.py` cuts the embedded ones out of photographs. The donors of upper teeth come from the Face
Research Lab London Set (DeBruine & Jones 2017, CC BY 4.0, doi:10.6084/m9.figshare.5047666.v5), the floor of
the mouth with lower teeth and tongue from a synthetic portrait. They show the inside of mouths, and nobody.
Lengths named iod are interocular distances.
"""

import json
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import PIL.Image

from magicedit.faces.alignment import Alignment
from magicedit.faces.frame import face_frame
from magicedit.faces.regions import region_polygon
from magicedit.warping.muscles import LOWER_LIP_EDGE, UPPER_LIP_EDGE
from magicedit.warping.own_smile import FaceShape
from magicedit.warping.seam import cheapest_path

DONORS = Path(__file__).with_name("donors")

_CHEEKS = (50, 280, 117, 346, 101, 330)
_IRIS = ((468, 469), (473, 474))  # centre and a point of the rim
_UPPER_OUTER = (185, 40, 39, 37, 0, 267, 269, 270, 409)
_LOWER_OUTER = (146, 91, 181, 84, 17, 314, 405, 321, 375)
_AROUND_EYES = (33, 133, 362, 263, 159, 386, 145, 374, 70, 300, 168)

# Between the first and the second gap a mouth's own inside is shown where it is pale, beyond always, iod
_SHOWS = (0.045, 0.10)
# What is darker than this share of the palest is no tooth; and how much of a mouth it is above lower teeth
_DARK, _DARK_SHARE = 0.2, 0.2
_TALLEST = 0.17  # iod, of upper incisors and the gums above
_BENDS = np.float32([0, 3])  # what a path of the teeth's edge pays for no step and for one
_LINES, _CRISP = 0.012, 0.8  # iod, of what is deepened between teeth, and by how much
_OWN_SCALE = 256  # px an iod, at most
_DIMMEST = 0.86  # of the light by the skin: whites of eyes lie in shadow more often than teeth
_BRIGHTEST = 205.0  # grey level of teeth: beyond they glow
# Of a donor's teeth: half of what 105 smiles of the training photographs differ by
_LEVEL, _WARMTH = 0.98, np.float64((1.01, 1.0, 0.99))
_COLOURLESS = 12  # grey levels between the channels, at most, of nine tenths of a face without colour
_TINT = (0.90, 1.10)  # of a donor's colours: glasses reflect

Origin = Literal["donor", "photograph", "reference"]


@dataclass(frozen=True, eq=False)
class Mouth:
    """A mouth that shows its inside, upright.

    pixels: (height, width, 3) uint8 RGB. upper, lower, edge: (width,) px, the edges of both lips and that of
    the upper teeth. ends: (2,) px, the outermost teeth's columns. middle: column of the face's middle. scale:
    px an iod. skin, sclera: (3,) colour of the photograph's cheeks and of the white of its eyes. half_width:
    iod, of the closed mouth. sharpness: px an iod that the picture really resolves.
    origin: "donor", somebody else's; "photograph", of the photograph that is edited; "reference", of another
    one of the same person. place: (2,) of own ones, where `middle` and the teeth's edge there lie in the
    unit square of the person's aligned crop. shape: of references, the face that shows the mouth.
    """

    pixels: np.ndarray
    upper: np.ndarray
    lower: np.ndarray
    edge: np.ndarray
    ends: np.ndarray
    middle: float
    scale: float
    skin: np.ndarray
    sclera: np.ndarray
    half_width: float
    sharpness: float
    origin: Origin = "donor"
    place: np.ndarray | None = None
    shape: FaceShape | None = None

    @property
    def is_own(self) -> bool:
        return self.origin != "donor"

    @property
    def incisors(self) -> float:
        """Row of the upper incisors' edge, px."""
        return float(self.edge[round(self.middle)])

    @property
    def shown(self) -> float:
        """How much of the upper incisors is seen, iod."""
        k = round(self.middle)
        return float((self.incisors - self.upper[max(k - 5, 0) : k + 6].mean()) / self.scale)

    @property
    def half_row(self) -> float:
        """Mean distance from the face's middle to the outermost teeth, iod."""
        return float(self.ends[1] - self.ends[0]) / 2 / self.scale

    @cached_property
    def teeth_colour(self) -> np.ndarray:
        """(3,) of the brighter half of what lies between the upper lip and the teeth's edge."""
        return self._colour_between(self.upper + 0.2 * (self.edge - self.upper), self.edge - 1)

    @cached_property
    def lower_teeth_colour(self) -> np.ndarray:
        """(3,) of the brighter half of what lies between `edge` and `lower`, in front."""
        height = self.lower - self.edge
        return self._colour_between(self.edge + 0.2 * height, self.lower - 0.3 * height, 0.3)

    def _colour_between(self, top: np.ndarray, bottom: np.ndarray, share: float = 1.0) -> np.ndarray:
        rows, columns = np.arange(len(self.pixels))[:, None], np.arange(len(top))
        within = np.abs(columns - self.ends.mean()) < share * np.ptp(self.ends) / 2
        return _brighter_half(self.pixels[(rows > top) & (rows < bottom) & within])


@cache
def embedded_mouths() -> tuple[Mouth, ...]:
    """The donors that ship with the package, with teeth of one tint: yellow ones look dull elsewhere."""
    entries = json.loads((DONORS / "donors.json").read_text(encoding="utf-8"))
    mouths = [_load_mouth(entry) for entry in entries]
    tints = np.stack([mouth.teeth_colour / mouth.teeth_colour.mean() for mouth in mouths])
    gains = (tints.mean(0) / tints).astype(np.float32)
    return tuple(
        replace(mouth, pixels=_crisp(mouth.pixels * gain, mouth.scale))
        for mouth, gain in zip(mouths, gains, strict=True)
    )


@cache
def embedded_floor() -> Mouth:
    """The floor of an open mouth: tongue between `upper` and `edge`, lower teeth between `edge` and `lower`.

    Here `edge` is the upper edge of the lower teeth, and `ends` are the corners of the lower lip.
    """
    return _load_mouth(json.loads((DONORS / "floor.json").read_text(encoding="utf-8")))


def _load_mouth(entry: dict[str, Any]) -> Mouth:
    with PIL.Image.open(DONORS / entry["file"]) as image:
        pixels = np.asarray(image.convert("RGB"))
    curves = ("upper", "lower", "edge", "ends", "skin", "sclera")
    return Mouth(
        pixels=pixels,
        **{name: np.array(entry[name], np.float32) for name in curves},
        middle=float(entry["middle"]),
        scale=float(entry["scale"]),
        half_width=entry["half_width"],
        sharpness=entry["sharpness"],
    )


def _crisp(pixels: np.ndarray, scale: float) -> np.ndarray:
    """Teeth with the lines between them as deep as in a photograph: small pictures, resampled twice, lose a
    quarter of them (`detail` of benchmarks/jury_smiles.json)."""
    values = pixels.astype(np.float32)
    fine = values - cv2.GaussianBlur(values, (0, 0), _LINES * scale)
    return np.rint(np.clip(values + _CRISP * fine, 0, 255)).astype(np.uint8)


def choose_mouth(landmarks: np.ndarray, seed: int = 0, best: int = 4) -> Mouth:
    """An embedded donor for a face, by the width of its mouth; `seed` chooses among the `best` nearest.

    landmarks (478, 2) px. The edit has no say, so that a face keeps its teeth in all edits and in a video.
    """
    half_width = np.ptp(face_frame(landmarks).to_face(np.asarray(landmarks)[[78, 308]])[:, 0]) / 2
    near = sorted(embedded_mouths(), key=lambda mouth: abs(mouth.half_width - half_width))[:best]
    return near[seed % len(near)]


def own_mouth(
    pixels: np.ndarray, landmarks: np.ndarray, alignment: Alignment, origin: Origin
) -> Mouth | None:
    """The inside of the mouth that a photograph shows; None where it shows none.

    pixels (height, width, 3) uint8 RGB; landmarks (478, 2) px of it; alignment: of the face. Shown is what
    lies between lips far apart, or less far with something paler than lips between them.
    """
    frame = face_frame(landmarks)
    points = frame.to_face(np.asarray(landmarks, np.float64))
    gap = points[14, 1] - points[13, 1]
    if gap < _SHOWS[0]:
        return None

    # 1. The mouth upright, in the frame that all photographs of a person share
    in_crop = face_frame(alignment.apply(landmarks)).interocular
    factor = max(1.0, min(_OWN_SCALE / in_crop, 1 / alignment.scale))
    fine = alignment.scaled(round(alignment.size * factor))
    points = fine.apply(landmarks).astype(np.float64)
    scale = face_frame(points).interocular
    upper, lower = points[list(UPPER_LIP_EDGE)], points[list(LOWER_LIP_EDGE)]
    x0, y0 = (np.minimum(upper.min(0), lower.min(0)) - 0.1 * scale).astype(int)
    x1, y1 = (np.maximum(upper.max(0), lower.max(0)) + 0.1 * scale).astype(int)
    matrix = fine.matrix.copy()
    matrix[:, 2] -= (x0, y0)
    picture = cv2.warpAffine(
        pixels, matrix, (x1 - x0, y1 - y0), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101
    )
    columns = np.arange(x1 - x0)
    curves = [
        np.interp(columns, np.maximum.accumulate(e[:, 0]) - x0, e[:, 1] - y0).astype(np.float32)
        for e in (upper, lower)
    ]
    skin = skin_colour(pixels, landmarks)
    if gap < _SHOWS[1] and not _shows_teeth(picture, *curves, skin, lip_colour(pixels, landmarks)):
        return None

    # 2. Its teeth
    edge = _incisors_edge(picture, *curves, scale)
    middle = float(np.clip((points[13, 0] + points[14, 0]) / 2 - x0, 0, len(columns) - 1))
    place = (np.array([middle + x0, edge[round(middle)] + y0]) + 0.5) / fine.size
    return Mouth(
        pixels=picture,
        upper=curves[0],
        lower=curves[1],
        edge=edge,
        ends=np.array([upper[0, 0] - x0, upper[-1, 0] - x0], np.float32),
        middle=middle,
        scale=scale,
        skin=skin,
        sclera=sclera_colour(pixels, landmarks),
        half_width=float(upper[-1, 0] - upper[0, 0]) / 2 / scale,
        sharpness=min(frame.interocular, scale),
        origin=origin,
        place=place,
        shape=FaceShape.of(landmarks) if origin == "reference" else None,
    )


def _shows_teeth(
    picture: np.ndarray, upper: np.ndarray, lower: np.ndarray, skin: np.ndarray, lip: np.ndarray
) -> bool:
    """Whether what lies between narrow lips is paler and less red than they are."""
    rows = np.arange(len(picture))[:, None]
    inner = 0.2 * (lower - upper)
    inside = picture[(rows > upper + inner) & (rows < lower - inner) & (lower - upper > 2)]
    if not len(inside):
        return False
    pale = _brighter_half(inside)
    less_red = (pale[1] / max(pale[0], 1)) / (lip[1] / max(lip[0], 1))
    return bool(pale.mean() > 0.6 * skin.mean() and pale.mean() > lip.mean() and less_red > 1.1)


def _brighter_half(colours: np.ndarray) -> np.ndarray:
    """(3,) mean of the colours (n, 3) from the median of brightness to its 90th percentile."""
    if not len(colours):
        return np.zeros(3)
    light = colours.mean(1)
    low, high = np.percentile(light, (50, 90))
    return colours[(light >= low) & (light <= high)].mean(0)


def _incisors_edge(picture: np.ndarray, upper: np.ndarray, lower: np.ndarray, scale: float) -> np.ndarray:
    """The lower edge of the upper teeth (width,) px: the smooth path from pale to dark that stands out most
    in the lower half of the opening, or the lower lip. Of a mouth that is wide open no lower than teeth are
    tall: its lower teeth and tongue go with the jaw. The upper lip where no upper teeth show."""
    lower = np.minimum(lower, upper + _TALLEST * scale)
    lab = cv2.cvtColor(picture, cv2.COLOR_RGB2LAB).astype(np.float32)
    tooth = cv2.GaussianBlur(
        lab[..., 0] - 2 * np.maximum(lab[..., 1] - 134, 0), (0, 0), max(0.8, 0.004 * scale)
    )
    step = max(2, int(0.008 * scale))
    drop = np.roll(tooth, step, 0) - np.roll(tooth, -step, 0)
    steps = np.linspace(-0.5, 0.05, 24)[:, None]
    columns = np.arange(len(upper), dtype=np.float32)
    rows = lower + steps * (lower - upper)
    gain = cv2.remap(drop, np.tile(columns, (len(steps), 1)), rows.astype(np.float32), cv2.INTER_LINEAR)
    gain -= 12 * np.abs(steps)
    path = cheapest_path(-gain, _BENDS)
    edge = cv2.GaussianBlur(rows[path, np.arange(len(upper))][None].astype(np.float32), (0, 0), 1.0)[0]

    # Dark above it: these are the lower teeth, and the upper ones end where the dark begins
    shares = np.linspace(0, 1, 33)[:, None]
    middle = slice(int(0.4 * len(upper)), int(0.6 * len(upper)) + 1)
    rows = (upper + shares * (edge - upper))[:, middle].astype(np.float32)
    across = np.tile(columns[middle], (len(shares), 1))
    profile = cv2.remap(tooth, across, rows, cv2.INTER_LINEAR).mean(1)
    dark = profile[: int(profile.argmax()) + 1] < _DARK * profile.max()
    if dark.sum() > _DARK_SHARE * len(shares):
        edge = upper + np.float32(shares[dark.argmax(), 0]) * (edge - upper)
    return edge


# --- Colours and sharpness that the light is read from ------------------------------------------------------


def _spots(pixels: np.ndarray, landmarks: np.ndarray, radius: float) -> list[np.ndarray]:
    """Squares of the cheeks; radius: iod."""
    reach = max(1, int(face_frame(landmarks).interocular * radius))
    spots = []
    for x, y in np.rint(np.asarray(landmarks)[list(_CHEEKS)]).astype(int):
        spot = pixels[max(y - reach, 0) : y + reach + 1, max(x - reach, 0) : x + reach + 1]
        if spot.size:
            spots.append(spot)
    return spots


def _around(pixels: np.ndarray, points: np.ndarray, margin: float = 0.0) -> np.ndarray:
    """The part of a picture around points (n, 2); all in px."""
    x0, y0 = np.maximum((points.min(0) - margin).astype(int), 0)
    x1, y1 = np.maximum(np.ceil(points.max(0) + margin).astype(int), 0)
    return pixels[y0:y1, x0:x1]


def skin_colour(pixels: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """(3,) median of six places of the cheeks; pixels uint8 RGB, landmarks (478, 2) px."""
    spots = [spot.reshape(-1, 3).mean(0) for spot in _spots(pixels, landmarks, 0.03)]
    return np.median(spots, 0) if spots else np.full(3, 128.0)


def has_colour(pixels: np.ndarray, landmarks: np.ndarray) -> bool:
    """Whether the photograph is one in colour, by the strongest colours of the face: skin may be grey."""
    face = _around(pixels, landmarks)
    if not face.size:
        return False
    red, green, blue = cv2.split(face)
    apart = cv2.max(cv2.max(red, green), blue) - cv2.min(cv2.min(red, green), blue)
    return np.count_nonzero(apart > _COLOURLESS) > 0.1 * apart.size


def lip_colour(pixels: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """(3,) median along the middle of both lips."""
    outer = np.asarray(landmarks)[[*_UPPER_OUTER, *_LOWER_OUTER]]
    inner = np.asarray(landmarks)[[*UPPER_LIP_EDGE[1:-1], *LOWER_LIP_EDGE[1:-1]]]
    at = np.rint((outer + inner) / 2).astype(int).clip(0, (pixels.shape[1] - 1, pixels.shape[0] - 1))
    return np.median(pixels[at[:, 1], at[:, 0]], axis=0)


def sclera_colour(pixels: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """(3,) of the brighter half of the white of the eyes, without glints; NaN where eyes are shut or tiny."""
    found = []
    landmarks = np.asarray(landmarks, np.float64)
    for name, (centre, rim) in zip(("right_eye", "left_eye"), _IRIS, strict=True):
        polygon = region_polygon(landmarks, "mediapipe478", name)
        x0, y0 = np.maximum(np.floor(polygon.min(0)).astype(int) - 1, 0)
        x1, y1 = np.ceil(polygon.max(0)).astype(int) + 2
        view = pixels[y0:y1, x0:x1]
        if not view.size:
            continue
        mask = np.zeros(view.shape[:2], np.uint8)
        cv2.fillPoly(mask, [np.rint((polygon - (x0, y0)) * 16).astype(np.int32)], 1, shift=4)
        radius = np.linalg.norm(landmarks[centre] - landmarks[rim])
        at = np.rint(landmarks[centre] - (x0, y0)).astype(int)
        cv2.circle(mask, (int(at[0]), int(at[1])), int(np.ceil(1.15 * radius)), 0, -1)
        kernel = np.ones((2 * max(1, int(0.15 * radius)) + 1,) * 2, np.uint8)
        white = view[cv2.erode(mask, kernel) > 0]
        if len(white) >= 6:
            found.append(_brighter_half(white))
    return np.mean(found, 0) if found else np.full(3, np.nan)


def blur_of(pixels: np.ndarray, landmarks: np.ndarray) -> float:
    """How soft a photograph is: sigma in px of the blur that would make a sharp one so.

    By the ratio of two octaves around the eyes, calibrated on the London set at 30 to 200 px an iod, on which
    it hardly depends.
    """
    points = np.asarray(landmarks)[list(_AROUND_EYES)]
    view = _around(pixels, points, 0.1 * face_frame(landmarks).interocular)
    if min(view.shape[:2], default=0) < 4:
        return 0.0
    grey = cv2.cvtColor(view, cv2.COLOR_RGB2GRAY).astype(np.float32)
    fine, middle, coarse = (cv2.GaussianBlur(grey, (0, 0), sigma) for sigma in (0.7, 1.4, 2.8))
    ratio = np.std(fine - middle) / max(np.std(middle - coarse), 1e-3)
    return float(np.interp(ratio, (0.33, 0.38, 0.43, 0.50, 0.60, 0.70), (3.0, 2.0, 1.5, 1.0, 0.6, 0.0)))


def grain_of(pixels: np.ndarray, landmarks: np.ndarray) -> float:
    """Noise of flat skin, grey levels: the lower quartile of the cheeks' median absolute deviations."""
    found = []
    for spot in _spots(pixels, landmarks, 0.06):
        if min(spot.shape[:2]) > 4:
            grey = cv2.cvtColor(spot, cv2.COLOR_RGB2GRAY).astype(np.float32)
            found.append(1.48 * np.median(np.abs(grey - cv2.GaussianBlur(grey, (0, 0), 1.0))))
    return float(np.percentile(found, 25)) if found else 0.0


def light_gain(pixels: np.ndarray, landmarks: np.ndarray, mouth: Mouth) -> np.ndarray:
    """(3,) factor that brings a mouth's colours into the light of a photograph.

    Teeth do not darken with skin: over 41 people of the London set they correlate 0.28 with the skin's
    brightness and 0.49 with the white of the eye. So a donor's level follows the sclera (ratio to the power
    0.8) within bounds by the skin (ratio to the power 0.25). Their tint follows both, half as far as it does
    in 44 smiles of synthetic portraits: a jury finds teeth in all of a warm light's colour dirty. A person's
    own follow the skin's brightness alone.
    """
    skin = (skin_colour(pixels, landmarks) / np.maximum(mouth.skin, 1)).clip(0.05, 5)
    if mouth.origin == "photograph":
        return np.ones(3)
    if mouth.origin == "reference":  # another person's skin may be much brighter or darker
        return skin * min(1.0, _BRIGHTEST / (skin * mouth.teeth_colour).mean())
    by_skin = skin**0.25
    by_sclera = (sclera_colour(pixels, landmarks) / np.maximum(mouth.sclera, 1)).clip(0.1, 3) ** 0.8
    if not np.isfinite(by_sclera).all():
        return _LEVEL * by_skin
    level = np.clip(by_sclera.mean(), _DIMMEST * by_skin.mean(), 1.05 * by_skin.mean())
    level = min(_LEVEL * level, _BRIGHTEST / mouth.teeth_colour.mean())
    tint = (by_sclera / by_sclera.mean()) ** 0.5 * by_skin / by_skin.mean()
    tint = tint.clip(*_TINT)
    return level * np.minimum(tint, tint[0]) * _WARMTH  # teeth are never bluer than the donor's
