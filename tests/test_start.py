"""A cold start: what must not be imported on the way to a first edit, and what the command may do about it.

Embedded models do without torch and diffusers, which take seconds to import (test_light.py). Where another
model needs them, nothing else may be added to them unnoticed.
"""

import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from skimage import data

from magicedit.cli import main

REPOSITORY = Path(__file__).resolve().parent.parent

WITH_THE_MODEL = (
    "import magicedit.cli, magicedit.imaging, magicedit.editor, magicedit.batch, magicedit.models\n"
    "magicedit.models.load_pipeline('mini')\n"
)
NOT_WITH_THE_MODEL = {
    "mediapipe": "loads with the face backend",
    "matplotlib": "0.8 s; plots of evaluations, and MediaPipe's drawing",
    "sounddevice": "MediaPipe's audio",
    "dlib": "measures identity after the edit, where it is installed",
    "insightface": "another face backend",
    "onnxruntime": "models without torch",
    "onnx": "exports",
    "skimage": "tests and the demo",
    "datasets": "training",
    "pandas": "training, through datasets",
    "pyarrow": "training",
    "torchvision": "does not import beside every torch",
    "torchmetrics": "evaluation",
    "tensorboard": "training",
    "gradio": "the web page",
    "torch._inductor.compile_fx": "compiling, which an edit does not",
    "PIL.PdfImagePlugin": "Pillow's plugins of formats that are not read",
    "magicedit.data": "training",
    "magicedit.evaluation": "evaluation",
    "magicedit.train": "training",
    "magicedit.doctor": "another command",
}


def python(*arguments, cwd=None):
    """A process of its own, of this checkout."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120
    )


def test_nothing_heavy_is_imported_for_nothing(tmp_path):
    photo = tmp_path / "photo.png"
    Image.fromarray(data.astronaut()).save(photo)
    code = f"{WITH_THE_MODEL}magicedit.imaging.open_photo({str(photo)!r})\nimport sys\nprint(*sys.modules)"
    run = python("-c", code)
    assert run.returncode == 0, run.stderr
    modules = run.stdout.split()
    assert "magicedit.editor" in modules
    assert {name: why for name, why in NOT_WITH_THE_MODEL.items() if name in modules} == {}


def test_called_by_a_program_it_leaves_that_program_alone(tmp_path, capsys):
    """The garbage collector is as it was: it is tuned for a process of our own."""
    photo = tmp_path / "photo.png"
    Image.fromarray(data.astronaut()).save(photo)
    before = gc.isenabled(), gc.get_freeze_count()
    assert main(["measure", str(photo)]) == 0
    assert "AU12" in capsys.readouterr().out
    assert (gc.isenabled(), gc.get_freeze_count()) == before


def test_a_process_of_its_own_edits_to_the_same_byte(tmp_path, capsys):
    photo = tmp_path / "photo.png"
    Image.fromarray(data.astronaut()).save(photo)
    options = ["edit", str(photo), "--au", "AU12=-3", "--json", "-o"]
    started = python("-m", "magicedit.cli", *options, str(tmp_path / "a.png"))
    assert started.returncode == 0, started.stderr
    assert started.stderr == "looking for faces in photo.png\nloading mini\n"
    assert main([*options, str(tmp_path / "b.png")]) == 0
    same = capsys.readouterr().out.replace("b.png", "a.png").splitlines()
    assert [line for line in started.stdout.splitlines() if '"seconds"' not in line] == [
        line for line in same if '"seconds"' not in line
    ]
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize(
    ("picture", "model", "message"),
    [
        ("grey", "mini", "no face was found in photo.png (200 x 200 px): use one"),
        ("grey", "nowhere", 'model must be "mini", "mini-live", a pipeline folder or a hub id'),
    ],
)
def test_errors_of_a_process_of_its_own_are_one_line(tmp_path, picture, model, message):
    Image.new("RGB", (200, 200), picture).save(tmp_path / "photo.png")
    command = ["edit", "photo.png", "-o", "out.png", "--au", "AU12=1", "--model", model]
    run = python("-m", "magicedit.cli", *command, cwd=tmp_path)
    assert run.returncode == 2
    assert run.stdout == ""
    *said, last = run.stderr.splitlines()
    assert said == (["looking for faces in photo.png"] if model == "mini" else [])
    assert last.startswith(f"magicedit: error: {message}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photo.png"]
