"""Figures of families of editors: what counts as seen, how even a way is, and what tables say of gaps."""

import pytest

from magicedit.errors import MagicEditError
from magicedit.evaluation.families import family_tables, medians, sees, smiling, smoothness


def test_smoothness_of_an_even_way_a_leap_and_one_that_goes_back():
    assert smoothness([0, 1, 2, 3]) == {"roughness": 1, "monotony": 1}
    assert smoothness([0, 0, 0, 3]) == {"roughness": 3, "monotony": 1}
    assert smoothness([0, 2, 1, 3])["monotony"] == pytest.approx(3 / 5)
    assert smoothness([0, 1, 0.1, 0.4]) is None


def test_sees_asks_half_of_the_units_that_have_room():
    row = {
        "asked": {"AU12": 3.0, "AU4": -2.0},
        "before": {"blendshapes": {"AU12": 0.0, "AU4": 0.0}},
        "changed": {"blendshapes": {"AU12": 0.6, "AU4": 0.0}},
    }
    assert sees(row, "blendshapes")  # AU4 has nothing to lose
    row["changed"]["blendshapes"]["AU12"] = 0.4
    assert not sees(row, "blendshapes")


def test_medians_and_smiling_count_what_is_there():
    assert medians([{"a": 1.0}, {"a": None}, {"a": 3.0}], ["a", "b"]) == {"a": 2.0, "b": None}
    found = smiling([{"x": 0.6, "y": None}, {"x": 0.1, "y": None}])
    assert found == {"people": 2, "smile": {"x": 1}, "au12": {"x": pytest.approx(0.35)}}


def test_family_tables_say_what_is_missing_and_what_a_family_cannot():
    emotions = {"anger": {"people": 10, "seen": {"blendshapes": 7}}}
    ran = {"status": "ran", "failed": 0, "edits": 1, "unable": ["happiness"]}
    ran["families"] = {"emotions": emotions, "seconds": 0.5}
    editors = {"one": ran, "two": {"status": "not run", "settings": {}}}
    tables = family_tables({"editors": editors, "scorers": {"blendshapes": {}}, "published": None})
    one, two = tables["Six emotions"].rows
    assert [cell.text for cell in one] == ["one", "7 of 10", "cannot"]
    assert [cell.text for cell in two] == ["two", "not run"]
    assert tables["Make this person smile"].rows[0][1].text == "cannot smile"
    assert tables["Cost"].rows[0][1].text == "0.50"


def test_a_folder_of_another_family_is_refused(tmp_path):
    from argparse import Namespace

    from magicedit.cli.evaluation import entrants
    from magicedit.evaluation import load_protocol

    arguments = Namespace(editor=[], runs=tmp_path, guidance=None, steps=None, device=None)
    with pytest.raises(MagicEditError, match="none of the folders of families"):
        entrants(arguments, load_protocol("families"))
    (tmp_path / "ganimation").mkdir()
    index = '{"_class_name": "FlowAutoencoderPipeline"}'
    (tmp_path / "ganimation" / "model_index.json").write_text(index)
    with pytest.raises(MagicEditError, match="expected the GANimationPipeline of ganimation"):
        entrants(arguments, load_protocol("families"))
