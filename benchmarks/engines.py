"""Networks split over two CPU processes against one process with the same batches, at tiny width.

    python benchmarks/engines.py DATASET [--engines fsdp2,deepspeed-zero2,deepspeed-zero3]

Writes engines.json: for each engine the largest difference of the loss over 20 steps, how many parameters a
process holds, and whether a run that was killed (SIGKILL) and resumed ends bit-equal to one that was not.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import torch
from machine import circumstances

RESULT = Path(__file__).with_suffix(".json")
CONFIGS = Path(__file__).resolve().parents[1] / "train" / "configs" / "accelerate"
STEPS, KEPT, KILLED = 20, 8, 10  # steps; between checkpoints; after which a run is killed
RUN = (
    *("--prediction=noise", "--resolution=32", "--block_out_channels=16,32", "--attention_heads=2"),
    *("--warped=0.5", "--augment", "--use_ema", "--learning_rate=1e-3", "--lr_warmup_steps=0"),
    *("--mixed_precision=no", "--validation_steps=0", "--logging_steps=1"),
    *(f"--max_train_steps={STEPS}", f"--checkpointing_steps={KEPT}"),
)


def trained(output: Path, flags: list[str]) -> None:
    """Trains as train.py does, and writes the unrounded losses to `losses.json` of the folder."""
    from magicedit.train.config import parse_config
    from magicedit.train.loop import Run

    run, losses = Run(parse_config([*flags, f"--output_dir={output}"])), []
    log = run._log

    def logged(values, progress):
        losses.append(values["loss"])
        log(values, progress)

    run._log = logged
    run.train()
    if run.accelerator.is_main_process:
        held = sum(getattr(p, "_local_tensor", p).numel() for p in run.parameters)
        (output / "losses.json").write_text(json.dumps({"losses": losses, "held": held}))
    sys.stdout.flush()
    os._exit(0)  # as train.py ends several processes


def launch(engine: str | None, output: Path, *flags: str) -> subprocess.Popen:
    """Starts `trained` in one process, or in two that an engine's configuration describes."""
    words = [__file__, "--train", str(output), *flags]
    if engine is not None:
        module = ["-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / f"{engine}.yaml")]
        words = [*module, "--num_processes=2", *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    return subprocess.Popen([sys.executable, *words], env=environment)


def finished(process: subprocess.Popen) -> None:
    if process.wait():
        raise SystemExit(f"a run ended with {process.returncode}")


def killed(process: subprocess.Popen, output: Path) -> None:
    """Kills a run and its processes without warning once its log shows step `KILLED`."""
    file = output / "train_log.jsonl"
    while not file.exists() or len(file.read_text().splitlines()) < KILLED:
        if process.poll() is not None:
            raise SystemExit("the run ended before it could be killed")
        time.sleep(0.05)
    for one in (*psutil.Process(process.pid).children(recursive=True), process):
        one.kill()
    process.wait()
    if (output / f"checkpoint-{STEPS}").exists():
        raise SystemExit("the run ended before it was killed")


def same(first: Path, second: Path) -> bool:
    """Whether two checkpoints hold equal tensors."""
    from magicedit.train.state import load_checkpoint

    (first, _), (second, _) = load_checkpoint(first), load_checkpoint(second)
    return first.keys() == second.keys() and all(
        torch.equal(tensor, second[group][key]) for group in first for key, tensor in first[group].items()
    )


def row(engine: str, dataset: Path, work: Path) -> dict[str, object]:
    """Measures an engine; `work` has the run `one` of one process."""
    straight, resumed = work / engine, work / f"{engine}-killed"
    flags = [*RUN, f"--train_data_dir={dataset}", "--train_batch_size=1"]
    started = time.perf_counter()
    finished(launch(engine, straight, *flags))
    seconds = time.perf_counter() - started
    killed(launch(engine, resumed, *flags), resumed)
    finished(launch(engine, resumed, *flags, "--resume_from_checkpoint=latest"))
    one, two = (json.loads((folder / "losses.json").read_text()) for folder in (work / "one", straight))
    return {
        "largest_difference": max(abs(a - b) for a, b in zip(one["losses"], two["losses"], strict=True)),
        "killed_and_resumed_equal": same(straight / f"checkpoint-{STEPS}", resumed / f"checkpoint-{STEPS}"),
        "parameters": one["held"],
        "parameters_of_a_process": two["held"],
        "seconds": round(seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", type=Path, help="prepared dataset")
    parser.add_argument("--engines", default="fsdp2,deepspeed-zero2,deepspeed-zero3")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work, dataset = Path(folder), arguments.dataset.resolve()
        finished(launch(None, work / "one", *RUN, f"--train_data_dir={dataset}", "--train_batch_size=2"))
        rows = {engine: row(engine, dataset, work) for engine in arguments.engines.split(",")}
    result = circumstances() | {"steps": STEPS, "processes": 2, "engines": rows}
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--train"]:
        trained(Path(sys.argv[2]), sys.argv[3:])
    else:
        main()
