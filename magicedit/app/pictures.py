"""The left side of the page: the photograph, its faces, the shown edit and the history."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from magicedit.app.messages import said
from magicedit.app.session import Session
from magicedit.app.sliders import Request
from magicedit.app.stage import drags, stage, stage_value
from magicedit.app.views import SMALLEST_TOLD
from magicedit.files import counted

PHOTOGRAPHS = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".avif", ".heic", ".heif")
HINT = "Open a photograph to begin."
Updates = dict[gr.blocks.Block, Any]  # what an event shows: component -> its new value or properties


class Pictures:
    """The components of the left side. of_faces, of_edit: those that `show_faces` and `show_edit` update."""

    def __init__(self, live: bool) -> None:
        with gr.Row(elem_id="toolbar"):
            self.status = gr.HTML(said(HINT), elem_id="status")
            self.cancel = gr.Button("Cancel", variant="stop", size="sm", elem_id="cancel")
            self.view = gr.Checkbox(False, label="close up", container=False, visible=False, elem_id="view")
            self.undo, self.redo, self.original, self.png, self.jpeg = (
                gr.Button(text, size="sm", interactive=False, elem_id=name)
                for text, name in (
                    ("Undo", "undo"),
                    ("Redo", "redo"),
                    ("Hold: original", "original"),
                    ("PNG ↓", "download"),
                    ("JPEG ↓", "download-jpeg"),
                )
            )
            self.reopen = gr.Button("Open…", size="sm", visible=False, elem_id="reopen")
        # Errors are drawn here, where they cover nothing
        self.progress = gr.HTML("", elem_id="progress", elem_classes="" if live else "me-full")
        with gr.Column(elem_id="opening") as self.opening:
            self.upload = dropped("Photograph: drop, paste or click", "upload")
            with gr.Row():
                self.example = gr.Button("Try the example", size="sm", elem_id="example")
                self.ask_camera = gr.Button("Use the camera", size="sm", elem_id="ask-camera")
            self.earlier = _thumbnails("Earlier photographs, with their edits", "earlier")
            self.camera = gr.Image(
                label="Camera",
                sources=["webcam"],
                type="filepath",
                visible=False,
                height=280,
                elem_id="camera",
            )
        self.unfolded = gr.Checkbox(visible=False)  # whether `opening` is, told by the browser
        self.trouble = gr.Textbox(visible=False)  # why there is no camera, told by the browser
        self.stage = stage()
        self.drags = drags()
        with gr.Row(elem_id="strip"):
            self.faces = _thumbnails("Faces", "faces")
            self.history = _thumbnails("History", "history")
        self.face = gr.Number(0, visible=False, precision=0)  # index of the one whose sliders are shown
        self.result_file = gr.DownloadButton(visible="hidden", elem_id="result-file")
        self.of_faces = (
            self.faces,
            self.face,
            self.view,
            self.opening,
            self.earlier,
            self.camera,
            self.reopen,
            self.original,
        )
        self.of_edit = (self.stage, self.undo, self.redo, self.png, self.jpeg)

    def show_faces(self, session: Session) -> Updates:
        """Updates the faces to choose from, and folds what opens a photograph."""
        if session.photo is None:
            return {}
        paths = [str(path) for path in session.face_thumbnails()]
        several = len(session.faces) > 1
        return {
            self.faces: gr.Gallery(value=paths, visible=several, selected_index=session.chosen),
            self.face: session.chosen,
            self.view: gr.Checkbox(value=session.close_up, visible=True),
            self.opening: gr.Column(visible="hidden"),  # pasted files still go there
            self.earlier: gr.Gallery(
                value=[str(path) for path in session.earlier_thumbnails()],
                visible=False,  # until `opening` is
                selected_index=None,
            ),
            self.camera: gr.Image(value=None, visible=False),
            self.reopen: gr.Button(visible=True),
            self.original: gr.Button(interactive=True),
        }

    def show_pair(self, session: Session, before: Path, after: Path) -> Updates:
        """Updates the picture, with what can be chosen and dragged in it."""
        left, top, right, bottom = session.window()
        whole_group = not session.close_up and len(session.faces) > 1
        value = stage_value(
            (before, after),
            (right - left, bottom - top),
            f"{before.stem}",
            session.face_boxes() if whole_group else (),
            session.chosen,
            session.handles(),
            [session.position, len(session.history), session.made],
        )
        return {self.stage: value}

    def show_edit(self, session: Session) -> Updates:
        """Updates the pictures of the current edit, and what can be done with it."""
        edited = session.past() is not None
        return self.show_pair(session, *session.shown()) | {
            self.undo: gr.Button(interactive=edited),
            self.redo: gr.Button(interactive=session.can_redo),
            self.png: gr.Button(interactive=edited),
            self.jpeg: gr.Button(interactive=edited),
        }

    def show_history(self, session: Session) -> Updates:
        thumbnails = [str(path) for path in session.thumbnails()]
        selected = session.position if session.position >= 0 else None
        return {self.history: gr.Gallery(value=thumbnails, visible=bool(thumbnails), selected_index=selected)}


def dropped(label: str, elem_id: str, file_types: tuple[str, ...] = PHOTOGRAPHS, **options: Any) -> gr.File:
    """Returns a drop zone for a file; events get its path."""
    options = {"type": "filepath", "height": 110} | options
    return gr.File(label=label, file_types=[*file_types], elem_id=elem_id, **options)


def _thumbnails(label: str, elem_id: str) -> gr.Gallery:
    return gr.Gallery(
        label=label,
        visible=False,
        columns=50,
        fit_columns=False,
        height=66,
        container=False,
        object_fit="cover",
        allow_preview=False,
        format="jpeg",
        interactive=False,
        buttons=[],
        elem_id=elem_id,
    )


def summary(session: Session) -> str:
    """Describes what is shown in one sentence."""
    width, height = session.photo.size
    past = session.past()
    if past is None:
        found = counted(len(session.faces), "face")
        kept = " The earlier photograph and its edits are behind Open…" if session.earlier else ""
        return f"The photograph itself, {width} x {height} px, {found} found. Drag a dot or a slider.{kept}"
    number = f"Edit {session.position + 1} of {len(session.history)}{branch(session)}"
    return f"{number}, {past.seconds:.1f} s: {caption(past.requests)}"


def caption(requests: Mapping[int, Request]) -> str:
    """Describes requests in a few words."""
    parts = []
    for index, request in requests.items():
        told = {name: value for name, value in request.items() if abs(value) >= SMALLEST_TOLD}
        asked = ", ".join(f"{name} {value:+.1f}" for name, value in told.items()) or "almost nothing"
        parts.append(asked if len(requests) == 1 else f"face {index + 1}: {asked}")
    return "; ".join(parts) or "nothing"


def branch(session: Session) -> str:
    """Tells what the shown edit follows, unless that is the one before it in the history."""
    origin = session.origin
    if origin == session.position - 1:
        return ""
    return f" (from edit {origin + 1})" if origin >= 0 else " (from the photograph)"
