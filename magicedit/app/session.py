"""What one open page knows: a photograph, its faces, what is asked of each, and what came of it.

No word of the web here: `magicedit.app.page` shows this, and tests drive it directly.
"""

import hashlib
import json
import shutil
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import PIL.Image

from magicedit import __version__
from magicedit.action_units import emotion_deltas
from magicedit.app.sliders import Request, levels
from magicedit.editor import (
    EditResult,
    ExpressionEditor,
    FaceEdit,
    each_step,
    measured_expression,
    sweep_strip,
    usable_expression,
)
from magicedit.editor.results import face_pictures, face_window, rounded
from magicedit.errors import ImageError, MagicEditError, NoFaceError
from magicedit.expression import Expression
from magicedit.faces import Face
from magicedit.imaging import Photo, open_photo, save_animation, save_image

SMALL_FACE = 0.3  # of the photograph's height: below, the face is shown and not the whole
CLOSE_SIDE = 640  # px a side of the shown surroundings of a face, at most
THUMBNAIL_SIDE = 128  # px
SHOWN_SIDE = 1280  # px: the longer side of what the page shows; downloads have the photograph's own
MOST_EDITS = 50  # of a page's history; older ones are forgotten
NOTHING_OPEN = "there is no photograph yet: drop one first"


class Cancelled(MagicEditError):
    """An edit that the user stopped."""


@dataclass(frozen=True)
class EditSettings:
    """How to sample; None: what the model or the quality says. tolerance: of the closed loop, in steps."""

    quality: str | None = None
    steps: int | None = None
    guidance: float | None = None
    seed: int = 0
    tolerance: float | None = None

    def sampling(self) -> dict[str, object]:
        """Arguments of the editor's methods."""
        return {
            "quality": self.quality,
            "steps": self.steps,
            "guidance": self.guidance,
            "seed": self.seed,
        }


@dataclass(frozen=True, eq=False)
class PastEdit:
    """One edit of the history.

    Attributes:
        requests: face index -> what was asked of it.
        settings: as sampled; the same again give the same pixels.
        faces: face index -> what was measured.
        whole: the result as the page shows it, (height, width, 3) uint8.
        close: the surroundings of each face in it, likewise.
        thumbnail: of the first face that was edited, likewise.
        seconds: wall time.
    """

    requests: Mapping[int, Request]
    settings: EditSettings
    faces: Mapping[int, FaceEdit]
    whole: np.ndarray
    close: tuple[np.ndarray, ...]
    thumbnail: np.ndarray
    seconds: float


class Session:
    """One page's work. Methods may be called from several threads: one at a time works, `cancel` at once.

    Args:
        editor: shared by all sessions; its model serves one at a time, which is the caller's to keep.
        folder: in which the session makes one of its own for what the browser fetches.

    Attributes:
        photo: the opened photograph; None before.
        faces: those found in it, largest first.
        chosen: index of the face that the sliders belong to.
        close_up: whether the chosen face is shown, or the whole photograph.
        requests: face index -> variations asked for, as they stand on the sliders.
        history: edits made, oldest first. position: index of the one on show; -1: the photograph itself.
    """

    def __init__(self, editor: ExpressionEditor, folder: Path):
        self.editor = editor
        self.photo: Photo | None = None
        self.faces: list[Face] = []
        self.chosen = 0
        self.close_up = False
        self.requests: dict[int, Request] = {}
        self.history: list[PastEdit] = []
        self.position = -1
        self._lock = threading.RLock()
        self._stop = threading.Event()
        self._folder = Path(tempfile.mkdtemp(prefix="session-", dir=folder))
        self._whole: np.ndarray | None = None  # the photograph as shown
        self._latest: tuple[PastEdit, EditResult] | None = None  # the only one kept at full resolution

    def close(self) -> None:
        """Deletes what was written for this page."""
        self.cancel()
        shutil.rmtree(self._folder, ignore_errors=True)

    # --- the photograph ---

    def open(self, path: str | Path) -> None:
        """Opens a photograph.

        Raises:
            ImageError, NoFaceError: the photograph that was open before then stays.
        """
        with self._lock:
            photo = open_upload(path)
            faces = self.editor.measure(photo)
            self.photo, self.faces = photo, faces
            self.chosen, self.requests, self.history, self.position = 0, {}, [], -1
            self._latest, self._whole = None, None
            height = self.faces[0].box[3] - self.faces[0].box[1]
            self.close_up = height < SMALL_FACE * photo.size[1]

    def choose(self, index: int) -> None:
        """NoFaceError where there is no such face."""
        with self._lock:
            if not 0 <= index < len(self.faces):
                raise NoFaceError(f"there is no face {index + 1}; {len(self.faces)} were found")
            self.chosen = index

    def choose_at(self, x: float, y: float) -> None:
        """The smallest face around a place of the shown photograph, in its pixels; none: as before."""
        with self._lock:
            x, y = x / self.shown_scale, y / self.shown_scale
            around = [
                index
                for index, face in enumerate(self.faces)
                if face.box[0] <= x <= face.box[2] and face.box[1] <= y <= face.box[3]
            ]
            if around:
                self.chosen = around[-1]  # largest first

    @property
    def shown_scale(self) -> float:
        """Pixels of the shown photograph per pixel of the photograph itself."""
        return min(1.0, SHOWN_SIDE / max(self._opened().size))

    def measured(self) -> dict[str, float]:
        """Intensities of the chosen face, of whole units and of sides; empty where they are not measured."""
        return {} if not self.faces else self.faces[self.chosen].action_units | self.faces[self.chosen].sides

    def request(self) -> Request:
        """What is asked of the chosen face."""
        return self.requests.get(self.chosen, {})

    # --- asking ---

    def ask(self, request: Request) -> None:
        """Sets what is asked of the chosen face."""
        with self._lock:
            self._opened()
            self.requests[self.chosen] = {name: value for name, value in request.items() if value}

    def ask_emotion(self, name: str, strength: float) -> None:
        """Asks the chosen face for an emotion alone. ActionUnitError as `parse_emotion`."""
        deltas = emotion_deltas(name, strength)
        self.ask({unit: value for unit, value in deltas.items() if unit in self.editor.action_units})

    def ask_expression(self, expression: Expression, strength: float = 1.0) -> None:
        """Asks the chosen face for an expression.

        Raises:
            ActionUnitError: where it was made for another model, or a variation leaves -10 to 10.
        """
        with self._lock:
            usable = usable_expression(expression, self.editor.action_units)
            self.ask(usable.variation(self.measured(), strength))

    def ask_neutral(self) -> None:
        """Asks the chosen face to show nothing. MagicEditError where its intensities are not measured."""
        with self._lock:
            face = self._face()
            self.ask_expression(
                Expression(
                    dict.fromkeys(measured_expression(face, self.editor.backend.name).values, 0.0)
                ).limited_to(self.editor.action_units)
            )

    def ask_preset(self, path: str | Path, strength: float = 1.0) -> Expression:
        """Asks for the expression of a file. Errors as `Expression.load`, and as `ask_expression`."""
        path = Path(path)
        try:
            expression = Expression.load(path)
        except MagicEditError as error:
            raise type(error)(str(error).replace(str(path), path.name)) from error
        self.ask_expression(expression, strength)
        return expression

    def ask_copy(self, path: str | Path, strength: float = 1.0) -> Expression:
        """Asks for the expression of the largest face of another photograph."""
        with self._lock:
            self._opened()
            other = open_upload(path)
            expression = self.editor.expression(other)
            self.ask_expression(expression, strength)
            return expression

    # --- editing ---

    def edit(self, settings: EditSettings, on_step: Callable[[int], None] | None = None) -> PastEdit:
        """Edits every face of which something is asked, and adds the result to the history.

        Args:
            on_step: called after each denoising step with its number from 0.

        Raises:
            Cancelled: where `cancel` was called meanwhile; nothing changes then.
        """
        with self._lock:
            asked = self._asked()
            result = self._run(asked, settings, on_step, measure=True)
            pixels = np.asarray(result.image.convert("RGB"))
            close = tuple(self._close(pixels, index) for index in range(len(self.faces)))
            thumbnail = reduced(close[next(iter(asked), 0)], THUMBNAIL_SIDE)
            faces = dict(zip(asked, result.faces, strict=True))
            past = PastEdit(asked, settings, faces, reduced(pixels), close, thumbnail, result.seconds)
            self._latest = past, result
            del self.history[self.position + 1 :]
            self.history = [*self.history, past][-MOST_EDITS:]
            self.position = len(self.history) - 1
            return past

    def preview(self, settings: EditSettings) -> np.ndarray | None:
        """The quickest edit of what is asked, unmeasured, as shown: (height, width, 3) uint8.

        None where the edit on show has the same request and settings: a preview that comes late must not
        cover it.
        """
        with self._lock:
            shown = self.past()
            if shown is not None and shown.settings == settings and shown.requests == self._asked():
                return None
            quickest = EditSettings("live", guidance=settings.guidance, seed=settings.seed)
            result = self._run(self._asked(), quickest, None, measure=False)
            pixels = np.asarray(result.image.convert("RGB"))
            return self._close(pixels, self.chosen) if self.close_up else reduced(pixels)

    def cancel(self) -> None:
        """Stops the edit or sweep that is running, if any, at its next step."""
        self._stop.set()

    def past(self) -> PastEdit | None:
        """The edit on show; None: the photograph itself."""
        return self.history[self.position] if self.position >= 0 else None

    def show(self, position: int) -> None:
        """Goes to an edit of the history, or with -1 to the photograph; the sliders follow."""
        with self._lock:
            self.position = min(max(position, -1), len(self.history) - 1)
            past = self.past()
            self.requests = {} if past is None else {i: dict(asked) for i, asked in past.requests.items()}

    def sweep(
        self,
        unit: str,
        start: float,
        stop: float,
        count: int,
        settings: EditSettings,
        animated: bool,
        on_step: Callable[[int], None] | None = None,
    ) -> Path:
        """One unit of the chosen face at `count` variations, as a strip (PNG) or an animation (GIF)."""
        with self._lock:
            photo = self._opened()
            with self._watched(on_step):
                results = self.editor.sweep(
                    photo,
                    unit,
                    start,
                    stop,
                    count,
                    self.chosen,
                    inference_steps=settings.steps,
                    guidance=settings.guidance,
                    seed=settings.seed,
                    quality=settings.quality,
                )
            if not animated:
                return save_image(sweep_strip(results), self._folder / f"sweep-{unit}.png")
            pictures = face_pictures(results, 512)
            return save_animation([*pictures, *pictures[-2:0:-1]], self._folder / f"sweep-{unit}.gif", 0.12)

    # --- results ---

    def shown(self) -> tuple[np.ndarray, np.ndarray]:
        """The photograph and the edit on show, whole or close up, (height, width, 3) uint8."""
        with self._lock:
            before = self.shown_photograph(self.close_up)
            past = self.past()
            if past is None:
                return before, before
            return before, past.close[self.chosen] if self.close_up else past.whole

    def shown_photograph(self, close_up: bool = False) -> np.ndarray:
        """The photograph itself, or the surroundings of the chosen face, likewise."""
        pixels = self._opened().pixels
        if close_up:
            return self._close(pixels, self.chosen)
        if self._whole is None:
            self._whole = reduced(pixels)
        return self._whole

    def save_result(self) -> Path:
        """Writes the edit on show as a PNG of the photograph's own resolution, with its metadata and ours.

        The text `magicedit` is JSON: version, model, settings, and what was asked of each face.
        """
        with self._lock:
            photo, past = self._opened(), self.past()
            if past is None:
                raise MagicEditError("there is no edit yet: move a slider first")
            if self._latest is not None and self._latest[0] is past:
                result = self._latest[1]
            else:  # an older one: what the model was sent gives the same pixels again
                sent = {index: face.sent for index, face in past.faces.items()}
                result = self._run(sent, past.settings, None, measure=False)
                self._latest = past, result
            told = {
                "version": __version__,
                "model": self.editor.model,
                "seed": past.settings.seed,
                "quality": past.settings.quality,
                "steps": past.settings.steps,
                "faces": [
                    {"face": index, "requested": rounded(edit.requested), "sent": rounded(edit.sent)}
                    for index, edit in past.faces.items()
                ],
            }
            image = result.image
            image.info |= {
                "Software": f"magicedit {__version__}",
                "Comment": "The expression of this photograph was edited.",
                "magicedit": json.dumps(told),
            }
            name = photo.source.stem if photo.source else "photograph"
            return save_image(image, self._folder / f"{name}-edited.png")

    def save_preset(self, relative: bool) -> Path:
        """Writes what is asked of the chosen face as an expression file.

        relative: variations to add, otherwise the intensities to arrive at.
        """
        with self._lock:
            self._face()
            request = self.request()
            if not request:
                raise MagicEditError("nothing is asked for: move a slider before saving a preset")
            if relative:
                expression = Expression(request, relative=True, source="the page")
            else:
                expression = Expression(levels(request, self.measured()), source="the page")
            kind = "variations" if relative else "intensities"
            return replace(expression, model=self.editor.model).save(self._folder / f"preset-{kind}.yaml")

    def keep(self, picture: np.ndarray | PIL.Image.Image) -> str:
        """Writes a picture for the browser, once, and returns its path; deleted with the session."""
        pixels = np.ascontiguousarray(picture)
        path = self._folder / f"{hashlib.blake2b(pixels, digest_size=12).hexdigest()}.jpg"
        if not path.exists():
            PIL.Image.fromarray(pixels).save(path, quality=92)  # for the eye: a crash may leave half of it
        return str(path)

    # --- inside ---

    def _opened(self) -> Photo:
        if self.photo is None:
            raise ImageError(NOTHING_OPEN)
        return self.photo

    def _face(self) -> Face:
        self._opened()
        return self.faces[self.chosen]

    def _close(self, pixels: np.ndarray, index: int) -> np.ndarray:
        height, width = pixels.shape[:2]
        left, top, right, bottom = face_window(self.faces[index].box, (width, height))
        return np.array(reduced(pixels[top:bottom, left:right], CLOSE_SIDE))  # not a view of the whole

    def _asked(self) -> dict[int, Request]:
        return {index: dict(asked) for index, asked in sorted(self.requests.items()) if asked}

    def _watched(self, on_step: Callable[[int], None] | None):
        self._stop.clear()

        def listener(step: int) -> None:
            if self._stop.is_set():
                raise Cancelled("stopped, as you asked")
            if on_step is not None:
                on_step(step)

        return each_step(listener)

    def _run(
        self,
        asked: Mapping[int, Request],
        settings: EditSettings,
        on_step: Callable[[int], None] | None,
        measure: bool,
    ) -> EditResult:
        photo = self._opened()
        with self._watched(on_step):
            return self.editor.edit_faces(
                photo,
                asked,
                tolerance=settings.tolerance if measure else None,
                measure=measure,
                **settings.sampling(),
            )


def open_upload(path: str | Path) -> Photo:
    """Opens a photograph of the browser's; errors name it as its owner does, without our folder."""
    path = Path(path)
    try:
        photo = open_photo(path)
    except ImageError as error:
        raise ImageError(str(error).replace(str(path), path.name)) from error
    return replace(photo, source=Path(path.name))


def reduced(pixels: np.ndarray, side: int = SHOWN_SIDE) -> np.ndarray:
    """A picture (height, width, 3) uint8 at no more than `side` px a side."""
    height, width = pixels.shape[:2]
    scale = min(1.0, side / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return pixels if scale == 1 else cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
