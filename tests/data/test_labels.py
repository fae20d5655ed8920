import pytest

from magicedit.data.labels import match_labels, read_label_file, read_labels
from magicedit.errors import DatasetError


def write(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


def test_openface_headers_have_spaces_and_failed_rows_are_dropped(tmp_path):
    path = write(
        tmp_path / "openface.csv",
        "filename, face, confidence, success, AU01_r, AU12_r, AU12_c",
        "a.jpg, 0, 0.98, 1, 0.50, 3.25, 1",
        "b.jpg, 0, 0.10, 0, 4.00, 4.00, 1",
    )
    assert read_labels(path) == {"a.jpg": {"AU1": 0.5, "AU12": 3.25}}


def test_openface_writes_one_file_a_photograph(tmp_path):
    header = "face, confidence, x_0, x_16, AU12_r"
    write(tmp_path / "ann" / "neutral.csv", header, "0, 0.9, 10, 60, 0.0")
    write(tmp_path / "ann" / "smiling.csv", header, "0, 0.9, 10, 60, 1.5", "1, 0.9, 100, 300, 4.0")
    labels = read_labels(tmp_path)
    assert labels == {"ann/neutral": {"AU12": 0.0}, "ann/smiling": {"AU12": 4.0}}  # the wider face of the two


def test_py_feat_counts_to_one_and_leaves_rows_without_a_face_empty(tmp_path):
    path = write(
        tmp_path / "feat.csv",
        "FaceRectX,FaceRectY,FaceRectWidth,FaceRectHeight,FaceScore,AU01,AU12,Pitch,Roll,Yaw,input,frame",
        "1,1,50,50,0.9,0.2,0.8,0,0,0,/photos/ann/a.jpg,0",
        "90,1,20,20,0.99,1.0,0.1,0,0,0,/photos/ann/a.jpg,0",
        ",,,,,,,,,,/photos/ann/b.jpg,0",
    )
    found = read_label_file(path)
    assert (found.tool, found.scale) == ("py-feat", 1.0)
    assert found.intensities == {"/photos/ann/a.jpg": {"AU1": pytest.approx(1.0), "AU12": pytest.approx(4.0)}}


def test_libreface_reads_intensities_not_detections(tmp_path):
    path = write(
        tmp_path / "libre.csv", "image_path,au_1,au_12,au_1_intensity,au_12_intensity", "a.png,1,1,0.5,2.75"
    )
    assert read_labels(path) == {"a.png": {"AU1": 0.5, "AU12": 2.75}}


def test_values_a_little_outside_the_scale_are_brought_in(tmp_path):
    path = write(tmp_path / "a.csv", "filename,AU12_r,AU15_r", "a,5.0004,-0.0003")
    assert read_labels(path) == {"a": {"AU12": 5.0, "AU15": 0.0}}


def test_a_scale_that_cannot_be_told_is_asked_for(tmp_path):
    path = write(tmp_path / "mine.csv", "filename,AU1,AU12", "a.jpg,0.5,1.0")
    with pytest.raises(DatasetError, match="--labels-scale"):
        read_labels(path)
    assert read_labels(path, scale=5) == {"a.jpg": {"AU1": 0.5, "AU12": 1.0}}
    assert read_labels(path, scale=1) == {"a.jpg": {"AU1": 2.5, "AU12": 5.0}}


@pytest.mark.parametrize("scale", [0, -1, float("nan"), float("inf")])
def test_a_scale_is_a_positive_number(tmp_path, scale):
    path = write(tmp_path / "mine.csv", "filename,AU12", "a.jpg,1.0")
    with pytest.raises(DatasetError, match="above 0"):
        read_labels(path, scale=scale)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["filename,AU12_r", "a,7"], "outside the scale 0-5.*--labels-scale"),
        (["FaceScore,input,AU12", "0.9,a,3"], "outside the scale 0-1 of py-feat"),
        (["filename,AU12_c,AU28_c", "a,1,0"], "presence only"),
        (["filename,au_12", "a,1"], "presence only"),
        (["filename,smile", "a,1"], "no action-unit columns"),
        (["filename,AU12_r", "a,much"], "line 2: AU12_r: expected a number, got 'much'"),
        (["filename,AU12_r", "a,inf"], "finite"),
        (["filename,AU12_r", "a,1,2"], "expected 2 cells, got 3"),
        (["frame, timestamp, AU12_r", "1, 0.0, 1", "2, 0.1, 2"], "frames of a video"),
        ([""], "is empty"),
    ],
)
def test_files_that_cannot_be_read_say_why(tmp_path, lines, message):
    with pytest.raises(DatasetError, match=message):
        read_labels(write(tmp_path / "labels.csv", *lines))


def test_missing_files_and_mixed_folders(tmp_path):
    with pytest.raises(DatasetError, match="does not exist"):
        read_labels(tmp_path / "nowhere.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="found none"):
        read_labels(tmp_path / "empty")
    write(tmp_path / "mixed" / "a.csv", "AU12_r", "1")
    write(tmp_path / "mixed" / "b.csv", "au_12_intensity", "1")
    with pytest.raises(DatasetError, match=r"mixes label files of LibreFace .* and OpenFace"):
        read_labels(tmp_path / "mixed")


def test_labels_match_by_relative_path_then_by_stem():
    sources = ["ann/neutral.jpg", "ann/smiling.jpg", "bob/neutral.jpg", "carol.png"]
    names = ["/data/ann/neutral.jpg", "C:\\data\\bob\\neutral.png", "elsewhere/carol.jpg", "ann/smiling"]
    assert match_labels(names, sources) == {
        "ann/neutral.jpg": "/data/ann/neutral.jpg",
        "bob/neutral.jpg": "C:\\data\\bob\\neutral.png",
        "ann/smiling.jpg": "ann/smiling",
        "carol.png": "elsewhere/carol.jpg",
    }


def test_a_stem_that_several_photographs_have_matches_none_of_them_elsewhere():
    assert match_labels(["x/neutral.jpg"], ["ann/neutral.jpg", "bob/neutral.jpg"]) == {}


def test_ambiguous_labels_are_errors():
    with pytest.raises(DatasetError, match="could be of 2 photographs"):
        match_labels(["neutral"], ["ann/neutral.jpg", "bob/neutral.jpg"])
    with pytest.raises(DatasetError, match="has 2 labels"):
        match_labels(["1/ann/a.jpg", "2/ann/a.jpg"], ["ann/a.jpg"])


def test_rows_without_a_photograph_s_name_are_left_out(tmp_path):
    path = write(tmp_path / "a.csv", "input,AU12_r", "a.jpg,1", ",3", ".,3", "./,3", "b.jpg,2")
    assert read_labels(path) == {"a.jpg": {"AU12": 1}, "b.jpg": {"AU12": 2}}
    assert match_labels(["", ".", "a"], ["a.jpg"]) == {"a.jpg": "a"}


def test_labels_match_names_that_a_mac_decomposed():
    assert match_labels(["ann/gr\u00fcn.jpg"], ["ann/gru\u0308n.jpg"]) == {
        "ann/gru\u0308n.jpg": "ann/gr\u00fcn.jpg"
    }


def test_a_folder_of_labels_may_hold_tables_of_any_kind(tmp_path):
    write(tmp_path / "ann" / "1.CSV", "success, AU12_r", "1, 2.5")
    write(tmp_path / "ann" / "2.tsv", "success\tAU12_r", "1\t1,5")
    write(tmp_path / "ann" / "1_of_details.txt", "Input:x")  # OpenFace writes these too
    assert read_labels(tmp_path) == {"ann/1": {"AU12": 2.5}, "ann/2": {"AU12": 1.5}}


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b.csv", "/dev/zero"])
def test_names_that_no_file_can_have_are_errors(name):
    with pytest.raises(DatasetError, match="cannot be read"):
        read_labels(name)
