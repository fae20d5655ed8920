"""A reference's smile, carried to a face that does not smile."""

import numpy as np
import pytest

from magicedit.faces import align, load_backend
from magicedit.faces.frame import face_frame
from magicedit.warping import FaceShape, parts_lips, steer
from magicedit.warping.mouth import FLESH, forward_places
from magicedit.warping.muscles import (
    LOWER_LIP_EDGE,
    MOUTH_CORNERS,
    UPPER_LIP_EDGE,
    affine_camera,
    landmark_displacements,
    neutral_mesh,
    smile_displacements,
)
from magicedit.warping.own_smile import OwnSmile, moves_to
from magicedit.warping.seam import LOWER_LIP_OUTLINE, UPPER_LIP_OUTLINE

SIZE = 128
LIPS = sorted({*UPPER_LIP_EDGE, *LOWER_LIP_EDGE, *UPPER_LIP_OUTLINE, *LOWER_LIP_OUTLINE})
STEPS, WIDER = 2.5, 1.8


@pytest.fixture(scope="module")
def landmarks(closed_mouth) -> np.ndarray:
    face = load_backend().detect(closed_mouth)[0]
    return align(face, SIZE).apply(face.landmarks).astype(np.float64)


@pytest.fixture(scope="module")
def smiling(landmarks) -> np.ndarray:
    """The same landmarks in a smile that shows teeth, wider than the table's."""
    moves = smile_displacements(landmarks)
    moves = moves[:, 0] * STEPS / 5 + moves[:, 1] * 0.11
    moves[LIPS, 0] *= WIDER
    return landmarks + moves


def turned(landmarks: np.ndarray, degrees: float) -> np.ndarray:
    """The landmarks as a camera would see them from another side, smaller, and tilted."""
    camera = affine_camera(landmarks)
    mesh = np.insert(neutral_mesh(), 3, 1, axis=1)
    aside = landmarks[: len(mesh)] - mesh @ camera
    yaw = np.radians(degrees)
    rotation = np.array([[np.cos(yaw), 0, -np.sin(yaw)], [0, 1, 0], [np.sin(yaw), 0, np.cos(yaw)]])
    seen = np.concatenate([mesh[:, :3] @ rotation @ camera[:3] + camera[3] + aside, landmarks[len(mesh) :]])
    tilt = np.array([[np.cos(0.2), np.sin(0.2)], [-np.sin(0.2), np.cos(0.2)]])
    return 0.6 * seen @ tilt + (40, 90)


@pytest.mark.parametrize("degrees", [0, 8])
def test_a_head_that_is_turned_tilted_and_farther_away_has_the_same_shape(landmarks, smiling, degrees):
    moves, same = (moves_to(landmarks, FaceShape.of(face)) for face in (turned(smiling, degrees), smiling))
    error = np.abs(moves - same)[LIPS].max() / face_frame(landmarks).interocular
    assert error < (0.002 if degrees == 0 else 0.025)  # what lies aside of the mesh is not turned


def test_a_smile_is_measured_and_carried(landmarks, smiling):
    own = OwnSmile.of(landmarks, FaceShape.of(smiling))
    across, down = (smile_displacements(landmarks)[list(MOUTH_CORNERS), 0] ** 2).sum(0)
    assert own.steps == pytest.approx(STEPS * (WIDER * across + down) / (across + down), abs=0.2)
    gap = (smiling[14] - smiling[13])[1]
    whole = own.lip_moves(own.steps, gap, parts=1.0)
    iod = face_frame(landmarks).interocular
    assert np.abs(whole - (smiling - landmarks))[LIPS].max() / iod < 0.02
    half = own.lip_moves(own.steps / 2, gap / 4, parts=0.0)
    assert half[list(MOUTH_CORNERS)] == pytest.approx(whole[list(MOUTH_CORNERS)] / 2)
    parted = (landmarks + half)[[13, 14], 1]
    assert parted[1] - parted[0] == pytest.approx(gap / 4, rel=0.02)
    # More than the photograph shows: other people's smile beyond, and lips that hardly part farther
    more = own.lip_moves(5.0, 2 * gap, parts=1.0)
    assert (more[list(MOUTH_CORNERS), 1] < whole[list(MOUTH_CORNERS), 1] - 0.02 * iod).all()
    parted = (landmarks + more)[[13, 14], 1]
    assert gap < parted[1] - parted[0] < 1.6 * gap


def test_a_gap_that_is_hardly_there_is_not_magnified(landmarks, smiling):
    iod = face_frame(landmarks).interocular
    crossed = landmarks.copy()  # as landmarks of closed lips may be, in the middle alone
    crossed[14, 1] = crossed[13, 1] - 0.02 * iod
    own = OwnSmile.of(crossed, FaceShape.of(smiling))
    assert np.abs(own.lip_moves(0.1, 0.3 * iod, parts=0.0)).max() < 0.3 * iod


def test_what_shows_no_smile_of_a_closed_mouth_lends_none(landmarks, smiling):
    shape = FaceShape.of(smiling)
    assert OwnSmile.of(landmarks, FaceShape.of(landmarks)) is None
    assert OwnSmile.of(landmarks, FaceShape.of(turned(smiling, 25))) is None
    opened = landmarks + landmark_displacements(landmarks, ["AU26"])[:, 0]
    assert OwnSmile.of(opened, shape) is None


def test_lips_that_smile_go_where_the_reference_takes_them(landmarks, smiling):
    shape = FaceShape.of(smiling)
    request = {"AU12": OwnSmile.of(landmarks, shape).steps, "AU25": 2.0, "AU15": -1.5}
    assert parts_lips(request)
    nothing = np.zeros((SIZE, SIZE, 2), np.float32)
    flow, table = steer(nothing, landmarks, request, shape), steer(nothing, landmarks, request)
    iod = face_frame(landmarks).interocular
    for edge, outline, below in (
        (UPPER_LIP_EDGE, UPPER_LIP_OUTLINE, False),
        (LOWER_LIP_EDGE, LOWER_LIP_OUTLINE, True),
    ):
        edge, outline = list(edge)[2:-2], list(outline)[2:-2]
        line, wanted = (x[edge] + FLESH * (x[outline] - x[edge]) for x in (landmarks, smiling))
        errors = [
            np.abs(forward_places(f, line, from_below=below) - wanted).max() / iod for f in (flow, table)
        ]
        assert errors[0] < 0.03
        assert errors[0] < 0.6 * errors[1]
    assert np.array_equal(
        steer(nothing, landmarks, {"AU1": 2.0}, shape), steer(nothing, landmarks, {"AU1": 2.0})
    )
