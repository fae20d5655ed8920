"""Movement of landmarks made dense: thin-plate splines over the two sheets of a face's skin, above and below
the mouth's opening, and Gaussians around corrections.

F. Bookstein, "Principal warps", PAMI 1989. The splines are those of scipy's `RBFInterpolator` for each sheet,
but several times faster, because the sheets share most of their points.
"""

import cv2
import numpy as np

_SMOOTHING = 1e-3  # of the splines: landmarks scatter by about a hundredth of the distance between the eyes
_AT_ONCE = 256  # places of a grid, so that their kernel stays in the processor's cache
_REST = 0.3  # the weight of no movement beside one landmark's, of Gaussians

Parts = tuple[np.ndarray, np.ndarray, np.ndarray]


def sheet_fields(places: Parts, values: Parts, grid: np.ndarray) -> np.ndarray:
    """Returns smooth fields through values at places, one for each of two sheets.

    places: (n, 2) of both sheets, (u, 2) of the first one alone and (l, 2) of the second one alone, in
    interocular distances; values: (n, channels), (u, channels), (l, channels) there. grid (points, 2): where
    the fields are wanted. Returns (points, sheets, channels).

    All are computed in the precision of the places. float32 takes two thirds of the time; it multiplies the
    differences of almost coinciding landmarks by up to 1 / _SMOOTHING, and rounds these.
    """
    (shared, *own), (shared_values, *own_values) = places, values
    count, channels = shared_values.shape
    # 1. The system of the shared places: kernel and affine part, (n + 3, n + 3), factorised once
    precision = shared.dtype
    grid, shared_values = grid.astype(precision), shared_values.astype(precision)
    system = np.zeros((count + 3, count + 3), precision, order="F")  # as LAPACK has it
    system[:count, :count] = _smoothed_kernel(shared)
    system[:count, count:], system[count:, :count] = _affine(shared), _affine(shared).T
    borders = [np.concatenate([_kernel(shared, alone), _affine(alone).T]) for alone in own]
    padded = np.concatenate([shared_values, np.zeros((3, channels), precision)])
    known = np.asfortranarray(np.concatenate([*borders, padded], 1))
    solved = _solution(system, known)
    *answers, free = np.split(solved, np.cumsum([len(alone) for alone in own]), axis=1)

    # 2. Weights of each sheet: its own places by the Schur complement of the shared ones
    weights = np.zeros((count + 3 + sum(map(len, own)), 2, channels), precision)
    first = count + 3
    for sheet, (alone, wanted) in enumerate(zip(own, own_values, strict=True)):
        border, answer = borders[sheet], answers[sheet]
        complement = _smoothed_kernel(alone) - border.T @ answer
        found = np.linalg.solve(complement, wanted - border.T @ free)
        weights[: count + 3, sheet] = free - answer @ found
        weights[first : first + len(alone), sheet] = found
        first += len(alone)
    weights = weights.reshape(len(weights), -1)

    # 3. Both fields on the grid
    affine, weights = weights[count : count + 3], np.delete(weights, range(count, count + 3), 0)
    fields = _affine(grid) @ affine
    left, right = _left(grid), _right(np.concatenate(places))
    room = np.empty((2, _AT_ONCE, right.shape[1]), precision)  # new memory for each part would take as long
    for first in range(0, len(grid), _AT_ONCE):
        rows = slice(first, first + _AT_ONCE)
        fields[rows] += _kernel_in(room, left[rows], right) @ weights
    return fields.reshape(-1, 2, channels)


def _solution(system: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Solves system @ x = known, (n, n) and (n, channels); both may be overwritten.

    In float32, SciPy takes half of NumPy's time. In float64 both take the same, and edits with embedded
    models need no SciPy.
    """
    if system.dtype == np.float64:
        return np.linalg.solve(system, known)
    from scipy.linalg import lu_factor, lu_solve  # a slow import

    factors = lu_factor(system, overwrite_a=True, check_finite=False)
    return lu_solve(factors, known, overwrite_b=True, check_finite=False)


def _kernel(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """2 r^2 log r of the distances between places, (first, second)."""
    return _kernel_in(np.empty((2, len(first), len(second)), first.dtype), _left(first), _right(second))


def _kernel_in(room: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The kernel of places, `_left` of the first and `_right` of the second ones, as a part of `room`.

    room: (2, first or more, second), which is overwritten.
    """
    squares, kernel = room[:, : len(left)]
    np.matmul(left, right, out=squares)
    np.maximum(squares, np.finfo(squares.dtype).tiny, out=squares)  # rounding
    cv2.log(squares, dst=kernel)
    kernel *= squares
    return kernel


def _left(places: np.ndarray) -> np.ndarray:
    """(places, 4): its product with `_right` is the squares of distances."""
    return np.column_stack([places, (places**2).sum(1), np.ones(len(places), places.dtype)])


def _right(places: np.ndarray) -> np.ndarray:
    return np.stack([*(-2 * places.T), np.ones(len(places), places.dtype), (places**2).sum(1)])


def _smoothed_kernel(places: np.ndarray) -> np.ndarray:
    kernel = _kernel(places, places)
    kernel[np.diag_indices(len(places))] += 2 * _SMOOTHING
    return kernel


def _affine(places: np.ndarray) -> np.ndarray:
    return np.insert(places, 2, 1, axis=1)


def gaussian_field(
    places: np.ndarray, moves: np.ndarray, across: np.ndarray, down: np.ndarray, spread: float
) -> np.ndarray:
    """Returns moves (points, 2) of places (points, 2) as a smooth field that ends away from them.

    across, down: columns and rows of the field. spread: the Gaussians' standard deviation, in the unit of the
    places. Returns (rows, columns, 2), in the unit of the moves.
    """
    columns, rows = (
        np.exp(-(((at - places[:, k : k + 1]) / spread) ** 2) / 2) for k, at in ((0, across), (1, down))
    )  # (points, columns), (points, rows)
    sums = [(rows * values[:, None]).T @ columns for values in (*moves.T, np.ones(len(places), np.float32))]
    return np.stack(sums[:2], -1) / (sums[2] + _REST)[..., None]
