"""The flow autoencoder (Yeh et al. 2016, arXiv:1611.09961): a flow from a source to a target picture.

The autoencoder learns the paper's three terms and one of ours, summed over a picture's pixels; the confidence
network learns from what the autoencoder makes. Class means, by which edits are asked for, are computed when
the result is exported.
"""

import copy
import functools
import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import broadcast

from magicedit.action_units import EMOTIONS, NAMES
from magicedit.data.description import read_description
from magicedit.data.pairs import PairDataset
from magicedit.errors import TrainingError
from magicedit.imaging import to_pixels, to_tensor
from magicedit.pipelines.pipeline_flow_autoencoder import (
    ClassMeans,
    FlowAutoencoderPipeline,
    FlowConfidence,
    FlowDecoder,
    FlowEncoder,
    in_pixels,
    level_widths,
    move,
)
from magicedit.train.config import TrainConfig, refuse_unused, settings_of
from magicedit.train.methods import Losses, Method
from magicedit.train.publish import publish_family
from magicedit.train.validation import pair_settings
from magicedit.vocabulary import Control, Vocabulary
from magicedit.warping import displacement_fields, warp_photo

logger = logging.getLogger(__name__)

NEIGHBOURHOOD = 7  # pixels a side
SMOOTH = 0.1  # px below which a distance of flows grows as its square
STEPS = 5.0  # intensity steps between the class means of a control by muscles' warps: K of the paper
LABELLED, UNLABELLED = 2.5, 1.0  # labels: at least, and at most, of a control's two classes
INTRODUCTION = """A flow autoencoder (Yeh et al. 2016, [arXiv:1611.09961](https://arxiv.org/abs/1611.09961))
for the `magicedit` package: it edits the expression of face crops of {resolution} px by moving their
pixels."""
UNUSED = ("pretrained_model_name_or_path", "lora_rank", "compile", "use_8bit_adam", "freeze_reference",
          "gradient_checkpointing", "refine")  # fmt: skip


@dataclass(frozen=True)
class FlowAutoencoderSettings:
    """`settings` of the objective `flow-autoencoder`.

    Attributes:
        channels, latent_size: of the networks, see `FlowEncoder`.
        relative: decode differences of latents, see `FlowDecoder`; not in the paper.
        confidence_channels: of `FlowConfidence`.
        prior_weight, coherence_weight: of the terms beside the reconstruction.
        known_flow_weight: of the distance to the flow of a warped pair, which is known; not in the paper.
        coherence_scale: squared colour distance (channels in [-1, 1]) at which a neighbour's weight is 1 / e.
        confidence_scale: beta, the squared colour distance at which a soft label is 1 / e.
        max_grad_value: each entry of a gradient is clipped to plus or minus this.
        early_stopping_patience: checks without a better validation loss after which training ends; 0: it
            goes on to `max_train_steps`, and the last weights are the result rather than the best ones.
        early_stopping_steps: optimiser steps between checks.
        early_stopping_pairs: validation pairs of a check.
        class_means: "muscles", warps of training photographs, or "labels", photographs by their labels.
        class_photographs: photographs of each mean; 0: all.
    """

    channels: int = 1024
    latent_size: int = 128
    relative: bool = False
    confidence_channels: int = 64
    prior_weight: float = 0.003
    coherence_weight: float = 0.001
    known_flow_weight: float = 0.0
    coherence_scale: float = 0.1
    confidence_scale: float = 0.1
    max_grad_value: float = 5.0
    early_stopping_patience: int = 10
    early_stopping_steps: int = 500
    early_stopping_pairs: int = 256
    class_means: str = "muscles"
    class_photographs: int = 256

    def __post_init__(self) -> None:
        counts = ("channels", "latent_size", "confidence_channels")
        counts += ("early_stopping_steps", "early_stopping_pairs")
        if bad := [name for name in counts if getattr(self, name) < 1]:
            raise TrainingError(f"settings {bad[0]} must be at least 1, got {getattr(self, bad[0])}")
        weights = ("prior_weight", "coherence_weight", "known_flow_weight")
        for name in (*weights, "early_stopping_patience", "class_photographs"):
            if not 0 <= getattr(self, name) < math.inf:
                raise TrainingError(f"settings {name} must be 0 or more, got {getattr(self, name)}")
        for name in ("coherence_scale", "confidence_scale", "max_grad_value"):
            if not getattr(self, name) > 0:
                raise TrainingError(f"settings {name} must be above 0, got {getattr(self, name)}")
        if self.class_means not in ("muscles", "labels"):
            raise TrainingError(f"settings class_means must be muscles or labels, got {self.class_means}")


# --- Loss terms, each (batch,) ------------------------------------------------------------------------------


def reconstruction(moved: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """`sum_p |T(p) - g(p)|^2`; both (batch, 3, height, width) in [-1, 1]."""
    return (target - moved).pow(2).sum(dim=(1, 2, 3))


def neighbours(values: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Values (batch, channels, height, width) at both ends of every pair of pixels in a NEIGHBOURHOOD.

    Each unordered pair comes once, so that 24 offsets stand for the 48 neighbours of a pixel.
    """
    reach = NEIGHBOURHOOD // 2
    height, width = values.shape[-2:]
    for dy in range(reach + 1):
        for dx in range(-reach if dy else 1, reach + 1):
            here = values[..., : height - dy, max(-dx, 0) : width - max(dx, 0)]
            there = values[..., dy:, max(dx, 0) : width - max(-dx, 0)]
            yield here, there


def coherence(flow: torch.Tensor, target: torch.Tensor, scale: float) -> torch.Tensor:
    """`sum_p sum_q exp(-|T(p) - T(q)|^2 / scale) |f(p) - f(q)|^2`, q over the 7 x 7 neighbours of p.

    flow: (batch, 2, height, width) px. target: (batch, 3, height, width) in [-1, 1]. Pixels of one colour
    move together.
    """
    total = flow.new_zeros(len(flow))
    for (f, f_near), (colour, colour_near) in zip(neighbours(flow), neighbours(target), strict=True):
        weight = torch.exp((colour - colour_near).pow(2).sum(1) / -scale)  # (batch, ...)
        total = total + 2 * (weight * (f - f_near).pow(2).sum(1)).sum(dim=(1, 2))  # p and q, q and p
    return total


def known_flow(flow: torch.Tensor, known: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """`sum_p w(p) |f(p) - f*(p)|`, in pixels, over the pixels whose movement is known.

    A colour does not tell how flat skin moved; a warp of the muscles does.

    flow: (batch, 2, height, width) px. known: (batch, height, width, 2) px, NaN where unknown. weight:
    (batch, height, width).
    """
    distance = (flow.permute(0, 2, 3, 1) - torch.nan_to_num(known)).pow(2).sum(-1)
    distance = (distance + SMOOTH**2).sqrt() - SMOOTH  # the root has no slope at 0
    return (distance * weight * torch.isfinite(known).all(-1)).sum(dim=(1, 2))


def soft_labels(moved: torch.Tensor, target: torch.Tensor, scale: float) -> torch.Tensor:
    """`exp(-|T(p) - g(p)|^2 / beta)`, (batch, height, width): 1 where a moved picture is right."""
    return torch.exp((target - moved).pow(2).sum(1) / -scale)


def confidence_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of confidences to their soft labels, both (batch, height, width)."""
    return F.binary_cross_entropy_with_logits(logits, labels)


# --- What is trained ----------------------------------------------------------------------------------------


class Autoencoder(torch.nn.Module):
    """Encoder and decoder under one forward, as the loop trains them."""

    def __init__(self, encoder: FlowEncoder, decoder: FlowDecoder):
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def forward(self, source: torch.Tensor, target: torch.Tensor, noise: torch.Tensor | None):
        """Flow (batch, 2, height, width), and KL divergence (batch,) of the target's latent.

        noise: (batch, latent_size), by which the latent is drawn; None: its mean.
        """
        sources, targets = self.encoder(torch.cat([source, target])).chunk(2)
        posterior = self.encoder.posterior(targets)
        own = self.encoder.posterior(sources).mean.flatten(1).to(source)
        latent = posterior.mean.flatten(1)
        if noise is not None:
            latent = latent + posterior.std.flatten(1) * noise
        return self.decoder(source, latent.to(source), own), posterior.kl()


class Best(torch.nn.Module):
    """The networks at their best validation loss, and the counts of early stopping; a checkpoint keeps them.

    loss: the best one. stale: checks since. calls: micro-batches trained.
    """

    def __init__(self, **networks: torch.nn.Module):
        super().__init__()
        self.networks = torch.nn.ModuleDict(networks).requires_grad_(False)
        self.register_buffer("loss", torch.tensor(math.inf, dtype=torch.float64))
        self.register_buffer("stale", torch.zeros((), dtype=torch.int64))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def offer(self, loss: float, networks: Mapping[str, torch.nn.Module]) -> None:
        """Keeps the weights where their loss is the best so far."""
        self.stale += 1
        if loss < float(self.loss):
            self.loss.fill_(loss)
            self.stale.zero_()
            for name, network in networks.items():
                self.networks[name].load_state_dict(network.state_dict())


class Samples(torch.utils.data.Dataset):
    """Pairs with the noise of their latent, a function of (seed, n)."""

    def __init__(self, pairs: PairDataset, latent_size: int, seed: int):
        self.pairs, self.latent_size, self.seed = pairs, latent_size, seed

    def __getitem__(self, n: int) -> dict[str, torch.Tensor]:
        noise = np.random.default_rng((self.seed, n, 1)).standard_normal(self.latent_size, dtype=np.float32)
        pair = self.pairs[n]
        used = {name: pair[name] for name in ("source", "target", "flow", "weight") if name in pair}
        return used | {"noise": torch.from_numpy(noise)}


class FlowAutoencoder(Method):
    """Encoder and decoder by one optimizer, the confidence of what they make by another."""

    def __init__(self, config: TrainConfig, accelerator: Accelerator):
        self.config, self.accelerator = config, accelerator
        settings = self.settings = settings_of(config, FlowAutoencoderSettings)
        refuse_unused(config, UNUSED)
        if config.use_ema and settings.early_stopping_patience:
            raise TrainingError(
                "--use_ema and early stopping exclude each other: set early_stopping_patience to 0"
            )
        size = {"resolution": config.resolution, "channels": settings.channels}
        try:
            level_widths(**size)
        except ValueError as error:
            raise TrainingError(f"{error}; see --resolution and settings channels") from error
        self.vocabulary = flow_vocabulary(settings.class_means == "muscles")
        scheme = read_description(config.data_folder(), "landmarks")["landmarks"]
        if settings.class_means == "muscles" and scheme != "mediapipe478":
            raise TrainingError(
                f"class means by muscles need MediaPipe's 478 landmarks, these are {scheme}; "
                "set class_means to labels"
            )
        self.pairs = self._open_data("train", config.warped)
        self.validation = self._open_data("validation", config.warped) if self._stops else None
        # Computed at the end, but refused before the first step
        self.class_records = class_records(self.pairs, settings, self.vocabulary)
        encoder = FlowEncoder(**size, latent_size=settings.latent_size)
        decoder = FlowDecoder(**size, latent_size=settings.latent_size, relative=settings.relative)
        confidence = FlowConfidence(settings.confidence_channels)
        self.autoencoder, self.confidence = Autoencoder(encoder, decoder), confidence
        kept = {"autoencoder": self.autoencoder, "confidence": confidence} if self._stops else {}
        self.best = Best(**copy.deepcopy(kept))

    @property
    def _stops(self) -> bool:
        return self.settings.early_stopping_patience > 0

    def modules(self) -> dict[str, torch.nn.Module]:
        return {"autoencoder": self.autoencoder, "confidence": self.confidence, "best": self.best}

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {name: self._adam(getattr(self, name)) for name in ("autoencoder", "confidence")}

    def _adam(self, network: torch.nn.Module) -> torch.optim.Optimizer:
        """Adam whose gradients are clipped by value."""
        config, parameters = self.config, list(network.parameters())
        betas = (config.adam_beta1, config.adam_beta2)
        adam = torch.optim.Adam(parameters, lr=config.learning_rate, betas=betas, eps=config.adam_epsilon)
        adam.register_step_pre_hook(
            lambda *_: torch.nn.utils.clip_grad_value_(parameters, self.settings.max_grad_value)
        )
        return adam

    def _open_data(self, split: str, warped: float, held_out: bool = False) -> PairDataset:
        return PairDataset(
            self.config.data_folder(),
            split=split,
            warped=warped,
            relations=self.settings.known_flow_weight > 0,
            zero_keeps=self.config.zero_keeps is not False,
            teeth=False,  # no flow can make any
            **pair_settings(self.config, held_out),
        )

    def data_digest(self) -> str:
        return self.pairs.digest

    def samples(self) -> Samples:
        return Samples(self.pairs, self.settings.latent_size, self.config.seed)

    def losses(self, batch: dict, networks) -> Losses:
        self._check_validation()
        batch = {name: values.to(self.accelerator.device) for name, values in batch.items()}
        source, target, settings = batch["source"], batch["target"], self.settings
        with self.accelerator.autocast():
            flow, prior = networks["autoencoder"](source, target, batch["noise"])
        moved, pixels = move(source, flow), in_pixels(flow).permute(0, 3, 1, 2).float()
        parts = {
            "reconstruction": reconstruction(moved, target).mean(),
            "prior": prior.mean(),
            "coherence": coherence(pixels, target, settings.coherence_scale).mean(),
        }
        weights = [1.0, settings.prior_weight, settings.coherence_weight]
        if settings.known_flow_weight:
            parts["known_flow"] = known_flow(pixels, batch["flow"], batch["weight"]).mean()
            weights.append(settings.known_flow_weight)
        loss = sum(weight * part for weight, part in zip(weights, parts.values(), strict=True))
        yield "autoencoder", loss, parts

        moved, flow = moved.detach(), flow.detach()  # of the autoencoder before its update
        with self.accelerator.autocast():
            logits = networks["confidence"](source, moved, flow)
        labels = soft_labels(moved, target, settings.confidence_scale)
        yield "confidence", confidence_loss(logits.float(), labels), {"label": labels.mean()}

    def held_out(self) -> Samples:
        pairs = self._open_data("validation", self.config.warped, held_out=True)
        return Samples(pairs, self.settings.latent_size, pairs.seed)

    def validate(self, batch: dict, networks) -> dict[str, torch.Tensor]:
        """The reconstruction at mean latents, as in early stopping; the other terms only regularise."""
        source, target = (batch[name].to(self.accelerator.device) for name in ("source", "target"))
        with self.accelerator.autocast():
            flow, _ = networks["autoencoder"](source, target, None)
        return {"loss": reconstruction(move(source, flow), target).mean()}

    # -- early stopping --

    def _check_validation(self) -> None:
        """Counts a micro-batch; at every check, keeps the networks if they are the best so far."""
        every = self.settings.early_stopping_steps * self.config.gradient_accumulation_steps
        if self._stops and self.best.calls and self.best.calls % every == 0:
            loss = torch.tensor(self._validation_loss(), device=self.accelerator.device)
            # Batch norm's averages differ between processes, which have to agree
            self.best.offer(float(broadcast(loss)), self._kept())
        self.best.calls += 1

    def _kept(self) -> dict[str, torch.nn.Module]:
        return {"autoencoder": self.autoencoder, "confidence": self.confidence}

    @torch.no_grad()
    def _validation_loss(self) -> float:
        """Mean reconstruction term of fixed validation pairs, at mean latents."""
        total, size = 0.0, self.config.train_batch_size
        self.autoencoder.eval()
        for pairs in zip(*(pictures.split(size) for pictures in self._validation_pairs), strict=True):
            source, target = (pictures.to(self.accelerator.device) for pictures in pairs)
            flow, _ = self.autoencoder(source, target, None)
            total += float(reconstruction(move(source, flow), target).sum())
        self.autoencoder.train()
        return total / self.settings.early_stopping_pairs

    @functools.cached_property
    def _validation_pairs(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Sources and targets, (pairs, 3, height, width) each."""
        pairs = [self.validation[n] for n in range(self.settings.early_stopping_pairs)]
        return tuple(torch.stack([pair[name] for pair in pairs]) for name in ("source", "target"))

    def finished(self) -> bool:
        return self._stops and int(self.best.stale) >= self.settings.early_stopping_patience

    # -- results --

    def preview(self) -> np.ndarray:
        """Rows of source, target, moved source and confidence, of pairs that are always the same."""
        pairs = self.validation or self.pairs
        rows = []
        for n in range(self.config.validation_faces):
            source, target = (pairs[n][name][None] for name in ("source", "target"))
            device = self.accelerator.device
            moved, confidence = self._moved(source.to(device), target.to(device))
            shown = (confidence * 2 - 1)[:, None].expand_as(source)
            rows.append(torch.cat([source[0], target[0], moved[0], shown[0]], dim=-1))
        return to_pixels(torch.cat(rows, dim=-2))

    @torch.no_grad()
    def _moved(self, source: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        for network in (self.autoencoder, self.confidence):
            network.eval()
        flow, _ = self.autoencoder(source, target, None)
        moved = move(source, flow)
        confidence = self.confidence(source, moved, flow).sigmoid()
        for network in (self.autoencoder, self.confidence):
            network.train()
        return moved.cpu(), confidence.cpu()

    def export(self, folder: Path, step: int, samples_seen: int) -> None:
        networks = self._kept()
        if self._stops:
            self.best.offer(self._validation_loss(), networks)  # of the last steps
            networks = self.best.networks
        autoencoder, confidence = (copy.deepcopy(networks[name]).eval() for name in self._kept())
        encoder, decoder = autoencoder.encoder, autoencoder.decoder
        classes = class_means(encoder, self.pairs, self.class_records, self.vocabulary)
        pipeline = FlowAutoencoderPipeline(
            encoder, decoder, confidence, classes, self.config.resolution, **self.vocabulary.to_index()
        )
        counts = {"optimiser_steps": step, "pairs_seen": samples_seen}
        if self._stops:
            counts["validation_reconstruction"] = float(self.best.loss)
        introduction = INTRODUCTION.format(resolution=self.config.resolution)
        publish_family(
            pipeline, self.config, self.pairs, folder, counts, tag="flow", introduction=introduction
        )


# --- Class means --------------------------------------------------------------------------------------------


def flow_vocabulary(emotions: bool) -> Vocabulary:
    """The labelled action units and, with `emotions`, the six, whose step 5 is their whole expression."""
    region = "face"
    own = [Control(name, f"the expression of {name}", region, kind="emotion") for name in EMOTIONS]
    return Vocabulary((*NAMES.controls, *(own if emotions else ())), NAMES.known)


@dataclass(frozen=True)
class ClassRecords:
    """Which records a control's two classes consist of, and by what those of its target are warped.

    command: (aus,) intensity steps, or None: the records show the control. steps: between the classes.
    """

    source: list[int]
    target: list[int]
    command: np.ndarray | None
    steps: float


def class_records(
    pairs: PairDataset, settings: FlowAutoencoderSettings, vocabulary: Vocabulary
) -> list[ClassRecords]:
    """The classes of each control.

    Raises:
        TrainingError: where none or all of the photographs show a control.
    """
    spread = np.linspace(0, len(pairs) - 1, settings.class_photographs or len(pairs))
    chosen = sorted({round(n) for n in spread})
    if settings.class_means == "muscles":
        recipes = {name: {name: STEPS} for name in NAMES} | EMOTIONS
        return [ClassRecords(chosen, chosen, NAMES.vector(recipes[name]), STEPS) for name in vocabulary]
    labels = np.stack([record.action_units for record in pairs.records])  # (photographs, aus)
    found = []
    for name, values in zip(vocabulary, labels.T, strict=True):
        absent, present = (values <= UNLABELLED).nonzero()[0], (values >= LABELLED).nonzero()[0]
        if not len(absent) or not len(present):
            raise TrainingError(
                f"the labels of {pairs.folder} have {len(present)} photographs with {name} at {LABELLED:g} "
                f"or more and {len(absent)} at {UNLABELLED:g} or less; class means by labels need both"
            )
        steps = float(values[present].mean() - values[absent].mean())
        found.append(ClassRecords(absent.tolist(), present.tolist(), None, steps))
    return found


@torch.no_grad()
def class_means(
    encoder: FlowEncoder, pairs: PairDataset, classes: list[ClassRecords], vocabulary: Vocabulary
) -> ClassMeans:
    """The mean latents of each control's classes; `encoder` in evaluation mode."""
    result = ClassMeans(len(vocabulary), encoder.config.latent_size)
    plain = {n: None for records in classes for n in records.source}
    latents = dict(zip(plain, _latents(encoder, pairs, list(plain), None), strict=True))
    warps = [records for records in classes if records.command is not None]
    fields = {n: _fields(pairs, n) for n in warps[0].target} if warps else {}
    for row, records in enumerate(classes):
        targets = _latents(encoder, pairs, records.target, records.command, fields)
        result.source[row] = torch.stack([latents[n] for n in records.source]).mean(0)
        result.target[row] = torch.stack(targets).mean(0)
        result.steps[row] = records.steps
    return result


def _fields(pairs: PairDataset, index: int) -> np.ndarray:
    stride = next(s for s in (4, 2, 1) if pairs.resolution % s == 0)
    return displacement_fields(pairs.landmarks(index), pairs.resolution, NAMES, stride)


def _latents(
    encoder: FlowEncoder,
    pairs: PairDataset,
    indices: list[int],
    command: np.ndarray | None,
    fields: Mapping[int, np.ndarray] = {},
    batch: int = 64,
) -> list[torch.Tensor]:
    """The mean latent, (latent_size,) each, of records, warped by a command where there is one."""
    found, device = [], next(encoder.parameters()).device
    for first in range(0, len(indices), batch):
        pictures = []
        for index in indices[first : first + batch]:
            picture = pairs.record_images(index)[0]  # (3, height, width)
            if command is not None:
                pixels = warp_photo(to_pixels(picture), fields[index], command, pairs.landmarks(index))
                picture = to_tensor(pixels)
            pictures.append(picture)
        found += encoder.latent(torch.stack(pictures).to(device)).cpu()
    return found
