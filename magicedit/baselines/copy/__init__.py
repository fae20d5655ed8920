"""The editor that does nothing: perfect in identity, background and pose, and the full AU error."""

from collections.abc import Mapping

import numpy as np

from magicedit.imaging import Photo


def copy(photo: Photo, au_delta: Mapping[str, float], seed: int) -> np.ndarray:
    """The photograph's own pixels, (height, width, 3) uint8, whatever is asked."""
    return photo.pixels
