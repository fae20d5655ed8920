"""GANimation (Pumarola et al. 2018, arXiv:1807.09251) with AdaIN, which travels with its weights.

A generator paints a colour and says by an attention mask where it replaces the source. The label goes through
an embedding into adaptive instance norms (Huang & Belongie 2017, arXiv:1703.06868), as in SMIT (Romero et al.
2019, arXiv:1812.03704), so that another label size needs another embedding only. `save_pretrained` writes
this file beside the weights, so that `DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)`
works where magicedit is not installed. It therefore imports nothing but torch, numpy, Pillow, diffusers and
huggingface_hub.
"""

import itertools
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlockCondNorm2D
from diffusers.models.upsampling import Upsample2D
from diffusers.utils import BaseOutput

from .safe_pipeline import Images, SafePipeline

FULL_INTENSITY = 5.0  # intensity steps that are a label of 1
OUT_SCALE = 0.05  # of the last filter if residual: small weights make small changes
SLOPE = 0.01  # of the critic's leaky ReLU


# --- Networks -----------------------------------------------------------------------------------------------


class LabelEmbedding(ModelMixin, ConfigMixin):
    """Two full connections from a label to the style that the generator's norms are adapted by.

    Args:
        labels: size of a label.
        style_size: size of a style.
    """

    @register_to_config
    def __init__(self, labels: int = 17, style_size: int = 128):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(labels, style_size), torch.nn.ReLU(), torch.nn.Linear(style_size, style_size)
        )
        # A label is mostly zeros: by torch's own first weights, styles would hardly depend on it
        torch.nn.init.normal_(self.layers[0].weight)
        torch.nn.init.kaiming_normal_(self.layers[2].weight)

    def forward(self, label: torch.Tensor) -> torch.Tensor:
        """(batch, labels), intensity steps / 5 -> (batch, style_size)."""
        return self.layers(label)


class GANimationGenerator(ModelMixin, ConfigMixin):
    """Attention mask and colour of an edit: two strided convolutions, residual blocks, two upsamplings.

    AdaIN, `(1 + scale(style)) * instance_norm(x) + shift(style)`, stands in the residual blocks; the other
    norms are instance norms.

    Args:
        channels: at the picture's size, doubled at each of the two smaller ones; 64 in the paper.
        blocks: residual blocks; 6 in the paper.
        style_size: size of a style.
        residual: the colour is a difference from the source, which the last filter also sees, and features of
            the way down are added to those of the way up; not in the paper.
    """

    @register_to_config
    def __init__(self, channels: int = 64, blocks: int = 6, style_size: int = 128, residual: bool = False):
        super().__init__()
        widths = channels, 2 * channels, 4 * channels
        self.entry = torch.nn.Conv2d(3, widths[0], 7, padding=3)
        self.down = torch.nn.ModuleList(
            Downsample2D(narrow, use_conv=True, out_channels=wide, name="op")
            for narrow, wide in itertools.pairwise(widths)
        )
        self.residual_blocks = torch.nn.ModuleList(
            ResnetBlockCondNorm2D(
                in_channels=widths[-1],
                temb_channels=style_size,
                groups=widths[-1],  # one channel each: instance norm
                non_linearity="relu",
                time_embedding_norm="ada_group",
            )
            for _ in range(blocks)
        )
        self.up = torch.nn.ModuleList(
            Upsample2D(wide, use_conv=True, out_channels=narrow)
            for wide, narrow in zip(widths[:0:-1], widths[-2::-1], strict=True)
        )
        self.out = torch.nn.Conv2d(channels + 3 * residual, 4, 7, padding=3)  # attention, then colour
        if residual:  # the first pictures are the source
            torch.nn.init.zeros_(self.out.weight)
            torch.nn.init.zeros_(self.out.bias)

    def forward(self, source: torch.Tensor, style: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Attention A, (batch, 1, height, width) in 0..1, and colour C, (batch, 3, height, width).

        source: (batch, 3, height, width) in [-1, 1], sides multiples of 4; C too, or beyond if `residual`.
        style: of `LabelEmbedding`.
        """
        features = F.relu(F.instance_norm(self.entry(source)))
        passed = []
        for convolution in self.down:
            features = F.relu(F.instance_norm(convolution(features)))
            passed.append(features)
        for block in self.residual_blocks:  # (batch, 4 * channels, height / 4, width / 4)
            features = block(features, style)
        for convolution, joined in zip(self.up, reversed(passed), strict=True):
            if self.config.residual:
                features = features + joined
            features = F.relu(F.instance_norm(convolution(features)))
        if not self.config.residual:
            attention, colour = self.out(features).split([1, 3], dim=1)
            return torch.sigmoid(attention), torch.tanh(colour)
        out = OUT_SCALE * self.out(torch.cat([features, source], dim=1))
        attention, colour = out.split([1, 3], dim=1)
        return torch.sigmoid(attention), source + colour


class GANimationCritic(ModelMixin, ConfigMixin):
    """How real the patches of a picture look, and its label.

    Strided 4 x 4 convolutions with leaky ReLU halve the side down to 2 x 2 and double the channels.

    Args:
        resolution: pixels a side, a power of two from 8 on.
        channels: after the first convolution; 64 in the paper.
        labels: size of a label.
    """

    @register_to_config
    def __init__(self, resolution: int = 128, channels: int = 64, labels: int = 17):
        super().__init__()
        check_resolution(resolution)
        levels = resolution.bit_length() - 2  # down to 2 x 2
        widths = [3, *(channels << level for level in range(levels))]
        self.trunk = torch.nn.ModuleList(
            torch.nn.Conv2d(narrow, wide, 4, stride=2, padding=1)
            for narrow, wide in itertools.pairwise(widths)
        )
        self.realness = torch.nn.Conv2d(widths[-1], 1, 3, padding=1, bias=False)
        self.label = torch.nn.Conv2d(widths[-1], labels, 2, bias=False)  # a full connection

    def forward(self, pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Realness, (batch, 2, 2), and label, (batch, labels) in intensity steps / 5.

        pictures: (batch, 3, resolution, resolution) in [-1, 1].
        """
        features = pictures
        for convolution in self.trunk:
            features = F.leaky_relu(convolution(features), SLOPE)
        return self.realness(features)[:, 0], self.label(features).flatten(1)


def check_resolution(resolution: int) -> None:
    """Raises ValueError unless the critic can halve the side down to 2."""
    if resolution < 8 or resolution & (resolution - 1):
        raise ValueError(f"resolution must be a power of two from 8 on, got {resolution}")


def compose(source: torch.Tensor, attention: torch.Tensor, colour: torch.Tensor) -> torch.Tensor:
    """The edited picture, `A C + (1 - A) I`; all (batch, 3 or 1, height, width)."""
    return attention * colour + (1 - attention) * source


# --- The pipeline -------------------------------------------------------------------------------------------


@dataclass
class GANimationOutput(BaseOutput):
    """`images`: in the asked `output_type`. `attention`: (batch, height, width), 0..1, where they are
    painted. `colour`: (batch, 3, height, width), what is painted there, black -1, white 1."""

    images: Any
    attention: torch.Tensor
    colour: torch.Tensor


class GANimationPipeline(SafePipeline):
    """Edits expressions of aligned face crops by an attention mask and a colour.

    Args:
        generator, embedding, critic: the networks; edits need the critic unless `relative`.
        resolution: pixels a side of the crops.
        action_units: names of the controls, in the order of a label, joined by commas.
        controls: descriptions of controls that are not plain action units, as JSON objects.
        relative: whether a label is the variation of the source's; else it is the target's own.
    """

    model_cpu_offload_seq = "critic->embedding->generator"
    component_classes: ClassVar = {
        "generator": GANimationGenerator,
        "embedding": LabelEmbedding,
        "critic": GANimationCritic,
    }

    def __init__(
        self,
        generator: GANimationGenerator,
        embedding: LabelEmbedding,
        critic: GANimationCritic,
        resolution: int = 128,
        action_units: str = "",
        controls: list[dict[str, Any]] | None = None,
        relative: bool = False,
    ):
        super().__init__()
        names = action_units.split(",") if action_units else []
        sizes = {len(names), embedding.config.labels, critic.config.labels}
        if len(sizes) > 1:
            raise ValueError(f"action_units, embedding and critic must have one size, got {sorted(sizes)}")
        if critic.config.resolution != resolution:
            raise ValueError(f"the critic's resolution is {critic.config.resolution}, not {resolution}")
        styles = {network.config.style_size for network in (generator, embedding)}
        if len(styles) > 1:
            raise ValueError(f"generator and embedding must have one style_size, got {sorted(styles)}")
        self.register_modules(generator=generator, embedding=embedding, critic=critic)
        self.register_to_config(
            resolution=resolution, action_units=action_units, controls=controls, relative=relative
        )

    def with_labels(
        self, action_units: str, controls: list[dict[str, Any]] | None = None
    ) -> "GANimationPipeline":
        """The pipeline for other labels: generator and trunk of the critic are shared with this one, the
        embedding and the critic's last filter for labels are new and untrained.

        Args:
            action_units, controls: as of the class.
        """
        labels = len(action_units.split(","))
        embedding = LabelEmbedding(labels, self.embedding.config.style_size)
        critic = GANimationCritic(self.config.resolution, self.critic.config.channels, labels)
        critic.trunk, critic.realness = self.critic.trunk, self.critic.realness
        settings = {"resolution": self.config.resolution, "relative": self.config.relative}
        return type(self)(
            self.generator, embedding, critic, action_units=action_units, controls=controls, **settings
        )

    # -- inputs --

    def labels(self, pictures: torch.Tensor, au_delta) -> torch.Tensor:
        """What the generator gets, (batch, labels): variations / 5, with the sources' own labels, as the
        critic reads them, added unless `relative`.

        pictures: of `pictures`. au_delta: (batch, labels) or (labels,), in intensity steps.

        Raises:
            ValueError: where the size is another one.
        """
        deltas = torch.as_tensor(np.asarray(au_delta), dtype=pictures.dtype, device=pictures.device)
        deltas = deltas.expand(len(pictures), -1) if deltas.ndim == 1 else deltas
        if deltas.shape != (expected := (len(pictures), self.embedding.config.labels)):
            raise ValueError(f"au_delta must have shape {expected}, got {tuple(deltas.shape)}")
        labels = deltas / FULL_INTENSITY
        return labels if self.config.relative else self.critic(pictures)[1] + labels

    # -- what it does --

    @torch.no_grad()
    def __call__(
        self, source: Images, au_delta, output_type: str = "pil", return_dict: bool = True
    ) -> GANimationOutput | tuple:
        """Edits.

        Args:
            source: aligned crops, see `pictures`.
            au_delta: (batch, labels) or (labels,), in intensity steps.
            output_type: pil, np or pt. return_dict: whether to return an object; else a tuple of its fields.

        Raises:
            ValueError: where sizes do not fit.
        """
        pictures = self.pictures(source)
        style = self.embedding(self.labels(pictures, au_delta))  # (batch, style_size)
        attention, colour = self.generator(pictures, style)
        edited = compose(pictures, attention, colour)
        images = self.finished(edited, output_type=output_type)
        output = GANimationOutput(images, attention[:, 0], colour)
        return output if return_dict else output.to_tuple()

    def interpolate(
        self, source: Images, first, second, positions, output_type: str = "pil"
    ) -> GANimationOutput:
        """Edits of one crop by labels on the line between two.

        Args:
            source: one crop, see `pictures`.
            first, second: (labels,) intensity steps, as `au_delta` of a call.
            positions: (frames,), from 0 (the first) to 1.

        Raises:
            ValueError: where sizes do not fit.
        """
        ends = (torch.as_tensor(np.asarray(end), dtype=torch.float32) for end in (first, second))
        at = torch.as_tensor(np.asarray(positions), dtype=torch.float32)[:, None]
        pictures = (self.pictures(source) + 1) / 2
        return self(pictures.expand(len(at), -1, -1, -1), torch.lerp(*ends, at), output_type)
