"""Figures of families of editors: what counts as seen, how even a way is, and what tables say of gaps."""

import json

import cv2
import numpy as np
import PIL.Image
import pytest

from magicedit.action_units import EMOTIONS
from magicedit.errors import MagicEditError
from magicedit.evaluation.editors import answer, expresses
from magicedit.evaluation.families import family_tables, medians, sees, smiling, smoothness
from magicedit.evaluation.protocol import Edit
from magicedit.evaluation.scoring import Scoring
from magicedit.evaluation.subjects import Subject
from magicedit.evaluation.training import training_of
from magicedit.imaging import open_photo


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


def brighter(photo, au_delta, seed):
    """An editor whose brightness is what is asked of AU12, 12 levels a step."""
    return np.clip(photo.pixels + 12.0 * au_delta["AU12"], 0, 255).astype(np.uint8)


def test_an_emotion_is_answered_in_part_and_taken_back_from_the_result():
    photo, steps = open_photo(np.full((20, 20, 3), 100, np.uint8)), EMOTIONS["happiness"]["AU12"]
    asked = dict(EMOTIONS["happiness"])
    half = answer(brighter, photo, Edit("between", asked, 0, "happiness", 0.5))
    assert np.abs(half - (100 + 6 * steps)).max() <= 0.5
    back = answer(brighter, photo, Edit("back", {}, 0, "happiness"))
    assert np.array_equal(back, photo.pixels)
    assert expresses(brighter, "anger")


def test_minutes_and_images_of_a_run_are_those_of_its_log(tmp_path):
    log = [{"step": 10, "images_per_second": 8.0}, {"step": 20, "images_per_second": 2.0}]
    log.append({"step": 20, "images_per_second": 4.0})  # repeated after an interruption
    (tmp_path / "train_log.jsonl").write_text("\n".join(map(json.dumps, log)))
    settings = {"train_batch_size": 4, "gradient_accumulation_steps": 3, "world_size": 1, "output_dir": "/x"}
    (tmp_path / "train_config.json").write_text(json.dumps(settings))
    found = training_of(tmp_path)
    assert found["images_seen"] == 240
    assert found["minutes"] == pytest.approx((120 / 8 + 120 / 4) / 60, abs=0.06)
    assert "output_dir" not in found
    with pytest.raises(ValueError, match=r"train_log\.jsonl"):
        training_of(tmp_path / "nothing")


def test_a_smile_is_compared_with_the_persons_own(tmp_path, astronaut):
    """Of the real smile itself nothing is missing; a blurred one is less sharp and farther away."""
    for name, pixels in (("neutral", astronaut // 2 + 60), ("smiling", astronaut)):
        PIL.Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    scoring = Scoring(("AU12", "AU25"))
    subject = Subject("person", tmp_path / "neutral.png")
    original, real = scoring.original(subject), scoring.original(subject.smile)
    assert real.photo.pixels.shape == astronaut.shape
    row, _ = scoring.score(original, astronaut, {"AU12": 1.0})
    crop = real.measured.crop
    same = scoring.against(subject.smile, original, crop, row["changed"])
    assert same["psnr_real"] is None
    assert all(error < 0.05 for error in same["au_mse_real"].values())
    more = {scorer: found | {"AU12": found["AU12"] + 2} for scorer, found in row["changed"].items()}
    worse = scoring.against(subject.smile, original, crop, more)["au_mse_real"]
    assert all(error == pytest.approx(2, abs=0.3) for error in worse.values())  # of one unit of two
    blurred = scoring.against(subject.smile, original, cv2.GaussianBlur(crop, (0, 0), 4), row["changed"])
    assert 10 < blurred["psnr_real"] < 40
    assert blurred["sharpness"] < 0.6 * same["sharpness"]
