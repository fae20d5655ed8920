"""Action-unit labels from the files of other tools, converted to names AU1..AU45 and intensities 0 to 5.

`magicedit.tables` lists the tools and their columns.
"""

import math
import operator
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from magicedit.errors import DatasetError
from magicedit.files import shown, walk
from magicedit.imaging import PHOTO_SUFFIXES, VIDEO_SUFFIXES
from magicedit.tables import Table, Units, read_table
from magicedit.vocabulary import INTENSITY_RANGE

NAME_COLUMNS = ("input", "filename", "file", "file_name", "image", "image_path", "path", "name")
_FRAME_COLUMNS = ("frame", "frame_idx", "frame_index", "frame_number")
_OTHER_VIDEO = 0.5  # seconds by which a label's time may miss the time of the frame with its number
_HINT = "; set --labels-scale to the file's number for full intensity, such as 1 or 5"


class FrameLabel(NamedTuple):
    """Label of a frame of a video. index: of the frame, from 0; seconds: its time; each None where the file
    does not tell it. intensities: by action unit, 0..5."""

    index: int | None
    seconds: float | None
    intensities: dict[str, float]


@dataclass(frozen=True)
class LabelFile:
    """Content of a label file.

    tool: as of `tables.Units`. scale: the number that the file writes for full intensity. intensities: by
    photograph name, then by action unit, rescaled to 0..5. frames: labels of its frames by name of a video;
    a name with a single frame is also in `intensities`.
    """

    tool: str
    scale: float
    intensities: dict[str, dict[str, float]]
    frames: dict[str, list[FrameLabel]] = field(default_factory=dict)


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


def read_label_file(path: str | Path, scale: float | None = None, videos: bool = False) -> LabelFile:
    """Like `read_labels`, but also returns the detected tool and scale.

    videos: whether tables of frames are read too. Their rows have a column `frame` (from 1 in OpenFace's
    files, else from 0) or of time; the video's name is in the column of names, or it is the file's own.
    """
    path = Path(path)
    if scale is not None and not (math.isfinite(scale) and scale > 0):
        raise DatasetError(f"--labels-scale must be a number above 0 (full intensity, e.g. 5), got {scale!r}")
    if not os.path.isdir(path):  # unlike Path.is_dir, False for a name that is too long
        return _checked([_read_csv(path, path.stem, scale, videos)], scale)

    def unreadable(error: OSError) -> None:
        raise DatasetError(
            f"{shown(error.filename)} cannot be read ({error.strerror}); check its permissions"
        )

    everything = walk(path, lambda _: False, unreadable)
    files = sorted(file for file in everything if file.suffix.lower() in (".csv", ".tsv"))
    if not files:
        raise DatasetError(f"expected CSV files in the labels folder {shown(path)}, found none")
    names = [file.relative_to(path).with_suffix("").as_posix() for file in files]
    parts = [_read_csv(file, name, scale, videos) for file, name in zip(files, names, strict=True)]
    if len({(part.tool, part.scale) for _, _, part in parts}) > 1:
        tools = " and ".join(sorted({f"{part.tool} (0-{part.scale:g})" for _, _, part in parts}))
        raise DatasetError(f"{shown(path)} mixes label files of {tools}; keep those of one tool")
    return _checked(parts, scale)


def _checked(parts: Sequence[tuple[Table, Units, LabelFile]], scale: float | None) -> LabelFile:
    """Joins files of one tool; raises as `Table.check_scale` where none of them shows the scale."""
    table, units, first = parts[0]
    merged = {name: aus for _, _, part in parts for name, aus in part.intensities.items()}
    frames = {name: labels for _, _, part in parts for name, labels in part.frames.items()}
    if scale is None:
        read = [*merged.values(), *(label.intensities for labels in frames.values() for label in labels)]
        largest = max((value for aus in read for value in aus.values()), default=0.0)
        table.check_scale(units, largest * first.scale / INTENSITY_RANGE[1])
    return LabelFile(first.tool, first.scale, merged, frames)


def match_labels(names: Iterable[str], sources: Iterable[str], what: str = "label") -> dict[str, str]:
    """Assigns labels to photographs: {source: label name}. what: the word for a label in messages.

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
                f"the {what} {name!r} could be of {len(found)} photographs ({', '.join(found[:3])}...); "
                f"name photographs in the file of {what}s by their path relative to the folder"
            )
        for source in found:
            labels_of[source].append(name)
        if not found:
            stems[_stem(name)].append(name)
    matched = {}
    for source, candidates in labels_of.items():
        if len(candidates) > 1:
            raise DatasetError(
                f"{source!r} has {len(candidates)} {what}s, {', '.join(candidates[:3])}; keep one"
            )
        matched[source] = candidates[0]
    for stem, candidates in stems.items():
        if len(candidates) == 1 and len(by_stem.get(stem, [])) == 1 and by_stem[stem][0] not in matched:
            matched[by_stem[stem][0]] = candidates[0]
    return matched


def match_frames(
    labels: Sequence[FrameLabel], frames: Sequence[tuple[int, float]]
) -> dict[int, dict[str, float]]:
    """Assigns labels to frames of a video: {index of the frame: intensities}.

    frames: index and seconds of each. A label is of the frame with its number; where the file has no numbers,
    of the frame whose time it misses by less than half the usual distance of its labels.

    Raises: DatasetError where the labels are of another video: their times miss those of the frames.
    """
    by_index = {label.index: label for label in labels if label.index is not None}
    if by_index:
        matched = {index: by_index[index] for index, _ in frames if index in by_index}
        for index, seconds in frames:
            told = matched[index].seconds if index in matched else None
            if told is not None and abs(told - seconds) > _OTHER_VIDEO:
                raise DatasetError(
                    f"they are of another video: frame {index} is at {told:.2f} s there and at {seconds:.2f} "
                    "s here"
                )
        return {index: label.intensities for index, label in matched.items()}
    ordered = sorted(labels, key=operator.attrgetter("seconds"))
    times = np.array([label.seconds for label in ordered])
    reach = float(np.median(np.diff(times))) / 2 if len(times) > 1 else 0.0
    nearest = {index: int(np.argmin(np.abs(times - seconds))) for index, seconds in frames}
    return {
        index: ordered[nearest[index]].intensities
        for index, seconds in frames
        if abs(times[nearest[index]] - seconds) <= reach + 0.001  # times of frames are milliseconds
    }


def _parts(name: str) -> tuple[str, ...]:
    # A Mac writes the names of files decomposed
    path = PurePosixPath(unicodedata.normalize("NFC", name.replace("\\", "/")))
    media = PHOTO_SUFFIXES | VIDEO_SUFFIXES
    return (path.with_suffix("") if path.suffix.lower() in media else path).parts


def _stem(name: str) -> str:
    """The last part of a name; empty for "." and the like, which name no photograph."""
    return (_parts(name) or ("",))[-1]


def _read_csv(path: Path, name: str, scale: float | None, videos: bool) -> tuple[Table, Units, LabelFile]:
    table = read_table(path, DatasetError)
    units = _units(table, scale)
    named = table.columns(*NAME_COLUMNS)[:1]
    counted = table.columns(*_FRAME_COLUMNS)[:1]
    clock = table.clock() if table.time_columns else None
    first = 1 if units.tool == "OpenFace" else 0  # number of the first frame
    best: dict[str, dict[tuple[int | None, float | None], tuple[float, dict[str, float]]]] = {}
    for number, row in table.rows:
        with table.at(number):
            cells = table.cells(row, whole=True)
            values = table.intensities(cells, units, _HINT)
        if len(values) < len(units.columns):
            continue  # no face was found there
        key = cells[named[0]] if named else name
        if not _stem(key):
            continue
        moment = None, None
        if videos:
            with table.at(number):
                index = _whole_number(table, cells, counted[0]) - first if counted else None
                moment = index, table.seconds(cells, clock) if clock else None
        size = table.face_size(cells)
        moments = best.setdefault(key, {})
        if not named and moments and not videos and (counted or clock):
            raise DatasetError(
                f"{shown(path)} holds frames of a video and no photograph names; expected a column "
                f"{' or '.join(NAME_COLUMNS[:2])}, or one CSV file per photograph"
            )
        if moment not in moments or size > moments[moment][0]:
            moments[moment] = size, values
    single = {
        key: max(moments.values(), key=operator.itemgetter(0))[1]
        for key, moments in best.items()
        if len(moments) == 1 or PurePosixPath(key).suffix.lower() in PHOTO_SUFFIXES
    }
    frames = {
        key: [FrameLabel(*moment, values) for moment, (_, values) in moments.items()]
        for key, moments in best.items()
        if videos and (counted or clock)
    }
    return table, units, LabelFile(units.tool, units.scale or INTENSITY_RANGE[1], single, frames)


def _whole_number(table: Table, cells: Mapping[str, str], column: str) -> int:
    value = table.number(cells, column)
    if not value.is_integer():  # NaN, an empty cell, is none
        raise DatasetError(f"{column}: expected the number of a frame, got {shown(cells.get(column, ''))!r}")
    return int(value)


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
