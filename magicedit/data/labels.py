"""Action-unit labels from the files of other tools, converted to names AU1..AU45 and intensities 0 to 5.

`magicedit.tables` lists the tools and their columns.
"""

import math
import operator
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from magicedit.errors import DatasetError
from magicedit.files import shown, walk
from magicedit.imaging import PHOTO_SUFFIXES
from magicedit.tables import Table, Units, read_table
from magicedit.vocabulary import INTENSITY_RANGE

_NAME_COLUMNS = ("input", "filename", "file", "file_name", "image", "image_path", "path", "name")
_HINT = "; set --labels-scale to the file's number for full intensity, such as 1 or 5"


@dataclass(frozen=True)
class LabelFile:
    """Content of a label file.

    tool: as of `tables.Units`. scale: the number that the file writes for full intensity. intensities: by
    photograph name, then by action unit, rescaled to 0..5.
    """

    tool: str
    scale: float
    intensities: dict[str, dict[str, float]]


def read_labels(path: str | Path, scale: float | None = None) -> dict[str, dict[str, float]]:
    """Reads a CSV file, or a folder of CSV files, of a tool that `magicedit.tables` lists.

    The photograph's name is taken from a column such as `input` or `filename`; a file without one describes
    one photograph and carries its name (`001/neutral.csv`), as OpenFace and LibreFace write it. Where a
    photograph has several rows (faces), the row of the largest face counts. Rows without a face or without a
    name are left out.

    Args:
        scale: the number for full intensity in the file, such as 1 or 5; needed if the header does not state
            it, and overrides the header otherwise.

    Returns: photograph name or path, as written in the file, to {"AU12": intensity 0..5}.
    Raises: DatasetError for a missing or malformed file, an unknown scale, or values outside it.
    """
    return read_label_file(path, scale).intensities


def read_label_file(path: str | Path, scale: float | None = None) -> LabelFile:
    """Like `read_labels`, but also returns the detected tool and scale."""
    path = Path(path)
    if scale is not None and not (math.isfinite(scale) and scale > 0):
        raise DatasetError(f"--labels-scale must be a number above 0 (full intensity, e.g. 5), got {scale!r}")
    if not os.path.isdir(path):  # unlike Path.is_dir, False for a name that is too long
        return _checked([_read_csv(path, path.stem, scale)], scale)

    def unreadable(error: OSError) -> None:
        raise DatasetError(
            f"{shown(error.filename)} cannot be read ({error.strerror}); check its permissions"
        )

    everything = walk(path, lambda _: False, unreadable)
    files = sorted(file for file in everything if file.suffix.lower() in (".csv", ".tsv"))
    if not files:
        raise DatasetError(f"expected CSV files in the labels folder {shown(path)}, found none")
    parts = [_read_csv(file, file.relative_to(path).with_suffix("").as_posix(), scale) for file in files]
    if len({(part.tool, part.scale) for _, _, part in parts}) > 1:
        tools = " and ".join(sorted({f"{part.tool} (0-{part.scale:g})" for _, _, part in parts}))
        raise DatasetError(f"{shown(path)} mixes label files of {tools}; keep those of one tool")
    return _checked(parts, scale)


def _checked(parts: Sequence[tuple[Table, Units, LabelFile]], scale: float | None) -> LabelFile:
    """Joins files of one tool; raises as `Table.check_scale` where none of them shows the scale."""
    table, units, first = parts[0]
    merged = {name: aus for _, _, part in parts for name, aus in part.intensities.items()}
    if scale is None:
        largest = max((value for aus in merged.values() for value in aus.values()), default=0.0)
        table.check_scale(units, largest * first.scale / INTENSITY_RANGE[1])
    return LabelFile(first.tool, first.scale, merged)


def match_labels(names: Iterable[str], sources: Iterable[str]) -> dict[str, str]:
    """Assigns labels to photographs: {source: label name}.

    A label matches if its path ends with the photograph's relative path or vice versa, without file
    extensions; else by the filename's stem, if that is unique among labels and photographs. Sources without a
    label are absent from the result.

    Raises: DatasetError where a label matches several photographs, or several labels match one.
    """
    sources, names = sorted(sources), sorted(names)
    by_stem: dict[str, list[str]] = defaultdict(list)
    for source in sources:
        by_stem[_stem(source)].append(source)
    labels_of: dict[str, list[str]] = defaultdict(list)
    stems: dict[str, list[str]] = defaultdict(list)
    for name in names:
        parts = _parts(name)
        same_stem = by_stem.get(_stem(name), [])
        found = [s for s in same_stem if all(map(operator.eq, parts[::-1], _parts(s)[::-1]))]
        if len(found) > 1:
            raise DatasetError(
                f"the label {name!r} could be of {len(found)} photographs ({', '.join(found[:3])}...); "
                "name photographs in the label file by their path relative to the folder"
            )
        for source in found:
            labels_of[source].append(name)
        if not found:
            stems[_stem(name)].append(name)
    matched = {}
    for source, candidates in labels_of.items():
        if len(candidates) > 1:
            raise DatasetError(
                f"{source!r} has {len(candidates)} labels, {', '.join(candidates[:3])}; keep one"
            )
        matched[source] = candidates[0]
    for stem, candidates in stems.items():
        if len(candidates) == 1 and len(by_stem.get(stem, [])) == 1 and by_stem[stem][0] not in matched:
            matched[by_stem[stem][0]] = candidates[0]
    return matched


def _parts(name: str) -> tuple[str, ...]:
    # A Mac writes the names of files decomposed
    path = PurePosixPath(unicodedata.normalize("NFC", name.replace("\\", "/")))
    return (path.with_suffix("") if path.suffix.lower() in PHOTO_SUFFIXES else path).parts


def _stem(name: str) -> str:
    """The last part of a name; empty for "." and the like, which name no photograph."""
    return (_parts(name) or ("",))[-1]


def _read_csv(path: Path, name: str, scale: float | None) -> tuple[Table, Units, LabelFile]:
    table = read_table(path, DatasetError)
    units = _units(table, scale)
    named = table.columns(*_NAME_COLUMNS)[:1]
    best: dict[str, tuple[float, dict[str, float]]] = {}
    for number, row in table.rows:
        with table.at(number):
            cells = table.cells(row, whole=True)
            values = table.intensities(cells, units, _HINT)
        if len(values) < len(units.columns):
            continue  # no face was found there
        key = cells[named[0]] if named else name
        if not _stem(key):
            continue
        size = table.face_size(cells)
        if not named and key in best and (table.columns("frame") or table.time_columns):
            raise DatasetError(
                f"{shown(path)} holds frames of a video and no photograph names; expected a column "
                f"{' or '.join(_NAME_COLUMNS[:2])}, or one CSV file per photograph"
            )
        if key not in best or size > best[key][0]:
            best[key] = size, values
    intensities = {key: aus for key, (_, aus) in best.items()}
    return table, units, LabelFile(units.tool, units.scale or INTENSITY_RANGE[1], intensities)


def _units(table: Table, scale: float | None) -> Units:
    """Returns the columns of whole action units, on the given scale or the tool's own."""
    if not table.header:
        raise DatasetError(
            f"the label file {shown(table.path)} is empty; expected CSV of OpenFace, py-feat or LibreFace"
        )
    units = table.units(check=False)  # of all files together, see _checked
    whole = {name: column for name, column in units.columns.items() if name[-1].isdigit()} if units else {}
    if not whole:
        presence = [c for c in table.header if re.fullmatch(r"AU\d+_c|au_\d+", c, re.IGNORECASE)]
        what = f"presence only ({', '.join(presence[:3])}...)" if presence else "no action-unit columns"
        raise DatasetError(
            f"{shown(table.path)} has {what}; intensity columns are needed: AU12_r (OpenFace), AU12 "
            "(py-feat), au_12_intensity (LibreFace), Action Unit 12 - ... (FaceReader), or Smile, Brow "
            f"Furrow, ... (Affdex); its columns are {', '.join(map(shown, table.header[:8]))}"
        )
    return replace(units, scale=scale or units.scale, columns=whole)
