"""Arriving at an expression: from a file, from a face, from rest, and by measuring and correcting."""

import json
import weakref
from dataclasses import replace

import numpy as np
import pytest
from scipy.interpolate import PchipInterpolator

from magicedit import Expression, ExpressionEditor
from magicedit.action_units import DEAD_ZONE, NAMES
from magicedit.editor.closed_loop import Pursuit, _monotone_cubic
from magicedit.errors import ActionUnitError, MagicEditError
from magicedit.faces import Face, load_backend
from magicedit.request import usable_expression

LANDMARKS = np.zeros((68, 2), np.float32)


@pytest.fixture(scope="module")
def editor():
    return ExpressionEditor.from_pretrained("mini")


def face(**units):
    return Face((0, 0, 1, 1), LANDMARKS, "ibug68", 1.0, action_units={"AU12": 0.0, "AU4": 0.0} | units)


def pursue(pursuit, answer, tolerance, edits):
    """Plays an editor whose measured intensities are `answer(request)`."""
    while pursuit.edits < edits and not pursuit.is_done(tolerance):
        pursuit.note(face(**answer(pursuit.request)))
    return pursuit


@pytest.mark.parametrize(
    "curve",
    [
        lambda x: 0.5 * x,
        lambda x: 2 * x,
        lambda x: 5 / (1 + np.exp(-2 * (x - 3))) - 5 / (1 + np.exp(6)),  # as blendshapes answer a smile
        lambda x: 4 * np.sqrt(x / 5),
        # The curve through the first measurements asks for what was just tried
        lambda x: np.interp(x, (0, 2, 3.5, 10), (0, 0.23, 2.33, 5)),
    ],
    ids=["flat", "steep", "late", "early", "sudden"],
)
@pytest.mark.parametrize("goal", [1.0, 2.0])
def test_four_edits_reach_what_can_be_reached(curve, goal):
    pursuit = Pursuit(face(), {"AU12": goal})
    pursue(pursuit, lambda request: {"AU12": float(curve(request["AU12"]))}, 0.3, 4)
    assert pursuit.error <= 0.3
    assert abs(curve(pursuit.best["AU12"]) - goal) == pytest.approx(pursuit.error)


def test_what_cannot_be_reached_ends_early_with_the_nearest():
    pursuit = Pursuit(face(), {"AU12": 3.0})
    pursue(pursuit, lambda request: {"AU12": 0.2 * request["AU12"]}, 0.3, 10)
    assert pursuit.edits < 10
    assert pursuit.best == {"AU12": 5.0}
    assert pursuit.error == pytest.approx(2.0)


def test_the_curve_through_measurements_is_scipys_to_the_bit():
    rng = np.random.default_rng(0)
    for count in rng.integers(2, 6, size=500):
        measured, requests = np.cumsum(rng.exponential(size=(2, count)) ** 2 + 1e-3, axis=1)
        goal = rng.uniform(measured[0], measured[-1])
        assert _monotone_cubic(measured, requests, goal) == PchipInterpolator(measured, requests)(goal)


def test_units_are_pursued_together():
    def answer(request):
        return {"AU12": 0.6 * request["AU12"], "AU4": 1.5 * request["AU4"] + 0.2 * request["AU12"]}

    pursuit = pursue(Pursuit(face(), {"AU12": 2.0, "AU4": 1.0}), answer, 0.1, 6)
    assert pursuit.error <= 0.1
    assert pursuit.best["AU12"] == pytest.approx(3.3, abs=0.3)


def test_a_lost_face_halves_the_request():
    pursuit = Pursuit(face(), {"AU12": 4.0})
    pursuit.note(None)
    assert pursuit.request == {"AU12": 2.0}
    assert pursuit.error == np.inf


def test_the_loop_reaches_what_one_edit_misses(editor, astronaut):
    once = editor.edit(astronaut, set={"AU25": 1.0}).faces[0]
    assert once.reached is None
    assert abs(once.after["AU25"] - 1.0) > 0.3
    looped = editor.edit(astronaut, set={"AU25": 1.0}, tolerance=0.3)
    (face,) = looped.faces
    assert face.reached
    assert 1 < face.edits <= 4
    assert abs(face.after["AU25"] - 1.0) <= 0.3
    assert face.requested == once.requested != face.sent
    again = editor.edit(astronaut, add=face.sent).image  # the picture is that of the request it names
    assert np.array_equal(np.asarray(again), np.asarray(looped.image))


def test_a_loop_that_fails_says_so(editor, astronaut):
    (face,) = editor.edit(astronaut, set={"AU12": 0.0}, tolerance=0.1, max_edits=1).faces
    assert face.reached is False
    assert face.edits == 1
    assert "more than the tolerance of 0.1" in " ".join(face.warnings)
    assert face.to_json()["reached"] is False


def test_faces_are_pursued_apart(editor, astronaut):

    pair = np.concatenate([astronaut, astronaut[:, ::-1]], axis=1)
    faces = editor.edit(pair, set={"AU12": 2.5}, tolerance=0.3).faces
    assert len(faces) == 2
    assert all(face.reached for face in faces)
    nothing = editor.edit(pair, add={"AU12": 0}, tolerance=0.3)
    assert np.array_equal(np.asarray(nothing.image), pair)
    assert [face.edits for face in nothing.faces] == [0, 0]


class Faces:
    """A real backend whose faces are passed through `alter(faces, pixels, number of the call from 0)`."""

    name = "altered"

    def __init__(self, alter):
        self.backend, self.alter, self.calls = load_backend("mediapipe"), alter, -1

    def detect(self, pixels):
        self.calls += 1
        return self.alter(self.backend.detect(pixels), pixels, self.calls)


def test_a_face_that_is_never_found_again_stays_as_it_is(editor, astronaut):
    lossy = ExpressionEditor(editor.pipeline, Faces(lambda faces, pixels, call: [] if call else faces))
    apply, pictures = lossy.changer.apply, []

    def noting(edits, settings, on_step):
        assert sum(picture() is not None for picture in pictures) <= 1  # what leads nowhere is not kept
        apply(edits, settings, on_step)
        pictures.extend(weakref.ref(edit.pixels) for edit in edits)

    lossy.changer.apply = noting
    result = lossy.edit(astronaut, add={"AU12": -2}, tolerance=0.3)
    (face,) = result.faces
    assert np.array_equal(np.asarray(result.image), astronaut)
    assert len(pictures) == face.edits == 4
    assert face.sent == {"AU12": 0.0}
    assert face.requested == {"AU12": -2.0}
    assert face.reached is False
    assert "the face was not found again in any of 4 edits, so it was left as it is" in face.warnings
    assert "inf" not in json.dumps(face.to_json(), allow_nan=False)


def test_one_lost_face_does_not_keep_the_other_from_its_goal(editor, astronaut):
    """The lost one is left out of the picture that counts, which is that of the requests it names."""
    pair = np.concatenate([astronaut, astronaut[:, ::-1] // 2], axis=1)
    bright = astronaut[50:200, 150:300].mean() * 0.75
    lossy = ExpressionEditor(
        editor.pipeline,
        Faces(lambda faces, pixels, call: [] if call and pixels.mean() > bright else faces),
    )
    looped = lossy.edit(pair, set={"AU12": 3}, tolerance=0.3)
    lost, other = sorted(looped.faces, key=lambda face: face.box[0])
    assert (lost.reached, lost.sent) == (False, {"AU12": 0.0})
    assert "not found again" in " ".join(lost.warnings)
    assert other.reached
    assert np.array_equal(np.asarray(looped.image)[:, :512], astronaut)
    sent = {face.index: face.sent for face in looped.faces}
    again = editor.edit_faces(pair, sent, measure=False)
    assert np.array_equal(np.asarray(again.image), np.asarray(looped.image))


@pytest.mark.parametrize("asked", [(-1.5, -3), (-1, -2), (-0.8, -1.6)])
def test_what_counts_is_the_picture_that_comes_out(editor, astronaut, asked):
    """One face as two that overlap: what is asked of the second undoes what was measured of the first."""
    twice = ExpressionEditor(editor.pipeline, Faces(lambda faces, pixels, call: [*faces, *faces]))
    result = twice.edit_faces(astronaut, {n: {"AU12": value} for n, value in enumerate(asked)}, tolerance=0.3)
    for face in result.faces:
        missed = abs(face.after["AU12"] - face.before["AU12"] - face.requested["AU12"])
        assert face.reached == (missed <= 0.3)
        assert any(f"missed by {missed:.2f} intensity" in text for text in face.warnings) != face.reached
    assert all(1 <= face.edits <= 5 for face in result.faces)
    assert not result.faces[0].reached
    again = twice.edit_faces(astronaut, {face.index: face.sent for face in result.faces}, measure=False)
    assert np.array_equal(np.asarray(again.image), np.asarray(result.image))


@pytest.mark.parametrize("wrong", [{"tolerance": 0}, {"tolerance": 0.3, "max_edits": 0}, {"tolerance": -1}])
def test_loops_that_make_no_sense(editor, astronaut, wrong):
    with pytest.raises(MagicEditError, match=r"tolerance|at least 1"):
        editor.edit(astronaut, add={"AU12": 1}, **wrong)
    with pytest.raises(MagicEditError, match="do not switch"):
        editor.edit(astronaut, add={"AU12": 1}, tolerance=0.3, measure=False)


def test_neutral_takes_the_smile_back(editor, astronaut):
    before = editor.measure(astronaut)[0].action_units
    rest = editor.edit(astronaut, neutral=True).faces[0]
    assert before["AU12"] > 4
    assert rest.after["AU12"] < 1
    assert rest.requested["AU12"] == pytest.approx(-before["AU12"])
    raised = editor.edit(astronaut, neutral=True, add={"AU12": 2.0, "AU4": 1}, measure=False).faces[0]
    assert raised.requested["AU12"] == pytest.approx(2 - before["AU12"])
    assert 0.05 < before["AU4"] < DEAD_ZONE  # noise, which is not taken back
    assert raised.requested["AU4"] == 1
    for name in NAMES:
        taken_back = any(rest.requested.get(side) for side in (name, f"{name}L", f"{name}R"))
        assert taken_back == (before[name] >= DEAD_ZONE), name
    kept = editor.edit(astronaut, neutral=True, set={"AU12": before["AU12"]}, measure=False).faces[0]
    assert kept.requested["AU12"] == 0


@pytest.mark.parametrize("distance", [0.4, -0.4])
def test_a_level_within_the_dead_zone_changes_nothing(editor, astronaut, distance):
    """By `set`, by an expression, and by the closed loop; what is added is done whatever its size."""
    measured = editor.measure(astronaut)[0].action_units["AU12"]
    near = {"AU12": measured + distance}
    for wish in ({"set": near}, {"expression": Expression(near)}, {"set": near, "tolerance": 0.1}):
        result = editor.edit(astronaut, **wish)
        assert np.array_equal(np.asarray(result.image), astronaut)
        assert result.faces[0].requested == {"AU12": 0.0}
    added = editor.edit(astronaut, add={"AU12": distance}, measure=False)
    assert added.faces[0].requested == {"AU12": distance}
    assert not np.array_equal(np.asarray(added.image), astronaut)
    further = editor.edit(astronaut, set={"AU12": measured - 0.6}, measure=False).faces[0]
    assert further.requested["AU12"] == pytest.approx(-0.6)


def test_the_loop_leaves_noise_of_units_that_nobody_asked_for():
    def answer(request):
        return {"AU12": 0.5 * request["AU12"], "AU4": 0.4 + request["AU4"]}

    pursuit = pursue(Pursuit(face(), {"AU12": 2.0, "AU4": 0.0}), answer, 0.1, 4)
    assert pursuit.error <= 0.1
    assert pursuit.best["AU4"] == 0.0
    strayed = Pursuit(face(), {"AU12": 2.0, "AU4": 0.0})
    strayed.note(face(AU12=2.0, AU4=0.8))
    assert strayed.error == pytest.approx(0.8)


def test_an_expression_copied_to_another_photograph(editor, astronaut, tmp_path):
    smile = editor.expression(astronaut)
    assert smile.values["AU12"] > 4
    rest = editor.edit(astronaut, neutral=True).image
    at_rest = editor.measure(rest)[0].action_units
    copied = editor.edit(rest, expression=smile)
    assert copied.faces[0].after["AU12"] > at_rest["AU12"] + 2.5
    half = editor.edit(rest, expression=smile.save(tmp_path / "smile.yaml"), strength=0.5, measure=False)
    assert half.faces[0].requested["AU12"] == pytest.approx(
        (smile.values["AU12"] - at_rest["AU12"]) / 2, abs=1e-2
    )
    added = editor.edit(rest, expression=Expression({"AU4": 2}, relative=True), add={"AU4": 1}, measure=False)
    assert added.faces[0].requested == {"AU4": 3.0}


def test_expressions_that_the_model_cannot_show(editor, astronaut):
    own = NAMES  # of a model that paints
    of_other = Expression({"AU45": 1, "AU12": 1}, relative=True, model="other")
    with pytest.raises(ActionUnitError, match=r"made with other asks for AU45, which this model cannot edit"):
        usable_expression(of_other, own)
    with pytest.raises(ActionUnitError, match="cannot edit"):
        usable_expression(Expression({"AU45": 1}), own)
    assert usable_expression(of_other, editor.action_units).values == {"AU12": 1, "AU43": 1}
    both = Expression({"AU43": 2, "AU45": 1})
    assert usable_expression(both, editor.action_units).values == {"AU43": 2}
    with pytest.raises(ActionUnitError, match="choose one"):
        editor.edit(astronaut, expression=Expression({"AU12": 1}), set={"AU12": 2})

    class Blind:
        name = "blind"

        def detect(self, pixels):
            faces = load_backend("mediapipe").detect(pixels)
            return [replace(face, action_units={}, sides={}) for face in faces]

    blind = ExpressionEditor(editor.pipeline, Blind())
    with pytest.raises(MagicEditError, match="blind measures no action units"):
        blind.expression(astronaut)
    for wish in (
        {"neutral": True},
        {"expression": Expression({"AU12": 1})},
        {"add": "AU12=1", "tolerance": 1},
    ):
        with pytest.raises(MagicEditError, match="measured"):
            blind.edit(astronaut, **wish)


def test_interpolation_starts_with_the_photograph(editor, astronaut):
    rest = np.asarray(editor.edit(astronaut, neutral=True).image)
    steps = editor.interpolate(rest, astronaut, 3)
    assert np.array_equal(np.asarray(steps[0].image), rest)
    smiles = [step.faces[0].after["AU12"] for step in steps]
    assert smiles[0] < smiles[1] < smiles[2]
    with pytest.raises(ActionUnitError, match="at least 2"):
        editor.interpolate(rest, astronaut, 1)


def test_only_some_regions_of_an_expression(editor, closed_mouth, astronaut):
    steps = editor.interpolate(closed_mouth, astronaut, 2, only="brows,gaze")
    asked = {name.rstrip("LR") for name in steps[-1].faces[0].requested}
    assert asked == {"AU1", "AU2", "AU4", "gaze_yaw", "gaze_pitch"}
    assert "gaze_yaw" not in editor.expression(astronaut).values
    head = editor.expression(astronaut, only="head")
    pose = editor.measure(astronaut)[0].pose
    assert head.values["head_yaw"] == pytest.approx(pose.yaw)
