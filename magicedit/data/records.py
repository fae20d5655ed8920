"""The usable rows of a dataset's split as compact columns; landmarks and pictures are read when needed."""

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from magicedit.data.checks import CHECKED, BadRow, examined
from magicedit.data.shard_files import ShardFiles
from magicedit.errors import DatasetError, reason_of
from magicedit.faces.types import LANDMARK_COUNTS
from magicedit.files import opened, shown

COLUMNS = (*CHECKED, "image")
LABELS = ("emotion", "attributes")  # absent in datasets of before there were any
ROWS_AT_ONCE = 512
PICTURES_AT_ONCE = 256


class Record:
    """One photograph of the dataset; landmarks and source are read from its shard when asked for.

    action_units: (aus,) float32, 0..5, in the order of the PairDataset. landmarks: (points, 2) float32, px of
    the stored crop. emotion: its label, or empty. attributes: those of its labels that it shows.
    """

    __slots__ = ("_index", "_records")

    def __init__(self, records: "Records", index: int) -> None:
        self._records, self._index = records, index

    @property
    def identity(self) -> str:
        return self._records.names[self._records.people[self._index]].as_py()

    @property
    def source(self) -> str:
        return self._records.source(self._index)

    @property
    def action_units(self) -> np.ndarray:
        return self._records.action_units[self._index]

    @property
    def landmarks(self) -> np.ndarray:
        return self._records.landmarks(self._index)

    @property
    def emotion(self) -> str:
        return self._records.emotion_names[self._records.emotions[self._index]]

    @property
    def attributes(self) -> frozenset[str]:
        return self._records.attributes(self._index)


class Records(Sequence[Record]):
    """The usable rows of a split, less than 100 bytes each, whatever the number of landmarks.

    action_units: (records, aus) float32, 0..5. people: (records,) int32, positions of their identities in
    `names`, which has them in the order of their first records. emotions: (records,) uint16, positions of
    their labels in `emotion_names`.
    """

    def __init__(
        self,
        files: ShardFiles,
        places: np.ndarray,
        points: int,
        action_units: np.ndarray,
        identities: pa.ChunkedArray,
        emotions: pa.ChunkedArray,
        attributes: np.ndarray,
        attribute_names: Sequence[str],
    ) -> None:
        self._files, self._places, self._points = files, places, points
        self.action_units = action_units
        self.names, self.people = _coded(identities, np.int32)
        emotion_names, self.emotions = _coded(emotions, np.uint16)
        self.emotion_names = tuple(emotion_names.to_pylist())
        self._attributes, self.attribute_names = attributes, tuple(attribute_names)
        # Records by identity: those of identity k are _by_identity[_starts[k]:_starts[k + 1]]
        self._by_identity = np.argsort(self.people, kind="stable").astype(np.int32)
        counts = np.bincount(self.people, minlength=len(self.names))
        self._starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> Record: ...

    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...

    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        if isinstance(index, slice):
            return [self[n] for n in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"there are {len(self)} records, got {index}")
        return Record(self, index % len(self))

    def of_identity(self, identity: int) -> np.ndarray:
        """Numbers of an identity's records; identity: its position in `names`."""
        return self._by_identity[self._starts[identity] : self._starts[identity + 1]]

    def identities_with(self, photographs: int) -> np.ndarray:
        """Positions in `names` of the identities with so many records or more."""
        return np.flatnonzero(np.diff(self._starts) >= photographs).astype(np.int32)

    def picture(self, index: int) -> bytes:
        """Returns the encoded crop, empty where the row has none.

        Like `landmarks` and `source`, raises DatasetError where the shard was changed since it was opened.
        """
        return self._files.picture(int(self._places[index]))

    def landmarks(self, index: int) -> np.ndarray:
        """Returns (points, 2) float32, px of the stored crop."""
        return self._files.landmarks(int(self._places[index]), 2 * self._points).reshape(-1, 2)

    def source(self, index: int) -> str:
        return self._files.source(int(self._places[index]))

    def attributes(self, index: int) -> frozenset[str]:
        there = np.unpackbits(self._attributes[index], count=len(self.attribute_names))
        return frozenset(itertools.compress(self.attribute_names, there))

    def bad_row(self, index: int, reason: str) -> BadRow:
        shard, row = self._files.shard_of(int(self._places[index]))
        return BadRow(shard, row, self.source(index), reason)


@dataclass(frozen=True, eq=False)
class Split:
    """What `read_split` found.

    records: the usable rows. quarantined: the others. rows: how many were read. lost: why shards cannot be
    read to their end. pictures: what `look` returned, by record. digest: SHA-256 of the records' columns, and
    of their pictures where these were read, else of the pictures' sizes by row group.
    """

    records: Records
    quarantined: list[BadRow]
    rows: int
    lost: list[str]
    pictures: dict[int, Any]
    digest: str


def read_split(
    paths: Sequence[Path],
    description: Mapping[str, Any],
    action_units: Sequence[int],
    expected: int,
    look: Callable[[bytes, np.ndarray], Any] | None,
) -> Split:
    """Reads and checks every row of a split.

    paths: of its shards. description: of the dataset. action_units: positions of the wanted ones in its
    labels. expected: number of rows, if all are there. look: is called with each picture and its landmarks
    (points, 2) px, by several threads; ValueError means that it cannot be used. None: pictures are not read.
    """
    files, points = ShardFiles(), LANDMARK_COUNTS[description["landmarks"]]
    meaning = [description[name] for name in ("action_units", "landmarks", "crop_size")]
    columns, digest = _Columns(action_units, expected), _Digest(meaning)
    quarantined, lost, pictures = [], [], {}
    with ThreadPoolExecutor() as pool:  # decoders release Python's lock
        for path in paths:
            number, start = 0, len(files)
            for table in _tables(path, files, lost, pictures=look is not None):
                labels, landmarks, reasons = examined(table, description)
                contents: list[bytes | None] = []
                if look is not None:
                    contents = _contents(table.column("image"))
                    looked = pool.map(partial(_looked, look), contents, landmarks)
                    looked = {row: found for row, found in enumerate(looked) if row not in reasons}
                    reasons |= {row: found for row, found in looked.items() if isinstance(found, str)}
                sources = table.column("source")
                for row, reason in sorted(reasons.items()):
                    source = sources[row].as_py()
                    named = source if isinstance(source, str) else ""
                    quarantined.append(BadRow(path.name, number + row, named, reason))
                files.distrust(start + number + row for row in reasons)
                usable = np.setdiff1d(np.arange(len(table)), [*reasons]).astype(np.int64)
                if look is not None:
                    pictures |= {len(columns) + n: looked[row] for n, row in enumerate(usable.tolist())}
                kept = table.take(pa.array(usable))
                columns.add(kept, start + number + usable, labels[usable])
                digest.update(
                    kept, labels[usable], landmarks[usable], [contents[row] for row in usable if contents]
                )
                number += len(table)
    if look is None:
        digest.update_pictures([files.chunk_sizes()])
    records = columns.records(files, points)
    pa.default_memory_pool().release_unused()  # of the tables
    return Split(records, quarantined, len(files), lost, pictures, digest.hexdigest())


def _tables(path: Path, files: ShardFiles, lost: list[str], pictures: bool) -> Iterator[pa.Table]:
    """Yields some rows of a shard after others; appends to `lost` why it ends early."""
    try:
        with opened(path, DatasetError) as stream, pq.ParquetFile(stream) as file:
            there = set(file.schema_arrow.names)
            if missing := [name for name in COLUMNS if name not in there]:
                raise DatasetError(f"{path.name} has no column {', '.join(missing)}")
            files.add(path, stream)
            files.add_groups(file.metadata)
            wanted = (*CHECKED, *LABELS, *(("image",) if pictures else ()))
            at_once = PICTURES_AT_ONCE if pictures else ROWS_AT_ONCE
            columns = [name for name in wanted if name in there]
            for batch in file.iter_batches(at_once, columns=columns, use_threads=False):
                yield pa.Table.from_batches([batch])
    except DatasetError as error:
        lost.append(str(error))
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        lost.append(f"cannot read {shown(path)} ({reason_of(error)})")


def _contents(column: pa.ChunkedArray) -> list[bytes | None]:
    """The encoded pictures of a column `image`."""
    if not pa.types.is_struct(column.type) or column.type.get_field_index("bytes") < 0:
        return [None] * len(column)
    return pc.struct_field(column, "bytes").to_pylist()


def _looked(look: Callable[[bytes, np.ndarray], Any], content: bytes | None, landmarks: np.ndarray) -> Any:
    """What `look` returns, or why a picture cannot be used."""
    try:
        return look(content or b"", landmarks)
    except ValueError as error:
        return str(error)


class _Columns:
    """Collects what `Records` keeps."""

    def __init__(self, action_units: Sequence[int], expected: int) -> None:
        self._chosen, self._count = list(action_units), 0
        # In one piece from the start, because pieces would leave the heap in pieces
        self._places = np.empty(expected, np.int32)
        self._labels = np.empty((expected, len(self._chosen)), np.float32)
        self._identities, self._emotions = [], []
        self._attributes: list[np.ndarray] = []  # (rows, names so far) bool
        self._names: dict[str, int] = {}  # of attributes

    def __len__(self) -> int:
        return self._count

    def add(self, table: pa.Table, places: np.ndarray, labels: np.ndarray) -> None:
        rows = slice(self._count, self._count + len(places))
        if missing := max(0, rows.stop - len(self._places)):
            self._places = np.concatenate([self._places, np.empty(missing, np.int32)])
            self._labels = np.concatenate([self._labels, np.empty((missing, len(self._chosen)), np.float32)])
        self._places[rows], self._labels[rows] = places, labels[:, self._chosen]
        self._count = rows.stop
        self._identities.append(_texts(table, "identity"))
        self._emotions.append(_texts(table, "emotion"))
        shown = table.column("attributes").to_pylist() if "attributes" in table.column_names else []
        for name in sorted(set(itertools.chain.from_iterable(filter(None, shown)))):
            if name:
                self._names.setdefault(name, len(self._names))
        there = np.zeros((len(table), len(self._names)), bool)
        for row, names in enumerate(shown):
            there[row, [self._names[name] for name in names or () if name]] = True
        self._attributes.append(there)

    def records(self, files: ShardFiles, points: int) -> Records:
        width = len(self._names)
        attributes = [
            np.packbits(np.pad(there, ((0, 0), (0, width - there.shape[1]))), axis=1)
            for there in self._attributes
        ]
        return Records(
            files,
            self._places[: self._count],
            points,
            self._labels[: self._count],
            pa.chunked_array(self._identities, pa.string()),
            pa.chunked_array(self._emotions, pa.string()),
            np.concatenate([np.zeros((0, -(-width // 8)), np.uint8), *attributes]),
            tuple(self._names),
        )


class _Digest:
    """SHA-256 of rows, however they come in parts."""

    def __init__(self, meaning: Any) -> None:
        self._meaning = repr(meaning).encode()
        self._hashes = {name: hashlib.sha256() for name in (*CHECKED, *LABELS, "image")}

    def update(
        self, table: pa.Table, labels: np.ndarray, landmarks: np.ndarray, pictures: Iterable[bytes]
    ) -> None:
        self._hashes["action_units"].update(labels.tobytes())
        self._hashes["landmarks"].update(landmarks.tobytes())
        for name in ("identity", "source", "pose", *LABELS):
            if name in table.column_names:
                cells = (f"{cell!r}\n" for cell in table.column(name).to_pylist())
                self._hashes[name].update("".join(cells).encode())
        self.update_pictures(pictures)

    def update_pictures(self, pictures: Iterable[bytes]) -> None:
        for content in pictures:
            self._hashes["image"].update(hashlib.sha256(content).digest())

    def hexdigest(self) -> str:
        return hashlib.sha256(
            self._meaning + b"".join(found.digest() for found in self._hashes.values())
        ).hexdigest()


def _texts(table: pa.Table, name: str) -> pa.Array:
    """A column of texts, empty where it is absent or null."""
    if name not in table.column_names:
        return pa.array([""] * len(table), pa.string())
    return pc.fill_null(table.column(name).cast(pa.string()), "").combine_chunks()


def _coded(texts: pa.ChunkedArray, kind: type[np.integer]) -> tuple[pa.StringArray, np.ndarray]:
    """The different texts in order of appearance, and the position of each text among them."""
    coded = texts.combine_chunks().dictionary_encode()
    return coded.dictionary, coded.indices.to_numpy(zero_copy_only=False).astype(kind)
