"""Preparing many photographs: photographs a second with one core and with Ray on two, and memory.

    python benchmarks/scale.py speed --before CHECKOUT    keeps benchmarks/scale.json
    python benchmarks/scale.py memory

speed: a real face backend on copies of one photograph. Arms are runs of their own, in turn: an earlier state
of this repository (`git worktree add CHECKOUT COMMIT`), this one, and Ray with two workers. Costs are those
of MORE photographs beyond FEW, so that starting costs nothing. CPU seconds are of all processes of a run;
wall seconds are kept where the machine does little else.

memory: the peaks of processes that prepare 1,000, 10,000 and 100,000 small files, and stream their shards.
Measuring 100,000 faces takes hours; so the face backend is an object that tells the same face every time.
"""

import argparse
import dataclasses
import io
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[1]
RESULT = REPOSITORY / "benchmarks" / "scale.json"
PORTRAIT = REPOSITORY / "tests" / "portraits" / "closed_mouth.jpg"
FEW, MORE, PASSES = 16, 160, 3  # photographs of a run
COUNTS = (1_000, 10_000, 100_000)
SIDE = 64  # px of the small files
EACH = 10  # photographs of a person
SECONDS_BETWEEN = 0.2  # readings of CPU times
QUIET = 3.0  # load average, ours included, up to which wall time tells of us

RUN = """
import sys, magicedit.data
folder, output, options = sys.argv[1], sys.argv[2], eval(sys.argv[3])
if __name__ == "__main__":
    magicedit.data.prepare_dataset(folder, output, size=256, progress=False, **options)
"""


def write_copies(folder: Path, count: int, content: bytes) -> None:
    """Writes files of people, of one picture and different bytes: a JPEG may be followed by anything."""
    for number in range(count):
        person = folder / f"{number // EACH:06}"
        person.mkdir(parents=True, exist_ok=True)
        (person / f"{number % EACH}.jpg").write_bytes(content + number.to_bytes(8, "big"))


def cost(checkout: Path, folder: Path, options: dict, threads: int) -> tuple[float, float]:
    """CPU and wall seconds of a run of `checkout` on a folder, on so many cores."""
    with tempfile.TemporaryDirectory() as output:
        script = Path(output) / "run.py"
        script.write_text(RUN)
        started, seconds = time.perf_counter(), {}
        cores = ",".join(map(str, sorted(os.sched_getaffinity(0))[:threads]))
        command = ["taskset", "-c", cores, sys.executable, script, folder, f"{output}/out", repr(options)]
        environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
        run = psutil.Popen(list(map(str, command)), env=environment, stderr=subprocess.PIPE)
        while run.poll() is None:
            try:
                for process in (run, *run.children(recursive=True)):
                    used = process.cpu_times()
                    seconds[process.pid] = used.user + used.system
            except psutil.NoSuchProcess:
                continue
            time.sleep(SECONDS_BETWEEN)
        if run.returncode:
            raise RuntimeError(run.stderr.read().decode())
        return sum(seconds.values()), time.perf_counter() - started


def keep(found: dict[str, dict]) -> None:
    """Writes what a step found, with its circumstances, beside what others did."""
    from machine import circumstances

    kept = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    kept |= {step: circumstances() | values for step, values in found.items()}
    RESULT.write_text(json.dumps(kept, indent=1) + "\n")


def speed(before: Path) -> None:
    arms = {
        "before": (before, {}, 1),
        "now": (REPOSITORY, {}, 1),
        "ray": (REPOSITORY, {"engine": "ray", "jobs": 2}, 2),
    }
    costs: dict[str, list[tuple[float, float]]] = {name: [] for name in arms}
    loads = []
    with tempfile.TemporaryDirectory() as place:
        for count in (FEW, FEW + MORE):
            write_copies(Path(place) / str(count), count, PORTRAIT.read_bytes())
        for number in range(PASSES):
            for name in list(arms) if number % 2 == 0 else reversed(arms):
                checkout, options, cores = arms[name]
                little, much = (
                    cost(checkout, Path(place) / str(count), options, cores) for count in (FEW, FEW + MORE)
                )
                costs[name].append(tuple((b - a) / MORE for a, b in zip(little, much, strict=True)))
                loads.append(os.getloadavg()[0])
                print(name, costs[name][-1], file=sys.stderr)
            keep({"speed": summary(costs, loads, before)})


def summary(costs: dict[str, list[tuple[float, float]]], loads: list[float], before: Path) -> dict:
    """costs: CPU and wall seconds a photograph, by arm and pass."""
    cpu, wall = (
        {name: statistics.median(pair[kind] for pair in found) for name, found in costs.items()}
        for kind in (0, 1)
    )
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=before, capture_output=True, text=True, check=True
    ).stdout.strip()
    load = statistics.mean(loads)
    by_wall = {
        "wall_ms_a_photograph": {name: round(1e3 * value, 1) for name, value in wall.items()},
        "two_cores_with_ray_by_wall": round(wall["before"] / wall["ray"], 2),
    }
    return {
        "before": commit,
        "photographs": MORE,
        "load_average": round(load, 1),
        "cpu_ms_a_photograph": {name: round(1e3 * value, 1) for name, value in cpu.items()},
        "one_core_against_before": round(cpu["before"] / cpu["now"], 2),
        # What two cores that do nothing else reach: the work of a photograph is divided between them
        "two_cores_with_ray_by_cpu": round(2 * cpu["before"] / cpu["ray"], 2),
        **(by_wall if load <= QUIET else {}),
        "passes": costs,
    }


class SameFace:
    """A face backend that measured one face, and finds it in every picture, which has SIDE px."""

    name = "same-face"

    def __init__(self) -> None:
        from magicedit.faces import load_backend

        with Image.open(PORTRAIT) as picture:
            (face, *_), scale = (
                load_backend("mediapipe").detect(np.asarray(picture)),
                SIDE / max(picture.size),
            )
        box = tuple(scale * side for side in face.box)
        self._faces = [dataclasses.replace(face, landmarks=face.landmarks * np.float32(scale), box=box)]

    def detect(self, pixels: np.ndarray) -> list:
        return self._faces


def small_portrait() -> bytes:
    with Image.open(PORTRAIT) as picture:
        picture.thumbnail((SIDE, SIDE))
        buffer = io.BytesIO()
        picture.save(buffer, "jpeg", quality=80)
    return buffer.getvalue()


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3  # Linux: kilobytes


def prepare_small(folder: Path, output: Path) -> None:
    """Prepares a folder and prints what it took, as JSON."""
    from magicedit.data import prepare_dataset

    before, started = peak_mb(), time.process_time()
    report = prepare_dataset(folder, output, size=SIDE, backend=SameFace(), progress=False)
    photographs = sum(report.photographs.values())
    seconds = time.process_time() - started
    print(
        json.dumps({"photographs": photographs, "start_mb": before, "peak_mb": peak_mb(), "cpu_s": seconds})
    )


def stream_small(dataset: Path, output: Path) -> None:
    """Writes a dataset's shards and streams some samples, and prints what that took, as JSON."""
    from magicedit.data.streaming import StreamingPairs
    from magicedit.data.webdataset_shards import write_shards

    StreamingPairs  # noqa: B018 - loaded before memory is read
    before = peak_mb()
    write_shards(dataset, output, shard_bytes=4_000_000, progress=False)
    written = peak_mb()
    pairs = StreamingPairs(output, resolution=SIDE, warped=0.5, relations=False)
    for n in range(0, 4 * len(pairs), max(1, len(pairs) // 50)):
        pairs[n]
    print(json.dumps({"start_mb": before, "written_mb": written, "streamed_mb": peak_mb()}))


def memory(counts: tuple[int, ...], streamed: int) -> None:
    """streamed: the most photographs that are written as shards, too, which takes twice as long."""
    rows: list[dict] = []
    for count in counts:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            write_copies(folder / "photographs", count, small_portrait())
            row = {}
            steps = {"prepare-small": ("photographs", "dataset"), "stream-small": ("dataset", "shards")}
            for step, paths in list(steps.items())[: 1 + (count <= streamed)]:
                command = [sys.executable, __file__, step, *(folder / name for name in paths)]
                environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
                run = subprocess.run(
                    list(map(str, command)), env=environment, stdout=subprocess.PIPE, text=True, check=True
                )
                row[step] = json.loads(run.stdout.splitlines()[-1])
        print(count, row, file=sys.stderr)
        rows.append({"photographs": count, **row})
        more = count - rows[0]["photographs"]
        grown = row["prepare-small"]["peak_mb"] - rows[0]["prepare-small"]["peak_mb"]
        grows = {"prepare_bytes_a_photograph": round(1e6 * grown / more)} if more else {}
        keep({"memory": {"runs": rows, **grows}})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    steps = parser.add_subparsers(dest="step", required=True)
    steps.add_parser("speed").add_argument("--before", type=Path, required=True)
    counted = steps.add_parser("memory")
    counted.add_argument("--counts", type=int, nargs="+", default=COUNTS)
    counted.add_argument("--streamed", type=int, default=COUNTS[-1])
    for name in ("prepare-small", "stream-small"):
        step = steps.add_parser(name, help="one run of `memory`")
        step.add_argument("folder", type=Path)
        step.add_argument("output", type=Path)
    args = parser.parse_args()
    if args.step in ("prepare-small", "stream-small"):
        {"prepare-small": prepare_small, "stream-small": stream_small}[args.step](args.folder, args.output)
        return
    if args.step == "speed":
        speed(args.before)
    else:
        memory(tuple(args.counts), args.streamed)


if __name__ == "__main__":
    main()
