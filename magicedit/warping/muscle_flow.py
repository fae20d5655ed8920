"""Movement by units that no network was trained on: the muscles' table as a flow."""

from collections.abc import Mapping

import numpy as np

from magicedit.warping.mouth import forward_places
from magicedit.warping.muscles import displacement_fields
from magicedit.warping.warp import LOWER_SHEET, backward_flow, read_at


def moved_by_muscles(flow: np.ndarray, landmarks: np.ndarray, request: Mapping[str, float]) -> np.ndarray:
    """Returns a flow (size, size, 2) px followed by the movement of units of `muscles.SHAPES`.

    landmarks: (478, 2) px of the same crop, before the flow. request: whole units' variations in steps.
    """
    request = {name: value for name, value in request.items() if value}
    if not request:
        return flow
    size, still = len(flow), not flow.any()
    arrived = np.asarray(landmarks, np.float64) if still else _arrived(flow, landmarks)
    fields = displacement_fields(arrived, size, [*request])
    moves, _ = backward_flow(fields, np.array([*request.values()]), arrived, size)
    return moves if still else moves + read_at(flow, moves)


def _arrived(flow: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """Where landmarks (478, 2) lie after a flow that may part the lips."""
    places = forward_places(flow, landmarks, from_below=False)
    places[LOWER_SHEET] = forward_places(flow, landmarks[LOWER_SHEET], from_below=True)
    return places
