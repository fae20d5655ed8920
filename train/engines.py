"""How networks, gradients and states of optimizers are spread over processes.

Every process holds all of them (`Engine`), or a part: by FSDP2 (`FullySharded`) or DeepSpeed's ZeRO (`Zero`).
Checkpoints hold the same tensors under the same names, so that a run may resume under another engine.
"""

import contextlib
import copy
import math
import os
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator, DeepSpeedPlugin, DistributedType, FullyShardedDataParallelPlugin
from accelerate.utils import is_deepspeed_available
from torch.distributed.tensor import DTensor
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from magicedit.errors import MagicEditError, MissingDependencyError, TrainingError, reason_of
from magicedit.train.config import TrainConfig
from magicedit.train.methods import Method
from magicedit.train.state import Checkpoint, Tensors, flatten_optimizer, restore_optimizer
from magicedit.train.waiting import patient_group

PIECE = 2**30  # bytes of whole tensors that a process reads at once

Result = TypeVar("Result")


class Engine:
    """Networks whole in every process: in a single one, or in several that average their gradients (DDP).

    After `prepare`: networks, by name as methods call them; updated, parameters by optimizer; averaged, the
    tensors of which an average is kept.
    """

    sharded = False

    def __init__(self, accelerator: Accelerator, config: TrainConfig):
        self.accelerator, self.config = accelerator, config
        self.group = patient_group()

    @property
    def precision(self) -> str:
        """The mixed precision of networks: no, fp16 or bf16."""
        return self.accelerator.mixed_precision

    def alone(self, work: Callable[[], Result]) -> Result:
        """Runs `work` in the main process, while the others wait as long as it takes; all return its result.

        Its MagicEditError is raised in all of them, so that none waits for one that has given up.
        """
        result = failed = None
        if self.accelerator.is_main_process:
            try:
                result = work()
            except MagicEditError as error:
                failed = error
        if self.group is not None:
            told = [result, None if failed is None else str(failed)]
            dist.broadcast_object_list(told, src=0, group=self.group)
            result, failed = told[0], failed or (told[1] and TrainingError(told[1]))
        if failed:
            raise failed
        return result

    def prepare(self, method: Method) -> None:
        """Spreads the networks and optimizers of a method; TrainingError where it cannot be."""
        self.method, self.modules, self.optimizers = method, method.modules(), method.optimizers()
        # Data parallelism refuses a module in which nothing is trained
        trained = {n: m for n, m in self.modules.items() if any(p.requires_grad for p in m.parameters())}
        for name in self.modules.keys() - trained.keys():
            self.modules[name].to(self.accelerator.device)
        networks, self.wrapped = self._spread(trained)
        self.networks = {name: networks.get(name, module) for name, module in self.modules.items()}
        self.updated = {
            name: [p for group in optimizer.param_groups for p in group["params"]]
            for name, optimizer in self.optimizers.items()
        }
        self.averaged = [p for parameters in self.updated.values() for p in parameters]

    def _spread(self, trained: dict[str, torch.nn.Module]) -> tuple[dict, dict]:
        """Returns networks and optimizers by name as accelerate wraps them."""
        prepared = self.accelerator.prepare(*trained.values(), *self.optimizers.values())
        networks = dict(zip(trained, prepared, strict=False))
        return networks, dict(zip(self.optimizers, prepared[len(trained) :], strict=True))

    @contextlib.contextmanager
    def accumulating(self) -> Iterator[None]:
        """Adds gradients in each process alone meanwhile."""
        with contextlib.ExitStack() as stack:
            for network in self.networks.values():
                stack.enter_context(self.accelerator.no_sync(network))
            yield

    def backward(self, name: str, loss: torch.Tensor, finite: bool) -> None:
        """Adds the gradients of an optimizer's loss. finite: whether it is, in all processes."""
        only = {"inputs": self.updated[name]} if len(self.optimizers) > 1 else {}
        self.accelerator.backward(loss, **only)

    def update(self, name: str, finite: bool, max_norm: float) -> tuple[float, bool]:
        """Applies an optimizer's gradients, clipped at `max_norm`, if they and its loss, `finite`, are so;
        returns their norm before clipping, and whether it did."""
        optimizer, scaler = self.wrapped[name], self.accelerator.scaler
        norm = self.accelerator.clip_grad_norm_(self.updated[name], max_norm)
        norm = float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
        if scaler is None:
            finite &= math.isfinite(norm)
        elif not finite:  # the scaler learns of it only in `step`, which is skipped
            scaler.update(scaler.get_scale() * scaler.get_backoff_factor())
        if finite:
            optimizer.step()
            # Skipped by the scaler, or by a fused optimiser, which accelerate does not notice
            finite = not optimizer.step_was_skipped and math.isfinite(norm)
        optimizer.zero_grad(set_to_none=True)
        return norm, finite

    def renew(self) -> None:
        """Makes the networks compute with `averaged` after it was changed in place."""

    @contextlib.contextmanager
    def whole(self, device: torch.device) -> Iterator[Method | None]:
        """Yields the method with whole networks in the main process, None in the others.

        device: of the networks, where they are sharded.
        """
        yield self.method if self.accelerator.is_main_process else None

    def module_state(self, name: str) -> Tensors:
        """Returns the tensors of a module by name: whole, or in part as DTensors, or only some of them."""
        return self.modules[name].state_dict()

    def optimizer_state(self, name: str) -> tuple[Tensors, dict]:
        """See `flatten_optimizer`; tensors as in `module_state`."""
        return flatten_optimizer(self.optimizers[name])

    def average_state(self, shadow: list[torch.Tensor]) -> Tensors:
        """Returns averages of `averaged` by the number of their parameter; tensors as in `module_state`."""
        return {str(i): p for i, p in enumerate(shadow)}

    def load_module(self, name: str, saved: Checkpoint) -> None:
        """Takes a module's tensors from a checkpoint."""
        self.modules[name].load_state_dict(saved.group(name))

    def load_optimizer(self, name: str, saved: Checkpoint, group: str, rest: dict) -> None:
        """Takes an optimizer's state from a group of a checkpoint and `rest`, see `flatten_optimizer`."""
        restore_optimizer(self.optimizers[name], saved.group(group), rest)

    def load_average(self, saved: Checkpoint) -> list[torch.Tensor]:
        """Returns the averages of `averaged` that a checkpoint holds."""
        group = saved.group("ema")
        return [group[str(i)].to(self.accelerator.device) for i in range(len(group))]


class _Sharded(Engine):
    """Networks of which every process holds a part. The method has a single one, and a single optimizer."""

    sharded = True

    def prepare(self, method):
        if not method.shardable:
            raise TrainingError(
                f"--objective {method.config.objective} cannot be sharded; train it with "
                "train/configs/accelerate/ddp.yaml"
            )
        super().prepare(method)

    def _spread(self, trained):
        ((self.name, self.module),) = trained.items()
        self.skeleton = None
        if self.accelerator.is_main_process:
            self.skeleton = _on_meta(self.module)
        # Methods call what they do not train as itself, outside the network's forward, which gathers weights
        fixed = {
            name: child
            for name, child in self.module.named_children()
            if not any(parameter.requires_grad for parameter in child.parameters())
        }
        for name in fixed:
            setattr(self.module, name, None)
        try:
            spread = super()._spread(trained)
        except ValueError as error:  # blocks that the networks do not have, and much else
            raise TrainingError(
                f"the networks cannot be split as accelerate is configured ({reason_of(error)}); compare "
                "train/configs/accelerate"
            ) from error
        for name, child in fixed.items():
            setattr(self.module, name, child.to(self.accelerator.device))
        return spread

    @contextlib.contextmanager
    def whole(self, device):
        state = {}
        for name, tensor in self._gathered():
            if self.skeleton is not None:
                state[name] = tensor.detach().to(device, copy=True)
        if self.skeleton is None:
            yield None
            return
        nothing = {name: tensor.to("meta") for name, tensor in state.items()}
        # Not strictly: state dicts leave some buffers out, of which the skeleton has its own
        self.skeleton.load_state_dict(state, strict=False, assign=True)
        del state
        self.skeleton.to(device)
        try:
            yield self.method.with_modules({self.name: self.skeleton})
        finally:
            self.skeleton.load_state_dict(nothing, strict=False, assign=True)

    def _gathered(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yields the module's whole tensors by name, one after the other, in all processes."""
        raise NotImplementedError


def _on_meta(module: torch.nn.Module) -> torch.nn.Module:
    """Returns a copy of a module without storage for its parameters."""
    empty = {id(p): torch.nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in module.parameters()}
    return copy.deepcopy(module, empty)


def _tensors(module: torch.nn.Module) -> Tensors:
    """Returns all parameters and buffers of a module by name, also those that its `state_dict` leaves out."""
    return {**dict(module.named_parameters(remove_duplicate=False)), **dict(module.named_buffers())}


class FullySharded(_Sharded):
    """Parameters, gradients and states split by torch's `fully_shard` (FSDP2), as DTensors."""

    def _gathered(self):
        for name, tensor in _tensors(self.module).items():
            yield name, tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

    def prepare(self, method):
        super().prepare(method)
        # Not as DTensors, of which an operation costs more than what it computes
        self.averaged = [p.detach().to_local().requires_grad_() for p in self.averaged]

    def load_module(self, name, saved):
        saved.fill(name, self.module_state(name))

    def load_optimizer(self, name, saved, group, rest):
        parameters = self.updated[name]
        tensors = {}
        for key, (shape, dtype) in saved.describe(group).items():
            parameter = parameters[int(key.split("/")[0])]
            like = parameter if shape == parameter.shape else torch.empty(shape, dtype=dtype)
            tensors[key] = torch.zeros_like(like, dtype=dtype).detach()
        saved.fill(group, tensors)
        restore_optimizer(self.optimizers[name], tensors, rest)

    def average_state(self, shadow):
        (split,) = self.updated.values()
        return {
            str(i): DTensor.from_local(
                own, p.device_mesh, p.placements, run_check=False, shape=p.shape, stride=p.stride()
            )
            for i, (own, p) in enumerate(zip(shadow, split, strict=True))
        }

    def load_average(self, saved):
        shadow = [torch.zeros_like(own).detach() for own in self.averaged]
        saved.fill("ema", self.average_state(shadow))
        return shadow


class Zero(_Sharded):
    """Parameters, gradients and states split by DeepSpeed's ZeRO, as slices of flat tensors.

    DeepSpeed's own checkpoints are pickles. So each whole tensor is put together in one of the processes, in
    turn, which saves it.
    """

    def _spread(self, trained):
        self._configure()
        (optimizer,) = self.optimizers.values()
        self.trained = [p for group in optimizer.param_groups for p in group["params"]]
        networks, wrapped = super()._spread(trained)
        self.boundary = True
        self.engine = networks[self.name]
        self.zero = self.engine.optimizer
        self.stage = self.engine.zero_optimization_stage()
        self.module.reference_to_end = (
            self.stage == 3
        )  # at its end, a forward releases the weights it gathered
        return networks, wrapped

    def prepare(self, method):
        super().prepare(method)
        (name,) = self.optimizers
        self.updated = {name: self.trained}
        groups = "fp32_partitioned_groups_flat" if self.stage == 3 else "single_partition_of_fp32_groups"
        self.averaged = list(getattr(self.zero, groups))

    def _configure(self) -> None:
        """Completes DeepSpeed's configuration by the run's; TrainingError where they exclude each other."""
        config, given = self.method.config, self.accelerator.deepspeed_plugin.deepspeed_config
        own = {
            "train_micro_batch_size_per_gpu": config.train_batch_size,
            "gradient_accumulation_steps": config.gradient_accumulation_steps,
            "gradient_clipping": config.max_grad_norm,
        }
        flags = ("train_batch_size", "gradient_accumulation_steps", "max_grad_norm")
        for (key, value), flag in zip(own.items(), flags, strict=True):
            # The launcher sets defaults, which are 1, where there is no configuration file
            if given.get(key, "auto") not in ("auto", None, 1, value):
                raise TrainingError(
                    f"the DeepSpeed configuration sets {key} to {given[key]}, but --{flag} is {value}; set "
                    "it to auto there, or change the flag"
                )
        for key in ("optimizer", "scheduler"):
            if key in given:
                raise TrainingError(
                    f"the DeepSpeed configuration has its own {key}; remove that, because flags choose it"
                )
        for key in ("fp16", "bf16", "torch_autocast"):
            if given.get(key, {}).get("enabled") is True:
                raise TrainingError(
                    f"the DeepSpeed configuration enables {key}; remove that, and set --mixed_precision"
                )
        stages = given["zero_optimization"]
        if (stage := stages.get("stage", 0)) not in (1, 2, 3):
            raise TrainingError(f"the DeepSpeed configuration has ZeRO stage {stage}; set it to 2 or 3")
        for key in ("offload_optimizer", "offload_param"):
            if (device := (stages.get(key) or {}).get("device") or "none") != "none":
                raise TrainingError(
                    f"the DeepSpeed configuration has {key} to {device}, which does not work yet"
                )
        if self.precision == "fp16":
            raise TrainingError("--mixed_precision fp16 does not work with DeepSpeed; set bf16")
        # Several micro-steps are one step for DeepSpeed, because losses are divided before they reach it
        given |= own | {"gradient_accumulation_steps": 1, "train_batch_size": "auto"}
        if self.precision != "no":  # weights stay in float32, as they do elsewhere
            given["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}

    @property
    def precision(self):
        named = self.config.mixed_precision
        return named or os.environ.get("ACCELERATE_MIXED_PRECISION", "no")

    @contextlib.contextmanager
    def accumulating(self):
        self.boundary = False
        try:
            yield
        finally:
            self.boundary = True

    def backward(self, name, loss, finite):
        self.engine.set_gradient_accumulation_boundary(self.boundary)
        self.engine.backward(loss if finite else loss * math.nan)  # DeepSpeed looks at gradients only

    def update(self, name, finite, max_norm):
        self.engine.step()
        return float(self.engine.get_global_grad_norm()), not self.zero.overflow

    def renew(self):
        if self.stage < 3:
            self.zero.update_lp_params()
            return
        for number in range(len(self.averaged)):
            self.zero._reassign_or_swap_out_partitioned_parameters(number)
        if kept := self.zero.persistent_parameters:
            kept[0].all_gather(kept)

    def _part(self, parameter: torch.nn.Parameter) -> tuple[int, slice, slice] | None:
        """Returns which part of a parameter this process holds: the number of a tensor in `averaged`, the
        slice of it, and the slice of the flattened parameter; None: none."""
        if self.stage < 3:
            if (held := parameter._hp_mapping) is None:
                return None
            group, length = held.param_group_index, held.hp_fragment_address.numel
            start, first = held.hp_fragment_address.start, held.lp_fragment_address.start
        else:
            group, start, length = self.zero.grad_position[self.zero.get_param_id(parameter)]
            first = length * dist.get_rank()
            length = min(length, parameter.ds_numel - first)  # the last part is padded
        return (group, slice(start, start + length), slice(first, first + length)) if length > 0 else None

    def _joined(self, parameter: torch.nn.Parameter, flat: list[torch.Tensor], owner: int) -> torch.Tensor:
        """Returns the whole of a parameter, or of a state of it, which only the process `owner` receives."""
        shape = parameter.ds_shape if self.stage == 3 else parameter.shape
        whole = torch.zeros(shape.numel(), device=self.accelerator.device)
        if part := self._part(parameter):
            group, own, place = part
            whole[place] = flat[group].detach()[own]
        dist.reduce(whole, owner)
        return whole.view(shape)

    def _split(self, parameter: torch.nn.Parameter, flat: list[torch.Tensor], whole: torch.Tensor) -> None:
        """The inverse of `_joined`, with `whole` in all processes."""
        if part := self._part(parameter):
            group, own, place = part
            flat[group].data[own] = whole.flatten()[place].to(flat[group])

    def _owner(self, number: int) -> int:
        """Returns the process that saves a tensor."""
        return number % self.accelerator.num_processes

    def _owns(self, number: int) -> bool:
        return self._owner(number) == self.accelerator.process_index

    def _fixed(self, tensor: torch.Tensor) -> contextlib.AbstractContextManager[None]:
        """Makes a tensor that is not trained whole meanwhile; changes of the first process count."""
        import deepspeed

        if not hasattr(tensor, "ds_id"):
            return contextlib.nullcontext()
        return deepspeed.zero.GatheredParameters([tensor], modifier_rank=0)

    def _saved(self) -> dict[str, torch.Tensor]:
        """Returns the tensors that `state_dict` names, in the parts that this process has."""
        tensors = _tensors(self.module)
        return {name: tensors[name] for name in self.module.state_dict()}

    @contextlib.contextmanager
    def _whole_tensor(self, tensor: torch.Tensor, owner: int) -> Iterator[torch.Tensor]:
        """Yields a tensor of the module whole, which only the process `owner` receives."""
        if any(tensor is parameter for parameter in self.trained):
            yield self._joined(tensor, self.averaged, owner)
        else:
            with self._fixed(tensor):
                yield tensor

    def _gathered(self):
        for name, tensor in _tensors(self.module).items():
            with self._whole_tensor(tensor, 0) as whole:
                yield name, whole

    def module_state(self, name):
        state = {}
        for number, (key, tensor) in enumerate(self._saved().items()):
            with self._whole_tensor(tensor, self._owner(number)) as whole:
                if self._owns(number):
                    state[key] = whole.detach().to("cpu", copy=True)
        return state

    def average_state(self, shadow):
        kept = {}
        for number, parameter in enumerate(self.trained):
            whole = self._joined(parameter, shadow, self._owner(number))
            if self._owns(number):
                kept[str(number)] = whole.cpu()
        return kept

    def optimizer_state(self, name):
        base, tensors = self.zero.optimizer, {}
        states = [base.state[flat] for flat in self.averaged]
        for key, value in states[0].items():
            if value.shape == self.averaged[0].shape:
                each = self.average_state([state[key] for state in states])
            else:  # the number of steps
                each = {str(i): value.clone() for i in range(len(self.trained)) if self._owns(i)}
            tensors |= {f"{number}/{key}": tensor for number, tensor in each.items()}
        groups = [{k: v for k, v in group.items() if k != "params"} for group in base.param_groups]
        groups[0]["params"] = list(range(len(self.trained)))
        return tensors, {"scalars": {}, "param_groups": groups}

    def _pieces(self, saved: Checkpoint, group: str) -> Iterator[tuple[str, torch.Tensor]]:
        """Yields whole tensors of a checkpoint's group by name; not all are in memory at once."""
        names, size = [], 0
        for name, (shape, dtype) in saved.describe(group).items():
            names.append(name)
            size += shape.numel() * dtype.itemsize
            if size > PIECE:
                yield from saved.group(group, names).items()
                names, size = [], 0
        yield from saved.group(group, names).items()

    def load_module(self, name, saved):
        tensors, trained = self._saved(), {id(parameter) for parameter in self.trained}
        if tensors.keys() != (found := saved.describe(name)).keys():
            raise KeyError(f"{name} has {len(found)} tensors, expected were {len(tensors)}")
        for key, whole in self._pieces(saved, name):
            if id(tensor := tensors[key]) in trained:
                self._split(tensor, self.averaged, whole)
            else:
                with self._fixed(tensor):
                    tensor.data.copy_(whole)
        self.renew()

    def load_optimizer(self, name, saved, group, rest):
        base = self.zero.optimizer
        for key, whole in self._pieces(saved, group):
            number, key = key.split("/")
            if not whole.shape:
                for flat in self.averaged:
                    base.state[flat][key] = whole.clone()
                continue
            for flat in self.averaged:
                base.state[flat].setdefault(key, torch.zeros_like(flat).detach())
            self._split(self.trained[int(number)], [base.state[flat][key] for flat in self.averaged], whole)
        for now, before in zip(base.param_groups, rest["param_groups"], strict=True):
            now |= {key: value for key, value in before.items() if key not in ("params", "fused")}

    def load_average(self, saved):
        shadow = [torch.zeros_like(flat).detach() for flat in self.averaged]
        for number, whole in self._pieces(saved, "ema"):
            self._split(self.trained[int(number)], shadow, whole)
        return shadow


def make_accelerator(config: TrainConfig, **settings: Any) -> Accelerator:
    """Returns accelerate's `Accelerator` as the launcher set it up, also for sharding on CPUs.

    Raises TrainingError where the launcher's settings and those of the run exclude each other.
    """
    by_fsdp, by_deepspeed = (
        os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() == "true" for name in ("FSDP", "DEEPSPEED")
    )
    for flag in ("compile", "use_8bit_adam"):
        if (by_fsdp or by_deepspeed) and getattr(config, flag):
            raise TrainingError(f"--{flag} does not work with sharded networks; leave it out")
    if by_fsdp and os.environ.get("FSDP_VERSION", "1") != "2":
        raise TrainingError("FSDP 1 is not supported; set fsdp_version: 2 in accelerate's configuration")
    on_cpu = not torch.accelerator.is_available()
    if by_deepspeed:
        if on_cpu:
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
        if not is_deepspeed_available():
            raise MissingDependencyError('DeepSpeed needs `pip install "magicedit[deepspeed]"`')
    try:
        accelerator = Accelerator(
            # Else several torchrun processes without a GPU would each train alone into one folder
            cpu=on_cpu,
            mixed_precision="no" if by_deepspeed else config.mixed_precision,  # see `Zero.precision`
            **settings,
        )
        if on_cpu:
            _shard_on_cpu(accelerator, by_fsdp, by_deepspeed)
    except (OSError, ValueError) as error:  # such as a file of DeepSpeed's that is none
        raise TrainingError(
            f"accelerate cannot be set up ({reason_of(error)}); change its configuration or --mixed_precision"
        ) from error
    # The loop divides by micro-steps itself, regardless of the launcher's environment
    accelerator.gradient_accumulation_steps = 1
    return accelerator


def _shard_on_cpu(accelerator: Accelerator, by_fsdp: bool, by_deepspeed: bool) -> None:
    """Sets up sharding on CPUs, which torch and DeepSpeed know, and accelerate does not."""
    state = accelerator.state
    if by_fsdp:
        state.fsdp_plugin, state.distributed_type = FullyShardedDataParallelPlugin(), DistributedType.FSDP
        if accelerator.mixed_precision != "no":
            state.fsdp_plugin.set_mixed_precision(accelerator.mixed_precision)
    elif by_deepspeed:
        import deepspeed

        # Else it compiles C++ for minutes, only to reduce faster between CPUs
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        state.deepspeed_plugins, state.distributed_type = DeepSpeedPlugin(), DistributedType.DEEPSPEED


def engine_of(accelerator: Accelerator, config: TrainConfig) -> Engine:
    """Returns the engine that the launcher chose; TrainingError where there is none for it."""
    kind = accelerator.distributed_type
    if kind == DistributedType.DEEPSPEED:
        # transformers would build networks in parts, and diffusers would average them as such
        unset_hf_deepspeed_config()
        return Zero(accelerator, config)
    if kind == DistributedType.FSDP:
        if accelerator.state.fsdp_plugin.activation_checkpointing:
            raise TrainingError(
                "fsdp_activation_checkpointing does not know reference features; set it to false, and "
                "--gradient_checkpointing instead"
            )
        return FullySharded(accelerator, config)
    if kind == DistributedType.MEGATRON_LM:
        raise TrainingError("Megatron-LM is not supported; see train/configs/accelerate for what is")
    return Engine(accelerator, config)
