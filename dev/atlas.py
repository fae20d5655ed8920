"""The pictures of docs/atlas.md: what each control, side, emotion and sound does to one face.

    python dev/atlas.py [-o docs/images/atlas] [--only AU12 AU26]

The face is a synthetic portrait (SFHQ-T2I, MIT licence) that the embedded model has not seen; calm.jpg is
NASA's portrait of Eileen Collins, public domain, as scikit-image has it. Everything is done by the embedded
model with its default settings and seed 0.
"""

import argparse
from pathlib import Path

import numpy as np
import PIL.Image

from magicedit.action_units import EMOTIONS, GEOMETRIC, MOUTH_SHAPES, NAMES, is_angle, sided_names
from magicedit.demo import astronaut
from magicedit.editor import ExpressionEditor
from magicedit.faces import align, crop_face
from magicedit.imaging import open_photo, strip

CALMING = ("AU12=-4", "AU12=-2.5,AU25=-3.4")
LEVELS = (2, 4)  # intensity steps
ANGLES = (-12, 12)  # degrees
CLOSING = ("AU43=+2.5", "AU43=+5", "AU43L=+5")  # half, whole, a wink
SIDE = 224  # px a picture
PORTRAIT = Path(__file__).resolve().parents[1] / "tests" / "portraits" / "closed_mouth.jpg"
MARGIN = 0.75  # how much of the aligned crop is shown each way: brows to chin
QUALITY = 85  # of JPEG


def requests_of_units() -> dict[str, list[str]]:
    """File name -> variations of the calm picture."""
    requests = {}
    for name in (*NAMES, *GEOMETRIC):
        requests[name] = [f"{name}={level:+d}" for level in (ANGLES if is_angle(name) else LEVELS)]
        if sided_names(name):
            requests[name].append(f"{name}L={LEVELS[-1]:+d}")
    return requests | {"AU43": list(CLOSING)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/images/atlas"))
    parser.add_argument("--only", nargs="+", metavar="NAME", help="names of the files to draw")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    editor = ExpressionEditor.from_pretrained("mini", device="cpu")

    def edited(pixels: np.ndarray, **request) -> np.ndarray:
        return np.asarray(editor.edit(pixels, measure=False, **request).image)

    def draw(file: str, photo: np.ndarray, pictures: list[np.ndarray], captions: list[str]) -> None:
        if args.only and file not in args.only:
            return
        alignment = align(editor.measure(photo)[0], SIDE, margin=MARGIN)
        crops = [PIL.Image.fromarray(crop_face(pixels, alignment)) for pixels in pictures]
        path = args.output / f"{file}.jpg"
        strip(crops, captions).save(path, quality=QUALITY)
        print(f"{path}  {path.stat().st_size / 1000:.0f} kB")

    # 1. A smile taken back, and on one side only
    smiling = astronaut()
    requests = (*CALMING, "AU12L=-4")
    pictures = [edited(smiling, add=request) for request in requests]
    draw("calm", smiling, [smiling, *pictures], ["as photographed", *requests])

    # 2. Each control, and where it has sides the subject's left one alone
    portrait = open_photo(PORTRAIT).pixels
    for name, requests in requests_of_units().items():
        pictures = [edited(portrait, add=request) for request in requests]
        draw(name, portrait, [portrait, *pictures], ["as it is", *requests])

    # 3. Emotions, and the mouth in speech
    recipes = {"emotions-1": [*EMOTIONS][:3], "emotions-2": [*EMOTIONS][3:], "sounds": [*MOUTH_SHAPES]}
    for file, names in recipes.items():
        draw(file, portrait, [edited(portrait, emotion=name) for name in names], names)


if __name__ == "__main__":
    main()
