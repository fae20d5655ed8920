"""Writes constraints.lock: the tested versions of constraints.txt with the SHA-256 of each of their files.

    python dev/lock.py      # after a change of constraints.txt, and `make setup` with the new versions

`make` installs by it, so that pip refuses a file that is not of the tested release. It has the packages that
are installed where this runs, but those of UNLOCKED. The digests come from PyPI's index (PEP 691).
"""

import importlib.metadata
import json
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from packaging.utils import canonicalize_name, parse_sdist_filename, parse_wheel_filename
from packaging.version import Version

REPOSITORY = Path(__file__).resolve().parent.parent
INDEX = "https://pypi.org/simple/{}/"
# gradio admits Pillow below 13, which has CVE-2026-112403 (reading JPEG), -112395 and -112393 (TIFF) and
# -96778 (writing JPEG); our tests and the page's pass with 13. Drop this when gradio admits it.
OVERRIDES = {"pillow": "13.0.0"}
# Which build of torch is right depends on the machine; DeepSpeed, and what only it needs, is built after it
UNLOCKED = {"torch", "deepspeed", "einops", "hjson", "ninja", "py-cpuinfo"}
HEADER = "# Written by dev/lock.py; for `pip install --no-deps --require-hashes -r constraints.lock`"


def main() -> None:
    tested = tested_versions((REPOSITORY / "constraints.txt").read_text())
    installed = {canonicalize_name(package.name) for package in importlib.metadata.distributions()}
    if unknown := installed - tested.keys() - {"magicedit", "pip"}:
        sys.exit(f"installed, but not in constraints.txt: {', '.join(sorted(unknown))}")
    names = sorted(installed & tested.keys() - UNLOCKED)
    pinned = {name: OVERRIDES.get(name, tested[name]) for name in names}
    with ThreadPoolExecutor(8) as pool:
        released = pool.map(_digests, pinned, pinned.values())
    entries = [
        " \\\n    ".join([f"{name}=={version}", *(f"--hash=sha256:{digest}" for digest in sorted(digests))])
        for (name, version), digests in zip(pinned.items(), released, strict=True)
    ]
    (REPOSITORY / "constraints.lock").write_text("\n".join([HEADER, *entries, ""]))
    print(f"constraints.lock: {len(pinned)} packages")


def tested_versions(text: str) -> dict[str, str]:
    """Returns the versions of a constraints file by normalised name."""
    lines = [line.strip() for line in text.splitlines()]
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


def _release(file: str) -> tuple[str, Version]:
    parse = parse_wheel_filename if file.endswith(".whl") else parse_sdist_filename
    return parse(file)[:2]


def _digests(name: str, version: str) -> set[str]:
    """Returns the SHA-256 of all files of a release on PyPI."""
    accept = {"Accept": "application/vnd.pypi.simple.v1+json"}
    with urllib.request.urlopen(urllib.request.Request(INDEX.format(name), headers=accept)) as answer:
        files = json.load(answer)["files"]
    found = set()
    for file in files:
        if not file["filename"].endswith((".whl", ".tar.gz", ".zip")):
            continue
        try:
            ours = _release(file["filename"]) == (name, Version(version))
        except ValueError:  # of times before there were rules for names
            continue
        if ours:
            found.add(file["hashes"]["sha256"])
    if not found:
        sys.exit(f"{name}=={version} is not on the index")
    return found


if __name__ == "__main__":
    main()
