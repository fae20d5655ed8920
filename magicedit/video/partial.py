"""Unfinished work, kept beside the output so that it can be resumed: `.OUT.mp4.partial/`.

    request.json          request, input and versions: only equal work resumes here
    lock                  held while a program works here
    faces.jsonl, .done    the first pass: a line a frame, and the mark that it is complete
    piece-00007.mp4       the encoded frames of a piece; valid once its .json exists
    piece-00007.json      the timestamps of its frames; digests of the piece and of the state after it
    state-00008.npz       the state that the next piece starts from

Pieces that were changed since are made again.

Only these files are deleted with the folder; a foreign file in it is kept, and so is the folder.
"""

import contextlib
import json
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2
import numpy as np

from magicedit import __version__
from magicedit.editor import ExpressionEditor, SamplingSettings
from magicedit.errors import MagicEditError, OutputError, version_of
from magicedit.files import read_bytes, read_text, replacing, sha256_of, shown, sync, write_text
from magicedit.ledger import hold
from magicedit.video.writing import Piece
from magicedit.video_reading import import_av

_OURS = ("request.json", "faces.jsonl", "faces.done", "joined.tmp", "lock")
_PATTERNS = ("piece-*.mp4", "piece-*.json", "piece-*.tmp", "state-*.npz", ".*.tmp")


def identity(editor: ExpressionEditor, settings: SamplingSettings) -> dict[str, Any]:
    """Returns, JSON-ready, everything in model, settings and installation that a result depends on."""
    packages = ("av", "mediapipe", "numpy", "onnxruntime", "torch")
    versions = {name: version_of(name) for name in packages}
    return {
        "model": editor.model,
        "weights": editor.changer.model.fingerprint(),
        "backend": editor.backend.name,
        "sampling": settings.to_json(),
        # OpenCV is in four packages, of which any may be here
        "versions": {"magicedit": __version__, "opencv": cv2.__version__, **versions},
    }


class Partial:
    """The folder of one output; as a context manager it holds the folder's lock.

    request: JSON-ready, all inputs of the result. Work on another request that is there is deleted. Raises
    OutputError where the folder cannot be created, or another program is using it.
    """

    def __init__(self, output: Path, request: Mapping[str, Any]):
        target = output.resolve()
        self.folder = target.with_name(f".{target.name}.partial")
        self._request = json.dumps(request, sort_keys=True)

    def __enter__(self) -> "Partial":
        try:
            self.folder.mkdir(exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"{shown(self.folder)} cannot be made ({error}); choose another place"
            ) from error
        self._lock = hold(self.folder / "lock")
        try:
            request = self.folder / "request.json"
            known = request.is_file() and self._same(request)
            if not known or any(not stat.S_ISREG(path.lstat().st_mode) for path in self._ours()):
                self._clear(keep=("lock",))
                write_text(request, self._request)
        except OSError as error:
            self._lock.close()
            raise OutputError(f"{shown(self.folder)} cannot be cleared ({error}); delete it") from error
        except BaseException:
            self._lock.close()
            raise
        return self

    def _same(self, request: Path) -> bool:
        """Whether a file holds this request."""
        try:
            return read_bytes(request) == self._request.encode()
        except MagicEditError:
            return False

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.close()
        if isinstance(error, (OSError, import_av().error.FFmpegError)):
            raise OutputError(
                f"{shown(self.folder)} cannot be used for unfinished work ({error}); free some "
                "space, or choose another place"
            ) from error

    @property
    def faces(self) -> Path:
        return self.folder / "faces.jsonl"

    @property
    def joined(self) -> Path:
        """Path of the output before it is renamed."""
        return self.folder / "joined.tmp"

    def pieces(self) -> list[Piece]:
        """Returns the finished pieces, from the first; none, and deletes them, where one was changed."""
        found: list[Piece] = []
        state = None  # its digest
        try:
            while (note := self.folder / f"piece-{len(found):05}.json").is_file():
                content = json.loads(read_text(note))
                piece = Piece(note.with_suffix(".mp4"), content["pts"])
                if content["piece"] != sha256_of(piece.path):
                    raise ValueError("a piece differs from what was written")
                found.append(piece)
                state = content["state"]
            if found and state != sha256_of(self._state(len(found))):
                raise ValueError("a state differs from what was written")
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            for pattern in ("piece-*", "state-*"):
                for path in self.folder.glob(pattern):
                    path.unlink()
            return []
        return found

    def begin_piece(self, number: int) -> Path:
        """Returns the path of a piece until `finish_piece`."""
        return self.folder / f"piece-{number:05}.tmp"

    def finish_piece(self, number: int, pts: Sequence[int], state: Mapping[str, np.ndarray]) -> None:
        """Marks a written piece as finished, and stores the state after it."""
        with replacing(self._state(number + 1)) as file:
            np.savez(file, **state)
        piece = self.folder / f"piece-{number:05}.mp4"
        sync(self.begin_piece(number))
        os.replace(self.begin_piece(number), piece)
        digests = {"piece": sha256_of(piece), "state": sha256_of(self._state(number + 1))}
        write_text(piece.with_suffix(".json"), json.dumps({"pts": list(pts), **digests}))
        self._state(number).unlink(missing_ok=True)

    def state(self, number: int) -> dict[str, np.ndarray]:
        """Returns the stored state for a piece; empty for the first."""
        if not self._state(number).is_file():
            return {}
        with np.load(self._state(number), allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}

    def _state(self, number: int) -> Path:
        return self.folder / f"state-{number:05}.npz"

    def remove(self) -> None:
        """Deletes the folder, once the output exists or is given up."""
        self._clear()
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    def _clear(self, keep: Sequence[str] = ()) -> None:
        for path in self._ours():
            if path.name not in keep:
                path.unlink(missing_ok=True)

    def _ours(self) -> list[Path]:
        return [path for name in (*_OURS, *_PATTERNS) for path in self.folder.glob(name)]
