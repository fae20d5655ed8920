"""What tells blurred frames and near duplicates: sharpness of blurred faces, and noise of their expressions.

    python benchmarks/video_frames.py FACES    # writes video_frames.json

sharpness: by `magicedit.data.frames.sharpness_of`, of photographs as they are, out of focus (a Gaussian of so
many px of a face of 128 px), moved (a line of so many px), and with faces as small as so many px; quantiles,
and the share that `LEAST_SHARPNESS` leaves out. noise: distance of the expression of a photograph to that of
the same one shifted, saved as JPEG of quality 50, scaled by 0.93, and with Gaussian noise of 6 levels; beside
it the distance from neutral to smiling of one person. speed: of preparing a film of two people side by side,
neutral and smiling in turn, with 25 frames a second.
"""

import argparse
import json
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np
from machine import circumstances
from tqdm.auto import tqdm

from magicedit.data import prepare_dataset
from magicedit.data.frames import LEAST_SHARPNESS, NEAR, SHARP_SHARE, expression_of, sharpness_of
from magicedit.faces import Face, FaceBackend, align, load_backend
from magicedit.imaging import open_photo
from magicedit.video_reading import import_av

RESULTS = Path(__file__).with_suffix(".json")
QUANTILES = (0.02, 0.5, 0.98)
HEIGHT, SECONDS, RATE = 720, 20, 25  # px, s, frames a second of the film
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


def measure_speed(folder: Path, backend: FaceBackend) -> dict:
    """CPU seconds, decoding threads included, and frames chosen of a film of two people."""
    av = import_av()
    people = [path.parent for path in sorted(folder.glob("london/*/smiling.jpg"))[:2]]
    states = [
        np.concatenate(
            [cv2.resize(open_photo(person / name).pixels, (HEIGHT, HEIGHT)) for person in people], 1
        )
        for name in ("neutral.jpg", "smiling.jpg")
    ]
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "films" / "film.mp4"
        path.parent.mkdir()
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=RATE)
            stream.codec_context.height, stream.codec_context.width = states[0].shape[:2]
            stream.codec_context.pix_fmt = "yuv420p"
            for number in range(SECONDS * RATE):
                pixels = np.roll(states[number // (2 * RATE) % 2], number % 5, 1)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
            container.mux(stream.encode())
        started = time.process_time()
        settings = {"size": 512, "backend": backend, "progress": False}
        report = prepare_dataset(path.parent, Path(temporary) / "dataset", **settings)
        seconds = time.process_time() - started
    return {
        "width": states[0].shape[1],
        "height": HEIGHT,
        "seconds": SECONDS,
        "people": report.identities["train"],
        "frames": report.photographs["train"],
        "cpu_seconds": round(seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder, backend = parser.parse_args().folder, load_backend()
    found = measure(folder, backend) | {"speed": measure_speed(folder, backend)}
    RESULTS.write_text(json.dumps(circumstances() | found, indent=1) + "\n")
    for row in (*found["sharpness"], *found["distances"], found["speed"]):
        print(row)


if __name__ == "__main__":
    main()
