"""Reading videos: their frames in order, upright, with their timestamps.

A frame keeps its decoded 8-bit yuv420p planes, so that unedited pixels are written unchanged; other formats
are converted to yuv420p once. Colours are converted to RGB and back with the video's own matrix and range.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from magicedit.errors import VideoError, needs_extra
from magicedit.files import opened, shown
from magicedit.provenance import public_tags

if TYPE_CHECKING:
    import av

# ITU-T H.273 codes, which FFmpeg uses: of matrices, of transfer functions, of ranges
BT601, BT709, UNSPECIFIED = 5, 1, 2
HDR_TRANSFERS = {16: "PQ", 18: "HLG"}
LIMITED, FULL = 1, 2
_MATRICES = (1, 4, 5, 6, 7, 9)  # matrices that FFmpeg converts; others are guessed from the size
HD_HEIGHT = 720  # px: at this height and above, an unspecified matrix means BT.709, as in players

MISSING_SECONDS = 0.5  # a file is truncated if sound or picture ends this much before its stated end
MOST_TICKS = Fraction(2**31 - 1)  # of one picture in MP4
_FINEST = 20_000  # ticks a second: FFmpeg doubles coarser ones until there are 10,000
MOST_DECODED = 8192 * 4320  # pixels of a picture: 8K; several are in memory at once
PICTURES = ("image2", "png_pipe", "jpeg_pipe", "webp_pipe", "bmp_pipe", "tiff_pipe")
# FFmpeg's formats that are read: all in one file. A playlist would open the files and hosts that it names.
_CONTAINERS = (
    "mov", "matroska", "avi", "mpeg", "mpegts", "mpegvideo", "flv", "live_flv", "asf", "asf_o", "ogg", "gif",
    "apng", "mxf", "gxf", "nut", "dv", "wtv", "rm", "ivf", "amv", "swf", "yuv4mpegpipe", "h261", "h263",
    "h264", "hevc", "vvc", "av1", "obu", "m4v", "mjpeg", "vc1", "dirac", "cavsvideo", "wav", "mp3", "aac",
    "flac", "aiff", *PICTURES,
)  # fmt: skip
# Tags of a file or stream that describe how it is stored
_OF_STORAGE = (
    "encoder", "major_brand", "minor_version", "compatible_brands", "handler_name", "vendor_id", "duration",
    "bps", "number_of_frames", "number_of_bytes", "alpha_mode", "language", "encoded_by",
)  # fmt: skip


def import_av() -> Any:
    """Imports PyAV; MissingDependencyError if it is not installed."""
    with needs_extra("video", "videos need the package av"):
        import av
    return av


@dataclass(frozen=True)
class Colours:
    """A video's colour encoding, in the codes of ITU-T H.273.

    space: matrix, 2 unspecified. range: 1 limited (16 to 235), 2 full, 0 unspecified.
    transfer, primaries: 2 unspecified.
    """

    space: int = UNSPECIFIED
    range: int = 0
    transfer: int = UNSPECIFIED
    primaries: int = UNSPECIFIED


@dataclass(frozen=True)
class VideoInfo:
    """Properties of a video from its metadata and its first frame.

    Attributes:
        path: of the file.
        width, height: of the upright pictures, rounded up to even numbers (yuv420p has no others).
        coded_size: (width, height) as stored, before turning and rounding up.
        rotation: degrees by which stored frames are turned to be shown: 0, 90, 180 or 270 anticlockwise.
        mirrored: whether left and right are exchanged after that.
        time_base: seconds a tick of its timestamps.
        rate: average pictures a second, stated by the file or estimated.
        frames: number of pictures, stated by the file or estimated from its length; None: unknown.
        seconds: length stated by the file; None: unknown.
        pixel_format: FFmpeg's name. deep: whether it has more than 8 bits a channel.
        aspect: width of a pixel over its height.
        sounds: number of audio streams. others: kinds of further streams, such as "subtitle", each once.
        tags: title, date and the like of the file. picture_tags: language and title of its pictures.
        chapters: as `av` gives them; their times are the file's own.
    """

    path: Path
    width: int
    height: int
    coded_size: tuple[int, int]
    rotation: int
    time_base: Fraction
    rate: Fraction
    frames: int | None
    seconds: float | None
    pixel_format: str
    deep: bool
    colours: Colours
    aspect: Fraction
    sounds: int
    mirrored: bool = False
    others: tuple[str, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    picture_tags: Mapping[str, str] = field(default_factory=dict)
    chapters: tuple[Mapping[str, Any], ...] = ()

    @property
    def matrix(self) -> int:
        """The matrix used to convert its colours."""
        if self.colours.space in _MATRICES:
            return self.colours.space
        return BT709 if min(self.coded_size) >= HD_HEIGHT else BT601

    @property
    def range(self) -> int:
        """The range: limited unless stated as full."""
        return FULL if self.colours.range == FULL else LIMITED


@dataclass(frozen=True, eq=False)
class Frame:
    """A decoded picture.

    index: counted from 0. pts: timestamp in ticks of the video's time base, 0 at its first picture (or at the
    sound if that begins earlier). duration: ticks, 0: unknown. planes: (3 * height / 2, width) uint8, upright
    yuv420p: luma, then the two colour planes, as `av.VideoFrame.to_ndarray` lays them out. transparent:
    whether it has pixels that hide what they show less than fully, which the planes do not tell.
    """

    index: int
    pts: int
    duration: int
    planes: np.ndarray
    transparent: bool = False


@dataclass(frozen=True)
class Damage:
    """Damage of a file: decoding errors, and how many of the stated seconds it reaches."""

    errors: int
    reaches: float
    announced: float | None

    @property
    def cut_off(self) -> bool:
        return self.announced is not None and self.reaches < self.announced - MISSING_SECONDS

    def __bool__(self) -> bool:
        return self.errors > 0 or self.cut_off

    def __str__(self) -> str:
        problems = []
        if self.cut_off:
            problems.append(f"ends after {self.reaches:.1f} s of {self.announced:.1f} s")
        if self.errors:
            problems.append(f"has {self.errors} places that cannot be decoded")
        return " and ".join(problems)


class Video:
    """A video file, opened again for each reading of its frames.

    Raises:
        VideoError: where it is missing, is not a video, has no pictures, or has an unknown codec.
        MissingDependencyError: without the extra `video`.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if os.path.isdir(self.path):
            raise VideoError(f"{shown(self.path)} is not a file; give the path of one video")
        with opened(self.path, VideoError) as file:
            if not os.fstat(file.fileno()).st_size:
                raise VideoError(f"{shown(self.path)} is empty (0 bytes); copy or download it again")
        self.info = self._examine()
        self.damage: Damage | None = None  # known after `frames` has been read to its end

    @contextmanager
    def container(self) -> "Iterator[av.container.InputContainer]":
        """Opens the file; VideoError where that fails."""
        av = import_av()
        whitelist = {"format_whitelist": ",".join(_CONTAINERS)}
        with opened(self.path, VideoError) as file:
            handle = os.dup(file.fileno())  # errors in the caller's block are not this file's
        with os.fdopen(handle, "rb") as file:
            try:
                container = av.open(file, metadata_errors="replace", container_options=whitelist)
            except (av.error.FFmpegError, ValueError, OverflowError) as error:
                raise VideoError(
                    f"{shown(self.path)} cannot be read as a video ({_reason(error)}); it is another kind of "
                    "file, damaged or incomplete: copy or download it again, or convert it to MP4"
                ) from error
            with container:
                yield container

    @contextmanager
    def _pictures(self) -> "Iterator[tuple[av.container.InputContainer, av.VideoStream]]":
        """Opens the file, and chooses the stream of pictures."""
        with self.container() as container:
            if any(name in PICTURES for name in container.format.name.split(",")):
                raise VideoError(
                    f"{shown(self.path)} is a picture, not a video; use `magicedit edit` for a photograph, "
                    "and save an animation as GIF or MP4 first"
                )
            streams = [s for s in container.streams.video if not s.disposition & s.disposition.attached_pic]
            if not streams:
                kinds = ", ".join(sorted({stream.type for stream in container.streams}))
                raise VideoError(
                    f"{shown(self.path)} has no pictures, only {kinds or 'nothing known here'}; give a video"
                )
            stream, context = streams[0], streams[0].codec_context
            if context is None:
                raise VideoError(
                    f"{shown(self.path)} is in a codec that is not known here; convert it to H.264 in MP4 "
                    "first"
                )
            if context.width * context.height > MOST_DECODED:
                raise VideoError(
                    f"{shown(self.path)} has pictures of {context.width} x {context.height} px, more than "
                    f"{MOST_DECODED:,} pixels (8192 x 4320): scale it first"
                )
            context.options = {"max_pixels": str(MOST_DECODED)}  # as the pictures themselves say
            stream.thread_type = "AUTO"
            yield container, stream

    def _examine(self) -> VideoInfo:
        av = import_av()
        with self._pictures() as (container, stream):
            first = next(_decoded(container, stream, [], {}), None)
            if first is None:
                raise VideoError(
                    f"{shown(self.path)} has no picture that can be decoded ({stream.codec_context.name}); "
                    "it is empty, damaged or incomplete: copy or download it again"
                )
            rotation, mirrored = self._orientation(first)
            width, height = (first.height, first.width) if rotation % 180 else (first.width, first.height)
            rate = next((r for r in (stream.average_rate, stream.guessed_rate) if r and r > 0), Fraction(25))
            if stream.time_base is None or stream.time_base <= 0:
                raise VideoError(f"{shown(self.path)} has no times for its pictures; convert it first")
            rate = max(rate, 1 / longest_seconds(stream.time_base))
            seconds = None
            duration = container.duration or 0
            if "matroska" in container.format.name:  # which counts from 0, wherever its first picture is
                duration -= max(0, container.start_time or 0)
            if duration > 0:
                seconds = duration / av.time_base
            frames = stream.frames or (round(seconds * rate) if seconds else None)
            aspect = Fraction(stream.codec_context.sample_aspect_ratio or 1)
            aspect = aspect if aspect > 0 else Fraction(1)
            is_full = first.format.name.startswith("yuvj")  # an older name for the full range
            colour_range = FULL if is_full else int(first.color_range)
            return VideoInfo(
                path=self.path,
                width=width + width % 2,
                height=height + height % 2,
                coded_size=(first.width, first.height),
                rotation=rotation,
                time_base=stream.time_base,
                rate=Fraction(rate),
                frames=frames or None,
                seconds=seconds,
                pixel_format=first.format.name,
                deep=max(component.bits for component in first.format.components) > 8,
                colours=Colours(
                    int(first.colorspace), colour_range, int(first.color_trc), int(first.color_primaries)
                ),
                aspect=1 / aspect if rotation % 180 else aspect,
                sounds=len(container.streams.audio),
                mirrored=mirrored,
                others=tuple(
                    dict.fromkeys(
                        other.type for other in container.streams if other.type != "audio" and other != stream
                    )
                ),
                tags=kept_tags(container.metadata),
                picture_tags=kept_tags(stream.metadata) | language_of(stream.metadata),
                chapters=tuple(container.chapters()),
            )

    def _orientation(self, frame: "av.VideoFrame") -> tuple[int, bool]:
        """Rotation and mirroring, as in `VideoInfo`, of a frame's display matrix.

        The matrix maps a stored pixel to x' = a x + c y, y' = b x + d y, y downwards (ISO 14496-12, 6.2.2).
        """
        matrix = frame.side_data.get("DISPLAYMATRIX")
        if matrix is None:
            return 0, False
        a, b, _, c, d = np.frombuffer(bytes(matrix), "=i4")[:5] / 65_536
        turns = {(1, 0): 0, (0, -1): 90, (-1, 0): 180, (0, 1): 270}  # by where the x axis points
        length, mirrored = float(np.hypot(a, b)), a * d < b * c
        axis = np.array([-a if mirrored else a, b]) / max(length, 1e-9)
        nearest = tuple(np.round(axis).astype(int).tolist())
        square = abs(a * c + b * d) <= 0.02 * length * np.hypot(c, d)
        if nearest not in turns or not square or abs(axis - nearest).max() > 0.02:
            turned = (
                f" by {round(np.degrees(np.arctan2(-b, a))) % 360} degrees"
                if square and length
                else " or sheared"
            )
            raise VideoError(f"{shown(self.path)} is stored turned{turned}; turn it upright first")
        return turns[nearest], bool(mirrored)

    def frames(self, start: int = 0) -> Iterator[Frame]:
        """Yields its pictures in display order, from number `start`.

        Timestamps strictly increase: a missing one follows from the frame rate, and a repeated one is moved
        by a tick. Earlier pictures are decoded too, so that a picture does not depend on `start`. Raises
        VideoError where the pictures change size within the video.
        """
        errors: list[str] = []
        ends: dict[int, Fraction] = {}
        ticks = max(1, round(1 / (self.info.rate * self.info.time_base)))
        longest = longest_seconds(self.info.time_base)
        origin, last = None, None
        with self._pictures() as (container, stream):
            hides = stream.metadata.get("alpha_mode") == "1"  # a second picture in each packet, not decoded
            for index, decoded in enumerate(_decoded(container, stream, errors, ends)):
                if (decoded.width, decoded.height) != self.info.coded_size:
                    raise VideoError(
                        f"{shown(self.path)} changes its size at picture {index} to {decoded.width} x "
                        f"{decoded.height} px; convert it to one size first"
                    )
                pts = decoded.pts
                if origin is None:
                    pts = pts or 0
                    origin = _origin(container, stream, pts)
                elif pts is None:
                    pts = last + ticks
                pts = pts if last is None else max(pts, last + 1)
                pause = 0 if last is None else (pts - last) * self.info.time_base
                if pause > longest:
                    raise VideoError(
                        f"{shown(self.path)} shows picture {index - 1} for {float(pause):.0f} s, longer than "
                        f"MP4 can tell ({float(longest):.0f} s); cut it there first"
                    )
                last = pts
                if index >= start:
                    planes = upright_planes(decoded, self.info)
                    ticks_shown = min(max(0, int(decoded.duration or 0)), int(longest / self.info.time_base))
                    yield Frame(index, pts - origin, ticks_shown, planes, hides or is_transparent(decoded))
            reaches = float(max(ends.values(), default=Fraction(0)))
            if container.start_time is not None:
                reaches -= container.start_time / import_av().time_base
            self.damage = Damage(len(errors), reaches, self.info.seconds)

    def picture_at(self, seconds: float) -> np.ndarray:
        """Returns the picture shown at a time, RGB (height, width, 3) uint8; beyond the end, the last one.

        Only pictures from the key picture before it are decoded. Raises VideoError where it has another size
        than the first, and where none can be decoded there.
        """
        shown_then = None
        with self._pictures() as (container, stream):
            start = _origin(container, stream, stream.start_time or 0)
            wanted = start + round(seconds / stream.time_base)
            with suppress(import_av().error.FFmpegError):  # else all from the beginning are decoded
                container.seek(wanted, stream=stream)
            for decoded in _decoded(container, stream, [], {}):
                if shown_then is not None and (decoded.pts is None or decoded.pts > wanted):
                    break
                shown_then = decoded
        if shown_then is None or (shown_then.width, shown_then.height) != self.info.coded_size:
            raise VideoError(
                f"{shown(self.path)} has no picture of its own size at {seconds:.1f} s; it is damaged, or "
                "changes its size: convert it first"
            )
        return to_rgb(upright_planes(shown_then, self.info), self.info)

    def sound_shift(self) -> Fraction:
        """Returns the seconds to subtract from sound timestamps to align them with those of `frames`."""
        with self._pictures() as (container, stream):
            first = next(_decoded(container, stream, [], {}))
            return _origin(container, stream, first.pts or 0) * stream.time_base

    def digest(self) -> str:
        """Returns the BLAKE2b hash of the file's content, hexadecimal."""
        with opened(self.path, VideoError) as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def longest_seconds(time_base: Fraction) -> Fraction:
    """Returns how long MP4 can show one picture, for timestamps in ticks of `time_base`."""
    return MOST_TICKS / max(_FINEST, 1 / Fraction(time_base))


def kept_tags(metadata: Mapping[str, str]) -> dict[str, str]:
    """The tags that describe content: title, date and the like."""
    return {
        name: value
        for name, value in metadata.items()
        if name.lower() not in _OF_STORAGE and not name.startswith("_STATISTICS")
    }


def public(info: VideoInfo) -> VideoInfo:
    """Returns the properties without tags that tell where and with which camera the video was taken."""
    return replace(info, tags=public_tags(info.tags), picture_tags=public_tags(info.picture_tags))


def language_of(metadata: Mapping[str, str]) -> dict[str, str]:
    """The tag of a stream's language; none where it is undetermined."""
    return {"language": metadata["language"]} if metadata.get("language", "und") != "und" else {}


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)[:100]


def is_transparent(frame: "av.VideoFrame") -> bool:
    """Whether some pixel is less than opaque."""
    if not any(component.is_alpha for component in frame.format.components):
        return False
    return bool(frame.reformat(format="rgba").to_ndarray()[..., 3].min() < 255)


def _decoded(
    container: "av.container.InputContainer",
    stream: "av.VideoStream",
    errors: list[str],
    ends: dict[int, Fraction],
) -> "Iterator[av.VideoFrame]":
    """Yields decoded frames; errors after the first go to `errors`, the ends of all streams to `ends`."""
    av = import_av()
    began = False
    packets = container.demux(stream, *container.streams.audio)
    while True:
        try:
            packet = next(packets, None)
            if packet is None:
                return
            if packet.pts is not None:
                end = (packet.pts + (packet.duration or 0)) * packet.time_base
                ends[packet.stream.index] = max(ends.get(packet.stream.index, end), end)
            if packet.stream.index != stream.index:
                continue
            frames = packet.decode()
        except av.error.FFmpegError as error:
            if isinstance(error, av.error.EOFError):
                return
            if began:
                errors.append(str(error))
            continue
        for frame in frames:
            if frame.is_corrupt:
                errors.append("corrupt")
            began = True
            yield frame


def _origin(container: "av.container.InputContainer", stream: "av.VideoStream", first: int) -> int:
    """Returns the timestamp that becomes 0: the first picture's, or the sound's if clearly earlier."""
    starts = [
        sound.start_time * sound.time_base / stream.time_base
        for sound in container.streams.audio
        if sound.start_time is not None
    ]
    earliest = min(starts, default=first)
    priming = Fraction(1, 10) / stream.time_base  # an encoder's delay does not count as sound
    return first if earliest >= first - priming else round(earliest)


def upright_planes(frame: "av.VideoFrame", info: VideoInfo) -> np.ndarray:
    """(3 * height / 2, width) uint8 of a decoded frame: yuv420p, sides made even by repeating the last line,
    turned upright."""
    if frame.format.name not in ("yuv420p", "yuvj420p"):
        is_rgb = frame.format.is_rgb or not frame.format.name.startswith(("yuv", "nv", "p0", "gray"))
        frame = frame.reformat(
            format="yuv420p",
            src_colorspace=None if is_rgb else info.matrix,
            dst_colorspace=info.matrix,
            src_color_range=FULL if is_rgb else info.range,
            dst_color_range=info.range,
            interpolation="BICUBIC",
        )
    planes = [_plane(plane) for plane in frame.planes]
    height, width = planes[0].shape
    if height % 2 or width % 2:
        planes[0] = np.pad(planes[0], ((0, height % 2), (0, width % 2)), mode="edge")
    if info.rotation:
        planes = [np.rot90(plane, info.rotation // 90) for plane in planes]
    if info.mirrored:
        planes = [plane[:, ::-1] for plane in planes]
    return np.concatenate([np.ascontiguousarray(plane).reshape(-1) for plane in planes]).reshape(
        -1, planes[0].shape[1]
    )


def _plane(plane: Any) -> np.ndarray:
    """Returns a plane without the padding at the end of its lines."""
    return np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: plane.height, : plane.width]


def to_rgb(planes: np.ndarray, info: VideoInfo) -> np.ndarray:
    """(height, width, 3) uint8 RGB of yuv420p planes (3 * height / 2, width)."""
    av = import_av()
    frame = av.VideoFrame.from_ndarray(planes, "yuv420p")
    return frame.reformat(
        format="rgb24", src_colorspace=info.matrix, src_color_range=info.range, dst_color_range=FULL
    ).to_ndarray()


def replace_pixels(planes: np.ndarray, before: np.ndarray, after: np.ndarray, info: VideoInfo) -> np.ndarray:
    """Returns the planes with the pixels replaced where two RGB pictures (height, width, 3) uint8 differ.

    All other luma, and the colour of all other blocks of 2 x 2 pixels, stay unchanged.
    """
    if before is after:
        return planes
    changed = reduce(cv2.max, cv2.split(cv2.absdiff(before, after))) > 0  # (height, width)
    rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
    if not len(rows):
        return planes
    top, left = rows[0] // 2 * 2, columns[0] // 2 * 2
    bottom, right = rows[-1] // 2 * 2 + 2, columns[-1] // 2 * 2 + 2
    changed = changed[top:bottom, left:right]
    av = import_av()
    window = av.VideoFrame.from_ndarray(
        np.ascontiguousarray(after[top:bottom, left:right]), "rgb24"
    ).reformat(format="yuv420p", dst_colorspace=info.matrix, src_color_range=FULL, dst_color_range=info.range)
    luma, *chroma = (_plane(plane) for plane in window.planes)
    result = planes.copy()
    target, *targets = split_planes(result)
    np.copyto(target[top:bottom, left:right], luma, where=changed)
    blocks = changed.reshape(changed.shape[0] // 2, 2, -1, 2).any((1, 3))
    for target, values in zip(targets, chroma, strict=True):
        np.copyto(target[top // 2 : bottom // 2, left // 2 : right // 2], values, where=blocks)
    return result


def split_planes(planes: np.ndarray) -> list[np.ndarray]:
    """Luma (height, width) and the two colour planes (height / 2, width / 2) as views of yuv420p planes."""
    height, width = planes.shape[0] * 2 // 3, planes.shape[1]
    colour = planes[height:].reshape(2, height // 2, width // 2)
    return [planes[:height], colour[0], colour[1]]


def still_info(like: VideoInfo, width: int, height: int) -> VideoInfo:
    """Returns the properties of a video of a photograph with the timing and the sound of `like`.

    Sides are rounded up to even numbers; colours are the usual BT.709 in the limited range.
    """
    return replace(
        like,
        width=width + width % 2,
        height=height + height % 2,
        coded_size=(width, height),
        rotation=0,
        mirrored=False,
        others=(),
        tags={},
        picture_tags={},
        chapters=(),
        pixel_format="rgb24",
        deep=False,
        colours=Colours(BT709, LIMITED, BT709, BT709),
        aspect=Fraction(1),
    )


def from_rgb(pixels: np.ndarray, info: VideoInfo) -> np.ndarray:
    """yuv420p planes (3 * height / 2, width) of an RGB picture (height, width, 3) uint8 of even sides."""
    av = import_av()
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "rgb24")
    return frame.reformat(
        format="yuv420p", dst_colorspace=info.matrix, src_color_range=FULL, dst_color_range=info.range
    ).to_ndarray()
