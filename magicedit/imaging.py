"""Photographs in and out: opening them safely, keeping what is theirs, writing them without loss.

Pixels are (height, width, 3) uint8 RGB, upright; tensors are float32 (3, height, width) in [-1, 1].
"""

import contextlib
import hashlib
import math
import numbers
import os
import struct
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from PIL import (  # the plugins of what we read: else opening any photograph loads all of Pillow's
    AvifImagePlugin,  # noqa: F401
    BmpImagePlugin,  # noqa: F401
    ExifTags,
    GifImagePlugin,  # noqa: F401
    Image,
    ImageDraw,
    ImageFont,
    JpegImagePlugin,  # noqa: F401
    PpmImagePlugin,  # noqa: F401
    TiffImagePlugin,  # noqa: F401
    WebPImagePlugin,  # noqa: F401
)
from PIL.PngImagePlugin import PngInfo

from magicedit import image_metadata
from magicedit.errors import ImageError, MissingDependencyError, OutputError, needs_extra, reason_of
from magicedit.files import opened, replacing, shown
from magicedit.image_files import TEXT_APART, Structure, structure_of, texts_apart
from magicedit.provenance import (
    LARGEST_IN_JPEG,
    PNG_XMP,
    TEXTS,
    Mark,
    add_to_gif,
    finishing,
    fitting,
    packet_of,
)

if TYPE_CHECKING:
    import torch

MIN_SIDE = 16  # pixels; nothing smaller shows a face
MAX_PIXELS = 120_000_000  # about 11,000 x 11,000; phones take photographs of 108 megapixels
MAX_PIXELS_VARIABLE = "MAGICEDIT_MAX_PIXELS"  # of the environment: another limit, for every command
LARGEST_FILE = 2**29  # bytes, or 5 for each pixel allowed
LARGEST_METADATA = 16 * 2**20  # bytes of one profile, text or other description
STRIP = 2**22  # pixels that are copied at once

EDITABLE_MODES = ("L", "LA", "RGB", "RGBA")
_TO_RGB = 'image.convert("RGB")'
_TO_RGBA = 'image.convert("RGBA")'
_TO_8_BIT = "Convert it to 8 bits a channel first, for example with ImageMagick: magick IN -depth 8 OUT"
_REFUSED_MODES = {
    "1": 'black-and-white. Convert it to grey first: image.convert("L")',
    "P": f"palette colour. Convert it first: {_TO_RGB}, or {_TO_RGBA} where it has transparency",
    "PA": f"palette colour with transparency. Convert it first: {_TO_RGBA}",
    "CMYK": f"CMYK, for print. Convert it first, best by its profile (PIL.ImageCms), else {_TO_RGB}",
    "YCbCr": f"YCbCr. Convert it first: {_TO_RGB}",
    "HSV": f"HSV. Convert it first: {_TO_RGB}",
    "LAB": "L*a*b*. Convert it to sRGB first with PIL.ImageCms",
    "RGBX": f"RGB with padding. Convert it first: {_TO_RGB}",
    "RGBa": f"RGB with premultiplied transparency. Convert it first: {_TO_RGBA}",
    "La": 'grey with premultiplied transparency. Convert it first: image.convert("LA")',
}

# TIFF tags that describe how the pixels were stored, not what was photographed, and those kept elsewhere
# (resolution, XMP, ICC profile).
_TIFF_STORAGE_TAGS = (
    *(*range(254, 260), *range(262, 267), 273, 274, *range(277, 285), *range(290, 294), 296, 297, 317, 320),
    *(*range(322, 326), 330, 332, *range(338, 342), 347, *range(529, 533), 700, 34675),
    *(34377, 37724),  # Photoshop's thumbnail and layers, which show the photograph as it was
    52545,  # C2PA's manifests, which are of the file as it was
)

# What is read from files. Pillow's other decoders reduce deep colour silently (JPEG 2000), call other
# programs (EPS) or are not for photographs.
_READABLE = ("JPEG", "PNG", "WEBP", "AVIF", "TIFF", "BMP", "GIF", "PPM")
_SLOW_CODECS = ("ppm", "ppm_plain")  # Pillow's in Python: seconds for each megapixel
_SLOW_PIXELS = 2_000_000
# Suffixes of photographs; a file that cannot be read all the same is refused with its reason
PHOTO_SUFFIXES = frozenset(
    f".{kind}"
    for kind in (
        *("jpg", "jpeg", "jpe", "jfif", "mpo", "png", "webp", "avif", "heic", "heif", "hif"),
        *("tif", "tiff", "bmp", "gif", "ppm", "pgm", "pnm"),
    )
)
VIDEO_SUFFIXES = frozenset((".mp4", ".mov", ".mkv", ".m4v", ".avi", ".webm", ".mpg", ".mpeg", ".wmv"))
_FORMATS = {
    ".png": "PNG",
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif"), "JPEG"),
    **{".webp": "WEBP", ".tif": "TIFF", ".tiff": "TIFF"},
}
WRITTEN_SUFFIXES = frozenset(_FORMATS)  # what `save_image` can write
_LARGEST_SIDE = {"JPEG": 65_500, "WEBP": 16_383}  # pixels that a format can hold
_LARGEST_SEGMENT = 65_533  # bytes of EXIF, or of a comment, in a JPEG


def _are_numbers(value: Any, count: int, most: float = math.inf) -> bool:
    return (
        isinstance(value, tuple)
        and len(value) == count
        and all(isinstance(number, numbers.Real) and 0 <= float(number) < most for number in value)
    )


def _is_bytes(value: Any) -> bool:
    return isinstance(value, bytes)


# Fields of `info` by Pillow's keys, and what their values must be: others are a PNG's texts, or nonsense
_FIELDS: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("icc_profile", "exif", "xmp", "comment"), _is_bytes),
    "dpi": lambda value: _are_numbers(value, 2, 65_536) and min(value) > 0,
    "gamma": lambda value: _are_numbers((value,), 1, 42_949),
    "chromaticity": lambda value: _are_numbers(value, 8, 42_949),
    "srgb": lambda value: _are_numbers((value,), 1, 256) and isinstance(value, int),
    "cicp": lambda value: _are_numbers(value, 4, 256),
}
_HIDDEN_TEXTS = (PNG_XMP, *(f"Raw profile type {kind}" for kind in ("exif", "APP1", "8bim")))


@dataclass(frozen=True, eq=False)
class Photo:
    """An opened photograph: its pixels, and what must survive an edit of them."""

    pixels: np.ndarray  # (height, width, 3) uint8 RGB, upright; read-only where `open_photo` made it
    mode: str = "RGB"  # how it came: L, LA, RGB or RGBA
    alpha: np.ndarray | None = None  # (height, width) uint8, where the mode has it
    icc_profile: bytes | None = None
    exif: bytes | None = None  # without orientation
    info: dict[str, Any] = field(default_factory=dict)  # dpi, xmp ... by Pillow's keys; "text": a PNG's texts
    source: Path | None = None
    lost: tuple[str, ...] = ()  # what the file has beside the pixels that is not kept, such as "gain map"

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels, upright."""
        return self.pixels.shape[1], self.pixels.shape[0]

    def digest(self) -> bytes:
        """Returns what only equal pixels share; remembered where nobody can change them."""
        if self.pixels.flags.writeable or self.pixels.base is not None:
            return self._digest_now()
        return self._digest

    @cached_property
    def _digest(self) -> bytes:
        return self._digest_now()

    def _digest_now(self) -> bytes:
        width = b"%d" % self.size[0]
        return hashlib.blake2b(np.ascontiguousarray(self.pixels), digest_size=16, salt=width).digest()


def pixel_limit() -> int:
    """The number of pixels that photographs may have: MAX_PIXELS, or MAGICEDIT_MAX_PIXELS of the environment.

    Raises ImageError where that is not a positive integer.
    """
    text = os.environ.get(MAX_PIXELS_VARIABLE, "").strip()
    if not text:
        return MAX_PIXELS
    if not (text.isascii() and text.isdecimal() and len(text) < 19 and int(text) > 0):
        raise ImageError(
            f"{MAX_PIXELS_VARIABLE} must be a number of pixels, such as 200000000, got {shown(text)}"
        )
    return int(text)


def open_photo(source: str | Path | Image.Image | np.ndarray | Photo, max_pixels: int | None = None) -> Photo:
    """Opens a photograph, turns it upright and keeps its metadata.

    `source` is a path, a PIL image, a uint8 array (height, width[, 2, 3 or 4]) or a Photo. Of a phone's
    multi-picture JPEG (MPO) or HEIC the first picture is taken. Thumbnails, and announcements of what is not
    kept (gain maps, films), are left out of the metadata; `Photo.lost` names them. The pixels are read-only,
    unless `source` is a Photo of others.

    max_pixels: default `pixel_limit()`. Checked before anything is decoded, as is what a decoder would need
    minutes or all memory for, see `image_files`.

    Raises ImageError for a file that is missing, empty, truncated or no image; for a picture below 16 px a
    side, above `max_pixels`, animated or of several pages; and for pixels that an edit could not give back as
    they came (palette, CMYK, more than 8 bits a channel ...), with the conversion that helps.
    MissingDependencyError for HEIC without a decoder.
    """
    most = pixel_limit() if max_pixels is None else max_pixels
    if isinstance(source, Photo):
        _check_size(source.size, most, "the photograph")
        return source
    if isinstance(source, np.ndarray):
        return _read(_from_array(source), most, "the array")
    if isinstance(source, Image.Image):
        filename = getattr(source, "filename", "")
        path = Path(filename) if isinstance(filename, str) and filename else None
        return _read(source, most, shown(path or "the image"), path)
    if not isinstance(source, str | Path):
        raise ImageError(f"expected a path, a PIL image or a uint8 array, got {type(source).__name__}")

    name = shown(source)
    with opened(source, ImageError, limit=max(LARGEST_FILE, 5 * most)) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of what is refused here, or does not matter
        if not os.fstat(file.fileno()).st_size:
            raise ImageError(f"{name} is empty (0 bytes); copy or download it again")
        with _decoding(name):
            structure = _structure(file, name)
            if Image.MAX_IMAGE_PIXELS is not None and most > 2 * Image.MAX_IMAGE_PIXELS:
                Image.MAX_IMAGE_PIXELS = most  # asked for: Pillow would refuse above twice its own limit
            file = texts_apart(file, structure.clashing)
            image = Image.open(file, formats=_READABLE if structure.format != "HEIF" else ("HEIF",))
        with image:
            return _read(image, most, name, Path(source), structure)


def _structure(file: IO[bytes], name: str) -> Structure:
    """What the file's headers say; ImageError or MissingDependencyError where it is not to be decoded."""
    try:
        structure = structure_of(file)
    except ValueError as error:
        deep = f". {_TO_8_BIT}" if "8 bits" in str(error) else "; save it again with another program"
        raise ImageError(f"{name} cannot be edited as it is: it {error}{deep}") from error
    if structure.format == "HEIF":
        problem = (
            f"{name} is HEIC; convert it first, for example: magick IN.heic OUT.png, or install a decoder"
        )
        with needs_extra("heic", problem):
            import pi_heif

        pi_heif.register_heif_opener(thumbnails=False)
    elif structure.format == "JPEG XL":
        raise ImageError(f"{name} is JPEG XL; convert it first, for example: djxl IN.jxl OUT.png")
    if structure.cicp is not None and structure.cicp[1] in image_metadata.HDR_TRANSFERS:
        curve = image_metadata.HDR_TRANSFERS[structure.cicp[1]]
        raise ImageError(f"{name} is HDR ({curve}); convert it to standard range (SDR) first")
    return structure


@contextlib.contextmanager
def _decoding(name: str):
    """Turns what Pillow raises on broken or oversized files into an ImageError about `name`."""
    try:
        yield
    except (ImageError, MissingDependencyError):
        raise
    except Image.UnidentifiedImageError as error:
        raise ImageError(
            f"{name} is not an image that can be read; use a JPEG, PNG, WebP, AVIF, HEIC or TIFF photograph"
        ) from error
    except Image.DecompressionBombError as error:
        raise ImageError(
            f"{name} is too large ({error}); shrink it first, or, if you trust it, set "
            f"{MAX_PIXELS_VARIABLE} to the number of pixels"
        ) from error
    except Exception as error:  # Pillow's decoders raise anything on broken data
        reason = reason_of(error)
        raise ImageError(f"{name} is damaged or incomplete ({reason}); copy or download it again") from error


def _from_array(pixels: np.ndarray) -> Image.Image:
    """A PIL image of a uint8 array, or ImageError saying which arrays are taken."""
    modes = {2: "LA", 3: "RGB", 4: "RGBA"}
    grey = pixels.ndim == 2
    if pixels.dtype != np.uint8 or not (grey or (pixels.ndim == 3 and pixels.shape[2] in modes)):
        raise ImageError(
            "expected a uint8 array (height, width, 3) of RGB values 0-255 (or grey, or with alpha), "
            f"got {pixels.dtype} {pixels.shape}"
        )
    _check_size(pixels.shape[1::-1], None, "the array")
    return Image.fromarray(np.ascontiguousarray(pixels), "L" if grey else modes[pixels.shape[2]])


def _check_size(size: tuple[int, int], max_pixels: int | None, name: str) -> None:
    width, height = size
    if min(width, height) < MIN_SIDE:
        raise ImageError(
            f"{name} measures {width} x {height} px; a photograph needs at least {MIN_SIDE} px a side"
        )
    if max_pixels is not None and width * height > max_pixels:
        raise ImageError(
            f"{name} measures {width} x {height} px, more than the limit of {max_pixels:,} pixels; "
            f"shrink it first, or, if you trust it, set {MAX_PIXELS_VARIABLE}={width * height} (in Python "
            "max_pixels)"
        )


def _read(
    image: Image.Image,
    max_pixels: int,
    name: str,
    path: Path | None = None,
    structure: Structure | None = None,
) -> Photo:
    """The stages of opening, cheap refusals before decoding."""
    # 1. What the header says
    _check_header(image, max_pixels, name)

    # 2. Pixels, upright
    with _decoding(name):
        image.load()
        if image.mode != "RGBA" and not isinstance(image.info.get("transparency"), str | None):
            raise ImageError(
                f"{name} cannot be edited as it is: one of its colours means transparency. "
                f"Convert it first: {_TO_RGBA}"
            )
    exif, orientation = _exif(image, name)
    info, lost = _described(image, name, orientation)
    mode, icc_profile = image.mode, _fields(image.info).get("icc_profile")
    pixels, alpha = _arrays(image)
    if structure is not None:
        image.close()  # its pixels are copied: turning needs the memory
    pixels = _turned(pixels, orientation)
    alpha = None if alpha is None else _turned(alpha, orientation)

    # 3. Colours stated without a profile, which only some formats can hold
    if structure is not None and structure.cicp is not None:
        info["cicp"] = structure.cicp
    elif isinstance(stated := image.info.get("nclx_profile"), dict):  # of HEIC
        names = ("color_primaries", "transfer_characteristics", "matrix_coefficients")
        info["cicp"] = (*(int(stated[name]) for name in names), 1)  # as RGB they have the full range
    if icc_profile is None:
        icc_profile = image_metadata.stated_profile(info)
    pixels.flags.writeable = False
    return Photo(pixels, mode, alpha, icc_profile, exif, info, path, lost)


def _check_header(image: Image.Image, max_pixels: int, name: str) -> None:
    """Raises ImageError for a picture that is not to be decoded, or could not be given back as it came."""
    # libwebp's decoder of animations, which Pillow uses, holds the picture four times
    _check_size(image.size, max_pixels * 2 // 3 if image.format == "WEBP" else max_pixels, name)
    with _decoding(name):
        several = getattr(image, "is_animated", False)
    if several and image.format not in ("MPO", "HEIF"):  # a photograph with its preview or depth map behind
        raise ImageError(
            f"{name} is animated or has several pages; save the one to edit as a PNG first, or an animation "
            "as a film for `magicedit video`"
        )
    if image.mode not in EDITABLE_MODES:
        reason = _REFUSED_MODES.get(image.mode, f"{image.mode}, more than 8 bits a channel. {_TO_8_BIT}")
        raise ImageError(f"{name} cannot be edited as it is: its pixels are {reason}")
    bits = image.info.get("bit_depth")  # told of HEIC
    if _is_deep(image) or (isinstance(bits, int) and bits > 8):
        raise ImageError(f"{name} cannot be edited as it is: it has more than 8 bits a channel. {_TO_8_BIT}")
    codecs = {tile.codec_name for tile in getattr(image, "tile", ())}
    slow = codecs & {*_SLOW_CODECS} and image.width * image.height > _SLOW_PIXELS
    if slow or "bmp_rle" in codecs:
        raise ImageError(f"{name} is in a rare form that takes minutes to decode; save it as a PNG first")


def _arrays(image: Image.Image) -> tuple[np.ndarray, np.ndarray | None]:
    """The pixels (height, width, 3) and the alpha (height, width) of a loaded image, as it lies in the file.

    Copied in strips: Pillow would hold a large picture three times to give it away at once.
    """
    width, height = image.size
    pixels = np.empty((height, width, 3), np.uint8)
    alpha = np.empty((height, width), np.uint8) if image.mode in ("LA", "RGBA") else None
    rows = max(1, STRIP // width)
    for top in range(0, height, rows):
        bottom = min(height, top + rows)
        strip = image.crop((0, top, width, bottom))
        if alpha is not None:
            alpha[top:bottom] = strip.getchannel("A")
        pixels[top:bottom] = strip.convert("RGB")  # of LA and RGBA the colours as they are
    return pixels, alpha


def _turned(array: np.ndarray, orientation: int) -> np.ndarray:
    """An array (height, width, ...) upright, by the EXIF orientation in which it lies."""
    if orientation >= 5:
        array = array.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    return np.ascontiguousarray(array)


def _described(image: Image.Image, name: str, orientation: int) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Metadata beside profile and EXIF that stay true after an edit, and the names of what is left out."""
    sizes = {key: len(value) for key, value in image.info.items() if isinstance(value, str | bytes)}
    if (largest := max(sizes.values(), default=0)) > LARGEST_METADATA:
        raise ImageError(f"{name} has {largest:,} bytes of metadata in one piece; remove it first")
    info = _fields(image.info)
    for kept_elsewhere in ("exif", "icc_profile", "xmp"):
        info.pop(kept_elsewhere, None)
    if texts := _texts(image):
        info[TEXTS] = texts
    behind = (image.info.get(key) for key in ("aux", "depth_images") if image.format == "HEIF")
    lost = ["further pictures"] if getattr(image, "is_animated", False) or any(behind) else []
    if (packet := packet_of(image.info)) is not None:
        xmp, more = image_metadata.true_xmp(image_metadata.upright_xmp(packet))
        lost += more
        if xmp is not None:
            info["xmp"] = xmp
    return info, tuple(lost)


def _fields(info: Mapping[Any, Any]) -> dict[str, Any]:
    """What of a picture's `info` are fields that are kept, with values of their types."""
    return {key: info[key] for key, fits in _FIELDS.items() if key in info and fits(info[key])}


def _texts(image: Image.Image) -> dict[str, str]:
    """What of a loaded picture's `info` is text. Without XMP, and without EXIF and Photoshop's resources,
    which may have thumbnails."""
    told, apart = getattr(image, "text", None) or {}, image.info.get(TEXTS)
    texts = {key: told.get(key, value) for key, value in image.info.items()}
    texts |= apart if isinstance(apart, dict) else {}
    return {
        key.removeprefix(TEXT_APART): value
        for key, value in texts.items()
        if isinstance(key, str) and isinstance(value, str) and key not in _HIDDEN_TEXTS
    }


def _is_deep(image: Image.Image) -> bool:
    """Whether the file has more than 8 bits a channel, which Pillow would drop silently in colour modes."""
    for tile in getattr(image, "tile", ()):
        arguments = tile.args if isinstance(tile.args, tuple) else (tile.args,)
        if any(isinstance(argument, str) and ";16" in argument for argument in arguments):
            return True
        if tile.codec_name.startswith("ppm") and isinstance(arguments[-1], int) and arguments[-1] > 255:
            return True
    return False


def _exif(image: Image.Image, name: str) -> tuple[bytes | None, int]:
    """EXIF of a loaded image without orientation and thumbnails, in the file's own bytes where it has them,
    and the orientation that it or XMP says."""
    texts = getattr(image, "text", None) or {}  # of a PNG that the caller opened: one may hide a field
    clash = "exif" in texts or any(isinstance(image.info.get(key), str) for key in ("exif", "xmp"))
    raw = None if "exif" in texts else _fields(image.info).get("exif")
    try:
        if raw is None and isinstance(text := image.info.get("Raw profile type exif"), str):
            image_metadata.check_exif(bytes.fromhex("".join(text.split("\n")[3:])))
        elif raw:
            image_metadata.check_exif(raw)
        exif = Image.Exif() if clash else image.getexif()
        if clash and raw:
            exif.load(raw)
        orientation = exif.get(ExifTags.Base.Orientation, 1)
        if raw:
            kept = image_metadata.upright_exif(raw)
        else:
            copy = Image.Exif()  # the caller's image keeps its own
            copy.load(exif.tobytes())
            for tag in _TIFF_STORAGE_TAGS if image.format == "TIFF" else (ExifTags.Base.Orientation,):
                copy.pop(tag, None)
            kept = copy.tobytes() if len(copy) else None
    except Exception as error:  # Pillow raises anything on broken EXIF
        raise ImageError(
            f"{name} has damaged EXIF metadata ({reason_of(error)}), so that its orientation is not known; "
            "remove it first, for example: exiftool -all= -icc_profile:all IMAGE"
        ) from error
    return kept, orientation if orientation in range(1, 9) else 1


def photo_to_image(photo: Photo, pixels: np.ndarray, mark: Mark | None = None) -> Image.Image:
    """Edited pixels as a PIL image in the photograph's own mode, with its alpha and metadata.

    `pixels` is (height, width, 3) uint8 RGB of the photograph's size. Where they equal `photo.pixels`, the
    image's bytes equal the original's; a grey photograph stays grey. Else the image gets the mark of the
    edit, which `save_image` writes: an unchanged photograph gets no new mark.
    """
    if pixels.dtype != np.uint8 or pixels.shape != photo.pixels.shape:
        raise ImageError(
            f"expected edited pixels as uint8 {photo.pixels.shape}, got {pixels.dtype} {pixels.shape}"
        )
    image = Image.new("RGB", photo.size, None)
    image.frombytes(np.ascontiguousarray(pixels))
    if photo.mode in ("L", "LA"):
        image = image.convert("L")  # exact for equal channels: Pillow's weights add up to one
    if photo.alpha is not None:
        image.putalpha(Image.fromarray(photo.alpha, "L"))
    image.info.update(photo.info)
    if photo.icc_profile is not None:
        image.info["icc_profile"] = photo.icc_profile
    if photo.exif is not None:
        image.info["exif"] = photo.exif
    if mark is not None and not _equal(pixels, photo.pixels):
        mark.put_on(image)
    return image


def _equal(pixels: np.ndarray, others: np.ndarray) -> bool:
    """Whether arrays of one shape (height, width, 3) are equal; most differ early."""
    rows = max(1, STRIP // pixels.shape[1])
    strips = (slice(top, top + rows) for top in range(0, len(pixels), rows))
    return pixels is others or all(np.array_equal(pixels[strip], others[strip]) for strip in strips)


def check_output(
    path: str | Path,
    *,
    overwrite: bool | None = None,
    forbid: Path | None = None,
    photo: Photo | None = None,
    exist_ok: bool = True,
) -> Path:
    """The path that `save_image` would write to, or OutputError: worth asking before long work.

    Raises for a suffix that is not one of WRITTEN_SUFFIXES, for a folder that is missing
    or not writable, for `forbid` (the input) by whatever name, unless `overwrite` (None: never), for any
    existing file, unless `exist_ok`, and for a `photo` whose edit the format cannot hold: its size, its
    transparency or its metadata.
    """
    path = Path(path)
    _check_suffix(path)
    target = writable(path, overwrite=overwrite, forbid=forbid, exist_ok=exist_ok)
    if photo is not None:
        format = _FORMATS[target.suffix.lower()]
        _check_held(path, format, photo.size, photo.alpha is not None)
        marked = {"xmp": Mark({}).packet(packet_of(photo.info))}
        exif = {} if photo.exif is None else {"exif": photo.exif}
        _check_metadata(path, format, photo.info | exif | marked)
    return target


def _check_suffix(path: Path) -> None:
    """Raises OutputError where a name tells no format."""
    if path.suffix.lower() not in _FORMATS:
        raise OutputError(
            f"cannot tell a format from the suffix of {shown(path)}; use one of {', '.join(_FORMATS)}"
        )


def _check_held(path: str | Path, format: str, size: tuple[int, int], transparent: bool) -> None:
    """Raises OutputError for pixels that a format cannot hold."""
    if format == "JPEG" and transparent:
        raise OutputError(
            f"{shown(path)}: a JPEG cannot hold this image's transparency; use .png, .webp or .tiff"
        )
    if max(size) > _LARGEST_SIDE.get(format, max(size)):
        raise OutputError(
            f"{shown(path)}: {format} holds at most {_LARGEST_SIDE[format]:,} px a side, and the picture "
            f"measures {size[0]} x {size[1]} px; use .png or .tiff"
        )


def _check_metadata(path: str | Path, format: str, info: Mapping[Any, Any]) -> None:
    """Raises OutputError for metadata that a format cannot hold."""
    if format != "JPEG":
        return
    for key, name in (("exif", "EXIF"), ("comment", "comment")):
        if len(_fields(info).get(key, b"")) > _LARGEST_SEGMENT:
            raise OutputError(
                f"{shown(path)}: the photograph's {name} data is too long for a JPEG ({_LARGEST_SEGMENT:,} "
                f"bytes); write a PNG, or remove it first, for example: exiftool -{key}:all= IMAGE"
            )
    if (xmp := packet_of(info)) is not None and fitting(xmp, LARGEST_IN_JPEG) is None:
        raise OutputError(
            f"{shown(path)}: the photograph's XMP is too large for a JPEG ({LARGEST_IN_JPEG:,} bytes, with "
            "the mark of the edit); write a PNG, or remove it first, for example: exiftool -xmp:all= IMAGE"
        )


def writable(
    path: str | Path, *, overwrite: bool | None = None, forbid: Path | None = None, exist_ok: bool = True
) -> Path:
    """`check_output` for files of any kind."""
    path = Path(path)
    try:
        path.stat()
    except FileNotFoundError:
        pass
    # A name that is too long, below a file, of a link to itself, or that no file can have
    except (OSError, ValueError) as error:
        raise OutputError(f"{shown(path)} cannot be written to ({error}); choose another name") from error
    if path.is_dir():
        raise OutputError(f"{path} is a folder; give the path of a file in it")
    target = path.resolve()  # a link keeps pointing where it did
    if target.exists() and not target.is_file():  # a device or a pipe, which a file would replace
        raise OutputError(f"{shown(path)} is no regular file; give the name of one")
    written, named = (_FORMATS.get(name.suffix.lower(), name.suffix.lower()) for name in (target, path))
    if written != named:  # it would have the content of one suffix and the name of another
        raise OutputError(
            f"{shown(path)} is a link to {shown(target.name)}, which has the suffix of another format; name "
            "that file, or another"
        )
    if not target.parent.is_dir():
        raise OutputError(f"the folder {path.parent} does not exist; create it first")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise OutputError(f"the folder {path.parent} may not be written to; choose another")
    exist = forbid is not None and target.exists() and Path(forbid).exists()
    if exist and not overwrite and target.samefile(forbid):
        remedy = "" if overwrite is None else ", or replace it with --overwrite (overwrite=True)"
        raise OutputError(f"{path} is the input; choose another output{remedy}")
    if not exist_ok and target.exists():
        raise OutputError(f"{shown(path)} exists; choose another name, or replace it with --overwrite")
    return target


def is_file_of(file: Path, path: str | Path, image: Image.Image) -> bool:
    """Whether a file has the format of a path's suffix, and an image's pixels and metadata, so that a copy of
    it is the image."""
    written = _FORMATS.get(Path(path).suffix.lower())
    try:
        with Image.open(file) as opened:
            format = "JPEG" if opened.format == "MPO" else opened.format
        if format != written:
            return False
        photo = open_photo(file)
    except (ImageError, OSError):
        return False
    return photo_to_image(photo, photo.pixels) == image


def save_image(
    image: Image.Image, path: str | Path, *, overwrite: bool = False, forbid: Path | None = None
) -> Path:
    """Writes an image with its metadata, all or nothing, and returns the path.

    The file is written under another name in the same folder and then renamed, so that a crash leaves the
    old file or none. PNG, TIFF and WebP are lossless; JPEG has quality 95 without chroma subsampling. PNG is
    compressed by runs alone (zlib's strategy RLE), fast and with files up to a sixth larger.
    ICC profile, EXIF, resolution, XMP and, in PNG, text are taken from `image.info`. A picture with the mark
    of an edit is also signed where `magicedit.signing` does that.
    Raises OutputError as `check_output` does, for transparency in a JPEG, and where writing or signing fails.
    """
    format = _FORMATS[check_output(path, overwrite=overwrite, forbid=forbid).suffix.lower()]
    _check_held(path, format, image.size, image.mode in ("LA", "RGBA"))
    _check_metadata(path, format, image.info)
    with replacing(path) as output, finishing(output, Path(path), Mark.carried(image)) as file:
        try:
            image.load()
            # The same pixels without `info` and without a file's tags, which Pillow's writers would heed
            bare = image._new(image.im)
            bare.info = {}
            bare.save(file, format, **_save_options(image, format))
        except Exception as error:  # Pillow's encoders raise anything on metadata that they cannot hold
            raise OutputError(
                f"{shown(path)} could not be written ({reason_of(error)}); choose another place or format"
            ) from error
    return Path(path)


def check_pace(path: str | Path, seconds: float) -> None:
    """Raises OutputError where a GIF, or a film, cannot show each picture for `seconds`."""
    low, high = (0.01, 655.35) if Path(path).suffix.lower() == ".gif" else (0.001, 3600.0)
    if not low <= seconds <= high:
        raise OutputError(f"{shown(path)}: a picture is shown for {low:g} to {high:g} s, got {seconds:.3g} s")


def save_animation(frames: Sequence[Image.Image], path: str | Path, seconds: float = 0.1) -> Path:
    """Writes pictures of one size as a GIF that repeats, each shown for `seconds`; all or nothing. It is
    marked and signed as edited if one of them is.

    Raises:
        OutputError: for another suffix than .gif, as `check_output` and `check_pace`, and where writing
            fails.
        ImageError: where there are no pictures, or their sizes differ.
    """
    if Path(path).suffix.lower() != ".gif":
        raise OutputError(f"an animation is written as .gif, not as {path}")
    check_pace(path, seconds)
    writable(path)
    if not frames or len({frame.size for frame in frames}) > 1:
        raise ImageError(f"expected pictures of one size, got {[frame.size for frame in frames]}")
    # One palette for all, of a strip of them: separate ones make still places flicker
    whole = strip([frame.convert("RGB") for frame in frames])
    palette = whole.quantize(256, Image.Quantize.MEDIANCUT)
    pictures = [frame.convert("RGB").quantize(palette=palette) for frame in frames]
    for picture in pictures:
        picture.info = {}
    mark = Mark.of_pictures(frames)
    with replacing(path) as output, finishing(output, Path(path), mark) as file:
        pictures[0].save(
            file,
            "GIF",
            save_all=True,
            append_images=pictures[1:],
            duration=round(1000 * seconds),
            loop=0,
            disposal=1,
        )
        if mark is not None:
            add_to_gif(file, mark.packet())
    return Path(path)


def _save_options(image: Image.Image, format: str) -> dict[str, Any]:
    """Pillow's arguments that carry `image.info` into a file of `format`."""
    info = _fields(image.info)
    options = {key: info[key] for key in ("icc_profile", "exif", "dpi") if info.get(key)}
    xmp = packet_of(image.info)
    if format == "JPEG":
        xmp = None if xmp is None else fitting(xmp, LARGEST_IN_JPEG)
        options |= {"quality": 95, "subsampling": "4:4:4"}
        options |= {"xmp": xmp} if xmp else {}
        options |= {"comment": info["comment"]} if info.get("comment") else {}
    elif format == "WEBP":
        # exact: keep the colour under full transparency too
        options |= {"lossless": True, "exact": True} | ({"xmp": xmp} if xmp else {})
    elif format == "TIFF":
        # uncompressed: Pillow's compressing writer cannot hold the nested tables of EXIF and GPS
        options |= {"compression": "raw", "tiffinfo": _tiff_tags(options.pop("exif", None), xmp)}
    elif format == "PNG":
        # A seventh of the time of zlib's default (`png_4000` of benchmarks/edit_speed.json); files of 80
        # portraits were 0 to 17 % larger
        options |= {"compress_type": zlib.Z_RLE, "pnginfo": _png_chunks(info, _texts(image), xmp)}
    return options


def _tiff_tags(exif: bytes | None, xmp: bytes | None) -> Image.Exif:
    """EXIF and XMP as the tags of a TIFF, without those that would describe another file's storage."""
    tags = Image.Exif()
    if exif is not None:
        tags.load(exif)
    for tag in _TIFF_STORAGE_TAGS:
        tags.pop(tag, None)
    if xmp is not None:
        tags[700] = xmp
    return tags


def _png_chunks(info: Mapping[str, Any], texts: Mapping[str, str], xmp: bytes | None) -> PngInfo:
    """Text, and the colour description without a profile, which Pillow reads but does not write."""
    chunks = PngInfo()
    if "gamma" in info:
        chunks.add(b"gAMA", struct.pack(">I", round(info["gamma"] * 100_000)))
    if "chromaticity" in info:
        chunks.add(b"cHRM", struct.pack(">8I", *(round(value * 100_000) for value in info["chromaticity"])))
    if "cicp" in info:
        primaries, transfer, _, full = info["cicp"]
        chunks.add(b"cICP", bytes([primaries, transfer, 0, full]))  # 0: RGB
    if "srgb" in info:
        chunks.add(b"sRGB", bytes([info["srgb"]]))
    for key, value in texts.items():
        if 0 < len(key) < 80:
            chunks.add_text(key, value)
    if xmp is not None:
        chunks.add_itxt(PNG_XMP, xmp.decode("utf-8", "replace"))
    return chunks


def to_tensor(pixels: np.ndarray) -> "torch.Tensor":
    """uint8 (height, width, 3), 0 to 255 -> float32 (3, height, width), -1 to 1."""
    import torch

    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ImageError(f"pixels must be uint8 (height, width, 3), got {pixels.dtype} {pixels.shape}")
    return torch.from_numpy(pixels.transpose(2, 0, 1).astype(np.float32) / 127.5 - 1.0)


def to_pixels(tensor: "torch.Tensor") -> np.ndarray:
    """float (3, height, width) -> uint8 (height, width, 3): the inverse of `to_tensor`, rounding to nearest.

    Values beyond [-1, 1], which a model may predict, become the nearest colour there is.
    """
    if tensor.ndim != 3 or tensor.shape[0] != 3:
        raise ImageError(f"tensor must have shape (3, height, width), got {tuple(tensor.shape)}")
    values = tensor.detach().float().add(1.0).mul(127.5).round().clamp(0, 255)
    return values.byte().permute(1, 2, 0).contiguous().cpu().numpy()


def reduced(pixels: np.ndarray, side: int) -> np.ndarray:
    """Returns a picture (height, width, 3) uint8, averaged down to at most `side` px a side."""
    import cv2

    height, width = pixels.shape[:2]
    scale = side / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return pixels if scale >= 1 else cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)


def before_after(before: Image.Image, after: Image.Image) -> Image.Image:
    """Two pictures of one size side by side, RGB."""
    return strip([before, after])


def strip(images: Sequence[Image.Image], labels: Sequence[str] | None = None) -> Image.Image:
    """A row of pictures of one size, RGB on white, with `labels` as captions under them.

    Raises ImageError where there are none, sizes differ or the labels do not match in number.
    """
    if not images or len({image.size for image in images}) > 1:
        raise ImageError(f"expected pictures of one size, got {[image.size for image in images]}")
    if labels is not None and len(labels) != len(images):
        raise ImageError(f"expected {len(images)} labels, one for each picture, got {len(labels)}")
    width, height = images[0].size
    gap = max(2, width // 64)
    caption = max(16, width // 12) if labels is not None else 0
    row = Image.new("RGB", (len(images) * (width + gap) - gap, height + caption), "white")
    if (mark := Mark.of_pictures(images)) is not None:
        mark.put_on(row)
    draw = ImageDraw.Draw(row)
    font = ImageFont.load_default(size=caption * 0.65) if labels is not None else None
    for index, image in enumerate(images):
        left = index * (width + gap)
        has_alpha = image.mode in ("LA", "RGBA")
        row.paste(image.convert("RGB"), (left, 0), image.getchannel("A") if has_alpha else None)
        if labels is not None:
            centre = (left + width / 2, height + caption / 2)
            draw.text(centre, labels[index], fill="black", font=font, anchor="mm")
    return row
