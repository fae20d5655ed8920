"""Reads AffectNet (Mollahosseini et al. 2017, arXiv:1708.03985): photographs, emotions, valence, arousal.

The first release has lists with the columns subDirectory_filePath, expression, valence and arousal:

    FOLDER/training.csv, validation.csv
    FOLDER/Manually_Annotated_Images/1/one.jpg

the newer one a file for each label:

    FOLDER/train_set/annotations/0_exp.npy, 0_val.npy, 0_aro.npy
    FOLDER/train_set/images/0.jpg
"""

import io
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from magicedit.errors import DatasetError
from magicedit.files import named, read_bytes, shown
from magicedit.tables import read_table

NEUTRAL = "neutral"
# By the numbers of both releases
EMOTIONS = (NEUTRAL, "happiness", "sadness", "surprise", "fear", "disgust", "anger")
OTHERS = {7: "contempt", 8: "none", 9: "uncertain", 10: "no face"}
LARGEST_ARRAY = 10_000  # bytes of a file of one number
_LISTS = {"training.csv": "train", "validation.csv": "validation"}
_PICTURES = (".", "Manually_Annotated_Images", "Manually_Annotated/Manually_Annotated_Images")
_SETS = {"train_set": "train", "val_set": "validation", ".": "train"}
_COLUMNS = ("subdirectory_filepath", "expression", "valence", "arousal")


class Feeling(NamedTuple):
    """emotion: one of `EMOTIONS`. valence, arousal: -1 to 1; NaN where there is no label."""

    emotion: str
    valence: float
    arousal: float


class Entry(NamedTuple):
    """A photograph of the lists. name: its path relative to the folder, with forward slashes."""

    name: str
    path: Path
    split: str
    feeling: Feeling


def read_affectnet(folder: Path) -> tuple[list[Entry], list[dict[str, str]]]:
    """Photographs of the lists in order, and {"source", "reason"} of rows that cannot be used.

    These are rows without a picture, with an emotion beyond the seven, or with a label that is no number.

    Raises:
        DatasetError: where the folder has no lists, a list lacks columns, or no row can be used.
    """
    lists = [place for name in _LISTS for place in sorted((*folder.glob(name), *folder.glob(f"*/{name}")))]
    annotated = [folder / name for name in _SETS if (folder / name / "annotations").is_dir()]
    if not lists and not annotated:
        raise DatasetError(
            f"{folder} has no lists of AffectNet: expected training.csv or validation.csv, or train_set or "
            "val_set with the folders images and annotations"
        )
    entries, rejected = [], []
    for rows in (*map(_rows_of_list, lists), *map(_rows_of_annotations, annotated)):
        for split, path, labels in rows:
            name = Path(os.path.relpath(path, folder)).as_posix()
            if name.startswith("../"):
                rejected.append({"source": shown(path.name), "reason": "its picture is not in the folder"})
                continue
            feeling = _feeling(labels)
            if isinstance(feeling, str):
                rejected.append({"source": name, "reason": feeling})
            elif not os.path.isfile(path):
                rejected.append({"source": name, "reason": "its picture is missing"})
            else:
                entries.append(Entry(name, path, split, feeling))
    if not entries:
        first = f" ({rejected[0]['source']}: {rejected[0]['reason']})" if rejected else ""
        raise DatasetError(f"none of the {len(rejected)} rows of AffectNet in {folder} can be used{first}")
    return entries, rejected


Row = tuple[str, Path, tuple[str, str, str]]  # split, picture; emotion, valence and arousal as written


def _rows_of_list(path: Path) -> Iterator[Row]:
    table = read_table(path, DatasetError)
    columns = table.columns(*_COLUMNS)
    if len(columns) < len(_COLUMNS):
        wanted = "subDirectory_filePath, expression, valence and arousal"
        raise DatasetError(f"{path} must have the columns {wanted}, it has {', '.join(table.header)}")
    folder = next(parent for parent in path.parents if parent.name != "Manually_Annotated_file_lists")
    for number, row in table.rows:
        with table.at(number):
            picture, *labels = (table.cells(row)[column] for column in columns)
        places = [folder / place / named(folder / place, picture) for place in _PICTURES]
        found = next((place for place in places if os.path.isfile(place)), places[0])
        yield _LISTS[path.name], found, tuple(labels)


def _rows_of_annotations(folder: Path) -> Iterator[Row]:
    annotations, split = folder / "annotations", _SETS.get(folder.name, "train")
    pictures = {path.stem: path for path in sorted((folder / "images").glob("*"))}
    for emotion in sorted(annotations.glob("*_exp.npy")):
        stem = emotion.name.removesuffix("_exp.npy")
        files = (emotion, annotations / f"{stem}_val.npy", annotations / f"{stem}_aro.npy")
        picture = pictures.get(stem, folder / "images" / f"{stem}.jpg")
        yield split, picture, tuple(map(_written, files))


def _written(path: Path) -> str:
    """The only value of an array file; "" where there is no file or no value."""
    try:
        content = read_bytes(path, DatasetError, limit=LARGEST_ARRAY)
        return str(np.lib.format.read_array(io.BytesIO(content), allow_pickle=False).item())
    except Exception:  # NumPy's parser of headers lets errors of many types through
        return ""


def _feeling(labels: tuple[str, str, str]) -> Feeling | str:
    """The labels of a row, or why they cannot be used."""
    try:
        number = int(float(labels[0]))
        scales = [float(text) if text else math.nan for text in labels[1:]]
    except (ValueError, OverflowError):
        return f"its labels {', '.join(repr(shown(label)) for label in labels)} are no numbers"
    if number not in range(len(EMOTIONS)):
        return f"its emotion is {OTHERS.get(number, number)}, none of the seven"
    return Feeling(EMOTIONS[number], *(value if abs(value) <= 1 else math.nan for value in scales))
