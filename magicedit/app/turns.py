"""Who works with the model: one thread at a time, and long work lets others in between its parts."""

import contextlib
import threading
from collections.abc import Iterator


class Turns:
    """The lock of a model. A thread that waits for a turn gets the next one."""

    def __init__(self) -> None:
        self._next, self._model = threading.Lock(), threading.Lock()

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Holds the model."""
        self._take()
        try:
            yield
        finally:
            self._model.release()

    def pass_on(self) -> None:
        """Within a turn: lets the thread that waits have one, and waits for the next."""
        self._model.release()
        self._take()

    def _take(self) -> None:
        with self._next:  # nobody who comes later takes the model meanwhile
            self._model.acquire()
