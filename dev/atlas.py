"""The pictures of docs/atlas.md: what each action unit, side and emotion does to a calm face.

    python dev/atlas.py [-o docs/images/atlas] [--only AU12 AU26]

The face is NASA's portrait of Eileen Collins, public domain, as scikit-image has it. She smiles broadly, so
her smile is taken back first, in two edits one after the other: corners, then lips. (In one edit the closed
lips come out purple.) All further edits are edits of that calm picture. Everything is done by the embedded
model with its default settings and seed 0.
"""

import argparse
from pathlib import Path

import numpy as np
import PIL.Image

from magicedit.action_units import BILATERAL, EMOTIONS, NAMES
from magicedit.demo import astronaut
from magicedit.editor import ExpressionEditor
from magicedit.faces import align, crop_face
from magicedit.imaging import strip

CALMING = ("AU12=-4", "AU25=-2.4")
LEVELS = (2, 4)  # intensity steps
SIDE = 200  # px a picture; the face is 108 px high in the photograph, so more would only enlarge it
MARGIN = 0.75  # how much of the aligned crop is shown each way: brows to chin
QUALITY = 85  # of JPEG


def requests_of_units() -> dict[str, list[str]]:
    """File name -> variations of the calm picture."""
    requests = {}
    for name in NAMES:
        requests[name] = [f"{name}={level:+d}" for level in LEVELS]
        if name in BILATERAL:
            requests[name].append(f"{name}L={LEVELS[-1]:+d}")
    return requests


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/images/atlas"))
    parser.add_argument("--only", nargs="+", metavar="NAME", help="names of the files to draw")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    editor = ExpressionEditor.from_pretrained("mini", device="cpu")
    photo = astronaut()
    alignment = align(editor.measure(photo)[0], SIDE, margin=MARGIN)

    def edited(pixels: np.ndarray, **request) -> np.ndarray:
        return np.asarray(editor.edit(pixels, measure=False, **request).image)

    def draw(file: str, pictures: list[np.ndarray], captions: list[str]) -> None:
        if args.only and file not in args.only:
            return
        crops = [PIL.Image.fromarray(crop_face(pixels, alignment)) for pixels in pictures]
        path = args.output / f"{file}.jpg"
        strip(crops, captions).save(path, quality=QUALITY)
        print(f"{path}  {path.stat().st_size / 1000:.0f} kB")

    # 1. The smile taken back, and on one side only
    steps = [photo]
    for request in CALMING:
        steps.append(edited(steps[-1], add=request))
    calm = steps[-1]
    draw(
        "calm",
        [*steps, edited(photo, add="AU12L=-4")],
        ["as photographed", CALMING[0], f"then {CALMING[1]}: calm", "AU12L=-4 alone"],
    )

    # 2. Each action unit, and where it has sides the subject's left one alone
    for name, requests in requests_of_units().items():
        draw(name, [calm, *(edited(calm, add=request) for request in requests)], ["calm", *requests])

    # 3. Emotions
    for number, emotions in enumerate((tuple(EMOTIONS)[:3], tuple(EMOTIONS)[3:]), start=1):
        pictures = [edited(calm, emotion=emotion) for emotion in emotions]
        draw(f"emotions-{number}", pictures, list(emotions))


if __name__ == "__main__":
    main()
