"""Fixtures that several rooms share."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

REPOSITORY = Path(__file__).resolve().parent.parent
# Files of more than a minute
LONGEST = [
    *("test_run", "test_campaign", "test_readme", "test_training_speed", "test_training", "test_batch"),
    *("test_hub_pipeline", "test_guard", "test_server", "test_browser", "test_cli", "test_sessions"),
    *("test_endpoints", "test_resume_killed", "test_hub_training", "test_resume", "test_methods"),
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` skip where there is none; torch is asked only if one was selected.

    The longest files come first: where processes take whole files, none is left with one of them at the end.
    """
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))
    for_gpu = [item for item in items if "gpu" in item.keywords]
    if for_gpu:
        import torch

        if not torch.cuda.is_available():
            for item in for_gpu:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and there is none"))


@pytest.fixture(scope="session", autouse=True)
def unsigned() -> None:
    """Outputs are marked but not signed: no two signatures are equal, and the certificate would be made in
    the home of whoever runs the tests."""
    os.environ["MAGICEDIT_C2PA"] = "off"


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


@pytest.fixture(scope="session")
def closed_mouth() -> np.ndarray:
    """A synthetic portrait with closed lips, (height, width, 3) uint8 RGB."""
    from magicedit.imaging import open_photo

    return open_photo(REPOSITORY / "tests" / "portraits" / "closed_mouth.jpg").pixels


@pytest.fixture(scope="session")
def with_glasses(closed_mouth) -> np.ndarray:
    """The portrait with dark round rims drawn on it."""
    import cv2

    from magicedit.faces import load_backend
    from magicedit.faces.frame import face_frame

    face = load_backend().detect(closed_mouth)[0]
    picture, iod = closed_mouth.copy(), face_frame(face.landmarks).interocular
    eyes = face.landmarks[[468, 473]] + (0, 0.06 * iod)
    rim, width = round(0.38 * iod), max(2, round(0.04 * iod))
    for (x, y), side in zip(np.rint(eyes).astype(int), (-1, 1), strict=True):
        cv2.circle(picture, (x, y), rim, (25, 20, 20), width, cv2.LINE_AA)
        temple = (int(x + side * iod), int(y - 0.15 * rim))
        cv2.line(picture, (x + side * rim, y), temple, (25, 20, 20), width, cv2.LINE_AA)
    bridge = np.rint(eyes + np.array([[1, -0.1], [-1, -0.1]]) * rim).astype(int)
    cv2.line(picture, *map(tuple, bridge.tolist()), (25, 20, 20), width, cv2.LINE_AA)
    return picture


@pytest.fixture
def london(shared: Path) -> Callable[[str, str], np.ndarray]:
    """`london("001", "neutral")` -> (height, width, 3) uint8 RGB; expressions: neutral, smiling."""
    from magicedit.imaging import open_photo

    def load(identity: str, expression: str) -> np.ndarray:
        return open_photo(shared / "faces" / "london" / identity / f"{expression}.jpg").pixels

    return load


TINY_MODEL = [
    "--resolution=32",
    "--block_out_channels=16,32",
    "--attention_heads=2",
    "--train_batch_size=2",
    "--learning_rate=1e-3",
    "--lr_warmup_steps=0",
    "--warped=0.5",
    "--augment",
    "--use_ema",
    "--validation_steps=0",
    "--logging_steps=1",
]


@pytest.fixture(scope="session")
def pairs_folder(tmp_path_factory) -> Path:
    """Two people of two photographs each, at 64 px; the second pair is for validation."""
    from magicedit.data import prepare_dataset

    astronaut = pytest.importorskip("skimage.data").astronaut()
    photographs = tmp_path_factory.mktemp("photographs")
    for name, picture in (("ann", astronaut), ("bob", np.ascontiguousarray(astronaut[:, ::-1]))):
        (photographs / name).mkdir()
        Image.fromarray(picture).save(photographs / name / "light.png")
        Image.fromarray((picture * 0.7).astype(np.uint8)).save(photographs / name / "dark.png")
    output = tmp_path_factory.mktemp("datasets") / "pairs"
    prepare_dataset(photographs, output, size=64, validation=["bob"], progress=False)
    return output


@pytest.fixture
def tiny_flags(pairs_folder):
    """Flags of a run of seconds; `tiny_flags(output_dir, "--max_train_steps", "3")`."""

    def flags(output_dir: Path, *more: str) -> list[str]:
        return [*TINY_MODEL, "--train_data_dir", str(pairs_folder), "--output_dir", str(output_dir), *more]

    return flags
