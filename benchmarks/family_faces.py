"""Draws what each family of editors makes of the same faces: docs/images/families.jpg.

    python benchmarks/family_faces.py RUNS [--photographs FACES] [-o docs/images/families.jpg]

RUNS is a folder of trained runs as `magicedit evaluate --protocol families` takes it. A row per family whose
run is there, then the shipped `mini` and the landmark warp; for each of three synthetic portraits that no
model was trained on: itself, then happiness and surprise.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import PIL.Image
from families import shown_photos
from jury import PHOTOGRAPHS

from magicedit.cli.evaluation import open_editor
from magicedit.evaluation import load_protocol
from magicedit.evaluation.editors import answer, expresses
from magicedit.evaluation.protocol import Edit
from magicedit.faces import align, crop_face, load_backend
from magicedit.imaging import strip

EMOTIONS = ("happiness", "surprise")
SIDE = 144  # px of a face
HERE = Path(__file__).resolve().parent


def faces_of(spec: str, photographs: Path) -> list[np.ndarray]:
    """The portraits and their edits by one editor, each (SIDE, SIDE, 3); white for what it cannot express."""
    editor, tiles = open_editor(spec), []
    for photo in shown_photos(photographs):
        (face, *_) = load_backend().detect(photo.pixels)
        alignment = align(face, SIDE)
        tiles.append(crop_face(photo.pixels, alignment))
        for emotion in EMOTIONS:
            if expresses(editor, emotion):
                edited = answer(editor, photo, Edit("emotion", {}, 0, emotion))
                tiles.append(crop_face(edited, alignment))
            else:
                tiles.append(np.full((SIDE, SIDE, 3), 255, np.uint8))
    return tiles


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, metavar="RUNS")
    parser.add_argument("--photographs", type=Path, default=PHOTOGRAPHS)
    parser.add_argument("-o", "--output", type=Path, default=HERE.parent / "docs" / "images" / "families.jpg")
    args = parser.parse_args()
    runs = {v.name: args.runs / v.run for v in load_protocol("families").variants}
    specs = {name: str(run) for name, run in runs.items() if (run / "model_index.json").is_file()}
    rows = []
    for name, spec in (specs | {"mini": "mini", "warp": "warp"}).items():
        tiles = [PIL.Image.fromarray(tile) for tile in faces_of(spec, args.photographs)]
        rows.append(np.asarray(strip(tiles, [name, *[""] * (len(tiles) - 1)])))
    PIL.Image.fromarray(np.concatenate(rows)).save(args.output, quality=88)
    return 0


if __name__ == "__main__":
    sys.exit(main())
