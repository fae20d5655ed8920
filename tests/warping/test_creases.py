"""Lines of the skin come and go with the muscles that make them; skin without lines stays."""

import cv2
import numpy as np
import pytest

from magicedit.faces.frame import face_frame
from magicedit.warping.creases import CREASES, change_creases, crease_amounts
from tests.warping.test_shading import Portrait

FROWN = (0.0, -0.28)  # across and below the point between the eyes, interocular distances


def place(portrait, across, below):
    frame = face_frame(portrait.landmarks)
    return frame.origin + frame.vectors_to_picture(np.array([across, below]))


@pytest.fixture(scope="module")
def frowning(closed_mouth):
    """A photograph with a dark line between the brows and one below each corner of the mouth."""
    portrait = Portrait(closed_mouth)
    lines = np.zeros(closed_mouth.shape[:2], np.float32)
    down = 0.08 * face_frame(portrait.landmarks).interocular
    for spot in (FROWN, (0.47, 1.22), (-0.47, 1.22)):
        x, y = place(portrait, *spot)
        ends = (np.array([(x, y - down), (x, y + down)]) * 16).round().astype(int)
        cv2.line(lines, *map(tuple, ends.tolist()), 1.0, 2, cv2.LINE_AA, 4)
    lines = cv2.GaussianBlur(lines, (0, 0), 1.0)[..., None]
    return Portrait(np.rint(closed_mouth * (1 - 0.5 * lines)).astype(np.uint8))


def depth(pixels, portrait, spot):
    """How much darker a line is than the skin beside it, natural logarithm."""
    x, y = np.rint(place(portrait, *spot)).astype(int)
    beside = round(0.06 * face_frame(portrait.landmarks).interocular)
    light = np.log(pixels[y - 3 : y + 4].mean((0, 2)) + 1)
    return (light[x - beside] + light[x + beside]) / 2 - light[x - 1 : x + 2].min()


def test_a_relaxed_frown_loses_its_line_and_a_deeper_one_keeps_more(frowning):
    before = depth(frowning.pixels, frowning, FROWN)
    assert before > 0.15
    assert depth(frowning.shaded(AU4=-2.0), frowning, FROWN) < 0.5 * before
    assert depth(frowning.shaded(AU4=3.0), frowning, FROWN) > 1.2 * before


@pytest.mark.parametrize("side", [1, -1])
def test_a_smile_lifts_the_lines_below_its_corners(frowning, side):
    spot = side * 0.47, 1.22
    before = depth(frowning.pixels, frowning, spot)
    assert depth(frowning.shaded(AU12=4.0), frowning, spot) < 0.6 * before
    one_sided = depth(frowning.shaded(AU12L=4.0), frowning, spot)
    assert one_sided < 0.6 * before if side == 1 else one_sided == pytest.approx(before, abs=0.01)


def test_the_finest_texture_stays(closed_mouth, frowning):
    x, y = np.rint(place(frowning, *FROWN)).astype(int)
    box = np.s_[y - 6 : y + 7, x - 6 : x + 7]
    fine = [p[box].astype(float) - cv2.GaussianBlur(p, (0, 0), 0.6)[box]
            for p in (closed_mouth, frowning.shaded(AU4=-5.0))]  # fmt: skip
    assert fine[1].std() > 0.9 * fine[0].std()


def test_brows_eyes_and_lips_stay(frowning):
    shaded = frowning.shaded(AU1=4.0, AU2=4.0, AU4=-5.0)
    landmarks = np.rint(frowning.landmarks).astype(int)
    for point in (105, 334, 66, 296, 468, 473, 13, 14):
        x, y = landmarks[point]
        assert np.abs(shaded[y, x].astype(int) - frowning.pixels[y, x]).max() <= 3


def test_flat_skin_stays_flat_and_ridges_do_not_shine():
    flat = np.full((60, 60, 3), 140, np.uint8)
    skin = np.ones((60, 60), np.float32)
    for gain in (-0.8, 0.8):
        assert np.abs(change_creases(flat, gain * skin, skin, 200.0) - flat).max() < 1e-2
    ridge = flat.copy()
    ridge[:, 30:33] = 190
    assert change_creases(ridge, 0.8 * skin, skin, 200.0)[:, 31].max() < 190.01


def test_the_skin_around_hides_no_line_beside_dark_brows():
    """What is no skin is not read: a line beside a brow is lifted as far as one alone."""
    alone = np.full((80, 160, 3), 140, np.uint8)
    alone[:, 60:64] = 90
    beside, skin = alone.copy(), np.ones((80, 160), np.float32)
    beside[:, 75:], skin[:, 72:] = 20, 0
    lifted = [change_creases(p, -0.8 * skin, skin, 200.0)[40, 61].mean() for p in (alone, beside)]
    assert lifted[0] > 105
    assert lifted[1] == pytest.approx(lifted[0], abs=12)


def test_a_lifted_line_takes_the_colour_of_the_skin_and_leaves_texture():
    """A dark fold is far redder than the skin; texture is fainter than lines."""
    skin, texture = np.ones((80, 160), np.float32), np.random.default_rng(0).normal(0, 1.5, (80, 160, 3))
    face = np.full((80, 160, 3), (200, 150, 120)) + texture
    folded = face.copy()
    folded[:, 78:82] = 90, 30, 5
    lifted = change_creases(np.rint(folded).astype(np.uint8), -0.95 * skin, skin, 200.0)
    red, green, blue = lifted[:, 79:81].reshape(-1, 3).mean(0)
    assert red > 150
    assert green / red == pytest.approx(150 / 200, abs=0.1)
    assert blue / red == pytest.approx(120 / 200, abs=0.2)
    assert lifted[:, 10:40].std(0).mean() > 0.9 * face[:, 10:40].std(0).mean()


def test_a_line_in_smooth_skin_is_lifted_and_a_beard_stays():
    whole = np.ones((80, 240), np.float32)
    face = np.full((80, 240, 3), 140, np.uint8)
    face[:, 60:64] = 90
    hairs = np.random.default_rng(0).random((80, 120)) < 0.3
    face[:, 120:][cv2.GaussianBlur(hairs.astype(np.float32), (0, 0), 1.0) > 0.4] = 60
    shaved, bearded = (change_creases(face, -0.95 * whole, whole, 200.0, beard) for beard in (None, whole))
    assert bearded[:, 61:63].mean() > 120
    assert bearded[:, 160:220].std() > 0.8 * face[:, 160:220].std() > 1.2 * shaved[:, 160:220].std()


def test_bulges_above_the_brows_are_lifted_and_never_deepened(frowning):
    x, y = np.rint(place(frowning, 0.4, -0.5)).astype(int)
    bulging = frowning.pixels.copy()
    bulging[y - 1 : y + 2, x - 12 : x + 13] //= 2
    portrait = Portrait(bulging)
    lifted, deeper = (portrait.shaded(AU4=steps)[y, x].mean() for steps in (-3.0, 3.0))
    assert lifted > 1.2 * bulging[y, x].mean()
    assert deeper == bulging[y, x].mean()


def test_amounts_add_up_within_limits():
    assert crease_amounts({"AU4": 1.0}) == {"frown": pytest.approx(CREASES["AU4"]["frown"] / 5)}
    both = crease_amounts({"AU6": 1.0, "AU12": 1.0})["crow's feet"]
    assert both == pytest.approx((CREASES["AU6"]["crow's feet"] + CREASES["AU12"]["crow's feet"]) / 5)
    assert crease_amounts({"AU4": -30.0}) == {"scowl": -0.95}
    assert crease_amounts({"AU25": 3.0, "AU4": 0.0}) == {}
