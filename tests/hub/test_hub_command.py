"""`magicedit push`: the card that goes with the weights, who may have them, and what is refused."""

import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from machines import OWNER, STRANGER

from magicedit.action_units import NAMES
from magicedit.cli import main
from magicedit.cli.evaluation import fingerprint
from magicedit.embedded import embedded_folder
from magicedit.errors import ModelError
from magicedit.hub import describe_folder, gated_card, measured_card, model_card, read_results
from magicedit.hub.cards import GATE, UNLICENSED
from magicedit.pipelines import pipeline_magicedit
from magicedit.pipelines.pipeline_magicedit import self_contained

REPOSITORY = Path(__file__).resolve().parents[2]
REPORT = REPOSITORY / "benchmarks" / "evaluation" / "table1-small" / "summary.json"

COMMAND = """
import contextlib, io
from magicedit.cli import main

out, err = io.StringIO(), io.StringIO()
with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
    result["code"] = main(["push", *arguments])
result["out"], result["err"] = out.getvalue(), err.getvalue()
"""
DOWNLOAD = """
from huggingface_hub import hf_hub_download

try:
    result["path"] = hf_hub_download(repo, "unet/diffusion_pytorch_model.safetensors")
except Exception as error:
    result["error"] = type(error).__name__
"""


@pytest.fixture
def folder(small_folder) -> Path:
    """A folder whose index says what ours say, without a card."""
    index = json.loads((small_folder / "model_index.json").read_text())
    index |= {"action_units": "AU12,AU4", "prediction": "flow_mask_paint", "default_steps": 4}
    (small_folder / "model_index.json").write_text(json.dumps(index))
    (small_folder / "README.md").unlink()
    return small_folder


@pytest.fixture
def report(folder, tmp_path) -> Path:
    """A report that measured this folder's weights."""
    summary = json.loads(REPORT.read_text())
    summary["editors"]["mini"]["settings"]["fingerprint"] = fingerprint(str(folder))
    path = tmp_path / "summary.json"
    path.write_text(json.dumps(summary))
    return path


def push(machine, folder: Path, repo: str, *options: str, token: str | None = OWNER) -> dict:
    return machine.run(COMMAND, token=token, arguments=[str(folder), "--repo", repo, *options])


def refused(capsys, *arguments) -> str:
    assert main(["push", *map(str, arguments)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("magicedit: error: ")
    return err


# --- Published ---


def test_a_folder_without_a_card_gets_one(hub, machine, folder):
    done = push(machine, folder, "alice/new", "--license", "cc-by-4.0", "--private")
    assert done["code"] == 0, done["err"]
    assert done["out"] == f"{hub.url}/alice/new\n"
    assert hub.repositories["alice/new"].private
    card = hub.files("alice/new")["README.md"].decode()
    assert card == (folder / "README.md").read_text()
    data, text = ModelCard(card).data, ModelCard(card).text
    assert data.license == "cc-by-4.0"
    assert {"action-units", "face"} <= set(data.tags)
    assert text.lstrip().startswith("# new\n")
    assert 'from_pretrained("alice/new")' in text
    assert "| 0 | AU12 |" in text
    assert "square crops of 32 px. Parameters: `unet` 100,000." in text
    assert not data.to_dict().keys() & GATE.keys()


def test_its_own_card_stays_but_for_the_name(hub, machine, folder):
    card = model_card("Mine", action_units=["AU12", "AU4"], description="Made with care.")
    (folder / "README.md").write_text(card)
    done = push(machine, folder, "alice/mine", "--json")
    assert "the card states no licence" in done["err"]
    assert json.loads(done["out"])["card_changed"]
    published = hub.files("alice/mine")["README.md"].decode()
    assert published == card.replace("path/to/this/folder", "alice/mine")
    assert published != card
    again = push(machine, folder, "alice/mine", "--json")
    assert not json.loads(again["out"])["card_changed"]
    assert (folder / "README.md").read_text() == published


def test_measured_results_come_from_a_report(hub, machine, folder, report):
    (folder / "README.md").write_text(model_card("Mine", description="Made with care."))
    done = push(machine, folder, "alice/measured", "--results", str(report))
    assert done["code"] == 0, done["err"]
    text = hub.files("alice/measured")["README.md"].decode()
    section = text.split("\n## Measured results\n")[1].split("\n## ")[0]
    summary = json.loads(report.read_text())
    control = summary["editors"]["mini"]["control"]
    seen, level = (control[scorer]["AU12"]["levels"][0] for scorer in ("blendshapes", "landmarks68"))
    assert f"| AU12 | +3 | +{seen['mean']:.2f} [" in section
    assert f"+{level['mean']:.2f} [{level['low']:.3g}, {level['high']:.3g}]" in section
    assert "table1-small" in section
    assert "None were recorded" not in text
    assert "Made with care." in text
    assert "## Limits, and what it is not for" in text


def test_a_gated_model_asks_first(hub, machine, folder):
    (folder / "README.md").write_text(model_card("Mine"))
    done = push(machine, folder, "alice/gated", "--gated", "--license", "mit")
    assert (done["code"], "states no licence" in done["err"]) == (0, False)
    repository = hub.repositories["alice/gated"]
    assert repository.gated == "auto"
    assert repository.gated_before_files  # nobody could have had the weights meanwhile
    data = ModelCard(hub.files("alice/gated")["README.md"].decode()).data
    assert "did not agree" in " ".join(data.extra_gated_prompt.split())
    assert "checkbox" in data.extra_gated_fields.values()
    assert data.license == "mit"
    assert machine.run(DOWNLOAD, repo="alice/gated", token=STRANGER) == {"error": "GatedRepoError"}
    assert "path" in machine.run(DOWNLOAD, repo="alice/gated", token=OWNER)
    assert push(machine, folder, "alice/gated")["code"] == 0
    assert repository.gated == "auto"  # stays as it is
    assert push(machine, folder, "alice/gated", "--gated-manually")["code"] == 0
    assert repository.gated == "manual"


def test_a_dry_run_shows_the_card_and_does_nothing(hub, machine, folder):
    asked = len(hub.requests)
    done = push(machine, folder, "alice/dry", "--license", "mit", "--gated", "--dry-run", token=None)
    assert done["code"] == 0
    assert ModelCard(done["out"]).data.extra_gated_button_content
    assert not (folder / "README.md").exists()
    assert len(hub.requests) == asked


def test_a_dry_run_for_programs_is_json(capsys, folder):
    options = ["--repo", "alice/dry", "--license", "mit", "--dry-run"]
    assert main(["push", str(folder), *options]) == 0
    card = capsys.readouterr().out
    assert main(["push", str(folder), *options, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"card": card, "card_changed": True}
    (folder / "README.md").write_text(card)
    assert main(["push", str(folder), *options, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"card": card, "card_changed": False}


@pytest.mark.parametrize(
    "content",
    [
        "# Größe".encode("latin-1"),
        b"---\nlicense: [mit\n---\n\n# Card\n",
        b"---\n- mit\n---\n\n# Card\n",
        b"---\ndate: 2020-13-45\n---\n\n# Card\n",
        b"---\nlicense: {mit: yes}\n---\n\n# Card\n",
    ],
    ids=["other encoding", "broken header", "a list", "no such date", "no licence"],
)
def test_cards_that_cannot_be_read(capsys, folder, content):
    (folder / "README.md").write_bytes(content)
    repo = ["--repo", "alice/no", "--dry-run"]
    assert "cannot be read as a model card" in refused(capsys, folder, *repo)
    assert "--card" in refused(capsys, folder, *repo, "--license", "mit")
    assert "--license apache-2.0" in refused(capsys, folder, *repo, "--card")
    assert main(["push", str(folder), *repo, "--card", "--license", "mit"]) == 0
    assert ModelCard(capsys.readouterr().out).data.license == "mit"
    assert (folder / "README.md").read_bytes() == content


def test_without_a_token_nothing_is_written(hub, machine, folder):
    done = push(machine, folder, "alice/none", "--license", "mit", token=None)
    assert done["code"] == 2
    assert "needs an access token" in done["err"]
    assert "hf auth login" in done["err"]
    assert not (folder / "README.md").exists()


# --- Refused ---


def test_folders_that_are_no_model(capsys, folder, tmp_path):
    repo = ["--repo", "alice/no", "--license", "mit"]
    assert "must be OWNER/NAME" in refused(capsys, folder, "--repo", "no")
    assert "not a pipeline folder" in refused(capsys, tmp_path / "nowhere", *repo)
    assert "not a pipeline folder" in refused(capsys, tmp_path, *repo)
    index = json.loads((folder / "model_index.json").read_text())
    del index["action_units"]
    (folder / "model_index.json").write_text(json.dumps(index))
    assert "not the pipeline of an expression editor" in refused(capsys, folder, *repo)


def test_what_a_card_must_say(capsys, folder, report, tmp_path):
    repo = ["--repo", "alice/no"]
    assert "--license apache-2.0" in refused(capsys, folder, *repo)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n\n# Card\n")
    assert "--license is empty" in refused(capsys, folder, *repo, "--license", "")
    assert "needs a name and a link" in refused(capsys, folder, *repo, "--license", "other")
    assert "says another licence" in refused(capsys, folder, *repo, "--license", "apache-2.0")
    (folder / "README.md").write_text("---\nlicense: [other, mit]\n---\n\n# Card\n")
    assert "add license_name" in refused(capsys, folder, *repo, "--card")
    (folder / "README.md").write_text("---\nlicense:\n- mit\n- cc0-1.0\n---\n\n# Card\n")
    assert "says another licence" in refused(capsys, folder, *repo, "--license", "mit")
    assert "no section `## Measured results`" in refused(capsys, folder, *repo, "--results", report)
    assert "of other weights" in refused(capsys, folder, *repo, "--results", REPORT)
    assert "it has copy, warp, mini" in refused(capsys, folder, *repo, "--results", report, "--editor", "x")
    (tmp_path / "other.json").write_text("[]")
    assert "not a report" in refused(capsys, folder, *repo, "--results", tmp_path / "other.json")
    assert "does not exist" in refused(capsys, folder, *repo, "--results", tmp_path / "nowhere.json")


def test_a_licence_that_the_author_put_into_the_header_is_said_in_the_text_too(capsys, folder):
    card = model_card("Mine")
    (folder / "README.md").write_text(card.replace("---\n", "---\nlicense: mit\n", 1))
    assert main(["push", str(folder), "--repo", "alice/mine", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "The weights are under mit." in shown
    assert UNLICENSED not in shown


# --- The card ---


def test_mini_describes_itself():
    about = describe_folder(embedded_folder("mini"))
    assert about["action_units"] == list(NAMES)
    assert about["resolution"] == 128
    assert "`unet` 7." in about["description"]
    assert "million" in about["description"]
    assert "4 steps" in about["description"]


def test_gate_keeps_what_was_written():
    card = gated_card("---\nlicense: mit\nextra_gated_prompt: Ours.\n---\n\n# Card\n")
    assert ModelCard(card).data.extra_gated_prompt == "Ours."
    assert ModelCard(card).data.extra_gated_fields == GATE["extra_gated_fields"]
    assert "# Card" in card
    assert gated_card(card) == card
    assert ModelCard(model_card("Small", gated=True)).data.extra_gated_heading == GATE["extra_gated_heading"]


def test_results_replace_their_section_alone():
    card = model_card("Small", results={"faces": 10})
    again = measured_card(card, {"faces": 20}, "Anew, with \\1 and | in it.")
    assert "| faces | 20 |" in again
    assert "| faces | 10 |" not in again
    assert again == model_card("Small", results={"faces": 20}, results_note="Anew, with \\1 and | in it.")
    with pytest.raises(ModelError, match="no section"):
        measured_card("# Other\n", {"faces": 1})


def test_reports_without_single_units_give_their_headline(tmp_path):
    summary = json.loads(REPORT.read_text())
    summary["editors"]["mini"]["control"] = {"blendshapes": {}, "landmarks68": {}}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    results = read_results(tmp_path / "summary.json")
    assert (
        results.rows["seconds an edit"]["mean"] == summary["editors"]["mini"]["headline"]["seconds"]["mean"]
    )
    del summary["editors"]["mini"]
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(ModelError, match="baselines only"):
        read_results(tmp_path / "summary.json")


def test_the_strongest_level_is_that_of_most_steps_either_way(tmp_path):
    """And a scorer that was asked for others says which its figure is of."""
    summary = json.loads(REPORT.read_text())
    control = summary["editors"]["mini"]["control"]
    (only,) = control["blendshapes"]["AU12"]["levels"]
    control["blendshapes"]["AU12"]["levels"] = [only | {"asked": asked} for asked in (-3.0, 1.0)]
    control["landmarks68"]["AU12"]["levels"][0]["asked"] = -1.0
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    row = read_results(tmp_path / "summary.json").rows["AU12"]
    assert row["asked"] == "-3"
    assert row["blendshapes"].endswith("]")
    assert row["landmarks68"].endswith("] (asked -1)")


def test_reports_of_one_person_have_no_intervals(tmp_path):
    summary = json.loads(REPORT.read_text())
    mini = summary["editors"]["mini"]
    levels = [
        level for units in mini["control"].values() for unit in units.values() for level in unit["levels"]
    ]
    for figure in (*mini["headline"].values(), *levels):
        figure["low"] = figure["high"] = None
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    results = read_results(tmp_path / "summary.json")
    assert results.rows["AU12"]["landmarks68"].endswith(" [–]")
    assert "seconds an edit: " in results.note


# --- Embedded models ---


@pytest.mark.parametrize("model", ["mini", "mini-live"])
def test_an_embedded_model_is_published_whole_with_its_code(hub, machine, model):
    """The package holds the code once and the ID encoder once, and stays as it is."""
    card = (embedded_folder(model) / "README.md").read_bytes()
    done = push(machine, model, f"alice/{model}")
    assert done["code"] == 0, done["err"]
    assert "wrote" not in done["err"]
    files = hub.files(f"alice/{model}")
    assert files["pipeline.py"].decode() == self_contained(Path(pipeline_magicedit.__file__))
    weights = "diffusion_pytorch_model.safetensors"
    for name, owner in (("unet", model), ("reference_unet", "mini")):
        assert files[f"{name}/{weights}"] == (embedded_folder(owner) / name / weights).read_bytes()
    assert f"# {model}\n".encode() in files["README.md"]
    assert (b"alice/mini" in files["README.md"]) == (
        model == "mini"
    )  # the one whose card names its repository
    assert (embedded_folder(model) / "README.md").read_bytes() == card


def test_a_folder_of_that_name_is_published_in_its_place(folder, tmp_path, monkeypatch, capsys):
    folder.rename(tmp_path / "mini")
    monkeypatch.chdir(tmp_path)
    assert main(["push", "mini", "--repo", "alice/mini", "--license", "mit", "--dry-run"]) == 0
    assert "square crops of 32 px" in capsys.readouterr().out  # 128 px in the package
