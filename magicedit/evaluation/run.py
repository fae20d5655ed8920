"""Running a protocol: every edit a row, written as soon as it is measured, so that a run can be stopped."""

import json
import multiprocessing
import os
import pickle
import re
import resource
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from magicedit.errors import MagicEditError, OutputError
from magicedit.evaluation.editors import Entrant, PictureFolder
from magicedit.evaluation.protocol import Edit, Protocol
from magicedit.evaluation.scoring import Scoring, head_group
from magicedit.evaluation.subjects import Subject

ROWS, RUN = "rows.jsonl", "run.json"
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
    cold_start: bool = True,
    progress: bool = False,
) -> list[dict[str, Any]]:
    """Edits every subject with every editor, and measures. Rows that an earlier run wrote are kept.

    Args:
        entrants: what is evaluated; those without `open` are left out.
        subjects: as many as the protocol asks for are taken, from the first.
        output: the report's folder.
        jobs: processes.
        cold_start: also measure time and memory of opening each editor for a first edit.

    Returns:
        all rows, in the order of the protocol; a failed edit has its message under "error".

    Raises:
        MagicEditError: before the first edit, where an editor lacks AUs or pictures that the protocol asks
            for, or where `output` holds something else.
    """
    output = Path(output)
    subjects = [
        replace(s, style=style) for s in subjects[: protocol.identities] for style in protocol.renderings
    ]
    check_output_folder(output, protocol, subjects, entrants)
    runnable = [entrant for entrant in entrants if entrant.open is not None]
    worker = Worker(protocol, output)
    tasks = []
    for entrant in runnable:
        editor = worker.editor(entrant)  # a broken one ends the run before anything is edited
        tasks += _tasks_of(entrant, editor, protocol, subjects)
    rows = read_rows(output)
    waiting = [task for task in tasks if task.key not in rows]

    with (output / ROWS).open("a", encoding="utf-8") as file:
        results = map(worker.run, waiting) if jobs == 1 else _in_processes(worker, waiting, jobs)
        bar = tqdm(results, total=len(tasks), initial=len(tasks) - len(waiting), disable=not progress)
        for task, row in zip(waiting, bar, strict=True):
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
            rows[task.key] = row
    known = read_run(output).get("cold", {})
    for entrant in runnable if cold_start else ():
        if entrant.name not in known:
            edit = next((t.edit for t in tasks if t.entrant is entrant and t.edit.asked), None)
            known[entrant.name] = edit and _cold(entrant, subjects[0], edit)
    _update_run(output, {"skipped": worker.scoring.skipped, "cold": known})
    return [rows[task.key] for task in tasks]


def _tasks_of(entrant: Entrant, editor, protocol: Protocol, subjects: Sequence[Subject]) -> list[Task]:
    known = getattr(editor, "action_units", None)
    edits = protocol.edits
    if known is not None:
        asked = {re.sub("[LR]$", "", name) for edit in edits for name in edit.asked}
        if lacking := sorted(asked - set(known), key=lambda name: int(name[2:])):
            requests = [e.request for e in edits if any(n.rstrip("LR") in lacking for n in e.asked)]
            raise MagicEditError(
                f"{entrant.name} does not know {', '.join(lacking)}, which {len(requests)} edits of "
                f"{protocol.name} ask for ({', '.join(requests[:4])}...)"
            )
    wanted = [(subject, edit) for subject in subjects for edit in edits]
    if isinstance(editor, PictureFolder):
        editor.check(wanted)
    return [Task(entrant, subject, edit, first=n == 0) for n, (subject, edit) in enumerate(wanted)]


class Worker:
    """What a process needs to make and measure edits; everything is opened on first use."""

    def __init__(self, protocol: Protocol, output: Path):
        self.protocol, self.output = protocol, output
        self._editors: dict[str, Any] = {}
        self._scoring: Scoring | None = None

    def __getstate__(self):
        return {"protocol": self.protocol, "output": self.output, "_editors": {}, "_scoring": None}

    @property
    def scoring(self) -> Scoring:
        if self._scoring is None:
            self._scoring = Scoring(self.protocol.action_units)
        return self._scoring

    def editor(self, entrant: Entrant):
        if entrant.name not in self._editors:
            self._editors[entrant.name] = entrant.open()
        return self._editors[entrant.name]

    def run(self, task: Task) -> dict[str, Any]:
        """The row of one edit. What fails is in it: one edit must not end thousands."""
        entrant, subject, edit = task.entrant, task.subject, task.edit
        row: dict[str, Any] = {
            "editor": entrant.name,
            "identity": subject.name,
            "person": subject.identity,
            "photograph": subject.source.name,
            "kind": edit.kind,
            "request": edit.request,
            "asked": dict(edit.asked),
            "seed": edit.seed,
            "error": None,
            "seconds": None,
            "group": dict(subject.group)
            | ({"rendering": subject.style} if len(self.protocol.renderings) > 1 else {}),
        }
        try:
            editor, original = self.editor(entrant), self.scoring.original(subject)
            row["group"]["head"] = head_group(original.measured.face)
            started = time.perf_counter()
            if isinstance(editor, PictureFolder):
                pixels = editor.picture(subject, edit)
            else:
                pixels = editor(original.photo, edit.asked, edit.seed)
                row["seconds"] = round(time.perf_counter() - started, 4)
            scores, crop = self.scoring.score(original, np.asarray(pixels), edit.asked)
            pictures = self._keep(task, original.measured.crop, crop)
            if task.first and hasattr(editor, "attention_maps"):
                self._attention(task, editor, original)
        except Exception as error:
            return row | {"error": f"{type(error).__name__}: {error}"}
        return row | _rounded(scores) | pictures

    def _keep(self, task: Task, before: np.ndarray, after: np.ndarray) -> dict[str, str]:
        """Writes the crops; their paths relative to the report."""
        edit, seed = task.edit, f"-seed{task.edit.seed}" if task.edit.kind == "seed" else ""
        folder = Path("pictures") / safe_name(task.entrant.name) / safe_name(task.subject.name)
        paths = {
            "picture": folder / f"{safe_name(edit.request)}{seed}.jpg",
            "original": Path("pictures") / "original" / f"{safe_name(task.subject.name)}.jpg",
        }
        for path, crop in zip(paths.values(), (after, before), strict=True):
            target = self.output / path
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.with_name(f".{os.getpid()}-{target.name}")
            Image.fromarray(crop).save(temporary, "JPEG", quality=JPEG_QUALITY)
            temporary.replace(target)
        return {name: path.as_posix() for name, path in paths.items()}

    def _attention(self, task: Task, editor, original) -> None:
        path = self.output / "attention" / f"{safe_name(task.entrant.name)}.npz"
        path.parent.mkdir(exist_ok=True)
        try:
            editor.attention_maps(original.photo, task.edit.asked, task.edit.seed).save(path)
        except MagicEditError:  # a model without reference attention has no such maps
            return


# --- Several processes ---

_WORKER: Worker | None = None


def _start(worker: Worker) -> None:
    global _WORKER
    _WORKER = worker


def _run_here(task: Task) -> dict[str, Any]:
    return _WORKER.run(task)


def _in_processes(worker: Worker, tasks: Sequence[Task], jobs: int) -> Iterator[dict[str, Any]]:
    """Rows in the order of the tasks."""
    context = multiprocessing.get_context("spawn")  # libraries with threads of their own do not fork
    with ProcessPoolExecutor(jobs, context, initializer=_start, initargs=(worker,)) as pool:
        try:
            yield from pool.map(_run_here, tasks)
        finally:
            pool.shutdown(cancel_futures=True)


def _cold(entrant: Entrant, subject: Subject, edit: Edit) -> dict[str, float] | None:
    """Seconds and peak memory of opening the editor and one edit, in a process of its own."""
    try:
        task = pickle.dumps((entrant, subject, edit))
        process = subprocess.run(
            [sys.executable, "-c", f"from {__name__} import measure_cold; measure_cold()"],
            input=task,
            capture_output=True,
            check=True,
        )
        return json.loads(process.stdout.splitlines()[-1])
    except (pickle.PicklingError, AttributeError, TypeError, IndexError, ValueError):
        return None  # an editor that another process cannot make, or that writes to stdout
    except subprocess.CalledProcessError:  # the edits' own rows tell what is wrong with it
        return None


def measure_cold() -> None:
    """Reads an editor, a subject and an edit from stdin, prints what they cost."""
    entrant, subject, edit = pickle.load(sys.stdin.buffer)  # from our own process, see `_cold`
    started = time.perf_counter()
    editor = entrant.open()
    if isinstance(editor, PictureFolder):
        print("null")
        return
    editor(subject.open(), edit.asked, edit.seed)
    cost = {
        "seconds": round(time.perf_counter() - started, 2),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    }
    print(json.dumps(cost))


# --- The folder ---


def safe_name(text: str) -> str:
    """As a file name: whatever is no letter, digit or one of `=+-,._ ()` becomes an underscore."""
    return re.sub(r"[^\w=+\-,. ()]", "_", text)[:120]


def read_rows(output: str | Path) -> dict[Key, dict[str, Any]]:
    """Rows of a report by editor, subject, request and seed. A last line that was cut off is taken away."""
    path = Path(output) / ROWS
    rows: dict[Key, dict[str, Any]] = {}
    if not path.exists():
        return rows
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        path.write_bytes(whole)
    for number, line in enumerate(whole.decode().splitlines(), start=1):
        try:
            row = json.loads(line)
            rows[row["editor"], row["identity"], row["request"], row["seed"]] = row
        except (ValueError, KeyError, TypeError) as error:
            raise OutputError(f"{path} line {number} is no row of an evaluation: {error}") from error
    return rows


def read_run(output: str | Path) -> dict[str, Any]:
    path = Path(output) / RUN
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise OutputError(f"{path} cannot be read ({error}); remove it and run again") from error


def check_output_folder(
    output: Path, protocol: Protocol, subjects: Sequence[Subject], entrants: Iterable[Entrant]
) -> None:
    """Makes the folder, or sees that it holds the same evaluation. OutputError where it does not.

    Editors may be added to a report; what an editor of a known name is, may not change.
    """
    settings = {entrant.name: dict(entrant.settings) for entrant in entrants if entrant.open is not None}
    wanted = {
        "protocol": protocol.name,
        "version": protocol.version,
        "subjects": [subject.name for subject in subjects],
    }
    run = read_run(output)
    if not run and output.exists() and any(output.iterdir()):
        raise OutputError(f"{output} exists and is no report of an evaluation; choose another folder")
    for key, value in wanted.items():
        if run and run.get(key) != value:
            raise OutputError(f"{output} holds an evaluation of another {key}; choose another folder")
    known = run.get("editors", {})
    if changed := sorted(name for name in settings if name in known and known[name] != settings[name]):
        raise OutputError(
            f"{output} holds rows of {', '.join(changed)} with other settings; choose another folder or name"
        )
    output.mkdir(parents=True, exist_ok=True)
    _update_run(output, wanted | {"editors": known | settings})


def _update_run(output: Path, changes: Mapping[str, Any]) -> None:
    path = output / RUN
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(read_run(output) | changes, indent=1, ensure_ascii=False) + "\n")
    temporary.replace(path)


def _rounded(value: Any) -> Any:
    """Floats to five places: what the measurements can tell, and files of half the size."""
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    return round(value, 5) if isinstance(value, float) else value
