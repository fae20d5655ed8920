"""Whole edits of small videos by the real model."""

import itertools
from fractions import Fraction

import cv2
import numpy as np
import pytest
from conftest import SIDE, av, read_pictures, seconds_of, sound_of, write_video
from PIL import Image
from test_smoothing import PASSING

from magicedit.errors import ActionUnitError, MagicEditError, NoFaceError, OutputError, VideoError
from magicedit.expression import Expression
from magicedit.faces import align
from magicedit.faces.regions import reachable_region
from magicedit.request import EditRequest
from magicedit.video import Curve, Encoding, VideoSettings, edit_video
from magicedit.video.analysis import analyse, scan
from magicedit.video.edit import EditMaker
from magicedit.video.job import VideoJob
from magicedit.video.settings import DEFAULTS
from magicedit.video.smoothing import Smoothing
from magicedit.video_reading import Video, split_planes

SMILE = {"AU12": -3.0, "AU26": 2.0}  # the astronaut smiles already
LOSSLESS = VideoSettings(encoding=Encoding(crf=0, preset="ultrafast"))


def maker(
    editor, path, folder, add, which=slice(0, 1), smoothing: Smoothing = DEFAULTS.smoothing
) -> EditMaker:
    settings = VideoSettings(smoothing=smoothing)
    job = VideoJob(editor, path, folder / "out.mp4", quality="live", settings=settings)
    analysis = analyse(job.video, editor.backend, folder / "faces.jsonl", DEFAULTS.tracking)
    tracks = scan(analysis.rows(), job.time_base)[which]

    def requested(current, seconds):
        return EditRequest(add(seconds) if callable(add) else add).deltas(editor.action_units, current)

    return EditMaker(job, analysis, tracks, requested)


def planes_of(path) -> list[np.ndarray]:
    return [frame.planes for frame in Video(path).frames()]


def changed(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(int) - b).mean())


def test_timestamps_sound_and_the_face_of_every_frame(tmp_path, editor, moving):
    stamps = [0, 512, 600, 1800, 1900, 5000, 5500, 6000, 6400, 7000]
    source = write_video(tmp_path / "in.mp4", moving(10), stamps=stamps, sound="aac")
    told = []
    result = edit_video(editor, source, tmp_path / "out.mp4", add=SMILE, quality="live", progress=told.append)
    assert seconds_of(tmp_path / "out.mp4") == [Fraction(s, 12_800) for s in stamps]
    assert np.array_equal(sound_of(tmp_path / "out.mp4")[1], sound_of(source)[1])
    before, after = read_pictures(source), read_pictures(tmp_path / "out.mp4")
    for old, new in zip(before, after, strict=True):
        mouth = slice(110, 170), slice(90, 160)
        assert changed(old[mouth], new[mouth]) > 4 * changed(old[:40], new[:40])
        measured = [editor.backend.detect(picture)[0].action_units["AU12"] for picture in (old, new)]
        assert measured[1] < measured[0] - 0.5

    assert result.frames == 10
    assert [(face.number, face.seen, face.runs) for face in result.faces] == [(0, 10, 1)]
    assert result.flicker.pairs == 9
    assert 0.5 < result.flicker.ratio < 1.2
    assert result.warnings == []
    assert result.to_json()["flicker"]["ratio"] == pytest.approx(result.flicker.ratio, abs=1e-4)
    assert [progress.stage for progress in told if progress.done == 10] == ["faces", "frames", "joining"]
    assert all(progress.total == 10 for progress in told)
    assert told[-2].seconds_left == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mp4", "out.mp4"]


@pytest.mark.parametrize("add", [None, {"AU12": 0.0}])
def test_a_zero_edit_gives_the_frames_of_the_input(tmp_path, editor, moving, add):
    source = write_video(tmp_path / "in.mp4", moving(4))
    edit_video(editor, source, tmp_path / "out.mp4", add=add, settings=LOSSLESS)
    for before, after in zip(planes_of(source), planes_of(tmp_path / "out.mp4"), strict=True):
        assert np.array_equal(before, after)


def test_outside_the_face_every_pixel_is_the_decoded_input_s(tmp_path, editor, moving):
    source = write_video(tmp_path / "in.mp4", moving(4))
    edit_video(editor, source, tmp_path / "out.mp4", add=SMILE, quality="live", settings=LOSSLESS)
    inside = np.zeros((SIDE, SIDE), bool)
    for picture in read_pictures(source):  # wherever the face lies in one of the frames, and a little around
        (face,) = editor.backend.detect(picture)
        region = reachable_region(align(face, 1024).apply(face.landmarks), 1024, face.scheme)
        y, x = np.mgrid[:SIDE, :SIDE]
        places = align(face, 1024).apply(np.stack([x, y], -1)).round().astype(int)
        within = ((places >= 0) & (places < 1024)).all(-1)
        inside[within] |= region[places[within][:, 1], places[within][:, 0]]
    outside = ~cv2.dilate(inside.astype(np.uint8), np.ones((5, 5))).astype(bool)
    assert 0.3 < outside.mean() < 0.9
    for before, after in zip(planes_of(source), planes_of(tmp_path / "out.mp4"), strict=True):
        before, after = split_planes(before), split_planes(after)
        assert np.array_equal(before[0][outside], after[0][outside])
        for plane in (1, 2):
            assert np.array_equal(before[plane][outside[::2, ::2]], after[plane][outside[::2, ::2]])
        assert changed(before[0][inside], after[0][inside]) > 1


def test_each_face_or_all_of_them(tmp_path, editor, portrait, other):
    pictures = [np.hstack([portrait, other])] * 3
    source = write_video(tmp_path / "in.mp4", pictures)
    halves = slice(0, SIDE), slice(SIDE, 2 * SIDE)
    edited_by: dict[str | int, list[bool]] = {}
    for face, expected in [("largest", 1), (0, 1), (1, 1), ("all", 2)]:
        result = edit_video(
            editor, source, tmp_path / "out.mp4", add=SMILE, face=face, quality="live", settings=LOSSLESS
        )
        (before, *_), (after, *_) = read_pictures(source), read_pictures(tmp_path / "out.mp4")
        edited_by[face] = [changed(before[:, half], after[:, half]) > 0.2 for half in halves]
        assert sum(edited_by[face]) == len(result.faces) == expected
    assert edited_by["largest"] == edited_by[0] != edited_by[1]
    with pytest.raises(NoFaceError, match="face 3 does not exist"):
        edit_video(editor, source, tmp_path / "none.mp4", add=SMILE, face=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mp4", "out.mp4"]


def test_a_face_that_leaves_fades_and_is_edited_again_when_it_returns(tmp_path, editor, portrait):
    empty = np.full_like(portrait, 120)
    pictures = [portrait] * 12 + [empty] * 9 + [portrait] * 12
    settings = VideoSettings(encoding=LOSSLESS.encoding, tracking=type(DEFAULTS.tracking)(cut_levels=255))
    source = write_video(tmp_path / "in.mp4", pictures)
    result = edit_video(editor, source, tmp_path / "out.mp4", add=SMILE, quality="live", settings=settings)
    (face,) = result.faces
    assert face.runs == 2
    edits = [
        changed(a, b) for a, b in zip(read_pictures(source), read_pictures(tmp_path / "out.mp4"), strict=True)
    ]
    assert min(edits[:8]) > 0.5
    assert 0 < edits[10] < 0.6 * edits[5]  # fading
    assert edits[12:21] == [0] * 9
    assert edits[-1] > 0.9 * edits[5]


def test_filters_begin_anew_after_a_cut(tmp_path, editor, portrait):
    """The same face elsewhere in the next scene, with another request, is edited as if nothing had been."""
    small = np.full_like(portrait, 60)
    small[30:210, 55:235] = np.asarray(Image.fromarray(portrait).resize((180, 180)))
    made = {}
    requests = {"both": lambda seconds: SMILE if seconds < 0.15 else {"AU1": 4.0}, "alone": {"AU1": 4.0}}
    for name, pictures in {"both": [portrait] * 4 + [small] * 4, "alone": [small] * 4}.items():
        folder = tmp_path / name
        folder.mkdir()
        source = write_video(folder / "in.mp4", pictures, options={"crf": "0"})
        edited = maker(editor, source, folder, requests[name])
        made[name] = [planes for _, planes in edited.frames(0)]
        (track,) = edited.tracks
        assert len(track.runs) == len(pictures) // 4  # one face, known again
    for before, after in zip(made["both"][4:], made["alone"], strict=True):
        assert changed(before, after) < 0.01


def test_curves_move_the_face_over_time(tmp_path, editor, portrait):
    source = write_video(tmp_path / "in.mp4", [portrait] * 10)
    curve = Curve.from_keys(["0.08:AU12=0", "0.3:AU12=-4"])
    edit_video(editor, source, tmp_path / "out.mp4", curve=curve, quality="live", settings=LOSSLESS)
    before, after = read_pictures(source), read_pictures(tmp_path / "out.mp4")
    edits = [changed(a, b) for a, b in zip(before, after, strict=True)]
    assert edits[:3] == [0, 0, 0]  # the value of the first keyframe holds before it
    assert all(later > earlier for earlier, later in itertools.pairwise(edits[2:8]))
    assert edits[9] > 3 * edits[3]


def test_a_curve_longer_than_the_video_is_said(tmp_path, editor, moving):
    source = write_video(tmp_path / "in.mp4", moving(3))
    curve = Curve.from_keys(["0:AU12=0", "9:AU12=2"])
    (warning,) = edit_video(editor, source, tmp_path / "out.mp4", curve=curve, quality="live").warnings
    assert "the last frame is at 0.08 s" in warning
    assert "up to 9.00 s, were not used" in warning


def test_set_neutral_and_expressions_ask_each_frame_for_its_own(tmp_path, editor, portrait):
    source = write_video(tmp_path / "in.mp4", [portrait] * 3)
    smile = editor.backend.detect(portrait)[0].action_units["AU12"]
    for arguments in (
        {"set": {"AU12": 0.0}},
        {"expression": Expression({"AU12": 0.0})},
        {"neutral": True},
        {"expression": Expression({"AU12": -smile}, relative=True)},
    ):
        edit_video(editor, source, tmp_path / "out.mp4", quality="live", **arguments)
        shown = read_pictures(tmp_path / "out.mp4")[-1]
        assert editor.backend.detect(shown)[0].action_units["AU12"] < smile - 0.7, arguments


def test_levels_within_the_dead_zone_leave_a_film_alone(tmp_path, editor, portrait):
    source = write_video(tmp_path / "in.mp4", [portrait] * 3)
    level = editor.backend.detect(portrait)[0].action_units["AU12"] - 0.3
    shown = {}
    for name, arguments in {"near": {"set": {"AU12": level}}, "far": {"set": {"AU12": level - 1}}}.items():
        edit_video(editor, source, tmp_path / f"{name}.mp4", quality="live", **arguments)
        shown[name] = changed(read_pictures(tmp_path / f"{name}.mp4")[-1], read_pictures(source)[-1])
    edit_video(editor, source, tmp_path / "copy.mp4", add={"AU12": 0}, quality="live")
    copy = changed(read_pictures(tmp_path / "copy.mp4")[-1], read_pictures(source)[-1])
    assert shown["near"] == copy < shown["far"]


def test_upright_output_of_a_turned_video(tmp_path, editor, portrait):
    source = write_video(tmp_path / "in.mp4", [np.rot90(portrait, -1)] * 3, rotation=90)
    edit_video(editor, source, tmp_path / "out.mp4", add=SMILE, quality="live")
    with av.open(str(tmp_path / "out.mp4")) as container:
        stored = next(container.decode(video=0))
        assert stored.rotation == 0
        assert changed(stored.to_ndarray(format="rgb24"), portrait) < 8


def test_ten_bits_become_eight_and_that_is_said(tmp_path, editor, portrait):
    tags = {"colorspace": 9, "color_range": 1, "color_trc": 16, "color_primaries": 9}
    source = write_video(tmp_path / "in.mp4", [portrait] * 2, pixel_format="yuv420p10le", colours=tags)
    (warning,) = edit_video(editor, source, tmp_path / "out.mp4", add=SMILE, quality="live").warnings
    assert "HDR (PQ)" in warning
    info = Video(tmp_path / "out.mp4").info
    assert (info.pixel_format, info.colours) == ("yuv420p", Video(source).info.colours)


def test_smoothing_takes_flicker_away(tmp_path, editor, portrait):
    """A still face with a sensor's noise: the model trembles with it, and the steadied one hardly."""
    rng = np.random.default_rng(0)
    noisy = [np.clip(portrait + rng.normal(0, 3, portrait.shape), 0, 255).astype(np.uint8) for _ in range(16)]
    source = write_video(tmp_path / "in.mp4", noisy)
    plain = Smoothing(place=PASSING, landmarks=PASSING, action_units=PASSING, change=None)
    ratios = []
    for smoothing in (plain, DEFAULTS.smoothing):
        made = maker(editor, source, tmp_path, SMILE, smoothing=smoothing)
        for _ in made.frames(0):
            pass
        ratios.append(made.meter.result().ratio)
    assert ratios[1] < 1.2
    assert ratios[1] < ratios[0] - 0.05


# --- What cannot be done ---


def test_no_face_leaves_nothing_behind(tmp_path, editor):
    source = write_video(tmp_path / "in.mp4", [np.full((SIDE, SIDE, 3), 120, np.uint8)] * 4)
    with pytest.raises(NoFaceError, match="no face was found"):
        edit_video(editor, source, tmp_path / "out.mp4", add=SMILE)
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]


def test_a_damaged_video_is_refused_unless_it_is_allowed(tmp_path, editor, moving):
    whole = write_video(tmp_path / "in.mkv", moving(40), options={"g": "10"})
    content = whole.read_bytes()
    whole.write_bytes(content[: len(content) // 2])
    with pytest.raises(VideoError, match=r"ends after .* --damaged"):
        edit_video(editor, whole, tmp_path / "out.mp4", add=SMILE, quality="live")
    assert [path.name for path in tmp_path.iterdir()] == ["in.mkv"]
    result = edit_video(editor, whole, tmp_path / "out.mp4", add=SMILE, quality="live", damaged=True)
    assert 10 < result.frames < 35
    assert "ends after" in result.warnings[0]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"add": "AU99=1"}, ActionUnitError),
        ({"set": "AU12=1", "curve": Curve.from_keys(["0:AU12=1"])}, ActionUnitError),
        ({"add": "AU12=9", "curve": Curve.from_keys(["0:AU12=1", "1:AU12=5"])}, ActionUnitError),
        ({"quality": "best"}, MagicEditError),
        ({"face": 3}, NoFaceError),
        ({"neutral": True, "curve": Curve.from_keys(["0:AU12=-9"])}, ActionUnitError),
    ],
)
def test_requests_that_make_no_sense(tmp_path, editor, moving, arguments, error):
    source = write_video(tmp_path / "in.mp4", moving(2))
    with pytest.raises(error):
        edit_video(editor, source, tmp_path / "out.mp4", **arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]


def test_the_input_is_no_output(tmp_path, editor, moving):
    source = write_video(tmp_path / "in.mp4", moving(2))
    content = source.read_bytes()
    for output in (source, tmp_path / "." / "in.mp4"):
        with pytest.raises(OutputError, match="is the input"):
            edit_video(editor, source, output, add=SMILE)
    (tmp_path / "link.mp4").symlink_to(source)
    with pytest.raises(OutputError, match="is the input"):
        edit_video(editor, source, tmp_path / "link.mp4", add=SMILE)
    assert source.read_bytes() == content
