"""What public bug reports of neighbouring systems feed: each kind of input must yield the right value."""

import functools
import os
import random
import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from attacks import Attack
from magicedit.action_units import NAMES
from magicedit.batch.rows import rows_of_folder, rows_of_manifest
from magicedit.data.labels import match_labels, read_label_file
from magicedit.errors import MagicEditError
from magicedit.expression import Expression
from magicedit.imaging import open_photo, photo_to_image, save_image
from magicedit.request import EditRequest
from magicedit.tables import read_table
from magicedit.video import Curve, Encoding, Video
from magicedit.video.writing import Piece, PieceWriter, join
from magicedit.video_reading import to_rgb

TITLE = "Inputs of public bug reports"

# name -> how it is read, its text, the values; a str is what the error says
TABLES: dict[str, tuple[Callable[[Path], Any], str, Mapping[str, Any] | str]] = {
    "LibreFace's presence beside intensity": (
        Expression.from_csv,
        "au_12_intensity,au_25_intensity,au_12\n4.0,2.5,1\n",
        {"AU12": 4, "AU25": 2.5},
    ),
    "py-feat as an expression": (
        Expression.from_csv,
        "FaceRectX,FaceScore,AU12,AU25,input\n1,0.9,0.9,0.8,a.jpg\n",
        {"AU12": 4.5, "AU25": 4},
    ),
    "py-feat's row without a face": (
        Expression.from_csv,
        "FaceRectX,FaceScore,AU12,input\n1,0.9,,a.jpg\n",
        "no face",
    ),
    "OpenFace's -nan(ind)": (
        read_label_file,
        "filename,AU12_r\na,0.5\nb,-nan(ind)\n",
        {"a": {"AU12": 0.5}},
    ),
    "py-feat's empty name": (
        read_label_file,
        "FaceScore,AU12,input\n0.9,0.1,a\n0.9,0.95,\n",
        {"a": {"AU12": 0.5}},
    ),
    "LibreFace of 0 to 1": (read_label_file, "input,au_12_intensity\na,0.8\nb,0.1\n", "0-1 may be meant"),
    "decimal commas": (
        read_label_file,
        "filename;AU12_r;AU25_r\na;4,00;2,5\n",
        {"a": {"AU12": 4, "AU25": 2.5}},
    ),
    "Live Link Face": (
        Expression.from_csv,
        "Timecode,BlendShapeCount,MouthSmileLeft,MouthSmileRight\n12:00:00:05.000,61,0.75,0.75\n",
        {"AU12": 3.75},
    ),
    "OpenFace's time series as a curve": (
        Curve.from_csv,
        "frame, timestamp, success, AU12_r, AU12_c\n"
        "1, 0.00, 1, 0.5, 1\n3, 0.08, 1, 1.5, 1\n2, 0.04, 0, 9, 0\n",
        {"time": [0, 0.08], "AU12": [0.5, 1.5]},
    ),
    "FaceReader's log": (
        Expression.from_csv,
        "Video analysis detailed log\nFace Model:\tGeneral\n\n"
        "Video Time\tAction Unit 12 - Lip Corner Puller\tAction Unit 25\n00:00:00.000\t0.75\t0.0\n",
        {"AU12": 3.75, "AU25": 0},
    ),
    "FaceReader's letters": (
        Expression.from_csv,
        "Video Time,Action Unit 04,Action Unit 12 - Lip Corner Puller\n0:00,NotActive,D\n",
        {"AU4": 0, "AU12": 4},
    ),
    "iMotions Affdex": (
        Expression.from_csv,
        "#INFO,,\n#DATA,,\nRow,Timestamp,EventSource,Mouth Open,Smile\n1,40.0,AFFDEX,60,95.5\n",
        {"AU12": 4.775, "AU25": 3},
    ),
}


def _values(read: Any) -> dict[str, Any]:
    if isinstance(read, Curve):
        return read.to_json()
    return dict(read.values if isinstance(read, Expression) else read.intensities)


def _close(a: Any, b: Any) -> bool:
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(_close(a[key], b[key]) for key in a)
    return bool(np.allclose(a, b, atol=1e-6))


def _table(folder: Path, name: str, encoding: str) -> str | None:
    read, text, expected = TABLES[name]
    path = folder / "table.csv"
    path.write_bytes(text.encode(encoding))
    try:
        values = _values(read(path))
    except MagicEditError as error:
        return None if isinstance(expected, str) and expected in str(error) else str(error)
    return None if not isinstance(expected, str) and _close(expected, values) else f"read {values}"


def _cp1252(folder: Path) -> str | None:
    path = folder / "edits.csv"
    path.write_bytes("photo,AU12\nann/J\u00fcrgen.jpg,-2\n".encode("cp1252"))
    try:
        return f"read {read_table(path).rows}"
    except MagicEditError as error:
        return None if "save it as UTF-8" in str(error) else str(error)


def _picture() -> np.ndarray:
    """(48, 64, 3) uint8: no two orientations of it are alike."""
    y, x = np.mgrid[:48, :64]
    return np.stack([4 * x, 5 * y, 128 + 0 * x], -1).clip(0, 255).astype(np.uint8)


def _photo(path: Path, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(_picture()).save(path, "JPEG", **options)
    return path


def _names(folder: Path, written: str, lying: str) -> str | None:
    """A label file names a photograph otherwise than its file is called."""
    matched = match_labels([written], [lying])
    return None if matched == {lying: written} else f"labels matched {matched}"


def _backslashes(folder: Path) -> str | None:
    _photo(folder / "photos" / "ann" / "1.jpg")
    manifest = folder / "photos" / "edits.csv"
    manifest.write_text("photo,AU12\nann\\1.jpg,-2\n")
    (row,) = rows_of_manifest(manifest, folder / "out", EditRequest(names=NAMES), None, NAMES)
    if not (manifest.parent / row.photo).is_file():
        return f"it is looked for as {row.photo}"
    return _names(folder, "ann\\1.jpg", "ann/1.jpg")


def _batch(folder: Path) -> str | None:
    """Photographs of every suffix are listed, so that none is passed over."""
    names = ("a.jpg", "b.heif", "c.MPO", "d.jfif", "e.avif", "f.HEIC", os.fsdecode(b"\xfc.jpg"))
    for name in names:
        _photo(folder / "photos" / name)
    rows = rows_of_folder(folder / "photos", folder / "out", EditRequest(names=NAMES), None)
    missing = {*names} - {str(row.photo) for row in rows}
    return f"passed over: {sorted(missing)!r}" if missing else None


def _thumbnail(folder: Path) -> str | None:
    """The EXIF data's thumbnail shows the face as it was."""
    exif = Image.Exif()
    exif[0x010E] = "a portrait"
    thumbnail = _photo(folder / "small.jpg").read_bytes()
    content = exif.tobytes()
    exif.get_ifd(0x8769)
    exif._ifds[1] = {0x0103: 6, 0x0201: len(content) + 100, 0x0202: len(thumbnail)}
    photo = open_photo(_photo(folder / "photo.jpg", exif=exif.tobytes() + thumbnail))
    output = save_image(photo_to_image(photo, 255 - photo.pixels), folder / "out.jpg")
    return "the old thumbnail is in the output" if thumbnail in output.read_bytes() else None


def _film(
    path: Path, pictures: list[np.ndarray], codec: str, format: str, matrix: list[int] | None = None
) -> Path:
    with av.open(str(path), "w") as container:
        container.metadata.update({"title": "Holiday", "creation_time": "2024-05-01T12:00:00.000000Z"})
        stream = container.add_stream(codec, rate=25, options={"crf": "4"} if codec == "libx264" else {})
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = format
        if matrix:
            stream.set_display_matrix(matrix)
        tracks = []
        for language, disposition in (("eng", 0), ("deu", 1)) if path.suffix != ".gif" else ():
            track = container.add_stream("aac", rate=44_100, layout="mono")
            track.metadata["language"] = language
            track.disposition = av.stream.Disposition(disposition)
            tracks.append(track)
        for picture in pictures:
            kind = "rgba" if picture.shape[2] == 4 else "rgb24"
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), kind)))
        container.mux(stream.encode())
        for track in tracks:
            piece = av.AudioFrame.from_ndarray(np.zeros((1, 1764 * len(pictures)), np.int16), "s16", "mono")
            piece.sample_rate = 44_100
            container.mux(track.encode(piece))
            container.mux(track.encode())
    return path


def _copied(source: Path, output: Path) -> Path:
    """The film as the editor writes it, unedited."""
    video = Video(source)
    frames = list(video.frames())
    writer = PieceWriter(output.with_name("piece.mp4"), video.info, Encoding(4), len(frames))
    for frame in frames:
        writer.write(frame.planes, frame.pts)
    writer.close()
    pieces = [Piece(writer.path, [frame.pts for frame in frames])]
    join(pieces, frames[-1].duration, video.info, video, output, output.with_name("joined.tmp"))
    return output


def _oriented(folder: Path, turns: int, mirrored: bool) -> str | None:
    """A film is shown as its display matrix says: stored (x, y) at (a x + c y, b x + d y)."""
    a, b, c, d = [(1, 0, 0, 1), (0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0)][turns]
    a, c = (-a, -c) if mirrored else (a, c)
    shown = _picture()
    height, width = shown.shape[:2] if a else shown.shape[1::-1]
    y, x = np.mgrid[:height, :width]
    across, down = a * x + c * y, b * x + d * y
    stored = shown[down - down.min(), across - across.min()]
    matrix = [a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30]
    source = _film(folder / "in.mp4", [stored] * 3, "libx264", "yuv420p", matrix)
    video = Video(_copied(source, folder / "out.mp4"))
    for frame in video.frames():
        seen = to_rgb(frame.planes, video.info)
        if seen.shape != shown.shape or np.abs(seen.astype(int) - shown).mean() > 6:
            return "it is shown otherwise"
    return None


def _transparent(folder: Path, suffix: str, hole: bool) -> str | None:
    opaque = np.dstack([_picture(), np.full((48, 64), 255, np.uint8)])
    pictures = [Image.fromarray(opaque) for _ in range(3)]
    if hole:
        for picture in pictures:
            picture.paste((0, 0, 0, 0), (0, 0, 20, 20))
    path = folder / f"in{suffix}"
    if suffix == ".gif":
        pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=100, disposal=2)
    else:
        _film(path, [np.asarray(one) for one in pictures], "qtrle", "argb")
    told = any(frame.transparent for frame in Video(path).frames())
    return None if told == hole else f"transparency is told: {told}"


def _tags(folder: Path, source: str, suffix: str) -> str | None:
    made = _copied(
        _film(folder / f"in{source}", [_picture()] * 5, "libx264", "yuv420p"), folder / f"out{suffix}"
    )
    with av.open(str(made)) as container:
        tags = {name.lower(): value for name, value in container.metadata.items()}
        languages = [sound.metadata.get("language") for sound in container.streams.audio]
        default = [bool(sound.disposition & sound.disposition.default) for sound in container.streams.audio]
    if tags.get("title") != "Holiday" or not tags.get("creation_time", "").startswith("2024-05-01"):
        return f"tags {tags}"
    if languages not in (["eng", "deu"], ["eng", "ger"]) or default != [False, True]:
        return f"languages {languages}, default {default}"
    return None


def _named(folder: Path, name: str) -> str | None:
    path = folder / name
    path.write_bytes(_film(folder / "in.mp4", [_picture()] * 2, "libx264", "yuv420p").read_bytes())
    here = Path.cwd()
    os.chdir(folder)
    try:
        return None if len(list(Video(name).frames())) == 2 else "not all frames are read"
    finally:
        os.chdir(here)


def attacks(seed: int, short: bool) -> list[Attack]:
    draw = random.Random(seed)
    found: list[Attack] = []

    def add(title: str, check: Callable[..., str | None], **named: Any) -> None:
        found.append(Attack(title, functools.partial(check, **named), 30))

    for name in TABLES:
        for encoding in ("utf-8-sig", "utf-16", draw.choice(("utf-16-le", "utf-16-be"))):
            add(f"{name}, {encoding}", _table, name=name, encoding=encoding)
    add("cp1252", _cp1252)
    composed, decomposed = (unicodedata.normalize(form, "ann/gr\u00fcn.jpg") for form in ("NFC", "NFD"))
    add("a name composed, its file decomposed", _names, written=composed, lying=decomposed)
    add("a name decomposed, its file composed", _names, written=decomposed, lying=composed)
    add("backslashes", _backslashes)
    add("suffixes of photographs", _batch)
    add("thumbnail", _thumbnail)
    for name in ("12:30.mp4", "http:x.mp4", "%03d.mp4", os.fsdecode(b"\xfc.mp4"), "\u00fc \u65e5.mp4"):
        add(f"film called {name!a}", _named, name=name)
    for turns in range(4):
        for mirrored in (False, True):
            add(f"turned {turns}, mirrored {mirrored}", _oriented, turns=turns, mirrored=mirrored)
    for suffix in (".gif", ".mov"):
        for hole in (False, True):
            add(f"{suffix} with a hole: {hole}", _transparent, suffix=suffix, hole=hole)
    for source in (".mp4", ".mkv"):
        for suffix in (".mp4", ".mov", ".mkv"):
            add(f"tags, {source} to {suffix}", _tags, source=source, suffix=suffix)
    return draw.sample(found, 12) if short else found
