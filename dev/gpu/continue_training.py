"""Trains the embedded model further on the packed dataset, within a time; see `run.py`.

    python dev/gpu/continue_training.py --output DIR --work DIR --packed DIR --seconds N [--dry-run]

The trainer is `train/train.py` itself. A signal stops it, which saves a checkpoint; called once more with the
step reached as its last, it exports the weights. This happens once early and once at the end, so that weights
come back even where the rest fails. Training starts from `packed/start` if it exists, else from `mini`, and
resumes from the newest checkpoint in --work. The result is a tar file in shards, with an index.
"""

import argparse
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

from run import ROOT, write_json

from magicedit.models.folder import ModelFolder
from magicedit.train.finished import RUN_FOLDERS

SHARD_BYTES = 15 * 2**20
UNENDING = 10**7  # steps
LEGS = (0.3, 1.0)  # shares of the time at whose end weights are exported
EXPORT_SECONDS = 45.0  # kept for an export, which opens the dataset and the checkpoint first
SETTINGS = {
    "train_batch_size": 64,
    "mixed_precision": "bf16",
    "learning_rate": 1e-4,
    "lr_scheduler": "constant_with_warmup",  # the end is not known
    "lr_warmup_steps": 100,
    "ema_decay": 0.999,
    "dataloader_num_workers": max(1, (os.cpu_count() or 2) - 2),
    "checkpointing_steps": 250,
    "checkpoints_total_limit": 1,
    "validation_steps": 0,
    "logging_steps": 25,
}
DRY_SETTINGS = {
    "train_batch_size": 2,
    "dataloader_num_workers": 0,
    "mixed_precision": "no",
    "checkpointing_steps": 1,
    "logging_steps": 1,
}


def train(
    folder: Path, dataset: Path, start: str, dry: bool, steps: int = UNENDING, seconds: float | None = None
) -> None:
    """Calls the trainer, which exports weights after `steps`, or is stopped after `seconds`.

    Raises SystemExit where it fails.
    """
    settings = SETTINGS | (DRY_SETTINGS if dry else {})
    settings |= {
        "pretrained_model_name_or_path": start,
        "resolution": ModelFolder.find(start).resolution,
        "train_data_dir": dataset,
        "output_dir": folder,
        "resume_from_checkpoint": "latest",
        "max_train_steps": steps,
    }
    flags = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-u", str(ROOT / "train" / "train.py"), "--config", "mini-cpu", *flags]
    process = subprocess.Popen(command)
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
        code = process.wait()
    if code:
        raise SystemExit(f"training ended with status {code}")


def last_step(folder: Path) -> int:
    """The step of the newest checkpoint; 0: there is none."""
    return max((int(found.name.partition("-")[2]) for found in folder.glob("checkpoint-*")), default=0)


def write_shards(folder: Path, output: Path, about: dict) -> None:
    """Writes a pipeline's files, without checkpoints, as shards of a tar file, and their index last."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for path in sorted(folder.rglob("*")):
            place = path.relative_to(folder)
            hidden = any(part.startswith((".", "checkpoint-")) for part in place.parts)
            if path.is_file() and not hidden and place.parts[0] not in RUN_FOLDERS:
                archive.add(path, str(place))
    content = stream.getvalue()
    index = output / "weights.json"
    index.unlink(missing_ok=True)
    shards = []
    for number, first in enumerate(range(0, len(content), SHARD_BYTES)):
        shard = content[first : first + SHARD_BYTES]
        name = f"weights-{number:02d}.part"
        (output / name).write_bytes(shard)
        shards.append({"name": name, "sha256": hashlib.sha256(shard).hexdigest()})
    write_json(index, about | {"shards": shards})


def main() -> None:
    started = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--packed", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--dry-run", action="store_true")
    args = parser.parse_args()
    dataset, start = args.packed / "dataset", args.packed / "start"
    if not dataset.is_dir():
        raise SystemExit("dev/gpu/pack packed no dataset")
    folder, step = args.work / "training", 0
    for share in LEGS:
        left = started + share * args.seconds - EXPORT_SECONDS - time.monotonic()
        if left <= 0:
            continue
        origin = str(start) if start.is_dir() else "mini"
        train(folder, dataset, origin, args.dry_run, seconds=left)
        step = last_step(folder)
        if not step:
            continue
        train(folder, dataset, origin, args.dry_run, step)
        log = folder / "train_log.jsonl"
        last = json.loads(log.read_text().splitlines()[-1]) if log.is_file() else {}
        write_shards(folder, args.output, {"step": step, "last": last})
        if log.is_file():
            shutil.copyfile(log, args.output / "train_log.jsonl")
        print(f"exported step {step}: {last}", flush=True)
    if not step:
        raise SystemExit("training did no step in its time")


if __name__ == "__main__":
    main()
