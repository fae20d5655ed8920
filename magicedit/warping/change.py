"""Carrying a model's edit of a small crop to the full-resolution photograph.

An upsampled difference image leaves ghosts of lips and brows at their old place. Moving the photograph's own
pixels by the upsampled flow leaves none and keeps their resolution (the flow upsampling of Yeh et al. 2016,
arXiv:1611.09961). New content, such as teeth, is painted through a mask.
"""

from functools import partial
from typing import TYPE_CHECKING

import cv2
import numpy as np

from magicedit.change import Change, no_change

if TYPE_CHECKING:
    from magicedit.faces import Alignment

# Colour difference (of 1, mean over channels) not explained by movement: below the first nothing is painted,
# above the second everything. JPEG noise and interpolation stay below the first.
UNEXPLAINED = (0.04, 0.12)
CONTRAST = 4.0


def join_sides(left: Change, right: Change, left_share: np.ndarray) -> Change:
    """Joins one change on the subject's left with another on their right.

    left_share: (size, size), 1 on the left to 0 on the right. Paint is weighted by the visible share of each.
    """
    shares = left_share * left.mask, (1 - left_share) * right.mask  # (size, size) each
    mask = shares[0] + shares[1]
    painted = shares[0][..., None] * left.paint + shares[1][..., None] * right.paint
    paint = np.where(mask[..., None] > 1e-6, painted / np.maximum(mask, 1e-6)[..., None], left.paint)
    flow = left_share[..., None] * left.flow + (1 - left_share[..., None]) * right.flow
    return Change(flow.astype(np.float32), mask.astype(np.float32), paint.astype(np.float32))


def estimate_change(source: np.ndarray, edited: np.ndarray) -> Change:
    """Estimates the change between crops, for models that predict pixels: flow, and paint where it fails.

    source, edited: (size, size, 3) uint8 RGB. The flow is DIS optical flow (Kroeger et al. 2016,
    arXiv:1603.03590); the mask opens where moving the source leaves a colour difference, see UNEXPLAINED.
    Equal crops give a zero change.
    """
    for name, crop in (("source", source), ("edited", edited)):
        if crop.dtype != np.uint8 or crop.ndim != 3 or crop.shape != source.shape or crop.shape[2] != 3:
            raise ValueError(f"{name} must be uint8 {source.shape[:2]} x 3, got {crop.dtype} {crop.shape}")
    paint = edited.astype(np.float32) / 255
    size = len(source)
    if np.array_equal(source, edited):
        return no_change(size)
    grey = [cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY) for crop in (edited, source)]
    estimator = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    estimator.setFinestScale(0)
    flow = estimator.calc(*grey, None)  # (size, size, 2): edited(p) is source(p + flow)
    moved = _read(source.astype(np.float32) / 255, flow, cv2.INTER_LINEAR)
    unexplained = np.abs(moved - paint).mean(-1)
    low, high = UNEXPLAINED
    mask = np.clip((unexplained - low) / (high - low), 0, 1)
    mask = cv2.GaussianBlur(cv2.dilate(mask, np.ones((3, 3), np.uint8)), (0, 0), 1.0)
    return Change(flow.astype(np.float32), mask.astype(np.float32), paint)


def carry_change(
    pixels: np.ndarray,
    alignment: "Alignment",
    change: Change,
    region: np.ndarray,
    *,
    in_place: bool = False,
) -> np.ndarray:
    """Applies a `change` of a crop to the full photograph.

    Args:
        pixels: the photograph, (height, width, 3) uint8 RGB.
        alignment: of the crop, of the change's size.
        region: (size, size) float32, 0..1, in the crop: weight of the change. Flow and mask fade with it,
            which avoids seams and double images.
        in_place: whether `pixels` itself is changed.

    Returns:
        a new photograph, or `pixels`; where the region is 0 it equals `pixels` to the byte, and only the
        rectangle around the region is computed.

    Raises:
        ValueError: where sizes differ.
    """
    size = alignment.size
    if region.shape != (size, size) or change.mask.shape != (size, size):
        raise ValueError(
            f"change and region must have the alignment's size {size}, "
            f"got {change.mask.shape} and {region.shape}"
        )
    result = pixels if in_place else pixels.copy()
    window = window_of(region > 0, alignment, pixels.shape)
    if window is None:
        return result
    x0, y0, x1, y1 = window

    # 1. Upsample the change to the photograph
    upsample = partial(upsampled, alignment=alignment, window=window)
    flow, weight = weighted_flow(change, region, alignment, window)

    # 2. Move the photograph's own pixels, from as far around the rectangle as the flow reaches
    reach = int(np.ceil(np.abs(flow).max(initial=0))) + 4
    left, top = max(x0 - reach, 0), max(y0 - reach, 0)
    around = pixels[top : y1 + reach, left : x1 + reach]
    moved = _read(around, flow, cv2.INTER_CUBIC, (x0 - left, y0 - top))  # (height, width, 3) uint8

    # 3. Paint new content
    if change.mask.any():
        mask = sharpened(np.clip(upsample(change.mask), 0, 1)) * weight
        painted = mask > 0
        paint = np.clip(upsample(change.paint), 0, 1) * 255
        blended = moved + in_channels(mask) * (paint - moved)
        moved = np.where(painted[..., None], np.rint(blended).astype(np.uint8), moved)

    replace_where(result[y0:y1, x0:x1], moved, weight > 0)
    return result


def in_channels(values: np.ndarray, count: int = 3) -> np.ndarray:
    """Returns values (h, w) as (h, w, count), dense: NumPy broadcasts a last axis several times slower."""
    return cv2.merge([np.ascontiguousarray(values)] * count)


def replace_where(picture: np.ndarray, other: np.ndarray, where: np.ndarray) -> None:
    """Replaces pixels of a picture (h, w, 3) uint8 by those of another one, where (h, w) bool says so."""
    cv2.copyTo(other, where.view(np.uint8), picture)


def sharpened(mask: np.ndarray) -> np.ndarray:
    """Returns a mask 0..1 with log-odds scaled by CONTRAST, towards 0 and 1; 0, 1/2 and 1 stay.

    After upsampling from a small crop, the edge between skin and paint is as wide as the crop's pixels.
    Sharpening then narrows it without steps, and drops paint of low confidence.
    """
    yes, no = mask**CONTRAST, (1 - mask) ** CONTRAST
    return yes / (yes + no)


def upsampled(
    values: np.ndarray,
    alignment: "Alignment",
    window: tuple[int, int, int, int],
    interpolation: int = cv2.INTER_CUBIC,
) -> np.ndarray:
    """Values (size, size, ...) of a crop at pixels x0, y0, x1, y1 of the photograph; 0 beyond the crop."""
    x0, y0, x1, y1 = window
    to_crop = alignment.matrix.copy()  # the photograph's pixel p lies at matrix (p, 1) of the crop
    to_crop[:, 2] += to_crop[:, :2] @ (x0, y0)
    return cv2.warpAffine(
        np.ascontiguousarray(values, np.float32),
        to_crop,
        (x1 - x0, y1 - y0),
        flags=interpolation | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT,
    )


def weighted_flow(
    change: Change, region: np.ndarray, alignment: "Alignment", window: tuple[int, int, int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the flow of a change over a window, (h, w, 2) in pixels of the photograph, faded by the weight
    of the region (size, size), and that weight, (h, w) 0..1."""
    weight = np.clip(upsampled(region, alignment, window, cv2.INTER_LINEAR), 0, 1)
    to_photo = np.linalg.inv(alignment.matrix[:, :2]).astype(np.float32)
    return upsampled(change.flow, alignment, window) @ to_photo.T * in_channels(weight, 2), weight


def window_of(
    where: np.ndarray, alignment: "Alignment", shape: tuple[int, ...]
) -> tuple[int, int, int, int] | None:
    """Returns x0, y0, x1, y1 of the photograph around the True area of a crop; None if nothing is True."""
    rows, columns = np.nonzero(where)
    if not len(rows):
        return None
    x0, x1, y0, y1 = columns.min() - 1, columns.max() + 1, rows.min() - 1, rows.max() + 1
    corners = np.array([(x0, y0), (x1, y0), (x0, y1), (x1, y1)], float)
    inverse = alignment.inverse()
    corners = corners @ inverse[:, :2].T + inverse[:, 2]
    low = np.floor(corners.min(0)).astype(int).clip(0, (shape[1], shape[0]))
    high = (np.ceil(corners.max(0)).astype(int) + 1).clip(0, (shape[1], shape[0]))
    return (int(low[0]), int(low[1]), int(high[0]), int(high[1])) if (high > low).all() else None


def _read(
    pixels: np.ndarray, flow: np.ndarray, interpolation: int, offset: tuple[int, int] = (0, 0)
) -> np.ndarray:
    """`pixels` read at every place of `flow`'s grid, which starts at `offset`, plus the flow."""
    height, width = flow.shape[:2]
    x = np.arange(width, dtype=np.float32) + offset[0] + flow[..., 0]
    y = np.arange(height, dtype=np.float32)[:, None] + offset[1] + flow[..., 1]
    return cv2.remap(
        pixels, x.astype(np.float32), y.astype(np.float32), interpolation, borderMode=cv2.BORDER_REFLECT_101
    )
