"""MediaPipe Face Landmarker (Apache-2.0): boxes, 478 landmarks, blendshapes, head pose.

The `.task` file holds a detector and a landmark model. The detector sees 128 x 128 pixels and so misses faces
below about 14 % of the longer side of its input. We run the detector ourselves, on the whole photograph and,
where small faces are possible, on overlapping windows of it. Each face is then measured on its own crop,
resized to a fixed size, so that landmarks, blendshapes and pose do not depend on the photograph's size.
"""

import atexit
import contextlib
import hashlib
import io
import os
import queue
import re
import sys
import tempfile
import threading
import weakref
import zipfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from magicedit.errors import MissingDependencyError, ModelError
from magicedit.faces.backends.postponed import postponed
from magicedit.faces.gaze import gaze_of
from magicedit.faces.measure import blendshapes_to_action_units, blendshapes_to_sides, pose_of
from magicedit.faces.types import Box, Face, Found, box_around, check_pixels, largest_first, overlap

LANDMARKER_FILE = Path(__file__).parents[1] / "face_landmarker.task"
LANDMARKER_SHA256 = "64184e229b263107bc2b804c6625db1341ff2bb731874b0bcc2fe6544e0bc9ff"

# Modules of MediaPipe that import matplotlib and sounddevice, seven tenths of the time of its import
_UNUSED = tuple(
    f"mediapipe.tasks.python.{name}"
    for name in ("audio", "retrieval", "text", "vision.drawing_styles", "vision.drawing_utils")
)

# Measured on 48 photographs: faces (hairline to chin) of 14 % of the side shown are found 48 times of 48, of
# 12 % 44 times, of 10 % 6 times.
_SEEN = 0.14
_WINDOW = 512  # px of the photograph: the smallest window, in which faces from 72 px on are found
_SHOWN = 256  # px: windows are shown at this size; the detector's own is 128, more only costs time
# A hundred windows give a hundred chances of error, so detections in them are checked again, enlarged: there,
# faces of 72 to 140 px scored 0.9 and more (144 of 144), a ring's stone and folds of a suit 0.57 and less. In
# the first pass those faces scored 0.7 and more.
_WINDOW_SCORE, _CONFIRMED = 0.6, 0.75
# Windows advance by this share of their side: a face that all of one size cut is whole in the next size.
_STRIDE = 0.65
# Levels of grey. Windows whose greys nowhere differ by this much within 5 px, of the 128 px that the detector
# sees, show sky, walls or blur. Of 102 portraits, paled to 4 to 20 %, it saw faces in none below 8.
# Other coarse passes do not pay: shown half as large, 42 faces of 72 px score 0.01 and more, as do 40 other
# places of a busy window; the detector's network over a level at once takes half the time of its windows, and
# a threshold that loses none of 1048 with faces leaves 66 to 91 % of them.
_FLAT, _NEAR = 6, np.ones((5, 5), np.uint8)
_LARGE_FACE = 0.2  # of the longer side: with a face this large, `detect` does not search for small ones
# Beside such a face, `search` counts faces below this share of its height but ignores them: people in the
# background, whom a request for "all" does not mean. Faces below _SPECK are not searched for, which saves
# most of the windows in photographs of 10 megapixels.
_BYSTANDER, _SPECK = 0.25, 1 / 8
# A flower on the shirt of one of 602 portraits scored 0.79. Faces cut by the border score less than whole
# ones: 0.5 to 0.8 in windows and 0.78 to 0.91 on their crop where 60 to 80 % is visible. For them any window
# score suffices, and _CONFIRMED on the crop.
_CONFIRMED_INSIDE = 0.85
_CROP_FACTORS = (2.2, 3.2)  # side of a face's crop in widths of its detection; where one fails, the next
_CROP_SIZE = 448  # px: the landmark model sees 1.5 detections at 256 px, so nothing is lost
_SAME_DETECTION, _SAME_FACE = 0.3, 0.4  # intersection over union


# --- the model's file ---
def landmarker_file(model_path: str | Path | None = None) -> tuple[Path, str]:
    """Returns the landmarker's `.task` file and its origin: "user" or "package", whose file is the default.

    Raises:
        ModelError: where the file is missing, or its SHA-256 is not the pinned one.
    """
    path = LANDMARKER_FILE if model_path is None else Path(model_path)
    remedy = "install magicedit again" if model_path is None else "give another file, or none"
    if not path.is_file():
        raise ModelError(f"no face landmarker at {path}; {remedy}")
    if (found := hashlib.sha256(path.read_bytes()).hexdigest()) != LANDMARKER_SHA256:
        raise ModelError(
            f"{path} is not the tested face landmarker: SHA-256 {found}, not {LANDMARKER_SHA256}; {remedy}"
        )
    return path, "package" if model_path is None else "user"


# --- its log ---
# What MediaPipe, absl and LiteRT write to file descriptor 2 regardless of logging settings.
_NOISE = re.compile(rb"[IW]\d{4} |INFO: |VERBOSE: |WARNING: (Logging|All log messages) before ")
# Logged once a process, by the first picture whose tensor lies so: the first one in 9 of 10 processes, the
# seventh at the latest of 160.
_ONCE, _ONCE_PICTURES = b"Input tensor memory is not aligned", 32
_has_logged_once = False
_stderr_lock = threading.Lock()


@contextlib.contextmanager
def _without_log_noise() -> Iterator[Callable[[bytes], bool]]:
    """Buffers stderr inside the context, then writes it without the known noise.

    Yields a function that tells whether a text was written so far; without a stderr, each counts as written.
    """
    with _stderr_lock, tempfile.TemporaryFile() as held:
        try:
            sys.stderr.flush()
            stderr = os.dup(2)
        except (OSError, AttributeError, ValueError):  # no stderr, as under pythonw: nothing to filter
            yield lambda text: True
            return

        def is_written(text: bytes) -> bool:
            held.seek(0)  # the descriptors share their position: reading to the end restores it
            return text in held.read()

        try:
            os.dup2(held.fileno(), 2)
            yield is_written
        finally:
            with contextlib.suppress(AttributeError, ValueError):
                sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
            held.seek(0)
            kept = [line for line in held if not _NOISE.match(line)]
            if kept:
                os.write(2, b"".join(kept))


def _close(tasks: list[Any]) -> None:
    with _without_log_noise():
        for task in tasks:
            try:
                task.close()
            except RuntimeError:  # at exit, the thread on which MediaPipe closes it has already ended:
                task._handle = None  # the process frees it; its __del__ must not retry


# Closing takes locks that the thread running garbage collection may already hold, so another thread closes
# backends. SimpleQueue.put is safe at any time.
_collected: "queue.SimpleQueue[list[Any] | None]" = queue.SimpleQueue()
_open: "weakref.WeakSet[MediaPipeBackend]" = weakref.WeakSet()


def _close_collected() -> None:
    while (tasks := _collected.get()) is not None:
        _close(tasks)


@atexit.register
def _close_all() -> None:
    """At exit; what is closed while Python takes its modules apart would end in a traceback."""
    for backend in list(_open):
        backend.close()
    if _closing_thread.cache_info().currsize:
        _collected.put(None)
        _closing_thread().join()


@cache
def _closing_thread() -> threading.Thread:
    thread = threading.Thread(target=_close_collected, name="mediapipe-closing", daemon=True)
    thread.start()
    return thread


# --- the backend ---
class MediaPipeBackend:
    """Finds and measures faces with MediaPipe; not to be called from two threads at once.

    model_path: the `.task` file; None looks it up, see `landmarker_file`.
    second_look: True searches for small faces in windows of the photograph. `detect` does so unless the first
        look found a face that spans, brow to chin, at least 20 % of the longer side; `search` then ignores
        far smaller faces. "always" searches for all faces in every case; False never does. Without it, faces
        below about 14 % of the longer side are missed; with it, below 72 px.
    max_faces: only this many of the largest faces are measured.
    """

    name = "mediapipe"

    def __init__(
        self,
        model_path: str | Path | None = None,
        second_look: bool | Literal["always"] = True,
        max_faces: int = 64,
    ) -> None:
        if second_look not in (True, False, "always"):
            raise ValueError(f'second_look must be True, False or "always", got {second_look!r}')
        if max_faces < 1:
            raise ValueError(f"max_faces must be at least 1, got {max_faces}")
        try:
            with _without_log_noise(), postponed(*_UNUSED):
                import mediapipe
                from mediapipe.tasks.python import BaseOptions, vision
        except ImportError as error:
            raise MissingDependencyError(
                f"the face backend 'mediapipe' needs the package mediapipe ({error}); `pip install mediapipe`"
            ) from error

        self.second_look, self.max_faces = second_look, max_faces
        self.model_path, self.model_origin = landmarker_file(model_path)
        content = self.model_path.read_bytes()
        with zipfile.ZipFile(io.BytesIO(content)) as bundle:
            detector = bundle.read("face_detector.tflite")
        self._mediapipe = mediapipe
        with _without_log_noise() as is_written:
            self._detector = vision.FaceDetector.create_from_options(
                vision.FaceDetectorOptions(base_options=BaseOptions(model_asset_buffer=detector))
            )
            self._landmarker = vision.FaceLandmarker.create_from_options(
                vision.FaceLandmarkerOptions(
                    base_options=BaseOptions(model_asset_buffer=content),
                    num_faces=4,  # neighbours may stand in a face's crop
                    output_face_blendshapes=True,
                    output_facial_transformation_matrixes=True,
                )
            )
            # The threads of the graphs log with the first pictures.
            self._detector.detect(self._image(np.zeros((_SHOWN, _SHOWN, 3), np.uint8)))
            self._landmarker.detect(self._image(np.zeros((_CROP_SIZE, _CROP_SIZE, 3), np.uint8)))
            self._log_once(is_written)
        _closing_thread()
        self._collecting = weakref.finalize(self, _collected.put, [self._detector, self._landmarker])
        self._collecting.atexit = False
        _open.add(self)

    def _log_once(self, is_written: Callable[[bytes], bool]) -> None:
        """Shows pictures until LiteRT has logged what it logs once, so that it does not do so later."""
        global _has_logged_once
        shown = []  # kept, so that the next one lies elsewhere
        while not (_has_logged_once or is_written(_ONCE)) and len(shown) < _ONCE_PICTURES:
            shown.append(self._image(np.zeros((_SHOWN, _SHOWN, 3), np.uint8)))
            self._detector.detect(shown[-1])
        _has_logged_once = True

    def close(self) -> None:
        """Frees MediaPipe's graphs, like garbage collection; may be called again."""
        if self._collecting.detach():
            _close([self._detector, self._landmarker])

    def detect(self, pixels: np.ndarray) -> list[Face]:
        """Faces of an RGB photograph, (height, width, 3) uint8, largest first.

        Meant for pictures known to show a large face, such as its surroundings; use `search` for photographs.
        ImageError for other arrays.
        """
        pixels = check_pixels(pixels)
        found, large = self._first_look(pixels)
        if self.second_look == "always" or (self.second_look and not large):
            found = self._confirmed(pixels, self._second_look(pixels), found)
        return self._measured(pixels, found)

    def search(self, pixels: np.ndarray) -> Found:
        """All faces of an RGB photograph, (height, width, 3) uint8, including those beside a large one.

        Such a face may lie at the border. Beside a face of at least 20 % of the longer side, faces below a
        quarter of its height found only by the second look are counted but not measured, and faces below an
        eighth are not searched for. ImageError for other arrays.
        """
        pixels = check_pixels(pixels)
        found, large = self._first_look(pixels)
        if not large or self.second_look is not True:
            if self.second_look:
                found = self._confirmed(pixels, self._second_look(pixels), found)
            return Found(self._measured(pixels, found))
        faces = self._measured(pixels, found)
        second = self._second_look(pixels, _SPECK * max(_height(box) for box, _ in found))
        second = [seen for seen in second if not any(_is_part_of(seen[0], box) for box, _ in found)]
        others = [
            face
            for face in self._measured(pixels, self._confirmed(pixels, second, inside=_CONFIRMED_INSIDE))
            if all(overlap(face.box, other.box) < _SAME_FACE for other in faces)
        ]
        # By landmarks, since detections of faces cut by the border are small
        smallest = _BYSTANDER * max((_height(face.box) for face in faces), default=0.0)
        beside = [face for face in others if _height(face.box) >= smallest]
        faces = largest_first(faces + beside)[: self.max_faces]
        return Found(faces, left_alone=len(others) - len(beside))

    def _first_look(self, pixels: np.ndarray) -> tuple[list[tuple[Box, float]], bool]:
        """Boxes and scores in the whole photograph at the detector's scale, and whether one is large."""
        longer = max(pixels.shape[:2])
        found = self._find(_reduced(pixels, min(1.0, 2 * _SHOWN / longer)), longer)
        return found, any(_height(box) >= _LARGE_FACE * longer for box, _ in found)

    def _measured(self, pixels: np.ndarray, found: list[tuple[Box, float]]) -> list[Face]:
        """Returns the measured faces of detections, largest first; two detections of one face are merged."""
        faces: list[Face] = []
        for box, score in sorted(_distinct(found), key=lambda item: item[0][2] - item[0][0], reverse=True):
            face = self._measure(pixels, box, score)
            if face and all(overlap(face.box, other.box) < _SAME_FACE for other in faces):
                faces.append(face)
            if len(faces) == self.max_faces:
                break
        return largest_first(faces)

    def _image(self, pixels: np.ndarray) -> Any:
        return self._mediapipe.Image(
            image_format=self._mediapipe.ImageFormat.SRGB, data=np.ascontiguousarray(pixels)
        )

    def _find(
        self, shown: np.ndarray, longer: float, origin: tuple[float, float] = (0.0, 0.0)
    ) -> list[tuple[Box, float]]:
        """Boxes (brow to chin) and scores in `shown`, a part of the photograph.

        Its longer side is `longer` px of the photograph, its upper left corner lies at `origin`.
        """
        scale = longer / max(shown.shape[:2])
        found = []
        for detection in self._detector.detect(self._image(shown)).detections:
            box = detection.bounding_box
            x0, y0 = origin[0] + box.origin_x * scale - 0.5, origin[1] + box.origin_y * scale - 0.5
            x1, y1 = x0 + box.width * scale, y0 + box.height * scale
            found.append(((x0, y0, x1, y1), detection.categories[0].score))
        return found

    def _second_look(self, pixels: np.ndarray, smallest: float = 0.0) -> list[tuple[Box, float]]:
        """Boxes and scores of possible faces in overlapping windows of the photograph, to be confirmed.

        smallest: px, the minimum height of faces to find.
        """
        found = []
        window = _WINDOW
        while 2 * window * _SEEN <= smallest:
            window *= 2
        for scale, reduced, edges in _pyramid(pixels, window):
            for top in _starts(reduced.shape[0]):
                for left in _starts(reduced.shape[1]):
                    bottom, right = top + _SHOWN, left + _SHOWN
                    if not edges[top // 2 : bottom // 2, left // 2 : right // 2].any():
                        continue
                    shown = reduced[top:bottom, left:right]
                    seen = self._find(shown, max(shown.shape[:2]) / scale, (left / scale, top / scale))
                    found += [
                        (box, score)
                        for box, score in seen
                        if score >= _WINDOW_SCORE or _is_at_border(pixels, box)
                    ]
        return _distinct(found)

    def _confirmed(
        self,
        pixels: np.ndarray,
        possible: list[tuple[Box, float]],
        found: list[tuple[Box, float]] | None = None,
        inside: float = _CONFIRMED,
    ) -> list[tuple[Box, float]]:
        """Returns found faces and those possible ones that are new and confirmed on a crop.

        inside: the score required of a face's crop if the photograph's border does not cut it.
        """
        found = found or []

        def is_face(seen: tuple[Box, float]) -> bool:
            least = _CONFIRMED if _is_at_border(pixels, seen[0]) else inside
            return seen in found or self._is_confirmed(pixels, seen[0], least)

        return _distinct(found + possible, is_face)

    def _is_confirmed(self, pixels: np.ndarray, box: Box, least: float) -> bool:
        """Whether the detector's score reaches `least` when the face is shown as large as a portrait."""
        if not _centre_is_inside(pixels, box):
            return False
        side = _CROP_FACTORS[0] * (box[2] - box[0])
        crop, _ = _square(pixels, box, side)
        middle = (1 - 1 / _CROP_FACTORS[0]) / 2 * _CROP_SIZE
        expected = (middle, middle, _CROP_SIZE - middle, _CROP_SIZE - middle)
        return any(
            score >= least and overlap(seen, expected) >= _SAME_DETECTION
            for seen, score in self._find(crop, _CROP_SIZE)
        )

    def _measure(self, pixels: np.ndarray, box: Box, score: float) -> Face | None:
        """Measures the face of a detection on a crop around it; None if the landmark model sees none."""
        if not _centre_is_inside(pixels, box):
            return None
        for factor in _CROP_FACTORS:
            crop, to_photograph = _square(pixels, box, factor * (box[2] - box[0]))
            result = self._landmarker.detect(self._image(crop))
            best, best_overlap = None, 0.0
            for index, points in enumerate(result.face_landmarks):
                in_crop = np.array([(point.x, point.y) for point in points]) * _CROP_SIZE - 0.5  # (478, 2)
                landmarks = (in_crop @ to_photograph[:, :2].T + to_photograph[:, 2]).astype(np.float32)
                common = overlap(box_around(landmarks), box)
                if common > best_overlap:
                    best, best_overlap = (index, landmarks, in_crop), common
            if best is None:
                continue
            index, landmarks, in_crop = best
            blendshapes = {
                entry.category_name: float(entry.score)
                for entry in result.face_blendshapes[index]
                if entry.category_name != "_neutral"
            }
            pose = pose_of(result.facial_transformation_matrixes[index])
            return Face(
                box=box_around(landmarks),
                landmarks=landmarks,
                scheme="mediapipe478",
                score=float(score),
                action_units=blendshapes_to_action_units(blendshapes, landmarks),
                sides=blendshapes_to_sides(blendshapes, landmarks),
                blendshapes=blendshapes,
                pose=pose,
                gaze=gaze_of(crop, in_crop, pose),
            )
        return None


def _distinct(
    found: list[tuple[Box, float]], is_face: Callable[[tuple[Box, float]], bool] = lambda seen: True
) -> list[tuple[Box, float]]:
    """Returns the most confident detection of each face; `is_face` is asked only where it decides."""
    kept: list[tuple[Box, float]] = []
    for seen in sorted(found, key=lambda item: item[1], reverse=True):
        if all(overlap(seen[0], other) < _SAME_DETECTION for other, _ in kept) and is_face(seen):
            kept.append(seen)
    return kept


def _height(box: Box) -> float:
    return box[3] - box[1]


def _is_part_of(box: Box, other: Box) -> bool:
    """Whether a detection repeats another, or shows only a part of its face that a window cut out."""
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    inside = other[0] < x < other[2] and other[1] < y < other[3]
    return overlap(box, other) >= _SAME_DETECTION or (inside and _height(box) < _height(other))


def _is_at_border(pixels: np.ndarray, box: Box) -> bool:
    """Whether a quarter of the box's width around it reaches beyond the photograph."""
    height, width = pixels.shape[:2]
    margin = (box[2] - box[0]) / 4
    return min(box[0], box[1], width - box[2], height - box[3]) < margin


def _centre_is_inside(pixels: np.ndarray, box: Box) -> bool:
    height, width = pixels.shape[:2]
    return 0 <= (box[0] + box[2]) / 2 < width and 0 <= (box[1] + box[3]) / 2 < height


def _reduced(pixels: np.ndarray, scale: float) -> np.ndarray:
    """The picture at `scale` <= 1 of its size, antialiased."""
    if scale >= 1.0:
        return pixels
    height, width = pixels.shape[:2]
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)


def _pyramid(pixels: np.ndarray, window: int) -> Iterator[tuple[float, np.ndarray, np.ndarray]]:
    """Yields scale, picture and edges of a photograph reduced so that windows of it measure _SHOWN px.

    The window doubles from `window` px of the photograph up to the last one smaller than it. edges: bool, of
    half the picture's height and width, where it is not flat.
    """
    scale, smaller = 1.0, pixels
    while window < max(pixels.shape[:2]):
        # Each level halves the previous one, so the pyramid costs little more than its first level.
        reduced = _reduced(smaller, _SHOWN / window / scale) if smaller is pixels else smaller
        scale = _SHOWN / window
        smaller = _reduced(reduced, 0.5)  # the next level, and how the detector sees this one
        grey = cv2.cvtColor(smaller, cv2.COLOR_RGB2GRAY)
        edges = cv2.morphologyEx(grey, cv2.MORPH_GRADIENT, _NEAR) >= _FLAT
        yield scale, reduced, edges
        window *= 2


def _starts(length: int) -> list[int]:
    """Returns where windows of _SHOWN px begin along a side; the last one ends at the side's end."""
    if length <= _SHOWN:
        return [0]
    count = int(np.ceil((length - _SHOWN) / (_STRIDE * _SHOWN))) + 1
    return np.linspace(0, length - _SHOWN, count).round().astype(int).tolist()


def _square(pixels: np.ndarray, box: Box, side: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns the square around a box at _CROP_SIZE px, and the (2, 3) matrix from it to the photograph's px.

    Edge pixels are repeated beyond the border: a reflection would show a second, mirrored face.
    """
    whole = max(2, round(side))
    left, top = (round((low + high - whole) / 2) for low, high in ((box[0], box[2]), (box[1], box[3])))
    height, width = pixels.shape[:2]
    inside = pixels[max(0, top) : max(0, top + whole), max(0, left) : max(0, left + whole)]
    beyond = (
        max(0, -top),
        max(0, top + whole - height),
        max(0, -left),
        max(0, left + whole - width),
    )
    square = cv2.copyMakeBorder(inside, *beyond, cv2.BORDER_REPLICATE) if any(beyond) else inside
    shrinks = whole > _CROP_SIZE
    crop = cv2.resize(
        square, (_CROP_SIZE, _CROP_SIZE), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    )
    scale = whole / _CROP_SIZE
    offset = (scale - 1) / 2  # pixel centres: crop 0 is the middle of the first `scale` pixels
    return crop, np.array([[scale, 0.0, left + offset], [0.0, scale, top + offset]])
