"""Real videos, made with PyAV of the astronaut, and the real model."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from films import RATE, av, write_video

from magicedit.editor import ExpressionEditor
from magicedit.video_reading import Video, to_rgb

__all__ = ["RATE", "SIDE", "av", "write_video"]  # for the tests here, beside what is defined below

SIDE = 240  # px


@pytest.fixture(scope="session")
def editor() -> ExpressionEditor:
    return ExpressionEditor.from_pretrained("mini", device="cpu")


@pytest.fixture(scope="session")
def portrait() -> np.ndarray:
    """(SIDE, SIDE, 3) uint8 RGB: a face of about 110 px."""
    from PIL import Image

    astronaut = pytest.importorskip("skimage.data").astronaut()
    return np.asarray(Image.fromarray(astronaut[0:280, 85:365]).resize((SIDE, SIDE)))


@pytest.fixture(scope="session")
def other() -> np.ndarray:
    """The same, mirrored and in other colours: somebody else as far as looks go."""
    from PIL import Image

    astronaut = pytest.importorskip("skimage.data").astronaut()
    picture = np.asarray(Image.fromarray(astronaut[0:280, 85:365]).resize((SIDE, SIDE)))
    return np.ascontiguousarray(picture[:, ::-1, [2, 0, 1]] // 2)


@pytest.fixture(scope="session")
def moving(portrait) -> Callable[[int], list[np.ndarray]]:
    """`moving(12)`: so many pictures of a face that moves by a pixel or two from one to the next."""

    def pictures(count: int) -> list[np.ndarray]:
        shifts = [(round(6 * np.sin(0.4 * i)), round(4 * np.sin(0.3 * i))) for i in range(count)]
        padded = np.pad(portrait, ((8, 8), (8, 8), (0, 0)), mode="edge")
        return [padded[8 + y : 8 + y + SIDE, 8 + x : 8 + x + SIDE] for x, y in shifts]

    return pictures


def read_pictures(path: Path) -> list[np.ndarray]:
    """Its frames, upright RGB."""
    video = Video(path)
    return [to_rgb(frame.planes, video.info) for frame in video.frames()]


def seconds_of(path: Path) -> list[Fraction]:
    """The times of its frames."""
    video = Video(path)
    return [frame.pts * video.info.time_base for frame in video.frames()]


def sound_of(path: Path) -> tuple[str, np.ndarray]:
    """Codec and samples (channels, samples) of its sound."""
    with av.open(str(path)) as container:
        name = container.streams.audio[0].codec_context.codec.canonical_name
        return name, np.concatenate([frame.to_ndarray() for frame in container.decode(audio=0)], 1)


def planes_of(path: Path) -> list[np.ndarray]:
    return [frame.planes for frame in Video(path).frames()]


def same_frames(a: Path, b: Path) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(planes_of(a), planes_of(b), strict=True))
