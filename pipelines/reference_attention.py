"""Reference attention: a denoiser whose self-attention also reads the hidden states of an ID encoder.

This is the model of MagicFace (Wei et al. 2025, arXiv:2501.02260), built from two stock
`UNet2DConditionModel`s: a *denoiser*, whose class embedding is a linear layer on the AU variation, and a
*reference* UNet (the ID encoder), whose hidden states before each self-attention are further keys and values
of the denoiser's. The paper's other encodings of AUs and identity (tables II and III) can be loaded too.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin, UNet2DConditionModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import AttnProcessor2_0

Features = dict[str, torch.Tensor]  # layer name -> hidden states entering norm1, (faces, tokens, channels)
# Layer name -> key, value, (faces, tokens, inner_dim)
Projections = dict[str, tuple[torch.Tensor, torch.Tensor]]


class ReferenceCache:
    """Keys and values that are constant for faces: over steps, guidance halves, AU variants and calls.

    Reference features and text are projected on each layer's first use; a second thread at the same moment
    computes the same. It is no dict, because offloading hooks copy dicts.

    features: of the reference by layer name, or already projected; None: a model without a reference.
    prompt_embeds: (faces or 1, text tokens, cross_attention_dim); None: the text is projected each time.
    """

    def __init__(self, features: "Features | Projections | None", prompt_embeds: torch.Tensor | None = None):
        self.prompt_embeds = prompt_embeds
        self._reference: dict[str, Any] | None = None if features is None else dict(features)
        self._text: Projections = {}

    def reference(self, layer: str, project: Callable) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Returns key and value of the reference in a layer, at first by `project(features)`."""
        if self._reference is None:
            return None
        entry = self._reference[layer]
        if not isinstance(entry, tuple):
            entry = self._reference[layer] = project(entry)
        return entry

    def text(self, layer: str, project: Callable) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns key and value of the text in a layer, at first by `project(prompt_embeds)`."""
        if layer not in self._text:
            self._text[layer] = project(self.prompt_embeds)
        return self._text[layer]

    def fill(self, unet: UNet2DConditionModel) -> None:
        """Projects for all layers now, for denoisers whose forward must not store anything."""
        for name, block in transformer_blocks(unet).items():
            self.reference(name, partial(block.attn1.processor.project, block.attn1))
            if self.prompt_embeds is not None and block.attn2 is not None:
                self.text(name, partial(block.attn2.processor.project, block.attn2))


class JoinedReferenceCache(ReferenceCache):
    """The caches of several faces as one batch; each face's own cache keeps its projections."""

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

    Equal to the published "concatenate before norm1, attend over both, drop the second half", because
    LayerNorm and the projections act on each token alone. norm1: of the denoiser's block, through which the
    reference passes.
    """

    heads_at_once: int | None = None  # see `set_reference_slices`

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

        heads = [split_heads(x, attn.heads) for x in (query, key, value)]
        if self.heads_at_once is None:
            attended = self.attend(*heads)
        else:
            slices = zip(*(x.split(self.heads_at_once, dim=1) for x in heads), strict=True)
            attended = torch.cat([self.attend(*part) for part in slices], dim=1)
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
    """The stock cross-attention with keys and values from a `ReferenceCache`."""

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
    """Returns the self-attending blocks by layer name, e.g. `mid_block.attentions.0.transformer_blocks.0`,
    without the names that `torch.compile` adds."""
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


def set_reference_slices(unet: UNet2DConditionModel, slice_size: int | str | None) -> None:
    """Makes the denoiser's self-attention attend with `slice_size` heads at a time: "max" one, "auto" half of
    them, None all. ValueError on another value, more heads than a layer has, and as
    `check_reference_attention`."""
    check_reference_attention(unet)
    named = {"auto": lambda heads: max(1, heads // 2), "max": lambda heads: 1, None: lambda heads: None}
    most = min(block.attn1.heads for block in transformer_blocks(unet).values())
    is_number = isinstance(slice_size, int) and not isinstance(slice_size, bool)
    if slice_size not in named and not (is_number and 1 <= slice_size <= most):
        raise ValueError(
            f'slice_size must be "auto", "max", None or a number of heads from 1 to {most}, got '
            f"{slice_size!r}"
        )
    for block in transformer_blocks(unet).values():
        of_heads = named.get(slice_size)
        block.attn1.processor.heads_at_once = of_heads(block.attn1.heads) if of_heads else slice_size


def check_reference_attention(unet: UNet2DConditionModel) -> None:
    """Raises ValueError, naming the layer, unless every self-attention has our processor.

    The denoiser's own `fuse_qkv_projections`, `set_attention_slice` and others replace it, which silently
    loses the identity; those of the pipeline do not.
    """
    for name, block in transformer_blocks(unet).items():
        if not isinstance(block.attn1.processor, ReferenceAttnProcessor):
            raise ValueError(
                f"{name}.attn1 has the processor {type(block.attn1.processor).__name__}, which ignores the "
                "reference face. Call install_reference_attention(unet) after whatever replaced it."
            )


class _AllCollected(Exception):
    """Ends the ID encoder's forward; layers after the last collected feature are unused."""


def encode_reference(
    reference_unet: UNet2DConditionModel,
    identity_latents: torch.Tensor,
    prompt_embeds: torch.Tensor,
    to_end: bool = False,
) -> Features:
    """Runs the ID encoder once at timestep 0, up to the last `norm1`, and returns the inputs of each of them:
    hidden states (faces, tokens, channels) by layer name, in execution order.

    identity_latents: (faces, channels, height, width), for a VAE the posterior's mode, not scaled.
    prompt_embeds: (faces or 1, text tokens, cross_attention_dim). to_end: run what is behind the last `norm1`
    too, for hooks of others that count on the end of a forward.
    """
    reference_unet = getattr(reference_unet, "_orig_mod", reference_unet)  # hooks need the uncompiled module
    features: Features = {}
    thread = threading.get_ident()  # another thread may run the same module at this moment
    blocks = transformer_blocks(reference_unet)

    def keep(name):
        def hook(module, args):
            if threading.get_ident() == thread:
                features[name] = args[0]
                if len(features) == len(blocks) and not to_end:
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
    """Returns keys and values of the reference by layer, see `ReferenceCache`."""
    check_reference_attention(unet)
    blocks = transformer_blocks(unet)
    return {name: blocks[name].attn1.processor.project(blocks[name].attn1, x) for name, x in features.items()}


class ActionUnitMap(ModelMixin, ConfigMixin):
    """AU variations as channels beside the latents, by a multilayer perceptron (the paper's table III).

    The pipeline's `save_pretrained` also copies this file beside its weights, where diffusers looks for it.

    num_aus: length of the AU variation vector. channels, size: of the map; latents a side. hidden: units of
    each of the two hidden layers.
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
    """Returns the identity's features by layer name, or None; and the cross-attention's tokens, (faces or 1,
    tokens, channels).

    reference_unet: the ID encoder, or None. image_encoder: a CLIP-shaped transformer over latents, whose
    tokens replace the prompt's, or None. identity_latents: as in `encode_reference`. prompt_embeds: (1, text
    tokens, cross_attention_dim).
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
    """Evaluates the denoiser once; returns its raw output, (batch, out channels, height, width).

    Args:
        latents: (batch, channels, height, width), noisy, scaled by the scheduler.
        condition_latents: (batch, condition channels, height, width), for a VAE the mode, not scaled.
        timesteps: (batch,) or one integer.
        prompt_embeds: (faces, text tokens, cross_attention_dim); `faces` divides `batch`, faces innermost.
        au_delta: (batch, aus) AU variations in intensity steps, 0 = keep. With the class embedding "identity"
            they are padded with zeros and added to the time embedding.
        features: from `encode_reference`, or projected by `project_reference`; their batch may be a divisor
            of `batch`, faces innermost. None switches the reference off (for control experiments).
        au_map: of a denoiser that takes the AUs as input channels.
        deep: if given: if empty, this evaluation fills it; else it replaces the deep levels.

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


class DeepFeatures:
    """The input of the denoiser's last upsampling level at its last full run, reused in the steps between.

    DeepCache (Ma et al. 2023, arXiv:2312.00858): the deep levels change slowly from step to step.
    """

    def __init__(self):
        self.hidden_states: torch.Tensor | None = None  # (batch, channels, height, width)

    @contextlib.contextmanager
    def recorded(self, unet: UNet2DConditionModel) -> Iterator[None]:
        """Stores the input of the last level in a forward of this thread."""
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
        """Returns the denoiser's output from its outermost level alone; arguments as of its forward.

        A batch without the unguided half uses the last stored rows.
        """
        emb = unet.time_embedding(unet.get_time_embed(sample, timestep))
        class_emb = unet.get_class_embed(sample, class_labels)
        if class_emb is not None:
            emb = emb + class_emb
        first, last = unet.down_blocks[0], unet.up_blocks[-1]
        own = {
            "encoder_hidden_states": encoder_hidden_states,
            "cross_attention_kwargs": cross_attention_kwargs,
        }
        text = [own if getattr(block, "has_cross_attention", False) else {} for block in (first, last)]
        sample = unet.conv_in(sample)
        _, skips = first(sample, emb, **text[0])
        sample = last(
            hidden_states=self.hidden_states[-sample.shape[0] :],
            temb=emb,
            res_hidden_states_tuple=(sample, *skips)[: len(last.resnets)],
            **text[1],
        )
        return unet.conv_out(unet.conv_act(unet.conv_norm_out(sample)))
