"""Editing whole photographs: finds the faces, edits each in an aligned crop and carries the change back.

A model sees a square crop of its own size. The photograph receives not that crop but its *change*: a flow
that moves the photograph's own pixels, and paint for new content, within a feathered region of the face (see
`magicedit.warping.change`). Everything outside equals the input to the byte.
"""

import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

import numpy as np

from magicedit.editor.attention import AttentionMaps, record_attention
from magicedit.editor.changer import Edit, FaceChanger
from magicedit.editor.closed_loop import pursue
from magicedit.editor.finding import FaceFinder, PhotoLike, measured_expression, reference_mouths
from magicedit.editor.judging import judged
from magicedit.editor.results import EditResult, fingerprint_of, mark_of
from magicedit.editor.settings import MouthSettings, SamplingSettings
from magicedit.errors import ActionUnitError, ModelError, NoFaceError, needs_whole
from magicedit.expression import Expression
from magicedit.faces import Face, FaceBackend, levels_of, load_backend
from magicedit.imaging import open_photo, photo_to_image
from magicedit.models.face_model import (
    FaceModel,
    OnStep,
    Optimization,
    PipelineModel,
    load_face_model,
    usable_dtype,
)
from magicedit.models.folder import PIPELINE_CLASS
from magicedit.models.graph_model import GraphModel
from magicedit.provenance import without_place
from magicedit.request import (
    Deltas,
    EditOptions,
    EditRequest,
    ModelOptions,
    SamplingOptions,
    usable_expression,
)
from magicedit.vocabulary import Vocabulary, split_sides, whole_name
from magicedit.warping import Mouth

if TYPE_CHECKING:
    import torch

    from magicedit.pipelines.pipeline_magicedit import MagicEditPipeline


class VariantOptions(SamplingOptions, total=False):
    """Keyword arguments of `ExpressionEditor.variants`, see `ExpressionEditor.edit`."""

    measure: bool
    on_step: OnStep | None


class ExpressionEditor:
    """Changes the expression of the faces in a photograph, in FACS action units.

        editor = ExpressionEditor.from_pretrained("mini")
        result = editor.edit("photo.jpg", add={"AU12": 3}, face="largest")
        result.save("smile.png")

    Detected faces and their encodings are cached for the next few edits of the same pixels.
    """

    def __init__(
        self,
        pipeline: "MagicEditPipeline | FaceModel",
        backend: FaceBackend | FaceFinder,
        *,
        model: str = "custom",
        mark: bool = True,
        strip_private: bool = False,
    ):
        self.model, self.mark, self.strip_private = model, mark, strip_private
        self.changer = FaceChanger(pipeline if isinstance(pipeline, FaceModel) else PipelineModel(pipeline))
        self._finder = backend if isinstance(backend, FaceFinder) else FaceFinder(backend)
        self._loading = threading.Lock()

    @property
    def backend(self) -> FaceBackend:
        """The backend that finds and measures faces."""
        return self._finder.backend

    @property
    def pipeline(self) -> "MagicEditPipeline":
        """The model's pipeline. A model that runs as graphs is loaded with torch at first, and edits by the
        pipeline from then on, so that changes of its weights and settings count.

        Raises:
            ModelError: for a model of another family.
            MissingDependencyError: where torch is needed and not installed.
        """
        with self._loading:
            model = self.changer.model
            if isinstance(model, GraphModel):
                with needs_whole(f"the pipeline of {self.model}"):
                    from magicedit.models import load_pipeline

                    model = self.changer.model = PipelineModel(load_pipeline(model.name, device="cpu"))
        if not isinstance(model, PipelineModel):
            raise ModelError(f"this needs a {PIPELINE_CLASS}, which the model {self.model} is not")
        return model.pipeline

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path = "mini",
        *,
        device: "str | torch.device | None" = None,
        dtype: "str | torch.dtype | None" = None,
        backend: str | FaceBackend | FaceFinder = "mediapipe",
        mark: bool = True,
        strip_private: bool = False,
    ) -> "ExpressionEditor":
        """Loads a model and a face backend.

        Args:
            model: "mini" or "mini-live" (embedded in the package), a pipeline folder, or a hub id.
            device: default: the CPU for an embedded model, which runs without torch there (see
                `load_face_model`), else the best present (CUDA, then MPS, then CPU).
            dtype: dtype of the model's weights; default: float32.
            backend: the name of a face backend ("mediapipe", "insightface"), a loaded one, or a `FaceFinder`,
                which keeps the faces that it has found.
            mark: mark results as edited, see `magicedit.provenance`.
            strip_private: leave place and serial numbers out of results, see `provenance.without_place`.

        Raises:
            ModelError: where the model or the backend's model file is missing, incomplete or unsafe.
            MissingDependencyError: where the backend belongs to an extra that is not installed, or the model
                needs torch, which is not installed.
        """
        loaded = load_face_model(model, device=device, dtype=dtype)
        backend = load_backend(backend) if isinstance(backend, str) else backend
        return cls(loaded, backend, model=str(model), mark=mark, strip_private=strip_private)

    @cached_property
    def fingerprint(self) -> str | None:
        """The fingerprint of the model's files, which marks record; None for a model made in memory."""
        return fingerprint_of(self.model)

    @property
    def action_units(self) -> Vocabulary:
        """The controls: the AUs this model was trained on, in its order, then those of geometry."""
        return self.changer.vocabulary

    def optimize(
        self, *, compile: bool | None = None, dtype: "str | torch.dtype | None" = None
    ) -> Optimization:
        """Finds the model's fastest settings on this machine, see `magicedit.models.optimize_pipeline`.

        A model that runs as graphs stays as it is, faster on a CPU than its pipeline, unless `compile` or
        `dtype` asks for what only the pipeline has.

        Returns:
            `Optimization`: the chosen settings and the times of all alternatives; its `str` is a sentence.
        """
        model = self.changer.model
        if isinstance(model, GraphModel) and not compile and dtype is None:
            return Optimization("cpu", "float32", False, False, {"ONNX Runtime": model.seconds()})
        pipeline = self.pipeline
        from magicedit.models import optimize_pipeline

        return optimize_pipeline(pipeline, compile=compile, dtype=usable_dtype(dtype))

    def edit(
        self,
        photo: PhotoLike,
        add: Deltas | None = None,
        set: Deltas | None = None,
        emotion: str | tuple[str, float] | None = None,
        face: str | int = "all",
        *,
        on_step: OnStep | None = None,
        **options: Unpack[EditOptions],
    ) -> EditResult:
        """Edits one or all faces of a photograph, at the photograph's own resolution.

        Args:
            photo: a path, PIL image, (height, width, 3) uint8 RGB array or `Photo`.
            add: variations in intensity steps, -10 to 10: a dict, "AU12=+3,AU4=-1", or a vector in the
                model's order. "AU12L=+3" changes only the subject's left side; the change fades out across
                the bridge of the nose.
            set: target intensities, 0 to 5; the variation is the target minus the measured level. A target
                within half a step of the measured level changes nothing, because that is measurement noise
                (`action_units.DEAD_ZONE`). The same holds for `expression` and `neutral`.
            emotion: "happiness", "happiness:0.8" or ("happiness", 0.8); adds to `add`.
            face: "all", "largest", or an index into the faces from the largest (0) to the smallest. Faces far
                smaller than a large one are excluded; `EditResult.left_alone` counts them.
            expression: an `Expression` or its file. Intensities are targets; variations are added to the
                other requests. Measured units that the model cannot edit are left out.
            strength: share of `expression` to apply; 1 is all of it.
            neutral: remove the measured expression first, so that `add` and `emotion` start from a face at
                rest; units without a request go to 0.
            tolerance: intensity steps; turns on the closed loop: the result is measured and the request
                corrected until every requested unit is this close, or `max_edits` edits were made. Each edit
                starts from the photograph. The closest is kept; `FaceEdit.reached` says whether it suffices.
                If the best edits of several faces differ, a final edit combines them and is measured.
            steps: denoising steps; default: the quality's.
            guidance: classifier-free guidance scale; default: the model's own.
            seed: of the initial noise, the same for each face, so that faces do not depend on each other.
            quality: "exact", "balanced", "fast" or "live": trades quality for speed, see the documentation;
                default: the model's own settings.
            measure: measure the faces again in the result; without, `after`, `moved` and `identity_distance`
                are None.
            teeth: teeth to show where the photograph shows none: the number of a donor in the package, or
                "none"; default: those of `references`, else of a donor chosen by the width of the mouth and
                the seed. A model that paints mouths itself keeps its own by default.
            references: other photographs of the person; the largest face of each is used. The teeth come
                from the first that shows them. Where a face of a photograph with closed lips smiles, its lips
                go as they do there, if its head is turned within 12 degrees of that.
            on_step: called as `on_step(step)`, counted from 0, after every denoising step, for progress; if
                it raises, the edit stops. Counting restarts with each call of the model.

        Returns:
            the result. For an empty request, its image equals the photograph exactly.

        Raises:
            ImageError, NoFaceError, ActionUnitError: see their docstrings.
        """
        (result,) = self.edit_batch([photo], add, set, emotion, face, on_step=on_step, **options)
        return result

    def edit_batch(
        self,
        photos: Sequence[PhotoLike],
        add: Deltas | None = None,
        set: Deltas | None = None,
        emotion: str | tuple[str, float] | None = None,
        face: str | int = "all",
        *,
        on_step: OnStep | None = None,
        **options: Unpack[EditOptions],
    ) -> list[EditResult]:
        """Edits several photographs with the same request; the model processes their faces together.

        Each result equals that of `edit` up to rounding, which depends on the batch size. Arguments and
        errors are those of `edit`; an error in one photograph stops the batch.
        """
        request = EditRequest(add, set, emotion, face, names=self.action_units, **options)
        return self.apply(photos, request, on_step)

    def apply(
        self, photos: Sequence[PhotoLike], request: EditRequest, on_step: OnStep | None = None
    ) -> list[EditResult]:
        """Edits several photographs with one checked request, like `edit_batch`."""
        # 1. The request of each face
        started = time.perf_counter()
        request.check(self.action_units)
        settings = self.sampling(**request.sampling())
        opened = [open_photo(photo) for photo in photos]
        edits = []
        for photo in opened:
            chosen = self._finder.choose(photo, request.face)
            measured = [levels_of(face) for face in chosen.faces]
            edits.append(Edit(chosen, [request.deltas(self.action_units, current) for current in measured]))

        # 2. The edits
        return self._results(edits, request, settings, on_step, started)

    def edit_faces(
        self,
        photo: PhotoLike,
        adds: Mapping[int, Deltas],
        *,
        tolerance: float | None = None,
        max_edits: int = 4,
        measure: bool = True,
        on_step: OnStep | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> EditResult:
        """Edits faces of one photograph, each with its own request.

        Args:
            adds: a face's index, from the largest (0) -> its variations, as `add` of `edit`. The result lists
                only these faces, by index.

        Other arguments, result and errors as of `edit`.
        """
        started = time.perf_counter()
        settings = self.sampling(**sampling)
        loop = EditRequest(tolerance=tolerance, max_edits=max_edits, measure=measure)
        indices = sorted(adds)
        requests = [self.action_units.deltas(adds[index]) for index in indices]
        edit = Edit(self._finder.choose(photo, *indices), requests)
        (result,) = self._results([edit], loop, settings, on_step, started)
        return result

    def measure(self, photo: PhotoLike) -> list[Face]:
        """The faces of a photograph with landmarks, AU intensities and pose, largest first.

        Raises:
            ImageError: where the photograph cannot be read.
            NoFaceError: where there is none.
        """
        return self._finder.choose(photo, "all").faces

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
        **options: Unpack[VariantOptions],
    ) -> list[EditResult]:
        """Edits with one AU at `steps` evenly spaced variations from `start` to `stop`, both included.

        Results and errors as of `variants`.
        """
        if steps < 2:
            raise ActionUnitError(f"a sweep needs at least 2 steps, got {steps}")
        adds = [{au: float(value)} for value in np.linspace(start, stop, steps)]
        return self.variants(photo, adds, face, steps=inference_steps, **options)

    def variants(
        self,
        photo: PhotoLike,
        adds: Sequence[Deltas],
        face: str | int = "largest",
        *,
        measure: bool = True,
        on_step: OnStep | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> list[EditResult]:
        """Edits one photograph by several AU variations; each face is encoded once for all of them.

        The model processes as many variations at once as its device's memory holds. Each result equals that
        of `edit` up to rounding, which depends on the batch size.

        Args:
            adds: a variation for each result, each as `add` of `edit`.

        Raises:
            ImageError, NoFaceError, ActionUnitError: see their docstrings.
        """
        started = time.perf_counter()
        settings = self.sampling(**sampling)
        deltas = [self.action_units.deltas(add) for add in adds]
        chosen = self._finder.choose(photo, face)
        edits = [Edit(chosen, [delta] * len(chosen.faces)) for delta in deltas]
        return self._results(edits, EditRequest(measure=measure), settings, on_step, started)

    def expression(
        self, photo: PhotoLike, face: str | int = "largest", only: str | Iterable[str] | None = None
    ) -> Expression:
        """Returns the measured expression of one face: intensities, by side where the sides differ.

        only: regions such as "eyes,brows", see `action_units.parse_regions`; None: all but gaze and head.

        Raises:
            ImageError, NoFaceError, ActionUnitError: see their docstrings.
            MagicEditError: where the face backend measures no action units.
        """
        photo = open_photo(photo)
        source = photo.source.name if photo.source else "a photograph"
        chosen, own = self._finder.one(photo, face), self.changer.model.vocabulary
        return measured_expression(chosen, self.backend.name, source, only, own)

    def interpolate(
        self,
        photo: PhotoLike,
        other: PhotoLike,
        steps: int,
        face: str | int = "largest",
        *,
        only: str | Iterable[str] | None = None,
        inference_steps: int | None = None,
        **options: Unpack[VariantOptions],
    ) -> list[EditResult]:
        """Edits a photograph in evenly spaced levels between its expression and that of another one.

        The first result is the photograph itself; the last has the other's measured expression. Pose, light
        and everything else stay those of `photo`.

        Args:
            other: photograph whose largest face is measured.
            steps: number of results, at least 2.
            only: regions of the expression, as in `expression`.

        Returns, raises: as `variants`.
        """
        if steps < 2:
            raise ActionUnitError(f"an interpolation needs at least 2 steps, got {steps}")
        photo = open_photo(photo)
        found = self._finder.one(photo, face)
        goal = usable_expression(self.expression(other, only=only), self.action_units)
        deltas = goal.variation(levels_of(found))
        adds = [{name: share * delta for name, delta in deltas.items()} for share in np.linspace(0, 1, steps)]
        return self.variants(photo, adds, face, steps=inference_steps, **options)

    def attention_maps(
        self,
        photo: PhotoLike,
        add: Deltas,
        face: str | int = "largest",
        *,
        layer: str | None = None,
        **sampling: Unpack[ModelOptions],
    ) -> AttentionMaps:
        """Returns the reference attention of an edit of one face; under guidance, of the conditioned half.

        Args:
            photo, add, face, seed, steps, guidance, quality: as of `edit`; sides of the face cannot differ.
            layer: whose maps to return; default: the mean of all layers with the finest token grid.

        Raises:
            ModelError: where the model has no reference UNet, or no such layer.
            MissingDependencyError: where torch is needed and not installed.
            ImageError, NoFaceError, ActionUnitError: see their docstrings.
        """
        pipeline, settings = self.pipeline, SamplingSettings(**sampling)
        from magicedit.pipelines.reference_attention import transformer_blocks

        if pipeline.reference_unet is None:
            raise ModelError(
                f"the model {self.model} has no reference UNet, so nothing in it attends to a reference face"
            )
        layers = tuple(transformer_blocks(pipeline.unet))
        if layer is not None and layer not in layers:
            raise ModelError(f"the model {self.model} has no layer {layer!r}; it has {', '.join(layers)}")
        delta = self.action_units.deltas(add)
        names = self.changer.model.vocabulary
        if beyond := [name for name in delta if delta[name] and whole_name(name) not in names]:
            raise ActionUnitError(
                f"attention is recorded only for the model's own units; {', '.join(beyond)} needs no model"
            )
        own = {name: value for name, value in delta.items() if whole_name(name) in names}
        left, right = (names.vector(side) for side in split_sides(own))
        if not np.array_equal(left, right):
            raise ActionUnitError(
                "attention is recorded for one run of the model; request the same on both sides"
            )
        found = self._finder.choose(photo, face)
        if len(found.faces) > 1:
            raise NoFaceError(f'attention is recorded for one face: "largest" or an index, got {face!r}')
        cut = self.changer.cut(found.photo.pixels, found.faces[0])
        return record_attention(pipeline, cut, left, settings, layer)

    def sampling(self, **options: Unpack[SamplingOptions]) -> SamplingSettings:
        """Returns the settings of an edit; finds the mouths of the references. Arguments as in `edit`.

        Raises:
            MagicEditError: where the settings are invalid, or no reference shows its teeth.
            ImageError, NoFaceError: of a reference.
        """
        teeth, references = options.pop("teeth", None), options.pop("references", ())
        settings = SamplingSettings(**options)
        return replace(settings, mouths=MouthSettings(teeth, self.mouths_of(references)))

    def mouths_of(self, references: Sequence[PhotoLike]) -> tuple[Mouth, ...]:
        """The mouths of other photographs of a person that show teeth, see `finding.reference_mouths`."""
        return reference_mouths(self._finder, references, self.changer.model.resolution)

    def _results(
        self,
        edits: list[Edit],
        loop: EditRequest,
        settings: SamplingSettings,
        on_step: OnStep | None,
        started: float,
    ) -> list[EditResult]:
        """Carries out `edits`, in a closed loop if requested, and measures the results.

        loop: whether to measure, tolerance and number of edits, and the recipe that a request follows.
        """
        change = partial(self.changer.apply, settings=settings, on_step=on_step)
        pursuits: list = [[None] * len(edit.faces) for edit in edits]
        if loop.tolerance is None:
            change(edits)
        else:
            edits, pursuits = pursue(edits, change, self._finder.find_again, loop.tolerance, loop.max_edits)
        results = []
        for edit, pursued in zip(edits, pursuits, strict=True):
            faces = [
                judged(
                    edit,
                    number,
                    self.changer.model.resolution,
                    self._finder,
                    loop,
                    pursuit,
                )
                for number, pursuit in enumerate(pursued)
            ]
            photo = without_place(edit.chosen.photo) if self.strip_private else edit.chosen.photo
            mark = mark_of(photo, self.model, self.fingerprint, settings, faces) if self.mark else None
            image = photo_to_image(photo, edit.pixels, mark)
            seconds = time.perf_counter() - started
            left_alone = edit.chosen.left_alone
            unchanged = photo.source if edit.pixels is photo.pixels and not self.strip_private else None
            told = (left_alone, tuple(photo.lost), unchanged)
            results.append(EditResult(image, faces, seconds, self.model, *told))
            started = time.perf_counter()  # the first result's time includes the shared work
        return results
