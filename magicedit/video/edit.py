"""Editing the faces of a video: the first pass finds them, the second edits and encodes."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Unpack

import numpy as np

from magicedit.action_units import vocabulary_of
from magicedit.editor import ExpressionEditor, FacePlace
from magicedit.errors import ActionUnitError, VideoError
from magicedit.expression import Expression
from magicedit.faces import levels_of
from magicedit.faces.glasses import glasses_presence
from magicedit.request import Deltas, EditRequest
from magicedit.video.analysis import Analysis, Row, SteadyFace, Track, choose, scan
from magicedit.video.curves import Curve
from magicedit.video.job import VideoJob, VideoOptions
from magicedit.video.rendering import FrameMaker, batch_size, batches
from magicedit.video.results import VideoResult
from magicedit.video.threads import pictures_ahead
from magicedit.video.writing import check_size, check_video_output
from magicedit.video_reading import HDR_TRANSFERS, replace_pixels
from magicedit.vocabulary import whole_name
from magicedit.warping import Mouth


def edit_video(
    editor: ExpressionEditor,
    source: str | Path,
    output: str | Path,
    add: Deltas | None = None,
    set: Deltas | None = None,
    emotion: str | tuple[str, float] | None = None,
    face: str | int = "largest",
    *,
    curve: Curve | None = None,
    expression: Expression | None = None,
    strength: float = 1.0,
    neutral: bool = False,
    **options: Unpack[VideoOptions],
) -> VideoResult:
    """Edits one or all faces of a video; sound, timestamps and everything outside the faces stay.

    Interrupted work stays in a folder beside the output. The same call resumes it, and the frames equal those
    of an uninterrupted run.

    Args:
        source: the video. output: .mp4, .mov or .mkv, in H.264; it appears once it is complete.
        add, set, emotion, expression, strength, neutral: as of `ExpressionEditor.edit`, for every frame;
            `set`, `neutral` and an expression of intensities start from what that frame measures.
        face: "largest" (by area and time), "all", or an index into the faces of the video in that order.
        curve: variations over time, added to the others.
        steps, guidance, seed, quality, teeth, references: as of `ExpressionEditor.edit`; noise and donor are
            the same in every frame; the default quality is QUALITY.
        settings, damaged, progress, on_step: see `VideoJob`.

    Raises:
        VideoError: where the video cannot be read or is damaged, or H.264 cannot hold its pictures.
        NoFaceError: where there is no face, or the index is too large.
        ActionUnitError: as `EditRequest`; where a unit has a target and is also in the curve.
        OutputError: where the output cannot be written, is the input, or is being made by another program.
        MissingDependencyError: without the extra `video`.
    """
    names = editor.action_units
    asked = EditRequest(
        add, set, emotion, expression=expression, strength=strength, neutral=neutral, names=names
    )
    check_request(names, asked, curve)
    curve = curve and curve.usable_by(names)
    job = VideoJob(editor, source, output, **options)
    info, path = job.video.info, job.video.path
    check_size(info, str(path), "scale it first")
    check_video_output(job.output, path)

    def requested(current: Mapping[str, float], seconds: float) -> dict[str, float]:
        parts = [asked.deltas(names, current, continuous=True)]
        return names.total([*parts, curve.at(seconds)] if curve else parts)

    def prepare(analysis: Analysis) -> tuple[EditMaker, list[str]]:
        tracks = choose(scan(analysis.rows(), job.time_base), face, path)
        maker = EditMaker(job, analysis, tracks, requested)
        by_frame = (asked.set, asked.emotion, asked.expression)
        if neutral or any(part is not None for part in by_frame):  # then each frame has its own request
            maker.check()
        remarks, last = [], analysis.last_pts * job.time_base
        if info.deep:
            transfer = HDR_TRANSFERS.get(info.colours.transfer)
            kind = f"HDR ({transfer})" if transfer else "in more than 8 bits a channel"
            remarks.append(
                f"{info.path} is {kind}; the output has 8 bits and the same colour description, so that "
                "smooth gradients may show steps"
            )
        if analysis.transparent:
            remarks.append(
                f"{info.path} has transparent pictures; the output is opaque and shows what they hid"
            )
        if curve is not None and curve.end > last + analysis.last_duration * job.time_base:
            remarks.append(
                f"the last frame is at {last:.2f} s; the later values of {curve.source}, "
                f"up to {curve.end:.2f} s, were not used"
            )
        return maker, remarks

    about = {"command": "edit", "face": face, "asked": asked.to_json(), "curve": curve and curve.to_json()}
    return job.run(info, about, prepare)


def check_request(names: Sequence[str], asked: EditRequest, curve: Curve | None) -> None:
    """Raises errors of a request that do not depend on the video's content.

    Args:
        names: of the model's units.

    Raises:
        ActionUnitError: as `EditRequest.deltas`; where the curve has a unit that the model cannot edit or
            that also has a target, or where sums leave -10 to 10.
    """
    names = vocabulary_of(names)
    constant = asked.deltas(names, dict.fromkeys(names.with_sides(), 0.0))
    if curve is None:
        return
    curve = curve.usable_by(names)
    arrived = {name if name in names else names.codes.get(name, (name,))[0] for name in asked.arrived_at}
    if both := sorted(arrived & {whole_name(name) for name in curve.values}):
        raise ActionUnitError(
            f"{', '.join(both)}: both set (set, expression) and changed by {curve.source}; choose one"
        )
    if not asked.neutral:
        for seconds in curve.times:  # sums are extreme at the curve's keyframes
            names.total([constant, curve.at(float(seconds))])


class EditMaker(FrameMaker):
    """Makes the edited frames of a video, see `rendering.FrameMaker`.

    requested: current intensities and seconds -> variations.
    """

    def __init__(
        self,
        job: VideoJob,
        analysis: Analysis,
        tracks: list[Track],
        requested: Callable[[Mapping[str, float], float], dict[str, float]],
    ):
        super().__init__(job, analysis, tracks)
        self._requested = requested

    def check(self) -> None:
        """Raises ActionUnitError where some frame has an invalid request."""
        for row, faces in self.steady():
            for face in faces.values():
                self._request(face, row)

    def frames(self, first: int) -> Iterator[tuple[int, np.ndarray]]:
        """Yields timestamp and planes of each frame from number `first`, a multiple of PIECE."""
        steady = itertools.islice(self.steady(), first, None)
        size = batch_size(self.video.info.width, self.video.info.height)
        with closing(pictures_ahead(self.video, first)) as decoded:
            for batch in batches(zip(steady, decoded, strict=True), size):
                rows = [row for (row, _), _ in batch]
                before = [pixels for _, (_, pixels) in batch]
                after = self.edited(rows, [faces for (_, faces), _ in batch], before)
                for ((row, faces), (frame, pixels)), edited in zip(batch, after, strict=True):
                    if frame.pts != row.pts:
                        raise VideoError(
                            f"{self.video.path} has changed, or decodes differently than before, at frame "
                            f"{row.index}; leave it alone while it is edited"
                        )
                    self.meter.add(
                        pixels, edited, {f"{n}-{face.run}": face.face for n, face in faces.items()}
                    )
                    yield frame.pts, replace_pixels(frame.planes, pixels, edited, self.video.info)

    @cached_property
    def _donors(self) -> dict[int, Mouth]:
        """Donors of teeth for the whole video, by face number; chosen in the face's first frame."""
        donors: dict[int, Mouth] = {}
        for _, faces in self.steady():
            for number in faces.keys() - donors.keys():
                landmarks = faces[number].face.landmarks
                donors[number] = self.sampling.mouths.donor(landmarks, self.sampling.seed)
            if len(donors) == len(self.tracks):
                break
        return donors

    def _request(self, face: SteadyFace, row: Row) -> dict[str, float]:
        return self._requested(levels_of(face.face), row.pts * self.time_base)

    def edited(
        self, rows: list[Row], faces: list[dict[int, SteadyFace]], pixels: list[np.ndarray]
    ) -> list[np.ndarray]:
        """Returns the edited frames of a batch, RGB (height, width, 3) uint8.

        Faces are edited one after the other, so that overlapping faces do not undo each other. The model
        processes all key frames of a face together.
        """
        edited = list(pixels)
        times = [row.pts * self.time_base for row in rows]
        for track in self.tracks:
            number = track.number
            requests = {
                i: self._request(present[number], row)
                for i, (row, present) in enumerate(zip(rows, faces, strict=True))
                if number in present
            }
            requests = {i: request for i, request in requests.items() if any(request.values())}
            steady = {i: faces[i][number] for i in requests}
            glasses = median(track.glasses)
            places = {
                i: FacePlace.of(face.face, face.alignment, glasses_presence(glasses))
                for i, face in steady.items()
            }

            # 1. The model on key frames, and the changes between them
            runs = {i: face.run for i, face in steady.items()}
            positions = {i: self.position(requests[i], places[i]) for i in requests}
            keys = self.keyed.plan(number, runs, times, positions)
            cuts = [self.changer.cut(edited[i], steady[i].face, steady[i].alignment, glasses) for i in keys]
            answers = dict(zip(keys, self.changes(cuts, [requests[i] for i in keys]), strict=True))
            changes = self.keyed.fill(number, runs, times, positions, answers)

            # 2. Carried to the frames
            for i, time in enumerate(times):
                change = changes.get(i)
                if change is None:  # empty request, or the face is absent
                    self.filters.forget(number)
                    continue
                change = self.filters(change, number, runs[i], time)
                edited[i] = self.changer.carry(
                    edited[i], places[i], change, requests[i], self.sampling,
                    presence=steady[i].presence, donor=self._donors[number],
                    in_place=edited[i] is not pixels[i],
                )  # fmt: skip
        return edited
