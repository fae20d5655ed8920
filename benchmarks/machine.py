"""What a measurement needs beside its figures: command, date, hardware, versions."""

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
