"""Finding and loading a pipeline: the embedded model, a folder, or a hub id."""

from pathlib import Path

import torch

from magicedit.errors import ModelError
from magicedit.models.folder import ModelFolder
from magicedit.pipelines.pipeline_magicedit import MagicEditPipeline, load_component


def load_pipeline(
    model: str | Path = "mini",
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    **hub_kwargs,
) -> MagicEditPipeline:
    """Loads a pipeline without running code from its folder.

    Args:
        model: "mini" or "mini-live" (embedded), a pipeline folder, or a hub id.
        device: default: CUDA, then MPS, then CPU.
        dtype: default float32.
        hub_kwargs: `revision`, `token`, `cache_dir`, `local_files_only`.

    Raises:
        ModelError: where there is no such model, or its files or tensors do not fit (they are named).
    """
    folder = ModelFolder.find(model)
    folder.check_name()
    parts = {}
    if folder.path is not None:
        folder.check()
        parts = {name: folder.component(name).parent for name in folder.components}
    try:
        borrowed = {
            name: load_component(place, name, folder.index[name], dtype or torch.float32)
            for name, place in parts.items()
            if place != folder.path
        }
        pipeline = MagicEditPipeline.from_pretrained(
            folder.path or model, torch_dtype=dtype, **borrowed, **hub_kwargs
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"cannot load the model {model}: {error}") from error
    pipeline.set_progress_bar_config(disable=True)
    device = torch.device(device or default_device())
    return pipeline if device.type == "cpu" else pipeline.to(device)  # it has been loaded on the CPU


def default_device() -> torch.device:
    """CUDA where there is one, then MPS, then the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
