"""Bounded queues to other threads, for decoding and encoding in parallel with the model."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from magicedit.video_reading import Frame, Video, VideoInfo, to_rgb

Item = TypeVar("Item")
DECODED_AHEAD = 8  # frames at most
DECODED_BYTES = 4.5  # a pixel of a decoded frame: RGB and yuv420p
MOST_WAITING = 100_000_000  # bytes of pictures between two threads


def how_many(most: int, info: VideoInfo, bytes_a_pixel: float) -> int:
    """Returns how many pictures may wait: `most`, fewer if they are large, at least 2."""
    return max(2, min(most, int(MOST_WAITING / (info.width * info.height * bytes_a_pixel))))


def ahead(items: Iterable[Item], depth: int) -> Iterator[Item]:
    """Yields the items; a thread makes them at most `depth` ahead and ends when the iterator is closed.

    Errors of the thread are raised here.
    """
    iterator, end = iter(items), object()
    executor = ThreadPoolExecutor(1, "ahead")
    try:
        ready = deque(executor.submit(next, iterator, end) for _ in range(depth))
        while (item := ready.popleft().result()) is not end:
            ready.append(executor.submit(next, iterator, end))
            yield item
    finally:
        executor.shutdown(cancel_futures=True)


def pictures_ahead(video: Video, start: int) -> Iterator[tuple[Frame, np.ndarray]]:
    """Yields frames of a video from number `start`, each with RGB (height, width, 3) uint8, decoded ahead."""
    pictures = ((frame, to_rgb(frame.planes, video.info)) for frame in video.frames(start))
    return ahead(pictures, how_many(DECODED_AHEAD, video.info, DECODED_BYTES))


class Behind:
    """Runs calls one after the other in another thread; at most `depth` of them wait.

    A later `call` or `finish` raises their errors.
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
        """Drops calls that have not begun."""
        self._executor.shutdown(cancel_futures=True)
