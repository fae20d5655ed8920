"""Builds `magicedit`; with MAGICEDIT_LIGHT=1 in the environment `magicedit-light`, for people who only edit.

Both are the same code, as setup.cfg lists it. The light one has fewer requirements. It is published as a
wheel alone: a source distribution would build whichever of the two the variable says.

MAGICEDIT_URL, the address of the repository at its host, with MAGICEDIT_REVISION, a tag or branch ("main"),
gives the package its project links, and makes the README's links and pictures absolute, as package indexes
need them.
"""

import os
import re
import runpy
import shutil
from configparser import ConfigParser
from pathlib import Path

from setuptools import setup

NAMES = runpy.run_path("magicedit/errors.py")  # which needs no package, and tells users of what is left out
ARM = "platform_machine in 'aarch64 ARM64'"  # on Linux and Windows; a Mac says "arm64"
INSTEAD = {
    # From 0.10.32 on it requires matplotlib and opencv-contrib-python, 300 MB; before 1.0 it has no wheels
    # for ARM on Linux and Windows.
    "mediapipe": [
        f"mediapipe>=0.10.30,<0.10.32; {ARM.replace(' in ', ' not in ')}",
        f"mediapipe>=1.0; {ARM}",
    ],
    "onnxruntime": ["onnxruntime>=1.24,<1.32"],  # 1.32 is larger by 11 MB: it holds its library twice
    "opencv-contrib-python": [
        f"opencv-python-headless>=4.10; {ARM.replace(' in ', ' not in ')}",
        f"opencv-contrib-python>=4.10; {ARM}",
    ],
}
# Of its own: else its wheel would hold modules of other builds, and `python -m magicedit` in the checkout
# would take magicedit-light for installed
BUILD = "build/light"
EXTRAS = sorted(NAMES["LIGHT_EXTRAS"])


def light() -> dict:
    """Returns the arguments of `setup` that replace those of setup.cfg."""
    shutil.rmtree(BUILD, ignore_errors=True)  # it may hold modules that are gone
    Path(BUILD).mkdir(parents=True)
    configuration = ConfigParser()
    configuration.read("setup.cfg", encoding="utf-8")
    required = []
    for requirement in configuration["options"]["install_requires"].split():
        name = re.match(r"[\w-]+", requirement)[0]
        if name not in NAMES["LEFT_OUT"]:
            required += INSTEAD.get(name, [requirement])
    extras = configuration["options.extras_require"]
    return {
        "name": "magicedit-light",
        "install_requires": required,
        "extras_require": {extra: extras[extra].split() for extra in EXTRAS},
        "options": {"build": {"build_base": BUILD}, "egg_info": {"egg_base": BUILD}},
    }


def at_home(url: str, revision: str) -> dict:
    """Returns the arguments of `setup` that need the repository's address."""

    def absolute(link: re.Match) -> str:
        kind = "raw" if link[1] else "blob"  # of a picture, or of a file to read
        return f"{link[1]}[{link[2]}]({url}/{kind}/{revision}/{link[3]})"

    # not addresses, and not anchors of the page itself
    relative = re.compile(r"(!?)\[([^\]]*)\]\((?!\w+:|#)([^)\s]+)\)")
    return {
        "url": url,
        "project_urls": {
            "Changelog": f"{url}/blob/{revision}/CHANGELOG.md",
            "Documentation": f"{url}/blob/{revision}/docs/index.md",
            "Issues": f"{url}/issues",
            "Source": url,
        },
        "long_description": relative.sub(absolute, README),
    }


README = Path("README.md").read_text(encoding="utf-8")
arguments = {"long_description": README}
if os.environ.get("MAGICEDIT_LIGHT") == "1":
    arguments |= light()
if url := os.environ.get("MAGICEDIT_URL", "").rstrip("/"):
    arguments |= at_home(url, os.environ.get("MAGICEDIT_REVISION", "main"))
setup(**arguments)
