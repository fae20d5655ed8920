"""Controls of geometry through the editor: closed eyes, gaze, head and lips of a real portrait, by `mini`."""

import numpy as np
import pytest

from magicedit import ExpressionEditor
from magicedit.action_units import GEOMETRIC, MOUTH_SHAPES, NAMES
from magicedit.editor.doubts import doubts_before, doubts_of_eyes, doubts_of_head
from magicedit.errors import ActionUnitError, MagicEditError
from magicedit.faces import identity_distance, load_backend
from magicedit.faces.gaze import eye_openness
from magicedit.faces.types import LANDMARK_COUNTS
from magicedit.imaging import open_photo
from magicedit.models import PatchModelConfig, create_patch_pipeline
from magicedit.models.folder import ModelFolder

TINY = {"block_out_channels": (16, 32), "resolution": 64, "default_steps": 2}


@pytest.fixture(scope="module")
def editor():
    return ExpressionEditor.from_pretrained("mini", device="cpu")


@pytest.fixture(scope="module")
def closed_eyes(editor, closed_mouth) -> np.ndarray:
    return np.asarray(editor.edit(closed_mouth, add={"AU43": 5}, measure=False).image)


def pixels_of(result) -> np.ndarray:
    return np.asarray(result.image)


def changed(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    return (before != after).any(-1)


def test_action_units_hold_the_models_own_and_those_of_geometry(editor):
    assert editor.action_units == (*NAMES, *GEOMETRIC)
    assert ModelFolder.find("mini").editable == editor.action_units
    painting = create_patch_pipeline(PatchModelConfig(prediction="noise", **TINY), seed=1)
    assert ExpressionEditor(painting, editor.backend).action_units == NAMES


def test_edit_closes_both_eyes_and_changes_nothing_else(editor, closed_mouth, closed_eyes):
    before, after = (editor.measure(photo)[0] for photo in (closed_mouth, closed_eyes))
    assert after.action_units["AU43"] - before.action_units["AU43"] > 2
    rows = np.flatnonzero(changed(closed_mouth, closed_eyes).any(1))
    assert rows.max() < before.landmarks[2, 1]  # the base of the nose


def test_edit_winks_on_one_side(editor, closed_mouth):
    wink = pixels_of(editor.edit(closed_mouth, add={"AU43L": 5}, measure=False))
    middle = int(editor.measure(closed_mouth)[0].landmarks[168, 0])
    assert np.array_equal(wink[:, :middle], closed_mouth[:, :middle])
    before, after = (eye_openness(editor.measure(p)[0].landmarks) for p in (closed_mouth, wink))
    assert after[0] < 0.4 * before[0]
    assert after[1] > 0.75 * before[1]


@pytest.mark.parametrize(
    ("control", "value", "least", "most"),
    [("gaze_yaw", 15, 10, 20), ("gaze_yaw", -15, -20, -10), ("gaze_pitch", 15, 9, 21),
     ("gaze_pitch", -15, -24, -9),
     ("head_yaw", 10, 7, 13), ("head_pitch", -10, -13, -6), ("head_roll", 10, 7, 13)],
)  # fmt: skip
def test_edit_turns_gaze_and_head_by_the_degrees_asked(editor, closed_mouth, control, value, least, most):
    result = editor.edit(closed_mouth, add={control: value})
    (face,) = result.faces
    assert least <= face.after[control] - face.before[control] <= most
    assert face.identity_distance < 0.35
    assert not face.warnings


def test_edit_adds_lips_to_a_smile(editor, closed_mouth):
    smile, both = (
        editor.measure(pixels_of(editor.edit(closed_mouth, add=add, measure=False)))[0]
        for add in ({"AU12": 3}, {"AU12": 3, "AU18": 4})
    )

    def width(face):
        return np.linalg.norm(face.landmarks[61] - face.landmarks[291])

    assert width(both) < 0.93 * width(smile)


def test_edit_puckers_one_side_of_what_has_sides_only(editor, closed_mouth):
    one = pixels_of(editor.edit(closed_mouth, add={"AU14L": 4}, measure=False))
    face = editor.measure(closed_mouth)[0]
    far = int(face.landmarks[61, 0])  # the right corner of the mouth
    assert not changed(closed_mouth, one)[:, :far].any()
    assert changed(closed_mouth, one).any()
    with pytest.raises(ActionUnitError, match=r"AU18 .* has no sides"):
        editor.edit(closed_mouth, add={"AU18L": 4})


def test_edit_of_a_request_beyond_a_controls_range_names_the_range(editor, closed_mouth):
    with pytest.raises(ActionUnitError, match="an angle in degrees between -20 and 20 for head_yaw"):
        editor.edit(closed_mouth, add={"head_yaw": 25})
    with pytest.raises(ActionUnitError, match="an angle in degrees between -30 and 30 for gaze_pitch"):
        editor.edit(closed_mouth, set={"gaze_pitch": -40})


def test_edit_sets_the_head_to_an_angle(editor, closed_mouth):
    before = editor.measure(closed_mouth)[0].pose.roll
    (face,) = editor.edit(closed_mouth, set={"head_roll": before + 8}).faces
    assert face.requested["head_roll"] == pytest.approx(8, abs=0.01)
    assert face.after["head_roll"] == pytest.approx(before + 8, abs=3)


def test_edit_without_mediapipes_landmarks_says_what_a_control_needs(editor, closed_mouth):
    class Of68Points:
        name = "other"

        def detect(self, pixels):
            faces = editor.backend.detect(pixels)
            return [
                type(face)(face.box, face.landmarks[: LANDMARK_COUNTS["ibug68"]], "ibug68", face.score)
                for face in faces
            ]

    other = ExpressionEditor(editor.pipeline, Of68Points())
    with pytest.raises(ActionUnitError, match=r"AU43, head_yaw needs? the landmarks of .*mediapipe"):
        other.edit(closed_mouth, add={"AU43": 4, "head_yaw": 5})


def test_edit_of_a_model_that_paints_refuses_controls_of_geometry(editor, closed_mouth):
    painting = create_patch_pipeline(PatchModelConfig(prediction="noise", **TINY), seed=1)
    with pytest.raises(ActionUnitError, match=r"AU43 .*is measured but cannot be edited here"):
        ExpressionEditor(painting, editor.backend).edit(closed_mouth, add={"AU43": 3})


def test_edit_warns_of_eyes_that_are_closed_already(editor, closed_eyes):
    result = editor.edit(closed_eyes, add={"gaze_yaw": 10, "AU43": -3})
    (gaze, lids) = result.faces[0].warnings
    assert gaze == "each eye is closed, and gaze cannot move it; use a photograph with open eyes"
    assert "AU43 cannot open it" in lids
    assert np.array_equal(pixels_of(result), closed_eyes)


def test_doubts_of_eyes_name_a_request_that_opens_open_eyes(editor, closed_mouth):
    face = editor.measure(closed_mouth)[0]
    assert doubts_of_eyes(face, {"AU43": -2.0}) == [
        "the eyes are open: AU43 below 0 changes nothing; AU5 widens them"
    ]
    assert doubts_of_eyes(face, {"AU43": 2.0, "gaze_yaw": 5.0}) == []
    assert doubts_before(closed_mouth, face, {"gaze_yaw": 20.0, "AU18": 4.0}, 128) == []


def test_doubts_of_head_name_how_far_it_turns(editor, closed_mouth, shared):
    ahead = editor.measure(closed_mouth)[0]
    assert doubts_of_head(ahead, {"head_pitch": -18.0, "head_yaw": 18.0, "AU12": 3.0}) == []
    aside = open_photo(shared / "faces" / "synthetic" / "validation" / "schnell_0044639.jpg")
    face = editor.measure(aside)[0]  # turned by 23 degrees
    assert doubts_of_head(face, {"head_yaw": 4.0, "AU12": 3.0}) == []
    (told,) = doubts_of_head(face, {"head_yaw": 15.0, "head_roll": 10.0})
    assert told.startswith("head_yaw +15° turns less than asked")
    most = float(told.split(" to ")[1].split("°")[0])
    assert 6 <= most <= 12
    assert [told] == list(editor.edit(aside, add={"head_yaw": 15}).faces[0].warnings)


def test_closed_loop_corrects_the_head(editor, closed_mouth):
    (face,) = editor.edit(closed_mouth, add={"head_yaw": 10}, tolerance=0.3).faces
    assert face.reached
    assert abs(face.after["head_yaw"] - face.before["head_yaw"] - 10) <= 0.3 * 4 + 0.01


@pytest.mark.parametrize("asked", [{"gaze_pitch": 10}, {"gaze_yaw": -12}])
def test_closed_loop_corrects_the_gaze(editor, closed_mouth, asked):
    ((name, angle),) = asked.items()
    (face,) = editor.edit(closed_mouth, add=asked, tolerance=0.3).faces
    assert face.reached
    assert abs(face.after[name] - face.before[name] - angle) <= 0.3 * 6 + 0.01


def test_closed_loop_sends_what_nothing_sees_as_it_is_asked(editor, closed_mouth):
    with pytest.raises(MagicEditError, match="the closed loop cannot correct AU23, AU43"):
        editor.edit(closed_mouth, add={"AU23": 3, "AU43": 2}, tolerance=0.3)
    (face,) = editor.edit(closed_mouth, add={"AU12": 2}, emotion=("anger", 0.4), tolerance=0.2).faces
    assert face.edits > 1
    assert {name: face.sent[name] for name in ("AU7", "AU23", "AU24")} == pytest.approx(
        {"AU7": 0.8, "AU23": 1.2, "AU24": 0.8}
    )
    assert face.sent["AU12"] != 2


def test_neutral_asks_nothing_of_geometry(editor, closed_mouth):
    (face,) = editor.edit(closed_mouth, neutral=True, measure=False).faces
    assert not set(face.requested) & set(GEOMETRIC)


@pytest.mark.parametrize("sound", MOUTH_SHAPES)
def test_edit_makes_the_shapes_of_the_mouth(editor, closed_mouth, sound):
    result = editor.edit(closed_mouth, emotion=sound)
    assert changed(closed_mouth, pixels_of(result)).any()
    again = load_backend().detect(pixels_of(result))[0]
    assert (again.action_units["AU25"] > 1) == (sound != "mmm")
    assert identity_distance(closed_mouth, editor.measure(closed_mouth)[0], pixels_of(result), again) < 0.4
