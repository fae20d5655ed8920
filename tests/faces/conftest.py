"""Photographs of faces at chosen places and sizes."""

from collections.abc import Callable

import cv2
import numpy as np
import pytest

from magicedit.faces.backends.mediapipe import MediaPipeBackend
from magicedit.faces.types import Face

ASTRONAUT_HEIGHT = 108.0  # px, hairline to chin, of the face in the astronaut's photograph


@pytest.fixture(scope="session")
def backend() -> MediaPipeBackend:
    return MediaPipeBackend()


@pytest.fixture
def astronaut_face(backend: MediaPipeBackend, astronaut: np.ndarray) -> Face:
    (face,) = backend.detect(astronaut)
    return face


@pytest.fixture
def paste(astronaut: np.ndarray) -> Callable[..., tuple[np.ndarray, list[np.ndarray]]]:
    """`paste(width, height, [(face height, left, top), ...])`: astronauts on a mottled ground.

    Gives the photograph and, for each, the (2, 3) matrix from the astronaut's pixels to the photograph's.
    """

    def build(
        width: int, height: int, places: list[tuple[float, int, int]]
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        noise = np.random.default_rng(0).integers(
            60, 200, (height // 50 + 1, width // 50 + 1, 3), dtype=np.uint8
        )
        photo = cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
        matrices = []
        for face_height, left, top in places:
            scale = face_height / ASTRONAUT_HEIGHT
            side = round(512 * scale)
            scale = side / 512
            how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
            photo[top : top + side, left : left + side] = cv2.resize(
                astronaut, (side, side), interpolation=how
            )
            offset = (scale - 1) / 2
            matrices.append(np.array([[scale, 0, left + offset], [0, scale, top + offset]]))
        return photo, matrices

    return build
