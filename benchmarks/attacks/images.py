"""Images that are damaged, lie or are made to cost much: a result or a typed error, in seconds and memory."""

import io
import random
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageCms, PngImagePlugin

from attacks import Attack, typed
from magicedit.errors import MagicEditError
from magicedit.imaging import open_photo, photo_to_image, save_image

TITLE = "Images in one process"
SECONDS = 5  # of processor time, of one photograph
WALL = 40  # seconds, in which it is made too, beside other work
SIZE = (96, 64)
# Options of Pillow's writers, by name of a kind
KINDS: dict[str, tuple[str, str, dict]] = {
    "jpeg": ("JPEG", "RGB", {"quality": 80}),
    "jpeg progressive": ("JPEG", "RGB", {"progressive": True}),
    "jpeg grey": ("JPEG", "L", {}),
    "jpeg cmyk": ("JPEG", "CMYK", {}),
    "mpo": ("MPO", "RGB", {"save_all": True}),
    "png": ("PNG", "RGB", {}),
    "png alpha": ("PNG", "RGBA", {}),
    "png palette": ("PNG", "P", {}),
    "png 16 bits": ("PNG", "I;16", {}),
    "webp": ("WEBP", "RGB", {"quality": 70}),
    "webp lossless": ("WEBP", "RGBA", {"lossless": True}),
    "tiff": ("TIFF", "RGB", {}),
    "tiff deflate": ("TIFF", "RGB", {"compression": "tiff_adobe_deflate"}),
    "tiff lzw": ("TIFF", "RGBA", {"compression": "tiff_lzw"}),
    "tiff jpeg": ("TIFF", "RGB", {"compression": "jpeg"}),
    "bmp": ("BMP", "RGB", {}),
    "bmp grey": ("BMP", "L", {}),
    "gif": ("GIF", "L", {}),
    "ppm": ("PPM", "RGB", {}),
    "avif": ("AVIF", "RGB", {"quality": 60, "speed": 10}),
    "avif alpha": ("AVIF", "RGBA", {"quality": 60, "speed": 10}),
}
MUTATIONS = 16  # of each kind


def attacks(seed: int, short: bool) -> list[Attack]:
    random_ = random.Random(seed)
    found = [
        Attack(f"{kind}, mutation {number}", partial(_mutated, kind, random_.getrandbits(64)), WALL)
        for kind in KINDS
        for number in range(MUTATIONS)
    ]
    found += [Attack(name, partial(_opened, make), WALL) for name, make in MADE.items()]
    return random_.sample(found, 40) if short else found


def _mutated(kind: str, seed: int, folder: Path) -> str | None:
    return _opened(lambda: mutated(sample(kind), random.Random(seed)), folder)


def _opened(make: Callable[[], bytes], folder: Path) -> str | None:
    """Opens a file, and saves what it holds as two formats."""
    path = folder / "photo"
    path.write_bytes(make())

    def edit() -> None:
        photo = open_photo(path)
        if photo.pixels.size > 3 * 4_000_000:
            return  # writing large pictures is another matter
        image = photo_to_image(photo, photo.pixels)
        for suffix in (".png", ".jpg"):
            save_image(image, folder / f"out{suffix}")

    began = time.process_time()
    problem = typed(edit)
    seconds = time.process_time() - began
    return problem or (f"it took {seconds:.1f} s of processor time" if seconds > SECONDS else None)


@cache
def sample(kind: str) -> bytes:
    """A small whole file of a kind, with EXIF, a profile and XMP where it can hold them."""
    format, mode, options = KINDS[kind]
    values = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    picture = Image.fromarray(values).resize(SIZE, Image.Resampling.BICUBIC)
    if mode == "I;16":
        picture = Image.fromarray(np.asarray(picture.convert("L"), np.uint16) * 257)
    elif mode != "RGB":
        picture = picture.convert(mode)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.Artist] = "A. Photographer"
    exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] = "N"
    described = {}
    if format not in ("BMP", "GIF", "PPM") and mode in ("RGB", "RGBA"):
        described = {"exif": exif.tobytes() if format != "TIFF" else exif}
        described["icc_profile"] = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    if format in ("JPEG", "WEBP", "AVIF") and described:
        described["xmp"] = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"/>'
    if format == "MPO":
        options = options | {"append_images": [picture.resize((32, 24))]}
    file = io.BytesIO()
    picture.save(file, format, **options, **described)
    return file.getvalue()


def mutated(data: bytes, random_: random.Random) -> bytes:
    """A file with one to eight faults: cut, bytes changed, parts doubled, lost or moved, numbers at ends."""
    changed = bytearray(data)
    for _ in range(random_.choice((1, 1, 2, 3, 8))):
        if len(changed) < 16:
            break
        place = int(len(changed) * random_.random() ** 2)  # headers more often than pixels
        length = min(random_.choice((1, 2, 4, 16, 256)), len(changed) - place)
        match random_.randrange(7):
            case 0:
                del changed[max(8, place) :]
            case 1:
                changed[place] ^= 1 << random_.randrange(8)
            case 2:
                changed[place : place + length] = random_.randbytes(length)
            case 3:
                del changed[place : place + length]
            case 4:
                changed[place:place] = changed[place : place + length] * random_.choice((1, 50))
            case 5:
                value = random_.choice((0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFF))
                packed = struct.pack(random_.choice(("<I", ">I")), value)
                changed[place : place + 4] = packed
            case 6:
                other = random_.randrange(len(changed))
                changed[place : place + length] = changed[other : other + length]
    return bytes(changed)


# --- Made to cost much, or to lie ---


def png(
    width: int, height: int, *chunks: tuple[bytes, bytes], colour: int = 2, depth: int = 8, **more
) -> bytes:
    """A PNG of one colour; more: `interlaced`, and `rows` that are there."""
    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    rows = more.get("rows", height)
    packer = zlib.compressobj(9)
    row = b"\0" + bytes((width * samples * depth + 7) // 8) if rows else b""
    body = b"".join(packer.compress(row * n) for n in _parts(rows, 64)) + packer.flush()
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, int(more.get("interlaced", False)))
    file = io.BytesIO(b"\x89PNG\r\n\x1a\n")
    file.seek(8)
    for kind, content in ((b"IHDR", head), *chunks, (b"IDAT", body), (b"IEND", b"")):
        PngImagePlugin.putchunk(file, kind, content)
    return file.getvalue()


def _parts(whole: int, most: int) -> Iterator[int]:
    for begin in range(0, whole, most):
        yield min(most, whole - begin)


def tiff(*entries: tuple[int, int, int, int], more: bytes = b"", following: int = 0) -> bytes:
    packed = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + packed + struct.pack("<I", following) + more


def tiff_picture(side: int, *changes: tuple[int, int, int, int], more: bytes = b"") -> bytes:
    """A grey TIFF of one strip that is not there, with other entries."""
    entries = {
        256: (256, 4, 1, side),
        257: (257, 4, 1, side),
        258: (258, 3, 1, 8),
        259: (259, 3, 1, 1),
        262: (262, 3, 1, 1),
        273: (273, 4, 1, 200),
        277: (277, 3, 1, 1),
        278: (278, 4, 1, side),
        279: (279, 4, 1, min(side * side, 2**32 - 1)),
    }
    entries |= {entry[0]: entry for entry in changes}
    return tiff(*(entries[tag] for tag in sorted(entries)), more=more)


def jpeg(**options) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", options.pop("size", (64, 64)), (120, 130, 140)).save(file, "JPEG", **options)
    return file.getvalue()


def scans(count: int, **options) -> bytes:
    """A progressive JPEG with its last scan repeated."""
    whole = jpeg(progressive=True, **options)
    last = whole.rindex(b"\xff\xda")
    return whole[:last] + whole[last:-2] * count + b"\xff\xd9"


def segment(marker: int, content: bytes) -> bytes:
    return bytes((0xFF, marker)) + (len(content) + 2).to_bytes(2, "big") + content


def sized(data: bytes, width: int, height: int) -> bytes:
    """A JPEG whose header says another size."""
    for marker in (b"\xff\xc0", b"\xff\xc2"):
        at = data.find(marker)
        if at > 0:
            return data[: at + 5] + struct.pack(">HH", height, width) + data[at + 9 :]
    raise ValueError("no frame header")


def exif_of(*entries: tuple[int, int, int, int], more: bytes = b"", following: int = 0) -> bytes:
    return png(64, 64, (b"eXIf", tiff(*entries, more=more, following=following)))


def webp_lying(width: int, height: int) -> bytes:
    """A WebP whose extended header says another canvas."""
    data = bytearray(sample("webp"))
    at = data.find(b"VP8X")
    data[at + 12 : at + 18] = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return bytes(data)


def avif_lying(width: int, height: int) -> bytes:
    data = bytearray(sample("avif"))
    at = data.find(b"ispe")
    data[at + 8 : at + 16] = struct.pack(">II", width, height)
    return bytes(data)


def large(format: str, side: tuple[int, int], **options) -> bytes:
    file = io.BytesIO()
    Image.new(options.pop("mode", "RGB"), side, options.pop("colour", 90)).save(file, format, **options)
    return file.getvalue()


MADE: dict[str, Callable[[], bytes]] = {
    # pixels
    "png of 100 megapixels": lambda: png(10_000, 10_000),
    "png of 100 megapixels, alpha": lambda: png(10_000, 10_000, colour=6),
    "png of 100 megapixels, grey": lambda: png(10_000, 10_000, colour=0),
    "png of 64 megapixels, interlaced": lambda: png(8000, 8000, interlaced=True, rows=16_000),
    "png of 2**31": lambda: png(2**31 - 1, 2**31 - 1, rows=0),
    "png of 0": lambda: png(0, 0, rows=0),
    "png without rows": lambda: png(10_000, 10_000, rows=0),
    "png with more rows": lambda: png(64, 64, rows=200_000),
    "png of 120 megapixels in a line": lambda: png(7_000_000, 17),
    "jpeg of 100 megapixels": lambda: large("JPEG", (10_000, 10_000)),
    "jpeg of 100 megapixels, progressive": lambda: large("JPEG", (10_000, 10_000), progressive=True),
    "jpeg that says 65535": lambda: sized(jpeg(), 65_535, 65_535),
    "jpeg that says 10000": lambda: sized(jpeg(), 10_000, 10_000),
    "jpeg that says 0": lambda: sized(jpeg(), 0, 0),
    "webp of 80 megapixels": lambda: large("WEBP", (10_000, 8000), method=0),
    "webp of 16383": lambda: webp_lying(16_383, 16_383),
    "webp that says 10000": lambda: webp_lying(10_000, 8000),
    "avif of 64 megapixels": lambda: large("AVIF", (8000, 8000), speed=10),
    "avif that says 60000": lambda: avif_lying(60_000, 60_000),
    "avif that says 9000": lambda: avif_lying(9000, 9000),
    "tiff of 100 megapixels": lambda: large("TIFF", (10_000, 10_000), compression="tiff_adobe_deflate"),
    "tiff of 2**32": lambda: tiff_picture(2**32 - 1),
    "tiff without pixels": lambda: tiff_picture(8000),
    "bmp of 100 megapixels": lambda: large("BMP", (10_000, 10_000)),
    "bmp of 2**31": lambda: (
        b"BM" + struct.pack("<IIIIiiHHIIiiII", 60, 0, 54, 40, 2**31 - 1, 2**31 - 1, 1, 24, *[0] * 6)
    ),
    "bmp upside down": lambda: (
        b"BM" + struct.pack("<IIIIiiHHIIiiII", 60, 0, 54, 40, 64, -(2**31), 1, 24, *[0] * 6)
    ),
    "bmp run lengths": lambda: (
        b"BM"
        + struct.pack("<IIIIiiHHIIiiII", 60, 0, 1078, 40, 5000, 5000, 1, 8, 1, *[0] * 5)
        + b"".join(bytes((i, i, i, 0)) for i in range(256))
        + b"\0\0" * 10_000_000
    ),
    "gif of 65535": lambda: (
        b"GIF89a\xff\xff\xff\xff\0\0\0" + b"!\xf9\x04\0\0\0\0\0" + b",\0\0\0\0\xff\xff\xff\xff\0\x08\0;"
    ),
    "ppm of 10**9": lambda: b"P6 1000000000 1000000000 255\n",
    "ppm of 10**5000": lambda: b"P6 " + b"9" * 5000 + b" 10 255\n",
    "ppm of words": lambda: b"P3 9000 9000 255\n" + b"1 " * 20_000_000,
    "ppm of other levels": lambda: b"P6 9000 9000 254\n" + bytes(9000 * 9000 * 3),
    "ppm without pixels": lambda: b"P6 9000 9000 255\n",
    # passes and parts
    "jpeg of 3000 scans": lambda: scans(3000, size=(8000, 8000)),
    "jpeg of 12000 scans": lambda: scans(12_000, size=(8000, 8000)),
    "jpeg of 100 scans": lambda: scans(88, size=(4000, 4000)),
    "jpeg of 100000 segments": lambda: jpeg()[:2] + segment(0xFE, b"") * 100_000 + jpeg()[2:],
    "jpeg of large segments": lambda: jpeg()[:2] + segment(0xE5, bytes(65_000)) * 2000 + jpeg()[2:],
    "jpeg of 8BIM": lambda: (
        jpeg()[:2] + segment(0xED, b"Photoshop 3.0\0" + b"8BIM\x04\x04\0\0\0\0\0\0" * 5000) * 900 + jpeg()[2:]
    ),
    "jpeg of tables": lambda: jpeg()[:2] + segment(0xC4, bytes(17)) * 9000 + jpeg()[2:],
    "jpeg of FF": lambda: jpeg()[:2] + b"\xff" * 20_000_000 + jpeg()[2:],
    "jpeg behind its end": lambda: jpeg() + b"\xff\xda" * 10_000_000,
    "jpeg in a jpeg": lambda: jpeg()[:-2] + jpeg() * 1000,
    "jpeg of profiles": lambda: (
        jpeg()[:2]
        + b"".join(segment(0xE2, b"ICC_PROFILE\0" + bytes((n, 255)) + bytes(65_000)) for n in range(1, 256))
        + jpeg()[2:]
    ),
    "jpeg of exif": lambda: jpeg()[:2] + segment(0xE1, b"Exif\0\0" + bytes(65_000)) * 900 + jpeg()[2:],
    "jpeg of xmp": lambda: (
        jpeg()[:2] + segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + b"<a>" * 21_000) + jpeg()[2:]
    ),
    "png of chunks": lambda: png(64, 64, *[(b"prVt", b"")] * 300_000),
    "png of data in pieces": lambda: png(64, 64)[:33] + b"\0\0\0\0IDAT5\xaf\x06\x1e" * 1_000_000,
    "png of private data": lambda: png(64, 64, (b"prVt", bytes(200_000_000))),
    "png of text": lambda: png(64, 64, *[(b"zTXt", b"k\0\0" + zlib.compress(bytes(1_000_000)))] * 200),
    "png of one text": lambda: png(64, 64, (b"zTXt", b"k\0\0" + zlib.compress(bytes(100_000_000)))),
    "png of one international text": lambda: png(
        64, 64, (b"iTXt", b"k\0\1\0\0\0" + zlib.compress(bytes(100_000_000)))
    ),
    "png of a profile": lambda: png(64, 64, (b"iCCP", b"k\0\0" + zlib.compress(bytes(100_000_000)))),
    "png of short chunks": lambda: png(
        64, 64, *((kind, b"") for kind in (b"gAMA", b"cHRM", b"sRGB", b"pHYs", b"iCCP"))
    ),
    "png of cICP": lambda: png(64, 64, (b"cICP", b"\xff\xff\xff\xff")),
    "png of no colours": lambda: png(64, 64, (b"gAMA", bytes(4)), (b"cHRM", bytes(32))),
    "png of many colours": lambda: png(64, 64, (b"gAMA", b"\xff" * 4), (b"cHRM", b"\xff" * 32)),
    "png animated": lambda: png(64, 64, (b"acTL", struct.pack(">II", 2**31 - 1, 0))),
    "gif of comments": lambda: b"GIF89a\x20\0\x20\0\0\0\0" + b"!\xfe" + b"\1x" * 5_000_000 + b"\0;",
    "gif of large comments": lambda: (
        b"GIF89a\x20\0\x20\0\0\0\0" + b"!\xfe" + (b"\xff" + bytes(255)) * 100_000 + b"\0;"
    ),
    "gif of junk": lambda: b"GIF89a\x20\0\x20\0\0\0\0" + b"x" * 30_000_000,
    "gif of frames": lambda: (
        b"GIF89a\x20\0\x20\0\0\0\0" + b",\0\0\0\0\x01\0\x01\0\0\x02\x02L\x01\0" * 1_000_000 + b";"
    ),
    "webp of a profile": lambda: _riff((b"ICCP", bytes(100_000_000))),
    "webp of chunks": lambda: _riff(*[(b"JUNK", b"")] * 1_000_000),
    "avif of boxes": lambda: sample("avif")[:32] + b"\0\0\0\x08free" * 1_000_000 + sample("avif")[32:],
    # directories
    "tiff of values": lambda: tiff(*((tag, 7, 2**23, 0) for tag in range(1000, 5000)), more=bytes(2**23)),
    "tiff of numbers": lambda: tiff_picture(8000, (273, 4, 20_000_000, 200), more=bytes(80_000_000)),
    "tiff of strips": lambda: tiff_picture(
        64, (278, 4, 1, 1), (273, 4, 1_000_000, 200), more=bytes(4_000_000)
    ),
    "tiff of no strips": lambda: tiff_picture(64, (278, 4, 1, 0), (273, 4, 1, 0)),
    "tiff of one tile": lambda: tiff_picture(
        64, (259, 3, 1, 8), (322, 4, 1, 60_000), (323, 4, 1, 60_000), (324, 4, 1, 200), (325, 4, 1, 100)
    ),
    "tiff of itself": lambda: tiff((256, 4, 1, 64), following=8),
    "tiff of pages": lambda: (
        b"II*\0\x08\0\0\0" + b"".join(struct.pack("<HI", 0, 14 + 6 * n) for n in range(1_000_000))
    ),
    "tiff of a profile": lambda: tiff_picture(64, (34_675, 7, 50_000_000, 200), more=bytes(50_000_100)),
    "tiff of samples": lambda: tiff_picture(64, (277, 3, 1, 65_535)),
    "tiff of bits": lambda: tiff_picture(64, (258, 3, 1, 65_535)),
    "big tiff": lambda: b"II+\0\x08\0\0\0" + struct.pack("<Q", 2**60) + bytes(100),
    "exif of values": lambda: exif_of(
        *((tag, 7, 2**22, 0) for tag in range(9000, 11_000)), more=bytes(2**22)
    ),
    "exif of itself": lambda: exif_of((34_665, 4, 1, 8), (34_853, 4, 1, 8), following=8),
    "exif of long numbers": lambda: exif_of((274, 3, 2**32 - 1, 0)),
    "exif of a text as orientation": lambda: exif_of((274, 2, 4, 0x36363636)),
    "exif beyond its end": lambda: exif_of((274, 3, 1, 6), (34_665, 4, 1, 2**31)),
    "exif of 16 MB": lambda: png(64, 64, (b"eXIf", tiff((274, 3, 1, 6)) + bytes(17_000_000))),
    "exif of pictures": lambda: exif_of((37_500, 7, 3_000_000, 26), more=b"\xff\xd8\xff\xda\0\2" * 500_000),
    "exif of nothing": lambda: png(64, 64, (b"eXIf", b"")),
    "exif of another order": lambda: png(64, 64, (b"eXIf", b"XX*\0\x08\0\0\0\0\0")),
    "exif in a text": lambda: png(64, 64, (b"tEXt", b"Raw profile type exif\0\nexif\n4\nzz")),
    "xmp of entities": lambda: png(64, 64, (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + BOMB)),
    "xmp of depth": lambda: png(
        64, 64, (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + b"<a Thumbnails='1'>" * 50_000)
    ),
    # what it is not
    "nothing": lambda: b"",
    "zeros": lambda: bytes(1_000_000),
    "text": lambda: b"This is no photograph.\n" * 100_000,
    "heic without pixels": lambda: b"\0\0\0\x18ftypheic\0\0\0\0heicmif1" + bytes(1000),
    "avif without pixels": lambda: b"\0\0\0\x18ftypavif\0\0\0\0avifmif1" + bytes(1000),
    "jpeg xl": lambda: b"\xff\x0a" + bytes(1000),
    "jpeg 2000": lambda: large("JPEG2000", (64, 64)),
    "pdf": lambda: b"%PDF-1.7\n" + bytes(1000),
    "svg": lambda: b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "postscript": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n(/tmp/x) (w) file\n",
    "psd": lambda: b"8BPS\0\1" + bytes(1000),
    "zip": lambda: b"PK\3\4" + bytes(1000),
}
BOMB = (
    b'<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">'
    + b"".join(b'<!ENTITY %c "%s">' % (c + 1, b"&%c;" % c * 10) for c in range(97, 109))
    + b']><x xmlns:h="http://ns.adobe.com/hdr-gain-map/1.0/">&m;</x>'
)


def _riff(*chunks: tuple[bytes, bytes]) -> bytes:
    """A WebP with chunks in front of its picture."""
    whole = sample("webp lossless")
    at = whole.find(b"VP8L")
    size = struct.unpack_from("<I", whole, at + 4)[0]
    head = (
        struct.pack("<4sIB3x", b"VP8X", 10, 0x20)
        + (SIZE[1] - 1).to_bytes(3, "little")
        + (SIZE[0] - 1).to_bytes(3, "little")
    )
    body = b"WEBP" + head + b"".join(kind + struct.pack("<I", len(c)) + c for kind, c in chunks)
    body += whole[at : at + 8 + size + size % 2]
    return b"RIFF" + struct.pack("<I", len(body)) + body


def refused(path: Path) -> bool:
    """Whether a photograph cannot be opened."""
    try:
        open_photo(path)
    except MagicEditError:
        return True
    return False
