"""The training loop: two UNets, pairs of one identity, AU dropout."""

import contextlib
import copy
import dataclasses
import json
import logging
import math
import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import accelerate
import diffusers
import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from PIL import Image
from tqdm import tqdm
from transformers import CLIPTextModel, CLIPTokenizer

from magicedit.action_units import NAMES
from magicedit.data.pairs import PairDataset
from magicedit.errors import DatasetError, MissingDependencyError, ModelError, TrainingError
from magicedit.imaging import to_pixels
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
from magicedit.pipelines.pipeline_magicedit import Features, MagicEditPipeline, ReferenceCache
from magicedit.train.compiled import CompiledReference, check_compiler, compilation_explained, compiled
from magicedit.train.config import TrainConfig
from magicedit.train.distill import Teacher, clean_objective, taught_relation, to_clean
from magicedit.train.identity_cache import Identity, IdentityCache
from magicedit.train.objectives import (
    ComposedWeights,
    Relation,
    add_noise,
    composed_objective,
    noise_objective,
)
from magicedit.train.state import (
    find_checkpoint,
    flatten_optimizer,
    list_checkpoints,
    load_checkpoint,
    recover_checkpoints,
    restore_optimizer,
    save_checkpoint,
)

logger = logging.getLogger(__name__)

# Settings that a checkpoint's tensors depend on, and those that its continuation depends on
SHAPING = (
    *("block_out_channels", "layers_per_block", "attention_heads", "patch_size", "prediction"),
    *("au_encoder", "identity_encoder"),
    *("objective", "distill_steps", "distill_teacher_steps", "distill_guidance"),
    *(
        "concat_identity",
        "fine_flow",
        "resolution",
        "lora_rank",
        "freeze_reference",
        "use_ema",
        "use_8bit_adam",
    ),
)
COMPUTED_WITH = (
    *("seed", "train_batch_size", "gradient_accumulation_steps", "learning_rate", "lr_scheduler"),
    *("max_train_steps", "warped", "augment", "au_dropout", "zero_keeps", "mixed_precision", "change_weight"),
    *("compile", "gradient_checkpointing", "reference_cache_gb"),
    *("edge_weight", "flow_weight", "known_mask_weight", "mask_weight"),
)
MAX_BAD_STEPS = 20  # consecutive non-finite steps after which a run is given up


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


# --- Model --------------------------------------------------------------------------------------------------


def build_pipeline(config: TrainConfig) -> MagicEditPipeline:
    """The pipeline to train: from scratch, from Stable Diffusion, from a MagicFace checkpoint, or one of
    ours.

    Raises:
        ModelError: where the named model is none of these.
    """
    source = config.pretrained_model_name_or_path
    if source is None:
        return create_patch_pipeline(
            PatchModelConfig(
                resolution=config.resolution,
                patch_size=config.patch_size,
                block_out_channels=config.block_out_channels,
                layers_per_block=config.layers_per_block,
                attention_heads=config.attention_heads,
                prediction=config.prediction,
                concat_identity=config.concat_identity,
                fine_flow=config.fine_flow,
                au_encoder=config.au_encoder,
                identity_encoder=config.identity_encoder,
                default_steps=config.default_steps,
                default_guidance_scale=config.default_guidance_scale,
            ),
            seed=config.seed,
        )
    hub_kwargs = {"revision": config.revision} if config.revision else {}
    found = ModelFolder.find(source)
    if found.origin == "folder" and (found.path / "denoising_unet").is_dir():
        if config.base_model is None:
            raise ModelError(
                f"{source} is a MagicFace checkpoint: name its Stable Diffusion with --base_model"
            )
        base, (unet, reference_unet) = config.base_model, load_magicface(found.path)
    else:
        if found.pipeline_class(**hub_kwargs) == PIPELINE_CLASS:
            pipeline = load_pipeline(source, device="cpu", **hub_kwargs)
            return refine_patch_pipeline(pipeline, config.resolution) if config.refine else pipeline
        if config.objective == "distill":
            raise ModelError(f"a teacher must be a trained editing pipeline, which {source} is not")
        base, (unet, reference_unet) = source, from_stable_diffusion(source, **hub_kwargs)
    try:
        return MagicEditPipeline(
            unet=unet,
            reference_unet=reference_unet,
            scheduler=DDPMScheduler.from_pretrained(base, subfolder="scheduler", **hub_kwargs),
            vae=AutoencoderKL.from_pretrained(base, subfolder="vae", use_safetensors=True, **hub_kwargs),
            text_encoder=CLIPTextModel.from_pretrained(
                base, subfolder="text_encoder", use_safetensors=True, **hub_kwargs
            ),
            tokenizer=CLIPTokenizer.from_pretrained(base, subfolder="tokenizer", **hub_kwargs),
            resolution=config.resolution,
        )
    except (OSError, ValueError) as error:
        raise ModelError(f"{base} must be a Stable Diffusion 1.x folder or hub id: {error}") from error


def prepare_for_training(pipeline: MagicEditPipeline, config: TrainConfig) -> None:
    """Decides which parameters are trained, and turns on what saves memory."""
    unet, reference_unet, image_encoder = pipeline.unet, pipeline.reference_unet, pipeline.image_encoder
    distilled = config.objective == "distill"  # the denoiser's alone: teacher and student share the rest
    for part in (pipeline.vae, pipeline.text_encoder, pipeline.au_map if distilled else None):
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

    fixed = config.freeze_reference or distilled
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


# --- Data ---------------------------------------------------------------------------------------------------


class TrainingSamples(torch.utils.data.Dataset):
    """Pairs with the noise and the timestep that they are trained with, all a function of (seed, n).

    noise_levels: timesteps of the schedule. noisy_end: draw more of the noisy ones. timesteps: draw these
    alone, equally often. images: pictures rather than the record numbers under which their latents are
    cached.
    """

    def __init__(
        self,
        pairs: PairDataset,
        latent_shape: tuple[int, int, int],
        seed: int,
        *,
        noise_levels: int,
        noisy_end: bool,
        images: bool,
        timesteps: tuple[int, ...] | None = None,
    ):
        self.pairs = pairs
        self.noise_levels = noise_levels
        self.latent_shape = latent_shape
        self.seed = seed
        self.noisy_end = noisy_end
        self.images = images
        self.timesteps = timesteps

    def __getitem__(self, n: int) -> dict:
        rng = np.random.default_rng((self.seed, n, 1))  # pairs draw from (seed, n)
        # Movement is decided at the noisy end: towards the clean one the noisy image itself shows the target
        u = rng.random()
        share = 1 - u**2 if self.noisy_end else u
        timestep = min(self.noise_levels - 1, int(self.noise_levels * share))
        if self.timesteps is not None:
            timestep = self.timesteps[int(len(self.timesteps) * u)]
        sample = self.pairs[n] if self.images else self._indices(n)
        return sample | {
            "noise": torch.from_numpy(rng.standard_normal(self.latent_shape, dtype=np.float32)),
            "timestep": timestep,
            # Whether the source is the record's picture as `record_images` has it
            "source_as_stored": not self.pairs.augment and not self.pairs.pair(n).source_command.any(),
        }

    def _indices(self, n: int) -> dict:
        source, target, au_delta = self.pairs.pair(n)[:3]
        return {"source_index": source, "target_index": target, "au_delta": torch.as_tensor(au_delta)}


@dataclass(frozen=True)
class SampleOrder(torch.utils.data.Sampler):
    """Sample numbers of one process: step by step, micro-step by micro-step, disjoint between processes."""

    start_step: int
    stop_step: int
    micro_steps: int
    batch_size: int
    rank: int
    world_size: int

    def __iter__(self):
        for micro in range(self.start_step * self.micro_steps, self.stop_step * self.micro_steps):
            first = (micro * self.world_size + self.rank) * self.batch_size
            yield from range(first, first + self.batch_size)

    def __len__(self) -> int:
        return (self.stop_step - self.start_step) * self.micro_steps * self.batch_size


@torch.no_grad()
def cache_latents(
    pipeline: MagicEditPipeline, pairs: PairDataset, device, batch_size: int
) -> dict[str, torch.Tensor]:
    """Unscaled latents of every photograph and of its condition image, float32 on the CPU."""
    cached = {"image": [], "condition": []}
    for first in range(0, len(pairs), batch_size):
        records = [pairs.record_images(i) for i in range(first, min(first + batch_size, len(pairs)))]
        for name, images in zip(cached, zip(*records, strict=True), strict=True):
            cached[name].append(pipeline.encode_images(torch.stack(images).to(device)).float().cpu())
    return {name: torch.cat(parts) for name, parts in cached.items()}


# --- The run ------------------------------------------------------------------------------------------------


class Run:
    """A training run: what is built once, and the steps."""

    def __init__(self, config: TrainConfig):
        self.config = config
        self.output_dir = Path(config.output_dir)
        self.accelerator = Accelerator(
            # Else several processes of torchrun without a GPU would each train alone into one folder
            cpu=not torch.accelerator.is_available(),
            mixed_precision=config.mixed_precision,
            log_with=None if config.report_to == "none" else config.report_to,
            project_dir=str(self.output_dir / "logs"),
        )
        # Ours is the only division by micro-steps, whatever the launcher's environment says
        self.accelerator.gradient_accumulation_steps = 1
        if config.compile:
            check_compiler(self.accelerator.device)
        kind = str(self.accelerator.distributed_type.value)
        if "FSDP" in kind or "DEEPSPEED" in kind or "MEGATRON" in kind:
            raise TrainingError(f"verified checkpoints exist for data parallelism only, not for {kind} yet")
        set_seed(config.seed)
        torch.backends.cuda.matmul.allow_tf32 = config.allow_tf32

        self.pipeline = build_pipeline(config)
        if self.pipeline.config.resolution != config.resolution:
            raise ModelError(
                f"{config.pretrained_model_name_or_path} was made for {self.pipeline.config.resolution} px; "
                f"train it with --resolution {self.pipeline.config.resolution}, not {config.resolution}, "
                "or with --refine where it is a flow_mask_paint model"
            )
        if self.pipeline.action_units != NAMES:
            raise ModelError(
                f"the model has the AUs {self.pipeline.config.action_units}, training knows {NAMES}"
            )
        self.composed = self.pipeline.config.prediction == "flow_mask_paint"
        self.teacher = None
        self.reference_frozen = config.freeze_reference or config.objective == "distill"
        if config.objective == "distill":
            config = self.config = self._engage_teacher(config)
        prepare_for_training(self.pipeline, config)
        self.networks = self.model = Networks(self.pipeline, config.gradient_checkpointing)
        if config.compile:
            self.networks.compile_networks()
            if self.teacher is not None:
                self.teacher.compile()
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = self._make_optimizer()
        try:
            self.lr_scheduler = get_scheduler(
                config.lr_scheduler,
                self.optimizer,
                num_warmup_steps=config.lr_warmup_steps,
                num_training_steps=config.max_train_steps,
            )
        except ValueError as error:
            raise TrainingError(f"--lr_scheduler {config.lr_scheduler}: {error}") from error
        self.ema = (
            EMAModel(self.parameters, decay=config.ema_decay, use_ema_warmup=True, power=0.75)
            if config.use_ema
            else None
        )
        device = self.accelerator.device
        for part in (self.pipeline.vae, self.pipeline.text_encoder):
            if part is not None:
                part.to(device)
        self.alphas = self.pipeline.scheduler.alphas_cumprod.float().to(device)
        self.pairs = self._open_data("train", config.warped)
        self.latents = self._cache_latents()
        self.step = self.samples_seen = self.bad_steps = 0
        self.model, self.wrapped_optimizer = self.accelerator.prepare(self.model, self.optimizer)
        if self.ema is not None:
            self.ema.to(device)
        self.prompt_embeds = self.pipeline.encode_prompt(device, torch.float32)
        self.identity_cache = self._make_identity_cache()
        if self.accelerator.is_main_process:
            recover_checkpoints(self.output_dir)
        self.accelerator.wait_for_everyone()
        if config.resume_from_checkpoint:
            self._resume()
        elif list_checkpoints(self.output_dir):
            raise TrainingError(
                f"{self.output_dir} holds checkpoints of an earlier run: go on with --resume_from_checkpoint "
                "latest, or name another --output_dir"
            )
        if config.report_to != "none":
            self.accelerator.init_trackers("magicedit", {k: str(v) for k, v in config.to_dict().items()})

    # -- building --

    def _engage_teacher(self, config: TrainConfig) -> TrainConfig:
        """Copies the denoiser before it is trained; returns `config` with the guidance that is meant."""
        guidance = config.distill_guidance
        if guidance is None:
            guidance = float(self.pipeline.config.default_guidance_scale)
        self.teacher = Teacher(
            self.pipeline,
            config.distill_steps,
            config.distill_teacher_steps,
            guidance,
            self.accelerator.device,
        )
        self.pipeline.scheduler = self.teacher.scheduler
        return dataclasses.replace(config, distill_guidance=guidance)

    def _make_optimizer(self) -> torch.optim.Optimizer:
        optimizer_class, options = torch.optim.AdamW, {}
        if self.accelerator.device.type in ("cpu", "cuda"):  # one pass over all states; elsewhere untried
            options["fused"] = True
        if self.config.use_8bit_adam:
            try:
                import bitsandbytes
            except ImportError as error:
                raise MissingDependencyError("--use_8bit_adam needs `pip install bitsandbytes`") from error
            optimizer_class, options = bitsandbytes.optim.AdamW8bit, {}
        return optimizer_class(
            self.parameters,
            lr=self.config.learning_rate,
            betas=(self.config.adam_beta1, self.config.adam_beta2),
            weight_decay=self.config.adam_weight_decay,
            eps=self.config.adam_epsilon,
            **options,
        )

    def _open_data(self, split: str, warped: float) -> PairDataset:
        folder = self.config.train_data_dir
        if folder is None:
            import huggingface_hub

            folder = huggingface_hub.snapshot_download(self.config.dataset_name, repo_type="dataset")
        return PairDataset(
            folder,
            split=split,
            resolution=self.config.resolution,
            seed=self.config.seed,
            warped=warped,
            augment=self.config.augment,
            au_dropout=self.config.au_dropout,
            action_units=self.pipeline.action_units,
            relations=self.composed and self.teacher is None,
            zero_keeps=self.composed if self.config.zero_keeps is None else self.config.zero_keeps,
            teeth=not self.composed,
        )

    def _cache_latents(self) -> dict[str, torch.Tensor] | None:
        wanted = self.config.cache_latents and self.pipeline.vae is not None
        if not wanted or self.config.augment or self.config.warped:
            return None
        return cache_latents(self.pipeline, self.pairs, self.accelerator.device, self.config.train_batch_size)

    def _make_identity_cache(self) -> IdentityCache | None:
        capacity = int(self.config.reference_cache_gb * 1e9)
        encoders = (self.networks.reference_unet, self.networks.image_encoder)
        if not self.reference_frozen or not capacity or encoders == (None, None):
            return None
        if self.config.augment:
            logger.info("--augment: reference features are computed at every step, no picture comes twice")
            return None
        return IdentityCache(self._encode_frozen_identity, capacity, len(self.pairs))

    def _loader(self) -> torch.utils.data.DataLoader:
        channels, au_map = self.pipeline.unet.config.in_channels, self.pipeline.au_map
        if au_map is not None:
            channels -= au_map.config.channels
        channels //= 3 if self.pipeline.config.concat_identity else 2
        side = self.config.resolution // self.pipeline.latent_scale
        samples = TrainingSamples(
            self.pairs,
            (channels, side, side),
            self.config.seed,
            noise_levels=len(self.alphas),
            noisy_end=self.composed,
            images=self.latents is None,
            timesteps=None if self.teacher is None else self.teacher.intervals.student_timesteps,
        )
        order = SampleOrder(
            start_step=self.step,
            stop_step=self.config.max_train_steps,
            micro_steps=self.config.gradient_accumulation_steps,
            batch_size=self.config.train_batch_size,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
        )
        return torch.utils.data.DataLoader(
            samples,
            batch_size=self.config.train_batch_size,
            sampler=order,
            num_workers=self.config.dataloader_num_workers,
            pin_memory=self.accelerator.device.type == "cuda",
        )

    # -- one step --

    @torch.no_grad()
    def _encode(self, batch: dict) -> dict[str, torch.Tensor]:
        """Latents of a batch on the device: identity and condition unscaled, clean (the target's) scaled."""
        if self.latents is not None:
            device, source, target = self.accelerator.device, batch["source_index"], batch["target_index"]
            identity = self.latents["image"][source].to(device)
            condition = self.latents["condition"][target].to(device)
            clean = self.latents["image"][target].to(device)
        else:
            identity, condition, clean = (
                self.pipeline.encode_images(batch[name]) for name in ("source", "condition", "target")
            )
        if self.pipeline.vae is not None:
            clean = clean * self.pipeline.vae.config.scaling_factor
        if self.pipeline.config.concat_identity:
            condition = torch.cat([condition, identity], dim=1)
        return {"identity": identity, "condition": condition, "clean": clean}

    @torch.no_grad()
    def _encode_frozen_identity(self, identity_latents: torch.Tensor) -> Identity:
        with self.accelerator.autocast():
            return self.networks.encode_identity(identity_latents, self.prompt_embeds)

    def _frozen_identity(self, batch: dict, identity_latents: torch.Tensor) -> Identity:
        """Features and tokens of a batch's identities where what encodes them is not trained."""
        if self.identity_cache is None:
            return self._encode_frozen_identity(identity_latents)
        stored = zip(batch["source_index"].tolist(), batch["source_as_stored"].tolist(), strict=True)
        return self.identity_cache.identities(
            [record if as_stored else None for record, as_stored in stored], identity_latents
        )

    def _loss(self, batch: dict) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss of one micro-batch and its parts, for the log."""
        batch = {k: v.to(self.accelerator.device) if torch.is_tensor(v) else v for k, v in batch.items()}
        latents = self._encode(batch)
        alphas = self.alphas[batch["timestep"]]  # (batch,)
        noisy = add_noise(latents["clean"], batch["noise"], alphas)
        if self.teacher is not None:
            return self._distillation_loss(batch, latents, noisy, alphas)
        identity, features, prompt_embeds = latents["identity"], None, self.prompt_embeds
        if self.reference_frozen:
            features, prompt_embeds = self._frozen_identity(batch, identity)
            identity = None
        with self.accelerator.autocast():
            output = self.model(
                noisy,
                latents["condition"],
                identity,
                batch["timestep"],
                prompt_embeds,
                batch["au_delta"],
                features,
            )
        if not self.composed:
            prediction_type = self.pipeline.scheduler.config.prediction_type
            loss = noise_objective(
                output, latents["clean"], batch["noise"], alphas, prediction_type, self.config.snr_gamma
            )
            return loss, {}
        relation = Relation(batch["flow"], batch["mask"], batch["weight"])
        return self._composed_loss(
            output, batch["source"], batch["target"], relation, self.config.mask_weight
        )

    def _composed_loss(
        self, output, source, target, relation: Relation, mask_weight: float
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        loss = composed_objective(
            output,
            source,
            target,
            self.pipeline.config.patch_size,
            ComposedWeights(
                change=self.config.change_weight,
                edges=self.config.edge_weight,
                flow=self.config.flow_weight,
                known_mask=self.config.known_mask_weight,
                mask=mask_weight,
            ),
            relation,
        )
        parts = {"pixels": loss.pixels, "edges": loss.edges, "flow": loss.flow, "mask": loss.mask}
        return loss.total, parts

    def _distillation_loss(
        self, batch: dict, latents: dict[str, torch.Tensor], noisy: torch.Tensor, alphas: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """How far the student's one step is from where the teacher's several lead."""
        interval = self.teacher.intervals.index(batch["timestep"])
        features, prompt_embeds = self._frozen_identity(batch, latents["identity"])  # the same for both
        with self.accelerator.autocast():
            lesson = self.teacher.teach(
                noisy,
                interval,
                batch.get("source"),
                latents["condition"],
                prompt_embeds,
                batch["au_delta"],
                features,
            )
            output = self.model(
                noisy,
                latents["condition"],
                None,
                batch["timestep"],
                prompt_embeds,
                batch["au_delta"],
                features,
            )
        if not self.composed:
            clean = to_clean(output.float(), noisy, alphas, self.teacher.prediction_type)
            return clean_objective(clean, lesson.clean, alphas), {}
        return self._composed_loss(
            output,
            batch["source"],
            self.pipeline.decode_latents(lesson.clean),
            taught_relation(lesson.head, self.teacher.intervals.end_clean(interval)),
            mask_weight=0.0,  # the teacher's mask is known, or the picture is all there is to meet
        )

    def _train_step(self, batches) -> dict[str, float] | None:
        """One optimiser step over its micro-batches; None where it was not finite and nothing was changed."""
        micro_steps = self.config.gradient_accumulation_steps
        logged: dict[str, float] = {}
        finite = True
        for micro in range(micro_steps):
            last = micro == micro_steps - 1
            with self.accelerator.no_sync(self.model) if not last else contextlib.nullcontext():
                loss, parts = self._loss(next(batches))
                # All processes have to agree, and each has to run backward, or the others wait for its
                # gradients
                finite &= bool(torch.isfinite(self.accelerator.gather(loss.detach())).all())
                self.accelerator.backward(loss / micro_steps)
            for name, value in {"loss": loss, **parts}.items():
                logged[name] = logged.get(name, 0.0) + float(value.detach()) / micro_steps
        norm = self.accelerator.clip_grad_norm_(self.parameters, self.config.max_grad_norm)
        scaler = self.accelerator.scaler
        if scaler is None:
            finite &= math.isfinite(float(norm))
        elif not finite:  # without its `step`, the scaler has to be told to try a smaller scale
            scaler.update(scaler.get_scale() * scaler.get_backoff_factor())
        if finite:
            self.wrapped_optimizer.step()
            # By the scaler, or with it by a fused optimiser, which accelerate does not notice
            finite = not self.wrapped_optimizer.step_was_skipped and math.isfinite(float(norm))
        if finite:
            self.lr_scheduler.step()
            if self.ema is not None:
                self.ema.step(self.parameters)
        self.wrapped_optimizer.zero_grad(set_to_none=True)
        logged |= {"grad_norm": float(norm), "lr": self.optimizer.param_groups[0]["lr"]}
        return logged if finite else None

    # -- checkpoints --

    def _save(self) -> None:
        self.accelerator.wait_for_everyone()
        if not self.accelerator.is_main_process:
            return
        model = self.accelerator.unwrap_model(self.model)
        optimizer_tensors, optimizer_rest = flatten_optimizer(self.optimizer)
        tensors = {"model": model.state_dict(), "optimizer": optimizer_tensors}
        state = {
            "step": self.step,
            "samples_seen": self.samples_seen,
            "world_size": self.accelerator.num_processes,
            "config": self.config.to_dict(),
            "optimizer": optimizer_rest,
            "lr_scheduler": {
                k: v for k, v in self.lr_scheduler.state_dict().items() if isinstance(v, int | float | list)
            },
            "versions": {m.__name__: m.__version__ for m in (torch, diffusers, accelerate)},
        }
        state["lr_scheduler"].pop("lr_lambdas", None)  # functions; `get_scheduler` makes them again
        if self.teacher is not None:
            state["teacher"] = self.teacher.digest
        if self.accelerator.scaler is not None:
            state["scaler"] = self.accelerator.scaler.state_dict()
        if self.ema is not None:
            ema = self.ema.state_dict()
            tensors["ema"] = {str(i): p for i, p in enumerate(ema.pop("shadow_params"))}
            state["ema"] = ema
        save_checkpoint(self.output_dir, self.step, tensors, state, self.config.checkpoints_total_limit)

    def _resume(self) -> None:
        folder = find_checkpoint(self.output_dir, self.config.resume_from_checkpoint)
        if folder is None:
            logger.warning("no whole checkpoint in %s: starting at step 0", self.output_dir)
            return
        tensors, state = load_checkpoint(folder)
        # What runs were before these were settings
        before = {
            "fine_flow": False,
            "au_encoder": "linear",
            "identity_encoder": "unet",
            "objective": "pairs",
        }
        earlier = before | state["config"]
        changed = {k for k, v in self.config.to_dict().items() if v != earlier.get(k, v)}
        if unfit := sorted(changed & set(SHAPING)):
            raise TrainingError(f"{folder} was trained with other settings: {', '.join(unfit)}")
        if self.teacher is not None and state["teacher"] != self.teacher.digest:
            raise TrainingError(
                f"{folder} learned from another teacher than {self.config.pretrained_model_name_or_path}: "
                "name that one, or another --output_dir"
            )
        if others := sorted(changed & set(COMPUTED_WITH)):
            logger.warning("resuming with other settings than before: %s", ", ".join(others))
        if state["world_size"] != self.accelerator.num_processes:
            logger.warning(
                "resuming a run of %d processes with %d", state["world_size"], self.accelerator.num_processes
            )
        self.accelerator.unwrap_model(self.model).load_state_dict(tensors["model"])
        restore_optimizer(self.optimizer, tensors["optimizer"], state["optimizer"])
        self.lr_scheduler.load_state_dict({**self.lr_scheduler.state_dict(), **state["lr_scheduler"]})
        if self.accelerator.scaler is not None and "scaler" in state:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        if self.ema is not None:
            shadow = [tensors["ema"][str(i)] for i in range(len(tensors["ema"]))]
            self.ema.load_state_dict({**state["ema"], "shadow_params": shadow})
            self.ema.to(self.accelerator.device)
        self.step, self.samples_seen = state["step"], state["samples_seen"]
        logger.info("resumed from %s", folder)

    # -- results --

    def _averaged_pipeline(self) -> MagicEditPipeline:
        """A copy of the pipeline with averaged weights and LoRA merged, for previews and for saving."""
        model = self.accelerator.unwrap_model(self.model)
        if self.ema is not None:
            self.ema.store(self.parameters)
            self.ema.copy_to(self.parameters)
        try:
            networks = {name: copy.deepcopy(getattr(model, name)) for name in TRAINED_NETWORKS}
        finally:
            if self.ema is not None:
                self.ema.restore(self.parameters)
        for network in filter(None, networks.values()):
            if self.config.lora_rank and getattr(network, "peft_config", None):
                network.fuse_lora()
                network.unload_lora()
            if isinstance(network, UNet2DConditionModel):
                network.disable_gradient_checkpointing()
            network.eval().requires_grad_(False)
        settings = {
            key: self.pipeline.config[key]
            for key in ("prediction", "patch_size", "resolution", "action_units", "concat_identity",
                        "prompt", "default_steps", "default_guidance_scale")
        }  # fmt: skip
        if self.teacher is not None:
            steps = self.config.distill_steps
            settings |= {"default_steps": steps, "default_guidance_scale": 1.0, "distilled_steps": steps}
        pipeline = MagicEditPipeline(**{**self.pipeline.components, **networks}, **settings)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def _preview(self) -> None:
        """A grid of fixed faces under fixed requests: source, then one column a request."""
        if not self.accelerator.is_main_process:
            return
        try:
            examples = self._open_data("validation", warped=1.0).examples(self.config.validation_faces)
        except DatasetError:  # no validation split, or other landmarks: show training faces
            examples = self.pairs.examples(self.config.validation_faces)
        pipeline = self._averaged_pipeline()
        rows = []
        for example in examples:
            requests = torch.as_tensor(
                np.asarray(example["au_deltas"]), dtype=torch.float32
            )  # (requests, aus)
            edited = pipeline(
                (example["source"][None] + 1) / 2,
                (example["condition"][None] + 1) / 2,
                requests,
                num_inference_steps=min(20, pipeline.config.default_steps),
                generator=torch.Generator().manual_seed(self.config.seed),
                output_type="pt",
            ).images.cpu()
            row = torch.cat([(example["source"][None] + 1) / 2, edited])
            rows.append(torch.cat(list(row), dim=-1))
        grid = to_pixels(torch.cat(rows, dim=-2) * 2 - 1)
        folder = self.output_dir / "previews"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(grid).save(folder / f"step-{self.step:07d}.png")
        for tracker in self.accelerator.trackers:
            if hasattr(tracker, "log_images"):
                layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                tracker.log_images({"preview": grid[None]}, step=self.step, **layout)

    def _finish(self) -> None:
        """Writes the pipeline folder with its card, and pushes both where asked."""
        self.accelerator.wait_for_everyone()
        if not self.accelerator.is_main_process:
            return
        from magicedit.train.publish import publish

        publish(self._averaged_pipeline(), self.config, self.pairs, self.step, self.samples_seen)

    # -- the loop --

    def train(self) -> None:
        config = self.config
        if self.accelerator.is_main_process:
            self.output_dir.mkdir(parents=True, exist_ok=True)
            settings = {**config.to_dict(), "world_size": self.accelerator.num_processes}
            (self.output_dir / "train_config.json").write_text(json.dumps(settings, indent=1))
        batches = iter(self._loader())
        per_step = (
            config.train_batch_size * config.gradient_accumulation_steps * self.accelerator.num_processes
        )
        progress = tqdm(
            total=config.max_train_steps,
            initial=self.step,
            desc="training",
            disable=not self.accelerator.is_main_process,
        )
        last_time, last_step = time.perf_counter(), self.step
        explained = compilation_explained if config.compile else contextlib.nullcontext
        while self.step < config.max_train_steps:
            with explained():
                logged = self._train_step(batches)
            self.step += 1
            self.samples_seen += per_step
            progress.update()
            if logged is None:
                self.bad_steps += 1
                logger.warning("step %d was not finite and changed nothing", self.step)
                if self.bad_steps >= MAX_BAD_STEPS:
                    raise TrainingError(
                        f"{MAX_BAD_STEPS} steps in a row were not finite; lower --learning_rate or use bf16. "
                        "The last checkpoint is whole."
                    )
            else:
                self.bad_steps = 0
                if self.step % config.logging_steps == 0 or self.step == config.max_train_steps:
                    now = time.perf_counter()
                    logged["images_per_second"] = per_step * (self.step - last_step) / (now - last_time)
                    last_time, last_step = now, self.step
                    self._log(logged | self._resources(), progress)
            if config.checkpointing_steps and self.step % config.checkpointing_steps == 0:
                self._save()
            if config.validation_steps and self.step % config.validation_steps == 0:
                self._preview()
        progress.close()
        if not config.checkpointing_steps or self.step % config.checkpointing_steps:
            self._save()
        self._finish()
        self.accelerator.wait_for_everyone()  # while one publishes, no other takes its connections down
        self.accelerator.end_training()

    def _resources(self) -> dict[str, float]:
        """Values for the log: memory in 10^6 bytes, and uses of the identity cache since the last call."""
        cache = self.identity_cache
        own = [peak_memory(self.accelerator.device), *((cache.hits, cache.misses) if cache else ())]
        gathered = self.accelerator.gather(torch.tensor([own], device=self.accelerator.device))
        values = {"memory_mb": float(gathered[:, 0].max())}
        if cache is not None:
            cache.hits = cache.misses = 0
            names = ("reference_hits", "reference_misses")
            values |= dict(zip(names, gathered[:, 1:].sum(dim=0).tolist(), strict=True))
        return values

    def _log(self, values: dict[str, float], progress: tqdm) -> None:
        self.accelerator.log(values, step=self.step)
        if self.accelerator.is_main_process:
            progress.set_postfix(loss=f"{values['loss']:.4f}", images_s=f"{values['images_per_second']:.1f}")
            with (self.output_dir / "train_log.jsonl").open("a") as file:
                file.write(
                    json.dumps({"step": self.step, **{k: float(f"{v:.6g}") for k, v in values.items()}})
                    + "\n"
                )


def peak_memory(device: torch.device) -> float:
    """The most that this process has held so far, 10^6 bytes: allocated on a CUDA device, else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    unit = 1 if sys.platform == "darwin" else 1024  # bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def train(config: TrainConfig) -> None:
    """Trains as `config` says and writes the pipeline folder `config.output_dir`.

    Raises:
        MagicEditError: a subclass, for data, model or settings that do not fit.
    """
    Run(config).train()
