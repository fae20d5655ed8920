"""The circumstances of a measurement: hardware and versions."""

import platform
import re
import shlex
from collections.abc import Iterable
from pathlib import Path

import psutil

from magicedit.errors import version_of
from magicedit.workers import cores

PACKAGES = ("magicedit", "torch", "diffusers", "mediapipe", "numpy", "opencv-contrib-python", "pillow")


def hardware() -> dict[str, object]:
    """CPU model, cores that this process may use, memory in GB, operating system."""
    cpuinfo = Path("/proc/cpuinfo")
    known = cpuinfo.read_text(encoding="utf-8") if cpuinfo.is_file() else ""
    found = re.search(r"model name\s*:\s*(.+)", known)
    return {
        "cpu": found[1] if found else platform.processor() or platform.machine(),
        "cores": cores(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": f"{platform.system()} {platform.release()}",
    }


def versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Returns the versions of Python and of these packages, or "not installed"."""
    found = {"python": platform.python_version()}
    return found | {package: version_of(package) or "not installed" for package in packages}


def without_folders(text: str) -> str:
    """Shortens paths that begin at a root, a home or a parent folder to their last name."""
    return re.sub(r"(?<![\w.~])(?:~|\.{0,2})/(?:[^\s/:,;='\"]+/)*(?=[^\s/:,;='\"])", "", text)


def plain_command(name: str, words: Iterable[str]) -> str:
    """Returns a command line as typed, with folders of this machine shortened to their names."""
    return f"{name} {shlex.join(without_folders(word).rstrip('/') for word in words)}".rstrip()
