"""The nodes in ComfyUI itself: `COMFYUI_PATH=/path/to/ComfyUI pytest tests/comfyui`.

`COMFYUI_PYTHON` is the Python that runs it, by default the one of the tests. Elsewhere these tests skip, and
test_nodes.py runs the nodes through a stand-in for ComfyUI's API.
"""

import json
import os
import subprocess
import sys

import pytest
from comfy_loading import FOLDER


@pytest.mark.skipif("COMFYUI_PATH" not in os.environ, reason="COMFYUI_PATH names no checkout of ComfyUI")
def test_workflows_run_a_sweep_is_cancelled_and_an_older_workflow_keeps_its_values():
    script = FOLDER.parent / "dev" / "comfyui_run.py"
    python = os.environ.get("COMFYUI_PYTHON", sys.executable)
    ended = subprocess.run([python, script, "--browser"], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-5000:]
    figures = json.loads(ended.stdout)
    assert figures["nodes"] == 10
    assert figures["cancel_seconds"] <= 2
    assert figures["older_workflow_values"] > 50
