"""Outputs of every kind say that they were edited, by what and from what; what they say survives and costs
little; `verify` answers for any file."""

import io
import json
import os
import random
import time
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from attacks import Attack, typed
from magicedit import signing
from magicedit.imaging import (
    Photo,
    before_after,
    open_photo,
    photo_to_image,
    save_animation,
    save_image,
    strip,
)
from magicedit.provenance import EDITED, TOOL, Mark, Xmp, tell, without_place

TITLE = "Outputs marked as edited"
IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff")
FILMS = (".mp4", ".mov", ".mkv")
PROMISED = 0.030  # seconds of processor time for a mark
BOUND = 10  # times that; other work on the machine counts too
PRIVATE = ("SERIAL0815", "OWNER0815", "48,51.5N", "PLACE0815", "/home/SECRET")


def attacks(seed: int, short: bool) -> list[Attack]:
    random_ = random.Random(seed)
    found = [
        *(Attack(f"{mode} as {suffix}", partial(saved, mode, suffix)) for mode in MODES for suffix in IMAGES),
        *(Attack(f"saved again, {a} to {b}", partial(again, a, b)) for a in IMAGES[:5] for b in IMAGES[:5]),
        *(Attack(f"row of pictures as {suffix}", partial(row, suffix)) for suffix in IMAGES),
        Attack("animation", animation),
        *(Attack(f"pictures as {suffix}", partial(film, suffix)) for suffix in FILMS),
        *(Attack(f"without place as {suffix}", partial(private, suffix)) for suffix in IMAGES),
        *(Attack(f"forged {suffix}", partial(forged, suffix)) for suffix in (*IMAGES, ".gif", *FILMS[:2])),
        *(
            Attack(f"cost of {suffix}", partial(cost, suffix), seconds=60)
            for suffix in (".jpg", ".png", ".webp")
        ),
    ]
    if short:
        found = random_.sample(found, 24)
    packets = list(strange_packets(random.Random(seed), 20 if short else 300))
    found += [Attack(f"XMP {name}", partial(strange, packet)) for name, packet in packets]
    kinds = (*IMAGES[:5], ".gif", *FILMS)
    for number in range(20 if short else 400):
        suffix = kinds[number % len(kinds)]
        name = f"verify of a broken {suffix}, {number}"
        found.append(Attack(name, partial(broken, suffix, random_.randrange(2**32))))
    if not short:
        doors = (edit, switched_off, sweep, transfer, interpolation, folder, video, reenactment)
        found += [Attack(f"command {door.__name__}", door, seconds=120) for door in doors]
    return found


MODES = ("RGB", "RGBA", "L", "LA")
PACKET = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:exif="http://ns.adobe.com/exif/1.0/" '
    'xmlns:aux="http://ns.adobe.com/exif/1.0/aux/" xmlns:own="https://example.org/" '
    'xmlns:stRef="http://ns.adobe.com/xap/1.0/sType/ResourceRef#" '
    'xmlns:ps="http://ns.adobe.com/photoshop/1.0/" '
    'exif:GPSLatitude="48,51.5N" aux:SerialNumber="SERIAL0815" own:kept="KEPT">'
    "<ps:City>PLACE0815</ps:City><own:from stRef:filePath=\"/home/SECRET/a.psd\"/>"
    "</rdf:Description></rdf:RDF></x:xmpmeta>"
)  # fmt: skip


def photograph(folder: Path, mode: str = "RGB", size: tuple[int, int] = (96, 72), suffix: str = "") -> Photo:
    """A photograph with private metadata, opened from a file."""
    suffix = suffix or (".jpg" if mode in ("RGB", "L") else ".png")
    values = np.random.default_rng(7).integers(0, 256, (size[1] // 8, size[0] // 8, 4), dtype=np.uint8)
    image = Image.fromarray(values).resize(size, Image.Resampling.BICUBIC).convert(mode)
    exif = Image.Exif()
    exif[ExifTags.Base.Artist] = "ARTIST"
    inner = exif.get_ifd(ExifTags.IFD.Exif)
    inner[ExifTags.Base.BodySerialNumber] = inner[ExifTags.Base.ImageUniqueID] = "SERIAL0815"
    inner[ExifTags.Base.CameraOwnerName] = "OWNER0815"
    inner[ExifTags.Base.MakerNote] = b"MAKER SERIAL0815"
    exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSProcessingMethod] = b"PLACE0815"
    path = folder / f"photo{suffix}"
    image.info.update(exif=exif.tobytes(), xmp=PACKET.encode())
    return open_photo(save_image(image, path))


def edited(photo: Photo) -> Image.Image:
    """The photograph with a changed pixel, marked as the editor marks."""
    pixels = photo.pixels.copy()
    pixels[0, 0] ^= 1
    faces = [{"face": 0, "requested": {"AU12": 3.0}}]
    return photo_to_image(photo, pixels, Mark.of_edit(photo.source, photo.info, model="mini", faces=faces))


def says(path: Path, inputs: str, edits: int = 1, signed: bool | None = None) -> str | None:
    """Whether `verify` says edited, by what and from what."""
    told = tell(path)
    if not told.edited or told.source_type != EDITED or told.tool != TOOL:
        return f"says edited: {told.edited}, {told.source_type}, {told.tool}"
    if len(told.edits) != edits:
        return f"tells {len(told.edits)} edits, not {edits}"
    last = told.edits[-1]
    if "model" not in last or last.get("input", {}).get("title") != inputs:
        return f"tells {json.dumps(last)[:200]}"
    signed = path.suffix in signing.FORMATS and signing.signs() if signed is None else signed
    expected = "self-signed" if signed else "none" if signing.installed() else "not checked"
    return None if told.signature == expected else f"its signature is {told.signature}, not {expected}"


def own_certificate(folder: Path) -> None:
    os.environ.setdefault(signing.CONFIG, str(folder.parent / "certificate"))


# --- every kind of output ---


def saved(mode: str, suffix: str, folder: Path) -> str | None:
    own_certificate(folder)
    if suffix in (".jpg", ".jpeg") and mode.endswith("A"):
        return typed(lambda: save_image(edited(photograph(folder, mode)), folder / f"out{suffix}"))
    photo = photograph(folder, mode)
    path = save_image(edited(photo), folder / f"out{suffix}")
    kept = open_photo(path).info.get("xmp", b"")
    return says(path, photo.source.name) or (None if b"KEPT" in kept else "the photograph's own XMP is lost")


def again(first: str, second: str, folder: Path) -> str | None:
    own_certificate(folder)
    photo = open_photo(save_image(edited(photograph(folder)), folder / f"first{first}"))
    copy = save_image(photo_to_image(photo, photo.pixels), folder / f"copy{second}")
    twice = save_image(edited(photo), folder / f"twice{second}")
    told = tell(copy)
    if not told.edited or len(told.edits) != 1:
        return f"opened and saved, it tells {len(told.edits)} edits"
    return says(twice, photo.source.name, edits=2)


def row(suffix: str, folder: Path) -> str | None:
    own_certificate(folder)
    photo = photograph(folder)
    before = photo_to_image(photo, photo.pixels)
    path = save_image(strip([before, edited(photo), edited(photo)]), folder / f"row{suffix}")
    pair = save_image(before_after(before, edited(photo)), folder / f"pair{suffix}")
    plain = save_image(before_after(before, before), folder / f"plain{suffix}")
    if tell(plain).edited:
        return "two photographs beside each other say that they were edited"
    return says(path, "photo.jpg") or says(pair, "photo.jpg")


def animation(folder: Path) -> str | None:
    own_certificate(folder)
    photo = photograph(folder)
    path = save_animation([photo_to_image(photo, photo.pixels), edited(photo)], folder / "a.gif")
    with Image.open(path) as image:
        frames = image.n_frames
    return says(path, "photo.jpg") or (None if frames == 2 else f"it has {frames} pictures")


def film(suffix: str, folder: Path) -> str | None:
    from magicedit.video import Video, save_film

    own_certificate(folder)
    path = save_film([edited(photograph(folder))] * 3, folder / f"film{suffix}", 0.1)
    Video(path)
    return says(path, "photo.jpg")


def private(suffix: str, folder: Path) -> str | None:
    own_certificate(folder)
    photo = without_place(open_photo(save_image(edited(photograph(folder)), folder / "signed.jpg")))
    content = save_image(edited(photo), folder / f"out{suffix}").read_bytes()
    if left := [text for text in PRIVATE if text.encode() in content]:
        return f"still has {', '.join(left)}"
    kept = all(text in content for text in (b"ARTIST", b"KEPT"))
    return says(folder / f"out{suffix}", "signed.jpg", edits=2) if kept else "lost the artist or own XMP"


def forged(suffix: str, folder: Path) -> str | None:
    """Another request is written into a signed file."""
    own_certificate(folder)
    if not signing.signs():
        return None
    photo, path = photograph(folder), folder / f"out{suffix}"
    if suffix == ".gif":
        save_animation([edited(photo)], path)
    elif suffix in FILMS:
        from magicedit.video import save_film

        save_film([edited(photo)] * 2, path, 0.1)
    else:
        save_image(edited(photo), path)
    path.write_bytes(path.read_bytes().replace(b"AU12", b"AU15"))
    state = tell(path).signature
    return None if state in ("tampered", "unreadable") else f"its signature is {state}"


def cost(suffix: str, folder: Path) -> str | None:
    """Processor time of marking and signing a photograph of 2 megapixels, beside saving it without."""
    own_certificate(folder)
    photo = photograph(folder, size=(1632, 1224))
    pixels = photo.pixels.copy()
    pixels[0, 0] ^= 1

    def seconds(marked: bool) -> float:
        began = time.process_time()
        mark = Mark.of_edit(photo.source, photo.info, model="mini") if marked else None
        save_image(photo_to_image(photo, pixels, mark), folder / f"out{suffix}")
        return time.process_time() - began

    seconds(True)  # makes the certificate and loads the library
    runs = [seconds(True) - seconds(False) for _ in range(3)]
    taken = min(runs)
    return None if taken < BOUND * PROMISED else f"a mark takes {1000 * taken:.0f} ms"


# --- hostile metadata and files ---


def strange_packets(random_: random.Random, count: int) -> Iterator[tuple[str, bytes]]:
    yield "of entities", b'<!DOCTYPE a [<!ENTITY b "' + b"c" * 99 + b'"><!ENTITY d "&b;&b;">]><a>&d;</a>'
    yield "of a file", b'<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>'
    yield "deep", b"<a>" * 100_000 + b"</a>" * 100_000
    yield "wide", PACKET.replace("<ps:City>", "<own:a/>" * 50_000 + "<ps:City>").encode()
    yield "enormous", PACKET.replace("KEPT", "x" * 8_000_000).encode()
    yield "UTF-16", PACKET.encode("utf-16")
    yield "not UTF-8", PACKET.encode() + b"\xff\xfe"
    yield "of nulls", b"\0" * 3000
    yield (
        "with many names",
        PACKET.replace(
            "<ps:City>", "".join(f'<n:a xmlns:n="u:{i}"/>' for i in range(3000)) + "<ps:City>"
        ).encode(),
    )
    for number in range(count):
        packet = bytearray(PACKET.encode())
        for _ in range(random_.randint(1, 6)):
            place = random_.randrange(len(packet))
            kind = random_.randrange(3)
            if kind == 0:
                packet[place] = random_.randrange(256)
            elif kind == 1:
                del packet[place : place + random_.randint(1, 40)]
            else:
                packet[place:place] = packet[place : place + random_.randint(1, 60)]
            packet = packet or bytearray(b"<")
        yield f"changed, {number}", bytes(packet)


def strange(packet: bytes, folder: Path) -> str | None:
    """A photograph with this XMP is edited: it says so, as one that can be read."""
    photo = open_photo(np.zeros((20, 20, 3), np.uint8))
    photo.info["xmp"] = packet
    without_place(photo)
    path = save_image(edited(photo), folder / "out.png")
    told = tell(path)
    if not told.edited or told.source_type != EDITED:
        return f"says edited: {told.edited}, {told.source_type}"
    with Image.open(path) as image:
        image.load()
        readable = Xmp.parsed(image.info["xmp"])
    return None if readable is not None else "what was written cannot be read"


@cache
def sample(suffix: str) -> bytes:
    """A marked output to break."""
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path, picture = folder / f"out{suffix}", edited(photograph(folder))
        if suffix == ".gif":
            save_animation([picture, picture], path)
        elif suffix in FILMS:
            from magicedit.video import save_film

            save_film([picture] * 2, path, 0.1)
        else:
            save_image(picture, path)
        return path.read_bytes()


def broken(suffix: str, seed: int, folder: Path) -> str | None:
    own_certificate(folder)
    random_, content = random.Random(seed), bytearray(sample(suffix))
    for _ in range(random_.randint(0, 12)):
        place = random_.randrange(len(content))
        content[place : place + random_.randint(1, 8)] = random_.randbytes(random_.randint(0, 8))
    if random_.random() < 0.3:
        del content[random_.randrange(len(content)) :]
    path = folder / f"broken{suffix if random_.random() < 0.8 else random_.choice(IMAGES)}"
    path.write_bytes(content)

    def verified() -> None:
        text = json.dumps(tell(path).to_json(), allow_nan=False)
        assert all(letter.isprintable() for letter in text)

    return typed(verified)


# --- the commands ---


def command(*words: str) -> None:
    import contextlib

    from magicedit.cli import main

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
        code = main(list(words))
    if code:
        raise RuntimeError(f"magicedit {words[0]} ended with {code}: {said.getvalue()[-300:]}")


def portrait(folder: Path, name: str = "photo.png") -> str:
    from magicedit.demo import astronaut

    own_certificate(folder)
    Image.fromarray(astronaut()).save(folder / name)
    return str(folder / name)


def edit(folder: Path) -> str | None:
    command("edit", portrait(folder), "-o", str(folder / "out.jpg"), "--au", "AU12=-2", "--no-measure")
    return says(folder / "out.jpg", "photo.png")


def switched_off(folder: Path) -> str | None:
    path = folder / "out.jpg"
    command("edit", portrait(folder), "-o", str(path), "--au", "AU12=-2", "--no-measure", "--no-mark")
    return "it is marked" if tell(path).edited else None


def sweep(folder: Path) -> str | None:
    command("sweep", portrait(folder), "-o", str(folder / "out.png"), "--au", "AU12", "--pictures", "2")
    return says(folder / "out.png", "photo.png")


def transfer(folder: Path) -> str | None:
    from magicedit.demo import astronaut

    Image.fromarray(astronaut()[:, ::-1].copy()).save(folder / "other.png")
    words = ("--from", str(folder / "other.png"), "--to", portrait(folder), "--strength", "0.1")
    command("edit", portrait(folder), "-o", str(folder / "calm.png"), "--set", "AU12=0", "--no-measure")
    command("transfer", *words[:2], "--to", str(folder / "calm.png"), "-o", str(folder / "out.webp"))
    return says(folder / "out.webp", "calm.png", edits=2)


def interpolation(folder: Path) -> str | None:
    command("edit", portrait(folder), "-o", str(folder / "calm.png"), "--set", "AU12=0", "--no-measure")
    for suffix in (".png", ".gif", ".mp4"):
        words = (str(folder / "photo.png"), str(folder / "calm.png"), "-o", str(folder / f"out{suffix}"))
        command("interpolate", *words, "--pictures", "3")
        if problem := says(folder / f"out{suffix}", "photo.png"):
            return f"{suffix}: {problem}"
    return None


def folder(folder: Path) -> str | None:
    (folder / "in").mkdir()
    for number in range(2):
        portrait(folder / "in", f"{number}.png")
    words = ("-o", str(folder / "out"), "--au", "AU12=-2", "--workers", "1")
    command("edit", str(folder / "in"), *words)
    return says(folder / "out" / "0.png", "0.png") or says(folder / "out" / "1.png", "1.png")


def clip(folder: Path) -> str:
    from magicedit.video import save_film

    with Image.open(portrait(folder)) as picture:
        return str(save_film([picture.resize((320, 320))] * 2, folder / "clip.mp4", 0.1))


def video(folder: Path) -> str | None:
    for suffix in FILMS:
        command("video", clip(folder), "-o", str(folder / f"out{suffix}"), "--au", "AU12=-2")
        if problem := says(folder / f"out{suffix}", "clip.mp4"):
            return f"{suffix}: {problem}"
    words = ("-o", str(folder / "twice.mp4"), "--au", "AU12=-1")
    command("video", str(folder / "out.mkv"), *words)
    return says(folder / "twice.mp4", "out.mkv", edits=2)


def reenactment(folder: Path) -> str | None:
    words = ("--driving", clip(folder), "-o", str(folder / "out.mov"), "--longest", "320")
    command("reenact", "--source", portrait(folder), *words)
    return says(folder / "out.mov", "photo.png")
