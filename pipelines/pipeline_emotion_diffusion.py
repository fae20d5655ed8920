"""Emotion latent diffusion, which travels with its weights.

A latent diffusion model (Rombach et al. 2022, arXiv:2112.10752) conditional on an emotion. An edit inverts
the deterministic DDIM process (Song et al. 2021, arXiv:2010.02502) under the source's emotion up to a noise
level, and denoises under the target's. `save_pretrained` writes this file beside the weights, so that
`DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)` works where magicedit is not installed. It
therefore imports nothing but torch, numpy, Pillow, diffusers and huggingface_hub.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DModel
from diffusers.utils import BaseOutput

from .safe_pipeline import Images, SafePipeline

WHOLE = 5.0  # intensity steps of a whole emotion


@dataclass
class EmotionDiffusionOutput(BaseOutput):
    """`images`: the edits, in the asked `output_type`. `round_trips`: the same denoised under the source's
    own emotion, what autoencoder and inversion make of the sources."""

    images: Any
    round_trips: Any


def noise_grid(level: float, steps: int, timesteps: int) -> list[int]:
    """Timesteps from 0 to a share `level` of the schedule's last one: `steps` + 1, evenly spaced.

    Raises:
        ValueError: where the level is not from 0 to 1, or `steps` below 1.
    """
    if not 0 <= level <= 1:
        raise ValueError(f"noise_level must be a number from 0 to 1, got {level}")
    if steps < 1:
        raise ValueError(f"num_inference_steps must be at least 1, got {steps}")
    return [round(level * (timesteps - 1) * step / steps) for step in range(steps + 1)]


class EmotionDiffusionPipeline(SafePipeline):
    """Changes the emotion of aligned face crops by DDIM inversion and denoising.

    The UNet's classes are neutral, the emotions in the order of `action_units`, and "any", which stands for
    an unknown emotion.

    Args:
        vae, unet, scheduler: stock networks of diffusers, and the noise schedule.
        resolution: pixels a side of the crops.
        action_units: names of the emotions, joined by commas.
        controls: descriptions of these controls, as JSON objects.
        default_noise_level, default_steps, default_guidance_scale: of `__call__`.
    """

    model_cpu_offload_seq = "unet->vae"
    component_classes: ClassVar = {"vae": AutoencoderKL, "unet": UNet2DModel, "scheduler": DDIMScheduler}

    def __init__(
        self,
        vae: AutoencoderKL,
        unet: UNet2DModel,
        scheduler: DDIMScheduler,
        resolution: int = 64,
        action_units: str = "",
        controls: list[dict[str, Any]] | None = None,
        default_noise_level: float = 0.5,
        default_steps: int = 20,
        default_guidance_scale: float = 3.0,
    ):
        super().__init__()
        names = action_units.split(",") if action_units else []
        if unet.config.num_class_embeds != len(names) + 2:
            raise ValueError(
                f"action_units names {len(names)} emotions, so unet needs {len(names) + 2} classes "
                f"(neutral and any beside them), got {unet.config.num_class_embeds}"
            )
        scale = 2 ** (len(vae.config.block_out_channels) - 1)
        if unet.config.sample_size * scale != resolution:
            raise ValueError(
                f"latents of {resolution} px have {resolution / scale:g} a side, unet takes "
                f"{unet.config.sample_size}"
            )
        if unet.config.in_channels != vae.config.latent_channels:
            raise ValueError(
                f"unet takes {unet.config.in_channels} channels, vae has {vae.config.latent_channels}"
            )
        if scheduler.config.prediction_type != "v_prediction":
            kind = scheduler.config.prediction_type
            raise ValueError(f"the scheduler's prediction_type must be v_prediction, got {kind}")
        noise_grid(default_noise_level, default_steps, scheduler.config.num_train_timesteps)
        self.register_modules(vae=vae, unet=unet, scheduler=scheduler)
        self.register_to_config(
            resolution=resolution,
            action_units=action_units,
            controls=controls,
            default_noise_level=default_noise_level,
            default_steps=default_steps,
            default_guidance_scale=default_guidance_scale,
        )

    # -- inputs --

    def class_weights(
        self, au_delta, batch: int, source_is_known: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights of the classes of source and target, (batch, classes) each; each row sums to 1.

        A step down, such as happiness -5, means that the source shows the emotion, a step up that the target
        shall; what is left of the `WHOLE` is neutral.

        au_delta: (batch, emotions) or (emotions,), in intensity steps. source_is_known: whether the source is
        neutral where nothing goes down; else its class is "any".

        Raises:
            ValueError: where sizes do not fit, or values are not finite.
        """
        deltas = torch.as_tensor(np.asarray(au_delta), dtype=torch.float32, device=self.device)
        deltas = deltas.expand(batch, -1) if deltas.ndim == 1 else deltas
        expected = (batch, self.unet.config.num_class_embeds - 2)
        if deltas.shape != expected:
            raise ValueError(f"au_delta must have shape {expected}, got {tuple(deltas.shape)}")
        if not torch.isfinite(deltas).all():
            raise ValueError("au_delta must be finite")

        def weights(shares: torch.Tensor, known: bool = True) -> torch.Tensor:
            rest = 1 - shares.sum(1, keepdim=True)
            ends = (rest, 0 * rest) if known else (0 * rest, rest)
            return torch.cat([ends[0], shares, ends[1]], dim=1)

        shares = deltas / WHOLE
        source = weights((-shares).clamp(min=0), source_is_known)
        return source, weights(shares.clamp(min=0))

    # -- stages --

    def encode(self, pictures: torch.Tensor) -> torch.Tensor:
        """Latents (batch, channels, height, width) of unit spread, of pictures in [-1, 1]."""
        config = self.vae.config
        shift = config.shift_factor or 0.0
        return (self.vae.encode(pictures).latent_dist.mode() - shift) * config.scaling_factor

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Pictures (batch, 3, resolution, resolution) in about [-1, 1]."""
        config = self.vae.config
        return self.vae.decode(latents / config.scaling_factor + (config.shift_factor or 0.0)).sample

    def _estimate(
        self, latents: torch.Tensor, timestep: int, weights: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Clean latents and noise as the UNet sees them, each (batch, channels, height, width).

        weights: (batch, classes); classes without any weight are not evaluated.
        """
        classes = weights.any(dim=0).nonzero()[:, 0]  # (used,)
        count, used = len(latents), len(classes)
        output = self.unet(
            latents.repeat(used, 1, 1, 1), timestep, class_labels=classes.repeat_interleave(count)
        ).sample
        parts = weights.T[classes].reshape(-1, 1, 1, 1).to(output) * output  # (used * batch, ...)
        output = parts.unflatten(0, (used, count)).sum(0)
        alpha, sigma = self._alpha_sigma(timestep)
        return alpha * latents - sigma * output, sigma * latents + alpha * output

    def _alpha_sigma(self, timestep: int) -> tuple[float, float]:
        cumulative = float(self.scheduler.alphas_cumprod[timestep])
        return math.sqrt(cumulative), math.sqrt(1 - cumulative)

    @torch.no_grad()
    def walk(
        self,
        latents: torch.Tensor,
        grid: list[int],
        weights: torch.Tensor,
        on_step: Callable[[int], None] | None = None,
    ) -> torch.Tensor:
        """Deterministic DDIM steps from the first to the last timestep of a grid (Song et al. 2021, eq. 12).

        With rising timesteps it inverts, with falling ones it denoises.

        latents: (batch, channels, height, width). weights: (batch, classes), see `class_weights`. on_step:
        called after each step with its number, from 0.
        """
        for step, (here, there) in enumerate(itertools.pairwise(grid)):
            clean, noise = self._estimate(latents, here, weights)
            alpha, sigma = self._alpha_sigma(there)
            latents = alpha * clean + sigma * noise
            if on_step is not None:
                on_step(step)
        return latents

    # -- what it does --

    @torch.no_grad()
    def __call__(
        self,
        source: Images,
        au_delta,
        noise_level: float | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        source_is_known: bool = True,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> EmotionDiffusionOutput | tuple:
        """Edits by DDIM inversion under the source's emotion and denoising under the target's.

        Args:
            source: aligned crops, see `pictures`.
            au_delta: (batch, emotions) or (emotions,), in intensity steps, see `class_weights`.
            noise_level: share of the noise schedule that the inversion goes up to, 0 to 1. 0 changes nothing;
                near 1 the person is lost.
            num_inference_steps: of the inversion, and again of the denoising.
            guidance_scale: w of `e_source + w (e_target - e_source)` at each denoising step.
            source_is_known: see `class_weights`.
            output_type: pil, np or pt. return_dict: whether to return an object; else a tuple of its fields.

        Raises:
            ValueError: where sizes do not fit or values are out of range.
        """
        # 1. Classes, and latents up to the noise level: (batch, channels, height, width)
        pictures = self.pictures(source)
        classes = self.class_weights(au_delta, len(pictures), source_is_known)
        edited, again = self.edit(
            self.encode(pictures), *classes, noise_level, num_inference_steps, guidance_scale
        )
        # 2. Pictures
        images, round_trips = (
            self.finished(self.decode(latents), output_type=output_type) for latents in (edited, again)
        )
        output = EmotionDiffusionOutput(images, round_trips)
        return output if return_dict else output.to_tuple()

    @torch.no_grad()
    def edit(
        self,
        latents: torch.Tensor,
        source: torch.Tensor,
        target: torch.Tensor,
        noise_level: float | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        on_step: Callable[[int], None] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents of the edits and of the round trips, see `EmotionDiffusionOutput`.

        latents: as of `encode`. source, target: as of `class_weights`. The rest as of `__call__`; `on_step`
        counts the steps of inversion and denoising.
        """
        config = self.config
        level = config.default_noise_level if noise_level is None else noise_level
        steps = config.default_steps if num_inference_steps is None else num_inference_steps
        guidance = config.default_guidance_scale if guidance_scale is None else guidance_scale
        grid = noise_grid(level, steps, self.scheduler.config.num_train_timesteps)
        noisy = self.walk(latents, grid, source, on_step)

        def later(step: int) -> None:
            if on_step is not None:
                on_step(steps + step)

        # The same classes at every weight give the round trip, so a request of zero is one at any guidance
        both = torch.cat([source + guidance * (target - source), source])
        return self.walk(noisy.repeat(2, 1, 1, 1), grid[::-1], both, later).chunk(2)
