"""Whose teeth show: through the editor, with the embedded model and portraits that may be shown."""

import copy

import numpy as np
import pytest

from magicedit import ExpressionEditor
from magicedit.editor import MouthSettings, SamplingSettings
from magicedit.editor.changer import LINEAR_TO, SOFT, FaceChanger
from magicedit.errors import MagicEditError
from magicedit.faces import load_backend
from magicedit.faces.measure import lip_gap
from magicedit.imaging import open_photo
from magicedit.models import PatchModelConfig, create_patch_pipeline
from magicedit.warping import embedded_mouths, parts_lips, steer

LAUGH = {"AU12": 3, "AU25": 4}


@pytest.fixture(scope="module")
def backend():
    return load_backend("mediapipe")


@pytest.fixture(scope="module")
def editor(backend) -> ExpressionEditor:
    return ExpressionEditor.from_pretrained("mini", backend=backend)


def edited(editor: ExpressionEditor, photo: np.ndarray, **request) -> np.ndarray:
    return np.asarray(editor.edit(photo, measure=False, quality="fast", **request).image)


def test_small_requests_do_small_things(editor, closed_mouth):
    """Zero means keep: a request near zero used to put another mouth on faces from outside the studio."""
    (face,) = editor.measure(closed_mouth)
    (x0, y0), (x1, y1) = face.landmarks[[61, 0]].min(0), face.landmarks[[291, 17]].max(0)
    box = (slice(int(y0), int(y1) + 1), slice(int(x0), int(x1) + 1))
    for request, limit in (({"AU1": 0.5}, 1.5), ({"AU5": -0.1}, 1.5), ({"AU12": 0.25}, 5.0)):
        change = np.abs(edited(editor, closed_mouth, add=request).astype(int) - closed_mouth)[box].mean()
        assert change < limit, request
    assert np.abs(edited(editor, closed_mouth, add={"AU12": 3}).astype(int) - closed_mouth)[box].mean() > 4


def test_teeth_can_be_chosen(editor, closed_mouth):
    default, other, none = (
        edited(editor, closed_mouth, add=LAUGH, teeth=teeth) for teeth in (None, 7, "none")
    )
    (face,) = editor.measure(closed_mouth)
    changed = np.abs(default.astype(int) - none).sum(-1) > 60
    rows, columns = np.nonzero(changed)
    assert len(rows) > 50
    assert face.landmarks[61, 0] - 5 < columns.min() < columns.max() < face.landmarks[291, 0] + 5
    assert default[changed].mean() > none[changed].mean() + 40
    assert not np.array_equal(default, other)


def test_the_seed_chooses_the_donor(editor, closed_mouth):
    mouths = {id(MouthSettings().donor(editor.measure(closed_mouth)[0].landmarks, seed)) for seed in range(6)}
    assert len(mouths) > 2
    one = id(MouthSettings(teeth=2).donor(editor.measure(closed_mouth)[0].landmarks, 5))
    assert one == id(embedded_mouths()[2])


def test_a_reference_lends_its_teeth(editor, closed_mouth, astronaut):
    lent = edited(editor, closed_mouth, add=LAUGH, references=[astronaut])
    assert not np.array_equal(lent, edited(editor, closed_mouth, add=LAUGH))
    # Where no lip parts nobody's teeth show
    request = {"AU1": 3, "AU15": 2}
    plain = edited(editor, closed_mouth, add=request)
    assert np.array_equal(edited(editor, closed_mouth, add=request, references=[astronaut]), plain)
    smile = [
        edited(editor, closed_mouth, add={"AU12": 2}, references=[astronaut], teeth=t) for t in (None, 3)
    ]
    assert np.array_equal(*smile)


def test_what_lends_no_teeth_is_refused(editor, closed_mouth):
    with pytest.raises(MagicEditError, match="the reference shows no teeth"):
        editor.edit(closed_mouth, add=LAUGH, references=[closed_mouth])
    with pytest.raises(MagicEditError, match="a list of photographs"):
        editor.edit(closed_mouth, add=LAUGH, references="smile.jpg")
    for wrong in (8, -1, "all", True, 1.5):
        with pytest.raises(MagicEditError, match='"none" or a number from 0 to 7'):
            MouthSettings(teeth=wrong)


def test_settings_as_json_tell_references_apart(editor, astronaut):
    mouths = editor.mouths_of([astronaut])
    plain, lent = (SamplingSettings(mouths=MouthSettings(references=r)).to_json() for r in ((), mouths))
    assert plain != lent
    assert lent == SamplingSettings(mouths=MouthSettings(references=mouths)).to_json()


def test_models_that_paint_keep_their_paint_unless_teeth_are_asked_for(backend, closed_mouth):
    tiny = {"resolution": 32, "block_out_channels": (32, 32), "attention_heads": 2, "patch_size": 2}
    painter = ExpressionEditor(
        create_patch_pipeline(PatchModelConfig(prediction="noise", **tiny), seed=1), backend
    )
    own, lent = (edited(painter, closed_mouth, add=LAUGH, teeth=teeth) for teeth in (None, 1))
    (face,) = painter.measure(closed_mouth)
    above = slice(0, int(face.landmarks[168, 1]))  # the bridge of the nose
    assert np.array_equal(own[above], lent[above])
    assert not np.array_equal(own, lent)


def test_requests_beyond_the_training_saturate(editor):
    vectors = [editor.changer._vector({"AU12": value}) for value in (4.0, LINEAR_TO, 8.0, 10.0, -10.0)]
    smile = [float(vector.max() if vector.max() > 0 else vector.min()) for vector in vectors]
    assert smile[:2] == [4.0, LINEAR_TO]
    assert LINEAR_TO < smile[2] < smile[3] < LINEAR_TO + SOFT
    assert smile[4] == -smile[3]


@pytest.mark.slow
def test_closed_lips_that_no_unit_parts_get_no_layer(editor, shared):
    """On all validation faces: whose teeth would show makes no difference to a byte."""
    faces = sorted((shared / "faces" / "synthetic" / "validation").glob("*.jpg"))
    people = ("001", "011", "024", "036", "062", "083", "101", "115", "126", "138")
    faces += [shared / "faces" / "london" / person / "neutral.jpg" for person in people]
    assert len(faces) == 52
    closed = [path for path in faces if lip_gap(editor.measure(path)[0].landmarks) < 0.03]
    assert len(closed) > 35
    units = [name for name in editor.action_units if not parts_lips({name: 1.0})]
    for path in closed:
        for unit in units:
            first, none = (edited(editor, open_photo(path), add={unit: 3}, teeth=t) for t in (0, "none"))
            assert np.array_equal(first, none), (path.name, unit)


def test_only_models_of_the_muscles_get_their_mouths_corners_steered(editor, closed_mouth):
    """A family with movements of its own keeps them."""

    class Other(type(editor.changer.model)):
        follows_muscles = False

    other = copy.copy(editor.changer.model)
    other.__class__ = Other
    cut = editor.changer.cut(closed_mouth, editor.backend.detect(closed_mouth)[0])
    request = {"AU26": 4.0}
    flow, kept = (
        changer.requested_changes([cut], [request], editor.sampling())[0].flow
        for changer in (editor.changer, FaceChanger(other))
    )
    assert np.array_equal(flow, steer(kept, cut.landmarks, request))
    assert np.abs(flow - kept).max() > 1  # px
