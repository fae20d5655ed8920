"""GANimation (Pumarola et al. 2018, arXiv:1807.09251) with AdaIN: an edit without paired photographs.

A critic tells edited pictures from photographs and reads their labels; a generator learns to satisfy both and
to undo its own edits. `critic_steps` updates of the critic go with one of the generator.
"""

import copy
import functools
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from magicedit.action_units import vocabulary_of
from magicedit.data.description import read_description
from magicedit.data.pairs import WARPED, PairDataset
from magicedit.errors import TrainingError
from magicedit.imaging import to_pixels
from magicedit.pipelines.pipeline_ganimation import (
    FULL_INTENSITY,
    GANimationCritic,
    GANimationGenerator,
    GANimationPipeline,
    LabelEmbedding,
    check_resolution,
    compose,
)
from magicedit.train.config import TrainConfig, refuse_unused, settings_of
from magicedit.train.methods import Losses, Method
from magicedit.train.publish import publish_family
from magicedit.train.samples import faces_to_preview
from magicedit.train.validation import pair_settings
from magicedit.warping.muscles import SHAPES

logger = logging.getLogger(__name__)

INTRODUCTION = """GANimation (Pumarola et al. 2018, [arXiv:1807.09251](https://arxiv.org/abs/1807.09251)) with
AdaIN for the `magicedit` package: it edits the expression of face crops of {resolution} px by painting where
an attention mask opens."""
UNUSED = (
    *("pretrained_model_name_or_path", "lora_rank", "compile", "use_8bit_adam", "freeze_reference"),
    *("gradient_checkpointing", "refine", "zero_keeps"),
)


@dataclass(frozen=True)
class GANimationSettings:
    """`settings` of the objective `ganimation`.

    Attributes:
        action_units: those of a label, in order, separated by spaces; "": all labels of the dataset.
        relative: whether the generator's label is the variation, and the critic's labels count by how they
            differ from the source's; not in the paper.
        channels, blocks, style_size, residual: of the generator, see `GANimationGenerator`.
        critic_channels: of the critic.
        critic_steps: updates of the critic for one of the generator.
        gradient_penalty_weight, expression_weight, cycle_weight, attention_weight: of the terms beside
            realness.
        smoothness_weight: of the total variation within the attention term.
        known_target_weight: of the distance to the target of a warped pair, which is known; not in the paper.
        transfer_from: folder of a trained model whose generator and critic are taken over, but for what
            depends on the labels. The generator stays as it is: only an embedding of this run's labels is
            trained. "": train all from scratch.
    """

    action_units: str = ""
    relative: bool = False
    channels: int = 64
    blocks: int = 6
    style_size: int = 128
    residual: bool = False
    critic_channels: int = 64
    critic_steps: int = 5
    gradient_penalty_weight: float = 10.0
    expression_weight: float = 4000.0
    cycle_weight: float = 10.0
    attention_weight: float = 0.1
    smoothness_weight: float = 1e-4
    known_target_weight: float = 0.0
    transfer_from: str = ""

    def __post_init__(self) -> None:
        counts = ("channels", "blocks", "style_size", "critic_channels", "critic_steps")
        if bad := [name for name in counts if getattr(self, name) < 1]:
            raise TrainingError(f"settings {bad[0]} must be at least 1, got {getattr(self, bad[0])}")
        for name in (name for name in vars(self) if name.endswith("_weight")):
            if not 0 <= getattr(self, name) < math.inf:
                raise TrainingError(f"settings {name} must be 0 or more, got {getattr(self, name)}")


OF_THE_FOLDER = (
    "relative",
    "channels",
    "blocks",
    "style_size",
    "residual",
    "critic_channels",
)  # with `transfer_from`


# --- Loss terms, each (batch,) ------------------------------------------------------------------------------


def criticism(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """`D(I') - D(I)`, minus the estimated Wasserstein distance; realness (batch, height, width) each."""
    return fake.mean(dim=(1, 2)) - real.mean(dim=(1, 2))


def gradient_penalty(norms: torch.Tensor) -> torch.Tensor:
    """`(|dD(x) / dx| - 1)^2` (Gulrajani et al. 2017, arXiv:1704.00028); norms (batch,)."""
    return (norms - 1).pow(2)


def expression(found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Mean squared error of labels, (batch, labels) each."""
    return (found - wanted).pow(2).mean(1)


def cycle(returned: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference of a picture and what an edit and its opposite make of it."""
    return (returned - source).abs().mean(dim=(1, 2, 3))


def attention_cost(attention: torch.Tensor, smoothness: float) -> torch.Tensor:
    """`smoothness * sum_ij [(A_i+1,j - A_ij)^2 + (A_i,j+1 - A_ij)^2] + |A|_2`; (batch, 1, height, width)."""
    down, right = attention.diff(dim=-2), attention.diff(dim=-1)
    variation = down.pow(2).sum(dim=(1, 2, 3)) + right.pow(2).sum(dim=(1, 2, 3))
    return smoothness * variation + attention.flatten(1).norm(dim=1)


def known_target(edited: torch.Tensor, target: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of edited pictures and targets where `known`, (batch,), is 1; else 0."""
    return (edited - target).pow(2).mean(dim=(1, 2, 3)) * known


def gradient_norms(critic: torch.nn.Module, pictures: torch.Tensor) -> torch.Tensor:
    """Norm (batch,) of the gradient of each picture's mean realness; can be differentiated again."""
    pictures = pictures.detach().requires_grad_()
    realness = critic(pictures)[0].mean(dim=(1, 2))
    (gradient,) = torch.autograd.grad(realness.sum(), pictures, create_graph=True)
    return gradient.flatten(1).norm(dim=1)


# --- What is trained ----------------------------------------------------------------------------------------


class Edits(torch.nn.Module):
    """Generator and embedding under one forward, as the loop trains them."""

    def __init__(self, generator: GANimationGenerator, embedding: LabelEmbedding):
        super().__init__()
        self.generator, self.embedding = generator, embedding

    def edit(self, source: torch.Tensor, label: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Edited picture (batch, 3, height, width), and attention (batch, 1, height, width)."""
        attention, colour = self.generator(source, self.embedding(label))
        return compose(source, attention, colour), attention

    def forward(self, source: torch.Tensor, label: torch.Tensor, back: torch.Tensor):
        """Edited picture and attention, and those of its edit by the label that leads back to the source."""
        edited, attention = self.edit(source, label)
        return edited, attention, *self.edit(edited, back)


class Judged(torch.nn.Module):
    """The critic under one forward, as the loop trains it."""

    def __init__(self, critic: GANimationCritic):
        super().__init__()
        self.critic = critic

    def forward(self, source: torch.Tensor, target: torch.Tensor, edited: torch.Tensor, share: torch.Tensor):
        """Realness of target and edited picture, labels of source and target, and norms (batch,) of the
        gradient between target and edited picture; share: (batch,), 0..1, of the target there."""
        realness, labels = self.critic(torch.cat([source, target, edited]))
        (_, real, fake), (own, wanted, _) = realness.chunk(3), labels.chunk(3)
        between = torch.lerp(edited, target, share[:, None, None, None])
        return real, fake, own, wanted, gradient_norms(self.critic, between)


@dataclass(frozen=True)
class Batch:
    """Pictures and labels of one update.

    source, target: (batch, 3, height, width) in [-1, 1]. own, wanted: (batch, labels), of source and target.
    given, back: (batch, labels), what the generator gets to edit the source, and to undo that. warped, share:
    (batch,), 1 where the target is a warp of the source, and a random number.
    """

    source: torch.Tensor
    target: torch.Tensor
    own: torch.Tensor
    wanted: torch.Tensor
    given: torch.Tensor
    back: torch.Tensor
    warped: torch.Tensor
    share: torch.Tensor


class Samples(torch.utils.data.Dataset):
    """`updates` pairs each, with their labels and a random share, all a function of (seed, n)."""

    def __init__(self, pairs: PairDataset, updates: int, relative: bool, seed: int):
        self.pairs, self.updates, self.relative, self.seed = pairs, updates, relative, seed

    def __getitem__(self, n: int) -> dict[str, torch.Tensor]:
        numbers = range(n * self.updates, (n + 1) * self.updates)
        return torch.utils.data.default_collate([self._pair(number) for number in numbers])

    def _pair(self, n: int) -> dict[str, torch.Tensor]:
        pair = self.pairs[n]  # before its draw, which avoids pictures that turned out to be unusable
        draw = self.pairs.pair(n)
        intensities = self.pairs.records[draw.source].action_units + draw.source_command
        own, change = torch.from_numpy(intensities) / FULL_INTENSITY, pair["au_delta"] / FULL_INTENSITY
        share = np.random.default_rng((self.seed, n, 1)).random(dtype=np.float32)
        return {
            "source": pair["source"],
            "target": pair["target"],
            "own": own,
            "wanted": own + change,
            "given": change if self.relative else own + change,
            "back": -change if self.relative else own,
            "warped": torch.tensor(pair["kind"] == WARPED, dtype=torch.float32),
            "share": torch.tensor(share),
        }


class GANimation(Method):
    """Generator and embedding by one optimizer, the critic by another."""

    def __init__(self, config: TrainConfig, accelerator: Accelerator):
        self.config, self.accelerator = config, accelerator
        settings = self.settings = settings_of(config, GANimationSettings)
        refuse_unused(config, UNUSED)
        if config.mixed_precision == "fp16":
            raise TrainingError(
                "--objective ganimation needs --mixed_precision bf16 or no, got fp16: its gradient penalty "
                "would overflow"
            )
        if settings.critic_steps > 1 and not config.lr_scheduler.startswith("constant"):
            raise TrainingError(
                "--lr_scheduler must be constant or constant_with_warmup unless settings critic_steps is 1, "
                f"got {config.lr_scheduler}: a schedule counts updates, of which the critic has more"
            )
        try:
            check_resolution(config.resolution)
        except ValueError as error:
            raise TrainingError(f"{error}; see --resolution") from error
        labelled = read_description(Path(config.data_folder()))["action_units"]
        self.vocabulary = vocabulary_of(settings.action_units.split() or labelled)
        if config.warped and (unknown := [name for name in self.vocabulary if name not in SHAPES]):
            raise TrainingError(
                f"--warped {config.warped:g} needs action units of the muscle model, which has none for "
                f"{', '.join(unknown)}; set --warped to 0, or name others by settings action_units"
            )
        self.pairs = self._open_data("train", config.warped)
        pipeline = self._pipeline()
        self.relative = pipeline.config.relative
        self.edits = Edits(pipeline.generator, pipeline.embedding)
        self.judged = Judged(pipeline.critic)

    def _pipeline(self) -> GANimationPipeline:
        """The networks at their start."""
        settings, config = self.settings, self.config
        if not settings.transfer_from:
            labels, style = len(self.vocabulary), settings.style_size
            return GANimationPipeline(
                GANimationGenerator(settings.channels, settings.blocks, style, settings.residual),
                LabelEmbedding(labels, style),
                GANimationCritic(config.resolution, settings.critic_channels, labels),
                resolution=config.resolution,
                relative=settings.relative,
                **self.vocabulary.to_index(),
            )
        if given := [name for name in OF_THE_FOLDER if name in (config.settings or {})]:
            raise TrainingError(f"settings {given[0]} is that of transfer_from; leave it out")
        try:
            trained = GANimationPipeline.from_pretrained(settings.transfer_from)
        except (OSError, ValueError) as error:
            raise TrainingError(f"settings transfer_from: {error}") from error
        if trained.config.resolution != config.resolution:
            size = trained.config.resolution
            raise TrainingError(
                f"settings transfer_from: {settings.transfer_from} needs --resolution {size}, "
                f"got {config.resolution}"
            )
        pipeline = trained.with_labels(**self.vocabulary.to_index())
        pipeline.generator.requires_grad_(False)
        return pipeline

    def modules(self) -> dict[str, torch.nn.Module]:
        return {"generator": self.edits, "critic": self.judged}

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {name: self._adam(module) for name, module in self.modules().items()}

    def _adam(self, module: torch.nn.Module) -> torch.optim.Optimizer:
        config, trained = self.config, [p for p in module.parameters() if p.requires_grad]
        betas = (config.adam_beta1, config.adam_beta2)
        return torch.optim.Adam(trained, lr=config.learning_rate, betas=betas, eps=config.adam_epsilon)

    def _open_data(self, split: str, warped: float, held_out: bool = False) -> PairDataset:
        return PairDataset(
            self.config.data_folder(),
            split=split,
            warped=warped,
            action_units=self.vocabulary,
            relations=False,
            zero_keeps=True,  # else a dropped label would be that of another picture
            **pair_settings(self.config, held_out),
        )

    def data_digest(self) -> str:
        return self.pairs.digest

    def samples(self) -> Samples:
        return Samples(self.pairs, self.settings.critic_steps, self.relative, self.config.seed)

    def losses(self, batch: dict, networks) -> Losses:
        device = self.accelerator.device
        updates = zip(*(values.to(device).unbind(1) for values in batch.values()), strict=True)
        for part in (Batch(**dict(zip(batch, values, strict=True))) for values in updates):
            yield "critic", *self._critics_loss(part, networks["critic"])
        yield "generator", *self._generators_loss(part, networks["generator"])

    def held_out(self) -> Samples | None:
        """Warped pairs, whose target is known; without such there is no loss to validate.

        The losses of a step are judged by a critic that learns too, so that those of two steps cannot be
        compared, and a generator that changes nothing has the best cycle.
        """
        if not self.config.warped:
            return None
        pairs = self._open_data("validation", 1.0, held_out=True)
        return Samples(pairs, 1, self.relative, pairs.seed)

    def validate(self, batch: dict, networks) -> dict[str, torch.Tensor]:
        """The mean squared difference of edited pictures and known targets."""
        source, target, given = (
            batch[name].flatten(0, 1).to(self.accelerator.device) for name in ("source", "target", "given")
        )
        with self.accelerator.autocast():
            edited, _ = self.edits.edit(source, given)
        known = torch.ones(len(source), device=source.device)
        return {"loss": known_target(edited.float(), target, known).mean()}

    def _critics_loss(self, batch: Batch, critic: torch.nn.Module) -> tuple[torch.Tensor, Mapping]:
        settings = self.settings
        with self.accelerator.autocast():
            with torch.no_grad():
                edited, _ = self.edits.edit(batch.source, batch.given)
            judgement = critic(batch.source, batch.target, edited, batch.share)
        real, fake, own, found, norms = (values.float() for values in judgement)
        if self.relative:
            read = expression(found - own, batch.wanted - batch.own)
        else:
            read = (expression(own, batch.own) + expression(found, batch.wanted)) / 2
        parts = {
            "realness": criticism(real, fake).mean(),
            "penalty": gradient_penalty(norms).mean(),
            "expression": read.mean(),
        }
        weights = 1.0, settings.gradient_penalty_weight, settings.expression_weight
        return sum(w * part for w, part in zip(weights, parts.values(), strict=True)), parts

    def _generators_loss(self, batch: Batch, edits: torch.nn.Module) -> tuple[torch.Tensor, Mapping]:
        settings = self.settings
        with self.accelerator.autocast():
            output = edits(batch.source, batch.given, batch.back)
            edited, attention, returned, second = (values.float() for values in output)
            realness, found = self.judged.critic(edited)
            wanted = batch.wanted
            if self.relative:
                with torch.no_grad():
                    own = self.judged.critic(batch.source)[1]
                found, wanted = found - own, wanted - batch.own
        costs = (attention_cost(mask, settings.smoothness_weight) for mask in (attention, second))
        parts = {
            "realness": -realness.float().mean(),
            "expression": expression(found.float(), wanted).mean(),
            "cycle": cycle(returned, batch.source).mean(),
            "attention": sum(costs).mean(),
            "known_target": known_target(edited, batch.target, batch.warped).mean(),
        }
        weights = (
            *(1.0, settings.expression_weight, settings.cycle_weight, settings.attention_weight),
            settings.known_target_weight,
        )
        return sum(w * part for w, part in zip(weights, parts.values(), strict=True)), parts

    # -- results --

    def _result(self) -> GANimationPipeline:
        """A copy of the networks in their present state."""
        networks = copy.deepcopy((self.edits.generator, self.edits.embedding, self.judged.critic))
        for network in networks:
            torch.nn.Module.to(network.eval().requires_grad_(False), "cpu")
        return GANimationPipeline(
            *networks,
            resolution=self.config.resolution,
            relative=self.relative,
            **self.vocabulary.to_index(),
        )

    @functools.cached_property
    def _previewed(self) -> list[dict]:
        opened = functools.partial(self._open_data, "validation", self.config.warped)
        return faces_to_preview(opened, self.pairs, self.config.validation_faces)

    def preview(self) -> np.ndarray:
        """For each of some faces, a row of the source and its edits, and a row of their attention."""
        pipeline, rows = self._result(), []
        for example in self._previewed:
            source, requests = (example["source"] + 1) / 2, example["au_deltas"]
            output = pipeline(source.expand(len(requests), -1, -1, -1), requests, output_type="pt")
            masks = output.attention[:, None].expand_as(output.images)
            rows.append(torch.cat([source, *output.images], dim=-1))
            rows.append(torch.cat([torch.zeros_like(source), *masks], dim=-1))
        return to_pixels(torch.cat(rows, dim=-2) * 2 - 1)

    def export(self, folder: Path, step: int, samples_seen: int) -> None:
        counts = {
            "generator_steps": step,
            "critic_steps": step * self.settings.critic_steps,
            "pairs_seen": samples_seen * self.settings.critic_steps,
        }
        introduction = INTRODUCTION.format(resolution=self.config.resolution)
        publish_family(
            self._result(), self.config, self.pairs, folder, counts, tag="gan", introduction=introduction
        )
