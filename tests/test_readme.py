"""The commands of the README and of docs/speed.md, run as they stand in a folder that has what they name."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from pages import blocks, shell_commands
from PIL import Image
from tiny_models import tiny_stable_diffusion

REPOSITORY = Path(__file__).resolve().parents[1]
README = (REPOSITORY / "README.md").read_text()
PAGES = (README, (REPOSITORY / "docs" / "speed.md").read_text())  # in the order of reading

# Recipes are made for hours and for large cards: one step on small pictures shows that the line works
SHORT = {
    "mini-cpu": "--max_train_steps 1 --train_batch_size 1 --validation_steps 0 --dataloader_num_workers 0",
    "sd15": "--max_train_steps 1 --train_batch_size 1 --validation_steps 0 --dataloader_num_workers 0 "
    "--resolution 64 --mixed_precision no",
}
SHORT["mini-distill"] = SHORT["mini-cpu"]
SHORT["sd15-lora"] = SHORT["sd15"] + " --lora_rank 2 --gradient_accumulation_steps 1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, astronaut_picture) -> Path:
    """photo.jpg, photos/ with five people, and a tiny model in the place of each large one."""
    folder = tmp_path_factory.mktemp("readme")
    astronaut_picture.save(folder / "photo.jpg", quality=95)
    for name in ("ann", "bob", "cat", "dan", "eve"):
        (folder / "photos" / name).mkdir(parents=True)
        for number in (1, 2):
            size = 400 + 20 * number + 5 * ord(name[0]) % 37
            astronaut_picture.resize((size, size)).save(folder / "photos" / name / f"{number}.png")
    tiny_stable_diffusion(folder / "sd15")
    write_magicface(folder)
    (folder / "train").symlink_to(REPOSITORY / "train")
    return folder


@pytest.fixture(scope="module")
def astronaut_picture() -> Image.Image:
    return Image.fromarray(pytest.importorskip("skimage.data").astronaut())


def write_magicface(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    from magicedit.models import from_stable_diffusion

    unet, reference_unet = from_stable_diffusion(folder / "sd15")
    unet.save_pretrained(folder / "magicface" / "denoising_unet")
    reference_unet.save_pretrained(folder / "magicface" / "ID_enc")
    weights = folder / "magicface" / "denoising_unet" / "diffusion_pytorch_model.safetensors"
    save_file(
        {k.replace("class_embedding.", "au_aug_mlp."): v for k, v in load_file(weights).items()}, weights
    )


def run(words: list[str], folder: Path) -> None:
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HF_HUB_OFFLINE": "1",
    }
    result = subprocess.run(
        words, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, f"{shlex.join(words)}\n{result.stderr[-3000:]}"


def test_every_command_runs_in_the_order_of_the_pages(folder):
    commands = [command for page in PAGES for command in shell_commands(page)]
    assert len(commands) > 8
    for command in commands:
        words = shlex.split(command)
        if "--config" in words:
            words += shlex.split(SHORT[words[words.index("--config") + 1]])
        if "evaluate" in words:
            words += ["--identities", "ann"]  # of the five, who are one
        run(words, folder)
    for name in ("smile.png", "calm.png", "brow.png", "happy.png", "strip.png", "mine.png"):
        assert Image.open(folder / name).size[0] > 0
    for script in (script for page in PAGES for script in blocks("python", page)):
        run([sys.executable, "-c", script], folder)
    assert (folder / "edited.png").is_file()
    assert (folder / "report" / "report.html").is_file()
    assert (folder / "copy-of-my-model" / "pipeline.py").is_file()
    distilled = json.loads((folder / "my-distilled-model" / "model_index.json").read_text())
    assert distilled["distilled_steps"] == 2


def test_pictures_and_links_are_there():
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    local = [target for target in targets if "://" not in target]
    assert local
    missing = [target for target in local if not (REPOSITORY / target).exists()]
    assert not missing


def test_figures_are_those_of_the_data():
    subprocess.run([sys.executable, REPOSITORY / "benchmarks" / "fill_readme.py", "--check"], check=True)
