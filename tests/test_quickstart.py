"""docs/quickstart.ipynb runs from the first cell to the last, as in a new kernel."""

import json
import os
import subprocess
import sys
from pathlib import Path

NOTEBOOK = Path(__file__).resolve().parents[1] / "docs" / "quickstart.ipynb"


def test_the_notebook_runs_and_holds_no_outputs(tmp_path):
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["outputs"] or cell["execution_count"] for cell in cells] == [None] * len(cells)
    script = "\n".join("".join(cell["source"]) for cell in cells)
    environment = os.environ | {"MAGICEDIT_C2PA": "off"}
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert "requested {'AU12': 3.0}" in run.stdout
    assert "reached: True" in run.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["smile.png"]
