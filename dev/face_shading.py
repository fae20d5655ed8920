"""Writes the table that `magicedit/warping/shading.py` reads: what smiles do to the light on skin.

    python dev/face_shading.py PHOTOGRAPHS

PHOTOGRAPHS: one folder per person with `neutral.jpg` and `smiling.jpg` under the same lamps; those kept for
validation are left out. Both are laid on the neutral face mesh of `face_shapes.safetensors` by their
landmarks; the logarithm of their ratio, its median over people, is what movement does not explain. Where
landmarks do not follow what shows (lips, eyeballs, nostrils, the face's border) it is left out. Skin that the
editor moves does not end exactly where landmarks of real smiles do, and carries its own shading along. So the
people who show their teeth are then edited, and what their edits lack below the eyes is added.
"""

import argparse
import sys
from pathlib import Path

import cv2
import numpy as np
from safetensors.numpy import load_file, save_file
from scipy.spatial import Delaunay

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
from mini_quality import VALIDATION  # noqa: E402

from magicedit import ExpressionEditor  # noqa: E402
from magicedit.faces import load_backend  # noqa: E402
from magicedit.faces.measure import lip_gap  # noqa: E402
from magicedit.imaging import open_photo  # noqa: E402
from magicedit.warping import shading  # noqa: E402
from magicedit.warping.inside import smooth  # noqa: E402
from magicedit.warping.mouth import LOWER_LIP_OUTLINE, UPPER_LIP_OUTLINE  # noqa: E402
from magicedit.warping.muscles import SKIN  # noqa: E402
from magicedit.warping.muscles import TABLE as SHAPES_TABLE  # noqa: E402
from magicedit.warping.shading import SHADES, TABLE  # noqa: E402

PIXEL = 1 / 64  # interocular distances
TOP, BOTTOM, HALF_WIDTH = -0.95, 1.95, 1.25  # of the picture, interocular distances from between the eyes
RIGHT_EYE = (33, 246, 161, 160, 159, 158, 157, 173, 133, 155, 154, 153, 145, 144, 163, 7)
LEFT_EYE = (263, 466, 388, 387, 386, 385, 384, 398, 362, 382, 381, 380, 374, 373, 390, 249)
LIPS = (*UPPER_LIP_OUTLINE, *LOWER_LIP_OUTLINE[::-1])
NOSTRILS = (4, 45, 220, 115, 48, 64, 98, 97, 2, 326, 327, 294, 278, 344, 440, 275)
BORDER = 14  # px of the face's border that are left out
# Down from between the eyes, interocular distances: what is above goes with the eyes, with both within
EYES_END = (0.30, 0.45)
FOLD_DOWN, FOLD_ACROSS = (0.15, 0.35, 0.65, 0.85), (0.5, 0.65)
FLOOR = 6.0  # levels of light that count as dark
# Edits that smile as far as photographs do whose lips part by the first of these distances or more, and are
# closed within the second at rest, interocular distances; rounds, and what each adds of what is missing
SMILE, PARTED, CLOSED = {"AU6": 1.5, "AU12": 3.0, "AU25": 2.5}, 0.05, 0.02
ROUNDS, ADDED, SMOOTH = 2, 0.8, 1.2  # the last: px, standard deviation


def between(value: np.ndarray, low: float, high: float) -> np.ndarray:
    return smooth((value - low) / (high - low))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photographs", type=Path)
    args = parser.parse_args()

    # 1. The neutral face, laid flat, and which triangle of it each pixel lies in
    flat = load_file(SHAPES_TABLE)["neutral"][:SKIN, :2].astype(np.float64) * (1, -1)
    eyes = flat[[*RIGHT_EYE[::8], *LEFT_EYE[::8]]]
    places = (flat - (0, eyes[:, 1].mean() + TOP)) / PIXEL  # px, the midline at x = 0
    height, width = round((BOTTOM - TOP) / PIXEL), round(2 * HALF_WIDTH / PIXEL)
    middle = width / 2
    centred = places + np.array([middle - 0.5, 0])  # the two halves of the picture mirror each other
    mesh = Delaunay(centred)
    grid = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).reshape(-1, 2).astype(np.float64)
    found = mesh.find_simplex(grid)
    skin = found >= 0
    maps = mesh.transform[found[skin]]
    weights = np.einsum("nij,nj->ni", maps[:, :2], grid[skin] - maps[:, 2])
    weights = np.concatenate([weights, 1 - weights.sum(1, keepdims=True)], 1)

    def laid(pixels: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
        """(height, width, 3) float32 logarithms of coded RGB."""
        at = np.zeros((height * width, 2), np.float32)
        at[skin] = np.einsum("ni,nij->nj", weights, landmarks[mesh.simplices[found[skin]]])
        soft = cv2.GaussianBlur(pixels, (0, 0), 1.0)
        read = cv2.remap(soft, *at.reshape(height, width, 2).transpose(2, 0, 1), cv2.INTER_LINEAR)
        return np.log(read.astype(np.float32) + FLOOR)

    # 2. The median ratio of smiles
    backend, ratios, smiles, parted = load_backend(), [], [], []
    for person in sorted(args.photographs.iterdir()):
        paths = [person / "neutral.jpg", person / "smiling.jpg"]
        if person.name in VALIDATION or not all(path.is_file() for path in paths):
            continue
        photos = [open_photo(path).pixels for path in paths]
        faces = [backend.detect(pixels)[0] for pixels in photos]
        neutral, smiling = (laid(p, f.landmarks) for p, f in zip(photos, faces, strict=True))
        ratios.append(smiling - neutral)
        smiles.append(faces[1].action_units["AU12"] - faces[0].action_units["AU12"])
        gaps = [lip_gap(face.landmarks, face.scheme) for face in faces]
        if gaps[0] < CLOSED and gaps[1] > PARTED:
            parted.append((paths[0], neutral, smiling))

    def median(ratios: list[np.ndarray]) -> np.ndarray:
        ratio = np.median(np.stack(ratios), 0)
        return (ratio + ratio[:, ::-1]) / 2

    ratio = median(ratios)

    # 3. Only where landmarks follow what shows
    def filled(ids: tuple[int, ...]) -> np.ndarray:
        drawn = np.zeros((height, width), np.uint8)
        return cv2.fillPoly(drawn, [np.rint(centred[list(ids)] * 16).astype(np.int32)], 1, shift=4)

    holes = np.maximum.reduce([filled(ids) for ids in (RIGHT_EYE, LEFT_EYE, LIPS, NOSTRILS)])
    holes = 1 - cv2.dilate(holes, np.ones((3, 3))).astype(np.float32)
    inner = cv2.erode(skin.reshape(height, width).astype(np.uint8), np.ones((2 * BORDER + 1,) * 2))
    kept = cv2.GaussianBlur(holes, (0, 0), 1.2) * holes
    kept *= cv2.GaussianBlur(inner.astype(np.float32), (0, 0), BORDER / 3)
    ratio = (ratio - np.median(ratio[inner > 0], 0)) * kept[..., None]

    # 4. The parts that go with units, the subject's left half of each
    across, down = (grid.T.reshape(2, height, width) - np.array([[[middle - 0.5]], [[-TOP / PIXEL]]])) * PIXEL
    below_eyes = between(down, *EYES_END)
    fold = between(down, *FOLD_DOWN[:2]) * (1 - between(down, *FOLD_DOWN[2:]))
    fold *= 1 - between(np.abs(across), *FOLD_ACROSS)
    windows = {"cheeks": below_eyes, "eyes": 1 - below_eyes, "fold": fold}
    scale = np.abs(ratio).max() / 127
    table = {
        name: np.rint(ratio * window[..., None] / scale).astype(np.int8)[:, width // 2 :].copy()
        for name, window in windows.items()
    }
    table |= {
        "scale": np.array([scale], np.float32),
        "pixel": np.array([PIXEL], np.float32),
        "places": (places - (0.5, 0)).astype(np.float32),
        "triangles": mesh.simplices.astype(np.int16),
    }
    about = {"smiles": f"{len(smiles)} people, of {np.mean(smiles):.2f} steps of AU12 in the mean"}
    save_file(table, TABLE, metadata=about)

    # 5. What edits lack below the eyes
    editor = ExpressionEditor.from_pretrained("mini")
    amount = SHADES["AU12"]["cheeks"] * SMILE["AU12"] / 5
    real = median([smiling - neutral for _, neutral, smiling in parted])
    cheeks = table["cheeks"] * scale
    soft = cv2.GaussianBlur(holes, (0, 0), SMOOTH)[..., None]
    for _ in range(ROUNDS):
        shading._table.cache_clear()
        made = []
        for path, neutral, _ in parted:
            pixels = np.asarray(editor.edit(path, add=SMILE, measure=False).image.convert("RGB"))
            made.append(laid(pixels, backend.detect(pixels)[0].landmarks) - neutral)
        missing = real - median(made)
        missing -= np.median(missing[inner > 0], 0)
        missing = cv2.GaussianBlur(missing * holes[..., None], (0, 0), SMOOTH) / np.maximum(soft, 0.2)
        missing *= (kept * below_eyes)[..., None]
        print(f"missing: {missing.std():.4f}")
        cheeks += ADDED / amount * missing[:, width // 2 :]
        table["cheeks"] = np.rint(cheeks / scale).clip(-127, 127).astype(np.int8)
        save_file(table, TABLE, metadata=about)
    print(
        f"{TABLE.name}: {len(smiles)} people, AU12 {np.mean(smiles):+.2f}, darkest {np.exp(ratio.min()):.2f}"
    )


if __name__ == "__main__":
    main()
