"""What the estimators say about photographs warped by our muscle table: the calibration curves of its units.

    python benchmarks/muscle_calibration.py PHOTOGRAPHS [-o benchmarks/muscle_calibration.json]

PHOTOGRAPHS has one folder per identity with `neutral.jpg` in it. The first, those of validation left out, are
warped by each AU at 1 to 5 steps, at 256 px, their opened mouths filled with a donor's teeth. Changes by
MediaPipe's blendshapes and by the movement of landmarks, medians over faces, are written as data. One
commanded step should measure as one step by a scorer that sees the unit.
"""

import argparse
import json
import statistics
from pathlib import Path

import numpy as np
from machine import circumstances
from mini_quality import VALIDATION

from magicedit.action_units import NAMES, to_vector
from magicedit.faces import align, crop_face, geometric_change, load_backend
from magicedit.imaging import open_photo
from magicedit.warping import Mouth, choose_mouth, displacement_fields, warp_photo

SIZE, STRIDE = 256, 8
LEVELS = (1.0, 2.0, 3.0, 4.0, 5.0)
SCORERS = ("blendshapes", "landmarks")


def crop_of(backend, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Aligned crop and its landmarks."""
    pixels = open_photo(path).pixels
    face = backend.detect(pixels)[0]
    alignment = align(face, SIZE)
    return crop_face(pixels, alignment), alignment.apply(face.landmarks)


def rows_of(backend, pixels: np.ndarray, landmarks: np.ndarray, mouth: Mouth) -> list[dict]:
    fields = displacement_fields(landmarks, SIZE, stride=STRIDE)
    (before,) = backend.detect(pixels)
    rows = []
    for name in NAMES:
        for level in LEVELS:
            warped = warp_photo(pixels, fields, to_vector({name: level}), landmarks, mouth)
            found = backend.detect(warped)
            if found:
                after = found[0]
                rows.append({
                    "au": name, "command": level,
                    "blendshapes": round(after.action_units[name] - before.action_units[name], 3),
                    "landmarks": round(geometric_change(before.landmarks, after.landmarks)[name], 3),
                    "AU45": round(after.action_units["AU45"] - before.action_units["AU45"], 3),
                })  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photographs", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--faces", type=int, default=20)
    args = parser.parse_args()
    backend = load_backend()
    folders = [f for f in sorted(args.photographs.iterdir()) if f.is_dir() and f.name not in VALIDATION]
    rows = []
    for folder in folders[: args.faces]:
        pixels, landmarks = crop_of(backend, folder / "neutral.jpg")
        rows += rows_of(backend, pixels, landmarks, choose_mouth(landmarks))

    def median(scorer: str, name: str, level: float) -> float:
        return round(
            statistics.median(r[scorer] for r in rows if (r["au"], r["command"]) == (name, level)), 2
        )

    curves = {
        name: {scorer: [median(scorer, name, level) for level in LEVELS] for scorer in SCORERS}
        for name in NAMES
    }  # fmt: skip
    data = {**circumstances(), "faces": args.faces, "levels": LEVELS, "median_change": curves, "rows": rows}
    args.output.write_text(json.dumps(data, indent=1) + "\n")
    for name, by_scorer in curves.items():
        print(f"{name:5}", *(f"{scorer} {values}" for scorer, values in by_scorer.items()))


if __name__ == "__main__":
    main()
