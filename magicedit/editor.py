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
from functools import cached_property
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
    Alignment,
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

    from magicedit.models import Optimization
    from magicedit.pipelines.pipeline_magicedit import (
        EncodedFaces,
        MagicEditPipeline,
        MagicEditPipelineOutput,
    )

PhotoLike = str | Path | PIL.Image.Image | np.ndarray | Photo

QUALITIES = ("exact", "balanced", "fast", "live")  # the pipeline's, here because its import takes seconds
POSE_LIMIT = 30.0  # degrees of yaw or pitch; roll is undone by the alignment
REACHED_SHARE = 0.5  # a measured change below this share of the request is worth a warning
SMALLEST_JUDGED = 0.5  # intensity steps: below, the measurement's own scatter decides
REMEMBERED_PHOTOS = 4
REMEMBERED_FACES = 4  # encoded ones: about 50 MB each for a model of Stable Diffusion's size in 16 bits
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


@dataclass(frozen=True)
class SamplingSettings:
    """Of the model's calls; None: what the quality or the model itself says.

    steps: denoising steps. guidance: classifier-free guidance scale. quality: see
    `MagicEditPipeline.sampling`. seed: of the initial noise.

    Raises:
        MagicEditError: unless they make sense.
    """

    steps: int | None = None
    guidance: float | None = None
    quality: str | None = None
    seed: int = 0

    def __post_init__(self):
        if self.steps is not None and not 1 <= self.steps <= MOST_STEPS:
            raise MagicEditError(
                f"the number of denoising steps must be at least 1 and at most {MOST_STEPS}, got {self.steps}"
            )
        if self.guidance is not None and not (math.isfinite(self.guidance) and self.guidance >= 0):
            raise MagicEditError(
                f"the guidance scale must be a number from 0 (3 is usual), got {self.guidance}"
            )
        if self.quality is not None and self.quality not in QUALITIES:
            raise MagicEditError(f"quality must be one of {', '.join(QUALITIES)}, got {self.quality!r}")
        if not 0 <= self.seed < 2**63:
            raise MagicEditError(f"the seed must be an integer from 0 to 2**63 - 1, got {self.seed}")

    def arguments(self) -> dict[str, Any]:
        """Of a pipeline call."""
        return {
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance,
            "quality": self.quality,
        }


@dataclass(frozen=True, eq=False)
class _Cut:
    """A face as the model sees it.

    crop: (size, size, 3) uint8 RGB. landmarks: (points, 2), crop px. encoded: what the pipeline keeps of it.
    """

    crop: np.ndarray
    alignment: Alignment
    landmarks: np.ndarray
    scheme: str
    encoded: "EncodedFaces"

    @cached_property
    def region(self) -> np.ndarray:
        return editing_region(self.landmarks, self.alignment.size, self.scheme)  # (size, size)


@dataclass(eq=False)
class _Edit:
    """One photograph on its way: `pixels` evolve face by face as `requests` ask, one for each of `faces`."""

    pixels: np.ndarray
    faces: list[Face]
    requests: list[dict[str, float]]


class ExpressionEditor:
    """Changes the expression of the faces in a photograph, in FACS action units.

        editor = ExpressionEditor.from_pretrained("mini")
        result = editor.edit("photo.jpg", add={"AU12": 3}, face="largest")
        result.image.save("smile.png")

    Faces found in a photograph, and what the model encodes of them, are remembered for the next few edits of
    the same pixels.
    """

    def __init__(self, pipeline: "MagicEditPipeline", backend: FaceBackend, *, model: str = "custom"):
        self.pipeline = pipeline
        self.backend = backend
        self.model = model
        self._faces: OrderedDict[bytes, list[Face]] = OrderedDict()
        self._detecting = threading.Lock()  # face backends and this cache serve one thread at a time
        self._encoded: OrderedDict[bytes, EncodedFaces] = OrderedDict()
        self._encoding = threading.Lock()
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

    def optimize(
        self, *, compile: bool | None = None, dtype: "str | torch.dtype | None" = None
    ) -> "Optimization":
        """Makes the model as fast as this machine can, see `magicedit.models.optimize_pipeline`.

        Returns:
            `Optimization`: what was chosen, and what the alternatives took; its `str` is a sentence.
        """
        from magicedit.models import optimize_pipeline

        return optimize_pipeline(self.pipeline, compile=compile, dtype=usable_dtype(dtype))

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
        quality: str | None = None,
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
            steps: denoising steps; default: the quality's.
            guidance: classifier-free guidance scale; default: the model's own.
            seed: of the initial noise, the same for each face, so that none depends on the others.
            quality: "exact", "balanced", "fast" or "live": how much time the model takes, and what that
                costs stands in the documentation; default: the model's own settings.
            measure: measure the faces again in the result; without, `after`, `moved` and `identity_distance`
                are None.

        Returns:
            the result. When nothing is asked for, its image equals the photograph exactly.

        Raises:
            ImageError, NoFaceError, ActionUnitError: see their docstrings.
        """
        (result,) = self.edit_batch(
            [photo], add, set, emotion, face, steps=steps, guidance=guidance, seed=seed, quality=quality,
            measure=measure,
        )  # fmt: skip
        return result

    def edit_batch(
        self,
        photos: Sequence[PhotoLike],
        add: str | Mapping[str, float] | Sequence[float] | np.ndarray | None = None,
        set: str | Mapping[str, float] | Sequence[float] | np.ndarray | None = None,
        emotion: str | tuple[str, float] | None = None,
        face: str | int = "all",
        *,
        steps: int | None = None,
        guidance: float | None = None,
        seed: int = 0,
        quality: str | None = None,
        measure: bool = True,
    ) -> list[EditResult]:
        """Edits several photographs by the same request; their faces go through the model together.

        Each result is that of `edit`, up to the rounding of other batch sizes. Arguments and errors as of
        `edit`; an error in one photograph ends the whole.
        """
        started = time.perf_counter()
        settings = SamplingSettings(steps, guidance, quality, seed)
        asked = {"add": add, "set": set, "emotion": emotion, "names": self.action_units}
        known = dict.fromkeys(with_sides(self.action_units), 0.0)
        resolve_delta(known, **asked)  # malformed requests fail before detection
        opened = [open_photo(photo) for photo in photos]
        edits = []
        for photo in opened:
            faces = select_faces(self._detect(photo), face, photo)
            requests = [resolve_delta(found.action_units | found.sides, **asked) for found in faces]
            edits.append(_Edit(photo.pixels, faces, requests))
        self._apply(edits, settings)
        return self._results(opened, edits, measure, started)

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
        quality: str | None = None,
        measure: bool = True,
    ) -> list[EditResult]:
        """Edits with one AU at `steps` evenly spaced variations from `start` to `stop`, both included.

        Results and errors as of `variants`.
        """
        if steps < 2:
            raise ActionUnitError(f"a sweep needs at least 2 steps, got {steps}")
        adds = [{au: float(value)} for value in np.linspace(start, stop, steps)]
        return self.variants(
            photo, adds, face, steps=inference_steps, guidance=guidance, seed=seed, quality=quality,
            measure=measure,
        )  # fmt: skip

    def variants(
        self,
        photo: PhotoLike,
        adds: Sequence[str | Mapping[str, float] | Sequence[float] | np.ndarray],
        face: str | int = "largest",
        *,
        steps: int | None = None,
        guidance: float | None = None,
        seed: int = 0,
        quality: str | None = None,
        measure: bool = True,
    ) -> list[EditResult]:
        """Edits one photograph by several AU variations; each face is encoded once for all of them.

        As many variations go through the model together as its device's memory holds. Each result is that of
        `edit`, up to the rounding of other batch sizes.

        Args:
            adds: a variation for each result, each as `add` of `edit`.

        Raises:
            ImageError, NoFaceError, ActionUnitError: see their docstrings.
        """
        started = time.perf_counter()
        settings = SamplingSettings(steps, guidance, quality, seed)
        deltas = [parse_deltas(add, self.action_units) for add in adds]
        photo = open_photo(photo)
        faces = select_faces(self._detect(photo), face, photo)
        edits = [_Edit(photo.pixels, faces, [delta] * len(faces)) for delta in deltas]
        self._apply(edits, settings)
        return self._results([photo] * len(edits), edits, measure, started)

    def attention_maps(
        self,
        photo: PhotoLike,
        add: str | Mapping[str, float] | Sequence[float] | np.ndarray,
        face: str | int = "largest",
        *,
        seed: int = 0,
        steps: int | None = None,
        guidance: float | None = None,
        quality: str | None = None,
        layer: str | None = None,
    ) -> AttentionMaps:
        """The reference attention of an edit of one face, under the AU variation where it is guided.

        Args:
            photo, add, face, seed, steps, guidance, quality: as of `edit`; sides of the face cannot differ.
            layer: its maps; default: the mean of all layers with the finest token grid.

        Raises:
            ModelError: where the model has no reference UNet, or no such layer.
            ImageError, NoFaceError, ActionUnitError: see their docstrings.
        """
        import torch

        from magicedit.pipelines.pipeline_magicedit import record_reference_attention, transformer_blocks

        # 1. Check
        settings = SamplingSettings(steps, guidance, quality, seed)
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
        cut = self._cut(photo.pixels, found[0])
        places = named_places(cut.landmarks, cut.scheme)
        points = np.stack(list(places.values())).astype(np.float32)
        timesteps = []

        def note_timestep(pipeline, step, timestep, tensors):
            timesteps.append(float(timestep))
            return tensors

        sides = torch.from_numpy((points + 0.5) / cut.alignment.size)  # parts of the crop's sides
        with record_reference_attention(self.pipeline.unet, sides) as record:
            self.pipeline(
                faces=cut.encoded,
                au_delta=left[None],
                feature_cache_interval=1,  # all layers in every step
                **settings.arguments(),
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
            crop=cut.crop,
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

    def _apply(self, edits: list[_Edit], settings: SamplingSettings) -> None:
        """Carries out what was requested of each photograph.

        Its faces are edited one after the other on the evolving pixels, lest overlapping ones undo each
        other; the photographs together.
        """
        for index in range(max((len(edit.faces) for edit in edits), default=0)):
            changing = [
                edit for edit in edits if index < len(edit.faces) and any(edit.requests[index].values())
            ]
            if changing:
                self._edit_faces(changing, index, settings)

    def _edit_faces(self, edits: list[_Edit], index: int, settings: SamplingSettings) -> None:
        """The face of number `index` in each photograph."""
        # 1. Crops of the model's size, encoded; variants share photograph and face
        known: dict[tuple[int, int], _Cut] = {}
        cuts = []
        for edit in edits:
            key = id(edit.pixels), id(edit.faces[index])
            if key not in known:
                known[key] = self._cut(edit.pixels, edit.faces[index])
            cuts.append(known[key])

        # 2. The model, once for each vector: two where the sides of the face are asked for different things
        vectors, cut_of, sides_of = [], [], []  # sides_of: the vectors of left and right, None: unchanged
        for edit, cut in zip(edits, cuts, strict=True):
            sides = [to_vector(side, self.action_units) for side in split_sides(edit.requests[index])]
            if np.array_equal(*sides):
                sides = sides[:1]
            numbers = []
            for vector in sides:
                numbers.append(len(vectors) if vector.any() else None)
                if vector.any():  # else below what float32 can tell from nothing
                    vectors.append(vector)
                    cut_of.append(cut)
            sides_of.append((numbers[0], numbers[-1]))
        changes = self._changes(cut_of, vectors, settings)

        # 3. Its change, carried to the photograph
        for edit, cut, sides in zip(edits, cuts, sides_of, strict=True):
            if sides == (None, None):
                continue
            size = cut.alignment.size
            left, right = (no_change(size) if side is None else changes[side] for side in sides)
            if sides[0] != sides[1]:
                left = join_sides(left, right, left_side(cut.landmarks, size, cut.scheme))
            edit.pixels = carry_change(edit.pixels, cut.alignment, left, cut.region)

    def _cut(self, pixels: np.ndarray, face: Face) -> _Cut:
        alignment = align(face, self.pipeline.config.resolution)
        landmarks = alignment.apply(face.landmarks)  # (points, 2), crop px
        crop = crop_face(pixels, alignment)  # (size, size, 3)
        condition = condition_image(crop, landmarks, face.scheme)
        return _Cut(crop, alignment, landmarks, face.scheme, self._encode(crop, condition))

    def _encode(self, crop: np.ndarray, condition: np.ndarray) -> "EncodedFaces":
        """The pipeline's encoding of a crop, remembered for a few of them while the weights stay."""
        key = hashlib.blake2b(np.ascontiguousarray(crop), digest_size=16)
        key.update(np.ascontiguousarray(condition))
        key = key.digest()
        with self._encoding:
            encoded = self._encoded.pop(key, None)
            if encoded is None or not self.pipeline.is_current(encoded):
                encoded = self.pipeline.encode_faces(
                    PIL.Image.fromarray(crop), PIL.Image.fromarray(condition)
                )
            self._encoded[key] = encoded
            if len(self._encoded) > REMEMBERED_FACES:
                self._encoded.popitem(last=False)
            return encoded

    def _changes(
        self, cuts: list[_Cut], vectors: list[np.ndarray], settings: SamplingSettings
    ) -> list[Change]:
        """What the model does to each of `cuts` by the AU vector (aus,) of the same number."""
        import torch

        from magicedit.models import call_in_batches

        def call(rows: slice) -> list[Change]:
            encoded = [cut.encoded for cut in cuts[rows]]
            alone = all(part is encoded[0] for part in encoded)  # then the vectors share its reference
            output = self.pipeline(
                faces=encoded[0] if alone else type(encoded[0]).join(encoded),
                au_delta=np.stack(vectors[rows]),
                generator=[torch.Generator("cpu").manual_seed(settings.seed) for _ in encoded],
                output_type="np",
                **settings.arguments(),
            )
            return changes_of(output, [cut.crop for cut in cuts[rows]])

        return call_in_batches(call, len(vectors), self.pipeline)

    def _results(
        self, photos: list[Photo], edits: list[_Edit], measure: bool, started: float
    ) -> list[EditResult]:
        results = []
        for photo, edit in zip(photos, edits, strict=True):
            results.append(self._result(photo, edit, measure, started))
            started = time.perf_counter()  # the first result bears the cost of the shared work
        return results

    def _result(
        self,
        photo: Photo,
        edit: _Edit,
        measure: bool,
        started: float,
    ) -> EditResult:
        pixels = edit.pixels
        changed = pixels is not photo.pixels
        faces = []
        for face, requested in zip(edit.faces, edit.requests, strict=True):
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
            faces.append(
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
        return EditResult(image, faces, time.perf_counter() - started, self.model)

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


def changes_of(output: "MagicEditPipelineOutput", crops: list[np.ndarray]) -> list[Change]:
    """What a pipeline did to each of the crops (size, size, 3) uint8.

    Raises:
        ModelError: where its answer is not finite.
    """
    changes = []
    for row, crop in enumerate(crops):
        if output.change is None:
            changes.append(estimate_change(crop, np.rint(output.images[row] * 255).astype(np.uint8)))
            continue
        flow, mask, paint = (
            output.change[name][row].float().cpu().numpy() for name in ("flow", "mask", "paint")
        )
        if not all(np.isfinite(part).all() for part in (flow, mask, paint)):
            raise ModelError("the model's answer is not finite; its weights are broken, or use float32")
        changes.append(Change(flow=flow, mask=mask, paint=paint))
    return changes


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
