"""Editing the rows of a batch, in this process or in several with a model each."""

import contextlib
import hashlib
import multiprocessing
import os
import signal
import threading
import time
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnContext
from pathlib import Path
from typing import Any

from magicedit.batch.rows import Row
from magicedit.errors import MagicEditError
from magicedit.imaging import check_output, open_photo, save_image

# What became of a row: JSON-ready, with "state" "done" or "failed"
Outcome = dict[str, Any]

ROWS_A_WORKER = 6  # loading a model takes as long as a few edits
MEMORY_A_WORKER = 1.2e9  # bytes; with `mini` 0.8e9 were measured


@dataclass(frozen=True)
class EditorSettings:
    """What a worker loads, and the folders it reads and writes; see `ExpressionEditor.from_pretrained`.

    optimize: whether it first finds this machine's fastest settings.
    """

    folder: Path
    output: Path
    model: str = "mini"
    device: str | None = None
    dtype: str | None = None
    backend: str = "mediapipe"
    optimize: bool = False


class Worker:
    """An editor, and the rows that it is given."""

    def __init__(self, settings: EditorSettings):
        from magicedit.editor import ExpressionEditor

        self.settings = settings
        self.editor = ExpressionEditor.from_pretrained(
            settings.model, device=settings.device, dtype=settings.dtype, backend=settings.backend
        )
        if settings.optimize:
            self.editor.optimize()

    def edit(self, row: Row) -> Outcome:
        """Makes one edit and writes it. What fails is in the outcome: one row must not end thousands."""
        started = time.perf_counter()
        source, target = self.settings.folder / row.photo, self.settings.output / row.output
        try:
            photo = open_photo(source)
            sha256 = sha256_of(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            check_output(target, forbid=source)
            (result,) = self.editor.apply([photo], row.request)
            save_image(result.image, target, forbid=source)
        except MagicEditError as error:
            return failed(" ".join(str(error).split()))
        except Exception as error:  # our own fault, and still not the other rows'
            return failed(f"{type(error).__name__}: {' '.join(str(error).split())}")
        return {
            "state": "done",
            "photo_sha256": sha256,
            "seconds": round(time.perf_counter() - started, 3),
            "faces": [face.to_json() for face in result.faces],
            "left_alone": result.left_alone,
        }


def failed(reason: str) -> Outcome:
    return {"state": "failed", "reason": reason}


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def edit_rows(
    settings: EditorSettings, rows: Sequence[Row], workers: int, begin: Callable[[Row], None]
) -> Iterator[tuple[Row, Outcome]]:
    """Rows with what became of them, in the order in which they end.

    A process that dies, of memory for instance, fails the row that it had; another takes its place. Where
    none can load the model any more, the rows that are left fail.

    Args:
        workers: 1 for this process alone; above, a script that calls this needs `if __name__ == "__main__":`.
        begin: is told each row before its edit begins; no more are under way than there are workers.

    Raises:
        MagicEditError: where the model cannot be loaded to begin with.
    """
    if workers == 1:
        worker = Worker(settings)
        for row in rows:
            begin(row)
            yield row, worker.edit(row)
        return
    yield from _in_processes(settings, rows, workers, begin)


# --- Several processes ---


class _Process:
    """A worker in a process of its own, and the row that it has, None while it loads or waits."""

    def __init__(self, context: SpawnContext, settings: EditorSettings, threads: int):
        self.connection, theirs = context.Pipe()
        with theirs:
            self.process = context.Process(target=_serve, args=(theirs, settings, threads), daemon=True)
            self.process.start()
        self.loaded = False
        self.row: Row | None = None

    def end(self) -> int | None:
        """Ends it, whatever it does at the moment, and returns its exit code."""
        self.connection.close()
        self.process.kill()
        self.process.join()
        return self.process.exitcode


def _in_processes(
    settings: EditorSettings, rows: Sequence[Row], workers: int, begin: Callable[[Row], None]
) -> Iterator[tuple[Row, Outcome]]:
    context = multiprocessing.get_context("spawn")  # libraries with threads of their own do not fork
    threads = max(1, cores() // workers)
    left = deque(rows)
    at_work = [_Process(context, settings, threads) for _ in range(min(workers, len(left)))]
    begun = False  # whether a row was
    try:
        while at_work:
            ready = wait([process.connection for process in at_work])
            for process in [process for process in at_work if process.connection in ready]:
                died = False
                try:
                    outcome = process.connection.recv()
                except (EOFError, OSError):
                    process.process.join(timeout=10)  # its own exit code, not that of our kill
                    died, outcome = True, MagicEditError(_death(process.end()))
                if isinstance(outcome, Exception):
                    at_work.remove(process)
                    process.end()
                    if process.row is not None:
                        yield process.row, failed(str(outcome))
                    if left and process.loaded:
                        at_work.append(_Process(context, settings, threads))
                    elif left and not begun and not (died and at_work):
                        raise MagicEditError(f"while it loaded the model, {outcome}") if died else outcome
                    elif left and not at_work:
                        for row in left:
                            yield row, failed(f"no worker could load the model again: {outcome}")
                    continue
                process.loaded = True
                if process.row is not None:
                    row, process.row = process.row, None
                    yield row, outcome
                if left:
                    begun, process.row = True, left.popleft()
                    begin(process.row)
                    with contextlib.suppress(OSError):  # it died: reading from it will tell
                        process.connection.send(process.row)
                else:
                    at_work.remove(process)
                    process.end()
    finally:
        for process in at_work:
            process.end()


def _death(code: int | None) -> str:
    return (
        f"the worker process ended with code {code} (-9: out of memory, as a rule); "
        "try fewer workers, or a smaller photograph"
    )


def _serve(connection: Connection, settings: EditorSettings, threads: int) -> None:
    """The other process: loads, then edits rows until the other end is closed. Ctrl-C is the parent's."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.simplefilter("ignore")
    try:
        import cv2
        import torch
        from tqdm import tqdm

        tqdm.set_lock(threading.RLock())  # its own has a semaphore, which would outlive our being killed
        torch.set_num_threads(threads)  # cores are shared, not fought for
        cv2.setNumThreads(threads)
        worker = Worker(settings)
    except MagicEditError as error:
        connection.send(error)
        return
    except Exception:
        connection.send(RuntimeError(f"a worker could not start:\n{traceback.format_exc()}"))
        return
    connection.send(None)
    try:
        while True:
            connection.send(worker.edit(connection.recv()))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


def cores() -> int:
    """That this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def sensible_workers(rows: int, device: str | None) -> int:
    """One a core, as far as memory and the number of rows make it worth while; on a GPU one alone."""
    import psutil

    on_gpu = Path("/dev/nvidia0").exists() if device is None else device != "cpu"
    if on_gpu:
        return 1
    memory = int(psutil.virtual_memory().available / MEMORY_A_WORKER)
    return max(1, min(cores(), memory, rows // ROWS_A_WORKER))
