"""How near a copied expression comes, and how often the closed loop reaches what can be reached.

    python benchmarks/expressions.py transfer PHOTOGRAPHS [-o benchmarks/expressions.json]
    python benchmarks/expressions.py loop PHOTOGRAPHS [--people 5]

PHOTOGRAPHS is the Face Research Lab London Set, one folder an identity with neutral.jpg and smiling.jpg;
those that nothing was trained on are edited. Each command replaces its own part of the file.

transfer: the smile of the next person is copied to each one's neutral photograph, at once and in the closed
loop. The distance is the mean over the model's action units of the absolute difference between the measured
intensities of the result and those that were copied.

loop: each action unit by +1, +2 and +3 steps. A request can be reached if one of those of a grid over -5..5,
or an edit of the loop, comes within the tolerance, by the scorer that the loop goes by.
"""

import argparse
import json
import statistics
from pathlib import Path

import numpy as np
from machine import circumstances
from mini_quality import VALIDATION

from magicedit import ExpressionEditor
from magicedit.action_units import NAMES
from magicedit.editor.closed_loop import UNMOVED, Pursuit, achieved
from magicedit.faces import Face
from magicedit.imaging import open_photo
from magicedit.vocabulary import INTENSITY_RANGE

TOLERANCE = 0.3  # intensity steps
MAX_EDITS = 4
GRID = np.linspace(-5, 5, 11)
REQUESTS = (1.0, 2.0, 3.0)


def transfer(editor: ExpressionEditor, photographs: Path) -> dict:
    """Rows of ten pairs, and their means."""
    rows = []
    for index, person in enumerate(VALIDATION):
        other = VALIDATION[(index + 1) % len(VALIDATION)]
        photo = photographs / person / "neutral.jpg"
        copied = editor.expression(photographs / other / "smiling.jpg")
        goal = editor.measure(photographs / other / "smiling.jpg")[0].action_units
        before = editor.measure(photo)[0].action_units
        row = {"person": person, "smile_of": other, "before": distance(before, goal)}
        for name, tolerance in (("open", None), ("closed", TOLERANCE)):
            result = editor.edit(photo, expression=copied, face="largest", tolerance=tolerance)
            face = result.faces[0]
            after = editor.measure(result.image)[0].action_units
            row[name] = distance(after, goal)
            row[f"{name}_identity_distance"] = round(face.identity_distance, 3)
            row[f"{name}_edits"] = face.edits
        rows.append(row)
        print(row, flush=True)
    means = {key: round(statistics.mean(row[key] for row in rows), 3) for key in ("before", "open", "closed")}
    worst = {key: max(row[key] for row in rows) for key in ("before", "open", "closed")}
    return {"mean": means, "worst": worst, "rows": rows}


def distance(a: dict[str, float], b: dict[str, float]) -> float:
    return round(statistics.mean(abs(a[name] - b[name]) for name in NAMES), 3)


def loop(editor: ExpressionEditor, photographs: Path, people: list[str]) -> dict:
    """Rows of every person, unit and request, and the shares that were reached."""
    rows = []
    for person in people:
        photo = open_photo(photographs / person / "neutral.jpg")
        (face, *_) = editor.measure(photo)
        for name in NAMES:
            grid = editor.variants(photo, [{name: value} for value in GRID], measure=False)
            found = [find(editor, result) for result in grid]
            levels = [achieved(face, seen, {name: GRID[0]})[name] for seen in found if seen is not None]
            for asked in REQUESTS:
                goal = min(face.action_units[name] + asked, INTENSITY_RANGE[1])
                if goal - face.action_units[name] < UNMOVED:
                    continue
                result = editor.edit(
                    photo, add={name: asked}, face="largest", tolerance=TOLERANCE, max_edits=MAX_EDITS
                )
                edit = result.faces[0]
                possible = edit.reached or min(abs(level - goal) for level in levels) <= TOLERANCE
                once = find(editor, grid[int(np.argmin(abs(GRID - asked)))])
                first = Pursuit(face, {name: asked})
                first.note(once)
                rows.append(
                    {"person": person, "unit": name, "asked": asked, "possible": bool(possible)}
                    | {"reached": edit.reached, "edits": edit.edits, "sent": round(edit.sent[name], 2)}
                    | {"reached_at_once": first.error <= TOLERANCE}
                )
                print(rows[-1], flush=True)
    possible = [row for row in rows if row["possible"]]
    return {
        "tolerance": TOLERANCE,
        "max_edits": MAX_EDITS,
        "requests": len(rows),
        "possible": len(possible),
        "reached": sum(row["reached"] for row in possible),
        "reached_at_once": sum(row["reached_at_once"] for row in possible),
        "share": round(sum(row["reached"] for row in possible) / len(possible), 3),
        "mean_edits": round(statistics.mean(row["edits"] for row in possible), 2),
        "rows": rows,
    }


def find(editor: ExpressionEditor, result) -> Face | None:
    faces = editor.backend.detect(np.asarray(result.image))
    return faces[0] if faces else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=("transfer", "loop"))
    parser.add_argument("photographs", type=Path, metavar="PHOTOGRAPHS")
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--model", default="mini")
    parser.add_argument("--people", type=int, default=5, help="how many, for loop (5)")
    args = parser.parse_args()
    editor = ExpressionEditor.from_pretrained(args.model)
    if args.part == "transfer":
        found = transfer(editor, args.photographs)
    else:
        found = loop(editor, args.photographs, list(VALIDATION[: args.people]))
    content = json.loads(args.output.read_text()) if args.output.exists() else {}
    content[args.part] = circumstances() | {"model": args.model} | found
    args.output.write_text(json.dumps(content, indent=1) + "\n")
    print({key: value for key, value in content[args.part].items() if key not in ("rows", "versions")})


if __name__ == "__main__":
    main()
