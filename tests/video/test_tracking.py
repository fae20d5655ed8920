"""Faces from frame to frame: numbers, gaps, cuts, and the first pass over a video."""

import json
from dataclasses import replace
from statistics import median

import numpy as np
import pytest
from conftest import SIDE, write_video
from test_smoothing import UNFILTERED

from magicedit.errors import NoFaceError
from magicedit.faces import load_backend
from magicedit.faces.glasses import SURE
from magicedit.faces.tracking import Tracking
from magicedit.video.analysis import (
    BRIDGED,
    FADE,
    Row,
    analyse,
    choose,
    presence,
    read_rows,
    scan,
    steady_faces,
)
from magicedit.video.results import FaceInVideo
from magicedit.video.smoothing import Smoothing
from magicedit.video_reading import Video, to_rgb

WIDE = 2 * SIDE


def wide(left: np.ndarray | None, right: np.ndarray | None) -> np.ndarray:
    """A picture of two halves; None: empty."""
    empty = np.full((SIDE, SIDE, 3), 120, np.uint8)
    return np.hstack([empty if half is None else half for half in (left, right)])


def looked(tmp_path, editor, pictures, **tracking):
    """The rows of a film of these pictures."""
    video = Video(write_video(tmp_path / "in.mp4", pictures))
    analysis = analyse(video, editor.backend, tmp_path / "faces.jsonl", Tracking(**tracking))
    return video, analysis, list(analysis.rows())


def numbers(rows) -> list[list[int]]:
    return [[tracked.number for tracked in row.faces] for row in rows]


def test_a_moving_face_keeps_its_number_and_is_followed(tmp_path, editor, moving):
    _, analysis, rows = looked(tmp_path, editor, moving(10))
    assert numbers(rows) == [[0]] * 10
    assert analysis.frames == 10
    assert not any(row.cut for row in rows)
    centres = np.array([row.face(0).landmarks.mean(0) for row in rows])
    shifts = np.array([(round(6 * np.sin(0.4 * i)), round(4 * np.sin(0.3 * i))) for i in range(10)])
    moved = centres - centres[0]
    np.testing.assert_allclose(moved, shifts[0] - shifts, atol=1.5)


def test_the_face_near_the_last_one_measures_as_in_the_whole_picture(tmp_path, editor, moving):
    video, _, rows = looked(tmp_path, editor, moving(6))
    for row, frame in zip(rows, video.frames(), strict=True):
        (whole,) = editor.backend.detect(to_rgb(frame.planes, video.info))
        assert np.abs(whole.landmarks - row.face(0).landmarks).max() < 4
        assert abs(whole.action_units["AU12"] - row.face(0).action_units["AU12"]) < 0.5


def test_two_faces_one_leaves_and_comes_back_with_its_number(tmp_path, editor, portrait, other):
    both, alone = wide(portrait, other), wide(portrait, None)
    pictures = [both] * 4 + [alone] * 8 + [both] * 6
    _, _, rows = looked(tmp_path, editor, pictures, search_every=3, cut_levels=255)
    seen = numbers(rows)
    assert seen[:4] == [[0, 1]] * 4
    assert seen[5:12] == [[0]] * 7
    assert seen[-3:] == [[0, 1]] * 3
    left, right = rows[-1].faces
    assert left.face.box[2] < SIDE < right.face.box[0]


def test_a_face_that_is_missed_for_a_moment_is_found_when_it_is_there(tmp_path, editor, portrait, other):
    """Long before the whole picture is searched again, which is at frame 15."""
    both, alone = wide(portrait, other), wide(portrait, None)
    _, _, rows = looked(tmp_path, editor, [both] * 5 + [alone] * 2 + [both] * 3, cut_levels=255)
    assert numbers(rows) == [[0, 1]] * 5 + [[0]] * 2 + [[0, 1]] * 3


def test_somebody_else_gets_another_number(tmp_path, editor, portrait, other):
    pictures = [portrait] * 3 + [np.full_like(portrait, 120)] * 4 + [other] * 4
    _, _, rows = looked(tmp_path, editor, pictures, cut_levels=255)
    assert numbers(rows)[:3] == [[0]] * 3
    assert numbers(rows)[3:7] == [[]] * 4
    assert numbers(rows)[-1] == [1]


def test_a_cut_begins_a_scene_and_known_faces_keep_their_numbers(tmp_path, editor, portrait, other):
    near = np.asarray(portrait)
    pictures = [near] * 4 + [other] * 4 + [near] * 4
    _, _, rows = looked(tmp_path, editor, pictures)
    assert [row.index for row in rows if row.cut] == [4, 8]
    assert numbers(rows) == [[0]] * 4 + [[1]] * 4 + [[0]] * 4


def test_rows_survive_their_file(tmp_path, editor, moving):
    _, analysis, rows = looked(tmp_path, editor, moving(2))
    again = [Row.from_line(row.to_line()) for row in rows]
    for a, b in zip(rows, again, strict=True):
        assert (a.pts, a.cut, a.difference) == (b.pts, b.cut, b.difference)
        assert np.array_equal(a.face(0).landmarks, b.face(0).landmarks)
        assert a.face(0).action_units == b.face(0).action_units
        assert (a.face(0).box, a.face(0).pose) == (b.face(0).box, b.face(0).pose)
    checksum, _, text = analysis.rows_file.read_text().splitlines()[0].partition(" ")
    assert json.loads(text)["index"] == 0
    with pytest.raises(ValueError, match="differs from what was written"):
        Row.from_line(f"{checksum} {text[:-1]} }}")


@pytest.mark.parametrize("torn", [b"", b'{"index": 5, "pts":'])
def test_an_interrupted_pass_goes_on_and_finds_the_same(tmp_path, editor, portrait, other, torn):
    """Killed in the middle, with a half-written line: the file ends up the same, to the byte."""
    pictures = [wide(portrait, other)] * 3 + [wide(portrait, None)] * 4 + [wide(None, other)] * 5
    video, analysis, _ = looked(tmp_path, editor, pictures)
    whole = analysis.rows_file.read_bytes()
    lines = whole.splitlines(keepends=True)
    again = tmp_path / "again.jsonl"
    again.write_bytes(b"".join(lines[:5]) + torn)
    told = []
    analyse(video, editor.backend, again, Tracking(), told.append)
    assert again.read_bytes() == whole
    assert [progress.done for progress in told][:2] == [5, 6]  # it did not begin anew


def test_a_finished_pass_is_not_made_again(tmp_path, editor, moving):
    video, analysis, _ = looked(tmp_path, editor, moving(3))
    assert analyse(video, None, analysis.rows_file, Tracking()) == analysis


# --- Who is there when ---


def made(tmp_path, editor, portrait, present: list[bool]):
    """Rows of a still face that was not found where `present` says so, and its tracks."""
    _, _, rows = looked(tmp_path, editor, [portrait] * 2)
    face = rows[0].faces
    rows = [Row(i, i * 512, 512, 0.0, False, face if there else ()) for i, there in enumerate(present)]
    return rows, scan(iter(rows), 1 / 12_800)


def test_short_gaps_are_bridged_and_long_ones_fade(tmp_path, editor, portrait):
    gap, absence = 3, 12  # frames of 40 ms: below and above BRIDGED
    assert gap * 0.04 < BRIDGED < absence * 0.04
    present = [True] * 10 + [False] * gap + [True] * 10 + [False] * absence + [True] * 10
    rows, (track,) = made(tmp_path, editor, portrait, present)
    assert [(run.first, run.last) for run in track.runs] == [(0, 22), (35, 44)]
    assert [(run.fades_in, run.fades_out) for run in track.runs] == [(False, True), (True, False)]
    assert track.seen == 30

    there = {}
    for row, faces in steady_faces(iter(rows), [track], 1 / 12_800, Smoothing(), 128):
        if faces:
            there[row.index] = faces[0]
    assert sorted(there) == [*range(23), *range(35, 45)]
    shares = {index: face.presence for index, face in there.items()}
    assert shares[0] == shares[11] == shares[18] == shares[44] == 1
    assert shares[22] == shares[35] == 0
    assert shares[21] == pytest.approx(0.04 / FADE)
    assert shares[36] == pytest.approx(0.04 / FADE)


def test_a_bridged_face_moves_evenly(tmp_path, editor, portrait):
    rows, (track,) = made(tmp_path, editor, portrait, [True, False, False, True])

    tracked = rows[3].faces[0]
    moved = replace(
        tracked, face=replace(tracked.face, landmarks=tracked.face.landmarks + np.float32((30, 0)))
    )
    rows[3] = replace(rows[3], faces=(moved,))

    places = [
        faces[0].face.landmarks.mean(0)[0] - rows[0].face(0).landmarks.mean(0)[0]
        for _, faces in steady_faces(iter(rows), [track], 1 / 12_800, UNFILTERED, 128)
    ]
    assert places == pytest.approx([0, 10, 20, 30], abs=0.05)


def test_presence_is_whole_without_fading(tmp_path, editor, portrait):
    _, (track,) = made(tmp_path, editor, portrait, [True] * 3)
    assert [presence(track.runs[0], time) for time in (0, 0.04, 0.08)] == [1, 1, 1]


def test_faces_are_counted_by_area_and_time(tmp_path, editor, portrait, other):
    pictures = [wide(other, portrait)] * 3 + [wide(None, portrait)] * 3
    _, analysis, rows = looked(tmp_path, editor, pictures, cut_levels=255)
    tracks = scan(analysis.rows(), 1 / 12_800)
    assert len(tracks) == 2
    right = rows[0].face(tracks[0].number)
    assert right.box[0] > SIDE
    assert choose(tracks, "largest", "x") == choose(tracks, 0, "x") == tracks[:1]
    assert choose(tracks, 1, "x") == tracks[1:]
    assert choose(tracks, "all", "x") == tracks
    assert [FaceInVideo.of(track).number for track in choose(tracks, 1, "x")] == [1]
    for which in (2, -1, "first", True):
        with pytest.raises(NoFaceError):
            choose(tracks, which, "x")
    with pytest.raises(NoFaceError, match="no face was found in x"):
        choose([], "largest", "x")


def test_a_torn_line_is_no_row(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(Row(0, 0, 1, 0.0, False, ()).to_line() + '{"index": 1')
    assert [row.index for row in read_rows(path)] == [0]


def test_a_track_knows_its_glasses(tmp_path, with_glasses, closed_mouth):
    """One decision for a face's whole time: the scores of the close looks are kept with the rows."""
    for name, picture, wears in (("with", with_glasses, True), ("without", closed_mouth, False)):
        path = write_video(tmp_path / f"{name}.mp4", [picture[:472, :472]] * 3)
        analysis = analyse(Video(path), load_backend(), tmp_path / f"{name}.jsonl", Tracking())
        (track,) = scan(analysis.rows(), 1 / 12_800)
        assert (median(track.glasses) > SURE) == wears
