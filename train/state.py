"""Atomic checkpoints in JSON and safetensors; loading one executes no code.

Layout of `checkpoint-N/`: one `NAME.safetensors` for each group of tensors, `state.json`, and, written last,
`manifest.json` with the SHA-256 of every other file. Nothing that it does not name is read. Where processes
hold parts of tensors, each writes one `shard-*.safetensors` with all that is its own, by torch's distributed
checkpoint; not by its default writer, whose files are pickles.
"""

import contextlib
import json
import logging
import math
import os
import re
import shutil
import warnings
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.distributed.tensor import DTensor, distribute_tensor

from magicedit.errors import TrainingError
from magicedit.files import read_json, sha256_of, shown, sync, writing

logger = logging.getLogger(__name__)

MANIFEST, STATE = "manifest.json", "state.json"
# In a state: names of the groups of tensors, or of files with parts of them, so that a manifest cannot leave
# one out
GROUPS, SHARDS = "groups", "shards"
LARGEST_JSON = 100_000_000  # bytes of a state: optimisers list each parameter
VALIDATION = "validation"  # in a state of weights that were validated: their loss, and what it is a loss of
ABANDONED = "abandoned"  # prefix of checkpoints of a branch that a run was resumed before

Tensors = dict[str, torch.Tensor]


def remove(path: Path) -> None:
    """Deletes a folder, a file or a link, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def save_checkpoint(
    output_dir: Path, step: int, tensors: dict[str, Tensors], state: dict, limit: int | None
) -> Path:
    """Writes `checkpoint-{step}`; older ones are removed only after this one has been verified.

    tensors: groups of tensors, each a file. state: JSON-ready. limit: checkpoints to keep, this one and the
    newest of earlier steps, beside the best one; at least 1; None: all.
    Raises OutputError where it cannot be written, TrainingError where the disk does not hold what was
    written; earlier checkpoints are then intact.
    """
    _begin(output_dir, step)
    temporary = output_dir / f"tmp-{step}"
    with writing(output_dir / f"checkpoint-{step}", SafetensorError):
        for name, group in tensors.items():
            save_file(_apart(group), temporary / f"{name}.safetensors")
        hashes = {path.name: sha256_of(path) for path in temporary.iterdir()}
    return _complete(output_dir, step, hashes, {**state, GROUPS: sorted(tensors)}, limit)


def _apart(group: Tensors) -> Tensors:
    """Returns tensors as safetensors takes them: contiguous on the CPU, none in the memory of another.

    What is so already is not copied.
    """
    taken, apart = set(), {}
    for name, tensor in group.items():
        tensor = tensor.detach().cpu().contiguous()
        place = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.clone() if place in taken else tensor
        taken.add(place)
    return apart


def save_shards(
    output_dir: Path,
    step: int,
    tensors: dict[str, Tensors],
    state: dict,
    limit: int | None,
    group: dist.ProcessGroup,
    alone: Callable[[Callable[[], None]], None],
) -> Path:
    """`save_checkpoint` by all processes of a group at once, into a folder that they share.

    tensors: those that this process holds: parts, as DTensors, or whole. alone: runs something in the main
    process, see `Engine.alone`.
    """
    final, temporary = output_dir / f"checkpoint-{step}", output_dir / f"tmp-{step}"
    alone(lambda: _begin(output_dir, step))
    flat = {
        f"{name}/{key}": tensor.detach() for name, held in tensors.items() for key, tensor in held.items()
    }
    writer = HuggingFaceStorageWriter(str(temporary), save_distributed=True)
    with writing(final), _reasons():
        dcp.save(flat, storage_writer=writer, process_group=group)
    own = temporary.glob(f"shard-{dist.get_rank(group) + 1:05d}-*")
    found: list[dict[str, str]] = [{}] * dist.get_world_size(group)
    dist.all_gather_object(found, {path.name: sha256_of(path) for path in own}, group)
    hashes = {name: value for part in found for name, value in part.items()}
    alone(lambda: _complete(output_dir, step, hashes, {**state, SHARDS: sorted(hashes)}, limit))
    return final


@contextlib.contextmanager
def _reasons() -> Iterator[None]:
    """Raises what made a distributed checkpoint fail in one of the processes."""
    try:
        yield
    except CheckpointException as error:
        failed, _ = next(iter(error.failures.values()))
        raise failed from None


def _begin(output_dir: Path, step: int) -> None:
    """Makes an empty folder to write a checkpoint into."""
    temporary = output_dir / f"tmp-{step}"
    with writing(temporary):
        output_dir.mkdir(parents=True, exist_ok=True)
        remove(temporary)  # of a run that was killed while writing
        temporary.mkdir()


def _complete(output_dir: Path, step: int, hashes: dict[str, str], state: dict, limit: int | None) -> Path:
    """Adds state and manifest to a checkpoint's files, verifies it, gives it its name, and prunes."""
    final, temporary = output_dir / f"checkpoint-{step}", output_dir / f"tmp-{step}"
    old = output_dir / f"old-{step}"
    with writing(final):
        (temporary / STATE).write_text(json.dumps(state, indent=1), encoding="utf-8")
        hashes = dict(sorted({**hashes, STATE: sha256_of(temporary / STATE)}.items()))
        manifest = json.dumps({"step": step, "sha256": hashes}, indent=1)
        (temporary / MANIFEST).write_text(manifest, encoding="utf-8")
        for path in (*(temporary / name for name in hashes), temporary / MANIFEST, temporary):
            sync(path)
        if reason := damage(temporary):
            raise TrainingError(
                f"{shown(temporary)} does not verify after writing ({reason}); is the disk full or failing?"
            )
        # A kill between these lines leaves a whole checkpoint, which `recover_checkpoints` renames
        if final.exists():  # the step was reached before
            remove(old)
            final.rename(old)
        temporary.rename(final)
        sync(output_dir)
        remove(old)
        if limit is not None:
            best = best_checkpoints(output_dir)[:1]
            earlier = [p for p in list_checkpoints(output_dir) if checkpoint_step(p) < step and p not in best]
            for superfluous in earlier[limit - 1 :]:
                remove(superfluous)
    return final


def _manifest(folder: Path) -> dict[str, str]:
    """Returns the digests that a checkpoint's manifest states, by file; TrainingError where it has none."""
    content = read_json(folder / MANIFEST, TrainingError, limit=LARGEST_JSON)
    hashes = content.get("sha256") if isinstance(content, dict) else None
    if not isinstance(hashes, dict) or STATE not in hashes:
        raise TrainingError(f"{MANIFEST} does not name {STATE}")
    for name, value in hashes.items():
        # Each a file of this folder: no path, absolute or by .., and no name that no file can have
        if not re.fullmatch(r"[\w. -]{1,200}", name) or name in (".", "..") or not isinstance(value, str):
            raise TrainingError(f"{MANIFEST} names {shown(name)!r}, which is not a file of a checkpoint")
    return hashes


def damage(folder: Path) -> str | None:
    """Returns why a folder is no whole checkpoint, in one line; None where every file is as it was saved."""
    name = MANIFEST
    try:
        hashes = _manifest(folder)
        for name, value in hashes.items():
            if sha256_of(folder / name) != value:
                return f"{name} was changed"
            if name.endswith(".safetensors"):
                with safe_open(folder / name, "pt"):
                    pass
        state = read_json(folder / STATE, TrainingError, limit=LARGEST_JSON)
        if not isinstance(state, dict) or not all(
            isinstance(state.get(k, []), list) for k in (GROUPS, SHARDS)
        ):
            return f"{STATE} holds no state"
        expected = [*(f"{group}.safetensors" for group in state.get(GROUPS, [])), *state.get(SHARDS, [])]
        missing = [name for name in expected if name not in hashes]
        return f"{MANIFEST} does not name {missing[0]}" if missing else None
    except TrainingError as error:
        return str(error)
    except (OSError, SafetensorError) as error:
        return f"{name} cannot be read ({getattr(error, 'strerror', None) or error})"


def verify_checkpoint(folder: Path) -> bool:
    """Whether a folder is a checkpoint with every file as it was saved."""
    return damage(folder) is None


def checkpoint_step(folder: Path) -> int:
    """Returns the optimiser step in a checkpoint folder's name."""
    return int(folder.name.split("-")[1])


def _numbered(output_dir: Path, prefix: str) -> list[Path]:
    """Entries named `{prefix}-N`, by N, the largest first."""
    found = [p for p in output_dir.glob(f"{prefix}-*") if re.fullmatch(rf"{prefix}-[0-9]{{1,18}}", p.name)]
    return sorted(found, key=checkpoint_step, reverse=True)


def list_checkpoints(output_dir: Path) -> list[Path]:
    """Checkpoint folders, newest first, verified or not."""
    return _numbered(output_dir, "checkpoint")


def recover_checkpoints(output_dir: Path) -> None:
    """Renames whole checkpoints to `checkpoint-N` that a kill left under temporary names; deletes the rest.

    A new one has priority over the one it replaces. Call it in one process, while nothing is saved there.
    """
    with writing(output_dir):
        for folder in (*_numbered(output_dir, "tmp"), *_numbered(output_dir, "old")):
            final = output_dir / f"checkpoint-{checkpoint_step(folder)}"
            if verify_checkpoint(folder) and not verify_checkpoint(final):
                remove(final)
                folder.rename(final)
            else:
                remove(folder)


def validation_of(folder: Path) -> dict[str, Any] | None:
    """Returns what a checkpoint's state says of its validation; None: nothing, or the state is damaged."""
    try:
        if sha256_of(folder / STATE) != _manifest(folder)[STATE]:
            return None
        record = read_json(folder / STATE, TrainingError, limit=LARGEST_JSON)[VALIDATION]
        return {"loss": float(record["loss"]), "meaning": record["meaning"]}
    except (KeyError, OSError, TrainingError, TypeError, ValueError):
        return None


def best_checkpoints(output_dir: Path) -> list[Path]:
    """Checkpoint folders by their validation loss, the lowest first, verified or not.

    Only those whose loss is of the same samples and settings as that of the newest validated one.
    """
    records = {folder: validation_of(folder) for folder in list_checkpoints(output_dir)}
    validated = {folder: record for folder, record in records.items() if record is not None}
    meaning = next((record["meaning"] for record in validated.values()), None)
    losses = {
        folder: record["loss"]
        for folder, record in validated.items()
        if record["meaning"] == meaning and math.isfinite(record["loss"])
    }
    return sorted(losses, key=losses.__getitem__)


def find_checkpoint(output_dir: Path, which: str) -> Path | None:
    """Returns the checkpoint folder to resume from; "latest" is the newest that verifies, None if none does.

    "best" is the one of the lowest validation loss that verifies. Damaged ones before it are named in a
    warning. Raises TrainingError where a named one does not verify, or none was validated.
    """
    if which in ("latest", "best"):
        for folder in list_checkpoints(output_dir) if which == "latest" else best_checkpoints(output_dir):
            if (reason := damage(folder)) is None:
                return folder
            logger.warning("%s is damaged and skipped: %s", folder, reason)
        if which == "latest":
            return None
        raise TrainingError(
            f"no whole checkpoint in {shown(output_dir)} has a validation loss; resume from latest instead"
        )
    folder = Path(which) if os.path.isdir(which) else output_dir / which
    if reason := damage(folder):
        raise TrainingError(
            f"{shown(folder)} is not a whole checkpoint: {reason}; resume from another one, or from latest"
        )
    return folder


def retire_checkpoints(output_dir: Path, after: int) -> list[Path]:
    """Renames checkpoints of later steps to `abandoned-N`, which no run resumes or deletes; returns these.

    Else "latest" would find the branch that a run left when it resumed step `after`.
    """
    retired = []
    with writing(output_dir):
        for folder in list_checkpoints(output_dir):
            step = checkpoint_step(folder)
            if step <= after:
                continue
            names = (f"{ABANDONED}-{step}", *(f"{ABANDONED}-{step}-{n}" for n in range(2, 10_000)))
            retired.append(next(output_dir / name for name in names if not (output_dir / name).exists()))
            folder.rename(retired[-1])
    return retired


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint: JSON values, and groups of tensors, which are read when they are asked for.

    files: names of the files with tensors. sharded: whether each holds parts of all groups.
    """

    folder: Path
    state: dict
    files: tuple[str, ...]
    sharded: bool

    @classmethod
    def open(cls, folder: Path) -> "Checkpoint":
        """Raises TrainingError where a file holds something else than its name says."""
        try:
            names = tuple(name for name in sorted(_manifest(folder)) if name.endswith(".safetensors"))
        except OSError as error:
            raise TrainingError(f"{shown(folder)} cannot be loaded: {error}") from error
        state = read_json(folder / STATE, TrainingError, limit=LARGEST_JSON)
        saved = {key: value for key, value in state.items() if key not in (GROUPS, SHARDS)}
        return cls(folder, saved, names, SHARDS in state)

    def groups(self) -> list[str]:
        """Returns the names of the groups."""
        if not self.sharded:
            return [name.removesuffix(".safetensors") for name in self.files]
        return sorted({key.split("/")[0] for key in self._described()})

    def describe(self, group: str) -> dict[str, tuple[torch.Size, torch.dtype]]:
        """Returns shape and type of a group's tensors by name."""
        if not self.sharded:
            return {key: (tensor.shape, tensor.dtype) for key, tensor in self.group(group).items()}
        prefix = f"{group}/"
        return {
            key.removeprefix(prefix): (tensor.size, tensor.properties.dtype)
            for key, tensor in self._described().items()
            if key.startswith(prefix)
        }

    def group(self, group: str, names: Collection[str] | None = None) -> Tensors:
        """Returns whole tensors of a group on the CPU: all, or those of some names.

        Raises TrainingError where a file cannot be read, KeyError where there is no such group or name.
        """
        if not self.sharded:
            if f"{group}.safetensors" not in self.files:
                raise KeyError(group)
            with self._reading():
                found = load_file(self.folder / f"{group}.safetensors")
            return found if names is None else {name: found[name] for name in names}
        described = self.describe(group)
        names = described if names is None else names
        tensors = {name: torch.empty(described[name][0], dtype=described[name][1]) for name in names}
        self._read(group, tensors)
        return tensors

    def fill(self, group: str, tensors: Tensors) -> None:
        """Copies a group into `tensors`, of which this process may hold parts, as DTensors.

        Raises KeyError where these have other names than the group's, and as `group` does.
        """
        if tensors.keys() != (saved := self.describe(group)).keys():
            raise KeyError(f"{group} has {len(saved)} tensors, expected were {len(tensors)}")
        if self.sharded:
            self._read(group, tensors)
            return
        whole = self.group(group)
        for name, tensor in tensors.items():
            value = whole[name].to(tensor.device)
            if isinstance(tensor, DTensor):  # each process takes its part of what it has read
                value = distribute_tensor(value, tensor.device_mesh, tensor.placements, src_data_rank=None)
            tensor.copy_(value)

    def _read(self, group: str, tensors: Tensors) -> None:
        flat = {f"{group}/{name}": tensor for name, tensor in tensors.items()}
        with self._reading(), _reasons(), warnings.catch_warnings(action="ignore", category=UserWarning):
            dcp.load(flat, storage_reader=self._reader(), no_dist=True)

    def _described(self) -> dict[str, Any]:
        with self._reading():
            return self._reader().read_metadata().state_dict_metadata

    def _reader(self) -> HuggingFaceStorageReader:
        reader = HuggingFaceStorageReader(str(self.folder))
        reader.fs = _Listed(self.files)
        return reader

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (OSError, SafetensorError) as error:
            raise TrainingError(f"{shown(self.folder)} cannot be loaded: {error}") from error


class _Listed(FileSystem):
    """Files of a folder as its manifest names them; others are not seen."""

    def __init__(self, names: tuple[str, ...]):
        self.names = names

    def ls(self, path: str | os.PathLike) -> list[str]:
        return [os.path.join(path, name) for name in self.names]


def load_checkpoint(folder: Path) -> tuple[dict[str, Tensors], dict]:
    """Returns whole tensors by group and the JSON state of a verified checkpoint; see `Checkpoint`."""
    saved = Checkpoint.open(folder)
    return {group: saved.group(group) for group in saved.groups()}, saved.state


def flatten_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Returns an optimiser's state as tensors named `index/key`, and the rest as JSON values."""
    tensors, scalars = {}, {}

    def flatten(prefix: str, entries: dict) -> None:
        for key, value in entries.items():
            name = f"{prefix}/{key}"
            if isinstance(value, dict):  # 8-bit optimisers nest their quantisation state
                flatten(name, value)
            else:
                (tensors if isinstance(value, torch.Tensor) else scalars)[name] = value

    state = optimizer.state_dict()
    for index, entries in state["state"].items():
        flatten(str(index), entries)
    return tensors, {"scalars": scalars, "param_groups": state["param_groups"]}


def restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor], rest: dict[str, Any]
) -> None:
    """The inverse of `flatten_optimizer`, but `optimizer` keeps its own choice of `fused`."""
    state: dict[int, dict[str, Any]] = {}
    for name, value in {**tensors, **rest["scalars"]}.items():
        index, *parents, key = name.split("/")
        entries = state.setdefault(int(index), {})
        for parent in parents:
            entries = entries.setdefault(parent, {})
        entries[key] = value
    groups = [
        saved | {"fused": now["fused"]} if "fused" in now else saved
        for saved, now in zip(rest["param_groups"], optimizer.param_groups, strict=True)
    ]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
