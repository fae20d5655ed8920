"""Editing frames in memory."""

import numpy as np
import pytest
from conftest import RATE, write_video
from test_edit import LOSSLESS, SMILE, planes_of

from magicedit.errors import ImageError, NoFaceError, VideoError
from magicedit.video import edit_frames, edit_video, rendering
from magicedit.video_reading import Video, replace_pixels, to_rgb


@pytest.mark.parametrize(("most_bytes", "batches"), [(rendering.BATCH_BYTES, [8, 2]), (1, [2] * 5)])
def test_frames_are_edited_as_those_of_a_film(tmp_path, editor, moving, monkeypatch, most_bytes, batches):
    """Also where frames are so large that the model gets fewer of them at once."""
    monkeypatch.setattr(rendering, "BATCH_BYTES", most_bytes)
    source = write_video(tmp_path / "in.mp4", moving(10))
    edit_video(editor, source, tmp_path / "out.mp4", add=SMILE, quality="live", settings=LOSSLESS)
    video = Video(source)
    decoded = [frame.planes for frame in video.frames()]
    pictures = [to_rgb(planes, video.info) for planes in decoded]
    told = []
    result = edit_frames(
        editor, pictures, RATE, SMILE, quality="live", progress=lambda done, frame: told.append(done)
    )
    expected = planes_of(tmp_path / "out.mp4")
    for planes, picture, edited, made in zip(decoded, pictures, result.frames, expected, strict=True):
        assert np.array_equal(replace_pixels(planes, picture, edited, video.info), made)
    assert all(result.changed)
    assert [(face.number, face.seen, face.runs) for face in result.faces] == [(0, 10, 1)]
    assert told == [*range(1, 11), *(10 + np.cumsum(batches))]
    assert result.mark.record["asked"] == {"add": SMILE}


def test_frames_of_an_empty_request_are_the_input(editor, moving):
    pictures = np.stack(moving(3))
    result = edit_frames(editor, pictures, RATE, quality="live")
    assert all(np.array_equal(*pair) for pair in zip(pictures, result.frames, strict=True))
    assert not any(result.changed)


def test_frames_that_are_none(editor, portrait):
    for wrong in (portrait[..., 0], portrait / 255, portrait[..., [0, 1, 2, 0]]):
        with pytest.raises(ImageError, match="height, width, 3"):
            edit_frames(editor, [portrait, wrong], RATE, SMILE)
    for pictures, rate in (([], RATE), ([portrait, portrait[:-2]], RATE), ([portrait], 0)):
        with pytest.raises(VideoError, match=r"expected frames of one size|above 0"):
            edit_frames(editor, pictures, rate, SMILE)
    with pytest.raises(NoFaceError, match="no face was found in these frames"):
        edit_frames(editor, [np.full_like(portrait, 90)] * 2, RATE, SMILE)


def test_progress_that_raises_stops_the_work(editor, moving):
    def cancel(done: int, frame: np.ndarray | None) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        edit_frames(editor, moving(6), RATE, SMILE, progress=cancel)
