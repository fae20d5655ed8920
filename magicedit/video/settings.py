"""Settings of videos, apart from the request; where one is None, the quality decides."""

from dataclasses import dataclass, field, replace

from magicedit.faces.tracking import Tracking
from magicedit.video.keyframes import KeyFrames
from magicedit.video.smoothing import Smoothing
from magicedit.video.writing import QUICK_PRESET, THOROUGH_PRESET, Encoding

QUICK = ("fast", "live")


@dataclass(frozen=True)
class VideoSettings:
    """Settings of face tracking, smoothing and output encoding.

    key_frames: on which frames a model that composes runs; others run on every frame. None:
    `KeyFrames()` in the qualities QUICK, every frame in others.
    """

    tracking: Tracking = field(default_factory=Tracking)
    smoothing: Smoothing = field(default_factory=Smoothing)
    encoding: Encoding = field(default_factory=Encoding)
    key_frames: KeyFrames | None = None

    def resolved(self, quality: str | None) -> "VideoSettings":
        """Returns the settings of a quality, none of them None."""
        quick = quality in QUICK
        key_frames = self.key_frames or (KeyFrames() if quick else KeyFrames(most=1))
        preset = self.encoding.preset or (QUICK_PRESET if quick else THOROUGH_PRESET)
        return replace(self, encoding=replace(self.encoding, preset=preset), key_frames=key_frames)


DEFAULTS = VideoSettings()
