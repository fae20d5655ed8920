"""Converts the positions of a face's sliders to its request and back.

Each unit with two sides has two sliders; if linked, the left one counts for both. In mode "add" a slider is a
variation, in mode "set" a target intensity.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

from magicedit.action_units import is_angle, level_range, sided_names, vocabulary_of
from magicedit.errors import ActionUnitError
from magicedit.vocabulary import by_number, split_sides, whole_name

Mode = Literal["add", "set"]
Request = dict[str, float]  # canonical AU name, whole or of one side -> variation in intensity steps

ADD_RANGE = (-5.0, 5.0)  # intensity steps: what models are trained on
ONE_WAY = {"AU43"}  # units that only add: closed eyes cannot be opened
STEP = 0.1  # intensity steps


def slider_names(action_units: Sequence[str]) -> tuple[str, ...]:
    """Returns the sliders' names: both sides of a unit that has them ("AU12L", "AU12R"), else the unit."""
    return tuple(name for unit in action_units for name in (sided_names(unit) or (unit,)))


def slider_range(mode: Mode, name: str = "") -> tuple[float, float]:
    """Returns the ends of a slider: intensity steps, or degrees for gaze and head."""
    steps_both_ways = mode == "add" and not is_angle(name) and whole_name(name) not in ONE_WAY
    return ADD_RANGE if steps_both_ways else level_range(name)


def has_sides(request: Request) -> bool:
    """Whether a request names single sides."""
    return any(name != whole_name(name) for name in request)


def slider_values(
    request: Request, measured: Mapping[str, float], names: Sequence[str], mode: Mode, linked: bool
) -> list[float]:
    """Returns positions of the sliders `names`, rounded to STEP, for a face's request and measured levels."""
    values = []
    for name in names:
        low, high = slider_range(mode, name)
        start = 0.0 if mode == "add" else measured.get(whole_name(name) if linked else name, 0.0)
        values.append(round(min(max(start + _asked(request, name), low), high), 1))
    return values


def slider_request(
    values: Sequence[float | None],
    measured: Mapping[str, float],
    names: Sequence[str],
    mode: Mode,
    linked: bool,
    current: Request,
) -> Request:
    """Returns the request of the sliders `names`, after the request `current`.

    A slider at the position of `current` keeps its value, even beyond its range and finer than its steps; so
    does None, an empty number field. Raises ActionUnitError where a level is set of an unmeasured unit.
    """
    request: Request = {}
    positions = slider_values(current, measured, names, mode, linked)
    for name, value, shown in zip(names, values, positions, strict=True):
        unit = whole_name(name)
        if linked and name != unit and name.endswith("R"):
            continue  # the left one counts for both
        meant = unit if linked else name
        if value is None or abs(value - shown) < STEP / 2:
            request[meant] = _asked(current, name)
        elif mode == "add":
            request[meant] = value
        else:
            request[meant] = value - _level(meant, measured)
    units = list(dict.fromkeys(whole_name(name) for name in names))
    for unit in units:
        both = [request.get(name, 0.0) for name in sided_names(unit)]
        if any(both) and abs(both[0] - both[1]) < STEP / 2:  # else the model would run twice
            request |= dict.fromkeys(sided_names(unit), sum(both) / 2)
    return {name: value for name, value in vocabulary_of(units).total([request]).items() if value}


def joined_sides(request: Request, units: Sequence[str]) -> Request:
    """Returns the request with both sides at their mean."""
    left, right = split_sides(request)
    means = {unit: (left.get(unit, 0.0) + right.get(unit, 0.0)) / 2 for unit in units}
    return {unit: value for unit, value in means.items() if value}


def levels(request: Request, measured: Mapping[str, float]) -> dict[str, float]:
    """Returns a request's target levels, in range; ActionUnitError where a unit is not measured."""
    arrived = {}
    for name, delta in request.items():
        low, high = level_range(name)
        arrived[name] = min(max(_level(name, measured) + delta, low), high)
    return by_number(arrived)


def _asked(request: Request, name: str) -> float:
    """Returns the request of a slider's unit and side; the left one for units without sides."""
    return split_sides(request)[name.endswith("R")].get(whole_name(name), 0.0)


def _level(name: str, measured: Mapping[str, float]) -> float:
    if name not in measured:
        raise ActionUnitError(
            f"the level of {name} is not measured here: move sliders in the mode that adds, and save presets "
            "as steps to add"
        )
    return measured[name]
