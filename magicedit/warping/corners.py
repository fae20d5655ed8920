"""Corrects where a model takes the corners of the mouth.

At the corners two lips that move apart meet. A network's flow is smoothed there: smiles rise too little at
the corners, which flattens the lips, and jaw drops move one corner farther than the other. The muscles'
table knows the corners' movement, so what the flow lacks is added around them: all of it while the lips stay
closed. Of lips that part, a jury finds more than the following stretched: of jaw drops the height alone, of
smiles half of that.
"""

from collections.abc import Mapping

import cv2
import numpy as np

from magicedit.faces.frame import face_frame
from magicedit.faces.regions import smooth
from magicedit.warping.mouth import forward_places
from magicedit.warping.muscles import SHAPES, landmark_displacements

MOUTH_CORNERS = (61, 291)  # landmarks, the subject's right and left
_LOWER_LIP, _UPPER_LIP = 14, 13
_HANG = 0.09  # of the drop of the lower lip by AU26: corners go further down than in the table
_PARTED = 0.5  # of the height where AU25 parts the lips
_REACH = (0.17, 0.20)  # iod: standard deviations of the correction outwards, and up and down


def steer_corners(flow: np.ndarray, landmarks: np.ndarray, request: Mapping[str, float]) -> np.ndarray:
    """Returns a flow (size, size, 2) px that takes the mouth's corners where the muscles' table does.

    landmarks: (478, 2) px of the same crop. request: AU name -> variation; the corners stay as they are where
    it holds a control that the table lacks. The correction is 0 in the middle of the lips.
    """
    asked = {name: value for name, value in request.items() if value}
    if not asked or not SHAPES.keys() >= asked.keys():
        return flow
    landmarks = np.asarray(landmarks, np.float64)
    interocular = face_frame(landmarks).interocular

    # 1. Where the corners go, and where they should
    units = landmark_displacements(landmarks, [*asked, "AU26"]) / 5  # (478, aus + 1, 2) px a step
    moves = np.einsum("nac,a->nc", units[:, :-1], np.array([*asked.values()], np.float64))
    at_rest = landmarks[list(MOUTH_CORNERS)]
    drop = np.linalg.norm(units[_LOWER_LIP, -1]) * max(asked.get("AU26", 0), 0)  # px
    wanted = at_rest + moves[list(MOUTH_CORNERS)] + (0, _HANG * drop)
    reached = np.mean([forward_places(flow, at_rest, from_below=below) for below in (False, True)], 0)
    lips, jaw = (smooth(asked.get(name, 0) / 2) for name in ("AU25", "AU26"))
    missing = (wanted - reached) * (1 - max(lips, jaw), 1 - (1 - _PARTED) * lips)

    # 2. What is missing, around each corner
    at = np.arange(len(flow), dtype=np.float32)
    middle = landmarks[_UPPER_LIP, 0] + moves[_UPPER_LIP, 0]
    added = np.zeros_like(flow)
    for (x, y), move in zip(reached + missing, missing, strict=True):
        inside = np.clip((at - middle) / (x - middle), 0, 1)  # 0 in the middle of the lips
        beyond = np.maximum((at - x) * np.sign(x - middle), 0) / (_REACH[0] * interocular)
        above = (at - y) / (_REACH[1] * interocular)
        weight = np.outer(np.exp(-(above**2) / 2), inside**2 * np.exp(-(beyond**2) / 2))
        added += (weight[..., None] * move).astype(np.float32)
    before = at - added[..., 0], at[:, None] - added[..., 1]
    return cv2.remap(flow, *before, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE) - added
