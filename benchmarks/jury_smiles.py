"""What an editor shows between the lips, against the same person's real smile.

    python benchmarks/jury_smiles.py --editor mini --editor warp --references [-o benchmarks/jury_smiles.json]

Of the ten London people that no model is trained on, those whose `smiling.jpg` shows the inside of the mouth.
Their neutral photograph is edited; edit and smile are compared in crops of 384 px, each aligned by its own
stable landmarks: mean Sobel magnitude, mean Laplacian, mean grey level and that of the brighter half between
the lips, as ratios; and ST-LPIPS of the mouth to the real smile, where the extra `lpips` is installed.
Editors as in `jury.py`. `--references` measures models of ours also with the real smile as their reference,
under NAME+reference.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from jury import PHOTOGRAPHS, REQUESTS, SEED, Juror, ValidationFace, chosen_faces, jurors, validation_faces
from machine import circumstances

from magicedit.cli.evaluation import fingerprint, open_editor
from magicedit.errors import MagicEditError, MissingDependencyError
from magicedit.evaluation.editors import ModelEditor
from magicedit.evaluation.metrics.mouth import MouthRatios, between_lips, mouth_ratios, mouth_window
from magicedit.evaluation.metrics.regions import region_masks
from magicedit.evaluation.metrics.st_lpips import load_st_lpips
from magicedit.evaluation.scoring import CROP, LPIPS_MOUTH
from magicedit.faces import Alignment, Face, FaceBackend, align, crop_face, load_backend
from magicedit.imaging import open_photo

ASKED = ("AU25=+3", "AU12=+4,AU25=+3", "happiness")
DARK = 110.0  # grey level of the skin's median below which skin counts as dark
LIMITS = {"sharpness": (0.8, 1.3), "teeth": (0.8, 1.25)}  # of the means


class Person:
    """One person's neutral photograph and real smile, as crops by each face's own alignment."""

    def __init__(self, face: ValidationFace, backend: FaceBackend):
        self.backend = backend
        self.photo = open_photo(face.path)
        (self.face, *_) = backend.detect(self.photo.pixels)
        self.alignment = align(self.face, CROP)
        self.smiling = open_photo(face.path.with_name("smiling.jpg"))
        (smiling, *_) = backend.detect(self.smiling.pixels)
        self.smile, landmarks = _crop(self.smiling.pixels, smiling, align(smiling, CROP))
        self.real = between_lips(self.smile, landmarks, smiling.scheme)
        self.window = mouth_window(landmarks, smiling.scheme, CROP)

    @property
    def skin(self) -> float:
        """Median grey level 0..255 of the neutral face outside eyes, brows, nose and mouth."""
        crop, landmarks = _crop(self.photo.pixels, self.face, self.alignment)
        elsewhere = region_masks(landmarks, self.face.scheme, CROP)["elsewhere"]
        return float(np.median(cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY)[elsewhere]))

    def compare(self, pixels: np.ndarray, lpips) -> dict[str, object]:
        """Ratios of an edited photograph to the real smile, None where its lips stay closed.

        MagicEditError where its face is not found.
        """
        found = self.backend.detect(np.ascontiguousarray(pixels))
        if not found:
            raise MagicEditError("the face was not found again in the result")
        crop, landmarks = _crop(pixels, found[0], self.alignment)
        shown = between_lips(crop, landmarks, found[0].scheme)
        ratios = MouthRatios(None, None, None, None) if shown is None else mouth_ratios(shown, self.real)
        row = {name: None if value is None else round(value, 4) for name, value in ratios._asdict().items()}
        if lpips is not None:
            pair = [cv2.resize(p[self.window], (LPIPS_MOUTH,) * 2, interpolation=cv2.INTER_AREA)
                    for p in (crop, self.smile)]  # fmt: skip
            row["st_lpips_mouth"] = round(lpips(*pair), 4)
        return row


def _crop(pixels: np.ndarray, face: Face, alignment: Alignment) -> tuple[np.ndarray, np.ndarray]:
    return crop_face(pixels, alignment), alignment.apply(face.landmarks)


def rows_of(
    juror: Juror, people: Mapping[str, Person], lpips, device: str | None, references: bool
) -> list[dict]:
    """A row for each person and request; with `references`, one more of a model of ours."""
    editor, rows = open_editor(juror.spec, device=device), []
    requests = [request for request in REQUESTS if request.text in ASKED]
    for name, person in people.items():
        skin = round(person.skin, 1)
        for request in requests:
            made = {juror.name: np.asarray(editor(person.photo, request.deltas, SEED))}
            if references and isinstance(editor, ModelEditor):
                result = editor.editor.edit(
                    person.photo, add=request.deltas, face="largest", seed=SEED, measure=False,
                    references=[person.smiling],
                )  # fmt: skip
                made[f"{juror.name}+reference"] = np.asarray(result.image.convert("RGB"))
            for title, pixels in made.items():
                row = {"editor": title, "face": name, "request": request.text, "skin": skin}
                rows.append(row | person.compare(pixels, lpips))
        print(f"{juror.name}: {name}", flush=True)
    return rows


def summary_of(rows: Sequence[Mapping]) -> dict[str, dict[str, dict]]:
    """Editor -> request -> means over people, the teeth's also by skin; how many kept their lips closed."""
    found: dict[str, dict[str, dict]] = {}
    for editor, request in dict.fromkeys((row["editor"], row["request"]) for row in rows):
        own = [row for row in rows if (row["editor"], row["request"]) == (editor, request)]
        open_ = [row for row in own if row["sharpness"] is not None]
        means = {name: _mean([row[name] for row in open_]) for name in MouthRatios._fields}
        found.setdefault(editor, {})[request] = {
            "n": len(own),
            "closed": len(own) - len(open_),
            **means,
            "teeth_dark": _mean([row["teeth"] for row in open_ if row["skin"] < DARK]),
            "teeth_light": _mean([row["teeth"] for row in open_ if row["skin"] >= DARK]),
            "st_lpips_mouth": _mean([row["st_lpips_mouth"] for row in own if "st_lpips_mouth" in row]),
            "reached": not any(
                means[name] is None or not low <= means[name] <= high for name, (low, high) in LIMITS.items()
            ),
        }
    return found


def _mean(values: Sequence[float]) -> float | None:
    return round(statistics.mean(values), 3) if values else None


def table_of(summary: Mapping[str, Mapping[str, Mapping]]) -> str:
    """Markdown."""
    columns = ("sharpness", "detail", "luminance", "teeth", "teeth_dark", "teeth_light", "st_lpips_mouth")
    lines = [
        f"| editor | request | people (lips closed) | {' | '.join(columns)} |",
        "|---|---|---|" + "---|" * len(columns),
    ]
    for editor, requests in summary.items():
        for request, row in requests.items():
            figures = ["-" if row[name] is None else f"{row[name]:.2f}" for name in columns]
            lines.append(f"| {editor} | {request} | {row['n']} ({row['closed']}) | {' | '.join(figures)} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--editor", action="append", required=True, metavar="EDITOR", help="several: again")
    parser.add_argument("--references", action="store_true", help="also with the real smile as reference")
    parser.add_argument("--faces", metavar="A,B", default="london", help="only these London people")
    parser.add_argument("--photographs", type=Path, default=PHOTOGRAPHS, help="folder of the faces")
    parser.add_argument("--device", metavar="D", help="of models: cpu, cuda, mps (the best present)")
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    try:
        entrants, backend = jurors(args.editor), load_backend("mediapipe")
        faces = chosen_faces(validation_faces(args.photographs), args.faces)
        faces = [face for face in faces if face.path.with_name("smiling.jpg").is_file()]
        people = {face.name: Person(face, backend) for face in faces}
        people = {name: person for name, person in people.items() if person.real is not None}
        try:
            lpips = load_st_lpips()
        except MissingDependencyError as error:
            print(error, file=sys.stderr)
            lpips = None
        rows = [
            row for juror in entrants for row in rows_of(juror, people, lpips, args.device, args.references)
        ]
    except MagicEditError as error:
        print(error, file=sys.stderr)
        return 1
    summary = summary_of(rows)
    editors = {juror.name: fingerprint(juror.spec) for juror in entrants}
    result = {**circumstances(), "editors": editors, "summary": summary, "rows": rows}
    args.output.write_text(json.dumps(result, indent=1) + "\n")
    print(table_of(summary))
    return 0


if __name__ == "__main__":
    sys.exit(main())
