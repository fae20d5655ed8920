"""Flicker: the frame-to-frame change of a face in the output relative to the input."""

from dataclasses import dataclass

import cv2
import numpy as np

from magicedit.faces import Face
from magicedit.faces.regions import face_oval


@dataclass(frozen=True)
class Flicker:
    """Result of `FlickerMeter`.

    input, output: mean absolute difference of consecutive frames within the face, levels of 255. pairs:
    number of compared frame pairs; a pair counts once per face.
    """

    input: float
    output: float
    pairs: int

    @property
    def ratio(self) -> float | None:
        """Output over input; None if the input does not change or nothing was compared."""
        return self.output / self.input if self.pairs and self.input > 0 else None

    def to_json(self) -> dict[str, float | int | None]:
        ratio = self.ratio
        return {
            "ratio": None if ratio is None else round(ratio, 4),
            "input_levels": round(self.input, 4),
            "output_levels": round(self.output, 4),
            "pairs": self.pairs,
        }


class FlickerMeter:
    """Compares consecutive frames of input and output, before the output is encoded.

    For a face in frames t - 1 and t of the same scene, it takes the mean of |x_t - x_(t-1)| over the pixels
    within the face's outline in frame t (hairline to chin) and over R, G and B, for the decoded input and for
    the output. The figures are means over all such pairs. Their ratio is 1 if the edit adds no temporal
    change to the input's own (noise, movement of the head, talking). A requested change of expression raises
    it too.
    """

    def __init__(self) -> None:
        self._sums = np.zeros(3)  # input, output, pairs
        self._before: tuple[np.ndarray, np.ndarray] | None = None
        self._faces: set[str] = set()

    def add(self, pixels: np.ndarray, edited: np.ndarray, faces: dict[str, Face]) -> None:
        """Adds the next frame, RGB (height, width, 3) uint8 each, with its edited faces.

        faces: by name; frames are compared as long as the name stays the same.
        """
        for name, face in faces.items():
            if self._before is None or name not in self._faces:
                continue
            window, inside = face_window(face, pixels.shape)
            if window is None:
                continue
            means = [
                cv2.mean(cv2.absdiff(now[window], then[window]), inside)[:3]
                for now, then in zip((pixels, edited), self._before, strict=True)
            ]
            self._sums += (*np.mean(means, axis=1), 1)
        self._before, self._faces = (pixels, edited), set(faces)

    def result(self) -> Flicker:
        pairs = int(self._sums[2])
        return Flicker(*(float(total) / max(pairs, 1) for total in self._sums[:2]), pairs)

    def state(self) -> dict[str, np.ndarray]:
        """Returns the state from which `restore` resumes exactly."""
        state = {"sums": self._sums, "faces": np.array(sorted(self._faces), dtype=np.str_)}
        if self._before is not None:
            state |= {"input": self._before[0], "output": self._before[1]}
        return state

    def restore(self, state: dict[str, np.ndarray]) -> None:
        self._sums = state["sums"].copy()
        self._faces = set(state["faces"].tolist())
        if "input" in state:
            self._before = state["input"], state["output"]


def face_window(face: Face, shape: tuple[int, ...]) -> tuple[tuple[slice, slice] | None, np.ndarray | None]:
    """Returns rows and columns around a face in a picture, and the mask within, uint8, 255 in its outline.

    Returns (None, None) if the face is outside the picture.
    """
    outline = face_oval(face.landmarks, face.scheme)
    left, top = np.floor(outline.min(0)).astype(int).clip(0)
    right, bottom = (np.ceil(outline.max(0)).astype(int) + 1).clip(0, (shape[1], shape[0]))
    if right <= left or bottom <= top:
        return None, None
    mask = np.zeros((bottom - top, right - left), np.uint8)
    cv2.fillPoly(mask, [np.rint(outline - (left, top)).astype(np.int32)], 255)
    return ((slice(top, bottom), slice(left, right)), mask) if mask.any() else (None, None)
