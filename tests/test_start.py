"""A cold start: what must not be imported on the way to a first edit, and what the command may do about it.

The libraries we stand on (torch, diffusers and, through it, transformers, peft and scipy) take seconds to
import; nothing else may be added to them unnoticed.
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

# Imported while a backend looks at the photograph in another process: nothing that takes long.
BEFORE_THE_MODEL = (
    "import magicedit.cli, magicedit.imaging, magicedit.faces.process, magicedit.editor, magicedit.batch"
)
NOT_BEFORE_THE_MODEL = {
    "torch": "2 s, for the model alone",
    "diffusers": "4 s, for the model alone",
    "scipy": "0.5 s; its splines serve training data, not edits",
    "mediapipe": "1.5 s with matplotlib; loads in its own process",
    "dlib": "measures identity after the edit, where it is installed",
    "http": "0.1 s; downloads are rare",
}
WITH_THE_MODEL = f"{BEFORE_THE_MODEL}; import magicedit.models; magicedit.models.load_pipeline('mini')"
NOT_WITH_THE_MODEL = {
    "mediapipe": "loads in its own process",
    "matplotlib": "0.8 s; plots of evaluations, and MediaPipe's drawing",
    "sounddevice": "MediaPipe's audio",
    "dlib": "measures identity after the edit, where it is installed",
    "insightface": "another face backend",
    "onnxruntime": "the other face backend's",
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


@pytest.mark.parametrize(
    ("imports", "unwanted"),
    [(BEFORE_THE_MODEL, NOT_BEFORE_THE_MODEL), (WITH_THE_MODEL, NOT_WITH_THE_MODEL)],
    ids=["before the model", "with the model"],
)
def test_nothing_heavy_is_imported_for_nothing(imports, unwanted, tmp_path):
    photo = tmp_path / "photo.png"
    Image.fromarray(data.astronaut()).save(photo)
    code = f"{imports}\nmagicedit.imaging.open_photo({str(photo)!r})\nimport sys\nprint(*sys.modules)"
    run = python("-c", code)
    assert run.returncode == 0, run.stderr
    modules = run.stdout.split()
    assert "magicedit.editor" in modules
    assert {name: why for name, why in unwanted.items() if name in modules} == {}


def test_called_by_a_program_it_leaves_that_program_alone(tmp_path, capsys):
    """No child process, and the garbage collector as it was: those are for a process of our own."""
    photo = tmp_path / "photo.png"
    Image.fromarray(data.astronaut()).save(photo)
    before = gc.isenabled(), gc.get_freeze_count()
    assert main(["measure", str(photo)]) == 0
    assert "AU12" in capsys.readouterr().out
    assert (gc.isenabled(), gc.get_freeze_count()) == before


def test_a_process_of_its_own_edits_to_the_same_byte(tmp_path, capsys):
    """With `mini`: through the child process and without it."""
    photo = tmp_path / "photo.png"
    Image.fromarray(data.astronaut()).save(photo)
    options = ["edit", str(photo), "--au", "AU12=-3", "--json", "-o"]
    started = python("-m", "magicedit.cli", *options, str(tmp_path / "a.png"))
    assert started.returncode == 0, started.stderr
    assert started.stderr == "loading mini\n"
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
    first, second = run.stderr.splitlines()
    assert first == f"loading {model}"
    assert second.startswith(f"magicedit: error: {message}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photo.png"]
