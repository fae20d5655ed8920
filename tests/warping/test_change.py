"""Carrying a change of a crop to the photograph."""

import cv2
import numpy as np
import pytest

from magicedit.faces import Alignment
from magicedit.warping import Change, carry_change, estimate_change, join_sides, no_change
from magicedit.warping.change import sharpened

SIZE = 64


def texture(height, width, seed=0):
    """A smooth random picture with detail at several scales, uint8 RGB."""
    rng = np.random.default_rng(seed)
    picture = np.zeros((height, width, 3), np.float32)
    for cells in (6, 12, 24):
        coarse = rng.normal(size=(cells, cells, 3)).astype(np.float32)
        picture += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    picture -= picture.min()
    return np.rint(picture / picture.max() * 255).astype(np.uint8)


def constant_change(flow=(0.0, 0.0), mask=0.0, paint=(0.0, 0.0, 0.0)):
    base = no_change(SIZE)
    return Change(base.flow + np.float32(flow), base.mask + np.float32(mask), base.paint + np.float32(paint))


def placed(scale=1.0, angle=0.0, centre=(150.0, 120.0)):
    """Maps the photograph's `centre` to the crop's middle; scale: crop pixels a photograph pixel."""
    linear = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    shift = np.full(2, (SIZE - 1) / 2) - linear @ centre
    return Alignment(np.concatenate([linear, shift[:, None]], axis=1), SIZE)


def disc(radius=24.0):
    """1 within half the radius, 0 beyond it."""
    ys, xs = np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2
    return np.clip(2 - 2 * np.hypot(xs, ys) / radius, 0, 1).astype(np.float32)


def inside_of(alignment, region, shape, weight):
    seen = cv2.warpAffine(
        region, alignment.matrix, (shape[1], shape[0]), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    )
    return seen > weight


def test_nothing_changes_nothing():
    photo = texture(240, 300)
    assert np.array_equal(carry_change(photo, placed(0.4, 0.3), no_change(SIZE), disc()), photo)
    none = np.zeros((SIZE, SIZE), np.float32)
    assert np.array_equal(carry_change(photo, placed(), constant_change((3, 3), 1.0), none), photo)


@pytest.mark.parametrize(("scale", "angle"), [(1.0, 0.0), (0.4, 0.0), (0.4, 0.5), (2.0, -0.4)])
def test_a_crop_flow_moves_photograph_pixels_by_its_length_and_turn(scale, angle):
    """Where the region is full, the photograph is read `flow / scale` pixels away, turned back."""
    photo, alignment = texture(240, 300), placed(scale, angle)
    flow = np.array([2.0, -1.0])
    carried = carry_change(photo, alignment, constant_change(flow), disc())
    shift = np.linalg.inv(alignment.matrix[:, :2]) @ flow
    ys, xs = np.mgrid[:240, :300].astype(np.float32)
    x, y = xs + np.float32(shift[0]), ys + np.float32(shift[1])
    expected = cv2.remap(photo, x, y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)
    full = inside_of(alignment, disc(), photo.shape, 0.999)
    assert full.sum() > 50
    assert np.abs(carried[full].astype(int) - expected[full]).max() <= 3
    assert np.abs(photo[full].astype(int) - expected[full]).max() > 6


@pytest.mark.parametrize("centre", [(150.0, 120.0), (10.0, 12.0), (295.0, 236.0)])
def test_outside_the_region_every_byte_stays(centre):
    photo, alignment = texture(240, 300), placed(0.5, 0.2, centre)
    original = photo.copy()
    carried = carry_change(photo, alignment, constant_change((4, 2), 0.7, (1, 0, 0)), disc())
    outside = ~inside_of(alignment, disc(), photo.shape, 0.0)
    assert np.array_equal(carried[outside], photo[outside])
    assert not np.array_equal(carried, photo)
    assert np.array_equal(photo, original)  # the input is not written to


def test_a_face_outside_the_photograph_changes_nothing():
    photo = texture(240, 300)
    carried = carry_change(photo, placed(1.0, 0.0, (900.0, 900.0)), constant_change((3, 3), 1.0), disc())
    assert np.array_equal(carried, photo)


def test_paint_arrives_through_the_mask():
    photo, alignment = texture(240, 300), placed(0.5)
    full = inside_of(alignment, disc(), photo.shape, 0.999)
    painted = carry_change(photo, alignment, constant_change(mask=1.0, paint=(1.0, 0.5, 0.0)), disc())
    assert np.abs(painted[full].astype(int) - (255, 128, 0)).max() <= 1
    half = carry_change(photo, alignment, constant_change(mask=0.5, paint=(1.0, 0.5, 0.0)), disc())
    expected = (photo[full] + np.array([255, 127.5, 0])) / 2
    assert np.abs(half[full] - expected).max() <= 2


def test_only_the_rectangle_matters():
    """The same face in a larger photograph gives the same pixels."""
    small = texture(240, 300)
    large = np.full((700, 900, 3), 90, np.uint8)
    large[200:440, 300:600] = small
    change = constant_change((2.5, 1.0), 0.3, (0.2, 0.4, 0.6))
    moved = placed(0.6, 0.1, (150.0 + 300, 120.0 + 200))
    result = carry_change(large, moved, change, disc())
    expected = carry_change(small, placed(0.6, 0.1), change, disc())
    assert np.abs(result[200:440, 300:600].astype(int) - expected).max() <= 1


def test_sizes_must_agree():
    with pytest.raises(ValueError, match="size 64"):
        carry_change(texture(100, 100), placed(), no_change(SIZE), np.ones((32, 32), np.float32))
    with pytest.raises(ValueError, match="flow must have shape"):
        Change(np.zeros((8, 8, 2)), np.zeros((9, 9)), np.zeros((9, 9, 3)))


def test_estimated_flow_is_the_true_one():
    source = texture(128, 128, seed=3)
    ys, xs = np.mgrid[:128, :128].astype(np.float32)
    bump = np.exp(-((xs - 64) ** 2 + (ys - 64) ** 2) / (2 * 20**2))
    true = np.stack([3.0 * bump, -2.0 * bump], -1)
    edited = cv2.remap(source, xs + true[..., 0], ys + true[..., 1], cv2.INTER_LINEAR)
    change = estimate_change(source, edited)
    inner = (slice(8, -8), slice(8, -8))
    error = np.linalg.norm(change.flow - true, axis=-1)[inner]
    assert np.median(error) < 0.2  # px, of a movement of up to 3.6
    assert change.mask[inner].mean() < 0.02


def test_what_movement_cannot_explain_is_painted():
    source = texture(128, 128, seed=3)
    edited = source.copy()
    edited[50:70, 40:80] = (250, 250, 250)
    change = estimate_change(source, edited)
    assert change.mask[55:65, 45:75].mean() > 0.8
    assert change.mask[:30].max() < 0.05
    np.testing.assert_allclose(change.paint[60, 60], 250 / 255, atol=1e-6)


def test_equal_crops_are_a_zero_change():
    source = texture(SIZE, SIZE)
    change = estimate_change(source, source.copy())
    assert not change.flow.any()
    assert not change.mask.any()
    with pytest.raises(ValueError, match="edited"):
        estimate_change(source, source[:32])


def test_two_sides_join():
    """Each side keeps its own; between them flow and mask pass over, and paint goes with what shows of it."""
    left = constant_change((4.0, 0.0), 1.0, (1.0, 0.0, 0.0))
    right = constant_change((0.0, 2.0), 0.5, (0.0, 1.0, 0.0))
    share = np.tile(np.linspace(0, 1, SIZE, dtype=np.float32), (SIZE, 1))
    joined = join_sides(left, right, share)
    np.testing.assert_allclose(joined.flow[0, -1], (4, 0))
    np.testing.assert_allclose(joined.flow[0, 0], (0, 2))
    np.testing.assert_allclose(joined.mask[0, [0, -1]], (0.5, 1.0))
    np.testing.assert_allclose(joined.paint[0, [0, -1]], [(0, 1, 0), (1, 0, 0)], atol=1e-6)
    middle = SIZE // 2
    weight = share[0, middle] * 1.0, (1 - share[0, middle]) * 0.5
    np.testing.assert_allclose(joined.mask[0, middle], sum(weight), rtol=1e-5)
    np.testing.assert_allclose(joined.paint[0, middle, 0], weight[0] / sum(weight), rtol=1e-5)


def test_a_side_without_change_stays():
    joined = join_sides(constant_change((4.0, 0.0), 1.0), no_change(SIZE), np.zeros((SIZE, SIZE), np.float32))
    assert not joined.flow.any()
    assert not joined.mask.any()


def test_sharpening_keeps_the_ends_and_the_middle():
    mask = np.float32([0.0, 0.1, 0.5, 0.9, 1.0])
    sharp = sharpened(mask)
    np.testing.assert_allclose(sharp[[0, 2, 4]], [0, 0.5, 1], atol=1e-6)
    assert sharp[1] < 0.01
    np.testing.assert_allclose(sharp + sharpened(1 - mask), 1, atol=1e-6)
    assert np.array_equal(sharp, np.sort(sharp))
