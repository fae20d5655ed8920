"""The right side of the page: a class for each tab, with its components and how their values are read."""

from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr

from magicedit.action_units import EMOTIONS, FACS, MOUTH_SHAPES, STRENGTH_RANGE, is_angle, sided_names
from magicedit.app.pictures import Updates, dropped
from magicedit.app.session import Session, Sweep
from magicedit.app.sliders import STEP, Mode, has_sides, slider_names, slider_range, slider_values
from magicedit.app.views import titled
from magicedit.editor import NO_TEETH, QUALITIES
from magicedit.errors import MagicEditError
from magicedit.request import EditRequest
from magicedit.vocabulary import whole_name
from magicedit.warping import embedded_mouths

REGIONS = (  # headings, and the regions of `ActionUnit` below each
    ("Brows", ("brow",)),
    ("Eyes and gaze", ("eye", "gaze")),
    ("Cheeks and nose", ("cheek", "nose")),
    ("Lips", ("lip",)),
    ("Jaw", ("jaw",)),
    ("Head", ("head",)),
)
OTHER_UNITS = "Others"  # heading of units that only this model has
OWN_SETTINGS = "model's own"
AS_IT_SUITS = "as they suit"

Values = Mapping[gr.blocks.Block, Any]  # what the browser sends with an event


class ExpressionTab:
    """Sliders of a model's units, emotions, and the buttons that start an edit.

    sliders: by `slider_names`. way: the mode of the sliders, and whether both sides move together. shown:
    what `show` updates.
    """

    def __init__(self, units: Sequence[str], live: bool) -> None:
        self.sliders: dict[str, gr.Slider] = {}
        with gr.Tab("Expression", elem_id="tab-expression"):
            sounds = [name for name, recipe in MOUTH_SHAPES.items() if recipe.keys() <= {*units}]
            self._lay_out_asking([*EMOTIONS, *sounds])
            for heading, members in by_region(units).items():
                with gr.Accordion(heading, open=True):
                    for unit in members:
                        self._lay_out_unit(unit)
            self.live = gr.Checkbox(
                live,
                label="preview while dragging",
                info="quickest quality, not measured" if live else "slow with this model",
                elem_id="live",
            )
        self.names = slider_names(units)
        self.way = {self.mode, self.linked}
        self.shown = [self.linked, *self.sliders.values()]

    def _lay_out_asking(self, recipes: Sequence[str]) -> None:
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
                recipes,
                value="happiness",
                label="Emotion or sound",
                min_width=120,
                elem_id="emotion",
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

    def _lay_out_unit(self, unit: str) -> None:
        for name in slider_names([unit]):
            first = name not in sided_names(unit)[1:]
            self.sliders[name] = gr.Slider(
                *slider_range("add", name),
                value=0,
                step=STEP,
                label=titled(unit if first else name),
                visible=first,
                elem_id=f"slider-{name}",
                elem_classes="me-unit",
            )

    def ask(self, session: Session, values: Values, face: int | None = None) -> None:
        """Sets the request of a face (default: the chosen one) by the sliders."""
        positions = [values[self.sliders[name]] for name in self.names]
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

    def show(self, session: Session, mode: Mode, linked: bool) -> Updates:
        """Updates the checkbox and all sliders by the session's request."""
        request = session.request()
        linked = linked and not has_sides(request)
        positions = slider_values(request, session.measured(), self.names, mode, linked)
        updates: Updates = {self.linked: linked}
        for name, value in zip(self.names, positions, strict=True):
            unit, (low, high) = whole_name(name), slider_range(mode, name)
            label = titled(unit if linked else name)
            shown = not linked or name not in sided_names(unit)[1:]
            updates[self.sliders[name]] = gr.Slider(
                minimum=low, maximum=high, value=value, label=label, visible=shown
            )
        return updates


class CopyTab:
    """Copies the expression of a photograph or a file, and saves expressions."""

    def __init__(self) -> None:
        with gr.Tab("Copy and presets", elem_id="tab-copy"):
            self.share = gr.Slider(0, 1.5, value=1.0, step=0.05, label="how much of it", elem_id="share")
            self.photograph = dropped(
                "Copy the expression of another photograph (its largest face)", "copy-from"
            )
            self.preset = dropped(
                "Load a preset (.yaml, as saved here or by `magicedit measure --save`)",
                "preset",
                (".yaml", ".yml"),
            )
            with gr.Row(elem_classes="me-buttons"):
                self.save_steps = gr.Button("Save as steps to add", elem_id="save-variations")
                self.save_levels = gr.Button("Save as levels to reach", elem_id="save-intensities")
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
            )
            with gr.Row():
                self.start = gr.Slider(*slider_range("add"), value=-3, step=0.5, label="from")
                self.stop = gr.Slider(*slider_range("add"), value=5, step=0.5, label="to")
                self.unit.change(self.ranged, self.unit, [self.start, self.stop], api_visibility="private")
                self.count = gr.Slider(2, 24, value=7, step=1, label="pictures")
            self.kind = gr.Radio(["strip", "animation"], value="strip", label="As")
            self.draw = gr.Button("Draw", variant="primary", elem_id="draw-sweep")
            self.drawn = gr.Image(
                label="Sweep",
                type="filepath",
                interactive=False,
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


class SettingsTab:
    """Sampling, teeth and closed loop.

    fields: components of fields of `EditRequest`, by name. inputs: those that `read` reads; the file of
    `references` has its own event.
    """

    def __init__(self, settings: EditRequest) -> None:
        teeth = AS_IT_SUITS if settings.teeth is None else str(settings.teeth)
        with gr.Tab("Settings", elem_id="tab-settings"):
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
                    "Another photograph of the person, whose teeth show instead", "reference"
                ),
            }
            self.loop = gr.Checkbox(
                settings.tolerance is not None,
                label="measure and correct until the target is reached (up to four edits)",
            )
            self.fields["tolerance"] = gr.Slider(
                0.1, 1.0, value=settings.tolerance or 0.3, step=0.1, label="tolerance (intensity steps)"
            )
        self.reference = self.fields["references"]
        self.inputs = {self.loop, *self.fields.values()} - {self.reference}

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
    groups = {
        heading: [name for name, region in region_of.items() if region in regions and name in units]
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
