"""Writing videos: pieces joined, sound kept, films of pictures."""

import os
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from conftest import av, read_pictures, seconds_of, sound_of, write_video
from PIL import Image

from magicedit.errors import ImageError, MissingDependencyError, OutputError, VideoError
from magicedit.video import edit_video, reenact, save_film
from magicedit.video.writing import Encoding, Piece, PieceWriter, check_size, check_video_output, join
from magicedit.video_reading import Video, public, still_info

STAMPS = [0, 512, 600, 1800, 1900, 5000, 5020, 7000, 7500, 9000]
MILLISECOND = Fraction(1, 1000)


def copied(source: Video, output, folder, size: int = 4, crf: float = 17) -> list[str]:
    """The frames of a video as they are, in pieces of `size`, joined; what was remarked."""
    frames, pieces = list(source.frames()), []
    for start in range(0, len(frames), size):
        part = frames[start : start + size]
        writer = PieceWriter(folder / f"{start}.mp4", source.info, Encoding(crf), size)
        for frame in part:
            writer.write(frame.planes, frame.pts)
        writer.close()
        pieces.append(Piece(writer.path, [frame.pts for frame in part]))
    return join(pieces, frames[-1].duration, source.info, source, output, folder / "joined.tmp")


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_pieces_keep_timestamps_pictures_and_sound(tmp_path, moving, suffix):
    source = write_video(tmp_path / "in.mp4", moving(10), stamps=STAMPS, sound="aac", options={"bf": "2"})
    output = tmp_path / f"out{suffix}"
    assert copied(Video(source), output, tmp_path, crf=1) == []
    times, expected = seconds_of(output), [Fraction(s, 12_800) for s in STAMPS]
    if suffix == ".mkv":  # counts in milliseconds
        times = [min((e for e in expected if abs(e - t) <= MILLISECOND), default=t) for t in times]
    assert times == expected
    assert 10 < Video(output).info.rate < 20
    for before, after in zip(read_pictures(source), read_pictures(output), strict=True):
        assert np.abs(before.astype(int) - after).mean() < 1
    (codec, samples), (kept, kept_samples) = sound_of(source), sound_of(output)
    assert kept == codec == "aac"
    delay = 1024 if suffix == ".mkv" else 0  # of the encoder, which Matroska shows
    both = min(samples.shape[1], kept_samples.shape[1] - delay)
    assert both > 30_000
    assert np.array_equal(kept_samples[:, delay : delay + both], samples[:, :both])


def test_the_last_picture_is_shown_as_long_as_before(tmp_path, moving):
    source = write_video(tmp_path / "in.mp4", moving(10), stamps=STAMPS, options={"bf": "0"})
    copied(Video(source), tmp_path / "out.mp4", tmp_path)
    lengths = []
    for path in (source, tmp_path / "out.mp4"):
        with av.open(str(path)) as container:
            lengths.append(container.duration)
    assert lengths[0] == lengths[1] > 700_000  # microseconds


def test_sound_that_mp4_does_not_hold_is_encoded_anew(tmp_path, moving):
    source = write_video(tmp_path / "in.mkv", moving(25), sound="pcm_s16le")
    (remark,) = copied(Video(source), tmp_path / "out.mp4", tmp_path, 25)
    assert "pcm_s16le" in remark
    codec, samples = sound_of(tmp_path / "out.mp4")
    assert codec == "aac"
    _, original = sound_of(source)
    original = original / 32768
    middle = slice(10_000, 30_000)
    shifts = [
        np.corrcoef(np.roll(samples, shift)[0, middle], original[0, middle])[0, 1] for shift in range(-60, 61)
    ]
    assert max(shifts) > 0.99  # the tone, in phase up to a millisecond
    assert abs(samples.shape[1] - original.shape[1]) < 4096

    copied(Video(source), tmp_path / "out.mkv", tmp_path, 25)
    assert sound_of(tmp_path / "out.mkv")[0] == "pcm_s16le"


def test_a_file_without_sound_has_none(tmp_path, moving):
    source = write_video(tmp_path / "in.mp4", moving(4))
    copied(Video(source), tmp_path / "out.mp4", tmp_path)
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert len(container.streams) == 1


def test_sound_that_starts_later_stays_later(tmp_path, moving):
    with av.open(str(tmp_path / "in.mkv"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width = stream.height = 240
        stream.pix_fmt = "yuv420p"
        track = container.add_stream("flac", rate=8000, layout="mono")
        for picture in moving(25):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), "rgb24")))
        container.mux(stream.encode())
        piece = av.AudioFrame.from_ndarray(np.ones((1, 4000), np.int16), "s16", "mono")
        piece.sample_rate, piece.pts, piece.time_base = 8000, 4000, Fraction(1, 8000)
        container.mux(track.encode(piece))
        container.mux(track.encode())
    copied(Video(tmp_path / "in.mkv"), tmp_path / "out.mp4", tmp_path, 25)
    with av.open(str(tmp_path / "out.mp4")) as container:
        stream = container.streams.audio[0]
        assert float(stream.start_time * stream.time_base) == pytest.approx(0.5, abs=0.002)


def test_tags_of_colour_and_shape_of_pixels_are_kept(tmp_path, moving):
    tags = {"colorspace": 1, "color_range": 2, "color_trc": 1, "color_primaries": 1}
    tags["sample_aspect_ratio"] = Fraction(4, 3)
    source = write_video(tmp_path / "in.mp4", moving(4), colours=tags)
    copied(Video(source), tmp_path / "out.mp4", tmp_path)
    info = Video(tmp_path / "out.mp4").info
    assert (info.colours.space, info.colours.range, info.colours.transfer, info.colours.primaries) == (
        1,
        2,
        1,
        1,
    )
    assert info.aspect == Fraction(4, 3)
    assert info.pixel_format in ("yuv420p", "yuvj420p")


def test_what_is_encoded_does_not_depend_on_what_memory_held(tmp_path, moving):
    """x264's macroblock tree does, and made resumed videos differ. glibc fills memory as it is told."""
    source = write_video(tmp_path / "in.mp4", moving(24))
    script = f"""
import hashlib
from pathlib import Path
from magicedit.video_reading import Video
from magicedit.video.writing import Encoding, PieceWriter
video, path = Video({str(source)!r}), Path({str(tmp_path)!r}) / "piece.mp4"
writer = PieceWriter(path, video.info, Encoding(), 24)
for frame in video.frames():
    writer.write(frame.planes, frame.pts)
writer.close()
print(hashlib.blake2b(path.read_bytes()).hexdigest())
"""
    digests = {
        subprocess.run(
            [sys.executable, "-c", script],
            env=os.environ | {"MALLOC_PERTURB_": filling},
            capture_output=True, text=True, check=True,
        ).stdout
        for filling in ("0", "1", "85", "170")
    }  # fmt: skip
    assert len(digests) == 1


def test_names_and_places_that_cannot_be_written(tmp_path, moving):
    source = write_video(tmp_path / "in.mp4", moving(2))
    for path, said in [
        (tmp_path / "out.webm", "another suffix"),
        (tmp_path / "out", "another suffix"),
        (tmp_path / "none" / "out.mp4", "does not exist"),
        (source, "is the input"),
    ]:
        with pytest.raises(OutputError, match=said):
            check_video_output(path, source)
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        check_video_output(tmp_path / "folder.mp4", source)
    info = Video(source).info
    with pytest.raises(VideoError, match=r"H\.264 holds"):
        check_size(replace(info, width=8192, height=4320), "it", "scale it")


def test_a_film_of_pictures(tmp_path, portrait):
    pictures = [Image.fromarray(np.roll(portrait[:201, :203], i, 1)) for i in range(5)]
    assert save_film(pictures, tmp_path / "film.mp4", 0.3) == tmp_path / "film.mp4"
    shown = read_pictures(tmp_path / "film.mp4")
    assert shown[0].shape == (202, 204, 3)
    for picture, frame in zip(pictures, shown, strict=True):
        assert np.abs(np.asarray(picture).astype(int) - frame[:201, :203]).mean() < 5
    assert seconds_of(tmp_path / "film.mp4") == [Fraction(3 * i, 10) for i in range(5)]
    with av.open(str(tmp_path / "film.mp4")) as container:
        assert container.duration == pytest.approx(1_500_000, abs=1000)


def test_a_film_is_refused_and_leaves_nothing(tmp_path, portrait):
    picture = Image.fromarray(portrait)
    with pytest.raises(OutputError, match="another suffix"):
        save_film([picture], tmp_path / "film.gif", 0.1)
    with pytest.raises(ImageError, match="one size"):
        save_film([picture, picture.crop((0, 0, 50, 50))], tmp_path / "film.mp4", 0.1)
    with pytest.raises(ImageError, match="one size"):
        save_film([], tmp_path / "film.mp4", 0.1)
    with pytest.raises(OutputError, match="3600 s"):
        save_film([picture], tmp_path / "film.mp4", 0)
    assert list(tmp_path.iterdir()) == []


def test_an_encoding_that_does_not_exist():
    for arguments in ({"crf": 52}, {"crf": float("nan")}, {"preset": "quick"}):
        with pytest.raises(OutputError):
            Encoding(**arguments)


def test_without_the_extra_its_name_is_said(tmp_path, portrait, editor, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    for call in (
        lambda: save_film([Image.fromarray(portrait)], tmp_path / "film.mp4", 0.1),
        lambda: edit_video(editor, "in.mp4", tmp_path / "out.mp4"),
        lambda: reenact(editor, portrait, "in.mp4", tmp_path / "out.mp4"),
    ):
        with pytest.raises(MissingDependencyError, match=r"magicedit\[video\]"):
            call()


TAGS = {"title": "Holiday", "creation_time": "2024-05-01T12:00:00.000000Z", "location": "+48.1000+011.5000/"}


def tagged(path, picture):
    """A film with tags, chapters, a second stream of pictures and sound in two languages."""
    with av.open(str(path), "w") as container:
        container.metadata.update(TAGS)
        streams = [container.add_stream("libx264", rate=25) for _ in range(2)]
        for stream in streams:
            stream.height, stream.width, stream.pix_fmt = *picture.shape[:2], "yuv420p"
        streams[0].metadata["language"] = "fra"
        tracks = [container.add_stream("aac", rate=44_100, layout="mono") for _ in range(2)]
        for track, language, disposition in zip(tracks, ("eng", "deu"), (0, 1), strict=True):
            track.metadata.update({"language": language, "title": f"in {language}"})
            track.disposition = av.stream.Disposition(disposition)
        half = {"start": 0, "end": 200, "time_base": Fraction(1, 1000), "metadata": {"title": "one"}}
        container.set_chapters([{"id": 1, **half}, {"id": 2, **half, "start": 200, "end": 400}])
        for _ in range(10):
            for stream in streams:
                container.mux(
                    stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), "rgb24"))
                )
        for track in tracks:
            piece = av.AudioFrame.from_ndarray(np.zeros((1, 17_640), np.int16), "s16", "mono")
            piece.sample_rate = 44_100
            container.mux(track.encode(piece))
        for stream in (*streams, *tracks):
            container.mux(stream.encode())
    return path


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
@pytest.mark.parametrize("source", [".mp4", ".mkv"])
def test_tags_languages_and_chapters_are_kept(tmp_path, portrait, source, suffix):
    video = Video(tagged(tmp_path / f"in{source}", portrait))
    output = tmp_path / f"out{suffix}"
    remarks = copied(video, output, tmp_path)
    assert any("further tracks (video" in remark for remark in remarks)
    with av.open(str(output)) as container:
        tags = {name.lower(): value for name, value in container.metadata.items()}
        assert tags["title"] == "Holiday"
        assert tags["creation_time"].startswith("2024-05-01T12:00:00")
        assert container.streams.video[0].metadata["language"] == "fra"
        sounds = container.streams.audio
        german = "ger" if suffix == ".mov" else "deu"  # QuickTime's spelling
        assert [sound.metadata["language"] for sound in sounds] == ["eng", german]
        assert [bool(sound.disposition & sound.disposition.default) for sound in sounds] == [False, True]
        assert [(c["start"] * c["time_base"], c["metadata"]["title"]) for c in container.chapters()] == [
            (0, "one"), (Fraction(1, 5), "one")
        ]  # fmt: skip
        if suffix == source == ".mkv":
            assert [sound.metadata["title"] for sound in sounds] == ["in eng", "in deu"]


def test_tags_of_places_are_left_out_on_request(tmp_path, portrait):
    info = Video(tagged(tmp_path / "in.mp4", portrait)).info
    assert info.tags["location"] == TAGS["location"]
    assert public(info).tags == {name: info.tags[name] for name in info.tags if "location" not in name}
    assert public(info).tags["title"] == "Holiday"


def test_a_photograph_s_film_has_no_tags_of_the_driving_one(portrait, tmp_path):
    info = still_info(Video(tagged(tmp_path / "in.mp4", portrait)).info, 64, 64)
    assert (info.tags, info.picture_tags, info.chapters, info.others) == ({}, {}, (), ())


def test_a_full_disk_is_an_error_and_leaves_the_old_film(tmp_path, moving):
    source, output = Video(write_video(tmp_path / "in.mp4", moving(3))), tmp_path / "out.mp4"
    output.write_bytes(b"old")
    (tmp_path / "0.mp4").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        copied(source, output, tmp_path)
    (tmp_path / "0.mp4").unlink()
    (tmp_path / "joined.tmp").symlink_to("/dev/full")
    with pytest.raises(OutputError, match="No space left"):
        copied(source, output, tmp_path)
    assert output.read_bytes() == b"old"
