"""Atomic checkpoints in JSON and safetensors; loading one executes no code.

Layout of `checkpoint-N/`: one `NAME.safetensors` for each group of tensors, `state.json`, and, written last,
`manifest.json` with the SHA-256 of every other file. Nothing that it does not name is read.
"""

import json
import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from magicedit.errors import TrainingError
from magicedit.files import read_json, sha256_of, shown, sync, writing

logger = logging.getLogger(__name__)

MANIFEST, STATE = "manifest.json", "state.json"
GROUPS = "groups"  # in a state: names of the groups of tensors, so that a manifest cannot leave one out
LARGEST_JSON = 100_000_000  # bytes of a state: optimisers list each parameter
ABANDONED = "abandoned"  # prefix of checkpoints of a branch that a run was resumed before


def remove(path: Path) -> None:
    """Deletes a folder, a file or a link, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def save_checkpoint(
    output_dir: Path, step: int, tensors: dict[str, dict[str, torch.Tensor]], state: dict, limit: int | None
) -> Path:
    """Writes `checkpoint-{step}`; older ones are removed only after this one has been verified.

    tensors: groups of tensors, each a file. state: JSON-ready. limit: checkpoints to keep, this one and the
    newest of earlier steps; at least 1; None: all.
    Raises OutputError where it cannot be written, TrainingError where the disk does not hold what was
    written; earlier checkpoints are then intact.
    """
    final, temporary = output_dir / f"checkpoint-{step}", output_dir / f"tmp-{step}"
    old = output_dir / f"old-{step}"
    with writing(final, SafetensorError):
        output_dir.mkdir(parents=True, exist_ok=True)
        remove(temporary)  # of a run that was killed while writing
        temporary.mkdir()
        for name, group in tensors.items():
            # Contiguous copies, because safetensors refuses tensors that share memory
            save_file(
                {k: v.detach().cpu().contiguous().clone() for k, v in group.items()},
                temporary / f"{name}.safetensors",
            )
        (temporary / STATE).write_text(json.dumps({**state, GROUPS: sorted(tensors)}, indent=1))
        hashes = {file.name: sha256_of(file) for file in sorted(temporary.iterdir())}
        (temporary / MANIFEST).write_text(json.dumps({"step": step, "sha256": hashes}, indent=1))
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
            earlier = [p for p in list_checkpoints(output_dir) if checkpoint_step(p) < step]
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
            raise TrainingError(f"{MANIFEST} names {shown(name)!r}, which is no file of a checkpoint")
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
        if not isinstance(state, dict) or not isinstance(state.get(GROUPS, []), list):
            return f"{STATE} holds no state"
        missing = [group for group in state.get(GROUPS, []) if f"{group}.safetensors" not in hashes]
        return f"{MANIFEST} does not name {missing[0]}.safetensors" if missing else None
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


def find_checkpoint(output_dir: Path, which: str) -> Path | None:
    """Returns the checkpoint folder to resume from; "latest" is the newest that verifies, None if none does.

    Damaged ones before it are named in a warning. Raises TrainingError where a named one does not verify.
    """
    if which == "latest":
        for folder in list_checkpoints(output_dir):
            if (reason := damage(folder)) is None:
                return folder
            logger.warning("%s is damaged and skipped: %s", folder, reason)
        return None
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


def load_checkpoint(folder: Path) -> tuple[dict[str, dict[str, torch.Tensor]], dict]:
    """Returns tensors by group and the JSON state of a verified checkpoint.

    Raises TrainingError where a file holds something else than its name says.
    """
    try:
        files = [folder / name for name in sorted(_manifest(folder)) if name.endswith(".safetensors")]
        state = read_json(folder / STATE, TrainingError, limit=LARGEST_JSON)
        return {file.stem: load_file(file) for file in files}, {k: v for k, v in state.items() if k != GROUPS}
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"{shown(folder)} cannot be loaded: {error}") from error


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
