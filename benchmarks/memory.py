"""How much of a GPU's memory a training step takes: counted at true shape on fake tensors, without a GPU.

    python benchmarks/memory.py                      # every row of memory.json
    python benchmarks/memory.py sd15-lora            # one of them

The step is the recipe's own: networks, LoRA matrices and optimiser as `train/` makes them, accumulation,
clipping and AdamW, at the recipe's batch size and precision, with text encoder and VAE on the device. Its
tensors have shapes and no numbers (`FakeTensorMode`). Counted are the bytes of live tensors, and what CUDA's
caching allocator would take from the card for them. PyTorch has no simulation of that allocator, and its own
`MemTracker` refuses frozen parameters; `CachingAllocator` and `Allocations` stand in. Left out are the CUDA
context (about 0.5 GB) and the workspaces of cuDNN and cuBLAS.

The row `check` compares the count with a measurement: the same steps with numbers, at the size `proxy` on the
CPU, by PyTorch's profile of its CPU allocator.
"""

import argparse
import contextlib
import json
import weakref
from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest import mock

import torch
from counting import tensors_of
from diffusers.training_utils import EMAModel
from machine import circumstances, merge
from proxy import SIZES, ModelSize, make_pipeline
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from training_step import training_batch

from magicedit.train.config import TrainConfig, parse_config
from magicedit.train.methods.editing import adamw
from magicedit.train.networks import Networks, autocast_dtype, prepare_for_training
from magicedit.train.objectives import noise_objective

MUST_REACH_MB = {"sd15-lora": 20_000}  # on a card of 24 GB

# The CUDA caching allocator's sizes, bytes (c10/cuda/CUDACachingAllocator.cpp)
BLOCK = 512
SMALL = 2**20  # the largest block of the pool of small ones
SMALL_SEGMENT, MEDIUM_SEGMENT = 2 * 2**20, 20 * 2**20
LARGE = 10 * 2**20  # from here a segment holds one block when it is made
ROUNDING = 2 * 2**20  # of these


def rounded(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


@dataclass(eq=False)
class Block:
    """A range of a segment. before, after: its neighbours in the segment, or None."""

    address: int
    size: int
    small: bool
    free: bool = False
    before: "Block | None" = None
    after: "Block | None" = None


class CachingAllocator:
    """What PyTorch's CUDA allocator would take from a card, for one stream and with its usual settings.

    Freed blocks stay reserved and are given out again, the smallest that fits first; larger ones are split.
    On a full card it would return unused segments before it fails, so `peak_reserved` is an upper bound.

    Attributes:
        allocated, reserved: bytes of blocks in use, and of segments.
        peak_allocated, peak_reserved: the most of each.
    """

    def __init__(self):
        self.allocated = self.reserved = self.peak_allocated = self.peak_reserved = 0
        self._free: dict[bool, list[Block]] = {True: [], False: []}  # by pool, sorted by size and address

    def malloc(self, size: int) -> Block:
        """Returns a block of at least `size` bytes, at least 1."""
        size = rounded(size, BLOCK)
        small = size <= SMALL
        pool = self._free[small]
        found = bisect_left(pool, (size, 0), key=by_size)
        block = self._take(pool[found]) if found < len(pool) else self._segment(size, small)
        left = block.size - size
        if left >= BLOCK if small else left > SMALL:
            rest = Block(block.address + size, left, small, before=block, after=block.after)
            block.size = size
            _link(block, rest)
            _link(rest, rest.after)
            self._give(rest)
        self.allocated += block.size
        self.peak_allocated = max(self.peak_allocated, self.allocated)
        return block

    def free(self, block: Block) -> None:
        self.allocated -= block.size
        if block.before is not None and block.before.free:
            before = self._take(block.before)
            block.address, block.size = before.address, before.size + block.size
            _link(before.before, block)
        if block.after is not None and block.after.free:
            after = self._take(block.after)
            block.size += after.size
            _link(block, after.after)
        self._give(block)

    def _segment(self, size: int, small: bool) -> Block:
        segment = SMALL_SEGMENT if small else MEDIUM_SEGMENT if size < LARGE else rounded(size, ROUNDING)
        address = 2 * self.reserved + segment  # no two segments are neighbours
        self.reserved += segment
        self.peak_reserved = max(self.peak_reserved, self.reserved)
        return Block(address, segment, small)

    def _give(self, block: Block) -> None:
        block.free = True
        insort(self._free[block.small], block, key=by_size)

    def _take(self, block: Block) -> Block:
        block.free = False
        self._free[block.small].remove(block)
        return block


def by_size(block: Block) -> tuple[int, int]:
    return block.size, block.address


def _link(before: Block | None, after: Block | None) -> None:
    """Makes two blocks of a segment neighbours; None: its end."""
    if before is not None:
        before.after = after
    if after is not None:
        after.before = before


class Allocations(TorchDispatchMode):
    """Gives the storages that operators create to an allocator, and takes them back when they are freed."""

    def __init__(self, allocator: CachingAllocator):
        super().__init__()
        self.allocator = allocator
        self._known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given = {tensor.untyped_storage()._cdata for tensor in tensors_of((args, kwargs))}
        for tensor in tensors_of(out):
            if tensor.untyped_storage()._cdata not in given:
                self.hold(tensor)
        return out

    def hold(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        number, size = storage._cdata, storage.nbytes()
        if number in self._known or not size:
            return
        self._known.add(number)
        weakref.finalize(storage, self._release, number, self.allocator.malloc(size))

    def _release(self, number: int, block: Block) -> None:
        self._known.discard(number)
        self.allocator.free(block)


@contextlib.contextmanager
def norms_in_float32() -> Iterator[None]:
    """Lets autocast normalise in float32, as it does on CUDA and not on CPUs."""

    def in_float32(normalise, *args, **kwargs):
        if not torch.is_autocast_enabled("cpu"):
            return normalise(*args, **kwargs)
        with torch.autocast("cpu", enabled=False):
            args, kwargs = tree_map_only(torch.Tensor, torch.Tensor.float, (args, kwargs))
            return normalise(*args, **kwargs)

    with contextlib.ExitStack() as stack:
        for name in ("group_norm", "layer_norm"):
            stack.enter_context(mock.patch.object(F, name, partial(in_float32, getattr(F, name))))
        yield


@dataclass(frozen=True)
class Training:
    """step: does one optimiser step. encode: the batch's pictures, as when latents are cached. resident: what
    lies on the device all the time."""

    step: Callable[[], None]
    encode: Callable[[], None]
    resident: list[torch.Tensor]


def make_training(config: TrainConfig, size: ModelSize, fake: FakeTensorMode | None = None) -> Training:
    """A recipe that predicts noise, on random latents of a model's size; `fake`: without numbers."""
    device = torch.device("cpu")
    pipeline = make_pipeline(size, device="meta" if fake else "cpu")
    half = autocast_dtype(config.mixed_precision)
    prepare_for_training(pipeline, config, denoiser_only=False, held_as=half if config.lora_rank else None)
    parts = (pipeline.unet, pipeline.reference_unet, pipeline.vae, pipeline.text_encoder)
    with fake or contextlib.nullcontext():
        if fake:
            for part in parts:
                allocate(part, device)
        networks = Networks(pipeline, config.gradient_checkpointing)
        trained = [parameter for parameter in networks.parameters() if parameter.requires_grad]
        optimizer = adamw(trained, config, device)
        average = EMAModel(trained) if config.use_ema else None
        batch = training_batch(
            size, pipeline.scheduler, config.train_batch_size, len(pipeline.action_units), device
        )

    def step() -> None:
        for _ in range(min(config.gradient_accumulation_steps, 2)):  # more take no more memory
            with torch.autocast("cpu", half, enabled=half is not None):
                output = networks(*batch.inputs).float()
            loss = noise_objective(output, batch.clean, batch.noise, batch.alphas, snr_gamma=config.snr_gamma)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, config.max_grad_norm)
        optimizer.step()
        if average is not None:
            average.step(trained)
        optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def encode() -> None:
        pipeline.encode_images(torch.empty(config.train_batch_size, 3, size.resolution, size.resolution))

    resident = [tensor for part in parts for tensor in (*part.parameters(), *part.buffers())]
    return Training(step, encode, resident + (average.shadow_params if average else []))


def allocate(network: torch.nn.Module, device: torch.device) -> None:
    """Puts a network from "meta" onto a device, without numbers. Its own `to_empty` refuses fake tensors."""
    for module in network.modules():
        for name, old in module.named_parameters(recurse=False):
            new = torch.empty(old.shape, dtype=old.dtype, device=device)
            module.register_parameter(name, torch.nn.Parameter(new, old.requires_grad))
        for name, old in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty(old.shape, dtype=old.dtype, device=device))


STEPS = 2  # the first makes the optimiser's state, the second finds it there


def counted(config: TrainConfig, size: ModelSize) -> dict[str, object]:
    """Peaks of a recipe's training steps, 10^6 bytes."""
    allocator = CachingAllocator()
    fake = FakeTensorMode(allow_non_fake_inputs=True)  # such as a schedule
    training = make_training(config, size, fake)
    allocations = Allocations(allocator)
    for tensor in training.resident:
        allocations.hold(tensor)
    found = {"resident_mb": megabytes(allocator.allocated)}
    with fake, allocations, norms_in_float32():
        training.encode()
        found["encoding_mb"] = megabytes(allocator.peak_allocated)
        allocator.peak_allocated = 0
        for _ in range(STEPS):
            training.step()
    found["optimizer_mb"] = round(megabytes(allocator.allocated) - found["resident_mb"], 1)
    return found | {
        "training_mb": megabytes(allocator.peak_allocated),
        "reserved_mb": megabytes(allocator.peak_reserved),
    }


def measured(config: TrainConfig, size: ModelSize) -> float:
    """The most that PyTorch's CPU allocator had given out in the same steps, with numbers, 10^6 bytes."""
    training = make_training(config, size)
    with norms_in_float32(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        for _ in range(STEPS):
            training.step()
    resident = sum(tensor.untyped_storage().nbytes() for tensor in training.resident)
    return megabytes(resident + most_allocated(profiler))


def most_allocated(profiler: profile) -> int:
    """Bytes that were allocated while it recorded, and not freed yet, at their most."""
    held = most = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


def megabytes(size: float) -> float:
    return round(size / 1e6, 1)


def recipe(name: str, *flags: str) -> TrainConfig:
    return parse_config(
        ["--config", name, "--train_data_dir", "DATASET", "--pretrained_model_name_or_path", "SD15", *flags]
    )


ROWS = {  # the recipe and its flags
    "sd15-lora": ("sd15-lora",),
    "sd15-lora, no gradient checkpointing": ("sd15-lora", "--no_gradient_checkpointing"),
    "sd15": ("sd15",),
}
CHECKS = {  # flags after those of sd15-lora
    "LoRA": (),
    "no gradient checkpointing": ("--no_gradient_checkpointing",),
    "float32": ("--mixed_precision", "no"),
    "all weights": ("--lora_rank", "0"),
}


def counted_row(name: str) -> dict[str, object]:
    config, size = recipe(*ROWS[name]), SIZES["full"]
    return {
        "kind": "counted",
        "what": f"optimiser steps of `{' '.join(ROWS[name])}` at Stable Diffusion 1.5's size, "
        f"{size.resolution} px, batch {config.train_batch_size}, {config.mixed_precision}; most bytes of "
        "live tensors while latents are cached (`encoding_mb`) and trained on (`training_mb`), and what the "
        "caching allocator takes from the card (`reserved_mb`); without CUDA's context and workspaces",
        "must_reach_mb": MUST_REACH_MB.get(name),
        **counted(config, size),
    }


def check_row() -> dict[str, object]:
    size, steps = SIZES["proxy"], {}
    for name, flags in CHECKS.items():
        config = recipe("sd15-lora", *flags)
        count, measurement = counted(config, size)["training_mb"], measured(config, size)
        ratio = round(count / measurement, 3)
        steps[name] = {"counted_mb": count, "measured_mb": measurement, "ratio": ratio}
    return {
        "kind": "measured",
        "what": "optimiser steps of `sd15-lora` and variants of it at the size `proxy` on the CPU: the "
        "count, and the most that PyTorch's CPU allocator gave out",
        "steps": steps,
    }


def main() -> None:
    names = (*ROWS, "check")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", metavar="row", help=", ".join(names))
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    if unknown := set(args.rows) - set(names):
        parser.error(f"no row {', '.join(unknown)}; there are {', '.join(names)}")
    for name in args.rows or names:
        row = check_row() if name == "check" else counted_row(name)
        merge(args.output, name, {**row, **circumstances()})
        print(json.dumps({name: row}, indent=1))


if __name__ == "__main__":
    main()
