"""Real videos, made with PyAV of the astronaut, and the real model."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from magicedit.editor import ExpressionEditor
from magicedit.video_reading import Video, to_rgb

av = pytest.importorskip("av", reason="videos need the extra `video`")

SIDE = 240  # px
RATE = 25  # frames a second


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


def write_video(
    path: Path,
    pictures: Sequence[np.ndarray],
    *,
    stamps: Sequence[int] | None = None,
    sound: str | None = None,
    rotation: int = 0,
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    options: dict[str, str] | None = None,
    colours: dict[str, int] | None = None,
) -> Path:
    """A film of RGB pictures.

    stamps: in ticks of 1/12800 s; default: RATE a second. sound: codec of a tone as long as the film.
    """
    ticks = Fraction(1, 12_800)
    if stamps is None:
        stamps = [index * 12_800 // RATE for index in range(len(pictures))]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=RATE)
        context = stream.codec_context
        context.height, context.width = pictures[0].shape[:2]
        context.pix_fmt, context.time_base = pixel_format, ticks
        context.options = {"crf": "12", **(options or {})} if codec == "libx264" else options or {}
        for name, value in (colours or {}).items():
            setattr(context, name, value)
        if rotation:
            stream.set_display_rotation(rotation)
        track = container.add_stream(sound, rate=44_100, layout="mono") if sound else None
        for picture, pts in zip(pictures, stamps, strict=True):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), "rgb24")
            frame.pts, frame.time_base = pts, ticks
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if track is not None:
            seconds = float((stamps[-1] + 512) * ticks)
            tone = 8000 * np.sin(0.06 * np.arange(int(44_100 * seconds)))
            piece = av.AudioFrame.from_ndarray(tone.astype(np.int16)[None], "s16", "mono")
            piece.sample_rate, piece.pts, piece.time_base = 44_100, 0, Fraction(1, 44_100)
            container.mux(track.encode(piece))
            container.mux(track.encode())
    return path


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
