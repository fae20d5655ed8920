"""The Dockerfile and the workflow name only what exists; neither can run here."""

import json
import re
from configparser import ConfigParser
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml

from magicedit.cli import build_parser
from magicedit.errors import LIGHT_EXTRAS

REPOSITORY = Path(__file__).resolve().parents[1]
WORKFLOW = yaml.safe_load((REPOSITORY / ".github/workflows/tests.yml").read_text(encoding="utf-8"))
STEPS = [(name, step) for name, job in WORKFLOW["jobs"].items() for step in job["steps"]]
CONFIGURATION = ConfigParser()
CONFIGURATION.read(REPOSITORY / "setup.cfg", encoding="utf-8")


def instructions() -> list[tuple[str, str]]:
    """Instructions of the Dockerfile with their arguments, in order."""
    lines = (REPOSITORY / "Dockerfile").read_text(encoding="utf-8").splitlines()
    text = "\n".join(line for line in lines if not line.startswith("#"))
    return re.findall(r"^([A-Z]+) (.+)$", re.sub(r"\\\n\s*", "", text), re.MULTILINE)


def extras_of(command: str) -> set[str]:
    return {extra for extras in re.findall(r"\[([a-z,0-9]+)\]", command) for extra in extras.split(",")}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_each_image_has_its_stages_and_installs_extras_that_exist(device):
    stages: dict[str, list[tuple[str, str]]] = {}
    for kind, arguments in instructions():
        if kind == "FROM":
            base, _, name = arguments.replace("${DEVICE}", device).partition(" AS ")
            assert base in stages or base.startswith("python:${PYTHON}")
            stages[name] = [*stages.get(base, [])]
        elif stages:  # an ARG before them is of none
            stages[name].append((kind, arguments))
    (installed,) = (arguments for kind, arguments in stages["built"] if "pip install" in arguments)
    extras = extras_of(installed)
    assert extras <= set(CONFIGURATION["options.extras_require"])
    assert ("MAGICEDIT_LIGHT=1" in installed) == (device == "cpu")
    assert device == "cuda" or extras <= LIGHT_EXTRAS
    copied = [arguments.split() for kind, arguments in stages[""] if kind == "COPY"]
    assert copied == [["--from=built", "/opt/magicedit", "/opt/magicedit"]]


def test_the_image_runs_the_page_as_a_user_without_rights():
    last = dict(instructions())
    assert json.loads(last["ENTRYPOINT"]) == ["magicedit"]
    page = build_parser().parse_args(json.loads(last["CMD"]))
    assert (page.command, page.host, page.password) == ("app", "0.0.0.0", None)  # so that it asks for one
    assert str(page.port) == last["EXPOSE"]
    assert f"'127.0.0.1', {page.port}" in last["HEALTHCHECK"]
    compile(json.loads(last["HEALTHCHECK"].partition("CMD ")[2])[2], "HEALTHCHECK", "exec")
    assert int(last["USER"]) > 0


def test_the_image_copies_files_that_exist_and_are_not_ignored():
    ignored = (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").split()
    copied = {
        name
        for kind, arguments in instructions()
        if kind == "COPY" and not arguments.startswith("--from")
        for name in arguments.split()[:-1]
    }
    assert {line.removeprefix("!") for line in ignored if line.startswith("!")} == copied
    assert all((REPOSITORY / name).exists() for name in copied)
    packages = {"magicedit", *CONFIGURATION["options"]["package_dir"].split()[2::3]}
    assert packages <= copied  # what setup.cfg builds
    assert {"setup.cfg", "setup.py", "pyproject.toml", "README.md", "LICENSE"} <= copied


def test_the_workflow_pins_actions_and_may_only_read():
    assert WORKFLOW["permissions"] == {"contents": "read"}
    assert not any("permissions" in job for job in WORKFLOW["jobs"].values())
    used = [step["uses"] for _, step in STEPS if "uses" in step]
    assert all(re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", action) for action in used)
    for _, step in STEPS:
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"] == {"persist-credentials": False}


def test_the_workflow_runs_targets_extras_and_tests_that_exist():
    commands = [(name, step["run"]) for name, step in STEPS if "run" in step]
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), re.M))
    made = {target for _, command in commands for target in re.findall(r"^make (\S+)", command, re.M)}
    assert {"test", "docs"} <= made <= targets
    for name, command in commands:
        assert extras_of(command) <= (LIGHT_EXTRAS if name == "light" else set())
    (tests,) = (command for name, command in commands if "pytest" in command and "pip" not in command)
    files = re.findall(r"tests/\S+", tests)
    assert len(files) > 5
    assert all((REPOSITORY / file).exists() for file in files)


def test_the_workflow_tries_each_python_that_the_package_names():
    named = re.findall(r"Python :: (3\.\d+)$", CONFIGURATION["metadata"]["classifiers"], re.MULTILINE)
    assert WORKFLOW["jobs"]["whole"]["strategy"]["matrix"]["python"] == named
    assert CONFIGURATION["options"]["python_requires"] == f">={named[0]}"
    light = WORKFLOW["jobs"]["light"]["strategy"]["matrix"]
    assert light["python"] == [named[0], named[-1]]
    for system in ("ubuntu", "macos", "windows"):
        assert any(fnmatch(image, f"{system}-*") for image in light["system"])
