"""What an image file's structure says before anything is decoded.

A decoder may need hours or all memory for a small file that was made for it, and some silently drop what a
file says of its pixels. `structure_of` finds both by reading headers alone.
"""

import io
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

# Limits far above what cameras and programs write
MOST_SCANS = 100  # of a JPEG; encoders write about 10, each is a pass over all pixels
MOST_SEGMENTS = 10_000  # of a JPEG
MOST_FILLING = 100_000  # bytes between the segments of a JPEG
MOST_CHUNKS = 200_000  # of a PNG: 120 megapixels in chunks of 8 kB are 50,000
MOST_BLOCKS = 300_000  # of a GIF
MOST_COMMENT_BLOCKS = 4_000  # of a GIF; Pillow's time grows with their square
MOST_METADATA = 64 * 2**20  # bytes of a file that are no pixels
MOST_EXIF = 16 * 2**20  # bytes of values, which may overlap in the file
MOST_NUMBERS = 2_000_000  # of a TIFF's tags: 120 megapixels in tiles of 16 x 16 px have 470,000
MOST_TILE = 2**26  # pixels
LONGEST_HEADER = 4096  # bytes of a PPM's numbers and comments

_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
_AVIF_BRANDS = {b"avif", b"avis"}
_PPM_HEADER = re.compile(rb"P[2356](?:\s|#[^\r\n]*[\r\n])+(?:\d+(?:\s|#[^\r\n]*[\r\n])+){2}\d+\s")
# A JPEG marker, but those that stand alone: stuffing, restarts, start of an image
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")
_SOS, _EOI = 0xDA, 0xD9
# What Pillow reads from a PNG's chunks, and where it keeps texts too: of one name, the text would win
_PNG_FIELDS = frozenset(
    b"aspect bbox blend chromaticity default_image disposal dpi duration exif gamma icc_profile interlace "
    b"loop srgb transparency xmp".split()
)
TEXT_APART = "\x01"  # begins the key of a text that would have such a name, see `texts_apart`

TYPE_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
TYPE_SIZES |= dict.fromkeys((16, 17, 18), 8)
_BYTES = (1, 2, 7)  # types whose values Pillow keeps as bytes
_SUB_DIRECTORIES = (34665, 34853, 40965)  # EXIF, GPS, interoperability


@dataclass(frozen=True)
class Structure:
    """format: "JPEG", "PNG", "GIF", "TIFF", "PPM", "AVIF", "HEIF", "JPEG XL" or "", which is any other.

    cicp: colour primaries, transfer and matrix by ITU-T H.273 and whether values have the full range; None
    where the file does not say. clashing: places of a PNG's texts that `texts_apart` renames.
    """

    format: str = ""
    cicp: tuple[int, int, int, int] | None = None
    clashing: tuple[int, ...] = ()


def structure_of(file: IO[bytes]) -> Structure:
    """Reads a file's structure and leaves the file at its start.

    Raises ValueError, with a reason that follows the file's name, for one that costs too much to decode or
    whose pixels have more bits than a decoder would tell.
    """
    head = file.read(64)
    file.seek(0)
    try:
        if head.startswith(b"\xff\xd8"):
            _check_jpeg(file.read())
            return Structure("JPEG")
        if head.startswith(b"\x89PNG\r\n\x1a\n"):
            return Structure("PNG", *_check_png(file))
        if head.startswith((b"GIF87a", b"GIF89a")):
            _check_gif(file.read(MOST_METADATA + 1))
            return Structure("GIF")
        if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            check_directories(file, MOST_METADATA)
            return Structure("TIFF")
        if re.match(rb"P[2356][\s#]", head):
            if not _PPM_HEADER.match(file.read(LONGEST_HEADER)):
                raise ValueError(f"has no sizes in its first {LONGEST_HEADER} bytes")
            return Structure("PPM")
        if head.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL ")):
            return Structure("JPEG XL")
        if head[4:8] == b"ftyp":
            brands = {head[at : at + 4] for at in range(8, min(64, int.from_bytes(head[:4])), 4)}
            if brands & _AVIF_BRANDS:
                return Structure("AVIF", _check_avif(file.read()))
            if brands & _HEIF_BRANDS:
                return Structure("HEIF")
        return Structure()
    finally:
        file.seek(0)


def _check_jpeg(data: bytes) -> None:
    scans = segments = metadata = filling = exif = 0
    before = 2
    for code, length, end in jpeg_segments(data):
        filling += 0 if scans else end - length - 2 - before  # which Pillow reads byte by byte
        before = end
        if filling > MOST_FILLING:
            raise ValueError(f"has more than {MOST_FILLING:,} bytes between its segments")
        if code == _SOS:
            scans += 1
        else:
            segments += 1
            metadata += length
        if scans > MOST_SCANS:
            raise ValueError(f"has more than {MOST_SCANS} scans, so that decoding it would take minutes")
        if data.startswith(b"Exif\0", end - length + 2):  # pieces of one, which Pillow copies at each
            exif += length
        if exif > MOST_EXIF:
            raise ValueError(f"has more than {MOST_EXIF:,} bytes of EXIF")
        if segments > MOST_SEGMENTS or metadata > MOST_METADATA:
            raise ValueError(f"has over {MOST_SEGMENTS:,} segments or {MOST_METADATA:,} bytes of metadata")


def jpeg_segments(data: bytes, at: int = 0) -> Iterator[tuple[int, int, int]]:
    """Yields (marker, length in bytes, end) of the segments of the JPEG that begins at `at`; the last one is
    its end (0xD9), if it has one."""
    at += 2
    while match := _MARKER.search(data, at):
        code, at = data[match.end() - 1], match.end()
        length = 0 if code == _EOI else int.from_bytes(data[at : at + 2])
        at += length
        yield code, length, at
        if code == _EOI:
            return


def _check_png(file: IO[bytes]) -> tuple[tuple[int, int, int, int] | None, tuple[int, ...]]:
    at, chunks, metadata, cicp, clashing = 8, 0, 0, None, []
    file.seek(at)
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        chunks += 1
        metadata += 0 if kind in (b"IDAT", b"fdAT") else length
        if chunks > MOST_CHUNKS or metadata > MOST_METADATA:
            raise ValueError(f"has over {MOST_CHUNKS:,} chunks or {MOST_METADATA:,} bytes of metadata")
        if kind == b"cICP" and length == 4:
            cicp = tuple(file.read(4))
        if kind in (b"tEXt", b"zTXt", b"iTXt") and file.read(80).partition(b"\0")[0] in _PNG_FIELDS:
            clashing.append(at)
        if kind == b"IEND":
            break
        at += 12 + length
        file.seek(at)
    return cicp if cicp is not None and len(cicp) == 4 else None, tuple(clashing)


def texts_apart(file: IO[bytes], clashing: tuple[int, ...]) -> IO[bytes]:
    """A PNG with TEXT_APART before the keys of these texts, so that a decoder takes none for a field."""
    if not clashing:
        return file
    data, parts, begin = file.read(), [], 0
    for at in clashing:
        length, kind = struct.unpack_from(">I4s", data, at)
        chunk = kind + TEXT_APART.encode() + data[at + 8 : at + 8 + length]
        parts += [data[begin:at], struct.pack(">I", length + 1), chunk, struct.pack(">I", zlib.crc32(chunk))]
        begin = at + 12 + length
    return io.BytesIO(b"".join((*parts, data[begin:])))


def _check_gif(data: bytes) -> None:
    if len(data) > MOST_METADATA:
        raise ValueError(f"is a GIF of more than {MOST_METADATA:,} bytes")
    data += b"\0"
    at = 13 + (6 << (data[10] & 7) if len(data) > 10 and data[10] & 0x80 else 0)
    blocks = comments = 0
    while at < len(data) and data[at] != 0x3B and blocks <= MOST_BLOCKS:
        blocks += 1
        comment = data[at : at + 2] == b"\x21\xfe"
        if data[at] == 0x21:  # an extension and its label
            at += 2
        elif data[at] == 0x2C:  # a picture: its place, its palette, the size of codes
            flags = data[at + 9] if at + 9 < len(data) else 0
            at += 11 + (6 << (flags & 7) if flags & 0x80 else 0)
        else:
            at += 1
            continue
        while at < len(data) and data[at] and blocks <= MOST_BLOCKS:
            at += 1 + data[at]
            blocks += 1
            comments += comment
        at += 1
    if blocks > MOST_BLOCKS or comments > MOST_COMMENT_BLOCKS:
        raise ValueError(f"has more than {MOST_BLOCKS:,} blocks, or {MOST_COMMENT_BLOCKS:,} of comments")


def _check_avif(data: bytes) -> tuple[int, int, int, int] | None:
    at = data.find(b"av1C")
    while at >= 0:
        if data[at + 6 : at + 7] and data[at + 6] & 0x40:
            raise ValueError("has more than 8 bits a channel")
        at = data.find(b"av1C", at + 4)
    at = data.find(b"colrnclx")
    if at < 0 or len(data) < at + 14:
        return None
    numbers = struct.unpack_from(">HHH", data, at + 8)
    return (*numbers, 1) if max(numbers) < 256 else None  # as RGB they have the full range


@dataclass(frozen=True)
class Directory:
    """A directory of tags of a TIFF file or of EXIF.

    at, end: its own bytes, up to the offset of the next one, which stands at `end`. entries: (tag, type,
    count, position of the value or of its offset). next: offset of the next directory, 0: none.
    """

    at: int
    end: int
    entries: tuple[tuple[int, int, int, int], ...]
    next: int


class Tags:
    """The directories of a TIFF file or of EXIF without its prefix, read defensively."""

    def __init__(self, file: IO[bytes]):
        self.file = file
        file.seek(0)
        head = file.read(16)
        self.order = "<" if head[:2] == b"II" else ">"
        self.big = head[2:4] in (b"+\0", b"\0+")
        self.first = self._number(head, 8, "Q") if self.big else self._number(head, 4, "I")

    def _number(self, data: bytes, at: int, kind: str) -> int:
        size = struct.calcsize(self.order + kind)
        return struct.unpack_from(self.order + kind, data, at)[0] if len(data) >= at + size else 0

    def directory(self, at: int) -> Directory:
        """The directory at an offset; it may have fewer entries than it says, where the file ends."""
        wide = "Q" if self.big else "I"
        step, head = (20, 8) if self.big else (12, 2)
        self.file.seek(at)
        count = self._number(self.file.read(head), 0, "Q" if self.big else "H")
        count = min(count, 65_536)
        data = self.file.read(count * step + 8)
        entries = tuple(
            (
                self._number(data, place, "H"),
                self._number(data, place + 2, "H"),
                self._number(data, place + 4, wide),
                at + head + place + step - (8 if self.big else 4),
            )
            for place in range(0, min(len(data) // step, count) * step, step)
        )
        end = at + head + count * step
        return Directory(at, end, entries, self._number(data, count * step, wide))

    def value(self, entry: tuple[int, int, int, int]) -> int:
        """The first number of an entry of small integers; 0 for others."""
        _, kind, count, _ = entry
        letter = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}.get(kind)
        if letter is None or not count:
            return 0
        self.file.seek(self.place(entry))
        return self._number(self.file.read(8), 0, letter)

    def place(self, entry: tuple[int, int, int, int]) -> int:
        """Where the value of an entry lies."""
        _, kind, count, at = entry
        inline = 8 if self.big else 4
        if TYPE_SIZES.get(kind, 1) * count <= inline:
            return at
        self.file.seek(at)
        return self._number(self.file.read(inline), 0, "Q" if self.big else "I")


def check_directories(file: IO[bytes], most: int) -> None:
    """Raises ValueError where tags have more than `most` bytes of values, too many numbers, or huge tiles.

    Pillow copies each value, and values may overlap: a file of 1 MB can hold 64 GB of them.
    """
    tags = Tags(file)
    waiting, seen, size, numbers = [tags.first], set(), 0, 0
    while waiting:
        at = waiting.pop()
        if not at or at in seen:
            continue
        seen.add(at)
        directory = tags.directory(at)
        if at == tags.first:
            waiting.append(directory.next)
        tile = 1
        for entry in directory.entries:
            tag, kind, count, _ = entry
            size += TYPE_SIZES.get(kind, 0) * count
            numbers += 0 if kind in _BYTES or kind not in TYPE_SIZES else count
            if tag in _SUB_DIRECTORIES:
                waiting.append(tags.value(entry))
            if tag in (322, 323):
                tile *= max(1, tags.value(entry))
        if size > most or numbers > MOST_NUMBERS:
            raise ValueError(f"has tags with more than {most:,} bytes or {MOST_NUMBERS:,} numbers")
        if tile > MOST_TILE:
            raise ValueError(f"has tiles of {tile:,} pixels, more than {MOST_TILE:,}")
