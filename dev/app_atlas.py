"""Draws magicedit/app/atlas.jpg: what each control does to a face, small, for the sliders of the page.

    python dev/app_atlas.py

The face is that of docs/atlas.md, a synthetic portrait (SFHQ-T2I, MIT licence). Tiles are in the order of
`magicedit.app.atlas.TILES`.
"""

from pathlib import Path

import numpy as np
import PIL.Image

from magicedit.action_units import is_angle
from magicedit.app.atlas import ATLAS, COLUMNS, TILES
from magicedit.editor import ExpressionEditor
from magicedit.faces import align, crop_face

PORTRAIT = Path(__file__).resolve().parents[1] / "tests" / "portraits" / "closed_mouth.jpg"
SIDE = 112  # px a tile
MARGIN = 0.75  # how much of the aligned crop is shown each way: brows to chin
LEVEL, ANGLE = 4, 14  # intensity steps, degrees


def main() -> None:
    editor = ExpressionEditor.from_pretrained("mini", device="cpu")
    alignment = align(editor.measure(PORTRAIT)[0], SIDE, margin=MARGIN)
    sheet = PIL.Image.new("RGB", (COLUMNS * SIDE, -(-len(TILES) // COLUMNS) * SIDE))
    for number, name in enumerate(TILES):
        asked = {name: ANGLE if is_angle(name) else LEVEL}
        pixels = np.asarray(editor.edit(PORTRAIT, asked, measure=False).image)
        tile = PIL.Image.fromarray(crop_face(pixels, alignment))
        sheet.paste(tile, (number % COLUMNS * SIDE, number // COLUMNS * SIDE))
    sheet.save(ATLAS, quality=80, optimize=True)
    print(f"{ATLAS}  {ATLAS.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
