"""Writing small videos for tests."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

av = pytest.importorskip("av", reason="videos need the extra `video`")

RATE = 25  # frames a second


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
