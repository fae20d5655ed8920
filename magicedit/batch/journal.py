"""What a folder of edited photographs remembers, so that running again goes on where it stopped."""

import fcntl
import json
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
            try:
                entry = json.loads(line)
                self.entries[entry["output"]] = entry
            except (ValueError, KeyError, TypeError) as error:
                raise OutputError(
                    f"{self.path} line {number} was not written by magicedit ({error!r}); move it away, "
                    "then everything is edited again"
                ) from error
        if rest:
            self._file.truncate(self._file.tell() - len(rest))

    def add(self, entry: dict[str, Any]) -> None:
        """Appends a line, which is in the file when this returns. OutputError where that fails."""
        try:
            self._file.write(json.dumps(entry, ensure_ascii=False, allow_nan=False).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise OutputError(f"{self.path} could not be written ({error})") from error
        self.entries[entry["output"]] = entry


@contextmanager
def open_journal(output: Path) -> Iterator[Journal]:
    """The journal of a folder, for one run at a time.

    Raises:
        OutputError: where it cannot be written, another run has it, or it holds what is not ours.
    """
    path = output / JOURNAL
    try:
        file = path.open("a+b")
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error}); choose another output folder") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise OutputError(
                f"another run is writing into {output}; wait for it, or choose another folder"
            ) from error
        yield Journal(path, file)
