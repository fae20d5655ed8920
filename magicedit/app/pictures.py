"""The left side of the page: the photograph, its faces, the edit on show and the history."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from magicedit.app.session import Session
from magicedit.app.sliders import Request
from magicedit.app.views import SMALLEST_TOLD, bars, face_labels

PHOTOGRAPHS = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp")
Updates = dict[gr.blocks.Block, Any]  # what an event shows: component -> its new value or properties


class Pictures:
    """The components of the left side. of_faces, of_edit: those that `show_faces` and `show_edit` update."""

    def __init__(self) -> None:
        self.upload = dropped("Photograph", "upload")
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
            self.undo, self.redo, self.download = (
                gr.Button(text, size="sm", interactive=False, elem_id=text.split()[0].lower())
                for text in ("Undo", "Redo", "Download PNG")
            )
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
        self.of_faces = (self.faces, self.outlines, self.view)
        self.of_edit = (self.compare, self.bars, self.history, self.undo, self.redo, self.download)

    def show_faces(self, session: Session) -> Updates:
        """Updates the list of faces, the photograph with their outlines, and the choice of the view."""
        if session.photo is None:
            return {}
        labels = face_labels(session.faces, session.photo.size[0])
        return {
            self.faces: gr.Radio(choices=labels, value=labels[session.chosen], visible=True),
            self.outlines: gr.Image(value=str(session.outlined()), visible=True),
            self.view: gr.Radio(value=session.close_up, visible=True),
        }

    def show_pair(self, before: Path, after: Path) -> Updates:
        return {self.compare: gr.ImageSlider(value=(str(before), str(after)), visible=True)}

    def show_edit(self, session: Session) -> Updates:
        """Updates pictures and figures of the current edit, and the history."""
        past = session.past()
        captions = [caption(edit.requests) for edit in session.history]
        thumbnails = [(str(path), text) for path, text in zip(session.thumbnails(), captions, strict=False)]
        selected = max(session.position, 0)
        return self.show_pair(*session.shown()) | {
            self.bars: "" if past is None else bars(past.faces),
            self.history: gr.Gallery(value=thumbnails, visible=bool(thumbnails), selected_index=selected),
            self.undo: gr.Button(interactive=session.position >= 0),
            self.redo: gr.Button(interactive=session.position < len(session.history) - 1),
            self.download: gr.Button(interactive=past is not None),
        }


def dropped(label: str, elem_id: str, file_types: tuple[str, ...] = PHOTOGRAPHS) -> gr.File:
    """Returns a drop zone for a file; events get its path."""
    return gr.File(label=label, file_types=[*file_types], type="filepath", height=130, elem_id=elem_id)


def number_of(label: str) -> int:
    """Returns the index of a face by its label from `face_labels`."""
    return int(label.split()[1]) - 1


def summary(session: Session) -> str:
    """Describes what is shown in one sentence."""
    width, height = session.photo.size
    past = session.past()
    if past is None:
        count = len(session.faces)
        found = "1 face" if count == 1 else f"{count} faces"
        return f"The photograph itself, {width} x {height} px, {found} found. Move a slider."
    number = f"Edit {session.position + 1} of {len(session.history)}"
    return f"{number}, {past.seconds:.1f} s: {caption(past.requests)}"


def caption(requests: Mapping[int, Request]) -> str:
    """Describes requests in a few words."""
    parts = []
    for index, request in requests.items():
        told = {name: value for name, value in request.items() if abs(value) >= SMALLEST_TOLD}
        asked = ", ".join(f"{name} {value:+.1f}" for name, value in told.items()) or "almost nothing"
        parts.append(asked if len(requests) == 1 else f"face {index + 1}: {asked}")
    return "; ".join(parts) or "nothing"
