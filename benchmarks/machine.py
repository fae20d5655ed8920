"""What a measurement needs beside its figures: command, date, hardware, versions."""

import importlib.metadata
import os
import platform
import re
import sys
from datetime import UTC, datetime
from pathlib import Path

PACKAGES = ("magicedit", "torch", "diffusers", "mediapipe", "numpy", "opencv-python", "pillow")


def cpu_model() -> str:
    """From Linux's list of processors, where there is one."""
    path = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", path.read_text()) if path.is_file() else None
    return found[1] if found else platform.processor() or platform.machine()


def memory_gb() -> float:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)


def circumstances() -> dict[str, object]:
    """Of the running script, as JSON values; folders in its command are reduced to their names."""
    script, *words = sys.argv
    words = [Path(word).name if os.sep in word else word for word in words]
    return {
        "command": " ".join(["python", f"benchmarks/{Path(script).name}", *words]),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "hardware": {
            "cpu": cpu_model(),
            "cores": len(os.sched_getaffinity(0)),
            "memory_gb": memory_gb(),
            "system": f"{platform.system()} {platform.release()}",
        },
        "versions": {"python": platform.python_version()}
        | {package: importlib.metadata.version(package) for package in PACKAGES},
    }
