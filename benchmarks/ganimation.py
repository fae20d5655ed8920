"""Whether a GANimation makes unseen people smile, and what its attention mask, zero and cycle are like.

    python benchmarks/ganimation.py RUN [-o benchmarks/ganimation.json] [--picture PICTURE.jpg]

RUN is a folder that `train/train.py --config ganimation-cpu` wrote. Smiles are measured as families.py says.
Of each person's crop: the mean attention of happiness in the face's region and outside
of it, how far the generator changes a crop by a label of zero and by a label and its opposite, and how far it
moves the crop in between, in levels of 255; and the cosine of the flow that is estimated from a warp by four
steps of AU12 to that of the warp. The picture shows synthetic portraits: a row of edited
photographs, and one of the generator's own crops with the attention of the first.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image
from families import of_crops, run, shown_photos, stacked, summary_with_crops
from jury import ValidationFace

from magicedit import ExpressionEditor
from magicedit.action_units import EMOTIONS, NAMES
from magicedit.change import no_change
from magicedit.faces import align, crop_face
from magicedit.imaging import open_photo
from magicedit.models.ganimation import GANimationModel
from magicedit.warping import backward_flow, displacement_fields, estimate_change, warp_photo

REQUESTS = {  # name -> arguments of an edit, and the AU12 that it asks for
    "AU12=+4": ({"add": "AU12=+4"}, 4.0),
    "emotion happiness": ({"emotion": "happiness"}, EMOTIONS["happiness"]["AU12"]),
}
EDITS = ({"emotion": "happiness"}, {"emotion": "surprise"}, {"emotion": "anger"}, {"add": "AU1=4,AU2=4"})
SIDE = 200  # px a side of the picture's tiles
COLUMNS = (
    "attention_inside",
    "attention_outside",
    "flow_cosine",
    "zero_levels",
    "cycle_levels",
    "edit_levels",
)


def crop_row(editor: ExpressionEditor, face: ValidationFace) -> dict:
    """What the generator does to a person's crop, see above."""
    photo, model = open_photo(face.path), editor.changer.model
    cut = editor.changer.cut(photo.pixels, editor.measure(photo)[0])
    inside = cut.region(no_change(model.resolution)) > 0
    label = model.vocabulary.vector({name: min(value, 5.0) for name, value in EMOTIONS["happiness"].items()})
    crop = cut.crop[None] / np.float32(255)
    edited = model.pipeline(crop, label, output_type="np")
    returned = model.pipeline(edited.images, -label, output_type="np").images
    kept = model.pipeline(crop, label * 0, output_type="np").images
    attention = edited.attention[0].float().cpu().numpy()
    # What the editor's estimate is worth on a picture that is nothing but moved
    fields = displacement_fields(cut.landmarks, model.resolution, NAMES, stride=4)
    command = NAMES.vector({"AU12": 4.0})
    known, opened = backward_flow(fields, command, cut.landmarks, model.resolution)
    found = estimate_change(cut.crop, warp_photo(cut.crop, fields, command, cut.landmarks)).flow
    seen = opened < 0.5  # between the lips there is no movement
    first, second = known[seen].ravel(), found[seen].ravel()
    levels = {"zero_levels": kept, "cycle_levels": returned, "edit_levels": edited.images}
    return {
        "identity": face.name,
        "attention_inside": float(attention[inside].mean()),
        "attention_outside": float(attention[~inside].mean()),
        "flow_cosine": float(first @ second / (np.linalg.norm(first) * np.linalg.norm(second))),
    } | {name: float(np.abs(pictures - crop).mean() * 255) for name, pictures in levels.items()}


def summary_of(rows: Sequence[dict], crops: Sequence[dict]) -> dict:
    """The requests', and medians of the crops."""
    return summary_with_crops(rows, crops, REQUESTS, COLUMNS)


def picture(editor: ExpressionEditor, photographs: Path) -> PIL.Image.Image:
    """Portraits edited at full size, then the generator's crops with the attention of the first edit."""
    rows, model = [], editor.changer.model
    for photo in shown_photos(photographs):
        (face, *_) = editor.measure(photo)
        # 1. Photographs
        edits = [editor.edit(photo, measure=False, **request) for request in EDITS]
        pictures = [photo.pixels, *(np.asarray(edit.image.convert("RGB")) for edit in edits)]
        tiles = [PIL.Image.fromarray(crop_face(pixels, align(face, SIDE))) for pixels in pictures]
        rows.append([*tiles, PIL.Image.new("RGB", (SIDE, SIDE), "white")])
        # 2. Crops of the generator's size
        crop = editor.changer.cut(photo.pixels, face).crop
        labels = [model.vocabulary.vector(edit.faces[0].requested).clip(-5, 5) for edit in edits]
        output = model.pipeline(np.stack([crop] * len(labels)) / np.float32(255), np.stack(labels))
        attention = np.rint(output.attention[0].float().cpu().numpy() * 255).astype(np.uint8)
        small = [PIL.Image.fromarray(crop), *output.images, PIL.Image.fromarray(attention).convert("RGB")]
        rows.append([tile.resize((SIDE, SIDE), PIL.Image.Resampling.BICUBIC) for tile in small])
    return stacked(rows)


def main(argv: Sequence[str] | None = None) -> int:
    return run(Path(__file__), GANimationModel, REQUESTS, of_crops(crop_row, summary_of), picture, argv)


if __name__ == "__main__":
    sys.exit(main())
