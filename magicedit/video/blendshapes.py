"""Measures the ARKit blendshapes of a face in every frame of a video."""

from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np

from magicedit.arkit import MEASURED
from magicedit.errors import MagicEditError, VideoError
from magicedit.faces import FaceBackend
from magicedit.faces.tracking import CutDetector, Tracker, Tracking
from magicedit.video.analysis import Row, choose, look_through, scan
from magicedit.video.results import Pace, ProgressCallback
from magicedit.video.settings import DEFAULTS
from magicedit.video_reading import Video


@dataclass(frozen=True, eq=False)
class BlendshapeCurves:
    """Blendshape scores over time, not smoothed.

    times: (frames,) seconds. scores: (frames, 51) float32, 0 to 1, in the order of `arkit.MEASURED`; NaN in
    frames without the face.
    """

    times: np.ndarray
    scores: np.ndarray


def measure_blendshapes(
    video: Video,
    backend: FaceBackend,
    face: str | int = "largest",
    *,
    tracking: Tracking = DEFAULTS.tracking,
    progress: ProgressCallback | None = None,
) -> BlendshapeCurves:
    """Returns the blendshape scores of one face of a video, frame by frame.

    face: "largest" by area and time, or an index, see `edit_video`.

    Raises:
        VideoError: where the video is damaged.
        NoFaceError: where there is no such face.
        MagicEditError: where the backend measures no blendshapes.
    """
    # 1. All faces of each frame, without the landmarks
    time_base = float(video.info.time_base)
    rows: list[Row] = []
    scores: list[dict[int, np.ndarray]] = []
    pace = Pace(progress, "faces", video.info.frames, 0)
    with closing(look_through(video, Tracker(backend, tracking), CutDetector(tracking))) as looked:
        for row in looked:
            if any(not tracked.face.blendshapes for tracked in row.faces):
                raise MagicEditError(
                    f"the face backend {backend.name} measures no blendshapes; use mediapipe"
                )
            scores.append(
                {
                    tracked.number: np.array([tracked.face.blendshapes[n] for n in MEASURED], np.float32)
                    for tracked in row.faces
                }
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

    # 2. Those of the chosen one
    (track,) = choose(scan(iter(rows), time_base), face, video.path)
    absent = np.full(len(MEASURED), np.nan, np.float32)
    return BlendshapeCurves(
        np.array([row.pts * time_base for row in rows]),
        np.array([found.get(track.number, absent) for found in scores]),
    )
