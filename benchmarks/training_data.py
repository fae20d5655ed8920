"""Training data: seconds and memory that opening a dataset takes, and samples a second of one core.

    python benchmarks/training_data.py start [--rows 100000]
    python benchmarks/training_data.py samples DATASET [--before CHECKOUT]

Both write their part of training_data.json. `start` writes that many rows by `prepare`'s own writer, with
MediaPipe's landmarks of a face mesh, scattered, and small pictures, and opens them in a process of its own.
`samples` makes samples of 256 px of a prepared dataset with nothing held, on one thread, by CPU seconds.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import circumstances

from magicedit.action_units import NAMES
from magicedit.data import PairDataset
from magicedit.data.description import FORMAT_VERSION
from magicedit.data.shards import encoded, write_rows
from magicedit.warping.muscles import LANDMARKS, neutral_mesh

RESULT = Path(__file__).with_suffix(".json")
SIDE = 64  # px of the pictures of `start`
GROUP = 16  # rows of a row group, as `prepare` writes them
SHARD = 6400  # rows, of 256 MiB where pictures have 256 px
FEW = 2 * SHARD  # rows of the dataset that is opened first: what opening itself takes is not counted
RESOLUTION = 256
KINDS = {"real": 0.0, "warped": 1.0}


def rows(count: int) -> Iterator[list[dict[str, Any]]]:
    """Groups of rows: two photographs of each person."""
    rng = np.random.default_rng(0)
    mesh = neutral_mesh()[:, :2] * [1, -1] * (0.3 * SIDE) + SIDE / 2
    face = np.concatenate([mesh, np.full((LANDMARKS - len(mesh), 2), SIDE / 2)])
    colours = rng.integers(0, 256, (4 * GROUP, 1, 1, 3), np.uint8)
    pictures = [encoded(np.broadcast_to(colour, (SIDE, SIDE, 3)), "jpeg") for colour in colours]
    for first in range(0, count, GROUP):
        numbers = range(first, min(first + GROUP, count))
        scatter = rng.normal(0, 0.2, (len(numbers), LANDMARKS, 2)).astype(np.float32)
        labels = rng.uniform(0, 5, (len(numbers), len(NAMES))).astype(np.float32)
        yield [
            {
                "image": pictures[number % len(pictures)],
                "identity": f"person-{number // 2:07}",
                "source": f"person-{number // 2:07}/photograph-{number % 2}.jpg",
                "action_units": label.tolist(),
                "landmarks": (face + offset).ravel().tolist(),
                "scheme": "mediapipe478",
                "pose": [0.0, 0.0, 0.0],
                "emotion": "",
            }
            for number, label, offset in zip(numbers, labels, scatter, strict=True)
        ]


def write_dataset(folder: Path, count: int) -> None:
    """Writes a dataset of so many synthetic rows."""
    (folder / "data").mkdir(parents=True)
    groups = rows(count)
    for number, first in enumerate(range(0, count, SHARD)):
        shard = [next(groups) for _ in range(-(-min(SHARD, count - first) // GROUP))]
        write_rows(folder / "data" / f"train-{number:05}.parquet", shard, {})
    description = {
        "format": FORMAT_VERSION,
        "action_units": list(NAMES),
        "landmarks": "mediapipe478",
        "crop_size": SIDE,
        "photographs": {"train": count},
        "variants": 0,
    }
    (folder / "magicedit.json").write_text(json.dumps(description))


def opening(few: Path, many: Path) -> dict[str, float]:
    """CPU seconds, resident bytes a record before and after the first samples."""
    import psutil

    process = psutil.Process()
    kept = [PairDataset(few, resolution=SIDE, warped=0.5, memory=0)]
    before, started = process.memory_info().rss, time.process_time()
    pairs = PairDataset(many, resolution=SIDE, warped=0.5, memory=0)
    seconds, after = time.process_time() - started, process.memory_info().rss
    kept.append(pairs)
    for n in range(100):
        pairs[n]
    held = sum(value.nbytes for value in vars(pairs.records).values() if hasattr(value, "nbytes"))
    held += sum(value.nbytes for value in vars(pairs.records._files).values() if hasattr(value, "nbytes"))
    return {
        "rows": len(pairs),
        "cpu_seconds": round(seconds, 2),
        "bytes_a_record_held": round(held / len(pairs), 1),
        "bytes_a_record_resident": round((after - before) / len(pairs), 1),
    }


def start(count: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        few, many = Path(folder) / "few", Path(folder) / "many"
        write_dataset(few, FEW)
        write_dataset(many, count)
        command = [sys.executable, __file__, "_opening", str(few), str(many)]
        return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def seconds_a_sample(dataset: Path, first: int, count: int) -> dict[str, float]:
    """CPU seconds by kind, with augmentation and without, of samples from `first` on."""
    torch.set_num_threads(1)
    found = {}
    for kind, share in KINDS.items():
        for augment in (True, False):
            settings = {"warped": share, "augment": augment, "memory": 0}
            pairs = PairDataset(dataset, resolution=RESOLUTION, **settings)
            pairs[first + count]  # imports, and what is read once
            started = time.process_time()
            for n in range(first, first + count):
                pairs[n]
            name = f"{kind}, {'augmented' if augment else 'as stored'}"
            found[name] = (time.process_time() - started) / count
    return found


def samples(dataset: Path, count: int, passes: int, before: Path | None) -> dict[str, Any]:
    """Samples a CPU second, the best of some passes, and how many times those of another checkout."""
    checkouts = {"now": Path(__file__).resolve().parents[1]} | ({"before": before} if before else {})
    best: dict[str, dict[str, float]] = {name: {} for name in checkouts}
    for number in range(passes):
        for name, checkout in checkouts.items():  # in turn, because other work slows them down alike
            command = [sys.executable, __file__, "_samples", str(dataset), str(number * count), str(count)]
            environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment).stdout
            for arm, seconds in json.loads(output).items():
                best[name][arm] = min(seconds, best[name].get(arm, seconds))
    description = json.loads((dataset / "magicedit.json").read_text())
    found = {"resolution": RESOLUTION, "crop_size": description["crop_size"], "samples": count * passes}
    for name, seconds in best.items():
        found[f"samples_a_second_{name}"] = {arm: round(1 / value, 1) for arm, value in seconds.items()}
    if before:
        ratios = {arm: round(value / best["now"][arm], 2) for arm, value in best["before"].items()}
        found["times_as_many"] = ratios
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    parts.add_parser("start").add_argument("--rows", type=int, default=100_000)
    rate = parts.add_parser("samples")
    rate.add_argument("dataset", type=Path)
    rate.add_argument("--count", type=int, default=20, help="samples of a pass")
    rate.add_argument("--passes", type=int, default=5)
    rate.add_argument("--before", type=Path, help="another checkout, to compare with")
    process = parts.add_parser("_opening")  # in a process of its own
    process.add_argument("few", type=Path)
    process.add_argument("many", type=Path)
    process = parts.add_parser("_samples")
    process.add_argument("dataset", type=Path)
    process.add_argument("first", type=int)
    process.add_argument("count", type=int)
    args = parser.parse_args()
    if args.part == "_samples":
        print(json.dumps(seconds_a_sample(args.dataset, args.first, args.count)))
        return
    if args.part == "_opening":
        print(json.dumps(opening(args.few, args.many)))
        return
    if args.part == "start":
        found = start(args.rows)
    else:
        found = samples(args.dataset, args.count, args.passes, args.before)
    written = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    written[args.part] = found | circumstances()
    RESULT.write_text(json.dumps(written, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
