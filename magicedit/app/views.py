"""Words and tables of the page: names of controls, and requested beside measured action units."""

import html
from collections.abc import Mapping

from magicedit.action_units import DESCRIPTIONS, PLAIN_WORDS, UNSEEN, is_angle, level_range
from magicedit.app.messages import listed
from magicedit.editor import FaceEdit
from magicedit.faces.measure import SEEN_BY_LANDMARKS
from magicedit.vocabulary import SIDES, whole_name

SMALLEST_TOLD = 0.05  # intensity steps; smaller requests would read as 0.0


def describe(name: str) -> str:
    """ "AU12L" -> "lip corner puller, the subject's left"; nothing for a unit without a description."""
    whole = whole_name(name)
    told = (DESCRIPTIONS.get(whole), SIDES.get(name.removeprefix(whole)))
    return ", ".join(filter(None, told))


def titled(name: str) -> str:
    """ "AU12L" -> "smile · AU12L, the subject's left"; plain words first, angles in degrees."""
    whole = whole_name(name)
    side = SIDES.get(name.removeprefix(whole))
    code = f"{name}{' (°)' if is_angle(name) else ''}"
    words = PLAIN_WORDS.get(whole, DESCRIPTIONS.get(whole))
    return (f"{words} · {code}" if words else code) + (f", {side}" if side else "")


def reached_levels(edit: FaceEdit) -> dict[str, float]:
    """Returns the intensity of each requested, measured unit after the edit, by the scorer that sees it."""
    return {name: within_scale(name, value) for name, value in edit.achieved.items()}


def within_scale(name: str, value: float) -> float:
    low, high = level_range(name)
    return min(max(value, low), high)


def bars(edits: Mapping[int, FaceEdit]) -> str:
    """Returns HTML tables of requested and measured levels, as bars along their scales and as numbers."""
    if not edits:
        return ""
    tables = []
    for index, edit in edits.items():
        reached = reached_levels(edit)
        rows = [
            _row(name, delta, edit.before, reached)
            for name, delta in edit.requested.items()
            if abs(delta) >= SMALLEST_TOLD
        ]
        notes = [f"identity distance {edit.identity_distance:.2f}"] if edit.identity_distance else []
        if edit.reached is not None:
            told = "reached" if edit.reached else "not reached"
            notes.append(f"target {told} after {edit.edits} edit{'s' * (edit.edits != 1)}")
        tables.append(
            f"<table class='me-bars'><caption>Face {index + 1}"
            f"{''.join(' · ' + note for note in notes)}</caption>"
            "<thead><tr><th scope='col'>unit</th><th scope='col'>requested</th>"
            "<th scope='col'>before → wanted</th><th scope='col'>measured</th>"
            "<th scope='col'><span class='me-hidden'>bar</span></th></tr></thead>"
            f"<tbody>{''.join(rows)}</tbody></table>{listed(edit.warnings)}"
        )
    return "".join(tables)


def _row(name: str, delta: float, before: Mapping[str, float], reached: Mapping[str, float]) -> str:
    title = f"<th scope='row'>{name}<small>{html.escape(describe(name))}</small></th>"
    if name not in before or whole_name(name) in UNSEEN:
        return f"<tr>{title}<td>{delta:+.1f}</td><td>–</td><td>–</td><td></td></tr>"
    unit = "°" if is_angle(name) else ""
    wanted = within_scale(name, before[name] + delta)
    measured = reached.get(name)
    told = "not found" if measured is None else f"{measured:.1f}{unit}"
    if measured is not None and whole_name(name) in SEEN_BY_LANDMARKS:
        told += "<small>by landmarks</small>"
    bar = (
        "<span class='me-bar' aria-hidden='true'>"
        + ("" if measured is None else f"<i style='width:{_percent(name, measured):.0f}%'></i>")
        + f"<b class='me-before' style='left:{_percent(name, before[name]):.0f}%'></b>"
        f"<b class='me-wanted' style='left:{_percent(name, wanted):.0f}%'></b></span>"
    )
    return (
        f"<tr>{title}<td>{delta:+.1f}{unit}</td><td>{before[name]:.1f} → {wanted:.1f}{unit}</td>"
        f"<td>{told}</td><td>{bar}</td></tr>"
    )


def _percent(name: str, value: float) -> float:
    """Place of a level along its scale."""
    low, high = level_range(name)
    return 100 * (within_scale(name, value) - low) / (high - low)
