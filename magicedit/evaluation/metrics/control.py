"""Whether an editor does what it is told: responses, cross-talk, sides."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

LEAST_MOVED = 0.1  # steps


class Response(NamedTuple):
    """How measured changes follow what was asked. pearson, spearman: -1 to 1, None where either does not
    vary. slope: steps measured a step that was possible, least squares through the origin, as nothing asked
    is nothing done."""

    pearson: float | None
    spearman: float | None
    slope: float | None


def response(asked: Sequence[float], changed: Sequence[float]) -> Response:
    """Over edits of one AU: what was `asked`, cut to what the scale had room for, and what measurably
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
    """(asked, changed): mean change of each AU, in steps a step asked of another; NaN where none was asked.

    Args:
        edits: of one AU each: its name, what was asked of it (steps, not 0), measured changes by AU.
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
    """Mean change of the side that was not asked over that of the one that was: 0 none, 1 as much.

    None where the asked side moved by less than `LEAST_MOVED`.
    """
    moved = float(np.mean(same))
    return float(np.mean(other)) / moved if abs(moved) >= LEAST_MOVED else None
