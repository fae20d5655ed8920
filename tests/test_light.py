"""Embedded models need nothing of what `magicedit-light` leaves out: here it cannot be imported."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from films import write_video
from PIL import Image
from safetensors.torch import load_file, save_file

from magicedit.embedded import embedded_folder
from magicedit.errors import LEFT_OUT

REPOSITORY = Path(__file__).resolve().parent.parent

# A process that refuses some packages, and tells which of them were asked for
REFUSING = """
import contextlib, json, sys
from importlib.abc import MetaPathFinder

refused, lines = json.loads(sys.argv[1])
asked, codes = [], []

class Refusing(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in refused:
            asked.append(name)
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refusing())
with contextlib.redirect_stdout(sys.stderr):
    {what}
print(json.dumps([codes, asked, [*sys.modules]]))
"""
COMMANDS = """
    from magicedit.cli import main

    codes = [main(line.split()) for line in lines]
"""
PAGE = """
    import threading
    from magicedit.app import serve
    from magicedit.editor import ExpressionEditor

    until = threading.Event()

    def say(line):
        print(line)
        if "the page is at" in line:
            until.set()

    serve(lambda: ExpressionEditor.from_pretrained("mini"), port=0, say=say, until=until)
"""
PYTHON = """
    from magicedit.editor import ExpressionEditor
    from magicedit.errors import MagicEditError

    editor = ExpressionEditor.from_pretrained("mini")
    for use in (
        lambda: editor.pipeline,
        lambda: editor.attention_maps("photo.png", {"AU12": 1}),
        lambda: ExpressionEditor.from_pretrained("owner/name"),
        lambda: ExpressionEditor.from_pretrained("mini", device="cuda"),
        lambda: ExpressionEditor.from_pretrained("half"),
    ):
        try:
            use()
        except MagicEditError as error:
            print(error)
"""
SLOW_AND_UNUSED = {"matplotlib", "sounddevice", "pandas", "gradio", "torchvision", "sklearn", "onnx"}

EDITS = """
edit photo.png -o smile.png --au AU12=-3,AU16=1,gaze_yaw=5
edit photo.png -o closed.png --set AU25=0.5 --target-tolerance 0.3 --model mini-live
edit photos -o edited --neutral
measure photo.png --save smile.yaml
edit photo.png -o copy.png --expression smile.yaml --strength 0.5 --device cpu --dtype float32 --fast
sweep photo.png --au AU12 --pictures 2 -o strip.png
transfer --from photo.png --to photos/other.png -o again.png
interpolate photo.png photos/other.png --pictures 3 -o between.png
video film.mp4 -o out.mp4 --au AU12=-2 --quality live
verify smile.png
stimuli design.yaml -o stimuli
"""
NEEDS_THE_WHOLE = """
train --train_data_dir nowhere --output_dir run
prepare photos -o dataset
convert nowhere --base nowhere -o model
push nowhere --repo owner/name
evaluate --protocol table1 --editor mini --data photos -o report
edit photo.png -o out.png --au AU12=1 --dtype bfloat16
edit photo.png -o out.png --au AU12=1 --model owner/name
"""


@pytest.fixture
def folder(tmp_path, astronaut):
    Image.fromarray(astronaut).save(tmp_path / "photo.png")
    (tmp_path / "photos").mkdir()
    Image.fromarray(np.ascontiguousarray(astronaut[:, ::-1])).save(tmp_path / "photos" / "other.png")
    write_video(tmp_path / "film.mp4", [astronaut] * 3)
    (tmp_path / "design.yaml").write_text("people: photos\ncontrols:\n  AU12: [0, -2]\n")
    return tmp_path


def refusing(what, cwd, refused, lines=""):
    """(exit codes, refused packages that were asked for, imported packages, output) of a program."""
    words = json.dumps([sorted(refused), lines.strip().splitlines()])
    code = REFUSING.replace("{what}", what.strip())
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    run = subprocess.run(
        [sys.executable, "-c", code, words], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    codes, asked, imported = json.loads(run.stdout.splitlines()[-1])
    return codes, asked, {name.partition(".")[0] for name in imported}, run.stderr


def test_edits_with_embedded_models_ask_for_none_of_it(folder):
    codes, asked, imported, errors = refusing(COMMANDS, folder, LEFT_OUT, EDITS)
    assert codes == [0] * len(codes), errors
    assert asked == []
    assert {"onnxruntime", "mediapipe"} <= imported
    assert imported & SLOW_AND_UNUSED == set()
    for name in ("smile.png", "closed.png", "edited/other.png", "copy.png", "strip.png", "out.mp4"):
        assert (folder / name).stat().st_size > 1000


def test_what_needs_the_whole_package_says_so_in_one_line(folder):
    codes, _, _, errors = refusing(COMMANDS, folder, LEFT_OUT, NEEDS_THE_WHOLE)
    lines = [line for line in errors.splitlines() if not line.startswith(("loading ", "looking "))]
    assert codes == [2] * len(lines), errors
    for line in lines:
        assert line.startswith("magicedit: error: ")
        assert line.endswith("; pip install magicedit")


def test_the_editor_names_what_needs_the_whole_package(folder):
    half = shutil.copytree(embedded_folder("mini"), folder / "half")
    for file in half.glob("*/*.safetensors"):
        tensors = {name: tensor.bfloat16() for name, tensor in load_file(file).items()}
        save_file(tensors, file, metadata={"format": "pt"})
    *_, errors = refusing(PYTHON, folder, LEFT_OUT)
    lines = errors.splitlines()
    assert len(lines) == 5, errors
    assert all("needs the whole package" in line for line in lines[:4])
    assert lines[2].startswith("there is no folder owner/name; fetching it from a hub needs")
    assert "save it in float32" in lines[4]  # NumPy has no bfloat16


def test_the_page_asks_for_none_of_it(tmp_path):
    """Its first edit tells how fast this machine is. Gradio itself needs the hub's library."""
    pytest.importorskip("gradio", reason="the page needs the extra `app`")
    _, asked, imported, output = refusing(PAGE, tmp_path, LEFT_OUT - {"huggingface_hub", "pyarrow"})
    assert "the page is at" in output
    assert asked == []
    assert {"onnxruntime", "mediapipe", "gradio"} <= imported


def test_onnx_runtime_sends_nothing_about_its_use(tmp_path):
    """It would make an identifier of the machine and a queue of events in the home."""
    script = "from magicedit.models.face_model import load_face_model\nload_face_model('mini')"
    # without what says that this is a test: there it sends nothing anyway
    environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY)}
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, check=True)
    assert [*tmp_path.rglob("*")] == []
