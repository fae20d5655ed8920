"""Editing frames that are already in memory, as node editors and other programs hold them; no video file."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

import cv2
import numpy as np

from magicedit.editor import ExpressionEditor, SamplingSettings
from magicedit.editor.results import shown_model
from magicedit.errors import VideoError
from magicedit.expression import Expression
from magicedit.faces.tracking import CutDetector, Tracker
from magicedit.faces.types import check_pixels
from magicedit.models.face_model import OnStep
from magicedit.provenance import Mark
from magicedit.request import Deltas, EditRequest, SamplingOptions
from magicedit.video.analysis import Row, choose, look_at, scan
from magicedit.video.edit import EditMaker, check_request
from magicedit.video.job import QUALITY
from magicedit.video.rendering import batch_size, batches
from magicedit.video.results import FaceInVideo
from magicedit.video.settings import DEFAULTS, VideoSettings


@dataclass(frozen=True, eq=False)
class FramesResult:
    """Edited frames.

    frames: (height, width, 3) uint8 RGB each. changed: of each frame, whether it differs from the input.
    faces: the edited ones. mark: of the edit, for pictures of changed frames; None where the editor marks
    nothing.
    """

    frames: list[np.ndarray]
    changed: list[bool]
    faces: list[FaceInVideo]
    mark: Mark | None


@dataclass(frozen=True)
class _Job:
    """The part of a `VideoJob` that `EditMaker` reads, without files."""

    editor: ExpressionEditor
    settings: VideoSettings
    sampling: SamplingSettings
    time_base: float
    on_step: OnStep | None
    video: None = None


@dataclass(frozen=True)
class _Found:
    """The part of an `Analysis` that `EditMaker` reads: its rows."""

    found: list[Row]

    def rows(self) -> Iterator[Row]:
        return iter(self.found)


def edit_frames(
    editor: ExpressionEditor,
    frames: Sequence[np.ndarray],
    rate: float,
    add: Deltas | None = None,
    set: Deltas | None = None,
    emotion: str | tuple[str, float] | None = None,
    face: str | int = "largest",
    *,
    expression: Expression | None = None,
    strength: float = 1.0,
    neutral: bool = False,
    settings: VideoSettings = DEFAULTS,
    progress: Callable[[int, np.ndarray | None], None] | None = None,
    on_step: OnStep | None = None,
    quality: str | None = QUALITY,
    **sampling: Unpack[SamplingOptions],
) -> FramesResult:
    """Edits frames as `edit_video` edits those of a file: faces are tracked and smoothed over time.

    Args:
        frames: (height, width, 3) uint8 RGB, all of one size, in order.
        rate: frames a second.
        settings: of tracking and smoothing; the encoding is not used.
        progress: called as `progress(done, frame)` in this thread: after each frame in which faces were
            sought, with None, and after each few edited ones, with the last result. `done` counts both and
            ends at twice the number of frames. If it raises, the work stops.

    Other arguments as of `edit_video`.

    Raises:
        VideoError: where there are no frames, they differ in size, or the rate is not above 0.
        ImageError: where a frame is no such array.
        NoFaceError, ActionUnitError: as of `edit_video`.
    """
    # 1. The request
    for frame in frames:
        check_pixels(frame)
    if len(frames) == 0 or len({frame.shape for frame in frames}) > 1:
        raise VideoError(
            f"expected frames of one size, got {len(frames)} frames of the sizes "
            f"{sorted({frame.shape[:2] for frame in frames})}"
        )
    if not rate > 0:
        raise VideoError(f"the rate must be above 0 frames a second, got {rate:g}")
    names = editor.action_units
    asked = EditRequest(
        add, set, emotion, expression=expression, strength=strength, neutral=neutral, names=names
    )
    check_request(names, asked, None)
    chosen = editor.sampling(quality=quality, **sampling)
    settings = settings.resolved(chosen.quality)
    job = _Job(editor, settings, chosen, 1 / rate, on_step)

    # 2. The faces
    tracker, cuts = Tracker(editor.backend, settings.tracking), CutDetector(settings.tracking)
    rows = []
    for index, frame in enumerate(frames):
        difference = cuts.difference(_planes(frame))
        rows.append(Row(index, index, 1, difference, *look_at(tracker, cuts, index, frame, difference)))
        if progress is not None:
            progress(index + 1, None)
    tracks = choose(scan(iter(rows), job.time_base), face, Path("these frames"))

    # 3. The edits
    def requested(current: Mapping[str, float], seconds: float) -> dict[str, float]:
        return names.total([asked.deltas(names, current, continuous=True)])

    maker = EditMaker(job, _Found(rows), tracks, requested)
    maker.check()
    edited: list[np.ndarray] = []
    height, width = frames[0].shape[:2]
    for batch in batches(zip(maker.steady(), frames, strict=True), batch_size(width, height)):
        steady = [present for (_, present), _ in batch]
        edited += maker.edited([row for (row, _), _ in batch], steady, [frame for _, frame in batch])
        if progress is not None:
            progress(len(frames) + len(edited), edited[-1])
    faces = [FaceInVideo.of(track) for track in tracks]
    mark = None
    if editor.mark:
        mark = Mark.of_edit(
            None, model=shown_model(editor.model), fingerprint=editor.fingerprint, command="frames",
            asked=asked.to_json(), face=face, seed=job.sampling.seed, quality=job.sampling.quality,
        )  # fmt: skip
    changed = [not np.array_equal(*pair) for pair in zip(frames, edited, strict=True)]
    return FramesResult(edited, changed, faces, mark)


def _planes(pixels: np.ndarray) -> np.ndarray:
    """Returns yuv420p planes of a frame, for `CutDetector`; drops a last odd row or column."""
    height, width = (side - side % 2 for side in pixels.shape[:2])
    return cv2.cvtColor(np.ascontiguousarray(pixels[:height, :width]), cv2.COLOR_RGB2YUV_I420)
