"""Measures the controls of geometry on the validation faces: lids, gaze, head and lips.

    python benchmarks/controls.py [--faces london] [--regions eye,gaze,head] [-o benchmarks/controls.json]

Each control, or each of some regions, is requested of each of the 52 faces of `benchmarks/jury.py` with
`mini`. A row holds what is measured before and after, the identity distance, the share of the photograph's
pixels that stay equal to the byte, and warnings; "lost" where no face is found again. Lids and lips are
measured in intensity steps by MediaPipe's blendshapes, gaze and the head in degrees, see
`magicedit.faces.levels_of`. Faces whose eyes are closed in the photograph are left out of what is asked of
eyes.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jury import PHOTOGRAPHS, ValidationFace, chosen_faces, validation_faces
from machine import circumstances

from magicedit import ExpressionEditor
from magicedit.action_units import FACS, parse_regions
from magicedit.errors import NoFaceError
from magicedit.evaluation.scoring import rounded
from magicedit.faces import identity_distance, levels_of
from magicedit.faces.gaze import CLOSED, eye_openness
from magicedit.files import write_text
from magicedit.imaging import open_photo
from magicedit.vocabulary import whole_name

REQUESTS = (
    *("AU43=5", "AU43L=5", "gaze_yaw=15", "gaze_yaw=-15", "gaze_pitch=15", "gaze_pitch=-15"),
    *("head_yaw=10", "head_yaw=-10", "head_pitch=10", "head_pitch=-10", "head_roll=10", "head_roll=-10"),
    *("AU7=3", "AU10=3", "AU14=3", "AU16=3", "AU18=3", "AU22=3", "AU23=3", "AU24=3", "AU27=3", "AU28=3"),
)
# What a request of something else should leave
BESIDE = ("AU5", "AU7", "AU43", "head_yaw", "head_pitch", "head_roll")


def row_of(editor: ExpressionEditor, face: ValidationFace, request: str) -> dict | None:
    """What a request does to a face; None where its eyes are closed and the request is of eyes."""
    photo, name = open_photo(face.path), request.split("=")[0]
    (before, *_) = editor.measure(photo)
    if FACS[whole_name(name)].region in ("eye", "gaze") and min(eye_openness(before.landmarks)) < CLOSED:
        return None
    result = editor.edit(photo, add=request, face="largest", measure=False)
    pixels = np.asarray(result.image.convert("RGB"))
    row = {"face": face.name, "kind": face.kind, "request": request}
    try:
        (after, *_) = editor.measure(pixels)
    except NoFaceError:
        return row | {"lost": True}
    start, end = levels_of(before), levels_of(after)
    return row | {
        "before": start.get(name),
        "change": end[name] - start[name] if name in start else None,
        "after": end.get(name),
        "beside": {other: end[other] - start[other] for other in BESIDE if other != whole_name(name)},
        "identity_distance": identity_distance(photo.pixels, before, pixels, after),
        "unchanged": float((pixels == photo.pixels).all(-1).mean()),
        "warnings": list(result.faces[0].warnings),
    }


def summary_of(rows: Sequence[dict]) -> dict[str, dict]:
    """Request -> medians, extremes and counts over its faces."""
    summary = {}
    for request in REQUESTS:
        asked_of = [row for row in rows if row["request"] == request]
        own = [row for row in asked_of if "lost" not in row]
        if not own:
            continue
        found = [row["change"] for row in own if row["change"] is not None]
        asked = float(request.split("=")[1])
        summary[request] = {
            "faces": len(own),
            "lost": len(asked_of) - len(own),
            "change": statistics.median(found) if found else None,
            "from_0.7_to_1.3": sum(0.7 <= change / asked <= 1.3 for change in found) if found else None,
            "after_over_4": sum(row["after"] > 4 for row in own) if request.startswith("AU43") else None,
            "beside": {
                name: statistics.median(abs(row["beside"][name]) for row in own)
                for name in BESIDE
                if name in own[0]["beside"]
            },
            "identity_distance": statistics.median(row["identity_distance"] for row in own),
            "identity_under_0.35": sum(row["identity_distance"] < 0.35 for row in own),
            "identity_distance_most": max(row["identity_distance"] for row in own),
            "unchanged": statistics.median(row["unchanged"] for row in own),
            "warned": sum(bool(row["warnings"]) for row in own),
        }
    return summary


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faces", help='"london", "synthetic" or names, joined by commas; default: all')
    parser.add_argument("--regions", default="eyes,gaze,head,lips,jaw", help="of the controls; default: all")
    parser.add_argument("--photographs", type=Path, default=PHOTOGRAPHS, help="folder of the faces")
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args(argv)
    regions = parse_regions(args.regions)
    requests = [text for text in REQUESTS if FACS[whole_name(text.split("=")[0])].region in regions]
    editor, rows = ExpressionEditor.from_pretrained("mini", device="cpu"), []
    for face in chosen_faces(validation_faces(args.photographs), args.faces):
        rows += [rounded(row) for request in requests if (row := row_of(editor, face, request)) is not None]
        print(face.name, file=sys.stderr)
    content = circumstances() | {"summary": rounded(summary_of(rows)), "rows": rows}
    write_text(args.output, json.dumps(content, indent=1) + "\n")
    print(json.dumps(content["summary"], indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
