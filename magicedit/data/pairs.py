"""Training pairs from a prepared dataset: two pictures of one identity and their AU difference."""

import contextlib
import hashlib
import io
import itertools
import logging
import os
import weakref
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from magicedit.action_units import NAMES, parse_deltas, to_vector
from magicedit.data.description import SHARDS, current, read_description
from magicedit.data.drawing import Draw, Draws, PairSettings
from magicedit.data.rendering import REAL, WARPED, Held, PairRenderer, Photograph, decoded
from magicedit.errors import DatasetError, reason_of
from magicedit.faces.types import LANDMARK_COUNTS
from magicedit.files import open_regular, opened, shown

logger = logging.getLogger(__name__)

__all__ = ["REAL", "WARPED", "BadRow", "Draw", "PairDataset", "Record"]

COLUMNS = ("identity", "source", "action_units", "landmarks", "pose", "image")
LABELS = ("emotion", "attributes")  # absent in datasets of before there were any
ROUNDING = 1e-3  # intensity steps by which a label may miss 0 to 5
HIGHEST = 5  # intensity steps
LEAST_FACE = 0.05  # extent of the landmarks, of the crop's side; a face fills most of it
CHUNK = 256  # rows examined at a time
MAX_BAD_FRACTION = 0.01
KEPT_OPEN = 64  # shards; of 256 MiB each
NAMED = 5  # unusable rows that an error names; the log names all

EXAMPLE_REQUESTS = ("AU12=+3", "AU1=+3,AU2=+3", "AU4=+3", "AU5=+3", "AU15=+3", "AU20=+3", "AU25=+3,AU26=+2")


@dataclass(frozen=True, eq=False)
class Record:
    """One photograph of the dataset.

    action_units: (aus,) float32, 0..5, in the order of the PairDataset. landmarks: (points, 2) float32, px of
    the stored crop. pose: yaw, pitch, roll in degrees, or empty. emotion: its label, or empty. attributes:
    those of its labels that it shows.
    """

    identity: str
    source: str
    action_units: np.ndarray
    landmarks: np.ndarray
    pose: tuple[float, ...]
    emotion: str = ""
    attributes: frozenset[str] = frozenset()


@dataclass(frozen=True)
class BadRow:
    """A row that is left out. row: its number in the shard, from 0. source: of its photograph, or empty."""

    shard: str
    row: int
    source: str
    reason: str

    def __str__(self) -> str:
        named = f" ({shown(self.source)})" if self.source else ""
        return f"{self.shard} row {self.row}{named}: {self.reason}"


class PairDataset(torch.utils.data.Dataset):
    """Samples of a dataset that `prepare` wrote.

    Opening it reads every shard once: rows are checked and pictures decoded. Later only these very files are
    read: a dataset that `prepare` writes anew meanwhile changes nothing, or raises DatasetError. Unusable
    rows, such as those with labels outside 0 to 5, are left out, named in the log and listed in
    `quarantined`; `digest` is that of the others, pictures included.

    `dataset[n]` is defined for every n >= 0 and depends only on (seed, n), for every process and order. `len`
    is the number of photographs.

    A sample: source, target, condition: (3, resolution, resolution) float32 in [-1, 1], the condition image
    is drawn from the *target* of a real pair, whose head pose may differ, and from the *source* of a warped
    one, because the target's jaw would reveal the expression; au_delta: (aus,) float32, target minus source
    in intensity steps, zero with probability `au_dropout`; kind: 0 real, 1 warped; source_index,
    target_index: positions in `records`; and the known relation of target to source:
    flow: (resolution, resolution, 2) float32 px, x then y, with target(p) = source(p + flow(p)), NaN where
    unknown: between opened lips, outside the face of a real pair, and everywhere if the source is warped too.
    mask: (resolution, resolution), share of the target that movement does not explain, 0..1, NaN where
    unknown. weight: (resolution, resolution), weight of each pixel: 1, around the lips `LIPS_WEIGHT`; in a
    real pair 0 where source and target cannot be compared, see `magicedit.warping.correspondence`.

    With probability `warped` a sample is one photograph, warped by random AUs (and in one of five cases its
    source by others): `au_delta` is then the commanded difference, exact by construction, and both pictures
    agree to the pixel elsewhere. Else it is two photographs of one identity in either order, with identities
    equally likely: `au_delta` is then the difference of their labels in the dataset, including the
    estimator's noise (with MediaPipe mostly noise for AU6, AU9 and AU15).

    Args:
        folder: what `prepare` wrote.
        split: "train" or "validation".
        resolution: side of the returned pictures in px, at most the dataset's crop size.
        warped: probability of a warped pair.
        augment: turn, scale, shift, mirror, and change gain and bias of all three pictures alike. Without it
            and with warped=0, the pictures depend only on their record and can be cached: see `pair`,
            `record_images`.
        relations: whether samples contain the relation of target to source; if not, they have no flow, mask
            and weight.
        zero_keeps: whether a pair with dropped AUs has its source as target, so that a zero vector means
            "keep"; if not, the target stays and zero means "any expression", as published.
        teeth: whether warped mouths that open show the teeth of embedded mouths; if not, they are dark.
        action_units: the AUs in order; the dataset must have labels for all of them.
        memory: bytes of pictures and displacement fields that one process may cache; the rest is decoded and
            computed again when needed.
        max_bad_fraction: share of the rows that may be unusable or missing, 0 to 1; a single one always may,
            unless this is 0.

    Raises: DatasetError for a folder without such a dataset, an empty or missing split, more unusable rows
    than that, other action units, a split without real pairs where `warped` < 1, or landmarks that cannot be
    warped where `warped` > 0.
    """

    def __init__(
        self,
        folder: str | Path,
        split: str = "train",
        resolution: int = 96,
        seed: int = 0,
        warped: float = 0.0,
        augment: bool = True,
        au_dropout: float = 0.1,
        action_units: Sequence[str] = NAMES,
        memory: int = 2 * 2**30,
        relations: bool = True,
        zero_keeps: bool = False,
        teeth: bool = True,
        max_bad_fraction: float = MAX_BAD_FRACTION,
    ) -> None:
        if not 0 <= max_bad_fraction <= 1:
            raise DatasetError(f"max_bad_fraction is a probability from 0 to 1, got {max_bad_fraction}")
        self.folder, self.split = Path(folder), split
        needed = ("action_units", "landmarks", "crop_size", "photographs", "variants")
        self.description = read_description(self.folder, *needed)
        self.settings = PairSettings(
            self.description["crop_size"],
            self.description["landmarks"],
            resolution=resolution,
            seed=seed,
            warped=warped,
            augment=augment,
            au_dropout=au_dropout,
            action_units=tuple(action_units),
            relations=relations,
            zero_keeps=zero_keeps,
            teeth=teeth,
        )
        self._draws, self._renderer = Draws(self.settings), PairRenderer(self.settings, memory // 2)
        self._working_size = self.settings.working_size
        self._held, self._memory = Held(memory // 2), memory
        self.max_bad_fraction = max_bad_fraction
        self.quarantined: list[BadRow] = []
        self.digest = ""
        self._shards = _Shards()
        self.records, self._places = self._read_records()
        self._photographs_of: dict[str, list[int]] = defaultdict(list)  # by identity
        for index, record in enumerate(self.records):
            self._photographs_of[record.identity].append(index)
        self._pairs_of = [np.array(own) for own in self._photographs_of.values() if len(own) > 1]
        if warped < 1 and not self._pairs_of:
            raise DatasetError(
                f"nobody in the {split} split of {folder} has two photographs, so there are no real pairs; "
                "set warped to 1, or add photographs: one sub-folder per person, two or more in each"
            )

    @property
    def resolution(self) -> int:
        return self.settings.resolution

    @property
    def seed(self) -> int:
        return self.settings.seed

    @property
    def augment(self) -> bool:
        return self.settings.augment

    @property
    def action_units(self) -> tuple[str, ...]:
        return self.settings.action_units

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[n] for n in range(len(self)))

    def __getitem__(self, n: int) -> dict[str, Any]:
        return self.sample(self.pair(n))

    def sample(self, draw: Draw) -> dict[str, Any]:
        """Returns the sample of a draw, see the class; commands of warped pairs may differ from `pair`'s."""
        source = self._photograph(draw.source)
        target = source if draw.target == draw.source else self._photograph(draw.target)
        return self._renderer.sample(draw, source, target)

    def pair(self, n: int) -> Draw:
        """Returns the draw that defines `dataset[n]`, without reading pixels."""
        rng = self._draws.rng(n)
        if warped := self._draws.is_warped(rng):
            source = target = int(rng.integers(len(self.records)))
        else:
            members = self._pairs_of[int(rng.integers(len(self._pairs_of)))]
            source, target = (int(member) for member in rng.choice(members, 2, replace=False))
        difference = self.records[target].action_units - self.records[source].action_units
        return self._draws.draw(rng, warped, source, target, difference)

    def record_images(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A record's picture and its condition image, (3, resolution, resolution) in [-1, 1], unmodified."""
        return self._renderer.unmodified(self._stored(index), self.records[index].landmarks)

    def landmarks(self, index: int) -> np.ndarray:
        """Returns (points, 2) float32 px of a record's picture at `resolution`, as in `record_images`."""
        factor = self.resolution / self.settings.crop_size
        return (self.records[index].landmarks + 0.5) * factor - 0.5  # pixel centres at whole numbers

    def examples(self, count: int = 4, requests: Sequence[str] = EXAMPLE_REQUESTS) -> list[dict[str, Any]]:
        """Returns a fixed set of faces for preview grids: the least expressive photograph of each identity.

        source and condition: as in `record_images`, because an edit has no target. requests: those of
        `requests` whose AUs are among the dataset's; au_deltas: the same as (requests, aus) float32.
        identity; index in `records`.
        `count` faces, or as many as there are.
        """
        by_identity = [
            sorted(own, key=lambda index: float(self.records[index].action_units.sum()))
            for own in self._photographs_of.values()
        ]
        first = [members[0] for members in by_identity]
        rest = [index for members in by_identity for index in members[1:]]
        deltas = {request: parse_deltas(request) for request in requests}
        deltas = {request: aus for request, aus in deltas.items() if set(aus) <= set(self.action_units)}
        vectors = [to_vector(aus, self.action_units) for aus in deltas.values()]
        au_deltas = np.stack(vectors) if vectors else np.zeros((0, len(self.action_units)), np.float32)
        examples = []
        for index in (first + rest)[:count]:
            source, condition = self.record_images(index)
            examples.append(
                {
                    "source": source,
                    "condition": condition,
                    "au_deltas": torch.from_numpy(au_deltas.copy()),
                    "requests": tuple(deltas),
                    "identity": self.records[index].identity,
                    "index": index,
                }
            )
        return examples

    def _read_records(self) -> tuple[list[Record], list[tuple[Path, int, int]]]:
        """Returns the split's usable records, and the place of each picture: file, row group, row in it.

        It fills `quarantined` and `digest`, and holds the pictures where all fit into half of the memory.
        """
        files = sorted(current(self.folder, SHARDS).glob(f"{self.split}-*.parquet"))
        counts, variants = self.description["photographs"], self.description["variants"]
        if not files:
            raise DatasetError(
                f"{shown(self.folder)} has no split {self.split!r} (there is {', '.join(counts) or 'none'}); "
                "name validation identities to `magicedit prepare --validation`"
            )
        expected = counts.get(self.split, 0) * (1 + (variants if self.split == "train" else 0))
        hold = expected * self._working_size**2 * 3 <= self._memory / 2  # then worker processes share them
        columns, records, places, lost, rows = self._columns(), [], [], [], 0
        meaning = [self.description[name] for name in ("action_units", "landmarks", "crop_size")]
        digest = hashlib.sha256(repr(meaning).encode())

        def examined(row: dict[str, Any]) -> tuple[Record, Photograph | None, bytes] | str:
            try:
                return self._examined(row, columns, hold)
            except ValueError as error:
                return str(error)

        with ThreadPoolExecutor() as pool:  # decoders and digests release Python's lock
            for path in files:
                numbered = enumerate(_rows(path, self._shards, lost))
                while chunk := list(itertools.islice(numbered, CHUNK)):
                    rows += len(chunk)
                    found = pool.map(examined, (row for _, (*_, row) in chunk))
                    for (number, (group, place, row)), result in zip(chunk, found, strict=True):
                        if isinstance(result, str):
                            source = row["source"] if isinstance(row["source"], str) else ""
                            self.quarantined.append(BadRow(path.name, number, source, result))
                            continue
                        record, picture, content = result
                        if picture is not None:
                            self._held.get(len(records), lambda picture=picture: picture)
                        digest.update(content)
                        records.append(record)
                        places.append((path, group, place))
        if read_description(self.folder) != self.description:  # of which the shards are
            raise DatasetError(f"{shown(self.folder)} was changed while it was opened; try again")
        self.digest = digest.hexdigest()
        shards = f"{files[0].name} to {files[-1].name}" if len(files) > 1 else files[0].name
        self._check_bad(shards, max(rows, expected), expected - rows, lost)
        return records, places

    def _examined(
        self, row: Mapping[str, Any], columns: list[int], hold: bool
    ) -> tuple[Record, Photograph | None, bytes]:
        """Returns the record of a row, its picture if it is to be held, and a digest of both.

        ValueError, in a few words, where the row cannot be used.
        """
        size, points = self.description["crop_size"], LANDMARK_COUNTS[self.settings.scheme]
        for name in ("identity", "source"):
            if not isinstance(row[name], str) or not row[name]:
                raise ValueError(f"it has no {name}")
        labels = _numbers(row, "action_units", len(self.description["action_units"]))
        if labels.min(initial=0) < -ROUNDING or labels.max(initial=0) > HIGHEST + ROUNDING:
            raise ValueError(
                f"its action_units are outside 0 to {HIGHEST}: {labels.min():g} to {labels.max():g}"
            )
        landmarks = _numbers(row, "landmarks", 2 * points).reshape(-1, 2)
        if np.abs(landmarks / size - 0.5).max() > 2 or np.ptp(landmarks, axis=0).min() < LEAST_FACE * size:
            raise ValueError("its landmarks are no face in the picture")
        pose = tuple(_numbers(row, "pose", 3).tolist()) if row["pose"] else ()
        record = Record(
            row["identity"],
            row["source"],
            labels[columns],
            landmarks,
            pose,
            str(row.get("emotion") or ""),
            frozenset(filter(None, row.get("attributes") or ())),
        )
        content = row["image"].get("bytes") if isinstance(row["image"], dict) else None
        if not content:
            raise ValueError("it has no picture")
        held = self._renderer.photograph(content, landmarks) if hold else None
        if not hold:
            decoded(content, size, whole=False)
        named = repr((row["identity"], row["source"], pose, record.emotion, sorted(record.attributes)))
        parts = (named.encode(), labels.tobytes(), landmarks.tobytes(), content)
        return record, held, b"".join(hashlib.sha256(part).digest() for part in parts)

    def _check_bad(self, shards: str, rows: int, missing: int, lost: list[str]) -> None:
        """Names what cannot be used in the log. DatasetError where it is more than `max_bad_fraction`.

        shards: their names. rows: of the split, missing ones included. lost: why shards cannot be read.
        """
        bad = len(self.quarantined) + max(0, missing)
        for problem in (*lost, *self.quarantined):
            logger.warning("left out of %s: %s", shown(self.folder), problem)
        short = f"{missing} of {rows} rows are missing in {shards}" if missing > 0 else ""
        if short:
            logger.warning("%s: %s", shown(self.folder), short)
        allowed = max(1, int(self.max_bad_fraction * rows)) if self.max_bad_fraction else 0
        if bad <= allowed and rows > bad and not (lost and missing <= 0):
            return
        first = [str(problem) for problem in (*lost, *self.quarantined)][:NAMED]
        if short or not rows:
            first.append(short or f"{shards} is empty")
        raise DatasetError(
            f"the split {self.split!r} of {shown(self.folder)} has {bad} unusable rows of {rows}, more than "
            f"--max_bad_fraction {self.max_bad_fraction:g} allows ({'; '.join(first)}); run "
            "`magicedit prepare --force` again"
        )

    def _columns(self) -> list[int]:
        """Returns the positions of the action units in the dataset's labels."""
        labelled = self.description["action_units"]
        if missing := [name for name in self.action_units if name not in labelled]:
            raise DatasetError(
                f"the dataset {self.folder} has labels of {', '.join(labelled)}, "
                f"not of {', '.join(missing)}; prepare it again, or train a model for its action units"
            )
        return [labelled.index(name) for name in self.action_units]

    def _stored(self, index: int) -> bytes:
        """The encoded crop."""
        path, group, row = self._places[index]
        try:
            with self._shards.open(path) as stream, pq.ParquetFile(stream) as file:
                return file.read_row_group(group, ["image"]).column(0)[row].as_py()["bytes"]
        except DatasetError:
            raise
        except (pa.ArrowException, OSError, ValueError, TypeError) as error:
            source = self.records[index].source
            raise DatasetError(
                f"{shown(path)} has changed: row {row} of its group {group} ({shown(source)}) cannot be read "
                f"any more ({str(error)[:300]}); resume the run"
            ) from error

    def _photograph(self, index: int) -> Photograph:
        return self._held.get(
            index, lambda: self._renderer.photograph(self._stored(index), self.records[index].landmarks)
        )


class _Shards:
    """The shards of a split, as they were when they were first read.

    They stay open, as many as KEPT_OPEN, so that a file that takes the name of one is not read in its place;
    others, and those of a copy in another process, are opened again where they are still the same files.
    """

    def __init__(self) -> None:
        self._states: dict[Path, tuple[int, ...]] = {}
        self._handles: dict[Path, int] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"_states": self._states, "_handles": {}}  # another process has other handles

    def add(self, path: Path, file: IO[bytes]) -> None:
        """Notes a file that is being read, and keeps it open."""
        self._states[path] = _state(file.fileno())
        if hasattr(os, "pread") and len(self._handles) < KEPT_OPEN:
            handle = self._handles[path] = os.dup(file.fileno())
            weakref.finalize(self, os.close, handle)

    @contextlib.contextmanager
    def open(self, path: Path) -> Iterator[IO[bytes]]:
        """Opens the file that was added; DatasetError where it was changed or replaced since."""
        with contextlib.ExitStack() as stack:
            handle = self._handles.get(path)
            if handle is None:
                file = stack.enter_context(open_regular(path))
                handle = file.fileno()
            else:
                file = stack.enter_context(io.BufferedReader(_Reader(handle), 2**16))
            if _state(handle) != self._states[path]:
                raise DatasetError(
                    f"{shown(path)} was changed while the dataset was read; prepare into another folder "
                    "meanwhile, and resume the run with the dataset of before"
                )
            yield file


class _Reader(io.RawIOBase):
    """Reads an open file from a position of its own, because forked processes share that of the handle."""

    def __init__(self, handle: int) -> None:
        self._handle, self._position = handle, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        size = os.fstat(self._handle).st_size
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: size}[whence]
        self._position = start + offset
        return self._position

    def readinto(self, buffer: memoryview) -> int:
        content = os.pread(self._handle, len(buffer), self._position)
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)


def _state(handle: int) -> tuple[int, ...]:
    """What differs between files, and changes with a file's content."""
    found = os.fstat(handle)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _rows(path: Path, shards: _Shards, lost: list[str]) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Yields row group, number in it, and content of a shard's rows; appends to `lost` why it ends early."""
    try:
        with opened(path, DatasetError) as opened_file, pq.ParquetFile(opened_file) as file:
            shards.add(path, opened_file)
            there = set(file.schema_arrow.names)
            if missing := [name for name in COLUMNS if name not in there]:
                raise DatasetError(f"{path.name} has no column {', '.join(missing)}")
            columns = [name for name in (*COLUMNS, *LABELS) if name in there]
            for group in range(file.num_row_groups):
                rows = file.read_row_group(group, columns).to_pylist()
                yield from ((group, place, row) for place, row in enumerate(rows))
    except DatasetError as error:
        lost.append(str(error))
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        lost.append(f"cannot read {shown(path)} ({reason_of(error)})")


def _numbers(row: Mapping[str, Any], name: str, count: int) -> np.ndarray:
    """Returns a cell as (count,) float32; ValueError where it is something else, or not finite."""
    try:
        values = np.asarray(row[name], np.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(f"its {name} are no numbers") from error
    if values.shape != (count,):
        raise ValueError(f"it has {values.size if row[name] else 0} {name}, expected {count}")
    if not np.isfinite(values).all():
        raise ValueError(f"its {name} are not finite")
    return values
