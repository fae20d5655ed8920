"""Reading the published MagicFace checkpoint and making our pipeline of it."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel, UniPCMultistepScheduler
from safetensors.torch import load_file
from transformers import CLIPTextModel, CLIPTokenizer

from magicedit.action_units import NAMES
from magicedit.errors import ModelError
from magicedit.files import read_json
from magicedit.models import checks
from magicedit.models.unets import base_variant, reading_base
from magicedit.pipelines.pipeline_magicedit import MagicEditPipeline
from magicedit.pipelines.reference_attention import install_reference_attention

PUBLISHED_AU_LAYER = "au_aug_mlp."


def _read_unet(folder: Path) -> tuple[dict, dict[str, torch.Tensor]]:
    """Config and tensors of one published UNet folder."""
    config_file, weights = folder / "config.json", folder / "diffusion_pytorch_model.safetensors"
    for file in (config_file, weights):
        if not file.is_file():
            raise ModelError(f"a MagicFace checkpoint has {folder.name}/{file.name}; {file} does not exist")
    checks.check_files(folder)
    checks.check_component(folder)
    try:
        return read_json(config_file, ModelError, limit=checks.LARGEST_INDEX), load_file(weights)
    except ModelError:
        raise
    except Exception as error:  # safetensors raises its own type, which is a plain Exception
        raise ModelError(f"{folder} cannot be read: {error}") from error


def _build(
    folder: Path, config: dict, state: dict[str, torch.Tensor], dtype: torch.dtype, **overrides
) -> UNet2DConditionModel:
    config = {key: value for key, value in config.items() if not key.startswith("_")}
    try:
        channels = state["conv_in.weight"].shape[1]
        with torch.device("meta"):  # its weights are those of the mapped file, not a copy
            unet = UNet2DConditionModel.from_config(config, in_channels=channels, **overrides)
        state = {name: tensor.to(dtype) for name, tensor in state.items()}
        # its error names every missing, unexpected and mismatched tensor
        unet.load_state_dict(state, assign=True)
    except Exception as error:  # diffusers raises anything on a configuration that is none
        raise ModelError(f"the tensors of {folder} do not fit its config: {error}") from error
    return unet.eval()


def load_magicface(
    folder: str | Path, dtype: torch.dtype = torch.float32
) -> tuple[UNet2DConditionModel, UNet2DConditionModel]:
    """Denoiser and reference UNet from the published checkpoint layout, at any width.

    Args:
        folder: with `denoising_unet/` and `ID_enc/`, each `config.json` and
            `diffusion_pytorch_model.safetensors`.
        dtype: of the weights. Those that the files hold in this dtype stay mapped and are read on first use.

    The published config lacks the numbers of input channels and AUs; both are read from the tensors.

    Raises:
        ModelError: where files or tensors are missing or do not fit.
    """
    folder = Path(folder)
    unet = _load_denoiser(folder / "denoising_unet", dtype)
    install_reference_attention(unet)
    return unet, _build(folder / "ID_enc", *_read_unet(folder / "ID_enc"), dtype)


def _load_denoiser(folder: Path, dtype: torch.dtype) -> UNet2DConditionModel:
    config, state = _read_unet(folder)
    if PUBLISHED_AU_LAYER + "weight" not in state:
        raise ModelError(f"{folder} has no AU layer ({PUBLISHED_AU_LAYER}weight, .bias)")
    state = {key.replace(PUBLISHED_AU_LAYER, "class_embedding."): value for key, value in state.items()}
    return _build(
        folder,
        config,
        state,
        dtype,
        class_embed_type="simple_projection",
        projection_class_embeddings_input_dim=state["class_embedding.weight"].shape[1],
    )


def with_base(
    unets: tuple[UNet2DConditionModel, UNet2DConditionModel],
    base: str | Path,
    scheduler_class: type,
    resolution: int | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    variant: str | None = None,
    **hub_kwargs,
) -> MagicEditPipeline:
    """Returns a pipeline of denoiser and ID encoder with the other parts of a Stable Diffusion.

    Args:
        base: folder or hub id: VAE, text encoder, tokenizer and noise schedule come from it.
        scheduler_class: any scheduler of Stable Diffusion 1.5 stores the same noise schedule.
        resolution: pixels a side of the crops; default: the denoiser's own.
        dtype: of the weights of VAE and text encoder. variant: see `from_stable_diffusion`.

    Raises:
        ModelError: where the base cannot be read, or its text encoder has another width.
    """
    weights = hub_kwargs | {"use_safetensors": True}
    with reading_base(base):
        vae = AutoencoderKL.from_pretrained(
            base, subfolder="vae", torch_dtype=dtype, **base_variant(base, "vae", variant), **weights
        )
        text_encoder = CLIPTextModel.from_pretrained(
            base,
            subfolder="text_encoder",
            dtype=dtype,
            **base_variant(base, "text_encoder", variant),
            **weights,
        )
        tokenizer = CLIPTokenizer.from_pretrained(base, subfolder="tokenizer", **hub_kwargs)
        schedule = DDIMScheduler.load_config(base, subfolder="scheduler", **hub_kwargs)
    width, expected = text_encoder.config.hidden_size, unets[0].config.cross_attention_dim
    if width != expected:
        raise ModelError(
            f"the text encoder of {base} is {width} wide, the denoiser expects {expected}: it was trained "
            "from another base"
        )
    channels = unets[1].config.in_channels
    if vae.config.latent_channels != channels:
        raise ModelError(
            f"the vae of {base} has {vae.config.latent_channels} channels, the denoiser expects {channels}"
        )
    scale = 2 ** (len(vae.config.block_out_channels) - 1)
    return MagicEditPipeline(
        unet=unets[0],
        reference_unet=unets[1],
        scheduler=scheduler_class.from_config(schedule),
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        resolution=resolution or unets[0].config.sample_size * scale,
    )


def check_empty(output: str | Path) -> None:
    """Raises ModelError where a folder to write is not empty."""
    if Path(output).exists() and any(Path(output).iterdir()):
        raise ModelError(f"{output} is not empty; name a new folder")


def convert(
    magicface_folder: str | Path, base: str | Path, output: str | Path, **options
) -> MagicEditPipeline:
    """Writes our pipeline folder from the published checkpoint and the Stable Diffusion 1.5 it was trained
    from.

    Args:
        magicface_folder: see `load_magicface`.
        base: see `with_base`.
        output: folder to write; must not exist or be empty.
        options: `variant` of the base's weights, and `revision`, `token`, `cache_dir`, `local_files_only`.

    Raises:
        ModelError: where either source cannot be read, the AUs are not the published twelve, or `output`
            exists.
    """
    check_empty(output)
    unets = load_magicface(magicface_folder)
    aus = unets[0].config.projection_class_embeddings_input_dim
    if aus != len(NAMES):
        raise ModelError(f"the AU layer takes {aus} AUs, the published order has {len(NAMES)}")
    pipeline = with_base(unets, base, UniPCMultistepScheduler, **options)  # the published sampler
    pipeline.save_pretrained(output)
    return pipeline
