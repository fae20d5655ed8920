"""Fixtures that several rooms share."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` skip where there is none; torch is asked only if one was selected."""
    for_gpu = [item for item in items if "gpu" in item.keywords]
    if for_gpu:
        import torch

        if not torch.cuda.is_available():
            for item in for_gpu:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and there is none"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder beside the checkout with photographs and parity fixtures, which users do not have."""
    folder = REPOSITORY.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"the fixtures of {folder} are not here")
    return folder


@pytest.fixture
def astronaut() -> np.ndarray:
    """A public-domain photograph, (512, 512, 3) uint8 RGB: one face, smiling with open lips."""
    return pytest.importorskip("skimage.data").astronaut()


@pytest.fixture
def london(shared: Path) -> Callable[[str, str], np.ndarray]:
    """`london("001", "neutral")` -> (height, width, 3) uint8 RGB; expressions: neutral, smiling."""
    from magicedit.imaging import open_photo

    def load(identity: str, expression: str) -> np.ndarray:
        return open_photo(shared / "faces" / "london" / identity / f"{expression}.jpg").pixels

    return load
