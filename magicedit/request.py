"""The request of one edit and its sampling settings: checked and parsed once, resolved against a face.

Every interface builds an `EditRequest`: `ExpressionEditor.edit` from arguments, the command line from
options, batches from manifest rows.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import InitVar, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from magicedit.action_units import parse_emotion, resolved, units_of_emotion, vocabulary_of
from magicedit.errors import ActionUnitError, MagicEditError, NoFaceError
from magicedit.expression import Expression
from magicedit.vocabulary import by_number, is_finite, name_order, quoted, whole_name

Deltas = str | Mapping[str, float] | Sequence[float] | np.ndarray
QUALITIES = ("exact", "balanced", "fast", "live")  # as in the pipeline, whose import takes seconds
MOST_FACES = 100_000  # of a photograph
MOST_GUIDANCE = 1000
MOST_STEPS = 1000  # noise levels of the published schedule, and of ours


class ModelOptions(TypedDict, total=False):
    """Keyword arguments for the model's sampling; each is a field of `Sampling`."""

    steps: int | None
    guidance: float | None
    quality: str | None
    noise_level: float | None
    seed: int


class SamplingOptions(ModelOptions, total=False):
    """Keyword arguments shared by all edits: the model's sampling and the teeth to show."""

    teeth: int | str | None
    references: Sequence[Any]


class EditOptions(SamplingOptions, total=False):
    """Keyword arguments of an edit of photographs; each is a field of `EditRequest`."""

    expression: Expression | str | Path | None
    strength: float
    neutral: bool
    tolerance: float | None
    max_edits: int
    measure: bool


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Sampling settings of the model. None means the default of the quality or of the model.

    Attributes:
        steps: denoising steps.
        guidance: classifier-free guidance scale.
        quality: one of QUALITIES, see `MagicEditPipeline.sampling`.
        noise_level: 0 to 1, how far a model that inverts photographs to noise goes; others do not use it.
        seed: of the initial noise, and of the choice of a donor's mouth.

    Raises:
        MagicEditError: where a value is out of range.
    """

    steps: int | None = None
    guidance: float | None = None
    quality: str | None = None
    noise_level: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for entry in fields(self):
            if isinstance(value := getattr(self, entry.name), np.generic):  # JSON holds Python's numbers only
                object.__setattr__(self, entry.name, value.item())
        if self.steps is not None and not (_is_whole(self.steps) and 1 <= self.steps <= MOST_STEPS):
            raise MagicEditError(
                f"the number of denoising steps must be at least 1 and at most {MOST_STEPS}, "
                f"got {quoted(self.steps)}"
            )
        guidance = self.guidance
        if guidance is not None and not (is_finite(guidance) and 0 <= guidance <= MOST_GUIDANCE):
            raise MagicEditError(
                f"the guidance scale must be a number from 0 to {MOST_GUIDANCE} (3 is usual), "
                f"got {quoted(guidance)}"
            )
        if self.quality is not None and self.quality not in QUALITIES:
            raise MagicEditError(f"quality must be one of {', '.join(QUALITIES)}, got {quoted(self.quality)}")
        if self.noise_level is not None and not (is_finite(self.noise_level) and 0 <= self.noise_level <= 1):
            raise MagicEditError(
                f"the noise level must be a number from 0 to 1, got {quoted(self.noise_level)}"
            )
        if not (_is_whole(self.seed) and 0 <= self.seed < 2**63):
            raise MagicEditError(f"the seed must be an integer from 0 to 2**63 - 1, got {quoted(self.seed)}")


@dataclass(frozen=True)
class EditRequest(Sampling):
    """The arguments of `ExpressionEditor.edit` under the same names; all checks that need no face are done.

    `add` and `set` become mappings of canonical names and `emotion` a name and a strength, so that equal
    requests compare equal. An expression file is read.

    Attributes:
        teeth: number of the donor whose teeth show where the photograph shows none, or "none".
        references: other photographs of the person; the teeth, and the shape of smiles, come from the first
            that shows teeth.
        names: units that a model can edit, for `add` and `set`; default: every known unit.

    Raises:
        MagicEditError: where an argument is malformed or out of range, or two contradict each other.
    """

    teeth: int | str | None = field(default=None, kw_only=True)
    references: Sequence[Any] = field(default=(), kw_only=True)
    add: Deltas | None = None
    set: Deltas | None = None
    emotion: str | tuple[str, float] | None = None
    face: str | int = "all"
    expression: Expression | str | Path | None = None
    strength: float = 1.0
    neutral: bool = False
    tolerance: float | None = None
    max_edits: int = 4
    measure: bool = True
    names: InitVar[Sequence[str] | None] = None

    def __post_init__(self, names: Sequence[str] | None) -> None:
        super().__post_init__()
        check_references(self.references)
        if isinstance(self.expression, str | Path):
            object.__setattr__(self, "expression", Expression.load(self.expression))
        if not isinstance(self.expression, Expression | None):
            raise ActionUnitError(
                f"an expression must be an Expression or the path of one, got {quoted(self.expression)}"
            )
        known = vocabulary_of(names)
        for name, parse in (("add", known.deltas), ("set", known.levels)):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, by_number(parse(value)))
        if self.emotion is not None:
            object.__setattr__(self, "emotion", parse_emotion(self.emotion))
        check_face(self.face)
        self._check_loop()
        if not is_finite(self.strength):
            raise ActionUnitError(
                f"the strength of an expression must be a number, got {quoted(self.strength)}"
            )
        self.check(known)

    def _check_loop(self) -> None:
        """Raises MagicEditError where the settings of a closed loop are invalid."""
        if self.tolerance is None:
            return
        if not (is_finite(self.tolerance) and self.tolerance > 0):
            raise MagicEditError(
                f"the tolerance must be a positive number of intensity steps, got {quoted(self.tolerance)}"
            )
        if not (_is_whole(self.max_edits) and self.max_edits >= 1):
            raise MagicEditError(f"the closed loop needs at least 1 edit, got {quoted(self.max_edits)}")
        if not self.measure:
            raise MagicEditError("the closed loop measures its results; do not switch measuring off")

    def check(self, names: Sequence[str] | None) -> None:
        """Raises ActionUnitError where a model that edits `names` cannot do this for any face.

        names: None: not known yet.
        """
        if names is not None:
            self.deltas(names, dict.fromkeys(vocabulary_of(names).with_sides(), 0.0))

    def deltas(
        self, names: Sequence[str], current: Mapping[str, float], *, continuous: bool = False
    ) -> dict[str, float]:
        """Returns the requested variations of a face with `current` intensities, in the order of `names`.

        Args:
            names: units that the model can edit. current: by name, sides included.
            continuous: for films, as in `action_units.steps_to`.

        Raises:
            ActionUnitError: where the model cannot edit a requested unit, `current` lacks a unit with a
                target, a unit has both a variation and a target, or a sum leaves -10 to 10.
        """
        names = vocabulary_of(names)
        add, levels = names.deltas(self.add or {}), names.levels(self.set or {})
        own = names[: names.numbers]  # without controls of geometry
        settled = self.arrived_at | {*(own if self.neutral else ())}
        parts = [resolved(current, add, levels, self.emotion, names, settled=settled, continuous=continuous)]
        arrived = {whole_name(name) for name in levels}
        if self.expression is not None:
            expression = usable_expression(self.expression, names)
            wholes = {whole_name(name) for name in expression.values}
            if not expression.relative:
                if both := sorted(arrived & wholes, key=name_order):
                    raise ActionUnitError(
                        f"{', '.join(both)}: set, and in the expression to arrive at; choose one"
                    )
                arrived |= wholes
            parts.append(expression.variation(current, self.strength, continuous=continuous))
        if self.neutral:
            rest = [name for name in own if name not in arrived]
            if missing := [name for name in rest if name not in current]:
                raise ActionUnitError(
                    f"a neutral face needs {', '.join(missing)} measured, which the face backend does not"
                )
            sides = {name: value for name, value in current.items() if name != whole_name(name)}
            measured = Expression.measured({name: current[name] for name in rest}, sides)
            at_rest = Expression.neutral(measured.values)
            parts.append(at_rest.variation(measured.values, continuous=continuous))
        return names.total(parts)

    @property
    def arrived_at(self) -> frozenset[str]:
        """Whole units with a target intensity, from `set` or an expression of intensities."""
        of_expression = self.expression is not None and not self.expression.relative
        return frozenset(
            map(whole_name, (*(self.set or ()), *(self.expression.values if of_expression else ())))
        )

    @property
    def is_empty(self) -> bool:
        """Whether the request is empty, so that results are copies."""
        return not (self.add or self.set or self.emotion or self.expression or self.neutral)

    def of_recipe(self, requested: Iterable[str]) -> frozenset[str]:
        """Returns the names in a face's request that the recipe of the emotion asks for, and no other part
        but `neutral`."""
        if self.emotion is None:
            return frozenset()
        values = () if self.expression is None else self.expression.values
        own = {*map(whole_name, (*(self.add or ()), *(self.set or ()), *values))}
        recipe = units_of_emotion(self.emotion[0]) - own
        return frozenset(name for name in requested if whole_name(name) in recipe)

    def sampling(self) -> dict[str, Any]:
        """Returns the fields that are `SamplingOptions`, by name."""
        return {name: getattr(self, name) for name in SamplingOptions.__optional_keys__}

    def to_json(self) -> dict[str, Any]:
        """Returns the fields that differ from an empty request; equal for equal requests."""
        content = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        if self.emotion is not None:
            content["emotion"] = f"{self.emotion[0]}:{self.emotion[1]:g}"
        if self.expression is not None:
            content["expression"] = {
                "values": dict(self.expression.values),
                "relative": self.expression.relative,
            }
        return content


def check_references(references: Any) -> None:
    """Raises MagicEditError unless `references` is a list of photographs, which may be empty."""
    if isinstance(references, str) or not isinstance(references, Sequence):
        raise MagicEditError(f"references must be a list of photographs, got {quoted(references)}")


def check_face(face: str | int) -> None:
    """Raises NoFaceError unless `face` is "all", "largest" or an index from 0."""
    number = _is_whole(face) and 0 <= face < MOST_FACES
    if not number and not (isinstance(face, str) and face in ("all", "largest")):
        raise NoFaceError(f'face must be "all", "largest" or an index from 0, got {quoted(face)}')


def missing_face(index: int, found: int, where: str, largest: str = "the largest") -> NoFaceError:
    """Returns the error of a face that is not there, in the words of people, who count from 1.

    found: number of faces, at least 1. where, largest: of the message.
    """
    return NoFaceError(
        f"face {index + 1} does not exist (index {index} in Python and HTTP): {found} {where}, counted from "
        f"1, {largest}"
    )


def face_number(text: str) -> int:
    """Returns the index, from 0, of a face whose number, from 1, is written in a text of digits.

    Raises NoFaceError for 0.
    """
    if not int(text):
        raise NoFaceError("faces are counted from 1, the largest, got 0")
    return int(text) - 1


def _is_whole(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def usable_expression(expression: Expression, names: Sequence[str]) -> Expression:
    """The expression without measured units beyond `names`; ActionUnitError if such units are requested."""
    vocabulary = vocabulary_of(names)
    if "AU43" in vocabulary and "AU43" not in map(whole_name, expression.values):
        blinks = {name: vocabulary.read(name)[0] for name in expression.values if whole_name(name) == "AU45"}
        values = {blinks.get(name, name): value for name, value in expression.values.items()}
        expression = replace(expression, values=values)
    lacking = sorted({whole_name(name) for name in expression.values} - {*names}, key=name_order)
    limited = expression.limited_to(names)
    if lacking and (expression.relative or not limited.values):
        made_with = f", made with {expression.model}" if expression.model else ""
        raise ActionUnitError(
            f"this expression{made_with} asks for {', '.join(lacking)}, which this model cannot edit; "
            f"it knows {', '.join(names)}"
        )
    return limited
