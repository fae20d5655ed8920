"""Small composing models on ONNX Runtime: a `FaceModel` that imports no torch.

A model's folder `onnx` holds two graphs, the ID encoder and the denoiser, which `export.write_graphs` writes.
They are structure only: the weights are the tensors of the model's own safetensors files. NumPy does what
stands around the networks, as `MagicEditPipeline` does with torch: noise, steps, guidance, composing.
"""

import hashlib
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from magicedit.action_units import vocabulary_of
from magicedit.change import Change
from magicedit.errors import ModelError, building
from magicedit.files import opened, read_json, remembered_sha256
from magicedit.models.folder import PIPELINE_CLASS, ModelFolder
from magicedit.pipelines.sampling import Sampling as PipelineSampling
from magicedit.pipelines.sampling import sampling_of
from magicedit.request import Sampling
from magicedit.vocabulary import Vocabulary
from magicedit.workers import cores

GRAPHS = "onnx"  # folder of a model's graphs
ABOUT = "graphs.json"  # what they were made for, and the tensors that each of them takes
ENCODER, DENOISER = "encoder.onnx", "denoiser.onnx"
NETWORKS = ("reference_unet", "unet")
TRANSPOSED = ".T"  # ending of the names of tensors that a graph takes transposed
LARGEST_ABOUT, LARGEST_GRAPH = 2**20, 2**24  # bytes
WRITE_AGAIN = "write them again (magicedit.models.write_graphs), or delete that folder to use PyTorch"

# As in `pipelines.heads` and of `MagicEditPipeline`, which import torch; a test compares them
FLOW_SCALE, MASK_BIAS = 0.1, -3.0
DEFAULTS = {
    "concat_identity": False,
    "default_guidance_scale": 3.0,
    "default_steps": 50,
    "distilled_steps": 0,
    "patch_size": 4,
    "resolution": 512,
}

DENOISER_SETTINGS = {"class_embed_type": "simple_projection"}
# The settings of a DDIM scheduler that `Ddim` serves; others of its settings do not matter then
SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "beta_schedule": "squaredcos_cap_v2",
    "clip_sample": False,
    "prediction_type": "sample",
    "rescale_betas_zero_snr": False,
    "set_alpha_to_one": True,
    "thresholding": False,
    "timestep_spacing": "trailing",
    "trained_betas": None,
}


def has_graphs(folder: ModelFolder) -> bool:
    """Whether a model folder has graphs of its own, or an embedded model those of the one it borrows from."""
    return folder.has_index and (folder.component(GRAPHS) / ABOUT).is_file()


def settings_of(folder: ModelFolder) -> dict[str, Any]:
    """Returns the settings in a model's index, with the pipeline's defaults."""
    return {name: folder.index.get(name, default) for name, default in DEFAULTS.items()}


def architecture(folder: ModelFolder) -> dict[str, Any]:
    """Returns the settings of a model folder on which the structure of its graphs depends."""
    settings = settings_of(folder)
    shape = {name: settings[name] for name in ("concat_identity", "patch_size", "resolution")}
    for name in NETWORKS:
        config = read_json(folder.component(name) / "config.json", ModelError)
        shape[name] = {key: value for key, value in config.items() if not key.startswith("_")}
    return shape


def check_graphs_serve(folder: ModelFolder) -> None:
    """Raises ModelError unless a model is of the kind that graphs exist for: it composes patches of pixels by
    two UNets, of which the denoiser has a linear embedding of its action units, and a DDIM scheduler."""
    index, missing = folder.index, [name for name in NETWORKS if name not in folder.components]
    others = set(folder.components) - {*NETWORKS, "scheduler"}
    if missing or others or index.get("prediction") != "flow_mask_paint":
        raise ModelError(
            f"{folder.name} cannot run as graphs, which exist for flow_mask_paint models of unet, "
            f"reference_unet and scheduler; it predicts {index.get('prediction')} by "
            f"{', '.join(folder.components)}"
        )
    unet = read_json(folder.component("unet") / "config.json", ModelError)
    scheduler = read_json(folder.component("scheduler") / "scheduler_config.json", ModelError)
    for config, settings in ((unet, DENOISER_SETTINGS), (scheduler, SCHEDULER)):
        for name, needed in settings.items():
            if config.get(name) != needed:
                raise ModelError(
                    f"{folder.name} cannot run as graphs, which need {name} {needed!r}, got "
                    f"{config.get(name)!r}; use PyTorch (delete its folder {GRAPHS}, if it has one)"
                )
    units, asked = len(folder.action_units or ()), unet.get("projection_class_embeddings_input_dim")
    if units != asked:
        raise ModelError(f"{folder.name} names {units} action units, but its denoiser takes {asked}")
    crops = settings_of(folder)
    size, multiple = crops["resolution"], math.lcm(4, crops["patch_size"])
    if size % multiple:
        raise ModelError(
            f"{folder.name} cannot run as graphs, whose crops are multiples of {multiple} px, got {size}"
        )


class Ddim:
    """Deterministic DDIM (Song et al. 2021, arXiv:2010.02502, equation 12, eta 0) for predictions of the
    clean sample, with trailing timesteps, as diffusers' `DDIMScheduler` of the settings `SCHEDULER`."""

    def __init__(self, num_train_timesteps: int):
        self.num_train_timesteps = num_train_timesteps
        levels = np.arange(num_train_timesteps + 1) / num_train_timesteps
        signal = np.cos((levels + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = np.minimum(1 - signal[1:] / signal[:-1], 0.999).astype(np.float32)
        self.alphas_cumprod = np.cumprod(1 - betas, dtype=np.float64).astype(np.float32)

    def timesteps(self, steps: int) -> np.ndarray:
        """Returns the timesteps of a number of steps, noisiest first, (steps,) int64.

        Raises ModelError where the model was trained on fewer.
        """
        if steps > self.num_train_timesteps:
            raise ModelError(f"the model takes {self.num_train_timesteps} steps at most, got {steps}")
        positions = np.arange(self.num_train_timesteps, 0, -self.num_train_timesteps / steps)
        return np.round(positions).astype(np.int64) - 1

    def step(self, clean: np.ndarray, timestep: int, noisy: np.ndarray, steps: int) -> np.ndarray:
        """Returns the latents at the next of `steps` levels, from `noisy` ones at `timestep`."""
        following = timestep - self.num_train_timesteps // steps
        alpha = self.alphas_cumprod[timestep]
        next_alpha = self.alphas_cumprod[following] if following >= 0 else np.float32(1)
        noise = (noisy - np.sqrt(alpha) * clean) / np.sqrt(1 - alpha)
        return np.sqrt(next_alpha) * clean + np.sqrt(1 - next_alpha) * noise


def initial_noise(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Returns `torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))` to the rounding of
    logarithms and cosines, float32; the product of `shape` must be a multiple of 16."""
    bits = np.random.RandomState(seed & 0xFFFFFFFF).randint(0, 2**32, np.prod(shape), dtype=np.uint32)
    uniform = (bits & 0xFFFFFF).astype(np.float32) * np.float32(2**-24)
    first, second = uniform.reshape(-1, 2, 8).swapaxes(0, 1)  # Box-Muller, in torch's blocks of 16
    radius, angle = np.sqrt(-2 * np.log(1 - first)), np.float32(2 * np.pi) * second
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(shape)


def pixel_unshuffle(image: np.ndarray, patch: int) -> np.ndarray:
    """(channels, height, width) -> (channels * patch**2, height / patch, width / patch)"""
    channels, height, width = image.shape
    blocks = image.reshape(channels, height // patch, patch, width // patch, patch)
    return blocks.transpose(0, 2, 4, 1, 3).reshape(-1, height // patch, width // patch)


def pixel_shuffle(patches: np.ndarray, patch: int) -> np.ndarray:
    """(channels * patch**2, rows, columns) -> (channels, rows * patch, columns * patch)"""
    _, rows, columns = patches.shape
    blocks = patches.reshape(-1, patch, patch, rows, columns)
    return blocks.transpose(0, 3, 1, 4, 2).reshape(-1, rows * patch, columns * patch)


def bicubic(size: int, scale: int) -> np.ndarray:
    """Returns the matrix (size * scale, size) that enlarges an axis as torch's bicubic interpolation does:
    Keys' kernel with a = -0.75, pixel centres aligned, borders repeated."""
    positions = (np.arange(size * scale) + 0.5) / scale - 0.5
    taps = np.floor(positions)[:, None] + np.arange(-1, 3)  # (outputs, 4)
    distance = np.abs(positions[:, None] - taps)
    near = (1.25 * distance - 2.25) * distance**2 + 1
    far = ((-0.75 * distance + 3.75) * distance - 6) * distance + 3
    matrix = np.zeros((size * scale, size), np.float64)
    columns = taps.clip(0, size - 1).astype(int)
    np.add.at(matrix, (np.arange(size * scale)[:, None], columns), np.where(distance <= 1, near, far))
    return matrix.astype(np.float32)


def read_at(image: np.ndarray, columns: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Reads an image (channels, height, width) bilinearly at pixels (height, width); borders repeat."""
    height, width = image.shape[1:]
    columns, rows = columns.clip(0, width - 1), rows.clip(0, height - 1)
    across, down = columns % 1, rows % 1
    left, top = columns.astype(np.intp), rows.astype(np.intp)
    right, bottom = np.minimum(left + 1, width - 1), np.minimum(top + 1, height - 1)
    upper = image[:, top, left] * (1 - across) + image[:, top, right] * across
    lower = image[:, bottom, left] * (1 - across) + image[:, bottom, right] * across
    return upper * (1 - down) + lower * down


@dataclass(frozen=True, eq=False)
class Head:
    """Parts of a denoiser's output at full size, see `pipelines.heads.HeadOutput`; channels first.

    paint: (3, height, width) in [-1, 1]. mask_logits: (height, width). flow: (2, height, width), x then y, in
    halves of the image's side.
    """

    paint: np.ndarray
    mask_logits: np.ndarray
    flow: np.ndarray

    @property
    def mask(self) -> np.ndarray:
        return (np.tanh(self.mask_logits / 2) + 1) / 2  # the sigmoid, without overflow

    @property
    def flow_px(self) -> np.ndarray:
        """(2, height, width) in pixels"""
        return self.flow * np.float32(self.flow.shape[-1] / 2)

    def guided(self, unguided: "Head", scale: float) -> "Head":
        """Classifier-free guidance, see `pipelines.heads.guide_head`."""
        scale = np.float32(scale)
        return Head(
            self.paint,
            unguided.mask_logits + scale * (self.mask_logits - unguided.mask_logits),
            unguided.flow + scale * (self.flow - unguided.flow),
        )

    def compose(self, identity: np.ndarray) -> np.ndarray:
        """Returns the picture that the change makes of the identity, both (3, height, width) in [-1, 1]."""
        rows, columns = np.indices(identity.shape[1:], np.float32)
        flow, mask = self.flow_px, self.mask
        moved = read_at(identity, columns + flow[0], rows + flow[1])
        return ((1 - mask) * moved + mask * self.paint).clip(-1, 1)

    @property
    def change(self) -> Change:
        return Change(
            np.ascontiguousarray(self.flow_px.transpose(1, 2, 0)),
            self.mask,
            np.ascontiguousarray(((self.paint.transpose(1, 2, 0) + 1) / 2).clip(0, 1)),
        )


@dataclass(frozen=True, eq=False)
class EncodedFace:
    """A face as a `GraphModel` encodes it.

    identity: (3, size, size) in [-1, 1]. condition_latents: (channels, size / patch, size / patch), all that
    is concatenated to the noisy latents. projections: keys and values of the reference, by input of the
    denoiser's graph. weights: of the model that encoded it.
    """

    identity: np.ndarray
    condition_latents: np.ndarray
    projections: dict[str, np.ndarray]
    weights: object


class GraphModel:
    """A composing model of patches of pixels on ONNX Runtime as a `FaceModel`, float32 on the CPU.

    It gives what `PipelineModel` gives within rounding. Rows are evaluated one after the other. Its weights
    never change.

    folder: of the model, with graphs. threads: of ONNX Runtime for one evaluation; default: OMP_NUM_THREADS,
    else as many as there are cores.
    """

    composes = follows_muscles = True

    def __init__(self, folder: ModelFolder, threads: int | None = None):
        self.folder, self.name = folder, folder.name
        self.vocabulary: Vocabulary = vocabulary_of(folder.action_units)
        self._settings = settings_of(folder)
        self.resolution: int = self._settings["resolution"]
        self._patch: int = self._settings["patch_size"]
        about = read_about(folder)
        with building(
            ModelError,
            f"the weights of {folder.name} cannot be read; save it in float32, or delete its folder {GRAPHS} "
            "to use PyTorch",
        ):
            weights = read_weights(folder)
        self._weights = object()  # identity of what is in memory
        threads = threads or _named_threads() or cores()
        place = folder.component(GRAPHS)
        with building(
            ModelError, f"the graphs in {place} do not fit the weights of {folder.name}; {WRITE_AGAIN}"
        ):
            self._encoder, self._denoiser = (
                open_session(place / name, about[name], weights, threads) for name in (ENCODER, DENOISER)
            )
        self._projections = [entry.name for entry in self._encoder.get_outputs()]
        width = about["architecture"]["unet"]["cross_attention_dim"]
        self._prompt_embeds = np.zeros((1, 1, width), np.float32)  # the text of models without one
        self._enlarge = bicubic(self.resolution // self._patch, self._patch)
        scheduler = read_json(folder.component("scheduler") / "scheduler_config.json", ModelError)
        self._ddim = Ddim(scheduler["num_train_timesteps"])
        self.show_progress(False)

    @classmethod
    def load(cls, folder: ModelFolder, threads: int | None = None) -> Self:
        """Loads a model folder that has graphs.

        Raises:
            ModelError: where the folder is incomplete, or the graphs do not fit it.
        """
        folder.check()
        check_graphs_serve(folder)
        return cls(folder, threads)

    def encode(self, crop: np.ndarray, condition: np.ndarray) -> EncodedFace:
        identity, condition = (
            2 * (picture.transpose(2, 0, 1).astype(np.float32) / 255) - 1 for picture in (crop, condition)
        )
        latents = pixel_unshuffle(identity, self._patch)
        inputs = {
            "identity": latents[None],
            "timestep": np.array([0]),
            "prompt_embeds": self._prompt_embeds,
        }
        projections = self._encoder.run(None, inputs)
        concatenated = [pixel_unshuffle(condition, self._patch)]
        concatenated += [latents] if self._settings["concat_identity"] else []
        return EncodedFace(
            identity,
            np.concatenate(concatenated),
            dict(zip(self._projections, projections, strict=True)),
            self._weights,
        )

    def is_current(self, encoded: Any) -> bool:
        return encoded.weights is self._weights

    def change(
        self,
        encoded: Sequence[EncodedFace],
        deltas: Sequence[np.ndarray],
        sampling: Sampling,
        on_step: Callable[[int], None] | None = None,
    ) -> list[Change | np.ndarray]:
        """See `FaceModel.change`. ModelError where a result is not finite."""
        return [head.change for head in self._sample(encoded, deltas, sampling, on_step)]

    def picture(self, crop: np.ndarray, condition: np.ndarray, delta: np.ndarray) -> np.ndarray:
        """What the networks make of a crop, (size, size, 3) uint8, as `FaceModel.encode` and `change` take
        crops and requests."""
        face = self.encode(crop, condition)
        (head,) = self._sample([face], [delta], Sampling())
        return np.rint((head.compose(face.identity).transpose(1, 2, 0) + 1) / 2 * 255).astype(np.uint8)

    def steps(self, steps: int | None, quality: str | None) -> int:
        return steps or self.sampling(quality).steps

    def show_progress(self, shown: bool) -> None:
        self._shown = shown

    def seconds(self, repetitions: int = 5) -> float:
        """Returns the median time of a denoiser evaluation, after one that warms up."""
        blank = np.zeros((self.resolution, self.resolution, 3), np.uint8)
        face, delta, times = self.encode(blank, blank), np.ones(len(self.vocabulary), np.float32), []
        for _ in range(repetitions + 1):
            start = time.perf_counter()
            self.change([face], [delta], Sampling(steps=1, guidance=1.0))
            times.append(time.perf_counter() - start)
        return statistics.median(times[1:])

    def fingerprint(self) -> str:
        networks = {name: self.folder.component(name) for name in (*NETWORKS, "scheduler", GRAPHS)}
        files = [(name, file) for name, place in networks.items() for file in place.glob("*")]
        parts = {f"{name}/{file.name}": remembered_sha256(file) for name, file in files if file.is_file()}
        return hashlib.sha256(json.dumps([self.folder.index, parts], sort_keys=True).encode()).hexdigest()

    def sampling(self, quality: str | None = None) -> PipelineSampling:
        """Returns the sampling settings of a quality, see `MagicEditPipeline.sampling`."""
        settings = self._settings
        return sampling_of(
            quality,
            PipelineSampling(settings["default_steps"], settings["default_guidance_scale"]),
            distilled_steps=settings["distilled_steps"],
            composed=True,
        )

    def _sample(
        self,
        encoded: Sequence[EncodedFace],
        deltas: Sequence[np.ndarray],
        sampling: Sampling,
        on_step: Callable[[int], None] | None = None,
    ) -> list[Head]:
        """Runs all steps for all rows; returns the heads of the last one."""
        settings = self.sampling(sampling.quality)
        given = {"steps": sampling.steps, "guidance_scale": sampling.guidance}
        settings = replace(settings, **{name: value for name, value in given.items() if value is not None})
        timesteps = self._ddim.timesteps(settings.steps)
        side = self.resolution // self._patch
        noise = initial_noise((3 * self._patch**2, side, side), sampling.seed)
        latents, heads = [noise] * len(deltas), []
        with self._bar(len(timesteps)) as bar:
            for step, timestep in enumerate(timesteps):
                scale = settings.guidance_scale if settings.guides(step, len(timesteps)) else None
                heads = [
                    self._head(face, noisy, timestep, delta, scale)
                    for face, noisy, delta in zip(encoded, latents, deltas, strict=True)
                ]
                if step + 1 < len(timesteps):
                    cleans = [
                        pixel_unshuffle(head.compose(face.identity), self._patch)
                        for head, face in zip(heads, encoded, strict=True)
                    ]
                    latents = [
                        self._ddim.step(clean, timestep, noisy, settings.steps)
                        for clean, noisy in zip(cleans, latents, strict=True)
                    ]
                if on_step is not None:
                    on_step(step)
                if bar is not None:
                    bar.update()
        return heads

    def _bar(self, steps: int) -> AbstractContextManager:
        if not self._shown:
            return nullcontext()
        from tqdm import tqdm

        return tqdm(total=steps, leave=False)

    def _head(
        self, face: EncodedFace, noisy: np.ndarray, timestep: int, delta: np.ndarray, scale: float | None
    ) -> Head:
        """Evaluates the denoiser for one row; scale: of guidance, None: without."""
        inputs = {
            "sample": np.concatenate([noisy, face.condition_latents])[None],
            "timestep": np.array([timestep]),
            "class_labels": np.asarray(delta, np.float32)[None],
            "prompt_embeds": self._prompt_embeds,
            **face.projections,
        }
        head = self._split(self._denoiser.run(None, inputs)[0][0])
        if scale is None or not np.any(delta):  # a row of zeros is its own unguided half
            return head
        inputs["class_labels"] = np.zeros_like(inputs["class_labels"])
        return head.guided(self._split(self._denoiser.run(None, inputs)[0][0]), scale)

    def _split(self, output: np.ndarray) -> Head:
        """(out channels, size / patch, size / patch) -> its parts at full size, see `heads.split_head`."""
        if not np.isfinite(output).all():
            raise ModelError("the model's answer is not finite; its weights are broken")
        patch, area = self._patch, self._patch**2
        paint, mask, flow, fine = np.split(output, [3 * area, 4 * area, 4 * area + 2])
        flow = self._enlarge @ (flow * np.float32(FLOW_SCALE)) @ self._enlarge.T
        if len(fine):
            flow = flow + pixel_shuffle(fine, patch) * np.float32(FLOW_SCALE)
        return Head(pixel_shuffle(paint, patch), pixel_shuffle(mask, patch)[0] + np.float32(MASK_BIAS), flow)


def _named_threads() -> int:
    """Number of threads that OMP_NUM_THREADS names, as torch takes it; 0: none."""
    outermost = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()  # "4,2": of nested regions
    return int(outermost) if outermost.isdecimal() else 0


def read_about(folder: ModelFolder) -> dict[str, Any]:
    """Returns the content of a model's `graphs.json`; ModelError where the graphs are of another model."""
    file = folder.component(GRAPHS) / ABOUT
    about = read_json(file, ModelError, limit=LARGEST_ABOUT)
    made_for = about.get("architecture") if isinstance(about, dict) else None
    if made_for != (needed := architecture(folder)):
        other = made_for if isinstance(made_for, dict) else {}
        differing = ", ".join(sorted(name for name in needed if other.get(name) != needed[name]))
        raise ModelError(f"the graphs in {file.parent} are of another model ({differing}); {WRITE_AGAIN}")
    return about


def read_weights(folder: ModelFolder) -> dict[str, np.ndarray]:
    """Returns the tensors of both networks by network and name, such as "unet.conv_in.weight"."""
    from safetensors.numpy import load_file

    return {
        f"{network}.{name}": tensor
        for network in NETWORKS
        for file in sorted(folder.component(network).glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def open_session(
    file: Path, tensors: dict[str, list[int]], weights: dict[str, np.ndarray], threads: int
) -> Any:
    """Returns an ONNX Runtime session of a graph.

    tensors: shapes by name of the weights that it takes. Raises ValueError where one is missing or of another
    size.
    """
    import onnxruntime

    if lacking := sorted({name.removesuffix(TRANSPOSED) for name in tensors} - set(weights)):
        raise ValueError(f"the weights lack {', '.join(lacking[:4])}")
    arrays = []
    for name, shape in tensors.items():
        array = weights[name.removesuffix(TRANSPOSED)]
        array = np.ascontiguousarray(array.T if name.endswith(TRANSPOSED) else array, np.float32)
        arrays.append(array.reshape(shape))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # errors are raised too
    # Threads that wait would burn the time of the other stages of an edit
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # A graph may name files to read tensors from: relative to this one, where there are none
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(file))
    options.add_external_initializers(
        list(tensors), [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in arrays]
    )
    with opened(file, ModelError, limit=LARGEST_GRAPH) as stream:
        graph = stream.read()
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def serves(folder: ModelFolder) -> bool:
    """Whether a model is loaded as a `GraphModel` where nothing else is asked for; never one of a hub."""
    return has_graphs(folder) and folder.pipeline_class() == PIPELINE_CLASS
