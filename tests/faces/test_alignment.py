"""The crop's place in the photograph, and cutting it out."""

import cv2
import numpy as np
import pytest

from magicedit.errors import ImageError
from magicedit.faces import Alignment, Face, align, crop_face
from magicedit.faces.alignment import similarity
from magicedit.faces.types import box_around

# Eye corners, bridge and base of the nose: what keeps its place on the skull when the face moves.
STABLE = [33, 133, 362, 263, 168, 6, 197, 2]
# iBUG's 68 points on MediaPipe's mesh, where both have one: jaw ends, nose, eyes.
IBUG_ON_MESH = {0: 162, 16: 389, 27: 168, 28: 197, 29: 5, 33: 2, 36: 33, 39: 133, 42: 362, 45: 263}


def moved(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    return points @ matrix[:, :2].T + matrix[:, 2]


def with_landmarks(face: Face, landmarks: np.ndarray) -> Face:
    return Face(box_around(landmarks), landmarks.astype(np.float32), face.scheme, face.score)


def turn(degrees: float, scale: float, shift: tuple[float, float]) -> np.ndarray:
    c, s = scale * np.cos(np.radians(degrees)), scale * np.sin(np.radians(degrees))
    return np.array([[c, -s, shift[0]], [s, c, shift[1]]])


@pytest.mark.parametrize("matrix", [turn(0, 1, (0, 0)), turn(33, 2.5, (100, -40)), turn(-170, 0.1, (3, 4))])
def test_similarity_recovers_an_exact_one(matrix):
    source = np.random.default_rng(0).normal(size=(9, 2))
    assert similarity(source, moved(source, matrix)) == pytest.approx(matrix, abs=1e-12)


def test_similarity_is_the_least_squares_one():
    rng = np.random.default_rng(1)
    source, target = rng.normal(size=(2, 12, 2))
    # the same problem as a linear system in (a, b, x, y): the independent solution
    system = np.zeros((24, 4))
    system[0::2] = np.stack([source[:, 0], -source[:, 1], np.ones(12), np.zeros(12)], 1)
    system[1::2] = np.stack([source[:, 1], source[:, 0], np.zeros(12), np.ones(12)], 1)
    a, b, x, y = np.linalg.lstsq(system, target.ravel(), rcond=None)[0]
    assert similarity(source, target) == pytest.approx(np.array([[a, -b, x], [b, a, y]]), abs=1e-12)


def test_similarity_of_one_place_is_refused():
    with pytest.raises(ValueError, match="coincide"):
        similarity(np.ones((5, 2)), np.random.default_rng(0).normal(size=(5, 2)))


def test_the_face_stands_upright_and_fills_the_crop(astronaut_face):
    landmarks = align(astronaut_face, 512).apply(astronaut_face.landmarks)
    left, top, right, bottom = box_around(landmarks)
    assert 0.70 * 512 < bottom - top < 0.82 * 512  # 75 % for a frontal face of mean proportions
    assert top > 0.04 * 512
    assert 512 - bottom > 0.12 * 512  # a jaw that opens drops by up to 0.12
    assert (left + right) / 2 == pytest.approx(256, abs=0.02 * 512)
    eyes = landmarks[[33, 133]].mean(0), landmarks[[362, 263]].mean(0)
    assert eyes[0][1] == pytest.approx(eyes[1][1], abs=0.01 * 512)
    assert eyes[0][0] < eyes[1][0]


def test_the_crop_does_not_depend_on_how_the_photograph_lies(astronaut_face):
    reference = align(astronaut_face, 256)
    matrix = turn(71, 3.7, (900, 20))
    landmarks = moved(astronaut_face.landmarks, matrix)
    other = align(with_landmarks(astronaut_face, landmarks), 256)
    assert other.apply(landmarks) == pytest.approx(reference.apply(astronaut_face.landmarks), abs=1e-2)
    assert other.scale == pytest.approx(reference.scale / 3.7, rel=1e-5)


def test_neutral_and_smiling_land_in_the_same_frame(backend, london):
    """Identities that the template has not seen; distances in parts of the interocular distance."""
    size, errors, scales = 512, [], []
    for identity in ("001", "011", "036", "083", "101"):
        faces = [backend.detect(london(identity, kind))[0] for kind in ("neutral", "smiling")]
        neutral, smiling = (align(face, size).apply(face.landmarks) for face in faces)
        interocular = np.linalg.norm(neutral[[33, 133]].mean(0) - neutral[[362, 263]].mean(0))
        errors.append(np.linalg.norm(neutral[STABLE] - smiling[STABLE], axis=1).mean() / interocular)
        scales.append(align(faces[1], size).scale / align(faces[0], size).scale)
    # heads nod and turn a little between two photographs, which no similarity undoes: 2.3 % at most in these
    assert max(errors) < 0.035
    assert np.mean(errors) < 0.02
    # the London photographs are scaled alike, by the distance of the eyes
    assert scales == pytest.approx([1.0] * 5, abs=0.03)


def test_an_opened_jaw_neither_moves_nor_rescales_the_crop(backend, london):
    photo = london("001", "neutral")
    (face,) = backend.detect(photo)
    # everything below the lips moved down, and the gap between the mouth's corners made dark
    lips, (left, right) = face.landmarks[14, 1], face.landmarks[[61, 291], 0]
    drop = 0.17 * (face.landmarks[152, 1] - face.landmarks[10, 1])
    rows, columns = np.mgrid[: photo.shape[0], : photo.shape[1]].astype(np.float32)
    above = rows - np.clip(rows - lips, 0, drop)
    stretched = cv2.remap(photo, columns, above, cv2.INTER_LINEAR)
    across = (columns - (left + right) / 2) / ((right - left) / 2 * 0.85)
    inside = across**2 + ((rows - lips - drop / 2) / (drop / 2)) ** 2 < 1
    stretched[inside] = (60, 15, 15)
    (opened,) = backend.detect(stretched)
    # the landmarks did follow the jaw
    assert opened.action_units["AU26"] > 1.5
    assert opened.landmarks[152, 1] - face.landmarks[152, 1] > 0.5 * drop

    before, after = align(face, 512), align(opened, 512)
    interocular = 0.276 * 512
    assert after.scale == pytest.approx(before.scale, rel=0.03)
    corners = np.array([(0, 0), (511, 0), (0, 511), (511, 511)], np.float64)
    apart = np.linalg.norm(moved(corners, before.inverse()) - moved(corners, after.inverse()), axis=1)
    assert (apart * before.scale / interocular).max() < 0.12
    fit = before.apply(opened.landmarks)
    assert (fit > 0).all()
    assert (fit < 511).all()  # the dropped chin is in the crop too


def test_the_68_point_scheme_gives_the_same_crop(astronaut_face):
    landmarks = np.zeros((68, 2), np.float32)
    landmarks[list(IBUG_ON_MESH)] = astronaut_face.landmarks[list(IBUG_ON_MESH.values())]
    face = Face(astronaut_face.box, landmarks, "ibug68", 1.0)
    assert np.array_equal(align(face, 256).matrix, align(astronaut_face, 256).matrix)


def test_margin_shows_more_around_the_same_centre(astronaut_face):
    plain, wide = align(astronaut_face, 512), align(astronaut_face, 512, margin=1.5)
    assert wide.scale == pytest.approx(plain.scale / 1.5)
    assert wide.apply(moved(np.array([[255.5, 255.5]]), plain.inverse())) == pytest.approx(255.5, abs=1e-3)


def test_apply_and_inverse_undo_each_other(astronaut_face):
    alignment = align(astronaut_face, 384)
    points = astronaut_face.landmarks.astype(np.float64)
    assert moved(alignment.apply(points), alignment.inverse()) == pytest.approx(points, abs=1e-3)


def test_scaled_keeps_the_corners_of_the_crop(astronaut_face):
    alignment = align(astronaut_face, 96)
    large = alignment.scaled(517)
    assert large.size == 517
    assert large.matrix == pytest.approx(align(astronaut_face, 517).matrix, abs=1e-9)
    corner = moved(np.array([[-0.5, -0.5], [95.5, 95.5]]), alignment.inverse())
    assert large.apply(corner) == pytest.approx(np.array([[-0.5, -0.5], [516.5, 516.5]]), abs=1e-3)


def test_bad_sizes_and_margins(astronaut_face):
    for call in (
        lambda: align(astronaut_face, 0),
        lambda: align(astronaut_face, 64, margin=0),
        lambda: align(astronaut_face, 64).scaled(0),
    ):
        with pytest.raises(ValueError, match="must be"):
            call()


# --- cutting it out ---


def test_the_crop_is_found_where_the_alignment_says(backend, astronaut, astronaut_face):
    alignment = align(astronaut_face, 400, margin=1.3)
    crop = crop_face(astronaut, alignment)
    (again,) = backend.detect(crop)
    expected = alignment.apply(astronaut_face.landmarks)
    assert np.linalg.norm(again.landmarks - expected, axis=1).mean() < 0.015 * 400


def test_a_crop_put_back_gives_the_photograph(astronaut, astronaut_face):
    alignment = align(astronaut_face, 768)
    crop = crop_face(astronaut, alignment)
    assert crop.shape == (768, 768, 3)
    assert crop.dtype == np.uint8
    back = cv2.warpAffine(crop, alignment.matrix, (512, 512), flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP)
    x0, y0, x1, y1 = (round(value) for value in astronaut_face.box)
    difference = np.abs(back.astype(int) - astronaut)[y0:y1, x0:x1]
    # two cubic interpolations at more than five times the photograph's resolution
    assert difference.mean() < 1.0
    assert np.percentile(difference, 99) < 8


@pytest.mark.parametrize("size", [64, 96, 100, 256])
def test_shrinking_does_not_alias(size):
    # single-pixel stripes are grey from afar; every second sample of them would be black or white
    stripes = np.zeros((2000, 2000, 3), np.uint8)
    stripes[:, ::2] = 255
    scale = size / 1901.3
    crop = crop_face(stripes, Alignment(np.array([[scale, 0, -10 * scale], [0, scale, -20 * scale]]), size))
    assert np.abs(crop.astype(int) - 127).max() < 16


def test_shrinking_moves_nothing():
    # a soft blob stays where the matrix puts it, to a tenth of a pixel
    y, x = np.mgrid[:900, :900]
    blob = 255 * np.exp(-((x - 430.0) ** 2 + (y - 515.0) ** 2) / (2 * 40.0**2))
    photo = np.repeat(blob.round().astype(np.uint8)[..., None], 3, axis=2)
    for size in (100, 257, 512):
        scale = size / 700
        alignment = Alignment(np.array([[scale, 0, -100 * scale], [0, scale, -150 * scale]]), size)
        crop = crop_face(photo, alignment)[..., 0].astype(float)
        rows, columns = np.mgrid[:size, :size]
        centre = np.array([(columns * crop).sum(), (rows * crop).sum()]) / crop.sum()
        assert centre == pytest.approx(alignment.apply(np.array([430.0, 515.0])), abs=0.1)


def test_beyond_the_border_the_photograph_is_reflected(backend, astronaut):
    photo = np.maximum(astronaut, 60)[60:, 185:]  # nothing in it is black, and the face touches two borders
    (face,) = backend.detect(photo)
    alignment = align(face, 256)
    assert (moved(np.array([[0.0, 0.0]]), alignment.inverse()) < -5).any()  # the crop does reach beyond
    crop = crop_face(photo, alignment)
    assert crop.min() > 20  # 60, less what cubic interpolation undershoots
    # a pixel beyond the border equals its mirror image within
    (row, column) = 120, 2
    x, y = moved(np.array([[column, row]], np.float64), alignment.inverse())[0]
    assert x < 0
    mirrored = alignment.apply(np.array([[-x, y]]))[0].round().astype(int)
    assert crop[row, column] == pytest.approx(crop[mirrored[1], mirrored[0]].astype(int), abs=30)


def test_only_photographs_are_cropped(astronaut, astronaut_face):
    with pytest.raises(ImageError, match="height, width, 3"):
        crop_face(astronaut[..., 0], align(astronaut_face, 64))
