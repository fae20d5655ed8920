"""Progress and result types of video jobs."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from magicedit.video.flicker import Flicker

if TYPE_CHECKING:
    from magicedit.video.analysis import Track


@dataclass(frozen=True)
class Progress:
    """Progress of a video job.

    Attributes:
        stage: "faces" (finding them), "frames" (editing and encoding) or "joining".
        done, total: frames; total is None if the file does not state it.
        seconds_left: of this stage, estimated from its pace so far; None if unknown.
    """

    stage: str
    done: int
    total: int | None
    seconds_left: float | None


ProgressCallback = Callable[[Progress], None]


class Pace:
    """Reports frames of one stage to a callback, with the time left.

    already: frames done by an earlier run, which do not count for the pace.
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

    number: index as for `face`; the largest by area and time is 0. seen: number of frames with it.
    seconds: of its first and last frame. runs: number of its appearances.
    """

    number: int
    seen: int
    seconds: tuple[float, float]
    runs: int

    @classmethod
    def of(cls, track: "Track") -> "FaceInVideo":
        seconds = track.runs[0].starts, track.runs[-1].ends
        return cls(track.index, track.seen, seconds, len(track.runs))

    def to_json(self) -> dict[str, Any]:
        return {
            "face": self.number,
            "number": self.number + 1,  # as people count, and `--face`
            "frames": self.seen,
            "from_seconds": round(self.seconds[0], 3),
            "to_seconds": round(self.seconds[1], 3),
            "runs": self.runs,
        }


@dataclass(frozen=True, eq=False)
class VideoResult:
    """A finished video.

    Attributes:
        path: of the output.
        width, height: px.
        frames: number of them. video_seconds: time from the first to the last.
        faces: the edited ones; for `reenact` the driving one.
        flicker: see `FlickerMeter`; None where it does not apply.
        seconds: wall time of this run, without loading the model.
        resumed: frames made by earlier, interrupted runs.
        frames_per_second: of this run, both passes, without resumed frames.
        warnings: reasons to check the result by eye, in sentences.
        model: name, folder or hub id of the model.
        marked: whether it is marked as edited.
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
    marked: bool = False

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
            "marked": self.marked,
            "warnings": self.warnings,
        }
