"""Temporal smoothing: the one-euro filter on a face's position, landmarks, action units, pose and changes.

A low-pass filter whose cutoff grows with speed: steady where little moves, quick where much does (G. Casiez,
N. Roussel, D. Vogel, "1 EUR filter", CHI 2012).
"""

import math
from dataclasses import dataclass, field, replace

import numpy as np

from magicedit.faces import Alignment, Face, Gaze, Pose, align
from magicedit.faces.types import box_around
from magicedit.warping import Change


@dataclass(frozen=True)
class OneEuro:
    """Parameters of the filter.

    min_cutoff: Hz, cutoff at rest; lower means less jitter. beta: Hz per unit a second, growth of the cutoff
    with speed; higher means less lag. derivative_cutoff: Hz, of the low-pass filter of the speed itself.
    """

    min_cutoff: float
    beta: float
    derivative_cutoff: float = 1.0


@dataclass(frozen=True)
class Smoothing:
    """Filter parameters of each smoothed quantity.

    place: of the crop's centre, turn and size, in sides of the crop, radians and natural logarithms.
    landmarks: within the crop, in sides of it. action_units: in intensity steps. pose: of head and gaze, in
    degrees. change: of the model's flow, mask and paint, in sides of the crop and shares of 1; None: not
    smoothed.
    """

    place: OneEuro = OneEuro(min_cutoff=2.0, beta=40.0)
    landmarks: OneEuro = OneEuro(min_cutoff=1.5, beta=30.0)
    action_units: OneEuro = OneEuro(min_cutoff=1.5, beta=0.5)
    pose: OneEuro = OneEuro(min_cutoff=1.5, beta=0.1)
    change: OneEuro | None = OneEuro(min_cutoff=3.0, beta=20.0)


class Filter:
    """Filters a number, or each element of an array; times are in seconds."""

    def __init__(self, parameters: OneEuro):
        self.parameters = parameters
        self._time: float | None = None
        self._value: np.ndarray
        self._speed: np.ndarray

    def __call__(self, value: np.ndarray | float, time: float) -> np.ndarray:
        """Returns the filtered value of a sample at `time`, which must be later than the sample before.

        The first sample is unchanged.
        """
        value = np.asarray(value)
        if self._time is None:
            self._time, self._value, self._speed = time, value, np.zeros_like(value)
            return value
        step = time - self._time
        if not step > 0:
            raise ValueError(f"each sample must be later than the one before, got {step} s after the last")
        speed = (value - self._value) / step  # from the filtered value, as in the paper
        self._speed = self._speed + smoothing_factor(self.parameters.derivative_cutoff, step) * (
            speed - self._speed
        )
        cutoff = self.parameters.min_cutoff + self.parameters.beta * np.abs(self._speed)
        self._value = (self._value + smoothing_factor(cutoff, step) * (value - self._value)).astype(
            value.dtype
        )
        self._speed = self._speed.astype(value.dtype)
        self._time = time
        return self._value

    def state(self) -> dict[str, np.ndarray]:
        """Returns the state for `restore`; empty before the first sample."""
        if self._time is None:
            return {}
        return {"time": np.float64(self._time), "value": self._value, "speed": self._speed}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        if state:
            self._time = float(state["time"])
            self._value, self._speed = state["value"], state["speed"]


def smoothing_factor(cutoff: np.ndarray | float, step: float) -> np.ndarray | float:
    """Weight of a new sample `step` seconds after the last, for a first-order low pass of `cutoff` Hz."""
    return 1 / (1 + 1 / (2 * math.pi * cutoff * step))


@dataclass(eq=False)
class FaceFilter:
    """Smooths one face while it is visible.

    The crop is smoothed first, then the landmarks within it, so that head movement does not move landmarks.
    """

    smoothing: Smoothing
    size: int  # px, side of the crop
    _filters: dict[str, Filter] = field(default_factory=dict)
    _angle: float = 0.0  # radians, of the sample before: angles are unwrapped
    _unit: float = 1.0  # px of the picture per unit: the first crop's side

    def __call__(self, face: Face, time: float) -> tuple[Face, Alignment]:
        """Returns the smoothed face, and the crop in which it is edited."""
        raw = align(face, self.size)
        in_crop = (face.landmarks.astype(np.float64) @ raw.matrix[:, :2].T + raw.matrix[:, 2]) / self.size
        alignment = self._place(raw, time)
        in_crop = self._filter("landmarks", self.smoothing.landmarks, in_crop, time) * self.size
        inverse = alignment.inverse()
        landmarks = (in_crop @ inverse[:, :2].T + inverse[:, 2]).astype(np.float32)
        measured = {**face.action_units, **face.sides}
        values = self._filter(
            f"units {','.join(measured)}", self.smoothing.action_units, np.array([*measured.values()]), time
        )
        by_name = dict(zip(measured, map(float, values), strict=True))
        smooth = replace(
            face,
            box=box_around(landmarks),
            landmarks=landmarks,
            action_units={name: by_name[name] for name in face.action_units},
            sides={name: by_name[name] for name in face.sides},
            pose=self._pose(face.pose, time),
            gaze=self._gaze(face.gaze, time),
        )
        return smooth, alignment

    def _pose(self, pose: Pose | None, time: float) -> Pose | None:
        """Returns the pose smoothed; frames without one do not count."""
        if pose is None:
            return None
        angles = np.array([pose.yaw, pose.pitch, pose.roll])
        return Pose(*self._filter("pose", self.smoothing.pose, angles, time).tolist())

    def _gaze(self, gaze: Gaze | None, time: float) -> Gaze | None:
        """Returns the gaze smoothed; frames without one do not count."""
        if gaze is None:
            return None
        return Gaze(*self._filter("gaze", self.smoothing.pose, np.array(gaze), time).tolist())

    def _place(self, alignment: Alignment, time: float) -> Alignment:
        """Returns the alignment with its crop's centre, rotation and size smoothed."""
        inverse = alignment.inverse()
        middle = (alignment.size - 1) / 2
        x, y = inverse[:, :2] @ (middle, middle) + inverse[:, 2]  # the crop's centre in the picture
        angle = math.atan2(inverse[1, 0], inverse[0, 0])
        side = math.hypot(inverse[0, 0], inverse[1, 0]) * self.size  # px of the picture
        if "place" not in self._filters:
            self._unit, self._angle = side, angle
        angle = self._angle + (angle - self._angle + math.pi) % (2 * math.pi) - math.pi
        self._angle = angle
        place = np.array([x / self._unit, y / self._unit, angle, math.log(side)])
        x, y, angle, side = self._filter("place", self.smoothing.place, place, time)
        scale = math.exp(side) / self.size
        linear = scale * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        to_crop = np.linalg.inv(linear)
        centre = np.array([x, y]) * self._unit
        return Alignment(np.column_stack([to_crop, np.full(2, middle) - to_crop @ centre]), self.size)

    def _filter(self, name: str, parameters: OneEuro, value: np.ndarray, time: float) -> np.ndarray:
        return self._filters.setdefault(name, Filter(parameters))(value, time)


class ChangeFilter:
    """Smooths the model's change of one face, in the coordinates of its crop.

    Head movement does not affect these, so only the expression and the model's own jitter differ between
    frames.
    """

    def __init__(self, parameters: OneEuro):
        self.filter = Filter(parameters)

    def __call__(self, change: Change, time: float) -> Change:
        size = len(change.mask)
        stacked = np.dstack([change.flow / np.float32(size), change.mask, change.paint])  # (size, size, 6)
        smooth = self.filter(stacked, time)
        return Change(smooth[..., :2] * np.float32(size), smooth[..., 2], smooth[..., 3:])


class ChangeFilters:
    """A `ChangeFilter` for each face of a video; each run of a face starts with a new filter.

    parameters: of the filters; None: changes are not smoothed.
    """

    def __init__(self, parameters: OneEuro | None):
        self._parameters = parameters
        self._filters: dict[str, ChangeFilter] = {}  # by face and run, "0-17"

    def __call__(self, change: Change, face: int, run: int, time: float) -> Change:
        if self._parameters is None:
            return change
        key = f"{face}-{run}"
        if key not in self._filters:
            self.forget(face)
            self._filters[key] = ChangeFilter(self._parameters)
        return self._filters[key](change, time)

    def forget(self, face: int) -> None:
        """Resets the filter of a face."""
        self._filters = {k: f for k, f in self._filters.items() if k.split("-")[0] != str(face)}

    def state(self) -> dict[str, np.ndarray]:
        return {
            f"{key}/{name}": value
            for key, change in self._filters.items()
            for name, value in change.filter.state().items()
        }

    def restore(self, state: dict[str, np.ndarray]) -> None:
        for key in {name.rpartition("/")[0] for name in state} if self._parameters else ():
            self._filters[key] = ChangeFilter(self._parameters)
            self._filters[key].filter.restore(within(state, key))


def within(state: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    """Returns the part of a state whose keys begin with `name/`, without that prefix."""
    return {key.removeprefix(f"{name}/"): value for key, value in state.items() if key.startswith(f"{name}/")}
