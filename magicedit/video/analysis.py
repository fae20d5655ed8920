"""The first pass over a video: finds its faces and writes them frame by frame to a resumable file."""

import base64
import bisect
import json
import zlib
from collections import deque
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from magicedit.errors import NoFaceError, VideoError
from magicedit.faces import Alignment, Face, FaceBackend, Gaze, Pose
from magicedit.faces.tracking import CutDetector, Tracked, Tracker, Tracking
from magicedit.faces.types import box_around
from magicedit.files import read_text, sha256_of, write_text
from magicedit.ledger import drop_torn_line
from magicedit.request import missing_face
from magicedit.video.results import Pace, ProgressCallback
from magicedit.video.smoothing import FaceFilter, Smoothing
from magicedit.video.threads import pictures_ahead
from magicedit.video_reading import Damage, Video

BRIDGED = 0.25  # seconds, longest gap without a detection that is filled by linear movement
FADE = 0.15  # seconds, fade of an edit when a face appears or leaves within a scene


@dataclass(frozen=True, eq=False)
class Row:
    """The faces of one frame.

    index, pts, duration: as in `Frame`. difference: to the frame before, see `CutDetector`. cut: whether it
    begins a scene. faces: by number. transparent: as in `Frame`.
    """

    index: int
    pts: int
    duration: int
    difference: float
    cut: bool
    faces: tuple[Tracked, ...]
    transparent: bool = False

    def face(self, number: int) -> Face | None:
        return next((tracked.face for tracked in self.faces if tracked.number == number), None)

    def to_line(self) -> str:
        """Returns its JSON with a checksum in front."""
        content = vars(self) | {"faces": [_tracked_to_json(tracked) for tracked in self.faces]}
        text = json.dumps(content, separators=(",", ":"))
        return f"{zlib.crc32(text.encode()):08x} {text}\n"

    @staticmethod
    def from_line(line: str) -> "Row":
        """Reads what `to_line` wrote; ValueError for anything else."""
        checksum, _, text = line.rstrip("\n").partition(" ")
        if checksum != f"{zlib.crc32(text.encode()):08x}":
            raise ValueError("a line differs from what was written")
        content = json.loads(text)
        return Row(**(content | {"faces": tuple(map(_tracked_from_json, content["faces"]))}))


_PLAIN = ("scheme", "score", "action_units", "sides")  # of a face, as they are


def _tracked_to_json(tracked: Tracked) -> dict[str, Any]:
    face = tracked.face
    return {
        "number": tracked.number,
        "box": list(face.box),
        "landmarks": _encoded(face.landmarks),
        "pose": None if face.pose is None else list(vars(face.pose).values()),
        "gaze": face.gaze,
        "looks": None if tracked.looks is None else _encoded(tracked.looks),
        "glasses": tracked.glasses,
        **{name: getattr(face, name) for name in _PLAIN},
    }


def _tracked_from_json(content: dict[str, Any]) -> Tracked:
    face = Face(
        box=tuple(content["box"]),
        landmarks=_decoded(content["landmarks"]).reshape(-1, 2),
        pose=content["pose"] and Pose(*content["pose"]),
        gaze=content["gaze"] and Gaze(*content["gaze"]),
        **{name: content[name] for name in _PLAIN},
    )
    looks = content["looks"]
    return Tracked(content["number"], face, None if looks is None else _decoded(looks), content["glasses"])


def _encoded(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values, "<f4").tobytes()).decode()


def _decoded(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), "<f4")


@dataclass(frozen=True)
class Analysis:
    """A finished first pass.

    rows_file: the file of rows. frames: their number. last_pts, last_duration: of the last frame, in ticks;
    the duration is at least a usual frame's.
    damage: of the video; None: none. transparent: whether some frame is.
    """

    rows_file: Path
    frames: int
    last_pts: int
    last_duration: int
    damage: Damage | None
    transparent: bool = False

    def rows(self) -> Iterator[Row]:
        return read_rows(self.rows_file)


def read_rows(path: Path) -> Iterator[Row]:
    """Yields the rows of a file; an incomplete last line is ignored. ValueError for other than our lines."""
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file):
            if line.endswith("\n"):
                row = Row.from_line(line)
                if row.index != number:
                    raise ValueError(f"row {row.index} stands in line {number + 1}")
                yield row


def look_through(video: Video, tracker: Tracker, cuts: CutDetector, first: int = 0) -> Iterator[Row]:
    """Yields the frames of a video from number `first`, with the faces that the tracker finds in them.

    The tracker and the detector of cuts know the frames before. Raises VideoError as `Video.frames`.
    """
    # The frame before the first gives its difference
    with closing(pictures_ahead(video, max(0, first - 1))) as frames:
        for frame, pixels in frames:
            difference = cuts.difference(frame.planes)
            if frame.index < first:
                continue
            seen = look_at(tracker, cuts, frame.index, pixels, difference)
            yield Row(frame.index, frame.pts, frame.duration, difference, *seen, frame.transparent)


def look_at(
    tracker: Tracker, cuts: CutDetector, index: int, pixels: np.ndarray, difference: float
) -> tuple[bool, tuple[Tracked, ...]]:
    """Returns whether a film cuts to a frame, and the faces that the tracker finds in it.

    index: of the frame; those before it have been looked at. pixels: (height, width, 3) uint8 RGB.
    difference: `CutDetector.difference` of the frame.
    """
    cut = index > 0 and cuts.is_cut(difference)
    faces = tracker.look(pixels, index, cut)
    tracker.note(faces, cut)
    return cut, tuple(faces)


def analyse(
    video: Video,
    backend: FaceBackend,
    rows_file: Path,
    tracking: Tracking,
    progress: ProgressCallback | None = None,
) -> Analysis:
    """Finds the faces of all frames; resumes an interrupted pass.

    rows_file: is written line by line; a `.done` file beside it marks it complete. Files that were changed
    since are made again. Raises VideoError as `Video.frames`.
    """
    done_file = rows_file.with_suffix(".done")
    if done_file.is_file() and (finished := _finished(rows_file, done_file)):
        return finished

    # 1. Rows of an interrupted pass
    tracker, cuts = Tracker(backend, tracking), CutDetector(tracking)
    last: Row | None = None
    transparent = False
    if rows_file.is_file():
        try:
            for last in read_rows(rows_file):
                if last.index > 0:
                    cuts.is_cut(last.difference)
                tracker.note(last.faces, last.cut)
                transparent |= last.transparent
            with rows_file.open("r+b") as file:
                drop_torn_line(file)
        except ValueError:
            rows_file.unlink()
            return analyse(video, backend, rows_file, tracking, progress)
    known = 0 if last is None else last.index + 1
    pace = Pace(progress, "faces", video.info.frames, known)

    # 2. The remaining frames
    with (
        rows_file.open("a", encoding="utf-8") as file,
        closing(look_through(video, tracker, cuts, known)) as rows,
    ):
        for last in rows:
            file.write(last.to_line())
            file.flush()
            transparent |= last.transparent
            pace(last.index + 1)

    # 3. Mark it complete
    assert last is not None, "a video without frames is refused when it is opened"
    usual = round(1 / (video.info.rate * video.info.time_base))
    # a file's duration of the last frame may belong to another frame if frames are stored out of order
    content = {"frames": last.index + 1, "last_pts": last.pts, "last_duration": max(last.duration, usual)}
    damage = video.damage if video.damage else None
    content |= {"transparent": transparent}
    seal = {"damage": damage and vars(damage), "rows": sha256_of(rows_file)}
    write_text(done_file, json.dumps(content | seal))
    return Analysis(rows_file, damage=damage, **content)


def _finished(rows_file: Path, done_file: Path) -> Analysis | None:
    """The analysis that a `.done` file tells of; None, and deletes it, where one of the two was changed."""
    try:
        content = json.loads(read_text(done_file))
        if content.pop("rows") == sha256_of(rows_file):
            damage = content.pop("damage")
            return Analysis(rows_file, damage=damage and Damage(**damage), **content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    done_file.unlink()
    return None


@dataclass(eq=False)
class Run:
    """Consecutive frames that show a face, short gaps included; seconds of the first and the last."""

    first: int
    last: int
    starts: float
    ends: float
    fades_in: bool
    fades_out: bool = False


@dataclass(eq=False)
class Track:
    """One face throughout the video.

    number: as the tracker counts. index: among all faces, as for `choose`. seen: number of frames. area: sum
    of its boxes' areas over them, px. glasses: scores at close looks.
    """

    number: int
    index: int = 0
    runs: list[Run] = field(default_factory=list)
    seen: int = 0
    area: float = 0.0
    glasses: list[float] = field(default_factory=list)

    def run(self, index: int) -> Run | None:
        """Returns the run that covers a frame; None if the face is absent."""
        place = bisect.bisect_right(self.runs, index, key=lambda run: run.first) - 1
        return self.runs[place] if place >= 0 and index <= self.runs[place].last else None


def scan(rows: Iterator[Row], time_base: float) -> list[Track]:
    """Returns the faces of a video, sorted by area summed over time, largest first."""
    tracks: dict[int, Track] = {}
    scene_starts = 0
    last_index = -1
    for row in rows:
        time = row.pts * time_base
        if row.cut:
            scene_starts = row.index
        for tracked in row.faces:
            track = tracks.setdefault(tracked.number, Track(tracked.number))
            track.seen += 1
            track.area += tracked.face.area
            if tracked.glasses is not None:
                track.glasses.append(tracked.glasses)
            run = track.runs[-1] if track.runs else None
            if (
                run
                and run.first >= scene_starts
                and (run.last == row.index - 1 or time - run.ends <= BRIDGED)
            ):
                run.last, run.ends, run.fades_out = row.index, time, False
            else:
                track.runs.append(Run(row.index, row.index, time, time, row.index > scene_starts))
        if not row.cut:
            for track in tracks.values():
                track.runs[-1].fades_out |= track.runs[-1].last == row.index - 1
        last_index = row.index
    for track in tracks.values():
        track.runs[-1].fades_out &= track.runs[-1].last < last_index
    largest_first = sorted(tracks.values(), key=lambda track: track.area, reverse=True)
    for index, track in enumerate(largest_first):
        track.index = index
    return largest_first


def choose(tracks: list[Track], which: str | int, path: Path) -> list[Track]:
    """Selects faces by "all", "largest" or an index; NoFaceError if there is none or too few."""
    if not tracks:
        raise NoFaceError(
            f"no face was found in {path}: use a video that shows a face upright, from the front or half "
            "side, well lit and at least about 75 px high"
        )
    if which == "all":
        return tracks
    index = 0 if which == "largest" else which
    if isinstance(index, bool) or not isinstance(index, int):
        raise NoFaceError(f'face must be "all", "largest" or an index from 0, got {which!r}')
    if not 0 <= index < len(tracks):
        raise missing_face(index, len(tracks), "found in the video", "the largest by area and time")
    return [tracks[index]]


@dataclass(frozen=True, eq=False)
class SteadyFace:
    """A smoothed face, ready to be edited.

    face, alignment: smoothed. presence: 0 to 1, weight of the edit. run: number of its first frame; filters
    restart when it changes.
    """

    face: Face
    alignment: Alignment
    presence: float
    run: int


def steady_faces(
    rows: Iterator[Row], tracks: list[Track], time_base: float, smoothing: Smoothing, size: int
) -> Iterator[tuple[Row, dict[int, SteadyFace]]]:
    """Yields each row with its chosen faces by number, smoothed and with short gaps filled.

    Args:
        time_base: seconds a tick.
        size: px, side of the crop in which faces are edited.
    """
    filters: dict[tuple[int, int], FaceFilter] = {}
    before: dict[int, tuple[float, Face]] = {}
    for row, later in _with_following(rows, time_base):
        time = row.pts * time_base
        steady = {}
        for track in tracks:
            run = track.run(row.index)
            if run is None:
                continue
            face = row.face(track.number)
            if face is None:
                following = next(r for r in later if r.face(track.number) is not None)
                since, last = before[track.number]
                share = (time - since) / (following.pts * time_base - since)
                face = between(last, following.face(track.number), share)
            else:
                before[track.number] = time, face
            key = track.number, run.first
            if key not in filters:
                filters = {k: f for k, f in filters.items() if k[0] != track.number}
                filters[key] = FaceFilter(smoothing, size)
            smooth, alignment = filters[key](face, time)
            steady[track.number] = SteadyFace(smooth, alignment, presence(run, time), run.first)
        yield row, steady


def _with_following(rows: Iterator[Row], time_base: float) -> Iterator[tuple[Row, deque[Row]]]:
    """Yields each row with the rows after it within the bridged gap."""
    waiting: deque[Row] = deque()
    for row in rows:
        waiting.append(row)
        while (row.pts - waiting[0].pts) * time_base > BRIDGED:
            first = waiting.popleft()
            yield first, waiting
    while waiting:
        first = waiting.popleft()
        yield first, waiting


def between(a: Face, b: Face, share: float) -> Face:
    """Interpolates between two faces of the same track; `share` runs from 0 to 1."""

    def mix(x: dict[str, float], y: dict[str, float]) -> dict[str, float]:
        return {name: (1 - share) * x[name] + share * y[name] for name in x if name in y}

    landmarks = ((1 - share) * a.landmarks + share * b.landmarks).astype(np.float32)
    return replace(
        a,
        box=box_around(landmarks),
        landmarks=landmarks,
        action_units=mix(a.action_units, b.action_units),
        sides=mix(a.sides, b.sides),
        pose=None if a.pose is None or b.pose is None else Pose(**mix(vars(a.pose), vars(b.pose))),
        gaze=None if a.gaze is None or b.gaze is None else Gaze(**mix(a.gaze._asdict(), b.gaze._asdict())),
    )


def presence(run: Run, time: float) -> float:
    """Returns the weight of an edit, 0 to 1, at a time of a run; it fades where a face appears or leaves."""
    share = 1.0
    if run.fades_in:
        share = min(share, (time - run.starts) / FADE)
    if run.fades_out:
        share = min(share, (run.ends - time) / FADE)
    return max(0.0, share)


def check_damage(analysis: Analysis, path: Path, allowed: bool) -> list[str]:
    """Returns a warning if the video is damaged and `allowed`; VideoError if it is not allowed."""
    if not analysis.damage:
        return []
    if allowed:
        return [f"{path} {analysis.damage}: what can be decoded was edited"]
    raise VideoError(
        f"{path} is damaged or incomplete: it {analysis.damage}; copy or download it again, or edit what can "
        "be decoded with --damaged"
    )
