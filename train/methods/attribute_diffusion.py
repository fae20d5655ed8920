"""Attribute diffusion: a diffusion model of pixels that sees the source picture and attributes of the target.

It learns to remove noise (Ho et al. 2020, arXiv:2006.11239). A contrastive term (InfoNCE; van den Oord et al.
2018, arXiv:1807.03748) keeps an edit nearer to its own source than to those of other people of the batch.
"""

import copy
import functools
import itertools
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import DDIMScheduler, UNet2DModel

from magicedit.action_units import NAMES, STRENGTH_RANGE
from magicedit.data.description import read_description
from magicedit.data.pairs import PairDataset, Record, UnusablePictureError
from magicedit.errors import TrainingError
from magicedit.imaging import to_pixels
from magicedit.pipelines.pipeline_attribute_diffusion import (
    WHOLE,
    AttributeDiffusionPipeline,
    AttributeEmbedding,
)
from magicedit.train.config import TrainConfig, refuse_unused, settings_of
from magicedit.train.methods import Losses, Method
from magicedit.train.objectives import add_noise
from magicedit.train.publish import publish_family
from magicedit.train.samples import faces_to_preview
from magicedit.train.validation import pair_settings
from magicedit.vocabulary import Control, Vocabulary

logger = logging.getLogger(__name__)

# Attributes that warps by muscles give, in intensity steps; names of CelebA's attributes where it has them
MUSCLES: dict[str, dict[str, float]] = {
    "Smiling": {"AU4": -2.0, "AU6": 3.0, "AU12": 6.0},
    "Mouth_Slightly_Open": {"AU25": 3.0, "AU26": 1.0},
    "Mouth_Wide_Open": {"AU25": 1.0, "AU26": 3.5},
    "Narrow_Eyes": {"AU5": -3.0, "AU6": 3.0},
    "Wide_Eyes": {"AU5": 4.0},
    "Raised_Eyebrows": {"AU1": 4.0, "AU2": 4.0},
    "Raised_Inner_Eyebrows": {"AU1": 4.0, "AU4": 1.5},
    "Lowered_Eyebrows": {"AU4": 5.0},
    "Wrinkled_Nose": {"AU9": 4.5},
    "Lowered_Mouth_Corners": {"AU15": 3.5, "AU17": 2.0},
    "Stretched_Lips": {"AU20": 3.5},
}
EMOTIONS: dict[str, dict[str, float]] = {  # as shares of attributes
    "happiness": {"Smiling": 1.0, "Mouth_Slightly_Open": 0.6},
    "sadness": {"Raised_Inner_Eyebrows": 1.0, "Lowered_Mouth_Corners": 1.0},
    "surprise": {"Raised_Eyebrows": 0.9, "Wide_Eyes": 0.8, "Mouth_Wide_Open": 0.9},
    "fear": {"Raised_Inner_Eyebrows": 1.0, "Raised_Eyebrows": 0.4, "Wide_Eyes": 1.0, "Stretched_Lips": 1.0,
             "Mouth_Slightly_Open": 0.4},
    "anger": {"Lowered_Eyebrows": 1.0, "Wide_Eyes": 0.7, "Lowered_Mouth_Corners": 0.6},
    "disgust": {"Wrinkled_Nose": 1.0, "Lowered_Eyebrows": 0.3, "Lowered_Mouth_Corners": 0.7},
}  # fmt: skip
COUNTS = (1, 1, 2, 3)  # how many attributes a warp shows, equally likely
TOGETHER = 0.3  # probability of the attributes of an emotion instead
SHARES = (0.3, 1.25)  # how far a warp shows an attribute
REVERSED = 0.2  # probability of a warp whose source shows the attributes, and whose target does not
UNSAID = 0.5  # probability that an attribute of a real target is not told, see `relative`
MOST_WEIGHT = 4.0  # of a squared error of clean pictures: that of half noise
INTRODUCTION = """Attribute diffusion (after Ho et al. 2020, [arXiv:2006.11239](https://arxiv.org/abs/2006.11239))
for the `magicedit` package: it samples face crops of {resolution} px that show other attributes than the
source."""
UNUSED = (
    *("pretrained_model_name_or_path", "base_model", "lora_rank", "compile", "use_8bit_adam"),
    *("freeze_reference", "gradient_checkpointing", "refine", "zero_keeps", "snr_gamma"),
)


@dataclass(frozen=True)
class AttributeSettings:
    """`settings` of the objective `attribute-diffusion`.

    Attributes:
        attributes: those of a vector, in order, separated by spaces; "": those that the muscles can warp
            where all pairs are warped, else all that the dataset is labelled with.
        predicts: "noise", as published, or "picture": the difference of the clean picture to the source, from
            which the noise follows.
        relative: whether a vector tells of a real target only in what its labels differ from the source's.
            Else it tells the labels of the target, each with a probability of one half.
        regions: whether pixels count by region: lips and eyes more, and in real pairs not where source and
            target cannot be compared, see `PairDataset`.
        contrastive_weight, temperature: of the contrastive term.
        feature_channels: of the network whose features it compares, at its first level.
        noise_level: that the saved pipeline uses by default, see its `__call__`.
    """

    attributes: str = ""
    predicts: str = "noise"
    relative: bool = False
    regions: bool = False
    contrastive_weight: float = 0.01
    temperature: float = 0.1
    feature_channels: int = 16
    noise_level: float = 1.0

    def __post_init__(self) -> None:
        if self.predicts not in ("noise", "picture"):
            raise TrainingError(f"settings predicts must be noise or picture, got {self.predicts}")
        if not 0 <= self.contrastive_weight < math.inf:
            got = self.contrastive_weight
            raise TrainingError(f"settings contrastive_weight must be 0 or more, got {got}")
        if not 0 < self.temperature < math.inf:
            raise TrainingError(f"settings temperature must be above 0, got {self.temperature}")
        if self.feature_channels < 1:
            raise TrainingError(f"settings feature_channels must be at least 1, got {self.feature_channels}")
        if not 0 <= self.noise_level <= 1:
            raise TrainingError(f"settings noise_level must be from 0 to 1, got {self.noise_level}")


def attribute_vocabulary(attributes: tuple[str, ...]) -> tuple[Vocabulary, dict[str, dict[str, float]]]:
    """Attributes, then the emotions that are combinations of them, and these combinations.

    Five steps are a whole one; what `--emotion` allows is in their range. Happiness is a smile alone where
    there is no attribute for parted lips.
    """
    known = EMOTIONS | ({} if "Mouth_Slightly_Open" in attributes else {"happiness": {"Smiling": 1.0}})
    combinations = {name: parts for name, parts in known.items() if parts.keys() <= set(attributes)}
    most = WHOLE * STRENGTH_RANGE[1]
    controls = [
        Control(name, name.replace("_", " ").lower(), "face", range=(-most, most), kind="attribute")
        for name in attributes
    ]
    controls += [
        Control(name, f"the expression of {name}", "face", range=(-most, most), kind="emotion")
        for name in combinations
    ]
    return Vocabulary(controls), combinations


# --- Loss terms ---------------------------------------------------------------------------------------------


def noise_error(found: torch.Tensor, noise: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """`mean weight (e^ - e)^2` (Ho et al. 2020, eq. 14); (batch, 3, height, width), weight with 1 channel."""
    return (weight * (found - noise).pow(2)).mean()


def picture_error(
    clean: torch.Tensor, target: torch.Tensor, alphas: torch.Tensor, weight: torch.Tensor
) -> torch.Tensor:
    """`mean weight w_t (x^ - x)^2` with `w_t = min(1 / s_t^2, MOST_WEIGHT)`.

    `1 / s_t^2 = 1 + SNR` (Salimans & Ho 2022, arXiv:2202.00512, section 4); the noise's own error is the same
    with the weight SNR, by which noise alone teaches nothing.

    clean, target: (batch, 3, height, width). alphas: (batch,), cumulative. weight: (batch, 1, height, width).
    """
    by_time = (1 / (1 - alphas)).clamp(max=MOST_WEIGHT).view(-1, 1, 1, 1)
    return (by_time * weight * (clean - target).pow(2)).mean()


def info_nce(
    edits: torch.Tensor, sources: torch.Tensor, people: torch.Tensor, temperature: float
) -> torch.Tensor:
    """`-log( exp(e_i . s_i / T) / sum_j exp(e_i . s_j / T) )` (van den Oord et al. 2018, eq. 4), (batch,).

    j runs over i and all samples of other people.

    edits, sources: (batch, features), of norm 1. people: (batch,), numbers of the people.
    """
    likeness = edits @ sources.T / temperature  # (batch, batch)
    same = people[:, None] == people[None]
    same.fill_diagonal_(False)
    likeness = likeness.masked_fill(same, -math.inf)
    return likeness.logsumexp(dim=1) - likeness.diagonal()


# --- What is trained ----------------------------------------------------------------------------------------


class Features(torch.nn.Module):
    """Pictures to vectors of norm 1 for the contrastive term: strided convolutions and their mean.

    channels: of the first of four levels; a vector has 8 times as many numbers.
    """

    def __init__(self, channels: int):
        super().__init__()
        widths, layers = (3, *(channels << level for level in range(4))), []
        for before, after in itertools.pairwise(widths):
            layers += [
                torch.nn.Conv2d(before, after, 3, stride=2, padding=1),
                torch.nn.GroupNorm(1, after),
                torch.nn.SiLU(),
            ]
        self.layers = torch.nn.Sequential(*layers)
        self.out = torch.nn.Linear(widths[-1], widths[-1])

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """(batch, 3, height, width) in [-1, 1] to (batch, 8 * channels)."""
        features = self.layers(pictures).mean(dim=(2, 3))
        return torch.nn.functional.normalize(self.out(features), dim=1)


class Denoising(torch.nn.Module):
    """UNet, embedding and features under one forward, as the loop trains them."""

    def __init__(self, pipeline: AttributeDiffusionPipeline, features: Features):
        super().__init__()
        self.unet, self.embedding, self.features = pipeline.unet, pipeline.embedding, features
        self.predicts_noise = pipeline.scheduler.config.prediction_type == "epsilon"

    def forward(
        self,
        noisy: torch.Tensor,
        source: torch.Tensor,
        timesteps: torch.Tensor,
        attributes: torch.Tensor,
        alphas: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Noise or clean picture, (batch, 3, height, width), and features of clean picture and source.

        alphas: (batch,), cumulative, of the timesteps.
        """
        inputs = torch.cat([noisy, source], dim=1)
        output = self.unet(inputs, timesteps, class_labels=self.embedding(attributes)).sample
        found = output if self.predicts_noise else source + output
        clean = found
        if self.predicts_noise:
            wide = alphas.view(-1, 1, 1, 1)
            clean = (noisy - (1 - wide).sqrt() * output) / wide.sqrt()
        edits, sources = self.features(torch.cat([clean.clamp(-1, 1), source])).chunk(2)
        return found, edits, sources


# --- Data ---------------------------------------------------------------------------------------------------


class Samples(torch.utils.data.Dataset):
    """Pairs with attributes, noise, timestep and number of the person, all a function of (seed, n).

    attributes: names in order. relative, regions: see `AttributeSettings`.
    """

    def __init__(
        self,
        pairs: PairDataset,
        attributes: tuple[str, ...],
        timesteps: int,
        relative: bool,
        regions: bool,
    ):
        self.pairs, self.attributes, self.timesteps = pairs, attributes, timesteps
        self.relative, self.regions = relative, regions
        known = [name for name in attributes if name in MUSCLES]
        commands = [NAMES.vector(MUSCLES.get(name, {})) for name in attributes]
        self.warps = np.stack(commands)  # (attributes, aus)
        self.warped = [attributes.index(name) for name in known]
        self.emotions = [parts for parts in EMOTIONS.values() if parts.keys() <= set(known)]
        people = sorted({record.identity for record in pairs.records})
        self.people = {name: number for number, name in enumerate(people)}

    def __getitem__(self, n: int) -> dict[str, torch.Tensor]:
        while True:
            try:
                return self._sample(n)
            except UnusablePictureError:  # `pair` draws another one now
                continue

    def _sample(self, n: int) -> dict[str, torch.Tensor]:
        draw, rng = self.pairs.pair(n), np.random.default_rng((self.pairs.seed, n, 1))
        if draw.warped:
            vector, reverse = self.shown(rng), rng.random() < REVERSED
            nothing, command = np.zeros(len(NAMES), np.float32), vector @ self.warps
            source, target = (command, nothing) if reverse else (nothing, command)
            vector = np.zeros_like(vector) if draw.dropped else -vector if reverse else vector
            target = source if draw.dropped else target
            draw = draw._replace(source_command=source, target_command=target)
        else:
            vector = self.told(*(self.pairs.records[n] for n in (draw.source, draw.target)), rng)
            vector = np.zeros_like(vector) if draw.dropped else vector
        pair, size = self.pairs.sample(draw), self.pairs.resolution
        weight = pair["weight"] if self.regions else torch.ones(size, size)
        return {
            "source": pair["source"],
            "target": pair["target"],
            "weight": weight[None],
            "attributes": torch.from_numpy(vector),
            "noise": torch.from_numpy(rng.standard_normal((3, size, size), dtype=np.float32)),
            "timestep": torch.tensor(rng.integers(self.timesteps)),
            "person": torch.tensor(self.people[self.pairs.records[draw.source].identity]),
        }

    def shown(self, rng: np.random.Generator) -> np.ndarray:
        """A random vector (attributes,) of what a warp shows."""
        vector = np.zeros(len(self.attributes), np.float32)
        if self.emotions and rng.random() < TOGETHER:
            parts = self.emotions[rng.integers(len(self.emotions))]
            for name, share in parts.items():
                vector[self.attributes.index(name)] = share
            return vector * np.float32(rng.uniform(*SHARES))
        count = min(COUNTS[rng.integers(len(COUNTS))], len(self.warped))
        chosen = rng.choice(self.warped, count, replace=False)
        vector[chosen] = rng.uniform(*SHARES, count)
        return vector

    def told(self, source: Record, target: Record, rng: np.random.Generator) -> np.ndarray:
        """The vector (attributes,) of a real pair, see `AttributeSettings.relative`."""
        own, wanted = (
            np.array([name in record.attributes for name in self.attributes], np.float32)
            for record in (source, target)
        )
        if self.relative:
            return wanted - own
        return (2 * wanted - 1) * (rng.random(len(wanted)) >= UNSAID).astype(np.float32)


class AttributeDiffusion(Method):
    """UNet, embedding and features by one optimizer."""

    def __init__(self, config: TrainConfig, accelerator: Accelerator):
        self.config, self.accelerator = config, accelerator
        settings = self.settings = settings_of(config, AttributeSettings)
        refuse_unused(config, UNUSED)
        widths = config.block_out_channels
        if config.resolution % (1 << (len(widths) - 1)):
            raise TrainingError(
                f"--resolution must be a multiple of {1 << (len(widths) - 1)} for {len(widths)} levels of "
                f"--block_out_channels, got {config.resolution}"
            )
        attributes = self._attributes()
        self.pairs = self._open_data("train")
        self.vocabulary, combinations = attribute_vocabulary(attributes)
        levels, width = len(widths), 4 * widths[0]
        unet = UNet2DModel(
            sample_size=config.resolution,
            in_channels=6,
            out_channels=3,
            down_block_types=("DownBlock2D",) * levels,
            up_block_types=("UpBlock2D",) * levels,
            block_out_channels=widths,
            layers_per_block=config.layers_per_block,
            norm_num_groups=math.gcd(32, *widths),
            class_embed_type="identity",
            resnet_time_scale_shift="scale_shift",
        )
        if settings.predicts == "picture":
            scheduler = DDIMScheduler(
                beta_schedule="squaredcos_cap_v2", prediction_type="sample", clip_sample=False
            )
            for parameter in unet.conv_out.parameters():  # so that the first edits are their sources
                torch.nn.init.zeros_(parameter)
        else:
            scheduler = DDIMScheduler(clip_sample=False)  # the schedule of Ho et al. 2020
        self.attributes = attributes
        self.pipeline = AttributeDiffusionPipeline(
            unet,
            AttributeEmbedding(len(attributes), width),
            scheduler,
            resolution=config.resolution,
            combinations=combinations or None,
            default_noise_level=settings.noise_level,
            default_steps=config.default_steps,
            default_guidance_scale=config.default_guidance_scale,
            **self.vocabulary.to_index(),
        )
        self.network = Denoising(self.pipeline, Features(settings.feature_channels))

    def _attributes(self) -> tuple[str, ...]:
        """The names of a vector. TrainingError where the data cannot show one of them."""
        config, folder = self.config, self.config.data_folder()
        labelled = read_description(folder).get("attributes", [])
        chosen = tuple(self.settings.attributes.split()) or tuple(MUSCLES if config.warped == 1 else labelled)
        if config.warped < 1 and not labelled:
            raise TrainingError(
                f"{folder} is not labelled with attributes; prepare a dataset that is (--format celeba), or "
                "set --warped to 1 to learn from warps alone"
            )
        if config.warped and not set(MUSCLES) & set(chosen):
            raise TrainingError(
                f"--warped {config.warped:g} needs attributes that muscles can show: one of "
                f"{', '.join(MUSCLES)}"
            )
        if config.warped == 1 and (unknown := [name for name in chosen if name not in MUSCLES]):
            raise TrainingError(
                f"no warp shows {', '.join(unknown)}, only {', '.join(MUSCLES)}; set --warped below 1 and "
                "train on labelled photographs"
            )
        if config.warped < 1 and (unknown := [name for name in chosen if name not in labelled]):
            raise TrainingError(
                f"{folder} is not labelled with {', '.join(unknown)}; it has {', '.join(labelled)}"
            )
        return chosen

    def _open_data(self, split: str, held_out: bool = False) -> PairDataset:
        return PairDataset(
            self.config.data_folder(),
            split=split,
            warped=self.config.warped,
            relations=self.settings.regions,
            zero_keeps=self.settings.relative,
            **pair_settings(self.config, held_out),
        )

    def modules(self) -> dict[str, torch.nn.Module]:
        return {"denoiser": self.network}

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        config = self.config
        optimizer = torch.optim.AdamW(
            self.network.parameters(),
            lr=config.learning_rate,
            betas=(config.adam_beta1, config.adam_beta2),
            eps=config.adam_epsilon,
            weight_decay=config.adam_weight_decay,
        )
        return {"denoiser": optimizer}

    def data_digest(self) -> str:
        return self.pairs.digest

    def samples(self) -> Samples:
        return self._samples(self.pairs)

    def held_out(self) -> Samples:
        return self._samples(self._open_data("validation", held_out=True))

    def _samples(self, pairs: PairDataset) -> Samples:
        timesteps = self.pipeline.scheduler.config.num_train_timesteps
        settings = self.settings
        return Samples(pairs, self.attributes, timesteps, settings.relative, settings.regions)

    def losses(self, batch: dict, networks: Mapping[str, torch.nn.Module]) -> Losses:
        batch = {name: values.to(self.accelerator.device) for name, values in batch.items()}
        source, target, noise, weight = (batch[name] for name in ("source", "target", "noise", "weight"))
        timesteps, settings = batch["timestep"], self.settings
        alphas = self.pipeline.scheduler.alphas_cumprod.to(source.device)[timesteps]
        noisy = add_noise(target, noise, alphas)
        with self.accelerator.autocast():
            found, *features = networks["denoiser"](noisy, source, timesteps, batch["attributes"], alphas)
        if self.network.predicts_noise:
            error = noise_error(found.float(), noise, weight)
        else:
            error = picture_error(found.float(), target, alphas, weight)
        edits, sources = (values.float() for values in features)
        nearness = info_nce(edits, sources, batch["person"], settings.temperature)
        parts = {"error": error, "contrastive": (alphas * nearness).mean()}
        yield "denoiser", error + settings.contrastive_weight * parts["contrastive"], parts

    # -- results --

    def _result(self) -> AttributeDiffusionPipeline:
        """A copy of the networks in their present state."""
        networks = [copy.deepcopy(part) for part in (self.pipeline.unet, self.pipeline.embedding)]
        for network in networks:
            torch.nn.Module.to(network.eval().requires_grad_(False), "cpu")
        kept = {
            n: v for n, v in self.pipeline.config.items() if n not in self.pipeline.components and n[0] != "_"
        }
        return AttributeDiffusionPipeline(*networks, self.pipeline.scheduler, **kept)

    @functools.cached_property
    def _previewed(self) -> list[dict]:
        opened = functools.partial(self._open_data, "validation")
        return faces_to_preview(opened, self.pairs, self.config.validation_faces)

    def preview(self) -> np.ndarray:
        """For each of some faces, a row of the source and what each control makes of it."""
        pipeline, rows = self._result(), []
        requests = np.eye(len(self.vocabulary), dtype=np.float32) * WHOLE
        for example in self._previewed:
            source = (example["source"] + 1) / 2
            generator = [torch.Generator().manual_seed(self.config.seed) for _ in requests]
            sources = source.expand(len(requests), -1, -1, -1)
            images = pipeline(sources, requests, generator=generator, output_type="pt").images
            rows.append(torch.cat([source, *images], dim=-1))
        return to_pixels(torch.cat(rows, dim=-2) * 2 - 1)

    def export(self, folder: Path, step: int, samples_seen: int) -> None:
        counts = {"optimiser_steps": step, "pairs_seen": samples_seen}
        introduction = INTRODUCTION.format(resolution=self.config.resolution)
        result = self._result()
        publish_family(
            result, self.config, self.pairs, folder, counts, tag="diffusion", introduction=introduction
        )
