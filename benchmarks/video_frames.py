"""What tells blurred frames and near duplicates: sharpness of blurred faces, and noise of their expressions.

    python benchmarks/video_frames.py ../shared/faces    # writes video_frames.json

sharpness: by `magicedit.data.frames.sharpness_of`, of photographs as they are, out of focus (a Gaussian of so
many px of a face of 128 px), moved (a line of so many px), and with faces as small as so many px; quantiles,
and the share that `LEAST_SHARPNESS` leaves out. noise: distance of the expression of a photograph to that of
the same one shifted, saved as JPEG of quality 50, scaled by 0.93, and with Gaussian noise of 6 levels; beside
it the distance from neutral to smiling of one person.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np
from machine import circumstances
from tqdm.auto import tqdm

from magicedit.data.frames import LEAST_SHARPNESS, NEAR, SHARP_SHARE, expression_of, sharpness_of
from magicedit.faces import Face, FaceBackend, align, load_backend
from magicedit.imaging import open_photo

RESULTS = Path(__file__).with_suffix(".json")
QUANTILES = (0.02, 0.5, 0.98)
GAUSSIANS, LINES, SMALL = (1.0, 1.5, 2.0, 3.0), (3, 5, 9), (90, 60, 40)  # px


def degraded(pixels: np.ndarray, face: Face) -> dict[str, np.ndarray]:
    """Returns the photograph (height, width, 3) uint8 RGB as it is and blurred, by name."""
    pixel = 1 / align(face, 128).scale  # one of the crop, in the photograph
    found = {"as it is": pixels}
    for sigma in GAUSSIANS:
        found[f"out of focus by {sigma:g}"] = cv2.GaussianBlur(pixels, (0, 0), sigma * pixel)
    for length in LINES:
        side = max(1, round(length * pixel))
        kernel = np.zeros((side, side), np.float32)
        kernel[side // 2] = 1 / side
        found[f"moved by {length}"] = cv2.filter2D(pixels, -1, kernel)
    return found


def shrunk(pixels: np.ndarray, face: Face, width: int) -> np.ndarray:
    scale = width / (face.box[2] - face.box[0])
    return cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


def repeated(pixels: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the same picture as other frames of a still face would show it, by name."""
    noise = np.random.default_rng(0).normal(0, 6, pixels.shape)
    _, code = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 50])
    return {
        "shifted": np.roll(pixels, (3, 5), (0, 1)),
        "jpeg": cv2.imdecode(code, cv2.IMREAD_COLOR),
        "scaled": cv2.resize(pixels, None, fx=0.93, fy=0.93, interpolation=cv2.INTER_AREA),
        "noise": np.clip(pixels + noise, 0, 255).astype(np.uint8),
    }


def measure(folder: Path, backend: FaceBackend) -> dict:
    sharpness, distances = defaultdict(list), defaultdict(list)
    neutral: dict[str, Face] = {}
    paths = [
        *sorted(folder.glob("london/*/*.jpg"))[:80],
        *sorted(folder.glob("canada/*.jpg")),
        *sorted(folder.glob("lisa/*.jpg")),
        *sorted(folder.glob("synthetic/validation/*.jpg")),
    ]
    for path in tqdm(paths):
        pixels = open_photo(path).pixels
        face = backend.detect(pixels)[0]
        for name, picture in degraded(pixels, face).items():
            sharpness[name].append(sharpness_of(picture, face))
        for width in SMALL:
            small = shrunk(pixels, face, width)
            if found := backend.detect(small):
                sharpness[f"{width} px wide"].append(sharpness_of(small, found[0]))
        point = expression_of(face, face)
        for picture in repeated(pixels).values():
            if found := backend.detect(np.ascontiguousarray(picture)):
                distance = np.linalg.norm(expression_of(found[0], face) - point)
                distances["the same picture again"].append(distance)
        if path.stem == "neutral":
            neutral[path.parent.name] = face
        elif path.stem == "smiling":
            before = neutral[path.parent.name]
            distance = np.linalg.norm(point - expression_of(before, before))
            distances["neutral to smiling"].append(distance)
    return {
        "photographs": len(paths),
        "least_sharpness": LEAST_SHARPNESS,
        "sharp_share": SHARP_SHARE,
        "near": NEAR,
        "sharpness": [
            {
                "faces": name,
                "quantiles": np.quantile(values, QUANTILES).round(4).tolist(),
                "left_out": round(float(np.mean(np.array(values) < LEAST_SHARPNESS)), 3),
            }
            for name, values in sharpness.items()
        ],
        "distances": [
            {
                "of": name,
                "quantiles": np.quantile(values, QUANTILES).round(2).tolist(),
                "near": round(float(np.mean(np.array(values) < NEAR)), 3),
            }
            for name, values in distances.items()
        ],
        "quantiles": QUANTILES,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    found = measure(parser.parse_args().folder, load_backend())
    RESULTS.write_text(json.dumps(circumstances() | found, indent=1) + "\n")
    for row in (*found["sharpness"], *found["distances"]):
        print(row)


if __name__ == "__main__":
    main()
