import csv
import dataclasses
import inspect
import json
import os
import shutil
import socket
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hostile import unlistable_folder
from PIL import Image

from magicedit.action_units import NAMES
from magicedit.batch import JOURNAL
from magicedit.data import PairDataset, prepare_dataset, shards, sources
from magicedit.errors import DatasetError, OutputError
from magicedit.faces import face_region
from magicedit.files import locked, shown

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from attacks import prepare_crashes

SETTINGS = {"size": 128, "validation": ["bob"], "progress": False}


def times(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def rows(folder, split="train"):
    paths = sorted((folder / "data").glob(f"{split}-*.parquet"))
    return [row for path in paths for row in pq.read_table(path).to_pylist()]


@pytest.fixture
def load_dataset(tmp_path, monkeypatch):
    """`datasets.load_dataset` with a cache of its own, on a machine without a network."""
    import datasets

    def refuse(*args):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    return lambda folder: datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))


def test_the_report_tells_what_became_of_every_file(prepared):
    output, report = prepared
    reasons = {entry["source"]: entry["reason"] for entry in report.rejected}
    assert sorted(reasons) == ["ann/empty.jpg", "ann/torn.png", "bob/copy.png", "bob/wall.png"]
    assert "empty" in reasons["ann/empty.jpg"]
    assert "torn.png" in reasons["ann/torn.png"]
    assert "/" not in reasons["ann/torn.png"].replace("ann/torn.png", "")  # nothing of this machine
    assert reasons["bob/copy.png"] == "same file as ann/light.png"
    assert reasons["bob/wall.png"] == "no face found"
    singles = "1 of 2 people has one photograph: for warped pairs only"
    assert report.notes == [
        {"source": "train", "note": singles},
        {"source": "carol.png", "note": "2 faces, took the largest"},
    ]
    assert report.ignored == ["notes.txt"]
    assert report.photographs == {"train": 3, "validation": 1}
    assert report.identities == {"train": 2, "validation": 1}
    assert report.pairs == {"train": 2, "validation": 0}
    written = json.loads((output / "report.json").read_text())
    assert written["rejected"] == report.rejected
    assert not (output / ".work").exists()


def test_datasets_loads_the_folder_offline(dataset, load_dataset):
    loaded = load_dataset(dataset)
    assert {split: len(rows) for split, rows in loaded.items()} == {"train": 3, "validation": 1}
    row = next(row for row in loaded["train"] if row["source"] == "ann/light.png")
    assert row["identity"] == "ann"
    assert (row["image"].size, row["image"].mode) == ((128, 128), "RGB")
    assert (row["mask"].size, row["mask"].mode) == ((128, 128), "L")
    landmarks = np.array(row["landmarks"], np.float32).reshape(478, 2)
    region = face_region(landmarks, 128, row["scheme"])
    assert np.array_equal(np.asarray(row["mask"]), np.where(region, 255, 0))
    description = json.loads((dataset / "magicedit.json").read_text())
    assert description["action_units"] == list(NAMES)
    measured = dict(zip(description["measured"], row["measured"], strict=True))
    assert row["action_units"] == [measured[name] for name in NAMES]
    assert measured["AU12"] > 2  # the astronaut smiles


def test_no_identity_is_in_two_splits(dataset):
    assert {row["identity"] for row in rows(dataset, "train")} == {"ann", "carol.png"}
    assert {row["identity"] for row in rows(dataset, "validation")} == {"bob"}


def test_photographs_land_in_one_frame(dataset):
    """Brightness moves nobody, a mirror image lands mirrored: the eyes are where the template has them."""
    found = {row["source"]: row for split in ("train", "validation") for row in rows(dataset, split)}
    points = {name: np.reshape(row["landmarks"], (478, 2)) for name, row in found.items()}
    eyes = [33, 133, 362, 263]
    assert np.abs(points["ann/light.png"] - points["ann/dark.png"])[eyes].max() < 1.0  # px of 128
    mirrored = (127 - points["bob/mirrored.jpg"][eyes[::-1], 0], points["bob/mirrored.jpg"][eyes[::-1], 1])
    assert np.abs(np.stack(mirrored, 1) - points["ann/light.png"][eyes]).max() < 2.0
    for place in points.values():
        assert abs(place[33, 1] - place[263, 1]) < 5  # upright


def test_a_second_run_writes_nothing(dataset, photographs, backend):
    before = times(dataset)
    report = prepare_dataset(photographs, dataset, backend=backend, **SETTINGS)
    assert report.unchanged
    assert (report.measured, report.reused) == (0, 7)
    assert report.rejected == json.loads((dataset / "report.json").read_text())["rejected"]
    assert times(dataset) == before


def test_only_what_changed_is_measured_again(tmp_path, write_photographs, backend, astronaut):
    folder, output = write_photographs(tmp_path / "photographs"), tmp_path / "dataset"
    assert prepare_dataset(folder, output, backend=backend, **SETTINGS).measured == 7
    before = {row["source"]: row for row in rows(output)}
    Image.fromarray((astronaut * 0.5).astype(np.uint8)).save(folder / "ann" / "dark.png")
    (folder / "carol.png").rename(folder / "dora.png")
    report = prepare_dataset(folder, output, backend=backend, **SETTINGS)
    assert (report.measured, report.reused, report.unchanged) == (1, 6, False)
    after = {row["source"]: row for row in rows(output)}
    assert sorted(after) == ["ann/dark.png", "ann/light.png", "dora.png"]
    assert after["ann/light.png"] == before["ann/light.png"]
    assert after["ann/dark.png"]["image"] != before["ann/dark.png"]["image"]
    assert after["dora.png"]["image"] == before["carol.png"]["image"]
    assert after["dora.png"]["identity"] == "dora.png"
    # Another crop size is another measurement; the split alone is not.
    assert (
        prepare_dataset(folder, output, backend=backend, **(SETTINGS | {"validation": ["ann"]})).measured == 0
    )
    assert prepare_dataset(folder, output, backend=backend, **(SETTINGS | {"size": 64})).measured == 7
    assert (
        prepare_dataset(folder, output, backend=backend, force=True, **(SETTINGS | {"size": 64})).measured
        == 7
    )


def test_the_module_of_prepare_dataset_is_not_hidden_by_a_function():
    import magicedit.data.prepare as module

    assert inspect.ismodule(module)
    assert module.prepare_dataset is prepare_dataset


class StopsAfter:
    """The real backend, until somebody presses Ctrl-C at its n-th photograph."""

    def __init__(self, backend, photographs):
        self.name, self._detect, self._left = backend.name, backend.detect, photographs

    def detect(self, pixels):
        if self._left == 0:
            raise KeyboardInterrupt
        self._left -= 1
        return self._detect(pixels)


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path, photographs, dataset, backend):
    output = tmp_path / "dataset"
    with pytest.raises(KeyboardInterrupt):
        prepare_dataset(photographs, output, backend=StopsAfter(backend, 2), **SETTINGS)
    with pytest.raises(DatasetError, match="is not a prepared dataset"):
        PairDataset(output)
    assert prepare_dataset(photographs, output, backend=backend, **SETTINGS).measured == 5
    assert rows(output) == rows(dataset)


class Killed(BaseException):
    """Stands for SIGKILL: nothing is tidied up on its way."""


@pytest.mark.parametrize("target", ["validation-00000.parquet", "data", "report.json", "magicedit.json"])
def test_prepare_killed_while_it_replaces_a_dataset_goes_on(
    tmp_path, write_photographs, backend, monkeypatch, target
):
    """Killed before one of the files or folders gets its final name."""
    folder, output = write_photographs(tmp_path / "photographs"), tmp_path / "dataset"
    prepare_dataset(folder, output, backend=backend, **SETTINGS)
    (folder / "carol.png").rename(folder / "dora.png")

    def killed(move):
        def wrapper(self, to):
            if Path(to).name == target:
                raise Killed
            return move(self, to)

        return wrapper

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", killed(Path.rename))
        patched.setattr(Path, "replace", killed(Path.replace))
        for _ in range(2):
            with pytest.raises(Killed):
                prepare_dataset(folder, output, backend=backend, **SETTINGS)
    report = prepare_dataset(folder, output, backend=backend, **SETTINGS)
    assert report.measured == 0
    assert [row["source"] for row in rows(output)] == ["ann/dark.png", "ann/light.png", "dora.png"]
    assert [row["source"] for row in rows(output, "validation")] == ["bob/mirrored.jpg"]
    assert not (output / ".work").exists()


def test_prepare_is_whole_again_after_a_kill_at_any_point_of_a_sample(tmp_path):
    """Of the campaign, which kills at every one."""
    for number, attack in enumerate(prepare_crashes.attacks(seed=3, short=True)):
        (tmp_path / str(number)).mkdir()
        assert attack.check(tmp_path / str(number)) is None, attack.name


def test_readers_find_the_new_dataset_while_it_takes_the_place_of_the_old_one(tmp_path, dataset):
    """As a kill leaves it: between the old shards' leaving and the new ones' arrival."""
    output = shutil.copytree(dataset, tmp_path / "dataset")
    for name in ("data", "magicedit.json", "report.json", "README.md"):
        target = output / ".work" / "next" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (output / name).rename(target)
    assert len(PairDataset(output, resolution=128)) == 3
    (output / ".work" / "next" / "data").rename(output / "data")
    assert len(PairDataset(output, resolution=128)) == 3


def test_only_one_run_writes_a_dataset(tmp_path, photographs, backend):
    with locked(tmp_path / "dataset"), pytest.raises(OutputError, match="another run is writing into"):
        prepare_dataset(photographs, tmp_path / "dataset", backend=backend, **SETTINGS)


@pytest.mark.parametrize("name", ["magicedit.json", "report.json"])
@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "[1]",
        '{"format": 1, "fingerprint": 5}',
        "9" * 5000,
        '"\\ud800"',
        '{"format": 1, "photographs": [3]}',
        "\0",
    ],
)
def test_descriptions_that_hold_anything_are_written_again(
    tmp_path, dataset, photographs, backend, name, text
):
    output = shutil.copytree(dataset, tmp_path / "dataset")
    (output / name).write_text(text)
    report = prepare_dataset(photographs, output, backend=backend, **SETTINGS)
    assert (report.unchanged, report.photographs) == (False, {"train": 3, "validation": 1})
    assert json.loads((output / "report.json").read_text())["rejected"] == report.rejected
    if name == "magicedit.json":
        (output / name).write_text(text)
        with pytest.raises(DatasetError, match=r"magicedit\.json"):
            PairDataset(output)


def test_jobs_change_nothing_but_the_time(tmp_path, photographs, dataset):
    prepare_dataset(photographs, tmp_path / "dataset", backend="mediapipe", jobs=2, **SETTINGS)
    assert rows(tmp_path / "dataset") == rows(dataset)


def test_png_keeps_the_crop_exactly(tmp_path, photographs, dataset, backend):
    prepare_dataset(photographs, tmp_path / "dataset", backend=backend, image_format="png", **SETTINGS)
    folders = (tmp_path / "dataset", dataset)
    lossless, lossy = (PairDataset(folder, resolution=128).record_images(0)[0] for folder in folders)
    difference = (lossless - lossy).abs() * 127.5
    assert 0 < difference.mean() < 2  # grey levels: JPEG at quality 95


def test_a_share_of_the_identities_for_validation_does_not_depend_on_the_others(
    tmp_path, photographs, backend
):
    settings = {"size": 64, "progress": False, "backend": backend}
    prepare_dataset(photographs, tmp_path / "all", validation_fraction=0.5, **settings)
    everyone = {row["identity"]: "train" for row in rows(tmp_path / "all")}
    everyone |= {row["identity"]: "validation" for row in rows(tmp_path / "all", "validation")}
    assert sorted(everyone) == ["ann", "bob", "carol.png"]
    fewer = tmp_path / "fewer"
    (fewer / "ann").mkdir(parents=True)
    (fewer / "ann" / "light.png").write_bytes((photographs / "ann" / "light.png").read_bytes())
    shutil.copy(photographs / "carol.png", fewer)
    prepare_dataset(fewer, tmp_path / "two", validation_fraction=0.5, **settings)
    for name in ("ann", "carol.png"):
        assert [row["identity"] for row in rows(tmp_path / "two", everyone[name])] == [name]


def test_a_share_of_two_people_fills_both_splits_and_of_one_says_why_not(tmp_path, photographs, backend):
    settings = {"size": 64, "progress": False, "backend": backend}
    for share in (0.05, 0.95):
        report = prepare_dataset(photographs, tmp_path / "all", validation_fraction=share, **settings)
        assert sorted(report.identities) == ["train", "validation"]
        assert min(report.identities.values()) == 1
    report = prepare_dataset(photographs / "ann", tmp_path / "one", validation_fraction=0.5, **settings)
    assert report.identities == {"train": 1, "validation": 1}  # loose photographs are people of their own
    (photographs_of_one := tmp_path / "alone").mkdir()
    shutil.copytree(photographs / "ann", photographs_of_one / "ann")
    report = prepare_dataset(photographs_of_one, tmp_path / "alone-out", validation_fraction=0.5, **settings)
    assert report.identities == {"train": 1}
    why = "nobody is reserved, although a share of 0.5 is asked for: there is one person"
    assert {"source": "validation", "note": why, "kind": "warning"} in report.notes
    with pytest.raises(DatasetError, match="reserve people by `magicedit prepare --validation`, a share"):
        PairDataset(tmp_path / "alone-out", split="validation", resolution=64)


def test_shards_have_so_many_rows_at_most(tmp_path, photographs, dataset, backend, monkeypatch):
    monkeypatch.setattr(shards, "_SHARD_ROWS", 2)
    monkeypatch.setattr(shards, "ROW_GROUP", 1)
    prepare_dataset(photographs, tmp_path / "dataset", backend=backend, **SETTINGS)
    counts = [pq.read_metadata(path).num_rows for path in sorted((tmp_path / "dataset/data").glob("train*"))]
    assert counts == [2, 1]
    assert (
        PairDataset(tmp_path / "dataset", resolution=64).digest == PairDataset(dataset, resolution=64).digest
    )


def test_a_dataset_of_an_earlier_version_is_recognised_by_its_fingerprint():
    """It was the hash of one JSON text, which is now made in parts."""
    values = [{"b": 1, "a": None}, [["é", "x"], []], [], "s"]
    parts = [values[0], iter(values[1]), iter([]), "s"]
    assert "".join(sources._json(parts)) == json.dumps(values, sort_keys=True)


# --- Labels from other tools ---


def write_labels(path, intensities):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["filename", *(f"au_{name[2:]}_intensity" for name in NAMES)])
        writer.writerows([name, *values] for name, values in intensities.items())
    return path


def test_labels_replace_the_measured_action_units(tmp_path, photographs, backend):
    labels = write_labels(tmp_path / "labels.csv", {"ann/light.png": [1.5] * 12, "ann/dark.png": [0.5] * 12})
    settings = {"size": 64, "backend": backend, "progress": False}
    report = prepare_dataset(photographs, tmp_path / "dataset", labels=labels, **settings)
    assert [row["action_units"] for row in rows(tmp_path / "dataset")] == [[0.5] * 12, [1.5] * 12]
    assert all(row["measured"] for row in rows(tmp_path / "dataset"))
    assert {"source": "carol.png", "reason": "no label in labels.csv"} in report.rejected
    assert json.loads((tmp_path / "dataset" / "magicedit.json").read_text())["labeller"] == "LibreFace"

    write_labels(labels, {"ann/light.png": [2.5] * 12, "ann/dark.png": [0.5] * 12})
    report = prepare_dataset(photographs, tmp_path / "dataset", labels=labels, **settings)
    assert (report.measured, report.unchanged) == (0, False)  # other labels, same pictures
    assert [row["action_units"][0] for row in rows(tmp_path / "dataset")] == [0.5, 2.5]


def test_labels_of_other_photographs_or_other_action_units_are_errors(tmp_path, photographs, backend):
    other = write_labels(tmp_path / "other.csv", {"zoe/1.png": [0] * 12})
    with pytest.raises(DatasetError, match=r"no label in .* is of a photograph"):
        prepare_dataset(photographs, tmp_path / "dataset", labels=other, backend=backend, progress=False)
    few = tmp_path / "few.csv"
    few.write_text("filename,AU12_r\nann/light.png,1\n")
    with pytest.raises(DatasetError, match="lacks AU1, AU2"):
        prepare_dataset(photographs, tmp_path / "dataset", labels=few, backend=backend, progress=False)
    bare = tmp_path / "bare.csv"
    bare.write_text("filename,AU12\nann/light.png,1\n")
    with pytest.raises(DatasetError, match="--labels-scale"):
        prepare_dataset(photographs, tmp_path / "dataset", labels=bare, backend=backend, progress=False)
    assert not (tmp_path / "dataset").exists()


class WithoutActionUnits:
    """A backend that finds faces and measures no action units, as InsightFace's."""

    name = "landmarks-only"

    def __init__(self, backend):
        self._detect = backend.detect

    def detect(self, pixels):
        return [dataclasses.replace(face, action_units={}, pose=None) for face in self._detect(pixels)]


def test_a_backend_without_action_units_needs_labels(tmp_path, photographs, backend):
    settings = {"size": 64, "backend": WithoutActionUnits(backend), "progress": False}
    with pytest.raises(DatasetError, match="measures no action units; give --labels"):
        prepare_dataset(photographs, tmp_path / "dataset", **settings)
    labels = write_labels(tmp_path / "labels.csv", {"ann/light.png": [2] * 12, "ann/dark.png": [0] * 12})
    report = prepare_dataset(photographs, tmp_path / "dataset", labels=labels, **settings)
    assert report.photographs == {"train": 2}
    assert report.measured == 0  # nothing was lost with the first attempt
    assert [(row["measured"], row["pose"]) for row in rows(tmp_path / "dataset")] == [([], []), ([], [])]


# --- Names, layouts and what is no file ---


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_what_cannot_be_read_or_named_is_rejected_and_the_rest_prepared(tmp_path, write_photographs, backend):
    folder, output = write_photographs(tmp_path / "photographs"), tmp_path / "dataset"
    whole = (folder / "ann" / "light.png").read_bytes()
    (folder / "ann" / os.fsdecode(b"Zo\xeb.png")).write_bytes(whole + b"1")
    (folder / os.fsdecode(b"\xff\xfe")).mkdir()
    (folder / os.fsdecode(b"\xff\xfe") / "1.png").write_bytes(whole + b"2")
    (folder / "ann" / os.fsdecode(b"\xe9.txt")).touch()
    os.mkfifo(folder / "ann" / "pipe.png")
    (folder / "ann" / "zero.jpg").symlink_to("/dev/zero")
    (folder / "ann" / "gone.jpg").symlink_to("nowhere")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "ann" / "socket.png"))
    unlisted = unlistable_folder(folder / "bob").relative_to(folder).as_posix()
    report = prepare_dataset(folder, output, backend=backend, **SETTINGS)
    reasons = {entry["source"]: entry["reason"] for entry in report.rejected}
    for name in ("ann/pipe.png", "ann/zero.jpg"):
        assert reasons[name] == "cannot be read: it is not a file"
    assert "cannot be read" in reasons["ann/socket.png"]
    assert reasons["ann/gone.jpg"] == "cannot be read: No such file or directory"
    assert reasons["ann/Zo\\xeb.png"] == reasons["\\xff\\xfe/1.png"] == "its name is not UTF-8; rename it"
    assert reasons[shown(unlisted)] == "cannot be read: File name too long"
    assert "ann/\\xe9.txt" in report.ignored
    assert report.photographs == {"train": 3, "validation": 1}
    assert prepare_dataset(folder, output, backend=backend, **SETTINGS).unchanged


def test_people_in_folders_of_splits_keep_their_split(tmp_path, write_photographs, backend):
    photographs = write_photographs(tmp_path / "flat")
    folder = tmp_path / "photographs"
    for split, person in (("train", "ann"), ("validation", "bob")):
        (folder / split).mkdir(parents=True)
        (photographs / person).rename(folder / split / person)
    report = prepare_dataset(folder, tmp_path / "dataset", size=64, backend=backend, progress=False)
    assert report.identities == {"train": 1, "validation": 1}
    assert {row["identity"] for row in rows(tmp_path / "dataset", "validation")} == {"bob"}
    with pytest.raises(DatasetError, match="already define the validation split; leave --validation out"):
        prepare_dataset(folder, tmp_path / "other", validation=["bob"], backend=backend)


def test_identities_are_named_in_either_form_of_their_letters(tmp_path, write_photographs, backend):
    folder = write_photographs(tmp_path / "photographs")
    (folder / "ann").rename(folder / unicodedata.normalize("NFD", "Zoë"))
    settings = {"size": 64, "validation": [unicodedata.normalize("NFC", "Zoë")], "progress": False}
    assert prepare_dataset(folder, tmp_path / "dataset", backend=backend, **settings).photographs == {
        "train": 2,
        "validation": 2,
    }


# --- Errors ---


@pytest.mark.parametrize("output", ["file/dataset", "x" * 300, "a\0b"])
def test_outputs_that_cannot_be_made(tmp_path, photographs, backend, output):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written to"):
        prepare_dataset(photographs, tmp_path / output, backend=backend, **SETTINGS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"validation": ["zoe"]}, "no such identities to validate on: zoe; there are ann, bob"),
        ({"validation": ["bob"], "validation_fraction": 0.1}, "not both"),
        ({"validation_fraction": 1.0}, "below 1"),
        *(({"size": size}, "multiple of 8") for size in (0, 24, 100, 100_000_000)),
        ({"image_format": "gif"}, '"jpeg" or "png"'),
        ({"labels_scale": 5.0}, "--labels"),
        ({"jobs": 0}, "at least 1"),
        ({"jobs": 2}, "by name"),
    ],
)
def test_settings_that_make_no_sense(tmp_path, photographs, backend, settings, message):
    with pytest.raises(DatasetError, match=message):
        prepare_dataset(photographs, tmp_path / "dataset", backend=backend, progress=False, **settings)
    assert not (tmp_path / "dataset").exists()


def test_folders_without_photographs(tmp_path, backend):
    with pytest.raises(DatasetError, match="expected a folder of photographs"):
        prepare_dataset(tmp_path / "nowhere", tmp_path / "dataset", backend=backend)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="no photographs in"):
        prepare_dataset(tmp_path / "empty", tmp_path / "dataset", backend=backend)
    (tmp_path / "walls").mkdir()
    Image.fromarray(np.full((300, 300, 3), 90, np.uint8)).save(tmp_path / "walls" / "wall.png")
    with pytest.raises(DatasetError, match=r"none of the 1 photographs .* \(wall.png: no face found\)"):
        prepare_dataset(tmp_path / "walls", tmp_path / "dataset", backend=backend, progress=False)


def test_other_peoples_folders_are_not_written_into(tmp_path, photographs, backend):
    with pytest.raises(DatasetError, match="choose another"):
        prepare_dataset(photographs, photographs, backend=backend)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    with pytest.raises(DatasetError, match="is not a dataset of magicedit"):
        prepare_dataset(photographs, tmp_path / "thesis", backend=backend)
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter.txt"]


@pytest.mark.parametrize(
    "files",
    [
        [".work/thesis.txt", "data/more.txt", "README.md"],
        [".work/next/thesis.txt"],
        ["magicedit.json", "data/more.txt"],
        ["data/train-00000.parquet", "README.md"],
        [".work"],
    ],
)
def test_folders_that_look_like_a_dataset_are_left_alone(tmp_path, photographs, backend, files):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text('{"format": 1}')
    with pytest.raises(DatasetError, match=r"is not (a dataset )?of magicedit"):
        prepare_dataset(photographs, tmp_path, backend=backend, **SETTINGS)
    assert sorted(times(tmp_path)) == sorted(tmp_path / name for name in files)


@pytest.mark.parametrize("card_digest", [True, False], ids=["digest", "earlier version"])
def test_files_of_others_in_a_dataset_stay(tmp_path, write_photographs, backend, dataset, card_digest):
    folder, output = write_photographs(tmp_path / "photographs"), shutil.copytree(dataset, tmp_path / "set")
    if not card_digest:
        description = json.loads((output / "magicedit.json").read_text())
        del description["card"]
        (output / "magicedit.json").write_text(json.dumps(description))
    mine = ["data/test-00000.parquet", "data/notes/a.txt", ".work/thesis.txt", "thesis.txt"]
    for name in mine:
        (output / name).parent.mkdir(exist_ok=True)
        (output / name).write_text("mine")
    (folder / "carol.png").rename(folder / "dora.png")
    report = prepare_dataset(folder, output, backend=backend, **SETTINGS)
    assert "README.md" not in {note["source"] for note in report.notes}
    assert [(output / name).read_text() for name in mine] == ["mine"] * len(mine)
    assert [row["source"] for row in rows(output)] == ["ann/dark.png", "ann/light.png", "dora.png"]

    (output / "README.md").write_text("mine")
    (folder / "dora.png").rename(folder / "carol.png")
    report = prepare_dataset(folder, output, backend=backend, force=True, **SETTINGS)
    assert "README.md" in {note["source"] for note in report.notes}
    assert [(output / name).read_text() for name in [*mine, "README.md"]] == ["mine"] * (len(mine) + 1)

    (output / "data" / "train-mine.parquet").write_text("mine")
    with pytest.raises(DatasetError, match=r"train-mine\.parquet is not of magicedit"):
        prepare_dataset(folder, output, backend=backend, **SETTINGS)


def test_edited_results_are_nobody(tmp_path, write_photographs, backend):
    folder = write_photographs(tmp_path / "photographs")
    (folder / "ann" / "out" / "deep").mkdir(parents=True)
    (folder / "ann" / "out" / JOURNAL).write_text("")
    shutil.copy(folder / "carol.png", folder / "ann" / "out" / "deep" / "edited.png")
    report = prepare_dataset(folder, tmp_path / "dataset", backend=backend, **SETTINGS)
    assert f"ann/out/ (edited results, with {JOURNAL})" in report.ignored
    assert [row["source"] for row in rows(tmp_path / "dataset")][-1] == "carol.png"
    assert not any("out" in entry["source"] for entry in report.rejected)


def test_a_dataset_inside_the_folder_is_not_taken_for_photographs(tmp_path, write_photographs, backend):
    folder = write_photographs(tmp_path / "photographs")
    prepare_dataset(folder, folder / "dataset", backend=backend, **SETTINGS)
    assert prepare_dataset(folder, folder / "dataset", backend=backend, **SETTINGS).unchanged
