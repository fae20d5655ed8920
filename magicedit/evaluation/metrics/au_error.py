"""Error of the measured action units relative to the request."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from magicedit.vocabulary import INTENSITY_RANGE

LEAST_ROOM = 0.5  # steps: the scorers' own scatter


class AUError(NamedTuple):
    """mse: mean squared error, steps^2; mae: mean absolute error, steps; asked_mse: mse of only the requested
    AUs, None if there are none. 0 is exact."""

    mse: float
    mae: float
    asked_mse: float | None


def possible_change(asked: Mapping[str, float], before: Mapping[str, float]) -> dict[str, float]:
    """Returns the requested variations in steps, clipped so that `before` plus variation stays in 0..5."""
    low, high = INTENSITY_RANGE
    return {au: float(np.clip(before.get(au, 0.0) + delta, low, high)) - before.get(au, 0.0)
            for au, delta in asked.items()}  # fmt: skip


def au_error(
    asked: Mapping[str, float],
    changed: Mapping[str, float],
    before: Mapping[str, float],
    aus: tuple[str, ...],
) -> AUError:
    """Returns errors of measured changes over the AUs `aus`, 0-5 scale; unrequested AUs should not change.

    The published tables give the mean squared error of estimated intensities (Wei et al. 2025,
    arXiv:2501.02260, section IV); the error of an intensity is that of its change, as both start at `before`.

    Args:
        asked: AU name -> variation in steps.
        changed: AU name -> measured variation in steps.
        before: AU name -> intensity 0..5 before the edit; an AU missing here is taken to start at 0.
    """
    target = possible_change({au: asked.get(au, 0.0) for au in aus}, before)
    errors = {au: changed[au] - target[au] for au in aus if au in changed}
    if not errors:
        raise ValueError(f"none of {aus} was measured")
    squares = {au: error**2 for au, error in errors.items()}
    of_asked = [squares[au] for au in asked if au in squares and asked[au]]
    return AUError(
        mse=float(np.mean(list(squares.values()))),
        mae=float(np.mean([abs(error) for error in errors.values()])),
        asked_mse=float(np.mean(of_asked)) if of_asked else None,
    )


def achieved_share(
    asked: Mapping[str, float], changed: Mapping[str, float], before: Mapping[str, float]
) -> float | None:
    """Returns the measured share of the requested change: 1 all, 0 none, below 0 in the wrong direction.

    The projection of the measured change of the asked AUs onto what was possible; None where less than
    `LEAST_ROOM` was, which is too little to judge.
    """
    possible = {au: value for au, value in possible_change(asked, before).items() if au in changed}
    length = sum(value**2 for value in possible.values())
    if length < LEAST_ROOM**2:
        return None
    return sum(changed[au] * value for au, value in possible.items()) / length
