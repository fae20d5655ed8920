"""Videos: temporally stable editing of faces, and transfer of expressions from a video to a photograph."""

from magicedit.faces.tracking import Tracking
from magicedit.video.blendshapes import (
    BlendshapeCurves,
    MeasuredFrames,
    blendshapes_of,
    measure_blendshapes,
    measure_frames,
)
from magicedit.video.curves import Curve
from magicedit.video.edit import check_request, edit_video
from magicedit.video.flicker import Flicker
from magicedit.video.frames import FramesResult, edit_frames
from magicedit.video.job import VideoJob
from magicedit.video.keyframes import KeyFrames
from magicedit.video.reenact import reenact
from magicedit.video.results import FaceInVideo, Progress, VideoResult
from magicedit.video.settings import VideoSettings
from magicedit.video.smoothing import OneEuro, Smoothing
from magicedit.video.writing import Encoding, check_video_output, save_film
from magicedit.video_reading import Video

__all__ = [
    "BlendshapeCurves",
    "Curve",
    "Encoding",
    "FaceInVideo",
    "Flicker",
    "FramesResult",
    "KeyFrames",
    "MeasuredFrames",
    "OneEuro",
    "Progress",
    "Smoothing",
    "Tracking",
    "Video",
    "VideoJob",
    "VideoResult",
    "VideoSettings",
    "blendshapes_of",
    "check_request",
    "check_video_output",
    "edit_frames",
    "edit_video",
    "measure_blendshapes",
    "measure_frames",
    "reenact",
    "save_film",
]
