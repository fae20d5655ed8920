"""Results of `magicedit evaluate` for a model card."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from magicedit.errors import ModelError
from magicedit.files import read_json, shown
from magicedit.vocabulary import quoted

LARGEST_SUMMARY = 20_000_000  # bytes

# Of the headline of a report, by the part before the scorer
TITLES = {
    "achieved": "share of the request that was achieved",
    "au_mae": "error over all action units, intensity steps",
    "identity_distance": "identity distance (L2 of dlib's descriptors)",
    "background_rmse": "change of the background (RMSE, of 0 to 1)",
    "pose_degrees": "change of the head's pose, degrees",
    "seconds": "seconds an edit",
}
BASELINES = ("copy", "warp")


@dataclass(frozen=True)
class MeasuredResults:
    """Results of one editor of a report.

    Attributes:
        rows: `results` of `model_card`: by action unit the requested and the measured change, or, for
            protocols without single-unit requests, the headline.
        note: `results_note` of it: protocol, people, date, command, and the headline where it is not `rows`.
        fingerprint: of the model's files, if the report has it.
    """

    rows: dict[str, Mapping[str, object]]
    note: str
    fingerprint: str | None


def read_results(path: str | Path, editor: str | None = None) -> MeasuredResults:
    """Reads the results of one editor from a `summary.json`.

    editor: its name in the report; default: the only one that is not a baseline. Raises ModelError where the
    file is no such report, or has no such editor.
    """
    path = Path(path)
    summary = read_json(path, ModelError, limit=LARGEST_SUMMARY)
    try:
        editors = {name: e for name, e in summary["editors"].items() if e["status"] == "ran"}
        chosen = _chosen(editors, editor, path)
        return _results(summary, editors[chosen])
    except ModelError:
        raise
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{shown(path)} is not a report of `magicedit evaluate` ({quoted(error)}); give its summary.json"
        ) from error


def _chosen(editors: Mapping[str, Any], editor: str | None, path: Path) -> str:
    if editor is not None:
        if editor not in editors:
            raise ModelError(
                f"{path} has no editor {editor!r} that ran; it has {', '.join(editors) or 'none'}"
            )
        return editor
    models = [name for name in editors if name not in BASELINES]
    if len(models) != 1:
        raise ModelError(
            f"{path} measured {', '.join(models) or 'baselines only'}; say which of them this model is"
        )
    return models[0]


def _results(summary: Mapping[str, Any], editor: Mapping[str, Any]) -> MeasuredResults:
    about, protocol = summary["circumstances"], summary["protocol"]
    headline = {}
    for name, figure in editor["headline"].items():
        metric, _, scorer = name.partition("/")
        if metric in TITLES:
            title = TITLES[metric] + (f", by {scorer}" if scorer else "")
            headline[title] = {"mean": figure["mean"], "95 % interval": _interval(figure)}
    note = (
        f"Protocol `{protocol['name']}` ({protocol['title'][0].lower() + protocol['title'][1:]}) on "
        f"{summary['people']} people, {editor['edits']} edits of which {editor['failed']} failed, "
        f"{about['date']}, {about['hardware']['cpu']}, by `{about['command']}`."
    )
    scorers = [
        f"*{name}*: {known['title']}; {known['relation']}." for name, known in summary["scorers"].items()
    ]
    note += " Scorers: " + " ".join(scorers)
    fingerprint = editor["settings"].get("fingerprint")
    if not (rows := _by_unit(editor["control"])):
        return MeasuredResults(headline, note, fingerprint)
    lines = [f"- {name}: {row['mean']:.4g} {row['95 % interval']}" for name, row in headline.items()]
    note += "\n\nOver all edits, mean and 95 % interval over people:\n\n" + "\n".join(lines)
    note += "\n\nBy action unit, what was asked and the change that was measured, in intensity steps:"
    return MeasuredResults(rows, note, fingerprint)


def _by_unit(control: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, object]]:
    """The strongest level requested of each unit; if a scorer's level differs, its cell states it."""
    rows: dict[str, dict[str, object]] = {}
    for scorer, units in control.items():
        for unit, response in units.items():
            level = max(response["levels"], key=lambda level: (abs(level["asked"]), level["asked"]))
            asked = f"{level['asked']:+g}"
            row = rows.setdefault(unit, {"asked": asked})
            other = "" if row["asked"] == asked else f" (asked {asked})"
            row[scorer] = f"{level['mean']:+.2f} {_interval(level)}{other}"
    return rows


def _interval(figure: Mapping[str, float | None]) -> str:
    """Returns the interval as text; a single person has none."""
    if figure["low"] is None:
        return "[–]"
    return f"[{figure['low']:.3g}, {figure['high']:.3g}]"
