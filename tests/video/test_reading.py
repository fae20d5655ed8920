"""Reading videos: what a file says, what it shows, what is wrong with it."""

import itertools
import os
import wave
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from conftest import SIDE, av, read_pictures, seconds_of, write_video
from PIL import Image

from magicedit.errors import VideoError
from magicedit.video_reading import Colours, Video, VideoInfo, from_rgb, replace_pixels, still_info, to_rgb


def difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(int) - b).mean())


def test_frames_timestamps_and_what_the_file_says(tmp_path, moving):
    pictures = moving(6)
    stamps = [0, 512, 600, 1800, 1900, 5000]
    video = Video(write_video(tmp_path / "in.mp4", pictures, stamps=stamps, sound="aac"))
    frames = list(video.frames())
    assert [frame.pts * video.info.time_base for frame in frames] == [Fraction(s, 12_800) for s in stamps]
    assert [frame.index for frame in frames] == list(range(6))
    assert (video.info.width, video.info.height, video.info.sounds) == (240, 240, 1)
    assert not video.damage
    for frame, picture in zip(frames, pictures, strict=True):
        assert difference(to_rgb(frame.planes, video.info), picture) < 3


@pytest.mark.parametrize("suffix", ["mkv", "ts"])
def test_a_film_that_starts_late_is_whole(tmp_path, moving, suffix):
    """As a recording that was cut without moving its timestamps; Matroska's stated length counts from 0."""
    stamps = [4 * 12_800 + 512 * index for index in range(6)]
    video = Video(write_video(tmp_path / f"in.{suffix}", moving(6), stamps=stamps))
    frames = list(video.frames())
    assert (len(frames), frames[0].pts) == (6, 0)
    assert not video.damage
    assert video.info.seconds == pytest.approx(6 * 0.04, abs=0.05)


def test_frames_from_the_middle_are_those_of_the_whole(tmp_path, moving):
    video = Video(write_video(tmp_path / "in.mp4", moving(12)))
    whole, part = list(video.frames()), list(video.frames(7))
    assert [frame.index for frame in part] == [7, 8, 9, 10, 11]
    for a, b in zip(whole[7:], part, strict=True):
        assert a.pts == b.pts
        assert np.array_equal(a.planes, b.planes)


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("mirrored", [False, True])
def test_all_eight_orientations_are_shown_upright(tmp_path, portrait, turns, mirrored):
    """Against the ISO base media format's own formula: stored (x, y) is shown at (a x + c y, b x + d y)."""
    picture = portrait[:200]  # not square
    a, b, c, d = [(1, 0, 0, 1), (0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0)][turns]
    if mirrored:
        a, c = -a, -c
    height, width = picture.shape[:2] if a else picture.shape[1::-1]
    y, x = np.mgrid[:height, :width]
    across, down = a * x + c * y, b * x + d * y
    stored = np.ascontiguousarray(picture[down - down.min(), across - across.min()])
    path = tmp_path / "in.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "12"})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.set_display_matrix([a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30])
        for _ in range(2):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(stored, "rgb24")))
        container.mux(stream.encode())
    for shown in read_pictures(path):
        assert shown.shape == picture.shape
        assert difference(shown, picture) < 3


def test_a_film_stored_askew_is_refused(tmp_path, portrait):
    path = write_video(tmp_path / "in.mp4", [portrait] * 2, rotation=30)
    with pytest.raises(VideoError, match="stored turned by 30 degrees"):
        Video(path)


@pytest.mark.parametrize("degrees", [90, 180, -90])
def test_stored_turned_shown_upright(tmp_path, portrait, degrees):
    picture = portrait[:200]  # not square
    turned = np.rot90(picture, -degrees // 90)
    path = write_video(tmp_path / "in.mp4", [turned] * 3, rotation=degrees)
    for shown in read_pictures(path):
        assert shown.shape == picture.shape
        assert difference(shown, picture) < 3


def test_odd_sides_are_made_even_by_repeating_the_last_line(tmp_path, portrait):
    picture = portrait[:201, :203]
    path = write_video(tmp_path / "in.mkv", [picture] * 2, codec="ffv1")
    (shown, _) = read_pictures(path)
    assert shown.shape == (202, 204, 3)
    assert difference(shown[:201, :203], picture) < 4
    assert difference(shown[201], shown[200]) < 2


@pytest.mark.parametrize("format", ["yuv420p10le", "yuv422p10le", "yuv444p"])
def test_other_pixel_formats(tmp_path, portrait, format):
    path = write_video(tmp_path / "in.mp4", [portrait] * 2, pixel_format=format)
    video = Video(path)
    assert video.info.deep == format.endswith("10le")
    assert difference(read_pictures(path)[0], portrait) < 3


@pytest.mark.parametrize(("space", "range"), [(1, 1), (5, 1), (1, 2), (9, 1)])
def test_colours_by_the_video_s_own_matrix_and_range(tmp_path, portrait, space, range):
    """The pictures are stored by that matrix and range; read by another they would be off by more."""
    plain = Video(write_video(tmp_path / "plain.mp4", [portrait] * 2))
    info = still_info(plain.info, 240, 240)
    info = replace(info, colours=Colours(space, range))
    planes = from_rgb(portrait, info)
    assert difference(to_rgb(planes, info), portrait) < 2.5
    wrong = replace(info, colours=Colours(5 if space != 5 else 9, 3 - range))
    assert difference(to_rgb(planes, wrong), portrait) > 5


def test_the_tags_of_colour_are_read(tmp_path, portrait):
    tags = {"colorspace": 9, "color_range": 1, "color_trc": 16, "color_primaries": 9}
    path = write_video(tmp_path / "in.mp4", [portrait] * 2, pixel_format="yuv420p10le", colours=tags)
    colours = Video(path).info.colours
    assert (colours.space, colours.range, colours.transfer, colours.primaries) == (9, 1, 16, 9)


def test_only_what_differs_is_replaced(portrait):
    info = still(SIDE)
    planes = from_rgb(portrait, info)
    before = to_rgb(planes, info)
    after = before.copy()
    after[51:70, 101:131] = 255 - after[51:70, 101:131]
    result = replace_pixels(planes, before, after, info)
    shown = to_rgb(result, info)
    changed = np.zeros((SIDE, SIDE), bool)
    changed[51:70, 101:131] = True
    luma = result[:SIDE] != planes[:SIDE]
    assert not luma[~changed].any()
    assert difference(shown[53:68, 103:129], after[53:68, 103:129]) < 6
    assert np.array_equal(replace_pixels(planes, before, before, info), planes)


def still(side: int) -> VideoInfo:
    return VideoInfo(
        path=Path("x"), width=side, height=side, coded_size=(side, side), rotation=0,
        time_base=Fraction(1, 25), rate=Fraction(25), frames=1, seconds=1.0, pixel_format="yuv420p",
        deep=False, colours=Colours(1, 1, 1, 1), aspect=Fraction(1), sounds=0,
    )  # fmt: skip


def test_timestamps_that_repeat_are_moved_on(tmp_path, moving):
    """Some recorders write the same time twice; MP4 cannot hold that, and an edit should not fail."""
    stamps = [0, 1000, 1004, 3000]  # Matroska counts in milliseconds, about 13 of these
    path = write_video(tmp_path / "in.mkv", moving(4), stamps=stamps, codec="ffv1")
    times = seconds_of(path)
    assert len(times) == 4
    assert all(later > earlier for earlier, later in itertools.pairwise(times))


# --- What is wrong with a file ---


def test_no_file_an_empty_one_and_other_kinds(tmp_path, portrait):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("not a video\n" * 100)
    Image.fromarray(portrait).save(tmp_path / "photo.jpg")
    with wave.open(str(tmp_path / "sound.wav"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", "not compressed"))
        sound.writeframes(bytes(8000))
    for name, said in [
        ("none.mp4", "does not exist"),
        (".", "not a file"),
        ("empty.mp4", "empty"),
        ("text.mp4", "cannot be read as a video"),
        ("photo.jpg", "is a picture"),
        ("sound.wav", "only audio"),
    ]:
        with pytest.raises(VideoError, match=said):
            Video(tmp_path / name)


def test_without_a_single_frame(tmp_path):
    with av.open(str(tmp_path / "in.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        container.start_encoding()
    with pytest.raises(VideoError, match="no picture"):
        Video(tmp_path / "in.mp4")


def test_a_codec_that_is_not_known(tmp_path, moving):
    path = write_video(tmp_path / "in.mp4", moving(2))
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzzz"))
    with pytest.raises(VideoError, match="codec that is not known"):
        Video(path)


def test_cut_off_with_its_table_lost(tmp_path, moving):
    """An MP4 whose index stands at its end, as cameras write it."""
    path = write_video(tmp_path / "in.mp4", moving(10))
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(VideoError, match="damaged or incomplete"):
        Video(path)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_cut_off_with_its_table_there_is_noticed(tmp_path, moving, suffix):
    whole = write_video(tmp_path / f"whole{suffix}", moving(50), sound="aac", options={"g": "10"})
    path = tmp_path / f"in{suffix}"
    if suffix == ".mp4":  # the index first, as on the web
        with (
            av.open(str(whole)) as source,
            av.open(str(path), "w", options={"movflags": "faststart"}) as copy,
        ):
            streams = {s.index: copy.add_stream_from_template(s) for s in source.streams}
            for packet in source.demux():
                if packet.dts is not None:
                    packet.stream = streams[packet.stream.index]
                    copy.mux(packet)
        whole = path
    content = whole.read_bytes()
    path.write_bytes(content[: len(content) * 6 // 10])
    video = Video(path)
    count = sum(1 for _ in video.frames())
    assert 10 < count < 45
    assert video.damage
    assert "ends after" in str(video.damage)


def test_places_that_cannot_be_decoded_are_noticed(tmp_path, moving):
    path = write_video(tmp_path / "in.mp4", moving(30), options={"g": "5"})
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 3000] = bytes(3000)
    path.write_bytes(bytes(content))
    video = Video(path)
    for _ in video.frames():
        pass
    assert video.damage.errors > 0


def test_names_are_files_and_no_protocols(tmp_path, moving, monkeypatch):
    content = write_video(tmp_path / "in.mp4", moving(2)).read_bytes()
    monkeypatch.chdir(tmp_path)
    for name in ("12:30.mp4", "http:x.mp4", "concat:in.mp4", "pipe:0", os.fsdecode(b"\xfc.mp4"), "%03d.mp4"):
        Path(name).write_bytes(content)
        assert len(read_pictures(name)) == 2


def test_what_is_no_regular_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    for path in (tmp_path / "pipe.mp4", "/dev/zero", tmp_path / ("x" * 300), tmp_path / "a\0b.mp4"):
        with pytest.raises(VideoError, match="cannot be read"):
            Video(path)


@pytest.mark.parametrize(
    "playlist",
    [
        "ffconcat version 1.0\nfile in.mp4\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nin.mp4\n#EXT-X-ENDLIST\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
    ],
)
def test_a_playlist_opens_no_other_file(tmp_path, moving, playlist):
    write_video(tmp_path / "in.mp4", moving(2))
    for name in ("list.mp4", "list.m3u8", "list.ffconcat"):
        (tmp_path / name).write_text(playlist)
        with pytest.raises(VideoError, match="cannot be read as a video"):
            Video(tmp_path / name)


def test_pictures_too_large_to_decode_are_refused_before_that(tmp_path, moving, monkeypatch):
    path = write_video(tmp_path / "in.mp4", moving(2))
    monkeypatch.setattr("magicedit.video_reading.MOST_DECODED", 200 * 200)
    with pytest.raises(VideoError, match="240 x 240 px, more than 40,000 pixels"):
        Video(path)


def test_frames_tell_transparency(tmp_path, moving):
    opaque = [Image.fromarray(picture) for picture in moving(3)]
    hole = [picture.convert("RGBA") for picture in opaque]
    hole[1].paste((0, 0, 0, 0), (0, 0, 50, 50))
    for name, pictures, told in (("opaque", opaque, [False] * 3), ("hole", hole, [False, True, False])):
        for suffix in ("gif", "png"):
            path = tmp_path / f"{name}.{'apng' if suffix == 'png' else suffix}"
            pictures[0].save(
                path, suffix.upper(), save_all=True, append_images=pictures[1:], duration=100, disposal=2
            )
            assert any(frame.transparent for frame in Video(path).frames()) == any(told)


def test_a_pause_that_mp4_cannot_tell_is_refused(tmp_path, moving):
    path = write_video(tmp_path / "in.mkv", moving(3), stamps=[0, 512, 12_800 * 10**6])
    with pytest.raises(VideoError, match="shows picture 1 for 1000000 s, longer than MP4 can tell"):
        list(Video(path).frames())
