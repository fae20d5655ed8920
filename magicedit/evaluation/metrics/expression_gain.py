"""Expression gain: how much closer an edit brings the face to the requested expression."""

import math
from collections.abc import Iterable, Mapping

from magicedit.evaluation.metrics.au_error import LEAST_ROOM


def expression_gain(
    target: Mapping[str, float], changed: Mapping[str, float], names: Iterable[str]
) -> float | None:
    """1 - |changed - target| / |target| over the action units `names`, Euclidean.

    1: exactly the requested expression. 0: no closer than the unedited photograph. Below 0: farther. Twice
    the requested change also gains 0, and changes of other units lower the gain, so that neither inaction nor
    overshoot scores well. None where the target is less than `LEAST_ROOM` away, which is too little to judge.

    FED-Bench (Xue et al. 2026, arXiv:2603.29697) argues for a *relative expression gain* instead of metrics
    that favour inaction or overshoot. Its formula needs ground-truth pictures and is not used here: this is
    the distance of measured to requested action units, relative to the distance that an editor without effect
    leaves.

    Args:
        target: AU name -> possible part of the requested change, steps; see `possible_change`. Or the
            measured change of a real photograph of the expression. A missing AU is 0.
        changed: AU name -> measured change, steps.
        names: AUs to include; unmeasured ones are left out.
    """
    measured = [name for name in names if name in changed]
    distance = math.hypot(*(target.get(name, 0.0) for name in measured))
    if distance < LEAST_ROOM:
        return None
    return 1 - math.hypot(*(changed[name] - target.get(name, 0.0) for name in measured)) / distance
