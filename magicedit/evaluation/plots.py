"""The figures of a report as inline SVG: text stays text, nothing is fetched, ids are unique in a page.

Every function returns "" where there is nothing to draw. Editors are dicts by name as in summary.json, only
those that ran; they keep one colour and marker through a page.
"""

import base64
import html
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from magicedit.errors import needs_extra

with needs_extra("evaluation", "reports draw with matplotlib"):
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

# Okabe and Ito's colours, told apart by the colour-blind; grey is kept for published numbers.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX*"
GREY = "#777777"
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "magicedit",  # the same data gives the same file
    "text.parse_math": False,  # a $ in an editor's name is a dollar
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "axes.axisbelow": True,
    "legend.frameon": False,
}
styled = rc_context(_STYLE)
_REM = 6.7  # an inch of a figure on the page, at most
_ATTENTION_STEPS = 6  # of the steps of a run, evenly


def _svg(figure: Figure, name: str, label: str) -> str:
    """The figure as an <svg> element that scales; `label` is read out in place of the picture."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue().decode()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], count=1, flags=re.S)
    for size in ("width", "height"):  # the page sets them
        text = re.sub(rf'(<svg\b[^>]*?) {size}="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(url\(|href=")#', rf"\1#{name}-", text)
    width = _REM * figure.get_figwidth()
    style = f"max-width: {width:.0f}rem; min-width: {min(width, 38):.0f}rem"  # letters of one size on a page
    return text.replace("<svg", f'<svg role="img" aria-label="{html.escape(label)}" style="{style}"', 1)


def jpeg_uri(data: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(data).decode()


def _look(index: int) -> dict[str, str]:
    return {"color": PALETTE[index % len(PALETTE)], "marker": MARKERS[index % len(MARKERS)]}


def _grid(count: int, columns: int, panel: tuple[float, float], **share) -> tuple[Figure, list]:
    """A figure of `count` panels, each (width, height) inches; the rest of the grid stays empty."""
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(panel[0] * columns, panel[1] * rows + 0.4), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False, **share).flat)
    for spare in axes[count:]:
        spare.set_visible(False)
    return figure, axes[:count]


def _numbers(values: Iterable) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], float)


def _legend(figure: Figure, axes: Sequence, columns: int = 4) -> None:
    """One legend for all panels, above them."""
    handles = {
        label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)
    }
    if handles:
        figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=columns)


@styled
def calibration(editors: Mapping[str, dict], scorer: str, name: str) -> str:
    """Measured against requested change, a panel per action unit, with the diagonal of a perfect editor."""
    control = {editor: data.get("control", {}).get(scorer, {}) for editor, data in editors.items()}
    aus = list(dict.fromkeys(au for table in control.values() for au in table))
    if not aus:
        return ""
    figure, axes = _grid(len(aus), 4, (2.3, 1.9), sharex=True, sharey=True)
    for ax, au in zip(axes, aus, strict=True):
        asked = [
            point["asked"] for table in control.values() for point in table.get(au, {}).get("levels", ())
        ]
        ends = [min([0.0, *asked]), max([0.0, *asked])]
        ax.plot(ends, ends, color=GREY, linestyle="--", linewidth=1, label="ideal")
        ax.axhline(0, color=GREY, linewidth=0.5)
        for index, table in enumerate(control.values()):
            levels = sorted(table.get(au, {}).get("levels", ()), key=lambda point: point["asked"])
            x, mean, low, high = (
                _numbers(point.get(key) for point in levels) for key in ("asked", "mean", "low", "high")
            )
            look = _look(index)
            ax.fill_between(x, low, high, color=look["color"], alpha=0.18, linewidth=0)
            ax.plot(x, mean, markersize=3.5, linewidth=1.3, label=list(control)[index], **look)
        ax.set_title(au, fontsize=9)
    figure.supxlabel("requested change (intensity steps)", fontsize=9)
    figure.supylabel("measured change (intensity steps)", fontsize=9)
    _legend(figure, axes)
    return _svg(figure, name, f"Measured against requested change by action unit, scorer {scorer}")


@styled
def crosstalk(editors: Mapping[str, dict], scorer: str, name: str) -> str:
    """What moves (columns) when one action unit is asked for (rows), in steps per asked step."""
    tables = {editor: data.get("crosstalk", {}).get(scorer) for editor, data in editors.items()}
    tables = {editor: table for editor, table in tables.items() if table and table["asked"]}
    if not tables:
        return ""
    figure, axes = _grid(len(tables), 2, (4.6, 3.6))
    for ax, (editor, table) in zip(axes, tables.items(), strict=True):
        change = np.array([_numbers(row) for row in table["change"]])
        mesh = ax.pcolormesh(change, cmap="PuOr_r", vmin=-1, vmax=1, edgecolor="white", linewidth=0.4)
        for (row, column), value in np.ndenumerate(change):
            if abs(value) >= 0.1:  # the rest is as good as still
                colour = "white" if abs(value) > 0.65 else "black"
                place = (column + 0.5, row + 0.5)
                ax.annotate(f"{value:.1f}", place, ha="center", va="center", fontsize=5.5, color=colour)
        for row, au in enumerate(table["asked"]):  # what should move
            if au in table["changed"]:
                corner = (table["changed"].index(au), row)
                ax.add_patch(Rectangle(corner, 1, 1, fill=False, linewidth=0.8))
        ax.set_xticks(np.arange(len(table["changed"])) + 0.5, table["changed"], rotation=90, fontsize=7)
        ax.set_yticks(np.arange(len(table["asked"])) + 0.5, table["asked"], fontsize=7)
        ax.invert_yaxis()
        ax.grid(False)
        ax.set(title=editor, xlabel="measured", ylabel="asked")
    shrink = 0.9 / math.ceil(len(tables) / 2)
    figure.colorbar(mesh, ax=axes, label="change per asked step (steps)", extend="both", shrink=shrink)
    return _svg(figure, name, f"Cross-talk between action units, scorer {scorer}")


@styled
def identity_against_edit(points: Mapping[str, Mapping[str, Sequence]], name: str) -> str:
    """`points[scorer][editor]`: (achieved change in steps, identity distance) of each edit."""
    points = {scorer: by for scorer, by in points.items() if any(len(found) for found in by.values())}
    if not points:
        return ""
    figure, axes = _grid(len(points), 2, (4.6, 3.4), sharey=True)
    for ax, (scorer, by_editor) in zip(axes, points.items(), strict=True):
        for index, (editor, found) in enumerate(by_editor.items()):
            if not len(found):
                continue
            look = _look(index)
            x, y = np.asarray(found, float).T
            ax.scatter(x, y, s=9, alpha=0.3, linewidths=0, rasterized=True, **look)  # thousands
            bins = np.round(x * 2) / 2  # half steps
            places = np.unique(bins)
            medians = [np.median(y[bins == place]) for place in places]
            ax.plot(places, medians, markersize=4, linewidth=1.5, label=f"{editor}, median", **look)
        ax.set(title=scorer, xlabel="achieved change in the asked direction (steps)")
    axes[0].set_ylabel("identity distance (0 = same descriptor)")
    _legend(figure, axes)
    return _svg(figure, name, "Identity distance against achieved change, a point per edit")


@styled
def guidance(
    editors: Mapping[str, dict], scorers: Sequence[str], published: Mapping | None, name: str
) -> str:
    """AU MSE and identity against the guidance scale, a line per run; published numbers in a panel apart."""
    runs: dict[str, list] = {}
    for editor, data in editors.items():
        settings = data.get("settings") or {}
        if settings.get("guidance") is not None:
            point = (float(settings["guidance"]), data.get("headline", {}))
            runs.setdefault(str(settings.get("run", editor)), []).append(point)
    if len({scale for run in runs.values() for scale, _ in run}) < 2:  # no sweep
        return ""
    keys = {f"au_mse/{scorer}": f"AU MSE (steps²), {scorer}" for scorer in scorers}
    keys["identity_distance"] = "identity distance"
    keys = {
        key: label
        for key, label in keys.items()
        if any(key in head for run in runs.values() for _, head in run)
    }
    paper = []
    if published and str(published.get("table", "")).endswith("Table IV") and "au" in published["columns"]:
        column = published["columns"].index("au")
        paper = [(row["name"], row["values"][column]) for row in published["rows"]]
    if not keys and not paper:
        return ""
    columns = 2 if len(keys) + bool(paper) in (2, 4) else 3
    figure, axes = _grid(len(keys) + bool(paper), columns, (9.3 / columns, 2.6))
    for ax, (key, label) in zip(axes, keys.items(), strict=False):
        for index, (run, found) in enumerate(runs.items()):
            found = sorted((point for point in found if key in point[1]), key=lambda point: point[0])
            x = [scale for scale, _ in found]
            mean, low, high = (
                _numbers(head[key].get(k) for _, head in found) for k in ("mean", "low", "high")
            )
            spread = np.nan_to_num(np.abs([mean - low, high - mean]))
            ax.errorbar(x, mean, spread, markersize=4, linewidth=1.3, capsize=2, label=run, **_look(index))
        ax.set(xlabel="guidance scale", ylabel=label)
    if paper:
        ax = axes[-1]
        for row, value in paper:
            number = re.search(r"\d+(\.\d+)?", row)
            if value is None:
                continue
            if number:
                ax.plot(float(number[0]), value, "o", color=GREY, markersize=4)
            else:  # a row without guidance
                ax.axhline(value, color=GREY, linestyle=":")
                ax.annotate(row, (0.98, value), xycoords=("axes fraction", "data"), ha="right", va="top")
        ax.set(xlabel="guidance scale", ylabel="AU MSE, the paper's scorer", title="published, other data")
        ax.title.set_color(GREY)
    _legend(figure, axes)
    return _svg(figure, name, "AU MSE and identity distance against guidance")


@styled
def differences(panels: Sequence[tuple[str, str, Sequence[tuple]]], columns: int, name: str) -> str:
    """Forest plots. A panel is (title, axis label, [(row, mean, low, high), ...])."""
    if not panels:
        return ""
    most = max(len(rows) for _, _, rows in panels)
    figure, axes = _grid(len(panels), columns, (9.2 / columns, 1.0 + 0.22 * most))
    for ax, (title, label, rows) in zip(axes, panels, strict=True):
        mean, low, high = (_numbers(row[part] for row in rows) for part in (1, 2, 3))
        spread = np.nan_to_num(np.abs([mean - low, high - mean]))
        ax.axvline(0, color=GREY, linewidth=1)
        ax.errorbar(mean, range(len(rows)), xerr=spread, fmt="o", color=PALETTE[0], markersize=4, capsize=2)
        ax.set_yticks(range(len(rows)), [row[0] for row in rows])
        ax.set_ylim(len(rows) - 0.5, -0.5)
        ax.locator_params(axis="x", nbins=4)
        ax.set_title(title, fontsize=9)
        ax.set_xlabel(label, fontsize=8)
    return _svg(figure, name, "Paired differences with 95 % intervals")


@styled
def attention(path: Path, name: str) -> dict[str, str]:
    """The maps of one attention/*.npz over the crop (`maps`, a JPEG data URI) and the share of attention that
    goes to the reference at each step (`share`, SVG), and where there is text, cross-attention by token and
    step (`text`, SVG). Raises what numpy raises for a broken file."""
    with np.load(path, allow_pickle=False) as data:
        maps, queries, points = data["maps"], data["queries"], data["points"]
        crop, timesteps, shares, layers = (
            data[key] for key in ("crop", "timesteps", "reference_share", "layers")
        )
        text = data.get("text_share")  # (steps, layers, text tokens)
    steps = np.unique(np.linspace(0, len(maps) - 1, _ATTENTION_STEPS).round().astype(int))
    figure = Figure(figsize=(1.5 * len(queries) + 0.5, 1.55 * len(steps)), dpi=110, layout="constrained")
    axes = figure.subplots(len(steps), len(queries), squeeze=False)
    size = crop.shape[0]
    for row, step in enumerate(steps):
        for column, query in enumerate(queries):
            ax, shown = axes[row, column], maps[step, column]
            ax.imshow(crop.mean(axis=-1), cmap="gray", extent=(0, size, size, 0))
            ax.imshow(shown, cmap="inferno", alpha=0.6, extent=(0, size, size, 0), interpolation="bilinear")
            ax.plot(*points[column], "+", color="#56B4E9", markersize=9, markeredgewidth=2)
            ax.set(xticks=[], yticks=[], xlim=(0, size), ylim=(size, 0))
            ax.set_xlabel(f"{shown.sum():.0%} to reference", fontsize=7)
            if row == 0:
                ax.set_title(str(query), fontsize=8)
            if column == 0:
                ax.set_ylabel(f"t = {timesteps[step]:g}", fontsize=8)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_jpg(buffer, pil_kwargs={"quality": 85})

    figure, (ax,) = _grid(1, 1, (6.0, 2.8))
    x, thin = range(1, len(timesteps) + 1), {"markersize": 3, "linewidth": 1, "alpha": 0.8}
    for index, layer in enumerate(layers):
        name = str(layer).replace(".transformer_blocks.0", "").replace(".attentions", "")  # all have these
        ax.plot(x, shares[:, index] * 100, label=name, **thin, **_look(index))
    ax.plot(x, shares.mean(axis=1) * 100, color="black", linewidth=2, label="mean of layers")
    ax.set(xlabel="denoising step", ylabel="attention to the reference (%)", ylim=(0, None))
    _legend(figure, [ax], columns=2)
    found = {
        "maps": jpeg_uri(buffer.getvalue()),
        "share": _svg(figure, name, "Share of attention to the reference by step"),
    }
    if text is not None:
        figure, (ax,) = _grid(1, 1, (6.0, 2.8))
        shown = ax.imshow(text.mean(axis=1) * 100, aspect="auto", cmap="viridis", interpolation="nearest")
        ax.set(xlabel="text token", ylabel="denoising step")
        figure.colorbar(shown, label="cross-attention (%)")
        found["text"] = _svg(figure, f"{name}-text", "Cross-attention to the text tokens by step")
    return found
