"""ARKit's blendshapes: names, levels from scores, and tables of them as expressions and curves."""

import numpy as np
import pytest

from magicedit.arkit import BLENDSHAPES, BLENDSHAPES_OF_UNIT, MEASURED, levels_of_scores
from magicedit.errors import ActionUnitError
from magicedit.expression import Expression
from magicedit.faces import load_backend
from magicedit.faces.measure import blendshapes_to_action_units, blendshapes_to_sides
from magicedit.video.curves import Curve
from magicedit.warping import move_eyes


@pytest.fixture(scope="module")
def backend():
    return load_backend()


def written(path, rows: list[dict], separator: str = ","):
    names = [*rows[0]]
    lines = [separator.join(names), *(separator.join(str(row[name]) for name in names) for row in rows)]
    path.write_text("\n".join(lines))
    return path


def test_mediapipe_measures_all_but_one(backend, astronaut):
    assert len(set(BLENDSHAPES)) == len(BLENDSHAPES) == 52
    assert set(backend.detect(astronaut)[0].blendshapes) == {*MEASURED} == {*BLENDSHAPES} - {"tongueOut"}
    assert {name for names in BLENDSHAPES_OF_UNIT.values() for name in names} <= {*MEASURED}


def test_levels_are_those_of_the_measurement(backend, astronaut):
    face = backend.detect(astronaut)[0]
    wholes, sides = levels_of_scores(face.blendshapes)
    units = blendshapes_to_action_units(face.blendshapes, face.landmarks)
    assert {n: v for n, v in wholes.items() if not n.startswith("gaze")} == pytest.approx(
        {n: v for n, v in units.items() if n not in ("AU25", "AU45")}
    )
    measured = blendshapes_to_sides(face.blendshapes, face.landmarks)
    assert sides == pytest.approx({name: measured[name] for name in sides})
    assert {"AU12L", "AU43R"} <= set(sides)
    assert not {"AU1L", "AU28L", "AU45L"} & set(sides)


def test_gaze_has_the_signs_of_the_irises(backend, closed_mouth):
    face = backend.detect(closed_mouth)[0]
    for name, axis in (("gaze_yaw", 0), ("gaze_pitch", 1)):
        shown = []
        for angle in (-15.0, 15.0):
            moved = backend.detect(move_eyes(closed_mouth, face.landmarks, {name: angle}))[0]
            shown.append((levels_of_scores(moved.blendshapes)[0][name], moved.gaze[axis]))
        (low, low_seen), (high, high_seen) = shown
        assert high - low > 5
        assert high_seen - low_seen > 20
    both = dict.fromkeys(MEASURED, 0.0) | {"eyeLookOutLeft": 1.0, "eyeLookInRight": 1.0}
    assert levels_of_scores(both)[0]["gaze_yaw"] == 30


def test_what_is_missing_is_left_out():
    assert levels_of_scores({"jawOpen": 0.5, "mouthSmileLeft": 1.0, "eyeLookUpLeft": 1.0}) == (
        {"AU26": 2.5},
        {},
    )


def test_a_row_is_an_expression(tmp_path):
    row = {"Timecode": "00:00:01:02", "EyeBlinkLeft": 1, "EyeBlinkRight": 0, "MouthSmileLeft": 0.5}
    row |= {"MouthSmileRight": 0.52, "JawOpen": 0.2, "TongueOut": 0.1}
    path = written(tmp_path / "live.csv", [row])
    assert dict(Expression.from_csv(path).values) == pytest.approx(
        {"AU12": 2.55, "AU26": 1.0, "AU43L": 5.0, "AU43R": 0.0}
    )
    path = written(tmp_path / "wide.csv", [row | {"JawOpen": 20}])
    with pytest.raises(ActionUnitError, match="JawOpen = 20 is outside the scale 0-1"):
        Expression.from_csv(path)
    path = written(tmp_path / "empty.csv", [{"jawOpen": "", "time": 1}])
    with pytest.raises(ActionUnitError, match="cells are empty"):
        Expression.from_csv(path)


def test_a_table_is_a_curve(tmp_path):
    looks = dict.fromkeys((n for n in MEASURED if n.startswith("eyeLook")), 0)
    names = ("time", "jawOpen", "mouthSmileLeft", "mouthSmileRight", "eyeBlinkLeft", "eyeBlinkRight")
    cells = [(0, 0, 0, 0, 0, 0), (1, "", 0.4, 0.42, 1, 0), (2, 1, 0.4, 0.42, 0, 0)]
    rows = [dict(zip(names, row, strict=True)) for row in cells]
    rows = [row | looks | {"eyeLookUpLeft": 0.5 * i, "eyeLookUpRight": 0.5 * i} for i, row in enumerate(rows)]
    curve = Curve.from_csv(written(tmp_path / "curve.csv", rows, ";"))
    assert set(curve.names) == {"AU12", "AU26", "AU43L", "AU43R", "gaze_yaw", "gaze_pitch"}
    assert curve.at(1.0) == pytest.approx(
        {"AU12": 2.05, "AU26": 2.5, "AU43L": 5.0, "AU43R": 0.0, "gaze_yaw": 0.0, "gaze_pitch": 15.0}
    )
    assert np.array_equal(curve.times, [0, 1, 2])


def test_a_table_of_both_kinds_is_refused(tmp_path):
    with pytest.raises(ActionUnitError, match="jawOpen"):
        Curve.from_csv(written(tmp_path / "both.csv", [{"time": 0, "AU12": 1, "jawOpen": 0}]))
    with pytest.raises(ActionUnitError, match="no row holds a face"):
        Curve.from_csv(written(tmp_path / "none.csv", [{"time": 0, "jawOpen": ""}]))
