"""Opening, keeping and writing photographs, on real files of every kind."""

import io
import os
import re
import stat
import struct
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageCms, PngImagePlugin
from skimage import data

from magicedit.errors import ImageError, MissingDependencyError, OutputError
from magicedit.imaging import (
    MAX_PIXELS,
    MIN_SIDE,
    PHOTO_SUFFIXES,
    Photo,
    before_after,
    check_output,
    open_photo,
    photo_to_image,
    save_image,
    strip,
    to_pixels,
    to_tensor,
    writable,
)
from magicedit.provenance import Mark

ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
TURN_RIGHT = 6  # EXIF: rotate by 90 degrees clockwise to show


def _picture(mode: str, size: tuple[int, int] = (40, 24)) -> Image.Image:
    """Noise with its own values in every channel, alpha included."""
    width, height = size
    channels = len(Image.new(mode, (1, 1)).getbands())
    values = np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.frombytes(mode, size, values.tobytes())


def _exif(orientation: int | None = None) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Artist] = "A. Photographer"
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = "2020:02:02 20:20:20"
    exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] = "N"
    if orientation is not None:
        exif[ExifTags.Base.Orientation] = orientation
    return exif.tobytes()


def _kept_exif(exif: bytes) -> tuple:
    """What `_exif` wrote, read back, and the orientation."""
    read = Image.Exif()
    read.load(exif)
    return (
        read[ExifTags.Base.Artist],
        read.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal],
        read.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef],
        read.get(ExifTags.Base.Orientation, 1),
    )


EXIF_WITHOUT_TURN = ("A. Photographer", "2020:02:02 20:20:20", "N", 1)


def test_opened_pixels_are_read_only_and_their_digest_is_theirs():
    pixels = np.asarray(_picture("RGB"))
    photo, again = open_photo(pixels), open_photo(pixels)
    with pytest.raises(ValueError, match="read-only"):
        photo.pixels[0, 0] = 1
    assert photo.digest() == again.digest() == Photo(pixels).digest()
    turned = Photo(pixels.reshape(pixels.shape[1], pixels.shape[0], 3))
    assert turned.digest() != photo.digest()  # the same bytes in another shape
    writable = Photo(pixels.copy())
    first = writable.digest()
    writable.pixels[0, 0] ^= 1
    assert writable.digest() != first


def test_png_of_a_photograph_is_about_as_small_as_by_the_default_of_zlib(tmp_path):
    image = Image.fromarray(data.astronaut())
    image.save(tmp_path / "default.png")
    save_image(image, tmp_path / "ours.png")
    assert (tmp_path / "ours.png").stat().st_size < 1.1 * (tmp_path / "default.png").stat().st_size


# Modes that come back as they came


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
@pytest.mark.parametrize("suffix", [".png", ".tiff", ".webp"])
def test_an_unchanged_photograph_returns_to_the_byte(tmp_path, mode, suffix):
    original = _picture(mode)
    options = {"lossless": True, "exact": True} if suffix == ".webp" else {}
    original.save(tmp_path / f"in{suffix}", **options)
    with Image.open(tmp_path / f"in{suffix}") as file:
        stored = file.copy()  # WebP knows no grey: what is in the file counts
    photo = open_photo(tmp_path / f"in{suffix}")
    assert photo.mode == stored.mode
    assert photo.pixels.shape == (24, 40, 3)
    image = photo_to_image(photo, photo.pixels)
    assert image.mode == stored.mode
    assert image.tobytes() == stored.tobytes()

    save_image(image, tmp_path / f"out{suffix}")
    with Image.open(tmp_path / f"out{suffix}") as written:
        assert written.mode == stored.mode
        assert written.tobytes() == stored.tobytes()


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_only_the_edited_pixels_change(mode):
    original = _picture(mode)
    photo = open_photo(original)
    pixels = photo.pixels.copy()
    pixels[5, 7] = 255 - pixels[5, 7]
    edited = np.asarray(photo_to_image(photo, pixels))
    changed = np.argwhere((edited != np.asarray(original)).reshape(24, 40, -1).any(-1))
    assert changed.tolist() == [[5, 7]]
    if photo.alpha is not None:
        np.testing.assert_array_equal(edited[..., -1], np.asarray(original)[..., -1])


def test_every_grey_value_survives_the_way_through_rgb():
    ramp = Image.fromarray(np.tile(np.arange(256, dtype=np.uint8), (16, 1)))
    photo = open_photo(ramp)
    assert photo_to_image(photo, photo.pixels).tobytes() == ramp.tobytes()


@pytest.mark.parametrize("shape", [(24, 40), (24, 40, 2), (24, 40, 3), (24, 40, 4)])
def test_arrays_are_photographs_too(shape):
    pixels = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    photo = open_photo(pixels)
    assert photo.size == (40, 24)
    np.testing.assert_array_equal(np.asarray(photo_to_image(photo, photo.pixels)), pixels)


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((24, 40, 3), np.float32),
        np.zeros((24, 40, 3), np.uint16),
        np.zeros((3, 24, 40), np.uint8),
        np.zeros((1, 24, 40, 3), np.uint8),
        np.zeros(24, np.uint8),
    ],
)
def test_other_arrays_are_refused(wrong):
    with pytest.raises(ImageError, match=r"expected a uint8 array \(height, width, 3\)"):
        open_photo(wrong)


def test_an_opened_photo_and_its_source(tmp_path):
    _picture("RGB").save(tmp_path / "a.png")
    photo = open_photo(str(tmp_path / "a.png"))
    assert open_photo(photo) is photo
    assert photo.source == tmp_path / "a.png"
    with Image.open(tmp_path / "a.png") as image:
        assert open_photo(image).source == tmp_path / "a.png"
    assert open_photo(_picture("RGB")).source is None


def test_the_callers_image_is_left_as_it_was(tmp_path):
    _picture("RGB").save(tmp_path / "a.jpg", exif=_exif(TURN_RIGHT))
    with Image.open(tmp_path / "a.jpg") as image:
        open_photo(image)
        assert image.size == (40, 24)
        assert image.getexif()[ExifTags.Base.Orientation] == TURN_RIGHT


# Orientation and metadata


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tiff"])
def test_a_turned_photograph_is_upright_and_keeps_profile_and_metadata(tmp_path, suffix):
    stored = _picture("RGB")
    options = {"lossless": True} if suffix == ".webp" else {}
    stored.save(tmp_path / f"in{suffix}", exif=_exif(TURN_RIGHT), icc_profile=ICC, **options)
    photo = open_photo(tmp_path / f"in{suffix}")
    assert photo.size == (24, 40)
    if suffix != ".jpg":
        np.testing.assert_array_equal(photo.pixels, np.rot90(np.asarray(stored), k=-1))
    assert photo.icc_profile == ICC
    assert _kept_exif(photo.exif) == EXIF_WITHOUT_TURN

    save_image(photo_to_image(photo, photo.pixels), tmp_path / f"out{suffix}")
    again = open_photo(tmp_path / f"out{suffix}")
    assert again.size == (24, 40)
    assert again.icc_profile == ICC
    assert _kept_exif(again.exif) == EXIF_WITHOUT_TURN
    if suffix != ".jpg":
        np.testing.assert_array_equal(again.pixels, photo.pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_all_orientations(tmp_path, orientation):
    """Every turn and mirror image, as the EXIF standard defines them by where row and column 0 are."""
    upright = np.asarray(_picture("RGB"))
    # how a camera would have stored the upright picture under each orientation
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, k=1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, k=-1),
    }[orientation]
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "a.png", exif=_exif(orientation))
    np.testing.assert_array_equal(open_photo(tmp_path / "a.png").pixels, upright)


def test_exif_that_needs_no_change_keeps_its_bytes(tmp_path):
    exif = _exif(1)
    _picture("RGB").save(tmp_path / "a.jpg", exif=exif)
    assert open_photo(tmp_path / "a.jpg").exif == exif


def test_orientation_told_by_xmp_is_applied_and_not_kept(tmp_path):
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><d tiff:Orientation="6" note="kept"/></x:xmpmeta>'
    _picture("RGB").save(tmp_path / "a.jpg", xmp=xmp)
    photo = open_photo(tmp_path / "a.jpg")
    assert photo.size == (24, 40)
    save_image(photo_to_image(photo, photo.pixels), tmp_path / "b.jpg")
    again = open_photo(tmp_path / "b.jpg")
    assert again.size == (24, 40)
    assert b'note="kept"' in again.info["xmp"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "utf-8"])
@pytest.mark.parametrize(
    "said",
    [
        ' tiff:Orientation="6">',
        " tiff:Orientation = '&#54;'>",
        "><tiff:Orientation> 8 </tiff:Orientation>",
        "><tiff:Orientation><![CDATA[6]]></tiff:Orientation>",
    ],
)
def test_no_orientation_in_xmp_turns_an_output(tmp_path, encoding, said):
    xmp = (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description rdf:about="" xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Make="kept"{said}'
        "</rdf:Description></rdf:RDF></x:xmpmeta>"
    )
    _picture("RGB").save(tmp_path / "a.jpg", xmp=xmp.encode(encoding))
    photo = open_photo(tmp_path / "a.jpg")
    for mark in (None, Mark({})):
        image = photo_to_image(photo, 255 - photo.pixels, mark)
        again = open_photo(save_image(image, tmp_path / "b.jpg"))
        assert again.size == photo.size
        assert b"Orientation" not in again.info["xmp"]
        assert b'tiff:Make="kept"' in again.info["xmp"]


def test_resolution_and_text_are_kept(tmp_path):
    text = PngImagePlugin.PngInfo()
    text.add_text("Author", "A. Photographer")
    text.add_itxt("Title", "Größe", lang="de")
    _picture("RGBA").save(tmp_path / "a.png", dpi=(300, 300), pnginfo=text)
    photo = open_photo(tmp_path / "a.png")
    save_image(photo_to_image(photo, photo.pixels), tmp_path / "b.png")
    with Image.open(tmp_path / "b.png") as written:
        written.load()
        assert written.text == {"Author": "A. Photographer", "Title": "Größe"}
        assert written.info["dpi"] == pytest.approx((300, 300), abs=0.02)  # PNG counts in pixels a metre


def test_the_colours_of_a_png_without_profile_are_kept(tmp_path):
    """gAMA and cHRM say what the numbers mean where there is no ICC profile."""
    chunks = PngImagePlugin.PngInfo()
    chunks.add(b"gAMA", (45455).to_bytes(4, "big"))
    chromaticity = (31270, 32900, 64000, 33000, 21000, 71000, 15000, 6000)  # Adobe RGB
    chunks.add(b"cHRM", b"".join(value.to_bytes(4, "big") for value in chromaticity))
    _picture("RGB").save(tmp_path / "a.png", pnginfo=chunks)
    photo = open_photo(tmp_path / "a.png")
    save_image(photo_to_image(photo, photo.pixels), tmp_path / "b.png")
    with Image.open(tmp_path / "a.png") as before, Image.open(tmp_path / "b.png") as after:
        assert after.info["gamma"] == before.info["gamma"] == 0.45455
        assert after.info["chromaticity"] == before.info["chromaticity"]


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tiff"])
def test_xmp_is_kept(tmp_path, suffix):
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/">kept</x:xmpmeta>'
    _picture("RGB").save(tmp_path / "a.jpg", xmp=xmp)
    photo = open_photo(tmp_path / "a.jpg")
    save_image(photo_to_image(photo, photo.pixels), tmp_path / f"b{suffix}")
    assert open_photo(tmp_path / f"b{suffix}").info["xmp"] == xmp


def test_metadata_crosses_formats(tmp_path):
    _picture("RGB").save(tmp_path / "a.tiff", exif=_exif(TURN_RIGHT), icc_profile=ICC, dpi=(300, 300))
    photo = open_photo(tmp_path / "a.tiff")
    save_image(photo_to_image(photo, photo.pixels), tmp_path / "b.jpg")
    again = open_photo(tmp_path / "b.jpg")
    assert (again.icc_profile, _kept_exif(again.exif)) == (ICC, EXIF_WITHOUT_TURN)
    assert again.info["dpi"] == (300, 300)
    # what described the TIFF's own storage has no place in a JPEG
    read = Image.Exif()
    read.load(again.exif)
    assert set(read) == {ExifTags.Base.Artist, ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo}


def test_a_tiff_holds_exif_and_xmp_and_its_own_size(tmp_path):
    """EXIF of some cameras repeats the size of the picture as it lay in the JPEG: not true of the TIFF."""
    exif = Image.Exif()
    exif.load(_exif(TURN_RIGHT))
    exif[ExifTags.Base.ImageWidth], exif[ExifTags.Base.ImageLength] = 400, 240
    _picture("RGB").save(tmp_path / "a.jpg", exif=exif.tobytes(), xmp=b"<x/>")
    photo = open_photo(tmp_path / "a.jpg")
    save_image(photo_to_image(photo, photo.pixels), tmp_path / "b.tiff")
    again = open_photo(tmp_path / "b.tiff")
    np.testing.assert_array_equal(again.pixels, photo.pixels)
    assert (again.info["xmp"], _kept_exif(again.exif)) == (b"<x/>", EXIF_WITHOUT_TURN)


def test_damaged_exif_is_named_with_a_remedy(tmp_path):
    _picture("RGB").save(tmp_path / "a.png", exif=b"Exif\x00\x00not a TIFF header")
    with pytest.raises(ImageError, match=r"damaged EXIF metadata.*exiftool"):
        open_photo(tmp_path / "a.png")


# What is refused, and with which remedy


@pytest.mark.parametrize(
    ("mode", "suffix", "remedy"),
    [
        ("1", ".png", 'convert("L")'),
        ("P", ".png", 'convert("RGB")'),
        ("P", ".gif", 'convert("RGB")'),
        ("PA", None, 'convert("RGBA")'),
        ("CMYK", ".jpg", "ImageCms"),
        ("CMYK", ".tiff", "ImageCms"),
        ("YCbCr", None, 'convert("RGB")'),
        ("HSV", None, 'convert("RGB")'),
        ("LAB", ".tiff", "ImageCms"),
        ("RGBX", None, 'convert("RGB")'),
        ("RGBa", None, 'convert("RGBA")'),
        ("La", None, 'convert("LA")'),
        ("I;16", ".png", "-depth 8"),
        ("I;16", ".tiff", "-depth 8"),
        ("I", ".tiff", "-depth 8"),
        ("F", ".tiff", "-depth 8"),
    ],
)
def test_modes_that_could_not_come_back_name_the_conversion(tmp_path, mode, suffix, remedy):
    source = Image.new(mode, (40, 24))
    if suffix:
        source.save(tmp_path / f"a{suffix}")
        source = tmp_path / f"a{suffix}"
        with Image.open(source) as file:
            assert file.mode == mode
    with pytest.raises(ImageError, match=re.escape(remedy)):
        open_photo(source)


@pytest.mark.parametrize("colour_type", [2, 4, 6], ids=["RGB", "LA", "RGBA"])
def test_16_bit_colour_png_is_refused_though_pillow_would_halve_it(tmp_path, colour_type):
    import zlib

    samples = {2: 3, 4: 2, 6: 4}[colour_type]
    with open(tmp_path / "a.png", "wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        rows = b"".join(b"\0" + bytes(range(2 * samples)) * 20 for _ in range(20))
        PngImagePlugin.putchunk(file, b"IHDR", struct.pack(">IIBBBBB", 20, 20, 16, colour_type, 0, 0, 0))
        PngImagePlugin.putchunk(file, b"IDAT", zlib.compress(rows))
        PngImagePlugin.putchunk(file, b"IEND", b"")
    with pytest.raises(ImageError, match=r"more than 8 bits a channel.*-depth 8"):
        open_photo(tmp_path / "a.png")


def test_16_bit_colour_tiff_and_ppm_are_refused(tmp_path):
    import tifffile

    pixels = np.full((24, 40, 3), 1000, np.uint16)
    tifffile.imwrite(tmp_path / "a.tiff", pixels, photometric="rgb")
    (tmp_path / "a.ppm").write_bytes(b"P6 40 24 65535\n" + pixels.astype(">u2").tobytes())
    for name in ("a.tiff", "a.ppm"):
        with pytest.raises(ImageError, match="more than 8 bits a channel"):
            open_photo(tmp_path / name)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_colour_that_stands_for_transparency_is_refused(tmp_path, mode):
    key = 0 if mode == "L" else (0, 0, 0)
    _picture(mode).save(tmp_path / "a.png", transparency=key)
    with pytest.raises(ImageError, match=r"means transparency.*RGBA"):
        open_photo(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png", ".tiff"])
def test_animations_and_pages_are_refused(tmp_path, suffix):
    frames = [_picture("RGB"), _picture("RGB").transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    frames[0].save(tmp_path / f"a{suffix}", save_all=True, append_images=frames[1:])
    with pytest.raises(ImageError, match="animated or has several pages"):
        open_photo(tmp_path / f"a{suffix}")


def test_a_phones_multi_picture_jpeg_is_its_first_picture(tmp_path):
    first, preview = _picture("RGB"), _picture("RGB", (20, 16))
    first.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[preview], quality=95)
    photo = open_photo(tmp_path / "a.jpg")
    assert photo.size == (40, 24)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tiff"])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.97])
def test_truncated_files_are_refused(tmp_path, suffix, part):
    _picture("RGB", (200, 200)).save(tmp_path / f"whole{suffix}")
    data = (tmp_path / f"whole{suffix}").read_bytes()
    (tmp_path / f"a{suffix}").write_bytes(data[: int(len(data) * part)])
    with pytest.raises(ImageError, match=r"damaged or incomplete|not an image"):
        open_photo(tmp_path / f"a{suffix}")


def test_no_file_no_image(tmp_path):
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("This is no photograph.\n" * 100)
    for name, message in [
        ("missing.jpg", "does not exist"),
        ("", "it is not a file"),
        ("empty.jpg", "is empty"),
        ("text.jpg", "not an image"),
    ]:
        with pytest.raises(ImageError, match=message):
            open_photo(tmp_path / name)
    with pytest.raises(ImageError, match="expected a path"):
        open_photo(b"bytes")


@pytest.mark.parametrize("size", [(1, 1), (MIN_SIDE - 1, 400), (400, MIN_SIDE - 1)])
def test_too_small(tmp_path, size):
    _picture("RGB", size).save(tmp_path / "a.png")
    with pytest.raises(ImageError, match=f"measures {size[0]} x {size[1]} px.*at least {MIN_SIDE} px"):
        open_photo(tmp_path / "a.png")
    assert open_photo(_picture("RGB", (MIN_SIDE, MIN_SIDE))).size == (MIN_SIDE, MIN_SIDE)
    with pytest.raises(ImageError, match="at least"):
        open_photo(np.zeros((0, 40, 3), np.uint8))


def test_the_pixel_limit(tmp_path):
    _picture("RGB").save(tmp_path / "a.png")
    assert open_photo(tmp_path / "a.png", max_pixels=40 * 24).size == (40, 24)
    for source in (tmp_path / "a.png", _picture("RGB"), open_photo(_picture("RGB"))):
        with pytest.raises(ImageError, match="more than the limit of 959 pixels"):
            open_photo(source, max_pixels=40 * 24 - 1)


@pytest.mark.filterwarnings("error")  # Pillow's own warning would reach the user beside ours
@pytest.mark.parametrize("side", [11_001, 30_000])
def test_a_bomb_is_refused_before_it_is_decoded(tmp_path, side):
    """A header that promises gigabytes, with nothing behind it: decoding would say `truncated`."""
    with open(tmp_path / "bomb.png", "wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        PngImagePlugin.putchunk(file, b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
        PngImagePlugin.putchunk(file, b"IDAT", b"")
    with pytest.raises(ImageError, match=r"more than the limit|too large"):
        open_photo(tmp_path / "bomb.png")


# Writing


def test_links_are_written_where_they_point_to_a_file_of_their_format(tmp_path):
    black = Image.new("RGB", (40, 24))
    for target, name in (("a.JPEG", "a.jpg"), ("b.jpg", "b.png"), ("c.dat", "c.png"), ("d.yaml", "d.csv")):
        (tmp_path / name).symlink_to(target)
    (tmp_path / "device.png").symlink_to(os.devnull)
    save_image(black, tmp_path / "a.jpg")
    with Image.open(tmp_path / "a.JPEG") as written:
        assert written.format == "JPEG"
    for name in ("b.png", "c.png", "d.csv"):
        with pytest.raises(OutputError, match=rf"{name} is a link to .*, which has the suffix of another f"):
            writable(tmp_path / name)
    with pytest.raises(OutputError, match=r"b\.png is a link"):
        save_image(black, tmp_path / "b.png")
    assert not (tmp_path / "b.jpg").exists()
    (tmp_path / "loop.png").symlink_to("loop.png")
    with pytest.raises(OutputError, match=r"loop\.png cannot be written to"):
        writable(tmp_path / "loop.png")
    for name in (tmp_path / "device.png", os.devnull):
        with pytest.raises(OutputError, match="is no regular file"):
            writable(name)


def test_nothing_is_written_over_the_input_unless_told(tmp_path):
    source = tmp_path / "a.png"
    _picture("RGB").save(source)
    before = source.read_bytes()
    (tmp_path / "link.png").symlink_to(source)
    (tmp_path / "same.png").hardlink_to(source)
    black = Image.new("RGB", (40, 24))
    for name in ("a.png", "link.png", "same.png", "../" + tmp_path.name + "/a.png"):
        with pytest.raises(OutputError, match="is the input"):
            save_image(black, tmp_path / name, forbid=source)
    assert source.read_bytes() == before

    save_image(black, tmp_path / "link.png", forbid=source, overwrite=True)
    assert (tmp_path / "link.png").is_symlink()
    assert open_photo(source).pixels.max() == 0


def test_an_earlier_output_is_replaced(tmp_path):
    Image.new("RGB", (40, 24), "white").save(tmp_path / "out.png")
    assert save_image(_picture("RGB"), tmp_path / "out.png") == tmp_path / "out.png"
    assert open_photo(tmp_path / "out.png").pixels.tobytes() == _picture("RGB").tobytes()


def test_unwritable_outputs(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder.png").mkdir()
    for name, message in [
        ("missing/out.png", "does not exist; create it"),
        ("file/out.png", r"does not exist; create it|cannot be written to"),
        ("folder.png", "is a folder"),
        ("out", "use one of .png, .jpg"),
        ("out.gif", "use one of .png, .jpg"),
    ]:
        with pytest.raises(OutputError, match=message):
            check_output(tmp_path / name)
        with pytest.raises(OutputError, match=message):
            save_image(_picture("RGB"), tmp_path / name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(OutputError, match="may not be written to"):
        save_image(_picture("RGB"), tmp_path / "locked" / "out.png")


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    """EXIF too long for a JPEG fails in the middle of the work, after the file was opened."""
    (tmp_path / "out.jpg").write_bytes(b"old")
    image = _picture("RGB")
    image.info["exif"] = b"Exif\x00\x00" + bytes(70_000)
    with pytest.raises(OutputError, match="EXIF data is too long"):
        save_image(image, tmp_path / "out.jpg")
    assert [path.name for path in tmp_path.iterdir()] == ["out.jpg"]
    assert (tmp_path / "out.jpg").read_bytes() == b"old"


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_what_a_format_cannot_hold_is_told_before_the_work(tmp_path, suffix):
    plain = open_photo(_picture("RGB"))
    long = open_photo(np.zeros((16, 70_000, 3), np.uint8))
    assert check_output(tmp_path / f"a{suffix}", photo=plain)
    with pytest.raises(OutputError, match="px a side"):
        check_output(tmp_path / f"a{suffix}", photo=long)
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    xmp += b"<rdf:Description a='" + bytes(b"x" * 70_000) + b"'/></rdf:RDF></x:xmpmeta>"
    large = {"comment": bytes(70_000)}, {"xmp": xmp}
    cases = [replace(plain, info=info) for info in large] + [replace(plain, exif=bytes(70_000))]
    for photo in (*cases, open_photo(_picture("RGBA"))):
        assert check_output(tmp_path / "a.png", photo=photo)
        if suffix == ".jpg":
            with pytest.raises(OutputError, match=r"too long|too large|transparency"):
                check_output(tmp_path / "a.jpg", photo=photo)


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_transparency_does_not_vanish_into_a_jpeg(tmp_path, mode):
    with pytest.raises(OutputError, match="transparency"):
        save_image(_picture(mode), tmp_path / "out.jpg")
    assert list(tmp_path.iterdir()) == []


def test_jpeg_keeps_full_colour_resolution(tmp_path, astronaut):
    save_image(Image.fromarray(astronaut), tmp_path / "out.JPG")
    with Image.open(tmp_path / "out.JPG") as written:
        assert written.format == "JPEG"
        assert {(horizontal, vertical) for _, horizontal, vertical, _ in written.layer} == {(1, 1)}
        error = np.abs(np.asarray(written).astype(int) - astronaut)
    assert error.mean() < 1.75  # 1.55; with 4:2:0, or at quality 90, it would be 1.95


def test_the_output_has_the_permissions_of_any_new_file(tmp_path):
    (tmp_path / "plain").touch()
    save_image(_picture("RGB"), tmp_path / "out.png")
    modes = {stat.S_IMODE(os.stat(tmp_path / name).st_mode) for name in ("plain", "out.png")}
    assert len(modes) == 1


# Tensors and sheets


def test_tensors_carry_all_values_exactly():
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    pixels[..., 1] = 255 - pixels[..., 1]
    tensor = to_tensor(pixels)
    assert (tensor.dtype, tuple(tensor.shape)) == (torch.float32, (3, 16, 16))
    assert (tensor.min().item(), tensor.max().item()) == (-1.0, 1.0)
    assert tensor[0, 0, 1].item() == pytest.approx(1 / 127.5 - 1)
    np.testing.assert_array_equal(to_pixels(tensor), pixels)


def test_predictions_beyond_the_range_are_the_nearest_colour():
    tensor = torch.tensor([-1.5, 0.0, 1.5]).reshape(3, 1, 1).expand(3, 16, 16)
    assert to_pixels(tensor)[0, 0].tolist() == [0, 128, 255]
    assert to_pixels(tensor.half())[0, 0].tolist() == [0, 128, 255]


def test_wrong_shapes_are_named():
    with pytest.raises(ImageError, match="uint8"):
        to_tensor(np.zeros((16, 16, 3), np.float32))
    with pytest.raises(ImageError, match=r"\(16, 16, 3\)"):
        to_pixels(torch.zeros(16, 16, 3))
    photo = open_photo(_picture("RGB"))
    with pytest.raises(ImageError, match="expected edited pixels"):
        photo_to_image(photo, photo.pixels[:-1])


def test_sheets(astronaut):
    picture = Image.fromarray(astronaut)
    mirrored = Image.fromarray(np.ascontiguousarray(astronaut[:, ::-1]))
    pair = np.asarray(before_after(picture, mirrored))
    np.testing.assert_array_equal(pair[:, :512], astronaut)
    np.testing.assert_array_equal(pair[:, -512:], astronaut[:, ::-1])

    row = np.asarray(strip([picture, mirrored, picture], ["-3", "0", "+3"]))
    assert row.shape[0] > 512
    np.testing.assert_array_equal(row[:512, :512], astronaut)
    gap = (row.shape[1] - 3 * 512) // 2
    for index in range(3):  # a caption, black on white, under the middle of each picture
        caption = row[512:, index * (512 + gap) :][:, :512]
        columns = np.flatnonzero((caption < 128).any(axis=(0, 2)))
        assert 0 < len(columns) < 100
        assert abs(columns.mean() - 256) < 10

    shown = np.asarray(strip([Image.new("RGBA", (32, 32), (255, 0, 0, 0))]))
    assert (shown == 255).all()  # transparent is white


def test_sheets_need_pictures_that_fit():
    one, other = _picture("RGB"), _picture("RGB", (24, 24))
    for wrong in ([], [one, other]):
        with pytest.raises(ImageError, match="pictures of one size"):
            strip(wrong)
    with pytest.raises(ImageError, match="expected 1 labels"):
        strip([one], ["a", "b"])


# What costs a decoder minutes or all memory, and what edits must not leave behind


def _segment(marker: int, content: bytes) -> bytes:
    return bytes((0xFF, marker)) + (len(content) + 2).to_bytes(2, "big") + content


def _jpeg(**options) -> bytes:
    file = io.BytesIO()
    _picture("RGB", (64, 64)).save(file, "JPEG", **options)
    return file.getvalue()


def _with_scans(scans: int) -> bytes:
    """A progressive JPEG whose last scan is repeated."""
    jpeg = _jpeg(progressive=True)
    last = jpeg.rindex(b"\xff\xda")
    return jpeg[:last] + jpeg[last:-2] * scans + b"\xff\xd9"


def _tiff(*entries: tuple[int, int, int, int], more: bytes = b"", next: int = 0) -> bytes:
    """The start of a TIFF with one directory of entries (tag, type, count, value)."""
    packed = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + packed + struct.pack("<I", next) + more


def _png(*chunks: tuple[bytes, bytes]) -> bytes:
    file = io.BytesIO()
    _picture("RGB").save(file, "PNG")
    whole, added = file.getvalue(), io.BytesIO()
    for kind, content in chunks:
        PngImagePlugin.putchunk(added, kind, content)
    return whole[:33] + added.getvalue() + whole[33:]


COSTLY = {
    "jpeg of scans": (lambda: _with_scans(3000), "more than 100 scans"),
    "jpeg of segments": (
        lambda: _jpeg()[:2] + _segment(0xFE, b"") * 20_000 + _jpeg()[2:],
        "10,000 segments",
    ),
    "jpeg of filling": (
        lambda: _jpeg()[:2] + b"\xff" * 3_000_000 + _jpeg()[2:],
        "100,000 bytes between its segments",
    ),
    "jpeg of exif": (
        lambda: _jpeg()[:2] + _segment(0xE1, b"Exif\0\0" + bytes(65_000)) * 300 + _jpeg()[2:],
        "16,777,216 bytes of EXIF",
    ),
    "png of chunks": (lambda: _png()[:33] + b"\0\0\0\0IDAT5\xaf\x06\x1e" * 300_000, "200,000 chunks"),
    "gif of comments": (
        lambda: b"GIF89a\x20\0\x20\0\0\0\0" + b"!\xfe" + b"\x01x" * 100_000 + b"\0;",
        "4,000 of comments",
    ),
    "gif of junk": (lambda: b"GIF89a\x20\0\x20\0\0\0\0" + b"x" * 2_000_000, "300,000 blocks"),
    "tiff of values": (
        lambda: _tiff(*((tag, 7, 2**20, 0) for tag in range(1000, 1100)), more=bytes(2**20)),
        "67,108,864 bytes",
    ),
    "tiff of numbers": (lambda: _tiff((273, 3, 10**7, 0)), "2,000,000 numbers"),
    "tiff of one tile": (lambda: _tiff((322, 4, 1, 10**5), (323, 4, 1, 10**5)), "tiles of 10,000,000,000"),
    "ppm of a comment": (lambda: b"P6 #" + b"x" * 10**6 + b"\n40 24 255\n", "no sizes in its first 4096"),
    "ppm of words": (lambda: b"P3 2000 2000 255\n" + b"1 " * 10**6, "minutes to decode"),
    "exif of values": (
        lambda: _png((b"eXIf", _tiff(*((tag, 7, 2**19, 0) for tag in range(9000, 9100)), more=bytes(2**19)))),
        "damaged EXIF metadata .*16,777,216 bytes",
    ),
    "metadata of one piece": (
        lambda: _png((b"eXIf", b"II*\0\x08\0\0\0\0\0\0\0\0\0" + bytes(2**24))),
        "bytes of metadata in one piece",
    ),
}


@pytest.mark.parametrize("name", COSTLY)
def test_files_made_to_cost_much_are_refused_by_their_structure(tmp_path, name):
    made, reason = COSTLY[name]
    (tmp_path / "bomb").write_bytes(made())
    begin = time.process_time()
    with pytest.raises(ImageError, match=reason):
        open_photo(tmp_path / "bomb")
    assert time.process_time() - begin < 2  # decoding takes longer than this, or never ends


def test_jpegs_of_usual_encoders_have_few_enough_scans(tmp_path):
    for scans in (1, 80):
        (tmp_path / "a.jpg").write_bytes(_with_scans(scans))
        assert open_photo(tmp_path / "a.jpg").size == (64, 64)


def test_markers_in_metadata_are_no_scans(tmp_path):
    jpeg = _jpeg()
    (tmp_path / "a.jpg").write_bytes(
        jpeg[:2] + _segment(0xED, b"\xff\xda\0\2" * 500) + jpeg[2:] + b"\xff\xda" * 500
    )
    assert open_photo(tmp_path / "a.jpg").size == (64, 64)


def test_opening_holds_the_pixels_less_than_three_times(tmp_path):
    """Pillow holds 4 bytes a pixel, the array 3; the peak was 26 bytes a pixel."""
    Image.new("RGB", (4000, 3000), (120, 130, 140)).save(tmp_path / "a.png", exif=_exif(TURN_RIGHT))
    script = """
import resource, sys
from magicedit.imaging import open_photo
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert open_photo(sys.argv[1]).size == (3000, 4000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    run = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "a.png"], capture_output=True, text=True, check=True
    )
    assert int(run.stdout) * 1024 < 9 * 12_000_000 + 30_000_000


def test_the_pixel_limit_is_a_setting_of_the_environment(tmp_path, monkeypatch):
    _picture("RGB").save(tmp_path / "a.png")
    monkeypatch.setenv("MAGICEDIT_MAX_PIXELS", "959")
    with pytest.raises(ImageError, match=r"limit of 959 pixels.* set MAGICEDIT_MAX_PIXELS=960"):
        open_photo(tmp_path / "a.png")
    monkeypatch.setenv("MAGICEDIT_MAX_PIXELS", "960")
    assert open_photo(tmp_path / "a.png").size == (40, 24)
    for wrong in ("many", "-5", "1e9", "9" * 5000, "²"):
        monkeypatch.setenv("MAGICEDIT_MAX_PIXELS", wrong)
        with pytest.raises(ImageError, match="must be a number of pixels"):
            open_photo(tmp_path / "a.png")


def test_a_limit_above_pillows_own_is_heeded(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    _picture("RGB").save(tmp_path / "a.png")
    assert open_photo(tmp_path / "a.png", max_pixels=960).size == (40, 24)


def test_a_phones_108_megapixels_are_within_the_limit():
    assert 12_032 * 9_024 <= MAX_PIXELS


@pytest.mark.parametrize("name", ["a" * 300 + ".jpg", "a\0.jpg", "pipe", "\udcff.jpg", "/dev/zero"])
def test_names_that_no_photograph_has(tmp_path, name):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ImageError) as told:
        open_photo(os.path.join(tmp_path, name))
    assert str(told.value).encode()  # no half characters


# Old faces and announcements


def _with_thumbnail(order: str = "<", orientation: int = 1, maker: bytes = b"") -> tuple[bytes, bytes]:
    """EXIF with a JPEG thumbnail in a second directory, and the thumbnail."""
    file = io.BytesIO()
    _picture("RGB", (32, 16)).save(file, "JPEG")
    old = file.getvalue()
    maker_at, head = 14 + 24 + 6, {"<": b"II*\0\x08\0\0\0", ">": b"MM\0*\0\0\0\x08"}[order]
    second = maker_at + len(maker)
    thumbnail = second + 2 + 24 + 4
    data = head + struct.pack(
        f"{order}HHHIHHHHIII",
        *(2, 274, 3, 1, orientation, 0),  # one turn
        *(37500, 7, max(5, len(maker)), maker_at),
        second,
    )
    data += bytes(maker_at - len(data)) + maker
    data += struct.pack(f"{order}HHHIIHHIII", 2, 513, 4, 1, thumbnail, 514, 4, 1, len(old), 0)
    return b"Exif\0\0" + data + old, old


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("orientation", [1, TURN_RIGHT])
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_no_thumbnail_of_the_old_face_is_kept(tmp_path, order, orientation, suffix):
    exif, old = _with_thumbnail(order, orientation, maker=b"notes of a maker")
    _picture("RGB").save(tmp_path / f"a{suffix}", exif=exif)
    assert old in (tmp_path / f"a{suffix}").read_bytes()
    photo = open_photo(tmp_path / f"a{suffix}")
    assert photo.size == ((40, 24) if orientation == 1 else (24, 40))
    assert old[:3] not in photo.exif
    assert len(photo.exif) < len(exif) - len(old)
    assert b"notes of a maker" in photo.exif
    read = Image.Exif()
    read.load(photo.exif)
    assert read[ExifTags.Base.Orientation] == 1
    assert not read.get_ifd(ExifTags.IFD.IFD1)


def test_previews_in_makers_notes_are_blanked_in_place(tmp_path):
    _, old = _with_thumbnail()
    exif, _ = _with_thumbnail(maker=b"before" + old + b"behind")
    _picture("RGB").save(tmp_path / "a.jpg", exif=exif)
    kept = open_photo(tmp_path / "a.jpg").exif
    assert b"\xff\xd8\xff" not in kept
    assert kept.index(b"behind") == exif.index(b"behind")


def test_no_thumbnail_in_the_texts_of_a_png_is_kept(tmp_path):
    exif, old = _with_thumbnail(orientation=TURN_RIGHT)
    text = PngImagePlugin.PngInfo()
    for kind in ("exif", "APP1", "8bim"):
        text.add_text(f"Raw profile type {kind}", f"\n{kind}\n{len(exif)}\n{exif.hex()}")
    _picture("RGB").save(tmp_path / "a.png", pnginfo=text)
    photo = open_photo(tmp_path / "a.png")
    assert photo.size == (24, 40)
    save_image(photo_to_image(photo, photo.pixels), tmp_path / "b.png")
    with Image.open(tmp_path / "b.png") as written:
        written.load()
        assert not getattr(written, "text", {})
        assert old[:3] not in written.info.get("exif", b"")


GAIN_MAP = (
    b'<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
    b'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
    b'xmlns:dc="http://purl.org/dc/elements/1.1/" dc:format="image/jpeg" '
    b'xmlns:hdrgm="http://ns.adobe.com/hdr-gain-map/1.0/" hdrgm:Version="1.0" '
    b'xmlns:Container="http://ns.google.com/photos/1.0/container/" '
    b'xmlns:GCamera="http://ns.google.com/photos/1.0/camera/" GCamera:MotionPhoto="1" '
    b'xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmp:Rating="5" '
    b'xmlns:HDRGainMap="http://ns.apple.com/HDRGainMap/1.0/">'
    b"<HDRGainMap:HDRGainMapVersion>65536</HDRGainMap:HDRGainMapVersion>"
    b"<Container:Directory><rdf:Seq><rdf:li/></rdf:Seq></Container:Directory>"
    b"<xmp:Thumbnails><rdf:Alt><rdf:li>/9j/4AAQ</rdf:li></rdf:Alt></xmp:Thumbnails>"
    b'</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
)


def test_what_is_not_kept_is_not_announced(tmp_path):
    _picture("RGB").save(tmp_path / "a.jpg", xmp=GAIN_MAP)
    photo = open_photo(tmp_path / "a.jpg")
    xmp = photo.info["xmp"]
    for gone in (b"hdrgm", b"Container", b"HDRGainMap", b"MotionPhoto", b"Thumbnails", b"/9j/"):
        assert gone not in xmp
    for kept in (b'dc:format="image/jpeg"', b'xmp:Rating="5"', b"<?xpacket begin", b'<?xpacket end="w"?>'):
        assert kept in xmp
    assert set(photo.lost) == {"gain map", "gain map or film", "film", "thumbnail"}


@pytest.mark.parametrize(
    "spoilt", [GAIN_MAP.replace(b"</rdf:RDF>", b""), b'<!DOCTYPE x [<!ENTITY a "b">]>' + GAIN_MAP]
)
def test_announcements_that_cannot_be_read_go_as_a_whole(tmp_path, spoilt):
    _picture("RGB").save(tmp_path / "a.jpg", xmp=spoilt)
    photo = open_photo(tmp_path / "a.jpg")
    assert ("xmp" in photo.info, photo.lost) == (False, ("XMP",))


# What a file cannot say by names alone

NAMES = [
    *("dpi", "gamma", "srgb", "chromaticity", "cicp", "icc_profile", "bit_depth", "xmp", "exif", "comment"),
    *("aux", "depth_images", "interlace", "bbox", "default_image", "transparency", "compression", "quality"),
    *("text", "duration", "nclx_profile", "background"),
]
# Texts by which Pillow itself stumbles
STUMBLING = {"interlace", "bbox", "default_image", "exif"}


@pytest.mark.parametrize("kind", ["tEXt", "zTXt", "iTXt"])
@pytest.mark.parametrize("suffix", [".png", ".tiff", ".jpg", ".webp"])
def test_texts_of_a_png_are_no_fields(tmp_path, kind, suffix):
    text = PngImagePlugin.PngInfo()
    for name in NAMES:
        text.add_itxt(name, "jpeg") if kind == "iTXt" else text.add_text(name, "jpeg", zip=kind == "zTXt")
    _picture("RGB").save(tmp_path / "a.png", pnginfo=text, dpi=(300, 300), exif=_exif(), icc_profile=ICC)
    photo = open_photo(tmp_path / "a.png")
    assert photo.pixels.tobytes() == _picture("RGB").tobytes()
    assert (photo.icc_profile, photo.lost) == (ICC, ())
    assert photo.info.keys() == {"dpi", "text"}
    assert photo.info["text"] == dict.fromkeys(NAMES, "jpeg")
    save_image(photo_to_image(photo, photo.pixels), tmp_path / f"b{suffix}")
    again = open_photo(tmp_path / f"b{suffix}")
    assert (again.icc_profile, _kept_exif(again.exif)) == (ICC, EXIF_WITHOUT_TURN)
    if suffix != ".jpg":
        np.testing.assert_array_equal(again.pixels, photo.pixels)
    if suffix == ".png":
        assert again.info["text"] == photo.info["text"]


def test_texts_of_a_png_that_the_caller_opened_are_no_fields(tmp_path):
    text = PngImagePlugin.PngInfo()
    for name in set(NAMES) - STUMBLING:
        text.add_text(name, "jpeg")
    _picture("RGB").save(tmp_path / "a.png", pnginfo=text, exif=_exif())
    with Image.open(tmp_path / "a.png") as image:
        photo = open_photo(image)
        assert open_photo(image.copy()).info == photo.info
    assert _kept_exif(photo.exif) == EXIF_WITHOUT_TURN
    assert photo.info.keys() == {"text"}


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "jpeg"])
def test_a_compressed_tiff_is_written_without_loss(tmp_path, compression):
    _picture("RGB").save(tmp_path / "plain.tiff", compression=compression)
    with Image.open(tmp_path / "plain.tiff") as image:
        image.load()
        image.info["exif"] = _exif()
        stored = image.convert("RGB").tobytes()
        photo = open_photo(image)
        save_image(image, tmp_path / "direct.tiff")
    save_image(photo_to_image(photo, photo.pixels), tmp_path / "b.tiff")
    for name in ("b.tiff", "direct.tiff"):
        with Image.open(tmp_path / name) as written:
            assert (written.info["compression"], written.convert("RGB").tobytes()) == ("raw", stored)
            assert written.getexif()[ExifTags.Base.Artist] == "A. Photographer"


def test_whatever_an_encoder_raises_is_an_output_error(tmp_path):
    image = _picture("RGB")
    image.info["exif"] = b"Exif\0\0nonsense"
    with pytest.raises(OutputError, match="could not be written"):
        save_image(image, tmp_path / "a.tiff")
    assert list(tmp_path.iterdir()) == []


# Colours stated without a profile

P3 = bytes((12, 13, 0, 1))


def _converted(image: Image.Image) -> np.ndarray:
    """Its pixels in sRGB, by its ICC profile."""
    profile = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
    return np.asarray(ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB")))


def test_cicp_is_kept_and_other_formats_get_a_profile(tmp_path):
    (tmp_path / "a.png").write_bytes(_png((b"cICP", P3)))
    photo = open_photo(tmp_path / "a.png")
    image = photo_to_image(photo, photo.pixels)
    save_image(image, tmp_path / "b.png")
    assert b"cICP" + P3 in (tmp_path / "b.png").read_bytes()
    save_image(image, tmp_path / "b.tiff")
    with Image.open(tmp_path / "b.tiff") as written:
        found = _converted(written).astype(int)
    # Display P3 (SMPTE EG 432-1) to sRGB by its published matrix
    matrix = np.array([[1.2249, -0.2247, 0.0], [-0.0420, 1.0419, 0.0], [-0.0197, -0.0786, 1.0979]])
    shown = photo.pixels / 255
    light = np.where(shown <= 0.04045, shown / 12.92, ((shown + 0.055) / 1.055) ** 2.4) @ matrix.T
    light = light.clip(0, 1)
    expected = 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    assert np.abs(found - expected).max() <= 3  # lcms computes in 15 bits


def test_gamma_and_chromaticity_become_a_profile(tmp_path):
    chromaticity = (31270, 32900, 64000, 33000, 21000, 71000, 15000, 6000)  # Adobe RGB
    chunks = ((b"gAMA", 45455), (b"cHRM", chromaticity))
    packed = [(kind, np.array(value, ">u4").tobytes()) for kind, value in chunks]
    (tmp_path / "a.png").write_bytes(_png(*packed))
    assert open_photo(tmp_path / "a.png").icc_profile is not None
    srgb = np.array((31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000), ">u4").tobytes()
    (tmp_path / "a.png").write_bytes(_png(packed[0], (b"cHRM", srgb)))
    assert open_photo(tmp_path / "a.png").icc_profile is None


def test_hdr_is_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(_png((b"cICP", bytes((9, 16, 0, 1)))))
    with pytest.raises(ImageError, match=r"HDR \(PQ\); convert it to standard range"):
        open_photo(tmp_path / "a.png")


# Formats of phones and browsers


def test_avif_is_read_and_deep_avif_is_refused(tmp_path):
    picture = _picture("RGB", (64, 48))
    picture.save(tmp_path / "a.avif", quality=95, exif=_exif(TURN_RIGHT), icc_profile=ICC)
    photo = open_photo(tmp_path / "a.avif")
    assert (photo.size, photo.icc_profile) == ((48, 64), ICC)
    assert _kept_exif(photo.exif) == EXIF_WITHOUT_TURN
    data = bytearray((tmp_path / "a.avif").read_bytes())
    data[data.index(b"av1C") + 6] |= 0x40
    (tmp_path / "deep.avif").write_bytes(data)
    with pytest.raises(ImageError, match=r"more than 8 bits a channel.*-depth 8"):
        open_photo(tmp_path / "deep.avif")


HEIC_HEAD = b"\0\0\0\x18ftypheic\0\0\0\0heicmif1"


def test_heic_without_a_decoder_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pi_heif", None)
    (tmp_path / "a.heic").write_bytes(HEIC_HEAD + bytes(100))
    with pytest.raises(MissingDependencyError, match=r"is HEIC; convert it first.*magicedit\[heic\]"):
        open_photo(tmp_path / "a.heic")


def test_a_damaged_heic_is_refused(tmp_path):
    pytest.importorskip("pi_heif")
    (tmp_path / "a.heic").write_bytes(HEIC_HEAD + bytes(100))
    with pytest.raises(ImageError, match=r"not an image|damaged"):
        open_photo(tmp_path / "a.heic")


def test_jpeg_xl_is_refused_by_name(tmp_path):
    (tmp_path / "a.jxl").write_bytes(b"\xff\x0a" + bytes(100))
    with pytest.raises(ImageError, match="JPEG XL; convert it first"):
        open_photo(tmp_path / "a.jxl")


@pytest.mark.parametrize("suffix", [".jfif", ".JFIF", ".jpe"])
def test_a_browsers_jpeg_keeps_its_name(tmp_path, suffix):
    _picture("RGB").save(tmp_path / f"a{suffix}", "JPEG")
    photo = open_photo(tmp_path / f"a{suffix}")
    save_image(photo_to_image(photo, photo.pixels), tmp_path / f"b{suffix}")
    with Image.open(tmp_path / f"b{suffix}") as written:
        assert written.format == "JPEG"
    assert suffix.lower() in PHOTO_SUFFIXES
