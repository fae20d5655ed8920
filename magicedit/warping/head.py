"""Turns the head of a photograph: yaw, pitch and roll by some degrees, as a movement of its own pixels.

Each place of the picture gets a depth, and turns in three dimensions about a pivot inside the head, seen by
a scaled-orthographic camera. The depths of the face are those of the muscles' neutral mesh, in the pose that
its affine camera finds (J. Koenderink, A. van Doorn, "Affine structure from motion", JOSA A 1991); those of
hair, ears and skull come from an ellipsoid around the mesh, those of the neck from a few points. A thin-plate
spline joins them (F. Bookstein, "Principal warps", PAMI 1989). The pivot lies as deep as the head's outline,
which therefore hardly moves: hair and background stay. The angle fades with the distance from the head, down
the neck, and where content from beyond the picture's border would be needed. Nothing is learned.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np

from magicedit.faces.regions import face_oval, smooth
from magicedit.warping.muscles import LANDMARKS, SKIN, _camera, _table

AXES = ("head_yaw", "head_pitch", "head_roll")
MOST = 20.0  # degrees of change
# Degrees from the line of sight that yaw, pitch and roll may reach; requests approach them smoothly
REACH = (35.0, 32.0, 45.0)
_SOFTNESS = 4  # power of that approach: the higher, the later and the more sudden
_LEAST_AREA = 0.25  # to which the picture may be compressed anywhere; what asks for more turns less
_LESS = 0.88  # share of the angle with which it is tried next

# All below in interocular distances of the neutral mesh: x right, y up from between the eyes, z to the viewer
_PIVOT = np.array([0.0, -0.9, -0.95])
_SKULL, _SKULL_RADII = np.array([0.0, 0.15, -0.95]), np.array([1.25, 1.40, 1.10])
_NECK = np.array(
    [(x, y, z) for y, z in ((-2.1, -0.45), (-2.6, -0.6), (-3.2, -0.7)) for x in (-0.5, 0.0, 0.5)]
    + [(x, y, -0.95) for y in (-1.7, -2.3, -3.0) for x in (-1.3, 1.3)]
)
_FACE_POINTS = 120  # landmarks whose depths are used
_BESIDE = 0.12  # distance from the face's outline within which the skull and the neck have no points
_SMOOTHING = 0.01  # of the spline, whose kernel is r^2 log r
# The head turns as a whole in an ellipse around the skull's centre; the angle is 0 from so many radii on
_RADII, _FADED = np.array([1.45, 1.75]), 1.75
_NECK_TOP, _NECK_FOOT = -1.5, -3.3  # heights between which the angle falls to 0
_BORDER = 0.8  # distance from the picture's border over which movement away from it fades in
_STEP = 0.075  # between the places at which the movement is computed
_INVERSIONS, _DAMPING = 16, 0.6  # steps towards the inverse of the movement, and their share


@dataclass(frozen=True, eq=False)
class _View:
    """The neutral mesh as it lies in a photograph, in a scaled-orthographic camera.

    rotation: (3, 3), mesh to view: x right, y up, z towards the viewer, interocular distances of the mesh.
    affine: (2, 3), mesh to x and y of the view, with the face's own proportions.
    origin: (2,) px where the mesh's zero is seen. scale: px of an interocular distance.
    """

    rotation: np.ndarray
    affine: np.ndarray
    origin: np.ndarray
    scale: float

    def to_view(self, points: np.ndarray) -> np.ndarray:
        """px (..., 2) -> x and y of the view."""
        return (points - self.origin) / self.scale * (1, -1)

    def to_picture(self, points: np.ndarray) -> np.ndarray:
        """x and y of the view (..., 2) -> px."""
        return points * (1, -1) * self.scale + self.origin

    def places(self, points: np.ndarray) -> np.ndarray:
        """Points (n, 3) of the mesh -> (n, 3) in the view: x and y as seen, z as turned."""
        return np.concatenate([points @ self.affine.T, points @ self.rotation[2:].T], 1)


def _view(landmarks: np.ndarray) -> _View:
    camera = _camera(landmarks)  # (3, 2) px
    turned, stretch, back = np.linalg.svd(camera.T * ((1,), (-1,)), full_matrices=False)
    rows, scale = turned @ back, float(stretch.mean())
    origin = (landmarks[:SKIN] - _table()["neutral"][:SKIN] @ camera).mean(0)
    rotation = np.concatenate([rows, np.cross(*rows)[None]])
    return _View(rotation, camera.T * ((1,), (-1,)) / scale, origin, scale)


def _angles(rotation: np.ndarray) -> np.ndarray:
    """(3,) degrees of yaw, pitch and roll of a rotation, by the definition of `Pose`."""
    forward = rotation[:, 2]
    yaw, pitch = np.arctan2(forward[0], forward[2]), np.arcsin(np.clip(forward[1], -1, 1))
    return np.degrees((yaw, pitch, -np.arctan2(rotation[1, 0], rotation[1, 1])))


def _rotation(angles: np.ndarray) -> np.ndarray:
    """(3, 3), the rotation of which `_angles` finds these degrees."""
    # cv2.Rodrigues turns from x to y, y to z, z to x
    yaw, pitch, roll = np.radians(angles)
    return (
        cv2.Rodrigues(np.array([0, yaw, 0]))[0]
        @ cv2.Rodrigues(np.array([-pitch, 0, 0]))[0]
        @ cv2.Rodrigues(np.array([0, 0, -roll]))[0]
    )


def head_limits(landmarks: np.ndarray) -> dict[str, tuple[float, float]]:
    """Returns by axis the degrees, least and most, that a head can turn, as far as its pose limits them.

    landmarks: MediaPipe's (478, 2), photograph px. Requests beyond are made as far as they go.
    """
    pose = _angles(_view(np.asarray(landmarks, np.float64)).rotation)
    limits = zip(AXES, pose, REACH, strict=True)
    return {
        axis: (float(np.clip(-reach - now, -MOST, 0)), float(np.clip(reach - now, 0, MOST)))
        for axis, now, reach in limits
    }


def _reachable(asked: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """(3,) degrees of change, shortened where they would take the pose (3,) to REACH and beyond."""
    asked = np.clip(asked, -MOST, MOST)
    room = np.maximum(np.array(REACH) - np.sign(asked) * pose, 1e-3)
    return asked / (1 + (np.abs(asked) / room) ** _SOFTNESS) ** (1 / _SOFTNESS)


@cache
def _face_points() -> np.ndarray:
    """Numbers (n,) of landmarks that are spread over the neutral mesh, each far from those before it."""
    mesh = _table()["neutral"][:SKIN]
    chosen = [4]  # the nose's tip
    far = np.linalg.norm(mesh - mesh[4], axis=1)
    while len(chosen) < _FACE_POINTS:
        chosen.append(int(far.argmax()))
        far = np.minimum(far, np.linalg.norm(mesh - mesh[chosen[-1]], axis=1))
    return np.array(chosen)


@cache
def _skull() -> tuple[np.ndarray, np.ndarray]:
    """Points (n, 3) of the skull's ellipsoid in the mesh's frame, and their normals."""
    heights, turns = (np.radians(np.arange(*steps, 20)) for steps in ((-30, 91), (0, 360)))
    heights, turns = (angles.ravel() for angles in np.meshgrid(heights, turns))
    ball = np.stack([np.cos(heights) * np.sin(turns), np.sin(heights), np.cos(heights) * np.cos(turns)], -1)
    return _SKULL + ball * _SKULL_RADII, ball / _SKULL_RADII


def _known_depths(landmarks: np.ndarray, view: _View) -> np.ndarray:
    """Places (n, 3) of the view whose depth is known: of the face, and of what surrounds it."""
    chosen = _face_points()
    face = np.concatenate(
        [view.to_view(landmarks[chosen]), view.places(_table()["neutral"][chosen])[:, 2:]], 1
    )
    points, normals = _skull()
    around = view.places(points)[normals @ view.rotation[2] > 0]
    turns = np.radians(np.arange(-15, 196, 15))
    circle = np.stack([np.cos(turns), np.sin(turns)], -1) * _RADII  # (n, 2) above the jaw
    centre = view.places(_SKULL[None])[0]
    rings = [centre[:2] + scale * circle @ _upright(view) for scale in (1, _FADED)]
    rings = [np.insert(ring, 2, centre[2], axis=1) for ring in rings]
    around = np.concatenate([around, view.places(_NECK), *rings])
    outline = view.to_view(face_oval(landmarks, "mediapipe478")).astype(np.float32)
    outside = [cv2.pointPolygonTest(outline, point, True) < -_BESIDE for point in around[:, :2].tolist()]
    return np.concatenate([face, around[outside]])


def _upright(view: _View) -> np.ndarray:
    """(2, 2): the rows are the head's own directions x and y in the view, unit vectors."""
    up = view.rotation[:2, 1] / np.linalg.norm(view.rotation[:2, 1])
    return np.array([(up[1], -up[0]), up])


def _spline(places: np.ndarray, values: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Values (m,) at places (m, 2) of the thin-plate spline through about `values` (n,) at `places` (n, 2)."""

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        squares = np.maximum(((a[:, None] - b[None]) ** 2).sum(-1), 1e-12).astype(a.dtype)
        return squares * np.log(squares) / 2

    count = len(places)
    plane = np.insert(places, 0, 1, axis=1)  # (n, 3)
    system = np.zeros((count + 3, count + 3))
    system[:count, :count] = kernel(places, places) + _SMOOTHING * np.eye(count)
    system[:count, count:], system[count:, :count] = plane, plane.T
    weights = np.linalg.solve(system, np.append(values, np.zeros(3)))
    bent = kernel(at.astype(np.float32), places.astype(np.float32)) @ weights[:count].astype(np.float32)
    return bent + np.insert(at, 0, 1, axis=1) @ weights[count:]


def _share(at: np.ndarray, view: _View) -> np.ndarray:
    """0..1, the share of the angle by which places (..., 2) of the view turn."""
    across, up = np.moveaxis((at - view.places(_SKULL[None])[0, :2]) @ _upright(view).T, -1, 0)
    far = np.hypot(across / _RADII[0], np.maximum(up, 0) / _RADII[1])
    height = up + _SKULL[1]
    neck = (height - _NECK_FOOT) / (_NECK_TOP - _NECK_FOOT)
    return smooth((_FADED - far) / (_FADED - 1)) * smooth(neck)


def _turned(places: np.ndarray, share: np.ndarray, rotation: np.ndarray, pivot: np.ndarray) -> np.ndarray:
    """Movement (..., 2) of places (..., 3) of the view that turn by a share (...) of a rotation."""
    vector = cv2.Rodrigues(rotation)[0][:, 0]
    angle = np.linalg.norm(vector)
    axis, arm = vector / angle, places - pivot
    turn = (share * angle)[..., None]
    along = (arm @ axis)[..., None] * axis
    return ((arm - along) * (np.cos(turn) - 1) + np.cross(axis, arm) * np.sin(turn))[..., :2]


def _least_area(moves: np.ndarray, step: float) -> float:
    """The least factor by which a movement (rows, columns, 2) of places `step` apart changes areas."""
    (xy, xx), (yy, yx) = (np.gradient(moves[..., k], step) for k in (0, 1))
    return float(((1 + xx) * (1 + yy) - xy * yx).min())


def _movement(
    landmarks: np.ndarray, shape: tuple[int, ...], request: Mapping[str, float]
) -> tuple[np.ndarray, np.ndarray, float] | None:
    """Where a turned head takes the picture: movement (rows, columns, 2) px, x0 and y0 px, and px of a step.

    The places lie on a grid that begins at (x0, y0). None where nothing moves.
    """
    asked = np.array([request.get(axis, 0.0) for axis in AXES], np.float64)
    if not asked.any():
        return None
    landmarks = np.asarray(landmarks, np.float64)
    if landmarks.shape != (LANDMARKS, 2):
        raise ValueError(f"landmarks must have shape ({LANDMARKS}, 2), got {landmarks.shape}")
    view = _view(landmarks)
    pose = _angles(view.rotation)
    change = _reachable(asked, pose)

    # 1. The places that may move
    centre, step = view.to_picture(view.places(_SKULL[None])[0, :2]), _STEP * view.scale
    reach = _FADED * _RADII.max() * view.scale
    below = (-_NECK_FOOT + _SKULL[1] + 0.3) * view.scale
    low = np.maximum(centre - reach, -step)
    high = np.minimum(centre + (reach, max(reach, below)), np.array(shape[1::-1]) - 1 + step)
    if (high - low < 4 * step).any():
        return None
    columns, rows = (np.arange(a, b + step, step) for a, b in zip(low, high, strict=True))
    grid = np.stack(np.meshgrid(columns, rows), -1)  # (rows, columns, 2) px
    at = view.to_view(grid)

    # 2. Their depths, and how they turn
    known = _known_depths(landmarks, view)
    depths = _spline(known[:, :2], known[:, 2], at.reshape(-1, 2)).reshape(at.shape[:2])
    places, share = np.concatenate([at, depths[..., None]], -1), _share(at, view)
    pivot = view.places(_PIVOT[None])[0]
    while True:
        rotation = _rotation(pose + change) @ view.rotation.T
        moves = _turned(places, share, rotation, pivot) * (1, -1) * view.scale  # px
        moves = _kept_inside(moves, grid, shape, _BORDER * view.scale)
        if _least_area(moves, step) > _LEAST_AREA:
            return moves.astype(np.float32), low, step
        change = change * _LESS


def _kept_inside(moves: np.ndarray, grid: np.ndarray, shape: tuple[int, ...], fade: float) -> np.ndarray:
    """The movement px without what would bring content from beyond the picture's border."""
    kept = moves.copy()
    for k, size in enumerate(shape[1::-1]):
        before, behind = (smooth(room / fade) for room in (grid[..., k], size - 1 - grid[..., k]))
        kept[..., k] *= np.where(moves[..., k] > 0, before, behind)
    return kept


def _inverse(moves: np.ndarray, step: float) -> np.ndarray:
    """The flow b (rows, columns, 2) px that undoes a movement of places `step` px apart: b(p) = -m(p + b(p))."""
    height, width = moves.shape[:2]
    x, y = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)[:, None]
    flow = -moves
    for _ in range(_INVERSIONS):
        at = flow / step
        there = cv2.remap(
            moves, at[..., 0] + x, at[..., 1] + y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        flow -= _DAMPING * (flow + there)
    return flow


def _flow(
    landmarks: np.ndarray, shape: tuple[int, ...], request: Mapping[str, float]
) -> tuple[np.ndarray, tuple[slice, slice]] | None:
    """From where a turned head reads the photograph, (height, width, 2) px, in a window of it.

    Returns the flow and the window's rows and columns; None where nothing moves.
    """
    found = _movement(landmarks, shape, request)
    if found is None:
        return None
    moves, low, step = found
    flow = _inverse(moves, step)
    rows, columns = np.nonzero(flow.any(-1))
    if not len(rows):
        return None
    first = np.floor(low + step * (np.array([columns.min(), rows.min()]) - 2)).astype(int)
    behind = np.ceil(low + step * (np.array([columns.max(), rows.max()]) + 2)).astype(int) + 1
    x0, y0 = np.maximum(first, 0).tolist()
    x1, y1 = np.minimum(behind, shape[1::-1]).tolist()
    to_grid = np.array([[1, 0, x0 - low[0]], [0, 1, y0 - low[1]]]) / step
    fine = cv2.warpAffine(
        flow, to_grid, (x1 - x0, y1 - y0), flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )  # fmt: skip
    return fine, (slice(y0, y1), slice(x0, x1))


def head_region(landmarks: np.ndarray, shape: tuple[int, ...], request: Mapping[str, float]) -> np.ndarray:
    """(height, width) bool: where `turn_head` may change a photograph of this shape."""
    region = np.zeros(shape[:2], bool)
    found = _flow(landmarks, shape, request)
    if found is not None:
        flow, window = found
        region[window] = flow.any(-1)
    return region


def turn_head(pixels: np.ndarray, landmarks: np.ndarray, request: Mapping[str, float]) -> np.ndarray:
    """Returns the photograph with its head turned.

    Args:
        pixels: (height, width, 3) uint8 RGB.
        landmarks: MediaPipe's (478, 2), photograph px.
        request: degrees of change, -20..20, of AXES, with the signs of `Pose`; other names are ignored.

    Returns:
        `pixels` itself where nothing changes, else a new photograph, which differs in `head_region`.
    """
    found = _flow(landmarks, pixels.shape, request)
    if found is None:
        return pixels
    flow, (rows, columns) = found
    flow[..., 0] += np.arange(columns.start, columns.stop, dtype=np.float32)
    flow[..., 1] += np.arange(rows.start, rows.stop, dtype=np.float32)[:, None]
    result = pixels.copy()
    result[rows, columns] = cv2.remap(pixels, flow, None, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    return result
