"""What can be known without the hardware: FLOPs, bytes, and the memory that live tensors take, on "meta".

`flops` counts with PyTorch's own counter. `Meter` looks at each operator as it is dispatched: its FLOPs, the
bytes of its inputs and outputs, and which storages are alive. From these `roofline_seconds` simulates a time:
each operator takes what the slower of arithmetic and memory needs at the device's published peak. Nothing
reaches these peaks, launching operators takes time too, and neighbouring operators may be fused, so simulated
times are bounds for a device's eager mode and ratios of them are estimates; both are labelled as simulated.
"""

import math
import re
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry


@dataclass(frozen=True)
class Device:
    """Published peaks without sparsity; FLOP and bytes a second."""

    name: str
    bfloat16: float
    tf32: float
    bandwidth: float
    source: str

    def flops(self, dtype: torch.dtype) -> float:
        return self.bfloat16 if dtype == torch.bfloat16 else self.tf32


DEVICES = (
    Device("A100 SXM 80 GB", 312e12, 156e12, 2039e9, "NVIDIA A100 data sheet (us-nvidia-1758950-r4)"),
    Device("H100 SXM 80 GB", 989.4e12, 494.7e12, 3350e9, "NVIDIA H100 architecture white paper"),
)


def flops(call: Callable[[], object], without: str | None = None) -> int:
    """Floating-point operations of matrix products and convolutions, a multiplication and an addition each.

    Args:
        without: a regular expression; what modules whose names end with it executed is left out.
    """
    with FlopCounterMode(display=False) as counter:
        call()
    left_out = 0
    if without is not None:
        for name, counts in counter.get_flop_counts().items():
            if re.search(f"{without}$", name):
                left_out += sum(counts.values())
    return counter.get_total_flops() - left_out


@dataclass(frozen=True)
class Operator:
    name: str
    flops: int
    bytes: int
    dtype: torch.dtype


class _Attention(torch.autograd.Function):
    """Stands for a fused kernel: shapes only; its costs are noted by the meter."""

    @staticmethod
    def forward(ctx, meter, query, key, value):
        ctx.meter = meter
        ctx.save_for_backward(query, key, value)
        out = query.new_empty(*query.shape[:-1], value.shape[-1])
        meter.note("attention", attention_flops(query, key, value), (query, key, value, out))
        return out

    @staticmethod
    def backward(ctx, gradient):
        query, key, value = ctx.saved_tensors
        gradients = [torch.empty_like(x) for x in (query, key, value)]
        # Five products instead of two: scores again, and the gradients of values, weights, queries, keys
        # (FlashAttention, Dao et al. 2022, arXiv:2205.14135, algorithm 4)
        work = attention_flops(query, key, value) * 5 // 2
        ctx.meter.note("attention backward", work, (query, key, value, gradient, gradient, *gradients))
        return (None, *gradients)


def attention_flops(query, key, value) -> int:
    """Of scaled dot-product attention, all (batch, heads, tokens, head_dim)."""
    return 2 * math.prod(query.shape[:-1]) * key.shape[-2] * (query.shape[-1] + value.shape[-1])


class Meter(TorchDispatchMode):
    """Notes operators and live storages of what runs within it, on the meta device.

    Attention is taken as one fused operator that keeps no matrix of tokens x tokens, as GPUs compute it.

    Attributes:
        operators: in order of execution; views, which move nothing, left out.
        live, peak: bytes of storages that were created within and are, or at most were, alive.
    """

    def __init__(self):
        super().__init__()
        self.operators: list[Operator] = []
        self.live = self.peak = 0
        self._tracked: set[int] = set()
        self._functions = _FusedAttention(self)

    def __enter__(self):
        self._functions.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self._functions.__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        given, made = tensors_of((args, kwargs)), tensors_of(out)
        known = {x.untyped_storage()._cdata for x in given}
        new = [x for x in made if x.untyped_storage()._cdata not in known]
        for x in new:
            self._track(x)
        in_place = func._schema.is_mutable
        empty = func._overloadpacket.__name__ in ("empty", "new_empty", "empty_like", "empty_strided")
        if (new or in_place) and not empty:
            count = flop_registry.get(func._overloadpacket)
            work = int(count(*args, **kwargs, out_val=out)) if count else 0
            self.note(func._overloadpacket.__name__, work, (*given, *new))
        return out

    def note(self, name: str, work: int, tensors: Iterable[torch.Tensor]) -> None:
        tensors = tuple(tensors)
        self.operators.append(Operator(name, work, sum(map(moved_bytes, tensors)), tensors[0].dtype))

    def _track(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        number = storage._cdata
        if number in self._tracked:
            return
        self._tracked.add(number)
        size = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._release, number, size)

    def _release(self, number: int, size: int) -> None:
        self._tracked.discard(number)
        self.live -= size

    @property
    def flops(self) -> int:
        return sum(operator.flops for operator in self.operators)

    @property
    def bytes(self) -> int:
        return sum(operator.bytes for operator in self.operators)


class _FusedAttention(TorchFunctionMode):
    def __init__(self, meter: Meter):
        super().__init__()
        self.meter = meter

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is not torch.nn.functional.scaled_dot_product_attention:
            return func(*args, **kwargs)
        query, key, value = (args + tuple(kwargs[n] for n in ("query", "key", "value") if n in kwargs))[:3]
        return _Attention.apply(self.meter, query, key, value)


def tensors_of(tree) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def moved_bytes(tensor: torch.Tensor) -> int:
    """Of one reading or writing; what is expanded is read from where it lies."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


def roofline_seconds(operators: Iterable[Operator], device: Device) -> float:
    """Sum over operators of max(FLOPs / peak FLOP/s, bytes / bandwidth) (Williams et al. 2009)."""
    return sum(max(o.flops / device.flops(o.dtype), o.bytes / device.bandwidth) for o in operators)


def parameter_bytes(*networks: torch.nn.Module) -> int:
    return sum(x.numel() * x.element_size() for n in networks for x in (*n.parameters(), *n.buffers()))
