"""The condition image that `pipeline.py` draws where the package is not installed."""

import colorsys

import numpy as np
import pytest
from PIL import Image
from tiny_models import random_crop, run_without_package

from magicedit import faces
from magicedit.faces import alignment, regions
from magicedit.models import load_pipeline
from magicedit.pipelines import condition
from magicedit.pipelines.condition import aligned_crop, condition_image
from magicedit.pipelines.pipeline_magicedit import MagicEditPipeline


def face_landmarks(scheme: str, size: int, seed: int = 0) -> np.ndarray:
    """Landmarks whose outline and jaw lie as a face's do: on ellipses, a little out of place and turned."""
    rng = np.random.default_rng(seed)
    points = rng.uniform(0.3, 0.7, (478 if scheme == "mediapipe478" else 68, 2))
    right_to_left = np.linspace(-1.62, 1.62, 17)
    jaw = np.stack([0.5 - 0.31 * np.cos(right_to_left + np.pi / 2), 0.42 + 0.40 * np.cos(right_to_left)], -1)
    if scheme == "mediapipe478":
        angles = np.linspace(0, 2 * np.pi, 36, endpoint=False)
        points[list(condition.OVAL_478)] = np.stack(
            [0.5 + 0.33 * np.sin(angles), 0.46 - 0.38 * np.cos(angles)], -1
        )
        points[list(condition.JAW[478])] = jaw
    else:
        points[:17] = jaw
    return ((points + rng.normal(0, 0.004, points.shape) + (0.02, -0.01)) * size).astype(np.float32)


def test_constants_are_the_packages():
    assert condition.OVAL_478 == regions._OVAL_478
    assert condition.JAW == {478: regions._JAW_478, 68: regions._JAW_68}
    drawn = (condition.GROW, condition.FOREHEAD_HEIGHT, condition.SUBPIXELS, condition.DISC_RADIUS)
    assert drawn == (
        regions.GROW,
        regions._FOREHEAD_HEIGHT,
        2**regions._SUBPIXEL_BITS,
        regions._DISC_RADIUS,
    )
    assert np.array_equal(condition.TEMPLATE, alignment._TEMPLATE)
    colours = [colorsys.hsv_to_rgb(2 * round(150 * number / 16) / 360, 1, 1) for number in range(17)]
    np.testing.assert_allclose(255 * np.array(colours), regions._JAW_COLOURS, atol=0.5)


@pytest.mark.parametrize("scheme", ["mediapipe478", "ibug68"])
@pytest.mark.parametrize("size", [96, 128, 512])
def test_it_is_the_packages_picture(scheme, size):
    """Equal away from the jaw's points, and nearly so at their edges, which OpenCV smooths differently."""
    for seed in range(5):
        landmarks = face_landmarks(scheme, size, seed)
        crop = random_crop(size, seed)
        ours = np.asarray(condition_image(crop, landmarks), int)
        expected = faces.condition_image(np.asarray(crop), landmarks, scheme)
        jaw = regions.jaw_contour(landmarks, scheme)
        y, x = np.mgrid[:size, :size]
        distance = np.hypot(x[..., None] - jaw[:, 0], y[..., None] - jaw[:, 1]).min(-1)
        away = distance > size / 128 + 3
        assert np.array_equal(ours[away], expected[away])
        assert (expected[away] == 0).all(-1).mean() > 0.2  # a face's area is black
        differing = np.abs(ours - expected)[~away]
        assert differing.mean() < 6
        within = distance < size / 128 - 1
        np.testing.assert_allclose(ours[within], expected[within], atol=2)


@pytest.mark.parametrize(
    ("crop", "landmarks", "message"),
    [
        (np.zeros((8, 8, 3), np.float32), np.zeros((68, 2)), "float32"),
        (np.zeros((8, 9, 3), np.uint8), np.zeros((68, 2)), "square"),
        (np.zeros((8, 8, 3), np.uint8), np.zeros((5, 2)), r"\(5, 2\)"),
        (np.zeros((8, 8, 3), np.uint8), np.full((68, 2), np.nan), "finite"),
    ],
)
def test_unusable_inputs_are_refused(crop, landmarks, message):
    with pytest.raises(ValueError, match=message):
        condition_image(crop, landmarks)


@pytest.mark.parametrize("landmarks", [np.ones((478, 2)), np.random.default_rng(0).normal(1e6, 9, (68, 2))])
def test_landmarks_outside_a_photograph_are_refused(landmarks):
    with pytest.raises(ValueError, match="pixels of the photograph of 40 x 30"):
        aligned_crop(Image.new("RGB", (40, 30)), landmarks, 64)


@pytest.mark.parametrize("scheme", ["mediapipe478", "ibug68"])
@pytest.mark.parametrize("side", [90, 700])
def test_crops_are_the_packages(scheme, side):
    """Enlarged and reduced, and over the photograph's border; only their interpolation differs."""
    photo = random_crop(side, 1)
    template = face_landmarks(scheme, side)
    template[condition.TEMPLATE[:, 0 if scheme == "mediapipe478" else 1].astype(int)] = (
        condition.TEMPLATE[:, 2:] * side * 0.8
    )
    turn = np.array([[np.cos(0.2), np.sin(0.2)], [-np.sin(0.2), np.cos(0.2)]])
    landmarks = (template @ turn + (0.12 * side, -0.1 * side)).astype(np.float32)
    face = faces.Face(box=(0, 0, 1, 1), landmarks=landmarks, scheme=scheme, score=1.0)
    expected_alignment = faces.align(face, 128)
    expected = faces.crop_face(np.asarray(photo), expected_alignment)
    crop, in_crop = condition.aligned_crop(photo, landmarks, 128)
    np.testing.assert_allclose(in_crop, expected_alignment.apply(landmarks), atol=1e-3)
    difference = np.abs(np.asarray(crop, int) - expected)
    assert expected.std() > 20
    assert difference.mean() < 0.6
    assert difference.max() <= 8


EDIT = """
    import sys

    import numpy as np
    import torch
    from diffusers import DiffusionPipeline
    from PIL import Image

    folder, crop, landmarks, result = sys.argv[1:]
    pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    assert "cv2" not in type(pipe).__call__.__globals__ and "magicedit" not in sys.modules
    crop = Image.open(crop)
    condition = pipe.condition_image(crop, np.load(landmarks))
    smile = [3.0 * (name == "AU12") for name in pipe.action_units]
    pipe(crop, condition, smile, generator=torch.Generator().manual_seed(0)).images[0].save(result)
"""


def test_whoever_has_the_folder_alone_can_edit(tmp_path):
    """`pipeline.py` draws the condition image and edits a crop as the package does, within one level."""
    pipeline = load_pipeline("mini", "cpu")
    pipeline.save_pretrained(tmp_path / "model")
    crop, landmarks = random_crop(128, 3), face_landmarks("mediapipe478", 128)
    crop.save(tmp_path / "crop.png")
    np.save(tmp_path / "landmarks.npy", landmarks)
    places = [tmp_path / name for name in ("model", "crop.png", "landmarks.npy", "edited.png")]
    run_without_package(EDIT, *places, work=tmp_path)

    import torch

    condition = Image.fromarray(faces.condition_image(np.asarray(crop), landmarks, "mediapipe478"))
    smile = [3.0 * (name == "AU12") for name in pipeline.action_units]
    expected = pipeline(crop, condition, smile, generator=torch.Generator().manual_seed(0)).images[0]
    difference = np.abs(np.asarray(Image.open(places[-1]), int) - np.asarray(expected))
    assert np.abs(np.asarray(expected, int) - np.asarray(crop)).max() > 20  # it is an edit
    assert (difference <= 1).mean() > 0.999
    assert difference.max() <= 2
    assert MagicEditPipeline.condition_image is condition_image
