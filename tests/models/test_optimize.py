"""Choosing what is fastest by timing, and batches by memory."""

import shutil

import numpy as np
import pytest
import torch
from tiny_models import random_crop, tiny_patch_pipeline

from magicedit.errors import ModelError
from magicedit.models import call_in_batches, optimize, optimize_pipeline, rows_that_fit
from magicedit.pipelines.reference_attention import is_compiled

SMILE = np.eye(12, dtype=np.float32)[6] * 3


def run(pipeline):
    generator = torch.Generator().manual_seed(0)
    return pipeline(random_crop(32), random_crop(32, 1), SMILE, generator=generator, output_type="pt").images


def test_keeps_the_fastest_and_says_so():
    pipeline = tiny_patch_pipeline()
    before = run(pipeline)
    chosen = optimize_pipeline(pipeline)
    assert set(chosen.seconds) == {"float32 contiguous", "float32 channels_last"}
    layout = "channels_last" if chosen.channels_last else "contiguous"
    assert min(chosen.seconds, key=chosen.seconds.get) == f"float32 {layout}"
    weight = next(m for m in pipeline.unet.modules() if isinstance(m, torch.nn.Conv2d)).weight
    assert weight.is_contiguous(memory_format=torch.channels_last) == chosen.channels_last
    assert f"float32, {layout}, not compiled on cpu" in str(chosen)
    torch.testing.assert_close(run(pipeline), before, rtol=0, atol=1e-5)


@pytest.mark.parametrize("faster", ["contiguous", "channels_last"])
def test_the_choice_follows_the_clock(faster, monkeypatch):
    def timed(pipeline):
        weight = next(m for m in pipeline.unet.modules() if isinstance(m, torch.nn.Conv2d)).weight
        last = weight.is_contiguous(memory_format=torch.channels_last)
        return 1.0 if last == (faster == "channels_last") else 2.0

    monkeypatch.setattr(optimize, "time_denoiser", timed)
    pipeline = tiny_patch_pipeline()
    assert optimize_pipeline(pipeline).channels_last == (faster == "channels_last")
    assert timed(pipeline) == 1.0  # the pipeline is left as chosen


def test_trying_16_bits_rounds_nothing(monkeypatch):
    """float32 comes out faster here, and is what it was, to the bit."""
    pipeline = tiny_patch_pipeline()
    before = [parameter.clone() for parameter in pipeline.unet.parameters()]
    monkeypatch.setattr(optimize, "dtypes_to_try", lambda _: [torch.float32, torch.bfloat16])
    slow = {torch.float32: 1.0, torch.bfloat16: 2.0}
    monkeypatch.setattr(optimize, "time_denoiser", lambda p: slow[p.unet.dtype])
    assert optimize_pipeline(pipeline).dtype == "float32"
    assert all(torch.equal(*pair) for pair in zip(pipeline.unet.parameters(), before, strict=True))


def test_another_dtype_is_taken_when_asked_for():
    pipeline = tiny_patch_pipeline()
    assert optimize_pipeline(pipeline, dtype=torch.bfloat16).dtype == "bfloat16"
    assert pipeline.unet.dtype == pipeline.reference_unet.dtype == torch.bfloat16
    assert torch.isfinite(run(pipeline)).all()


@pytest.mark.parametrize("pays", [True, False])
def test_compilation_is_kept_where_it_pays(pays, monkeypatch):
    clock = iter([2.0, 2.5, 1.0 if pays else 3.0])
    monkeypatch.setattr(optimize, "time_denoiser", lambda _: next(clock))
    monkeypatch.setattr(torch, "compile", compile_quickly(torch.compile))
    pipeline = tiny_patch_pipeline()
    before = run(pipeline)
    assert optimize_pipeline(pipeline, compile=True).compiled == pays == is_compiled(pipeline.unet)
    torch.testing.assert_close(run(pipeline), before, rtol=0, atol=1e-5)
    if pays:
        with pytest.raises(ModelError, match="compiled already"):
            optimize_pipeline(pipeline)


def compile_quickly(compile):
    """Without the C++ compiler's minutes; graphs and guards are the real ones."""
    return lambda network, **options: compile(network, **options | {"mode": None}, backend="aot_eager")


def test_a_missing_compiler_is_named(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ModelError, match=r"g\+\+ or clang\+\+"):
        optimize_pipeline(tiny_patch_pipeline(), compile=True)


def test_rows_follow_the_free_memory(monkeypatch):
    pipeline = tiny_patch_pipeline()

    def with_free(amount):
        monkeypatch.setattr(
            optimize.psutil, "virtual_memory", lambda: type("Memory", (), {"available": amount})
        )
        return rows_that_fit(pipeline)

    assert with_free(0) == 1
    assert with_free(2**40) == optimize.MOST_ROWS
    row = 2 * optimize.UNET_TENSORS * 8 * 8 * 16 * 4  # two halves, 8 x 8 latents, 16 channels, float32
    assert with_free(2 * 5 * row) == 5  # half of the free memory is taken


def test_batches_shrink_where_memory_runs_out(monkeypatch):
    monkeypatch.setattr(optimize, "rows_that_fit", lambda _: 8)
    tried = []

    def call(rows, most):
        tried.append(rows.stop - rows.start)
        if rows.stop - rows.start > most:
            raise torch.OutOfMemoryError("out of memory")
        return list(range(rows.start, rows.stop))

    assert call_in_batches(lambda rows: call(rows, 3), 7, None) == list(range(7))
    assert tried == [7, 3, 3, 1]
    with pytest.raises(torch.OutOfMemoryError):
        call_in_batches(lambda rows: call(rows, 0), 7, None)
    assert call_in_batches(lambda rows: call(rows, 3), 0, None) == []
