"""The page's API: a photograph and a request in, a photograph and a report out, without a session.

from gradio_client import Client, handle_file

client = Client("http://127.0.0.1:7860")
edited, report = client.predict(handle_file("photo.jpg"), "AU12=+3", api_name="/edit")
"""

import inspect
import tempfile
from pathlib import Path
from typing import Any

import gradio as gr

from magicedit.app.messages import spoken
from magicedit.app.picture_files import open_upload
from magicedit.app.turns import Turns
from magicedit.editor import ExpressionEditor, face_to_json
from magicedit.errors import MagicEditError, NoFaceError
from magicedit.imaging import save_image
from magicedit.vocabulary import quoted

LONGEST_NUMBER = 9  # digits of a face's number
LONGEST_TEXT = 2000  # characters of a field
KINDS = {
    "neutral": (bool, "true or false"),
    "seed": (int, "a whole number"),
    "tolerance": ((int, float), "a number of intensity steps"),
}


def add_endpoints(editor: ExpressionEditor, turns: Turns, folder: Path, concurrency_id: str) -> None:
    """Adds `/edit` and `/measure` to the current blocks; user errors arrive as messages."""

    def edit(photo: str, *values: Any) -> tuple[str, dict[str, Any]]:
        given = dict(zip(fields, values, strict=True))
        asked = {name: value for name, value in given.items() if value not in ("", 0, None)}
        for name, value in asked.items():
            check(name, value)
        if "face" in asked:
            asked["face"] = face_of(asked["face"])
        uploaded = opened(photo)
        with turns.turn():
            result = editor.edit(uploaded, **asked)
        path = save_image(result.image, Path(tempfile.mkdtemp(prefix="edit-", dir=folder)) / "edited.png")
        return str(path), {
            "model": result.model,
            "seconds": round(result.seconds, 3),
            "faces": [found.to_json() for found in result.faces],
            "left_alone": result.left_alone,
        }

    def measure(photo: str) -> dict[str, Any]:
        uploaded = opened(photo)
        with turns.turn():
            faces = editor.measure(uploaded)
        return {"faces": [face_to_json(found, index) for index, found in enumerate(faces)]}

    with gr.Column(visible=False):
        photo = gr.File(label="photo", type="filepath")
        fields = {  # of `EditRequest`, by name; empty or 0: no request
            "add": gr.Textbox("", label="add, such as AU12=+3,AU4=-1"),
            "set": gr.Textbox("", label="set, such as AU12=0"),
            "emotion": gr.Textbox("", label="emotion, such as happiness:0.8"),
            "neutral": gr.Checkbox(False, label="neutral"),
            "face": gr.Textbox("all", label="face: all, largest or an index from 0"),
            "quality": gr.Textbox("", label="quality: live, fast, balanced, exact"),
            "seed": gr.Number(0, label="seed", precision=0),
            "tolerance": gr.Number(0, label="tolerance of the closed loop in intensity steps, 0: none"),
        }
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        options = [inspect.Parameter(name, kind, default=part.value) for name, part in fields.items()]
        edit.__signature__ = inspect.Signature([inspect.Parameter("photo", kind), *options])  # for callers
        picture = gr.File(label="edited photograph, PNG")
        report = gr.JSON(label="report")
        inputs = [photo, *fields.values()]
        shared = {"concurrency_id": concurrency_id, "concurrency_limit": 1}
        gr.Button("edit").click(spoken(edit), inputs, [picture, report], api_name="edit", **shared)
        gr.Button("measure").click(spoken(measure), photo, report, api_name="measure", **shared)


def check(name: str, value: Any) -> None:
    """Raises MagicEditError where a caller sent another kind of value; Gradio lets some of them through."""
    kind, words = KINDS.get(name, (str, "text"))
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise MagicEditError(f"{name} must be {words}, got {quoted(value)}")
    if isinstance(value, str) and len(value) > LONGEST_TEXT:
        raise MagicEditError(f"{name} must have at most {LONGEST_TEXT} characters, got {len(value)}")


def face_of(text: str) -> str | int:
    """Converts the field of a face, an index from 0: programs count as `face` in the answers does.

    NoFaceError where it names none, or no photograph can have so many.
    """
    if text.isdecimal() and len(text) <= LONGEST_NUMBER:
        return int(text)
    if text not in ("all", "largest"):
        told = f"{quoted(text)} of {len(text)} characters"
        raise NoFaceError(
            f'face must be "all", "largest" or an index from 0 (`face` of /measure), got {told}'
        )
    return text


def opened(photo: str | None) -> Any:
    """Returns the uploaded photograph. MagicEditError where there is none."""
    if photo is None:
        raise MagicEditError("no photograph was sent; pass one by handle_file(path)")
    return open_upload(photo)
