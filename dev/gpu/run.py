"""Runs the stages of the GPU kit within a budget, on a machine that has torch, transformers and accelerate.

    dev/gpu/run --budget 480 --stages speed,train
    dev/gpu/run --dry-run                         # the same code with tiny models on the CPU

Each stage is one or more tasks, which run in processes of their own. A task gets its share of the time that
is left: it is told how long, then asked to end (SIGTERM), then killed. A task that fails is recorded, and the
next one starts. What `dev/gpu/pack` gathered is used from `packed/` beside this file.

Results are written to $OUT, or to --output, as soon as they exist: `speed.json` with a row for each
measurement, weights of the trained model in shards (`assemble.py` joins them), `run.json` with what became of
each task, and `log.txt`. A row that `packed/earlier/speed.json` has is not measured again. Training goes on
from checkpoints in --work if there are any.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]

MARGIN = 15.0  # seconds of the budget that no task gets
GRACE = 10.0  # seconds between asking a task to end and killing it
FEWEST = 5.0  # seconds below which no task starts
LOG_BYTES = 4 * 2**20  # of log.txt


@dataclass(frozen=True)
class Task:
    """share: weight of its time among the tasks that are still to run."""

    name: str
    script: str
    arguments: tuple[str, ...]
    share: float


STAGES = {
    "speed": (
        Task("edits", "speed_rows.py", ("edits",), 0.15),
        Task("training steps", "speed_rows.py", ("training",), 0.15),
        Task("CUDA graphs", "speed_rows.py", ("graphs",), 0.05),
        Task("compiled", "speed_rows.py", ("compiled",), 0.2),
    ),
    "train": (Task("train", "continue_training.py", (), 0.45),),
}


def lay_out_packages(packed: Path, site: Path) -> None:
    """Unpacks the wheels into `site`, with the checkout's packages beside them as if installed."""
    wheels = sorted((packed / "wheels").glob("*.whl"))
    if not site.is_dir():
        site.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(dir=site.parent))
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(unfinished)
        package = unfinished / "magicedit"
        package.mkdir()
        for part in [*(ROOT / "magicedit").iterdir(), ROOT / "train", ROOT / "pipelines"]:
            (package / part.name).symlink_to(part)
        unfinished.rename(site)


def run_task(
    task: Task, arguments: list[str], seconds: float, environment: dict[str, str], log: Path
) -> dict:
    """Returns what became of a task: its status ("ok", "failed" or "stopped"), seconds, and last lines."""
    command = [sys.executable, "-u", str(HERE / task.script), *task.arguments, *arguments]
    command += ["--seconds", f"{seconds:.0f}"]
    started = time.monotonic()
    with log.open("ab") as stream:
        begin = stream.tell()
        process = subprocess.Popen(
            command, env=environment, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
        )
        stopped = False
        try:
            process.wait(seconds + GRACE)
        except subprocess.TimeoutExpired:
            stopped = True
            _end(process)
        finally:  # what it left behind, or itself, where this process is asked to end
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
    found = {
        "status": "stopped" if stopped else "failed" if process.returncode else "ok",
        "seconds": round(time.monotonic() - started, 1),
        "allowed_seconds": round(seconds, 1),
    }
    if found["status"] != "ok":
        with log.open("rb") as stream:
            stream.seek(begin)
            found["last_lines"] = stream.read().decode(errors="replace").splitlines()[-12:]
    return found


def _end(process: subprocess.Popen) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
            return


def write_json(path: Path, value: object) -> None:
    """Replaces a file, which is whole at every moment."""
    beside = path.with_name(f".{path.name}.new")
    beside.write_text(json.dumps(value, indent=1) + "\n")
    beside.replace(path)


def summary(output: Path) -> list[str]:
    """Lines that tell what is in the results."""
    lines = []
    speed = output / "speed.json"
    for name, row in (json.loads(speed.read_text()) if speed.is_file() else {}).items():
        what = f"{row['seconds']:.4f} s" if "seconds" in row else row.get("failed", "")
        share = f", {100 * row['utilisation']:.0f} % of the peak" if row.get("utilisation") else ""
        memory = f", {row['peak_memory_gb']:.1f} GB" if row.get("peak_memory_gb") else ""
        lines.append(f"{name:48} {what}{share}{memory}")
    for name, found in json.loads((output / "run.json").read_text())["tasks"].items():
        lines.append(f"{name:48} {found['status']} after {found['seconds']} of {found['allowed_seconds']} s")
        lines += [f"    {line}" for line in found.get("last_lines", [])[-3:]]
    return lines


def main() -> int:
    started = time.monotonic()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # ends the task too
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--budget", type=float, default=480.0, help="seconds in all")
    parser.add_argument("--stages", default="speed,train", help=f"of {', '.join(STAGES)}, joined by commas")
    parser.add_argument("--output", type=Path, default=Path(os.environ.get("OUT", "gpu-results")))
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "magicedit-gpu")
    parser.add_argument("--packed", type=Path, default=HERE / "packed", help="what dev/gpu/pack gathered")
    parser.add_argument("--dry-run", action="store_true", help="tiny models, on the CPU")
    args = parser.parse_args()
    stages = args.stages.split(",")
    if unknown := set(stages) - set(STAGES):
        parser.error(f"no stage {', '.join(sorted(unknown))}; there are {', '.join(STAGES)}")
    if args.budget < MARGIN + FEWEST:
        parser.error(f"--budget must be at least {MARGIN + FEWEST:.0f} seconds, got {args.budget:g}")
    output, work = args.output.resolve(), args.work.resolve()
    output.mkdir(parents=True, exist_ok=True)
    work.mkdir(parents=True, exist_ok=True)
    site = work / "site"
    lay_out_packages(args.packed, site)
    paths = [site, ROOT / "benchmarks", *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TORCHINDUCTOR_CACHE_DIR": str(work / "compiled"),
    }
    earlier = args.packed / "earlier" / "speed.json"
    if earlier.is_file() and not (output / "speed.json").is_file():
        shutil.copyfile(earlier, output / "speed.json")
    arguments = ["--output", str(output), "--work", str(work), "--packed", str(args.packed.resolve())]
    arguments += ["--dry-run"] if args.dry_run else []
    log, end = work / "log.txt", started + args.budget - MARGIN
    tasks = [task for stage in stages for task in STAGES[stage]]
    about: dict = {"budget": args.budget, "dry_run": args.dry_run, "tasks": {}}
    for number, task in enumerate(tasks):
        shares = sum(other.share for other in tasks[number:])
        left = end - time.monotonic()
        seconds = left * task.share / shares - (GRACE if number + 1 == len(tasks) else 0.0)
        print(f"{task.name}: {seconds:.0f} s", flush=True)
        if seconds < FEWEST:
            found = {"status": "skipped", "seconds": 0, "allowed_seconds": round(seconds, 1)}
        else:
            found = run_task(task, arguments, seconds, environment, log)
        about["tasks"][task.name] = found
        about["seconds"] = round(time.monotonic() - started, 1)
        write_json(output / "run.json", about)
        if log.is_file():
            (output / "log.txt").write_bytes(log.read_bytes()[-LOG_BYTES:])
    print("\n".join(summary(output)))
    return 0 if all(found["status"] == "ok" for found in about["tasks"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
