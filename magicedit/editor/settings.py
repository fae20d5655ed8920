"""The model's sampling settings, device and dtype."""

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from magicedit.errors import MagicEditError, ModelError
from magicedit.faces import Alignment
from magicedit.request import Sampling
from magicedit.vocabulary import quoted
from magicedit.warping import Mouth, choose_mouth, embedded_mouths, own_mouth

if TYPE_CHECKING:
    import torch

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


def usable_device(device: "str | torch.device | None") -> "torch.device | None":
    """Returns the device if this machine has it.

    Raises ModelError where it does not; the message names the available devices.
    """
    import torch

    if device is None:
        return None
    here = ["cpu"] + [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    here += ["mps"] if torch.backends.mps.is_available() else []
    try:
        wanted = torch.device(device)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ModelError(f"unknown device {quoted(device)}; this machine has {', '.join(here)}") from error
    name = f"cuda:{wanted.index or 0}" if wanted.type == "cuda" else wanted.type
    if name not in here:
        raise ModelError(f"there is no device {device} for PyTorch on this machine; it has {', '.join(here)}")
    return wanted


def usable_dtype(dtype: "str | torch.dtype | None") -> "torch.dtype | None":
    """`torch.float16` from "float16", and so on.

    Raises ModelError for any dtype but the three that models support.
    """
    import torch

    allowed = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype is None or dtype in allowed.values():
        return dtype
    if not isinstance(dtype, str) or dtype not in allowed:
        raise ModelError(f"dtype must be one of {', '.join(allowed)}, got {quoted(dtype)}")
    return allowed[dtype]
