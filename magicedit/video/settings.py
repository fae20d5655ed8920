"""Settings of videos, apart from the request."""

from dataclasses import dataclass, field

from magicedit.faces.tracking import Tracking
from magicedit.video.smoothing import Smoothing
from magicedit.video.writing import Encoding


@dataclass(frozen=True)
class VideoSettings:
    """Settings of face tracking, smoothing and output encoding."""

    tracking: Tracking = field(default_factory=Tracking)
    smoothing: Smoothing = field(default_factory=Smoothing)
    encoding: Encoding = field(default_factory=Encoding)


DEFAULTS = VideoSettings()
