"""Editing many photographs: `edit_folder` and `edit_manifest`."""

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict, Unpack

from magicedit.batch.rows import (
    FORMATS,
    JOURNAL,
    Row,
    check_folders,
    check_targets,
    rows_of_folder,
    rows_of_manifest,
    rows_of_photographs,
)
from magicedit.batch.workers import EditorSettings, Pool, edit_rows, sensible_workers
from magicedit.cluster import check_engine
from magicedit.editor.settings import MouthSettings
from magicedit.errors import MagicEditError, OutputError
from magicedit.files import sha256_of, shown, sweep
from magicedit.ledger import Ledger
from magicedit.models.face_model import runs_as_graphs
from magicedit.models.folder import ModelFolder
from magicedit.request import EditRequest
from magicedit.vocabulary import quoted

_REFERENCE_SIZE = 512  # px, of the crops in which mouths of references are compared, whatever the model


@dataclass(frozen=True)
class RowResult:
    """Result of one row.

    Attributes:
        row: the edit.
        status: "done", "skipped" (done by an earlier run) or "failed".
        reason: why it failed.
        seconds: of the edit.
        faces: as `FaceEdit.to_json`; for a skipped row, from the run that made it.
        left_alone: number of detected faces that were not edited, see `EditResult`.
        lost: what the photograph's file holds and the result does not.
    """

    row: Row
    status: str
    reason: str | None = None
    seconds: float | None = None
    faces: list[dict[str, Any]] = field(default_factory=list)
    left_alone: int = 0
    lost: list[str] = field(default_factory=list)

    @property
    def warnings(self) -> list[str]:
        """What the result lacks, and warnings of all faces, each with the face's number, from 1."""
        lacks = [f"the photograph also holds what the result does not: {', '.join(self.lost)}"]
        return (lacks if self.lost else []) + [
            f"face {face.get('face', index) + 1}: {text}"  # journals of earlier versions lack the index
            for index, face in enumerate(self.faces)
            for text in face["warnings"]
        ]

    def to_json(self) -> dict[str, Any]:
        content = {
            "row": self.row.number,
            "photo": shown(self.row.photo.as_posix()),
            "output": shown(self.row.output.as_posix()),
            "status": self.status,
        }
        if self.status == "failed":
            return content | {"reason": self.reason}
        told = {"faces": self.faces, "left_alone": self.left_alone, "lost": self.lost}
        return content | {"seconds": self.seconds, **told}


@dataclass(frozen=True)
class BatchReport:
    """Result of a batch.

    Attributes:
        output: the folder of results, with the journal in it.
        results: one per row, in the order of the rows.
        seconds: wall time, loading of models included.
        workers: number of editing processes; 0 if nothing was left to do, None: all of a cluster.
    """

    output: Path
    results: list[RowResult]
    seconds: float
    workers: int | None

    def of_status(self, status: str) -> list[RowResult]:
        return [result for result in self.results if result.status == status]

    def to_json(self) -> dict[str, Any]:
        counts = {status: len(self.of_status(status)) for status in ("done", "skipped", "failed")}
        return {
            "output": shown(self.output),
            **counts,
            "warnings": sum(len(result.warnings) for result in self.results),
            "seconds": round(self.seconds, 3),
            "workers": self.workers,
            "rows": [result.to_json() for result in self.results],
        }


class BatchOptions(TypedDict, total=False):
    """Keyword arguments of `edit_folder`, `edit_photographs` and `edit_manifest`."""

    model: str
    device: str | None
    dtype: str | None
    backend: str
    optimize: bool
    mark: bool
    strip_private: bool
    format: str | None
    workers: int | None
    engine: str
    address: str | None
    force: bool
    progress: bool
    say: Callable[[str], None] | None


def edit_folder(
    folder: str | Path, output: str | Path, request: EditRequest, **options: Unpack[BatchOptions]
) -> BatchReport:
    """Applies one request to every photograph in a folder and its sub-folders.

        edit_folder("photos", "edited", EditRequest(add={"AU12": 3}))

    Results have the photographs' names below `output`. A repeated run skips finished edits: the
    output exists, and photograph, request, references and model are unchanged. One failed photograph stops no
    other.

    Args:
        output: created if missing; files from other sources in it are not overwritten.
        request: the request for each photograph.
        model, device, dtype, backend: see `ExpressionEditor.from_pretrained`; "mini" by default.
        optimize: find this machine's fastest settings first, see `ExpressionEditor.optimize`.
        mark, strip_private: of the results, see `ExpressionEditor.from_pretrained`.
        format: "png", "jpg", "webp" or "tif"; default: the photograph's own, PNG if that cannot be written.
        workers: processes, each with its own model (default: 1); above 1, the calling script needs `if
            __name__ == "__main__":`. None: a sensible number for this machine, or all of a cluster.
        engine: "local": processes of this machine, or "ray": Ray Data, on the cores of this machine or the
            cluster at `address` (HOST:PORT, or "auto"), whose nodes see both folders under the same paths;
            every worker has a GPU of its own where there are any, unless `device` is "cpu".
        force: repeat finished edits, and replace files from other sources.
        progress: show a bar with the time left on standard error.
        say: called when the model begins to load, which takes a while.

    Raises:
        MagicEditError: where the whole batch cannot run; errors of single rows are in the report.
    """

    def rows(settings: EditorSettings, format: str | None) -> list[Row]:
        request.check(ModelFolder.find(settings.model).editable)
        return rows_of_folder(settings.folder, settings.output, request, format)

    return _run(rows, Path(folder), Path(output), **options)


def edit_photographs(
    photos: Sequence[str | Path], output: str | Path, request: EditRequest, **options: Unpack[BatchOptions]
) -> BatchReport:
    """Applies one request to some photographs, whose results have their names in the folder `output`.

    A photograph that does not exist fails as one that cannot be read: it stops no other. Everything else as
    `edit_folder`.

    Raises:
        MagicEditError: also where two photographs have one name, or one is in `output`.
    """
    if isinstance(photos, str | Path):
        raise MagicEditError(f"photos must be a list of photographs, got {quoted(photos)}")
    try:
        folder = Path(os.path.commonpath([os.path.dirname(os.path.abspath(photo)) for photo in photos]))
    except ValueError as error:  # none, or on several drives of Windows
        raise MagicEditError(
            f"the photographs have no folder in common ({error}); edit them one by one"
        ) from error

    def rows(settings: EditorSettings, format: str | None) -> list[Row]:
        request.check(ModelFolder.find(settings.model).editable)
        return rows_of_photographs(photos, folder, settings.output, request, format)

    return _run(rows, folder, Path(output), **options)


def edit_manifest(
    folder: str | Path,
    manifest: str | Path,
    output: str | Path,
    request: EditRequest | None = None,
    **options: Unpack[BatchOptions],
) -> BatchReport:
    """Edits photographs of a folder by a CSV file, one edit per row; docs/batch.md lists its columns.

    Args:
        request: defaults of empty cells; default: an empty request.

    Everything else as `edit_folder`.
    """

    def rows(settings: EditorSettings, format: str | None) -> list[Row]:
        names = ModelFolder.find(settings.model).editable
        asked = request or EditRequest()
        return rows_of_manifest(Path(manifest), settings.output, asked, format, names, settings.folder)

    return _run(rows, Path(folder), Path(output), **options)


def _run(
    rows_of: Callable[[EditorSettings, str | None], list[Row]],
    folder: Path,
    output: Path,
    *,
    format: str | None = None,
    workers: int | None = 1,
    engine: str = "local",
    address: str | None = None,
    force: bool = False,
    progress: bool = False,
    say: Callable[[str], None] | None = None,
    **loaded: Any,
) -> BatchReport:
    """Runs a batch for both functions. loaded: fields of `EditorSettings` other than the folders."""
    from tqdm import tqdm

    started = time.perf_counter()
    # 1. The rows, and finished edits among them
    if workers is not None and workers < 1:
        raise MagicEditError(f"the number of workers must be at least 1, got {workers}")
    if format is not None and format not in FORMATS:
        raise OutputError(f"format must be one of {', '.join(FORMATS)}, got {format!r}")
    check_engine(engine, address)
    check_folders(folder, output)
    settings = EditorSettings(folder, output, **loaded)
    rows = rows_of(settings, format)
    for teeth in {row.request.teeth for row in rows}:
        MouthSettings(teeth)
    references = _digests_of_references(rows[0].request.references, settings.backend) if rows else []
    try:
        settings.output.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise OutputError(f"the folder {shown(output)} cannot be made ({error}); choose another") from error
    possible = [row for row in rows if row.problem is None]
    check_targets(possible, settings.folder, settings.output)
    model = {"name": settings.model, "digest": ModelFolder.find(settings.model).fingerprint}
    model |= {name: getattr(settings, name) for name in ("dtype", "backend", "mark", "strip_private")}
    model |= {"references": references} if references else {}
    with Ledger(settings.output / JOURNAL, _key) as journal:
        sweep(settings.output)
        if not force:
            _check_strangers(possible, settings, journal)
            _check_counting(possible, journal)
        # By number, which is unique to each row
        results = {row.number: RowResult(row, "failed", reason=row.problem) for row in rows if row.problem}
        for row in () if force else possible:
            if (entry := _kept(row, settings, model, journal)) is not None:
                results[row.number] = _told(row, "skipped", entry)
        waiting = [row for row in rows if row.number not in results]
        if workers is None and address is None:
            found = ModelFolder.find(settings.model)
            by_graphs = runs_as_graphs(found, settings.device, settings.dtype)
            workers = sensible_workers(len(waiting), "cpu" if by_graphs else settings.device)
        pool = Pool(engine, None if workers is None else min(workers, len(waiting)), address)

        # 2. The edits
        def begin(row: Row) -> None:
            journal.add(_about(row, settings) | {"state": "begun"})

        if say is not None and waiting:
            say(f"loading {settings.model}")
        bar = tqdm(
            total=len(rows), initial=len(results), unit="photo", disable=not progress, **_size_of_screen()
        )
        with bar:
            for row, outcome in edit_rows(settings, waiting, pool, begin) if waiting else ():
                if outcome["state"] == "failed":  # an existing output is from an earlier run, or replaceable
                    outcome = outcome | {"left": os.path.exists(settings.output / row.output)}
                asked = {"request": _asked(row), "model": model}
                journal.add(_about(row, settings) | outcome | asked)
                if outcome["state"] == "done":
                    results[row.number] = _told(row, "done", outcome)
                else:
                    name = shown(row.output)
                    left = f"; {name} there is that of an earlier run" if outcome["left"] else ""
                    results[row.number] = RowResult(row, "failed", reason=outcome["reason"] + left)
                bar.update()
    ordered = [results[row.number] for row in rows]
    return BatchReport(settings.output, ordered, time.perf_counter() - started, pool.workers)


def _digests_of_references(references: Sequence[Any], backend: str) -> list[str]:
    """Returns digests of the mouths in references, which all rows share.

    Raises MagicEditError where they cannot be used, because every row would fail for it.
    """
    if not references:
        return []
    from magicedit.editor.finding import FaceFinder, reference_mouths
    from magicedit.faces import load_backend

    mouths = reference_mouths(FaceFinder(load_backend(backend)), references, _REFERENCE_SIZE)
    return MouthSettings(references=mouths).to_json()["references"]


def _asked(row: Row) -> dict[str, Any]:
    """Returns what a row requests, JSON-ready, without references, which the journal has by their digests."""
    return {name: value for name, value in row.request.to_json().items() if name != "references"}


def _size_of_screen() -> dict[str, Any]:
    """Returns a size for tqdm, which shows nothing on terminals that report no size."""
    try:
        known = all(os.get_terminal_size(sys.stderr.fileno()))
    except (OSError, ValueError, AttributeError):  # no terminal, or no stderr
        known = True
    return {"dynamic_ncols": True} if known else {"ncols": 80, "nrows": 24}


def _key(entry: dict[str, Any]) -> str:
    """The output that a line of the journal is about; ValueError or TypeError where we did not write it."""
    fits = isinstance(entry["output"], str) and isinstance(entry["state"], str)
    if entry["state"] == "done":
        faces = entry["faces"]
        fits &= isinstance(entry["seconds"], int | float) and isinstance(entry.get("left_alone", 0), int)
        lost = entry.get("lost", [])
        fits &= isinstance(lost, list) and all(isinstance(text, str) for text in lost)
        fits &= isinstance(faces, list) and all(
            isinstance(face, dict) and isinstance(face["warnings"], list) for face in faces
        )
    if not fits:
        raise ValueError("its values are not those of an edit")
    return entry["output"]


def _about(row: Row, settings: EditorSettings) -> dict[str, str]:
    """Returns the output and the photograph that a line of the journal describes."""
    folder = os.path.relpath(os.path.realpath(settings.folder), os.path.realpath(settings.output))
    return {"output": row.output.as_posix(), "photo": row.photo.as_posix(), "folder": folder}


def _told(row: Row, status: str, entry: Mapping[str, Any]) -> RowResult:
    """Returns the result of a row from its outcome or journal entry; earlier versions wrote fewer fields."""
    told = {name: entry[name] for name in ("left_alone", "lost") if name in entry}
    return RowResult(row, status, None, entry["seconds"], entry["faces"], **told)


def _kept(
    row: Row, settings: EditorSettings, model: dict[str, Any], journal: Ledger
) -> dict[str, Any] | None:
    """Returns the journal entry of a row that is already finished."""
    entry = journal.entries.get(row.output.as_posix(), {})
    earlier = entry.get("model")
    if model["digest"] is not None and isinstance(earlier, dict):  # the same files may have several names
        earlier = earlier | {"name": model["name"]}
    try:
        there = os.path.getsize(settings.output / row.output) > 0
    except OSError:
        there = False
    if not there or entry.get("state") != "done":
        return None
    if entry.get("request") != _asked(row) or earlier != model:
        return None
    return entry if _same_photo(entry, row, settings) else None


def _same_photo(entry: dict[str, Any], row: Row, settings: EditorSettings) -> bool:
    """Whether a journal entry's photograph equals the row's photograph to the byte."""
    try:
        return entry.get("photo_sha256") == sha256_of(settings.folder / row.photo)
    except OSError:
        return False  # its edit will fail with the reason


def _check_counting(rows: Sequence[Row], journal: Ledger) -> None:
    """Raises OutputError where an earlier version, for which faces were counted from 0 everywhere, edited
    another face by the same number."""
    for row in rows:
        entry = journal.entries.get(row.output.as_posix(), {})
        old = entry.get("state") == "done" and not any("number" in face for face in entry["faces"])
        if old and isinstance(row.request.face, int):
            asked = _asked(row)
            if entry.get("request") == asked | {"face": asked["face"] + 1}:
                raise OutputError(
                    f"{shown(row.output)} is of a version that counted faces from 0, and its face "
                    f"{row.request.face + 1} is the next smaller one; to resume, add 1 to the numbers of "
                    "faces, or edit again with --overwrite (force=True)"
                )


def _check_strangers(rows: Sequence[Row], settings: EditorSettings, journal: Ledger) -> None:
    """Raises OutputError where a file would be overwritten that no run of ours made of that photograph."""
    strangers = []
    for row in rows:
        if not os.path.exists(settings.output / row.output):
            continue
        entry = journal.entries.get(row.output.as_posix(), {})
        state = entry.get("state")
        made = state in ("begun", "done") or (state == "failed" and entry.get("left"))
        named = all(entry.get(key, value) == value for key, value in _about(row, settings).items())
        if not (made and (named or _same_photo(entry, row, settings))):
            strangers.append(row.output)
    if strangers:
        raise OutputError(
            f"{len(strangers)} of the results exist in {shown(settings.output)}, but no run in its {JOURNAL} "
            f"made them, or they show other photographs, such as {shown(strangers[0])}; choose another "
            "folder, move them away, or replace them with --overwrite (force=True)"
        )
