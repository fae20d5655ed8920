"""One training step from cached latents, as published and as here; see `speed.py`."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from naive import NaiveNetworks
from proxy import ModelSize

from magicedit.models import encode_reference, freeze_unused_reference
from magicedit.pipelines.pipeline_magicedit import MagicEditPipeline
from magicedit.train.networks import Networks
from magicedit.train.objectives import add_noise, noise_objective


@dataclass(frozen=True)
class TrainingBatch:
    """Cached latents and what a step draws; shapes as in `Networks.forward`."""

    noisy: torch.Tensor
    condition: torch.Tensor
    identity: torch.Tensor
    clean: torch.Tensor
    noise: torch.Tensor
    timesteps: torch.Tensor
    alphas: torch.Tensor
    prompt_embeds: torch.Tensor
    au_delta: torch.Tensor

    @property
    def inputs(self) -> tuple[torch.Tensor, ...]:
        return (self.noisy, self.condition, self.identity, self.timesteps, self.prompt_embeds, self.au_delta)


def training_batch(
    size: ModelSize, scheduler, batch: int, num_aus: int, device: torch.device
) -> TrainingBatch:
    generator = torch.Generator().manual_seed(0)
    side = size.resolution // 8
    identity, condition, clean, noise = torch.randn(4, batch, 4, side, side, generator=generator).to(device)
    timesteps = torch.randint(0, scheduler.config.num_train_timesteps, (batch,), generator=generator)
    alphas = scheduler.alphas_cumprod[timesteps].float().to(device)
    prompt_embeds = torch.randn(1, size.text_tokens, size.text_width, generator=generator).to(device)
    au_delta = torch.randn(batch, num_aus, generator=generator).to(device)
    noisy = add_noise(clean, noise, alphas)
    return TrainingBatch(
        noisy, condition, identity, clean, noise, timesteps.to(device), alphas, prompt_embeds, au_delta
    )


def training_losses(
    pipeline: MagicEditPipeline, batch: TrainingBatch, dtype: torch.dtype
) -> dict[str, tuple[Callable[[], torch.Tensor], list[torch.nn.Parameter]]]:
    """How each arm computes its loss, and what it trains. Weights are float32; another `dtype` is autocast.

    naive: as published; exact: our networks; cached: with a frozen reference, whose features of these faces
    were computed before.
    """
    device = batch.noisy.device
    for unet in (pipeline.unet, pipeline.reference_unet):
        unet.requires_grad_(True).train()
    freeze_unused_reference(pipeline.reference_unet)
    naive, exact = NaiveNetworks(pipeline), Networks(pipeline)
    with torch.no_grad(), autocast(device, dtype):
        features = encode_reference(pipeline.reference_unet, batch.identity, batch.prompt_embeds)

    def cached(noisy, condition, identity, timesteps, prompt_embeds, au_delta):
        return exact(noisy, condition, None, timesteps, prompt_embeds, au_delta, features)

    def loss_of(forward):
        def loss() -> torch.Tensor:
            with autocast(device, dtype):
                output = forward(*batch.inputs)
            return noise_objective(output, batch.clean, batch.noise, batch.alphas)

        return loss

    both = [p for p in exact.parameters() if p.requires_grad]
    return {
        "naive": (loss_of(naive), both),
        "exact": (loss_of(exact), both),
        "cached": (loss_of(cached), list(pipeline.unet.parameters())),
    }


def autocast(device: torch.device, dtype: torch.dtype):
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype)


def optimiser_step(
    loss: Callable[[], torch.Tensor], parameters: list[torch.nn.Parameter]
) -> Callable[[], None]:
    """Returns an optimiser's step, whose rate is so small that hundreds leave the weights what they are."""
    optimizer = torch.optim.AdamW(parameters, lr=1e-9, fused=True)

    def step() -> None:
        loss().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step
