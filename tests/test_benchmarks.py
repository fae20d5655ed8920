"""Committed results follow from their rows, and say how they came about."""

import json
import statistics
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from tiny_models import tiny_patch_pipeline

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import export_speed  # noqa: E402
import mini_quality  # noqa: E402
import train_tables  # noqa: E402
from proxy import TINY, make_pipeline  # noqa: E402

from magicedit.evaluation import headline_table, load_protocol  # noqa: E402


def committed(name: str) -> dict:
    return json.loads((BENCHMARKS / f"{name}.json").read_text())


@pytest.mark.parametrize("name", ["mini_quality", "muscle_calibration", "edit_speed"])
def test_results_say_where_they_come_from(name):
    data = committed(name)
    assert data["command"].startswith(f"python benchmarks/{name}.py")
    assert data["date"]
    assert data["hardware"]["cores"]
    assert data["versions"]["torch"]


def test_tables_follow_from_the_rows():
    data = committed("mini_quality")
    summary = mini_quality.summary_of(data["rows"], committed("muscle_calibration"))
    assert json.loads(json.dumps(summary)) == data["summary"]
    assert mini_quality.checks_of(summary) == data["checks"]
    assert len({row["identity"] for row in data["rows"]}) == 10


def test_a_worse_model_reaches_less():
    """Rows of edits that change nothing: what needs a change is missed, what needs restraint is reached."""
    rows = committed("mini_quality")["rows"]
    for row in rows:
        for scorer in mini_quality.SCORERS:
            if scorer in row:
                row[scorer] = dict.fromkeys(row[scorer], 0.0)
        if "identity_distance" in row:
            row["identity_distance"] = 0.0
    checks = mini_quality.checks_of(mini_quality.summary_of(rows, committed("muscle_calibration")))
    reached = {check["what"]: check["reached"] for check in checks}
    assert not any(value for what, value in reached.items() if "goes up" in what or "Spearman" in what)
    assert not reached["AU12 = +3 measures +1.5 or more"]
    assert reached["identity distance at +3, mean over AUs"]
    assert reached["change of AUs not asked for, at +3"]


def test_teeth_are_what_is_bright_and_pale(astronaut):
    """Most of a laughing mouth, nothing of one that is painted dark, nothing of closed lips."""
    from magicedit.faces import load_backend
    from magicedit.faces.regions import region_polygon

    (face,) = load_backend().detect(astronaut)
    assert mini_quality.teeth_share(astronaut, face) > 0.3
    import cv2

    mouth = np.rint(region_polygon(face.landmarks, face.scheme, "mouth")).astype(np.int32)
    dark = cv2.fillPoly(astronaut.copy(), [mouth], (60, 20, 20))
    assert mini_quality.teeth_share(dark, face) < 0.1


def test_sobel_of_a_step():
    """A step of 100 between two columns: OpenCV's kernel sums to 4 on each of the two."""
    step = np.zeros((8, 8, 3), np.uint8)
    step[:, 4:] = 100
    assert mini_quality.sobel(step)[4].tolist() == [0, 0, 0, 400, 400, 0, 0, 0]


def test_the_pictures_are_made_by_their_script():
    for name in ("aus.jpg", "muscles.jpg"):
        with Image.open(BENCHMARKS.parent / "docs" / "images" / name) as picture:
            assert picture.width > 800


EVALUATIONS = sorted(folder.name for folder in (BENCHMARKS / "evaluation").iterdir())


def test_the_evaluations_that_the_pages_show_are_there():
    assert {"table1-small", "table3", "table4"} <= set(EVALUATIONS)


@pytest.mark.parametrize("name", EVALUATIONS)
def test_evaluations_follow_from_their_rows(name):
    """The mean of each figure by a plain average of the committed rows; no folder of a machine in any."""
    folder = BENCHMARKS / "evaluation" / name
    summary, protocol = json.loads((folder / "summary.json").read_text()), load_protocol(name)
    assert summary["protocol"] == protocol.to_json()
    rows = pq.read_table(folder / "rows.parquet").to_pandas()
    rows = rows[rows.error.isna() & (rows.kind != "zero")]
    for editor, about in summary["editors"].items():
        own = rows[rows.editor == editor]
        for key, found in about.get("headline", {}).items():
            column = key.replace("/", ".")
            assert found["mean"] == pytest.approx(own[column].mean(), abs=2e-5), (editor, key)
            assert found["low"] <= found["mean"] <= found["high"]
    assert "/tmp" not in json.dumps(summary) + rows.to_csv()
    assert "| editor" in headline_table(summary)


def test_a_shuffled_table_is_noticed():
    """The test above can fail: figures of another editor's rows differ."""
    folder = BENCHMARKS / "evaluation" / "table1-small"
    summary = json.loads((folder / "summary.json").read_text())
    warp, mini = (summary["editors"][name]["headline"]["identity_distance"] for name in ("warp", "mini"))
    assert abs(warp["mean"] - mini["mean"]) > 2e-5


def test_every_variant_of_the_tables_is_trained_once():
    runs = train_tables.variants(["table2", "table3", "table4"])
    assert set(runs) == {"linear", "padded", "latent_map", "no_dropout", "none", "convolution", "clip"}
    assert runs["linear"] == {}
    assert runs["no_dropout"] == {"au_dropout": 0.0}


# --- Export -------------------------------------------------------------------------------------------------


EXPORTS = sorted(committed("export_speed"))


def test_exports_were_measured_for_both_models():
    assert {"mini, denoiser", "proxy, denoiser"} <= set(EXPORTS)


@pytest.mark.parametrize("name", EXPORTS)
def test_verdicts_on_exports_follow_from_their_seconds(name):
    row = committed("export_speed")[name]
    assert row["command"].startswith("python benchmarks/export_speed.py")
    assert row["date"]
    assert row["hardware"]["cores"]
    assert row["threads"] == 1
    assert "not installed" not in [
        row["versions"][package] for package in ("torch", "onnx", "onnxscript", "onnxruntime", "openvino")
    ]
    assert row["pairs"] >= 15
    assert abs(row["control"]["median"] - 1) <= 0.03
    if "prepared" not in row:  # a whole edit
        row |= {"prepared": {"ONNX Runtime": {"difference": row["difference"]}}, "largest": 1}
    for about in row["prepared"].values():
        assert about["difference"] <= export_speed.TOLERANCE * max(1, row["largest"])
    for values in row["seconds"].values():
        assert values["median"] == pytest.approx(statistics.median(values["all"]), rel=1e-4)
    assert export_speed.verdict_of(row) == row["verdict"]


@pytest.mark.parametrize(
    "make", [tiny_patch_pipeline, lambda: make_pipeline(TINY)], ids=["patches", "tokens"]
)
def test_what_is_exported_computes_what_the_pipeline_does(make):
    """As a graph of tensors: with other inputs than it was traced with, to float32's rounding."""
    pipeline = make()
    with torch.no_grad():
        for network, inputs, run in export_speed.networks(pipeline, pipeline.config.resolution).values():
            graph = torch.export.export(network, inputs).module()
            for found, expected in zip(graph(*inputs), run(), strict=True):
                torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
            other = (inputs[0] + 1, *inputs[1:])
            for found, expected in zip(graph(*other), network(*other), strict=True):
                torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
            assert not torch.allclose(graph(*other)[-1], graph(*inputs)[-1], atol=1e-3)


# --- Expressions and the page -------------------------------------------------------------------------------


def test_expressions_means_follow_from_their_rows():
    transfer, loop = (committed("expressions")[part] for part in ("transfer", "loop"))
    for key in ("before", "open", "closed"):
        values = [row[key] for row in transfer["rows"]]
        assert transfer["mean"][key] == pytest.approx(statistics.mean(values), abs=6e-4)
        assert transfer["worst"][key] == max(values)
    possible = [row for row in loop["rows"] if row["possible"]]
    assert (loop["requests"], loop["possible"]) == (len(loop["rows"]), len(possible))
    assert loop["reached"] == sum(row["reached"] for row in possible)
    assert loop["share"] == pytest.approx(loop["reached"] / len(possible), abs=6e-4)
    assert all(row["edits"] <= loop["max_edits"] for row in loop["rows"])
    # Whoever reached it, it was possible: the definition is not to be had for free
    assert [row for row in loop["rows"] if row["reached"] and not row["possible"]] == []


def test_the_pages_medians_follow_from_its_rows():
    further = committed("app")["further"]
    rows = further["rows"]
    assert len(rows) == further["edits"] >= 15
    added = [row["page_seconds"] - row["library_seconds"] for row in rows]
    assert further["added_median_ms"] == pytest.approx(1000 * statistics.median(added), abs=1)
    assert further["page_median_seconds"] == pytest.approx(
        statistics.median(row["page_seconds"] for row in rows), abs=6e-4
    )
