"""Emotion latent diffusion as a `FaceModel`: the flow from a round trip to an edit moves the photograph."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch

from magicedit.change import Change
from magicedit.errors import ModelError
from magicedit.models.face_model import OnStep
from magicedit.models.family import FamilyModel
from magicedit.pipelines.pipeline_emotion_diffusion import EmotionDiffusionPipeline
from magicedit.request import Sampling

FACES_AT_ONCE = 16
FLOW_SIDE = 256  # px at least, to which pictures are enlarged before the flow between them is estimated
# With the estimator's own 8, the flow follows the blotches of blurred pictures. Of 12 training faces and four
# emotions, the mean cosine to the warps' own flow is 0.53 at these values and 0.41 at 8 and 0.015.
PATCH = 24  # px a side, of the enlarged picture
SMOOTH = 0.03  # of the side: standard deviation of the flow's smoothing


@dataclass(frozen=True, eq=False)
class EncodedFace:
    """A face as the networks need it.

    latents: (1, channels, height, width). weights: state of the weights that made it.
    """

    latents: torch.Tensor
    weights: tuple


class EmotionDiffusionModel(FamilyModel):
    """An `EmotionDiffusionPipeline` as a `FaceModel`.

    The pipeline's pictures lack the photograph's resolution, and the autoencoder's and the inversion's error
    is in the edit and in the round trip alike. The flow from one to the other is free of both.
    """

    pipeline_class = EmotionDiffusionPipeline
    pipeline: EmotionDiffusionPipeline

    @torch.no_grad()
    def encode(self, crop: np.ndarray, condition: np.ndarray) -> EncodedFace:
        """See `FaceModel.encode`; the condition is not used."""
        source = self.pipeline.pictures(crop[None] / np.float32(255))
        return EncodedFace(self.pipeline.encode(source), self._weights())

    @torch.no_grad()
    def change(
        self,
        encoded: Sequence[EncodedFace],
        deltas: Sequence[np.ndarray],
        sampling: Sampling,
        on_step: OnStep | None = None,
    ) -> list[Change]:
        """See `FaceModel.change`; seed and quality do nothing. ModelError where a picture is not finite."""
        flows = []
        for first in range(0, len(deltas), FACES_AT_ONCE):
            faces, asked = encoded[first : first + FACES_AT_ONCE], deltas[first : first + FACES_AT_ONCE]
            latents = torch.cat([face.latents for face in faces])
            classes = self.pipeline.class_weights(np.stack(asked), len(faces))
            settings = (sampling.noise_level, sampling.steps, sampling.guidance, on_step)
            both = torch.cat(self.pipeline.edit(latents, *classes, *settings))
            pictures = self.pipeline.decode(both).float().cpu()  # (2 * faces, 3, size, size)
            if not torch.isfinite(pictures).all():
                raise ModelError("the model's picture is not finite; its weights are broken, or use float32")
            flows += [flow_between(*pair) for pair in zip(*np.split(pictures.numpy(), 2), strict=True)]
        size = self.resolution
        nothing = np.zeros((size, size), np.float32), np.zeros((size, size, 3), np.float32)
        return [Change(flow, *nothing) for flow in flows]

    def steps(self, steps: int | None, quality: str | None) -> int:
        return 2 * (steps or self.pipeline.config.default_steps)

    def _settings(self) -> list[str]:
        config = self.pipeline.config
        return [
            str(value)
            for value in (config.default_noise_level, config.default_steps, config.default_guidance_scale)
        ]


def flow_between(edited: np.ndarray, source: np.ndarray) -> np.ndarray:
    """The flow (size, size, 2), x then y in pixels, with edited(p) = source(p + flow(p)).

    DIS optical flow (Kroeger et al. 2016, arXiv:1603.03590) of enlarged pictures, smoothed.

    edited, source: (3, size, size) in [-1, 1].
    """
    size = edited.shape[-1]
    scale = -(-FLOW_SIDE // size)
    grey = []
    for picture in (edited, source):
        side = (size * scale, size * scale)
        large = cv2.resize(picture.transpose(1, 2, 0), side, interpolation=cv2.INTER_CUBIC)
        pixels = np.rint((large.clip(-1, 1) + 1) * 127.5).astype(np.uint8)
        grey.append(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY))
    estimator = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    estimator.setPatchSize(PATCH)
    flow = estimator.calc(*grey, None)
    flow = cv2.GaussianBlur(flow, (0, 0), SMOOTH * size * scale)
    return cv2.resize(flow, (size, size), interpolation=cv2.INTER_AREA) / scale
