"""The rows of a prepared dataset: their columns, Parquet files, and how a new dataset replaces an old one."""

import contextlib
import functools
import io
import itertools
import json
import os
import re
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from magicedit.action_units import NAMES
from magicedit.data.augment import muscle_variants
from magicedit.data.description import (
    CARD_FILE,
    DESCRIPTION_FILE,
    FORMAT_VERSION,
    NEXT,
    REPORT_FILE,
    SHARDS,
    SPLITS,
    WORK,
    card_is_ours,
    count_by_split,
    read_description,
    write_descriptions,
)
from magicedit.data.sources import Sources
from magicedit.errors import DatasetError, OutputError
from magicedit.faces import face_region
from magicedit.files import (
    is_temporary,
    open_regular,
    replacing,
    shown,
    sweep,
    sync_names,
    write_text,
    writing,
)

if TYPE_CHECKING:
    import datasets

# What a row keeps of a face, in the order of its list; more would make another format
MEASURED = (
    *("AU1", "AU2", "AU4", "AU5", "AU6", "AU7", "AU9", "AU10", "AU12"),
    *("AU15", "AU16", "AU17", "AU18", "AU20", "AU22", "AU25", "AU26", "AU45"),
)
_MARK = ".magicedit"  # in WORK: that we made it
_FRESH, _REPLACED = "fresh", "replaced"  # in WORK: a dataset being written, and the shards it replaces
JPEG_QUALITY = 95
_METADATA_KEY = b"magicedit"  # of the Parquet schema: the settings that its rows were measured with
_SHARD_BYTES = 256 * 2**20
_SHARD_ROWS = 2**14  # at most, since a writer holds the places of all row groups of its file
_REPETITIVE = ["identity", "scheme", "notes.list.element", "emotion", "attributes.list.element"]  # columns
ROW_GROUP = 16  # rows that random access reads at once: about one megabyte

_SHARD = re.compile(rf"({'|'.join(SPLITS)})-[0-9]{{5,}}\.parquet")  # the names of our shards
_READ = re.compile(rf"({'|'.join(SPLITS)})-.*\.parquet")  # and of what readers take for shards

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Place:
    """Location of a measured photograph's row."""

    file: Path
    row: int


def features() -> "datasets.Features":
    """Columns of the dataset.

    image: the aligned crop (size, size) RGB. mask: (size, size) grey, 255 in the face region.
    action_units: intensities 0..5 by the labeller, in the order of `action_units` in magicedit.json;
    measured: what the face backend itself measured, in the order of `measured` there (empty where it
    measures none).
    landmarks: x0, y0, x1, y1, ... in pixels of the crop; scheme: what their numbers mean.
    box: x0, y0, x1, y1 in pixels of the photograph. pose: yaw, pitch, roll in degrees (empty where unknown).
    sha256: of the photograph's file; of a frame of a video its key, see `videos.FrameKey`. emotion: its
    label, empty where there is none. valence, arousal: -1 to 1, null where there is none. attributes: those
    that it shows, null where it is not labelled with any.
    descriptor: dlib's identity descriptor, empty where people are not grouped by it.
    """
    from datasets import Features, List, Value  # a slow import that only writing needs
    from datasets import Image as ImageFeature

    floats = List(Value("float32"))
    return Features(
        {
            "image": ImageFeature(),
            "mask": ImageFeature(),
            "identity": Value("string"),
            "source": Value("string"),
            "action_units": floats,
            "measured": floats,
            "landmarks": floats,
            "scheme": Value("string"),
            "pose": floats,
            "box": floats,
            "notes": List(Value("string")),
            "sha256": Value("string"),
            "emotion": Value("string"),
            "valence": Value("float32"),
            "arousal": Value("float32"),
            "attributes": List(Value("string")),
            "descriptor": floats,
        }
    )


def encoded(pixels: np.ndarray, image_format: str) -> dict[str, Any]:
    """Encodes a picture as a cell of the columns `image` and `mask`."""
    buffer = io.BytesIO()
    options = {"quality": JPEG_QUALITY, "subsampling": 0} if image_format == "jpeg" else {}
    Image.fromarray(pixels).save(buffer, image_format, **options)
    return {"bytes": buffer.getvalue(), "path": None}


def decoded(cell: Mapping[str, Any]) -> np.ndarray:
    """(height, width, 3) uint8 RGB of a cell of the column `image`."""
    return np.asarray(Image.open(io.BytesIO(cell["bytes"])).convert("RGB"))


def encoded_region(landmarks: np.ndarray, size: int, scheme: str) -> dict[str, Any]:
    """The cell `mask` of a crop with these landmarks."""
    return encoded(np.where(face_region(landmarks, size, scheme), 255, 0).astype(np.uint8), "png")


def write_rows(path: Path, groups: Iterable[list[Row]], settings: Mapping[str, Any]) -> None:
    """Writes rows in groups of ROW_GROUP, without compression because the images are compressed."""
    schema = features().arrow_schema
    schema = schema.with_metadata({**schema.metadata, _METADATA_KEY: json.dumps(settings).encode()})
    # Values of other columns, plain, are read by their places. Statistics would keep pictures in memory
    # until the file is whole
    shared = {"use_dictionary": _REPETITIVE, "compression": "none", "write_statistics": False}
    with replacing(path) as file, pq.ParquetWriter(file, schema, **shared) as writer:
        for group in groups:
            writer.write_table(pa.Table.from_pylist(group, schema), row_group_size=ROW_GROUP)


def measured_before(output: Path, settings: Mapping[str, Any]) -> dict[str, Place]:
    """Returns by SHA-256 the rows that finished and interrupted runs measured with these settings."""
    places = {}
    for path in sorted(
        path for folder in (output / SHARDS, output / WORK) for path in folder.glob("*.parquet")
    ):
        try:
            with open_regular(path) as opened, pq.ParquetFile(opened) as file:
                written_with = json.loads((file.schema_arrow.metadata or {}).get(_METADATA_KEY, b"null"))
                if written_with == settings:
                    hashes = file.read(["sha256"]).column(0).to_pylist()
                    places.update({sha256: Place(path, row) for row, sha256 in enumerate(hashes)})
        except (pa.ArrowException, OSError, ValueError, LookupError, RecursionError):
            continue  # damaged: its photographs are measured again
    return places


@contextlib.contextmanager
def opened_shard(file: Path) -> Iterator[pq.ParquetFile]:
    """Opens a file of measured rows; DatasetError where it is damaged."""
    try:
        with open_regular(file) as opened, pq.ParquetFile(opened) as parquet:
            yield parquet
    except (pa.ArrowException, OSError, ValueError, LookupError) as error:
        raise DatasetError(
            f"{shown(file)} is damaged ({str(error)[:200]}); remove it to measure its photographs again"
        ) from error


def row_group(file: Path, number: int) -> list[Row]:
    """Returns the rows of one of a shard's row groups, ROW_GROUP but in the last. DatasetError where it is
    damaged."""
    with opened_shard(file) as parquet:
        return parquet.read_row_group(number).to_pylist()


def check_ours(output: Path, names: Collection[str]) -> None:
    """Raises DatasetError where a folder with these files is no dataset of ours, or where writing one would
    delete what we did not write."""
    work = output / WORK
    there = set(_names(work)) if work.is_dir() and not work.is_symlink() else None
    marked = there is not None and (work / _MARK).is_file()
    if WORK in names and not marked and (there is None or any(map(_is_work, there))):
        raise DatasetError(
            f"{shown(work)} is not of magicedit; move it away, or choose another output folder"
        )
    if not names or marked or (set(names) == {WORK} and not there):  # killed before it was marked
        return
    if not _described(output) and not any(map(_is_shard, (output / SHARDS).glob("*.parquet"))):
        raise DatasetError(
            f"{shown(output)} exists and is not a dataset of magicedit; choose another output folder"
        )
    for name in _names(output / SHARDS):
        if _READ.fullmatch(name) and not _SHARD.fullmatch(name):
            raise DatasetError(
                f"{shown(output / SHARDS / name)} is not of magicedit, but would be read as a part of the "
                "dataset; move it away"
            )


def _names(folder: Path) -> list[str]:
    """Names in a folder but those of temporary files; none where there is no folder."""
    try:
        return [name for name in os.listdir(folder) if not is_temporary(name)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise OutputError(f"{shown(folder)} cannot be read ({error}); choose another folder") from error


def _is_work(name: str) -> bool:
    """Whether an entry of WORK has a name of those that are read, replaced and deleted there."""
    return name in (_FRESH, _REPLACED, NEXT) or name.endswith(".parquet")


def _described(output: Path) -> bool:
    try:
        read_description(output, "action_units", "settings", "fingerprint", "photographs")
    except DatasetError:
        return False
    return True


def _is_shard(path: Path) -> bool:
    """Whether a file is one that `write_rows` wrote."""
    try:
        with open_regular(path) as opened, pq.ParquetFile(opened) as file:
            return _METADATA_KEY in (file.schema_arrow.metadata or {})
    except (pa.ArrowException, OSError, ValueError, LookupError, RecursionError):
        return False


def begin(output: Path, force: bool) -> None:
    """Puts a folder into order: what a killed run had finished takes its place, what it was writing goes.

    Earlier measurements stay for this run, but with `force`. OutputError where the folder cannot be written.
    """
    _install(output)
    sweep(output)
    work = output / WORK
    if force and work.is_dir():
        discard_work(output)
    with writing(output):
        for leftover in (work / _FRESH, work / _REPLACED):
            if leftover.exists():
                shutil.rmtree(leftover)
        work.mkdir(exist_ok=True)
        write_text(work / _MARK, "made by magicedit prepare, which deletes it\n")


def discard_work(output: Path) -> None:
    """Removes measurements that nothing needs any more; files of others stay."""
    work = output / WORK
    with writing(output):
        sweep(work)
        for name in filter(_is_work, _names(work)):
            shutil.rmtree(work / name) if (work / name).is_dir() else (work / name).unlink()
        (work / _MARK).unlink(missing_ok=True)  # the last, so that a killed run knows the rest as ours
        with contextlib.suppress(OSError):  # something of others is in it
            work.rmdir()


def _install(output: Path) -> None:
    """Lets a whole new dataset, if there is one, take the place of the old one; files of others stay.

    A killed run may end at any step, and the next one continues; `current` finds one of the two meanwhile.
    """
    work, new = output / WORK, output / WORK / NEXT
    if not new.is_dir():
        return
    with writing(output):
        if (new / SHARDS).is_dir():
            if (output / SHARDS).is_symlink():  # what it points to stays
                (output / SHARDS).unlink()
            if (output / SHARDS).is_dir():
                for name in _names(output / SHARDS):
                    if not _SHARD.fullmatch(name):
                        (output / SHARDS / name).rename(new / SHARDS / name)
                shutil.rmtree(work / _REPLACED, ignore_errors=True)
                (output / SHARDS).rename(work / _REPLACED)
            (new / SHARDS).rename(output / SHARDS)
        names = (CARD_FILE, REPORT_FILE, DESCRIPTION_FILE)
        for name in names if card_is_ours(output) else names[1:]:
            if (new / name).exists():
                (new / name).replace(output / name)
        sync_names(output)
        discard_work(output)


def write_dataset(
    output: Path,
    sources: Sources,
    places: Mapping[str, Place],
    settings: Mapping[str, Any],
    fingerprint: str,
    variants: int,
) -> dict[str, Any]:
    """Writes a dataset beside the old one, which it replaces when it is whole; see `_install`.

    Returns the content of report.json.
    """
    fresh, notes, schemes = output / WORK / _FRESH, list(sources.folder_notes), set()
    with writing(output):
        (fresh / SHARDS).mkdir(parents=True)

    def rows(split: str) -> Iterator[Row]:
        for row in _labelled_rows(sources, split, places, settings["backend"]):
            notes.extend({"source": row["source"], "note": note} for note in row["notes"])
            schemes.add(row["scheme"])
            yield row
            if variants and split == "train":
                yield from _warped_rows(row, variants, settings)

    for split in SPLITS:
        groups = _groups(rows(split))
        for number, first in enumerate(groups):
            shard = _one_shard(itertools.chain([first], groups))
            write_rows(fresh / SHARDS / f"{split}-{number:05}.parquet", shard, settings)

    labeller, scale_in_file = sources.labelled_by(settings["backend"])
    identities = [source.identity for source in sources.photographs]
    counts = {**count_by_split(identities, sources.splits, variants), "variants": variants}
    if not card_is_ours(output):
        note = "changed by hand, and kept; to have it written again, delete it and pass --force"
        notes.append({"source": CARD_FILE, "note": note})
    report = {**counts, "rejected": sources.rejected, "notes": notes, "ignored": sources.ignored}
    description = {
        "format": FORMAT_VERSION,
        "action_units": list(NAMES),
        "measured": list(MEASURED),
        "scale": [0, 5],
        "labeller": labeller,
        "labels_scale_in_file": scale_in_file,
        "landmarks": schemes.pop(),  # one backend, one scheme
        "crop_size": settings["size"],
        "settings": dict(settings),
        **counts,
        **({"attributes": list(sources.attribute_names)} if sources.attribute_names else {}),
        "fingerprint": fingerprint,
    }
    write_descriptions(fresh, report, description)
    with writing(output):
        fresh.rename(output / WORK / NEXT)
    sync_names(output / WORK)
    _install(output)
    return report


def _labelled_rows(sources: Sources, split: str, places: Mapping[str, Place], backend: str) -> Iterator[Row]:
    """Yields the measured rows of a split with the names and labels of this run."""
    group_of = functools.lru_cache(maxsize=1)(row_group)  # the next row is usually in the same group
    for source in sources.photographs:
        if sources.splits[source.identity] != split:
            continue
        place = places[source.sha256]
        row = group_of(place.file, place.row // ROW_GROUP)[place.row % ROW_GROUP]
        if sources.labels is None and not row["measured"]:
            raise DatasetError(
                f"the face backend {backend} measures no action units; "
                "give --labels with a CSV of OpenFace, py-feat or LibreFace, or use the backend mediapipe"
            )
        measured = dict(zip(MEASURED, row["measured"], strict=False))  # empty where none are measured
        aus = sources.labels.intensities[source.name] if sources.labels else measured
        yield row | {
            "identity": source.identity,
            "source": source.name,
            "action_units": [aus[name] for name in NAMES],
            **_feeling(sources, source.name),
            "attributes": sources.attributes.get(source.name),
        }


def _feeling(sources: Sources, name: str) -> Row:
    """The columns of a photograph's emotion."""
    if name not in sources.feelings:
        return {"emotion": "", "valence": None, "arousal": None}
    labels = sources.feelings[name]._asdict()
    return {key: None if value != value else value for key, value in labels.items()}  # NaN


def _warped_rows(row: Row, count: int, settings: Mapping[str, Any]) -> Iterator[Row]:
    """Yields rows of muscle warps of a photograph's row."""
    if row["scheme"] != "mediapipe478":
        raise DatasetError(
            f"the muscles' warp needs MediaPipe's 478 landmarks, these photographs have {row['scheme']}; "
            "use the backend mediapipe"
        )
    variants = muscle_variants(
        decoded(row["image"]),
        np.array(row["landmarks"], np.float32).reshape(-1, 2),
        dict(zip(NAMES, row["action_units"], strict=True)),
        count,
        row["sha256"],
    )
    for number, variant in enumerate(variants, start=1):
        command = ",".join(f"{name}={steps:+.2f}" for name, steps in variant.command.items())
        yield row | {
            "image": encoded(variant.pixels, settings["image_format"]),
            "mask": encoded_region(variant.landmarks, settings["size"], row["scheme"]),
            "source": f"{row['source']}#muscles-{number}",
            "action_units": [variant.action_units[name] for name in NAMES],
            "measured": [],
            "landmarks": variant.landmarks.reshape(-1).tolist(),
            "notes": [f"warped by {command}"],
            "emotion": "",
            "valence": None,
            "arousal": None,
            "attributes": None,
            "sha256": "",  # of no file
            "descriptor": [],
        }


def _groups(rows: Iterator[Row]) -> Iterator[list[Row]]:
    while group := list(itertools.islice(rows, ROW_GROUP)):
        yield group


def _one_shard(groups: Iterable[list[Row]]) -> Iterator[list[Row]]:
    """Yields groups up to about _SHARD_BYTES, or _SHARD_ROWS."""
    size = rows = 0
    for group in groups:
        yield group
        size += sum(len(row["image"]["bytes"]) for row in group)
        rows += len(group)
        if size >= _SHARD_BYTES or rows >= _SHARD_ROWS:
            return
