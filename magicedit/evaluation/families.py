"""What a protocol of emotions says about families of editors: figures from rows, and their tables."""

import itertools
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from magicedit.evaluation.metrics.au_error import LEAST_ROOM, possible_change
from magicedit.evaluation.protocol import SMILE, Protocol
from magicedit.evaluation.scoring import rounded
from magicedit.evaluation.tables import DASH, PAPER_NOTE, Cell, Table, number

Rows = Sequence[Mapping[str, Any]]
SMILES = 0.5  # intensity steps of AU12 from which on a face counts as smiling more
_OF_SMILES = ("psnr_real", "st_lpips_real", "sharpness", "identity_distance", "mobileface_cosine")


def medians(rows: Rows, columns: Iterable[str]) -> dict[str, float | None]:
    """Median of each column over the rows that have it; None where none has."""
    found = {column: [row[column] for row in rows if row.get(column) is not None] for column in columns}
    return {column: statistics.median(values) if values else None for column, values in found.items()}


def smiling(au12: Sequence[Mapping[str, float | None]]) -> dict[str, Any]:
    """By scorer, how many people smile and the median change of AU12, of a mapping by scorer per person."""
    scorers = [scorer for scorer, value in au12[0].items() if value is not None] if au12 else []
    return {
        "people": len(au12),
        "smile": {s: sum(values[s] >= SMILES for values in au12) for s in scorers},
        "au12": {s: statistics.median(values[s] for values in au12) for s in scorers},
    }


def sees(row: Mapping[str, Any], scorer: str) -> bool:
    """Whether a scorer sees what an edit asks for: of the units that had room to move by `LEAST_ROOM`, at
    least half moved in the asked direction by `SMILES`."""
    before = row["before"].get(scorer) or row["before"]["blendshapes"]
    changed = row["changed"][scorer]
    room = {au: v for au, v in possible_change(row["asked"], before).items() if abs(v) >= LEAST_ROOM}
    moved = [changed[au] * (1 if value > 0 else -1) >= SMILES for au, value in room.items() if au in changed]
    return bool(moved) and 2 * sum(moved) >= len(moved)


def smoothness(levels: Sequence[float]) -> dict[str, float] | None:
    """How evenly AU12 grows over requests of evenly growing strength, from nothing to the whole emotion.

    levels: measured changes of AU12, steps, the first 0. `roughness`: the largest step over the mean one,
    both without sign; 1 is even, the number of steps a single leap. `monotony`: the net change over the
    length of the way; 1 never goes back. None where AU12 grows by less than `SMILES`: noise would decide.
    """
    steps = [after - before for before, after in itertools.pairwise(levels)]
    if levels[-1] - levels[0] < SMILES:
        return None
    way = sum(map(abs, steps))
    return {
        "roughness": max(map(abs, steps)) * len(steps) / way,
        "monotony": (levels[-1] - levels[0]) / way,
    }


def family_summary(rows: Rows, scorers: Iterable[str], protocol: Protocol) -> dict[str, Any]:
    """One editor's figures by section; medians over people.

    `smile`: of the whole smile. `emotions`: by emotion, on how many people each scorer `sees` it. `between`:
    `smoothness` by scorer, and of how many people. `back`: PSNR to the photograph of the smile and of what
    is left once it was taken back. `zero`: whether a request of nothing returns the photograph, and PSNR of
    the networks' own picture to their crop (None: equal). Sections without successful edits are absent.

    rows: the editor's successful ones.
    """
    scorers = list(scorers)
    kinds = {kind: [r for r in rows if r["kind"] == kind] for kind in ("emotion", "between", "back", "zero")}
    emotions = dict.fromkeys(edit.emotion for edit in protocol.edits if edit.kind == "emotion")
    of = {emotion: [row for row in kinds["emotion"] if row["request"] == emotion] for emotion in emotions}
    found: dict[str, Any] = {
        "emotions": {
            emotion: {"people": len(own), "seen": {s: sum(sees(row, s) for row in own) for s in scorers}}
            for emotion, own in of.items()
            if own
        }
    }
    smiles = of.get(SMILE)
    if smiles:
        errors = [row.get("au_mse_real", {}) for row in smiles]
        found["smile"] = (
            smiling([{s: row["changed"][s].get("AU12") for s in scorers} for row in smiles])
            | medians(smiles, _OF_SMILES)
            | {"au_mse_real": medians(errors, scorers)}
        )
    if smiles and kinds["between"]:
        found["between"] = {s: _between(smiles, kinds["between"], s) for s in scorers}
    if smiles and kinds["back"]:
        returned = medians(kinds["back"], ["psnr_input"])["psnr_input"]
        found["back"] = {"edited": medians(smiles, ["psnr_input"])["psnr_input"], "returned": returned}
    if kinds["zero"]:
        exact = all(row["pixels_changed"] == 0 for row in kinds["zero"])
        found["zero"] = {"exact": exact} | medians(kinds["zero"], ["psnr_own"])
    found["seconds"] = medians([*kinds["emotion"], *kinds["between"]], ["seconds"])["seconds"]
    return rounded(found)


def _between(smiles: Rows, between: Rows, scorer: str) -> dict[str, Any]:
    found = []
    for whole in smiles:
        part = [row for row in between if row["identity"] == whole["identity"]]
        part.sort(key=lambda row: row["asked"]["AU12"])
        found.append(smoothness([0.0, *(row["changed"][scorer]["AU12"] for row in (*part, whole))]))
    known = [each for each in found if each is not None]
    return {"people": len(known)} | medians(known, ("roughness", "monotony"))


# --- Tables ---


def family_tables(summary: Mapping[str, Any]) -> dict[str, Table]:
    """Title -> table of a protocol of emotions; editors that did not run have rows that say so."""
    tables = {
        "Make this person smile": _smile_table(summary),
        "Six emotions": _emotion_table(summary),
        "To a smile and back": _way_table(summary),
        "Cost": _cost_table(summary),
    }
    return {title: table for title, table in tables.items() if table.rows}


def _table(
    summary: Mapping[str, Any], head: list[str], cells: Callable[[Mapping[str, Any]], list[Cell]]
) -> Table:
    """A row per editor: `cells` of its part of the summary, or that it was not run."""
    rows = []
    for name, data in summary["editors"].items():
        ran = data["status"] == "ran"
        failed = f"{data['failed']} of {data['edits']} failed" if data.get("failed") else ""
        found = cells(data) if ran else [Cell(data["status"], span=len(head) - 1)]
        rows.append([Cell(name, failed), *found])
    return Table(head, rows)


def _by_scorer(values: Mapping[str, float | None], digits: int) -> Cell:
    return Cell(" / ".join(number(value, digits) for value in values.values()) or DASH)


def _counts(found: Mapping[str, Any], key: str) -> Cell:
    """ "9 / 10 of 10": people by scorer, of how many."""
    counts = found.get(key, {})
    return Cell(f"{' / '.join(map(str, counts.values()))} of {found['people']}" if counts else DASH)


def _smile_table(summary: Mapping[str, Any]) -> Table:
    """Section (a), with the paper's own PSNR as published rows."""
    head = ["family", f"smiles ({' / '.join(summary['scorers'])})", "AU12 (steps)"]
    head += ["PSNR to the real smile (dB)", "ST-LPIPS to it", "AU error to it (steps²)", "sharpness of it"]
    head += ["identity distance", "MobileFace cosine"]

    def cells(data: Mapping[str, Any]) -> list[Cell]:
        found = data["families"].get("smile")
        if found is None:
            return [Cell("cannot smile", span=len(head) - 1)]
        return [
            _counts(found, "smile"),
            _by_scorer(found["au12"], 1),
            Cell(number(found["psnr_real"], 2)),
            Cell(number(found["st_lpips_real"], 3)),
            _by_scorer(found["au_mse_real"], 2),
            Cell(number(found["sharpness"], 2)),
            Cell(number(found["identity_distance"], 3)),
            Cell(number(found["mobileface_cosine"], 3)),
        ]

    table, paper = _table(summary, head, cells), summary.get("published")
    if not paper:
        return table
    psnr, columns = head.index("PSNR to the real smile (dB)"), len(head)
    published = [
        [Cell(row["name"]), *[Cell(DASH)] * (psnr - 1), Cell(f"{row['values'][0]:g}")]
        + [Cell(DASH)] * (columns - psnr - 1)
        for row in paper["rows"]
    ]
    return table._replace(
        published=published, divider=f"{paper['table']} of {paper['source']} ({PAPER_NOTE})"
    )


def _emotion_table(summary: Mapping[str, Any]) -> Table:
    """Section (b): people on whom each scorer sees an emotion; an emotion that an editor lacks says so."""
    emotions = dict.fromkeys(
        emotion
        for data in summary["editors"].values()
        for emotion in (*data.get("families", {}).get("emotions", ()), *data.get("unable", ()))
    )

    def cells(data: Mapping[str, Any]) -> list[Cell]:
        found, unable = data["families"]["emotions"], data.get("unable", ())
        return [
            Cell("cannot") if emotion in unable else _counts(found.get(emotion, {}), "seen")
            for emotion in emotions
        ]

    return _table(summary, ["family", *emotions], cells)


def _way_table(summary: Mapping[str, Any]) -> Table:
    """Sections (c) and (d)."""
    scorers = list(summary["scorers"])
    head = ["family", *(f"largest step over the mean, {scorer}" for scorer in scorers)]
    head += [*(f"monotony, {scorer}" for scorer in scorers), "smile to its photograph (dB)"]
    head += ["taken back (dB)", "request of nothing", "networks' own of nothing (dB)"]

    def cells(data: Mapping[str, Any]) -> list[Cell]:
        between, back, zero = (data["families"].get(name, {}) for name in ("between", "back", "zero"))
        ways = [
            Cell(
                number(between.get(scorer, {}).get(key), 2),
                f"n={between[scorer]['people']}" if between else "",
            )
            for key in ("roughness", "monotony")
            for scorer in scorers
        ]
        returned = [Cell(number(back.get(key), 1)) for key in ("edited", "returned")]
        exact = "the photograph" if zero.get("exact") else "changed" if zero else DASH
        return [*ways, *returned, Cell(exact), Cell(number(zero.get("psnr_own"), 1))]

    return _table(summary, head, cells)


def _cost_table(summary: Mapping[str, Any]) -> Table:
    """Section (e)."""
    head = ["family", "s/edit", "first edit (s)", "peak memory (MB)", "parameters (million)"]
    head += ["side (px)", "images seen (thousand)", "training images/s", "minutes trained"]

    def cells(data: Mapping[str, Any]) -> list[Cell]:
        trained = data.get("training") or {}
        return [
            Cell(number(data["families"]["seconds"], 2)),
            Cell(number(data.get("cold_seconds"), 1)),
            Cell(number(data.get("peak_memory_mb"), 0)),
            Cell(number(data.get("parameters") and data["parameters"] / 1e6, 1)),
            Cell(str(data.get("resolution") or DASH)),
            Cell(number(trained.get("images_seen") and trained["images_seen"] / 1000, 0)),
            Cell(number(trained.get("images_per_second"), 1)),
            Cell(number(trained.get("minutes"), 0), trained.get("note", "")),
        ]

    return _table(summary, head, cells)


def short_table(summary: Mapping[str, Any]) -> Table:
    """The most telling columns of `family_tables`."""
    scorers = list(summary["scorers"])
    head = ["family", f"smiles ({' / '.join(scorers)})", "PSNR to the real smile (dB)", "identity distance"]
    head += ["of all emotions seen", "s/edit", "parameters (million)", "minutes trained"]

    def cells(data: Mapping[str, Any]) -> list[Cell]:
        found, smile = data["families"], data["families"].get("smile", {})
        people = sum(each["people"] for each in found["emotions"].values())
        seen = [sum(each["seen"][s] for each in found["emotions"].values()) for s in scorers]
        unable = f"cannot: {', '.join(data['unable'])}" if data.get("unable") else ""
        return [
            _counts(smile, "smile"),
            Cell(number(smile.get("psnr_real"), 2)),
            Cell(number(smile.get("identity_distance"), 3)),
            Cell(f"{' / '.join(map(str, seen))} of {people}", unable),
            Cell(number(found["seconds"], 2)),
            Cell(number(data.get("parameters") and data["parameters"] / 1e6, 1)),
            Cell(number((data.get("training") or {}).get("minutes"), 0)),
        ]

    return _table(summary, head, cells)
