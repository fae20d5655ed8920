"""Curves of action units over time: keyframes, from a CSV file or one by one, and what lies between them."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from magicedit.action_units import FACS, canonical_name, parse_deltas
from magicedit.errors import ActionUnitError
from magicedit.vocabulary import name_order

TIME_COLUMNS = ("time", "seconds", "timestamp")
_MOST_ROWS = 1_000_000


@dataclass(frozen=True, eq=False)
class Curve:
    """Variations of action units over time.

    Attributes:
        times: (keyframes,) seconds, ascending.
        values: canonical name ("AU12", or one side, "AU12L") -> (keyframes,) variations, -10 to 10, to be
            added. Between keyframes they change evenly, before the first and after the last they stay.
        source: where it comes from, for people.

    Raises:
        ActionUnitError: where times do not ascend, are not finite or negative; where a name is unknown, a
            value is no number or out of range.
    """

    times: np.ndarray
    values: Mapping[str, np.ndarray]
    source: str = "the curve"

    def __post_init__(self) -> None:
        times = np.asarray(self.times, np.float64)
        if not len(times) or not self.values:
            raise ActionUnitError(f"{self.source} has no keyframes; give at least one time with action units")
        for earlier, later in zip([-1.0, *times], times, strict=False):
            if not (math.isfinite(later) and later >= 0):
                raise ActionUnitError(f"{self.source}: times are seconds from 0 on, got {later:g}")
            if later <= earlier:
                raise ActionUnitError(
                    f"{self.source}: times must ascend, but {later:g} s follows {earlier:g} s; sort them"
                )
        checked: dict[str, np.ndarray] = {}
        for index in range(len(times)):
            try:
                row = parse_deltas({name: column[index] for name, column in self.values.items()}, FACS)
            except ActionUnitError as error:
                raise ActionUnitError(f"{self.source}, at {times[index]:g} s: {error}") from error
            for name, value in row.items():
                checked.setdefault(name, np.empty(len(times)))[index] = value
        object.__setattr__(self, "times", times)
        object.__setattr__(self, "values", {name: checked[name] for name in sorted(checked, key=name_order)})

    @classmethod
    def from_csv(cls, path: str | Path) -> "Curve":
        """Reads a CSV file: a column of seconds called "time", and one of variations for each action unit.

        An empty cell is filled evenly from the column's own keyframes around it.

        Raises:
            ActionUnitError: where the file cannot be read; where it has no column of time or another column
                that is no action unit, or as the class.
        """
        path = Path(path)
        try:
            with path.open(newline="", encoding="utf-8-sig") as file:
                rows = [
                    row
                    for row in csv.reader(file, skipinitialspace=True, strict=True)
                    if any(map(str.strip, row))
                ]
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise ActionUnitError(f"{path} cannot be read as a CSV file: {error}") from error
        if len(rows) < 2:
            raise ActionUnitError(
                f"{path} has no keyframes; it needs a line of names such as time,AU12 and lines of numbers"
            )
        header = [name.strip() for name in rows[0]]
        lowered = [name.lower() for name in header]
        columns = [lowered.index(name) for name in TIME_COLUMNS if name in lowered]
        if len(columns) != 1:
            raise ActionUnitError(
                f'{path} needs one column called "time" (seconds), and has {", ".join(header) or "none"}'
            )
        if len(rows) > _MOST_ROWS:
            raise ActionUnitError(f"{path} has {len(rows):,} lines; a curve may have {_MOST_ROWS:,}")
        names = {}
        for index, name in enumerate(header):
            if index == columns[0]:
                continue
            try:
                canonical = canonical_name(name, FACS)
            except ActionUnitError as error:
                raise ActionUnitError(f"{path}: {error}") from error
            if canonical in names:
                raise ActionUnitError(f"{path} has two columns for {canonical}; give each action unit once")
            names[canonical] = index
        for number, row in enumerate(rows[1:], 2):
            if len(row) != len(header):
                raise ActionUnitError(f"{path}, line {number}: expected {len(header)} cells, got {len(row)}")
        times = [_number(row[columns[0]], f"{path}, line {n}, time") for n, row in enumerate(rows[1:], 2)]
        ascending = np.array(times)
        values = {}
        for name, index in names.items():
            cells = [
                _number(row[index], f"{path}, line {n}, {name}") if row[index].strip() else math.nan
                for n, row in enumerate(rows[1:], 2)
            ]
            column = np.array(cells)
            given = np.isfinite(column)
            if not given.any():
                raise ActionUnitError(f"{path}: the column {name} is empty; fill it or leave it out")
            if (np.diff(ascending) > 0).all():  # else the class says so
                column = np.interp(ascending, ascending[given], column[given])
            values[name] = column
        return cls(ascending, values, str(path))

    @classmethod
    def from_keys(cls, keys: Sequence[str]) -> "Curve":
        """Of keyframes such as "1.5:AU12=+3,AU4=-1": seconds, then variations.

        A unit that a keyframe does not name is filled evenly from those around it that do.

        Raises:
            ActionUnitError: where one is malformed, or as the class.
        """
        rows = []
        for key in keys:
            time, colon, units = key.partition(":")
            if not colon:
                raise ActionUnitError(
                    f"a keyframe is SECONDS:AU12=+3, such as 1.5:AU12=+3,AU4=-1; got {key!r}"
                )
            rows.append((_number(time, f"the keyframe {key!r}, its time"), parse_deltas(units, FACS)))
        times = np.array([time for time, _ in rows])
        values = {}
        for name in {name: None for _, row in rows for name in row}:
            given = [index for index, (_, row) in enumerate(rows) if name in row]
            column = [rows[index][1][name] for index in given]
            if (np.diff(times) > 0).all():
                values[name] = np.interp(times, times[given], column)
            else:
                values[name] = np.zeros(len(times))  # the class refuses the times
        return cls(times, values, "the keyframes")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.values)

    @property
    def end(self) -> float:
        """Seconds of the last keyframe."""
        return float(self.times[-1])

    def at(self, time: float) -> dict[str, float]:
        """The variations by name at a time in seconds."""
        return {name: float(np.interp(time, self.times, column)) for name, column in self.values.items()}

    def usable_by(self, names: Sequence[str]) -> None:
        """ActionUnitError where it has a unit that is not among a model's `names`."""
        for name in self.values:
            try:
                canonical_name(name, names)
            except ActionUnitError as error:
                raise ActionUnitError(f"{self.source}: {error}") from error

    def to_json(self) -> dict[str, list[float]]:
        """Times and values, for comparing."""
        return {"time": self.times.tolist()} | {name: column.tolist() for name, column in self.values.items()}


def _number(text: str, where: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ActionUnitError(f"{where}: expected a number, got {text.strip()!r}")
    return number
