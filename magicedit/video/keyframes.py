"""Key frames: the model runs on some frames of a face; its changes in between are interpolated in the crop.

A change is a flow, a mask and paint in the coordinates of the face's crop, where the head's own movement does
not show, so that it varies slowly. Landmarks and requests of all frames are known before the model runs; they
tell where it varies faster.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from magicedit.change import Change
from magicedit.errors import VideoError
from magicedit.video.smoothing import within


@dataclass(frozen=True)
class KeyFrames:
    """On which frames of a face the model runs.

    Always on the first and the last of a face and of a batch of frames (8, fewer if they are large).

    Attributes:
        most: frames from one to the next, at most; 1: the model runs on every frame.
        landmarks: in sides of the crop, how far a landmark of a frame in between may be from its place by
            interpolation, in x or y.
        request: in intensity steps, the same of requested variations.

    Raises:
        VideoError: where `most` is below 1 or a tolerance is not above 0.
    """

    most: int = 4
    landmarks: float = 0.008
    request: float = 0.25

    def __post_init__(self) -> None:
        if self.most < 1 or not (self.landmarks > 0 and self.request > 0):
            raise VideoError(f"key frames need `most` of at least 1 and tolerances above 0, got {self}")

    def position(self, landmarks: np.ndarray | None, request: np.ndarray) -> np.ndarray:
        """Returns what is compared with its interpolation, (values,) in units of its tolerance.

        landmarks: (points, 2) in sides of the crop; None: they are the same in all frames. request: in steps.
        """
        places = np.zeros(0) if landmarks is None else landmarks.ravel() / self.landmarks
        return np.concatenate([places, request / self.request]).astype(np.float32)

    def choose(self, times: Sequence[float], positions: np.ndarray) -> list[int]:
        """Returns the indices of the key frames, the first and the last included.

        times: seconds. positions: (frames, values), see `position`. A stretch whose worst frame is beyond
        the tolerance is divided there (U. Ramer, "An iterative procedure for the polygonal approximation of
        plane curves", 1972).
        """
        keys = {0, len(times) - 1}
        stretches = [(0, len(times) - 1)]
        while stretches:
            first, last = stretches.pop()
            inner = np.arange(first + 1, last)
            if not len(inner):
                continue
            share = (np.take(times, inner) - times[first]) / (times[last] - times[first])
            straight = positions[first] + share[:, None] * (positions[last] - positions[first])
            off = np.abs(positions[inner] - straight).max(1, initial=0)
            if off.max() > 1:
                middle = int(inner[off.argmax()])
            elif last - first > self.most:
                middle = (first + last) // 2
            else:
                continue
            keys.add(middle)
            stretches += [(first, middle), (middle, last)]
        return sorted(keys)


@dataclass(frozen=True, eq=False)
class _Key:
    """A key frame: run of the face, seconds, position, and the model's change; None: it leaves the face."""

    run: int
    time: float
    position: np.ndarray
    change: Change | None


class KeyedChanges:
    """Changes of the faces of a film from those of their key frames.

    For each batch and face, `plan` tells on which frames the model runs, then `fill` returns the changes of
    all frames.
    """

    def __init__(self, settings: KeyFrames):
        self.settings = settings
        self._last: dict[int, _Key] = {}  # by face: the key frame with which the batch before ended

    def plan(
        self, face: int, runs: Mapping[int, int], times: Sequence[float], positions: Mapping[int, np.ndarray]
    ) -> list[int]:
        """Returns the indices of the batch's frames on which the model runs.

        Args:
            runs: index of each edited frame, ascending -> the run of the face.
            times: seconds of all frames of the batch.
            positions: index of each edited frame -> `KeyFrames.position`.
        """
        keys: list[int] = []
        for stretch in _stretches(runs):
            before = self._before(face, stretch, runs)
            known = [] if before is None else [before]
            stamps = [key.time for key in known] + [times[i] for i in stretch]
            path = np.stack([key.position for key in known] + [positions[i] for i in stretch])
            chosen = self.settings.choose(stamps, path)
            keys += [stretch[i - len(known)] for i in chosen if i >= len(known)]
        return keys

    def fill(
        self,
        face: int,
        runs: Mapping[int, int],
        times: Sequence[float],
        positions: Mapping[int, np.ndarray],
        changes: Mapping[int, Change | None],
    ) -> dict[int, Change | None]:
        """Returns the change of each edited frame by index, from those of the planned frames.

        None where one of the two key frames around a frame has none.
        """
        filled: dict[int, Change | None] = {}
        for stretch in _stretches(runs):
            earlier = self._before(face, stretch, runs)
            waiting: list[int] = []
            for i in stretch:
                if i not in changes:
                    waiting.append(i)
                    continue
                key = _Key(runs[i], times[i], positions[i], changes[i])
                for between in waiting:
                    filled[between] = _interpolated(earlier, key, times[between])
                filled[i], earlier, waiting = key.change, key, []
            self._last[face] = earlier
        if len(times) - 1 not in runs:
            self._last.pop(face, None)
        return filled

    def _before(self, face: int, stretch: Sequence[int], runs: Mapping[int, int]) -> _Key | None:
        """Returns the key frame before the batch where a stretch continues from it."""
        last = self._last.get(face)
        return last if last is not None and stretch[0] == 0 and runs[0] == last.run else None

    def state(self) -> dict[str, np.ndarray]:
        state = {}
        for face, key in self._last.items():
            parts = {"run": np.int64(key.run), "time": np.float64(key.time), "position": key.position}
            parts |= {} if key.change is None else vars(key.change)
            state |= {f"{face}/{name}": value for name, value in parts.items()}
        return state

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        for face in {name.partition("/")[0] for name in state}:
            parts = within(state, face)
            change = Change(parts["flow"], parts["mask"], parts["paint"]) if "flow" in parts else None
            self._last[int(face)] = _Key(int(parts["run"]), float(parts["time"]), parts["position"], change)


def _stretches(runs: Mapping[int, int]) -> list[list[int]]:
    """Divides ascending indices where one is missing or the run changes."""
    stretches: list[list[int]] = []
    for i, run in runs.items():
        if stretches and stretches[-1][-1] == i - 1 and runs[i - 1] == run:
            stretches[-1].append(i)
        else:
            stretches.append([i])
    return stretches


def _interpolated(earlier: _Key, later: _Key, time: float) -> Change | None:
    if earlier.change is None or later.change is None:
        return None
    share = np.float32((time - earlier.time) / (later.time - earlier.time))
    parts = zip(vars(earlier.change).values(), vars(later.change).values(), strict=True)
    return Change(*(a + share * (b - a) for a, b in parts))
