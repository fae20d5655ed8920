"""Corners of the mouth that hang at rest.

A smile pulls the corners along the zygomatic muscle to about the same place in every face. Where they hang
when the face rests, a movement of the usual length therefore ends in a straight mouth, which nobody takes for
a smile. So a smile first relaxes what pulls the corners down (AU15).
"""

from collections.abc import Mapping

import numpy as np

from magicedit.faces.frame import face_frame
from magicedit.faces.regions import smooth
from magicedit.warping.muscles import MOUTH_CORNERS, landmark_displacements

_LIPS = (13, 14)  # landmarks of the middle of the opening, above and below
_HANGING = 0.01  # iod below the middle of the lips: usual, median of 60 neutral photographs 0.02
_SMILE, _MOST = 4.0, 3.0  # intensity steps: of AU12 for all of it; of AU15


def without_hanging(request: Mapping[str, float], landmarks: np.ndarray) -> dict[str, float]:
    """Returns the request for a face whose corners of the mouth may hang, with AU15 reduced where it smiles.

    request: whole units' variations in steps. landmarks: (478, 2) px.
    """
    smile = request.get("AU12", 0.0)
    if smile <= 0 or request.get("AU15"):
        return dict(request)
    landmarks = np.asarray(landmarks, np.float64)
    frame = face_frame(landmarks)
    drop = frame.vectors_to_face(landmark_displacements(landmarks, ["AU15"])[:, 0] / 5)
    hanging, step = (
        places[list(MOUTH_CORNERS), 1].mean() - places[list(_LIPS), 1].mean()
        for places in (frame.to_face(landmarks), drop)
    )
    steps = float(np.clip((hanging - _HANGING) / step, 0, _MOST) * smooth(smile / _SMILE))
    return dict(request) | ({"AU15": -steps} if steps else {})
