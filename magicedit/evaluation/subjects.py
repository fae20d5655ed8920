"""Subjects of an evaluation: one photograph per person, from folders or a prepared dataset."""

import contextlib
import functools
import hashlib
import io
import os
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import cv2
import numpy as np
from PIL import Image

from magicedit.data.description import DESCRIPTION_FILE, SHARDS, current, read_description
from magicedit.data.layout import TEST, VALIDATION, people_of
from magicedit.errors import DatasetError
from magicedit.files import open_regular, read_bytes, shown, walk
from magicedit.imaging import PHOTO_SUFFIXES, Photo, open_photo
from magicedit.tables import read_table

if TYPE_CHECKING:
    import pyarrow.parquet as pq

RENDERINGS = ("photograph", "drawn", "cartoon")
ATTRIBUTES_FILE = "attributes.csv"
_PREFERRED = "neutral"  # name of the photograph preferred among several of a person


@dataclass(frozen=True)
class Subject:
    """A person and the photograph of them that is edited.

    identity: name of the person. source: the photograph's file, or the Parquet file that holds it. row: its
    number there. group: the data's own columns, such as gender. style: one of `RENDERINGS`. origin: what kind
    of data it comes from, for the report.
    """

    identity: str
    source: Path
    row: int | None = None
    group: Mapping[str, str] = field(default_factory=dict)
    style: str = "photograph"
    origin: str = "folders of photographs"

    @property
    def name(self) -> str:
        """Identity and style, unique among the subjects of an evaluation."""
        return self.identity if self.style == "photograph" else f"{self.identity} ({self.style})"

    @property
    def smile(self) -> "Subject | None":
        """The person's own smile, `smiling.*` beside the photograph; None where there is none."""
        if self.row is not None or self.style != "photograph":
            return None
        found = sorted(p for p in self.source.parent.glob("smiling.*") if p.suffix.lower() in PHOTO_SUFFIXES)
        return replace(self, identity=f"{self.identity} smiling", source=found[0]) if found else None

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of the photograph's pixels: equal for the same file or dataset row under any name."""
        content = (
            read_bytes(self.source, DatasetError)
            if self.row is None
            else _encoded_crop(self.source, self.row)
        )
        return hashlib.sha256(content).hexdigest()[:16]

    def open(self) -> Photo:
        """The photograph. ImageError or DatasetError where it cannot be read."""
        photo = open_photo(self.source if self.row is None else self._crop())
        if self.style == "photograph":
            return replace(photo, source=self.source)
        return replace(photo, pixels=render(photo.pixels, self.style), source=self.source)

    def _crop(self) -> Image.Image:
        try:
            return Image.open(io.BytesIO(_encoded_crop(self.source, self.row)))
        except (OSError, ValueError, SyntaxError) as error:
            raise DatasetError(f"{shown(self.source)} row {self.row} has no picture: {error}") from error


def render(pixels: np.ndarray, style: str) -> np.ndarray:
    """A photograph, (height, width, 3) uint8, as a coloured pencil drawing ("drawn") or with flat colours and
    black edges ("cartoon"); by OpenCV's edge-aware filters (Gastal & Oliveira 2011)."""
    bgr = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    if style == "drawn":
        _, drawn = cv2.pencilSketch(bgr, sigma_s=60, sigma_r=0.07, shade_factor=0.05)
    elif style == "cartoon":
        drawn = cv2.stylization(bgr, sigma_s=60, sigma_r=0.45)
    else:
        raise DatasetError(f"no rendering {style!r}; there are {', '.join(RENDERINGS)}")
    return cv2.cvtColor(drawn, cv2.COLOR_BGR2RGB)


def read_subjects(
    data: str | Path,
    *,
    limit: int | None = None,
    identities: list[str] | None = None,
    attributes: str | Path | None = None,
) -> list[Subject]:
    """Reads the people of a folder, in order of their names.

    Args:
        data: a folder with one sub-folder of photographs a person (of several, `neutral.*` is taken, else the
            first; a loose photograph is a person of its own), or a dataset of `magicedit prepare` (its
            validation split where it has one; of a person the least expressive photograph).
        limit: maximum number of people.
        identities: only these, in this order.
        attributes: CSV with a column `identity` and any attributes of each person; default: attributes.csv in
            the folder, if present. Ages are binned by tens.

    Raises:
        DatasetError: where there are no photographs or no identities, or for unknown names.
    """
    folder = Path(data)
    if not os.path.isdir(folder):
        raise DatasetError(f"expected a folder of photographs or a prepared dataset, got {shown(data)}")
    if os.path.lexists(current(folder, DESCRIPTION_FILE)):
        subjects = _from_dataset(folder)
    else:
        subjects = _from_folders(folder)
    known = {composed(subject.identity): subject for subject in subjects}
    if attributes is None and os.path.lexists(folder / ATTRIBUTES_FILE):
        attributes = folder / ATTRIBUTES_FILE
    if attributes is not None:
        for identity, group in read_attributes(attributes).items():
            if composed(identity) in known:
                known[composed(identity)] = replace(known[composed(identity)], group=group)
    if identities is not None:
        if missing := [shown(name) for name in identities if composed(name) not in known]:
            there = ", ".join(list(known)[:8]) + ("..." if len(known) > 8 else "")
            some = ", ".join(missing[:8]) + ("..." if len(missing) > 8 else "")
            raise DatasetError(f"no such identities in {shown(folder)}: {some}; there are {there}")
        known = {name: known[name] for name in map(composed, identities)}
    return list(known.values())[:limit]


def composed(name: str) -> str:
    """A name as it is compared: a Mac decomposes letters, other systems compose them."""
    return unicodedata.normalize("NFC", name)


def _from_folders(folder: Path) -> list[Subject]:
    def unreadable(error: OSError) -> None:
        raise DatasetError(
            f"the folder {shown(error.filename)} cannot be read ({error.strerror}); check its rights"
        )

    paths = {
        path.relative_to(folder).as_posix(): path
        for path in sorted(walk(folder, lambda _: False, unreadable))
        if path.suffix.lower() in PHOTO_SUFFIXES
    }
    people = people_of(paths)
    split = next((split for split in (VALIDATION, TEST) if split in people.splits.values()), None)
    found: dict[tuple[str, bool], list[Path]] = {}  # by name, and whether that is of a loose photograph
    for name, path in paths.items():
        identity = people.identities[name]
        if split is None or people.splits[identity] == split:
            loose = identity == PurePosixPath(name).name
            found.setdefault((shown(path.stem if loose else identity), loose), []).append(path)
    if not found:
        raise DatasetError(
            f"no photographs in {shown(folder)}; expected FOLDER/identity/photograph, or a dataset of "
            "`magicedit prepare`"
        )
    names = [name for name, _ in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DatasetError(
            f"{shown(folder)} has both a folder and a photograph of {', '.join(twice)}; rename one"
        )
    if loose := [paths for (_, loose), paths in found.items() if loose and len(paths) > 1]:
        some = ", ".join(shown(path.name) for path in loose[0])
        raise DatasetError(f"{shown(folder)} has several photographs of one name, {some}; rename all but one")
    return [
        Subject(name, ([p for p in paths if p.stem.lower() == _PREFERRED] or paths)[0])
        for (name, _), paths in found.items()
    ]


def _from_dataset(folder: Path) -> list[Subject]:
    read_description(folder)
    shards = current(folder, SHARDS)
    files = sorted(shards.glob("validation-*.parquet"))
    split = "validation" if files else "training"
    files = files or sorted(shards.glob("train-*.parquet"))
    best: dict[str, tuple[float, Subject]] = {}
    for file in files:
        with _parquet(file) as parquet:
            if "identity" not in parquet.schema_arrow.names:
                raise DatasetError(f"{file} has no column identity: an evaluation has to know who is who")
            rows = parquet.read(["identity", "source", "action_units"]).to_pylist()
        for number, row in enumerate(rows):
            if not row["identity"]:
                raise DatasetError(f"{file} row {number} has no identity")
            try:
                expressive, warped = sum(row["action_units"] or []), "#muscles-" in row["source"]
            except TypeError as error:
                raise DatasetError(f"{file} row {number} has unusable values ({error})") from error
            known = best.get(row["identity"])
            if not warped and (known is None or expressive < known[0]):
                subject = Subject(row["identity"], file, number, origin=f"{split} split of a dataset")
                best[row["identity"]] = expressive, subject
    if not best:
        raise DatasetError(f"the dataset {shown(folder)} has no photographs")
    return [best[identity][1] for identity in sorted(best)]


@contextlib.contextmanager
def _parquet(file: Path) -> "Iterator[pq.ParquetFile]":
    """A shard of a dataset; DatasetError where it, or what the block reads of it, is damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with open_regular(file) as opened, pq.ParquetFile(opened) as parquet:
            yield parquet
    except (pa.ArrowException, OSError, TypeError, KeyError) as error:
        raise DatasetError(
            f"{shown(file)} is damaged ({str(error)[:200]}); run `magicedit prepare` again"
        ) from error


def _encoded_crop(file: Path, row: int) -> bytes:
    with _parquet(file) as parquet:
        for group in range(parquet.num_row_groups):
            count = parquet.metadata.row_group(group).num_rows
            if row < count:
                return parquet.read_row_group(group, columns=["image"])["image"][row].as_py()["bytes"]
            row -= count
    raise DatasetError(f"{file} has no row {row}; it was changed while it was read")


def read_attributes(path: str | Path) -> dict[str, dict[str, str]]:
    """Reads a CSV of attributes by identity, ages binned by tens ("30-39"). DatasetError without a column
    `identity`."""
    table = read_table(path, DatasetError)
    if not table.rows or "identity" not in table.header:
        raise DatasetError(f"{path} must have a column `identity` and rows, beside columns such as gender")
    found = {}
    for number, row in table.rows:
        with table.at(number):
            cells = {"identity": ""} | table.cells(row)
        found[cells["identity"]] = {
            key: _binned(table.pointed(value)) if "age" in key.lower().split("_") else value
            for key, value in cells.items()
            if key and key != "identity" and value
        }
    return found


def _binned(value: str) -> str:
    try:
        decade = int(float(value) // 10) * 10
    except (ValueError, OverflowError):
        return value
    return f"{decade}-{decade + 9}"
