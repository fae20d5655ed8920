"""`make demo`: a real photograph edited, with the pictures and the numbers that show it.

    python -m magicedit.demo [-o demo]

The photograph is NASA's portrait of Eileen Collins, public domain, as scikit-image ships it.
"""

import argparse
import os
from pathlib import Path

import numpy as np
import PIL.Image

from magicedit.cli.common import print_faces
from magicedit.editor import ExpressionEditor, sweep_strip
from magicedit.errors import needs_extra
from magicedit.imaging import before_after, save_image

# She smiles broadly already, so the visible edit is the other way.
EDIT = {"AU12": -2.5, "AU25": -2.9}
SWEEP = ("AU12", -4.0, 0.0, 5)  # AU, first variation, last, pictures


def astronaut() -> np.ndarray:
    """(512, 512, 3) uint8 RGB."""
    with needs_extra("demo", "the demo edits a photograph of scikit-image"):
        from skimage import data
    return data.astronaut()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m magicedit.demo", description=__doc__.splitlines()[0])
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("demo"), help="folder for the pictures (demo)"
    )
    parser.add_argument(
        "--model", default="mini", help="mini (default), mini-live, a pipeline folder, a hub id"
    )
    args = parser.parse_args(argv)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in magicedit.cli

    photo = PIL.Image.fromarray(astronaut())
    editor = ExpressionEditor.from_pretrained(args.model)
    result = editor.edit(photo, add=EDIT)
    sweep = editor.sweep(photo, *SWEEP)
    for title, faces in (("edit", result.faces), ("sweep", [edited.faces[0] for edited in sweep])):
        print(title)
        print_faces(faces, targets=False)

    args.output.mkdir(parents=True, exist_ok=True)
    pictures = {
        "photo": photo,
        "edit": result.image,
        "before_after": before_after(photo, result.image),
        "sweep": sweep_strip(sweep),
    }
    for name, picture in pictures.items():
        print(save_image(picture, args.output / f"{name}.png"))


if __name__ == "__main__":
    main()
