"""Similarity of two crops: by structure, and pixel by pixel."""

import math

import numpy as np

from magicedit.errors import needs_extra


def ssim(before: np.ndarray, after: np.ndarray) -> float:
    """Structural similarity of two pictures (height, width, 3) uint8: at most 1, for equal ones.

    Wang et al. 2004, with its 11 px Gaussian window, by torchmetrics. An edit that was asked for lowers it:
    like identity, it says nothing without the change that was achieved.
    """
    with needs_extra("evaluation", "SSIM needs the evaluation extra"):
        from torchmetrics.functional.image import structural_similarity_index_measure
    import torch

    pair = [torch.from_numpy(picture.copy()).permute(2, 0, 1)[None] / 255 for picture in (before, after)]
    return float(structural_similarity_index_measure(*pair, data_range=1.0))


def psnr(first: np.ndarray, second: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two uint8 pictures of one shape, dB; infinite for equal ones.

    It rewards a blur: of two candidates, the one without the details that it might misplace is nearer.
    """
    error = float(np.square(first.astype(float) - second.astype(float)).mean())
    return 10 * math.log10(255**2 / error) if error else math.inf


def finite_psnr(first: np.ndarray, second: np.ndarray) -> float | None:
    """`psnr`; None for equal pictures."""
    found = psnr(first, second)
    return found if math.isfinite(found) else None
