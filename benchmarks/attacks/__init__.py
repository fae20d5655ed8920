"""Attacks on magicedit: each module is a section of the campaign, see `benchmarks/campaign.py`.

A section has TITLE, its row's name in docs/reliability.md, and `attacks(seed, short)`, which returns its
attacks: the same ones for the same seed; short: a sample that takes seconds.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from magicedit.errors import MagicEditError

LONGEST_MESSAGE = 2000  # characters that an error may say to a person


@dataclass(frozen=True)
class Attack:
    """One attempt.

    name: unique in its section. check: gets an empty folder of its own; returns None where the property held,
    else one line about what happened; an exception counts as not held. seconds, megabytes: what it may take
    of wall time, and how much the peak of resident memory may grow meanwhile.
    """

    name: str
    check: Callable[[Path], str | None]
    seconds: float = 5
    megabytes: float = 1500


def typed(call: Callable[[], object]) -> str | None:
    """Runs a call; None where it returns, or raises a MagicEditError that a person can read."""
    try:
        call()
    except MagicEditError as error:
        message = str(error)
        if not message.strip() or len(message) > LONGEST_MESSAGE:
            return f"{type(error).__name__} says {len(message)} characters: {message[:200]!r}"
        if "Traceback (most recent call last)" in message:
            return f"{type(error).__name__} quotes a traceback"
    except BaseException as error:  # SystemExit and KeyboardInterrupt too are no answer to bad input
        return f"{type(error).__name__}: {str(error)[:200]}"
    return None
