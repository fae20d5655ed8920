"""Ends a job before its k-th file-system call that writes under a folder, or counts these calls.

A job is a callable. It runs in a process forked from this one, which has imported what it needs and has not
used it: a process whose parent has run a backward pass, or holds threads, is not fit for more.
"""

import contextlib
import mmap
import os
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Audit events of calls that change a folder: positions of each path and of the open folder it begins at
_EVENTS = {
    "open": ((0, None),),
    "os.rename": ((0, 2), (1, 3)),
    "os.link": ((0, 2), (1, 3)),
    "os.symlink": ((1, 2),),
    "os.remove": ((0, 1),),
    "os.rmdir": ((0, 1),),
    "os.mkdir": ((0, 2),),
    "os.truncate": ((0, None),),
    "shutil.rmtree": ((0, 1),),
}
OUTPUT_KEPT = 4000  # characters of a job's output


@dataclass(frozen=True)
class Ended:
    """How a job ended.

    code: what it returned (None: 0), 1 after an exception, or minus the signal that ended it. calls: its
    file-system calls under the folder, with the one it was ended before. output: the end of what it wrote.
    """

    code: int
    calls: int
    output: str


def run(
    job: Callable[[], int | None],
    under: Path,
    at: int | None = None,
    sent: int = signal.SIGKILL,
    timeout: float = 300,
) -> Ended:
    """Runs a job in a process of its own and sends it a signal before its `at`-th call, from 1; None: never.

    Calls are those that open a file for writing, make, rename or remove something under the folder, in the
    job's own process. TimeoutError after `timeout` seconds; the job and its processes are then ended.
    """
    calls = mmap.mmap(-1, 8)  # shared with the child, so that the count outlives a kill
    with tempfile.TemporaryFile("w+") as output:
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if not child:
            _child(job, Path(under).resolve(), at, sent, calls, output.fileno())
        status, deadline = None, time.monotonic() + timeout
        while status is None and time.monotonic() < deadline:
            pid, found = os.waitpid(child, os.WNOHANG)
            status = found if pid else time.sleep(0.005)
        with contextlib.suppress(ProcessLookupError):  # processes that it started
            os.killpg(child, signal.SIGKILL)
        if status is None:
            os.waitpid(child, 0)
            raise TimeoutError(f"the job did not end within {timeout:g} s")
        output.seek(0)
        text = output.read()[-OUTPUT_KEPT:]
    return Ended(os.waitstatus_to_exitcode(status), struct.unpack("q", calls[:])[0], text)


def count(job: Callable[[], int | None], under: Path) -> int:
    """Returns the number of a job's file-system calls under a folder. RuntimeError where the job fails."""
    ended = run(job, under)
    if ended.code:
        raise RuntimeError(f"the job ended with {ended.code}: {ended.output}")
    return ended.calls


def _child(job, under: Path, at: int | None, sent: int, calls: mmap.mmap, output: int) -> None:
    """Runs the job and ends the process."""
    code = 1
    try:
        os.setsid()
        for descriptor in (1, 2):
            os.dup2(output, descriptor)
        sys.stdout = sys.stderr = os.fdopen(os.dup(output), "w", buffering=1)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.addaudithook(_hook(under, at, sent, calls))
        code = job() or 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def _hook(under: Path, at: int | None, sent: int, calls: mmap.mmap) -> Callable[[str, tuple], None]:
    busy = False

    def hook(event: str, arguments: tuple) -> None:
        nonlocal busy
        if busy or event not in _EVENTS or (event == "open" and not (arguments[2] or 0) & _WRITING):
            return
        busy = True  # finding where a path is raises events itself
        try:
            if any(_is_under(arguments, *places, under) for places in _EVENTS[event]):
                number = struct.unpack("q", calls[:])[0] + 1
                calls[:] = struct.pack("q", number)
                if number == at:
                    os.kill(os.getpid(), sent)
        finally:
            busy = False

    return hook


def _is_under(arguments: tuple, path: int, folder: int | None, under: Path) -> bool:
    """Whether the path at this position of an event's arguments is in the folder."""
    name = arguments[path]
    if not isinstance(name, str | bytes | os.PathLike):
        return False  # a descriptor that is open already
    text = os.fsdecode(name)
    if folder is not None and isinstance(arguments[folder], int) and arguments[folder] >= 0:
        text = os.path.join(os.readlink(f"/proc/self/fd/{arguments[folder]}"), text)
    parent = os.path.realpath(os.path.dirname(os.path.abspath(text)))
    return Path(parent, os.path.basename(text)).is_relative_to(under)
