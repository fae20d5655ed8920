"""Light on skin that lips draw in or push out, where no photographs of people show it: soft pits and ridges.

A part is the sum of soft spots on the neutral face. The places are those at which FACS describes a unit's
pouches, wrinkles and dimples (P. Ekman, W. Friesen, J. Hager, "Facial Action Coding System", 2002).
"""

from collections.abc import Mapping

import numpy as np

# Spots of the subject's left half, mirrored on the right: centre across and below the point between the eyes,
# standard deviations across and down, interocular distances of the neutral mesh; natural logarithm of light
RELIEFS: Mapping[str, tuple[tuple[float, float, float, float, float], ...]] = {
    "dimple": (
        (0.405, 1.065, 0.030, 0.030, -0.25),  # the corner itself
        *((0.455, 1.055, 0.033, 0.085, -0.46), (0.56, 1.065, 0.052, 0.10, 0.16)),  # a crease and its rim
    ),
    "hollow": ((0.58, 0.98, 0.075, 0.20, -0.17), (0.72, 0.62, 0.10, 0.10, 0.07)),
    "pout": (
        *((0.0, 1.31, 0.17, 0.04, -0.28), (0.43, 1.10, 0.055, 0.10, -0.22)),
        *((0.0, 1.11, 0.15, 0.03, 0.10), (0.0, 1.00, 0.12, 0.02, 0.06)),  # the lips themselves
    ),
}
_HUE = (0.85, 1.0, 1.08)  # of red, green and blue: skin in shadow is redder


def relief_light(shape: tuple[int, int], middle: float, pixel: float) -> dict[str, np.ndarray]:
    """The light of each part of RELIEFS on a neutral face's left half, (rows, columns, 3) natural logarithms.

    middle: the row between the eyes; the midline lies at column 0. pixel: interocular distances of a px.
    """
    across = np.arange(shape[1], dtype=np.float32)[None] * pixel
    down = (np.arange(shape[0], dtype=np.float32)[:, None] - np.float32(middle)) * pixel
    hue = np.array(_HUE, np.float32)
    return {
        name: hue
        * sum(
            light * np.exp(-(((across - x) / wide) ** 2 + ((down - y) / tall) ** 2) / 2)
            for x, y, wide, tall, light in spots
        )[..., None]
        for name, spots in RELIEFS.items()
    }
