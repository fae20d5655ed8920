"""The closed loop: measure what an edit reached, correct the request, edit again."""

import math
from collections.abc import Mapping

import numpy as np

from magicedit.action_units import INTENSITY_RANGE, whole_name
from magicedit.errors import MagicEditError
from magicedit.faces import Face, geometric_change
from magicedit.faces.measure import SEEN_BY_LANDMARKS

FURTHEST = 5.0  # intensity steps that a corrected request may ask for: models are trained on no more
# Measured intensity steps per requested one, where a single edit is all that is known of it. Lower ones
# would send the second request to the end of the scale, higher ones would hardly move it.
_RESPONSE = (0.3, 2.0)
_SMALLEST_MOVE = 0.05  # intensity steps: closer requests make no other picture


def check_tolerance(tolerance: float | None, max_edits: int, measure: bool) -> None:
    """MagicEditError unless the settings of a closed loop make sense; None: no loop."""
    if tolerance is None:
        return
    if not (math.isfinite(tolerance) and tolerance > 0):
        raise MagicEditError(f"the tolerance must be a positive number of intensity steps, got {tolerance}")
    if max_edits < 1:
        raise MagicEditError(f"the closed loop needs at least 1 edit, got {max_edits}")
    if not measure:
        raise MagicEditError("the closed loop measures its results; do not switch measuring off")


def achieved(before: Face, after: Face, names: Mapping[str, float]) -> dict[str, float]:
    """Intensities of `names` in an edited face, by the scorer that sees the unit.

    Measured ones, but those of SEEN_BY_LANDMARKS as before plus the movement of landmarks.
    """
    moved = {}
    if before.scheme == after.scheme == "mediapipe478":
        moved = geometric_change(before.landmarks, after.landmarks)
    start, end = before.action_units | before.sides, after.action_units | after.sides
    return {
        name: start[name] + moved[name]
        if whole_name(name) in SEEN_BY_LANDMARKS and name in moved
        else end[name]
        for name in names
    }


class Pursuit:
    """One face on the way to what was asked of it.

    Requests follow Broyden's method (C. G. Broyden, Mathematics of Computation 19, 1965): the response of the
    measured intensities to the requested variations starts as diagonal, by what the first edit reached, and
    learns of the rest, such as brows that move together, with each further edit.

    Args:
        face: in the photograph.
        asked: AU name -> variation.

    Raises:
        MagicEditError: where a unit that was asked for is not measured.
    """

    def __init__(self, face: Face, asked: Mapping[str, float]):
        self.face = face
        self.asked = dict(asked)
        start = face.action_units | face.sides
        if missing := [name for name in asked if name not in start]:
            raise MagicEditError(
                f"the closed loop needs {', '.join(missing)} measured, and the face backend does not; "
                "leave the tolerance out, or use the backend mediapipe"
            )
        self.edits = 0
        self.best = dict(asked)  # the request that came nearest
        self.best_edit = 0  # its number, from 1
        self.error = math.inf if any(self.asked.values()) else 0.0  # the largest over units, intensity steps
        self._start = np.array([start[name] for name in asked])
        self._goal = np.clip(self._start + list(asked.values()), *INTENSITY_RANGE)
        self._sent = np.array(list(asked.values()), float)
        self._reached: np.ndarray | None = None
        self._response: np.ndarray | None = None  # (aus, aus): measured steps per requested one
        self._stuck = False

    def is_done(self, tolerance: float) -> bool:
        """Whether the goal is within `tolerance`, or no other request is left to try."""
        return self.error <= tolerance or self._stuck

    @property
    def request(self) -> dict[str, float]:
        """What to ask the model for next."""
        return dict(zip(self.asked, self._sent.tolist(), strict=True))

    def note(self, after: Face | None) -> None:
        """Takes in what the last request came to; None: the face was not found in the result."""
        self.edits += 1
        if after is None:
            self._move(self._sent / 2)
            return
        reached = np.array(list(achieved(self.face, after, self.asked).values()))
        error = float(np.abs(self._goal - reached).max(initial=0.0))
        if error < self.error:
            self.error, self.best, self.best_edit = error, self.request, self.edits
        if self._response is None:
            with np.errstate(divide="ignore", invalid="ignore"):
                slopes = (reached - self._start) / self._sent
            self._response = np.diag(np.clip(np.nan_to_num(slopes, nan=1.0), *_RESPONSE))
        elif (step := self._sent - self._last_sent).any():
            surprise = reached - self._reached - self._response @ step
            self._response += np.outer(surprise, step) / (step @ step)
        self._reached = reached
        correction = np.linalg.lstsq(self._response, self._goal - reached, rcond=0.1)[0]
        self._move(self._sent + correction)

    def _move(self, request: np.ndarray) -> None:
        furthest = np.maximum(FURTHEST, np.abs(list(self.asked.values())))
        request = np.clip(request, -furthest, furthest)
        self._stuck = bool(np.abs(request - self._sent).max(initial=0.0) < _SMALLEST_MOVE)
        self._last_sent, self._sent = self._sent, request
