"""Makes a pipeline fast on this machine: layout, dtype, compilation, rows per call."""

import itertools
import os
import shutil
import statistics
import time
from collections.abc import Callable
from typing import TypeVar

import psutil
import torch

from magicedit.errors import ModelError
from magicedit.models.face_model import Optimization
from magicedit.pipelines.pipeline_magicedit import MagicEditPipeline
from magicedit.pipelines.reference_attention import is_compiled

Result = TypeVar("Result")

REPETITIONS = 5  # timed denoiser evaluations of each alternative, after one that warms up
MEMORY_SHARE = 0.5  # share of the free memory that a pipeline call may allocate
MOST_ROWS = 32  # beyond, batches gain nothing even on data-centre GPUs
# Live tensors of the outermost level's size at the peak of a forward at Stable Diffusion's size, rounded up
# from what `benchmarks/speed.py count` finds (27 and 3)
UNET_TENSORS, VAE_TENSORS = 28, 4


def optimize_pipeline(
    pipeline: MagicEditPipeline, *, compile: bool | None = None, dtype: torch.dtype | None = None
) -> Optimization:
    """Tries memory formats, 16-bit weights and compilation on this device, and keeps the fastest.

    Each alternative is timed on one denoiser evaluation of one face. A different dtype changes results by the
    rounding of weights; memory format and compilation change them by the rounding of other kernels. Earlier
    encoded faces become invalid.

    Args:
        compile: whether to try `torch.compile` (static shapes, the whole denoiser), which takes minutes at
            first; default: on GPUs.
        dtype: of the weights; default: the faster of the current one and, on GPUs, bfloat16.

    Raises:
        ModelError: where `compile` is requested without a C++ compiler, or the denoiser is already compiled.
    """
    device = pipeline.unet.device
    if is_compiled(pipeline.unet):
        raise ModelError("the denoiser is compiled already; load the model again to optimise it differently")
    on_gpu = device.type == "cuda"
    compile = on_gpu if compile is None else compile
    if compile and not on_gpu and shutil.which(cpp_compiler()) is None:
        raise ModelError("torch.compile needs a C++ compiler on a CPU (g++ or clang++); none was found")
    networks = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    tensors = [tensor for n in networks for tensor in (*n.parameters(), *n.buffers())]
    originals = [tensor.data for tensor in tensors]

    def prepare(dtype: torch.dtype, layout: torch.memory_format) -> None:
        for tensor, original in zip(tensors, originals, strict=True):  # restores values rounded to 16 bits
            tensor.data = original
        for network in networks:  # diffusers' own `to` warns of layers to keep in float32, of which: none
            torch.nn.Module.to(network, dtype=dtype)
            torch.nn.Module.to(network, memory_format=layout)

    # 1. Layout and dtype
    seconds, alternatives = {}, {}
    for one in dtypes_to_try(pipeline) if dtype is None else [dtype]:
        for layout in (torch.contiguous_format, torch.channels_last):
            prepare(one, layout)
            name = f"{short(one)} {short(layout)}"
            seconds[name], alternatives[name] = time_denoiser(pipeline), (one, layout)
    best = min(seconds, key=seconds.get)
    prepare(*alternatives[best])

    # 2. Compilation of the best one
    compiled = False
    if compile:
        original = pipeline.unet
        pipeline.unet = torch.compile(
            original, fullgraph=True, dynamic=False, mode="reduce-overhead" if on_gpu else None
        )
        seconds[f"{best} compiled"] = time_denoiser(pipeline)
        compiled = seconds[f"{best} compiled"] < seconds[best]
        if not compiled:
            pipeline.unet = original
    one, layout = alternatives[best]
    return Optimization(str(device), short(one), layout is torch.channels_last, compiled, seconds)


def dtypes_to_try(pipeline: MagicEditPipeline) -> list[torch.dtype]:
    """Returns the current dtype and, on GPUs that support it, bfloat16."""
    dtypes = [pipeline.unet.dtype]
    if pipeline.unet.device.type == "cuda" and torch.cuda.is_bf16_supported():
        dtypes.append(torch.bfloat16)
    return list(dict.fromkeys(dtypes))


def cpp_compiler() -> str:
    """Returns the C++ compiler that `torch.compile` calls for CPUs; it may be missing."""
    return os.environ.get("CXX", "g++")


def short(name: torch.dtype | torch.memory_format) -> str:
    """`torch.float32` -> "float32" """
    return str(name).removeprefix("torch.").removesuffix("_format")


def time_denoiser(pipeline: MagicEditPipeline) -> float:
    """Returns the median seconds of a denoiser evaluation of one face during an edit, without guidance."""
    size = pipeline.config.resolution
    grey = torch.full((1, 3, size, size), 0.5)
    moments = []

    def note(_, step, timestep, tensors):
        if pipeline.unet.device.type == "cuda":
            torch.cuda.synchronize()
        moments.append(time.perf_counter())
        return tensors

    pipeline(
        faces=pipeline.encode_faces(grey, grey),
        au_delta=torch.ones(1, len(pipeline.action_units)),
        num_inference_steps=REPETITIONS + 2,  # the first two warm up: with projecting, and without
        guidance_scale=1.0,
        generator=torch.Generator("cpu").manual_seed(0),
        output_type="latent",
        callback_on_step_end=note,
    )
    return statistics.median(later - earlier for earlier, later in itertools.pairwise(moments[1:]))


def rows_that_fit(pipeline: MagicEditPipeline) -> int:
    """Returns how many rows (AU vectors) fit into a pipeline call on its device now, at least 1.

    An estimate by the widest tensors of the denoiser, with both guidance halves, and of the decoder.
    """
    unet, size = pipeline.unet, pipeline.config.resolution
    bytes_each = torch.finfo(unet.dtype).bits // 8
    latents = (size // pipeline.latent_scale) ** 2
    row = 2 * UNET_TENSORS * latents * unet.config.block_out_channels[0] * bytes_each
    if pipeline.vae is not None:
        widest = 2 * pipeline.vae.config.block_out_channels[0]
        row = max(row, VAE_TENSORS * size**2 * widest * bytes_each)
    if unet.device.type == "cuda":
        free = torch.cuda.mem_get_info(unet.device)[0]
    else:
        free = psutil.virtual_memory().available
    return int(min(MOST_ROWS, max(1, MEMORY_SHARE * free // row)))


def call_in_batches(
    call: Callable[[slice], list[Result]], rows: int, pipeline: MagicEditPipeline
) -> list[Result]:
    """Calls `call(slice)` over all rows, as many at once as fit; halves them if GPU memory still runs out.

    Raises:
        torch.OutOfMemoryError: where even one row does not fit.
    """
    results: list[Result] = []
    size = rows_that_fit(pipeline)
    while len(results) < rows:
        batch = slice(len(results), min(rows, len(results) + size))
        try:
            results += call(batch)
        except torch.OutOfMemoryError:
            if size == 1:
                raise
            size = max(1, (batch.stop - batch.start) // 2)
            torch.cuda.empty_cache()
    return results
