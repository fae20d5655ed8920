"""A model's change of the crop of a face."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Change:
    """The change of a square crop by an edit: `(1 - mask) * crop(p + flow(p)) + mask * paint(p)`.

    flow: (size, size, 2) float32, x then y, in pixels of the crop. mask: (size, size) float32, 0..1.
    paint: (size, size, 3) float32, RGB in 0..1.
    """

    flow: np.ndarray
    mask: np.ndarray
    paint: np.ndarray

    def __post_init__(self) -> None:
        size = len(self.mask)
        for name, shape in (("flow", (size, size, 2)), ("mask", (size, size)), ("paint", (size, size, 3))):
            if getattr(self, name).shape != shape:
                raise ValueError(f"{name} must have shape {shape}, got {getattr(self, name).shape}")


def no_change(size: int) -> Change:
    """Returns the change that leaves a crop of `size` px unchanged."""
    return Change(
        np.zeros((size, size, 2), np.float32),
        np.zeros((size, size), np.float32),
        np.zeros((size, size, 3), np.float32),
    )
