"""The shipped protocols, protocols of one's own, and the paper's numbers beside them."""

import re
from collections import Counter
from dataclasses import fields, replace

import pytest
import yaml

from magicedit.action_units import BILATERAL, EMOTIONS, NAMES, emotion_deltas, parse_deltas, parse_emotion
from magicedit.errors import MagicEditError
from magicedit.evaluation.protocol import Edit, load_protocol, protocol_names, request_text
from magicedit.train.config import TrainConfig, parse_config

BRIEF = {
    "name": "brief",
    "version": 3,
    "title": "A few",
    "description": "Two\n  lines.",
    "identities": 2,
    "levels": {"values": [3]},
}


@pytest.fixture
def write(tmp_path):
    """`write(levels=..., ...)`: a protocol's file of `BRIEF` and these keys; None leaves one out."""

    def write_file(**keys):
        path = tmp_path / "own.yaml"
        content = {key: value for key, value in (BRIEF | keys).items() if value is not None}
        path.write_text(yaml.safe_dump(content))
        return path

    return write_file


# --- What ships ---


def test_names():
    tables = ["table1", "table1-small", "table2", "table3", "table4"]
    assert protocol_names() == ["beyond", "control", "families", *tables]


@pytest.mark.parametrize("name", protocol_names())
def test_shipped_protocols_load(name):
    protocol = load_protocol(name)
    assert protocol.name == name
    assert protocol.identities >= 10
    assert protocol.action_units == NAMES
    assert protocol.title
    assert "\n" not in protocol.description
    assert protocol.to_json()["edits_per_identity"] == len(protocol.edits) * len(protocol.renderings)
    for edit in protocol.edits:
        assert bool(edit.asked) == (edit.kind not in ("zero", "back"))
        if edit.emotion is None:
            assert parse_deltas(edit.request if edit.asked else {}) == edit.asked  # as on the command line
        elif edit.kind != "back":
            assert emotion_deltas(*parse_emotion(edit.request)) == pytest.approx(edit.asked)


def test_table1_is_the_published_size():
    protocol = load_protocol("table1")
    kinds = Counter(edit.kind for edit in protocol.edits)
    assert kinds == {"level": 60, "combination": 387}
    assert protocol.identities * len(protocol.edits) == 8940
    assert {
        (name, value) for e in protocol.edits if e.kind == "level" for name, value in e.asked.items()
    } == {(name, float(level)) for name in NAMES for level in (1, 2, 3, 4, 5)}
    combinations = [frozenset(e.asked.items()) for e in protocol.edits if e.kind == "combination"]
    assert len(set(combinations)) == 387
    for asked in combinations:
        assert 2 <= len(asked) <= 6
        assert all(value in (1, 2, 3, 4, 5) for _, value in asked)


@pytest.mark.parametrize("name", ["table1-small", "table2", "table3", "table4"])
def test_the_small_tables_ask_the_same(name):
    assert load_protocol(name).edits == load_protocol("table1-small").edits
    assert len(load_protocol(name).edits) == 20


def test_control_asks_for_levels_sides_nothing_and_seeds():
    edits = load_protocol("control").edits
    assert Counter(e.kind for e in edits) == {"level": 60, "side": 18, "zero": 1, "seed": 4}
    sided = [name for e in edits if e.kind == "side" for name in e.asked]
    assert sorted(sided) == sorted(name + side for name in BILATERAL for side in "LR")
    assert [e.seed for e in edits if e.kind == "seed"] == [0, 1, 2, 3]
    assert {e.request for e in edits if e.kind == "seed"} == {"AU12=+3,AU25=+2"}


def test_families_asks_for_emotions_the_way_to_a_smile_and_back():
    protocol = load_protocol("families")
    assert protocol.has_emotions
    assert not load_protocol("table1-small").has_emotions
    requests = [edit.request for edit in protocol.edits]
    assert requests[: len(EMOTIONS)] == list(EMOTIONS)
    parts = [f"happiness:0.{tenths}" for tenths in (2, 4, 6, 8)]
    assert requests[len(EMOTIONS) :] == [*parts, "happiness and back", "none"]
    for variant in protocol.variants:
        for part in (variant, variant.first):
            settings = part and (part["train"] if part is variant.first else part.train)
            if settings and variant.name != "attribute-diffusion":  # its recipe joins with its family
                flags = [f"--{name}={value}" for name, value in settings.items()]
                parse_config([*flags, "--train_data_dir=data", "--output_dir=run"])


def test_beyond_leaves_the_scale():
    protocol = load_protocol("beyond")
    values = [v for e in protocol.edits for v in e.asked.values()]
    assert min(values) < -5
    assert max(values) > 5
    assert protocol.renderings == ("photograph", "drawn", "cartoon")
    assert protocol.to_json()["edits_per_identity"] == 3 * 18


# --- Beside the paper ---


def test_published_tables_are_the_papers(shared):
    """Row for row and value for value; row names here are shortened."""
    facts = (shared / "reference" / "magicface.md").read_text()
    for number, name in ((1, "table1"), (2, "table2"), (3, "table3")):
        lines = facts.split(f"| Table {'I' * number}")[1].split("\n\n")[0].splitlines()[2:]
        cells = [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in lines]
        theirs = [[None if value == "-" else float(value) for value in row[1:]] for row in cells]
        published = load_protocol(name).published
        assert [row["values"] for row in published["rows"]] == theirs
        assert published["columns"] == ["au", "identity", "background", "pose"]
        assert published["table"] == f"Table {'I' * number}"
        if number == 1:
            assert [row["name"] for row in published["rows"]] == [row[0] for row in cells]
    line = next(line for line in facts.splitlines() if line.startswith("Table IV"))
    without, pairs = line.replace("*", "").split("with it ")
    theirs = {
        f"guidance {float(scale):g}": float(mse) for scale, mse in re.findall(r"([\d.]+): ([\d.]+\d)", pairs)
    }
    theirs["without AU dropout"] = float(re.search(r"without AU dropout ([\d.]+\d)", without)[1])
    published = load_protocol("table4").published
    assert published["columns"] == ["au"]
    assert {row["name"]: row["values"][0] for row in published["rows"]} == theirs
    assert len(theirs) == 11


@pytest.mark.parametrize("name", ["table2", "table3", "table4"])
def test_variants_can_be_trained_and_stand_beside_published_rows(name):
    protocol = load_protocol(name)
    rows = [row["name"] for row in protocol.published["rows"]]
    counterparts = [variant.published for variant in protocol.variants if variant.published]
    assert sorted(counterparts) == sorted(rows)
    assert len({variant.name for variant in protocol.variants}) == len(protocol.variants)
    settings = {field.name for field in fields(TrainConfig)}
    runs = {}
    trained = [variant for variant in protocol.variants if variant.train is not None]
    # a frozen denoiser needs a pretrained one
    assert len(protocol.variants) - len(trained) == (1 if name == "table2" else 0)
    for variant in trained:
        assert set(variant.train) <= settings
        replace(TrainConfig(train_data_dir="data"), **variant.train)  # its values pass the checks
        assert runs.setdefault(variant.run, variant.train) == variant.train
    if name == "table4":
        for variant in protocol.variants:
            assert variant.train or variant.name == f"guidance {variant.guidance:g}"


# --- Protocols of one's own ---


def test_a_protocol_of_ones_own(write):
    path = write(
        action_units=["AU4", "au012", "AU25"],
        levels={"action_units": ["AU12"], "values": [-2, 2.5]},
        combinations=["AU25=+1, AU04=2", {"AU12": -1}],
        sides=[3],
        zero=True,
        seeds={"request": "AU12=2", "values": [0, 5]},
        seed=7,
        renderings=["photograph", "cartoon"],
        description="Two\n  lines.",
    )
    protocol = load_protocol(path)
    assert protocol == load_protocol(str(path))
    assert protocol.action_units == ("AU4", "AU12", "AU25")
    assert [(e.kind, e.request, e.seed) for e in protocol.edits] == [
        ("level", "AU12=-2", 7),
        ("level", "AU12=+2.5", 7),
        ("combination", "AU4=+2,AU25=+1", 7),
        ("combination", "AU12=-1", 7),
        *(("side", f"AU{name}=+3", 7) for name in ("4L", "4R", "12L", "12R")),
        ("zero", "none", 7),
        ("seed", "AU12=+2", 0),
        ("seed", "AU12=+2", 5),
    ]
    assert protocol.description == "Two lines."
    assert protocol.variants == ()
    assert protocol.published is None
    assert protocol.to_json() == {
        "name": "brief",
        "version": 3,
        "title": "A few",
        "description": "Two lines.",
        "aus": ["AU4", "AU12", "AU25"],
        "identities": 2,
        "edits_per_identity": 22,
    }


def test_without_a_list_of_action_units_all_are_asked(write):
    assert [e.request for e in load_protocol(write()).edits] == [f"{name}=+3" for name in NAMES]


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ({"AU12": 3.0}, "AU12=+3"),
        ({"AU12": 3, "AU4": -1.5}, "AU4=-1.5,AU12=+3"),
        ({"AU12R": 1.0, "AU12L": 2.0, "AU2": 0.5}, "AU2=+0.5,AU12L=+2,AU12R=+1"),
        ({"AU25": 0.0, "AU1": 1.0}, "AU1=+1"),
        ({"AU25": 0.0}, "none"),
        ({}, "none"),
    ],
)
def test_a_request_has_one_spelling(asked, text):
    assert request_text(asked) == Edit("level", asked, 0).request == text
    if text != "none":
        assert request_text(parse_deltas(text)) == text


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"level": {"values": [1]}}, "unknown keys: level"),
        ({"name": None}, "'name' is missing"),
        ({"levels": None}, "no edits"),
        ({"levels": {"action_units": ["AU1"]}}, "'values' is missing"),
        ({"levels": [1, 2]}, "no attribute"),
        ({"levels": {"values": [0, 3]}}, "zero: true"),
        ({"levels": {"values": [11]}}, "between -10 and 10 for AU1"),
        ({"levels": {"values": [3, 3]}}, r"asks twice for \('AU1=\+3', 0\)"),
        ({"levels": {"action_units": ["AU7"], "values": [3]}}, "AU7"),
        ({"action_units": ["AU1", "AU99"]}, "unknown action unit 'AU99'"),
        ({"combinations": ["AU1=+3,AU99=+2"]}, "unknown action unit 'AU99'"),
        ({"combinations": ["AU1=+2,AU2=+2", "AU2=+2,AU1=+2"]}, r"twice for \('AU1=\+2,AU2=\+2', 0\)"),
        ({"combinations": ["AU1=+3"]}, "asks twice"),
        ({"combinations": ["AU1"]}, "NAME=NUMBER"),
        ({"seeds": 3}, "no attribute"),
        ({"seeds": {"values": [1]}}, "'request' is missing"),
        ({"renderings": ["photograph", "oil"]}, "renderings are"),
        ({"published": "table9"}, "'table9' is missing"),
        ({"variants": [{"name": "a", "run": "a", "train": {}, "speed": 1}]}, "speed"),
        ({"emotions": ["joy"]}, "unknown emotion 'joy'"),
        ({"emotions": ["anger"], "between": 3}, "between and back are of happiness"),
        ({"emotions": ["anger"], "action_units": ["AU12"]}, "AU4"),
        ({"identities": "many"}, "many"),
        ({"description": 3}, "no attribute"),
    ],
)
def test_what_is_no_protocol(write, keys, problem):
    path = write(**keys)
    with pytest.raises(MagicEditError, match=problem) as caught:
        load_protocol(path)
    assert "own.yaml is no protocol" in str(caught.value)


@pytest.mark.parametrize("content", [b"- a\n- b\n", b"a: [1\n", b"", b"\xff\xfe\x00bad", b"just text"])
def test_files_that_are_none(tmp_path, content):
    path = tmp_path / "own.yaml"
    path.write_bytes(content)
    with pytest.raises(MagicEditError, match=r"own\.yaml is no protocol"):
        load_protocol(path)


@pytest.mark.parametrize("name", ["table9", "published", "../published", "no/such.yaml"])
def test_names_that_are_none(name):
    with pytest.raises(MagicEditError, match="one of beyond, control, families, table1"):
        load_protocol(name)
