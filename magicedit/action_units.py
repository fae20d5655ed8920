"""FACS action units: the known ones, the published twelve, emotions, and requests in their names.

An *intensity* (level) is how strongly a face shows an action unit: 0 (not at all) to 5 (FACS letter E).
A *delta* is target minus source in the same intensity steps: positive is more, 0 keeps what is there.
Vectors carry one value per action unit in the order of `NAMES`, or of another `names` that a model brings.

Nine of the twelve act on both sides of the face and can be asked for on one: "AU12L" is the subject's left.

Names and numbers: Ekman, Friesen, Hager, "Facial Action Coding System", 2002.
"""

import difflib
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache

import numpy as np

from magicedit.errors import ActionUnitError
from magicedit.vocabulary import (
    INTENSITY_RANGE,
    Control,
    Spec,
    Vocabulary,
    number_within,
    quoted,
    whole_name,
)

ActionUnit = Control

GAZE_RANGE, HEAD_RANGE = (-30.0, 30.0), (-20.0, 20.0)  # degrees
# Degrees that count as one intensity step, by the kind of a control: five steps are the range
STEP_DEGREES = {"gaze": 6.0, "head": 4.0}
# FACS has a code for each direction of eyes and head, as seen by the subject. Here two directions are one
# axis, in degrees, signed as `magicedit.faces.Pose`: code -> control, and degrees an intensity step.
CODES = {
    "AU45": ("AU43", 1.0),  # a blink, where it is not a control of its own
    "AU51": ("head_yaw", STEP_DEGREES["head"]),  # head turns left
    "AU52": ("head_yaw", -STEP_DEGREES["head"]),
    "AU53": ("head_pitch", STEP_DEGREES["head"]),  # head up
    "AU54": ("head_pitch", -STEP_DEGREES["head"]),
    "AU55": ("head_roll", STEP_DEGREES["head"]),  # head tilts left, clockwise in the picture
    "AU56": ("head_roll", -STEP_DEGREES["head"]),
    "AU61": ("gaze_yaw", STEP_DEGREES["gaze"]),  # eyes turn left
    "AU62": ("gaze_yaw", -STEP_DEGREES["gaze"]),
    "AU63": ("gaze_pitch", STEP_DEGREES["gaze"]),  # eyes up
    "AU64": ("gaze_pitch", -STEP_DEGREES["gaze"]),
}

# Every known control, in the order of the numbers
FACS = Vocabulary(
    (
        Control("AU1", "inner brow raiser", "brow", has_sides=True),
        Control("AU2", "outer brow raiser", "brow", has_sides=True),
        Control("AU4", "brow lowerer", "brow", has_sides=True),
        Control("AU5", "upper lid raiser", "eye", has_sides=True),
        Control("AU6", "cheek raiser", "cheek", has_sides=True),
        Control("AU7", "lid tightener", "eye", has_sides=True),
        Control("AU9", "nose wrinkler", "nose", has_sides=True),
        Control("AU10", "upper lip raiser", "lip", has_sides=True),
        Control("AU12", "lip corner puller", "lip", has_sides=True),
        Control("AU14", "dimpler", "lip", has_sides=True),
        Control("AU15", "lip corner depressor", "lip", has_sides=True),
        Control("AU16", "lower lip depressor", "lip"),
        Control("AU17", "chin raiser", "jaw"),
        Control("AU18", "lip pucker", "lip"),
        Control("AU20", "lip stretcher", "lip", has_sides=True),
        Control("AU22", "lip funneler", "lip"),
        Control("AU23", "lip tightener", "lip"),
        Control("AU24", "lip pressor", "lip"),
        Control("AU25", "lips part", "lip"),
        Control("AU26", "jaw drop", "jaw"),
        Control("AU27", "mouth stretch", "jaw"),
        Control("AU28", "lip suck", "lip"),
        Control("AU43", "eyes closed", "eye", has_sides=True),
        Control("AU45", "blink", "eye", has_sides=True),
        Control("gaze_yaw", "gaze to the subject's left", "gaze", range=GAZE_RANGE, kind="gaze"),
        Control("gaze_pitch", "gaze up", "gaze", range=GAZE_RANGE, kind="gaze"),
        Control("head_yaw", "head turned to the subject's left", "head", range=HEAD_RANGE, kind="head"),
        Control("head_pitch", "head up", "head", range=HEAD_RANGE, kind="head"),
        Control("head_roll", "head tilted clockwise", "head", range=HEAD_RANGE, kind="head"),
    ),
    codes=CODES,
)
# The 12 of the published MagicFace checkpoint, in the order of its embedding's inputs.
NAMES = FACS.named(("AU1", "AU2", "AU4", "AU5", "AU6", "AU9", "AU12", "AU15", "AU17", "AU20", "AU25", "AU26"))
ACTION_UNITS = NAMES.controls
# Controls that need no network: the photograph's own pixels are moved by geometry. Editors offer them beside
# the controls of a model that composes, see `editable`.
GEOMETRIC = FACS.named(name for name in FACS if name not in (*NAMES, "AU45"))
# Units whose measured intensities are no part of a face's expression: their scores depend more on the shape
# of a mouth and of lids than on muscles
UNRELIABLE = frozenset(c.name for c in GEOMETRIC.controls if not c.is_angle and c.name != "AU43")
# Controls that no scorer here sees well enough to judge or to correct an edit by. Of 52 unseen faces
# (benchmarks/controls.json) most measure less than a quarter of what is asked of these units, and a quarter
# of closed eyes read as open or half open.
UNSEEN = frozenset(control.name for control in GEOMETRIC.controls if not control.is_angle)
REGIONS = tuple(dict.fromkeys(unit.region for unit in FACS.controls))
_PARTS = {"mouth": ("lip", "jaw")}  # other words for regions, beside plural forms
DESCRIPTIONS = {unit.name: unit.description for unit in FACS.controls}
# What people call these movements, in the order in which they are looked for: the mouth first
PLAIN_WORDS = {
    "AU12": "smile",
    "AU25": "lips apart",
    "AU26": "open jaw",
    "AU15": "mouth corners down",
    "AU20": "mouth wide",
    "AU18": "pucker",
    "AU10": "upper lip up",
    "AU16": "lower lip down",
    "AU17": "chin up",
    "AU14": "dimples",
    "AU27": "mouth wide open",
    "AU22": "funnel",
    "AU23": "tight lips",
    "AU24": "pressed lips",
    "AU28": "lips sucked in",
    "AU43": "close eyes",
    "AU5": "wide eyes",
    "AU7": "squint",
    "AU45": "blink",
    "AU1": "inner brows up",
    "AU2": "outer brows up",
    "AU4": "frown",
    "AU6": "cheeks up",
    "AU9": "wrinkled nose",
    "gaze_yaw": "look to the subject's left",
    "gaze_pitch": "look up",
    "head_yaw": "turn to the subject's left",
    "head_pitch": "head up",
    "head_roll": "tilt clockwise",
}
BILATERAL = tuple(unit.name for unit in ACTION_UNITS if unit.has_sides)

# Intensity steps: a level to arrive at that is nearer than this to the measured one asks for nothing. On 20
# neutral photographs of the London set, JPEG at quality 60 and 90, shifts of 1 and 2 px, scales of 0.97 and
# 0.5, noise and darker light change the twelve measured units by at most 0.24 in 99 % of cases and by 0.45 in
# all; on 20 synthetic portraits by 0.49 in 99 %.
DEAD_ZONE = 0.5

# EMFACS prototypes, limited to the 12 action units above: intensity steps at strength 1. Equal steps would
# open mouths too far, and let AU1 and AU2 undo AU4.
EMOTIONS: dict[str, dict[str, float]] = {
    "happiness": {"AU1": -1.0, "AU4": -2.0, "AU6": 2.25, "AU12": 4.75, "AU25": 2.0},
    "sadness": {"AU1": 4.0, "AU4": 2.0, "AU15": 3.5, "AU17": 2.0},
    "surprise": {"AU1": 2.75, "AU2": 2.75, "AU5": 2.75, "AU25": 1.0, "AU26": 2.5},
    "fear": {"AU1": 4.5, "AU2": 2.0, "AU4": 3.5, "AU5": 4.5, "AU20": 3.5, "AU25": 1.0, "AU26": 0.6},
    "anger": {"AU4": 5.5, "AU5": 3.0, "AU9": 2.0, "AU15": 1.0, "AU17": 1.5},
    "disgust": {"AU4": 2.0, "AU6": 1.0, "AU9": 4.5, "AU15": 2.0, "AU17": 2.5},
}
# What shows another emotion is undone as far as it is measured, up to this many steps: a smile under a frown
# is not read as happiness, nor raised brows above a smile as sadness
OPPOSED: dict[str, dict[str, float]] = {
    "happiness": {"AU1": 2.0, "AU4": 1.5},
    "sadness": {"AU12": 4.0},
    "surprise": {"AU4": 2.0},
    "fear": {"AU12": 4.0},
    "anger": {"AU12": 4.0},
    "disgust": {"AU12": 4.0},
}
# What GEOMETRIC units add to these for editors that have them: tightened lips and lids, a raised upper lip
ENRICHED: dict[str, dict[str, float]] = {
    "anger": {"AU7": 2.0, "AU23": 3.0, "AU24": 2.0},
    "disgust": {"AU10": 1.5},
}
# Shapes of the mouth in speech, by the sound; for editors with GEOMETRIC controls
MOUTH_SHAPES: dict[str, dict[str, float]] = {
    "aaa": {"AU25": 1.5, "AU26": 3.0},
    "eee": {"AU12": 1.0, "AU20": 3.0, "AU25": 2.5},
    "ooo": {"AU18": 4.0, "AU26": 2.0},
    "fff": {"AU10": 1.5, "AU17": 1.5, "AU25": 1.5},
    "mmm": {"AU24": 3.5, "AU28": 1.5},
}
RECIPES = EMOTIONS | MOUTH_SHAPES
STRENGTH_RANGE = (0.0, 1.25)
WHOLE_EMOTION = 5.0  # intensity steps of a control that is an emotion, at strength 1


def vocabulary_of(names: Iterable[str] | None) -> Vocabulary:
    """The vocabulary of a model's names in its order; None: all of FACS that is known."""
    if isinstance(names, Vocabulary):
        return names
    return FACS if names is None else _named(tuple(names))


def editable(names: Iterable[str]) -> Vocabulary:
    """What an editor can be asked for with a model of these names that composes: GEOMETRIC controls too."""
    vocabulary = vocabulary_of(names)
    known = vocabulary.known or FACS
    more = [control for control in GEOMETRIC.controls if control.name not in vocabulary]
    return Vocabulary((*vocabulary.controls, *more), known, vocabulary.numbers)


@cache
def _named(names: tuple[str, ...]) -> Vocabulary:
    return FACS.named(names)


def canonical_name(name: str, names: Iterable[str] | None = None) -> str:
    """The canonical spelling of an action unit among `names`, see `Vocabulary.canonical`."""
    return vocabulary_of(names).canonical(name)


def sided_names(name: str) -> tuple[str, ...]:
    """ "AU12" -> ("AU12L", "AU12R"); nothing for what has no sides."""
    return FACS.sided(name)


def is_angle(name: str) -> bool:
    """Whether a control, whole or of one side, is known to have values in degrees."""
    return whole_name(name) in FACS and FACS[whole_name(name)].is_angle


def level_range(name: str) -> tuple[float, float]:
    """The smallest and the largest level of a control, whole or of one side; unknown: an intensity."""
    return FACS[whole_name(name)].levels if whole_name(name) in FACS else INTENSITY_RANGE


def parse_deltas(spec: Spec, names: Sequence[str] = NAMES) -> dict[str, float]:
    """Deltas in intensity steps, -10 to 10, by canonical name, see `Vocabulary.deltas`."""
    return vocabulary_of(names).deltas(spec)


def parse_levels(spec: Spec, names: Sequence[str] = NAMES) -> dict[str, float]:
    """Intensities, 0 to 5, by canonical name, see `Vocabulary.levels`."""
    return vocabulary_of(names).levels(spec)


def parse_regions(spec: str | Iterable[str]) -> tuple[str, ...]:
    """Regions of controls from "eyes,brows" or ["eye", "brow"], in the order of REGIONS.

    Plural forms are accepted, and "mouth" for lip and jaw. Raises ActionUnitError for other words, and where
    nothing is named.
    """
    words = [word.strip().lower() for word in (spec.split(",") if isinstance(spec, str) else spec)]
    named: set[str] = set()
    for word in filter(None, words):
        singular = word if word in REGIONS or word in _PARTS else word.removesuffix("s")
        regions = _PARTS.get(singular, (singular,))
        if not {*regions} <= {*REGIONS}:
            raise ActionUnitError(f"unknown region {quoted(word)}; known: {', '.join((*REGIONS, *_PARTS))}")
        named |= {*regions}
    if not named:
        raise ActionUnitError(f"no region is named; known: {', '.join((*REGIONS, *_PARTS))}")
    return tuple(region for region in REGIONS if region in named)


def parse_emotion(spec: str | tuple[str, float]) -> tuple[str, float]:
    """An emotion or a shape of the mouth and its strength, from "happiness:0.8" or ("happiness", 0.8).

    Strength 1, the default, asks for the steps of `RECIPES`; 0 to 1.25 times these are allowed.
    Raises ActionUnitError otherwise.
    """
    if isinstance(spec, str):
        name, colon, strength = spec.partition(":")
        if not colon:
            strength = 1.0
    elif isinstance(spec, Sequence) and len(spec) == 2:
        name, strength = spec
    else:
        raise ActionUnitError(
            f'expected an emotion such as "happiness:0.8" or ("happiness", 0.8), got {quoted(spec)}'
        )
    known = name.strip().lower() if isinstance(name, str) else ""
    if known not in RECIPES:
        close = difflib.get_close_matches(known, RECIPES, n=1, cutoff=0.4)
        hint = f"; did you mean {close[0]}?" if close else "."
        raise ActionUnitError(f"unknown emotion {quoted(name)}{hint} Known: {', '.join(RECIPES)}")
    return known, number_within(strength, known, STRENGTH_RANGE, "a strength")


def emotion_deltas(
    name: str,
    strength: float = 1.0,
    names: Collection[str] = (),
    current: Mapping[str, float] | None = None,
    *,
    continuous: bool = False,
) -> dict[str, float]:
    """Deltas in intensity steps of an emotion or a mouth shape; arguments, errors as `parse_emotion`.

    names: of an editor's controls, for units of ENRICHED among them. current: measured intensities of a
    face, 0 to 5, for units of OPPOSED among them. continuous: as of `steps_to`.
    """
    name, strength = parse_emotion((name, strength))
    steps = RECIPES[name] | {unit: more for unit, more in ENRICHED.get(name, {}).items() if unit in names}
    for unit, most in OPPOSED.get(name, {}).items():
        if undone := max(steps_to(0.0, (current or {}).get(unit, 0.0), continuous=continuous), -most):
            steps[unit] = steps.get(unit, 0.0) + undone
    return {unit: value * strength for unit, value in steps.items()}


def units_of_emotion(name: str) -> frozenset[str]:
    """The whole units for which an emotion or a mouth shape may ask on any face; `name` as of RECIPES."""
    return frozenset(RECIPES[name]).union(ENRICHED.get(name, {}), OPPOSED.get(name, {}))


def to_vector(values: Mapping[str, float], names: Sequence[str] = NAMES) -> np.ndarray:
    """float32 (aus,) in the order of `names`, see `Vocabulary.vector`."""
    return vocabulary_of(names).vector(values)


def steps_to(level: float, measured: float, *, continuous: bool = False) -> float:
    """The variation from a measured intensity to `level`; 0 where they are nearer than DEAD_ZONE.

    continuous: for films: between one and two dead zones the variation grows from 0 to the whole distance, so
    that a measurement that trembles around the limit makes no request that leaps.
    """
    distance = float(level) - float(measured)
    if abs(distance) < DEAD_ZONE:
        return 0.0
    if continuous:
        return math.copysign(min(abs(distance), 2 * (abs(distance) - DEAD_ZONE)), distance)
    return distance


def resolve_delta(
    current: Mapping[str, float] | None,
    add: Spec | None = None,
    set: Spec | None = None,
    emotion: str | tuple[str, float] | None = None,
    names: Sequence[str] = NAMES,
    *,
    continuous: bool = False,
) -> dict[str, float]:
    """What an edit asks for, as one delta per named action unit, in intensity steps, ordered as `names`.

    `add` (deltas, -10 to 10) and `emotion` add up; where the two sides come to differ, they are named one by
    one. A model that lacks units of an emotion but has the emotion as a control gets 5 steps of that. `set`
    (intensities, 0 to 5) asks for target minus `current`, the measured intensities, which it needs; for
    nothing within the DEAD_ZONE. `names` is the vocabulary of the model. `continuous`: as of `steps_to`.
    Raises ActionUnitError where an action unit is both set and added to, where `current` lacks one that is
    set, where a sum leaves -10 to 10, and for anything that the parsers refuse.
    """
    deltas = {} if add is None else parse_deltas(add, names)
    levels = {} if set is None else parse_levels(set, names)
    return resolved(current, deltas, levels, emotion, names, continuous=continuous)


def resolved(
    current: Mapping[str, float] | None,
    deltas: Mapping[str, float],
    levels: Mapping[str, float],
    emotion: str | tuple[str, float] | None,
    names: Sequence[str],
    *,
    settled: Collection[str] = (),
    continuous: bool = False,
) -> dict[str, float]:
    """`resolve_delta` of what is parsed already: `deltas` and `levels` by canonical names among `names`.

    settled: whole units with another target, which an emotion does not undo.
    """
    deltas = dict(deltas)
    if emotion is not None:
        emotion_name, strength = parse_emotion(emotion)
        settled = {*settled, *map(whole_name, levels)}
        rest = {n: level for n, level in (current or {}).items() if n in names and n not in settled}
        asked = emotion_deltas(emotion_name, strength, names, rest, continuous=continuous)
        if emotion_name in names and not asked.keys() <= set(names):
            asked = {emotion_name: WHOLE_EMOTION * strength}
        for name, value in asked.items():
            if name not in names:
                raise ActionUnitError(
                    f"{emotion_name} needs {name}, which this model cannot edit; it knows {', '.join(names)}"
                )
            deltas[name] = deltas.get(name, 0.0) + value

    both = [n for n in levels if not deltas.keys().isdisjoint((n, whole_name(n), *sided_names(n)))]
    if both:
        raise ActionUnitError(
            f"{', '.join(both)}: both set to an intensity and changed by a delta or an emotion; choose one"
        )
    for name, level in levels.items():
        if current is None or name not in current:
            raise ActionUnitError(
                f"setting {name} needs its measured intensity, which is not known here; give a delta instead"
            )
        deltas[name] = steps_to(level, current[name], continuous=continuous)
    return vocabulary_of(names).total([deltas])
