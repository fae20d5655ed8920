"""Applying displacement fields to photographs and landmarks."""

from typing import NamedTuple

import cv2
import numpy as np

from magicedit.faces.frame import face_frame
from magicedit.warping.inside import Opening, Parting, render_inside
from magicedit.warping.muscles import BELOW_MOUTH, LOWER_LIP, LOWER_LIP_EDGE, UPPER_LIP_EDGE
from magicedit.warping.teeth import Mouth

LOWER_SHEET = [*LOWER_LIP, *BELOW_MOUTH]  # landmarks that move with the lower lip
CHIN = 152
# Number and damping of fixed-point steps towards the inverse: where skin is stretched by a factor 1 + s, like
# lids below rising brows, each step multiplies the residual by 1 - _DAMPING * (1 + s)
_INVERSIONS, _DAMPING = 12, 0.5


class _Opening(NamedTuple):
    """The border between the two sheets of skin at the moved mouth.

    rows: rows of the picture that the mouth's opening crosses. below, opened: (rows, size) weights of the
    lower sheet and of mouth inside that the photograph does not show. edges: (points, 2) px each, the moved
    edges of the upper and of the lower lip. jaw: drop of the chin, in interocular distances.
    """

    rows: slice
    below: np.ndarray
    opened: np.ndarray
    edges: tuple[np.ndarray, np.ndarray]
    jaw: float


def backward_flow(
    fields: np.ndarray, au_vector: np.ndarray, landmarks: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns where a warped face crop reads the photograph, and where it finds no content there.

    Arguments as in `warp_photo`; size: of the crop in px. Returns the flow (size, size, 2) px, x then y, with
    warped(p) = photograph(p + flow(p)), and (size, size), in [0, 1], how much of a pixel is mouth inside that
    the photograph does not show.
    """
    flow, opening = _backward(fields, au_vector, landmarks, size)
    opened = np.zeros((size, size), np.float32)
    opened[opening.rows] = opening.opened
    return flow, opened


def _backward(
    fields: np.ndarray, au_vector: np.ndarray, landmarks: np.ndarray, size: int
) -> tuple[np.ndarray, _Opening]:
    stride = _stride(fields, size)
    forward = _combine(fields, au_vector)  # (size/stride, size/stride, 4) px
    backward, lower = (  # (size, size, 2) px of each sheet
        cv2.resize(inverse, (size, size), interpolation=cv2.INTER_CUBIC)
        for inverse in _inverses(forward, stride)
    )
    opening = _mouth(forward, np.asarray(landmarks, np.float64), stride, size)
    rows = opening.rows
    backward[rows] += opening.below[..., None] * (lower[rows] - backward[rows])
    backward[rows.stop :] = lower[rows.stop :]
    return backward, opening


def warp_photo(
    pixels: np.ndarray,
    fields: np.ndarray,
    au_vector: np.ndarray,
    landmarks: np.ndarray,
    mouth: Mouth | None = None,
) -> np.ndarray:
    """Moves the skin of a face crop by a change of AUs.

    pixels (size, size, 3) uint8 RGB; fields: of the same crop, from `displacement_fields`; au_vector (aus,):
    change in intensity steps, negative to relax a muscle, in the fields' order; landmarks (478, 2) px locate
    the mouth. Where the lips part farther than in the photograph, the mouth's inside is painted with the
    teeth of `mouth`, or dark. Returns uint8 (size, size, 3); an equal copy for a zero vector.
    """
    return warp_with_flow(pixels, fields, au_vector, landmarks, mouth)[0]


def warp_with_flow(
    pixels: np.ndarray,
    fields: np.ndarray,
    au_vector: np.ndarray,
    landmarks: np.ndarray,
    mouth: Mouth | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns what `warp_photo` and `backward_flow` return for the same arguments, in less time than both."""
    size = pixels.shape[0]
    if pixels.shape != (size, size, 3) or pixels.dtype != np.uint8:
        raise ValueError(f"pixels must be uint8 (size, size, 3), got {pixels.dtype} {pixels.shape}")
    opened = np.zeros((size, size), np.float32)
    if not np.any(au_vector):
        return pixels.copy(), np.zeros((size, size, 2), np.float32), opened
    backward, opening = _backward(fields, au_vector, landmarks, size)
    warped = read_at(pixels, backward)
    opened[opening.rows] = opening.opened
    if opening.opened.any():
        band = warped[opening.rows]
        inside = _inside(pixels, landmarks, opening, mouth)
        band[:] = np.rint(np.clip(band + opening.opened[..., None] * (inside - band), 0, 255))
    return warped, backward, opened


def _inside(pixels: np.ndarray, landmarks: np.ndarray, opening: _Opening, mouth: Mouth | None) -> np.ndarray:
    """The mouth's inside in the rows of an opening, (rows, size, 3) float32 RGB."""
    landmarks = np.asarray(landmarks, np.float64)
    upper, lower = (np.asarray(edge, np.float64) for edge in opening.edges)
    source = landmarks[list(UPPER_LIP_EDGE)], landmarks[list(LOWER_LIP_EDGE)]
    parting = Parting(*source, upper, lower, upper, lower, opening.jaw, face_frame(landmarks).interocular)
    x, y = np.meshgrid(
        np.arange(len(pixels), dtype=np.float32),
        np.arange(opening.rows.start, opening.rows.stop, dtype=np.float32),
    )
    heights = [_height_along(x, edge).astype(np.float32) for edge in (upper, lower)]
    place = Opening(pixels, landmarks, landmarks, parting, len(pixels), 1.0, x, y, *heights, opening.opened)
    return render_inside(place, mouth)


def read_at(pixels: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """Reads `pixels` (size, size, ...) at each place plus flow (size, size, 2) px; reflects at borders."""
    x, y = _pixel_grid(len(pixels))
    return cv2.remap(
        pixels, flow[..., 0] + x, flow[..., 1] + y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
    )


def warp_landmarks(
    landmarks: np.ndarray, fields: np.ndarray, au_vector: np.ndarray, stride: int = 4
) -> np.ndarray:
    """Returns landmarks (478, 2) px moved as by `warp_photo`; float32.

    stride: the fields', in px.
    """
    landmarks = np.asarray(landmarks, np.float32)
    forward = _combine(fields, au_vector)
    moved = _move(landmarks, forward[..., :2], stride)
    moved[LOWER_SHEET] = _move(landmarks[LOWER_SHEET], forward[..., 2:], stride)
    return moved


def _stride(fields: np.ndarray, size: int) -> int:
    fits = fields.ndim == 4 and fields.shape[1] == fields.shape[2] and fields.shape[3] == 4
    if not fits or size % fields.shape[1]:
        raise ValueError(
            f"fields must have shape (aus, {size}/stride, {size}/stride, 4) for a crop of {size} px, "
            f"got {fields.shape}"
        )
    return size // fields.shape[1]


def _combine(fields: np.ndarray, au_vector: np.ndarray) -> np.ndarray:
    """The forward displacement of an AU vector (aus,), px; both sheets, shape (rows, columns, 4)."""
    au_vector = np.asarray(au_vector, np.float32)
    if au_vector.shape != fields.shape[:1]:
        raise ValueError(
            f"au_vector must have shape {fields.shape[:1]}, as the fields, got {au_vector.shape}"
        )
    return np.tensordot(au_vector / 5, fields, 1)


def _inverses(forward: np.ndarray, stride: int) -> list[np.ndarray]:
    """The backward flow of each sheet, on their grid."""
    sheets = np.ascontiguousarray(forward[..., :2]), np.ascontiguousarray(forward[..., 2:])
    return [inverse_of(sheet, stride) for sheet in sheets]


def inverse_of(
    moves: np.ndarray, step: float, rounds: int = _INVERSIONS, damping: float = _DAMPING
) -> np.ndarray:
    """The flow b (rows, columns, 2) px that undoes a movement m of places `step` px apart.

    It solves b(p) = -m(p + b(p)) by `rounds` damped fixed-point steps.
    """
    height, width = moves.shape[:2]
    x, y = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)[:, None]
    flow = -moves
    for _ in range(rounds):
        at = flow / step
        there = cv2.remap(
            moves, at[..., 0] + x, at[..., 1] + y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        flow -= damping * (flow + there)
    return flow


def derivatives(flow: np.ndarray, step: float = 1.0) -> tuple[np.ndarray, ...]:
    """Returns how the movement (rows, columns, 2) of places `step` px apart changes, (rows, columns) each:
    x by x, x by y, y by x, y by y."""
    (x_by_y, x_by_x), (y_by_y, y_by_x) = (np.gradient(flow[..., axis], step) for axis in (0, 1))
    return x_by_x, x_by_y, y_by_x, y_by_y


def _move(points: np.ndarray, forward: np.ndarray, stride: int) -> np.ndarray:
    at = ((points + 0.5) / stride - 0.5).astype(np.float32)[None]
    forward = np.ascontiguousarray(forward)
    moves = cv2.remap(forward, at[..., 0], at[..., 1], cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    return (points + moves[0]).astype(np.float32)


def _pixel_grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """x of each column (1, size) and y of each row (size, 1)."""
    steps = np.arange(size, dtype=np.float32)
    return steps[None], steps[:, None]


def _mouth(forward: np.ndarray, landmarks: np.ndarray, stride: int, size: int) -> _Opening:
    frame = face_frame(landmarks)
    edges = landmarks[list(UPPER_LIP_EDGE)], landmarks[list(LOWER_LIP_EDGE)]
    moved = _move(edges[0], forward[..., :2], stride), _move(edges[1], forward[..., 2:], stride)
    for end in (0, -1):  # the lips stay joined at the corners, or the gap would extend across the cheeks
        moved[0][end] = moved[1][end] = (moved[0][end] + moved[1][end]) / 2
    reach = np.concatenate(moved)[:, 1]
    rows = slice(*np.clip([int(reach.min()) - 2, int(reach.max()) + 4], 0, size).tolist())

    x, y = _pixel_grid(size)
    axis_x, axis_y = (frame.rotation / frame.interocular).astype(np.float32)
    px, py = x - np.float32(frame.origin[0]), y[rows] - np.float32(frame.origin[1])
    across = px * axis_x[0] + py * axis_x[1]  # (rows, size) interocular
    down = px * axis_y[0] + py * axis_y[1]
    pixel = 1 / frame.interocular
    top, bottom = (_height_along(across, frame.to_face(edge)) for edge in moved)
    shown = [_height_along(frame.to_face(moved[0])[:, 0], frame.to_face(edge)) for edge in edges]
    # The mouth's inside in the photograph, at the moved positions of its edge.
    shown = np.interp(across, frame.to_face(moved[0])[:, 0], np.maximum(shown[1] - shown[0], 0))
    middle, gap = (top + bottom) / 2, np.maximum(bottom - top, pixel)
    top = middle - gap / 2  # lips that would pass through each other meet half-way
    # Of an opening mouth's inside, with the teeth
    kept = np.where(gap > shown, np.minimum(shown, gap - pixel), 0)
    depth = down - top
    below = np.clip((depth - kept) / (gap - kept), 0, 1)
    soft = max(pixel, 0.015)
    opened = np.clip((depth - kept) / soft, 0, 1) * np.clip((gap - depth) / soft, 0, 1)
    opened *= gap > shown + 1.5 * pixel
    chin = landmarks[CHIN : CHIN + 1]
    jaw = max(float((_move(chin, forward[..., 2:], stride) - chin)[0, 1]) / frame.interocular, 0.0)
    return _Opening(rows, below.astype(np.float32), opened.astype(np.float32), moved, jaw)


def _height_along(across: np.ndarray, edge: np.ndarray) -> np.ndarray:
    """Height of a lip's edge (points, 2) at places across the face, constant beyond its ends."""
    return np.interp(across, np.maximum.accumulate(edge[:, 0]), edge[:, 1])
