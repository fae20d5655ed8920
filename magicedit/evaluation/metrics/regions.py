"""Change in each part of the face, and in the parts that a request does not touch."""

from collections.abc import Iterable, Mapping

import cv2
import numpy as np

from magicedit.action_units import FACS
from magicedit.faces import face_region, region_polygon
from magicedit.faces.regions import polygon_mask
from magicedit.faces.types import Scheme
from magicedit.vocabulary import whole_name

REGIONS = ("eyes", "brows", "nose", "mouth", "elsewhere")  # elsewhere: the rest of the face
# Region of an action unit -> the parts of the face whose skin it moves on real faces
_TOUCHES = {
    "brow": {"brows", "eyes", "elsewhere"},  # lids fold, the forehead wrinkles
    "eye": {"eyes"},
    "nose": {"nose", "brows", "eyes", "mouth", "elsewhere"},  # also draws brows down and the upper lip up
    "cheek": {"eyes", "elsewhere"},
    "lip": {"mouth", "nose", "elsewhere"},  # the wings of the nose widen, cheeks and chin follow
    "jaw": {"mouth", "elsewhere"},
}
_NOSE: dict[Scheme, tuple[int, ...]] = {
    "mediapipe478": (6, 197, 195, 5, 4, 1, 2, 97, 326, 98, 327, 64, 294, 129, 358, 48, 278),
    "ibug68": tuple(range(27, 36)),
}
# Growth factor of each outline about its centre: lids, the brow's hair, the lips' rim
_GROW = {"eyes": 1.5, "brows": 1.2, "nose": 1.1, "mouth": 1.2}


def region_masks(landmarks: np.ndarray, scheme: Scheme, size: int) -> dict[str, np.ndarray]:
    """The face's parts as (size, size) bool masks that share no pixel, by the names of `REGIONS`.

    landmarks: (points, 2) px of the crop.
    """
    points = np.asarray(landmarks, np.float32)
    outlines = {
        "eyes": [region_polygon(points, scheme, name) for name in ("right_eye", "left_eye")],
        "brows": [region_polygon(points, scheme, name) for name in ("right_brow", "left_brow")],
        "mouth": [region_polygon(points, scheme, "lips")],
        "nose": [points[list(_NOSE[scheme])]],
    }
    left = face_region(points, size, scheme)
    masks = {}
    for name, polygons in outlines.items():
        drawn = np.zeros((size, size), bool)
        for polygon in polygons:
            hull = cv2.convexHull(polygon)[:, 0]
            centre = (hull.max(0) + hull.min(0)) / 2
            drawn |= polygon_mask(centre + (hull - centre) * _GROW[name], size)
        masks[name] = drawn & left
        left = left & ~drawn
    masks["elsewhere"] = left
    return {name: masks[name] for name in REGIONS}


def change_by_region(
    before: np.ndarray, after: np.ndarray, landmarks: np.ndarray, scheme: Scheme
) -> dict[str, float]:
    """Mean absolute change of the pixels of each part of the face, levels 0..255.

    Args:
        before, after: (size, size, 3) uint8 crops by one alignment. ValueError where their shapes differ.
        landmarks: (points, 2) px of the crop, of the face before.
    """
    if before.shape != after.shape or before.shape[0] != before.shape[1]:
        raise ValueError(f"expected two square crops of one size, got {before.shape} and {after.shape}")
    change = np.abs(after.astype(np.int16) - before)
    masks = region_masks(landmarks, scheme, len(before))
    return {name: float(change[mask].mean()) for name, mask in masks.items() if mask.any()}


def untouched_regions(names: Iterable[str]) -> list[str]:
    """The parts of the face that none of these action units moves; one side counts as the whole unit."""
    region_of = {unit.name: unit.region for unit in FACS.controls}
    touched = set().union(*(_TOUCHES[region_of[whole_name(name)]] for name in names))
    return [name for name in REGIONS if name not in touched]


def unrequested_change(asked: Mapping[str, float], changes: Mapping[str, float]) -> float | None:
    """Returns the largest change among parts that the request does not touch, levels 0..255; None if none.

    The largest and not the mean, because a ghost in the mouth counts even if the nose is unchanged.

    Args:
        asked: AU name -> variation in steps; zeros request nothing.
        changes: of `change_by_region`.
    """
    untouched = untouched_regions(name for name, value in asked.items() if value)
    return max((changes[name] for name in untouched if name in changes), default=None)
