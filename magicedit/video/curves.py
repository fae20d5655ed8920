"""Curves of action units over time: keyframes from a CSV file or one by one, and their interpolation."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from magicedit.action_units import FACS, canonical_name, sided_names
from magicedit.arkit import levels_of_scores
from magicedit.errors import ActionUnitError
from magicedit.expression import ASYMMETRY
from magicedit.tables import TIME_COLUMNS, Table, read_table
from magicedit.vocabulary import name_order, whole_name

_MOST_ROWS = 1_000_000


@dataclass(frozen=True, eq=False)
class Curve:
    """Variations of action units over time.

    Attributes:
        times: (keyframes,) seconds, ascending.
        values: canonical name ("AU12", or one side, "AU12L") -> (keyframes,) variations to add, -10 to 10.
            They are linear between keyframes and constant before the first and after the last.
        source: origin, as text for people.

    Raises:
        ActionUnitError: where times do not ascend, are infinite or negative; where a name is unknown, a value
            is not a number or out of range.
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
                row = FACS.deltas({name: column[index] for name, column in self.values.items()})
            except ActionUnitError as error:
                raise ActionUnitError(f"{self.source}, at {times[index]:g} s: {error}") from error
            for name, value in row.items():
                checked.setdefault(name, np.empty(len(times)))[index] = value
        object.__setattr__(self, "times", times)
        object.__setattr__(self, "values", {name: checked[name] for name in sorted(checked, key=name_order)})

    @classmethod
    def from_csv(cls, path: str | Path) -> "Curve":
        """Reads a CSV file: a column of seconds called "time", and one of variations for each action unit.

        An empty cell is interpolated linearly from the column's keyframes around it. A table of ARKit's
        blendshapes is read too: its levels (see `arkit.levels_of_scores`) are the variations, since a score
        of 0 is a face at rest. Its other columns are ignored.

        Raises:
            ActionUnitError: where the file cannot be read, lacks the time column or has a column that is no
                action unit, or as the class.
        """
        table = read_table(path, ActionUnitError)
        if not table.rows:
            raise ActionUnitError(
                f"{path} has no keyframes; it needs a line of names such as time,AU12 and lines of numbers"
            )
        if len(table.rows) > _MOST_ROWS:
            raise ActionUnitError(f"{path} has {len(table.rows):,} lines; a curve may have {_MOST_ROWS:,}")
        timed = table.columns(*TIME_COLUMNS)
        if len(timed) != 1:
            raise ActionUnitError(
                f'{path} needs one column called "time" (seconds), and has {", ".join(table.header)}'
            )
        if table.blendshapes and not any(_is_control(column) for column in table.header):
            return cls._of_blendshapes(table, timed[0])
        names: dict[str, str] = {}  # column -> action unit
        with table.at():
            for column in table.header:
                if column != timed[0]:
                    names[column] = FACS.canonical(column)
                    if list(names.values()).count(names[column]) > 1:
                        raise ActionUnitError(f"two columns for {names[column]}; give each action unit once")
        times: list[float] = []
        given: dict[str, list[tuple[float, float]]] = {name: [] for name in names.values()}
        for number, row in table.rows:
            with table.at(number):
                cells = table.cells(row, whole=True)
                times.append(_number(table.pointed(cells[timed[0]]), timed[0]))
                for column, name in names.items():
                    if not math.isnan(value := table.number(cells, column)):
                        given[name].append((times[-1], value))
        if empty := [name for name, keys in given.items() if not keys]:
            raise ActionUnitError(f"{path}: the column {empty[0]} is empty; fill it or leave it out")
        return cls._through(times, given, str(path))

    @classmethod
    def _of_blendshapes(cls, table: Table, timed: str) -> "Curve":
        """Returns the curve of ARKit's blendshapes; units are by side where the sides ever differ much."""
        times: list[float] = []
        given: dict[str, list[tuple[float, float]]] = {}
        for number, row in table.rows:
            with table.at(number):
                cells = table.cells(row, whole=True)
                times.append(_number(table.pointed(cells[timed]), timed))
                wholes, sides = levels_of_scores(table.scores(cells))
            for name, value in (wholes | sides).items():
                given.setdefault(name, []).append((times[-1], value))
        if not given:
            raise ActionUnitError(f"{table.path}: no row has scores of a whole unit; was there a face?")
        for name in [name for name in given if sided_names(name) and sided_names(name)[0] in given]:
            left, right = (given[side] for side in sided_names(name))
            even = all(abs(a - b) <= ASYMMETRY for (_, a), (_, b) in zip(left, right, strict=True))
            for unused in sided_names(name) if even else (name,):
                del given[unused]
        return cls._through(times, given, str(table.path))

    @classmethod
    def from_keys(cls, keys: Sequence[str]) -> "Curve":
        """Parses keyframes such as "1.5:AU12=+3,AU4=-1": seconds, then variations.

        A unit missing from a keyframe is interpolated linearly from the keyframes around it that have it.

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
            rows.append((_number(time, f"the keyframe {key!r}, its time"), FACS.deltas(units)))
        names = dict.fromkeys(name for _, row in rows for name in row)
        given = {name: [(time, row[name]) for time, row in rows if name in row] for name in names}
        return cls._through([time for time, _ in rows], given, "the keyframes")

    @classmethod
    def _through(
        cls, times: Sequence[float], given: Mapping[str, Sequence[tuple[float, float]]], source: str
    ) -> "Curve":
        """Returns the curve of units given as (time, variation) at some of the times.

        The class raises for times that do not ascend.
        """
        ascend = all(earlier < later for earlier, later in itertools.pairwise(times))
        values = {
            name: np.interp(times, *zip(*keys, strict=True)) if ascend else np.zeros(len(times))
            for name, keys in given.items()
        }
        return cls(np.array(times), values, source)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.values)

    @property
    def end(self) -> float:
        """Time of the last keyframe in seconds."""
        return float(self.times[-1])

    def at(self, time: float) -> dict[str, float]:
        """Returns the variations by name at a time in seconds."""
        return {name: float(np.interp(time, self.times, column)) for name, column in self.values.items()}

    def usable_by(self, names: Sequence[str]) -> None:
        """Raises ActionUnitError for units outside a model's `names`."""
        for name in self.values:
            try:
                canonical_name(name, names)
            except ActionUnitError as error:
                raise ActionUnitError(f"{self.source}: {error}") from error

    def to_json(self) -> dict[str, list[float]]:
        """Returns times and values, for comparison."""
        return {"time": self.times.tolist()} | {name: column.tolist() for name, column in self.values.items()}


def _is_control(column: str) -> bool:
    try:
        return whole_name(FACS.canonical(column)) in FACS
    except ActionUnitError:
        return False


def _number(text: str, where: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ActionUnitError(f"{where}: expected a number, got {text.strip()!r}")
    return number
