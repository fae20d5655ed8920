"""Work ahead in another thread, with a bound on how far: decoding and encoding beside the model."""

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from magicedit.video.reading import VideoInfo

Item = TypeVar("Item")
MOST_WAITING = 100_000_000  # bytes of pictures between two threads
_LOOK = 0.1  # seconds after which a waiting thread looks whether it is still needed


def how_many(most: int, info: VideoInfo, bytes_a_pixel: float) -> int:
    """How many pictures may wait: `most`, fewer where they are large, at least 2."""
    return max(2, min(most, int(MOST_WAITING / (info.width * info.height * bytes_a_pixel))))


def ahead(items: Iterable[Item], depth: int) -> Iterator[Item]:
    """The items, made by a thread that is at most `depth` of them ahead; it ends when the iterator is closed.

    What making them raises is raised here.
    """
    ready: queue.Queue[tuple[bool, Any]] = queue.Queue(depth)
    unwanted = threading.Event()

    def hand_over(entry: tuple[bool, Any]) -> bool:
        while not unwanted.is_set():
            try:
                ready.put(entry, timeout=_LOOK)
                return True
            except queue.Full:
                continue
        return False

    def make() -> None:
        try:
            for item in items:
                if not hand_over((True, item)):
                    return
            hand_over((False, None))
        except BaseException as error:
            hand_over((False, error))

    thread = threading.Thread(target=make, name="ahead", daemon=True)
    thread.start()
    try:
        while True:
            more, item = ready.get()
            if more:
                yield item
            elif item is None:
                return
            else:
                raise item
    finally:
        unwanted.set()
        thread.join()


class Behind:
    """Calls made one after the other in another thread, at most `depth` of them waiting.

    What one raises is raised by a later `call` or by `finish`.
    """

    def __init__(self, depth: int):
        self._depth = depth
        self._executor = ThreadPoolExecutor(1, "behind")
        self._waiting: deque[Future[None]] = deque()

    def call(self, function: Callable[..., None], *arguments: Any) -> None:
        while len(self._waiting) >= self._depth:
            self._waiting.popleft().result()
        self._waiting.append(self._executor.submit(function, *arguments))

    def finish(self) -> None:
        """Waits until all calls are done."""
        while self._waiting:
            self._waiting.popleft().result()

    def close(self) -> None:
        """Leaves out what has not begun."""
        self._executor.shutdown(cancel_futures=True)
