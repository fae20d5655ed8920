"""The core that photographs and videos share: a face cut out, encoded, changed, and carried back."""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from magicedit.change import Change, no_change
from magicedit.editor.settings import SamplingSettings
from magicedit.faces import Alignment, Face, align, condition_image, crop_face, editing_region, left_side
from magicedit.faces.glasses import glasses_presence, glasses_score
from magicedit.imaging import Photo
from magicedit.models.face_model import FaceModel, OnStep
from magicedit.vocabulary import split_sides
from magicedit.warping import Mouth, carry_change, carry_mouth, estimate_change, join_sides, parts_lips, shade

REMEMBERED_FACES = 4  # encoded ones: about 50 MB each for a model of Stable Diffusion's size in 16 bits

# Requests to models that compose: linear up to the first, at most the second more; intensity steps
LINEAR_TO, SOFT = 5.0, 1.5
SMALLEST_ASKED = 2.0  # intensity steps; of less such models do a part of that
NOSE_BASE = 2  # of MediaPipe's landmarks


@dataclass(frozen=True, eq=False)
class FaceCut:
    """A face as the model sees it.

    crop: (size, size, 3) uint8 RGB. landmarks: (points, 2), crop px. encoded: what the model keeps of it.
    glasses: 0..1, how far they are held in place.
    """

    crop: np.ndarray
    alignment: Alignment
    landmarks: np.ndarray
    scheme: str
    encoded: Any
    glasses: float = 0.0

    @cached_property
    def region(self) -> np.ndarray:
        """(size, size) 0..1, how much of a change is carried to the photograph."""
        return editing_region(self.landmarks, self.alignment.size, self.scheme, self.glasses)

    @cached_property
    def landmarks_in_photo(self) -> np.ndarray:
        inverse = self.alignment.inverse()
        return self.landmarks @ inverse[:, :2].T + inverse[:, 2]  # (points, 2), photograph px


@dataclass(frozen=True, eq=False)
class Chosen:
    """The faces of a photograph that are meant.

    indices: of `faces` among those found, largest first. left_alone: see `magicedit.faces.Found`.
    """

    photo: Photo
    indices: list[int]
    faces: list[Face]
    left_alone: int


@dataclass(eq=False)
class Edit:
    """A photograph on its way: `pixels` evolve face by face as `requests` ask, one for each that is chosen.

    changes: number of a face -> what was done to its crop; without the faces that nothing was asked of.
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


class FaceChanger:
    """Asks a model for the changes of faces, and carries them to the photographs.

    What the model encodes of a face is remembered for the next few changes of the same crop. `on_step(step)`,
    counted from 0, is called after every denoising step, for progress; what it raises ends the work.
    """

    def __init__(self, model: FaceModel):
        self.model = model
        self._encoded: OrderedDict[bytes, Any] = OrderedDict()
        self._encoding = threading.Lock()

    @property
    def composes(self) -> bool:
        """See `FaceModel.composes`."""
        return self.model.composes

    def apply(self, edits: list[Edit], settings: SamplingSettings, on_step: OnStep | None = None) -> None:
        """Carries out what was requested of each photograph.

        Its faces are edited one after the other on the evolving pixels, lest overlapping ones undo each
        other; the photographs together.
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
        """The face of number `index` in each photograph."""
        # 1. Crops of the model's size, encoded; variants share photograph and face
        known: dict[tuple[int, int], FaceCut] = {}
        cuts = []
        for edit in edits:
            key = id(edit.pixels), id(edit.faces[index])
            if key not in known:
                known[key] = self.cut(edit.pixels, edit.faces[index])
            cuts.append(known[key])

        # 2. What the model does to them, carried to the photographs
        requests = [edit.requests[index] for edit in edits]
        changes = self.requested_changes(cuts, requests, settings, on_step)
        for edit, cut, request, change in zip(edits, cuts, requests, changes, strict=True):
            if change is not None:
                edit.changes[index] = self.unpainted(change, cut, settings)
                edit.glasses[index] = cut.glasses
                edit.pixels = self.carry(edit.pixels, cut, change, request, settings)

    def has_mouth_layer(self, cut: FaceCut, settings: SamplingSettings) -> bool:
        """Whether the mouth is a layer of its own, in the place of the model's paint."""
        return cut.scheme == "mediapipe478" and (self.composes or settings.mouths.is_asked)

    def unpainted(self, change: Change, cut: FaceCut, settings: SamplingSettings) -> Change:
        """The change without the paint that the mouth's layer replaces.

        That is all of it for models that compose, whose paint is for mouths alone; of a painted picture it is
        what lies below the nose.
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
        cut: FaceCut,
        change: Change,
        request: Mapping[str, float],
        settings: SamplingSettings,
        *,
        presence: float = 1.0,
        donor: Mouth | None = None,
    ) -> np.ndarray:
        """Does a change of a face's crop to the photograph, the light of smiles and the mouth as layers.

        Models that compose their answer cannot invent teeth; those that paint get the layer where certain
        teeth are asked for. Faces without MediaPipe's landmarks have none.

        Args:
            pixels: the photograph, (height, width, 3) uint8 RGB.
            request: AU name, whole or of one side, -> variation; lips that nothing in it parts stay closed.
            presence: 0..1, how much of the change is done.
            donor: whose teeth show where the person's own do not; default: chosen by face and seed.

        Returns:
            a new photograph.
        """
        region = cut.region if presence == 1.0 else cut.region * presence
        if not self.has_mouth_layer(cut, settings):
            return carry_change(pixels, cut.alignment, change, region)
        landmarks = cut.landmarks_in_photo
        if self.composes:
            pixels = shade(pixels, cut.alignment, region, landmarks, request)
        donor = donor or settings.mouths.donor(landmarks, settings.seed)
        mouth = settings.mouths.mouth(pixels, landmarks, cut.alignment, donor)
        return carry_mouth(
            pixels,
            cut.alignment,
            self.unpainted(change, cut, settings),
            region,
            landmarks,
            mouth,
            parts=parts_lips(request),
        )

    def requested_changes(
        self,
        cuts: list[FaceCut],
        requests: list[dict[str, float]],
        settings: SamplingSettings,
        on_step: OnStep | None = None,
    ) -> list[Change | None]:
        """What the model does to each of `cuts` by the request of the same number; None: nothing is asked.

        requests: AU name, whole or of one side, -> variation. Where the sides differ the model answers twice.
        """
        # 1. The vectors of left and right, None: unchanged
        vectors, cut_of, sides_of = [], [], []
        for request, cut in zip(requests, cuts, strict=True):
            sides = [self._vector(side) for side in split_sides(request)]
            if np.array_equal(*sides):
                sides = sides[:1]
            numbers = []
            for vector in sides:
                numbers.append(len(vectors) if vector.any() else None)
                if vector.any():  # else below what float32 can tell from nothing
                    vectors.append(vector)
                    cut_of.append(cut)
            sides_of.append((numbers[0], numbers[-1]))

        # 2. The model, once for each vector
        shares = [self._share(vector) for vector in vectors]
        asked = [vector / share for vector, share in zip(vectors, shares, strict=True)]
        answers = self.changes(cut_of, asked, settings, on_step)
        answers = [
            answer if share == 1 else replace(answer, flow=answer.flow * share, mask=answer.mask * share)
            for answer, share in zip(answers, shares, strict=True)
        ]
        changes: list[Change | None] = []
        for cut, sides in zip(cuts, sides_of, strict=True):
            if sides == (None, None):
                changes.append(None)
                continue
            size = cut.alignment.size
            left, right = (no_change(size) if side is None else answers[side] for side in sides)
            if sides[0] != sides[1]:
                left = join_sides(left, right, left_side(cut.landmarks, size, cut.scheme))
            changes.append(left)
        return changes

    def _vector(self, request: Mapping[str, float]) -> np.ndarray:
        """(aus,) what the model is asked for.

        Models that compose move pixels as far as they are told, so that requests beyond those in training
        tear faces: these saturate.
        """
        vector = self.model.vocabulary.vector(request)
        if not self.composes:
            return vector
        beyond = np.maximum(np.abs(vector) - LINEAR_TO, 0)
        return np.sign(vector) * (np.minimum(np.abs(vector), LINEAR_TO) + SOFT * (1 - np.exp(-beyond / SOFT)))

    def _share(self, vector: np.ndarray) -> np.float32:
        """How much is done of the answer to `vector / share`, 0..1.

        What a model that composes moves is nearly linear in what it is asked, up to a trembling that does not
        get smaller with the request. A small request is a part of a larger one, and so is its trembling.
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

        alignment: of the model's resolution; default: by the face's own landmarks. glasses: `glasses_score`,
        where it is known from elsewhere.
        """
        alignment = alignment or align(face, self.model.resolution)
        landmarks = alignment.apply(face.landmarks)  # (points, 2), crop px
        crop = crop_face(pixels, alignment)  # (size, size, 3)
        condition = condition_image(crop, landmarks, face.scheme)
        encoded = self._encode(crop, condition)
        score = glasses_score(crop, landmarks, face.scheme) if glasses is None else glasses
        return FaceCut(crop, alignment, landmarks, face.scheme, encoded, glasses_presence(score))

    def _encode(self, crop: np.ndarray, condition: np.ndarray) -> Any:
        """The model's encoding of a crop, remembered for a few of them while the weights stay."""
        key = hashlib.blake2b(np.ascontiguousarray(crop), digest_size=16)
        key.update(np.ascontiguousarray(condition))
        key = key.digest()
        with self._encoding:
            encoded = self._encoded.pop(key, None)
            if encoded is None or not self.model.is_current(encoded):
                encoded = self.model.encode(crop, condition)
            self._encoded[key] = encoded
            if len(self._encoded) > REMEMBERED_FACES:
                self._encoded.popitem(last=False)
            return encoded

    def changes(
        self,
        cuts: list[FaceCut],
        vectors: list[np.ndarray],
        settings: SamplingSettings,
        on_step: OnStep | None = None,
    ) -> list[Change]:
        """What the model does to each of `cuts` by the AU vector (aus,) of the same number."""
        answers = self.model.change([cut.encoded for cut in cuts], vectors, settings, on_step)
        return [
            answer if isinstance(answer, Change) else estimate_change(cut.crop, answer)
            for cut, answer in zip(cuts, answers, strict=True)
        ]
