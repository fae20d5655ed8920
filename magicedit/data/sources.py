"""Contents of a folder of photographs: sources, identities, splits and labels of other tools."""

import hashlib
import json
import os
import unicodedata
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from magicedit.action_units import NAMES
from magicedit.data.affectnet import Feeling, read_affectnet
from magicedit.data.celeba import read_celeba
from magicedit.data.labels import LabelFile, match_labels, read_label_file
from magicedit.data.layout import TEST, people_of
from magicedit.errors import DatasetError
from magicedit.files import sha256_of, shown, walk
from magicedit.imaging import PHOTO_SUFFIXES
from magicedit.ledger import JOURNAL


@dataclass(frozen=True)
class Source:
    """A photograph. name: path relative to the folder, with forward slashes, in UTF-8."""

    name: str
    path: Path
    identity: str
    sha256: str


@dataclass
class Sources:
    """Contents of a folder, and the part that is used.

    photographs: the used ones, in order of their names. splits: identity -> split. labels: intensities by
    photograph; None: measured by the face backend. rejected: {"source", "reason", ...} of photographs left
    out; folders that cannot be read are among them. ignored: files that are not photographs, and folders of
    edited ones. folder_notes: {"source", "note"} of folders. feelings: emotions of photographs by name, where
    they are labelled; attributes: names of the attributes that they show, likewise, and attribute_names: of
    all that are labelled, in order.
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
            [[source.name, source.sha256, self.splits[source.identity]] for source in self.photographs],
            [self.rejected, self.ignored],
            *([["muscles", variants]] if variants else []),
            *([self.feelings] if self.feelings else []),
            *([self.attribute_names, self.attributes] if self.attribute_names else []),
        ]
        return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def find_sources(
    folder: Path,
    output: Path,
    validation: list[str],
    validation_fraction: float,
    labels: str | Path | None,
    labels_scale: float | None,
    layout: str | None = None,
) -> Sources:
    """Returns the sources of a folder, without files in `output`; arguments as in `prepare_dataset`."""
    if not os.path.isdir(folder):
        raise DatasetError(
            f"expected a folder of photographs, one sub-folder per identity, got {shown(folder)}"
        )
    if not 0 <= validation_fraction < 1:
        raise DatasetError(f"validation_fraction must be from 0 to below 1, got {validation_fraction}")
    if validation and validation_fraction:
        raise DatasetError("give either validation identities or validation_fraction, not both")
    if labels_scale is not None and labels is None:
        raise DatasetError("--labels-scale is about the file of --labels, which is missing")
    if layout is not None and (validation or validation_fraction):
        name = {"affectnet": "AffectNet", "celeba": "CelebA"}[layout]
        raise DatasetError(f"{name}'s lists name the validation photographs; leave --validation out")
    ignored, more = [], {}
    if layout == "affectnet":
        entries, unusable = read_affectnet(folder)
        photographs, rejected = _distinct((entry.name, entry.path, entry.name) for entry in entries)
        splits = {entry.name: entry.split for entry in entries}
        more = {"feelings": {entry.name: entry.feeling for entry in entries}}
    elif layout == "celeba":
        names, entries, unusable = read_celeba(folder)
        photographs, rejected = _distinct((entry.name, entry.path, entry.identity) for entry in entries)
        splits = {entry.identity: entry.split for entry in entries}
        labelled = {entry.name: entry.attributes for entry in entries}
        more = {"attributes": labelled, "attribute_names": names}
    else:
        files, ignored, unusable = _find_photographs(folder, output)
        people = people_of(files)
        photographs, rejected = _distinct(
            (name, path, people.identities[name]) for name, path in files.items()
        )
        if people.splits and (validation or validation_fraction):
            raise DatasetError(
                "the folders of the photographs tell the validation split; leave --validation out"
            )
        splits = people.splits or _split({s.identity for s in photographs}, validation, validation_fraction)
        tested = {s.name for s in photographs if splits[s.identity] == TEST}
        rejected += [{"source": name, "reason": "it is of the test split"} for name in sorted(tested)]
        photographs = [source for source in photographs if source.name not in tested]
        more = {"folder_notes": [{"source": name, "note": note} for name, note in people.notes.items()]}
    rejected = [*unusable, *rejected]
    found = None if labels is None else _read_labels(labels, labels_scale, photographs)
    sources = Sources(photographs, splits, found, rejected, ignored, **more)
    if found is not None:
        missing = {"reason": f"no label in {Path(labels).name}"}
        sources.reject({s.name: missing for s in photographs if s.name not in found.intensities})
    return sources


def _find_photographs(folder: Path, output: Path) -> tuple[dict[str, Path], list[str], list[dict[str, str]]]:
    """Returns photographs by name, in order, other files, and what cannot be used, folders included."""
    photographs, ignored, rejected = {}, [], []
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
    for path in sorted(files, key=lambda path: path.relative_to(folder).as_posix()):
        name = path.relative_to(folder).as_posix()
        if path.suffix.lower() not in PHOTO_SUFFIXES:
            ignored.append(shown(name))
        elif not is_text(name):
            reject(path, "its name is not UTF-8; rename it")
        else:
            photographs[name] = path
    if not photographs:
        first = f" ({rejected[0]['source']}: {rejected[0]['reason']})" if rejected else ""
        raise DatasetError(
            f"no photographs in {shown(folder)}{first}; expected FOLDER/identity/photograph with one of the "
            f"endings {' '.join(sorted(PHOTO_SUFFIXES))}"
        )
    return photographs, sorted(ignored), rejected


def is_text(name: str) -> bool:
    """Whether a name can be written as UTF-8, as the columns of a dataset are."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _distinct(photographs: Iterable[tuple[str, Path, str]]) -> tuple[list[Source], list[dict[str, str]]]:
    """Sources of name, path and identity, and those that cannot be read or are duplicates of earlier ones."""
    sources, rejected, first_of = [], [], {}
    for name, path, identity in photographs:
        try:
            sha256 = sha256_of(path)
        except OSError as error:
            rejected.append({"source": name, "reason": f"cannot be read: {error.strerror or error}"})
            continue
        # A pair of duplicates teaches nothing, and under two identities it could be in both splits
        if sha256 in first_of:
            rejected.append({"source": name, "reason": f"same file as {first_of[sha256]}"})
            continue
        first_of[sha256] = name
        sources.append(Source(name, path, identity, sha256))
    return sources, rejected


def _split(identities: set[str], validation: list[str], fraction: float) -> dict[str, str]:
    """Identity to split. Composed and decomposed letters of names are the same."""
    there = {identity: unicodedata.normalize("NFC", identity) for identity in identities}
    wanted = {unicodedata.normalize("NFC", identity): identity for identity in validation}
    if unknown := [shown(wanted[name]) for name in wanted.keys() - there.values()]:
        known = ", ".join(sorted(identities)[:5])
        some = ", ".join(sorted(unknown)[:5])
        raise DatasetError(f"no such identities to validate on: {some}; there are {known}...")

    def chosen(name: str) -> bool:
        if not fraction:
            return name in wanted
        draw = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
        return draw < fraction

    return {identity: "validation" if chosen(name) else "train" for identity, name in there.items()}


def _read_labels(labels: str | Path, scale: float | None, photographs: list[Source]) -> LabelFile:
    found = read_label_file(labels, scale)
    matched = match_labels(found.intensities, [source.name for source in photographs])
    if not matched:
        names = ", ".join(list(found.intensities)[:3])
        raise DatasetError(
            f"no label in {labels} is of a photograph in the folder; its names are {names}..., "
            f"the photographs' {', '.join(source.name for source in photographs[:3])}..."
        )
    missing = [name for name in NAMES if any(name not in aus for aus in found.intensities.values())]
    if missing:
        raise DatasetError(f"{labels} lacks {', '.join(missing)}; needed are {', '.join(NAMES)}")
    by_source = {
        source: {name: found.intensities[label][name] for name in NAMES} for source, label in matched.items()
    }
    return replace(found, intensities=by_source)
