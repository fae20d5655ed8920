"""How a run of `train/train.py` was trained, from the files that it leaves in its folder."""

import json
import statistics
from pathlib import Path
from typing import Any

from magicedit.files import read_json, read_text

_PRIVATE = ("output_dir", "train_data_dir", "pretrained_model_name_or_path")  # places of one machine


def training_of(run: Path) -> dict[str, Any]:
    """Settings, counts and speed of a training run, without places of this machine.

    The counts are those of training.json, which not every family writes.
    `images_seen` counts those of all steps, `images_per_second` is the log's median. `minutes` is the time of
    all logged steps, without previews and checkpoints: wall time, so an upper bound of the CPU time of a run
    of one process with one thread.
    Raises ValueError where the folder lacks the files or they are not those of a run.
    """
    try:
        return _training_of(run)
    except (KeyError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise ValueError(f"its files are not those of a training ({error!r})") from error


def _training_of(run: Path) -> dict[str, Any]:
    lines = map(json.loads, read_text(run / "train_log.jsonl").splitlines())
    # Of repeated steps the last; a line of a validation loss alone has no speed
    log = {line["step"]: line["images_per_second"] for line in lines if "images_per_second" in line}
    settings = read_json(run / "train_config.json")
    for name in _PRIVATE:
        settings.pop(name, None)
    counts = run / "training.json"
    counted = read_json(counts) if counts.is_file() else {}
    a_step = settings["train_batch_size"] * settings["gradient_accumulation_steps"] * settings["world_size"]
    seconds, before = 0.0, 0
    for step, speed in sorted(log.items()):
        seconds += (step - before) * a_step / speed
        before = step
    return (
        settings
        | counted
        | {
            "images_seen": before * a_step,
            "images_per_second": statistics.median(log.values()),
            "minutes": round(seconds / 60, 1),
        }
    )
