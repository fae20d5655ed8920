"""The random draw that defines a training sample: which pictures, warped by what, placed and toned how."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from magicedit import warping
from magicedit.action_units import NAMES
from magicedit.data.augment import COMPANIONS
from magicedit.errors import DatasetError
from magicedit.faces.types import LANDMARK_COUNTS, Scheme
from magicedit.files import shown

# Augmentation, the same for source, target and condition.
ROTATION = 0.15  # radians, both ways
SCALE = (0.95, 1.15)
SHIFT = 0.04  # of the side, both ways
GAIN, BIAS = (0.75, 1.25), 0.15  # by channel, of values in [-1, 1]
# Pictures are stored larger than they are returned, because rotation and scaling cost sharpness.
WORKING_SCALE = 4 / 3

# Commands of warped pairs
SOURCE_WARPED = 0.2  # probability; else the source is the photograph itself
AU_COUNTS = (0, 1, 1, 1, 2, 3)  # how many AUs a command changes, equally likely
INTENSITIES = (-2.0, 5.0)  # intensity steps
TOGETHER = 0.25  # probability of AUs that occur together in faces, all upwards, instead
# Probability and scale of commands that are small: users ask for small changes
SLIGHT, SLIGHT_SCALE = 0.2, 0.2


class Draw(NamedTuple):
    """The random draw that defines a sample.

    source, target: numbers of the photographs, equal in a warped pair. au_delta: (aus,) float32, target minus
    source in intensity steps; all zero where `dropped`. source_command, target_command: (aus,) AU steps that
    warp the two pictures. mouth: embedded mouth whose teeth an opened mouth shows; None: dark. matrix: (2, 3)
    from pixels of the stored pictures to pixels of the returned ones, None without augmentation; then
    mirrored if `flip`; then value * gain + bias by channel, in [-1, 1].
    """

    source: int
    target: int
    au_delta: np.ndarray
    flip: bool
    warped: bool
    dropped: bool
    source_command: np.ndarray
    target_command: np.ndarray
    mouth: int | None
    matrix: np.ndarray | None
    gain: np.ndarray
    bias: np.ndarray


@dataclass(frozen=True)
class PairSettings:
    """How samples are drawn and rendered; `magicedit.data.PairDataset` explains the fields.

    crop_size, scheme: of the dataset's pictures and landmarks. Raises DatasetError for settings that make no
    sense, or that these pictures do not allow.
    """

    crop_size: int
    scheme: Scheme
    resolution: int = 96
    seed: int = 0
    warped: float = 0.0
    augment: bool = True
    au_dropout: float = 0.1
    action_units: tuple[str, ...] = tuple(NAMES)
    relations: bool = True
    zero_keeps: bool = False
    teeth: bool = True

    def __post_init__(self) -> None:
        for name in ("warped", "au_dropout"):
            if not 0 <= (value := getattr(self, name)) <= 1:
                raise DatasetError(f"{name} is a probability from 0 to 1, got {value}")
        if self.scheme not in LANDMARK_COUNTS:
            raise DatasetError(
                f"the dataset has landmarks {shown(self.scheme)!r}, expected one of "
                f"{', '.join(LANDMARK_COUNTS)}; run `magicedit prepare` again"
            )
        if not 0 < self.resolution <= self.crop_size:
            raise DatasetError(
                f"the crops of the dataset have {self.crop_size} px, too few for resolution "
                f"{self.resolution}; run `magicedit prepare` again with --size {self.resolution}"
            )
        if self.warped > 0 and self.scheme != "mediapipe478":
            raise DatasetError(
                f"warped pairs need MediaPipe's 478 landmarks, the dataset has {self.scheme}; "
                "prepare it with the backend mediapipe, or set warped to 0"
            )

    @property
    def working_size(self) -> int:
        """Side in px of the pictures that are warped and placed, at most `crop_size`."""
        wanted = int(np.ceil(self.resolution * WORKING_SCALE / 16)) * 16  # strides divide it
        return min(wanted, self.crop_size) if self.augment else self.resolution


class Draws:
    """Draws samples by `PairSettings`; the caller chooses the photographs of each.

    rng = draws.rng(n)
    warped = draws.is_warped(rng)
    source, target = ...  # chosen by rng; of a warped pair the same photograph
    draw = draws.draw(rng, warped, source, target, labels[target] - labels[source])
    """

    def __init__(self, settings: PairSettings) -> None:
        self.settings = settings
        names = settings.action_units
        known = [[names.index(name) for name in group if name in names] for group in COMPANIONS]
        self._companions = [together for together in known if len(together) > 1]
        self._mouths = len(warping.embedded_mouths()) if settings.teeth else 0

    def rng(self, n: int, attempt: int = 0) -> np.random.Generator:
        """Returns the generator of sample n >= 0, which depends on (seed, n) and the attempt alone."""
        if n < 0:
            raise IndexError(f"samples are numbered from 0, got {n}")
        # Methods draw from (seed, n, 1) and (seed, n, 2)
        return np.random.default_rng((self.settings.seed, int(n), *((3, attempt) if attempt else ())))

    def is_warped(self, rng: np.random.Generator) -> bool:
        """Draws whether the pair is one photograph, warped; it comes first."""
        return bool(rng.random() < self.settings.warped)

    def draw(
        self, rng: np.random.Generator, warped: bool, source: int, target: int, difference: np.ndarray
    ) -> Draw:
        """Returns the draw of two photographs.

        source, target: their numbers, of which the sample is told. difference: (aus,) float32, labels of the
        target minus those of the source, which a warped pair does not need.
        """
        nothing = np.zeros(len(self.settings.action_units), np.float32)
        source_command = target_command = nothing
        au_delta, mouth = difference, None
        if warped:
            source_command = self._command(rng) if rng.random() < SOURCE_WARPED else nothing
            target_command = self._command(rng)
            au_delta = target_command - source_command
            if self._mouths:
                mouth = int(rng.integers(self._mouths))
        matrix, flip, gain, bias = None, False, np.ones(3), np.zeros(3)
        if self.settings.augment:
            matrix, flip = self._placement(rng), bool(rng.random() < 0.5)
            gain, bias = rng.uniform(*GAIN, 3), rng.uniform(-BIAS, BIAS, 3)
        dropped = bool(rng.random() < self.settings.au_dropout)
        if dropped:
            au_delta = nothing
            if self.settings.zero_keeps:
                target, target_command = source, source_command
        return Draw(
            source,
            target,
            au_delta,
            flip,
            warped,
            dropped,
            source_command,
            target_command,
            mouth,
            matrix,
            gain,
            bias,
        )

    def _command(self, rng: np.random.Generator) -> np.ndarray:
        command = np.zeros(len(self.settings.action_units), np.float32)
        if self._companions and rng.random() < TOGETHER:
            together = self._companions[rng.integers(len(self._companions))]
            command[together] = rng.uniform(0, INTENSITIES[1], len(together))
        else:
            count = min(AU_COUNTS[rng.integers(len(AU_COUNTS))], len(command))
            command[rng.choice(len(command), count, replace=False)] = rng.uniform(*INTENSITIES, count)
        return command * np.float32(SLIGHT_SCALE) if rng.random() < SLIGHT else command

    def _placement(self, rng: np.random.Generator) -> np.ndarray:
        """Returns a random similarity, (2, 3), from stored to returned pictures."""
        held, size = self.settings.working_size, self.settings.resolution
        angle, scale = rng.uniform(-ROTATION, ROTATION), rng.uniform(*SCALE) * size / held
        linear = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        centre = (size - 1) / 2 + rng.uniform(-SHIFT, SHIFT, 2) * size
        return np.concatenate([linear, (centre - linear @ np.full(2, (held - 1) / 2))[:, None]], axis=1)
