"""Measures a face in every frame of a video, without editing it."""

from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np

from magicedit.arkit import MEASURED
from magicedit.errors import MagicEditError, VideoError
from magicedit.faces import Face, FaceBackend
from magicedit.faces.tracking import CutDetector, Tracker, Tracking
from magicedit.video.analysis import Row, choose, look_through, scan
from magicedit.video.results import Pace, ProgressCallback
from magicedit.video.settings import DEFAULTS
from magicedit.video_reading import Video


@dataclass(frozen=True, eq=False)
class MeasuredFrames:
    """A face over time, not smoothed.

    times: (frames,) seconds. faces: of each frame, without landmarks; None in frames without the face.
    """

    times: np.ndarray
    faces: list[Face | None]


@dataclass(frozen=True, eq=False)
class BlendshapeCurves:
    """Blendshape scores over time, not smoothed.

    times: (frames,) seconds. scores: (frames, 51) float32, 0 to 1, in the order of `arkit.MEASURED`; NaN in
    frames without the face.
    """

    times: np.ndarray
    scores: np.ndarray


def measure_frames(
    video: Video,
    backend: FaceBackend,
    face: str | int = "largest",
    *,
    tracking: Tracking = DEFAULTS.tracking,
    progress: ProgressCallback | None = None,
) -> MeasuredFrames:
    """Returns what one face of a video shows, frame by frame.

    face: "largest" by area and time, or an index, see `edit_video`.

    Raises:
        VideoError: where the video is damaged.
        NoFaceError: where there is no such face.
        MagicEditError: where the backend measures no action units.
    """
    # 1. All faces of each frame, without the landmarks
    time_base = float(video.info.time_base)
    rows: list[Row] = []
    pace = Pace(progress, "faces", video.info.frames, 0)
    with closing(look_through(video, Tracker(backend, tracking), CutDetector(tracking))) as looked:
        for row in looked:
            if any(not tracked.face.action_units for tracked in row.faces):
                raise MagicEditError(
                    f"the face backend {backend.name} measures no action units or blendshapes; use mediapipe"
                )
            light = tuple(
                replace(tracked, face=replace(tracked.face, landmarks=np.zeros((0, 2), np.float32)))
                for tracked in row.faces
            )
            rows.append(replace(row, faces=light))
            pace(row.index + 1)
    if video.damage:
        raise VideoError(
            f"{video.path} is damaged or incomplete: it {video.damage}; copy or download it again"
        )

    # 2. The chosen one
    (track,) = choose(scan(iter(rows), time_base), face, video.path)
    return MeasuredFrames(
        np.array([row.pts * time_base for row in rows]), [row.face(track.number) for row in rows]
    )


def measure_blendshapes(
    video: Video,
    backend: FaceBackend,
    face: str | int = "largest",
    *,
    tracking: Tracking = DEFAULTS.tracking,
    progress: ProgressCallback | None = None,
) -> BlendshapeCurves:
    """Returns the blendshape scores of one face of a video; arguments and errors as `measure_frames`."""
    return blendshapes_of(measure_frames(video, backend, face, tracking=tracking, progress=progress))


def blendshapes_of(frames: MeasuredFrames) -> BlendshapeCurves:
    """Returns the blendshapes of measured frames."""
    absent = dict.fromkeys(MEASURED, np.nan)
    shown = (absent if face is None else face.blendshapes for face in frames.faces)
    scores = [[scores[name] for name in MEASURED] for scores in shown]
    return BlendshapeCurves(frames.times, np.array(scores, np.float32).reshape(-1, len(MEASURED)))
