"""A student that learns from its guided teacher, see `magicedit.train.distill`."""

import dataclasses
from typing import Any

from accelerate import Accelerator

from magicedit.errors import TrainingError
from magicedit.pipelines.pipeline_magicedit import MagicEditPipeline
from magicedit.train.config import TrainConfig
from magicedit.train.distill import Teacher, clean_objective, taught_relation, to_clean
from magicedit.train.methods import Losses
from magicedit.train.methods.composed import composed_loss
from magicedit.train.methods.editing import Editing

TAUGHT = ("noisy", "condition_latents", "prompt_embeds", "au_delta", "features")  # the teacher's inputs


class Distillation(Editing):
    """Learns to reproduce in one step several steps of a frozen copy of the denoiser; the rest is shared."""

    denoiser_only = True

    def __init__(self, config: TrainConfig, accelerator: Accelerator, pipeline: MagicEditPipeline):
        guidance = config.distill_guidance
        if guidance is None:
            guidance = float(pipeline.config.default_guidance_scale)
        steps = (config.distill_steps, config.distill_teacher_steps)
        self.teacher = Teacher(pipeline, *steps, guidance, accelerator.device)
        if config.compile:
            self.teacher.compile()
        pipeline.scheduler = self.teacher.scheduler
        self.timesteps = self.teacher.intervals.student_timesteps
        super().__init__(dataclasses.replace(config, distill_guidance=guidance), accelerator, pipeline)

    def losses(self, batch: dict, networks) -> Losses:
        """Yields the distance of the student's one step from the teacher's result."""
        noised = self._noised(batch)
        source, inputs, alphas = noised.batch.get("source"), noised.inputs, noised.alphas
        intervals = self.teacher.intervals
        interval = intervals.index(inputs["timesteps"])
        with self.accelerator.autocast():
            lesson = self.teacher.teach(
                interval=interval, identity=source, **{name: inputs[name] for name in TAUGHT}
            )
            output = networks["model"](**inputs)
        if lesson.head is None:
            clean = to_clean(output.float(), inputs["noisy"], alphas, self.teacher.prediction_type)
            yield "model", clean_objective(clean, lesson.clean, alphas), {}
            return
        target, patch_size = self.pipeline.decode_latents(lesson.clean), self.pipeline.config.patch_size
        relation = taught_relation(lesson.head, intervals.end_clean(interval))
        # The mask costs nothing: either the teacher's is known, or only the picture counts
        yield "model", *composed_loss(self.config, output, source, target, patch_size, relation, 0.0)

    def _result_settings(self) -> dict:
        steps = self.config.distill_steps
        return {"default_steps": steps, "default_guidance_scale": 1.0, "distilled_steps": steps}

    def state(self) -> dict[str, Any]:
        return {"teacher": self.teacher.digest, **super().state()}

    def check(self, state: dict[str, Any]) -> None:
        super().check(state)
        if state["teacher"] != self.state()["teacher"]:
            raise TrainingError(
                f"the checkpoint has another teacher than {self.config.pretrained_model_name_or_path}: name "
                "that one, or another --output_dir"
            )
