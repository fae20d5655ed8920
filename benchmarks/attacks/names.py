"""Hostile names of files and folders through prepare and batch: nothing stops, each file is accounted for."""

import functools
import json
import os
import random
import unicodedata
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from attacks import Attack
from attacks.prepare_crashes import SIDE, Still
from magicedit.batch import JOURNAL, EditRequest, edit_folder, edit_manifest
from magicedit.data import prepare_dataset
from magicedit.files import shown

TITLE = "Hostile file names in prepare and batch"
TRIED, SHORT = (60, 6), (4, 1)  # folders for prepare and for batch
EACH = 8  # names a folder
LONGEST = 255  # bytes of a name
CALM = EditRequest(add="AU12=-3", quality="live", measure=False)

ODD = (
    *(
        b"12:30",
        b"a\\b",
        b"C:\\x",
        b"-o",
        b"--force",
        b"@names",
        b"a b ",
        b" ",
        b"a\nb",
        b"a\tb",
        b"a\rb",
        b"\x01\x7f",
    ),
    *(
        b"%s%n",
        b"{0}",
        b"{photo}",
        b"$(id)",
        b"`id`",
        b"'",
        b'"',
        b";",
        b"|",
        b"*",
        b"?",
        b"[a]",
        b"<b>",
        b"a,b",
        b"~",
    ),
    *(
        "é".encode(),
        unicodedata.normalize("NFD", "é").encode(),
        "\u202egpj".encode(),
        "\u0130".encode(),
        "ß".encode(),
    ),
    *(
        "😀".encode(),
        "\ufeff".encode(),
        "\u2028".encode(),
        b"\xe9",
        b"\xff\xfe",
        b"\xed\xa0\x80",
        b"\xc0\xaf",
        b"caf\xe9",
    ),
    *(
        b"a#muscles-1",
        b"CON",
        b"nul",
        b"a.",
        b"a..b",
        b"edits.jsonl",
        b"data",
        b"null",
        b"None",
        b"NaN",
        b"1e999",
    ),
)


def _name(rng: random.Random) -> bytes:
    """One of ODD, random bytes, or a long one; no name that the system refuses, and none that is hidden."""
    kind = rng.randrange(4)
    if kind == 0:
        text = bytes(rng.choice([b for b in range(1, 256) if b != 47]) for _ in range(rng.randint(1, 30)))
    elif kind == 1:
        text = rng.choice(ODD)[:1] * (LONGEST - 5)
    else:
        text = rng.choice(ODD)
    return (b"x" if text.startswith(b".") else b"") + text


def _names(rng: random.Random) -> list[bytes]:
    """Distinct ones, also where case does not count, which batch refuses."""
    found: dict[str, bytes] = {}
    while len(found) < EACH:
        name = _name(rng)
        found.setdefault(os.fsdecode(name).casefold(), name)
    return list(found.values())


def attacks(seed: int, short: bool) -> list[Attack]:
    prepared, edited = SHORT if short else TRIED
    rng = random.Random(seed)
    found = []
    for number in range(prepared):
        check = functools.partial(_prepare, _names(rng), _names(rng))
        found.append(Attack(f"prepare, folder {number}", check, seconds=20))
    for number in range(edited):
        found.append(Attack(f"batch, folder {number}", functools.partial(_batch, _names(rng)), seconds=60))
        check = functools.partial(_manifest, _names(rng))
        found.append(Attack(f"manifest, folder {number}", check, seconds=60))
    return found


def _prepare(people: list[bytes], names: list[bytes], folder: Path) -> str | None:
    photographs, rng = folder / "photographs", np.random.default_rng(0)
    expected = set()
    for person, name in zip([*people, b"ann"], [*names, b"plain"], strict=True):
        home = os.path.join(os.fsencode(photographs), person[:200])
        os.makedirs(home, exist_ok=True)
        pixels = rng.integers(40, 256, (SIDE, SIDE, 3), np.uint8)
        Image.fromarray(pixels).save(os.fsdecode(os.path.join(home, name + b".png")))
        expected.add(os.fsdecode(person[:200] + b"/" + name + b".png"))
    for _ in range(2):  # the second run finds everything as it is
        report = prepare_dataset(photographs, folder / "dataset", size=SIDE, backend=Still(), progress=False)
    if not report.unchanged:
        return "the second run wrote again"
    rows = [
        row for file in (folder / "dataset" / "data").glob("*") for row in pq.read_table(file).to_pylist()
    ]
    kept, left_out = {row["source"] for row in rows}, {entry["source"] for entry in report.rejected}
    missing = [shown(name) for name in expected if name not in kept and shown(name) not in left_out]
    if missing or "ann/plain.png" not in kept:
        return f"not accounted for: {missing}"
    json.loads((folder / "dataset" / "report.json").read_text("utf-8"))
    json.dumps(report.to_json(), ensure_ascii=False).encode()
    return None


@functools.cache
def _face() -> Image.Image:
    from skimage.data import astronaut

    return Image.fromarray(astronaut()[0:280, 85:365]).resize((160, 160))


def _photographs(names: list[bytes], folder: Path) -> Path:
    photographs = folder / "photographs"
    photographs.mkdir()
    for name in (*names, b"plain"):
        _face().save(os.fsdecode(os.path.join(os.fsencode(photographs), name + b".png")))
    return photographs


def _batch(names: list[bytes], folder: Path) -> str | None:
    photographs = _photographs(names, folder)
    report = edit_folder(photographs, folder / "out", CALM)
    again = edit_folder(photographs, folder / "out", CALM)
    return _judged(report, again, len(names) + 1, folder)


def _manifest(names: list[bytes], folder: Path) -> str | None:
    """Names that UTF-8 can write, decomposed on the disk and composed in the table."""
    texts = []
    for name in names:
        try:
            texts.append(unicodedata.normalize("NFC", name.decode()))
        except UnicodeDecodeError:
            continue
    texts = [text for text in texts if "\ufeff" not in text and text == text.strip()] + ["Zoë"]
    decomposed = [unicodedata.normalize("NFD", text).encode() for text in texts]
    photographs = _photographs([name for name in decomposed if len(name) < LONGEST - 4], folder)
    wanted = [text for text, name in zip(texts, decomposed, strict=True) if len(name) < LONGEST - 4]
    lines = ['"{}.png",{}.png'.format(text.replace('"', '""'), number) for number, text in enumerate(wanted)]
    with (folder / "edits.csv").open("w", encoding="utf-8", newline="") as file:
        file.write("\n".join(["photo,output", *lines]) + "\n")
    report = edit_manifest(photographs, folder / "edits.csv", folder / "out", CALM)
    again = edit_manifest(photographs, folder / "edits.csv", folder / "out", CALM)
    return _judged(report, again, len(wanted), folder)


def _judged(report, again, count: int, folder: Path) -> str | None:
    undone = [f"{shown(result.row.photo)}: {result.reason}" for result in report.of_status("failed")]
    if len(report.results) != count or undone:
        return f"{len(report.results)} of {count} rows, failed: {undone}"
    if len(again.of_status("skipped")) != count:
        return "the second run edits again"
    for line in (folder / "out" / JOURNAL).read_text("utf-8").split("\n")[:-1]:
        json.loads(line)
    json.dumps(again.to_json(), ensure_ascii=False).encode()
    return None
