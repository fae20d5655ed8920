"""Reference attention and the expression-editing pipeline, in one file that travels with the weights.

`save_pretrained` puts this file beside the weights as `pipeline.py`, so that
`DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)` works where magicedit is not installed.
It therefore imports nothing but torch, numpy, Pillow, diffusers and transformers.

The model is that of MagicFace (Wei et al. 2025, arXiv:2501.02260), built from two stock
`UNet2DConditionModel`s: a *denoiser*, whose class embedding is a linear layer on the AU variation, and a
*reference* UNet (the ID encoder), whose hidden states before each self-attention are further keys and values
of the denoiser's. The paper's other ways to encode AUs and identity (tables II and III) can be loaded too, to
compare with.
"""

import contextlib
import copy
import importlib
import inspect
import itertools
import json
import math
import shutil
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import diffusers
import huggingface_hub
import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, DiffusionPipeline, ModelMixin, UNet2DConditionModel
from diffusers.configuration_utils import register_to_config
from diffusers.image_processor import VaeImageProcessor
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import AttnProcessor2_0
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor

MAGICFACE_ACTION_UNITS = "AU1,AU2,AU4,AU5,AU6,AU9,AU12,AU15,AU17,AU20,AU25,AU26"  # published order
MAGICFACE_PROMPT = "A close up of a person."

# The flow-mask-paint head: raw network output to units. One unit of raw flow is a tenth of half the image's
# side, so that initial flows are a few pixels; the mask starts near sigmoid(-3) = 0.05, so that initial
# images are copies.
FLOW_SCALE = 0.1
MASK_BIAS = -3.0

Features = dict[str, torch.Tensor]  # layer name -> hidden states entering norm1, (faces, tokens, channels)
Projections = dict[
    str, tuple[torch.Tensor, torch.Tensor]
]  # layer name -> key, value, (faces, tokens, inner_dim)


# --- Reference attention ------------------------------------------------------------------------------------


class ReferenceCache:
    """Keys and values that are constant for faces: over steps, guidance halves, AU variants and calls.

    Each layer replaces its reference features by their projection, and projects the text, when it is first
    asked; a second thread that asks at the same moment computes the same. Not a dict, so that offloading
    hooks, which copy dicts, leave it whole.

    Args:
        features: of the reference by layer name, or already projected; None: a model without a reference.
        prompt_embeds: (faces or 1, text tokens, cross_attention_dim); None: the text is projected each time.
    """

    def __init__(self, features: "Features | Projections | None", prompt_embeds: torch.Tensor | None = None):
        self.prompt_embeds = prompt_embeds
        self._reference: dict[str, Any] | None = None if features is None else dict(features)
        self._text: Projections = {}

    def reference(self, layer: str, project: Callable) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Key and value of the reference in a layer, by `project(features)` at the first time."""
        if self._reference is None:
            return None
        entry = self._reference[layer]
        if not isinstance(entry, tuple):
            entry = self._reference[layer] = project(entry)
        return entry

    def text(self, layer: str, project: Callable) -> tuple[torch.Tensor, torch.Tensor]:
        """Key and value of the text in a layer, by `project(prompt_embeds)` at the first time."""
        if layer not in self._text:
            self._text[layer] = project(self.prompt_embeds)
        return self._text[layer]

    def fill(self, unet: UNet2DConditionModel) -> None:
        """Projects for all layers now, for a denoiser whose forward must not store what it computed."""
        for name, block in transformer_blocks(unet).items():
            self.reference(name, partial(block.attn1.processor.project, block.attn1))
            if self.prompt_embeds is not None and block.attn2 is not None:
                self.text(name, partial(block.attn2.processor.project, block.attn2))


class JoinedReferenceCache(ReferenceCache):
    """The caches of several faces as that of a batch of them; what is projected stays in each face's own."""

    def __init__(self, caches: "list[ReferenceCache]"):
        prompts = [cache.prompt_embeds for cache in caches]
        super().__init__(None, prompts[0] if prompts[0].shape[0] == 1 else torch.cat(prompts))
        self._caches = caches
        self._joined: Projections = {}

    def reference(self, layer, project):
        if layer not in self._joined:
            parts = [cache.reference(layer, project) for cache in self._caches]
            if parts[0] is None:
                return None
            self._joined[layer] = tuple(torch.cat(tensors) for tensors in zip(*parts, strict=True))
        return self._joined[layer]


class ReferenceAttnProcessor:
    """Self-attention whose keys and values are the image's own followed by the reference's.

    Equal to the published "concatenate before norm1, attend over both, drop the second half": LayerNorm and
    the projections act on each token alone, and the dropped queries influence nothing.

    The reference passes through the layers of the denoiser's own block, so the processor knows its block's
    `norm1`.
    """

    def __init__(self, layer: str, norm1: torch.nn.Module):
        self.layer = layer
        self.norm1 = norm1

    def project(self, attn, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`features` (faces, tokens, channels) -> key and value, each (faces, tokens, inner_dim)."""
        normed = self.norm1(features)
        return attn.to_k(normed), attn.to_v(normed)

    def __call__(
        self,
        attn,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
        reference: Features | Projections | ReferenceCache | None = None,
    ) -> torch.Tensor:
        """`hidden_states` (batch, tokens, channels), already normalised by `norm1` -> the same shape."""
        query, key, value = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)

        if isinstance(reference, ReferenceCache):
            entry = reference.reference(self.layer, partial(self.project, attn))
        elif reference is not None:
            entry = reference[self.layer]
            entry = entry if isinstance(entry, tuple) else self.project(attn, entry)
        else:
            entry = None
        if entry is not None:
            key, value = append_tokens(key, entry[0]), append_tokens(value, entry[1])

        attended = self.attend(*(split_heads(x, attn.heads) for x in (query, key, value)))
        attended = attended.transpose(1, 2).flatten(2).to(query.dtype)  # (batch, tokens, inner_dim)
        return attn.to_out[1](attn.to_out[0](attended))

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """All (batch, heads, tokens, head_dim); keys and values hold the reference's tokens last."""
        return F.scaled_dot_product_attention(query, key, value)


def append_tokens(own: torch.Tensor, shared: torch.Tensor) -> torch.Tensor:
    """(batch, tokens, channels) and (faces, more tokens, channels) -> (batch, all tokens, channels).

    Guidance halves and AU variants share the tokens of their face: `faces` divides `batch`, faces innermost.
    """
    batch, faces = own.shape[0], shared.shape[0]
    if batch % faces:
        raise ValueError(f"a batch of {batch} cannot share the reference features of {faces} faces")
    own = own.unflatten(0, (batch // faces, faces))  # (variants, faces, tokens, channels)
    shared = shared.to(own.dtype).expand(batch // faces, -1, -1, -1)
    return torch.cat([own, shared], dim=2).flatten(0, 1)


def split_heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    """(batch, tokens, inner_dim) -> (batch, heads, tokens, head_dim)"""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


class TextAttnProcessor(AttnProcessor2_0):
    """The stock cross-attention, which takes keys and values from the `ReferenceCache` that it is handed."""

    def __init__(self, layer: str):
        super().__init__()
        self.layer = layer

    def project(self, attn, text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(faces or 1, text tokens, channels) -> key and value, each (faces or 1, text tokens, inner_dim)."""
        return attn.to_k(text), attn.to_v(text)

    def __call__(
        self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None, reference=None
    ):
        if not isinstance(reference, ReferenceCache) or reference.prompt_embeds is None:
            return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
        batch, tokens = hidden_states.shape[:2]
        key, value = reference.text(self.layer, partial(self.project, attn))
        repeats = batch // key.shape[0]
        if key.shape[1] == 1:  # attention to a single token gives its value, whatever the query
            attended = attn.to_out[0](value).repeat(repeats, 1, 1).expand(-1, tokens, -1)
        else:
            key, value = (split_heads(x.repeat(repeats, 1, 1), attn.heads) for x in (key, value))
            query = split_heads(attn.to_q(hidden_states), attn.heads)
            attended = F.scaled_dot_product_attention(query, key, value)
            attended = attn.to_out[0](attended.transpose(1, 2).flatten(2))  # (batch, tokens, channels)
        return attn.to_out[1](attended)


def transformer_blocks(unet: UNet2DConditionModel) -> dict[str, BasicTransformerBlock]:
    """The self-attending blocks by layer name, e.g. `mid_block.attentions.0.transformer_blocks.0`.

    What `torch.compile` wraps goes by its own name.
    """
    return {
        name.replace("_orig_mod.", "").removesuffix("._orig_mod"): module
        for name, module in unet.named_modules()
        if isinstance(module, BasicTransformerBlock)
    }


def is_compiled(network: torch.nn.Module) -> bool:
    """Whether `torch.compile` wraps a network as a whole, or `network.compile()` was called."""
    return hasattr(network, "_orig_mod") or network._compiled_call_impl is not None


def install_reference_attention(unet: UNet2DConditionModel) -> None:
    """Gives every transformer block of the denoiser the processors that reference attention needs."""
    for name, block in transformer_blocks(unet).items():
        block.attn1.set_processor(ReferenceAttnProcessor(name, block.norm1))
        if block.attn2 is not None:
            block.attn2.set_processor(TextAttnProcessor(name))


def check_reference_attention(unet: UNet2DConditionModel) -> None:
    """Raises ValueError, naming the layer, unless every self-attention has our processor.

    `fuse_qkv_projections`, `set_attention_slice` and the like replace processors: the identity would silently
    be lost.
    """
    for name, block in transformer_blocks(unet).items():
        if not isinstance(block.attn1.processor, ReferenceAttnProcessor):
            raise ValueError(
                f"{name}.attn1 has the processor {type(block.attn1.processor).__name__}, which ignores the "
                "reference face. Call install_reference_attention(unet) after whatever replaced it."
            )


class _AllCollected(Exception):
    """Ends the ID encoder's forward: what lies behind its last feature serves nobody."""


def encode_reference(
    reference_unet: UNet2DConditionModel, identity_latents: torch.Tensor, prompt_embeds: torch.Tensor
) -> Features:
    """Runs the ID encoder once at timestep 0, up to the last `norm1`, and keeps what enters each of them.

    Args:
        identity_latents: (faces, channels, height, width), for a VAE the posterior's mode, not scaled.
        prompt_embeds: (faces or 1, text tokens, cross_attention_dim).

    Returns:
        hidden states (faces, tokens, channels) by layer name, in execution order.
    """
    reference_unet = getattr(reference_unet, "_orig_mod", reference_unet)  # hooks need the uncompiled module
    features: Features = {}
    thread = threading.get_ident()  # another thread may run the same module at this moment
    blocks = transformer_blocks(reference_unet)

    def keep(name):
        def hook(module, args):
            if threading.get_ident() == thread:
                features[name] = args[0]
                if len(features) == len(blocks):
                    raise _AllCollected

        return hook

    handles = [block.norm1.register_forward_pre_hook(keep(name)) for name, block in blocks.items()]
    try:
        faces = identity_latents.shape[0]
        timestep = torch.zeros(faces, dtype=torch.long, device=identity_latents.device)
        with contextlib.suppress(_AllCollected):
            reference_unet(
                identity_latents, timestep, encoder_hidden_states=prompt_embeds.expand(faces, -1, -1)
            )
    finally:
        for handle in handles:
            handle.remove()
    return features


def project_reference(unet: UNet2DConditionModel, features: Features) -> Projections:
    """Keys and values of the reference by layer: constant over steps, guidance halves and AU variants."""
    check_reference_attention(unet)
    blocks = transformer_blocks(unet)
    return {name: blocks[name].attn1.processor.project(blocks[name].attn1, x) for name, x in features.items()}


# --- Recording attention ------------------------------------------------------------------------------------


QUERIES_AT_ONCE = 512  # bounds the memory of explicit attention weights


class AttentionRecord:
    """What `record_reference_attention` saw: a list of denoiser calls, each a dict by layer name in execution
    order; everything float32 on the CPU, weights as means over the heads.

    reference: (batch, queries, reference tokens); a query's sum is what it gives to the reference, the rest
        of 1 goes to the image's own tokens.
    reference_share: (batch,) in (0, 1): the mass on the reference, mean over all of the image's queries.
    text: (batch, text tokens): the cross-attention's weights, mean over all of the image's queries.
    """

    def __init__(self, points: torch.Tensor | None):
        self.points = points
        self.reference: list[Features] = []
        self.reference_share: list[Features] = []
        self.text: list[Features] = []
        self.thread = threading.get_ident()  # another thread may run the same module at this moment

    def begin(self) -> None:
        """A call of the denoiser starts."""
        if threading.get_ident() == self.thread:
            for calls in (self.reference, self.reference_share, self.text):
                calls.append({})

    def add_reference(self, layer: str, query: torch.Tensor, key: torch.Tensor) -> None:
        """`query` and `key` (batch, heads, tokens, head_dim); keys beyond the queries' number are the
        reference's."""
        tokens = query.shape[2]
        if threading.get_ident() != self.thread or key.shape[2] == tokens:
            return
        rows = self.rows(tokens).to(query.device)
        total, kept = 0.0, []
        for chosen in torch.arange(tokens, device=query.device).split(QUERIES_AT_ONCE):
            weights = mean_attention(query[:, :, chosen], key)[..., tokens:]
            total = total + weights.sum(dim=(1, 2))  # (batch,)
            kept.append(weights[:, torch.isin(chosen, rows)])
        kept = torch.cat(kept, dim=1)  # (batch, distinct rows in ascending order, reference tokens)
        self.reference[-1][layer] = kept[:, torch.unique(rows, return_inverse=True)[1]].cpu()
        self.reference_share[-1][layer] = (total / tokens).cpu()

    def add_text(self, layer: str, query: torch.Tensor, key: torch.Tensor) -> None:
        if threading.get_ident() == self.thread:
            parts = [mean_attention(part, key).sum(1) for part in query.split(QUERIES_AT_ONCE, dim=2)]
            self.text[-1][layer] = (sum(parts) / query.shape[2]).cpu()

    def rows(self, tokens: int) -> torch.Tensor:
        """Numbers of the tokens that `points` lie in, or of all."""
        if self.points is None:
            return torch.arange(tokens)
        side = math.isqrt(tokens)
        if side * side != tokens:
            raise ValueError(f"points need square pictures, got {tokens} tokens; record all queries instead")
        column, row = (self.points * side).long().clamp(0, side - 1).unbind(-1)  # an edge belongs inside
        return row * side + column


def mean_attention(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """(batch, heads, queries, head_dim), (batch, heads, keys, head_dim) -> (batch, queries, keys) float32"""
    logits = query.float() @ key.float().transpose(-1, -2) / math.sqrt(query.shape[-1])
    return logits.softmax(dim=-1).mean(dim=1)


class RecordingReferenceAttnProcessor(ReferenceAttnProcessor):
    """Attends as its parent does, and computes the weights once more for a record."""

    def __init__(self, layer: str, norm1: torch.nn.Module, record: AttentionRecord):
        super().__init__(layer, norm1)
        self.record = record

    def attend(self, query, key, value):
        self.record.add_reference(self.layer, query, key)
        return super().attend(query, key, value)


class RecordingTextAttnProcessor(TextAttnProcessor):
    """The stock cross-attention, whose weights are computed once more for a record."""

    def __init__(self, layer: str, record: AttentionRecord):
        super().__init__(layer)
        self.record = record

    def __call__(
        self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None, reference=None
    ):
        query, key = attn.to_q(hidden_states), attn.to_k(encoder_hidden_states)
        self.record.add_text(self.layer, split_heads(query, attn.heads), split_heads(key, attn.heads))
        return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, temb)


@contextlib.contextmanager
def record_reference_attention(
    unet: UNet2DConditionModel, points: torch.Tensor | None = None
) -> Iterator[AttentionRecord]:
    """Records the attention of what this thread runs through the denoiser; results stay what they are.

        with record_reference_attention(pipeline.unet) as record:
            pipeline(...)
        record.reference[0]["mid_block.attentions.0.transformer_blocks.0"]  # of the first step

    Under guidance the batch holds the unconditioned half first: the last rows are the conditioned ones.

    Args:
        points: (n, 2), x then y, as parts of the picture's sides: the places whose queries are recorded, each
            by the token it lies in; None: all queries, a matrix of tokens x tokens a layer and step.

    Raises:
        ValueError: where a self-attention layer has a foreign processor, or for points in oblong pictures.
    """
    check_reference_attention(unet)
    record = AttentionRecord(points)
    installed = []
    handle = unet.register_forward_pre_hook(lambda module, args: record.begin())
    try:
        for name, block in transformer_blocks(unet).items():
            installed.append((block.attn1, block.attn1.processor))
            block.attn1.set_processor(RecordingReferenceAttnProcessor(name, block.norm1, record))
            if block.attn2 is not None:
                installed.append((block.attn2, block.attn2.processor))
                block.attn2.set_processor(RecordingTextAttnProcessor(name, record))
        yield record
    finally:
        handle.remove()
        for attn, processor in installed:
            attn.set_processor(processor)


# --- Other ways to encode AUs and identity ------------------------------------------------------------------


class ActionUnitMap(ModelMixin, ConfigMixin):
    """AU variations as channels beside the latents, by a multilayer perceptron (the paper's table III).

    `save_pretrained` of the pipeline puts a copy of this file beside its weights too, where diffusers looks
    for a component's own class.

    Args:
        num_aus: length of the AU variation vector.
        channels: of the map.
        size: of the map, latents a side.
        hidden: units of each of the two hidden layers.
    """

    @register_to_config
    def __init__(self, num_aus: int = 12, channels: int = 4, size: int = 64, hidden: int = 256):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(num_aus, hidden),
            torch.nn.SiLU(),
            torch.nn.Linear(hidden, hidden),
            torch.nn.SiLU(),
            torch.nn.Linear(hidden, channels * size * size),
        )

    def forward(self, au_delta: torch.Tensor) -> torch.Tensor:
        """(batch, aus) -> (batch, channels, size, size)"""
        channels, size = self.config.channels, self.config.size
        return self.layers(au_delta).unflatten(-1, (channels, size, size))


def encode_identity(
    reference_unet: UNet2DConditionModel | None,
    image_encoder: torch.nn.Module | None,
    identity_latents: torch.Tensor,
    prompt_embeds: torch.Tensor,
) -> tuple[Features | None, torch.Tensor]:
    """What the denoiser is told of the identity besides its input channels.

    Args:
        reference_unet: the ID encoder, or None.
        image_encoder: a CLIP-shaped transformer over latents whose tokens take the prompt's place, or None.
        identity_latents: as in `encode_reference`.
        prompt_embeds: (1, text tokens, cross_attention_dim).

    Returns:
        features by layer name, or None; and the cross-attention's tokens, (faces or 1, tokens, channels).
    """
    if image_encoder is not None:
        prompt_embeds = image_encoder(identity_latents).last_hidden_state
    if reference_unet is None:
        return None, prompt_embeds
    return encode_reference(reference_unet, identity_latents, prompt_embeds), prompt_embeds


def predict_noise(
    unet: UNet2DConditionModel,
    latents: torch.Tensor,
    condition_latents: torch.Tensor,
    timesteps: torch.Tensor | int,
    prompt_embeds: torch.Tensor,
    au_delta: torch.Tensor,
    features: Features | Projections | ReferenceCache | None,
    au_map: ActionUnitMap | None = None,
    deep: "DeepFeatures | None" = None,
) -> torch.Tensor:
    """One evaluation of the denoiser.

    Args:
        latents: (batch, channels, height, width), noisy, in the scheduler's scaled space.
        condition_latents: (batch, condition channels, height, width), for a VAE the mode, not scaled.
        timesteps: (batch,) or one integer.
        prompt_embeds: (faces, text tokens, cross_attention_dim); `faces` divides `batch`, faces innermost.
        au_delta: (batch, aus) AU variations in intensity steps, 0 = keep. A denoiser whose class embedding is
            "identity" has them added to the time embedding, padded with zeros.
        features: from `encode_reference`, or projected by `project_reference`; their batch may be a divisor
            of `batch`, faces innermost. None switches the reference off (for control experiments).
        au_map: of a denoiser that takes the AUs as input channels.
        deep: if given, filled by this evaluation where it is empty, else taken instead of the deep levels.

    Returns:
        (batch, out channels, height, width): the noise, or the raw output of whatever head the model has.

    Raises:
        ValueError: where a self-attention layer has a foreign processor, or `au_delta` has another shape.
    """
    check_reference_attention(unet)
    batch, num_aus = latents.shape[0], unet.config.projection_class_embeddings_input_dim
    if au_delta.shape != (batch, num_aus):
        raise ValueError(f"au_delta must have shape ({batch}, {num_aus}), got {tuple(au_delta.shape)}")
    au_delta = au_delta.to(latents.dtype)
    channels = [latents, condition_latents]
    if au_map is not None:
        channels.append(au_map(au_delta))
    if unet.config.class_embed_type == "identity":
        au_delta = F.pad(au_delta, (0, unet.time_embedding.linear_2.out_features - num_aus))
    if prompt_embeds.shape[0] > 1:
        prompt_embeds = prompt_embeds.repeat(batch // prompt_embeds.shape[0], 1, 1)
    inputs = {
        "sample": torch.cat(channels, dim=1),
        "timestep": timesteps,
        "encoder_hidden_states": prompt_embeds.expand(batch, -1, -1),
        "class_labels": au_delta,
        "cross_attention_kwargs": {"reference": features},
    }
    if deep is not None and deep.hidden_states is not None:
        return deep.predict(unet, **inputs)
    with contextlib.nullcontext() if deep is None else deep.recorded(unet):
        return unet(**inputs).sample


# --- Reusing deep features over steps -----------------------------------------------------------------------


class DeepFeatures:
    """What entered the denoiser's last upsampling level when it was last run in full, for the steps between.

    DeepCache (Ma et al. 2023, arXiv:2312.00858): the deep levels change slowly from step to step.
    """

    def __init__(self):
        self.hidden_states: torch.Tensor | None = None  # (batch, channels, height, width)

    @contextlib.contextmanager
    def recorded(self, unet: UNet2DConditionModel) -> Iterator[None]:
        """Keeps what enters the last level in a forward of this thread."""
        thread = threading.get_ident()

        def keep(module, args, kwargs):
            if threading.get_ident() == thread:
                self.hidden_states = kwargs["hidden_states"]

        handle = unet.up_blocks[-1].register_forward_pre_hook(keep, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def predict(
        self,
        unet: UNet2DConditionModel,
        sample: torch.Tensor,
        timestep: torch.Tensor | int,
        encoder_hidden_states: torch.Tensor,
        class_labels: torch.Tensor,
        cross_attention_kwargs: dict[str, Any],
    ) -> torch.Tensor:
        """The denoiser's output by its outermost level alone; arguments as of its forward.

        A batch that lacks the unguided half takes the last rows of what was kept.
        """
        emb = unet.time_embedding(unet.get_time_embed(sample, timestep))
        class_emb = unet.get_class_embed(sample, class_labels)
        if class_emb is not None:
            emb = emb + class_emb
        text = {
            "encoder_hidden_states": encoder_hidden_states,
            "cross_attention_kwargs": cross_attention_kwargs,
        }
        first, last = unet.down_blocks[0], unet.up_blocks[-1]
        sample = unet.conv_in(sample)
        _, skips = first(sample, emb, **(text if getattr(first, "has_cross_attention", False) else {}))
        sample = last(
            hidden_states=self.hidden_states[-sample.shape[0] :],
            temb=emb,
            res_hidden_states_tuple=(sample, *skips)[: len(last.resnets)],
            **(text if getattr(last, "has_cross_attention", False) else {}),
        )
        return unet.conv_out(unet.conv_act(unet.conv_norm_out(sample)))


# --- The flow-mask-paint head -------------------------------------------------------------------------------


@dataclass
class HeadOutput:
    """What the output channels of a flow-mask-paint denoiser mean, at raw scale.

    paint: (batch, 3, height, width) in [-1, 1]; mask_logits: (batch, 1, height, width);
    flow: (batch, 2, height, width) x then y, in halves of the image's side: where to read the identity from.
    """

    paint: torch.Tensor
    mask_logits: torch.Tensor
    flow: torch.Tensor

    @property
    def mask(self) -> torch.Tensor:
        return torch.sigmoid(self.mask_logits)


def head_channels(patch_size: int, fine_flow: bool = False) -> int:
    """Output channels of a flow-mask-paint denoiser: paint and mask for each pixel of a patch, one flow a
    patch, and with `fine_flow` for each pixel what its flow differs from the patches' smooth one."""
    return 4 * patch_size**2 + 2 + (2 * patch_size**2 if fine_flow else 0)


def split_head(output: torch.Tensor, patch_size: int) -> HeadOutput:
    """Raw denoiser output (batch, `head_channels`, height/p, width/p) -> paint, mask, flow at full size."""
    output = output.float()
    area = patch_size**2
    paint, mask, flow, fine = output.split([3 * area, area, 2, output.shape[1] - 4 * area - 2], dim=1)
    flow = F.interpolate(flow * FLOW_SCALE, scale_factor=patch_size, mode="bicubic", align_corners=False)
    if fine.shape[1]:
        flow = flow + F.pixel_shuffle(fine, patch_size) * FLOW_SCALE
    return HeadOutput(F.pixel_shuffle(paint, patch_size), F.pixel_shuffle(mask, patch_size) + MASK_BIAS, flow)


def guide_head(conditioned: HeadOutput, unconditioned: HeadOutput, scale: float) -> HeadOutput:
    """Classifier-free guidance on movement and mask; paint is unconstrained where the mask is closed, so it
    is not extrapolated."""
    return HeadOutput(
        paint=conditioned.paint,
        mask_logits=torch.lerp(unconditioned.mask_logits, conditioned.mask_logits, scale),
        flow=torch.lerp(unconditioned.flow, conditioned.flow, scale),
    )


def compose_head(head: HeadOutput, identity: torch.Tensor) -> torch.Tensor:
    """`(1 - mask) * warp(identity, flow) + mask * paint`, all (batch, 3, height, width) in [-1, 1]."""
    batch, _, height, width = head.flow.shape
    ys = (torch.arange(height, device=head.flow.device) + 0.5) / height * 2 - 1
    xs = (torch.arange(width, device=head.flow.device) + 0.5) / width * 2 - 1
    grid = torch.stack(torch.meshgrid(xs, ys, indexing="xy"), dim=-1)  # (height, width, 2)
    identity = identity.float().expand(batch, -1, -1, -1)
    # grid_sample turns coordinates into memory addresses: a non-finite or huge one ends the process in its
    # backward pass. Beyond the border nothing changes, so clamping is exact; what is not finite makes the
    # picture not finite.
    finite = torch.isfinite(head.flow).all(dim=1, keepdim=True)  # (batch, 1, height, width)
    flow = torch.where(finite, head.flow, 0.0).clamp(-4, 4)
    moved = F.grid_sample(
        identity, grid + flow.permute(0, 2, 3, 1), padding_mode="border", align_corners=False
    )
    moved = torch.where(finite, moved, torch.nan)  # (batch, 3, height, width)
    return (1 - head.mask) * moved + head.mask * head.paint


def describe_change(head: HeadOutput) -> dict[str, torch.Tensor]:
    """`MagicEditPipelineOutput.change` of a guided head: float32 on the CPU, flow in pixels."""
    height, width = head.flow.shape[-2:]
    half_sides = torch.tensor([width / 2, height / 2], device=head.flow.device)
    return {
        "flow": (head.flow.permute(0, 2, 3, 1) * half_sides).cpu(),
        "mask": head.mask[:, 0].cpu(),
        "paint": ((head.paint.permute(0, 2, 3, 1) + 1) / 2).clamp(0, 1).cpu(),
    }


# --- The pipeline -------------------------------------------------------------------------------------------


@dataclass
class MagicEditPipelineOutput(BaseOutput):
    """`images`: the edited crops in the asked `output_type`.

    `change`: for a flow-mask-paint model what was done to the identity image, at the model's size: `flow`
    (batch, height, width, 2) in pixels, x then y, where each pixel was read from relative to itself; `mask`
    (batch, height, width) in [0, 1]; `paint` (batch, height, width, 3) in [0, 1]. None for other models.
    """

    images: Any
    change: dict[str, torch.Tensor] | None = None


@dataclass(frozen=True, eq=False)
class EncodedFaces:
    """What is constant for faces over steps, AU variants and calls; made by `MagicEditPipeline.encode_faces`.

    identity: (faces, 3, height, width) in [-1, 1]. condition_latents: all that is concatenated to the noisy
    latents. reference: keys and values, projected when they are first needed. weights: the state of the
    weights that made it, see `weights_version`.
    """

    identity: torch.Tensor
    identity_latents: torch.Tensor  # (faces, channels, height/s, width/s)
    condition_latents: torch.Tensor  # (faces, condition channels, height/s, width/s)
    prompt_embeds: torch.Tensor  # (faces or 1, text tokens, cross_attention_dim)
    reference: ReferenceCache
    weights: int

    def __len__(self) -> int:
        return len(self.identity)

    @staticmethod
    def join(parts: "list[EncodedFaces]") -> "EncodedFaces":
        """Faces that were encoded apart, as one batch.

        Raises:
            ValueError: where they were made by different weights.
        """
        if len({part.weights for part in parts}) != 1:
            raise ValueError("faces to join must have been encoded by the same weights")
        if len(parts) == 1:
            return parts[0]
        reference = JoinedReferenceCache([part.reference for part in parts])
        return EncodedFaces(
            *(
                torch.cat([getattr(part, name) for part in parts])
                for name in ("identity", "identity_latents", "condition_latents")
            ),
            reference.prompt_embeds,
            reference,
            parts[0].weights,
        )


def all_modules(*networks: torch.nn.Module | None) -> Iterator[torch.nn.Module]:
    """Several times as fast as `network.modules()`, which forms names and looks for twins."""
    found = [network for network in networks if network is not None]
    while found:
        module = found.pop()
        yield module
        found.extend(child for child in module._modules.values() if child is not None)


class SerialNumbers:
    """A number for each tensor, in the order in which they are first seen; unlike its `id`, no tensor that
    comes later gets it again. Keeps no tensor alive."""

    def __init__(self):
        self._entries: dict[int, tuple[weakref.ref, int]] = {}  # by id, which the next tensor may inherit
        self._numbers = itertools.count()
        self._lock = threading.Lock()

    def of(self, tensor: torch.Tensor) -> int:
        entry = self._entries.get(id(tensor))
        if entry is None or entry[0]() is not tensor:
            entry = self._enter(tensor)
        return entry[1]

    def _enter(self, tensor: torch.Tensor) -> tuple[weakref.ref, int]:
        key = id(tensor)

        def forget(reference: weakref.ref) -> None:
            if (last := self._entries.get(key)) is not None and last[0] is reference:
                del self._entries[key]

        with self._lock:
            entry = self._entries.get(key)
            if entry is None or entry[0]() is not tensor:  # no other thread was quicker
                entry = self._entries[key] = weakref.ref(tensor, forget), next(self._numbers)
            return entry


_PARAMETER_NUMBERS = SerialNumbers()


def weights_version(*networks: torch.nn.Module | None) -> int:
    """A number that changes when weights are replaced or written to, or adapters are set, scaled or merged.

    Writing through `tensor.data` by hand is the one thing that it cannot see.
    """
    marks = []
    for module in all_modules(*networks):
        for parameter in module._parameters.values():
            if parameter is not None:
                version = 0 if parameter.is_inference() else parameter._version
                marks.append((_PARAMETER_NUMBERS.of(parameter), version, parameter.dtype))
        if hasattr(module, "merged_adapters"):  # a LoRA layer of peft
            marks.append((*module.merged_adapters, *module.active_adapters, module.disable_adapters))
            marks.append(tuple(module.scaling.items()))
    return hash(tuple(marks))


@dataclass(frozen=True)
class Sampling:
    """How a call samples, see `MagicEditPipeline.sampling`.

    steps: denoiser evaluations. guidance_scale: of classifier-free guidance, 1: off. guidance_interval: the
    part of the steps on which guidance acts, 0 (the noisiest) to 1 (Kynkäänniemi et al. 2024,
    arXiv:2404.07724). feature_cache_interval: the deep levels are run at every n-th step (see
    `DeepFeatures`). tiny_decoder: decode by `tiny_vae`.
    """

    steps: int
    guidance_scale: float
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    feature_cache_interval: int = 1
    tiny_decoder: bool = False

    def __post_init__(self):
        first, last = self.guidance_interval
        if not 0 <= first <= last <= 1:
            raise ValueError(f"guidance_interval must be two parts of the steps, 0 to 1, got {first}, {last}")
        if self.feature_cache_interval < 1:
            raise ValueError(f"feature_cache_interval must be at least 1, got {self.feature_cache_interval}")

    def guides(self, step: int, steps: int) -> bool:
        """Whether guidance acts on a step, counted from 0."""
        first, last = self.guidance_interval
        return self.guidance_scale != 1.0 and first * steps <= step < last * steps


QUALITIES = ("exact", "balanced", "fast", "live")
EXACT_STEPS = 50  # of the published sampler

# Schedulers that cannot be handed the clean sample; a flow-mask-paint model serves them its noise instead.
NEEDS_NOISE = ("EulerAncestralDiscreteScheduler",)
# Schedulers that a flow-mask-paint model cannot serve, beside those of a higher order: PNDM extrapolates
# noise over steps between which its level falls by orders of magnitude; the others add noise.
NOT_FOR_COMPOSING = (
    diffusers.PNDMScheduler,
    diffusers.DDIMInverseScheduler,
    diffusers.DPMSolverMultistepInverseScheduler,
)

COMPONENT_CLASSES = {  # what a model folder may name; None: any scheduler
    "unet": ("diffusers", ("UNet2DConditionModel",)),
    "reference_unet": ("diffusers", ("UNet2DConditionModel",)),
    "vae": ("diffusers", ("AutoencoderKL",)),
    "scheduler": ("diffusers", None),
    "text_encoder": ("transformers", ("CLIPTextModel",)),
    "tokenizer": ("transformers", ("CLIPTokenizer", "CLIPTokenizerFast")),
    "image_encoder": ("transformers", ("CLIPVisionModel",)),
    "au_map": ("pipeline", ("ActionUnitMap",)),
    "tiny_vae": ("diffusers", ("AutoencoderTiny",)),
}


def load_component(
    folder: Path,
    name: str,
    named,
    dtype: torch.dtype,
    variant: str | None = None,
    pipeline_class: "type[MagicEditPipeline] | None" = None,
):
    """One component of a pipeline folder: an allowed stock class, from safetensors, every tensor accounted
    for."""
    pipeline_class = pipeline_class or MagicEditPipeline
    library, allowed = pipeline_class.component_classes[name]
    if named is not None and not (isinstance(named, list) and len(named) == 2):
        raise ValueError(f"{folder}: model_index.json must name {name} as [library, class], got {named!r}")
    if named is None or named[1] is None:
        # An old folder names no component that came later, but one without a reference says so
        if name in pipeline_class._optional_components and (named is not None or name != "reference_unet"):
            return None
        raise ValueError(f"{folder}: model_index.json names no {name}")
    if named[0] != library or not isinstance(named[1], str) or (allowed and named[1] not in allowed):
        raise ValueError(f"{folder}: {name} must be a stock {library} class {allowed or ''}, got {named}")
    if library == "pipeline":
        component_class = ActionUnitMap
    else:
        component_class = getattr(importlib.import_module(library), named[1], None)
    path = folder / name
    if not path.is_dir():  # else the libraries would take the path for a hub id
        raise ValueError(f"{folder} has no folder {name}, which its model_index.json names")
    if (path / "adapter_config.json").exists():  # transformers would follow it to weights elsewhere
        raise ValueError(f"{path} holds an adapter; save the pipeline with merged weights")
    if name == "scheduler":
        if component_class is None or not issubclass(component_class, diffusers.SchedulerMixin):
            raise ValueError(f"{folder}: scheduler must be a diffusers scheduler, got {named[1]}")
        return component_class.from_pretrained(path, local_files_only=True)
    if name == "tokenizer":
        return component_class.from_pretrained(path, local_files_only=True, trust_remote_code=False)

    pickles = sorted(p.name for p in path.glob("*") if p.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl"))
    if not list(path.glob("*.safetensors")):
        found = f"; {', '.join(pickles)} may run code when opened and is refused" if pickles else ""
        raise ValueError(f"{path} has no safetensors weights{found}")
    dtype_argument = {"dtype": dtype} if library == "transformers" else {"torch_dtype": dtype}
    component, info = component_class.from_pretrained(
        path,
        use_safetensors=True,
        variant=variant,
        local_files_only=True,
        output_loading_info=True,
        **dtype_argument,
    )
    problems = [
        f"{kind.removesuffix('_keys')}: {', '.join(str(k) for k in sorted(info[kind], key=str)[:8])}"
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")
        if info.get(kind)
    ]
    if problems:
        raise ValueError(f"the tensors of {path} do not fit its config ({'; '.join(problems)})")
    return component.eval()


class MagicEditPipeline(DiffusionPipeline, StableDiffusionLoraLoaderMixin):
    """Edits the expression of an aligned face crop by AU variations.

    A subclass names all arguments of its `__init__`, as diffusers needs it. Further components stand in its
    `component_classes`, those that may be None also in `_optional_components`.

    Args:
        unet: the denoiser; its input channels are noisy latents, condition latents and, with
            `concat_identity`, identity latents; its class embedding takes the AU variation.
        reference_unet: the ID encoder; None for a model that knows the identity by other means.
        scheduler: any diffusers scheduler with `alphas_cumprod`.
        vae: if None, pixels in [-1, 1] rearranged into patches of `patch_size` are the latents.
        text_encoder, tokenizer: if None, the text condition is a single zero token.
        image_encoder: if given, its tokens of the identity latents take the text's place.
        au_map: if given, its channels bring the AU variation instead of the class embedding.
        tiny_vae: if given, the decoder of the qualities "fast" and "live".
        prediction: "noise" (what the scheduler's `prediction_type` says), or "flow_mask_paint" (see
            `compose_head`).
        patch_size: pixels a side of a patch, for models without a VAE.
        resolution: pixels a side of the crops that the model was trained on.
        action_units: names of the AUs in the order of the condition vector, joined by commas.
        concat_identity: whether identity latents are concatenated on channels too.
        prompt: the constant text condition.
        default_steps, default_guidance_scale: what a call uses where it says nothing.
        distilled_steps: number of steps that the denoiser was distilled to, guidance baked in; 0: it was not.
    """

    model_cpu_offload_seq = "text_encoder->image_encoder->reference_unet->au_map->unet->vae->tiny_vae"
    _optional_components: ClassVar = [
        *("reference_unet", "vae", "text_encoder", "tokenizer", "image_encoder", "au_map", "tiny_vae")
    ]
    _callback_tensor_inputs: ClassVar = ["latents"]
    component_classes: ClassVar = COMPONENT_CLASSES

    def __init__(
        self,
        unet: UNet2DConditionModel,
        reference_unet: UNet2DConditionModel | None,
        scheduler,
        vae=None,
        text_encoder=None,
        tokenizer=None,
        image_encoder=None,
        au_map=None,
        tiny_vae=None,
        prediction: str = "noise",
        patch_size: int = 4,
        resolution: int = 512,
        action_units: str = MAGICFACE_ACTION_UNITS,
        concat_identity: bool = False,
        prompt: str = MAGICFACE_PROMPT,
        default_steps: int = 50,
        default_guidance_scale: float = 3.0,
        distilled_steps: int = 0,
    ):
        super().__init__()
        if prediction not in ("noise", "flow_mask_paint"):
            raise ValueError(f'prediction must be "noise" or "flow_mask_paint", got {prediction!r}')
        if prediction == "flow_mask_paint" and vae is not None:
            raise ValueError("flow_mask_paint composes pixels, so such a model has no vae")
        if len(action_units.split(",")) != unet.config.projection_class_embeddings_input_dim:
            raise ValueError(
                f"action_units names {len(action_units.split(','))} AUs, but the denoiser's AU layer takes "
                f"{unet.config.projection_class_embeddings_input_dim}"
            )
        if au_map is None and unet.class_embedding is None:
            raise ValueError(
                "the denoiser has no class embedding, so AUs reach it by an au_map only; got None"
            )
        self.register_modules(
            unet=unet,
            reference_unet=reference_unet,
            scheduler=scheduler,
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            image_encoder=image_encoder,
            au_map=au_map,
            tiny_vae=tiny_vae,
        )
        self.register_to_config(
            prediction=prediction,
            patch_size=patch_size,
            resolution=resolution,
            action_units=action_units,
            concat_identity=concat_identity,
            prompt=prompt,
            default_steps=default_steps,
            default_guidance_scale=default_guidance_scale,
            distilled_steps=distilled_steps,
        )
        install_reference_attention(unet)
        if vae is None:
            self.latent_scale = patch_size  # pixels a latent, each way
        else:
            self.latent_scale = 2 ** (len(vae.config.block_out_channels) - 1)
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.latent_scale, do_resize=False)

    @property
    def action_units(self) -> tuple[str, ...]:
        """Names of the AUs, in the order of `au_delta`."""
        return tuple(self.config.action_units.split(","))

    # -- saving and loading --

    def save_pretrained(
        self, save_directory, safe_serialization: bool = True, push_to_hub: bool = False, **kwargs
    ):
        """Saves the components as safetensors, and the file of the class beside them as `pipeline.py`.

        Of a subclass it is the subclass's own file, which works elsewhere as far as its imports do.

        Raises:
            ValueError: where `safe_serialization` is off, or the class is not defined in a file.
        """
        if not safe_serialization:
            raise ValueError("weights are saved as safetensors only; leave safe_serialization=True")
        pipeline_class = type(self)
        try:
            source = Path(inspect.getfile(pipeline_class))
        except (TypeError, OSError) as error:
            raise ValueError(
                f"{pipeline_class.__name__} is not defined in a file, which would be saved beside the weights"
            ) from error
        hub_kwargs = {
            k: kwargs.pop(k)
            for k in ("repo_id", "commit_message", "private", "token", "create_pr")
            if k in kwargs
        }
        super().save_pretrained(save_directory, safe_serialization=True, **kwargs)

        folder = Path(save_directory)
        index_file = folder / "model_index.json"
        index = json.loads(index_file.read_text())
        index["_class_name"] = ["pipeline", pipeline_class.__name__]
        copies = {folder / "pipeline.py": source}
        if self.au_map is not None:
            index["au_map"] = ["pipeline", "ActionUnitMap"]
            copies[folder / "au_map" / "pipeline.py"] = Path(inspect.getfile(ActionUnitMap))
        index.pop("_name_or_path", None)
        index_file.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
        for config_file in folder.glob(
            "*/config.json"
        ):  # where a component was loaded from says nothing to others
            config = json.loads(config_file.read_text())
            if config.pop("_name_or_path", None) is not None:
                config_file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        for target, source in copies.items():
            if source.resolve() != target.resolve():
                shutil.copyfile(source, target)
        if push_to_hub:
            self.push_to_hub(hub_kwargs.pop("repo_id", folder.name), **hub_kwargs)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        torch_dtype: torch.dtype | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        revision: str | None = None,
        variant: str | None = None,
        **overrides,
    ) -> "MagicEditPipeline":
        """Loads a folder or hub id without ever running code from it.

        Only the stock classes in `component_classes` and safetensors files are accepted. A subclass loads
        what it or a class above it has saved.

        Args:
            torch_dtype: of the weights; default float32.
            overrides: components (`scheduler=...`) or config values in place of the folder's.

        Raises:
            ValueError: where the folder is not such a pipeline, names other classes, or tensors are missing,
                unexpected or of another shape (they are named).
            OSError: where files are missing or cannot be downloaded.
        """
        folder = Path(pretrained_model_name_or_path)
        if not folder.is_dir():
            suffixes = ("json", "safetensors", "txt", "model")
            folder = Path(
                huggingface_hub.snapshot_download(
                    str(pretrained_model_name_or_path),
                    allow_patterns=[f"*.{s}" for s in suffixes] + [f"*/*.{s}" for s in suffixes],
                    cache_dir=cache_dir,
                    force_download=force_download,
                    local_files_only=local_files_only,
                    token=token,
                    revision=revision,
                )
            )
        index_file = folder / "model_index.json"
        if not index_file.is_file():
            raise ValueError(f"{folder} is not a pipeline folder: it has no model_index.json")
        index = json.loads(index_file.read_text())
        if not isinstance(index, dict):
            raise ValueError(f"{index_file} must hold an object, got {type(index).__name__}")
        class_name = index.get("_class_name")
        if isinstance(class_name, list) and class_name:
            class_name = class_name[-1]
        known = [parent.__name__ for parent in cls.__mro__ if issubclass(parent, MagicEditPipeline)]
        if class_name not in known:
            raise ValueError(
                f"{folder} holds a {class_name}, which {cls.__name__}.from_pretrained cannot load; "
                "call from_pretrained of that class"
            )

        arguments = {}
        for name, parameter in inspect.signature(cls.__init__).parameters.items():
            if name in overrides:
                arguments[name] = overrides.pop(name)
            elif name in cls.component_classes:
                arguments[name] = load_component(
                    folder, name, index.get(name), torch_dtype or torch.float32, variant, cls
                )
            elif name in index:
                default = parameter.default
                expected = (int, float) if isinstance(default, float) else type(default)
                typed = default not in (None, inspect.Parameter.empty)  # always, but in subclasses
                if typed and not isinstance(index[name], expected):
                    raise ValueError(f"{index_file}: {name} must be like {default!r}, got {index[name]!r}")
                arguments[name] = index[name]
        if overrides:
            raise ValueError(f"unknown arguments: {', '.join(sorted(overrides))}")
        pipeline = cls(**arguments)
        pipeline.register_to_config(_name_or_path=str(pretrained_model_name_or_path))
        return pipeline

    # -- latents and text --

    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        """Images (batch, 3, height, width) in [-1, 1] -> unscaled latents (batch, channels, height/s,
        width/s)."""
        if self.vae is None:
            return F.pixel_unshuffle(images, self.config.patch_size)
        return self.vae.encode(images.to(self.vae.dtype)).latent_dist.mode()

    def decode_latents(self, latents: torch.Tensor, tiny: bool = False) -> torch.Tensor:
        """Scaled latents -> images (batch, 3, height, width) in [-1, 1], by `tiny_vae` if asked for."""
        if self.vae is None:
            return F.pixel_shuffle(latents, self.config.patch_size)
        if tiny:
            latents = latents.to(self.tiny_vae.dtype) / self.tiny_vae.config.scaling_factor
            return self.tiny_vae.decode(latents).sample
        return self.vae.decode(latents.to(self.vae.dtype) / self.vae.config.scaling_factor).sample

    @torch.no_grad()
    def encode_prompt(self, device=None, dtype=None) -> torch.Tensor:
        """The constant text condition (1, text tokens, cross_attention_dim)."""
        device = device or self._device()
        if self.text_encoder is None:
            return torch.zeros(
                1, 1, self.unet.config.cross_attention_dim, device=device, dtype=dtype or self.unet.dtype
            )
        tokens = self.tokenizer(
            self.config.prompt,
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        return self.text_encoder(tokens.to(device))[0].to(dtype or self.unet.dtype)

    # -- what is constant for a face --

    def encode_faces(self, image, condition_image) -> EncodedFaces:
        """Encodes aligned face crops once, for any number of calls with `faces=`.

        Args:
            image, condition_image: as of a call.

        Raises:
            ValueError: on images that do not fit.
        """
        faces = self._encode(*self._prepare_pair(image, condition_image))
        self.maybe_free_model_hooks()
        return faces

    @torch.no_grad()
    def _encode(self, identity: torch.Tensor, condition: torch.Tensor) -> EncodedFaces:
        device, dtype = self._device(), next(self.unet.parameters()).dtype
        prompt_embeds = self.encode_prompt(device, dtype)  # (1, text tokens, cross_attention_dim)
        identity, condition = identity.to(device, dtype), condition.to(device, dtype)
        identity_latents = self.encode_images(identity).to(dtype)  # (faces, channels, height/s, width/s)
        condition_latents = self.encode_images(condition).to(dtype)
        features, prompt_embeds = encode_identity(
            self.reference_unet, self.image_encoder, identity_latents, prompt_embeds
        )
        if self.config.concat_identity:
            condition_latents = torch.cat([condition_latents, identity_latents], dim=1)
        return EncodedFaces(
            identity,
            identity_latents,
            condition_latents,
            prompt_embeds,
            ReferenceCache(features, prompt_embeds),
            self._weights_version(),
        )

    def is_current(self, faces: EncodedFaces) -> bool:
        """Whether faces were encoded by the weights, and on the device, that the pipeline has now."""
        return faces.weights == self._weights_version() and faces.identity.device == self._device()

    def _device(self) -> torch.device:
        """`_execution_device`, which takes 10 ms for a small model, only where hooks move the weights."""
        hooks = {"_hf_hook", "_diffusers_hook"}
        if any(not hooks.isdisjoint(vars(module)) for module in all_modules(self.unet)):
            return self._execution_device
        return next(self.unet.parameters()).device

    def _weights_version(self) -> int:
        networks = [part for part in self.components.values() if isinstance(part, torch.nn.Module)]
        return weights_version(*networks)

    # -- inputs --

    def sampling(self, quality: str | None = None) -> Sampling:
        """How a call of a quality samples; None: by the model's own defaults.

        "exact" samples as published. "balanced", "fast" and "live" take fewer and cheaper steps; a model
        that was distilled takes no more than it was distilled to, a compiled one always runs all levels.
        What they cost and lose, measured, stands in the project's documentation.

        Raises:
            ValueError: on an unknown quality.
        """
        config = self.config
        default = Sampling(config.default_steps, config.default_guidance_scale)
        if quality is None:
            return default
        if quality not in QUALITIES:
            raise ValueError(f"quality must be one of {', '.join(QUALITIES)}, got {quality!r}")
        if config.distilled_steps:
            most = {"fast": 2, "live": 1}.get(quality, config.distilled_steps)
            return replace(
                default, steps=min(most, config.distilled_steps), tiny_decoder=self._previews(quality)
            )
        if quality == "exact":
            return replace(default, steps=max(EXACT_STEPS, config.default_steps))
        if self.vae is None:
            # The answer of a flow-mask-paint model is its last step's: guidance before that is lost on it
            late = config.prediction == "flow_mask_paint" and quality != "live"
            return replace(
                default,
                steps={"balanced": 4, "fast": 2, "live": 1}[quality],
                guidance_interval=(0.5, 1.0) if late else (0.0, 1.0),
            )
        return replace(
            default,
            steps={"balanced": 10, "fast": 6, "live": 2}[quality],
            guidance_interval=(0.25, 0.75),
            feature_cache_interval=2 if quality == "fast" and not is_compiled(self.unet) else 1,
            tiny_decoder=self._previews(quality),
        )

    def _previews(self, quality: str) -> bool:
        return quality in ("fast", "live") and self.tiny_vae is not None

    def _prepare_pair(self, image, condition_image) -> tuple[torch.Tensor, torch.Tensor]:
        """Both images of a call, (faces, 3, height, width) in [-1, 1]."""
        identity = self._prepare_images(image, "image")
        condition = self._prepare_images(condition_image, "condition_image")
        if condition.shape != identity.shape:
            raise ValueError(
                f"condition_image must match image, got {tuple(condition.shape)} and {tuple(identity.shape)}"
            )
        return identity, condition

    def _prepare_images(self, images, name: str) -> torch.Tensor:
        """PIL, numpy or tensor in [0, 1] -> (batch, 3, height, width) in [-1, 1]; nothing is resized."""
        if isinstance(images, (np.ndarray, torch.Tensor)):
            low, high = float(images.min()), float(images.max())
            if images.dtype in (np.uint8, torch.uint8) or low < 0 or high > 1:
                raise ValueError(
                    f"{name} must hold values in [0, 1], got {images.dtype} from {low} to {high}"
                )
        images = self.image_processor.preprocess(images)
        step = self.latent_scale * 2 ** (len(self.unet.config.block_out_channels) - 1)
        height, width = images.shape[-2:]
        if images.shape[1] != 3 or height % step or width % step:
            raise ValueError(
                f"{name} must have 3 channels and sides divisible by {step} (this model was trained at "
                f"{self.config.resolution} px), got {images.shape[1]} channels, {width} x {height} px"
            )
        side = self.config.resolution
        if (height, width) != (side, side) and (self.au_map is not None or self.image_encoder is not None):
            raise ValueError(
                f"{name} must have {side} x {side} px, the only size that this model's image_encoder "
                f"or au_map knows, got {width} x {height} px"
            )
        return images

    def _prepare_au_delta(self, au_delta) -> torch.Tensor:
        au_delta = torch.as_tensor(
            np.asarray(au_delta) if isinstance(au_delta, (list, tuple)) else au_delta
        ).float()
        if au_delta.ndim == 1:
            au_delta = au_delta[None]
        if au_delta.ndim != 2 or au_delta.shape[1] != len(self.action_units):
            raise ValueError(
                f"au_delta must have shape (batch, {len(self.action_units)}) in the order "
                f"{self.config.action_units}, got {tuple(au_delta.shape)}"
            )
        if not torch.isfinite(au_delta).all():
            raise ValueError("au_delta must be finite")
        return au_delta.cpu()

    def _call_scheduler(self):
        """A scheduler of this call's own, so that calls from several threads do not share its state.

        Raises:
            ValueError: where the scheduler does not follow a noise schedule in discrete steps, or a
                flow_mask_paint model cannot serve it.
        """
        scheduler = copy.deepcopy(self.scheduler)
        if not hasattr(scheduler, "alphas_cumprod") or not hasattr(scheduler, "init_noise_sigma"):
            raise ValueError(
                f"{type(scheduler).__name__} has no cumulative alphas; use a scheduler such as DDIM or DPM++"
            )
        composed = self.config.prediction == "flow_mask_paint"
        # A step of a higher order divides the difference of two answers by the lower of two noise levels:
        # where these are far apart, small differences grow into pictures without a face
        higher_order = getattr(scheduler, "order", 1) > 1
        if composed and (higher_order or isinstance(scheduler, NOT_FOR_COMPOSING)):
            raise ValueError(
                f"a flow_mask_paint model cannot be sampled with {type(scheduler).__name__}, which would "
                "destroy the picture; use a scheduler such as DDIM, DPM++ or UniPC"
            )
        if (
            composed
            and type(scheduler).__name__ in NEEDS_NOISE
            and scheduler.config.prediction_type == "sample"
        ):
            scheduler = type(scheduler).from_config(scheduler.config, prediction_type="epsilon")
        return scheduler

    @staticmethod
    def _denoised_to_model_output(
        scheduler, denoised: torch.Tensor, noisy: torch.Tensor, timestep
    ) -> torch.Tensor:
        """What the scheduler expects instead of the clean sample; `noisy` is the *scaled* model input.

        Salimans & Ho 2022 (arXiv:2202.00512), appendix D: with x = a x0 + s eps, eps = (x - a x0) / s and
        v = a eps - s x0.
        """
        expected = scheduler.config.get("prediction_type", "epsilon")
        if expected == "sample":
            return denoised
        alphas = scheduler.alphas_cumprod.to("cpu", torch.float32)
        position = float(timestep)  # some schedulers step between the training timesteps
        low = int(position)
        high = min(low + 1, len(alphas) - 1)
        signal = torch.lerp(alphas[low], alphas[high], position - low)
        signal, sigma = float(signal.sqrt()), float((1 - signal).sqrt())
        noise = (noisy - signal * denoised) / sigma
        if expected == "epsilon":
            return noise
        if expected == "v_prediction":
            return signal * noise - sigma * denoised
        raise ValueError(
            f"a flow_mask_paint model cannot serve a scheduler with prediction_type {expected!r}"
        )

    @property
    def guidance_scale(self) -> float:
        return self._guidance_scale

    @property
    def num_timesteps(self) -> int:
        return self._num_timesteps

    @torch.no_grad()
    def __call__(
        self,
        image: PIL.Image.Image | list[PIL.Image.Image] | np.ndarray | torch.Tensor | None = None,
        condition_image: PIL.Image.Image | list[PIL.Image.Image] | np.ndarray | torch.Tensor | None = None,
        au_delta: torch.Tensor | np.ndarray | list | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[["MagicEditPipeline", int, int, dict], dict] | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],  # noqa: B006 (diffusers' own signature)
        *,
        faces: EncodedFaces | None = None,
        quality: str | None = None,
        guidance_interval: tuple[float, float] | None = None,
        feature_cache_interval: int | None = None,
        tiny_decoder: bool | None = None,
    ) -> MagicEditPipelineOutput | tuple:
        """Edits one or several aligned face crops.

        Args:
            image: the identity crops; PIL, numpy or tensor (faces, 3, height, width) in [0, 1].
            condition_image: the same crops with the face blanked and the jaw drawn, one a face.
            au_delta: (batch, aus) AU variations in intensity steps (target minus source, 0 = keep). With one
                face, any number of rows: the face is encoded once. Of several faces, one row a face, or rows
                for all faces one variant after the other.
            num_inference_steps: default: the quality's, or the model's own.
            guidance_scale: `uncond + s (cond - uncond)`, where uncond has the zero AU vector; 1 switches it
                off. Default: the model's own (3.0 unless its config says otherwise).
            generator: of the initial noise; a list (one a row) makes each result independent of the batch.
            latents: initial noise (batch, channels, height/s, width/s) of unit variance, instead of a
                generator.
            output_type: "pil", "np" (batch, height, width, 3) in [0, 1], "pt" (batch, 3, height, width) in
                [0, 1], or "latent" (scaled latents).
            callback_on_step_end: called as `callback(pipeline, step, timestep, {"latents": ...})`.
            faces: from `encode_faces`, instead of `image` and `condition_image`.
            quality: "exact", "balanced", "fast" or "live", see `sampling`; arguments that are given win.
            guidance_interval, feature_cache_interval, tiny_decoder: see `Sampling`.

        Raises:
            ValueError: on shapes that do not fit, faces that other weights encoded, a foreign attention
                processor, or a scheduler that cannot serve.
        """
        # 1. Check inputs
        given = {
            "steps": num_inference_steps,
            "guidance_scale": None if guidance_scale is None else float(guidance_scale),
            "guidance_interval": guidance_interval,
            "feature_cache_interval": feature_cache_interval,
            "tiny_decoder": tiny_decoder,
        }
        given = {name: value for name, value in given.items() if value is not None}
        sampling = replace(self.sampling(quality), **given)
        steps, guidance_scale = sampling.steps, sampling.guidance_scale
        self._guidance_scale = guidance_scale
        scheduler = self._call_scheduler()
        most = scheduler.config.num_train_timesteps
        if not 1 <= steps <= most:
            raise ValueError(f"num_inference_steps must be between 1 and {most}, got {steps}")
        if sampling.tiny_decoder and self.tiny_vae is None:
            raise ValueError("tiny_decoder needs the component tiny_vae; this pipeline has none")
        if sampling.feature_cache_interval > 1 and is_compiled(self.unet):
            raise ValueError("feature_cache_interval needs a denoiser that is not compiled as a whole")
        if output_type not in ("pil", "np", "pt", "latent"):
            raise ValueError(f'output_type must be "pil", "np", "pt" or "latent", got {output_type!r}')
        unknown = set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs)
        if unknown:
            raise ValueError(
                f"callback_on_step_end_tensor_inputs may name {self._callback_tensor_inputs}, got {unknown}"
            )
        check_reference_attention(self.unet)
        if au_delta is None:
            raise ValueError("au_delta, the AU variations, must be given")
        au_delta = self._prepare_au_delta(au_delta)  # (batch, aus)
        if (faces is None) == (image is None and condition_image is None):
            raise ValueError("pass either image and condition_image, or faces from encode_faces")
        if faces is None:
            pair = self._prepare_pair(image, condition_image)
            num_faces = len(pair[0])
        else:
            num_faces = len(faces)
        batch = au_delta.shape[0]
        if batch % num_faces:
            raise ValueError(f"au_delta must have one row for each of the {num_faces} faces, got {batch}")
        if isinstance(generator, list) and len(generator) != batch:
            raise ValueError(f"generator must be one or a list of {batch}, got {len(generator)}")
        guided = guidance_scale != 1.0 and bool(au_delta.any())  # else both halves are equal
        device, dtype = self._device(), next(self.unet.parameters()).dtype

        # 2. Encode text, condition and identity, once a face
        if faces is None:
            faces = self._encode(*pair)
        elif not self.is_current(faces):
            raise ValueError(
                "the pipeline's weights or device changed since these faces were encoded; "
                "call encode_faces again"
            )
        identity = faces.identity.repeat(batch // num_faces, 1, 1, 1)  # (batch, 3, height, width)

        # 3. Initial noise
        shape = (batch, *faces.identity_latents.shape[1:])
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device, dtype=dtype)
        elif tuple(latents.shape) != shape:
            raise ValueError(f"latents must have shape {shape}, got {tuple(latents.shape)}")
        # The scheduler's arithmetic stays on the CPU, where nothing waits for the device
        scheduler.set_timesteps(steps, device="cpu")
        if isinstance(scheduler, diffusers.EulerAncestralDiscreteScheduler):
            # Its step takes the root of a difference, which rounding makes negative between far levels
            scheduler.sigmas = scheduler.sigmas.double()
        timesteps = scheduler.timesteps
        device_timesteps = timesteps.to(device)
        self._num_timesteps = len(timesteps)
        latents = latents.to(device, dtype) * scheduler.init_noise_sigma

        # 4. Conditions of both guidance halves, the unguided one first
        au_condition = au_delta.to(device, dtype)
        au_condition = torch.cat([torch.zeros_like(au_condition), au_condition])  # (2 batch, aus)
        condition_latents = faces.condition_latents.repeat(2 * batch // num_faces, 1, 1, 1)

        # 5. Denoise
        if is_compiled(self.unet):
            faces.reference.fill(self.unet)
        head, deep, reusable = None, None, 0  # reusable: steps that the deep features still serve
        step_kwargs = {}
        if (
            "generator" in inspect.signature(scheduler.step).parameters
        ):  # stochastic ones draw from the call's own
            step_kwargs["generator"] = generator
        with self.progress_bar(total=len(timesteps)) as progress:
            for step, timestep in enumerate(timesteps):
                noisy = scheduler.scale_model_input(latents, timestep)
                guides = guided and sampling.guides(step, len(timesteps))
                rows = 2 * batch if guides else batch
                if sampling.feature_cache_interval > 1 and (not reusable or len(deep.hidden_states) < rows):
                    deep, reusable = DeepFeatures(), sampling.feature_cache_interval
                reusable -= 1
                output = predict_noise(
                    self.unet,
                    torch.cat([noisy, noisy]) if guides else noisy,
                    condition_latents[-rows:],
                    device_timesteps[step],
                    faces.prompt_embeds,
                    au_condition[-rows:],
                    faces.reference,
                    self.au_map,
                    deep,
                )
                if self.config.prediction == "flow_mask_paint":
                    head = split_head(output[-batch:], self.config.patch_size)
                    if guides:
                        head = guide_head(
                            head, split_head(output[:batch], self.config.patch_size), guidance_scale
                        )
                    denoised = self.encode_images(compose_head(head, identity).clamp(-1, 1))
                    model_output = self._denoised_to_model_output(
                        scheduler, denoised, noisy.float(), timestep
                    ).to(dtype)
                elif guides:
                    unconditioned, conditioned = output.chunk(2)
                    model_output = unconditioned + guidance_scale * (conditioned - unconditioned)
                else:
                    model_output = output
                latents = scheduler.step(model_output, timestep, latents, **step_kwargs, return_dict=False)[0]
                latents = latents.to(dtype)

                if callback_on_step_end is not None:
                    latents = callback_on_step_end(self, step, timestep, {"latents": latents}).pop(
                        "latents", latents
                    )
                progress.update()

        # 6. Decode
        if output_type == "latent":
            images = latents
        else:
            if head is not None:
                images = compose_head(head, identity).clamp(-1, 1)  # what `change` describes, to the bit
            else:
                images = self.decode_latents(latents, sampling.tiny_decoder)
            images = self.image_processor.postprocess(images.float(), output_type=output_type)
        change = None if head is None else describe_change(head)
        self.maybe_free_model_hooks()
        if not return_dict:
            return (images, change)
        return MagicEditPipelineOutput(images=images, change=change)
