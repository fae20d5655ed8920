"""From a folder of photographs to a dataset: measured, aligned, masked, in Parquet shards.

    FOLDER/alice/1.jpg, FOLDER/alice/2.jpg, FOLDER/bob/...    one sub-folder per identity
    FOLDER/carol.jpg                                          a loose photograph is an identity of its own

becomes a folder that `datasets.load_dataset` reads as it is:

    DATASET/data/train-00000.parquet, validation-00000.parquet    one row per photograph, see `features`
    DATASET/magicedit.json    what the columns mean: action-unit order, labeller, crop size, counts
    DATASET/report.json       what became of every source: rejects with reasons, notes
    DATASET/README.md         dataset card

Running it again with the same photographs and settings writes nothing; with some photographs new or changed,
only these are measured. A run that was interrupted goes on where it stopped.
"""

import dataclasses
import functools
import hashlib
import io
import itertools
import json
import shutil
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from tqdm.auto import tqdm

from magicedit.action_units import FACS, NAMES
from magicedit.data.augment import muscle_variants
from magicedit.data.description import DESCRIPTION_FILE, FORMAT_VERSION
from magicedit.data.labels import PHOTO_SUFFIXES, match_labels, read_label_file
from magicedit.errors import DatasetError, ImageError
from magicedit.faces import FaceBackend, align, crop_face, face_region, load_backend
from magicedit.files import sha256_of, walk
from magicedit.imaging import open_photo

if TYPE_CHECKING:
    import datasets

REPORT_FILE, CARD_FILE = "report.json", "README.md"
MEASURED = tuple(FACS)
SPLITS = ("train", "validation")
MAX_YAW, MAX_PITCH = 40.0, 30.0  # degrees; beyond, half of the face is hidden and its landmarks are guesses
JPEG_QUALITY = 95
_METADATA_KEY = b"magicedit"  # of the Parquet schema: the settings that its rows were measured with
_WORK = ".work"  # what an interrupted run has measured
_FRESH, _REPLACED = "data", "replaced"  # there: shards being written, and those that they replace
_WORK_ROWS = 64  # photographs between two writes there
DEFAULT_VARIANTS = 4
_VARIANTS_NOTE = """- Beside each training photograph stand {count} that a model of the face's muscles warped
  (`source` ends in `#muscles-N`, `notes` say by what): their `action_units` are those of the photograph
  plus what was commanded, and nothing was measured on them.
"""
_SHARD_BYTES = 256 * 2**20
_ROW_GROUP = 16  # rows that random access has to read at once: about one megabyte


@dataclass(frozen=True)
class PrepareReport:
    """What became of a folder of photographs.

    photographs, identities, pairs: counts by split; a pair is two photographs of one identity, one way round.
    rejected: {"source", "reason", ...} of every photograph left out; notes: {"source", "note"} of kept ones.
    ignored: files in the folder that are no photographs. variants: warped ones written beside each training
    photograph, which `pairs` counts and `photographs` does not. measured, reused: photographs that went
    through the face backend in this run, and that an earlier run had measured. unchanged: nothing had to be
    written.
    """

    output: str
    photographs: dict[str, int]
    identities: dict[str, int]
    pairs: dict[str, int]
    rejected: list[dict[str, str]] = field(default_factory=list)
    notes: list[dict[str, str]] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    variants: int = 0
    measured: int = 0
    reused: int = 0
    unchanged: bool = False
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        lines = [f"{self.output}: " + ("nothing to do, already up to date" if self.unchanged else "written")]
        for split in self.photographs:
            lines.append(
                f"  {split}: {self.photographs[split]} photographs of {self.identities[split]} identities, "
                f"{self.pairs[split]} pairs"
            )
        if self.variants:
            lines.append(f"  beside each training photograph {self.variants} that the muscles warp")
        if not self.unchanged:
            lines.append(f"  {self.measured} measured, {self.reused} reused, {self.seconds:.1f} s")
        if self.rejected:
            lines.append(f"  {len(self.rejected)} rejected, see {REPORT_FILE}:")
            lines += [f"    {entry['source']}: {entry['reason']}" for entry in self.rejected[:5]]
        if not sum(self.pairs.values()):
            lines.append("  nobody has two photographs: train with warped pairs only")
        return "\n".join(lines)


@dataclass(frozen=True)
class _Source:
    name: str  # path relative to the folder, with forward slashes
    path: Path
    identity: str
    sha256: str


@dataclass(frozen=True)
class _Place:
    """Where a measured photograph's row lies."""

    file: Path
    row: int


@dataclass(frozen=True)
class _Labels:
    """The labels to write: from files, by source; or `by_source` None for the face backend's own."""

    tool: str
    scale: float | None
    by_source: dict[str, dict[str, float]] | None


def features() -> "datasets.Features":
    """Columns of the dataset.

    image: the aligned crop (size, size) RGB. mask: (size, size) grey, 255 in the face region.
    action_units: intensities 0..5 by the labeller, in the order of `action_units` in magicedit.json;
    measured: what the face backend itself measured, in the order of `measured` there (empty where it
    measures none).
    landmarks: x0, y0, x1, y1, ... in pixels of the crop; scheme: what their numbers mean.
    box: x0, y0, x1, y1 in pixels of the photograph. pose: yaw, pitch, roll in degrees (empty where unknown).
    sha256: of the photograph's file.
    """
    from datasets import Features, List, Value  # a slow import that nothing but writing needs
    from datasets import Image as ImageFeature

    floats = List(Value("float32"))
    return Features(
        {
            "image": ImageFeature(),
            "mask": ImageFeature(),
            "identity": Value("string"),
            "source": Value("string"),
            "action_units": floats,
            "measured": floats,
            "landmarks": floats,
            "scheme": Value("string"),
            "pose": floats,
            "box": floats,
            "notes": List(Value("string")),
            "sha256": Value("string"),
        }
    )


def prepare(
    folder: str | Path,
    output: str | Path,
    *,
    size: int = 512,
    labels: str | Path | None = None,
    labels_scale: float | None = None,
    backend: str | FaceBackend = "mediapipe",
    validation: Iterable[str] = (),
    validation_fraction: float = 0.0,
    image_format: str = "jpeg",
    augment: str | None = None,
    variants: int | None = None,
    jobs: int = 1,
    force: bool = False,
    progress: bool = True,
) -> PrepareReport:
    """Measure, align and mask the photographs of `folder` and write the dataset `output`.

    Args:
        size: side of the aligned crops in pixels, a multiple of 8.
        labels: CSV file or folder of CSV files of OpenFace, py-feat or LibreFace, in place of the face
            backend's own action units; a photograph without a label is rejected.
        labels_scale: the number that the label file writes for full intensity, where its header tells none.
        backend: name for `magicedit.faces.load_backend`, or a backend.
        validation: identities (folder names; file names of loose photographs) of the validation split.
        validation_fraction: instead of `validation`, the share of identities to validate on. Who is decided
            by a hash of the identity's name, so that adding photographs moves nobody between splits; with few
            identities the share is met roughly.
        image_format: "jpeg" (quality 95, full chroma) or "png" (lossless, about five times the size).
        augment: "muscles": beside each photograph of the training split write `variants` (4) that are warped
            by a model of the face's muscles, labelled by what was commanded (see `magicedit.warping`), so
            that a single photograph makes pairs. Needs MediaPipe's landmarks.
        jobs: photographs measured at the same time; more than one needs `backend` by name.
        force: measure again what an earlier run has measured.

    Raises: DatasetError when there is nothing to prepare, when nothing is usable, for contradicting
    settings, or when `output` holds something else than a dataset of ours.
    """
    started = time.perf_counter()
    folder, output, validation = Path(folder), Path(output), sorted(set(validation))
    _check_settings(folder, output, size, labels, labels_scale, validation, validation_fraction, image_format)
    if augment not in (None, "muscles"):
        raise DatasetError(f'augment must be "muscles" or nothing, got {augment!r}')
    if variants is not None and not augment:
        raise DatasetError("variants are written with an augmentation only: --augment muscles")
    if variants is not None and variants < 1:
        raise DatasetError(f"variants must be at least 1, got {variants}")
    if augment and isinstance(backend, str) and backend != "mediapipe":
        raise DatasetError(f"the muscles' warp needs MediaPipe's 478 landmarks, not those of {backend}")
    variants = (DEFAULT_VARIANTS if variants is None else variants) if augment else 0
    if jobs < 1:
        raise DatasetError(f"jobs must be at least 1, got {jobs}")
    if jobs > 1 and not isinstance(backend, str):
        raise DatasetError("jobs > 1 needs the face backend by name, one for each job; got an instance")

    # 1. Which photographs, of whom, in which split, with which labels.
    sources, ignored, rejected = _find_sources(folder, output)
    splits = _split({source.identity for source in sources}, validation, validation_fraction)
    chosen = _read_labels(labels, labels_scale, sources, backend)
    if chosen.by_source is not None:
        unlabelled = [source for source in sources if source.name not in chosen.by_source]
        rejected += [{"source": s.name, "reason": f"no label in {Path(labels).name}"} for s in unlabelled]
        sources = [source for source in sources if source.name in chosen.by_source]

    # 2. Is all of it there already?
    settings = {
        "format": FORMAT_VERSION,
        "size": size,
        "backend": backend if isinstance(backend, str) else backend.name,
        "image_format": image_format,
    }
    inputs = [
        settings,
        dataclasses.asdict(chosen),
        [[source.name, source.sha256, splits[source.identity]] for source in sources],
        [rejected, ignored],
        *([["muscles", variants]] if variants else []),
    ]
    fingerprint = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()
    if not force and (before := _up_to_date(output, fingerprint)):
        return PrepareReport(
            output=str(output),
            **before,
            reused=len(sources),
            unchanged=True,
            seconds=time.perf_counter() - started,
        )

    # 3. Measure what no earlier run has measured with these settings.
    output.mkdir(parents=True, exist_ok=True)
    if force:
        shutil.rmtree(output / _WORK, ignore_errors=True)
    places = {} if force else _measured_before(output, settings)
    failures = {} if force else _failed_before(output, settings)
    pending = [source for source in sources if source.sha256 not in places and source.sha256 not in failures]
    failures |= _measure_all(pending, places, backend, settings, output / _WORK, jobs, progress)
    kept = [source for source in sources if source.sha256 in places]
    rejected += [
        {"source": s.name, "reason": failures[s.sha256], "sha256": s.sha256}
        for s in sources
        if s.sha256 in failures
    ]
    rejected.sort(key=lambda entry: entry["source"])
    if not kept:
        shutil.rmtree(output / _WORK, ignore_errors=True)
        first = "; ".join(f"{entry['source']}: {entry['reason']}" for entry in rejected[:3])
        raise DatasetError(f"none of the {len(rejected)} photographs in {folder} can be used ({first})")

    # 4. Write.
    report = _write_dataset(
        output, kept, places, splits, chosen, settings, fingerprint, rejected, ignored, variants
    )
    return PrepareReport(
        output=str(output),
        **report,
        measured=len(pending),
        reused=len(sources) - len(pending),
        seconds=time.perf_counter() - started,
    )


# --- 1. What there is to do ---
def _check_settings(
    folder: Path,
    output: Path,
    size: int,
    labels: str | Path | None,
    labels_scale: float | None,
    validation: list[str],
    validation_fraction: float,
    image_format: str,
) -> None:
    if not folder.is_dir():
        raise DatasetError(f"expected a folder of photographs, one sub-folder per identity, got {folder}")
    if size < 32 or size % 8:
        raise DatasetError(f"size must be a multiple of 8 px and at least 32, got {size}")
    if image_format not in ("jpeg", "png"):
        raise DatasetError(f'image_format must be "jpeg" or "png", got {image_format!r}')
    if not 0 <= validation_fraction < 1:
        raise DatasetError(f"validation_fraction must be from 0 to below 1, got {validation_fraction}")
    if validation and validation_fraction:
        raise DatasetError("give either validation identities or validation_fraction, not both")
    if labels_scale is not None and labels is None:
        raise DatasetError("--labels-scale is about the file of --labels, which is missing")
    if output.resolve() == folder.resolve():
        raise DatasetError(
            f"the dataset cannot go into the folder of its photographs, {output}; choose another"
        )
    if output.exists():
        ours = (output / DESCRIPTION_FILE).exists() or (output / _WORK).exists()
        if not output.is_dir() or (any(output.iterdir()) and not ours):
            raise DatasetError(
                f"{output} exists and is no dataset of magicedit; choose another output folder"
            )


def _find_sources(folder: Path, output: Path) -> tuple[list[_Source], list[str], list[dict[str, str]]]:
    """Photographs in order of their names, other files, and copies of a photograph that is already there."""
    files = walk(folder, lambda sub: sub.resolve() == output.resolve())
    sources, ignored, rejected, first_of = [], [], [], {}
    for path in sorted(files, key=lambda path: path.relative_to(folder).as_posix()):
        relative = path.relative_to(folder)
        if path.suffix.lower() not in PHOTO_SUFFIXES:
            ignored.append(relative.as_posix())
            continue
        try:
            sha256 = sha256_of(path)
        except OSError as error:
            rejected.append({"source": relative.as_posix(), "reason": f"cannot be read: {error.strerror}"})
            continue
        source = _Source(relative.as_posix(), path, relative.parts[0], sha256)
        # A pair of copies teaches nothing, and under two identities it could cross the split
        if sha256 in first_of:
            rejected.append({"source": source.name, "reason": f"same file as {first_of[sha256]}"})
            continue
        first_of[sha256] = source.name
        sources.append(source)
    if not sources:
        raise DatasetError(
            f"no photographs in {folder}; expected FOLDER/identity/photograph with one of the endings "
            f"{' '.join(PHOTO_SUFFIXES)}"
        )
    return sources, ignored, rejected


def _split(identities: set[str], validation: list[str], fraction: float) -> dict[str, str]:
    """Identity to split."""
    unknown = [identity for identity in validation if identity not in identities]
    if unknown:
        known = ", ".join(sorted(identities)[:5])
        raise DatasetError(f"no such identities to validate on: {', '.join(unknown)}; there are {known}...")

    def chosen(identity: str) -> bool:
        if not fraction:
            return identity in validation
        draw = int.from_bytes(hashlib.sha256(identity.encode()).digest()[:8], "big") / 2**64
        return draw < fraction

    return {identity: "validation" if chosen(identity) else "train" for identity in identities}


def _read_labels(
    labels: str | Path | None, scale: float | None, sources: list[_Source], backend: str | FaceBackend
) -> _Labels:
    if labels is None:
        return _Labels(backend if isinstance(backend, str) else backend.name, None, None)
    found = read_label_file(labels, scale)
    matched = match_labels(found.intensities, [source.name for source in sources])
    if not matched:
        names = ", ".join(list(found.intensities)[:3])
        raise DatasetError(
            f"no label in {labels} is of a photograph in the folder; its names are {names}..., "
            f"the photographs' {', '.join(source.name for source in sources[:3])}..."
        )
    missing = [name for name in NAMES if any(name not in aus for aus in found.intensities.values())]
    if missing:
        raise DatasetError(f"{labels} lacks {', '.join(missing)}; needed are {', '.join(NAMES)}")
    by_source = {
        source: {name: found.intensities[label][name] for name in NAMES} for source, label in matched.items()
    }
    return _Labels(found.tool, found.scale, by_source)


# --- 3. Measuring ---
def _measure_all(
    pending: list[_Source],
    places: dict[str, _Place],
    backend: str | FaceBackend,
    settings: Mapping[str, Any],
    work: Path,
    jobs: int,
    progress: bool,
) -> dict[str, str]:
    """Measure into files under `work`, add them to `places`; returns {sha256: why it cannot be used}."""
    own = threading.local()  # backends are not safe to share between threads

    def measure(source: _Source) -> tuple[_Source, dict[str, Any] | str]:
        if not hasattr(own, "backend"):
            own.backend = load_backend(backend) if isinstance(backend, str) else backend
        return source, _measure(source, own.backend, settings)

    failures: dict[str, str] = {}
    rows: list[dict[str, Any]] = []
    if not pending:
        return failures
    work.mkdir(exist_ok=True)
    number = len(list(work.glob("*.parquet")))

    def flush() -> None:
        nonlocal number
        if rows:
            path = work / f"{number:06}.parquet"
            _write_parquet(path, [rows], settings)
            places.update({row["sha256"]: _Place(path, index) for index, row in enumerate(rows)})
            number += 1
            rows.clear()

    with ExitStack() as stack:
        stack.callback(flush)  # whatever stops the loop, Ctrl-C included, keeps what has been measured
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


def _measure(source: _Source, backend: FaceBackend, settings: Mapping[str, Any]) -> dict[str, Any] | str:
    """The row of a photograph, its labels still missing; or why it cannot be used."""
    try:
        photo = open_photo(source.path)
    except ImageError as error:
        return str(error).replace(str(source.path), source.name)  # the report tells nothing of this machine
    faces = backend.detect(photo.pixels)
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
    crop, region = crop_face(photo.pixels, alignment), face_region(landmarks, size, face.scheme)
    return {
        "image": {"bytes": _encode(crop, settings["image_format"]), "path": None},
        "mask": {"bytes": _encode(np.where(region, 255, 0).astype(np.uint8), "png"), "path": None},
        "identity": source.identity,
        "source": source.name,
        "action_units": [],  # comes with the labels, when the dataset is written
        "measured": [face.action_units.get(name, np.nan) for name in MEASURED] if face.action_units else [],
        "landmarks": np.asarray(landmarks, np.float32).reshape(-1).tolist(),
        "scheme": face.scheme,
        "pose": [face.pose.yaw, face.pose.pitch, face.pose.roll] if face.pose else [],
        "box": list(face.box),
        "notes": notes,
        "sha256": source.sha256,
    }


def _encode(pixels: np.ndarray, image_format: str) -> bytes:
    buffer = io.BytesIO()
    options = {"quality": JPEG_QUALITY, "subsampling": 0} if image_format == "jpeg" else {}
    Image.fromarray(pixels).save(buffer, image_format, **options)
    return buffer.getvalue()


def _measured_before(output: Path, settings: Mapping[str, Any]) -> dict[str, _Place]:
    """By SHA-256, the rows of earlier runs, finished or not, that were measured with these settings.

    Shards that an interrupted run was still writing repeat rows of other files, and are deleted before they
    are written again.
    """
    places, unfinished = {}, output / _WORK / _FRESH
    for path in sorted(path for path in output.rglob("*.parquet") if path.parent != unfinished):
        try:
            with pq.ParquetFile(path) as file:
                written_with = json.loads(file.schema_arrow.metadata.get(_METADATA_KEY, b"null"))
                if written_with == settings:
                    hashes = file.read(["sha256"]).column(0).to_pylist()
                    places.update({sha256: _Place(path, row) for row, sha256 in enumerate(hashes)})
        except (pa.ArrowInvalid, OSError):
            continue  # torn by an interruption: its photographs are measured again
    return places


def _failed_before(output: Path, settings: Mapping[str, Any]) -> dict[str, str]:
    """By SHA-256, why photographs could not be used in an earlier run with these settings."""
    description, report = _earlier(output)
    if description.get("settings") != settings:
        return {}
    return {entry["sha256"]: entry["reason"] for entry in report["rejected"] if "sha256" in entry}


# --- 4. Writing ---
def _write_dataset(
    output: Path,
    kept: list[_Source],
    places: Mapping[str, _Place],
    splits: Mapping[str, str],
    labels: _Labels,
    settings: Mapping[str, Any],
    fingerprint: str,
    rejected: list[dict[str, str]],
    ignored: list[str],
    variants: int,
) -> dict[str, Any]:
    """Write shards beside the old ones, swap them, then the other files, magicedit.json last.

    Returns what report.json says.
    """
    fresh, replaced, data = output / _WORK / _FRESH, output / _WORK / _REPLACED, output / "data"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    notes: list[dict[str, str]] = []
    schemes: set[str] = set()

    def rows(split: str) -> Iterator[dict[str, Any]]:
        group_of = functools.lru_cache(maxsize=1)(_row_group)  # the next row lies in the same, as a rule
        for source in kept:
            if splits[source.identity] != split:
                continue
            place = places[source.sha256]
            row = dict(group_of(place.file, place.row // _ROW_GROUP)[place.row % _ROW_GROUP])
            if labels.by_source is None and not row["measured"]:
                raise DatasetError(
                    f"the face backend {settings['backend']} measures no action units; "
                    "give --labels with a CSV of OpenFace, py-feat or LibreFace, or use the backend mediapipe"
                )
            measured = dict(zip(MEASURED, row["measured"], strict=False))  # empty where none are measured
            aus = measured if labels.by_source is None else labels.by_source[source.name]
            row |= {
                "identity": source.identity,
                "source": source.name,
                "action_units": [aus[name] for name in NAMES],
            }
            notes.extend({"source": source.name, "note": note} for note in row["notes"])
            schemes.add(row["scheme"])
            yield row
            if variants and split == "train":
                yield from _warped_rows(row, variants, settings)

    for split in SPLITS:
        groups = _groups(rows(split))
        for number, first in enumerate(groups):
            shard = _one_shard(itertools.chain([first], groups))
            _write_parquet(fresh / f"{split}-{number:05}.parquet", shard, settings)

    counts = _counts(kept, splits, variants)
    report = {**counts, "variants": variants, "rejected": rejected, "notes": notes, "ignored": ignored}
    description = {
        "format": FORMAT_VERSION,
        "action_units": list(NAMES),
        "measured": list(MEASURED),
        "scale": [0, 5],
        "labeller": labels.tool,
        "labels_scale_in_file": labels.scale,
        "landmarks": schemes.pop(),  # one backend, one scheme
        "crop_size": settings["size"],
        "settings": dict(settings),
        **counts,
        "variants": variants,
        "fingerprint": fingerprint,
    }
    # Until magicedit.json is back, an interruption leaves a dataset that nobody takes for complete.
    (output / DESCRIPTION_FILE).unlink(missing_ok=True)
    if data.exists():
        shutil.rmtree(replaced, ignore_errors=True)  # of a run that was interrupted below
        data.rename(replaced)
    fresh.rename(data)
    _write_text(output / REPORT_FILE, json.dumps(report, indent=2, ensure_ascii=False))
    _write_text(output / CARD_FILE, _card(description))
    _write_text(output / DESCRIPTION_FILE, json.dumps(description, indent=2, ensure_ascii=False))
    shutil.rmtree(output / _WORK)
    return report


def _warped_rows(row: dict[str, Any], count: int, settings: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Rows of what the muscles make of a photograph's row."""
    if row["scheme"] != "mediapipe478":
        raise DatasetError(
            f"the muscles' warp needs MediaPipe's 478 landmarks, these photographs have {row['scheme']}; "
            "use the backend mediapipe"
        )
    variants = muscle_variants(
        _decode(row["image"]["bytes"]),
        np.array(row["landmarks"], np.float32).reshape(-1, 2),
        dict(zip(NAMES, row["action_units"], strict=True)),
        count,
        row["sha256"],
    )
    for number, variant in enumerate(variants, start=1):
        region = face_region(variant.landmarks, settings["size"], row["scheme"])
        command = ",".join(f"{name}={steps:+.2f}" for name, steps in variant.command.items())
        yield row | {
            "image": {"bytes": _encode(variant.pixels, settings["image_format"]), "path": None},
            "mask": {"bytes": _encode(np.where(region, 255, 0).astype(np.uint8), "png"), "path": None},
            "source": f"{row['source']}#muscles-{number}",
            "action_units": [variant.action_units[name] for name in NAMES],
            "measured": [],
            "landmarks": variant.landmarks.reshape(-1).tolist(),
            "notes": [f"warped by {command}"],
            "sha256": "",  # of no file
        }


def _decode(encoded: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))


def _row_group(file: Path, number: int) -> list[dict[str, Any]]:
    with pq.ParquetFile(file) as parquet:
        return parquet.read_row_group(number).to_pylist()


def _groups(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    while group := list(itertools.islice(rows, _ROW_GROUP)):
        yield group


def _one_shard(groups: Iterable[list[dict[str, Any]]]) -> Iterator[list[dict[str, Any]]]:
    """As many of the groups as have about _SHARD_BYTES."""
    size = 0
    for group in groups:
        yield group
        size += sum(len(row["image"]["bytes"]) for row in group)
        if size >= _SHARD_BYTES:
            return


def _write_parquet(path: Path, groups: Iterable[list[dict[str, Any]]], settings: Mapping[str, Any]) -> None:
    """Write rows in groups of _ROW_GROUP. The images are compressed already, so the file is not."""
    schema = features().arrow_schema
    schema = schema.with_metadata({**schema.metadata, _METADATA_KEY: json.dumps(settings).encode()})
    partial = path.with_suffix(".partial")
    with pq.ParquetWriter(partial, schema, compression="none") as writer:
        for group in groups:
            writer.write_table(pa.Table.from_pylist(group, schema), row_group_size=_ROW_GROUP)
    partial.rename(path)


def _counts(kept: list[_Source], splits: Mapping[str, str], variants: int) -> dict[str, dict[str, int]]:
    photographs = Counter(source.identity for source in kept)
    by_split: dict[str, list[int]] = defaultdict(list)
    for identity, count in photographs.items():
        by_split[splits[identity]].append(count)
    present = [split for split in SPLITS if split in by_split]
    copies = {"train": 1 + variants, "validation": 1}
    return {
        "photographs": {split: sum(by_split[split]) for split in present},
        "identities": {split: len(by_split[split]) for split in present},
        "pairs": {
            split: sum(count * (count - 1) for count in (n * copies[split] for n in by_split[split]))
            for split in present
        },
    }


def _up_to_date(output: Path, fingerprint: str) -> dict[str, Any] | None:
    """The report of the earlier run, if it had the same input and finished."""
    description, report = _earlier(output)
    complete = description.get("fingerprint") == fingerprint and all(
        any((output / "data").glob(f"{split}-*.parquet")) for split in report["photographs"]
    )
    return report if complete else None


def _earlier(output: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What magicedit.json and report.json of the earlier run say; empty where one of them is missing."""
    try:
        description, report = (output / DESCRIPTION_FILE, output / REPORT_FILE)
        return json.loads(description.read_text("utf-8")), json.loads(report.read_text("utf-8"))
    except (OSError, ValueError):
        return {}, {}


def _write_text(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text + "\n", encoding="utf-8")
    partial.replace(path)


def _card(description: Mapping[str, Any]) -> str:
    """Dataset card; its YAML head tells `datasets` which files are which split."""
    counts = description["photographs"]
    files = "\n".join(f"  - split: {split}\n    path: data/{split}-*.parquet" for split in counts)
    rows = "\n".join(
        f"| {split} | {counts[split]} | {description['identities'][split]} | {description['pairs'][split]} |"
        for split in counts
    )
    size, variants = description["crop_size"], ""
    if description["variants"]:
        variants = _VARIANTS_NOTE.format(count=description["variants"])
    return f"""---
configs:
- config_name: default
  data_files:
{files}
tags:
- faces
- action-units
- magicedit
---
# Aligned faces with action units

Written by `magicedit prepare`; read by `magicedit train` and `datasets.load_dataset`.

| split | photographs | identities | pairs |
|---|---|---|---|
{rows}

No identity is in two splits. A pair is two photographs of one identity, in one direction.

- `image`: face, aligned by what expressions do not move, {size} x {size} px; `mask`: 255 in the face region.
- `action_units`: intensities 0 to 5, by {description["labeller"]}, in this order:
  {", ".join(description["action_units"])}.
- `measured`: what the face backend {description["settings"]["backend"]} measured itself, if anything, of
  {", ".join(description["measured"])}.
- `landmarks`: x0, y0, x1, y1 ... ({description["landmarks"]}) in pixels of `image` (centres: whole numbers).
{variants}- `pose`: yaw, pitch, roll in degrees. `box`: x0, y0, x1, y1 in pixels of the photograph `source`.

Labels of an automatic estimator are noisy, most of all where it hardly responds (MediaPipe: AU6, AU9, AU15).
Rejected photographs and why: `{REPORT_FILE}`. The licence of this dataset is that of its photographs.
"""
