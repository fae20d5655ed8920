"""What a measurement needs beside its figures: command, date, hardware, versions, and where rows are kept."""

import json
import sys
from datetime import UTC, datetime
from pathlib import Path

from magicedit.evaluation.circumstances import hardware, plain_command, versions


def circumstances() -> dict[str, object]:
    """Of the running script, as JSON values; folders in its command are reduced to their names."""
    script, *words = sys.argv
    return {
        "command": plain_command(f"python benchmarks/{Path(script).name}", words),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "hardware": hardware(),
        "versions": versions(),
    }


def merge(path: Path, key: str, row: dict[str, object]) -> None:
    """Puts one row into the file of results; the others stay."""
    results = json.loads(path.read_text()) if path.is_file() else {}
    results[key] = row
    path.write_text(json.dumps(results, indent=1) + "\n")
