"""What `edit_video` and `reenact` share: a video whose faces are looked for, and a film made after them."""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Unpack

from magicedit.editor import ExpressionEditor
from magicedit.errors import MagicEditError
from magicedit.models.face_model import OnStep
from magicedit.request import SamplingOptions
from magicedit.video.analysis import Analysis, Track, analyse, check_damage
from magicedit.video.partial import Partial, identity
from magicedit.video.reading import Video, VideoInfo, import_av
from magicedit.video.rendering import FrameMaker, render
from magicedit.video.results import FaceInVideo, ProgressCallback, VideoResult
from magicedit.video.settings import DEFAULTS, VideoSettings

QUALITY = "fast"  # what videos are made in unless another is asked for: see docs/video.md

Prepare = Callable[[Analysis], tuple[FrameMaker, list[str]]]  # from the first pass; remarks for the user


class VideoOptions(SamplingOptions, total=False):
    """Keyword arguments of everything that makes videos; each is one of `VideoJob`."""

    settings: VideoSettings
    damaged: bool
    progress: ProgressCallback | None
    on_step: OnStep | None


class VideoJob:
    """One film to be made from a video, in a folder beside the output that it can be resumed from.

    Args:
        source: the video whose faces are looked for, and whose timing and sound the output gets.
        settings: how faces are followed and steadied, and how the output is encoded.
        damaged: use what can be decoded of a damaged file.
        progress: is told how far the work is, by this thread; what it raises ends the work, which can be
            resumed.
        on_step: as of `ExpressionEditor.edit`, for each batch of frames.
        quality, sampling: as of `ExpressionEditor.edit`.

    Raises:
        VideoError: where the video cannot be read.
        MissingDependencyError: without the extra `video`.
    """

    def __init__(
        self,
        editor: ExpressionEditor,
        source: str | Path,
        output: str | Path,
        *,
        settings: VideoSettings = DEFAULTS,
        damaged: bool = False,
        progress: ProgressCallback | None = None,
        on_step: OnStep | None = None,
        quality: str | None = QUALITY,
        **sampling: Unpack[SamplingOptions],
    ):
        self._started = time.perf_counter()
        import_av()
        self.editor, self.output = editor, Path(output)
        self.settings, self.damaged, self.progress, self.on_step = settings, damaged, progress, on_step
        self.sampling = editor.sampling(quality=quality, **sampling)
        self.video = Video(Path(source))
        self.time_base = float(self.video.info.time_base)  # seconds a tick

    def run(self, info: VideoInfo, asked: Mapping[str, Any], prepare: Prepare) -> VideoResult:
        """Looks for the faces, makes the frames, and joins them with the sound.

        Args:
            info: of the output.
            asked: JSON-ready, what else the result depends on; only work on the same is resumed.
            prepare: its MagicEditErrors mean that what was asked for cannot be had: nothing is kept.

        Raises:
            VideoError: where the video is damaged.
            OutputError: where the output cannot be written, or is being made by another program.
        """
        editor, settings = self.editor, self.settings
        request = {
            "input": self.video.digest(), "suffix": self.output.suffix.lower(),
            "settings": asdict(settings), **identity(editor, self.sampling), **asked,
        }  # fmt: skip
        with Partial(self.output, request) as partial:
            analysis = analyse(self.video, editor.backend, partial.faces, settings.tracking, self.progress)
            try:
                warnings = check_damage(analysis, self.video.path, self.damaged)
                maker, remarks = prepare(analysis)
            except MagicEditError:
                partial.remove()
                raise
            resumed, sound = render(maker, info, partial)
            partial.remove()
        return VideoResult(
            path=self.output, width=info.width, height=info.height, frames=analysis.frames,
            video_seconds=analysis.last_pts * self.time_base,
            faces=[described(number, track) for number, track in enumerate(maker.tracks)],
            flicker=maker.meter.result(), seconds=time.perf_counter() - self._started, resumed=resumed,
            model=editor.model, warnings=warnings + remarks + sound,
        )  # fmt: skip


def described(number: int, track: Track) -> FaceInVideo:
    """A face for the report."""
    return FaceInVideo(number, track.seen, (track.runs[0].starts, track.runs[-1].ends), len(track.runs))
