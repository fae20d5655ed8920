"""The core shared by photographs and videos: cuts out a face, encodes it, changes it and carries it back."""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from magicedit.action_units import editable
from magicedit.change import Change, no_change
from magicedit.editor.settings import SamplingSettings
from magicedit.errors import ActionUnitError
from magicedit.faces import Alignment, Face, align, condition_image, crop_face, editing_region, left_side
from magicedit.faces.glasses import glasses_presence, glasses_score
from magicedit.imaging import Photo
from magicedit.models.face_model import FaceModel, OnStep
from magicedit.vocabulary import Vocabulary, split_sides, whole_name
from magicedit.warping import (
    FaceShape,
    Mouth,
    carry_change,
    carry_mouth,
    estimate_change,
    join_sides,
    move_eyes,
    moved_by_muscles,
    parts_lips,
    resting_eyeballs,
    shade,
    steer,
    turn_head,
    without_hanging,
)
from magicedit.warping.muscles import NOSE_BASE, SHAPES

# Encodings kept: so many at least, and all that take no more bytes together. A face of `mini` takes 1.7 MB,
# one of a 16-bit model of Stable Diffusion's size about 50 MB
REMEMBERED_FACES, REMEMBERED_BYTES = 4, 100_000_000

# Requests to composing models stay linear up to the first value and gain at most the second; intensity steps
LINEAR_TO, SOFT = 5.0, 1.5
SMALLEST_ASKED = 2.0  # intensity steps; composing models do a share of this for smaller requests


@dataclass(frozen=True, eq=False, kw_only=True)
class FacePlace:
    """Where a face lies in a photograph and in its crop: all that is needed to carry a change to it.

    landmarks: (points, 2), crop px. glasses: 0..1, how far they are held in place.
    """

    alignment: Alignment
    landmarks: np.ndarray
    scheme: str
    glasses: float = 0.0

    @staticmethod
    def of(face: Face, alignment: Alignment, glasses: float = 0.0) -> "FacePlace":
        """Returns the place of a face in the crop of an alignment."""
        landmarks = alignment.apply(face.landmarks)
        return FacePlace(alignment=alignment, landmarks=landmarks, scheme=face.scheme, glasses=glasses)

    def region(self, change: Change) -> np.ndarray:
        """Weight of a change when it is carried to the photograph, (size, size) 0..1."""
        return editing_region(self.landmarks, self.alignment.size, self.scheme, self.glasses, change.flow)

    @cached_property
    def landmarks_in_photo(self) -> np.ndarray:
        inverse = self.alignment.inverse()
        return self.landmarks @ inverse[:, :2].T + inverse[:, 2]  # (points, 2), photograph px


@dataclass(frozen=True, eq=False, kw_only=True)
class FaceCut(FacePlace):
    """A face as the model sees it.

    crop: (size, size, 3) uint8 RGB. encoded: the model's encoding of it.
    """

    crop: np.ndarray
    encoded: Any


@dataclass(frozen=True, eq=False)
class Chosen:
    """The chosen faces of a photograph.

    indices: of `faces` among all found, largest first. left_alone: see `magicedit.faces.Found`.
    """

    photo: Photo
    indices: list[int]
    faces: list[Face]
    left_alone: int


@dataclass(eq=False)
class Edit:
    """A photograph being edited: `pixels` change face by face; `requests` holds one request per chosen face.

    changes: number of a face -> the change of its crop; faces with empty requests are absent.
    glasses: of the same faces, see `FaceCut`.
    """

    chosen: Chosen
    requests: list[dict[str, float]]
    changes: dict[int, Change] = field(default_factory=dict)
    glasses: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.pixels = self.chosen.photo.pixels

    @property
    def faces(self) -> list[Face]:
        return self.chosen.faces


def saturated(steps: np.ndarray | float) -> np.ndarray:
    """Returns variations in steps with those beyond the training range reduced: where pixels move as far as
    requested, larger requests tear faces."""
    beyond = np.maximum(np.abs(steps) - LINEAR_TO, 0)
    return np.sign(steps) * (np.minimum(np.abs(steps), LINEAR_TO) + SOFT * (1 - np.exp(-beyond / SOFT)))


def bytes_of(value: Any) -> int:
    """Returns the bytes of all arrays and tensors that a value holds."""
    if isinstance(size := getattr(value, "nbytes", None), int):
        return size
    if isinstance(value, Mapping):
        return sum(map(bytes_of, [*value.values()]))  # at once: other threads fill a face's cache
    if isinstance(value, list | tuple):
        return sum(map(bytes_of, value))
    return bytes_of(vars(value)) if hasattr(value, "__dict__") else 0


class FaceChanger:
    """Gets the changes of faces from a model and carries them to the photographs.

    The encoding of a face is cached for the next few changes of the same crop. `on_step(step)`, counted from
    0, is called after every denoising step, for progress; if it raises, the work stops.
    """

    def __init__(self, model: FaceModel):
        self.model = model
        self._encoded: OrderedDict[bytes, Any] = OrderedDict()
        # Of unedited faces, as long as these are kept: crop, and `glasses_score`
        self._seen: WeakKeyDictionary[Face, tuple[np.ndarray, float]] = WeakKeyDictionary()
        self._encoding = threading.Lock()

    @property
    def composes(self) -> bool:
        """See `FaceModel.composes`."""
        return self.model.composes

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """What can be asked for: the model's controls, and with muscles to follow also GEOMETRIC ones."""
        names = self.model.vocabulary
        return editable(names) if self.model.follows_muscles else names

    def apply(self, edits: list[Edit], settings: SamplingSettings, on_step: OnStep | None = None) -> None:
        """Carries out the requests of each photograph.

        Faces of a photograph are edited one after the other, so that overlapping faces do not undo each
        other. Photographs are edited together.
        """
        for index in range(max((len(edit.faces) for edit in edits), default=0)):
            changing = [
                edit for edit in edits if index < len(edit.faces) and any(edit.requests[index].values())
            ]
            if changing:
                self._edit_faces(changing, index, settings, on_step)

    def _edit_faces(
        self, edits: list[Edit], index: int, settings: SamplingSettings, on_step: OnStep | None
    ) -> None:
        """Edits face number `index` of each photograph."""
        # 1. Crops of the model's size, encoded; variants share photograph and face
        known: dict[tuple[int, int], FaceCut] = {}
        cuts = []
        for edit in edits:
            key = id(edit.pixels), id(edit.faces[index])
            if key not in known:
                known[key] = self._cut_of(edit, index)
            cuts.append(known[key])

        # 2. The model's changes, carried to the photographs
        requests = [edit.requests[index] for edit in edits]
        changes = self.requested_changes(cuts, requests, settings, on_step, smiling=settings.mouths.smile)
        for edit, cut, request, change in zip(edits, cuts, requests, changes, strict=True):
            if change is not None:
                edit.changes[index] = self.unpainted(change, cut, settings)
                edit.glasses[index] = cut.glasses
                own = edit.pixels is not edit.chosen.photo.pixels
                edit.pixels = self.carry(edit.pixels, cut, change, request, settings, in_place=own)

    def _cut_of(self, edit: Edit, index: int) -> FaceCut:
        """Returns the `cut` of a face; what is seen of it in the unedited photograph is remembered."""
        face = edit.faces[index]
        if edit.pixels is not edit.chosen.photo.pixels:
            return self.cut(edit.pixels, face)
        alignment = align(face, self.model.resolution)
        if face not in self._seen:
            crop = crop_face(edit.pixels, alignment)
            self._seen[face] = crop, glasses_score(crop, alignment.apply(face.landmarks), face.scheme)
        crop, glasses = self._seen[face]
        return self._encoded_cut(crop, face, alignment, glasses)

    def has_mouth_layer(self, cut: FacePlace, settings: SamplingSettings) -> bool:
        """Whether the mouth is a separate layer that replaces the model's paint."""
        return cut.scheme == "mediapipe478" and (self.composes or settings.mouths.is_asked)

    def unpainted(self, change: Change, cut: FacePlace, settings: SamplingSettings) -> Change:
        """Returns the change without the paint that the mouth layer replaces.

        Models that compose paint only mouths, so all their paint is removed. For models that paint the whole
        picture, the paint below the nose is removed.
        """
        if not self.has_mouth_layer(cut, settings):
            return change
        above = np.zeros(change.mask.shape, np.float32)
        if not self.composes:
            above[: max(int(cut.landmarks[NOSE_BASE, 1]), 0)] = 1
        return replace(change, mask=change.mask * above)

    def carry(
        self,
        pixels: np.ndarray,
        cut: FacePlace,
        change: Change,
        request: Mapping[str, float],
        settings: SamplingSettings,
        *,
        presence: float = 1.0,
        donor: Mouth | None = None,
        in_place: bool = False,
    ) -> np.ndarray:
        """Applies a change of a face's crop to the photograph, with shading, eyes, mouth and head as layers.

        Models that compose cannot invent teeth and always get all layers; models that paint get the mouth
        layer when specific teeth are requested. Faces without MediaPipe's landmarks get no layers.

        Args:
            pixels: the photograph, (height, width, 3) uint8 RGB.
            request: AU name, whole or of one side, -> variation; lips part only if a requested AU parts them.
            presence: 0..1, the share of the change that is applied.
            donor: mouth whose teeth show where the person's own do not; default: chosen by face and seed.
            in_place: whether `pixels` itself is changed.

        Returns:
            a new photograph, or `pixels`.
        """
        if not in_place:
            pixels = pixels.copy()  # the only one: every layer works in its window of it
        region = cut.region(change) * np.float32(presence)
        if not self.has_mouth_layer(cut, settings):
            return carry_change(pixels, cut.alignment, change, region, in_place=True)
        landmarks = cut.landmarks_in_photo
        own = self.model.vocabulary
        geometric = {name: presence * value for name, value in request.items() if whole_name(name) not in own}
        eyeballs = []
        if self.composes:
            shade(pixels, cut.alignment, region, landmarks, request, in_place=True)
            move_eyes(pixels, landmarks, geometric, cut.glasses, in_place=True)
            flow = change.flow * region[..., None]
            eyeballs = resting_eyeballs(pixels, cut.alignment, flow, landmarks, geometric)
        donor = donor or settings.mouths.donor(landmarks, settings.seed)
        mouth = settings.mouths.mouth(pixels, landmarks, cut.alignment, donor)
        carry_mouth(
            pixels,
            cut.alignment,
            self.unpainted(change, cut, settings),
            region,
            landmarks,
            mouth,
            parts=parts_lips(request),
            in_place=True,
        )
        for eyeball in eyeballs:
            eyeball.draw(pixels)
        return turn_head(pixels, landmarks, geometric, cut.glasses, in_place=True)

    def requested_changes(
        self,
        cuts: list[FaceCut],
        requests: list[dict[str, float]],
        settings: SamplingSettings,
        on_step: OnStep | None = None,
        *,
        smiling: FaceShape | None = None,
    ) -> list[Change | None]:
        """Returns the model's change of each of `cuts` for its request; None for an empty request.

        requests: AU name, whole or of one side, -> variation. Where the sides differ, the model runs twice.
        smiling: the person's own smile, which the lips of smiles follow; faces of a film, whose lips move
            already, have none.
        """
        # 1. The vectors of left and right, None: unchanged
        vectors, cut_of, numbers_of = [], [], []
        for request, cut in zip(requests, cuts, strict=True):
            sides = [self._vector(self._smiling(side, cut)) for side in split_sides(request)]
            if np.array_equal(*sides):
                sides = sides[:1]
            numbers = []
            for vector in sides:
                numbers.append(len(vectors) if vector.any() else None)
                if vector.any():  # else below what float32 distinguishes from 0
                    vectors.append(vector)
                    cut_of.append(cut)
            numbers_of.append((numbers[0], numbers[-1]))

        # 2. The model, once for each vector
        shares = [self._share(vector) for vector in vectors]
        asked = [vector / share for vector, share in zip(vectors, shares, strict=True)]
        answers = self.changes(cut_of, asked, settings, on_step) if vectors else []
        answers = [
            answer if share == 1 else replace(answer, flow=answer.flow * share, mask=answer.mask * share)
            for answer, share in zip(answers, shares, strict=True)
        ]
        answers = [
            self._steered(answer, cut, vector, smiling)
            for answer, cut, vector in zip(answers, cut_of, vectors, strict=True)
        ]

        # 3. Movement by units that the model does not know, and the two sides as one
        changes: list[Change | None] = []
        for cut, request, numbers in zip(cuts, requests, numbers_of, strict=True):
            added = [self._added(side) for side in split_sides(request)]
            if numbers == (None, None) and not any(added):
                changes.append(None)
                continue
            size = cut.alignment.size
            left, right = zip(numbers, added, strict=True)  # the model's answer and what it does not know
            halves = [
                self._moved(no_change(size) if number is None else answers[number], cut, side)
                for number, side in ((left,) if left == right else (left, right))
            ]
            if len(halves) == 2:
                halves = [join_sides(*halves, left_side(cut.landmarks, size, cut.scheme))]
            changes.append(halves[0])
        return changes

    def _added(self, request: Mapping[str, float]) -> dict[str, float]:
        """The part of a side's request that the model does not know, without zeros; units saturate."""
        return {
            name: value if self.vocabulary[name].is_angle else float(saturated(value))
            for name, value in request.items()
            if value and name not in self.model.vocabulary
        }

    def _moved(self, change: Change, cut: FaceCut, added: Mapping[str, float]) -> Change:
        """Returns the change followed by movement of muscles; `carry` draws eyes and turns the head."""
        if not added:
            return change
        if cut.scheme != "mediapipe478":
            raise ActionUnitError(
                f"{', '.join(added)} needs the landmarks of the face backend mediapipe, and this face has "
                f"those of another; leave it out, or use mediapipe"
            )
        units = {name: value for name, value in added.items() if name in SHAPES}
        return replace(change, flow=moved_by_muscles(change.flow, cut.landmarks, units))

    def _smiling(self, request: Mapping[str, float], cut: FaceCut) -> Mapping[str, float]:
        """Returns a side's request in which smiles raise corners that hang, if the model follows muscles."""
        if not self.model.follows_muscles or cut.scheme != "mediapipe478":
            return request
        return without_hanging(request, cut.landmarks)

    def _vector(self, request: Mapping[str, float]) -> np.ndarray:
        """Returns the AU vector (aus,) that the model gets.

        Requests to models that compose are `saturated`.
        """
        names = self.model.vocabulary
        vector = names.vector({name: value for name, value in request.items() if name in names})
        return saturated(vector) if self.composes else vector

    def _steered(self, change: Change, cut: FaceCut, vector: np.ndarray, smiling: FaceShape | None) -> Change:
        """Returns the change of an AU vector (aus,) that goes where the muscles take the face."""
        if not self.model.follows_muscles or cut.scheme != "mediapipe478":
            return change
        request = dict(zip(self.model.vocabulary, vector, strict=True))
        return replace(change, flow=steer(change.flow, cut.landmarks, request, smiling))

    def _share(self, vector: np.ndarray) -> np.float32:
        """Returns the share, 0..1, to apply of the model's answer to `vector / share`.

        Movement by a composing model is nearly linear in the request, but its jitter does not shrink with the
        request. A share of a larger request therefore has less jitter than a small request.
        """
        return np.float32(min(np.abs(vector).max() / SMALLEST_ASKED, 1.0)) if self.composes else np.float32(1)

    def cut(
        self,
        pixels: np.ndarray,
        face: Face,
        alignment: Alignment | None = None,
        glasses: float | None = None,
    ) -> FaceCut:
        """Cuts a face out of a photograph, (height, width, 3) uint8 RGB, and encodes it.

        alignment: at the model's resolution; default: from the face's own landmarks. glasses: the
        `glasses_score`, if already known.
        """
        alignment = alignment or align(face, self.model.resolution)
        crop = crop_face(pixels, alignment)  # (size, size, 3)
        if glasses is None:
            glasses = glasses_score(crop, alignment.apply(face.landmarks), face.scheme)
        return self._encoded_cut(crop, face, alignment, glasses)

    def _encoded_cut(self, crop: np.ndarray, face: Face, alignment: Alignment, glasses: float) -> FaceCut:
        """Arguments as of `cut`; crop: (size, size, 3) uint8 RGB."""
        landmarks = alignment.apply(face.landmarks)  # (points, 2), crop px
        condition = condition_image(crop, landmarks, face.scheme)
        return FaceCut(
            crop=crop,
            alignment=alignment,
            landmarks=landmarks,
            scheme=face.scheme,
            encoded=self._encode(crop, condition),
            glasses=glasses_presence(glasses),
        )

    def _encode(self, crop: np.ndarray, condition: np.ndarray) -> Any:
        """Returns the model's encoding of a crop; the latest are cached until the weights change."""
        key = hashlib.blake2b(np.ascontiguousarray(crop), digest_size=16)
        key.update(np.ascontiguousarray(condition))
        key = key.digest()
        with self._encoding:
            encoded = self._encoded.pop(key, None)
            if encoded is None or not self.model.is_current(encoded):
                encoded = self.model.encode(crop, condition)
            self._encoded[key] = encoded
            while len(self._encoded) > REMEMBERED_FACES and bytes_of(self._encoded) > REMEMBERED_BYTES:
                self._encoded.popitem(last=False)
            return encoded

    def changes(
        self,
        cuts: list[FaceCut],
        vectors: list[np.ndarray],
        settings: SamplingSettings,
        on_step: OnStep | None = None,
    ) -> list[Change]:
        """Returns the model's change of each of `cuts` for the AU vector (aus,) of the same index."""
        answers = self.model.change([cut.encoded for cut in cuts], vectors, settings, on_step)
        return [
            answer if isinstance(answer, Change) else estimate_change(cut.crop, answer)
            for cut, answer in zip(cuts, answers, strict=True)
        ]
