"""Where the eyes look, from the places of the irises between their corners, and how far they are open.

An eye turns about the middle of its ball, so an iris moves by the sine of the angle. Angles are relative to
the head, in degrees.

MediaPipe's irises hardly move up and down with the eye, and its eye corners move along, so the irises are
looked for in the picture, by the integral of brightening across their outlines (J. Daugman, "High confidence
visual recognition of persons by a test of statistical independence", PAMI 1993). How well this and two other
sources follow eyes that are moved by known angles: benchmarks/gaze.json.
"""

import cv2
import numpy as np

from magicedit.faces.frame import EYE_CORNERS
from magicedit.faces.types import Face, Gaze, Pose

# The iris's centre, and opposite points of its edge, in MediaPipe's 478; of the subject's right eye, the left
IRISES = ((468, ((469, 471), (470, 472))), (473, ((474, 476), (475, 477))))
# Iris diameters: 12.1 mm to 11.7 mm (I. Bekerman, P. Gottlieb, M. Vaiman, Journal of Ophthalmology, 2014)
EYEBALL_RADIUS = 1.03
# Height over width of the opening, below which an eye counts as closed, and from which lids do not count as
# closing: 99 % of 208 photographs of people who look or smile at the camera are above 0.22
CLOSED, CLOSING = 0.12, 0.20
# Pairs of landmarks, upper lid above lower lid; the subject's left eye first
_LID_PAIRS = (((387, 373), (386, 374), (385, 380)), ((160, 144), (159, 145), (158, 153)))
# The lids' edges around the opening; the subject's right eye first
_OPENINGS = (
    (33, 246, 161, 160, 159, 158, 157, 173, 133, 155, 154, 153, 145, 144, 163, 7),
    (362, 398, 384, 385, 386, 387, 388, 466, 263, 249, 390, 373, 374, 380, 381, 382),
)
# Iris diameters outwards from the middle of an eye's corners and above their line: where the iris lies in a
# straight gaze, median of the London Set
_OUTWARDS, _ABOVE = 0.152, 0.24
# What a movement between the corners counts: MediaPipe's corners follow a third to a half of an iris's way up
# and down, and none of its way across; downwards lids hide the iris too
_UP, _DOWN = 1.4, 2.0
# Corners lie in front of the middle of the eyeball, so a head that turns by a degree moves the irises between
# them by this share of a degree. People who look at the camera, same person smiling and neutral: 0.4.
_HEAD_SHOWS = 0.4
_RANGE = 0.95  # largest sine

# The look for an iris, in a picture of the eye whose corners are _WIDTH px apart
_WIDTH, _SIZE = 64, (96, 72)
_BLUR = 1.0  # px
_ANGLES = np.deg2rad(np.arange(0, 360, 10))
_RAYS = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], -1).astype(np.float32)  # (angles, 2)
_RADII = (0.90, 0.97, 1.04)  # of the radius by landmarks
_ACROSS_EDGE = 0.10  # radii to both sides of the outline, between which it brightens
_NEAR_LIDS = (0.06, 0.16)  # radii from the lids: the outline does not count, and does
_STRONGEST = 2.0  # standard deviations of the opening's grey: lamps count no more
_FAR = 0.1  # standard deviations that a place one radius from MediaPipe's must brighten more
_LEAST_SEEN = 4  # rays: outlines that show fewer count less
_SELECTIVE = 20.0  # natural logarithm of a circle's weight, for a standard deviation of brightening
_VISIBLE = 0.3  # standard deviations: less is no visible iris, as behind dark glasses


def _places(across: float, up: float, step: float) -> np.ndarray:
    """Returns a grid of places around 0, (places, 2) radii, the row of largest y last."""
    x, y = (np.arange(-end, end + step / 2, step) for end in (across, up))
    return np.stack(np.meshgrid(x, y), -1).reshape(-1, 2)


_PLACES = _places(0.45, 0.9, 0.15)


def eye_openness(landmarks: np.ndarray) -> tuple[float, float]:
    """Returns the height over the width of each eye's opening, the subject's left first; see `CLOSED`.

    landmarks: MediaPipe's (478, 2) px. Open eyes have 0.25 to 0.45.
    """
    landmarks = np.asarray(landmarks, np.float64)
    left, right = (
        np.mean([np.linalg.norm(landmarks[up] - landmarks[low]) for up, low in pairs])
        / max(np.linalg.norm(np.subtract(*landmarks[list(corners)])), 1e-6)
        for pairs, corners in zip(_LID_PAIRS, EYE_CORNERS["mediapipe478"][::-1], strict=True)
    )
    return float(left), float(right)


def eye_closure(landmarks: np.ndarray) -> tuple[float, float]:
    """Returns how far each eye is closed by its lids' landmarks, 0 to 1, the subject's left first.

    0 from `CLOSING` on, 1 up to `CLOSED`; landmarks as in `eye_openness`.
    """
    left, right = ((CLOSING - openness) / (CLOSING - CLOSED) for openness in eye_openness(landmarks))
    return float(np.clip(left, 0, 1)), float(np.clip(right, 0, 1))


def gaze_of(pixels: np.ndarray, landmarks: np.ndarray, pose: Pose) -> Gaze:
    """Returns the gaze relative to the head, of the open eye where one is closed.

    Eyes whose iris is not seen, as behind dark glasses, count by MediaPipe's irises.

    Args:
        pixels: a picture of the face, (height, width, 3) uint8 RGB, in which an eye is about `_WIDTH` px
            wide or smaller.
        landmarks: MediaPipe's (478, 2), px of the picture. pose: of the head.
    """
    landmarks = np.asarray(landmarks, np.float64)
    openness = eye_openness(landmarks)[::-1]  # the right eye first, as in IRISES
    moves = []
    for side, outwards in enumerate((-1, 1)):
        x, y = _iris_between_corners(pixels, landmarks, side, is_open=openness[side] >= CLOSED)
        moves.append((x - outwards * _OUTWARDS, -y - _ABOVE))
    seen = [move for move, opening in zip(moves, openness, strict=True) if opening >= CLOSED] or moves
    across, up = np.mean(seen, 0) / EYEBALL_RADIUS
    sines = np.clip([across, up * (_UP if up > 0 else _DOWN)], -_RANGE, _RANGE)
    yaw, pitch = np.degrees(np.arcsin(sines)) - _HEAD_SHOWS * np.array([pose.yaw, pose.pitch])
    return Gaze(float(yaw), float(pitch))


def _iris_between_corners(pixels: np.ndarray, landmarks: np.ndarray, side: int, is_open: bool) -> np.ndarray:
    """Returns the place of an iris from the middle of the eye's corners, (2,) iris diameters.

    The first axis points along the corners to the subject's left, the second down the face.
    """
    # 1. The eye upright, its corners _WIDTH px apart
    start, end = landmarks[list(EYE_CORNERS["mediapipe478"][side])]
    x, y = (end - start) / max(np.linalg.norm(end - start), 1e-6) ** 2 * _WIDTH
    turn = np.array([[x, y], [-y, x]])
    middle = np.array(_SIZE) / 2
    shift = middle - turn @ (start + end) / 2
    edges = [np.subtract(*landmarks[list(pair)]) for _, pairs in IRISES for pair in pairs]
    radius = np.linalg.norm(edges, axis=1).mean() / 2 * np.hypot(x, y)
    by_landmarks = turn @ landmarks[IRISES[side][0]] + shift
    if not is_open:
        return (by_landmarks - middle) / (2 * radius)
    eye = cv2.warpAffine(pixels, np.column_stack([turn, shift]), _SIZE, borderMode=cv2.BORDER_REPLICATE)
    grey = cv2.GaussianBlur(cv2.cvtColor(eye, cv2.COLOR_RGB2GRAY).astype(np.float32), (0, 0), _BLUR)
    opening = np.zeros(grey.shape, np.uint8)
    outline = landmarks[list(_OPENINGS[side])] @ turn.T + shift
    cv2.fillPoly(opening, [np.rint(16 * outline).astype(np.int32)], 1, shift=4)
    if not opening.any():
        return (by_landmarks - middle) / (2 * radius)

    # 2. The mean of circles around, weighted by how much they brighten: the best one alone leaps with noise
    inside = cv2.distanceTransform(opening, cv2.DIST_L2, 5) / np.float32(radius)  # radii from the lids
    contrast = grey / max(float(grey[opening > 0].std()), 1e-3)
    places = by_landmarks + radius * _PLACES
    scores = _brightening(np.dstack([contrast, inside]), places, by_landmarks, radius)
    if scores.max() < _VISIBLE:
        return (by_landmarks - middle) / (2 * radius)
    weights = np.exp(_SELECTIVE * (scores - scores.max()))
    return (weights @ places / weights.sum() - middle) / (2 * radius)


def _brightening(picture: np.ndarray, places: np.ndarray, expected: np.ndarray, radius: float) -> np.ndarray:
    """Returns how much circles around places (n, 2) px brighten outwards, (n,).

    picture: (h, w, 2) float32, grey in standard deviations, and radii from the lids. expected: (2,) px, where
    the iris lies by landmarks.
    """
    centres, scores = places[:, None].astype(np.float32), []
    low, high = _NEAR_LIDS
    for share in _RADII:
        outer, inner = (
            cv2.remap(picture, centres + np.float32(radius * reach) * _RAYS, None, cv2.INTER_LINEAR)
            for reach in (share + _ACROSS_EDGE, share - _ACROSS_EDGE)
        )  # (n, angles, 2)
        rise = (outer[..., 0] - inner[..., 0]).clip(-0.5, _STRONGEST)
        weight = ((np.minimum(outer, inner)[..., 1] - low) / (high - low)).clip(0, 1)
        scores.append((rise * weight).sum(1) / (weight.sum(1) + _LEAST_SEEN))
    return np.max(scores, 0) - _FAR * ((places - expected) ** 2).sum(1) / radius**2


def levels_of(face: Face) -> dict[str, float]:
    """Returns all that is measured of a face, by name: intensities, also by side; gaze, head in degrees."""
    levels = face.action_units | face.sides
    if face.gaze is not None:
        levels |= {f"gaze_{axis}": angle for axis, angle in face.gaze._asdict().items()}
    if face.pose is not None:
        levels |= {f"head_{axis}": getattr(face.pose, axis) for axis in ("yaw", "pitch", "roll")}
    return levels
