"""One call from editors and data to a report."""

import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from magicedit.data.labels import read_labels
from magicedit.errors import MagicEditError, MissingDependencyError
from magicedit.evaluation.circumstances import PACKAGES, hardware, plain_command, versions
from magicedit.evaluation.editors import Entrant
from magicedit.evaluation.metrics.perceptual import load_fid
from magicedit.evaluation.protocol import Protocol, load_protocol
from magicedit.evaluation.report import write_report
from magicedit.evaluation.run import read_run, run_protocol
from magicedit.evaluation.subjects import read_subjects
from magicedit.evaluation.summary import add_labels, summarise
from magicedit.imaging import open_photo

SUMMARY = "summary.json"
_PACKAGES = (*PACKAGES, "transformers", "dlib-bin", "torchmetrics")


def evaluate(
    entrants: Sequence[Entrant],
    protocol: str | Path | Protocol,
    data: str | Path,
    output: str | Path,
    *,
    identities: list[str] | None = None,
    attributes: str | Path | None = None,
    labels: str | Path | None = None,
    labels_scale: float | None = None,
    jobs: int = 1,
    cold_start: bool = True,
    command: str | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Runs a protocol and writes the report into the folder `output`; a run that was interrupted goes on.

    Args:
        entrants: the editors; those that are not there are rows that say "not run".
        protocol: name, file, or a loaded one.
        data: identity folders or a prepared dataset, see `read_subjects`, which also takes `identities` and
            `attributes`.
        labels: CSV or folder by OpenFace, py-feat or LibreFace of the report's `pictures/`, of a second run;
            labels_scale: its number for full intensity where the file does not tell.
        jobs: processes. cold_start: also measure what opening each editor costs.
        command: for the report; default: this process's own.

    Returns:
        the summary: what summary.json holds.

    Raises:
        MagicEditError: subclasses, before the first edit, on what does not fit together.
    """
    protocol = protocol if isinstance(protocol, Protocol) else load_protocol(protocol)
    names = [entrant.name for entrant in entrants]
    if not names or len(set(names)) < len(names):
        raise MagicEditError(f"editors need names of their own, got {', '.join(names) or 'none'}")
    if jobs < 1:
        raise MagicEditError(f"--jobs must be at least 1, got {jobs}")
    if labels is not None:
        read_labels(labels, labels_scale)
    subjects = read_subjects(data, identities=identities, attributes=attributes)
    rows = run_protocol(
        entrants, protocol, subjects, output, jobs=jobs, cold_start=cold_start, progress=progress
    )
    if labels is not None:
        add_labels(rows, labels, labels_scale, protocol.action_units)
    summary = summarise(rows, protocol, entrants, read_run(output))
    _add_fid(summary, rows, Path(output))
    summary["circumstances"] = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "hardware": hardware(),
        "versions": versions(_PACKAGES),
        "command": command or plain_command(Path(sys.argv[0]).name, sys.argv[1:]),
        "seed": protocol.edits[0].seed,
        "jobs": jobs,
    }
    text = json.dumps(summary, indent=1, ensure_ascii=False, allow_nan=False)
    (Path(output) / SUMMARY).write_text(text + "\n", encoding="utf-8")
    write_report(Path(output))
    return summary


def _add_fid(summary: dict[str, Any], rows: Sequence[dict[str, Any]], output: Path) -> None:
    """The distance of each editor's crops from the originals', where its network is here."""
    try:
        distance = load_fid()
    except MissingDependencyError as error:
        summary["skipped"]["fid"] = str(error)
        return
    for name, about in summary["editors"].items():
        own = [row for row in rows if row["editor"] == name and row["error"] is None]
        if len(own) > 1:
            sets = [
                [open_photo(output / path).pixels for path in {row[key] for row in own}]
                for key in ("original", "picture")
            ]
            about["headline"]["fid"] = {"mean": distance(*sets), "low": None, "high": None, "n": len(own)}
