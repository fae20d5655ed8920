"""What of a photograph's metadata may stay when its pixels change, and what it says of colours."""

import contextlib
import io
import re
import struct
from typing import Any

import numpy as np

from magicedit.image_files import MOST_EXIF, Tags, check_directories, jpeg_segments
from magicedit.provenance import Xmp

ORIENTATION = 274
_PREFIX = b"Exif\0\0"
_STRIPS = {273: 279, 324: 325, 513: 514}  # tags of where a picture lies -> of its bytes
# Namespaces of XMP: what announces a picture or a film beside the pixels, which is not kept, and thumbnails
_ANNOUNCING = {
    "http://ns.adobe.com/hdr-gain-map/1.0/": "gain map",
    "http://ns.google.com/photos/1.0/container/": "gain map or film",
    "http://ns.google.com/photos/1.0/container/item/": "gain map or film",
    "http://ns.apple.com/HDRGainMap/1.0/": "gain map",
    "http://ns.apple.com/pixeldatainfo/1.0/": "gain map",
    "http://ns.google.com/photos/1.0/depthmap/": "depth map",
    "http://ns.google.com/photos/1.0/image/": "second picture",
    "http://ns.google.com/photos/1.0/audio/": "sound",
    "http://ns.google.com/photos/dd/1.0/device/": "depth map",
    "http://ns.adobe.com/xmp/note/": "second part of XMP",
}
_THUMBNAILS = ("http://ns.adobe.com/xap/1.0/", "Thumbnails")
_CAMERA = "http://ns.google.com/photos/1.0/camera/"
_FILM = ("MotionPhoto", "MicroVideo")
_XMP_ORIENTATION = re.compile(
    rb"""\stiff:Orientation\s*=\s*(?:"[^"<>]{0,99}"|'[^'<>]{0,99}')"""
    rb"""|<tiff:Orientation\b[^>]{0,99}(?:/>|>.{0,99}?</tiff:Orientation\s{0,99}>)""",
    re.DOTALL,
)

# By H.273: x, y of red, green, blue and white
_D65 = (0.3127, 0.3290)
_PRIMARIES = {
    1: (0.640, 0.330, 0.300, 0.600, 0.150, 0.060, *_D65),
    5: (0.640, 0.330, 0.290, 0.600, 0.150, 0.060, *_D65),
    6: (0.630, 0.340, 0.310, 0.595, 0.155, 0.070, *_D65),
    9: (0.708, 0.292, 0.170, 0.797, 0.131, 0.046, *_D65),
    11: (0.680, 0.320, 0.265, 0.690, 0.150, 0.060, 0.314, 0.351),
    12: (0.680, 0.320, 0.265, 0.690, 0.150, 0.060, *_D65),
}
# Parameters of ICC's parametric curves: gamma, a, b, c, d
_SRGB_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
_TELEVISION = (1 / 0.45, 1 / 1.099, 0.099 / 1.099, 1 / 4.5, 0.081)
_TRANSFERS = {1: _TELEVISION, 4: (2.2,), 5: (2.8,), 6: _TELEVISION, 8: (1.0,), 13: _SRGB_CURVE}
_TRANSFERS |= dict.fromkeys((14, 15), _TELEVISION)
HDR_TRANSFERS = {16: "PQ", 18: "HLG"}


def check_exif(exif: bytes) -> None:
    """Raises ValueError where reading EXIF would take all memory."""
    check_directories(io.BytesIO(_without_prefix(exif)), MOST_EXIF)


def _without_prefix(exif: bytes) -> bytes:
    while exif.startswith(_PREFIX):
        exif = exif.removeprefix(_PREFIX)
    return exif


def upright_exif(exif: bytes) -> bytes:
    """EXIF without thumbnails and previews, which show the photograph as it was, and as upright.

    Nothing else moves, since makers' notes point to places of their own: pictures become zeros.
    """
    data = bytearray(_without_prefix(exif))
    tags = Tags(io.BytesIO(bytes(data)))
    first = tags.directory(tags.first)
    for entry in first.entries:
        if entry[0] == ORIENTATION and (size := {3: 2, 4: 4, 8: 2, 9: 4}.get(entry[1])) and entry[2]:
            place = min(tags.place(entry), len(data) - size)
            data[place : place + size] = (1).to_bytes(size, "little" if tags.order == "<" else "big")
    cleared = []
    at, seen = first.next, {0, tags.first}
    while at not in seen and at < len(data):
        seen.add(at)
        directory = tags.directory(at)
        by_tag = {entry[0]: entry for entry in directory.entries}
        for where, how_long in _STRIPS.items():
            if where in by_tag and how_long in by_tag:
                begin = tags.value(by_tag[where])
                cleared.append((begin, begin + tags.value(by_tag[how_long])))
        cleared.append((directory.at, directory.end + 4))
        at = directory.next
    if first.next and first.end + 4 <= len(data):
        data[first.end : first.end + 4] = bytes(4)
    cleared += _jpegs(bytes(data))
    for begin, end in sorted(cleared, reverse=True):
        begin, end = max(8, begin), min(end, len(data))
        if begin >= end:
            continue
        if end == len(data):
            del data[begin:]
        else:
            data[begin:end] = bytes(end - begin)
    return _PREFIX + bytes(data)


def _jpegs(data: bytes) -> list[tuple[int, int]]:
    """Begin and end of the JPEG pictures in EXIF, also those of makers' notes."""
    found, at = [], data.find(b"\xff\xd8\xff")
    while at >= 0:
        segments = list(jpeg_segments(data, at))
        end = at + 3
        if any(code == 0xDA for code, _, _ in segments):
            end = segments[-1][2] if segments[-1][0] == 0xD9 else len(data)
        found.append((at, end))
        at = data.find(b"\xff\xd8\xff", end)
    return found


def upright_xmp(xmp: bytes) -> bytes:
    """XMP that does not say the orientation, which has been applied; in UTF-8."""
    if xmp[:2] in (b"\xff\xfe", b"\xfe\xff") or xmp[:3] == b"\xef\xbb\xbf":
        with contextlib.suppress(UnicodeError):
            text = xmp.decode("utf-8-sig" if xmp[:1] == b"\xef" else "utf-16")
            xmp = re.sub(r"^\s*<\?xml\s[^>]*\?>", "", text).encode()
    return _XMP_ORIENTATION.sub(b"", xmp)


def true_xmp(xmp: bytes) -> tuple[bytes | None, list[str]]:
    """XMP without thumbnails and without the announcement of what is not kept beside the pixels, and the
    names of that; None for XMP that announces something and cannot be read."""
    uris = [*_ANNOUNCING, _CAMERA]
    if not any(uri.encode() in xmp for uri in uris) and _THUMBNAILS[1].encode() not in xmp:
        return xmp, []
    if (parsed := Xmp.parsed(xmp)) is None:
        return None, ["XMP"]
    names: list[str] = []

    def lost(local: str, uri: str, text: str) -> bool:
        if name := _name_if_lost(uri, local):
            names.append(name)
        return name is not None

    parsed.strip(lost)
    return bytes(parsed), list(dict.fromkeys(names))


def _name_if_lost(uri: str, local: str) -> str | None:
    if uri == _CAMERA and local.startswith(_FILM):
        return "film"
    return "thumbnail" if (uri, local) == _THUMBNAILS else _ANNOUNCING.get(uri)


def profile_of(cicp: tuple[int, int, int, int]) -> bytes | None:
    """An ICC profile of the colours that a file states by numbers of H.273; None for sRGB and for numbers
    that mean nothing here."""
    primaries, transfer, _, full = cicp
    if (primaries, transfer) == (1, 13) or not full:
        return None
    if primaries not in _PRIMARIES or transfer not in _TRANSFERS:
        return None
    return matrix_profile(_PRIMARIES[primaries], _TRANSFERS[transfer])


def stated_profile(info: dict[str, Any]) -> bytes | None:
    """An ICC profile of the colours that a file states otherwise, by "cicp", or by "gamma" and "chromaticity"
    of a PNG; None where these say sRGB or nothing."""
    if "cicp" in info:
        return profile_of(info["cicp"])
    gamma, xy = info.get("gamma"), info.get("chromaticity")
    if "srgb" in info or not gamma or xy is None or not 0.1 < gamma < 10 or min(xy) < 0.001:
        return None
    primaries = (*xy[2:8], *xy[:2])
    if np.allclose(primaries, _PRIMARIES[1], atol=0.002) and abs(gamma - 0.45455) < 0.001:
        return None  # sRGB in old words
    return matrix_profile(primaries, (1 / gamma,))


def matrix_profile(primaries: tuple[float, ...], curve: tuple[float, ...]) -> bytes:
    """An ICC profile, version 4, of three primaries, a white and a parametric curve (ICC.1:2022).

    primaries: x, y of red, green, blue and white. curve: gamma, or gamma, a, b, c, d.
    """
    xyz = np.array([[x / y, 1.0, (1 - x - y) / y] for x, y in zip(*[iter(primaries)] * 2, strict=True)])
    colours, white = xyz[:3].T, xyz[3]
    colours = colours * np.linalg.solve(colours, white)  # columns add up to the white
    bradford = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    d50 = np.array([0.9642, 1.0, 0.8249])
    adapt = np.linalg.solve(bradford, np.diag((bradford @ d50) / (bradford @ white)) @ bradford)

    def fixed(values) -> bytes:
        return b"".join(struct.pack(">i", round(float(value) * 65536)) for value in values)

    def text(words: str) -> bytes:
        return struct.pack(">4s4xII2s2sII", b"mluc", 1, 12, b"en", b"US", 2 * len(words), 28) + words.encode(
            "utf-16-be"
        )

    colours = adapt @ colours
    para = struct.pack(">4s4xHxx", b"para", 0 if len(curve) == 1 else 3) + fixed(curve)
    tags = {
        b"desc": text("Colours as stated by the file"),
        b"cprt": text("CC0"),
        b"wtpt": b"XYZ \0\0\0\0" + fixed(d50),
        b"chad": b"sf32\0\0\0\0" + fixed(adapt.flat),
        **{
            name: b"XYZ \0\0\0\0" + fixed(column)
            for name, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), colours.T, strict=True)
        },
        **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), para),
    }
    table, body, at = b"", b"", 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        content += bytes(-len(content) % 4)
        table += struct.pack(">4sII", name, at + len(body), len(content))
        body += content
    size = at + len(body)
    head = struct.pack(">I4xI4s4s4s", size, 0x04400000, b"mntr", b"RGB ", b"XYZ ")
    head += struct.pack(">6H4s", 2000, 1, 1, 0, 0, 0, b"acsp") + bytes(28) + fixed(d50)
    return head + bytes(128 - len(head)) + struct.pack(">I", len(tags)) + table + body
