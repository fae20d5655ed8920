"""Edits the rows of a batch, in this process or in several that each load a model."""

import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from magicedit import cluster
from magicedit.batch.rows import Row
from magicedit.errors import MagicEditError, OutputError, reason_of
from magicedit.files import sha256_of, shown
from magicedit.imaging import check_output, open_photo
from magicedit.provenance import without_place
from magicedit.workers import cores, each

Outcome = dict[str, Any]  # result of a row: JSON-ready, with "state" "done" or "failed"

ROWS_A_WORKER = 6  # loading a model takes as long as a few edits
MEMORY_A_WORKER = 1.2e9  # bytes; with `mini` 0.8e9 were measured


@dataclass(frozen=True)
class EditorSettings:
    """What a worker loads, and the folders it reads and writes; see `ExpressionEditor.from_pretrained`.

    optimize: whether to find this machine's fastest settings first. mark, strip_private: of the results.
    """

    folder: Path
    output: Path
    model: str = "mini"
    device: str | None = None
    dtype: str | None = None
    backend: str = "mediapipe"
    optimize: bool = False
    mark: bool = True
    strip_private: bool = False


class Worker:
    """An editor that makes and writes one edit per call, given a row."""

    def __init__(self, settings: EditorSettings):
        from magicedit.editor import ExpressionEditor

        self.settings = settings
        self.editor = ExpressionEditor.from_pretrained(
            settings.model,
            device=settings.device,
            dtype=settings.dtype,
            backend=settings.backend,
            mark=settings.mark,
            strip_private=settings.strip_private,
        )
        if settings.optimize:
            self.editor.optimize()

    def __call__(self, row: Row) -> Outcome:
        """Returns the result of the row, errors included: one row must not stop thousands."""
        started = time.perf_counter()
        source, target = self.settings.folder / row.photo, self.settings.output / row.output
        try:
            photo = open_photo(source)
            sha256 = sha256_of(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            written = without_place(photo) if self.settings.strip_private else photo
            check_output(target, forbid=source, photo=written)
            (result,) = self.editor.apply([photo], row.request)
            lost = list(result.write(target, forbid=source))
        except MagicEditError as error:
            return failed(reason_of(error, None))
        except OSError as error:
            return failed(f"{shown(error.filename or target)}: {error.strerror or error}")
        except Exception as error:  # a bug of ours must not stop the other rows
            return failed(f"{type(error).__name__}: {reason_of(error, None)}")
        return {
            "state": "done",
            "photo_sha256": sha256,
            "seconds": round(time.perf_counter() - started, 3),
            "faces": [face.to_json() for face in result.faces],
            "left_alone": result.left_alone,
            "lost": lost,
            "marked": result.marked,
        }


def failed(reason: str) -> Outcome:
    return {"state": "failed", "reason": reason}


@dataclass(frozen=True)
class Pool:
    """What edits. engine: "local", processes of this machine, or "ray". workers: how many; None: all of a
    cluster. address: of a Ray cluster; None: this machine."""

    engine: str = "local"
    workers: int | None = 1
    address: str | None = None


def edit_rows(
    settings: EditorSettings, rows: Sequence[Row], pool: Pool, begin: Callable[[Row], None]
) -> Iterator[tuple[Row, Outcome]]:
    """Yields rows with their results, see `magicedit.workers.each`; MagicEditError without a model."""

    def lost(row: Row, reason: str) -> Outcome:
        return failed(reason)

    if pool.engine == "local":
        return each(partial(Worker, settings), rows, pool.workers, lost, begin)
    folders = {"folder": settings.folder.absolute(), "output": settings.output.absolute()}
    start = partial(_worker_elsewhere, replace(settings, **folders))
    gpu = None if settings.device is None else settings.device != "cpu"
    return cluster.each(start, rows, pool.workers, lost, begin, address=pool.address, gpu=gpu)


def _worker_elsewhere(settings: EditorSettings) -> Worker:
    """Makes a worker on a node of a cluster. OutputError where it does not see the folders."""
    for folder in (settings.folder, settings.output):
        if not folder.is_dir():
            raise OutputError(
                f"{shown(folder)} is not there on the node {platform.node()} of the cluster; put it on a "
                "disk that all nodes see under the same path"
            )
    return Worker(settings)


def sensible_workers(rows: int, device: str | None) -> int:
    """Returns one worker per core, limited by memory and the number of rows; on a GPU only one."""
    import psutil

    on_gpu = Path("/dev/nvidia0").exists() if device is None else device != "cpu"
    if on_gpu:
        return 1
    memory = int(psutil.virtual_memory().available / MEMORY_A_WORKER)
    return max(1, min(cores(), memory, rows // ROWS_A_WORKER))
