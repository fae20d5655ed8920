"""The vocabulary of action units: names, order, ranges, emotions, and the one parser of edits.

An *intensity* (level) is how strongly a face shows an action unit: 0 (not at all) to 5 (FACS letter E).
A *delta* is target minus source in the same intensity steps: positive is more, 0 keeps what is there.
Vectors carry one value per action unit in the order of `NAMES`, or of another `names` that a model brings.

Nine of them act on both sides of the face and can be asked for on one: "AU12L" is the subject's left.

Names and numbers: Ekman, Friesen, Hager, "Facial Action Coding System", 2002.
"""

import difflib
import math
import re
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from magicedit.errors import ActionUnitError


def whole_name(name: str) -> str:
    """ "AU12L" -> "AU12"; a name without a side as it is."""
    return name.rstrip("LR")


def name_order(name: str) -> tuple[int, str]:
    """To sort canonical names: by the number, the whole unit first, then its left side."""
    return int(whole_name(name)[2:]), name


def by_number(values: Mapping[str, Any]) -> dict[str, Any]:
    """The mapping in `name_order` of its canonical names."""
    return {name: values[name] for name in sorted(values, key=name_order)}


@dataclass(frozen=True)
class ActionUnit:
    """One editable action unit: canonical name ("AU12"), its FACS name, and where it acts."""

    name: str
    description: str
    region: str  # brow, eye, nose, cheek, lip or jaw


# The 12 of the published MagicFace checkpoint, in the order of its embedding's inputs.
ACTION_UNITS = (
    ActionUnit("AU1", "inner brow raiser", "brow"),
    ActionUnit("AU2", "outer brow raiser", "brow"),
    ActionUnit("AU4", "brow lowerer", "brow"),
    ActionUnit("AU5", "upper lid raiser", "eye"),
    ActionUnit("AU6", "cheek raiser", "cheek"),
    ActionUnit("AU9", "nose wrinkler", "nose"),
    ActionUnit("AU12", "lip corner puller", "lip"),
    ActionUnit("AU15", "lip corner depressor", "lip"),
    ActionUnit("AU17", "chin raiser", "jaw"),
    ActionUnit("AU20", "lip stretcher", "lip"),
    ActionUnit("AU25", "lips part", "lip"),
    ActionUnit("AU26", "jaw drop", "jaw"),
)
NAMES = tuple(unit.name for unit in ACTION_UNITS)

_MEASURED_ONLY = {
    "AU7": "lid tightener",
    "AU10": "upper lip raiser",
    "AU16": "lower lip depressor",
    "AU18": "lip pucker",
    "AU22": "lip funneler",
    "AU45": "blink",
}
# Every action unit that is measured, by name, in the order of the numbers.
DESCRIPTIONS = by_number({unit.name: unit.description for unit in ACTION_UNITS} | _MEASURED_ONLY)

# Those whose two sides people move one by one.
BILATERAL = ("AU1", "AU2", "AU4", "AU5", "AU6", "AU9", "AU12", "AU15", "AU20")
SIDES = {"L": "the subject's left", "R": "the subject's right"}

INTENSITY_RANGE = (0.0, 5.0)
DELTA_RANGE = (-10.0, 10.0)
# Intensity steps: a level to arrive at that is nearer than this to the measured one asks for nothing. On 20
# neutral photographs of the London set, JPEG at quality 60 and 90, shifts of 1 and 2 px, scales of 0.97 and
# 0.5, noise and darker light change the twelve measured units by at most 0.24 in 99 % of cases and by 0.45 in
# all; on 20 synthetic portraits by 0.49 in 99 %.
DEAD_ZONE = 0.5

# EMFACS prototypes, limited to the 12 action units above: intensity steps at strength 1. Equal steps would
# open mouths too far, and let AU1 and AU2 undo AU4. Happiness: as a smile were read, of 52 faces each, 63 % at
# AU12 4.2, 69 % at 6 and 83 % at 7.5, with equal ratings otherwise; faces at rest often frown a little.
EMOTIONS: dict[str, dict[str, float]] = {
    "happiness": {"AU4": -2.0, "AU6": 3.0, "AU12": 7.5, "AU25": 2.0},
    "sadness": {"AU1": 4.0, "AU4": 2.0, "AU15": 3.5, "AU17": 2.0},
    "surprise": {"AU1": 3.5, "AU2": 3.5, "AU5": 3.0, "AU25": 1.0, "AU26": 3.0},
    "fear": {"AU1": 4.0, "AU2": 2.5, "AU4": 3.0, "AU5": 4.0, "AU20": 3.5, "AU25": 1.0, "AU26": 0.6},
    "anger": {"AU4": 5.0, "AU5": 3.0, "AU9": 1.0, "AU15": 1.5, "AU17": 2.0},
    "disgust": {"AU4": 2.0, "AU6": 1.0, "AU9": 4.5, "AU15": 2.0, "AU17": 2.5},
}
STRENGTH_RANGE = (0.0, 1.25)

_NAME = re.compile(r"\s*AU[\s_]*0*([1-9][0-9]*)\s*([LR]?)\s*", re.IGNORECASE)
_NUMBER = re.compile(r"\s*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?\s*", re.IGNORECASE)


def described(name: str) -> str:
    """ "AU12" -> "AU12 (lip corner puller)"; a name that is not in `DESCRIPTIONS` as it is."""
    return f"{name} ({DESCRIPTIONS[name]})" if name in DESCRIPTIONS else name


def canonical_name(name: str, names: Iterable[str] | None = None) -> str:
    """The canonical spelling of an action unit: "au012", "AU 12" and "AU12" are "AU12", "au12l" is "AU12L".

    `names` are the ones allowed, and one side of those that are BILATERAL; by default all of `DESCRIPTIONS`.
    Raises ActionUnitError for any other, listing the known ones and suggesting the nearest.
    """
    names = tuple(DESCRIPTIONS if names is None else names)
    match = _NAME.fullmatch(name) if isinstance(name, str) else None
    canonical = f"AU{match[1]}" if match else None
    if canonical in names:
        side = match[2].upper()
        if not side or canonical in BILATERAL:
            return canonical + side
        raise ActionUnitError(f"{described(canonical)} has no sides; those that have: {', '.join(BILATERAL)}")
    problem = f"unknown action unit {reprlib.repr(name)}"
    if canonical in DESCRIPTIONS:
        problem = f"{described(canonical)} is measured but cannot be edited here"
    nearest = _nearest_name(name, canonical, names)
    hint = f"; did you mean {described(nearest)}?" if nearest else "."
    raise ActionUnitError(f"{problem}{hint} Known: {', '.join(names)}")


def _nearest_name(name: object, canonical: str | None, names: Sequence[str]) -> str | None:
    """The name that was probably meant: by number where one was given, else by spelling or FACS name."""
    numbered = [known for known in names if _NAME.fullmatch(known)]
    if canonical is not None and numbered:
        return min(numbered, key=lambda known: abs(int(known[2:]) - int(canonical[2:])))
    spellings = {known.lower(): known for known in names}
    spellings |= {DESCRIPTIONS[known]: known for known in names if known in DESCRIPTIONS}
    close = difflib.get_close_matches(str(name).strip().lower(), spellings, n=1, cutoff=0.5)
    return spellings[close[0]] if close else None


def sided_names(name: str) -> tuple[str, ...]:
    """ "AU12" -> ("AU12L", "AU12R"); nothing for what has no sides."""
    return tuple(name + side for side in SIDES) if name in BILATERAL else ()


def with_sides(names: Iterable[str]) -> tuple[str, ...]:
    """The names, each followed by those of its two sides."""
    return tuple(sided for name in names for sided in (name, *sided_names(name)))


def split_sides(values: Mapping[str, float]) -> tuple[dict[str, float], dict[str, float]]:
    """What each side of the face is asked for, the subject's left first: by names without a side.

    "AU12" counts on both, "AU12L" on the left; what is given as both adds up.
    """
    sides: tuple[dict[str, float], dict[str, float]] = ({}, {})
    for name, value in values.items():
        base = whole_name(name)
        for side, asked in zip(SIDES, sides, strict=True):
            if name in (base, base + side):
                asked[base] = asked.get(base, 0.0) + value
    return sides


def parse_deltas(
    spec: str | Mapping[str, float] | Sequence[float] | np.ndarray, names: Sequence[str] = NAMES
) -> dict[str, float]:
    """Deltas in intensity steps, -10 to 10, by canonical name, in the order they were given.

    `spec` is "AU12=+3,AU4=-1", a mapping of names to numbers, or a vector with one value per entry of
    `names` (which gives a dict of all of them, zeros included). Fractions are fine.
    Raises ActionUnitError for what is unknown, malformed, repeated, not finite or out of range.
    """
    return _parse(spec, names, DELTA_RANGE, "a delta")


def parse_levels(
    spec: str | Mapping[str, float] | Sequence[float] | np.ndarray, names: Sequence[str] = NAMES
) -> dict[str, float]:
    """Intensities, 0 to 5, by canonical name; forms and errors as in `parse_deltas`."""
    return _parse(spec, names, INTENSITY_RANGE, "an intensity")


def _parse(spec: object, names: Sequence[str], limits: tuple[float, float], what: str) -> dict[str, float]:
    values: dict[str, float] = {}
    for name, value in _pairs(spec, names):
        name = canonical_name(name, names)
        if name in values:
            raise ActionUnitError(f"{name} is given twice; give each action unit once")
        base = whole_name(name)
        if base in values or (name == base and not values.keys().isdisjoint(sided_names(base))):
            raise ActionUnitError(f"{base} is given for both sides and for one; give {base}L and {base}R")
        values[name] = _number(value, name, limits, what)
    return values


def _pairs(spec: object, names: Sequence[str]) -> list[tuple[str, object]]:
    """(name, value) as written, whichever form `spec` has."""
    if isinstance(spec, Mapping):
        return list(spec.items())
    if isinstance(spec, str):
        pairs = [part.split("=") for part in spec.split(",")]
        for part in pairs:
            if len(part) != 2 or not part[0].strip() or not part[1].strip():
                raise ActionUnitError(
                    "expected NAME=NUMBER, separated by commas, such as AU12=+3,AU4=-1; "
                    f"got {'='.join(part)!r} in {spec!r}"
                )
        return [(name, value) for name, value in pairs]
    if spec is None or not isinstance(spec, Iterable):
        raise ActionUnitError(
            f'expected "AU12=+3,AU4=-1", a mapping or a vector of {len(names)} numbers, got {spec!r}'
        )
    values = list(spec)
    if len(values) != len(names):
        raise ActionUnitError(
            f"a vector of action units needs {len(names)} values, in the order {', '.join(names)};"
            f" got {len(values)}"
        )
    return list(zip(names, values, strict=True))


def _number(value: object, name: str, limits: tuple[float, float], what: str) -> float:
    """`value` as a float within `limits`; `name` says whose it is, `what` what it is, in the message."""
    wanted = f"expected {what} between {limits[0]:g} and {limits[1]:g} for {name}"
    # float() alone would also take True, "1_0" and digits of other scripts
    if isinstance(value, bool | np.bool_) or (isinstance(value, str) and not _NUMBER.fullmatch(value)):
        raise ActionUnitError(f"{wanted}, got {reprlib.repr(value)}")
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise ActionUnitError(f"{wanted}, got {reprlib.repr(value)}") from error
    if not math.isfinite(number) or not limits[0] <= number <= limits[1]:
        raise ActionUnitError(f"{wanted}, got {number:g}")
    return number


def parse_emotion(spec: str | tuple[str, float]) -> tuple[str, float]:
    """An emotion and its strength from "happiness", "happiness:0.8" or ("happiness", 0.8).

    Strength 1, the default, asks for the steps of `EMOTIONS`; 0 to 1.25 times these are allowed.
    Raises ActionUnitError otherwise.
    """
    if isinstance(spec, str):
        name, colon, strength = spec.partition(":")
        if not colon:
            strength = 1.0
    elif isinstance(spec, Sequence) and len(spec) == 2:
        name, strength = spec
    else:
        raise ActionUnitError(
            f'expected an emotion such as "happiness:0.8" or ("happiness", 0.8), got {spec!r}'
        )
    known = name.strip().lower() if isinstance(name, str) else ""
    if known not in EMOTIONS:
        close = difflib.get_close_matches(known, EMOTIONS, n=1, cutoff=0.4)
        hint = f"; did you mean {close[0]}?" if close else "."
        raise ActionUnitError(f"unknown emotion {name!r}{hint} Known: {', '.join(EMOTIONS)}")
    return known, _number(strength, known, STRENGTH_RANGE, "a strength")


def emotion_deltas(name: str, strength: float = 1.0) -> dict[str, float]:
    """Deltas in intensity steps of an emotion at a strength from 0 to 1.25; errors as `parse_emotion`."""
    name, strength = parse_emotion((name, strength))
    return {unit: steps * strength for unit, steps in EMOTIONS[name].items()}


def to_vector(values: Mapping[str, float], names: Sequence[str] = NAMES) -> np.ndarray:
    """float32 (aus,) in the order of `names`; what `values` does not name is 0.

    Raises ActionUnitError for a name that is not among `names`, or that is one side's: see `split_sides`.
    """
    if sided := [name for name in values if canonical_name(name, names) not in names]:
        raise ActionUnitError(f"a vector has no sides; split {', '.join(sided)} first")
    by_name = {canonical_name(name, names): value for name, value in values.items()}
    return np.array([by_name.get(name, 0.0) for name in names], dtype=np.float32)


def to_mapping(vector: Sequence[float] | np.ndarray, names: Sequence[str] = NAMES) -> dict[str, float]:
    """The inverse of `to_vector`: all of `names`, in their order, with the values of `vector` (aus,).

    Raises ActionUnitError where the lengths differ.
    """
    return {name: float(value) for name, value in _pairs(vector, names)}


def steps_to(level: float, measured: float, *, continuous: bool = False) -> float:
    """The variation from a measured intensity to `level`; 0 where they are nearer than DEAD_ZONE.

    continuous: for films: between one and two dead zones the variation grows from 0 to the whole distance, so
    that a measurement that trembles around the limit makes no request that leaps.
    """
    distance = float(level) - float(measured)
    if abs(distance) < DEAD_ZONE:
        return 0.0
    if continuous:
        return math.copysign(min(abs(distance), 2 * (abs(distance) - DEAD_ZONE)), distance)
    return distance


def resolve_delta(
    current: Mapping[str, float] | None,
    add: str | Mapping[str, float] | Sequence[float] | np.ndarray | None = None,
    set: str | Mapping[str, float] | Sequence[float] | np.ndarray | None = None,
    emotion: str | tuple[str, float] | None = None,
    names: Sequence[str] = NAMES,
    *,
    continuous: bool = False,
) -> dict[str, float]:
    """What an edit asks for, as one delta per named action unit, in intensity steps, ordered as `names`.

    `add` (deltas, -10 to 10) and `emotion` add up; where the two sides come to differ, they are named one by
    one. `set` (intensities, 0 to 5) asks for target minus `current`, the measured intensities, which it
    needs; for nothing within the DEAD_ZONE. `names` is the vocabulary of the model. `continuous`: as of
    `steps_to`.
    Raises ActionUnitError where an action unit is both set and added to, where `current` lacks one that is
    set, where a sum leaves -10 to 10, and for anything that the parsers refuse.
    """
    deltas = {} if add is None else parse_deltas(add, names)
    levels = {} if set is None else parse_levels(set, names)
    return resolved(current, deltas, levels, emotion, names, continuous=continuous)


def resolved(
    current: Mapping[str, float] | None,
    deltas: Mapping[str, float],
    levels: Mapping[str, float],
    emotion: str | tuple[str, float] | None,
    names: Sequence[str],
    *,
    continuous: bool = False,
) -> dict[str, float]:
    """`resolve_delta` of what is parsed already: `deltas` and `levels` by canonical names among `names`."""
    deltas = dict(deltas)
    if emotion is not None:
        emotion_name, strength = parse_emotion(emotion)
        for name, value in emotion_deltas(emotion_name, strength).items():
            if name not in names:
                raise ActionUnitError(
                    f"{emotion_name} needs {name}, which this model cannot edit; it knows {', '.join(names)}"
                )
            deltas[name] = deltas.get(name, 0.0) + value

    both = [n for n in levels if not deltas.keys().isdisjoint((n, whole_name(n), *sided_names(n)))]
    if both:
        raise ActionUnitError(
            f"{', '.join(both)}: both set to an intensity and changed by a delta or an emotion; choose one"
        )
    for name, level in levels.items():
        if current is None or name not in current:
            raise ActionUnitError(
                f"setting {name} needs its measured intensity, which is not known here; give a delta instead"
            )
        deltas[name] = steps_to(level, current[name], continuous=continuous)
    return total_delta([deltas], names)


def total_delta(parts: Iterable[Mapping[str, float]], names: Sequence[str] = NAMES) -> dict[str, float]:
    """Deltas by name added up: whole units where the sides agree, else by side, ordered as `names`.

    Raises ActionUnitError where a sum leaves -10 to 10.
    """
    left: dict[str, float] = {}
    right: dict[str, float] = {}
    given: set[str] = set()
    for part in parts:
        for side, values in zip((left, right), split_sides(part), strict=True):
            for name, value in values.items():
                side[name] = side.get(name, 0.0) + value
        given |= part.keys()
    totals = {}
    for name in names:
        sided = sided_names(name)
        if name in given or (sided and all(side in given for side in sided)):
            both = left[name], right[name]
            totals |= {name: both[0]} if both[0] == both[1] else dict(zip(sided, both, strict=True))
        else:
            values = (left.get(name, 0.0), right.get(name, 0.0))
            totals |= {side: value for side, value in zip(sided, values, strict=False) if side in given}
    for name, value in totals.items():
        _number(value, name, DELTA_RANGE, "a total delta")
    return totals
