"""Signals end a run with a checkpoint of the step reached; resumed, it ends as the uninterrupted run."""

import functools
import signal
from pathlib import Path

from attacks import Attack
from attacks.trained import LATEST, SECONDS, STEPS, differs, run

TITLE = "Signals: TERM, INT, HUP, USR1"


def attacks(seed: int, short: bool) -> list[Attack]:
    names = ("TERM", "INT") if short else ("TERM", "INT", "HUP", "USR1")
    steps = (3,) if short else (1, 3)
    places = [(f"in step {step}", "train_log.jsonl", step, step) for step in steps]
    if not short:
        places += [("while checkpoint-2 is saved", "tmp-2", 1, 2)]
        places += [("while the result is written", ".unfinished", 3, STEPS)]
    return [
        Attack(f"{name} {where}", functools.partial(_check, name, *place), SECONDS)
        for name in names
        for where, *place in places
    ]


def _check(name: str, under: str, call: int, step: int, folder: Path) -> str | None:
    """The signal comes before a call that writes the file or folder `under`, in or after the step."""
    sent, output = getattr(signal, f"SIG{name}"), folder / "output"
    output.mkdir()
    ended = run(output, at=call, sent=sent, under=output / under)
    finished = step == STEPS
    expected = 130 if name == "INT" else 0
    if ended.code != expected:
        return f"it ended with {ended.code}, expected {expected}: {ended.output[-300:]}"
    if "Traceback" in ended.output:
        return f"it shows a traceback: {ended.output[-300:]}"
    newest = max(int(path.name.split("-")[1]) for path in output.glob("checkpoint-*"))
    if newest != step:
        return f"the newest checkpoint is of step {newest}, not {step}"
    if not finished:
        resumed = run(output, LATEST)
        if resumed.code:
            return f"the resumed run ended with {resumed.code}: {resumed.output[-300:]}"
    return differs(output)
