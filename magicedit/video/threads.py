"""Work ahead in another thread, with a bound on how far: decoding and encoding beside the model."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from magicedit.video.reading import Frame, Video, VideoInfo, to_rgb

Item = TypeVar("Item")
DECODED_AHEAD = 8  # frames at most
DECODED_BYTES = 4.5  # a pixel of a decoded frame: RGB and yuv420p
MOST_WAITING = 100_000_000  # bytes of pictures between two threads


def how_many(most: int, info: VideoInfo, bytes_a_pixel: float) -> int:
    """How many pictures may wait: `most`, fewer where they are large, at least 2."""
    return max(2, min(most, int(MOST_WAITING / (info.width * info.height * bytes_a_pixel))))


def ahead(items: Iterable[Item], depth: int) -> Iterator[Item]:
    """The items, made by a thread that is at most `depth` of them ahead; it ends when the iterator is closed.

    What making them raises is raised here.
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
    """Frames of a video from number `start` on, each with its RGB (height, width, 3) uint8, decoded ahead."""
    pictures = ((frame, to_rgb(frame.planes, video.info)) for frame in video.frames(start))
    return ahead(pictures, how_many(DECODED_AHEAD, video.info, DECODED_BYTES))


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
