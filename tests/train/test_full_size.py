"""LoRA training at the size of Stable Diffusion 1.5, by the benchmark that measures it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
MOST_GB = 9.0  # of memory, in training and in saving
MOST_MB = 200.0  # of a result


def check(results: dict) -> None:
    for run in ("two steps", "resumed"):
        for phase in ("opening", "training", "saving"):
            assert results[run][phase]["peak_gb"] < MOST_GB
    assert results["megabytes"]["result"] < MOST_MB
    assert results["resumed"]["bit-equal"]


def test_the_measured_run_meets_its_limits():
    results = json.loads((REPOSITORY / "benchmarks" / "full_size.json").read_text())["results"]
    check(results)
    assert results["megabytes"]["base"] > 4000


@pytest.mark.slow
@pytest.mark.parametrize("size", ["tiny", "full"])
def test_two_lora_steps_resume_and_edit(tmp_path, size):
    if size == "full" and psutil.virtual_memory().available < 10e9:
        pytest.skip("needs 10 GB of free memory")
    if size == "full" and shutil.disk_usage(tmp_path).free < 15e9:
        pytest.skip("needs 15 GB of disk")
    more = ["--tiny", "--resolution=64", "--lora_rank=4"] if size == "tiny" else []
    command = [sys.executable, "benchmarks/full_size.py", "-o", str(tmp_path / "report.json"), *more]
    subprocess.run(command, cwd=REPOSITORY, check=True)
    check(json.loads((tmp_path / "report.json").read_text())["results"])
