"""The editor on real photographs, with real face detection and tiny random models, whose changes are real.

What needs a trained model uses the embedded one.
"""

import concurrent.futures
import io
import pickle
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from skimage import data

from magicedit import ExpressionEditor
from magicedit.action_units import EMOTIONS, GEOMETRIC, NAMES
from magicedit.editor import QUALITIES, sweep_strip, unreached
from magicedit.editor.doubts import doubts_before
from magicedit.editor.finding import FaceFinder
from magicedit.embedded import embedded_folder
from magicedit.errors import ActionUnitError, MagicEditError, ModelError, NoFaceError
from magicedit.faces import identity_distance, load_backend
from magicedit.faces.backends import dlib
from magicedit.faces.regions import reachable_region
from magicedit.imaging import save_image
from magicedit.models import PatchModelConfig, create_patch_pipeline, optimize
from magicedit.pipelines import sampling

TINY = {"block_out_channels": (16, 32), "resolution": 64, "default_steps": 2}


@pytest.fixture(scope="module")
def backend():
    return load_backend("mediapipe")


@pytest.fixture(scope="module")
def editor(backend):
    """Predicts flow, mask and paint: random ones of a few pixels."""
    return ExpressionEditor(create_patch_pipeline(PatchModelConfig(**TINY), seed=1), backend)


@pytest.fixture(scope="module")
def noise_editor(backend):
    """Predicts pixels only, so that the change has to be estimated from them."""
    return ExpressionEditor(
        create_patch_pipeline(PatchModelConfig(prediction="noise", **TINY), seed=1), backend
    )


@pytest.fixture(scope="module")
def photo():
    return data.astronaut()


@pytest.fixture(scope="module")
def group(photo):
    """Two faces, the right one smaller, far enough apart that their regions do not touch."""
    small = cv2.resize(photo[:320, 60:380], None, fx=0.7, fy=0.7, interpolation=cv2.INTER_AREA)
    canvas = np.full((512, 900, 3), 90, np.uint8)
    canvas[:, :512] = photo
    canvas[40 : 40 + small.shape[0], 600 : 600 + small.shape[1]] = small
    return canvas


def beyond(face, shape):
    """(height, width) bool: pixels of a square picture that no edit may reach, and a few fewer."""
    reached = reachable_region(face.landmarks, shape[0], face.scheme).astype(np.uint8)
    return cv2.dilate(reached, np.ones((3, 3), np.uint8), iterations=shape[0] // 100) == 0


class Altered:
    """A real backend whose faces are passed through a function."""

    name = "altered"

    def __init__(self, backend, alter):
        self.backend, self.alter = backend, alter
        self.shapes = []

    def detect(self, pixels):
        self.shapes.append(pixels.shape)
        return self.alter(self.backend.detect(pixels))


# --- Native resolution, and what must not change ---


@pytest.mark.parametrize("which", ["editor", "noise_editor"])
def test_changes_the_face_and_nothing_else(which, request, photo):
    editor = request.getfixturevalue(which)
    result = editor.edit(photo, add={"AU12": 3})
    edited = np.asarray(result.image)
    (face,) = editor.measure(photo)
    outside = beyond(face, photo.shape)
    assert outside.mean() > 0.8
    assert np.array_equal(edited[outside], photo[outside])
    assert (edited != photo)[~outside].mean() > 0.2


def test_result_has_the_native_size_of_a_large_photograph(editor, photo):
    large = cv2.resize(photo, None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC)
    result = editor.edit(large, add={"AU12": 3}, measure=False)
    assert result.image.size == (2048, 2048)
    edited = np.asarray(result.image)
    (face,) = editor.measure(large)
    outside = beyond(face, large.shape)
    assert np.array_equal(edited[outside], large[outside])
    assert (edited != large)[~outside].mean() > 0.2


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("request_", [{}, {"add": {"AU12": 0}}, {"set": {}}])
def test_empty_edit_returns_the_photograph_exactly(editor, photo, tmp_path, mode, orientation, request_):
    image = Image.fromarray(photo).convert(mode)
    if mode in ("LA", "RGBA"):
        image.putalpha(Image.fromarray(np.tile(np.arange(512, dtype=np.uint8), (512, 1))))
    stored = image if orientation == 1 else image.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "photo.png", exif=exif)
    expected = ImageOps.exif_transpose(Image.open(tmp_path / "photo.png"))
    assert expected.tobytes() == image.tobytes()

    result = editor.edit(tmp_path / "photo.png", **request_)
    assert result.image.mode == mode
    assert result.image.tobytes() == expected.tobytes()
    assert result.faces[0].after == result.faces[0].before
    assert not any(result.faces[0].requested.values())

    save_image(result.image, tmp_path / "out.png")
    with Image.open(tmp_path / "out.png") as reopened:
        assert reopened.mode == mode
        assert reopened.tobytes() == expected.tobytes()


@pytest.mark.parametrize("orientation", range(2, 9))
def test_photograph_turned_by_exif_is_edited_like_the_upright_one(editor, photo, orientation):
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]  # Image.Transpose that EXIF undoes
    stored = Image.fromarray(photo).transpose(Image.Transpose(undo))
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    stored.save(file, "PNG", exif=exif)
    turned = Image.open(file)
    assert np.array_equal(np.asarray(ImageOps.exif_transpose(turned)), photo)

    result = editor.edit(turned, add={"AU12": 3}, measure=False)
    upright = editor.edit(photo, add={"AU12": 3}, measure=False)
    assert result.image.tobytes() == upright.image.tobytes()
    assert 0x0112 not in result.image.getexif() or result.image.getexif()[0x0112] == 1


def test_lossless_file_keeps_pixels_profile_and_metadata(editor, photo, tmp_path):
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x010F] = "Camera"
    exif[0x0112] = 3
    stored = Image.fromarray(photo).transpose(Image.Transpose.ROTATE_180)
    stored.save(tmp_path / "photo.png", icc_profile=profile, exif=exif, dpi=(300, 300))

    result = editor.edit(tmp_path / "photo.png", add={"AU12": 3}, measure=False)
    save_image(result.image, tmp_path / "out.png")
    with Image.open(tmp_path / "out.png") as reopened:
        assert reopened.tobytes() == result.image.tobytes()
        assert reopened.info["icc_profile"] == profile
        assert reopened.getexif()[0x010F] == "Camera"
        assert reopened.getexif().get(0x0112, 1) == 1
        assert round(reopened.info["dpi"][0]) == 300


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA"])
def test_edited_photograph_comes_back_in_its_mode(editor, photo, mode):
    image = Image.fromarray(photo).convert(mode)
    if mode != "L":
        image.putalpha(Image.fromarray(np.tile(np.arange(512, dtype=np.uint8), (512, 1))))
    result = editor.edit(image, add={"AU12": 3}, measure=False)
    assert result.image.mode == mode
    assert result.image.tobytes() != image.tobytes()
    if mode != "L":
        assert result.image.getchannel("A").tobytes() == image.getchannel("A").tobytes()


# --- Which faces ---


def test_faces_are_chosen_largest_first(editor, group):
    every = editor.edit(group, add={"AU12": 3})
    assert [face.box[0] > 512 for face in every.faces] == [False, True]
    largest = editor.edit(group, add={"AU12": 3}, face="largest")
    second = editor.edit(group, add={"AU12": 3}, face=1)
    assert [f.box for f in largest.faces] == [every.faces[0].box]
    assert [f.box for f in second.faces] == [every.faces[1].box]
    assert [[f.index for f in result.faces] for result in (every, largest, second)] == [[0, 1], [0], [1]]
    assert second.faces[0].to_json()["face"] == 1
    (swept,) = {r.faces[0].index for r in editor.sweep(group, "AU12", 0, 1, 2, face=1, measure=False)}
    assert swept == editor.edit_faces(group, {1: {"AU12": 1}}, measure=False).faces[0].index == 1

    both, left, right = (np.asarray(result.image) for result in (every, largest, second))
    assert np.array_equal(left[:, 512:], group[:, 512:])
    assert np.array_equal(right[:, :512], group[:, :512])
    # No face's result depends on the others.
    assert np.array_equal(both[:, :512], left[:, :512])
    assert np.array_equal(both[:, 512:], right[:, 512:])
    assert (both != group)[:, :512].any()
    assert (both != group)[:, 512:].any()


def test_a_face_that_does_not_exist_is_an_error_that_counts(editor, group, photo):
    with pytest.raises(NoFaceError, match=r"face 3 .* \(index 2 in Python and HTTP\): 2 faces were found"):
        editor.edit(group, add={"AU12": 3}, face=2)
    with pytest.raises(NoFaceError, match=r"face 6 .* \(index 5 in Python and HTTP\): 1 face was found"):
        editor.edit(photo, add={"AU12": 3}, face=5)
    for wrong in (-1, "second", True, 1.0, None):
        with pytest.raises(NoFaceError):
            editor.edit(photo, add={"AU12": 3}, face=wrong)


def test_no_face_is_an_error_with_a_remedy(editor):
    empty = np.full((200, 300, 3), 128, np.uint8)
    for call in (editor.measure, editor.edit, lambda p: editor.sweep(p, "AU12", 0, 1, 2)):
        with pytest.raises(
            NoFaceError, match=r"no face was found in the photograph \(300 x 200 px\): use one"
        ):
            call(empty)


def test_overlapping_faces_are_edited_in_sequence(editor, backend, photo):
    def with_backend(alter):
        return ExpressionEditor(editor.pipeline, Altered(backend, alter))

    (face,) = backend.detect(photo)
    once = with_backend(lambda found: [face])
    first = np.asarray(once.edit(photo, add={"AU12": 3}, measure=False).image)
    twice = np.asarray(once.edit(first, add={"AU12": 3}, measure=False).image)
    together = with_backend(lambda found: [face, face]).edit(photo, add={"AU12": 3}, measure=False)
    assert np.array_equal(np.asarray(together.image), twice)
    assert not np.array_equal(first, twice)


def test_an_unchanged_photograph_is_copied_where_format_and_metadata_stay(editor, backend, photo, tmp_path):
    file, copy = tmp_path / "photo.jpg", tmp_path / "copy.jpg"
    Image.fromarray(photo).save(file, quality=70)
    result = editor.edit(file)
    assert result.save(copy).read_bytes() == file.read_bytes()
    with Image.open(file) as opened:
        opened.info["comment"] = b"new"
        assert editor.edit(opened).save(tmp_path / "other.jpg").read_bytes() != file.read_bytes()
    with Image.open(result.save(tmp_path / "copy.png")) as other:
        assert (other.format, np.array_equal(other, result.image)) == ("PNG", True)
    assert not editor.edit(file, add={"AU12": -2}, measure=False).copies(copy)
    assert not ExpressionEditor(editor.pipeline, backend, strip_private=True).edit(file).copies(copy)
    painted = editor.edit(file)
    painted.image.putalpha(9)
    assert not painted.copies(copy)
    assert result.copies(copy)
    Image.fromarray(255 - photo).save(file)
    assert not result.copies(copy)  # the file shows another picture now


# --- What is requested ---


def test_requests_add_up_and_targets_follow_the_measurement(editor, photo):
    (face,) = editor.measure(photo)
    result = editor.edit(
        photo, add="AU1=+1.5,AU12=-1", set={"AU2": 1}, emotion=("happiness", 0.5), measure=False
    )
    happy = {name: steps / 2 for name, steps in EMOTIONS["happiness"].items()}
    asked = happy | {
        "AU1": happy["AU1"] + 1.5,
        "AU2": 1 - face.action_units["AU2"],
        "AU12": happy["AU12"] - 1,
    }
    assert result.faces[0].requested == pytest.approx(asked)
    assert result.faces[0].before == face.action_units
    assert result.faces[0].after is None
    assert result.faces[0].identity_distance is None


def test_the_forms_of_a_request_are_equal(editor, photo):
    vector = np.zeros(len(NAMES))
    vector[NAMES.index("AU12")] = 3
    images = [
        editor.edit(photo, add=add, measure=False).image.tobytes()
        for add in ({"AU12": 3}, "AU12=+3", vector, list(vector))
    ]
    assert len(set(images)) == 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"add": {"AU12": 1}, "set": {"AU12": 0}}, "AU12"),
        ({"add": {"AU13": 1}}, "unknown action unit"),
        ({"add": {"AU12": 11}}, "between -10 and 10"),
        ({"set": {"AU12": 6}}, "between 0 and 5"),
        ({"add": [1, 2]}, "12 values"),
        ({"emotion": "hapiness"}, "happiness"),
        ({"add": {"AU12": 1}, "strength": float("nan")}, "strength"),
    ],
)
def test_wrong_requests_fail_before_the_photograph_is_read(editor, wrong, message):
    with pytest.raises(ActionUnitError, match=message):
        editor.edit("there/is/no/such.png", **wrong)


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"guidance": float("nan")}, {"guidance": -1.0}, {"seed": -1}, {"quality": "best"}]
)
def test_wrong_sampling_settings_are_errors(editor, photo, wrong):
    with pytest.raises(MagicEditError, match=str(next(iter(wrong.values())))):
        editor.edit(photo, add={"AU12": 1}, **wrong)


def test_targets_need_a_backend_that_measures(editor, backend, photo):
    blind = ExpressionEditor(
        editor.pipeline,
        Altered(backend, lambda faces: [replace(f, action_units={}, pose=None) for f in faces]),
    )
    with pytest.raises(ActionUnitError, match="setting AU12 needs its measured intensity"):
        blind.edit(photo, set={"AU12": 0})
    result = blind.edit(photo, add={"AU12": 3})
    assert result.faces[0].before == result.faces[0].after == {}
    assert result.faces[0].pose is None


# --- Repeatability, memory ---


def test_the_seed_decides(editor, photo):
    first, again, other = (
        editor.edit(photo, add={"AU12": 3}, seed=seed, measure=False).image.tobytes() for seed in (7, 7, 8)
    )
    assert first == again
    assert first != other


def test_another_edit_of_the_same_photograph_does_not_detect_again(editor, backend, photo):
    counting = Altered(backend, lambda faces: faces)
    fresh = ExpressionEditor(editor.pipeline, counting)
    fresh.edit(photo, add={"AU12": 3}, measure=False)
    fresh.edit(photo.copy(), add={"AU4": 2}, measure=False)
    assert counting.shapes == [photo.shape]
    changed = photo.copy()
    changed[0, 0] ^= 1
    fresh.edit(changed, measure=False)
    assert len(counting.shapes) == 2


def test_the_result_is_measured_around_the_face_only(editor, backend, group):
    counting = Altered(backend, lambda faces: faces)
    result = ExpressionEditor(editor.pipeline, counting).edit(group, add={"AU12": 3}, face=1)
    whole, around = counting.shapes
    assert whole == group.shape
    assert around[0] * around[1] < 0.5 * whole[0] * whole[1]
    assert set(result.faces[0].after) == set(result.faces[0].before)
    # ... and in the photograph's own coordinates: the unchanged face would be where it was.
    (_, face) = backend.detect(group)
    again = FaceFinder(backend).find_again(group, face)
    assert np.abs(again.landmarks - face.landmarks).max() < 2.0  # px, of a face 130 px wide
    for name, value in face.action_units.items():
        assert again.action_units[name] == pytest.approx(value, abs=0.5), name


@pytest.mark.skipif(not dlib.available(), reason="the evaluation extra (dlib) is not installed")
def test_the_identity_distance_is_computed_when_it_is_read(editor, backend, photo, monkeypatch):
    computed = []
    count = dlib.crop_descriptor
    monkeypatch.setattr(dlib, "crop_descriptor", lambda crop: computed.append(crop) or count(crop))
    results = [editor.edit(photo, add={"AU12": value}) for value in (0, 2, 3)]
    assert computed == []
    assert repr(results[2].faces[0])
    assert computed == []

    kept = [pickle.loads(pickle.dumps(result.faces[0])) for result in results]
    with concurrent.futures.ThreadPoolExecutor(3) as threads:
        distances = [*threads.map(lambda result: result.faces[0].identity_distance, results)]
    assert distances == [face.identity_distance for face in kept]
    (face,), edited = editor.measure(photo), np.asarray(results[2].image)
    again = FaceFinder(backend).find_again(edited, face)
    assert distances[2] == identity_distance(photo, face, edited, again) > distances[0] == 0
    assert results[2].faces[0].to_json()["identity_distance"] == round(distances[2], 4)

    computed.clear()
    assert editor.edit(photo, add={"AU12": 1}).faces[0].identity_distance > 0
    assert len(computed) == 1  # the unedited face's is remembered


# --- What is remembered ---


class Encodings:
    """Counts the faces that a pipeline encodes."""

    def __init__(self, pipeline, monkeypatch):
        self.count = 0
        encode = pipeline._encode

        def counted(identity, condition):
            self.count += len(identity)
            return encode(identity, condition)

        monkeypatch.setattr(pipeline, "_encode", counted)


def test_a_face_is_encoded_once_and_never_taken_for_another(editor, backend, photo, group, monkeypatch):
    fresh = ExpressionEditor(editor.pipeline, backend)
    encodings = Encodings(editor.pipeline, monkeypatch)
    first = fresh.edit(photo, add={"AU12": 3}, measure=False)
    fresh.edit(photo, add={"AU4": 2}, measure=False)
    fresh.sweep(photo, "AU1", 1, 2, 3, measure=False)
    assert encodings.count == 1
    other = fresh.edit(photo[:, ::-1], add={"AU12": 3}, measure=False)
    assert encodings.count == 2
    assert fresh.edit(photo, add={"AU12": 3}, measure=False).image.tobytes() == first.image.tobytes()
    assert encodings.count == 2
    alone = ExpressionEditor(editor.pipeline, backend).edit(photo[:, ::-1], add={"AU12": 3}, measure=False)
    assert alone.image.tobytes() == other.image.tobytes()


def test_threads_do_not_take_each_others_faces(editor, backend, photo):
    mirrored = np.ascontiguousarray(photo[:, ::-1])
    expected = [editor.edit(p, add={"AU12": 3}, measure=False).image.tobytes() for p in (photo, mirrored)]
    fresh = ExpressionEditor(editor.pipeline, backend)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        edited = pool.map(lambda p: fresh.edit(p, add={"AU12": 3}, measure=False), [photo, mirrored] * 2)
        assert [result.image.tobytes() for result in edited] == expected * 2


def test_new_weights_encode_anew(backend, photo):
    editor = ExpressionEditor(create_patch_pipeline(PatchModelConfig(**TINY), seed=1), backend)
    before = editor.edit(photo, add={"AU12": 3}, measure=False).image.tobytes()
    with torch.no_grad():
        editor.pipeline.reference_unet.conv_in.weight.mul_(2)
    after = editor.edit(photo, add={"AU12": 3}, measure=False).image.tobytes()
    assert after != before
    fresh = ExpressionEditor(editor.pipeline, backend)
    assert fresh.edit(photo, add={"AU12": 3}, measure=False).image.tobytes() == after


def test_the_quality_decides_how_long_the_model_samples(editor, photo):
    assert QUALITIES == sampling.QUALITIES
    live = editor.edit(photo, add={"AU12": 3}, quality="live", measure=False)
    single = editor.edit(photo, add={"AU12": 3}, steps=1, measure=False)
    assert live.image.tobytes() == single.image.tobytes()
    balanced = editor.edit(photo, add={"AU12": 3}, quality="balanced", measure=False)
    assert balanced.image.tobytes() != live.image.tobytes()


# --- Sweeps ---


@pytest.mark.parametrize("which", ["editor", "noise_editor"])
def test_a_sweep_equals_separate_edits(which, request, photo, monkeypatch):
    monkeypatch.setattr(optimize, "MOST_ROWS", 3)  # then it takes two calls of the pipeline
    editor = request.getfixturevalue(which)
    results = editor.sweep(photo, "au12", -2, 2, 5, measure=False)
    assert [r.faces[0].requested for r in results] == [{"AU12": v} for v in (-2.0, -1.0, 0.0, 1.0, 2.0)]
    assert np.array_equal(np.asarray(results[2].image), photo)
    for result in results:
        single = editor.edit(photo, add=result.faces[0].requested, face="largest", measure=False)
        difference = np.abs(np.asarray(result.image, int) - np.asarray(single.image, int))
        assert difference.max() <= 2  # of 255: batching changes the order of float32 sums
    assert (np.asarray(results[0].image) != np.asarray(results[4].image)).any()


@pytest.mark.parametrize("which", ["editor", "noise_editor"])
def test_a_batch_of_photographs_equals_separate_edits(which, request, photo, group):
    editor = request.getfixturevalue(which)
    photographs = [photo, group, photo[:, ::-1]]
    results = editor.edit_batch(photographs, add={"AU12": 2}, measure=False)
    assert [len(result.faces) for result in results] == [1, 2, 1]
    for photograph, result in zip(photographs, results, strict=True):
        single = editor.edit(photograph, add={"AU12": 2}, measure=False)
        difference = np.abs(np.asarray(result.image, int) - np.asarray(single.image, int))
        assert difference.max() <= 2  # of 255: batching changes the order of float32 sums
        assert (np.asarray(result.image) != photograph).any()


def test_several_variations_equal_separate_edits(editor, photo):
    adds = [{"AU12": 3}, "AU4=-1,AU1=2", {"AU12L": 2}, {}]
    results = editor.variants(photo, adds, measure=False)
    assert np.array_equal(np.asarray(results[3].image), photo)
    for add, result in zip(adds, results, strict=True):
        single = editor.edit(photo, add=add, face="largest", measure=False)
        difference = np.abs(np.asarray(result.image, int) - np.asarray(single.image, int))
        assert difference.max() <= 2


def test_a_sweep_becomes_a_strip_of_equal_pictures(editor, photo):
    results = editor.sweep(photo, "AU12", -1, 1, 3)
    row = np.asarray(sweep_strip(results, side=512))
    (face,) = results[0].faces
    x0, y0, x1, _ = face.box
    width = row.shape[1] // 3
    # The middle picture is the photograph itself: its piece around the face stands in the middle of the row.
    piece = photo[int(y0) : int(y0) + 60, int(x0) : int(x1)]
    middle = row[:, width : 2 * width]
    assert cv2.matchTemplate(middle, piece, cv2.TM_SQDIFF).min() == 0
    assert cv2.matchTemplate(row[:, :width], piece, cv2.TM_SQDIFF).min() > 0


def test_wrong_sweeps_are_errors(editor, photo):
    with pytest.raises(ActionUnitError, match="at least 2 steps, got 1"):
        editor.sweep(photo, "AU12", 0, 1, 1)
    with pytest.raises(ActionUnitError, match="between -10 and 10"):
        editor.sweep(photo, "AU12", 0, 11, 3)
    with pytest.raises(ActionUnitError, match="unknown action unit"):
        editor.sweep(photo, "AU99", 0, 1, 3)


# --- Warnings ---


def test_a_frontal_large_face_within_range_gives_no_advance_warning(editor, photo):
    (face,) = editor.measure(photo)
    assert doubts_before(photo, face, {"AU4": 1.0}, 64) == []


def test_warns_of_a_small_face(editor, photo):
    tiny = cv2.resize(photo, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)  # the crop measures 50 px
    (face,) = editor.edit(tiny, add={"AU4": 1}, measure=False).faces
    assert any("low resolution" in warning and "64 px" in warning for warning in face.warnings)


@pytest.mark.parametrize("axis", ["yaw", "pitch"])
def test_warns_of_steep_poses(editor, backend, photo, axis):
    def turn(faces):
        return [replace(face, pose=replace(face.pose, **{axis: -38.0})) for face in faces]

    (face,) = ExpressionEditor(editor.pipeline, Altered(backend, turn)).edit(photo, add={"AU4": 1}).faces
    assert any(f"{axis} of -38°" in warning for warning in face.warnings)


def test_warns_beyond_the_training_range(editor, photo):
    (measured,) = editor.measure(photo)
    (face,) = editor.edit(photo, add={"AU12": 8, "AU4": -2}, measure=False).faces
    assert any(
        warning.startswith(f"AU12 would become {measured.action_units['AU12'] + 8:.1f}, outside")
        for warning in face.warnings
    )
    assert any(warning.startswith("AU4 would become -") for warning in face.warnings)


def test_warnings_of_a_recipes_units_are_not_of_its_range_and_name_the_emotion(editor, photo):
    (face,) = editor.edit(photo, add={"AU12": 8}, emotion="anger:1.25").faces
    outside = [warning for warning in face.warnings if "outside the training range" in warning]
    assert len(outside) == 1
    assert outside[0].startswith("AU12 would become")
    unreached = {warning.partition(" changed")[0] for warning in face.warnings if " changed by " in warning}
    assert "anger: AU4" in unreached
    assert "AU4" not in unreached


def test_judges_what_was_reached_by_what_the_scale_leaves():
    assert unreached({"AU12": 3.0}, {"AU12": 1.0}, {"AU12": 2.6}, {}) == []
    assert unreached({"AU12": 3.0}, {"AU12": 4.0}, {"AU12": 4.6}, {}) == []  # only one step was left
    assert unreached({"AU12": 3.0}, {"AU12": 4.8}, {"AU12": 4.8}, {}) == []  # nothing to judge
    assert unreached({"AU12": 3.0}, {}, {}, {}) == []
    requested = {"AU12": 3.0, "AU4": -2.0}
    (warning,) = unreached(requested, {"AU12": 1.0, "AU4": 2.0}, {"AU12": 2.4, "AU4": 0.5}, {})
    assert warning == "AU12 changed by +1.4 of the +3.0 requested (measured 1.0 -> 2.4)"
    (warning,) = unreached({"AU4": -2.0}, {"AU4": 2.0}, {"AU4": 2.5}, {"AU4": 1.0})
    assert warning.startswith("AU4 changed by +0.5 of the -2.0")
    assert warning.endswith("+1.0 by landmarks)")
    (warning,) = unreached({"AU1": 0.6}, {"AU1": 0.04}, {"AU1": 0.01}, {"AU1": -0.04})
    assert warning == "AU1 changed by +0.0 of the +0.6 requested (measured 0.0 -> 0.0, +0.0 by landmarks)"


def test_either_scorer_may_have_seen_the_change():
    assert unreached({"AU4": 3.0}, {"AU4": 0.0}, {"AU4": 0.0}, {"AU4": 1.6}) == []
    assert unreached({"AU4": 3.0}, {"AU4": 0.0}, {"AU4": 1.6}, {"AU4": 0.0}) == []
    assert len(unreached({"AU4": 3.0}, {"AU4": 0.0}, {"AU4": 0.0}, {"AU4": 1.4})) == 1


# --- One side ---


@pytest.mark.parametrize("which", ["editor", "noise_editor"])
def test_one_side_changes_alone(which, request, photo):
    """What lies clear of the face's middle equals the edit of both sides, or the photograph."""
    editor = request.getfixturevalue(which)
    (face,) = editor.measure(photo)
    both, left, right = (
        np.asarray(editor.edit(photo, add={name: 4}, measure=False).image).astype(int)
        for name in ("AU12", "AU12L", "AU12R")
    )
    middle, quarter = face.landmarks[4, 0], np.ptp(face.landmarks[[33, 263], 0]) * 0.45
    on_left, on_right = slice(int(middle + quarter), None), slice(0, int(middle - quarter))
    assert np.abs(left[:, on_left] - both[:, on_left]).max() <= 1  # the last of the fade
    assert np.abs(right[:, on_right] - both[:, on_right]).max() <= 1
    assert np.array_equal(left[:, on_right], photo[:, on_right])
    assert np.array_equal(right[:, on_left], photo[:, on_left])
    assert np.abs(left[:, on_left] - photo[:, on_left]).max() > 10


def test_sides_are_measured_and_judged(editor, photo):
    (face,) = editor.edit(photo, add={"AU12L": 1}).faces
    assert face.before["AU12L"] == editor.measure(photo)[0].sides["AU12L"]
    assert {"AU12L", "AU12"} <= set(face.after)
    assert {"AU12L", "AU12R", "AU9"} <= set(face.moved)
    assert "AU1L" not in face.before


def _undone(steps: dict[str, float]) -> dict[str, float]:
    """The request that takes one back, AU12 by its sides."""
    back = {name: -value for name, value in steps.items() if name != "AU12"}
    return back | dict.fromkeys(("AU12L", "AU12R"), -steps["AU12"])


@pytest.mark.parametrize(
    "request_",
    [
        {"add": _undone(EMOTIONS["happiness"]), "emotion": "happiness"},
        {"add": {"AU12": 1e-50}},
    ],
)
def test_what_comes_to_nothing_returns_the_photograph(editor, photo, request_):
    result = editor.edit(photo, **request_)
    assert np.array_equal(np.asarray(result.image), photo)


def test_a_sweep_of_one_side(editor, photo):
    results = editor.sweep(photo, "AU12L", -2, 2, 3, measure=False)
    first, nothing, last = (np.asarray(result.image) for result in results)
    assert np.array_equal(nothing, photo)
    assert not np.array_equal(first, last)
    alone = editor.edit(photo, add={"AU12L": 2}, measure=False).image
    assert np.abs(np.asarray(alone).astype(int) - last).max() <= 1


def test_a_side_can_be_set(editor, photo):
    (face,) = editor.edit(photo, set={"AU12R": 1}, measure=False).faces
    assert face.requested["AU12R"] == pytest.approx(1 - face.before["AU12R"])


# --- Loading ---


def test_loads_a_folder_and_edits_like_the_model_that_was_saved(editor, photo, tmp_path):
    editor.pipeline.save_pretrained(tmp_path / "model")
    loaded = ExpressionEditor.from_pretrained(tmp_path / "model", device="cpu", dtype="float32")
    assert loaded.model == str(tmp_path / "model")
    assert loaded.action_units == editor.action_units == (*NAMES, *GEOMETRIC)
    expected, got = (e.edit(photo, add={"AU12": 3}, measure=False).image for e in (editor, loaded))
    # 1 of 255: kernels may sum in another order for tensors that lie elsewhere in memory
    assert np.abs(np.asarray(expected, int) - np.asarray(got, int)).max() <= 1


@pytest.mark.parametrize("wrong", [{"device": "cuda:99"}, {"device": "toaster"}, {"dtype": "int4"}])
def test_devices_and_dtypes_that_are_not_there_are_errors(editor, wrong, tmp_path):
    editor.pipeline.save_pretrained(tmp_path / "model")
    with pytest.raises(ModelError, match=next(iter(wrong.values()))):
        ExpressionEditor.from_pretrained(tmp_path / "model", **wrong)


# --- The embedded model ---

needs_mini = pytest.mark.skipif(
    not (embedded_folder("mini") / "model_index.json").is_file(),
    reason="the embedded model is not trained yet",
)


@needs_mini
def test_the_embedded_model_takes_a_smile_away(backend, photo):
    mini = ExpressionEditor.from_pretrained("mini", device="cpu", backend=backend)
    (face,) = mini.edit(photo, add={"AU12": -3}).faces
    assert face.before["AU12"] > 3.5
    assert face.after["AU12"] - face.before["AU12"] < -0.5


def test_faces_of_one_photograph_are_edited_by_requests_of_their_own(editor, group):
    asked = {0: {"AU12": 3.0}, 1: "AU4=2"}
    result = editor.edit_faces(group, asked)
    assert [face.requested for face in result.faces] == [{"AU12": 3.0}, {"AU4": 2.0}]
    first = editor.edit(group, asked[0], face=0)
    both = editor.edit(first.image, asked[1], face=1)  # each on what the one before left
    assert np.array_equal(np.asarray(result.image), np.asarray(both.image))
    assert np.array_equal(np.asarray(editor.edit_faces(group, {}).image), np.asarray(group))
    only = editor.edit_faces(group, {1: asked[1]})
    assert np.array_equal(np.asarray(only.image), np.asarray(editor.edit(group, asked[1], face=1).image))
    with pytest.raises(NoFaceError, match="face 8 does not exist"):
        editor.edit_faces(group, {7: {"AU12": 1.0}})
    with pytest.raises(ActionUnitError):
        editor.edit_faces(group, {0: {"AU99": 1.0}})


def test_every_step_is_told_to_the_edit_that_asks_and_may_end_it(editor, photo, closed_mouth):
    steps = []
    editor.edit(photo, {"AU12": 3.0}, steps=5, on_step=steps.append)
    editor.edit(photo, {"AU12": 1.0}, steps=3)
    assert steps == [0, 1, 2, 3, 4]
    for told in (
        lambda tell: editor.edit_faces(photo, {0: {"AU12": 2.0}}, steps=2, on_step=tell),
        lambda tell: editor.variants(photo, [{"AU12": 2.0}], steps=2, on_step=tell),
        lambda tell: editor.sweep(photo, "AU12", 1, 2, 2, inference_steps=2, on_step=tell),
        lambda tell: editor.interpolate(photo, closed_mouth, 2, inference_steps=2, on_step=tell),
    ):
        told_of: list[int] = []
        told(told_of.append)
        assert set(told_of) == {0, 1}
    loop: list[int] = []
    editor.edit(photo, {"AU12": 3.0}, tolerance=0.01, max_edits=2, steps=2, on_step=loop.append)
    assert loop[:4] == [0, 1, 0, 1]

    class Enough(Exception):
        pass

    def stop(step: int) -> None:
        if step == 1:
            raise Enough

    with pytest.raises(Enough):
        editor.edit(photo, {"AU12": 3.0}, steps=50, on_step=stop)
    editor.edit(photo, {"AU12": 3.0}, steps=2)
    assert len(steps) == 5
