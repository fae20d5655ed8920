"""Runs a protocol: each edit is a row, written as soon as it is measured, so that a run can be resumed."""

import contextlib
import hashlib
import json
import logging
import os
import pickle  # nosec B403 # for pipes to our own processes
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from magicedit.errors import MagicEditError, OutputError
from magicedit.evaluation.circumstances import without_folders
from magicedit.evaluation.editors import Entrant, PictureFolder, answer, expresses
from magicedit.evaluation.metrics.structure import finite_psnr
from magicedit.evaluation.protocol import SMILE, Edit, Protocol
from magicedit.evaluation.scoring import AU_COLUMNS, Original, Scoring, head_group, rounded
from magicedit.evaluation.subjects import Subject
from magicedit.files import is_temporary, read_json, replacing, shown, sweep, write_text
from magicedit.ledger import Ledger, read_ledger
from magicedit.provenance import Mark
from magicedit.vocabulary import name_order, whole_name
from magicedit.workers import each

logger = logging.getLogger(__name__)

ROWS, RUN = "rows.jsonl", "run.json"
_RUN = {"protocol": str, "version": int, "photographs": dict, "editors": dict, "skipped": dict}
_OF_EDITORS = ("editors", "unable", "about")  # in run.json, by name of the editor; earlier editors stay
_NO_SCORES = {  # texts of a row
    *("editor", "identity", "person", "photograph", "photograph_sha256"),
    *("kind", "request", "picture", "original"),
}
JPEG_QUALITY = 92
Key = tuple[str, str, str, int]  # editor, subject, request, seed


@dataclass(frozen=True)
class Task:
    """One edit by one editor. first: the editor's first, from which attention maps are drawn."""

    entrant: Entrant
    subject: Subject
    edit: Edit
    first: bool = False

    @property
    def key(self) -> Key:
        return self.entrant.name, self.subject.name, self.edit.request, self.edit.seed


def run_protocol(
    entrants: Sequence[Entrant],
    protocol: Protocol,
    subjects: Sequence[Subject],
    output: str | Path,
    *,
    jobs: int = 1,
    retry_failed: bool = False,
    cold_start: bool = True,
    progress: bool = False,
) -> list[dict[str, Any]]:
    """Edits every subject with every editor and measures the results. Rows of earlier runs are kept.

    Args:
        entrants: the editors; those without `open` are left out.
        subjects: the first ones are used, as many as the protocol requires.
        output: the report's folder.
        jobs: processes; above 1, a script that calls this needs `if __name__ == "__main__":`.
        retry_failed: repeat edits that failed in an earlier run.
        cold_start: also measure time and memory of opening each editor for a first edit.

    Returns:
        all rows, in the order of the protocol; a failed edit has its message under "error".

    Raises:
        MagicEditError: before the first edit, where an editor lacks AUs or pictures that the protocol
            requires, or where `output` holds anything else.
    """
    plan = planned(entrants, protocol, subjects, output)
    with open_rows(plan.output) as ledger:
        return carry_out(plan, ledger, jobs, retry_failed, cold_start, progress)


@dataclass(frozen=True)
class Plan:
    """A checked run: its edits in order, the worker that opened its editors, and what run.json says of it."""

    output: Path
    entrants: list[Entrant]
    protocol: Protocol
    subjects: list[Subject]
    tasks: list[Task]
    worker: "Worker"
    about: dict[str, Any]


def planned(
    entrants: Sequence[Entrant], protocol: Protocol, subjects: Sequence[Subject], output: str | Path
) -> Plan:
    """Returns the plan of a run; arguments and errors as `run_protocol`. It writes nothing."""
    output = Path(output)
    subjects = [
        replace(s, style=style) for s in subjects[: protocol.identities] for style in protocol.renderings
    ]
    about = _about(protocol, subjects, entrants)
    check_output_folder(output, about)
    runnable = [entrant for entrant in entrants if entrant.open is not None]
    worker = Worker(protocol, output)
    tasks, unable = [], {}
    emotions = dict.fromkeys(edit.emotion for edit in protocol.edits if edit.emotion)
    for entrant in runnable:  # a broken editor stops the run before the first edit
        editor = worker.editor(entrant)
        unable[entrant.name] = [emotion for emotion in emotions if not expresses(editor, emotion)]
        edits = [edit for edit in protocol.edits if edit.emotion not in unable[entrant.name]]
        tasks += _tasks_of(entrant, editor, protocol.name, edits, subjects)
    about["skipped"] = worker.scoring.skipped
    run = read_run(output)
    if run and run["skipped"].keys() != about["skipped"].keys():
        lacking = ", ".join(sorted(run["skipped"].keys() ^ about["skipped"].keys()))
        raise OutputError(
            f"{shown(output)} was measured with other packages ({lacking}); choose another folder"
        )
    if protocol.has_emotions:
        about["unable"] = unable
        about["about"] = {entrant.name: dict(entrant.about) for entrant in runnable}
    return Plan(output, runnable, protocol, subjects, tasks, worker, about)


def carry_out(
    plan: Plan, ledger: Ledger, jobs: int, retry_failed: bool, cold_start: bool, progress: bool
) -> list[dict[str, Any]]:
    """Makes and measures the edits of a plan that the ledger lacks; arguments, result as `run_protocol`."""
    run = read_run(plan.output)
    of_editors = {name: run.get(name, {}) | plan.about[name] for name in _OF_EDITORS if name in plan.about}
    _update_run(plan.output, plan.about | of_editors)
    rows = ledger.entries
    waiting = [
        task
        for task in plan.tasks
        if task.key not in rows or (retry_failed and rows[task.key]["error"] is not None)
    ]
    results = each(
        (lambda: plan.worker) if jobs == 1 else partial(Worker, plan.protocol, plan.output),
        waiting,
        jobs,
        failed=lambda task, reason: _empty_row(task, plan.protocol) | {"error": reason},
    )
    known = len(plan.tasks) - len(waiting)
    for _, row in tqdm(results, total=len(plan.tasks), initial=known, disable=not progress):
        ledger.add(row)
    ledger.compact()
    cold = run.get("cold", {})
    for entrant in plan.entrants if cold_start else ():
        if entrant.name not in cold:
            edit = next((t.edit for t in plan.tasks if t.entrant is entrant and t.edit.asked), None)
            cold[entrant.name] = edit and _cold(entrant, plan.subjects[0], edit)
    _update_run(plan.output, {"cold": cold})
    return [rows[task.key] for task in plan.tasks]


def _tasks_of(
    entrant: Entrant, editor, protocol: str, edits: Sequence[Edit], subjects: Sequence[Subject]
) -> list[Task]:
    known = getattr(editor, "action_units", None)
    if known is not None:
        by_unit = [edit for edit in edits if edit.emotion is None]
        asked = {whole_name(name) for edit in by_unit for name in edit.asked}
        if lacking := sorted(asked - set(known), key=name_order):
            requests = [e.request for e in by_unit if any(whole_name(n) in lacking for n in e.asked)]
            raise MagicEditError(
                f"{entrant.name} does not know {', '.join(lacking)}, which {len(requests)} edits of "
                f"{protocol} ask for ({', '.join(requests[:4])}...)"
            )
    wanted = [(subject, edit) for subject in subjects for edit in edits]
    if isinstance(editor, PictureFolder):
        editor.check(wanted)
    return [Task(entrant, subject, edit, first=n == 0) for n, (subject, edit) in enumerate(wanted)]


class Worker:
    """Makes and measures edits. Its resources are opened on first use, one editor at a time."""

    def __init__(self, protocol: Protocol, output: Path):
        self.protocol, self.output = protocol, output
        self._editor: tuple[str, Any] | None = None
        self._scoring: Scoring | None = None

    @property
    def scoring(self) -> Scoring:
        if self._scoring is None:
            self._scoring = Scoring(self.protocol.action_units)
        return self._scoring

    def editor(self, entrant: Entrant):
        if self._editor is None or self._editor[0] != entrant.name:
            self._editor = None  # frees the last one's memory first
            self._editor = entrant.name, entrant.open()
        return self._editor[1]

    def __call__(self, task: Task) -> dict[str, Any]:
        """Returns the row of one edit, errors included: one edit must not stop thousands."""
        row = _empty_row(task, self.protocol)
        subject, edit = task.subject, task.edit
        try:
            editor, original = self.editor(task.entrant), self.scoring.original(subject)
            row["group"]["head"] = head_group(original.measured.face)
            started = time.perf_counter()
            if isinstance(editor, PictureFolder):
                pixels = editor.picture(subject, edit)
            else:
                pixels = answer(editor, original.photo, edit)
                row["seconds"] = round(time.perf_counter() - started, 4)
            scores, crop = self.scoring.score(original, np.asarray(pixels), edit.asked)
            if self.protocol.has_emotions:
                scores |= self._family_scores(task, editor, original, scores, crop)
            pictures = self._keep(task, original.measured.crop, crop)
            if task.first and hasattr(editor, "attention_maps"):
                self._attention(task, editor, original)
        except Exception as error:
            return row | {"error": f"{type(error).__name__}: {without_folders(str(error))}"}
        return row | rounded(scores) | pictures

    def _family_scores(
        self, task: Task, editor, original: Original, scores: Mapping[str, Any], crop: np.ndarray
    ) -> dict[str, Any]:
        """`psnr_input`, to the photograph before the edit; of a smile, what `Scoring.against` measures; of a
        zero edit, `psnr_own` of the editor's `own_picture`."""
        edit, smile = task.edit, task.subject.smile
        found: dict[str, Any] = {"psnr_input": finite_psnr(original.measured.crop, crop)}
        if edit.kind == "emotion" and edit.emotion == SMILE and smile is not None:
            found |= self.scoring.against(smile, original, crop, scores["changed"])
        if edit.kind == "zero" and hasattr(editor, "own_picture"):
            own = editor.own_picture(original.photo)
            found["psnr_own"] = None if own is None else finite_psnr(*own)
        return found

    def _keep(self, task: Task, before: np.ndarray, after: np.ndarray) -> dict[str, str]:
        """Writes the crops, the original's once; their paths relative to the report."""
        edit, seed = task.edit, f"-seed{task.edit.seed}" if task.edit.kind == "seed" else ""
        folder = Path("pictures") / safe_name(task.entrant.name) / safe_name(task.subject.name)
        paths = {
            "picture": folder / f"{safe_name(edit.request)}{seed}.jpg",
            "original": Path("pictures") / "original" / f"{safe_name(task.subject.name)}.jpg",
        }
        about = {"model": task.entrant.name, "request": edit.request, "seed": edit.seed}
        for name, crop in (("picture", after), ("original", before)):
            target = self.output / paths[name]
            if name == "original" and target.exists():
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            mark = {} if np.array_equal(crop, before) else {"xmp": Mark(about).packet()}
            with replacing(target) as file:
                Image.fromarray(crop).save(file, "JPEG", quality=JPEG_QUALITY, **mark)
        return {name: path.as_posix() for name, path in paths.items()}

    def _attention(self, task: Task, editor, original) -> None:
        path = self.output / "attention" / f"{safe_name(task.entrant.name)}.npz"
        path.parent.mkdir(exist_ok=True)
        try:
            editor.attention_maps(original.photo, task.edit.asked, task.edit.seed).save(path)
        except Exception as error:  # a model without reference attention has none; the edit itself is good
            logger.warning("no attention maps of %s: %s", task.entrant.name, error)


def _empty_row(task: Task, protocol: Protocol) -> dict[str, Any]:
    """Returns the columns that are known before the edit."""
    subject, edit = task.subject, task.edit
    rendering = {"rendering": subject.style} if len(protocol.renderings) > 1 else {}
    return {
        "editor": task.entrant.name,
        "identity": subject.name,
        "person": subject.identity,
        "photograph": shown(subject.source.name),
        "photograph_sha256": subject.fingerprint,
        "kind": edit.kind,
        "request": edit.request,
        "asked": dict(edit.asked),
        "seed": edit.seed,
        "error": None,
        "seconds": None,
        "group": dict(subject.group) | rendering,
    }


def _cold(entrant: Entrant, subject: Subject, edit: Edit) -> dict[str, float] | None:
    """Seconds and peak memory of a process of its own that opens the editor and makes one edit."""
    try:
        task = pickle.dumps((entrant, subject, edit))
        started = time.perf_counter()
        process = subprocess.run(
            [sys.executable, "-c", f"from {__name__} import measure_cold; measure_cold()"],
            input=task,
            capture_output=True,
            check=True,
        )
        seconds = time.perf_counter() - started
        cost = json.loads(process.stdout.splitlines()[-1])
        return cost and cost | {"seconds": round(seconds, 2)}
    except (pickle.PicklingError, AttributeError, TypeError, IndexError, ValueError):
        return None  # an editor that another process cannot make, or that writes to stdout
    except subprocess.CalledProcessError:  # the edits' own rows contain the error
        return None


def measure_cold() -> None:
    """Reads an editor, a subject and an edit from stdin, prints how much memory they took."""
    entrant, subject, edit = pickle.load(sys.stdin.buffer)  # nosec B301 # of our own process, see `_cold`
    editor = entrant.open()
    if isinstance(editor, PictureFolder):
        print("null")
        return
    answer(editor, subject.open(), edit)
    status = Path("/proc/self/status")  # getrusage would include the peak of the parent process
    peak = re.search(r"VmHWM:\s*(\d+) kB", status.read_text(encoding="utf-8")) if status.exists() else None
    cost = {"peak_memory_mb": round(int(peak[1]) / 1024, 1) if peak else None}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        cost["peak_gpu_memory_mb"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
    print(json.dumps(cost))


def safe_name(text: str) -> str:
    """Returns a file name: characters other than letters, digits and `=+-,._ ()` become underscores; changed
    or shortened names get a hash, so that they stay distinct."""
    plain = re.sub(r"[^\w=+\-,. ()]", "_", text)[:120]
    if plain == text and plain.strip(". "):
        return plain
    return f"{plain.strip('. ')}-{hashlib.sha256(text.encode('utf-8', 'surrogateescape')).hexdigest()[:8]}"


@contextlib.contextmanager
def open_rows(output: str | Path) -> Iterator[Ledger]:
    """The rows of a report by editor, subject, request and seed, to add to; it holds the folder for one run.

    The folder is made where it is missing. OutputError where another run has it, or it cannot be written.
    """
    try:
        Path(output).mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise OutputError(f"{shown(output)} cannot be made ({error}); choose another folder") from error
    with Ledger(Path(output) / ROWS, _key) as ledger:
        sweep(Path(output))
        yield ledger


def read_rows(output: str | Path) -> dict[Key, dict[str, Any]]:
    """Reads the rows of a report by editor, subject, request and seed; for repeated edits the last row.

    An incomplete last line is ignored. OutputError where any other line is not a row.
    """
    return read_ledger(Path(output) / ROWS, _key)


def _key(row: Mapping[str, Any]) -> Key:
    """The key of a row; KeyError, TypeError or ValueError for what no run of ours wrote."""
    fits = all(isinstance(row[name], str) for name in ("editor", "identity", "person", "request", "kind"))
    fits &= type(row["seed"]) is int and isinstance(row["error"], str | None)
    fits &= _is_table(row["asked"], int | float) and _is_table(row["group"], str)
    if row["error"] is None:
        fits &= isinstance(row["picture"], str) and isinstance(row["original"], str)
        fits &= all(_is_table(row[name], dict) for name in ("before", "changed") if name in row)
        fits &= all(
            _is_table(of, int | float | None)
            for name in ("before", "changed")
            for of in row.get(name, {}).values()
        )
        fits &= all(
            _is_table(row[name], int | float | None)
            for name in (*AU_COLUMNS, "au_mse_real", "change_by_region")
            if name in row
        )
        scores = {name: value for name, value in row.items() if name not in _NO_SCORES}
        fits &= all(isinstance(value, int | float | dict | None) for value in scores.values())
    if not fits:
        raise ValueError("its values are not those of an edit")
    return row["editor"], row["identity"], row["request"], row["seed"]


def _is_table(value: Any, kind: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(item, kind) for item in value.values())


def read_run(output: str | Path) -> dict[str, Any]:
    """The content of run.json; empty where there is none. OutputError for anything that we did not write."""
    path = Path(output) / RUN
    if not os.path.lexists(path):
        return {}
    run = read_json(path, OutputError)
    wrong = [
        name
        for name, kind in _RUN.items()
        if not isinstance(run, dict) or not isinstance(run.get(name), kind)
    ]
    if not wrong:
        tables = {"photographs": str, "editors": dict, "skipped": str, "cold": dict | None}
        tables |= {"unable": list, "about": dict}
        wrong = [name for name, kind in tables.items() if not _is_table(run.get(name, {}), kind)]
    if wrong:
        raise OutputError(
            f"{shown(path)} has no usable {', '.join(wrong)}; choose another folder, or "
            "move it away to start over"
        )
    return run


def _about(protocol: Protocol, subjects: Sequence[Subject], entrants: Iterable[Entrant]) -> dict[str, Any]:
    """Returns the content of run.json, which keeps different evaluations apart."""
    return {
        "protocol": protocol.name,
        "version": protocol.version,
        "photographs": {subject.name: subject.fingerprint for subject in subjects},
        "editors": {entrant.name: dict(entrant.settings) for entrant in entrants if entrant.open is not None},
    }


def check_output_folder(output: Path, about: Mapping[str, Any]) -> None:
    """Raises OutputError where the folder holds anything but an evaluation with the same run.json.

    Editors may be added to a report, but an editor's settings may not change under its name.
    """
    run = read_run(output)
    if not run:
        if os.path.lexists(output) and _others(output):
            raise OutputError(
                f"{shown(output)} exists and is not a report of an evaluation; choose another folder"
            )
        return
    for what in ("protocol", "version", "photographs"):
        if run.get(what) != about[what]:
            raise OutputError(f"{shown(output)} holds an evaluation of another {what}; choose another folder")
    known = run["editors"]
    if changed := [name for name, of in about["editors"].items() if name in known and known[name] != of]:
        raise OutputError(
            f"{shown(output)} holds rows of {', '.join(changed)} with other settings or weights; choose "
            "another folder or name"
        )


def _others(output: Path) -> list[str]:
    """Names of what no run leaves that was killed before run.json. OutputError where it is no folder."""
    try:
        return [
            name
            for name in os.listdir(output)
            if not is_temporary(name) and (name != ROWS or os.path.getsize(output / name))
        ]
    except OSError as error:
        raise OutputError(
            f"{shown(output)} cannot be read ({error.strerror}); choose another folder"
        ) from error


def _update_run(output: Path, changes: Mapping[str, Any]) -> None:
    text = json.dumps(read_run(output) | changes, indent=1, ensure_ascii=False)
    write_text(output / RUN, text + "\n")
