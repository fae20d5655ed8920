"""The model's sampling settings."""

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from magicedit.errors import MagicEditError
from magicedit.faces import Alignment
from magicedit.request import Sampling
from magicedit.vocabulary import quoted
from magicedit.warping import FaceShape, Mouth, choose_mouth, embedded_mouths, own_mouth

NO_TEETH = "none"


@dataclass(frozen=True)
class MouthSettings:
    """Which teeth show in a mouth that opens.

    In order of preference: the photograph's own teeth, where its lips are apart; those of another photograph
    of the person; those of a donor, chosen by the width of the mouth and the seed.

    teeth: number of a donor, from 0; "none": no teeth; None: as above. references: mouths of other
    photographs of the person; the first is used. Raises MagicEditError where there is no such donor.
    """

    teeth: int | str | None = None
    references: tuple[Mouth, ...] = ()

    def __post_init__(self):
        count = len(embedded_mouths())
        number = isinstance(self.teeth, int) and not isinstance(self.teeth, bool) and 0 <= self.teeth < count
        if not number and self.teeth not in (None, NO_TEETH):
            raise MagicEditError(
                f'teeth must be "{NO_TEETH}" or a number from 0 to {count - 1}, got {quoted(self.teeth)}'
            )

    @property
    def is_asked(self) -> bool:
        """Whether the user requested specific teeth; models that paint mouths then do not."""
        return self.teeth is not None or bool(self.references)

    @property
    def smile(self) -> FaceShape | None:
        """The face that smiles in the reference, whose lips smiles then follow."""
        return self.references[0].shape if self.references else None

    def donor(self, landmarks: np.ndarray, seed: int) -> Mouth:
        """Returns a donor's mouth for a face with landmarks (478, 2) px."""
        return embedded_mouths()[self.teeth] if isinstance(self.teeth, int) else choose_mouth(landmarks, seed)

    def mouth(
        self, pixels: np.ndarray, landmarks: np.ndarray, alignment: Alignment, donor: Mouth
    ) -> Mouth | None:
        """Returns the mouth that shows in a face's opened lips; None: no teeth.

        pixels (height, width, 3) uint8 RGB, landmarks (478, 2) px of it; alignment: of the face's crop.
        """
        own = own_mouth(pixels, landmarks, alignment, "photograph")
        if own is not None:
            return own
        if self.teeth is not None:
            return None if self.teeth == NO_TEETH else donor
        return self.references[0] if self.references else donor

    def to_json(self) -> dict[str, Any]:
        """Equal for equal settings."""
        digests = [
            hashlib.sha256(np.ascontiguousarray(mouth.pixels)).hexdigest() for mouth in self.references
        ]
        return {"teeth": self.teeth, "references": digests}


@dataclass(frozen=True, kw_only=True)
class SamplingSettings(Sampling):
    """A `Sampling` with the teeth to show: `mouths` are already found."""

    mouths: MouthSettings = field(default_factory=MouthSettings)

    def to_json(self) -> dict[str, Any]:
        """Equal for equal settings."""
        return vars(self) | {"mouths": self.mouths.to_json()}
