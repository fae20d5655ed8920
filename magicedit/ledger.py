"""The record of an interruptible run: a file of JSON lines, which the next run reads and continues.

A line is on the disk when `Ledger.add` returns: a kill or a power cut loses at most the entry that was being
written. One process at a time writes; others may read at the same time.
"""

import json
import os
import stat
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import IO, Any

from magicedit.errors import OutputError
from magicedit.files import read_bytes, replacing, shown, sync_names

# In a folder of edited photographs, with a line when an edit begins or ends. The "state" of an output's last
# line is "begun" (the existing output may be older), "done" or "failed".
JOURNAL = "edits.jsonl"
_FAR = 2**31 - 2  # bytes into a file, where Windows locks it

Entry = dict[str, Any]
Key = Callable[[Entry], Hashable]


class Ledger:
    """A record; as a context manager it locks the file.

    key: maps an entry to its key, and raises KeyError, TypeError or ValueError for what no run of ours wrote;
    the last entry of a key counts. entries: by key, in the order of the keys'
    first lines. Raises OutputError where the file cannot be written, another process holds it, or it has
    invalid lines.
    """

    def __init__(self, path: Path, key: Key):
        self.path, self._key = path, key
        self.entries: dict[Hashable, Entry] = {}

    def __enter__(self) -> "Ledger":
        self._file = hold(self.path)
        try:
            drop_torn_line(self._file)
            self.entries = read_ledger(self.path, self._key)
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def add(self, entry: Entry) -> None:
        """Appends a line. OutputError where that fails."""
        line = _line(entry)
        try:
            if self._file.write(line) < len(line):
                raise OSError("there was no room for a whole line")
            os.fsync(self._file.fileno())  # else a power cut could leave a result without a line
        except OSError as error:
            raise OutputError(
                f"{shown(self.path)} could not be written ({error}); free some space and run again to resume"
            ) from error
        self.entries[self._key(entry)] = entry

    def rewrite(self) -> None:
        """Atomically rewrites the file with one line for each entry."""
        with replacing(self.path) as file:
            file.writelines(map(_line, self.entries.values()))
        with self._file:  # held until the new one is
            self._file = hold(self.path)

    def compact(self) -> None:
        """Rewrites the file if it has more lines than entries."""
        if read_bytes(self.path, OutputError).count(b"\n") > len(self.entries):
            self.rewrite()


def _line(entry: Entry) -> bytes:
    try:
        return json.dumps(entry, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # a file's name that is not UTF-8, which escapes can write
        return json.dumps(entry).encode() + b"\n"


def read_ledger(path: Path, key: Key) -> dict[Hashable, Entry]:
    """Reads the entries of a record by key; none if the file does not exist.

    An incomplete last line is ignored. OutputError where any other line is not an entry.
    """
    entries: dict[Hashable, Entry] = {}
    lines = read_bytes(path, OutputError).split(b"\n") if os.path.lexists(path) else []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or b"\0" in line:  # NUL: data not yet on the disk at a power cut
            continue
        try:
            entry = json.loads(line)
            entries[key(entry)] = entry
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            if number == len(lines) and isinstance(error, ValueError):
                break
            raise OutputError(
                f"{shown(path)} line {number} was not written by magicedit ({repr(error)[:200]}); choose "
                "another output folder, or move the file away to start over"
            ) from error
    return entries


def hold(path: Path) -> IO[bytes]:
    """A file, made where it does not exist, to read and append to; no other process holds it until it is
    closed. OutputError where it cannot be written, or another process holds it."""
    try:
        file = path.open("a+b", buffering=0)
    except (OSError, ValueError) as error:
        raise OutputError(f"{shown(path)} cannot be written ({error}); choose another folder") from error
    try:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError("it is not a file")
        _lock(file)
        if not os.path.samestat(os.fstat(file.fileno()), path.stat()):  # replaced before it was ours
            raise BlockingIOError("it was replaced")
        sync_names(path.parent)
    except OSError as error:
        file.close()
        if isinstance(error, BlockingIOError):
            problem = f"another run is writing into {shown(path.parent)}; wait for it"
        else:
            problem = f"{shown(path)} cannot be locked ({error}); use a disk of this machine"
        raise OutputError(f"{problem}, or choose another folder") from error
    return file


def _lock(file: IO[bytes]) -> None:
    """BlockingIOError where another process has it."""
    try:
        import fcntl
    except ImportError:  # Windows, whose locks forbid others to read too: a byte that no record reaches
        import msvcrt

        file.seek(_FAR)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError as error:
            raise BlockingIOError(*error.args) from error
    else:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def drop_torn_line(file: IO[bytes]) -> None:
    """Truncates a file of lines after its last complete line."""
    size = end = file.seek(0, os.SEEK_END)
    tail = b""
    while end and b"\n" not in tail:
        start = max(0, end - 65536)
        file.seek(start)
        tail, end = file.read(end - start), start
    if (whole := end + tail.rfind(b"\n") + 1) < size:
        file.truncate(whole)
