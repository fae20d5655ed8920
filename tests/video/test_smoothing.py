"""The one-euro filter, and what it steadies."""

import math
from dataclasses import replace

import numpy as np
import pytest

from magicedit.faces import Face, Pose, align
from magicedit.faces.types import box_around
from magicedit.video.smoothing import (
    ChangeFilter,
    ChangeFilters,
    FaceFilter,
    Filter,
    OneEuro,
    Smoothing,
    smoothing_factor,
)
from magicedit.warping import Change

STEP = 1 / 30  # seconds
PASSING = OneEuro(min_cutoff=1e9, beta=0)
UNFILTERED = Smoothing(place=PASSING, landmarks=PASSING, action_units=PASSING, pose=PASSING, change=PASSING)


def filtered(values, parameters: OneEuro, step: float = STEP) -> np.ndarray:
    one = Filter(parameters)
    return np.array([one(np.float64(value), index * step) for index, value in enumerate(values)])


def test_without_beta_it_is_a_first_order_low_pass():
    """A step of 1: what is missing falls by the same factor with each sample."""
    answer = filtered([0] + [1] * 10, OneEuro(min_cutoff=2.0, beta=0))
    share = 1 / (1 + 1 / (2 * math.pi * 2.0 * STEP))
    np.testing.assert_allclose(1 - answer, (1 - share) ** np.arange(11), rtol=1e-12)


def test_the_first_sample_passes_and_a_constant_stays():
    assert (filtered([3.5] * 20, OneEuro(0.5, 10)) == 3.5).all()


def test_speed_opens_it():
    """On a ramp the lag tends to speed / (2 pi cutoff), where the cutoff follows from the speed as the filter
    sees it: from its own last value, as in the paper's algorithm 1, so that the lag itself counts."""
    ramp = 2.0 * STEP * np.arange(400)
    slow, quick = (filtered(ramp, OneEuro(0.5, beta)) for beta in (0, 5))
    assert ramp[-1] - slow[-1] == pytest.approx(2.0 / (2 * math.pi * 0.5), rel=0.01)
    lag = ramp[-1] - quick[-1]
    assert lag == pytest.approx(2.0 / (2 * math.pi * (0.5 + 5 * (2.0 + lag / STEP))), rel=0.01)
    assert lag < 0.05 * (ramp[-1] - slow[-1])


def test_jitter_at_rest_is_reduced_as_far_as_the_cutoff_says():
    noise = np.random.default_rng(0).normal(0, 1, 20_000)
    answer = filtered(noise, OneEuro(1.0, 0))
    share = smoothing_factor(1.0, STEP)
    assert answer[100:].std() == pytest.approx(math.sqrt(share / (2 - share)), rel=0.05)


def test_time_counts_not_samples():
    """At twice the rate each step closes less of the gap; after the same time it is the same, nearly."""
    parameters = OneEuro(0.5, 0)
    once, twice = filtered([0] + [1] * 30, parameters), filtered([0] + [1] * 60, parameters, STEP / 2)
    np.testing.assert_allclose(twice[::2], once, atol=0.02)
    uneven = Filter(parameters)
    for time in (0.0, 0.01, 0.5):
        last = uneven(np.float64(time > 0), time)
    assert last > 0.55
    with pytest.raises(ValueError, match="later"):
        uneven(np.float64(0), 0.5)


def test_a_restored_filter_goes_on_as_if_nothing_had_happened():
    values = np.random.default_rng(1).normal(0, 1, (20, 4)).astype(np.float32)
    whole, first, second = (Filter(OneEuro(1, 2)) for _ in range(3))
    expected = [whole(value, index * STEP) for index, value in enumerate(values)]
    for index in range(10):
        first(values[index], index * STEP)
    second.restore(first.state())
    again = [second(values[index], index * STEP) for index in range(10, 20)]
    assert np.array_equal(again, expected[10:])
    assert second(values[0], 99.0).dtype == np.float32


def face_at(x: float, y: float, degrees: float = 0.0, size: float = 1.0, jitter: float = 0.0) -> Face:
    """A round of 478 landmarks with those that alignment uses at plausible places."""
    rng = np.random.default_rng(abs(round(1000 * (x + y))))
    angles = np.linspace(0, 2 * np.pi, 478)
    points = 60 * np.stack([np.cos(angles), np.sin(angles)], -1)
    known = {33: (-40, -20), 133: (-15, -18), 362: (15, -18), 263: (40, -20), 168: (0, -25), 197: (0, -10),
             5: (0, 2), 2: (0, 22), 162: (-62, -25), 389: (62, -25)}  # fmt: skip
    for index, place in known.items():
        points[index] = place
    turn = np.radians(degrees)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    points = size * points @ rotation.T + (x, y) + rng.normal(0, jitter, points.shape)
    units = {"AU12": 2.0 + rng.normal(0, jitter)}
    landmarks = points.astype(np.float32)
    return Face(box_around(landmarks), landmarks, "mediapipe478", 1.0, units, {"AU12L": 1.0})


def test_an_open_filter_leaves_the_face_as_it_is():
    steady = FaceFilter(UNFILTERED, 128)
    for index, degrees in enumerate((0, 30, 100, 178, 185, 260, 359, 365)):
        face = face_at(200 + index, 150, degrees, 1 + index / 10)
        smooth, alignment = steady(face, index * STEP)
        np.testing.assert_allclose(alignment.matrix, align(face, 128).matrix, atol=1e-4)
        np.testing.assert_allclose(smooth.landmarks, face.landmarks, atol=1e-2)
        assert smooth.action_units == pytest.approx(face.action_units)


def test_a_trembling_face_is_steadied_and_a_moving_one_followed():
    steady = FaceFilter(Smoothing(), 128)
    raw, smooth = [], []
    for index in range(60):
        face = face_at(200, 150 + 1e-3 * index, jitter=0.5)
        raw.append(face.landmarks)
        smooth.append(steady(face, index * STEP)[0].landmarks)
    trembling = [np.abs(np.diff(points[20:], axis=0)).mean() for points in (raw, smooth)]
    assert trembling[1] < 0.3 * trembling[0]

    steady = FaceFilter(Smoothing(), 128)
    for index in range(60):
        face = face_at(100 + 3 * index, 150)  # 90 px a second, the face is 120 px wide
        found, _ = steady(face, index * STEP)
    assert np.abs(found.landmarks - face.landmarks).max() < 3  # less than it moves in one frame


def test_a_trembling_pose_is_steadied_and_a_turning_head_followed():
    rng = np.random.default_rng(1)
    still, turning = FaceFilter(Smoothing(), 128), FaceFilter(Smoothing(), 128)
    raw, smooth, behind = [], [], []
    for index in range(80):
        pose = Pose(*rng.normal((5, -3, 1), 0.2))
        raw.append(pose.yaw)
        smooth.append(still(replace(face_at(200, 150), pose=pose), index * STEP)[0].pose.yaw)
        yaw = 20 * np.sin(2 * np.pi * 0.5 * index * STEP)  # up to 63 degrees a second
        turned = turning(replace(face_at(200, 150), pose=Pose(yaw, 0, 0)), index * STEP)[0].pose.yaw
        behind.append(abs(turned - yaw))
    assert np.abs(np.diff(smooth[20:])).mean() < 0.3 * np.abs(np.diff(raw[20:])).mean()
    assert max(behind) < 3
    assert still(face_at(200, 150), 90 * STEP)[0].pose is None


def test_a_change_is_smoothed_in_the_crop():
    rng = np.random.default_rng(0)
    changes = [
        Change(*(rng.normal(0.5, 0.1, shape).astype(np.float32) for shape in ((8, 8, 2), (8, 8), (8, 8, 3))))
        for _ in range(30)
    ]
    smooth, same = ChangeFilter(OneEuro(1, 0)), ChangeFilter(PASSING)
    steady = [smooth(change, index * STEP) for index, change in enumerate(changes)]
    assert np.std([c.mask for c in steady[10:]]) < 0.5 * np.std([c.mask for c in changes[10:]])
    for index, change in enumerate(changes):
        passed = same(change, index * STEP)
        for name in ("flow", "mask", "paint"):
            np.testing.assert_allclose(getattr(passed, name), getattr(change, name), atol=1e-5)


def test_each_run_of_each_face_has_a_filter_and_restored_ones_go_on():
    rng = np.random.default_rng(0)
    changes = [
        Change(*(rng.random(shape, np.float32) for shape in ((8, 8, 2), (8, 8), (8, 8, 3)))) for _ in range(3)
    ]
    first, second, third = changes
    filters, alone = ChangeFilters(OneEuro(1, 0)), ChangeFilter(OneEuro(1, 0))
    for at, change in enumerate((first, second)):
        smooth = filters(change, 0, 0, at * STEP)
        assert np.array_equal(smooth.flow, alone(change, at * STEP).flow)
        filters(change, 1, 0, at * STEP)
    assert not np.array_equal(smooth.flow, second.flow)
    restored = ChangeFilters(OneEuro(1, 0))
    restored.restore(filters.state())
    assert np.array_equal(restored(third, 0, 0, 2 * STEP).flow, alone(third, 2 * STEP).flow)

    assert np.array_equal(filters(third, 0, 5, 2 * STEP).flow, third.flow)  # another run starts anew
    filters.forget(1)
    assert np.array_equal(filters(third, 1, 0, 2 * STEP).flow, third.flow)
    assert set(filters.state()) == {
        f"{key}/{part}" for key in ("0-5", "1-0") for part in ("time", "value", "speed")
    }
    assert ChangeFilters(None)(third, 0, 0, 0.0) is third


def test_parameters_are_data():
    assert replace(Smoothing(), change=None).place == Smoothing().place
