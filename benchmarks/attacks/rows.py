"""Rows of a dataset that cannot be used are left out, counted and named; training goes on without them."""

import functools
import io
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from attacks import Attack
from attacks.trained import LATEST, SECONDS, broken_dataset, run
from magicedit.files import sha256_of

TITLE = "Broken rows of a dataset"
BROKEN = 3  # the number of the row

Row = dict[str, Any]


def _set(column: str, value: object) -> Callable[[Row, random.Random], None]:
    return lambda row, _: row.update({column: value})


def _one(column: str, value: object) -> Callable[[Row, random.Random], None]:
    """One value of a list, at a place that the seed decides."""

    def change(row: Row, rng: random.Random) -> None:
        row[column][rng.randrange(len(row[column]))] = value

    return change


def _picture(change: Callable[[bytes, random.Random], bytes | None]) -> Callable[[Row, random.Random], None]:
    def changed(row: Row, rng: random.Random) -> None:
        row["image"] = {"bytes": change(row["image"]["bytes"], rng), "path": None}

    return changed


def _saved(size: tuple[int, int], kind: str = "PNG", mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, kind)
    return buffer.getvalue()


CHANGES: dict[str, Callable[[Row, random.Random], None]] = {
    "no picture": _set("image", None),
    "a picture without bytes": _picture(lambda *_: None),
    "an empty picture": _picture(lambda *_: b""),
    "a truncated picture": _picture(lambda content, rng: content[: rng.randrange(100, len(content) // 2)]),
    "noise for a picture": _picture(lambda _, rng: rng.randbytes(500)),
    "text for a picture": _picture(lambda *_: b"<svg></svg>"),
    "a picture of one pixel": _picture(lambda *_: _saved((1, 1))),
    "a picture of another size": _picture(lambda *_: _saved((63, 64))),
    "a picture of 20,000 x 20,000 px": _picture(lambda *_: _saved((20_000, 20_000), mode="1")),
    "no action units": _set("action_units", None),
    "an empty list of action units": _set("action_units", []),
    "too few action units": lambda row, _: row.update(action_units=row["action_units"][:-1]),
    "too many action units": lambda row, _: row.update(action_units=[*row["action_units"], 0.0]),
    "an action unit that is NaN": _one("action_units", math.nan),
    "an action unit that is null": _one("action_units", None),
    "an infinite action unit": _one("action_units", math.inf),
    "an action unit of 10^30": _one("action_units", 1e30),
    "an action unit of 500": _one("action_units", 500.0),
    "an action unit below 0": _one("action_units", -1.0),
    "no landmarks": _set("landmarks", None),
    "too few landmarks": lambda row, _: row.update(landmarks=row["landmarks"][:-2]),
    "an odd number of coordinates": lambda row, _: row.update(landmarks=row["landmarks"][:-1]),
    "a landmark that is NaN": _one("landmarks", math.nan),
    "an infinite landmark": _one("landmarks", -math.inf),
    "a landmark far outside": _one("landmarks", 1e9),
    "all landmarks in one place": lambda row, _: row.update(landmarks=[32.0] * len(row["landmarks"])),
    "no identity": _set("identity", None),
    "an empty identity": _set("identity", ""),
    "no source": _set("source", None),
    "a pose of one angle": _set("pose", [1.0]),
    "a pose that is NaN": _set("pose", [math.nan] * 3),
}


def attacks(seed: int, short: bool) -> list[Attack]:
    chosen = random.Random(seed).sample(sorted(CHANGES), 3) if short else CHANGES
    found = [Attack(name, functools.partial(_check, name, seed), SECONDS) for name in chosen]
    return found if short else [*found, Attack("killed and resumed", _resumed, SECONDS)]


def _broken(folder: Path, name: str, seed: int) -> Path:
    rng = random.Random(f"{seed} {name}")
    return broken_dataset(folder / "dataset", lambda rows: CHANGES[name](rows[BROKEN], rng))


def _check(name: str, seed: int, folder: Path) -> str | None:
    data, output = _broken(folder, name, seed), folder / "output"
    output.mkdir()
    ended = run(output, f"--train_data_dir={data}")
    if ended.code:
        return f"training ended with {ended.code}: {ended.output[-300:]}"
    named = f"train-00000.parquet row {BROKEN}"
    if named not in ended.output:
        return "the row was not named"
    if f"ann/{BROKEN}.png" not in ended.output and name != "no source":
        return "its photograph was not named"
    strict = run(folder / "strict", f"--train_data_dir={data}", "--max_bad_fraction=0")
    if strict.code != 2 or named not in strict.output or "Traceback" in strict.output:
        return f"--max_bad_fraction=0 ended with {strict.code}: {strict.output[-300:]}"
    return None


def _resumed(folder: Path) -> str | None:
    """A dataset with a broken row trains the same when the run is killed in the middle."""
    data = _broken(folder, "a truncated picture", 0)
    outputs = [folder / "straight", folder / "killed"]
    for output in outputs:
        output.mkdir()
    run(outputs[0], f"--train_data_dir={data}")
    if (
        killed := run(outputs[1], f"--train_data_dir={data}", at=3, under=outputs[1] / "train_log.jsonl")
    ).code != -9:
        return f"it was not killed but ended with {killed.code}: {killed.output[-300:]}"
    run(outputs[1], f"--train_data_dir={data}", LATEST)
    digests = [sha256_of(output / "parts.json") for output in outputs]
    return None if digests[0] == digests[1] else "the resumed run ended otherwise"
