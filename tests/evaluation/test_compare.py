"""Paired differences against their own computation, and what the comparison refuses."""

import json
import re

import numpy as np
import pytest
from example import MINI, WARP, make_report

from magicedit.errors import DatasetError
from magicedit.evaluation.compare import compare
from magicedit.evaluation.report import load_report

SHIFT = 0.07
STRONGER = {"gain": 1.0, "settings": {}, "seed": 1}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """a, b with a stronger mini and identity distances that are all larger by SHIFT, and their comparison."""
    root = tmp_path_factory.mktemp("compare")
    a = make_report(root / "a")
    b = make_report(root / "b", {"mini": STRONGER, "warp": WARP}, shift=SHIFT)
    return a, b, root / "out", compare(a, b, root / "out")


def _good(folder, editor):
    rows = [row for row in load_report(folder)[0] if row["editor"] == editor and not row["error"]]
    return {(row["identity"], row["request"]): row for row in rows}


def _pair(result, editor):
    return next(pair for pair in result["pairs"] if pair["editor_a"] == editor)


def test_namesakes_are_compared_and_failed_edits_left_out(folders):
    *_, result = folders
    assert [(pair["editor_a"], pair["editor_b"]) for pair in result["pairs"]] == [
        ("mini", "mini"),
        ("warp", "warp"),
    ]
    assert {pair["edits"] for pair in result["pairs"]} == {57}  # of 58
    assert result["notes"] == []


def test_differences_agree_with_their_own_computation(folders):
    a, b, _, result = folders
    found, rows_a, rows_b = _pair(result, "mini"), _good(a, "mini"), _good(b, "mini")
    for key, value in {
        "au_mse/landmarks68": lambda row: row["au_mse"]["landmarks68"],
        "identity_distance": lambda row: row["identity_distance"],
        "ssim": lambda row: row["ssim"],
    }.items():
        differences = np.array([value(rows_b[edit]) - value(rows_a[edit]) for edit in rows_a])
        got = found["metrics"][key]
        assert got["difference"] == pytest.approx(differences.mean())
        assert got["n"] == len(differences)
        better = differences > 0 if key == "ssim" else differences < 0
        assert got["b_better"] == pytest.approx(better.mean())
        assert got["low"] <= got["difference"] <= got["high"]
    asked = [edit for edit, row in rows_a.items() if "AU4" in row["asked"]]
    along = [
        (rows_b[e]["changed"]["blendshapes"]["AU4"] - rows_a[e]["changed"]["blendshapes"]["AU4"])
        * np.sign(rows_a[e]["asked"]["AU4"])
        for e in asked
    ]
    assert found["action_units"]["blendshapes"]["AU4"]["difference"] == pytest.approx(np.mean(along))
    assert found["action_units"]["blendshapes"]["AU4"]["n"] == 12


def test_interval_holds_a_known_shift_and_unchanged_metrics_stay_at_zero(folders):
    *_, result = folders
    warp = _pair(result, "warp")["metrics"]  # the same rows but for SHIFT
    identity = warp["identity_distance"]
    assert identity["low"] <= SHIFT + 1e-9
    assert identity["high"] >= SHIFT - 1e-9
    assert identity["high"] - identity["low"] < 1e-9  # every pair differs by the same
    assert (identity["b_better"], identity["a_better"]) == (0, 1)
    for key in ("au_mse/blendshapes", "ssim", "seconds"):
        assert (warp[key]["difference"], warp[key]["low"], warp[key]["high"]) == (0, 0, 0)
        assert (warp[key]["b_better"], warp[key]["a_better"]) == (0, 0)


def test_interval_is_over_people_not_edits(tmp_path):
    """Two of three people are better by 1 and one worse by 2 in every edit, which is not certain."""
    a = make_report(tmp_path / "a", {"mini": MINI}, pictures=False)
    b = make_report(tmp_path / "b", {"mini": MINI}, pictures=False)
    rows = load_report(b)[0]
    for row in rows:
        if not row["error"]:
            row["identity_distance"] += {"001": -1, "002": -1, "003": 2}[row["identity"]]
    (b / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = compare(a, b, tmp_path / "out")["pairs"][0]["metrics"]["identity_distance"]
    assert found["difference"] == pytest.approx(0, abs=1e-9)
    assert found["b_better"] == pytest.approx(2 / 3)
    assert found["low"] == pytest.approx(-1)  # all three draws of the better two: 8 of 27
    assert found["high"] == pytest.approx(2)  # 1 of 27, more than 2.5 %


def test_swapped_order_flips_every_sign(folders, tmp_path):
    a, b, _, result = folders
    swapped = compare(b, a, tmp_path, editor_a="mini")
    for forth, back in zip(result["pairs"][:1], swapped["pairs"], strict=True):
        assert forth["metrics"].keys() == back["metrics"].keys()
        for key, of in forth["metrics"].items():
            other = back["metrics"][key]
            assert of["difference"] == pytest.approx(-other["difference"])
            assert of["low"] == pytest.approx(-other["high"])
            assert of["b_better"] == other["a_better"]
        assert [edit["request"] for edit in forth["differ_most"]] == [
            edit["request"] for edit in back["differ_most"]
        ]


def test_achieved_is_better_nearer_to_all_of_it(tmp_path):
    """A change twice as large as asked is no better than one of nothing."""
    a = make_report(tmp_path / "a", {"mini": MINI}, pictures=False)
    b = make_report(tmp_path / "b", {"mini": MINI}, pictures=False)
    for folder, share in ((a, 0.8), (b, 2.5)):
        rows = load_report(folder)[0]
        for row in rows:
            row["achieved"] = {"blendshapes": share}
        (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = compare(a, b, tmp_path / "out")["pairs"][0]["metrics"]["achieved/blendshapes"]
    assert found["difference"] == pytest.approx(1.7)
    assert (found["b_better"], found["a_better"]) == (0, 1)


def test_files_say_the_same(folders):
    _, b, output, result = folders
    assert json.loads((output / "compare.json").read_text()) == result
    page, text = ((output / f"compare.{kind}").read_text(encoding="utf-8") for kind in ("html", "md"))
    shown = f"{_pair(result, 'mini')['metrics']['au_mse/blendshapes']['difference']:+.3f}"
    assert shown in page
    assert shown in text
    mean = f"{load_report(b)[1]['editors']['mini']['headline']['au_mse/blendshapes']['mean']:.3f}"
    assert mean in page
    sources = re.findall(r'\b(?:src|href)="([^"]+)"', page)
    assert all(source.startswith(("data:image/jpeg;base64,", "#")) for source in sources)
    assert "<script" not in page
    assert page.count("<img ") == 2 * 6 * 3  # pairs, edits, original and both results
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_edits_shown_are_those_that_differ_most(folders):
    a, b, _, result = folders
    rows_a, rows_b = _good(a, "mini"), _good(b, "mini")
    differences = sorted(
        abs(rows_b[edit]["au_mse_asked"]["blendshapes"] - row["au_mse_asked"]["blendshapes"])
        for edit, row in rows_a.items()
        if row["au_mse_asked"]
    )
    shown = [abs(edit["b"] - edit["a"]) for edit in _pair(result, "mini")["differ_most"]]
    assert shown == pytest.approx(differences[-6:][::-1])


def test_editors_can_be_chosen_also_within_one_report(folders, tmp_path):
    a, b, *_ = folders
    result = compare(a, a, tmp_path, editor_a="mini", editor_b="warp")
    assert [(pair["editor_a"], pair["editor_b"]) for pair in result["pairs"]] == [("mini", "warp")]
    units = result["pairs"][0]["action_units"]["blendshapes"]
    assert all(units[au]["high"] < 0 for au in ("AU1", "AU4", "AU12"))  # warp moves less
    result = compare(a, b, tmp_path, editor_b="warp")
    assert [(pair["editor_a"], pair["editor_b"]) for pair in result["pairs"]] == [("warp", "warp")]


def test_the_only_editor_of_each_is_compared_whatever_its_name(tmp_path):
    a = make_report(tmp_path / "a", {"old": MINI}, pictures=False)
    b = make_report(tmp_path / "b", {"new": STRONGER}, pictures=False)
    result = compare(a, b, tmp_path / "out")
    assert [(pair["editor_a"], pair["editor_b"]) for pair in result["pairs"]] == [("old", "new")]
    assert (tmp_path / "out" / "compare.html").read_text().count("picture missing") == 18


def test_different_protocols_are_noted(tmp_path):
    a = make_report(tmp_path / "a", {"mini": MINI}, pictures=False)
    b = make_report(tmp_path / "b", {"mini": MINI}, pictures=False)
    summary = load_report(b)[1]
    summary["protocol"]["version"] = 2
    (b / "summary.json").write_text(json.dumps(summary))
    compare(a, b, tmp_path / "out")
    for kind in ("html", "md", "json"):
        assert (
            "different protocols: a example 1, b example 2"
            in (tmp_path / "out" / f"compare.{kind}").read_text()
        )


def test_what_cannot_be_compared_is_refused(folders, tmp_path):
    a, b, *_ = folders
    with pytest.raises(DatasetError, match="no editor 'nobody' ran in report b; there are mini, warp"):
        compare(a, b, tmp_path, editor_b="nobody")
    with pytest.raises(DatasetError, match="is not a report"):
        compare(a, tmp_path / "nothing", tmp_path)
    other = make_report(tmp_path / "other", {"mini": MINI}, pictures=False)
    rows = [row | {"photograph_sha256": "of a smile"} for row in load_report(other)[0]]
    (other / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DatasetError, match="no common edits"):
        compare(a, other, tmp_path)
    named = make_report(tmp_path / "named", {"x": MINI, "y": WARP}, pictures=False)
    with pytest.raises(DatasetError, match="say which editors"):
        compare(a, named, tmp_path)
    empty = make_report(tmp_path / "empty", {})
    with pytest.raises(DatasetError, match="no editor ran in report b"):
        compare(a, empty, tmp_path)
    assert not (tmp_path / "compare.html").exists()


def test_a_photograph_is_the_same_by_its_content(folders, tmp_path):
    a, _, _, result = folders
    renamed = make_report(tmp_path / "renamed", {"mini": STRONGER, "warp": WARP}, shift=SHIFT)
    rows = [row | {"photograph": "train-00000.parquet"} for row in load_report(renamed)[0]]
    (renamed / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    again = compare(a, renamed, tmp_path / "out")
    for pair, other in zip(result["pairs"], again["pairs"], strict=True):
        assert pair["metrics"] == other["metrics"]


def test_of_one_person_there_is_no_interval_and_nothing_stands_out(tmp_path):
    folders = [make_report(tmp_path / name, shift=shift) for name, shift in (("a", 0), ("b", SHIFT))]
    for folder in folders:
        rows = [row for row in load_report(folder)[0] if row["person"] == "001"]
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = compare(*folders, tmp_path / "out")
    found = _pair(result, "mini")["metrics"]["identity_distance"]
    assert found["difference"] == pytest.approx(SHIFT)
    assert found["low"] is found["high"] is None
    assert "Of one person there is no interval" in (tmp_path / "out" / "compare.html").read_text()
    assert "**" not in (tmp_path / "out" / "compare.md").read_text().partition("identity distance")[2]
