"""Transfers the expressions of a video to the face of a photograph."""

import hashlib
import itertools
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Unpack

import numpy as np

from magicedit.action_units import UNRELIABLE, is_angle
from magicedit.editor import ExpressionEditor, FaceCut, select_faces
from magicedit.errors import MagicEditError
from magicedit.faces import Face, levels_of
from magicedit.imaging import Photo, open_photo, reduced
from magicedit.video.analysis import Analysis, Row, Track, choose, scan
from magicedit.video.job import VideoJob, VideoOptions
from magicedit.video.rendering import FrameMaker, batch_size, batches
from magicedit.video.results import VideoResult
from magicedit.video.writing import check_size, check_video_output, even_sided
from magicedit.video_reading import VideoInfo, from_rgb, replace_pixels, still_info
from magicedit.vocabulary import Vocabulary

NEUTRAL_PERCENT = 10  # of the frames, by unit: an intensity exceeded in nine tenths of the time
NEUTRAL_SECONDS = 0.2  # around the given neutral moment
STRENGTHS = (-2.0, 2.0)
HEAD_SHARE = 0.5  # default share of the driving head's movement
# Share of a drawn movement that its measurement shows: closed eyes measure 2.5 steps and more above open
# ones, and AU43 closes them at 5. Gaze is measured as it is drawn, see benchmarks/gaze.json.
SHOWN = {"AU43": 0.5}
# Degrees of measured gaze that make up for a degree of the head in faces that keep looking at the camera:
# smiling and neutral photographs of 89 people of the London set. Across that is the angle itself. Measured
# pitch of a head follows the expression more than the head, so it takes back what gaze has of it, no more.
HEAD_IN_GAZE = {"yaw": 1.0, "pitch": 0.4}
# Steps of AU43 above rest from which gaze is held: half closed lids read as eyes that look down
LIDS_HIDE = 0.6
SMALLEST_ANGLE = 0.05  # degrees: less is invisible, and is not drawn
# Range and step of the histograms that give percentiles in constant memory: intensity steps, degrees
_INTENSITIES, _ANGLES = (0.0, 5.0, 0.005), (-90.0, 90.0, 0.1)


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
    head: float = HEAD_SHARE,
    longest: int | None = None,
    **options: Unpack[VideoOptions],
) -> VideoResult:
    """Gives a photograph the expressions of a video, with the video's timing and sound.

    In each frame the variation is the driving face's measured intensities minus its neutral ones, times
    `strength`; it is added to the photograph's own expression. Only units that the model can edit are
    transferred, without distinguishing sides. Models with the controls of geometry also transfer blinks
    (AU43), gaze and a share of the head's movement; angles are limited to the controls' ranges. Where the
    head turns less, the eyes turn more. Gaze is held while lids cover the eyes. Frames without the driving
    face show the photograph unchanged. Interrupted work resumes, as in `edit_video`.

    Args:
        source: the photograph; the video shows all of it, with sides rounded up to even numbers by repeating
            the last line.
        driving: the video.
        strength: -2 to 2.
        face: "largest" or an index into the faces of the photograph.
        driving_face: "largest" or an index into the faces of the video, see `edit_video`.
        neutral_at: seconds at which the driving face is at rest. Default: the 10th percentile of each unit's
            intensity over the frames, and the median of gaze and head.
        head: 0 to 1, share of the driving head's movement, besides `strength`.
        longest: px, maximum of the longer side; larger photographs are reduced.
        steps, guidance, seed, quality, teeth, references, settings, damaged, progress, on_step: as of
            `edit_video`.

    Raises:
        VideoError, NoFaceError, OutputError, MissingDependencyError: as `edit_video`.
        ImageError: where the photograph cannot be read.
        MagicEditError: where `strength`, `head` or `neutral_at` is invalid, or the backend measures no units.
    """
    if not (math.isfinite(strength) and STRENGTHS[0] <= strength <= STRENGTHS[1]):
        raise MagicEditError(
            f"the strength must be from {STRENGTHS[0]:g} to {STRENGTHS[1]:g}, got {strength}"
        )
    if not (math.isfinite(head) and 0 <= head <= 1):
        raise MagicEditError(f"the share of the head's movement must be from 0 to 1, got {head}")
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
        names, backend = followed(editor.action_units), editor.backend.name
        neutral = neutral_of(analysis, track, job.time_base, names, neutral_at, backend)
        maker = ReenactMaker(job, analysis, track, info, pixels, face_in_photo, neutral, strength, head)
        hides = photo.alpha is not None and photo.alpha.min() < 255
        name = photo.source or "the photograph"
        return maker, [f"{name} is transparent; the output is not, and shows what it hides"] if hides else []

    about = {
        "command": "reenact",
        "photo": hashlib.blake2b(np.ascontiguousarray(pixels)).hexdigest(), "size": pixels.shape,
        "face": face, "driving_face": driving_face, "neutral_at": neutral_at, "strength": strength,
        "head": head,
    }  # fmt: skip
    return job.run(info, about, prepare, photo)


def followed(names: Vocabulary) -> Vocabulary:
    """Returns the controls of an editor that follow a driving face.

    They are the model's own, gaze, head and AU43. A model's own AU45 is the same score and replaces AU43.
    """
    left_out = UNRELIABLE - {*names[: names.numbers]} | ({"AU43"} if "AU45" in names else set())
    return names.named(name for name in names if name not in left_out)


def neutral_of(
    analysis: Analysis,
    track: Track,
    time_base: float,
    names: tuple[str, ...],
    at: float | None,
    backend: str,
) -> dict[str, float]:
    """Returns the intensities of a face at rest, and gaze and head in degrees, where `names` are measured.

    Args:
        at: seconds, for the mean of the frames around that moment; None: the percentile NEUTRAL_PERCENT of
            intensities over all frames, to 0.005 steps, and the median of angles, to 0.1 degrees.

    Raises:
        MagicEditError: where no unit is measured, or no frame shows the face at that moment.
    """
    scales = {name: _ANGLES if is_angle(name) else _INTENSITIES for name in names}
    histograms = {
        name: np.zeros(round((high - low) / step) + 1, np.int64) for name, (low, high, step) in scales.items()
    }
    near: dict[str, list[float]] = {}
    for row in analysis.rows():
        face = row.face(track.number)
        if face is None:
            continue
        levels = levels_of(face)
        measured = {name: levels[name] for name in names if name in levels}
        if all(map(is_angle, measured)):
            raise MagicEditError(
                f"the face backend {backend} measures none of the action units that this model edits; use "
                "mediapipe"
            )
        if at is not None and abs(row.pts * time_base - at) <= NEUTRAL_SECONDS / 2:
            for name, value in measured.items():
                near.setdefault(name, []).append(value)
        for name, value in measured.items():
            low, high, step = scales[name]
            histograms[name][round((float(np.clip(value, low, high)) - low) / step)] += 1
    if at is not None:
        if not near:
            raise MagicEditError(
                f"the driving face is not visible at {at:g} s, the time given as neutral; it is visible from "
                f"{track.runs[0].starts:.2f} s to {track.runs[-1].ends:.2f} s"
            )
        return {name: float(np.mean(values)) for name, values in near.items()}
    neutral = {}
    for name, counts in histograms.items():
        if total := counts.sum():
            low, _, step = scales[name]
            percent = 50 if is_angle(name) else NEUTRAL_PERCENT
            neutral[name] = low + step * int(np.searchsorted(np.cumsum(counts), percent / 100 * total))
    return neutral


class ReenactMaker(FrameMaker):
    """Makes the frames of a reenacted photograph, see `rendering.FrameMaker`.

    Args:
        track, neutral: of the driving video; `analysis` holds its faces.
        info: of the output.
        pixels: of the photograph, (height, width, 3) uint8 RGB. face: the edited face in it.
        strength, head: as of `reenact`.
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
        head: float,
    ):
        super().__init__(job, analysis, [track])
        self.info, self.neutral, self.strength, self.head = info, neutral, strength, head
        self._pixels, self._face = even_sided(pixels), face
        self._planes = from_rgb(self._pixels, info)
        self._cut: FaceCut | None = None

    def frames(self, first: int) -> Iterator[tuple[int, np.ndarray]]:
        """Timestamp and planes of each frame from number `first` on, a multiple of PIECE."""
        if self._cut is None:
            self._cut = self.changer.cut(self._pixels, self._face)
        size = batch_size(self.info.width, self.info.height)
        for batch in batches(itertools.islice(self.requests(), first, None), size):
            times = [row.pts * self.time_base for row, _ in batch]
            runs = {i: 0 for i, (_, request) in enumerate(batch) if any(request.values())}
            positions = {i: self.position(batch[i][1]) for i in runs}
            keys = self.keyed.plan(0, runs, times, positions)
            answers = self.changes([self._cut] * len(keys), [batch[i][1] for i in keys])
            changes = self.keyed.fill(0, runs, times, positions, dict(zip(keys, answers, strict=True)))
            for i, (row, request) in enumerate(batch):
                edited = self._pixels
                change = changes.get(i)
                if change is None:
                    self.filters.forget(0)
                else:
                    change = self.filters(change, 0, 0, times[i])
                    edited = self.changer.carry(edited, self._cut, change, request, self.sampling)
                self.meter.add(self._pixels, edited, {"face": self._face})
                yield row.pts, replace_pixels(self._planes, self._pixels, edited, self.info)

    def requests(self) -> Iterator[tuple[Row, dict[str, float]]]:
        """Yields each frame's row with the photograph's variations, empty without the driving face."""
        controls = self.job.editor.action_units
        gaze: dict[str, float] = {}  # of the last frame with open eyes
        for row, faces in self.steady():
            driving = faces.get(self.tracks[0].number)
            if driving is None:
                gaze = {}
                yield row, {}
                continue
            moved = self._moved(driving.face)
            if max(moved.get("AU43", 0.0), moved.get("AU45", 0.0)) > LIDS_HIDE:
                moved = {name: value for name, value in moved.items() if controls[name].kind != "gaze"} | gaze
            else:
                gaze = {name: value for name, value in moved.items() if controls[name].kind == "gaze"}
            yield row, self._request(moved, driving.presence)

    def _moved(self, face: Face) -> dict[str, float]:
        """Returns the difference of a driving face to its neutral, by control.

        Where the photograph's head turns less than the driving one, its eyes turn by the rest, so that they
        look where the driving eyes look.
        """
        levels = levels_of(face)
        moved = {name: levels[name] - rest for name, rest in self.neutral.items() if name in levels}
        for axis, share in HEAD_IN_GAZE.items():
            if {f"gaze_{axis}", f"head_{axis}"} <= moved.keys():
                moved[f"gaze_{axis}"] += share * (1 - self.head) * moved[f"head_{axis}"]
        return moved

    def _request(self, moved: Mapping[str, float], presence: float) -> dict[str, float]:
        """Returns the photograph's variations for a movement of the driving face, within their ranges."""
        controls, request = self.job.editor.action_units, {}
        for name, value in moved.items():
            share = presence * self.strength / SHOWN.get(name, 1)
            if controls[name].kind == "head":
                share *= self.head
            request[name] = float(np.clip(share * value, *controls[name].range))
            if is_angle(name) and abs(request[name]) < SMALLEST_ANGLE:
                request[name] = 0.0
        return request
