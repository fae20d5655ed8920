"""What a file says of itself: the mark of an edit in XMP, and what of a photograph's metadata is private.

A mark is the digital source type of IPTC, the tool, and an entry of the history with the edit's record as
JSON. It is merged into the photograph's own XMP (ISO 16684-1, in files by XMP Specification Part 3).
"""

import contextlib
import enum
import json
import math
import re
import struct
import tempfile
import warnings
import xml.etree.ElementTree as ET  # nosec B405 # without entities and bounded, see `Xmp.parsed`
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from html import escape
from pathlib import Path
from typing import IO, Any, Self, TypeVar

from PIL import ExifTags, Image

from magicedit import __version__, signing
from magicedit.errors import ImageError, OutputError, installing
from magicedit.files import opened, remembered_sha256, shown

Opened = TypeVar("Opened")  # `imaging.Photo`, which is above this module

TOOL = f"magicedit {__version__}"
EDITED = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
LARGEST_PACKET = 4_000_000  # bytes of XMP that are read
LARGEST_IN_JPEG = 65_502  # bytes of XMP in a segment
LARGEST_RECORD = 4_000  # characters of one edit's record
MOST_ENTRIES = 50  # of ours in a history
MOST_RECORDS = 10  # of our latest entries keep theirs
DEEPEST = 100  # levels of XMP

# EXIF: where a photograph was taken, and which camera and whose it is. Maker notes are a camera's own binary
# table, which holds its serial number among others.
_PRIVATE_EXIF = {
    ExifTags.Base.GPSInfo, ExifTags.Base.MakerNote, ExifTags.Base.MakerNoteSafety,
    ExifTags.Base.BodySerialNumber, ExifTags.Base.LensSerialNumber, ExifTags.Base.CameraOwnerName,
    ExifTags.Base.ImageUniqueID, ExifTags.Base.CameraSerialNumber, ExifTags.Base.RawDataUniqueID,
    0xC634,  # DNGPrivateData
    0xFDE8, 0xFDE9,  # owner and serial number, as Photoshop writes them
    33550, 33922, 34264, 34735, 34736, 34737,  # GeoTIFF
    33723, 34377,  # IPTC, alone and among Photoshop's resources
    700,  # XMP, which is kept beside
}  # fmt: skip
# Names of XMP properties, of tags and of texts, of whichever schema
_PRIVATE_NAME = re.compile(
    r"gps|geo[:_.-]|geo.?(tag|code|hash|point|loc|pos)|wgs84|latitude|longitude|altitude|coordinate|location"
    r"|serial|owner|host.?computer|(camera|sensor|device|body).?(id|name)$|(image|data).?unique.?id"
    r"|maker.?note|file.?(path|name)|raw profile type|has.?extended.?xmp|ciadr"
    r"|^(lat|long?|lng|places?|place.?name|.?xyz|loci|city|county|locality|street|address|iptc|photoshop)$"
    r"|^(state|country|country.?(code|name)|province.?state|world.?region|coverage)$",
    re.IGNORECASE | re.MULTILINE,
)
# Namespaces of XMP that are about places and drones
_PRIVATE_SPACE = re.compile(
    r"georss|wgs84|/geo[/#]|geo(tag|names)|location|gps|opengis|drone|file:", re.IGNORECASE
)
_DEVICE = r"(?:iphone|ipad|ipod|galaxy|pixel|phone|handy|camera|macbook|imac|mac|laptop|computer|pc)\b"
_PRIVATE_TEXT = re.compile(
    # words, also as parts of names
    r"(?<![a-z])gps|gps(?![a-z])|latitude|longitude|coordinates|serial.?(number|no\b)|georss|openstreetmap"
    r"|what3words|maps?\.(google|apple|app\b)|goo\.gl/maps|google\.[a-z.]{2,6}/maps|\bgeo:"
    r"|\b(lat|lng|lon)\b[\s:=\"']{0,4}[+-]?\d|\blong\s?[:=]\s?[+-]?\d"
    # 48.8584, 2.2945 and 48.8584 2.2945
    r"|(?<![\w.])[+-]?\d{1,3}\.\d{2,}\s?°?\s?[,;/|]\s?[+-]?\d{1,3}\.\d{2,}(?![\w.])"
    r"|(?<![\w.])[+-]?\d{1,3}\.\d{3,}\s{1,3}[+-]?\d{1,3}\.\d{3,}(?![\w.])"
    # 48° 51', 48.8584 N, N 48.8584, 48,51.5N, +48.8584+002.2945/ (ISO 6709), 8FW4V75V+8Q (a plus code)
    r"|\d[\sÂ]?[°º]\s?(?:\d|(?-i:[NSEW])\b)|\d[.,:]\d{1,9}(?:[.,:]\d{1,9}){0,2}[\s°'\"]?(?-i:[NSEW])\b"
    r"|(?-i:\b[NSEW])\s?\d{1,3}(?:[°º]|\.\d{3})"
    r"|(?<![\w.+-])[+-]\d{2,6}(?:\.\d+)?[+-]\d{3,7}(?:\.\d+)?(?![\w-])"
    r"|(?-i:\b[23456789CFGHJMPQRVWX]{8}\+[23456789CFGHJMPQRVWX]{2,3}\b)"
    # paths of files under a person's name, and devices of persons
    r"|file:/|[\\/](home|users)[\\/]\w"
    rf"|\w\W{{1,3}}s\s{_DEVICE}|s['’]\s{_DEVICE}|\b{_DEVICE}\s(?:von|vom|de|di|da|do|of|van|d['’])\s?\w",
    re.IGNORECASE,
)
LONGEST_TEXT = 50_000  # characters that are searched; longer ones are no words of people


def tells_private(name: str, namespace: str, value: str) -> bool:
    """Whether a property, a tag or a text tells where and with which camera a photograph was taken.

    name: of whichever schema. namespace: of XMP, else "". value: its text; one of more than LONGEST_TEXT
    characters does.
    """
    return bool(
        _PRIVATE_NAME.search(name)
        or _PRIVATE_SPACE.search(namespace)
        or len(value) > LONGEST_TEXT
        or _PRIVATE_TEXT.search(value)
    )


PNG_XMP = "XML:com.adobe.xmp"  # the key of XMP among a PNG's texts
TEXTS = "text"  # the key of a PNG's texts, a dict, in a photograph's `info`


class _State(enum.Enum):
    """Keys of our own in a picture's `info`. No text of a file can have one."""

    MARK = enum.auto()
    WITHOUT_PLACE = enum.auto()
    INPUT = enum.auto()


def without_place(photo: Opened) -> Opened:
    """Returns an opened photograph (`imaging.Photo`) without metadata on place, camera and owner.

    Removed are GPS, places, serial numbers, the owner's name, maker notes, image ids and paths of files, in
    EXIF, XMP, IPTC and texts; metadata that cannot be read is removed as a whole.
    """
    info = {}
    for key, value in photo.info.items():
        if key == TEXTS and isinstance(value, dict):
            short = sum(map(len, value.values())) <= LARGEST_PACKET  # more would take minutes to search
            info[TEXTS] = {name: text for name, text in value.items() if short and not _tells(name, text)}
        elif isinstance(key, _State) or not (key in ("xmp", PNG_XMP) or _tells(key, value)):
            info[key] = value
    packet = packet_of(photo.info)
    if packet is not None and (public := public_packet(packet)) is not None:
        info["xmp"] = public
    info[_State.WITHOUT_PLACE] = True
    return replace(photo, exif=_public_exif(photo.exif), info=info)


def _tells(name: str, value: Any) -> bool:
    """`tells_private` of a field of a file: text, also as bytes or as their numbers; numbers say nothing."""
    if isinstance(value, tuple) and all(isinstance(part, int) and 0 <= part < 256 for part in value):
        value = bytes(value)
    if isinstance(value, bytes):
        value = re.sub(rb"^(ASCII\0|UNICODE\0|JIS\0)", b"", value)  # begins comments of EXIF
        try:
            text = value.decode()
        except UnicodeError:
            text = value.decode("latin-1")
        value = text.replace("\0", "")  # the Latin letters of UTF-16 too
    text = value if isinstance(value, str) else ""
    return tells_private(f"{name}\n{getattr(value, 'tkey', '')}", "", text)


def renamed(photo: Opened, name: str) -> Opened:
    """Returns an opened photograph under the name that its user knows it by, which is no path here.

    Its mark still tells the digest of the file that was opened.
    """
    told = {"title": shown(name), **({} if photo.source is None else _digest(photo.source))}
    return replace(photo, source=Path(name), info=photo.info | {_State.INPUT: told})


def public_packet(packet: bytes) -> bytes | None:
    """Returns a packet of XMP without what `without_place` drops; None for one that cannot be read."""
    if (xmp := Xmp.parsed(packet)) is None:
        return None
    about = _name("rdf:about")
    for element in xmp.root.iter():
        if tells_private("about", _PREFIXES["rdf"], element.get(about, "")):
            element.set(about, "")
    xmp.strip(tells_private)
    for element in xmp.root.iter():
        element.text = None if tells_private("", "", element.text or "") else element.text
        for child in element:
            child.tail = None if tells_private("", "", child.tail or "") else child.tail
    return bytes(xmp)


def public_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Returns the tags of a film without what `without_place` drops."""
    kept = {name: text for name, text in tags.items() if name != "XMP" and not tells_private(name, "", text)}
    if (packet := public_packet(tags.get("XMP", "").encode())) is not None:
        kept["XMP"] = packet.decode()
    return kept


def _public_exif(exif: bytes | None) -> bytes | None:
    if exif is None:
        return None
    kept = Image.Exif()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of damage: what cannot be read is not written
        try:
            kept.load(exif)
            for table in (kept, kept.get_ifd(ExifTags.IFD.Exif)):
                for tag, value in [*table.items()]:
                    name = ExifTags.TAGS.get(tag, "")
                    if tag in _PRIVATE_EXIF or _tells(name, value):
                        del table[tag]
            return kept.tobytes() if len(kept) else None
        except Exception:  # whatever Pillow raises on damaged EXIF
            return None


# --- XMP ---

_PREFIXES = {
    "x": "adobe:ns:meta/",
    "rdf": "http://www.w3.org/1999/02/22-rdf-syntax-ns#",
    "xmp": "http://ns.adobe.com/xap/1.0/",
    "xmpMM": "http://ns.adobe.com/xap/1.0/mm/",
    "stEvt": "http://ns.adobe.com/xap/1.0/sType/ResourceEvent#",
    "Iptc4xmpExt": "http://iptc.org/std/Iptc4xmpExt/2008-02-29/",
}
_XML = "http://www.w3.org/XML/1998/namespace"
_AT_ONCE = 1 << 16  # characters that are parsed before the depth is looked at


def _name(short: str) -> str:
    """Returns {namespace}name for prefix:name."""
    prefix, _, local = short.partition(":")
    return f"{{{_PREFIXES[prefix]}}}{local}"


def _quoted(text: str) -> str:
    """Returns an attribute's value in quotes; line breaks too are kept."""
    return '"' + re.sub(r"[\t\n\r]", lambda found: f"&#{ord(found[0])};", escape(text)) + '"'


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def _space(name: str) -> str:
    return name[1:].rpartition("}")[0]


def packet_of(info: Mapping[str, Any]) -> bytes | None:
    """Returns the XMP of a picture's `info`, by Pillow's keys."""
    packet = info.get("xmp")
    if not isinstance(packet, bytes):  # none, or a text of that name
        text = info.get(PNG_XMP)
        packet = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    return packet if isinstance(packet, bytes) and packet.strip(b"\0 \r\n\t") else None


@dataclass
class Xmp:
    """A packet of XMP as a tree; `bytes` writes it.

    root: x:xmpmeta or rdf:RDF. prefixes: namespace -> prefix.
    """

    root: ET.Element
    prefixes: dict[str, str] = field(default_factory=lambda: {u: p for p, u in _PREFIXES.items()})
    _taken: set[str] = field(default_factory=lambda: {*_PREFIXES})

    @classmethod
    def empty(cls) -> Self:
        root = ET.Element(_name("x:xmpmeta"))
        ET.SubElement(root, _name("rdf:RDF"))
        return cls(root)

    @classmethod
    def parsed(cls, packet: bytes) -> Self | None:
        """Reads a packet; None where it is malformed, enormous, deeper than any, no XMP, or has a document
        type, which could define entities that expand without end."""
        if len(packet) > LARGEST_PACKET:
            return None
        parser, depth, found, top = ET.XMLPullParser(("start", "end", "start-ns")), 0, cls.empty(), None
        try:
            wide = packet[:2] in (b"\xff\xfe", b"\xfe\xff")
            text = packet.decode("utf-16" if wide else "utf-8-sig").strip("\0 \r\n\t")
            if "<!DOCTYPE" in text or "<!ENTITY" in text:
                return None
            text = re.sub(r"^<\?xml\s[^>]*\?>", "", text)
            for start in range(0, len(text), _AT_ONCE):
                parser.feed(text[start : start + _AT_ONCE])
                for event, value in parser.read_events():
                    if event == "start-ns":
                        found._know(*value)
                        continue
                    top = value if top is None else top
                    depth += 1 if event == "start" else -1
                    if depth > DEEPEST:
                        return None
            parser.close()
        except (UnicodeError, ET.ParseError, ValueError):
            return None
        if top is None:
            return None
        found.root = top
        return found if found._rdf() is not None else None

    def __bytes__(self) -> bytes:
        spaces = "".join(f" xmlns:{prefix}={_quoted(uri)}" for uri, prefix in self.prefixes.items())
        parts: list[str] = []
        self._write(self.root, parts, spaces)
        text = "".join(parts)
        packet = f'<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>{text}<?xpacket end="w"?>'
        return packet.encode("utf-8", "replace")

    def _know(self, prefix: str, uri: str) -> None:
        """Keeps a document's prefix for a namespace that has none yet."""
        if uri not in self.prefixes and uri != _XML:
            free = prefix and prefix not in self._taken
            self.prefixes[uri] = prefix if free else f"{prefix or 'ns'}-{len(self.prefixes)}"
            self._taken.add(self.prefixes[uri])

    def _write(self, element: ET.Element, parts: list[str], spaces: str = "") -> None:
        tag = self._short(element.tag)
        attributes = [f" {self._short(name)}={_quoted(text)}" for name, text in element.attrib.items()]
        parts += (f"<{tag}{spaces}", *attributes, ">")
        if element.text:
            parts.append(escape(element.text, quote=False))
        for child in element:
            self._write(child, parts)
            if child.tail:
                parts.append(escape(child.tail.strip(), quote=False))
        parts.append(f"</{tag}>")

    def _short(self, name: str) -> str:
        uri, _, local = name[1:].rpartition("}") if name.startswith("{") else ("", "", name)
        return f"{'xml' if uri == _XML else self.prefixes[uri]}:{local}" if uri else local

    def _rdf(self) -> ET.Element | None:
        return self.root if self.root.tag == _name("rdf:RDF") else self.root.find(_name("rdf:RDF"))

    def get(self, short: str) -> str | None:
        """Returns a simple property, such as "xmp:CreatorTool"."""
        for description in self._rdf():
            if (value := description.get(_name(short))) is not None:
                return value
            if (element := description.find(_name(short))) is not None:
                return element.get(_name("rdf:resource")) or (element.text or "").strip() or None
        return None

    def remove(self, short: str) -> None:
        for description in self._rdf():
            description.attrib.pop(_name(short), None)
            for element in description.findall(_name(short)):
                description.remove(element)

    def set(self, short: str, value: str) -> None:
        self.remove(short)
        self._description().set(_name(short), value)

    def _description(self) -> ET.Element:
        """Returns the first description of the file itself, made where there is none."""
        first = self._rdf().find(_name("rdf:Description"))
        if first is None:
            first = ET.SubElement(self._rdf(), _name("rdf:Description"), {_name("rdf:about"): ""})
        return first

    def history(self) -> list[dict[str, str]]:
        """Returns the events of xmpMM:History by their fields' names, from the first."""
        return [_event(entry) for entry in self._entries() or ()]

    def _entries(self) -> ET.Element | None:
        for description in self._rdf():
            if (history := description.find(_name("xmpMM:History"))) is not None:
                return next(iter(history), None)
        return None

    def strip(self, unwanted: Callable[[str, str, str], bool]) -> None:
        """Removes elements and attributes whose local name, namespace and text are unwanted, and the prefixes
        of namespaces that nothing has any more."""
        for element in self.root.iter():
            for name in [n for n, text in element.attrib.items() if unwanted(_local(n), _space(n), text)]:
                del element.attrib[name]
            for child in [c for c in element if unwanted(_local(c.tag), _space(c.tag), c.text or "")]:
                element.remove(child)
        names = {name for element in self.root.iter() for name in (element.tag, *element.attrib)}
        used = {*map(_space, names), *_PREFIXES.values()}
        self.prefixes = {uri: prefix for uri, prefix in self.prefixes.items() if uri in used}

    def add_event(self, event: Mapping[str, str]) -> None:
        """Adds to the history; of ours, the oldest go, and all but the latest lose their records."""
        entries = self._entries()
        if entries is None:
            self.remove("xmpMM:History")
            history = ET.SubElement(self._description(), _name("xmpMM:History"))
            entries = ET.SubElement(history, _name("rdf:Seq"))
        entry = ET.SubElement(entries, _name("rdf:li"))
        ET.SubElement(
            entry, _name("rdf:Description"), {_name(f"stEvt:{name}"): value for name, value in event.items()}
        )
        self.shorten(MOST_ENTRIES, MOST_RECORDS)

    def shorten(self, entries: int, records: int) -> None:
        """Leaves the latest of our entries in the history, and the records of the latest of these."""
        listed = self._entries()
        ours = [entry for entry in listed or () if is_ours(_event(entry).get("softwareAgent"))]
        for entry in ours[: max(0, len(ours) - entries)]:
            listed.remove(entry)
        for entry in ours[: max(0, len(ours) - records)]:
            for part in entry.iter():
                part.attrib.pop(_name("stEvt:parameters"), None)


def _event(entry: ET.Element) -> dict[str, str]:
    """Returns the fields of a history's entry, in each of the forms that RDF has for them."""
    event: dict[str, str] = {}
    for part in (entry, *entry.findall(_name("rdf:Description"))):
        event |= {_local(name): value for name, value in part.attrib.items() if _is_event(name)}
        event |= {_local(child.tag): child.text or "" for child in part if _is_event(child.tag)}
    return event


def _is_event(name: str) -> bool:
    return name.startswith(f"{{{_PREFIXES['stEvt']}}}")


def is_ours(tool: str | None) -> bool:
    """Whether a tool's name is ours, of whichever version."""
    return tool is not None and tool.split(" ")[0] == "magicedit"


# --- marks ---


@dataclass(frozen=True)
class Mark:
    """What an output says of its edit.

    record: JSON-ready: model, fingerprint, input, and what was asked. source: the file that was edited.
    keeps: whether what that file says of itself in its own manifests is kept.
    """

    record: Mapping[str, Any]
    source: Path | None = None
    keeps: bool = True

    @classmethod
    def of_edit(
        cls, source: Path | None, info: Mapping[str, Any] | None = None, *, keeps: bool = True, **record: Any
    ) -> Self:
        """Returns the mark of an edit of a file, whose name and SHA-256 join the record.

        info: of its `imaging.Photo`; what `without_place` took out is not kept elsewhere either.
        """
        info = info or {}
        told = info.get(_State.INPUT)
        if told is None and source is not None:
            told = {"title": shown(source.name), **_digest(source)}
        record = {name: value for name, value in record.items() if value is not None}
        known = {} if told is None else {"input": told}
        return cls(record | known, source, keeps and not info.keys() & {_State.WITHOUT_PLACE, _State.INPUT})

    @classmethod
    def of_pictures(cls, images: Iterable[Image.Image]) -> Self | None:
        """Returns the mark of what is made of several pictures; None where none of them is edited."""
        marks = [image.info[_State.MARK] for image in images if _State.MARK in image.info]
        if not marks:
            return None
        first = dict(marks[0].record)
        if len(marks) > 1:
            first["pictures"] = [mark.record.get("faces") for mark in marks]
            first.pop("faces", None)
        return cls(first, marks[0].source, all(mark.keeps for mark in marks))

    @classmethod
    def carried(cls, image: Image.Image) -> Self | None:
        """Returns the mark that `put_on` gave a picture."""
        return image.info.get(_State.MARK)

    def put_on(self, image: Image.Image) -> None:
        """Marks a picture, so that `imaging.save_image` writes it; also in the XMP of its `info`."""
        image.info["xmp"] = self.packet(packet_of(image.info))
        image.info.pop(PNG_XMP, None)
        image.info[_State.MARK] = self

    def packet(self, existing: bytes | None = None) -> bytes:
        """Returns a packet of XMP with this mark, merged into an existing one.

        One that cannot be read is replaced, and the history's entry says so.
        """
        xmp = None if existing is None else Xmp.parsed(existing)
        record = dict(self.record)
        if existing is not None and xmp is None:
            record["replaced"] = "the input's XMP, which could not be read"
        xmp = Xmp.empty() if xmp is None else xmp
        for name, short in (("tool_before", "xmp:CreatorTool"), ("source_type_before", _SOURCE_TYPE)):
            before = xmp.get(short)
            if before is not None and before != EDITED and not is_ours(before):
                record[name] = before
        xmp.remove("xmp:Thumbnails")  # they show the face as it was
        xmp.set(_SOURCE_TYPE, EDITED)
        xmp.set("xmp:CreatorTool", TOOL)
        # without the time: the same edit gives the same file
        xmp.add_event({"action": "edited", "softwareAgent": TOOL, "parameters": record_text(record)})
        return bytes(xmp)


_SOURCE_TYPE = "Iptc4xmpExt:DigitalSourceType"


def record_text(record: Mapping[str, Any]) -> str:
    """Returns a record as JSON; of a long one, what was asked of each face is left out."""
    text = json.dumps(record, ensure_ascii=True, separators=(",", ":"), default=str)
    if len(text) <= LARGEST_RECORD:
        return text
    short = ("model", "fingerprint", "input", "command", "replaced")
    kept = {name: record[name] for name in short if name in record}
    return json.dumps(kept | {"shortened": True}, separators=(",", ":"), default=str)


def fitting(packet: bytes, limit: int) -> bytes | None:
    """Returns a packet of at most that many bytes, with a shorter history of ours; None where that fails."""
    if len(packet) > limit and (xmp := Xmp.parsed(packet)) is not None:
        xmp.shorten(1, 1)
        packet = bytes(xmp)
    return packet if len(packet) <= limit else None


def _digest(path: Path) -> dict[str, str]:
    try:
        return {"sha256": remembered_sha256(path)}
    except OSError:  # gone, or no file: then the name alone is told
        return {}


# --- in files ---

XMP_BOX = bytes.fromhex("BE7ACFCB97A942E89C71999491E3AFAC")  # of MP4
_GIF_XMP = b"\x21\xff\x0bXMP DataXMP"
_GIF_END = bytes([1, *range(255, -1, -1), 0])  # leads a reader of blocks out of the packet
_SCANNED = 8_000_000  # bytes at either end of a file of another kind, searched for a packet


@contextlib.contextmanager
def finishing(file: IO[bytes], path: Path, mark: Mark | None) -> Iterator[IO[bytes]]:
    """The last gate of an output: yields a file to encode into; where the mark is signed, that is copied into
    `file` with a signature. path: of the output. OutputError where signing fails."""
    if mark is None or not signed(path):
        yield file
        return
    with tempfile.TemporaryFile() as content:
        yield content
        add_signature(content, file, path, mark)


def signed(path: Path) -> bool:
    """Whether a marked output of this name is signed."""
    return path.suffix.lower() in signing.FORMATS and signing.signs()


def add_signature(content: IO[bytes], file: IO[bytes], path: Path, mark: Mark) -> None:
    """Copies a marked output into `file`, which can be read too, with a signature. OutputError where that
    fails."""
    parent = None if mark.source is None else signing.Parent(mark.source, mark.keeps)
    record = json.loads(record_text(mark.record))
    signing.sign(content, file, path.suffix.lower(), shown(path.name), record, EDITED, parent)


def add_to_gif(file: IO[bytes], packet: bytes) -> None:
    """Adds a packet before the end of a written GIF."""
    file.seek(-1, 2)
    file.write(_GIF_XMP + packet + _GIF_END + b"\x3b")


def add_to_film(file: IO[bytes], packet: bytes) -> None:
    """Adds a packet behind a written MP4 or MOV, as a box of its own."""
    file.seek(0, 2)
    file.write(struct.pack(">I4s", 24 + len(packet), b"uuid") + XMP_BOX + packet)


def read_packet(file: IO[bytes]) -> bytes | None:
    """Returns the XMP of an image or a film, from its start; None where there is none."""
    file.seek(0)
    head = file.read(12)
    if head.startswith(b"\x89PNG"):
        return _png_packet(file)
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
        if (packet := _film_packet(file)) is not None:
            return packet
    elif not head.startswith((b"GIF8", b"\x1aE\xdf\xa3")):
        file.seek(0)
        with contextlib.suppress(Exception), warnings.catch_warnings():  # whatever Pillow raises
            warnings.simplefilter("ignore")
            with Image.open(file, formats=("JPEG", "WEBP", "TIFF", "AVIF")) as image:
                return packet_of(image.info)
    return _scanned_packet(file)


def _png_packet(file: IO[bytes]) -> bytes | None:
    file.seek(8)
    while len(head := file.read(8)) == 8:
        size, kind = struct.unpack(">I4s", head)
        if kind == b"iTXt" and size <= LARGEST_PACKET:
            key, _, rest = file.read(size).partition(b"\0")
            if key == PNG_XMP.encode() and len(rest) > 2:
                text = rest[2:].split(b"\0", 2)[-1]  # behind language and translated key
                with contextlib.suppress(zlib.error):
                    return zlib.decompressobj().decompress(text, LARGEST_PACKET) if rest[0] else text
            file.seek(4, 1)
        else:
            file.seek(size + 4, 1)
    return None


def _film_packet(file: IO[bytes]) -> bytes | None:
    """The packet of an ISO base media file: a box of its own, or among the user data of QuickTime."""
    end = file.seek(0, 2)
    waiting = [(0, end)]
    for _ in range(10_000):  # boxes; no film has as many here
        if not waiting:
            return None
        start, stop = waiting.pop()
        file.seek(start)
        head = file.read(32)
        if stop - start < 8 or len(head) < 8:
            continue
        size, kind = struct.unpack(">I4s", head[:8])
        inside = 8
        if size == 1 and len(head) >= 16:
            size, inside = struct.unpack(">Q", head[8:16])[0], 16
        size = stop - start if size == 0 else size
        if size < inside or size > stop - start:
            continue
        waiting.append((start + size, stop))
        uuid = kind == b"uuid" and head[inside : inside + 16] == XMP_BOX
        if (uuid or kind == b"XMP_") and size <= LARGEST_PACKET:
            file.seek(start + inside + 16 * uuid)
            return file.read(size - inside - 16 * uuid)
        if kind in (b"moov", b"udta"):
            waiting.append((start + inside, start + size))
    return None


def _scanned_packet(file: IO[bytes]) -> bytes | None:
    """The first packet at either end of a file of any kind, found by the instructions around it."""
    end = file.seek(0, 2)
    for start in sorted({0, max(0, end - _SCANNED)}):
        file.seek(start)
        content = file.read(_SCANNED)
        begin = content.find(b"<?xpacket begin=")
        close = content.find(b"<?xpacket end=", begin)
        if 0 <= begin < close:
            return content[begin : content.find(b"?>", close) + 2]
    return None


# --- what a file says ---

# Of the digital source types of IPTC, those of pictures as they were taken
_TAKEN = ("digitalCapture", "computationalCapture", "negativeFilm", "positiveFilm", "print", "screenCapture")
_NO_EDITS = ("created", "copied", "managed", "printed", "published", "opened", "placed")


@dataclass(frozen=True)
class Told:
    """What a file says of itself.

    Attributes:
        edited: whether it says that it was edited or made by a program.
        source_type: of IPTC's digital source types, a URL.
        tool: what it was last edited with.
        edits: by tool, action and time, from the first; ours with model, request and input.
        signature: "none", "valid" (nothing was changed since; nobody vouches for the signer's name),
            "trusted" (and the signer is among the trusted), "self-signed" (valid, by a certificate that
            magicedit made), "tampered", "unreadable", or "not checked" without the extra `c2pa`.
        signer: name in the signature.
        inputs: titles of the files it was made from by its manifest, and whether they were signed.
        remarks: of what could not be read.
    """

    path: Path
    edited: bool
    source_type: str | None
    tool: str | None
    edits: list[dict[str, Any]]
    signature: str
    signer: str | None
    inputs: list[dict[str, Any]]
    remarks: list[str]

    def to_json(self) -> dict[str, Any]:
        return {
            "file": shown(self.path),
            "edited": self.edited,
            "digital_source_type": self.source_type,
            "tool": self.tool,
            "edits": self.edits,
            "signature": self.signature,
            "signer": self.signer,
            "inputs": self.inputs,
            "remarks": self.remarks,
        }


def tell(path: str | Path) -> Told:
    """Returns what an image or a film says of itself; ImageError where it cannot be read."""
    path, remarks, edits = Path(path), [], []
    signature, signer, inputs, source_type, tool = "none", None, [], None, None
    with opened(path, ImageError) as file:
        packet = read_packet(file)
        xmp = None if packet is None else Xmp.parsed(packet)
        if xmp is not None:
            source_type, tool = plain(xmp.get(_SOURCE_TYPE)), plain(xmp.get("xmp:CreatorTool"))
            edits = [_edit(event) for event in xmp.history()]
        elif packet is not None:
            remarks.append("its XMP cannot be read")
        if signing.installed():
            try:
                report = signing.manifests(file, path.suffix.lower())
            except OutputError as error:
                report, signature = None, "unreadable"
                remarks.append(f"its signature cannot be read: {error}")
            if report is not None:
                signature, signer, inputs, actions = _of_manifest(report)
                source_types = [a["digitalSourceType"] for a in actions if a.get("digitalSourceType")]
                source_type = source_type or plain(next(reversed(source_types), None))
                if not any(edit["action"] not in _NO_EDITS for edit in edits):
                    edits += [_edit_of(action) for action in actions]
        else:
            signature = "not checked"
            remarks.append(f"signatures are not checked: {installing('c2pa')}")
    made = [edit for edit in edits if edit["action"] not in _NO_EDITS]
    tool = next((edit["tool"] for edit in reversed(made) if edit["tool"]), tool)
    taken = source_type is None or source_type.rpartition("/")[2] in _TAKEN
    return Told(
        path, bool(made) or not taken, source_type, tool, edits, signature, signer, inputs, remarks
    )  # fmt: skip


def _edit(event: Mapping[str, str]) -> dict[str, Any]:
    """An event of a history, ours with its record."""
    told = {"action": event.get("action"), "tool": event.get("softwareAgent"), "when": event.get("when")}
    record: Any = {}
    if is_ours(told["tool"]):
        with contextlib.suppress(ValueError, RecursionError):
            record = json.loads(event.get("parameters", "{}"))
    return plain((record if isinstance(record, dict) else {}) | told)


def _edit_of(action: Mapping[str, Any]) -> dict[str, Any]:
    """An action of a manifest, as `_edit` tells events."""
    agent = action.get("softwareAgent")
    if isinstance(agent, dict):
        agent = " ".join(str(agent[part]) for part in ("name", "version") if part in agent)
    name = str(action.get("action")).removeprefix("c2pa.")
    return plain(action.get("record", {}) | {"action": name, "tool": agent, "when": action.get("when")})


def _of_manifest(report: Mapping[str, Any]) -> tuple[str, str | None, list[dict], list[dict]]:
    """Returns the signature's state and signer, the inputs and the actions of the active manifest."""
    manifest = report.get("manifests", {}).get(report.get("active_manifest"), {})
    told = manifest.get("signature_info", {})
    signer = plain(", ".join(told[part] for part in ("issuer", "common_name") if told.get(part))) or None
    state = {"Invalid": "tampered", "Trusted": "trusted"}.get(report.get("validation_state"), "valid")
    if state == "valid" and told.get("issuer") == signing.SELF_SIGNED:
        state = "self-signed"
    inputs = [
        {"title": plain(part.get("title")), "signed": "active_manifest" in part}
        for part in manifest.get("ingredients", ())
    ]
    found = {part.get("label", ""): part.get("data") for part in manifest.get("assertions", ())}
    lists = [data for label, data in found.items() if label.startswith("c2pa.actions")]
    actions = [a for data in lists if isinstance(data, dict) for a in data.get("actions", ())]
    actions = [action for action in actions if isinstance(action, dict)]
    for action in actions:
        if action.get("action") == "c2pa.edited" and isinstance(found.get(signing.RECORD), dict):
            action["record"] = found[signing.RECORD]
    return state, signer, inputs, actions


def plain(value: Any, levels: int = 6) -> Any:
    """Returns what a file says as JSON of few levels, in which no text can steer a terminal."""
    if isinstance(value, str):
        return "".join(letter if letter.isprintable() else "?" for letter in shown(value))
    if isinstance(value, dict) and levels:
        return {plain(str(name)): plain(part, levels - 1) for name, part in [*value.items()][:100]}
    if isinstance(value, list) and levels:
        return [plain(part, levels - 1) for part in value[:100]]
    return value if value is None or (isinstance(value, int | float) and math.isfinite(value)) else "..."
