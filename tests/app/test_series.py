"""Videos and several photographs of a page, with the real `mini` and without a browser."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from magicedit.app import Session
from magicedit.app.picture_files import Cancelled
from magicedit.app.series import (
    Film,
    Photographs,
    Preview,
    edit_photographs,
    make_video,
    preview_video,
    series_of,
)
from magicedit.editor import ExpressionEditor
from magicedit.errors import ActionUnitError, MagicEditError, NoFaceError, VideoError
from magicedit.provenance import tell
from magicedit.request import EditRequest

PLAIN = EditRequest()
FRAMES = 6


@pytest.fixture(scope="module")
def editor() -> ExpressionEditor:
    return ExpressionEditor.from_pretrained("mini", device="cpu")


@pytest.fixture
def session(editor, tmp_path):
    session = Session(editor, tmp_path)
    yield session
    session.close()


@pytest.fixture(scope="module")
def clip(tmp_path_factory, photographs) -> Path:
    """FRAMES frames of a face, 256 px."""
    av = pytest.importorskip("av", reason="videos need the extra `video`")
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    face = np.asarray(Image.open(photographs / "one.png").convert("RGB").crop((96, 0, 352, 256)))
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 256, 256, "yuv420p"
        for _ in range(FRAMES):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(face, format="rgb24")))
        container.mux(stream.encode())
    return path


def test_a_video_is_previewed_and_made_by_request_and_curve(session, clip, tmp_path):
    curve = tmp_path / "curve.csv"
    curve.write_text("time,AU26\n0,0\n0.5,2\n")
    given = (session, [str(clip)], "AU12=-3", str(curve), PLAIN)
    frames = preview_video(session, series_of(Preview, *given))
    assert [Image.open(frame).size for frame in frames] == [(256, 256)] * 3
    assert all(tell(frame).edited for frame in frames)
    reported = []
    made = make_video(session, series_of(Film, *given), lambda *state: reported.append(state))
    assert made.name == "clip-edited.mp4"
    assert tell(made).edited
    assert ("frames", FRAMES, FRAMES) in reported
    assert session.needed() == set()  # its files were held only meanwhile


def test_cancelling_ends_a_video(session, clip):
    series = series_of(Film, session, [str(clip)], "AU12=-3", None, PLAIN)

    def report(stage: str, done: int, total: int | None) -> None:
        assert session.needed() == series.folders  # a film may take longer than files are kept
        session.cancel()

    with pytest.raises(Cancelled, match="as you asked"):
        make_video(session, series, report)


def test_what_waits_is_kept_until_it_is_cancelled(session, clip, photographs):
    given = (session, [str(clip)], "AU12=-3", None, PLAIN)
    preview, film = series_of(Preview, *given), series_of(Film, *given)
    session.want(preview)
    session.want(film)
    session.open(photographs / "one.png")  # another thing
    session.undo()
    assert preview.folders | film.folders <= session.needed()
    with session.work(Film) as wanted:
        assert wanted is film
    assert session.cancel()
    with session.work(Preview) as wanted:
        assert wanted is None
    assert not preview.folders & session.needed()


def test_photographs_are_edited_into_one_file(session, editor, photographs):
    paths = [str(photographs / name) for name in ("one.png", "two.png")]
    archive, shown = edit_photographs(
        session, series_of(Photographs, session, paths, "AU12=-3", None, PLAIN), print
    )
    assert len(shown) == 2
    with zipfile.ZipFile(archive) as files:
        assert files.namelist() == ["01-one-edited.png", "02-two-edited.png"]
        with files.open("02-two-edited.png") as file:
            edited = np.asarray(Image.open(file).convert("RGB"))
    expected = editor.edit(photographs / "two.png", add="AU12=-3", face="largest", measure=False)
    assert np.array_equal(edited, np.asarray(expected.image))


def test_what_cannot_be_made_is_told_by_the_users_name(session, photographs, tmp_path):
    with pytest.raises(MagicEditError, match="drop a file first"):
        series_of(Photographs, session, [], "AU12=1", None, PLAIN)
    with pytest.raises(MagicEditError, match="at most 20 photographs at once, got 21"):
        series_of(Photographs, session, ["one.png"] * 21, "AU12=1", None, PLAIN)
    with pytest.raises(MagicEditError, match="nothing is requested"):
        series_of(Photographs, session, ["one.png"], " ", None, PLAIN)
    one = str(photographs / "one.png")
    with pytest.raises(ActionUnitError, match="unknown"):
        series_of(Photographs, session, [one], "AU99=1", None, PLAIN)
    grey = str(photographs / "grey.png")
    with pytest.raises(NoFaceError, match=r"grey.png") as told:
        edit_photographs(session, series_of(Photographs, session, [one, grey], "AU12=1", None, PLAIN), print)
    assert "photograph-" not in str(told.value)
    pytest.importorskip("av", reason="videos need the extra `video`")
    with pytest.raises(VideoError, match=r"broken.jpg") as told:
        preview_video(
            session, series_of(Preview, session, [str(photographs / "broken.jpg")], "AU12=1", None, PLAIN)
        )
    assert "photograph-" not in str(told.value)
