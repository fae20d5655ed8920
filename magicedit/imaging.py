"""Photographs in and out: opening them safely, keeping what is theirs, writing them without loss.

Pixels are (height, width, 3) uint8 RGB, upright; tensors are float32 (3, height, width) in [-1, 1].
"""

import os
import struct
import warnings
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import (  # the plugins of what we read: else opening any photograph loads all of Pillow's
    BmpImagePlugin,  # noqa: F401
    ExifTags,
    GifImagePlugin,  # noqa: F401
    Image,
    ImageDraw,
    ImageFont,
    ImageOps,
    JpegImagePlugin,  # noqa: F401
    PpmImagePlugin,  # noqa: F401
    TiffImagePlugin,  # noqa: F401
    WebPImagePlugin,  # noqa: F401
)
from PIL.PngImagePlugin import PngInfo

from magicedit.errors import ImageError, OutputError
from magicedit.files import replacing

if TYPE_CHECKING:
    import torch

MIN_SIDE = 16  # pixels; nothing smaller shows a face
MAX_PIXELS = 100_000_000  # about 10,000 x 10,000

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

# What a decoder raises on broken data; Pillow lets several kinds through.
_DECODING_ERRORS = (OSError, SyntaxError, ValueError, EOFError, TypeError, struct.error)

# TIFF tags that describe how the pixels were stored, not what was photographed, and those kept elsewhere
# (resolution, XMP, ICC profile).
_TIFF_STORAGE_TAGS = (
    *(*range(254, 260), *range(262, 267), 273, 274, *range(277, 285), *range(290, 294), 296, 297, 317, 320),
    *(*range(322, 326), 330, 332, *range(338, 342), 347, *range(529, 533), 700, 34675),
)

# What is read from files. Pillow's other decoders reduce deep colour silently (JPEG 2000, AVIF), call other
# programs (EPS) or are not for photographs.
_READABLE = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM")
# Suffixes of photographs; a file that cannot be read all the same is refused with its reason
PHOTO_SUFFIXES = frozenset(
    f".{kind}"
    for kind in (
        *("jpg", "jpeg", "jpe", "jfif", "mpo", "png", "webp", "avif", "heic", "heif", "hif"),
        *("tif", "tiff", "bmp", "gif", "ppm", "pgm", "pnm"),
    )
)
_FORMATS = {
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif"), "JPEG"),
    **{".png": "PNG", ".webp": "WEBP", ".tif": "TIFF", ".tiff": "TIFF"},
}
WRITTEN_SUFFIXES = frozenset(_FORMATS)  # what `save_image` can write


@dataclass(frozen=True, eq=False)
class Photo:
    """An opened photograph: its pixels, and what must survive an edit of them."""

    pixels: np.ndarray  # (height, width, 3) uint8 RGB, upright
    mode: str = "RGB"  # how it came: L, LA, RGB or RGBA
    alpha: np.ndarray | None = None  # (height, width) uint8, where the mode has it
    icc_profile: bytes | None = None
    exif: bytes | None = None  # without orientation
    info: dict[str, Any] = field(default_factory=dict)  # other metadata by Pillow's keys: dpi, xmp, PNG text
    source: Path | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels, upright."""
        return self.pixels.shape[1], self.pixels.shape[0]


def open_photo(source: str | Path | Image.Image | np.ndarray | Photo, max_pixels: int = MAX_PIXELS) -> Photo:
    """Opens a photograph, turns it upright and keeps its metadata.

    `source` is a path, a PIL image, a uint8 array (height, width[, 2, 3 or 4]) or a Photo. Of a phone's
    multi-picture JPEG (MPO) the first picture is taken.
    Raises ImageError for a file that is missing, empty, truncated or no image; for a picture below 16 px a
    side, above `max_pixels` (checked before anything is decoded), animated or of several pages; and for
    pixels that an edit could not give back as they came (palette, CMYK, more than 8 bits a channel ...),
    with the conversion that helps.
    """
    if isinstance(source, Photo):
        _check_size(source.size, max_pixels, "the photograph")
        return source
    if isinstance(source, np.ndarray):
        return _read(_from_array(source), max_pixels, "the array", None)
    if isinstance(source, Image.Image):
        filename = getattr(source, "filename", "")
        path = Path(filename) if isinstance(filename, str) and filename else None
        return _read(source, max_pixels, str(path or "the image"), path)
    if not isinstance(source, str | Path):
        raise ImageError(f"expected a path, a PIL image or a uint8 array, got {type(source).__name__}")

    path = Path(source)
    if not path.exists():
        raise ImageError(f"{path} does not exist; check the path of the photograph")
    if not path.is_file():
        raise ImageError(f"{path} is not a file; give the path of one photograph")
    try:
        if path.stat().st_size == 0:
            raise ImageError(f"{path} is empty (0 bytes); copy or download it again")
        with _decoding(str(path)), warnings.catch_warnings():
            # our own limit is checked next, by an error
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(path, formats=_READABLE)
    except PermissionError as error:
        raise ImageError(f"{path} may not be read; check its permissions") from error
    with image:
        return _read(image, max_pixels, str(path), path)


@contextmanager
def _decoding(name: str):
    """Turns what Pillow raises on broken or oversized files into an ImageError about `name`."""
    try:
        yield
    except (ImageError, PermissionError):
        raise
    except Image.UnidentifiedImageError as error:
        raise ImageError(
            f"{name} is not an image that can be read; use a JPEG, PNG, WebP or TIFF photograph"
        ) from error
    except Image.DecompressionBombError as error:
        raise ImageError(
            f"{name} is too large ({error}); shrink it first, or raise "
            "PIL.Image.MAX_IMAGE_PIXELS and max_pixels"
        ) from error
    except _DECODING_ERRORS as error:
        raise ImageError(f"{name} is damaged or incomplete ({error}); copy or download it again") from error


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
            "shrink it first, or raise max_pixels if you trust it"
        )


def _read(image: Image.Image, max_pixels: int, name: str, path: Path | None) -> Photo:
    """The stages of opening, cheap refusals before decoding."""
    # 1. What the header says
    _check_size(image.size, max_pixels, name)
    with _decoding(name):
        frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # MPO: a photograph with its preview or depth map behind it
        raise ImageError(
            f"{name} is animated or has several pages ({frames}); save the one to edit as a PNG first"
        )
    if image.mode not in EDITABLE_MODES:
        reason = _REFUSED_MODES.get(image.mode, f"{image.mode}, more than 8 bits a channel. {_TO_8_BIT}")
        raise ImageError(f"{name} cannot be edited as it is: its pixels are {reason}")
    if _is_deep(image):
        raise ImageError(f"{name} cannot be edited as it is: it has more than 8 bits a channel. {_TO_8_BIT}")

    # 2. Pixels, upright
    with _decoding(name):
        image.load()
        if image.mode != "RGBA" and image.info.get("transparency") is not None:
            raise ImageError(
                f"{name} cannot be edited as it is: one of its colours stands for transparency. "
                f"Convert it first: {_TO_RGBA}"
            )
        try:
            exif = _exif(image)
        except _DECODING_ERRORS as error:
            raise ImageError(
                f"{name} has damaged EXIF metadata ({error}), so that its orientation is not known; "
                "remove it first, for example: exiftool -all= -icc_profile:all IMAGE"
            ) from error
        upright = ImageOps.exif_transpose(image)
    _check_size(upright.size, max_pixels, name)

    # 3. What is kept beside them
    info = {
        key: value
        for key, value in upright.info.items()
        if isinstance(value, str) or key in ("dpi", "xmp", "comment", "gamma", "chromaticity", "srgb")
    }
    alpha = np.array(upright.getchannel("A")) if upright.mode in ("LA", "RGBA") else None
    colour = upright.getchannel("L") if upright.mode in ("L", "LA") else upright
    return Photo(
        pixels=np.array(colour.convert("RGB")),
        mode=upright.mode,
        alpha=alpha,
        icc_profile=upright.info.get("icc_profile"),
        exif=exif,
        info=info,
        source=path,
    )


def _is_deep(image: Image.Image) -> bool:
    """Whether the file has more than 8 bits a channel, which Pillow would drop silently in colour modes."""
    for tile in getattr(image, "tile", ()):
        arguments = tile.args if isinstance(tile.args, tuple) else (tile.args,)
        if any(isinstance(argument, str) and ";16" in argument for argument in arguments):
            return True
        if tile.codec_name.startswith("ppm") and isinstance(arguments[-1], int) and arguments[-1] > 255:
            return True
    return False


def _exif(image: Image.Image) -> bytes | None:
    """EXIF of a loaded image without orientation: the file's own bytes where they need no change."""
    exif = image.getexif()
    raw = image.info.get("exif")
    if raw is not None and exif.get(ExifTags.Base.Orientation, 1) == 1:
        return raw
    kept = Image.Exif()  # a copy: the caller's image keeps its own
    kept.load(exif.tobytes())
    for tag in _TIFF_STORAGE_TAGS if image.format == "TIFF" else (ExifTags.Base.Orientation,):
        kept.pop(tag, None)
    return kept.tobytes() if len(kept) else None


def photo_to_image(photo: Photo, pixels: np.ndarray) -> Image.Image:
    """Edited pixels as a PIL image in the photograph's own mode, with its alpha and metadata.

    `pixels` is (height, width, 3) uint8 RGB of the photograph's size. Where they equal `photo.pixels`, the
    image's bytes equal the original's; a grey photograph stays grey.
    """
    if pixels.dtype != np.uint8 or pixels.shape != photo.pixels.shape:
        raise ImageError(
            f"expected edited pixels as uint8 {photo.pixels.shape}, got {pixels.dtype} {pixels.shape}"
        )
    image = Image.fromarray(np.ascontiguousarray(pixels), "RGB")
    if photo.mode in ("L", "LA"):
        image = image.convert("L")  # exact for equal channels: Pillow's weights add up to one
    if photo.alpha is not None:
        image.putalpha(Image.fromarray(photo.alpha, "L"))
    image.info.update(photo.info)
    if photo.icc_profile is not None:
        image.info["icc_profile"] = photo.icc_profile
    if photo.exif is not None:
        image.info["exif"] = photo.exif
    return image


def check_output(path: str | Path, *, overwrite: bool = False, forbid: Path | None = None) -> Path:
    """The path that `save_image` would write to, or OutputError: worth asking before long work.

    Raises for a suffix that is not one of WRITTEN_SUFFIXES, for a folder that is missing
    or not writable, and for `forbid` (the input) by whatever name, unless `overwrite`.
    """
    path = Path(path)
    if path.suffix.lower() not in _FORMATS:
        raise OutputError(f"cannot tell a format from the suffix of {path}; use one of {', '.join(_FORMATS)}")
    return writable(path, overwrite=overwrite, forbid=forbid)


def writable(path: str | Path, *, overwrite: bool = False, forbid: Path | None = None) -> Path:
    """`check_output` for files of any kind."""
    path = Path(path)
    if path.is_dir():
        raise OutputError(f"{path} is a folder; give the path of a file in it")
    target = path.resolve()  # a link keeps pointing where it did
    if not target.parent.is_dir():
        raise OutputError(f"the folder {path.parent} does not exist; create it first")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise OutputError(f"the folder {path.parent} may not be written to; choose another")
    exist = forbid is not None and target.exists() and Path(forbid).exists()
    if exist and not overwrite and target.samefile(forbid):
        raise OutputError(
            f"{path} is the input; choose another output, or replace it with --overwrite, where the command "
            "has it (overwrite=True)"
        )
    return target


def save_image(
    image: Image.Image, path: str | Path, *, overwrite: bool = False, forbid: Path | None = None
) -> Path:
    """Writes an image with its metadata, all or nothing, and returns the path.

    The file is written under another name in the same folder and then renamed, so that a crash leaves the
    old file or none. PNG, TIFF and WebP are lossless; JPEG has quality 95 without chroma subsampling.
    ICC profile, EXIF, resolution, XMP and, in PNG, text are taken from `image.info`.
    Raises OutputError as `check_output` does, for transparency in a JPEG, and where writing fails.
    """
    format = _FORMATS[check_output(path, overwrite=overwrite, forbid=forbid).suffix.lower()]
    if format == "JPEG" and image.mode in ("LA", "RGBA"):
        raise OutputError(f"{path}: a JPEG cannot hold this image's transparency; use .png, .webp or .tiff")
    with replacing(path) as file:
        try:
            image.save(file, format, **_save_options(image, format))
        except (OSError, ValueError, struct.error) as error:
            raise OutputError(
                f"{path} could not be written ({error}); choose another place or format"
            ) from error
    return Path(path)


def save_animation(frames: Sequence[Image.Image], path: str | Path, seconds: float = 0.1) -> Path:
    """Writes pictures of one size as a GIF that repeats, each shown for `seconds`; all or nothing.

    Raises:
        OutputError: for another suffix than .gif, as `check_output` does, and where writing fails.
        ImageError: where there are no pictures, or their sizes differ.
    """
    if Path(path).suffix.lower() != ".gif":
        raise OutputError(f"an animation is written as .gif, not as {path}")
    writable(path)
    if not frames or len({frame.size for frame in frames}) > 1:
        raise ImageError(f"expected pictures of one size, got {[frame.size for frame in frames]}")
    # One palette for all, of a strip of them: separate ones make still places flicker
    whole = strip([frame.convert("RGB") for frame in frames])
    palette = whole.quantize(256, Image.Quantize.MEDIANCUT)
    pictures = [frame.convert("RGB").quantize(palette=palette) for frame in frames]
    with replacing(path) as file:
        pictures[0].save(
            file,
            "GIF",
            save_all=True,
            append_images=pictures[1:],
            duration=round(1000 * seconds),
            loop=0,
            disposal=1,
        )
    return Path(path)


def _save_options(image: Image.Image, format: str) -> dict[str, Any]:
    """Pillow's arguments that carry `image.info` into a file of `format`."""
    info = image.info
    options = {key: info[key] for key in ("icc_profile", "exif", "dpi") if info.get(key)}
    if format == "JPEG":
        options |= {"quality": 95, "subsampling": "4:4:4"}
        options |= {key: info[key] for key in ("xmp", "comment") if info.get(key)}
    elif format == "WEBP":
        # exact: keep the colour under full transparency too
        options |= {"lossless": True, "exact": True} | ({"xmp": info["xmp"]} if info.get("xmp") else {})
    elif format == "TIFF":
        # uncompressed: Pillow's compressing writer cannot hold the nested tables of EXIF and GPS
        options["tiffinfo"] = _tiff_tags(options.pop("exif", None), info.get("xmp"))
    elif format == "PNG":
        options["pnginfo"] = _png_chunks(info)
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


def _png_chunks(info: dict[str, Any]) -> PngInfo:
    """Text, and the colour description without a profile, which Pillow reads but does not write."""
    chunks = PngInfo()
    if "gamma" in info:
        chunks.add(b"gAMA", struct.pack(">I", round(info["gamma"] * 100_000)))
    if "chromaticity" in info:
        chunks.add(b"cHRM", struct.pack(">8I", *(round(value * 100_000) for value in info["chromaticity"])))
    if "srgb" in info:
        chunks.add(b"sRGB", bytes([info["srgb"]]))
    for key, value in info.items():
        if isinstance(value, str) and 0 < len(key) < 80:
            chunks.add_text(key, value)
    if info.get("xmp") and "XML:com.adobe.xmp" not in info:
        chunks.add_itxt("XML:com.adobe.xmp", info["xmp"].decode("utf-8", "replace"))
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
