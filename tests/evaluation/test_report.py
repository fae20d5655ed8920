"""The report says what rows.jsonl and summary.json say, needs nothing else, and survives what is missing."""

import base64
import csv
import html
import io
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from example import LEVELS, MINI, WARP, make_report
from PIL import Image
from pyarrow import parquet

from magicedit.errors import DatasetError, MissingDependencyError
from magicedit.evaluation.report import achieved_steps, headline_table, load_report, ran, write_report

# Attributes by which a browser fetches; an <a href> would not be, but we write none either.
FETCHING = ("src", "href", "xlink:href", "srcset", "data", "poster", "action", "background")


class Page(HTMLParser):
    """Tables as rows of cell texts under the heading they stand below, attributes that fetch, and tags."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.fetched, self.tags, self.tables, self.ids = [], [], {}, []
        self.heading, self.text, self.cell = "", None, None
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.fetched += [value for name, value in attrs if name in FETCHING]
        self.ids += [value for name, value in attrs if name == "id"]
        if tag in ("h2", "th", "td"):
            self.text = ""
        if tag == "tr":
            self.tables.setdefault(self.heading, []).append([])

    def handle_data(self, data):
        if self.text is not None:
            self.text += " " + data

    def handle_endtag(self, tag):
        if self.text is not None and tag in ("h2", "th", "td"):
            text = " ".join(self.text.split())
            if tag == "h2":
                self.heading = text
            else:
                self.tables[self.heading][-1].append(text)
            self.text = None


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    folder = make_report(tmp_path_factory.mktemp("report"))
    (folder / "attention").mkdir()
    rng = np.random.default_rng(0)
    np.savez(
        folder / "attention" / "mini.npz",
        maps=rng.random((3, 2, 4, 4), np.float32) / 32,
        queries=np.array(["mouth corner", "brow"]),
        points=np.array([[10.0, 20.0], [30.0, 12.0]]),
        crop=rng.integers(0, 255, (48, 48, 3), np.uint8),
        timesteps=np.array([900.0, 500.0, 100.0]),
        reference_share=rng.random((3, 2)),
        layers=np.array(["down_blocks.0", "mid_block"]),
    )
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def page(report) -> Page:
    return Page(report / "report.html")


def test_page_fetches_nothing(page):
    assert page.fetched, "pictures and SVG references were expected"
    assert all(value.startswith(("data:image/", "#")) for value in page.fetched)
    assert all(target.startswith("#") for target in re.findall(r"url\(\s*['\"]?([^)]+)", page.source))
    assert not {"script", "link", "iframe", "object", "embed", "base"} & set(page.tags)
    assert "@import" not in page.source


def test_references_within_plots_resolve_and_ids_are_unique(page):
    targets = {value[1:] for value in page.fetched if value.startswith("#")}
    targets |= {target[1:] for target in re.findall(r"url\((#[^)]+)\)", page.source)}
    assert targets <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))


def test_headline_of_the_page_is_that_of_the_summary(report, page):
    summary = load_report(report)[1]
    (head, *rows), digits = (
        page.tables["Headline"],
        {"au_mse": 3, "achieved": 2, "identity_distance": 3, "seconds": 2},
    )
    columns = {
        "au_mse/blendshapes": "AU MSE, blendshapes (steps²)",
        "au_mse/landmarks68": "AU MSE, landmarks68 (steps²)",
        "achieved/landmarks68": "achieved, landmarks68 (share of asked)",
        "identity_distance": "identity distance",
        "seconds": "time (s/edit)",
    }
    for editor in ("mini", "warp"):
        row = next(row for row in rows if row[0].startswith(editor))
        assert row[0] == f"{editor} 1 of 58 failed"
        for key, title in columns.items():
            of, places = summary["editors"][editor]["headline"][key], digits[key.partition("/")[0]]
            low, mean, high = (f"{of[part]:.{places}f}" for part in ("low", "mean", "high"))
            assert row[head.index(title)] == f"{mean} [{low}, {high}]"
    assert ["magicface", "not run"] in rows


def test_published_rows_stand_below_the_divider(page):
    names = [row[0] for row in page.tables["Headline"]]
    divider = next(i for i, name in enumerate(names) if "the paper's own numbers" in name)
    ours = [i for i, name in enumerate(names) if name.startswith(("mini", "warp", "magicface"))]
    assert max(ours[:3]) < divider < names.index("GANmut") < names.index("MagicFace counterpart: mini")
    assert page.tables["Headline"][names.index("MagicFace counterpart: mini")].count("0.261") == 1


def test_best_is_bold_only_where_intervals_are_apart(report):
    summary = load_report(report)[1]
    heads = [summary["editors"][name]["headline"]["identity_distance"] for name in ("mini", "warp")]
    heads[0] |= {"mean": 0.30, "low": 0.25, "high": 0.35}
    heads[1] |= {"mean": 0.20, "low": 0.18, "high": 0.24}
    assert "**0.200**" in headline_table(summary)
    heads[1]["high"] = 0.26  # now they overlap
    assert "0.200 [" in headline_table(summary)
    assert "**0.200**" not in headline_table(summary)


def test_what_has_no_better_side_is_never_bold(report):
    """Nor is an achieved share: nothing (0) is nearer to all of it (1) than three times as much."""
    summary = load_report(report)[1]
    for name, mean in (("mini", 0.0), ("warp", 3.0)):
        of = {"mean": mean, "low": mean, "high": mean}
        summary["editors"][name]["headline"] = {"achieved/blendshapes": of, "pixels_changed": of}
    assert "| 0.00 [0.00, 0.00] |" in headline_table(summary)
    assert "**" not in headline_table(summary)


def test_of_one_person_nothing_is_best(report):
    summary = load_report(report)[1]
    assert "**" in headline_table(summary)
    for editor in ran(summary).values():
        for found in editor["headline"].values():
            found |= {"low": None, "high": None}
    assert "**" not in headline_table(summary)


def test_control_table_and_curves(report, page):
    control = load_report(report)[1]["editors"]["mini"]["control"]["landmarks68"]["AU12"]
    expected = " / ".join(f"{control[key]:.2f}" for key in ("pearson", "spearman", "slope"))
    assert expected in [cell for row in page.tables["Control"] for cell in row]
    assert [point["asked"] for point in control["levels"]] == list(LEVELS)
    for text in ("requested change (intensity steps)", "identity distance (0 = same descriptor)", ">ideal<"):
        assert text in page.source


def test_failures_sides_and_groups_are_listed(page):
    failed = [row for row in page.tables["Failures"] if row[0] == "warp"]
    assert failed == [["warp", "003", "neutral.jpg", "AU12=+9", "0", "no face found after the edit"]]
    assert page.tables["Sides, zero edits, seeds"][1][:2] == [
        "AU12 blendshapes",
        page.tables["Sides, zero edits, seeds"][1][1],
    ]
    assert page.tables["Sides, zero edits, seeds"][1][1].startswith("0.20")
    groups = [row[:4] for row in page.tables["Groups"]]
    assert ["gender: female", "mini", "2", "38"] in groups
    assert ["gender: male", "warp", "1", "19"] in groups


def test_wall_shows_the_extremes_by_score(report, page):
    rows = [row for row in load_report(report)[0] if not row["error"] and row["au_mse_asked"]]
    for editor in ("mini", "warp"):
        scores = sorted(row["au_mse_asked"]["blendshapes"] for row in rows if row["editor"] == editor)
        wall = page.source.split(f"<h3>{editor}</h3>")[1].split("<h3>")[0]
        shown = re.findall(r"error ([0-9.]+)", wall)
        assert shown[:4] == [f"{score:.3f}" for score in scores[:4]]
        assert shown[-4:] == [f"{score:.3f}" for score in scores[-4:]]
        assert len(shown) == 12


def test_pictures_are_those_of_the_rows(report, page):
    worst = max(
        (row for row in load_report(report)[0] if row["editor"] == "warp" and row.get("au_mse_asked")),
        key=lambda row: row["au_mse_asked"]["blendshapes"],
    )
    uris = re.findall(r'<img src="data:image/jpeg;base64,([^"]+)"', page.source)
    assert base64.b64encode((report / worst["picture"]).read_bytes()).decode() in uris
    for uri in uris:
        Image.open(io.BytesIO(base64.b64decode(uri))).verify()
    assert page.tags.count("img") == 2 * 2 * 12 + 1  # editors, before and after, edits; the attention maps


def test_appendix(page):
    for text in (
        "the package lpips is not installed",
        "magicedit evaluate --protocol example",
        "numpy 2.0",
        "seed 0",
    ):
        assert text in page.source
    assert "weights are not here" in page.source


def test_markdown_keeps_published_numbers_apart(report):
    text = (report / "report.md").read_text(encoding="utf-8")
    ours, published = text.split("\n---\n")
    assert "GANmut" not in ours
    assert "| GANmut | – | 0.495 | 0.059 | 0.032 |  |" in published
    assert "not to be ranked" in published
    assert "| magicface | not run |" in ours
    assert "| mini (1 of 58 failed) |" in ours
    assert headline_table(load_report(report)[1]).strip() in text
    control = load_report(report)[1]["editors"]["warp"]["control"]["blendshapes"]["AU4"]
    assert f"{control['slope']:.2f} |" in next(
        line for line in published.splitlines() if line.startswith("| AU4 |")
    )


def test_markdown_tables_are_rectangular(report):
    text = (report / "report.md").read_text(encoding="utf-8")
    for block in re.findall(r"(?:^\|.*\n)+", text, flags=re.M):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1


def test_csv_and_parquet_agree_with_the_rows(report):
    rows = load_report(report)[0]
    with open(report / "rows.csv", encoding="utf-8", newline="") as file:
        texts = list(csv.DictReader(file))
    table = parquet.read_table(report / "rows.parquet").to_pylist()
    assert len(rows) == len(texts) == len(table) == 2 * 58
    for row, text, typed in zip(rows, texts, table, strict=True):
        assert text["request"] == typed["request"] == row["request"]
        change = row.get("changed", {}).get("blendshapes", {}).get("AU12")
        assert typed["changed.blendshapes.AU12"] == change
        assert text["changed.blendshapes.AU12"] == ("" if change is None else repr(change))
        assert typed["asked.AU12"] == row["asked"].get("AU12")
        assert typed["error"] == row["error"]
    assert set(texts[0]) == set(table[0])


def test_achieved_projects_on_what_was_asked():
    row = {"asked": {"AU1": 3.0, "AU2": -4.0}, "changed": {"s": {"AU1": 3.0, "AU2": 1.0, "AU4": 9.0}}}
    assert achieved_steps(row, "s") == pytest.approx((3 * 3 - 4 * 1) / 5)
    assert achieved_steps(row | {"asked": {}}, "s") is None
    assert achieved_steps(row | {"asked": {"AU9": 1.0}}, "s") is None
    assert achieved_steps(row, "other") is None


def test_hostile_names_are_text(tmp_path):
    evil = "<script>alert('1')</script>|$x$ & \"q\""
    folder = make_report(tmp_path / "r", {evil: {"gain": 0.7}}, pictures=False)
    rows, summary = load_report(folder)
    for number, row in enumerate(rows):
        row["request"] = f"{evil}{number}"
    rows[-1]["error"] = "<img src=http://example.org/x>"
    summary["protocol"]["title"] = summary["circumstances"]["command"] = "<img src=http://example.org/x>"
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "summary.json").write_text(json.dumps(summary))
    write_report(folder)
    page = Page(folder / "report.html")
    assert not {"script", "img"} & set(page.tags)
    assert html.unescape(page.source).count(evil) > 25
    assert page.tables["Headline"][1][0].startswith(evil)
    markdown = (folder / "report.md").read_text()
    assert not re.search("<(script|img)", markdown)
    assert "\\|$x$" in markdown


def test_missing_pictures_and_pictures_elsewhere_are_placeholders(tmp_path):
    folder = make_report(tmp_path / "r", {"mini": MINI}, pictures=False)
    Image.new("RGB", (32, 32)).save(tmp_path / "private.jpg")
    rows = [row | {"picture": "../private.jpg"} for row in load_report(folder)[0]]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    write_report(folder)
    page = Page(folder / "report.html")
    assert "img" not in page.tags
    assert page.source.count("picture missing") == 2 * 12


def test_without_an_editor_that_ran_there_is_still_a_report(tmp_path):
    folder = make_report(tmp_path / "r", {})
    write_report(folder)
    page = Page(folder / "report.html")
    assert "No editor ran" in page.source
    assert ["magicface", "not run"] in page.tables["Headline"]
    assert "svg" not in page.tags
    assert "MagicFace counterpart: mini, au 0.261, identity 0.473, background 0.044, pose 0.032" in [
        row[0] for row in page.tables["Headline"]
    ]


def test_metrics_that_were_not_measured_are_dashes(tmp_path):
    folder = make_report(tmp_path / "r")
    rows, summary = load_report(folder)
    del summary["editors"]["warp"]["headline"]["identity_distance"]
    for key in ("control", "crosstalk", "sides", "zero_drift", "seed_spread", "groups"):
        del summary["editors"]["warp"][key]
    rows = [{k: v for k, v in row.items() if k not in ("changed", "identity_distance")} for row in rows]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "attention").mkdir()
    (folder / "attention" / "mini.npz").write_bytes(b"not an archive")
    write_report(folder)
    page = Page(folder / "report.html")
    head, *rows = page.tables["Headline"]
    warp = next(row for row in rows if row[0].startswith("warp"))
    assert warp[head.index("identity distance")] == "–"
    assert "mini.npz could not be read" in page.source


def test_guidance_is_drawn_as_a_sweep_with_the_papers_beside(tmp_path, page):
    assert "guidance scale" not in page.source  # one scale is no sweep
    sweep = {
        f"guidance {g}": {"gain": 0.4 + 0.1 * g, "settings": {"guidance": g, "run": "linear"}}
        for g in (1.0, 2.0)
    }
    folder = make_report(tmp_path / "r", sweep | {"warp": WARP}, pictures=False)
    summary = load_report(folder)[1]
    rows = [{"name": "guidance 2.5", "values": [0.281], "editor": None}]
    summary["published"] |= {"table": "Table IV", "columns": ["au"], "rows": rows}
    (folder / "summary.json").write_text(json.dumps(summary))
    write_report(folder)
    source = (folder / "report.html").read_text()
    plot = source.split("<h2>Guidance</h2>")[1].split("</svg>")[0]
    assert plot.count(">guidance scale<") == 4  # two scorers, identity, the paper
    assert ">linear<" in plot
    assert ">warp<" not in plot
    assert ">published, other data<" in plot


def test_the_same_report_gives_the_same_page(report, tmp_path):
    again = make_report(tmp_path / "r")
    (again / "attention").mkdir()
    (again / "attention" / "mini.npz").write_bytes((report / "attention" / "mini.npz").read_bytes())
    write_report(again)
    assert (again / "report.html").read_bytes() == (report / "report.html").read_bytes()


@pytest.mark.parametrize("broken", ["nothing", "no summary", "bad line", "a list"])
def test_folders_that_are_no_report_are_refused(tmp_path, broken):
    folder = tmp_path / "r"
    if broken != "nothing":
        make_report(folder, {"mini": MINI}, pictures=False)
    if broken == "no summary":
        (folder / "summary.json").unlink()
    if broken == "bad line":
        (folder / "rows.jsonl").write_text("{\n")
    if broken == "a list":
        (folder / "summary.json").write_text("[]")
    with pytest.raises(DatasetError, match="is not a report"):
        write_report(folder)


@pytest.mark.parametrize("package", ["matplotlib", "jinja2"])
def test_missing_packages_name_the_extra(tmp_path, monkeypatch, package):
    folder = make_report(tmp_path / "r", {})
    monkeypatch.delitem(sys.modules, "magicedit.evaluation.plots", raising=False)
    monkeypatch.delattr(sys.modules["magicedit.evaluation"], "plots", raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependencyError, match=r"magicedit\[evaluation\]"):
        write_report(folder)
