"""The heads, which interpret a denoiser's output channels: one class for each kind of prediction."""

import copy
from dataclasses import dataclass

import diffusers
import torch
import torch.nn.functional as F

# The flow-mask-paint head: raw network output to units. One unit of raw flow is a tenth of half the image's
# side, so that initial flows are a few pixels; the mask starts near sigmoid(-3) = 0.05, so that initial
# images are copies.
FLOW_SCALE = 0.1
MASK_BIAS = -3.0


@dataclass
class HeadOutput:
    """Parts of a flow-mask-paint denoiser's output.

    paint: (batch, 3, height, width) in [-1, 1]; mask_logits: (batch, 1, height, width); flow: (batch, 2,
    height, width) x then y, in halves of the image's side: where to read the identity.
    """

    paint: torch.Tensor
    mask_logits: torch.Tensor
    flow: torch.Tensor

    @property
    def mask(self) -> torch.Tensor:
        return torch.sigmoid(self.mask_logits)


def head_channels(patch_size: int, fine_flow: bool = False) -> int:
    """Output channels of a flow-mask-paint denoiser: paint and mask for each pixel of a patch, one flow a
    patch, and with `fine_flow` each pixel's difference from the patches' smooth flow."""
    return 4 * patch_size**2 + 2 + (2 * patch_size**2 if fine_flow else 0)


def split_head(output: torch.Tensor, patch_size: int) -> HeadOutput:
    """Raw denoiser output (batch, `head_channels`, height/p, width/p) -> its parts at full size."""
    output = output.float()
    area = patch_size**2
    paint, mask, flow, fine = output.split([3 * area, area, 2, output.shape[1] - 4 * area - 2], dim=1)
    flow = F.interpolate(flow * FLOW_SCALE, scale_factor=patch_size, mode="bicubic", align_corners=False)
    if fine.shape[1]:
        flow = flow + F.pixel_shuffle(fine, patch_size) * FLOW_SCALE
    return HeadOutput(F.pixel_shuffle(paint, patch_size), F.pixel_shuffle(mask, patch_size) + MASK_BIAS, flow)


def guide_head(conditioned: HeadOutput, unconditioned: HeadOutput, scale: float) -> HeadOutput:
    """Classifier-free guidance on movement and mask; not on paint, which is arbitrary under a closed mask."""
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
    # grid_sample turns coordinates into memory addresses: non-finite or huge ones crash its backward pass.
    # Clamping is exact, because nothing changes beyond the border; non-finite flow gives non-finite pixels.
    finite = torch.isfinite(head.flow).all(dim=1, keepdim=True)  # (batch, 1, height, width)
    flow = torch.where(finite, head.flow, 0.0).clamp(-4, 4)
    moved = F.grid_sample(
        identity, grid + flow.permute(0, 2, 3, 1), padding_mode="border", align_corners=False
    )
    moved = torch.where(finite, moved, torch.nan)  # (batch, 3, height, width)
    return (1 - head.mask) * moved + head.mask * head.paint


class NoiseHead:
    """The denoiser predicts in the scheduler's own terms; the picture is decoded from the last latents."""

    picture = change = None

    def model_output(self, output, unguided, scale, noisy, timestep) -> torch.Tensor:
        """Returns the input of the scheduler's step.

        output: the denoiser's, (batch, out channels, height, width), with the AU variation. unguided: the
        same without it; None: no guidance. scale: of classifier-free guidance. noisy: the denoiser's input
        latents, scaled by the scheduler.
        """
        return output if unguided is None else unguided + scale * (output - unguided)


class FlowMaskPaintHead:
    """The denoiser predicts a change of the identity image; the picture is that of the last step.

    identity: (batch, 3, height, width) in [-1, 1].
    """

    def __init__(self, identity: torch.Tensor, patch_size: int, scheduler):
        self.identity, self.patch_size, self.scheduler = identity, patch_size, scheduler
        self.head: HeadOutput | None = None

    @property
    def picture(self) -> torch.Tensor:
        """(batch, 3, height, width) in [-1, 1], equal to `change` applied to the identity, which it is before
        the first step."""
        if self.head is None:
            return self.identity
        return compose_head(self.head, self.identity).clamp(-1, 1)

    @property
    def change(self) -> dict[str, torch.Tensor] | None:
        """`MagicEditPipelineOutput.change`: float32 on the CPU, flow in pixels; None before a first step."""
        if self.head is None:
            return None
        height, width = self.head.flow.shape[-2:]
        half_sides = torch.tensor([width / 2, height / 2], device=self.head.flow.device)
        return {
            "flow": (self.head.flow.permute(0, 2, 3, 1) * half_sides).cpu(),
            "mask": self.head.mask[:, 0].cpu(),
            "paint": ((self.head.paint.permute(0, 2, 3, 1) + 1) / 2).clamp(0, 1).cpu(),
        }

    def model_output(self, output, unguided, scale, noisy, timestep) -> torch.Tensor:
        """See `NoiseHead.model_output`."""
        self.head = split_head(output, self.patch_size)
        if unguided is not None:
            self.head = guide_head(self.head, split_head(unguided, self.patch_size), scale)
        denoised = F.pixel_unshuffle(self.picture, self.patch_size)
        return scheduler_answer(self.scheduler, denoised, noisy.float(), timestep).to(noisy.dtype)


# Schedulers that do not accept the clean sample; a flow-mask-paint model gives them its noise instead.
NEEDS_NOISE = ("EulerAncestralDiscreteScheduler",)
# Schedulers that fail with flow-mask-paint models, beside those of a higher order: PNDM extrapolates noise
# over steps between which its level falls by orders of magnitude; the others add noise.
NOT_FOR_COMPOSING = (
    diffusers.PNDMScheduler,
    diffusers.DDIMInverseScheduler,
    diffusers.DPMSolverMultistepInverseScheduler,
)


def own_scheduler(scheduler, steps: int, composed: bool):
    """Returns a copy with its timesteps set, so that threads do not share its state.

    steps: denoiser evaluations. composed: whether the model is a flow-mask-paint one.
    Raises ValueError where the scheduler has no noise schedule of discrete steps, cannot take that many, or
    fails with a flow-mask-paint model.
    """
    scheduler, name = copy.deepcopy(scheduler), type(scheduler).__name__
    if not hasattr(scheduler, "alphas_cumprod") or not hasattr(scheduler, "init_noise_sigma"):
        raise ValueError(f"{name} has no cumulative alphas; use a scheduler such as DDIM or DPM++")
    # A step of a higher order divides the difference of two predictions by the lower of two noise levels: if
    # these are far apart, small differences destroy the face
    higher_order = getattr(scheduler, "order", 1) > 1
    if composed and (higher_order or isinstance(scheduler, NOT_FOR_COMPOSING)):
        raise ValueError(
            f"a flow_mask_paint model cannot be sampled with {name}, which would destroy the picture; "
            "use a scheduler such as DDIM, DPM++ or UniPC"
        )
    if composed and name in NEEDS_NOISE and scheduler.config.prediction_type == "sample":
        scheduler = type(scheduler).from_config(scheduler.config, prediction_type="epsilon")
    most = scheduler.config.num_train_timesteps
    if not 1 <= steps <= most:
        raise ValueError(f"num_inference_steps must be between 1 and {most}, got {steps}")
    scheduler.set_timesteps(steps, device="cpu")  # its arithmetic need not wait for the device
    if isinstance(scheduler, diffusers.EulerAncestralDiscreteScheduler):
        # Its step takes the root of a difference that float32 rounding can make negative
        scheduler.sigmas = scheduler.sigmas.double()
    return scheduler


def scheduler_answer(scheduler, denoised: torch.Tensor, noisy: torch.Tensor, timestep) -> torch.Tensor:
    """Converts the clean sample to the scheduler's prediction type; `noisy` is the *scaled* model input.

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
    raise ValueError(f"a flow_mask_paint model cannot serve a scheduler with prediction_type {expected!r}")
