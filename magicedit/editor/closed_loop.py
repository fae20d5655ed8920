"""The closed loop: measures the result of an edit, corrects the request and edits again."""

import math
from collections.abc import Callable, Mapping

import numpy as np

from magicedit.action_units import DEAD_ZONE, FACS, STEP_DEGREES, UNSEEN, is_angle
from magicedit.editor.changer import Edit
from magicedit.errors import MagicEditError
from magicedit.faces import Face, geometric_change, levels_of
from magicedit.faces.measure import is_seen_by_landmarks
from magicedit.vocabulary import INTENSITY_RANGE, whole_name

FURTHEST = 5.0  # intensity steps, largest corrected request: models are trained up to this
# Used until a request overshoots: the smallest slope that is trusted, in measured intensity steps per
# requested one, and the largest increase of the next request. Blendshapes hardly respond to a first step and
# jump at the third.
FLATTEST = 0.3
STRIDE = 1.5  # intensity steps
SMALLEST_MOVE = 0.05  # intensity steps: closer requests give the same picture
UNMOVED = 0.5  # intensity steps: units with smaller requests should keep their measured level


def achieved(before: Face, after: Face, asked: Mapping[str, float]) -> dict[str, float]:
    """Returns the intensities of the requested units in an edited face, each by a scorer that sees the unit.

    Most are the measured ones. Units that `is_seen_by_landmarks` with a requested change are the earlier
    level plus the movement of landmarks, which other units move too.

    asked: AU name -> variation.
    """
    moved = {}
    if before.scheme == after.scheme == "mediapipe478":
        moved = geometric_change(before.landmarks, after.landmarks)
    start, end = levels_of(before), levels_of(after)
    return {
        name: start[name] + moved[name]
        if is_seen_by_landmarks(name) and name in moved and abs(delta) >= UNMOVED
        else end[name]
        for name, delta in asked.items()
    }


def _step(name: str) -> float:
    """What counts as an intensity step of a control."""
    return STEP_DEGREES[FACS[name].kind] if is_angle(name) else 1.0


def _limits(name: str) -> tuple[float, float]:
    """The scale's ends in steps; angles have none."""
    return (-math.inf, math.inf) if is_angle(name) else INTENSITY_RANGE


def _goal(name: str, level: float) -> float:
    """A level to arrive at, within the scale, in steps."""
    low, high = _limits(name)
    return min(max(level / _step(name), low), high)


class Pursuit:
    """Closed-loop state of one face: requests tried so far and the best one.

    Each unit is corrected independently. Its curve maps requests to measured intensities; the photograph is
    the first point, and every edit adds one. While all points fall short, the slope of the last two
    extrapolates. Between a point that falls short and one that overshoots, the inverse of a monotone cubic
    interpolates (Fritsch and Carlson, SIAM J. Numer. Anal. 17, 1980), or the midpoint where the scale's end
    hides the slope. A unit with a requested variation of 0 is missed only if it moves by DEAD_ZONE or more.
    STEP_DEGREES of gaze and head count as an intensity step. UNSEEN controls are sent as asked, not judged.

    Args:
        face: in the photograph.
        asked: AU name -> variation.

    Raises:
        MagicEditError: where a requested unit is not measured, or nothing but UNSEEN controls is requested.
    """

    def __init__(self, face: Face, asked: Mapping[str, float]):
        self.face = face
        self.asked = dict(asked)
        self._judged = {name: value for name, value in asked.items() if whole_name(name) not in UNSEEN}
        start = levels_of(face)
        if asked and not self._judged:
            raise MagicEditError(
                f"the closed loop cannot correct {', '.join(asked)}, because no measurement sees it well; "
                "leave the tolerance out"
            )
        if missing := [name for name in self._judged if name not in start]:
            raise MagicEditError(
                f"the closed loop needs {', '.join(missing)} measured, and the face backend does not; "
                "leave the tolerance out, or use the backend mediapipe"
            )
        self.edits = 0
        self.request = dict(asked)  # the next request to the model
        self.best = dict.fromkeys(asked, 0.0)  # the request with the smallest error
        self.best_edit = 0  # its number, from 1; 0 (the photograph) until an edit shows the face
        self.error = math.inf if any(asked.values()) else 0.0  # the largest of all units, intensity steps
        judged = self._judged
        self._goal = {name: _goal(name, start[name] + delta) for name, delta in judged.items()}  # steps
        self._points = {name: [(0.0, start[name] / _step(name))] for name in judged}  # (requested, measured)
        self._stuck = False

    def is_done(self, tolerance: float) -> bool:
        """Whether the goal is reached within `tolerance`, or no request is left to try."""
        return self.error <= tolerance or self._stuck

    def note(self, after: Face | None) -> None:
        """Records the result of the last request; None: the face was not found in it."""
        self.edits += 1
        if after is None:
            following = {name: value / 2 for name, value in self.request.items()}
        else:
            reached = achieved(self.face, after, self._judged)
            error = self._missed_by(reached)
            if error < self.error:
                self.error, self.best, self.best_edit = error, self.request, self.edits
            for name, value in reached.items():
                self._points[name].append((self.request[name] / _step(name), value / _step(name)))
            following = self.asked | {
                name: self._following(name) if self._distance(name, value) else self.request[name]
                for name, value in reached.items()
            }
        moves = (abs(following[name] - self.request[name]) for name in following)
        self._stuck = max(moves, default=0.0) < SMALLEST_MOVE
        self.request = following

    def settle(self, after: Face | None, edited: bool) -> None:
        """Records the error of the final picture where that differs from the best edit's picture.

        edited: whether the final picture took one more edit.
        """
        self.edits += edited
        self.error = math.inf if after is None else self._missed_by(achieved(self.face, after, self._judged))

    @property
    def is_lost(self) -> bool:
        """Whether no edit shows the face, so that it stays unedited."""
        return self.edits > 0 and self.best_edit == 0

    def shortfall(self, tolerance: float) -> list[str]:
        """Returns a warning where the goal is missed by more than `tolerance`, in intensity steps."""
        if self.is_lost:
            return [f"the face was not found again in any of {self.edits} edits, so it was left as it is"]
        if tolerance < self.error < math.inf:
            return [
                f"after {self.edits} edits the request was missed by {self.error:.2f} intensity steps, "
                f"more than the tolerance of {tolerance:g}"
            ]
        return []

    def _missed_by(self, reached: Mapping[str, float]) -> float:
        return max(self._distance(name, value) for name, value in reached.items())

    def _distance(self, name: str, value: float) -> float:
        """Returns the steps from a measured value to a unit's goal; 0 for noise of an unrequested unit."""
        distance = abs(self._goal[name] - value / _step(name))
        return 0.0 if not self.asked[name] and distance < DEAD_ZONE else distance

    def _following(self, name: str) -> float:
        return _step(name) * self._following_steps(name)

    def _following_steps(self, name: str) -> float:
        goal, points = self._goal[name], self._points[name]
        furthest = max(FURTHEST, abs(self.asked[name]) / _step(name))
        short = [point for point in points if point[1] <= goal]
        beyond = [point for point in points if point[1] > goal]
        if not short or not beyond:
            (x0, y0), (x1, y1) = points[-2:]
            slope = (y1 - y0) / (x1 - x0) if abs(x1 - x0) >= SMALLEST_MOVE else 1.0
            step = (goal - y1) / max(slope, FLATTEST)
            return min(max(x1 + min(max(step, -STRIDE), STRIDE), -furthest), furthest)
        low = max(short, key=lambda point: (point[1], point[0]))
        high = min(beyond, key=lambda point: (point[1], -point[0]))
        lowest, highest = _limits(name)
        if low[1] <= lowest < goal or high[1] >= highest:
            return (low[0] + high[0]) / 2
        # The points around the two, as long as larger requests measure more
        curve = [low, high] if low[0] < high[0] else []
        for x, y in sorted(points, key=lambda point: abs(point[0] - (low[0] + high[0]) / 2)):
            if curve and x < curve[0][0] and y < curve[0][1]:
                curve.insert(0, (x, y))
            elif curve and x > curve[-1][0] and y > curve[-1][1]:
                curve.append((x, y))
        if not curve:  # noisy measurement: a larger request measured less
            return low[0] + (goal - low[1]) * (high[0] - low[0]) / (high[1] - low[1])
        requests, measured = np.transpose(curve)
        following = _monotone_cubic(measured, requests, goal)
        if min(abs(following - low[0]), abs(following - high[0])) < SMALLEST_MOVE:  # tried already
            return (low[0] + high[0]) / 2
        return following


def _monotone_cubic(x: np.ndarray, y: np.ndarray, place: float) -> float:
    """Returns the monotone cubic interpolant of increasing y at increasing x, (n,), at a place among x.

    F. Fritsch, J. Butland, "A method for constructing local monotone piecewise cubic interpolants", SIAM J.
    Sci. Stat. Comput. 1984. The same as SciPy's `PchipInterpolator`, which edits would need SciPy for.
    """
    widths, slopes = np.diff(x), np.diff(y) / np.diff(x)
    tangents = np.full(len(x), slopes[0])
    if len(x) > 2:
        # Inside, a weighted harmonic mean of the slopes; at the ends, the parabola's tangent, limited
        weights = 2 * widths[1:] + widths[:-1], widths[1:] + 2 * widths[:-1]
        tangents[1:-1] = 1 / ((weights[0] / slopes[:-1] + weights[1] / slopes[1:]) / sum(weights))
        for end, (near, far) in {0: (0, 1), -1: (-1, -2)}.items():
            (h0, h1), (m0, m1) = widths[[near, far]], slopes[[near, far]]
            tangents[end] = max(0.0, ((2 * h0 + h1) * m0 - h0 * m1) / (h0 + h1))
    k = min(np.searchsorted(x, place, side="right"), len(x) - 1) - 1
    curvature = (tangents[k] + tangents[k + 1] - 2 * slopes[k]) / widths[k]
    square, cube = (slopes[k] - tangents[k]) / widths[k] - curvature, curvature / widths[k]
    step = place - x[k]
    return float(y[k] + tangents[k] * step + square * (step * step) + cube * (step * step * step))


def pursue(
    edits: list[Edit],
    change: Callable[[list[Edit]], None],
    find_again: Callable[[np.ndarray, Face], Face | None],
    tolerance: float,
    max_edits: int,
) -> tuple[list[Edit], list[list[Pursuit]]]:
    """Runs the closed loop: edits, measures and corrects requests until all are within tolerance.

    Args:
        edits: the requested edits, not yet carried out.
        change: carries out edits. find_again: finds the same face in other pixels; None if it is not found.

    Returns:
        the best edits, and for each the closed-loop states of its faces.
    """
    pursuits = [
        [Pursuit(face, asked) for face, asked in zip(edit.faces, edit.requests, strict=True)]
        for edit in edits
    ]
    # Edits that are best for some face, by number; 0 is the photograph
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

    # Faces may have their best results in different edits; then a final edit combines their best requests
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
