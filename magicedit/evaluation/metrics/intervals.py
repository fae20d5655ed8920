"""How sure a mean is: the percentile bootstrap over people."""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np


class Estimate(NamedTuple):
    """A mean over edits, and the 95 % interval in which it would lie for other people like these."""

    mean: float
    low: float
    high: float
    n: int


def bootstrap(
    values: Sequence[float], people: Sequence[Hashable], *, seed: int = 0, draws: int = 1000
) -> Estimate:
    """Mean of `values`, one an edit, and its interval when `people`, the person of each, are drawn anew.

    Edits of one person are not independent, so people are resampled and not edits (Efron & Tibshirani 1993,
    chapter 8). Of a single person there is no interval: low and high are the mean.
    """
    if len(values) != len(people) or not len(values):
        raise ValueError(f"need one person a value and at least one, got {len(values)} and {len(people)}")
    _, person = np.unique(np.array([str(p) for p in people]), return_inverse=True)
    sums = np.bincount(person, np.asarray(values, np.float64))
    counts = np.bincount(person)
    mean = float(sums.sum() / counts.sum())
    if len(sums) == 1:
        return Estimate(mean, mean, mean, len(values))
    drawn = np.random.default_rng(seed).integers(len(sums), size=(draws, len(sums)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Estimate(mean, float(low), float(high), len(values))
