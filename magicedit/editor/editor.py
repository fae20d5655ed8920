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
from typing import TYPE_CHECKING, Unpack

import numpy as np
import PIL.Image

from magicedit.action_units import resolve_delta
from magicedit.editor.attention import AttentionMaps, record_attention
from magicedit.editor.changer import Edit, FaceChanger
from magicedit.editor.closed_loop import Pursuit
from magicedit.editor.doubts import doubts_before, doubts_of_folds, doubts_of_paint, unreached
from magicedit.editor.results import EditResult, FaceEdit, measured_as_asked
from magicedit.editor.settings import MouthSettings, SamplingSettings, usable_device, usable_dtype
from magicedit.errors import ActionUnitError, MagicEditError, ModelError, NoFaceError
from magicedit.expression import Expression
from magicedit.faces import (
    Face,
    FaceBackend,
    Found,
    align,
    crop_face,
    editing_region,
    geometric_change,
    identity_distance,
    load_backend,
    search,
)
from magicedit.faces.types import same_face
from magicedit.imaging import Photo, open_photo, photo_to_image
from magicedit.models.face_model import FaceModel, PipelineModel, load_face_model
from magicedit.models.folder import PIPELINE_CLASS
from magicedit.request import (
    Deltas,
    EditOptions,
    EditRequest,
    Sampling,
    SamplingOptions,
    check_face,
    usable_expression,
)
from magicedit.vocabulary import Vocabulary, split_sides
from magicedit.warping import Mouth, own_mouth

if TYPE_CHECKING:
    import torch

    from magicedit.models import Optimization
    from magicedit.pipelines.pipeline_magicedit import MagicEditPipeline

PhotoLike = str | Path | PIL.Image.Image | np.ndarray | Photo
REMEMBERED_PHOTOS = 4


@dataclass(frozen=True)
class Chosen:
    """Which faces of a photograph are edited.

    indices: among those found, largest first. left_alone: see `magicedit.faces.Found`.
    """

    indices: list[int]
    left_alone: int


class ExpressionEditor:
    """Changes the expression of the faces in a photograph, in FACS action units.

        editor = ExpressionEditor.from_pretrained("mini")
        result = editor.edit("photo.jpg", add={"AU12": 3}, face="largest")
        result.image.save("smile.png")

    Faces found in a photograph, and what the model encodes of them, are remembered for the next few edits of
    the same pixels.
    """

    def __init__(
        self, pipeline: "MagicEditPipeline | FaceModel", backend: FaceBackend, *, model: str = "custom"
    ):
        self.backend = backend
        self.model = model
        self.changer = FaceChanger(pipeline if isinstance(pipeline, FaceModel) else PipelineModel(pipeline))
        self._found: OrderedDict[bytes, Found] = OrderedDict()
        self._detecting = threading.Lock()  # face backends and this cache serve one thread at a time

    @property
    def pipeline(self) -> "MagicEditPipeline":
        """The model's pipeline; ModelError for a model of another family."""
        if not isinstance(self.changer.model, PipelineModel):
            raise ModelError(f"the model {self.model} is no {PIPELINE_CLASS}, which this needs")
        return self.changer.model.pipeline

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
        loaded = load_face_model(model, device=usable_device(device), dtype=usable_dtype(dtype))
        return cls(loaded, load_backend(backend) if isinstance(backend, str) else backend, model=str(model))

    @property
    def action_units(self) -> Vocabulary:
        """The AUs this model was trained on, in its order."""
        return self.changer.model.vocabulary

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
        add: Deltas | None = None,
        set: Deltas | None = None,
        emotion: str | tuple[str, float] | None = None,
        face: str | int = "all",
        **options: Unpack[EditOptions],
    ) -> EditResult:
        """Edits one or all faces of a photograph, at the photograph's own resolution.

        Args:
            photo: a path, PIL image, (height, width, 3) uint8 RGB array or `Photo`.
            add: variations in intensity steps, -10 to 10: a dict, "AU12=+3,AU4=-1", or a vector in the
                model's order. "AU12L=+3" changes the subject's left side alone; the change then fades over
                the bridge of the nose.
            set: intensities to arrive at, 0 to 5; the variation follows from what the photograph measures. A
                level within half a step of the measured one asks for nothing: measurement noise is no
                request (`action_units.DEAD_ZONE`). The same holds for `expression` and `neutral`.
            emotion: "happiness", "happiness:0.8" or ("happiness", 0.8); adds to `add`.
            face: "all", "largest", or an index into the faces from the largest (0) to the smallest. Faces far
                smaller than a large one are no part of it; `EditResult.left_alone` counts them.
            expression: an `Expression`, or the file of one: arrived at, or added to what else is asked for if
                it holds variations. Measured units that the model cannot edit are left out.
            strength: how much of `expression`: 1 is all of it.
            neutral: take the measured expression back first, so that `add` and `emotion` start from a face
                at rest: whatever is not asked for goes to 0.
            tolerance: intensity steps, the closed loop: the result is measured and the request corrected
                until every unit that was asked for is as near as this, or `max_edits` edits were made. Each
                starts from the photograph; the nearest is kept, and `FaceEdit.reached` tells. Where several
                faces came nearest in different edits, one more joins these, and is what is measured.
            steps: denoising steps; default: the quality's.
            guidance: classifier-free guidance scale; default: the model's own.
            seed: of the initial noise, the same for each face, so that none depends on the others.
            quality: "exact", "balanced", "fast" or "live": how much time the model takes, and what that
                costs stands in the documentation; default: the model's own settings.
            measure: measure the faces again in the result; without, `after`, `moved` and `identity_distance`
                are None.
            teeth: whose show where the photograph shows none: the number of a donor that comes with the
                package, or "none"; default: those of `references`, else of a donor chosen by the width of
                the mouth and the seed. A model that paints mouths itself keeps its own by default.
            references: other photographs of the person, the largest face of each; the first that shows its
                teeth lends them.

        Returns:
            the result. When nothing is asked for, its image equals the photograph exactly.

        Raises:
            ImageError, NoFaceError, ActionUnitError: see their docstrings.
        """
        (result,) = self.edit_batch([photo], add, set, emotion, face, **options)
        return result

    def edit_batch(
        self,
        photos: Sequence[PhotoLike],
        add: Deltas | None = None,
        set: Deltas | None = None,
        emotion: str | tuple[str, float] | None = None,
        face: str | int = "all",
        **options: Unpack[EditOptions],
    ) -> list[EditResult]:
        """Edits several photographs by the same request; their faces go through the model together.

        Each result is that of `edit`, up to the rounding of other batch sizes. Arguments and errors as of
        `edit`; an error in one photograph ends the whole.
        """
        request = EditRequest(add, set, emotion, face, names=self.action_units, **options)
        return self.apply(photos, request)

    def apply(self, photos: Sequence[PhotoLike], request: EditRequest) -> list[EditResult]:
        """Edits several photographs by one request, which was checked before; as `edit_batch`."""
        # 1. What is asked of each face
        started = time.perf_counter()
        request.check(self.action_units)
        settings = self.sampling(**request.sampling())
        opened = [open_photo(photo) for photo in photos]
        edits, chosen = [], []
        for photo in opened:
            found = self._search(photo)
            chosen.append(Chosen(select_indices(found.faces, request.face, photo), found.left_alone))
            faces = [found.faces[index] for index in chosen[-1].indices]
            asked = [request.deltas(self.action_units, face.action_units | face.sides) for face in faces]
            edits.append(Edit(photo.pixels, faces, asked))

        # 2. The edits
        return self._edited(opened, edits, chosen, settings, request, started)

    def edit_faces(
        self,
        photo: PhotoLike,
        adds: Mapping[int, Deltas],
        *,
        tolerance: float | None = None,
        max_edits: int = 4,
        measure: bool = True,
        **sampling: Unpack[SamplingOptions],
    ) -> EditResult:
        """Edits faces of one photograph, each by a request of its own.

        Args:
            adds: a face's index, from the largest (0) -> its variations, as `add` of `edit`. The result has
                these faces alone, by index.

        Other arguments, result and errors as of `edit`.
        """
        started = time.perf_counter()
        settings = self.sampling(**sampling)
        loop = EditRequest(tolerance=tolerance, max_edits=max_edits, measure=measure)
        indices = sorted(adds)
        requests = [self.action_units.deltas(adds[index]) for index in indices]
        photo = open_photo(photo)
        found = self._search(photo)
        faces = [face for index in indices for face in select_faces(found.faces, index, photo)]
        chosen = Chosen(indices, found.left_alone)
        edits = [Edit(photo.pixels, faces, requests)]
        (result,) = self._edited([photo], edits, [chosen], settings, loop, started)
        return result

    def measure(self, photo: PhotoLike) -> list[Face]:
        """The faces of a photograph with landmarks, AU intensities and pose, largest first.

        Raises:
            ImageError: where the photograph cannot be read.
            NoFaceError: where there is none.
        """
        photo = open_photo(photo)
        return select_faces(self._search(photo).faces, "all", photo)

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
        measure: bool = True,
        **sampling: Unpack[SamplingOptions],
    ) -> list[EditResult]:
        """Edits with one AU at `steps` evenly spaced variations from `start` to `stop`, both included.

        Results and errors as of `variants`.
        """
        if steps < 2:
            raise ActionUnitError(f"a sweep needs at least 2 steps, got {steps}")
        adds = [{au: float(value)} for value in np.linspace(start, stop, steps)]
        return self.variants(photo, adds, face, steps=inference_steps, measure=measure, **sampling)

    def variants(
        self,
        photo: PhotoLike,
        adds: Sequence[Deltas],
        face: str | int = "largest",
        *,
        measure: bool = True,
        **sampling: Unpack[SamplingOptions],
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
        settings = self.sampling(**sampling)
        deltas = [self.action_units.deltas(add) for add in adds]
        photo = open_photo(photo)
        found = self._search(photo)
        chosen = Chosen(select_indices(found.faces, face, photo), found.left_alone)
        faces = [found.faces[index] for index in chosen.indices]
        edits = [Edit(photo.pixels, faces, [delta] * len(faces)) for delta in deltas]
        self.changer.apply(edits, settings)
        return self._results([photo] * len(edits), edits, [chosen] * len(edits), measure, started)

    def expression(self, photo: PhotoLike, face: str | int = "largest") -> Expression:
        """The expression of one face as measured: intensities, by side where the sides differ.

        Raises:
            ImageError, NoFaceError: see their docstrings.
            MagicEditError: where the face backend measures no action units.
        """
        photo = open_photo(photo)
        (found,) = select_faces(self._search(photo).faces, "largest" if face == "all" else face, photo)
        return measured_expression(
            found, self.backend.name, str(photo.source.name if photo.source else "a photograph")
        )

    def interpolate(
        self,
        photo: PhotoLike,
        other: PhotoLike,
        steps: int,
        face: str | int = "largest",
        *,
        inference_steps: int | None = None,
        measure: bool = True,
        **sampling: Unpack[SamplingOptions],
    ) -> list[EditResult]:
        """Edits a photograph by evenly spaced levels between its expression and that of another one.

        The first result is the photograph itself, the last has the other's measured expression; pose, light
        and everything else stay those of `photo`.

        Args:
            other: whose largest face is measured.
            steps: number of results, at least 2.

        Returns, raises: as `variants`.
        """
        if steps < 2:
            raise ActionUnitError(f"an interpolation needs at least 2 steps, got {steps}")
        photo = open_photo(photo)
        (found,) = select_faces(self._search(photo).faces, "largest" if face == "all" else face, photo)
        goal = usable_expression(self.expression(other), self.action_units)
        deltas = goal.variation(found.action_units | found.sides)
        adds = [{name: share * delta for name, delta in deltas.items()} for share in np.linspace(0, 1, steps)]
        return self.variants(photo, adds, face, steps=inference_steps, measure=measure, **sampling)

    def attention_maps(
        self,
        photo: PhotoLike,
        add: Deltas,
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
        from magicedit.pipelines.reference_attention import transformer_blocks

        settings = SamplingSettings(steps, guidance, quality, seed)
        if self.pipeline.reference_unet is None:
            raise ModelError(
                f"the model {self.model} has no reference UNet, so nothing in it attends to a reference face"
            )
        layers = tuple(transformer_blocks(self.pipeline.unet))
        if layer is not None and layer not in layers:
            raise ModelError(f"the model {self.model} has no layer {layer!r}; it has {', '.join(layers)}")
        delta = resolve_delta(
            dict.fromkeys(self.action_units.with_sides(), 0.0), add=add, names=self.action_units
        )
        left, right = (self.action_units.vector(side) for side in split_sides(delta))
        if not np.array_equal(left, right):
            raise ActionUnitError(
                "attention is recorded of one run of the model; ask both sides for the same"
            )
        photo = open_photo(photo)
        found = select_faces(self._search(photo).faces, face, photo)
        if len(found) > 1:
            raise NoFaceError(f'attention is recorded of one face: "largest" or an index, got {face!r}')
        cut = self.changer.cut(photo.pixels, found[0])
        return record_attention(self.pipeline, cut, left, settings, layer)

    def sampling(self, **options: Unpack[SamplingOptions]) -> SamplingSettings:
        """The settings of an edit, arguments as of `edit`; the mouths of the references are found.

        Raises:
            MagicEditError: where the settings make no sense, or no reference shows its teeth.
            ImageError, NoFaceError: of a reference.
        """
        asked = Sampling(**options)
        mouths = MouthSettings(asked.teeth, self.mouths_of(asked.references))
        return SamplingSettings(asked.steps, asked.guidance, asked.quality, asked.seed, mouths)

    def mouths_of(self, references: Sequence[PhotoLike]) -> tuple[Mouth, ...]:
        """The mouths of other photographs of a person that show teeth.

        Raises:
            ImageError, NoFaceError: see their docstrings.
            MagicEditError: where references are given and none shows its teeth.
        """
        mouths = []
        for reference in references:
            photo = open_photo(reference)
            (face,) = select_faces(self._search(photo).faces, "largest", photo)
            if face.scheme != "mediapipe478":
                raise MagicEditError("references need MediaPipe's landmarks; use the face backend mediapipe")
            alignment = align(face, self.changer.model.resolution)
            mouth = own_mouth(photo.pixels, face.landmarks, alignment, "reference")
            mouths += [] if mouth is None else [mouth]
        if len(references) and not mouths:
            which = "the reference shows" if len(references) == 1 else "none of the references shows"
            raise MagicEditError(
                f"{which} no teeth; give a photograph in which the person smiles with parted lips"
            )
        return tuple(mouths)

    def _search(self, photo: Photo) -> Found:
        pixels = np.ascontiguousarray(photo.pixels)
        key = hashlib.blake2b(pixels, digest_size=16, salt=b"%d" % pixels.shape[1]).digest()
        with self._detecting:
            if key not in self._found:
                self._found[key] = search(self.backend, pixels)
                if len(self._found) > REMEMBERED_PHOTOS:
                    self._found.popitem(last=False)
            self._found.move_to_end(key)
            return self._found[key]

    def _edited(
        self,
        photos: list[Photo],
        edits: list[Edit],
        chosen: list[Chosen],
        settings: SamplingSettings,
        loop: EditRequest,
        started: float,
    ) -> list[EditResult]:
        """The results of `edits`, by the closed loop where one is asked for."""
        if loop.tolerance is not None:
            return self._pursue(photos, edits, chosen, settings, loop.tolerance, loop.max_edits, started)
        self.changer.apply(edits, settings)
        return self._results(photos, edits, chosen, loop.measure, started)

    def _pursue(
        self,
        photos: list[Photo],
        edits: list[Edit],
        chosen: list[Chosen],
        settings: SamplingSettings,
        tolerance: float,
        max_edits: int,
        started: float,
    ) -> list[EditResult]:
        """The closed loop: edit, measure, correct the requests, until all are near enough."""
        pursuits = [
            [Pursuit(face, asked) for face, asked in zip(edit.faces, edit.requests, strict=True)]
            for edit in edits
        ]
        # Those that are the nearest of some face, by number; 0 is the photograph
        kept = [
            {0: Edit(edit.pixels, edit.faces, [pursuit.best for pursuit in faces])}
            for edit, faces in zip(edits, pursuits, strict=True)
        ]
        for number in range(1, max_edits + 1):
            left = [i for i, faces in enumerate(pursuits) if not all(p.is_done(tolerance) for p in faces)]
            tries = []
            for i in left:
                requests = [p.best if p.is_done(tolerance) else p.request for p in pursuits[i]]
                tries.append(Edit(photos[i].pixels, edits[i].faces, requests))
            self.changer.apply(tries, settings)
            for i, attempt in zip(left, tries, strict=True):
                for pursuit in pursuits[i]:
                    if not pursuit.is_done(tolerance):
                        pursuit.note(self._find_again(attempt.pixels, pursuit.face))
                nearest = {0, *(pursuit.best_edit for pursuit in pursuits[i])}
                kept[i] = {n: old for n, old in (kept[i] | {number: attempt}).items() if n in nearest}

        # Faces may have come nearest in different edits; then one more joins their best requests
        finals = []
        for edit, faces, attempts in zip(edits, pursuits, kept, strict=True):
            final = Edit(edit.pixels, edit.faces, [pursuit.best for pursuit in faces])
            made = next((n for n, attempt in attempts.items() if attempt.requests == final.requests), None)
            if made is None:
                self.changer.apply([final], settings)
            else:
                final.pixels, final.changes = attempts[made].pixels, attempts[made].changes
            for pursuit in faces:
                if pursuit.edits and pursuit.best_edit != made:
                    again = self._find_again(final.pixels, pursuit.face)
                    pursuit.settle(again, edited=made is None and not pursuit.is_lost)
            finals.append(final)
        return self._results(photos, finals, chosen, True, started, pursuits, tolerance)

    def _results(
        self,
        photos: list[Photo],
        edits: list[Edit],
        chosen: list[Chosen],
        measure: bool,
        started: float,
        pursuits: list[list[Pursuit]] | None = None,
        tolerance: float | None = None,
    ) -> list[EditResult]:
        results = []
        for position, (photo, edit, which) in enumerate(zip(photos, edits, chosen, strict=True)):
            faces = [
                self._face_edit(
                    photo, edit, number, index, measure, pursuits and pursuits[position][number], tolerance
                )
                for number, index in enumerate(which.indices)
            ]
            image = photo_to_image(photo, edit.pixels)
            seconds = time.perf_counter() - started
            results.append(EditResult(image, faces, seconds, self.model, which.left_alone))
            started = time.perf_counter()  # the first result bears the cost of the shared work
        return results

    def _face_edit(
        self,
        photo: Photo,
        edit: Edit,
        number: int,
        index: int,
        measure: bool,
        pursuit: Pursuit | None,
        tolerance: float | None,
    ) -> FaceEdit:
        face, sent = edit.faces[number], edit.requests[number]
        requested = sent if pursuit is None else pursuit.asked
        moved, distance, warnings = None, None, self._doubts(photo.pixels, edit, number, requested)
        before, after = measured_as_asked(face, requested), None
        if measure:
            again = face if edit.pixels is photo.pixels else self._find_again(edit.pixels, face)
            if again is None:
                warnings.append("the face was not found again in the result: look at it")
            else:
                distance = identity_distance(photo.pixels, face, edit.pixels, again)
                after = measured_as_asked(again, requested)
                if face.scheme == again.scheme == "mediapipe478":
                    moved = geometric_change(face.landmarks, again.landmarks)
                warnings += unreached(requested, before, after, moved or {})
        if pursuit is not None and pursuit.is_lost:
            warnings.append(
                f"the face was not found again in any of {pursuit.edits} edits, so it was left as it is"
            )
        elif pursuit is not None and tolerance < pursuit.error < math.inf:
            warnings.append(
                f"after {pursuit.edits} edits the request was missed by {pursuit.error:.1f} intensity steps, "
                f"more than the tolerance of {tolerance:g}"
            )
        return FaceEdit(
            index=index,
            box=face.box,
            pose=face.pose,
            requested=requested,
            before=before,
            after=after,
            moved=moved,
            identity_distance=distance,
            warnings=tuple(warnings),
            edits=1 if pursuit is None else pursuit.edits,
            sent=sent,
            reached=None if pursuit is None else pursuit.error <= tolerance,
        )

    def _doubts(
        self, pixels: np.ndarray, edit: Edit, number: int, requested: Mapping[str, float]
    ) -> list[str]:
        """What the photograph and the change say against the edit of a face, see `doubts`."""
        face, resolution = edit.faces[number], self.changer.model.resolution
        doubts = doubts_before(pixels, face, requested, resolution)
        if number in edit.changes:
            alignment = align(face, resolution)
            landmarks = alignment.apply(face.landmarks)
            region = editing_region(landmarks, resolution, face.scheme)
            change = edit.changes[number]
            doubts += doubts_of_folds(change, landmarks, face.scheme, region)
            if change.mask.any():  # cutting the crop out of a large photograph takes longer than the rest
                crop = crop_face(pixels, alignment)
                doubts += doubts_of_paint(change, crop, landmarks, face.scheme, region, requested)
        return doubts

    def _find_again(self, pixels: np.ndarray, face: Face) -> Face | None:
        """The same face in the edited photograph, looked for around its old place only."""
        height, width = pixels.shape[:2]
        x0, y0, x1, y1 = face.box
        margin = max(x1 - x0, y1 - y0)
        left, top = max(0, int(x0 - margin)), max(0, int(y0 - margin))
        right, bottom = min(width, math.ceil(x1 + margin)), min(height, math.ceil(y1 + margin))
        with self._detecting:
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


def measured_expression(face: Face, backend: str, source: str = "") -> Expression:
    """The expression of a measured face; MagicEditError where its backend measures no action units."""
    if not face.action_units:
        raise MagicEditError(
            f"the face backend {backend} measures no action units, so there is no expression to read; "
            "use mediapipe"
        )
    return Expression.measured(face.action_units, face.sides, source)


def select_faces(faces: list[Face], which: str | int, photo: Photo) -> list[Face]:
    """The faces meant by "all", "largest" or an index, out of those found; errors as of `select_indices`."""
    return [faces[index] for index in select_indices(faces, which, photo)]


def select_indices(faces: list[Face], which: str | int, photo: Photo) -> list[int]:
    """The indices of the faces meant by "all", "largest" or an index, out of those found, largest first.

    Raises:
        NoFaceError: where there is no face, or fewer than the index needs.
    """
    check_face(which)
    if not faces:
        height, width = photo.pixels.shape[:2]
        name = f"{photo.source}" if photo.source else "the photograph"
        raise NoFaceError(
            f"no face was found in {name} ({width} x {height} px): use one that shows a face upright, from "
            "the front or half side, well lit and at least about 75 px high"
        )
    if which == "all":
        return list(range(len(faces)))
    index = 0 if which == "largest" else which
    if not 0 <= index < len(faces):
        found = f"{len(faces)} face was" if len(faces) == 1 else f"{len(faces)} faces were"
        raise NoFaceError(
            f"face {index} does not exist: {found} found, counted from 0 (the largest) to {len(faces) - 1}"
        )
    return [index]
