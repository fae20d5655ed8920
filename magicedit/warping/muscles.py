"""The muscles of facial expression as pulls on MediaPipe's 478 landmarks, extended to dense fields.

A face is described in its own frame: origin between the eyes, one axis along the line of the eyes, one down
the face, lengths in interocular distances (iod, between the middles of the eyes' corners). A muscle draws the
skin at its insertion in one direction; what it draws falls off with distance as a raised cosine, as in
Waters' linear muscles (K. Waters, "A muscle model for animating three-dimensional facial expression",
SIGGRAPH 1987). Which muscle makes which action unit, and which way it pulls, is the anatomy of the Facial
Action Coding System (P. Ekman, W. Friesen, J. Hager, "Facial Action Coding System", 2002). Unlike Waters'
muscles ours say which tissues they reach, because skin that is near in the picture may be far along the face:
the lips are two sheets, the brow slides over an eye that stays.

The figures were fitted by hand in two steps. Direction, extent and the ratio between places: against how a
face mesh with FACS-like blendshapes (ICT-FaceKit, MIT licence) moves at full activation, seen from the front,
at the brows, lids, nose, lips and chin. Size: photographs warped by 1 to 5 steps were measured by MediaPipe's
blendshapes, and the pulls of the action units that it sees were scaled until three commanded steps measure
near three; where that looked unnatural (AU2, AU4, AU5, AU25), or where the estimator is blind (AU6, AU9,
AU15), the mesh's size stands.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np

from magicedit.action_units import NAMES
from magicedit.faces.frame import face_frame

LANDMARKS = 478

# The landmarks that carry the field, by the tissue they lie on; left is the subject's left. Of a tissue's
# landmarks the first row lies in the face's middle, the second on its left, the third holds the second's
# mirror images.
TISSUES: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = {
    "forehead": ((151,), (337, 299, 333, 298), (108, 69, 104, 68)),
    "brow": (
        (9, 8),
        (285, 295, 282, 283, 276, 336, 296, 334, 293, 300),
        (55, 65, 52, 53, 46, 107, 66, 105, 63, 70),
    ),
    "lid fold": ((), (441, 442, 443, 444, 445), (221, 222, 223, 224, 225)),
    "upper lid": ((), (398, 384, 385, 386, 387, 388, 466), (173, 157, 158, 159, 160, 161, 246)),
    "lower lid": ((), (382, 381, 380, 374, 373, 390, 249), (155, 154, 153, 145, 144, 163, 7)),
    "eye": ((), (362, 263, 473, 474, 476), (133, 33, 468, 471, 469)),
    "under eye": ((), (452, 451, 450, 449, 448, 261, 446, 265), (232, 231, 230, 229, 228, 31, 226, 35)),
    "nose": (
        (197, 195, 5, 4, 1, 2),
        (399, 456, 420, 429, 279, 358, 327, 326, 440),
        (174, 236, 198, 209, 49, 129, 98, 97, 220),
    ),
    "cheek": (
        (),
        (349, 348, 330, 347, 346, 280, 352, 266, 425, 371, 423, 426, 436, 427, 411, 376, 416, 434, 433),
        (120, 119, 101, 118, 117, 50, 123, 36, 205, 142, 203, 206, 216, 207, 187, 147, 192, 214, 213),
    ),
    "upper lip": (
        (164, 0, 13),
        (393, 391, 322, 267, 269, 270, 409, 312, 311, 310, 415),
        (167, 165, 92, 37, 39, 40, 185, 82, 81, 80, 191),
    ),
    "corner": ((), (291, 308, 410, 287, 432), (61, 78, 186, 57, 212)),
    "lower lip": ((17, 14), (314, 405, 321, 375, 317, 402, 318, 324), (84, 181, 91, 146, 87, 178, 88, 95)),
    "chin": (
        (18, 200, 199, 152),
        (313, 406, 335, 273, 422, 424, 430, 421, 418, 431, 394, 262, 377, 400, 378),
        (83, 182, 106, 43, 202, 204, 210, 201, 194, 211, 169, 32, 148, 176, 149),
    ),
    "jaw": ((), (379, 365, 397, 288, 361, 364), (150, 136, 172, 58, 132, 135)),
    # No muscle of the table reaches these: the skull's side of the field.
    "fixed": (
        (168, 6, 10),
        (338, 297, 332, 284, 251, 389, 356, 454, 323),
        (109, 67, 103, 54, 21, 162, 127, 234, 93),
    ),
}

# The edge of the opening between the lips, from the corner on the subject's right to the one on the left.
UPPER_LIP_EDGE = (78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308)
LOWER_LIP_EDGE = (78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308)

_FACE_OVAL = (10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377, 152,
              148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109)  # fmt: skip
_LIPS = ("upper lip", "corner", "lower lip")
_MOUTH_AND_CHEEK = (*_LIPS, "cheek", "chin", "jaw", "nose")


@dataclass(frozen=True)
class Muscle:
    """One muscle, or one bundle of it, on the subject's left; its mirror image acts on the right.

    action_unit: the AU it takes part in. name: its anatomical name. insertion: landmarks, in order along the
    line of skin that it draws. pull: displacement of that line at intensity 5, (outward, upward) in
    interocular distances; outward is away from the face's middle. radius: where its action has fallen to
    zero, in interocular distances from the line. tissues: the keys of TISSUES that it reaches.
    """

    action_unit: str
    name: str
    insertion: tuple[int, ...]
    pull: tuple[float, float]
    radius: float
    tissues: tuple[str, ...]


MUSCLES: tuple[Muscle, ...] = (
    Muscle("AU1", "frontalis, pars medialis", (285, 336, 296), (0.00, 0.12), 0.55, ("brow", "forehead")),
    Muscle("AU1", "frontalis, pars medialis", (441, 442), (0.00, 0.035), 0.35, ("lid fold",)),
    Muscle(
        "AU2", "frontalis, pars lateralis", (282, 334, 293, 276), (0.02, 0.14), 0.58, ("brow", "forehead")
    ),
    Muscle("AU2", "frontalis, pars lateralis", (443, 444, 445), (0.01, 0.04), 0.30, ("lid fold",)),
    Muscle("AU4", "corrugator supercilii", (285, 336, 296, 334), (-0.09, -0.08), 0.45, ("brow", "forehead")),
    Muscle("AU4", "depressor supercilii", (285, 9), (0.00, -0.05), 0.40, ("brow", "forehead")),
    Muscle("AU4", "depressor supercilii", (441, 442, 443), (-0.01, -0.035), 0.30, ("lid fold",)),
    Muscle("AU5", "levator palpebrae superioris", (385, 386, 387), (0.00, 0.08), 0.26, ("upper lid",)),
    Muscle("AU5", "levator palpebrae superioris", (442, 443), (0.00, 0.02), 0.30, ("lid fold",)),
    Muscle("AU6", "orbicularis oculi, pars orbitalis", (330, 347, 346), (-0.02, 0.10), 0.50, ("cheek",)),
    Muscle("AU6", "orbicularis oculi, pars orbitalis", (450, 449, 448), (-0.01, 0.075), 0.35, ("under eye",)),
    Muscle("AU6", "orbicularis oculi, pars orbitalis", (374, 373, 390), (0.00, 0.05), 0.25, ("lower lid",)),
    Muscle("AU6", "orbicularis oculi, pars orbitalis", (283, 276), (0.00, -0.02), 0.35, ("brow", "lid fold")),
    Muscle(
        "AU9", "levator labii superioris alaeque nasi", (429, 279, 358), (0.00, 0.16), 0.40, ("nose", "cheek")
    ),
    Muscle("AU9", "levator labii superioris alaeque nasi", (0, 267, 269), (0.01, 0.10), 0.45, ("upper lip",)),
    Muscle("AU9", "levator labii superioris alaeque nasi", (13, 311), (0.00, 0.08), 0.45, ("lower lip",)),
    Muscle("AU9", "procerus", (8, 285), (-0.015, -0.07), 0.45, ("brow", "forehead")),
    Muscle("AU12", "zygomaticus major", (291, 287), (0.11, 0.15), 0.75, _LIPS),
    Muscle("AU12", "zygomaticus major", (291, 410), (0.07, 0.10), 0.70, ("cheek", "chin", "jaw")),
    Muscle("AU12", "zygomaticus major", (358, 327), (0.03, 0.02), 0.25, ("nose",)),
    Muscle("AU15", "depressor anguli oris", (291, 287), (0.03, -0.09), 0.45, _MOUTH_AND_CHEEK),
    Muscle("AU17", "mentalis", (200, 421, 418), (0.00, 0.17), 0.50, ("chin",)),
    Muscle("AU17", "mentalis", (17, 405, 321), (0.00, 0.13), 0.40, ("lower lip",)),
    Muscle("AU17", "mentalis", (0, 269), (0.00, 0.05), 0.40, ("upper lip",)),
    Muscle("AU20", "risorius", (291, 287), (0.11, -0.04), 0.60, _MOUTH_AND_CHEEK),
    Muscle("AU25", "levator labii superioris", (0, 267, 269), (0.00, 0.10), 0.38, ("upper lip",)),
    Muscle("AU25", "depressor labii inferioris", (17, 314, 405), (0.00, -0.15), 0.42, ("lower lip", "chin")),
    Muscle(
        "AU26", "digastric, against a relaxed masseter", (17, 314, 405), (0.00, -0.38), 0.46, ("lower lip",)
    ),
    Muscle(
        "AU26",
        "digastric, against a relaxed masseter",
        (200, 152, 377, 400),
        (0.00, -0.29),
        1.00,
        ("chin", "jaw"),
    ),
    Muscle(
        "AU26", "digastric, against a relaxed masseter", (291, 287), (-0.03, -0.14), 0.40, ("corner", "cheek")
    ),
    Muscle("AU26", "orbicularis oris", (0, 267), (0.00, -0.01), 0.35, ("upper lip",)),
)


def _ids(tissues: Sequence[str]) -> list[int]:
    return [landmark for tissue in tissues for row in TISSUES[tissue] for landmark in row]


@cache
def mirror_ids() -> dict[int, int]:
    """Of each landmark in TISSUES the one on the other side of the face; a middle one is its own."""
    mirror = {}
    for middle, left, right in TISSUES.values():
        mirror |= {landmark: landmark for landmark in middle}
        mirror |= dict(zip(left, right, strict=True)) | dict(zip(right, left, strict=True))
    return mirror


def _reach(points: np.ndarray, line: np.ndarray, radius: float) -> np.ndarray:
    """Raised cosine (Waters 1987) of points' (n, 2) distance from a polyline (m, 2), 0 from `radius` on."""
    ends = pairwise(line) if len(line) > 1 else [(line[0], line[0])]
    distance = np.full(len(points), np.inf)
    for start, end in ends:
        along = end - start
        position = np.clip((points - start) @ along / max(along @ along, 1e-12), 0, 1)
        distance = np.minimum(distance, np.linalg.norm(points - start - position[:, None] * along, axis=1))
    return 0.5 + 0.5 * np.cos(np.pi * np.minimum(distance / radius, 1))


def landmark_displacements(landmarks: np.ndarray, names: Sequence[str] = NAMES) -> dict[int, np.ndarray]:
    """How the landmarks of TISSUES move at intensity 5 of each AU.

    landmarks (478, 2) px. Returns by landmark an array (aus, 2) of displacements in px, in the order of
    `names`.
    """
    frame, mirror = face_frame(landmarks), mirror_ids()
    points = frame.to_face(np.asarray(landmarks, np.float64))
    moves = np.zeros((LANDMARKS, len(names), 2))
    for muscle in MUSCLES:
        if muscle.action_unit not in names:
            continue
        ids = _ids(muscle.tissues)
        left = _reach(points[ids], points[list(muscle.insertion)], muscle.radius)
        right = _reach(points[ids], points[[mirror[i] for i in muscle.insertion]], muscle.radius)
        share = 1 / np.maximum(
            1, left + right
        )  # where both sides reach, they share the skin instead of adding up
        outward, upward = muscle.pull
        moves[ids, list(names).index(muscle.action_unit)] += np.stack(
            [outward * (left - right) * share, -upward * (left + right) * share], -1
        )
    moves = frame.vectors_to_picture(moves)
    return {landmark: moves[landmark] for landmark in mirror}


def _anchors(landmarks: np.ndarray, size: int) -> np.ndarray:
    """Points around the face that no muscle moves, px: rings outside its oval, farther away below the chin,
    where skin follows the jaw, and the crop's border, beyond which a spline would extrapolate."""
    oval = np.asarray(landmarks, np.float64)[list(_FACE_OVAL)]
    centre, frame = oval.mean(0), face_frame(landmarks)
    below = np.clip(frame.to_face(oval)[:, 1:] - 1.2, 0, 0.6) / 0.6  # 0 at the cheeks .. 1 at the chin
    near, far = (centre + (oval - centre) * (scale + 0.45 * below) for scale in (1.15, 1.6))
    steps = np.linspace(-0.5, size - 0.5, 13)
    border = np.array([(x, y) for x in steps for y in steps if not {x, y}.isdisjoint(steps[[0, -1]])])
    return np.concatenate([near, far, border])


def displacement_fields(
    landmarks: np.ndarray, size: int, names: Sequence[str] = NAMES, stride: int = 4
) -> np.ndarray:
    """One dense displacement field per AU, computed once per photograph; any AU vector is a weighted sum.

    landmarks: MediaPipe's (478, 2), px of a square crop of `size` px (pixel centres at whole numbers).
    stride: px between samples, which lie in the middle of stride x stride blocks; it must divide `size`.
    Returns float32 (aus, size / stride, size / stride, 4): the *forward* displacement of the skin at
    intensity 5 in crop px, x and y of the sheet of skin above the mouth's opening, then x and y of the one
    below it. The two agree but near the mouth, and let the lips part without tearing or smearing.
    Interpolation is by thin-plate splines through the moved landmarks and unmoved points around the face
    (F. Bookstein, "Principal warps", PAMI 1989).
    """
    from scipy.interpolate import RBFInterpolator  # 0.5 s, and edits do without

    if size % stride:
        raise ValueError(f"stride must divide size, got stride {stride} and size {size}")
    moves = landmark_displacements(landmarks, names)
    landmarks = np.asarray(landmarks, np.float64)
    frame, anchors = face_frame(landmarks), _anchors(landmarks, size)
    steps = size // stride
    centres = np.arange(steps) * stride + (stride - 1) / 2
    grid = frame.to_face(np.stack(np.meshgrid(centres, centres), -1).reshape(-1, 2))
    sheets = []
    for other_lip in ("lower lip", "upper lip"):
        ids = [landmark for landmark in moves if landmark not in set(_ids([other_lip]))]
        places = frame.to_face(np.concatenate([landmarks[ids], anchors]))
        values = np.concatenate([np.stack([moves[i] for i in ids]), np.zeros((len(anchors), len(names), 2))])
        # Smoothing evens out jitter of landmarks that almost coincide, far below what can be seen.
        spline = RBFInterpolator(
            places, values.reshape(len(places), -1), kernel="thin_plate_spline", smoothing=1e-3
        )
        sheets.append(spline(grid).reshape(steps, steps, len(names), 2))
    fields = np.concatenate(sheets, -1)  # (height/stride, width/stride, aus, 4)
    return np.ascontiguousarray(fields.transpose(2, 0, 1, 3), np.float32)
