"""The README's pictures: what the shipped model does to a face that may be shown, and how its data is made.

    python dev/showcase.py [-o docs/images]

hero.jpg: a synthetic portrait with closed lips (SFHQ-T2I, MIT licence), which the embedded model has not
seen, smiling. controls.jpg: the same portrait by controls of geometry. aus.jpg: action units and emotions by
the embedded model, on NASA's portrait of Eileen Collins, public domain, as scikit-image has it. far.jpg: a
face far from those that it was trained on, the US Navy's portrait of Grace Hopper, public domain, as
matplotlib has it. muscles.jpg: the warps that training pairs are made of, without any learning.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import PIL.Image

from magicedit.action_units import BILATERAL, DESCRIPTIONS, NAMES, to_vector
from magicedit.demo import astronaut
from magicedit.editor import ExpressionEditor
from magicedit.faces import align, crop_face, left_side, load_backend
from magicedit.imaging import open_photo, strip
from magicedit.warping import backward_flow, choose_mouth, displacement_fields, warp_photo
from magicedit.warping.warp import read_at

# She smiles broadly, so that most units are shown beside a smile taken back.
CALM = "AU12=-4,AU25=-3"
ALONE = ("AU1", "AU2", "AU4", "AU5", "AU6", "AU9", "AU15", "AU17", "AU20")
EDITS = (
    ("as photographed", {}),
    ("calm", {"add": CALM}),
    *((f"calm, {name} +3", {"add": f"{CALM},{name}=+3"}) for name in ALONE),
    ("calm, AU26 +3", {"add": f"{CALM},AU26=+3"}),
    ("calm, AU2L +4", {"add": f"{CALM},AU2L=+4"}),
    ("AU12 -4", {"add": "AU12=-4"}),
    ("AU12L -4", {"add": "AU12L=-4"}),
    ("AU25 -3", {"add": "AU25=-3"}),
    *((f"calm, {name}", {"add": CALM, "emotion": name}) for name in ("sadness", "surprise", "fear")),
    *((f"calm, {name}", {"add": CALM, "emotion": name}) for name in ("anger", "disgust")),
)
FAR = ("AU1=+3,AU2=+3", "AU4=+3", "AU9=+3", "AU12=+3", "AU15=+3", "AU12L=+4", "AU26=+3", "AU12=+4,AU25=+3")
PORTRAIT = Path(__file__).resolve().parents[1] / "tests" / "portraits" / "closed_mouth.jpg"
HERO = (
    ("as it is", {}),
    ("AU12 +3", {"add": "AU12=+3"}),
    ("happiness", {"emotion": "happiness"}),
    ("surprise", {"emotion": "surprise"}),
)
CONTROLS = (
    ("as it is", {}),
    ("a wink", {"add": "AU43L=5,AU6L=2,AU12L=2.5"}),
    ("eyes closed", {"add": "AU43=5,AU12=1.5"}),
    ("gaze and head", {"add": "gaze_yaw=-18,head_yaw=12"}),
    ("head tilted", {"add": "head_roll=10,head_pitch=5,AU12=3"}),
    ("lips puckered", {"add": "AU18=4.5,AU2=2"}),
)
COLUMNS = 6
SIDE = 224  # px a picture
WARP_SIZE = 160


def view(editor: ExpressionEditor, pixels: np.ndarray) -> np.ndarray:
    """The square around the face, (SIDE, SIDE, 3)."""
    face = editor.measure(pixels)[0]
    return crop_face(pixels, align(face, SIDE))


def grid(pictures: list[np.ndarray], captions: list[str], columns: int) -> PIL.Image.Image:
    rows = [
        strip(
            [PIL.Image.fromarray(picture) for picture in pictures[first : first + columns]],
            captions[first : first + columns],
        )
        for first in range(0, len(pictures), columns)
    ]
    sheet = PIL.Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)), "white")
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    return sheet


def action_units(editor: ExpressionEditor, photo: np.ndarray) -> PIL.Image.Image:
    alignment = align(editor.measure(photo)[0], SIDE)
    pictures = [
        crop_face(np.asarray(editor.edit(photo, measure=False, **request).image), alignment)
        for _, request in EDITS
    ]
    return grid(pictures, [caption for caption, _ in EDITS], COLUMNS)


def portrait(editor: ExpressionEditor, edits: Sequence[tuple[str, dict]], side: int) -> PIL.Image.Image:
    """The portrait by captions and requests, in a row."""
    photo = open_photo(PORTRAIT).pixels
    alignment = align(editor.measure(photo)[0], side, margin=0.9)
    pictures = [
        crop_face(np.asarray(editor.edit(photo, measure=False, **request).image), alignment)
        for _, request in edits
    ]
    return grid(pictures, [caption for caption, _ in edits], len(edits))


def far(editor: ExpressionEditor) -> PIL.Image.Image:
    photo = open_photo(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg").pixels
    alignment = align(editor.measure(photo)[0], SIDE)
    edited = [np.asarray(editor.edit(photo, add=add, measure=False).image) for add in FAR]
    pictures = [crop_face(pixels, alignment) for pixels in (photo, *edited)]
    return grid(pictures, ["as photographed", *FAR], 5)


def muscles(photo: np.ndarray) -> PIL.Image.Image:
    """Each AU at 0, 2.5 and 5 steps, and at 5 on the subject's left and right alone."""
    face = load_backend().detect(photo)[0]
    alignment = align(face, WARP_SIZE)
    crop, landmarks = crop_face(photo, alignment), alignment.apply(face.landmarks)
    fields = displacement_fields(landmarks, WARP_SIZE, stride=8)
    left = left_side(landmarks, WARP_SIZE, face.scheme)[..., None]
    mouth = choose_mouth(landmarks)
    pictures, captions = [], []
    for name in NAMES:
        for level in (0.0, 2.5, 5.0):
            pictures.append(warp_photo(crop, fields, to_vector({name: level}), landmarks, mouth))
            captions.append(f"{name} {level:g}" if level else f"{name}: {DESCRIPTIONS[name]}")
        flow, _ = backward_flow(fields, to_vector({name: 5.0}), landmarks, WARP_SIZE)
        for side, share in (("left", left), ("right", 1 - left)):
            if name in BILATERAL:
                pictures.append(read_at(crop, (flow * share).astype(np.float32)))
                captions.append(f"{name} 5, {side} alone")
            else:
                pictures.append(np.full_like(crop, 255))
                captions.append("")
    return grid(pictures, captions, 10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/images"))
    parser.add_argument("--model", default="mini")
    args = parser.parse_args()
    photo = astronaut()
    args.output.mkdir(parents=True, exist_ok=True)
    editor = ExpressionEditor.from_pretrained(args.model)
    pictures = {
        "hero": portrait(editor, HERO, 320),
        "controls": portrait(editor, CONTROLS, 216),
        "aus": action_units(editor, photo),
        "far": far(editor),
        "muscles": muscles(open_photo(PORTRAIT).pixels),
    }
    for name, picture in pictures.items():
        path = args.output / f"{name}.jpg"
        picture.save(path, quality=85)
        print(path)


if __name__ == "__main__":
    main()
