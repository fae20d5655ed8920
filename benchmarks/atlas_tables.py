"""Parts of docs/atlas.md that follow from mini_quality.json: how well `mini` moves each action unit."""

import textwrap
from statistics import mean

from magicedit.action_units import BILATERAL, DESCRIPTIONS, EMOTIONS, FACS, NAMES, is_angle
from magicedit.vocabulary import whole_name

# Ekman, Friesen, Hager, "Facial Action Coding System", 2002
MUSCLES = {
    "AU1": "frontalis, inner part",
    "AU2": "frontalis, outer part",
    "AU4": "corrugator supercilii, depressor supercilii, depressor glabellae",
    "AU5": "levator palpebrae superioris",
    "AU6": "orbicularis oculi, outer ring",
    "AU9": "levator labii superioris alaeque nasi",
    "AU12": "zygomaticus major",
    "AU15": "depressor anguli oris",
    "AU17": "mentalis",
    "AU20": "risorius, platysma",
    "AU25": "depressor labii inferioris, or relaxed mentalis or orbicularis oris",
    "AU26": "relaxed masseter, temporalis and medial pterygoid",
}
SHOWN_LEVELS = (1.0, 3.0, 5.0)  # of the table; the text has all


def curve(quality: dict, name: str, scorer: str) -> dict[float, float]:
    """Requested variation -> mean change over faces by a scorer, in intensity steps."""
    rows = [r for r in quality["rows"] if r["kind"] == "level" and r["au"] == name and not r.get("lost")]
    return {
        level: mean(r[scorer][name] for r in rows if r["level"] == level)
        for level in sorted({r["level"] for r in rows})
    }


def units_table(quality: dict) -> str:
    """One row an action unit, in Markdown."""
    levels = " | ".join(f"{level:+.0f}" for level in SHOWN_LEVELS)
    lines = [
        f"| AU | movement | sides | {levels} | blendshapes at +3 | up on |",
        "|---|---|---|" + "---|" * (len(SHOWN_LEVELS) + 2),
    ]
    for name in NAMES:
        row = quality["summary"]["by_au"][name]
        moved = curve(quality, name, "landmarks")
        measured = " | ".join(f"{moved[level]:+.1f}" for level in SHOWN_LEVELS)
        blind = name != "AU25" and "blendshapes" not in row["seen_by"]
        by_blendshapes = "blind" if blind else f"{row['mean_change_by_blendshapes']:+.1f}"
        lines.append(
            f"| [{name}](#{name.lower()}) | {DESCRIPTIONS[name]} | "
            f"{'yes' if name in BILATERAL else 'no'} | {measured} | {by_blendshapes} | "
            f"{row['right_direction_by_landmarks']} of {row['faces']} |"
        )
    return "\n".join(lines)


def controls_table(controls: dict) -> str:
    """One row a request of controls.json, in Markdown."""
    lines = [
        "| request | what it does | faces | measured | within 30 % | identity distance (max) | unchanged |",
        "|---|---|---|---|---|---|---|",
    ]
    for request, found in controls["summary"].items():
        name = request.split("=")[0]
        unit = "°" if is_angle(name) else ""
        change = "–" if found["change"] is None else f"{found['change']:+.1f}{unit}"
        near = "–" if found["change"] is None else f"{found['from_0.7_to_1.3']} of {found['faces']}"
        lines.append(
            f"| `{request}` | {FACS[whole_name(name)].description} | {found['faces']} | {change} | {near} | "
            f"{found['identity_distance']:.2f} ({found['identity_distance_most']:.2f}) | "
            f"{found['unchanged']:.0%} |"
        )
    return "\n".join(lines)


def unit_text(quality: dict, name: str) -> str:
    """What was measured of one action unit, in sentences."""
    row = quality["summary"]["by_au"][name]
    curves, blind = [], []
    for scorer in ("landmarks", "blendshapes"):
        if scorer in row["seen_by"] or name == "AU25":
            levels = ", ".join(f"{change:+.1f}" for change in curve(quality, name, scorer).values())
            curves.append(f"{levels} by {scorer}")
        else:
            blind.append(scorer)
    text = f"*Muscle:* {MUSCLES[name]}. *Measured* for requests of +1 to +5: {'; '.join(curves)}"
    text += "".join(f" ({scorer} do not see it)" for scorer in blind) + "."
    if name in quality["summary"]["sides"]:
        sides = quality["summary"]["sides"][name]["landmarks"]
        text += f" One side at +3: {sides['asked']:+.1f}, the other side {sides['other']:+.1f}."
    text += (
        f" Other units at +3: {row['mean_absolute_change_of_others']:.1f} on average; "
        f"identity distance {row['mean_identity_distance']:.2f}."
    )
    return textwrap.fill(text, 118, break_on_hyphens=False)


def emotions_table() -> str:
    """The recipe of each emotion, in Markdown."""
    rows = [
        f"| {emotion} | {', '.join(f'{unit} {steps:+g}' for unit, steps in recipe.items())} |"
        for emotion, recipe in EMOTIONS.items()
    ]
    return "\n".join(["| emotion | units at strength 1 |", "|---|---|", *rows])


def blocks(quality: dict, controls: dict) -> dict[str, str]:
    """What belongs between which markers of docs/atlas.md."""
    tables = {
        "table:atlas": units_table(quality),
        "table:controls": controls_table(controls),
        "table:emotions": emotions_table(),
    }
    return tables | {f"text:atlas-{name}": unit_text(quality, name) for name in NAMES}
