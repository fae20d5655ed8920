"""A prepared dataset as WebDataset shards: tar files that training streams, see `magicedit.data.streaming`.

    STREAM/train-00000.tar, validation-00000.tar    KEY.jpg (or .png), KEY.mask.png, KEY.json by photograph
    STREAM/magicedit.json    as of the dataset; `shards`: bytes, SHA-256 and counts of each

All photographs of an identity are in one shard, and identities are in the order of a hash of their names, so
that a shard is a random sample of people. KEY.json has the other columns of the row, see `shards.features`.
The same dataset gives the same bytes.
"""

import contextlib
import functools
import hashlib
import itertools
import json
import math
import operator
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm.auto import tqdm

from magicedit.data.description import (
    DESCRIPTION_FILE,
    SHARDS,
    SPLITS,
    current,
    read_description,
)
from magicedit.data.shards import ROW_GROUP, Row, row_group
from magicedit.errors import DatasetError, OutputError, needs_extra
from magicedit.files import LOCK, is_temporary, open_regular, replacing, shown, sweep, write_text, writing
from magicedit.ledger import Ledger

SHARD_BYTES = 64 * 10**6  # after which the next identity begins a shard
NAME = re.compile(rf"({'|'.join(SPLITS)})-[0-9]{{5,}}\.tar")
_JOURNAL = "shards.jsonl"  # the shards that an interrupted run finished
_HELD_GROUPS = 64  # of rows that are read, of a megabyte each


@dataclass(frozen=True)
class ShardReport:
    """Result of `write_shards`. shards, photographs, identities: counts by split. unchanged: whether nothing
    had to be written."""

    output: str
    shards: dict[str, int]
    photographs: dict[str, int]
    identities: dict[str, int]
    unchanged: bool = False


def write_shards(
    dataset: str | Path, output: str | Path, *, shard_bytes: int = SHARD_BYTES, progress: bool = True
) -> ShardReport:
    """Writes a dataset that `prepare` wrote as WebDataset shards into the folder `output`.

    Running it again writes nothing where the dataset is the same, and continues an interrupted run. It holds
    about a hundred megabytes, and a few bytes of each photograph.

    Args:
        shard_bytes: size after which a shard ends with its last identity.

    Raises: DatasetError where there is no such dataset, or it is damaged; OutputError where `output` cannot
    be written, or holds anything but such shards; MissingDependencyError without webdataset.
    """
    with needs_extra("scale", "shards are written by webdataset"):
        import webdataset  # noqa: F401
    if shard_bytes < 1:
        raise DatasetError(f"shard_bytes must be at least 1, got {shard_bytes}")
    dataset, output = Path(dataset), Path(output)
    description = read_description(dataset, "fingerprint", "photographs", "identities", "settings")
    if description.get("shards") is not None:
        raise DatasetError(f"{shown(dataset)} holds shards already; give the dataset that they were made of")
    made_of = {"dataset": description["fingerprint"], "shard_bytes": shard_bytes}
    _check_ours(output)
    if (before := _earlier(output)) and before["made_of"] == made_of and _complete(output, before["shards"]):
        return _report(output, before["shards"], unchanged=True)
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
    with Ledger(output / _JOURNAL, operator.itemgetter("name")) as journal:  # the last run's file of a name
        with writing(output):
            sweep(output)
            (output / DESCRIPTION_FILE).unlink(missing_ok=True)  # shards are about to change
        done = {entry["name"]: entry for entry in journal.entries.values() if entry.get("made_of") == made_of}
        shards: dict[str, list[dict[str, Any]]] = {}
        count = sum(pq.read_metadata(path).num_rows for path in _paths(dataset, *SPLITS))
        with tqdm(total=count, desc="writing", unit="photo", disable=None if progress else True) as bar:
            for split in SPLITS:
                if not (paths := _paths(dataset, split)):
                    continue
                shards[split] = []
                for entry in _write_split(output, split, paths, shard_bytes, done):
                    if entry["name"] not in done:
                        journal.add(entry | {"made_of": made_of})
                    shards[split].append({key: entry[key] for key in _INDEXED})
                    bar.update(entry["photographs"])
        if read_description(dataset, "fingerprint")["fingerprint"] != made_of["dataset"]:
            raise DatasetError(f"{shown(dataset)} was prepared again meanwhile; run this again")
        names = {shard["name"] for split in shards.values() for shard in split}
        with writing(output):
            for name in os.listdir(output):
                if NAME.fullmatch(name) and name not in names:
                    (output / name).unlink()
        content = {key: value for key, value in description.items() if key != "card"}
        content |= {"made_of": made_of, "shards": shards}
        write_text(output / DESCRIPTION_FILE, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    with contextlib.suppress(OSError):  # what it says stands in the description
        (output / _JOURNAL).unlink()
    return _report(output, shards)


_INDEXED = ("name", "bytes", "sha256", "photographs", "identities")  # of a shard, in the description


def _paths(dataset: Path, *splits: str) -> list[Path]:
    folder = current(dataset, SHARDS)
    return sorted(path for split in splits for path in folder.glob(f"{split}-*.parquet"))


def _check_ours(output: Path) -> None:
    """OutputError where a folder holds anything but shards of ours."""
    try:
        names = os.listdir(output)
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise OutputError(f"{shown(output)} cannot be written to ({error}); choose another folder") from error
    ours = {_JOURNAL, LOCK, DESCRIPTION_FILE}
    others = [n for n in names if n not in ours and not NAME.fullmatch(n) and not is_temporary(n)]
    if others or (DESCRIPTION_FILE in names and not _earlier(output)):
        other = others[0] if others else DESCRIPTION_FILE
        raise OutputError(f"{shown(output / other)} is not a shard of magicedit; choose another folder")


def _earlier(output: Path) -> dict[str, Any] | None:
    """The description of shards that were written before."""
    with contextlib.suppress(DatasetError):
        description = read_description(output)
        if description.get("shards") and "made_of" in description:
            return description
    return None


def _complete(output: Path, shards: Mapping[str, Sequence[Mapping[str, Any]]]) -> bool:
    """Whether all shards are there, by their sizes."""
    with contextlib.suppress(OSError):
        every = itertools.chain.from_iterable(shards.values())
        return all(os.path.getsize(output / shard["name"]) == shard["bytes"] for shard in every)
    return False


def _report(
    output: Path, shards: Mapping[str, Sequence[Mapping[str, Any]]], unchanged: bool = False
) -> ShardReport:
    return ShardReport(
        shown(output),
        {split: len(found) for split, found in shards.items()},
        {split: sum(shard["photographs"] for shard in found) for split, found in shards.items()},
        {split: sum(shard["identities"] for shard in found) for split, found in shards.items()},
        unchanged,
    )


def _write_split(
    output: Path, split: str, paths: Sequence[Path], shard_bytes: int, done: Mapping[str, Mapping[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Writes the shards of a split, but those that are done, and yields what the description says of each."""
    people, order, first = _by_identity(paths)
    groups = functools.lru_cache(_HELD_GROUPS)(row_group)

    def row(number: int) -> Row:
        file = int(np.searchsorted(first, number, side="right")) - 1
        place = number - int(first[file])
        return groups(paths[file], place // ROW_GROUP)[place % ROW_GROUP]

    place, number = 0, 0
    while place < len(order):
        name = f"{split}-{number:05}.tar"
        number += 1
        if (entry := done.get(name)) and _complete(output, {split: [entry]}):
            place += entry["photographs"]
            yield dict(entry)
            continue
        start, size = place, 0
        with replacing(output / name) as file:
            with _tar(file) as tar:
                while place < len(order) and (size < shard_bytes or people[place] == people[place - 1]):
                    size += tar.write(_sample(split, int(order[place]), row(int(order[place]))))
                    place += 1
            file.flush()
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            written = file.seek(0, os.SEEK_END)
        counts = {"photographs": place - start, "identities": len(np.unique(people[start:place]))}
        yield {"name": name, "bytes": written, "sha256": digest, **counts}


def _tar(file: Any) -> Any:
    import webdataset

    return webdataset.TarWriter(file, encoder=False, mtime=0, user="", group="", mode=0o644)


def _by_identity(paths: Sequence[Path]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns people (rows,) and numbers (rows,) of a split's rows in the order of their shards, and the
    number of each file's first row."""
    names: dict[str, int] = {}
    codes, first = [], [0]
    for path in paths:
        try:
            with open_regular(path) as stream, pq.ParquetFile(stream) as file:
                for batch in file.iter_batches(4096, columns=["identity"]):
                    found = [names.setdefault(name, len(names)) for name in batch.column(0).to_pylist()]
                    codes.append(np.array(found, np.int32))
                first.append(first[-1] + file.metadata.num_rows)
        except (pa.ArrowException, OSError, ValueError, LookupError) as error:
            raise DatasetError(
                f"{shown(path)} is damaged ({str(error)[:200]}); run `magicedit prepare --force` again"
            ) from error
    hashes = [hashlib.sha256(name.encode()).digest() for name in names]
    ranks = np.empty(len(names), np.int32)
    ranks[sorted(range(len(names)), key=hashes.__getitem__)] = np.arange(len(names))
    people = ranks[np.concatenate([np.zeros(0, np.int32), *codes])]
    order = np.argsort(people, kind="stable").astype(np.int32)
    return people[order], order, np.array(first[:-1])


def _sample(split: str, number: int, row: Row) -> dict[str, Any]:
    """A row as WebDataset's writer takes it."""
    picture = row["image"]["bytes"]
    about = {key: _plain(value) for key, value in row.items() if key not in ("image", "mask")}
    return {
        "__key__": f"{split}-{number:09}",
        "jpg" if picture[:2] == b"\xff\xd8" else "png": picture,
        "mask.png": row["mask"]["bytes"],
        "json": json.dumps(about, ensure_ascii=False).encode(),
    }


def _plain(value: Any) -> Any:
    """A cell as JSON has it: float32 in as few digits as tell it, null for what is not finite."""
    if isinstance(value, float):
        return float(str(np.float32(value))) if math.isfinite(value) else None
    return [_plain(part) for part in value] if isinstance(value, list) else value
