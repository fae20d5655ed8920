"""CelebA, from its lists to a prepared dataset."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from magicedit.cli import main
from magicedit.data import PairDataset, prepare_dataset
from magicedit.data.celeba import ATTRIBUTES, PARTITION, PEOPLE, PICTURES, read_celeba
from magicedit.data.description import read_description
from magicedit.errors import DatasetError

NAMES = ("Smiling", "Young")
ROWS = {  # picture -> values, person, partition
    "1.png": ("1 -1", "7", "0"),
    "2.png": ("-1 1", "7", "0"),
    "3.png": ("1  1", "8", "1"),
    "test.png": ("1 1", "9", "2"),
    "lost.png": ("1 1", "7", "0"),
    "both.png": ("1 1", "7", "1"),
    "strange.png": ("1 0", "7", "0"),
    "short.png": ("1", "7", "0"),
    "alone.png": ("1 1", None, "0"),
    "unsplit.png": ("1 1", "7", None),
}
REASONS = {
    "test.png": "it is in partition 2, not train (0) or validation (1)",
    "lost.png": "its picture is missing",
    "both.png": "its person 7 is in the split train too",
    "strange.png": "its row has the value 0, neither 1 nor -1",
    "short.png": "its row has 1 values for 2 attributes",
    "alone.png": "identity_CelebA.txt lacks it",
    "unsplit.png": "list_eval_partition.txt lacks it",
}


def write(folder: Path, picture: Image.Image | None = None, released: bool = False) -> Path:
    """A tiny CelebA; `released`: in the folders of the release. Without a picture, files of one byte."""
    anno, evaluation, images = (folder / name if released else folder for name in ("Anno", "Eval", "Img"))
    for place in (anno, evaluation, images / PICTURES):
        place.mkdir(parents=True, exist_ok=True)
    lists = {
        anno / ATTRIBUTES: [str(len(ROWS)), " ".join(NAMES), *(f"{n}  {v}" for n, (v, *_) in ROWS.items())],
        anno / PEOPLE: [f"{name} {person}" for name, (_, person, _) in ROWS.items() if person],
        evaluation / PARTITION: [f"{name} {part}" for name, (*_, part) in ROWS.items() if part],
    }
    for path, lines in lists.items():
        path.write_text("\n".join(lines) + "\n")
    for number, name in enumerate(ROWS):
        path = images / PICTURES / name
        if name == "lost.png":
            continue
        if picture is None or name in REASONS:
            path.write_bytes(b"x")
        else:
            Image.fromarray((np.asarray(picture) * (1 - number / 10)).astype(np.uint8)).save(path)
    return folder


def test_attributes_people_and_splits_are_kept(astronaut, tmp_path):
    source = write(tmp_path / "source", Image.fromarray(astronaut[:320, 60:380]), released=True)
    output = tmp_path / "data"
    report = prepare_dataset(source, output, size=64, layout="celeba", progress=False)
    assert report.photographs == {"train": 2, "validation": 1}
    rows = [
        r for path in sorted((output / "data").glob("*.parquet")) for r in pq.read_table(path).to_pylist()
    ]
    assert [(row["identity"], row["attributes"]) for row in rows] == [
        ("7", ["Smiling"]),
        ("7", ["Young"]),
        ("8", ["Smiling", "Young"]),
    ]
    assert [Path(row["source"]).name for row in rows] == ["1.png", "2.png", "3.png"]
    assert read_description(output)["attributes"] == ["Smiling", "Young"]
    records = PairDataset(output, "train", 64, warped=0).records  # two photographs of a person are a pair
    assert [record.attributes for record in records] == [{"Smiling"}, {"Young"}]
    assert {Path(entry["source"]).name: entry["reason"] for entry in report.rejected} == REASONS
    assert prepare_dataset(source, output, size=64, layout="celeba", progress=False).unchanged
    # Other labels are written again
    path = source / "Anno" / ATTRIBUTES
    path.write_text(path.read_text().replace("1.png  1 -1", "1.png  1 1"))
    command = ["prepare", str(source), "-o", str(output), "--size", "64", "--format", "celeba"]
    assert main(command) == 0
    assert PairDataset(output, "train", 64, warped=0).records[0].attributes == {"Smiling", "Young"}


def test_photographs_without_attributes_have_none(pairs_folder):
    assert not any(record.attributes for record in PairDataset(pairs_folder, "train", 64).records)
    assert "attributes" not in read_description(pairs_folder)


def test_lists_are_read_without_pictures_being_opened(tmp_path):
    names, entries, rejected = read_celeba(write(tmp_path))
    assert names == NAMES
    assert [(e.identity, e.split, e.attributes) for e in entries] == [
        ("7", "train", ("Smiling",)),
        ("7", "train", ("Young",)),
        ("8", "validation", NAMES),
    ]
    assert len(rejected) == len(REASONS)


def without(name):
    return lambda folder: (folder / name).unlink()


def with_text(name, text):
    return lambda folder: (folder / name).write_text(text)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without(ATTRIBUTES), f"is not CelebA as released: it has no {ATTRIBUTES}"),
        (without(PEOPLE), f"it has no {PEOPLE}"),
        (without(PARTITION), f"it has no {PARTITION}"),
        (lambda folder: (folder / PICTURES).rename(folder / "moved"), f"it has no {PICTURES}"),
        (with_text(ATTRIBUTES, ""), "must start with the number of its rows"),
        (with_text(ATTRIBUTES, "1.png 1 1\n"), "must start with the number of its rows"),
        (with_text(ATTRIBUTES, "1\n1.png 1 1\n"), "must start with the number of its rows"),
        (with_text(ATTRIBUTES, "2\nSmiling Young\n1.png 1 1\n"), "has 1 rows, its first line says 2"),
        (with_text(ATTRIBUTES, "1\nYoung Young\n1.png 1 1\n"), "names an attribute twice"),
        (with_text(ATTRIBUTES, "1\nSmiling\n1.png 2\n"), "none of the 1 rows .*the value 2"),
        (with_text(PEOPLE, "1.png\n"), "line 1: expected a picture and a number"),
        (with_text(PARTITION, "1.png 0\n2.png train\n"), "line 2: expected a picture and a number"),
    ],
)
def test_unusable_folders_are_one_clear_line(damage, message, tmp_path):
    damage(write(tmp_path / "source"))
    with pytest.raises(DatasetError, match=message) as raised:
        prepare_dataset(tmp_path / "source", tmp_path / "out", layout="celeba")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_splits_are_those_of_the_lists_and_nothing_is_warped(tmp_path):
    write(tmp_path / "source")
    for options, message in (
        ({"validation_fraction": 0.1}, "CelebA's lists name the validation photographs"),
        ({"augment": "muscles"}, "the attributes of warped photographs are not known"),
    ):
        with pytest.raises(DatasetError, match=message):
            prepare_dataset(tmp_path / "source", tmp_path / "out", layout="celeba", **options)


def test_pictures_elsewhere_are_rejected(tmp_path):
    folder = write(tmp_path)
    for name, text in ((ATTRIBUTES, "{} 1 1"), (PEOPLE, "{} 7"), (PARTITION, "{} 0")):
        content = (folder / name).read_text().replace(f"{len(ROWS)}\n", f"{len(ROWS) + 3}\n", 1)
        more = [text.format(picture) for picture in ("/etc/hostname", "../x.png", "a" * 300)]
        (folder / name).write_text("\n".join([content.rstrip(), *more]) + "\n")
    _, _, rejected = read_celeba(folder)
    reasons = {entry["source"]: entry["reason"] for entry in rejected}
    assert reasons["/etc/hostname"] == reasons["../x.png"] == f"it is not in {PICTURES}"
    assert reasons[f"{PICTURES}/{'a' * 300}"] == "its picture is missing"


@pytest.mark.parametrize("count", ["²", "9" * 5000])
def test_counts_that_are_none_are_one_clear_line(tmp_path, count):
    folder = write(tmp_path)
    path = folder / ATTRIBUTES
    path.write_text(path.read_text().replace(f"{len(ROWS)}\n", f"{count}\n", 1))
    with pytest.raises(DatasetError, match=r"must start with the number|is it complete") as caught:
        read_celeba(folder)
    assert len(str(caught.value)) < 1000
