"""Prepare, killed before each of its file-system calls: the next run ends with the same dataset."""

import functools
import hashlib
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import datasets  # noqa: F401 - imported by writing; a forked job must not import it anew
import numpy as np
from PIL import Image

from attacks import Attack, crashing
from magicedit.action_units import NAMES
from magicedit.data import prepare_dataset, shards
from magicedit.data.description import SHARDS, current, read_description
from magicedit.faces import Face
from magicedit.files import LOCK

TITLE = "Crash points of prepare, resumed"
SHORT = 2  # points of each scenario
SIDE = 64  # pixels


class Still:
    """A face backend without a network: fixed landmarks, and the picture's brightness as intensities."""

    name = "still"

    def detect(self, pixels: np.ndarray) -> list[Face]:
        if pixels.mean() < 10:
            return []
        points = np.random.default_rng(0).uniform(16, SIDE - 16, (478, 2)).astype(np.float32)
        units = dict.fromkeys(shards.MEASURED, 0.0) | dict.fromkeys(NAMES, float(pixels.mean()) / 64)
        return [Face((8.0, 8.0, 56.0, 56.0), points, "mediapipe478", 1.0, units)]


def photographs(folder: Path, people: range) -> None:
    """Two photographs a person, a dark one that shows no face, and a file that is no photograph."""
    for person in people:
        rng = np.random.default_rng(person)
        (folder / f"person{person}").mkdir(parents=True)
        for number in range(2):
            pixels = rng.integers(40, 256, (SIDE, SIDE, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"person{person}" / f"{number}.png")
    Image.new("RGB", (SIDE, SIDE), (people.start, 0, 0)).save(folder / f"person{people.start}" / "dark.png")
    (folder / "notes.txt").write_text("no photograph")


def prepare(folder: Path, **options) -> None:
    prepare_dataset(
        folder / "photographs", folder / "dataset", size=SIDE, backend=Still(), progress=False, **options
    )


def in_small_shards(folder: Path) -> None:
    shards._SHARD_BYTES = shards.ROW_GROUP = 1  # of this process alone: rows and shards are one
    prepare(folder, validation=["person2"])


def begun(folder: Path, job: Callable[[Path], None] = prepare) -> None:
    """A dataset of three people, and the photographs of two more."""
    photographs(folder / "photographs", range(3))
    _done(functools.partial(job, folder), folder)
    photographs(folder / "photographs", range(3, 5))
    (folder / "photographs" / "person0" / "0.png").unlink()


# What is there before, and what is killed
SCENARIOS: dict[str, tuple[Callable[[Path], None], Callable[[Path], None]]] = {
    "fresh": (lambda folder: photographs(folder / "photographs", range(3)), prepare),
    "extended": (begun, prepare),
    "forced": (begun, functools.partial(prepare, force=True)),
    "several shards": (lambda folder: photographs(folder / "photographs", range(4)), in_small_shards),
    "extended in several shards": (functools.partial(begun, job=in_small_shards), in_small_shards),
}


def attacks(seed: int, short: bool) -> list[Attack]:
    rng, found = random.Random(seed), []
    for name in SCENARIOS:
        calls, _ = _uninterrupted(name)
        points = range(1, calls + 1)
        for point in sorted(rng.sample(points, SHORT)) if short else points:
            check = functools.partial(_check, name, point)
            found.append(Attack(f"{name}, before call {point} of {calls}", check, seconds=20))
    return found


def _check(name: str, point: int, folder: Path) -> str | None:
    SCENARIOS[name][0](folder)
    job, dataset = functools.partial(SCENARIOS[name][1], folder), folder / "dataset"
    was = dataset.exists()
    ended = crashing.run(job, dataset, point)
    if ended.code != -9:
        return f"it was not killed: {ended.code} {ended.output[-200:]}"
    if was and (problem := _usable(dataset)):
        return problem
    ended = crashing.run(job, dataset)
    if ended.code:
        return f"the next run ended with {ended.code}: {ended.output[-300:]}"
    if (now := contents(dataset)) != (whole := _uninterrupted(name)[1]):
        return f"another dataset: {sorted(set(now.items()) ^ set(whole.items()))[:4]}"
    return None


def _usable(dataset: Path) -> str | None:
    """Whether the dataset, old or new, can be read as it lies."""

    def read() -> None:
        import pyarrow.parquet as pq

        counts = read_description(dataset)["photographs"]
        for split, count in counts.items():
            files = sorted(current(dataset, SHARDS).glob(f"{split}-*.parquet"))
            assert sum(pq.read_table(file).num_rows for file in files) == count, files

    ended = crashing.run(read, dataset)
    return f"no dataset is left that can be read: {ended.output[-300:]}" if ended.code else None


@functools.cache
def _uninterrupted(name: str) -> tuple[int, dict[str, str]]:
    """Number of file-system calls of a whole run, and the dataset's files."""
    folder = Path(tempfile.mkdtemp(prefix="prepare-"))
    scene, job = SCENARIOS[name]
    scene(folder)
    calls = crashing.count(functools.partial(job, folder), folder / "dataset")
    found = contents(folder / "dataset")
    shutil.rmtree(folder)
    return calls, found


def _done(job: Callable[[], None], folder: Path) -> None:
    crashing.count(job, folder)  # in a process of its own, so that this one can be forked again


def contents(folder: Path) -> dict[str, str]:
    """Digests of all files by their names, the lock aside."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != LOCK
    }
