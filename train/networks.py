"""Builds the networks of an editing pipeline, and joins them under one forward for training."""

import dataclasses
import functools
import os
from typing import NamedTuple

import torch
from diffusers.training_utils import cast_training_params

from magicedit import models
from magicedit.action_units import NAMES
from magicedit.embedded import model_origin
from magicedit.errors import MagicEditError, ModelError, reason_of
from magicedit.models.base import is_magicface, open_base
from magicedit.models.folder import PIPELINE_CLASS, Base, ModelFolder
from magicedit.pipelines.pipeline_magicedit import MagicEditPipeline
from magicedit.pipelines.reference_attention import Features, ReferenceCache
from magicedit.train.compiled import CompiledReference, compiled
from magicedit.train.config import TrainConfig


def open_pipeline(config: TrainConfig, mixed_precision: str = "no") -> MagicEditPipeline:
    """Returns the pipeline to train: from scratch, Stable Diffusion, a MagicFace checkpoint, or ours.

    mixed_precision: as accelerate names it; frozen matrices are held in it.
    Raises ModelError where the model is none of these, or has another resolution or other AUs.
    """
    held_as = autocast_dtype(mixed_precision) if config.lora_rank else None
    pipeline = _build_pipeline(config, held_as)
    resolution = pipeline.config.resolution
    if resolution != config.resolution:
        raise ModelError(
            f"{config.pretrained_model_name_or_path} was made for {resolution} px; train it with "
            f"--resolution {resolution}, not {config.resolution}, or with --refine where it is a "
            "flow_mask_paint model"
        )
    if pipeline.action_units != NAMES:
        raise ModelError(f"the model has the AUs {pipeline.config.action_units}, training knows {NAMES}")
    return pipeline


def _build_pipeline(config: TrainConfig, held_as: torch.dtype | None) -> MagicEditPipeline:
    source = config.pretrained_model_name_or_path
    if source is None:
        names = {field.name for field in dataclasses.fields(models.PatchModelConfig)} & set(config.to_dict())
        model = models.PatchModelConfig(**{name: getattr(config, name) for name in names})
        try:
            return models.create_patch_pipeline(model, seed=config.seed)
        except MagicEditError:
            raise
        # diffusers' and torch's own, of widths that do not fit each other, or memory
        except (ValueError, RuntimeError, ArithmeticError) as error:
            raise ModelError(
                f"no network has these settings: {reason_of(error)}; change --block_out_channels or "
                "--attention_heads"
            ) from error
    found = ModelFolder.find(source)
    hub_kwargs = {"revision": config.revision} if config.revision else {}
    ours = not is_magicface(found) and found.pipeline_class(**hub_kwargs) == PIPELINE_CLASS
    if config.objective == "distill" and not ours:
        raise ModelError(f"a teacher must be a trained editing pipeline, which {source} is not")
    pipeline = open_base(base_of(config), config.resolution, held_as=held_as)
    return models.refine_patch_pipeline(pipeline, config.resolution) if ours and config.refine else pipeline


def base_of(config: TrainConfig) -> Base:
    """The pretrained model of a run, without its fingerprint; its folders by absolute paths."""

    def place(model: str | None) -> str | None:
        return os.path.abspath(model) if model is not None and model_origin(model) == "folder" else model

    model, base_model = place(config.pretrained_model_name_or_path), place(config.base_model)
    return Base(model, base_model, config.revision, config.variant)


def autocast_dtype(mixed_precision: str) -> torch.dtype | None:
    """The precision of autocast for accelerate's name of it; None for "no"."""
    return {"fp16": torch.float16, "bf16": torch.bfloat16}.get(mixed_precision)


def prepare_for_training(
    pipeline: MagicEditPipeline, config: TrainConfig, denoiser_only: bool, held_as: torch.dtype | None = None
) -> None:
    """Selects the trained parameters and enables gradient checkpointing.

    denoiser_only: freeze the AU map and the identity's encoders. held_as: with LoRA, the precision to hold
    frozen matrices in; trained ones are float32.
    """
    _select_trained(pipeline, config, denoiser_only)
    if config.lora_rank:
        for network in filter(None, (getattr(pipeline, name) for name in models.TRAINED_NETWORKS)):
            cast_training_params(network, torch.float32)
            if held_as is not None:
                models.hold_matrices(network, held_as)


def _select_trained(pipeline: MagicEditPipeline, config: TrainConfig, denoiser_only: bool) -> None:
    unet, reference_unet, image_encoder = pipeline.unet, pipeline.reference_unet, pipeline.image_encoder
    for part in (pipeline.vae, pipeline.text_encoder, pipeline.au_map if denoiser_only else None):
        if part is not None:
            part.requires_grad_(False)
    if config.lora_rank:
        from peft import LoraConfig

        lora = LoraConfig(
            r=config.lora_rank,
            lora_alpha=config.lora_rank,
            init_lora_weights="gaussian",
            target_modules=["to_q", "to_k", "to_v", "to_out.0"],
        )
        unet.requires_grad_(False)
        unet.add_adapter(lora)
        # New to the base model, so trained in full, as is an au_map
        for layer in filter(None, (unet.conv_in, unet.class_embedding)):
            layer.requires_grad_(True)
    else:
        unet.requires_grad_(True)
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    unet.train()

    fixed = config.freeze_reference or denoiser_only
    if image_encoder is not None:
        image_encoder.requires_grad_(not fixed and not config.lora_rank)
        for name, parameter in image_encoder.named_parameters():
            if "post_layernorm" in name:  # of the pooled token, which is unused
                parameter.requires_grad_(False)
    if reference_unet is None:
        return
    reference_unet.requires_grad_(not fixed and not config.lora_rank)
    if not fixed:
        if config.lora_rank:
            reference_unet.add_adapter(lora)
        models.freeze_unused_reference(reference_unet)
        if config.gradient_checkpointing:
            reference_unet.enable_gradient_checkpointing()
    reference_unet.train(not fixed)


def base_parameters(networks: torch.nn.Module) -> set[str]:
    """Names of the parameters that LoRA adapters leave to their base; none without adapters."""
    parameters = dict(networks.named_parameters())
    if not any(".lora_" in name for name in parameters):
        return set()
    return {name for name, p in parameters.items() if not p.requires_grad and ".lora_" not in name}


def _drop_base(networks: torch.nn.Module, state: dict, prefix: str, _metadata: dict) -> None:
    for name in base_parameters(networks):
        del state[prefix + name]


def _miss_no_base(networks: torch.nn.Module, incompatible: NamedTuple) -> None:
    base = base_parameters(networks)
    incompatible.missing_keys[:] = [name for name in incompatible.missing_keys if name not in base]


class Networks(torch.nn.Module):
    """All trained networks under one forward, so that data parallelism sees every use of their weights.

    With LoRA adapters, its state dict has what is not the base's alone; one with everything loads too.
    """

    def __init__(self, pipeline: MagicEditPipeline, gradient_checkpointing: bool = False):
        super().__init__()
        self.register_state_dict_post_hook(_drop_base)
        self.register_load_state_dict_post_hook(_miss_no_base)
        for name in models.TRAINED_NETWORKS:
            setattr(self, name, getattr(pipeline, name))
        self.gradient_checkpointing = gradient_checkpointing
        self._encode_reference, self._denoise = models.encode_reference, self._predict
        self.reference_to_end = False  # see `encode_reference`

    def compile_networks(self) -> None:
        """Compiles ID encoder and denoiser, each as one graph; the modules do not change."""
        self._encode_reference, self._denoise = CompiledReference(), compiled(self._predict)

    def forward(
        self, noisy, condition_latents, identity_latents, timesteps, prompt_embeds, au_delta, features=None
    ):
        """See `predict_noise`. identity_latents: (batch, channels, height, width); None if `features` and
        `prompt_embeds` are already those of the identities."""
        if identity_latents is not None:
            features, prompt_embeds = self.encode_identity(identity_latents, prompt_embeds)
        return self._denoise(noisy, condition_latents, timesteps, prompt_embeds, au_delta, features)

    def encode_identity(
        self, identity_latents: torch.Tensor, prompt_embeds: torch.Tensor
    ) -> tuple[Features | None, torch.Tensor]:
        """See `reference_attention.encode_identity`."""
        _, prompt_embeds = models.encode_identity(None, self.image_encoder, identity_latents, prompt_embeds)
        if self.reference_unet is None:
            return None, prompt_embeds
        # To evaluate, the original, which stops after the last feature without a compiler's help
        encode = self._encode_reference if self.training else models.encode_reference
        if self.reference_to_end:
            encode = functools.partial(models.encode_reference, to_end=True)
        return encode(self.reference_unet, identity_latents, prompt_embeds), prompt_embeds

    def _predict(self, noisy, condition_latents, timesteps, prompt_embeds, au_delta, features):
        # Projects the text once a layer, not once a row. Not if the backward pass reruns the layers, which
        # must compute the same as the forward pass. Not for a single token, whose keys and queries would get
        # no gradient, which data parallelism refuses.
        if not self.gradient_checkpointing and prompt_embeds.shape[1] > 1:
            features = ReferenceCache(features, prompt_embeds)
        return models.predict_noise(
            self.unet, noisy, condition_latents, timesteps, prompt_embeds, au_delta, features, self.au_map
        )
