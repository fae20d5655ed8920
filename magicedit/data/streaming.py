"""Training pairs streamed from the shards that `webdataset_shards` writes, wherever they are."""

import contextlib
import hashlib
import json
import logging
import os
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch

from magicedit.data.checks import CHECKED, BadRow, examined
from magicedit.data.description import DESCRIPTION_FILE, read_description
from magicedit.data.drawing import Draw, PairSettings
from magicedit.data.pairs import (
    EXAMPLE_REQUESTS,
    MAX_BAD_FRACTION,
    MOST_REDRAWN,
    NAMED,
    Pairs,
    UnusablePictureError,
    labelled_columns,
    requested,
)
from magicedit.data.rendering import Photograph
from magicedit.data.webdataset_shards import NAME
from magicedit.errors import DatasetError, needs_extra, reason_of
from magicedit.files import is_address, open_regular, shown

logger = logging.getLogger(__name__)

OPEN = 8  # shards of a stream from which samples are drawn at a time
KEPT = 2  # times so many shards that a process holds open
LARGEST_MEMBER = 2**28  # bytes of a picture or its description
LARGEST_INDEX = 2**28  # bytes
_DAMAGED = (
    *(OSError, ValueError, TypeError, LookupError, RecursionError),
    *(tarfile.TarError, pa.ArrowException),
)
_ORDER = 4  # what the order of shards is drawn from, besides (seed, epoch); samples draw from (seed, n, ...)


class Usable(NamedTuple):
    """The usable photographs of a shard.

    rows: (photographs,), their numbers in the shard. identities, sources: of each. labels: (photographs, aus)
    float32, 0..5. landmarks: (photographs, points, 2) float32 px of the stored pictures. places:
    (photographs, 2) int64, offset and bytes of the pictures.
    """

    rows: np.ndarray
    identities: tuple[str, ...]
    sources: tuple[str, ...]
    labels: np.ndarray
    landmarks: np.ndarray
    places: np.ndarray


@dataclass(frozen=True, eq=False)
class Shard:
    """An open shard and its usable photographs. number: of its first photograph, in the whole split."""

    name: str
    number: int
    file: IO[bytes]
    usable: Usable

    def number_of(self, index: int) -> int:
        """Number in the whole split of a usable photograph."""
        return self.number + int(self.usable.rows[index])

    def picture(self, index: int) -> bytes:
        offset, size = map(int, self.usable.places[index])
        if hasattr(os, "pread"):  # forked processes share the file's position
            return os.pread(self.file.fileno(), size, offset)
        self.file.seek(offset)
        return self.file.read(size)


class Window:
    """Some shards from which consecutive samples of a stream are drawn.

    paired: numbers of identities with two photographs or more.
    """

    def __init__(self, shards: Sequence[Shard]) -> None:
        self.shards = tuple(shards)
        self._first = np.cumsum([0, *(len(shard.usable.identities) for shard in shards)])
        names: dict[tuple[int, str], int] = {}  # an identity is in one shard
        people = [
            names.setdefault((number, identity), len(names))
            for number, shard in enumerate(shards)
            for identity in shard.usable.identities
        ]
        self._people = np.argsort(people, kind="stable")
        counts = np.bincount(np.array(people, int), minlength=len(names))
        self._starts = np.concatenate([[0], np.cumsum(counts)])
        self.paired = np.flatnonzero(counts >= 2)

    def __len__(self) -> int:
        """Number of photographs."""
        return int(self._first[-1])

    def of_identity(self, identity: int) -> np.ndarray:
        return self._people[self._starts[identity] : self._starts[identity + 1]]

    def locate(self, photograph: int) -> tuple[Shard, int]:
        """Returns the shard of a photograph, and its number there."""
        shard = int(np.searchsorted(self._first, photograph, side="right")) - 1
        return self.shards[shard], photograph - int(self._first[shard])

    def close(self) -> None:
        for shard in self.shards:
            shard.file.close()


class StreamingPairs(Pairs):
    """Samples as of `PairDataset`, from shards that are read one after another; memory does not grow with
    their number.

    `dataset[n]` is defined for every n >= 0 and depends only on the shards, (seed, n), `batch_size` and
    `streams`. The batches of a run are dealt to `streams`, one after the other, as a loader deals them to its
    processes; so each process that reads opens only the shards of its own stream, and a resumed run continues
    with the very sample. In an epoch, each shard is in one stream, in an order drawn from (seed, epoch).
    Samples are drawn from OPEN shards at a time, as many as these have photographs: a warped pair is one of
    their photographs, a real pair two of an identity, each of those equally likely.

    Opening a shard checks its SHA-256 and all numbers; one that is missing, truncated or changed is left out
    whole, and its samples are drawn from others. Pictures are decoded when drawn; a sample with an unusable
    one is drawn again by (seed, n, attempt). Every loss is named in the log and listed in `quarantined`, by
    each process for its own shards; DatasetError where it is more than `max_bad_fraction` of the photographs.

    Args:
        folder: what `write_shards` wrote, or its address: a URL that webdataset reads, such as
            https://host/shards, or a command such as `pipe:aws s3 cp s3://bucket/shards/{} -`, with {} for
            the name of a file. What stands there names neither: only files, by names of our own form.
        streams: processes that read, over all devices.
        batch_size: consecutive samples of a stream, those of a batch.
        settings: others of `PairDataset` but `memory`.

    The samples are as of `PairDataset`; source_index and target_index are numbers in the split.

    Raises: DatasetError as `PairDataset`; MissingDependencyError for a URL without webdataset.
    """

    def __init__(
        self,
        folder: str | Path,
        split: str = "train",
        max_bad_fraction: float = MAX_BAD_FRACTION,
        streams: int = 1,
        batch_size: int = 1,
        **settings: Any,
    ) -> None:
        if min(streams, batch_size) < 1:
            raise DatasetError(f"streams and batch_size must be at least 1, got {streams} and {batch_size}")
        self.folder, self.split = folder, split
        needed = ("action_units", "landmarks", "crop_size", "shards")
        self.description = _description(folder, *needed)
        size, scheme = self.description["crop_size"], self.description["landmarks"]
        super().__init__(PairSettings(size, scheme, **settings), max_bad_fraction)
        self._columns = labelled_columns(self.description, self.action_units, folder)
        if not (by_split := self.description.get("shards")):
            raise DatasetError(f"{shown(folder)} has no shards; write them by `magicedit shards`")
        if not (index := by_split.get(split)):
            raise DatasetError(
                f"{shown(folder)} has no split {split!r} (there is {', '.join(by_split) or 'none'}); name "
                "validation identities to `magicedit prepare --validation`"
            )
        if wrong := next((shard["name"] for shard in index if not NAME.fullmatch(shard["name"])), None):
            raise DatasetError(f"{shown(folder)} names a shard {shown(wrong)!r}; write the shards again")
        self._index = index
        self._counts = np.array([shard["photographs"] for shard in index])
        self._numbers = np.cumsum([0, *self._counts])  # of the shards' first photographs
        if self.settings.warped < 1 and len(self) == self.identities:
            raise self._no_pairs()
        self.streams, self.batch_size = streams, batch_size
        meaning = [self.description[name] for name in ("action_units", "landmarks", "crop_size")]
        self.digest = hashlib.sha256(repr([meaning, index]).encode()).hexdigest()
        self._lost: dict[int, str] = {}  # shards that are left out
        self._noted: set[int] = set()  # photographs in `quarantined`
        self._epochs: dict[int, tuple[int, int]] = {}  # by stream: an epoch, and its first sample
        self._opened: dict[tuple[int, ...], Window] = {}  # the last KEPT

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": {}}  # another process opens its own

    @property
    def identities(self) -> int:
        """Number of people in the split."""
        return sum(shard["identities"] for shard in self._index)

    def __len__(self) -> int:
        """Number of photographs."""
        return int(self._numbers[-1])

    def __getitem__(self, n: int) -> dict[str, Any]:
        while True:
            draw, (source, target) = self._pair(n)
            try:
                first = self._photograph(*source)
                second = first if draw.target == draw.source else self._photograph(*target)
            except UnusablePictureError:  # `_pair` draws another one now
                continue
            return self._renderer.sample(draw, first, second)

    def pair(self, n: int) -> Draw:
        """Returns the draw that defines `dataset[n]`, without reading pixels; see `PairDataset.pair`."""
        return self._pair(n)[0]

    def examples(self, count: int = 4, requests: Sequence[str] = EXAMPLE_REQUESTS) -> list[dict[str, Any]]:
        """Returns faces for preview grids as `PairDataset.examples` does, of the split's first shards."""
        names, au_deltas = requested(requests, self.action_units)
        examples: list[dict[str, Any]] = []
        for number in range(len(self._index)):
            window = self._window((number,))
            for shard in window.shards:
                expression = shard.usable.labels.sum(1)
                least: dict[str, int] = {}
                for index in np.argsort(expression, kind="stable").tolist():
                    least.setdefault(shard.usable.identities[index], index)
                for identity, index in sorted(least.items(), key=lambda item: item[1]):
                    if len(examples) == count:
                        return examples
                    picture = shard.picture(index), shard.usable.landmarks[index]
                    try:
                        source, condition = self._renderer.unmodified(*picture)
                    except ValueError:
                        continue  # it is counted when it is drawn
                    examples.append(
                        {
                            "source": source,
                            "condition": condition,
                            "au_deltas": torch.from_numpy(au_deltas.copy()),
                            "requests": names,
                            "identity": identity,
                            "index": shard.number_of(index),
                        }
                    )
        return examples

    # --- Which shards a sample is of ---

    def _windows(self, n: int) -> Iterator[tuple[int, ...]]:
        """Yields the shards that sample n is drawn from, then others, in case these are unusable."""
        if n < 0:
            raise IndexError(f"samples are numbered from 0, got {n}")
        batch, place = divmod(int(n), self.batch_size)
        stream, sample = batch % self.streams, batch // self.streams * self.batch_size + place
        epoch, first = self._epochs.get(stream, (0, 0))
        if sample < first:
            epoch, first = 0, 0
        while True:
            order = self._order(stream, epoch)
            count = int(self._counts[order].sum())
            if sample < first + count:
                break
            epoch, first = epoch + 1, first + count
        self._epochs[stream] = epoch, first
        windows = [tuple(order[start : start + OPEN].tolist()) for start in range(0, len(order), OPEN)]
        ends = first + np.cumsum([self._counts[list(window)].sum() for window in windows])
        at = int(np.searchsorted(ends, sample, side="right"))
        yield from (*windows[at:], *windows[:at])
        yield from ((number,) for number in range(len(self._index)))  # of other streams

    def _order(self, stream: int, epoch: int) -> np.ndarray:
        """The shards of a stream in an epoch; where there are more streams than shards, several share one."""
        shards = len(self._index)
        order = np.random.default_rng((self.seed, epoch, _ORDER)).permutation(shards)
        return order[stream % shards :: self.streams]

    def _pair(self, n: int) -> tuple[Draw, tuple[tuple[Shard, int], tuple[Shard, int]]]:
        """Returns the draw of sample n, and the places of its photographs."""
        for attempt in range(MOST_REDRAWN):
            rng = self._draws.rng(n, attempt)
            warped = self._draws.is_warped(rng)
            windows = map(self._window, self._windows(n))
            window = next((w for w in windows if (len(w) if warped else len(w.paired))), None)
            if window is None:
                raise self._no_pairs()
            if warped:
                source = target = int(rng.integers(len(window)))
            else:
                members = window.of_identity(window.paired[int(rng.integers(len(window.paired)))])
                source, target = (int(member) for member in rng.choice(members, 2, replace=False))
            places = window.locate(source), window.locate(target)
            numbers = [shard.number_of(index) for shard, index in places]
            if self._unusable.isdisjoint(numbers):
                before, after = (shard.usable.labels[index] for shard, index in places)
                return self._draws.draw(rng, warped, *numbers, after - before), places
        raise DatasetError(
            f"no usable pair was found in {shown(self.folder)}: {len(self._unusable)} of its pictures cannot "
            "be used; write the shards again"
        )

    def _no_pairs(self) -> DatasetError:
        return DatasetError(
            f"nobody in the {self.split} split of {shown(self.folder)} has two usable photographs, so there "
            "are no real pairs; train on warped pairs alone (`--warped 1`), or add photographs: one "
            "sub-folder per person, two or more in each"
        )

    def _photograph(self, shard: Shard, index: int) -> Photograph:
        """Decodes a photograph. Raises UnusablePictureError if it is unusable."""
        content, landmarks = shard.picture(index), shard.usable.landmarks[index]
        try:
            return self._renderer.photograph(content, landmarks)
        except ValueError as error:
            self._unusable.add(shard.number_of(index))
            row = BadRow(shard.name, int(shard.usable.rows[index]), shard.usable.sources[index], str(error))
            self._quarantine(shard.number_of(index), row)
            raise UnusablePictureError(f"a picture of {shown(self.folder)} cannot be used: {row}") from error

    # --- Reading shards ---

    def _window(self, numbers: tuple[int, ...]) -> Window:
        """Opens shards, and closes those of the window before the last."""
        if numbers not in self._opened:
            while len(self._opened) >= KEPT:
                self._opened.pop(next(iter(self._opened))).close()
            found = map(self._open, numbers)
            self._opened[numbers] = Window([shard for shard in found if shard is not None])
        return self._opened[numbers]

    def _open(self, number: int) -> Shard | None:
        """Opens a shard. None where it cannot be used, which counts."""
        entry, first = self._index[number], int(self._numbers[number])
        try:
            file = _fetched(self.folder, entry)
            with contextlib.ExitStack() as failing:
                failing.enter_context(file)
                rows = _rows(file)
                if len(rows) != entry["photographs"]:
                    raise ValueError(f"it holds {len(rows)} photographs, not {entry['photographs']}")
                cells = {name: pa.array([row.about.get(name) for row in rows]) for name in CHECKED}
                labels, landmarks, reasons = examined(pa.table(cells), self.description)
                failing.pop_all()
        except _DAMAGED as error:
            self._lose(number, getattr(error, "strerror", None) or reason_of(error))
            return None
        for row, reason in sorted(reasons.items()):
            source = rows[row].about.get("source")
            bad = BadRow(entry["name"], row, source if isinstance(source, str) else "", reason)
            self._quarantine(first + row, bad)
        usable = np.setdiff1d(np.arange(len(rows)), [*reasons]).astype(int)
        kept = [rows[row] for row in usable]
        return Shard(
            entry["name"],
            first,
            file,
            Usable(
                usable,
                tuple(row.about["identity"] for row in kept),
                tuple(row.about["source"] for row in kept),
                labels[usable][:, self._columns],
                landmarks[usable],
                np.array([row.place for row in kept], np.int64).reshape(-1, 2),
            ),
        )

    def _lose(self, number: int, reason: str) -> None:
        if number not in self._lost:
            entry = self._index[number]
            self._lost[number] = f"{entry['name']} ({entry['photographs']} photographs): {reason}"
            logger.warning("left out of %s: %s", shown(self.folder), self._lost[number])
            self._check_bad()

    def _quarantine(self, photograph: int, row: BadRow) -> None:
        if photograph not in self._noted:
            self._noted.add(photograph)
            self.quarantined.append(row)
            logger.warning("left out of %s: %s", shown(self.folder), row)
            self._check_bad()

    def _check_bad(self) -> None:
        """DatasetError where more photographs are unusable than `max_bad_fraction`."""
        bad = len(self.quarantined) + sum(int(self._counts[number]) for number in self._lost)
        allowed = max(1, int(self.max_bad_fraction * len(self))) if self.max_bad_fraction else 0
        if bad <= allowed and bad < len(self):
            return
        first = [*self._lost.values(), *map(str, self.quarantined)][:NAMED]
        raise DatasetError(
            f"the split {self.split!r} of {shown(self.folder)} has {bad} unusable photographs of "
            f"{len(self)}, more than --max_bad_fraction {self.max_bad_fraction:g} allows "
            f"({'; '.join(first)}); write the shards again"
        )


# --- Where shards are ---


def holds_shards(folder: str | Path) -> bool:
    """Whether a folder is what `write_shards` wrote, and no dataset."""
    if is_address(folder):
        return True
    with contextlib.suppress(DatasetError):
        return read_description(folder).get("shards") is not None
    return False


def _description(folder: str | Path, *needed: str) -> dict[str, Any]:
    """Reads magicedit.json; DatasetError as `read_description`."""
    if not is_address(folder):
        return read_description(folder, *needed)
    with needs_extra("scale", "addresses of shards are read by webdataset"):
        import webdataset.gopen  # noqa: F401
    with tempfile.TemporaryDirectory() as copy:
        try:
            with open(Path(copy) / DESCRIPTION_FILE, "xb") as file:
                _copy(folder, DESCRIPTION_FILE, file, LARGEST_INDEX)
        except (OSError, ValueError) as error:
            raise DatasetError(
                f"{DESCRIPTION_FILE} of {shown(folder)} cannot be fetched ({reason_of(error)}); check its "
                "address"
            ) from error
        try:
            return read_description(copy, *needed)
        except DatasetError as error:
            raise DatasetError(str(error).replace(copy, shown(folder))) from error


def _fetched(folder: str | Path, entry: Mapping[str, Any]) -> IO[bytes]:
    """Opens a shard, or a copy of it that exists as long as it is open. OSError or ValueError where it is not
    the one that was written."""
    with contextlib.ExitStack() as failing:
        if not is_address(folder):
            file = failing.enter_context(open_regular(Path(folder) / entry["name"]))
        else:
            file = failing.enter_context(tempfile.TemporaryFile())
            _copy(folder, entry["name"], file, entry["bytes"])
            file.seek(0)
        if (size := os.fstat(file.fileno()).st_size) != entry["bytes"]:
            raise ValueError(f"it has {size:,} bytes, not {entry['bytes']:,}")
        if hashlib.file_digest(file, "sha256").hexdigest() != entry["sha256"]:
            raise ValueError("it has changed: its SHA-256 is another one")
        failing.pop_all()
    return file


def _copy(folder: str | Path, name: str, to: IO[bytes], most: int) -> None:
    """Copies a file from an address. OSError or ValueError where that fails, or it has more bytes."""
    from webdataset.gopen import gopen

    address = str(folder)
    address = address.replace("{}", name) if "{}" in address else f"{address.rstrip('/')}/{name}"
    with contextlib.closing(gopen(address)) as stream:
        left = most
        while part := stream.read(min(2**20, left + 1)):
            if (left := left - len(part)) < 0:
                raise ValueError(f"it has more than {most:,} bytes")
            to.write(part)
    to.flush()


class _Row(NamedTuple):
    """about: the row's description. place: offset and bytes of its picture in the shard."""

    about: dict[str, Any]
    place: tuple[int, int]


def _rows(file: IO[bytes]) -> list[_Row]:
    """Reads the descriptions of a shard's photographs, in order; ValueError or TarError where it is none."""
    file.seek(0)
    parts: dict[str, dict[str, tuple[int, int]]] = {}
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            key, _, kind = member.name.partition(".")
            if not member.isreg() or member.issparse() or member.size > LARGEST_MEMBER:
                raise ValueError(f"{shown(member.name)} is no picture and no description of one")
            parts.setdefault(key, {})[kind] = member.offset_data, member.size
            tar.members = []  # it keeps them all
    rows = []
    for key, kinds in parts.items():
        place = kinds.get("jpg") or kinds.get("png")
        if place is None or "json" not in kinds:
            raise ValueError(f"{shown(key)} lacks a picture or its description")
        offset, size = kinds["json"]
        file.seek(offset)
        about = json.loads(file.read(size))
        if not isinstance(about, dict):
            raise ValueError(f"{shown(key)}.json is no description")
        rows.append(_Row(about, place))
    return rows
