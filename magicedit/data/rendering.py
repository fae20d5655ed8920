"""Makes a training sample of two photographs and a draw, wherever the photographs come from."""

import io
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from PIL import Image

from magicedit import warping
from magicedit.data.drawing import Draw, PairSettings
from magicedit.errors import reason_of
from magicedit.faces import condition_image
from magicedit.faces.regions import face_oval, jaw_contour
from magicedit.faces.types import LANDMARK_COUNTS, Scheme
from magicedit.imaging import to_tensor

REAL, WARPED = 0, 1


@dataclass(frozen=True, eq=False)
class Photograph:
    """A picture to make samples of: pixels (working_size, working_size, 3) uint8 RGB, landmarks (points, 2)
    float32 px of them."""

    pixels: np.ndarray
    landmarks: np.ndarray

    @property
    def nbytes(self) -> int:
        return self.pixels.nbytes + self.landmarks.nbytes


class _Warp(NamedTuple):
    """A warped picture and its landmarks (points, 2) px; flow and opened as of `warping.backward_flow`."""

    pixels: np.ndarray
    landmarks: np.ndarray
    flow: np.ndarray | None = None
    opened: np.ndarray | None = None


class PairRenderer:
    """Makes samples of photographs, as `magicedit.data.PairDataset` describes them.

        renderer = PairRenderer(settings)
        source = renderer.photograph(jpeg, landmarks)
        sample = renderer.sample(draw, source, target)

    memory: bytes of displacement fields and correspondences that may be cached, by the numbers of the
    photographs in the draws.
    """

    def __init__(self, settings: PairSettings, memory: int = 0) -> None:
        self.settings, self._held = settings, Held(memory)
        self._size = size = settings.working_size
        self._related = settings.relations and settings.scheme == "mediapipe478"
        self._mouths = warping.embedded_mouths() if settings.teeth else ()
        # Coarser for large pictures: the fields are smooth, and a grid of about 32 resolves them.
        self._stride = next((s for s in (16, 8, 4, 2) if size % s == 0 and size // s >= 24), 1)
        self._mirror_order = _mirror_order(settings.scheme)

    def photograph(self, content: bytes, landmarks: np.ndarray, size: int | None = None) -> Photograph:
        """Decodes a stored picture.

        landmarks: (points, 2) px of the stored picture. size: another side than the working size, in px.
        Raises ValueError, in a few words, where the picture cannot be used.
        """
        size, stored = size or self._size, self.settings.crop_size
        placed = (landmarks + 0.5) * (size / stored) - 0.5  # pixel centres at whole numbers
        return Photograph(_resized(decoded(content, stored), size), placed)

    def unmodified(self, content: bytes, landmarks: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """A stored picture and its condition image, (3, resolution, resolution) in [-1, 1]; ValueError as
        `photograph`."""
        found = self.photograph(content, landmarks, self.settings.resolution)
        condition = condition_image(found.pixels, found.landmarks, self.settings.scheme)
        return to_tensor(found.pixels), to_tensor(condition)

    def sample(self, draw: Draw, source: Photograph, target: Photograph) -> dict[str, Any]:
        """Returns the sample of a draw and its photographs, see `magicedit.data.PairDataset`."""
        correspondence = fields = None
        if not draw.warped and self._related and draw.source != draw.target:
            correspondence = self._held.get(
                ("correspondence", draw.source, draw.target),
                lambda: warping.correspond(
                    source.pixels, source.landmarks, target.pixels, target.landmarks,
                    match_tone=self.settings.augment,
                ),
            )  # fmt: skip
        if draw.source_command.any() or draw.target_command.any():
            fields = self._held.get(
                ("fields", draw.source),
                lambda: warping.displacement_fields(
                    source.landmarks, self._size, self.settings.action_units, self._stride, np.float32
                ),
            )
        tone = np.ones(3) if correspondence is None else correspondence.tone
        first = self._warped(source, draw.source_command, fields, draw.mouth)
        same = draw.source == draw.target and np.array_equal(draw.source_command, draw.target_command)
        second = first if same else self._warped(target, draw.target_command, fields, draw.mouth)
        source_pixels, source_landmarks = self._finished(first, np.ones(3), draw)
        target_pixels, target_landmarks = self._finished(second, tone, draw)
        described, landmarks = (
            (source_pixels, source_landmarks) if draw.warped else (target_pixels, target_landmarks)
        )
        condition = condition_image(described, landmarks, self.settings.scheme)
        relation = {}
        if self.settings.relations:
            names = ("flow", "mask", "weight")
            values = self._relation(draw, second, correspondence, same)
            relation = dict(zip(names, map(torch.from_numpy, values), strict=True))
        return relation | {
            "source": to_tensor(source_pixels),
            "target": to_tensor(target_pixels),
            "condition": to_tensor(condition),
            "au_delta": torch.from_numpy(draw.au_delta.copy()),
            "kind": WARPED if draw.warped else REAL,
            "source_index": draw.source,
            "target_index": draw.target,
        }

    def _warped(
        self, photograph: Photograph, command: np.ndarray, fields: np.ndarray | None, mouth: int | None
    ) -> _Warp:
        """A photograph warped by a command."""
        if not command.any():
            return _Warp(photograph.pixels, photograph.landmarks)
        teeth = None if mouth is None else self._mouths[mouth]
        pixels, flow, opened = warping.warp_with_flow(
            photograph.pixels, fields, command, photograph.landmarks, teeth
        )
        landmarks = warping.warp_landmarks(photograph.landmarks, fields, command, self._stride)
        return _Warp(pixels, landmarks, flow, opened)

    def _finished(self, warp: _Warp, tone: np.ndarray, draw: Draw) -> tuple[np.ndarray, np.ndarray]:
        """A warped picture, placed, mirrored and toned as drawn, and its landmarks there."""
        pixels, landmarks = self._placed(warp.pixels, draw), warp.landmarks
        if draw.matrix is not None:
            landmarks = landmarks @ draw.matrix[:, :2].T + draw.matrix[:, 2]
        if draw.flip:  # those that the condition image needs
            landmarks = landmarks[self._mirror_order]
            landmarks[:, 0] = self.settings.resolution - 1 - landmarks[:, 0]
        if draw.matrix is not None:
            values = (np.arange(256)[None, :, None] * tone / 127.5 - 1) * draw.gain + draw.bias
            pixels = cv2.LUT(pixels, np.rint((values.clip(-1, 1) + 1) * 127.5).astype(np.uint8))
        return pixels, landmarks

    def _relation(
        self, draw: Draw, target: _Warp, correspondence: warping.Correspondence | None, same: bool
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns flow, mask and weight of a pair. same: whether its pictures are."""
        size = self._size
        flow, mask = np.zeros((size, size, 2), np.float32), np.zeros((size, size), np.float32)
        weight = np.ones((size, size), np.float32)
        if correspondence is not None:
            flow, mask, weight = correspondence.flow, correspondence.mask, correspondence.weight
        elif not same and (not draw.warped or draw.source_command.any()):
            flow[:], mask[:] = np.nan, np.nan
        elif not same:
            flow, mask = target.flow, target.opened
            flow[mask > 0.5] = np.nan
            near = warping.near_lips(target.landmarks, size, "left_eye", "right_eye")
            weight[near] = warping.LIPS_WEIGHT
        flow, mask, weight = (self._placed(values, draw) for values in (flow, mask, weight))
        if draw.matrix is not None:
            turned = draw.matrix[:, :2] * [[-1], [1]] if draw.flip else draw.matrix[:, :2]
            flow = cv2.transform(flow, turned)
        elif draw.flip:
            flow = flow * np.float32([-1, 1])
        return tuple(np.ascontiguousarray(values, np.float32) for values in (flow, mask, weight))

    def _placed(self, values: np.ndarray, draw: Draw) -> np.ndarray:
        """Returns values of a stored picture's pixels, rotated, scaled, shifted and mirrored as drawn."""
        if draw.matrix is not None:
            side = (self.settings.resolution, self.settings.resolution)
            values = cv2.warpAffine(
                values, draw.matrix, side, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
            )
        return values[:, ::-1] if draw.flip else values


class Held:
    """Cache of objects with `nbytes`, up to a number of bytes; evicts the least recently used first."""

    def __init__(self, capacity: int) -> None:
        self._capacity, self._bytes = capacity, 0
        self._arrays: OrderedDict[Any, Any] = OrderedDict()

    def get(self, key: Any, make: Callable[[], Any]) -> Any:
        if key in self._arrays:
            self._arrays.move_to_end(key)
            return self._arrays[key]
        array = make()
        if array.nbytes <= self._capacity:
            self._arrays[key] = array
            self._bytes += array.nbytes
        while self._bytes > self._capacity:
            self._bytes -= self._arrays.popitem(last=False)[1].nbytes
        return array


def decoded(content: bytes, size: int, whole: bool = True) -> np.ndarray:
    """Returns a stored picture, (size, size, 3) uint8 RGB; ValueError where it is none of that size.

    whole: otherwise only whether it can be decoded counts, and a smaller one may be returned.
    """
    if not content:
        raise ValueError("it has no picture")
    try:
        with Image.open(io.BytesIO(content)) as picture:
            if picture.size != (size, size):
                raise ValueError(f"it has {picture.width} x {picture.height} px, expected {size} x {size}")
            if not whole:  # JPEG: several times faster
                picture.draft("RGB", (size // 8, size // 8))
            return np.asarray(picture if picture.mode == "RGB" else picture.convert("RGB"))
    except Exception as error:  # decoders of damaged files raise anything at all
        raise ValueError(f"its picture cannot be used ({reason_of(error, 200)})") from error


def _resized(pixels: np.ndarray, size: int) -> np.ndarray:
    """Reduces a square picture to `size` px a side; the settings ensure that it is no smaller."""
    return pixels if len(pixels) == size else cv2.resize(pixels, (size, size), interpolation=cv2.INTER_AREA)


def _mirror_order(scheme: Scheme) -> np.ndarray:
    """Returns the mirror partner of each landmark of the face's outline; other landmarks map to themselves.

    The condition image colours the jaw from the subject's right to the left, which the mirror swaps.
    """
    order = np.arange(LANDMARK_COUNTS[scheme])
    # Used instead of coordinates: the contours then return landmark numbers
    numbers = np.stack([order, order], axis=1)
    jaw = jaw_contour(numbers, scheme)[:, 0].astype(int)
    order[jaw] = jaw[::-1]
    if scheme == "mediapipe478":  # 68 points have no forehead; their outline comes from the jaw
        oval = face_oval(numbers, scheme)[:, 0].astype(int)  # starts at the top of the forehead
        order[oval] = oval[-np.arange(len(oval))]
    return order
