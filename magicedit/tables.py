"""Reads tables: CSV files of people, of spreadsheets, and of tools that measure action units.

The text is UTF-8, UTF-16 or UTF-32. Commas, semicolons, tabs or bars separate the cells, whichever the header
has most of, or as a first line `sep=;` says. "1,5" is the number 1.5. Blanks around cells do not count, and
neither do lines above the header that begin with # or that a tool writes there.

| tool | intensity columns | scale |
|---|---|---|
| OpenFace 2 | `AU12_r` (headers carry a leading space) | 0-5 |
| py-feat | `AU12` beside `FaceRectX`, `FaceScore`, emotions or a pose | 0-1 |
| LibreFace | `au_12_intensity` | 0-5 (0-1 of some versions) |
| FaceReader | `Action Unit 12 - Lip Corner Puller` | 0-1, or letters A to E |
| Affdex (iMotions) | `Smile`, `Brow Furrow`, ... | 0-100 |
| ARKit, Live Link Face | `mouthSmileLeft`, in any case; not action units, see `Table.scores` | 0-1 |

Presence columns (OpenFace's `_c`, LibreFace's `au_12`) say whether, not how much, and are not read. A row
holds no face where `success`, `confidence`, `FaceScore` or `BlendShapeCount` is 0.
"""

import codecs
import contextlib
import csv
import io
import itertools
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from magicedit.arkit import BLENDSHAPES
from magicedit.errors import MagicEditError
from magicedit.files import read_bytes, shown
from magicedit.vocabulary import INTENSITY_RANGE

LARGEST_TABLE = 200_000_000  # bytes
MOST_CELLS = 20_000_000  # about 70 bytes of memory each
MOST_ROWS = 1_000_000
_HEAD = 65_536  # characters, and lines, among which the header is looked for
_HEAD_LINES = 100
_SEPARATORS = ",;\t|"
_SLACK = 1e-3  # of the scale: regressors write 5.0003; anything further out means another scale

_AU = r"AU\s*0*([1-9][0-9]?)\s*([LR]?)"
_WHOLE = r"Action Unit 0*([1-9][0-9]?)(?:\s*-.*)?(?<!left)(?<!right)"  # columns of sides are not read
_TOOLS = (  # name, its intensity columns, its scale
    ("OpenFace", re.compile(_AU + "_r", re.IGNORECASE), 5.0),
    ("LibreFace", re.compile(r"au_0*([1-9][0-9]?)_intensity", re.IGNORECASE), 5.0),
    ("py-feat", re.compile(_AU, re.IGNORECASE), 1.0),
    ("FaceReader", re.compile(_WHOLE, re.IGNORECASE), 1.0),
)
_PY_FEAT_MARKS = ({"facerectx"}, {"facescore"}, {"pitch", "roll", "yaw"})  # all columns of any of them
# Beside these names of units only: emotions stand in tables of other tools too
_EMOTIONS = {"anger", "disgust", "fear", "happiness", "sadness", "surprise"}
_PADDED = re.compile(r"AU0[1-9]", re.IGNORECASE)  # as py-feat writes them
_MOST_PRESENCE = 5  # columns of nothing but 0 and 1 that may be intensities by chance
# Affectiva's expressions as action units: developer documentation, "Mapping of facial action units"
_AFFDEX = {
    "innerbrowraise": "AU1", "browraise": "AU2", "browfurrow": "AU4", "eyewiden": "AU5", "cheekraise": "AU6",
    "lidtighten": "AU7", "nosewrinkle": "AU9", "upperlipraise": "AU10", "smile": "AU12", "dimpler": "AU14",
    "lipcornerdepressor": "AU15", "chinraise": "AU17", "lippucker": "AU18", "lipstretch": "AU20",
    "lippress": "AU24", "mouthopen": "AU25", "jawdrop": "AU26", "lipsuck": "AU28", "eyeclosure": "AU43",
}  # fmt: skip
_AFFDEX_MARKS = {"eventsource", "sourcestimuliname", "stimtype", "engagement", "valence", "attention"}
_IMOTIONS_MARKS = {"eventsource", "sourcestimuliname", "stimtype"}  # its timestamps are milliseconds
_DOUBTFUL = ("LibreFace", "Affdex")  # versions of these tools write 0-1 under the same names

_VALIDITY = ("success", "confidence", "facescore", "blendshapecount")
_LETTERS = {"notactive": 0.0, "inactive": 0.0} | {letter: 1.0 + n for n, letter in enumerate("abcde")}
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?", re.IGNORECASE)
_DECIMAL_COMMA = re.compile(r"([+-]?[0-9]*),([0-9]+(?:e[+-]?[0-9]+)?)", re.IGNORECASE)
_THOUSANDS = re.compile(r"[+-]?[1-9][0-9]{0,2}(,[0-9]{3})+")
_MISSING = re.compile(  # of C, of Microsoft's C (in any language), of spreadsheets, pandas, R and FaceReader
    r"|[+-]?nan(\(\w*\))?|[+-]?1[.,]#(ind|[qs]?nan)[0-9]*|#(n/a|(num|value)!|div/0!)|<?na>?|n/a|none|null"
    r"|-|fi[tn]d?_failed|unknown|missing",
    re.IGNORECASE,
)
_TIME = re.compile(
    r"((video|frame)[ _])?(time|timestamp|timecode)([ _]?(in_)?[(\[]?(m?s|sec|(milli)?seconds)[)\]]?)?"
    r"|(milli)?seconds",
    re.IGNORECASE,
)
_MILLISECONDS = re.compile(r".*(ms|milliseconds)\W*", re.IGNORECASE)
_CLOCK = re.compile(r"(?:([0-9]{1,3}):)?([0-9]{1,2}):([0-9]{1,2}(?:[.,][0-9]*)?)")
_TIMECODE = re.compile(r"([0-9]{1,2}):([0-9]{2}):([0-9]{2})[:;]([0-9]{1,3}(?:\.[0-9]*)?)")
_RATES = (24, 25, 30, 48, 50, 60, 90, 100, 120, 240)  # frames a second of timecodes
_USUAL_RATE = 60  # of Live Link Face
_DAY = 86_400  # seconds


@dataclass(frozen=True)
class Units:
    """Columns of action units.

    tool: "OpenFace", "py-feat", "LibreFace", "FaceReader", "Affdex" or "AU columns". scale: the number that
    the table holds for full intensity; None where the header does not tell. columns: "AU12" or "AU12L" ->
    column.
    """

    tool: str
    scale: float | None
    columns: Mapping[str, str]


@dataclass(frozen=True)
class Clock:
    """A column of time. unit: seconds of the number 1. rate: frames a second of its timecodes, if it has any;
    they count from `start`, the first one in seconds."""

    column: str
    unit: float
    rate: int | None = None
    start: float = 0.0


@dataclass(frozen=True)
class Table:
    """A table as written.

    header: the columns' names. rows: number and cells of each row that is not empty; the file's first line
    is 1, as in a spreadsheet. error: what the methods raise.
    """

    path: Path
    header: tuple[str, ...]
    rows: list[tuple[int, list[str]]]
    separator: str
    error: type[MagicEditError]

    def columns(self, *names: str) -> list[str]:
        """The columns with these names in lower case, in the order of the names."""
        return [self._named[name] for name in names if name in self._named]

    @cached_property
    def _named(self) -> dict[str, str]:
        return {column.lower(): column for column in self.header}

    def cells(self, row: list[str], whole: bool = False) -> dict[str, str]:
        """Column -> cell. Raises where the row has more cells than columns or, for `whole`, fewer."""
        if any(map(str.strip, row[len(self.header) :])) or (whole and len(row) < len(self.header)):
            raise self.error(
                f"expected {len(self.header)} cells, got {len(row)}; quote cells with {self.separator!r}"
            )
        return {column: cell.strip() for column, cell in zip(self.header, row, strict=False)}

    def pointed(self, cell: str) -> str:
        """ "1,5" -> "1.5"; anything else as it is, and "1,500" between commas, which may mean 1500."""
        number = _DECIMAL_COMMA.fullmatch(cell)
        if number is None or (self.separator == "," and _THOUSANDS.fullmatch(cell)):
            return cell
        return ".".join(number.groups())

    def number(self, cells: Mapping[str, str], column: str) -> float:
        """A cell's number; NaN where it is missing, empty, or a tool's word for that, such as "-nan(ind)" or
        "FIT_FAILED". Raises where it is no number."""
        cell = cells.get(column, "")
        if _MISSING.fullmatch(cell):
            return math.nan
        pointed = self.pointed(cell)
        value = float(pointed) if _NUMBER.fullmatch(pointed) else math.nan
        if not math.isfinite(value):
            what = "a number" if math.isnan(value) and "inf" not in cell.lower() else "a finite number"
            raise self.error(f"{column}: expected {what}, got {_short(cell)}")
        return value

    def units(self, check: bool = True) -> Units | None:
        """The columns of action units of the first tool that has any; None: there are none.

        Raises where a unit has two columns and, for `check`, as `check_scale`.
        """
        tool, scale, found = _units_of(self.header)
        columns: dict[str, str] = {}
        for name, column in found:
            if name in columns:
                raise self.error(f"{shown(self.path)} has two columns for {name}; keep one")
            columns[name] = column
        if not columns:
            return None
        units = Units(tool, scale, columns)
        if check:
            self.check_scale(units, self._largest(units) if _is_doubtful(units) else 0.0)
        self._check_intensities(units)
        return units

    def check_scale(self, units: Units, largest: float) -> None:
        """Raises where the columns may be of two scales, and the table's largest value does not tell
        which."""
        scale = units.scale or INTENSITY_RANGE[1]
        if _is_doubtful(units) and 0 < largest <= 1 < scale:
            raise self.error(
                f"{shown(self.path)}: no value of its {len(units.columns)} columns of {units.tool} is above "
                f"1, so that 0-1 may be meant, not 0-{scale:g}; set --labels-scale to 1 or "
                f"{scale:g} for labels, else rename the columns to AU12 and write intensities 0 to 5"
            )

    def _check_intensities(self, units: Units) -> None:
        """Raises where py-feat's columns tell presence, as those of its support vector machines do."""
        if units.tool != "py-feat" or len(units.columns) <= _MOST_PRESENCE:
            return
        values = list(self._values(units))
        if len(values) > _MOST_PRESENCE and max(values) == 1 and set(values) <= {0.0, 1.0}:
            raise self.error(
                f"{shown(self.path)}: its {len(units.columns)} columns of py-feat hold nothing but 0 and 1, "
                "which say whether, not how much; measure with au_model='xgb'"
            )

    def _largest(self, units: Units) -> float:
        """The largest number in the units' columns, at least 0."""
        return max(self._values(units), default=0.0)

    def _values(self, units: Units) -> Iterator[float]:
        """The numbers in the units' columns; empty cells and those that are no numbers are left out."""
        for _, row in self.rows:
            cells = dict(zip(self.header, map(str.strip, row), strict=False))
            for column in units.columns.values():
                with contextlib.suppress(MagicEditError):
                    if not math.isnan(value := self.number(cells, column)):
                        yield value

    def faceless(self, cells: Mapping[str, str]) -> bool:
        """Whether the tool says that it found no face in the row."""
        return any(
            cells.get(column, "").lower() in ("false", "no") or self.number(cells, column) == 0
            for column in self.columns(*_VALIDITY)
            if cells.get(column, "").lower() not in ("true", "yes")
        )

    def face_size(self, cells: Mapping[str, str]) -> float:
        """Area or extent of the row's face from the tool's columns, else its confidence, else 0."""
        try:
            box = [self.number(cells, c) for c in self.columns("facerectwidth", "facerectheight")]
            jaw = [self.number(cells, c) for c in self.columns("x_0", "x_16")]  # OpenFace's corners, 2-D
            sure = [self.number(cells, c) for c in self.columns("confidence")]
        except MagicEditError:
            return 0.0
        size = math.prod(box) if len(box) == 2 else abs(jaw[1] - jaw[0]) if len(jaw) == 2 else sum(sure)
        return 0.0 if math.isnan(size) else size

    def intensities(self, cells: Mapping[str, str], units: Units, hint: str = "") -> dict[str, float]:
        """Action unit -> intensity 0 to 5, without empty cells; nothing where the tool found no face.

        Raises, with the hint, where a value is outside the units' scale.
        """
        if self.faceless(cells):
            return {}
        values, full = {}, INTENSITY_RANGE[1]
        for name, column in units.columns.items():
            letter = cells.get(column, "").lower().replace(" ", "")
            if letter in _LETTERS and units.tool in ("FaceReader", "AU columns"):
                values[name] = _LETTERS[letter]
                continue
            value = self.number(cells, column)
            if math.isnan(value):
                continue
            if units.scale is None and value != 0:
                raise self.error(f"columns such as {column!r} do not tell their scale{hint}")
            scale = units.scale or full
            if not -_SLACK <= value / scale <= 1 + _SLACK:
                raise self.error(
                    f"{name} = {value:g} is outside the scale 0-{scale:g} of {units.tool} files{hint}"
                )
            value = min(max(value, 0.0), scale)
            values[name] = value if scale == full else value / scale * full
        return values

    @cached_property
    def blendshapes(self) -> dict[str, str]:
        """ARKit's blendshape -> column, of those in the header."""
        return {name: self._named[name.lower()] for name in BLENDSHAPES if name.lower() in self._named}

    def scores(self, cells: Mapping[str, str]) -> dict[str, float]:
        """ARKit's blendshape -> score 0 to 1, without empty cells; nothing where the tool found no face.
        Raises for scores out of range."""
        if self.faceless(cells):
            return {}
        scores = {}
        for name, column in self.blendshapes.items():
            value = self.number(cells, column)
            if math.isnan(value):
                continue
            if not -_SLACK <= value <= 1 + _SLACK:
                raise self.error(f"{column} = {value:g} is outside the scale 0-1 of ARKit's blendshapes")
            scores[name] = min(max(value, 0.0), 1.0)
        return scores

    @property
    def time_columns(self) -> list[str]:
        """The columns that tell a row's time."""
        return [column for column in self.header if _TIME.fullmatch(column)]

    def clock(self) -> Clock:
        """How the first column of time is read: seconds, milliseconds if the header says so or is iMotions',
        "0:01:02.5", or timecodes of frames.

        A timecode does not tell its frames a second: it is the smallest usual rate above all frame numbers
        where a second ends in the table, else Live Link Face's 60. Raises without such a column.
        """
        if not self.time_columns:
            raise self.error(
                f'{shown(self.path)} needs one column called "time" (seconds), and has {_some(self.header)}'
            )
        column = self.time_columns[0]
        of_imotions = column.lower() == "timestamp" and self.columns(*_IMOTIONS_MARKS)
        clock = Clock(column, 0.001 if of_imotions or _MILLISECONDS.fullmatch(column) else 1.0)
        place = self.header.index(column)
        found = (_TIMECODE.fullmatch(row[place].strip()) for _, row in self.rows if len(row) > place)
        codes = [code.groups() for code in found if code]
        if not codes:
            return clock
        last = max(float(code[3]) for code in codes)
        above = [rate for rate in _RATES if rate > last] if len({code[:3] for code in codes}) > 1 else []
        rate = above[0] if above else _USUAL_RATE
        times = [_of_timecode(code, rate) for code in codes]
        over_midnight = max(times) - min(times) > _DAY / 2
        start = min(time for time in times if not over_midnight or time > _DAY / 2)
        return Clock(column, 1.0, rate, start)

    def seconds(self, cells: Mapping[str, str], clock: Clock) -> float:
        """The time of a row. Raises where it is missing or no time."""
        cell = cells.get(clock.column, "")
        if (code := _TIMECODE.fullmatch(cell)) and clock.rate:
            return (_of_timecode(code.groups(), clock.rate) - clock.start) % _DAY
        if time := _CLOCK.fullmatch(cell):
            hours, minutes, seconds = time.groups()
            return 3600 * int(hours or 0) + 60 * int(minutes) + float(seconds.replace(",", "."))
        value = self.number(cells, clock.column)
        if math.isnan(value):
            raise self.error(f"{clock.column}: expected a number, got {_short(cell)}")
        return value * clock.unit

    @contextlib.contextmanager
    def at(self, number: int | None = None) -> Iterator[None]:
        """Errors that are raised inside get the file in front, and the row's number."""
        line = "" if number is None else f" line {number}"
        try:
            yield
        except ValueError as error:
            raise self.error(f"{shown(self.path)}{line}: {error}") from error


def read_table(path: str | Path, error: type[MagicEditError] = MagicEditError) -> Table:
    """The table in a CSV file; an empty file has neither header nor rows.

    Raises `error` where the file cannot be read, is too large, or two columns have one name.
    """
    content = read_bytes(path, error, limit=LARGEST_TABLE)
    encoding = _encoding_of(content)
    try:
        if encoding == "utf-8-sig" and b"\0" in content:
            raise csv.Error("it has zero bytes")
        with io.TextIOWrapper(io.BytesIO(content), encoding, newline="") as text:
            separator, above = _layout(text.read(_HEAD))
            text.seek(0)
            reader = csv.reader(text, delimiter=separator, skipinitialspace=True, strict=True)
            rows, cells = [], 0
            for number, row in enumerate(reader, start=1):
                if number > above and any(map(str.strip, row)):
                    rows.append((number, row))
                    cells += len(row)
                if cells > MOST_CELLS or len(rows) > MOST_ROWS:
                    raise csv.Error(f"it has more than {MOST_CELLS:,} cells or {MOST_ROWS:,} lines; split it")
    except UnicodeError as problem:
        name = "UTF-8" if encoding == "utf-8-sig" else encoding.upper()
        line = f" in line {_bad_line(content)}" if encoding == "utf-8-sig" else ""
        raise error(
            f"{shown(path)} cannot be read as a CSV file: it is no text in {name}{line}; save it as UTF-8, "
            "in a spreadsheet by `CSV UTF-8`"
        ) from problem
    except csv.Error as problem:
        raise error(f"{shown(path)} cannot be read as a CSV file: {problem}") from problem
    header = [cell.strip() for cell in rows[0][1]] if rows else []
    if twice := [name for name, count in Counter(header).items() if name and count > 1]:
        raise error(f"{shown(path)} has two columns {_short(twice[0])}; keep one")
    return Table(Path(path), tuple(header), rows[1:], separator, error)


def _encoding_of(content: bytes) -> str:
    """By the byte order mark, else by where the zeros of a UTF-16 text without one are."""
    if content.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "utf-32"
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    head = content[:1000]
    for first, encoding in ((1, "utf-16-le"), (0, "utf-16-be")):
        if head[first::2].count(0) > 0.9 * len(head[first::2]) and not head[1 - first :: 2].count(0):
            return encoding
    return "utf-8-sig"


def _bad_line(content: bytes) -> int:
    """The line of the first byte that is no UTF-8."""
    try:
        content.decode()
    except UnicodeDecodeError as problem:
        return content.count(b"\n", 0, problem.start) + 1
    raise AssertionError("it is UTF-8")


def _layout(head: str) -> tuple[str, int]:
    """The separator of a table that begins with `head`, and the number of lines above its header.

    The header is the first line that is neither empty nor a comment; where it names no action units, a later,
    longer one that names two.
    """
    given = re.match(r'\s*"?sep=([,;\t|])"?\s*[\r\n]', head)
    best = (False, -1, ",", 0)
    for separator in given[1] if given else _SEPARATORS:
        reader = csv.reader(io.StringIO(head, ""), delimiter=separator, skipinitialspace=True)
        lines = [[cell.strip() for cell in row] for row in itertools.islice(reader, _HEAD_LINES)]
        full = [n for n, row in enumerate(lines) if any(row) and not _is_comment(row[0])]
        if not full:
            continue
        header, longest = full[0], 0
        if not (units := bool(_units_of(lines[header])[2])):
            for n in full:
                filled = sum(map(bool, lines[n]))
                if filled > longest and len(_units_of(lines[n])[2]) > 1:
                    header, units = n, True
                    break
                longest = max(longest, filled)
        candidate = (units, len(lines[header]), separator, header)
        best = max(best, candidate, key=lambda one: one[:2])
    return best[2:]


def _is_doubtful(units: Units) -> bool:
    """Whether a tool writes 0-1 under these names too."""
    bare = units.tool == "AU columns" and any(map(_PADDED.fullmatch, units.columns.values()))
    return units.tool in _DOUBTFUL or bare


def _is_comment(cell: str) -> bool:
    return re.fullmatch(r"#.+|sep=.?", cell, re.DOTALL) is not None


def _units_of(header: Sequence[str]) -> tuple[str, float | None, list[tuple[str, str]]]:
    """The tool that wrote a header, its scale, and (action unit, column) in order; none for other tables."""
    lower = {column.lower() for column in header}
    for tool, pattern, scale in _TOOLS:
        matches = ((pattern.fullmatch(column), column) for column in header)
        found = [(f"AU{''.join(match.groups()).upper()}", column) for match, column in matches if match]
        if found and tool == "py-feat":
            padded = any(_PADDED.fullmatch(column) for _, column in found)
            marked = any(marks <= lower for marks in _PY_FEAT_MARKS) or (padded and lower >= _EMOTIONS)
            if not marked:
                return "AU columns", None, found
        if found:
            return tool, scale, found
    plain = ((re.sub(r"[\s_-]", "", column.lower()), column) for column in header)
    found = [(_AFFDEX[name], column) for name, column in plain if name in _AFFDEX]
    return ("Affdex", 100.0, found) if len(found) > 1 or lower & _AFFDEX_MARKS else ("", None, [])


def _of_timecode(parts: Sequence[str], rate: int) -> float:
    hours, minutes, seconds, frames = map(float, parts)
    return 3600 * hours + 60 * minutes + seconds + frames / rate


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(shown, names[:8])) + (", ..." if len(names) > 8 else "")


def _short(text: str) -> str:
    return repr(text if len(text) <= 50 else f"{text[:40]}...")
