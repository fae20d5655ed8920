"""Losses of the denoiser's output, as pure functions."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from magicedit.pipelines.heads import HeadOutput, compose_head, split_head

FLOW_TOLERANCE = 0.1  # px below which the distance of flows is smooth


def add_noise(clean: torch.Tensor, noise: torch.Tensor, alphas: torch.Tensor) -> torch.Tensor:
    """`sqrt(a) x0 + sqrt(1 - a) eps` with `alphas` (batch,), cumulative (Ho et al. 2020, eq. 4)."""
    alphas = alphas.view(-1, *[1] * (clean.ndim - 1))
    return alphas.sqrt() * clean + (1 - alphas).sqrt() * noise


def min_snr_weights(alphas: torch.Tensor, gamma: float, prediction_type: str) -> torch.Tensor:
    """Returns the loss weight of each timestep, (batch,): min(SNR, gamma) over the target's own weight.

    Hang et al. 2023 (arXiv:2303.09556), section 3.4: divided by SNR for noise, by SNR + 1 for velocity.
    """
    snr = alphas / (1 - alphas).clamp(min=1e-12)
    divisor = {"epsilon": snr, "v_prediction": snr + 1, "sample": torch.ones_like(snr)}[prediction_type]
    return snr.clamp(max=gamma) / divisor.clamp(min=1e-12)


def noise_objective(
    output: torch.Tensor,
    clean: torch.Tensor,
    noise: torch.Tensor,
    alphas: torch.Tensor,
    prediction_type: str = "epsilon",
    snr_gamma: float | None = None,
) -> torch.Tensor:
    """Mean squared error to the scheduler's `prediction_type`; all (batch, channels, height, width)."""
    wide = alphas.view(-1, 1, 1, 1)
    target = {
        "epsilon": noise,
        "sample": clean,
        "v_prediction": wide.sqrt() * noise - (1 - wide).sqrt() * clean,
    }[prediction_type]
    loss = (output.float() - target.float()).pow(2).mean(dim=(1, 2, 3))  # (batch,)
    if snr_gamma is not None:
        loss = loss * min_snr_weights(alphas, snr_gamma, prediction_type)
    return loss.mean()


@dataclass(frozen=True)
class Relation:
    """The known relation of targets to their sources, see `magicedit.data.pairs`.

    flow: (batch, height, width, 2) px, where a pixel of the target was read in the source. mask: (batch,
    height, width), the share that movement does not explain, 0..1. Both NaN where unknown. weight: (batch,
    height, width), of a pixel's colour and flow, 0 where source and target cannot be compared.
    """

    flow: torch.Tensor
    mask: torch.Tensor
    weight: torch.Tensor


@dataclass(frozen=True)
class ComposedWeights:
    """Weights of the parts of the flow-mask-paint objective.

    change: a pixel whose colour changes by d (mean over channels and patch, at most 0.5) counts 1 + change *
    d times. edges: of the mean absolute error of differences between neighbouring pixels, which keeps paint
    sharp. flow: of the distance to the known flow, px. known_mask: of the cross-entropy to the known mask.
    mask: of the mask where it is unknown, because paint loses the photograph's resolution. The two costs of
    the mask are averaged over all pixels together.
    """

    change: float = 8.0
    edges: float = 0.0
    flow: float = 0.0
    known_mask: float = 0.0
    mask: float = 0.0


@dataclass(frozen=True)
class ComposedLoss:
    """Terms of the flow-mask-paint objective; only `total` is weighted."""

    total: torch.Tensor
    pixels: torch.Tensor
    edges: torch.Tensor
    flow: torch.Tensor
    mask: torch.Tensor


def composed_objective(
    output: torch.Tensor,
    source: torch.Tensor,
    target: torch.Tensor,
    patch_size: int,
    weights: ComposedWeights,
    relation: Relation | None = None,
) -> ComposedLoss:
    """Compares the composed image with the target.

    Args:
        output: raw denoiser output, see `split_head`.
        source, target: (batch, 3, height, width) in [-1, 1].
        relation: teaches movement, which hardly changes the colours of flat skin; None: unknown.
    """
    head: HeadOutput = split_head(output, patch_size)
    composed = compose_head(head, source)  # (batch, 3, height, width)
    difference = F.avg_pool2d((target - source).abs().mean(1, keepdim=True), patch_size)
    weight = 1 + weights.change * difference.clamp(max=0.5)
    weight = F.interpolate(weight, scale_factor=patch_size, mode="nearest")  # (batch, 1, height, width)
    if relation is not None:
        weight = weight * relation.weight[:, None]
    error = composed - target
    pixels = (weight * error.pow(2)).mean()
    across, down = error.diff(dim=-1).abs(), error.diff(dim=-2).abs()
    edges = (torch.minimum(weight[..., 1:], weight[..., :-1]) * across).mean()
    edges = edges + (torch.minimum(weight[..., 1:, :], weight[..., :-1, :]) * down).mean()
    flow, mask = _related(head, relation, weights)
    total = pixels + weights.edges * edges + weights.flow * flow + mask
    return ComposedLoss(total, pixels, edges, flow, head.mask.mean())


def _related(
    head: HeadOutput, relation: Relation | None, weights: ComposedWeights
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean distance to the known flow, px, by the relation's weight, and the weighted cost of the mask."""
    if relation is None:
        return head.mask.new_zeros(()), weights.mask * head.mask.mean()
    height, width = relation.flow.shape[1:3]
    half_sides = relation.flow.new_tensor([width / 2, height / 2])
    predicted = head.flow.permute(0, 2, 3, 1) * half_sides  # px
    known = torch.isfinite(relation.flow).all(-1)  # (batch, height, width)
    squared = (predicted - torch.nan_to_num(relation.flow)).pow(2).sum(-1)
    # Distances, because squares would make the small movements of brows and lids negligible beside a smile
    distance = (squared + FLOW_TOLERANCE**2).sqrt() - FLOW_TOLERANCE
    counts = torch.where(known, relation.weight, 0.0)
    flow = (counts * distance).sum() / counts.sum().clamp(min=1)

    known = torch.isfinite(relation.mask)
    entropy = F.binary_cross_entropy_with_logits(
        head.mask_logits[:, 0], torch.nan_to_num(relation.mask), reduction="none"
    )
    cost = torch.where(known, weights.known_mask * entropy, weights.mask * head.mask[:, 0])
    return flow, cost.mean()
