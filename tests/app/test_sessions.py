"""Many pages at once: memory, names that nobody has, and pages that nobody uses."""

import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from magicedit.app import sessions as module
from magicedit.app.series import Photographs, series_of
from magicedit.app.sessions import Sessions
from magicedit.editor import ExpressionEditor
from magicedit.errors import ImageError, MagicEditError
from magicedit.request import EditRequest

PLAIN = EditRequest()


@pytest.fixture(scope="module")
def editor() -> ExpressionEditor:
    return ExpressionEditor.from_pretrained("mini")


@pytest.fixture
def sessions(editor, tmp_path):
    sessions = Sessions(editor, tmp_path)
    yield sessions
    sessions.close()
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def clock(monkeypatch) -> SimpleNamespace:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(module.time, "monotonic", lambda: clock.now)
    return clock


def page(number: int) -> SimpleNamespace:
    return SimpleNamespace(session_hash=f"page{number}")


def opened(sessions: Sessions, number: int, photo: Path):
    session = sessions.of(page(number))
    sessions.make_room(page(number))
    session.open(photo)
    return session


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def test_names_without_photographs_take_nothing_away(sessions, photographs):
    session = opened(sessions, 0, photographs / "one.png")
    for number in range(1, 3 * module.MOST_EMPTY):
        sessions.of(page(number))
    assert len(sessions._sessions) <= module.MOST_EMPTY + 1
    assert sessions.of(page(0)) is session
    assert session.photo is not None


def test_names_take_no_waiting_batch_away(sessions, photographs):
    session = sessions.of(page(0))
    files = [str(photographs / "one.png")]
    session.want(series_of(Photographs, session, files, "AU12=1", None, PLAIN))
    for number in range(1, 2 * module.MOST_EMPTY):
        sessions.of(page(number))
    with session.work(Photographs) as wanted:
        assert wanted is not None
        assert sessions.of(page(0)) is session


def test_pages_beyond_the_memory_keep_their_photographs_and_edits(sessions, photographs, monkeypatch):
    """Their pixels are dropped and read again; a late result is made anew, to the pixel."""
    monkeypatch.setattr(module, "MOST_BYTES", 4 * 512 * 512 * 3)
    pages = [opened(sessions, number, photographs / "one.png") for number in range(5)]
    for number, session in enumerate(pages):
        session.ask({"AU12": -0.1 * (number + 1)})
        session.edit(EditRequest(quality="live"))
    saved = pixels(pages[3].save_result())
    (photographs / "one.png").rename(photographs / "moved.png")  # the page has its own copy
    try:
        sessions.of(page(0))
        assert pages[3].weight() == 0
        assert sum(session.weight() for session in pages) <= module.MOST_BYTES
        for number in range(5):
            session = sessions.of(page(number))
            assert session is pages[number]
            assert session.past().requests == {0: {"AU12": pytest.approx(-0.1 * (number + 1))}}
            assert all(path.exists() for path in session.shown())
        assert np.array_equal(pixels(pages[3].save_result()), saved)
    finally:
        (photographs / "moved.png").rename(photographs / "one.png")


def test_too_many_pages_in_use_are_told_and_idle_ones_give_way(sessions, photographs, monkeypatch, clock):
    monkeypatch.setattr(module, "MOST_PHOTOGRAPHS", 2)
    for number in range(2):
        opened(sessions, number, photographs / "one.png")
    with pytest.raises(MagicEditError, match="pages are in use"):
        opened(sessions, 2, photographs / "one.png")
    opened(sessions, 1, photographs / "two.png")  # has its place
    assert all(sessions.of(page(number)).photo is not None for number in range(2))
    clock.now = module.IDLE_SECONDS
    sessions.of(page(1))
    clock.now += 1
    opened(sessions, 2, photographs / "one.png")
    assert sessions.of(page(1)).photo is not None
    gone = sessions.of(page(0))
    with pytest.raises(ImageError, match="was not used for long"):
        gone.edit(PLAIN)
    clock.now += module.IDLE_SECONDS
    opened(sessions, 0, photographs / "one.png").edit(PLAIN)


def test_pages_that_nobody_uses_lose_their_photographs_in_the_end(sessions, photographs, clock):
    opened(sessions, 0, photographs / "one.png")
    clock.now = module.LONGEST_SECONDS - 1
    sessions.put_away_old()
    assert sessions.of(page(0)).photo is not None
    busy = opened(sessions, 1, photographs / "one.png")
    clock.now += module.LONGEST_SECONDS
    with busy.work():
        sessions.put_away_old()
    assert busy.photo is not None
    assert sessions.known(page(0)).photo is None


def test_what_open_pages_show_is_needed(sessions, photographs, tmp_path):
    session = opened(sessions, 0, photographs / "one.png")
    session.lend_teeth(photographs / "one.png")
    preview = session.preview(PLAIN)
    session.ask({"AU12": -1.0})
    past = session.edit(PLAIN)
    shown = {*session.shown(), past.thumbnail, past.close[0].result(), past.whole.result()}
    needed = sessions.needed()
    assert shown <= needed
    assert len([path for path in needed if path.name.startswith("kept")]) == 2
    assert preview not in needed - shown
    sessions.end(page(0).session_hash)
    assert sessions.needed() == set()


def test_a_page_that_its_browser_reloads_goes_on_and_one_that_is_closed_is_deleted(
    sessions, photographs, monkeypatch, tmp_path
):
    session = opened(sessions, 0, photographs / "one.png")
    sessions.part(page(0))
    assert sessions.resume(page(0).session_hash, page(1))
    sessions.end(page(0).session_hash)  # as comes of `part` in a while
    assert sessions.known(page(1)) is session
    # Reloaded again, and once more, before it knew its new name
    assert sessions.resume(page(0).session_hash, page(2))
    assert sessions.resume(page(0).session_hash, page(1))
    assert (sessions.known(page(1)), sessions.known(page(2))) == (session, None)
    assert not sessions.resume(page(3).session_hash, page(4))
    assert session.shown()[0].exists()
    monkeypatch.setattr(module, "GRACE_SECONDS", 0.01)
    sessions.part(page(1))
    while [*tmp_path.iterdir()]:
        time.sleep(0.01)
    assert sessions.known(page(1)) is None


def test_a_page_stays_if_it_is_used_after_its_connection_broke_off(sessions, photographs, clock):
    session, name = opened(sessions, 0, photographs / "one.png"), page(0).session_hash
    broke_off, clock.now = clock.now, clock.now + 1
    sessions.of(page(0))
    sessions._end_unused(name, broke_off)
    assert sessions.known(page(0)) is session
    sessions._end_unused(name, clock.now)
    assert sessions.known(page(0)) is None


def test_pictures_that_something_else_deleted_are_written_again(sessions, photographs, tmp_path):
    session = opened(sessions, 0, photographs / "one.png")
    for value in (-1.0, -2.0):
        session.ask({"AU12": value})
        session.edit(PLAIN)
    session.close_up = False
    before = [pixels(path) for path in (*session.shown(), *session.thumbnails())]
    for path in tmp_path.rglob("*.jpg"):
        path.unlink()
    for position in (0, 1):
        session.show(position)
        session.close_up = bool(position)
        assert all(path.exists() for path in session.shown())
    session.close_up = False
    after = [pixels(path) for path in (*session.shown(), *session.thumbnails())]
    assert all(np.array_equal(one, other) for one, other in zip(before, after, strict=True))
    session.ask({"AU12": -3.0})
    session.edit(PLAIN)
