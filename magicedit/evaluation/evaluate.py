"""One call from editors and data to a report."""

import importlib.util
import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from magicedit.errors import MagicEditError, MissingDependencyError
from magicedit.evaluation.circumstances import PACKAGES, hardware, plain_command, versions, without_folders
from magicedit.evaluation.editors import Entrant
from magicedit.evaluation.metrics.perceptual import FID_LEAST, load_fid
from magicedit.evaluation.protocol import Protocol, load_protocol
from magicedit.evaluation.report import write_report
from magicedit.evaluation.run import carry_out, open_rows, planned, read_run
from magicedit.evaluation.subjects import read_subjects
from magicedit.evaluation.summary import add_labels, read_intensities, summarise
from magicedit.files import shown, write_text
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
    retry_failed: bool = False,
    cold_start: bool = True,
    command: str | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Runs a protocol and writes the report into the folder `output`; an interrupted run resumes.

    Args:
        entrants: the editors; missing ones get rows that say "not run".
        protocol: name, file, or a loaded one.
        data: identity folders or a prepared dataset, see `read_subjects`, which also takes `identities` and
            `attributes`.
        labels: CSV or folder by OpenFace, py-feat or LibreFace of the report's `pictures/`, of a second run;
            labels_scale: its number for full intensity if the file does not state it.
        jobs, retry_failed, cold_start: see `run_protocol`.
        command: for the report; default: this process's own.

    Returns:
        the summary: the content of summary.json.

    Raises:
        MagicEditError: subclasses, before the first edit, for inconsistent arguments.
    """
    protocol = protocol if isinstance(protocol, Protocol) else load_protocol(protocol)
    names = [entrant.name for entrant in entrants]
    if not names or len(set(names)) < len(names):
        raise MagicEditError(f"editors need names of their own, got {', '.join(names) or 'none'}")
    if jobs < 1:
        raise MagicEditError(f"--jobs must be at least 1, got {jobs}")
    for package in ("matplotlib", "jinja2"):  # before the run, not after hours
        if importlib.util.find_spec(package) is None:
            raise MissingDependencyError(f"the report needs {package}: pip install 'magicedit[evaluation]'")
    if labels is not None:
        read_intensities(labels, labels_scale, protocol.action_units)
    subjects = read_subjects(data, identities=identities, attributes=attributes)
    output = Path(output)
    plan = planned(entrants, protocol, subjects, output)
    with open_rows(output) as ledger:
        carry_out(plan, ledger, jobs, retry_failed, cold_start, progress)
        # Editors of earlier runs stay in the report, and attributes of people may have been added since
        rows, run = list(ledger.entries.values()), read_run(output)
        groups = {subject.identity: dict(subject.group) for subject in subjects}
        known = json.dumps(rows)
        for row in rows:
            row["group"] |= groups.get(row["person"], {})
        if labels is not None:
            add_labels(rows, labels, labels_scale, protocol.action_units)
        if json.dumps(rows) != known:
            ledger.rewrite()
        others = [Entrant(name, None, of) for name, of in run["editors"].items() if name not in names]
        summary = summarise(rows, protocol, [*others, *entrants], run)
        _add_fid(summary, rows, output)
        summary["circumstances"] = {
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
            "hardware": hardware(),
            "versions": versions(_PACKAGES),
            "command": shown(command or plain_command(Path(sys.argv[0]).name, sys.argv[1:])),
            "seed": protocol.edits[0].seed,
            "jobs": jobs,
            "data": f"{subjects[0].origin}, {summary['people']} people",
        }
        text = json.dumps(summary, indent=1, ensure_ascii=False, allow_nan=False)
        write_text(output / SUMMARY, text + "\n")
        write_report(output)
    return summary


def _add_fid(summary: dict[str, Any], rows: Sequence[dict[str, Any]], output: Path) -> None:
    """Adds FID between each editor's crops and the originals, given the network and enough people."""
    good = [row for row in rows if row["error"] is None]
    originals = sorted({row["original"] for row in good})
    if len(originals) < FID_LEAST:
        few = f"FID: {len(originals)} photographs are too few, it needs {FID_LEAST}"
        summary["skipped"]["fid"] = few
        return
    try:
        distance = load_fid()
    except MissingDependencyError as error:
        summary["skipped"]["fid"] = without_folders(str(error))
        return
    for name, about in summary["editors"].items():
        edited = [row["picture"] for row in good if row["editor"] == name]
        if len(edited) >= FID_LEAST:
            sets = ((open_photo(output / path).pixels for path in paths) for paths in (originals, edited))
            found = {"mean": distance(*sets), "low": None, "high": None, "n": len(edited)}
            about["headline"]["fid"] = found
