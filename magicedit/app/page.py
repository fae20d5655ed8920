"""The page's layout, and which event calls which method of a `Session`.

Events receive their inputs' values by component, and return updates by component.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.exceptions import InvalidPathError
from gradio_client.utils import is_http_url_like

from magicedit import __version__
from magicedit.app.atlas import atlas
from magicedit.app.endpoints import add_endpoints
from magicedit.app.messages import WRONG_VALUES, listed, said, spoken
from magicedit.app.pictures import Pictures, Updates, summary
from magicedit.app.series import (
    Film,
    Photographs,
    Preview,
    edit_photographs,
    make_video,
    preview_video,
)
from magicedit.app.session import Series, Session
from magicedit.app.sessions import Sessions
from magicedit.app.stage import READ_POSITIONS, script
from magicedit.app.tabs import (
    CopyTab,
    ExpressionTab,
    MeasuredTab,
    PhotographsTab,
    SeriesTab,
    SettingsTab,
    SweepTab,
    Values,
    VideoTab,
    pad_axes,
)
from magicedit.errors import MagicEditError
from magicedit.request import EditRequest
from magicedit.vocabulary import is_finite

KEPT_SECONDS = 600  # lifetime of uploads and of results that no open page shows
MODEL = "model"  # events of this name run one at a time; so do those of other names that need it, see `Turns`
CSS = Path(__file__).with_name("page.css")
EXAMPLE = Path(__file__).with_name("example.jpg")  # SFHQ-T2I, MIT licence: it shows nobody

HEADER = f"""\
<a class='me-skip' href='#sliders'>Skip to the sliders</a>
<header class='me-header'><h1>magicedit <small>{__version__}</small></h1>
<p role='note'><strong>Ask first.</strong> Edit only people who agreed to it, and say that a picture was
edited wherever you show it. Photographs stay on the machine that runs this page, which deletes them half a
minute after the page is closed, and everything else after ten minutes.</p></header>"""
NOT_UPLOADED = "the file was not uploaded by a user of this page, or was deleted since: upload it again"

# A download is made on request; then the browser fetches the file.
FOLLOW = """file => {
    const link = document.createElement('a');
    link.href = file.url;
    link.download = file.orig_name;
    link.click();
}"""

# The name that the page had before its browser reloaded it; "" where that did not happen
BEFORE_RELOAD = """(...values) => {
    const [{ type }] = performance.getEntriesByType('navigation');
    return values.map(value => value ?? (type === 'reload' ? sessionStorage.getItem('magicedit') ?? '' : ''));
}"""

# The name of the browser's error, or "": Gradio's own camera is silent where there is none
ASK_CAMERA = """async () => {
    try {
        const stream = await navigator.mediaDevices.getUserMedia({ video: true });
        stream.getTracks().forEach(track => track.stop());
        return [''];
    } catch (error) {
        return [error.name];
    }
}"""
NO_CAMERA = {
    "NotAllowedError": "the browser refused the camera: allow it for this page in the browser's settings",
    "NotFoundError": "the browser found no camera: connect one",
    "NotReadableError": "the camera cannot be read: close what else uses it",
    "TypeError": "browsers lend the camera only to pages on the same machine and by HTTPS",
}

IS_UNFOLDED = "() => [document.querySelector('#upload').checkVisibility()]"

PRIVATE = {"api_visibility": "private"}
WITH_MODEL = PRIVATE | {"concurrency_id": MODEL, "concurrency_limit": 1}
LONG = PRIVATE | {"concurrency_id": "long", "concurrency_limit": 1}  # lets the others in between
# What is asked again while it runs happens once more afterwards, instead of not at all
LAST = {"trigger_mode": "always_last"}
# Unprocessed: a number field is empty while somebody types, which Gradio would reject
RAW = {"preprocess": False}


class Blocks(gr.Blocks):
    """Gradio's, whose refusals of a request's values quote neither our folders nor its own objects."""

    async def preprocess_data(self, block_fn: Any, inputs: list[Any], *args: Any, **kwargs: Any) -> list[Any]:
        try:
            json.loads(json.dumps(inputs), object_hook=refuse_links)
            return await super().preprocess_data(block_fn, inputs, *args, **kwargs)
        except gr.Error:  # a sentence for people
            raise
        except InvalidPathError as error:
            raise gr.Error(NOT_UPLOADED, print_exception=False) from error
        except Exception as error:  # each component raises what it likes at a value of another type
            raise gr.Error(WRONG_VALUES, print_exception=False) from error


def refuse_links(value: dict[str, Any]) -> None:
    """Raises InvalidPathError for a file on another machine, which Gradio would fetch."""
    if is_http_url_like(value.get("path")):
        raise InvalidPathError(NOT_UPLOADED)


class Page:
    """Lays out the page and wires its events; `blocks` is Gradio's.

    sessions: of all open pages. live: whether the model is fast enough to edit while a slider is dragged.
    settings: initial values.
    """

    def __init__(self, sessions: Sessions, *, live: bool, settings: EditRequest):
        self.sessions = sessions
        units = sessions.editor.action_units
        with Blocks(title="magicedit", analytics_enabled=False) as self.blocks:
            gr.HTML(HEADER, js_on_load=script("page.js"), atlas=atlas(units))
            self.ticket = gr.Number(0, visible=False, precision=0)
            with gr.Row(elem_id="workplace"):
                with gr.Column(scale=2, min_width=320, elem_id="pictures"):
                    self.pictures = Pictures(live)
                with gr.Column(scale=1, min_width=320, elem_id="controls"):
                    self.expression = ExpressionTab(units)
                    self.measured = MeasuredTab()
                    self.copy = CopyTab()
                    self.sweep = SweepTab(units)
                    self.video = VideoTab()
                    self.photographs = PhotographsTab()
                    self.settings = SettingsTab(settings, live)
            self.status = self.pictures.status
            self.edit_shown = [*self.pictures.of_edit, self.status]
            self.shown_later = [self.pictures.history, self.measured.bars]
            self.photograph_shown = [
                *(*self.pictures.of_faces, *self.expression.shown, *self.edit_shown),
                *(self.ticket, self.settings.lent),
            ]
            # The browser notes the progress of each event in every component that ever was to show any: in
            # one that shows nothing, instead of a hundred sliders
            silent = {"show_progress": "hidden", "show_progress_on": self.pictures.drags}
            self.quick = PRIVATE | silent | {"concurrency_limit": None}
            self.dragging = WITH_MODEL | silent | LAST | RAW
            self.with_progress = {
                "show_progress": "minimal" if live else "full",  # a bar over the picture would flash
                "show_progress_on": self.pictures.progress,
            }
            self._wire_photograph()
            self._wire_sliders()
            self._wire_drags()
            self._wire_requests()
            self._wire_results()
            self._wire_series()
            add_endpoints(sessions.editor, sessions.turns, sessions.folder, MODEL)
            self._wire_loading()
            self.blocks.unload(sessions.part)

    def _wire_loading(self) -> None:
        """A page that is reloaded goes on where it was: its browser keeps the page's name for that."""
        name, tab = gr.Textbox(visible=False), self.expression
        shown = [name, *self.photograph_shown]

        def on_load(request: gr.Request, values: Values) -> Updates:
            own = {name: request.session_hash}
            if not self.sessions.resume(values[name], request):
                return own
            return own | self._show_photograph(self.sessions.of(request), values, values[tab.linked])

        inputs = [name, tab.mode, tab.linked]
        loading = self.blocks.load(self._spoken(on_load), {*inputs}, shown, js=BEFORE_RELOAD, **self.quick)
        loading.success(None, name, js="name => sessionStorage.setItem('magicedit', name)", **PRIVATE)
        self._tells_trouble(loading)

    def _wire_photograph(self) -> None:
        pictures, tab = self.pictures, self.expression

        def opens(event: Callable[..., Any], handler: Callable[..., Any], *inputs: Any) -> Any:
            return event(
                self._spoken(handler),
                {tab.mode, *inputs},
                self.photograph_shown,
                show_progress_on=pictures.progress,  # an error would cover the picture that stays
                **WITH_MODEL,
            )

        self._empties(opens(pictures.upload.upload, self.on_upload, pictures.upload), pictures.upload)
        self._empties(opens(pictures.camera.input, self.on_camera, pictures.camera), pictures.camera)
        self._tells_trouble(opens(pictures.example.click, self.on_example))
        self._tells_trouble(opens(pictures.earlier.select, self.on_reopen))
        asking = pictures.ask_camera.click(
            self._spoken(self.on_ask_camera), {pictures.trouble}, pictures.camera, js=ASK_CAMERA, **self.quick
        )
        self._tells_trouble(asking)
        shown = [pictures.opening, pictures.earlier]
        pictures.reopen.click(self.on_open, {pictures.unfolded}, shown, js=IS_UNFOLDED, **self.quick)
        chosen = [*pictures.of_faces, *tab.shown, pictures.stage]
        for event in (pictures.faces.select, pictures.stage.select):
            event(self._spoken(self.on_choose), tab.way, chosen, **self.quick)
        pictures.view.input(self._spoken(self.on_view), {pictures.view}, [pictures.stage], **self.quick)
        pictures.stage.end(self._spoken(self.on_shown), None, self.shown_later, **LAST, **self.quick)

    def _wire_sliders(self) -> None:
        tab, positions = self.expression, self.expression.positions
        asked = {self.ticket, self.pictures.face, *tab.way, positions, *self.settings.inputs}
        positions.input(
            self._spoken(self.on_drag),
            asked | {self.settings.live},
            [self.pictures.stage, self.status],
            js=READ_POSITIONS,
            **self.dragging,
        )
        asking = positions.release(
            self._spoken(self.on_ask),
            asked,
            self.edit_shown,
            js=READ_POSITIONS,
            **LAST,
            **self.with_progress,
            **WITH_MODEL,
            **RAW,
        )
        self._tells_trouble(asking)
        self.pictures.cancel.click(self.on_cancel, None, [self.ticket, self.status], queue=False, **PRIVATE)
        for event in (tab.mode.input, tab.linked.input):
            event(self._spoken(self.on_mode), tab.way, tab.shown, **self.quick)

    def _wire_drags(self) -> None:
        """Movements of a drag are requests with a preview; its end is a request, and an edit follows."""
        tab, moves = self.expression, self.pictures.drags
        asked = {self.pictures.face, moves, *tab.way, *self.settings.inputs}
        moves.input(
            self._spoken(self.on_move),
            asked | {self.ticket, tab.positions, self.settings.live},
            [*tab.sliders.values(), self.pictures.stage, self.status],
            js=READ_POSITIONS,
            **self.dragging,
        )
        ending = moves.release(
            self._spoken(self.on_release),
            asked,
            [*tab.shown, self.ticket],
            trigger_mode="multiple",
            **self.quick,
            **RAW,
        )
        self._follows(ending)

    def _wire_requests(self) -> None:
        tab, copy, sent = self.expression, self.copy, {*self.expression.way, *self.settings.inputs}

        def moves(
            event: Callable[..., Any], ask: Callable[[Session, Values], str], *inputs: Any, **options: Any
        ) -> gr.events.Dependency:
            """The event changes the chosen face's request; the sliders are updated and an edit follows."""

            def on_request(request: gr.Request, values: Values) -> Updates:
                session = self.sessions.of(request)
                told = ask(session, values)
                session.outdate()  # else sliders that wait would ask for what they showed before
                session.want(self.settings.read(values))
                words = {self.status: said(told), self.ticket: session.ticket}
                return self._show_sliders(session, values) | words

            shown = [*tab.shown, self.status, self.ticket]
            asking = event(self._spoken(on_request), sent | {*inputs}, shown, **(options or self.quick))
            self._follows(asking)
            return asking

        moves(tab.feel.click, tab.ask_emotion, tab.emotion, tab.strength)
        moves(tab.neutral.click, tab.ask_neutral)
        moves(tab.reset.click, tab.ask_nothing)
        self._empties(moves(copy.preset.upload, copy.ask_preset, copy.preset, copy.share), copy.preset)
        copying = moves(  # looks for a face, as edits do
            copy.photograph.upload,
            copy.ask_copy,
            copy.photograph,
            copy.share,
            **WITH_MODEL,
            **self.with_progress,
        )
        self._empties(copying, copy.photograph)
        reference = self.settings.reference
        shown = [self.status, self.settings.lent]
        lending = reference.upload(self._spoken(self.on_lend), {reference}, shown, **WITH_MODEL)
        self._empties(lending, reference)
        self.settings.lent.click(self.on_return, None, shown, **self.quick)

    def _wire_results(self) -> None:
        pictures, tab, copy = self.pictures, self.expression, self.copy
        for event, handler in (
            (pictures.undo.click, self.on_undo),
            (pictures.redo.click, self.on_redo),
            (pictures.history.select, self.on_history),
        ):
            shown = [*tab.shown, *self.edit_shown, self.ticket]
            event(self._spoken(handler), tab.way, shown, **self.quick)
        for button, handler in ((pictures.png, self.on_png), (pictures.jpeg, self.on_jpeg)):
            button.click(self._spoken(handler), None, pictures.result_file, **WITH_MODEL).success(
                None, pictures.result_file, js=FOLLOW, **PRIVATE
            )
        for button, handler in (
            (copy.save_steps, self.on_save_steps),
            (copy.save_levels, self.on_save_levels),
        ):
            inputs, reading = {*tab.way, tab.positions}, self.quick | RAW | {"js": READ_POSITIONS}
            button.click(self._spoken(handler), inputs, copy.preset_file, **reading).success(
                None, copy.preset_file, js=FOLLOW, **PRIVATE
            )
        self.sweep.draw.click(
            self._spoken(self.on_ask_sweep), self.sweep.inputs | self.settings.inputs, None, **self.quick
        ).success(
            self._spoken(self.on_sweep),
            None,
            self.sweep.drawn,
            **self.with_progress,
            **LAST,
            **LONG,
        )

    def _wire_series(self) -> None:
        """Videos and several photographs: their files are kept at once, and edited when the model is free."""
        for tab in (self.video, self.photographs):
            tab.take.click(self._spoken(self._on_take(tab)), None, tab.request, **self.quick)
        video, photographs = self.video, self.photographs
        works = [
            (video.preview, video, Preview, self.on_preview_video, video.shown),
            (video.make, video, Film, self.on_make_video, video.result),
            (
                photographs.make,
                photographs,
                Photographs,
                self.on_photographs,
                [photographs.shown, photographs.result, photographs.failed, self.status],
            ),
        ]
        for button, tab, kind, handler, shown in works:
            inputs = tab.inputs | self.settings.inputs
            asking = button.click(self._spoken(self._on_ask_series(tab, kind)), inputs, None, **self.quick)
            working = asking.success(
                self._spoken(handler),
                None,
                shown,
                show_progress="full",
                show_progress_on=tab.progress,
                **LAST,
                **LONG,
            )
            for event in (asking, working):
                self._tells_trouble(event)
            if told := {Preview: "The preview is made.", Film: "The video is made."}.get(kind):
                working.success(lambda told=told: said(told), None, self.status, **self.quick)

    def _empties(self, event: gr.events.Dependency, place: gr.components.Component) -> None:
        """Empties the place after the event, so that another file can be dropped; errors stay readable."""
        event.success(lambda: None, None, place, **self.quick)
        event.failure(lambda: None, None, place, **self.quick)
        self._tells_trouble(event)

    def _follows(self, asking: gr.events.Dependency) -> None:
        """Makes the wanted edit after the event."""
        editing = asking.success(
            self._spoken(self.on_edit),
            None,
            self.edit_shown,
            **self.with_progress,
            **LAST,
            **WITH_MODEL,
        )
        self._tells_trouble(editing)

    def _tells_trouble(self, event: gr.events.Dependency) -> None:
        event.failure(self.on_trouble, None, self.status, **self.quick)

    def _spoken(self, handler: Callable[..., Any]) -> Callable[..., Any]:
        """Returns the handler with user errors turned into messages that `on_trouble` can repeat."""

        def note(request: gr.Request, text: str) -> None:
            if (session := self.sessions.known(request)) is not None:  # else the page was closed
                session.trouble = text

        return spoken(handler, note)

    # --- event handlers; Gradio's request identifies the page's session ---

    def on_upload(self, request: gr.Request, values: Values) -> Updates:
        return self._open(request, values, values[self.pictures.upload])

    def on_camera(self, request: gr.Request, values: Values) -> Updates:
        return self._open(request, values, values[self.pictures.camera])

    def on_ask_camera(self, request: gr.Request, values: Values) -> Updates:
        self.sessions.of(request)  # notes what is told
        if error := values[self.pictures.trouble]:
            told = NO_CAMERA.get(error, "the browser lends no camera")
            raise MagicEditError(f"{told}, or open a photograph from a file")
        return {self.pictures.camera: gr.Image(visible=True)}

    def on_example(self, request: gr.Request, values: Values) -> Updates:
        return self._open(request, values, str(EXAMPLE))

    def on_open(self, request: gr.Request, values: Values) -> Updates:
        """Unfolds what opens a photograph, or folds it again."""
        unfold = not values[self.pictures.unfolded]
        earlier = unfold and bool(self.sessions.of(request).earlier)
        return {
            self.pictures.opening: gr.Column(visible=True if unfold else "hidden"),
            self.pictures.earlier: gr.Gallery(visible=earlier),
        }

    def on_reopen(self, request: gr.Request, event: gr.SelectData, values: Values) -> Updates:
        self.sessions.of(request).reopen(int(*numbers_of(event._data, "index")))
        return self._open(request, values, None)

    def _open(self, request: gr.Request, values: Values, path: str | None) -> Updates:
        session = self.sessions.of(request)
        if path is not None:
            self.sessions.make_room(request)
            session.open(path)
        return self._show_photograph(session, values, linked=True)

    def _show_photograph(self, session: Session, values: Values, linked: bool) -> Updates:
        sliders = self.expression.show(session, values[self.expression.mode], linked)
        edit = self.pictures.show_faces(session) | self._show_edit(session) | {self.ticket: session.ticket}
        return edit | sliders | self.settings.show_lent(session)

    def on_trouble(self, request: gr.Request) -> str:
        session = self.sessions.known(request)
        return said("" if session is None else session.trouble)

    def on_shown(self, request: gr.Request) -> Updates:
        """The browser shows another edit: what it need not wait for follows, the history and measurements."""
        session = self.sessions.known(request)
        if session is None:
            return gr.skip()
        return self.pictures.show_history(session) | self.measured.show(session)

    def on_choose(self, request: gr.Request, event: gr.EventData, values: Values) -> Updates:
        """A face is chosen: by its thumbnail, or by a place in the picture."""
        session = self.sessions.of(request)
        if event.target.elem_id == self.pictures.stage.elem_id:  # it may be Gradio's copy of it
            session.choose_at(*numbers_of(event._data, "x", "y"))
        else:
            session.choose(int(*numbers_of(event._data, "index")))
        return self._show_chosen(session, values)

    def on_view(self, request: gr.Request, values: Values) -> Updates:
        session = self.sessions.of(request)
        session.close_up = values[self.pictures.view]
        return self.pictures.show_pair(session, *session.shown())

    def on_mode(self, request: gr.Request, values: Values) -> Updates:
        session = self.sessions.of(request)
        if values[self.expression.linked]:
            session.join_sides()
        return self._show_sliders(session, values)

    def on_drag(self, request: gr.Request, values: Values) -> Updates:
        session = self.sessions.of(request)
        return self._preview(session, self._ask(session, values), values) or gr.skip()

    def on_move(self, request: gr.Request, values: Values) -> Updates:
        session = self.sessions.of(request)
        if not session.is_current(int(values[self.ticket])) or self._move(session, values):
            return gr.skip()
        preview = self._preview(session, self.settings.read(values), values)
        return self.expression.show_values(session, values) | preview or gr.skip()

    def on_release(self, request: gr.Request, values: Values) -> Updates:
        """A drag ends. Noted at once, it counts for the face that was dragged, whatever is chosen next."""
        session = self.sessions.of(request)
        self._move(session, values)
        session.outdate()  # else sliders and movements that wait would ask for what they showed before
        session.want(self.settings.read(values))
        return self._show_sliders(session, values) | {self.ticket: session.ticket}

    def _move(self, session: Session, values: Values) -> bool:
        """Requests what a drag asks for; returns whether it has ended, or counts no more."""
        moved = values[self.pictures.drags]
        moved = moved if isinstance(moved, dict) else {}
        x, y = numbers_of(moved, "x", "y")
        ends, kind = moved.get("ends") is True, moved.get("of")
        if kind == "handle":
            number, drag, face = map(int, numbers_of(moved, "number", "drag", "face"))
            if (face, moved.get("view")) != (session.chosen, session.shown()[0].stem):
                return True  # another face or view was chosen while this waited
            session.drag(number, x, y, drag, bool(values[self.expression.linked]), ends)
        elif kind in self.expression.pads:
            if int(values[self.pictures.face]) != session.chosen:
                return True
            angles = dict(zip(pad_axes(kind), (x, y), strict=True))
            session.ask(session.editor.action_units.deltas(session.request() | angles))
        else:
            raise MagicEditError(WRONG_VALUES)
        return ends

    def _preview(self, session: Session, settings: EditRequest | None, values: Values) -> Updates:
        """Updates the picture, also back to the edit of these requests; nothing where previews are off."""
        if not values[self.settings.live] or settings is None:
            return {}
        preview = session.preview(settings)
        before, after = session.shown()
        words = summary(session) if preview is None else "Preview, not measured."
        return self.pictures.show_pair(session, before, preview or after) | {self.status: said(words)}

    def on_ask(
        self,
        request: gr.Request,
        values: Values,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 (how Gradio hands one over)
    ) -> Updates:
        session = self.sessions.of(request)
        settings = self._ask(session, values)
        if settings is not None:
            session.want(settings, int(values[self.ticket]))
        return self._edit(session, progress)

    def on_edit(
        self,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> Updates:
        return self._edit(self.sessions.of(request), progress)

    def on_cancel(self, request: gr.Request) -> list:
        session = self.sessions.of(request)
        stopped = session.cancel()
        return [session.ticket, said("Stopped." if stopped else "Nothing is running.")]

    def on_lend(self, request: gr.Request, values: Values) -> Updates:
        session = self.sessions.of(request)
        session.lend_teeth(values[self.settings.reference])
        words = "These teeth appear from the next edit on, unless the photograph shows teeth."
        return {self.status: said(words)} | self.settings.show_lent(session)

    def on_return(self, request: gr.Request) -> Updates:
        session = self.sessions.of(request)
        session.return_teeth()
        words = "From the next edit on, no other photograph's teeth appear."
        return {self.status: said(words)} | self.settings.show_lent(session)

    def on_undo(self, request: gr.Request, values: Values) -> Updates:
        session = self.sessions.of(request)
        session.undo()
        return self._show_moved(session, values)

    def on_redo(self, request: gr.Request, values: Values) -> Updates:
        session = self.sessions.of(request)
        session.redo()
        return self._show_moved(session, values)

    def on_history(self, request: gr.Request, event: gr.SelectData, values: Values) -> Updates:
        session = self.sessions.of(request)
        session.show(event.index)
        return self._show_moved(session, values)

    def on_png(self, request: gr.Request) -> str:
        return str(self.sessions.of(request).save_result(".png"))

    def on_jpeg(self, request: gr.Request) -> str:
        return str(self.sessions.of(request).save_result(".jpg"))

    def on_save_steps(self, request: gr.Request, values: Values) -> str:
        session = self.sessions.of(request)
        self.expression.ask(session, values)
        return str(session.save_preset(relative=True))

    def on_save_levels(self, request: gr.Request, values: Values) -> str:
        session = self.sessions.of(request)
        self.expression.ask(session, values)
        return str(session.save_preset(relative=False))

    def on_ask_sweep(self, request: gr.Request, values: Values) -> None:
        sweep = self.sweep.read(values, self.settings.read(values))
        self.sessions.of(request).want(sweep)

    def on_sweep(
        self,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> Any:
        path = self.sessions.of(request).wanted_sweep(telling(progress))
        return gr.skip() if path is None else gr.Image(value=str(path), visible=True)

    def _on_take(self, tab: SeriesTab) -> Callable[[gr.Request], str]:
        def on_take(request: gr.Request) -> str:  # Gradio gives the request by its annotation
            return tab.taken(self.sessions.of(request))

        return on_take

    def _on_ask_series(self, tab: SeriesTab, kind: type[Series]) -> Callable[[gr.Request, Values], None]:
        def on_ask_series(request: gr.Request, values: Values) -> None:
            session = self.sessions.of(request)
            session.want(tab.read(kind, session, values, self.settings.read(values)))

        return on_ask_series

    def on_preview_video(
        self,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> Any:
        session = self.sessions.of(request)
        with session.work(Preview) as wanted:
            if wanted is None:
                return gr.skip()
            frames = preview_video(session, wanted, telling(progress))
        return gr.Gallery(value=[str(path) for path in frames], visible=True)

    def on_make_video(
        self,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> Any:
        session = self.sessions.of(request)

        def report(stage: str, done: int, total: int | None) -> None:
            progress((done, total), desc=stage, unit="frames")

        with session.work(Film) as wanted:
            if wanted is None:
                return gr.skip()
            return gr.Video(value=str(make_video(session, wanted, report)), visible=True)

    def on_photographs(
        self,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> Any:
        session = self.sessions.of(request)

        def report(done: int, total: int) -> None:
            progress((done, total), unit="photographs")

        with session.work(Photographs) as wanted:
            if wanted is None:
                return gr.skip()
            archive, pictures, failed = edit_photographs(session, wanted, report)
        told = f"{len(pictures)} of {len(wanted.files)} photographs were edited."
        return {
            self.photographs.shown: gr.Gallery(value=[str(path) for path in pictures], visible=True),
            self.photographs.result: gr.File(value=str(archive), visible=True),
            self.photographs.failed: gr.HTML(value=listed(failed), visible=bool(failed)),
            self.status: said(told),
        }

    def _ask(self, session: Session, values: Values) -> EditRequest | None:
        """Requests what the sliders showed when the event was sent; None if the event is outdated."""
        if not session.is_current(int(values[self.ticket])):
            return None
        self.expression.ask(session, values, int(values[self.pictures.face]))
        return self.settings.read(values)

    def _edit(self, session: Session, progress: gr.Progress) -> Updates:
        session.wanted_edit(telling(progress))
        return self._show_edit(session) or gr.skip()

    def _show_moved(self, session: Session, values: Values) -> Updates:
        """Updates the page after a move in the history; the new ticket comes with the sliders it is for."""
        edit = self._show_sliders(session, values) | self._show_edit(session)
        return edit | {self.ticket: session.ticket}

    def _show_chosen(self, session: Session, values: Values) -> Updates:
        sliders = self._show_sliders(session, values)
        pair = self.pictures.show_pair(session, *session.shown())
        return self.pictures.show_faces(session) | sliders | pair

    def _show_sliders(self, session: Session, values: Values) -> Updates:
        return self.expression.show(session, values[self.expression.mode], values[self.expression.linked])

    def _show_edit(self, session: Session) -> Updates:
        """Updates `edit_shown`."""
        if session.photo is None:
            return {}
        return self.pictures.show_edit(session) | {self.status: said(summary(session))}


def numbers_of(given: dict[str, Any], *names: str) -> list[float]:
    """Returns what a script of the page sent under these names. MagicEditError where it is no number."""
    values = [given.get(name) for name in names]
    if not all(is_finite(value) for value in values):
        raise MagicEditError(WRONG_VALUES)
    return [float(value) for value in values]


def telling(progress: gr.Progress) -> Callable[[int, int], None]:
    """Returns a callback that shows denoising steps in the progress bar; each model call restarts it."""
    return lambda step, total: progress((step, total), unit="steps")
