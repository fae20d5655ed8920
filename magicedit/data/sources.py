"""Contents of a folder of photographs: sources, identities, splits and labels of other tools."""

import hashlib
import json
import os
import unicodedata
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from magicedit.action_units import NAMES
from magicedit.data.affectnet import Feeling, read_affectnet
from magicedit.data.celeba import read_celeba
from magicedit.data.identities import CLUSTER, FOLDERS, SAME_PERSON, read_identities
from magicedit.data.labels import FrameLabel, LabelFile, match_frames, match_labels, read_label_file
from magicedit.data.layout import TEST, TRAIN, VALIDATION, people_of
from magicedit.data.videos import DEFAULT_FRAMES, MOST_FRAMES, FrameKey, VideoFile, video_of
from magicedit.errors import DatasetError
from magicedit.files import sha256_of, shown, walk
from magicedit.imaging import PHOTO_SUFFIXES, VIDEO_SUFFIXES
from magicedit.ledger import JOURNAL


@dataclass(frozen=True)
class Choices:
    """What is read of a folder, and how; see `prepare_dataset`.

    validation: sorted names. layout: "affectnet", "celeba" or None. identities: FOLDERS, CLUSTER or the path
    of a list. frames: of each person of a video.
    """

    folder: Path
    output: Path
    validation: tuple[str, ...] = ()
    validation_fraction: float = 0.0
    labels: str | Path | None = None
    labels_scale: float | None = None
    layout: str | None = None
    identities: str | Path = FOLDERS
    frames: int = DEFAULT_FRAMES

    @property
    def clusters(self) -> bool:
        """Whether faces are grouped into people after they were measured."""
        return self.identities == CLUSTER

    def check(self) -> None:
        """Raises DatasetError where the choices are wrong or contradict each other."""
        if not os.path.isdir(self.folder):
            raise DatasetError(
                f"expected a folder of photographs, one sub-folder per identity, got {shown(self.folder)}"
            )
        if not 0 <= self.validation_fraction < 1:
            raise DatasetError(
                f"validation_fraction must be from 0 to below 1, got {self.validation_fraction}"
            )
        if self.validation and self.validation_fraction:
            raise DatasetError("give either validation identities or validation_fraction, not both")
        if self.labels_scale is not None and self.labels is None:
            raise DatasetError("--labels-scale is about the file of --labels, which is missing")
        if self.identities not in (FOLDERS, CLUSTER) and not os.path.lexists(self.identities):
            raise DatasetError(
                f"identities must be folders, cluster or the path of a CSV file, got {shown(self.identities)}"
            )
        if not 1 <= self.frames <= MOST_FRAMES:
            raise DatasetError(f"frames must be from 1 to {MOST_FRAMES}, got {self.frames}")
        if self.layout is None:
            return
        name = {"affectnet": "AffectNet", "celeba": "CelebA"}[self.layout]
        if self.validation or self.validation_fraction:
            raise DatasetError(f"{name}'s lists name the validation photographs; leave --validation out")
        if self.identities != FOLDERS:
            raise DatasetError(f"{name}'s lists already say who is who; leave --identities out")


@dataclass(frozen=True, slots=True)
class Source:
    """A photograph, or a chosen frame of a video.

    name: path relative to the folder, with forward slashes, in UTF-8, and of a frame its time. sha256: of the
    file, or the key of the frame.
    """

    name: str
    folder: Path
    identity: str
    sha256: str
    frame: FrameKey | None = None

    @property
    def file(self) -> str:
        """The name of its file: its own, or the video's."""
        return self.name if self.frame is None else self.name.rpartition("#t=")[0]

    @property
    def path(self) -> Path:
        return self.folder / self.file


@dataclass(frozen=True)
class Files:
    """What a folder holds.

    photographs: those that can be read, of training and validation, in order of their names; videos likewise.
    splits: by identity, where folders or lists tell them. rejected, ignored, folder_notes and more: of
    `Sources`.
    """

    photographs: list[Source]
    videos: list[VideoFile]
    splits: dict[str, str]
    rejected: list[dict[str, str]]
    ignored: list[str]
    folder_notes: list[dict[str, str]] = field(default_factory=list)
    more: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Sources:
    """Contents of a folder, and the part that is used.

    photographs: the used ones and frames of videos, in order of their names. splits: identity -> split.
    labels: intensities by photograph; None: measured by the face backend. rejected: {"source", "reason", ...}
    of photographs left out; folders that cannot be read are among them. ignored: files that are neither
    photographs nor videos, and folders of edited ones. folder_notes: {"source", "note", "kind": "warning"} of
    folders and lists. feelings: emotions of photographs by name, where they are labelled; attributes: names
    of the attributes that they show, likewise, and attribute_names: of all that are labelled, in order.
    grouping: how people are told apart where their folders do not tell; empty: they do.
    """

    photographs: list[Source]
    splits: dict[str, str]
    labels: LabelFile | None
    rejected: list[dict[str, str]]
    ignored: list[str]
    folder_notes: list[dict[str, str]] = field(default_factory=list)
    feelings: Mapping[str, Feeling] = field(default_factory=dict)
    attributes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    attribute_names: tuple[str, ...] = ()
    grouping: Sequence[Any] = ()

    def reject(self, reasons: Mapping[str, Mapping[str, str]]) -> None:
        """Rejects photographs. reasons: name -> entries for the report."""
        out = [source.name for source in self.photographs if source.name in reasons]
        self.rejected += [{"source": name, **reasons[name]} for name in out]
        self.photographs = [source for source in self.photographs if source.name not in reasons]

    def keep_measured(self, measured: Container[str], failures: Mapping[str, str]) -> None:
        """Rejects unmeasured photographs. measured: SHA-256s; failures: SHA-256 -> reason of rejection."""
        failed = [source for source in self.photographs if source.sha256 not in measured]
        self.reject({s.name: {"reason": failures[s.sha256], "sha256": s.sha256} for s in failed})
        self.rejected.sort(key=lambda entry: entry["source"])

    def labelled_by(self, backend: str) -> tuple[str, float | None]:
        """Returns the tool of the labels, and the number for full intensity in its file."""
        return (backend, None) if self.labels is None else (self.labels.tool, self.labels.scale)

    def fingerprint(self, settings: Mapping[str, Any], variants: int) -> str:
        """Returns a hash that is equal for runs that write the same dataset."""
        tool, scale = self.labelled_by(settings["backend"])
        inputs = [
            settings,
            {"tool": tool, "scale": scale, "by_source": self.labels and self.labels.intensities},
            ([source.name, source.sha256, self.splits[source.identity]] for source in self.photographs),
            [self.rejected, self.ignored],
            *([["muscles", variants]] if variants else []),
            *([self.feelings] if self.feelings else []),
            *([self.attribute_names, self.attributes] if self.attribute_names else []),
            *([self.grouping] if self.grouping else []),
        ]
        digest = hashlib.sha256()
        for part in _json(inputs):
            digest.update(part.encode())
        return digest.hexdigest()


def _json(values: Iterable[Any]) -> Iterator[str]:
    """Yields a list as JSON in parts; iterators among the values are lists that are never held."""
    yield "["
    for number, value in enumerate(values):
        yield ", " if number else ""
        yield from _json(value) if isinstance(value, Iterator) else (json.dumps(value, sort_keys=True),)
    yield "]"


def find_files(choices: Choices) -> Files:
    """Returns the photographs and videos of a folder, without those in its output, and who is on them."""
    choices.check()
    folder = choices.folder
    if choices.layout == "affectnet":
        entries, unusable = read_affectnet(folder)
        photographs, rejected = _distinct(folder, ((entry.name, entry.name) for entry in entries))
        splits = {entry.name: entry.split for entry in entries}
        more = {"feelings": {entry.name: entry.feeling for entry in entries}}
        return Files(photographs, [], splits, [*unusable, *rejected], [], more=more)
    if choices.layout == "celeba":
        names, entries, unusable = read_celeba(folder)
        photographs, rejected = _distinct(folder, ((entry.name, entry.identity) for entry in entries))
        splits = {entry.identity: entry.split for entry in entries}
        labelled = {entry.name: entry.attributes for entry in entries}
        more = {"attributes": labelled, "attribute_names": names}
        return Files(photographs, [], splits, [*unusable, *rejected], [], more=more)

    files, ignored, rejected = _walk(folder, choices.output)
    listed, notes = None, []
    if choices.clusters:
        listed = {name: name for name in files}
    elif choices.identities != FOLDERS:
        listed, note = _listed(choices.identities, files)
        notes += [note] if note else []
        missing = f"no identity in {shown(Path(choices.identities).name)}"
        rejected += [{"source": name, "reason": missing} for name in files if name not in listed]
        files = [name for name in files if name in listed]
    people = people_of(files, listed)
    if people.splits and choices.clusters:
        raise DatasetError(
            "the folders of the photographs define splits, but groups of faces may cross them; use only one"
        )
    if people.splits and (choices.validation or choices.validation_fraction):
        raise DatasetError(
            "the folders of the photographs already define the validation split; leave --validation out"
        )
    notes += [_warning(name, note) for name, note in people.notes.items()]
    tested = {name for name in files if people.splits.get(people.identities[name]) == TEST}
    rejected += [{"source": name, "reason": "it is of the test split"} for name in sorted(tested)]
    used = ((name, people.identities[name]) for name in files if name not in tested)
    everything, twice = _distinct(folder, used)
    photographs = [source for source in everything if not _is_video(source.name)]
    loose = {source.name for source in everything if choices.clusters or _is_loose(source.name, listed)}
    videos = [
        VideoFile(s.name, folder, None if s.name in loose else s.identity, s.sha256, choices.frames)
        for s in everything
        if _is_video(s.name)
    ]
    return Files(photographs, videos, people.splits, [*rejected, *twice], ignored, notes)


def find_sources(
    files: Files, frames: Mapping[str, Sequence[FrameKey]], failures: Mapping[str, str], choices: Choices
) -> Sources:
    """Returns the sources of a folder.

    frames, failures: what was chosen from its videos, or why nothing, by `VideoFile.sha256`.
    """
    photographs, rejected = list(files.photographs), list(files.rejected)
    for video in files.videos:
        if video.sha256 in failures:
            entry = {"source": video.name, "reason": failures[video.sha256], "sha256": video.sha256}
            rejected.append(entry)
        photographs += [
            Source(video.frame_name(key), video.folder, video.person(key.face), str(key), key)
            for key in frames.get(video.sha256, ())
        ]
    if files.videos:
        photographs.sort(key=lambda source: (source.file, source.frame or ()))
    identities = {source.identity for source in photographs}
    validation, fraction = choices.validation, choices.validation_fraction
    splits, grouping = files.splits, []
    if choices.clusters:
        splits = dict.fromkeys(identities, TRAIN)
        grouping = [CLUSTER, SAME_PERSON, validation, fraction]
    elif photographs and not splits:
        splits = split_of_people(identities, validation, fraction)
    if choices.identities not in (FOLDERS, CLUSTER):
        grouping = [source.identity for source in photographs]
    notes, found, reasons = list(files.folder_notes), None, {}
    if choices.labels is not None and photographs:
        found, reasons, more_notes = _read_labels(choices.labels, choices.labels_scale, photographs)
        notes += more_notes
    sources = Sources(
        photographs,
        splits,
        found,
        rejected,
        files.ignored,
        notes,
        grouping=grouping,
        **files.more,
    )
    sources.reject(reasons)
    return sources


def _warning(source: str, note: str) -> dict[str, str]:
    return {"source": shown(source), "note": note, "kind": "warning"}


def _is_video(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in VIDEO_SUFFIXES


def _is_loose(name: str, listed: Mapping[str, str] | None) -> bool:
    """Whether a file belongs to nobody: it lies in no person's folder and no list names its person."""
    return listed is None and "/" not in name


def _listed(path: str | Path, files: Iterable[str]) -> tuple[dict[str, str], dict[str, str] | None]:
    """Returns the identities of files by a list, and a note on rows that are of no file."""
    identities = read_identities(Path(path))
    matched = match_labels(identities, files, "row")
    if not matched:
        raise DatasetError(f"no row of {shown(path)} names a file in the folder, such as {_some(files)}")
    note = _unmatched(path, identities.keys() - set(matched.values()), "row")
    return {name: unicodedata.normalize("NFC", identities[row]) for name, row in matched.items()}, note


def _unmatched(path: str | Path, names: Iterable[str], what: str) -> dict[str, str] | None:
    """Returns a note on names in a file that are of nothing in the folder; None where there are none."""
    names = sorted(names)
    if not names:
        return None
    which = f"{len(names)} {what}s are" if len(names) > 1 else f"1 {what} is"
    return _warning(Path(path).name, f"{which} of no file in the folder: {_some(names)}")


def _some(names: Iterable[str]) -> str:
    names = sorted(names)
    return ", ".join(map(shown, names[:3])) + ("..." if len(names) > 3 else "")


def _walk(folder: Path, output: Path) -> tuple[list[str], list[str], list[dict[str, str]]]:
    """Returns the names of photographs and videos, in order, other files, and what cannot be used."""
    names, ignored, rejected = [], [], []
    own = os.path.realpath(output)

    def reject(path: str | Path, reason: str) -> None:
        rejected.append({"source": shown(Path(path).relative_to(folder).as_posix()), "reason": reason})

    def leave_out(sub: Path) -> bool:
        if os.path.realpath(sub) == own:
            return True
        if edited := os.path.exists(sub / JOURNAL):
            ignored.append(shown(f"{sub.relative_to(folder).as_posix()}/ (edited results, with {JOURNAL})"))
        return edited

    files = walk(
        folder,
        leave_out,
        lambda error: reject(error.filename, f"cannot be read: {error.strerror}"),
    )
    for name in sorted(path.relative_to(folder).as_posix() for path in files):
        if PurePosixPath(name).suffix.lower() not in PHOTO_SUFFIXES | VIDEO_SUFFIXES:
            ignored.append(shown(name))
        elif not is_text(name):
            reject(folder / name, "its name is not UTF-8; rename it")
        else:
            names.append(name)
    if not names:
        first = f" ({rejected[0]['source']}: {rejected[0]['reason']})" if rejected else ""
        raise DatasetError(
            f"no photographs in {shown(folder)}{first}; expected FOLDER/identity/photograph with one of the "
            f"endings {' '.join(sorted(PHOTO_SUFFIXES))}"
        )
    return names, sorted(ignored), rejected


def is_text(name: str) -> bool:
    """Whether a name can be written as UTF-8, as the columns of a dataset are."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _distinct(folder: Path, files: Iterable[tuple[str, str]]) -> tuple[list[Source], list[dict[str, str]]]:
    """Sources of name and identity, and those that cannot be read or are duplicates of earlier ones."""
    sources, rejected, first_of = [], [], {}
    once: dict[str, str] = {}  # identities, each held once
    for name, identity in files:
        try:
            sha256 = sha256_of(folder / name)
        except OSError as error:
            rejected.append({"source": name, "reason": f"cannot be read: {error.strerror or error}"})
            continue
        # A pair of duplicates teaches nothing, and under two identities it could be in both splits
        if sha256 in first_of:
            rejected.append({"source": name, "reason": f"same file as {first_of[sha256]}"})
            continue
        first_of[sha256] = name
        sources.append(Source(name, folder, once.setdefault(identity, identity), sha256))
    return sources, rejected


def split_of_people(identities: set[str], validation: Iterable[str], fraction: float) -> dict[str, str]:
    """Identity to split. Composed and decomposed letters of names are the same; all people of one video are
    in one split, since a person whom tracking loses is counted again. A fraction above 0 puts
    somebody into either split where there are two people, not of one video."""
    there = {identity: unicodedata.normalize("NFC", identity) for identity in identities}
    wanted = {unicodedata.normalize("NFC", identity): identity for identity in validation}
    if unknown := [shown(wanted[name]) for name in wanted.keys() - there.values()]:
        known = ", ".join(sorted(identities)[:5])
        some = ", ".join(sorted(unknown)[:5])
        raise DatasetError(f"no such identities to validate on: {some}; there are {known}...")
    chosen = {video_of(name) for name in wanted}
    if fraction:
        draws = {video_of(name): _draw(video_of(name)) for name in there.values()}
        chosen = {name for name, draw in draws.items() if draw < fraction}
        chosen = (chosen | {min(draws, key=draws.get)}) - {max(draws, key=draws.get)}
    return {identity: VALIDATION if video_of(name) in chosen else TRAIN for identity, name in there.items()}


def _draw(name: str) -> float:
    """A number from 0 to below 1 that depends on the name alone."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64


def _read_labels(
    labels: str | Path, scale: float | None, photographs: list[Source]
) -> tuple[LabelFile, dict[str, dict[str, str]], list[dict[str, str]]]:
    """Returns the labels by source, the reasons to reject others, and notes on labels of nothing."""
    frames_of: dict[str, list[Source]] = defaultdict(list)
    for source in photographs:
        if source.frame is not None:
            frames_of[source.file].append(source)
    found = read_label_file(labels, scale, videos=bool(frames_of))
    matched = match_labels(found.intensities, [s.name for s in photographs if s.frame is None])
    by_source = {source: found.intensities[label] for source, label in matched.items()}
    videos, why, notes = match_labels(found.frames, frames_of), {}, []
    for video, label in videos.items():
        try:
            by_source |= _labels_of_frames(found.frames[label], frames_of[video])
        except DatasetError as error:
            why[video] = f"labels of {shown(label)} are refused: {error}"
        count = frames_of[video][0].frame.frames
        if beyond := sum((one.index or 0) >= count for one in found.frames[label]):
            notes.append(_warning(label, f"{beyond} labels are of frames that {shown(video)} does not have"))
    if not by_source:
        raise DatasetError(
            f"no label in {labels} is of a photograph in the folder; its names are "
            f"{_some({*found.intensities, *found.frames})}, the photographs' "
            f"{_some({source.file for source in photographs})}" + "".join(f"; {w}" for w in why.values())
        )
    missing = [name for name in NAMES if any(name not in aus for aus in by_source.values())]
    if missing:
        raise DatasetError(f"{labels} lacks {', '.join(missing)}; needed are {', '.join(NAMES)}")
    of_nothing = {*found.intensities, *found.frames} - {*matched.values(), *videos.values()}
    note = _unmatched(labels, of_nothing, "label")
    unlabelled = f"no label in {Path(labels).name}"
    reasons = {}
    for source in photographs:
        if source.name not in by_source:
            reasons[source.name] = {"reason": why.get(source.file, unlabelled)}
            if source.frame is not None:  # its video need not be read again to know of it
                reasons[source.name]["sha256"] = source.sha256
    intensities = {source: {name: aus[name] for name in NAMES} for source, aus in by_source.items()}
    return replace(found, intensities=intensities, frames={}), reasons, [*notes, *([note] if note else [])]


def _labels_of_frames(labels: list[FrameLabel], frames: list[Source]) -> dict[str, dict[str, float]]:
    """Returns the labels of a video's frames by name; DatasetError where they are not of this video, or could
    be of several people."""
    if any(source.frame.face for source in frames):
        raise DatasetError("they are of one face, and the video shows several")
    labelled = match_frames(labels, [(source.frame.index, source.frame.seconds) for source in frames])
    return {s.name: labelled[s.frame.index] for s in frames if s.frame.index in labelled}
