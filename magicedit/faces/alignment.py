"""The square crop in which a face is edited: its place in the photograph, and cutting it out."""

from dataclasses import dataclass

import cv2
import numpy as np

from magicedit.faces.types import Face, Scheme, check_pixels

# Points that no expression moves: eye corners, nose bridge, base of the nose, temples. No mouth, brow, nose
# wing or jaw, so that opening the mouth neither moves nor rescales the crop.
# Rows: index among MediaPipe's 478, index among iBUG's 68, place in the unit square.
#
# Made as the mean of the neutral photographs of 79 people (the Face Research Lab London Set without the ten
# identities kept for validation) by generalized Procrustes analysis: every face mapped to the mean by least
# squares, 20 rounds. The mean was then levelled by its eyes, averaged with its mirror image (they differ by
# 0.002 at most), and scaled and shifted so that its mesh, hairline to chin, spans 0.10 to 0.85 of the height:
# 75 %, with more room below, for a jaw that drops by up to 0.12.
_TEMPLATE = np.array(
    [
        (33, 36, 0.2989, 0.3385),  # outer corner of the subject's right eye
        (133, 39, 0.4252, 0.3460),  # its inner corner
        (362, 42, 0.5748, 0.3460),  # inner corner of the left eye
        (263, 45, 0.7011, 0.3385),  # its outer corner
        (168, 27, 0.5000, 0.3201),  # nose bridge, between the eyes
        (197, 28, 0.5000, 0.3844),
        (5, 29, 0.5000, 0.4414),
        (2, 33, 0.5000, 0.5403),  # base of the nose
        (162, 0, 0.1849, 0.2982),  # right temple
        (389, 16, 0.8151, 0.2982),  # left temple
    ]
)
_TEMPLATE_POINTS = _TEMPLATE[:, 2:]
_INDICES = {"mediapipe478": _TEMPLATE[:, 0].astype(int), "ibug68": _TEMPLATE[:, 1].astype(int)}


@dataclass(frozen=True, eq=False)
class Alignment:
    """A similarity from the photograph to a square crop.

    matrix: (2, 3) float64, photograph pixels to crop pixels, pixel centres at whole numbers on both sides.
    size: side of the crop in pixels.
    """

    matrix: np.ndarray
    size: int

    @property
    def scale(self) -> float:
        """Crop pixels per photograph pixel."""
        return float(np.hypot(self.matrix[0, 0], self.matrix[1, 0]))

    def apply(self, points: np.ndarray) -> np.ndarray:
        """Returns points (..., 2) of the photograph in crop pixels; float32."""
        return (points @ self.matrix[:, :2].T + self.matrix[:, 2]).astype(np.float32)

    def inverse(self) -> np.ndarray:
        """(2, 3) float64, crop pixels to photograph pixels."""
        linear = np.linalg.inv(self.matrix[:, :2])
        return np.concatenate([linear, -linear @ self.matrix[:, 2:]], axis=1)

    def scaled(self, size: int) -> "Alignment":
        """Returns the alignment of the same square of the photograph at another size in pixels."""
        if size < 1:
            raise ValueError(f"the size of a crop must be at least 1 pixel, got {size}")
        factor = size / self.size
        matrix = self.matrix * factor
        matrix[:, 2] += (factor - 1) / 2  # pixel centres: -0.5, the crop's corner, stays where it is
        return Alignment(matrix, size)


def align(face: Face, size: int, *, margin: float = 1.0) -> Alignment:
    """Returns the alignment of a face's upright square crop, `size` pixels a side.

    It is the similarity (scale, rotation, shift) that maps the face's stable landmarks nearest to a fixed
    template in the least-squares sense (S. Umeyama, PAMI 13(4), 1991), so that photographs of one person
    share a frame for every expression. At margin 1 a frontal face, hairline to chin, fills 75 % of the
    height; the crop shows `margin` times that much of the photograph in each direction.
    """
    if size < 1:
        raise ValueError(f"the size of a crop must be at least 1 pixel, got {size}")
    if margin <= 0:
        raise ValueError(f"margin must be positive, got {margin}")
    matrix = (
        similarity(stable_landmarks(face.landmarks, face.scheme), 0.5 + (_TEMPLATE_POINTS - 0.5) / margin)
        * size
    )
    matrix[:, 2] -= 0.5  # the unit square is the crop from corner to corner, -0.5 .. size - 0.5
    return Alignment(matrix, size)


def stable_landmarks(landmarks: np.ndarray, scheme: Scheme) -> np.ndarray:
    """Returns the ten landmarks (10, 2) that no expression moves."""
    return np.asarray(landmarks)[_INDICES[scheme]]


def similarity(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Returns the (2, 3) matrix of the rotation, uniform scale and shift that best map `source` to `target`.

    Least squares; in two dimensions Umeyama's solution is a complex regression, target = a * source + b.
    ValueError where all source points coincide.
    """
    source, target = (np.asarray(points, dtype=np.float64) for points in (source, target))
    source_mean, target_mean = source.mean(0), target.mean(0)
    s, t = ((points - mean) @ (1, 1j) for points, mean in ((source, source_mean), (target, target_mean)))
    spread = np.vdot(s, s).real
    if spread == 0:
        raise ValueError("a similarity needs points that do not all coincide")
    a = np.vdot(s, t) / spread
    linear = np.array([[a.real, -a.imag], [a.imag, a.real]])
    return np.concatenate([linear, (target_mean - linear @ source_mean)[:, None]], axis=1)


def crop_face(pixels: np.ndarray, alignment: Alignment) -> np.ndarray:
    """Returns the crop of an RGB photograph, (size, size, 3) uint8, reflected beyond the photograph's border.

    A crop below the photograph's resolution is drawn at a whole multiple of its size, at least at the
    photograph's resolution, and averaged down, so that hair and fabric do not alias.
    """
    pixels = check_pixels(pixels)
    factor = max(1, int(np.ceil(1 / alignment.scale - 0.01)))
    fine = alignment.scaled(factor * alignment.size)
    crop = cv2.warpAffine(
        pixels, fine.matrix, (fine.size, fine.size), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101
    )
    if factor > 1:
        crop = cv2.resize(crop, (alignment.size, alignment.size), interpolation=cv2.INTER_AREA)
    return crop
