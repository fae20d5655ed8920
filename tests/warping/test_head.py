"""A turned head has the pose that was asked for; nothing folds, smears or changes beyond it."""

import cv2
import numpy as np
import pytest

from magicedit.faces import align, crop_face, identity_distance, load_backend
from magicedit.faces.backends import dlib
from magicedit.faces.glasses import glasses_presence, glasses_score
from magicedit.imaging import open_photo
from magicedit.warping.head import (
    _DAMPING,
    _INVERSIONS,
    AXES,
    _movement,
    head_limits,
    head_region,
    turn_head,
)
from magicedit.warping.warp import inverse_of

ANGLES = ("yaw", "pitch", "roll")
NOSE_ROOT, TEMPLE = 168, 447  # landmarks between the eyes and at the outer rim of glasses


def found(pixels):
    return load_backend().detect(pixels)[0]


def pose(face):
    return np.array([getattr(face.pose, angle) for angle in ANGLES])


@pytest.fixture(scope="module")
def face(closed_mouth):
    return found(closed_mouth)


@pytest.fixture(scope="module")
def aside(shared):
    """A portrait whose head is turned by some 24 degrees to its right, and its face."""
    path = shared / "faces" / "synthetic" / "validation" / "schnell_0023604.jpg"
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    pixels = open_photo(path).pixels
    return pixels, found(pixels)


def coordinates(shape, axis, levels):
    """A picture whose brightness rises along an axis by so many levels a px, up to 255."""
    ramp = np.clip(np.arange(shape[1 - axis]) * levels, 0, 255).astype(np.uint8)
    ramp = ramp[None, :] if axis == 0 else ramp[:, None]
    return np.ascontiguousarray(np.broadcast_to(ramp[..., None], (*shape[:2], 3)))


@pytest.mark.parametrize("request_", [{}, {"head_yaw": 0.0}, {"AU12": 3.0, "gaze_yaw": 10.0}])
def test_requests_without_a_turn_return_the_photograph_itself(closed_mouth, face, request_):
    assert turn_head(closed_mouth, face.landmarks, request_) is closed_mouth


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("degrees", [10.0, -10.0])
def test_the_measured_pose_changes_as_asked(closed_mouth, face, axis, degrees):
    turned = found(turn_head(closed_mouth, face.landmarks, {AXES[axis]: degrees}))
    change = (pose(turned) - pose(face)) * np.sign(degrees)
    assert 7 < change[axis] < 13
    assert np.abs(np.delete(change, axis)).max() < 3


def test_axes_combine(closed_mouth, face):
    asked = np.array([8.0, -6.0, 9.0])
    turned = found(turn_head(closed_mouth, face.landmarks, dict(zip(AXES, asked, strict=True))))
    assert np.abs(pose(turned) - pose(face) - asked).max() < 4


def test_outside_its_region_every_byte_stays(closed_mouth, face):
    margin = round(0.8 * closed_mouth.shape[1])
    wide = cv2.copyMakeBorder(closed_mouth, 0, 0, margin, margin, cv2.BORDER_REFLECT_101)
    landmarks = face.landmarks + np.float32((margin, 0))
    before, region = wide.copy(), head_region(landmarks, wide.shape)
    for request in ({"head_yaw": 20.0, "head_pitch": 15.0}, {"head_roll": -20.0}):
        turned = turn_head(wide, landmarks, request)
        assert np.array_equal(turned[~region], wide[~region])
        assert (turned[region] != wide[region]).mean() > 0.3
    assert np.array_equal(wide, before)
    assert 0.2 < region.mean() < 0.9


@pytest.mark.parametrize(
    ("axis", "side", "degrees"), [(0, 0, 15.0), (0, 1, -15.0), (1, 0, -15.0), (1, 1, 15.0)]
)
def test_no_row_of_the_border_is_smeared(closed_mouth, face, axis, side, degrees):
    """A head that turns away from a border at its eyes leaves a picture whose content still moves there."""
    low, high = face.landmarks.min(0), face.landmarks.max(0)
    cut = round(float(low[axis] + (0.15 if side == 0 else 0.85) * (high - low)[axis]))
    window = slice(cut, None) if side == 0 else slice(None, cut)
    part = closed_mouth[:, window] if axis == 0 else closed_mouth[window]
    landmarks = face.landmarks - (np.eye(2, dtype=np.float32)[axis] * cut if side == 0 else 0)
    ramp = coordinates(part.shape, axis, 2)
    if side == 1:  # the ramp rises from the other border
        ramp = np.ascontiguousarray(ramp[:, ::-1] if axis == 0 else ramp[::-1])
    read = turn_head(ramp, landmarks, {AXES[axis]: degrees}).astype(int)[..., 0]
    assert (read != ramp[..., 0]).any()
    read = read if axis == 0 else read.T
    read = read if side == 0 else read[:, ::-1]
    assert np.diff(read[:, :61:6], axis=1).min() > 0


@pytest.mark.parametrize("degrees", [20.0, -20.0])
def test_a_head_that_is_turned_already_neither_folds_nor_goes_too_far(aside, degrees):
    pixels, face = aside
    landmarks = face.landmarks.astype(np.float64)
    moves, _, step = _movement(landmarks, pixels.shape, {"head_yaw": degrees})
    flow = inverse_of(moves, step, _INVERSIONS, _DAMPING)
    x, y = np.meshgrid(*(np.arange(count, dtype=np.float32) for count in flow.shape[1::-1]))
    there = cv2.remap(moves, x + flow[..., 0] / step, y + flow[..., 1] / step, cv2.INTER_LINEAR)
    inner = np.s_[2:-2, 2:-2]
    assert np.abs(flow + there)[inner].max() < 0.1 * step  # the movement has an inverse
    turned = found(turn_head(pixels, face.landmarks, {"head_yaw": degrees}))
    assert abs(turned.pose.yaw) < 37
    assert 3 < (turned.pose.yaw - face.pose.yaw) * np.sign(degrees) < 18


def flow_of(landmarks, shape, request):
    """The flow (rows, columns, 2) px of every fourth pixel of a picture of this shape."""
    moves, low, step = _movement(landmarks, shape, request)
    columns, rows = (np.arange(0, count, 4) for count in shape[1::-1])
    at = ((np.stack(np.meshgrid(columns, rows), -1) - low) / step).astype(np.float32)
    flow = inverse_of(moves, step, _INVERSIONS, _DAMPING)
    return cv2.remap(flow, at, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


@pytest.mark.parametrize("request_", [{"head_yaw": 10.0}, {"head_yaw": -10.0}, {"head_pitch": 10.0}])
def test_trembling_landmarks_move_the_picture_no_farther_than_themselves(closed_mouth, aside, request_):
    """As those of a video's frames do: no decision about places or angles may switch with them."""
    random = np.random.default_rng(0)
    for pixels, face in ((closed_mouth, found(closed_mouth)), aside):
        landmarks = face.landmarks.astype(np.float64)
        trembling = [landmarks + random.normal(0, 0.3, landmarks.shape) for _ in range(6)]
        flows = np.stack([flow_of(places, pixels.shape, request_) for places in trembling])
        assert np.linalg.norm(flows - flows.mean(0), axis=-1).max() < 0.5


@pytest.mark.parametrize("axis", AXES[:2])
def test_a_slowly_rising_angle_moves_the_picture_steadily(aside, axis):
    pixels, face = aside
    landmarks = face.landmarks.astype(np.float64)
    flows = np.stack([flow_of(landmarks, pixels.shape, {axis: a}) for a in np.arange(0.5, 12.1, 0.5)])
    steps = np.diff(flows, axis=0)
    assert np.linalg.norm(np.diff(steps, axis=0), axis=-1).max() < 1
    assert 1 < np.linalg.norm(steps, axis=-1).max() < 4


@pytest.mark.parametrize(("degrees", "corner", "contour"), [(10.0, 33, 234), (-10.0, 263, 454)])
def test_the_near_cheek_hardly_widens_and_the_far_one_gets_narrower(
    closed_mouth, face, degrees, corner, contour
):
    """The cheek between an eye's outer corner and the ear, of which the photograph shows no more."""
    landmarks = face.landmarks.astype(np.float64)

    def widening(corner, contour, degrees):
        moves, low, step = _movement(landmarks, closed_mouth.shape, {"head_yaw": degrees})
        places = landmarks[[corner, contour]]
        at = ((places - low) / step).astype(np.float32)
        moved = places + cv2.remap(moves, at[None, :, 0], at[None, :, 1], cv2.INTER_LINEAR)[0]
        return abs(np.diff(moved[:, 0])[0] / np.diff(places[:, 0])[0])

    assert 1 < widening(corner, contour, degrees) < 1.33
    assert widening(corner, contour, -degrees) < 0.85


def test_limits_follow_the_pose(face, aside):
    straight, turned = head_limits(face.landmarks), head_limits(aside[1].landmarks)
    assert straight["head_yaw"] == (-20, 20)
    assert -12 < turned["head_yaw"][0] < 0
    assert 8 < turned["head_yaw"][1] < 20


def test_glasses_nod_as_one_piece(closed_mouth, with_glasses, face):
    landmarks = face.landmarks.astype(np.float64)
    alignment = align(face, 128)
    found = [
        glasses_presence(glasses_score(crop_face(pixels, alignment), alignment.apply(landmarks), face.scheme))
        for pixels in (closed_mouth, with_glasses)
    ]
    assert found[0] == 0
    assert found[1] > 0.5

    def behind(glasses):
        """How much less of the nod the temple makes than the root of the nose."""
        moves, low, step = _movement(landmarks, closed_mouth.shape, {"head_pitch": 12.0}, glasses)
        at = ((landmarks[[NOSE_ROOT, TEMPLE]] - low) / step).astype(np.float32)
        nose, temple = cv2.remap(moves, at[None, :, 0], at[None, :, 1], cv2.INTER_LINEAR)[0, :, 1]
        return 1 - temple / nose

    assert behind(1.0) < 0.6 * behind(0.0)


def test_the_turn_does_not_depend_on_the_resolution(closed_mouth, face):
    request = {"head_yaw": 10.0, "head_roll": 5.0}
    once = turn_head(closed_mouth, face.landmarks, request)
    double = cv2.resize(closed_mouth, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)
    twice = turn_head(double, (face.landmarks + 0.5) * 2 - 0.5, request)
    halved = cv2.resize(twice, closed_mouth.shape[1::-1], interpolation=cv2.INTER_AREA)
    assert np.abs(halved.astype(int) - once).mean() < 2
    assert np.abs(once.astype(int) - closed_mouth).mean() > 4


@pytest.mark.skipif(not dlib.available(), reason="dlib's face descriptors are not installed")
@pytest.mark.parametrize("axis", AXES)
def test_the_person_stays_the_same(london, axis):
    pixels = london("036", "neutral")
    face = found(pixels)
    turned = turn_head(pixels, face.landmarks, {axis: 10.0})
    assert identity_distance(pixels, face, turned, found(turned)) < 0.35


@pytest.mark.parametrize("offset", [(-3.0, 0.0), (0.0, 3.0), (9.0, 9.0)])
def test_a_head_beyond_the_picture_changes_nothing(closed_mouth, face, offset):
    landmarks = face.landmarks + np.float32(offset) * closed_mouth.shape[1]
    assert turn_head(closed_mouth, landmarks, {"head_yaw": 10.0}) is closed_mouth
    assert not head_region(landmarks, closed_mouth.shape).any()


def test_landmarks_of_another_scheme_are_refused(closed_mouth):
    with pytest.raises(ValueError, match="478"):
        turn_head(closed_mouth, np.zeros((68, 2)), {"head_yaw": 5.0})


@pytest.mark.parametrize("angle", [1e-9, -1e-4, 0.02])
def test_turn_head_of_hardly_any_angle_ends_and_hardly_moves(closed_mouth, angle):
    landmarks = load_backend().detect(closed_mouth)[0].landmarks
    turned = turn_head(closed_mouth, landmarks, {"head_yaw": angle, "head_roll": angle})
    assert (turned is closed_mouth) == (abs(angle) < 0.01)
    assert np.abs(turned.astype(int) - closed_mouth).mean() < 0.2
