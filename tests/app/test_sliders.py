"""From positions of sliders to requests, and back."""

import pytest

from magicedit.action_units import NAMES
from magicedit.app.sliders import has_sides, levels, slider_names, slider_request, slider_values

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
    assert slider_request(values, MEASURED, SLIDERS, mode, linked) == {}


def test_in_mode_set_sliders_stand_at_what_is_measured():
    linked = dict(zip(SLIDERS, slider_values({}, MEASURED, SLIDERS, "set", True), strict=True))
    apart = dict(zip(SLIDERS, slider_values({}, MEASURED, SLIDERS, "set", False), strict=True))
    assert (linked["AU12L"], apart["AU12L"], apart["AU12R"]) == (2.0, 1.5, 2.5)
    assert apart["AU25"] == 1.0
    assert set(slider_values({}, MEASURED, SLIDERS, "add", True)) == {0.0}


def test_linked_sliders_speak_for_both_sides():
    rest = slider_values({}, MEASURED, SLIDERS, "add", True)
    assert slider_request(moved(rest, AU12L=3.0, AU17=-1.0), MEASURED, SLIDERS, "add", True) == {
        "AU12": 3.0,
        "AU17": -1.0,
    }
    rest = slider_values({}, MEASURED, SLIDERS, "set", True)
    assert slider_request(moved(rest, AU12L=3.0), MEASURED, SLIDERS, "set", True) == {"AU12": 1.0}


def test_apart_each_side_is_asked_by_itself():
    rest = slider_values({}, MEASURED, SLIDERS, "set", False)
    request = slider_request(moved(rest, AU12R=0.0), MEASURED, SLIDERS, "set", False)
    assert request == pytest.approx({"AU12R": -2.48})
    assert has_sides(request)
    # Almost the same on both sides: one call of the model, not two
    rest = slider_values({}, MEASURED, SLIDERS, "add", False)
    request = slider_request(moved(rest, AU2L=1.0, AU2R=1.02), MEASURED, SLIDERS, "add", False)
    assert request == pytest.approx({"AU2": 1.01})
    assert not has_sides(request)


@pytest.mark.parametrize("mode", ["add", "set"])
def test_a_request_survives_the_sliders(mode):
    request = {"AU1": 2.0, "AU12L": 1.5, "AU25": -0.5}
    values = slider_values(request, MEASURED, SLIDERS, mode, False)
    again = slider_request(values, MEASURED, SLIDERS, mode, False)
    assert again == pytest.approx(request, abs=0.05)


def test_levels_are_measured_plus_asked_within_the_scale():
    assert levels({"AU25": -3.0, "AU12": 2.5}, MEASURED) == {"AU12": 4.5, "AU25": 0.0}
