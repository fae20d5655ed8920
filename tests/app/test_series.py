"""Videos and several photographs of a page, with the real `mini` and without a browser."""

import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from magicedit import video_reading
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
from magicedit.app.turns import Turns
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
    archive, shown, failed = edit_photographs(
        session, series_of(Photographs, session, paths, "AU12=-3", None, PLAIN), print
    )
    assert len(shown) == 2
    assert failed == []
    with zipfile.ZipFile(archive) as files:
        assert files.namelist() == ["01-one-edited.png", "02-two-edited.png"]
        with files.open("02-two-edited.png") as file:
            edited = np.asarray(Image.open(file).convert("RGB"))
    expected = editor.edit(photographs / "two.png", add="AU12=-3", face="largest", measure=False)
    assert np.array_equal(edited, np.asarray(expected.image))


def test_photographs_that_cannot_be_edited_are_told_and_the_others_kept(session, photographs):
    names = ("broken.jpg", "one.png", "grey.png")
    series = series_of(
        Photographs, session, [str(photographs / name) for name in names], "AU12=-3", None, PLAIN
    )
    archive, shown, failed = edit_photographs(session, series, print)
    assert len(shown) == 1
    with zipfile.ZipFile(archive) as files:
        assert files.namelist() == ["02-one-edited.png"]
    assert failed[0].startswith("broken.jpg is not an image")
    assert failed[1].startswith("no face was found in grey.png")


def test_a_preview_decodes_from_the_nearest_key_picture(session, monkeypatch, tmp_path, photographs):
    av = pytest.importorskip("av", reason="videos need the extra `video`")
    path, decoded = tmp_path / "long.mp4", []
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"g": "10", "bf": "2"})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for number in range(90):
            pixels = np.full((64, 64, 3), 2 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    counted = video_reading._decoded

    def count(*arguments):
        for frame in counted(*arguments):
            decoded.append(frame)
            yield frame

    monkeypatch.setattr(video_reading, "_decoded", count)
    frames = preview_video(session, series_of(Preview, session, [str(path)], "AU12=1", None, PLAIN))
    levels = [np.asarray(Image.open(frame).convert("L")).mean() for frame in frames]
    assert levels == pytest.approx([30, 90, 150], abs=3)  # frames 15, 45 and 75
    assert len(decoded) < 45


def test_others_edit_while_a_video_and_a_batch_are_made(editor, clip, photographs, tmp_path):
    turns = Turns()
    busy, other = (Session(editor, tmp_path, turns) for _ in range(2))
    other.open(photographs / "one.png")
    other.ask({"AU12": -2.0})
    order, edits = [], []

    def between(*state) -> None:
        """Another page asks for an edit when the first part is done; a later part waits for it."""
        order.append("part")
        if not edits:
            edits.append(threading.Thread(target=edit_elsewhere))
            edits[0].start()
            while not turns._next.locked():  # until it waits
                time.sleep(0.01)

    def edit_elsewhere() -> None:
        other.edit(PLAIN)
        order.append("edit")

    for make, kind, paths in (
        (make_video, Film, [str(clip)]),
        (edit_photographs, Photographs, [str(photographs / "one.png")] * 6),
    ):
        make(busy, series_of(kind, busy, paths, "AU12=-1", None, PLAIN), between)
        edits.pop().join()
        assert order.index("edit") < len(order) - 1, "the edit waited for all of it"
        order.clear()
        other.ask({"AU12": -1.0})
    busy.close()
    other.close()


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
        edit_photographs(session, series_of(Photographs, session, [grey], "AU12=1", None, PLAIN), print)
    assert "photograph-" not in str(told.value)
    pytest.importorskip("av", reason="videos need the extra `video`")
    with pytest.raises(VideoError, match=r"broken.jpg") as told:
        preview_video(
            session, series_of(Preview, session, [str(photographs / "broken.jpg")], "AU12=1", None, PLAIN)
        )
    assert "photograph-" not in str(told.value)
