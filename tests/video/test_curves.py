"""Curves of action units over time."""

import numpy as np
import pytest

from magicedit.action_units import NAMES, editable
from magicedit.errors import ActionUnitError
from magicedit.request import EditRequest
from magicedit.video import Curve, check_request


def csv_curve(tmp_path, text: str) -> Curve:
    path = tmp_path / "curve.csv"
    path.write_text(text)
    return Curve.from_csv(path)


def test_between_keyframes_even_beyond_them_held(tmp_path):
    curve = csv_curve(tmp_path, "time,AU12,au4l\n1,0,-1\n3,4,1\n")
    assert curve.names == ("AU4L", "AU12")
    assert curve.at(0) == curve.at(1) == {"AU4L": -1, "AU12": 0}
    assert curve.at(1.5) == {"AU4L": -0.5, "AU12": 1}
    assert curve.at(3) == curve.at(99) == {"AU4L": 1, "AU12": 4}
    assert curve.end == 3


def test_blanks_and_byte_order_mark_and_spare_lines(tmp_path):
    curve = csv_curve(tmp_path, "\ufeff Time , AU12\n\n 0 , 1\n 2 , 3\n\n")
    assert curve.at(1) == {"AU12": 2}


def test_an_empty_cell_lies_between_its_column_s_own_keyframes(tmp_path):
    curve = csv_curve(tmp_path, "time,AU12,AU4\n0,0,1\n1,,\n4,4,\n")
    assert curve.at(1) == {"AU4": 1, "AU12": 1}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no keyframes"),
        ("time,AU12\n", "no keyframes"),
        ("AU12,AU4\n1,2\n", '"time"'),
        ("time\n1\n", "no keyframes"),
        ("time,AU12,AU99\n0,1,2\n", "AU99"),
        ("time,AU12,smile\n0,1,2\n", "smile"),
        ("time,AU12,AU012\n0,1,2\n", "two columns for AU12"),
        ("time,AU12,AU12L\n0,1,2\n", "both sides"),
        ("time,AU12\n0,1\n0,2\n", "ascend"),
        ("time,AU12\n2,1\n1,2\n", "sort"),
        ("time,AU12\n-1,1\n", "from 0 on"),
        ("time,AU12\nnan,1\n", "expected a number"),
        ("time,AU12\n0,much\n", "line 2: AU12"),
        ("time,AU12\n0,11\n", "between -10 and 10"),
        ("time,AU12\n0\n", "expected 2 cells"),
        ("time,AU12,AU4\n0,1,\n", "AU4 is empty"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path, text, said):
    with pytest.raises(ActionUnitError, match=said):
        csv_curve(tmp_path, text)


def test_a_file_that_is_missing_or_no_text(tmp_path):
    with pytest.raises(ActionUnitError, match="does not exist"):
        Curve.from_csv(tmp_path / "none.csv")
    (tmp_path / "binary.csv").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(ActionUnitError, match="cannot be read"):
        Curve.from_csv(tmp_path / "binary.csv")


def test_keyframes_one_by_one():
    curve = Curve.from_keys(["0:AU12=0", "1:AU4=2", "2:AU12=+3,AU4=-1"])
    assert curve.at(1) == {"AU4": 2, "AU12": 1.5}
    assert curve.at(0) == {"AU4": 2, "AU12": 0}


@pytest.mark.parametrize("keys", [["AU12=3"], ["x:AU12=3"], ["0:AU12"], ["1:AU12=1", "0:AU12=2"], [":"]])
def test_malformed_keyframes(keys):
    with pytest.raises(ActionUnitError):
        Curve.from_keys(keys)


def test_a_model_may_lack_a_unit():
    curve = Curve.from_keys(["0:AU45=1"])
    with pytest.raises(ActionUnitError, match="AU45"):
        curve.usable_by(NAMES)
    Curve.from_keys(["0:AU12L=1"]).usable_by(NAMES)


def test_codes_of_directions_are_columns(tmp_path):
    curve = csv_curve(tmp_path, "time,AU61,AU62,AU54,au045\n0,0,0,0,0\n1,2,0,1,5\n2,0,3,0,0\n")
    assert curve.at(1.0) == {"gaze_yaw": 12, "head_pitch": -4, "AU45": 5}
    assert curve.at(2.0)["gaze_yaw"] == -18
    assert Curve.from_keys(["1:AU64=2"]).at(1) == {"gaze_pitch": -12}
    usable = curve.usable_by(editable(NAMES))
    assert usable.at(1) == {"gaze_yaw": 12, "head_pitch": -4, "AU43": 5}
    with pytest.raises(ActionUnitError, match="AU45"):
        curve.usable_by(NAMES)


def test_one_control_under_two_names():
    keys = Curve.from_keys(["0:AU43=0,AU45=5"])
    with pytest.raises(ActionUnitError, match="AU45 and AU43 are the same here"):
        keys.usable_by(editable(NAMES))
    measured = Curve(keys.times, keys.values, measured=True)
    assert measured.usable_by(editable(NAMES)).at(0) == {"AU43": 0}


def test_arrays_are_taken():
    curve = Curve(np.array([0.0, 2.0]), {"AU12": np.array([0.0, 1.0])})
    assert curve.at(0.5) == {"AU12": 0.25}
    with pytest.raises(ActionUnitError, match="no keyframes"):
        Curve(np.array([]), {"AU12": np.array([])})


OPENFACE = "frame, face_id, timestamp, confidence, success, x_0, x_16, AU12_r, AU45_r, AU12_c\n"


def test_a_tool_s_time_series_is_a_curve(tmp_path):
    rows = "3,0,0.08,0.98,1,0,9,1.5,0,1\n1,0,0.0,0.98,1,0,9,0,2,1\n2,0,0.04,0.2,0,0,9,5,0,1\n"
    curve = csv_curve(tmp_path, OPENFACE + rows)  # unsorted, and a frame without a face
    assert curve.to_json() == {"time": [0, 0.08], "AU12": [0, 1.5], "AU45": [2, 0]}
    assert curve.usable_by(NAMES).names == ("AU12",)  # what a model lacks is left alone
    with pytest.raises(ActionUnitError, match="AU45"):
        csv_curve(tmp_path, "timestamp,AU45_r\n0,1\n").usable_by(NAMES)


def test_sides_of_a_tool_stay_where_they_differ(tmp_path):
    header = "timestamp,AU12_r,AU12L_r,AU12R_r\n"
    assert csv_curve(tmp_path, header + "0,1,1,1.2\n1,2,2,2\n").names == ("AU12",)
    assert csv_curve(tmp_path, header + "0,1,1,3\n1,2,2,nan\n").names == ("AU12L", "AU12R")
    with pytest.raises(ActionUnitError, match="both sides"):
        csv_curve(tmp_path, "timestamp,AU12_r,AU12L_r\n0,1,1\n")


def test_a_curve_follows_the_largest_of_several_faces(tmp_path):
    small, large = "{0},0,{1},0.98,1,0,9,1,0,1\n", "{0},1,{1},0.98,1,50,90,3,0,1\n"
    rows = "".join(row.format(n, n / 25) for n in range(4) for row in (small, large))
    assert csv_curve(tmp_path, OPENFACE + rows).to_json()["AU12"] == [3] * 4
    boxes = "timestamp,FaceRectWidth,FaceRectHeight,FaceScore,AU12\n0,90,90,0.9,0.6\n0,9,9,0.9,0.2\n"
    assert csv_curve(tmp_path, boxes).to_json() == {"time": [0], "AU12": [3]}


@pytest.mark.parametrize(
    ("header", "cells", "times"),
    [
        ("timestamp", ["0.5", "1"], [0.5, 1]),
        ("Time (ms)", ["500", "1e3"], [0.5, 1]),
        ("frame_time_in_ms", ["40", "80"], [0.04, 0.08]),
        ("milliseconds", ["40", "80"], [0.04, 0.08]),
        ("seconds", ["0", "2"], [0, 2]),
        ("Video Time", ["00:01:02.500", "01:00:00"], [62.5, 3600]),
        ("time", ["0:01", "0:02"], [1, 2]),
    ],
)
def test_times_are_read_as_they_are_written(tmp_path, header, cells, times):
    rows = "".join(f"{cell},{value}\n" for value, cell in enumerate(cells))
    for unit in ("AU12", "AU12_r"):
        assert csv_curve(tmp_path, f"{header},{unit}\n{rows}").times == pytest.approx(times)


@pytest.mark.parametrize(
    ("codes", "times"),
    [
        (["12:00:00:00.000", "12:00:00:30.000"], [0, 0.5]),  # no second ends: Live Link Face's 60
        (["12:00:00:24", "12:00:00:29", "12:00:01:00"], [0, 5 / 30, 6 / 30]),
        (["23:59:59:23", "00:00:00:00", "00:00:01:00"], [0, 1 / 24, 25 / 24]),
        (["12:00:01:00", "12:00:00;59.500"], [0, 0.5 / 60]),
    ],
)
def test_timecodes_count_from_the_first_one(tmp_path, codes, times):
    rows = "".join(f"{code},61,0.5,0.5,0.1\n" for code in codes)
    text = f"Timecode,BlendShapeCount,MouthSmileLeft,MouthSmileRight,HeadYaw\n{codes[0]},0\n{rows}"
    assert csv_curve(tmp_path, text).times == pytest.approx(times)


def test_a_target_by_another_name_conflicts_with_a_curve():
    with pytest.raises(ActionUnitError, match="AU43: both set"):
        check_request(editable(NAMES), EditRequest(set="AU45=5"), Curve.from_keys(["0:AU43=2"]))
