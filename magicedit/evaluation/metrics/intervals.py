"""Confidence intervals of means: the bootstrap over people."""

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats


class Estimate(NamedTuple):
    """A mean over edits, and the 95 % interval in which it would lie for other people like these; None for a
    single person."""

    mean: float
    low: float | None
    high: float | None
    n: int


def bootstrap(
    values: Sequence[float], people: Sequence[Hashable], *, seed: int = 0, draws: int = 4000
) -> Estimate:
    """Returns the mean of `values`, one per edit, and its interval from resampling `people`, one per value.

    Edits of one person are not independent, so people are resampled and not edits. Percentiles alone are
    too narrow for few people (90 % instead of 95 for ten); they are expanded as Hesterberg 2015 does (The
    American Statistician 69, 371-386), so that the interval of a mean is about Student's.
    """
    if len(values) != len(people) or not len(values):
        raise ValueError(f"need one person a value and at least one, got {len(values)} and {len(people)}")
    _, person = np.unique(np.array([str(p) for p in people]), return_inverse=True)
    sums = np.bincount(person, np.asarray(values, np.float64))
    counts = np.bincount(person)
    mean, size = float(sums.sum() / counts.sum()), len(sums)
    if size == 1:
        return Estimate(mean, None, None, len(values))
    drawn = np.random.default_rng(seed).integers(size, size=(draws, size))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    tail = stats.norm.cdf(-math.sqrt(size / (size - 1)) * stats.t.ppf(0.975, size - 1))
    low, high = np.quantile(means, [tail, 1 - tail])
    return Estimate(mean, float(low), float(high), len(values))
