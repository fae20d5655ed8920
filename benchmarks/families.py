"""What the benchmarks of the families share: smiles of unseen people, and the command.

The neutral photographs of the ten London people that no model is trained on are edited. MediaPipe's
blendshapes and dlib's landmarks measure the change of AU12 in steps. PSNR compares an edit with the same
person's real smile, in crops of 384 px each aligned by its own face, beside the PSNR of the unedited
photograph.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from jury import PHOTOGRAPHS, ValidationFace, chosen_faces, validation_faces
from machine import circumstances

from magicedit import ExpressionEditor
from magicedit.action_units import NAMES
from magicedit.errors import MagicEditError
from magicedit.evaluation.families import medians, smiling
from magicedit.evaluation.metrics.structure import psnr
from magicedit.evaluation.scoring import Scoring, rounded
from magicedit.evaluation.subjects import Subject
from magicedit.evaluation.training import training_of
from magicedit.imaging import Photo, open_photo, strip

# Name -> arguments of an edit, and the AU12 that it asks for
Requests = Mapping[str, tuple[dict[str, Any], float]]
SHOWN = ("sdxl_0011769", "sdxl_0032396", "sdxl_0033391")  # synthetic portraits of the pictures


def smile_rows(
    editor: ExpressionEditor, scoring: Scoring, face: ValidationFace, requests: Requests
) -> list[dict]:
    """A row for each request: what both scorers measured, and how near the real smile is."""
    subject = Subject(face.name, face.path)
    original = scoring.original(subject)
    real = scoring.original(subject.smile).measured.crop
    rows = []
    for name, (arguments, asked) in requests.items():
        edited = np.asarray(editor.edit(original.photo, measure=False, face="largest", **arguments).image)
        row, after = scoring.score(original, edited, {"AU12": asked})
        rows.append(
            {
                "identity": face.name,
                "request": name,
                "au12": {scorer: values.get("AU12") for scorer, values in row["changed"].items()},
                "identity_distance": row["identity_distance"],
                "mobileface_cosine": row["mobileface_cosine"],
                "psnr": psnr(after, real),
                "psnr_unedited": psnr(original.measured.crop, real),
            }
        )
    return rows


def summary_of_smiles(rows: Sequence[dict], names: Iterable[str]) -> dict:
    """Per request: people who smile by each scorer, medians of the rest."""
    columns = ("identity_distance", "mobileface_cosine", "psnr", "psnr_unedited")
    of = {name: [row for row in rows if row["request"] == name] for name in names}
    return {name: smiling([row["au12"] for row in own]) | medians(own, columns) for name, own in of.items()}


def summary_with_crops(
    rows: Sequence[dict], crops: Sequence[dict], requests: Requests, columns: Iterable[str]
) -> dict:
    """The requests' summary, and medians of columns of a row per person's crop."""
    return {"requests": summary_of_smiles(rows, requests)} | medians(crops, columns)


def of_crops(
    crop_row: Callable[[ExpressionEditor, ValidationFace], dict],
    summary_of: Callable[[Sequence[dict], Sequence[dict]], dict],
) -> Callable[[ExpressionEditor, Sequence[ValidationFace], list[dict]], dict[str, Any]]:
    """`summarised` of `run` for a benchmark that has a row per person's crop, and a summary with these."""

    def summarised(editor: ExpressionEditor, people: Sequence[ValidationFace], rows: list[dict]) -> dict:
        crops = [rounded(crop_row(editor, face)) for face in people]
        return {"summary": summary_of(rows, crops), "crops": crops}

    return summarised


def shown_photos(photographs: Path) -> Iterable[Photo]:
    """The synthetic portraits of the pictures."""
    return (open_photo(photographs / "synthetic" / "validation" / f"{name}.jpg") for name in SHOWN)


def stacked(rows: Iterable[Sequence[PIL.Image.Image]]) -> PIL.Image.Image:
    """Rows of as many tiles of one size each, below one another."""
    return PIL.Image.fromarray(np.concatenate([np.asarray(strip(row)) for row in rows]))


def run(
    benchmark: Path,
    family: type,
    requests: Requests,
    summarised: Callable[[ExpressionEditor, Sequence[ValidationFace], list[dict]], dict[str, Any]],
    picture: Callable[[ExpressionEditor, Path], PIL.Image.Image],
    argv: Sequence[str] | None,
) -> int:
    """Measures a trained run of a family from the command line; returns the exit status.

    benchmark: the script; the result is written beside it by default. family: the class of its models.
    summarised: makes the `summary` and further entries of the result, from the rows of `smile_rows`.
    """
    parser = argparse.ArgumentParser(description=f"Measures a trained {benchmark.stem.replace('_', ' ')}.")
    parser.add_argument("run", type=Path, help="folder of the trained model")
    parser.add_argument("-o", "--output", type=Path, default=benchmark.with_suffix(".json"))
    parser.add_argument("--photographs", type=Path, default=PHOTOGRAPHS)
    parser.add_argument("--picture", type=Path, help="where to save the picture")
    args = parser.parse_args(argv)
    try:
        editor = ExpressionEditor.from_pretrained(args.run)
        if not isinstance(editor.changer.model, family):
            raise MagicEditError(f"{args.run} holds no {benchmark.stem.replace('_', ' ')}")
        people = chosen_faces(validation_faces(args.photographs), "london")
    except MagicEditError as error:
        print(f"{benchmark.name}: error: {error}", file=sys.stderr)
        return 2
    if args.picture is not None:
        picture(editor, args.photographs).save(args.picture, quality=90)
    scoring = Scoring(NAMES)
    rows = [rounded(row) for face in people for row in smile_rows(editor, scoring, face, requests)]
    measured = {"training": training_of(args.run), "rows": rows} | summarised(editor, people, rows)
    args.output.write_text(json.dumps(circumstances() | measured, indent=1) + "\n")
    print(json.dumps(measured["summary"], indent=1))
    return 0
