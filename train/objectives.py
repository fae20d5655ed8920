"""What the denoiser learns: pure functions from its output to a loss."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from magicedit.pipelines.pipeline_magicedit import HeadOutput, compose_head, split_head


def add_noise(clean: torch.Tensor, noise: torch.Tensor, alphas: torch.Tensor) -> torch.Tensor:
    """`sqrt(a) x0 + sqrt(1 - a) eps` with `alphas` (batch,), cumulative (Ho et al. 2020, eq. 4)."""
    alphas = alphas.view(-1, *[1] * (clean.ndim - 1))
    return alphas.sqrt() * clean + (1 - alphas).sqrt() * noise


def min_snr_weights(alphas: torch.Tensor, gamma: float, prediction_type: str) -> torch.Tensor:
    """Loss weight of each timestep, (batch,): min(SNR, gamma) over what the target already carries.

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
    """Mean squared error to what the scheduler's `prediction_type` names; all (batch, channels, height,
    width)."""
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
class ComposedLoss:
    """Terms of the flow-mask-paint objective; `total` is weighted, the others are as they are."""

    total: torch.Tensor
    pixels: torch.Tensor
    flow: torch.Tensor
    mask: torch.Tensor


def composed_objective(
    output: torch.Tensor,
    source: torch.Tensor,
    target: torch.Tensor,
    patch_size: int,
    *,
    change_weight: float,
    flow_weight: float = 0.0,
    mask_weight: float = 0.0,
    known_flow: torch.Tensor | None = None,
) -> ComposedLoss:
    """The composed image against the target.

    Args:
        output: raw denoiser output, (batch, 4 p^2 + 2, height/p, width/p).
        source, target: (batch, 3, height, width) in [-1, 1].
        change_weight: a pixel whose colour changes by d (mean over channels and patch, at most 0.5) counts
            1 + change_weight * d times.
        flow_weight: of the mean squared distance to `known_flow`.
        mask_weight: of the mean mask; moved pixels keep the photograph's resolution, painted ones do not.
        known_flow: (batch, height, width, 2) in pixels, x then y, where a pixel of the target was read in the
            source; NaN where it is not known. Moving flat skin changes no colour, so colour alone teaches it
            slowly.
    """
    head: HeadOutput = split_head(output, patch_size)
    composed = compose_head(head, source)  # (batch, 3, height, width)
    difference = F.avg_pool2d((target - source).abs().mean(1, keepdim=True), patch_size)
    weight = 1 + change_weight * difference.clamp(max=0.5)
    weight = F.interpolate(weight, scale_factor=patch_size, mode="nearest")  # (batch, 1, height, width)
    pixels = (weight * (composed - target).pow(2)).mean()
    mask = head.mask.mean()

    flow = pixels.new_zeros(())
    if known_flow is not None and flow_weight:
        height, width = known_flow.shape[1:3]
        half_sides = known_flow.new_tensor([width / 2, height / 2])
        predicted = head.flow.permute(0, 2, 3, 1) * half_sides  # pixels
        known = torch.isfinite(known_flow).all(-1, keepdim=True)
        error = torch.where(known, predicted - torch.nan_to_num(known_flow), 0.0)
        flow = error.pow(2).sum() / known.sum().clamp(min=1)
    return ComposedLoss(pixels + flow_weight * flow + mask_weight * mask, pixels, flow, mask)
