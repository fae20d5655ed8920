"""What a folder of edited photographs remembers, so that running again goes on where it stopped."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from magicedit.errors import OutputError

JOURNAL = "edits.jsonl"


class Journal:
    """`edits.jsonl` in the output folder: one JSON object a line, added when an edit begins or ends.

    The last line of an output is what counts. Its "state" is "begun" (what lies there may be older), "done"
    or "failed".

    Attributes:
        entries: output, relative -> its last line.
    """

    def __init__(self, path: Path, file: IO[bytes]):
        self.path = path
        self.entries: dict[str, dict[str, Any]] = {}
        self._file = file
        self._read()

    def _read(self) -> None:
        """OutputError where a line other than a cut-off last one is not ours; that one is taken away."""
        self._file.seek(0)
        *lines, rest = self._file.read().split(b"\n")
        for number, line in enumerate(lines, start=1):
            if b"\0" in line:  # what a disk had not written yet when the power went
                continue
            try:
                entry = json.loads(line)
                self.entries[entry["output"]] = entry
            except (ValueError, KeyError, TypeError) as error:
                raise OutputError(
                    f"{self.path} line {number} was not written by magicedit ({error!r}); choose another "
                    "output folder, or move the file away and run with --force: that edits everything again "
                    "and replaces the results"
                ) from error
        if rest:
            self._file.truncate(self._file.tell() - len(rest))

    def add(self, entry: dict[str, Any]) -> None:
        """Appends a line, which is on the disk when this returns. OutputError where that fails."""
        line = json.dumps(entry, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        try:
            if self._file.write(line) < len(line):
                raise OSError("there was no room for a whole line")
            os.fsync(self._file.fileno())  # else a power cut could leave a picture that no line knows
        except OSError as error:
            raise OutputError(
                f"{self.path} could not be written ({error}); make room, then run again to go on"
            ) from error
        self.entries[entry["output"]] = entry


@contextmanager
def open_journal(output: Path) -> Iterator[Journal]:
    """The journal of a folder, for one run at a time.

    Raises:
        OutputError: where it cannot be written, another run has it, or it holds what is not ours.
    """
    path = output / JOURNAL
    try:
        file = path.open("a+b", buffering=0)
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error}); choose another output folder") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise OutputError(
                f"another run is writing into {output}; wait for it, or choose another folder"
            ) from error
        _sync_folder(output)
        yield Journal(path, file)


def _sync_folder(folder: Path) -> None:
    """The names in a folder are on the disk when this returns, where its file system can do that."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)
