"""The one reader of tables, and what all its users read alike."""

import math

import numpy as np
import pytest

from magicedit.data.labels import read_label_file
from magicedit.errors import ActionUnitError, DatasetError
from magicedit.evaluation.editors import PictureFolder
from magicedit.evaluation.subjects import read_attributes
from magicedit.expression import Expression
from magicedit.tables import read_table
from magicedit.video.curves import Curve


@pytest.fixture
def written(tmp_path):
    """`written(text, encoding)`: a file."""

    def write(text: str, encoding: str = "utf-8"):
        path = tmp_path / "table.csv"
        path.write_bytes(text.encode(encoding))
        return path

    return write


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_read_table_takes_what_spreadsheets_write(written, encoding, separator, end):
    lines = ["", f"name{separator} grün ", separator, f'a{separator} "x{separator}y"', "b"]
    table = read_table(written(end.join(lines), encoding))
    assert table.header == ("name", "grün")
    assert [number for number, _ in table.rows] == [4, 5]
    assert [table.cells(row) for _, row in table.rows] == [
        {"name": "a", "grün": f"x{separator}y"},
        {"name": "b"},
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a,b,a\n", "two columns 'a'"),
        ('a\n"1\n', "cannot be read as a CSV file"),
        ("a\n\x00ü", "cannot be read as a CSV file"),
    ],
)
def test_read_table_raises_the_readers_own_error(written, text, said):
    with pytest.raises(DatasetError, match=said):
        read_table(written(text, "latin-1"), DatasetError)


def test_number_reads_decimal_commas_where_cells_are_not_separated_by_commas(written):
    for text in ("a;b;c\n-1,5;;none\n", "a\tb\tc\n-1,5\t\tNaN\n"):
        table = read_table(written(text))
        cells = table.cells(table.rows[0][1])
        assert table.number(cells, "a") == -1.5
        assert math.isnan(table.number(cells, "b"))
        assert math.isnan(table.number(cells, "c"))
    table = read_table(written('a,b\n"1,5",inf\n'))
    cells = table.cells(table.rows[0][1])
    with pytest.raises(ValueError, match="a: expected a number, got '1,5'"):
        table.number(cells, "a")
    with pytest.raises(ValueError, match="b: expected a finite number"):
        table.number(cells, "b")


def test_every_reader_takes_semicolons_and_decimal_commas(written, tmp_path):
    openface = written("filename; success; AU12_r\na.jpg; 1; 2,5\n", "utf-16")
    assert read_label_file(openface).intensities == {"a.jpg": {"AU12": 2.5}}
    assert Expression.from_csv(openface).values == {"AU12": 2.5}
    curve = Curve.from_csv(written("Time;AU12\n0;0\n0,5;1,5\n"))
    assert curve.at(0.5) == {"AU12": 1.5}
    assert read_attributes(written("identity;age\nann;34,5\n")) == {"ann": {"age": "30-39"}}
    (tmp_path / "1.png").touch()
    assert PictureFolder(written("identity;request;picture\nann;AU12=1,AU4=2;1.png\n"))


def test_expressions_are_on_the_scale_of_the_tool(written):
    assert Expression.from_csv(written("FaceScore,AU12,AU04\n0.9,0.5,0.1\n")).values == {
        "AU4": pytest.approx(0.5),
        "AU12": pytest.approx(2.5),
    }
    libre = written("au_12,au_12_intensity\n1,2.75\n")  # a detection beside the intensity
    assert Expression.from_csv(libre).values == {"AU12": 2.75}
    assert Expression.from_csv(written("AU12_r\n5.0004\n")).values == {"AU12": 5.0}
    with pytest.raises(ActionUnitError, match="line 2: AU12 = 3 is outside the scale 0-1 of py-feat"):
        Expression.from_csv(written("FaceScore,AU12\n0.9,3\n"))


@pytest.mark.parametrize("text", ["success,AU12_r\n0,3\n", "FaceScore,AU12,input\n,,a.jpg\n"])
def test_a_row_in_which_the_tool_found_no_face_is_no_expression(written, text):
    with pytest.raises(ActionUnitError, match="line 2: no face was found"):
        Expression.from_csv(written(text))


def test_two_columns_of_one_unit_are_refused(written):
    path = written("filename,AU1_r,AU01_r\na,1,2\n")
    with pytest.raises(DatasetError, match="two columns for AU1"):
        read_label_file(path)
    with pytest.raises(ActionUnitError, match="two columns for AU1"):
        Expression.from_csv(path)


def test_sides_are_columns_of_expressions_and_not_of_labels(written):
    path = written("filename,AU12_r,AU12L_r\na,1,\n")
    assert read_label_file(path).intensities == {"a": {"AU12": 1.0}}
    assert np.isclose(Expression.from_csv(written("AU12L,AU12R\n1,2\n")).values["AU12R"], 2)
