"""The report's figures from rows made by hand, and labels that another tool wrote."""

from dataclasses import replace

import pytest

from magicedit.errors import DatasetError
from magicedit.evaluation.editors import Entrant
from magicedit.evaluation.protocol import Edit, load_protocol
from magicedit.evaluation.scoring import SCORERS, au_columns
from magicedit.evaluation.summary import add_labels, headline, summarise

AUS = ("AU1", "AU12")
PROTOCOL = replace(
    load_protocol("control"), action_units=AUS, edits=(Edit("level", {"AU1": 1.0}, 0),), published=None
)


def make(kind="level", asked=None, changed=None, *, identity="ann", editor="it", seed=0, error=None, **more):
    """A row; `changed` is what both scorers saw."""
    asked, changed = asked or {}, {"AU1": 0.0, "AU12": 0.0} | (changed or {})
    request = Edit(kind, asked, seed).request
    row = {"editor": editor, "identity": identity, "photograph": "a.jpg", "kind": kind, "request": request}
    row |= {"person": identity.partition(" (")[0]}
    row |= {"asked": asked, "seed": seed, "error": error, "seconds": None if error else 0.5, "group": {}}
    if error:
        return row | {"group": more.get("group", {})}
    by_scorer = {scorer: dict(changed) for scorer in SCORERS}
    before = {"blendshapes": dict.fromkeys(changed, 2.0)}
    row |= {"before": before, "changed": by_scorer} | au_columns(asked, by_scorer, before, AUS)
    row |= dict.fromkeys(("arcface_cosine", "lpips"))
    row |= {"identity_distance": 0.2, "background_rmse": 0.01, "pose_degrees": 1.0, "pose_matrix": 0.01}
    row |= {"ssim": 0.9, "pixels_changed": 100}
    picture = f"pictures/{editor}/{identity}/{request}.jpg"
    return row | {"picture": picture, "original": f"pictures/original/{identity}.jpg"} | more


def summary_of(rows, *entrants, protocol=PROTOCOL, **run):
    entrants = entrants or (Entrant("it", lambda: None),)
    return summarise(rows, protocol, entrants, run)


def editor_of(rows, **run):
    return summary_of(rows, **run)["editors"]["it"]


# --- Headline ---


def test_headline_by_hand():
    """Means over edits, intervals over people: of two people the interval spans both."""
    rows = [
        make(asked={"AU1": 2.0}, changed={"AU1": 1.0}, identity_distance=0.1, seconds=1.0),
        make(asked={"AU1": 1.0}, changed={"AU1": 1.0, "AU12": 1.0}, identity_distance=0.2, seconds=2.0),
        make(
            asked={"AU12": -2.0}, changed={"AU12": 0.0}, identity="bob", identity_distance=0.6, seconds=None
        ),
    ]
    found = editor_of(rows)
    assert (found["status"], found["edits"], found["failed"]) == ("ran", 3, 0)
    headline = found["headline"]
    assert headline["identity_distance"] == {"mean": 0.3, "low": 0.15, "high": 0.6, "n": 3}
    assert headline["au_mse/blendshapes"] == {"mean": 1.0, "low": 0.5, "high": 2.0, "n": 3}
    assert headline["au_mae/landmarks68"] == {
        "mean": pytest.approx(2 / 3, abs=1e-5),
        "low": 0.5,
        "high": 1.0,
        "n": 3,
    }
    assert headline["au_mse_asked/blendshapes"]["mean"] == pytest.approx((1 + 0 + 4) / 3, abs=1e-5)
    assert headline["achieved/blendshapes"]["mean"] == 0.5
    assert headline["seconds"] == {"mean": 1.5, "low": None, "high": None, "n": 2}  # ann's alone
    assert headline["ssim"]["mean"] == 0.9
    assert not {"lpips", "arcface_cosine"} & set(headline)  # measured nowhere


def test_what_is_not_a_number_is_not_averaged():
    rows = [make(asked={"AU1": 1.0}, ssim=float("nan")), make(asked={"AU1": 2.0}, ssim=0.8)]
    assert editor_of(rows)["headline"]["ssim"] == {"mean": 0.8, "low": None, "high": None, "n": 1}


def test_failures_are_counted_and_not_averaged():
    rows = [make(asked={"AU1": 1.0}), make(asked={"AU1": 2.0}, error="NoFaceError: gone"), make("zero")]
    found = editor_of(rows)
    assert (found["edits"], found["failed"]) == (3, 1)
    assert found["headline"]["identity_distance"]["n"] == 1  # without the zero edit too
    everything_failed = editor_of([make(asked={"AU1": 1.0}, error="no")])
    assert (everything_failed["failed"], everything_failed["headline"]) == (1, {})
    assert everything_failed["control"]["blendshapes"] == everything_failed["groups"] == {}


def test_editors_that_were_not_run():
    found = summary_of(
        [make(asked={"AU1": 1.0})],
        Entrant("it", lambda: None, {"steps": 6}),
        Entrant("gone", None, {"run": "x"}),
    )
    assert found["editors"]["gone"] == {"status": "not run", "settings": {"run": "x"}}
    assert found["editors"]["it"]["settings"] == {"steps": 6}
    assert list(found["editors"]) == ["it", "gone"]


def test_editors_do_not_mix():
    rows = [make(asked={"AU1": 1.0}, ssim=0.5), make(asked={"AU1": 1.0}, ssim=0.7, editor="other")]
    found = summary_of(rows, Entrant("it", lambda: None), Entrant("other", lambda: None))
    assert [found["editors"][name]["headline"]["ssim"]["mean"] for name in ("it", "other")] == [0.5, 0.7]


def test_what_the_run_says():
    rows = [make(asked={"AU1": 1.0})]
    cold = {"it": {"seconds": 3.0, "peak_memory_mb": 900.0}}
    found = summary_of(rows, skipped={"lpips": "no weights", "landmarks68": "no dlib"}, cold=cold)
    assert found["skipped"] == {"lpips": "no weights", "landmarks68": "no dlib"}
    assert list(found["scorers"]) == ["blendshapes"]
    assert found["editors"]["it"]["peak_memory_mb"] == 900.0
    assert found["editors"]["it"]["cold_seconds"] == 3.0
    bare = summary_of(rows, cold={"it": None})
    assert list(bare["scorers"]) == ["blendshapes", "landmarks68"]
    assert bare["editors"]["it"]["peak_memory_mb"] is None
    assert bare["protocol"] == PROTOCOL.to_json()
    assert bare["published"] is None


def test_published_rows_find_their_counterparts():
    protocol = load_protocol("table3")
    found = summary_of([], Entrant("it", None), protocol=protocol)["published"]
    assert {row["name"]: row["editor"] for row in found["rows"]} == {
        variant.published: variant.name for variant in protocol.variants
    }
    found = summary_of([], Entrant("it", None), protocol=load_protocol("table1"))["published"]
    assert {row["editor"] for row in found["rows"]} == {None}
    assert "editor" not in protocol.published["rows"][0]  # the protocol itself is as it was


# --- Control ---


def test_control_by_hand():
    changes = {("ann", 1.0): 0.5, ("ann", 3.0): 1.0, ("bob", 1.0): 0.5, ("bob", 3.0): 2.0}
    rows = [
        make(asked={"AU12": level}, changed={"AU12": value, "AU1": 0.3 * level}, identity=who)
        for (who, level), value in changes.items()
    ]
    rows.append(make("combination", {"AU12": 5.0, "AU1": 1.0}, {"AU12": 9.0}))  # no level: not in the curve
    found = editor_of(rows)
    curve = found["control"]["blendshapes"]["AU12"]
    assert curve["levels"] == [
        {"asked": 1.0, "mean": 0.5, "low": 0.5, "high": 0.5, "n": 2},
        {"asked": 3.0, "mean": 1.5, "low": 1.0, "high": 2.0, "n": 2},
    ]
    assert curve["slope"] == pytest.approx((0.5 + 3 + 0.5 + 6) / 20)
    # asked -1 1 -1 1 about its mean, changed -0.5 0 -0.5 1: 2 / sqrt(4 * 1.5)
    assert curve["pearson"] == pytest.approx(2 / 6**0.5, abs=1e-5)
    assert list(found["control"]["blendshapes"]) == ["AU12"]
    assert found["crosstalk"]["landmarks68"] == {
        "asked": ["AU12"],
        "changed": ["AU1", "AU12"],
        "change": [[0.3, pytest.approx((0.5 + 1 / 3 + 0.5 + 2 / 3) / 4, abs=1e-4)]],
    }


def test_what_a_scorer_does_not_see_is_no_number():
    row = make(asked={"AU12": 2.0}, changed={"AU12": 1.0})
    del row["changed"]["blendshapes"]["AU1"], row["changed"]["landmarks68"]["AU12"]
    found = editor_of([row])
    assert found["crosstalk"]["blendshapes"]["change"] == [[None, 0.5]]
    assert found["crosstalk"]["landmarks68"]["change"] == [[0.0, None]]
    assert list(found["control"]["blendshapes"]) == ["AU12"]
    assert found["control"]["landmarks68"] == {}


def test_sides_by_hand():
    rows = [
        make("side", {"AU12L": 3.0}, {"AU12L": 2.0, "AU12R": 0.5, "AU12": 1.25}),
        make("side", {"AU12R": 3.0}, {"AU12L": 0.7, "AU12R": 1.0, "AU12": 0.85}, identity="bob"),
    ]
    found = editor_of(rows)["sides"]
    assert found["landmarks68"] == {"AU12": {"same": 1.5, "other": 0.6, "leak": 0.4}}
    assert editor_of([make("level", {"AU1": 1.0})])["sides"] == {"blendshapes": {}, "landmarks68": {}}


def test_zero_drift_is_the_worst_of_all():
    rows = [make("zero", changed={"AU1": 0.1, "AU12L": -0.4}, pixels_changed=0)]
    rows.append(make("zero", changed={"AU12": 0.2}, identity="bob", pixels_changed=7))
    assert editor_of(rows)["zero_drift"] == {"max_change": 0.4, "pixels_changed": 7}
    assert editor_of([make(asked={"AU1": 1.0})])["zero_drift"] is None


def test_seed_spread_by_hand():
    """ann's AU12 spreads by 1 (1, 2, 3), bob's not: 0.5 on average; bob's AU1 was not asked."""
    rows = [make("seed", {"AU12": 3.0}, {"AU12": value}, seed=n) for n, value in enumerate((1.0, 2.0, 3.0))]
    rows += [make("seed", {"AU12": 3.0}, {"AU12": 2.0, "AU1": n}, seed=n, identity="bob") for n in (0.0, 9.0)]
    assert editor_of(rows)["seed_spread"] == {"blendshapes": 0.5, "landmarks68": 0.5}
    assert editor_of([make(asked={"AU1": 1.0})])["seed_spread"] is None


def test_groups_by_hand():
    rows = [
        make(asked={"AU1": 1.0}, ssim=0.9, group={"gender": "female", "head": "frontal"}),
        make(asked={"AU1": 2.0}, ssim=0.7, group={"gender": "female", "head": "frontal"}),
        make(asked={"AU1": 1.0}, ssim=0.6, group={"gender": "male", "head": "frontal"}, identity="bob"),
        make(asked={"AU1": 1.0}, ssim=0.5, group={"head": "frontal"}, identity="cy"),
        make("zero", group={"gender": "male", "head": "frontal"}, identity="bob"),
        make(asked={"AU1": 2.0}, error="no", group={"gender": "male"}, identity="bob"),
    ]
    found = editor_of(rows)["groups"]
    assert list(found) == ["gender"]  # all heads are alike
    counts = {value: (part["n"], part["people"]) for value, part in found["gender"].items()}
    assert counts == {"female": (2, 1), "male": (1, 1), "not given": (1, 1)}
    assert [found["gender"][v]["headline"]["ssim"]["mean"] for v in ("female", "male", "not given")] == [
        0.8,
        0.6,
        0.5,
    ]


# --- Labels of another tool ---


@pytest.fixture
def rows():
    return [
        make(asked={"AU12": 2.0}, changed={"AU12": 1.0}),
        make(asked={"AU1": 2.0}, changed={"AU1": 1.0}),
        make(asked={"AU12L": 2.0}, kind="side", changed={"AU12L": 1.0, "AU12R": 0.0}),
        make(asked={"AU1": 4.0}, error="no"),
    ]


def write(path, header, *lines):
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


OPENFACE = "input, confidence, success, AU01_r, AU12_r, AU45_r"


def test_labels_are_a_scorer_by_hand(rows, tmp_path):
    labels = write(
        tmp_path / "openface.csv",
        OPENFACE,
        "/somewhere/pictures/original/ann.jpg, 0.9, 1, 1.0, 3.5, 0.2",
        "pictures/it/ann/AU12=+2.jpg, 0.9, 1, 1.5, 4.5, 0.0",
        "it/ann/AU1=+2.jpg, 0.9, 0, 0, 0, 0",  # no face was found in it
        "it/ann/AU12L=+2.jpg, 0.9, 1, 1.0, 4.5, 0.2",
        "it/dave/AU12=+2.jpg, 0.9, 1, 1.0, 4.5, 0.2",
    )
    assert add_labels(rows, labels, None, AUS) == 2
    smile, brow, side, failed = rows
    assert smile["before"]["labels"] == {"AU1": 1.0, "AU12": 3.5, "AU45": 0.2}
    assert smile["changed"]["labels"] == pytest.approx({"AU1": 0.5, "AU12": 1.0, "AU45": -0.2})
    # AU12 could rise by 1.5 of the two steps and rose by 1; AU1 was to stay and rose by 0.5
    assert smile["au_mse"]["labels"] == pytest.approx((0.5**2 + 0.5**2) / 2)
    assert smile["au_mae"]["labels"] == pytest.approx(0.5)
    assert smile["au_mse_asked"]["labels"] == pytest.approx(0.25)
    assert smile["achieved"]["labels"] == pytest.approx(1 / 1.5)
    assert smile["au_mse"]["blendshapes"] == 0.5  # the others stay
    # labels know no sides: of one side the whole unit is to move by half
    assert side["au_mse"]["labels"] == pytest.approx(0)
    assert side["achieved"]["labels"] is side["au_mse_asked"]["labels"] is None
    assert "labels" not in brow["changed"]
    assert failed["error"] == "no"

    found = summary_of(rows)
    assert "not known" in found["scorers"]["labels"]["relation"]
    assert "of 2 of" in found["scorers"]["labels"]["note"]
    headline = found["editors"]["it"]["headline"]
    assert headline["au_mse/labels"]["n"] == 2
    assert headline["au_mse/labels"]["mean"] == pytest.approx(0.125)
    assert headline["au_mse/blendshapes"]["n"] == 3


def test_labels_on_a_scale_of_their_own(rows, tmp_path):
    lines = "it/ann/AU12=+2.jpg, 0.5, 0.9", "original/ann.jpg, 0.5, 0.7"
    labels = write(tmp_path / "own.csv", "file,AU1,AU12", *lines)
    with pytest.raises(DatasetError, match="do not tell their scale; set --labels-scale"):
        add_labels(rows, labels, None, AUS)
    assert add_labels(rows, labels, 1.0, AUS) == 1
    assert rows[0]["changed"]["labels"] == pytest.approx({"AU1": 0.0, "AU12": 1.0})
    assert rows[0]["au_mse"]["labels"] == pytest.approx((0 + 0.5**2) / 2)  # 3.5 + 1.5 is the scale's end


def test_a_folder_with_a_file_a_picture(rows, tmp_path):
    """As OpenFace writes them; a request with a fraction keeps it."""
    rows.append(make(asked={"AU12": 1.5}))
    (tmp_path / "original").mkdir()
    (tmp_path / "it" / "ann").mkdir(parents=True)
    for name, value in (("original/ann", 1.0), ("it/ann/AU12=+1.5", 2.5), ("it/ann/AU12=+2", 2.0)):
        write(tmp_path / f"{name}.csv", "confidence, success, AU12_r", f"0.9, 1, {value}")
    assert add_labels(rows, tmp_path, None, AUS) == 2
    assert rows[-1]["changed"]["labels"] == {"AU12": 1.5}
    assert rows[-1]["au_mse"]["labels"] == 0
    assert rows[0]["au_mse"]["labels"] == 1


@pytest.mark.parametrize(
    "lines",
    [
        ["a/b/c.jpg, 0.9, 1, 1, 1, 1"],
        ["it/ann/AU12=+2.jpg, 0.9, 1, 1, 1, 1"],  # not the original
        ["original/ann.jpg, 0.9, 1, 1, 1, 1"],
        ["it/ann/AU12=+2.jpg, 0.9, 0, 1, 1, 1", "original/ann.jpg, 0.9, 1, 1, 1, 1"],
    ],
)
def test_labels_of_other_pictures(rows, tmp_path, lines):
    labels = write(tmp_path / "openface.csv", OPENFACE, *lines)
    with pytest.raises(DatasetError, match=r"openface\.csv names none of the 4 pictures"):
        add_labels(rows, labels, None, AUS)


def test_labels_that_cannot_be_read(rows, tmp_path):
    with pytest.raises(DatasetError, match=r"none\.csv does not exist"):
        add_labels(rows, tmp_path / "none.csv", None, AUS)
    presence = write(tmp_path / "c.csv", "input, AU12_c", "original/ann.jpg, 1")
    with pytest.raises(DatasetError, match="presence only"):
        add_labels(rows, presence, None, AUS)


def test_renderings_of_a_person_are_that_person():
    """One person in two styles has no interval; two people have one."""
    edit = {"kind": "level", "asked": {"AU1": 3.0}}
    same = [
        make(**edit, identity="ann", changed={"AU1": 1.0}),
        make(**edit, identity="ann (drawn)", changed={"AU1": 2.0}),
    ]
    others = [same[0], make(**edit, identity="bea", changed={"AU1": 2.0})]
    (one, two) = (headline(rows)["achieved/blendshapes"] for rows in (same, others))
    assert one["mean"] == two["mean"] == pytest.approx(0.5)
    assert one["low"] is one["high"] is None
    assert two["low"] < two["high"]
