"""The flow autoencoder as a `FaceModel`: one flow per request, which moves the photograph's own pixels."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from magicedit.change import Change
from magicedit.errors import ModelError
from magicedit.models.face_model import OnStep
from magicedit.models.family import FamilyModel
from magicedit.pipelines.pipeline_flow_autoencoder import FlowAutoencoderPipeline, in_pixels
from magicedit.request import Sampling

FACES_AT_ONCE = 32


@dataclass(frozen=True, eq=False)
class EncodedFace:
    """A face as the networks need it.

    source: (1, 3, size, size) in [-1, 1]. latent: (1, latent_size), Z(S). still: (1, 2, size, size), the flow
    of Z(S) itself. weights: state of the weights that made it.
    """

    source: torch.Tensor
    latent: torch.Tensor
    still: torch.Tensor
    weights: tuple


@dataclass(frozen=True, eq=False)
class Blend:
    """Flows between two crops, for frames between two photographs.

    first, second: (frames, size, size, 2) px, x then y. share: (frames, size, size), 0..1, of the first.
    """

    first: np.ndarray
    second: np.ndarray
    share: np.ndarray


class FlowAutoencoderModel(FamilyModel):
    """A `FlowAutoencoderPipeline` as a `FaceModel`.

    The flow of an edit is `D(S, Z(S) + d) - D(S, Z(S))`: the second is zero for a perfect autoencoder, and
    without it a small request would also undo the autoencoder's own error.
    """

    pipeline_class = FlowAutoencoderPipeline
    pipeline: FlowAutoencoderPipeline

    @torch.no_grad()
    def encode(self, crop: np.ndarray, condition: np.ndarray) -> EncodedFace:
        """See `FaceModel.encode`; the condition is not used."""
        source = self.pipeline.pictures(crop[None] / np.float32(255))
        latent = self.pipeline.encoder.latent(source).to(source)
        still = self.pipeline.decoder(source, latent, latent)
        return EncodedFace(source, latent, still, self._weights())

    @torch.no_grad()
    def change(
        self,
        encoded: Sequence[EncodedFace],
        deltas: Sequence[np.ndarray],
        sampling: Sampling,
        on_step: OnStep | None = None,
    ) -> list[Change]:
        """See `FaceModel.change`; `sampling` has no effect. ModelError where a flow is not finite."""
        flows = []
        for first in range(0, len(deltas), FACES_AT_ONCE):
            faces, asked = encoded[first : first + FACES_AT_ONCE], deltas[first : first + FACES_AT_ONCE]
            source, latent, still = (
                torch.cat([getattr(face, name) for face in faces]) for name in ("source", "latent", "still")
            )
            requests = torch.from_numpy(np.stack(asked)).float().to(source.device)  # (faces, controls)
            edited = self.pipeline.classes.edited(latent, requests)
            flows.extend(self._pixels(self.pipeline.decoder(source, edited, latent) - still))
            if on_step is not None:
                on_step(0)
        size = self.resolution
        nothing = np.zeros((size, size), np.float32), np.zeros((size, size, 3), np.float32)
        return [Change(flow, *nothing) for flow in flows]

    @torch.no_grad()
    def between(self, first: np.ndarray, second: np.ndarray, positions: Sequence[float]) -> Blend:
        """Flows and blend of frames between two aligned crops of one person.

        first, second: (size, size, 3) uint8 RGB. positions: of the frames, from 0 (first) to 1.
        """
        crops = (crop[None] / np.float32(255) for crop in (first, second))
        output = self.pipeline.interpolate(*crops, positions, output_type="pt")
        flows = self._finite(output.flow)
        return Blend(*np.split(flows, 2), output.confidence.float().cpu().numpy())

    def _pixels(self, flow: torch.Tensor) -> np.ndarray:
        return self._finite(in_pixels(flow))

    @staticmethod
    def _finite(flow: torch.Tensor) -> np.ndarray:
        pixels = flow.float().cpu().numpy()
        if not np.isfinite(pixels).all():
            raise ModelError("the model's flow is not finite; its weights are broken, or use float32")
        return pixels
