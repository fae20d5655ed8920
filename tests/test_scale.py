"""The tutorials of docs/scale.md, word by word, with a tiny model and two processes instead of eight GPUs."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from pages import shell_commands
from PIL import Image
from tiny_models import tiny_stable_diffusion

from magicedit.models import load_pipeline

REPOSITORY = Path(__file__).resolve().parents[1]
COMMANDS = shell_commands((REPOSITORY / "docs" / "scale.md").read_text())

# A recipe is made for days: two steps on small pictures show that the line works
SHORT = shlex.split(
    "--max_train_steps 2 --train_batch_size 1 --gradient_accumulation_steps 1 --resolution 64 "
    "--mixed_precision no --dataloader_num_workers 0 --logging_steps 1 --validation_steps 2 "
    "--validation_pairs 2 --validation_faces 1"
)
SHORT_LORA = ["--lora_rank", "2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, closed_mouth) -> Path:
    """photo.jpg, photos/ with two pictures of five people, a tiny sd15/, and the repository's train/.

    The share that is reserved for validation is drawn by names: hal and kim.
    """
    folder = tmp_path_factory.mktemp("scale")
    picture = Image.fromarray(closed_mouth)
    picture.save(folder / "photo.jpg", quality=95)
    for number, name in enumerate(("ann", "bob", "cat", "hal", "kim")):
        (folder / "photos" / name).mkdir(parents=True)
        for shade in (1.0, 0.8):
            darker = picture.point(lambda value, shade=shade - number / 50: round(value * shade))
            darker.save(folder / "photos" / name / f"{shade}.png")
    tiny_stable_diffusion(folder / "sd15")
    (folder / "train").symlink_to(REPOSITORY / "train")
    return folder


def as_here(words: list[str]) -> list[str]:
    """A command as it runs here: in this Python, short, and with two processes on the CPU."""
    if words[0] != "accelerate":
        return [sys.executable, "-m", "magicedit.cli", *words[1:]]
    place = words.index("train/train.py")
    launcher, flags = words[2:place], words[place + 1 :]
    if launcher:
        launcher += ["--num_processes", "2", "--mixed_precision", "no"]
    lora = SHORT_LORA if "sd15-lora" in flags else []
    launch = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", *launcher]
    return [*launch, "train/train.py", *flags, *SHORT, *lora]


def run(folder: Path, words: list[str]) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    environment |= {"ACCELERATE_USE_CPU": "true", "DS_ACCELERATOR": "cpu", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        as_here(words), cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stderr[-3000:]}"


def commands_of(heading: str) -> list[list[str]]:
    """The commands below a heading, split into words."""
    page = (REPOSITORY / "docs" / "scale.md").read_text()
    section = page.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return [shlex.split(command) for command in shell_commands(section)]


@pytest.mark.slow
def test_the_tutorials_are_followed_word_by_word(folder):
    pytest.importorskip("ray", reason="the cluster's tutorial needs the extra `scale`")
    followed = []
    for heading in ("One card with 24 GB", "Eight GPUs", "A cluster of CPUs"):
        for words in commands_of(heading):
            run(folder, words)
            followed.append(words)
    assert followed == [shlex.split(command) for command in COMMANDS]  # no command stands elsewhere
    assert len(followed) >= 9
    assert (folder / "my-lora" / "pytorch_lora_weights.safetensors").is_file()
    for name in ("my-lora-whole", "my-sd-model", "my-split-model"):
        assert load_pipeline(folder / name, device="cpu").config.prediction == "noise"
    assert Image.open(folder / "lora.png").size == Image.open(folder / "photo.jpg").size
    for name in ("my-lora", "my-sd-model", "my-split-model", "my-streamed-lora"):
        assert "validation_loss" in (folder / name / "train_log.jsonl").read_text()
    local, ray = (
        [path.read_bytes() for path in sorted((folder / name).rglob("*.parquet"))]
        for name in ("faces512", "faces512-ray")
    )
    assert local == ray
