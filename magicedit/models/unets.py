"""Initialises the denoiser and the reference UNet, from Stable Diffusion or from scratch."""

import contextlib
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from transformers import CLIPVisionConfig, CLIPVisionModel

from magicedit.action_units import NAMES
from magicedit.errors import ModelError, building
from magicedit.files import shown
from magicedit.models import checks
from magicedit.models.folder import INDEX, ModelFolder
from magicedit.pipelines.heads import head_channels
from magicedit.pipelines.pipeline_magicedit import MagicEditPipeline
from magicedit.pipelines.reference_attention import (
    ActionUnitMap,
    install_reference_attention,
    transformer_blocks,
)
from magicedit.pipelines.safe_pipeline import variant_of, weights_variant

# Components of a pipeline that training may update; components absent from a model are None.
TRAINED_NETWORKS = ("unet", "reference_unet", "image_encoder", "au_map")


def make_denoiser(
    base: UNet2DConditionModel, num_aus: int = len(NAMES), condition_channels: int | None = None
) -> UNet2DConditionModel:
    """Returns a denoiser that starts as `base`: input weights of the condition and the AU layer are zero.

    Args:
        base: a text-conditioned UNet that takes latents alone.
        num_aus: length of the AU variation vector.
        condition_channels: channels concatenated after the latents; default: as many as the latents have.
    """
    latent_channels = base.config.in_channels
    condition_channels = latent_channels if condition_channels is None else condition_channels
    with torch.device("meta"):  # it gets all its weights from the base
        denoiser = UNet2DConditionModel.from_config(
            dict(base.config),
            in_channels=latent_channels + condition_channels,
            class_embed_type="simple_projection",
            projection_class_embeddings_input_dim=num_aus,
        )
    state = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    kernel = state["conv_in.weight"]  # (channels, latent_channels, 3, 3)
    widened = torch.zeros(kernel.shape[0], latent_channels + condition_channels, *kernel.shape[2:]).to(kernel)
    widened[:, :latent_channels] = kernel
    state["conv_in.weight"] = widened
    au_layer = denoiser.class_embedding
    state |= {
        f"class_embedding.{name}": torch.zeros(x.shape, dtype=kernel.dtype, device=kernel.device)
        for name, x in au_layer.state_dict().items()
    }
    denoiser.load_state_dict(state, assign=True)
    install_reference_attention(denoiser)
    return denoiser.eval()


def from_stable_diffusion(
    path_or_id: str | Path,
    *,
    num_aus: int = len(NAMES),
    torch_dtype: torch.dtype = torch.float32,
    held_as: torch.dtype | None = None,
    variant: str | None = None,
    **hub_kwargs,
) -> tuple[UNet2DConditionModel, UNet2DConditionModel]:
    """Returns denoiser and reference UNet from a Stable Diffusion 1.x or 2.x folder or hub id.

    The denoiser's `conv_in` is widened with zeros and its AU layer is zero, so that without a reference it
    predicts what Stable Diffusion does. The reference UNet is an exact copy.

    Args:
        num_aus: length of the AU variation vector.
        held_as: precision of the matrices, see `hold_matrices`; default: `torch_dtype`.
        variant: of the files of weights, such as "fp16"; default: the plain ones, else the only one.
        hub_kwargs: `revision`, `token`, `cache_dir`, `local_files_only`.

    Raises:
        ModelError: where there is no such UNet.
    """
    check_base(path_or_id, **hub_kwargs)
    with reading_base(path_or_id):
        reference_unet = UNet2DConditionModel.from_pretrained(
            path_or_id,
            subfolder="unet",
            use_safetensors=True,
            torch_dtype=torch_dtype,
            **base_variant(path_or_id, "unet", variant),
            **hub_kwargs,
        )
        if held_as is not None:
            hold_matrices(reference_unet.requires_grad_(False), held_as)
            for parameter in reference_unet.parameters():
                if parameter.dtype != held_as:  # else all pages of the mapped file would stay in memory
                    parameter.data = parameter.data.clone()
        return make_denoiser(reference_unet, num_aus), reference_unet


def hold_matrices(network: torch.nn.Module, dtype: torch.dtype) -> None:
    """Stores the matrices and kernels that are not trained as autocast to `dtype` casts them at each use.

    Results under autocast stay the same to the bit, memory halves. The first layer of a UNet, which an editor
    widens and trains, and biases and norms, stay as they are.
    """
    for name, module in network.named_modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d) and not module.weight.requires_grad:
            if name.rpartition(".")[2] != "conv_in":
                module.weight.data = module.weight.data.to(dtype)


def reading_base(base: str | Path) -> contextlib.AbstractContextManager[None]:
    """Turns whatever is raised in the block, which builds parts of a base, into a ModelError."""
    return building(
        ModelError, f"{base} must be a Stable Diffusion 1.x or 2.x folder or hub id with unet/*.safetensors"
    )


def base_variant(base: str | Path, component: str, variant: str | None) -> dict[str, str]:
    """The argument `variant` of a component's loading: the requested one, or that of a folder without plain
    weights. ModelError where a folder does not have the requested one."""
    folder = Path(base) / component
    if variant is None:
        variant = weights_variant(folder)
    elif folder.is_dir() and variant not in (found := {variant_of(x) for x in folder.glob("*.safetensors")}):
        names = ", ".join(sorted(name or "plain ones" for name in found)) or "none"
        raise ModelError(
            f"{folder} has no {shown(variant)} weights but {names}; name another --variant, or none"
        )
    return {} if variant is None else {"variant": variant}


def check_base(base: str | Path, **hub_kwargs) -> None:
    """Raises ModelError where a base is no text-conditioned Stable Diffusion on latents, or its files cannot
    be what they say. Reads configurations and headers, no weights."""
    folder = Path(base)
    found = ModelFolder.find(base).fetched(INDEX, **hub_kwargs)
    named = found.pipeline_class()
    if not (folder / "unet").is_dir() and (
        (folder / "transformer").is_dir() or (named is not None and "unet" not in found.components)
    ):
        kind = "has" if named is None else f"is a {shown(named)}: it has"
        raise ModelError(
            f"{base} {kind} a transformer in place of a unet, as Stable Diffusion 3 and Flux do; "
            "name a Stable Diffusion 1.x or 2.x"
        )
    if folder.is_dir():
        for part in ("unet", "vae", "text_encoder", "scheduler"):
            if (folder / part).is_dir():
                checks.check_files(folder / part)
                checks.check_component(folder / part)
    with reading_base(base):
        unet = UNet2DConditionModel.load_config(base, subfolder="unet", **hub_kwargs)
        scheduler = DDIMScheduler.load_config(base, subfolder="scheduler", **hub_kwargs)
    kinds = {9: "an inpainting model", 8: "an InstructPix2Pix model", 5: "a depth-guided model"}
    channels = unet.get("in_channels", 4)
    problem = None
    if unet.get("addition_embed_type") is not None:
        kind = "Stable Diffusion XL" if unet["addition_embed_type"] == "text_time" else "another family"
        problem = f"is {kind} (addition_embed_type {unet['addition_embed_type']})"
    elif channels != 4 or unet.get("out_channels", 4) != channels:
        kind = f"it is {kinds[channels]}" if channels in kinds else "it is no text-to-image model"
        problem = f"takes {channels} channels and gives {unet.get('out_channels', 4)}: {kind}"
    elif unet.get("class_embed_type") is not None or unet.get("num_class_embeds") is not None:
        problem = "has a class embedding already: it is an upscaler, or an editing pipeline"
    elif (
        "FlowMatch" in str(scheduler.get("_class_name"))
        or scheduler.get("prediction_type") == "flow_prediction"
    ):
        problem = "is a flow matching model"
    if problem is not None:
        raise ModelError(f"{base} {problem}; name a Stable Diffusion 1.x or 2.x, whose unet takes 4 channels")


def unused_reference_parameters(reference_unet: UNet2DConditionModel) -> list[str]:
    """Returns the names of reference UNet parameters after its last collected feature, which get no gradient.

    The network runs once on zeros; layers called after the last `norm1` has received its input are unused (26
    tensors in the Stable Diffusion layout).
    """
    config = reference_unet.config
    side = 2 ** len(config.block_out_channels)  # 2 at the deepest level: group norms reject single values
    blocks = transformer_blocks(reference_unet)
    norms = {block.norm1 for block in blocks.values()}
    called_since: set[torch.nn.Module] = set()
    called_before: set[torch.nn.Module] = set()

    def note(module, args):
        if module in norms:
            called_before.update(called_since)
            called_since.clear()
        called_since.add(module)

    handles = [
        module.register_forward_pre_hook(note)
        for module in reference_unet.modules()
        if next(module.parameters(recurse=False), None) is not None
    ]
    parameter = next(reference_unet.parameters())
    held = {p.dtype for p in reference_unet.parameters()} - {parameter.dtype}  # see `hold_matrices`
    device = parameter.device.type  # "meta" has no autocast
    autocast = torch.autocast(device, held.pop()) if held else contextlib.nullcontext()
    try:
        with torch.no_grad(), autocast:
            reference_unet(
                parameter.new_zeros(1, config.in_channels, side, side),
                0,
                encoder_hidden_states=parameter.new_zeros(1, 1, config.cross_attention_dim),
            )
    finally:
        for handle in handles:
            handle.remove()
    unused = called_since - called_before
    return [
        f"{name}.{parameter}"
        for name, module in reference_unet.named_modules()
        if module in unused
        for parameter, _ in module.named_parameters(recurse=False)
    ]


def freeze_unused_reference(reference_unet: UNet2DConditionModel) -> None:
    """Freezes the parameters that never get a gradient; DDP raises otherwise."""
    for name in unused_reference_parameters(reference_unet):
        reference_unet.get_parameter(name).requires_grad_(False)


@dataclass(frozen=True)
class PatchModelConfig:
    """A small model without VAE and text encoder, which works on patches of pixels.

    resolution, patch_size: pixels a side. block_out_channels, layers_per_block, attention_heads,
    cross_attention_dim, norm_num_groups: of both UNets; the highest-resolution level has no attention.
    prediction: "flow_mask_paint" or "noise". concat_identity: identity patches on the input channels too.
    fine_flow: for flow_mask_paint, a displacement of each pixel in addition to those of the patches.
    au_encoder: input of the AU variation (MagicFace's table III): "linear" to the time embedding's width and
    added there, "padded" with zeros to it and added, or a "latent_map" on the input channels.
    identity_encoder: input of the identity (its table II): a "unet" through self-attention, "convolution" of
    the first layer over identity patches, a "clip" image encoder's tokens through cross-attention, or "none":
    by the condition image alone. "convolution" always has identity patches on the input channels, "none"
    never, regardless of `concat_identity`.
    """

    resolution: int = 96
    patch_size: int = 4
    block_out_channels: tuple[int, ...] = (64, 96, 160)
    layers_per_block: int = 1
    attention_heads: int = 4
    cross_attention_dim: int = 32
    norm_num_groups: int = 16
    action_units: tuple[str, ...] = NAMES
    prediction: str = "flow_mask_paint"
    concat_identity: bool = True
    fine_flow: bool = True
    au_encoder: str = "linear"
    identity_encoder: str = "unet"
    default_steps: int = 6
    default_guidance_scale: float = 1.5


AU_ENCODERS = ("linear", "padded", "latent_map")
IDENTITY_ENCODERS = ("unet", "convolution", "clip", "none")
AU_MAP_CHANNELS = 4  # as many as a Stable Diffusion latent has
CLIP_WIDTH = 96  # of the image encoder's tokens, about as wide as the UNets


def create_patch_pipeline(config: PatchModelConfig, seed: int = 0) -> MagicEditPipeline:
    """A pipeline of randomly initialised UNets; the draw depends on `seed` alone.

    Raises ModelError where the resolution is not divisible by patches and levels, or an encoder is unknown.
    """
    levels = len(config.block_out_channels)
    unit = config.patch_size * 2 ** (levels - 1)
    if config.resolution % unit:
        raise ModelError(
            f"resolution must be divisible by {unit} (patches and levels), got {config.resolution}"
        )
    if config.au_encoder not in AU_ENCODERS or config.identity_encoder not in IDENTITY_ENCODERS:
        raise ModelError(
            f"au_encoder is one of {', '.join(AU_ENCODERS)} and identity_encoder of "
            f"{', '.join(IDENTITY_ENCODERS)}, got {config.au_encoder} and {config.identity_encoder}"
        )
    concat_identity = {"convolution": True, "none": False}.get(
        config.identity_encoder, config.concat_identity
    )
    composed = config.prediction == "flow_mask_paint"
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)  # the CPU's alone; other devices keep theirs
        networks = _patch_networks(config, concat_identity, composed)
    if composed and config.fine_flow:  # random displacements of single pixels would be noise
        smooth, last = head_channels(config.patch_size), networks["unet"].conv_out
        with torch.no_grad():
            last.weight[smooth:] = 0
            last.bias[smooth:] = 0
    scheduler = DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="sample" if composed else "epsilon",
        timestep_spacing="trailing",
        clip_sample=False,
    )
    kept = ("prediction", "patch_size", "resolution", "default_steps", "default_guidance_scale")
    return MagicEditPipeline(
        **networks,
        scheduler=scheduler,
        action_units=",".join(config.action_units),
        concat_identity=concat_identity,
        **{name: getattr(config, name) for name in kept},
    )


def _patch_networks(
    config: PatchModelConfig, concat_identity: bool, composed: bool
) -> dict[str, torch.nn.Module | None]:
    """The networks of `create_patch_pipeline` by component, drawn from the global generator in this order."""
    levels = len(config.block_out_channels)
    channels, side = 3 * config.patch_size**2, config.resolution // config.patch_size
    by_clip, by_map = config.identity_encoder == "clip", config.au_encoder == "latent_map"
    shared = {
        "sample_size": side,
        "block_out_channels": config.block_out_channels,
        "layers_per_block": config.layers_per_block,
        "cross_attention_dim": CLIP_WIDTH if by_clip else config.cross_attention_dim,
        "attention_head_dim": config.attention_heads,  # diffusers' historical name for the number of heads
        "norm_num_groups": config.norm_num_groups,
        "down_block_types": ("DownBlock2D",) + ("CrossAttnDownBlock2D",) * (levels - 1),
        "up_block_types": ("CrossAttnUpBlock2D",) * (levels - 1) + ("UpBlock2D",),
    }
    networks: dict[str, torch.nn.Module | None] = {
        "unet": UNet2DConditionModel(
            in_channels=channels * (3 if concat_identity else 2) + (AU_MAP_CHANNELS if by_map else 0),
            out_channels=head_channels(config.patch_size, config.fine_flow) if composed else channels,
            class_embed_type={"linear": "simple_projection", "padded": "identity"}.get(config.au_encoder),
            projection_class_embeddings_input_dim=len(config.action_units),
            **shared,
        ),
        "reference_unet": None,
    }
    if config.identity_encoder == "unet":
        networks["reference_unet"] = UNet2DConditionModel(
            in_channels=channels, out_channels=channels, **shared
        )
    if by_clip:
        networks["image_encoder"] = CLIPVisionModel(
            CLIPVisionConfig(
                hidden_size=CLIP_WIDTH,
                intermediate_size=4 * CLIP_WIDTH,
                num_hidden_layers=6,
                num_attention_heads=4,
                num_channels=channels,  # it looks at latents, as the ID encoder does
                image_size=side,
                patch_size=2,
            )
        )
    if by_map:
        networks["au_map"] = ActionUnitMap(len(config.action_units), AU_MAP_CHANNELS, side)
    return networks


def refine_patch_pipeline(pipeline: MagicEditPipeline, resolution: int) -> MagicEditPipeline:
    """Returns a flow-mask-paint pipeline to continue training: at another resolution, with a flow per pixel.

    Convolutions and attention do not depend on picture size, and the new output channels start at zero: at
    its old resolution the pipeline predicts the same. Raises ModelError where the pipeline is of another
    kind, or the resolution is unsuitable.
    """
    config, unet = pipeline.config, pipeline.unet
    if config.prediction != "flow_mask_paint":
        raise ModelError("only flow_mask_paint pipelines can change their resolution and head")
    if pipeline.au_map is not None or pipeline.image_encoder is not None:
        raise ModelError("a model with au_map or image_encoder is made for one resolution")
    unit = config.patch_size * 2 ** (len(unet.config.block_out_channels) - 1)
    if resolution % unit:
        raise ModelError(f"resolution must be divisible by {unit} (patches and levels), got {resolution}")
    channels = head_channels(config.patch_size, fine_flow=True)
    if unet.config.out_channels != channels:
        old, unet.conv_out = unet.conv_out, torch.nn.Conv2d(
            unet.conv_out.in_channels, channels, unet.conv_out.kernel_size, padding=unet.conv_out.padding
        ).to(unet.conv_out.weight)  # fmt: skip
        with torch.no_grad():
            for new, kept in ((unet.conv_out.weight, old.weight), (unet.conv_out.bias, old.bias)):
                new.zero_()
                new[: len(kept)] = kept
        unet.register_to_config(out_channels=channels)
    pipeline.register_to_config(resolution=resolution)
    for network in filter(None, (unet, pipeline.reference_unet)):
        network.register_to_config(sample_size=resolution // config.patch_size)
    return pipeline
