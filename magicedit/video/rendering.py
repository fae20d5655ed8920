"""The second pass: makes frames in batches, encodes them in pieces and joins these with the sound."""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from magicedit.change import Change
from magicedit.editor import FaceCut, FacePlace
from magicedit.video.analysis import Analysis, Row, SteadyFace, Track, steady_faces
from magicedit.video.flicker import FlickerMeter
from magicedit.video.keyframes import KeyedChanges, KeyFrames
from magicedit.video.partial import Partial
from magicedit.video.results import Pace, Progress
from magicedit.video.smoothing import ChangeFilters, within
from magicedit.video.threads import Behind, how_many
from magicedit.video.writing import PieceWriter, join
from magicedit.video_reading import VideoInfo
from magicedit.vocabulary import whole_name
from magicedit.warping.muscles import SHAPES

if TYPE_CHECKING:
    from magicedit.video.job import VideoJob

Item = TypeVar("Item")
# Both count from frame 0, so that a resumed run makes the same batches and pieces.
BATCH = 8  # frames per model call, fewer if they are large: see `batch_size`
BATCH_BYTES = 150_000_000  # of its pictures: RGB before and after, and yuv420p, 7.5 bytes a pixel
PIECE = 24  # frames: the most that a killed program loses, and the distance of key frames
ENCODED_BEHIND = 16  # most frames that wait for the encoder, 1.5 bytes a pixel


def batch_size(width: int, height: int) -> int:
    """Returns the number of frames of this size per model call; PIECE is a multiple of it."""
    size = BATCH
    while size > 2 and size * width * height * 7.5 > BATCH_BYTES:
        size //= 2
    return size


class FrameMaker(ABC):
    """Makes the output's frames; `state` holds everything that later frames need of earlier ones.

    job: the settings. tracks: the selected faces of `analysis`.
    """

    def __init__(self, job: "VideoJob", analysis: Analysis, tracks: list[Track]):
        self.job, self.analysis, self.tracks = job, analysis, tracks
        self.video, self.time_base = job.video, job.time_base
        self.changer, self.sampling = job.editor.changer, job.sampling
        self.smoothing = job.settings.smoothing
        self.meter = FlickerMeter()
        self.filters = ChangeFilters(self.smoothing.change)
        self.keyed = KeyedChanges(job.settings.key_frames if self.changer.composes else KeyFrames(most=1))
        # What changes depend on: lids, gaze and head are drawn on every frame
        moving = {*self.changer.model.vocabulary, *SHAPES}
        self._moving = [name for name in job.editor.action_units.with_sides() if whole_name(name) in moving]

    @abstractmethod
    def frames(self, first: int) -> Iterator[tuple[int, np.ndarray]]:
        """Yields timestamp and yuv420p planes of each frame from number `first`, a multiple of PIECE."""

    def steady(self) -> Iterator[tuple[Row, dict[int, SteadyFace]]]:
        """See `steady_faces`."""
        size = self.changer.model.resolution
        return steady_faces(self.analysis.rows(), self.tracks, self.time_base, self.smoothing, size)

    def changes(self, cuts: list[FaceCut], requests: list[dict[str, float]]) -> list[Change | None]:
        """See `FaceChanger.requested_changes`."""
        return self.changer.requested_changes(cuts, requests, self.sampling, self.job.on_step)

    def position(self, request: Mapping[str, float], place: FacePlace | None = None) -> np.ndarray:
        """See `KeyFrames.position`; place: of a face that moves."""
        steps = np.array([request.get(name, 0.0) for name in self._moving])
        landmarks = None if place is None else place.landmarks / place.alignment.size
        return self.keyed.settings.position(landmarks, steps)

    def state(self) -> dict[str, np.ndarray]:
        parts = {
            "flicker": self.meter.state(),
            "change": self.filters.state(),
            "keyed": self.keyed.state(),
        }
        return {f"{part}/{name}": value for part, state in parts.items() for name, value in state.items()}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        if state:
            self.meter.restore(within(state, "flicker"))
            self.filters.restore(within(state, "change"))
            self.keyed.restore(within(state, "keyed"))


def batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yields the items in lists of `size`; the last may be shorter."""
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


def render(maker: FrameMaker, info: VideoInfo, partial: Partial) -> tuple[int, list[str]]:
    """Makes all frames and the output; resumes an interrupted run.

    info: of the output.

    Returns:
        the number of frames already made by earlier runs, and remarks on the sound.

    Raises:
        OutputError: where the output cannot be written.
    """
    # 1. Finished pieces
    job, total = maker.job, maker.analysis.frames
    already = len(partial.pieces())
    maker.restore(partial.state(already))
    pace = Pace(job.progress, "frames", total, min(already * PIECE, total))

    # 2. Remaining pieces
    made = maker.frames(already * PIECE)
    encoder = Behind(how_many(ENCODED_BEHIND, info, 1.5))
    try:
        for number in range(already, -(-total // PIECE)):
            stop = min((number + 1) * PIECE, total)
            writer = PieceWriter(partial.begin_piece(number), info, job.settings.encoding, PIECE)
            stamps = []
            try:
                for index in range(number * PIECE, stop):
                    pts, planes = next(made)
                    stamps.append(pts)
                    encoder.call(writer.write, planes, pts)
                    pace(index + 1)
                encoder.finish()
            finally:
                encoder.call(writer.close)
                encoder.finish()
            partial.finish_piece(number, stamps, maker.state())
    finally:
        made.close()
        encoder.close()

    # 3. Join all pieces with the sound
    if job.progress is not None:
        job.progress(Progress("joining", total, total, None))
    last_duration = maker.analysis.last_duration
    marked = job.mark, job.packet
    remarks = join(partial.pieces(), last_duration, info, job.video, job.output, partial.joined, *marked)
    return min(already * PIECE, total), remarks
