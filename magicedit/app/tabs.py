"""The right side of the page: a class for each tab, with its components and how their values are read."""

from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr

from magicedit.action_units import (
    EMOTIONS,
    FACS,
    MOUTH_SHAPES,
    PLAIN_WORDS,
    STRENGTH_RANGE,
    is_angle,
    sided_names,
)
from magicedit.app.messages import WRONG_VALUES
from magicedit.app.pictures import PHOTOGRAPHS, Updates, dropped
from magicedit.app.series import MOST_PHOTOGRAPHS, series_of
from magicedit.app.session import Series, Session, Sweep
from magicedit.app.sliders import STEP, Mode, has_sides, slider_names, slider_range, slider_values
from magicedit.app.stage import pad, positions
from magicedit.app.views import bars, titled
from magicedit.editor import NO_TEETH, QUALITIES
from magicedit.errors import MagicEditError
from magicedit.request import EditRequest
from magicedit.vocabulary import is_finite, whole_name
from magicedit.warping import embedded_mouths

REGIONS = (  # headings, and the regions of `ActionUnit` below each
    ("Mouth", ("lip", "jaw")),
    ("Eyes", ("eye",)),
    ("Brows", ("brow",)),
    ("Cheeks and nose", ("cheek", "nose")),
    ("Gaze", ("gaze",)),
    ("Head", ("head",)),
)
OTHER_UNITS = "Others"  # heading of units that only this model has
OWN_SETTINGS = "model's own"
AS_IT_SUITS = "as they suit"
VIDEOS = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v")
NOT_MEASURED = "<p>Requested and measured action units of an edit stand here.</p>"

Values = Mapping[gr.blocks.Block, Any]  # what the browser sends with an event


class ExpressionTab:
    """Sliders of a model's units, emotions, and the buttons that start an edit.

    sliders: by `slider_names`. positions: of those that are shown. pads: by kind, of the two controls
    `pad_axes`. way: the mode of the sliders, and whether both sides move together. shown: what `show`
    updates.
    """

    def __init__(self, units: Sequence[str]) -> None:
        self.sliders: dict[str, gr.Slider] = {}
        self.pads: dict[str, gr.HTML] = {}
        with gr.Tab("Face", elem_id="tab-expression"):
            with gr.Column(elem_id="sliders"):
                for heading, members in by_region(units).items():
                    with gr.Accordion(heading, open=True):
                        self._lay_out_pad(members)
                        for unit in members:
                            self._lay_out_unit(unit)
            with gr.Column(elem_id="asking"):
                sounds = [name for name, recipe in MOUTH_SHAPES.items() if recipe.keys() <= {*units}]
                self._lay_out_asking([*EMOTIONS, *sounds])
            self.positions = positions()
        self.names = slider_names(units)
        self.way = {self.mode, self.linked}
        self.buttons = (self.feel, self.edit, self.neutral, self.reset)
        self.shown = [self.linked, *self.sliders.values(), *self.pads.values(), *self.buttons]

    def _lay_out_asking(self, recipes: Sequence[str]) -> None:
        with gr.Row():
            self.emotion = gr.Dropdown(
                recipes,
                value="happiness",
                label="Emotion or sound",
                min_width=110,
                elem_id="emotion",
                container=False,
            )
            self.strength = gr.Slider(
                *STRENGTH_RANGE,
                value=0.8,
                step=0.05,
                label="strength of the emotion",
                min_width=130,
                buttons=[],
                container=False,
            )
            self.feel = gr.Button(
                "Apply", min_width=60, scale=0, size="sm", interactive=False, elem_id="use-emotion"
            )
        with gr.Row():
            self.mode = gr.Radio(
                [("add", "add"), ("set a level", "set")],
                value="add",
                label="Sliders",
                scale=3,
                min_width=150,
                elem_id="mode",
                container=False,
            )
            self.linked = gr.Checkbox(
                True, label="both sides", container=False, scale=1, min_width=110, elem_id="linked"
            )
        with gr.Row(elem_classes="me-buttons"):
            self.edit, self.neutral, self.reset = (
                gr.Button(text, variant=variant, size="sm", interactive=False, elem_id=name)
                for text, variant, name in (
                    ("Edit", "primary", "edit"),
                    ("Neutralise", "secondary", "neutral"),
                    ("All to zero", "secondary", "reset"),
                )
            )

    def _lay_out_pad(self, units: Sequence[str]) -> None:
        for kind in ("gaze", "head"):
            if {*pad_axes(kind)} <= {*units}:
                self.pads[kind] = pad(slider_range("add", pad_axes(kind)[0])[1], kind)

    def _lay_out_unit(self, unit: str) -> None:
        for name in slider_names([unit]):
            first = name not in sided_names(unit)[1:]
            self.sliders[name] = gr.Slider(
                *slider_range("add", name),
                value=0,
                step=STEP,
                label=titled(unit if first else name),
                visible=first,
                interactive=False,
                buttons=[],
                elem_id=f"slider-{name}",
                elem_classes=slider_classes("add", name),
            )

    def ask(self, session: Session, values: Values, face: int | None = None) -> None:
        """Sets the request of a face (default: the chosen one) by the sliders."""
        given = self._given(values)
        positions = [given.get(name) for name in self.names]
        session.ask_sliders(positions, values[self.mode], values[self.linked], face)

    def ask_emotion(self, session: Session, values: Values) -> str:
        """Requests only an emotion of the chosen face. Returns the status line, as all `ask_` methods do."""
        name, strength = values[self.emotion], values[self.strength]
        session.ask_emotion(name, strength)
        return f"{name.capitalize()}, {strength:g}."

    def ask_neutral(self, session: Session, values: Values) -> str:
        session.ask_neutral()
        return "The measured expression is removed."

    def ask_nothing(self, session: Session, values: Values) -> str:
        session.ask({})
        return "Nothing is requested of this face."

    def show_values(self, session: Session, values: Values) -> Updates:
        """Updates the values of those sliders that no longer stand for the request, as during a drag."""
        mode, linked = values[self.mode], values[self.linked]
        positions = slider_values(session.request(), session.measured(), self.names, mode, linked)
        given = self._given(values)
        wanted = {name: value for name, value in zip(self.names, positions, strict=True) if name in given}
        return {self.sliders[name]: value for name, value in wanted.items() if value != given[name]}

    def _given(self, values: Values) -> dict[str, float | None]:
        """Returns the positions that the browser sent. MagicEditError where one is no number."""
        given = values[self.positions]
        given = given if isinstance(given, dict) else {}
        if not all(value is None or is_finite(value) for value in given.values()):
            raise MagicEditError(WRONG_VALUES)
        return given

    def show(self, session: Session, mode: Mode, linked: bool) -> Updates:
        """Updates the checkbox and all sliders by the session's request."""
        request, open_ = session.request(), not session.empty
        linked = linked and not has_sides(request)
        positions = slider_values(request, session.measured(), self.names, mode, linked)
        updates: Updates = {self.linked: linked}
        updates |= {button: gr.Button(interactive=open_) for button in self.buttons}
        for kind, field in self.pads.items():
            value = {axis: request.get(name, 0.0) for axis, name in zip("xy", pad_axes(kind), strict=True)}
            updates[field] = gr.HTML(value=value, elem_classes="" if open_ else "me-off")
        for name, value in zip(self.names, positions, strict=True):
            unit, (low, high) = whole_name(name), slider_range(mode, name)
            label = titled(unit if linked else name)
            shown = not linked or name not in sided_names(unit)[1:]
            updates[self.sliders[name]] = gr.Slider(
                minimum=low,
                maximum=high,
                value=value,
                label=label,
                visible=shown,
                interactive=open_,
                elem_classes=slider_classes(mode, name),
            )
        return updates


def pad_axes(kind: str) -> tuple[str, str]:
    """Returns the controls of a pad: across, and up."""
    return f"{kind}_yaw", f"{kind}_pitch"


def slider_classes(mode: Mode, name: str) -> list[str]:
    """Returns classes of a slider; one whose zero is in the middle is filled from there."""
    return ["me-unit", "me-middle"] if slider_range(mode, name)[0] < 0 else ["me-unit"]


class MeasuredTab:
    """Requested beside measured action units of the shown edit."""

    def __init__(self) -> None:
        with gr.Tab("Measured", elem_id="tab-measured"):
            self.bars = gr.HTML(NOT_MEASURED, apply_default_css=False, elem_id="bars")

    def show(self, session: Session) -> Updates:
        past = session.past()
        return {self.bars: NOT_MEASURED if past is None else bars(past.faces)}


class CopyTab:
    """Copies the expression of a photograph or a file, and saves expressions."""

    def __init__(self) -> None:
        with gr.Tab("Copy", elem_id="tab-copy"):
            self.share = gr.Slider(
                0, 1.5, value=1.0, step=0.05, label="strength of the expression", elem_id="share"
            )
            self.photograph = dropped(
                "Copy the expression of another photograph (its largest face)", "copy-from"
            )
            self.preset = dropped(
                "Load a preset (.yaml, saved here or by magicedit measure)",
                "preset",
                (".yaml", ".yml"),
            )
            with gr.Row(elem_classes="me-buttons"):
                self.save_steps = gr.Button("Save as steps to add", size="sm", elem_id="save-variations")
                self.save_levels = gr.Button("Save as levels to reach", size="sm", elem_id="save-intensities")
            self.preset_file = gr.DownloadButton(visible="hidden", elem_id="preset-file")

    def ask_copy(self, session: Session, values: Values) -> str:
        expression = session.ask_copy(values[self.photograph], values[self.share])
        copied = expression.limited_to(session.editor.action_units)
        return f"Copied from {expression.source}: {copied}"

    def ask_preset(self, session: Session, values: Values) -> str:
        return f"Loaded: {session.ask_preset(values[self.preset], values[self.share])}"


class SweepTab:
    """One unit at several variations. inputs: the components that `read` reads."""

    def __init__(self, units: Sequence[str]) -> None:
        with gr.Tab("Sweep", elem_id="tab-sweep"):
            self.unit = gr.Dropdown(
                [(titled(name), name) for name in units],
                value="AU12" if "AU12" in units else units[0],
                label="Action unit",
                elem_id="sweep-unit",
            )
            with gr.Row():
                self.start = gr.Slider(*slider_range("add"), value=-3, step=0.5, label="from")
                self.stop = gr.Slider(*slider_range("add"), value=5, step=0.5, label="to")
                self.unit.change(self.ranged, self.unit, [self.start, self.stop], api_visibility="private")
                self.count = gr.Slider(2, 24, value=7, step=1, label="pictures")
            self.kind = gr.Radio(["strip", "animation"], value="strip", label="As")
            self.draw = gr.Button("Draw", variant="primary", size="sm", elem_id="draw-sweep")
            self.drawn = gr.Image(
                label="Sweep",
                type="filepath",
                interactive=False,
                visible=False,
                buttons=["download", "fullscreen"],
                elem_id="sweep",
            )
        self.inputs = {self.unit, self.start, self.stop, self.count, self.kind}

    def ranged(self, unit: str) -> list[gr.Slider]:
        """Returns the two ends with the range of a unit, whose whole they span but for units of two ways."""
        low, high = slider_range("add", unit)
        ends = (low, high) if is_angle(unit) or low == 0 else (-3, high)
        return [gr.Slider(minimum=low, maximum=high, value=end) for end in ends]

    def read(self, values: Values, settings: EditRequest) -> Sweep:
        unit, start, stop = (values[part] for part in (self.unit, self.start, self.stop))
        animated = values[self.kind] == "animation"
        return Sweep(unit, start, stop, int(values[self.count]), animated, settings)


class SeriesTab:
    """Files of their own that are edited by one request: a video, or several photographs.

    inputs: the components that `read` reads. make: the button that makes the result.
    """

    def _lay_out_request(self, kind: str) -> None:
        with gr.Row():
            self.request = gr.Textbox(
                "AU12=+3", label="Request, such as AU12=+3,AU4=-1", scale=3, elem_id=f"{kind}-request"
            )
            self.take = gr.Button("From the sliders", size="sm", min_width=100, elem_id=f"{kind}-take")

    def _lay_out_results(self, kind: str, columns: int, height: int) -> None:
        self.progress = gr.HTML("", elem_id=f"{kind}-progress", elem_classes="me-progress")
        self.shown = gr.Gallery(
            label="Results",
            show_label=False,
            visible=False,
            columns=columns,
            height=height,
            interactive=False,
            buttons=[],
            elem_id=f"{kind}-shown",
        )

    def taken(self, session: Session) -> str:
        """Returns the request of the sliders as text."""
        return ",".join(f"{name}={value:+g}" for name, value in session.request().items())


class VideoTab(SeriesTab):
    """Edits a video by a request or a curve."""

    def __init__(self) -> None:
        with gr.Tab("Video", elem_id="tab-video"):
            self.files = dropped("Video", "video", VIDEOS)
            self._lay_out_request("video")
            self.curve = dropped("Curve (.csv: time, AU12, ...), added to the request", "curve", (".csv",))
            with gr.Row(elem_classes="me-buttons"):
                self.preview = gr.Button("Preview three frames", size="sm", elem_id="video-preview")
                self.make = gr.Button("Make the video", variant="primary", size="sm", elem_id="video-make")
            self._lay_out_results("video", 3, 150)
            self.result = gr.Video(
                label="The edited video",
                visible=False,
                interactive=False,
                buttons=["download"],
                elem_id="film",
            )
        self.inputs = {self.files, self.request, self.curve}

    def read(self, kind: type[Series], session: Session, values: Values, settings: EditRequest) -> Series:
        files = [path] if (path := values[self.files]) else []
        return series_of(kind, session, files, values[self.request], values[self.curve], settings)


class PhotographsTab(SeriesTab):
    """Edits the largest face of several photographs by one request."""

    def __init__(self) -> None:
        with gr.Tab("Batch", elem_id="tab-batch"):
            self.files = dropped(
                f"Up to {MOST_PHOTOGRAPHS} photographs", "batch", PHOTOGRAPHS, file_count="multiple"
            )
            self._lay_out_request("batch")
            self.make = gr.Button("Edit all", variant="primary", size="sm", elem_id="batch-make")
            self._lay_out_results("batch", 4, 300)
            self.failed = gr.HTML(visible=False, apply_default_css=False, elem_id="batch-failed")
            self.result = gr.File(label="All, as a ZIP file", visible=False, interactive=False, elem_id="zip")
        self.inputs = {self.files, self.request}

    def read(self, kind: type[Series], session: Session, values: Values, settings: EditRequest) -> Series:
        return series_of(kind, session, values[self.files] or [], values[self.request], None, settings)


class SettingsTab:
    """Sampling, teeth and closed loop.

    fields: components of fields of `EditRequest`, by name. inputs: those that `read` reads; the file of
    `references` has its own event. live: whether previews follow the pointer.
    """

    def __init__(self, settings: EditRequest, live: bool) -> None:
        teeth = AS_IT_SUITS if settings.teeth is None else str(settings.teeth)
        with gr.Tab("Settings", elem_id="tab-settings"):
            self.live = gr.Checkbox(
                live,
                label="preview while dragging",
                info="quickest quality, not measured" if live else "slow with this model",
                elem_id="live",
            )
            self.fields = {
                "quality": gr.Radio(
                    [OWN_SETTINGS, *reversed(QUALITIES)],
                    value=settings.quality or OWN_SETTINGS,
                    label="Quality",
                    info="live is the quickest, exact the slowest",
                ),
                "steps": gr.Slider(
                    0,
                    50,
                    value=settings.steps or 0,
                    step=1,
                    label="Denoising steps",
                    info="0: the quality's own",
                    elem_id="steps",
                ),
                "guidance": gr.Slider(
                    0,
                    10,
                    value=settings.guidance or 0,
                    step=0.1,
                    label="Guidance scale",
                    info="strengthens the whole effect; 0: the model's own",
                ),
                "noise_level": gr.Slider(
                    0,
                    1,
                    value=settings.noise_level or 0,
                    step=0.05,
                    label="Noise level",
                    info="of models that invert photographs to noise; 0: the model's own",
                ),
                "seed": gr.Number(settings.seed, label="Seed", precision=0, minimum=0, elem_id="seed"),
                "teeth": gr.Dropdown(
                    [AS_IT_SUITS, NO_TEETH, *map(str, range(len(embedded_mouths())))],
                    value=teeth,
                    label="Teeth of an opened mouth",
                    info="where the photograph shows none: as they suit the mouth, none, or a donor's",
                    elem_id="teeth",
                ),
                "references": dropped(
                    "Their own teeth: another photograph of the person, whose teeth show instead", "reference"
                ),
            }
            self.lent = gr.Button(visible=False, size="sm", elem_id="lent")
            self.loop = gr.Checkbox(
                settings.tolerance is not None,
                label="measure and correct until the target is reached (up to four edits)",
            )
            self.fields["tolerance"] = gr.Slider(
                0.1, 1.0, value=settings.tolerance or 0.3, step=0.1, label="tolerance (intensity steps)"
            )
        self.reference = self.fields["references"]
        self.inputs = {self.loop, *self.fields.values()} - {self.reference}

    def show_lent(self, session: Session) -> Updates:
        """Updates whose teeth are lent."""
        lent = session.reference
        text = "" if lent is None else f"Teeth of {lent.name} ✕ use no other photograph's"
        return {self.lent: gr.Button(text, visible=lent is not None)}

    def read(self, values: Values) -> EditRequest:
        """Returns an empty request with these settings. MagicEditError where a value is out of range."""
        given = {name: values[part] for name, part in self.fields.items() if part in self.inputs}
        if not values[self.loop]:
            del given["tolerance"]
        unset = (OWN_SETTINGS, AS_IT_SUITS, 0, None)  # None: an empty number field
        given = {name: value for name, value in given.items() if value not in unset}
        for name, read in (("steps", int), ("seed", whole_seed), ("teeth", teeth_choice)):
            if name in given:
                given[name] = read(given[name])
        return EditRequest(**given)


def by_region(units: Sequence[str]) -> dict[str, list[str]]:
    """Returns a model's units by heading: those of `FACS` by region, all others below OTHER_UNITS; without
    empty headings."""
    region_of = {unit.name: unit.region for unit in FACS.controls}
    ordered = dict.fromkeys((*PLAIN_WORDS, *region_of))  # those that are looked for most come first
    groups = {
        heading: [name for name in ordered if region_of[name] in regions and name in units]
        for heading, regions in REGIONS
    }
    groups[OTHER_UNITS] = [name for name in units if name not in region_of]
    return {heading: names for heading, names in groups.items() if names}


def whole_seed(seed: float) -> int:
    """Converts a number field's value. MagicEditError where it is out of range."""
    if not 0 <= seed < 2**53:  # beyond, a browser's numbers are not exact
        raise MagicEditError(f"the seed must be a whole number from 0 to 2**53 - 1, got {seed}")
    return int(seed)


def teeth_choice(text: str) -> str | int:
    return int(text) if text.isdecimal() else text
