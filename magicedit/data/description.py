"""The files beside the shards of a prepared dataset: magicedit.json, report.json and the dataset card."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from magicedit.errors import DatasetError
from magicedit.faces.types import LANDMARK_COUNTS
from magicedit.files import read_json, sha256_of, shown, write_text

FORMAT_VERSION = 1
WORK = ".work"  # measurements of an interrupted run, and a dataset that is about to replace the old one
NEXT = "next"  # in WORK: a whole dataset, from the moment that it has this name
SHARDS = "data"
DESCRIPTION_FILE, REPORT_FILE, CARD_FILE = "magicedit.json", "report.json", "README.md"
SPLITS = ("train", "validation")
_VARIANTS_NOTE = """- Beside each training photograph stand {count} that a model of the face's muscles warped
  (`source` ends in `#muscles-N`, `notes` say by what): their `action_units` are those of the photograph
  plus what was commanded, and nothing was measured on them.
"""


def current(folder: Path, name: str) -> Path:
    """The place of a file or folder of a dataset, also where a kill interrupted replacing it by a new one."""
    new = folder / WORK / NEXT / name
    return new if os.path.lexists(new) else folder / name


def read_description(folder: str | Path, *needed: str) -> dict[str, Any]:
    """Reads magicedit.json of a dataset. DatasetError if it is missing, of another format, or has unusable
    values; also where it lacks `needed` ones."""
    path = current(Path(folder), DESCRIPTION_FILE)
    if not os.path.lexists(path):
        raise DatasetError(
            f"{shown(folder)} is not a prepared dataset ({DESCRIPTION_FILE} is missing); make one with "
            "`magicedit prepare PHOTOGRAPHS -o DATASET`"
        )
    description = read_json(path, DatasetError)
    found = description.get("format") if isinstance(description, dict) else None
    if found != FORMAT_VERSION:
        raise DatasetError(
            f"{shown(path)} has format {shown(found)!r}, this version reads {FORMAT_VERSION}; run "
            "`magicedit prepare` again"
        )
    looked_at = {key: fits for key, fits in _FIELDS.items() if key in description or key in needed}
    if wrong := [key for key, fits in looked_at.items() if not fits(description.get(key))]:
        raise DatasetError(f"{shown(path)} has no usable {', '.join(wrong)}; run `magicedit prepare` again")
    return description


def _of(kind: type | tuple[type, ...]) -> Callable[[Any], bool]:
    """Whether a value is of a kind; true and false are no numbers."""
    return lambda value: isinstance(value, kind) and not isinstance(value, bool)


def _list_of(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(fits, value))


def _table_of(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(map(fits, value.values()))


def _is_shard(entry: Any) -> bool:
    """Whether an entry is of a shard of `webdataset_shards`."""
    numbers = ("bytes", "photographs", "identities")
    return (
        isinstance(entry, dict)
        and all(isinstance(entry.get(key), str) for key in ("name", "sha256"))
        and all(_of(int)(entry.get(key)) and entry[key] > 0 for key in numbers)
    )


_COUNTS = dict.fromkeys(("photographs", "identities", "pairs"), _table_of(_of(int))) | {"variants": _of(int)}
_FIELDS = {  # of magicedit.json, and whether a value fits
    "action_units": _list_of(_of(str)),
    "measured": _list_of(_of(str)),
    "labeller": _of(str),
    "landmarks": lambda scheme: isinstance(scheme, str) and scheme in LANDMARK_COUNTS,
    "crop_size": lambda size: _of(int)(size) and 0 < size < 2**16,
    "settings": _of(dict),
    "fingerprint": _of(str),
    **_COUNTS,
    "attributes": lambda names: names is None or _list_of(_of(str))(names),
    "shards": lambda by_split: by_split is None or _table_of(_list_of(_is_shard))(by_split),
    "card": lambda digest: digest is None or isinstance(digest, str),  # SHA-256; None: of earlier versions
}
_REPORTED = {  # of report.json
    "rejected": _list_of(_table_of(_of(str))),
    "notes": _list_of(_table_of(_of(str))),
    "ignored": _list_of(_of(str)),
    **_COUNTS,
}


def up_to_date(output: Path, fingerprint: str) -> dict[str, Any] | None:
    """Returns the report of the earlier run if it had the same input and finished."""
    description, report = _earlier(output)
    complete = description.get("fingerprint") == fingerprint and all(
        any((output / SHARDS).glob(f"{split}-*.parquet")) for split in report["photographs"]
    )
    return report if complete else None


def failed_before(output: Path, settings: Mapping[str, Any]) -> dict[str, str]:
    """Returns by SHA-256 why photographs were unusable in an earlier run with these settings."""
    description, report = _earlier(output)
    if description.get("settings") != settings:
        return {}
    return {
        entry["sha256"]: entry["reason"]
        for entry in report["rejected"]
        if {"sha256", "reason"} <= entry.keys()
    }


def _earlier(output: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns magicedit.json and report.json of the earlier run; empty if one of them is missing or unusable,
    so that everything is written again."""
    try:
        description, report = (
            read_description(output, *_FIELDS),
            read_json(output / REPORT_FILE, DatasetError),
        )
    except DatasetError:
        return {}, {}
    usable = isinstance(report, dict) and report.keys() == _REPORTED.keys()
    return (
        (description, report)
        if usable and all(fits(report[k]) for k, fits in _REPORTED.items())
        else ({}, {})
    )


def count_by_split(
    identities: Iterable[str], splits: Mapping[str, str], variants: int
) -> dict[str, dict[str, int]]:
    """Returns the counts of photographs, identities and pairs by split.

    identities: one for each photograph. splits: identity -> split. variants: of each training photograph.
    """
    by_split: dict[str, list[int]] = {split: [] for split in SPLITS}
    for identity, count in Counter(identities).items():
        by_split[splits[identity]].append(count)
    present = {split: numbers for split, numbers in by_split.items() if numbers}
    copies = {"train": 1 + variants, "validation": 1}
    return {
        "photographs": {split: sum(numbers) for split, numbers in present.items()},
        "identities": {split: len(numbers) for split, numbers in present.items()},
        "pairs": {
            split: sum(count * (count - 1) for count in (n * copies[split] for n in numbers))
            for split, numbers in present.items()
        },
    }


def write_descriptions(output: Path, report: Mapping[str, Any], description: Mapping[str, Any]) -> None:
    """Writes the three files, each atomically."""
    card = _card(description) + "\n"
    description = {**description, "card": hashlib.sha256(card.encode()).hexdigest()}
    write_text(output / REPORT_FILE, json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    write_text(output / CARD_FILE, card)
    write_text(output / DESCRIPTION_FILE, json.dumps(description, indent=2, ensure_ascii=False) + "\n")


def card_is_ours(output: Path) -> bool:
    """Whether a dataset's card is as it was written, or missing; a changed one belongs to who changed it."""
    file = output / CARD_FILE
    if not os.path.lexists(file):
        return True
    try:
        description = read_json(output / DESCRIPTION_FILE, DatasetError)
        written = description.get("card") or hashlib.sha256((_card(description) + "\n").encode()).hexdigest()
        return sha256_of(file) == written
    except (
        DatasetError,
        OSError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
    ):  # no description, or no file
        return False


def _card(description: Mapping[str, Any]) -> str:
    """Returns the dataset card; its YAML header maps files to splits for `datasets`."""
    counts = description["photographs"]
    files = "\n".join(f"  - split: {split}\n    path: data/{split}-*.parquet" for split in counts)
    rows = "\n".join(
        f"| {split} | {counts[split]} | {description['identities'][split]} | {description['pairs'][split]} |"
        for split in counts
    )
    size, variants = description["crop_size"], ""
    if description["variants"]:
        variants = _VARIANTS_NOTE.format(count=description["variants"])
    return f"""---
configs:
- config_name: default
  data_files:
{files}
tags:
- faces
- action-units
- magicedit
---
# Aligned faces with action units

Written by `magicedit prepare`; read by `magicedit train` and `datasets.load_dataset`.

| split | photographs | identities | pairs |
|---|---|---|---|
{rows}

No identity is in two splits. A pair is two photographs of one identity, in one direction.

- `image`: face, aligned by what expressions do not move, {size} x {size} px; `mask`: 255 in the face region.
- `action_units`: intensities 0 to 5, by {description["labeller"]}, in this order:
  {", ".join(description["action_units"])}.
- `measured`: what the face backend {description["settings"]["backend"]} measured itself, if anything, of
  {", ".join(description["measured"])}.
- `landmarks`: x0, y0, x1, y1 ... ({description["landmarks"]}) in pixels of `image` (centres: whole numbers).
{variants}- `pose`: yaw, pitch, roll in degrees. `box`: x0, y0, x1, y1 in pixels of the photograph `source`.

Labels of an automatic estimator are noisy, most of all where it hardly responds (MediaPipe: AU6, AU9, AU15).
Rejected photographs and why: `{REPORT_FILE}`. The licence of this dataset is that of its photographs.
"""
