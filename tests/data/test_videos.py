import csv
import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from films import RATE, write_video
from PIL import Image

from magicedit.action_units import NAMES, parse_deltas, to_vector
from magicedit.cli import main
from magicedit.data import PairDataset, prepare_dataset
from magicedit.data.frames import LEAST_SHARPNESS, NEAR, expression_of, sharpness_of, spread
from magicedit.data.labels import FrameLabel, match_frames
from magicedit.data.videos import FrameKey, VideoFile
from magicedit.errors import DatasetError, MissingDependencyError
from magicedit.faces import align, crop_face, face_region
from magicedit.warping import displacement_fields, warp_photo

SIDE = 240  # px of a picture
HELD = 10  # pictures of a film that show the same expression
SETTINGS = {"size": 64, "progress": False}


def rows(folder: Path) -> list[dict]:
    return [
        row for path in sorted((folder / "data").glob("*.parquet")) for row in pq.read_table(path).to_pylist()
    ]


def names(folder: Path) -> list[str]:
    return [row["source"] for row in rows(folder)]


@pytest.fixture(scope="session")
def face(backend, closed_mouth):
    """(SIDE, SIDE, 3) uint8 RGB of a synthetic portrait, and the measured face."""
    pixels = crop_face(closed_mouth, align(backend.detect(closed_mouth)[0], SIDE, margin=1.3))
    return pixels, backend.detect(pixels)[0]


@pytest.fixture(scope="session")
def expressions(face) -> list[np.ndarray]:
    """The face as it is, and warped by three commands."""
    pixels, found = face
    fields = displacement_fields(found.landmarks, SIDE, stride=8)
    commands = [to_vector(parse_deltas(text)) for text in ("AU25=+5,AU26=+5", "AU12=+5", "AU1=+5,AU2=+5")]
    return [pixels, *(warp_photo(pixels, fields, vector, found.landmarks, None) for vector in commands)]


@pytest.fixture(scope="session")
def talk(expressions) -> list[np.ndarray]:
    """A film of these, each held for a while, and one picture of each that nothing can be seen in."""
    film = []
    for picture in expressions:
        film += [picture] * HELD
        film.append(cv2.GaussianBlur(picture, (0, 0), 6))
    return film


@pytest.fixture(scope="session")
def somebody(expressions) -> list[np.ndarray]:
    """The same film of somebody else, as far as looks go."""
    film = [np.ascontiguousarray(picture[:, ::-1, [2, 0, 1]] // 2) for picture in expressions]
    return [picture for picture in film for _ in range(HELD + 1)]


@pytest.fixture(scope="session")
def filmed(talk, somebody, backend, tmp_path_factory) -> Path:
    """A folder of videos, and the dataset of it beside it; not to be changed."""
    root = tmp_path_factory.mktemp("filmed")
    (root / "folder" / "alice").mkdir(parents=True)
    write_video(root / "folder" / "alice" / "talk.mp4", talk)
    Image.fromarray(talk[0]).save(root / "folder" / "alice" / "still.png")
    both = [np.concatenate(pictures, 1) for pictures in zip(talk, somebody, strict=True)]
    write_video(root / "folder" / "street.mp4", both)
    prepare_dataset(root / "folder", root / "dataset", backend=backend, **SETTINGS)
    return root


def test_frames_of_a_video_spread_over_its_expressions(filmed, talk, backend):
    found = [row for row in rows(filmed / "dataset") if row["source"].startswith("alice/talk.mp4#t=")]
    assert {row["identity"] for row in found} == {"alice"}
    shown = {round(float(row["source"].rpartition("=")[2]) * RATE) // (HELD + 1) for row in found}
    assert shown == {0, 1, 2, 3}  # each expression
    assert len(found) == 4  # and none twice
    blurred = [place for place, picture in enumerate(talk) if place % (HELD + 1) == HELD]
    assert not {round(float(row["source"].rpartition("=")[2]) * RATE) for row in found} & set(blurred)
    assert sharpness_of(talk[HELD], backend.detect(talk[0])[0]) < LEAST_SHARPNESS


def test_a_frame_s_key_tells_where_it_stands(filmed):
    row = next(row for row in rows(filmed / "dataset") if row["source"].startswith("alice/talk.mp4"))
    key = FrameKey.parse(row["sha256"])
    assert str(key) == row["sha256"]
    assert len(row["sha256"]) == 64
    assert row["source"] == f"alice/talk.mp4#t={key.seconds:.3f}"
    assert key.index == round(key.seconds * RATE)
    assert (key.face, key.chosen, key.frames) == (0, 4, 4 * (HELD + 1))


def test_each_person_of_a_loose_video_is_an_identity(filmed):
    found = [row for row in rows(filmed / "dataset") if row["source"].startswith("street.mp4")]
    assert {row["identity"] for row in found} == {"street.mp4", "street.mp4#face=1"}
    left = {row["identity"]: row["box"][0] < SIDE for row in found}
    assert sorted(left.values()) == [False, True]
    assert all((row["box"][0] < SIDE) == left[row["identity"]] for row in found)
    assert all("&face=1" in row["source"] for row in found if row["identity"].endswith("#face=1"))


def test_of_two_people_in_a_person_s_folder_the_largest_is_taken(tmp_path, filmed, backend):
    (tmp_path / "folder" / "bob").mkdir(parents=True)
    (tmp_path / "folder" / "bob" / "both.mp4").write_bytes((filmed / "folder" / "street.mp4").read_bytes())
    report = prepare_dataset(tmp_path / "folder", tmp_path / "dataset", backend=backend, **SETTINGS)
    assert report.identities == {"train": 1}
    notes = {note["note"] for note in report.notes}
    assert notes == {"2 faces in the video, took the largest by area and time"}


def test_a_second_run_reads_no_video(filmed, backend, monkeypatch):
    monkeypatch.setattr("magicedit.data.measuring.measured_frames", None)  # a call would fail
    report = prepare_dataset(filmed / "folder", filmed / "dataset", backend=backend, **SETTINGS)
    assert report.unchanged
    assert report.reused == len(rows(filmed / "dataset"))


def test_a_renamed_video_is_not_read_again_and_another_number_of_frames_is(tmp_path, filmed, backend):
    folder, output = tmp_path / "folder", tmp_path / "dataset"
    (folder / "zoe").mkdir(parents=True)
    (folder / "zoe" / "a.mp4").write_bytes((filmed / "folder" / "alice" / "talk.mp4").read_bytes())
    assert prepare_dataset(folder, output, backend=backend, **SETTINGS).measured == 4
    (folder / "zoe" / "a.mp4").rename(folder / "zoe" / "b.mp4")
    report = prepare_dataset(folder, output, backend=backend, **SETTINGS)
    assert (report.measured, report.reused) == (0, 4)
    assert all(name.startswith("zoe/b.mp4#t=") for name in names(output))
    report = prepare_dataset(folder, output, backend=backend, frames=2, **SETTINGS)
    assert (report.measured, report.reused, len(names(output))) == (2, 0, 2)


class StopsAfter:
    """The real backend, until somebody presses Ctrl-C at its n-th picture."""

    def __init__(self, backend, pictures):
        self.name, self._detect, self.left = backend.name, backend.detect, pictures

    def detect(self, pixels):
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        return self._detect(pixels)


def test_an_interrupted_run_keeps_whole_videos(tmp_path, filmed, backend):
    counting = StopsAfter(backend, 10_000)
    prepare_dataset(filmed / "folder", tmp_path / "whole", backend=counting, **SETTINGS)
    needed = 10_000 - counting.left
    with pytest.raises(KeyboardInterrupt):
        prepare_dataset(
            filmed / "folder", tmp_path / "d", backend=StopsAfter(backend, needed - 3), **SETTINGS
        )
    report = prepare_dataset(filmed / "folder", tmp_path / "d", backend=backend, **SETTINGS)
    assert 0 < report.measured < len(rows(tmp_path / "whole"))  # alice's was kept, the other one was begun
    assert rows(tmp_path / "d") == rows(tmp_path / "whole") == rows(filmed / "dataset")


def test_videos_that_show_nothing_are_named_with_their_reasons(tmp_path, talk, backend, capsys):
    folder = tmp_path / "folder"
    (folder / "ann").mkdir(parents=True)
    Image.fromarray(talk[0]).save(folder / "ann" / "1.png")
    write_video(folder / "ann" / "wall.mp4", [np.full((96, 96, 3), 90, np.uint8)] * 3)
    write_video(folder / "ann" / "blurred.mp4", [talk[HELD]] * 3)
    write_video(folder / "ann" / "hdr.mp4", talk[:3], colours={"color_trc": 16})
    (folder / "ann" / "torn.mp4").write_bytes(b"\0\0\0\x20ftypisom" + b"\0" * 100)
    (folder / "ann" / "empty.mkv").write_bytes(b"")
    report = prepare_dataset(folder, tmp_path / "dataset", backend=backend, **SETTINGS)
    reasons = {entry["source"].rpartition("/")[2]: entry["reason"] for entry in report.rejected}
    assert reasons.pop("wall.mp4") == "no face found"
    assert reasons.pop("blurred.mp4").startswith(("no face", "no face is sharp"))
    assert "HDR (PQ)" in reasons.pop("hdr.mp4")
    assert "cannot be read as a video" in reasons.pop("torn.mp4")
    assert "is empty" in reasons.pop("empty.mkv")
    assert not reasons
    assert str(tmp_path) not in json.dumps(report.rejected)
    again = prepare_dataset(folder, tmp_path / "dataset", backend=backend, **SETTINGS)
    assert again.unchanged
    assert again.rejected == report.rejected


def test_frames_before_the_damaged_end_of_a_video_are_used(tmp_path, talk, backend):
    folder = tmp_path / "folder"
    folder.mkdir()
    whole = write_video(tmp_path / "whole.mkv", talk).read_bytes()
    (folder / "cut.mkv").write_bytes(whole[: len(whole) * 2 // 3])
    report = prepare_dataset(folder, tmp_path / "dataset", backend=backend, **SETTINGS)
    assert report.photographs["train"] >= 2
    assert any("ends after" in note["note"] for note in report.notes)


def test_a_turned_video_is_read_upright(tmp_path, talk, backend):
    folder = tmp_path / "folder"
    folder.mkdir()
    lying = [np.ascontiguousarray(np.rot90(picture, -1)) for picture in talk[:HELD]]
    write_video(folder / "turned.mp4", lying, rotation=90)
    prepare_dataset(folder, tmp_path / "dataset", backend=backend, **SETTINGS)
    [row] = rows(tmp_path / "dataset")
    assert abs(row["pose"][2]) < 15  # degrees of roll


def test_without_the_extra_a_video_is_refused_in_one_line(tmp_path, filmed, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(MissingDependencyError, match=r"magicedit\[video\]"):
        prepare_dataset(filmed / "folder", tmp_path / "dataset", **SETTINGS)
    assert not (tmp_path / "dataset").exists()


def test_all_people_of_a_video_are_in_one_split(tmp_path, filmed, backend):
    settings = SETTINGS | {"backend": backend, "validation": ["street.mp4"]}
    report = prepare_dataset(filmed / "folder", tmp_path / "dataset", **settings)
    assert report.identities == {"train": 1, "validation": 2}


def test_the_number_of_frames_is_checked(tmp_path, filmed):
    with pytest.raises(DatasetError, match="frames must be from 1 to 1000, got 0"):
        prepare_dataset(filmed / "folder", tmp_path / "dataset", frames=0, **SETTINGS)


def test_the_command_reads_videos(tmp_path, filmed, capsys):
    arguments = [str(filmed / "folder"), "-o", str(tmp_path / "dataset"), "--size", "64", "--frames", "2"]
    assert main(["prepare", *arguments]) == 0
    assert "7 photographs of 3 people" in capsys.readouterr().out  # two frames of each, and alice's still
    assert len(names(tmp_path / "dataset")) == 7


# --- The condition image ---


def test_frames_with_different_backgrounds_make_the_condition_of_the_target(tmp_path, face, backend):
    """Pose and background come from the target, as published; the source's background is nowhere in it."""
    pixels, found = face
    around = ~face_region(found.landmarks, SIDE, found.scheme, grow=1.25)
    film = []
    for colour, shift in (((200, 40, 40), 0), ((40, 40, 200), 9)):
        picture = pixels.copy()
        picture[around] = colour
        picture = np.roll(picture, shift, 1)
        film += [picture] * HELD
    (tmp_path / "folder" / "ann").mkdir(parents=True)
    write_video(tmp_path / "folder" / "ann" / "red.mp4", film[:HELD])
    write_video(tmp_path / "folder" / "ann" / "blue.mp4", film[HELD:])
    prepare_dataset(tmp_path / "folder", tmp_path / "dataset", size=96, backend=backend, progress=False)
    pairs = PairDataset(
        tmp_path / "dataset", resolution=96, warped=0, augment=False, au_dropout=0, relations=False
    )
    assert len(pairs) == 2
    directions = set()
    for n in range(8):
        draw = pairs.pair(n)
        sample = pairs.sample(draw)
        directions.add(draw.source)
        outside = ~face_region(pairs.landmarks(draw.target), 96, "mediapipe478", grow=1.2)
        outside[: 96 // 8] = outside[-96 // 8 :] = False
        same = (sample["condition"] == sample["target"]).all(0).numpy()
        assert same[outside].mean() > 0.95  # the rest is discs of the jaw
        assert (sample["condition"] - sample["source"]).abs().amax(0).numpy()[outside].mean() > 0.5
    assert directions == {0, 1}


# --- Labels of frames ---


def write_labels(path: Path, header: list[str], lines: list[list]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*header, *(f"AU{int(name[2:]):02}_r" for name in NAMES)])
        writer.writerows(lines)
    return path


@pytest.fixture(scope="session")
def alone(filmed, tmp_path_factory) -> Path:
    """A folder with the video of alice."""
    folder = tmp_path_factory.mktemp("alone") / "folder"
    (folder / "alice").mkdir(parents=True)
    (folder / "alice" / "talk.mp4").write_bytes((filmed / "folder" / "alice" / "talk.mp4").read_bytes())
    return folder


@pytest.mark.parametrize("columns", ["number and time", "number", "time"])
def test_a_table_of_a_video_labels_its_frames(tmp_path, alone, talk, backend, columns):
    """As OpenFace writes it: frames from 1, with success and confidence."""
    lines = []
    for index in range(len(talk) + (3 if "number" in columns else 0)):  # a table that goes on
        at = {"number": [index + 1], "time": [f"{index / RATE:.3f}"]}
        at["number and time"] = [*at["number"], *at["time"]]
        lines.append([*at[columns], int(index != 0), *([index / 20] * 12)])
    header = {"number": ["frame"], "time": ["timestamp"], "number and time": ["frame", "timestamp"]}[columns]
    labels = write_labels(tmp_path / "talk.csv", [*header, "success"], lines)
    report = prepare_dataset(alone, tmp_path / "dataset", labels=labels, backend=backend, **SETTINGS)
    for row in rows(tmp_path / "dataset"):
        index = FrameKey.parse(row["sha256"]).index
        assert row["action_units"] == pytest.approx([index / 20] * 12)
    failed = [entry for entry in report.rejected if entry["reason"] == "no label in talk.csv"]
    assert len(failed) + len(names(tmp_path / "dataset")) == 4
    assert not any(name.endswith("#t=0.000") for name in names(tmp_path / "dataset"))
    notes = [note["note"] for note in report.notes if note.get("kind") == "warning"]
    told = "3 labels are of frames that alice/talk.mp4 does not have"
    assert notes == ([told] if "number" in columns else [])


def test_frames_that_labels_left_out_are_read_again_when_they_have_one(
    tmp_path, alone, talk, backend, monkeypatch
):
    output = tmp_path / "dataset"
    settings = SETTINGS | {"backend": backend, "labels": tmp_path / "talk.csv"}
    lines = [[i + 1, *([1] * 12)] for i in range(len(talk))]
    write_labels(tmp_path / "talk.csv", ["frame"], lines[: len(lines) // 2])
    assert prepare_dataset(alone, output, **settings).photographs == {"train": 2}
    with monkeypatch.context() as patched:
        patched.setattr("magicedit.data.measuring.measured_frames", None)  # a call would fail
        assert prepare_dataset(alone, output, **settings).unchanged
    write_labels(tmp_path / "talk.csv", ["frame"], lines)
    assert prepare_dataset(alone, output, **settings).photographs == {"train": 4}


def test_a_video_whose_frames_are_chosen_otherwise_by_now_is_named(
    tmp_path, alone, talk, backend, monkeypatch
):
    settings = SETTINGS | {"backend": backend, "labels": tmp_path / "talk.csv"}
    lines = [[i + 1, *([1] * 12)] for i in range(len(talk))]
    write_labels(tmp_path / "talk.csv", ["frame"], lines[: len(lines) // 2])
    prepare_dataset(alone, tmp_path / "dataset", **settings)
    write_labels(tmp_path / "talk.csv", ["frame"], lines)
    monkeypatch.setattr("magicedit.data.frames.SPACING", 0.3)
    with pytest.raises(DatasetError, match=r"other frames of .*talk\.mp4 are chosen now.*--force"):
        prepare_dataset(alone, tmp_path / "dataset", **settings)
    assert prepare_dataset(alone, tmp_path / "dataset", force=True, **settings).measured


def test_tables_of_py_feat_name_the_video_and_count_from_0(tmp_path, alone, talk, backend):
    labels = tmp_path / "all.csv"
    with labels.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["FaceScore", "input", "frame", *(f"AU{int(name[2:]):02}" for name in NAMES)])
        writer.writerows([0.9, "/films/talk.mp4", i, *([i / 100] * 12)] for i in range(len(talk)))
        writer.writerow([0.9, "/films/other.mp4", 0, *([0.5] * 12)])
    report = prepare_dataset(alone, tmp_path / "dataset", labels=labels, backend=backend, **SETTINGS)
    for row in rows(tmp_path / "dataset"):
        assert row["action_units"] == pytest.approx([FrameKey.parse(row["sha256"]).index / 20] * 12)
    assert len(names(tmp_path / "dataset")) == 4
    notes = [note["note"] for note in report.notes if note["source"] == "all.csv"]
    assert notes == ["1 label is of no file in the folder: /films/other.mp4"]


def test_labels_of_another_video_are_refused(tmp_path, alone, talk, backend):
    lines = [[i + 1, i / 60, 1, *([1] * 12)] for i in range(len(talk))]  # 60 frames a second
    labels = write_labels(tmp_path / "talk.csv", ["frame", "timestamp", "success"], lines)
    with pytest.raises(
        DatasetError, match=r"no label in .*talk\.csv.* are of another video: frame \d+ is at"
    ):
        prepare_dataset(alone, tmp_path / "dataset", labels=labels, backend=backend, **SETTINGS)
    other = labels.rename(tmp_path / "elsewhere.csv")
    with pytest.raises(DatasetError, match=r"its names are elsewhere, the photographs' alice/talk\.mp4"):
        prepare_dataset(alone, tmp_path / "dataset", labels=other, backend=backend, **SETTINGS)


def test_labels_of_a_video_of_two_people_are_refused(tmp_path, filmed, talk, backend):
    lines = [[i + 1, 1, *([1] * 12)] for i in range(len(talk))]
    (tmp_path / "labels" / "alice").mkdir(parents=True)
    for place in ("street.csv", "alice/talk.csv"):
        write_labels(tmp_path / "labels" / place, ["frame", "success"], lines)
    settings = SETTINGS | {"labels": tmp_path / "labels", "backend": backend}
    report = prepare_dataset(filmed / "folder", tmp_path / "dataset", **settings)
    reasons = {entry["source"].partition("#")[0]: entry["reason"] for entry in report.rejected}
    assert reasons["street.mp4"] == (
        "labels of street are refused: they are of one face, and the video shows several"
    )
    assert report.photographs == {"train": 4}


def test_labels_match_frames_by_number_or_by_half_a_frame():
    def label(index, seconds, value):
        return FrameLabel(index, seconds, {"AU12": value})

    frames = [(2, 0.08), (5, 0.2)]
    assert match_frames([label(i, None, i) for i in range(4)], frames) == {2: {"AU12": 2}}
    timed = [label(None, 0.04 * i + 0.015, i) for i in range(4)]  # less than half a frame late
    assert match_frames(timed, frames) == {2: {"AU12": 2}}
    with pytest.raises(DatasetError, match="of another video"):
        match_frames([label(i, i / 10, i) for i in range(9)], [(2, 0.08), (8, 0.15)])


# --- Choosing ---


def test_spread_takes_the_farthest_and_no_near_duplicates():
    points = np.array([[0.0, 0], [0.2, 0], [5, 0], [4.8, 0], [0, 3]])
    assert spread(points, 5, NEAR) == [0, 2, 4]
    assert spread(points, 2, NEAR) == [0, 2]
    assert sorted(spread(points, 5, 0.1)) == [0, 1, 2, 3, 4]


def test_expressions_of_a_backend_without_action_units_come_from_landmarks(face, expressions, backend):
    bare = [replace(backend.detect(picture)[0], action_units={}) for picture in expressions]
    points = [expression_of(found, bare[0]) for found in bare]
    distances = [float(np.linalg.norm(point - points[0])) for point in points]
    assert distances[0] < 0.5 < NEAR < min(distances[1:])


def test_the_choice_depends_on_content_number_and_whose_folder_it_is():
    film = VideoFile("a.mp4", Path(), None, "0" * 64, 16)
    assert replace(film, name="b.mp4").sha256 == film.sha256
    others = [replace(film, content="1" * 64), replace(film, frames=8), replace(film, identity="ann")]
    assert len({film.sha256, *(other.sha256 for other in others)}) == 4
    assert replace(film, identity="ann").sha256 == replace(film, identity="bob").sha256
