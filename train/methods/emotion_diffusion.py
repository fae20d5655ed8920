"""Emotion latent diffusion: an autoencoder, and a denoiser of its latents conditional on an emotion.

`emotion-vae` trains a small autoencoder where there is none of Stable Diffusion; `emotion-diffusion` trains
the denoiser on the latents of either (Rombach et al. 2022, arXiv:2112.10752).
"""

import copy
import json
import logging
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DModel

from magicedit.action_units import EMOTIONS, NAMES, STRENGTH_RANGE
from magicedit.data.affectnet import NEUTRAL
from magicedit.data.pairs import PairDataset
from magicedit.errors import DatasetError, TrainingError
from magicedit.imaging import to_pixels, to_tensor
from magicedit.pipelines.pipeline_emotion_diffusion import WHOLE, EmotionDiffusionPipeline
from magicedit.train.config import TrainConfig, refuse_unused, settings_of
from magicedit.train.methods import Losses, Method
from magicedit.train.objectives import add_noise
from magicedit.train.publish import publish_family
from magicedit.train.throughput import uncounted
from magicedit.train.validation import MEMORY, held_out_config
from magicedit.vocabulary import Control, Vocabulary
from magicedit.warping import displacement_fields, embedded_mouths, warp_photo

logger = logging.getLogger(__name__)

CLASSES = (NEUTRAL, *EMOTIONS)
ANY = len(CLASSES)  # the class of pictures whose emotion is dropped
AT_REST, SMILING = 2.0, 2.5  # steps: all units at most, for neutral; AU12 at least, for a real smile
REAL_SMILES = 0.2  # share among pictures of happiness, where there are any
PICTURES_HELD = 2**30  # bytes of warped pictures that one process keeps
MOST_WEIGHT = 4.0  # of a squared error of clean latents: that of half noise
SCALING_PICTURES = 512  # from which the spread of latents is measured
INTRODUCTION = """Emotion latent diffusion (Rombach et al. 2022,
[arXiv:2112.10752](https://arxiv.org/abs/2112.10752)) for the `magicedit` package: it changes the emotion of
face crops of {resolution} px by DDIM inversion (Song et al. 2021,
[arXiv:2010.02502](https://arxiv.org/abs/2010.02502))."""
UNUSED = ("base_model", "lora_rank", "compile", "use_8bit_adam", "freeze_reference", "gradient_checkpointing",
          "refine", "warped", "snr_gamma")  # fmt: skip


@dataclass(frozen=True)
class EmotionSettings:
    """`settings` of the objectives `emotion-vae` and `emotion-diffusion`.

    Attributes:
        emotions: "muscles": photographs at rest, as they are and warped by the muscles of each emotion, and
            real smiles as happiness; "labels": photographs by the labels of the dataset.
        vae_channels: emotion-vae: width of its outermost level, doubled at each further one.
        vae_levels: emotion-vae: its levels; a latent stands for 2^(levels - 1) pixels a side.
        latent_channels: emotion-vae: channels of a latent.
        kl_weight: emotion-vae: of the divergence to a standard normal, summed over a picture's latents, in
            the loss beside the mean absolute error of a pixel.
        counterfactual: emotion-diffusion: share of samples whose noisy latents are of the same photograph
            with the emotion of its twin (see `Samples`); only warps have such twins. Not in the paper.
        noise_level: emotion-diffusion: that the saved pipeline uses by default, see its `__call__`.
    """

    emotions: str = "muscles"
    vae_channels: int = 16
    vae_levels: int = 3
    latent_channels: int = 4
    kl_weight: float = 1e-6
    counterfactual: float = 0.0
    noise_level: float = 0.5

    def __post_init__(self) -> None:
        if self.emotions not in ("muscles", "labels"):
            raise TrainingError(f"settings emotions must be muscles or labels, got {self.emotions}")
        for name in ("vae_channels", "vae_levels", "latent_channels"):
            if getattr(self, name) < 1:
                raise TrainingError(f"settings {name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.kl_weight < math.inf:
            raise TrainingError(f"settings kl_weight must be 0 or more, got {self.kl_weight}")
        for name in ("counterfactual", "noise_level"):
            if not 0 <= getattr(self, name) <= 1:
                raise TrainingError(f"settings {name} must be from 0 to 1, got {getattr(self, name)}")


def emotion_vocabulary() -> Vocabulary:
    """The six emotions; five steps are a whole one, and what `--emotion` allows is in their range."""
    most = WHOLE * STRENGTH_RANGE[1]
    return Vocabulary(
        Control(name, f"the expression of {name}", "face", range=(-most, most), kind="emotion")
        for name in EMOTIONS
    )


# --- Data ---------------------------------------------------------------------------------------------------


class EmotionPictures:
    """Pictures of people by emotion.

    members: records of each class of `CLASSES`; `real`: those that show happiness themselves, by muscles.
    """

    def __init__(self, pairs: PairDataset, emotions: str, memory: int = PICTURES_HELD):
        """memory: bytes of warped pictures to keep. Raises TrainingError where a class has no picture."""
        self.pairs, self.warps = pairs, emotions == "muscles"
        self._held: dict[int, list[np.ndarray]] = {}  # by record
        self._most = memory // (3 * len(EMOTIONS) * pairs.resolution**2)
        if self.warps:
            labels = np.stack([record.action_units for record in pairs.records])  # (photographs, aus)
            resting = (labels <= AT_REST).all(1).nonzero()[0].tolist()
            self.real = (labels[:, NAMES.index("AU12")] >= SMILING).nonzero()[0].tolist()
            self.members = [resting for _ in CLASSES]
            if not resting:
                raise TrainingError(
                    f"no photograph of {pairs.folder} is at rest (all units at {AT_REST:g} steps or less), "
                    "so none can be warped to the emotions; add neutral photographs, or label emotions and "
                    "set settings emotions to labels"
                )
            return
        shown = [record.emotion for record in pairs.records]
        self.real = []
        self.members = [[n for n, name in enumerate(shown) if name == emotion] for emotion in CLASSES]
        if missing := [name for name, own in zip(CLASSES, self.members, strict=True) if not own]:
            raise TrainingError(
                f"no photograph of {pairs.folder} is labelled {', '.join(missing)}; prepare a dataset with "
                "emotions (--format affectnet), or set settings emotions to muscles"
            )

    def draw(self, place: np.random.Generator, own: np.random.Generator, emotion: int) -> tuple[int, int]:
        """A record of a class, and the class by which it is warped; 0: it is not.

        place: equal ones choose the same photograph of classes that have the same photographs.
        """
        if emotion == ANY:
            return int(place.integers(len(self.pairs))), 0
        if self.real and CLASSES[emotion] == "happiness" and own.random() < REAL_SMILES:
            return int(place.choice(self.real)), 0
        return int(place.choice(self.members[emotion])), emotion if self.warps else 0

    def picture(self, record: int, warp: int, mirrored: bool = False) -> torch.Tensor:
        """(3, resolution, resolution) in [-1, 1]; an opened mouth shows teeth of an embedded one."""
        if warp:
            warps = self._held[record] if record in self._held else self._warped(record)
            if len(self._held) < self._most:
                self._held[record] = warps
            found = to_tensor(warps[warp - 1])
        else:
            found = self.pairs.record_images(record)[0]
        return found.flip(-1) if mirrored else found

    def _warped(self, record: int) -> list[np.ndarray]:
        """A record's picture, (resolution, resolution, 3) uint8, warped to each emotion."""
        size, landmarks = self.pairs.resolution, self.pairs.landmarks(record)
        stride = next(s for s in (8, 4, 2, 1) if s == 1 or (size % s == 0 and size // s >= 24))
        fields = displacement_fields(landmarks, size, NAMES, stride)
        pixels, mouth = to_pixels(self.picture(record, 0)), embedded_mouths()[record % len(embedded_mouths())]
        commands = [NAMES.vector(command) for command in EMOTIONS.values()]
        return [warp_photo(pixels, fields, command, landmarks, mouth) for command in commands]


class Samples(torch.utils.data.Dataset):
    """Pictures with class, noise and timestep of their step, a function of (seed, n).

    Where they are twins, two neighbouring samples share noise, timestep, mirroring and, by muscles, the
    photograph, so that a batch shows what its emotions differ in; half of the pairs have a neutral one.

    latent_shape: of the noise. timesteps: of the noise schedule. decodes: whether samples have the picture
    itself, beside record, warp and mirroring that name it.
    """

    def __init__(
        self,
        pictures: EmotionPictures,
        config: TrainConfig,
        latent_shape: tuple[int, int, int],
        timesteps: int = 1,
        decodes: bool = True,
        twins: bool = False,
    ):
        self.pictures, self.latent_shape = pictures, latent_shape
        self.timesteps, self.decodes, self.twins = timesteps, decodes, twins
        self.seed, self.mirrors, self.dropout = config.seed, config.augment, config.au_dropout

    def __getitem__(self, n: int) -> dict:
        shared = np.random.default_rng((self.seed, n // 2 if self.twins else n, 1))
        noise = shared.standard_normal(self.latent_shape, dtype=np.float32)
        share, mirrored = shared.random(), bool(self.mirrors and shared.random() < 0.5)
        emotions = shared.permutation(len(CLASSES))[:2]  # of the two samples
        if self.twins and shared.random() < 0.5 and emotions[1]:
            emotions[0] = 0
        exchanged = shared.random()
        own = np.random.default_rng((self.seed, n, 2))
        emotion = ANY if own.random() < self.dropout else int(emotions[n % 2])
        record, warp = self.pictures.draw(shared, own, emotion)
        place = (record, warp, mirrored)
        picture = {"picture": self.pictures.picture(*place)} if self.decodes else {}
        return picture | {
            "place": torch.tensor(place),
            "noise": torch.from_numpy(noise),
            "emotion": emotion,
            "exchanged": exchanged,
            "timestep": int(share * self.timesteps),
        }


def _open_pictures(
    config: TrainConfig, settings: EmotionSettings, split: str = "train", memory: int = PICTURES_HELD
) -> EmotionPictures:
    """Raises DatasetError where the split has no such pictures, TrainingError where a class has none."""
    pairs = PairDataset(
        config.data_folder(),
        split=split,
        resolution=config.resolution,
        seed=config.seed,
        warped=1.0,  # nobody needs two photographs
        max_bad_fraction=config.max_bad_fraction,
        augment=False,
        relations=False,
        teeth=False,
    )
    return EmotionPictures(pairs, settings.emotions, memory)


def _held_out_pictures(config: TrainConfig, settings: EmotionSettings) -> tuple[EmotionPictures, TrainConfig]:
    """Pictures of held-out people, and the settings of their samples; DatasetError where there are none."""
    held_out = held_out_config(config)
    try:
        return _open_pictures(held_out, settings, "validation", MEMORY), held_out
    except TrainingError as error:
        raise DatasetError(f"of the validation split: {error}") from error


# --- The autoencoder ----------------------------------------------------------------------------------------


class EmotionVAE(Method):
    """A small `AutoencoderKL` by mean absolute error and divergence; a base of the denoiser."""

    def __init__(self, config: TrainConfig, accelerator: Accelerator):
        self.config, self.accelerator = config, accelerator
        settings = self.settings = settings_of(config, EmotionSettings)
        refuse_unused(config, (*UNUSED, "pretrained_model_name_or_path", "push_to_hub"))
        levels = settings.vae_levels
        if config.resolution % (1 << (levels - 1)):
            raise TrainingError(
                f"--resolution must be a multiple of {1 << (levels - 1)} for {levels} levels, got "
                f"{config.resolution}"
            )
        self.pictures = _open_pictures(config, settings)
        self.vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=tuple(settings.vae_channels << level for level in range(levels)),
            layers_per_block=1,
            latent_channels=settings.latent_channels,
            norm_num_groups=math.gcd(settings.vae_channels, 8),
            sample_size=config.resolution,
            mid_block_add_attention=False,
        )
        self.network = Autoencoding(self.vae)

    def modules(self) -> dict[str, torch.nn.Module]:
        return {"vae": self.network}

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"vae": _adam(self.config, self.network)}

    def data_digest(self) -> str:
        return self.pictures.pairs.digest

    def samples(self) -> Samples:
        return self._samples(self.pictures, self.config)

    def held_out(self) -> Samples:
        return self._samples(*_held_out_pictures(self.config, self.settings))

    def _samples(self, pictures: EmotionPictures, config: TrainConfig) -> Samples:
        side = config.resolution >> (self.settings.vae_levels - 1)
        return Samples(pictures, config, (self.settings.latent_channels, side, side))

    def losses(self, batch: dict, networks) -> Losses:
        pictures, noise = (batch[name].to(self.accelerator.device) for name in ("picture", "noise"))
        with self.accelerator.autocast():
            again, divergence = networks["vae"](pictures, noise)
        parts = {"reconstruction": reconstruction(again, pictures), "divergence": divergence.mean()}
        yield "vae", parts["reconstruction"] + self.settings.kl_weight * parts["divergence"], parts

    @torch.no_grad()
    def preview(self) -> np.ndarray:
        """Rows of a picture of each emotion above what the autoencoder makes of it."""
        rows = []
        for column in _examples(self.pictures, self.config.validation_faces, self.accelerator.device):
            again = self.vae.decode(self.vae.encode(column).latent_dist.mode()).sample
            rows += [torch.cat([*column], dim=-1), torch.cat([*again], dim=-1)]
        return to_pixels(torch.cat(rows, dim=-2).cpu())

    @torch.no_grad()
    def export(self, folder: Path, step: int, samples_seen: int) -> None:
        samples, latents = self.samples(), []
        self.vae.eval()
        count = min(SCALING_PICTURES, len(CLASSES) * len(self.pictures.pairs))
        for n in range(count):
            picture = samples[n]["picture"][None].to(self.accelerator.device)
            latents.append(self.vae.encode(picture).latent_dist.mode())
        latents = torch.cat(latents)
        self.vae.register_to_config(
            scaling_factor=1 / float(latents.std()), shift_factor=float(latents.mean())
        )
        self.vae.train()
        self.vae.save_pretrained(folder / "vae")
        counts = {"optimiser_steps": step, "pictures_seen": samples_seen}
        (folder / "training.json").write_text(json.dumps(counts, indent=1) + "\n", encoding="utf-8")


class Autoencoding(torch.nn.Module):
    """Encoder and decoder under one forward, as the loop trains them."""

    def __init__(self, vae: AutoencoderKL):
        super().__init__()
        self.vae = vae

    def forward(self, pictures: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Pictures again, (batch, 3, height, width), and the divergence of their latents, (batch,).

        noise: (batch, channels, height, width) of latents, by which these are drawn.
        """
        posterior = self.vae.encode(pictures).latent_dist
        return self.vae.decode(posterior.mean + posterior.std * noise).sample, posterior.kl()


def reconstruction(again: torch.Tensor, pictures: torch.Tensor) -> torch.Tensor:
    """Mean absolute error of pictures in [-1, 1]."""
    return (again - pictures).abs().mean()


def clean_error(
    velocity: torch.Tensor, noisy: torch.Tensor, clean: torch.Tensor, alphas: torch.Tensor
) -> torch.Tensor:
    """`mean w_t |z^ - z|^2`, `z^ = a_t z_t - s_t v`, with `w_t = min(1 / s_t^2, MOST_WEIGHT)`.

    Where the noisy latents are of `clean`, `|z^ - z|^2 / s_t^2` is the squared error of the velocity
    (Salimans & Ho 2022, arXiv:2202.00512, appendix D).

    velocity, noisy, clean: (batch, channels, height, width). alphas: (batch,), cumulative.
    """
    variance = (1 - alphas).view(-1, 1, 1, 1)
    estimate = (1 - variance).sqrt() * noisy - variance.sqrt() * velocity
    return ((estimate - clean).pow(2) * (1 / variance).clamp(max=MOST_WEIGHT)).mean()


# --- The denoiser -------------------------------------------------------------------------------------------


class EmotionDiffusion(Method):
    """Predicts velocity of noisy latents (Salimans & Ho 2022, arXiv:2202.00512), conditional on a class."""

    def __init__(self, config: TrainConfig, accelerator: Accelerator):
        self.config, self.accelerator = config, accelerator
        settings = self.settings = settings_of(config, EmotionSettings)
        refuse_unused(config, UNUSED)
        vae = _open_vae(config)
        self.vocabulary = emotion_vocabulary()
        scale = 2 ** (len(vae.config.block_out_channels) - 1)
        widths, side = config.block_out_channels, config.resolution // scale
        if config.resolution % (scale << (len(widths) - 1)):
            raise TrainingError(
                f"--resolution must be a multiple of {scale << (len(widths) - 1)}: a latent has {scale} px, "
                f"and --block_out_channels {len(widths)} levels; got {config.resolution}"
            )
        self.pictures = _open_pictures(config, settings)
        self._encoded: dict[tuple[int, int, int], torch.Tensor] = {}  # by record, warp and mirroring
        unet = UNet2DModel(
            sample_size=side,
            in_channels=vae.config.latent_channels,
            out_channels=vae.config.latent_channels,
            down_block_types=("DownBlock2D", *("AttnDownBlock2D",) * (len(widths) - 1)),
            up_block_types=(*("AttnUpBlock2D",) * (len(widths) - 1), "UpBlock2D"),
            block_out_channels=widths,
            layers_per_block=config.layers_per_block,
            norm_num_groups=math.gcd(32, *widths),
            num_class_embeds=len(CLASSES) + 1,
        )
        scheduler = DDIMScheduler(
            beta_schedule="squaredcos_cap_v2",
            prediction_type="v_prediction",
            clip_sample=False,
        )
        self.pipeline = EmotionDiffusionPipeline(
            vae.requires_grad_(False).eval().to(accelerator.device),
            unet,
            scheduler,
            resolution=config.resolution,
            default_noise_level=settings.noise_level,
            default_steps=config.default_steps,
            default_guidance_scale=config.default_guidance_scale,
            **self.vocabulary.to_index(),
        )

    def modules(self) -> dict[str, torch.nn.Module]:
        return {"unet": self.pipeline.unet}

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"unet": _adam(self.config, self.pipeline.unet)}

    def data_digest(self) -> str:
        return self.pictures.pairs.digest

    def samples(self) -> Samples:
        return self._samples(self.pictures, self.config, decodes=not self.config.cache_latents)

    def held_out(self) -> Samples:
        return self._samples(*_held_out_pictures(self.config, self.settings), decodes=True)

    def _samples(self, pictures: EmotionPictures, config: TrainConfig, decodes: bool) -> Samples:
        unet, scheduler = self.pipeline.unet.config, self.pipeline.scheduler.config
        shape = (unet.in_channels, unet.sample_size, unet.sample_size)
        return Samples(pictures, config, shape, scheduler.num_train_timesteps, decodes, twins=True)

    def losses(self, batch: dict, networks) -> Losses:
        device = self.accelerator.device
        noise, emotions, timesteps = (batch[name].to(device) for name in ("noise", "emotion", "timestep"))
        clean = self._latents(batch)
        alphas = self.pipeline.scheduler.alphas_cumprod.to(device)[timesteps]
        noisy = add_noise(self._seen(clean, batch), noise, alphas)
        with self.accelerator.autocast():
            output = networks["unet"](noisy, timesteps, class_labels=emotions).sample
        yield "unet", clean_error(output.float(), noisy, clean, alphas), {}

    def _seen(self, clean: torch.Tensor, batch: dict) -> torch.Tensor:
        """The latents that are noised: a sample's own, or its twin's where they are exchanged."""
        if not self.settings.counterfactual or len(clean) % 2:
            return clean
        photographs, emotions = (batch[name].unflatten(0, (-1, 2)) for name in ("place", "emotion"))
        exchanged = batch["exchanged"].unflatten(0, (-1, 2))[:, 0] < self.settings.counterfactual
        exchanged &= (photographs[:, 0, 0] == photographs[:, 1, 0]) & (emotions != ANY).all(1)  # (pairs,)
        pairs = clean.unflatten(0, (-1, 2))  # (pairs, 2, channels, height, width)
        chosen = exchanged.view(-1, 1, 1, 1, 1).to(clean.device)
        return torch.where(chosen, pairs.flip(1), pairs).flatten(0, 1)

    @torch.no_grad()
    def _latents(self, batch: dict) -> torch.Tensor:
        """Latents of a batch, (batch, channels, height, width), encoded now or, if cached, once for all."""
        device = self.accelerator.device
        if "picture" in batch:
            return self.pipeline.encode(batch["picture"].to(device))
        places = [tuple(place) for place in batch["place"].tolist()]
        for place in places:
            if place not in self._encoded:  # one at a time: the bits of a batch depend on its size
                with uncounted():
                    picture = self.pictures.picture(*place)[None].to(device)
                    self._encoded[place] = self.pipeline.encode(picture)
        return torch.cat([self._encoded[place] for place in places])

    # -- results --

    def preview(self) -> np.ndarray:
        """Rows of a face and what it becomes for each emotion, its round trip in the place of neutral."""
        rows = []
        for pictures in _examples(self.pictures, self.config.validation_faces, self.accelerator.device):
            deltas = np.concatenate([np.zeros((1, len(EMOTIONS))), np.eye(len(EMOTIONS)) * WHOLE])
            self.pipeline.unet.eval()
            edits = self.pipeline(
                (pictures[:1] + 1).expand(len(deltas), -1, -1, -1) / 2, deltas, output_type="pt"
            ).images
            self.pipeline.unet.train()
            rows.append(torch.cat([pictures[0], *(edits * 2 - 1)], dim=-1))
        return to_pixels(torch.cat(rows, dim=-2).cpu())

    def export(self, folder: Path, step: int, samples_seen: int) -> None:
        parts = {n: copy.deepcopy(getattr(self.pipeline, n)).eval() for n in ("vae", "unet")}
        kept = {
            n: v for n, v in self.pipeline.config.items() if n not in self.pipeline.components and n[0] != "_"
        }
        pipeline = EmotionDiffusionPipeline(**parts, scheduler=self.pipeline.scheduler, **kept)
        counts = {"optimiser_steps": step, "pictures_seen": samples_seen}
        introduction = INTRODUCTION.format(resolution=self.config.resolution)
        pairs = self.pictures.pairs
        publish_family(
            pipeline, self.config, pairs, folder, counts, tag="diffusion", introduction=introduction
        )


def _open_vae(config: TrainConfig) -> AutoencoderKL:
    """The autoencoder of a Stable Diffusion, or of a folder that `emotion-vae` wrote."""
    base = config.pretrained_model_name_or_path
    if base is None:
        raise TrainingError(
            "--objective emotion-diffusion needs an autoencoder: set --pretrained_model_name_or_path to a "
            "Stable Diffusion, or to a folder that --objective emotion-vae wrote"
        )
    try:
        return AutoencoderKL.from_pretrained(
            base, subfolder="vae", revision=config.revision, use_safetensors=True
        )
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise TrainingError(f"{base} has no autoencoder in a folder vae: {reason}") from error


def _examples(pictures: EmotionPictures, faces: int, device: torch.device) -> list[torch.Tensor]:
    """Of each of the first faces a picture of every class, (classes, 3, height, width)."""
    found = []
    for n in range(faces):
        own = [(members[n % len(members)], emotion) for emotion, members in enumerate(pictures.members)]
        rows = [pictures.picture(record, emotion if pictures.warps else 0) for record, emotion in own]
        found.append(torch.stack(rows).to(device))
    return found


def _adam(config: TrainConfig, network: torch.nn.Module) -> torch.optim.Optimizer:
    betas = (config.adam_beta1, config.adam_beta2)
    return torch.optim.AdamW(
        network.parameters(),
        lr=config.learning_rate,
        betas=betas,
        eps=config.adam_epsilon,
        weight_decay=config.adam_weight_decay,
    )
