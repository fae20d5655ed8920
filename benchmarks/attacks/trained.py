"""A tiny dataset, and training runs of a second or two on it, each in a process of its own."""

import functools
import importlib
import json
import os
import shutil
import signal
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported; its threads would not outlive a fork

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image

from attacks import crashing
from attacks.crashing import Ended
from attacks.small import scratch
from magicedit.files import sha256_of
from magicedit.train.train import main as train

# What runs import when they begin, so that forked processes need not; they begin none of it themselves
for name in ("loop", "networks", "methods.composed"):
    importlib.import_module(f"magicedit.train.{name}")
torch.set_num_threads(1)

STEPS = 4
FLAGS = (
    *("--resolution=32", "--block_out_channels=16,32", "--attention_heads=2", "--train_batch_size=1"),
    *("--learning_rate=1e-3", "--lr_warmup_steps=0", "--warped=0.5", "--augment", "--validation_steps=0"),
    *("--logging_steps=1", "--checkpointing_steps=2"),
)
LATEST = "--resume_from_checkpoint=latest"
SECONDS = 60  # for an attack of two runs, beside other work


@functools.cache
def dataset() -> Path:
    """The dataset of one person with six photographs; not to be changed."""
    folder = scratch() / "dataset"

    def prepare() -> None:
        from skimage.data import astronaut

        from magicedit.data import prepare_dataset

        photographs = scratch() / "photographs"
        (photographs / "ann").mkdir(parents=True)
        for number in range(6):
            pixels = (astronaut() * (1 - number / 10)).astype(np.uint8)
            Image.fromarray(pixels).save(photographs / "ann" / f"{number}.png")
        prepare_dataset(photographs, folder, size=64, progress=False)

    ended = crashing.run(prepare, folder)
    assert ended.code == 0, ended.output
    return folder


def broken_dataset(folder: Path, change) -> Path:
    """A copy of the dataset whose rows, a list of dicts, `change` has changed."""
    shutil.copytree(dataset(), folder)
    shard = folder / "data" / "train-00000.parquet"
    table = pq.read_table(shard)
    rows = table.to_pylist()
    change(rows)
    pq.write_table(table.from_pylist(rows, table.schema), shard)
    return folder


def run(
    output: Path, *more: str, at: int | None = None, sent: int = signal.SIGKILL, under: Path | None = None
) -> Ended:
    """Trains into a folder, and sends the run a signal before its `at`-th file-system call below `under`."""
    flags = [*FLAGS, f"--max_train_steps={STEPS}", f"--train_data_dir={dataset()}", f"--output_dir={output}"]
    return crashing.run(lambda: train([*flags, *more]), under or output, at, sent)


@functools.cache
def straight() -> Path:
    """The output of an uninterrupted run; not to be changed."""
    output = scratch() / "straight"
    ended = run(output)
    assert ended.code == 0, ended.output
    return output


def differs(output: Path) -> str | None:
    """What of a run's result differs from the uninterrupted run's: its model or its last checkpoint."""
    for name in (
        "parts.json",
        *(f"checkpoint-{STEPS}/{part}.safetensors" for part in ("model", "optimizer")),
    ):
        if not (output / name).is_file():
            return f"{name} is missing"
        if sha256_of(output / name) != sha256_of(straight() / name):
            return f"{name} differs from the uninterrupted run's"
    for name, digest in json.loads((output / "parts.json").read_text())["sha256"].items():
        if sha256_of(output / name) != digest:
            return f"{name} is not the file that parts.json names"
    temporary = (".finished", ".unfinished", "tmp-", "old-")
    left = [path.name for path in output.iterdir() if path.name.startswith(temporary)]
    return f"{left[0]} is left" if left else None
