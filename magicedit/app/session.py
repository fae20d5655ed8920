"""The state of one open page: a photograph, its faces, their requests and the edits.

It does not depend on the web: `magicedit.app.page` shows it, and tests call it directly.
"""

import contextlib
import json
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from magicedit import __version__
from magicedit.action_units import emotion_deltas
from magicedit.app.handles import HANDLES, drag_request, handle_places
from magicedit.app.picture_files import (
    SHOWN_SIDE,
    Cancelled,
    PictureFiles,
    Upload,
    close_up,
    open_upload,
    without_folder,
)
from magicedit.app.sliders import Mode, Request, joined_sides, levels, slider_names, slider_request
from magicedit.app.turns import Turns
from magicedit.editor import EditResult, ExpressionEditor, FaceEdit, measured_expression
from magicedit.editor.results import face_pictures, face_window, rounded, sweep_caption
from magicedit.errors import ImageError, MagicEditError, NoFaceError
from magicedit.expression import Expression
from magicedit.faces import Face, levels_of
from magicedit.imaging import Photo, reduced, save_animation, save_image, strip
from magicedit.request import EditRequest, usable_expression

SMALL_FACE = 0.3  # of the photograph's height; smaller faces are shown close up
THUMBNAIL_SIDE = 128  # px
AT_ONCE = 4  # full-resolution pictures of a sweep in memory
MOST_EDITS = 50  # of a page's history; older ones are dropped
MOST_EARLIER = 5  # photographs that can be returned to
# Attributes of a session that belong to its photograph
OF_PHOTOGRAPH = (
    *("faces", "chosen", "close_up", "reference", "requests", "history", "position"),
    *("_upload", "_before", "_chips", "_next"),
)
NOTHING_OPEN = "there is no photograph yet: drop one first"


Wanted = TypeVar("Wanted")
OnStep = Callable[[int, int], None]  # denoising steps done, from 1, of so many


@dataclass(frozen=True)
class Sweep:
    """One unit of the chosen face at `count` variations from `start` to `stop`, as a strip or animated."""

    unit: str
    start: float
    stop: float
    count: int
    animated: bool
    settings: EditRequest


@dataclass(frozen=True)
class Series:
    """Files of their own to edit by one request; each kind of result has a class of its own.

    request: variations of each largest face. curve: a table of variations over the seconds of a video, added
    to the request; None: none. settings: of the sampling.
    """

    files: tuple[Upload, ...]
    request: Mapping[str, float]
    curve: Upload | None
    settings: EditRequest

    @property
    def uploads(self) -> tuple[Upload, ...]:
        return (*self.files, *filter(None, (self.curve,)))

    @property
    def folders(self) -> set[Path]:
        """Returns the folders of its files, in which its results are made."""
        return {upload.path.parent for upload in self.uploads}


@dataclass(frozen=True, eq=False)
class PastEdit:
    """One edit of the history; pictures are JPEG files of the session, written in the background.

    requests, faces: by face index, the requests and the measurements. settings, reference: as sampled, and
    whose teeth show; equal ones give equal pixels. whole: the result as shown. close: the surroundings of
    each edited face. thumbnail: of the first of these. seconds: wall time. follows: the edit that was shown
    when this one was asked; None: the photograph.
    """

    requests: Mapping[int, Request]
    settings: EditRequest
    reference: Upload | None
    faces: Mapping[int, FaceEdit]
    whole: Future[Path]
    close: Mapping[int, Future[Path]]
    thumbnail: Path
    seconds: float
    follows: "PastEdit | None" = None

    def asks(self, requests: Mapping[int, Request], settings: EditRequest, reference: Upload | None) -> bool:
        """Whether this is the edit that these ask for."""
        return (self.requests, self.settings, self.reference) == (requests, settings, reference)

    def files(self) -> list[Path]:
        """Returns its pictures that are written."""
        written = [picture for picture in (self.whole, *self.close.values()) if picture.done()]
        return [
            self.thumbnail,
            *(picture.result() for picture in written if not picture.cancelled() and not picture.exception()),
        ]


class Session:
    """One page's state and work.

    Methods that change the state are quick and may be called while an edit runs in another thread; so may
    `cancel`. Methods that call the model (`edit`, `preview`, `draw`, `save_result`) or open photographs work
    on the state at their start, and wait until the model is free.

    An event that waits for the model must not act on a page that changed meanwhile. Either it passes the face
    and the `ticket` that were valid when it was sent; or it calls `want` at once, and later `wanted_edit`,
    `wanted_sweep` or `work` do what is still wanted.

    Settings are an `EditRequest` without a request: its sampling, teeth and tolerance count.

    Pixels in memory are only a copy: `rest` drops them, and they are read or made again when they are needed.

    Args:
        editor: shared by all sessions.
        folder: in which the session makes its own folder of files for the browser.
        turns: the model's, shared by all sessions; None: this is the only one.

    Attributes:
        faces: those found in it, largest first.
        ticket: changes with the photograph, with each `cancel` and `outdate`, and with each move in the
            history.
        chosen: index of the face that the sliders belong to.
        close_up: whether the chosen face is shown instead of the whole photograph.
        requests: face index -> requested variations, as on the sliders.
        trouble: the last error message, for the page.
        reference: another photograph of the person, whose teeth show; None: none was given.
        nothing_open: what is said while there is no photograph.
        earlier: photographs with edits that were open before, by their attributes OF_PHOTOGRAPH; the last is
            the latest.
        history: all edits, oldest first, of every branch. position: index of the shown one; -1: the
            photograph itself. made: number of edits ever added.
    """

    def __init__(self, editor: ExpressionEditor, folder: Path, turns: Turns | None = None):
        self.editor, self.turns = editor, turns or Turns()
        self.faces: list[Face] = []
        self.ticket = 0
        self.chosen = 0
        self.close_up = False
        self.requests: dict[int, Request] = {}
        self.history: list[PastEdit] = []
        self.position = -1
        self.made = 0
        self._lock = threading.RLock()  # held for moments only
        self._cancels = 0  # calls of `cancel`
        self._working = threading.local()  # since: `_cancels` when this thread's work began
        self.trouble = ""
        self.reference: Upload | None = None
        self.nothing_open = NOTHING_OPEN
        self._held: set[Path] = set()  # folders of running work
        self._running = 0  # nested calls of `work`
        self._wanted: dict[type, EditRequest | Sweep | Series] = {}
        self.files = PictureFiles(folder)
        self._upload: Upload | None = None
        self._opening = 0  # calls of `open`, one at a time
        self._opened_photo: tuple[Upload, Photo] | None = None
        self._opened_reference: tuple[Upload, Photo] | None = None
        self._before: dict[int | None, Path] = {}  # the photograph as shown; by face, close up
        self._chips: list[Path] = []  # each face, small
        self._latest: tuple[PastEdit, EditResult] | None = None  # the only one kept at full resolution
        self._next: dict[PastEdit | None, PastEdit] = {}  # of an edit, the branch that was shown last
        self._drag: tuple[int, Request] = (0, {})  # its number, and the request when it began
        self._dropped = 0  # number of the last drag that ended
        self.earlier: list[dict[str, Any]] = []

    def close(self) -> None:
        """Cancels running work and deletes the page's files."""
        with self._lock:
            self.files.stop()
            self.cancel()
        self.files.delete()

    def open(self, path: str | Path) -> None:
        """Opens a photograph. On ImageError and NoFaceError the earlier one stays open; else it can be
        returned to, if there are edits of it."""
        self._opening += 1
        try:
            photo = open_upload(path)
            with self.turns.turn():
                faces = self.editor.measure(photo)
            upload = self.files.keep_upload(Path(path))
        finally:
            self._opening -= 1
        with self._lock:
            self._put_aside()
            self._upload, self._opened_photo = upload, (upload, photo)
            self.faces, self.chosen, self.reference = faces, 0, None
            self.requests, self.history, self.position = {}, [], -1
            self._before, self._chips, self._next = {}, [], {}
            self.close_up = len(faces) == 1 and self._is_small(0)

    def reopen(self, index: int) -> None:
        """Returns to a photograph of `earlier`, with its history. MagicEditError where there is none."""
        with self._lock:
            if not 0 <= index < len(self.earlier):
                raise MagicEditError("this photograph is not kept any more: open it again")
            back = self.earlier.pop(index)
            self._put_aside()
            for name, value in back.items():
                setattr(self, name, value)

    def _put_aside(self) -> None:
        """Keeps the open photograph, if there are edits of it, and drops what waits for it."""
        if self.history:
            kept = {name: getattr(self, name) for name in OF_PHOTOGRAPH}
            self.earlier = [*self.earlier, kept][-MOST_EARLIER:]
        self._opened_photo = self._opened_reference = self._latest = None
        self._wanted = {kind: work for kind, work in self._wanted.items() if isinstance(work, Series)}
        self.ticket += 1

    def earlier_thumbnails(self) -> list[Path]:
        """Returns a small picture of the shown edit of each photograph of `earlier`."""
        with self._lock:
            return [kept["history"][max(kept["position"], 0)].thumbnail for kept in self.earlier]

    def lend_teeth(self, path: str | Path) -> None:
        """Takes another photograph of the person, whose teeth show from the next edit on.

        Raises ImageError, NoFaceError, and MagicEditError where it shows no teeth.
        """
        self._opened()
        photo = open_upload(path)
        with self.turns.turn():
            self.editor.mouths_of([photo])
        upload = self.files.keep_upload(Path(path))
        with self._lock:
            self.reference, self._opened_reference = upload, (upload, photo)

    def return_teeth(self) -> None:
        """Uses the photograph of `lend_teeth` no longer."""
        with self._lock:
            self.reference = self._opened_reference = None

    # --- memory; what asks about many pages waits for none ---

    @property
    def empty(self) -> bool:
        """Whether there is nothing to lose: no photograph, and no work that waits or runs."""
        return self._upload is None and not self.busy and not self._wanted

    @property
    def busy(self) -> bool:
        """Whether something is being made or opened."""
        return self._running > 0 or self._opening > 0

    @property
    def photo(self) -> Photo | None:
        """The opened photograph; None before. ImageError where its file was deleted meanwhile."""
        with self._lock:
            if self._upload is None:
                return None
            if self._opened_photo is None:
                self._opened_photo = self._upload, open_upload(self._upload)
            return self._opened_photo[1]

    def weight(self) -> int:
        """Returns the bytes of pixels that `rest` would free."""
        photos = [held[1].size for held in (self._opened_photo, self._opened_reference) if held is not None]
        latest = self._latest
        results = [] if latest is None else [latest[1].image.size]
        return sum(3 * width * height for width, height in (*photos, *results))

    def rest(self) -> None:
        """Drops pixels from memory, unless work runs."""
        if self._lock.acquire(blocking=False):
            try:
                if not self.busy:
                    self._opened_photo = self._opened_reference = self._latest = None
            finally:
                self._lock.release()

    def needed(self) -> set[Path]:
        """Returns the files that the page shows or reads again, and folders of waiting and running work."""
        with self._lock:
            now = {name: getattr(self, name) for name in OF_PHOTOGRAPH}
            kept = [*self.earlier, now]
            history = [past for one in kept for past in one["history"]]
            lent = [one["reference"] for one in kept] + [past.reference for past in history]
            uploads = {upload.path for upload in (*lent, *(one["_upload"] for one in kept)) if upload}
            pictures = {picture for past in history for picture in past.files()}
            shown = {path for one in kept for path in (*one["_before"].values(), *one["_chips"])}
            waiting = (work.folders for work in self._wanted.values() if isinstance(work, Series))
            return (uploads | pictures | shown | self._held).union(*waiting)

    @contextlib.contextmanager
    def holding(self, paths: Collection[Path]) -> Iterator[None]:
        """Counts these folders as needed."""
        with self._lock:
            self._held |= {*paths}
        try:
            yield
        finally:
            with self._lock:
                self._held -= {*paths}

    def choose(self, index: int) -> None:
        """Chooses a face; NoFaceError where there is no such face."""
        with self._lock:
            if not 0 <= index < len(self.faces):
                raise NoFaceError(f"there is no face {index + 1}; {len(self.faces)} were found")
            self.chosen = index
            self.close_up = self.close_up or self._is_small(index)

    def _is_small(self, index: int) -> bool:
        """Whether a face is too small to be worked on in the whole photograph."""
        _, top, _, bottom = self.faces[index].box
        return bottom - top < SMALL_FACE * self._opened().size[1]

    def choose_at(self, x: float, y: float) -> None:
        """Chooses the smallest face, if any, around a place in shares of the shown picture."""
        with self._lock:
            x, y = self._place(x, y)
            around = [
                index
                for index, face in enumerate(self.faces)
                if face.box[0] <= x <= face.box[2] and face.box[1] <= y <= face.box[3]
            ]
            if around:
                self.choose(around[-1])  # largest first

    def window(self) -> tuple[int, int, int, int]:
        """Returns left, top, right, bottom px of the part of the photograph that is shown."""
        with self._lock:
            size = self._opened().size
            return face_window(self._face().box, size) if self.close_up else (0, 0, *size)

    def handles(self) -> dict[int, tuple[str, float, float]]:
        """Returns the handles of the chosen face as its request carries them: by number of `HANDLES`, label
        and place in shares of the shown picture. None where landmarks are not MediaPipe's."""
        with self._lock:
            face, (left, top, right, bottom) = self._face(), self.window()
            if face.scheme != "mediapipe478":
                return {}
            places = handle_places(face.landmarks, self.request(), self.editor.action_units)
        shares = {n: (place - (left, top)) / (right - left, bottom - top) for n, place in places.items()}
        return {
            n: (HANDLES[n].label, *map(float, at))
            for n, at in shares.items()
            if 0 <= at.min() <= at.max() <= 1
        }

    def measured(self, face: int | None = None) -> dict[str, float]:
        """Returns intensities of a face (default: the chosen one), with sides; empty where not measured."""
        with self._lock:
            if not self.faces:
                return {}
            found = self.faces[self.chosen if face is None else face]
            return levels_of(found)

    def request(self) -> Request:
        """Returns the request of the chosen face."""
        with self._lock:
            return self.requests.get(self.chosen, {})

    # --- asking ---

    def ask(self, request: Request) -> None:
        """Sets the request of the chosen face."""
        with self._lock:
            self._opened()
            self.requests[self.chosen] = {name: value for name, value in request.items() if value}

    def ask_sliders(
        self, values: Sequence[float | None], mode: Mode, linked: bool, face: int | None = None
    ) -> None:
        """Sets a face's request (default: the chosen one's) by the sliders, see `magicedit.app.sliders`."""
        with self._lock:
            self._opened()
            face = self.chosen if face is None else face
            names, before = slider_names(self.editor.action_units), self.requests.get(face, {})
            self.requests[face] = slider_request(values, self.measured(face), names, mode, linked, before)

    def drag(self, handle: int, x: float, y: float, number: int, linked: bool, ends: bool) -> None:
        """Requests what carries a handle of the chosen face to a place in shares of the shown picture.

        number: of the drag, which counts them: every event of one starts from the request at its first event,
        and none counts after the one that `ends` it. linked: whether both sides move. MagicEditError where
        there is no such handle.
        """
        with self._lock:
            if number <= self._dropped:
                return
            if handle not in self.handles():
                raise MagicEditError("there is no handle here: drag one of the dots on the face")
            if self._drag[0] != number:
                self._drag = number, self.request()
            face, units = self._face(), self.editor.action_units
            place = np.array(self._place(x, y))
            measured = self.measured()
            self.ask(
                drag_request(HANDLES[handle], place, face.landmarks, self._drag[1], measured, units, linked)
            )
            if ends:
                self._dropped = number

    def _place(self, x: float, y: float) -> tuple[float, float]:
        """Converts shares of the shown picture to px of the photograph."""
        left, top, right, bottom = self.window()
        return left + x * (right - left), top + y * (bottom - top)

    def is_current(self, ticket: int) -> bool:
        """Whether an event with this ticket is still valid."""
        with self._lock:
            self._opened()
            return ticket == self.ticket

    def outdate(self) -> None:
        """Makes the tickets of events that wait invalid."""
        with self._lock:
            self.ticket += 1

    def join_sides(self) -> None:
        """Sets the request of both sides of the chosen face to their mean."""
        with self._lock:
            self.requests[self.chosen] = joined_sides(self.request(), self.editor.action_units)

    def ask_emotion(self, name: str, strength: float) -> None:
        """Requests only an emotion of the chosen face. ActionUnitError as `parse_emotion`."""
        units = self.editor.action_units
        deltas = emotion_deltas(name, strength, units, self.measured())
        self.ask({unit: value for unit, value in deltas.items() if unit in units})

    def ask_expression(self, expression: Expression, strength: float = 1.0) -> None:
        """Requests an expression of the chosen face.

        Raises ActionUnitError where it was made for another model, or a variation leaves -10 to 10.
        """
        with self._lock:
            usable = usable_expression(expression, self.editor.action_units)
            self.ask(usable.variation(self.measured(), strength))

    def ask_neutral(self) -> None:
        """Requests a neutral chosen face. MagicEditError where its intensities are not measured."""
        with self._lock:
            units = self.editor.action_units
            own = units[: units.numbers]  # without controls of geometry
            shown = measured_expression(self._face(), self.editor.backend.name, own=own)
            rest = Expression(dict.fromkeys(shown.values, 0.0))
            self.ask_expression(rest.limited_to(own))

    def ask_preset(self, path: str | Path, strength: float = 1.0) -> Expression:
        """Requests the expression of a file. Errors as `Expression.load` and `ask_expression`."""
        path = Path(path)
        try:
            expression = Expression.load(path)
        except MagicEditError as error:
            raise type(error)(without_folder(error, path, path.name)) from error
        self.ask_expression(expression, strength)
        return expression

    def ask_copy(self, path: str | Path, strength: float = 1.0) -> Expression:
        """Requests the expression of the largest face of another photograph."""
        self._opened()
        photo = open_upload(path)
        with self.turns.turn():
            expression = self.editor.expression(photo)
        self.ask_expression(expression, strength)
        return expression

    # --- what waits for the model ---

    def want(self, wanted: EditRequest | Sweep | Series, ticket: int | None = None) -> None:
        """Notes work to follow, unless `ticket` is outdated; the last of each kind counts."""
        with self._lock:
            if not isinstance(wanted, Series):
                self._opened()
            if ticket is None or self.is_current(ticket):
                self._wanted[type(wanted)] = wanted

    def wanted_edit(self, on_step: OnStep | None = None) -> PastEdit | None:
        """Makes the wanted edit; None if there is none any more."""
        with self.work(EditRequest) as settings:
            if settings is None or (self.past() is None and not self._asked()):  # only the focus changed
                return None
            return self.edit(settings, on_step)

    def wanted_sweep(self, on_step: OnStep | None = None) -> Path | None:
        """Makes the wanted sweep; None if there is none any more."""
        with self.work(Sweep) as wanted:
            return None if wanted is None else self.draw(wanted, on_step)

    def cancel(self) -> bool:
        """Stops running work at its next step and drops wanted work; returns whether there was any."""
        with self._lock:
            anything = self._running > 0 or bool(self._wanted)
            self._wanted = {}
            self._cancels += 1
            self.ticket += 1
            return anything

    # --- editing ---

    def edit(self, settings: EditRequest, on_step: OnStep | None = None) -> PastEdit:
        """Edits every face with a request, adds the result to the history and shows it; where the history was
        moved in meanwhile, it shows what it was moved to.

        Returns the shown edit if it has the same requests and settings. Raises Cancelled where `cancel` was
        called meanwhile, or another photograph was opened; then nothing changes.
        """
        with self._lock:
            photo, upload, faces = self._opened(), self._upload, self.faces
            asked, reference, shown = self._asked(), self.reference, self.past()
            ticket = self.ticket
            if shown is not None and shown.asks(asked, settings, reference):
                return shown
        with self.work():
            result = self._run(photo, asked, self._lent(settings, reference), on_step, measure=True)
            whole, close, thumbnail = pictures_of(result, faces, asked)
            past = PastEdit(
                requests=asked,
                settings=settings,
                reference=reference,
                faces=dict(zip(asked, result.faces, strict=True)),
                whole=self.files.keep_later(whole),
                close={index: self.files.keep_later(lambda p=picture: p) for index, picture in close.items()},
                thumbnail=self.files.keep(thumbnail, edited=True),
                seconds=result.seconds,
                follows=shown,
            )
            with self._lock:
                if self._upload is not upload:
                    raise Cancelled("another photograph was opened meanwhile")
                self.raise_if_cancelled()
                self._latest = past, result
                now, self.history = self.past(), [*self.history, past][-MOST_EDITS:]
                self.made += 1
                self._turn_to(len(self.history) - 1)
                if self.ticket != ticket:  # the requests are those of what an undo shows
                    self._turn_to(self._index(now))
        return past

    def preview(self, settings: EditRequest) -> Path | None:
        """Makes the quickest edit of the requests, unmeasured, as the page shows it.

        None if the shown edit has the same requests and settings, or the photograph is shown and nothing is
        requested: a late preview must not cover it.
        """
        with self._lock:
            photo, asked, reference, shown = self._opened(), self._asked(), self.reference, self.past()
            face = self.faces[self.chosen] if self.close_up else None
        if not asked if shown is None else shown.asks(asked, settings, reference):
            return None
        settings = self._lent(settings, reference)
        quickest = replace(settings, quality="live", steps=None, tolerance=None)
        result = self._run(photo, asked, quickest, None, measure=False)
        pixels = np.asarray(result.image.convert("RGB"))
        shown = reduced(pixels, SHOWN_SIDE) if face is None else close_up(pixels, face)
        return self.files.keep(shown, edited=True)

    def past(self) -> PastEdit | None:
        """Returns the shown edit; None: the photograph itself."""
        with self._lock:
            return self.history[self.position] if self.position >= 0 else None

    def show(self, position: int) -> None:
        """Shows an edit of the history, or with -1 the photograph, and restores its requests; an edit that
        waits is dropped."""
        with self._lock:
            self._turn_to(min(max(position, -1), len(self.history) - 1))
            past = self.past()
            self.requests = {} if past is None else {i: dict(asked) for i, asked in past.requests.items()}
            self._wanted.pop(EditRequest, None)
            self.ticket += 1

    def undo(self) -> None:
        """Shows what the shown edit followed."""
        with self._lock:
            self.show(self.origin)

    def redo(self) -> None:
        """Shows the edit that followed the shown one, on the branch that was shown last."""
        with self._lock:
            if self.can_redo:
                self.show(self._index(self._next[self.past()]))

    @property
    def origin(self) -> int:
        """Index of the edit that the shown one followed; -1: the photograph."""
        with self._lock:
            past = self.past()
            return -1 if past is None else self._index(past.follows)

    @property
    def can_redo(self) -> bool:
        with self._lock:
            return self._next.get(self.past()) in self.history

    def _index(self, past: PastEdit | None) -> int:
        """Returns the index of an edit in the history; -1 for the photograph, and for edits dropped since."""
        return self.history.index(past) if past in self.history else -1

    def _turn_to(self, position: int) -> None:
        """Sets the position; redoing follows its branch from now on."""
        self.position = position
        past = self.past()
        while past is not None:
            self._next[past.follows] = past
            past = past.follows

    def draw(self, sweep: Sweep, on_step: OnStep | None = None) -> Path:
        """Returns a sweep as a file: PNG, or GIF if animated."""
        with self._lock:
            photo, chosen = self._opened(), self.chosen
            sampling = self._lent(sweep.settings, self.reference).sampling()
        pictures, captions = [], []
        variations = np.linspace(sweep.start, sweep.stop, sweep.count)
        with self.watched(on_step, sweep.settings) as listener:
            for some in np.array_split(variations, -(-sweep.count // AT_ONCE)):  # not all at full resolution
                if pictures:
                    self.turns.pass_on()
                results = self.editor.variants(
                    photo,
                    [{sweep.unit: round(float(value), 3)} for value in some],
                    chosen,
                    on_step=listener,
                    **sampling,
                )
                pictures += face_pictures(results, 512 if sweep.animated else 384)
                captions += [sweep_caption(result.faces[0]) for result in results]
        if sweep.animated:
            path = self.files.folder / f"sweep-{sweep.unit}.gif"
            return save_animation([*pictures, *pictures[-2:0:-1]], path, 0.12)
        return save_image(strip(pictures, captions), self.files.folder / f"sweep-{sweep.unit}.png")

    # --- results ---

    def shown(self) -> tuple[Path, Path]:
        """Returns the photograph and the shown edit, whole or close up to the chosen face, as JPEG files."""
        if (past := self.past()) is not None:
            self._write_again(past)
        with self._lock:
            self._opened()
            face = self.chosen if self.close_up else None
            if face not in self._before or not self._before[face].exists():
                pixels = self._opened().pixels
                close = None if face is None else close_up(pixels, self.faces[face])
                self._before[face] = self.files.keep(reduced(pixels, SHOWN_SIDE) if close is None else close)
            before = self._before[face]
            if past is None:
                return before, before
            after = past.close.get(self.chosen) if self.close_up else past.whole
        return before, before if after is None else after.result()

    def thumbnails(self) -> list[Path]:
        """Returns a small picture of each edit of the history, as JPEG files."""
        with self._lock:
            history = [*self.history]
        for past in history:
            self._write_again(past)
        return [past.thumbnail for past in history]

    def _write_again(self, past: PastEdit) -> None:
        """Writes the pictures of an edit that something else deleted, as programs that clean /tmp do."""
        if not all(path.exists() for path in past.files()):
            whole, close, thumbnail = pictures_of(self._result(past), self.faces, past.requests)
            for picture in (whole(), *close.values(), thumbnail):
                self.files.keep(picture, edited=True)

    def face_thumbnails(self) -> list[Path]:
        """Returns a small picture of each face of the photograph, as JPEG files."""
        with self._lock:
            if not all(path.exists() for path in self._chips) or not self._chips:
                pixels = self._opened().pixels
                small = (reduced(close_up(pixels, face), THUMBNAIL_SIDE) for face in self.faces)
                self._chips = [self.files.keep(picture) for picture in small]
            return self._chips

    def face_boxes(self) -> list[tuple[float, float, float, float]]:
        """Returns left, top, right, bottom of each face in shares of the photograph."""
        with self._lock:
            width, height = self._opened().size
            return [tuple(map(float, face.box / np.array([width, height] * 2))) for face in self.faces]

    def save_result(self, suffix: str = ".png") -> Path:
        """Writes the shown edit as a file of the photograph's own resolution, with its metadata and ours.

        suffix: ".png", whose text `magicedit` is JSON: version, model, settings, and each face's request; or
        ".jpg".
        """
        with self._lock:
            photo, past = self._opened(), self.past()
        if past is None:
            raise MagicEditError("there is no edit yet: move a slider first")
        image = self._result(past).image
        told = {"version": __version__, "model": self.editor.model}
        told |= {name: getattr(past.settings, name) for name in ("seed", "quality", "steps")}
        told["faces"] = [
            {"face": index, "requested": rounded(edit.requested), "sent": rounded(edit.sent)}
            for index, edit in past.faces.items()
        ]
        image.info |= {
            "Software": f"magicedit {__version__}",
            "Comment": "The expression of this photograph was edited.",
            "magicedit": json.dumps(told),
        }
        name = photo.source.stem if photo.source else "photograph"
        return save_image(image, self.files.folder / f"{name}-edited{suffix}")

    def save_preset(self, relative: bool) -> Path:
        """Writes the chosen face's request as an expression of variations, or of intensities."""
        with self._lock:
            self._face()
            request, measured = self.request(), self.measured()
        if not request:
            raise MagicEditError("nothing is requested: move a slider before saving a preset")
        values = request if relative else levels(request, measured)
        expression = Expression(values, relative, source="the page", model=self.editor.model)
        kind = "variations" if relative else "intensities"
        return expression.save(self.files.folder / f"preset-{kind}.yaml")

    def _result(self, past: PastEdit) -> EditResult:
        """Returns an edit at full resolution; made anew, it has the same pixels."""
        with self._lock:
            photo, latest = self._opened(), self._latest
        if latest is None or latest[0] is not past:
            sent = {index: face.sent for index, face in past.faces.items()}
            settings = self._lent(past.settings, past.reference)
            latest = past, self._run(photo, sent, settings, None, measure=False)
            with self._lock:
                self._latest = latest
        return latest[1]

    def _opened(self) -> Photo:
        if (photo := self.photo) is None:
            raise ImageError(self.nothing_open)
        return photo

    def _face(self) -> Face:
        self._opened()
        return self.faces[self.chosen]

    def _asked(self) -> dict[int, Request]:
        return {index: dict(asked) for index, asked in sorted(self.requests.items()) if asked}

    def _lent(self, settings: EditRequest, reference: Upload | None) -> EditRequest:
        """Returns the settings with the photograph of `lend_teeth`."""
        if reference is None:
            return settings
        with self._lock:
            if self._opened_reference is None or self._opened_reference[0] is not reference:
                self._opened_reference = reference, open_upload(reference)
            return replace(settings, references=(self._opened_reference[1],))

    @contextlib.contextmanager
    def work(self, kind: type[Wanted] | None = None) -> Iterator[Wanted | None]:
        """Work that `cancel` stops; may be nested. Takes and yields what is wanted of a kind, or None."""
        with self._lock:
            outer = getattr(self._working, "since", None)
            self._working.since = self._cancels if outer is None else outer
            self._running += 1
            wanted = self._wanted.pop(kind, None)
        try:
            yield wanted
        finally:
            self._working.since = outer
            with self._lock:
                self._running -= 1

    def raise_if_cancelled(self) -> None:
        """Raises Cancelled after a `cancel` of this thread's work, and where the page was closed."""
        self.files.raise_if_closed()
        if getattr(self._working, "since", None) not in (None, self._cancels):
            raise Cancelled("stopped, as you asked")

    @contextlib.contextmanager
    def watched(self, on_step: OnStep | None, settings: EditRequest) -> Iterator[Callable[[int], None]]:
        """Holds the model for work that `cancel` stops; yields a listener of steps, which calls `on_step`."""
        total = self.editor.changer.model.steps(settings.steps, settings.quality)

        def listener(step: int) -> None:
            self.raise_if_cancelled()
            if on_step is not None:
                on_step(step + 1, total)

        with self.work(), self.turns.turn():
            self.raise_if_cancelled()
            yield listener

    def _run(
        self,
        photo: Photo,
        asked: Mapping[int, Request],
        settings: EditRequest,
        on_step: OnStep | None,
        measure: bool,
    ) -> EditResult:
        with self.watched(on_step, settings) as listener:
            return self.editor.edit_faces(
                photo,
                asked,
                tolerance=settings.tolerance if measure else None,
                measure=measure,
                on_step=listener,
                **settings.sampling(),
            )


def pictures_of(
    result: EditResult, faces: Sequence[Face], asked: Collection[int]
) -> tuple[Callable[[], np.ndarray], dict[int, np.ndarray], np.ndarray]:
    """Returns what the page shows of an edit: the whole, which is computed when it is called; by index, the
    surroundings of each face that was asked; and a small one of the first of these."""
    pixels = np.asarray(result.image.convert("RGB"))
    close = {index: close_up(pixels, faces[index]) for index in asked or (0,)}
    thumbnail = reduced(next(iter(close.values())), THUMBNAIL_SIDE)
    return lambda: reduced(pixels, SHOWN_SIDE), close, thumbnail
