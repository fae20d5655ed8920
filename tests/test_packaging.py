"""What is installed: the wheel holds everything, and works where the checkout is not."""

import configparser
import json
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

REPOSITORY = Path(__file__).resolve().parent.parent


def _run(*command: str | Path, cwd: Path) -> str:
    """Runs a command as a user elsewhere would, without our paths, and returns what it printed."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, f"{command} exited with {run.returncode}:\n{run.stdout}\n{run.stderr}"
    return run.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this tree, built from a copy: setuptools leaves its build folder beside the source."""
    source = tmp_path_factory.mktemp("source")
    for name in ("magicedit", "pipelines", "train"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    # the build tools of this environment, so that nothing is downloaded
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", source / "dist")
    _run(sys.executable, "-m", "pip", "wheel", "--quiet", *options, source, cwd=source)
    (built,) = (source / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new virtual environment with our wheel; other packages are seen in the one the tests run in.

    The `.pth` line adds that folder without reading its own `.pth` files, so that an editable install of
    the checkout stays out of sight.
    """
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    options = ("--no-deps", "--no-index", "--quiet")
    _run(sys.executable, "-m", "pip", "--python", python, "install", *options, wheel, cwd=folder)
    (packages,) = folder.glob("lib/python*/site-packages")
    others = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (packages / "third_party.pth").write_text("\n".join(others) + "\n")
    return folder


def test_the_list_of_packages_is_complete():
    """setup.cfg lists packages by hand; a forgotten one would be missing from the wheel only."""
    setup = configparser.ConfigParser()
    setup.read(REPOSITORY / "setup.cfg")
    listed = set(setup["options"]["packages"].split())
    folders = set()
    for top, name in (
        ("magicedit", "magicedit"),
        ("pipelines", "magicedit.pipelines"),
        ("train", "magicedit.train"),
    ):
        for file in (REPOSITORY / top).rglob("*.py"):
            folders.add(".".join([name, *file.parent.relative_to(REPOSITORY / top).parts]))
    assert listed == folders


def _required() -> set[str]:
    """Normalised names of the requirements of the package and all its extras."""
    setup = configparser.ConfigParser()
    setup.read(REPOSITORY / "setup.cfg")
    lists = [setup["options"]["install_requires"], *setup["options.extras_require"].values()]
    return {_normalised(name) for text in lists for name in re.findall(r"^[\w.-]+", text, re.MULTILINE)}


def _tested() -> dict[str, str]:
    """Versions of constraints.txt by normalised name."""
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    versions = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    return {_normalised(name): version for name, version in versions.items()}


def test_every_requirement_is_constrained():
    """So that set-up gives the tested versions, and one version of OpenCV whoever asks for it."""
    versions = _tested()
    assert _required() - set(versions) == set()
    opencv = {name: version for name, version in versions.items() if name.startswith("opencv")}
    assert len(opencv) == 4
    assert len(set(opencv.values())) == 1


def test_the_lock_holds_the_tested_versions_by_their_digests():
    """All but torch, whose builds differ by machine, and DeepSpeed, which is built against it."""
    text = (REPOSITORY / "constraints.lock").read_text()
    entries = re.findall(r"^(\S+)==(\S+)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)$", text, re.MULTILINE)
    assert text.count("==") == len(entries)  # each has digests
    locked = {name: version for name, version, _ in entries}
    assert _required() - set(locked) == {"torch", "deepspeed"}
    tested = _tested()
    different = {name: version for name, version in locked.items() if tested[name] != version}
    assert different == {"pillow": "13.0.0"}  # known faults in the version that gradio still asks for


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_wheel_holds_code_weights_and_licence(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"magicedit"}
    assert {
        "magicedit/py.typed",
        "magicedit/pipelines/pipeline_magicedit.py",
        "magicedit/train/train.py",
        "magicedit/faces/backends/mediapipe.py",
        "magicedit/pretrained/mini/model_index.json",
    } <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)

    pretrained = (REPOSITORY / "magicedit" / "pretrained").rglob("*")
    assert {path.relative_to(REPOSITORY).as_posix() for path in pretrained if path.is_file()} <= names
    assert any(re.fullmatch(r"magicedit/pretrained/mini/.*\.safetensors", name) for name in names)
    configs = {
        f"magicedit/{path.relative_to(REPOSITORY)}" for path in (REPOSITORY / "train/configs").rglob("*.yaml")
    }
    assert configs <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".ckpt", ".pkl", ".pyc"))]


def test_the_installed_package_edits_a_photograph_outside_the_checkout(environment, tmp_path, astronaut):
    imported = _run(
        environment / "bin" / "python",
        "-c",
        "import magicedit, magicedit.pipelines, magicedit.train\n"
        "print(magicedit.__file__, magicedit.pipelines.__file__, magicedit.train.__file__, sep='\\n')",
        cwd=tmp_path,
    )
    for file in imported.splitlines():
        assert Path(file).is_relative_to(environment)

    Image.fromarray(astronaut).save(tmp_path / "photo.png")
    command = (
        environment / "bin" / "magicedit",
        "edit",
        "photo.png",
        "-o",
        "smile.png",
        "--au",
        "AU12=-3",
        "--json",
    )
    report = json.loads(_run(*command, cwd=tmp_path))
    assert Path(report["output"]).name == "smile.png"
    (face,) = report["faces"]
    assert face["requested"] == {"AU12": -3.0}
    edited = np.asarray(Image.open(tmp_path / "smile.png"))
    assert edited.shape == astronaut.shape
    changed = (edited != astronaut).any(axis=2)
    assert changed.any()
    # the face of the photograph lies within these columns and rows; all else is as it was
    assert not changed[:, :100].any()
    assert not changed[300:].any()


def test_the_command_line_is_installed(environment, tmp_path):
    listed = _run(environment / "bin" / "magicedit", "--help", cwd=tmp_path)
    for command in ("edit", "measure", "sweep", "prepare", "train", "convert", "doctor"):
        assert re.search(rf"\b{command}\b", listed)
