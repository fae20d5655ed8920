"""How much nearer an edit brings the face to the expression that was asked for."""

import math
from collections.abc import Iterable, Mapping

from magicedit.evaluation.metrics.au_error import LEAST_ROOM


def expression_gain(
    target: Mapping[str, float], changed: Mapping[str, float], names: Iterable[str]
) -> float | None:
    """1 - |changed - target| / |target| over the action units `names`, Euclidean.

    1: the expression that was asked for, and nothing else. 0: no nearer than the untouched photograph. Below
    0: farther. Twice what was asked gains nothing either, and neither does a change of other units, so that
    doing nothing and overdoing are no way to a good figure. None where the target is less than `LEAST_ROOM`
    away, of which nothing can be told.

    FED-Bench (Xue et al. 2026, arXiv:2603.29697) argues for a *relative expression gain* against metrics that
    favour editors that do nothing, and those that overdo. This is not its formula, which takes ground-truth
    pictures: it is the distance of measured action units to those asked for, relative to the distance that
    the editor that does nothing leaves.

    Args:
        target: AU name -> change that was possible of what was asked, steps; see `possible_change`. Or the
            measured change of a real photograph of the expression. A missing AU is 0.
        changed: AU name -> measured change, steps.
        names: AUs to look at; those that were not measured are left out.
    """
    measured = [name for name in names if name in changed]
    distance = math.hypot(*(target.get(name, 0.0) for name in measured))
    if distance < LEAST_ROOM:
        return None
    return 1 - math.hypot(*(changed[name] - target.get(name, 0.0) for name in measured)) / distance
