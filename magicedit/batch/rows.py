"""The rows of a batch, one an edit: from the photographs of a folder, or from a manifest.

Rows are validated before a model loads.
"""

import dataclasses
import difflib
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from magicedit.action_units import FACS
from magicedit.errors import ActionUnitError, ImageError, MagicEditError, OutputError
from magicedit.expression import Expression
from magicedit.files import named, shown, walk
from magicedit.imaging import PHOTO_SUFFIXES, WRITTEN_SUFFIXES, check_output
from magicedit.ledger import JOURNAL
from magicedit.request import EditRequest, face_number
from magicedit.tables import read_table

# Photographs that are not read: they fail with the reason instead of being passed over
UNREAD_SUFFIXES = frozenset(
    f".{kind}"
    for kind in (
        *("jp2", "j2k", "jpf", "jpx", "jxl", "jxr", "heics", "heifs", "avifs", "jps", "tga", "psd"),
        *("dng", "raw", "arw", "cr2", "cr3", "crw", "erf", "kdc", "nef", "nrw", "orf", "pef", "raf"),
        *("rw2", "sr2", "srw", "x3f"),
    )
)
FORMATS = {"png": ".png", "jpg": ".jpg", "webp": ".webp", "tif": ".tif"}
MOST_PROBLEMS = 5  # of a manifest that one message names
LONGEST_PROBLEM = 300  # characters of one of them
MOST_DIGITS = 18  # of a whole number


@dataclass(frozen=True)
class Row:
    """One edit.

    Attributes:
        number: in a manifest the spreadsheet row (the header is 1); in a folder counted from 1.
        photo: relative to the folder of photographs.
        output: relative to the output folder.
        request: the request of this edit.
        problem: why it fails, where that is known without trying.
    """

    number: int
    photo: Path
    output: Path
    request: EditRequest
    problem: str | None = None


def photographs_below(folder: Path, leave_out: Path) -> dict[Path, str | None]:
    """Returns the photographs in a folder and its sub-folders by file extension, as sorted paths in it, and
    why one cannot be read, else None; sub-folders that cannot be listed are among them.

    Hidden files, files below `leave_out` and results in sub-folders with a journal are excluded. Raises
    ImageError where there are none.
    """
    found: dict[Path, str | None] = {}

    def unreadable(error: OSError) -> None:
        found[Path(error.filename).relative_to(folder)] = f"the folder cannot be read: {error.strerror}"

    own = os.path.realpath(leave_out)
    for path in walk(
        folder, lambda sub: os.path.realpath(sub) == own or os.path.exists(sub / JOURNAL), unreadable
    ):
        suffix = path.suffix.lower()
        if suffix in PHOTO_SUFFIXES:
            found[path.relative_to(folder)] = None
        elif suffix in UNREAD_SUFFIXES:
            found[path.relative_to(folder)] = f"{suffix} files are not read; convert it to JPEG, PNG or TIFF"
    if not found:
        raise ImageError(
            f"{shown(folder)} holds no photographs; expected files ending in "
            f"{' '.join(sorted(PHOTO_SUFFIXES))}, not in sub-folders of earlier results (with {JOURNAL})"
        )
    return dict(sorted(found.items()))


def output_of(photo: Path, format: str | None) -> Path:
    """Returns the same path, with another extension if `format` says so or it cannot be written."""
    if format is not None:
        return photo.with_suffix(FORMATS[format])
    return photo if photo.suffix.lower() in WRITTEN_SUFFIXES else photo.with_suffix(".png")


def rows_of_folder(folder: Path, output: Path, request: EditRequest, format: str | None) -> list[Row]:
    """Returns one edit for every photograph."""
    photos = photographs_below(folder, output)
    rows = [
        Row(number, photo, output_of(photo, format), request, problem)
        for number, (photo, problem) in enumerate(photos.items(), start=1)
    ]
    _check_outputs([row for row in rows if row.problem is None], output, lambda row: shown(row.photo))
    return rows


def rows_of_photographs(
    photos: Sequence[str | Path], folder: Path, output: Path, request: EditRequest, format: str | None
) -> list[Row]:
    """Returns one edit for each of some photographs, which are in `folder` or below."""
    rows = []
    for number, photo in enumerate(photos, start=1):
        name = Path(os.path.relpath(os.path.abspath(photo), folder))
        rows.append(Row(number, name, output_of(Path(name.name), format), request))
    _check_outputs(rows, output, lambda row: shown(row.photo))
    return rows


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise MagicEditError(f"expected a number, such as 1.5, got {shown(text)!r}") from None


def _whole(text: str) -> int:
    """Reads a whole number, also as "1.0", which pandas writes of columns with empty cells."""
    if not _WHOLE.fullmatch(text) or len(text) > MOST_DIGITS:
        raise MagicEditError(f"expected a whole number, got {shown(text)!r}")
    return int(text.partition(".")[0])


def _yes(text: str) -> bool:
    answers = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}
    if text.lower() not in answers:
        raise MagicEditError(f"expected yes or no, got {shown(text)!r}")
    return answers[text.lower()]


def _units(text: str) -> str:
    """Lets cells of comma-separated tables use another separator between units."""
    return text.replace(";", ",").replace("\n", ",")


def _face(text: str) -> str | int:
    if _WHOLE.fullmatch(text):
        return face_number(f"{_whole(text)}")
    if text.lower() not in ("all", "largest"):
        raise MagicEditError(f"expected all, largest or a number from 1, got {shown(text)!r}")
    return text.lower()


_WHOLE = re.compile(r"[0-9]+(\.0*)?")
# column -> field of an EditRequest, and how its cells are read
COLUMNS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "au": ("add", _units),
    "set": ("set", _units),
    "emotion": ("emotion", str),
    "expression": ("expression", str),  # a file, relative to the manifest
    "strength": ("strength", _number),
    "neutral": ("neutral", _yes),
    "face": ("face", _face),
    "target_tolerance": ("tolerance", _number),
    "max_edits": ("max_edits", _whole),
    "steps": ("steps", _whole),
    "guidance": ("guidance", _number),
    "quality": ("quality", str),
    "noise_level": ("noise_level", _number),
    "seed": ("seed", _whole),
}
_PLACES = ("photo", "output")


def rows_of_manifest(
    manifest: Path,
    output: Path,
    request: EditRequest,
    format: str | None,
    names: Sequence[str] | None,
    folder: Path = Path(),
) -> list[Row]:
    """Reads the rows of a CSV file, see docs/batch.md.

    Args:
        request: defaults of empty cells and missing columns.
        names: units that the model can edit, as in `EditRequest.check`.
        folder: of the photographs, whose names may be written otherwise than in the manifest, see
            `files.named`.

    Raises:
        MagicEditError: naming rows and columns, where the file or any row is unusable.
    """
    table = read_table(manifest)
    if not table.header:
        raise MagicEditError(f"{shown(manifest)} is empty; its first row names the columns, such as photo,au")
    with table.at():
        columns = {column: _column(column) for column in table.header}
    written = shown(", ".join(table.header))
    if len(set(columns.values())) < len(table.header):
        raise MagicEditError(f"{shown(manifest)} has two columns for one thing: {written}")
    if "photo" not in columns.values():
        raise MagicEditError(f"{shown(manifest)} has no column `photo`; its first row is {written}")
    if not table.rows:
        raise MagicEditError(f"{shown(manifest)} has no rows below its header")

    rows, problems, expressions = [], [], {}
    for number, row in table.rows:
        try:
            values = {columns[c]: cell for c, cell in table.cells(row).items() if cell}
            values = {c: v if c in _PLACES else table.pointed(v) for c, v in values.items()}
            rows.append(_row(number, values, request, format, folder, manifest.parent, expressions))
            rows[-1].request.check(names)
        except MagicEditError as error:
            text = f"row {number}: {error}"
            problems.append(text if len(text) <= LONGEST_PROBLEM else f"{text[: LONGEST_PROBLEM - 3]}...")
    if problems:
        more = len(problems) - MOST_PROBLEMS
        some = "; ".join(problems[:MOST_PROBLEMS])
        raise MagicEditError(f"{shown(manifest)}: {some}" + (f"; and {more} more rows" if more > 0 else ""))
    try:
        _check_outputs(rows, output, lambda row: f"row {row.number}")
    except OutputError as error:
        raise OutputError(f"{shown(manifest)}: {error}") from error
    return rows


def _column(name: str) -> str:
    """Returns the column of a header: one of _PLACES or COLUMNS, or the canonical name of an action unit."""
    written = name.lower().replace("-", "_").replace(" ", "_")
    known = (*_PLACES, *COLUMNS)
    if written in known:
        return written
    try:
        return FACS.spelled(name)
    except ActionUnitError:
        near = difflib.get_close_matches(written, known, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        if re.match(r"au_*\d", written):
            hint = "write action units into the column au, as AU12=+3. "
        raise MagicEditError(
            f"unknown column {shown(name)!r}; {hint}Known: {', '.join(known)}, and action units (AU12, AU12L)"
        ) from None


def _row(
    number: int,
    values: Mapping[str, str],
    request: EditRequest,
    format: str | None,
    folder: Path,
    beside: Path,
    expressions: dict[str, Expression],
) -> Row:
    """Builds one row of a manifest from its non-empty cells, by column."""
    if "photo" not in values:
        raise MagicEditError("names no photo")
    _check_inside(values["photo"], "photo", "the folder of photographs")
    photo = named(folder, values["photo"])
    target = output_of(photo, format)
    if "output" in values:
        _check_inside(values["output"], "output", "the output folder")
        target = Path(values["output"].replace("\\", "/"))

    changes: dict[str, Any] = {}
    for column, (field, read) in COLUMNS.items():
        if column in values:
            try:
                changes[field] = read(values[column])
            except MagicEditError as error:
                raise MagicEditError(f"column {column}: {error}") from error
    if (file := changes.get("expression")) is not None:
        if file not in expressions:
            expressions[file] = Expression.read(str(beside / named(beside, file)))
        changes["expression"] = expressions[file]
    if units := {n: text for n, text in values.items() if n not in COLUMNS and n not in _PLACES}:
        numbers = FACS.deltas(units)  # a cell holds one number, not further units
        written = [f"{name}={number}" for name, number in numbers.items()]
        changes["add"] = ",".join([*([changes["add"]] if "add" in changes else []), *written])
    return Row(number, photo, target, dataclasses.replace(request, **changes))


def _check_inside(text: str, column: str, whole: str) -> None:
    """Raises MagicEditError for a path that does not stay inside the folder it is relative to."""
    path = PurePosixPath(text.replace("\\", "/"))
    leaves = path.is_absolute() or PureWindowsPath(text).is_absolute() or ".." in path.parts
    if leaves or not path.parts or "\0" in text:
        raise MagicEditError(f"column {column}: expected a path inside {whole}, got {shown(text)!r}")


def check_folders(folder: Path, output: Path) -> None:
    """Raises MagicEditError unless results of `folder` may be written to `output`, which may be missing."""
    if not os.path.isdir(folder):
        raise ImageError(f"{shown(folder)} is not a folder of photographs")
    if os.path.lexists(output) and not os.path.isdir(output):
        raise OutputError(f"{shown(folder)} is a folder, so -o names one too, and {shown(output)} is a file")
    if os.path.realpath(output) == os.path.realpath(folder):
        raise OutputError(
            f"{shown(output)} holds the photographs; give another folder, results never replace photographs"
        )


def _check_outputs(rows: Sequence[Row], output: Path, name: Callable[[Row], str]) -> None:
    """Raises OutputError where two rows share an output, or an output cannot be a picture.

    Case is ignored: many file systems ignore it, and results may be copied to one.
    """
    first: dict[Path, Row] = {}
    for row in rows:
        if row.output.suffix.lower() not in WRITTEN_SUFFIXES:
            check_output(output / row.output)  # says why
        other = first.setdefault(_folded(row.output), row)
        if other is not row:
            cases = (
                "" if other.output == row.output else f" ({shown(other.output)} where case does not count)"
            )
            raise OutputError(
                f"{name(other)} and {name(row)} would both be written to {shown(row.output)}{cases}; give "
                "each an output of its own (the column `output` of a manifest)"
            )
    for row in rows:
        for parent in _folded(row.output).parents:
            if parent in first:
                raise OutputError(
                    f"{name(first[parent])} would be written to {shown(first[parent].output)}, which is a "
                    f"folder for {name(row)}, to {shown(row.output)}; give one of them another output"
                )


def _folded(path: Path) -> Path:
    return Path(str(path).casefold())


def check_targets(rows: Iterable[Row], folder: Path, output: Path) -> None:
    """Raises OutputError where a link leads a result out of the output folder or onto a photograph.

    output: exists.
    """
    home, source = (Path(os.path.realpath(path)) for path in (output, folder))
    beside = not home.is_relative_to(source)
    rows = list(rows)
    photos = {identity for row in rows if (identity := _identity(folder / row.photo)) is not None}
    first: dict[Path, Path] = {}
    for row in rows:
        target = Path(os.path.realpath(output / row.output))
        if first.setdefault(target, row.output) != row.output:
            raise OutputError(
                f"{shown(first[target])} and {shown(row.output)} are the same file in {shown(output)}, "
                "because of a link; remove it"
            )
        if not target.is_relative_to(home):
            raise OutputError(
                f"{shown(output / row.output)} leads out of {shown(output)}, to {shown(target)}; remove "
                "that link"
            )
        if (beside and target.is_relative_to(source)) or _identity(target) in photos:
            raise OutputError(
                f"{shown(output / row.output)} is a photograph of this batch; choose another output folder"
            )


def _identity(path: Path) -> tuple[int, int] | None:
    """Returns the identity of the file behind a path, independent of its name; None if there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
