"""A dataset of four small photographs, made from one public-domain photograph."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from magicedit.data import prepare

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
    astronaut = pytest.importorskip("skimage.data").astronaut()
    photographs = tmp_path_factory.mktemp("photographs")
    for name, picture in (("ann", astronaut), ("bob", np.ascontiguousarray(astronaut[:, ::-1]))):
        (photographs / name).mkdir()
        Image.fromarray(picture).save(photographs / name / "light.png")
        Image.fromarray((picture * 0.7).astype(np.uint8)).save(photographs / name / "dark.png")
    output = tmp_path_factory.mktemp("datasets") / "pairs"
    prepare(photographs, output, size=64, validation=["bob"], progress=False)
    return output


@pytest.fixture
def tiny_flags(pairs_folder):
    """Flags of a run of seconds; `tiny_flags(output_dir, "--max_train_steps", "3")`."""

    def flags(output_dir: Path, *more: str) -> list[str]:
        return [*TINY_MODEL, "--train_data_dir", str(pairs_folder), "--output_dir", str(output_dir), *more]

    return flags
