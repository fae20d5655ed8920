"""Whether a face wears glasses. Their rims are rigid, so an edit leaves them in place.

A linear classifier of oriented gradients (Dalal and Triggs, CVPR 2005) around the eyes, fitted by
`dev/glasses.py`.
"""

from functools import cache
from pathlib import Path

import cv2
import numpy as np
from safetensors.numpy import load_file

from magicedit.faces.frame import face_frame
from magicedit.faces.regions import between_eyes
from magicedit.faces.types import Scheme

TABLE = Path(__file__).with_name("glasses.safetensors")
WIDTH, HEIGHT, SCALE = 112, 56, 40  # px: the picture around the eyes, and px an interocular distance
_EYES_AT = (0.5, 0.4)  # share of the picture: the middle between the eyes
_CELL, _BINS = 8, 6  # px, and directions of a half turn
# Score above which glasses begin to be held in place, and score above which they are held fully
UNSURE, SURE = 0.5, 1.5


def eye_features(crop: np.ndarray, landmarks: np.ndarray, scheme: Scheme) -> np.ndarray:
    """Returns (features,) float32: block-normalized histograms of gradient directions around the eyes.

    crop: an aligned one, (size, size, 3) uint8 RGB. landmarks: (points, 2) px of it.
    """
    frame = face_frame(landmarks, scheme)
    grain = frame.interocular / SCALE
    if grain > 1.2:
        crop = cv2.GaussianBlur(crop, (0, 0), 0.45 * grain)
    linear = frame.rotation.T * grain
    corner = between_eyes(landmarks, scheme) - linear @ (np.array(_EYES_AT) * (WIDTH, HEIGHT))
    matrix = np.concatenate([linear, corner[:, None]], 1)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    picture = cv2.warpAffine(crop, matrix, (WIDTH, HEIGHT), flags=flags, borderMode=cv2.BORDER_REFLECT_101)
    return gradient_histograms(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY))


def gradient_histograms(picture: np.ndarray) -> np.ndarray:
    """Returns (features,) of a grey picture (HEIGHT, WIDTH) uint8."""
    light = np.sqrt(picture.astype(np.float32))
    x, y = (cv2.Sobel(light, cv2.CV_32F, *order) for order in ((1, 0), (0, 1)))
    strength, direction = np.hypot(x, y), np.arctan2(y, x) % np.pi / np.pi * _BINS
    lower, share = np.floor(direction).astype(int), direction % 1
    rows, columns = np.mgrid[:HEIGHT, :WIDTH] // _CELL
    cells = np.zeros((HEIGHT // _CELL, WIDTH // _CELL, _BINS), np.float32)
    np.add.at(cells, (rows, columns, lower % _BINS), strength * (1 - share))
    np.add.at(cells, (rows, columns, (lower + 1) % _BINS), strength * share)
    energy = cv2.blur((cells**2).sum(-1), (3, 3))
    return (cells / np.sqrt(energy + 0.01 * energy.mean() + 1e-6)[..., None]).ravel()


def glasses_score(crop: np.ndarray, landmarks: np.ndarray, scheme: Scheme) -> float:
    """Returns the log-odds that a face wears glasses; arguments as in `eye_features`."""
    weights = _weights()
    return float(eye_features(crop, landmarks, scheme) @ weights["weight"] + weights["bias"][0])


def glasses_presence(score: float) -> float:
    """Returns how strongly glasses with a `glasses_score` are held in place, 0..1."""
    return float(np.clip((score - UNSURE) / (SURE - UNSURE), 0, 1))


@cache
def _weights() -> dict[str, np.ndarray]:
    return load_file(TABLE)
