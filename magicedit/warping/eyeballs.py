"""Eyeballs that stay as they are while their lids move.

A flow that opens the lids stretches what lies between them, and round irises become those of a cat. But an
eyeball does not move with its lids: it is drawn where it was, and what a lid had hidden of it is completed.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np

from magicedit.faces.alignment import Alignment
from magicedit.faces.regions import smooth
from magicedit.warping.change import in_channels
from magicedit.warping.eyes import (
    HIDDEN,
    IRIS,
    LEAST_WINDOW,
    Iris,
    asked_of_eyes,
    find_iris,
    moved_lids,
    open_eyes,
    pixel_places,
    turned_eyeball,
    window_of_openings,
)
from magicedit.warping.lids import LOWER_MARGINS, UPPER_MARGINS, LidCurves, lid_curves
from magicedit.warping.mouth import forward_places

_CLOSING = 0.7  # of a closure, 0..1, from which on no eyeball is seen between the lids
_STILL = (0.01, 0.05)  # eye widths that a lid moves: eyeballs are left alone, and drawn
_WHITE_SEEN = (0.35, 0.65)  # of the opening's height: where the light of the white is read
_BESIDE_IRIS = 1.15  # radii of the iris from its centre: white
_SHADOW, _SHADOW_ENDS = 0.5, 0.18  # of an upper lid: share of the light, and of the opening's height
_LIDS_EDGE = (0.03, 0.16)  # of the opening's height from the lids: lashes and their shadow go with the lids


@dataclass(frozen=True, eq=False)
class Eyeball:
    """An eyeball in a part of a photograph that begins at (x, y).

    pixels: (h, w, 3) float32 RGB. cover: (h, w), 0..1, how far they replace those of the photograph.
    """

    x: int
    y: int
    pixels: np.ndarray
    cover: np.ndarray

    def draw(self, picture: np.ndarray) -> None:
        """Draws it into a picture (height, width, 3) uint8 RGB, in place."""
        height, width = self.cover.shape
        view = picture[self.y : self.y + height, self.x : self.x + width]
        drawn = view + in_channels(self.cover) * (self.pixels - view)
        view[:] = np.rint(np.clip(drawn, 0, 255))


def resting_eyeballs(
    pixels: np.ndarray,
    alignment: Alignment,
    flow: np.ndarray,
    landmarks: np.ndarray,
    request: Mapping[str, float],
) -> list[Eyeball]:
    """Returns the eyeballs of a photograph whose lids are about to move by a flow.

    Eyes that are closed, whose lids hardly move, or whose iris is not seen, as behind sunglasses, are left
    to the flow.

    Args:
        pixels: the photograph after `move_eyes`, (height, width, 3) uint8 RGB.
        flow: (size, size, 2) px, of the alignment's crop.
        landmarks: MediaPipe's (478, 2) before it, photograph px.
        request: what `move_eyes` was asked for.
    """
    landmarks, in_crop = np.asarray(landmarks, np.float64), alignment.apply(landmarks).astype(np.float64)
    turn, closures = asked_of_eyes(landmarks, request)
    inverse, found = alignment.inverse(), []
    for side in open_eyes(landmarks):
        # 1. Where the lids are, and where they go
        margins, moved = [*UPPER_MARGINS[side], *LOWER_MARGINS[side]], landmarks.copy()
        places = forward_places(flow, in_crop[margins], from_below=False)
        moved[margins] = places @ inverse[:, :2].T + inverse[:, 2]
        at_rest, after = lid_curves(landmarks, side), lid_curves(moved, side)
        upper, lower = after.upper - at_rest.upper, after.lower - at_rest.lower
        lids = moved_lids(at_rest, turn, closures[side])
        new = after.moved(lids.upper + upper, np.maximum(lids.lower + lower, lids.upper + upper))
        amount = smooth((max(np.abs(upper).max(), np.abs(lower).max()) - _STILL[0]) / np.ptp(_STILL))
        amount *= 1 - smooth(closures[side] / _CLOSING)
        x0, y0, x1, y1 = window_of_openings(lids, new, pixels.shape)
        if not amount or min(x1 - x0, y1 - y0) < LEAST_WINDOW:
            continue

        # 2. The eyeball: the photograph's, completed where a lid hid it
        picture = pixels[y0:y1, x0:x1].astype(np.float32)
        lids, new = lids.seen_from(x0, y0), new.seen_from(x0, y0)
        iris = find_iris(picture, landmarks[IRIS[side]] + turn - (x0, y0), lids)
        if iris is None:
            continue
        eyeball, here = turned_eyeball(picture, lids, new, iris, np.zeros(2)), pixel_places(picture.shape)
        eyeball *= in_channels(_light(picture, eyeball, lids, new, iris, here))
        eyeball += in_channels(lids.inside(here, *HIDDEN)) * (picture - eyeball)
        found.append(Eyeball(x0, y0, eyeball, np.float32(amount) * new.inside(here, *_LIDS_EDGE)))
    return found


def _light(
    picture: np.ndarray, eyeball: np.ndarray, lids: LidCurves, new: LidCurves, iris: Iris, here: np.ndarray
) -> np.ndarray:
    """Returns factors (h, w) of the light on what a lid had hidden of an eyeball.

    It lies in the shadow of the lid, and its white is no brighter than the photograph's below it.
    """
    across, depth = np.meshgrid(np.linspace(0.04, 0.96, 24), np.linspace(*_WHITE_SEEN, 4))
    places = lids.place(across, depth)
    level = cv2.remap(picture.mean(-1), places, None, cv2.INTER_LINEAR).max(0)  # (columns,)
    white = np.linalg.norm(places - iris.centre, axis=-1).min(0) > _BESIDE_IRIS * iris.radius
    if not white.any():
        return np.ones(here.shape[:2], np.float32)
    most = np.interp(lids.across(here), across[0, white], level[white])
    far = np.linalg.norm(here - iris.centre, axis=-1) / iris.radius
    too_bright = np.maximum(eyeball.mean(-1) / np.maximum(most, 1), 1)
    light = 1 + smooth((far - 0.9) / 0.2) * (1 / too_bright - 1)
    return (light * (1 - _SHADOW * np.exp(-np.maximum(new.depth(here), 0) / _SHADOW_ENDS))).astype(np.float32)
