"""Makes pictures of faces comparable as stimuli: place and size of the face, luminance, an oval mask.

Also writes the landmark templates of face research.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from magicedit.faces import Face
from magicedit.faces.regions import face_oval, region_polygon

# Weights of ITU-R BT.709 on the encoded values, as image tools of psychology compute luminance
LUMA = np.array([0.2126, 0.7152, 0.0722], np.float32)
_EYES = ((33, 133), (362, 263))  # corners of the eye left in the picture, then of the right one
_LINES = ("right_eye", "left_eye", "right_brow", "left_brow", "lips", "mouth")  # all closed
_EDGE = 1.5  # px, of the oval's antialiased edge


def eye_centres(landmarks: np.ndarray) -> np.ndarray:
    """Returns the middle of the corners of each eye, (2, 2), first of the eye on the picture's left.

    landmarks: MediaPipe's 478, (478, 2). Corners, unlike pupils, stay where they are when the gaze moves.
    """
    return np.array([landmarks[list(corners)].mean(0) for corners in _EYES], np.float64)


@dataclass(frozen=True)
class Canvas:
    """Where a face stands in its stimulus.

    width, height: px. interocular: px between the centres of the eyes, which are level. eye_height: share of
    the height above the line of the eyes, which is centred across.
    """

    width: int
    height: int
    interocular: float
    eye_height: float = 0.45

    def matrix(self, face: Face) -> np.ndarray:
        """Returns the similarity from the photograph's pixels to the canvas's, (2, 3)."""
        left, right = eye_centres(face.landmarks) @ (1, 1j)
        a = self.interocular / (right - left)
        middle = complex((self.width - 1) / 2, self.eye_height * self.height)
        b = middle - a * (left + right) / 2
        return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])

    def draw(self, pixels: np.ndarray, matrix: np.ndarray, background: tuple[int, int, int]) -> np.ndarray:
        """Returns the photograph on the canvas, (height, width, 3) uint8 RGB; `background` beyond its border.

        A photograph that shrinks is drawn at a whole multiple of the size and averaged, so that hair does not
        alias.
        """
        factor = max(1, int(np.ceil(1 / np.hypot(*matrix[:, 0]) - 0.01)))
        fine = matrix * factor
        fine[:, 2] += (factor - 1) / 2  # pixel centres
        size = factor * self.width, factor * self.height
        drawn = cv2.warpAffine(
            pixels, fine, size, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_CONSTANT, borderValue=background
        )
        if factor > 1:
            drawn = cv2.resize(drawn, (self.width, self.height), interpolation=cv2.INTER_AREA)
        return drawn


def oval_of(landmarks: np.ndarray, shape: tuple[int, ...], margin: float) -> np.ndarray:
    """Returns (height, width) float32, 1 inside the ellipse around a face, 0 outside, antialiased.

    The ellipse fills the bounding box of the face's outline, as webmorph's oval masks do.

    Args:
        landmarks: MediaPipe's 478 in pixels. shape: of the picture.
        margin: factor on the axes.
    """
    outline = face_oval(landmarks, "mediapipe478")
    low, high = outline.min(0), outline.max(0)
    centre, axes = (low + high) / 2, margin * (high - low) / 2
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    distance = np.hypot((x - centre[0]) / axes[0], (y - centre[1]) / axes[1])  # 1 on the ellipse
    return np.clip((1 - distance) * min(axes) / _EDGE + 0.5, 0, 1).astype(np.float32)


def luminance_of(pixels: np.ndarray, where: np.ndarray) -> tuple[float, float]:
    """Returns mean and standard deviation of the luminance, 0 to 255, weighted by `where` (height, width)."""
    luma = pixels @ LUMA
    mean = float(np.average(luma, weights=where))
    return mean, float(np.sqrt(np.average((luma - mean) ** 2, weights=where)))


def with_luminance(pixels: np.ndarray, where: np.ndarray, mean: float, sd: float) -> np.ndarray:
    """Returns the picture, uint8, with this mean and standard deviation of luminance within `where`.

    Luminance is scaled and shifted alike in all pixels, and the differences between channels stay. Values
    beyond 0 to 255 are clipped, which moves both numbers; a few rounds take that back as far as it goes.
    """
    result = pixels.astype(np.float32)
    for _ in range(5):
        shown = np.clip(np.rint(result), 0, 255)
        now = luminance_of(shown, where)
        luma = (result @ LUMA)[..., None]
        result = result + ((luma - now[0]) * (sd / max(now[1], 1e-3)) + mean - luma)
    return np.clip(np.rint(result), 0, 255).astype(np.uint8)


def masked(pixels: np.ndarray, where: np.ndarray, background: tuple[int, int, int]) -> np.ndarray:
    """Returns the picture, uint8, where `where` (height, width) is 1, and the background where it is 0."""
    weight = where[..., None]
    blended = weight * pixels + (1 - weight) * np.array(background, np.float32)
    return np.rint(blended).astype(np.uint8)


def template_of(landmarks: np.ndarray) -> str:
    """Returns a landmark template as webmorph and PsychoMorph write `.tem` files.

    The points are the two eye centres, as these programs expect of points 0 and 1, then MediaPipe's 478, in
    pixels from the top left; the lines are the contours of eyes, brows, lips, mouth and face, all closed.
    """
    points = np.concatenate([eye_centres(landmarks), landmarks])
    text = [str(len(points)), *(f"{x:.2f}\t{y:.2f}" for x, y in points)]
    indices = np.column_stack([np.arange(2, len(points))] * 2)  # what the contours' functions pick from
    contours = [region_polygon(indices, "mediapipe478", name)[:, 0] for name in _LINES]
    contours.append(face_oval(indices, "mediapipe478")[:, 0])
    text.append(str(len(contours)))
    for contour in contours:
        text += ["1", str(len(contour)), " ".join(str(int(index)) for index in contour)]
    return "\n".join(text) + "\n"
