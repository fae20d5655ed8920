"""Action-unit labels from the files of other tools, brought to names AU1..AU45 and intensities 0 to 5.

| tool | intensity columns | scale |
|---|---|---|
| OpenFace 2 | `AU12_r` (headers carry a leading space; rows with `success` 0 hold no face) | 0-5 |
| py-feat | `AU12` beside `FaceRectX`, `FaceScore` | 0-1 |
| LibreFace | `au_12_intensity` | 0-5 |

Presence columns (OpenFace's `_c`, LibreFace's `au_12`) say whether, not how much, and are not read.
"""

import csv
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from magicedit.errors import DatasetError

_TOOLS = (  # name, its intensity columns, its scale
    ("OpenFace", re.compile(r"AU(\d+)_r", re.IGNORECASE), 5.0),
    ("LibreFace", re.compile(r"au_(\d+)_intensity", re.IGNORECASE), 5.0),
    ("py-feat", re.compile(r"AU(\d+)", re.IGNORECASE), 1.0),
)
_PY_FEAT_MARKS = {"facerectx", "facescore"}
_NAME_COLUMNS = ("input", "filename", "file", "file_name", "image", "image_path", "path", "name")
PHOTO_SUFFIXES = tuple(
    f".{kind}" for kind in ("jpg", "jpeg", "jfif", "png", "webp", "bmp", "tif", "tiff", "gif", "avif", "heic")
)
_SLACK = 1e-3  # of the scale: regressors write 5.0003; anything further out means another scale


@dataclass(frozen=True)
class LabelFile:
    """What a label file holds.

    tool: "OpenFace", "py-feat", "LibreFace" or "AU columns". scale: the number that the file writes for full
    intensity. intensities: by photograph name, then by action unit, rescaled to 0..5.
    """

    tool: str
    scale: float
    intensities: dict[str, dict[str, float]]


def read_labels(path: str | Path, scale: float | None = None) -> dict[str, dict[str, float]]:
    """Read a CSV file, or a folder of CSV files, of OpenFace 2, py-feat or LibreFace.

    The photograph's name is taken from a column such as `input` or `filename`; a file without one describes
    one photograph and carries its name (`001/neutral.csv`), as OpenFace and LibreFace write it. Where a
    photograph has several rows (faces), the row of the largest face counts.

    Args:
        scale: the number that the file writes for full intensity, such as 1 or 5; needed where the header
            does not tell it, and stronger than the header where it does.

    Returns: photograph name or path, as written in the file, to {"AU12": intensity 0..5}.
    Raises: DatasetError for a missing or malformed file, a scale that cannot be told, values outside it.
    """
    return read_label_file(path, scale).intensities


def read_label_file(path: str | Path, scale: float | None = None) -> LabelFile:
    """As `read_labels`, with the tool and the scale that were found."""
    path = Path(path)
    if scale is not None and not (math.isfinite(scale) and scale > 0):
        raise DatasetError(f"--labels-scale must be a number above 0 (full intensity, e.g. 5), got {scale!r}")
    if path.is_dir():
        files = sorted(path.rglob("*.csv"))
        if not files:
            raise DatasetError(f"expected CSV files in the labels folder {path}, found none")
        parts = [_read_csv(file, file.relative_to(path).with_suffix("").as_posix(), scale) for file in files]
        if len({(part.tool, part.scale) for part in parts}) > 1:
            tools = sorted({f"{part.tool} (0-{part.scale:g})" for part in parts})
            raise DatasetError(f"{path} mixes label files of {' and '.join(tools)}; keep those of one tool")
        merged = {name: aus for part in parts for name, aus in part.intensities.items()}
        return LabelFile(parts[0].tool, parts[0].scale, merged)
    return _read_csv(path, path.stem, scale)


def match_labels(names: Iterable[str], sources: Iterable[str]) -> dict[str, str]:
    """Which label belongs to which photograph: {source: label name}.

    A label matches where its path ends with the photograph's relative path or the other way round, file
    extensions aside; else by the filename's stem, if that is unique among labels and photographs. Sources
    without a label are absent from the result.

    Raises: DatasetError where a label could be of several photographs, or several labels are of one.
    """
    sources, names = sorted(sources), sorted(names)
    by_stem: dict[str, list[str]] = defaultdict(list)
    for source in sources:
        by_stem[_parts(source)[-1]].append(source)
    labels_of: dict[str, list[str]] = defaultdict(list)
    stems: dict[str, list[str]] = defaultdict(list)
    for name in names:
        parts = _parts(name)
        same_stem = by_stem.get(parts[-1], [])
        found = [source for source in same_stem if _is_tail(parts, _parts(source))]
        if len(found) > 1:
            raise DatasetError(
                f"the label {name!r} could be of {len(found)} photographs ({', '.join(found[:3])}...); "
                "name photographs in the label file by their path relative to the folder"
            )
        for source in found:
            labels_of[source].append(name)
        if not found:
            stems[parts[-1]].append(name)
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
    path = PurePosixPath(name.replace("\\", "/"))
    return (path.with_suffix("") if path.suffix.lower() in PHOTO_SUFFIXES else path).parts


def _is_tail(a: tuple[str, ...], b: tuple[str, ...]) -> bool:
    shorter = min(len(a), len(b))
    return a[-shorter:] == b[-shorter:]


def _read_csv(path: Path, name: str, scale: float | None) -> LabelFile:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [[cell.strip() for cell in row] for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"cannot read the label file {path}: {error}") from error
    if not rows:
        raise DatasetError(f"the label file {path} is empty; expected CSV of OpenFace, py-feat or LibreFace")
    header, rows = rows[0], rows[1:]
    tool, columns, scale = _recognise(path, header, scale)
    lower = [column.lower() for column in header]
    name_column = next((lower.index(column) for column in _NAME_COLUMNS if column in lower), None)
    success = lower.index("success") if "success" in lower else None

    best: dict[str, tuple[float, dict[str, float]]] = {}
    for line, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise DatasetError(f"{path} line {line}: expected {len(header)} columns, got {len(row)}")
        if success is not None and _number(row[success], path, line) == 0:
            continue
        values = {au: _number(row[index], path, line) for au, index in columns.items()}
        if any(math.isnan(value) for value in values.values()):
            continue  # py-feat writes such rows where it found no face
        wrong = {au: v for au, v in values.items() if not -_SLACK <= v / scale <= 1 + _SLACK}
        if wrong:
            au, value = next(iter(wrong.items()))
            raise DatasetError(
                f"{path} line {line}: {au} = {value:g} is outside the scale 0-{scale:g} of {tool} files; "
                "if this one is on another scale, set --labels-scale to its number for full intensity"
            )
        key = row[name_column] if name_column is not None else name
        size = _face_size(dict(zip(lower, row, strict=True)))
        if name_column is None and key in best and "frame" in lower:
            raise DatasetError(
                f"{path} holds frames of a video and no photograph names; expected a column "
                f"{' or '.join(_NAME_COLUMNS[:2])}, or one CSV file per photograph"
            )
        if key not in best or size > best[key][0]:
            best[key] = size, {au: min(max(value / scale, 0.0), 1.0) * 5.0 for au, value in values.items()}
    return LabelFile(tool, scale, {key: aus for key, (_, aus) in best.items()})


def _recognise(path: Path, header: list[str], scale: float | None) -> tuple[str, dict[str, int], float]:
    """The tool, the column of each AU and the scale, from a CSV header."""
    for tool, pattern, own_scale in _TOOLS:
        matches = [(index, pattern.fullmatch(column)) for index, column in enumerate(header)]
        columns = {f"AU{int(match[1])}": index for index, match in matches if match}
        if not columns:
            continue
        if tool == "py-feat" and not _PY_FEAT_MARKS & {column.lower() for column in header}:
            if scale is None:
                raise DatasetError(
                    f"{path}: columns such as {header[min(columns.values())]!r} do not tell their scale; "
                    "set --labels-scale to the number for full intensity, such as 1 or 5"
                )
            tool = "AU columns"
        return tool, columns, scale or own_scale
    presence = [column for column in header if re.fullmatch(r"AU\d+_c|au_\d+", column, re.IGNORECASE)]
    if presence:
        raise DatasetError(
            f"{path} holds presence only ({', '.join(presence[:3])}...); intensity columns are needed: "
            "AU12_r (OpenFace), AU12 (py-feat) or au_12_intensity (LibreFace)"
        )
    raise DatasetError(
        f"{path} has no action-unit columns (expected AU12_r, AU12 or au_12_intensity); "
        f"its columns are {', '.join(header[:8])}"
    )


def _number(text: str, path: Path, line: int) -> float:
    if text == "" or text.lower() in ("nan", "none"):
        return math.nan
    try:
        value = float(text)
    except ValueError:
        raise DatasetError(f"{path} line {line}: expected a number, got {text!r}") from None
    if math.isinf(value):
        raise DatasetError(f"{path} line {line}: expected a finite number, got {text!r}")
    return value


def _face_size(row: Mapping[str, str]) -> float:
    """Area or extent of the row's face by whatever the tool wrote, else its confidence, else 0."""
    try:
        if "facerectwidth" in row:
            return float(row["facerectwidth"]) * float(row["facerectheight"])
        if "x_0" in row and "x_16" in row:  # OpenFace's 2-D landmarks: jaw corners
            return abs(float(row["x_16"]) - float(row["x_0"]))
        return float(row.get("confidence", 0.0))
    except (ValueError, KeyError):
        return 0.0
