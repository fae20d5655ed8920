"""LoRA training at the size of Stable Diffusion 1.5 with random weights: seconds and peak memory -> JSON.

    python benchmarks/full_size.py -o benchmarks/full_size.json

Two steps of the recipe `sd15-lora` at 512 px and batch 1, the second again from the first one's checkpoint,
one edit with the result, and its merged pipeline. Every part is a process of its own. Needs Linux, 9 GB of
memory and 13 GB of disk.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from machine import circumstances

ADAPTERS = "pytorch_lora_weights.safetensors"
RECIPE = [
    "--config=sd15-lora",
    "--train_batch_size=1",
    "--gradient_accumulation_steps=1",
    "--max_train_steps=2",
]
RECIPE += [
    "--checkpointing_steps=1",
    "--validation_steps=0",
    "--logging_steps=1",
    "--dataloader_num_workers=0",
]
SIDE = 512


def peak_of_phase() -> float:
    """This process's peak memory since the last call, 10^9 bytes, mapped files included."""
    kilobytes = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]
    Path("/proc/self/clear_refs").write_text("5")  # the kernel's reset of that mark
    return int(kilobytes) * 1024 / 1e9


def train(flags: list[str]) -> None:
    """Trains, and prints seconds and peaks of opening, training and saving as JSON."""
    from magicedit.train.config import parse_config
    from magicedit.train.loop import Run

    phases: dict[str, dict[str, float]] = {}
    started = time.perf_counter()

    def ends(phase: str) -> None:
        nonlocal started
        now, peak = time.perf_counter(), peak_of_phase()
        so_far = phases.setdefault(phase, {"seconds": 0.0, "peak_gb": 0.0})
        so_far["seconds"] = round(so_far["seconds"] + now - started, 1)
        so_far["peak_gb"] = round(max(so_far["peak_gb"], peak), 2)
        started = now

    def measured(work: Callable, before: str, phase: str) -> Callable:
        def run(*args: Any) -> None:
            ends(before)
            work(*args)
            ends(phase)

        return run

    run = Run(parse_config(flags))
    ends("opening")
    run._save, run._finish = (measured(work, "training", "saving") for work in (run._save, run._finish))
    run.train()
    ends("training")
    print(json.dumps(phases))


def in_process(command: list[str]) -> tuple[str, dict[str, float]]:
    """Runs a command; returns its output, and its seconds and peak memory. CalledProcessError if it fails."""
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command, stdout=output, env=os.environ | {"TOKENIZERS_PARALLELISM": "false"}
        )
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise subprocess.CalledProcessError(os.waitstatus_to_exitcode(status), command)
        output.seek(0)
        seconds = round(time.perf_counter() - started, 1)
        return output.read(), {"seconds": seconds, "peak_gb": round(usage.ru_maxrss * 1024 / 1e9, 2)}


def size_of(*files: Path) -> float:
    """Bytes of files and folders, 10^6."""
    found = [file for place in files for file in ([place] if place.is_file() else place.rglob("*"))]
    return round(sum(file.stat().st_size for file in found if file.is_file()) / 1e6, 1)


def prepared(work: Path) -> Path:
    """A dataset of two people, each the same public-domain photograph twice."""
    import numpy as np
    from PIL import Image
    from skimage.data import astronaut

    from magicedit.data import prepare_dataset

    for name, picture in (("ann", astronaut()), ("bob", np.ascontiguousarray(astronaut()[:, ::-1]))):
        (work / "photographs" / name).mkdir(parents=True)
        for light in (1.0, 0.7):
            shaded = Image.fromarray((picture * light).astype(np.uint8))
            shaded.save(work / "photographs" / name / f"{light}.png")
    prepare_dataset(work / "photographs", work / "dataset", size=SIDE, validation=["bob"], progress=False)
    return work / "dataset"


def measure(base: Path | None, work: Path, tiny: bool, flags: list[str]) -> dict[str, Any]:
    """Runs all parts in the folder `work`; returns the figures."""
    python, report = sys.executable, {}
    if base is None:
        base = work / "sd15"
        script = Path(__file__).parents[1] / "dev" / "random_stable_diffusion.py"
        _, report["random base"] = in_process([python, str(script), str(base), *(["--tiny"] if tiny else [])])
    if not any(flag.startswith("--train_data_dir") for flag in flags):
        flags = [*flags, f"--train_data_dir={prepared(work)}"]
    first, second = work / "first", work / "second"
    recipe = [*RECIPE, f"--pretrained_model_name_or_path={base}", *flags]
    child = [python, __file__, "--train"]
    for name, more in (
        ("two steps", [f"--output_dir={first}"]),
        ("resumed", [f"--output_dir={second}", f"--resume_from_checkpoint={first / 'checkpoint-1'}"]),
    ):
        printed, whole = in_process([*child, *recipe, *more])
        report[name] = whole | json.loads(printed.splitlines()[-1])
    report["resumed"]["bit-equal"] = (first / ADAPTERS).read_bytes() == (second / ADAPTERS).read_bytes()
    photo = work / "photo.png"
    from PIL import Image
    from skimage.data import astronaut

    Image.fromarray(astronaut()).save(photo)
    command = [python, "-m", "magicedit.cli", "edit", str(photo), "--au", "AU12=2", "--quality", "live"]
    _, report["edit"] = in_process([*command, "--model", str(first), "-o", str(work / "edited.png")])
    convert = [python, "-m", "magicedit.cli", "convert", str(first), "-o", str(work / "whole")]
    _, report["merge"] = in_process(convert)
    report["megabytes"] = {
        "base": size_of(base),
        "checkpoint": size_of(first / "checkpoint-2"),
        "result": size_of(
            *(first / name for name in (ADAPTERS, "lora_index.json", "README.md", "scheduler"))
        ),
        "merged": size_of(work / "whole"),
    }
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, help="JSON to write")
    parser.add_argument("--base", type=Path, help="Stable Diffusion 1.5 folder; default: random weights")
    parser.add_argument(
        "--work", type=Path, help="empty folder to work in and leave; default: a temporary one"
    )
    parser.add_argument(
        "--tiny", action="store_true", help="random weights of a narrow base, to try the script"
    )
    args, flags = parser.parse_known_args()  # further flags are those of training
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or Path(temporary)
        report = measure(args.base, work.resolve(), args.tiny, flags)
    text = json.dumps({**circumstances(), "results": report}, indent=1) + "\n"
    print(text)
    if args.output:
        args.output.write_text(text)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--train"]:
        train(sys.argv[2:])
    else:
        main()
