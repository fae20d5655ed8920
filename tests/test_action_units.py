"""The vocabulary and its one parser."""

import pickle

import numpy as np
import pytest

from magicedit.action_units import (
    ACTION_UNITS,
    DEAD_ZONE,
    DESCRIPTIONS,
    EMOTIONS,
    ENRICHED,
    FACS,
    GEOMETRIC,
    NAMES,
    STRENGTH_RANGE,
    canonical_name,
    editable,
    emotion_deltas,
    parse_deltas,
    parse_emotion,
    parse_levels,
    resolve_delta,
    sided_names,
    steps_to,
    to_vector,
    vocabulary_of,
)
from magicedit.errors import ActionUnitError, MagicEditError
from magicedit.vocabulary import DELTA_RANGE, Control, Vocabulary, by_number, split_sides, whole_name


def test_the_published_order_stands():
    """The order of the published checkpoint's embedding: changing it would swap expressions silently."""
    assert NAMES == tuple(f"AU{n}" for n in (1, 2, 4, 5, 6, 9, 12, 15, 17, 20, 25, 26))


def test_every_unit_is_described_and_placed():
    assert set(DESCRIPTIONS) == {*NAMES, *GEOMETRIC, "AU45"}
    assert len(GEOMETRIC) == 16
    assert {control.region for control in FACS.controls if control.is_angle} == {"gaze", "head"}
    assert {unit.region for unit in ACTION_UNITS} == {"brow", "eye", "nose", "cheek", "lip", "jaw"}
    for unit in ACTION_UNITS:
        assert DESCRIPTIONS[unit.name] == unit.description


def test_names_are_in_the_order_of_their_numbers():
    values = {"AU12R": 1.0, "AU9": 2.0, "AU12L": 3.0, "AU2": 4.0, "AU12": 5.0}
    assert list(by_number(values)) == ["AU2", "AU9", "AU12", "AU12L", "AU12R"]
    assert by_number(values) == values
    assert [whole_name(name) for name in ("AU1", "AU1L", "AU1R")] == ["AU1"] * 3


def test_emotions_use_editable_units_only():
    assert list(EMOTIONS) == ["happiness", "sadness", "surprise", "fear", "anger", "disgust"]
    for units in EMOTIONS.values():
        assert set(units) <= set(NAMES)
        strongest = STRENGTH_RANGE[1] * max(map(abs, units.values()))
        assert 0 < min(map(abs, units.values())) <= strongest <= DELTA_RANGE[1]
    relaxed = [(name, unit) for name, units in EMOTIONS.items() for unit, steps in units.items() if steps < 0]
    assert relaxed == [("happiness", "AU1"), ("happiness", "AU4")]


@pytest.mark.parametrize("spelling", ["AU12", "au12", "AU012", "au0012", "AU 12", " Au_12 "])
def test_spellings_of_one_unit(spelling):
    assert canonical_name(spelling) == "AU12"


@pytest.mark.parametrize(
    ("wrong", "suggestion"),
    [
        ("AU13", "AU12"),
        ("AU27", "AU26"),
        ("AU3", "AU2"),
        ("lip corner puler", "AU12"),
        ("UA12", "AU12"),
        ("jaw drop", "AU26"),
    ],
)
def test_unknown_names_list_the_known_and_suggest_the_nearest(wrong, suggestion):
    with pytest.raises(ActionUnitError) as caught:
        canonical_name(wrong, NAMES)
    message = str(caught.value)
    assert f"did you mean {suggestion} (" in message
    assert ", ".join(NAMES) in message


@pytest.mark.parametrize("wrong", ["", "AU", "AU0", "smile", "12", "AU1.2", "AU-1", None, 12])
def test_what_is_no_name_is_refused(wrong):
    with pytest.raises(ActionUnitError, match="unknown action unit"):
        canonical_name(wrong)


def test_measured_units_are_known_but_not_editable():
    assert canonical_name("AU07") == "AU7"
    with pytest.raises(ActionUnitError, match=r"AU7 \(lid tightener\) is measured but cannot be edited"):
        parse_deltas("AU7=1")


def test_the_three_forms_agree():
    text = parse_deltas("AU12=+3, au04=-1.5,AU25=.5,AU26=0")
    assert text == {"AU12": 3.0, "AU4": -1.5, "AU25": 0.5, "AU26": 0.0}
    assert list(text) == ["AU12", "AU4", "AU25", "AU26"]
    assert parse_deltas("12=+3, 04=-1.5,25=.5,26=0") == text
    assert parse_deltas("12L=2") == {"AU12L": 2.0}
    assert parse_deltas({"au12": 3, "AU4": "-1.5", "AU25": np.float32(0.5), "AU26": 0}) == text
    vector = [0.0, 0.0, -1.5, 0.0, 0.0, 0.0, 3.0, 0.0, 0.0, 0.0, 0.5, 0.0]
    assert parse_deltas(vector) == parse_deltas(np.array(vector)) == dict.fromkeys(NAMES, 0.0) | text


@pytest.mark.parametrize(
    "malformed",
    ["", " ", "AU12", "AU12=", "=3", "AU12=3,", "AU12=3;AU4=1", "AU12=3=4", "AU12 3", "AU12==3", "AU12=1,5"],
)
def test_malformed_text_shows_the_form_expected(malformed):
    with pytest.raises(ActionUnitError, match=r"AU12=\+3,AU4=-1|expected a delta"):
        parse_deltas(malformed)


@pytest.mark.parametrize(
    "value",
    ["nan", "inf", "-inf", float("nan"), float("inf"), "1_0", "3x", "٣", True, None, [3], 10.01, -10.01],
)
def test_values_that_are_no_delta(value):
    with pytest.raises(ActionUnitError, match="expected a delta between -10 and 10 for AU12"):
        parse_deltas({"AU12": value})


def test_the_ends_of_the_ranges_are_inside():
    assert parse_deltas("AU12=10,AU4=-10") == {"AU12": 10.0, "AU4": -10.0}
    assert parse_levels("AU12=5,AU4=0") == {"AU12": 5.0, "AU4": 0.0}


@pytest.mark.parametrize("level", ["AU12=5.001", "AU12=-0.001"])
def test_levels_outside_0_to_5_are_refused(level):
    with pytest.raises(ActionUnitError, match="an intensity between 0 and 5 for AU12"):
        parse_levels(level)


def test_one_unit_twice_is_refused_however_spelt():
    with pytest.raises(ActionUnitError, match="AU12 is given twice"):
        parse_deltas("AU12=1,au012=1")


@pytest.mark.parametrize("spec", [[1.0, 2.0], np.zeros((1, 12)), np.zeros(13)])
def test_vectors_of_another_length_say_the_order(spec):
    with pytest.raises(ActionUnitError, match=r"needs 12 values, in the order AU1, AU2"):
        parse_deltas(spec)


@pytest.mark.parametrize("spec", [None, 3, 3.5])
def test_other_types_are_refused(spec):
    with pytest.raises(ActionUnitError, match=r"a mapping or a vector of 12"):
        parse_deltas(spec)


def test_a_models_own_vocabulary():
    assert parse_deltas([1, 2], names=("AU12", "AU99")) == {"AU12": 1.0, "AU99": 2.0}
    with pytest.raises(ActionUnitError, match="Known: AU12, AU99"):
        parse_deltas("AU4=1", names=("AU12", "AU99"))


def test_emotions():
    assert parse_emotion("happiness") == ("happiness", 1.0)
    assert parse_emotion(" Happiness:0.8") == ("happiness", 0.8)
    assert parse_emotion(("fear", 1.25)) == ("fear", 1.25)
    assert emotion_deltas("happiness") == {
        "AU1": -1.0, "AU4": -2.0, "AU6": 2.25, "AU12": 4.75, "AU25": 2.0
    }  # fmt: skip
    assert emotion_deltas("anger", 0.5, ["AU7", "AU24"]) == {
        **emotion_deltas("anger", 0.5), "AU7": 1.0, "AU24": 1.0
    }  # fmt: skip
    frowning = {"AU1": 1.0, "AU4": 2.5, "AU12": 4.5}
    relaxed = emotion_deltas("happiness", 0.5, (), frowning)
    assert (relaxed["AU1"], relaxed["AU4"]) == (0.5 * (-1.0 - 1.0), 0.5 * (-2.0 - 1.5))  # at most
    assert emotion_deltas("sadness", 1.0, (), frowning)["AU12"] == -4.0  # at most
    assert emotion_deltas("sadness", 1.0, (), {"AU12": 0.0}) == emotion_deltas("sadness")
    smile = {"AU12": 3.0, "AU12L": 3.0, "AU12R": 3.0}
    assert (
        resolve_delta(smile, set={"AU12L": 0}, emotion="sadness")["AU12L"] == -3.0
    )  # nor is it undone twice
    assert {*ENRICHED} < {*EMOTIONS}
    assert all({*units} <= {*GEOMETRIC} for units in ENRICHED.values())
    assert emotion_deltas("disgust", 0.5) == {"AU4": 1.0, "AU6": 0.5, "AU9": 2.25, "AU15": 1.0, "AU17": 1.25}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("happy", "did you mean happiness"),
        ("joyful", "Known: happiness, sadness"),
        ("happiness:", "a strength between 0 and 1.25"),
        ("happiness:1.26", "a strength between 0 and 1.25"),
        ("happiness:-0.1", "a strength between 0 and 1.25"),
        ("happiness:nan", "a strength between 0 and 1.25"),
        (("happiness",), "expected an emotion"),
        (3, "expected an emotion"),
    ],
)
def test_wrong_emotions(spec, message):
    with pytest.raises(ActionUnitError, match=message):
        parse_emotion(spec)


def test_vectors_and_mappings_invert_each_other():
    vector = to_vector({"au26": 1.5, "AU1": -2})
    assert vector.dtype == np.float32
    np.testing.assert_array_equal(vector, [-2] + [0] * 10 + [1.5])
    assert NAMES.mapping(vector) == dict.fromkeys(NAMES, 0.0) | {"AU1": -2.0, "AU26": 1.5}
    with pytest.raises(ActionUnitError):
        to_vector({"AU7": 1.0})
    with pytest.raises(ActionUnitError):
        NAMES.mapping([1.0])


def test_an_edit_adds_up_in_the_models_order():
    delta = resolve_delta(
        {"AU2": 1.25}, add="AU26=1,AU12=-1", set={"AU2": 0}, emotion=("happiness", 0.5), names=NAMES
    )
    happy = {name: steps / 2 for name, steps in EMOTIONS["happiness"].items()}
    assert delta == pytest.approx(happy | {"AU2": -1.25, "AU12": happy["AU12"] - 1, "AU26": 1.0})
    assert list(delta) == ["AU1", "AU2", "AU4", "AU6", "AU12", "AU25", "AU26"]
    assert resolve_delta(None) == {}


def test_levels_within_the_dead_zone_ask_for_nothing():
    current = {"AU12": 1.0, "AU12L": 1.0, "AU4": 0.3}
    near, far = 1 + 0.9 * DEAD_ZONE, 1 + DEAD_ZONE
    assert resolve_delta(current, set={"AU12": near, "AU4": 0}) == {"AU4": 0.0, "AU12": 0.0}
    assert resolve_delta(current, set={"AU12L": 2 - near}) == {"AU12L": 0.0}
    assert resolve_delta(current, set={"AU12": far}) == {"AU12": DEAD_ZONE}
    assert resolve_delta(current, add={"AU4": 0.1}, set={"AU12": near}) == {"AU4": 0.1, "AU12": 0.0}


def test_in_films_requests_grow_from_the_dead_zone_without_a_leap():
    distances = np.linspace(-3, 3, 6001)
    steps = np.array([steps_to(3 + distance, 3.0, continuous=True) for distance in distances])
    assert np.abs(np.diff(steps)).max() < 0.0021
    assert not steps[np.abs(distances) < DEAD_ZONE].any()
    beyond = np.abs(distances) >= 2 * DEAD_ZONE
    assert steps[beyond] == pytest.approx(distances[beyond])


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"add": "AU12=1", "set": "AU12=2"}, "AU12: both set"),
        ({"emotion": "happiness", "set": "AU12=2"}, "AU12: both set"),
        ({"set": "AU4=2"}, "AU4 needs its measured intensity"),
        ({"add": "AU12=8", "emotion": "happiness"}, "a total delta between -10 and 10 for AU12, got 12.75"),
        ({"add": "AU12=11"}, "a delta between"),
        ({"emotion": "happiness", "names": ("AU12",)}, "happiness needs AU1, which this model cannot edit"),
    ],
)
def test_edits_that_cannot_be_meant(request_, message):
    with pytest.raises(ActionUnitError, match=message):
        resolve_delta({"AU12": 1.0}, **request_)


def test_set_without_any_measurement():
    with pytest.raises(ActionUnitError, match="give a delta instead"):
        resolve_delta(None, set="AU12=2")


def test_one_class_catches_all():
    assert issubclass(ActionUnitError, MagicEditError)
    assert issubclass(MagicEditError, ValueError)


@pytest.mark.parametrize("spelling", ["AU12L", "au12l", "AU 12 L", " AU012L"])
def test_spellings_of_one_side(spelling):
    assert canonical_name(spelling) == "AU12L"
    assert canonical_name(spelling, NAMES) == "AU12L"


def test_openface_columns_are_no_sides():
    """AU12_r is OpenFace's regression of AU12, not its right side."""
    with pytest.raises(ActionUnitError):
        canonical_name("AU12_r")


def test_what_lies_in_the_middle_has_no_sides():
    with pytest.raises(ActionUnitError, match=r"AU26 .* has no sides; those that have: AU1, AU2"):
        canonical_name("AU26L")
    assert sided_names("AU26") == ()
    assert sided_names("AU1") == ("AU1L", "AU1R")


def test_sides_split_and_add_up():
    left, right = split_sides({"AU12": 1.0, "AU12L": 2.0, "AU4R": -1.0, "AU26": 3.0})
    assert left == {"AU12": 3.0, "AU26": 3.0}
    assert right == {"AU12": 1.0, "AU4": -1.0, "AU26": 3.0}


@pytest.mark.parametrize("spec", ["AU12=1,AU12L=2", "AU12L=2,AU12=1"])
def test_both_sides_and_one_in_one_request_are_refused(spec):
    with pytest.raises(ActionUnitError, match="give AU12L and AU12R"):
        parse_deltas(spec)


def test_edits_of_sides():
    assert resolve_delta(None, add="AU12R=1,AU12L=2") == {"AU12L": 2.0, "AU12R": 1.0}
    assert resolve_delta({"AU12": 3.0, "AU12L": 4.0}, set={"AU12L": 1}) == {"AU12L": -3.0}
    one_sided = resolve_delta(None, add="AU12L=1", emotion="happiness")
    happy = dict(EMOTIONS["happiness"])
    smile = happy.pop("AU12")
    assert one_sided == happy | {"AU12L": smile + 1, "AU12R": smile}
    assert resolve_delta(None, add="AU12L=1,AU12R=1") == {"AU12": 1.0}
    assert resolve_delta(None, add=f"AU12L={-smile},AU12R={-smile}", emotion="happiness")["AU12"] == 0.0
    with pytest.raises(ActionUnitError, match="measured intensity"):
        resolve_delta({"AU12": 3.0}, set={"AU12L": 1})
    with pytest.raises(ActionUnitError, match="choose one"):
        resolve_delta({"AU12": 3.0}, set={"AU12": 1}, add={"AU12L": 1})
    with pytest.raises(ActionUnitError, match="total delta"):
        resolve_delta(None, add={"AU12L": 9}, emotion="happiness")


def test_vectors_have_no_sides():
    with pytest.raises(ActionUnitError, match="split AU12L first"):
        to_vector({"AU12L": 1.0})


# --- Vocabularies of other models ---

THREE = Vocabulary(
    (Control("smile", "corners of the mouth up", "lip", has_sides=True), Control("blink"), Control("gaze_x"))
)


def test_words_are_names_too():
    assert THREE == ("smile", "blink", "gaze_x")
    assert THREE.deltas("Smile=1, blinK=-2") == {"smile": 1.0, "blink": -2.0}
    assert THREE.deltas("smileL=1") == {"smileL": 1.0}
    assert THREE.total([{"smileL": 1.0, "blink": 2.0}, {"smile": 1.0}]) == {
        "smileL": 2.0,
        "smileR": 1.0,
        "blink": 2.0,
    }
    np.testing.assert_array_equal(THREE.vector({"gaze_x": 3}), [0, 0, 3])
    assert THREE["smile"].region == "lip"
    assert THREE[1] == "blink"
    assert pickle.loads(pickle.dumps(THREE)).controls == THREE.controls
    assert list(by_number({"blink": 1, "AU12": 2, "AU4": 3})) == ["AU4", "AU12", "blink"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("smle=1", r"unknown action unit 'smle'; did you mean smile \(corners .*Known: smile, blink, gaze_x"),
        ("blinkL=1", "blink has no sides; those that have: smile"),
        ("AU12=1", "unknown action unit 'AU12'. Known: smile"),
        ("smile=1,smileR=1", "give smileL and smileR"),
    ],
)
def test_unknown_words_say_what_is_known(text, message):
    with pytest.raises(ActionUnitError, match=message):
        THREE.deltas(text)


@pytest.mark.parametrize("name", ["", "gazeL", "a,b", " AU1", "x="])
def test_names_that_no_text_could_ask_for_are_refused(name):
    with pytest.raises(ValueError, match="a control's name"):
        Control(name)


def test_names_twice_are_refused():
    with pytest.raises(ValueError, match="once"):
        Vocabulary((Control("blink"), Control("blink")))


def test_a_models_units_keep_what_facs_says_of_them():
    own = vocabulary_of(("AU26", "AU99", "AU12"))
    assert own == ("AU26", "AU99", "AU12")
    assert own["AU12"] == FACS["AU12"]
    assert own.with_sides() == ("AU26", "AU99", "AU12", "AU12L", "AU12R")
    assert vocabulary_of(own) is own
    assert vocabulary_of(None) is FACS


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        # From the subject's side: yaw is positive to their left, roll clockwise in the picture
        ("AU51=2", {"head_yaw": 8}), ("AU52=2", {"head_yaw": -8}), ("AU53=1.5", {"head_pitch": 6}),
        ("54=1", {"head_pitch": -4}), ("AU55=5", {"head_roll": 20}), ("au 056=5", {"head_roll": -20}),
        ("AU61=3", {"gaze_yaw": 18}), ("AU62=3", {"gaze_yaw": -18}), ("AU63=+5", {"gaze_pitch": 30}),
        ("AU64=-1", {"gaze_pitch": 6}), ("AU45=4", {"AU43": 4}), ("AU45L=4", {"AU43L": 4}),
        ("AU61=0,AU62=2,AU12=1", {"gaze_yaw": -12, "AU12": 1}), ("AU63=3,AU64=1", {"gaze_pitch": 12}),
    ],
)  # fmt: skip
def test_codes_of_directions_are_angles(spec, expected):
    assert editable(NAMES).deltas(spec) == expected


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("AU61=5.5", "expected a delta between -5 and 5 for AU61, got 5.5"),
        ("AU61=1,AU61=2", "gaze_yaw is given twice"),
        ("AU61=1,gaze_yaw=2", "gaze_yaw is given twice"),
        ("AU61=1,AU62=1,AU61=1", "gaze_yaw is given twice"),
        ("AU43=1,AU45=2", "AU43 is given twice"),
        ("AU61=5,AU62=-1", "expected an angle in degrees between -30 and 30 for gaze_yaw, got 36"),
        ("AU61L=1", "AU61L cannot be named here; gaze_yaw can, in degrees"),
    ],
)
def test_codes_given_wrongly(spec, message):
    with pytest.raises(ActionUnitError, match=message):
        editable(NAMES).deltas(spec)


def test_levels_by_code_are_intensities():
    names = editable(NAMES)
    assert names.levels("AU62=2,AU51=0") == {"gaze_yaw": -12, "head_yaw": 0}
    with pytest.raises(ActionUnitError, match="expected an intensity between 0 and 5 for AU62, got -1"):
        names.levels("AU62=-1")


def test_codes_where_one_name_is_wanted():
    assert FACS.spelled("au061") == "AU61"
    assert FACS.read("AU45") == ("AU45", 1.0)  # measured under its own name
    assert editable(NAMES).canonical("AU45R") == "AU43R"
    with pytest.raises(ActionUnitError, match="AU61 cannot be named here; gaze_yaw can"):
        FACS.canonical("AU61")
    with pytest.raises(ActionUnitError, match="AU61 stands for gaze_yaw, which cannot be edited here"):
        NAMES.deltas("AU61=1")
    assert pickle.loads(pickle.dumps(editable(NAMES))).deltas("AU64=1") == {"gaze_pitch": -6}
