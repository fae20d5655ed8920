"""Reads CelebA (Liu et al. 2015, arXiv:1411.7766): photographs, people, splits and binary attributes.

    FOLDER/list_attr_celeba.txt       number of rows; names of the attributes; picture and 1 or -1 for each
    FOLDER/identity_CelebA.txt        picture and number of the person
    FOLDER/list_eval_partition.txt    picture and 0 (train), 1 (validation) or 2 (test)
    FOLDER/img_align_celeba/000001.jpg

The lists may be in the folders Anno and Eval and the pictures in Img, as released.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from magicedit.errors import DatasetError
from magicedit.files import read_text, shown

ATTRIBUTES, PEOPLE, PARTITION = "list_attr_celeba.txt", "identity_CelebA.txt", "list_eval_partition.txt"
PICTURES = "img_align_celeba"
_PLACES = (".", "Anno", "Eval", "Img")
_SPLITS = {"0": "train", "1": "validation"}
_VALUES = {"1": True, "-1": False}


class Entry(NamedTuple):
    """A photograph of the lists. name: its path relative to the folder, with forward slashes. attributes:
    names of those that it shows."""

    name: str
    path: Path
    identity: str
    split: str
    attributes: tuple[str, ...]


def read_celeba(folder: Path) -> tuple[tuple[str, ...], list[Entry], list[dict[str, str]]]:
    """Names of the attributes, photographs in order, and {"source", "reason"} of rows that cannot be used.

    These are rows without a picture, of the test partition, missing in another list, with values other than 1
    and -1, or of a person whose other photographs are in the other split.

    Raises:
        DatasetError: where a list or the pictures are missing, a list is not as it should be, or no row can
            be used.
    """
    found = {name: _place(folder, name) for name in (ATTRIBUTES, PEOPLE, PARTITION, PICTURES)}
    if missing := [name for name, place in found.items() if place is None]:
        raise DatasetError(f"{folder} is not CelebA as released: it has no {', '.join(missing)}")
    names, rows = _read_attributes(found[ATTRIBUTES])
    people, partition = _read_pairs(found[PEOPLE]), _read_pairs(found[PARTITION])
    entries, rejected, split_of = [], [], {}
    for picture, values in rows.items():
        path, person = found[PICTURES] / picture, people.get(picture)
        if picture != path.name:
            rejected.append({"source": shown(picture), "reason": f"it is not in {PICTURES}"})
            continue
        name = path.relative_to(folder).as_posix()
        split = _SPLITS.get(partition.get(picture, ""))
        reason = _unusable(picture, values, names, person, partition)
        if reason is None and split_of.setdefault(person, split) != split:
            reason = f"its person {person} is in the split {split_of[person]} too"
        if reason is None and not os.path.isfile(path):
            reason = "its picture is missing"
        if reason is not None:
            rejected.append({"source": name, "reason": reason})
            continue
        those = tuple(n for n, value in zip(names, values, strict=True) if _VALUES[value])
        entries.append(Entry(name, path, person, split, those))
    if not entries:
        first = f" ({rejected[0]['source']}: {rejected[0]['reason']})" if rejected else ""
        raise DatasetError(f"none of the {len(rejected)} rows of CelebA in {folder} can be used{first}")
    return names, entries, rejected


def _place(folder: Path, name: str) -> Path | None:
    return next((path for place in _PLACES if os.path.exists(path := folder / place / name)), None)


def _lines(path: Path) -> list[list[str]]:
    """The words of each line that has any."""
    text = read_text(path, DatasetError)
    return [words for line in text.splitlines() if (words := line.split())]


def _read_attributes(path: Path) -> tuple[tuple[str, ...], dict[str, list[str]]]:
    """Names of the attributes, and the values of each picture as written."""
    count, names, *rows = [*_lines(path), [], []]
    rows = [row for row in rows if row]
    if len(count) != 1 or not count[0].isdecimal() or not names or not _VALUES.keys().isdisjoint(names):
        raise DatasetError(
            f"{path} must start with the number of its rows and the names of the attributes, as released"
        )
    if (count[0].lstrip("0") or "0") != str(len(rows)):
        said = shown(count[0])
        raise DatasetError(f"{path} has {len(rows)} rows, its first line says {said}; is it complete?")
    if len(set(names)) < len(names):
        raise DatasetError(f"{path} names an attribute twice: {shown(' '.join(names))}")
    return tuple(names), {picture: values for picture, *values in rows}


def _read_pairs(path: Path) -> dict[str, str]:
    """Picture -> number of a list with two columns."""
    lines = _lines(path)
    for number, words in enumerate(lines, start=1):
        if len(words) != 2 or not words[1].isdigit():
            raise DatasetError(f"{path}, line {number}: expected a picture and a number")
    return dict(lines)


def _unusable(
    picture: str, values: list[str], names: tuple[str, ...], person: str | None, partition: Mapping[str, str]
) -> str | None:
    """Why a row cannot be used, its picture aside; None: it can."""
    if len(values) != len(names):
        return f"its row has {len(values)} values for {len(names)} attributes"
    if strange := [value for value in values if value not in _VALUES]:
        return f"its row has the value {shown(strange[0])}, neither 1 nor -1"
    if person is None:
        return f"{PEOPLE} lacks it"
    if picture not in partition:
        return f"{PARTITION} lacks it"
    if partition[picture] not in _SPLITS:
        return f"it is in partition {shown(partition[picture])}, not train (0) or validation (1)"
    return None
