"""The muscles' displacement fields and the warps made of them, on real landmarks."""

import cv2
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from magicedit.action_units import NAMES
from magicedit.faces import align, crop_face, load_backend
from magicedit.warping import (
    backward_flow,
    displacement_fields,
    embedded_mouths,
    parts_lips,
    warp_landmarks,
    warp_photo,
)
from magicedit.warping.muscles import LOWER_LIP_EDGE, UPPER_LIP_EDGE, _table, landmark_displacements
from magicedit.warping.warp import _combine, _move

SIZE, STRIDE = 128, 4
CORNER_LEFT, CORNER_RIGHT, INNER_BROW_LEFT, OUTER_BROW_LEFT, CHIN = 291, 61, 285, 276, 152
EYE_CORNERS = (33, 133, 362, 263)


@pytest.fixture(scope="module")
def face():
    """The astronaut's crop, her landmarks in it and their fields."""
    pixels = pytest.importorskip("skimage.data").astronaut()
    found = load_backend().detect(pixels)[0]
    alignment = align(found, SIZE)
    landmarks = alignment.apply(found.landmarks)
    return crop_face(pixels, alignment), landmarks, displacement_fields(landmarks, SIZE, NAMES, STRIDE)


def command(**intensities):
    vector = np.zeros(len(NAMES), np.float32)
    for name, value in intensities.items():
        vector[NAMES.index(name)] = value
    return vector


def iod(landmarks):
    return np.linalg.norm(landmarks[[33, 133]].mean(0) - landmarks[[362, 263]].mean(0))


def moved(face, index, **intensities):
    """Displacement of a landmark, (right, up) in the picture, in interocular distances."""
    _, landmarks, fields = face
    change = warp_landmarks(landmarks, fields, command(**intensities), STRIDE) - landmarks
    return change[index] * (1, -1) / iod(landmarks)


def test_zero_returns_the_same_bytes(face):
    pixels, landmarks, fields = face
    assert np.array_equal(warp_photo(pixels, fields, command(), landmarks), pixels)


def test_landmarks_move_linearly(face):
    _, landmarks, fields = face
    a, b = command(AU12=2.0), command(AU1=3.0, AU4=1.0)
    steps = [warp_landmarks(landmarks, fields, v, STRIDE) - landmarks for v in (a, b, a + b, 2 * a)]
    np.testing.assert_allclose(steps[0] + steps[1], steps[2], atol=1e-3)
    np.testing.assert_allclose(2 * steps[0], steps[3], atol=1e-3)


@pytest.mark.parametrize(
    ("name", "index", "right", "up"),
    [
        ("AU12", CORNER_LEFT, 1, 1),
        ("AU12", CORNER_RIGHT, -1, 1),
        ("AU15", CORNER_LEFT, 0, -1),
        ("AU20", CORNER_LEFT, 1, 0),
        ("AU1", INNER_BROW_LEFT, 0, 1),
        ("AU2", OUTER_BROW_LEFT, 0, 1),
        ("AU4", INNER_BROW_LEFT, -1, -1),
        ("AU17", CHIN, 0, 1),
        ("AU26", CHIN, 0, -1),
    ],
)
def test_muscles_pull_as_facs_says(face, name, index, right, up):
    """The subject's left is on the picture's right; 0: that direction is not characteristic."""
    across, upward = moved(face, index, **{name: 5.0})
    for value, sign in ((across, right), (upward, up)):
        assert sign == 0 or sign * value > 0.02


def test_eye_corners_stay(face):
    for name in NAMES:
        if name not in ("AU5", "AU6", "AU9"):
            assert np.linalg.norm([moved(face, i, **{name: 5.0}) for i in EYE_CORNERS], axis=1).max() < 0.03


def test_mirrored_faces_get_mirrored_fields(face):
    _, landmarks, fields = face
    places = [
        _table()["neutral"] + _table()[shape] for shape in ("jawOpen", "eyeBlink")
    ]  # touching lips apart
    distance = sum(np.linalg.norm(p[:, None] * (-1, 1, 1) - p[None], axis=-1) for p in places)
    mirrored = landmarks[linear_sum_assignment(distance)[1]].copy()
    mirrored[:, 0] = SIZE - 1 - mirrored[:, 0]
    expected = fields[:, :, ::-1] * np.float32([-1, 1, -1, 1])
    got = displacement_fields(mirrored, SIZE, NAMES, STRIDE)
    assert np.abs(got - expected).max() < 0.05  # px


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("intensity", [5.0, -3.0])
def test_nothing_folds_over(face, name, intensity):
    """The backward map keeps orientation everywhere but along the lips, which part."""
    _, landmarks, fields = face
    flow, _ = backward_flow(fields, command(**{name: intensity}), landmarks, SIZE)
    dx, dy = np.gradient(flow, axis=1), np.gradient(flow, axis=0)
    jacobian = (1 + dx[..., 0]) * (1 + dy[..., 1]) - dx[..., 1] * dy[..., 0]
    lips = np.concatenate([landmarks[list(UPPER_LIP_EDGE)], landmarks[list(LOWER_LIP_EDGE)]])
    moved_lips = warp_landmarks(landmarks, fields, command(**{name: intensity}), STRIDE)
    lips = np.concatenate([lips, moved_lips[list(UPPER_LIP_EDGE)], moved_lips[list(LOWER_LIP_EDGE)]])
    (x0, y0), (x1, y1) = np.floor(lips.min(0)).astype(int) - 4, np.ceil(lips.max(0)).astype(int) + 5
    outside = np.ones((SIZE, SIZE), bool)
    outside[y0:y1, x0:x1] = False
    assert jacobian[outside].min() > 0.1


@pytest.mark.parametrize("request_", [{"AU1": 5.0, "AU2": 5.0}, {"AU9": 5.0}])
def test_the_flow_leads_back_where_skin_came_from(face, request_):
    """Also where lids are stretched below rising brows: a flow that did not lead back smeared the brows."""
    _, landmarks, fields = face
    flow, _ = backward_flow(fields, command(**request_), landmarks, SIZE)
    here = np.stack(np.meshgrid(*[np.arange(SIZE, dtype=np.float32)] * 2), -1)
    upper_sheet = _combine(fields, command(**request_))[..., :2]
    again = _move((here + flow).reshape(-1, 2), upper_sheet, STRIDE).reshape(SIZE, SIZE, 2)
    error = np.linalg.norm(again - here, axis=-1)[: int(landmarks[2, 1])]  # px, above the mouth
    assert error.max() < 1.0


def test_the_pictures_border_stays(face):
    _, landmarks, fields = face
    for name in NAMES:
        flow, _ = backward_flow(fields, command(**{name: 5.0}), landmarks, SIZE)
        border = np.concatenate([flow[0], flow[-1], flow[:, 0], flow[:, -1]])
        assert np.abs(border).max() < 0.75  # px


def test_the_flow_is_what_the_warp_reads(face):
    pixels, landmarks, fields = face
    vector = command(AU12=-3.0, AU1=4.0)
    flow, opened = backward_flow(fields, vector, landmarks, SIZE)
    ys, xs = np.mgrid[:SIZE, :SIZE].astype(np.float32)
    read = cv2.remap(
        pixels, xs + flow[..., 0], ys + flow[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
    )
    warped = warp_photo(pixels, fields, vector, landmarks)
    assert np.abs(warped.astype(int) - read)[opened == 0].max() <= 1
    assert np.abs(warped.astype(int) - pixels).max() > 50


@pytest.mark.parametrize(
    "intensities", [{"AU26": 5.0}, {"AU25": 5.0}, {"AU4": 1.9, "AU9": 4.4, "AU12": 2.2, "AU26": 3.1}]
)
def test_an_opening_mouth_is_painted_between_the_lips_only(face, intensities):
    """The opening used to run on across the cheeks to the picture's border."""
    _, landmarks, fields = face
    vector = command(**intensities)
    _, opened = backward_flow(fields, vector, landmarks, SIZE)
    after = warp_landmarks(landmarks, fields, vector, STRIDE)
    lips = np.concatenate([after[list(UPPER_LIP_EDGE)], after[list(LOWER_LIP_EDGE)]])
    columns = np.flatnonzero((opened > 0.05).any(0))
    assert len(columns) > 5
    assert columns.min() >= lips[:, 0].min() - 2
    assert columns.max() <= lips[:, 0].max() + 2


def test_wrong_shapes_are_named(face):
    pixels, landmarks, fields = face
    with pytest.raises(ValueError, match="au_vector"):
        warp_photo(pixels, fields, np.ones(3, np.float32), landmarks)
    with pytest.raises(ValueError, match="pixels"):
        warp_photo(pixels[:, :50], fields, command(AU1=1.0), landmarks)
    with pytest.raises(ValueError, match="fields"):
        warp_photo(pixels, fields[..., :2], command(AU1=1.0), landmarks)


def test_a_mouth_changes_nothing_outside_the_opening(face):
    pixels, landmarks, fields = face
    vector = command(AU25=5.0, AU12=-4.0)
    _, opened = backward_flow(fields, vector, landmarks, SIZE)
    dark = warp_photo(pixels, fields, vector, landmarks)
    toothed = warp_photo(pixels, fields, vector, landmarks, embedded_mouths()[0])
    assert np.array_equal(dark[opened == 0], toothed[opened == 0])
    difference = np.abs(toothed.astype(int) - dark).max(-1)
    assert difference[opened > 0.9].max() > 60


def test_a_smile_curves_and_lifts_the_cheeks(face):
    """In real smiles the middle of the lips rises 0.40 of the corners' way (79 people).

    A whole mouth that rises is no smile.
    """
    corner, middle, cheek = (moved(face, i, AU12=5.0)[1] for i in (CORNER_LEFT, 13, 280))
    assert 0.1 < corner < 0.2
    assert 0.2 < middle / corner < 0.5
    assert cheek > 0.04


@pytest.mark.parametrize("name", ["AU1", "AU2", "AU4"])
def test_brows_keep_their_thickness(face, name):
    _, landmarks, fields = face
    after = warp_landmarks(landmarks, fields, command(**{name: 3.0}), STRIDE)
    rows = ((336, 285, 441), (334, 282, 443), (293, 283, 444), (107, 55, 221), (105, 52, 223), (63, 53, 224))
    for upper, lower, hairs in rows:
        for edge, limit in ((lower, 0.1), (hairs, 0.18)):
            before, now = (np.linalg.norm(points[upper] - points[edge]) for points in (landmarks, after))
            assert 1 - limit < now / before < 1 + limit


def test_only_units_that_part_the_lips_part_them(face):
    for name in NAMES:
        gap = moved(face, 13, **{name: 5.0})[1] - moved(face, 14, **{name: 5.0})[1]
        assert (gap > 0.1) == parts_lips({name: 1.0}) == (name in ("AU25", "AU26"))
        assert gap < 0.03 or parts_lips({name: 1.0})
    assert not parts_lips({"AU25": -2.0, "AU12L": 3.0})
    assert parts_lips({"AU27": 1.0})  # a unit that the table does not know might


def test_a_turned_head_moves_as_it_is_seen(face):
    """A head turned by 40 degrees shows sideways movements shortened, and upward ones as they are."""
    _, landmarks, _ = face
    squeezed = landmarks * np.float32([np.cos(np.radians(40)), 1])
    corner = NAMES.index("AU20")
    straight, turned = (
        landmark_displacements(points)[CORNER_LEFT, corner] for points in (landmarks, squeezed)
    )
    assert turned[0] / straight[0] == pytest.approx(np.cos(np.radians(40)), abs=0.02)
    assert turned[1] == pytest.approx(straight[1], abs=0.1)
