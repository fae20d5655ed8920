"""What goes along with one eye that closes alone: its brow comes down and its cheek rises.

The muscle around the eye winks it (AU46; P. Ekman, W. Friesen, J. Hager, "Facial Action Coding System",
2002), while eyes that close together let their upper lids down alone (AU43).
"""

import cv2
import numpy as np

from magicedit.faces.frame import face_frame
from magicedit.faces.regions import smooth
from magicedit.warping.change import replace_where
from magicedit.warping.muscles import SKIN, neutral_mesh, shape_displacements

# Shares of the mesh's shapes at a whole wink, and of the brow's movement sideways: one that is drawn to the
# middle frowns
_SHAPES = {"cheekRaiser": 0.65, "eyeSquint": 0.4}
_BROW, _BROW_ASIDE = {"browDown": 0.75}, 0.35
# Interocular distances: the standard deviation of a landmark's movement, and the weight of none beside one
# landmark's; from the middle of the face, where movement begins and where it is whole; what surrounds the eye
_SPREAD, _REST = 0.08, 0.3
_BESIDE_MIDDLE = (0.06, 0.32)
_WINDOW = (0.0, 1.35, -0.75, 1.10)  # outwards from the middle, and down from the eyes
_FADE = 0.25  # at the window's other borders
_WORKED_AT = 48.0  # px an interocular distance at which the movement is made


def wink(pixels: np.ndarray, landmarks: np.ndarray, side: int, share: float) -> None:
    """Moves brow and cheek around the subject's left (0) or right (1) eye, in place.

    pixels: the photograph, (height, width, 3) uint8 RGB. landmarks: (478, 2) px. share: 0..1 of a whole wink.
    """
    frame = face_frame(landmarks)
    outwards = 1 - 2 * side
    x0, x1, y0, y1 = _WINDOW

    # 1. Where the landmarks of this side go, interocular distances outwards and down
    brow = frame.vectors_to_face(shape_displacements(landmarks, _BROW)) * (_BROW_ASIDE, 1)
    moves = share * (brow + frame.vectors_to_face(shape_displacements(landmarks, _SHAPES)))[:SKIN]
    near = neutral_mesh()[:, 0] * outwards > 0
    moves = (moves * (outwards, 1))[near]
    arrived = (frame.to_face(landmarks)[:SKIN] * (outwards, 1))[near] + moves

    # 2. The movement between them, on a grid around the eye
    across, down = (
        np.arange(low, high, 1 / _WORKED_AT, dtype=np.float32) for low, high in ((x0, x1), (y0, y1))
    )
    weights = [
        np.exp(-(((at - arrived[:, k : k + 1]) / _SPREAD) ** 2) / 2) for k, at in ((0, across), (1, down))
    ]
    sums = [(weights[1] * part[:, None]).T @ weights[0] for part in (*moves.T, np.ones(len(moves)))]
    low, high = _BESIDE_MIDDLE
    fade = np.outer(
        smooth(np.minimum(down - y0, y1 - down) / _FADE),
        smooth((across - low) / (high - low)) * smooth((x1 - across) / _FADE),
    )
    field = np.stack(sums[:2], -1) * (fade / (sums[2] + _REST))[..., None]

    # 3. The photograph read there
    corners = np.array([(x, y) for x in (x0, x1) for y in (y0, y1)]) * (outwards, 1)
    corners = frame.origin + frame.vectors_to_picture(corners)
    limits = pixels.shape[1], pixels.shape[0]
    left, top = np.floor(corners.min(0)).clip(0, limits).astype(int)
    right, bottom = np.ceil(corners.max(0)).clip(0, limits).astype(int)
    if right <= left or bottom <= top:
        return
    view = pixels[top:bottom, left:right]
    y, x = np.indices(view.shape[:2], dtype=np.float32)
    here = frame.to_face(np.stack([x + left, y + top], -1)) * (outwards, 1)
    at = ((here - (x0, y0)) * _WORKED_AT).astype(np.float32)
    shift = cv2.remap(field.astype(np.float32), at, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
    shift = frame.vectors_to_picture(shift * (outwards, 1)).astype(np.float32)
    moved = cv2.remap(
        view, x - shift[..., 0], y - shift[..., 1], cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101
    )
    replace_where(view, moved, shift.any(-1))
