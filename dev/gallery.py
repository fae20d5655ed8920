"""The pictures of docs/gallery.md: edits of synthetic people, failures among them.

    python dev/gallery.py [FACES] [-o docs/images/gallery] [--only smiles failures]

FACES holds the synthetic portraits that SHEETS names (SFHQ-T2I, MIT licence); the embedded model has not seen
them. The astronaut is NASA's portrait of Eileen Collins, public domain, as scikit-image has it. Every tile is
one edit by `mini` with its default settings and seed 0. No tile is retouched or chosen among several.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
from showcase import grid

from magicedit.action_units import EMOTIONS
from magicedit.demo import astronaut
from magicedit.editor import ExpressionEditor
from magicedit.faces import align, crop_face
from magicedit.imaging import open_photo

FACES = Path(__file__).resolve().parents[2] / "shared" / "faces" / "synthetic" / "validation"
ASTRONAUT = "astronaut"
SIDE = 208  # px a tile
MARGIN = 0.85  # the whole face fills 88 % of its tile
QUALITY = 80  # of WebP

Tile = tuple[str, dict]  # caption, and what `ExpressionEditor.edit` is asked for
ORIGINAL: Tile = ("original", {})


@dataclass(frozen=True)
class Sheet:
    """A picture of the page. rows: a face, and its tiles in order. columns: tiles side by side."""

    columns: int
    rows: Sequence[tuple[str, Sequence[Tile]]]


def added(*requests: str) -> tuple[Tile, ...]:
    return tuple((request, {"add": request}) for request in requests)


def emotions(*names: str) -> tuple[Tile, ...]:
    return tuple((name, {"emotion": name}) for name in names)


SMILES = (ORIGINAL, *added("AU12=+3"), *emotions("happiness"))
STRENGTHS = emotions(*(f"happiness:{strength}" for strength in (0.3, 0.5, 0.7, 1, 1.25)))
BROWS = added("AU1=+3,AU2=+3", "AU1=+4", "AU4=+3", "AU2L=+4", "AU9=+3")
EYES = added("AU43=5", "AU43L=5,AU6L=2,AU12L=2", "AU5=+4", "gaze_yaw=20", "gaze_pitch=15")
LIPS = added("AU15=+3", "AU12L=+3", "AU18=+4", "AU25=+3", "AU26=+4")
HEAD = added("head_yaw=-12", "head_yaw=12", "head_pitch=10", "head_pitch=-10", "head_roll=10")
TEETH = tuple(
    (f"teeth {donor}", {"add": "AU12=+4,AU25=+3", "teeth": donor}) for donor in (0, 2, 4, 6, "none")
)
CALM = (ORIGINAL, *added("AU12=-2.5,AU25=-3.4"), ("neutral", {"neutral": True}))

SHEETS: Mapping[str, Sheet] = {
    "smiles": Sheet(
        6,
        [
            ("sdxl_0032396", SMILES),
            ("schnell_0015614", SMILES),
            ("sdxl_0033391", SMILES),
            ("schnell_0013362", SMILES),
            ("sdxl_0015709", SMILES),
            ("sdxl_0017212", SMILES),
            ("schnell_0046624", SMILES),
            ("sdxl_0045428", SMILES),
        ],
    ),
    "emotions": Sheet(
        7,
        [
            (face, (ORIGINAL, *emotions(*EMOTIONS)))
            for face in ("sdxl_0032396", "sdxl_0011769", "sdxl_0041509")
        ],
    ),
    "strength": Sheet(6, [("sdxl_0015709", (ORIGINAL, *STRENGTHS))]),
    "brows": Sheet(6, [(face, (ORIGINAL, *BROWS)) for face in ("sdxl_0022958", "sdxl_0017212")]),
    "eyes": Sheet(
        6, [(face, (ORIGINAL, *EYES)) for face in ("schnell_0004691", "sdxl_0003812", "sdxl_0033391")]
    ),
    "lips": Sheet(6, [(face, (ORIGINAL, *LIPS)) for face in ("schnell_0013362", "schnell_0020485")]),
    "head": Sheet(6, [(face, (ORIGINAL, *HEAD)) for face in ("sdxl_0032396", "schnell_0046624")]),
    "teeth": Sheet(6, [("sdxl_0022958", (ORIGINAL, *TEETH))]),
    "calm": Sheet(6, [(ASTRONAUT, CALM), ("sdxl_0012827", CALM)]),
    "glasses": Sheet(
        6,
        [
            ("sdxl_0045428", (ORIGINAL, *emotions("surprise"))),
            ("sdxl_0049368", (ORIGINAL, *added("AU43=5"))),
            ("schnell_0043372", (ORIGINAL, *emotions("happiness"))),
        ],
    ),
    "failures": Sheet(
        4,
        [
            ("schnell_0023739", (ORIGINAL, *emotions("surprise"))),
            ("schnell_0054310", (ORIGINAL, *emotions("happiness"))),
            ("schnell_0019336", (ORIGINAL, *emotions("happiness"))),
            ("schnell_0009819", (ORIGINAL, *emotions("happiness"))),
            ("schnell_0026286", (ORIGINAL, *added("AU12=-4,AU25=-3"))),
            ("schnell_0009223", (ORIGINAL, *added("AU43=-5"))),
            ("sdxl_0041113", (ORIGINAL, *added("AU1=+3,AU2=+3"))),
            ("sdxl_0042683", (ORIGINAL, *added("gaze_yaw=20"))),
        ],
    ),
}


def tiles_of(editor: ExpressionEditor, photo: np.ndarray, wanted: Sequence[Tile]) -> list[np.ndarray]:
    """The largest face by each request, each (SIDE, SIDE, 3)."""
    alignment = align(editor.measure(photo)[0], SIDE, margin=MARGIN)
    edits = (editor.edit(photo, measure=False, face="largest", **request) for _, request in wanted)
    return [crop_face(np.asarray(edit.image), alignment) for edit in edits]


def draw(editor: ExpressionEditor, sheet: Sheet, faces: Path) -> PIL.Image.Image:
    tiles, captions = [], []
    for face, wanted in sheet.rows:
        photo = astronaut() if face == ASTRONAUT else open_photo(faces / f"{face}.jpg").pixels
        tiles += tiles_of(editor, photo, wanted)
        captions += [caption for caption, _ in wanted]
    return grid(tiles, captions, sheet.columns)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("faces", type=Path, nargs="?", default=FACES, metavar="FACES")
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/images/gallery"))
    parser.add_argument("--only", nargs="+", choices=SHEETS, metavar="NAME", help="sheets to draw")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    editor = ExpressionEditor.from_pretrained("mini")
    for name in args.only or SHEETS:
        path = args.output / f"{name}.webp"
        draw(editor, SHEETS[name], args.faces).save(path, quality=QUALITY, method=6)
        print(f"{path}  {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
