"""Writing videos: independent H.264 pieces, joined with the sound of the input.

A piece starts with a key frame and is encoded by one thread without B-frames. Its packets are therefore one
per frame, in frame order, and do not depend on earlier interruptions.
"""

import contextlib
import heapq
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image

from magicedit.errors import ImageError, OutputError, VideoError
from magicedit.files import replacing, sync
from magicedit.imaging import check_pace, writable
from magicedit.provenance import EDITED, Mark, add_signature, add_to_film, finishing, signed
from magicedit.video_reading import (
    BT709,
    LIMITED,
    Colours,
    Video,
    VideoInfo,
    from_rgb,
    import_av,
    kept_tags,
    language_of,
)

if TYPE_CHECKING:
    import av

FORMATS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska"}
# Sound codecs that players accept in each container; others are re-encoded
_COPIED_SOUND = {
    ".mp4": ("aac", "mp3", "ac3", "eac3", "alac", "opus", "flac"),
    ".mov": ("aac", "mp3", "ac3", "eac3", "alac", "pcm_s16le", "pcm_s16be", "pcm_s24le", "pcm_s24be"),
    ".mkv": None,  # anything
}
_AAC_RATES = (48_000, 44_100, 32_000, 24_000, 22_050, 16_000, 12_000, 11_025, 8_000, 96_000, 88_200, 64_000)
_AAC_LAYOUTS = {1: "mono", 2: "stereo", 3: "3.0", 4: "4.0", 5: "5.0", 6: "5.1", 8: "7.1"}
# Languages that QuickTime numbers, as FFmpeg spells them, and other spellings of ISO 639-2
_QUICKTIME = (  # noqa: SIM905
    "alb ara arm baq bel bul bur cat ces chi dan dut eng est fin fra geo ger gre heb hin hun ice ind ita jpn "
    "kor lav lit mac may mlt nor per pol por ron rus slk slv spa sve tha tib tur ukr urd vie wel"
).split()
_SPELLED = {
    "sqi": "alb", "hye": "arm", "eus": "baq", "mya": "bur", "zho": "chi", "cze": "ces", "nld": "dut",
    "fre": "fra", "kat": "geo", "deu": "ger", "ell": "gre", "isl": "ice", "mkd": "mac", "msa": "may",
    "fas": "per", "rum": "ron", "slo": "slk", "bod": "tib", "cym": "wel", "swe": "sve",
}  # fmt: skip
# At crf 17, "veryfast" takes a third of the time of "fast" for files 4 to 9 % larger of the same SSIM: see
# `encoding` of benchmarks/video.json
QUICK_PRESET, THOROUGH_PRESET = "veryfast", "fast"
PRESETS = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow")
MOST_PIXELS = 4096 * 2304  # of a picture: level 5.2 of H.264, the most that players accept
SMALLEST_SIDE = 16  # px


@dataclass(frozen=True)
class Encoding:
    """Settings of H.264.

    crf: x264's constant quality, 0 to 51; 0 is lossless, 23 its default, lower is better. preset: x264's
    speed, from "ultrafast" to "veryslow"; None: QUICK_PRESET for films of the qualities `fast` and `live`,
    else THOROUGH_PRESET.

    Raises:
        OutputError: for an unknown quality or preset.
    """

    crf: float = 17.0
    preset: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.crf <= 51:
            raise OutputError(f"the quality of the encoding (crf) must be 0 to 51, got {self.crf:g}")
        if self.preset not in (None, *PRESETS):
            raise OutputError(f"the preset must be one of {', '.join(PRESETS)}, got {self.preset!r}")


def check_video_output(path: str | Path, *inputs: str | Path, exist_ok: bool = True) -> Path:
    """Returns the path; OutputError for suffixes other than .mp4, .mov or .mkv, and as `imaging.writable`."""
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise OutputError(f"videos are written as {', '.join(FORMATS)}; {path} has another suffix")
    for source in inputs:
        writable(path, forbid=Path(source))
    writable(path, exist_ok=exist_ok)
    return path


def check_size(info: VideoInfo, name: str, remedy: str) -> None:
    """Raises VideoError where H.264 cannot hold pictures of that size; `name` is their source."""
    if min(info.width, info.height) < SMALLEST_SIDE or info.width * info.height > MOST_PIXELS:
        raise VideoError(
            f"{name} would make a video of {info.width} x {info.height} px; H.264 holds {SMALLEST_SIDE} px a "
            f"side to {MOST_PIXELS:,} pixels (4096 x 2304): {remedy}"
        )


class PieceWriter:
    """Encodes frames of one piece into an MP4 file of its own; timestamps count from its first frame."""

    def __init__(self, path: Path, info: VideoInfo, encoding: Encoding, most_frames: int):
        av = import_av()
        self.path = path
        self._first: int | None = None
        self._container = av.open(str(path), "w", format="mp4")
        self._stream = self._container.add_stream("libx264", rate=info.rate)
        context = self._stream.codec_context
        context.width, context.height, context.pix_fmt = info.width, info.height, "yuv420p"
        context.time_base = info.time_base
        context.thread_count, context.gop_size = 1, most_frames
        context.sample_aspect_ratio = info.aspect
        colours = info.colours
        context.color_range = LIMITED if not colours.range else colours.range
        context.colorspace = colours.space if colours.space else info.matrix
        context.color_trc, context.color_primaries = colours.transfer, colours.primaries
        # x264's macroblock tree reads uninitialised memory (with PyAV 18.1 the pictures change with
        # MALLOC_PERTURB_), so that two runs would differ. Only the tree uses the lookahead, which holds 30
        # frames.
        preset = encoding.preset or THOROUGH_PRESET
        context.options = {"crf": f"{encoding.crf:g}", "preset": preset, "bf": "0"}
        context.options |= {"mbtree": "0", "rc-lookahead": "0"}

    def write(self, planes: np.ndarray, pts: int) -> None:
        """Encodes a frame of yuv420p planes (3 * height / 2, width) uint8; pts in ticks of the time base."""
        av = import_av()
        if self._first is None:
            self._first = pts
        frame = av.VideoFrame.from_ndarray(planes, "yuv420p")
        frame.pts, frame.time_base = pts - self._first, self._stream.codec_context.time_base
        context = self._stream.codec_context
        frame.color_range, frame.colorspace = context.color_range, context.colorspace
        frame.color_trc, frame.color_primaries = context.color_trc, context.color_primaries
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Finishes the file."""
        self._container.mux(self._stream.encode())
        self._container.close()


@dataclass(frozen=True)
class Piece:
    """A finished piece: its file, and the timestamps of its frames in ticks of the video's time base."""

    path: Path
    pts: Sequence[int]


def join(
    pieces: Sequence[Piece],
    last_duration: int,
    info: VideoInfo,
    source: Video,
    output: Path,
    temporary: Path,
    mark: Mark | None = None,
    packet: bytes | None = None,
) -> list[str]:
    """Writes the pieces as one video with the sound of `source`; `output` appears once it is complete.

    Args:
        last_duration: display time of the last frame in ticks; 0: as long as the one before.
        temporary: path of the incomplete output, in the same file system.
        mark: of the edit. packet: the input's XMP, into which the mark is merged.

    Returns:
        remarks, one line for each stream that could not be copied.

    Raises:
        OutputError: where the file cannot be written.
    """
    av = import_av()
    suffix = output.suffix.lower()
    remarks: list[str] = []
    options = {} if suffix == ".mkv" else {"movflags": "faststart"}
    try:
        with contextlib.ExitStack() as stack:
            container = av.open(str(temporary), "w", format=FORMATS[suffix], options=options)
            stack.enter_context(container)
            container.metadata.update(info.tags)
            if info.chapters:
                container.set_chapters(_shifted(info.chapters, source.sound_shift()))
            _tag(container, suffix, mark, packet)
            with av.open(str(pieces[0].path)) as first:
                pictures = container.add_stream_from_template(first.streams.video[0])
                pictures.time_base = info.time_base
                pictures.codec_context.framerate = info.rate
                _describe(pictures, info.picture_tags, suffix, remarks)
                pictures.disposition = av.stream.Disposition.default
            tracks = [_picture_packets(pieces, last_duration, info, pictures)]
            if source.info.sounds:
                sound = stack.enter_context(source.container())
                tracks.append(_sound_packets(sound, source.sound_shift(), container, suffix, remarks))
            if info.others:
                remarks.append(f"further tracks ({', '.join(info.others)}) were left out")
            # Sound and pictures alternate in time order, so that the muxer buffers little
            for _, _, packets in heapq.merge(*tracks, key=lambda item: item[:2]):
                container.mux(packets)
        _finish(temporary, output, mark, packet)
    except (OSError, av.error.FFmpegError) as error:
        raise OutputError(f"{output} could not be written ({error}); choose another place") from error
    return remarks


def _tag(
    container: "av.container.OutputContainer", suffix: str, mark: Mark | None, packet: bytes | None = None
) -> None:
    """Adds the mark to the tags of a film that is begun as Matroska, which has no other place for XMP."""
    if mark is not None and suffix == ".mkv":
        container.metadata["DIGITAL_SOURCE_TYPE"] = EDITED
        container.metadata["XMP"] = mark.packet(packet).decode()


def _finish(written: Path, output: Path, mark: Mark | None, packet: bytes | None) -> None:
    """Moves a written film to its place, with the input's XMP and the mark in it; OutputError where signing
    fails."""
    merged = packet if mark is None else mark.packet(packet)
    with open(written, "r+b") as film:
        if merged is not None and output.suffix.lower() != ".mkv":
            add_to_film(film, merged)
        if mark is not None and signed(output):
            with replacing(output) as file:
                add_signature(film, file, output, mark)
            return
    sync(written)
    os.replace(written, output.resolve())


def _picture_packets(
    pieces: Sequence[Piece], last_duration: int, info: VideoInfo, stream: "av.VideoStream"
) -> Iterator[tuple[Fraction, int, Any]]:
    """Yields (seconds, 0, packet) for every frame."""
    av = import_av()
    stamps = [pts for piece in pieces for pts in (piece.pts[0],)] + [None]
    for piece, following in zip(pieces, stamps[1:], strict=True):
        ends = [*piece.pts[1:], following]
        with av.open(str(piece.path)) as container:
            packets = (packet for packet in container.demux(video=0) if packet.size)
            for packet, pts, end in zip(packets, piece.pts, ends, strict=True):
                before = piece.pts[-1] - piece.pts[-2] if len(piece.pts) > 1 else 0
                packet.stream = stream
                packet.time_base = info.time_base
                packet.pts = packet.dts = pts
                packet.duration = end - pts if end is not None else (last_duration or before)
                yield pts * info.time_base, 0, packet


def _describe(stream: "av.stream.Stream", tags: Mapping[str, str], suffix: str, remarks: list[str]) -> None:
    """Gives a stream its tags; remarks on a language that the container has no number for."""
    stream.metadata.update(tags)
    language = tags.get("language")
    if suffix == ".mov" and language is not None:
        stream.metadata["language"] = language = _SPELLED.get(language, language)
        if language not in _QUICKTIME:
            remarks.append(f"{suffix} cannot hold the language {language!r} of a track; write .mp4 or .mkv")


def _shifted(chapters: Sequence[Mapping[str, Any]], shift: Fraction) -> list[dict[str, Any]]:
    """Returns the chapters with times that count as those of the output, without those before it."""
    moved = []
    for chapter in chapters:
        ticks = round(shift / chapter["time_base"])
        start, end = max(0, chapter["start"] - ticks), chapter["end"] - ticks
        if end > start:
            moved.append({**chapter, "start": start, "end": end})
    return moved


def _sound_packets(
    sound: "av.container.InputContainer",
    shift: Fraction,
    container: "av.container.OutputContainer",
    suffix: str,
    remarks: list[str],
) -> Iterator[tuple[Fraction, int, Any]]:
    """Yields (seconds, 1, packets) of audio streams, copied if the container accepts them, else as AAC.

    shift: seconds to subtract from the sound's timestamps.
    """
    copied, encoded = {}, {}
    for stream in sound.streams.audio:
        known = stream.codec_context and stream.codec_context.sample_rate  # a broken stream may tell no rate
        name = stream.codec_context.name if known else None
        allowed = _COPIED_SOUND[suffix]
        # a decoder's name may differ from its codec's
        codec = stream.codec_context.codec.canonical_name if name else None
        if codec and (allowed is None or codec in allowed) and codec in container.supported_codecs:
            target = copied[stream.index] = container.add_stream_from_template(stream)
        elif name:
            rate = stream.codec_context.sample_rate
            target = container.add_stream(
                "aac",
                rate=rate if rate in _AAC_RATES else _AAC_RATES[0],
                layout=_AAC_LAYOUTS.get(stream.codec_context.channels, "stereo"),
            )
            encoded[stream.index] = target
            remarks.append(f"the sound was {codec}, which {suffix} does not support; it was converted to AAC")
        else:
            remarks.append("a stream of sound is broken or in a codec not known here; it was left out")
            continue
        _describe(target, kept_tags(stream.metadata) | language_of(stream.metadata), suffix, remarks)
        target.disposition = stream.disposition
    return _read_sound(sound, copied, encoded, shift)


def _read_sound(
    sound: "av.container.InputContainer",
    copied: dict[int, "av.AudioStream"],
    encoded: dict[int, "av.AudioStream"],
    shift: Fraction,
) -> Iterator[tuple[Fraction, int, Any]]:
    av = import_av()
    last = Fraction(-(10**6))
    for packet in sound.demux(*sound.streams.audio):
        index, source = packet.stream.index, packet.stream
        offset = round(shift / source.time_base)
        try:
            if index in copied and packet.size and packet.dts is not None:
                packet.dts -= offset
                packet.pts = packet.dts if packet.pts is None else packet.pts - offset
                last = max(last, packet.dts * packet.time_base)
                packet.stream = copied[index]
                yield last, 1, [packet]
            elif index in encoded:
                frames = packet.decode()
                for frame in itertools.chain(frames, [None] if not packet.size else []):
                    if frame is not None:
                        frame.pts = None if frame.pts is None else frame.pts - offset
                    packets = encoded[index].encode(frame)
                    for made in packets:
                        last = max(last, made.dts * made.time_base)
                    if packets:
                        yield last, 1, packets
        except av.error.InvalidDataError:
            continue


def save_film(pictures: Sequence[PIL.Image.Image], path: str | Path, seconds_per_picture: float) -> Path:
    """Writes RGB pictures of one size as a film (.mp4, .mov, .mkv), each shown for that long; all or nothing.

    H.264 in yuv420p; where a side is odd, its last line is repeated.

    Raises:
        OutputError: for another suffix, a folder that is missing, or where writing fails.
        ImageError: where there are no pictures, or their sizes differ.
        MissingDependencyError: without the extra `video`.
    """
    import_av()
    path = check_video_output(path)
    if not pictures or len({picture.size for picture in pictures}) > 1:
        raise ImageError(f"expected pictures of one size, got {[picture.size for picture in pictures]}")
    check_pace(path, seconds_per_picture)
    width, height = pictures[0].size
    time_base = Fraction(1, 90_000)  # seconds a tick
    stamps = [round(index * seconds_per_picture / time_base) for index in range(len(pictures) + 1)]
    info = VideoInfo(
        path=path, width=width + width % 2, height=height + height % 2, coded_size=(width, height),
        rotation=0, time_base=time_base, rate=Fraction(1 / seconds_per_picture).limit_denominator(1000),
        frames=len(pictures), seconds=None, pixel_format="rgb24", deep=False,
        colours=Colours(BT709, LIMITED, BT709, BT709), aspect=Fraction(1), sounds=0,
    )  # fmt: skip
    check_size(info, str(path), "give pictures of another size")
    mark, suffix = Mark.of_pictures(pictures), path.suffix.lower()
    with replacing(path) as output, finishing(output, path, mark) as file:
        av = import_av()
        with av.open(file, "w", format=FORMATS[suffix]) as container:
            _tag(container, suffix, mark)
            stream = container.add_stream("libx264", rate=info.rate)
            context = stream.codec_context
            context.width, context.height, context.pix_fmt = info.width, info.height, "yuv420p"
            context.time_base = time_base
            context.color_range, context.colorspace = LIMITED, BT709
            context.options = {"crf": "17", "bf": "0"}
            for picture, pts in zip(pictures, stamps, strict=False):
                pixels = even_sided(np.asarray(picture.convert("RGB")))
                frame = av.VideoFrame.from_ndarray(from_rgb(pixels, info), "yuv420p")
                frame.pts, frame.time_base = pts, time_base
                frame.color_range, frame.colorspace = LIMITED, BT709
                container.mux(_lasting(stream.encode(frame), stamps))
            container.mux(_lasting(stream.encode(), stamps))
        if mark is not None and suffix != ".mkv":
            add_to_film(file, mark.packet())
    return path


def _lasting(packets: list[Any], stamps: list[int]) -> list[Any]:
    """Returns the packets; the duration of each is the time until the next picture."""
    for packet in packets:
        packet.duration = stamps[stamps.index(packet.pts) + 1] - packet.pts
    return packets


def even_sided(pixels: np.ndarray) -> np.ndarray:
    """Returns an RGB picture (height, width, 3) with the last line repeated where a side is odd."""
    height, width = pixels.shape[:2]
    return np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
