"""Whether a flow autoencoder makes unseen people smile, and what its confidence and interpolations look like.

    python benchmarks/flow_autoencoder.py RUN [-o benchmarks/flow_autoencoder.json] [--picture PICTURE.jpg]

RUN is a folder that `train/train.py --config flow-autoencoder-cpu` wrote. The neutral photographs of the ten
London people that no model is trained on are edited. MediaPipe's blendshapes and dlib's landmarks measure the
change of AU12 in steps. PSNR compares an edit with the same person's real smile, in crops of 384 px each
aligned by its own face, beside the PSNR of the unedited photograph. A photograph and its real smile are
interpolated in 9 frames; roughness is the greatest difference of neighbouring frames over the mean one. The
picture shows synthetic portraits and a CC0 pair.
"""

import argparse
import itertools
import json
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import PIL.Image
from jury import PHOTOGRAPHS, ValidationFace, chosen_faces, validation_faces
from machine import circumstances

from magicedit import ExpressionEditor
from magicedit.action_units import EMOTIONS, NAMES
from magicedit.editor.between import interpolate_photographs
from magicedit.errors import MagicEditError
from magicedit.evaluation.scoring import CROP, Scoring, rounded
from magicedit.evaluation.subjects import Subject
from magicedit.faces import align, crop_face
from magicedit.imaging import open_photo, strip
from magicedit.models.flow_autoencoder import FlowAutoencoderModel

REQUESTS = {  # name -> arguments of an edit, and the AU12 that it asks for
    "AU12=+4": ({"add": "AU12=+4"}, 4.0),
    "class happiness=+5": ({"add": "happiness=+5"}, 7.5),  # of the recipe that the class was trained by
    "emotion happiness": ({"emotion": "happiness"}, EMOTIONS["happiness"]["AU12"]),
}
SMILES = 0.5  # intensity steps of AU12 from which on a face counts as smiling more
FRAMES = 9
SHOWN = ("sdxl_0011769", "sdxl_0032396", "sdxl_0033391")  # synthetic portraits of the picture
SIDE = 200  # px a side of its tiles


def psnr(first: np.ndarray, second: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two uint8 pictures of one shape, dB."""
    error = np.square(first.astype(float) - second.astype(float)).mean()
    return float(10 * np.log10(255**2 / error))


def crop(pixels: np.ndarray, scoring: Scoring) -> np.ndarray:
    """The largest face, (CROP, CROP, 3), aligned by itself."""
    (face, *_) = scoring.backend.detect(pixels)
    return crop_face(pixels, align(face, CROP))


def smile_rows(
    editor: ExpressionEditor, scoring: Scoring, face: ValidationFace, requests: dict = REQUESTS
) -> list[dict]:
    """A row for each request: what both scorers measured, and how near the real smile is."""
    subject = Subject(face.name, face.path)
    original = scoring.original(subject)
    real = crop(open_photo(face.path.with_name("smiling.jpg")).pixels, scoring)
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


def roughness(editor: ExpressionEditor, face: ValidationFace) -> float:
    """Greatest difference between neighbouring frames over the mean one; 1: all steps are equal."""
    photos = face.path, face.path.with_name("smiling.jpg")
    frames = [np.asarray(f).astype(float) for f in interpolate_photographs(editor, *photos, FRAMES, size=256)]
    steps = [np.abs(b - a).mean() for a, b in itertools.pairwise(frames)]
    return float(max(steps) / statistics.mean(steps))


def summary_of(rows: Sequence[dict], roughnesses: Sequence[float]) -> dict:
    """Per request: people who smile by each scorer, medians of the rest."""
    smiles = summary_of_smiles(rows, REQUESTS)
    return {"requests": smiles, "interpolation_roughness": statistics.median(roughnesses)}


def summary_of_smiles(rows: Sequence[dict], names: Iterable[str]) -> dict:
    """Per request: people who smile by each scorer, medians of the rest."""
    summary = {}
    for name in names:
        own = [row for row in rows if row["request"] == name]
        scorers = [scorer for scorer, value in own[0]["au12"].items() if value is not None]
        summary[name] = {
            "people": len(own),
            "smile": {s: sum(row["au12"][s] >= SMILES for row in own) for s in scorers},
            "au12": {s: statistics.median(row["au12"][s] for row in own) for s in scorers},
        }
        for column in ("identity_distance", "mobileface_cosine", "psnr", "psnr_unedited"):
            values = [row[column] for row in own if row[column] is not None]
            summary[name][column] = statistics.median(values) if values else None
    return summary


def picture(editor: ExpressionEditor, photographs: Path) -> PIL.Image.Image:
    """Portraits edited by three class means with the confidence of the first, then two interpolations: from a
    portrait to what `mini` makes of it, and between photographs with other light and another pose."""
    rows, portraits = [], photographs / "synthetic" / "validation"
    for name in SHOWN:
        photo = open_photo(portraits / f"{name}.jpg")
        (face, *_) = editor.measure(photo)
        alignment = align(face, SIDE)
        edits = [editor.edit(photo, add=f"{e}=5", measure=False) for e in ("happiness", "surprise", "anger")]
        tiles = [photo.pixels, *(np.asarray(edit.image.convert("RGB")) for edit in edits)]
        tiles = [PIL.Image.fromarray(crop_face(tile, alignment)) for tile in tiles]
        rows.append([*tiles, confidence(editor, photo.pixels, face)])
    portrait = portraits / f"{SHOWN[1]}.jpg"
    surprised = (
        ExpressionEditor.from_pretrained("mini").edit(portrait, emotion="surprise", measure=False).image
    )
    for pair in ((portrait, surprised), [photographs / "lisa" / f"lisa{n}.jpg" for n in (1, 2)]):
        rows.append(interpolate_photographs(editor, *pair, len(rows[0]), size=SIDE))
    strips = [np.asarray(strip(row)) for row in rows]
    return PIL.Image.fromarray(np.concatenate(strips))


def confidence(editor: ExpressionEditor, pixels: np.ndarray, face) -> PIL.Image.Image:
    """The confidence of a face made happy, from black, 0, to white, 1."""
    model = editor.changer.model
    request = model.vocabulary.vector({"happiness": 5})
    source = crop_face(pixels, align(face, model.resolution))[None] / np.float32(255)
    grey = model.pipeline(source, request, output_type="pt").confidence[0].float().cpu().numpy()
    tile = PIL.Image.fromarray(np.rint(grey * 255).astype(np.uint8)).convert("RGB")
    return tile.resize((SIDE, SIDE), PIL.Image.Resampling.BICUBIC)


def training_of(run: Path) -> dict:
    """Settings, counts and speed of a training run, without places of this machine."""
    log = [json.loads(line) for line in (run / "train_log.jsonl").read_text().splitlines()]
    settings = json.loads((run / "train_config.json").read_text())
    for private in ("output_dir", "train_data_dir", "pretrained_model_name_or_path"):
        settings.pop(private)
    counts = json.loads((run / "training.json").read_text())
    speed = statistics.median(line["images_per_second"] for line in log)
    return settings | counts | {"images_per_second": speed}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path, help="folder of a trained flow autoencoder")
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--photographs", type=Path, default=PHOTOGRAPHS)
    parser.add_argument("--picture", type=Path, help="where to save the picture")
    args = parser.parse_args(argv)
    try:
        editor = ExpressionEditor.from_pretrained(args.run)
        if not isinstance(editor.changer.model, FlowAutoencoderModel):
            raise MagicEditError(f"{args.run} holds no flow autoencoder")
        people = chosen_faces(validation_faces(args.photographs), "london")
    except MagicEditError as error:
        print(f"flow_autoencoder.py: error: {error}", file=sys.stderr)
        return 2
    if args.picture is not None:
        picture(editor, args.photographs).save(args.picture, quality=90)
    scoring = Scoring(NAMES)
    rows = [rounded(row) for face in people for row in smile_rows(editor, scoring, face)]
    roughnesses = rounded({face.name: roughness(editor, face) for face in people})
    content = {
        **circumstances(),
        "training": training_of(args.run),
        "summary": summary_of(rows, list(roughnesses.values())),
        "roughness": roughnesses,
        "rows": rows,
    }
    args.output.write_text(json.dumps(content, indent=1) + "\n")
    print(json.dumps(content["summary"], indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
