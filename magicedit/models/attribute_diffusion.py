"""Attribute diffusion as a `FaceModel`: sampled pictures of a face, whose movement is carried to it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from magicedit.change import Change
from magicedit.errors import ModelError
from magicedit.models.face_model import OnStep
from magicedit.models.family import FamilyModel
from magicedit.pipelines.pipeline_attribute_diffusion import AttributeDiffusionPipeline
from magicedit.request import Sampling

FACES_AT_ONCE = 16


@dataclass(frozen=True, eq=False)
class EncodedFace:
    """A crop as the networks take it, (1, 3, size, size) in [-1, 1], and the state of the weights."""

    crop: torch.Tensor
    weights: tuple


class AttributeDiffusionModel(FamilyModel):
    """An `AttributeDiffusionPipeline` as a `FaceModel`.

    It paints pictures, of which the editor estimates the flow. As with models that compose, the flow moves
    the photograph's own pixels and the mouth is a layer of its own, because paint of 64 px would blur.
    """

    pipeline_class = AttributeDiffusionPipeline
    pipeline: AttributeDiffusionPipeline

    def encode(self, crop: np.ndarray, condition: np.ndarray) -> EncodedFace:
        """See `FaceModel.encode`; the condition is not used."""
        return EncodedFace(self.pipeline.pictures(crop[None] / np.float32(255)), self._weights())

    def change(
        self,
        encoded: Sequence[EncodedFace],
        deltas: Sequence[np.ndarray],
        sampling: Sampling,
        on_step: OnStep | None = None,
    ) -> list[Change | np.ndarray]:
        """See `FaceModel.change`; quality does nothing. ModelError where a picture is not finite."""
        pictures: list[np.ndarray] = []
        settings = sampling.noise_level, sampling.steps, sampling.guidance, on_step
        for first in range(0, len(deltas), FACES_AT_ONCE):
            faces, asked = encoded[first : first + FACES_AT_ONCE], deltas[first : first + FACES_AT_ONCE]
            source = torch.cat([face.crop for face in faces])  # (faces, 3, size, size)
            generator = torch.Generator().manual_seed(sampling.seed)
            noise = torch.randn(source[:1].shape, generator=generator).to(source).expand_as(source)
            found = self.pipeline.sample(
                source, self.pipeline.attributes(np.stack(asked), len(faces)), noise, *settings
            )
            if not torch.isfinite(found).all():
                raise ModelError("the model's picture is not finite; its weights are broken, or use float32")
            pixels = (found.float().cpu().permute(0, 2, 3, 1) + 1) * 127.5
            pictures.extend(pixels.round().numpy().astype(np.uint8))
        return pictures

    def steps(self, steps: int | None, quality: str | None) -> int:
        return steps or self.pipeline.config.default_steps

    def _settings(self) -> list[str]:
        config = self.pipeline.config
        values = (config.default_noise_level, config.default_steps, config.default_guidance_scale)
        return [str(value) for value in (*values, config.combinations)]
