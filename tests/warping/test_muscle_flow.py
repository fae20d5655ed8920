"""Units that no network knows move the face as the muscles' table says, alone and after another flow."""

import numpy as np
import pytest

from magicedit.action_units import GEOMETRIC
from magicedit.faces import align, load_backend
from magicedit.faces.frame import face_frame
from magicedit.warping import SHAPES, backward_flow, displacement_fields, moved_by_muscles, parts_lips
from magicedit.warping.mouth import forward_places
from magicedit.warping.muscles import landmark_displacements

SIZE = 128
STILL = np.zeros((SIZE, SIZE, 2), np.float32)
CORNERS, LIPS = (61, 291), (0, 17)  # the latter the middle of the lips' outlines


@pytest.fixture(scope="module")
def landmarks(closed_mouth) -> np.ndarray:
    face = load_backend().detect(closed_mouth)[0]
    return align(face, SIZE).apply(face.landmarks).astype(np.float64)


def moved(flow: np.ndarray, landmarks: np.ndarray, ids: tuple[int, ...]) -> np.ndarray:
    """Movement of landmarks by a flow, (n, 2) interocular distances."""
    points = landmarks[list(ids)]
    places = np.mean([forward_places(flow, points, from_below=below) for below in (False, True)], 0)
    return (places - points) / face_frame(landmarks).interocular


def wanted(landmarks: np.ndarray, ids: tuple[int, ...], name: str, steps: float) -> np.ndarray:
    moves = landmark_displacements(landmarks, [name])[list(ids), 0]
    return moves * steps / 5 / face_frame(landmarks).interocular


@pytest.mark.parametrize(
    ("name", "ids"), [("AU14", CORNERS), ("AU18", CORNERS), ("AU24", LIPS), ("AU28", LIPS)]
)
def test_moved_by_muscles_takes_landmarks_where_the_table_says(landmarks, name, ids):
    found = moved(moved_by_muscles(STILL, landmarks, {name: 4.0}), landmarks, ids)
    asked = wanted(landmarks, ids, name, 4.0)
    assert np.linalg.norm(asked, axis=1).min() > 0.015
    assert np.abs(found - asked).max() < 0.35 * np.abs(asked).max()


def test_a_pucker_narrows_the_mouth_and_thickens_both_lips(landmarks):
    after = landmarks + landmark_displacements(landmarks, ["AU18"])[:, 0]
    (narrow, *thick), (wide, *thin) = (
        [np.linalg.norm(at[a] - at[b]) for a, b in (CORNERS, (0, 13), (14, 17))] for at in (after, landmarks)
    )
    assert 0.6 < narrow / wide < 0.78
    assert np.all(np.divide(thick, thin) > 1.15)


def test_a_dimpler_draws_the_corners_back_without_raising_them_as_a_smile_does(landmarks):
    aside, up = np.abs(wanted(landmarks, CORNERS, "AU14", 4.0)).mean(0)
    smile_aside, smile_up = np.abs(wanted(landmarks, CORNERS, "AU12", 4.0)).mean(0)
    assert up / aside < 0.5 < smile_up / smile_aside


def test_moved_by_muscles_adds_to_a_flow(landmarks):
    fields = displacement_fields(landmarks, SIZE, ["AU12"])
    smile = backward_flow(fields, np.array([4.0]), landmarks, SIZE)[0].astype(np.float32)
    both = moved(moved_by_muscles(smile, landmarks, {"AU18": 4.0}), landmarks, CORNERS)
    alone = moved(smile, landmarks, CORNERS)
    puckered = wanted(landmarks, CORNERS, "AU18", 4.0)
    assert np.abs(both - alone - puckered).max() < 0.025
    assert np.abs(both - alone).max() > 0.05


def test_moved_by_muscles_returns_the_flow_of_an_empty_request(landmarks):
    assert moved_by_muscles(STILL, landmarks, {"AU18": 0.0}) is STILL


def test_parts_lips_knows_which_geometric_controls_open_the_mouth():
    assert {name for name in GEOMETRIC if parts_lips({name: 3.0})} == {"AU16", "AU22", "AU27"}
    assert not parts_lips({"AU43L": 5.0, "gaze_yaw": 10.0, "head_pitch": 5.0, "AU10": 3.0})
    assert parts_lips({"an unknown control": 1.0})


def test_shapes_covers_every_geometric_action_unit_but_closed_eyes():
    units = {control.name for control in GEOMETRIC.controls if not control.is_angle}
    assert units - SHAPES.keys() == {"AU43"}
