"""Distillation: a student that does in one step what its guided teacher does in several.

Progressive distillation (Salimans & Ho 2022, arXiv:2202.00512) of a teacher whose steps are guided (Meng et
al. 2023, arXiv:2210.03142, with one fixed guidance scale), so that the student needs no unguided branch.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import DDIMScheduler

from magicedit.errors import ModelError
from magicedit.models import pipeline_digest, predict_noise
from magicedit.pipelines.heads import HeadOutput, compose_head, guide_head, split_head
from magicedit.pipelines.pipeline_magicedit import MagicEditPipeline
from magicedit.pipelines.reference_attention import Features, ReferenceCache
from magicedit.train.compiled import compiled
from magicedit.train.objectives import Relation

LEAST_SIGNAL = 1e-4  # cumulative alpha below which a clean sample cannot be read from predicted noise


@dataclass(frozen=True)
class Intervals:
    """The student's steps and what the teacher does in each, noisiest first.

    timesteps: (distill_steps, teacher steps in one), where the teacher is asked; the first of each row is
    where the student is. alphas: (distill_steps, teacher steps in one + 1), cumulative, of the same places
    and the interval's end.
    """

    timesteps: torch.Tensor
    alphas: torch.Tensor

    @property
    def student_timesteps(self) -> tuple[int, ...]:
        return tuple(self.timesteps[:, 0].tolist())

    def index(self, timesteps: torch.Tensor) -> torch.Tensor:
        """Numbers of the intervals that start at `timesteps`, (batch,) each."""
        starts = self.timesteps[:, 0]
        return (timesteps[:, None] == starts).long().argmax(dim=1)

    def end_clean(self, interval: torch.Tensor) -> torch.Tensor:
        """Whether these intervals (batch,) are the last, whose result is what a call returns."""
        return interval == len(self.timesteps) - 1


def student_scheduler(scheduler) -> DDIMScheduler:
    """Deterministic steps from the noisiest timestep on: what teacher and student are run with.

    With few steps the "leading" spacing of many schedulers starts far from the noisiest timestep, although
    the picture starts as nothing but noise (Lin et al. 2023, arXiv:2305.08891, section 3.3).
    """
    return DDIMScheduler.from_config(
        scheduler.config, timestep_spacing="trailing", clip_sample=False, thresholding=False
    )


def plan_intervals(scheduler: DDIMScheduler, student_steps: int, teacher_steps: int) -> Intervals:
    """Divides the teacher's "trailing" timesteps among the student's.

    Args:
        scheduler: from `student_scheduler`.
        teacher_steps: a multiple of `student_steps`.

    Raises:
        ModelError: where the scheduler has too few timesteps, or none of the student's steps between them.
    """
    levels = scheduler.config.num_train_timesteps
    if teacher_steps > levels:
        raise ModelError(
            f"--distill_teacher_steps must be at most {levels}, the model's timesteps, got {teacher_steps}"
        )

    def trailing(steps: int) -> list[int]:
        own = copy.deepcopy(scheduler)
        own.set_timesteps(steps)
        return own.timesteps.tolist()

    grid, each = trailing(teacher_steps), teacher_steps // student_steps
    if len(grid) != teacher_steps or grid[::each] != trailing(student_steps):
        raise ModelError(
            f"the timesteps of {student_steps} steps are not among those of {teacher_steps} steps with the "
            f"model's {levels} timesteps; use another --distill_teacher_steps"
        )
    timesteps = torch.tensor(grid)
    alphas = torch.cat([scheduler.alphas_cumprod[timesteps].float(), scheduler.final_alpha_cumprod.view(1)])
    ends = torch.arange(student_steps)[:, None] * each + torch.arange(each + 1)
    return Intervals(timesteps.view(student_steps, each), alphas[ends])


# --- Steps --------------------------------------------------------------------------------------------------


def _signal_and_noise(alphas: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors of picture and noise, (batch, 1, 1, 1), from cumulative alphas (batch,)."""
    alphas = alphas.view(-1, 1, 1, 1)
    return alphas.sqrt(), (1 - alphas).sqrt()


def to_clean(
    output: torch.Tensor, noisy: torch.Tensor, alphas: torch.Tensor, prediction_type: str
) -> torch.Tensor:
    """The clean sample that a network's `output` means; all (batch, channels, height, width)."""
    signal, sigma = _signal_and_noise(alphas)
    if prediction_type == "sample":
        return output
    if prediction_type == "v_prediction":
        return signal * noisy - sigma * output
    return (noisy - sigma * output) / signal


def ddim_step(
    noisy: torch.Tensor, clean: torch.Tensor, alphas: torch.Tensor, next_alphas: torch.Tensor
) -> torch.Tensor:
    """From one noise level to the next without new noise (Song et al. 2021, arXiv:2010.02502, eq. 12)."""
    (signal, sigma), (next_signal, next_sigma) = _signal_and_noise(alphas), _signal_and_noise(next_alphas)
    return next_signal * clean + next_sigma / sigma * (noisy - signal * clean)


def implied_clean(
    noisy: torch.Tensor, end: torch.Tensor, alphas: torch.Tensor, end_alphas: torch.Tensor
) -> torch.Tensor:
    """The clean sample with which one `ddim_step` leads from `noisy` to `end`.

    Salimans & Ho 2022, appendix G; at a clean end it is the end itself.
    """
    (signal, sigma), (end_signal, end_sigma) = _signal_and_noise(alphas), _signal_and_noise(end_alphas)
    ratio = end_sigma / sigma
    return (end - ratio * noisy) / (end_signal - ratio * signal)


def clean_objective(clean: torch.Tensor, target: torch.Tensor, alphas: torch.Tensor) -> torch.Tensor:
    """Squared error of clean samples, weighted by max(SNR, 1) (Salimans & Ho 2022, "truncated SNR")."""
    snr = alphas / (1 - alphas)
    loss = (clean - target).pow(2).mean(dim=(1, 2, 3))  # (batch,)
    return (loss * snr.clamp(min=1)).mean()


# --- The teacher --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lesson:
    """What the student has to give.

    clean: (batch, channels, height, width), the clean sample that leads to where the teacher arrived.
    head: of a flow_mask_paint teacher, its guided output at its last step; None for others.
    """

    clean: torch.Tensor
    head: HeadOutput | None


class Teacher:
    """A frozen copy of a pipeline's denoiser, taken before the pipeline's own becomes the student.

    Args:
        pipeline: what else the teacher needs (AU map, head) is the student's too, for it stays as it is.
        guidance: scale of its classifier-free guidance; 1 switches it off.

    Raises:
        ModelError: where the pipeline cannot be run so, or predicts noise where there is nothing else.
    """

    def __init__(
        self, pipeline: MagicEditPipeline, student_steps: int, teacher_steps: int, guidance: float, device
    ):
        own_steps = pipeline.config.distilled_steps
        if own_steps not in (0, teacher_steps):
            raise ModelError(
                f"the teacher is itself distilled, to {own_steps} steps, and can do no other number: set "
                f"--distill_teacher_steps {own_steps}, not {teacher_steps}"
            )
        scheduler = student_scheduler(pipeline.scheduler)
        intervals = plan_intervals(scheduler, student_steps, teacher_steps)
        self.composed = pipeline.config.prediction == "flow_mask_paint"
        self.prediction_type = scheduler.config.prediction_type
        least = float(intervals.alphas.min())
        if not self.composed and self.prediction_type == "epsilon" and least < LEAST_SIGNAL:
            raise ModelError(
                f"the teacher predicts noise, but at its first step the picture's share is only {least:.1e} "
                f"(needed: {LEAST_SIGNAL}), too little to compute a picture from; use a teacher with another "
                "noise schedule or prediction_type"
            )
        self.scheduler = scheduler
        self.intervals = Intervals(intervals.timesteps.to(device), intervals.alphas.to(device))
        self.guidance = guidance
        self.pipeline = pipeline
        self.digest = pipeline_digest(pipeline)  # of all networks and settings, before the student's change
        self.unet = copy.deepcopy(pipeline.unet).requires_grad_(False).eval().to(device)
        self._predict_noise = predict_noise

    def compile(self) -> None:
        """Compiles the denoiser's evaluation."""
        self._predict_noise = compiled(predict_noise)

    @torch.no_grad()
    def teach(
        self,
        noisy: torch.Tensor,
        interval: torch.Tensor,
        identity: torch.Tensor | None,
        condition_latents: torch.Tensor,
        prompt_embeds: torch.Tensor,
        au_delta: torch.Tensor,
        features: Features | None,
    ) -> Lesson:
        """Goes from the start of each row's interval to its end.

        Args:
            noisy: (batch, channels, height, width), at the noise level of the interval's start.
            interval: (batch,) numbers of intervals.
            identity: (batch, 3, height, width) in [-1, 1], for flow_mask_paint.
            condition_latents, prompt_embeds, au_delta, features: as in `predict_noise`, a row each.
        """
        guided = self.guidance != 1.0
        halves = 2 if guided else 1
        if guided:
            au_delta = torch.cat([torch.zeros_like(au_delta), au_delta])  # (2 batch, aus)
        condition_latents = condition_latents.repeat(halves, 1, 1, 1)
        reference = ReferenceCache(features, prompt_embeds)  # projected once for all steps
        reference.fill(self.unet)

        def predict(noisy: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
            return self._predict_noise(
                self.unet,
                noisy.repeat(halves, 1, 1, 1),
                condition_latents,
                timesteps.repeat(halves),
                prompt_embeds,
                au_delta,
                reference,
                self.pipeline.au_map,
            ).float()

        read = self._composed_clean if self.composed else self._clean
        state, head = noisy, None
        timesteps, alphas = self.intervals.timesteps[interval], self.intervals.alphas[interval]
        for step in range(timesteps.shape[1]):
            clean, head = read(predict, state, timesteps[:, step], alphas[:, step], identity)
            state = ddim_step(state, clean, alphas[:, step], alphas[:, step + 1])
        return Lesson(implied_clean(noisy, state, alphas[:, 0], alphas[:, -1]), head)

    def _clean(self, predict: Callable, noisy, timesteps, alphas, identity) -> tuple[torch.Tensor, None]:
        output = predict(noisy, timesteps)
        if self.guidance != 1.0:
            unconditioned, conditioned = output.chunk(2)
            output = torch.lerp(unconditioned, conditioned, self.guidance)
        return to_clean(output, noisy, alphas, self.prediction_type), None

    def _composed_clean(
        self, predict: Callable, noisy, timesteps, alphas, identity
    ) -> tuple[torch.Tensor, HeadOutput]:
        output, patch_size = predict(noisy, timesteps), self.pipeline.config.patch_size
        head = split_head(output[-len(noisy) :], patch_size)
        if self.guidance != 1.0:
            head = guide_head(head, split_head(output[: len(noisy)], patch_size), self.guidance)
        return self.pipeline.encode_images(compose_head(head, identity).clamp(-1, 1)), head


def taught_relation(head: HeadOutput, end_clean: torch.Tensor) -> Relation:
    """The teacher's movement and mask in the form of a pair's, for `composed_objective`.

    Known only where the interval ends at the clean end (`end_clean`, (batch,)): there they are what an
    editor carries to the photograph's size. Elsewhere nothing but the picture is handed on, and the pictures
    of several steps have no one movement. Where the mask is open the flow is not seen, and is left alone;
    where it is, the composed picture shows the paint, which therefore needs no target of its own.
    """
    height, width = head.flow.shape[-2:]
    flow = head.flow.permute(0, 2, 3, 1) * head.flow.new_tensor([width / 2, height / 2])  # px
    mask = head.mask[:, 0]  # (batch, height, width)
    known = end_clean[:, None, None]
    seen = (known & (mask <= 0.5))[..., None]
    return Relation(
        flow=torch.where(seen, flow, torch.nan),
        mask=torch.where(known, mask, torch.nan),
        weight=torch.ones_like(mask),
    )
