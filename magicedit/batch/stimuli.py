"""Stimulus sets for experiments: the pictures of a factorial design, alike in everything but the expression.

Beside them stand landmark templates, a table of requested and measured intensities, and a methods paragraph.
"""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image

from magicedit import __version__
from magicedit.batch.designs import AVERAGE, Design, Person
from magicedit.batch.stimulus_pictures import luminance_of, masked, oval_of, template_of, with_luminance
from magicedit.batch.stimulus_report import METHODS, TABLE, Made, methods_of, table_of
from magicedit.editor.settings import MouthSettings
from magicedit.errors import MagicEditError, NoFaceError, OutputError, reason_of, version_of
from magicedit.faces import Face, levels_of
from magicedit.files import remembered_sha256, shown, sweep, write_text
from magicedit.imaging import Photo, open_photo, save_image
from magicedit.ledger import Ledger
from magicedit.models.folder import ModelFolder
from magicedit.provenance import Mark

if TYPE_CHECKING:
    from magicedit.editor import ExpressionEditor

STIMULI_JOURNAL = "stimuli.jsonl"  # in the folder of a set
_PACKAGES = (
    *("mediapipe", "numpy", "onnxruntime", "opencv-contrib-python", "opencv-python-headless", "torch"),
)


@dataclass(frozen=True)
class StimuliReport:
    """A finished set.

    output: its folder. made, kept: numbers of stimuli of this run and of earlier ones. failed: stimulus ->
    reason.
    """

    output: Path
    made: int
    kept: int
    failed: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"output": shown(self.output)}


def make_stimuli(
    design: Design,
    output: str | Path,
    *,
    model: str = "mini",
    device: str | None = None,
    dtype: str | None = None,
    mark: bool = True,
    force: bool = False,
    progress: bool = False,
    say: Callable[[str], None] | None = None,
) -> StimuliReport:
    """Makes the stimuli of a design; a repeated run makes only those that are missing or changed.

    In `output`, created if missing, are a PNG and a .tem for each stimulus, TABLE and METHODS. Equal designs,
    photographs, models and versions give equal files. One stimulus that fails stops no other.

    Args:
        model, device, dtype, mark: see `ExpressionEditor.from_pretrained`.
        force: make all again, and replace files that no run of ours made.
        progress: show a bar on standard error.
        say: called when the model begins to load.

    Raises:
        MagicEditError: where the model cannot do a level, there are no such teeth, or with luminance
            "average" a photograph cannot be used; then no stimulus is made.
        OutputError: where the folder cannot be written, or has such files of other origin.
    """
    from tqdm import tqdm

    # 1. The request, and finished stimuli
    output, folder = Path(output), ModelFolder.find(model)
    cells = [
        (design.stimulus_name(name, condition), name, condition)
        for name in design.people
        for condition in design.conditions()
    ]
    for condition in design.conditions():
        design.edit_request(condition, Person(Path())).check(folder.editable)
    MouthSettings(design.teeth)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"the folder {shown(output)} cannot be made ({error}); choose another") from error
    settings = _settings(design, model, folder, dtype, mark)
    with Ledger(output / STIMULI_JOURNAL, lambda entry: str(entry["stimulus"])) as journal:
        sweep(output)
        waiting = []
        if not force and not journal.entries:
            _check_strangers(output / TABLE, output / METHODS)
        for stimulus, name, condition in cells:
            made_of = _made_of(design.people[name], condition, settings)
            entry, path = journal.entries.get(stimulus), output / f"{stimulus}.png"
            files = [path, path.with_suffix(".tem")] if design.templates else [path]
            if not force and entry is None:
                _check_strangers(*files)
            there = all(file.is_file() for file in files)
            if force or not there or entry is None or entry.get("made_of") != made_of or "reason" in entry:
                waiting.append((stimulus, name, condition, made_of))

        # 2. The stimuli
        failed: dict[str, str] = {}
        if waiting:
            from magicedit.editor import ExpressionEditor

            if say is not None:
                say(f"loading {model}")
            editor = ExpressionEditor.from_pretrained(model, device=device, dtype=dtype, mark=mark)
            workshop = _Workshop(design, editor)
            for stimulus, name, condition, made_of in tqdm(waiting, unit="stimulus", disable=not progress):
                about = {"stimulus": stimulus, "made_of": made_of}
                journal.add(about | {"reason": "was interrupted"})
                try:
                    told = workshop.make(design.people[name], condition, output / f"{stimulus}.png")
                except MagicEditError as error:
                    failed[stimulus] = reason_of(error, None)
                    told = {"reason": failed[stimulus]}
                journal.add(about | told)

        # 3. The set
        done = [
            Made(stimulus, name, condition, journal.entries[stimulus])
            for stimulus, name, condition in cells
            if stimulus not in failed
        ]
        write_text(output / TABLE, table_of(design, done))
        write_text(
            output / METHODS, methods_of(design, settings["model"], settings["versions"], done, failed)
        )
    return StimuliReport(output, len(waiting) - len(failed), len(cells) - len(waiting), failed)


def _check_strangers(*files: Path) -> None:
    """Raises OutputError where a file exists that no run of ours made."""
    for file in filter(os.path.lexists, files):
        raise OutputError(
            f"{shown(file)} exists and no run here made it; choose another folder, or replace it "
            "with --overwrite (force=True)"
        )


def _settings(
    design: Design, model: str, folder: ModelFolder, dtype: str | None, mark: bool
) -> dict[str, Any]:
    """Returns, JSON-ready, what all stimuli of a set depend on."""
    from magicedit.editor.results import shown_model

    plain = {
        entry.name: getattr(design, entry.name)
        for entry in fields(Design)
        if entry.name not in ("people", "controls", "emotions")
    }
    if design.luminance == AVERAGE:  # then they depend on all photographs
        plain["photographs"] = [_digest(person.photo) for person in design.people.values()]
    installed = {package: version_of(package) for package in _PACKAGES}
    versions = {"magicedit": __version__} | {name: number for name, number in installed.items() if number}
    about = {"name": shown_model(model), "fingerprint": folder.fingerprint, "dtype": dtype, "mark": mark}
    return {"design": plain, "model": about, "versions": versions}


def _made_of(person: Person, condition: Mapping[str, float | str], settings: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of everything that one stimulus depends on."""
    photographs = [_digest(path) for path in (person.photo, *person.references)]
    content = json.dumps([photographs, condition, settings], sort_keys=True)
    return sha256(content.encode()).hexdigest()


def _digest(photo: Path) -> str | None:
    try:
        return remembered_sha256(photo)
    except OSError:
        return None  # its stimuli will fail with the reason


class _Workshop:
    """Makes stimuli one by one; remembers the photograph, the face and the place of one person."""

    def __init__(self, design: Design, editor: "ExpressionEditor"):
        self.design, self.editor = design, editor
        self._person: Person | None = None
        self._photo: Photo
        self._face: Face
        # (height, width) 0..1, see `oval_of`: of the unedited face in its stimuli, and of the mask, if asked
        self._face_oval: np.ndarray
        self._shown_oval: np.ndarray | None
        self._inside: np.ndarray  # (height, width) 0..1, the photograph in its stimuli
        self._before: dict[str, float]
        self._luminance = self._average() if design.luminance == AVERAGE else design.luminance

    def _average(self) -> tuple[float, float]:
        """Returns the mean over all people of `luminance_of`; MagicEditError names all who have none."""
        values, unusable = [], {}
        for name, person in self.design.people.items():
            try:
                self._prepare(person)
            except MagicEditError as error:
                unusable[name] = reason_of(error)
            else:
                drawn, _ = self._drawn(self._photo.pixels)
                values.append(luminance_of(drawn, self._face_oval))
        if unusable:
            raise MagicEditError(
                f"`luminance: {AVERAGE}` is the average of all people, and {len(unusable)} of "
                f"{len(self.design.people)} cannot be used: {', '.join(unusable)} "
                f"({next(iter(unusable.values()))}); replace their photographs, or remove them from `people`"
            )
        mean, sd = np.mean(values, axis=0)
        return float(mean), float(sd)

    def make(self, person: Person, condition: Mapping[str, float | str], path: Path) -> dict[str, Any]:
        """Writes a stimulus and its template; returns JSON-ready measurements. Raises MagicEditError."""
        # 1. The edit, at the photograph's own size
        self._prepare(person)
        (result,) = self.editor.apply([self._photo], self.design.edit_request(condition, person))
        (edit,) = result.faces

        # 2. Place and size, and what is measured there
        drawn, _ = self._drawn(np.array(result.image.convert("RGB")))
        found = self.editor.measure(drawn)[0]

        # 3. Luminance and mask, by the place of the unedited face, which all levels of a person share
        if self._luminance is not None:
            drawn = with_luminance(drawn, self._face_oval, *self._luminance)
            drawn = masked(drawn, self._inside, self.design.background)
        mean, sd = luminance_of(drawn, self._face_oval)
        if self._shown_oval is not None:
            drawn = masked(drawn, self._shown_oval, self.design.background)

        # 4. The files
        image = PIL.Image.fromarray(drawn)
        grey = self._photo.mode in ("L", "LA")
        if grey and len({*self.design.background}) == 1:
            image = image.convert("L")
        if self._photo.icc_profile is not None and grey == (image.mode == "L"):  # one of grey is not for RGB
            image.info["icc_profile"] = self._photo.icc_profile
        if (mark := Mark.carried(result.image)) is not None:
            mark.put_on(image)
        save_image(image, path, overwrite=True)
        if self.design.templates:
            write_text(path.with_suffix(".tem"), template_of(found.landmarks))
        distance, moved = edit.identity_distance, edit.moved or {}
        return {
            "requested": _rounded(edit.requested),
            "before": _rounded(self._before),
            "measured": _rounded(levels_of(found)),
            "moved": _rounded({name: moved[name] for name in edit.requested if name in moved}),
            "luminance_mean": round(mean, 2),
            "luminance_sd": round(sd, 2),
            "identity_distance": None if distance is None else round(distance, 4),
            "reached": edit.reached,
            "warnings": list(edit.warnings),
        }

    def _prepare(self, person: Person) -> None:
        """Opens the photograph of a person and finds the face, unless that is done."""
        if person is self._person:
            return
        self._person, photo = None, open_photo(person.photo)
        self._photo, self._face = photo, self.editor.measure(photo)[0]
        if self._face.scheme != "mediapipe478":
            raise MagicEditError("stimuli need MediaPipe's landmarks; use the face backend mediapipe")
        drawn, matrix = self._drawn(photo.pixels)
        landmarks = self._face.landmarks @ matrix[:, :2].T + matrix[:, 2]
        self._face_oval = oval_of(landmarks, drawn.shape, 1.0)
        margin = self.design.oval
        self._shown_oval = None if margin is None else oval_of(landmarks, drawn.shape, margin)
        self._inside = np.ones(drawn.shape[:2], np.float32)
        if (frame := self.design.frame) is not None:
            photograph = np.full(photo.pixels.shape[:2], 255, np.uint8)
            self._inside = frame.draw(photograph, matrix, (0, 0, 0)) / np.float32(255)
        try:
            self._before = levels_of(self.editor.measure(drawn)[0])
        except NoFaceError as error:
            raise NoFaceError(
                f"{shown(person.photo)}: its face is not found at the size of the stimuli; enlarge "
                "`interocular`"
            ) from error
        self._person = person

    def _drawn(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the picture in the frame of the stimuli, and the matrix (2, 3) that takes points there."""
        frame = self.design.frame
        if frame is None:
            return pixels, np.eye(2, 3)
        matrix = frame.matrix(self._face)
        return frame.draw(pixels, matrix, self.design.background), matrix


def _rounded(values: Mapping[str, float]) -> dict[str, float]:
    return {name: round(float(value), 3) for name, value in values.items()}
