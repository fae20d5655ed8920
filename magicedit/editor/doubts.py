"""Warnings about an edit, from the photograph before it, the edited picture and the measurement.

Each function returns a list of sentences, empty if nothing is wrong or no measurement sees it.
"""

import math
from collections.abc import Collection, Mapping, Sequence

import cv2
import numpy as np

from magicedit.action_units import DEAD_ZONE, FACS, GEOMETRIC, UNSEEN, is_angle
from magicedit.faces import Face, align, covered_parts, crop_face, editing_region, region_polygon
from magicedit.faces.frame import face_frame
from magicedit.faces.gaze import CLOSED, eye_openness
from magicedit.faces.measure import LANDMARKS_SHOW, SEEN_BY_LANDMARKS
from magicedit.faces.regions import polygon_mask
from magicedit.faces.types import Scheme
from magicedit.vocabulary import INTENSITY_RANGE, split_sides, whole_name
from magicedit.warping import Change
from magicedit.warping.change import sharpened
from magicedit.warping.head import head_limits
from magicedit.warping.warp import derivatives

POSE_LIMIT = 30.0  # degrees of yaw or pitch; roll is undone by the alignment
REACHED_SHARE = 0.5  # a measured change below this share of the request is worth a warning
SMALLEST_ANGLES = {"gaze": 10.0, "head": 5.0}  # degrees: smaller changes are measurement noise
SMALLEST_JUDGED = 0.5  # intensity steps: smaller changes are measurement noise, and explain no paint

# Areas in squares of the interocular distance. Measured with `mini` at 128 px on 52 faces that it was not
# trained on: +3 of a unit folds nothing, AU26 = +8 folds 0.001 and more on 20 of them. Its own paint that no
# request explains covers 0.02 and more on 34 at AU1 = +0.5, on 4 at AU1 = +3 and on none at AU12 = +3.
FOLDED_AREA = 0.001
PAINTED_AREA = 0.02
VISIBLE = 0.08  # colour difference of 1, mean over channels, that paint makes to the moved photograph
_AROUND_LIPS, _AROUND_EYES = 0.06, 0.15  # interocular distances
_FEW_PIXELS = 2  # of a crop: less is no fold


def doubts_of_edit(
    pixels: np.ndarray,
    face: Face,
    change: Change | None,
    requested: Mapping[str, float],
    resolution: int,
    glasses: float = 0.0,
    covered: Sequence[str] | None = None,
    recipe: Collection[str] = (),
) -> list[str]:
    """Returns warnings about an edit, from the photograph and the change of a face's crop.

    change: None for an empty request. Other arguments as in `doubts_before`.
    """
    doubts = doubts_before(pixels, face, requested, resolution, glasses, covered, recipe)
    if change is not None:
        alignment = align(face, resolution)
        landmarks = alignment.apply(face.landmarks)
        region = editing_region(landmarks, resolution, face.scheme, glasses)
        doubts += doubts_of_folds(change, landmarks, face.scheme, region)
        if change.mask.any():  # cutting the crop out of a large photograph takes longer than the rest
            crop = crop_face(pixels, alignment)
            doubts += doubts_of_paint(change, crop, landmarks, face.scheme, region, requested)
    return doubts


def doubts_before(
    pixels: np.ndarray,
    face: Face,
    requested: Mapping[str, float],
    resolution: int,
    glasses: float = 0.0,
    covered: Sequence[str] | None = None,
    recipe: Collection[str] = (),
) -> list[str]:
    """Returns the reasons known before an edit why its result may be poor.

    Args:
        pixels: the photograph, (height, width, 3) uint8 RGB.
        requested: AU name -> variation in intensity steps.
        resolution: px, of the model's crop.
        glasses: 0..1, how far they are held in place, see `magicedit.faces.glasses`.
        covered: the face's `covered_parts`, if already known.
        recipe: names that an emotion asks for, and not the user, whom their range would not tell what to do.
    """
    if not any(requested.values()):
        return []
    doubts = []
    if face.pose is not None:
        for axis in ("yaw", "pitch"):
            angle = getattr(face.pose, axis)
            if abs(angle) > POSE_LIMIT:
                doubts.append(
                    f"the head's {axis} of {angle:+.0f}° is beyond the ±{POSE_LIMIT:.0f}° that edit well"
                )
    if covered := covered_parts(pixels, face) if covered is None else covered:
        doubts.append(f"something seems to cover the {', '.join(covered)}")
    if glasses > 0 and _asks_for(requested, "brow"):
        doubts.append("the face seems to wear glasses; their rims stay in place, and the brows beside them")
    native = resolution / align(face, resolution).scale
    if native < resolution:
        doubts.append(
            f"low resolution: the face's crop measures {native:.0f} px, the model's {resolution} px"
        )
    doubts += doubts_of_eyes(face, requested) + doubts_of_head(face, requested)
    low, high = INTENSITY_RANGE
    measured = face.action_units | face.sides
    for name, delta in requested.items():
        # What is not trained has no training range
        if name in recipe or whole_name(name) in GEOMETRIC:
            continue
        start = None if whole_name(name) in SEEN_BY_LANDMARKS else measured.get(name)
        if start is None:
            if abs(delta) > high - low:
                doubts.append(
                    f"a variation of {delta:+g} of {name} exceeds those in training (±{high - low:g})"
                )
        elif delta and not low - DEAD_ZONE <= round(start + delta, 1) <= high + DEAD_ZONE:  # measured roughly
            doubts.append(
                f"{name} would become {start + delta:.1f}, outside the training range {low:g} to {high:g}"
            )
    return doubts


def doubts_of_eyes(face: Face, requested: Mapping[str, float]) -> list[str]:
    """Warns where eyes that are closed in the photograph are to move; arguments as in `doubts_before`."""
    if face.scheme != "mediapipe478":
        return []
    doubts = []
    sides = split_sides(requested)
    shut = [
        (place, side)
        for place, side, openness in zip(("left", "right"), sides, eye_openness(face.landmarks), strict=True)
        if openness < CLOSED
    ]
    for what, asks in (
        ("gaze cannot move it", lambda side: side.get("gaze_yaw") or side.get("gaze_pitch")),
        (
            "AU43 cannot open it, because the photograph does not show the eyeball",
            lambda s: s.get("AU43", 0) < 0,
        ),
    ):
        if places := [place for place, side in shut if asks(side)]:
            eyes = "each eye" if len(places) == 2 else f"the {places[0]} eye"
            doubts.append(f"{eyes} is closed, and {what}; use a photograph with open eyes")
    if not shut and any(side.get("AU43", 0) < 0 for side in sides):
        doubts.append("the eyes are open: AU43 below 0 changes nothing; AU5 widens them")
    return doubts


def doubts_of_head(face: Face, requested: Mapping[str, float]) -> list[str]:
    """Warns where a head is to turn farther than its photograph shows; arguments as in `doubts_before`."""
    return [
        f"{axis} {requested[axis]:+g}° turns less than asked: in this pose the photograph shows the head for "
        f"{least:+.0f}° to {most:+.0f}°"
        for axis, (least, most) in _turns_beyond(face, requested).items()
    ]


def _turns_beyond(face: Face, requested: Mapping[str, float]) -> dict[str, tuple[float, float]]:
    """Returns the axes about which the head is to turn farther than its photograph shows, and its limits."""
    if face.scheme != "mediapipe478" or not any(map(is_angle, requested)):
        return {}
    return {
        axis: (least, most)
        for axis, (least, most) in head_limits(face.landmarks).items()
        if not least <= requested.get(axis, 0) <= most
    }


def beyond_reach(face: Face, requested: Mapping[str, float]) -> list[str]:
    """Returns the requested angles that the photograph does not show: those of closed eyes and far turns."""
    gaze = [name for name in requested if is_angle(name) and FACS[name].kind == "gaze"]
    shut = bool(gaze) and face.scheme == "mediapipe478" and max(eye_openness(face.landmarks)) < CLOSED
    return [*(gaze if shut else ()), *_turns_beyond(face, requested)]


def doubts_of_folds(change: Change, landmarks: np.ndarray, scheme: Scheme, region: np.ndarray) -> list[str]:
    """Warns where the change folds skin over itself.

    Args:
        change: of a crop. landmarks: (points, 2), px of the crop, before the change.
        region: (size, size) float32, 0..1: weight of the change at each pixel.
    """
    folds = folded(change, landmarks, scheme, region)
    if folds.sum() < max(_FEW_PIXELS, FOLDED_AREA * _unit(landmarks, scheme)):
        return []
    return [f"the skin folds over itself at {_place(folds, landmarks, scheme)}: ask for less"]


def doubts_of_paint(
    change: Change,
    crop: np.ndarray,
    landmarks: np.ndarray,
    scheme: Scheme,
    region: np.ndarray,
    requested: Mapping[str, float],
) -> list[str]:
    """Warns where paint is visible that no request explains.

    Args:
        crop: (size, size, 3) uint8 RGB, before the change.
        requested: AU name -> variation in intensity steps.
        change, landmarks, region: as in `doubts_of_folds`; a change without paint has a mask of 0.
    """
    doubts = []
    painted = visible_paint(change, crop, region)
    if not painted.any():
        return doubts
    enough = PAINTED_AREA * _unit(landmarks, scheme)
    lips = lips_after(change, landmarks, scheme, region)
    outside = painted & ~lips & ~_explained_eyes(landmarks, scheme, len(painted), requested)
    if outside.sum() >= enough:
        place = _place(outside, landmarks, scheme)
        doubts.append(f"paint shows outside the lips, at {place}, and no request explains it")
    if (painted & lips).sum() >= enough and not _asks_for(requested, "lip", "jaw"):
        doubts.append("the mouth is painted, and no request explains it")
    return doubts


def folded(change: Change, landmarks: np.ndarray, scheme: Scheme, region: np.ndarray) -> np.ndarray:
    """Returns (size, size) bool: where the change, weighted by the region, folds the photograph over itself.

    There the Jacobian determinant of the backward map p -> p + flow(p) is not positive. The mouth, where lips
    part, and painted pixels are excluded.
    """
    size = len(region)
    flow = change.flow * region[..., None]
    x_by_x, x_by_y, y_by_x, y_by_y = derivatives(flow)
    determinant = (1 + x_by_x) * (1 + y_by_y) - x_by_y * y_by_x
    mouth = _grown(
        polygon_mask(region_polygon(landmarks, scheme, "lips"), size), 2 * _AROUND_LIPS, landmarks, scheme
    )
    return (determinant <= 0) & (region > 0) & ~mouth & (change.mask < 0.5)


def visible_paint(change: Change, crop: np.ndarray, region: np.ndarray) -> np.ndarray:
    """Returns (size, size) bool: where paint gives a colour that moving the crop (uint8 RGB) does not."""
    size = len(region)
    share = sharpened(np.clip(change.mask, 0, 1)) * region
    if share.max() <= VISIBLE:  # of a difference of at most 1
        return np.zeros((size, size), bool)
    across, down = np.meshgrid(np.arange(size, dtype=np.float32), np.arange(size, dtype=np.float32))
    flow = (change.flow * region[..., None]).astype(np.float32)
    moved = cv2.remap(
        crop, across + flow[..., 0], down + flow[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
    )
    difference = np.abs(np.clip(change.paint, 0, 1) - moved.astype(np.float32) / 255).mean(-1)
    return share * difference > VISIBLE


def lips_after(change: Change, landmarks: np.ndarray, scheme: Scheme, region: np.ndarray) -> np.ndarray:
    """(size, size) bool: lips and mouth before and after the change, and a little around them.

    The convex hull of where the flow reads pixels of the lips, so that a mouth that opens is within it.
    """
    size = len(region)
    lips = polygon_mask(region_polygon(landmarks, scheme, "lips"), size)
    down, across = np.indices((size, size))
    flow = change.flow * region[..., None]
    x = np.rint(across + flow[..., 0]).astype(int).clip(0, size - 1)
    y = np.rint(down + flow[..., 1]).astype(int).clip(0, size - 1)
    rows, columns = np.nonzero(lips | lips[y, x])
    hull = cv2.convexHull(np.stack([columns, rows], -1).astype(np.float32)).reshape(-1, 2)
    return _grown(polygon_mask(hull, size), _AROUND_LIPS, landmarks, scheme)


def unreached(
    requested: Mapping[str, float],
    before: Mapping[str, float],
    after: Mapping[str, float],
    moved: Mapping[str, float],
) -> list[str]:
    """Warns about AUs that moved less than half of the request, as far as the scale leaves room for it.

    It is enough that one scorer sees it: before and after (intensities), or moved (change by landmarks).
    Units of SEEN_BY_LANDMARKS are judged by landmarks alone, scaled by how much landmarks show of them;
    without landmarks there is no warning.
    """
    warnings = []
    for name, delta in requested.items():
        unit = whole_name(name)
        if name not in before or name not in after or unit in UNSEEN:
            continue
        limits = (-math.inf, math.inf) if is_angle(name) else INTENSITY_RANGE
        possible = float(np.clip(before[name] + delta, *limits)) - before[name]
        if abs(possible) < (SMALLEST_ANGLES[FACS[name].kind] if is_angle(name) else SMALLEST_JUDGED):
            continue
        if name in moved and moved[name] / possible >= REACHED_SHARE * LANDMARKS_SHOW.get(unit, 1.0):
            continue
        if unit in SEEN_BY_LANDMARKS:
            if name in moved:
                warnings.append(
                    f"{name} changed by {moved[name]:+z.1f} of the {delta:+.1f} requested, by landmarks"
                )
            continue
        change = after[name] - before[name]
        if change / possible >= REACHED_SHARE:
            continue
        by_landmarks = f", {moved[name]:+z.1f} by landmarks" if name in moved else ""
        warnings.append(
            f"{name} changed by {change:+z.1f} of the {delta:+.1f} requested "
            f"(measured {before[name]:z.1f} -> {after[name]:z.1f}{by_landmarks})"
        )
    return warnings


def _unit(landmarks: np.ndarray, scheme: Scheme) -> float:
    """Returns the squared interocular distance in px, the unit of areas."""
    return face_frame(landmarks, scheme).interocular ** 2


def _asks_for(requested: Mapping[str, float], *regions: str) -> bool:
    """Whether a unit of one of the regions has a request of SMALLEST_JUDGED or more."""
    units = {unit.name for unit in FACS.controls if unit.region in regions}
    return any(
        whole_name(name) in units and abs(delta) >= SMALLEST_JUDGED for name, delta in requested.items()
    )


def _explained_eyes(
    landmarks: np.ndarray, scheme: Scheme, size: int, requested: Mapping[str, float]
) -> np.ndarray:
    """Returns (size, size) bool: the eyes and their lids if a request moves them, else all False."""
    eyes = np.zeros((size, size), bool)
    if _asks_for(requested, "eye", "cheek"):
        for name in ("right_eye", "left_eye"):
            eyes |= polygon_mask(region_polygon(landmarks, scheme, name), size)
        eyes = _grown(eyes, _AROUND_EYES, landmarks, scheme)
    return eyes


def _grown(mask: np.ndarray, margin: float, landmarks: np.ndarray, scheme: Scheme) -> np.ndarray:
    """Returns the mask grown by `margin` interocular distances."""
    radius = max(1, round(margin * face_frame(landmarks, scheme).interocular))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    return cv2.dilate(mask.astype(np.uint8), disc).astype(bool)


def _place(mask: np.ndarray, landmarks: np.ndarray, scheme: Scheme) -> str:
    """Names the part of the face that holds most of a mask."""
    rows, columns = np.nonzero(mask)
    middle = np.array([np.median(columns), np.median(rows)])
    # Interocular distances below the eyes; the lips lie at 1.1
    _, depth = face_frame(landmarks, scheme).to_face(middle)
    if depth < -0.15:
        return "the brows"
    return "the eyes" if depth < 0.25 else "the nose and cheeks" if depth < 0.85 else "the mouth and chin"
