"""Curves of action units over time."""

import numpy as np
import pytest

from magicedit.action_units import NAMES
from magicedit.errors import ActionUnitError
from magicedit.video import Curve


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
    with pytest.raises(ActionUnitError, match="cannot be read"):
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


def test_arrays_are_taken():
    curve = Curve(np.array([0.0, 2.0]), {"AU12": np.array([0.0, 1.0])})
    assert curve.at(0.5) == {"AU12": 0.25}
    with pytest.raises(ActionUnitError, match="no keyframes"):
        Curve(np.array([]), {"AU12": np.array([])})
