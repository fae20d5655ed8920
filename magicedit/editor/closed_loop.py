"""The closed loop: measure what an edit reached, correct the request, edit again."""

import math
from collections.abc import Callable, Mapping

import numpy as np

from magicedit.action_units import DEAD_ZONE
from magicedit.editor.changer import Edit
from magicedit.errors import MagicEditError
from magicedit.faces import Face, geometric_change
from magicedit.faces.measure import SEEN_BY_LANDMARKS
from magicedit.vocabulary import INTENSITY_RANGE, whole_name

FURTHEST = 5.0  # intensity steps that a corrected request may ask for: models are trained on no more
# Where no request has gone too far yet: the flattest answer that is believed, in measured intensity steps
# per requested one, and how far the next request goes. Blendshapes hardly answer a first step and leap at the
# third.
FLATTEST = 0.3
STRIDE = 1.5  # intensity steps
SMALLEST_MOVE = 0.05  # intensity steps: closer requests make no other picture
UNMOVED = 0.5  # intensity steps: units of which less was asked should stay where they measured


def achieved(before: Face, after: Face, asked: Mapping[str, float]) -> dict[str, float]:
    """Intensities of what was asked for in an edited face, by the scorer that sees the unit.

    Measured ones; of SEEN_BY_LANDMARKS, where a change was asked for, as before plus the movement of
    landmarks, which other units move too.

    Args:
        asked: AU name -> variation.
    """
    moved = {}
    if before.scheme == after.scheme == "mediapipe478":
        moved = geometric_change(before.landmarks, after.landmarks)
    start, end = before.action_units | before.sides, after.action_units | after.sides
    return {
        name: start[name] + moved[name]
        if whole_name(name) in SEEN_BY_LANDMARKS and name in moved and abs(delta) >= UNMOVED
        else end[name]
        for name, delta in asked.items()
    }


class Pursuit:
    """One face on the way to what was asked of it.

    Each unit is pursued by itself. The photograph is the first point of its curve from request to measured
    intensity, and every edit adds one. While all fall short, the slope of the last two points leads on;
    between one that falls short and one that goes too far, the curve's inverse, a monotone cubic (Fritsch and
    Carlson, SIAM J. Numer. Anal. 17, 1980), or the middle where the scale's end hides the slope. A unit that
    is asked for a variation of 0 counts as missed only where it strays by DEAD_ZONE or more: less is noise.

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
        self.request = dict(asked)  # what to ask the model for next
        self.best = dict.fromkeys(asked, 0.0)  # the request that came nearest
        self.best_edit = 0  # its number, from 1; 0, the photograph, while the face was not found in any edit
        self.error = math.inf if any(asked.values()) else 0.0  # the largest of all units, intensity steps
        low, high = INTENSITY_RANGE
        self._goal = {name: min(max(start[name] + delta, low), high) for name, delta in asked.items()}
        self._points = {name: [(0.0, start[name])] for name in asked}  # (requested, measured)
        self._stuck = False

    def is_done(self, tolerance: float) -> bool:
        """Whether the goal is within `tolerance`, or no other request is left to try."""
        return self.error <= tolerance or self._stuck

    def note(self, after: Face | None) -> None:
        """Takes in what the last request came to; None: the face was not found in the result."""
        self.edits += 1
        if after is None:
            following = {name: value / 2 for name, value in self.request.items()}
        else:
            reached = achieved(self.face, after, self.asked)
            error = self._missed_by(reached)
            if error < self.error:
                self.error, self.best, self.best_edit = error, self.request, self.edits
            for name, value in reached.items():
                self._points[name].append((self.request[name], value))
            following = {
                name: self._following(name) if self._distance(name, value) else self.request[name]
                for name, value in reached.items()
            }
        moves = (abs(following[name] - self.request[name]) for name in following)
        self._stuck = max(moves, default=0.0) < SMALLEST_MOVE
        self.request = following

    def settle(self, after: Face | None, edited: bool) -> None:
        """Takes in the final picture where it is another than that of the best edit, whose error counted.

        edited: whether it took one more edit.
        """
        self.edits += edited
        self.error = math.inf if after is None else self._missed_by(achieved(self.face, after, self.asked))

    @property
    def is_lost(self) -> bool:
        """Whether the face was found in no edit, so that it stays as it is."""
        return self.edits > 0 and self.best_edit == 0

    def shortfall(self, tolerance: float) -> list[str]:
        """A warning where the goal was missed by more than the tolerance, in intensity steps."""
        if self.is_lost:
            return [f"the face was not found again in any of {self.edits} edits, so it was left as it is"]
        if tolerance < self.error < math.inf:
            return [
                f"after {self.edits} edits the request was missed by {self.error:.1f} intensity steps, "
                f"more than the tolerance of {tolerance:g}"
            ]
        return []

    def _missed_by(self, reached: Mapping[str, float]) -> float:
        return max(self._distance(name, value) for name, value in reached.items())

    def _distance(self, name: str, value: float) -> float:
        """Intensity steps from a measured value to a unit's goal; 0 for noise of a unit not asked to move."""
        distance = abs(self._goal[name] - value)
        return 0.0 if not self.asked[name] and distance < DEAD_ZONE else distance

    def _following(self, name: str) -> float:
        goal, points = self._goal[name], self._points[name]
        furthest = max(FURTHEST, abs(self.asked[name]))
        short = [point for point in points if point[1] <= goal]
        beyond = [point for point in points if point[1] > goal]
        if not short or not beyond:
            (x0, y0), (x1, y1) = points[-2:]
            slope = (y1 - y0) / (x1 - x0) if abs(x1 - x0) >= SMALLEST_MOVE else 1.0
            step = (goal - y1) / max(slope, FLATTEST)
            return min(max(x1 + min(max(step, -STRIDE), STRIDE), -furthest), furthest)
        low = max(short, key=lambda point: (point[1], point[0]))
        high = min(beyond, key=lambda point: (point[1], -point[0]))
        if low[1] <= INTENSITY_RANGE[0] < goal or high[1] >= INTENSITY_RANGE[1]:
            return (low[0] + high[0]) / 2
        # The points around the two, as far as larger requests measure more
        curve = [low, high] if low[0] < high[0] else []
        for x, y in sorted(points, key=lambda point: abs(point[0] - (low[0] + high[0]) / 2)):
            if curve and x < curve[0][0] and y < curve[0][1]:
                curve.insert(0, (x, y))
            elif curve and x > curve[-1][0] and y > curve[-1][1]:
                curve.append((x, y))
        if not curve:  # the measurement scatters: more was asked and less came
            return low[0] + (goal - low[1]) * (high[0] - low[0]) / (high[1] - low[1])
        from scipy.interpolate import PchipInterpolator  # half a second that other edits need not pay

        requests, measured = zip(*curve, strict=True)
        return float(PchipInterpolator(measured, requests)(goal))


def pursue(
    edits: list[Edit],
    change: Callable[[list[Edit]], None],
    find_again: Callable[[np.ndarray, Face], Face | None],
    tolerance: float,
    max_edits: int,
) -> tuple[list[Edit], list[list[Pursuit]]]:
    """The closed loop: edit, measure, correct the requests, until all are near enough.

    Args:
        edits: what is asked, not carried out.
        change: carries out some. find_again: the same face in other pixels; None where it is lost.

    Returns:
        edits that came nearest, and for each the pursuits of its faces.
    """
    pursuits = [
        [Pursuit(face, asked) for face, asked in zip(edit.faces, edit.requests, strict=True)]
        for edit in edits
    ]
    # Those that are the nearest of some face, by number; 0 is the photograph
    kept = [
        {0: Edit(edit.chosen, [pursuit.best for pursuit in faces])}
        for edit, faces in zip(edits, pursuits, strict=True)
    ]
    for number in range(1, max_edits + 1):
        tries = {}
        for i, (edit, faces) in enumerate(zip(edits, pursuits, strict=True)):
            if not all(pursuit.is_done(tolerance) for pursuit in faces):
                requests = [p.best if p.is_done(tolerance) else p.request for p in faces]
                tries[i] = Edit(edit.chosen, requests)
        change([*tries.values()])
        for i, attempt in tries.items():
            for pursuit in pursuits[i]:
                if not pursuit.is_done(tolerance):
                    pursuit.note(find_again(attempt.pixels, pursuit.face))
            nearest = {0, *(pursuit.best_edit for pursuit in pursuits[i])}
            kept[i] = {n: old for n, old in (kept[i] | {number: attempt}).items() if n in nearest}

    # Faces may have come nearest in different edits; then one more joins their best requests
    finals = []
    for edit, faces, attempts in zip(edits, pursuits, kept, strict=True):
        final = Edit(edit.chosen, [pursuit.best for pursuit in faces])
        made = next((n for n, attempt in attempts.items() if attempt.requests == final.requests), None)
        if made is None:
            change([final])
        else:
            final = attempts[made]
        for pursuit in faces:
            if pursuit.edits and pursuit.best_edit != made:
                again = find_again(final.pixels, pursuit.face)
                pursuit.settle(again, edited=made is None and not pursuit.is_lost)
        finals.append(final)
    return finals, pursuits
