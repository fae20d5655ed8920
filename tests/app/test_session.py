"""What a page does, with the real `mini` and without a browser."""

import json
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from magicedit.action_units import EMOTIONS
from magicedit.app import Session
from magicedit.app.picture_files import CLOSE_SIDE, SHOWN_SIDE, Cancelled
from magicedit.app.session import MOST_EARLIER, Sweep
from magicedit.app.sliders import slider_names
from magicedit.app.views import bars, reached_levels
from magicedit.editor import ExpressionEditor
from magicedit.errors import ActionUnitError, ImageError, MagicEditError, NoFaceError
from magicedit.expression import Expression
from magicedit.files import sha256_of
from magicedit.provenance import tell
from magicedit.request import EditRequest

PLAIN = EditRequest()


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


@pytest.fixture(scope="module")
def editor() -> ExpressionEditor:
    return ExpressionEditor.from_pretrained("mini")


@pytest.fixture
def session(editor, photographs, tmp_path):
    session = Session(editor, tmp_path)
    session.open(photographs / "one.png")
    yield session
    session.close()


def test_an_edit_is_the_librarys(session, editor, photographs):
    session.ask({"AU12": -3.0})
    past = session.edit(PLAIN)
    expected = editor.edit(photographs / "one.png", add={"AU12": -3})
    assert past.requests == {0: {"AU12": -3.0}}
    assert past.faces[0].after == expected.faces[0].after
    saved = Image.open(session.save_result())
    assert np.array_equal(np.asarray(saved), np.asarray(expected.image))
    told = json.loads(saved.text["magicedit"])
    assert (told["model"], told["seed"]) == ("mini", 0)
    assert told["faces"] == [{"face": 0, "requested": {"AU12": -3.0}, "sent": {"AU12": -3.0}}]


def test_what_cannot_be_opened_leaves_the_page_as_it_was(session, photographs):
    session.ask({"AU12": -1.0})
    with pytest.raises(NoFaceError, match=r"no face was found in grey.png \(300 x 300 px\)"):
        session.open(photographs / "grey.png")
    with pytest.raises(ImageError) as told:
        session.open(photographs / "broken.jpg")
    assert str(told.value).startswith("broken.jpg is not an image")  # and not where the server keeps it
    assert session.photo.source == Path("one.png")
    assert session.request() == {"AU12": -1.0}


def test_before_a_photograph_everything_says_so(editor, tmp_path):
    session = Session(editor, tmp_path)
    for call in (
        lambda: session.ask({"AU12": 1.0}),
        lambda: session.edit(PLAIN),
        session.save_result,
        lambda: session.save_preset(True),
        session.ask_neutral,
    ):
        with pytest.raises(MagicEditError, match="no photograph yet"):
            call()


def test_history_goes_back_and_forth_and_branches(session):
    for value in (-1.0, -2.0, -3.0):
        session.ask({"AU12": value})
        session.edit(PLAIN)
    last = pixels(session.save_result())
    session.undo()
    assert session.request() == {"AU12": -2.0}
    before, shown = session.shown()
    assert shown == session.history[1].close[0].result()
    assert before != shown
    session.show(-1)
    assert session.request() == {}
    assert session.shown() == (before, before)
    session.show(2)
    assert np.array_equal(pixels(session.save_result()), last)  # made anew
    session.show(0)
    session.ask({"AU4": 2.0})
    session.edit(PLAIN)
    assert [past.requests[0] for past in session.history[-2:]] == [{"AU12": -3.0}, {"AU4": 2.0}]
    assert (session.position, session.origin, session.can_redo) == (3, 0, False)
    session.undo()
    session.redo()
    assert session.position == 3  # the branch that was shown last
    session.show(1)
    session.undo()
    session.redo()
    assert (session.position, session.can_redo) == (1, True)
    session.show(99)
    assert session.position == 3


def test_undo_leads_to_the_photograph_where_what_an_edit_followed_was_dropped(session, monkeypatch):
    monkeypatch.setattr("magicedit.app.session.MOST_EDITS", 2)
    for value in (-1.0, -2.0, -3.0):
        session.ask({"AU12": value})
        session.edit(PLAIN)
    session.undo()
    session.undo()
    assert (session.position, session.request(), session.can_redo) == (-1, {}, False)


def test_a_drag_is_one_request_until_it_ends(session):
    corner = next(number for number, (label, *_) in session.handles().items() if "left corner" in label)
    _, x, y = session.handles()[corner]
    session.ask({"AU4": 1.0})
    session.drag(corner, x, y + 0.02, 1, linked=True, ends=False)
    first = session.request()
    session.drag(corner, x, y + 0.05, 1, linked=True, ends=False)
    session.drag(corner, x, y + 0.02, 1, linked=True, ends=True)
    assert session.request() == first  # from where it began, not from where it was
    assert first["AU4"] == 1.0
    assert first["AU12"] < 0  # she smiles
    assert session.handles()[corner][2] > y
    session.drag(corner, x, y, 1, linked=True, ends=False)  # too late
    assert session.request() == first
    with pytest.raises(MagicEditError, match="drag one of the dots"):
        session.drag(99, x, y, 2, linked=True, ends=True)


def test_a_closed_loop_is_saved_as_it_came_out(session):
    session.ask({"AU12": -2.0})
    past = session.edit(EditRequest(tolerance=0.3))
    assert past.faces[0].edits > 1
    kept = np.asarray(Image.open(session.save_result()))
    session.ask({"AU12": -1.0})
    session.edit(PLAIN)
    session.show(0)
    assert np.array_equal(np.asarray(Image.open(session.save_result())), kept)


def test_a_preview_is_quick_and_never_covers_the_edit(session):
    session.ask({"AU12": -3.0})
    preview = session.preview(PLAIN)
    before = pixels(session.shown()[0])
    assert pixels(preview).shape == before.shape
    assert np.abs(pixels(preview) - before).max() > 30
    assert session.history == []
    session.edit(PLAIN)
    assert session.preview(PLAIN) is None
    assert session.preview(EditRequest(seed=1)) is not None


def test_cancelling_ends_at_the_next_step_and_changes_nothing(session):
    session.ask({"AU12": -3.0})
    seen = []

    def on_step(step: int, total: int) -> None:
        seen.append(total)
        if step == 2:
            threading.Thread(target=session.cancel).start()

    with pytest.raises(Cancelled):
        session.edit(EditRequest(quality="exact", steps=200), on_step)
    assert set(seen) == {200}
    assert len(seen) < 50
    assert session.history == []
    session.edit(PLAIN)  # goes on afterwards
    assert len(session.history) == 1


def test_each_face_has_its_own_request(editor, photographs, tmp_path):
    session = Session(editor, tmp_path)
    session.open(photographs / "two.png")
    assert len(session.faces) == 2
    session.ask({"AU12": -3.0})
    session.choose(1)
    assert session.request() == {}
    session.ask({"AU1": 3.0})
    past = session.edit(PLAIN)
    assert past.requests == {0: {"AU12": -3.0}, 1: {"AU1": 3.0}}
    assert {index: [*face.requested] for index, face in past.faces.items()} == {0: ["AU12"], 1: ["AU1"]}
    edited, original = pixels(session.save_result()), session.photo.pixels
    for face in session.faces:
        x0, y0, x1, y1 = map(int, face.box)
        assert np.abs(edited[y0:y1, x0:x1] - original[y0:y1, x0:x1]).max() > 30
    with pytest.raises(NoFaceError, match="there is no face 3; 2 were found"):
        session.choose(2)


def test_a_click_chooses_the_face_under_it(editor, photographs, tmp_path):
    session = Session(editor, tmp_path)
    session.open(photographs / "two.png")
    centres = [((left + right) / 2, (top + bottom) / 2) for left, top, right, bottom in session.face_boxes()]
    assert not session.close_up  # all are to be seen
    session.choose_at(*centres[1])
    assert session.chosen == 1
    assert session.close_up  # these are small
    session.close_up = False
    session.choose_at(0.01, 0.97)  # nobody is there
    assert session.chosen == 1
    session.choose_at(*centres[0])
    assert session.chosen == 0


def test_what_the_browser_shows_says_that_it_was_edited(session):
    """People save what they see; the photograph itself says nothing."""
    session.ask({"AU12": -2.0})
    session.edit(PLAIN)
    before, after = session.shown()
    assert not tell(before).edited
    session.ask({"AU12": -3.0})
    (edit,) = tell(session.save_result()).edits
    (upload,) = session.files.folder.glob("photograph-*/*")
    assert edit["input"] == {"title": "one.png", "sha256": sha256_of(upload)}  # no file here
    assert all(tell(path).edited for path in (after, session.preview(PLAIN), *session.thumbnails()))


def test_large_photographs_are_shown_smaller_and_saved_whole(editor, photographs, tmp_path):
    session = Session(editor, tmp_path)
    session.open(photographs / "large.jpg")
    assert session.close_up  # the face is a fifth of its height
    assert max(pixels(session.shown()[0]).shape) <= CLOSE_SIDE
    session.close_up = False
    assert pixels(session.shown()[0]).shape == (SHOWN_SIDE, SHOWN_SIDE, 3)
    session.ask({"AU12": -3.0})
    session.edit(PLAIN)
    assert Image.open(session.save_result()).size == (2400, 2400)


def test_presets_come_back(session):
    session.ask({"AU12": -2.0, "AU2L": 1.5})
    steps, reached = session.save_preset(True), session.save_preset(False)
    assert Expression.load(steps).values == {"AU2L": 1.5, "AU12": -2.0}
    assert Expression.load(steps).model == "mini"
    assert not Expression.load(reached).relative
    session.ask({})
    session.ask_preset(steps)
    assert session.request() == {"AU2L": 1.5, "AU12": -2.0}
    session.ask_preset(steps, 0.5)
    assert session.request() == {"AU2L": 0.75, "AU12": -1.0}
    session.ask({})
    session.ask_preset(reached)
    assert session.request() == pytest.approx({"AU2L": 1.5, "AU12": -2.0}, abs=0.001)


def test_presets_that_do_not_fit_are_refused(session, tmp_path):
    session.ask_preset(Expression({"AU45": 2.0}, relative=True).save(tmp_path / "blink.yaml"))
    assert session.request() == {"AU43": 2.0}
    session.ask({})
    other = tmp_path / "other.yaml"
    other.write_text("magicedit: expression/1\nkind: variations\naction_units:\n  AU30: 1\n")
    with pytest.raises(ActionUnitError, match=r"unknown action unit 'AU30'"):
        session.ask_preset(other)
    broken = tmp_path / "broken.yaml"
    broken.write_text("magicedit: expression/9\n")
    with pytest.raises(MagicEditError) as told:
        session.ask_preset(broken)
    assert str(told.value).startswith("broken.yaml is not in the format `expression/1`")
    assert session.request() == {}


def test_neutral_copy_and_emotion_ask_what_they_say(session, photographs):
    measured = session.measured()
    session.ask_neutral()
    assert session.request()["AU12"] == pytest.approx(-measured["AU12"], abs=0.01)
    session.ask_copy(photographs / "one.png")
    assert max(map(abs, session.request().values()), default=0) < 0.02  # its own expression
    session.ask_emotion("surprise", 0.5)
    assert session.request() == {unit: steps / 2 for unit, steps in EMOTIONS["surprise"].items()}
    with pytest.raises(NoFaceError):
        session.ask_copy(photographs / "grey.png")


def test_a_sweep_is_a_strip_or_an_animation(session):
    strip = Image.open(session.draw(Sweep("AU12", -3, 0, 6, False, EditRequest(quality="live"))))
    assert strip.width > 5 * strip.height
    film = Image.open(session.draw(Sweep("AU12", -3, 0, 3, True, EditRequest(quality="live"))))
    assert (film.format, film.n_frames) == ("GIF", 4)  # there and back


def test_closing_deletes_its_files(editor, photographs, tmp_path):
    session = Session(editor, tmp_path)
    session.open(photographs / "one.png")
    assert session.shown()[0].is_file()
    assert len(list(tmp_path.rglob("*.jpg"))) == 1
    session.close()
    assert list(tmp_path.iterdir()) == []


def test_views_tell_requested_and_measured(session):
    session.ask({"AU12": -3.0, "AU5": 2.0})
    past = session.edit(PLAIN)
    face = past.faces[0]
    table = bars(past.faces)
    reached = reached_levels(face)
    assert f"{face.before['AU12']:.1f} → {face.before['AU12'] - 3:.1f}" in table
    assert f"<td>{reached['AU12']:.1f}</td>" in table
    # Blendshapes are blind to AU5: there the movement of landmarks is told
    assert reached["AU5"] == pytest.approx(face.before["AU5"] + face.moved["AU5"])
    assert bars({}) == ""


# --- Events that wait for the model while other things happen ---


def test_tickets_are_void_after_cancel_undo_and_another_photograph(session, photographs):
    tickets = [session.ticket]
    session.cancel()
    tickets.append(session.ticket)
    session.ask({"AU12": -1.0})
    session.edit(PLAIN)
    assert session.is_current(tickets[-1])
    session.undo()
    tickets.append(session.ticket)
    session.open(photographs / "two.png")
    assert [session.is_current(ticket) for ticket in tickets] == [False, False, False]
    assert session.is_current(session.ticket)


def test_sliders_ask_the_face_they_stood_for(editor, photographs, tmp_path):
    session = Session(editor, tmp_path)
    session.open(photographs / "two.png")
    session.choose(1)
    values = [-3.0 if name == "AU12L" else 0.0 for name in slider_names(editor.action_units)]
    session.ask_sliders(values, "add", True, face=0)
    assert (session.requests, session.chosen) == ({0: {"AU12": -3.0}}, 1)


def test_nothing_asked_of_the_photograph_is_no_edit(session):
    session.ask({})
    session.want(PLAIN)
    assert session.wanted_edit() is None
    assert session.history == []


def test_the_same_edit_twice_is_one(session):
    session.ask({"AU12": -3.0})
    past = session.edit(PLAIN)
    assert session.edit(PLAIN) is past
    assert len(session.history) == 1
    assert session.edit(EditRequest(seed=1)) is not past


def test_what_waited_edits_the_face_it_was_asked_of(editor, photographs, tmp_path):
    session = Session(editor, tmp_path)
    session.open(photographs / "two.png")
    session.ask({"AU12": -3.0})
    session.want(PLAIN)
    session.choose(1)  # while the edit waits
    assert session.wanted_edit().requests == {0: {"AU12": -3.0}}
    assert session.wanted_edit() is None  # once


def test_another_photograph_drops_what_waited(session, photographs):
    session.ask({"AU12": -3.0})
    session.want(PLAIN)
    session.open(photographs / "two.png")
    assert session.wanted_edit() is None
    assert session.requests == {}


def test_cancelling_drops_what_waited(session):
    session.ask({"AU12": -3.0})
    session.want(PLAIN)
    session.want(Sweep("AU12", -3, 0, 3, False, PLAIN))
    assert session.cancel()
    assert session.wanted_edit() is None
    assert session.wanted_sweep() is None
    assert not session.cancel()  # nothing is left to stop


@pytest.mark.parametrize("kind", ["edit", "sweep"])
def test_cancelling_stops_what_was_taken_and_does_not_run_yet(session, monkeypatch, kind):
    """Between the moment at which an edit no longer waits, and the model's first step."""
    told, seen = [], []
    carry_out = {"edit": session.edit, "sweep": session.draw}[kind]

    def cancelled_first(*arguments):
        told.append(session.cancel())
        return carry_out(*arguments)

    monkeypatch.setattr(session, carry_out.__name__, cancelled_first)
    session.ask({"AU12": -3.0})
    session.want(PLAIN if kind == "edit" else Sweep("AU12", -3, 0, 3, False, PLAIN))
    wanted = {"edit": session.wanted_edit, "sweep": session.wanted_sweep}[kind]
    with pytest.raises(Cancelled, match="as you asked"):
        wanted(lambda step, total: seen.append(step))
    assert told == [True]
    assert seen == []
    assert session.history == []
    assert not session.cancel()
    session.edit(PLAIN) if kind == "sweep" else carry_out(PLAIN)  # goes on afterwards
    assert len(session.history) == 1


def test_cancelling_between_the_ticket_and_the_wish_drops_it(session):
    session.ask({"AU12": -3.0})
    ticket = session.ticket
    assert session.is_current(ticket)
    session.cancel()
    session.want(PLAIN, ticket)
    assert session.wanted_edit() is None


@pytest.mark.parametrize("moment", ["at the first step", "after the last step", "when pictures are written"])
def test_closing_during_an_edit_cancels_it(editor, photographs, tmp_path, monkeypatch, moment):
    session = Session(editor, tmp_path)
    session.open(photographs / "one.png")
    session.ask({"AU12": -3.0})
    if moment == "after the last step":
        edit_faces = editor.edit_faces

        def closed_after(*arguments, **settings):
            result = edit_faces(*arguments, **settings)
            session.close()
            return result

        monkeypatch.setattr(editor, "edit_faces", closed_after)
    elif moment == "when pictures are written":
        keep = session.files.keep

        def closed_before(picture, edited):
            session.close()
            return keep(picture, edited)

        monkeypatch.setattr(session.files, "keep", closed_before)
        monkeypatch.setattr(session.files._writer, "submit", lambda call: None)  # its threads close it, too
    with pytest.raises(Cancelled):
        session.edit(PLAIN, lambda step, total: session.close() if moment == "at the first step" else None)
    assert session.history == []
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(Cancelled, match="closed"):
        session.preview(PLAIN)


def test_a_photograph_opened_during_an_edit_keeps_its_empty_history(session, photographs, monkeypatch):
    session.ask({"AU12": -3.0})
    keep = session.files.keep_later

    def opened_before(pixels):
        monkeypatch.undo()
        session.open(photographs / "two.png")
        return keep(pixels)

    monkeypatch.setattr(session.files, "keep_later", opened_before)
    with pytest.raises(Cancelled, match="another photograph"):
        session.edit(PLAIN)
    assert (session.history, session.position) == ([], -1)


def test_undoing_during_an_edit_shows_what_it_led_to_and_keeps_the_edit(session):
    session.ask({"AU12": -1.0})
    first = session.edit(PLAIN)
    session.ask({"AU12": -3.0})
    second = session.edit(PLAIN, lambda step, total: session.past() is first and session.undo())
    assert (session.past(), session.requests) == (None, {})
    assert session.history == [first, second]
    session.redo()
    assert session.past() is first
    session.redo()
    assert (session.past(), session.requests) == (second, {0: {"AU12": -3.0}})


def test_earlier_photographs_and_their_edits_are_returned_to(session, photographs):
    session.ask({"AU12": -3.0})
    past = session.edit(PLAIN)
    before = session.shown()
    session.open(photographs / "two.png")
    assert (session.history, len(session.faces)) == ([], 2)
    assert session.earlier_thumbnails() == [past.thumbnail]
    assert {*before, past.thumbnail} <= session.needed()
    session.reopen(0)  # nothing was edited meanwhile
    assert session.earlier == []
    assert (session.past(), session.requests, len(session.faces)) == (past, {0: {"AU12": -3.0}}, 1)
    assert session.shown() == before
    for _ in range(MOST_EARLIER + 1):
        session.ask({"AU12": -1.0})
        session.edit(PLAIN)
        session.open(photographs / "one.png")
    assert len(session.earlier) == MOST_EARLIER
    with pytest.raises(MagicEditError, match="open it again"):
        session.reopen(MOST_EARLIER)


def test_state_is_not_locked_while_the_model_works(session):
    """Choosing, undoing and looking answer at once, from another thread."""
    session.ask({"AU12": -1.0})
    session.edit(PLAIN)
    session.ask({"AU12": -3.0})
    answered = []

    def look() -> None:
        session.choose(0)
        session.shown()
        session.undo()
        answered.append(session.request())

    def on_step(step: int, total: int) -> None:
        if step == 1:
            other = threading.Thread(target=look)
            other.start()
            other.join(timeout=5)

    session.edit(EditRequest(quality="exact"), on_step)
    assert answered == [{}]  # undone, before the edit came to its end
    assert [past.requests[0] for past in session.history] == [{"AU12": -1.0}, {"AU12": -3.0}]
    assert session.history[1].follows is session.history[0]  # what was shown when it was asked


def test_history_keeps_no_pictures_in_memory(session):
    session.ask({"AU12": -3.0})
    past = session.edit(PLAIN)
    kept = (past.whole.result(), past.thumbnail, *(picture.result() for picture in past.close.values()))
    assert all(path.suffix == ".jpg" and path.is_file() for path in kept)
