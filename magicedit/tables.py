"""Reads tables: CSV files of people, of spreadsheets, and of tools that measure action units.

The text is UTF-8, or UTF-16 with a byte order mark. Commas, semicolons or tabs separate the cells, whichever
the header has most of. Between semicolons or tabs, "1,5" is the number 1.5. Blanks around cells do not count.

| tool | intensity columns | scale |
|---|---|---|
| OpenFace 2 | `AU12_r` (headers carry a leading space; rows with `success` 0 hold no face) | 0-5 |
| py-feat | `AU12` beside `FaceRectX`, `FaceScore` | 0-1 |
| LibreFace | `au_12_intensity` | 0-5 |
| ARKit | `mouthSmileLeft`, in any case; not action units, see `Table.scores` | 0-1 |

Presence columns (OpenFace's `_c`, LibreFace's `au_12`) say whether, not how much, and are not read.
"""

import contextlib
import csv
import io
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from magicedit.arkit import BLENDSHAPES
from magicedit.errors import MagicEditError
from magicedit.vocabulary import INTENSITY_RANGE

TIME_COLUMNS = ("time", "seconds", "timestamp")
_TOOLS = (  # name, its intensity columns, its scale
    ("OpenFace", re.compile(r"AU\s*0*([1-9]\d*)\s*([LR]?)_r", re.IGNORECASE), 5.0),
    ("LibreFace", re.compile(r"au_0*([1-9]\d*)_intensity", re.IGNORECASE), 5.0),
    ("py-feat", re.compile(r"AU\s*0*([1-9]\d*)\s*([LR]?)", re.IGNORECASE), 1.0),
)
_PY_FEAT_MARKS = ("facerectx", "facescore")
_DECIMAL_COMMA = re.compile(r"([+-]?\d+),(\d+)")
_SLACK = 1e-3  # of the scale: regressors write 5.0003; anything further out means another scale


@dataclass(frozen=True)
class Units:
    """Columns of action units.

    tool: "OpenFace", "py-feat", "LibreFace" or "AU columns". scale: the number that the table holds for full
    intensity; None where the header does not tell. columns: "AU12" or "AU12L" -> column.
    """

    tool: str
    scale: float | None
    columns: Mapping[str, str]


@dataclass(frozen=True)
class Table:
    """A table as written.

    header: the columns' names. rows: number and cells of each row that is not empty; the header's number
    is 1, as in a spreadsheet. error: what the methods raise.
    """

    path: Path
    header: tuple[str, ...]
    rows: list[tuple[int, list[str]]]
    separator: str
    error: type[MagicEditError]

    def columns(self, *names: str) -> list[str]:
        """The columns with these names in lower case, in the order of the names."""
        lower = {column.lower(): column for column in self.header}
        return [lower[name] for name in names if name in lower]

    def cells(self, row: list[str], whole: bool = False) -> dict[str, str]:
        """Column -> cell. Raises where the row has more cells than columns or, for `whole`, fewer."""
        if any(map(str.strip, row[len(self.header) :])) or (whole and len(row) < len(self.header)):
            raise self.error(
                f"expected {len(self.header)} cells, got {len(row)}; quote cells with {self.separator!r}"
            )
        return {column: cell.strip() for column, cell in zip(self.header, row, strict=False)}

    def pointed(self, cell: str) -> str:
        """ "1,5" -> "1.5" where such numbers are written; anything else as it is."""
        number = _DECIMAL_COMMA.fullmatch(cell) if self.separator != "," else None
        return ".".join(number.groups()) if number else cell

    def number(self, cells: Mapping[str, str], column: str) -> float:
        """A cell's number; NaN where it is missing, empty, "nan" or "none". Raises where it is no number."""
        cell = cells.get(column, "")
        if cell.lower() in ("", "nan", "none"):
            return math.nan
        try:
            value = float(self.pointed(cell))
        except ValueError:
            raise self.error(f"{column}: expected a number, got {cell!r}") from None
        if math.isinf(value):
            raise self.error(f"{column}: expected a finite number, got {cell!r}")
        return value

    def units(self) -> Units | None:
        """The columns of action units of the first tool that has any; None: there are none."""
        for tool, pattern, scale in _TOOLS:
            columns: dict[str, str] = {}
            for column in self.header:
                if match := pattern.fullmatch(column):
                    name = f"AU{''.join(match.groups()).upper()}"
                    if name in columns:
                        raise self.error(f"{self.path} has two columns for {name}; keep one")
                    columns[name] = column
            if columns and tool == "py-feat" and not self.columns(*_PY_FEAT_MARKS):
                return Units("AU columns", None, columns)
            if columns:
                return Units(tool, scale, columns)
        return None

    def intensities(self, cells: Mapping[str, str], units: Units, hint: str = "") -> dict[str, float]:
        """Action unit -> intensity 0 to 5, without empty cells; nothing where the tool found no face.

        Raises, with the hint, where a value is outside the units' scale.
        """
        if any(self.number(cells, column) == 0 for column in self.columns("success")):
            return {}
        values, full = {}, INTENSITY_RANGE[1]
        for name, column in units.columns.items():
            value = self.number(cells, column)
            if math.isnan(value):
                continue
            if not -_SLACK <= value / units.scale <= 1 + _SLACK:
                raise self.error(
                    f"{name} = {value:g} is outside the scale 0-{units.scale:g} of {units.tool} files{hint}"
                )
            value = min(max(value, 0.0), units.scale)
            values[name] = value if units.scale == full else value / units.scale * full
        return values

    @cached_property
    def blendshapes(self) -> dict[str, str]:
        """ARKit's blendshape -> column, of those in the header."""
        lower = {name.lower(): name for name in BLENDSHAPES}
        columns = {lower[column.lower()]: column for column in self.header if column.lower() in lower}
        return {name: columns[name] for name in BLENDSHAPES if name in columns}

    def scores(self, cells: Mapping[str, str]) -> dict[str, float]:
        """ARKit's blendshape -> score 0 to 1, without empty cells. Raises for scores out of range."""
        scores = {}
        for name, column in self.blendshapes.items():
            value = self.number(cells, column)
            if math.isnan(value):
                continue
            if not -_SLACK <= value <= 1 + _SLACK:
                raise self.error(f"{column} = {value:g} is outside the scale 0-1 of ARKit's blendshapes")
            scores[name] = min(max(value, 0.0), 1.0)
        return scores

    @contextlib.contextmanager
    def at(self, number: int | None = None) -> Iterator[None]:
        """Errors that are raised inside get the file in front, and the row's number."""
        line = "" if number is None else f" line {number}"
        try:
            yield
        except ValueError as error:
            raise self.error(f"{self.path}{line}: {error}") from error


def read_table(path: str | Path, error: type[MagicEditError] = MagicEditError) -> Table:
    """The table in a CSV file; an empty file has neither header nor rows.

    Raises `error` where the file cannot be read, or two columns have one name.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
        text = content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
        first = next((line for line in io.StringIO(text, None) if line.strip(",;\t \n")), "")
        separator = max(",;\t", key=first.count)
        reader = csv.reader(io.StringIO(text, ""), delimiter=separator, skipinitialspace=True, strict=True)
        rows = [(number, row) for number, row in enumerate(reader, start=1) if any(map(str.strip, row))]
    except (OSError, UnicodeError, csv.Error) as problem:
        raise error(f"{path} cannot be read as a CSV file: {problem}") from problem
    header = [cell.strip() for cell in rows[0][1]] if rows else []
    if twice := [name for name in header if name and header.count(name) > 1]:
        raise error(f"{path} has two columns {twice[0]!r}; keep one")
    return Table(path, tuple(header), rows[1:], separator, error)
