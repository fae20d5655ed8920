"""Comparing running times in one process: interleaved, paired, with an interval and a control.

Each pass runs every arm once, and one of them a second time as the control; passes go through the arms
forwards and backwards in turn (A B A', A' B A: the palindrome of ABBA), so that a drift of the machine falls
on all alike. A ratio is formed within a pass. Where the control, the same code against itself, does not come
out at 1, nothing that was measured beside it is worth keeping.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

CONTROL = "control"
CONTROL_TOLERANCE = 0.03  # of the control's median ratio to 1
FEWEST_PASSES = 15
RESAMPLES = 10_000

Arm = Callable[[], float]  # does its work and returns the seconds that it took


class DiscardedRun(Exception):
    """The control says that this machine was not quiet enough; nothing is to be written."""


def synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


# Wall time, or the CPU time of this process: of one thread's arithmetic the same, and blind to what else runs
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def timed(call: Callable[[], object], device: str = "cpu", parts: int = 1, clock: str = "wall") -> Arm:
    """An arm that takes the time of `call` by one of `CLOCKS`, divided by the `parts` that it does."""

    def arm() -> float:
        synchronise(device)
        started = CLOCKS[clock]()
        call()
        synchronise(device)
        return (CLOCKS[clock]() - started) / parts

    return arm


def interleave(
    arms: Mapping[str, Arm],
    passes: int,
    *,
    repeated: str | None = None,
    warmup: int = 1,
    fewest: int | None = None,
    note: Callable[[str], None] | None = None,
) -> dict[str, list[float]]:
    """Seconds by arm, one a pass, with one arm's second run as `CONTROL`.

    Args:
        passes: rounded up to an even number, at least `fewest`, by default `FEWEST_PASSES`.
        repeated: the arm that serves as its own control, by default the first. A shorter one is the stricter
            control, as its time scatters more.
        warmup: runs of each arm before that, not counted.
        note: is told of each pass.
    """
    fewest = FEWEST_PASSES if fewest is None else fewest
    if passes < fewest:
        raise ValueError(f"a comparison needs {fewest} passes or more, got {passes}")
    passes += passes % 2
    repeated = repeated or next(iter(arms))
    # Both runs of the same arm at the ends: either follows itself as often as it follows another
    everything = {repeated: arms[repeated], **arms, CONTROL: arms[repeated]}
    for arm in list(arms.values()) * warmup:
        arm()
    seconds: dict[str, list[float]] = {name: [] for name in everything}
    for number in range(passes):
        for name in list(everything) if number % 2 == 0 else reversed(everything):
            seconds[name].append(everything[name]())
        if note is not None:
            last = ", ".join(f"{name} {values[-1]:.4g} s" for name, values in seconds.items())
            note(f"pass {number + 1} of {passes}: {last}")
    return seconds


def median_interval(values: Sequence[float], level: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap interval of the median (Efron 1979)."""
    values = np.asarray(values)
    drawn = np.random.default_rng(seed).integers(0, len(values), (RESAMPLES, len(values)))
    low, high = np.quantile(np.median(values[drawn], axis=1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def summary_of_ratios(ratios: Sequence[float]) -> dict[str, object]:
    low, high = median_interval(ratios)
    return {
        "median": round(statistics.median(ratios), 4),
        "low": round(low, 4),
        "high": round(high, 4),
        "all": [round(ratio, 4) for ratio in ratios],
    }


def check_control(ratios: Sequence[float]) -> None:
    """Raises DiscardedRun unless the baseline against itself came out at 1."""
    median = statistics.median(ratios)
    if not abs(median - 1) <= CONTROL_TOLERANCE:
        raise DiscardedRun(
            f"the control, the same code against itself, must come out at 1.00 +- {CONTROL_TOLERANCE}, got "
            f"{median:.3f}: something else used this machine. Nothing is written; measure again when it is "
            "quiet."
        )


def compare(
    seconds: Mapping[str, Sequence[float]], baseline: str, repeated: str | None = None
) -> dict[str, object]:
    """Ratios "baseline over arm" of what `interleave` returned: above 1, the arm is faster.

    Raises:
        DiscardedRun: where the control does not come out at 1.
    """
    repeated = repeated or baseline

    def ratios(one: str, other: str) -> list[float]:
        return [a / b for a, b in zip(seconds[one], seconds[other], strict=True)]

    check_control(ratios(repeated, CONTROL))
    return {
        "baseline": baseline,
        "pairs": len(seconds[baseline]),
        "ratios": {
            name: summary_of_ratios(ratios(baseline, name))
            for name in seconds
            if name not in (baseline, CONTROL)
        },
        "control": {"of": repeated, **summary_of_ratios(ratios(repeated, CONTROL))},
        "seconds": {
            name: {
                "median": float(f"{statistics.median(values):.5g}"),
                "all": [float(f"{value:.5g}") for value in values],
            }
            for name, values in seconds.items()
        },
    }
