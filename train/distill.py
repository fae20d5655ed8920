"""Distillation: a student reproduces several steps of its guided teacher in one.

Progressive distillation (Salimans & Ho 2022, arXiv:2202.00512) of a guided teacher (Meng et al. 2023,
arXiv:2210.03142, with one fixed guidance scale), so that the student needs no unguided branch.
"""

import copy
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
    """The student's steps and the teacher's steps in each, noisiest first.

    timesteps: (distill_steps, teacher steps in one), the teacher's; the first of each row is the student's.
    alphas: (distill_steps, teacher steps in one + 1), cumulative, at these timesteps and the interval's end.
    """

    timesteps: torch.Tensor
    alphas: torch.Tensor

    @property
    def student_timesteps(self) -> tuple[int, ...]:
        return tuple(self.timesteps[:, 0].tolist())

    def index(self, timesteps: torch.Tensor) -> torch.Tensor:
        """Returns the numbers of the intervals that start at `timesteps`, (batch,) each."""
        return (timesteps[:, None] == self.timesteps[:, 0]).long().argmax(dim=1)

    def end_clean(self, interval: torch.Tensor) -> torch.Tensor:
        """Whether these intervals (batch,) are the last, so that their result is the output."""
        return interval == len(self.timesteps) - 1


def student_scheduler(scheduler) -> DDIMScheduler:
    """Returns the deterministic scheduler of teacher and student, which starts at the noisiest timestep.

    With few steps, the "leading" spacing of many schedulers starts far from it, although the picture starts
    as pure noise (Lin et al. 2023, arXiv:2305.08891, section 3.3).
    """
    return DDIMScheduler.from_config(
        scheduler.config, timestep_spacing="trailing", clip_sample=False, thresholding=False
    )


def plan_intervals(scheduler: DDIMScheduler, student_steps: int, teacher_steps: int) -> Intervals:
    """Divides the teacher's "trailing" timesteps among the student's.

    scheduler: from `student_scheduler`. teacher_steps: a multiple of `student_steps`.
    Raises ModelError where the scheduler has too few timesteps, or the student's are not among the teacher's.
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


def _signal_and_noise(alphas: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the factors of picture and noise, (batch, 1, 1, 1), of cumulative alphas (batch,)."""
    alphas = alphas.view(-1, 1, 1, 1)
    return alphas.sqrt(), (1 - alphas).sqrt()


def to_clean(
    output: torch.Tensor, noisy: torch.Tensor, alphas: torch.Tensor, prediction_type: str
) -> torch.Tensor:
    """Returns the clean sample that a network's `output` implies; all (batch, channels, height, width)."""
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
    """Returns the clean sample with which one `ddim_step` leads from `noisy` to `end` (a clean end: itself).

    Salimans & Ho 2022, appendix G.
    """
    (signal, sigma), (end_signal, end_sigma) = _signal_and_noise(alphas), _signal_and_noise(end_alphas)
    ratio = end_sigma / sigma
    return (end - ratio * noisy) / (end_signal - ratio * signal)


def clean_objective(clean: torch.Tensor, target: torch.Tensor, alphas: torch.Tensor) -> torch.Tensor:
    """Squared error of clean samples, weighted by max(SNR, 1) (Salimans & Ho 2022, "truncated SNR")."""
    snr = alphas / (1 - alphas)
    loss = (clean - target).pow(2).mean(dim=(1, 2, 3))  # (batch,)
    return (loss * snr.clamp(min=1)).mean()


@dataclass(frozen=True)
class Lesson:
    """The student's target.

    clean: (batch, channels, height, width), the clean sample that leads to the teacher's result.
    head: a flow_mask_paint teacher's guided output at its last step; None for others.
    """

    clean: torch.Tensor
    head: HeadOutput | None


class Teacher:
    """A frozen copy of a pipeline's denoiser; the pipeline's own becomes the student.

    Args:
        pipeline: the teacher shares its other parts (AU map, head), which training does not change.
        guidance: scale of its classifier-free guidance; 1 switches it off.

    Raises:
        ModelError: where the pipeline cannot be sampled like this.
    """

    def __init__(
        self, pipeline: MagicEditPipeline, student_steps: int, teacher_steps: int, guidance: float, device
    ):
        own_steps = pipeline.config.distilled_steps
        if own_steps not in (0, teacher_steps):
            raise ModelError(
                f"the teacher is itself distilled, to {own_steps} steps: set "
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
        self.pipeline, self.scheduler, self.guidance = pipeline, scheduler, guidance
        self.intervals = Intervals(intervals.timesteps.to(device), intervals.alphas.to(device))
        self.digest = pipeline_digest(pipeline)  # before the student changes
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
        """Runs the teacher from the start of each row's interval to its end.

        Args:
            noisy: (batch, channels, height, width), at the noise level of the interval's start.
            interval: (batch,) numbers of intervals.
            identity: (batch, 3, height, width) in [-1, 1], for flow_mask_paint.
            condition_latents, prompt_embeds, au_delta, features: as in `predict_noise`.
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

        state, head, patch_size = noisy, None, self.pipeline.config.patch_size
        timesteps, alphas = self.intervals.timesteps[interval], self.intervals.alphas[interval]
        for step in range(timesteps.shape[1]):
            output = predict(state, timesteps[:, step])
            unguided, output = output[: len(noisy)], output[-len(noisy) :]
            if self.composed:
                head = split_head(output, patch_size)
                if guided:
                    head = guide_head(head, split_head(unguided, patch_size), self.guidance)
                clean = self.pipeline.encode_images(compose_head(head, identity).clamp(-1, 1))
            else:
                output = torch.lerp(unguided, output, self.guidance) if guided else output
                clean = to_clean(output, state, alphas[:, step], self.prediction_type)
            state = ddim_step(state, clean, alphas[:, step], alphas[:, step + 1])
        return Lesson(implied_clean(noisy, state, alphas[:, 0], alphas[:, -1]), head)


def taught_relation(head: HeadOutput, end_clean: torch.Tensor) -> Relation:
    """Returns the teacher's movement and mask as a pair's relation, for `composed_objective`.

    They are known only where the interval ends clean (`end_clean`, (batch,)), because only there are they
    carried to the photograph; elsewhere only the picture is passed on. Where the mask is open, flow is
    invisible and unknown; paint is visible in the composed picture and needs no target.
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
