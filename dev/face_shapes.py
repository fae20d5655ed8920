"""Writes the table that `magicedit/warping/muscles.py` reads: how landmarks move in shapes of a face.

    python dev/face_shapes.py MESH.json PHOTOGRAPHS

MESH.json: displacements of MediaPipe's 478 landmarks for the blendshapes of a face mesh (ICT-FaceKit, MIT
licence), {"neutral": [[x, y, z], ...], "displacements": {shape: [[x, y, z], ...]}}, y up, in interocular
distances. PHOTOGRAPHS: one folder per person with `neutral.jpg` and `smiling.jpg`; those kept for validation
are left out. The smile is fitted linearly, by least squares over people, to the change of AU12, of the lips'
gap and of the chin: `realSmile` is the part of AU12 at five steps, `realGap` and `realJaw` those of lips that
part and of a chin that drops by one interocular distance; both sides averaged, from the eyes down.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from scipy.optimize import linear_sum_assignment

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
from mini_quality import VALIDATION  # noqa: E402

from magicedit.faces import load_backend  # noqa: E402
from magicedit.faces.alignment import similarity, stable_landmarks  # noqa: E402
from magicedit.faces.frame import face_frame  # noqa: E402
from magicedit.imaging import open_photo  # noqa: E402
from magicedit.warping.muscles import TABLE  # noqa: E402

SHAPES = (
    *(
        "browDown",
        "browInnerUp",
        "browOuterUp",
        "cheekPuff",
        "cheekRaiser",
        "cheekSquint",
        "eyeBlink",
        "eyeSquint",
    ),
    *("eyeWide", "jawOpen", "mouthDimple", "mouthFrown", "mouthFunnel", "mouthLowerDown", "mouthPress"),
    *("mouthPucker", "mouthRollLower", "mouthRollUpper", "mouthShrugLower", "mouthShrugUpper", "mouthSmile"),
    *("mouthStretch", "mouthUpperUp", "noseSneer"),
)
CHIN, UPPER, LOWER = 152, 13, 14
NOSE_BASE, UPPER_LIP_TOP, LIP_SHARE = 2, 0, 0.12
EYE_LINE = (
    -0.05,
    0.15,
)  # y of the mesh, interocular distances: the fit fades out from the second to the first


def shape_of(mesh: dict, name: str) -> np.ndarray:
    """(478, 3) displacements of a blendshape, on both sides."""
    shapes = mesh["displacements"]
    return np.sum([shapes[key] for key in (name, f"{name}_L", f"{name}_R") if key in shapes], 0)


def mirrored(shape: np.ndarray, mirror: np.ndarray) -> np.ndarray:
    """The shape of the other side: (478, 3) displacements of mirrored landmarks, mirrored."""
    return shape[mirror] * (-1, 1, 1)


def real_smile(folder: Path) -> tuple[np.ndarray, float, int]:
    """(3, 478, 2) displacements by AU12, gap and jaw, y up, interocular distances; R squared; people."""
    backend = load_backend()
    moves, factors = [], []
    for person in sorted(folder.iterdir()):
        paths = [person / "neutral.jpg", person / "smiling.jpg"]
        if person.name in VALIDATION or not all(path.is_file() for path in paths):
            continue
        neutral, smiling = (backend.detect(open_photo(path).pixels)[0] for path in paths)
        frame = face_frame(neutral.landmarks)
        stable = (stable_landmarks(face.landmarks, face.scheme) for face in (smiling, neutral))
        matrix = similarity(*stable)
        laid = smiling.landmarks @ matrix[:, :2].T + matrix[:, 2]
        move = frame.vectors_to_face(laid - neutral.landmarks) * (1, -1)  # (478, 2)
        moves.append(move)
        smile = smiling.action_units["AU12"] - neutral.action_units["AU12"]
        factors.append((smile / 5, move[UPPER, 1] - move[LOWER, 1], -move[CHIN, 1]))
    moves, factors = np.stack(moves), np.array(factors)
    fit, *_ = np.linalg.lstsq(factors, moves.reshape(len(moves), -1), rcond=None)
    rest = moves.reshape(len(moves), -1) - factors @ fit
    explained = 1 - (rest**2).sum() / (moves**2).sum()
    return fit.reshape(len(fit), -1, 2), float(explained), len(moves)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("mesh", type=Path)
    parser.add_argument("photographs", type=Path)
    args = parser.parse_args()
    mesh = json.loads(args.mesh.read_text())
    neutral = np.array(mesh["neutral"])
    # Lips and lids that touch are told apart by where they go
    places = [neutral, *(neutral + shape_of(mesh, name) for name in ("jawOpen", "eyeBlink"))]
    distance = sum(np.linalg.norm(place[:, None] * (-1, 1, 1) - place[None], axis=-1) for place in places)
    mirror = linear_sum_assignment(distance)[1]
    neutral = (neutral + mirrored(neutral, mirror)) / 2
    table = {"neutral": neutral}
    for name in SHAPES:
        shape = shape_of(mesh, name)
        table[name] = (shape + mirrored(shape, mirror)) / 2
    # The mesh's noseSneer raises the upper lip too (AU10) and parts closed lips: a wrinkled nose alone
    base, lip = neutral[NOSE_BASE, 1], neutral[UPPER_LIP_TOP, 1]
    table["noseWrinkle"] = table["noseSneer"] * np.clip((neutral[:, 1:2] - lip) / (base - lip), LIP_SHARE, 1)
    parts, explained, people = real_smile(args.photographs)
    low, high = EYE_LINE
    for name, part in zip(("realSmile", "realGap", "realJaw"), parts, strict=True):
        part = np.concatenate([part, np.zeros((len(part), 1))], 1)
        part *= np.clip((high - neutral[:, 1:2]) / (high - low), 0, 1)
        table[name] = (part + mirrored(part, mirror)) / 2
    save_file(
        {name: values.astype(np.float16) for name, values in table.items()},
        TABLE,
        metadata={
            "mesh": "ICT-FaceKit, MIT licence",
            "realSmile": f"{people} people, R squared {explained:.2f}",
        },
    )
    print(f"{TABLE.name}: {len(table)} shapes; smile of {people} people, R squared {explained:.2f}")


if __name__ == "__main__":
    main()
