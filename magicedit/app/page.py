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
from magicedit.app.endpoints import add_endpoints
from magicedit.app.messages import said, spoken
from magicedit.app.pictures import Pictures, Updates, number_of, summary
from magicedit.app.session import Session
from magicedit.app.sessions import Sessions
from magicedit.app.tabs import CopyTab, ExpressionTab, SettingsTab, SweepTab, Values
from magicedit.request import EditRequest

KEPT_SECONDS = 600  # lifetime of uploads and of results that no open page shows
MODEL = "model"  # events of this name run one at a time
CSS = Path(__file__).with_name("page.css")

HEADER = f"""\
<header class='me-header'><h1>magicedit</h1>
<p>Change the expression of a face, muscle by muscle. <span>{__version__}</span></p></header>
<p class='me-consent' role='note'><strong>Ask first.</strong> Edit only people who agreed to it, and say
that a picture was edited wherever you show it. Photographs stay on the machine that runs this page, which
deletes them when the page is closed, and everything else after ten minutes.</p>"""
HINT = "Drop a photograph to begin."
NOT_UPLOADED = "the file was not uploaded by a user of this page, or was deleted since: upload it again"
WRONG_VALUES = "the values are not those that this address expects; see the page's API documentation"

# A download is made on request; then the browser fetches the file.
FOLLOW = """file => {
    const link = document.createElement('a');
    link.href = file.url;
    link.download = file.orig_name;
    link.click();
}"""

PRIVATE = {"api_visibility": "private"}
WITH_MODEL = PRIVATE | {"concurrency_id": MODEL, "concurrency_limit": 1}
QUICK = PRIVATE | {"show_progress": "hidden", "concurrency_limit": None}
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
            gr.HTML(HEADER)
            self.status = gr.HTML(said(HINT), elem_id="status")
            self.ticket = gr.Number(0, visible=False, precision=0)
            # Errors are drawn here, where they cover nothing
            self.progress = gr.HTML("", elem_id="progress", elem_classes="" if live else "me-full")
            with gr.Row(elem_id="workplace"):
                with gr.Column(scale=6, min_width=320, elem_id="pictures"):
                    self.pictures = Pictures()
                with gr.Column(scale=5, min_width=320, elem_id="controls"):
                    self.expression = ExpressionTab(units, live)
                    self.copy = CopyTab()
                    self.sweep = SweepTab(units)
                    self.settings = SettingsTab(settings)
            self.edit_shown = [*self.pictures.of_edit, self.status, self.ticket]
            self.with_progress = {
                "show_progress": "minimal" if live else "full",  # a bar over the picture would flash
                "show_progress_on": self.progress,
            }
            self._wire_photograph()
            self._wire_sliders()
            self._wire_requests()
            self._wire_results()
            add_endpoints(sessions.editor, sessions.folder, MODEL)
            self.blocks.unload(sessions.end)

    def _wire_photograph(self) -> None:
        pictures, tab = self.pictures, self.expression
        opening = pictures.upload.upload(
            self._spoken(self.on_upload),
            {pictures.upload, tab.mode},
            [*pictures.of_faces, *tab.shown, *self.edit_shown],
            show_progress_on=pictures.upload,  # an error would cover the picture that stays
            **WITH_MODEL,
        )
        self._empties(opening, pictures.upload)
        chosen = [*pictures.of_faces, *tab.shown, pictures.compare]
        pictures.faces.input(self._spoken(self.on_choose), {pictures.faces, *tab.way}, chosen, **QUICK)
        pictures.outlines.select(self._spoken(self.on_click), tab.way, chosen, **QUICK)
        pictures.view.input(self._spoken(self.on_view), {pictures.view}, [pictures.compare], **QUICK)

    def _wire_sliders(self) -> None:
        tab, sliders = self.expression, self.expression.sliders.values()
        asked = {self.ticket, self.pictures.faces, *tab.way, *sliders, *self.settings.inputs}
        gr.on(
            [slider.input for slider in sliders],
            self._spoken(self.on_drag),
            asked | {tab.live},
            [self.pictures.compare, self.status],
            trigger_mode="always_last",
            show_progress="hidden",
            **WITH_MODEL,
            **RAW,
        )
        asking = gr.on(
            [*(slider.release for slider in sliders), tab.edit.click],
            self._spoken(self.on_ask),
            asked,
            self.edit_shown,
            trigger_mode="always_last",
            **self.with_progress,
            **WITH_MODEL,
            **RAW,
        )
        self._tells_trouble(asking)
        tab.cancel.click(self.on_cancel, None, [self.ticket, self.status], queue=False, **PRIVATE)
        for event in (tab.mode.input, tab.linked.input):
            event(self._spoken(self.on_mode), tab.way, tab.shown, **QUICK)

    def _wire_requests(self) -> None:
        tab, copy, sent = self.expression, self.copy, {*self.expression.way, *self.settings.inputs}

        def moves(
            event: Callable[..., Any], ask: Callable[[Session, Values], str], *inputs: Any, **options: Any
        ) -> gr.events.Dependency:
            """The event changes the chosen face's request; the sliders are updated and an edit follows."""

            def on_request(request: gr.Request, values: Values) -> Updates:
                session = self.sessions.of(request)
                told = ask(session, values)
                session.want(self.settings.read(values))
                return self._show_sliders(session, values) | {self.status: said(told)}

            shown = [*tab.shown, self.status]
            asking = event(self._spoken(on_request), sent | {*inputs}, shown, **(options or QUICK))
            editing = asking.success(
                self._spoken(self.on_edit), None, self.edit_shown, **self.with_progress, **WITH_MODEL
            )
            self._tells_trouble(editing)
            return asking

        moves(tab.feel.click, tab.ask_emotion, tab.emotion, tab.strength)
        moves(tab.neutral.click, tab.ask_neutral)
        moves(tab.reset.click, tab.ask_nothing)
        self._empties(moves(copy.preset.upload, copy.ask_preset, copy.preset, copy.share), copy.preset)
        copying = moves(  # looks for a face, as edits do
            copy.photograph.upload, copy.ask_copy, copy.photograph, copy.share, **WITH_MODEL
        )
        self._empties(copying, copy.photograph)
        reference = self.settings.reference
        lending = reference.upload(self._spoken(self.on_lend), {reference}, self.status, **WITH_MODEL)
        self._empties(lending, reference)

    def _wire_results(self) -> None:
        pictures, tab, copy = self.pictures, self.expression, self.copy
        for event, handler in (
            (pictures.undo.click, self.on_undo),
            (pictures.redo.click, self.on_redo),
            (pictures.history.select, self.on_history),
        ):
            event(self._spoken(handler), tab.way, [*tab.shown, *self.edit_shown], **QUICK)
        pictures.download.click(
            self._spoken(self.on_download), None, pictures.result_file, **WITH_MODEL
        ).success(None, pictures.result_file, js=FOLLOW, **PRIVATE)
        for button, handler in (
            (copy.save_steps, self.on_save_steps),
            (copy.save_levels, self.on_save_levels),
        ):
            inputs = {*tab.way, *tab.sliders.values()}
            button.click(self._spoken(handler), inputs, copy.preset_file, **QUICK, **RAW).success(
                None, copy.preset_file, js=FOLLOW, **PRIVATE
            )
        self.sweep.draw.click(
            self._spoken(self.on_ask_sweep), self.sweep.inputs | self.settings.inputs, None, **QUICK
        ).success(self._spoken(self.on_sweep), None, self.sweep.drawn, **WITH_MODEL)

    def _empties(self, event: gr.events.Dependency, place: gr.File) -> None:
        """Empties the place after the event, so that another file can be dropped; errors stay readable."""
        event.success(lambda: None, None, place, **QUICK)
        event.failure(lambda: None, None, place, **QUICK)
        self._tells_trouble(event)

    def _tells_trouble(self, event: gr.events.Dependency) -> None:
        event.failure(self.on_trouble, None, self.status, **QUICK)

    def _spoken(self, handler: Callable[..., Any]) -> Callable[..., Any]:
        """Returns the handler with user errors turned into messages that `on_trouble` can repeat."""

        def note(request: gr.Request, text: str) -> None:
            if (session := self.sessions.known(request)) is not None:  # else the page was closed
                session.trouble = text

        return spoken(handler, note)

    # --- event handlers; Gradio's request identifies the page's session ---

    def on_upload(self, request: gr.Request, values: Values) -> Updates:
        session = self.sessions.of(request)
        if (path := values[self.pictures.upload]) is not None:
            self.sessions.make_room(request)
            session.open(path)
        sliders = self.expression.show(session, values[self.expression.mode], True)
        return self.pictures.show_faces(session) | sliders | self._show_edit(session)

    def on_trouble(self, request: gr.Request) -> str:
        session = self.sessions.known(request)
        return said("" if session is None else session.trouble)

    def on_choose(self, request: gr.Request, values: Values) -> Updates:
        session = self.sessions.of(request)
        session.choose(number_of(values[self.pictures.faces]))
        return self._show_chosen(session, values)

    def on_click(self, request: gr.Request, event: gr.SelectData, values: Values) -> Updates:
        session = self.sessions.of(request)
        session.choose_at(*event.index)
        return self._show_chosen(session, values)

    def on_view(self, request: gr.Request, values: Values) -> Updates:
        session = self.sessions.of(request)
        session.close_up = values[self.pictures.view]
        return self.pictures.show_pair(*session.shown())

    def on_mode(self, request: gr.Request, values: Values) -> Updates:
        session = self.sessions.of(request)
        if values[self.expression.linked]:
            session.join_sides()
        return self._show_sliders(session, values)

    def on_drag(self, request: gr.Request, values: Values) -> Updates:
        session = self.sessions.of(request)
        settings = self._ask(session, values)
        live = values[self.expression.live] and settings is not None
        if not live or (preview := session.preview(settings)) is None:
            return gr.skip()
        before, _ = session.shown()
        return self.pictures.show_pair(before, preview) | {self.status: said("Preview, not measured.")}

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

    def on_lend(self, request: gr.Request, values: Values) -> str:
        self.sessions.of(request).lend_teeth(values[self.settings.reference])
        return said("These teeth show from the next edit on, wherever the photograph shows none.")

    def on_undo(self, request: gr.Request, values: Values) -> Updates:
        session = self.sessions.of(request)
        session.go(-1)
        return self._show_sliders(session, values) | self._show_edit(session)

    def on_redo(self, request: gr.Request, values: Values) -> Updates:
        session = self.sessions.of(request)
        session.go(1)
        return self._show_sliders(session, values) | self._show_edit(session)

    def on_history(self, request: gr.Request, event: gr.SelectData, values: Values) -> Updates:
        session = self.sessions.of(request)
        session.show(event.index)
        return self._show_sliders(session, values) | self._show_edit(session)

    def on_download(self, request: gr.Request) -> str:
        return str(self.sessions.of(request).save_result())

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
        return gr.skip() if path is None else str(path)

    def _ask(self, session: Session, values: Values) -> EditRequest | None:
        """Requests what the sliders showed when the event was sent; None if the event is outdated."""
        if not session.is_current(int(values[self.ticket])):
            return None
        self.expression.ask(session, values, number_of(values[self.pictures.faces]))
        return self.settings.read(values)

    def _edit(self, session: Session, progress: gr.Progress) -> Updates:
        session.wanted_edit(telling(progress))
        return self._show_edit(session)

    def _show_chosen(self, session: Session, values: Values) -> Updates:
        sliders, pair = self._show_sliders(session, values), self.pictures.show_pair(*session.shown())
        return self.pictures.show_faces(session) | sliders | pair

    def _show_sliders(self, session: Session, values: Values) -> Updates:
        return self.expression.show(session, values[self.expression.mode], values[self.expression.linked])

    def _show_edit(self, session: Session) -> Updates:
        """Updates `edit_shown`."""
        if session.photo is None:
            return {self.ticket: session.ticket}
        words = {self.status: said(summary(session)), self.ticket: session.ticket}
        return self.pictures.show_edit(session) | words


def telling(progress: gr.Progress) -> Callable[[int, int], None]:
    """Returns a callback that shows denoising steps in the progress bar; each model call restarts it."""
    return lambda step, total: progress((step, total), unit="steps")
