"""Editing whole photographs: find the faces, edit each in an aligned crop, carry the change back.

A model sees a square crop of its own size. What returns to the photograph is not that crop but its *change*:
a flow that moves the photograph's own pixels, and paint for what was not there before, within a feathered
region of the face (see `magicedit.warping.change`). Everything outside equals the input to the byte.
"""

import hashlib
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image

from magicedit.action_units import (
    INTENSITY_RANGE,
    parse_deltas,
    resolve_delta,
    split_sides,
    to_vector,
    with_sides,
)
from magicedit.errors import ActionUnitError, MagicEditError, ModelError, NoFaceError
from magicedit.faces import (
    Face,
    FaceBackend,
    Pose,
    align,
    condition_image,
    covered_parts,
    crop_face,
    editing_region,
    geometric_change,
    identity_distance,
    left_side,
    load_backend,
    region_polygon,
)
from magicedit.faces.alignment import stable_landmarks
from magicedit.faces.geometry import MOVEMENTS_OF_SCHEME
from magicedit.faces.types import same_face
from magicedit.imaging import Photo, open_photo, photo_to_image, strip
from magicedit.warping import Change, carry_change, estimate_change, join_sides, no_change

if TYPE_CHECKING:
    import torch

    from magicedit.pipelines.pipeline_magicedit import MagicEditPipeline

PhotoLike = str | Path | PIL.Image.Image | np.ndarray | Photo

POSE_LIMIT = 30.0  # degrees of yaw or pitch; roll is undone by the alignment
REACHED_SHARE = 0.5  # a measured change below this share of the request is worth a warning
SMALLEST_JUDGED = 0.5  # intensity steps: below, the measurement's own scatter decides
VARIANTS_AT_ONCE = 4  # AU vectors a pipeline call: bounds the memory of a sweep
REMEMBERED_PHOTOS = 4
MOST_STEPS = 1000  # noise levels of the published schedule, and of ours


@dataclass(frozen=True, eq=False)
class FaceEdit:
    """What was asked of one face, and what the measurement says about it.

    Attributes:
        box: (x0, y0, x1, y1) in pixels of the upright photograph.
        pose: of the head, in degrees; None where the face backend measures none.
        requested: AU name -> variation in intensity steps, target minus source.
        before: AU name -> intensity 0 to 5 in the photograph; empty where the backend measures none.
        after: the same in the result; None when it was not measured or the face was not found again.
        moved: AU name -> change in intensity steps by the movement of landmarks alone, a second scorer that
            sees what the first is blind to, see `magicedit.faces.geometry`; None as `after`, or without such
            landmarks.
        identity_distance: L2 of dlib's descriptors before and after; None when not measured or without the
            `evaluation` extra.
        warnings: what should make one look twice, in sentences.
    """

    box: tuple[float, float, float, float]
    pose: Pose | None
    requested: dict[str, float]
    before: dict[str, float]
    after: dict[str, float] | None
    moved: dict[str, float] | None
    identity_distance: float | None
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """JSON-ready, rounded to what the measurements can tell."""
        return {
            "box": [round(float(edge), 1) for edge in self.box],
            "requested": rounded(self.requested),
            "before": rounded(self.before),
            "after": None if self.after is None else rounded(self.after),
            "moved": None if self.moved is None else rounded(self.moved),
            "pose": pose_to_json(self.pose),
            "identity_distance": None if self.identity_distance is None else round(self.identity_distance, 4),
            "warnings": list(self.warnings),
        }


@dataclass(frozen=True, eq=False)
class EditResult:
    """An edited photograph.

    Attributes:
        image: upright, in the mode of the photograph, with its colour profile and metadata in `image.info`.
        faces: one entry per edited face, largest first.
        seconds: wall time of the edit, loading of the model not counted.
        model: name, folder or hub id of the model.
    """

    image: PIL.Image.Image
    faces: list[FaceEdit]
    seconds: float
    model: str


@dataclass(frozen=True, eq=False)
class AttentionMaps:
    """Where named places of a face look while it is edited (the figure 9 of MagicFace, arXiv:2501.02260).

    Attributes:
        maps: (steps, queries, h, w) float32, the attention of each query to the tokens of the reference; each
            map's sum is the share that goes to the reference, the rest of 1 goes to the image itself.
        queries: the names of the places; sides are the subject's.
        points: (queries, 2) float32, x then y, pixels of the crop, centres at whole numbers.
        crop: (size, size, 3) uint8 RGB, the reference as the model sees it.
        timesteps: (steps,) of the scheduler.
        reference_share: (steps, layers) float32, the share that goes to the reference, mean over all queries.
        layers: the names of the layers, in execution order.
        map_layers: the names of those that `maps` is the mean of.
        text_share: (steps, layers, text tokens) float32, the cross-attention's weights, mean over all of the
            image's queries; None for a model without a text encoder: its cross-attention sees one zero token.
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


class ExpressionEditor:
    """Changes the expression of the faces in a photograph, in FACS action units.

        editor = ExpressionEditor.from_pretrained("mini")
        result = editor.edit("photo.jpg", add={"AU12": 3}, face="largest")
        result.image.save("smile.png")

    Faces found in a photograph are remembered for the next few edits of the same pixels.
    """

    def __init__(self, pipeline: "MagicEditPipeline", backend: FaceBackend, *, model: str = "custom"):
        self.pipeline = pipeline
        self.backend = backend
        self.model = model
        self._faces: OrderedDict[bytes, list[Face]] = OrderedDict()
        self._detecting = threading.Lock()  # face backends and this cache serve one thread at a time
        pipeline.set_progress_bar_config(disable=True)

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path = "mini",
        *,
        device: "str | torch.device | None" = None,
        dtype: "str | torch.dtype | None" = None,
        backend: str | FaceBackend = "mediapipe",
    ) -> "ExpressionEditor":
        """Loads a model and a face backend.

        Args:
            model: "mini" (embedded in the package), a pipeline folder, or a hub id.
            device: default: the best present (CUDA, then MPS, then CPU).
            dtype: of the model's weights; default: float32.
            backend: the name of a face backend ("mediapipe", "insightface"), or one that is already loaded.

        Raises:
            ModelError: where the model or the backend's model file is missing, incomplete or unsafe.
            MissingDependencyError: where the backend is an extra that is not installed.
        """
        from magicedit.models import load_pipeline

        pipeline = load_pipeline(model, device=usable_device(device), dtype=usable_dtype(dtype))
        return cls(pipeline, load_backend(backend) if isinstance(backend, str) else backend, model=str(model))

    @property
    def action_units(self) -> tuple[str, ...]:
        """The AUs this model was trained on, in its order."""
        return tuple(self.pipeline.action_units)

    def edit(
        self,
        photo: PhotoLike,
        add: str | Mapping[str, float] | Sequence[float] | np.ndarray | None = None,
        set: str | Mapping[str, float] | Sequence[float] | np.ndarray | None = None,
        emotion: str | tuple[str, float] | None = None,
        face: str | int = "all",
        *,
        steps: int | None = None,
        guidance: float | None = None,
        seed: int = 0,
        measure: bool = True,
    ) -> EditResult:
        """Edits one or all faces of a photograph, at the photograph's own resolution.

        Args:
            photo: a path, PIL image, (height, width, 3) uint8 RGB array or `Photo`.
            add: variations in intensity steps, -10 to 10: a dict, "AU12=+3,AU4=-1", or a vector in the
                model's order. "AU12L=+3" changes the subject's left side alone; the change then fades over
                the bridge of the nose.
            set: intensities to arrive at, 0 to 5; the variation follows from what the photograph measures.
            emotion: "happiness", "happiness:0.8" or ("happiness", 0.8); adds to `add`.
            face: "all", "largest", or an index into the faces from the largest (0) to the smallest.
            steps: denoising steps; default: the model's own.
            guidance: classifier-free guidance scale; default: the model's own.
            seed: of the initial noise, the same for each face, so that none depends on the others.
            measure: measure the faces again in the result; without, `after`, `moved` and `identity_distance`
                are None.

        Returns:
            the result. When nothing is asked for, its image equals the photograph exactly.

        Raises:
            ImageError, NoFaceError, ActionUnitError: see their docstrings.
        """
        started = time.perf_counter()
        check_sampling(steps, guidance, seed)
        asked = {"add": add, "set": set, "emotion": emotion, "names": self.action_units}
        known = dict.fromkeys(with_sides(self.action_units), 0.0)
        resolve_delta(known, **asked)  # malformed requests fail before detection
        photo = open_photo(photo)
        faces = select_faces(self._detect(photo), face, photo)
        requests = [resolve_delta(found.action_units | found.sides, **asked) for found in faces]
        (pixels,) = self._apply(photo.pixels, faces, [requests], steps, guidance, seed)
        return self._result(photo, pixels, faces, requests, measure, started)

    def measure(self, photo: PhotoLike) -> list[Face]:
        """The faces of a photograph with landmarks, AU intensities and pose, largest first.

        Raises:
            ImageError: where the photograph cannot be read.
            NoFaceError: where there is none.
        """
        photo = open_photo(photo)
        return select_faces(self._detect(photo), "all", photo)

    def sweep(
        self,
        photo: PhotoLike,
        au: str,
        start: float,
        stop: float,
        steps: int,
        face: str | int = "largest",
        *,
        inference_steps: int | None = None,
        guidance: float | None = None,
        seed: int = 0,
        measure: bool = True,
    ) -> list[EditResult]:
        """Edits with one AU at `steps` evenly spaced variations from `start` to `stop`, both included.

        The face is encoded once for several variations. Results and errors as of `edit`.
        """
        started = time.perf_counter()
        check_sampling(inference_steps, guidance, seed)
        if steps < 2:
            raise ActionUnitError(f"a sweep needs at least 2 steps, got {steps}")
        names = self.action_units
        deltas = [parse_deltas({au: float(value)}, names) for value in np.linspace(start, stop, steps)]
        photo = open_photo(photo)
        faces = select_faces(self._detect(photo), face, photo)
        edited = self._apply(
            photo.pixels, faces, [[delta] * len(faces) for delta in deltas], inference_steps, guidance, seed
        )
        results = []
        for delta, pixels in zip(deltas, edited, strict=True):
            results.append(self._result(photo, pixels, faces, [delta] * len(faces), measure, started))
            started = time.perf_counter()  # the first result bears the cost of the shared work
        return results

    def attention_maps(
        self,
        photo: PhotoLike,
        add: str | Mapping[str, float] | Sequence[float] | np.ndarray,
        face: str | int = "largest",
        *,
        seed: int = 0,
        steps: int | None = None,
        guidance: float | None = None,
        layer: str | None = None,
    ) -> AttentionMaps:
        """The reference attention of an edit of one face, under the AU variation where it is guided.

        Args:
            photo, add, face, seed, steps, guidance: as of `edit`; sides of the face cannot differ.
            layer: its maps; default: the mean of all layers with the finest token grid.

        Raises:
            ModelError: where the model has no reference UNet, or no such layer.
            ImageError, NoFaceError, ActionUnitError: see their docstrings.
        """
        import torch

        from magicedit.pipelines.pipeline_magicedit import record_reference_attention, transformer_blocks

        # 1. Check
        check_sampling(steps, guidance, seed)
        if self.pipeline.reference_unet is None:
            raise ModelError(
                f"the model {self.model} has no reference UNet, so nothing in it attends to a reference face"
            )
        layers = tuple(transformer_blocks(self.pipeline.unet))
        if layer is not None and layer not in layers:
            raise ModelError(f"the model {self.model} has no layer {layer!r}; it has {', '.join(layers)}")
        delta = resolve_delta(
            dict.fromkeys(with_sides(self.action_units), 0.0), add=add, names=self.action_units
        )
        left, right = (to_vector(side, self.action_units) for side in split_sides(delta))
        if not np.array_equal(left, right):
            raise ActionUnitError(
                "attention is recorded of one run of the model; ask both sides for the same"
            )
        photo = open_photo(photo)
        found = select_faces(self._detect(photo), face, photo)
        if len(found) > 1:
            raise NoFaceError(f'attention is recorded of one face: "largest" or an index, got {face!r}')

        # 2. Edit, recording
        size = self.pipeline.config.resolution
        alignment = align(found[0], size)
        landmarks = alignment.apply(found[0].landmarks)  # (points, 2), crop px
        crop = crop_face(photo.pixels, alignment)
        places = named_places(landmarks, found[0].scheme)
        points = np.stack(list(places.values())).astype(np.float32)
        timesteps = []

        def note_timestep(pipeline, step, timestep, tensors):
            timesteps.append(float(timestep))
            return tensors

        sides = torch.from_numpy((points + 0.5) / size)  # parts of the crop's sides
        with record_reference_attention(self.pipeline.unet, sides) as record:
            self.pipeline(
                image=PIL.Image.fromarray(crop),
                condition_image=PIL.Image.fromarray(condition_image(crop, landmarks, found[0].scheme)),
                au_delta=left[None],
                num_inference_steps=steps,
                guidance_scale=guidance,
                generator=[torch.Generator("cpu").manual_seed(seed)],
                output_type="latent",
                callback_on_step_end=note_timestep,
            )

        # 3. Of a guided batch the last row is the conditioned one
        layers = tuple(record.reference[0])
        tokens = {name: weights.shape[-1] for name, weights in record.reference[0].items()}
        chosen = tuple(
            n for n in layers if (tokens[n] == max(tokens.values()) if layer is None else n == layer)
        )
        grid = math.isqrt(tokens[chosen[0]])
        maps = [torch.stack([call[name][-1] for name in chosen]).mean(0) for call in record.reference]
        shares = [torch.stack([call[name][-1] for name in layers]) for call in record.reference_share]
        text_share = None
        if self.pipeline.text_encoder is not None:
            text_share = torch.stack(
                [torch.stack([call[n][-1] for n in layers]) for call in record.text]
            ).numpy()
        return AttentionMaps(
            maps=torch.stack(maps).unflatten(-1, (grid, grid)).numpy(),
            queries=tuple(places),
            points=points,
            crop=crop,
            timesteps=np.asarray(timesteps),
            reference_share=torch.stack(shares).numpy(),
            layers=layers,
            map_layers=chosen,
            text_share=text_share,
        )

    def _detect(self, photo: Photo) -> list[Face]:
        pixels = np.ascontiguousarray(photo.pixels)
        key = hashlib.blake2b(pixels, digest_size=16, salt=b"%d" % pixels.shape[1]).digest()
        with self._detecting:
            if key not in self._faces:
                self._faces[key] = self.backend.detect(pixels)
                if len(self._faces) > REMEMBERED_PHOTOS:
                    self._faces.popitem(last=False)
            self._faces.move_to_end(key)
            return self._faces[key]

    def _apply(
        self,
        pixels: np.ndarray,
        faces: list[Face],
        requests: list[list[dict[str, float]]],
        steps: int | None,
        guidance: float | None,
        seed: int,
    ) -> list[np.ndarray]:
        """`requests[variant][face]` -> the edited pixels of each variant.

        Faces are edited one after the other on the evolving pixels, lest overlapping ones undo each other.
        """
        results = [pixels] * len(requests)
        for index, face in enumerate(faces):
            changing = [variant for variant, rows in enumerate(requests) if any(rows[index].values())]
            for first in range(0, len(changing), VARIANTS_AT_ONCE):
                variants = changing[first : first + VARIANTS_AT_ONCE]
                edited = self._edit_face(
                    [results[v] for v in variants],
                    face,
                    [requests[v][index] for v in variants],
                    steps,
                    guidance,
                    seed,
                )
                for variant, result in zip(variants, edited, strict=True):
                    results[variant] = result
        return results

    def _edit_face(
        self,
        photographs: list[np.ndarray],
        face: Face,
        deltas: list[dict[str, float]],
        steps: int | None,
        guidance: float | None,
        seed: int,
    ) -> list[np.ndarray]:
        """One face in several states of the photograph (usually equal), one AU variation for each."""
        # 1. Crops of the model's size, and their condition images
        size = self.pipeline.config.resolution
        alignment = align(face, size)
        landmarks = alignment.apply(face.landmarks)  # (points, 2), crop px
        crops = [crop_face(pixels, alignment) for pixels in photographs]  # (size, size, 3) each
        if all(np.array_equal(crop, crops[0]) for crop in crops[1:]):
            crops = crops[:1]
        conditions = [condition_image(crop, landmarks, face.scheme) for crop in crops]

        # 2. The model, once for each vector: two where the sides of the face are asked for different things
        vectors, crop_of, sides_of = [], [], []  # sides_of: the vectors of left and right, None: unchanged
        for index, delta in enumerate(deltas):
            sides = [to_vector(side, self.action_units) for side in split_sides(delta)]
            if np.array_equal(*sides):
                sides = sides[:1]
            numbers = []
            for vector in sides:
                numbers.append(len(vectors) if vector.any() else None)
                if vector.any():
                    vectors.append(vector)
                    crop_of.append(index if len(crops) > 1 else 0)
            sides_of.append((numbers[0], numbers[-1]))
        if not vectors:  # below what float32 can tell from nothing
            return photographs
        changes = self._changes(crops, conditions, crop_of, np.stack(vectors), steps, guidance, seed)

        # 3. Its change, carried to the photograph
        region = editing_region(landmarks, size, face.scheme)  # (size, size)
        results = []
        for pixels, sides in zip(photographs, sides_of, strict=True):
            left, right = (no_change(size) if side is None else changes[side] for side in sides)
            if sides[0] != sides[1]:
                left = join_sides(left, right, left_side(landmarks, size, face.scheme))
            results.append(carry_change(pixels, alignment, left, region))
        return results

    def _changes(
        self,
        crops: list[np.ndarray],
        conditions: list[np.ndarray],
        crop_of: list[int],
        vectors: np.ndarray,
        steps: int | None,
        guidance: float | None,
        seed: int,
    ) -> list[Change]:
        """What the model does by each of `vectors` (n, aus), to the crop that `crop_of` numbers."""
        import torch

        used = crop_of if len(crops) > 1 else [0]  # the pipeline encodes one face once for all vectors
        output = self.pipeline(
            image=[PIL.Image.fromarray(crops[index]) for index in used],
            condition_image=[PIL.Image.fromarray(conditions[index]) for index in used],
            au_delta=vectors,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=[torch.Generator("cpu").manual_seed(seed) for _ in vectors],
            output_type="np",
        )
        changes = []
        for index, crop in enumerate(crop_of):
            if output.change is None:
                edited = np.rint(output.images[index] * 255).astype(np.uint8)
                changes.append(estimate_change(crops[crop], edited))
                continue
            flow, mask, paint = (
                output.change[name][index].float().cpu().numpy() for name in ("flow", "mask", "paint")
            )
            if not all(np.isfinite(part).all() for part in (flow, mask, paint)):
                raise ModelError("the model's answer is not finite; its weights are broken, or use float32")
            changes.append(Change(flow=flow, mask=mask, paint=paint))
        return changes

    def _result(
        self,
        photo: Photo,
        pixels: np.ndarray,
        faces: list[Face],
        requests: list[dict[str, float]],
        measure: bool,
        started: float,
    ) -> EditResult:
        changed = pixels is not photo.pixels
        edits = []
        for face, requested in zip(faces, requests, strict=True):
            again, moved, distance, warnings = None, None, None, self._doubts(photo.pixels, face, requested)
            before, after = measured_as_asked(face, requested), None
            if measure:
                again = self._find_again(pixels, face) if changed else face
                if again is None:
                    warnings.append("the face was not found again in the result: look at it")
                else:
                    distance = identity_distance(photo.pixels, face, pixels, again)
                    after = measured_as_asked(again, requested)
                    if face.scheme == again.scheme == "mediapipe478":
                        moved = geometric_change(face.landmarks, again.landmarks)
                    warnings += unreached(requested, before, after, moved or {})
            edits.append(
                FaceEdit(
                    box=face.box,
                    pose=face.pose,
                    requested=requested,
                    before=before,
                    after=after,
                    moved=moved,
                    identity_distance=distance,
                    warnings=tuple(warnings),
                )
            )
        image = photo_to_image(photo, pixels)
        return EditResult(image, edits, time.perf_counter() - started, self.model)

    def _find_again(self, pixels: np.ndarray, face: Face) -> Face | None:
        """The same face in the edited photograph, looked for around its old place only."""
        height, width = pixels.shape[:2]
        x0, y0, x1, y1 = face.box
        margin = max(x1 - x0, y1 - y0)
        left, top = max(0, int(x0 - margin)), max(0, int(y0 - margin))
        right, bottom = min(width, math.ceil(x1 + margin)), min(height, math.ceil(y1 + margin))
        found = self.backend.detect(np.ascontiguousarray(pixels[top:bottom, left:right]))
        offset = np.array([left, top], np.float32)
        moved = [
            replace(
                other,
                box=tuple(float(edge) for edge in np.asarray(other.box) + np.tile(offset, 2)),
                landmarks=other.landmarks + offset,
            )
            for other in found
        ]
        return same_face(moved, face.box)

    def _doubts(self, pixels: np.ndarray, face: Face, requested: Mapping[str, float]) -> list[str]:
        """Why this edit may come out worse than others, as far as it can be known before it."""
        if not any(requested.values()):
            return []
        doubts = []
        if face.pose is not None:
            for axis in ("yaw", "pitch"):
                angle = getattr(face.pose, axis)
                if abs(angle) > POSE_LIMIT:
                    doubts.append(
                        f"the head's {axis} of {angle:+.0f}° is beyond the ±{POSE_LIMIT:.0f}° that edit well"
                    )
        if covered := covered_parts(pixels, face):
            doubts.append(f"something seems to cover the {', '.join(covered)}")
        resolution = self.pipeline.config.resolution
        native = resolution / align(face, resolution).scale
        if native < resolution:
            doubts.append(
                f"low resolution: the face's crop measures {native:.0f} px, the model's {resolution} px"
            )
        low, high = INTENSITY_RANGE
        for name, delta in requested.items():
            start = (face.action_units | face.sides).get(name)
            if start is None:
                if abs(delta) > high - low:
                    doubts.append(
                        f"a variation of {delta:+g} of {name} exceeds those in training (±{high - low:g})"
                    )
            elif delta and not low <= round(start + delta, 3) <= high:
                doubts.append(
                    f"{name} would become {start + delta:.1f}, outside the training range {low:g} to {high:g}"
                )
        return doubts


def usable_device(device: "str | torch.device | None") -> "torch.device | None":
    """The device, if this machine has it.

    Raises:
        ModelError: naming the devices that are here.
    """
    import torch

    if device is None:
        return None
    here = ["cpu"] + [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    here += ["mps"] if torch.backends.mps.is_available() else []
    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        raise ModelError(f"unknown device {device!r}; this machine has {', '.join(here)}") from error
    name = f"cuda:{wanted.index or 0}" if wanted.type == "cuda" else wanted.type
    if name not in here:
        raise ModelError(f"there is no device {device} for PyTorch on this machine; it has {', '.join(here)}")
    return wanted


def usable_dtype(dtype: "str | torch.dtype | None") -> "torch.dtype | None":
    """`torch.float16` from "float16", and so on.

    Raises:
        ModelError: for anything but the three that models run in.
    """
    import torch

    allowed = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype is None or dtype in allowed.values():
        return dtype
    if dtype not in allowed:
        raise ModelError(f"dtype must be one of {', '.join(allowed)}, got {dtype!r}")
    return allowed[dtype]


def check_sampling(steps: int | None, guidance: float | None, seed: int) -> None:
    """Raises MagicEditError unless the sampling settings make sense."""
    if steps is not None and not 1 <= steps <= MOST_STEPS:
        raise MagicEditError(
            f"the number of denoising steps must be at least 1 and at most {MOST_STEPS}, got {steps}"
        )
    if guidance is not None and not (math.isfinite(guidance) and guidance >= 0):
        raise MagicEditError(f"the guidance scale must be a number from 0 (3 is usual), got {guidance}")
    if not 0 <= seed < 2**63:
        raise MagicEditError(f"the seed must be an integer from 0 to 2**63 - 1, got {seed}")


def select_faces(faces: list[Face], which: str | int, photo: Photo) -> list[Face]:
    """The faces meant by "all", "largest" or an index, out of those found, largest first.

    Raises:
        NoFaceError: where there is no face, or fewer than the index needs.
    """
    if not isinstance(which, (str, int)) or isinstance(which, bool) or which in ("", None):
        raise NoFaceError(f'face must be "all", "largest" or an index from 0, got {which!r}')
    if isinstance(which, str) and which not in ("all", "largest"):
        raise NoFaceError(f'face must be "all", "largest" or an index from 0, got {which!r}')
    if not faces:
        height, width = photo.pixels.shape[:2]
        name = f"{photo.source}" if photo.source else "the photograph"
        raise NoFaceError(
            f"no face was found in {name} ({width} x {height} px): use one that shows a face upright, from "
            "the front or half side, well lit and at least about 75 px high"
        )
    if which == "all":
        return list(faces)
    index = 0 if which == "largest" else which
    if not 0 <= index < len(faces):
        found = f"{len(faces)} face was" if len(faces) == 1 else f"{len(faces)} faces were"
        raise NoFaceError(
            f"face {index} does not exist: {found} found, counted from 0 (the largest) to {len(faces) - 1}"
        )
    return [faces[index]]


def named_places(landmarks: np.ndarray, scheme: str) -> dict[str, np.ndarray]:
    """Places of a face, x and y in the landmarks' pixels; sides are the subject's."""
    lips = region_polygon(landmarks, scheme, "lips")  # from the right corner over the left one and back
    movements = MOVEMENTS_OF_SCHEME[scheme]
    brow = movements["AU1"].left + movements["AU2"].left
    return {
        "left mouth corner": lips[len(lips) // 2],
        "right mouth corner": lips[0],
        "left brow": landmarks[list(brow)].mean(0),
        "right eye": region_polygon(landmarks, scheme, "right_eye").mean(0),
        "nose": stable_landmarks(landmarks, scheme)[6],  # the lowest on its ridge
    }


def measured_as_asked(face: Face, requested: Mapping[str, float]) -> dict[str, float]:
    """The face's AUs, and by side those that were asked for by side."""
    return face.action_units | {name: face.sides[name] for name in requested if name in face.sides}


def unreached(
    requested: Mapping[str, float],
    before: Mapping[str, float],
    after: Mapping[str, float],
    moved: Mapping[str, float],
) -> list[str]:
    """Warnings on AUs that moved by less than half of what was asked and the scale leaves room for.

    Either scorer may have seen it: before and after (intensities), or moved (change by landmarks).
    """
    warnings = []
    for name, delta in requested.items():
        if name not in before or name not in after:
            continue
        possible = float(np.clip(before[name] + delta, *INTENSITY_RANGE)) - before[name]
        change = after[name] - before[name]
        if abs(possible) < SMALLEST_JUDGED or change / possible >= REACHED_SHARE:
            continue
        if moved.get(name, 0.0) / possible >= REACHED_SHARE:
            continue
        by_landmarks = f", {moved[name]:+.1f} by landmarks" if name in moved else ""
        warnings.append(
            f"{name} changed by {change:+.1f} of the {delta:+.1f} requested "
            f"(measured {before[name]:.1f} -> {after[name]:.1f}{by_landmarks})"
        )
    return warnings


def rounded(values: Mapping[str, float]) -> dict[str, float]:
    return {name: round(float(value), 3) for name, value in values.items()}


def pose_to_json(pose: Pose | None) -> dict[str, float] | None:
    """Degrees, rounded."""
    return pose and {axis: round(float(getattr(pose, axis)), 1) for axis in ("yaw", "pitch", "roll")}


def face_to_json(face: Face) -> dict[str, Any]:
    """What `magicedit measure --json` prints of one face."""
    return {
        "box": [round(float(edge), 1) for edge in face.box],
        "action_units": rounded(face.action_units),
        "sides": rounded(face.sides),
        "pose": pose_to_json(face.pose),
        "score": round(float(face.score), 4),
    }


def sweep_strip(results: Sequence[EditResult], side: int = 384) -> PIL.Image.Image:
    """A row of the first edited face of each result, captioned by what was requested and measured.

    Each picture shows the face's surroundings, at native resolution unless that exceeds `side` pixels.
    """
    pictures, captions = [], []
    for result in results:
        face = result.faces[0]
        x0, y0, x1, y1 = face.box
        half = 0.8 * max(x1 - x0, y1 - y0)
        centre_x, centre_y = (x0 + x1) / 2, (y0 + y1) / 2
        width, height = result.image.size
        window = (
            max(0, round(centre_x - half)),
            max(0, round(centre_y - half)),
            min(width, round(centre_x + half)),
            min(height, round(centre_y + half)),
        )
        picture = result.image.convert("RGB").crop(window)
        picture.thumbnail((side, side), PIL.Image.Resampling.LANCZOS)
        pictures.append(picture)
        ((name, delta),) = face.requested.items()
        measured = face.after.get(name) if face.after else None
        captions.append(f"{name} {delta:+.1f}" + ("" if measured is None else f" ({measured:.1f})"))
    return strip(pictures, captions)
