"""What is said while a video is made, and what comes of it."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from magicedit.video.flicker import Flicker


@dataclass(frozen=True)
class Progress:
    """How far the work is.

    Attributes:
        stage: "faces" (looking for them), "frames" (editing and encoding) or "joining".
        done, total: frames; total is None where the file does not say how many there are.
        seconds_left: of this stage, estimated from its pace so far; None where it cannot be told.
    """

    stage: str
    done: int
    total: int | None
    seconds_left: float | None


ProgressCallback = Callable[[Progress], None]


class Pace:
    """Reports frames of one stage to a callback, with the time left.

    already: frames that an earlier run did, which say nothing of the pace.
    """

    def __init__(self, report: ProgressCallback | None, stage: str, total: int | None, already: int = 0):
        self._report, self._stage, self._total, self._already = report, stage, total, already
        self._started = time.perf_counter()
        self.seconds = 0.0
        self(already)

    def __call__(self, done: int) -> None:
        self.seconds = time.perf_counter() - self._started
        if self._report is None:
            return
        new, left = done - self._already, None
        if self._total is not None and new > 0:
            left = self.seconds / new * max(0, self._total - done)
        self._report(Progress(self._stage, done, self._total, left))


@dataclass(frozen=True)
class FaceInVideo:
    """A face that was edited.

    number: as `face` counts, the largest by area and time is 0. seen: in how many frames it was found.
    seconds: from when to when, first and last. runs: how often it came.
    """

    number: int
    seen: int
    seconds: tuple[float, float]
    runs: int

    def to_json(self) -> dict[str, Any]:
        return {
            "face": self.number,
            "frames": self.seen,
            "from_seconds": round(self.seconds[0], 3),
            "to_seconds": round(self.seconds[1], 3),
            "runs": self.runs,
        }


@dataclass(frozen=True, eq=False)
class VideoResult:
    """A video that was made.

    Attributes:
        path: of the output.
        width, height: px.
        frames: number of them. video_seconds: time from the first to the last.
        faces: those that were edited; of `reenact` the driving one.
        flicker: see `FlickerMeter`; None where it makes no sense.
        seconds: wall time of this run, loading of the model not counted.
        resumed: frames that an earlier, interrupted run had made.
        frames_per_second: of this run, both passes, without those.
        warnings: what should make one look twice, in sentences.
        model: name, folder or hub id of the model.
    """

    path: Path
    width: int
    height: int
    frames: int
    video_seconds: float
    faces: list[FaceInVideo]
    flicker: Flicker | None
    seconds: float
    resumed: int
    model: str
    warnings: list[str] = field(default_factory=list)

    @property
    def frames_per_second(self) -> float:
        return (self.frames - self.resumed) / max(self.seconds, 1e-9)

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "output": str(self.path),
            "width": self.width,
            "height": self.height,
            "frames": self.frames,
            "video_seconds": round(self.video_seconds, 3),
            "faces": [face.to_json() for face in self.faces],
            "flicker": None if self.flicker is None else self.flicker.to_json(),
            "seconds": round(self.seconds, 3),
            "resumed_frames": self.resumed,
            "frames_per_second": round(self.frames_per_second, 2),
            "model": self.model,
            "warnings": self.warnings,
        }
