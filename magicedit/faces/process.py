"""A face backend in its own process, for short-lived programs.

Its library then loads in parallel with torch and diffusers on another core. Threads of one process cannot do
this, because importing runs Python code.
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

# The child finds the same modules as this process, in every working directory.
_CHILD = "import sys; sys.path[:] = {path!r}; from magicedit.faces.process import serve; serve({descriptor})"


class BackendProcess(contextlib.AbstractContextManager):
    """Sends photographs to the named backend in a child process and returns its faces or raises its errors.

    name, settings: as in `load_backend`; the first `detect` raises its errors.
    Not to be called from two threads at once. The child ends with `close`, or with this process. It ignores
    Python's warnings; only this process handles Ctrl-C in the terminal.
    """

    def __init__(self, name: str = "mediapipe", **settings: Any) -> None:
        self.name = name
        self._connection, theirs = Pipe()
        with theirs:
            code = _CHILD.format(path=sys.path, descriptor=theirs.fileno())
            self._process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-c", code], pass_fds=[theirs.fileno()], process_group=0
            )
        # The child reads only once it is ready; until then a large photograph does not fit into the pipe.
        self._asking = ThreadPoolExecutor(1, "faces")
        self._asking.submit(self._connection.send, (name, settings))
        self._ahead: tuple[np.ndarray, Future[Found]] | None = None

    def search_ahead(self, pixels: np.ndarray) -> None:
        """Starts the next `search` early; it must get the same array, unchanged."""
        self._ahead = pixels, self._asking.submit(self._ask, "search", check_pixels(pixels))

    def search(self, pixels: np.ndarray) -> Found:
        """As `magicedit.faces.search` with the backend; errors as in `detect`."""
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
        """Stops the child immediately."""
        self._process.kill()
        self._process.wait()
        self._asking.shutdown(cancel_futures=True)  # pending requests fail now, since the child is gone
        self._connection.close()

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
    """Runs the child: reads a backend's name and settings, then photographs until the other end closes."""
    from magicedit.faces import load_backend, search  # not needed by the parent

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
    """Returns what a call returns or raises; for errors in our own code, the traceback."""
    try:
        return call()
    except MagicEditError as error:
        return error
    except Exception:
        return RuntimeError(f"measuring faces failed in its process:\n{traceback.format_exc()}")
