"""Videos that are cut off, mutated, lying, odd, endless or none: a film with all frames, or a typed error.

Each is edited by the embedded model; a film that is made has as many frames as the input, and no half film or
work folder stays after an error.
"""

import functools
import os
import random
import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from attacks import Attack, typed
from magicedit.editor import ExpressionEditor
from magicedit.errors import MagicEditError, OutputError
from magicedit.video import Encoding, Video, VideoSettings, edit_video
from magicedit.video.partial import Partial

TITLE = "Videos"

SIDE, FRAMES = 160, 6  # px; of most films
SETTINGS = VideoSettings(encoding=Encoding(preset="ultrafast"))


@functools.cache
def _editor() -> ExpressionEditor:
    return ExpressionEditor.from_pretrained("mini", device="cpu")


@functools.cache
def _portrait() -> Image.Image:
    """(SIDE, SIDE) RGB: a face of about 75 px."""
    from skimage.data import astronaut

    return Image.fromarray(astronaut()[0:280, 85:365]).resize((SIDE, SIDE))


def _film(
    path: Path,
    *,
    codec: str = "libx264",
    format: str = "yuv420p",
    size: tuple[int, int] | None = None,
    frames: int = FRAMES,
    stamps: list[int] | None = None,
    time_base: Fraction = Fraction(1, 12_800),
    rate: Any = 25,
    sound: bool = True,
    options: dict[str, str] | None = None,
) -> Path:
    """Writes a film of the portrait, each picture brighter than the one before."""
    picture = _portrait().resize(size or (SIDE, SIDE))
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = *picture.size, format
        stream.codec_context.time_base = time_base
        track = container.add_stream("aac", rate=44_100, layout="mono") if sound else None
        for index in range(frames):
            pixels = np.clip(np.asarray(picture, np.int16) + index, 0, 255).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
            frame.time_base = time_base
            frame.pts = stamps[index] if stamps else round(index / (Fraction(rate) * time_base))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if track is not None:
            piece = av.AudioFrame.from_ndarray(np.zeros((1, 1764 * frames), np.int16), "s16", "mono")
            piece.sample_rate = 44_100
            container.mux(track.encode(piece))
            container.mux(track.encode())
    return path


@functools.cache
def _content(suffix: str, **arguments: Any) -> bytes:
    """A good film's bytes; an .mp4 has its index first."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        options = {"movflags": "faststart"} if suffix == ".mp4" else {}
        return _film(Path(folder) / f"film{suffix}", options=options, **arguments).read_bytes()


def _edited(source: Path | str, output: Path, damaged: bool = False) -> str | None:
    """Edits a film; None where that ends in a whole film or a typed error that leaves nothing."""
    counted: list[int] = []

    def edit() -> None:
        result = edit_video(
            _editor(), source, output, add="AU12=2", quality="live", damaged=damaged, settings=SETTINGS
        )
        counted.append(result.frames)

    if said := typed(edit):
        return said
    left = {path.name for path in output.parent.iterdir()} - {Path(source).name, output.name}
    if any(name.endswith((".partial", ".tmp")) for name in left):
        return f"{', '.join(sorted(left))} stays"
    if not counted:
        return f"a half film of {output.stat().st_size} bytes is left" if output.exists() else None
    expected = sum(1 for _ in Video(source).frames())
    made = sum(1 for _ in Video(output).frames())
    return None if made == expected == counted[0] else f"{made} frames of {expected}"


def _bytes(
    folder: Path, suffix: str, change: Callable[[bytearray], None], damaged: bool = False
) -> str | None:
    content = bytearray(_content(suffix))
    change(content)
    source = folder / f"in{suffix}"
    source.write_bytes(bytes(content))
    return _edited(source, folder / "out.mp4", damaged)


def _cut(content: bytearray, share: float) -> None:
    del content[round(len(content) * share) :]


def _flip(content: bytearray, seed: int, count: int) -> None:
    draw = random.Random(seed)
    for _ in range(count):
        content[draw.randrange(len(content))] = draw.randrange(256)


def _field(content: bytearray, box: bytes, offset: int, value: int, form: str = ">I") -> None:
    """Overwrites a number of an MP4's box, `offset` bytes after its name."""
    at = content.index(box) + 4 + offset
    content[at : at + struct.calcsize(form)] = struct.pack(form, value)


# name -> box, offset, value, form: headers of an MP4 that lie
LIES: dict[str, tuple[bytes, int, int, str]] = {
    "65535 px wide": (b"avc1", 24, 65_535, ">H"),
    "no height": (b"avc1", 26, 0, ">H"),
    "no time scale of the film": (b"mvhd", 12, 0, ">I"),
    "a duration of 2^32 - 1": (b"mvhd", 16, 2**32 - 1, ">I"),
    "no time scale of the track": (b"mdhd", 12, 0, ">I"),
    "a time scale of 1": (b"mdhd", 12, 1, ">I"),
    "a time scale of 2^31 - 1": (b"mdhd", 12, 2**31 - 1, ">I"),
    "a time scale of 2^32 - 1": (b"mdhd", 12, 2**32 - 1, ">I"),
    "pictures that take no time": (b"stts", 12, 0, ">I"),
    "pictures of 2^31 ticks": (b"stts", 12, 2**31, ">I"),
    "10^9 pictures": (b"stts", 8, 10**9, ">I"),
    "10^9 sizes": (b"stsz", 8, 10**9, ">I"),
    "packets of 2^31 bytes": (b"stsz", 4, 2**31, ">I"),
    "10^8 chunks": (b"stco", 4, 10**8, ">I"),
    "chunks outside the file": (b"stco", 8, 2**32 - 1, ">I"),
    "a box longer than the file": (b"moov", -8, 2**31 - 1, ">I"),
    "a box of no length": (b"trak", -8, 0, ">I"),
    "no SPS": (b"avcC", 5, 0, ">B"),
}


def _lie(folder: Path, box: bytes, offset: int, value: int, form: str) -> str | None:
    return _bytes(folder, ".mp4", functools.partial(_field, box=box, offset=offset, value=value, form=form))


def _made(folder: Path, suffix: str, **arguments: Any) -> str | None:
    """A film of odd properties, written by FFmpeg."""
    return _edited(_film(folder / f"in{suffix}", **arguments), folder / "out.mp4")


MKV = {"suffix": ".mkv"}
LOSSLESS, JPEG = {**MKV, "codec": "ffv1"}, {**MKV, "codec": "mjpeg", "format": "yuvj420p"}
PAUSE = 12_800 * 10**6  # ticks: 11 days
ODD: dict[str, dict[str, Any]] = {
    "a picture in 1000 s": {"suffix": ".mp4", "rate": Fraction(1, 1000), "time_base": Fraction(1, 1000)},
    "1000 pictures a second": {"suffix": ".mp4", "rate": 1000},
    "30000/1001 pictures a second": {
        "suffix": ".mov", "rate": Fraction(30_000, 1001), "time_base": Fraction(1001, 30_000)
    },
    "one picture": {"suffix": ".mp4", "frames": 1},
    "no picture": {"suffix": ".mp4", "frames": 0, "sound": False},
    "a pause of 11 days": {**MKV, "stamps": [0, 512, 1024, PAUSE, PAUSE + 512, PAUSE + 600]},
    "it begins after an hour": {**MKV, "stamps": [12_800 * 3600 + 512 * n for n in range(FRAMES)]},
    "it begins before 0": {**MKV, "stamps": [512 * n - 2000 for n in range(FRAMES)], "sound": False},
    "the same time twice": {**LOSSLESS, "stamps": [0, 1, 2, 3, 4, 5]},
    "17 x 19 px": {**LOSSLESS, "size": (17, 19)},
    "2 x 2 px": {"suffix": ".mp4", "size": (2, 2)},
    "odd sides": {**LOSSLESS, "size": (161, 163)},
    "4098 x 2306 px": {**JPEG, "size": (4098, 2306), "frames": 1},
    "9000 x 6000 px": {**JPEG, "size": (9000, 6000), "frames": 1},
    "16000 x 16 px": {**JPEG, "size": (16_000, 16), "frames": 2},
    "grey": {**LOSSLESS, "format": "gray"},
    "16 bits": {**LOSSLESS, "format": "yuv444p16le"},
    "10 bits": {"suffix": ".mp4", "format": "yuv422p10le"},
    "alpha": {"suffix": ".mov", "codec": "qtrle", "format": "argb"},
    "RGB upside down": {"suffix": ".avi", "codec": "rawvideo", "format": "bgr24"},
    "MPEG-2 in a stream": {"suffix": ".ts", "codec": "mpeg2video", "time_base": Fraction(1, 25)},
    "MPEG-4 in AVI": {"suffix": ".avi", "codec": "mpeg4"},
    "VP9": {"suffix": ".webm", "codec": "libvpx-vp9", "sound": False},
    "GIF": {
        "suffix": ".gif", "codec": "gif", "format": "rgb8", "sound": False, "time_base": Fraction(1, 100)
    },
    "FLV": {"suffix": ".flv", "codec": "flv1"},
}  # fmt: skip


def _strange(folder: Path, kind: str) -> str | None:
    """What is no video at all; an error must come at once, and is the only good answer."""
    source: Path | str = folder / "in.mp4"
    if kind == "pipe":
        os.mkfifo(source)
    elif kind == "folder":
        source.mkdir()
    elif kind == "dangling link":
        source.symlink_to(folder / "nowhere")
    elif kind == "circle of links":
        source.symlink_to(source)
    elif kind == "photograph":
        _portrait().save(source, "JPEG")
    elif kind == "list of other films":
        _film(folder / "other.mp4")
        source.write_text("ffconcat version 1.0\nfile other.mp4\n")
    elif kind == "sound":
        with av.open(str(source), "w") as container:
            track = container.add_stream("aac", rate=44_100, layout="mono")
            piece = av.AudioFrame.from_ndarray(np.zeros((1, 44_100), np.int16), "s16", "mono")
            piece.sample_rate = 44_100
            container.mux(track.encode(piece))
            container.mux(track.encode())
    elif kind in ("empty", "noise", "zeros"):
        noise = random.Random(1).randbytes(100_000)
        source.write_bytes({"empty": b"", "noise": noise, "zeros": bytes(100_000)}[kind])
    else:
        source = {
            "device": "/dev/zero",
            "long name": folder / ("x" * 5000),
            "NUL": "a\0b.mp4",
            "missing": source,
        }[kind]
    said = _edited(source, folder / "out.mp4")
    return said or (f"{kind} was edited" if (folder / "out.mp4").exists() else None)


STRANGE = ("pipe", "folder", "dangling link", "circle of links", "photograph", "list of other films", "sound",
           "empty", "noise", "zeros", "device", "long name", "NUL", "missing")  # fmt: skip


def _output(folder: Path, kind: str) -> str | None:
    """Outputs that cannot be written."""
    source = _film(folder / "in.mp4")
    output = {
        "the input": source,
        "folder": folder / "sub.mp4",
        "missing folder": folder / "none" / "out.mp4",
        "other suffix": folder / "out.avi",
        "long name": folder / f"{'x' * 300}.mp4",
        "NUL": folder / "a\0b.mp4",
        "file as folder": source / "out.mp4",
        "work folder is a file": folder / "out.mp4",
    }[kind]
    if kind == "folder":
        output.mkdir()
    if kind == "work folder is a file":
        (folder / ".out.mp4.partial").touch()
    before = source.read_bytes()
    try:
        edit_video(_editor(), source, output, add="AU12=2", quality="live", settings=SETTINGS)
    except OutputError:
        return None if source.read_bytes() == before else "the input was changed"
    except MagicEditError as error:
        return f"{type(error).__name__}: {error}"
    return "it was written"


OUTPUTS = ("the input", "folder", "missing folder", "other suffix", "long name", "NUL", "file as folder",
           "work folder is a file")  # fmt: skip


def _two_writers(folder: Path) -> str | None:
    source, output = _film(folder / "in.mp4"), folder / "out.mp4"
    with Partial(output, {}):
        try:
            edit_video(_editor(), source, output, add="AU12=2", quality="live", settings=SETTINGS)
        except OutputError as error:
            return None if "another" in str(error) else str(error)
    return "the second writes too"


def _sidecar(folder: Path, name: str, seed: int) -> str | None:
    """A file of an interrupted run is changed; the film equals an undisturbed one."""
    draw = random.Random(seed)
    source, output = _film(folder / "in.mp4", frames=30), folder / "out.mp4"

    def stop(progress: Any) -> None:
        if progress.stage == "frames" and progress.done > 24:
            raise KeyboardInterrupt

    asked = {"add": "AU12=2", "quality": "live", "settings": SETTINGS}
    try:
        edit_video(_editor(), source, output, progress=stop, **asked)
        return "it was not interrupted"
    except KeyboardInterrupt:
        changed = folder / ".out.mp4.partial" / name
    content = bytearray(changed.read_bytes())
    words = (b"[]", b"null", b"{", b'{"pts": "x"}', b"[" * 3000, b"\xff\xfe", b"9" * 5000)
    if draw.random() < 0.5:
        content = bytearray(draw.choice(words))
    else:
        _flip(content, seed, 4)
    changed.write_bytes(bytes(content))
    if said := typed(lambda: edit_video(_editor(), source, output, **asked)):
        return said
    edit_video(_editor(), source, folder / "whole.mp4", **asked)
    pairs = zip(Video(output).frames(), Video(folder / "whole.mp4").frames(), strict=True)
    same = all(np.array_equal(a.planes, b.planes) for a, b in pairs)
    return None if same else "the film differs"


def attacks(seed: int, short: bool) -> list[Attack]:
    draw = random.Random(seed)
    found: list[Attack] = []

    def add(title: str, check: Callable[..., str | None], seconds: float = 60, **named: Any) -> None:
        found.append(Attack(title, functools.partial(check, **named), seconds))

    suffixes = (".mp4", ".mkv", ".avi", ".ts")
    for suffix in suffixes:
        for share in (0.02, 0.3, 0.6, 0.9, 0.99):
            damaged = draw.random() < 0.5
            cut = functools.partial(_cut, share=share)
            add(
                f"{suffix} cut off at {share:.0%}, --damaged {damaged}",
                _bytes,
                suffix=suffix,
                change=cut,
                damaged=damaged,
            )
        for index in range(8):
            flip = functools.partial(_flip, seed=draw.randrange(2**32), count=4 ** draw.randint(0, 4))
            add(f"{suffix} mutated {index}", _bytes, suffix=suffix, change=flip, damaged=draw.random() < 0.5)
    for name, lie in LIES.items():
        add(f"header: {name}", _lie, box=lie[0], offset=lie[1], value=lie[2], form=lie[3])
    for name, arguments in ODD.items():
        add(name, _made, **arguments)
    for kind in STRANGE:
        add(f"input: {kind}", _strange, kind=kind)
    for kind in OUTPUTS:
        add(f"output: {kind}", _output, kind=kind)
    add("two writers", _two_writers)
    for name in (
        "request.json",
        "faces.jsonl",
        "faces.done",
        "piece-00000.json",
        "piece-00000.mp4",
        "state-00001.npz",
    ):
        add(f"work folder: {name}", _sidecar, 300, name=name, seed=draw.randrange(2**32))
    return draw.sample(found, 6) if short else found
