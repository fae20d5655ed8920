"""How a model answers on faces it has not seen: requested against measured AUs, identity distance.

    python benchmarks/mini_response.py PHOTOGRAPHS [-o benchmarks/mini_response.json]

PHOTOGRAPHS has one folder per identity with `neutral.jpg` in it, such as the Face Research Lab London Set.
Every neutral photograph is edited by each AU at +3 and by AU12 at +1 to +5, with default steps and guidance
and seed 0, and measured by MediaPipe's blendshapes before and after (the scorer that also labelled the real
training pairs).
Identity distance is the L2 distance of dlib's face descriptors. Rows and a summary are written as data.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

from machine import circumstances

from magicedit.action_units import NAMES
from magicedit.editor import ExpressionEditor

VALIDATION = [
    "001",
    "011",
    "024",
    "036",
    "062",
    "083",
    "101",
    "115",
    "126",
    "138",
]  # identities of the London set, never trained on
LEVELS = (1.0, 2.0, 3.0, 4.0, 5.0)


def rows_of(editor: ExpressionEditor, identity: str, photo: Path, **settings) -> list[dict]:
    """One row an edit of one photograph."""
    requests = [(name, 3.0) for name in NAMES] + [("AU12", level) for level in LEVELS if level != 3.0]
    rows = []
    for name, requested in requests:
        started = time.perf_counter()
        face = editor.edit(photo, add={name: requested}, face="largest", **settings).faces[0]
        row = {"identity": identity, "au": name, "requested": requested}
        row["seconds"] = round(time.perf_counter() - started, 3)
        row["identity_distance"] = face.identity_distance
        if face.after:
            row["changed"] = {au: round(face.after[au] - face.before[au], 3) for au in face.before}
        rows.append(row)
    return rows


def summary_of(rows: list[dict]) -> dict:
    """By AU at +3: the change of the AU itself, of the others, and identity; AU12 by level."""

    def at(name: str, requested: float) -> list[dict]:
        return [
            row for row in rows if row["au"] == name and row["requested"] == requested and "changed" in row
        ]

    by_au = {}
    for name in NAMES:
        chosen = at(name, 3.0)
        own = [row["changed"][name] for row in chosen]
        others = [abs(v) for row in chosen for au, v in row["changed"].items() if au != name and au in NAMES]
        distances = [row["identity_distance"] for row in chosen if row["identity_distance"] is not None]
        by_au[name] = {
            "faces": len(chosen),
            "mean_change": round(statistics.mean(own), 2),
            "faces_changed_by_1": sum(value >= 1.0 for value in own),
            "faces_in_direction": sum(value > 0.0 for value in own),
            "mean_absolute_change_of_others": round(statistics.mean(others), 2),
            "mean_identity_distance": round(statistics.mean(distances), 3) if distances else None,
            "max_identity_distance": round(max(distances), 3) if distances else None,
        }
    levels = {
        f"{level:g}": round(statistics.mean(row["changed"]["AU12"] for row in at("AU12", level)), 2)
        for level in LEVELS
    }
    return {
        "at_plus_3": by_au,
        "AU12_mean_change_by_request": levels,
        "median_seconds": round(statistics.median(row["seconds"] for row in rows), 2),
    }


def table_of(summary: dict) -> str:
    """The README's table, in Markdown."""
    lines = [
        "| AU at +3 | measured change | faces moved up | change of other AUs | identity distance (max) |",
        "|---|---|---|---|---|",
    ]
    for name, row in summary["at_plus_3"].items():
        distance = "not measured"
        if row["mean_identity_distance"] is not None:
            distance = f"{row['mean_identity_distance']:.2f} ({row['max_identity_distance']:.2f})"
        moved = f"{row['faces_in_direction']} of {row['faces']}"
        others = row["mean_absolute_change_of_others"]
        lines.append(f"| {name} | {row['mean_change']:+.2f} | {moved} | {others:.2f} | {distance} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photographs", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--model", default="mini")
    parser.add_argument("--identities", nargs="+", default=VALIDATION)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--steps", type=int)
    args = parser.parse_args()
    editor = ExpressionEditor.from_pretrained(args.model, device="cpu")
    rows = []
    for identity in args.identities:
        photo = args.photographs / identity / "neutral.jpg"
        rows += rows_of(editor, identity, photo, guidance=args.guidance, steps=args.steps)
    summary = summary_of(rows)
    args.output.write_text(json.dumps({**circumstances(), "summary": summary, "rows": rows}, indent=1) + "\n")
    print(table_of(summary))
    print(
        "AU12 by request", summary["AU12_mean_change_by_request"], "median seconds", summary["median_seconds"]
    )


if __name__ == "__main__":
    main()
