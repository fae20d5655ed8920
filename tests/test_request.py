"""What an edit asks for: parsed once, checked without a face, resolved against one."""

import json
import time
from dataclasses import fields

import numpy as np
import pytest
from PIL import Image

from magicedit.action_units import NAMES
from magicedit.cli import main
from magicedit.editor import SamplingSettings, usable_device, usable_dtype
from magicedit.editor.settings import MouthSettings
from magicedit.errors import ActionUnitError, MagicEditError, ModelError, NoFaceError
from magicedit.expression import Expression
from magicedit.request import EditRequest, ModelOptions, Sampling
from magicedit.vocabulary import Vocabulary

REST = dict.fromkeys(NAMES.with_sides(), 0.0)


@pytest.fixture
def parsed(monkeypatch):
    """The texts that were parsed for action units."""
    texts, parse = [], Vocabulary._pairs

    def counted(vocabulary, spec):
        if isinstance(spec, str):
            texts.append(spec)
        return parse(vocabulary, spec)

    monkeypatch.setattr(Vocabulary, "_pairs", counted)
    return texts


def test_the_command_line_parses_each_text_once(parsed, astronaut, tmp_path):
    photo = tmp_path / "photo.png"
    Image.fromarray(astronaut).save(photo)
    asked = ["--au", "AU12=-2", "--set", "AU4=1", "--emotion", "surprise:0.1", "--quality", "live"]
    assert main(["edit", str(photo), "-o", str(tmp_path / "out.png"), *asked]) == 0
    assert sorted(parsed) == ["AU12=-2", "AU4=1"]


def test_equal_requests_are_equal():
    one = EditRequest("AU4=1,au012=3", emotion="happiness:0.50")
    assert one == EditRequest({"AU12": 3.0, "AU4": 1}, emotion=("happiness", 0.5))
    assert one.to_json() == {"add": {"AU4": 1.0, "AU12": 3.0}, "emotion": "happiness:0.5"}
    assert EditRequest().to_json() == {}
    numbers = EditRequest(face=np.int64(1), seed=np.int32(3), guidance=np.float32(0.5), neutral=np.bool(True))
    assert json.dumps(numbers.to_json()) == '{"guidance": 0.5, "seed": 3, "face": 1, "neutral": true}'
    assert EditRequest().is_empty
    assert not one.is_empty


def test_a_vector_is_in_the_order_of_the_models_names():
    request = EditRequest([1.0, -2.0], names=("AU26", "AU1"))
    assert request.deltas(("AU26", "AU1"), REST) == {"AU26": 1.0, "AU1": -2.0}


def test_what_is_arrived_at_whatever_a_face_shows():
    request = EditRequest({"AU1": 1}, {"AU4L": 2}, expression=Expression({"AU12": 3, "AU26": 1}))
    assert request.arrived_at == {"AU4", "AU12", "AU26"}
    assert EditRequest(expression=Expression({"AU12": 3}, relative=True)).arrived_at == set()


def test_the_file_of_an_expression_is_read(tmp_path):
    Expression({"AU12": 3}).save(tmp_path / "smile.yaml")
    request = EditRequest(expression=tmp_path / "smile.yaml")
    assert request.deltas(NAMES, REST | {"AU12": 1.0}) == {"AU12": 2.0}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"add": "AU7=1", "names": NAMES}, ActionUnitError, "AU7 .* is measured but cannot be edited here"),
        ({"add": "AU12=1", "set": "AU12=1"}, ActionUnitError, "both set to an intensity and changed"),
        ({"strength": float("nan")}, ActionUnitError, "strength"),
        ({"face": -1}, NoFaceError, "an index from 0, got -1"),
        ({"face": "both"}, NoFaceError, "an index from 0, got 'both'"),
        ({"tolerance": 0}, MagicEditError, "tolerance must be a positive number"),
        ({"tolerance": 1, "max_edits": 0}, MagicEditError, "at least 1 edit"),
        ({"tolerance": 1, "measure": False}, MagicEditError, "do not switch measuring off"),
        ({"steps": 0}, MagicEditError, "denoising steps"),
        ({"guidance": -1.0}, MagicEditError, "guidance"),
        ({"guidance": 1e39}, MagicEditError, "from 0 to 1000"),
        ({"quality": "best"}, MagicEditError, "exact, balanced, fast, live"),
        ({"seed": -1}, MagicEditError, "seed"),
        ({"references": "me.jpg"}, MagicEditError, "list of photographs"),
    ],
)
def test_what_is_wrong_is_said_before_a_face_is_looked_for(arguments, error, message):
    with pytest.raises(error, match=message):
        EditRequest(**arguments)


def test_a_model_refuses_what_it_lacks_when_it_is_known():
    request = EditRequest("AU7=1")
    request.check(None)
    with pytest.raises(ActionUnitError, match="AU7"):
        request.check(NAMES)


def test_an_unknown_setting_is_an_error():
    with pytest.raises(TypeError, match="step"):
        Sampling(step=3)


def test_no_setting_of_sampling_is_a_field_twice():
    inherited = {field.name for field in fields(Sampling)}
    for kind in (EditRequest, SamplingSettings):
        assert inherited.isdisjoint(kind.__annotations__)
        assert inherited < {field.name for field in fields(kind)}
    assert inherited == set(ModelOptions.__annotations__)


def test_what_an_editor_samples_by_is_part_of_the_request():
    request = EditRequest("AU12=1", quality="live", seed=3, teeth=2)
    assert request.sampling() == {
        **{"steps": None, "guidance": None, "quality": "live", "noise_level": None, "seed": 3},
        **{"teeth": 2, "references": ()},
    }
    with pytest.raises(MagicEditError, match="list of photographs"):
        EditRequest(references="smile.jpg")


HOSTILE = {
    "huge": 10**5000,  # Python refuses to write it
    "not a number": float("nan"),
    "infinite": float("inf"),
    "true": True,
    "digits": "9" * 5000,
    "list": [],
    "table": {},
    "bytes": b"1",
    "object": object(),
    "end of text": "\0",
    "long": "x" * 10**5,
}


@pytest.mark.parametrize("name", ["steps", "guidance", "quality", "noise_level", "seed", "teeth"])
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_setting_of_any_kind_is_refused_in_a_sentence(name, kind):
    make = MouthSettings if name == "teeth" else Sampling
    with pytest.raises(MagicEditError) as told:
        make(**{name: HOSTILE[kind]})
    assert len(str(told.value)) < 300


@pytest.mark.parametrize("name", ["add", "set", "emotion", "face", "expression", "strength", "tolerance"])
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_request_of_any_kind_is_refused_in_a_sentence(name, kind):
    if kind == "table" and name in ("add", "set"):
        return  # asks for nothing
    with pytest.raises(MagicEditError) as told:
        EditRequest(**{name: HOSTILE[kind]})
    assert len(str(told.value)) < 2000


@pytest.mark.parametrize(
    "text",
    [
        "AU12=" + "9" * 5000,
        "AU" + "9" * 5000 + "=1",
        "AU12=" + "1" * 100_000 + "x",  # each digit once more for each digit before it, by another pattern
        "AU١٢=1",
        "AU12=١",
        "AU12=1_0",
        "AU12=nan",
        "AU12=1e999",
        "AU12\0=1",
        "x" * 100_000 + "=1",
        "=" * 100_000,
        "," * 100_000,
    ],
    ids=lambda text: text[:12],
)
def test_hostile_texts_are_refused_at_once(text):
    begin = time.process_time()
    with pytest.raises(ActionUnitError) as told:
        EditRequest(add=text)
    assert len(str(told.value)) < 2000
    assert time.process_time() - begin < 1


@pytest.mark.parametrize(
    "value", ["cpu" * 10**5, "cuda:" + "9" * 50, 5.5, [], 10**5000, "\0"], ids=list("abcdef")
)
def test_devices_and_dtypes_of_any_kind(value):
    for parse in (usable_device, usable_dtype):
        with pytest.raises(ModelError) as told:
            parse(value)
        assert len(str(told.value)) < 500


def test_of_recipe_holds_what_only_an_emotion_asks_for():
    asked = ["AU1", "AU4", "AU7", "AU12L", "AU26"]
    assert EditRequest(neutral=True).of_recipe(asked) == frozenset()
    anger = EditRequest(emotion="anger", add={"AU4": 1}, neutral=True)
    assert anger.of_recipe(asked) == {"AU7", "AU12L"}  # AU26 is of `neutral` alone


def test_an_emotion_undoes_nothing_that_has_another_target():
    smiling = REST | {"AU12": 4.0, "AU12L": 4.0, "AU12R": 4.0}
    target = Expression({"AU12": 1.0})
    for more, expected in (
        ({}, -4),
        ({"neutral": True}, -4),
        ({"set": "AU12=5"}, 1),
        ({"expression": target}, -3),
    ):
        assert EditRequest(emotion="sadness", **more).deltas(NAMES, smiling)["AU12"] == expected
