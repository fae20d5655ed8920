"""Attention from named places of a face to the reference during an edit."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from magicedit.editor.changer import FaceCut
from magicedit.editor.settings import SamplingSettings
from magicedit.faces import region_polygon
from magicedit.faces.alignment import stable_landmarks
from magicedit.faces.geometry import MOVEMENTS_OF_SCHEME

if TYPE_CHECKING:
    from magicedit.pipelines.pipeline_magicedit import MagicEditPipeline


@dataclass(frozen=True, eq=False)
class AttentionMaps:
    """Attention of named places of a face during an edit (figure 9 of MagicFace, arXiv:2501.02260).

    Attributes:
        maps: (steps, queries, h, w) float32, the attention of each query to the tokens of the reference; each
            map sums to the share that goes to the reference; the remainder to 1 goes to the image itself.
        queries: the names of the places; sides are the subject's.
        points: (queries, 2) float32, x then y, pixels of the crop, centres at whole numbers.
        crop: (size, size, 3) uint8 RGB, the reference as the model sees it.
        timesteps: (steps,) of the scheduler.
        reference_share: (steps, layers) float32, the share that goes to the reference, mean over all queries.
        layers: the names of the layers, in execution order.
        map_layers: the names of the layers that `maps` averages.
        text_share: (steps, layers, text tokens) float32, the cross-attention's weights, mean over all of the
            image's queries; None without a text encoder, where cross-attention sees one zero token.
    """

    maps: np.ndarray
    queries: tuple[str, ...]
    points: np.ndarray
    crop: np.ndarray
    timesteps: np.ndarray
    reference_share: np.ndarray
    layers: tuple[str, ...]
    map_layers: tuple[str, ...]
    text_share: np.ndarray | None

    def save(self, path: str | Path) -> None:
        """Writes the attributes that are not None as arrays of an npz file; names are arrays of strings."""
        np.savez_compressed(
            path, **{name: np.asarray(value) for name, value in vars(self).items() if value is not None}
        )


def record_attention(
    pipeline: "MagicEditPipeline",
    cut: FaceCut,
    au_delta: np.ndarray,
    settings: SamplingSettings,
    layer: str | None = None,
) -> AttentionMaps:
    """Returns the reference attention of one edit; under guidance, of the conditioned half.

    Args:
        au_delta: (aus,), in the model's order.
        layer: whose maps to return; default: the mean of all layers with the finest token grid.
    """
    import torch

    from magicedit.editor.recording import record_reference_attention

    # 1. Edit, recording
    places = named_places(cut.landmarks, cut.scheme)
    points = np.stack(list(places.values())).astype(np.float32)
    timesteps = []

    def note_timestep(pipeline, step, timestep, tensors):
        timesteps.append(float(timestep))
        return tensors

    sides = torch.from_numpy((points + 0.5) / cut.alignment.size)  # parts of the crop's sides
    with record_reference_attention(pipeline.unet, sides) as record:
        pipeline(
            faces=cut.encoded,
            au_delta=au_delta[None],
            feature_cache_interval=1,  # all layers in every step
            num_inference_steps=settings.steps,
            guidance_scale=settings.guidance,
            quality=settings.quality,
            generator=[torch.Generator("cpu").manual_seed(settings.seed)],
            output_type="latent",
            callback_on_step_end=note_timestep,
        )

    # 2. The last row of a guided batch is the conditioned one
    layers = tuple(record.reference[0])
    tokens = {name: weights.shape[-1] for name, weights in record.reference[0].items()}
    chosen = tuple(n for n in layers if (tokens[n] == max(tokens.values()) if layer is None else n == layer))
    grid = math.isqrt(tokens[chosen[0]])
    maps = [torch.stack([call[name][-1] for name in chosen]).mean(0) for call in record.reference]
    shares = [torch.stack([call[name][-1] for name in layers]) for call in record.reference_share]
    text_share = None
    if pipeline.text_encoder is not None:
        text_share = torch.stack([torch.stack([call[n][-1] for n in layers]) for call in record.text]).numpy()
    return AttentionMaps(
        maps=torch.stack(maps).unflatten(-1, (grid, grid)).numpy(),
        queries=tuple(places),
        points=points,
        crop=cut.crop,
        timesteps=np.asarray(timesteps),
        reference_share=torch.stack(shares).numpy(),
        layers=layers,
        map_layers=chosen,
        text_share=text_share,
    )


def named_places(landmarks: np.ndarray, scheme: str) -> dict[str, np.ndarray]:
    """Places of a face, x and y in the landmarks' pixels; sides are the subject's."""
    lips = region_polygon(landmarks, scheme, "lips")  # from the right corner to the left one and back
    movements = MOVEMENTS_OF_SCHEME[scheme]
    brow = movements["AU1"].left + movements["AU2"].left
    return {
        "left mouth corner": lips[len(lips) // 2],
        "right mouth corner": lips[0],
        "left brow": landmarks[list(brow)].mean(0),
        "right eye": region_polygon(landmarks, scheme, "right_eye").mean(0),
        "nose": stable_landmarks(landmarks, scheme)[6],  # the lowest on its ridge
    }
