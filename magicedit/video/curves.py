"""Curves of action units over time: keyframes from a CSV file or one by one, and their interpolation."""

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from magicedit.action_units import FACS, sided_names, vocabulary_of
from magicedit.arkit import levels_of_scores
from magicedit.errors import ActionUnitError
from magicedit.expression import ASYMMETRY
from magicedit.files import shown
from magicedit.tables import Table, read_table
from magicedit.vocabulary import name_order, quoted

_FACE_COLUMNS = ("face_id", "face", "faceid", "face_idx")


@dataclass(frozen=True, eq=False)
class Curve:
    """Variations of action units over time.

    Attributes:
        times: (keyframes,) seconds, ascending.
        values: canonical name ("AU12", or one side, "AU12L") -> (keyframes,) variations to add, -10 to 10.
            They are linear between keyframes and constant before the first and after the last.
        source: origin, as text for people.
        measured: whether a tool measured it; then units that a model cannot edit are left out.

    Raises:
        ActionUnitError: where times do not ascend, are infinite or negative; where a name is unknown, a value
            is not a number or out of range.
    """

    times: np.ndarray
    values: Mapping[str, np.ndarray]
    source: str = "the curve"
    measured: bool = False

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

        An empty cell is interpolated linearly from the column's keyframes around it.

        A tool's time series (see `magicedit.tables`), also of ARKit's blendshapes, is read too: its levels
        are the variations, since 0 is a face at rest. Its rows may be in any order; rows without a face and
        other columns are left out, and of several faces the largest by area and time counts.

        Raises:
            ActionUnitError: where the file cannot be read, lacks the time column or has a column that is no
                action unit, or as the class.
        """
        table = read_table(path, ActionUnitError)
        if not table.rows:
            raise ActionUnitError(
                f"{shown(path)} has no keyframes; it needs a line of names such as time,AU12 and lines of "
                "numbers"
            )
        units = table.units()
        if units is not None and units.tool != "AU columns":
            known = {name: column for name, column in units.columns.items() if name in FACS.with_sides()}
            units = replace(units, columns=known)
            return cls._of_tool(table, lambda cells: table.intensities(cells, units))
        if table.blendshapes and not any(_is_control(column) for column in table.header):
            return cls._of_tool(table, lambda cells: _joined(*levels_of_scores(table.scores(cells))))
        if len(table.time_columns) > 1:
            raise ActionUnitError(
                f"{shown(path)} has several columns of time, {' and '.join(table.time_columns)}; keep one"
            )
        clock = table.clock()
        names: dict[str, str] = {}  # column -> action unit
        with table.at():
            for column in table.header:
                if column != clock.column:
                    names[column] = FACS.spelled(column)
            for name, count in Counter(names.values()).items():
                if count > 1:
                    raise ActionUnitError(f"two columns for {name}; give each action unit once")
        times: list[float] = []
        given: dict[str, list[tuple[float, float]]] = {name: [] for name in names.values()}
        for number, row in table.rows:
            with table.at(number):
                cells = table.cells(row, whole=True)
                times.append(table.seconds(cells, clock))
                for column, name in names.items():
                    if not math.isnan(value := table.number(cells, column)):
                        given[name].append((times[-1], value))
        if empty := [name for name, keys in given.items() if not keys]:
            raise ActionUnitError(f"{shown(path)}: the column {empty[0]} is empty; fill it or leave it out")
        return cls._through(times, given, shown(path))

    @classmethod
    def _of_tool(cls, table: Table, levels: Callable[[dict[str, str]], dict[str, float]]) -> "Curve":
        """Returns the curve of a time series. levels: cells -> level by name, empty without a face."""
        # 1. The rows of each face that is seen
        clock, rows = table.clock(), defaultdict(list)  # face -> (time, size, levels)
        for number, row in table.rows:
            with table.at(number):
                cells = table.cells(row)
                if table.faceless(cells) or not (measured := levels(table.cells(row, whole=True))):
                    continue
                face = "".join(cells[column] for column in table.columns(*_FACE_COLUMNS)[:1])
                rows[face].append((table.seconds(cells, clock), table.face_size(cells), measured))
        if not rows:
            raise ActionUnitError(f"{shown(table.path)}: no row holds a face with values of whole units")

        # 2. Those of one face, in order
        chosen = max(rows.values(), key=lambda seen: (sum(size for _, size, _ in seen), len(seen)))
        by_time = {time: measured for time, _, measured in sorted(chosen, key=lambda seen: seen[:2])}
        given: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for time, measured in by_time.items():
            for name, value in measured.items():
                given[name].append((time, value))

        # 3. Units by side where the sides ever differ much
        for name in list(given):
            sides = sided_names(name)
            if sides and given.keys() >= {*sides}:
                left, right = (dict(given[side]) for side in sides)
                even = left.keys() == right.keys() and all(abs(left[t] - right[t]) <= ASYMMETRY for t in left)
                for unused in sides if even else (name,):
                    del given[unused]
        return cls._through(list(by_time), given, shown(table.path), measured=True)

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
                    f"a keyframe is SECONDS:AU12=+3, such as 1.5:AU12=+3,AU4=-1; got {quoted(key)}"
                )
            rows.append((_number(time, f"the keyframe {quoted(key)}, its time"), FACS.deltas(units)))
        names = dict.fromkeys(name for _, row in rows for name in row)
        given = {name: [(time, row[name]) for time, row in rows if name in row] for name in names}
        return cls._through([time for time, _ in rows], given, "the keyframes")

    @classmethod
    def _through(
        cls,
        times: Sequence[float],
        given: Mapping[str, Sequence[tuple[float, float]]],
        source: str,
        measured: bool = False,
    ) -> "Curve":
        """Returns the curve of units given as (time, variation) at some of the times.

        The class raises for times that do not ascend.
        """
        ascend = all(earlier < later for earlier, later in itertools.pairwise(times))
        values = {
            name: np.interp(times, *zip(*keys, strict=True)) if ascend else np.zeros(len(times))
            for name, keys in given.items()
        }
        return cls(np.array(times), values, source, measured)

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

    def usable_by(self, names: Sequence[str]) -> "Curve":
        """Returns the curve that a model with these units can edit.

        Units outside `names` are left out of a measured curve. Raises ActionUnitError for them in any other
        curve, and where nothing is left.
        """
        usable = {}
        vocabulary = vocabulary_of(names)
        for name, values in self.values.items():
            try:
                control, worth = vocabulary.read(name)
                if control == name or control not in self.values:
                    usable[control] = worth * values
                elif not self.measured:  # a tool's AU45 beside its AU43 tells the same
                    raise ActionUnitError(f"{name} and {control} are the same here; give one of them")
            except ActionUnitError as error:
                problem = ActionUnitError(f"{self.source}: {error}")
                if not self.measured:
                    raise problem from error
        if not usable:
            raise problem
        return replace(self, values=usable)

    def to_json(self) -> dict[str, list[float]]:
        """Returns times and values, for comparison."""
        return {"time": self.times.tolist()} | {name: column.tolist() for name, column in self.values.items()}


def _joined(wholes: Mapping[str, float], sides: Mapping[str, float]) -> dict[str, float]:
    return {**wholes, **sides}


def _is_control(column: str) -> bool:
    try:
        return bool(FACS.spelled(column))
    except ActionUnitError:
        return False


def _number(text: str, where: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ActionUnitError(f"{where}: expected a number, got {quoted(text.strip())}")
    return number
