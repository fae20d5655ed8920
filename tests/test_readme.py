"""The commands of the README, docs/training.md and docs/speed.md, run as they stand.

Those of `magicedit` run in this process, so that the libraries are imported once; so do training's after the
first, which `accelerate launch` starts in a process of its own.
"""

import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pages import blocks, shell_commands, write_clip
from PIL import Image
from tiny_models import tiny_stable_diffusion

REPOSITORY = Path(__file__).resolve().parents[1]
README = (REPOSITORY / "README.md").read_text()
MORE = ("training.md", "speed.md")
PAGES = [README, *((REPOSITORY / "docs" / name).read_text() for name in MORE)]  # in the order of reading

LAUNCH = ["accelerate", "launch"]

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
    """photo.jpg, clip.mp4, photos/ with five people, and a tiny model in the place of each large one."""
    folder = tmp_path_factory.mktemp("readme")
    astronaut_picture.save(folder / "photo.jpg", quality=95)
    for name in ("ann", "bob", "cat", "dan", "eve"):
        (folder / "photos" / name).mkdir(parents=True)
        for number in (1, 2):
            size = 400 + 20 * number + 5 * ord(name[0]) % 37
            astronaut_picture.resize((size, size)).save(folder / "photos" / name / f"{number}.png")
    (folder / "people").symlink_to("photos")
    write_clip(folder / "clip.mp4", astronaut_picture)
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


def run(words: list[str]) -> None:
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    result = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, f"{shlex.join(words)}\n{result.stderr[-3000:]}"


def run_here(script: str, arguments: list[str], monkeypatch) -> None:
    """What `run` does with a Python file, without importing everything again."""
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(script, run_name="__main__")
    assert ended.value.code == 0, shlex.join([script, *arguments])


def shortened(protocol: str, folder: Path) -> Path:
    """A protocol of the package that asks for one of its action units and one of its combinations."""
    content = yaml.safe_load((REPOSITORY / "magicedit/evaluation/protocols" / f"{protocol}.yaml").read_text())
    content["levels"]["action_units"] = ["AU12"]
    del content["combinations"][1:]
    path = folder / f"{protocol}.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_every_command_runs_in_the_order_of_the_pages(folder, monkeypatch, capfd):
    from magicedit.cli import main

    monkeypatch.chdir(folder)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    commands = [command for page in PAGES for command in shell_commands(page)]
    assert len(commands) > 20
    launched = 0
    for command in commands:
        words = shlex.split(command)
        if "--config" in words:
            words += shlex.split(SHORT[words[words.index("--config") + 1]])
        if "evaluate" in words:
            words += ["--identities", "ann"]  # of the five, who are one
            words += ["--protocol", str(shortened(words[words.index("--protocol") + 1], folder))]
        if "push" in words:
            words += ["--dry-run"]  # no hub is here: tests/hub has one
        if words[0] == "magicedit":
            assert main(words[1:]) == 0, f"{command}\n{capfd.readouterr().err[-3000:]}"
            if "evaluate" in words:  # the first has measured how a process of each editor starts
                monkeypatch.setattr("magicedit.evaluation.run._cold", lambda *_: None)
        elif words[:2] == LAUNCH and launched:
            run_here(words[2], words[3:], monkeypatch)
            launched += 1
        else:
            run(words)
            launched += words[:2] == LAUNCH
    assert launched > 3
    for script in (script for page in PAGES for script in blocks("python", page)):
        exec(compile(script, "page", "exec"), {"__name__": "__main__"})
    pictures = ("smile", "calm", "brow", "happy", "again", "copied", "strip", "mine", "edited")
    for name in pictures:
        assert Image.open(folder / f"{name}.png").size[0] > 0
    for name in ("between.gif", "smiling.mp4", "alive.mp4"):
        assert (folder / name).stat().st_size > 10_000
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
