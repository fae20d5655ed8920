"""The expressions of a video on the face of a photograph."""

import hashlib
import itertools
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Unpack

import cv2
import numpy as np

from magicedit.editor import (
    ExpressionEditor,
    FaceChanger,
    FaceCut,
    SamplingSettings,
    select_faces,
)
from magicedit.errors import ActionUnitError, MagicEditError, NoFaceError, VideoError
from magicedit.faces import Face
from magicedit.imaging import Photo, open_photo
from magicedit.request import SamplingOptions
from magicedit.video.analysis import Analysis, Track, analyse, check_damage, choose, scan, steady_faces
from magicedit.video.edit import QUALITY, batches, described
from magicedit.video.flicker import FlickerMeter
from magicedit.video.partial import Partial, identity
from magicedit.video.reading import Video, VideoInfo, from_rgb, import_av, replace_pixels, still_info
from magicedit.video.rendering import batch_size, render
from magicedit.video.results import ProgressCallback, VideoResult
from magicedit.video.settings import DEFAULTS, VideoSettings
from magicedit.video.smoothing import ChangeFilter, Smoothing
from magicedit.video.writing import check_size, check_video_output, even_sided

NEUTRAL_PERCENT = 10  # of the frames, by unit: what a face shows no less than nine tenths of the time
NEUTRAL_SECONDS = 0.2  # around the moment that is given as neutral
STRENGTHS = (-2.0, 2.0)
_BINS = 1000  # of an intensity's range, 0 to 5: percentiles in constant memory


def reenact(
    editor: ExpressionEditor,
    source: str | Path | Photo,
    driving: str | Path,
    output: str | Path,
    *,
    strength: float = 1.0,
    face: str | int = "largest",
    driving_face: str | int = "largest",
    neutral_at: float | None = None,
    longest: int | None = None,
    quality: str | None = QUALITY,
    settings: VideoSettings = DEFAULTS,
    damaged: bool = False,
    progress: ProgressCallback | None = None,
    **sampling: Unpack[SamplingOptions],
) -> VideoResult:
    """Gives a photograph the expressions of a video, with the video's timing and sound.

    In each frame the face of the photograph is asked for the driving face's measured intensities minus those
    of its neutral, times `strength`: what the photograph shows itself stays the start. Only the units that
    the model can edit go over; sides of the face are not told apart; pose and gaze stay those of the
    photograph. Where the driving face is not seen, the photograph is shown as it is. Interrupted work is gone
    on with, as by `edit_video`.

    Args:
        source: the photograph; the video shows all of it, with sides rounded up to even numbers by repeating
            the last line.
        driving: the video.
        strength: -2 to 2.
        face: "largest" or an index into the faces of the photograph.
        driving_face: "largest" or an index into the faces of the video, see `edit_video`.
        neutral_at: seconds at which the driving face is at rest. Default: for each unit the intensity that it
            stays below in a tenth of the frames (the 10th percentile).
        longest: px, to which a larger photograph is reduced by its longer side.
        steps, guidance, seed, quality, teeth, references, settings, damaged, progress: as of `edit_video`.

    Raises:
        VideoError, NoFaceError, OutputError, MissingDependencyError: as `edit_video`.
        ImageError: where the photograph cannot be read.
        MagicEditError: where `strength` or `neutral_at` make no sense, or the backend measures no units.
    """
    # 1. What can be seen to be wrong now
    started = time.perf_counter()
    import_av()
    driving, output = Path(driving), Path(output)
    chosen = editor.sampling(quality=quality, **sampling)
    if not (math.isfinite(strength) and STRENGTHS[0] <= strength <= STRENGTHS[1]):
        raise MagicEditError(
            f"the strength must be from {STRENGTHS[0]:g} to {STRENGTHS[1]:g}, got {strength}"
        )
    photo = open_photo(source)
    pixels = photo.pixels if longest is None else reduced(photo.pixels, longest)
    video = Video(driving)
    info = still_info(video.info, pixels.shape[1], pixels.shape[0])
    check_size(info, f"{photo.source or 'the photograph'}", "reduce it, as by --longest 1920")
    inputs = (driving,) if photo.source is None else (driving, photo.source)
    check_video_output(output, *inputs)
    faces = editor.backend.detect(np.ascontiguousarray(pixels))
    (face_in_photo,) = select_faces(faces, "largest" if face == "all" else face, photo)

    request = {
        "command": "reenact", "input": video.digest(), "suffix": output.suffix.lower(),
        "photo": hashlib.blake2b(np.ascontiguousarray(pixels)).hexdigest(), "size": pixels.shape,
        "face": face, "driving_face": driving_face, "neutral_at": neutral_at, "strength": strength,
        "settings": asdict(settings), **identity(editor, chosen),
    }  # fmt: skip
    with Partial(output, request) as partial:
        # 2. The driving face and its neutral
        analysis = analyse(video, editor.backend, partial.faces, settings.tracking, progress)
        time_base = float(video.info.time_base)
        try:
            warnings = check_damage(analysis, driving, damaged)
            (track,) = choose(scan(analysis.rows(), time_base), driving_face, driving)
            names = editor.action_units
            neutral = neutral_of(analysis, track, time_base, names, neutral_at, editor.backend.name)
        except (VideoError, NoFaceError, ActionUnitError, MagicEditError):
            partial.remove()  # what was asked for cannot be had
            raise

        # 3. The frames
        maker = ReenactMaker(
            pixels, face_in_photo, info, analysis, track, neutral, strength, editor.changer, chosen,
            settings.smoothing,
        )  # fmt: skip
        resumed, remarks = render(maker, analysis, info, video, output, partial, settings.encoding, progress)
        partial.remove()
    return VideoResult(
        path=output, width=info.width, height=info.height, frames=analysis.frames,
        video_seconds=analysis.last_pts * time_base, faces=[described(0, track)],
        flicker=maker.meter.result(), seconds=time.perf_counter() - started, resumed=resumed,
        model=editor.model, warnings=warnings + remarks,
    )  # fmt: skip


def reduced(pixels: np.ndarray, longest: int) -> np.ndarray:
    """A picture (height, width, 3) whose longer side is at most `longest` px; MagicEditError below 64."""
    if longest < 64:
        raise MagicEditError(f"the longer side of a video must be at least 64 px, got {longest}")
    height, width = pixels.shape[:2]
    scale = longest / max(height, width)
    if scale >= 1:
        return pixels
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)


def neutral_of(
    analysis: Analysis,
    track: Track,
    time_base: float,
    names: tuple[str, ...],
    at: float | None,
    backend: str,
) -> dict[str, float]:
    """Intensities, by unit, of a face at rest; of those of `names` that are measured.

    Args:
        at: seconds: the mean of the frames nearest to that moment; None: the percentile NEUTRAL_PERCENT of
            all frames, to 0.005 steps.

    Raises:
        MagicEditError: where no unit is measured, or the face is not seen at that moment.
    """
    histograms = {name: np.zeros(_BINS + 1, np.int64) for name in names}
    near: list[dict[str, float]] = []
    for row in analysis.rows():
        face = row.face(track.number)
        if face is None:
            continue
        measured = {name: face.action_units[name] for name in names if name in face.action_units}
        if not measured:
            raise MagicEditError(
                f"the face backend {backend} measures none of the action units that this model edits; use "
                "mediapipe"
            )
        if at is not None and abs(row.pts * time_base - at) <= NEUTRAL_SECONDS / 2:
            near.append(measured)
        for name, value in measured.items():
            histograms[name][round(float(np.clip(value / 5, 0, 1)) * _BINS)] += 1
    if at is not None:
        if not near:
            raise MagicEditError(
                f"the driving face is not seen at {at:g} s, which was given as its neutral; it is from "
                f"{track.runs[0].starts:.2f} s to {track.runs[-1].ends:.2f} s"
            )
        return {name: float(np.mean([values[name] for values in near])) for name in near[0]}
    neutral = {}
    for name, counts in histograms.items():
        if total := counts.sum():
            place = int(np.searchsorted(np.cumsum(counts), NEUTRAL_PERCENT / 100 * total))
            neutral[name] = 5 * place / _BINS
    return neutral


class ReenactMaker:
    """Makes the frames of a reenacted photograph, see `rendering.FrameMaker`.

    Args:
        pixels: of the photograph, (height, width, 3) uint8 RGB. face: that is edited in it.
        info: of the output.
        track, neutral: of the driving video, whose faces are in `analysis`.
    """

    def __init__(
        self,
        pixels: np.ndarray,
        face: Face,
        info: VideoInfo,
        analysis: Analysis,
        track: Track,
        neutral: Mapping[str, float],
        strength: float,
        changer: FaceChanger,
        sampling: SamplingSettings,
        smoothing: Smoothing,
    ):
        self.info, self.analysis, self.track = info, analysis, track
        self.neutral, self.strength = neutral, strength
        self.changer, self.sampling, self.smoothing = changer, sampling, smoothing
        self.meter = FlickerMeter()
        self._pixels, self._face = even_sided(pixels), face
        self._planes = from_rgb(self._pixels, info)
        self._time_base = float(info.time_base)
        self._cut: FaceCut | None = None
        self._filter: ChangeFilter | None = None

    def frames(self, first: int) -> Iterator[tuple[int, np.ndarray]]:
        """Timestamp and planes of each frame from number `first` on, a multiple of PIECE."""
        if self._cut is None:
            self._cut = self.changer.cut(self._pixels, self._face)
        size = self.changer.model.resolution
        rows = steady_faces(self.analysis.rows(), [self.track], self._time_base, self.smoothing, size)
        for batch in batches(itertools.islice(rows, first, None), batch_size(self.info)):
            requests = []
            for _, faces in batch:
                driving = faces.get(self.track.number)
                requests.append({} if driving is None else self._request(driving.face, driving.presence))
            changes = self.changer.requested_changes([self._cut] * len(batch), requests, self.sampling)
            for (row, _), request, change in zip(batch, requests, changes, strict=True):
                edited = self._pixels
                if change is None:
                    self._filter = None
                else:
                    if self.smoothing.change is not None:
                        self._filter = self._filter or ChangeFilter(self.smoothing.change)
                        change = self._filter(change, row.pts * self._time_base)
                    edited = self.changer.carry(edited, self._cut, change, request, self.sampling)
                self.meter.add(self._pixels, edited, {"face": self._face})
                yield row.pts, replace_pixels(self._planes, self._pixels, edited, self.info)

    def state(self) -> dict[str, np.ndarray]:
        state = {f"flicker/{name}": value for name, value in self.meter.state().items()}
        if self._filter is not None:
            state |= {f"change/{name}": value for name, value in self._filter.filter.state().items()}
        return state

    def restore(self, state: dict[str, np.ndarray]) -> None:
        groups: dict[str, dict[str, np.ndarray]] = {"flicker": {}, "change": {}}
        for name, value in state.items():
            group, part = name.split("/")
            groups[group][part] = value
        if groups["flicker"]:
            self.meter.restore(groups["flicker"])
        if groups["change"]:
            self._filter = ChangeFilter(self.smoothing.change)
            self._filter.filter.restore(groups["change"])

    def _request(self, face: Face, presence: float) -> dict[str, float]:
        """Variations for the photograph when the driving face shows this."""
        share = self.strength * presence
        return {name: share * (face.action_units[name] - rest) for name, rest in self.neutral.items()}
