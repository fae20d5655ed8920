"""A face backend in a process of its own, for programs that start, measure and end.

Its library then loads beside torch and diffusers, on another core, not after them: importing is Python's own
work, which the threads of one process cannot share.
"""

import contextlib
import subprocess
import sys
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from magicedit.errors import MagicEditError
from magicedit.faces.types import Face, Found, check_pixels
from magicedit.workers import cores

# The child finds the modules that this process found, from wherever it was started.
_CHILD = "import sys; sys.path[:] = {path!r}; from magicedit.faces.process import serve; serve({descriptor})"


class BackendProcess:
    """Hands photographs to the backend of that name in a child process, and its faces or errors back.

    name, settings: as of `load_backend`; what it raises is raised by the first `detect`.
    Not to be called from two threads at once. The child ends with `close`, or with this process. It ignores
    Python's warnings, and a Ctrl-C in the terminal is left to this process.
    """

    def __init__(self, name: str = "mediapipe", **settings: Any) -> None:
        self.name = name
        self._connection, theirs = Pipe()
        with theirs:
            code = _CHILD.format(path=sys.path, descriptor=theirs.fileno())
            self._process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-c", code], pass_fds=[theirs.fileno()], process_group=0
            )
        # The child reads when it is ready; meanwhile a large photograph does not fit into the pipe.
        self._asking = ThreadPoolExecutor(1, "faces")
        self._asking.submit(self._connection.send, (name, settings))
        self._ahead: tuple[np.ndarray, Future[Found]] | None = None

    def search_ahead(self, pixels: np.ndarray) -> None:
        """Starts what the next `search` of this very array, not changed meanwhile, will return."""
        self._ahead = pixels, self._asking.submit(self._ask, "search", check_pixels(pixels))

    def search(self, pixels: np.ndarray) -> Found:
        """As `magicedit.faces.search` of the backend; errors as of `detect`."""
        ahead, self._ahead = self._ahead, None
        if ahead is None or ahead[0] is not pixels:
            ahead = pixels, self._asking.submit(self._ask, "search", check_pixels(pixels))
        return ahead[1].result()

    def detect(self, pixels: np.ndarray) -> list[Face]:
        """Faces of an RGB photograph, (height, width, 3) uint8, largest first.

        ImageError for other arrays; MagicEditError where the child has died.
        """
        self._ahead = None
        return self._asking.submit(self._ask, "detect", check_pixels(pixels)).result()

    def close(self) -> None:
        """Ends the child, whatever it does at the moment."""
        self._process.kill()
        self._process.wait()
        self._asking.shutdown(cancel_futures=True)  # what was asked fails now: nobody is there to answer
        self._connection.close()

    def __enter__(self) -> "BackendProcess":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _ask(self, what: str, pixels: np.ndarray) -> Any:
        try:
            self._connection.send((what, pixels.shape))
            self._connection.send_bytes(pixels.data.cast("B"))
            answer = self._connection.recv()
        except (EOFError, OSError) as error:
            raise MagicEditError(
                f"the process that measures faces has ended with code {self._process.wait()} (-9: out of "
                "memory, as a rule); free memory, give a smaller photograph, or run with --debug"
            ) from error
        if isinstance(answer, Exception):
            raise answer
        return answer


def serve(descriptor: int) -> None:
    """The child: reads a backend's name and settings, then photographs, until the other end is closed."""
    from magicedit.faces import load_backend, search  # which the parent has no use for

    connection = Connection(descriptor)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        name, settings = connection.recv()
        backend = _outcome(lambda: load_backend(name, **settings))
        while True:
            what, shape = connection.recv()
            pixels = np.empty(shape, np.uint8)
            connection.recv_bytes_into(pixels.data.cast("B"))
            failed = isinstance(backend, Exception)
            look = partial(search, backend) if what == "search" else getattr(backend, "detect", None)
            connection.send(backend if failed else _outcome(partial(look, pixels)))


def _outcome(call: Callable[[], Any]) -> Any:
    """What a call returns or raises; of an error that is our own fault the traceback, which alone helps."""
    try:
        return call()
    except MagicEditError as error:
        return error
    except Exception:
        return RuntimeError(f"measuring faces failed in its process:\n{traceback.format_exc()}")


def spare_core() -> bool:
    """Whether a second process would find a core to run on."""
    return cores() > 1
