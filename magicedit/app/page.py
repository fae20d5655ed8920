"""The page: where everything stands, and which of it calls what of a `Session`."""

import html
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from magicedit import __version__
from magicedit.action_units import ACTION_UNITS, EMOTIONS, STRENGTH_RANGE, sided_names
from magicedit.app.endpoints import add_endpoints
from magicedit.app.messages import spoken
from magicedit.app.session import EditSettings, Session, Sweep
from magicedit.app.sliders import (
    STEP,
    Mode,
    Request,
    has_sides,
    slider_names,
    slider_range,
    slider_values,
)
from magicedit.app.views import SMALLEST_TOLD, bars, face_labels, titled
from magicedit.editor import NO_TEETH, QUALITIES, ExpressionEditor
from magicedit.errors import MagicEditError
from magicedit.vocabulary import whole_name
from magicedit.warping import embedded_mouths

MOST_SESSIONS = 16  # pages that are remembered at once: each keeps a photograph in memory
REGIONS = (  # headings, and the regions of `ActionUnit` below each
    ("Brows", ("brow",)),
    ("Eyes, cheeks and nose", ("eye", "cheek", "nose")),
    ("Lips and jaw", ("lip", "jaw")),
)
OTHER_UNITS = "Others"  # heading of units that only this model has
PHOTOGRAPHS = [".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp"]
KEPT_SECONDS = 600  # of uploads, and of results in files; whoever waited longer in the queue uploads again
MODEL = "model"  # events of this name wait for each other: the model serves one at a time
CSS = Path(__file__).with_name("page.css")
OWN_SETTINGS = "model's own"
AS_IT_SUITS = "as they suit"

HEADER = f"""\
<header class='me-header'><h1>magicedit</h1>
<p>Change the expression of a face, muscle by muscle. <span>{__version__}</span></p></header>
<p class='me-consent' role='note'><strong>Ask first.</strong> Edit only people who agreed to it, and say
that a picture was edited wherever you show it. Photographs stay on the machine that runs this page, which
deletes uploads and results after ten minutes.</p>"""
HINT = "Drop a photograph to begin."

# A download is made when it is asked for; then the browser is sent to the file.
FOLLOW = """file => {
    const link = document.createElement('a');
    link.href = file.url;
    link.download = file.orig_name;
    link.click();
}"""


class Sessions:
    """The open pages by Gradio's name for them."""

    def __init__(self, editor: ExpressionEditor, folder: Path):
        self.editor, self.folder = editor, folder
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, request: gr.Request) -> Session:
        """The page's session, made at its first event; of too many, the one unused for longest ends."""
        with self._lock:
            name = request.session_hash
            if name not in self._sessions:
                self._sessions[name] = Session(self.editor, self.folder)
            self._sessions.move_to_end(name)
            oldest = self._sessions.popitem(last=False)[1] if len(self._sessions) > MOST_SESSIONS else None
            session = self._sessions[name]
        if oldest is not None:
            oldest.close()
        return session

    def known(self, request: gr.Request) -> Session | None:
        """The page's session; None where it had no event yet, or was closed."""
        with self._lock:
            return self._sessions.get(request.session_hash)

    def end(self, request: gr.Request) -> None:
        """Forgets a page that was closed."""
        with self._lock:
            session = self._sessions.pop(request.session_hash, None)
        if session is not None:
            session.close()

    def close(self) -> None:
        """Forgets all pages."""
        with self._lock:
            sessions, self._sessions = list(self._sessions.values()), OrderedDict()
        for session in sessions:
            session.close()


class Page:
    """Lays out the page and wires it; `blocks` is Gradio's.

    Args:
        sessions: of the pages that will be open.
        live: whether the model is fast enough to edit while a slider is dragged.
        settings: what the page starts with.
    """

    def __init__(self, sessions: Sessions, *, live: bool, settings: EditSettings):
        self.sessions = sessions
        self.units = sessions.editor.action_units
        self.names = slider_names(self.units)
        self.shown_progress = "minimal" if live else "full"  # a bar over the picture, which would flash
        self.sliders: dict[str, gr.Slider] = {}
        with gr.Blocks(
            title="magicedit", analytics_enabled=False, delete_cache=(KEPT_SECONDS // 10, KEPT_SECONDS)
        ) as self.blocks:
            gr.HTML(HEADER)
            self.status = gr.HTML(said(HINT), elem_id="status")
            self.ticket = gr.Number(0, visible=False, precision=0)
            self.progress = gr.HTML(  # where an error would cover nothing
                "", elem_id="progress", elem_classes="" if live else "me-full"
            )
            with gr.Row(elem_id="workplace"):
                with gr.Column(scale=6, min_width=320, elem_id="pictures"):
                    self._lay_out_pictures()
                with gr.Column(scale=5, min_width=320, elem_id="controls"):
                    self._lay_out_controls(live, settings)
            self._wire()
            add_endpoints(sessions.editor, sessions.folder, MODEL)
            self.blocks.unload(sessions.end)

    # --- layout ---

    def _lay_out_pictures(self) -> None:
        self.upload = gr.File(
            label="Photograph",
            file_types=PHOTOGRAPHS,
            file_count="single",
            type="filepath",
            height=130,
            elem_id="upload",
        )
        self.view = gr.Radio(
            [("the whole photograph", False), ("the face", True)],
            value=False,
            label="Show",
            visible=False,
            elem_id="view",
        )
        self.compare = gr.ImageSlider(
            label="Before and after",
            type="filepath",
            interactive=False,
            visible=False,
            buttons=["fullscreen"],
            max_height=520,
            elem_id="compare",
        )
        with gr.Row(elem_classes="me-buttons"):
            self.undo = gr.Button("Undo", size="sm", interactive=False, elem_id="undo")
            self.redo = gr.Button("Redo", size="sm", interactive=False, elem_id="redo")
            self.download = gr.Button("Download PNG", size="sm", interactive=False, elem_id="download")
        self.result_file = gr.DownloadButton(visible="hidden", elem_id="result-file")
        self.bars = gr.HTML(elem_id="bars")
        self.faces = gr.Radio(label="Face", visible=False, interactive=True, elem_id="faces")
        self.outlines = gr.Image(
            label="Faces found: choose one by a click, or above",
            type="filepath",
            interactive=False,
            visible=False,
            buttons=[],
            height=260,
            elem_id="outlines",
        )
        self.history = gr.Gallery(
            label="History",
            visible=False,
            columns=6,
            fit_columns=False,
            height=130,
            object_fit="contain",
            allow_preview=False,
            format="jpeg",
            interactive=False,
            buttons=[],
            elem_id="history",
        )

    def _lay_out_controls(self, live: bool, settings: EditSettings) -> None:
        with gr.Tab("Expression", elem_id="tab-expression"):
            with gr.Row():
                self.mode = gr.Radio(
                    [("add to what is there", "add"), ("set a level", "set")],
                    value="add",
                    label="Sliders",
                    elem_id="mode",
                )
                self.linked = gr.Checkbox(True, label="left and right together", elem_id="linked")
            with gr.Row(equal_height=True):
                self.emotion = gr.Dropdown(
                    list(EMOTIONS), value="happiness", label="Emotion", min_width=120, elem_id="emotion"
                )
                self.strength = gr.Slider(
                    *STRENGTH_RANGE, value=0.8, step=0.05, label="its strength", min_width=120
                )
                self.feel = gr.Button("Use", min_width=60, scale=0, elem_id="use-emotion")
            with gr.Row(elem_classes="me-buttons"):
                self.edit = gr.Button("Edit", variant="primary", elem_id="edit")
                self.cancel = gr.Button("Cancel", variant="stop", elem_id="cancel")
                self.neutral = gr.Button("Neutralise", elem_id="neutral")
                self.reset = gr.Button("All to zero", elem_id="reset")
            for heading, units in by_region(self.units).items():
                with gr.Accordion(heading, open=True):
                    for unit in units:
                        self._lay_out_unit(unit)
            self.live = gr.Checkbox(
                live,
                label="preview while dragging",
                info="quickest quality, not measured" if live else "slow with this model",
                elem_id="live",
            )
        with gr.Tab("Copy and presets", elem_id="tab-copy"):
            self.share = gr.Slider(0, 1.5, value=1.0, step=0.05, label="how much of it", elem_id="share")
            self.copy_from = gr.File(
                label="Copy the expression of another photograph (its largest face)",
                file_types=PHOTOGRAPHS,
                type="filepath",
                height=130,
                elem_id="copy-from",
            )
            self.preset = gr.File(
                label="Load a preset (.yaml, as saved here or by `magicedit measure --save`)",
                file_types=[".yaml", ".yml"],
                type="filepath",
                height=130,
                elem_id="preset",
            )
            with gr.Row(elem_classes="me-buttons"):
                self.save_steps = gr.Button("Save as steps to add", elem_id="save-variations")
                self.save_levels = gr.Button("Save as levels to reach", elem_id="save-intensities")
            self.preset_file = gr.DownloadButton(visible="hidden", elem_id="preset-file")
        with gr.Tab("Sweep", elem_id="tab-sweep"):
            self.sweep_unit = gr.Dropdown(
                [(titled(name), name) for name in self.units],
                value="AU12" if "AU12" in self.units else self.units[0],
                label="Action unit",
            )
            with gr.Row():
                self.sweep_from = gr.Slider(*slider_range("add"), value=-3, step=0.5, label="from")
                self.sweep_to = gr.Slider(*slider_range("add"), value=5, step=0.5, label="to")
                self.sweep_count = gr.Slider(2, 24, value=7, step=1, label="pictures")
            self.sweep_kind = gr.Radio(["strip", "animation"], value="strip", label="As")
            self.sweep = gr.Button("Draw", variant="primary", elem_id="draw-sweep")
            self.sweep_shown = gr.Image(
                label="Sweep",
                type="filepath",
                interactive=False,
                buttons=["download", "fullscreen"],
                elem_id="sweep",
            )
        with gr.Tab("Settings", elem_id="tab-settings"):
            self.quality = gr.Radio(
                [OWN_SETTINGS, *reversed(QUALITIES)],
                value=settings.quality or OWN_SETTINGS,
                label="Quality",
                info="live is the quickest, exact the slowest",
            )
            self.steps = gr.Slider(
                0,
                50,
                value=settings.steps or 0,
                step=1,
                label="Denoising steps",
                info="0: the quality's own",
                elem_id="steps",
            )
            self.guidance = gr.Slider(
                0,
                10,
                value=settings.guidance or 0,
                step=0.1,
                label="Guidance scale",
                info="strengthens the whole effect; 0: the model's own",
            )
            self.seed = gr.Number(settings.seed, label="Seed", precision=0, minimum=0, elem_id="seed")
            self.teeth = gr.Dropdown(
                [AS_IT_SUITS, NO_TEETH, *map(str, range(len(embedded_mouths())))],
                value=AS_IT_SUITS if settings.teeth is None else str(settings.teeth),
                label="Teeth of an opened mouth",
                info="where the photograph shows none: as they suit the mouth, none, or a donor's",
                elem_id="teeth",
            )
            self.reference = gr.File(
                label="Another photograph of the person, whose teeth show instead",
                file_types=PHOTOGRAPHS,
                type="filepath",
                height=130,
                elem_id="reference",
            )
            self.loop = gr.Checkbox(
                settings.tolerance is not None,
                label="measure and correct until the target is reached (up to four edits)",
            )
            self.tolerance = gr.Slider(
                0.1, 1.0, value=settings.tolerance or 0.3, step=0.1, label="within so many steps"
            )

    def _lay_out_unit(self, unit: str) -> None:
        low, high = slider_range("add")
        sided = sided_names(unit)
        for name in sided or (unit,):
            whole = not sided or name == sided[0]
            label = unit if whole else name
            self.sliders[name] = gr.Slider(
                low,
                high,
                value=0,
                step=STEP,
                label=titled(label),
                visible=whole,
                elem_id=f"slider-{name}",
                elem_classes="me-unit",
            )

    # --- wiring ---

    def _wire(self) -> None:
        ordered = [self.sliders[name] for name in self.names]
        positions = [self.mode, self.linked, *ordered]
        sampling = [self.quality, self.steps, self.guidance, self.seed, self.loop, self.tolerance, self.teeth]
        pictures = [self.compare, self.bars, self.history, self.undo, self.redo, self.download, self.status]
        pictures.append(self.ticket)
        sliders = [self.linked, *ordered]
        around = [self.faces, self.outlines, self.view]
        with_model = {"concurrency_id": MODEL, "concurrency_limit": 1, "api_visibility": "private"}
        quick = {"api_visibility": "private", "show_progress": "hidden", "concurrency_limit": None}
        # As the browser sends them: a number field is empty while somebody types, which Gradio would refuse
        raw = {"preprocess": False}
        asked = [self.ticket, self.faces, *positions, *sampling]

        def empties(event: gr.events.Dependency, place: gr.File) -> None:
            """Whether it went well or not, another file can be dropped there; why not stays to be read."""
            event.success(lambda: None, None, place, **quick)
            event.failure(lambda: None, None, place, **quick)
            event.failure(self.on_trouble, None, self.status, **quick)

        opening = self.upload.upload(
            self._spoken(self.on_upload),
            [self.upload, self.mode],
            [*around, *sliders, *pictures],
            show_progress_on=self.upload,  # an error would cover the picture that stays
            **with_model,
        )
        empties(opening, self.upload)
        choosing = [*around, *sliders, self.compare]
        self.faces.input(
            self._spoken(self.on_choose), [self.faces, self.mode, self.linked], choosing, **quick
        )
        self.outlines.select(self._spoken(self.on_click), [self.mode, self.linked], choosing, **quick)
        self.view.input(self._spoken(self.on_view), self.view, self.compare, **quick)

        # What waits for the model acts on the face and photograph it was asked of: see `Session`
        gr.on(
            [slider.input for slider in ordered],
            self._spoken(self.on_drag),
            [self.live, *asked],
            [self.compare, self.status],
            trigger_mode="always_last",
            show_progress="hidden",
            **with_model,
            **raw,
        )
        gr.on(
            [*(slider.release for slider in ordered), self.edit.click],
            self._spoken(self.on_ask),
            asked,
            pictures,
            trigger_mode="always_last",
            show_progress=self.shown_progress,
            show_progress_on=self.progress,
            **with_model,
            **raw,
        ).failure(self.on_trouble, None, self.status, **quick)
        self.cancel.click(
            self.on_cancel, None, [self.ticket, self.status], queue=False, api_visibility="private"
        )
        for event in (self.mode.input, self.linked.input):
            event(self._spoken(self.on_mode), [self.mode, self.linked], sliders, **quick)

        def moves(
            event: Callable[..., Any], handler: Callable[..., Any], inputs: list, **options: Any
        ) -> gr.events.Dependency:
            """What moves the sliders by itself, and then edits."""
            asking = event(
                self._spoken(handler),
                [self.mode, self.linked, *sampling, *inputs],
                [*sliders, self.status],
                **(options or quick),
            )
            asking.success(
                self._spoken(self.on_edit),
                None,
                pictures,
                show_progress=self.shown_progress,
                show_progress_on=self.progress,
                **with_model,
            ).failure(self.on_trouble, None, self.status, **quick)
            return asking

        moves(self.feel.click, self.on_emotion, [self.emotion, self.strength])
        moves(self.neutral.click, self.on_neutral, [])
        moves(self.reset.click, self.on_reset, [])
        empties(moves(self.preset.upload, self.on_preset, [self.preset, self.share]), self.preset)
        copying = moves(  # looks for a face, as edits do
            self.copy_from.upload, self.on_copy, [self.copy_from, self.share], **with_model
        )
        empties(copying, self.copy_from)
        lending = self.reference.upload(self._spoken(self.on_lend), self.reference, self.status, **with_model)
        empties(lending, self.reference)

        back = [*sliders, *pictures]
        self.undo.click(self._spoken(self.on_undo), [self.mode, self.linked], back, **quick)
        self.redo.click(self._spoken(self.on_redo), [self.mode, self.linked], back, **quick)
        self.history.select(self._spoken(self.on_history), [self.mode, self.linked], back, **quick)

        self.download.click(self._spoken(self.on_download), None, self.result_file, **with_model).success(
            None, self.result_file, js=FOLLOW, api_visibility="private"
        )
        for button, handler in (
            (self.save_steps, self.on_save_steps),
            (self.save_levels, self.on_save_levels),
        ):
            button.click(self._spoken(handler), positions, self.preset_file, **quick, **raw).success(
                None, self.preset_file, js=FOLLOW, api_visibility="private"
            )
        self.sweep.click(
            self._spoken(self.on_ask_sweep),
            [self.sweep_unit, self.sweep_from, self.sweep_to, self.sweep_count, self.sweep_kind, *sampling],
            None,
            **quick,
        ).success(self._spoken(self.on_sweep), None, self.sweep_shown, **with_model)

    # --- what events do; the page's session comes with Gradio's request ---

    def on_upload(self, request: gr.Request, path: str | None, mode: Mode) -> list:
        session = self.sessions.of(request)
        if path is not None:
            session.open(path)
        return [*self._around(session), *self._sliders(session, mode, True), *self._pictures(session)]

    def on_trouble(self, request: gr.Request) -> str:
        session = self.sessions.known(request)
        return said("" if session is None else session.trouble)

    def on_choose(self, request: gr.Request, label: str, mode: Mode, linked: bool) -> list:
        session = self.sessions.of(request)
        session.choose(number_of(label))
        return self._chosen(session, mode, linked)

    def on_click(self, request: gr.Request, event: gr.SelectData, mode: Mode, linked: bool) -> list:
        session = self.sessions.of(request)
        session.choose_at(*event.index)
        return self._chosen(session, mode, linked)

    def on_view(self, request: gr.Request, close_up: bool) -> gr.ImageSlider:
        session = self.sessions.of(request)
        session.close_up = close_up
        return comparison(*session.shown())

    def on_mode(self, request: gr.Request, mode: Mode, linked: bool) -> list:
        session = self.sessions.of(request)
        if linked:
            session.join_sides()
        return self._sliders(session, mode, linked)

    def on_drag(self, request: gr.Request, live: bool, ticket: int, face: str, *values: Any) -> list:
        session = self.sessions.of(request)
        settings = self._ask(session, ticket, face, values)
        preview = session.preview(settings) if live and settings is not None else None
        if preview is None:
            return [gr.skip(), gr.skip()]
        before, _ = session.shown()
        return [comparison(before, preview), said("Preview, not measured.")]

    def on_ask(
        self,
        request: gr.Request,
        ticket: int,
        face: str,
        *values: Any,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 (how Gradio hands one over)
    ) -> list:
        session = self.sessions.of(request)
        settings = self._ask(session, ticket, face, values)
        if settings is not None:
            session.want(settings, int(ticket))
        session.wanted_edit(self._telling(progress))
        return self._pictures(session)

    def on_edit(
        self,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> list:
        session = self.sessions.of(request)
        session.wanted_edit(self._telling(progress))
        return self._pictures(session)

    def on_cancel(self, request: gr.Request) -> list:
        session = self.sessions.of(request)
        stopped = session.cancel()
        return [session.ticket, said("Stopped." if stopped else "Nothing is running.")]

    def on_emotion(self, request: gr.Request, mode: Mode, linked: bool, *values: Any) -> list:
        *sampling, name, strength = values
        session = self.sessions.of(request)
        session.ask_emotion(name, strength)
        return self._moved(session, mode, linked, sampling, f"{name.capitalize()}, {strength:g}.")

    def on_neutral(self, request: gr.Request, mode: Mode, linked: bool, *sampling: Any) -> list:
        session = self.sessions.of(request)
        session.ask_neutral()
        return self._moved(session, mode, linked, sampling, "What was measured is taken back.")

    def on_reset(self, request: gr.Request, mode: Mode, linked: bool, *sampling: Any) -> list:
        session = self.sessions.of(request)
        session.ask({})
        return self._moved(session, mode, linked, sampling, "Nothing is asked of this face.")

    def on_copy(self, request: gr.Request, mode: Mode, linked: bool, *values: Any) -> list:
        *sampling, path, strength = values
        session = self.sessions.of(request)
        expression = session.ask_copy(path, strength)
        told = f"Copied from {expression.source}: {expression.limited_to(self.units)}"
        return self._moved(session, mode, linked, sampling, told)

    def on_lend(self, request: gr.Request, path: str) -> str:
        self.sessions.of(request).lend_teeth(path)
        return said("These teeth show from the next edit on, wherever the photograph shows none.")

    def on_preset(self, request: gr.Request, mode: Mode, linked: bool, *values: Any) -> list:
        *sampling, path, strength = values
        session = self.sessions.of(request)
        expression = session.ask_preset(path, strength)
        return self._moved(session, mode, linked, sampling, f"Loaded: {expression}")

    def on_undo(self, request: gr.Request, mode: Mode, linked: bool) -> list:
        session = self.sessions.of(request)
        session.go(-1)
        return [*self._sliders(session, mode, linked), *self._pictures(session)]

    def on_redo(self, request: gr.Request, mode: Mode, linked: bool) -> list:
        session = self.sessions.of(request)
        session.go(1)
        return [*self._sliders(session, mode, linked), *self._pictures(session)]

    def on_history(self, request: gr.Request, event: gr.SelectData, mode: Mode, linked: bool) -> list:
        session = self.sessions.of(request)
        session.show(event.index)
        return [*self._sliders(session, mode, linked), *self._pictures(session)]

    def on_download(self, request: gr.Request) -> str:
        return str(self.sessions.of(request).save_result())

    def on_save_steps(self, request: gr.Request, mode: Mode, linked: bool, *values: float | None) -> str:
        session = self.sessions.of(request)
        session.ask_sliders(values, mode, linked)
        return str(session.save_preset(relative=True))

    def on_save_levels(self, request: gr.Request, mode: Mode, linked: bool, *values: float | None) -> str:
        session = self.sessions.of(request)
        session.ask_sliders(values, mode, linked)
        return str(session.save_preset(relative=False))

    def on_ask_sweep(
        self,
        request: gr.Request,
        unit: str,
        start: float,
        stop: float,
        count: float,
        kind: str,
        *sampling: Any,
    ) -> None:
        settings = chosen_settings(*sampling)
        sweep = Sweep(unit, start, stop, int(count), kind == "animation", settings)
        self.sessions.of(request).want(sweep)

    def on_sweep(
        self,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> Any:
        path = self.sessions.of(request).wanted_sweep(self._telling(progress))
        return gr.skip() if path is None else str(path)

    # --- what several of them show ---

    def _spoken(self, handler: Callable[..., Any]) -> Callable[..., Any]:
        """The handler, whose errors of the user become messages that `on_trouble` can show again."""

        def note(request: gr.Request, text: str) -> None:
            if (session := self.sessions.known(request)) is not None:  # else the page was closed
                session.trouble = text

        return spoken(handler, note)

    def _ask(self, session: Session, ticket: int, face: str, values: Sequence[Any]) -> EditSettings | None:
        """Asks what the sliders said when the event was sent; None where that does not count any more."""
        mode, linked, *rest = values
        positions, sampling = rest[: len(self.names)], rest[len(self.names) :]
        if not session.is_current(int(ticket)):
            return None
        session.ask_sliders(positions, mode, linked, number_of(face))
        return chosen_settings(*sampling)

    def _telling(self, progress: gr.Progress) -> Callable[[int, int], None]:
        """What shows denoising steps in the progress bar; it starts anew with each call of the model."""
        return lambda step, total: progress((step, total), unit="steps")

    def _moved(self, session: Session, mode: Mode, linked: bool, sampling: Sequence[Any], told: str) -> list:
        """After the request changed by itself: an edit is wanted, and the sliders follow."""
        session.want(chosen_settings(*sampling))
        return [*self._sliders(session, mode, linked), said(told)]

    def _chosen(self, session: Session, mode: Mode, linked: bool) -> list:
        """After another face was chosen."""
        return [*self._around(session), *self._sliders(session, mode, linked), comparison(*session.shown())]

    def _sliders(self, session: Session, mode: Mode, linked: bool) -> list:
        """The checkbox and all sliders, as the session's request has them."""
        request, (low, high) = session.request(), slider_range(mode)
        linked = linked and not has_sides(request)
        values = slider_values(request, session.measured(), self.names, mode, linked)
        updates = []
        for name, value in zip(self.names, values, strict=True):
            unit = whole_name(name)
            label = unit if linked else name
            shown = not linked or name == unit or name == sided_names(unit)[0]
            updates.append(
                gr.Slider(minimum=low, maximum=high, value=value, label=titled(label), visible=shown)
            )
        return [linked, *updates]

    def _around(self, session: Session) -> list:
        """The list of faces, the photograph with their outlines, and what of it is shown."""
        if session.photo is None:
            return [gr.skip()] * 3
        labels = face_labels(session.faces, session.photo.size[0])
        return [
            gr.Radio(choices=labels, value=labels[session.chosen], visible=True),
            gr.Image(value=str(session.outlined()), visible=True),
            gr.Radio(value=session.close_up, visible=True),
        ]

    def _pictures(self, session: Session) -> list:
        """Everything that shows the edit on show: see `pictures` in `_wire`."""
        if session.photo is None:
            return [gr.skip()] * 8
        past = session.past()
        thumbnails = [(str(edit.thumbnail), caption(edit.requests)) for edit in session.history]
        return [
            comparison(*session.shown()),
            "" if past is None else bars(past.faces),
            gr.Gallery(value=thumbnails, visible=bool(thumbnails), selected_index=max(session.position, 0)),
            gr.Button(interactive=session.position >= 0),
            gr.Button(interactive=session.position < len(session.history) - 1),
            gr.Button(interactive=past is not None),
            said(summary(session)),
            session.ticket,
        ]


def by_region(units: Sequence[str]) -> dict[str, list[str]]:
    """A model's units by heading: those of `ACTION_UNITS` by their region, all others below OTHER_UNITS.

    Headings without a unit are left out.
    """
    region_of = {unit.name: unit.region for unit in ACTION_UNITS}
    groups = {
        heading: [name for name, region in region_of.items() if region in regions and name in units]
        for heading, regions in REGIONS
    }
    groups[OTHER_UNITS] = [name for name in units if name not in region_of]
    return {heading: names for heading, names in groups.items() if names}


def number_of(label: str) -> int:
    """The index of the face that `face_labels` called so."""
    return int(label.split()[1]) - 1


def said(text: str) -> str:
    """The line of the page that screen readers read out when it changes."""
    return f"<p class='me-status' role='status' aria-live='polite'>{html.escape(text)}</p>"


def summary(session: Session) -> str:
    """One sentence on what is on show."""
    width, height = session.photo.size
    past = session.past()
    if past is None:
        count = len(session.faces)
        found = "1 face" if count == 1 else f"{count} faces"
        return f"The photograph itself, {width} x {height} px, {found} found. Move a slider."
    number = f"Edit {session.position + 1} of {len(session.history)}"
    return f"{number}, {past.seconds:.1f} s: {caption(past.requests)}"


def caption(requests: Mapping[int, Request]) -> str:
    """What was asked, in a few words."""
    parts = []
    for index, request in requests.items():
        told = {name: value for name, value in request.items() if abs(value) >= SMALLEST_TOLD}
        asked = ", ".join(f"{name} {value:+.1f}" for name, value in told.items()) or "almost nothing"
        parts.append(asked if len(requests) == 1 else f"face {index + 1}: {asked}")
    return "; ".join(parts) or "nothing"


def comparison(before: Path, after: Path) -> gr.ImageSlider:
    return gr.ImageSlider(value=(str(before), str(after)), visible=True)


def chosen_settings(
    quality: str,
    steps: float,
    guidance: float,
    seed: float | None,
    loop: bool,
    tolerance: float,
    teeth: str,
) -> EditSettings:
    """Of the fields of the tab, in their order."""
    return EditSettings(
        quality=None if quality == OWN_SETTINGS else quality,
        steps=int(steps) or None,
        guidance=guidance or None,
        seed=whole_seed(seed),
        tolerance=tolerance if loop else None,
        teeth=None if teeth == AS_IT_SUITS else int(teeth) if teeth.isdecimal() else teeth,
    )


def whole_seed(seed: float | None) -> int:
    """Of a number field, which may be empty. MagicEditError where it is not from 0."""
    seed = 0 if seed is None else int(seed)
    if not 0 <= seed < 2**53:  # what numbers of a browser hold exactly
        raise MagicEditError(f"the seed must be a whole number from 0 to 2**53 - 1, got {seed}")
    return seed
