"""Faces of photographs: finds them once, chooses among them, and finds them again in the edited result."""

import math
import threading
from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from weakref import WeakKeyDictionary

import numpy as np
import PIL.Image

from magicedit.action_units import UNRELIABLE
from magicedit.editor.changer import Chosen
from magicedit.errors import MagicEditError, NoFaceError
from magicedit.expression import Expression
from magicedit.faces import (
    Face,
    FaceBackend,
    Found,
    IdentityCrop,
    align,
    covered_parts,
    identity_crop,
    levels_of,
    search,
)
from magicedit.faces.types import same_face, shifted
from magicedit.imaging import Photo, open_photo
from magicedit.request import check_face, check_references, missing_face
from magicedit.warping import Mouth, own_mouth

PhotoLike = str | Path | PIL.Image.Image | np.ndarray | Photo
REMEMBERED_PHOTOS = 4


class FaceFinder:
    """A face backend that serves one thread at a time and caches the faces of a few photographs."""

    def __init__(self, backend: FaceBackend):
        self.backend = backend
        self._found: OrderedDict[bytes, Found] = OrderedDict()
        self._covered: WeakKeyDictionary[Face, list[str]] = WeakKeyDictionary()
        self._identities: WeakKeyDictionary[Face, IdentityCrop | None] = WeakKeyDictionary()
        self._detecting = threading.Lock()

    def choose(self, photo: PhotoLike, *which: str | int) -> Chosen:
        """Returns the faces selected by each of `which`, see `select_indices`.

        Raises:
            ImageError: where the photograph cannot be read.
            NoFaceError: as `select_indices`.
        """
        photo = open_photo(photo)
        found = self._search(photo)
        indices = [index for each in which for index in select_indices(found.faces, each, photo)]
        return Chosen(photo, indices, [found.faces[index] for index in indices], found.left_alone)

    def one(self, photo: PhotoLike, which: str | int = "largest") -> Face:
        """Returns the selected face, for "all" the largest; errors as in `choose`."""
        return self.choose(photo, "largest" if which == "all" else which).faces[0]

    def _search(self, photo: Photo) -> Found:
        key = photo.digest()
        with self._detecting:
            if key not in self._found:
                found = search(self.backend, np.ascontiguousarray(photo.pixels))
                # Copies, as what is remembered of a face holds for this photograph only: a backend may return
                # the same faces for another one.
                self._found[key] = replace(found, faces=[replace(face) for face in found.faces])
                if len(self._found) > REMEMBERED_PHOTOS:
                    self._found.popitem(last=False)
            self._found.move_to_end(key)
            return self._found[key]

    def find_again(self, pixels: np.ndarray, face: Face) -> Face | None:
        """Returns the same face in the edited photograph, searched only around its old place."""
        height, width = pixels.shape[:2]
        x0, y0, x1, y1 = face.box
        margin = max(x1 - x0, y1 - y0)
        left, top = max(0, int(x0 - margin)), max(0, int(y0 - margin))
        right, bottom = min(width, math.ceil(x1 + margin)), min(height, math.ceil(y1 + margin))
        with self._detecting:
            found = self.backend.detect(np.ascontiguousarray(pixels[top:bottom, left:right]))
        return same_face([shifted(other, left, top) for other in found], face.box)

    def covered_parts(self, pixels: np.ndarray, face: Face) -> list[str]:
        """Returns `faces.covered_parts` of a found face, remembered as long as the face is kept."""
        if face not in self._covered:
            self._covered[face] = covered_parts(pixels, face)
        return self._covered[face]

    def identity(self, pixels: np.ndarray, face: Face) -> IdentityCrop | None:
        """Returns `identity_crop` of a found face, which keeps its descriptor as long as the face is kept."""
        if face not in self._identities:
            self._identities[face] = identity_crop(pixels, face)
        return self._identities[face]


def select_faces(faces: list[Face], which: str | int, photo: Photo) -> list[Face]:
    """Returns the found faces selected by "all", "largest" or an index; errors as in `select_indices`."""
    return [faces[index] for index in select_indices(faces, which, photo)]


def select_indices(faces: list[Face], which: str | int, photo: Photo) -> list[int]:
    """Returns the indices of the found faces, largest first, that "all", "largest" or an index selects.

    Raises NoFaceError where there is no face, or the index is too large.
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
        raise missing_face(index, len(faces), "face was found" if len(faces) == 1 else "faces were found")
    return [index]


def reference_mouths(
    finder: FaceFinder, references: Sequence[PhotoLike], resolution: int
) -> tuple[Mouth, ...]:
    """Returns the mouths that show teeth in other photographs of a person.

    resolution: px, of the model's crop.

    Raises:
        ImageError, NoFaceError: see their docstrings.
        MagicEditError: where references are given and none shows its teeth.
    """
    check_references(references)
    mouths = []
    for reference in references:
        photo = open_photo(reference)
        face = finder.one(photo)
        if face.scheme != "mediapipe478":
            raise MagicEditError("references need MediaPipe's landmarks; use the face backend mediapipe")
        mouth = own_mouth(photo.pixels, face.landmarks, align(face, resolution), "reference")
        mouths += [] if mouth is None else [mouth]
    if len(references) and not mouths:
        which = "the reference shows" if len(references) == 1 else "none of the references shows"
        raise MagicEditError(
            f"{which} no teeth; give a photograph in which the person smiles with parted lips"
        )
    return tuple(mouths)


def measured_expression(
    face: Face,
    backend: str,
    source: str = "",
    only: str | Iterable[str] | None = None,
    own: Collection[str] = (),
) -> Expression:
    """Returns the expression of a measured face.

    It lacks UNRELIABLE units but those of `own`, the units that a model was trained on.

    only: regions, see `action_units.parse_regions`; gaze and head belong to it where they are named. None:
        all action units, without gaze and head.

    Raises:
        ActionUnitError: for unknown regions, or where the backend measures nothing in them.
        MagicEditError: where the backend measures no action units.
    """
    if not face.action_units:
        raise MagicEditError(
            f"the face backend {backend} measures no action units, so there is no expression to read; "
            "use mediapipe"
        )
    if only is None:
        wholes = face.action_units
    else:
        wholes = {name: value for name, value in levels_of(face).items() if name not in face.sides}
    wholes = {name: value for name, value in wholes.items() if name not in UNRELIABLE or name in own}
    measured = Expression.measured(wholes, face.sides, source)
    return measured if only is None else measured.only(only)
