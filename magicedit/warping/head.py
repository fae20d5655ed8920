"""Turns the head of a photograph: yaw, pitch and roll by some degrees, as a movement of its own pixels.

Each place of the picture gets a depth, and turns in three dimensions about a pivot inside the head, seen by
a scaled-orthographic camera. The depths of the face are those of the muscles' neutral mesh, in the pose that
its affine camera finds (J. Koenderink, A. van Doorn, "Affine structure from motion", JOSA A 1991); those of
hair, ears and skull come from an ellipsoid around the mesh, those of the neck from a few points. A thin-plate
spline joins them (F. Bookstein, "Principal warps", PAMI 1989). The pivot lies as deep as the head's outline.
Depths behind the cheeks' front count for less, so that ears, hair and outline move along somewhat instead of
the cheeks being stretched to them. The angle fades with the distance from the head, down the neck, and where
content from beyond the picture's border would be needed. For videos' sake, nothing switches with the
landmarks or the angles: the movement is continuous in them. Nothing is learned.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np

from magicedit.action_units import HEAD_RANGE
from magicedit.faces.measure import pose_of
from magicedit.faces.regions import face_oval, smooth
from magicedit.warping.muscles import SHAPES, affine_camera, neutral_mesh
from magicedit.warping.warp import derivatives, inverse_of

AXES = ("head_yaw", "head_pitch", "head_roll")
_LEAST_ANGLE = 0.01  # degrees: what turns by less stays as it is; an axis of rotation needs an angle
# Turns of the mesh in degrees that MediaPipe's pose reads as somewhat less than a degree of yaw and of pitch,
# and as one of roll; shares more with glasses; of pitch less by so much per degree that the head looks aside,
# and of yaw where it turns farther aside
_GAIN, _GLASSES_GAIN = np.array([1.5, 1.53, 1.0]), np.array([0.25, 0.1, 0.0])
_ASIDE_GAIN, _ONWARDS_GAIN = 0.0145, 0.006
# Degrees from the line of sight, as MediaPipe reads them, that the three may reach: requests approach them
REACH = np.array([28.0, 28.0, 45.0])
# Turns towards the line of sight: times that reach, less so many degrees for each degree that the head is
# turned away, because the photograph shows less of its far side
_BACK, _HIDDEN = 1.4, 1.25
_SOFTNESS = 4  # power of that approach: the higher, the later and the more sudden
# Factors by which the picture's area may change: where it would change more, as the cheek behind a nose, the
# movement is evened out, fully from so far within them, in so many rounds with this standard deviation in
# steps of the grid; heads for which that does not suffice turn less, so that no area shrinks below `_LEAST`
_AREAS, _AREAS_FADE, _ROUNDS, _EVEN, _LEAST = (0.32, 1.55), 0.25, 20, 1.5, 0.3

# All below in interocular distances of the neutral mesh: x right, y up from between the eyes, z to the viewer
_STEADY = 0.06  # landmarks that no action unit moves farther show the pose
_PIVOT = np.array([0.0, -1.2, -0.95])
_SKULL, _SKULL_RADII = np.array([0.0, 0.15, -0.95]), np.array([1.25, 1.40, 1.10])
_NECK = np.array(
    [(x, y, z) for y, z in ((-2.1, -0.45), (-2.6, -0.6), (-3.2, -0.7)) for x in (-0.5, 0.0, 0.5)]
    + [(x, y, -0.95) for y in (-1.7, -2.3, -3.0) for x in (-1.3, 1.3)]
)
# Glasses: height of the lenses' plane at the nose, how fast it bends back towards the ears, and where it is
_LENSES, _WRAP, _LENSES_BESIDE, _LENSES_ABOVE, _LENSES_BELOW, _LENSES_FADE = 0.12, 0.22, 1.3, 0.45, -0.7, 0.2
_FACE_POINTS = 120  # landmarks whose depths are used
_BESIDE = 0.12  # distance from the face's outline within which the skull and the neck have no points
_SMOOTHING = 0.08  # of the spline, whose kernel is r^2 log r
_SEEN = 0.3  # cosine to the line of sight from which points of the skull count fully
# Depths behind the knee, a soft one, count by these shares on the side of the head that comes into view and
# on the one that goes: a cheek, an ear and the hair behind it move along instead of being stretched, as the
# photograph does not show their other sides. The sides pass into each other over this width, and take effect
# with so many degrees of yaw
_KNEE, _KNEE_SOFT, _COMING, _GOING, _SIDES, _SETTLED = -0.15, 0.25, 0.5, 0.8, 0.5, 4.0
# The head turns as a whole in an ellipse around the skull's centre, and not at all so far beyond it
_RADII, _FADE = np.array([1.40, 1.70]), 1.25
_NECK_TOP, _NECK_FOOT = -1.4, -3.1  # heights between which the angle falls to 0
_JAW, _NECK_WIDTH = -0.5, 0.95  # height from which the ellipse's half-width narrows down to the neck's
_BORDER = 0.8  # distance from the picture's border over which movement away from it fades in
_INWARDS = 0.6  # share of the distance from the border that such a movement may have
_STEP = 0.085  # between the places at which the movement is computed
_STRIP = 128  # rows of the photograph that are read at a time
_INVERSIONS, _DAMPING = 24, 0.45  # steps towards the inverse of the movement, and their share


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
    """The mesh nearest to landmarks (478, 2) px that no expression moves."""
    camera = (affine_camera(landmarks, tuple(SHAPES), _STEADY) * (1, -1)).T  # (2, 4) px
    turned, stretch, back = np.linalg.svd(camera[:, :3], full_matrices=False)
    rows, scale = turned @ back, float(stretch.mean())
    rotation = np.concatenate([rows, np.cross(*rows)[None]])
    return _View(rotation, camera[:, :3] / scale, camera[:, 3] * (1, -1), scale)


def _angles(rotation: np.ndarray) -> np.ndarray:
    """(3,) degrees of yaw, pitch and roll of a rotation."""
    pose = pose_of(rotation)
    return np.array([pose.yaw, pose.pitch, pose.roll])


def _rotation(angles: np.ndarray) -> np.ndarray:
    """(3, 3), the rotation of which `_angles` finds these degrees."""
    yaw, pitch, roll = np.radians(angles)
    return (
        cv2.Rodrigues(np.array([0, yaw, 0]))[0]
        @ cv2.Rodrigues(np.array([-pitch, 0, 0]))[0]
        @ cv2.Rodrigues(np.array([0, 0, -roll]))[0]
    )


def head_limits(landmarks: np.ndarray) -> dict[str, tuple[float, float]]:
    """Returns by axis the degrees, least and most, that a head can turn, as far as its pose limits them.

    landmarks: MediaPipe's (478, 2), photograph px. Requests near and beyond the limits turn less than asked.
    """
    pose = _angles(_view(np.asarray(landmarks, np.float64)).rotation) / _GAIN
    least, most = (np.minimum(_room(pose, sign), HEAD_RANGE[1]) for sign in (-1, 1))
    return {axis: (-float(a), float(b)) for axis, a, b in zip(AXES, least, most, strict=True)}


def _room(pose: np.ndarray, sign: np.ndarray | int) -> np.ndarray:
    """(3,) degrees that a head in a pose (3,) can turn in the direction of a sign (3,)."""
    onwards = pose * sign
    return np.maximum(np.minimum(REACH - onwards, _BACK * REACH + _HIDDEN * onwards), 0)


def _reachable(asked: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """(3,) degrees of change, shortened near what the pose (3,) leaves room for and beyond it."""
    asked = np.clip(asked, *HEAD_RANGE)
    over = np.abs(asked) / np.maximum(_room(pose, np.sign(asked)), 1e-3)
    return asked / (1 + over**_SOFTNESS) ** (1 / _SOFTNESS)


@cache
def _face_points() -> np.ndarray:
    """Numbers (n,) of landmarks that are spread over the neutral mesh, each far from those before it."""
    mesh = neutral_mesh()
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


def _with_glasses(mesh: np.ndarray, glasses: float) -> np.ndarray:
    """Points (n, 3) of the mesh, those behind glasses brought forward to the lenses; glasses: 0..1."""
    x, y, z = np.abs(mesh[:, 0]), *mesh[:, 1:].T
    inside = np.minimum(_LENSES_BESIDE - x, np.minimum(_LENSES_ABOVE - y, y - _LENSES_BELOW)) / _LENSES_FADE
    forward = np.maximum(_LENSES - _WRAP * x**2 - z, 0)
    return np.stack([mesh[:, 0], y, z + glasses * smooth(inside) * forward], 1)


def _known_depths(landmarks: np.ndarray, view: _View, glasses: float) -> tuple[np.ndarray, np.ndarray]:
    """Places (n, 3) of the view whose depth is known, and their weights (n,), 0..1."""
    # 1. The face: landmarks, as deep as the mesh
    chosen = _face_points()
    mesh = _with_glasses(neutral_mesh()[chosen], glasses)
    face = np.column_stack([view.to_view(landmarks[chosen]), view.places(mesh)[:, 2]])

    # 2. The visible half of the skull, the neck, and rings around the head as deep as the skull's centre
    points, normals = _skull()
    facing = normals @ view.rotation[2] / np.linalg.norm(normals, axis=1)
    turns = np.radians(np.arange(-15, 196, 15))
    circle = np.stack([np.cos(turns), np.sin(turns)], -1)  # (n, 2) above the jaw
    centre = view.places(_SKULL[None])[0]
    rings = [centre[:2] + circle * radii @ _upright(view) for radii in (_RADII, _RADII + _FADE)]
    rings = np.insert(np.concatenate(rings), 2, centre[2], 1)
    around = np.concatenate([view.places(points), view.places(_NECK), rings])
    seen = np.append(smooth(facing / _SEEN), np.ones(len(_NECK) + len(rings)))

    # 3. Weights fade in, so that landmarks which tremble in a video do not switch points on and off
    outline = view.to_view(face_oval(landmarks, "mediapipe478")).astype(np.float32)
    beside = [-cv2.pointPolygonTest(outline, point, True) for point in around[:, :2].tolist()]
    weights = seen * smooth(np.array(beside) / _BESIDE - 0.5)
    return np.concatenate([face, around]), np.append(np.ones(len(face)), weights)


def _upright(view: _View) -> np.ndarray:
    """(2, 2): the rows are the head's own directions x and y in the view, unit vectors."""
    up = view.rotation[:2, 1] / np.linalg.norm(view.rotation[:2, 1])
    return np.array([(up[1], -up[0]), up])


def _spline(places: np.ndarray, values: np.ndarray, weights: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Values (m,) at places `at` (m, 2) of the thin-plate spline near `values` (n,) at `places` (n, 2), which
    count by weights (n,)."""

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        squares = (a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T
        squares = np.maximum(squares, np.finfo(a.dtype).eps)
        return squares * np.log(squares) / 2

    counting = weights > 0
    places, values, weights = places[counting], values[counting], weights[counting]
    count = len(places)
    plane = np.insert(places, 0, 1, axis=1)  # (n, 3)
    system = np.zeros((count + 3, count + 3))
    system[:count, :count] = kernel(places, places) + np.diag(_SMOOTHING / weights)
    system[:count, count:], system[count:, :count] = plane, plane.T
    solved = np.linalg.solve(system, np.append(values, np.zeros(3)))
    bent = kernel(at.astype(np.float32), places.astype(np.float32)) @ solved[:count].astype(np.float32)
    return bent + np.insert(at, 0, 1, axis=1) @ solved[count:]


def _effective(depths: np.ndarray, at: np.ndarray, view: _View, yaw: float) -> np.ndarray:
    """The depths (...) by which places (..., 2) of the view turn, for a yaw by so many degrees."""
    across = (at - view.places(_SKULL[None])[0, :2]) @ _upright(view)[0]
    coming = 0.5 - 0.5 * np.tanh(yaw / _SETTLED) * np.tanh(across / _SIDES)
    share = _GOING + (_COMING - _GOING) * coming
    behind = (_KNEE - depths + np.hypot(_KNEE - depths, _KNEE_SOFT)) / 2
    return depths + (1 - share) * behind


def _share(at: np.ndarray, view: _View) -> np.ndarray:
    """0..1, the share of the angle by which places (..., 2) of the view turn."""
    across, up = np.moveaxis((at - view.places(_SKULL[None])[0, :2]) @ _upright(view).T, -1, 0)
    height = up + _SKULL[1]
    narrow = smooth((_JAW - height) / (_JAW - _NECK_TOP))
    wide = _RADII[0] + (_NECK_WIDTH - _RADII[0]) * narrow
    beyond = (np.hypot(across / wide, np.maximum(up, 0) / _RADII[1]) - 1) * wide
    neck = (height - _NECK_FOOT) / (_NECK_TOP - _NECK_FOOT)
    return smooth(1 - beyond / _FADE) * smooth(neck)


def _turned(places: np.ndarray, share: np.ndarray, rotation: np.ndarray, pivot: np.ndarray) -> np.ndarray:
    """Movement (..., 2) of places (..., 3) of the view that turn by a share (...) of a rotation."""
    vector = cv2.Rodrigues(rotation)[0][:, 0]
    angle = np.linalg.norm(vector)
    axis, arm = vector / angle, places - pivot
    turn = (share * angle)[..., None]
    along = (arm @ axis)[..., None] * axis
    return ((arm - along) * (np.cos(turn) - 1) + np.cross(axis, arm) * np.sin(turn))[..., :2]


def _areas(moves: np.ndarray, step: float) -> np.ndarray:
    """(rows, columns) factors by which a movement (rows, columns, 2) of places a step apart changes areas."""
    xx, xy, yx, yy = derivatives(moves, step)
    return (1 + xx) * (1 + yy) - xy * yx


def _evened(moves: np.ndarray, step: float, bounds: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """The movement, within bounds, evened out and lessened where it changes areas too much."""
    moves = np.clip(moves, *bounds).astype(np.float32)
    for _ in range(_ROUNDS):
        areas = _areas(moves, step)
        over = np.maximum(_AREAS[0] - areas, areas - _AREAS[1]) / _AREAS_FADE + 1
        if (over <= 0).all():
            return moves
        weight = cv2.dilate(smooth(over).astype(np.float32), np.ones((3, 3), np.uint8))
        weight = cv2.GaussianBlur(weight, (0, 0), _EVEN)[..., None]
        moves = np.clip(moves + weight * (cv2.GaussianBlur(moves, (0, 0), _EVEN) - moves), *bounds)
    return moves * _bearable(moves, step)


def _bearable(moves: np.ndarray, step: float) -> float:
    """The share 0..1 of a movement that shrinks no area by more than `_LEAST` allows."""
    xx, xy, yx, yy = derivatives(moves, step)
    # With a share s, an area becomes 1 + s trace + s^2 determinant times as large
    trace, determinant = xx + yy, xx * yy - xy * yx
    root = np.sqrt(np.maximum(trace**2 - 4 * determinant * (1 - _LEAST), 0))
    crossing = 2 * (1 - _LEAST) / np.maximum(root - trace, 1e-6)
    shrunk = 1 + trace + determinant < _LEAST
    return float(crossing[shrunk].min(initial=1))


def _rooms(grid: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """px (..., 2) from places (..., 2) px to the picture's left and top border, and to the other two."""
    return np.maximum(grid, 0), np.maximum(np.array(shape[1::-1]) - 1 - grid, 0)


def _bounds(grid: np.ndarray, shape: tuple[int, ...], share: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least and most movement (rows, columns, 2) px: none beyond the head, none that would need content from
    beyond the picture's border; along the border and towards it, everything may move."""
    free = (share > 0)[..., None]
    before, behind = (_INWARDS * room * free for room in _rooms(grid, shape))
    unbounded = np.where(free, np.inf, 0)
    inner = np.array(shape[1::-1]) / 2
    least, most = np.where(grid > inner, -behind, -unbounded), np.where(grid < inner, before, unbounded)
    return least.astype(np.float32), most.astype(np.float32)


def _grid(view: _View, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, float] | None:
    """Places (rows, columns, 2) px around the head of a picture of this shape, the first of them, and the px
    between neighbours; None where the head is beyond the picture."""
    centre, step = view.to_picture(view.places(_SKULL[None])[0, :2]), _STEP * view.scale
    # To the farthest place that moves, beside the neck's foot, and beyond
    reach = np.hypot(_NECK_WIDTH + _FADE, _SKULL[1] - _NECK_FOOT) * view.scale + 3 * step
    low = np.maximum(centre - reach, -step)
    high = np.minimum(centre + reach, np.array(shape[1::-1]) - 1 + step)
    if (high - low < step).any():
        return None
    columns, rows = (np.arange(a, b + step, step) for a, b in zip(low, high, strict=True))
    return np.stack(np.meshgrid(columns, rows), -1), low, step


def _movement(
    landmarks: np.ndarray, shape: tuple[int, ...], request: Mapping[str, float], glasses: float = 0.0
) -> tuple[np.ndarray, np.ndarray, float] | None:
    """Where a turned head takes the picture: movement (rows, columns, 2) px, x0 and y0 px, and px of a step.

    The places lie on a grid that begins at (x0, y0). None for a head beyond the picture.
    landmarks: (478, 2) float64 px. shape: the picture's. glasses: 0..1, how surely the face wears them.
    """
    view = _view(landmarks)
    pose = _angles(view.rotation)
    asked = np.array([request.get(axis, 0.0) for axis in AXES])
    onwards = max(pose[0] * np.sign(asked[0]), 0)
    aside = 1 + np.array([_ONWARDS_GAIN * onwards, _ASIDE_GAIN * abs(pose[0]), 0])
    gain = _GAIN * (1 + _GLASSES_GAIN * glasses) / aside
    change = _reachable(asked, pose / _GAIN) * gain

    # 1. The places that may move
    placed = _grid(view, shape)
    if placed is None:
        return None
    grid, low, step = placed
    at = view.to_view(grid)

    # 2. Their depths, and how they turn
    known, weights = _known_depths(landmarks, view, glasses)
    depths = _spline(known[:, :2], known[:, 2], weights, at.reshape(-1, 2)).reshape(at.shape[:2])
    depths = _effective(depths, at, view, change[0])
    places, share = np.concatenate([at, depths[..., None]], -1), _share(at, view)
    pivot, bounds = view.places(_PIVOT[None])[0], _bounds(grid, shape, share)
    rotation = _rotation(pose + change) @ view.rotation.T
    moves = _turned(places, share, rotation, pivot) * (1, -1) * view.scale  # px
    moves = _from_border(moves, grid, shape, _BORDER * view.scale)
    return _evened(moves, step, bounds), low, step


def _from_border(moves: np.ndarray, grid: np.ndarray, shape: tuple[int, ...], fade: float) -> np.ndarray:
    """The movement px; where it leads away from a border of the picture, it fades in over `fade` px."""
    before, behind = (smooth(room / fade) for room in _rooms(grid, shape))
    return moves * np.where(moves > 0, before, behind)


def _window(
    flow: np.ndarray, low: np.ndarray, step: float, shape: tuple[int, ...]
) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 of the pixels that a flow (rows, columns, 2) on a grid moves; see `_movement`."""
    rows, columns = np.nonzero(flow.any(-1))
    if not len(rows):
        return 0, 0, 0, 0
    first = np.floor(low + step * (np.array([columns.min(), rows.min()]) - 2)).astype(int)
    behind = np.ceil(low + step * (np.array([columns.max(), rows.max()]) + 2)).astype(int) + 1
    return (*np.maximum(first, 0).tolist(), *np.minimum(behind, shape[1::-1]).tolist())


def head_region(landmarks: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """(height, width) bool: where `turn_head` may change a photograph of this shape, whatever is asked."""
    landmarks = np.asarray(landmarks, np.float64)
    view = _view(landmarks)
    placed = _grid(view, shape)
    if placed is None:
        return np.zeros(shape[:2], bool)
    grid, low, step = placed
    moving = (_share(view.to_view(grid), view) > 0).astype(np.uint8)
    moving = cv2.dilate(moving, np.ones((5, 5), np.uint8))
    to_grid = np.array([[1, 0, -low[0]], [0, 1, -low[1]]]) / step
    flags = cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(moving, to_grid, shape[1::-1], flags=flags).astype(bool)


def turn_head(
    pixels: np.ndarray,
    landmarks: np.ndarray,
    request: Mapping[str, float],
    glasses: float = 0.0,
    *,
    in_place: bool = False,
) -> np.ndarray:
    """Returns the photograph with its head turned.

    Args:
        pixels: (height, width, 3) uint8 RGB.
        landmarks: MediaPipe's (478, 2), photograph px.
        request: degrees of change, -20..20, of AXES, with the signs of `Pose`; other names are ignored.
        glasses: 0..1, how surely the face wears them, see `magicedit.faces.glasses`.
        in_place: whether `pixels` itself is changed.

    Returns:
        `pixels` itself where nothing changes or `in_place`, else a new photograph, which differs in
        `head_region`.
    """
    asked = {axis: request.get(axis, 0.0) for axis in AXES}
    if max(map(abs, asked.values())) < _LEAST_ANGLE:
        return pixels
    landmarks = np.asarray(landmarks, np.float64)
    found = _movement(landmarks, pixels.shape, asked, glasses)
    if found is None:
        return pixels
    moves, low, step = found
    flow = inverse_of(moves, step, _INVERSIONS, _DAMPING)
    x0, y0, x1, y1 = _window(flow, low, step, pixels.shape)
    if x1 == x0:
        return pixels

    turned = np.empty((y1 - y0, x1 - x0, 3), np.uint8)
    for top in range(y0, y1, _STRIP):
        bottom = min(top + _STRIP, y1)
        to_grid = np.array([[1, 0, x0 - low[0]], [0, 1, top - low[1]]]) / step
        flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
        size = x1 - x0, bottom - top
        places = cv2.warpAffine(flow, to_grid, size, flags=flags, borderMode=cv2.BORDER_REPLICATE)
        places[..., 0] += np.arange(x0, x1, dtype=np.float32)
        places[..., 1] += np.arange(top, bottom, dtype=np.float32)[:, None]
        turned[top - y0 : bottom - y0] = cv2.remap(
            pixels, places, None, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
        )
    result = pixels if in_place else pixels.copy()
    result[y0:y1, x0:x1] = turned
    return result
