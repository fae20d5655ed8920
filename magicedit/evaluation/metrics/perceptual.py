"""Learned distances whose networks need a download: skipped, with the reason, if they are missing."""

from collections.abc import Callable, Iterable

import numpy as np

from magicedit.errors import MissingDependencyError

FID_LEAST = 500  # pictures of each kind: with fewer, statistics of 2,048 features mean nothing


def load_lpips() -> Callable[[np.ndarray, np.ndarray], float]:
    """LPIPS between two (height, width, 3) uint8 pictures, 0 for equal ones (Zhang et al. 2018,
    arXiv:1801.03924, AlexNet).

    Raises MissingDependencyError where torchvision or the network's weights are missing; the message says
    which.
    """
    try:
        import torch
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        network = LearnedPerceptualImagePatchSimilarity(net_type="alex", normalize=True).eval()
    except Exception as error:  # any error of packages, torchvision's operators and downloads
        raise MissingDependencyError(f"LPIPS: {_first_line(error)}") from error

    @torch.no_grad()
    def distance(before: np.ndarray, after: np.ndarray) -> float:
        pair = [torch.from_numpy(p.copy()).permute(2, 0, 1)[None].float() / 255 for p in (before, after)]
        return float(network(*pair))

    return distance


def load_fid() -> Callable[[Iterable[np.ndarray], Iterable[np.ndarray]], float]:
    """Fréchet inception distance of two sets of (height, width, 3) uint8 pictures, 0 for equal statistics
    (Heusel et al. 2017, arXiv:1706.08500). Below `FID_LEAST` pictures it means nothing.

    Raises MissingDependencyError where torch-fidelity or its weights are missing.
    """
    try:
        import torch
        from torchmetrics.image.fid import FrechetInceptionDistance

        FrechetInceptionDistance(feature=2048)
    except Exception as error:
        raise MissingDependencyError(f"FID: {_first_line(error)}") from error

    def distance(real: Iterable[np.ndarray], edited: Iterable[np.ndarray]) -> float:
        metric = FrechetInceptionDistance(feature=2048)
        for pictures, is_real in ((real, True), (edited, False)):
            for picture in pictures:
                metric.update(torch.from_numpy(picture.copy()).permute(2, 0, 1)[None], real=is_real)
        return float(metric.compute())

    return distance


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
