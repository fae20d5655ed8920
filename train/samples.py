"""Pairs of photographs with their random draws of a step, and their latents."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from magicedit.data.pairs import PairDataset, UnusablePictureError
from magicedit.errors import DatasetError
from magicedit.pipelines.pipeline_magicedit import MagicEditPipeline

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingSamples(torch.utils.data.Dataset):
    """Pairs with the noise and the timestep of their training step, all a function of (seed, n).

    noise_levels: timesteps of the schedule. noisy_end: prefer noisy ones. timesteps: draw only these, equally
    often. images: return pictures instead of the record numbers of cached latents.
    """

    pairs: PairDataset
    latent_shape: tuple[int, int, int]
    seed: int
    noise_levels: int
    noisy_end: bool
    images: bool
    timesteps: tuple[int, ...] | None = None

    def __getitem__(self, n: int) -> dict:
        rng = np.random.default_rng((self.seed, n, 1))  # pairs draw from (seed, n)
        # Movement is learned at the noisy end; near the clean one the noisy image itself shows the target
        u = rng.random()
        share = 1 - u**2 if self.noisy_end else u
        timestep = min(self.noise_levels - 1, int(self.noise_levels * share))
        if self.timesteps is not None:
            timestep = self.timesteps[int(len(self.timesteps) * u)]
        if self.images:
            sample = self.pairs[n]
        else:
            source, target, au_delta = self.pairs.pair(n)[:3]
            au_delta = torch.as_tensor(au_delta)
            sample = {"source_index": source, "target_index": target, "au_delta": au_delta}
        return sample | {
            "noise": torch.from_numpy(rng.standard_normal(self.latent_shape, dtype=np.float32)),
            "timestep": timestep,
            # Whether the source is unmodified, as in `record_images`
            "source_as_stored": not self.pairs.augment and not self.pairs.pair(n).source_command.any(),
        }


def faces_to_preview(
    open_validation: Callable[[], PairDataset], pairs: PairDataset, count: int
) -> list[dict[str, Any]]:
    """Returns `examples` of the validation split, or of the training pairs where there is none."""
    try:
        pairs = open_validation()
    except DatasetError as error:  # no validation split, or other landmarks
        logger.info("previews show people of the training split: %s", error)
    return pairs.examples(count)


@dataclass(frozen=True)
class SampleOrder(torch.utils.data.Sampler):
    """Sample numbers of one process: step by step, micro-step by micro-step, disjoint between processes."""

    start_step: int
    stop_step: int
    micro_steps: int
    batch_size: int
    rank: int
    world_size: int

    def __iter__(self):
        for micro in range(self.start_step * self.micro_steps, self.stop_step * self.micro_steps):
            first = (micro * self.world_size + self.rank) * self.batch_size
            yield from range(first, first + self.batch_size)

    def __len__(self) -> int:
        return (self.stop_step - self.start_step) * self.micro_steps * self.batch_size


@torch.no_grad()
def cache_latents(
    pipeline: MagicEditPipeline, pairs: PairDataset, device, batch_size: int
) -> dict[str, torch.Tensor]:
    """Unscaled latents of every photograph and of its condition image, float32 on the CPU.

    Those of a picture that turns out to be unusable are arbitrary, since it is drawn no more.
    """
    cached = {"image": [], "condition": []}
    for first in range(0, len(pairs), batch_size):
        records = [_images(pairs, i) for i in range(first, min(first + batch_size, len(pairs)))]
        for name, images in zip(cached, zip(*records, strict=True), strict=True):
            cached[name].append(pipeline.encode_images(torch.stack(images).to(device)).float().cpu())
    return {name: torch.cat(parts) for name, parts in cached.items()}


def _images(pairs: PairDataset, index: int) -> tuple[torch.Tensor, torch.Tensor]:
    try:
        return pairs.record_images(index)
    except UnusablePictureError:  # it is named in the log, and counted
        nothing = torch.zeros(3, pairs.resolution, pairs.resolution)
        return nothing, nothing
