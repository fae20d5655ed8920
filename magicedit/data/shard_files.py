"""The Parquet shards of a split, as they were when they were first read, and values of single rows."""

import contextlib
import io
import os
import weakref
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from magicedit.data.parquet_pages import byte_arrays, chunk_of, floats
from magicedit.errors import DatasetError
from magicedit.files import open_regular, shown

KEPT_OPEN = 64  # shards; of 256 MiB each
_PARSED = 4  # shards that are compressed, or of another library, whose footers are held
# Columns of which single values are read, as Parquet names them
_PICTURE, _SOURCE, _LANDMARKS = range(3)
_COLUMNS = ("image.bytes", "source", "landmarks.list.element")

Read = Callable[[int, int], bytes]  # offset, size -> bytes of a file


class ShardFiles:
    """The shards of a split, as they were when they were first read.

    They stay open, as many as KEPT_OPEN, so that a file that takes the name of one is not read in its place;
    others, and those of a copy in another process, are opened again where they are still the same files.

    Rows are numbered through, shard after shard. Of the shards' footers only the places of row groups are
    kept, four bytes a row, and the place of each picture that was read, twelve bytes.
    """

    def __init__(self) -> None:
        self._paths: list[Path] = []
        self._states: dict[Path, tuple[int, ...]] = {}
        self._handles: dict[Path, int] = {}
        self._parsed: dict[Path, pq.ParquetFile] = {}
        self._first = np.zeros(1, np.int64)  # row of each group; the last: their number
        # Of each group: its shard, its number there, and first and last offset of _COLUMNS, see `chunk_of`
        self._groups = np.zeros((0, 2), np.int32)
        self._chunks = np.zeros((0, len(_COLUMNS), 2), np.int64)
        # Offset and bytes of each picture, and offset of each group's landmarks; 0 where not known yet
        self._picture_offsets, self._picture_sizes = np.zeros(0, np.int64), np.zeros(0, np.int32)
        self._landmark_offsets = np.zeros(0, np.int64)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_handles": {}, "_parsed": {}}  # another process has other handles

    def __len__(self) -> int:
        """Number of rows."""
        return int(self._first[-1])

    def add(self, path: Path, file: IO[bytes]) -> None:
        """Notes a file that is being read, and keeps it open."""
        self._paths.append(path)
        self._states[path] = _state(file.fileno())
        if hasattr(os, "pread") and len(self._handles) < KEPT_OPEN:
            handle = self._handles[path] = os.dup(file.fileno())
            weakref.finalize(self, os.close, handle)

    def add_groups(self, metadata: pq.FileMetaData) -> None:
        """Notes the row groups of the file that was added last."""
        count = metadata.num_row_groups
        # Not by `metadata.schema`, which keeps the footer alive by a reference cycle
        first = metadata.row_group(0) if count else None
        names = {
            first.column(number).path_in_schema: number for number in range(first.num_columns if first else 0)
        }
        rows = [metadata.row_group(group).num_rows for group in range(count)]
        chunks = [
            [chunk_of(metadata, group, names[name]) if name in names else (-1, -1) for name in _COLUMNS]
            for group in range(count)
        ]
        groups = np.stack([np.full(count, len(self._paths) - 1), np.arange(count)], 1)
        self._first = np.concatenate([self._first, self._first[-1] + np.cumsum(rows, dtype=np.int64)])
        self._groups = np.concatenate([self._groups, groups.astype(np.int32)])
        self._chunks = np.concatenate(
            [self._chunks, np.array(chunks, np.int64).reshape(-1, len(_COLUMNS), 2)]
        )
        self._picture_offsets = np.zeros(len(self), np.int64)
        self._picture_sizes = np.zeros(len(self), np.int32)
        self._landmark_offsets = np.zeros(len(self._groups), np.int64)

    def distrust(self, rows: Iterable[int]) -> None:
        """Notes rows with unusable lists, which may be shorter or longer than those of their neighbours."""
        groups = np.searchsorted(self._first, np.fromiter(rows, np.int64), side="right") - 1
        self._chunks[groups, _LANDMARKS] = -1

    def chunk_sizes(self) -> bytes:
        """The rows of each group and the bytes of its pictures, which differ where pictures do."""
        sizes = np.diff(self._chunks[:, _PICTURE]).ravel()
        return np.stack([np.diff(self._first), sizes]).tobytes()

    def picture(self, row: int) -> bytes:
        """Returns the encoded picture of a row, empty where it has none.

        Like `source` and `landmarks`, raises DatasetError where the file was changed since it was added.
        """
        with self._reading(row) as (group, place, read):
            if not self._picture_offsets[row]:
                found = self._byte_arrays(group, _PICTURE, read)
                if found is None:
                    cell = self._cell(group, place, "image")
                    return (cell and cell["bytes"]) or b""
                rows = slice(*self._first[group : group + 2].tolist())
                self._picture_offsets[rows], self._picture_sizes[rows] = np.transpose(found)
            return read(int(self._picture_offsets[row]), int(self._picture_sizes[row]))

    def source(self, row: int) -> str:
        with self._reading(row) as (group, place, read):
            found = self._byte_arrays(group, _SOURCE, read)
            return self._cell(group, place, "source") if found is None else read(*found[place]).decode()

    def landmarks(self, row: int, count: int) -> np.ndarray:
        """Returns (count,) float32: the coordinates of a row, of which each has as many."""
        with self._reading(row) as (group, place, read):
            offset = int(self._landmark_offsets[group])
            if not offset:
                (start, end), rows = self._chunks[group, _LANDMARKS].tolist(), np.diff(self._first)[group]
                found = floats(read, start, end, int(rows) * count) if start >= 0 else None
                if found is None:
                    return np.asarray(self._cell(group, place, "landmarks"), np.float32)
                offset = self._landmark_offsets[group] = found
            return np.frombuffer(read(offset + 4 * count * place, 4 * count), "<f4").astype(np.float32)

    def shard_of(self, row: int) -> tuple[str, int]:
        """Returns the name of a row's shard, and the row's number there."""
        group, place = self._place(row)
        shard, number = self._groups[group].tolist()
        return self._paths[shard].name, int(self._first[group] - self._first[group - number]) + place

    def _place(self, row: int) -> tuple[int, int]:
        """Group of a row, and its number there."""
        group = int(np.searchsorted(self._first, row, side="right")) - 1
        return group, row - int(self._first[group])

    def _byte_arrays(self, group: int, column: int, read: Read) -> list[tuple[int, int]] | None:
        """Offset and size of each of a group's values; None where only pyarrow can read them."""
        start, end = self._chunks[group, column].tolist()
        rows = int(self._first[group + 1] - self._first[group])
        return byte_arrays(read, start, end, rows) if start >= 0 else None

    def _cell(self, group: int, place: int, column: str) -> Any:
        """A value as pyarrow reads it."""
        shard, number = self._groups[group].tolist()
        path = self._paths[shard]
        if path in self._parsed:
            return self._parsed[path].read_row_group(number, [column]).column(0)[place].as_py()
        handle = self._handles.get(path)
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(open_regular(path)) if handle is None else _Reader(handle)
            parsed = pq.ParquetFile(io.BufferedReader(file) if handle else file)
            if handle is not None:  # it stays open
                while len(self._parsed) >= _PARSED:
                    del self._parsed[next(iter(self._parsed))]
                self._parsed[path] = parsed
            return parsed.read_row_group(number, [column]).column(0)[place].as_py()

    @contextlib.contextmanager
    def _reading(self, row: int) -> Iterator[tuple[int, int, Read]]:
        """The group of a row, its number there, and how to read its file, the same as when it was added."""
        group, place = self._place(row)
        path = self._paths[self._groups[group, 0]]
        handle = self._handles.get(path)
        try:
            with contextlib.ExitStack() as stack:
                if handle is None:
                    file = stack.enter_context(open_regular(path))
                    handle = file.fileno()
                    read = partial(_read_at, file)
                else:
                    read = partial(_pread, handle)
                if _state(handle) != self._states[path]:
                    raise DatasetError(
                        f"{shown(path)} was changed while the dataset was read; prepare into another folder "
                        "meanwhile, and resume the run with the dataset of before"
                    )
                yield group, place, read
        except DatasetError:
            raise
        except (pa.ArrowException, OSError, ValueError, LookupError, TypeError) as error:
            raise DatasetError(
                f"{shown(path)} has changed: row {place} of its group {self._groups[group, 1]} cannot be "
                f"read any more ({str(error)[:300]}); resume the run"
            ) from error


class _Reader(io.RawIOBase):
    """Reads an open file from a position of its own, because forked processes share that of the handle."""

    def __init__(self, handle: int) -> None:
        self._handle, self._position = handle, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        size = os.fstat(self._handle).st_size
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: size}[whence]
        self._position = start + offset
        return self._position

    def readinto(self, buffer: memoryview) -> int:
        content = os.pread(self._handle, len(buffer), self._position)
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)


def _pread(handle: int, offset: int, size: int) -> bytes:
    return _whole(os.pread(handle, size, offset), offset, size)


def _read_at(file: IO[bytes], offset: int, size: int) -> bytes:
    file.seek(offset)
    return _whole(file.read(size), offset, size)


def _whole(content: bytes, offset: int, size: int) -> bytes:
    if len(content) < size:
        raise OSError(f"the file ends at {offset + len(content)}")
    return content


def _state(handle: int) -> tuple[int, ...]:
    """What differs between files, and changes with a file's content."""
    found = os.fstat(handle)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
