"""Files of a dataset that are damaged or missing: training says which, in a sentence, and does not begin."""

import functools
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq

from attacks import Attack
from attacks.trained import SECONDS, dataset, run

TITLE = "Broken files of a dataset"

SHARD, DESCRIPTION = "data/train-00000.parquet", "magicedit.json"


def _bytes(name: str, change: Callable[[bytes], bytes]) -> tuple[str, Callable[[Path], None]]:
    def damage(folder: Path) -> None:
        (folder / name).write_bytes(change((folder / name).read_bytes()))

    return name, damage


def _instead(name: str, make: Callable[[Path], object]) -> tuple[str, Callable[[Path], None]]:
    def damage(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return name, damage


def _described(**changes: object) -> tuple[str, Callable[[Path], None]]:
    def damage(folder: Path) -> None:
        path = folder / DESCRIPTION
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return DESCRIPTION, damage


def _table(change) -> tuple[str, Callable[[Path], None]]:
    def damage(folder: Path) -> None:
        pq.write_table(change(pq.read_table(folder / SHARD)), folder / SHARD)

    return SHARD, damage


# By name: the file that is to be named, and what is done to a copy of the dataset
DAMAGES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "a shard truncated": _bytes(SHARD, lambda content: content[:-100]),
    "half of a shard": _bytes(SHARD, lambda content: content[: len(content) // 2]),
    "a shard of no bytes": _bytes(SHARD, lambda content: b""),
    "a shard of zeros": _bytes(SHARD, lambda content: bytes(len(content))),
    "a shard that is text": _bytes(SHARD, lambda content: b"identity,image\n"),
    "a shard without its footer's bytes": _bytes(
        SHARD, lambda content: content[:-1000] + bytes(992) + content[-8:]
    ),
    "a shard that is a folder": _instead(SHARD, Path.mkdir),
    "a shard that is a pipe": _instead(SHARD, os.mkfifo),
    "a shard that links to nowhere": _instead(SHARD, lambda path: path.symlink_to("nowhere")),
    "a shard that links to an endless device": _instead(SHARD, lambda path: path.symlink_to("/dev/zero")),
    "a shard without landmarks": _table(lambda table: table.drop_columns(["landmarks"])),
    "a shard without rows": _table(lambda table: table.slice(0, 0)),
    "a shard with half of the rows": _table(lambda table: table.slice(0, 3)),
    "no shards": ("dataset", lambda folder: shutil.rmtree(folder / "data")),
    "no description": (DESCRIPTION, lambda folder: (folder / DESCRIPTION).unlink()),
    "a torn description": _bytes(DESCRIPTION, lambda content: content[:40]),
    "a description of no bytes": _bytes(DESCRIPTION, lambda content: b""),
    "a description nested too deep": _bytes(DESCRIPTION, lambda content: b"[" * 100_000),
    "a description that is a pipe": _instead(DESCRIPTION, os.mkfifo),
    "a list for a description": _bytes(DESCRIPTION, lambda content: b"[1]"),
    "no crop size": _described(crop_size=None),
    "a crop size that is text": _described(crop_size="64"),
    "action units that are a number": _described(action_units=12),
    "unknown landmarks": ("dataset", _described(landmarks="seven")[1]),
    "counts that are text": _described(photographs={"train": "six"}),
}


def attacks(seed: int, short: bool) -> list[Attack]:
    chosen = random.Random(seed).sample(sorted(DAMAGES), 4) if short else DAMAGES
    return [Attack(name, functools.partial(_check, *DAMAGES[name]), SECONDS) for name in chosen]


def _check(named: str, damage: Callable[[Path], None], folder: Path) -> str | None:
    data = folder / "dataset"
    shutil.copytree(dataset(), data)
    damage(data)
    ended = run(folder / "output", f"--train_data_dir={data}")
    if ended.code != 2 or "Traceback" in ended.output:
        return f"training ended with {ended.code}: {ended.output[-300:]}"
    said = ended.output.strip().splitlines()[-1]
    if len(said) > 2000 or Path(named).name not in said:
        return f"the error does not name {named}: {said[:300]}"
    return None
