"""How far measurements of a face change under mild distortions of its photograph: their error bars.

None of the distortions changes the expression, so a difference of two photographs within the spread says
nothing about it.
"""

import io
import math
from collections.abc import Iterator

import cv2
import numpy as np
from PIL import Image

from magicedit.errors import NoFaceError
from magicedit.faces.gaze import levels_of
from magicedit.faces.types import Face, FaceBackend, same_face, shifted

JPEG_QUALITIES = (60, 90)
SHIFT = 1  # px, right and down
SCALES = (0.97, 0.5)
NOISE = 2.0  # levels, standard deviation
DARKER = 0.8  # factor of the levels
_LEAST_FOUND = 4  # of the distorted pictures: fewer give no standard deviation


def distorted(pixels: np.ndarray, seed: int = 0) -> Iterator[tuple[np.ndarray, float]]:
    """Yields (height, width, 3) uint8 RGB pictures that show the same face, and the scale of each.

    They are compressed as JPEG of quality 60 and 90, moved by 1 px, reduced to 0.97 and 0.5, slightly noisy,
    and darker. seed: of the noise.
    """
    for quality in JPEG_QUALITIES:
        content = io.BytesIO()
        Image.fromarray(pixels).save(content, "JPEG", quality=quality)
        yield np.array(Image.open(content)), 1.0
    yield np.pad(pixels, ((SHIFT, 0), (SHIFT, 0), (0, 0)), mode="edge")[:-SHIFT, :-SHIFT], 1.0
    for scale in SCALES:
        yield cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), scale
    noise = np.random.default_rng(seed).normal(0, NOISE, pixels.shape)
    yield np.rint(pixels + noise).clip(0, 255).astype(np.uint8), 1.0
    yield np.rint(pixels * DARKER).astype(np.uint8), 1.0


def spread_of(backend: FaceBackend, pixels: np.ndarray, face: Face) -> dict[str, float]:
    """Returns the standard deviation of each of a face's levels over the photograph and its distortions.

    Args:
        pixels: the photograph, (height, width, 3) uint8 RGB.
        face: of it, by the same backend.

    Returns:
        by name as of `levels_of`, in intensity steps, and degrees for gaze and head.

    Raises:
        NoFaceError: where the face is found in fewer than 4 of the 7 distorted pictures.
    """
    height, width = pixels.shape[:2]
    x0, y0, x1, y1 = face.box
    margin = max(x1 - x0, y1 - y0)
    left, top = max(0, int(x0 - margin)), max(0, int(y0 - margin))
    right, bottom = min(width, math.ceil(x1 + margin)), min(height, math.ceil(y1 + margin))
    window = np.ascontiguousarray(pixels[top:bottom, left:right])
    box = shifted(face, -left, -top).box
    found, pictures = [levels_of(face)], [*distorted(window)]
    for picture, scale in pictures:
        x0, y0, x1, y1 = (scale * edge for edge in box)
        again = same_face(backend.detect(np.ascontiguousarray(picture)), (x0, y0, x1, y1))
        if again is not None:
            found.append(levels_of(again))
    if len(found) <= _LEAST_FOUND:
        raise NoFaceError(
            f"the face is found in {len(found) - 1} of {len(pictures)} mildly distorted copies of the "
            "photograph, too few for error bars; use a larger one"
        )
    names = [name for name in found[0] if all(name in levels for levels in found)]
    return {name: float(np.std([levels[name] for levels in found], ddof=1)) for name in names}


def levels_relative_to(
    backend: FaceBackend, photo: tuple[np.ndarray, Face], neutral: tuple[np.ndarray, Face]
) -> tuple[dict[str, float], dict[str, float]]:
    """Returns a face's levels minus those of the same person's neutral face, and their error bars.

    Args:
        photo, neutral: pixels, (height, width, 3) uint8 RGB, and the face in them.

    Returns:
        differences and standard deviations by name, units as in `spread_of`. A standard deviation is the root
        of the sum of squares of both photographs' spreads.

    Raises:
        NoFaceError: as `spread_of`.
    """
    levels, rest = levels_of(photo[1]), levels_of(neutral[1])
    spread, spread_at_rest = spread_of(backend, *photo), spread_of(backend, *neutral)
    names = [name for name in levels if name in rest and name in spread and name in spread_at_rest]
    return (
        {name: levels[name] - rest[name] for name in names},
        {name: math.hypot(spread[name], spread_at_rest[name]) for name in names},
    )
