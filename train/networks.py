"""The networks of an editing pipeline as they are trained: built, and put under one forward."""

import dataclasses

import torch
from diffusers import AutoencoderKL, DDPMScheduler
from transformers import CLIPTextModel, CLIPTokenizer

from magicedit.action_units import NAMES
from magicedit.errors import ModelError
from magicedit.models import (
    TRAINED_NETWORKS,
    PatchModelConfig,
    create_patch_pipeline,
    encode_identity,
    encode_reference,
    freeze_unused_reference,
    from_stable_diffusion,
    load_magicface,
    load_pipeline,
    predict_noise,
    refine_patch_pipeline,
)
from magicedit.models.folder import PIPELINE_CLASS, ModelFolder
from magicedit.pipelines.pipeline_magicedit import MagicEditPipeline
from magicedit.pipelines.reference_attention import Features, ReferenceCache
from magicedit.train.compiled import CompiledReference, compiled
from magicedit.train.config import TrainConfig


def open_pipeline(config: TrainConfig) -> MagicEditPipeline:
    """The pipeline to train: from scratch, from Stable Diffusion, from a MagicFace checkpoint, or one of
    ours.

    Raises:
        ModelError: where the named model is none of these, or of another resolution or other AUs.
    """
    pipeline = _build_pipeline(config)
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


def _build_pipeline(config: TrainConfig) -> MagicEditPipeline:
    source = config.pretrained_model_name_or_path
    if source is None:
        names = {field.name for field in dataclasses.fields(PatchModelConfig)} & set(config.to_dict())
        model = PatchModelConfig(**{name: getattr(config, name) for name in names})
        return create_patch_pipeline(model, seed=config.seed)
    hub_kwargs = {"revision": config.revision} if config.revision else {}
    found = ModelFolder.find(source)
    if found.origin == "folder" and (found.path / "denoising_unet").is_dir():
        if config.base_model is None:
            raise ModelError(
                f"{source} is a MagicFace checkpoint: name its Stable Diffusion with --base_model"
            )
        return _around(load_magicface(found.path), config.base_model, config.resolution, hub_kwargs)
    if found.pipeline_class(**hub_kwargs) == PIPELINE_CLASS:
        pipeline = load_pipeline(source, device="cpu", **hub_kwargs)
        return refine_patch_pipeline(pipeline, config.resolution) if config.refine else pipeline
    if config.objective == "distill":
        raise ModelError(f"a teacher must be a trained editing pipeline, which {source} is not")
    return _around(from_stable_diffusion(source, **hub_kwargs), source, config.resolution, hub_kwargs)


def _around(unets: tuple, base: str, resolution: int, hub_kwargs: dict) -> MagicEditPipeline:
    """Denoiser and ID encoder `unets` with the other parts of a Stable Diffusion `base`."""
    weights = hub_kwargs | {"use_safetensors": True}
    try:
        return MagicEditPipeline(
            unet=unets[0],
            reference_unet=unets[1],
            scheduler=DDPMScheduler.from_pretrained(base, subfolder="scheduler", **hub_kwargs),
            vae=AutoencoderKL.from_pretrained(base, subfolder="vae", **weights),
            text_encoder=CLIPTextModel.from_pretrained(base, subfolder="text_encoder", **weights),
            tokenizer=CLIPTokenizer.from_pretrained(base, subfolder="tokenizer", **hub_kwargs),
            resolution=resolution,
        )
    except (OSError, ValueError) as error:
        raise ModelError(f"{base} must be a Stable Diffusion 1.x folder or hub id: {error}") from error


def prepare_for_training(pipeline: MagicEditPipeline, config: TrainConfig, denoiser_only: bool) -> None:
    """Decides which parameters are trained, and turns on what saves memory.

    denoiser_only: leave the AU map and what encodes the identity as they are.
    """
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
        # New to the base model, so trained in full; an au_map is too
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
            if "post_layernorm" in name:  # it serves the pooled token, which nobody reads
                parameter.requires_grad_(False)
    if reference_unet is None:
        return
    reference_unet.requires_grad_(not fixed and not config.lora_rank)
    if not fixed:
        if config.lora_rank:
            reference_unet.add_adapter(lora)
        freeze_unused_reference(reference_unet)
        if config.gradient_checkpointing:
            reference_unet.enable_gradient_checkpointing()
    reference_unet.train(not fixed)


class Networks(torch.nn.Module):
    """All that is trained under one forward, so that data parallelism sees every use of its weights.

    gradient_checkpointing: whether activations are recomputed in the backward pass.
    """

    def __init__(self, pipeline: MagicEditPipeline, gradient_checkpointing: bool = False):
        super().__init__()
        for name in TRAINED_NETWORKS:
            setattr(self, name, getattr(pipeline, name))
        self.gradient_checkpointing = gradient_checkpointing
        self._encode_reference, self._denoise = encode_reference, self._predict

    def compile_networks(self) -> None:
        """Compiles ID encoder and denoiser, each as one graph; the modules stay what they are."""
        self._encode_reference, self._denoise = CompiledReference(), compiled(self._predict)

    def forward(
        self, noisy, condition_latents, identity_latents, timesteps, prompt_embeds, au_delta, features=None
    ):
        """See `predict_noise`; `identity_latents` (batch, channels, height, width), one for each row, or None
        where `features` and `prompt_embeds` are those of the identities already."""
        if identity_latents is not None:
            features, prompt_embeds = self.encode_identity(identity_latents, prompt_embeds)
        return self._denoise(noisy, condition_latents, timesteps, prompt_embeds, au_delta, features)

    def encode_identity(
        self, identity_latents: torch.Tensor, prompt_embeds: torch.Tensor
    ) -> tuple[Features | None, torch.Tensor]:
        """As the pipeline's `encode_identity`, by the networks here."""
        _, prompt_embeds = encode_identity(None, self.image_encoder, identity_latents, prompt_embeds)
        if self.reference_unet is None:
            return None, prompt_embeds
        return self._encode_reference(self.reference_unet, identity_latents, prompt_embeds), prompt_embeds

    def _predict(self, noisy, condition_latents, timesteps, prompt_embeds, au_delta, features):
        # The text's keys and values once a layer, not once a row. Not where a backward pass runs the layers
        # again: it would find projections where the forward pass had computed them. Nor for a single token,
        # whose keys and queries would then get no gradient, which data parallelism refuses.
        if not self.gradient_checkpointing and prompt_embeds.shape[1] > 1:
            features = ReferenceCache(features, prompt_embeds)
        return predict_noise(
            self.unet, noisy, condition_latents, timesteps, prompt_embeds, au_delta, features, self.au_map
        )
