"""Shared by `edit_video` and `reenact`: finds the faces of a video and makes a film from them."""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Unpack

from magicedit.editor import ExpressionEditor
from magicedit.editor.results import shown_model
from magicedit.errors import MagicEditError, OutputError, VideoError
from magicedit.files import opened, shown
from magicedit.imaging import Photo
from magicedit.models.face_model import OnStep
from magicedit.provenance import Mark, packet_of, public_packet, read_packet
from magicedit.request import SamplingOptions
from magicedit.video.analysis import Analysis, analyse, check_damage
from magicedit.video.partial import Partial, identity
from magicedit.video.rendering import FrameMaker, render
from magicedit.video.results import FaceInVideo, ProgressCallback, VideoResult
from magicedit.video.settings import DEFAULTS, VideoSettings
from magicedit.video_reading import Video, VideoInfo, import_av, public

QUALITY = "fast"  # default quality of videos, see docs/video.md

Prepare = Callable[[Analysis], tuple[FrameMaker, list[str]]]  # from the first pass; remarks for the user


class VideoOptions(SamplingOptions, total=False):
    """Keyword arguments shared by all functions that make videos; each is one of `VideoJob`."""

    settings: VideoSettings
    damaged: bool
    progress: ProgressCallback | None
    on_step: OnStep | None


class VideoJob:
    """Makes one film from a video; it resumes from a folder beside the output.

    Args:
        source: the video that provides the faces, the timing and the sound.
        settings: how faces are followed and steadied, and how the output is encoded.
        damaged: use the decodable part of a damaged file.
        progress: is called with the progress in this thread; if it raises, the work stops and can be resumed.
        on_step: as in `ExpressionEditor.edit`, for each batch of frames.
        quality, sampling: as in `ExpressionEditor.edit`.

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
        self.damaged, self.progress, self.on_step = damaged, progress, on_step
        self.sampling = editor.sampling(quality=quality, **sampling)
        self.settings = settings.resolved(self.sampling.quality)
        self.video = Video(Path(source))
        self.time_base = float(self.video.info.time_base)  # seconds a tick
        self.mark: Mark | None = None  # of the output, and the XMP into which it is merged
        self.packet: bytes | None = None

    def run(
        self, info: VideoInfo, asked: Mapping[str, Any], prepare: Prepare, photo: Photo | None = None
    ) -> VideoResult:
        """Finds the faces, makes the frames and joins them with the sound.

        Args:
            info: of the output.
            asked: JSON-ready, all other inputs of the result; only work with equal inputs is resumed.
            prepare: raises MagicEditError for an impossible request; then nothing is kept.
            photo: the edited photograph, if it is not the video that is edited.

        Raises:
            VideoError: where the video is damaged.
            OutputError: where the output cannot be written, or is being made by another program.
        """
        editor, settings = self.editor, self.settings
        request = {
            "input": self.video.digest(), "suffix": self.output.suffix.lower(),
            "settings": asdict(settings), **identity(editor, self.sampling), **asked,
        }  # fmt: skip
        info = self._prepare_mark(info, request, asked, photo)
        with Partial(self.output, request) as partial:
            try:
                analysis = analyse(
                    self.video, editor.backend, partial.faces, settings.tracking, self.progress
                )
                warnings = check_damage(analysis, self.video.path, self.damaged)
                maker, remarks = prepare(analysis)
            except OutputError:  # no room: what was found stays
                raise
            except MagicEditError:
                partial.remove()
                raise
            resumed, sound = render(maker, info, partial)
            partial.remove()
        faces = [FaceInVideo.of(track) for track in maker.tracks]
        return VideoResult(
            path=self.output, width=info.width, height=info.height, frames=analysis.frames,
            video_seconds=analysis.last_pts * self.time_base,
            faces=faces, flicker=maker.meter.result(), seconds=time.perf_counter() - self._started,
            resumed=resumed, model=editor.model, warnings=warnings + remarks + sound,
            marked=self.mark is not None,
        )  # fmt: skip

    def _prepare_mark(
        self, info: VideoInfo, request: Mapping[str, Any], asked: Mapping[str, Any], photo: Photo | None
    ) -> VideoInfo:
        """Sets the output's mark, and the XMP of the input into which it is merged; returns the output's
        properties, without private ones where the editor leaves these out."""
        editor, strip = self.editor, self.editor.strip_private
        known = {"model": shown_model(editor.model), "fingerprint": editor.fingerprint, **asked}
        known |= {name: value for name, value in request["sampling"].items() if name in ("seed", "quality")}
        if photo is not None:
            source, self.packet = photo.source, packet_of(photo.info)
            known["driving"] = shown(self.video.path.name)
        else:
            source = self.video.path
            with opened(source, VideoError) as file:
                self.packet = read_packet(file)
        if strip and self.packet is not None:
            self.packet = public_packet(self.packet)
        if editor.mark:
            self.mark = Mark.of_edit(source, keeps=not strip, **known)
        return public(info) if strip else info
