"""Real scorers on the astronaut: a copy is perfect, and whatever is made worse scores worse."""

import cv2
import numpy as np
import pytest
from PIL import Image

from magicedit.action_units import NAMES
from magicedit.baselines import WarpEditor
from magicedit.errors import MagicEditError, NoFaceError
from magicedit.evaluation.metrics.regions import REGIONS
from magicedit.evaluation.scoring import CROP, SCORERS, TURNED, Scoring, au_columns, head_group
from magicedit.evaluation.subjects import Subject
from magicedit.faces import Face, Pose, align, crop_face, region_polygon
from magicedit.faces.backends import dlib as dlib_backend

pytestmark = pytest.mark.skipif(
    not dlib_backend.available(),
    reason="the evaluation extra (dlib, face-recognition-models) is not installed",
)

# Of the 68 landmarks, AU12's mouth corners are AU15's and AU20's too, and AU1's points are AU4's.
LEFT_OUT = {
    "blendshapes": {},
    "landmarks68": {"AU12": {"AU15", "AU20", "AU26"}, "AU1": {"AU2", "AU4", "AU9"}},
}


def scored_aus(scorer: str, *asked: str) -> list[str]:
    """The units that errors of a request are taken over."""
    left_out = set().union(*(LEFT_OUT[scorer].get(name, set()) for name in asked))
    return [name for name in NAMES if name not in left_out]


@pytest.fixture(scope="module")
def scoring() -> Scoring:
    return Scoring(NAMES)


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return pytest.importorskip("skimage.data").astronaut()


@pytest.fixture(scope="module")
def subject(picture, tmp_path_factory) -> Subject:
    path = tmp_path_factory.mktemp("people") / "ann.png"
    Image.fromarray(picture).save(path)
    return Subject("ann", path)


@pytest.fixture(scope="module")
def original(scoring, subject):
    return scoring.original(subject)


@pytest.fixture(scope="module")
def warped(scoring, original):
    """`warped(AU12=-4.0)`: the photograph with its muscles pulled."""
    editor, done = WarpEditor(scoring.backend), {}

    def edit(**asked: float) -> np.ndarray:
        key = tuple(asked.items())
        if key not in done:
            done[key] = editor(original.photo, asked)
        return done[key]

    return edit


@pytest.fixture(scope="module")
def row(scoring, original):
    """`row(pixels, AU12=-4.0)`: scores of a picture as the result of a request."""
    return lambda pixels, **asked: scoring.score(original, pixels, asked)[0]


def test_a_copy_changes_nothing_and_misses_all(scoring, original, picture):
    found, crop = scoring.score(original, picture.copy(), {"AU12": -3.0, "AU1": 2.0})
    for name, best in (
        *[(metric, 0) for metric in ("identity_distance", "background_rmse", "pose_degrees", "pose_matrix")],
        ("pixels_changed", 0),
        ("change_by_region", dict.fromkeys(REGIONS, 0)),
        ("ssim", pytest.approx(1, abs=1e-6)),
    ):
        assert found[name] == best, name
    np.testing.assert_array_equal(crop, original.measured.crop)
    assert set(found["changed"]) == set(SCORERS)
    for scorer, changed in found["changed"].items():
        assert set(NAMES) <= set(changed)
        assert all(value == 0 for value in changed.values())
        count = {"blendshapes": 12, "landmarks68": 6}[scorer]  # the others move with AU1 or AU12
        assert len(scored_aus(scorer, "AU12", "AU1")) == count
        assert found["au_mse"][scorer] == pytest.approx((9 + 4) / count)  # the full error
        assert found["au_mae"][scorer] == pytest.approx((3 + 2) / count)
        assert found["au_mse_asked"][scorer] == pytest.approx((9 + 4) / 2)
        assert found["achieved"][scorer] == found["gain"][scorer] == 0
    if "st_lpips" not in scoring.skipped:
        assert found["st_lpips"] == found["st_lpips_mouth"] == 0


def test_a_copy_is_right_where_nothing_is_asked(row, picture):
    found = row(picture)
    assert found["au_mse"] == found["au_mae"] == dict.fromkeys(SCORERS, 0)
    assert found["au_mse_asked"] == found["achieved"] == found["gain"] == dict.fromkeys(SCORERS)
    assert found["unrequested_change"] == 0


def test_what_is_missing_is_told(scoring, row, picture):
    found = row(picture)
    for metric in ("lpips", "arcface_cosine", "mobileface_cosine", "st_lpips"):
        assert (found[metric] is None) == (metric in scoring.skipped)
    for reason in scoring.skipped.values():
        assert len(reason) > 10
        assert "\n" not in reason
    assert not {"ssim", "identity_distance", "landmarks68"} & set(scoring.skipped)


def test_without_dlib_the_rest_is_measured(subject, picture, monkeypatch):
    monkeypatch.setattr(dlib_backend, "available", lambda: False)
    scoring = Scoring(NAMES)
    assert "magicedit[evaluation]" in scoring.skipped["identity_distance"]
    assert "landmarks68" in scoring.skipped
    found, _ = scoring.score(scoring.original(subject), picture, {"AU1": 1.0})
    assert found["identity_distance"] is None
    assert set(found["changed"]) == set(found["au_mse"]) == {"blendshapes"}
    assert found["background_rmse"] == 0


# --- A worse picture scores worse ---


def test_identity_falls_with_heavier_warps(row, warped):
    """0.08, 0.22, 0.30."""
    distances = [row(warped(AU12=value))["identity_distance"] for value in (-1.0, -3.0, -5.0)]
    assert 0.02 < distances[0] < distances[1] - 0.05
    assert distances[1] < distances[2] - 0.03
    assert distances[2] < 0.5


def test_identity_of_another_person(scoring, original, row, warped, picture, london):
    """Somebody else's face in the astronaut's place is farther than her own, however warped."""
    photo = london("001", "neutral")
    crop = crop_face(photo, align(scoring.backend.detect(photo)[0], CROP))
    matrix, size = original.alignment.inverse(), picture.shape[1::-1]
    weight = cv2.GaussianBlur(original.mask.astype(np.float32), (0, 0), 5)
    weight = cv2.warpAffine(weight, matrix, size)[..., None]
    theirs = cv2.warpAffine(crop, matrix, size, flags=cv2.INTER_AREA)
    swapped = np.rint(picture * (1 - weight) + theirs * weight).astype(np.uint8)
    distance = row(swapped)["identity_distance"]
    assert distance > 0.5
    assert distance > row(warped(AU12=-5.0))["identity_distance"] + 0.1


def test_pose_of_a_turned_picture(row, picture, original):
    """Of a picture turned by an angle only the roll differs, by that angle."""
    centre = tuple(map(float, original.measured.face.landmarks.mean(0)))
    rows = []
    for angle in (2, 5, 10):
        matrix = cv2.getRotationMatrix2D(centre, angle, 1)
        turned = cv2.warpAffine(picture, matrix, picture.shape[1::-1], borderMode=cv2.BORDER_REFLECT)
        rows.append(row(turned))
        assert rows[-1]["pose_degrees"] == pytest.approx(angle / np.sqrt(3), rel=0.1, abs=0.2)
        in_matrix = np.sqrt(4 * (1 - np.cos(np.radians(angle))) / 9)
        assert rows[-1]["pose_matrix"] == pytest.approx(in_matrix, rel=0.1, abs=0.003)
    assert rows[0]["pose_degrees"] < rows[1]["pose_degrees"] < rows[2]["pose_degrees"]
    assert max(found["identity_distance"] for found in rows) < 0.2  # aligned again, the face is the same


def test_similarity_falls_with_blur_and_noise(row, picture):
    noise = np.random.default_rng(0).normal(0, 1, picture.shape)
    for damage in (
        lambda sigma: cv2.GaussianBlur(picture, (0, 0), sigma),
        lambda sigma: np.clip(picture + 10 * sigma * noise, 0, 255).astype(np.uint8),
    ):
        little, much = (row(damage(sigma))["ssim"] for sigma in (1.0, 2.0))
        assert much < little - 0.05 < 0.9


def test_background_that_is_painted(row, picture):
    """A box of the wall beside her head; the face stays as it is."""
    values, counts = [], []
    for width in (0, 20, 40):
        painted = picture.copy()
        painted[20:120, 270 : 270 + width] = 255 - painted[20:120, 270 : 270 + width]
        found = row(painted)
        values.append(found["background_rmse"])
        counts.append(found["pixels_changed"])
    assert values[0] == 0
    assert 0.05 < values[1] < values[2] - 0.02
    # 255 - v is never v
    assert counts == [0, 100 * 20, 100 * 40]


def test_the_face_is_no_background(row, warped):
    """A warp of the mouth, to the corners of which the outline is near, is nearly none."""
    assert row(warped(AU12=-4.0))["background_rmse"] < 0.015


def test_a_ghost_in_the_mouth_is_unrequested_change_of_the_brows(scoring, row, picture, original):
    """Darkened lips are asked for by AU12 and not by AU1; the mouth's square sees more of them."""
    face = original.measured.face
    lips = np.rint(region_polygon(face.landmarks, face.scheme, "lips")).astype(np.int32)
    ghost = cv2.fillPoly(picture.copy(), [lips], (40, 20, 20))
    brows, smile = row(ghost, AU1=3.0), row(ghost, AU12=-3.0)
    assert brows["change_by_region"] == smile["change_by_region"]
    assert brows["unrequested_change"] == brows["change_by_region"]["mouth"] > 20
    assert smile["unrequested_change"] < 0.1
    if "st_lpips" not in scoring.skipped:
        assert brows["st_lpips_mouth"] > brows["st_lpips"] > 0.005


@pytest.mark.parametrize("scorer", SCORERS)
def test_action_units_right_missing_and_opposite(row, warped, picture, scorer):
    """A smile that goes as asked, stays, and grows. (She smiles at 4.4, so that less than a step is left.)"""
    right, none, wrong = (row(p, AU12=-4.0) for p in (warped(AU12=-4.0), picture, warped(AU12=3.0)))
    assert right["achieved"][scorer] > 0.5 > 0 == none["achieved"][scorer] > wrong["achieved"][scorer]
    assert right["gain"][scorer] > 0.15 > 0 == none["gain"][scorer] > wrong["gain"][scorer]
    asked = [found["au_mse_asked"][scorer] for found in (right, none, wrong)]
    assert asked[0] < 3 < asked[1] < asked[2]
    assert asked[1] == pytest.approx(16)
    assert right["au_mse"][scorer] < none["au_mse"][scorer] < wrong["au_mse"][scorer]
    # not below a copy's, for the landmarks' noise of half a step on units that were not asked
    assert right["au_mae"][scorer] < wrong["au_mae"][scorer]
    # the same picture under the opposite request
    opposite = row(warped(AU12=-4.0), AU12=4.0)
    assert opposite["achieved"][scorer] is None  # she has less than half a step left to smile
    assert opposite["au_mse"][scorer] > right["au_mse"][scorer]


# --- Sides ---


@pytest.mark.parametrize("scorer", SCORERS)
def test_sides_are_scored_on_their_side(row, warped, scorer):
    pixels = warped(AU12L=-4.0)
    left, right = row(pixels, AU12L=-4.0), row(pixels, AU12R=-4.0)
    assert left["achieved"][scorer] > right["achieved"][scorer] + 0.15
    assert left["au_mse_asked"][scorer] < right["au_mse_asked"][scorer] - 3
    changed, start = left["changed"][scorer], left["before"]["blendshapes"]
    assert left["achieved"][scorer] == pytest.approx(changed["AU12L"] / -4)
    assert start["AU12L"] > 4  # so that -4 is possible
    assert left["au_mse_asked"][scorer] == pytest.approx((changed["AU12L"] + 4) ** 2)
    # among all AUs the whole unit is to change by half of it
    errors = [changed[name] - (-2 if name == "AU12" else 0) for name in scored_aus(scorer, "AU12")]
    assert left["au_mse"][scorer] == pytest.approx(np.mean(np.square(errors)))
    assert left["au_mae"][scorer] == pytest.approx(np.mean(np.abs(errors)))


def test_sides_by_hand():
    aus = ("AU1", "AU12")
    before = {"blendshapes": {"AU1": 1.0, "AU12": 2.0, "AU12L": 2.0, "AU12R": 2.0}}
    perfect = {"AU1": 0.0, "AU12": 1.0, "AU12L": 2.0, "AU12R": 0.0}
    both = {"AU1": 0.0, "AU12": 2.0, "AU12L": 2.0, "AU12R": 2.0}
    whole = {"AU1": 0.0, "AU12": 1.0}  # a scorer that does not tell sides
    columns = au_columns({"AU12L": 2.0}, {"a": perfect, "b": both, "c": whole}, before, aus)
    assert columns == {
        "au_mse": {"a": 0.0, "b": 0.5, "c": 0.0},
        "au_mae": {"a": 0.0, "b": 0.5, "c": 0.0},
        "au_mse_asked": {"a": 0.0, "b": 0.0, "c": None},
        "achieved": {"a": 1.0, "b": 1.0, "c": None},
        "gain": {"a": 1.0, "b": 0.0, "c": 1.0},  # b moved the whole unit by 2 instead of 1
    }
    columns = au_columns({"AU12L": 2.0, "AU12R": -1.0}, {"a": perfect}, before, aus)
    assert columns["au_mse"] == {"a": pytest.approx(0.5**2 / 2)}
    assert columns["au_mse_asked"] == {"a": pytest.approx((0 + 1) / 2)}
    assert columns["achieved"] == {"a": pytest.approx(4 / 5)}


def test_scorers_without_intensities_start_at_the_blendshapes():
    before = {"blendshapes": {"AU12": 4.0}, "labels": {"AU12": 1.0}}
    changed = {name: {"AU12": 1.0} for name in ("blendshapes", "landmarks68", "labels")}
    columns = au_columns({"AU12": 3.0}, changed, before, ("AU12",))
    assert columns["au_mse"] == {"blendshapes": 0.0, "landmarks68": 0.0, "labels": 4.0}
    assert columns["achieved"] == {"blendshapes": 1.0, "landmarks68": 1.0, "labels": pytest.approx(1 / 3)}


# --- What cannot be scored ---


def test_results_of_another_kind_are_refused(row, picture):
    with pytest.raises(MagicEditError, match=r"returned uint8 \(256, 512, 3\) for uint8 \(512, 512, 3\)"):
        row(picture[::2])
    with pytest.raises(MagicEditError, match="returned float32"):
        row(picture.astype(np.float32))


def test_results_without_the_face(row, picture, original):
    with pytest.raises(NoFaceError, match="not found again"):
        row(np.full_like(picture, 128))
    elsewhere = np.roll(picture, 150, axis=1)  # a face, and not where it was
    with pytest.raises(NoFaceError, match="not found again"):
        row(elsewhere)


def test_photographs_without_a_face(scoring, tmp_path):
    Image.new("RGB", (200, 200), "grey").save(tmp_path / "wall.png")
    with pytest.raises(NoFaceError, match=r"photograph of wall$"):
        scoring.original(Subject("wall", tmp_path / "wall.png"))


def test_people_are_told_apart_though_few_are_remembered(scoring, subject, picture, tmp_path):
    for number in range(3):
        Image.fromarray(np.roll(picture, 30 * number, axis=1)).save(tmp_path / f"{number}.png")
    people = [Subject(f"shifted {number}", tmp_path / f"{number}.png") for number in range(3)]
    for _ in range(2):
        for number, person in enumerate(people):
            found = scoring.original(person)
            np.testing.assert_array_equal(found.photo.pixels, np.roll(picture, 30 * number, axis=1))
            assert scoring.original(person) is found


@pytest.mark.parametrize(
    ("pose", "group"),
    [
        (Pose(0, 0, 0), "frontal"),
        (Pose(-TURNED, 0, 0), "turned"),
        (Pose(TURNED - 0.1, -TURNED + 0.1, 40), "frontal"),
        (Pose(0, 20, 0), "turned"),
        (None, "unknown"),
    ],
)
def test_groups_of_heads(pose, group):
    assert head_group(Face((0, 0, 1, 1), np.zeros((68, 2)), "ibug68", 1.0, pose=pose)) == group
