"""Shared by methods that train an editing pipeline from pairs: data, identities, previews, results."""

import contextlib
import copy
import functools
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from magicedit.data.pairs import PairDataset
from magicedit.data.streaming import StreamingPairs, holds_shards
from magicedit.errors import MissingDependencyError, TrainingError
from magicedit.files import shown
from magicedit.imaging import to_pixels
from magicedit.models import TRAINED_NETWORKS
from magicedit.models.base import pinned
from magicedit.pipelines.pipeline_magicedit import MagicEditPipeline
from magicedit.train.config import TrainConfig
from magicedit.train.identity_cache import Identity, IdentityCache
from magicedit.train.methods import Losses, Method
from magicedit.train.networks import Networks, autocast_dtype, base_of, prepare_for_training
from magicedit.train.objectives import add_noise
from magicedit.train.publish import publish
from magicedit.train.samples import TrainingSamples, cache_latents, faces_to_preview
from magicedit.train.throughput import uncounted
from magicedit.train.validation import evaluating, pair_settings

logger = logging.getLogger(__name__)

KEPT_SETTINGS = (
    *("prediction", "patch_size", "resolution", "action_units", "concat_identity"),
    *("prompt", "default_steps", "default_guidance_scale"),
)


def adamw(parameters: list[torch.nn.Parameter], config: TrainConfig, device) -> torch.optim.Optimizer:
    """Returns AdamW with the settings of `config`: fused, or with 8-bit state."""
    optimizer_class, options = torch.optim.AdamW, {}
    if device.type in ("cpu", "cuda"):  # one pass over all states; elsewhere untried
        options["fused"] = True
    if config.use_8bit_adam:
        try:
            import bitsandbytes
        except ImportError as error:
            raise MissingDependencyError("--use_8bit_adam needs `pip install bitsandbytes`") from error
        optimizer_class, options = bitsandbytes.optim.AdamW8bit, {}
    return optimizer_class(
        parameters,
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        weight_decay=config.adam_weight_decay,
        eps=config.adam_epsilon,
        **options,
    )


@dataclass(frozen=True)
class Noised:
    """A batch on the device with noise added.

    clean: (batch, channels, height, width), the target's scaled latents. alphas: (batch,), cumulative.
    inputs: arguments of `Networks.forward`.
    """

    batch: dict
    clean: torch.Tensor
    alphas: torch.Tensor
    inputs: dict


class Editing(Method):
    """An editing pipeline, its networks under one forward, and pairs of photographs to learn from.

    relations: whether pairs include the relation of target to source. denoiser_only: train nothing else.
    timesteps: those to draw from; None: all.
    """

    shardable = True
    relations = False
    denoiser_only = False
    timesteps: tuple[int, ...] | None = None

    def __init__(self, config: TrainConfig, accelerator: Accelerator, pipeline: MagicEditPipeline):
        self.config, self.accelerator, self.pipeline = config, accelerator, pipeline
        device = self.device = accelerator.device
        self.composed = pipeline.config.prediction == "flow_mask_paint"
        self.reference_frozen = config.freeze_reference or self.denoiser_only
        held_as = autocast_dtype(accelerator.mixed_precision) if config.lora_rank else None
        self.base = pinned(base_of(config)) if config.lora_rank else None
        prepare_for_training(pipeline, config, self.denoiser_only, held_as)
        self.networks = Networks(pipeline, config.gradient_checkpointing)
        if config.compile:
            self.networks.compile_networks()
        trained = [p for p in self.networks.parameters() if p.requires_grad]
        self.optimizer = adamw(trained, config, device)
        for part in (pipeline.vae, pipeline.text_encoder):
            if part is not None:
                part.to(device)
        self.alphas = pipeline.scheduler.alphas_cumprod.float().to(device)
        self.pairs = self._open_data("train", config.warped)
        self.latents = None
        repeats = not (config.augment or config.warped or self.streamed)
        if config.cache_latents and pipeline.vae is not None and repeats:
            folder = Path(config.output_dir) / ".latents"
            self.latents = cache_latents(pipeline, self.pairs, accelerator, config.train_batch_size, folder)
        self.prompt_embeds = pipeline.encode_prompt(device, torch.float32)
        self.identity_cache = self._make_identity_cache()

    def modules(self) -> dict[str, torch.nn.Module]:
        return {"model": self.networks}

    def with_modules(self, modules) -> "Editing":
        other = copy.copy(self)
        other.networks = modules["model"]
        return other

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"model": self.optimizer}

    def _open_data(self, split: str, warped: float, held_out: bool = False) -> PairDataset | StreamingPairs:
        folder = self.config.data_folder()
        settings = {
            "split": split,
            "warped": warped,
            "action_units": self.pipeline.action_units,
            "relations": self.relations,
            "zero_keeps": self.composed if self.config.zero_keeps is None else self.config.zero_keeps,
            "teeth": not self.composed,
            **pair_settings(self.config, held_out),
        }
        if holds_shards(folder):
            readers = self.accelerator.num_processes * max(1, self.config.dataloader_num_workers)
            dealt = {"streams": 1 if held_out else readers, "batch_size": self.config.train_batch_size}
            settings.pop("memory", None)  # no picture of a stream is cached
            return StreamingPairs(folder, **settings, **dealt)
        return PairDataset(folder, **settings)

    @property
    def streamed(self) -> bool:
        """Whether pairs come from shards, so that no picture is met again soon."""
        return isinstance(self.pairs, StreamingPairs)

    def samples(self) -> TrainingSamples:
        return self._samples(self.pairs, self.config.seed, images=self.latents is None)

    def held_out(self) -> TrainingSamples:
        pairs = self._open_data("validation", self.config.warped, held_out=True)
        return self._samples(pairs, pairs.seed, images=True)

    def _samples(self, pairs: PairDataset, seed: int, images: bool) -> TrainingSamples:
        channels, au_map = self.pipeline.unet.config.in_channels, self.pipeline.au_map
        if au_map is not None:
            channels -= au_map.config.channels
        channels //= 3 if self.pipeline.config.concat_identity else 2
        side = self.config.resolution // self.pipeline.latent_scale
        return TrainingSamples(
            pairs,
            (channels, side, side),
            seed,
            noise_levels=len(self.alphas),
            noisy_end=self.composed,
            images=images,
            timesteps=self.timesteps,
        )

    def data_digest(self) -> str:
        return self.pairs.digest

    def _make_identity_cache(self) -> IdentityCache | None:
        capacity = int(self.config.reference_cache_gb * 1e9)
        encoders = (self.networks.reference_unet, self.networks.image_encoder)
        if not self.reference_frozen or not capacity or encoders == (None, None):
            return None
        if self.config.augment or self.streamed:
            why = "--augment" if self.config.augment else "shards"
            logger.info("%s: reference features are computed at every step; no picture repeats", why)
            return None
        return IdentityCache(self._encode_frozen_identity, capacity, len(self.pairs))

    @torch.no_grad()
    def _encode_frozen_identity(self, identity_latents: torch.Tensor) -> Identity:
        # With a cache it is done once a photograph, and is no part of a step
        with self.accelerator.autocast(), uncounted(self.identity_cache is not None):
            return self.networks.encode_identity(identity_latents, self.prompt_embeds)

    def _frozen_identity(self, batch: dict, identity_latents: torch.Tensor) -> Identity:
        """Returns features and tokens of a batch's identities, whose encoders are not trained."""
        if self.identity_cache is None or not self.networks.training:  # held-out people are not kept
            return self._encode_frozen_identity(identity_latents)
        stored = zip(batch["source_index"].tolist(), batch["source_as_stored"].tolist(), strict=True)
        return self.identity_cache.identities(
            [record if as_stored else None for record, as_stored in stored], identity_latents
        )

    def counters(self) -> dict[str, float]:
        cache = self.identity_cache
        if cache is None:
            return {}
        counts = {"reference_hits": cache.hits, "reference_misses": cache.misses}
        cache.hits = cache.misses = 0
        return counts

    @torch.no_grad()
    def _encode(self, batch: dict) -> dict[str, torch.Tensor]:
        """Returns a batch's latents: identity and condition unscaled, clean (the target's) scaled."""
        if "source" not in batch:
            source, target = batch["source_index"], batch["target_index"]
            identity = self.latents["image"][source].to(self.device)
            condition = self.latents["condition"][target].to(self.device)
            clean = self.latents["image"][target].to(self.device)
        else:
            identity, condition, clean = (
                self._encode_pictures(batch[name]) for name in ("source", "condition", "target")
            )
        if self.pipeline.vae is not None:
            clean = clean * self.pipeline.vae.config.scaling_factor
        if self.pipeline.config.concat_identity:
            condition = torch.cat([condition, identity], dim=1)
        return {"identity": identity, "condition": condition, "clean": clean}

    def _encode_pictures(self, pictures: torch.Tensor) -> torch.Tensor:
        if self.networks.training:
            return self.pipeline.encode_images(pictures)
        # One at a time: a training step from cached latents may leave no memory for a batch
        return torch.cat([self.pipeline.encode_images(picture[None]) for picture in pictures])

    def _noised(self, batch: dict) -> Noised:
        batch = {k: v.to(self.device) if torch.is_tensor(v) else v for k, v in batch.items()}
        latents = self._encode(batch)
        alphas = self.alphas[batch["timestep"]]
        identity, features, prompt_embeds = latents["identity"], None, self.prompt_embeds
        if self.reference_frozen:
            features, prompt_embeds = self._frozen_identity(batch, identity)
            identity = None
        inputs = {
            "noisy": add_noise(latents["clean"], batch["noise"], alphas),
            "condition_latents": latents["condition"],
            "identity_latents": identity,
            "timesteps": batch["timestep"],
            "prompt_embeds": prompt_embeds,
            "au_delta": batch["au_delta"],
            "features": features,
        }
        return Noised(batch, latents["clean"], alphas, inputs)

    def losses(self, batch: dict, networks) -> Losses:
        noised = self._noised(batch)
        with self.accelerator.autocast():
            output = networks["model"](**noised.inputs)
        yield ("model", *self._loss(noised, output))

    def _loss(self, noised: Noised, output: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Returns the loss and its parts from the `output` of `Networks` for `noised.inputs`."""
        raise NotImplementedError

    @contextlib.contextmanager
    def _result(self) -> Iterator[MagicEditPipeline]:
        """Yields the pipeline of the trained networks themselves, in evaluation mode, to preview and save."""
        networks = {name: getattr(self.networks, name) for name in TRAINED_NETWORKS}
        settings = {key: self.pipeline.config[key] for key in KEPT_SETTINGS} | self._result_settings()
        with evaluating({"model": self.networks}):
            pipeline = MagicEditPipeline(**{**self.pipeline.components, **networks}, **settings)
            pipeline.set_progress_bar_config(disable=True)
            yield pipeline

    def _result_settings(self) -> dict:
        """Returns the settings that differ between the result and the trained pipeline."""
        return {}

    @functools.cached_property
    def _previewed(self) -> list[dict]:
        opened = functools.partial(self._open_data, "validation", warped=1.0)
        return faces_to_preview(opened, self.pairs, self.config.validation_faces)

    def preview(self) -> np.ndarray:
        """Returns a grid of fixed faces with fixed requests: the source, then a column per request."""
        # Adapters and a base held in another precision meet under autocast only
        mixed = self.accelerator.autocast() if self.config.lora_rank else contextlib.nullcontext()
        with self._result() as pipeline, mixed:
            return self._preview(pipeline)

    def _preview(self, pipeline: MagicEditPipeline) -> np.ndarray:
        rows = []
        for example in self._previewed:
            source, condition = ((example[name][None] + 1) / 2 for name in ("source", "condition"))
            requests = torch.as_tensor(np.asarray(example["au_deltas"]), dtype=torch.float32)
            faces, row = pipeline.encode_faces(source, condition), [source]
            for some in requests.split(self.config.train_batch_size):  # (at most a batch, aus)
                edited = pipeline(
                    faces=faces,
                    au_delta=some,
                    num_inference_steps=min(20, pipeline.config.default_steps),
                    generator=[torch.Generator().manual_seed(self.config.seed) for _ in some],
                    output_type="pt",
                )
                row.append(edited.images.cpu())
            rows.append(torch.cat(list(torch.cat(row)), dim=-1))
        return to_pixels(torch.cat(rows, dim=-2) * 2 - 1)

    def export(self, folder: Path, step: int, samples_seen: int) -> None:
        base = None if self.config.merge else self.base
        with self._result() as pipeline:
            publish(pipeline, self.config, self.pairs, folder, step, samples_seen, base)

    def state(self) -> dict[str, Any]:
        if self.base is None:
            return {}
        return {"base": {"model": self.base.name, "fingerprint": self.base.fingerprint}}

    def check(self, state: dict[str, Any]) -> None:
        """Raises TrainingError where adapters of a checkpoint are of another base; older ones do not say."""
        there, here = state.get("base"), self.state().get("base")
        if None not in (there, here) and there["fingerprint"] != here["fingerprint"]:
            raise TrainingError(
                f"the checkpoint has adapters of the base {shown(there['model'])} (fingerprint "
                f"{there['fingerprint']}), not of {shown(here['model'])} ({here['fingerprint']}): name that "
                "one with --pretrained_model_name_or_path, or another --output_dir"
            )
