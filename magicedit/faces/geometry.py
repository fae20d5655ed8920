"""Movement of a face between two photographs of a person, in action units: a scorer without blendshapes.

Each action unit is read from the one movement that defines it (P. Ekman, W. Friesen, J. Hager, "Facial Action
Coding System", 2002): how far a few landmarks moved in its direction, in interocular distances, after the
second face was aligned to the first by landmarks that no expression moves. The distances that count as full
intensity are those of a face mesh with FACS-like blendshapes (ICT-FaceKit, MIT licence) at full activation,
seen from the front. This does not separate units that move the same skin: where a smile draws a corner up,
AU15 reads negative.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from magicedit.action_units import sided_names
from magicedit.faces.alignment import similarity, stable_landmarks
from magicedit.faces.frame import face_frame
from magicedit.faces.measure import FULL_BROW_RAISE, FULL_INTENSITY, FULL_LIP_GAP, lip_gap
from magicedit.faces.types import Scheme
from magicedit.vocabulary import by_number, whole_name


@dataclass(frozen=True)
class Movement:
    """One action unit's defining movement.

    left, right: landmarks on the subject's left, and their mirror images. direction: (outward, upward), at
    full intensity, in interocular distances.
    """

    left: tuple[int, ...]
    right: tuple[int, ...]
    direction: tuple[float, float]


_INNER_BROW = ((285, 336, 296), (55, 107, 66))
_OUTER_BROW = ((282, 283, 334, 293), (52, 53, 105, 63))
_CORNER = ((291, 308), (61, 78))
MOVEMENTS: dict[str, Movement] = {
    "AU1": Movement(*_INNER_BROW, (0.0, FULL_BROW_RAISE)),
    "AU2": Movement(*_OUTER_BROW, (0.0, 0.116)),
    "AU4": Movement((285, 295, 282, 336, 296, 334), (55, 65, 52, 107, 66, 105), (-0.055, -0.05)),
    "AU5": Movement((385, 386, 387), (158, 159, 160), (0.0, 0.045)),
    "AU6": Movement((380, 374, 373, 449, 450), (153, 145, 144, 229, 230), (0.0, 0.03)),
    "AU9": Movement((279, 358, 429), (49, 129, 209), (0.0, 0.115)),
    "AU12": Movement(*_CORNER, (0.108, 0.161)),
    "AU15": Movement(*_CORNER, (0.029, -0.07)),
    "AU17": Movement((200, 421, 17, 405), (200, 201, 17, 181), (0.0, 0.12)),
    "AU20": Movement(*_CORNER, (0.101, -0.047)),
    "AU26": Movement((152, 377, 400), (152, 148, 176), (0.0, -0.43)),
}

# The same for iBUG's 68 points, with the same mesh's displacements of these points; none lies on the cheek.
_BROW_68, _CORNER_68 = ((22, 23, 24), (21, 20, 19)), ((54, 64), (48, 60))
MOVEMENTS_68: dict[str, Movement] = {
    "AU1": Movement((22, 23), (21, 20), (0.0, 0.075)),
    "AU2": Movement((24, 25, 26), (19, 18, 17), (0.0, 0.107)),
    "AU4": Movement(*_BROW_68, (-0.051, -0.045)),
    "AU5": Movement((43, 44), (37, 38), (0.0, 0.045)),
    "AU6": Movement((46, 47), (41, 40), (0.0, 0.027)),
    "AU9": Movement((34, 35), (32, 31), (0.0, 0.073)),
    "AU12": Movement(*_CORNER_68, (0.108, 0.156)),
    "AU15": Movement(*_CORNER_68, (0.029, -0.065)),
    "AU17": Movement((8, 57, 56), (8, 57, 58), (0.0, 0.117)),
    "AU20": Movement(*_CORNER_68, (0.104, -0.044)),
    "AU26": Movement((8, 9), (8, 7), (0.0, -0.419)),
}
MOVEMENTS_OF_SCHEME: dict[Scheme, dict[str, Movement]] = {"mediapipe478": MOVEMENTS, "ibug68": MOVEMENTS_68}
# Units that share no point, but the muscles of one were observed to move the points of the other
_TOGETHER = (
    {"AU1", "AU2"}, {"AU1", "AU9"}, {"AU2", "AU9"}, {"AU4", "AU9"}, {"AU5", "AU9"}, {"AU12", "AU26"},
    {"AU15", "AU26"}, {"AU17", "AU25"}, {"AU25", "AU26"},
)  # fmt: skip


def entangled(names: Iterable[str], scheme: Scheme = "mediapipe478") -> set[str]:
    """Returns the other units read from points that these units move: a smile's corners also belong to AU15.

    A side such as "AU12L" counts as its whole unit. Some units that share no point still move skin together:
    those of the brows, and those moved along by an opening mouth or a dropping jaw.
    """
    movements = MOVEMENTS_OF_SCHEME[scheme]
    units = {whole_name(name) for name in names}
    points = {p for unit in units & set(movements) for p in movements[unit].left + movements[unit].right}
    shared = {unit for unit, m in movements.items() if points & set(m.left + m.right)}
    return shared.union(*(pair for pair in _TOGETHER if units & pair)) - units


def geometric_change(
    before: np.ndarray, after: np.ndarray, scheme: Scheme = "mediapipe478"
) -> dict[str, float]:
    """Returns the change of action units in steps, from the landmarks (points, 2) px of two photographs.

    It covers the units of `MOVEMENTS`, and AU25 from the gap of the lips, as in a single photograph; units
    with sides also by side, such as "AU12L". A step is a fifth of the full movement; nothing is clipped.
    ValueError for landmarks whose shape does not fit the scheme.
    """
    before, after = np.asarray(before, np.float64), np.asarray(after, np.float64)
    frame = face_frame(before, scheme)
    if before.shape != after.shape:
        raise ValueError(f"landmarks of two schemes: {before.shape} and {after.shape}")
    matrix = similarity(stable_landmarks(after, scheme), stable_landmarks(before, scheme))
    moved = after @ matrix[:, :2].T + matrix[:, 2] - before  # px of the first photograph
    across, upward = (frame.vectors_to_face(moved) * (1, -1)).T

    changes = {}
    for name, movement in MOVEMENTS_OF_SCHEME[scheme].items():
        outward_full, upward_full = movement.direction
        full = float(np.hypot(outward_full, upward_full))
        sides = {}
        for side, ids, sign in (("L", movement.left, 1), ("R", movement.right, -1)):
            ids = list(ids)
            along = (sign * across[ids].mean() * outward_full + upward[ids].mean() * upward_full) / full
            sides[side] = FULL_INTENSITY * float(along) / full
        changes[name] = (sides["L"] + sides["R"]) / 2
        if sided_names(name):
            changes |= {name + side: value for side, value in sides.items()}
    opened = lip_gap(after, scheme) - lip_gap(before, scheme)
    changes["AU25"] = FULL_INTENSITY * opened / FULL_LIP_GAP
    return by_number(changes)
