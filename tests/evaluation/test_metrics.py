"""Every metric against numbers by hand, or another implementation."""

import importlib.util

import cv2
import numpy as np
import pytest

from magicedit.errors import MissingDependencyError
from magicedit.evaluation.metrics.au_error import achieved_share, au_error, possible_change
from magicedit.evaluation.metrics.background import background_rmse
from magicedit.evaluation.metrics.control import crosstalk, response, side_leak
from magicedit.evaluation.metrics.head_pose import pose_rmse_degrees, pose_rmse_matrix, rotation_matrix
from magicedit.evaluation.metrics.identity import descriptor_distance, embedding_cosine
from magicedit.evaluation.metrics.intervals import bootstrap
from magicedit.evaluation.metrics.perceptual import load_fid, load_lpips
from magicedit.evaluation.metrics.structure import ssim
from magicedit.faces import Pose
from magicedit.faces.measure import pose_of

# --- Action units ---


def test_a_request_is_cut_to_the_scale():
    before = {"AU1": 1.0, "AU12": 4.0, "AU25": 2.5}
    asked = {"AU1": -4.0, "AU12": 3.0, "AU25": 2.0, "AU2": -2.0, "AU4": 9.0}
    assert possible_change(asked, before) == {"AU1": -1.0, "AU12": 1.0, "AU25": 2.0, "AU2": 0.0, "AU4": 5.0}


def test_au_error_by_hand():
    """AU12 could rise by 1 and rose by 0.5; AU1 and AU4 were to stay and moved by 0.2 and -0.1."""
    error = au_error(
        {"AU12": 3.0},
        {"AU1": 0.2, "AU4": -0.1, "AU12": 0.5, "AU25": 4.0},
        {"AU1": 1.0, "AU12": 4.0},
        ("AU1", "AU4", "AU12"),
    )
    assert error.mse == pytest.approx((0.04 + 0.01 + 0.25) / 3)
    assert error.mae == pytest.approx((0.2 + 0.1 + 0.5) / 3)
    assert error.asked_mse == pytest.approx(0.25)


def test_au_error_of_what_was_not_measured():
    error = au_error({"AU4": 2.0, "AU12": 0.0}, {"AU12": 0.5}, {}, ("AU4", "AU12"))
    assert error == (0.25, 0.5, None)  # a zero asks for nothing, and AU4 is not known
    with pytest.raises(ValueError, match="AU4"):
        au_error({"AU4": 2.0}, {"AU12": 0.5}, {}, ("AU4",))


@pytest.mark.parametrize(
    ("changed", "share"),
    [
        ({"AU4": 2.0, "AU12": 1.0}, 1.0),
        ({"AU4": 1.0, "AU12": 0.5, "AU1": 3.0}, 0.5),
        ({"AU4": 0.0, "AU12": 0.0}, 0.0),
        ({"AU4": -2.0, "AU12": -1.0}, -1.0),
        ({"AU4": -1.0, "AU12": 2.0}, 0.0),  # across what was asked
        ({"AU12": 0.7}, 0.7),
    ],
)
def test_achieved_share_by_hand(changed, share):
    """AU4 +2, and AU12 by the one step there is."""
    assert achieved_share({"AU4": 2.0, "AU12": 3.0}, changed, {"AU12": 4.0}) == pytest.approx(share)


def test_nothing_possible_has_no_share():
    assert achieved_share({"AU12": 3.0}, {"AU12": 0.0}, {"AU12": 5.0}) is None
    assert achieved_share({}, {"AU12": 1.0}, {}) is None


# --- Identity, background, head ---


def test_descriptor_distance_by_hand():
    a, b = np.zeros(128), np.zeros(128)
    a[:2], b[:3] = (1, 2), (1, 0, 1.5)
    assert descriptor_distance(a, b) == descriptor_distance(b, a) == 2.5
    assert descriptor_distance(a, a) == 0


def test_embedding_cosine_by_hand():
    assert embedding_cosine((3, 0), (1, 1)) == pytest.approx(np.sqrt(0.5))
    assert embedding_cosine((0, 2), (0, 5)) == pytest.approx(1)
    assert embedding_cosine((0, 2), (0, -5)) == pytest.approx(-1)


def test_background_is_what_lies_outside_the_face():
    rng = np.random.default_rng(0)
    face = np.zeros((40, 30), bool)
    face[10:25, 5:20] = True
    before = np.full((40, 30, 3), 100, np.uint8)
    after = before.copy()
    after[face] = rng.integers(0, 256, (face.sum(), 3))
    assert background_rmse(before, after, face) == 0
    after[~face] -= 51
    assert background_rmse(before, after, face) == pytest.approx(0.2)  # darker: no wrap of uint8
    half = before.copy()
    half[30:, :] += 51  # 300 of the 975 pixels outside
    assert background_rmse(before, half, face) == pytest.approx(0.2 * np.sqrt(300 / 975))


def test_background_needs_one():
    picture = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(ValueError, match="no background"):
        background_rmse(picture, picture, np.ones((8, 8), bool))
    with pytest.raises(ValueError, match="shapes"):
        background_rmse(picture, picture[:4], np.zeros((8, 8), bool))
    with pytest.raises(ValueError, match="shapes"):
        background_rmse(picture, picture, np.zeros((4, 8), bool))


def turn(yaw: float = 0, pitch: float = 0, roll: float = 0) -> np.ndarray:
    """Written out: to the subject's left, up, clockwise in the picture; x to the viewer's right, y up, z to
    the viewer."""
    (cy, sy), (cp, sp), (cr, sr) = (
        (np.cos(np.radians(a)), np.sin(np.radians(a))) for a in (yaw, pitch, roll)
    )
    to_left = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    up = np.array([[1, 0, 0], [0, cp, sp], [0, -sp, cp]])
    clockwise = np.array([[cr, sr, 0], [-sr, cr, 0], [0, 0, 1]])
    return to_left @ up @ clockwise


ANGLES = [(0, 0, 0), (30, 0, 0), (0, 20, 0), (0, 0, -15), (25, -10, 40), (-60, 35, 5)]


@pytest.mark.parametrize("angles", ANGLES)
def test_rotation_matrix_written_out(angles):
    np.testing.assert_allclose(rotation_matrix(Pose(*angles)), turn(*angles), atol=1e-12)


@pytest.mark.parametrize("angles", ANGLES)
def test_rotation_matrix_is_how_poses_are_read(angles):
    matrix = np.eye(4)
    matrix[:3, :3] = turn(*angles)
    pose = pose_of(matrix)
    np.testing.assert_allclose((pose.yaw, pose.pitch, pose.roll), angles, atol=1e-9)
    np.testing.assert_allclose(rotation_matrix(pose), matrix[:3, :3], atol=1e-12)


def test_pose_errors_by_hand():
    """A turn by an angle a about one axis changes nine numbers by 4 (1 - cos a) in squares."""
    still = Pose(0, 0, 0)
    assert pose_rmse_degrees(Pose(1, 2, 3), Pose(4, 2, -1)) == pytest.approx(5 / np.sqrt(3))
    assert pose_rmse_degrees(Pose(179, 0, 0), Pose(-179, 0, 0)) == pytest.approx(2 / np.sqrt(3))
    assert pose_rmse_matrix(still, Pose(60, 0, 0)) == pytest.approx(np.sqrt(2) / 3)
    assert pose_rmse_matrix(still, Pose(0, 0, 90)) == pytest.approx(2 / 3)
    assert pose_rmse_matrix(still, Pose(180, 0, 0)) == pytest.approx(np.sqrt(8) / 3)
    assert pose_rmse_matrix(Pose(9, 8, 7), Pose(9, 8, 7)) == pose_rmse_degrees(still, still) == 0


# --- Pictures ---


def _worse(picture: np.ndarray) -> dict[str, np.ndarray]:
    noise = np.random.default_rng(0).normal(0, 15, picture.shape)
    return {
        "noise": np.clip(picture + noise, 0, 255).astype(np.uint8),
        "blur": cv2.GaussianBlur(picture, (0, 0), 1.5),
        "dark": picture // 3,
        "negative": 255 - picture,
    }


@pytest.mark.parametrize("kind", ["noise", "blur", "dark", "negative"])
def test_ssim_is_scikit_images(astronaut, kind):
    """Where the window leaves the picture ours mirrors it and skimage drops the border, so skimage is given
    the mirrored border to drop. 1e-4: ours counts in float32, in which a variance is a difference of squares
    known to about 1e-7, against the constant of 9e-4 that it is compared with."""
    from skimage.metrics import structural_similarity

    before = np.ascontiguousarray(astronaut[40:200, 120:300])
    after = _worse(before)[kind]
    bordered = [np.pad(p, ((5, 5), (5, 5), (0, 0)), mode="reflect") for p in (before, after)]
    theirs = structural_similarity(
        *bordered,
        channel_axis=-1,
        data_range=255,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    assert theirs < 0.95
    assert ssim(before, after) == pytest.approx(theirs, abs=1e-4)


def test_ssim_of_equal_pictures(astronaut):
    assert ssim(astronaut[:64, :64], astronaut[:64, :64]) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("load", "reason"), [(load_lpips, "LPIPS: .*torchvision"), (load_fid, "FID: .*idelity")]
)
def test_learned_distances_say_why_they_are_missing(load, reason):
    needed = "torchvision" if load is load_lpips else "torch_fidelity"
    if importlib.util.find_spec(needed) is not None:
        pytest.skip(f"{needed} is installed")
    with pytest.raises(MissingDependencyError, match=reason) as caught:
        load()
    assert "\n" not in str(caught.value)


# --- Control ---


def test_response_by_hand():
    asked, changed = [1, 2, 3, 4], [0.5, 0.6, 0.7, 3.0]  # rises all along, and not in a line
    found = response(asked, changed)
    assert found.slope == pytest.approx((0.5 + 1.2 + 2.1 + 12) / 30)
    assert found.pearson == pytest.approx(np.corrcoef(asked, changed)[0, 1])
    assert found.pearson < 0.9
    assert found.spearman == pytest.approx(1)
    # ranks 1 2 3 4 and 2 1 4 3: 1 - 6 (1 + 1 + 1 + 1) / (4 (16 - 1))
    assert response(asked, [2, 1, 4, 3]).spearman == pytest.approx(0.6)
    assert response([-1, 1, 2], [2, -2, -4]) == pytest.approx((-1, -1, -2))


def test_response_that_cannot_be_told():
    assert response([3, 3, 3], [1, 2, 3]) == (None, None, pytest.approx(2 / 3))
    assert response([1, 2, 3], [0.5, 0.5, 0.5]) == (None, None, pytest.approx(3 / 14))
    assert response([1, 2], [1, 2]) == (None, None, 1)
    assert response([0, 0, 0], [1, 2, 3]) == (None, None, None)
    with pytest.raises(ValueError, match="3 requests and 2"):
        response([1, 2, 3], [1, 2])


def test_crosstalk_by_hand():
    edits = [
        ("AU1", 2.0, {"AU1": 1.0, "AU2": 0.5, "AU4": 0.0}),
        ("AU1", -4.0, {"AU1": -4.0, "AU2": 1.0}),  # AU4 was not measured
        ("AU4", 5.0, {"AU1": -1.0, "AU2": 0.0, "AU4": 5.0}),
        ("AU9", 5.0, {"AU1": 5.0}),
    ]
    expected = [[0.75, 0.0, 0.0], [np.nan] * 3, [-0.2, 0.0, 1.0]]
    np.testing.assert_allclose(crosstalk(edits, ("AU1", "AU2", "AU4")), expected)


def test_side_leak_by_hand():
    assert side_leak([2.0, 4.0], [0.5, 1.0]) == pytest.approx(0.25)
    assert side_leak([-2.0], [1.0]) == pytest.approx(-0.5)
    assert side_leak([1.0, 1.0], [1.0, 1.0]) == 1
    assert side_leak([1.0, -1.0], [1.0, 1.0]) is None


# --- Intervals ---


def test_people_are_resampled_and_not_edits():
    """Of two people, both draws are of one in half of the cases; hundred independent edits would be sure
    to 0.1."""
    found = bootstrap([0.0] * 50 + [1.0] * 50, ["a"] * 50 + ["b"] * 50)
    assert found == (0.5, 0.0, 1.0, 100)
    each_by_itself = bootstrap([0.0] * 50 + [1.0] * 50, range(100))
    assert 0.35 < each_by_itself.low < 0.45 < 0.55 < each_by_itself.high < 0.65


def test_people_count_by_their_edits():
    found = bootstrap([1.0, 1.0, 1.0, 5.0], ["a", "a", "a", "b"])
    assert found == (2.0, 1.0, 5.0, 4)


@pytest.mark.parametrize(("count", "least"), [(5, 0.88), (10, 0.92), (40, 0.92)])
def test_interval_covers_the_mean(count, least):
    """About 95 % of the intervals of 400 samples, few or many people with five edits each, hold the true 3.0.

    Of five people in 90 % (percentiles that are not expanded: 86 %). Twice the standard error is 0.022.
    """
    rng = np.random.default_rng(1)
    people = np.repeat(np.arange(count), 5)
    covered = 0
    for _ in range(400):
        values = 3 + rng.normal(0, 1, count)[people] + rng.normal(0, 0.2, 5 * count)
        found = bootstrap(values, people, draws=1000)
        assert found.mean == pytest.approx(values.mean())
        covered += found.low <= 3 <= found.high
    assert least < covered / 400 < 0.99


def test_interval_narrows_with_people_and_not_with_edits():
    rng = np.random.default_rng(2)

    def width(people: int, edits: int) -> float:
        values = np.repeat(rng.normal(0, 1, people), edits)
        found = bootstrap(values, np.repeat(np.arange(people), edits))
        return found.high - found.low

    assert width(400, 1) == pytest.approx(2 * 1.96 / np.sqrt(400), rel=0.2)  # the normal interval
    assert width(400, 1) < 0.5 * width(25, 1)
    assert width(25, 40) > 0.5 * width(25, 1)


def test_intervals_are_drawn_by_seed():
    values, people = np.random.default_rng(3).normal(size=30), np.arange(30) % 10
    assert bootstrap(values, people, seed=1) == bootstrap(values, people, seed=1)
    assert bootstrap(values, people, seed=1) != bootstrap(values, people, seed=2)


def test_intervals_of_one_person_and_of_nobody():
    assert bootstrap([1.0, 2.0], ["a", "a"]) == (1.5, None, None, 2)
    with pytest.raises(ValueError, match="one person a value"):
        bootstrap([], [])
    with pytest.raises(ValueError, match="one person a value"):
        bootstrap([1.0, 2.0], ["a"])
