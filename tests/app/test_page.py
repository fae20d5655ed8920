"""The page's layout, without a browser."""

from types import SimpleNamespace

import gradio as gr
import numpy as np
import pytest

from magicedit.action_units import GEOMETRIC, NAMES
from magicedit.app import Session
from magicedit.app.page import Page
from magicedit.app.sessions import Sessions
from magicedit.app.sliders import slider_names
from magicedit.app.tabs import OTHER_UNITS, by_region
from magicedit.app.views import bars
from magicedit.editor import ExpressionEditor
from magicedit.errors import MagicEditError
from magicedit.faces import load_backend
from magicedit.models import PatchModelConfig, create_patch_pipeline
from magicedit.request import EditRequest, SamplingOptions
from magicedit.vocabulary import whole_name


@pytest.fixture(scope="module")
def editor() -> ExpressionEditor:
    """A tiny random model of two known units, one that is measured only, and one without a description."""
    units = ("AU30", "AU12", "AU45", "AU26")
    config = PatchModelConfig(action_units=units, block_out_channels=(16, 32), resolution=64, default_steps=1)
    return ExpressionEditor(create_patch_pipeline(config, seed=1), load_backend("mediapipe"))


def test_each_unit_of_the_published_twelve_stands_below_its_region():
    groups = by_region(NAMES)
    assert sorted(name for units in groups.values() for name in units) == sorted(NAMES)
    assert groups["Brows"] == ["AU1", "AU2", "AU4"]
    assert next(iter(groups)) == "Mouth"
    assert groups["Mouth"][0] == "AU12"
    assert OTHER_UNITS not in groups


def test_units_outside_the_twelve_have_sliders(editor, tmp_path):
    groups = by_region(editor.action_units)
    assert groups["Mouth"][:3] == ["AU12", "AU26", "AU18"]
    assert groups["Eyes"] == ["AU43", "AU7", "AU45"]
    assert groups["Gaze"] == ["gaze_yaw", "gaze_pitch"]
    assert groups["Head"] == ["head_yaw", "head_pitch", "head_roll"]
    assert groups[OTHER_UNITS] == ["AU30"]
    page = Page(Sessions(editor, tmp_path), live=True, settings=EditRequest())
    sliders = page.expression.sliders
    assert (sliders["gaze_yaw"].minimum, sliders["gaze_yaw"].maximum) == (-30, 30)
    assert (sliders["AU43L"].minimum, sliders["AU43L"].maximum) == (0, 5)
    own = {name: slider.label for name, slider in sliders.items() if whole_name(name) not in GEOMETRIC}
    assert own == {
        "AU12L": "smile · AU12",
        "AU12R": "smile · AU12R, the subject's right",
        "AU26": "open jaw · AU26",
        "AU30": "AU30",
        "AU45L": "blink · AU45",
        "AU45R": "blink · AU45R, the subject's right",
    }
    assert page.sweep.unit.value == "AU12"


def test_the_page_offers_every_option_of_sampling_and_reads_what_it_shows(editor, tmp_path):
    asked = EditRequest(
        quality="fast", steps=7, guidance=2.5, seed=9, teeth=1, tolerance=0.4, noise_level=0.6
    )
    for settings in (asked, EditRequest(teeth="none"), EditRequest()):
        tab = Page(Sessions(editor, tmp_path), live=True, settings=settings).settings
        assert set(tab.fields) == {*SamplingOptions.__optional_keys__, "tolerance"}
        shown = {part: part.value for part in tab.inputs}
        assert tab.read(shown) == settings
        assert tab.read(shown | {tab.fields["seed"]: None}).seed == 0  # while somebody types
    with pytest.raises(MagicEditError, match="from 0"):
        tab.read(shown | {tab.fields["seed"]: -1})


def test_positions_of_sliders_are_numbers_or_told(editor, photographs, tmp_path):
    tab = Page(Sessions(editor, tmp_path), live=True, settings=EditRequest()).expression
    session = Session(editor, tmp_path)
    session.open(photographs / "one.png")
    values = {tab.mode: "add", tab.linked: True}
    tab.ask(
        session, values | {tab.positions: {"AU12L": 2.0, "AU45L": None, "AU99": 1.0}}
    )  # others are not shown
    assert session.request() == {"AU12": 2.0}
    assert tab.show_values(session, values | {tab.positions: {"AU12L": 0.0, "AU45L": None}}) == {
        tab.sliders["AU12L"]: 2.0,
        tab.sliders["AU45L"]: 0.0,
    }
    for wrong in ("2", float("nan"), True, [2.0]):
        with pytest.raises(MagicEditError, match="not those that this address expects"):
            tab.ask(session, values | {tab.positions: {"AU12L": wrong}})
    session.close()


def test_the_answer_of_an_edit_makes_no_slider_current(editor, tmp_path):
    """It may arrive before that of an undo, whose sliders would then be asked for what they showed before."""
    page = Page(Sessions(editor, tmp_path), live=True, settings=EditRequest())
    shown = {event.name: event.outputs for event in page.blocks.fns.values()}
    assert page.ticket in shown["on_undo"]
    for name in ("on_ask", "on_edit", "on_drag", "on_move"):
        assert page.ticket not in shown[name]


def test_an_edit_that_a_closed_page_cancels_opens_no_session(editor, photographs, tmp_path):
    """What comes of it is told to nobody."""
    sessions = Sessions(editor, tmp_path)
    page, request = Page(sessions, live=True, settings=EditRequest()), SimpleNamespace(session_hash="one")
    session = sessions.of(request)
    session.open(photographs / "one.png")
    session.ask({"AU12": 1.0})
    session.want(EditRequest())

    def closes(step: tuple[int, int], unit: str) -> None:
        sessions.end(request.session_hash)

    with pytest.raises(gr.Error, match="the page was closed"):
        page._spoken(page.on_edit)(request, progress=closes)
    page.on_trouble(request)
    assert sessions.known(request) is None
    assert list(tmp_path.iterdir()) == []


def test_an_edit_of_a_unit_outside_the_twelve_is_told(editor, photographs, tmp_path):
    session = Session(editor, tmp_path)
    session.open(photographs / "one.png")
    asked = {"AU30": 2.0, "AU45L": 1.0, "head_roll": 6.0}
    names = slider_names(editor.action_units)
    session.ask_sliders(np.array([asked.get(name, 0.0) for name in names]), "add", True)
    past = session.edit(EditRequest())
    assert past.requests == {0: {"AU30": 2.0, "AU45": 1.0, "head_roll": 6.0}}
    table = bars(past.faces)
    assert "AU30<small></small>" in table
    assert "AU45<small>blink</small>" in table
    assert "<td>+6.0°</td>" in table
    session.close()
