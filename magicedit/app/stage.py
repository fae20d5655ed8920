"""What people drag: the picture of the page, with its faces and handles, pads of two angles, and the sliders.

The scripts are stage.js, pad.js and sliders.js.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.data_classes import FileData

TEMPLATE = """\
<div class='me-stage me-empty'>
<div class='me-frame'>
<img class='me-before' alt='the photograph' draggable='false'>
<img class='me-after' alt='the edit' draggable='false'>
<div class='me-marks' aria-hidden='true'></div>
<div class='me-divider' role='slider' tabindex='0' aria-label='share of the picture that shows the photograph'
 aria-valuemin='0' aria-valuemax='100' aria-valuenow='0'></div>
</div></div>"""
PAD = "<div class='me-pad' aria-hidden='true'><i></i></div>"  # sliders of the angles stand beside
# Its value is no event's output: an event that was put off must send the last place, not the last answer
DRAG = """document.addEventListener('me-drag', ({ detail }) => {
    props.value = detail;
    trigger(detail.ends ? 'release' : 'input');
});"""
POSITIONS = "positions"
# When an event is sent: what was put off must not send what the sliders stood at before
READ_POSITIONS = """(...values) => {
    const units = [...document.querySelectorAll('#sliders .me-unit')];
    const positions = Object.fromEntries(units.map(unit => {
        const { value, min, max } = unit.querySelector('input[type=number]');
        const within = Math.min(Math.max(Number(value), Number(min)), Number(max)); // as it will be shown
        return [unit.id.replace('slider-', ''), value === '' ? null : within];
    }));
    return values.map(value => (value === 'POSITIONS' ? positions : value));
}""".replace("POSITIONS", POSITIONS)
Box = tuple[float, float, float, float]


def stage() -> gr.HTML:
    """Returns the picture. Its value is `stage_value`; `select` has the event data x and y; `end` comes when
    another edit is shown."""
    return gr.HTML(
        None,
        html_template=TEMPLATE,
        js_on_load=script("stage.js"),
        apply_default_css=False,
        elem_id="compare",
    )


def drags() -> gr.HTML:
    """Returns the component whose events `input` and `release` are movements and ends of drags.

    Its value: of: "handle" or a pad's kind; x and y: of a handle, shares of the picture, of a pad, degrees;
    ends: whether the drag does; of handles also number, of `HANDLES`, drag, which counts the drags, and face
    and view: what `stage_value` had as chosen and view when it began.
    """
    return gr.HTML(None, html_template="", js_on_load=DRAG, visible="hidden", elem_id="drags")


def positions() -> gr.HTML:
    """Returns the component whose events `input` and `release` are sliders that are moved and let go, and the
    button "Edit". Events that have it as an input and `js=READ_POSITIONS` get, by name, what the sliders that
    are shown stand at; None where a field is empty."""
    return gr.HTML(
        POSITIONS, html_template="", js_on_load=script("sliders.js"), visible="hidden", elem_id=POSITIONS
    )


def pad(reach: float, kind: str) -> gr.HTML:
    """Returns a pad of two angles from -reach to reach degrees. Its value is x and y: right and up."""
    return gr.HTML(
        {"x": 0, "y": 0},
        html_template=PAD,
        js_on_load=script("pad.js"),
        apply_default_css=False,
        elem_id=f"pad-{kind}",
        elem_classes="me-off",
        reach=reach,
        kind=kind,
    )


def script(name: str) -> str:
    """Returns a script of the page."""
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def stage_value(
    pair: tuple[Path, Path],
    size: tuple[int, int],
    view: str,
    faces: Sequence[Box] = (),
    chosen: int = 0,
    handles: Mapping[int, tuple[str, float, float]] | None = None,
    edit: Sequence[int] = (),
) -> dict[str, Any]:
    """Returns the value of a stage.

    pair: files of the photograph and the edit, of `size` width and height. view: names what they show; where
    it changes, zoom and comparison begin anew. faces: left, top, right, bottom as shares of the picture, to
    choose from. handles: by number, label and place. edit: names it within the view.
    """
    before, after = (FileData(path=str(path)).model_dump() for path in pair)
    dots = [{"number": n, "label": label, "x": x, "y": y} for n, (label, x, y) in (handles or {}).items()]
    return {
        "before": before,
        "after": after,
        "ratio": size[0] / size[1],
        "view": view,
        "faces": [list(box) for box in faces],
        "chosen": chosen,
        "handles": dots,
        "edit": [*edit],
    }
