"""Measures photographs: turns a file into a row of the dataset without labels."""

import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from magicedit.data.shards import MEASURED, Place, Row, encoded, encoded_region, write_rows
from magicedit.data.sources import Source
from magicedit.errors import ImageError
from magicedit.faces import FaceBackend, align, crop_face, load_backend
from magicedit.files import shown
from magicedit.imaging import open_photo

MAX_YAW, MAX_PITCH = 40.0, 30.0  # degrees; beyond, half of the face is hidden and its landmarks unreliable
_WORK_ROWS = 64  # photographs between two writes to the work folder


def measure_all(
    pending: list[Source],
    places: dict[str, Place],
    backend: str | FaceBackend,
    settings: Mapping[str, Any],
    work: Path,
    jobs: int,
    progress: bool,
) -> dict[str, str]:
    """Measures into files under `work` and adds them to `places`; returns {sha256: reason of rejection}."""
    own = threading.local()  # backends are not safe to share between threads

    def measure(source: Source) -> tuple[Source, Row | str]:
        if not hasattr(own, "backend"):
            own.backend = load_backend(backend) if isinstance(backend, str) else backend
        return source, _measure(source, own.backend, settings)

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
                rows.append(outcome)
            if len(rows) == _WORK_ROWS:
                flush()
    return failures


def _measure(source: Source, backend: FaceBackend, settings: Mapping[str, Any]) -> Row | str:
    """Returns the row of a photograph without labels, or the reason of its rejection."""
    try:
        photo = open_photo(source.path)
        faces = backend.detect(photo.pixels)
    except ImageError as error:  # the report names no paths of this machine
        return (
            str(error).replace(shown(source.path), shown(source.name)).replace(str(source.path), source.name)
        )
    if not faces:
        return "no face found"
    face, size, notes = faces[0], settings["size"], []
    if len(faces) > 1:
        notes.append(f"{len(faces)} faces, took the largest")
    if face.pose and (abs(face.pose.yaw) > MAX_YAW or abs(face.pose.pitch) > MAX_PITCH):
        notes.append(f"turned far away: yaw {face.pose.yaw:.0f}, pitch {face.pose.pitch:.0f} degrees")
    alignment = align(face, size)
    if alignment.scale > 2:
        notes.append(f"small face, enlarged {alignment.scale:.1f} times")
    landmarks = alignment.apply(face.landmarks)
    return {
        "image": encoded(crop_face(photo.pixels, alignment), settings["image_format"]),
        "mask": encoded_region(landmarks, size, face.scheme),
        "identity": source.identity,
        "source": source.name,
        "action_units": [],  # filled from the labels when the dataset is written
        "measured": [face.action_units.get(name, np.nan) for name in MEASURED] if face.action_units else [],
        "landmarks": np.asarray(landmarks, np.float32).reshape(-1).tolist(),
        "scheme": face.scheme,
        "pose": [face.pose.yaw, face.pose.pitch, face.pose.roll] if face.pose else [],
        "box": list(face.box),
        "notes": notes,
        "sha256": source.sha256,
    }
