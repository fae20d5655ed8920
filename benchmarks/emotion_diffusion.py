"""Whether emotion latent diffusion makes unseen people smile, and what its noise level does.

    python benchmarks/emotion_diffusion.py RUN [-o benchmarks/emotion_diffusion.json] [--picture PICTURE.jpg]

RUN is a folder that `train/train.py --config emotion-diffusion-cpu` wrote. The neutral photographs of the ten
London people that no model is trained on are made happy at several noise levels, measured as
families.py says. Round trips: the pipeline's own crops under the emotion that they have. `psnr_inverted`
compares these with what the autoencoder makes of the crop, `psnr_crop` with the crop itself, and
`psnr_edited` the pipeline's own happy crop with the crop: the lower, the less of the person is left. The
picture shows synthetic portraits.
"""

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image
from families import run, shown_photos, stacked, summary_of_smiles
from jury import ValidationFace

from magicedit import ExpressionEditor
from magicedit.action_units import EMOTIONS
from magicedit.evaluation.metrics.structure import psnr
from magicedit.evaluation.scoring import rounded
from magicedit.faces import align, crop_face
from magicedit.imaging import open_photo
from magicedit.models.emotion_diffusion import EmotionDiffusionModel

LEVELS = (0.2, 0.4, 0.5, 0.6, 0.8, 1.0)
REQUESTS = {
    f"happiness=+5 at noise {level}": ({"add": "happiness=5", "noise_level": level}, 7.5) for level in LEVELS
}
SIDE = 160  # px a side of its tiles


def crops_at(model: EmotionDiffusionModel, crop: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """The pipeline's own happy crop and its round trip, (size, size, 3) uint8."""
    asked = model.vocabulary.vector({"happiness": 5})
    output = model.pipeline(crop[None] / np.float32(255), asked, noise_level=level, output_type="np")
    return tuple(np.rint(images[0] * 255).astype(np.uint8) for images in (output.images, output.round_trips))


def round_trip_rows(editor: ExpressionEditor, path: Path, name: str) -> list[dict]:
    """A row for each noise level, in dB."""
    photo, model = open_photo(path), editor.changer.model
    (face, *_) = editor.measure(photo)
    crop = crop_face(photo.pixels, align(face, model.resolution))
    _, plain = crops_at(model, crop, 0.0)  # autoencoder alone
    rows = []
    for level in LEVELS:
        edited, again = crops_at(model, crop, level)
        values = {"inverted": psnr(again, plain), "crop": psnr(again, crop), "edited": psnr(edited, crop)}
        rows.append({"identity": name, "noise_level": level, **{f"psnr_{k}": v for k, v in values.items()}})
    return rows


def summary_of(rows: Sequence[dict], round_trips: Sequence[dict]) -> dict:
    """Per request: people who smile by each scorer, medians of the rest; per noise level: median PSNR."""
    levels = {}
    for level in LEVELS:
        own = [row for row in round_trips if row["noise_level"] == level]
        columns = [column for column in own[0] if column.startswith("psnr")]
        levels[str(level)] = {column: statistics.median(row[column] for row in own) for column in columns}
    return {"requests": summary_of_smiles(rows, REQUESTS), "round_trips": levels}


def picture(editor: ExpressionEditor, photographs: Path) -> PIL.Image.Image:
    """Two rows a portrait: it and what happiness makes of it at rising noise levels, in the pipeline's own
    small pictures and in the photograph; then a row of the six emotions."""
    model, rows = editor.changer.model, []
    for photo in shown_photos(photographs):
        (face, *_) = editor.measure(photo)
        alignment, small = align(face, SIDE), crop_face(photo.pixels, align(face, model.resolution))

        def shown(add: str, level: float | None = None, photo=photo, alignment=alignment) -> np.ndarray:
            edited = editor.edit(photo, add=add, noise_level=level, measure=False).image
            return crop_face(np.asarray(edited.convert("RGB")), alignment)

        own = [small, *(crops_at(model, small, level)[0] for level in LEVELS)]
        rows.append([PIL.Image.fromarray(tile).resize((SIDE, SIDE), PIL.Image.BICUBIC) for tile in own])
        whole = crop_face(photo.pixels, alignment)
        rows.append([whole, *(shown("happiness=5", level) for level in LEVELS)])
    rows.append([whole, *(shown(f"{emotion}=5") for emotion in EMOTIONS)])
    return stacked([PIL.Image.fromarray(np.asarray(tile)) for tile in row] for row in rows)


def summarised(editor: ExpressionEditor, people: Sequence[ValidationFace], rows: list[dict]) -> dict:
    """What `families.run` adds to the rows."""
    trips = [rounded(row) for face in people for row in round_trip_rows(editor, face.path, face.name)]
    return {"summary": summary_of(rows, trips), "round_trips": trips}


def main(argv: Sequence[str] | None = None) -> int:
    return run(Path(__file__), EmotionDiffusionModel, REQUESTS, summarised, picture, argv)


if __name__ == "__main__":
    sys.exit(main())
