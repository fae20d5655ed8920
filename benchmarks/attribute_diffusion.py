"""Whether attribute diffusion makes unseen people smile, and how its edits keep the person.

    python benchmarks/attribute_diffusion.py RUN [-o RESULT.json] [--picture PICTURE.jpg]

RUN is a folder that `train/train.py --config attribute-diffusion-cpu` wrote. Smiles are measured as
families.py says, at several settings of the sampler. Of each person's crop: `psnr_kept`, the pipeline's own
picture of no request, and `psnr_edited`, its own happy picture, both compared with the crop, in dB; and
`seed_levels`, how far happy pictures of two noises are apart, in levels of 255. The picture shows synthetic
portraits: the pipeline's own small pictures and the edited photographs.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from families import of_crops, run, shown_photos, stacked, summary_with_crops
from jury import ValidationFace

from magicedit import ExpressionEditor
from magicedit.action_units import EMOTIONS
from magicedit.evaluation.metrics.structure import psnr
from magicedit.faces import align, crop_face
from magicedit.imaging import open_photo
from magicedit.models.attribute_diffusion import AttributeDiffusionModel

HAPPY, SMILING = {"emotion": "happiness"}, {"add": "Smiling=5"}
REQUESTS = {  # name -> arguments of an edit, and the AU12 that it asks for
    "Smiling=+5": (SMILING, 6.0),
    "emotion happiness": (HAPPY, 6.0),
    "happiness, guidance 1": (HAPPY | {"guidance": 1.0}, 6.0),
    "happiness, guidance 1.5": (HAPPY | {"guidance": 1.5}, 6.0),
    "happiness, 1 step": (HAPPY | {"steps": 1}, 6.0),
    "happiness, 8 steps": (HAPPY | {"steps": 8}, 6.0),
    "happiness, noise level 0.7": (HAPPY | {"noise_level": 0.7}, 6.0),
}
SHOWN_REQUESTS = (
    SMILING,
    {"add": "Mouth_Wide_Open=5"},
    {"add": "Raised_Eyebrows=5"},
    {"add": "Lowered_Eyebrows=5"},
    *({"emotion": emotion} for emotion in EMOTIONS),
)
SIDE = 150  # px a side of its tiles
COLUMNS = ("psnr_kept", "psnr_edited", "seed_levels")


def own_pictures(model: AttributeDiffusionModel, crop: np.ndarray, request: np.ndarray, seed: int):
    """The pipeline's own edit of a crop and its picture of no request, (size, size, 3) uint8."""
    generator = torch.Generator().manual_seed(seed)
    output = model.pipeline(crop[None] / np.float32(255), request, generator=generator, output_type="np")
    return tuple(np.rint(images[0] * 255).astype(np.uint8) for images in (output.images, output.kept))


def crop_row(editor: ExpressionEditor, face: ValidationFace) -> dict:
    """What the pipeline does to a person's crop, see above."""
    photo, model = open_photo(face.path), editor.changer.model
    crop = editor.changer.cut(photo.pixels, editor.measure(photo)[0]).crop
    request = model.vocabulary.vector({"happiness": 5.0})
    (edited, kept), (other, _) = (own_pictures(model, crop, request, seed) for seed in (0, 1))
    apart = float(np.abs(edited.astype(float) - other).mean())
    columns = dict(zip(COLUMNS, (psnr(kept, crop), psnr(edited, crop), apart), strict=True))
    return {"identity": face.name} | columns


def summary_of(rows: Sequence[dict], crops: Sequence[dict]) -> dict:
    """The requests', and medians of the crops."""
    return summary_with_crops(rows, crops, REQUESTS, COLUMNS)


def picture(editor: ExpressionEditor, photographs: Path) -> PIL.Image.Image:
    """Two rows a portrait: the pipeline's own pictures, and the edited photographs."""
    rows, model = [], editor.changer.model
    for photo in shown_photos(photographs):
        (face, *_) = editor.measure(photo)
        edits = [editor.edit(photo, measure=False, **request) for request in SHOWN_REQUESTS]
        crop = editor.changer.cut(photo.pixels, face).crop
        own = [
            own_pictures(model, crop, model.vocabulary.vector(edit.faces[0].requested), 0)[0]
            for edit in edits
        ]
        rows.append(
            [PIL.Image.fromarray(tile).resize((SIDE, SIDE), PIL.Image.BICUBIC) for tile in (crop, *own)]
        )
        pictures = [photo.pixels, *(np.asarray(edit.image.convert("RGB")) for edit in edits)]
        rows.append([PIL.Image.fromarray(crop_face(pixels, align(face, SIDE))) for pixels in pictures])
    return stacked(rows)


def main(argv: Sequence[str] | None = None) -> int:
    summarised = of_crops(crop_row, summary_of)
    return run(Path(__file__), AttributeDiffusionModel, REQUESTS, summarised, picture, argv)


if __name__ == "__main__":
    sys.exit(main())
