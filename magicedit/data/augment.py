"""More photographs of a person from one: warps by face muscles, with the resulting labels.

The commands are drawn so that the labels stay within 0 to 5. `magicedit.data.pairs` draws its own commands
for pairs warped during training. Any trainer can read the photographs made here.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from magicedit.action_units import EMOTIONS, NAMES, to_vector
from magicedit.vocabulary import INTENSITY_RANGE
from magicedit.warping import displacement_fields, embedded_mouths, warp_landmarks, warp_photo

# AUs that occur together in faces
COMPANIONS = (*EMOTIONS.values(), ("AU12", "AU25"), ("AU6", "AU12"), ("AU25", "AU26"), ("AU1", "AU2"))
TOGETHER = 0.35  # probability of companions instead of one or two AUs
_STRIDE = 8  # px between samples of the fields; crops are multiples of it


@dataclass(frozen=True, eq=False)
class Variant:
    """A warped crop: pixels (size, size, 3) uint8 RGB, landmarks (478, 2) px, action_units: intensity by
    name, command: steps of the warp by name."""

    pixels: np.ndarray
    landmarks: np.ndarray
    action_units: dict[str, float]
    command: dict[str, float]


def muscle_variants(
    pixels: np.ndarray,
    landmarks: np.ndarray,
    action_units: dict[str, float],
    count: int,
    name: str,
) -> Iterator[Variant]:
    """Yields `count` warps of a crop, by commands drawn with a seed from `name`.

    pixels (size, size, 3) uint8, landmarks (478, 2) px: of the crop. action_units: its intensities 0..5.
    Opened mouths show the teeth of the embedded mouths.
    """
    fields = displacement_fields(landmarks, len(pixels), stride=_STRIDE)
    rng = np.random.default_rng(list(hashlib.sha256(name.encode()).digest()))
    mouths = embedded_mouths()
    for _ in range(count):
        if rng.random() < TOGETHER:
            chosen = COMPANIONS[rng.integers(len(COMPANIONS))]
        else:
            chosen = rng.choice(NAMES, rng.integers(1, 3), replace=False)
        # Steps to intensities drawn uniformly from the whole range
        command = {str(unit): float(rng.uniform(*INTENSITY_RANGE) - action_units[unit]) for unit in chosen}
        vector, mouth = to_vector(command), mouths[rng.integers(len(mouths))]
        yield Variant(
            warp_photo(pixels, fields, vector, landmarks, mouth),
            warp_landmarks(landmarks, fields, vector, _STRIDE),
            action_units | {unit: action_units[unit] + steps for unit, steps in command.items()},
            command,
        )
