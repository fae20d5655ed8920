"""The flow autoencoder (Yeh et al. 2016, arXiv:1611.09961), which travels with its weights.

A variational encoder describes a target picture; a decoder turns a source picture and that description into
a flow, and the target is the source read along the flow. `save_pretrained` writes this file beside the
weights, so that `DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)` works where magicedit is
not installed. It therefore imports nothing but torch, numpy, Pillow, diffusers and huggingface_hub.
"""

import itertools
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.models.downsampling import Downsample2D
from diffusers.models.upsampling import Upsample2D
from diffusers.utils import BaseOutput

from .safe_pipeline import Images, SafePipeline

FIRST_LOG_VARIANCE = -5.0
FLOW_SCALE = 0.05  # of what tanh is taken: small weights make small flows
SMALLEST = 4  # pixels a side of the innermost features


# --- Networks -----------------------------------------------------------------------------------------------


def level_widths(resolution: int, channels: int) -> list[int]:
    """Channels of each level, from half the picture's side to 4 x 4, where there are `channels`.

    Raises:
        ValueError: unless the resolution is 8 or more times a power of two, and the channels halve as often.
    """
    levels = (resolution // SMALLEST).bit_length() - 1
    if levels < 1 or SMALLEST << levels != resolution:
        raise ValueError(f"resolution must be 4 times a power of two (8, 16, ... 128), got {resolution}")
    if channels % (1 << (levels - 1)):
        raise ValueError(
            f"channels must be a multiple of {1 << (levels - 1)}, to halve with each of {levels} levels of "
            f"{resolution} px, got {channels}"
        )
    return [channels >> (levels - 1 - level) for level in range(levels)]


class Trunk(torch.nn.Module):
    """Convolutions that halve the side and double the channels down to 4 x 4.

    3 x 3 filters, the first 5 x 5; each followed by batch norm and ReLU.
    """

    def __init__(self, widths: list[int], in_channels: int = 3):
        super().__init__()
        self.convolutions = torch.nn.ModuleList(
            [torch.nn.Conv2d(in_channels, widths[0], 5, stride=2, padding=2)]
        )
        for narrow, wide in itertools.pairwise(widths):
            self.convolutions.append(Downsample2D(narrow, use_conv=True, out_channels=wide, name="op"))
        self.norms = torch.nn.ModuleList(torch.nn.BatchNorm2d(width) for width in widths)

    def forward(self, pictures: torch.Tensor) -> list[torch.Tensor]:
        """(batch, 3, size, size) -> features of each level, (batch, width, size / 2^level, ...)."""
        features, found = pictures, []
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            features = F.relu(norm(convolution(features)))
            found.append(features)
        return found


class FlowEncoder(ModelMixin, ConfigMixin):
    """q(z | T): mean and variance of the latent of a target picture.

    Args:
        resolution: pixels a side, 4 times a power of two.
        channels: at 4 x 4, halved at each larger level; 1024 in the paper.
        latent_size: of the latent.
    """

    @register_to_config
    def __init__(self, resolution: int = 128, channels: int = 1024, latent_size: int = 128):
        super().__init__()
        self.trunk = Trunk(level_widths(resolution, channels))
        self.moments = torch.nn.Conv2d(channels, 2 * latent_size, SMALLEST)  # a full connection
        # At a variance of 1 the first latents would be noise, and the decoder would learn to ignore them
        torch.nn.init.constant_(self.moments.bias[latent_size:], FIRST_LOG_VARIANCE)

    def forward(self, target: torch.Tensor) -> torch.Tensor:
        """(batch, 3, height, width) in [-1, 1] -> (batch, 2 * latent_size, 1, 1), see `posterior`."""
        return self.moments(self.trunk(target)[-1])

    @staticmethod
    def posterior(moments: torch.Tensor) -> DiagonalGaussianDistribution:
        """The distribution of latents (batch, latent_size, 1, 1) that `forward` describes."""
        return DiagonalGaussianDistribution(moments.float())

    def latent(self, target: torch.Tensor) -> torch.Tensor:
        """Z(T): the mean latent, (batch, latent_size), of pictures (batch, 3, height, width) in [-1, 1]."""
        return self.posterior(self(target)).mode().flatten(1)


class FlowDecoder(ModelMixin, ConfigMixin):
    """The flow that makes of a source picture what a latent describes.

    The source's features join those of the latent at each level, so that the flow finds the picture's edges.
    Nearest upsampling and 3 x 3 filters with batch norm and ReLU; the last filter is 5 x 5, then tanh. The
    last filter starts at zero, so that the first pictures are the source.

    Args:
        resolution, channels, latent_size: as of `FlowEncoder`.
        relative: decode the difference of the target's and the source's latent rather than the target's
            alone; not in the paper. What a picture's own latent is wrong about then cancels.
    """

    @register_to_config
    def __init__(
        self, resolution: int = 128, channels: int = 1024, latent_size: int = 128, relative: bool = False
    ):
        super().__init__()
        widths = level_widths(resolution, channels)
        self.trunk = Trunk(widths)
        self.entry = torch.nn.ConvTranspose2d(latent_size, channels, SMALLEST)  # a full connection
        self.entry_norm = torch.nn.BatchNorm2d(channels)
        # Level by level outwards; the outermost works at the picture's own size
        after = [max(widths[0] // 2, 1), *widths[:-1]]
        self.convolutions = torch.nn.ModuleList(
            Upsample2D(2 * width, use_conv=True, out_channels=narrow)
            for width, narrow in zip(reversed(widths), reversed(after), strict=True)
        )
        self.norms = torch.nn.ModuleList(torch.nn.BatchNorm2d(width) for width in reversed(after))
        self.out = torch.nn.Conv2d(after[0] + 3, 2, 5, padding=2)
        torch.nn.init.zeros_(self.out.weight)
        torch.nn.init.zeros_(self.out.bias)

    def forward(
        self, source: torch.Tensor, latent: torch.Tensor, source_latent: torch.Tensor
    ) -> torch.Tensor:
        """The flow, (batch, 2, height, width), x then y, in halves of the picture's side, -1 to 1.

        source: (batch, 3, height, width) in [-1, 1]. latent, source_latent: (batch, latent_size), what the
        target should be and Z(S), which only `relative` uses.
        """
        if self.config.relative:
            latent = latent - source_latent
        features = F.relu(self.entry_norm(self.entry(latent[..., None, None])))  # (batch, channels, 4, 4)
        found = reversed(self.trunk(source))
        for of_source, convolution, norm in zip(found, self.convolutions, self.norms, strict=True):
            features = F.relu(norm(convolution(torch.cat([features, of_source], dim=1))))
        return torch.tanh(FLOW_SCALE * self.out(torch.cat([features, source], dim=1)))


class FlowConfidence(ModelMixin, ConfigMixin):
    """How far a moved picture is to be trusted, pixel by pixel.

    Args:
        channels: of the widest level.
    """

    @register_to_config
    def __init__(self, channels: int = 64):
        super().__init__()
        self.trunk = Trunk([max(channels // 2, 1), channels], in_channels=8)
        self.convolutions = torch.nn.ModuleList(
            [
                Upsample2D(channels, use_conv=True, out_channels=max(channels // 2, 1)),
                Upsample2D(2 * max(channels // 2, 1), use_conv=True, out_channels=max(channels // 2, 1)),
            ]
        )
        self.out = torch.nn.Conv2d(max(channels // 2, 1) + 8, 1, 5, padding=2)

    def forward(self, source: torch.Tensor, moved: torch.Tensor, flow: torch.Tensor) -> torch.Tensor:
        """Logits M, (batch, height, width); their sigmoid estimates the soft label exp(-|T - g|^2 / beta).

        source, moved: (batch, 3, height, width) in [-1, 1]. flow: of `FlowDecoder`.
        """
        inputs = torch.cat([source, moved, flow], dim=1)  # (batch, 8, height, width)
        wide, narrow = self.trunk(inputs)
        features = F.relu(self.convolutions[0](narrow))
        features = F.relu(self.convolutions[1](torch.cat([features, wide], dim=1)))
        return self.out(torch.cat([features, inputs], dim=1))[:, 0]


class ClassMeans(ModelMixin, ConfigMixin):
    """Mean latents of pictures without and with each control, and how many intensity steps lie between them.

    Args:
        controls: number of controls.
        latent_size: of the latents.
    """

    @register_to_config
    def __init__(self, controls: int = 18, latent_size: int = 128):
        super().__init__()
        self.register_buffer("source", torch.zeros(controls, latent_size))
        self.register_buffer("target", torch.zeros(controls, latent_size))
        self.register_buffer("steps", torch.ones(controls))

    def edited(self, latent: torch.Tensor, deltas: torch.Tensor, known: bool = True) -> torch.Tensor:
        """`Z(S) + i (Z_target - Z_source) / K`, summed over controls: (batch, latent_size).

        latent: Z(S), (batch, latent_size). deltas: i, (batch, controls), in intensity steps. known: whether
        sources have the expression of `source`; else Z(S) itself takes its place in the difference.
        """
        shares = deltas.to(latent) / self.steps.to(latent)  # (batch, controls)
        start = shares @ self.source.to(latent) if known else shares.sum(1, keepdim=True) * latent
        return latent + shares @ self.target.to(latent) - start


def move(source: torch.Tensor, flow: torch.Tensor) -> torch.Tensor:
    """The source read along the flow by bilinear sampling, (batch, 3, height, width); borders repeat.

    A non-finite flow makes the picture not finite there; `grid_sample` itself would read outside of memory in
    its backward pass.
    """
    height, width = flow.shape[-2:]
    ys = (torch.arange(height, device=flow.device) + 0.5) / height * 2 - 1
    xs = (torch.arange(width, device=flow.device) + 0.5) / width * 2 - 1
    grid = torch.stack(torch.meshgrid(xs, ys, indexing="xy"), dim=-1)  # (height, width, 2)
    finite = torch.isfinite(flow).all(dim=1, keepdim=True)  # (batch, 1, height, width)
    places = grid + torch.where(finite, flow, 0.0).permute(0, 2, 3, 1).float()
    moved = F.grid_sample(source.float(), places, padding_mode="border", align_corners=False)
    return torch.where(finite, moved, torch.nan)


def in_pixels(flow: torch.Tensor) -> torch.Tensor:
    """A decoder's flow (batch, 2, height, width) as (batch, height, width, 2), in pixels."""
    height, width = flow.shape[-2:]
    return flow.permute(0, 2, 3, 1) * flow.new_tensor([width / 2, height / 2])


# --- The pipeline -------------------------------------------------------------------------------------------


@dataclass
class FlowAutoencoderOutput(BaseOutput):
    """`images`: in the asked `output_type`. `flow`: (batch, height, width, 2) px, x then y. `confidence`:
    (batch, height, width), 0..1, of each picture; of an interpolation the share of the first photograph."""

    images: Any
    flow: torch.Tensor
    confidence: torch.Tensor


class FlowAutoencoderPipeline(SafePipeline):
    """Edits and interpolates expressions of aligned face crops by flow.

    Args:
        encoder, decoder, confidence, classes: the networks, and the class means that edits are made of.
        resolution: pixels a side of the crops.
        action_units: names of the controls, in the order of `classes`, joined by commas.
        controls: descriptions of controls that are not plain action units, as JSON objects.
    """

    model_cpu_offload_seq = "encoder->classes->decoder->confidence"
    component_classes: ClassVar = {
        "encoder": FlowEncoder,
        "decoder": FlowDecoder,
        "confidence": FlowConfidence,
        "classes": ClassMeans,
    }

    def __init__(
        self,
        encoder: FlowEncoder,
        decoder: FlowDecoder,
        confidence: FlowConfidence,
        classes: ClassMeans,
        resolution: int = 128,
        action_units: str = "",
        controls: list[dict[str, Any]] | None = None,
    ):
        super().__init__()
        names = action_units.split(",") if action_units else []
        if len(names) != classes.config.controls:
            raise ValueError(
                f"action_units names {len(names)} controls, classes has {classes.config.controls}"
            )
        sizes = {network.config.resolution for network in (encoder, decoder)} | {resolution}
        if len(sizes) > 1:
            raise ValueError(f"encoder, decoder and pipeline must have one resolution, got {sorted(sizes)}")
        latents = {network.config.latent_size for network in (encoder, decoder, classes)}
        if len(latents) > 1:
            raise ValueError(f"encoder, decoder and classes must have one latent_size, got {sorted(latents)}")
        self.register_modules(encoder=encoder, decoder=decoder, confidence=confidence, classes=classes)
        self.register_to_config(resolution=resolution, action_units=action_units, controls=controls)

    # -- inputs --

    def _deltas(self, au_delta, batch: int) -> torch.Tensor:
        deltas = torch.as_tensor(np.asarray(au_delta), dtype=torch.float32, device=self.device)
        deltas = deltas.expand(batch, -1) if deltas.ndim == 1 else deltas
        if deltas.shape != (batch, self.classes.config.controls):
            expected = (batch, self.classes.config.controls)
            raise ValueError(f"au_delta must have shape {expected}, got {tuple(deltas.shape)}")
        return deltas

    # -- what it does --

    @torch.no_grad()
    def __call__(
        self,
        source: Images,
        au_delta,
        source_is_known: bool = True,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> FlowAutoencoderOutput | tuple:
        """Edits by latent arithmetic with class means.

        Args:
            source: aligned crops, see `pictures`.
            au_delta: (batch, controls) or (controls,), in intensity steps.
            source_is_known: whether the sources show the expression of the classes' source; else Z(S) itself
                is what the difference is taken from.
            output_type: pil, np or pt. return_dict: whether to return an object; else a tuple of its fields.

        Raises:
            ValueError: where sizes do not fit.
        """
        # 1. Latents: (batch, latent_size)
        pictures = self.pictures(source)
        deltas = self._deltas(au_delta, len(pictures))
        own = self.encoder.latent(pictures)
        latent = self.classes.edited(own, deltas, source_is_known)
        # 2. Flow and picture
        flow = self.decoder(pictures, latent, own)
        moved = move(pictures, flow)
        confidence = self.confidence(pictures, moved.to(pictures), flow).sigmoid()
        images = self.finished(moved, output_type=output_type)
        output = FlowAutoencoderOutput(images, in_pixels(flow), confidence)
        return output if return_dict else output.to_tuple()

    @torch.no_grad()
    def interpolate(
        self, first: Images, second: Images, positions, output_type: str = "pil"
    ) -> FlowAutoencoderOutput:
        """Pictures between two of one person: both are moved to the latent between theirs and blended by
        their confidence, `exp(M1) / (exp(M1) + exp(M2))` of the first.

        Args:
            first, second: one aligned crop each, see `pictures`.
            positions: (frames,), from 0 (the first) to 1.

        Returns:
            `flow` has the frames' flows of the first crop, then those of the second: (2 * frames, ...).
        """
        # 1. Latents between: (frames, latent_size)
        ends = torch.cat([self.pictures(first, "first"), self.pictures(second, "second")])
        if len(ends) != 2:
            raise ValueError(f"an interpolation takes one first and one second picture, got {len(ends)}")
        at = torch.as_tensor(positions, dtype=ends.dtype, device=ends.device)[:, None]
        latents = self.encoder.latent(ends)
        between = torch.lerp(latents[:1], latents[1:], at)
        # 2. Both pictures moved to each: (2 * frames, 3, height, width)
        sources = ends.repeat_interleave(len(at), dim=0)
        own = latents.repeat_interleave(len(at), dim=0)
        flow = self.decoder(sources, between.repeat(2, 1), own)
        moved = move(sources, flow)
        # 3. The blend: the softmax over both is the formula above
        logits = self.confidence(sources, moved.to(sources), flow)
        share = torch.softmax(torch.stack(logits.chunk(2)), dim=0)[0]  # (frames, height, width)
        blended = share[:, None] * moved[: len(at)] + (1 - share[:, None]) * moved[len(at) :]
        images = self.finished(blended, output_type=output_type)
        return FlowAutoencoderOutput(images, in_pixels(flow), share)
