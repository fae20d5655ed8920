"""Attribute diffusion, which travels with its weights.

A diffusion model of pixels (Ho et al. 2020, arXiv:2006.11239) that sees the source picture and what the edit
shall show of it. Pictures are sampled by DDIM (Song et al. 2021, arXiv:2010.02502) in few steps.
`save_pretrained` writes this file beside the weights, so that `DiffusionPipeline.from_pretrained(folder,
trust_remote_code=True)` works where magicedit is not installed. It therefore imports nothing but torch,
numpy, Pillow, diffusers and huggingface_hub.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import ConfigMixin, DDIMScheduler, ModelMixin, UNet2DModel
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor

from .safe_pipeline import Images, SafePipeline

WHOLE = 5.0  # intensity steps of a whole attribute
PREDICTIONS = ("epsilon", "sample")


@dataclass
class AttributeDiffusionOutput(BaseOutput):
    """`images`: the edits, in the asked `output_type`. `kept`: what the same noise gives for no request."""

    images: Any
    kept: Any


class AttributeEmbedding(ModelMixin, ConfigMixin):
    """A vector of attributes to what is added to the UNet's time embedding.

    Args:
        attributes: size of a vector.
        width: of the time embedding.
    """

    @register_to_config
    def __init__(self, attributes: int = 40, width: int = 128):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(attributes, width), torch.nn.SiLU(), torch.nn.Linear(width, width)
        )

    def forward(self, attributes: torch.Tensor) -> torch.Tensor:
        """(batch, attributes) to (batch, width)."""
        return self.layers(attributes)


def combination_matrix(
    names: list[str], combinations: Mapping[str, Mapping[str, float]]
) -> tuple[list[str], np.ndarray]:
    """The attributes among the names of controls, and how controls ask for them, (controls, attributes).

    combinations: control -> attribute -> share; the other controls are attributes.

    Raises:
        ValueError: where a combination is no control, or names something that is no attribute.
    """
    attributes = [name for name in names if name not in combinations]
    strangers = [name for name in combinations if name not in names]
    strangers += [part for parts in combinations.values() for part in parts if part not in attributes]
    if strangers:
        raise ValueError(f"combinations name {', '.join(strangers)}; the controls are {', '.join(names)}")
    rows = [combinations.get(name, {name: 1.0}) for name in names]
    matrix = [[row.get(attribute, 0.0) for attribute in attributes] for row in rows]
    return attributes, np.array(matrix, np.float32).reshape(len(names), len(attributes))


class AttributeDiffusionPipeline(SafePipeline):
    """Changes attributes of aligned face crops by conditional diffusion.

    The UNet sees the noisy picture and the source on its six channels. A vector of attributes says what the
    picture shall show: 1 the attribute, -1 not the attribute, 0 nothing about it.

    Args:
        unet: a stock network with `class_embed_type="identity"`. Where the scheduler's prediction is
            "sample", its output is the difference of the clean picture to the source, else the noise.
        embedding: of the attributes.
        scheduler: the noise schedule.
        resolution: pixels a side of the crops.
        action_units: names of the controls, joined by commas.
        controls: descriptions of these controls, as JSON objects.
        combinations: controls that are several attributes, see `combination_matrix`.
        default_noise_level, default_steps, default_guidance_scale: of `__call__`.
    """

    model_cpu_offload_seq = "embedding->unet"
    component_classes: ClassVar = {
        "unet": UNet2DModel,
        "embedding": AttributeEmbedding,
        "scheduler": DDIMScheduler,
    }

    def __init__(
        self,
        unet: UNet2DModel,
        embedding: AttributeEmbedding,
        scheduler: DDIMScheduler,
        resolution: int = 64,
        action_units: str = "",
        controls: list[dict[str, Any]] | None = None,
        combinations: dict[str, dict[str, float]] | None = None,
        default_noise_level: float = 1.0,
        default_steps: int = 8,
        default_guidance_scale: float = 1.5,
    ):
        super().__init__()
        names = action_units.split(",") if action_units else []
        attributes, _ = combination_matrix(names, combinations or {})
        if embedding.config.attributes != len(attributes):
            raise ValueError(
                f"action_units names {len(attributes)} attributes, embedding takes "
                f"{embedding.config.attributes}"
            )
        if (unet.config.sample_size, unet.config.in_channels) != (resolution, 6):
            found = f"{unet.config.sample_size} px and {unet.config.in_channels}"
            raise ValueError(f"unet must take pictures of {resolution} px and 6 channels, got {found}")
        if scheduler.config.prediction_type not in PREDICTIONS:
            kind = scheduler.config.prediction_type
            raise ValueError(f"the scheduler's prediction_type must be epsilon or sample, got {kind}")
        self.register_modules(unet=unet, embedding=embedding, scheduler=scheduler)
        self.register_to_config(
            resolution=resolution,
            action_units=action_units,
            controls=controls,
            combinations=combinations,
            default_noise_level=default_noise_level,
            default_steps=default_steps,
            default_guidance_scale=default_guidance_scale,
        )
        self.timesteps()  # checks the defaults

    # -- inputs --

    def attributes(self, au_delta, batch: int) -> torch.Tensor:
        """Vectors of attributes, (batch, attributes), of a request.

        au_delta: (batch, controls) or (controls,), in intensity steps, of which `WHOLE` are an attribute.

        Raises:
            ValueError: where sizes do not fit, or values are not finite.
        """
        names = self.config.action_units.split(",")
        _, matrix = combination_matrix(names, self.config.combinations or {})
        deltas = np.asarray(au_delta, np.float32)
        deltas = np.tile(deltas, (batch, 1)) if deltas.ndim == 1 else deltas
        if deltas.shape != (batch, len(names)):
            raise ValueError(f"au_delta must have shape {(batch, len(names))}, got {deltas.shape}")
        if not np.isfinite(deltas).all():
            raise ValueError("au_delta must be finite")
        return torch.from_numpy(deltas / WHOLE @ matrix).to(self.device, self.dtype)

    def timesteps(self, noise_level: float | None = None, steps: int | None = None) -> list[int]:
        """Falling timesteps above 0, at most `steps`, evenly spaced from a share of the schedule's last one.

        Raises:
            ValueError: where the level is not from 0 to 1, or `steps` below 1.
        """
        level = self.config.default_noise_level if noise_level is None else noise_level
        steps = self.config.default_steps if steps is None else steps
        if not 0 <= level <= 1:
            raise ValueError(f"noise_level must be a number from 0 to 1, got {level}")
        if steps < 1:
            raise ValueError(f"num_inference_steps must be at least 1, got {steps}")
        last = self.scheduler.config.num_train_timesteps - 1
        grid = (round(level * last * (1 - step / steps)) for step in range(steps))
        return [timestep for timestep in grid if timestep]

    # -- stages --

    def estimate(
        self, noisy: torch.Tensor, source: torch.Tensor, timestep: int, attributes: torch.Tensor
    ) -> torch.Tensor:
        """The clean picture in [-1, 1] as the UNet sees it, (batch, 3, height, width)."""
        embedded = self.embedding(attributes)
        inputs = torch.cat([noisy, source], dim=1)  # (batch, 6, height, width)
        output = self.unet(inputs, timestep, class_labels=embedded).sample
        alpha, sigma = self._alpha_sigma(timestep)
        is_noise = self.scheduler.config.prediction_type == "epsilon"
        clean = (noisy - sigma * output) / alpha if is_noise else source + output
        return clean.clamp(-1, 1)

    def _alpha_sigma(self, timestep: int) -> tuple[float, float]:
        cumulative = float(self.scheduler.alphas_cumprod[timestep])
        return math.sqrt(cumulative), math.sqrt(1 - cumulative)

    @torch.no_grad()
    def sample(
        self,
        source: torch.Tensor,
        attributes: torch.Tensor,
        noise: torch.Tensor,
        noise_level: float | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        on_step: Callable[[int], None] | None = None,
    ) -> torch.Tensor:
        """Deterministic DDIM steps (Song et al. 2021, eq. 12) from the noisy source to a clean picture.

        Guidance (Ho and Salimans 2022, arXiv:2207.12598) is away from the picture of no request.

        source, noise: (batch, 3, height, width). attributes: (batch, attributes). on_step: called after each
        step with its number, from 0. The rest as of `__call__`.
        """
        scale = self.config.default_guidance_scale if guidance_scale is None else guidance_scale
        grid = self.timesteps(noise_level, num_inference_steps)
        clean = source
        for step, timestep in enumerate(grid):
            alpha, sigma = self._alpha_sigma(timestep)
            if step == 0:
                noisy = alpha * source + sigma * noise
            clean = self._guided(noisy, source, timestep, attributes, scale)
            if step + 1 < len(grid):
                predicted = (noisy - alpha * clean) / sigma
                alpha, sigma = self._alpha_sigma(grid[step + 1])
                noisy = alpha * clean + sigma * predicted
            if on_step is not None:
                on_step(step)
        return clean

    def _guided(
        self, noisy: torch.Tensor, source: torch.Tensor, timestep: int, asked: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """The guided clean picture, (batch, 3, height, width)."""
        if scale == 1 or not asked.any():
            return self.estimate(noisy, source, timestep, asked)
        both = torch.cat([asked, torch.zeros_like(asked)])  # (2 * batch, attributes)
        pictures = (values.repeat(2, 1, 1, 1) for values in (noisy, source))
        found, unasked = self.estimate(*pictures, timestep, both).chunk(2)
        return (unasked + scale * (found - unasked)).clamp(-1, 1)

    # -- what it does --

    @torch.no_grad()
    def __call__(
        self,
        source: Images,
        au_delta,
        noise_level: float | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> AttributeDiffusionOutput | tuple:
        """Edits by denoising noise, or the noisy source, under the attributes that are asked for.

        Args:
            source: aligned crops, see `pictures`.
            au_delta: (batch, controls) or (controls,), in intensity steps, see `attributes`.
            noise_level: share of the noise schedule at which sampling starts from the noisy source, 0 to 1.
                1 starts from noise alone; 0 returns the source.
            num_inference_steps: DDIM steps.
            guidance_scale: w of `x_none + w (x_asked - x_none)`, clean pictures at each step.
            generator: of the noise.
            output_type: pil, np or pt. return_dict: whether to return an object; else a tuple of its fields.

        Raises:
            ValueError: where sizes do not fit or values are out of range.
        """
        # 1. Pictures and attributes: (batch, 3, height, width), (batch, attributes)
        pictures = self.pictures(source)
        asked = self.attributes(au_delta, len(pictures))
        noise = randn_tensor(pictures.shape, generator, self.device, self.dtype)
        # 2. DDIM, of the request and of none
        settings = noise_level, num_inference_steps, guidance_scale
        found = [self.sample(pictures, y, noise, *settings) for y in (asked, 0 * asked)]
        # 3. Pictures
        images, kept = (self.finished(x, output_type=output_type) for x in found)
        output = AttributeDiffusionOutput(images, kept)
        return output if return_dict else output.to_tuple()
