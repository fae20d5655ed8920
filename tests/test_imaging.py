"""Opening, keeping and writing photographs, on real files of every kind."""

import os
import re
import stat

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageCms, PngImagePlugin

from magicedit.errors import ImageError, OutputError
from magicedit.imaging import (
    MIN_SIDE,
    before_after,
    check_output,
    open_photo,
    photo_to_image,
    save_image,
    strip,
    to_pixels,
    to_tensor,
)

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
    import struct
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
    with pytest.raises(ImageError, match=r"stands for transparency.*RGBA"):
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
        ("", "it is no file"),
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
    import struct

    with open(tmp_path / "bomb.png", "wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        PngImagePlugin.putchunk(file, b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
        PngImagePlugin.putchunk(file, b"IDAT", b"")
    with pytest.raises(ImageError, match=r"more than the limit|too large"):
        open_photo(tmp_path / "bomb.png")


# Writing


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
        ("file/out.png", "does not exist; create it"),
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
