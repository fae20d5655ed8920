"""GANimation as a `FaceModel`: pictures of a face, whose movement is carried to the photograph."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from magicedit.errors import ModelError
from magicedit.models.export import weights_digest
from magicedit.models.face_model import OnStep
from magicedit.models.folder import ModelFolder
from magicedit.models.loading import default_device
from magicedit.pipelines.pipeline_ganimation import COMPONENTS, GANimationPipeline
from magicedit.request import Sampling
from magicedit.vocabulary import Vocabulary

FACES_AT_ONCE = 32


@dataclass(frozen=True, eq=False)
class EncodedFace:
    """A crop as the networks take it, (size, size, 3) in 0..1, and the state of the weights."""

    crop: np.ndarray
    weights: tuple


class GANimationModel:
    """A `GANimationPipeline` as a `FaceModel`.

    It paints pictures, of which the editor estimates the flow. As with models that compose, the flow moves
    the photograph's own pixels and the mouth is a layer of its own, because paint of 64 px would blur.
    """

    composes = True
    follows_muscles = False

    def __init__(self, pipeline: GANimationPipeline, vocabulary: Vocabulary):
        self.pipeline, self.vocabulary = pipeline, vocabulary

    @classmethod
    def load(
        cls, folder: str | Path, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> "GANimationModel":
        """Loads a folder without running code from it. ModelError where it cannot be loaded."""
        found = ModelFolder.find(folder)
        found.check()
        if found.action_units is None:
            raise ModelError(f"{folder}/model_index.json names no action_units; export the model again")
        try:
            pipeline = GANimationPipeline.from_pretrained(found.path, torch_dtype=dtype)
        except (OSError, ValueError, RuntimeError, TypeError) as error:
            raise ModelError(f"cannot load the model {folder}: {error}") from error
        return cls(pipeline.to(device or default_device()), found.action_units)

    @property
    def resolution(self) -> int:
        return self.pipeline.config.resolution

    def _weights(self) -> tuple:
        """Changes when weights are replaced or written to."""
        parts = (getattr(self.pipeline, name) for name in COMPONENTS)
        return tuple((tensor.data_ptr(), tensor._version) for part in parts for tensor in part.parameters())

    def encode(self, crop: np.ndarray, condition: np.ndarray) -> EncodedFace:
        """See `FaceModel.encode`; the condition is not used."""
        return EncodedFace(crop / np.float32(255), self._weights())

    def is_current(self, encoded: EncodedFace) -> bool:
        return encoded.weights == self._weights()

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

    def steps(self, steps: int | None, quality: str | None) -> int:
        return 1

    def show_progress(self, shown: bool) -> None:
        """There is one step, so no bar is shown."""

    def fingerprint(self) -> str:
        parts = [weights_digest(getattr(self.pipeline, name)) for name in sorted(COMPONENTS)]
        settings = [str(self.pipeline.config.relative), *self.vocabulary]
        return hashlib.sha256("".join([*parts, *settings]).encode()).hexdigest()
