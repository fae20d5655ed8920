"""GANimation as a `FaceModel`: pictures of a face, whose movement is carried to the photograph."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from magicedit.errors import ModelError
from magicedit.models.face_model import OnStep
from magicedit.models.family import FamilyModel
from magicedit.pipelines.pipeline_ganimation import GANimationPipeline
from magicedit.request import Sampling

FACES_AT_ONCE = 32


@dataclass(frozen=True, eq=False)
class EncodedFace:
    """A crop as the networks take it, (size, size, 3) in 0..1, and the state of the weights."""

    crop: np.ndarray
    weights: tuple


class GANimationModel(FamilyModel):
    """A `GANimationPipeline` as a `FaceModel`.

    It paints pictures, of which the editor estimates the flow. As with models that compose, the flow moves
    the photograph's own pixels and the mouth is a layer of its own, because paint of 64 px would blur.
    """

    pipeline_class = GANimationPipeline
    pipeline: GANimationPipeline

    def encode(self, crop: np.ndarray, condition: np.ndarray) -> EncodedFace:
        """See `FaceModel.encode`; the condition is not used."""
        return EncodedFace(crop / np.float32(255), self._weights())

    def change(
        self,
        encoded: Sequence[EncodedFace],
        deltas: Sequence[np.ndarray],
        sampling: Sampling,
        on_step: OnStep | None = None,
    ) -> list[np.ndarray]:
        """See `FaceModel.change`; `sampling` has no effect. ModelError where a picture is not finite."""
        pictures: list[np.ndarray] = []
        for first in range(0, len(deltas), FACES_AT_ONCE):
            faces, asked = encoded[first : first + FACES_AT_ONCE], deltas[first : first + FACES_AT_ONCE]
            crops = np.stack([face.crop for face in faces])  # (faces, size, size, 3)
            images = self.pipeline(crops, np.stack(asked), output_type="np").images
            if not np.isfinite(images).all():
                raise ModelError("the model's picture is not finite; its weights are broken, or use float32")
            pictures.extend(np.rint(images * 255).astype(np.uint8))
            if on_step is not None:
                on_step(0)
        return pictures

    def _settings(self) -> list[str]:
        return [str(self.pipeline.config.relative)]
