"""Evaluate, killed before each of its file-system calls: the next run ends with the same rows and report."""

import csv
import functools
import io
import json
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot  # noqa: F401 - what a forked job must not import anew
import numpy as np
import pyarrow.parquet as pq
from PIL import Image

import magicedit.evaluation.plots  # noqa: F401
from attacks import Attack, crashing
from magicedit.errors import MissingDependencyError
from magicedit.evaluation import Entrant, evaluate, load_protocol, scoring
from magicedit.faces import Face
from magicedit.files import is_temporary

TITLE = "Crash points of evaluate, resumed"
SHORT = ("fresh", 2)  # the scenario of a sample, and its points
MOST = 8  # points of a scenario otherwise
SIDE = 64  # pixels
PROTOCOL = """
name: brief
version: 1
title: A few edits
description: For attacks.
identities: 2
levels: {action_units: [AU12], values: [-2, 2]}
zero: true
"""
TIMED = ("seconds", "cold")


class Still:
    """A face backend without a network: fixed landmarks, and the picture's brightness as intensities."""

    name = "still"

    def detect(self, pixels: np.ndarray) -> list[Face]:
        points = np.random.default_rng(0).uniform(16, SIDE - 16, (478, 2)).astype(np.float32)
        units = dict.fromkeys(load_protocol("table1").action_units, float(pixels.mean()) / 64)
        return [Face((8.0, 8.0, 56.0, 56.0), points, "mediapipe478", 1.0, units)]


def brighter(photo, au_delta, seed) -> np.ndarray:
    """An editor: a step is as many grey levels."""
    return np.clip(photo.pixels + 8.0 * sum(au_delta.values()), 0, 255).astype(np.uint8)


def _nothing(*_):
    raise MissingDependencyError("attacks measure without networks")


def run(folder: Path, *names: str) -> None:
    """Evaluates an editor under each name: in a process of its own."""
    without_networks()
    entrants = [Entrant(name, lambda: brighter) for name in names]
    evaluate(entrants, folder / "brief.yaml", folder / "people", folder / "report", cold_start=False)


def without_networks() -> None:
    """Lets this process score by what loads no network."""
    scoring.load_backend = lambda name: Still() if name == "mediapipe" else _nothing()
    scoring.load_lpips = scoring.load_mobileface = scoring.load_st_lpips = _nothing
    scoring.dlib_backend.available = lambda: False


def people(folder: Path) -> None:
    (folder / "brief.yaml").write_text(PROTOCOL)
    for number, name in enumerate(("ann", "bea")):
        (folder / "people" / name).mkdir(parents=True)
        pixels = np.random.default_rng(number).integers(60, 180, (SIDE, SIDE, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "people" / name / "neutral.png")


def begun(folder: Path) -> None:
    people(folder)
    crashing.count(functools.partial(run, folder, "first"), folder / "report")


def half(folder: Path) -> None:
    """A run that was killed after some rows."""
    people(folder)
    crashing.run(functools.partial(run, folder, "first"), folder / "report", 20)


# What is there before, and the editors of the run that is killed
SCENARIOS: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "fresh": (people, ("first",)),
    "a second editor": (begun, ("second",)),
    "resumed": (half, ("first",)),
}


def attacks(seed: int, short: bool) -> list[Attack]:
    rng, found = random.Random(seed), []
    for name in (SHORT[0],) if short else SCENARIOS:
        calls, _ = _uninterrupted(name)
        for point in sorted(rng.sample(range(1, calls + 1), SHORT[1] if short else min(calls, MOST))):
            check = functools.partial(_check, name, point)
            found.append(Attack(f"{name}, before call {point} of {calls}", check, seconds=60))
    return found


def _check(name: str, point: int, folder: Path) -> str | None:
    scene, editors = SCENARIOS[name]
    scene(folder)
    job, report = functools.partial(run, folder, *editors), folder / "report"
    ended = crashing.run(job, report, point)
    if ended.code != -9:
        return f"it was not killed: {ended.code} {ended.output[-200:]}"
    if problem := _torn(report):
        return problem
    ended = crashing.run(job, report)
    if ended.code:
        return f"the next run ended with {ended.code}: {ended.output[-300:]}"
    if problem := _torn(report):
        return problem
    now, whole = contents(report), _uninterrupted(name)[1]
    different = [name for name in now.keys() | whole.keys() if now.get(name) != whole.get(name)]
    return f"another report: {', '.join(sorted(different))}" if different else None


def _torn(report: Path) -> str | None:
    """Names a file of the report that is there and not whole."""
    for path in sorted(report.rglob("*")):
        try:
            if path.name in ("summary.json", "run.json"):
                json.loads(path.read_text())
            elif path.suffix == ".parquet":
                pq.read_table(path)
            elif path.suffix == ".jpg":
                Image.open(path).load()
            elif path.name == "report.html":
                assert path.read_text().rstrip().endswith("</html>")
            elif path.suffix == ".svg":
                assert path.read_text().rstrip().endswith("</svg>")
        except Exception as error:
            return f"{path.name} is torn: {error!r}"
    return None


@functools.cache
def _uninterrupted(name: str) -> tuple[int, dict[str, Any]]:
    """Number of file-system calls of a whole run, and what its report says."""
    folder = Path(tempfile.mkdtemp(prefix="evaluate-"))
    scene, editors = SCENARIOS[name]
    scene(folder)
    calls = crashing.count(functools.partial(run, folder, *editors), folder / "report")
    found = contents(folder / "report")
    shutil.rmtree(folder)
    return calls, found


def contents(report: Path) -> dict[str, Any]:
    """What a report says, by file, without what differs between two runs: times, and orders of rows."""
    found: dict[str, Any] = {path.relative_to(report).as_posix(): None for path in report.rglob("*")}
    found = {name: None for name in found if not is_temporary(name.rpartition("/")[2])}
    rows = [json.loads(line) for line in (report / "rows.jsonl").read_text().splitlines()]
    found["rows.jsonl"] = [{key: value for key, value in row.items() if key not in TIMED} for row in rows]
    table = csv.DictReader(io.StringIO((report / "rows.csv").read_text()))
    found["rows.csv"] = [{key: value for key, value in row.items() if key not in TIMED} for row in table]
    table = pq.read_table(report / "rows.parquet").to_pylist()
    found["rows.parquet"] = [{key: value for key, value in row.items() if key not in TIMED} for row in table]
    for editor in (summary := json.loads((report / "summary.json").read_text()))["editors"].values():
        editor.pop("seconds", None)
        editor["headline"] = {key: value for key, value in editor["headline"].items() if key != "seconds"}
        for group in editor["groups"].values():
            for of in group.values():
                of["headline"].pop("seconds", None)
    found["summary.json"] = summary
    found["run.json"] = json.loads((report / "run.json").read_text())
    return found
