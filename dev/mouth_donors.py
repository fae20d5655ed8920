"""Cuts the embedded mouths, whose teeth opened mouths show, out of photographs.

    python dev/mouth_donors.py donors PHOTOGRAPHS MOUTHS
    python dev/mouth_donors.py floor PHOTOGRAPH

PHOTOGRAPHS: one folder per person with `neutral.jpg` and `smiling.jpg` (Face Research Lab London Set).
MOUTHS: `ID.jpg`, the smile's mouth at the original resolution, and `index.csv` with its place there. What is
kept shows nobody: everything but the inside of the mouth is painted over with its mean colour. EDGES was
drawn by hand, roughly, along the lower edge of the upper teeth, and is snapped to the picture.

PHOTOGRAPH: the synthetic portrait schnell_0019770 of the training set. FLOOR was drawn by hand: where the
palate ends, along the upper edge of the lower teeth, and along the lower lip.
"""

import argparse
import csv
import json
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from magicedit.faces import load_backend
from magicedit.faces.frame import face_frame
from magicedit.imaging import open_photo
from magicedit.warping.muscles import LOWER_LIP_EDGE, UPPER_LIP_EDGE
from magicedit.warping.teeth import DONORS, sclera_colour, skin_colour

SCALE = 256  # px an interocular distance
WIDTH, HEIGHT = 288, 112
INCISORS = (144, 62)  # px: the middle of the face, and the edge of the upper incisors there
DRAWN_AT = (160, 72)  # where EDGES has the middle of the face and the middle of the lips
SNAP = 3  # px
MARGIN = 3  # px of the lips that stay around the inside
QUALITY = 88
EDGES = {
    "030": "42,66 55,73 66,82 80,85 102,86 128,89 160,90 194,88 220,86 242,85 260,83 274,70",
    "097": "58,66 75,74 90,81 104,83 130,86 163,90 197,89 222,85 243,83 258,72 274,64",
    "107": "60,72 78,75 97,80 118,83 122,88 155,90 188,92 192,87 210,86 230,83 244,76 256,66",
    "002": "62,70 82,79 100,82 124,86 130,91 160,91 194,89 198,86 222,84 243,79 262,68",
    "064": "66,74 80,77 96,79 120,83 124,87 158,89 197,89 200,86 224,84 243,80 266,74",
    "100": "58,68 72,74 84,79 97,81 120,85 124,88 155,89 193,88 197,86 217,84 230,79 240,75 252,66",
    "129": "66,58 76,62 84,68 92,71 100,71 105,76 112,78 120,78 124,84 138,86 153,86 "
    "160,86 175,87 190,85 195,80 205,81 214,79 220,78 228,78 238,72 248,70 256,64 270,58",
    "130": "54,76 66,82 74,86 84,92 92,88 100,86 110,87 120,88 124,95 140,97 158,95 "
    "164,95 180,95 192,93 198,87 208,87 218,86 226,84 238,83 242,78 250,74 258,66",
}

FLOOR_SIZE, FLOOR_CENTRE = (280, 70), (140, 10)  # px: the picture, and the middle of the lips in it
TONGUE_EVENED = 6  # px sideways
FLOOR = {
    "upper": "0,5 280,5",
    "edge": "40,-6 48,2 60,16 75,27 92,30 115,28 140,27 165,27 182,29 188,31 205,22 222,6 234,-8",
    "lower": "40,-6 48,2 60,16 75,27 90,33 109,40 138,44 165,41 188,32 205,22 222,6 234,-8",
}


def cut(
    pixels: np.ndarray,
    landmarks: np.ndarray,
    incisors: float = 0.0,
    size: tuple[int, int] = (WIDTH, HEIGHT),
    place: tuple[int, int] = INCISORS,
) -> tuple[np.ndarray, np.ndarray]:
    """The mouth in an upright picture of `size` (width, height), and the landmarks there.

    incisors: how far what is put to `place` lies below the middle of the lips, interocular distances.
    """
    frame = face_frame(landmarks)
    points = frame.to_face(np.asarray(landmarks, np.float64))
    centre = np.array([(points[0, 0] + points[13, 0]) / 2, (points[13, 1] + points[14, 1]) / 2 + incisors])
    linear = frame.rotation.T * frame.interocular / SCALE
    corner = frame.origin + frame.rotation.T @ centre * frame.interocular - linear @ place
    matrix = np.concatenate([linear, corner[:, None]], 1)
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(pixels, matrix, size, flags=flags), (points - centre) * SCALE + place


def snapped(picture: np.ndarray, rough: np.ndarray) -> np.ndarray:
    """(width,) px: the curve moved to where pale above meets dark or red below, by a smooth path."""
    lab = cv2.cvtColor(picture, cv2.COLOR_RGB2LAB).astype(np.float32)
    tooth = cv2.GaussianBlur(lab[..., 0] - 2 * np.maximum(lab[..., 1] - 134, 0), (0, 0), 0.8)
    drop = np.roll(tooth, 2, 0) - np.roll(tooth, -2, 0)
    steps = np.arange(-SNAP, SNAP + 1)
    columns = np.arange(len(rough), dtype=np.float32)[None]
    gain = np.concatenate(
        [
            cv2.remap(drop, columns, (rough + k)[None].astype(np.float32), cv2.INTER_LINEAR) - 1.5 * abs(k)
            for k in steps
        ]
    )
    best, back = gain.copy(), np.zeros(gain.shape, int)
    for x in range(1, len(rough)):
        before = [
            best[np.clip(np.arange(len(steps)) + s, 0, len(steps) - 1), x - 1] - 3 * abs(s)
            for s in range(-2, 3)
        ]
        back[:, x] = np.clip(np.arange(len(steps)) + np.argmax(before, 0) - 2, 0, len(steps) - 1)
        best[:, x] = gain[:, x] + np.max(before, 0)
    path, k = np.zeros(len(rough), int), int(best[:, -1].argmax())
    for x in range(len(rough) - 1, -1, -1):
        path[x], k = k, back[k, x]
    return cv2.GaussianBlur((rough + steps[path])[None].astype(np.float32), (0, 0), 1.0)[0]


def cut_donors(photographs: Path, mouths: Path) -> None:
    backend = load_backend()
    index = {row["id"]: row for row in csv.DictReader((mouths / "index.csv").open())}
    donors = []
    for number, (person, drawn) in enumerate(EDGES.items()):
        smiling, neutral = (
            open_photo(photographs / person / f"{n}.jpg").pixels for n in ("smiling", "neutral")
        )
        face, at_rest = backend.detect(smiling)[0], backend.detect(neutral)[0]
        row = index[person]
        factor = int(row["original_width"]) / smiling.shape[1]
        landmarks = (face.landmarks + 0.5) * factor - 0.5 - (int(row["x0"]), int(row["y0"]))
        pixels = open_photo(mouths / f"{person}.jpg").pixels

        # 1. The edge of the teeth, from the frame that it was drawn in to the donors'
        columns = np.arange(WIDTH)
        line = np.array([[float(v) for v in point.split(",")] for point in drawn.split()])
        line += np.array(INCISORS) - DRAWN_AT
        picture, _ = cut(pixels, landmarks, 0.0)
        edge = snapped(picture, np.interp(columns, line[:, 0], line[:, 1]).astype(np.float32))
        shift = edge[INCISORS[0] - 30 : INCISORS[0] + 31].mean() - INCISORS[1]
        picture, points = cut(pixels, landmarks, shift / SCALE)

        # 2. The inside alone
        curves = {}
        for name, ids in (("upper", UPPER_LIP_EDGE), ("lower", LOWER_LIP_EDGE)):
            curves[name] = np.interp(columns, points[list(ids), 0], points[list(ids), 1])
        ends = line[[0, -1], 0]
        rows = np.arange(HEIGHT)[:, None]
        inside = (rows > curves["upper"] - MARGIN) & (rows < curves["lower"] + MARGIN)
        inside &= (columns > points[78, 0] - MARGIN) & (columns < points[308, 0] + MARGIN)
        picture[~inside] = picture[inside].mean(0)
        Image.fromarray(picture).save(DONORS / f"{number}.webp", quality=QUALITY, method=6)
        resting = face_frame(at_rest.landmarks).to_face(at_rest.landmarks)
        donors.append(
            {
                "file": f"{number}.webp",
                "scale": SCALE,
                "middle": INCISORS[0],
                "upper": [round(float(v), 1) for v in curves["upper"]],
                "lower": [round(float(v), 1) for v in curves["lower"]],
                "edge": [round(float(v - shift), 1) for v in edge],
                "ends": ends.tolist(),
                "skin": skin_colour(smiling, face.landmarks).round(1).tolist(),
                "sclera": sclera_colour(neutral, at_rest.landmarks).round(1).tolist(),
                "half_width": round(float(resting[308, 0] - resting[78, 0]) / 2, 4),
                "sharpness": round(float(face_frame(landmarks).interocular), 1),
            }
        )
    (DONORS / "donors.json").write_text(json.dumps(donors) + "\n")


def cut_floor(photograph: Path) -> None:
    pixels = open_photo(photograph).pixels
    landmarks = load_backend().detect(pixels)[0].landmarks
    picture, _ = cut(pixels, landmarks, size=FLOOR_SIZE, place=FLOOR_CENTRE)
    columns = np.arange(FLOOR_SIZE[0])
    lines = {name: np.array([[float(v) for v in point.split(",")] for point in drawn.split()])
             for name, drawn in FLOOR.items()}  # fmt: skip
    curves = {name: np.interp(columns, *line.T).astype(np.float32) for name, line in lines.items()}
    curves = {name: cv2.GaussianBlur(curve[None], (0, 0), SNAP)[0] for name, curve in curves.items()}
    rows = np.arange(FLOOR_SIZE[1])[:, None]
    tongue = np.clip((curves["edge"] - 1 - rows) / 3, 0, 1)[..., None]
    even = cv2.GaussianBlur(picture, (0, 0), TONGUE_EVENED, sigmaY=1)  # else a stretched tongue has stripes
    picture = np.rint(picture + tongue * (even.astype(float) - picture)).astype(np.uint8)
    inside = (rows > curves["upper"] - MARGIN) & (rows < curves["lower"] + MARGIN)
    picture[~inside] = picture[inside].mean(0)
    Image.fromarray(picture).save(DONORS / "floor.webp", quality=QUALITY, method=6)
    ends = lines["lower"][[0, -1], 0]
    floor = {
        "file": "floor.webp",
        "scale": SCALE,
        "middle": FLOOR_CENTRE[0],
        **{name: [round(float(v), 1) for v in curve] for name, curve in curves.items()},
        "ends": ends.tolist(),
        "skin": skin_colour(pixels, landmarks).round(1).tolist(),
        "sclera": sclera_colour(pixels, landmarks).round(1).tolist(),
        "half_width": round(float(np.ptp(ends)) / 2 / SCALE, 4),
        "sharpness": round(float(face_frame(landmarks).interocular), 1),
    }
    (DONORS / "floor.json").write_text(json.dumps(floor) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    kinds = parser.add_subparsers(dest="kind", required=True)
    donors = kinds.add_parser("donors")
    donors.add_argument("photographs", type=Path)
    donors.add_argument("mouths", type=Path)
    kinds.add_parser("floor").add_argument("photograph", type=Path)
    args = parser.parse_args()
    DONORS.mkdir(exist_ok=True)
    if args.kind == "donors":
        cut_donors(args.photographs, args.mouths)
    else:
        cut_floor(args.photograph)
    size = sum(path.stat().st_size for path in DONORS.iterdir())
    print(f"{DONORS.name}: {size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
