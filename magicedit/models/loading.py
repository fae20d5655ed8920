"""Finding and loading a pipeline: the embedded model, a folder, or a hub id."""

import contextlib
from pathlib import Path

import torch

from magicedit.errors import ModelError, building
from magicedit.files import shown
from magicedit.models.folder import ModelFolder
from magicedit.pipelines.heads import head_channels, own_scheduler
from magicedit.pipelines.pipeline_magicedit import MagicEditPipeline, load_component, read_index
from magicedit.pipelines.safe_pipeline import GRAPHS, LoadingOptions


def load_pipeline(
    model: str | Path = "mini",
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    *,
    variant: str | None = None,
    base: str | None = None,
    **hub_kwargs,
) -> MagicEditPipeline:
    """Loads a pipeline without running code from its folder.

    Args:
        model: "mini" or "mini-live" (embedded), a folder of a pipeline or of LoRA adapters, or a hub id.
        device: default: CUDA, then MPS, then CPU.
        dtype: default float32.
        variant: of the files of weights, such as "fp16", for adapters those of `base`; default: the plain
            ones, else the only one.
        base: of LoRA adapters, in place of the one that their folder names.
        hub_kwargs: `revision`, `token`, `cache_dir`, `local_files_only`.

    Raises:
        ModelError: where there is no such model, or its files or tensors do not fit (they are named).
    """
    folder = ModelFolder.find(model)
    folder.check_name()
    folder = folder.fetched(**hub_kwargs)
    if folder.is_adapters:
        from magicedit.models.base import load_adapters  # which loads bases by this function

        folder.check()
        shared = {name: value for name, value in hub_kwargs.items() if name != "revision"}
        pipeline = load_adapters(folder, base, dtype, variant, **shared)
        return _finished(pipeline, model, device)
    if folder.index:  # which raises where it is unusable
        with loading(model):
            read_index(folder.path, MagicEditPipeline)
    folder.check()
    parts = {name: folder.component(name).parent for name in folder.components}
    with loading(model):
        borrowed = {
            name: load_component(place, name, folder.index[name], LoadingOptions(dtype))
            for name, place in parts.items()
            if place != folder.path
        }
        pipeline = MagicEditPipeline.from_pretrained(folder.path, dtype=dtype, variant=variant, **borrowed)
        pipeline.sources |= {name: folder.component(name) for name in (GRAPHS, *borrowed)}
    return _finished(pipeline, model, device)


def _finished(
    pipeline: MagicEditPipeline, model: str | Path, device: str | torch.device | None
) -> MagicEditPipeline:
    with loading(model):
        pipeline.register_to_config(_name_or_path=str(model))
        check_fit(pipeline)
    pipeline.set_progress_bar_config(disable=True)
    device = torch.device(device or default_device())
    return pipeline if device.type == "cpu" else pipeline.to(device)  # it has been loaded on the CPU


def loading(model: str | Path) -> contextlib.AbstractContextManager[None]:
    """Turns whatever is raised in the block, which builds a model from its files, into a ModelError."""
    return building(ModelError, f"cannot load the model {shown(model)}")


def check_fit(pipeline: MagicEditPipeline) -> None:
    """Raises ValueError where the parts of a pipeline do not fit together, which edits would stumble over."""
    config, unet, reference = pipeline.config, pipeline.unet.config, pipeline.reference_unet
    composed = config.prediction == "flow_mask_paint"
    own_scheduler(pipeline.scheduler, config.default_steps, composed)
    if config.resolution % pipeline.latent_scale:
        raise ValueError(f"resolution must be divisible by {pipeline.latent_scale}, got {config.resolution}")
    vae, au_map, side = pipeline.vae, pipeline.au_map, config.resolution // pipeline.latent_scale
    latents = 3 * config.patch_size**2 if vae is None else vae.config.latent_channels
    inputs = latents * (3 if config.concat_identity else 2) + (au_map.config.channels if au_map else 0)
    heads = [head_channels(config.patch_size, fine) for fine in (False, True)] if composed else [latents]
    expected = [("unet takes", unet.in_channels, [inputs]), ("unet gives", unet.out_channels, heads)]
    if reference is not None:
        expected.append(("reference_unet takes", reference.config.in_channels, [latents]))
    if pipeline.image_encoder is not None:
        expected.append(("image_encoder takes", pipeline.image_encoder.config.num_channels, [latents]))
    for name, found, fitting in expected:
        if found not in fitting:
            fit = " or ".join(map(str, fitting))
            raise ValueError(
                f"{name} {found} channels, but by patch_size, vae and prediction it must be {fit}"
            )
    if au_map is not None and au_map.config.size != side:
        raise ValueError(f"au_map has {au_map.config.size} a side, latents have {side}")
    for name in ("block_out_channels", "layers_per_block", "down_block_types", "up_block_types"):
        if reference is not None and reference.config[name] != unet[name]:
            raise ValueError(f"reference_unet and unet differ in {name}")


def default_device() -> torch.device:
    """CUDA where there is one, then MPS, then the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
