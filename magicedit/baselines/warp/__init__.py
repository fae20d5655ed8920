"""The editor that learned nothing: the face's muscles pull the photograph's pixels, and a dark mouth opens.

It is the data engine's own warp (`magicedit.warping`), from which the embedded model learned most of what it
knows; a learned editor that loses to it has learned nothing.
"""

from collections.abc import Mapping

import numpy as np

from magicedit.action_units import NAMES, to_vector
from magicedit.errors import NoFaceError
from magicedit.faces import FaceBackend, align, editing_region, left_side, load_backend
from magicedit.imaging import Photo
from magicedit.vocabulary import split_sides
from magicedit.warping import (
    Change,
    backward_flow,
    carry_change,
    displacement_fields,
    join_sides,
    no_change,
)

SIZE = 256  # px a side of the crop in which the muscles pull
STRIDE = 8  # px between the points of their fields
MOUTH = (0.15, 0.07, 0.07)  # RGB in 0..1 of the inside of an opened mouth


class WarpEditor:
    """Warps the largest face of a photograph. The last photograph's face and fields are remembered."""

    action_units = NAMES

    def __init__(self, backend: FaceBackend | None = None):
        self.backend = backend or load_backend("mediapipe")
        self._photo: Photo | None = None

    def __call__(self, photo: Photo, au_delta: Mapping[str, float], seed: int = 0) -> np.ndarray:
        """AU name (or side, such as "AU12L") -> variation in steps -> (height, width, 3) uint8.

        Every seed gives the same. NoFaceError where there is no face.
        """
        if not any(au_delta.values()):
            return photo.pixels
        if photo is not self._photo:
            self._look_at(photo)
        face, alignment, landmarks, fields = self._face, self._alignment, self._landmarks, self._fields
        sides = [to_vector(side) for side in split_sides(au_delta)]  # subject's left, right
        change = self._change(sides[0], fields, landmarks)
        if not np.array_equal(*sides):
            right = self._change(sides[1], fields, landmarks)
            change = join_sides(change, right, left_side(landmarks, SIZE, face.scheme))
        region = editing_region(landmarks, SIZE, face.scheme, flow=change.flow)
        return carry_change(photo.pixels, alignment, change, region)

    def _look_at(self, photo: Photo) -> None:
        faces = self.backend.detect(photo.pixels)
        if not faces:
            raise NoFaceError("no face was found in the photograph")
        self._face = faces[0]
        self._alignment = align(self._face, SIZE)
        self._landmarks = self._alignment.apply(self._face.landmarks)
        self._fields = displacement_fields(self._landmarks, SIZE, stride=STRIDE)
        self._photo = photo

    @staticmethod
    def _change(vector: np.ndarray, fields: np.ndarray, landmarks: np.ndarray) -> Change:
        if not vector.any():
            return no_change(SIZE)
        flow, opened = backward_flow(fields, vector, landmarks, SIZE)
        paint = np.full((SIZE, SIZE, 3), MOUTH, np.float32)
        return Change(flow.astype(np.float32), opened, paint)
