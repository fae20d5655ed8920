"""Every metric against numbers by hand, or another implementation."""

import base64
import importlib.util
import json
import os
import sys
import types

import cv2
import numpy as np
import pytest
import torch

from magicedit.action_units import NAMES
from magicedit.errors import MissingDependencyError, ModelError
from magicedit.evaluation.metrics.au_error import achieved_share, au_error, possible_change
from magicedit.evaluation.metrics.background import background_rmse
from magicedit.evaluation.metrics.control import crosstalk, response, side_leak
from magicedit.evaluation.metrics.expression_gain import expression_gain
from magicedit.evaluation.metrics.head_pose import pose_rmse_degrees, pose_rmse_matrix, rotation_matrix
from magicedit.evaluation.metrics.identity import descriptor_distance, embedding_cosine
from magicedit.evaluation.metrics.intervals import bootstrap
from magicedit.evaluation.metrics.mobileface import (
    FOLDER_VARIABLE,
    load_mobileface,
    read_graph,
    recognition_alignment,
)
from magicedit.evaluation.metrics.mouth import BetweenLips, between_lips, mouth_ratios, mouth_window
from magicedit.evaluation.metrics.perceptual import load_fid, load_lpips
from magicedit.evaluation.metrics.regions import (
    REGIONS,
    change_by_region,
    region_masks,
    unrequested_change,
    untouched_regions,
)
from magicedit.evaluation.metrics.st_lpips import PACKAGE, load_st_lpips
from magicedit.evaluation.metrics.structure import ssim
from magicedit.faces import Face, Pose, align, crop_face, face_region, load_backend
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


@pytest.fixture(scope="module")
def st_lpips():
    if importlib.util.find_spec(PACKAGE) is None:
        pytest.skip("the extra lpips is not installed")
    return load_st_lpips()


def test_st_lpips_is_its_authors(st_lpips, astronaut, monkeypatch):
    """Their modules, given stand-ins for what they import and do not use."""
    for name in ("torchvision", "torchvision.models", "torchsummary", "IPython"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["torchvision"].models = sys.modules["torchvision.models"]
    sys.modules["torchsummary"].summary = sys.modules["IPython"].embed = None
    theirs = importlib.import_module(f"{PACKAGE}.stlpips").LPIPS(
        net="alex", variant="shift_tolerant", verbose=False
    )
    before = np.ascontiguousarray(astronaut[60:188, 150:290])
    found = {}
    for kind, after in _worse(before).items():
        pair = [torch.from_numpy(p).permute(2, 0, 1)[None].float() / 127.5 - 1 for p in (before, after)]
        with torch.no_grad():
            expected = float(theirs(*pair))
        found[kind] = st_lpips(before, after)
        assert found[kind] == pytest.approx(expected, rel=1e-5)
    assert min(found.values()) > 0.1
    assert len({round(value, 3) for value in found.values()}) == len(found)


def test_st_lpips_of_equal_shifted_and_blurred_pictures(st_lpips, astronaut):
    """A shift of a pixel is nearly nothing to it, and a tenth of a slight blur."""
    face = np.ascontiguousarray(astronaut[60:188, 150:278])
    shifted = np.ascontiguousarray(astronaut[60:188, 151:279])
    blurs = [st_lpips(face, cv2.GaussianBlur(face, (0, 0), sigma)) for sigma in (1.0, 2.0, 4.0)]
    assert st_lpips(face, face) == 0
    assert 0 < 10 * st_lpips(face, shifted) < blurs[0] < blurs[1] < blurs[2]


def test_st_lpips_refuses_what_it_cannot_compare(st_lpips):
    big, small = np.zeros((64, 64, 3), np.uint8), np.zeros((16, 64, 3), np.uint8)
    for pair in ((big, big[:48]), (small, small)):
        with pytest.raises(ValueError, match="two pictures of one size from 32 px on"):
            st_lpips(*pair)


def test_st_lpips_says_what_is_missing(monkeypatch):
    monkeypatch.setattr("magicedit.evaluation.metrics.st_lpips.PACKAGE", "no_such_package")
    with pytest.raises(MissingDependencyError, match=r"magicedit\[lpips\]"):
        load_st_lpips()


# --- The mouth ---

INNER_LIPS = (78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308, 415, 310, 311, 312, 13, 82, 81, 80, 191)


def square_mouth(left: float, top: float, right: float, bottom: float) -> np.ndarray:
    """478 landmarks in a crop of 128 px, inner lips on a box, eyes 40 px apart."""
    landmarks = np.full((478, 2), 64, np.float32)
    landmarks[[33, 133]], landmarks[[362, 263]] = (44, 40), (84, 40)
    corners = np.array([(left, top), (right, top), (right, bottom), (left, bottom)], np.float32)
    for place, point in enumerate(INNER_LIPS):
        side, along = divmod(place, 5)
        landmarks[point] = corners[side] + (corners[(side + 1) % 4] - corners[side]) * along / 5
    return landmarks


def test_between_lips_by_hand():
    """A ramp of two levels a column: Sobel's kernel gives 8 times the slope, wherever it is."""
    ramp = np.broadcast_to((2 * np.arange(128)).astype(np.uint8)[None, :, None], (128, 128, 3)).copy()
    ramp[:70], ramp[91:] = 255, 0  # lips, which are not looked at
    found = between_lips(ramp, square_mouth(40, 68, 80, 92), "mediapipe478")
    columns, rows = np.arange(41, 80), 23  # a pixel off the outline's own, which polygons draw too
    inner = ramp[70:91, 41:80, 0]
    assert found.pixels == len(columns) * rows
    untouched = between_lips(
        np.broadcast_to((2 * np.arange(128)).astype(np.uint8)[None, :, None], (128, 128, 3)).copy(),
        square_mouth(40, 68, 80, 92),
        "mediapipe478",
    )
    assert untouched.sharpness == 16
    assert untouched.detail == 0
    assert untouched.luminance == inner.mean() == 120
    assert untouched.teeth == pytest.approx(
        np.sort(np.tile(2 * columns, rows))[len(columns) * rows // 2 :].mean()
    )
    assert found.sharpness > 16  # the edge of the lips, drawn two rows into the mouth


def test_detail_is_the_second_difference():
    """Of alternate columns twice their step."""
    landmarks = square_mouth(40, 68, 80, 92)
    columns = np.where(np.arange(128) % 2, 110, 100).astype(np.uint8)
    striped = np.broadcast_to(columns[None, :, None], (128, 128, 3)).copy()
    found = between_lips(striped, landmarks, "mediapipe478")
    assert (found.detail, found.sharpness) == (20, 0)  # Sobel's kernel skips every second column


def test_closed_lips_show_nothing():
    crop = np.full((128, 128, 3), 100, np.uint8)
    assert between_lips(crop, square_mouth(40, 79.6, 80, 80.4), "mediapipe478") is None


def test_mouth_ratios_by_hand():
    real = BetweenLips(sharpness=20, detail=8, luminance=100, teeth=150, pixels=900)
    assert mouth_ratios(BetweenLips(5, 4, 125, 150, 80), real) == (0.25, 0.5, 1.25, 1.0)
    assert mouth_ratios(real, real) == (1, 1, 1, 1)


def test_a_blurred_and_a_painted_mouth_are_told_from_a_real_smile(astronaut):
    (face,) = load_backend().detect(astronaut)
    alignment = align(face, 384)
    crop, landmarks = crop_face(astronaut, alignment), alignment.apply(face.landmarks)
    real = between_lips(crop, landmarks, face.scheme)
    assert real.teeth > real.luminance > 100
    mouth = np.rint(landmarks[list(INNER_LIPS)]).astype(np.int32)
    pit = cv2.fillPoly(crop.copy(), [mouth], (38, 18, 18))
    band = cv2.GaussianBlur(crop, (0, 0), 6)
    for picture, luminance in ((pit, (0.05, 0.4)), (band, (0.8, 1.2))):
        ratios = mouth_ratios(between_lips(picture, landmarks, face.scheme), real)
        assert ratios.sharpness < 0.5
        assert ratios.detail < 0.5
        assert luminance[0] < ratios.luminance < luminance[1]


def test_the_mouths_square_lies_in_the_crop():
    """60 px, around the lips; shifted where it would leave the crop."""
    landmarks = square_mouth(40, 68, 80, 92)
    landmarks[[61, 291]], landmarks[[0, 17]] = ((35, 80), (85, 80)), ((60, 60), (60, 100))
    lips = [61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 409, 270, 269, 267, 0, 37, 39, 40, 185]
    landmarks[[i for i in lips if i not in (61, 291, 0, 17)]] = (60, 80)
    assert mouth_window(landmarks, "mediapipe478", 128) == (slice(50, 110), slice(30, 90))
    low = landmarks + np.float32((0, 45))
    assert mouth_window(low, "mediapipe478", 128) == (slice(68, 128), slice(30, 90))


# --- Parts of the face ---


@pytest.fixture
def two_schemes(astronaut):
    """Landmarks of the astronaut by scheme; each of iBUG's 68 is the nearest of the 478."""
    (face,) = load_backend().detect(astronaut)
    nearest = [162, 234, 93, 58, 172, 136, 149, 148, 152, 377, 378, 365, 397, 288, 323, 454, 389]
    nearest += [70, 63, 105, 66, 107, 336, 296, 334, 293, 300, 168, 197, 5, 4, 75, 97, 2, 326, 305]
    nearest += [33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380]
    nearest += [61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181, 78, 82, 13, 312, 308, 317, 14, 87]
    return {"mediapipe478": face.landmarks, "ibug68": face.landmarks[nearest]}


@pytest.mark.parametrize("scheme", ["mediapipe478", "ibug68"])
def test_parts_share_no_pixel_and_fill_the_face(two_schemes, scheme):
    landmarks = two_schemes[scheme]
    masks = region_masks(landmarks, scheme, 512)
    assert tuple(masks) == REGIONS
    assert (np.sum(list(masks.values()), axis=0) == face_region(landmarks, 512, scheme)).all()
    centres = {
        "eyes": (159, 145, 386),
        "brows": (105, 334),
        "nose": (4, 5),
        "mouth": (0, 17),
        "elsewhere": (50, 280),
    }
    for name, points in centres.items():
        for x, y in np.rint(two_schemes["mediapipe478"][list(points)]).astype(int):
            assert masks[name][y, x], (name, x, y)


@pytest.mark.parametrize("scheme", ["mediapipe478", "ibug68"])
def test_change_is_told_by_part(two_schemes, scheme, astronaut):
    """10 levels brighter brows, everything else as it was; then the background alone."""
    landmarks = two_schemes[scheme]
    masks = region_masks(landmarks, scheme, 512)
    before = astronaut // 2
    after = before.copy()
    after[masks["brows"]] += 10
    assert change_by_region(before, after, landmarks, scheme) == dict.fromkeys(REGIONS, 0) | {"brows": 10}
    after = before.copy()
    after[~face_region(landmarks, 512, scheme)] += 99
    assert change_by_region(before, after, landmarks, scheme) == dict.fromkeys(REGIONS, 0)
    with pytest.raises(ValueError, match="two square crops"):
        change_by_region(before, after[:300], landmarks, scheme)


def test_what_a_request_touches():
    assert untouched_regions(["AU1"]) == ["nose", "mouth"]
    assert untouched_regions(["AU5"]) == ["brows", "nose", "mouth", "elsewhere"]
    assert untouched_regions(["AU12L", "AU25"]) == ["eyes", "brows"]
    assert untouched_regions(["AU4", "AU26"]) == ["nose"]
    assert untouched_regions(["AU9"]) == []
    assert untouched_regions([]) == list(REGIONS)
    assert all(set(untouched_regions([name])) <= set(REGIONS) for name in NAMES)


def test_unrequested_change_by_hand():
    changes = {"eyes": 1.0, "brows": 9.0, "nose": 2.0, "mouth": 7.0, "elsewhere": 3.0}
    assert unrequested_change({"AU1": 3.0}, changes) == 7.0
    assert unrequested_change({"AU1": 3.0, "AU12": 0.0}, changes) == 7.0  # 0 asks for nothing
    assert unrequested_change({"AU1": 3.0, "AU26": 1.0}, changes) == 2.0
    assert unrequested_change({}, changes) == 9.0
    assert unrequested_change({"AU9": 1.0}, changes) is None


# --- Expression gain ---


@pytest.mark.parametrize(
    ("changed", "gain"),
    [
        ({"AU1": 0.0, "AU4": 0.0, "AU12": 0.0}, 0),  # did nothing
        ({"AU1": 3.0, "AU4": 0.0, "AU12": 4.0}, 1),
        ({"AU1": 6.0, "AU4": 0.0, "AU12": 8.0}, 0),  # twice as much
        ({"AU1": 1.5, "AU4": 0.0, "AU12": 2.0}, 0.5),
        ({"AU1": -3.0, "AU4": 0.0, "AU12": -4.0}, -1),
        ({"AU1": 3.0, "AU4": 5.0, "AU12": 4.0}, 0),  # right, and as much beside it
        ({"AU1": 3.0, "AU12": 4.0, "AU9": 7.0}, 1),  # AU9 is not looked at
    ],
)
def test_expression_gain_by_hand(changed, gain):
    """The target is 5 steps away: AU1 by 3, AU12 by 4."""
    target = {"AU1": 3.0, "AU12": 4.0}
    assert expression_gain(target, changed, ("AU1", "AU4", "AU12")) == pytest.approx(gain)


def test_expression_gain_needs_a_target():
    assert expression_gain({"AU12": 0.4}, {"AU12": 0.4}, ("AU12",)) is None
    assert expression_gain({"AU12": 4.0}, {"AU1": 0.0}, ("AU12", "AU1")) is None  # AU12 was not measured


# --- MobileFace ---


def write_graph(folder, nodes: list[dict], weights: dict[str, np.ndarray], output: str) -> None:
    folder.mkdir(exist_ok=True)
    entries = [{"name": name, "shape": list(v.shape), "dtype": str(v.dtype)} for name, v in weights.items()]
    constants = [{"name": name, "op": "Const"} for name in weights]
    (folder / "mobileface.json").write_text(
        json.dumps(
            {
                "signature": {"outputs": {"out": {"name": f"{output}:0"}}},
                "modelTopology": {"node": constants + nodes},
                "weightsManifest": [{"paths": ["mobileface.bin"], "weights": entries}],
            }
        )
    )
    (folder / "mobileface.bin").write_bytes(b"".join(v.tobytes() for v in weights.values()))


@pytest.fixture
def small_graph(tmp_path):
    """Padding, a convolution of stride 2, PReLU by its parts, a depthwise one, a product of matrices; nodes
    out of order. Its folder, and its weights as arrays."""
    rng = np.random.default_rng(0)
    weights = {
        name: rng.normal(size=shape).astype(np.float32)
        for name, shape in (("w", (3, 3, 3, 4)), ("slope", (4,)), ("d", (3, 3, 4, 1)), ("dense", (36, 5)))
    }
    zero = np.zeros((), np.float32)
    weights |= {"zero": zero, "shape": np.array([-1, 36], np.int32)}
    weights["pad"] = np.array([[0, 0], [1, 1], [1, 1], [0, 0]], np.int32)

    def convolution(stride: str) -> dict:
        padding = {"s": base64.b64encode(b"VALID").decode()}
        return {"padding": padding, "strides": {"list": {"i": ["1", stride, stride, "1"]}}}

    nodes = [
        {"name": "out", "op": "MatMul", "input": ["flat", "dense"]},
        {"name": "x", "op": "Placeholder"},
        {"name": "padded", "op": "Pad", "input": ["x", "pad"]},
        {"name": "conv", "op": "Conv2D", "input": ["padded", "w"], "attr": convolution("2")},
        {"name": "up", "op": "Maximum", "input": ["zero", "conv"]},
        {"name": "down", "op": "Minimum", "input": ["zero", "conv"]},
        {"name": "scaled", "op": "Mul", "input": ["slope", "down"]},
        {"name": "prelu", "op": "AddV2", "input": ["up", "scaled"]},
        {"name": "deep", "op": "DepthwiseConv2dNative", "input": ["prelu", "d"], "attr": convolution("1")},
        {"name": "flat", "op": "Reshape", "input": ["deep", "shape"]},
    ]
    write_graph(tmp_path / "graph", nodes, weights, "out")
    return tmp_path / "graph", nodes, weights


def test_graphs_compute_what_torchs_layers_do(small_graph):
    folder, _, weights = small_graph
    pictures = np.random.default_rng(1).normal(size=(2, 10, 10, 3)).astype(np.float32)
    w, slope, d, dense = (torch.from_numpy(weights[name]) for name in ("w", "slope", "d", "dense"))
    convolution = torch.nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False)
    deep = torch.nn.Conv2d(4, 4, 3, groups=4, bias=False)
    prelu = torch.nn.PReLU(4)
    with torch.no_grad():
        convolution.weight.copy_(torch.einsum("yxio->oiyx", w))
        deep.weight.copy_(torch.einsum("yxco->coyx", d))
        prelu.weight.copy_(slope)
        x = deep(prelu(convolution(torch.from_numpy(pictures).permute(0, 3, 1, 2))))
        expected = torch.einsum("bchw->bhwc", x).flatten(1) @ dense
    torch.testing.assert_close(read_graph(folder / "mobileface.json")(torch.from_numpy(pictures)), expected)


def test_damaged_graphs_are_refused(small_graph):
    folder, nodes, weights = small_graph
    content = (folder / "mobileface.bin").read_bytes()
    for damaged in (content[:-4], content + b"0000"):
        (folder / "mobileface.bin").write_bytes(damaged)
        with pytest.raises(ModelError, match=r"mobileface\.json is not a TensorFlow\.js graph"):
            load_mobileface(folder)
    write_graph(folder, [*nodes, {"name": "odd", "op": "PyFunc", "input": ["x"]}], weights, "out")
    with pytest.raises(ModelError, match="operations that are not known here: PyFunc"):
        load_mobileface(folder)
    cut = [node for node in nodes if node["name"] != "padded"]
    write_graph(folder, cut, weights, "out")
    with pytest.raises(ModelError, match="lacks an input"):
        read_graph(folder / "mobileface.json")(torch.zeros(1, 10, 10, 3))


def test_mobileface_says_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    for folder in (None, tmp_path):
        with pytest.raises(MissingDependencyError, match=FOLDER_VARIABLE):
            load_mobileface(folder)


def test_mobileface_crop_has_the_eyes_in_their_places():
    landmarks = np.random.default_rng(0).uniform(0, 400, (478, 2)).astype(np.float32)
    landmarks[[33, 133]], landmarks[[362, 263]] = (100, 100), (170.46, 99.6)  # twice the template's distance
    landmarks[[4, 61, 291]] = ((135.46, 140.08), (106.52, 181.34), (164.88, 181.0))
    alignment = recognition_alignment(Face((0, 0, 1, 1), landmarks, "mediapipe478", 1.0))
    np.testing.assert_allclose(
        alignment.apply(landmarks[[33, 263]]), [(38.29, 51.7), (73.53, 51.5)], atol=0.05
    )
    assert alignment.scale == pytest.approx(0.5, rel=0.01)


def test_mobileface_tells_people_apart(london):
    """Five people, neutral and smiling: each smile is nearest to its own neutral face."""
    if FOLDER_VARIABLE not in os.environ:
        pytest.skip(f"{FOLDER_VARIABLE} names no folder with the network's files")
    embed, backend = load_mobileface(), load_backend()
    people = ("001", "011", "024", "036", "062")
    vectors = {}
    for expression in ("neutral", "smiling"):
        photos = [london(person, expression) for person in people]
        vectors[expression] = np.stack([embed(photo, backend.detect(photo)[0]) for photo in photos])
    cosines = vectors["neutral"] @ vectors["smiling"].T
    np.testing.assert_allclose(np.linalg.norm(vectors["neutral"], axis=1), 1, atol=1e-5)
    assert cosines.diagonal().min() > cosines[~np.eye(5, dtype=bool)].max() + 0.1


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
