"""The face arrives where the muscles' table takes it, whatever a model's flow does there."""

import numpy as np
import pytest

from magicedit.action_units import NAMES, to_vector
from magicedit.faces import align, load_backend
from magicedit.faces.frame import face_frame
from magicedit.warping import backward_flow, displacement_fields, steer
from magicedit.warping.mouth import FLESH, forward_places, part_lips
from magicedit.warping.muscles import landmark_displacements, smile_displacements
from magicedit.warping.steering import MOUTH_CORNERS

SIZE = 128
NOTHING = np.zeros((SIZE, SIZE, 2), np.float32)


@pytest.fixture(scope="module")
def landmarks(closed_mouth) -> np.ndarray:
    face = load_backend().detect(closed_mouth)[0]
    return align(face, SIZE).apply(face.landmarks).astype(np.float64)


def moved(flow: np.ndarray, landmarks: np.ndarray, ids=MOUTH_CORNERS) -> np.ndarray:
    """Movement of landmarks by a flow, (n, 2) interocular distances."""
    points = landmarks[list(ids)]
    places = np.mean([forward_places(flow, points, from_below=below) for below in (False, True)], 0)
    return (places - points) / face_frame(landmarks).interocular


def wanted(landmarks: np.ndarray, ids=MOUTH_CORNERS, **request: float) -> np.ndarray:
    moves = landmark_displacements(landmarks, list(request))
    steps = np.array([*request.values()]) / 5
    return np.einsum("nac,a->nc", moves[list(ids)], steps) / face_frame(landmarks).interocular


@pytest.mark.parametrize("request_", [{"AU12": -2.0}, {"AU15": 3.0}, {"AU20": -2.0}])
@pytest.mark.parametrize("share", [0.0, 0.6, 1.3])
def test_steered_corners_arrive_where_the_table_says(landmarks, request_, share):
    fields = displacement_fields(landmarks, SIZE)
    vector = to_vector({name: share * steps for name, steps in request_.items()}, NAMES)
    flow = backward_flow(fields, vector, landmarks, SIZE)[0].astype(np.float32)
    missed = np.abs(moved(flow, landmarks) - wanted(landmarks, **request_)).max()
    steered = steer(flow, landmarks, request_)
    error = np.abs(moved(steered, landmarks) - wanted(landmarks, **request_)).max()
    assert error < 0.015
    assert error < 0.4 * missed
    middle = (13, 14, 152)  # lips and chin
    assert np.abs(moved(steered, landmarks, middle) - moved(flow, landmarks, middle)).max() < 0.004


@pytest.mark.parametrize("share", [0.0, 0.6, 1.3])
@pytest.mark.parametrize("also", [{}, {"AU6": 2.0}, {"AU15": -1.0}])
def test_lips_that_smile_go_where_those_of_photographs_do(landmarks, share, also):
    request = {"AU12": 3.0} | also
    vector = to_vector({name: share * steps for name, steps in request.items()}, NAMES)
    fields = displacement_fields(landmarks, SIZE)
    flow = backward_flow(fields, vector, landmarks, SIZE)[0].astype(np.float32)
    ids = (*MOUTH_CORNERS, 0, 17, 40, 270)  # the middle of both lips' outlines, and beside it
    smile = smile_displacements(landmarks)[list(ids), 0] * 3 / 5 / face_frame(landmarks).interocular
    smile += wanted(landmarks, ids, **{"AU12": 0.0} | also)
    missed, error = (
        np.abs(moved(f, landmarks, ids) - smile).max() for f in (flow, steer(flow, landmarks, request))
    )
    assert error < 0.02
    assert error < 0.6 * missed


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_smiling_lips_part_as_far_as_asked_where_a_network_falls_short(landmarks, share):
    request = {"AU12": 4.0, "AU25": 2.0}
    fields = displacement_fields(landmarks, SIZE)
    vector = to_vector(request | {"AU25": share * request["AU25"]})
    flow = steer(backward_flow(fields, vector, landmarks, SIZE)[0].astype(np.float32), landmarks, request)
    upper, lower = ([landmarks[edge] + FLESH * (landmarks[outline] - landmarks[edge])]
                    for edge, outline in ((13, 0), (14, 17)))  # fmt: skip
    moves = [(forward_places(flow, np.array(lip), from_below=below) - lip)[0, 1]
             for lip, below in ((upper, False), (lower, True))]  # fmt: skip
    parted = (moves[1] - moves[0]) / face_frame(landmarks).interocular
    rise, drop = wanted(landmarks, (13, 14), AU25=2.0)[:, 1]
    assert 0.8 < parted / (drop - 0.1 * rise) < 1.4


LIDS_AND_BROWS = (159, 386, 145, 374, 105, 334, 55, 285)


@pytest.mark.parametrize("request_", [{"AU5": 3.0}, {"AU6": 4.0}, {"AU1": 3.0, "AU4": -2.0}])
@pytest.mark.parametrize("share", [0.5, 1.3])
def test_the_face_above_the_mouth_arrives_where_the_table_says(landmarks, request_, share):
    fields = displacement_fields(landmarks, SIZE)
    vector = to_vector({name: share * steps for name, steps in request_.items()}, NAMES)
    flow = backward_flow(fields, vector, landmarks, SIZE)[0].astype(np.float32)
    missed, error = (
        np.abs(moved(f, landmarks, LIDS_AND_BROWS) - wanted(landmarks, LIDS_AND_BROWS, **request_)).max()
        for f in (flow, steer(flow, landmarks, request_))
    )
    assert error < 0.03
    assert error < 0.75 * missed


def test_a_wrinkled_nose_is_steered_in_part_and_not_at_the_nose(landmarks):
    fields = displacement_fields(landmarks, SIZE)
    flow = backward_flow(fields, to_vector({"AU9": 1.5}), landmarks, SIZE)[0].astype(np.float32)
    steered = steer(flow, landmarks, {"AU9": 3.0})
    brows, tip = (55, 285), (1, 4)
    found, before = (moved(f, landmarks, brows)[:, 1] for f in (steered, flow))
    full = wanted(landmarks, brows, AU9=3.0)[:, 1]
    assert (before < 0.95 * found).all()
    assert (found < 0.9 * full).all()
    assert np.abs(moved(steered, landmarks, tip) - moved(flow, landmarks, tip)).max() < 0.01


def test_what_should_rest_is_brought_back(landmarks):
    """Raised brows that drag the lower lids along let them go."""
    fields = displacement_fields(landmarks, SIZE)
    flow = backward_flow(fields, to_vector({"AU1": 3.0, "AU6": 2.0}), landmarks, SIZE)[0].astype(np.float32)
    lids = (145, 374, 23, 253)
    before, after = (moved(f, landmarks, lids)[:, 1] for f in (flow, steer(flow, landmarks, {"AU1": 3.0})))
    resting = wanted(landmarks, lids, AU1=3.0)[:, 1]
    assert (np.abs(after - resting) < 0.4 * np.abs(before - resting)).all()


def test_steering_folds_nothing_above_the_mouth(landmarks):
    fields = displacement_fields(landmarks, SIZE)
    for request_ in ({"AU9": 5.0}, {"AU5": 5.0, "AU1": 5.0}, {"AU6": 5.0, "AU4": 5.0}):
        vector = to_vector({name: 0.6 * steps for name, steps in request_.items()}, NAMES)
        flow = backward_flow(fields, vector, landmarks, SIZE)[0].astype(np.float32)
        flow = steer(flow, landmarks, request_)[: int(landmarks[2, 1])]
        down, across = (np.stack(np.gradient(flow[..., k]), -1) for k in (1, 0))
        stretched = (1 + across[..., 1]) * (1 + down[..., 0]) - across[..., 0] * down[..., 1]
        assert stretched.min() > 0


def test_of_parted_lips_half_of_the_height_is_steered(landmarks):
    found = moved(steer(NOTHING, landmarks, {"AU15": 4.0, "AU25": 3.0}), landmarks)
    assert np.allclose(found[:, 1], wanted(landmarks, AU15=4.0, AU25=3.0)[:, 1] / 2, atol=0.01)
    assert np.abs(found[:, 0]).max() < 0.005
    dropped = moved(steer(NOTHING, landmarks, {"AU12": 4.0, "AU26": 3.0}), landmarks)
    assert np.abs(dropped[:, 0]).max() < 0.005


@pytest.mark.parametrize(("request_", "least", "most"), [
    ({"AU25": 3.0}, -0.01, 0.035),
    ({"AU25": 3.0, "AU12": 4.0}, 0.03, 0.11),
])  # fmt: skip
def test_lips_part_by_the_lower_one(landmarks, request_, least, most):
    """Between the corners the upper lip rises by a tenth of AU25's share of the table; the lower one drops
    as far as it would."""
    flow = backward_flow(displacement_fields(landmarks, SIZE), to_vector(request_, NAMES), landmarks, SIZE)[0]
    flow = flow.astype(np.float32)
    before, after = (part_lips(f, landmarks) for f in (flow, steer(flow, landmarks, request_)))
    iod = before.interocular
    rises = (
        (before.source_upper - before.upper)[3:8, 1] / iod,
        (after.source_upper - after.upper)[3:8, 1] / iod,
    )
    assert (rises[1] > least).all()
    assert (rises[1] < most).all()
    assert (rises[0] - rises[1] > 0.02).all()
    assert np.abs(after.lower - before.lower)[3:8, 1].max() < 0.03 * iod
    nose = moved(flow, landmarks, (1, 2)), moved(steer(flow, landmarks, request_), landmarks, (1, 2))
    assert np.abs(nose[0] - nose[1]).max() < 0.01


def test_a_lopsided_jaw_drop_becomes_even(landmarks):
    flow = backward_flow(displacement_fields(landmarks, SIZE), to_vector({"AU26": 4.0}), landmarks, SIZE)[0]
    right = np.clip((landmarks[13, 0] - np.arange(SIZE)) / 20, 0, 1)[None, :, None]
    flow = (flow * (1 - 0.8 * right)).astype(np.float32)  # a fifth as far on the subject's right
    before, after = (
        part_lips(f, landmarks).upper[[0, -1], 1] - part_lips(f, landmarks).source_upper[[0, -1], 1]
        for f in (flow, steer(flow, landmarks, {"AU26": 4.0}))
    )
    assert abs(before[0] - before[1]) > 2  # px
    assert abs(after[0] - after[1]) < 0.5


def test_a_dropped_jaw_hangs_its_corners_below_the_table(landmarks):
    for steps, least, most in ((4.0, 0.02, 0.05), (-2.0, -0.01, 0.01)):  # a jaw that rises hangs nothing
        found = moved(steer(NOTHING, landmarks, {"AU26": steps}), landmarks)
        below = (found - wanted(landmarks, AU26=steps))[:, 1]
        assert (least < below).all()
        assert (below < most).all()


@pytest.mark.parametrize("request_", [{}, {"AU12": 0.0}, {"happiness": 3.0}, {"AU12": 3.0, "AU99": 1.0}])
def test_other_requests_keep_the_flow(landmarks, request_):
    assert steer(NOTHING, landmarks, request_) is NOTHING
