"""The light of smiles on the skin: what it changes, where, and that real smiles have it."""

import numpy as np
import pytest

from magicedit.faces import align, crop_face, editing_region, load_backend
from magicedit.faces.frame import face_frame
from magicedit.warping import shade

SIZE = 128


class Portrait:
    """A photograph with its face, and what a request makes of its light."""

    def __init__(self, pixels):
        self.pixels = pixels
        self.face = load_backend().detect(pixels)[0]
        self.landmarks = self.face.landmarks
        self.alignment = align(self.face, SIZE)
        self.region = editing_region(self.alignment.apply(self.landmarks), SIZE, "mediapipe478")

    def shaded(self, **request):
        return shade(self.pixels, self.alignment, self.region, self.landmarks, request)

    def light(self, across, below, **request):
        """The mean change of light around a place of the face, interocular distances from between the eyes;
        across: to the subject's left."""
        frame = face_frame(self.landmarks)
        x, y = frame.origin + frame.vectors_to_picture(np.array([across, below]))
        box = np.s_[round(y) - 2 : round(y) + 3, round(x) - 2 : round(x) + 3]
        return self.shaded(**request)[box].mean() / self.pixels[box].mean() - 1


@pytest.fixture(scope="module")
def portrait(closed_mouth):
    return Portrait(closed_mouth)


def test_units_without_shading_return_the_photograph_itself(portrait):
    assert portrait.shaded(AU5=3.0, AU25=4.0) is portrait.pixels
    assert portrait.shaded() is portrait.pixels


def test_a_smile_deepens_the_folds_beside_the_nose(portrait):
    left, right = (portrait.light(side * 0.48, 0.85, AU12=5.0) for side in (1, -1))
    assert left < -0.02
    assert right < -0.02


def test_raised_cheeks_roll_up_below_the_eyes(portrait):
    lid = portrait.landmarks[[145, 374]].mean(0)
    below = face_frame(portrait.landmarks).to_face(lid)[1]
    for side in (1, -1):
        lights = [portrait.light(side * 0.5, below + step, AU6=5.0) for step in np.linspace(0.02, 0.2, 10)]
        assert max(lights) > 0.03


def test_dimples_darken_beside_the_corners_and_not_beyond(portrait):
    down = face_frame(portrait.landmarks).to_face(portrait.landmarks[[61, 291]])
    for side, (across, below) in zip((-1, 1), down, strict=True):
        assert portrait.light(across + side * 0.07, below, AU14=5.0) < -0.1
        assert portrait.light(across + side * 0.2, below, AU14=5.0) > 0.03
        assert abs(portrait.light(across - side * 0.2, below, AU14=5.0)) < 0.02


def test_pouting_lips_throw_a_shadow_below(portrait):
    lip, chin = face_frame(portrait.landmarks).to_face(portrait.landmarks[[17, 152]])[:, 1]
    assert portrait.light(0.0, lip + 0.2 * (chin - lip), AU18=5.0) < -0.1
    assert portrait.light(0.0, lip - 0.08, AU18=5.0) > 0.03


def test_a_wide_open_mouth_hollows_the_cheeks(portrait):
    corners = face_frame(portrait.landmarks).to_face(portrait.landmarks[[61, 291]])
    for side, (across, below) in zip((-1, 1), corners, strict=True):
        assert portrait.light(across + side * 0.18, below - 0.08, AU27=5.0) < -0.06
    assert portrait.light(0.0, corners[:, 1].mean() + 0.5, AU27=5.0) == 0


def test_relaxing_does_the_opposite_and_less(portrait):
    more, less = (portrait.light(0.48, 0.85, AU12=steps) for steps in (3.0, -3.0))
    assert 0 < less < -more


@pytest.mark.parametrize("unit", ["AU14", "AU18", "AU27"])
def test_what_a_photograph_hardly_shows_is_not_taken_away(portrait, unit):
    assert np.array_equal(portrait.shaded(**{unit: -4.0}), portrait.pixels)


def test_one_side_alone(portrait):
    changed = np.abs(portrait.shaded(AU12L=4.0).astype(int) - portrait.pixels).max(-1) > 2
    frame = face_frame(portrait.landmarks)
    y, x = np.nonzero(changed)
    across = frame.to_face(np.stack([x, y], 1))[:, 0]
    assert len(across) > 100
    assert across.min() > -0.08


def test_the_light_grows_with_the_request_up_to_a_limit(portrait):
    size = [
        np.abs(portrait.shaded(AU12=steps).astype(int) - portrait.pixels).mean() for steps in (1, 3, 5, 9)
    ]
    assert size[0] < size[1] < size[2]
    assert np.array_equal(portrait.shaded(AU6=9.0), portrait.shaded(AU6=30.0))


def test_lips_eyeballs_and_what_lies_outside_the_region_stay(portrait):
    shaded = portrait.shaded(AU6=5.0, AU9=5.0, AU12=5.0)
    landmarks = np.rint(portrait.landmarks).astype(int)
    for point in (468, 473, 14, 17, 13, 0):  # irises, lips
        x, y = landmarks[point]
        assert np.abs(shaded[y, x].astype(int) - portrait.pixels[y, x]).max() <= 2
    assert np.array_equal(
        shade(portrait.pixels, portrait.alignment, 0 * portrait.region, portrait.landmarks, {"AU12": 5.0}),
        portrait.pixels,
    )
    corner = np.s_[:20, :20]
    assert np.array_equal(shaded[corner], portrait.pixels[corner])


def test_the_light_does_not_depend_on_the_photographs_size(portrait):
    small = Portrait(portrait.pixels[::2, ::2].copy())
    for place in ((0.48, 0.85), (-0.48, 0.85)):
        assert abs(small.light(*place, AU12=5.0) - portrait.light(*place, AU12=5.0)) < 0.025


def test_people_kept_for_validation_smile_with_this_light(london):
    """Laid over their neutral photographs moved as theirs, it comes nearer to their real smiles."""
    nearer = []
    for person in ("001", "036", "083", "126"):
        neutral, smiling = Portrait(london(person, "neutral")), Portrait(london(person, "smiling"))
        fold = {}
        for name, pixels in (("neutral", neutral.pixels), ("smiling", smiling.pixels),
                             ("shaded", neutral.shaded(AU6=2.5, AU12=2.5))):  # fmt: skip
            portrait = smiling if name == "smiling" else neutral
            crop = crop_face(pixels, align(portrait.face, 256)).astype(float).mean(-1)
            points = align(portrait.face, 256).apply(portrait.landmarks)
            cheek, beside = points[[50, 280]], points[[203, 423]]  # cheeks, and the folds beside the nose
            read = [np.mean([crop[round(y) - 3 : round(y) + 4, round(x) - 3 : round(x) + 4].mean()
                             for x, y in places]) for places in (cheek, beside)]  # fmt: skip
            fold[name] = read[1] / read[0]
        nearer.append(abs(fold["shaded"] - fold["smiling"]) < abs(fold["neutral"] - fold["smiling"]))
    assert sum(nearer) >= 3
