"""AffectNet in both of its layouts, from lists to a prepared dataset."""

import json
import os
import sys
import zipfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from magicedit.cli import main
from magicedit.data import PairDataset, prepare_dataset
from magicedit.data.affectnet import Feeling, read_affectnet
from magicedit.errors import DatasetError

HEADER = (
    "subDirectory_filePath,face_x,face_y,face_width,face_height,facial_landmarks,expression,valence,arousal"
)


def first_release(folder: Path, picture: Image.Image) -> None:
    """Lists as CSV: two photographs that can be used, and five rows that cannot."""
    pictures = folder / "Manually_Annotated_Images" / "7"
    pictures.mkdir(parents=True)
    for name, shade in (("glad.png", 1.0), ("calm.png", 0.8), ("other.png", 0.6), ("bare.png", 0.5)):
        Image.fromarray((np.asarray(picture) * shade).astype(np.uint8)).save(pictures / name)
    rows = [
        "7/glad.png,0,0,9,9,1;2,1,0.75,0.25",
        "7/other.png,0,0,9,9,1;2,7,-0.5,0.5",  # contempt
        "7/lost.png,0,0,9,9,1;2,2,-0.5,0.1",  # no such picture
        "7/bare.png,0,0,9,9,1;2,sad,-0.5,0.1",
        "7/glad.png,0,0,9,9,1;2,1,0.75,0.25",  # twice
        "7/bare.png,0,0,9,9,1;2,10,-2,-2",
    ]
    (folder / "training.csv").write_text("\n".join([HEADER, *rows]) + "\n")
    (folder / "validation.csv").write_text(f"{HEADER}\n7/calm.png,0,0,9,9,1;2,0,0.01,-2\n")


def newer_release(folder: Path, picture: Image.Image) -> None:
    """The same as a file for each label."""
    for name, number, split, labels in (
        ("glad", 1, "train_set", (0.75, 0.25)),
        ("other", 7, "train_set", (-0.5, 0.5)),
        ("lost", 2, "train_set", (-0.5, 0.1)),
        ("calm", 0, "val_set", (0.01, None)),
    ):
        for part in ("images", "annotations"):
            (folder / split / part).mkdir(parents=True, exist_ok=True)
        np.save(folder / split / "annotations" / f"{name}_exp.npy", np.array(str(number)))
        for kind, value in zip(("val", "aro"), labels, strict=True):
            if value is not None:
                np.save(folder / split / "annotations" / f"{name}_{kind}.npy", np.array(str(value)))
        if name != "lost":
            pixels = np.asarray(picture) * (0.8 if name == "calm" else 1.0)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / split / "images" / f"{name}.png")


@pytest.fixture
def picture(astronaut) -> Image.Image:
    return Image.fromarray(astronaut[:320, 60:380])


@pytest.mark.parametrize("write", [first_release, newer_release])
def test_both_layouts_keep_emotion_valence_and_arousal(write, picture, tmp_path):
    write(tmp_path / "source", picture)
    output = tmp_path / "data"
    report = prepare_dataset(tmp_path / "source", output, size=64, layout="affectnet", progress=False)
    assert report.photographs == {"train": 1, "validation": 1}
    rows = [
        row for path in sorted((output / "data").glob("*.parquet")) for row in pq.read_table(path).to_pylist()
    ]
    glad, calm = rows
    assert (glad["emotion"], glad["valence"], glad["arousal"]) == ("happiness", 0.75, 0.25)
    assert (calm["emotion"], calm["arousal"]) == ("neutral", None)
    assert calm["valence"] == pytest.approx(0.01)
    assert glad["identity"] == glad["source"]
    assert [
        PairDataset(output, split, 64, warped=1).records[0].emotion for split in ("train", "validation")
    ] == [
        "happiness",
        "neutral",
    ]
    reasons = {Path(entry["source"]).stem: entry["reason"] for entry in report.rejected}
    assert reasons["other"] == "its emotion is contempt, none of the seven"
    assert reasons["lost"] == "its picture is missing"
    if write is first_release:
        assert len(report.rejected) == 5
        assert reasons["bare"] == "its emotion is no face, none of the seven"
        assert reasons["glad"].startswith("same file as")
        assert any("'sad'" in entry["reason"] for entry in report.rejected)
    again = prepare_dataset(tmp_path / "source", output, size=64, layout="affectnet", progress=False)
    assert again.unchanged


def test_changed_emotions_are_written_again(picture, tmp_path):
    newer_release(tmp_path / "source", picture)
    command = ["prepare", str(tmp_path / "source"), "-o", str(tmp_path / "data"), "--size", "64"]
    assert main([*command, "--format", "affectnet"]) == 0
    np.save(tmp_path / "source" / "train_set" / "annotations" / "glad_exp.npy", np.array("3"))
    assert main([*command, "--format", "affectnet"]) == 0
    assert PairDataset(tmp_path / "data", "train", 64, warped=1).records[0].emotion == "surprise"
    assert json.loads((tmp_path / "data" / "report.json").read_text())["photographs"]["train"] == 1


def test_photographs_without_emotions_have_none(pairs_folder):
    records = PairDataset(pairs_folder, "train", 64).records
    assert [record.emotion for record in records] == ["", ""]


def test_labels_are_read_without_their_pictures_being_opened(tmp_path):
    """A picture of one byte: only measuring decodes it."""
    first_release(tmp_path, Image.new("RGB", (2, 2)))
    entries, rejected = read_affectnet(tmp_path)
    assert [entry.feeling[:2] for entry in entries] == [("happiness", 0.75)] * 2 + [("neutral", 0.01)]
    assert np.isnan(entries[-1].feeling.arousal)
    assert entries[0].feeling == Feeling("happiness", 0.75, 0.25)
    assert [entry.split for entry in entries] == ["train", "train", "validation"]
    assert len(rejected) == 4


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "has no lists of AffectNet: expected training.csv"),
        (
            {"training.csv": "picture,expression\n1.jpg,1\n"},
            "training.csv must have the columns subDirectory",
        ),
        ({"training.csv": f"{HEADER}\n"}, "none of the 0 rows"),
        ({"validation.csv": f"{HEADER}\n1.jpg,0,0,9,9,1;2,9,0,0\n"}, "none of the 1 rows .*uncertain"),
    ],
)
def test_unusable_folders_are_one_clear_line(files, message, tmp_path):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(DatasetError, match=message) as raised:
        prepare_dataset(tmp_path, tmp_path / "out", layout="affectnet")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_splits_are_those_of_the_lists(picture, tmp_path):
    newer_release(tmp_path / "source", picture)
    with pytest.raises(DatasetError, match="leave --validation out"):
        prepare_dataset(tmp_path / "source", tmp_path / "out", layout="affectnet", validation_fraction=0.1)
    with pytest.raises(DatasetError, match='layout must be "affectnet"'):
        prepare_dataset(tmp_path / "source", tmp_path / "out", layout="affectnot")


@pytest.mark.skipif(sys.platform != "linux", reason="makes pipes")
def test_pictures_elsewhere_and_labels_that_are_no_arrays_are_rejected(tmp_path):
    for name in ("good", "pipe", "zip", "torn", "huge"):
        for part in ("images", "annotations"):
            (tmp_path / "train_set" / part).mkdir(parents=True, exist_ok=True)
        (tmp_path / "train_set" / "images" / f"{name}.jpg").write_bytes(b"x")
    labels = tmp_path / "train_set" / "annotations"
    np.save(labels / "good_exp.npy", np.array("1"))
    os.mkfifo(labels / "pipe_exp.npy")
    with zipfile.ZipFile(labels / "zip_exp.npy", "w") as archive:
        archive.writestr("a", "b")
    (labels / "torn_exp.npy").write_bytes((labels / "good_exp.npy").read_bytes()[:-3])
    np.save(labels / "huge_exp.npy", np.zeros(100_000))
    lines = ["7/x.png", "../../x.png", "/etc/hostname", "a" * 300, "1e999"]
    rows = [f'"{line}",0,0,9,9,1;2,1e999,0,0' for line in lines]
    (tmp_path / "training.csv").write_text("\n".join([HEADER, *rows]) + "\n")
    entries, rejected = read_affectnet(tmp_path)
    assert [entry.name for entry in entries] == ["train_set/images/good.jpg"]
    assert len(rejected) == len(lines) + 4
