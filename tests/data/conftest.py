"""A small folder of photographs made from one public-domain photograph, and the dataset made of it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from magicedit.data import PrepareReport, prepare_dataset
from magicedit.faces import FaceBackend, load_backend


@pytest.fixture(scope="session")
def backend() -> FaceBackend:
    return load_backend("mediapipe")


def _write(folder: Path) -> Path:
    """ann: two photographs, the second darker; bob: a mirrored one; carol: a loose one with a second, smaller
    face; and what must be left out."""
    astronaut = pytest.importorskip("skimage.data").astronaut()
    for name in ("ann", "bob"):
        (folder / name).mkdir(parents=True)
    Image.fromarray(astronaut).save(folder / "ann" / "light.png")
    Image.fromarray((astronaut * 0.7).astype(np.uint8)).save(folder / "ann" / "dark.png")
    Image.fromarray(np.ascontiguousarray(astronaut[:, ::-1])).save(
        folder / "bob" / "mirrored.jpg", quality=95
    )
    smaller = Image.fromarray(astronaut).resize((400, 400))
    both = np.full((512, 912, 3), 128, np.uint8)
    both[:, :512], both[:400, 512:] = astronaut, np.asarray(smaller)
    Image.fromarray(both).save(folder / "carol.png")

    (folder / "ann" / "empty.jpg").write_bytes(b"")
    (folder / "ann" / "torn.png").write_bytes((folder / "ann" / "light.png").read_bytes()[:20_000])
    (folder / "bob" / "copy.png").write_bytes((folder / "ann" / "light.png").read_bytes())
    Image.fromarray(np.full((300, 300, 3), 90, np.uint8)).save(folder / "bob" / "wall.png")
    (folder / "notes.txt").write_text("no photograph")
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "thumbnail.png").write_bytes((folder / "carol.png").read_bytes())
    return folder


@pytest.fixture(scope="session")
def write_photographs() -> Callable[[Path], Path]:
    return _write


@pytest.fixture(scope="session")
def photographs(tmp_path_factory) -> Path:
    """What `write_photographs` writes; not to be changed."""
    return _write(tmp_path_factory.mktemp("photographs"))


@pytest.fixture(scope="session")
def prepared(photographs, backend, tmp_path_factory) -> tuple[Path, PrepareReport]:
    """The dataset of `photographs` at 128 px, bob for validation, and the report; not to be changed."""
    output = tmp_path_factory.mktemp("datasets") / "small"
    return output, prepare_dataset(
        photographs, output, size=128, backend=backend, validation=["bob"], progress=False
    )


@pytest.fixture(scope="session")
def dataset(prepared) -> Path:
    return prepared[0]
