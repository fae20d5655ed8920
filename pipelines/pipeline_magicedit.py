"""The expression-editing pipeline, which ships with its weights.

`save_pretrained` writes this file and its siblings as one, `pipeline.py`, beside the weights, so that
`DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)` works without magicedit. All of them
therefore import only torch, numpy, Pillow, diffusers and transformers.
"""

import importlib
import inspect
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import diffusers
import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.pipeline_utils import StableDiffusionMixin
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from transformers import CLIPTextModel, CLIPTokenizer, CLIPVisionModel

from .condition import aligned_crop, condition_image
from .heads import FlowMaskPaintHead, NoiseHead, own_scheduler
from .lora import EditingLoraMixin, NewLayers
from .reference_attention import (
    ActionUnitMap,
    DeepFeatures,
    JoinedReferenceCache,
    ReferenceCache,
    check_reference_attention,
    encode_identity,
    install_reference_attention,
    is_compiled,
    predict_noise,
    set_reference_slices,
)
from .safe_pipeline import GRAPHS, LoadingOptions, ShippedPipeline, rewrite_json, self_contained
from .sampling import Sampling, sampling_of

MAGICFACE_ACTION_UNITS = "AU1,AU2,AU4,AU5,AU6,AU9,AU12,AU15,AU17,AU20,AU25,AU26"  # published order
MAGICFACE_PROMPT = "A close up of a person."


@dataclass
class MagicEditPipelineOutput(BaseOutput):
    """`images`: the edited crops in the requested `output_type`.

    `change`: the change of the identity image by a flow-mask-paint model, at the model's size: `flow` (batch,
    height, width, 2) in pixels, x then y, from each pixel to where it was read; `mask` (batch, height, width)
    in [0, 1]; `paint` (batch, height, width, 3) in [0, 1]. None for other models.
    """

    images: Any
    change: dict[str, torch.Tensor] | None = None


@dataclass(frozen=True, eq=False)
class EncodedFaces:
    """Encoded faces, constant over steps, AU variants and calls; made by `MagicEditPipeline.encode_faces`.

    identity: (faces, 3, height, width) in [-1, 1]. condition_latents: everything concatenated to the noisy
    latents. reference: keys and values, projected on first use. weights: see `weights_version`.
    """

    identity: torch.Tensor
    identity_latents: torch.Tensor  # (faces, channels, height/s, width/s)
    condition_latents: torch.Tensor  # (faces, condition channels, height/s, width/s)
    prompt_embeds: torch.Tensor  # (faces or 1, text tokens, cross_attention_dim)
    reference: ReferenceCache
    weights: int

    def __len__(self) -> int:
        return len(self.identity)

    @staticmethod
    def join(parts: "list[EncodedFaces]") -> "EncodedFaces":
        """Joins separately encoded faces into one batch; ValueError if different weights encoded them."""
        if len({part.weights for part in parts}) != 1:
            raise ValueError("faces to join must have been encoded by the same weights")
        if len(parts) == 1:
            return parts[0]
        reference = JoinedReferenceCache([part.reference for part in parts])
        names = ("identity", "identity_latents", "condition_latents")
        joined = (torch.cat([getattr(part, name) for part in parts]) for name in names)
        return EncodedFaces(*joined, reference.prompt_embeds, reference, parts[0].weights)


def all_modules(*networks: torch.nn.Module | None) -> Iterator[torch.nn.Module]:
    """Yields all modules several times as fast as `network.modules()`, which forms names and finds twins."""
    found = [network for network in networks if network is not None]
    while found:
        module = found.pop()
        yield module
        found.extend(child for child in module._modules.values() if child is not None)


_SERIAL_NUMBERS = itertools.count()


def weights_version(*networks: torch.nn.Module | None) -> int:
    """Returns a number that changes when weights are replaced or written to, or adapters are set, scaled or
    merged, but not when `tensor.data` is written to directly."""
    marks = []
    for module in all_modules(*networks):
        for parameter in module._parameters.values():
            if parameter is not None:
                version = 0 if parameter.is_inference() else parameter._version
                # `id` would be reused after the parameter is deleted
                serial = parameter.__dict__.setdefault("_magicedit_serial", next(_SERIAL_NUMBERS))
                marks.append((serial, version, parameter.dtype))
        if hasattr(module, "merged_adapters"):  # a LoRA layer of peft
            marks.append((*module.merged_adapters, *module.active_adapters, module.disable_adapters))
            marks.append(tuple(module.scaling.items()))
    return hash(tuple(marks))


COMPONENT_CLASSES = {  # what a model folder may name; None: any scheduler
    "unet": ("diffusers", ("UNet2DConditionModel",)),
    "reference_unet": ("diffusers", ("UNet2DConditionModel",)),
    "vae": ("diffusers", ("AutoencoderKL",)),
    "scheduler": ("diffusers", None),
    "text_encoder": ("transformers", ("CLIPTextModel",)),
    "tokenizer": ("transformers", ("CLIPTokenizer", "CLIPTokenizerFast")),
    "image_encoder": ("transformers", ("CLIPVisionModel",)),
    "au_map": ("pipeline", ("ActionUnitMap",)),
    "tiny_vae": ("diffusers", ("AutoencoderTiny",)),
}


def component_class(folder: Path, name: str, named, pipeline_class: "type[MagicEditPipeline]") -> type | None:
    """Returns the class that an index names as [library, class]; None for an absent optional component.

    Raises ValueError for classes that are not allowed, and for missing components.
    """
    library, allowed = pipeline_class.component_classes[name]
    if named is not None and not (isinstance(named, list) and len(named) == 2):
        raise ValueError(f"{folder}: model_index.json must name {name} as [library, class], got {named!r}")
    if named is None or named[1] is None:
        # An old folder lacks the names of newer components, but states that it has no reference
        if name in pipeline_class._optional_components and (named is not None or name != "reference_unet"):
            return None
        raise ValueError(f"{folder}: model_index.json names no {name}")
    if named[0] != library or not isinstance(named[1], str) or (allowed and named[1] not in allowed):
        raise ValueError(f"{folder}: {name} must be a stock {library} class {allowed or ''}, got {named}")
    if library == "pipeline":
        return ActionUnitMap
    found = getattr(importlib.import_module(library), named[1], None)
    if name == "scheduler" and (found is None or not issubclass(found, diffusers.SchedulerMixin)):
        raise ValueError(f"{folder}: scheduler must be a diffusers scheduler, got {named[1]}")
    return found


def load_component(
    folder: Path,
    name: str,
    named,
    options: LoadingOptions = LoadingOptions(),  # noqa: B008 (frozen)
    pipeline_class: "type[MagicEditPipeline] | None" = None,
):
    """Loads one component of a pipeline folder: an allowed class, from safetensors, without missing or
    unexpected tensors."""
    found = component_class(folder, name, named, pipeline_class or MagicEditPipeline)
    if found is None:
        return None
    path = folder / name
    if not path.is_dir():  # else the libraries would take the path for a hub id
        raise ValueError(f"{folder} has no folder {name}, which its model_index.json names")
    if (path / "adapter_config.json").exists():  # transformers would follow it to weights elsewhere
        raise ValueError(f"{path} holds an adapter; save the pipeline with merged weights")
    if name == "scheduler":
        return found.from_pretrained(path, local_files_only=True)
    if name == "tokenizer":
        return found.from_pretrained(path, local_files_only=True, trust_remote_code=False)

    if not list(path.glob("*.safetensors")):
        suffixes = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
        pickles = ", ".join(sorted(p.name for p in path.glob("*") if p.suffix in suffixes))
        refused = f"; {pickles} may run code when opened and is refused" if pickles else ""
        raise ValueError(f"{path} has no safetensors weights{refused}")
    component, info = found.from_pretrained(path, **options.of_network(path, found))
    problems = [
        f"{kind.removesuffix('_keys')}: {', '.join(str(k) for k in sorted(info[kind], key=str)[:8])}"
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")
        if info.get(kind)
    ]
    if problems:
        raise ValueError(f"the tensors of {path} do not fit its config ({'; '.join(problems)})")
    return component.eval()


def read_index(folder: Path, pipeline_class: "type[MagicEditPipeline]") -> dict[str, Any]:
    """Returns the content of a pipeline folder's `model_index.json`; ValueError where there is none, or it
    names a pipeline that is no parent of `pipeline_class`."""
    index_file = folder / "model_index.json"
    if not index_file.is_file():
        adapters = (folder / "lora_index.json").is_file()
        hint = (
            "; it holds LoRA adapters: call load_lora_weights on a pipeline of their base" if adapters else ""
        )
        raise ValueError(f"{folder} is not a pipeline folder: it has no model_index.json{hint}")
    index = json.loads(index_file.read_text(encoding="utf-8"))
    if not isinstance(index, dict):
        raise ValueError(f"{index_file} must hold an object, got {type(index).__name__}")
    named = index.get("_class_name")
    if isinstance(named, list) and named:
        named = named[-1]
    known = (parent for parent in pipeline_class.__mro__ if issubclass(parent, MagicEditPipeline))
    if named not in [parent.__name__ for parent in known]:
        raise ValueError(
            f"{folder} holds a {named}, which {pipeline_class.__name__}.from_pretrained cannot load; "
            "call from_pretrained of that class"
        )
    return index


class MagicEditPipeline(EditingLoraMixin, StableDiffusionMixin, ShippedPipeline):
    """Edits the expression of an aligned face crop by AU variations.

    A subclass must name all arguments of its `__init__`, as diffusers requires, and list further components
    in `component_classes`, optional ones also in `_optional_components`.

    Args:
        unet: the denoiser; its input channels are noisy latents, condition latents and, with
            `concat_identity`, identity latents; its class embedding takes the AU variation.
        reference_unet: the ID encoder; None for a model that encodes the identity otherwise.
        scheduler: any diffusers scheduler with `alphas_cumprod`.
        vae: if None, pixels in [-1, 1] rearranged into patches of `patch_size` are the latents.
        text_encoder, tokenizer: if None, the text condition is a single zero token.
        image_encoder: if given, its tokens of the identity latents replace the text.
        au_map: if given, its channels carry the AU variation instead of the class embedding.
        tiny_vae: if given, the decoder of the qualities "fast" and "live".
        prediction: "noise" (what the scheduler's `prediction_type` says), or "flow_mask_paint" (see
            `compose_head`).
        patch_size: pixels a side of a patch, for models without a VAE.
        resolution: pixels a side of the crops that the model was trained on.
        action_units: names of the AUs in the order of the condition vector, joined by commas.
        concat_identity: whether identity latents are concatenated on channels too.
        prompt: the constant text condition.
        default_steps, default_guidance_scale: defaults of a call.
        distilled_steps: number of steps that the denoiser was distilled to, guidance baked in; 0: it was not.
    """

    model_cpu_offload_seq = "text_encoder->image_encoder->reference_unet->au_map->unet->vae->tiny_vae"
    _optional_components: ClassVar = [
        *("reference_unet", "vae", "text_encoder", "tokenizer", "image_encoder", "au_map", "tiny_vae")
    ]
    _callback_tensor_inputs: ClassVar = ["latents"]
    component_classes: ClassVar = COMPONENT_CLASSES
    # So that they are there for people who have a model's folder and not this package
    condition_image = staticmethod(condition_image)

    def __init__(
        self,
        unet: UNet2DConditionModel,
        reference_unet: UNet2DConditionModel | None,
        scheduler: diffusers.SchedulerMixin,
        vae: AutoencoderKL | None = None,
        text_encoder: CLIPTextModel | None = None,
        tokenizer: CLIPTokenizer | None = None,
        image_encoder: CLIPVisionModel | None = None,
        au_map: ActionUnitMap | None = None,
        tiny_vae: AutoencoderTiny | None = None,
        prediction: str = "noise",
        patch_size: int = 4,
        resolution: int = 512,
        action_units: str = MAGICFACE_ACTION_UNITS,
        concat_identity: bool = False,
        prompt: str = MAGICFACE_PROMPT,
        default_steps: int = 50,
        default_guidance_scale: float = 3.0,
        distilled_steps: int = 0,
    ):
        super().__init__()
        if prediction not in ("noise", "flow_mask_paint"):
            raise ValueError(f'prediction must be "noise" or "flow_mask_paint", got {prediction!r}')
        if prediction == "flow_mask_paint" and vae is not None:
            raise ValueError("flow_mask_paint composes pixels, so such a model has no vae")
        if len(action_units.split(",")) != unet.config.projection_class_embeddings_input_dim:
            raise ValueError(
                f"action_units names {len(action_units.split(','))} AUs, but the denoiser's AU layer takes "
                f"{unet.config.projection_class_embeddings_input_dim}"
            )
        if au_map is None and unet.class_embedding is None:
            raise ValueError(
                "the denoiser has no class embedding, so AUs reach it by an au_map only; got None"
            )
        self.register_modules(
            unet=unet,
            reference_unet=reference_unet,
            scheduler=scheduler,
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            image_encoder=image_encoder,
            au_map=au_map,
            tiny_vae=tiny_vae,
        )
        self.register_to_config(
            prediction=prediction,
            patch_size=patch_size,
            resolution=resolution,
            action_units=action_units,
            concat_identity=concat_identity,
            prompt=prompt,
            default_steps=default_steps,
            default_guidance_scale=default_guidance_scale,
            distilled_steps=distilled_steps,
        )
        install_reference_attention(unet)
        self._new_layers = NewLayers(self)
        if vae is None:
            self.latent_scale = patch_size  # pixels a latent, each way
        else:
            self.latent_scale = 2 ** (len(vae.config.block_out_channels) - 1)
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.latent_scale, do_resize=False)

    def aligned_crop(
        self, photo: PIL.Image.Image, landmarks: np.ndarray
    ) -> tuple[PIL.Image.Image, np.ndarray]:
        """Returns the crop of a face that the pipeline edits, and its landmarks in the crop, for
        `condition_image`.

        landmarks: in pixels of the upright photograph, (478, 2) of MediaPipe or (68, 2) of iBUG.
        """
        return aligned_crop(photo, landmarks, self.config.resolution)

    @property
    def action_units(self) -> tuple[str, ...]:
        """Names of the AUs, in the order of `au_delta`."""
        return tuple(self.config.action_units.split(","))

    def _write_code(self, folder: Path) -> None:
        """Writes `pipeline.py`. A subclass saves its own file, which needs its imports elsewhere."""
        name, code = type(self).__name__, self._code()
        own = {} if self.au_map is None else {"au_map": ["pipeline", "ActionUnitMap"]}
        rewrite_json(folder / "model_index.json", _class_name=["pipeline", name], **own)
        (folder / "pipeline.py").write_text(code, "utf-8", newline="\n")
        if own:
            map_code = self_contained(Path(inspect.getfile(ActionUnitMap)))
            (folder / "au_map" / "pipeline.py").write_text(map_code, "utf-8", newline="\n")

    def _code(self) -> str:
        """The text of `pipeline.py`. ValueError where the class is not defined in a file."""
        try:
            return self_contained(Path(inspect.getfile(type(self))))
        except (TypeError, OSError) as error:
            raise ValueError(
                f"{type(self).__name__} is not defined in a file, which would be saved beside the weights"
            ) from error

    def save_pretrained(self, save_directory, *arguments, **kwargs):
        self._code()  # raises before anything is written
        super().save_pretrained(save_directory, *arguments, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **arguments) -> "MagicEditPipeline":
        """Loads a folder or hub id without ever running code from it.

        Only the stock classes in `component_classes` and safetensors files are accepted. A subclass loads
        what it or a class above it has saved.

        Args:
            arguments: see `LoadingOptions`; others are components (`scheduler=...`) or config values in place
                of the folder's.

        Raises:
            ValueError: where the folder is not such a pipeline, names other classes, or tensors are missing,
                unexpected or of another shape (they are named), and on an unknown argument.
            OSError: where files are missing or cannot be downloaded.
        """
        options, overrides = LoadingOptions.split(arguments)
        parameters = inspect.signature(cls.__init__).parameters
        if unknown := overrides.keys() - parameters.keys():
            raise ValueError(f"unknown arguments: {', '.join(sorted(unknown))}")
        options.check_dtypes(cls.component_classes)
        folder = options.fetched(pretrained_model_name_or_path)
        index = read_index(folder, cls)
        options.check_variant(folder)
        arguments = dict(overrides)
        for name, parameter in parameters.items():
            if name in overrides:
                continue
            if name in cls.component_classes:
                arguments[name] = load_component(folder, name, index.get(name), options, cls)
            elif name in index:
                default = parameter.default
                expected = (int, float) if isinstance(default, float) else type(default)
                typed = default not in (None, inspect.Parameter.empty)  # always, but in subclasses
                if typed and not isinstance(index[name], expected):
                    raise ValueError(f"{folder}: {name} must be like {default!r}, got {index[name]!r}")
                arguments[name] = index[name]
        pipeline = cls(**arguments)
        pipeline.register_to_config(_name_or_path=str(pretrained_model_name_or_path))
        pipeline.sources = {name: folder / name for name in ("", GRAPHS, *cls.component_classes)}
        return pipeline

    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        """Images (batch, 3, height, width) in [-1, 1] -> unscaled latents (batch, channels, height/s,
        width/s)."""
        if self.vae is None:
            return F.pixel_unshuffle(images, self.config.patch_size)
        return self.vae.encode(images.to(self.vae.dtype)).latent_dist.mode()

    def decode_latents(self, latents: torch.Tensor, tiny: bool = False) -> torch.Tensor:
        """Scaled latents -> images (batch, 3, height, width) in [-1, 1], by `tiny_vae` if asked for."""
        if self.vae is None:
            return F.pixel_shuffle(latents, self.config.patch_size)
        if tiny:
            latents = latents.to(self.tiny_vae.dtype) / self.tiny_vae.config.scaling_factor
            return self.tiny_vae.decode(latents).sample
        return self.vae.decode(latents.to(self.vae.dtype) / self.vae.config.scaling_factor).sample

    @torch.no_grad()
    def encode_prompt(self, device=None, dtype=None) -> torch.Tensor:
        """The constant text condition (1, text tokens, cross_attention_dim)."""
        device = device or self._device()
        if self.text_encoder is None:
            return torch.zeros(
                1, 1, self.unet.config.cross_attention_dim, device=device, dtype=dtype or self.unet.dtype
            )
        tokens = self.tokenizer(
            self.config.prompt,
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        return self.text_encoder(tokens.to(device))[0].to(dtype or self.unet.dtype)

    def encode_faces(self, image, condition_image) -> EncodedFaces:
        """Encodes aligned face crops once, for any number of calls with `faces=`.

        Args:
            image, condition_image: as of a call.

        Raises:
            ValueError: on images that do not fit.
        """
        faces = self._encode(*self._prepare_pair(image, condition_image))
        self.maybe_free_model_hooks()
        return faces

    @torch.no_grad()
    def _encode(self, identity: torch.Tensor, condition: torch.Tensor) -> EncodedFaces:
        device, dtype = self._device(), self.unet.dtype
        prompt_embeds = self.encode_prompt(device, dtype)  # (1, text tokens, cross_attention_dim)
        identity, condition = identity.to(device, dtype), condition.to(device, dtype)
        identity_latents = self.encode_images(identity).to(dtype)  # (faces, channels, height/s, width/s)
        condition_latents = self.encode_images(condition).to(dtype)
        features, prompt_embeds = encode_identity(
            self.reference_unet, self.image_encoder, identity_latents, prompt_embeds
        )
        if self.config.concat_identity:
            condition_latents = torch.cat([condition_latents, identity_latents], dim=1)
        return EncodedFaces(
            identity,
            identity_latents,
            condition_latents,
            prompt_embeds,
            ReferenceCache(features, prompt_embeds),
            self._weights_version(),
        )

    def is_current(self, faces: EncodedFaces) -> bool:
        """Whether faces were encoded by the weights, and on the device, that the pipeline has now."""
        return faces.weights == self._weights_version() and faces.identity.device == self._device()

    def _device(self) -> torch.device:
        """`_execution_device` if hooks move the weights; it takes 10 ms for a small model."""
        hooks = {"_hf_hook", "_diffusers_hook"}
        if any(not hooks.isdisjoint(vars(module)) for module in all_modules(self.unet)):
            return self._execution_device
        return next(self.unet.parameters()).device

    def _weights_version(self) -> int:
        networks = [part for part in self.components.values() if isinstance(part, torch.nn.Module)]
        return weights_version(*networks)

    def sampling(self, quality: str | None = None) -> Sampling:
        """Returns the sampling settings of a quality; None: the model's own defaults.

        "exact" samples as published. "balanced", "fast" and "live" take fewer and cheaper steps; a distilled
        model takes at most the steps it was distilled to, a compiled one always runs all levels. The
        project's documentation gives measured costs and losses.

        Raises:
            ValueError: on an unknown quality.
        """
        config = self.config
        return sampling_of(
            quality,
            Sampling(config.default_steps, config.default_guidance_scale),
            distilled_steps=config.distilled_steps,
            composed=config.prediction == "flow_mask_paint",
            in_latents=self.vae is not None,
            previews=self.tiny_vae is not None,
            caches_features=not is_compiled(self.unet),
        )

    def _prepare_pair(self, image, condition_image) -> tuple[torch.Tensor, torch.Tensor]:
        """Both images of a call, (faces, 3, height, width) in [-1, 1]."""
        identity = self._prepare_images(image, "image")
        condition = self._prepare_images(condition_image, "condition_image")
        if condition.shape != identity.shape:
            raise ValueError(
                f"condition_image must match image, got {tuple(condition.shape)} and {tuple(identity.shape)}"
            )
        return identity, condition

    def _prepare_images(self, images, name: str) -> torch.Tensor:
        """PIL, numpy or tensor in [0, 1] -> (batch, 3, height, width) in [-1, 1]; nothing is resized."""
        if isinstance(images, (np.ndarray, torch.Tensor)):
            low, high = float(images.min()), float(images.max())
            if images.dtype in (np.uint8, torch.uint8) or low < 0 or high > 1:
                raise ValueError(
                    f"{name} must hold values in [0, 1], got {images.dtype} from {low} to {high}"
                )
        images = self.image_processor.preprocess(images)
        step = self.latent_scale * 2 ** (len(self.unet.config.block_out_channels) - 1)
        height, width = images.shape[-2:]
        if images.shape[1] != 3 or height % step or width % step:
            raise ValueError(
                f"{name} must have 3 channels and sides divisible by {step} (this model was trained at "
                f"{self.config.resolution} px), got {images.shape[1]} channels, {width} x {height} px"
            )
        side = self.config.resolution
        if (height, width) != (side, side) and (self.au_map is not None or self.image_encoder is not None):
            raise ValueError(
                f"{name} must have {side} x {side} px, the only size that this model's image_encoder "
                f"or au_map knows, got {width} x {height} px"
            )
        return images

    def _prepare_au_delta(self, au_delta) -> torch.Tensor:
        if au_delta is None:
            raise ValueError("au_delta, the AU variations, must be given")
        au_delta = torch.as_tensor(
            np.asarray(au_delta) if isinstance(au_delta, (list, tuple)) else au_delta
        ).float()
        if au_delta.ndim == 1:
            au_delta = au_delta[None]
        if au_delta.ndim != 2 or au_delta.shape[1] != len(self.action_units):
            raise ValueError(
                f"au_delta must have shape (batch, {len(self.action_units)}) in the order "
                f"{self.config.action_units}, got {tuple(au_delta.shape)}"
            )
        if not torch.isfinite(au_delta).all():
            raise ValueError("au_delta must be finite")
        return au_delta.cpu()

    # -- diffusers' switches of attention; its own would take the reference's processors away --

    def set_attention_slice(self, slice_size: int | str | None) -> None:
        """What `enable_attention_slicing` calls: attention of `slice_size` heads at a time, "max" one, "auto"
        half of them, None all. Results are equal but for rounding."""
        set_reference_slices(self.unet, slice_size)
        for network in (self.reference_unet, self.vae):
            if hasattr(network, "set_attention_slice"):
                network.set_attention_slice(slice_size)

    def set_use_memory_efficient_attention_xformers(self, valid: bool, attention_op=None) -> None:
        """Raises ValueError where `valid`: attention by xFormers would ignore the reference."""
        if valid:
            raise ValueError(
                "xFormers' attention would ignore the reference face; leave it off: PyTorch's own, which is "
                "used, needs as little memory"
            )

    def fuse_qkv_projections(self, unet: bool = True, vae: bool = True) -> None:
        """Fuses the projections of the VAE; `unfuse_qkv_projections` undoes it. ValueError for the denoiser,
        whose reference would be ignored."""
        if unet:
            raise ValueError(
                "fused projections would ignore the reference face; pass unet=False to fuse those of the vae"
            )
        super().fuse_qkv_projections(unet=False, vae=vae)

    @property
    def guidance_scale(self) -> float:
        return self._guidance_scale

    @property
    def num_timesteps(self) -> int:
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Whether the remaining steps of the present call are skipped; set `_interrupt` for that."""
        return self._interrupt

    @torch.no_grad()
    def __call__(
        self,
        image: PIL.Image.Image | list[PIL.Image.Image] | np.ndarray | torch.Tensor | None = None,
        condition_image: PIL.Image.Image | list[PIL.Image.Image] | np.ndarray | torch.Tensor | None = None,
        au_delta: torch.Tensor | np.ndarray | list | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[["MagicEditPipeline", int, int, dict], dict]
        | PipelineCallback
        | MultiPipelineCallbacks
        | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],  # noqa: B006 (diffusers' own signature)
        *,
        faces: EncodedFaces | None = None,
        quality: str | None = None,
        guidance_interval: tuple[float, float] | None = None,
        feature_cache_interval: int | None = None,
        tiny_decoder: bool | None = None,
    ) -> MagicEditPipelineOutput | tuple:
        """Edits one or several aligned face crops.

        Args:
            image: the identity crops; PIL, numpy or tensor (faces, 3, height, width) in [0, 1].
            condition_image: the same crops with the face blanked and the jaw drawn, one a face.
            au_delta: (batch, aus) AU variations in intensity steps (target minus source, 0 = keep). With one
                face, any number of rows: the face is encoded once. Of several faces, one row a face, or rows
                for all faces one variant after the other.
            num_inference_steps: default: the quality's, or the model's own.
            guidance_scale: `uncond + s (cond - uncond)`, where uncond has the zero AU vector; 1 switches it
                off. Default: the model's own (3.0 unless its config says otherwise).
            generator: of the initial noise; a list (one a row) makes each result independent of the batch.
            latents: initial noise (batch, channels, height/s, width/s) of unit variance, instead of a
                generator.
            output_type: "pil", "np" (batch, height, width, 3) in [0, 1], "pt" (batch, 3, height, width) in
                [0, 1], or "latent" (scaled latents).
            callback_on_step_end: called as `callback(pipeline, step, timestep, tensors)`, with the tensors
                that `callback_on_step_end_tensor_inputs` names; returns those that it replaces. Setting
                `pipeline._interrupt` there skips the remaining steps: the result is that of this step.
            faces: from `encode_faces`, instead of `image` and `condition_image`.
            quality: "exact", "balanced", "fast" or "live", see `sampling`; arguments that are given win.
            guidance_interval, feature_cache_interval, tiny_decoder: see `Sampling`.

        Raises:
            ValueError: on shapes that do not fit, faces that other weights encoded, a foreign attention
                processor, or a scheduler that cannot serve.
        """
        # 1. Check inputs
        if isinstance(callback_on_step_end, PipelineCallback | MultiPipelineCallbacks):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        sampling = self._asked_sampling(
            quality,
            steps=num_inference_steps,
            guidance_scale=None if guidance_scale is None else float(guidance_scale),
            guidance_interval=guidance_interval,
            feature_cache_interval=feature_cache_interval,
            tiny_decoder=tiny_decoder,
        )
        self._guidance_scale, self._interrupt = sampling.guidance_scale, False
        composed = self.config.prediction == "flow_mask_paint"
        scheduler = own_scheduler(self.scheduler, sampling.steps, composed)
        self._check_call(output_type, callback_on_step_end_tensor_inputs, image, condition_image, faces)
        au_delta = self._prepare_au_delta(au_delta)  # (batch, aus)

        # 2. Encode text, condition and identity, once a face
        faces = self._faces_of_call(image, condition_image, faces, len(au_delta), generator)

        # 3. Denoise
        latents = self._initial_latents(latents, faces, len(au_delta), generator, scheduler)
        identity = faces.identity.repeat(len(au_delta) // len(faces), 1, 1, 1)  # (batch, 3, height, width)
        head = FlowMaskPaintHead(identity, self.config.patch_size, scheduler) if composed else NoiseHead()
        latents = self._denoise(
            *(latents, faces, au_delta, sampling, scheduler, head, generator),
            *(callback_on_step_end, callback_on_step_end_tensor_inputs),
        )

        # 4. Decode
        if output_type == "latent":
            images = latents
        else:
            images = head.picture if composed else self.decode_latents(latents, sampling.tiny_decoder)
            images = self.image_processor.postprocess(images.float(), output_type=output_type)
        change = head.change
        self.maybe_free_model_hooks()
        return MagicEditPipelineOutput(images=images, change=change) if return_dict else (images, change)

    def _asked_sampling(self, quality: str | None, **given) -> Sampling:
        """Returns the sampling of a quality with the `given` settings."""
        given = {name: value for name, value in given.items() if value is not None}
        sampling = replace(self.sampling(quality), **given)
        if sampling.tiny_decoder and self.tiny_vae is None:
            raise ValueError("tiny_decoder needs the component tiny_vae; this pipeline has none")
        if sampling.feature_cache_interval > 1 and is_compiled(self.unet):
            raise ValueError("feature_cache_interval needs a denoiser that is not compiled as a whole")
        return sampling

    def _check_call(self, output_type, tensor_inputs, image, condition_image, faces) -> None:
        if output_type not in ("pil", "np", "pt", "latent"):
            raise ValueError(f'output_type must be "pil", "np", "pt" or "latent", got {output_type!r}')
        if unknown := set(tensor_inputs) - set(self._callback_tensor_inputs):
            raise ValueError(
                f"callback_on_step_end_tensor_inputs may name {self._callback_tensor_inputs}, got {unknown}"
            )
        check_reference_attention(self.unet)
        if (faces is None) == (image is None and condition_image is None):
            raise ValueError("pass either image and condition_image, or faces from encode_faces")

    def _faces_of_call(self, image, condition_image, faces, batch: int, generator) -> EncodedFaces:
        """Checks the batch size and returns the given faces, or encodes those of the images."""
        pair = self._prepare_pair(image, condition_image) if faces is None else None
        num_faces = len(pair[0]) if faces is None else len(faces)
        if batch % num_faces:
            raise ValueError(f"au_delta must have one row for each of the {num_faces} faces, got {batch}")
        if isinstance(generator, list) and len(generator) != batch:
            raise ValueError(f"generator must be one or a list of {batch}, got {len(generator)}")
        if faces is None:
            return self._encode(*pair)
        if not self.is_current(faces):
            raise ValueError(
                "the pipeline's weights or device changed since these faces were encoded; "
                "call encode_faces again"
            )
        return faces

    def _initial_latents(
        self, latents, faces: EncodedFaces, batch: int, generator, scheduler
    ) -> torch.Tensor:
        """Returns noise at the scheduler's initial level, (batch, channels, height/s, width/s)."""
        shape = (batch, *faces.identity_latents.shape[1:])
        device, dtype = self._device(), self.unet.dtype
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device, dtype=dtype)
        elif tuple(latents.shape) != shape:
            raise ValueError(f"latents must have shape {shape}, got {tuple(latents.shape)}")
        return latents.to(device, dtype) * scheduler.init_noise_sigma

    def _denoise(
        self,
        latents: torch.Tensor,
        faces: EncodedFaces,
        au_delta: torch.Tensor,
        sampling: Sampling,
        scheduler,
        head: NoiseHead | FlowMaskPaintHead,
        generator,
        on_step_end: Callable | None,
        tensor_inputs: list[str],
    ) -> torch.Tensor:
        """Runs all steps: noise (batch, channels, height/s, width/s) -> latents of the same shape."""
        batch, dtype = len(latents), latents.dtype
        # Conditions of both guidance halves, the unguided one first
        au_condition = au_delta.to(latents.device, dtype)
        au_condition = torch.cat([torch.zeros_like(au_condition), au_condition])  # (2 batch, aus)
        condition_latents = faces.condition_latents.repeat(2 * batch // len(faces), 1, 1, 1)
        guided = bool(au_delta.any())  # else both halves are equal
        if is_compiled(self.unet):
            faces.reference.fill(self.unet)
        stochastic = "generator" in inspect.signature(scheduler.step).parameters
        step_kwargs = {"generator": generator} if stochastic else {}
        timesteps, device_timesteps = scheduler.timesteps, scheduler.timesteps.to(latents.device)
        self._num_timesteps = len(timesteps)
        deep, reusable = None, 0  # reusable: steps that the deep features still serve
        with self.progress_bar(total=len(timesteps)) as progress:
            for step, timestep in enumerate(timesteps):
                if self.interrupt:
                    continue
                noisy = scheduler.scale_model_input(latents, timestep)
                guides = guided and sampling.guides(step, len(timesteps))
                rows = 2 * batch if guides else batch
                if sampling.feature_cache_interval > 1 and (not reusable or len(deep.hidden_states) < rows):
                    deep, reusable = DeepFeatures(), sampling.feature_cache_interval
                reusable -= 1
                output = predict_noise(
                    self.unet,
                    torch.cat([noisy, noisy]) if guides else noisy,
                    condition_latents[-rows:],
                    device_timesteps[step],
                    faces.prompt_embeds,
                    au_condition[-rows:],
                    faces.reference,
                    self.au_map,
                    deep,
                )
                unguided = output[:batch] if guides else None
                answer = head.model_output(
                    output[-batch:], unguided, sampling.guidance_scale, noisy, timestep
                )
                latents = scheduler.step(answer, timestep, latents, **step_kwargs, return_dict=False)[0]
                latents = latents.to(dtype)
                if on_step_end is not None:
                    tensors = {"latents": latents}
                    kept = on_step_end(self, step, timestep, {name: tensors[name] for name in tensor_inputs})
                    latents = kept.pop("latents", latents)
                progress.update()
        return latents
