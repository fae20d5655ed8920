"""Atomic checkpoints in JSON and safetensors; loading one executes no code.

Layout of `checkpoint-N/`: one `NAME.safetensors` for each group of tensors, `state.json`, and, written last,
`manifest.json` with the SHA-256 of every other file.
"""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from magicedit.errors import TrainingError
from magicedit.files import sha256_of, sync

MANIFEST = "manifest.json"


def save_checkpoint(
    output_dir: Path, step: int, tensors: dict[str, dict[str, torch.Tensor]], state: dict, limit: int | None
) -> Path:
    """Writes `checkpoint-{step}`; older ones are removed only after this one has been verified.

    tensors: groups of tensors, each a file. state: JSON-ready. limit: checkpoints to keep, this one and the
    newest of earlier steps; at least 1; None: all.
    Raises TrainingError where the disk does not hold what was written.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    final, temporary = output_dir / f"checkpoint-{step}", output_dir / f"tmp-{step}"
    shutil.rmtree(temporary, ignore_errors=True)  # of a run that was killed while writing
    temporary.mkdir()
    for name, group in tensors.items():
        # Contiguous copies, because safetensors refuses tensors that share memory
        save_file(
            {k: v.detach().cpu().contiguous().clone() for k, v in group.items()},
            temporary / f"{name}.safetensors",
        )
    (temporary / "state.json").write_text(json.dumps(state, indent=1))
    hashes = {file.name: sha256_of(file) for file in sorted(temporary.iterdir())}
    (temporary / MANIFEST).write_text(json.dumps({"step": step, "sha256": hashes}, indent=1))
    for path in (*(temporary / name for name in hashes), temporary / MANIFEST, temporary):
        sync(path)
    old = output_dir / f"old-{step}"
    # A kill between these lines leaves a whole checkpoint, which `recover_checkpoints` renames
    if final.exists():  # the step was reached before
        shutil.rmtree(old, ignore_errors=True)
        final.rename(old)
    temporary.rename(final)
    sync(output_dir)
    shutil.rmtree(old, ignore_errors=True)
    if not verify_checkpoint(final):
        raise TrainingError(f"{final} does not verify after writing; is the disk full or failing?")
    if limit is not None:
        earlier = [p for p in list_checkpoints(output_dir) if checkpoint_step(p) < step]
        for superfluous in earlier[limit - 1 :]:
            shutil.rmtree(superfluous)
    return final


def verify_checkpoint(folder: Path) -> bool:
    """Whether every file that the manifest names is there, unchanged."""
    try:
        hashes = json.loads((folder / MANIFEST).read_text())["sha256"]
        return all(sha256_of(folder / name) == value for name, value in hashes.items())
    except (OSError, ValueError, KeyError):
        return False


def checkpoint_step(folder: Path) -> int:
    """Returns the optimiser step in a checkpoint folder's name."""
    return int(folder.name.split("-")[1])


def list_checkpoints(output_dir: Path) -> list[Path]:
    """Checkpoint folders, newest first, verified or not."""
    found = [p for p in output_dir.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", p.name)]
    return sorted(found, key=checkpoint_step, reverse=True)


def recover_checkpoints(output_dir: Path) -> None:
    """Renames whole checkpoints to `checkpoint-N` that a kill left under temporary names.

    A new one has priority over the one it replaces, which is then deleted. Call it in one process, while
    nothing is saved there.
    """
    for prefix in ("tmp", "old"):
        for folder in output_dir.glob(f"{prefix}-*"):
            if not re.fullmatch(rf"{prefix}-\d+", folder.name):
                continue
            final = output_dir / f"checkpoint-{checkpoint_step(folder)}"
            if not final.exists() and verify_checkpoint(folder):
                folder.rename(final)
            elif prefix == "old" and verify_checkpoint(final):
                shutil.rmtree(folder)


def find_checkpoint(output_dir: Path, which: str) -> Path | None:
    """Returns the checkpoint folder to resume from; "latest" is the newest that verifies, None if none does.

    Raises TrainingError where a named checkpoint does not verify.
    """
    if which == "latest":
        return next((p for p in list_checkpoints(output_dir) if verify_checkpoint(p)), None)
    folder = Path(which) if Path(which).is_dir() else output_dir / which
    if not verify_checkpoint(folder):
        raise TrainingError(
            f"{folder} is not a whole checkpoint: {MANIFEST} is missing or names other contents"
        )
    return folder


def load_checkpoint(folder: Path) -> tuple[dict[str, dict[str, torch.Tensor]], dict]:
    """Returns tensors by group and the JSON state of a verified checkpoint."""
    groups = {file.stem: load_file(file) for file in sorted(folder.glob("*.safetensors"))}
    return groups, json.loads((folder / "state.json").read_text())


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
