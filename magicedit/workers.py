"""Applies a function to one item after the other, in this process or in several.

Worker processes are spawned. If one dies, for instance from lack of memory, its item fails and the process is
replaced. Only the parent process handles Ctrl-C; when it stops, the workers end immediately.
"""

import multiprocessing
import os
import signal
import sys
import threading
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Generic, TypeVar

from magicedit.errors import MagicEditError

Item = TypeVar("Item")
Result = TypeVar("Result")
Start = Callable[[], Callable[[Item], Result]]


def cores() -> int:
    """Number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def limit_threads(threads: int) -> None:
    """Sets how many threads OpenCV, torch and ONNX Runtime use in this process.

    It does not import the latter two: they read the environment when they load.
    """
    import cv2

    cv2.setNumThreads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)


def each(
    start: Start[Item, Result],
    items: Sequence[Item],
    workers: int,
    failed: Callable[[Item, str], Result],
    begin: Callable[[Item], None] = lambda item: None,
) -> Iterator[tuple[Item, Result]]:
    """Yields items with their results, in the order of completion.

    Args:
        start: makes the function, once in each process; for several both it and the items must be picklable.
        workers: 1 for this process alone; above, a script that calls this needs `if __name__ == "__main__":`.
        failed: the result of an item whose process died, from the reason; also of all that are left when no
            process can start any more.
        begin: called with each item before its work begins, again where the worker died before the item
            arrived; at most one item per worker is in progress.

    Raises:
        MagicEditError: where the first processes cannot start, and errors of `start` there.
    """
    if workers > 1:
        yield from _in_processes(start, items, min(workers, len(items)), failed, begin)
        return
    function = start()
    for item in items:
        begin(item)
        yield item, function(item)


class _Process(Generic[Item]):
    """A worker in a process of its own, and the item that it has, None while it starts or waits."""

    def __init__(self, start: Start, threads: int):
        context = multiprocessing.get_context("spawn")  # libraries with threads of their own do not fork
        self.connection, theirs = context.Pipe()
        with theirs:
            self.process = context.Process(target=_serve, args=(theirs, start, threads), daemon=True)
            self.process.start()
        self.started = False
        self.items: list[Item] = []  # none or one

    def end(self) -> int | None:
        """Stops the process immediately and returns its exit code."""
        self.connection.close()
        self.process.kill()
        self.process.join()
        return self.process.exitcode


def _in_processes(
    start: Start[Item, Result],
    items: Sequence[Item],
    workers: int,
    failed: Callable[[Item, str], Result],
    begin: Callable[[Item], None],
) -> Iterator[tuple[Item, Result]]:
    threads = max(1, cores() // max(1, workers))
    left = deque(items)
    at_work = [_Process(start, threads) for _ in range(workers)]
    begun = False  # whether an item was
    lost = 0  # workers in a row that died before their item arrived
    try:
        while at_work:
            ready = wait([process.connection for process in at_work])
            for process in [process for process in at_work if process.connection in ready]:
                died: Exception | None = None
                try:
                    answer = process.connection.recv()
                except (EOFError, OSError):
                    process.process.join(timeout=10)  # its own exit code, not that of our kill
                    died = MagicEditError(
                        f"the worker process ended with code {process.end()} (-9: out of memory, as a rule); "
                        "try fewer workers, or a smaller photograph"
                    )
                error = died or (answer if not process.started else None)
                if error is not None:
                    at_work.remove(process)
                    process.end()
                    yield from ((item, failed(item, str(error))) for item in process.items)
                    if left and process.started:
                        at_work.append(_Process(start, threads))
                    elif left and not begun and not (died and at_work):
                        raise MagicEditError(f"while it started, {error}") if died else error
                    elif left and not at_work:
                        reason = f"no worker could start again: {error}"
                        yield from ((item, failed(item, reason)) for item in left)
                    continue
                yield from ((item, answer) for item in process.items)
                lost = 0 if process.items else lost
                process.started, process.items = True, []
                if left:
                    begun, process.items = True, [left.popleft()]
                    begin(process.items[0])
                    try:
                        process.connection.send(process.items[0])
                    except OSError:  # it died before, as reading from it will tell; another takes the item
                        if lost < 2 * workers:
                            left.appendleft(process.items.pop())
                        lost += 1
                else:
                    at_work.remove(process)
                    process.end()
    finally:
        for process in at_work:
            process.end()


def _serve(connection: Connection, start: Start, threads: int) -> None:
    """Runs the worker process: starts, then works until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.simplefilter("ignore")
    try:
        from tqdm import tqdm

        tqdm.set_lock(threading.RLock())  # its own has a semaphore, which would outlive our being killed
        limit_threads(threads)
        function = start()
    except MagicEditError as error:
        connection.send(error)
        return
    except Exception:
        connection.send(RuntimeError(f"a worker could not start:\n{traceback.format_exc()}"))
        return
    connection.send(None)
    try:
        while True:
            connection.send(function(connection.recv()))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
