"""The `FaceModel` protocol, the only interface between models and editor, videos or evaluation.

A new family of editors needs a class with these methods and a line in `LOADERS`, keyed by the class name in
the index of its folders.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from magicedit.action_units import vocabulary_of
from magicedit.change import Change
from magicedit.errors import ModelError, needs_whole
from magicedit.files import shown
from magicedit.models.folder import PIPELINE_CLASS, ModelFolder
from magicedit.models.graph_model import GraphModel, serves
from magicedit.request import Sampling
from magicedit.vocabulary import Vocabulary, quoted

if TYPE_CHECKING:
    import torch

    from magicedit.pipelines.pipeline_magicedit import EncodedFaces, MagicEditPipeline

OnStep = Callable[[int], None]  # number of finished denoising steps, from 0


@runtime_checkable
class FaceModel(Protocol):
    """A trained editor of aligned face crops.

    Attributes:
        vocabulary: its controls.
        resolution: pixels a side of its crops.
        composes: whether its changes are movement proportional to the request: a flow, a mask and paint, or
            pictures of which only the flow is used; else it paints pictures.
        follows_muscles: whether its flow is meant to be that of the muscles' table, as of models trained on
            the table's warps; then the editor corrects it by the table.

    It may also have `picture(crop, condition, delta)`, what its networks alone make of a crop, for
    evaluations.
    """

    vocabulary: Vocabulary
    resolution: int
    composes: bool
    follows_muscles: bool

    def encode(self, crop: np.ndarray, condition: np.ndarray) -> Any:
        """Returns the model's encoding of a face, reusable for any number of changes.

        crop: (size, size, 3) uint8 RGB. condition: the same size, of pose and background, see
        `faces.condition_image`.
        """

    def is_current(self, encoded: Any) -> bool:
        """Whether an encoding is still valid: the weights have not changed since `encode`."""

    def change(
        self,
        encoded: Sequence[Any],
        deltas: Sequence[np.ndarray],
        sampling: Sampling,
        on_step: OnStep | None = None,
    ) -> list[Change | np.ndarray]:
        """Returns changes of faces by variations, (controls,) in the vocabulary's order, one per encoding.

        They are `Change`s, or pictures (size, size, 3) uint8 RGB from which changes are estimated. If
        `on_step` raises, the work stops. Equal arguments give equal results.
        """

    def steps(self, steps: int | None, quality: str | None) -> int:
        """Number of denoising steps of a change, for progress; None: default of quality or model."""

    def show_progress(self, shown: bool) -> None:
        """Sets whether a bar on standard error shows the steps."""

    def fingerprint(self) -> str:
        """Returns a digest of the weights and settings in memory."""


@dataclass(frozen=True)
class Optimization:
    """The fastest settings of a model on a machine, see `ExpressionEditor.optimize`.

    device: where it was measured. dtype: of the weights. channels_last: their memory format. compiled:
    whether the denoiser's is compiled. seconds: time of a denoiser evaluation for each alternative tried.
    """

    device: str
    dtype: str
    channels_last: bool
    compiled: bool
    seconds: dict[str, float]

    def __str__(self) -> str:
        layout = "channels_last" if self.channels_last else "contiguous"
        tried = ", ".join(f"{name} {1000 * seconds:.1f} ms" for name, seconds in self.seconds.items())
        compiled = "compiled" if self.compiled else "not compiled"
        return f"{self.dtype}, {layout}, {compiled} on {self.device} (a denoiser evaluation: {tried})"


class PipelineModel:
    """A `MagicEditPipeline` as a `FaceModel`; a call takes as many faces as the device's memory holds."""

    def __init__(self, pipeline: "MagicEditPipeline"):
        self.pipeline = pipeline
        self.show_progress(False)

    @property
    def vocabulary(self) -> Vocabulary:
        return vocabulary_of(self.pipeline.action_units)

    @property
    def resolution(self) -> int:
        return self.pipeline.config.resolution

    @property
    def composes(self) -> bool:
        return self.pipeline.config.prediction == "flow_mask_paint"

    @property
    def follows_muscles(self) -> bool:
        return self.composes

    def encode(self, crop: np.ndarray, condition: np.ndarray) -> "EncodedFaces":
        import PIL.Image

        return self.pipeline.encode_faces(PIL.Image.fromarray(crop), PIL.Image.fromarray(condition))

    def is_current(self, encoded: "EncodedFaces") -> bool:
        return self.pipeline.is_current(encoded)

    def change(
        self,
        encoded: "Sequence[EncodedFaces]",
        deltas: Sequence[np.ndarray],
        sampling: Sampling,
        on_step: OnStep | None = None,
    ) -> list[Change | np.ndarray]:
        """See `FaceModel.change`. ModelError where a result is not finite."""
        import torch

        from magicedit.models.optimize import call_in_batches

        def tell(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            on_step(step)
            return tensors

        def call(rows: slice) -> list[Change | np.ndarray]:
            faces = encoded[rows]
            alone = all(part is faces[0] for part in faces)  # then the vectors share its reference
            output = self.pipeline(
                faces=faces[0] if alone else type(faces[0]).join(faces),
                au_delta=np.stack(deltas[rows]),
                num_inference_steps=sampling.steps,
                guidance_scale=sampling.guidance,
                quality=sampling.quality,
                generator=[torch.Generator("cpu").manual_seed(sampling.seed) for _ in faces],
                output_type="np",
                callback_on_step_end=None if on_step is None else tell,
            )
            if output.change is None:
                return [np.rint(image * 255).astype(np.uint8) for image in output.images]
            parts = {name: part.float().cpu().numpy() for name, part in output.change.items()}
            if not all(np.isfinite(parts[name]).all() for name in ("flow", "mask", "paint")):
                raise ModelError("the model's answer is not finite; its weights are broken, or use float32")
            return [
                Change(parts["flow"][row], parts["mask"][row], parts["paint"][row])
                for row in range(len(faces))
            ]

        return call_in_batches(call, len(deltas), self.pipeline)

    def picture(self, crop: np.ndarray, condition: np.ndarray, delta: np.ndarray) -> np.ndarray:
        """What the networks make of a crop, (size, size, 3) uint8, as `FaceModel.encode` and `change` take
        crops and requests."""
        faces = self.encode(crop, condition)
        (image,) = self.pipeline(faces=faces, au_delta=delta[None], output_type="np").images
        return np.rint(image * 255).astype(np.uint8)

    def steps(self, steps: int | None, quality: str | None) -> int:
        return steps or self.pipeline.sampling(quality).steps

    def show_progress(self, shown: bool) -> None:
        self.pipeline.set_progress_bar_config(disable=not shown, leave=False)

    def fingerprint(self) -> str:
        from magicedit.models.export import pipeline_digest

        return pipeline_digest(self.pipeline)


Loader = Callable[..., FaceModel]


def _load_pipeline_model(
    model: str | Path, device: "torch.device | None" = None, dtype: "torch.dtype | None" = None
) -> FaceModel:
    from magicedit.models.loading import load_pipeline

    return PipelineModel(load_pipeline(model, device=device, dtype=dtype))


def _load_flow_autoencoder(model: str | Path, **options: Any) -> FaceModel:
    from magicedit.models.flow_autoencoder import FlowAutoencoderModel

    return FlowAutoencoderModel.load(model, **options)


def _load_ganimation(model: str | Path, **options: Any) -> FaceModel:
    from magicedit.models.ganimation import GANimationModel

    return GANimationModel.load(model, **options)


def _load_emotion_diffusion(model: str | Path, **options: Any) -> FaceModel:
    from magicedit.models.emotion_diffusion import EmotionDiffusionModel

    return EmotionDiffusionModel.load(model, **options)


def _load_attribute_diffusion(model: str | Path, **options: Any) -> FaceModel:
    from magicedit.models.attribute_diffusion import AttributeDiffusionModel

    return AttributeDiffusionModel.load(model, **options)


# By class name in the index; each takes the name of a model, or the folder of a hub model
LOADERS: dict[str, Loader] = {
    PIPELINE_CLASS: _load_pipeline_model,
    "FlowAutoencoderPipeline": _load_flow_autoencoder,
    "GANimationPipeline": _load_ganimation,
    "EmotionDiffusionPipeline": _load_emotion_diffusion,
    "AttributeDiffusionPipeline": _load_attribute_diffusion,
}


DTYPES = ("float32", "bfloat16", "float16")


def usable_device(device: "str | torch.device | None") -> "torch.device | None":
    """Returns the device if this machine has it.

    Raises ModelError where it does not; the message names the available devices.
    """
    if device is None:
        return None
    import torch

    here = ["cpu"] + [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    here += ["mps"] if torch.backends.mps.is_available() else []
    try:
        wanted = torch.device(device)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ModelError(f"unknown device {quoted(device)}; this machine has {', '.join(here)}") from error
    name = f"cuda:{wanted.index or 0}" if wanted.type == "cuda" else wanted.type
    if name not in here:
        raise ModelError(f"there is no device {device} for PyTorch on this machine; it has {', '.join(here)}")
    return wanted


def usable_dtype(dtype: "str | torch.dtype | None") -> "torch.dtype | None":
    """`torch.float16` from "float16", and so on.

    Raises ModelError for any dtype but the three that models support.
    """
    if dtype is None:
        return None
    if _name(dtype) not in DTYPES:
        raise ModelError(f"dtype must be one of {', '.join(DTYPES)}, got {quoted(dtype)}")
    import torch

    return getattr(torch, _name(dtype))


def _name(value: "str | torch.device | torch.dtype | None") -> str | None:
    """Name of a device or dtype, such as "float32", without an import of torch; "" where it is neither."""
    if value is None or isinstance(value, str):
        return value
    return str(value).removeprefix("torch.") if type(value).__module__ == "torch" else ""


def runs_as_graphs(
    folder: ModelFolder, device: "str | torch.device | None", dtype: "str | torch.dtype | None"
) -> bool:
    """Whether `load_face_model` loads a model as a `GraphModel`."""
    plain = _name(device) in (None, "cpu") and _name(dtype) in (None, "float32")
    return plain and serves(folder)


def load_face_model(
    model: str | Path = "mini",
    device: "str | torch.device | None" = None,
    dtype: "str | torch.dtype | None" = None,
) -> FaceModel:
    """Loads a model of faces by the class that its index names, without running code from its folder.

    An embedded model, and a folder with graphs (`models.write_graphs`), is a `GraphModel`, which needs no
    torch, unless `device` is another than the CPU or `dtype` another than float32. For a hub model, the index
    is downloaded first, then the files that its loader reads. Classes without a loader are loaded as a
    `MagicEditPipeline`.

    Args:
        model: as of `load_pipeline`.
        device: default: the CPU for a `GraphModel`; else the best present (CUDA, then MPS, then the CPU).
        dtype: of the weights; default: float32.

    Raises:
        ModelError: as `load_pipeline`; where the machine lacks the device; where graphs do not fit the model.
        MissingDependencyError: where torch is needed and not installed.
    """
    folder = ModelFolder.find(model)
    folder.check_name()
    if runs_as_graphs(folder, device, dtype):
        return GraphModel.load(folder)
    named = folder.pipeline_class()
    with needs_whole(f"the model {shown(model)} on {device or 'this machine'}"):
        options = {"device": usable_device(device), "dtype": usable_dtype(dtype)}
        if named not in LOADERS or named == PIPELINE_CLASS:
            return _load_pipeline_model(model, **options)
        place = folder.fetched().path if folder.origin == "hub" else model
        return LOADERS[named](place, **options)
