"""How fast a run trains: pictures a second, the share of waiting for data, and model FLOP utilisation."""

import contextlib
import logging
import re
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

logger = logging.getLogger(__name__)


class Peak(NamedTuple):
    """Published TFLOP/s, dense: bfloat16 and float16 (summed in float32), TF32, float32."""

    half: float
    tf32: float
    single: float


# By the whole name that the driver gives, so that slices and laptops' versions are measured instead
PEAKS: dict[str, Peak] = {
    # NVIDIA A100 data sheet (us-nvidia-1758950-r4)
    r"NVIDIA A100(-\w+-\d+GB| 80GB PCIe)": Peak(312, 156, 19.5),
    # NVIDIA H100 and H200 data sheets: half of what is stated with sparsity
    r"NVIDIA H[12]00( \d+GB HBM3e?)?": Peak(989.4, 494.7, 67),
    r"NVIDIA H100 PCIe": Peak(756, 378, 51),
    r"NVIDIA H[12]00 NVL": Peak(835.5, 417.5, 60),
    # NVIDIA L4 and L40S data sheets: likewise
    r"NVIDIA L4": Peak(121, 60, 30.3),
    r"NVIDIA L40S": Peak(362, 183, 91.6),
    # NVIDIA A10 and A40 data sheets
    r"NVIDIA A10": Peak(125, 62.5, 31.2),
    r"NVIDIA A40": Peak(149.7, 74.8, 37.4),
    # Appendix A of the white papers on GA102, Ada and Blackwell RTX
    r"NVIDIA GeForce RTX 3090": Peak(71, 35.6, 35.6),
    r"NVIDIA GeForce RTX 4090": Peak(165.2, 82.6, 82.6),
    r"NVIDIA GeForce RTX 5090": Peak(209.5, 104.8, 104.8),
}
# Rows and columns of the matrices by which other devices are measured; more fill a GPU
PRODUCT, LARGE_PRODUCT = 1024, 4096
PRODUCT_SECONDS = 0.3

_aten = torch.ops.aten
# torch's formulas, and those of attention on CPUs
FORMULAS = (
    flop_registry
    | {
        _aten._scaled_dot_product_flash_attention_for_cpu: lambda *tensors, **_: sdpa_flop_count(
            *(tensor.shape for tensor in tensors[:3])  # query, key, value
        ),
        _aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda *tensors, **_: (
            sdpa_backward_flop_count(*(tensor.shape for tensor in tensors[:4]))  # gradient, query, key, value
        ),
    }
)


@contextlib.contextmanager
def uncounted(really: bool = True) -> Iterator[None]:
    """Leaves out of `StepFlops` what the first step computes and later ones take from a cache."""
    before = StepFlops.paused
    StepFlops.paused = before or really
    try:
        yield
    finally:
        StepFlops.paused = before


class StepFlops(TorchDispatchMode):
    """Counts floating-point operations of what runs within it: of its products, forward and backward.

    As torch's `FlopCounterMode` counts them, whose hooks on modules do not allow gradients of gradients.

    recomputes: whether a backward pass repeats forward passes (gradient checkpointing). These are not
    counted: they are work of the hardware, not of the model (Chowdhery et al. 2022, arXiv:2204.02311,
    appendix B).
    """

    paused = False

    def __init__(self, recomputes: bool = False):
        super().__init__()
        self.recomputes, self.total = recomputes, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        # Only what is computed again records gradients within a backward pass
        backward = torch._C._current_graph_task_id() >= 0
        again = self.recomputes and backward and torch.is_grad_enabled()
        if not (again or self.paused) and (formula := FORMULAS.get(func._overloadpacket)):
            self.total += formula(*args, **kwargs, out_val=out)
        return out


class Waiting(Iterator[Any]):
    """An iterator that adds the seconds of waiting for its next item to `seconds`."""

    def __init__(self, items: Iterator[Any]):
        self.items, self.seconds = items, 0.0

    def __next__(self) -> Any:
        started = time.perf_counter()
        try:
            return next(self.items)
        finally:
            self.seconds += time.perf_counter() - started


class Throughput:
    """The clock of training steps, which stands still in `paused`.

    Args:
        batches: those of the steps.
        images: of a step, of all processes.
        peak: FLOP/s of this process's device; called once.
        recomputes: see `StepFlops`.
        flops: of a step in this process; None: as its first step has.
    """

    def __init__(
        self,
        batches: Iterator[Any],
        images: int,
        peak: Callable[[], float],
        recomputes: bool = False,
        flops: int | None = None,
    ):
        self.batches, self.images = Waiting(batches), images
        self._peak, self._recomputes, self._flops = peak, recomputes, flops
        self._most: float | None = None  # FLOP/s
        self._steps = 0
        self._started, self._waited = time.perf_counter(), 0.0

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Surrounds a training step."""
        if self._flops is None:
            with StepFlops(self._recomputes) as counter:
                yield
            self._flops = counter.total
        else:
            yield
        self._steps += 1

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves out the time of what is no training."""
        stopped = time.perf_counter()
        try:
            yield
        finally:
            self._started += time.perf_counter() - stopped

    def values(self) -> dict[str, float]:
        """Returns values for the log, of the steps since the last call."""
        if self._most is None and self._flops:
            with self.paused():
                self._most = self._peak()
        seconds, waited = time.perf_counter() - self._started, self.batches.seconds - self._waited
        found = {"images_per_second": self.images * self._steps / seconds, "data_share": waited / seconds}
        if self._flops and self._most:
            found["mfu"] = self._flops * self._steps / seconds / self._most
        self._started, self._waited, self._steps = time.perf_counter(), self.batches.seconds, 0
        return found


def published_peak(name: str) -> Peak | None:
    """Returns the peak of the device that a driver calls so; None: it is unknown, or a part of one."""
    return next((peak for pattern, peak in PEAKS.items() if re.fullmatch(pattern, name)), None)


def peak_flops(device: torch.device, dtype: torch.dtype, stated: float | None = None) -> float:
    """Returns a device's peak FLOP/s of products in `dtype`: stated, published, or else measured.

    It logs which of them. In float32, TF32 counts where products may use it. stated: TFLOP/s.
    """
    if stated is not None:
        return stated * 1e12
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    if peak := published_peak(name):
        single = peak.tf32 if torch.backends.cuda.matmul.allow_tf32 else peak.single
        found = peak.half if dtype in (torch.bfloat16, torch.float16) else single
        logger.info("mfu is of the published %g TFLOP/s of %s", found, name)
        return found * 1e12
    side = PRODUCT if device.type == "cpu" else LARGE_PRODUCT
    found = measured_flops(device, dtype, side)
    logger.info(
        "mfu is of %.3g TFLOP/s, measured by products of %d x %d %s; state the peak with --peak_tflops",
        *(found / 1e12, side, side, str(dtype).removeprefix("torch.")),
    )
    return found


def measured_flops(device: torch.device, dtype: torch.dtype, side: int) -> float:
    """Returns FLOP/s of the fastest of several products of square matrices of `side` rows."""
    synchronize = torch.get_device_module(device).synchronize
    one = torch.ones(side, side, device=device, dtype=dtype)
    fastest, until = float("inf"), None
    while until is None or time.perf_counter() < until:
        started = time.perf_counter()
        one @ one
        synchronize()
        if until is None:  # the first one loads kernels
            until = time.perf_counter() + PRODUCT_SECONDS
        else:
            fastest = min(fastest, time.perf_counter() - started)
    return 2 * side**3 / fastest
