"""Protocols as data files: the edits requested of every editor."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from magicedit.action_units import NAMES, canonical_name, emotion_deltas, parse_deltas, sided_names
from magicedit.errors import MagicEditError
from magicedit.evaluation.subjects import RENDERINGS
from magicedit.files import read_yaml, shown
from magicedit.vocabulary import by_number

_FOLDER = Path(str(files("magicedit"))) / "evaluation" / "protocols"
_PUBLISHED_FILE = "published.yaml"
LONGEST_PROBLEM = 500  # characters: it may quote the file
_KEYS = {
    *("name", "version", "title", "description", "identities", "seed", "action_units", "levels"),
    *("combinations", "sides", "zero", "seeds", "renderings", "variants", "published"),
    *("emotions", "between", "back"),
}
SMILE = "happiness"  # the emotion that a photograph named smiling shows


@dataclass(frozen=True)
class Edit:
    """One request.

    kind: "level", "combination", "zero", "side", "seed", "emotion", "between" (part of an emotion) or "back"
    (an emotion, then the same taken back from the result). asked: AU name -> variation in steps; of an
    emotion, what its recipe asks for. seed: of the editor's noise. emotion, strength: as in `EMOTIONS`.
    """

    kind: str
    asked: Mapping[str, float]
    seed: int
    emotion: str | None = None
    strength: float = 1.0

    @property
    def request(self) -> str:
        """As on the command line, such as "AU1=+2,AU12=+3" or "happiness:0.5"; "none" for an empty one."""
        if self.emotion is None:
            return request_text(self.asked)
        if self.kind == "back":
            return f"{self.emotion} and back"
        return self.emotion if self.strength == 1 else f"{self.emotion}:{self.strength:g}"


@dataclass(frozen=True)
class Variant:
    """A row of a table of architectures or settings: a training run, and how it is sampled.

    name: of the row. run: the folder of the trained pipeline among the runs. train: settings of
    `train/train.py` that differ from the recipe, None: the recipe cannot train it. guidance: scale, None: the
    pipeline's own. published: name of the paper's row to compare with. pipeline: class of the trained
    pipeline, None: any. first: `run` and `train` of what is trained before it, such as an autoencoder, and
    the setting of the variant, `given_as`, that takes its folder.
    """

    name: str
    run: str
    train: Mapping[str, Any] | None
    guidance: float | None = None
    published: str | None = None
    pipeline: str | None = None
    first: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Protocol:
    """A set of edits for each of a number of people. Fields as in the files of `protocols/`."""

    name: str
    version: int
    title: str
    description: str
    identities: int
    action_units: tuple[str, ...]
    edits: tuple[Edit, ...]
    renderings: tuple[str, ...]
    variants: tuple[Variant, ...]
    published: Mapping[str, Any] | None

    @property
    def has_emotions(self) -> bool:
        """Whether it asks for emotions, and so compares families of editors."""
        return any(edit.emotion for edit in self.edits)

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "version": self.version,
            "title": self.title,
            "description": self.description,
            "aus": list(self.action_units),
            "identities": self.identities,
            "edits_per_identity": len(self.edits) * len(self.renderings),
        }


def request_text(asked: Mapping[str, float]) -> str:
    """Returns the canonical spelling of a request: by AU number, left side first, without zeros."""
    return ",".join(f"{name}={value:+g}" for name, value in by_number(asked).items() if value) or "none"


def protocol_names() -> list[str]:
    """Returns the names of the protocols that ship with the package."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml") if path.name != _PUBLISHED_FILE)


def load_protocol(name_or_file: str | Path) -> Protocol:
    """Loads a protocol of the package by its name, or any YAML file with the same keys.

    Raises:
        MagicEditError: for unknown names, and for files that are not valid protocols.
    """
    path = Path(name_or_file)
    if not os.path.isfile(path):
        path = _FOLDER / f"{name_or_file}.yaml"
    if not os.path.isfile(path) or path.name == _PUBLISHED_FILE:
        raise MagicEditError(
            f"no protocol {shown(name_or_file)}: name a YAML file or one of {', '.join(protocol_names())}"
        )
    try:
        content = read_yaml(path, MagicEditError, "YAML")
        if not isinstance(content, dict) or (unknown := sorted(set(content) - _KEYS)):
            raise ValueError(
                f"unknown keys: {', '.join(unknown)}" if isinstance(content, dict) else "no keys"
            )
        return _build(content)
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        problem = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise MagicEditError(f"{shown(path)} is no protocol: {problem[:LONGEST_PROBLEM]}") from error


def _build(content: dict[str, Any]) -> Protocol:
    seed = int(content.get("seed", 0))
    names = tuple(canonical_name(name) for name in content.get("action_units", NAMES))
    renderings = tuple(content.get("renderings", ("photograph",)))
    if not set(renderings) <= set(RENDERINGS):
        raise ValueError(f"renderings are {', '.join(RENDERINGS)}, got {', '.join(renderings)}")

    edits = []
    levels = content.get("levels", {})
    if 0 in levels.get("values", ()):
        raise ValueError("a level of 0 asks for nothing; write `zero: true` for that")
    for name in levels.get("action_units", names) if levels else ():
        edits += [Edit("level", parse_deltas({name: value}, names), seed) for value in levels["values"]]
    edits += [
        Edit("combination", parse_deltas(text, names), seed) for text in content.get("combinations", ())
    ]
    for value in content.get("sides", ()):
        sides = [side for name in names for side in sided_names(name)]
        edits += [Edit("side", parse_deltas({side: value}, names), seed) for side in sides]
    edits += _emotion_edits(content, names, seed)
    if content.get("zero"):
        edits.append(Edit("zero", {}, seed))
    again = content.get("seeds", {})
    edits += [Edit("seed", parse_deltas(again["request"], names), int(n)) for n in again.get("values", ())]
    keys = [(edit.request, edit.seed) for edit in edits]
    if len(set(keys)) < len(keys):
        raise ValueError(f"it asks twice for {next(key for key in keys if keys.count(key) > 1)}")
    if not edits:
        raise ValueError("it asks for no edits")
    if int(content["identities"]) < 1:
        raise ValueError(f"identities must be at least 1, got {content['identities']}")

    published = content.get("published")
    if published is not None:
        published = yaml.safe_load((_FOLDER / _PUBLISHED_FILE).read_text(encoding="utf-8"))[published]
    return Protocol(
        name=str(content["name"]),
        version=int(content["version"]),
        title=content["title"],
        description=" ".join(content["description"].split()),
        identities=int(content["identities"]),
        action_units=names,
        edits=tuple(edits),
        renderings=renderings,
        variants=tuple(Variant(**variant) for variant in content.get("variants", ())),
        published=published,
    )


def _emotion_edits(content: Mapping[str, Any], names: tuple[str, ...], seed: int) -> list[Edit]:
    """Edits of `emotions`, `between` (steps to a whole smile) and `back` (whether it is taken back)."""

    def edit(kind: str, emotion: str, strength: float = 1.0) -> Edit:
        asked = parse_deltas(emotion_deltas(emotion, strength), names)
        return Edit(kind, {} if kind == "back" else asked, seed, emotion, strength)

    emotions, steps = content.get("emotions", ()), int(content.get("between", 1))
    if SMILE not in emotions and ("between" in content or content.get("back")):
        raise ValueError(f"between and back are of {SMILE}, which is not among its emotions")
    edits = [edit("emotion", emotion) for emotion in emotions]
    edits += [edit("between", SMILE, step / steps) for step in range(1, steps)]
    return edits + ([edit("back", SMILE)] if content.get("back") else [])
