"""Compares three measurements of gaze on eyes that are moved by known angles.

    python benchmarks/gaze.py [--faces london] [-o benchmarks/gaze.json]

The eyes of each of the 52 faces of `benchmarks/jury.py` are moved by 5, 10, 15 and 20 degrees to each of four
sides, by the geometry of an edit alone (`warping.move_eyes`), and measured by

- irises: `Face.gaze`, which looks for the irises in the picture;
- landmarks: MediaPipe's irises between its eye corners;
- blendshapes: MediaPipe's `eyeLook...`, see `magicedit.arkit`.

"slope" is the median of measured over asked degrees. "error" is the median distance from slope times asked
degrees, as a standard deviation in asked degrees; "beside" that of the other axis, in measured degrees.
"spread" is the median, over photographs, of the standard deviation under mild distortions
(`magicedit.faces.distorted`). "straight" is mean and standard deviation over neutral photographs of the
London set, whose people look at the camera. "lids" are medians of changes in intensity steps at 15 degrees.
Faces whose eyes are closed or narrow in the photograph are left out.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jury import PHOTOGRAPHS, chosen_faces, validation_faces
from machine import circumstances

from magicedit.arkit import levels_of_scores
from magicedit.evaluation.scoring import rounded
from magicedit.faces import Face, FaceBackend, distorted, load_backend
from magicedit.faces.frame import EYE_CORNERS
from magicedit.faces.gaze import EYEBALL_RADIUS, IRISES, eye_openness
from magicedit.faces.types import same_face
from magicedit.files import write_text
from magicedit.imaging import open_photo
from magicedit.warping import move_eyes

ANGLES = (-20, -15, -10, -5, 5, 10, 15, 20)
AXES = ("gaze_yaw", "gaze_pitch")
LIDS = ("AU5", "AU7", "AU43")
NARROW = 0.2  # height over width of an eye's opening
DEVIATION = 1.4826  # standard deviations of normal errors in a median one


def by_landmarks(face: Face) -> tuple[float, float]:
    """Degrees of yaw and pitch from MediaPipe's irises, from the middles of the eyes' corners."""
    landmarks, moves = face.landmarks.astype(np.float64), []
    for corners, (iris, edges) in zip(EYE_CORNERS["mediapipe478"], IRISES, strict=True):
        start, end = landmarks[list(corners)]
        x, y = (end - start) / np.linalg.norm(end - start)
        diameter = np.mean([np.linalg.norm(landmarks[a] - landmarks[b]) for a, b in edges])
        offset = (landmarks[iris] - (start + end) / 2) / diameter
        moves.append((offset @ (x, y), offset @ (y, -x)))
    yaw, pitch = np.degrees(np.arcsin(np.clip(np.mean(moves, 0) / EYEBALL_RADIUS, -1, 1)))
    return float(yaw), float(pitch)


def measurements(face: Face) -> dict[str, tuple[float, float]]:
    """Degrees of yaw and pitch by each measurement."""
    levels, _ = levels_of_scores(face.blendshapes)
    return {
        "irises": tuple(face.gaze),
        "landmarks": by_landmarks(face),
        "blendshapes": (levels["gaze_yaw"], levels["gaze_pitch"]),
    }


def rows_of(backend: FaceBackend, path: Path) -> list[dict]:
    """The changes of each measurement and of the lids for each angle; none for narrow eyes."""
    pixels = open_photo(path).pixels
    (before, *_) = backend.detect(pixels)
    if min(eye_openness(before.landmarks)) < NARROW:
        return []
    start, rows = measurements(before), []
    for axis in AXES:
        for angle in ANGLES:
            moved = move_eyes(pixels, before.landmarks, {axis: float(angle)})
            after = same_face(backend.detect(moved), before.box)
            if after is None or moved is pixels:
                continue
            change = {
                name: np.subtract(now, start[name]).tolist() for name, now in measurements(after).items()
            }
            lids = {unit: after.action_units[unit] - before.action_units[unit] for unit in LIDS}
            rows.append({"face": path.stem, "axis": axis, "angle": angle, "change": change, "lids": lids})
    return rows


def spreads_of(backend: FaceBackend, path: Path) -> dict[str, list[float]]:
    """Standard deviations of yaw and pitch by each measurement, over a photograph and its distortions."""
    pixels = open_photo(path).pixels
    (face, *_) = backend.detect(pixels)
    found = [measurements(face)]
    for picture, scale in distorted(pixels):
        again = same_face(backend.detect(picture), tuple(scale * edge for edge in face.box))
        if again is not None:
            found.append(measurements(again))
    return {name: np.std([one[name] for one in found], axis=0, ddof=1).tolist() for name in found[0]}


def summary_of(
    rows: Sequence[dict], spreads: Sequence[Mapping], straight: Sequence[Mapping]
) -> dict[str, dict]:
    """Axis -> measurement -> its figures; "lids" of each axis and direction."""
    summary: dict[str, dict] = {}
    for place, axis in enumerate(AXES):
        entry = summary[axis] = {}
        own = [row for row in rows if row["axis"] == axis]
        for name in ("irises", "landmarks", "blendshapes"):
            figures = entry[name] = {}
            for side, sign in (("below", -1), ("above", 1)):
                there = [row for row in own if np.sign(row["angle"]) == sign]
                found = [(row["angle"], row["change"][name][place]) for row in there]
                slope = statistics.median(change / angle for angle, change in found)
                error = statistics.median(abs(change / slope - angle) for angle, change in found)
                by_angle = {
                    str(angle): statistics.median(change for asked, change in found if asked == angle)
                    for angle in sorted({angle for angle, _ in found})
                }
                figures[side] = {"slope": slope, "error": DEVIATION * error, "measured": by_angle}
            beside = statistics.median(abs(row["change"][name][1 - place]) for row in own)
            figures["beside"] = DEVIATION * beside
            figures["spread"] = statistics.median(spread[name][place] for spread in spreads)
            looks = [look[name][place] for look in straight]
            if looks:
                figures["straight"] = {"mean": statistics.mean(looks), "sd": statistics.pstdev(looks)}
        entry["lids"] = {
            str(angle): {
                unit: statistics.median(row["lids"][unit] for row in own if row["angle"] == angle)
                for unit in LIDS
            }
            for angle in (-15, 15)
        }
        entry["faces"] = len({row["face"] for row in own})
    return summary


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faces", help='"london", "synthetic" or names, joined by commas; default: all')
    parser.add_argument("--photographs", type=Path, default=PHOTOGRAPHS, help="folder of the faces")
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args(argv)
    backend, rows, spreads = load_backend(), [], []
    for face in chosen_faces(validation_faces(args.photographs), args.faces):
        rows += [row | {"face": face.name} for row in rows_of(backend, face.path)]
        spreads.append(spreads_of(backend, face.path))
        print(face.name, file=sys.stderr)
    neutral = sorted((args.photographs / "london").glob("*/neutral.jpg"))
    straight = [measurements(backend.detect(open_photo(path).pixels)[0]) for path in neutral]
    content = circumstances() | {"summary": rounded(summary_of(rows, spreads, straight))}
    write_text(args.output, json.dumps(content, indent=1) + "\n")
    print(json.dumps(content["summary"], indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
