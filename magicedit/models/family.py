"""What the `FaceModel`s of pipelines of fixed components share."""

import hashlib
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import torch

from magicedit.errors import ModelError
from magicedit.models.export import weights_digest
from magicedit.models.folder import ModelFolder
from magicedit.models.loading import default_device, loading
from magicedit.pipelines.safe_pipeline import SafePipeline
from magicedit.vocabulary import Vocabulary


class FamilyModel:
    """A `SafePipeline` as a `FaceModel`; subclasses encode faces and change them.

    An encoded face has `weights`, the `_weights()` at the time. What a change shows is movement of the
    photograph's own pixels, and the mouth is a layer of its own.
    """

    pipeline_class: ClassVar[type[SafePipeline]]
    composes = True
    follows_muscles = False

    def __init__(self, pipeline: SafePipeline, vocabulary: Vocabulary):
        self.pipeline, self.vocabulary = pipeline, vocabulary

    @classmethod
    def load(
        cls, folder: str | Path, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> Self:
        """Loads a folder without running code from it. ModelError where it cannot be loaded."""
        found = ModelFolder.find(folder)
        found.check()
        if found.action_units is None:
            raise ModelError(f"{folder}/model_index.json names no action_units; export the model again")
        with loading(folder):
            pipeline = cls.pipeline_class.from_pretrained(found.path, torch_dtype=dtype)
        return cls(pipeline.to(device or default_device()), found.action_units)

    @property
    def resolution(self) -> int:
        return self.pipeline.config.resolution

    def _networks(self) -> list[torch.nn.Module]:
        """The networks in the order of their names."""
        components = sorted(self.pipeline.components.items())
        return [part for _, part in components if isinstance(part, torch.nn.Module)]

    def _weights(self) -> tuple:
        """Changes when weights are replaced or written to."""
        tensors = (t for part in self._networks() for t in (*part.parameters(), *part.buffers()))
        return tuple((tensor.data_ptr(), tensor._version) for tensor in tensors)

    def is_current(self, encoded) -> bool:
        return encoded.weights == self._weights()

    def picture(self, crop: np.ndarray, condition: np.ndarray, delta: np.ndarray) -> np.ndarray:
        """What the networks make of a crop, (size, size, 3) uint8, as `FaceModel.encode` and `change` take
        crops and requests; the condition is not used."""
        (image,) = self.pipeline(crop[None] / np.float32(255), delta, output_type="np").images
        return np.rint(image * 255).astype(np.uint8)

    def steps(self, steps: int | None, quality: str | None) -> int:
        return 1

    def show_progress(self, shown: bool) -> None:
        """The commands' own bar counts the steps."""

    def fingerprint(self) -> str:
        """Returns a digest of the networks' weights, the settings of the pipeline and the vocabulary."""
        parts = [weights_digest(network) for network in self._networks()]
        return hashlib.sha256("".join([*parts, *self._settings(), *self.vocabulary]).encode()).hexdigest()

    def _settings(self) -> list[str]:
        """What of the pipeline's settings changes edits."""
        return []
