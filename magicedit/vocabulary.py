"""A model's controls in order, and the only parser of requests in their names.

A control's name never ends in L or R: "AU12L" is the subject's left side of "AU12". A *delta* is target minus
source in intensity steps, a *level* a target intensity. `magicedit.action_units` lists the known FACS units
and the published model's twelve.
"""

import difflib
import math
import re
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from magicedit.errors import ActionUnitError

SIDES = {"L": "the subject's left", "R": "the subject's right"}
INTENSITY_RANGE = (0.0, 5.0)
DELTA_RANGE = (-10.0, 10.0)
DEGREES = ("gaze", "head")  # kinds of controls whose values are angles
ANGLE_RANGE = (-90.0, 90.0)

# At most six digits, which are a number soon; none of the parts can match what another one could
_NUMBERED = re.compile(r"\s*([a-z]+)[\s_]*0*([1-9][0-9]{0,5})\s*([lr]?)\s*", re.IGNORECASE | re.ASCII)
_NUMBER = re.compile(r"\s*[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)(e[+-]?[0-9]+)?\s*", re.IGNORECASE | re.ASCII)

Spec = str | Mapping[str, Any] | Sequence[float] | np.ndarray


@dataclass(frozen=True)
class Control:
    """One control of a model.

    Attributes:
        name: canonical, such as "AU12".
        description: for people, such as "lip corner puller".
        region: where it acts: brow, eye, nose, cheek, lip or jaw.
        has_sides: whether the two sides of the face can be requested separately.
        range: the smallest and the largest delta allowed, in intensity steps; of gaze and head in degrees.
        kind: such as "action unit", "gaze", "head", "emotion" or "attribute".
    """

    name: str
    description: str = ""
    region: str = ""
    has_sides: bool = False
    range: tuple[float, float] = DELTA_RANGE
    kind: str = "action unit"

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[^\s,=]([^,=]*[^\s,=])?", self.name) or self.name[-1] in SIDES:
            raise ValueError(
                "a control's name must have no comma or =, no blank at an end, and must not end in L or R, "
                f"which name sides; got {quoted(self.name)}"
            )
        for end in self.range:
            limits = ANGLE_RANGE if self.is_angle else DELTA_RANGE
            number_within(end, self.name, limits, "an end of its range")
        if len(self.range) != 2 or self.range[0] >= self.range[1]:
            raise ValueError(f"the range of {self.name} must be two deltas in order, got {self.range}")

    def __str__(self) -> str:
        return f"{self.name} ({self.description})" if self.description else self.name

    @property
    def is_angle(self) -> bool:
        """Whether its values are degrees, not intensity steps."""
        return self.kind in DEGREES

    @property
    def levels(self) -> tuple[float, float]:
        """The smallest and the largest target that can be set: intensities 0 to 5, or degrees."""
        return self.range if self.is_angle else INTENSITY_RANGE

    @classmethod
    def from_json(cls, entry: object) -> "Control":
        """Reads what `to_json` wrote. ValueError for anything else."""
        types = dict.fromkeys(("name", "description", "region", "kind"), str)
        types |= {"has_sides": bool, "range": list}
        values = dict(entry) if isinstance(entry, Mapping) else {}
        if "name" not in values or not all(isinstance(v, types.get(k, ())) for k, v in values.items()):
            raise ValueError(f"a control must be an object of {', '.join(types)}, got {quoted(entry)}")
        return cls(**{key: tuple(value) if key == "range" else value for key, value in values.items()})

    def to_json(self) -> dict[str, Any]:
        """Returns the name and the fields that differ from the defaults."""
        values = {field.name: (getattr(self, field.name), field.default) for field in fields(self)}
        return {name: value for name, (value, default) in values.items() if value != default}


class Vocabulary(tuple[str, ...]):
    """A tuple of a model's control names, in the order of its condition vector, with each `Control`.

    Args:
        controls: in order, each name once.
        known: a larger vocabulary; error messages describe unknown names from it.
        numbers: how many of the controls a vector of numbers stands for, from the first; default: all.
        codes: other names of controls, and what their value 1 is worth there: "AU62" -> ("gaze_yaw", -6.0);
            default: those of `known`.
    """

    controls: tuple[Control, ...]
    known: "Vocabulary | None"
    numbers: int
    codes: Mapping[str, tuple[str, float]]

    def __new__(
        cls,
        controls: Iterable[Control],
        known: "Vocabulary | None" = None,
        numbers: int | None = None,
        codes: Mapping[str, tuple[str, float]] | None = None,
    ) -> "Vocabulary":
        controls = tuple(controls)
        vocabulary = super().__new__(cls, [control.name for control in controls])
        if len(set(vocabulary)) < len(vocabulary):
            raise ValueError(f"each control must be named once, got {', '.join(vocabulary)}")
        vocabulary.controls, vocabulary.known = controls, known
        vocabulary.numbers = len(controls) if numbers is None else numbers
        vocabulary.codes = codes if codes is not None else {} if known is None else known.codes
        return vocabulary

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:
        return Vocabulary, (self.controls, self.known, self.numbers, self.codes)

    def named(self, names: Iterable[str]) -> "Vocabulary":
        """Returns the vocabulary of these names; unknown ones become controls without a description."""
        by_name = dict(zip(self, self.controls, strict=True))
        return Vocabulary([by_name.get(name) or Control(name) for name in names], self)

    def described(self, controls: Iterable[Control]) -> "Vocabulary":
        """Returns this vocabulary with the controls of these names replaced; ValueError for other names."""
        by_name = {control.name: control for control in controls}
        if strangers := [name for name in by_name if name not in self]:
            raise ValueError(f"{', '.join(strangers)} is described, but the names are {', '.join(self)}")
        return Vocabulary([by_name.get(control.name, control) for control in self.controls], self.known)

    def to_index(self) -> dict[str, Any]:
        """Returns its `model_index.json` entries: all names, and in full each control absent from `known`."""
        plain = () if self.known is None else self.known.controls
        own = [control.to_json() for control in self.controls if control not in plain]
        return {"action_units": ",".join(self)} | ({"controls": own} if own else {})

    def __getitem__(self, key: Any) -> Any:
        """Returns the name at a position, or the `Control` of a name; KeyError if there is none."""
        if not isinstance(key, str):
            return super().__getitem__(key)
        if key not in self:
            raise KeyError(key)
        return self.controls[self.index(key)]

    def canonical(self, text: str) -> str:
        """The canonical spelling of a control: "au012", "AU 12" and "AU12" are "AU12", "au12l" is "AU12L".

        Raises ActionUnitError for unknown names; it lists the known ones and suggests the nearest.
        """
        whole, side = self._read(text)
        if whole in self:
            if not side or self[whole].has_sides:
                return whole + side
            sided = ", ".join(control.name for control in self._all if control.has_sides)
            raise ActionUnitError(f"{self[whole]} has no sides; those that have: {sided}")
        control, worth = self.codes.get(whole, ("", 0.0))
        if control in self and worth == 1:
            return self.canonical(control + side)
        if control in self:
            raise ActionUnitError(f"{whole}{side} cannot be named here; {control} can, in degrees")
        kind = "action unit" if any(control.kind == "action unit" for control in self.controls) else "control"
        problem = f"unknown {kind} {quoted(text)}"
        if self.known is not None and whole in self.known:
            problem = f"{self.known[whole]} is measured but cannot be edited here"
        elif whole in self.codes:
            problem = f"{whole} stands for {self.codes[whole][0]}, which cannot be edited here"
        nearest = self._nearest(text, whole)
        hint = f"; did you mean {self[nearest]}?" if nearest else "."
        raise ActionUnitError(f"{problem}{hint} Known: {', '.join(self)}")

    def read(self, text: str) -> tuple[str, float]:
        """Returns the control that a name or a code stands for, and what its value 1 is worth there.

        "au12l" -> ("AU12L", 1.0), "AU62" -> ("gaze_yaw", -6.0). Errors as `canonical`.
        """
        name = self.spelled(text)
        whole = whole_name(name)
        if whole in self:
            return name, 1.0
        control, worth = self.codes[whole]
        return control + name.removeprefix(whole), worth

    def spelled(self, text: str) -> str:
        """The canonical spelling of a control, as `canonical`, or of one of `codes`: "au 061" is "AU61"."""
        whole, side = self._read(text)
        control = self.codes[whole][0] if whole in self.codes else ""
        is_code = whole not in self and control in self and (not side or self[control].has_sides)
        return whole + side if is_code else self.canonical(text)

    @property
    def _all(self) -> tuple[Control, ...]:
        return self.controls if self.known is None else self.known.controls

    def _read(self, text: object) -> tuple[str, str]:
        """Returns the canonical name, if there is one, and the side of the given text."""
        if not isinstance(text, str):
            return "", ""
        match = _NUMBERED.fullmatch(text)
        numbered = (match[1].upper() + match[2], match[3].upper()) if match else ("", "")
        if numbered[0] in self:
            return numbered
        spelled = {(name + side).lower(): (name, side) for name in self for side in SIDES}
        spelled |= {name.lower(): (name, "") for name in self}
        return spelled.get(text.strip().lower(), numbered)

    def _nearest(self, text: object, whole: str) -> str | None:
        """Returns the nearest name: by number if one was given, else by spelling or description."""
        numbers = {name: match for name in self if (match := _NUMBERED.fullmatch(name))}
        written = _NUMBERED.fullmatch(whole)
        if written and written[1] in {match[1] for match in numbers.values()}:
            return min(numbers, key=lambda name: abs(int(numbers[name][2]) - int(written[2])))
        spellings = {name.lower(): name for name in self}
        spellings |= {control.description: control.name for control in self.controls if control.description}
        close = difflib.get_close_matches(str(text).strip().lower(), spellings, n=1, cutoff=0.6)
        return spellings[close[0]] if close else None

    def sided(self, name: str) -> tuple[str, ...]:
        """ "AU12" -> ("AU12L", "AU12R"); an empty tuple for a control without sides."""
        return tuple(name + side for side in SIDES) if name in self and self[name].has_sides else ()

    def with_sides(self) -> tuple[str, ...]:
        """Returns the names, each followed by the names of its two sides."""
        return tuple(sided for name in self for sided in (name, *self.sided(name)))

    def deltas(self, spec: Spec) -> dict[str, float]:
        """Returns deltas in intensity steps, in each control's range, by canonical name, in the given order.

        `spec` is "AU12=+3,AU4=-1" or "12=+3,4=-1", a mapping of names to numbers, or a vector with one value
        for each of the first `numbers` controls (which gives a dict of all of these, zeros included).
        Fractions are allowed. `codes` are converted: "AU62=2" is "gaze_yaw=-12"; two opposite ones add up.
        Raises ActionUnitError for unknown or repeated names and for malformed, infinite or out-of-range
        values.
        """
        return self._parsed(spec, "range", "a delta")

    def levels(self, spec: Spec) -> dict[str, float]:
        """Returns intensities, 0 to 5, by canonical name, and angles in degrees; forms and errors as in
        `deltas`."""
        return self._parsed(spec, "levels", "an intensity")

    def _parsed(self, spec: object, limits: str, what: str) -> dict[str, float]:
        values: dict[str, float] = {}
        directions: dict[str, list[float]] = {}  # of angles given by code, what their steps are worth
        for text, value in self._pairs(spec):
            name, worth = self.read(text)
            opposite = directions.get(name) == [-worth]
            if name in values and not opposite:
                raise ActionUnitError(f"{name} is given twice; give each action unit once")
            base = whole_name(name)
            if not opposite and (
                base in values or (name == base and not values.keys().isdisjoint(self.sided(base)))
            ):
                raise ActionUnitError(f"{base} is given for both sides and for one; give {base}L and {base}R")
            low, high = getattr(self[base], limits)
            if worth != 1:  # a code of one direction of an angle, in intensity steps
                steps = sorted((low / worth, high / worth))
                least = 0.0 if limits == "levels" else steps[0]
                number = number_within(value, str(text).strip(), (least, steps[1]), what)
                total = values.get(name, 0.0) + worth * number
                values[name] = number_within(total, name, (low, high), "an angle in degrees")
                directions.setdefault(name, []).append(worth)
                continue
            meant = "an angle in degrees" if self[base].is_angle else what
            values[name] = number_within(value, name, (low, high), meant)
        return values

    def _pairs(self, spec: object) -> list[tuple[str, object]]:
        """Returns (name, value) pairs as written, for every form of `spec`."""
        if isinstance(spec, Mapping):
            return list(spec.items())
        if isinstance(spec, str):
            pairs = []
            for part in spec.split(","):
                name, _, value = (word.strip() for word in part.partition("="))
                if not name or not value or "=" in value:
                    raise ActionUnitError(
                        "expected NAME=NUMBER, separated by commas, such as AU12=+3,AU4=-1; "
                        f"got {quoted(part)} in {quoted(spec)}"
                    )
                pairs.append((f"AU{name}" if name[0].isdecimal() else name, value))
            return pairs
        if spec is None or not isinstance(spec, Iterable):
            raise ActionUnitError(
                f'expected "AU12=+3,AU4=-1", a mapping or a vector of {self.numbers} numbers, '
                f"got {quoted(spec)}"
            )
        values, names = list(spec), self[: self.numbers]
        if len(values) != len(names):
            raise ActionUnitError(
                f"a vector of action units needs {len(names)} values, in the order {', '.join(names)};"
                f" got {len(values)}"
            )
        return list(zip(names, values, strict=True))

    def vector(self, values: Mapping[str, float]) -> np.ndarray:
        """Returns float32 (controls,) in order; controls absent from `values` are 0.

        Raises ActionUnitError for an unknown name or the name of one side, see `split_sides`.
        """
        by_name = {self.canonical(name): value for name, value in values.items()}
        if sided := [name for name in by_name if name not in self]:
            raise ActionUnitError(f"a vector has no sides; split {', '.join(sided)} first")
        return np.array([by_name.get(name, 0.0) for name in self], dtype=np.float32)

    def mapping(self, vector: Sequence[float] | np.ndarray) -> dict[str, float]:
        """The inverse of `vector`: all names in order, with the values of `vector` (controls,).

        Raises ActionUnitError where the lengths differ.
        """
        return {name: float(value) for name, value in self._pairs(vector)}

    def total(self, parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
        """Returns the sums of deltas by name: whole controls where the sides agree, else by side, in order.

        Raises ActionUnitError where a sum leaves its control's range.
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
        for name in self:
            sided = self.sided(name)
            if name in given or (sided and all(side in given for side in sided)):
                both = left[name], right[name]
                totals |= {name: both[0]} if both[0] == both[1] else dict(zip(sided, both, strict=True))
            else:
                values = (left.get(name, 0.0), right.get(name, 0.0))
                totals |= {side: value for side, value in zip(sided, values, strict=False) if side in given}
        for name, value in totals.items():
            number_within(value, name, self[whole_name(name)].range, "a total delta")
        return totals


def whole_name(name: str) -> str:
    """ "AU12L" -> "AU12"; a name without a side is unchanged."""
    return name.rstrip("LR")


def name_order(name: str) -> tuple[int, str]:
    """Sort key of canonical names: by number, the whole control before its left side; words come last."""
    match = _NUMBERED.fullmatch(name)
    return (int(match[2]), name) if match else (10**6, name)


def by_number(values: Mapping[str, Any]) -> dict[str, Any]:
    """The mapping in `name_order` of its canonical names."""
    return {name: values[name] for name in sorted(values, key=name_order)}


def split_sides(values: Mapping[str, float]) -> tuple[dict[str, float], dict[str, float]]:
    """Returns the request of each side of the face, the subject's left first, by names without a side.

    "AU12" counts for both sides, "AU12L" for the left; a name given both ways adds up.
    """
    sides: tuple[dict[str, float], dict[str, float]] = ({}, {})
    for name, value in values.items():
        base = whole_name(name)
        for side, asked in zip(SIDES, sides, strict=True):
            if name in (base, base + side):
                asked[base] = asked.get(base, 0.0) + value
    return sides


def quoted(value: object) -> str:
    """A value for messages, shortened."""
    try:
        return reprlib.repr(value)
    except ValueError:  # an integer in it has more digits than Python writes
        return f"a value of type {type(value).__name__} with a number that is too long"


def is_finite(value: object) -> bool:
    """Whether a value is a finite number, of any type that has such but no text and no truth."""
    try:
        return not isinstance(value, bool | str | bytes) and math.isfinite(value)
    except (TypeError, ValueError, OverflowError):
        return False


def number_within(value: object, name: str, limits: tuple[float, float], what: str) -> float:
    """Returns `value` as a float within `limits`; `name` and `what` describe it in the error message."""
    wanted = f"expected {what} between {limits[0]:g} and {limits[1]:g} for {name}"
    # float() alone would also take True, "1_0" and digits of other scripts
    if isinstance(value, bool | np.bool_) or (isinstance(value, str) and not _NUMBER.fullmatch(value)):
        raise ActionUnitError(f"{wanted}, got {quoted(value)}")
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise ActionUnitError(f"{wanted}, got {quoted(value)}") from error
    if not math.isfinite(number) or not limits[0] <= number <= limits[1]:
        raise ActionUnitError(f"{wanted}, got {number:g}")
    return number
