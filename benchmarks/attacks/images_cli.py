"""The command line on hostile photographs, names and places: exit code 0 or 2, and one message."""

import contextlib
import io
import os
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from attacks import LONGEST_MESSAGE, Attack, images
from magicedit.cli import main

TITLE = "Images by the command line"
SECONDS = 120  # beside other work: an edit loads the model and the face's detector


def attacks(seed: int, short: bool) -> list[Attack]:
    found = [Attack(name, partial(_run, name), SECONDS) for name in CASES]
    return random.Random(seed).sample(found, 6) if short else found


def _photo(folder: Path, name: str = "photo.png", **options) -> str:
    """A public-domain photograph with one face."""
    from skimage import data

    Image.fromarray(data.astronaut()[:320, 60:380]).save(folder / name, **options)
    return name


def _file(folder: Path, name: str, content: bytes) -> str:
    (folder / name).write_bytes(content)
    return name


def _made(name: str, to: str = "photo") -> Callable[[Path], str]:
    return lambda folder: _file(folder, to, images.MADE[name]())


def _fifo(folder: Path) -> str:
    os.mkfifo(folder / "pipe.jpg")
    return "pipe.jpg"


def _link(target: str) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        (folder / "link.png").symlink_to(target)
        return "link.png"

    return make


def _alpha(folder: Path) -> str:
    from skimage import data

    pixels = data.astronaut()[:320, 60:380]
    alpha = np.full(pixels.shape[:2], 200, np.uint8)
    Image.fromarray(np.dstack([pixels, alpha]), "RGBA").save(folder / "alpha.png")
    return "alpha.png"


# name -> (makes the photograph, output, exit code; None: 0 or 2)
CASES: dict[str, tuple[Callable[[Path], str], str, int | None]] = {
    "a photograph": (_photo, "out.png", 0),
    "with alpha": (_alpha, "out.png", 0),
    "with alpha as a jpeg": (_alpha, "out.jpg", 2),
    "a browser's jpeg": (partial(_photo, name="photo.jfif", format="JPEG"), "out.jfif", 0),
    "an avif": (partial(_photo, name="photo.avif"), "out.png", 0),
    "a name that is not UTF-8": (partial(_photo, name="ph\udcffoto.png"), "out.png", 0),
    "an output that is not UTF-8": (_photo, "o\udcffut.png", 0),
    "a name with a line break": (partial(_photo, name="a\nb.png"), "out.png", 0),
    "a name like an option": (lambda folder: f"./{_photo(folder, '-o.png')}", "out.png", 0),
    "an output without a suffix": (_photo, "out", 2),
    "an output in no folder": (_photo, "missing/out.png", 2),
    "an output that is a folder": (_photo, ".", 2),
    "an output with a long name": (_photo, "o" * 300 + ".png", 2),
    "the input as output": (_photo, "photo.png", 2),
    "no such file": (lambda folder: "missing.jpg", "out.png", 2),
    "a long name": (lambda folder: "x" * 5000 + ".png", "out.png", 2),
    "a pipe": (_fifo, "out.png", 2),
    "a link to an endless file": (_link("/dev/zero"), "out.png", 2),
    "a link to itself": (_link("link.png"), "out.png", 2),
    "a file as a folder": (lambda folder: f"{_photo(folder)}/a.png", "out.png", 2),
    **{
        name: (_made(name), "out.png", 2)
        for name in (
            *("nothing", "zeros", "text", "svg", "heic without pixels", "png of 2**31", "png without rows"),
            *("jpeg of 3000 scans", "jpeg that says 65535", "tiff of values", "exif of values"),
            *("exif of long numbers", "ppm of 10**5000", "gif of comments"),
        )
    },
    "100 megapixels without a face": (_made("png of 100 megapixels"), "out.png", 2),
}


def _run(name: str, folder: Path) -> str | None:
    make, output, expected = CASES[name]
    here = Path.cwd()
    os.chdir(folder)
    try:
        photo = make(folder)
        before = {path.name for path in folder.iterdir()}
        code, said = _called(["edit", photo, "-o", output, "--au", "AU12=-2"])
        left = {path.name for path in folder.iterdir()} - before
    finally:
        os.chdir(here)
    if code not in (0, 2) or (expected is not None and code != expected):
        return f"exit code {code}, expected {expected}: {said[-300:]!r}"
    errors = [line for line in said.splitlines() if "error: " in line]
    if code == 2 and (len(errors) != 1 or len(said) > LONGEST_MESSAGE or "Traceback" in said):
        return f"exit code 2 with {len(errors)} messages of {len(said)} characters: {said[-300:]!r}"
    if code == 2 and left:
        return f"it failed and left {sorted(left)}"
    return None


def _called(arguments: list[str]) -> tuple[int, str]:
    """Exit code and standard error of the command line."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            code = main(arguments)
        except SystemExit as end:
            code = end.code
    return code, said.getvalue()
