"""Tables of a report, as values and as Markdown."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

DASH = "–"
PAPER_NOTE = "the paper's own numbers: other data, other scorer, not to be ranked with those above"


class Cell(NamedTuple):
    """One cell of a table; `note` is set smaller, `span` counts columns."""

    text: str
    note: str = ""
    best: bool = False
    span: int = 1


class Table(NamedTuple):
    head: list[str]
    rows: list[list[Cell]]
    published: list[list[Cell]] = []  # noqa: RUF012 - never changed
    divider: str = ""


def number(value: float | None, digits: int = 3, sign: str = "") -> str:
    """Returns the rounded number, or a dash if nothing was measured."""
    if value is None or not math.isfinite(value):
        return DASH
    return f"{round(value, digits) + 0.0:{sign}.{digits}f}"  # + 0.0: no "-0.00"


def interval(found: dict, digits: int, sign: str = "") -> str:
    if found.get("low") is None or found.get("high") is None:
        return ""
    return f"[{number(found['low'], digits, sign)}, {number(found['high'], digits, sign)}]"


def escaped(text: str) -> str:
    """Returns text that Markdown shows as it is, on one line."""
    text = " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;")
    return text.replace("|", "\\|").replace("*", "\\*").replace("`", "\\`")


def markdown(head: Sequence[str], rows: Iterable[Sequence[Cell]]) -> str:
    """A Markdown table; rows with spans are filled up with empty cells."""
    lines = [list(map(escaped, head)), ["---", *["---:"] * (len(head) - 1)]]
    for row in rows:
        texts: list[str] = []
        for cell in row:
            text = escaped(cell.text)
            text = f"**{text}**" if cell.best else text
            note = cell.note if cell.note.startswith("[") or not cell.note else f"({cell.note})"
            texts += [f"{text} {escaped(note)}".strip(), *[""] * (cell.span - 1)]
        lines.append(texts)
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
