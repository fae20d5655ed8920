"""Training pairs from a prepared dataset: two pictures of one identity and their AU difference."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from magicedit.action_units import NAMES, parse_deltas, to_vector
from magicedit.data.checks import BadRow
from magicedit.data.description import SHARDS, current, read_description
from magicedit.data.drawing import Draw, Draws, PairSettings
from magicedit.data.records import Record, Records, read_split
from magicedit.data.rendering import REAL, WARPED, Held, PairRenderer, Photograph, decoded
from magicedit.errors import DatasetError
from magicedit.files import shown

logger = logging.getLogger(__name__)

__all__ = ["REAL", "WARPED", "BadRow", "Draw", "PairDataset", "Record", "UnusablePictureError"]

MAX_BAD_FRACTION = 0.01
EXAMINED_WHOLE = 2000  # rows up to which opening decodes every picture, which takes 2.5 ms each
NAMED = 5  # unusable rows that an error names; the log names all
MOST_REDRAWN = 1000  # draws of one sample

EXAMPLE_REQUESTS = ("AU12=+3", "AU1=+3,AU2=+3", "AU4=+3", "AU5=+3", "AU15=+3", "AU20=+3", "AU25=+3,AU26=+2")


class UnusablePictureError(DatasetError):
    """A picture turned out to be unusable when it was read; `PairDataset.pair` draws it no more."""


class Pairs(torch.utils.data.Dataset):
    """What `PairDataset` and `StreamingPairs` share.

    settings: how samples are drawn and rendered. max_bad_fraction: see `PairDataset`. memory: see
    `PairRenderer`.
    """

    def __init__(self, settings: PairSettings, max_bad_fraction: float, memory: int = 0) -> None:
        if not 0 <= max_bad_fraction <= 1:
            raise DatasetError(f"max_bad_fraction is a probability from 0 to 1, got {max_bad_fraction}")
        self.settings, self.max_bad_fraction = settings, max_bad_fraction
        self._draws, self._renderer = Draws(settings), PairRenderer(settings, memory)
        self.digest = ""
        self.quarantined: list[BadRow] = []
        self._unusable: set[int] = set()  # photographs whose pictures turned out to be

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


class PairDataset(Pairs):
    """Samples of a dataset that `prepare` wrote.

    Opening it reads every shard once and checks all numbers; it holds less than 100 bytes a row, and reads
    landmarks and pictures when they are needed. Later only these very files are read: a dataset that
    `prepare` writes anew meanwhile changes nothing, or raises DatasetError. Unusable rows, such as those with
    labels outside 0 to 5, are left out, named in the log and listed in `quarantined`; `digest` is that of the
    others.

    Opening also decodes the pictures of up to EXAMINED_WHOLE rows, and `digest` includes them. Pictures of
    larger datasets are decoded when they are first drawn, and `digest` includes only the bytes that each row
    group's pictures take. A sample with an unusable picture is drawn again by (seed, n, attempt), its row is
    named and listed in `quarantined`, and DatasetError ends the run where there are more than allowed. Each
    process finds and counts such rows by itself, since they are the same for all.

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
        self.folder, self.split = Path(folder), split
        needed = ("action_units", "landmarks", "crop_size", "photographs", "variants")
        self.description = read_description(self.folder, *needed)
        if self.description.get("shards") is not None:
            raise DatasetError(
                f"{shown(folder)} holds shards to stream, which the objectives pairs and distill read; "
                "give the dataset that they were made of"
            )
        settings = PairSettings(
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
        super().__init__(settings, max_bad_fraction, memory // 2)
        self._held = Held(memory // 2)
        self.records = self._read_records(memory // 2)
        self._pairs_of = self.records.identities_with(2)
        if warped < 1 and not len(self._pairs_of):
            raise DatasetError(
                f"nobody in the {split} split of {folder} has two photographs, so there are no real pairs; "
                "train on warped pairs alone (`--warped 1`), or add photographs: one sub-folder per person, "
                "two or more in each"
            )

    @property
    def identities(self) -> int:
        """Number of people in the split."""
        return len(self.records.names)

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[n] for n in range(len(self)))

    def __getitem__(self, n: int) -> dict[str, Any]:
        while True:
            try:
                return self.sample(self.pair(n))
            except UnusablePictureError:  # `pair` draws another one now
                continue

    def sample(self, draw: Draw) -> dict[str, Any]:
        """Returns the sample of a draw, see the class; commands of warped pairs may differ from `pair`'s.

        UnusablePictureError where a picture turns out to be unusable.
        """
        source = self._photograph(draw.source)
        target = source if draw.target == draw.source else self._photograph(draw.target)
        return self._renderer.sample(draw, source, target)

    def pair(self, n: int) -> Draw:
        """Returns the draw that defines `dataset[n]`, without reading pixels.

        It avoids pictures that turned out to be unusable, and thus may be another one before they were read.
        """
        for attempt in range(MOST_REDRAWN):
            rng = self._draws.rng(n, attempt)
            if warped := self._draws.is_warped(rng):
                source = target = int(rng.integers(len(self.records)))
            else:
                members = self.records.of_identity(self._pairs_of[int(rng.integers(len(self._pairs_of)))])
                source, target = (int(member) for member in rng.choice(members, 2, replace=False))
            if self._unusable.isdisjoint((source, target)):
                labels = self.records.action_units
                return self._draws.draw(rng, warped, source, target, labels[target] - labels[source])
        raise DatasetError(
            f"no usable pair was found in {shown(self.folder)}: {len(self._unusable)} of its pictures cannot "
            "be used; run `magicedit prepare --force` again"
        )

    def record_images(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A record's picture and its condition image, (3, resolution, resolution) in [-1, 1], unmodified.

        Raises UnusablePictureError if it is unusable.
        """
        content, landmarks = self.records.picture(index), self.records.landmarks(index)
        try:
            return self._renderer.unmodified(content, landmarks)
        except ValueError as error:
            raise self._unusable_picture(index, error) from error

    def landmarks(self, index: int) -> np.ndarray:
        """Returns (points, 2) float32 px of a record's picture at `resolution`, as in `record_images`."""
        factor = self.resolution / self.settings.crop_size
        return (self.records.landmarks(index) + 0.5) * factor - 0.5  # pixel centres at whole numbers

    def examples(self, count: int = 4, requests: Sequence[str] = EXAMPLE_REQUESTS) -> list[dict[str, Any]]:
        """Returns a fixed set of faces for preview grids: the least expressive photograph of each identity.

        source and condition: as in `record_images`, because an edit has no target. requests: those of
        `requests` whose AUs are among the dataset's; au_deltas: the same as (requests, aus) float32.
        identity; index in `records`.
        `count` faces, or as many as there are.
        """
        expression = self.records.action_units.sum(1)
        by_identity = (
            sorted(self.records.of_identity(identity).tolist(), key=expression.__getitem__)
            for identity in range(len(self.records.names))
        )
        first, rest = [], []
        for members in by_identity:
            first.append(members[0])
            rest += members[1:]
        names, au_deltas = requested(requests, self.action_units)
        examples = []
        for index in first + rest:
            if len(examples) == count:
                break
            try:
                source, condition = self.record_images(index)
            except UnusablePictureError:  # it is named in the log, and counted
                continue
            examples.append(
                {
                    "source": source,
                    "condition": condition,
                    "au_deltas": torch.from_numpy(au_deltas.copy()),
                    "requests": names,
                    "identity": self.records[index].identity,
                    "index": index,
                }
            )
        return examples

    def _read_records(self, memory: int) -> Records:
        """Returns the split's usable records; fills `quarantined` and `digest`.

        It holds the pictures that are examined where all fit into `memory`.
        """
        paths = sorted(current(self.folder, SHARDS).glob(f"{self.split}-*.parquet"))
        counts, variants = self.description["photographs"], self.description["variants"]
        if not paths:
            raise DatasetError(
                f"{shown(self.folder)} has no split {self.split!r} (there is {', '.join(counts) or 'none'}); "
                "reserve people by `magicedit prepare --validation`, a share such as 0.2 or their names"
            )
        expected = counts.get(self.split, 0) * (1 + (variants if self.split == "train" else 0))
        columns, look = labelled_columns(self.description, self.action_units, self.folder), None
        if expected <= EXAMINED_WHOLE:
            # Pictures that are held already are shared by worker processes
            hold = expected * self.settings.working_size**2 * 3 <= memory
            look = self._renderer.photograph if hold else self._decode
        found = read_split(paths, self.description, columns, expected, look)
        if read_description(self.folder) != self.description:  # of which the shards are
            raise DatasetError(f"{shown(self.folder)} was changed while it was opened; try again")
        for index, picture in found.pictures.items():
            if picture is not None:
                self._held.get(index, lambda picture=picture: picture)
        self.quarantined, self.digest = found.quarantined, found.digest
        self._rows, self._missing = max(found.rows, expected), max(0, expected - found.rows)
        for problem in (*found.lost, *found.quarantined):
            logger.warning("left out of %s: %s", shown(self.folder), problem)
        problems = found.lost
        if self._missing or not found.rows:
            names = f"{paths[0].name} to {paths[-1].name}" if len(paths) > 1 else paths[0].name
            short = f"{self._missing} of {self._rows} rows are missing in {names}"
            problems = [*found.lost, short if self._missing else f"{names} is empty"]
            logger.warning("%s: %s", shown(self.folder), problems[-1])
        self._check_bad(problems, strict=bool(found.lost) and not self._missing)
        return found.records

    def _decode(self, content: bytes, landmarks: np.ndarray) -> None:
        decoded(content, self.settings.crop_size, whole=False)

    def _check_bad(self, problems: Sequence[str] = (), strict: bool = False) -> None:
        """DatasetError where more rows are unusable or missing than `max_bad_fraction`, or `strict`.

        problems: others than unusable rows.
        """
        bad, rows = len(self.quarantined) + self._missing, self._rows
        allowed = max(1, int(self.max_bad_fraction * rows)) if self.max_bad_fraction else 0
        if bad <= allowed and rows > bad and not strict:
            return
        first = [*problems, *map(str, self.quarantined)][:NAMED]
        raise DatasetError(
            f"the split {self.split!r} of {shown(self.folder)} has {bad} unusable rows of {rows}, more than "
            f"--max_bad_fraction {self.max_bad_fraction:g} allows ({'; '.join(first)}); run "
            "`magicedit prepare --force` again"
        )

    def _photograph(self, index: int) -> Photograph:
        return self._held.get(index, lambda: self._read(index))

    def _read(self, index: int) -> Photograph:
        content, landmarks = self.records.picture(index), self.records.landmarks(index)
        try:
            return self._renderer.photograph(content, landmarks)
        except ValueError as error:
            raise self._unusable_picture(index, error) from error

    def _unusable_picture(self, index: int, reason: ValueError) -> UnusablePictureError:
        """Notes a record whose picture turned out to be unusable. DatasetError where these are too many."""
        bad = self.records.bad_row(index, str(reason))
        if index not in self._unusable:
            self._unusable.add(index)
            self.quarantined.append(bad)
            logger.warning("left out of %s: %s", shown(self.folder), bad)
            self._check_bad()
        return UnusablePictureError(f"a picture of {shown(self.folder)} cannot be used: {bad}")


def labelled_columns(
    description: Mapping[str, Any], action_units: Sequence[str], folder: str | Path
) -> list[int]:
    """Returns the positions of action units in the labels of the dataset `folder`."""
    labelled = description["action_units"]
    if missing := [name for name in action_units if name not in labelled]:
        raise DatasetError(
            f"the dataset {shown(folder)} has labels of {', '.join(labelled)}, "
            f"not of {', '.join(missing)}; prepare it again, or train a model for its action units"
        )
    return [labelled.index(name) for name in action_units]


def requested(requests: Sequence[str], action_units: Sequence[str]) -> tuple[tuple[str, ...], np.ndarray]:
    """Returns the requests whose AUs are all among these, and their steps, (requests, aus) float32."""
    deltas = {request: parse_deltas(request) for request in requests}
    deltas = {request: aus for request, aus in deltas.items() if set(aus) <= set(action_units)}
    vectors = [to_vector(aus, action_units) for aus in deltas.values()]
    return tuple(deltas), np.stack(vectors) if vectors else np.zeros((0, len(action_units)), np.float32)
