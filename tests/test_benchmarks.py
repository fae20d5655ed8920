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
import attribute_diffusion  # noqa: E402
import emotion_diffusion  # noqa: E402
import export_speed  # noqa: E402
import flow_autoencoder  # noqa: E402
import ganimation  # noqa: E402
import jury  # noqa: E402
import jury_smiles  # noqa: E402
import mini_quality  # noqa: E402
import train_tables  # noqa: E402
from proxy import TINY, make_pipeline  # noqa: E402

from magicedit.action_units import EMOTIONS, NAMES  # noqa: E402
from magicedit.errors import DatasetError, MagicEditError, NoFaceError  # noqa: E402
from magicedit.evaluation import headline_table, load_protocol  # noqa: E402


def committed(name: str) -> dict:
    return json.loads((BENCHMARKS / f"{name}.json").read_text())


@pytest.mark.parametrize(
    "name",
    [
        "attribute_diffusion",
        "mini_quality",
        "muscle_calibration",
        "emotion_diffusion",
        "flow_autoencoder",
        "ganimation",
        "video_frames",
    ],
)
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


def test_the_flow_autoencoders_smiles_follow_from_the_rows():
    data = committed("flow_autoencoder")
    summary = flow_autoencoder.summary_of(data["rows"], list(data["roughness"].values()))
    assert summary == data["summary"]
    assert len({row["identity"] for row in data["rows"]}) == 10
    for request in ("class happiness=+5", "emotion happiness"):
        assert min(summary["requests"][request]["smile"].values()) >= 8
    for row in data["rows"]:
        row["au12"] = dict.fromkeys(row["au12"], 0.4)
    worse = flow_autoencoder.summary_of(data["rows"], [1.0])
    assert not any(any(found["smile"].values()) for found in worse["requests"].values())


def test_the_ganimations_smiles_and_masks_follow_from_the_rows():
    data = committed("ganimation")
    summary = ganimation.summary_of(data["rows"], data["crops"])
    assert summary == data["summary"]
    assert len({row["identity"] for row in data["rows"]} & {crop["identity"] for crop in data["crops"]}) == 10
    assert summary["attention_inside"] > 1.5 * summary["attention_outside"]
    assert summary["zero_levels"] < summary["edit_levels"]
    for row in data["rows"]:
        row["au12"] = dict.fromkeys(row["au12"], 0.4)
    worse = ganimation.summary_of(data["rows"], data["crops"])
    assert not any(any(found["smile"].values()) for found in worse["requests"].values())


def test_the_emotion_diffusions_figures_follow_from_the_rows():
    data = committed("emotion_diffusion")
    assert emotion_diffusion.summary_of(data["rows"], data["round_trips"]) == data["summary"]
    assert len({row["identity"] for row in data["rows"]}) == 10
    trips = [data["summary"]["round_trips"][str(level)] for level in emotion_diffusion.LEVELS]
    for column in ("psnr_inverted", "psnr_edited"):  # the more noise, the less is left
        assert trips[0][column] > trips[-1][column]


def test_the_attribute_diffusions_smiles_follow_from_the_rows():
    data = committed("attribute_diffusion")
    summary = attribute_diffusion.summary_of(data["rows"], data["crops"])
    assert summary == data["summary"]
    assert len({row["identity"] for row in data["rows"]} & {crop["identity"] for crop in data["crops"]}) == 10
    assert min(summary["requests"]["emotion happiness"]["smile"].values()) >= 8
    assert summary["psnr_kept"] > summary["psnr_edited"] + 10
    for row in data["rows"]:
        row["au12"] = dict.fromkeys(row["au12"], 0.4)
    worse = attribute_diffusion.summary_of(data["rows"], data["crops"])
    assert not any(any(found["smile"].values()) for found in worse["requests"].values())


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
    rows = rows[rows.error.isna() & ~rows.kind.isin(["zero", "between", "back"])]
    for editor, about in summary["editors"].items():
        own = rows[rows.editor == editor]
        for key, found in about.get("headline", {}).items():
            column = key.replace("/", ".")
            assert found["mean"] == pytest.approx(own[column].mean(), abs=2e-5), (editor, key)
            assert found["low"] <= found["mean"] <= found["high"]
    assert "/tmp" not in json.dumps(summary) + rows.to_csv()
    assert ("| family" if protocol.has_emotions else "| editor") in headline_table(summary)


def test_a_shuffled_table_is_noticed():
    """The test above can fail: figures of another editor's rows differ."""
    folder = BENCHMARKS / "evaluation" / "table1-small"
    summary = json.loads((folder / "summary.json").read_text())
    warp, mini = (summary["editors"][name]["headline"]["identity_distance"] for name in ("warp", "mini"))
    assert abs(warp["mean"] - mini["mean"]) > 2e-5


def test_every_variant_of_the_tables_is_trained_once():
    runs = train_tables.variants(["table2", "table3", "table4"])
    assert set(runs) == {"linear", "padded", "latent_map", "no_dropout", "none", "convolution", "clip"}
    assert runs["linear"].train == {}
    assert runs["no_dropout"].train == {"au_dropout": 0.0}


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


# --- The jury -----------------------------------------------------------------------------------------------


def dimmed(photo, au_delta, seed):
    """An editor that darkens the whole photograph, and fails at AU26."""
    if "AU26" in au_delta:
        raise NoFaceError("the jaw is lost")
    return photo.pixels // 2


@pytest.fixture
def jury_folder(tmp_path, astronaut, monkeypatch):
    """A folder of photographs with one London face, and the jury's command line in this process."""
    photographs = tmp_path / "faces"
    (photographs / "london" / "001").mkdir(parents=True)
    Image.fromarray(astronaut).save(photographs / "london" / "001" / "neutral.jpg", quality=95)

    def run(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["benchmarks/jury.py", *words])
        return jury.main()

    return photographs, tmp_path / "out", run


def sheets_of(
    jury_folder, *words: str, editors=("copy", f"dim={__name__}:dimmed"), requests="AU25=+3;AU26=+4"
):
    photographs, out, run = jury_folder
    named = [word for editor in editors for word in ("--editor", editor)]
    options = ["--photographs", str(photographs), "--requests", requests, "--tile", "64", *words]
    return run("sheets", str(out), *named, *options)


def test_jury_requests_are_the_issues():
    """The five openings, every unit at +3 once, and codes that no later choice renumbers."""
    texts = [request.text for request in jury.REQUESTS]
    assert texts[:5] == ["AU25=+3", "AU12=+4,AU25=+3", "AU26=+4", "happiness", "surprise"]
    assert {f"{name}=+3" for name in NAMES} <= set(texts)
    assert len(set(texts)) == len(texts) == 37
    assert [request.number for request in jury.REQUESTS] == list(range(1, 38))
    assert jury.REQUESTS[3].deltas == EMOTIONS["happiness"]
    assert jury.REQUESTS[3].edit.emotion == "happiness"  # families of emotions know no units
    assert jury.REQUESTS[2].edit.emotion is None
    assert jury.chosen_requests("openings") == list(jury.REQUESTS[:5])
    assert [request.number for request in jury.chosen_requests("controls")] == list(range(24, 38))
    assert jury.chosen_requests("gaze_yaw=-15")[0].shows_brows
    with pytest.raises(MagicEditError, match="no request AU99"):
        jury.chosen_requests("AU99=+3")


def test_jury_shuffles_editors_by_seed_and_cell():
    """Each editor comes first in about half of the cells, the same ones whatever else is chosen."""
    faces = [jury.ValidationFace(n, f"face{n}", "synthetic", Path()) for n in range(1, 53)]
    cells = [
        jury.blind_codes(request, face, ("mini", "warp"), 0) for request in jury.REQUESTS for face in faces
    ]
    first = [next(iter(cell.values())) for cell in cells]
    assert 0.45 < first.count("mini") / len(first) < 0.55
    assert list(cells[0]) == ["01-01a", "01-01b"]
    assert cells[0] == jury.blind_codes(jury.REQUESTS[0], faces[0], ("warp", "mini"), 0)
    other_seed = [jury.blind_codes(jury.REQUESTS[0], face, ("mini", "warp"), 1) for face in faces]
    assert other_seed != cells[: len(faces)]


def test_jury_sheets_hold_the_editors_pictures_and_not_their_names(jury_folder, astronaut):
    _, out, _ = jury_folder
    assert sheets_of(jury_folder) == 0
    key = json.loads((out / "key.json").read_text())
    by_code = {tile["code"]: tile for tile in key["tiles"]}
    assert {tile["editor"] for tile in by_code.values()} == {"copy", "dim"}
    assert [tile["error"] for tile in by_code.values() if tile["editor"] == "dim"] == ["", "the jaw is lost"]
    form = (out / "ratings.tsv").read_text()
    assert form.startswith("code\trating\treads_as_intended\tpreferred\n")
    assert form.count("\n") == 4  # the failed edit needs no rating
    assert "dim" not in form
    sheet = np.asarray(Image.open(out / "sheets" / "01-1.png"))
    places = {"unedited": 0} | {by_code[f"01-01{letter}"]["editor"]: n for n, letter in enumerate("ab", 1)}
    brightness = {
        name: sheet[34 : 34 + 64, place * 134 + 70 : place * 134 + 128].mean()
        for name, place in places.items()
    }
    assert brightness["copy"] == brightness["unedited"]
    assert brightness["dim"] == pytest.approx(brightness["unedited"] / 2, abs=1)


def test_jury_resumes_and_keeps_ratings(jury_folder):
    _, out, _ = jury_folder
    sheets_of(jury_folder, requests="AU25=+3")
    tile = out / "tiles" / "dim" / "001" / "01.png"
    Image.new("RGB", (128, 64), "red").save(tile)  # an edit that is there is not made again
    form = out / "ratings.tsv"
    filled = form.read_text().replace("01-01a\t\t", "01-01a\t2\tyes").replace("01-01b\t\t", "01-01b\t1\tno")
    form.write_text(filled)
    assert sheets_of(jury_folder, requests="AU25=+3;AU1=+3") == 0
    with Image.open(tile) as picture:
        assert picture.getpixel((5, 5)) == (255, 0, 0)
    assert form.read_text().startswith(filled)
    assert "06-01a\t" in form.read_text()


def test_jury_refuses_a_folder_of_other_editors_or_weights(jury_folder, capsys):
    _, out, _ = jury_folder
    sheets_of(jury_folder, requests="AU25=+3")
    assert sheets_of(jury_folder, editors=("copy",), requests="AU25=+3") == 1
    assert "made with editors copy, dim, this run has copy" in capsys.readouterr().err
    assert sheets_of(jury_folder, "--seed", "1", requests="AU25=+3") == 1
    assert "made with seed 0, this run has 1" in capsys.readouterr().err
    made = out / "tiles" / "copy" / jury.MADE
    made.write_text(made.read_text().replace('"code": "', '"code": "0'))
    assert sheets_of(jury_folder, requests="AU25=+3") == 1
    assert "pictures of copy with another code" in capsys.readouterr().err


def test_jury_takes_pictures_of_another_checkout(jury_folder):
    photographs, out, run = jury_folder
    options = ("--photographs", str(photographs), "--requests", "AU25=+3", "--tile", "64")
    assert run("edit", str(out), "--editor", "before=copy", *options) == 0
    assert not (out / "key.json").exists()
    made = out / "tiles" / "before" / jury.MADE
    made.write_text(made.read_text().replace('"code": "', '"code": "0'))
    assert run("sheets", str(out), "--editor", "copy", "--made", "before", *options) == 0
    assert set(json.loads((out / "key.json").read_text())["editors"]) == {"before", "copy"}
    assert run("sheets", str(out), "--made", "nobody", *options) == 1


def jury_rows() -> list[dict]:
    """Two faces of each kind, two requests; a: 3 everywhere but one 0, and preferred but there; b: 1."""
    rows = []
    for kind, face in (("london", "001"), ("london", "011"), ("synthetic", "s1"), ("synthetic", "s2")):
        for request, group in (("AU25=+3", "openings"), ("AU1=+3", "others")):
            bad = (face, request) == ("s2", "AU25=+3")
            about = {
                "face": face,
                "kind": kind,
                "request": request,
                "group": group,
                "error": "",
                "juror": "j",
            }
            a, b = (0.0, 1.0) if bad else (3.0, 1.0)
            rows.append(about | {"editor": "a", "rating": a, "reads": "yes", "preferred": not bad})
            rows.append(about | {"editor": "b", "rating": b, "reads": "half", "preferred": False})
    return rows


def test_jury_table_by_hand():
    summary = jury.summary_of(jury_rows())
    openings = summary["openings"]
    assert openings["all"]["a"] == {
        "n": 4, "mean": 2.25, "share_0": 0.25, "failed": 0,
        "reads_yes": 1.0, "reads_half": 0.0, "reads_no": 0.0,
        "over": {"b": {"cells": 4, "chosen": 3, "preferred": 1.0, "differ": 4, "better": 0.75}},
    }  # fmt: skip
    assert openings["london"]["a"]["mean"] == 3.0
    assert openings["synthetic"]["a"]["mean"] == 1.5
    assert openings["all"]["b"]["over"]["a"]["preferred"] == 0.0
    assert summary["AU1=+3"] == summary["others"]
    assert summary["all"]["all"]["b"]["reads_half"] == 1.0
    assert "| openings | a | 4 | 2.25 (3.00 / 1.50) | 25.0% | 100% | 0% | 100% of 3 over b |" in (
        jury.table_of(summary)
    )


def test_jury_names_each_wrong_row(tmp_path):
    """Good rows beside one of each mistake, a line each; none of the good ones is complained about."""
    tiles = [
        jury.Tile(f"01-0{n}{letter}", editor, f"face{n}", "london", "AU25=+3", "openings")
        for n in (1, 2, 3, 4)
        for letter, editor in (("a", "mini"), ("b", "warp"))
    ]
    form = tmp_path / "form.csv"
    form.write_text(
        "code,rating,reads_as_intended,preferred\n"
        "01-01a,3,yes,yes\n01-01b,2,no,yes\n01-02a,4,yes,\n01-02b,-1,maybe,perhaps\n"
        "99-01a,2,yes,\n01-03a,2,yes,\n01-03a,2,yes,\n01-03b,,,\n01-04a,good,yes,\n"
    )
    rows, problems = jury.read_ratings(form, tiles)
    assert problems == [
        "form.csv line 4: 01-02a: the rating must be 0 to 3, got 4",
        "form.csv line 5: 01-02b: the rating must be 0 to 3, got -1",
        "form.csv line 5: 01-02b: reads_as_intended must be yes, half or no, got 'maybe'",
        "form.csv line 5: 01-02b: preferred must be yes or empty, got 'perhaps'",
        "form.csv line 6: unknown code '99-01a'",
        "form.csv line 8: a second row of 01-03a",
        "form.csv line 9: 01-03b has no rating",
        "form.csv line 10: 01-04a: the rating must be 0 to 3, got 'good'",
        "form.csv: no row of 01-04b",
        "form.csv: two pictures of face1, AU25=+3, are preferred; choose one or none",
    ]
    assert [row["code"] for row in rows] == ["01-01a", "01-01b", "01-03a"]
    _, problems = jury.read_ratings(form, tiles, partial=True)
    assert not [line for line in problems if "no rating" in line or "no row" in line]
    form.write_text("code,rating\n01-01a,3\n")
    with pytest.raises(DatasetError, match="lacks the columns reads_as_intended, preferred"):
        jury.read_ratings(form, tiles)


def test_jury_table_counts_failed_edits_as_0(jury_folder, tmp_path, capsys):
    _, out, run = jury_folder
    sheets_of(jury_folder)
    form = out / "ratings.tsv"
    assert run("table", str(out), "-o", str(tmp_path / "t.json")) == 1
    assert "has no rating" in capsys.readouterr().err
    form.write_text(form.read_text().replace("\t\t\t", "\t2\tyes\t"))
    assert run("table", str(out), "-o", str(tmp_path / "t.json")) == 0
    found = json.loads((tmp_path / "t.json").read_text())
    dim = found["summary"]["openings"]["all"]["dim"]
    assert (dim["mean"], dim["failed"], dim["share_0"]) == (1.0, 1, 0.5)
    assert found["command"].startswith("python benchmarks/jury.py table")
    assert found["summary"] == json.loads(json.dumps(jury.summary_of(found["rows"])))


def test_jury_measures_small_requests_in_the_mouths_box(jury_folder, astronaut, tmp_path):
    """Halving the photograph changes the box by half its own mean; a copy by nothing."""
    photographs, _, run = jury_folder
    output = tmp_path / "small.json"
    named = ("--editor", "copy", "--editor", f"dim={__name__}:dimmed")
    assert run("small", *named, "--photographs", str(photographs), "-o", str(output)) == 0
    found = json.loads(output.read_text())
    assert all(row["reached"] and row["max"] == 0 for row in found["summary"]["copy"].values())
    from magicedit.faces import load_backend
    from magicedit.imaging import open_photo

    pixels = open_photo(photographs / "london" / "001" / "neutral.jpg").pixels
    (face,) = load_backend().detect(pixels)
    lips = face.landmarks[[61, 291, 0, 17]]  # corners, cupid's bow, lower edge
    box = jury.mouth_box(face, pixels.shape)
    height, width = (part.stop - part.start for part in box)
    assert width == pytest.approx(1.2 * np.ptp(lips[:, 0]), rel=0.1)
    assert height == pytest.approx(1.2 * np.ptp(lips[:, 1]), rel=0.25)  # the bow has two peaks
    expected = (pixels[box] - pixels[box] // 2).mean()
    dim = found["summary"]["dim"]["AU1=+0.5"]
    assert dim["median"] == pytest.approx(expected, abs=1e-3)
    assert (dim["over_limit"], dim["reached"]) == (1, False)


def test_movement_is_not_painted(astronaut):
    moved = np.roll(astronaut, 2, 1)
    ghost = (0.8 * astronaut + 0.2 * astronaut[:, ::-1]).astype(np.uint8)
    inner = np.s_[100:300, 150:350]

    def levels(one, other):
        return np.abs(one[inner].astype(int) - other[inner]).mean()

    assert levels(moved, jury.moved_onto(astronaut, moved)) < 0.2 * levels(moved, astronaut)
    assert levels(ghost, jury.moved_onto(astronaut, ghost)) > 0.8 * levels(ghost, astronaut)


def test_small_requests_have_the_issues_limits():
    rows = [
        {
            "editor": "e",
            "face": str(n),
            "kind": "london",
            "request": "AU12=+0.25",
            "levels": level,
            "painted": 0,
        }
        for n, level in enumerate((1.0, 3.5, 4.9))
    ]
    assert not jury.small_summary(rows)["e"]["AU12=+0.25"]["reached"]  # the median is above 3
    assert jury.small_summary([rows[0], rows[0], rows[2]])["e"]["AU12=+0.25"]["reached"]
    worse = [rows[0], rows[0], rows[2] | {"levels": 5.0}]
    assert jury.small_summary(worse)["e"]["AU12=+0.25"]["over_limit"] == 1


def test_jury_compares_mouths_with_the_real_smile(jury_folder, astronaut, tmp_path, monkeypatch):
    """Where the real smile is the edited photograph, a copy equals it and a darker one is half as bright."""
    photographs, output = jury_folder[0], tmp_path / "smiles.json"
    person = photographs / "london" / "001"
    (person / "smiling.jpg").write_bytes((person / "neutral.jpg").read_bytes())
    named = ["--editor", "copy", "--editor", f"dim={__name__}:dimmed"]
    options = ["--photographs", str(photographs), "-o", str(output)]
    monkeypatch.setattr(sys, "argv", ["benchmarks/jury_smiles.py", *named, *options])
    assert jury_smiles.main() == 0
    found = json.loads(output.read_text())
    assert found["summary"] == json.loads(json.dumps(jury_smiles.summary_of(found["rows"])))
    for request in jury_smiles.ASKED:
        same, dim = (found["summary"][name][request] for name in ("copy", "dim"))
        assert [same[name] for name in ("sharpness", "detail", "luminance", "teeth")] == [1] * 4
        assert same["reached"]
        assert same["st_lpips_mouth"] in (0, None)
        assert dim["teeth"] == pytest.approx(0.5, abs=0.03)
        assert not dim["reached"]


def test_jury_smiles_by_hand():
    """Two people of light skin and one of dark; one kept the lips closed."""
    rows = [
        {
            "editor": "e",
            "face": str(n),
            "request": "happiness",
            "skin": skin,
            "sharpness": value,
            "detail": value,
        }
        | {"luminance": value, "teeth": value, "st_lpips_mouth": 0.1 * n}
        for n, (skin, value) in enumerate(((150.0, 1.0), (60.0, 1.2), (160.0, None)))
    ]
    found = jury_smiles.summary_of(rows)["e"]["happiness"]
    assert (found["n"], found["closed"], found["reached"]) == (3, 1, True)
    assert found["sharpness"] == pytest.approx(1.1)
    assert (found["teeth_light"], found["teeth_dark"]) == (1.0, 1.2)
    assert found["st_lpips_mouth"] == pytest.approx(0.1)
    rows[1]["teeth"] = 1.6  # the mean is 1.3
    assert not jury_smiles.summary_of(rows)["e"]["happiness"]["reached"]


def test_small_requests_follow_from_their_rows():
    found = committed("jury_small")
    assert found["command"].startswith("python benchmarks/jury.py small")
    assert found["summary"] == jury.small_summary(found["rows"])
    assert len({row["face"] for row in found["rows"]}) == 52
