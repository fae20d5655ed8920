"""Editors to evaluate: anything that maps a photograph and AU variations to a photograph."""

import importlib
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from magicedit.action_units import EMOTIONS, parse_deltas, resolve_delta
from magicedit.errors import ActionUnitError, MagicEditError, MissingDependencyError
from magicedit.evaluation.protocol import Edit, request_text
from magicedit.evaluation.subjects import Subject, composed
from magicedit.faces import align, condition_image, crop_face
from magicedit.files import named, shown
from magicedit.imaging import Photo, open_photo
from magicedit.tables import read_table


class Editor(Protocol):
    """Changes the largest face of a photograph.

    It may also have `action_units`, the names it knows (without: all); `emotion(photo, name, strength, seed)`
    with `expresses(name)`, for requests by emotion (without: by the emotion's action units);
    `own_picture(photo)`; and `attention_maps(photo, au_delta, seed)`, whose result has a method `save(path)`.
    """

    def __call__(self, photo: Photo, au_delta: Mapping[str, float], seed: int) -> np.ndarray:
        """AU name -> variation in steps -> (height, width, 3) uint8 of the photograph's size."""
        ...


@dataclass(frozen=True)
class Entrant:
    """An editor under its name in the report.

    open: creates the editor; called once in each editing process, so it must be picklable for `jobs` above 1.
    None: the editor is missing, such as an untrained model. settings: values that identify this editor, for
    the report and for resuming. about: further facts for the report, such as how it was trained.
    """

    name: str
    open: Callable[[], "Editor | PictureFolder"] | None
    settings: Mapping[str, Any] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)


class ModelEditor:
    """An `ExpressionEditor` with fixed sampling settings as an editor to evaluate."""

    def __init__(self, editor, *, steps: int | None = None, guidance: float | None = None):
        self.editor, self._sampling = editor, {"steps": steps, "guidance": guidance}

    @property
    def action_units(self) -> tuple[str, ...]:
        return self.editor.action_units

    def __call__(self, photo: Photo, au_delta: Mapping[str, float], seed: int) -> np.ndarray:
        return self._edited(photo, seed, add=au_delta)

    def _edited(self, photo: Photo, seed: int, **request: Any) -> np.ndarray:
        how = self._sampling | {"seed": seed, "measure": False}
        result = self.editor.edit(photo, face="largest", **request, **how)
        return np.asarray(result.image.convert("RGB"))

    def expresses(self, emotion: str) -> bool:
        """Whether the model has the emotion, or all action units of its recipe."""
        try:
            self._emotion(emotion)
        except ActionUnitError:
            return False
        return True

    def emotion(self, photo: Photo, name: str, strength: float, seed: int) -> np.ndarray:
        """The photograph with an emotion, (height, width, 3) uint8; strength -1 takes a whole one back, but
        not what it undid, see `action_units.OPPOSED`."""
        if strength >= 0:
            return self._edited(photo, seed, emotion=(name, strength))
        return self(photo, {au: strength * value for au, value in self._emotion(name).items()}, seed)

    def own_picture(self, photo: Photo) -> tuple[np.ndarray, np.ndarray] | None:
        """The crop of the largest face and what the model's networks make of it for a request of zero, each
        (size, size, 3) uint8; the editor itself answers such requests without the networks. None of models
        without such pictures."""
        model = self.editor.changer.model
        if not hasattr(model, "picture"):
            return None
        face = self.editor.measure(photo)[0]
        alignment = align(face, model.resolution)
        crop = crop_face(photo.pixels, alignment)
        condition = condition_image(crop, alignment.apply(face.landmarks), face.scheme)
        return crop, model.picture(crop, condition, model.vocabulary.vector({}))

    def _emotion(self, name: str) -> dict[str, float]:
        return resolve_delta(None, emotion=name, names=self.action_units)

    def attention_maps(self, photo: Photo, au_delta: Mapping[str, float], seed: int):
        return self.editor.attention_maps(photo, au_delta, seed=seed, **self._sampling)


class PictureFolder:
    """Pictures that another system made, by a manifest: CSV with columns `identity`, `request`, `picture`.

    `request` as on the command line ("AU12=+3,AU4=-1"), `picture` relative to the manifest; a column `seed`
    is optional; without it the pictures count for every seed.
    """

    def __init__(self, manifest: str | Path):
        self.manifest = Path(manifest)
        table = read_table(self.manifest)
        if not table.rows or not {"identity", "request", "picture"} <= set(table.header):
            missing = {"identity", "request", "picture"} - set(table.header if table.rows else ())
            raise MagicEditError(
                f"{manifest} lacks {', '.join(sorted(missing))}; expected identity, request, picture"
            )
        self._pictures: dict[tuple[str, str, int | None], Path] = {}
        gone = []
        for number, row in table.rows:
            with table.at(number):
                cells = dict.fromkeys(("identity", "request", "picture", "seed"), "") | table.cells(row)
                request = request_text(parse_deltas({} if cells["request"] == "none" else cells["request"]))
                key = composed(cells["identity"]), request, int(cells["seed"]) if cells["seed"] else None
                if key in self._pictures:
                    raise MagicEditError(f"a second picture of {cells['identity']} {request}")
                path = self.manifest.parent / named(self.manifest.parent, cells["picture"])
                if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(self.manifest.parent)):
                    raise MagicEditError(f"{cells['picture']} must lie in the manifest's folder or below")
            if not os.path.isfile(path):
                gone.append(f"line {number}: {shown(cells['picture'])}")
            self._pictures[key] = path
        if gone:
            raise MagicEditError(f"{manifest} names missing pictures: {_some(gone)}")

    def check(self, wanted: Iterable[tuple[Subject, Edit]]) -> None:
        """Raises MagicEditError that names edits missing from the manifest."""
        lacking = [
            f"{subject.name} {edit.request}" for subject, edit in wanted if self._find(subject, edit) is None
        ]
        if lacking:
            raise MagicEditError(f"{self.manifest} has no picture of {_some(lacking)}")

    def picture(self, subject: Subject, edit: Edit) -> np.ndarray:
        """(height, width, 3) uint8. ImageError where the file cannot be read."""
        return open_photo(self._find(subject, edit)).pixels

    def _find(self, subject: Subject, edit: Edit) -> Path | None:
        key = composed(subject.name), edit.request
        return self._pictures.get((*key, edit.seed)) or self._pictures.get((*key, None))


def expresses(editor: Editor | PictureFolder, emotion: str) -> bool:
    """Whether an editor can be asked for an emotion; one that names no units takes any."""
    known = getattr(editor, "action_units", None)
    if hasattr(editor, "expresses"):
        return editor.expresses(emotion)
    return known is None or EMOTIONS[emotion].keys() <= set(known)


def answer(editor: Editor, photo: Photo, edit: Edit) -> np.ndarray:
    """What an editor makes of a photograph, (height, width, 3) uint8, for any kind of request."""

    def with_emotion(photo: Photo, strength: float) -> np.ndarray:
        if hasattr(editor, "emotion"):
            return editor.emotion(photo, edit.emotion, strength, edit.seed)
        units = EMOTIONS[edit.emotion]
        return editor(photo, {au: strength * value for au, value in units.items()}, edit.seed)

    if edit.emotion is None:
        return editor(photo, edit.asked, edit.seed)
    edited = with_emotion(photo, edit.strength)
    return with_emotion(open_photo(edited), -edit.strength) if edit.kind == "back" else edited


def _some(texts: list[str]) -> str:
    return "; ".join(texts[:8]) + (f" and {len(texts) - 8} more" if len(texts) > 8 else "")


def entry_point(spec: str) -> Editor:
    """Returns the editor `module:name`: the callable itself, or a class instance created without arguments.

    Raises MagicEditError where there is no such module or name.
    """
    module, _, name = spec.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError, TypeError) as error:  # ":name" and ".module:name" too
        raise MissingDependencyError(f"cannot load the editor {spec}: {error}") from error
    finally:
        sys.path.pop(0)
    try:
        editor = found() if isinstance(found, type) else found
    except TypeError as error:
        raise MagicEditError(f"the editor {spec} must be made without arguments: {error}") from error
    if not callable(editor):
        raise MagicEditError(f"the editor {spec} must be a callable (photo, au_delta, seed) -> photo")
    return editor
