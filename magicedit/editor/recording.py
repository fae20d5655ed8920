"""Records the attention from places of a picture to the reference while a denoiser runs."""

import contextlib
import math
import threading
from collections.abc import Iterator

import torch
from diffusers import UNet2DConditionModel

from magicedit.pipelines.reference_attention import (
    Features,
    ReferenceAttnProcessor,
    TextAttnProcessor,
    check_reference_attention,
    split_heads,
    transformer_blocks,
)

QUERIES_AT_ONCE = 512  # bounds the memory of explicit attention weights


class AttentionRecord:
    """What `record_reference_attention` saw: a list of denoiser calls, each a dict by layer name in execution
    order; everything float32 on the CPU, weights as means over the heads.

    reference: (batch, queries, reference tokens); a query's weights sum to its share for the reference, the
        remainder to 1 goes to the image's own tokens.
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
        """`query` and `key` (batch, heads, tokens, head_dim); keys beyond the number of queries belong to the
        reference."""
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
        """Returns the numbers of the tokens that contain `points`, or of all tokens."""
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
    """Attends like its parent, and computes the weights once more for a record."""

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
    """Records the attention of denoiser calls of this thread without changing their results.

        with record_reference_attention(pipeline.unet) as record:
            pipeline(...)
        record.reference[0]["mid_block.attentions.0.transformer_blocks.0"]  # of the first step

    Under guidance the batch holds the unconditioned half first: the last rows are the conditioned ones.

    points: (n, 2), x then y, as parts of the picture's sides: the places whose queries are recorded, each by
    the token it lies in; None: all queries, a tokens x tokens matrix per layer and step. Raises ValueError
    for self-attention layers with an unknown processor, or points in non-square pictures.
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
