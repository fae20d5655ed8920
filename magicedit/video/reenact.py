"""Transfers the expressions of a video to the face of a photograph."""

import hashlib
import itertools
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Unpack

import numpy as np

from magicedit.editor import ExpressionEditor, FaceCut, select_faces
from magicedit.errors import MagicEditError
from magicedit.faces import Face
from magicedit.imaging import Photo, open_photo, reduced
from magicedit.video.analysis import Analysis, Track, choose, scan
from magicedit.video.job import VideoJob, VideoOptions
from magicedit.video.reading import VideoInfo, from_rgb, replace_pixels, still_info
from magicedit.video.rendering import FrameMaker, batch_size, batches
from magicedit.video.results import VideoResult
from magicedit.video.writing import check_size, check_video_output, even_sided

NEUTRAL_PERCENT = 10  # of the frames, by unit: an intensity exceeded in nine tenths of the time
NEUTRAL_SECONDS = 0.2  # around the given neutral moment
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
    **options: Unpack[VideoOptions],
) -> VideoResult:
    """Gives a photograph the expressions of a video, with the video's timing and sound.

    In each frame the variation is the driving face's measured intensities minus its neutral ones, times
    `strength`; it is added to the photograph's own expression. Only units that the model can edit are
    transferred, without distinguishing sides. Pose and gaze stay those of the photograph. Frames without the
    driving face show the photograph unchanged. Interrupted work resumes, as in `edit_video`.

    Args:
        source: the photograph; the video shows all of it, with sides rounded up to even numbers by repeating
            the last line.
        driving: the video.
        strength: -2 to 2.
        face: "largest" or an index into the faces of the photograph.
        driving_face: "largest" or an index into the faces of the video, see `edit_video`.
        neutral_at: seconds at which the driving face is at rest. Default: the 10th percentile of each unit's
            intensity over the frames.
        longest: px, maximum of the longer side; larger photographs are reduced.
        steps, guidance, seed, quality, teeth, references, settings, damaged, progress, on_step: as of
            `edit_video`.

    Raises:
        VideoError, NoFaceError, OutputError, MissingDependencyError: as `edit_video`.
        ImageError: where the photograph cannot be read.
        MagicEditError: where `strength` or `neutral_at` is invalid, or the backend measures no units.
    """
    if not (math.isfinite(strength) and STRENGTHS[0] <= strength <= STRENGTHS[1]):
        raise MagicEditError(
            f"the strength must be from {STRENGTHS[0]:g} to {STRENGTHS[1]:g}, got {strength}"
        )
    job = VideoJob(editor, driving, output, **options)
    photo = open_photo(source)
    if longest is not None and longest < 64:
        raise MagicEditError(f"the longer side of a video must be at least 64 px, got {longest}")
    pixels = photo.pixels if longest is None else reduced(photo.pixels, longest)
    info = still_info(job.video.info, pixels.shape[1], pixels.shape[0])
    check_size(info, f"{photo.source or 'the photograph'}", "reduce it, as by --longest 1920")
    inputs = (job.video.path,) if photo.source is None else (job.video.path, photo.source)
    check_video_output(job.output, *inputs)
    faces = editor.backend.detect(np.ascontiguousarray(pixels))
    (face_in_photo,) = select_faces(faces, "largest" if face == "all" else face, photo)

    def prepare(analysis: Analysis) -> tuple[ReenactMaker, list[str]]:
        (track,) = choose(scan(analysis.rows(), job.time_base), driving_face, job.video.path)
        names, backend = editor.action_units, editor.backend.name
        neutral = neutral_of(analysis, track, job.time_base, names, neutral_at, backend)
        return ReenactMaker(job, analysis, track, info, pixels, face_in_photo, neutral, strength), []

    about = {
        "command": "reenact",
        "photo": hashlib.blake2b(np.ascontiguousarray(pixels)).hexdigest(), "size": pixels.shape,
        "face": face, "driving_face": driving_face, "neutral_at": neutral_at, "strength": strength,
    }  # fmt: skip
    return job.run(info, about, prepare)


def neutral_of(
    analysis: Analysis,
    track: Track,
    time_base: float,
    names: tuple[str, ...],
    at: float | None,
    backend: str,
) -> dict[str, float]:
    """Returns the intensities of a face at rest, for the measured units of `names`.

    Args:
        at: seconds, for the mean of the frames around that moment; None: the percentile NEUTRAL_PERCENT over
            all frames, to 0.005 steps.

    Raises:
        MagicEditError: where no unit is measured, or no frame shows the face at that moment.
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


class ReenactMaker(FrameMaker):
    """Makes the frames of a reenacted photograph, see `rendering.FrameMaker`.

    Args:
        track, neutral: of the driving video; `analysis` holds its faces.
        info: of the output.
        pixels: of the photograph, (height, width, 3) uint8 RGB. face: the edited face in it.
    """

    def __init__(
        self,
        job: VideoJob,
        analysis: Analysis,
        track: Track,
        info: VideoInfo,
        pixels: np.ndarray,
        face: Face,
        neutral: Mapping[str, float],
        strength: float,
    ):
        super().__init__(job, analysis, [track])
        self.info, self.neutral, self.strength = info, neutral, strength
        self._pixels, self._face = even_sided(pixels), face
        self._planes = from_rgb(self._pixels, info)
        self._cut: FaceCut | None = None

    def frames(self, first: int) -> Iterator[tuple[int, np.ndarray]]:
        """Timestamp and planes of each frame from number `first` on, a multiple of PIECE."""
        if self._cut is None:
            self._cut = self.changer.cut(self._pixels, self._face)
        for batch in batches(itertools.islice(self.steady(), first, None), batch_size(self.info)):
            requests = []
            for _, faces in batch:
                driving = faces.get(self.tracks[0].number)
                requests.append({} if driving is None else self._request(driving.face, driving.presence))
            changes = self.changes([self._cut] * len(batch), requests)
            for (row, _), request, change in zip(batch, requests, changes, strict=True):
                edited = self._pixels
                if change is None:
                    self.filters.forget(0)
                else:
                    change = self.filters(change, 0, 0, row.pts * self.time_base)
                    edited = self.changer.carry(edited, self._cut, change, request, self.sampling)
                self.meter.add(self._pixels, edited, {"face": self._face})
                yield row.pts, replace_pixels(self._planes, self._pixels, edited, self.info)

    def _request(self, face: Face, presence: float) -> dict[str, float]:
        """Returns the photograph's variations for a driving face."""
        share = self.strength * presence
        return {name: share * (face.action_units[name] - rest) for name, rest in self.neutral.items()}
