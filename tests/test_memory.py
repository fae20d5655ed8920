"""Counting a training step's memory: the caching allocator's rules, and counts against what was allocated."""

import sys
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import memory
from memory import Allocations, CachingAllocator
from proxy import TINY

MIB = 2**20


@pytest.mark.parametrize(
    ("size", "allocated", "reserved"),
    [
        (1, 512, 2 * MIB),
        (MIB, MIB, 2 * MIB),
        (MIB + 1, MIB + 512, 20 * MIB),
        (10 * MIB, 10 * MIB, 10 * MIB),
        (11 * MIB + 1, 12 * MIB, 12 * MIB),  # too little would be left to split it
    ],
)
def test_sizes_are_those_of_the_cuda_allocator(size, allocated, reserved):
    allocator = CachingAllocator()
    allocator.malloc(size)
    assert (allocator.allocated, allocator.reserved) == (allocated, reserved)


def test_freed_blocks_are_reused_and_joined():
    allocator = CachingAllocator()
    blocks = [allocator.malloc(5 * MIB) for _ in range(4)]  # fill one segment of 20 MiB
    assert allocator.reserved == 20 * MIB
    for block in (blocks[1], blocks[3], blocks[2]):
        allocator.free(block)
    assert allocator.malloc(15 * MIB).size == 15 * MIB
    assert allocator.reserved == 20 * MIB
    allocator.malloc(5 * MIB)
    assert (allocator.reserved, allocator.peak_allocated) == (40 * MIB, 25 * MIB)


def test_the_smallest_block_that_fits_is_taken():
    allocator = CachingAllocator()
    large, small = allocator.malloc(30 * MIB), allocator.malloc(12 * MIB)
    allocator.free(large)
    allocator.free(small)
    assert allocator.malloc(11 * MIB).address == small.address


def test_allocations_are_those_of_the_cpu_allocator():
    layers = torch.nn.Sequential(torch.nn.Linear(256, 512), torch.nn.SiLU(), torch.nn.Linear(512, 128))
    rows = torch.randn(64, 256)

    def step() -> None:
        layers(rows).square().mean().backward()
        layers.zero_grad(set_to_none=True)

    step()
    allocator = CachingAllocator()
    with Allocations(allocator):
        step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    measured = memory.most_allocated(profiler)
    assert allocator.allocated == 0
    assert measured <= allocator.peak_allocated <= measured + 512 * 20  # rounded up to blocks


@pytest.mark.slow
def test_counted_step_needs_no_memory_of_its_own_and_sees_checkpointing():
    plain, checkpointed = (
        memory.counted(memory.recipe("sd15-lora", *flags), TINY)
        for flags in (["--no_gradient_checkpointing"], ["--gradient_checkpointing"])
    )
    assert checkpointed["resident_mb"] == plain["resident_mb"]
    assert checkpointed["optimizer_mb"] == plain["optimizer_mb"] > 0
    assert checkpointed["resident_mb"] < checkpointed["training_mb"] < 0.9 * plain["training_mb"]
    assert plain["training_mb"] <= plain["reserved_mb"]
