"""From positions of sliders to requests, and back."""

import pytest

from magicedit.action_units import NAMES
from magicedit.app.sliders import (
    has_sides,
    joined_sides,
    levels,
    slider_names,
    slider_request,
    slider_values,
)
from magicedit.errors import ActionUnitError

SLIDERS = slider_names(NAMES)
MEASURED = dict.fromkeys(NAMES, 0.0) | {"AU12": 2.0, "AU12L": 1.52, "AU12R": 2.48, "AU25": 1.0}
MEASURED |= {name: 0.0 for name in SLIDERS if name not in MEASURED}


def moved(values: list[float], **positions: float) -> list[float]:
    return [positions.get(name, value) for name, value in zip(SLIDERS, values, strict=True)]


def test_each_side_of_nine_units_has_a_slider():
    assert len(SLIDERS) == 9 * 2 + 3
    assert SLIDERS[:3] == ("AU1L", "AU1R", "AU2L")
    assert {"AU17", "AU25", "AU26"} < {*SLIDERS}


@pytest.mark.parametrize("mode", ["add", "set"])
@pytest.mark.parametrize("linked", [True, False])
def test_sliders_that_nobody_moved_ask_for_nothing(mode, linked):
    values = slider_values({}, MEASURED, SLIDERS, mode, linked)
    assert slider_request(values, MEASURED, SLIDERS, mode, linked, {}) == {}


def test_in_mode_set_sliders_stand_at_what_is_measured():
    linked = dict(zip(SLIDERS, slider_values({}, MEASURED, SLIDERS, "set", True), strict=True))
    apart = dict(zip(SLIDERS, slider_values({}, MEASURED, SLIDERS, "set", False), strict=True))
    assert (linked["AU12L"], apart["AU12L"], apart["AU12R"]) == (2.0, 1.5, 2.5)
    assert apart["AU25"] == 1.0
    assert set(slider_values({}, MEASURED, SLIDERS, "add", True)) == {0.0}


def test_linked_sliders_speak_for_both_sides():
    rest = slider_values({}, MEASURED, SLIDERS, "add", True)
    assert slider_request(moved(rest, AU12L=3.0, AU17=-1.0), MEASURED, SLIDERS, "add", True, {}) == {
        "AU12": 3.0,
        "AU17": -1.0,
    }
    rest = slider_values({}, MEASURED, SLIDERS, "set", True)
    assert slider_request(moved(rest, AU12L=3.0), MEASURED, SLIDERS, "set", True, {}) == {"AU12": 1.0}


def test_apart_each_side_is_asked_by_itself():
    rest = slider_values({}, MEASURED, SLIDERS, "set", False)
    request = slider_request(moved(rest, AU12R=0.0), MEASURED, SLIDERS, "set", False, {})
    assert request == pytest.approx({"AU12R": -2.48})
    assert has_sides(request)
    # Almost the same on both sides: one call of the model, not two
    rest = slider_values({}, MEASURED, SLIDERS, "add", False)
    request = slider_request(moved(rest, AU2L=1.0, AU2R=1.02), MEASURED, SLIDERS, "add", False, {})
    assert request == pytest.approx({"AU2": 1.01})
    assert not has_sides(request)


@pytest.mark.parametrize("mode", ["add", "set"])
def test_a_request_survives_the_sliders(mode):
    """To the digit while nobody moves them, also beyond their range; to a step where it is read afresh."""
    request = {"AU1": 2.03, "AU12L": 1.5, "AU17": 8.0, "AU25": -0.5}
    values = slider_values(request, MEASURED, SLIDERS, mode, False)
    assert slider_request(values, MEASURED, SLIDERS, mode, False, request) == request
    one_moved = slider_request(moved(values, AU26=1.0), MEASURED, SLIDERS, mode, False, request)
    assert one_moved == request | {"AU26": 1.0}
    inside = {"AU1": 2.0, "AU12L": 1.5, "AU25": -0.5}
    values = slider_values(inside, MEASURED, SLIDERS, mode, False)
    assert slider_request(values, MEASURED, SLIDERS, mode, False, {}) == pytest.approx(inside, abs=0.05)


def test_switching_the_mode_changes_no_request():
    happy = {"AU6": 3.2, "AU12": 3.2, "AU25": 4.5}  # beyond what levels can show of AU12 and AU25
    values = slider_values(happy, MEASURED, SLIDERS, "set", True)
    assert slider_request(values, MEASURED, SLIDERS, "set", True, happy) == happy


def test_an_empty_number_asks_for_what_was_asked():
    values = [None if name == "AU17" else 0.0 for name in SLIDERS]
    assert slider_request(values, MEASURED, SLIDERS, "add", False, {"AU17": 2.0}) == {"AU17": 2.0}


def test_sides_are_joined_by_their_mean():
    assert joined_sides({"AU12L": 2.0, "AU1": 1.0, "AU17": -1.0}, NAMES) == {
        "AU1": 1.0,
        "AU12": 1.0,
        "AU17": -1.0,
    }
    assert joined_sides({"AU12L": 1.0, "AU12R": -1.0}, NAMES) == {}


def test_levels_need_a_measurement():
    values = moved(slider_values({}, {}, SLIDERS, "set", True), AU12L=2.0)
    with pytest.raises(ActionUnitError, match="the level of AU12 is not measured here"):
        slider_request(values, {}, SLIDERS, "set", True, {})
    with pytest.raises(ActionUnitError, match="not measured here"):
        levels({"AU12": 1.0}, {})


def test_levels_are_measured_plus_asked_within_the_scale():
    assert levels({"AU25": -3.0, "AU12": 2.5}, MEASURED) == {"AU12": 4.5, "AU25": 0.0}
