"""Expressions: read from a face, mixed, scaled, mirrored, written to a file, applied.

Intensities, 0 to 5, are targets; variations, -10 to 10, are added. An expression holds one of the two, as
`relative` says. Names, ranges and sides: `magicedit.action_units`.
"""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from magicedit.action_units import (
    FACS,
    NAMES,
    emotion_deltas,
    level_range,
    parse_regions,
    sided_names,
    steps_to,
)
from magicedit.arkit import levels_of_scores
from magicedit.errors import ActionUnitError
from magicedit.files import read_document, shown, write_document
from magicedit.tables import read_table
from magicedit.vocabulary import (
    INTENSITY_RANGE,
    Vocabulary,
    by_number,
    is_finite,
    quoted,
    split_sides,
    whole_name,
)

FORMAT = "expression/1"
ASYMMETRY = 0.5  # intensity steps: sides that differ by less are treated as equal
_KINDS = {False: "intensities", True: "variations"}


@dataclass(frozen=True)
class Expression:
    """Action units of a face, as targets or as variations to add.

    Attributes:
        values: canonical name ("AU12", or one side, "AU12L") -> intensity 0 to 5, or variation -10 to 10.
        relative: whether `values` are variations.
        source: origin, as text for people.
        model: the model that a request was made for, if that matters.

    Raises:
        ActionUnitError: where a name is unknown or given twice, or its value is out of range.
    """

    values: Mapping[str, float]
    relative: bool = False
    source: str = ""
    model: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.values, Mapping):
            raise ActionUnitError(
                f"an expression needs a mapping of names and numbers, got {quoted(self.values)}"
            )
        parse = FACS.deltas if self.relative else FACS.levels
        values = by_number(parse(dict(self.values)))
        object.__setattr__(self, "values", MappingProxyType(values))

    def __reduce__(self):  # a mapping proxy cannot be pickled
        return Expression, (dict(self.values), self.relative, self.source, self.model)

    @classmethod
    def measured(
        cls,
        action_units: Mapping[str, float],
        sides: Mapping[str, float] | None = None,
        source: str = "",
        *,
        relative: bool = False,
    ) -> "Expression":
        """Returns the expression of measured intensities, as in `Face.action_units` and `Face.sides`.

        A unit whose sides differ by more than half a step is kept by side. Gaze and head are in degrees.
        Values end at the ranges of their controls. relative: they are differences to a face at rest.
        """
        values = {}
        for name, value in action_units.items():
            left, right = (
                (sides or {}).get(sided) for sided in (sided_names(name) or (f"{name}L", f"{name}R"))
            )
            if left is not None and right is not None and abs(left - right) > ASYMMETRY:
                values |= {f"{name}L": left, f"{name}R": right}
            else:
                values[name] = value
        limited = {}
        for name, value in values.items():
            low, high = FACS[whole_name(name)].range if relative else level_range(name)
            limited[name] = min(max(float(value), low), high)
        return cls(limited, relative, source)

    @classmethod
    def of_emotion(cls, name: str, strength: float = 1.0) -> "Expression":
        """Returns one of the six emotions as variations; strength 0 to 1.25. Errors as `parse_emotion`."""
        return cls(emotion_deltas(name, strength), relative=True, source=f"emotion {name}:{strength:g}")

    @classmethod
    def neutral(cls, names: Iterable[str] = NAMES) -> "Expression":
        """Returns the neutral expression: intensity 0 of `names`, of an editor's only of its model's."""
        if isinstance(names, Vocabulary):
            names = names[: names.numbers]
        return cls(dict.fromkeys(names, 0.0), source="neutral")

    @classmethod
    def from_csv(cls, path: str | Path, row: int = 0) -> "Expression":
        """Reads intensities from one row (counted from 0) of a CSV file with a column per action unit.

        Columns have our names ("AU12", "AU12L", intensities) or those of OpenFace, py-feat or LibreFace, see
        `magicedit.tables`; other columns, such as presence ("AU12_c"), are ignored. Without such columns,
        ARKit's blendshapes are read, see `arkit.levels_of_scores`.

        Raises:
            ActionUnitError: where the file cannot be read, has no such row or column, a value is invalid, or
                the tool found no face in the row.
        """
        table = read_table(path, ActionUnitError)
        units = table.units()
        known = FACS.with_sides()
        columns = {n: column for n, column in units.columns.items() if n in known} if units else {}
        if not columns and not table.blendshapes:
            raise ActionUnitError(
                f"{shown(path)} has no column of a known action unit, such as AU12 or AU12_r, or of a "
                f"blendshape; known: {', '.join(FACS)}"
            )
        if not 0 <= row < len(table.rows):
            raise ActionUnitError(f"{shown(path)} has no row {row}; rows below the header count from 0")
        number, cells = table.rows[row]
        source = f"{table.path.name}, row {row}"
        with table.at(number):
            if columns:
                units = replace(units, scale=units.scale or INTENSITY_RANGE[1], columns=columns)
                values = table.intensities(table.cells(cells), units)
            else:
                levels, sides = levels_of_scores(table.scores(table.cells(cells)))
                values = dict(cls.measured(levels, sides).values) if levels else {}
            if not values:
                raise ActionUnitError("no face was found there, or its cells are empty; choose another row")
        return cls(values, source=source)

    @classmethod
    def read(cls, text: str) -> "Expression":
        """Reads FILE.yaml, FILE.csv, .tsv or .txt (its first row), or FILE.csv:ROW; errors as in `load` and
        `from_csv`."""
        table = re.fullmatch(r"(.*\.(?:csv|tsv|txt))(?::([0-9]{1,9}))?", text, re.IGNORECASE)
        return cls.from_csv(table[1], int(table[2] or 0)) if table else cls.load(text)

    @classmethod
    def load(cls, path: str | Path) -> "Expression":
        """Reads what `save` wrote.

        Raises:
            MagicEditError: where the file is missing, is not an expression or has invalid values.
        """
        content = read_document(path, FORMAT)
        _check_content(path, content)
        kind, values = content["kind"], content["action_units"]
        source, model = content.get("source", ""), content.get("model")
        if not isinstance(source, str) or not isinstance(model, str | None):
            raise ActionUnitError(f"{shown(path)}: `source` and `model` must be texts")
        try:
            return cls(values, kind == _KINDS[True], source, model)
        except ActionUnitError as error:
            raise ActionUnitError(f"{shown(path)}: {error}") from error

    def save(self, path: str | Path) -> Path:
        """Writes a readable, editable YAML file. OutputError where that fails."""
        return write_document(path, FORMAT, self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """Returns the file's content, rounded to the precision of measurements."""
        content: dict[str, Any] = {
            "kind": _KINDS[self.relative],
            "action_units": {name: round(float(value), 3) for name, value in self.values.items()},
        }
        if self.source:
            content["source"] = self.source
        if self.model:
            content["model"] = self.model
        return content

    def scaled(self, strength: float) -> "Expression":
        """Returns all values times `strength`; ActionUnitError if one leaves its range."""
        return replace(self, values={name: value * strength for name, value in self.values.items()})

    def mirrored(self) -> "Expression":
        """Returns the expression with left and right exchanged; yaw and roll change sign."""
        other = {"L": "R", "R": "L"}
        values = {}
        for name, value in self.values.items():
            base = whole_name(name)
            turned = FACS[base].is_angle and base.endswith(("_yaw", "_roll"))
            values[base + "".join(other[side] for side in name.removeprefix(base))] = (
                -value if turned else value
            )
        return replace(self, values=values)

    def mixed(self, other: "Expression", share: float) -> "Expression":
        """Returns `1 - share` of this one plus `share` (0 to 1) of `other`; a missing unit counts as 0.

        Raises:
            ActionUnitError: where one holds intensities and the other variations, or `share` is out of range.
        """
        if self.relative != other.relative:
            raise ActionUnitError(
                f"{_KINDS[self.relative]} and {_KINDS[other.relative]} cannot be mixed; "
                "give two expressions of one kind"
            )
        if not (is_finite(share) and 0 <= share <= 1):
            raise ActionUnitError(f"the share of the second expression must be 0 to 1, got {quoted(share)}")
        mine, theirs = split_sides(self.values), split_sides(other.values)
        names = {whole_name(name) for name in (*self.values, *other.values)}
        sides = [
            {name: (1 - share) * a.get(name, 0.0) + share * b.get(name, 0.0) for name in names}
            for a, b in zip(mine, theirs, strict=True)
        ]
        source = " and ".join(text for text in (self.source, other.source) if text)
        return Expression(_joined(*sides), self.relative, source, self.model or other.model)

    def limited_to(self, names: Sequence[str]) -> "Expression":
        """Returns the expression without units absent from `names` (whole units, as of a model)."""
        return replace(self, values={n: v for n, v in self.values.items() if whole_name(n) in names})

    def only(self, regions: str | Iterable[str]) -> "Expression":
        """Returns the expression of these regions alone, such as "eyes,brows" or ["mouth"].

        Raises:
            ActionUnitError: for unknown regions, see `action_units.parse_regions`, and where nothing is left.
        """
        wanted = parse_regions(regions)
        values = {n: v for n, v in self.values.items() if FACS[whole_name(n)].region in wanted}
        if not values:
            raise ActionUnitError(f"the expression has nothing in {', '.join(wanted)}; name other regions")
        return replace(self, values=values)

    def variation(
        self, current: Mapping[str, float], strength: float = 1.0, *, continuous: bool = False
    ) -> dict[str, float]:
        """Returns the variations that apply the expression to `current` intensities (by name, with sides).

        Intensities of units that `current` lacks are left out: other tools measure more. A target within
        `action_units.DEAD_ZONE` of the current intensity gives 0, because the measurement is no more precise.
        Variations of any size are added.

        strength: 1 applies all of it, 0.7 seven tenths. continuous: as in `action_units.steps_to`.

        Raises:
            ActionUnitError: where `current` lacks all units with a target intensity, or a variation leaves
                -10 to 10.
        """
        if not is_finite(strength):
            raise ActionUnitError(f"the strength of an expression must be a number, got {quoted(strength)}")
        values = self.values
        if not self.relative:
            values = {name: value for name, value in values.items() if name in current}
        if self.values and not values:
            raise ActionUnitError(
                f"the face's {', '.join(self.values)} are not measured here; an expression of intensities "
                "needs them, one of variations does not"
            )
        deltas = {
            name: strength
            * (value if self.relative else steps_to(value, current[name], continuous=continuous))
            for name, value in values.items()
        }
        for name, delta in deltas.items():
            low, high = FACS[whole_name(name)].range
            if not low <= delta <= high:
                raise ActionUnitError(
                    f"{name} would vary by {delta:+g}, beyond {low:g} to {high:g}; lower the strength"
                )
        return deltas

    def __str__(self) -> str:
        number = "{:+.1f}" if self.relative else "{:.1f}"
        rounded = {name: round(value, 1) + 0.0 for name, value in self.values.items()}  # + 0.0: no "-0.0"
        return ", ".join(f"{name} {number.format(value)}" for name, value in rounded.items())


def _check_content(path: str | Path, content: Mapping[Any, Any]) -> None:
    """Raises ActionUnitError naming the first unknown, missing or invalid key of a file."""
    known, kinds = ("kind", "action_units", "source", "model"), " or ".join(_KINDS.values())
    if unknown := [key for key in content if key not in known]:
        names = ", ".join(sorted(map(quoted, unknown)))
        hint = _did_you_mean(unknown[0], [key for key in known if key not in content])
        raise ActionUnitError(f"{shown(path)} says what an expression does not have: {names}{hint}")
    if missing := [key for key in ("kind", "action_units") if key not in content]:
        raise ActionUnitError(
            f"{shown(path)} is not an expression: `{'` and `'.join(missing)}` is missing; it needs `kind` "
            f"({kinds}) and `action_units`, a table of names and numbers"
        )
    kind, values = content["kind"], content["action_units"]
    if kind not in _KINDS.values():
        hint = _did_you_mean(kind, _KINDS.values())
        raise ActionUnitError(
            f"{shown(path)} is not an expression: its `kind` must be {kinds}, got {quoted(kind)}{hint}"
        )
    if not isinstance(values, dict):
        got = "nothing" if values is None else quoted(values)
        raise ActionUnitError(
            f"{shown(path)} is not an expression: `action_units` must be a table of names and numbers, a "
            f"line each such as `AU12: 3`, got {got}"
        )


def _did_you_mean(written: object, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(str(written), known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _joined(left: Mapping[str, float], right: Mapping[str, float]) -> dict[str, float]:
    """The inverse of `split_sides`: whole units where both sides agree."""
    values = {}
    for name in left:
        both = (left[name], right[name])
        values |= {name: both[0]} if both[0] == both[1] else dict(zip(sided_names(name), both, strict=True))
    return values
