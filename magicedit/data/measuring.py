"""Measures photographs: turns a file into a row of the dataset without labels."""

import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from magicedit.data.crops import face_row
from magicedit.data.frames import measured_frames
from magicedit.data.shards import Place, Row, write_rows
from magicedit.data.sources import Source
from magicedit.data.videos import VideoFile
from magicedit.errors import ImageError
from magicedit.faces import FaceBackend, load_backend
from magicedit.files import shown
from magicedit.imaging import open_photo

_WORK_ROWS = 64  # photographs between two writes to the work folder


def measure_all(
    pending: list[Source] | list[VideoFile],
    places: dict[str, Place],
    backend: str | FaceBackend,
    settings: Mapping[str, Any],
    work: Path,
    jobs: int,
    progress: bool,
) -> dict[str, str]:
    """Measures into files under `work` and adds them to `places`; returns {sha256: reason of rejection}."""
    own = threading.local()  # backends are not safe to share between threads

    def measure(source: Source | VideoFile) -> tuple[Source | VideoFile, list[Row] | str]:
        if not hasattr(own, "backend"):
            own.backend = load_backend(backend) if isinstance(backend, str) else backend
        return source, measured(source, own.backend, settings)

    failures: dict[str, str] = {}
    rows: list[Row] = []
    if not pending:
        return failures
    number = max((int(path.stem) + 1 for path in work.glob("*.parquet") if path.stem.isdecimal()), default=0)

    def flush() -> None:
        nonlocal number
        if rows:
            path = work / f"{number:06}.parquet"
            write_rows(path, [rows], settings)
            places.update({row["sha256"]: Place(path, index) for index, row in enumerate(rows)})
            number += 1
            rows.clear()

    with ExitStack() as stack:
        stack.callback(flush)  # measurements are kept however the loop stops, Ctrl-C included
        pool = stack.enter_context(ThreadPoolExecutor(jobs))
        outcomes: Iterable = pool.map(measure, pending) if jobs > 1 else map(measure, pending)
        for source, outcome in tqdm(
            outcomes, total=len(pending), desc="measuring", unit="photo", disable=None if progress else True
        ):
            if isinstance(outcome, str):
                failures[source.sha256] = outcome
            else:
                rows += outcome  # those of a video are never divided between two files
            if len(rows) >= _WORK_ROWS:
                flush()
    return failures


def measured(
    source: Source | VideoFile, backend: FaceBackend, settings: Mapping[str, Any]
) -> list[Row] | str:
    """Returns the rows of a file without labels, or the reason of its rejection."""
    if isinstance(source, VideoFile):
        return measured_frames(source, backend, settings)
    try:
        photo = open_photo(source.path)
        faces = backend.detect(photo.pixels)
    except ImageError as error:  # the report names no paths of this machine
        return (
            str(error).replace(shown(source.path), shown(source.name)).replace(str(source.path), source.name)
        )
    if not faces:
        return "no face found"
    notes = [f"{len(faces)} faces, took the largest"] if len(faces) > 1 else []
    row = face_row(
        photo.pixels,
        faces[0],
        settings,
        source=source.name,
        identity=source.identity,
        sha256=source.sha256,
        notes=notes,
    )
    return [row]
