"""Whether a flow autoencoder makes unseen people smile, and what its confidence and interpolations look like.

    python benchmarks/flow_autoencoder.py RUN [-o benchmarks/flow_autoencoder.json] [--picture PICTURE.jpg]

RUN is a folder that `train/train.py --config flow-autoencoder-cpu` wrote. Smiles are measured as families.py
says. A photograph and its real smile are interpolated in 9 frames; roughness is the greatest difference of
neighbouring frames over the mean one. The picture shows synthetic portraits and a CC0 pair.
"""

import itertools
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image
from families import SHOWN, run, shown_photos, stacked, summary_of_smiles
from jury import ValidationFace

from magicedit import ExpressionEditor
from magicedit.action_units import EMOTIONS
from magicedit.editor.between import interpolate_photographs
from magicedit.evaluation.scoring import rounded
from magicedit.faces import align, crop_face
from magicedit.models.flow_autoencoder import FlowAutoencoderModel

REQUESTS = {  # name -> arguments of an edit, and the AU12 that it asks for
    "AU12=+4": ({"add": "AU12=+4"}, 4.0),
    "class happiness=+5": ({"add": "happiness=+5"}, 7.5),  # of the recipe that the class was trained by
    "emotion happiness": ({"emotion": "happiness"}, EMOTIONS["happiness"]["AU12"]),
}
FRAMES = 9
SIDE = 200  # px a side of its tiles


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


def picture(editor: ExpressionEditor, photographs: Path) -> PIL.Image.Image:
    """Portraits edited by three class means with the confidence of the first, then two interpolations: from a
    portrait to what `mini` makes of it, and between photographs with other light and another pose."""
    rows, portraits = [], photographs / "synthetic" / "validation"
    for photo in shown_photos(photographs):
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
    return stacked(rows)


def confidence(editor: ExpressionEditor, pixels: np.ndarray, face) -> PIL.Image.Image:
    """The confidence of a face made happy, from black, 0, to white, 1."""
    model = editor.changer.model
    request = model.vocabulary.vector({"happiness": 5})
    source = crop_face(pixels, align(face, model.resolution))[None] / np.float32(255)
    grey = model.pipeline(source, request, output_type="pt").confidence[0].float().cpu().numpy()
    tile = PIL.Image.fromarray(np.rint(grey * 255).astype(np.uint8)).convert("RGB")
    return tile.resize((SIDE, SIDE), PIL.Image.Resampling.BICUBIC)


def summarised(editor: ExpressionEditor, people: Sequence[ValidationFace], rows: list[dict]) -> dict:
    """What `families.run` adds to the rows."""
    roughnesses = rounded({face.name: roughness(editor, face) for face in people})
    return {"summary": summary_of(rows, list(roughnesses.values())), "roughness": roughnesses}


def main(argv: Sequence[str] | None = None) -> int:
    return run(Path(__file__), FlowAutoencoderModel, REQUESTS, summarised, picture, argv)


if __name__ == "__main__":
    sys.exit(main())
