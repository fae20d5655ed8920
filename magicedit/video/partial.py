"""Unfinished work, kept beside the output so that it can be gone on with: `.OUT.mp4.partial/`.

    request.json          what was asked for, of which input, by which versions: nothing else mixes with it
    lock                  held while a program works here
    faces.jsonl, .done    the first pass: a line a frame, and that it is whole
    piece-00007.mp4       the frames of a piece, encoded; it counts once its .json is there
    piece-00007.json      the timestamps of its frames
    state-00008.npz       what the next piece needs to know of those before

Nothing else is deleted with the folder, so a file that somebody else put there keeps it alive.
"""

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from magicedit import __version__
from magicedit.editor import ExpressionEditor, SamplingSettings
from magicedit.errors import OutputError
from magicedit.files import replacing
from magicedit.ledger import hold
from magicedit.video.reading import import_av
from magicedit.video.writing import Piece

_OURS = ("request.json", "faces.jsonl", "faces.done", "joined.tmp", "lock")
_PATTERNS = ("piece-*.mp4", "piece-*.json", "piece-*.tmp", "state-*.npz", ".*.tmp")


def identity(editor: ExpressionEditor, settings: SamplingSettings) -> dict[str, Any]:
    """What of the model, the settings and this installation a result depends on, JSON-ready."""
    packages = ("av", "mediapipe", "numpy", "opencv-contrib-python", "torch")
    return {
        "model": editor.model,
        "weights": editor.changer.model.fingerprint(),
        "backend": editor.backend.name,
        "sampling": settings.to_json(),
        "versions": {"magicedit": __version__, **{name: _version(name) for name in packages}},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


class Partial:
    """The folder of one output; use as a context, which holds its lock.

    request: JSON-ready, everything that the result depends on.
    began_anew: whether work on another request lay there and was thrown away.

    Raises:
        OutputError: where the folder cannot be made, or another program works in it.
    """

    def __init__(self, output: Path, request: Mapping[str, Any]):
        target = output.resolve()
        self.folder = target.with_name(f".{target.name}.partial")
        self._request = json.dumps(request, sort_keys=True, ensure_ascii=False)
        self.began_anew = False

    def __enter__(self) -> "Partial":
        try:
            self.folder.mkdir(exist_ok=True)
        except OSError as error:
            raise OutputError(f"{self.folder} cannot be made ({error}); choose another place") from error
        self._lock = hold(self.folder / "lock")
        request = self.folder / "request.json"
        if not request.is_file() or request.read_text(encoding="utf-8") != self._request:
            self.began_anew = request.is_file()
            self._clear(keep=("lock",))
            with replacing(request) as file:
                file.write(self._request.encode())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.close()
        if isinstance(error, (OSError, import_av().error.FFmpegError)):
            raise OutputError(
                f"{self.folder} cannot be worked in ({error}); make room or choose another place"
            ) from error

    @property
    def faces(self) -> Path:
        return self.folder / "faces.jsonl"

    @property
    def joined(self) -> Path:
        """Where the output is written before it gets its name."""
        return self.folder / "joined.tmp"

    def pieces(self) -> list[Piece]:
        """The finished ones, from the first on."""
        found: list[Piece] = []
        while (note := self.folder / f"piece-{len(found):05}.json").is_file():
            found.append(Piece(note.with_suffix(".mp4"), json.loads(note.read_text())))
        return found

    def begin_piece(self, number: int) -> Path:
        """Where a piece is to be written until `finish_piece`."""
        return self.folder / f"piece-{number:05}.tmp"

    def finish_piece(self, number: int, pts: Sequence[int], state: Mapping[str, np.ndarray]) -> None:
        """Counts what was written for a piece as done, with the state after it."""
        with replacing(self._state(number + 1)) as file:
            np.savez(file, **state)
        piece = self.folder / f"piece-{number:05}.mp4"
        with self.begin_piece(number).open("rb") as file:
            os.fsync(file.fileno())
        os.replace(self.begin_piece(number), piece)
        with replacing(piece.with_suffix(".json")) as file:
            file.write(json.dumps(list(pts)).encode())
        self._state(number).unlink(missing_ok=True)

    def state(self, number: int) -> dict[str, np.ndarray]:
        """What was kept for the piece of that number; empty for the first."""
        if not self._state(number).is_file():
            return {}
        with np.load(self._state(number), allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}

    def _state(self, number: int) -> Path:
        return self.folder / f"state-{number:05}.npz"

    def remove(self) -> None:
        """Deletes the folder: the output is there, or there will be none."""
        self._clear()
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    def _clear(self, keep: Sequence[str] = ()) -> None:
        for name in (*_OURS, *_PATTERNS):
            for path in self.folder.glob(name):
                if path.name not in keep:
                    path.unlink(missing_ok=True)
