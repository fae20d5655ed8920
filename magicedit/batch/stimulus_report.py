"""The table of a stimulus set and its methods paragraph."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from magicedit.action_units import UNSEEN
from magicedit.batch.designs import AVERAGE, Design
from magicedit.faces.measure import SEEN_BY_LANDMARKS
from magicedit.files import counted
from magicedit.vocabulary import whole_name

TABLE, METHODS = "stimuli.csv", "methods.md"  # in the folder of a set


class Made(NamedTuple):
    """A stimulus. entry: its measurements, as in the journal."""

    stimulus: str
    person: str
    condition: Mapping[str, float | str]
    entry: Mapping[str, Any]


def table_of(design: Design, done: Sequence[Made]) -> str:
    """Returns the table of a set as CSV, one row per stimulus."""
    asked = list(dict.fromkeys(unit for made in done for unit in made.entry["requested"]))
    unseen = {unit for unit in asked if whole_name(unit) in UNSEEN}
    units = list(dict.fromkeys(u for made in done for u in made.entry["measured"] if u not in unseen))
    plain = ("luminance_mean", "luminance_sd", "identity_distance", "reached")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["stimulus", "person", "photo", *design.factors]
        + [f"{unit}_{what}" for unit in asked for what in ("requested", "moved")]
        + [f"{unit}_{when}" for unit in units for when in ("before", "measured")]
        + [*plain, "warnings"]
    )
    for stimulus, person, condition, entry in done:
        row: list[Any] = [f"{stimulus}.png", person, design.people[person].photo.name, *condition.values()]
        row += [entry[what].get(unit, "") for unit in asked for what in ("requested", "moved")]
        row += [entry[when].get(unit, "") for unit in units for when in ("before", "measured")]
        row += ["" if entry[key] is None else entry[key] for key in plain]
        writer.writerow([*row, " | ".join(entry["warnings"])])
    return text.getvalue()


def methods_of(
    design: Design,
    model: Mapping[str, Any],
    versions: Mapping[str, str],
    done: Sequence[Made],
    failed: Mapping[str, str],
) -> str:
    """Returns a paragraph for the methods section, filled from the run.

    model: its name and fingerprint. versions: by package. failed: stimulus -> reason.
    """
    people = counted(len(design.people), "person", "people")
    packages = ", ".join(f"{name} {version}" for name, version in versions.items() if name != "magicedit")
    factors = [f"{name} ({', '.join(map(_level, levels))})" for name, levels in design.factors.items()]
    kind = "variations in intensity steps" if design.request == "add" else "target intensities"
    sentences = [
        f"Stimuli were made from photographs of {people}, in which facial expressions "
        f"were edited by FACS action units with magicedit {versions['magicedit']} (model {model['name']}, "
        f"fingerprint {model['fingerprint']}; {packages}).",
        f"The design {'crossed' if len(factors) > 1 else 'varied'} {' x '.join(factors)}; levels of action "
        f"units are {kind}, on a scale from 0 (absent) to 5 (maximum, FACS letter E), and levels "
        "of gaze and head are degrees.",
    ]
    if design.neutral:
        sentences.append("The measured expression of each photograph was removed first.")
    if design.tolerance is not None:
        reached = sum(made.entry["reached"] is True for made in done)
        judged = "all requested units"
        if any(whole_name(name) in UNSEEN for name in design.controls):
            judged += " that a measurement sees"
        sentences.append(
            f"Each edit was measured and corrected until {judged} were within "
            f"{design.tolerance:g} steps of the request, which {reached} of {len(done)} stimuli reached."
        )
    sampling = ("quality", "steps", "guidance", "teeth")
    chosen = [f", {name} {getattr(design, name)}" for name in sampling if getattr(design, name) is not None]
    sentences.append(f"Settings: seed {design.seed}{''.join(chosen)}.")
    if any(person.references for person in design.people.values()):
        sentences.append("Opened mouths show the person's own teeth, from further photographs, where given.")
    sentences += _frame_sentences(design, done)
    sentences += _measured_sentences(design, done)
    sentences.append(
        f"The set has {'1 stimulus' if len(done) == 1 else f'{len(done)} stimuli'}"
        + (f"; {len(failed)} of the design could not be made" if failed else "")
        + f". Intensities were measured from landmarks and blendshapes of MediaPipe; {TABLE} lists them."
    )
    return "# Stimuli\n\n" + " ".join(sentences) + "\n"


def _frame_sentences(design: Design, done: Sequence[Made]) -> list[str]:
    """Returns sentences on place and size, luminance and mask."""
    sentences = []
    if (frame := design.frame) is not None:
        sentences.append(
            "Faces were rotated, scaled and shifted so that the eyes are level and their centres "
            f"{frame.interocular:g} px apart, at {100 * frame.eye_height:g} % of the height of a canvas of "
            f"{frame.width} x {frame.height} px."
        )
    if design.luminance is not None and done:
        means, deviations = ([made.entry[f"luminance_{part}"] for made in done] for part in ("mean", "sd"))
        target = "the average of all photographs" if design.luminance == AVERAGE else "the same values"
        sentences.append(
            f"Luminance within an oval around the face was set to {target} (mean {_range(means)}, standard "
            f"deviation {_range(deviations)}, of 255)."
        )
    if design.oval is not None:
        sentences.append(
            f"Faces show through an oval of {design.oval:g} times the bounds of the unedited face's outline, "
            f"on a uniform background (RGB {', '.join(map(str, design.background))})."
        )
    return sentences


def _measured_sentences(design: Design, done: Sequence[Made]) -> list[str]:
    """Returns sentences on the measurements at each level of each control, and on identity."""
    sentences = []
    for name, levels in design.controls.items():
        if whole_name(name) in UNSEEN:
            sentences.append(f"The levels of {name} were not verified, because no measurement sees it well.")
            continue
        by_landmarks = whole_name(name) in SEEN_BY_LANDMARKS
        scorer = "moved" if by_landmarks else "measured"
        texts = []
        for level in levels:
            values = [
                made.entry[scorer][name]
                for made in done
                if made.condition[name] == level and name in made.entry[scorer]
            ]
            spread = f" (SD {np.std(values, ddof=1):.2f})" if len(values) > 1 else ""
            if values:
                texts.append(f"{np.mean(values):.2f}{spread} at {_level(level)}")
        if texts:
            what = f"Changes of {name} by landmarks" if by_landmarks else f"Measured values of {name}"
            sentences.append(f"{what} were on average {', '.join(texts)}.")
    distances = [made.entry["identity_distance"] for made in done]
    if distances := [distance for distance in distances if distance is not None]:
        sentences.append(
            f"The distance of dlib's face descriptors before and after editing was {_range(distances)}; "
            "pairs below 0.6 count as one person."
        )
    return sentences


def _level(level: float | str) -> str:
    return level if isinstance(level, str) else f"{level:g}"


def _range(values: Sequence[float]) -> str:
    low, high = f"{min(values):.2f}", f"{max(values):.2f}"
    return low if low == high else f"{low} to {high}"
