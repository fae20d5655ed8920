"""What goes along with one eye that closes alone: its brow comes down and its cheek rises.

The muscle around the eye winks it (AU46; P. Ekman, W. Friesen, J. Hager, "Facial Action Coding System",
2002), while eyes that close together let their upper lids down alone (AU43).
"""

import cv2
import numpy as np

from magicedit.faces.alignment import Alignment
from magicedit.faces.frame import face_frame
from magicedit.faces.regions import smooth
from magicedit.warping.change import replace_where, upsampled, window_of
from magicedit.warping.muscles import SKIN, neutral_mesh, shape_displacements
from magicedit.warping.splines import gaussian_field

# Shares of the mesh's shapes at a whole wink, and of the brow's movement sideways: one that is drawn to the
# middle frowns
_SHAPES = {"cheekRaiser": 0.65, "eyeSquint": 0.4}
_BROW, _BROW_ASIDE = {"browDown": 0.75}, 0.35
# Interocular distances: the standard deviation of a landmark's movement; from the middle of the face, where
# movement begins and where it is whole
_SPREAD = 0.08
_BESIDE_MIDDLE = (0.06, 0.32)
# A square that begins in the middle of the face, this far above the eyes; at its other borders movement fades
_ABOVE, _WIDE, _FADE = 0.75, 1.7, 0.25
_SIDE = 80  # px of the square in which the movement is made


def wink(pixels: np.ndarray, landmarks: np.ndarray, side: int, share: float) -> None:
    """Moves brow and cheek around the subject's left (0) or right (1) eye, in place.

    pixels: the photograph, (height, width, 3) uint8 RGB. landmarks: (478, 2) px. share: 0..1 of a whole wink.
    """
    frame = face_frame(landmarks)
    mirror = np.array([1 - 2 * side, 1])

    # 1. Where the landmarks of this side go, interocular distances outwards and down
    brow = frame.vectors_to_face(shape_displacements(landmarks, _BROW)) * (_BROW_ASIDE, 1)
    moves = brow + frame.vectors_to_face(shape_displacements(landmarks, _SHAPES))
    near = neutral_mesh()[:, 0] * mirror[0] > 0
    moves = share * (moves * mirror)[:SKIN][near]
    arrived = (frame.to_face(landmarks) * mirror)[:SKIN][near] + moves

    # 2. The movement between them, (side, side, 2) px of the photograph
    across = (np.arange(_SIDE) + 0.5) * (_WIDE / _SIDE)
    down = across - _ABOVE
    low, high = _BESIDE_MIDDLE
    beside = smooth((across - low) / (high - low)) * smooth((_WIDE - across) / _FADE)
    fade = np.outer(smooth(np.minimum(across, _WIDE - across) / _FADE), beside)
    field = gaussian_field(arrived, moves, across, down, _SPREAD) * fade[..., None]
    field = frame.vectors_to_picture(field * mirror).astype(np.float32)

    # 3. The photograph read there
    linear = mirror[:, None] * frame.rotation * (_SIDE / (_WIDE * frame.interocular))
    start = np.array([0, _ABOVE]) * (_SIDE / _WIDE) - 0.5 - linear @ frame.origin
    square = Alignment(np.concatenate([linear, start[:, None]], 1), _SIDE)
    window = window_of(field.any(-1), square, pixels.shape)
    if window is None:
        return
    x0, y0, x1, y1 = window
    view, shift = pixels[y0:y1, x0:x1], upsampled(field, square, window, cv2.INTER_LINEAR)
    x, y = np.arange(x1 - x0, dtype=np.float32), np.arange(y1 - y0, dtype=np.float32)[:, None]
    moved = cv2.remap(
        view, x - shift[..., 0], y - shift[..., 1], cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101
    )
    replace_where(view, moved, shift.any(-1))
