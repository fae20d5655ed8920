"""The aligned crop of a face and its condition image, made without OpenCV.

They are those of `magicedit.faces`, on which models are trained. The blanked face is equal to the pixel; the
edges of the jaw's discs and the interpolation of crops are not OpenCV's.
"""

import colorsys

import numpy as np
import PIL.Image
import torch

# Landmarks by their number: MediaPipe's 478 or iBUG's 68. The jaw goes from the subject's right temple via
# the chin to the left one. As in `magicedit.faces.regions`; a test compares them.
JAW = {
    478: (162, 234, 93, 58, 172, 136, 149, 148, 152, 377, 378, 365, 397, 288, 323, 454, 389),
    68: tuple(range(17)),
}
OVAL_478 = (
    *(10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377),
    *(152, 148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109),
)
# Landmarks that no expression moves: number among 478, among 68, place in the crop of side 1
TEMPLATE = np.array(
    [
        (33, 36, 0.2989, 0.3385),
        (133, 39, 0.4252, 0.3460),
        (362, 42, 0.5748, 0.3460),
        (263, 45, 0.7011, 0.3385),
        (168, 27, 0.5000, 0.3201),
        (197, 28, 0.5000, 0.3844),
        (5, 29, 0.5000, 0.4414),
        (2, 33, 0.5000, 0.5403),
        (162, 0, 0.1849, 0.2982),
        (389, 16, 0.8151, 0.2982),
    ]
)
FOREHEAD_HEIGHT = 0.36  # of the 68 landmarks: distances from the temples' line to the chin
GROW = 1.03
SUBPIXELS = 16  # parts of a pixel to which points are rounded
DISC_RADIUS = 1 / 128  # of the crop's side
# The edge of a disc, fitted to OpenCV's antialiasing: where it is half covered, pixels beyond the radius, and
# its width as a standard deviation in pixels
EDGE = 0.46
EDGE_WIDTH = 0.55


def aligned_crop(
    photo: PIL.Image.Image, landmarks: np.ndarray, size: int
) -> tuple[PIL.Image.Image, np.ndarray]:
    """Returns the upright, aligned crop of a face, `size` pixels a side, and its landmarks in the crop.

    Rotation, scale and shift map the landmarks that no expression moves nearest to a template (S. Umeyama,
    PAMI 13(4), 1991). Beyond the border the photograph is reflected.

    Args:
        photo: upright; EXIF orientation must have been applied.
        landmarks: as of `condition_image`, in pixels of the photograph.

    Raises:
        ValueError: on landmarks of another shape, that are not finite, not in the photograph, or one point.
    """
    points = checked_landmarks(landmarks).astype(np.float64) @ (1, 1j)  # x + iy
    stable = points[TEMPLATE[:, 0 if len(points) == 478 else 1].astype(int)]
    target = TEMPLATE[:, 2:] @ (1, 1j) * size - (0.5 + 0.5j)
    moved, spread, centre = target - target.mean(), stable - stable.mean(), stable.mean()
    inside = 0 <= centre.real < photo.width and 0 <= centre.imag < photo.height
    if not inside or not spread.any():
        raise ValueError(
            f"landmarks must be in pixels of the photograph of {photo.width} x {photo.height}, got a face "
            f"around ({centre.real:g}, {centre.imag:g})"
        )
    scale = np.vdot(spread, moved) / np.vdot(spread, spread).real  # and rotation
    shift = target.mean() - scale * stable.mean()
    in_crop = scale * points + shift

    # Drawn at a multiple of its size, at least as fine as the photograph, and averaged, so as not to alias
    finer = max(1, int(np.ceil(1 / abs(scale) - 0.01)))
    step = 1 / (scale * finer)
    start = (-(0.5 + 0.5j) - shift) / scale + (0.5 + 0.5j)  # of the crop's corner; Pillow's pixels cover 0..1
    corners = start + step * finer * size * np.array([0, 1, 1j, 1 + 1j])
    reach = [-corners.real.min(), -corners.imag.min(), corners.real.max() - photo.width]
    margin = max(0, int(np.ceil(max(*reach, corners.imag.max() - photo.height))) + 2)
    pixels = np.pad(np.asarray(photo.convert("RGB")), ((margin, margin), (margin, margin), (0, 0)), "reflect")
    start += margin * (1 + 1j)
    matrix = (step.real, -step.imag, start.real, step.imag, step.real, start.imag)
    crop = PIL.Image.fromarray(pixels).transform(
        (finer * size, finer * size), PIL.Image.Transform.AFFINE, matrix, PIL.Image.Resampling.BICUBIC
    )
    return crop.reduce(finer), np.stack([in_crop.real, in_crop.imag], -1).astype(np.float32)


def checked_landmarks(landmarks: np.ndarray) -> np.ndarray:
    points = np.asarray(landmarks, np.float32)
    if points.shape not in [(count, 2) for count in JAW] or not np.isfinite(points).all():
        raise ValueError(f"landmarks must be finite, of shape (478, 2) or (68, 2), got {points.shape}")
    return points


def condition_image(crop: PIL.Image.Image | np.ndarray, landmarks: np.ndarray) -> PIL.Image.Image:
    """Returns the condition image of a crop: the face blanked, 17 points of the jaw as coloured discs.

    Args:
        crop: upright, aligned and square; RGB, (size, size, 3) uint8.
        landmarks: (478, 2) of MediaPipe's face mesh or (68, 2) of iBUG/300-W, x then y in pixels of the crop,
            pixel centres at whole numbers.

    Raises:
        ValueError: on another shape, or values that are not finite.
    """
    pixels = np.array(crop.convert("RGB") if isinstance(crop, PIL.Image.Image) else crop)
    points, size = checked_landmarks(landmarks), len(pixels)
    if pixels.shape != (size, size, 3) or pixels.dtype != np.uint8:
        raise ValueError(f"crop must be square RGB of type uint8, got {pixels.dtype} {pixels.shape}")

    # 1. The face's outline, slightly grown, in black
    outline = face_outline(points)
    centre = outline.mean(0)
    pixels[filled(subpixel(centre + (outline - centre) * GROW), size)] = 0

    # 2. The jaw's points, in rainbow order
    y, x = np.mgrid[:size, :size]
    radius = size * DISC_RADIUS
    for number, (across, down) in enumerate(subpixel(points[list(JAW[len(points)])])):
        left, top = (max(0, int(at - radius) - 3) for at in (across, down))
        around = np.s_[top : max(0, int(down + radius) + 4), left : max(0, int(across + radius) + 4)]
        beyond = np.hypot(x[around] - across, y[around] - down) - radius - EDGE
        cover = torch.special.erfc(torch.from_numpy(beyond / (EDGE_WIDTH * 2**0.5))).numpy()[..., None] / 2
        colour = 255 * np.array(colorsys.hsv_to_rgb(2 * round(150 * number / 16) / 360, 1, 1))
        pixels[around] = np.rint(pixels[around] + cover * (colour - pixels[around]))
    return PIL.Image.fromarray(pixels)


def face_outline(landmarks: np.ndarray) -> np.ndarray:
    """Returns the outline of the face up to the hairline, (points, 2)."""
    if len(landmarks) == 478:
        return landmarks[list(OVAL_478)]
    jaw = landmarks[list(JAW[68])]
    centre, half_width = (jaw[0] + jaw[16]) / 2, (jaw[16] - jaw[0]) / 2
    angles = np.linspace(0, np.pi, 15)[1:-1, None]
    forehead = centre + half_width * np.cos(angles) + FOREHEAD_HEIGHT * (centre - jaw[8]) * np.sin(angles)
    return np.concatenate([jaw, forehead]).astype(np.float32)


def subpixel(points: np.ndarray) -> np.ndarray:
    return np.round(points.astype(np.float64) * SUBPIXELS) / SUBPIXELS


def filled(outline: np.ndarray, size: int) -> np.ndarray:
    """Returns (size, size) bool, True inside an outline (points, 2) as OpenCV fills it: between the edges in
    each row, with corners moved to whole rows, and on the line of pixels along each edge."""
    # 1. Rows: (size, edges) crossings, sorted, in pairs of left and right
    rows, columns = np.arange(size)[:, None], np.arange(size)
    x0, y0 = outline[:, 0], np.floor(outline[:, 1] + 0.5)
    x1, y1 = np.roll(x0, -1), np.roll(y0, -1)
    crosses = (y0 <= rows) != (y1 <= rows)
    slope = (x1 - x0) / np.where(y1 == y0, 1, y1 - y0)
    crossings = np.sort(np.where(crosses, x0 + (rows - y0) * slope, np.inf), 1)
    area = np.zeros((size, size), bool)
    for left, right in zip(crossings.T[::2], crossings.T[1::2], strict=False):
        area |= (np.ceil(left)[:, None] <= columns) & (columns <= np.floor(right)[:, None])

    # 2. Edges
    corners = np.floor(outline + 0.5).astype(int)
    for start, end in zip(corners, np.roll(corners, -1, 0), strict=True):
        if start[0] > end[0]:
            start, end = end, start
        length = np.abs(end - start)
        steps = np.arange(length.max() + 1)[:, None]
        # Bresenham: a pixel for each step along the longer direction, halves rounded down
        offset = np.ceil(steps * length / max(length.max(), 1) - 0.5).astype(int)
        line = start + offset * np.sign(end - start)
        column, row = line[((line >= 0) & (line < size)).all(1)].T
        area[row, column] = True
    return area
