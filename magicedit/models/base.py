"""Opening the models that training starts from, and LoRA adapters on them."""

import dataclasses
import hashlib
import inspect
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler

from magicedit.errors import ModelError
from magicedit.files import shown
from magicedit.models.folder import ADAPTERS, INDEX, PIPELINE_CLASS, Base, ModelFolder, digest_of_files
from magicedit.models.loading import load_pipeline, loading
from magicedit.models.magicface import check_empty, load_magicface, with_base
from magicedit.models.unets import from_stable_diffusion
from magicedit.pipelines.pipeline_magicedit import MagicEditPipeline, load_component
from magicedit.pipelines.safe_pipeline import variant_of, weights_variant

MAGICFACE = ("denoising_unet", "ID_enc")
STABLE_DIFFUSION = ("unet", "vae", "text_encoder")


def is_magicface(found: ModelFolder) -> bool:
    """Whether a folder is laid out as the published MagicFace checkpoint."""
    return found.origin == "folder" and (found.path / MAGICFACE[0]).is_dir()


def open_base(
    base: Base,
    resolution: int | None = None,
    *,
    dtype: torch.dtype | None = None,
    held_as: torch.dtype | None = None,
    **hub_kwargs: Any,
) -> MagicEditPipeline:
    """Returns the editing pipeline that training of a base starts from, on the CPU.

    Args:
        resolution: pixels a side of the crops of a Stable Diffusion; default: its own.
        dtype: of the weights; default float32.
        held_as: of the matrices of a Stable Diffusion's UNets, see `unets.hold_matrices`; default: `dtype`.
        hub_kwargs: `token`, `cache_dir`, `local_files_only`.

    Raises:
        ModelError: where the base is of another family, cannot be read, or has parts that do not fit.
    """
    dtype = dtype or torch.float32
    hub_kwargs |= {"revision": base.revision} if base.revision else {}
    found = ModelFolder.find(base.model)
    if is_magicface(found):
        if base.base_model is None:
            raise ModelError(
                f"{base.model} is a MagicFace checkpoint: name its Stable Diffusion with --base_model"
            )
        unets = load_magicface(found.path, dtype)
        parts = base.base_model
    elif found.pipeline_class(**hub_kwargs) == PIPELINE_CLASS:
        pipeline = load_pipeline(base.model, "cpu", dtype, variant=base.variant, **hub_kwargs)
        return _merged(pipeline) if pipeline.get_list_adapters() else pipeline
    else:
        options = {"torch_dtype": dtype, "held_as": held_as, "variant": base.variant}
        unets = from_stable_diffusion(base.model, **options, **hub_kwargs)
        parts = base.model
    options = {"dtype": dtype, "variant": base.variant}
    return with_base(unets, parts, DDPMScheduler, resolution, **options, **hub_kwargs)


def fingerprint_of(base: Base, **hub_kwargs: Any) -> str:
    """Returns what tells a base from others: a digest of its files, or the commit of a hub's model.

    Raises ModelError where it cannot be read.
    """
    marks = [_mark(base, model, hub_kwargs) for model in (base.model, base.base_model) if model is not None]
    return marks[0] if len(marks) == 1 else hashlib.sha256("".join(marks).encode()).hexdigest()[:16]


def _mark(base: Base, model: str, hub_kwargs: dict[str, Any]) -> str:
    found = ModelFolder.find(model)
    if found.origin == "hub":
        revision = {"revision": base.revision} if base.revision else {}
        return found.fetched(INDEX, **revision, **hub_kwargs).path.name  # snapshots are named by their commit
    if found.has_index and found.pipeline_class() == PIPELINE_CLASS:
        return found.fingerprint
    folders = [found.path / name for name in (*MAGICFACE, *STABLE_DIFFUSION)]
    files = []
    for folder in filter(Path.is_dir, folders):
        variant = base.variant or weights_variant(folder)
        weights = (file for file in folder.glob("*.safetensors") if variant_of(file) == variant)
        files += [folder / "config.json", *sorted(weights)]
    return digest_of_files(file for file in files if file.is_file())


def pinned(base: Base, **hub_kwargs: Any) -> Base:
    """Returns a base with its fingerprint, and a hub's at the commit that is here."""
    found = fingerprint_of(base, **hub_kwargs)
    hub = ModelFolder.find(base.model).origin == "hub"
    return dataclasses.replace(
        base, fingerprint=found, revision=found if hub and not base.base_model else base.revision
    )


def load_adapters(
    folder: ModelFolder,
    base: str | None = None,
    dtype: torch.dtype | None = None,
    variant: str | None = None,
    **hub_kwargs: Any,
) -> MagicEditPipeline:
    """Returns the pipeline of a folder of LoRA adapters: its base, with the adapters active.

    Args:
        base: in place of the recorded one; a MagicFace checkpoint's Stable Diffusion is the recorded one.
        variant: of the files of weights of `base`.

    Raises:
        ModelError: where the base is not to be had or another one, the adapters do not fit it, or a variant
            is named without a base.
    """
    recorded = folder.base
    if base is None:
        if variant is not None:
            raise ModelError(
                f"the adapters in {shown(folder.path)} name the files of their base; name a base to read its "
                f"{shown(variant)} weights, or no variant"
            )
        recorded = recorded.located(folder.path)
        if recorded.fingerprint not in (None, found := fingerprint_of(recorded, **hub_kwargs)):
            raise ModelError(
                f"the adapters in {shown(folder.path)} were trained on another {recorded.name} than that in "
                f"{shown(recorded.model)} (fingerprints {recorded.fingerprint} and {found}); put theirs there"
            )
    else:
        recorded = dataclasses.replace(recorded, model=base, revision=None, variant=variant)
    index = folder.index
    try:
        pipeline = open_base(recorded, folder.resolution, dtype=dtype, **hub_kwargs)
    except RecursionError as error:
        raise ModelError(
            f"the adapters in {shown(folder.path)} are their own base; name another one"
        ) from error
    with loading(folder.name):
        names = inspect.signature(MagicEditPipeline.__init__).parameters.keys() - pipeline.components.keys()
        parts = {
            **pipeline.components,
            "scheduler": load_component(folder.path, "scheduler", index["scheduler"]),
        }
        pipeline = MagicEditPipeline(**parts, **{name: index[name] for name in names if name in index})
        pipeline.load_lora_weights(folder.path, weight_name=ADAPTERS)
    return pipeline


def merge(
    adapters: str | Path, output: str | Path, base: str | None = None, variant: str | None = None
) -> None:
    """Writes the whole pipeline of a folder of LoRA adapters, merged into the weights of their base.

    Args:
        adapters: the folder. base, variant: see `load_adapters`.
        output: folder to write; must not exist or be empty.

    Raises:
        ModelError: as `load_adapters`, or where `output` exists.
    """
    check_empty(output)
    _merged(load_pipeline(adapters, "cpu", base=base, variant=variant)).save_pretrained(output)


def _merged(pipeline: MagicEditPipeline) -> MagicEditPipeline:
    """Puts the active adapters into the weights of a pipeline."""
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    return pipeline
