"""The report of an evaluation: one self-contained page, its tables in Markdown, the rows.

It reads `rows.jsonl` and `summary.json` of a folder. The only metric computed here is the achieved change of
an edit, for plotting.
"""

import csv
import io
import math
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from magicedit.errors import DatasetError, ImageError, MagicEditError, OutputError, needs_extra
from magicedit.evaluation.families import family_tables
from magicedit.evaluation.run import ROWS, read_rows
from magicedit.evaluation.tables import DASH, PAPER_NOTE, Cell, Table, escaped, interval, markdown, number
from magicedit.files import read_json, replacing, shown, write_text
from magicedit.imaging import open_photo


class Metric(NamedTuple):
    """How a metric is written, and which way is better: "lower", "higher", "near 1" or "" (neither)."""

    title: str
    unit: str
    better: str
    digits: int = 3


# By the key in `headline`, without the scorer; in the order of the tables.
METRICS = {
    "au_mse": Metric("AU MSE", "steps²", "lower"),
    "achieved": Metric("achieved", "share of asked", "near 1", 2),
    "identity_distance": Metric("identity distance", "", "lower"),
    "background_rmse": Metric("background RMSE", "", "lower", 4),
    "pose_matrix": Metric("pose", "matrix", "lower", 4),
    "seconds": Metric("time", "s/edit", "lower", 2),
    "gain": Metric("expression gain", "", "higher", 2),
    "au_mse_asked": Metric("AU MSE of the asked", "steps²", "lower"),
    "au_mae": Metric("AU MAE", "steps", "lower"),
    "arcface_cosine": Metric("ArcFace cosine", "", "higher"),
    "mobileface_cosine": Metric("MobileFace cosine", "", "higher"),
    "pose_degrees": Metric("pose", "degrees", "lower", 2),
    "ssim": Metric("SSIM", "", "higher"),
    "lpips": Metric("LPIPS", "", "lower"),
    "st_lpips": Metric("ST-LPIPS", "", "lower"),
    "st_lpips_mouth": Metric("ST-LPIPS, mouth", "", "lower"),
    "unrequested_change": Metric("unrequested change", "levels", "lower", 2),
    "fid": Metric("FID", "", "lower", 1),
    "pixels_changed": Metric("pixels changed", "", "", 0),
}
HEADLINE = ("au_mse", "achieved", "identity_distance", "background_rmse", "pose_matrix", "seconds")
GROUPED = ("au_mse", "achieved", "identity_distance")
PUBLISHED = {  # column of a published table -> ours that measures the same thing
    "au": "au_mse",
    "identity": "identity_distance",
    "background": "background_rmse",
    "pose": "pose_matrix",
}
FIRST_EDIT = (("cold_seconds", 2), ("peak_memory_mb", 0))  # key and digits
FAILURES = 50  # shown
_TABLES = ("protocol", "scorers", "skipped", "circumstances", "editors")  # of summary.json
_OF_TABLES = ("scorers", "editors")
WALL = 4  # pictures of each kind: best, median, worst


def load_report(folder: Path) -> tuple[list[dict], dict]:
    """Reads the rows, one per edit, and the summary of a REPORT folder. DatasetError for other folders."""
    folder = Path(folder)
    try:
        summary = read_json(folder / "summary.json", DatasetError)
        if not isinstance(summary, dict):
            raise DatasetError("summary.json is not a JSON object")
        if wrong := [name for name in _TABLES if not isinstance(summary.get(name, {}), dict)]:
            raise DatasetError(f"summary.json has no usable {', '.join(wrong)}")
        tables = (table for name in _OF_TABLES for table in summary.get(name, {}).values())
        if not all(isinstance(table, dict) for table in tables):
            raise DatasetError(f"summary.json has no usable {' and '.join(_OF_TABLES)}")
        if not os.path.isfile(folder / ROWS):
            raise DatasetError(f"there is no {ROWS}")
        rows = list(read_rows(folder).values())
    except MagicEditError as error:
        raise DatasetError(
            f"{shown(folder)} is not a report: expected {ROWS} and summary.json as `magicedit evaluate` "
            f"writes them ({error})"
        ) from error
    return rows, summary


def ran(summary: dict) -> dict[str, dict]:
    """The editors that ran, by name."""
    return {name: data for name, data in summary.get("editors", {}).items() if data.get("status") == "ran"}


def achieved_steps(row: dict, scorer: str) -> float | None:
    """Returns the measured change along the requested one, in steps; below 0 in the wrong direction.

    It covers the requested action units that the scorer measures; None if there are none.
    """
    changed = (row.get("changed") or {}).get(scorer) or {}
    asked = {au: value for au, value in row["asked"].items() if value and changed.get(au) is not None}
    if not asked:
        return None
    return sum(changed[au] * value for au, value in asked.items()) / math.hypot(*asked.values())


def metric(key: str) -> Metric:
    return METRICS.get(key.partition("/")[0], Metric(key.partition("/")[0], "", ""))


def title(key: str) -> str:
    """Returns a column head: "au_mse/blendshapes" -> "AU MSE, blendshapes (steps²)"."""
    of, scorer = metric(key), key.partition("/")[2]
    return of.title + (f", {scorer}" if scorer else "") + (f" ({of.unit})" if of.unit else "")


def _cell(headline: dict, key: str, best: bool = False, edits: int | None = None) -> Cell:
    """`edits`: total number; a mean over fewer edits says so."""
    found, digits = headline.get(key) or {}, metric(key).digits
    note = interval(found, digits)
    if edits and found and found["n"] < edits:
        note = f"{note} n={found['n']}".strip()
    return Cell(number(found.get("mean"), digits), note, best)


def _best(editors: dict[str, dict], key: str) -> str | None:
    """Returns the editor that is best by more than the intervals; None where they overlap."""
    sign = {"lower": 1, "higher": -1}.get(metric(key).better)
    found = [(name, data.get("headline", {}).get(key) or {}) for name, data in editors.items()]
    found = [(name, of) for name, of in found if of.get("low") is not None and of.get("high") is not None]
    if sign is None or len(found) < 2:
        return None
    ends = sorted((*sorted((sign * of["low"], sign * of["high"])), name) for name, of in found)
    return ends[0][2] if ends[0][1] < ends[1][0] else None


def _keys(summary: dict, metrics: Iterable[str]) -> list[str]:
    """Returns the headline keys of these metrics that any editor has, one column per scorer."""
    there = {key for data in ran(summary).values() for key in data.get("headline", {})}
    return [
        key
        for name in metrics
        for key in (name, *(f"{name}/{scorer}" for scorer in summary.get("scorers", {})))
        if key in there
    ]


def _values(summary: dict, keys: Sequence[str]) -> Table:
    """Editors by metrics, including those that did not run; published numbers are separate."""
    editors, rows = ran(summary), []
    best = {key: _best(editors, key) for key in keys}
    for name, data in summary.get("editors", {}).items():
        if name in editors:
            failed = f"{data['failed']} of {data.get('edits', DASH)} failed" if data.get("failed") else ""
            headline, asked = data.get("headline", {}), data.get("asked_edits")
            cells = [_cell(headline, key, best[key] == name, asked) for key in keys]
            rows.append([Cell(name, failed), *cells])
        else:
            rows.append([Cell(name), Cell(data.get("status", "not run"), span=max(len(keys), 1))])
    return Table(["editor", *map(title, keys)], rows)


def _headline(summary: dict) -> Table:
    keys = _keys(summary, HEADLINE)
    table, paper = _values(summary, keys), summary.get("published")
    if not paper:
        return table
    published = []
    for row in paper["rows"]:
        values = dict(zip(paper["columns"], row["values"], strict=True))
        cells, placed = [], set()
        for key in keys:
            column = next((c for c, ours in PUBLISHED.items() if ours == key.partition("/")[0]), None)
            if column in placed:  # one published number beside the columns of several scorers
                cells[-1] = cells[-1]._replace(span=cells[-1].span + 1)
                continue
            placed |= {column} & set(values)
            cells.append(Cell(_paper_number(values.get(column))))
        rest = [
            f"{column} {_paper_number(value)}" for column, value in values.items() if column not in placed
        ]
        counterpart = f"counterpart: {row['editor']}" if row.get("editor") else ""
        published.append([Cell(row["name"], ", ".join([counterpart] * bool(counterpart) + rest)), *cells])
    divider = f"{paper.get('table', 'Published')} of {paper.get('source', 'the paper')} ({PAPER_NOTE})"
    return table._replace(published=published, divider=divider)


def _paper_number(value: float | None) -> str:
    return DASH if value is None else f"{value:g}"


def _families(summary: dict) -> dict[str, Table]:
    """The tables of families of editors; none of other protocols."""
    return family_tables(summary) if any("families" in data for data in ran(summary).values()) else {}


def headline_table(summary: dict) -> str:
    """The headline as Markdown: our editors with 95 % intervals, published rows in a second table.

    Of a protocol of emotions: the tables of the families, medians over people.
    """
    if families := _families(summary):
        tables = (f"**{name}**\n\n{markdown(table.head, table.rows)}" for name, table in families.items())
        table, text = families[next(iter(families))], "\n".join(tables)
    else:
        table = _headline(summary)
        text = markdown(table.head, table.rows)
    if paper := table.published and summary["published"]:
        head, rows = ["published", *paper["columns"], "counterpart"], []
        for row in paper["rows"]:
            texts = (row["name"], *map(_paper_number, row["values"]), row.get("editor") or "")
            rows.append([Cell(text) for text in texts])
        text += f"\n---\n\n{escaped(table.divider)}\n\n{markdown(head, rows)}"
    return text


def by_unit(tables: dict[str, dict[str, Any]], cell: Callable[[Any], Cell]) -> Table:
    """A row per action unit that any table has, a column for each table; `cell` of {} where it lacks one."""
    aus = dict.fromkeys(au for table in tables.values() for au in table)
    rows = [[Cell(au), *(cell(table.get(au, {})) for table in tables.values())] for au in aus]
    return Table(["AU", *tables], rows)


def _correlations(summary: dict, scorer: str) -> Table:
    """Pearson's r, Spearman's rho and the slope of measured on asked change, by action unit."""
    control = {name: data.get("control", {}).get(scorer, {}) for name, data in ran(summary).items()}
    keys = ("pearson", "spearman", "slope")
    return by_unit(control, lambda found: Cell(" / ".join(number(found.get(key), 2) for key in keys)))


def _sides(summary: dict) -> Table:
    """Leak to the other side; a row per scorer and action unit."""
    tables = {name: data.get("sides") or {} for name, data in ran(summary).items()}
    pairs = dict.fromkeys((s, au) for sides in tables.values() for s, aus in sides.items() for au in aus)
    rows = []
    for scorer, au in pairs:
        rows.append([Cell(au, scorer)])
        for sides in tables.values():
            found = sides.get(scorer, {}).get(au, {})
            leak, other, same = (number(found.get(key), 2) for key in ("leak", "other", "same"))
            rows[-1].append(Cell(leak, f"{other} / {same}" if found else ""))
    return Table(["AU", *tables], rows)


def _steadiness(summary: dict) -> Table:
    """Returns a table of changes by a zero edit, and of the spread over seeds."""
    scorers = summary.get("scorers", {})
    rows = []
    for name, data in ran(summary).items():
        zero, seeds = data.get("zero_drift") or {}, data.get("seed_spread") or {}
        if zero or seeds:
            cells = [Cell(number(zero.get("max_change"))), Cell(number(zero.get("pixels_changed"), 0))]
            rows.append([Cell(name), *cells, *(Cell(number(seeds.get(scorer))) for scorer in scorers)])
    head = ["editor", "zero edit: largest change (steps)", "zero edit: pixels changed"]
    return Table([*head, *(f"spread over seeds, {scorer} (steps)" for scorer in scorers)], rows)


def _groups(summary: dict) -> Table:
    keys = _keys(summary, GROUPED)
    groups = {name: data.get("groups") or {} for name, data in ran(summary).items()}
    rows = [
        [Cell(f"{column}: {value}"), Cell(name)]
        + [Cell(str(group.get(count, DASH))) for count in ("people", "n")]
        + [_cell(group.get("headline", {}), key) for key in keys]
        for column in sorted({column for by in groups.values() for column in by})
        for value in sorted({value for by in groups.values() for value in by.get(column, {})})
        for name, by in groups.items()
        if (group := by.get(column, {}).get(value))
    ]
    return Table(["group", "editor", "people", "edits", *map(title, keys)], rows)


def _speed(summary: dict) -> Table:
    rows = []
    for name, data in ran(summary).items():
        first = [Cell(number(data.get(key), digits)) for key, digits in FIRST_EDIT]
        rows.append([Cell(name), _cell(data.get("headline", {}), "seconds"), *first])
    return Table(["editor", "time (s/edit)", "first edit (s)", "peak memory (MB)"], rows)


def _failures(rows: list[dict]) -> Table:
    """Returns the first `FAILURES` failed edits; their total is beside each editor's name."""
    keys = ("editor", "identity", "photograph", "request", "seed", "error")
    failed = [[Cell(str(row.get(key, DASH))) for key in keys] for row in rows if row.get("error")]
    return Table(list(keys), failed[:FAILURES])


def picture(folder: Path, place: str | None) -> str | None:
    """A picture of a report as a JPEG data URI; None where it is missing, broken or outside the folder."""
    from magicedit.evaluation.plots import jpeg_uri

    path = (Path(folder) / str(place)).resolve()
    if not place or not path.is_relative_to(Path(folder).resolve()):
        return None
    try:
        pixels, data = open_photo(path).pixels, path.read_bytes()
    except (ImageError, OSError):
        return None
    if not data.startswith(b"\xff\xd8"):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
        data = buffer.getvalue()
    return jpeg_uri(data)


def _wall(rows: list[dict], folder: Path, editor: str, scorer: str) -> list[tuple[str, list[dict]]]:
    """The best, median and worst edits of an editor by the MSE of the asked action units, no edit twice.

    Empty for an editor that changed no pixel.
    """
    scored = [
        (row["au_mse_asked"][scorer], row)
        for row in rows
        if row["editor"] == editor and (row.get("au_mse_asked") or {}).get(scorer) is not None
    ]
    if not any(row.get("pixels_changed", 1) for _, row in scored):
        return []
    scored.sort(key=lambda pair: pair[0])
    if len(scored) <= 3 * WALL:
        parts = [
            scored[part[0] : part[-1] + 1] for part in np.array_split(range(len(scored)), 3) if len(part)
        ]
    else:
        middle = (len(scored) - WALL) // 2
        parts = [scored[:WALL], scored[middle : middle + WALL], scored[-WALL:]]
    wall = []
    for kind, part in zip(("best", "median", "worst"), parts, strict=False):
        edits = [
            {
                "row": row,
                "score": number(score),
                "identity_distance": number(row.get("identity_distance")),
                "original": picture(folder, row.get("original")),
                "picture": picture(folder, row.get("picture")),
            }
            for score, row in part
        ]
        wall.append((kind, edits))
    return wall


def _flat(row: dict, prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in row.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _tables(rows: list[dict], folder: Path) -> list[Path]:
    """rows.csv and rows.parquet: a column a value, as changed.blendshapes.AU12; empty where not measured."""
    import pyarrow
    from pyarrow import parquet

    flat = [_flat(row) for row in rows]
    columns = list(dict.fromkeys(name for row in flat for name in row))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(flat)
    write_text(folder / "rows.csv", text.getvalue())
    table = pyarrow.table({name: [row.get(name) for row in flat] for name in columns})
    with replacing(folder / "rows.parquet") as file:
        parquet.write_table(table, file, compression="zstd")
    return [folder / "rows.csv", folder / "rows.parquet"]


def render(name: str, **context) -> str:
    """A page from templates/; everything in it is escaped but what is marked safe there (our own SVG)."""
    with needs_extra("evaluation", "reports are written with jinja2"):
        import jinja2
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template(name).render(**context)


def _attention(folder: Path) -> list[dict]:
    from magicedit.evaluation import plots

    found = []
    for index, path in enumerate(sorted((folder / "attention").glob("*.npz"))):
        try:
            found.append({"editor": path.stem, **plots.attention(path, f"attention{index}")})
        except (OSError, ValueError, KeyError, IndexError) as error:
            found.append({"editor": path.stem, "problem": f"{path.name} could not be read: {error}"})
    return found


def _figures(drawn: dict, folder: Path) -> list[Path]:
    """The plots without pictures as files of their own, such as calibration-blendshapes.svg."""
    folder.mkdir(exist_ok=True)
    named = {}
    for name, plot in drawn.items():
        each = plot.items() if isinstance(plot, dict) else [(None, plot)]
        named |= {f"{name}-{scorer}" if scorer else name: str(svg) for scorer, svg in each if svg}
    for name, svg in named.items():
        if "xmlns=" not in svg[:500]:
            svg = svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
        write_text(folder / f"{name}.svg", svg)
    return [folder / f"{name}.svg" for name in named]


def write_report(folder: Path) -> list[Path]:
    """Writes report.html, report.md, rows.csv, rows.parquet and plots/ into REPORT and returns the paths.

    The page is one file: styles, plots and pictures are in it and nothing is fetched. Missing metrics,
    pictures and editors are marked as missing. Raises DatasetError for a folder that is not a report,
    OutputError where it cannot be written, MissingDependencyError without matplotlib or jinja2.
    """
    from magicedit.evaluation import plots

    folder = Path(folder)
    rows, summary = load_report(folder)
    editors, scorers = ran(summary), list(summary.get("scorers", {}))
    edited = [row for row in rows if not row.get("error")]
    points = {
        scorer: {
            editor: [
                (steps, row["identity_distance"])
                for row in edited
                if row["editor"] == editor and row.get("identity_distance") is not None
                if (steps := achieved_steps(row, scorer)) is not None
            ]
            for editor in editors
        }
        for scorer in scorers
    }
    known = _keys(summary, METRICS)
    others = {key: None for data in editors.values() for key in data.get("headline", {}) if key not in known}
    more = [*(key for key in known if key.partition("/")[0] not in HEADLINE), *others]
    tables = {
        "families": _families(summary),
        "headline": _headline(summary),
        "more": _values(summary, more) if more else None,
        "correlations": {scorer: _correlations(summary, scorer) for scorer in scorers},
        "sides": _sides(summary),
        "steadiness": _steadiness(summary),
        "groups": _groups(summary),
        "speed": _speed(summary),
        "failures": _failures(rows),
    }
    scored_by = scorers[0] if scorers else ""
    drawn = {
        "calibration": {s: plots.calibration(editors, s, f"calibration{i}") for i, s in enumerate(scorers)},
        "crosstalk": {s: plots.crosstalk(editors, s, f"crosstalk{i}") for i, s in enumerate(scorers)},
        "identity": plots.identity_against_edit(points, "identity"),
        "guidance": plots.guidance(editors, scorers, summary.get("published"), "guidance"),
    }
    page = render(
        "report.html.j2",
        summary=summary,
        protocol=summary.get("protocol", {}),
        people=summary.get("people", 0),
        circumstances=summary.get("circumstances", {}),
        editors=editors,
        **tables,
        **drawn,
        wall={editor: _wall(edited, folder, editor, scored_by) for editor in editors},
        scored_by=scored_by,
        attention=_attention(folder),
    )
    try:
        figures = _figures(drawn, folder / "plots")
    except OSError as error:
        raise OutputError(f"the report cannot be written into {shown(folder)}: {error}") from error
    of_rows = _tables(rows, folder)
    write_text(folder / "report.md", _report_markdown(summary, tables))
    write_text(folder / "report.html", page)  # last: where it is, the report is whole
    return [folder / "report.html", folder / "report.md", *of_rows, *figures]


def _report_markdown(summary: dict, tables: dict[str, Any]) -> str:
    protocol, circumstances = summary.get("protocol", {}), summary.get("circumstances", {})
    parts = [f"# {escaped(protocol.get('title') or protocol.get('name', 'Evaluation'))}"]
    parts.append(escaped(protocol.get("description", "")))
    parts.append("Means with 95 % bootstrap intervals over identities.")
    for scorer, about in summary.get("scorers", {}).items():
        described = "; ".join(escaped(about.get(key, "")) for key in ("title", "relation", "note"))
        parts.append(f"- scorer {escaped(scorer)}: {described}")
    parts.append(headline_table(summary))
    named = {"More metrics": tables["more"]}
    for scorer, table in tables["correlations"].items():
        named[f"Control by action unit, scorer {scorer} (Pearson / Spearman / slope)"] = table
    named |= {
        "Leak to the other side (other / same, steps)": tables["sides"],
        "Zero edits and seeds": tables["steadiness"],
        "Groups": tables["groups"],
        "Speed and memory": tables["speed"],
        "Failures": tables["failures"],
    }
    for heading, table in named.items():
        if table and table.rows:
            parts += [f"## {heading}", markdown(table.head, table.rows)]
    for heading, facts in (("Not measured", summary.get("skipped")), ("Circumstances", circumstances)):
        if facts or heading == "Circumstances":
            lines = (f"- {escaped(key)}: {escaped(value)}" for key, value in (facts or {}).items())
            parts += [f"## {heading}", "\n".join(lines)]
    return "\n\n".join(part.rstrip("\n") for part in parts if part) + "\n"
