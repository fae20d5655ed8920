"""Control metrics of an editor: response to requests, cross-talk, sides."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

LEAST_MOVED = 0.1  # steps


class Response(NamedTuple):
    """Relation of measured to requested changes. pearson, spearman: -1 to 1, None where either does not vary.
    slope: measured steps per possible step, least squares through the origin, because an empty request
    changes nothing."""

    pearson: float | None
    spearman: float | None
    slope: float | None


def response(asked: Sequence[float], changed: Sequence[float]) -> Response:
    """Returns the response over edits of one AU: `asked`, clipped to the room on the scale, and measured
    `changed`, steps."""
    asked, changed = np.asarray(asked, np.float64), np.asarray(changed, np.float64)
    if len(asked) != len(changed):
        raise ValueError(f"{len(asked)} requests and {len(changed)} measurements")
    slope = float(asked @ changed / (asked @ asked)) if (asked @ asked) > 0 else None
    if len(asked) < 3 or np.ptp(asked) == 0 or np.ptp(changed) == 0:
        return Response(None, None, slope)
    return Response(
        float(stats.pearsonr(asked, changed).statistic),
        float(stats.spearmanr(asked, changed).statistic),
        slope,
    )


def crosstalk(edits: Iterable[tuple[str, float, Mapping[str, float]]], aus: Sequence[str]) -> np.ndarray:
    """Returns (asked, changed): mean change of each AU, in steps per requested step; NaN without requests.

    edits: of one AU each: its name, the requested steps (not 0), measured changes by AU.
    """
    aus = list(aus)
    sums, counts = np.zeros((len(aus), len(aus))), np.zeros((len(aus), len(aus)))
    for name, asked, changed in edits:
        for column, other in enumerate(aus):
            if name in aus and other in changed:
                sums[aus.index(name), column] += changed[other] / asked
                counts[aus.index(name), column] += 1
    with np.errstate(invalid="ignore", divide="ignore"):
        return sums / counts


def side_leak(same: Sequence[float], other: Sequence[float]) -> float | None:
    """Returns the mean change of the unrequested side over that of the requested one: 0 none, 1 equal.

    None where the asked side moved by less than `LEAST_MOVED`.
    """
    moved = float(np.mean(same))
    return float(np.mean(other)) / moved if abs(moved) >= LEAST_MOVED else None
