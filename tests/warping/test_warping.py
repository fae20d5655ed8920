"""The muscles' displacement fields and the warps made of them, on real landmarks."""

import cv2
import numpy as np
import pytest

from magicedit.action_units import NAMES
from magicedit.faces import align, crop_face, load_backend
from magicedit.warping import Donor, backward_flow, displacement_fields, warp_landmarks, warp_photo
from magicedit.warping.mouth import inside_colour, paint_inside
from magicedit.warping.muscles import LOWER_LIP_EDGE, UPPER_LIP_EDGE, mirror_ids

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
    pairs = mirror_ids()
    swap = np.array([pairs.get(i, i) for i in range(len(landmarks))])
    mirrored = landmarks[swap].copy()
    mirrored[:, 0] = SIZE - 1 - mirrored[:, 0]
    expected = fields[:, :, ::-1] * np.float32([-1, 1, -1, 1])
    got = displacement_fields(mirrored, SIZE, NAMES, STRIDE)
    # Landmarks without a mirror partner in the table stand where they stood: a tenth of a pixel of slack
    assert np.abs(got - expected).max() < 0.35
    assert np.abs(got - expected).mean() < 0.02


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


def test_an_opened_mouth_shows_the_donors_teeth(face):
    """A laughing face opened as far as it is shows its own teeth where they were; the rest is dark."""
    pixels, landmarks, _ = face  # the astronaut laughs
    rows = slice(60, 120)
    edges = landmarks[list(UPPER_LIP_EDGE)], landmarks[list(LOWER_LIP_EDGE)]
    inside = paint_inside(pixels, landmarks, Donor(pixels, landmarks), edges, rows)
    middle = (landmarks[13] + landmarks[14]) / 2
    x, y = np.rint(middle).astype(int)
    assert rows.start < y < rows.stop
    np.testing.assert_allclose(inside[y - rows.start, x], pixels[y, x], atol=3)
    assert inside[y - rows.start, x].mean() > 150
    np.testing.assert_allclose(inside[0, 0], inside_colour(pixels, landmarks), atol=1)
    lowered = tuple(edge + np.float32([0, 10]) for edge in edges)
    lower = paint_inside(pixels, landmarks, Donor(pixels, landmarks), lowered, rows)
    assert np.abs(lower - inside).max() > 50  # teeth follow the lip most of the way


def test_a_donor_changes_nothing_outside_the_mouth(face):
    pixels, landmarks, fields = face
    vector = command(AU26=5.0, AU12=-4.0)
    _, opened = backward_flow(fields, vector, landmarks, SIZE)
    dark = warp_photo(pixels, fields, vector, landmarks)
    wide_open = landmarks.copy()
    wide_open[list(LOWER_LIP_EDGE[1:-1])] += np.float32([0, 30])
    donor = Donor(np.full_like(pixels, 255), wide_open)
    toothed = warp_photo(pixels, fields, vector, landmarks, donor)
    assert np.array_equal(dark[opened == 0], toothed[opened == 0])
    assert toothed[opened > 0.9].mean() > dark[opened > 0.9].mean() + 20
