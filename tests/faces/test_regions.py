"""Masks from landmarks, and the condition image."""

import numpy as np
import pytest

from magicedit.faces import (
    align,
    condition_image,
    crop_face,
    editing_region,
    face_region,
    feathered_region,
    left_side,
    region_polygon,
)
from magicedit.faces.regions import face_oval, jaw_contour, polygon_mask

SIZE = 256
# The jaw, brows, nose, eyes and mouth of iBUG's 68 points on MediaPipe's mesh.
IBUG_ON_MESH = [
    *(162, 234, 93, 58, 172, 136, 149, 148, 152, 377, 378, 365, 397, 288, 323, 454, 389),
    *(71, 63, 105, 66, 107, 336, 296, 334, 293, 301, 168, 197, 5, 4, 75, 97, 2, 326, 305),
    *(33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380),
    *(61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181, 78, 82, 13, 312, 308, 317, 14, 87),
]


@pytest.fixture
def crop(astronaut, astronaut_face) -> tuple[np.ndarray, np.ndarray]:
    """The astronaut's crop and the landmarks in it."""
    alignment = align(astronaut_face, SIZE)
    return crop_face(astronaut, alignment), alignment.apply(astronaut_face.landmarks)


def at(landmarks: np.ndarray, *indices: int) -> tuple[int, int]:
    """Row and column of the mean of some landmarks."""
    column, row = landmarks[list(indices)].mean(0).round().astype(int)
    return row, column


def test_a_polygon_is_drawn_with_pixel_centres_at_whole_numbers():
    square = np.array([(10, 20), (30, 20), (30, 50), (10, 50)], np.float32)
    mask = polygon_mask(square, 64)
    assert mask.dtype == bool
    assert (np.argwhere(mask).min(0).tolist(), np.argwhere(mask).max(0).tolist()) == ([20, 10], [50, 30])
    assert mask.sum() == 21 * 31


def test_the_region_is_the_face(crop):
    _, landmarks = crop
    region = face_region(landmarks, SIZE, "mediapipe478")
    for inside in ((4,), (468,), (473,), (13, 14), (61,), (291,), (66,), (296,), (9,), (199,)):
        assert region[at(landmarks, *inside)], inside
    for outside in ((5, 5), (SIZE - 3, SIZE // 2), (SIZE // 2, 3), (3, SIZE // 2)):
        assert not region[outside], outside
    assert 0.2 < region.mean() < 0.5


def test_growing_scales_the_area(crop):
    _, landmarks = crop
    plain, grown = (face_region(landmarks, SIZE, "mediapipe478", grow=grow) for grow in (1.0, 1.1))
    assert grown[plain].all()
    assert grown.sum() / plain.sum() == pytest.approx(1.1**2, rel=0.02)


def test_68_landmarks_give_nearly_the_same_region(crop):
    _, landmarks = crop
    mesh = face_region(landmarks, SIZE, "mediapipe478")
    ibug = face_region(landmarks[IBUG_ON_MESH], SIZE, "ibug68")
    # the forehead is guessed from the jaw
    assert (mesh & ibug).sum() / (mesh | ibug).sum() > 0.93


def test_jaw_and_oval_run_around_the_face(crop):
    _, landmarks = crop
    jaw = jaw_contour(landmarks, "mediapipe478")
    assert jaw.shape == (17, 2)
    assert np.array_equal(jaw, jaw_contour(landmarks[IBUG_ON_MESH], "ibug68"))
    assert jaw[0, 0] < jaw[8, 0] < jaw[16, 0]
    assert jaw[:, 1].argmax() in (7, 8, 9)
    for points, scheme in ((landmarks, "mediapipe478"), (landmarks[IBUG_ON_MESH], "ibug68")):
        oval = face_oval(points, scheme) - landmarks[4]
        turns = np.diff(np.unwrap(np.arctan2(oval[:, 1], oval[:, 0])))
        assert (np.sign(turns) == np.sign(turns[0])).all()  # no point out of order


@pytest.mark.parametrize("feather", [1.0, 6.0, 25.0])
def test_feathering(crop, feather):
    _, landmarks = crop
    region = face_region(landmarks, SIZE, "mediapipe478")
    weight = feathered_region(landmarks, SIZE, "mediapipe478", feather=feather)
    assert weight.dtype == np.float32
    assert (weight[~region] == 0).all()
    assert (weight[region] > 0).all()
    assert weight.max() == 1.0
    assert weight[at(landmarks, 4)] == 1.0
    # one pixel along the normal never changes more than the steepest part of the ramp
    steps = np.abs(np.diff(weight, axis=1)).max()
    assert steps <= 1.5 / feather * 1.01


def test_a_region_that_leaves_the_crop_fades_at_its_border(crop):
    _, landmarks = crop
    weight = feathered_region(landmarks - (120, 0), SIZE, "mediapipe478", feather=10)
    assert weight.max() == 1.0
    row = int(landmarks[4, 1])
    assert 0 < weight[row, 0] < 0.05
    assert weight[row, 12] == 1.0


def test_what_moves_out_of_the_face_keeps_its_weight(crop):
    _, landmarks = crop
    at_rest = editing_region(landmarks, SIZE, "mediapipe478")
    still = np.zeros((SIZE, SIZE, 2), np.float32)
    assert np.array_equal(editing_region(landmarks, SIZE, "mediapipe478", flow=still), at_rest)

    drop = np.float32((0, 0.08 * SIZE))  # of a chin
    region = editing_region(landmarks, SIZE, "mediapipe478", flow=still - drop)
    assert region.dtype == at_rest.dtype == np.float32
    chin = at(landmarks + drop, 152)
    assert at_rest[chin] < 0.8
    assert region[chin] > 0.99
    assert (region >= at_rest).all()
    assert region[[0, -1]].max() < 0.02  # nothing moves at the crop's border


def test_feather_must_be_positive(crop):
    with pytest.raises(ValueError, match="feather"):
        feathered_region(crop[1], SIZE, "mediapipe478", feather=0)


def test_eyes_and_mouth(crop):
    pixels, landmarks = crop
    masks = {}
    for scheme, points in (("mediapipe478", landmarks), ("ibug68", landmarks[IBUG_ON_MESH])):
        for name in ("right_eye", "left_eye", "lips", "mouth"):
            masks[scheme, name] = polygon_mask(region_polygon(points, scheme, name), SIZE)
        assert masks[scheme, "right_eye"][at(landmarks, 468)]  # the iris
        assert masks[scheme, "left_eye"][at(landmarks, 473)]
        assert masks[scheme, "mouth"][at(landmarks, 13, 14)]
        assert not (masks[scheme, "mouth"] & ~masks[scheme, "lips"]).any()
    # between her lips are teeth, brighter and less red than the lips
    mouth, lips = (
        masks["mediapipe478", "mouth"],
        masks["mediapipe478", "lips"] & ~masks["mediapipe478", "mouth"],
    )
    redness = pixels[..., 0].astype(int) - pixels[..., 1]
    assert redness[mouth].mean() < redness[lips].mean() - 10
    with pytest.raises(ValueError, match="right_eye, left_eye, lips, mouth"):
        region_polygon(landmarks, "mediapipe478", "chin")


def test_the_condition_image_hides_the_face_and_draws_the_jaw(crop):
    pixels, landmarks = crop
    before = pixels.copy()
    condition = condition_image(pixels, landmarks, "mediapipe478")
    assert np.array_equal(pixels, before)
    region = face_region(landmarks, SIZE, "mediapipe478")
    discs = np.zeros((SIZE, SIZE), bool)
    y, x = np.mgrid[:SIZE, :SIZE]
    for point in jaw_contour(landmarks, "mediapipe478"):
        discs |= (x - point[0]) ** 2 + (y - point[1]) ** 2 <= (SIZE / 128 + 2.5) ** 2  # antialiased
    assert (condition[region & ~discs] == 0).all()
    assert np.array_equal(condition[~region & ~discs], pixels[~region & ~discs])
    colours = [condition[at(landmarks, index)] for index in (162, 152, 389)]
    for colour in colours:
        assert colour.max() > 200
    # the ends differ, so that left and right do
    assert np.abs(colours[0].astype(int) - colours[2]).max() > 100


def test_the_jaw_has_17_colours(crop):
    pixels, landmarks = crop
    condition = condition_image(np.zeros_like(pixels), landmarks, "mediapipe478")
    colours = {
        tuple(condition[int(y.round()), int(x.round())]) for x, y in jaw_contour(landmarks, "mediapipe478")
    }
    assert len(colours) == 17
    assert (0, 0, 0) not in colours


def test_discs_grow_with_the_crop(astronaut, astronaut_face):
    areas = []
    for size in (128, 512):
        alignment = align(astronaut_face, size)
        black = np.zeros((size, size, 3), np.uint8)
        condition = condition_image(black, alignment.apply(astronaut_face.landmarks), "mediapipe478")
        areas.append((condition.max(2) > 127).sum() / 17)
    # radii of 1 and 4 px, and half a pixel of soft edge
    assert np.sqrt(np.array(areas) / np.pi) == pytest.approx([1.5, 4.5], abs=0.3)
    with pytest.raises(ValueError, match="square"):
        condition_image(astronaut[:100], astronaut_face.landmarks, "mediapipe478")


def test_the_left_side_is_the_subjects(crop):
    """Which lies on the right of the picture; the seam runs through the nose, whatever the landmarks."""
    _, landmarks = crop
    share = left_side(landmarks, SIZE, "mediapipe478")
    assert share[at(landmarks, 263)] == 1
    assert share[at(landmarks, 33)] == 0
    assert 0.2 < share[at(landmarks, 4)] < 0.8
    assert 0.2 < share[at(landmarks, 152)] < 0.8
    assert np.abs(np.diff(share, axis=1)).max() < 0.1  # smooth
    assert np.abs(share - left_side(landmarks[IBUG_ON_MESH], SIZE, "ibug68")).mean() < 0.03


def test_the_left_side_turns_with_the_face(crop):
    """Upside down, the subject's left is on the left of the picture."""
    _, landmarks = crop
    turned = SIZE - 1 - landmarks
    share = left_side(turned, SIZE, "mediapipe478")
    np.testing.assert_allclose(share, left_side(landmarks, SIZE, "mediapipe478")[::-1, ::-1], atol=1e-4)
