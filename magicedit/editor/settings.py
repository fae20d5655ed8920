"""How the model samples, and where and in which numbers it runs."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from magicedit.errors import MagicEditError, ModelError

if TYPE_CHECKING:
    import torch

QUALITIES = ("exact", "balanced", "fast", "live")  # the pipeline's, here because its import takes seconds
MOST_STEPS = 1000  # noise levels of the published schedule, and of ours


@dataclass(frozen=True)
class SamplingSettings:
    """Of the model's calls; None: what the quality or the model itself says.

    steps: denoising steps. guidance: classifier-free guidance scale. quality: see
    `MagicEditPipeline.sampling`. seed: of the initial noise.

    Raises:
        MagicEditError: unless they make sense.
    """

    steps: int | None = None
    guidance: float | None = None
    quality: str | None = None
    seed: int = 0

    def __post_init__(self):
        if self.steps is not None and not 1 <= self.steps <= MOST_STEPS:
            raise MagicEditError(
                f"the number of denoising steps must be at least 1 and at most {MOST_STEPS}, got {self.steps}"
            )
        if self.guidance is not None and not (math.isfinite(self.guidance) and self.guidance >= 0):
            raise MagicEditError(
                f"the guidance scale must be a number from 0 (3 is usual), got {self.guidance}"
            )
        if self.quality is not None and self.quality not in QUALITIES:
            raise MagicEditError(f"quality must be one of {', '.join(QUALITIES)}, got {self.quality!r}")
        if not 0 <= self.seed < 2**63:
            raise MagicEditError(f"the seed must be an integer from 0 to 2**63 - 1, got {self.seed}")

    def arguments(self) -> dict[str, Any]:
        """Of a pipeline call."""
        return {
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance,
            "quality": self.quality,
        }


def usable_device(device: "str | torch.device | None") -> "torch.device | None":
    """The device, if this machine has it.

    Raises:
        ModelError: naming the devices that are here.
    """
    import torch

    if device is None:
        return None
    here = ["cpu"] + [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    here += ["mps"] if torch.backends.mps.is_available() else []
    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        raise ModelError(f"unknown device {device!r}; this machine has {', '.join(here)}") from error
    name = f"cuda:{wanted.index or 0}" if wanted.type == "cuda" else wanted.type
    if name not in here:
        raise ModelError(f"there is no device {device} for PyTorch on this machine; it has {', '.join(here)}")
    return wanted


def usable_dtype(dtype: "str | torch.dtype | None") -> "torch.dtype | None":
    """`torch.float16` from "float16", and so on.

    Raises:
        ModelError: for anything but the three that models run in.
    """
    import torch

    allowed = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype is None or dtype in allowed.values():
        return dtype
    if dtype not in allowed:
        raise ModelError(f"dtype must be one of {', '.join(allowed)}, got {dtype!r}")
    return allowed[dtype]
