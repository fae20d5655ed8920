"""Measures photographs: turns a file into a row of the dataset without labels."""

import os
import platform
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from magicedit import cluster
from magicedit.data.crops import face_row
from magicedit.data.frames import measured_frames
from magicedit.data.shards import Place, Row, write_rows
from magicedit.data.sources import Source
from magicedit.data.videos import VideoFile
from magicedit.errors import DatasetError, ImageError
from magicedit.faces import FaceBackend, load_backend
from magicedit.files import shown
from magicedit.imaging import open_photo

_WORK_ROWS = 64  # photographs between two writes to the work folder
_AHEAD = 4  # photographs of a thread that are opened before their rows are taken

Measured = list[Row] | str  # the rows of a file, or the reason of its rejection


@dataclass(frozen=True)
class Engine:
    """What measures. name: "local", threads of this process, or "ray". jobs: photographs at a time; None: one
    of threads, and with Ray as many as there are cores. address: of a Ray cluster; None: this machine."""

    name: str = "local"
    jobs: int | None = None
    address: str | None = None


def measure_all(
    pending: Sequence[Source] | Sequence[VideoFile],
    places: dict[str, Place],
    backend: str | FaceBackend,
    settings: Mapping[str, Any],
    work: Path,
    engine: Engine,
    progress: bool,
) -> dict[str, str]:
    """Measures into files under `work` and adds them to `places`; returns {sha256: reason of rejection}.

    The rows are the same whatever the engine, in another order.
    """
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
        outcomes = _on_ray if engine.name == "ray" else _in_threads
        outcomes = stack.enter_context(closing(outcomes(pending, backend, settings, engine)))
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


def _in_threads(
    pending: Sequence[Source] | Sequence[VideoFile],
    backend: str | FaceBackend,
    settings: Mapping[str, Any],
    engine: Engine,
) -> Iterator[tuple[Source | VideoFile, Measured]]:
    """Yields sources with their rows, in order."""
    own = threading.local()  # backends are not safe to share between threads

    def measure(source: Source | VideoFile) -> tuple[Source | VideoFile, Measured]:
        if not hasattr(own, "backend"):
            own.backend = load_backend(backend) if isinstance(backend, str) else backend
        return source, measured(source, own.backend, settings)

    jobs = engine.jobs or 1
    if jobs == 1:
        yield from map(measure, pending)
        return
    pool, at_work = ThreadPoolExecutor(jobs), deque()
    try:
        for source in pending:
            at_work.append(pool.submit(measure, source))
            if len(at_work) == _AHEAD * jobs:
                yield at_work.popleft().result()
        while at_work:
            yield at_work.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _on_ray(
    pending: Sequence[Source] | Sequence[VideoFile],
    backend: str | FaceBackend,
    settings: Mapping[str, Any],
    engine: Engine,
) -> Iterator[tuple[Source | VideoFile, Measured]]:
    """Yields sources with their rows, as they are done."""
    here = [replace(source, folder=source.folder.absolute()) for source in pending]
    start = partial(_measurer, backend, settings, here[0].path)
    return cluster.each(start, here, engine.jobs, lambda source, reason: reason, address=engine.address)


def _measurer(
    backend: str | FaceBackend, settings: Mapping[str, Any], example: Path
) -> Callable[[Source | VideoFile], Measured]:
    """Makes what measures, once in each process. DatasetError where it cannot see the `example`."""
    if not os.path.lexists(example):
        raise DatasetError(
            f"{shown(example)} is not there on the node {platform.node()} of the cluster; put the "
            "photographs on a disk that all nodes see under the same path"
        )
    loaded = load_backend(backend) if isinstance(backend, str) else backend
    return lambda source: measured(source, loaded, settings)


def measured(source: Source | VideoFile, backend: FaceBackend, settings: Mapping[str, Any]) -> Measured:
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
