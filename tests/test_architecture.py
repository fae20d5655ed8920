"""Who may import whom: the table of rooms, held by reading every import in the source."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from magicedit.pipelines.pipeline_magicedit import self_contained
from magicedit.train.config import SHAPING

REPOSITORY = Path(__file__).resolve().parent.parent

# A room is a module or folder right under the package. `errors` is the bottom; the file that ships with
# the weights stands alone.
_GROUND = {"errors", "embedded", "files", "vocabulary", "action_units", "change"}
_BASE = _GROUND | {
    "arkit",
    "cluster",
    "imaging",
    "ledger",
    "provenance",
    "tables",
    "video_reading",
    "workers",
}
_GENERATION = {"models", "pipelines"}
_ROOMS_BELOW_EDITOR = _BASE | {"expression", "request", "faces", "warping"} | _GENERATION
_TRAINING = _ROOMS_BELOW_EDITOR | {"data", "baselines", "evaluation", "hub"}
_DOORS = {"app", "batch", "cli", "demo", "doctor"}  # what people open: they may import anything

MAY_IMPORT = {
    "errors": set(),
    "vocabulary": {"errors"},
    "action_units": {"errors", "vocabulary"},
    "files": {"errors"},
    "embedded": set(),  # names of models; imports no torch, since commands ask before they load anything
    "arkit": {"action_units"},
    "tables": {"arkit", "errors", "files", "vocabulary"},
    "workers": {"errors"},
    "cluster": {"errors", "workers"},
    "ledger": {"errors", "files"},
    "expression": {"arkit", "errors", "files", "vocabulary", "action_units", "tables"},
    "request": {"errors", "vocabulary", "action_units", "expression"},
    "signing": {"errors", "files"},
    "provenance": {"errors", "files", "signing"},
    "image_files": set(),
    "image_metadata": {"image_files", "provenance"},
    "imaging": {"errors", "files", "image_files", "image_metadata", "provenance"},
    "video_reading": {"errors", "files", "provenance"},
    "change": set(),
    "pipelines": set(),
    "models": _GROUND | {"request", "pipelines", "workers"},
    "faces": _BASE,
    "warping": _BASE | {"faces"},
    "data": _BASE | {"expression", "faces", "warping"},
    "editor": _ROOMS_BELOW_EDITOR,
    "video": _ROOMS_BELOW_EDITOR | {"editor"},
    "batch": _ROOMS_BELOW_EDITOR | {"editor"},
    "baselines": _BASE | {"faces", "warping", "pipelines"},
    "evaluation": _BASE | {"faces", "warping", "data"},
    "hub": {"errors", "embedded", "files", "vocabulary", "action_units"} | _GENERATION,
    "train": _TRAINING,
    "app": _TRAINING | {"editor", "video"} | _DOORS,
    "cli": _TRAINING | {"editor", "video", "train"} | _DOORS,
    "demo": _TRAINING | {"editor", "video"} | _DOORS,
    "doctor": _TRAINING | {"editor", "video"} | _DOORS,
    "__init__": {"editor", "expression"},  # on first use
    "__main__": {"cli"},
}
# `__version__` and the module itself, as `from magicedit import __version__`
_PACKAGE_ITSELF = {"__version__"}
_REEXPORTED = {
    "ExpressionEditor": "editor",
    "EditResult": "editor",
    "FaceEdit": "editor",
    "Expression": "expression",
}

# Libraries that stand behind one file, so that leaving one is the matter of that file.
ONLY_IN = {
    "ray": {"cluster.py"},
    "webdataset": {"data/streaming.py", "data/webdataset_shards.py"},
    "mediapipe": {"faces/backends/mediapipe.py"},
    "insightface": {"faces/backends/insightface.py"},
    "dlib": {"faces/backends/dlib.py"},
    "face_recognition_models": {"faces/backends/dlib.py"},
}


def _sources() -> dict[str, Path]:
    """Every source file by its path in the installed package, such as train/loop.py."""
    files = {}
    for top, prefix in (("magicedit", ""), ("pipelines", "pipelines/"), ("train", "train/")):
        root = REPOSITORY / top
        files |= {f"{prefix}{path.relative_to(root).as_posix()}": path for path in root.rglob("*.py")}
    return files


def _imports(source: str, place: str) -> Iterator[str]:
    """Dotted names that a file imports anywhere in it, `from a import b` as a.b, relative ones resolved."""
    parents = ["magicedit", *Path(place).parts[:-1]]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = parents[: len(parents) - node.level + 1] if node.level else []
            module = ".".join([*start, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            if node.args and isinstance(node.args[0], ast.Constant):
                yield str(node.args[0].value)


def _room(place: str) -> str:
    return Path(place).parts[0].removesuffix(".py")


def _violations(source: str, place: str) -> list[str]:
    """What a file at `place` imports although its room may not."""
    room, found = _room(place), []
    for name in _imports(source, place):
        first, *rest = name.split(".")
        if first in ("pipelines", "train"):
            found.append(f"{place} imports {name}: these folders are magicedit.{first}")
        if first != "magicedit" or not rest:
            continue
        target = _REEXPORTED.get(rest[0], rest[0])
        if target not in MAY_IMPORT[room] | {room} | _PACKAGE_ITSELF:
            found.append(f"{place} imports {name}: {room} may import {sorted(MAY_IMPORT[room])}")
    return found


def test_every_room_has_a_row():
    assert {_room(place) for place in _sources()} <= set(MAY_IMPORT)


def test_rooms_import_only_what_the_table_allows():
    found = [line for place, path in _sources().items() for line in _violations(path.read_text(), place)]
    assert found == []


@pytest.mark.parametrize(
    ("place", "source"),
    [
        ("faces/alignment.py", "from magicedit.warping import warp_photo"),
        ("faces/backends/dlib.py", "def late():\n    import magicedit.models.loading"),
        ("faces/backends/dlib.py", "from ...models import load_pipeline"),
        ("data/pairs.py", "from magicedit import models"),
        ("editor.py", "import importlib\nimportlib.import_module('magicedit.data')"),
        ("train/loop.py", "from magicedit import ExpressionEditor"),
        ("models/loading.py", "from magicedit import cli"),
        ("hub/push.py", "from magicedit.train.state import load"),
        ("pipelines/pipeline_magicedit.py", "from magicedit.errors import ModelError"),
        ("train/train.py", "from train.loop import run"),
        ("errors.py", "from .imaging import Photo"),
    ],
)
def test_the_reader_sees_what_is_forbidden(place, source):
    """The negative control: each of these lines would break the table."""
    assert len(_violations(source, place)) == 1


@pytest.mark.parametrize(
    ("place", "source"),
    [
        ("faces/alignment.py", "from .types import Face\nfrom magicedit.imaging import Photo"),
        ("cli.py", "from magicedit.train.train import main\nfrom magicedit import __version__"),
        ("warping/change.py", "from ..faces import align\nimport numpy, magicedit"),
    ],
)
def test_the_reader_lets_pass_what_is_allowed(place, source):
    assert _violations(source, place) == []


def test_the_training_loop_does_not_know_what_it_trains():
    """It imports no method but by the registry, and reads no setting that shapes a model."""
    source = (REPOSITORY / "train" / "loop.py").read_text()
    ours = {name.rpartition(".")[0] for name in _imports(source, "train/loop.py") if "magicedit" in name}
    names = ("compiled", "config", "finished", "methods", "publish", "samples", "signals", "state")
    names += ("engines", "throughput", "validation")
    known = {f"magicedit.train.{name}" for name in names}
    ground = {f"magicedit.{name}" for name in ("errors", "files", "imaging", "provenance")}
    assert ours == known | ground
    assert set(re.findall(r"config\.(\w+)", source)) & set(SHAPING) == {"objective", "use_ema"}


def test_what_ships_with_the_weights_needs_no_other_package():
    """Loading from a hub id downloads one file of a family, into which those that it imports are written."""
    pipelines = REPOSITORY / "pipelines"
    shipped = [self_contained(path) for path in sorted(pipelines.glob("pipeline_*.py"))]
    for code in shipped:
        check_stands_alone(code)
    for path in pipelines.glob("[!_]*.py"):
        first = path.read_text().splitlines()[0]
        assert any(first in code for code in shipped), path  # each of them is written into one of these


def check_stands_alone(shipped: str) -> None:
    allowed = {"torch", "numpy", "PIL", "diffusers", "transformers", *sys.stdlib_module_names}
    allowed |= {"huggingface_hub"}  # diffusers itself cannot be imported without it
    assert {name.split(".")[0] for name in _imports(shipped, "pipelines/pipeline.py")} - allowed == set()
    defined = [
        name
        for node in ast.parse(shipped).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Assign)
        for name in ([target.id for target in node.targets] if isinstance(node, ast.Assign) else [node.name])
    ]
    assert len(set(defined)) == len(defined)  # a later one would silently replace an earlier one


def test_third_party_face_libraries_stand_behind_one_file_each():
    strays = []
    for place, path in _sources().items():
        for name in _imports(path.read_text(), place):
            library = name.split(".")[0]
            if place not in ONLY_IN.get(library, {place}):
                strays.append(f"{place} imports {name}")
    assert strays == []


def test_nothing_needs_torchvision():
    """It does not import beside the CPU build of the torch that is tested."""
    users = [
        place
        for place, path in _sources().items()
        if any(name.split(".")[0] == "torchvision" for name in _imports(path.read_text(), place))
    ]
    assert users == []


POSIX_MODULES = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "termios", "tty"}
# Attributes that the module lacks on Windows, of those that code like ours might use
POSIX_ONLY = {
    "os": {
        *("chown", "fchmod", "fork", "getgid", "getloadavg", "getpgid", "getuid", "killpg", "mkfifo", "nice"),
        *("O_CLOEXEC", "O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK", "pread", "pwrite", "sched_getaffinity"),
        *("sendfile", "setsid", "statvfs", "sync", "sysconf", "uname"),
    },
    "signal": {
        *("alarm", "pthread_sigmask", "setitimer", "SIGALRM", "SIGCHLD", "SIGHUP", "SIGKILL", "SIGPIPE"),
        *("SIGQUIT", "SIGSTOP", "SIGUSR1", "SIGUSR2"),
    },
}


def test_what_only_posix_has_is_never_needed():
    """Its modules are imported where a missing one is answered for, its functions are asked for first, and
    text does not have the encoding of the system."""
    strays = []
    nodes_of_comfyui = {f"comfyui/{path.name}": path for path in (REPOSITORY / "comfyui").glob("*.py")}
    for place, path in (_sources() | nodes_of_comfyui).items():
        source = path.read_text(encoding="utf-8")
        nodes = [*ast.walk(ast.parse(source))]
        guarded = {
            inner
            for node in nodes
            if isinstance(node, ast.Try)
            and any(getattr(handler.type, "id", "") == "ImportError" for handler in node.handlers)
            for statement in node.body
            for inner in ast.walk(statement)
        }
        for node in nodes:
            match node:
                case ast.Import(names=names) if node not in guarded:
                    strays += [f"{place}: {name.name}" for name in names if name.name in POSIX_MODULES]
                case ast.Attribute(value=ast.Name(id="os" | "signal" as module), attr=attribute):
                    asked = f'hasattr({module}, "{attribute}")' in source
                    if attribute in POSIX_ONLY[module] and not asked:
                        strays.append(f"{place}: {module}.{attribute}")
                case ast.Call(func=ast.Attribute(value=value, attr="read_text" | "write_text")):
                    if "utf-8" not in ast.unparse(node) and ast.unparse(value) != "files":
                        strays.append(f"{place}:{node.lineno} names no encoding")
    assert strays == []


# Refuses modules to ours alone: Python's own and the libraries' belong to the system that they are on
REFUSING = """
import builtins, importlib, json, sys

refused, ours = (json.loads(text) for text in sys.argv[1:])
real = builtins.__import__


def refusing(name, globals=None, *others, **named):
    place = (globals or {}).get("__name__", "")
    if name in refused and place.partition(".")[0] == "magicedit":
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    return real(name, globals, *others, **named)


builtins.__import__ = refusing
for module in ours:
    importlib.import_module(module)
"""


def test_every_module_imports_where_posix_has_nothing():
    ours = []
    for place in _sources():
        module = ".".join(["magicedit", *Path(place).with_suffix("").parts]).removesuffix(".__init__")
        if not module.endswith("__main__"):  # which would run
            ours.append(module)
    command = [sys.executable, "-c", REFUSING, json.dumps(sorted(POSIX_MODULES)), json.dumps(ours)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_importing_the_package_is_cheap():
    """The command line answers --help and bad arguments without waiting for torch."""
    heavy = "torch, diffusers, transformers, mediapipe, cv2, datasets"
    script = f"""
import sys
import magicedit, magicedit.action_units, magicedit.imaging
print([name for name in "{heavy}".split(", ") if name in sys.modules])
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
