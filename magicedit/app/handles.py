"""Handles on a face that people drag in the picture: where they lie, and which request a drag means.

A handle is the mean of a few landmarks. A drag asks for those variations of the handle's units, within their
ranges and nearest to what was asked before, that carry it to the pointer. The movements are those of
`magicedit.warping.muscles`, so this is a bounded linear least-squares problem.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from magicedit.action_units import is_angle, sided_names
from magicedit.app.sliders import ADD_RANGE, Request
from magicedit.editor.changer import LINEAR_TO, SOFT, saturated
from magicedit.faces.frame import face_frame
from magicedit.vocabulary import INTENSITY_RANGE, SIDES, split_sides, whole_name
from magicedit.warping.muscles import SHAPES, landmark_displacements

CLOSING = "AU43"  # moves an upper lid onto the lower one; a layer of its own, so that SHAPES lacks it
# Interocular distances that a handle may miss the pointer by for a step less of a unit, and of a helping one
_RELUCTANCE, _HELPERS_RELUCTANCE = 0.004, 0.006
# Variations that a drag may ask for at most. Within ADD_RANGE, AU15 pulls a corner down by little
_MOST = {"AU15": 9.0}
# Shares of the muscles' movement, across and down the face, that show at the corners of the mouth: medians of
# edits of 25 faces by `mini`; of AU12, what smiles of photographs are of the table, on 13 faces
_ARRIVING = {"AU12": (0.94, 0.91), "AU15": (0.45, 0.88), "AU18": (0.85, 0.85), "AU20": (0.77, 0.87)}
_DECIMALS = 2  # of a variation


@dataclass(frozen=True)
class Handle:
    """A place of the face that can be dragged.

    Attributes:
        label: for people.
        landmarks: of MediaPipe's 478; the handle is their mean.
        units: whole units that a drag of it asks for. helpers: those of them that it asks for only where the
            others go another way.
        side: "L" or "R", the subject's; "" for the middle of the face.
        onto: landmarks whose mean the handle reaches where CLOSING is at full intensity.
    """

    label: str
    landmarks: tuple[int, ...]
    units: tuple[str, ...]
    side: str = ""
    onto: tuple[int, ...] = ()
    helpers: tuple[str, ...] = ()


def _pair(
    label: str,
    units: tuple[str, ...],
    left: tuple[int, ...],
    right: tuple[int, ...],
    helpers: tuple[str, ...] = (),
) -> list[Handle]:
    return [
        Handle(f"{SIDES[side]} {label}", landmarks, units, side, helpers=helpers)
        for side, landmarks in zip(SIDES, (left, right), strict=True)
    ]


HANDLES = (
    *_pair("corner of the mouth", ("AU12", "AU15", "AU20", "AU18"), (291,), (61,), ("AU20", "AU18")),
    Handle("upper lip", (0, 13), ("AU10",)),
    Handle("lower lip", (14, 17), ("AU25", "AU17")),
    Handle("chin", (152,), ("AU26", "AU17")),
    *_pair("inner brow", ("AU1", "AU4"), (336, 285), (107, 55)),
    *_pair("outer brow", ("AU2", "AU4"), (334, 282), (105, 52)),
    Handle("the subject's left upper lid", (386,), ("AU5", CLOSING), "L", (374,)),
    Handle("the subject's right upper lid", (159,), ("AU5", CLOSING), "R", (145,)),
    *_pair("lower lid", ("AU7",), (374,), (145,)),
)


def handle_places(landmarks: np.ndarray, request: Request, units: Sequence[str]) -> dict[int, np.ndarray]:
    """Returns by number of `HANDLES` the place (2,) px of each handle that a model's units move.

    landmarks: MediaPipe's (478, 2) px of the photograph. request: variations that the shown face has. None is
    returned for a turned head, whose landmarks this cannot tell.
    """
    if any(value for name, value in request.items() if is_angle(name) and name.startswith("head")):
        return {}
    usable = [number for number, handle in enumerate(HANDLES) if {*handle.units} & {*units}]
    landmarks, steps = np.asarray(landmarks, np.float64), _steps(landmarks)
    return {number: _place(HANDLES[number], landmarks, steps, request) for number in usable}


def drag_request(
    handle: Handle,
    target: np.ndarray,
    landmarks: np.ndarray,
    request: Request,
    measured: Mapping[str, float],
    units: Sequence[str],
    linked: bool,
) -> Request:
    """Returns the request after a drag of a handle to a place of the photograph.

    Args:
        target: (2,) px.
        landmarks: MediaPipe's (478, 2) px of the photograph.
        request: before the drag; units that the handle does not move stay.
        measured: intensities of the photograph, by name; a drag takes nothing away that is not there.
        units: of the model.
        linked: whether both sides move together; else units without sides stay.
    """
    side = "" if linked else handle.side
    names = [unit for unit in handle.units if unit in units and (not side or sided_names(unit))]
    if not names:
        return request
    landmarks, steps = np.asarray(landmarks, np.float64), _steps(landmarks)
    moves = np.stack([_movement(handle, landmarks, steps, name) for name in names], 1)  # (2, aus) px a step
    start = np.array([_followed(request, name, handle.side) for name in names])
    away = np.asarray(target, np.float64) - _place(handle, landmarks, steps, request)
    reluctance = [_HELPERS_RELUCTANCE if name in handle.helpers else _RELUCTANCE for name in names]
    inertia = face_frame(landmarks).interocular * np.diag(reluctance)
    lows = [-measured.get(name + side, measured.get(name, 0.0)) if name != CLOSING else 0.0 for name in names]
    found = _bounded_least_squares(
        np.concatenate([moves, inertia]),
        np.concatenate([moves @ start + away, inertia @ start]),
        np.minimum(start, lows),
        np.maximum(start, [saturated(_MOST.get(name, ADD_RANGE[1])) for name in names]),
    )
    values = dict(zip(names, np.round(_asking_for(found), _DECIMALS).tolist(), strict=True))
    changed = {name for unit in names for name in ((unit + side,) if side else (unit, *sided_names(unit)))}
    kept = _apart(request, names) if side else request
    kept = {name: value for name, value in kept.items() if name not in changed}
    return kept | {name + side: value for name, value in values.items() if value}


def _bounded_least_squares(
    matrix: np.ndarray, values: np.ndarray, lows: np.ndarray, highs: np.ndarray
) -> np.ndarray:
    """Returns x (n,) from lows to highs that minimises |matrix @ x - values|; the columns are independent.

    Like SciPy's `lsq_linear`, which the page would need SciPy for. It tries which of x lie at
    their bounds: 3^n systems; n is at most 4.
    """
    best, least = lows, np.inf
    for places in itertools.product((-1, 0, 1), repeat=len(lows)):  # low bound, between, high bound
        x, free = np.where(np.array(places) < 0, lows, highs), np.array(places) == 0
        x[free] = np.linalg.lstsq(matrix[:, free], values - matrix[:, ~free] @ x[~free])[0]
        error = np.linalg.norm(matrix @ x - values)
        if error < least and (lows <= x).all() and (x <= highs).all():
            best, least = x, error
    return best


def _apart(request: Request, units: Sequence[str]) -> Request:
    """Returns the request with these units by side."""
    apart = {name: value for name, value in request.items() if whole_name(name) not in units}
    own = {name: value for name, value in request.items() if whole_name(name) in units}
    for side, values in zip(SIDES, split_sides(own), strict=True):
        apart |= {name + side: value for name, value in values.items()}
    return apart


def _steps(landmarks: np.ndarray) -> dict[str, np.ndarray]:
    """Returns how a step of each unit moves landmarks (478, 2) px: (478, 2) px, by name."""
    moves = landmark_displacements(landmarks, tuple(SHAPES)) / INTENSITY_RANGE[1]
    steps, frame = dict(zip(SHAPES, moves.swapaxes(0, 1), strict=True)), face_frame(landmarks)
    for name, shares in _ARRIVING.items():
        steps[name] = frame.vectors_to_picture(frame.vectors_to_face(steps[name]) * shares)
    return steps


def _place(
    handle: Handle, landmarks: np.ndarray, steps: dict[str, np.ndarray], request: Request
) -> np.ndarray:
    """Returns where a request carries a handle, (2,) px."""
    place = landmarks[list(handle.landmarks)].mean(0)
    for name in {whole_name(name) for name in request}:
        place = place + _followed(request, name, handle.side) * _movement(handle, landmarks, steps, name)
    return place


def _movement(handle: Handle, landmarks: np.ndarray, steps: dict[str, np.ndarray], unit: str) -> np.ndarray:
    """Returns how a step of a unit moves a handle, (2,) px; zero for units that move no skin of the face."""
    if unit == CLOSING and handle.onto:
        whole = landmarks[list(handle.onto)].mean(0) - landmarks[list(handle.landmarks)].mean(0)
        return whole / INTENSITY_RANGE[1]
    return steps[unit][list(handle.landmarks)].mean(0) if unit in steps else np.zeros(2)


def _asked(request: Request, unit: str, side: str) -> float:
    """Returns a unit's variation on a side; in the middle of the face, the mean of both."""
    left, right = (values.get(unit, 0.0) for values in split_sides(request))
    return {"L": left, "R": right}.get(side, (left + right) / 2)


def _followed(request: Request, unit: str, side: str) -> float:
    """Returns the steps of a unit that the face follows."""
    return float(saturated(_asked(request, unit, side)))


def _asking_for(steps: np.ndarray) -> np.ndarray:
    """Returns the variations of which `saturated` makes these steps."""
    beyond = np.maximum(np.abs(steps) - LINEAR_TO, 0)
    return np.sign(steps) * (np.minimum(np.abs(steps), LINEAR_TO) - SOFT * np.log1p(-beyond / SOFT))
