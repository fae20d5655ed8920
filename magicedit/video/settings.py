"""How videos are made, beside what is asked of them."""

from dataclasses import dataclass, field

from magicedit.video.smoothing import Smoothing
from magicedit.video.tracking import Tracking
from magicedit.video.writing import Encoding


@dataclass(frozen=True)
class VideoSettings:
    """How faces are followed and steadied, and how the output is encoded."""

    tracking: Tracking = field(default_factory=Tracking)
    smoothing: Smoothing = field(default_factory=Smoothing)
    encoding: Encoding = field(default_factory=Encoding)


DEFAULTS = VideoSettings()
