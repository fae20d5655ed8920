"""Pairs of photographs with their random draws of a step, and their latents."""

import contextlib
import itertools
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from accelerate import Accelerator

from magicedit.data.pairs import PairDataset, UnusablePictureError
from magicedit.errors import DatasetError
from magicedit.files import writing
from magicedit.pipelines.pipeline_magicedit import MagicEditPipeline
from magicedit.train.waiting import patient_group

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


class Latents:
    """Latents of photographs by their numbers, from files that are mapped to memory; no process holds them.

    files: of equally many photographs each, but for the last ones. shape: of a photograph's.
    """

    def __init__(self, files: Sequence[Path], shape: torch.Size, photographs: int):
        self.share = -(-photographs // len(files))
        counts = [min(self.share, max(0, photographs - n * self.share)) for n in range(len(files))]
        self.parts = [
            torch.from_file(str(file), size=count * shape.numel()).view(count, *shape)
            for file, count in zip(files, counts, strict=True)
            if count
        ]

    def __getitem__(self, numbers: torch.Tensor) -> torch.Tensor:
        """(batch,) numbers of photographs -> (batch, channels, height, width), float32."""
        return torch.stack([self.parts[n // self.share][n % self.share] for n in numbers.tolist()])


@torch.no_grad()
def cache_latents(
    pipeline: MagicEditPipeline, pairs: PairDataset, accelerator: Accelerator, batch_size: int, folder: Path
) -> dict[str, Latents]:
    """Unscaled latents of every photograph and of its condition image: every process encodes a share.

    Those of a picture that turns out to be unusable are arbitrary, since it is drawn no more.
    folder: for their files, which all processes see; it is removed. Raises OutputError where it cannot hold
    them.
    """
    rank, world, device = accelerator.process_index, accelerator.num_processes, accelerator.device
    share, unusable = -(-len(pairs) // world), []
    own = range(rank * share, min((rank + 1) * share, len(pairs)))

    def images(index: int) -> tuple[torch.Tensor, torch.Tensor]:
        try:
            return pairs.record_images(index)
        except UnusablePictureError:  # it is named in the log, and counted
            unusable.append(index)
            nothing = torch.zeros(3, pairs.resolution, pairs.resolution)
            return nothing, nothing

    names = ("image", "condition")
    group = patient_group()  # a share may take longer than another by minutes
    with writing(folder):
        if accelerator.is_main_process:
            shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
            folder.mkdir(parents=True)
        accelerator.wait_for_everyone()
        with contextlib.ExitStack() as stack:
            files = {name: stack.enter_context((folder / f"{name}-{rank}").open("wb")) for name in names}
            for first in range(own.start, own.stop, batch_size):
                records = [images(i) for i in range(first, min(first + batch_size, own.stop))]
                for name, pictures in zip(names, zip(*records, strict=True), strict=True):
                    latents = pipeline.encode_images(torch.stack(pictures).to(device)).float().cpu()
                    files[name].write(latents.numpy().tobytes())
        everywhere = [unusable] * world
        if group is not None:
            dist.all_gather_object(everywhere, unusable, group=group)
        for index in set(itertools.chain(*everywhere)) - set(unusable):
            images(index)  # of another process; this one must not draw it either
        side = pairs.resolution // pipeline.latent_scale
        shape = torch.Size((pipeline.vae.config.latent_channels, side, side))
        found = {
            name: Latents([folder / f"{name}-{n}" for n in range(world)], shape, len(pairs)) for name in names
        }
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:  # mapped files live on without names; Windows keeps them to the end
            shutil.rmtree(folder, ignore_errors=True)
    return found
