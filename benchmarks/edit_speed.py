"""How long an edit takes and how much memory it needs, measured on this machine.

    python benchmarks/edit_speed.py [-o benchmarks/edit_speed.json]

Three things: a cold `magicedit edit` of a 1024 px photograph in a process of its own (wall time, peak
resident memory), a further edit of the same face in one process, and face detection where no second look is
needed. The result is data: medians and all runs, with hardware, versions, date and command.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
from machine import circumstances
from skimage import data

SIDE = 1024  # pixels of the photograph
EDIT = {"AU12": -3.0}


def photograph() -> PIL.Image.Image:
    """scikit-image's astronaut (512 px, public domain) at 1024 px."""
    return PIL.Image.fromarray(data.astronaut()).resize((SIDE, SIDE), PIL.Image.Resampling.BICUBIC)


def cold_edit(photo: Path, folder: Path, model: str) -> dict[str, float]:
    """Wall seconds of `magicedit edit` from nothing, and peak resident MB of its main process; a second one,
    which finds the faces meanwhile, is not counted."""
    request = ",".join(f"{name}={delta}" for name, delta in EDIT.items())
    command = ["edit", str(photo), "-o", str(folder / "out.png"), "--au", request, "--model", model]
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "magicedit.cli", *command], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"`magicedit {' '.join(command)}` failed with {process.returncode}")
    return {"seconds": round(seconds, 3), "peak_rss_mb": round(usage.ru_maxrss * 1024 / 1e6, 1)}


def timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return round(time.perf_counter() - started, 4)


def measure(model: str, repetitions: int) -> dict[str, object]:
    image = photograph()
    pixels = np.asarray(image)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        image.save(folder / "photo.png")
        cold = [cold_edit(folder / "photo.png", folder, model) for _ in range(repetitions)]

    import torch

    from magicedit.editor import ExpressionEditor

    started = time.perf_counter()
    editor = ExpressionEditor.from_pretrained(model, device="cpu")
    loading = round(time.perf_counter() - started, 3)
    first = timed(lambda: editor.edit(pixels, add=EDIT))
    further = [timed(lambda s=s: editor.edit(pixels, add=EDIT, seed=s)) for s in range(1, repetitions + 1)]
    unmeasured = [
        timed(lambda s=s: editor.edit(pixels, add=EDIT, seed=s, measure=False))
        for s in range(1, repetitions + 1)
    ]
    detection = [timed(lambda: editor.backend.detect(pixels)) for _ in range(5 * repetitions)]
    return {
        "threads": torch.get_num_threads(),
        "cold_cli_edit": {
            "median_seconds": statistics.median(run["seconds"] for run in cold),
            "max_peak_rss_mb": max(run["peak_rss_mb"] for run in cold),
            "runs": cold,
        },
        "in_process": {
            "load_seconds": loading,
            "first_edit_seconds": first,
            "further_edit_median_seconds": statistics.median(further),
            "further_edit_seconds": further,
            "further_edit_without_measuring_seconds": unmeasured,
        },
        "detection": {
            "median_ms": round(1000 * statistics.median(detection), 1),
            "max_ms": round(1000 * max(detection), 1),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--model", default="mini")
    parser.add_argument("--repetitions", type=int, default=3)
    args = parser.parse_args()
    result = {
        **circumstances(),
        "photograph": f"scikit-image's astronaut at {SIDE} x {SIDE} px, one face",
        "model": args.model,
        "edit": EDIT,
        **measure(args.model, args.repetitions),
    }
    args.output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
