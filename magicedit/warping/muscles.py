"""Action units as movements of MediaPipe's 478 landmarks, extended to dense displacement fields.

The directions of movement come from a table, `face_shapes.safetensors`, written by `dev/face_shapes.py`:

- shapes of a face mesh with FACS-like blendshapes (ICT-FaceKit, MIT licence; notice in
  `face_shapes.LICENSE.txt`), at full activation, in three dimensions;
- `realSmile`: how landmarks move per step of AU12 in photographs of people, neutral and smiling, by a linear
  fit (Face Research Lab London Set, CC BY 4.0, without the people kept for validation); `realGap` and
  `realJaw`: how they move beside that where lips part and the chin drops.

`SHAPES` lists the shapes that make each action unit (P. Ekman, W. Friesen, J. Hager, "Facial Action Coding
System", 2002) and their weights. The table's neutral mesh is fitted to a face's landmarks by an affine camera
(J. Koenderink, A. van Doorn, "Affine structure from motion", JOSA A 1991), which carries the mesh's
displacements into the picture: turned, tilted and differently proportioned faces move accordingly.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np

from magicedit.action_units import FACS, NAMES
from magicedit.faces.frame import face_frame
from magicedit.faces.regions import smooth
from magicedit.vocabulary import whole_name
from magicedit.warping.splines import sheet_fields

LANDMARKS = 478
NOSE_BASE, NOSE_ROOT, NOSTRIL = 2, 168, 129  # the last: where the subject's right one ends at the cheek
SKIN = 468  # landmarks of the skin; the others are irises
TABLE = Path(__file__).with_name("face_shapes.safetensors")

# Share of each shape's full activation at intensity 5: three commanded steps measure near three by a scorer
# that sees the unit (`benchmarks/muscle_calibration.json`), less where faces would look unnatural.
SHAPES: Mapping[str, Mapping[str, float]] = {
    "AU1": {"browInnerUp": 1.25},
    "AU2": {"browOuterUp": 0.95},
    "AU4": {"browDown": 1.7},
    "AU5": {"eyeWide": 1.4},
    "AU6": {"cheekRaiser": 0.9, "eyeSquint": 0.7},
    "AU9": {"noseWrinkle": 1.25},
    "AU12": {"mouthSmile": 0.5, "realSmile": 0.5, "cheekSquint": 0.2},
    "AU15": {"mouthFrown": 1.3},
    "AU17": {"mouthShrugLower": 1.0, "mouthShrugUpper": 0.6},
    "AU20": {"mouthStretch": 1.1},
    "AU25": {"mouthLowerDown": 1.75, "mouthUpperUp": 0.6},
    "AU26": {"jawOpen": 0.8},
    "AU7": {"eyeSquint": 1.6},
    # The lower lip follows: a jury takes the strip of teeth that a lifted lip alone would show for a fake
    "AU10": {"mouthUpperUp": 0.7, "mouthShrugUpper": 0.25, "noseSneer": 0.25, "lowerLipUp": 0.85},
    # Corners that go back on a level, and pressed lips: with the mesh's shape alone they rise, as in a smile
    "AU14": {
        **{"mouthDimple": 1.0, "mouthStretch": 0.25, "mouthFrown": 0.45},
        **{"mouthPress": 0.35, "mouthRollLower": 0.1, "mouthRollUpper": 0.1},
    },
    "AU16": {"mouthLowerDown": 1.0},
    "AU18": {"mouthPucker": 1.5},
    "AU22": {"mouthFunnel": 0.6, "mouthPucker": 0.4},
    "AU23": {"mouthPress": 0.5, "mouthRollLower": 0.3, "mouthRollUpper": 0.3},
    "AU24": {"mouthPress": 1.0},
    "AU27": {"jawOpen": 0.66, "mouthLowerDown": 0.3, "mouthPucker": 0.3},
    "AU28": {"mouthRollLower": 1.0, "mouthRollUpper": 1.0},
}

MOUTH_CORNERS = (61, 291)  # the subject's right and left
# Rows of the mesh around the inner lips: from the edge of the opening outwards, right corner to left corner.
UPPER_LIP_EDGE = (78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308)
LOWER_LIP_EDGE = (78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308)
UPPER_LIP = (
    *(191, 80, 81, 82, 13, 312, 311, 310, 415, 183, 42, 41, 38, 12, 268, 271, 272, 407),
    *(184, 74, 73, 72, 11, 302, 303, 304, 408, 185, 40, 39, 37, 0, 267, 269, 270, 409),
)
LOWER_LIP = (
    *(95, 88, 178, 87, 14, 317, 402, 318, 324, 96, 89, 179, 86, 15, 316, 403, 319, 325),
    *(77, 90, 180, 85, 16, 315, 404, 320, 307, 146, 91, 181, 84, 17, 314, 405, 321, 375),
)
# The skin below the mouth, which moves with the lower lip and the jaw.
BELOW_MOUTH = (
    *(18, 200, 199, 152, 313, 406, 335, 273, 422, 424, 430, 421, 418, 431, 394, 262, 377, 400, 378, 379, 365),
    *(397, 288, 361, 364, 83, 182, 106, 43, 202, 204, 210, 201, 194, 211, 169, 32, 148, 176, 149, 150, 136),
    *(172, 58, 132, 135, 175, 428, 208, 396, 171, 369, 140, 395, 170),
)
# A brow is a strip of skin: its edges move together, or it would swell. Hairs also grow below the lower row
# of landmarks, so the next row moves with it, and the lid's fold partly; the lid's skin stretches.
_BROW_ROWS = (
    (1.0, (336, 296, 334, 293, 300, 107, 66, 105, 63, 70)),
    (1.0, (285, 295, 282, 283, 276, 55, 65, 52, 53, 46)),
    (0.9, (441, 442, 443, 444, 445, 221, 222, 223, 224, 225)),
    (0.3, (286, 258, 257, 259, 260, 56, 28, 27, 29, 30)),
)
_FACE_OVAL = (10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377, 152,
              148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109)  # fmt: skip
# Height on the mesh, interocular distances: up to the first the chin rests where the lower lip alone rises,
# from the second on skin rises with it
_CHIN_RESTS = (-1.62, -1.22)
# Of the mesh's interocular distance: landmarks that no shape of SHAPES moves farther fit the camera
_STEADY = 0.03
_PARTED = 0.05  # interocular distances between lips that a unit parts
# Of the crop's side, from its border: fields are zero up to the first, full from the second
_BORDER = (0.03, 0.12)


@cache
def _table() -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    table = {name: values.astype(np.float64) for name, values in load_file(TABLE).items()}
    for name, shape in table.items():
        if name.startswith("brow"):
            edges = [shape[list(ids)] for _, ids in _BROW_ROWS[:2]]
            for share, ids in _BROW_ROWS:
                shape[list(ids)] = share * (edges[0] + edges[1]) / 2
    low, high = _CHIN_RESTS
    rises = smooth((table["neutral"][:, 1:2] - low) / (high - low))
    table["lowerLipUp"] = rises * table["mouthShrugLower"]
    return table


@cache
def _unit_shapes(names: tuple[str, ...]) -> np.ndarray:
    """(478, aus, 3) displacements of the mesh at intensity 5, in its interocular distances."""
    table = _table()
    shapes = [sum(share * table[shape] for shape, share in SHAPES[name].items()) for name in names]
    return np.stack(shapes, 1) if shapes else np.zeros((LANDMARKS, 0, 3))


def parts_lips(request: Mapping[str, float]) -> bool:
    """Whether a request, AU name (or side) -> variation, parts closed lips; units that SHAPES lacks may, but
    for those of eyes and head."""
    return any(value > 0 and _parts(whole_name(name)) for name, value in request.items())


def _parts(name: str) -> bool:
    if name in SHAPES:
        return _gap(name) > _PARTED
    return name not in FACS or FACS[name].region not in ("eye", "gaze", "head")


@cache
def _gap(name: str) -> float:
    """Returns how far a unit at intensity 5 parts the mesh's lips, in its interocular distances."""
    moves = _unit_shapes((name,))[:, 0, 1]
    return float(moves[13] - moves[14])


@cache
def skin_above_mouth() -> np.ndarray:
    """Numbers (n,) of the landmarks of the skin above the nose's base, without the nose."""
    mesh = neutral_mesh()
    across, height = np.abs(mesh[:, 0]), mesh[:, 1]  # upwards
    nose = (across <= across[NOSTRIL]) & (height < height[NOSE_ROOT])
    return np.flatnonzero((height > height[NOSE_BASE]) & ~nose)


def neutral_mesh() -> np.ndarray:
    """(468, 3) landmarks of the neutral face's skin: x right, y up, z towards the viewer, interocular
    distances from between the eyes."""
    return _table()["neutral"][:SKIN]


@cache
def _steady(names: tuple[str, ...], limit: float) -> np.ndarray:
    """Numbers (n,) of the landmarks that none of these units moves by `limit` of the mesh's interocular
    distance."""
    most = np.linalg.norm(_unit_shapes(names), axis=-1).max(1)
    return np.flatnonzero(most[:SKIN] < limit)


def affine_camera(
    landmarks: np.ndarray, names: tuple[str, ...] = NAMES, limit: float = _STEADY
) -> np.ndarray:
    """(4, 2) affine camera, px: a place of the neutral mesh and 1 -> px, nearest to landmarks (478, 2) px.

    Fitted to landmarks that none of the units `names` moves by `limit` interocular distances. ValueError for
    landmarks of another shape.
    """
    landmarks = np.asarray(landmarks, np.float64)
    if landmarks.shape != (LANDMARKS, 2):
        raise ValueError(f"landmarks must have shape ({LANDMARKS}, 2), got {landmarks.shape}")
    steady = _steady(tuple(names), limit)
    known = np.insert(neutral_mesh()[steady], 3, 1, axis=1)
    return np.linalg.lstsq(known, landmarks[steady], rcond=None)[0]


def landmark_displacements(landmarks: np.ndarray, names: Sequence[str] = NAMES) -> np.ndarray:
    """Movement of landmarks (478, 2) px at intensity 5 of each AU: (478, aus, 2) px, by `names`."""
    return _unit_shapes(tuple(names)) @ affine_camera(landmarks)[:3]


def shape_displacements(landmarks: np.ndarray, shapes: Mapping[str, float]) -> np.ndarray:
    """Movement of landmarks (478, 2) px: (478, 2) px; shapes: shape of the mesh -> share of all of it."""
    table = _table()
    return sum(share * table[shape] for shape, share in shapes.items()) @ affine_camera(landmarks)[:3]


def smile_displacements(landmarks: np.ndarray) -> np.ndarray:
    """Movement of landmarks (478, 2) px in photographs of smiles, (478, 3, 2) px: at intensity 5 of AU12, and
    where the lips part and the chin drops by one interocular distance."""
    parts = np.stack([_table()[name] for name in ("realSmile", "realGap", "realJaw")], 1)
    return parts @ affine_camera(landmarks)[:3]


def shared_landmarks(count: int) -> np.ndarray:
    """Numbers (n,) of the first `count` landmarks but those of the lips, each of which lies on one sheet."""
    return np.setdiff1d(np.arange(count), UPPER_LIP + LOWER_LIP)


def _anchors(landmarks: np.ndarray, size: int) -> np.ndarray:
    """Returns fixed points around the face, px: rings outside its oval, farther away below the chin, where
    skin follows the jaw, and the crop's border, beyond which a spline would extrapolate."""
    oval = np.asarray(landmarks, np.float64)[list(_FACE_OVAL)]
    centre, frame = oval.mean(0), face_frame(landmarks)
    below = np.clip(frame.to_face(oval)[:, 1:] - 1.2, 0, 0.6) / 0.6  # 0 at the cheeks .. 1 at the chin
    near, far = (centre + (oval - centre) * (scale + 0.45 * below) for scale in (1.15, 1.6))
    return np.concatenate([near, far, _border(size)])


@cache
def _border(size: int) -> np.ndarray:
    """Points (48, 2) px on the border of a crop."""
    steps = np.linspace(-0.5, size - 0.5, 13)
    return np.array([(x, y) for x in steps for y in steps if not {x, y}.isdisjoint(steps[[0, -1]])])


def displacement_fields(
    landmarks: np.ndarray,
    size: int,
    names: Sequence[str] = NAMES,
    stride: int = 4,
    precision: type[np.floating] = np.float64,
) -> np.ndarray:
    """Returns one dense displacement field per AU, once per photograph; any AU vector is a weighted sum.

    landmarks: MediaPipe's (478, 2), px of a square crop of `size` px (pixel centres at whole numbers).
    stride: px between samples, which lie in the middle of stride x stride blocks; it must divide `size`.
    precision: float32 takes two thirds of the time; it errs by up to 0.1 px, on average 0.002 px, in crops
    of 352 px.
    Returns float32 (aus, size / stride, size / stride, 4): the *forward* displacement of the skin at
    intensity 5 in crop px, x and y of the sheet of skin above the mouth's opening, then x and y of the one
    below it. The two differ only near the mouth; there they let the lips part without tearing or smearing.
    Interpolation is by thin-plate splines through the moved landmarks and unmoved points around the face
    (F. Bookstein, "Principal warps", PAMI 1989).
    """
    if size % stride:
        raise ValueError(f"stride must divide size, got stride {stride} and size {size}")
    moves = landmark_displacements(landmarks, names)
    landmarks = np.asarray(landmarks, np.float64)
    frame, anchors = face_frame(landmarks), _anchors(landmarks, size)
    steps = size // stride
    centres = np.arange(steps) * stride + (stride - 1) / 2
    grid = frame.to_face(np.stack(np.meshgrid(centres, centres), -1).reshape(-1, 2))
    shared, upper, lower = shared_landmarks(LANDMARKS), list(UPPER_LIP), list(LOWER_LIP)
    places = np.concatenate([landmarks[shared], anchors]), landmarks[upper], landmarks[lower]
    moves = moves.reshape(LANDMARKS, -1)
    still = np.zeros((len(anchors), moves.shape[1]))
    values = np.concatenate([moves[shared], still]), moves[upper], moves[lower]
    places = tuple(frame.to_face(part).astype(precision) for part in places)
    fields = sheet_fields(places, values, grid)  # (samples, sheets, aus * 2)
    fields = fields.reshape(steps, steps, 2, len(names), 2).transpose(3, 0, 1, 2, 4)
    fields = fields.reshape(len(names), steps, steps, 4)
    # A long face's dropping chin may reach the crop's border, beyond which there is nothing to move
    none, whole = (share * size for share in _BORDER)
    ramp = np.clip((np.minimum(centres + 0.5, size - 0.5 - centres) - none) / (whole - none), 0, 1)
    return (fields * np.minimum(ramp[:, None], ramp[None])[..., None]).astype(np.float32)
