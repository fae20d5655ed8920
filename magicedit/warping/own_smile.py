"""The smile of a person as another photograph shows it: where a smile takes the lips, in place of a table.

A photograph of somebody's smile that gives the teeth shows the shape of the smile too, and teeth fit the
lips between which they were photographed. Faces are compared with the neutral mesh as an affine camera sees
it (see `muscles`), so that heads need not be turned alike.
"""

from dataclasses import dataclass

import numpy as np

from magicedit.faces.frame import face_frame
from magicedit.warping.muscles import (
    LOWER_LIP_EDGE,
    MOUTH_CORNERS,
    SKIN,
    UPPER_LIP_EDGE,
    affine_camera,
    neutral_mesh,
    smile_displacements,
)
from magicedit.warping.seam import LOWER_LIP_OUTLINE, UPPER_LIP_OUTLINE

_RIGID = 0.06  # of the mesh's interocular distance, that expressions move landmarks which show a head's pose
_TURNED = 12.0  # degrees between two heads, up to which their lips are compared
_SMALLEST = 1.5  # intensity steps of AU12: photographs that smile less show no smile
_CLOSED = 0.10  # iod between lips, beyond which a photograph shows a mouth of its own
_LEAST_GAP = 0.01  # iod between lips, below which the gap's shape is noise, which is not magnified
_DEGREE = 4  # of the polynomial along a lip that its movement is
_MOST_SMILE = 1.2  # of the photograph's smile; what is asked beyond is other people's
_WIDER = 0.3  # of the gap that is asked beyond the photograph's: its teeth do not fill a wider one


@dataclass(frozen=True, eq=False)
class FaceShape:
    """Where a face's skin lies. aside: (468, 2) iod to the subject's left and down, beside the neutral mesh.
    towards: (3,) unit vector of the mesh that points at the camera."""

    aside: np.ndarray
    towards: np.ndarray

    @staticmethod
    def of(landmarks: np.ndarray) -> "FaceShape":
        """landmarks: MediaPipe's (478, 2) px."""
        landmarks = np.asarray(landmarks, np.float64)
        camera = affine_camera(landmarks, limit=_RIGID)  # (4, 2)
        seen = np.insert(neutral_mesh(), 3, 1, axis=1) @ camera
        towards = np.cross(*camera[:3].T)
        aside = face_frame(landmarks).vectors_to_face(landmarks[:SKIN] - seen)
        return FaceShape(aside, towards / np.linalg.norm(towards))


def moves_to(landmarks: np.ndarray, shape: FaceShape) -> np.ndarray:
    """(478, 2) px from a face's landmarks (478, 2) px to the shape of the same face in another photograph."""
    moves = np.zeros_like(landmarks)
    aside = shape.aside - FaceShape.of(landmarks).aside
    moves[:SKIN] = face_frame(landmarks).vectors_to_picture(aside)
    return moves


@dataclass(frozen=True, eq=False)
class OwnSmile:
    """landmarks: (478, 2) px of a face. moves: (478, 2) px from there to its smile. steps: intensity steps of
    AU12 that this is. step: (478, 2) px of another step in photographs of other people."""

    landmarks: np.ndarray
    moves: np.ndarray
    steps: float
    step: np.ndarray

    @staticmethod
    def of(landmarks: np.ndarray, smiling: FaceShape) -> "OwnSmile | None":
        """The smile of a face with closed lips, landmarks (478, 2) px of an upright crop.

        None where the lips are apart, or `smiling` does not smile or has its head turned elsewhere.
        """
        parted = landmarks[LOWER_LIP_EDGE[5], 1] - landmarks[UPPER_LIP_EDGE[5], 1]
        turned = FaceShape.of(landmarks).towards @ smiling.towards < np.cos(np.radians(_TURNED))
        if turned or parted > _CLOSED * face_frame(landmarks).interocular:
            return None
        moves = moves_to(landmarks, smiling)
        along = np.vander(np.linspace(-1, 1, len(UPPER_LIP_EDGE)), _DEGREE + 1)
        for ids in map(list, (UPPER_LIP_EDGE, UPPER_LIP_OUTLINE, LOWER_LIP_EDGE, LOWER_LIP_OUTLINE)):
            moves[ids] = along @ np.linalg.lstsq(along, moves[ids], rcond=None)[0]  # landmarks tremble
        step = smile_displacements(landmarks)[:, 0] / 5
        corners = step[list(MOUTH_CORNERS)]
        steps = float((moves[list(MOUTH_CORNERS)] * corners).sum() / (corners**2).sum())
        return OwnSmile(landmarks, moves, steps, step) if steps >= _SMALLEST else None

    def lip_moves(self, steps: float, gap: float, parts: float) -> np.ndarray:
        """(478, 2) px that the lips move for AU12 of `steps` where the lips are asked to part by `gap` px.

        parts: 0..1, how far they part as in the photograph at least.
        """
        share = min(steps / self.steps, _MOST_SMILE)
        moves = share * self.moves + (steps - share * self.steps) * self.step
        upper, lower = (
            self.landmarks[list(ids)] + moves[list(ids)] for ids in (UPPER_LIP_EDGE, LOWER_LIP_EDGE)
        )
        gaps = np.maximum(lower - upper, 0)[:, 1]
        own = max(gaps[5], _LEAST_GAP * face_frame(self.landmarks).interocular)
        gap = max(min(gap, own), parts * own) + _WIDER * max(gap - own, 0)
        farther = (gap / own - 1) * gaps
        for ids in (LOWER_LIP_EDGE, LOWER_LIP_OUTLINE):
            moves[list(ids), 1] += farther
        return moves
