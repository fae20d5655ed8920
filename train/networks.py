"""Builds the networks of an editing pipeline, and joins them under one forward for training."""

import dataclasses

import torch
from diffusers import DDPMScheduler

from magicedit import models
from magicedit.action_units import NAMES
from magicedit.errors import MagicEditError, ModelError, reason_of
from magicedit.models.folder import PIPELINE_CLASS, ModelFolder
from magicedit.models.magicface import with_base
from magicedit.pipelines.pipeline_magicedit import MagicEditPipeline
from magicedit.pipelines.reference_attention import Features, ReferenceCache
from magicedit.train.compiled import CompiledReference, compiled
from magicedit.train.config import TrainConfig


def open_pipeline(config: TrainConfig) -> MagicEditPipeline:
    """Returns the pipeline to train: from scratch, Stable Diffusion, a MagicFace checkpoint, or ours.

    Raises ModelError where the model is none of these, or has another resolution or other AUs.
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
    hub_kwargs = {"revision": config.revision} if config.revision else {}
    found = ModelFolder.find(source)
    if found.origin == "folder" and (found.path / "denoising_unet").is_dir():
        if config.base_model is None:
            raise ModelError(
                f"{source} is a MagicFace checkpoint: name its Stable Diffusion with --base_model"
            )
        unets = models.load_magicface(found.path)
        return with_base(unets, config.base_model, DDPMScheduler, config.resolution, **hub_kwargs)
    if found.pipeline_class(**hub_kwargs) == PIPELINE_CLASS:
        pipeline = models.load_pipeline(source, device="cpu", **hub_kwargs)
        return models.refine_patch_pipeline(pipeline, config.resolution) if config.refine else pipeline
    if config.objective == "distill":
        raise ModelError(f"a teacher must be a trained editing pipeline, which {source} is not")
    unets = models.from_stable_diffusion(source, **hub_kwargs)
    return with_base(unets, source, DDPMScheduler, config.resolution, **hub_kwargs)


def prepare_for_training(pipeline: MagicEditPipeline, config: TrainConfig, denoiser_only: bool) -> None:
    """Selects the trained parameters and enables gradient checkpointing.

    denoiser_only: freeze the AU map and the identity's encoders.
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


class Networks(torch.nn.Module):
    """All trained networks under one forward, so that data parallelism sees every use of their weights."""

    def __init__(self, pipeline: MagicEditPipeline, gradient_checkpointing: bool = False):
        super().__init__()
        for name in models.TRAINED_NETWORKS:
            setattr(self, name, getattr(pipeline, name))
        self.gradient_checkpointing = gradient_checkpointing
        self._encode_reference, self._denoise = models.encode_reference, self._predict

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
