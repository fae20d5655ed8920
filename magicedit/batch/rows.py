"""The rows of a batch, one an edit: from the photographs of a folder, or from a manifest.

Rows are validated before a model loads.
"""

import dataclasses
import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from magicedit.action_units import FACS, canonical_name
from magicedit.errors import ActionUnitError, ImageError, MagicEditError, OutputError
from magicedit.expression import Expression
from magicedit.files import walk
from magicedit.imaging import check_output
from magicedit.request import EditRequest
from magicedit.tables import read_table

# A file in the output folder with a line when an edit begins or ends. The "state" of an output's last line is
# "begun" (the existing output may be older), "done" or "failed".
JOURNAL = "edits.jsonl"
# Unsupported formats are not silently skipped: they fail with the reason.
PHOTO_SUFFIXES = frozenset(
    f".{kind}"
    for kind in "jpg jpeg jfif png webp bmp tif tiff gif ppm pgm avif heic".split()  # noqa: SIM905
)
FORMATS = {"png": ".png", "jpg": ".jpg", "webp": ".webp", "tif": ".tif"}
_WRITTEN = frozenset({".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff"})
MOST_PROBLEMS = 5  # of a manifest that one message names


@dataclass(frozen=True)
class Row:
    """One edit.

    Attributes:
        number: in a manifest the spreadsheet row (the header is 1); in a folder counted from 1.
        photo: relative to the folder of photographs.
        output: relative to the output folder.
        request: the request of this edit.
    """

    number: int
    photo: Path
    output: Path
    request: EditRequest


def photographs_below(folder: Path, leave_out: Path) -> list[Path]:
    """Returns the photographs in a folder and its sub-folders by file extension, as sorted relative paths.

    Hidden files, files below `leave_out` and results in sub-folders with a journal are excluded. Raises
    ImageError where there are none.
    """
    found = [
        path.relative_to(folder)
        for path in walk(folder, lambda sub: sub.resolve() == leave_out or (sub / JOURNAL).exists())
        if path.suffix.lower() in PHOTO_SUFFIXES
    ]
    if not found:
        raise ImageError(
            f"{folder} holds no photographs; expected files ending in {' '.join(sorted(PHOTO_SUFFIXES))}, "
            f"not in sub-folders of earlier results (with {JOURNAL})"
        )
    return sorted(found)


def output_of(photo: Path, format: str | None) -> Path:
    """Returns the same path, with another extension if `format` says so or it cannot be written."""
    if format is not None:
        return photo.with_suffix(FORMATS[format])
    return photo if photo.suffix.lower() in _WRITTEN else photo.with_suffix(".png")


def rows_of_folder(folder: Path, output: Path, request: EditRequest, format: str | None) -> list[Row]:
    """Returns one edit for every photograph."""
    photos = photographs_below(folder, output.resolve())
    rows = [
        Row(number, photo, output_of(photo, format), request) for number, photo in enumerate(photos, start=1)
    ]
    _check_outputs(rows, output, lambda row: str(row.photo))
    return rows


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise MagicEditError(f"expected a number, such as 1.5, got {text!r}") from None


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise MagicEditError(f"expected a whole number, got {text!r}")
    return int(text)


def _yes(text: str) -> bool:
    answers = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}
    if text.lower() not in answers:
        raise MagicEditError(f"expected yes or no, got {text!r}")
    return answers[text.lower()]


def _units(text: str) -> str:
    """Lets cells of comma-separated tables use another separator between units."""
    return text.replace(";", ",").replace("\n", ",")


# column -> field of an EditRequest, and how its cells are read
COLUMNS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "au": ("add", _units),
    "set": ("set", _units),
    "emotion": ("emotion", str),
    "expression": ("expression", str),  # a file, relative to the manifest
    "strength": ("strength", _number),
    "neutral": ("neutral", _yes),
    "face": ("face", lambda text: int(text) if text.isdecimal() else text.lower()),
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
    manifest: Path, output: Path, request: EditRequest, format: str | None, names: Sequence[str] | None
) -> list[Row]:
    """Reads the rows of a CSV file, see docs/batch.md.

    Args:
        request: defaults of empty cells and missing columns.
        names: units that the model can edit, as in `EditRequest.check`.

    Raises:
        MagicEditError: naming rows and columns, where the file or any row is unusable.
    """
    table = read_table(manifest)
    if not table.header:
        raise MagicEditError(f"{manifest} is empty; its first row names the columns, such as photo,au")
    with table.at():
        columns = {column: _column(column) for column in table.header}
    written = ", ".join(table.header)
    if len(set(columns.values())) < len(table.header):
        raise MagicEditError(f"{manifest} has two columns for one thing: {written}")
    if "photo" not in columns.values():
        raise MagicEditError(f"{manifest} has no column `photo`; its first row is {written}")
    if not table.rows:
        raise MagicEditError(f"{manifest} has no rows below its header")

    rows, problems, expressions = [], [], {}
    for number, row in table.rows:
        try:
            values = {columns[c]: cell for c, cell in table.cells(row).items() if cell}
            values = {c: v if c in _PLACES else table.pointed(v) for c, v in values.items()}
            rows.append(_row(number, values, request, format, manifest.parent, expressions))
            rows[-1].request.check(names)
        except MagicEditError as error:
            problems.append(f"row {number}: {error}")
    if problems:
        more = len(problems) - MOST_PROBLEMS
        shown = "; ".join(problems[:MOST_PROBLEMS])
        raise MagicEditError(f"{manifest}: {shown}" + (f"; and {more} more rows" if more > 0 else ""))
    try:
        _check_outputs(rows, output, lambda row: f"row {row.number}")
    except OutputError as error:
        raise OutputError(f"{manifest}: {error}") from error
    return rows


def _column(name: str) -> str:
    """Returns the column of a header: one of _PLACES or COLUMNS, or the canonical name of an action unit."""
    written = name.lower().replace("-", "_").replace(" ", "_")
    known = (*_PLACES, *COLUMNS)
    if written in known:
        return written
    try:
        return canonical_name(name)
    except ActionUnitError:
        near = difflib.get_close_matches(written, known, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise MagicEditError(
            f"unknown column {name!r}; {hint}Known: {', '.join(known)}, and action units (AU12, AU12L)"
        ) from None


def _row(
    number: int,
    values: Mapping[str, str],
    request: EditRequest,
    format: str | None,
    beside: Path,
    expressions: dict[str, Expression],
) -> Row:
    """Builds one row of a manifest from its non-empty cells, by column."""
    if "photo" not in values:
        raise MagicEditError("names no photo")
    photo = _inside(values["photo"], "photo", "the folder of photographs")
    target = output_of(photo, format)
    if "output" in values:
        target = _inside(values["output"], "output", "the output folder")

    changes: dict[str, Any] = {}
    for column, (field, read) in COLUMNS.items():
        if column in values:
            try:
                changes[field] = read(values[column])
            except MagicEditError as error:
                raise MagicEditError(f"column {column}: {error}") from error
    if (file := changes.get("expression")) is not None:
        if file not in expressions:
            expressions[file] = Expression.read(str(beside / file))
        changes["expression"] = expressions[file]
    if units := {n: text for n, text in values.items() if n not in COLUMNS and n not in _PLACES}:
        numbers = FACS.deltas(units)  # a cell holds one number, not further units
        written = [f"{name}={number}" for name, number in numbers.items()]
        changes["add"] = ",".join([*([changes["add"]] if "add" in changes else []), *written])
    return Row(number, photo, target, dataclasses.replace(request, **changes))


def _inside(text: str, column: str, whole: str) -> Path:
    """Returns a path that stays inside the folder it is relative to."""
    path = Path(text)
    if path.is_absolute() or ".." in path.parts or path == Path():
        raise MagicEditError(f"column {column}: expected a path inside {whole}, got {text!r}")
    return path


def check_folders(folder: Path, output: Path) -> None:
    """Raises MagicEditError unless results of `folder` may be written to `output`, which may be missing."""
    if not folder.is_dir():
        raise ImageError(f"{folder} is not a folder of photographs")
    if output.exists() and not output.is_dir():
        raise OutputError(f"{folder} is a folder, so -o names one too, and {output} is a file")
    if output.resolve() == folder.resolve():
        raise OutputError(
            f"{output} holds the photographs; give another folder, results never replace photographs"
        )


def _check_outputs(rows: Sequence[Row], output: Path, name: Callable[[Row], str]) -> None:
    """Raises OutputError where two rows share an output, or an output cannot be a picture.

    Case is ignored: many file systems ignore it, and results may be copied to one.
    """
    first: dict[Path, Row] = {}
    for row in rows:
        if row.output.suffix.lower() not in _WRITTEN:
            check_output(output / row.output)  # says why
        other = first.setdefault(_folded(row.output), row)
        if other is not row:
            cases = "" if other.output == row.output else f" ({other.output} where case does not count)"
            raise OutputError(
                f"{name(other)} and {name(row)} would both be written to {row.output}{cases}; give each an "
                "output of its own (the column `output` of a manifest)"
            )
    for row in rows:
        for parent in _folded(row.output).parents:
            if parent in first:
                raise OutputError(
                    f"{name(first[parent])} would be written to {first[parent].output}, which is a folder "
                    f"for {name(row)}, to {row.output}; give one of them another output"
                )


def _folded(path: Path) -> Path:
    return Path(str(path).casefold())


def check_targets(rows: Iterable[Row], folder: Path, output: Path) -> None:
    """Raises OutputError where a link leads a result out of the output folder or onto a photograph.

    output: exists.
    """
    home, source = output.resolve(), folder.resolve()
    beside = not home.is_relative_to(source)
    rows = list(rows)
    photos = {identity for row in rows if (identity := _identity(folder / row.photo)) is not None}
    first: dict[Path, Path] = {}
    for row in rows:
        target = (output / row.output).resolve()
        if first.setdefault(target, row.output) != row.output:
            raise OutputError(
                f"{first[target]} and {row.output} are one file in {output}, by a link there; remove it"
            )
        if not target.is_relative_to(home):
            raise OutputError(f"{output / row.output} leads out of {output}, to {target}; remove that link")
        if (beside and target.is_relative_to(source)) or _identity(target) in photos:
            raise OutputError(
                f"{output / row.output} is a photograph of this batch; choose another output folder"
            )


def _identity(path: Path) -> tuple[int, int] | None:
    """Returns the identity of the file behind a path, independent of its name; None if there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
