"""Chooses frames of videos: people are followed, and frames taken that differ in their expression."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np

from magicedit.data.crops import face_row, is_far_turned
from magicedit.data.shards import MEASURED, Row
from magicedit.data.videos import VideoFile
from magicedit.errors import MagicEditError, VideoError
from magicedit.faces import Face, FaceBackend, align, crop_face, geometric_change
from magicedit.faces.tracking import CutDetector, Tracker, Tracking
from magicedit.files import shown
from magicedit.video_reading import HDR_TRANSFERS, Frame, Video, to_rgb

SPACING = 0.2  # seconds between frames that are measured; more in videos longer than MOST_MEASURED of them
MOST_MEASURED = 5000  # frames
# Two frames are near duplicates below this distance of their expressions, see `expression_of`
NEAR = 1.0
DEGREES_A_STEP = 10.0  # of the head, that count as much as an intensity step
# Frames are blurred below this share of the median sharpness of their person, or below the least sharpness
SHARP_SHARE, LEAST_SHARPNESS = 0.4, 0.02
_SHARPNESS_SIZE = 128  # px, of the crop in which sharpness is measured
# Numbers of measured frames, not of all
_TRACKING = Tracking(search_every=5, search_empty=1)


def measured_frames(video: VideoFile, backend: FaceBackend, settings: Mapping[str, Any]) -> list[Row] | str:
    """Returns the rows of the frames that are chosen from a video, or why it has none.

    In a video of one person's folder the largest face by area and time is taken, else every one. The frames
    of a damaged video before its damage are used. MissingDependencyError without the extra `video`.
    """
    try:
        film = Video(video.path)
        if transfer := HDR_TRANSFERS.get(film.info.colours.transfer):
            return f"its colours are HDR ({transfer}); convert it to SDR (BT.709) first"
        people, frames, notes = _people_of(film, backend)
        if len(people) > 1 and video.identity is not None:
            notes.append(f"{len(people)} faces in the video, took the largest by area and time")
            people = people[:1]
        chosen = [_chosen(moments, video.frames) for moments in people]
        if not any(chosen):
            why = "no face is sharp and turned towards the camera" if people else "no face found"
            return "; ".join([why, *notes])
        return list(_rows(film, video, chosen, frames, notes, settings))
    except VideoError as error:
        return _without_path(error, video)


def _rows(
    film: Video,
    video: VideoFile,
    chosen: list[list["_Moment"]],
    frames: int,
    notes: list[str],
    settings: Mapping[str, Any],
) -> Iterator[Row]:
    """Yields the rows of the moments chosen of each person. frames: number of them in the video."""
    wanted: dict[int, list[tuple[int, _Moment]]] = defaultdict(list)
    for number, moments in enumerate(chosen):
        for moment in moments:
            wanted[moment.index].append((number, moment))
    count = sum(map(len, chosen))
    for frame in film.frames():
        for number, moment in wanted.pop(frame.index, ()):
            key = video.key(moment.index, moment.seconds, number, count, frames)
            yield face_row(
                to_rgb(frame.planes, film.info),
                moment.face,
                settings,
                source=video.frame_name(key),
                identity=video.person(number),
                sha256=str(key),
                notes=notes,
            )
        if not wanted:
            return
    raise VideoError(f"{shown(video.path)} has fewer frames when it is read again; convert it by ffmpeg")


def _without_path(error: MagicEditError, video: VideoFile) -> str:
    """The message of an error, which names no paths of this machine."""
    return str(error).replace(shown(video.path), shown(video.name)).replace(str(video.path), video.name)


@dataclass(frozen=True, eq=False)
class _Moment:
    """A face in a measured frame. seconds: of the frame. sharpness: see `sharpness_of`."""

    index: int
    seconds: float
    face: Face
    sharpness: float


@dataclass(eq=False)
class _Person:
    area: float = 0.0  # px, summed over the frames
    moments: list[_Moment] = field(default_factory=list)


def _people_of(film: Video, backend: FaceBackend) -> tuple[list[list[_Moment]], int, list[str]]:
    """Returns the moments of each person of a video, the largest by area and time first, the number of the
    video's frames, and notes on it."""
    people: dict[int, _Person] = {}
    tracker, cuts = Tracker(backend, _TRACKING), CutDetector(_TRACKING)
    spacing = max(SPACING, (film.info.seconds or 0.0) / MOST_MEASURED)
    notes, frames, due, looked, cut = [], 0, 0.0, 0, False
    for frame in _until_damage(film, notes):
        frames = frame.index + 1
        difference = cuts.difference(frame.planes)
        cut |= frame.index > 0 and cuts.is_cut(difference)
        seconds = float(frame.pts * film.info.time_base)
        if seconds < due:
            continue
        due = seconds + spacing * 0.99  # frames stand a little before and after whole multiples
        pixels = to_rgb(frame.planes, film.info)
        faces = tracker.look(pixels, looked, cut)
        tracker.note(faces, cut)
        looked, cut = looked + 1, False
        for tracked in faces:
            person = people.setdefault(tracked.number, _Person())
            person.area += tracked.face.area
            sharpness = sharpness_of(pixels, tracked.face)
            person.moments.append(_Moment(frame.index, seconds, tracked.face, sharpness))
    if film.damage:
        notes.append(f"the video {film.damage}; what can be decoded was used")
    ordered = sorted(people.values(), key=lambda person: person.area, reverse=True)
    return [person.moments for person in ordered], frames, notes


def _until_damage(film: Video, notes: list[str]) -> Iterator[Frame]:
    """Yields the frames of a video before an error, which goes to the notes."""
    try:
        yield from film.frames()
    except VideoError as error:
        notes.append(f"{str(error).replace(shown(film.path), 'the video')}; the frames before were used")


def sharpness_of(pixels: np.ndarray, face: Face) -> float:
    """Variance of the Laplacian over the variance of the grey levels, both of the aligned face."""
    grey = cv2.cvtColor(crop_face(pixels, align(face, _SHARPNESS_SIZE)), cv2.COLOR_RGB2GRAY)
    inner = grey[_SHARPNESS_SIZE // 8 : -_SHARPNESS_SIZE // 8, _SHARPNESS_SIZE // 8 : -_SHARPNESS_SIZE // 8]
    return float(cv2.Laplacian(inner, cv2.CV_32F).var() / max(inner.var(), 1.0))


def _chosen(moments: list[_Moment], most: int) -> list[_Moment]:
    """Returns at most so many moments of a person, in order, spread over expressions and poses."""
    least = max(LEAST_SHARPNESS, SHARP_SHARE * float(np.median([moment.sharpness for moment in moments])))
    usable = [m for m in moments if m.sharpness >= least and not is_far_turned(m.face)]
    if not usable:
        return []
    points = np.stack([expression_of(moment.face, usable[0].face) for moment in usable])
    return [usable[index] for index in sorted(spread(points, most, NEAR))]


def expression_of(face: Face, first: Face) -> np.ndarray:
    """Returns the action units of a face and its pose as a point, in intensity steps.

    first: the face of the person in another frame, from which the units are told where the backend measures
    none.
    """
    units = face.action_units or geometric_change(first.landmarks, face.landmarks, face.scheme)
    pose = (face.pose.yaw, face.pose.pitch) if face.pose else (0.0, 0.0)
    return np.array([*(units.get(name, 0.0) for name in MEASURED), *(a / DEGREES_A_STEP for a in pose)])


def spread(points: np.ndarray, most: int, nearest: float) -> list[int]:
    """Returns at most so many of the points (points, dimensions), as indices, none nearer than `nearest` to
    another: first the one of least length, then each time the one farthest from all chosen ones.

    T. Gonzalez, "Clustering to minimize the maximum intercluster distance", Theoretical Computer Science 38,
    1985.
    """
    chosen = [int(np.argmin(np.linalg.norm(points, axis=1)))]
    distances = np.linalg.norm(points - points[chosen[0]], axis=1)
    while len(chosen) < most and distances.max() >= nearest:
        chosen.append(int(np.argmax(distances)))
        distances = np.minimum(distances, np.linalg.norm(points - points[chosen[-1]], axis=1))
    return chosen
