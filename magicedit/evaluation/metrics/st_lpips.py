"""Shift-tolerant LPIPS with AlexNet: a learned distance whose weights come with a package.

LPIPS (Zhang et al. 2018, arXiv:1801.03924) compares the features of a classifier at five depths, weighted as
people judged. This is its shift-tolerant version (Ghildyal and Liu 2022, arXiv:2207.13686): the same five
layers and weightings, learned again with a stride of 1 in the first layer and a blur before each halving.
Its figures are not those of LPIPS and are not compared with them. The wheel `stlpips-pytorch` (BSD-2) has the
weights of both parts; its modules, which need torchvision, are not imported.
"""

import functools
import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from magicedit.errors import MissingDependencyError, ModelError

PACKAGE, WEIGHTS = "stlpips_pytorch", Path("weights/vST0.0/alex_shift_tolerant.pth")
SMALLEST = 32  # px a side: four halvings and an 11 px kernel leave less than a pixel of smaller pictures
REMEMBERED = 4  # pictures whose features are kept, 3 MB each at 128 px
_CHANNELS = (64, 192, 384, 256, 256)
# Our layer -> its name in the weights' file
_LAYERS = {f"features.{n}": f"net.slice{n + 1}.{place}" for n, place in enumerate((0, 5, 9, 11, 13))}
_WEIGHTINGS = {f"weightings.{n}": f"lin{n}.model.1" for n in range(len(_CHANNELS))}
# Mean and deviation of ImageNet's pictures, of pixels -1 to 1
_MEAN, _DEVIATION = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


class STLPIPS(nn.Module):
    """Distance of two batches of pictures (batch, 3, height, width), -1 to 1 -> (batch,); 0: equal."""

    def __init__(self):
        super().__init__()
        shapes = ((3, 11, 2), (64, 5, 2), (192, 3, 1), (384, 3, 1), (256, 3, 1))
        self.features = nn.ModuleList(
            nn.Conv2d(channels, out, size, padding=padding)
            for (channels, size, padding), out in zip(shapes, _CHANNELS, strict=True)
        )
        self.weightings = nn.ModuleList(nn.Conv2d(channels, 1, 1, bias=False) for channels in _CHANNELS)
        self.register_buffer("mean", torch.tensor(_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(_DEVIATION).view(1, 3, 1, 1), persistent=False)

    def forward(self, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        return self.compare(self.layers(before), self.layers(after))

    def compare(self, before: list[torch.Tensor], after: list[torch.Tensor]) -> torch.Tensor:
        """Returns distances (batch,) of two results of `layers`."""
        total = before[0].new_zeros(len(before[0]))
        for a, b, weighting in zip(before, after, self.weightings, strict=True):
            squares = (_unit(a) - _unit(b)) ** 2  # (batch, channels, height, width)
            total = total + weighting(squares).mean((1, 2, 3))
        return total

    def layers(self, pictures: torch.Tensor) -> list[torch.Tensor]:
        """The five features of each picture, after their rectifiers."""
        first, *others = self.features
        x = _blurred_half(first((pictures - self.mean) / self.deviation)).relu()
        found = [x]
        for depth, layer in enumerate(others, start=1):
            if depth < 3:  # the last two follow at the same resolution
                x = _blurred_half(nn.functional.max_pool2d(x, 3, stride=1))
            x = layer(x).relu()
            found.append(x)
        return found


def _blurred_half(x: torch.Tensor) -> torch.Tensor:
    """Every second pixel of (batch, channels, height, width) after a binomial blur; borders are mirrored."""
    line = x.new_tensor((0.25, 0.5, 0.25))
    kernel = (line[:, None] * line).expand(x.shape[1], 1, 3, 3)
    padded = nn.functional.pad(x, (2, 2, 2, 2), mode="reflect")
    return nn.functional.conv2d(padded, kernel, stride=2, groups=x.shape[1])


def _unit(features: torch.Tensor) -> torch.Tensor:
    return features / (features.norm(dim=1, keepdim=True) + 1e-10)


def load_st_lpips() -> Callable[[np.ndarray, np.ndarray], float]:
    """ST-LPIPS between two (height, width, 3) uint8 pictures of one size, 0 for equal ones.

    The features of the last few first pictures are cached, because one photograph has many edits.

    Raises:
        MissingDependencyError: where the extra `lpips` is not installed.
        ModelError: where its weights are not the expected ones.
    """
    found = importlib.util.find_spec(PACKAGE)  # finds the package without importing it
    path = Path(found.submodule_search_locations[0]) / WEIGHTS if found else None
    if path is None or not path.is_file():
        raise MissingDependencyError("ST-LPIPS needs the lpips extra: pip install 'magicedit[lpips]'")
    weights = torch.load(path, map_location="cpu", weights_only=True)
    network = STLPIPS().eval().requires_grad_(False)
    names = {}  # ours -> theirs
    for name in network.state_dict():
        layer, _, kind = name.rpartition(".")
        names[name] = f"{(_LAYERS | _WEIGHTINGS)[layer]}.{kind}"
    try:
        network.load_state_dict({name: weights[theirs] for name, theirs in names.items()})
    except (KeyError, RuntimeError) as error:
        raise ModelError(
            f"{path.name} of stlpips-pytorch has other weights than expected: {error}"
        ) from error

    @torch.no_grad()
    def layers_of(content: bytes, shape: tuple[int, ...]) -> list[torch.Tensor]:
        picture = torch.frombuffer(bytearray(content), dtype=torch.uint8).reshape(shape)
        return network.layers(picture.permute(2, 0, 1)[None].float() / 127.5 - 1)

    remembered = functools.lru_cache(maxsize=REMEMBERED)(layers_of)

    @torch.no_grad()
    def distance(before: np.ndarray, after: np.ndarray) -> float:
        if before.shape != after.shape or min(before.shape[:2]) < SMALLEST:
            raise ValueError(
                f"expected two pictures of one size from {SMALLEST} px on, got {before.shape}, {after.shape}"
            )
        first = remembered(before.tobytes(), before.shape)
        return float(network.compare(first, layers_of(after.tobytes(), after.shape)))

    return distance
