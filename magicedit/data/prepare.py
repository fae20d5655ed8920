"""From a folder of photographs and videos to a dataset: measured, aligned, masked, in Parquet shards.

    FOLDER/alice/1.jpg, FOLDER/alice/talk.mp4, FOLDER/bob/...    one sub-folder per identity
    FOLDER/carol.jpg                                             a loose photograph is an identity of its own
    FOLDER/street.mp4                                            so is each person of a loose video

becomes a folder that `datasets.load_dataset` reads as it is:

    DATASET/data/train-00000.parquet, validation-00000.parquet    one row per photograph, see `features`
    DATASET/magicedit.json    what the columns mean: action-unit order, labeller, crop size, counts
    DATASET/report.json       result for every source: rejects with reasons, notes
    DATASET/README.md         dataset card

Running it again with the same photographs and settings writes nothing; with some photographs new or changed,
only these are measured. A frame of a video counts as a photograph, with a name such as
`alice/talk.mp4#t=12.480`. Interrupted runs resume, and an earlier dataset stays until the new one is whole.
"""

import dataclasses
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from magicedit.cluster import check_engine
from magicedit.data.description import (
    FORMAT_VERSION,
    REPORT_FILE,
    WORK,
    failed_before,
    up_to_date,
)
from magicedit.data.identities import FOLDERS
from magicedit.data.measuring import Engine, measure_all
from magicedit.data.people import group_people, note_singles, note_unreserved
from magicedit.data.shards import Place, begin, check_ours, discard_work, measured_before, write_dataset
from magicedit.data.sources import Choices, Files, Sources, find_files, find_sources
from magicedit.data.videos import DEFAULT_FRAMES, VideoFile, known_frames
from magicedit.errors import DatasetError, OutputError
from magicedit.faces import FaceBackend
from magicedit.faces.identity import check_descriptor
from magicedit.files import LOCK, counted, is_temporary, locked, shown
from magicedit.video_reading import import_av

DEFAULT_VARIANTS = 4
SMALLEST, LARGEST = 32, 2048  # pixels a side of a crop


@dataclass(frozen=True)
class PrepareReport:
    """Result of preparing a folder of photographs.

    photographs, identities, pairs: counts by split; a pair is two photographs of one identity, in one order.
    rejected: {"source", "reason", ...} of every photograph left out; notes: {"source", "note"} of kept ones.
    ignored: files in the folder that are not photographs, and folders of edited ones. variants: warped copies
    of each training photograph, counted in `pairs` but not in `photographs`. measured, reused: photographs
    measured by the face backend in this run and in earlier runs. unchanged: whether nothing had to be
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
                f"  {split}: {counted(self.photographs[split], 'photograph')} of "
                f"{counted(self.identities[split], 'identity', 'identities')}, "
                f"{counted(self.pairs[split], 'pair')}"
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


def prepare_dataset(
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
    layout: str | None = None,
    identities: str | Path = FOLDERS,
    frames: int = DEFAULT_FRAMES,
    jobs: int | None = None,
    engine: str = "local",
    address: str | None = None,
    force: bool = False,
    progress: bool = True,
) -> PrepareReport:
    """Measures, aligns and masks the photographs and videos of `folder` and writes the dataset `output`.

    Args:
        size: side of the aligned crops in pixels, a multiple of 8 from 32 to 2048.
        labels: CSV file or folder of CSV files of OpenFace, py-feat or LibreFace, in place of the face
            backend's own action units; a photograph without a label is rejected. A table of frames, of the
            name of a video or with a column of such names, labels its frames.
        labels_scale: the number for full intensity in the label file, if its header does not state it.
        backend: name for `magicedit.faces.load_backend`, or a backend.
        validation: identities (folder names; file names of loose photographs) of the validation split.
        validation_fraction: instead of `validation`, the share of identities to validate on. A hash of the
            identity's name decides, so that adding photographs moves no identity between splits; with few
            identities the share is approximate. Where it would reserve nobody, the identity of the lowest
            hash is reserved, and where everybody, that of the highest is not; this one may move later.
        image_format: "jpeg" (quality 95, full chroma) or "png" (lossless, about five times the size).
        augment: "muscles": for each training photograph, also write `variants` (default: 4) copies warped by
            a model of the face's muscles and labelled by the command (see `magicedit.warping`), so that a
            single photograph makes pairs. Needs MediaPipe's landmarks.
        layout: "affectnet": the folder is AffectNet of either release, see `magicedit.data.affectnet`: its
            lists give photographs, splits, emotion, valence and arousal, and each photograph is an identity
            of its own; "celeba": the folder is CelebA, see `magicedit.data.celeba`: its lists give
            photographs, people, splits and attributes; default: sub-folders of people.
        identities: "folders": by sub-folder; a CSV file with the columns `file` and `identity`, which leaves
            out files without a row; or "cluster": faces are grouped by dlib's identity descriptor, whatever
            their folders (extra `evaluation`), see `magicedit.data.identities`, and an identity has the name
            of its first photograph.
        frames: largest number of frames chosen of each person in a video, 1 to 1000, see
            `magicedit.data.frames`; fewer if expressions repeat. In a person's folder the largest person
            counts, else each is an identity of their own.
        jobs: photographs measured at a time (default: 1; with Ray one a core); more than one needs `backend`
            by name.
        engine: "local": this process, or "ray": Ray Data, on the cores of this machine or the cluster at
            `address` (HOST:PORT, or "auto"), whose nodes see `folder` under the same path. The dataset is the
            same to the byte.
        force: repeat the measurements of earlier runs.

    Raises: DatasetError when there is nothing to prepare, when nothing is usable, for contradicting settings,
    or when `output` holds anything but a dataset of ours, in which files of others stay; OutputError when it
    cannot be written, or another run is writing it.
    """
    started = time.perf_counter()
    folder, output = Path(folder), Path(output)
    choices = Choices(
        folder,
        output,
        tuple(sorted(set(validation))),
        validation_fraction,
        labels,
        labels_scale,
        layout,
        identities,
        frames,
    )
    _check_output(folder, output)
    if layout not in (None, "affectnet", "celeba"):
        raise DatasetError(f'layout must be "affectnet", "celeba" or nothing, got {layout!r}')
    if layout == "celeba" and augment is not None:
        raise DatasetError("the attributes of warped photographs are not known; leave --augment out")
    _check_measuring(size, image_format, backend)
    at_work = _checked_engine(engine, jobs, address, backend)
    variants = _checked_variants(augment, variants, backend)
    name = backend if isinstance(backend, str) else backend.name
    settings = {"format": FORMAT_VERSION, "size": size, "backend": name, "image_format": image_format}
    if choices.clusters:
        check_descriptor()
        settings["descriptor"] = "dlib"

    def report(content: dict[str, Any], **counts: int) -> PrepareReport:
        return PrepareReport(shown(output), **content, **counts, seconds=time.perf_counter() - started)

    # 1. Photographs, videos and identities
    files = find_files(choices)
    if files.videos:
        import_av()  # rather than reject them all

    # 2. Is the dataset up to date? That of videos is known where an earlier run read them
    places, failures = {}, {}
    if files.videos and not force:
        places, failures = measured_before(output, settings), failed_before(output, settings)
    sources, _ = _known(files, places, failures, choices)
    if sources and not force and not os.path.exists(output / WORK):
        if before := up_to_date(output, sources.fingerprint(settings, variants)):
            return report(before, reused=len(sources.photographs), unchanged=True)

    with locked(output):
        begin(output, force)

        # 3. Choose the frames of videos that no earlier run read with these settings
        if not force:
            places, failures = measured_before(output, settings), failed_before(output, settings)
        read = set()
        while sources is None:
            sources, unread = _known(files, places, failures, choices)
            if again := next((video.name for video in unread if video.name in read), None):
                raise DatasetError(
                    f"other frames of {shown(again)} are chosen now, not those of an earlier run; add "
                    "--force to measure everything again"
                )
            failures |= measure_all(unread, places, backend, settings, output / WORK, at_work, progress)
            read |= {video.name for video in unread}
        found = len(sources.photographs)
        frames_read = sum(source.file in read for source in sources.photographs)
        fingerprint = sources.fingerprint(settings, variants)
        if not force and (before := up_to_date(output, fingerprint)):  # all but done when it was killed
            discard_work(output)
            return report(before, reused=found, unchanged=True)

        # 4. Measure photographs that no earlier run measured with these settings
        known = places.keys() | failures.keys()
        pending = [source for source in sources.photographs if source.sha256 not in known]
        failures |= measure_all(pending, places, backend, settings, output / WORK, at_work, progress)
        sources.keep_measured(places, failures)
        if not sources.photographs:
            discard_work(output)
            first = "; ".join(f"{entry['source']}: {entry['reason']}" for entry in sources.rejected[:3])
            count = len(sources.rejected)
            raise DatasetError(f"none of the {count} photographs in {shown(folder)} can be used ({first})")

        # 5. Who is who by their faces, where nothing else tells
        if choices.clusters:
            group_people(sources, places, choices)
        note_singles(sources)
        note_unreserved(sources, validation_fraction)

        # 6. Write
        content = write_dataset(output, sources, places, settings, fingerprint, variants)
    measured = len(pending) + frames_read
    return report(content, measured=measured, reused=found - measured)


def _known(
    files: Files, places: Mapping[str, Place], failures: Mapping[str, str], choices: Choices
) -> tuple[Sources | None, list[VideoFile]]:
    """Returns the sources, and no videos; or None, and the videos that must be read first: those whose frames
    are not known, or are wanted and have no rows, since the labels of an earlier run left them out."""
    chosen = known_frames(files.videos, places.keys() | failures.keys())
    chosen = {video: frames for video, frames in chosen.items() if video not in failures}
    unread = [v for v in files.videos if v.sha256 not in chosen and v.sha256 not in failures]
    if unread:
        return None, unread
    sources = find_sources(files, chosen, failures, choices)
    lacking = {s.file for s in sources.photographs if s.frame is not None and s.sha256 not in places}
    unread = [video for video in files.videos if video.name in lacking]
    return (None, unread) if unread else (sources, [])


def _check_output(folder: Path, output: Path) -> None:
    try:
        os.lstat(output)
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:  # below a file, too long, a NUL
        raise OutputError(f"{shown(output)} cannot be written to ({error}); choose another folder") from error
    if os.path.isdir(folder) and os.path.isdir(output) and os.path.samefile(folder, output):
        raise DatasetError(
            f"the dataset cannot go into the folder of its photographs, {shown(output)}; choose another"
        )
    try:
        names = os.listdir(output)
    except NotADirectoryError:
        names = [output.name]
    except OSError as error:
        raise OutputError(
            f"{shown(output)} cannot be read ({error.strerror}); choose another folder"
        ) from error
    check_ours(output, [name for name in names if name != LOCK and not is_temporary(name)])


def _check_measuring(size: int, image_format: str, backend: str | FaceBackend) -> None:
    if not SMALLEST <= size <= LARGEST or size % 8:
        raise DatasetError(f"size must be a multiple of 8 px from {SMALLEST} to {LARGEST}, got {size}")
    if image_format not in ("jpeg", "png"):
        raise DatasetError(f'image_format must be "jpeg" or "png", got {image_format!r}')


def _checked_engine(name: str, jobs: int | None, address: str | None, backend: str | FaceBackend) -> Engine:
    check_engine(name, address)
    if jobs is not None and jobs < 1:
        raise DatasetError(f"jobs must be at least 1, got {jobs}")
    if not isinstance(backend, str) and (name == "ray" or (jobs or 1) > 1):
        raise DatasetError(
            "jobs > 1 and Ray need the face backend by name, one for each job; got an instance"
        )
    return Engine(name, jobs, address)


def _checked_variants(augment: str | None, variants: int | None, backend: str | FaceBackend) -> int:
    """Returns the number of variants to write for each photograph."""
    if augment not in (None, "muscles"):
        raise DatasetError(f'augment must be "muscles" or nothing, got {augment!r}')
    if variants is not None and not augment:
        raise DatasetError("variants need an augmentation: add --augment muscles")
    if variants is not None and variants < 1:
        raise DatasetError(f"variants must be at least 1, got {variants}")
    if augment and isinstance(backend, str) and backend != "mediapipe":
        raise DatasetError(f"the muscles' warp needs MediaPipe's 478 landmarks, not those of {backend}")
    return (DEFAULT_VARIANTS if variants is None else variants) if augment else 0
