"""The one reader of tables, and what all its users read alike."""

import math
import os

import numpy as np
import pytest

from magicedit.data.labels import read_label_file
from magicedit.errors import ActionUnitError, DatasetError, MagicEditError
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


def test_number_reads_decimal_commas(written):
    for text in ("a;b;c\n-1,5;;none\n", "a\tb\tc\n-1,5\t\tNaN\n"):
        table = read_table(written(text))
        cells = table.cells(table.rows[0][1])
        assert table.number(cells, "a") == -1.5
        assert math.isnan(table.number(cells, "b"))
        assert math.isnan(table.number(cells, "c"))


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


NUMBERS = [  # separator, cell as written, number; None: no number
    (",", "-1.5", -1.5), (",", '"1,5"', 1.5), (",", '"0,125"', 0.125), (",", '"1,500"', None),
    (",", "+.5", 0.5), (";", "1,5", 1.5), (";", "1,250", 1.25), (";", "1,2E-05", 1.2e-5), (";", ",5", 0.5),
    (";", "1.5e2", 150), ("\t", "-0,75", -0.75), ("|", "1,5", 1.5), (";", "1.234,5", None),
    (",", "1_0", None), (",", "\uff11\uff12", None), (",", "0x1F", None), (",", "9" * 5000, None),
    (",", "inf", None), (",", "-Infinity", None), (",", "1e999", None),
]  # fmt: skip


@pytest.mark.parametrize(("separator", "cell", "value"), NUMBERS)
def test_number_takes_points_and_commas_and_nothing_else(written, separator, cell, value):
    table = read_table(written(f"a{separator}b\n{cell}{separator}0\n"), DatasetError)
    cells = table.cells(table.rows[0][1])
    if value is None:
        with pytest.raises(DatasetError, match="a: expected a"):
            table.number(cells, "a")
    else:
        assert table.number(cells, "a") == value


@pytest.mark.parametrize(
    "cell",
    ["", "nan", "NaN", "-nan", "nan(ind)", "-nan(ind)", "-nan(snan)", "1.#QNAN", "-1.#IND", "1.#QNAN00",
     "1,#IND", "NA", "N/A", "#N/A", "#NUM!", "<NA>", "None", "null", "-", "FIT_FAILED", "FIND_FAILED",
     "Unknown"],
)  # fmt: skip
def test_a_tool_s_word_for_no_value_is_nan_and_its_row_no_label(written, cell):
    path = written(f"filename;AU12_r;AU25_r\na.jpg;{cell};{cell}\nb.jpg;2,5;1\n")
    table = read_table(path)
    assert math.isnan(table.number(table.cells(table.rows[0][1]), "AU12_r"))
    assert read_label_file(path).intensities == {"b.jpg": {"AU12": 2.5, "AU25": 1.0}}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("mark", [False, True])
def test_read_table_knows_encodings_with_and_without_a_byte_order_mark(written, encoding, mark):
    text = 'filename,AU12_r\n"grün.jpg",2.5\n'
    text = f"\ufeff{text}" if mark and encoding.endswith(("le", "be")) else text
    assert read_label_file(written(text, encoding)).intensities == {"grün.jpg": {"AU12": 2.5}}


@pytest.mark.parametrize("encoding", ["cp1252", "cp1250", "shift-jis", "mac-roman"])
def test_read_table_says_how_to_save_other_encodings(written, encoding):
    name = "日.jpg" if encoding == "shift-jis" else "ü.jpg"
    with pytest.raises(DatasetError, match="no text in UTF-8 in line 2; save it as UTF-8"):
        read_table(written(f"photo,AU12\n{name},1\n", encoding), DatasetError)


def test_read_table_bounds_what_it_takes(written, monkeypatch, tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    for path in (tmp_path / "pipe.csv", "/dev/zero", tmp_path, tmp_path / ("x" * 5000), tmp_path / "a\0b"):
        with pytest.raises(DatasetError, match="cannot be read"):
            read_table(path, DatasetError)
    monkeypatch.setattr("magicedit.tables.MOST_CELLS", 10)
    with pytest.raises(DatasetError, match="more than 10 cells"):
        read_table(written("a,b\n" + "1,2\n" * 6), DatasetError)
    assert len(read_table(written("a,b\n" + "1,2\n" * 4)).rows) == 4
    header = ",".join(f"c{n}" for n in range(50_000))
    with pytest.raises(DatasetError, match="cells"):
        read_table(written(header), DatasetError)


FACEREADER = (
    "Video analysis detailed log\nFace Model:\tGeneral\n\n"
    "Video Time\tHappy\tAction Unit 01 - Inner Brow Raiser\tAction Unit 12 - Lip Corner Puller\n"
    "00:00:00.000\t0.1\t0.0\t0.75\n00:00:00.040\tFIT_FAILED\tFIT_FAILED\tFIT_FAILED\n"
    "00:00:01.500\t0.1\t0.2\t0.5\n"
)
IMOTIONS = (
    "#INFO,,\n#Study name,Demo,\n#DATA,,\nRow,Timestamp,EventSource,Joy,Brow Furrow,Mouth Open,Smile\n"
    "1,40.0,AFFDEX,98.2,20,60,95.5\n2,80.0,SlideMarker,,,,\n3,120,AFFDEX,98.2,0,0,10\n"
)


def test_lines_above_a_header_are_passed_over(written):
    path = written(FACEREADER, "utf-8-sig")
    assert Expression.from_csv(path).values == {"AU1": 0.0, "AU12": 3.75}
    assert Curve.from_csv(path).to_json() == {"time": [0, 1.5], "AU1": [0, 1], "AU12": [3.75, 2.5]}
    assert Expression.from_csv(written(IMOTIONS), 0).values == {
        "AU4": pytest.approx(1.0), "AU12": pytest.approx(4.775), "AU25": pytest.approx(3.0)
    }  # fmt: skip
    assert Curve.from_csv(written(IMOTIONS)).times == pytest.approx([0.04, 0.12])  # milliseconds
    assert read_table(written("sep=;\nphoto;AU12\na,b.jpg;1,5\n")).header == ("photo", "AU12")
    assert read_table(written("#,photo\n1,a.jpg\n")).header == ("#", "photo")
    assert read_table(written("name,unit\na,AU12\n")).header == ("name", "unit")


def test_letters_are_facs_intensities(written):
    letters = written("Video Time,Action Unit 04,Action Unit 12 - Lip Corner Puller\n00:00,NotActive,D\n")
    assert Expression.from_csv(letters).values == {"AU4": 0.0, "AU12": 4.0}
    by_hand = written("filename,AU1,AU4,AU12,AU25\na.jpg,A,0,e,C\n")
    assert read_label_file(by_hand).intensities == {"a.jpg": {"AU1": 1, "AU4": 0, "AU12": 5, "AU25": 3}}
    with pytest.raises(DatasetError, match="expected a number, got 'D'"):
        read_label_file(written("filename,AU12_r\na.jpg,D\n"))


def test_a_scale_that_two_versions_of_a_tool_share_is_asked_for(written, tmp_path):
    small = written("input,au_12_intensity,au_25_intensity\na,0.8,0.5\nb,0.1,1\n")
    for read in (read_label_file, Expression.from_csv):
        with pytest.raises(MagicEditError, match="above 1, so that 0-1 may be meant"):
            read(small)
    assert read_label_file(small, 1).intensities["a"] == {"AU12": 4.0, "AU25": 2.5}
    assert read_label_file(small, 5).intensities["a"] == {"AU12": 0.8, "AU25": 0.5}
    with pytest.raises(ActionUnitError, match="may be meant"):
        Curve.from_csv(written("timestamp,Smile,Brow Furrow\n0,0.5,0.1\n"))
    for name, value in (("rest", 0.1), ("smile", 3)):  # one file a photograph: judged together
        (tmp_path / "labels").mkdir(exist_ok=True)
        (tmp_path / "labels" / f"{name}.csv").write_text(f"au_12_intensity\n{value}\n")
    assert read_label_file(tmp_path / "labels").intensities["rest"] == {"AU12": 0.1}


EMOTIONS = "anger,disgust,fear,happiness,sadness,surprise,neutral"


@pytest.mark.parametrize("marks", ["FaceScore", "FaceRectX", "Pitch,Roll,Yaw", EMOTIONS])
def test_py_feat_is_known_by_any_of_its_columns(written, marks):
    others = ",".join("1" * len(marks.split(",")))
    path = written(f"input,AU01,AU12,{marks}\na.jpg,0.1,0.9,{others}\n")
    assert Expression.from_csv(path).values == {"AU1": pytest.approx(0.5), "AU12": pytest.approx(4.5)}
    assert read_label_file(path).tool == "py-feat"


@pytest.mark.parametrize("validity", ["success", "confidence", "FaceScore", "BlendShapeCount"])
@pytest.mark.parametrize("none", ["0", "0.00", "0,0", "False"])
def test_a_row_that_the_tool_calls_faceless_holds_no_face(written, validity, none):
    path = written(f"filename; {validity}; AU12_r\na; {none}; 0\nb; 1; 2\n")
    assert read_label_file(path).intensities == {"b": {"AU12": 2}}
    with pytest.raises(ActionUnitError, match="no face"):
        Expression.from_csv(path, 0)
    scores = written(f"{validity};mouthSmileLeft;mouthSmileRight\n{none};0;0\n")
    with pytest.raises(ActionUnitError, match="no face"):
        Expression.from_csv(scores, 0)


def test_units_of_a_tool_that_nothing_measures_here_are_left_alone(written):
    expression = Expression.from_csv(written("FaceScore,AU12,AU23\n0.9,0.9,0.5\n"))
    assert expression.variation({"AU12": 1.0}) == {"AU12": pytest.approx(3.5)}
    with pytest.raises(ActionUnitError, match="AU12, AU23 are not measured here"):
        expression.variation({"AU4": 1.0})


def test_expressions_are_read_from_tables_of_any_suffix(tmp_path):
    for name in ("log.txt", "table.TSV", "12:30.csv"):
        (tmp_path / name).write_text(FACEREADER)
        assert Expression.read(str(tmp_path / name)).values == {"AU1": 0.0, "AU12": 3.75}
        assert Expression.read(f"{tmp_path / name}:2").values == {"AU1": 1.0, "AU12": 2.5}


def table_of(tmp_path, text):
    (tmp_path / "table.csv").write_text(text)
    return read_table(tmp_path / "table.csv")


def test_units_of_py_feat_alone_do_not_tell_their_scale(tmp_path):
    """As its `aus` are written without the rest: 0.9 is nearly all of it, and no intensity of ours."""
    with pytest.raises(MagicEditError, match="0-1 may be meant"):
        table_of(tmp_path, ",AU01,AU02,AU12\n0,0.1,0.2,0.9\n").units()
    assert table_of(tmp_path, ",AU01,AU02,AU12\n0,0.1,0.2,3.5\n").units().scale is None
    assert table_of(tmp_path, ",AU1,AU2,AU12\n0,0.1,0.2,0.9\n").units().scale is None  # names of ours


def test_presence_by_py_feat_is_no_intensity(tmp_path):
    names = "FaceScore," + ",".join(f"AU{number:02}" for number in (1, 2, 4, 6, 12, 25))
    with pytest.raises(MagicEditError, match="nothing but 0 and 1"):
        table_of(tmp_path, f"{names}\n0.9,0,1,0,1,1,0\n0.9,0,0,0,0,1,0\n").units()
    assert table_of(tmp_path, f"{names}\n0.9,0,1,0,1,1,0.5\n").units().tool == "py-feat"
    assert table_of(tmp_path, f"{names}\n0.9,0,0,0,0,0,0\n").units().tool == "py-feat"  # a face at rest


def test_emotions_beside_units_make_no_table_of_py_feat(tmp_path):
    emotions = "anger,disgust,fear,happiness,sadness,surprise"
    row = "0.9,0.1,0,0,0,0,0"
    assert table_of(tmp_path, f"AU12,{emotions}\n{row}\n").units().tool == "AU columns"
    assert table_of(tmp_path, f"AU01,{emotions}\n{row}\n").units().tool == "py-feat"


def test_a_side_by_face_reader_is_not_the_whole_unit(tmp_path):
    whole, left = "Action Unit 12 - Lip Corner Puller", "Action Unit 12 - Lip Corner Puller - Left"
    assert table_of(tmp_path, f"{whole},{left}\n0.5,0.9\n").units().columns == {"AU12": whole}
    assert table_of(tmp_path, f"{left}\n0.9\n").units() is None
