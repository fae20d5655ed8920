"""What is installed: the wheel holds everything, and works where the checkout is not."""

import configparser
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import urllib.request
import venv
import zipfile
from email import message_from_string
from email.message import Message
from pathlib import Path

import numpy as np
import pytest
from films import write_video
from packaging.requirements import Requirement
from PIL import Image

from magicedit import __version__
from magicedit.errors import LEFT_OUT

REPOSITORY = Path(__file__).resolve().parent.parent


def _run(*command: str | Path, cwd: Path, **variables: str) -> str:
    """Runs a command as a user elsewhere would, without our paths, and returns what it printed."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | variables
    run = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, f"{command} exited with {run.returncode}:\n{run.stdout}\n{run.stderr}"
    return run.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this tree, since setuptools leaves its build folder beside the source."""
    source = tmp_path_factory.mktemp("source")
    for name in ("magicedit", "pipelines", "train"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    return source


def _wheel(source: Path, light: str) -> Path:
    """The wheel of a tree; light: "1" for magicedit-light, else "0"."""
    # the build tools of this environment, so that nothing is downloaded
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", source / f"dist{light}")
    command = (sys.executable, "-m", "pip", "wheel", "--quiet", *options, source)
    _run(*command, cwd=source, MAGICEDIT_LIGHT=light)
    (built,) = (source / f"dist{light}").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built of the source distribution, as `python -m build` does."""
    folder = tmp_path_factory.mktemp("sdist")
    options = ("--formats", "tar", "--dist-dir", folder)  # not compressed, which takes seconds
    _run(sys.executable, "setup.py", "--quiet", "sdist", *options, cwd=source)
    (packed,) = folder.iterdir()
    with tarfile.open(packed) as archive:
        archive.extractall(folder, filter="data")
    return _wheel(packed.with_suffix(""), "0")


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
        "magicedit/faces/face_landmarker.task",
        "magicedit/pretrained/mini/model_index.json",
    } <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)

    data = {path for path in (REPOSITORY / "magicedit").rglob("*") if path.is_file()}
    data = {path.relative_to(REPOSITORY).as_posix() for path in data if "__pycache__" not in path.parts}
    assert data <= names
    assert any(re.fullmatch(r"magicedit/pretrained/mini/.*\.safetensors", name) for name in names)
    configs = {
        f"magicedit/{path.relative_to(REPOSITORY)}" for path in (REPOSITORY / "train/configs").rglob("*.yaml")
    }
    assert configs <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".ckpt", ".pkl", ".pyc"))]


def test_magicedit_light_requires_less(source, tmp_path):
    """All that magicedit requires, but what edits with embedded models do without."""
    metadata, whole = (_metadata(source, tmp_path / light, light) for light in ("1", "0"))
    assert metadata["Name"] == "magicedit-light"
    assert not (source / "magicedit_light.egg-info").exists()  # which would count as installed there
    assert metadata["Version"] == whole["Version"] == __version__
    both = [{_normalised(re.match(r"[\w.-]+", line)[0]) for line in _core(m)} for m in (metadata, whole)]
    assert both[1] - both[0] == {_normalised(name) for name in LEFT_OUT}
    assert both[0] - both[1] == {"opencv-python-headless"}
    assert metadata.get_all("Provides-Extra") == ["app", "c2pa", "exr", "heic", "video"]


@pytest.mark.parametrize("machine", ["x86_64", "aarch64", "arm64"])
def test_one_opencv_is_required_and_the_same_by_mediapipe(source, tmp_path, machine):
    """MediaPipe requires none up to 0.10.31, and opencv-contrib-python from there on."""
    for light in ("1", "0"):
        requirements = [
            requirement
            for requirement in map(Requirement, _core(_metadata(source, tmp_path / light, light)))
            if requirement.marker is None or requirement.marker.evaluate({"platform_machine": machine})
        ]
        (opencv,) = (r.name for r in requirements if r.name.startswith("opencv"))
        (mediapipe,) = (r.specifier for r in requirements if r.name == "mediapipe")
        assert mediapipe.contains("0.10.31") == (opencv == "opencv-python-headless")
        assert mediapipe.contains("1.2.2") == (opencv == "opencv-contrib-python")


def test_links_of_the_readme_are_absolute_where_the_address_is_known(source, tmp_path):
    """As package indexes need them; each is of a file that exists."""
    home = "https://example.org/someone/magicedit"
    metadata = _metadata(source, tmp_path / "a", "0", MAGICEDIT_URL=f"{home}/", MAGICEDIT_REVISION="v1.2")
    readme = metadata.get_payload()
    links = [*re.findall(r"\]\(([^)\s]+)\)", readme), *re.findall(r"(?:href|src)=\"([^\"]+)", readme)]
    ours = [link.removeprefix(home) for link in links if link.startswith(home)]
    assert len(ours) > 30
    assert all(re.match(r"https://|#", link) for link in links)
    for link in ours:
        kind, path = re.fullmatch(r"/(raw|blob)/v1\.2/([^#]+)(?:#.*)?", link).groups()
        assert (REPOSITORY / path).exists()
        assert (kind == "raw") == path.endswith((".jpg", ".png"))
    projects = dict(line.split(", ") for line in metadata.get_all("Project-URL"))
    assert projects["Source"] == home
    plain = _metadata(source, tmp_path / "b", "0")
    assert plain.get_payload() == (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert plain.get_all("Project-URL") is None


def _core(metadata: Message) -> list[str]:
    """Its requirements, but those of extras."""
    return [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]


def _metadata(source: Path, folder: Path, light: str, **variables: str) -> Message:
    folder.mkdir()
    code = "import sys\nfrom setuptools.build_meta import prepare_metadata_for_build_wheel as prepare\n"
    run = (sys.executable, "-c", f"{code}prepare(sys.argv[1])", folder)
    _run(*run, cwd=source, MAGICEDIT_LIGHT=light, **variables)
    (file,) = folder.glob("*.dist-info/METADATA")
    return message_from_string(file.read_text(encoding="utf-8"))


LIGHT_COMMANDS = """
edit photo.png -o smile.png --au AU12=-3
edit photo.png -o closed.png --set AU25=0.5 --target-tolerance 0.3
measure photo.png --save smile.yaml
edit photo.png -o copy.png --expression smile.yaml --strength 0.5
sweep photo.png --au AU12 --pictures 2 -o strip.png
transfer --from photo.png --to photo.png -o again.png
doctor
"""


@pytest.mark.slow
def test_magicedit_light_edits_where_torch_is_not(source, tmp_path, astronaut):
    """Installed from the index into a fresh environment, 450 MB at most."""
    try:
        urllib.request.urlopen("https://pypi.org/simple/absl-py/", timeout=20).close()
    except OSError as error:
        pytest.skip(f"no package index: {error}")
    built = _wheel(source, "1")
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=True, symlinks=True)
    python = environment / "bin" / "python"
    _run(python, "-m", "pip", "install", "--quiet", "--no-cache-dir", built, cwd=tmp_path)
    size = sum(path.lstat().st_blocks * 512 for path in environment.rglob("*"))  # as du has it
    assert size < 450 * 2**20
    listed = _run(python, "-m", "pip", "list", "--format", "json", cwd=tmp_path)
    installed = {_normalised(package["name"]) for package in json.loads(listed)}
    assert installed & {_normalised(name) for name in LEFT_OUT} == set()

    Image.fromarray(astronaut).save(tmp_path / "photo.png")
    for line in LIGHT_COMMANDS.strip().splitlines():
        printed = _run(environment / "bin" / "magicedit", *line.split(), cwd=tmp_path)
    assert "pip install magicedit" in printed  # what the doctor says of other models
    _run(python, "-m", "pip", "install", "--quiet", f"{built}[video]", cwd=tmp_path)
    write_video(tmp_path / "film.mp4", [astronaut] * 3)
    command = (environment / "bin" / "magicedit", "video", "film.mp4", "-o", "out.mp4", "--au", "AU12=-2")
    _run(*command, cwd=tmp_path)
    assert (tmp_path / "out.mp4").stat().st_size > 1000


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
