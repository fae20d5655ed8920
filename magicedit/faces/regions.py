"""Face masks of a crop from landmarks, and the condition image that hides the face."""

import cv2
import numpy as np

from magicedit.faces.frame import face_frame
from magicedit.faces.types import Scheme, check_pixels

# MediaPipe's own contours (its FaceLandmarksConnections), as closed polygons of landmark indices.
_OVAL_478 = (
    *(10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377),
    *(152, 148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109),
)
_POLYGONS_478: dict[str, tuple[int, ...]] = {
    "right_eye": (33, 7, 163, 144, 145, 153, 154, 155, 133, 173, 157, 158, 159, 160, 161, 246),
    "left_eye": (263, 249, 390, 373, 374, 380, 381, 382, 362, 398, 384, 385, 386, 387, 388, 466),
    "lips": (61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 409, 270, 269, 267, 0, 37, 39, 40, 185),
    "mouth": (78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308, 415, 310, 311, 312, 13, 82, 81, 80, 191),
    "right_brow": (70, 63, 105, 66, 107, 55, 65, 52, 53, 46),
    "left_brow": (300, 293, 334, 296, 336, 285, 295, 282, 283, 276),
}
_POLYGONS_68: dict[str, tuple[int, ...]] = {
    "right_eye": (36, 37, 38, 39, 40, 41),
    "left_eye": (42, 43, 44, 45, 46, 47),
    "lips": tuple(range(48, 60)),
    "mouth": tuple(range(60, 68)),
    "right_brow": (17, 18, 19, 20, 21),
    "left_brow": (22, 23, 24, 25, 26),
}
# The 17 jaw points of the 68-point scheme, from the subject's right temple via the chin to the left one, as
# the nearest points of MediaPipe's mesh.
_JAW_478 = (162, 234, 93, 58, 172, 136, 149, 148, 152, 377, 378, 365, 397, 288, 323, 454, 389)
_JAW_68 = tuple(range(17))
# Height of the hairline over the line of the temples, in distances from that line to the chin: the mean of
# MediaPipe's oval over the 79 neutral faces of the alignment template. 68 landmarks end at the brows.
_FOREHEAD_HEIGHT = 0.36

# The face's middle from between the brows to the chin.
_MIDDLE = {"mediapipe478": (9, 168, 6, 197, 4, 2, 0, 17, 152), "ibug68": (27, 28, 29, 30, 33, 51, 57, 8)}
# Width of the seam between the sides, interocular distances: at the bridge of the nose about the bridge's
# width, at the mouth that of the lips, because lips would twist across a narrower seam
_SEAM, _SEAM_AT_MOUTH = 0.3, 0.65
_NOSE_BASE = {"mediapipe478": 2, "ibug68": 33}

GROW = 1.03  # the outermost landmarks lie on the skin's edge; the face ends slightly beyond
EDIT_GROW = 1.2  # an edit may change a wider area: hair and neck follow the skin beside them
# Of the crop's side: up to the first nothing drops below the face, from the second on a jaw does
_DROPS = (0.008, 0.024)
_JAW_DROP = 0.4  # interocular distances that an edit may take a jaw beyond that
# Where rims of glasses lie, interocular distances: above and below the eyes' line, beside the face's middle
_RIMS_ABOVE, _RIMS_BELOW, _RIMS_BESIDE = 0.45, 0.50, 1.15
# The same, for the transition to moving skin beside and above: a brow that rises there would move the rim
_RIMS_FADE, _RIMS_FADE_ABOVE = 0.12, 0.30
_LIDS = 0.05  # interocular distances around the eyes that still move behind the lenses
_EDIT_FEATHER = 0.06  # of the crop's side: about what the growth adds, so the face itself keeps full weight
_DISC_RADIUS = 1 / 128  # of the crop's side: 4 px at 512
_SUBPIXEL_BITS = 4


def face_oval(landmarks: np.ndarray, scheme: Scheme) -> np.ndarray:
    """Returns the face's outline, including the hairline, as a closed polygon (points, 2) float32."""
    if scheme == "mediapipe478":
        return np.asarray(landmarks, np.float32)[list(_OVAL_478)]
    jaw = np.asarray(landmarks, np.float32)[list(_JAW_68)]
    centre, half_width = (jaw[0] + jaw[16]) / 2, (jaw[16] - jaw[0]) / 2
    up = _FOREHEAD_HEIGHT * (centre - jaw[8])
    angles = np.linspace(0, np.pi, 15)[1:-1, None]
    forehead = centre + half_width * np.cos(angles) + up * np.sin(angles)  # left temple to right temple
    return np.concatenate([jaw, forehead]).astype(np.float32)


def region_polygon(landmarks: np.ndarray, scheme: Scheme, name: str) -> np.ndarray:
    """Outline of the subject's "right_eye", "left_eye", "right_brow" or "left_brow" (of ibug68 its upper
    edge), "lips" (outer edge) or "mouth" (between them)."""
    polygons = _POLYGONS_478 if scheme == "mediapipe478" else _POLYGONS_68
    if name not in polygons:
        raise ValueError(f"no region {name!r}; there are {', '.join(polygons)}")
    return np.asarray(landmarks, np.float32)[list(polygons[name])]


def jaw_contour(landmarks: np.ndarray, scheme: Scheme) -> np.ndarray:
    """Returns the 17 jaw points, (17, 2), from the subject's right temple via the chin to the left one."""
    return np.asarray(landmarks, np.float32)[list(_JAW_478 if scheme == "mediapipe478" else _JAW_68)]


def left_side(landmarks_in_crop: np.ndarray, size: int, scheme: Scheme) -> np.ndarray:
    """(size, size) float32: 1 on the subject's left, 0 on their right, with a smooth seam.

    The seam follows the face's middle from the brows to the chin. It is `_SEAM` wide above the nose's tip,
    and widens below to `_SEAM_AT_MOUTH`.
    """
    frame = face_frame(landmarks_in_crop, scheme)
    middle = frame.to_face(np.asarray(landmarks_in_crop, np.float64)[list(_MIDDLE[scheme])])
    middle = middle[np.argsort(middle[:, 1])]
    grid = frame.to_face(np.stack(np.meshgrid(np.arange(size), np.arange(size)), -1))  # (size, size, 2)
    seam = np.interp(grid[..., 1], middle[:, 1], middle[:, 0])
    base = frame.to_face(np.asarray(landmarks_in_crop, np.float64)[_NOSE_BASE[scheme]])[1]
    # 0 half-way down the nose .. 1 at its base
    lower = np.clip((grid[..., 1] - 0.5 * base) / (0.5 * base), 0, 1)
    width = _SEAM + (_SEAM_AT_MOUTH - _SEAM) * lower
    return smooth((grid[..., 0] - seam) / width + 0.5).astype(np.float32)


def polygon_mask(polygon: np.ndarray, size: int) -> np.ndarray:
    """(size, size) bool, True inside the polygon (points, 2), given in pixels of that array."""
    mask = np.zeros((size, size), np.uint8)
    cv2.fillPoly(mask, [_fixed_point(polygon)], 1, shift=_SUBPIXEL_BITS)
    return mask.astype(bool)


def face_region(
    landmarks_in_crop: np.ndarray, size: int, scheme: Scheme, *, grow: float = GROW
) -> np.ndarray:
    """Returns (size, size) bool, True inside the face's outline scaled by `grow` about its centre."""
    polygon = face_oval(landmarks_in_crop, scheme)
    centre = polygon.mean(0)
    return polygon_mask(centre + (polygon - centre) * grow, size)


def feathered_region(
    landmarks_in_crop: np.ndarray, size: int, scheme: Scheme, *, feather: float, grow: float = GROW
) -> np.ndarray:
    """(size, size) float32: 1 inside the face, falling smoothly to 0 over the last `feather` pixels.

    Exactly 0 outside the grown outline. The crop's own border counts as outline, so that content pasted back
    with this weight has no hard edge.
    """
    if feather <= 0:
        raise ValueError(f"feather must be positive, got {feather}")
    region = face_region(landmarks_in_crop, size, scheme, grow=grow).astype(np.uint8)
    framed = cv2.copyMakeBorder(region, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    inside = cv2.distanceTransform(framed, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    return smooth(inside / feather).astype(np.float32)


def editing_region(
    landmarks_in_crop: np.ndarray,
    size: int,
    scheme: Scheme,
    glasses: float = 0.0,
    flow: np.ndarray | None = None,
) -> np.ndarray:
    """Returns an edit's weight, (size, size) float32: 1 on the face and near it, 0 beyond `EDIT_GROW`.

    glasses: 0..1, how strongly the rims of glasses are held in place, see `magicedit.faces.glasses`.
    flow: (size, size, 2) px, from where the edit reads its pixels. A place below the face has the weight of
        the place that it shows, so that a jaw that drops by up to `_JAW_DROP` moves as a whole.
    """
    feather = _EDIT_FEATHER * size
    region = feathered_region(landmarks_in_crop, size, scheme, feather=feather, grow=EDIT_GROW)
    if flow is not None and -flow[..., 1].min() > _DROPS[0] * size:
        lowered = _with_dropped_jaw(landmarks_in_crop, scheme)
        lowered = feathered_region(lowered, size, scheme, feather=feather, grow=EDIT_GROW)
        y, x = np.mgrid[:size, :size].astype(np.float32)
        shown = cv2.remap(region, x + flow[..., 0], y + flow[..., 1], cv2.INTER_LINEAR)
        still, whole = _DROPS
        drops = smooth((-flow[..., 1] / size - still) / (whole - still))
        region = np.maximum(region, shown * drops * lowered)
    return region * (1 - glasses * glasses_region(landmarks_in_crop, size, scheme)) if glasses else region


def reachable_region(landmarks_in_crop: np.ndarray, size: int, scheme: Scheme) -> np.ndarray:
    """Returns (size, size) bool, True where an edit may change pixels: `EDIT_GROW`, or a dropped jaw's."""
    both = landmarks_in_crop, _with_dropped_jaw(landmarks_in_crop, scheme)
    return np.logical_or(*(face_region(landmarks, size, scheme, grow=EDIT_GROW) for landmarks in both))


def _with_dropped_jaw(landmarks: np.ndarray, scheme: Scheme) -> np.ndarray:
    """Landmarks (points, 2) px of the face moved down as far as an edit may take its jaw."""
    return landmarks + face_frame(landmarks, scheme).vectors_to_picture(np.array((0, _JAW_DROP)))


def between_eyes(landmarks: np.ndarray, scheme: Scheme) -> np.ndarray:
    """Returns the point (2,) between the middles of the eyes, in the units of the landmarks (points, 2)."""
    return np.mean([region_polygon(landmarks, scheme, name).mean(0) for name in ("right_eye", "left_eye")], 0)


def glasses_region(landmarks: np.ndarray, size: int, scheme: Scheme) -> np.ndarray:
    """Returns the area of glasses frames, (size, size) float32 0..1; landmarks (points, 2) px of the crop."""
    frame = face_frame(landmarks, scheme)
    iod = frame.interocular
    y, x = np.mgrid[:size, :size].astype(np.float32)
    places = (np.stack([x, y], -1) - between_eyes(landmarks, scheme)) @ frame.rotation.T / iod
    across, down = np.moveaxis(places, -1, 0)

    beside = np.minimum(_RIMS_BELOW - down, _RIMS_BESIDE - np.abs(across)) / _RIMS_FADE
    region = smooth(1 + np.minimum(beside, (down + _RIMS_ABOVE) / _RIMS_FADE_ABOVE))
    for name in ("right_eye", "left_eye"):
        mask = polygon_mask(region_polygon(landmarks, scheme, name), size).astype(np.uint8)
        far = cv2.distanceTransform(1 - mask, cv2.DIST_L2, 5) / iod
        region *= smooth((far - _LIDS) / (0.6 * _RIMS_FADE))
    return region.astype(np.float32)


def smooth(x: np.ndarray) -> np.ndarray:
    """Smoothstep of x, 0 below 0 and 1 above 1."""
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)


def condition_image(crop: np.ndarray, landmarks_in_crop: np.ndarray, scheme: Scheme) -> np.ndarray:
    """Returns the crop with a black face and 17 jaw points as coloured discs; (size, size, 3) uint8 RGB.

    It shows the model everything but the expression: background, hair, clothes, light, and the head's pose by
    the jaw's contour. Each point has its own hue, in rainbow order from the subject's right temple to the
    left one, so that a turned head differs from a mirrored one.
    """
    crop = check_pixels(crop)
    size = crop.shape[0]
    if crop.shape[1] != size:
        raise ValueError(f"a crop is square, got {crop.shape[1]} x {size} pixels")
    condition = crop.copy()
    condition[face_region(landmarks_in_crop, size, scheme)] = 0
    radius = max(1, round(size * _DISC_RADIUS * 2**_SUBPIXEL_BITS))
    for point, colour in zip(_fixed_point(jaw_contour(landmarks_in_crop, scheme)), _JAW_COLOURS, strict=True):
        cv2.circle(
            condition, point.tolist(), radius, colour, cv2.FILLED, lineType=cv2.LINE_AA, shift=_SUBPIXEL_BITS
        )
    return condition


def _fixed_point(points: np.ndarray) -> np.ndarray:
    return np.round(np.asarray(points, np.float64) * 2**_SUBPIXEL_BITS).astype(np.int32)


# Saturated RGB colours of evenly spaced hue, red to violet; OpenCV's hue unit is 2 degrees
_JAW_HUES = np.array([[(hue, 255, 255) for hue in np.linspace(0, 150, 17).round()]], np.uint8)
_JAW_COLOURS = [tuple(map(int, rgb)) for rgb in cv2.cvtColor(_JAW_HUES, cv2.COLOR_HSV2RGB)[0]]
