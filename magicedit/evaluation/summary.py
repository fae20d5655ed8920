"""Computes the report's figures from rows, without reading pictures."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from magicedit.action_units import sided_names
from magicedit.data.labels import match_labels, read_labels
from magicedit.errors import DatasetError
from magicedit.evaluation.editors import Entrant
from magicedit.evaluation.families import family_summary
from magicedit.evaluation.metrics.au_error import LEAST_ROOM, possible_change
from magicedit.evaluation.metrics.control import crosstalk, response, side_leak
from magicedit.evaluation.metrics.intervals import bootstrap
from magicedit.evaluation.protocol import Protocol
from magicedit.evaluation.scoring import AU_COLUMNS, SCORERS, au_columns, rounded
from magicedit.vocabulary import whole_name

Rows = Sequence[Mapping[str, Any]]
SCALARS = (
    *("identity_distance", "arcface_cosine", "mobileface_cosine"),
    *("background_rmse", "pose_degrees", "pose_matrix"),
    *("ssim", "lpips", "st_lpips", "st_lpips_mouth", "unrequested_change", "pixels_changed", "seconds"),
)
_LABELS_NOTE = "intensities 0 to 5 that another tool read from the same crops"


def read_intensities(
    labels: str | Path, scale: float | None, aus: tuple[str, ...]
) -> dict[str, dict[str, float]]:
    """Reads the AU intensities, 0 to 5, of a label file by picture.

    Raises DatasetError where it is unreadable, its scale is unknown, or it has none of the AUs `aus`.
    """
    intensities = read_labels(labels, scale)
    known = {au for values in intensities.values() for au in values}
    if not known & set(aus):
        raise DatasetError(
            f"{labels} has none of {', '.join(aus)}, but {', '.join(sorted(known)) or 'nothing'}"
        )
    return intensities


def add_labels(
    rows: list[dict[str, Any]], labels: str | Path, scale: float | None, aus: tuple[str, ...]
) -> int:
    """Adds the scorer "labels" to the rows: AU intensities by OpenFace, py-feat or LibreFace of the
    report's `pictures/`, originals included. Returns how many rows it could score.

    Raises DatasetError where the file is unreadable, its scale is unknown, or it names no picture.
    """
    intensities = read_intensities(labels, scale, aus)
    pictures = {row[name] for row in rows for name in ("picture", "original") if row.get(name)}
    names = match_labels(intensities, pictures)
    scored = 0
    for row in rows:
        if row.get("picture") not in names or row.get("original") not in names:
            continue
        before, after = (intensities[names[row[name]]] for name in ("original", "picture"))
        changed = {au: value - before[au] for au, value in after.items() if au in before}
        row["before"]["labels"], row["changed"]["labels"] = before, changed
        columns = au_columns(row["asked"], {"labels": changed}, {"labels": before}, aus)
        for name, values in columns.items():
            row[name] = row[name] | values
        scored += 1
    if not scored:
        raise DatasetError(
            f"{labels} names none of the {len(pictures)} pictures of this report; let the tool read the "
            "folder REPORT/pictures and write names such as mini/001/AU12=+3.jpg"
        )
    return scored


def summarise(
    rows: Rows, protocol: Protocol, entrants: Sequence[Entrant], run: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the content of `summary.json` without its circumstances.

    Args:
        rows: of all editors, as `run_protocol` gives them.
        run: content of run.json, for skipped metrics and cold starts.
    """
    scorers = {name: about for name, about in SCORERS.items() if name not in run.get("skipped", {})}
    if scored := sum("labels" in row.get("changed", {}) for row in rows):
        scorers["labels"] = {
            "title": "labels from a file",
            "relation": "whether the tool also labelled what an editor was trained on is not known here",
            "note": f"{_LABELS_NOTE}; of {scored} of {len(rows)} edits",
        }
    counterpart = {variant.published: variant.name for variant in protocol.variants if variant.published}
    published = protocol.published and dict(protocol.published) | {
        "rows": [row | {"editor": counterpart.get(row["name"])} for row in protocol.published["rows"]]
    }
    editors = {}
    for entrant in entrants:
        own = [row for row in rows if row["editor"] == entrant.name]
        about = {"status": "ran" if own else "not run", "settings": dict(entrant.settings)}
        if own and protocol.has_emotions:
            good = [row for row in own if row["error"] is None]
            about["families"] = family_summary(good, scorers, protocol)
            about["unable"] = run.get("unable", {}).get(entrant.name, [])
            about |= run.get("about", {}).get(entrant.name, {})
        editors[entrant.name] = about | (_editor_summary(own, protocol, scorers, run) if own else {})
    return {
        "protocol": protocol.to_json(),
        "people": len({row["person"] for row in rows}),
        "scorers": scorers,
        "skipped": dict(run.get("skipped", {})),
        "editors": editors,
        "published": published,
    }


def _editor_summary(
    rows: Rows, protocol: Protocol, scorers: Mapping[str, Any], run: Mapping[str, Any]
) -> dict[str, Any]:
    good = [row for row in rows if row["error"] is None]
    kinds = {kind: [row for row in good if row["kind"] == kind] for kind in {row["kind"] for row in good}}
    levels = kinds.get("level", [])
    aus = protocol.action_units
    cold = run.get("cold", {}).get(rows[0]["editor"]) or {}
    return {
        "edits": len(rows),
        "asked_edits": sum(row["kind"] != "zero" for row in rows),
        "failed": len(rows) - len(good),
        "headline": headline([row for row in good if row["kind"] not in ("zero", "between", "back")]),
        "control": {scorer: control(levels, scorer, aus) for scorer in scorers},
        "crosstalk": {scorer: _crosstalk(levels, scorer, aus) for scorer in scorers if levels},
        "sides": {scorer: _sides(kinds.get("side", []), scorer) for scorer in scorers},
        "zero_drift": _zero_drift(kinds.get("zero", [])),
        "seed_spread": _seed_spread(kinds.get("seed", []), scorers),
        "groups": groups(good),
        "cold_seconds": cold.get("seconds"),
        "peak_memory_mb": cold.get("peak_memory_mb"),
    }


def headline(rows: Rows) -> dict[str, dict[str, float]]:
    """Returns mean and 95 % interval of every measured metric, those by scorer as "au_mse/blendshapes"."""
    values: dict[str, list[tuple[float, str]]] = {}
    for row in rows:
        for metric in AU_COLUMNS:
            for scorer, value in row.get(metric, {}).items():  # rows of older runs lack newer metrics
                values.setdefault(f"{metric}/{scorer}", []).append((value, row["person"]))
        for metric in SCALARS:
            values.setdefault(metric, []).append((row.get(metric), row["person"]))
    found = {}
    for name, pairs in values.items():
        known = [(value, person) for value, person in pairs if value is not None and math.isfinite(value)]
        if known:
            found[name] = rounded(bootstrap(*zip(*known, strict=True))._asdict())
    return found


def control(levels: Rows, scorer: str, aus: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Returns by AU the measured change at each level and its relation to the possible change; unrequested
    AUs are absent."""
    found = {}
    for au in aus:
        rows = [row for row in levels if au in row["asked"] and au in row["changed"].get(scorer, {})]
        if not rows:
            continue
        asked = [row["asked"][au] for row in rows]
        changed = [row["changed"][scorer][au] for row in rows]
        possible = [_possible(row, scorer) for row in rows]
        curve = []
        for level in sorted(set(asked)):
            at = [(c, row["person"]) for a, c, row in zip(asked, changed, rows, strict=True) if a == level]
            curve.append({"asked": level} | rounded(bootstrap(*zip(*at, strict=True))._asdict()))
        found[au] = {"levels": curve} | rounded(response(possible, changed)._asdict())
    return found


def _possible(row: Mapping[str, Any], scorer: str) -> float:
    """Returns the possible part of a one-AU request on the scale, steps."""
    before = row["before"].get(scorer) or row["before"]["blendshapes"]
    return possible_change(row["asked"], before)[next(iter(row["asked"]))]


def _crosstalk(levels: Rows, scorer: str, aus: Sequence[str]) -> dict[str, Any]:
    edits = []
    for row in levels:
        ((name, _),) = row["asked"].items()
        possible = _possible(row, scorer)
        if abs(possible) >= LEAST_ROOM:
            edits.append((name, possible, row["changed"].get(scorer, {})))
    asked = [au for au in aus if any(name == au for name, _, _ in edits)]
    matrix = crosstalk(edits, aus)
    change = [[None if math.isnan(v) else round(float(v), 4) for v in matrix[aus.index(au)]] for au in asked]
    return {"asked": asked, "changed": list(aus), "change": change}


def _sides(rows: Rows, scorer: str) -> dict[str, dict[str, float | None]]:
    """Returns by AU the mean change of the requested side and of the other, steps."""
    pairs: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        ((name, _),) = row["asked"].items()
        unit, changed = whole_name(name), row["changed"].get(scorer, {})
        (other,) = set(sided_names(unit)) - {name}
        if name in changed and other in changed:
            pairs.setdefault(unit, []).append((changed[name], changed[other]))
    found = {}
    for au, values in pairs.items():
        same, other = zip(*values, strict=True)
        found[au] = rounded(
            {"same": float(np.mean(same)), "other": float(np.mean(other)), "leak": side_leak(same, other)}
        )
    return found


def _zero_drift(rows: Rows) -> dict[str, float] | None:
    """Returns the largest change of any AU, by any scorer, and of pixels, for empty requests."""
    if not rows:
        return None
    changes = [abs(v) for row in rows for changed in row["changed"].values() for v in changed.values()]
    return {
        "max_change": round(max(changes), 4),
        "pixels_changed": max(row["pixels_changed"] for row in rows),
    }


def _seed_spread(rows: Rows, scorers: Iterable[str]) -> dict[str, float] | None:
    """Standard deviation over seeds of the asked AUs' change, steps: mean over people and AUs, by scorer."""
    if not rows:
        return None
    spread = {}
    for scorer in scorers:
        deviations = []
        for subject in {row["identity"] for row in rows}:
            own = [row for row in rows if row["identity"] == subject]
            for au in own[0]["asked"]:
                values = [row["changed"][scorer][au] for row in own if au in row["changed"].get(scorer, {})]
                if len(values) > 1:
                    deviations.append(float(np.std(values, ddof=1)))
        if deviations:
            spread[scorer] = round(float(np.mean(deviations)), 4)
    return spread


def groups(rows: Rows) -> dict[str, dict[str, dict[str, Any]]]:
    """Returns the headline for each value of each data column with more than one value."""
    rows = [row for row in rows if row["kind"] != "zero"]
    columns = sorted({column for row in rows for column in row["group"]})
    found = {}
    for column in columns:
        values = sorted({row["group"].get(column, "not given") for row in rows})
        if len(values) > 1:
            parts = {v: [row for row in rows if row["group"].get(column, "not given") == v] for v in values}
            found[column] = {
                value: {
                    "n": len(part),
                    "people": len({row["person"] for row in part}),
                    "headline": headline(part),
                }
                for value, part in parts.items()
            }
    return found
