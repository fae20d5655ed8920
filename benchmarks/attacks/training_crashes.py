"""Training killed before each file-system call, then resumed: it ends as if uninterrupted, to the bit."""

import functools
import random
from pathlib import Path

from attacks import Attack
from attacks.small import scratch
from attacks.trained import LATEST, SECONDS, differs, run

TITLE = "Crash points of training, resumed"


def attacks(seed: int, short: bool) -> list[Attack]:
    calls = range(1, _calls() + 1)
    points = sorted(random.Random(seed).sample(calls, 2)) if short else list(calls)
    return [Attack(f"killed before call {k}", functools.partial(_check, k), SECONDS) for k in points]


@functools.cache
def _calls() -> int:
    ended = run(scratch() / "counted")
    assert ended.code == 0, ended.output
    return ended.calls


def _check(call: int, folder: Path) -> str | None:
    output = folder / "output"
    output.mkdir()
    killed = run(output, at=call)
    if killed.code != -9:
        return f"it was not killed but ended with {killed.code}: {killed.output[-300:]}"
    resumed = run(output, LATEST)
    if resumed.code:
        return f"the resumed run ended with {resumed.code}: {resumed.output[-300:]}"
    return differs(output)
