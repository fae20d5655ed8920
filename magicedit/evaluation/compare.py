"""Compares two reports edit by edit: the same person, photograph, request and seed in both."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

from magicedit.errors import DatasetError, OutputError
from magicedit.evaluation import report
from magicedit.evaluation.metrics.intervals import bootstrap
from magicedit.evaluation.scoring import AU_COLUMNS
from magicedit.files import shown, write_text

_PAIRED_BY = ("identity", "photograph_sha256", "request", "seed")  # a file's name tells less than its content
_SHOWN = ("identity", "photograph", "request", "seed")
_MOST = 6  # number of most different edits shown
_ARROWS = {"lower": "← b better ({})", "higher": "b better → ({})", "near 1": "{}"}


def compare(a: Path, b: Path, output: Path, editor_a: str | None = None, editor_b: str | None = None) -> dict:
    """Pairs the edits of two REPORT folders, writes compare.html, .md and .json, returns the last.

    Editors of the same name are compared; so are the only editors of two reports. `editor_a` and `editor_b`
    choose others. Every difference is b minus a, a mean over pairs with its 95 % bootstrap interval over
    identities (of one identity there is none: low and high are None), with the shares of pairs in which
    each is better. Achieved changes are in steps in the direction asked for, by action unit.
    Raises DatasetError for folders that are no reports, editors that are not in them and reports without a
    common edit; OutputError where `output` cannot be written. Different protocols are noted in the result.
    """
    folders = [Path(a), Path(b)]
    (rows_a, summary_a), (rows_b, summary_b) = reports = [report.load_report(folder) for folder in folders]
    summaries = [summary_a, summary_b]
    notes = _notes(summaries)
    scorers = [s for s in summary_a.get("scorers", {}) if s in summary_b.get("scorers", {})]
    pairs = []
    for name_a, name_b in _editors(*(list(report.ran(summary)) for summary in summaries), editor_a, editor_b):
        edits_a, edits_b = _edits(rows_a, name_a), _edits(rows_b, name_b)
        common = [(edits_a[key], edits_b[key]) for key in edits_a if key in edits_b]
        if not common:
            notes.append(f"no common edits of {name_a} in a and {name_b} in b")
            continue
        pair = {"editor_a": name_a, "editor_b": name_b, "edits": len(common)}
        pair |= {"only_a": len(edits_a) - len(common), "only_b": len(edits_b) - len(common)}
        pair["identities"] = len({row["person"] for row, _ in common})
        pairs.append(pair | _differences(common, scorers))
    if not pairs:
        raise DatasetError(
            f"no common edits: no person, photograph, request and seed succeeded in both {folders[0]} and "
            f"{folders[1]}; evaluate both with the same protocol, people and seed"
        )
    sides = [
        {"folder": shown(folder)} | {key: s.get(key, {}) for key in ("protocol", "circumstances")}
        for folder, s in zip(folders, summaries, strict=True)
    ]
    result = {"a": sides[0], "b": sides[1], "notes": notes, "pairs": pairs}
    _write(result, reports, folders, Path(output))
    return result


def _editors(a: list[str], b: list[str], editor_a: str | None, editor_b: str | None) -> list[tuple[str, str]]:
    """Returns the pairs of editors to compare."""
    for side, name, there in (("a", editor_a, a), ("b", editor_b, b)):
        if not there:
            raise DatasetError(f"no editor ran in report {side}; evaluate one first")
        if name is not None and name not in there:
            raise DatasetError(f"no editor {name!r} ran in report {side}; there are {', '.join(there)}")
    if editor_a is None and editor_b is None:
        if len(a) == len(b) == 1:
            return [(a[0], b[0])]
        if same := [(name, name) for name in a if name in b]:
            return same
    given = editor_a or editor_b
    choice = [
        name or (given if given in there else there[0] if len(there) == 1 else None)
        for name, there in ((editor_a, a), (editor_b, b))
    ]
    if None in choice:
        raise DatasetError(
            f"say which editors to compare (editor_a, editor_b): a has {', '.join(a)}; b has {', '.join(b)}"
        )
    return [(choice[0], choice[1])]


def _notes(summaries: list[dict]) -> list[str]:
    """Returns reasons why the two may not be comparable."""
    protocols = [
        " ".join(str(s.get("protocol", {}).get(key, "?")) for key in ("name", "version")) for s in summaries
    ]
    notes = []
    if protocols[0] != protocols[1]:
        notes.append(
            f"different protocols: a {protocols[0]}, b {protocols[1]}; only common edits are compared"
        )
    for side, summary, other in (("a", *summaries), ("b", *summaries[::-1])):
        for what, there in (("editors", report.ran), ("scorers", lambda s: s.get("scorers", {}))):
            if alone := [name for name in there(summary) if name not in there(other)]:
                notes.append(f"{what} only in {side}: {', '.join(alone)}")
    return notes


def _edits(rows: list[dict], editor: str) -> dict[tuple, dict]:
    """Returns successful edits by person, photograph, request and seed."""
    own = (row for row in rows if row["editor"] == editor and not row.get("error"))
    return {tuple(row[key] for key in _PAIRED_BY): row for row in own}


def _value(row: dict, key: str) -> float | None:
    name, _, scorer = key.partition("/")
    return (row.get(name) or {}).get(scorer) if scorer else row.get(name)


def _badness(key: str, value: float) -> float:
    """Returns a number that is lower for a better value of the metric."""
    return {"lower": value, "higher": -value, "near 1": abs(value - 1)}[report.metric(key).better]


def _differences(common: Sequence[tuple[dict, dict]], scorers: Sequence[str]) -> dict:
    """Paired differences b - a of metrics that both measured, and of the achieved change by action unit."""
    metrics = {}
    for name in filter(lambda name: report.METRICS[name].better, report.METRICS):
        for key in [f"{name}/{scorer}" for scorer in scorers] if name in AU_COLUMNS else [name]:
            values = [(_value(x, key), _value(y, key), x["person"]) for x, y in common]
            values = [value for value in values if None not in value[:2]]
            if values:
                badness = [(_badness(key, x), _badness(key, y)) for x, y, _ in values]
                metrics[key] = _estimate([(y - x, who) for x, y, who in values]) | {
                    "mean_a": sum(x for x, _, _ in values) / len(values),
                    "mean_b": sum(y for _, y, _ in values) / len(values),
                    "better": report.metric(key).better,
                    "b_better": sum(y < x for x, y in badness) / len(values),
                    "a_better": sum(x < y for x, y in badness) / len(values),
                }
    units: dict[str, dict] = {}
    for scorer in scorers:
        found: dict[str, list] = {}
        for x, y in common:
            for au, asked in x["asked"].items():
                changes = [((row.get("changed") or {}).get(scorer) or {}).get(au) for row in (x, y)]
                if asked and None not in changes:
                    step = math.copysign(1, asked) * (changes[1] - changes[0])
                    found.setdefault(au, []).append((step, x["person"]))
        units[scorer] = {au: _estimate(values) for au, values in found.items()}
    by = next(
        (k for k in (*(f"au_mse_asked/{s}" for s in scorers), "identity_distance") if k in metrics), None
    )
    scored = [(_value(x, by), _value(y, by), x, y) for x, y in common] if by else []
    scored = [edit for edit in scored if None not in edit[:2]]
    scored.sort(key=lambda edit: -abs(edit[1] - edit[0]))
    most = [
        {key: x.get(key) for key in _SHOWN}
        | {"metric": by, "a": in_a, "b": in_b, "original": x.get("original"), "picture_a": x.get("picture")}
        | {"picture_b": y.get("picture")}
        for in_a, in_b, x, y in scored[:_MOST]
    ]
    return {"metrics": metrics, "action_units": units, "differ_most": most}


def _estimate(values: Sequence[tuple[float, str]]) -> dict:
    found = bootstrap([value for value, _ in values], [who for _, who in values])
    return {"difference": found.mean, "low": found.low, "high": found.high, "n": found.n}


def _table(pair: dict, headlines: Sequence[dict]) -> report.Table:
    """Headlines of both reports side by side, then the paired differences."""
    rows = []
    for key, found in pair["metrics"].items():
        digits = report.metric(key).digits
        sides = [headline.get(key) or {} for headline in headlines]
        shares = f"{found['b_better']:.0%} / {found['a_better']:.0%}"
        apart = None not in (found["low"], found["high"]) and (found["low"] > 0 or found["high"] < 0)
        rows.append(
            [report.Cell(report.title(key), "better: " + found["better"])]
            + [
                report.Cell(report.number(side.get("mean"), digits), report.interval(side, digits))
                for side in sides
            ]
            + [
                report.Cell(
                    report.number(found["difference"], digits, "+"),
                    report.interval(found, digits, "+"),
                    best=apart,
                )
            ]
            + [report.Cell(str(found["n"])), report.Cell(shares)]
        )
    head = [f"a: {pair['editor_a']}, all its edits", f"b: {pair['editor_b']}, all its edits"]
    return report.Table(["metric", *head, "b − a, paired", "pairs", "b better / a better"], rows)


def _unit_cell(found: dict) -> report.Cell:
    note = f"{report.interval(found, 2, '+')} n={found['n']}" if found else ""
    return report.Cell(report.number(found.get("difference"), 2, "+"), note)


def _write(result: dict, reports: Sequence[tuple], folders: Sequence[Path], output: Path) -> None:
    from magicedit.evaluation import plots

    shown, text = [], ["# Comparison", *(f"- {side}: {result[side]['folder']}" for side in "ab")]
    text += [f"- note: {note}" for note in result["notes"]] + [""]
    for index, pair in enumerate(result["pairs"]):
        names = pair["editor_a"], pair["editor_b"]
        headlines = [
            report.ran(s)[name].get("headline", {}) for (_, s), name in zip(reports, names, strict=True)
        ]
        table, units = _table(pair, headlines), report.by_unit(pair["action_units"], _unit_cell)
        panels = [
            (
                report.title(key).partition(" (")[0],
                _ARROWS[report.metric(key).better].format(report.metric(key).unit or "difference"),
                [("", f["difference"], f["low"], f["high"])],
            )
            for key, f in pair["metrics"].items()
        ]
        unit_panels = [
            (
                scorer,
                "achieved change, b − a (steps)",
                [(au, *map(f.get, ("difference", "low", "high"))) for au, f in t.items()],
            )
            for scorer, t in pair["action_units"].items()
            if t
        ]
        shown.append(
            {
                "pair": pair,
                "table": table,
                "units": units,
                "plot": plots.differences(panels, 4, f"metrics{index}"),
                "units_plot": plots.differences(unit_panels, 2, f"units{index}"),
                "edits": [
                    edit
                    | {key: report.picture(folders[0], edit[key]) for key in ("original", "picture_a")}
                    | {"picture_b": report.picture(folders[1], edit["picture_b"])}
                    for edit in pair["differ_most"]
                ],
            }
        )
        text += [f"## {names[0]} (a) and {names[1]} (b)", "", f"{pair['edits']} common edits", ""]
        text += [
            report.markdown(table.head, table.rows),
            "Achieved change, b − a, steps:",
            "",
            report.markdown(units.head, units.rows),
        ]
    page = report.render("compare.html.j2", result=result, shown=shown, digits=report.number)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise OutputError(f"the folder {shown(output)} cannot be made ({error}); choose another") from error
    write_text(output / "compare.json", json.dumps(result, indent=2) + "\n")
    write_text(output / "compare.md", "\n".join(text))
    write_text(output / "compare.html", page)
