"""What one edit of a batch asks for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from magicedit.action_units import (
    DESCRIPTIONS,
    by_number,
    parse_deltas,
    parse_emotion,
    parse_levels,
    with_sides,
)
from magicedit.editor.closed_loop import check_tolerance
from magicedit.editor.editor import requested_deltas
from magicedit.editor.settings import MouthSettings, SamplingSettings
from magicedit.errors import NoFaceError
from magicedit.expression import Expression


@dataclass(frozen=True)
class EditRequest:
    """The arguments of `ExpressionEditor.edit` under the same names, checked as far as no face is needed.

    Raises:
        MagicEditError: where one of them is malformed or out of range, or two contradict each other.
    """

    add: str | Mapping[str, float] | None = None
    set: str | Mapping[str, float] | None = None
    emotion: str | None = None
    expression: Expression | None = None
    strength: float = 1.0
    neutral: bool = False
    face: str | int = "all"
    tolerance: float | None = None
    max_edits: int = 4
    steps: int | None = None
    guidance: float | None = None
    seed: int = 0
    quality: str | None = None
    measure: bool = True
    teeth: int | str | None = None
    references: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = tuple(DESCRIPTIONS)
        for field, parse in (("add", parse_deltas), ("set", parse_levels)):
            value = getattr(self, field)
            if value is not None:  # one spelling, so that equal requests compare equal
                object.__setattr__(self, field, by_number(parse(value, names)))
        if self.emotion is not None:
            name, strength = parse_emotion(self.emotion)
            object.__setattr__(self, "emotion", f"{name}:{strength:g}")
        number = isinstance(self.face, int) and not isinstance(self.face, bool) and self.face >= 0
        if not number and self.face not in ("all", "largest"):
            raise NoFaceError(f'face must be "all", "largest" or a number from 0, got {self.face!r}')
        SamplingSettings(self.steps, self.guidance, self.quality, self.seed, MouthSettings(self.teeth))
        check_tolerance(self.tolerance, self.max_edits, self.measure)
        self.check(names)

    def check(self, names: Sequence[str] | None) -> None:
        """ActionUnitError where a model that edits `names` could not do this whatever a face shows.

        names: None: not known yet.
        """
        if names is None:
            return
        requested_deltas(
            names,
            dict.fromkeys(with_sides(names), 0.0),
            add=self.add,
            set=self.set,
            emotion=self.emotion,
            expression=self.expression,
            strength=self.strength,
            neutral=self.neutral,
        )

    @property
    def is_empty(self) -> bool:
        """Whether it asks for nothing at all, so that results are copies."""
        return not (self.add or self.set or self.emotion or self.expression or self.neutral)

    def arguments(self) -> dict[str, Any]:
        """Of `ExpressionEditor.edit`."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def to_json(self) -> dict[str, Any]:
        """What differs from a request for nothing; equal for equal requests."""
        content = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        if self.expression is not None:
            content["expression"] = {
                "values": dict(self.expression.values),
                "relative": self.expression.relative,
            }
        return content
