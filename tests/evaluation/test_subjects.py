"""Whom to edit, from folders and prepared datasets of every kind."""

import json
import os
import sys
import unicodedata

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hostile import unlistable_folder
from PIL import Image

from magicedit.data.description import DESCRIPTION_FILE, FORMAT_VERSION
from magicedit.errors import DatasetError, ImageError
from magicedit.evaluation.subjects import RENDERINGS, Subject, read_attributes, read_subjects, render
from magicedit.imaging import open_photo


@pytest.fixture
def people(tmp_path):
    """ann with a neutral photograph among others, bob without, carol loose; and what is no photograph."""
    photographs = ("ann/angry.png", "ann/later/Neutral.PNG", "bob/b.png", "bob/a.jpg", "carol.png")
    for shade, name in enumerate((*photographs, ".bob/x.png", "bob/.thumbnails/0.png", "bob/._a.jpg")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20 + shade, 24)).save(tmp_path / name, "PNG")
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("no photograph")
    return tmp_path


def test_one_photograph_a_person(people):
    found = read_subjects(people)
    assert [(s.identity, s.source.relative_to(people).as_posix()) for s in found] == [
        ("ann", "ann/later/Neutral.PNG"),
        ("bob", "bob/a.jpg"),
        ("carol", "carol.png"),
    ]
    assert found[0].open().size == (21, 24)
    assert found[0].open().source == found[0].source
    assert all(s.name == s.identity and s.group == {} and s.row is None for s in found)


def test_some_of_the_people(people):
    assert [s.identity for s in read_subjects(people, limit=2)] == ["ann", "bob"]
    assert [s.identity for s in read_subjects(people, identities=["carol", "ann"])] == ["carol", "ann"]
    assert [s.identity for s in read_subjects(people, identities=["carol", "ann"], limit=1)] == ["carol"]
    with pytest.raises(DatasetError, match=r"no such identities.*: dave, eve; there are ann, bob, carol$"):
        read_subjects(people, identities=["ann", "dave", "eve"])


def test_folders_without_people(tmp_path, people):
    with pytest.raises(DatasetError, match=r"expected a folder.*nowhere"):
        read_subjects(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match=r"no photographs in .*empty"):
        read_subjects(people / "empty")
    Image.new("RGB", (20, 20)).save(people / "ann.jpg")
    with pytest.raises(DatasetError, match="both a folder and a photograph of ann;"):
        read_subjects(people)


def test_a_broken_photograph_is_named_when_opened(people):
    (people / "bob" / "a.jpg").write_bytes(b"no photograph")
    (subject,) = read_subjects(people, identities=["bob"])
    with pytest.raises(ImageError, match=r"bob/a\.jpg"):
        subject.open()


# --- Prepared datasets ---


def test_a_prepared_dataset_gives_its_validation_split(pairs_folder):
    """Of bob the less expressive of the two photographs, at the dataset's size."""
    (bob,) = read_subjects(pairs_folder)
    (file,) = (pairs_folder / "data").glob("validation-*.parquet")
    rows = pq.read_table(file).to_pylist()
    assert {row["identity"] for row in rows} == {"bob"}
    assert (bob.identity, bob.source) == ("bob", file)
    assert bob.row == int(np.argmin([sum(row["action_units"]) for row in rows]))
    photo = bob.open()
    assert photo.pixels.shape == (64, 64, 3)
    assert photo.source == file
    # the other photograph is 0.7 times as bright, or 1/0.7
    other = Subject("bob", file, 1 - bob.row).open()
    ratio = photo.pixels.mean() / other.pixels.mean()
    assert abs(np.log(ratio)) == pytest.approx(-np.log(0.7), abs=0.1)
    assert (ratio < 1) == ("dark" in rows[bob.row]["source"])


def test_a_photograph_is_read_once_for_its_fingerprint(tmp_path):
    photograph = tmp_path / "ann.png"
    photograph.write_bytes(b"first")
    subject = Subject("ann", photograph)
    first = subject.fingerprint
    photograph.write_bytes(b"second")
    assert subject.fingerprint == first != Subject("ann", photograph).fingerprint


def write_dataset(folder, split="train", **columns):
    (folder / "data").mkdir(parents=True, exist_ok=True)
    (folder / DESCRIPTION_FILE).write_text(json.dumps({"format": FORMAT_VERSION}))
    pq.write_table(pa.table(columns), folder / "data" / f"{split}-00000.parquet")
    return folder


def test_warped_variants_are_nobodys_photograph(tmp_path):
    data = write_dataset(
        tmp_path,
        identity=["bob", "ann", "ann", "ann", "bob"],
        source=["bob/#1.png", "ann/a.png", "ann/a.png#muscles-0", "ann/b.png", "bob/c.png#muscles-1"],
        action_units=[[1.0, 1.0], [0.0, 3.0], [0.0, 0.0], [2.0, 0.5], [0.0, 0.0]],
    )
    assert [(s.identity, s.row) for s in read_subjects(data)] == [("ann", 3), ("bob", 0)]


def test_datasets_that_do_not_say_who_is_who(tmp_path):
    nameless = write_dataset(tmp_path / "a", source=["a.png"], action_units=[[0.0]])
    with pytest.raises(DatasetError, match=r"train-00000\.parquet has no column identity"):
        read_subjects(nameless)
    empty = write_dataset(
        tmp_path / "b", identity=["ann", ""], source=["a", "b"], action_units=[[0.0], [0.0]]
    )
    with pytest.raises(DatasetError, match="row 1 has no identity"):
        read_subjects(empty)
    warped = write_dataset(tmp_path / "c", identity=["a"], source=["a#muscles-0"], action_units=[[0.0]])
    with pytest.raises(DatasetError, match="no photographs"):
        read_subjects(warped)
    (tmp_path / "c" / DESCRIPTION_FILE).write_text('{"format": 99}')
    with pytest.raises(DatasetError, match="99"):
        read_subjects(warped)


# --- Attributes ---


def test_attributes_by_the_folders_own_file_or_another(people, tmp_path):
    (people / "attributes.csv").write_text("identity,gender,age\nann, female ,34.5\nzoe,male,20\nbob,,9\n")
    ann, bob, carol = read_subjects(people)
    assert (ann.group, bob.group, carol.group) == (
        {"gender": "female", "age": "30-39"},
        {"age": "0-9"},
        {},
    )
    other = people / "other.csv"
    other.write_bytes("\ufeffidentity,Farbe\ncarol,grün\n".encode())
    ann, _, carol = read_subjects(people, attributes=other)
    assert (ann.group, carol.group) == ({}, {"Farbe": "grün"})


@pytest.mark.parametrize(
    ("value", "binned"),
    [("30", "30-39"), ("39.9", "30-39"), ("40", "40-49"), ("0", "0-9"), ("30-39", "30-39"), ("nan", "nan"),
     ("inf", "inf"), ("east asian", "east asian")],
)  # fmt: skip
def test_ages_are_binned_by_tens(tmp_path, value, binned):
    file = tmp_path / "a.csv"
    file.write_text(f"identity,face_age,code\nann,{value},1\n")
    assert read_attributes(file) == {"ann": {"face_age": binned, "code": "1"}}


def test_attributes_that_cannot_be_read(people, tmp_path):
    for content in ("name,age\nann,3\n", "identity,age\n", ""):
        (tmp_path / "a.csv").write_text(content)
        with pytest.raises(DatasetError, match=r"a\.csv must have a column `identity`"):
            read_subjects(people, attributes=tmp_path / "a.csv")
    with pytest.raises(DatasetError, match=r"none\.csv does not exist"):
        read_subjects(people, attributes=tmp_path / "none.csv")
    (tmp_path / "a.csv").write_bytes(b"identity\n\xff\xfe\n")
    with pytest.raises(DatasetError, match=r"a\.csv cannot be read"):
        read_attributes(tmp_path / "a.csv")


# --- Renderings ---


def test_renderings_keep_the_size_and_change_the_picture(tmp_path, astronaut):
    """Mean absolute differences of the three are 31 to 77 levels here."""
    file = tmp_path / "ann.png"
    Image.fromarray(astronaut[:240, 100:300]).save(file)
    subjects = [Subject("ann", file, style=style) for style in RENDERINGS]
    assert [s.name for s in subjects] == ["ann", "ann (drawn)", "ann (cartoon)"]
    photo, drawn, cartoon = (s.open() for s in subjects)
    np.testing.assert_array_equal(photo.pixels, astronaut[:240, 100:300])
    assert {p.pixels.shape for p in (photo, drawn, cartoon)} == {(240, 200, 3)}
    assert {p.pixels.dtype for p in (photo, drawn, cartoon)} == {np.dtype(np.uint8)}
    assert {p.source for p in (photo, drawn, cartoon)} == {file}
    pixels = [p.pixels.astype(float) for p in (photo, drawn, cartoon)]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(pixels[a] - pixels[b]).mean() > 15
    # channels stay in their places: red stays the suit's strongest
    suit = np.s_[180:235, 20:60]
    for rendered in pixels:
        red, green, blue = rendered[suit].reshape(-1, 3).mean(0)
        assert red > green > 0
        assert red > blue > 0


def test_other_renderings_are_refused(astronaut):
    with pytest.raises(DatasetError, match="'oil'; there are photograph, drawn, cartoon"):
        render(astronaut, "oil")


def test_a_subject_opens_as_any_photograph(people):
    (carol,) = read_subjects(people, identities=["carol"])
    np.testing.assert_array_equal(carol.open().pixels, open_photo(people / "carol.png").pixels)


# --- Names and layouts ---


def test_people_lie_in_folders_of_splits_and_names_have_two_forms(tmp_path):
    zoe = unicodedata.normalize("NFD", "Zoë")
    for name in ("train/ann", "train/ben", f"validation/{zoe}"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "1.png").write_bytes(b"")
    (subject,) = read_subjects(tmp_path, identities=[unicodedata.normalize("NFC", "Zoë")])
    assert subject.identity == zoe
    assert [s.identity for s in read_subjects(tmp_path)] == [zoe]  # as a dataset's validation split


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_subjects_have_names_that_a_report_can_hold(tmp_path):
    (tmp_path / os.fsdecode(b"Zo\xeb")).mkdir()
    (tmp_path / os.fsdecode(b"Zo\xeb") / "1.png").write_bytes(b"")
    (subject,) = read_subjects(tmp_path)
    assert subject.identity == "Zo\\xeb"


@pytest.mark.skipif(sys.platform != "linux", reason="makes pipes and devices")
def test_subjects_that_are_no_files_are_errors(tmp_path):
    (tmp_path / "ann").mkdir()
    os.mkfifo(tmp_path / "ann" / "neutral.png")
    (subject,) = read_subjects(tmp_path)
    with pytest.raises(DatasetError, match=r"neutral\.png cannot be read \(it is not a file\)"):
        subject.fingerprint  # noqa: B018
    unlistable_folder(tmp_path / "ann")
    with pytest.raises(DatasetError, match="cannot be read \\(File name too long\\)"):
        read_subjects(tmp_path)
