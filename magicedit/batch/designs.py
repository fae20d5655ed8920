"""The design of a stimulus set: people x levels of controls, fully crossed, read from a YAML file."""

import difflib
import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from math import prod
from pathlib import Path
from typing import Any

from magicedit.action_units import FACS
from magicedit.batch.stimulus_pictures import Canvas
from magicedit.errors import MagicEditError
from magicedit.files import read_yaml, shown
from magicedit.imaging import PHOTO_SUFFIXES
from magicedit.request import EditRequest
from magicedit.vocabulary import is_finite, quoted

MOST_STIMULI = 100_000
LARGEST_CANVAS = 20  # times the distance of the eyes: canvases are drawn at the photograph's resolution first
NO_EMOTION = "none"
AVERAGE = "average"  # the luminance of the set's photographs
GREY = (128, 128, 128)
REQUESTS = ("add", "set")


@dataclass(frozen=True)
class Person:
    """photo: the file. references: other photographs of the person, whose teeth show."""

    photo: Path
    references: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Design:
    """A factorial design; docs/stimuli.md describes its file.

    Attributes:
        people: name -> photographs.
        controls: control -> levels. All combinations of levels are made of each person.
        emotions: levels of one more factor, such as "happiness" or "anger:0.5"; "none" is a level without.
        request: "add": levels are variations; "set": intensities to arrive at.
        neutral: whether the measured expression is removed first.
        tolerance: intensity steps; turns on the closed loop, see `ExpressionEditor.edit`.
        quality, steps, guidance, seed, teeth: as of `ExpressionEditor.edit`.
        interocular: px between the centres of the eyes in all stimuli; None: photographs keep their frame.
        canvas: width and height in px; default: 4 and 5 times `interocular`.
        eye_height: share of the canvas above the eyes.
        luminance: mean and standard deviation, 0 to 255, within the face's oval; "average": those of the
            photographs of all people; None: not changed.
        oval: factor on the axes of an oval mask around the face; None: no mask.
        background: RGB, beyond the photograph and the oval.
        templates: whether a landmark template stands beside each stimulus.
    """

    people: dict[str, Person]
    controls: dict[str, tuple[float, ...]] = field(default_factory=dict)
    emotions: tuple[str, ...] = ()
    request: str = "add"
    neutral: bool = False
    tolerance: float | None = None
    quality: str | None = None
    steps: int | None = None
    guidance: float | None = None
    seed: int = 0
    teeth: int | str | None = None
    interocular: float | None = None
    canvas: tuple[int, int] | None = None
    eye_height: float = 0.45
    luminance: tuple[float, float] | str | None = None
    oval: float | None = None
    background: tuple[int, int, int] = GREY
    templates: bool = True

    @classmethod
    def load(cls, path: str | Path) -> "Design":
        """Reads a design file; photographs are relative to its folder.

        Raises:
            MagicEditError: for a file that is missing or no design; the message names the place in it.
        """
        path = Path(path)
        content = read_yaml(path, MagicEditError, "a design (YAML)")
        try:
            return _design_of(content, path.parent)
        except MagicEditError as error:
            raise MagicEditError(f"{shown(path)}: {error}") from error

    @property
    def factors(self) -> dict[str, tuple[float | str, ...]]:
        """Factor -> levels, in the order of the file; the last varies fastest."""
        return self.controls | ({"emotion": self.emotions} if self.emotions else {})

    def conditions(self) -> Iterator[dict[str, float | str]]:
        """Yields factor -> level of each cell of the design."""
        for levels in itertools.product(*self.factors.values()):
            yield dict(zip(self.factors, levels, strict=True))

    def edit_request(self, condition: Mapping[str, float | str], person: Person) -> EditRequest:
        """Returns the request of one stimulus. MagicEditError where a level is invalid."""
        levels = {name: level for name, level in condition.items() if name != "emotion"}
        emotion = condition.get("emotion", NO_EMOTION)
        return EditRequest(
            **{self.request: levels or None},
            emotion=None if emotion == NO_EMOTION else emotion,
            face="largest",
            neutral=self.neutral,
            tolerance=self.tolerance,
            quality=self.quality,
            steps=self.steps,
            guidance=self.guidance,
            seed=self.seed,
            teeth=self.teeth,
            references=person.references,
        )

    def stimulus_name(self, person: str, condition: Mapping[str, float | str]) -> str:
        """Returns the file's name without suffix, such as "f01_AU12+2_anger-0.5"."""
        written = "{}{:+g}" if self.request == "add" else "{}={:g}"
        parts = [
            str(level).replace(":", "-") if name == "emotion" else written.format(name, level)
            for name, level in condition.items()
        ]
        return "_".join([person, *parts])

    @property
    def frame(self) -> Canvas | None:
        """The canvas of all stimuli; None: each photograph's own."""
        if self.interocular is None:
            return None
        width, height = self.canvas or (round(4 * self.interocular), round(5 * self.interocular))
        return Canvas(width, height, self.interocular, self.eye_height)


def _design_of(content: Any, folder: Path) -> Design:
    """Returns a checked design. MagicEditError names the key that is wrong and what would be right."""
    # 1. Each key
    known = [entry.name for entry in fields(Design)]
    if not isinstance(content, dict):
        raise MagicEditError(f"expected keys such as `people` and `controls`, got {quoted(content)}")
    checks: dict[str, Callable[[Any], Any]] = {
        "people": lambda value: _people(value, folder),
        "controls": _controls,
        "emotions": lambda value: tuple(map(str, _listed(value, "none, happiness"))),
        "request": _request,
        "neutral": _yes,
        "interocular": _number(10, 2000),
        "canvas": lambda value: _whole_numbers(value, 2, 16, 10_000),
        "eye_height": _number(0.1, 0.9),
        "luminance": _luminance,
        "oval": _number(0.5, 3),
        "background": lambda value: _whole_numbers(value, 3, 0, 255),
        "templates": _yes,
    }
    given = {}
    for key, value in content.items():
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean `{close[0]}`?" if close else f"known are {', '.join(known)}"
            raise MagicEditError(f"`{key}` is unknown; {hint}")
        try:
            given[key] = checks[key](value) if key in checks else value
        except MagicEditError as error:
            raise MagicEditError(f"`{key}`: {error}") from error

    # 2. Keys together
    if "people" not in given:
        raise MagicEditError("`people` is missing; give a folder of photographs, or NAME: FILE for each")
    design = Design(**given)
    if not design.factors:
        raise MagicEditError("`controls` is missing; give levels, such as AU12: [0, 2, 4]")
    if design.canvas is not None and design.interocular is None:
        raise MagicEditError("`canvas` needs `interocular`, the distance of the eyes in pixels")
    if design.canvas is not None and max(design.canvas) > LARGEST_CANVAS * design.interocular:
        raise MagicEditError(
            f"`canvas` must be at most {LARGEST_CANVAS} times `interocular`, which is {design.interocular:g}"
        )
    count = len(design.people) * prod(map(len, design.factors.values()))
    if count > MOST_STIMULI:
        raise MagicEditError(f"the design has {count} stimuli; at most {MOST_STIMULI} are made")

    # 3. Settings and levels, as edits take them
    somebody = Person(Path())
    design.edit_request({}, somebody)
    for name, levels in design.factors.items():
        for level in levels:
            try:
                design.edit_request({name: level}, somebody)
            except MagicEditError as error:
                place = "emotions" if name == "emotion" else "controls"
                raise MagicEditError(f"`{place}`: {error}") from error
    return design


def _people(value: Any, folder: Path) -> dict[str, Person]:
    # 1. As NAME: FILE
    if isinstance(value, str):
        place = folder / value
        if not place.is_dir():
            raise MagicEditError(f"{shown(place)} is not a folder; give one, or NAME: FILE for each person")
        files = sorted(path for path in place.iterdir() if path.suffix.lower() in PHOTO_SUFFIXES)
        if not files:
            raise MagicEditError(f"{shown(place)} holds no photographs")
        value = [str(Path(value) / path.name) for path in files]
    if isinstance(value, list) and all(isinstance(entry, str) for entry in value):
        names = [Path(entry).stem for entry in value]
        value = dict(zip(names, value, strict=True)) if len({*names}) == len(names) else None
    # Some disks do not tell capitals from small letters
    if not isinstance(value, dict) or not value or len({str(name).casefold() for name in value}) < len(value):
        raise MagicEditError(
            "expected a folder, a list of files with different names, or NAME: FILE for each person; names "
            "must differ in more than capitals"
        )

    # 2. The files
    people = {}
    for name, entry in value.items():
        if not re.fullmatch(r"[\w.-]{1,80}", str(name)):
            raise MagicEditError(
                f"{quoted(name)} becomes part of file names; use letters, digits, '.', '-' and '_'"
            )
        entry = entry if isinstance(entry, dict) else {"photo": entry}
        references = entry.get("references", [])
        references = [references] if isinstance(references, str) else references
        files = [entry.get("photo"), *(references if isinstance(references, list) else [None])]
        if not entry.keys() <= {"photo", "references"} or not all(isinstance(file, str) for file in files):
            raise MagicEditError(f"{name}: expected a file, or `photo` and `references`, got {quoted(entry)}")
        paths = [folder / file for file in files]
        for path in paths:
            if not path.is_file():
                raise MagicEditError(f"{name}: {shown(path)} is no file")
        people[str(name)] = Person(paths[0], tuple(paths[1:]))
    return people


def _controls(value: Any) -> dict[str, tuple[float, ...]]:
    if not isinstance(value, dict):
        raise MagicEditError(f"expected levels by control, such as AU12: [0, 2, 4], got {quoted(value)}")
    controls = {}
    for name, levels in value.items():
        levels = _listed(levels, "0, 2, 4")
        for level in levels:
            if not is_finite(level):
                raise MagicEditError(f"{name}: expected numbers, got {quoted(level)}")
        canonical, worth = FACS.read(str(name))
        if canonical in controls:
            raise MagicEditError(f"{canonical} is there twice; keep one")
        numbers = tuple(worth * float(level) + 0.0 for level in levels)  # -0.0 becomes 0.0
        if len({f"{number:g}" for number in numbers}) < len(numbers):  # as in the names of files
            raise MagicEditError(f"{name}: levels must differ in their first 6 digits, got {quoted(levels)}")
        controls[canonical] = numbers
    return controls


def _listed(value: Any, example: str) -> list:
    values = value if isinstance(value, list) else [value]
    if not values or len({*map(str, values)}) < len(values):
        raise MagicEditError(f"expected a list of different levels, such as [{example}], got {quoted(value)}")
    return values


def _number(low: float, high: float) -> Callable[[Any], float]:
    def check(value: Any) -> float:
        if not is_finite(value) or not low <= value <= high:
            raise MagicEditError(f"expected a number from {low:g} to {high:g}, got {quoted(value)}")
        return value

    return check


def _whole_numbers(value: Any, count: int, low: int, high: int) -> tuple[int, ...]:
    fits = isinstance(value, list) and all(type(n) is int and low <= n <= high for n in value)
    if not fits or len(value) != count:
        raise MagicEditError(f"expected {count} whole numbers from {low} to {high}, got {quoted(value)}")
    return tuple(value)


def _luminance(value: Any) -> tuple[float, float] | str:
    if value == AVERAGE:
        return AVERAGE
    if not isinstance(value, dict) or value.keys() != {"mean", "sd"}:
        raise MagicEditError(f"expected `{AVERAGE}`, or `mean` and `sd` from 0 to 255, got {quoted(value)}")
    return _number(0, 255)(value["mean"]), _number(0, 128)(value["sd"])


def _request(value: Any) -> str:
    if value not in REQUESTS:
        raise MagicEditError(f"expected {' or '.join(REQUESTS)}, got {quoted(value)}")
    return value


def _yes(value: Any) -> bool:
    if not isinstance(value, bool):
        raise MagicEditError(f"expected true or false, got {quoted(value)}")
    return value
