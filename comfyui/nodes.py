"""The nodes: what they are called, what goes in and comes out. What they do is in `editing`."""

import dataclasses
import json
from pathlib import Path

import comfy.model_management
import comfy.utils
import folder_paths
import numpy as np
from comfy.cli_args import args
from comfy_api.latest import io, ui

from magicedit.action_units import GEOMETRIC, NAMES, RECIPES
from magicedit.editor import QUALITIES
from magicedit.vocabulary import Control

from . import editing

Editor = io.Custom("MAGICEDIT_EDITOR")
Expression = io.Custom("MAGICEDIT_EXPRESSION")
Marks = io.Custom("MAGICEDIT_MARKS")

CATEGORY = "magicedit"
CONTROLS = (*NAMES, *GEOMETRIC)  # of models that compose; others say which of them they lack
OWN = "model's own"  # what a quality or a device is called that is left to the model
NO_EMOTION = "none"
DEVICES = (OWN, "cpu", "cuda", "mps")
LARGEST_SEED = 2**53 - 1  # a browser's numbers are exact up to here
SHOWN_FRAMES = 3  # of a video, in its node

# Words that people use, before the names in FACS; the other controls' descriptions are plain already
WORDS = {
    "AU1": "inner brows up", "AU2": "outer brows up", "AU4": "frown", "AU5": "eyes wide",
    "AU6": "cheeks up", "AU9": "wrinkled nose", "AU12": "smile", "AU15": "mouth corners down",
    "AU17": "chin up", "AU20": "mouth stretched", "AU25": "lips apart", "AU26": "jaw open",
}  # fmt: skip


def schema(*, aliases: tuple[str, ...] = (), **definition) -> io.Schema:
    """Returns a node's definition; the search of older ComfyUI reads only its title."""
    if "search_aliases" in {field.name for field in dataclasses.fields(io.Schema)}:
        definition["search_aliases"] = list(aliases)
    return io.Schema(category=CATEGORY, **definition)


def watch() -> editing.Watch:
    """Returns the progress callback of the running node, which stops the node when the user cancels.

    Without pictures: ComfyUI's page would keep showing the last of them in place of the result.
    """
    bar = comfy.utils.ProgressBar(1)

    def seen(done: int, total: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        bar.update_absolute(done, total)

    return seen


def shown(node: type[io.ComfyNode], edited: editing.Edited, pictures: int | None = None) -> io.NodeOutput:
    """Returns a node's outputs and shows its images in the node: all, or `pictures` evenly spaced ones."""
    images = edited.images
    if pictures is not None and len(images) > pictures:
        images = images[np.linspace(0, len(images) - 1, pictures).round().astype(int).tolist()]
    outputs = edited.images, edited.report, edited.masks, edited.marks
    return io.NodeOutput(*outputs, ui=ui.PreviewImage(images, cls=node))


def _edited_outputs(images: str = "image") -> list:
    """Returns the outputs of nodes that edit. New ones go last: saved workflows hold them by position."""
    return [
        io.Image.Output(display_name=images),
        io.String.Output(display_name="report"),
        io.Mask.Output(display_name="mask", tooltip="1 where the edit changed pixels"),
        Marks.Output(display_name="marks", tooltip="what Save edited image writes into the file"),
    ]


def _faces(default: str) -> io.String.Input:
    return io.String.Input("face", default=default, tooltip="all, largest, #2 (the second largest), #3 ...")


def _one_face() -> io.String.Input:
    return io.String.Input("face", default="largest", tooltip="largest, #2 (the second largest), #3 ...")


def _sampling() -> list:
    return [
        io.Combo.Input(
            "quality", options=[OWN, *QUALITIES], default=OWN, tooltip="how much time the model takes"
        ),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=LARGEST_SEED,
            control_after_generate=False,  # else every run is new, and its widget shifts saved values
            tooltip="of the initial noise, and of the choice of teeth",
        ),
    ]


def _keep_faceless() -> io.Boolean.Input:
    return io.Boolean.Input(
        "keep_faceless", default=False, tooltip="leave images without a face as they are, instead of failing"
    )


def _slider(control: Control) -> io.Float.Input:
    low, high = control.range if control.is_angle else (-5.0, 5.0)
    return io.Float.Input(
        control.name,
        display_name=f"{WORDS.get(control.name, control.description)} · {control.name}"
        + " (degrees)" * control.is_angle,
        tooltip=control.description,
        default=0.0,
        min=low,
        max=high,
        step=0.1,
        display_mode=io.NumberDisplay.slider,
    )


def _asked() -> list:
    return [
        io.String.Input("add", default="", tooltip="more variations, also of one side: AU12L=+2,AU2R=-1"),
        io.String.Input("set_to", default="", tooltip="intensities to arrive at, 0 to 5: AU12=2,AU25=0"),
        io.Combo.Input("emotion", options=[NO_EMOTION, *RECIPES], default=NO_EMOTION),
        io.Float.Input("emotion_strength", default=1.0, min=0.0, max=1.25, step=0.05),
        io.Boolean.Input(
            "neutral", default=False, tooltip="take the measured expression back; all else adds to that"
        ),
    ]


def _strength() -> io.Float.Input:
    return io.Float.Input(
        "strength", default=1.0, min=0.0, max=2.0, step=0.05, tooltip="share of the expression"
    )


def _reference() -> io.Image.Input:
    return io.Image.Input(
        "reference",
        optional=True,
        tooltip="other photographs of the person, whose teeth show where the mouth opens",
    )


def _quality(choice: str) -> str | None:
    return None if choice == OWN else choice


def _references(reference) -> list[np.ndarray]:
    return [] if reference is None else editing.photos_of(reference)


def _request(
    *,
    add: str,
    set_to: str,
    emotion: str,
    emotion_strength: float,
    neutral: bool,
    face: str,
    quality: str,
    seed: int,
    reference=None,
    **sliders: float,
) -> dict:
    """Returns arguments of `ExpressionEditor.edit` from the values of a node's inputs."""
    moved = [f"{name}={sliders[name]}" for name in CONTROLS if sliders.get(name)]
    return {
        "add": ",".join([*moved, *([add] if add.strip() else [])]) or None,
        "set": set_to.strip() or None,
        "emotion": None if emotion == NO_EMOTION else (emotion, emotion_strength),
        "neutral": neutral,
        "face": editing.face_choice(face),
        "quality": _quality(quality),
        "seed": seed,
        "references": _references(reference),
    }


class MagicEditLoadEditor(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MagicEditLoadEditor",
            display_name="Load expression editor",
            aliases=("magicedit", "face editor", "facial expression"),
            description="Loads an editor: mini (inside the package), a pipeline folder or a hub id.",
            inputs=[
                io.String.Input("model", default="mini", tooltip="mini, mini-live, a folder, or a hub id"),
                io.Combo.Input("device", options=list(DEVICES), default=OWN),
            ],
            outputs=[Editor.Output(display_name="editor")],
        )

    @classmethod
    def execute(cls, model: str, device: str) -> io.NodeOutput:
        return io.NodeOutput(editing.load(model, None if device == OWN else device))


class MagicEditExample(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MagicEditExample",
            display_name="Example portrait",
            aliases=("example face", "sample photograph"),
            description="A portrait to try the nodes on.",
            inputs=[io.Combo.Input("portrait", options=list(editing.EXAMPLES), default="calm")],
            outputs=[io.Image.Output(display_name="image")],
        )

    @classmethod
    def execute(cls, portrait: str) -> io.NodeOutput:
        image = editing.example(portrait)
        return io.NodeOutput(image, ui=ui.PreviewImage(image, cls=cls))


class MagicEditMeasure(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MagicEditMeasure",
            display_name="Measure faces (smile, gaze, AUs)",
            aliases=("action units", "FACS", "face detection", "emotion"),
            description="Finds faces and measures their action units, intensities from 0 to 5.",
            inputs=[Editor.Input("editor"), io.Image.Input("image"), _one_face()],
            outputs=[
                io.String.Output(display_name="text"),
                io.String.Output(display_name="json"),
                Expression.Output(display_name="expression"),
            ],
        )

    @classmethod
    def execute(cls, editor, image, face: str) -> io.NodeOutput:
        return io.NodeOutput(*editing.measure(editor, image, editing.face_choice(face), watch()))


class MagicEditEdit(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MagicEditEdit",
            display_name="Edit expression (smile, frown, gaze)",
            aliases=(
                *WORDS.values(),
                "laugh",
                "wink",
                "blink",
                "emotion",
                "head turn",
                "action unit",
                "FACS",
            ),
            description="Changes the expression of faces by action units. Sliders add to what is there; "
            "the rest of the picture stays as it is.",
            is_output_node=True,
            inputs=[
                Editor.Input("editor"),
                io.Image.Input("image"),
                *(_slider(control) for control in NAMES.controls),
                *_asked(),
                _faces("all"),
                *_sampling(),
                _keep_faceless(),
                # Last: saved workflows hold their values by position
                *(_slider(control) for control in GEOMETRIC.controls),
                _reference(),
            ],
            outputs=_edited_outputs(),
        )

    @classmethod
    def execute(cls, editor, image, keep_faceless: bool, **asked) -> io.NodeOutput:
        edited = editing.edit(editor, image, watch(), keep_faceless=keep_faceless, **_request(**asked))
        return shown(cls, edited)


class MagicEditSweep(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MagicEditSweep",
            display_name="Sweep one action unit (smile range)",
            aliases=("expression sweep", "range", "animate expression", "morph"),
            description="A batch of one image with an action unit at evenly spaced variations.",
            is_output_node=True,
            inputs=[
                Editor.Input("editor"),
                io.Image.Input("image"),
                io.Combo.Input("au", options=list(CONTROLS), default="AU12"),
                io.Float.Input("start", default=-3.0, min=-30.0, max=30.0, step=0.1),
                io.Float.Input("stop", default=5.0, min=-30.0, max=30.0, step=0.1),
                io.Int.Input("steps", default=5, min=2, max=100),
                _one_face(),
                *_sampling(),
            ],
            outputs=_edited_outputs("images"),
        )

    @classmethod
    def execute(cls, editor, image, face: str, quality: str, **asked) -> io.NodeOutput:
        asked |= {"face": editing.face_choice(face), "quality": _quality(quality)}
        return shown(cls, editing.sweep(editor, image, watch(), **asked))


class MagicEditExpressionFromImage(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MagicEditExpressionFromImage",
            display_name="Expression from image",
            aliases=("copy smile", "copy expression", "expression transfer"),
            description="The measured expression of one face of the first image.",
            inputs=[Editor.Input("editor"), io.Image.Input("image"), _one_face()],
            outputs=[Expression.Output(display_name="expression"), io.String.Output(display_name="text")],
        )

    @classmethod
    def execute(cls, editor, image, face: str) -> io.NodeOutput:
        expression = editing.expression_of(editor, image, editing.face_choice(face))
        return io.NodeOutput(expression, editing.text_of(expression))


class MagicEditExpressionFromText(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MagicEditExpressionFromText",
            display_name="Expression from text",
            aliases=("smile", "action units"),
            description="An expression written as AU12=3,AU25=1.",
            inputs=[
                io.String.Input("units", default="AU12=3", multiline=True),
                io.Boolean.Input(
                    "arrive",
                    default=True,
                    label_on="arrive at these intensities",
                    label_off="add these variations",
                ),
            ],
            outputs=[Expression.Output(display_name="expression")],
        )

    @classmethod
    def execute(cls, units: str, arrive: bool) -> io.NodeOutput:
        return io.NodeOutput(editing.expression_of_text(units, arrive))


class MagicEditApplyExpression(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MagicEditApplyExpression",
            display_name="Apply expression (copy a smile)",
            aliases=("expression transfer", "reenactment"),
            description="Puts an expression on faces; pose, light and identity stay those of the image.",
            is_output_node=True,
            inputs=[
                Editor.Input("editor"),
                io.Image.Input("image"),
                Expression.Input("expression"),
                _strength(),
                io.Boolean.Input("mirror", default=False, tooltip="exchange left and right"),
                _faces("all"),
                *_sampling(),
                _keep_faceless(),
                _reference(),
            ],
            outputs=_edited_outputs(),
        )

    @classmethod
    def execute(
        cls,
        editor,
        image,
        expression,
        strength: float,
        mirror: bool,
        face: str,
        quality: str,
        seed: int,
        keep_faceless: bool,
        reference=None,
    ) -> io.NodeOutput:
        edited = editing.edit(
            editor,
            image,
            watch(),
            keep_faceless=keep_faceless,
            expression=expression.mirrored() if mirror else expression,
            strength=strength,
            face=editing.face_choice(face),
            quality=_quality(quality),
            seed=seed,
            references=_references(reference),
        )
        return shown(cls, edited)


class MagicEditFrames(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MagicEditFrames",
            display_name="Edit video frames (smile, gaze)",
            aliases=("video expression", "face tracking", *WORDS.values()),
            description="Changes the expression of faces in the frames of a video: they are followed from "
            "frame to frame, and the edit is smoothed over time.",
            is_output_node=True,
            inputs=[
                Editor.Input("editor"),
                io.Image.Input("images", tooltip="the frames in order, as of Get Video Components"),
                io.Float.Input("fps", default=24.0, min=0.1, max=1000.0, step=0.01),
                *(_slider(control) for control in (*NAMES.controls, *GEOMETRIC.controls)),
                *_asked(),
                _faces("largest"),
                *_sampling(),
                io.Boolean.Input(
                    "smooth",
                    default=True,
                    tooltip="smooth the edit over time; faces are steadied in any case",
                ),
                Expression.Input("expression", optional=True, tooltip="an expression to put on as well"),
                _strength(),
                _reference(),
            ],
            outputs=_edited_outputs("images"),
        )

    @classmethod
    def execute(
        cls, editor, images, fps: float, smooth: bool, strength: float, expression=None, **asked
    ) -> io.NodeOutput:
        request = _request(**asked)
        if request["quality"] is None:
            request.pop("quality")  # then that of videos
        edited = editing.film(
            editor,
            images,
            watch(),
            fps,
            smooth=smooth,
            expression=expression,
            strength=strength,
            **request,
        )
        return shown(cls, edited, SHOWN_FRAMES)


class MagicEditSave(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MagicEditSave",
            display_name="Save edited image (marked as edited)",
            aliases=("save image", "provenance", "IPTC"),
            description="Saves PNG files that say that they were edited, by the IPTC digital source type, "
            "with the workflow as of Save Image.",
            is_output_node=True,
            inputs=[
                io.Image.Input("images"),
                Marks.Input("marks", tooltip="of the node that edited these images"),
                io.String.Input("filename_prefix", default="magicedit"),
            ],
        )

    @classmethod
    def execute(cls, images, marks, filename_prefix: str) -> io.NodeOutput:
        height, width = images.shape[1:3]
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
            filename_prefix, folder_paths.get_output_directory(), width, height
        )

        def path_of(number: int) -> Path:
            return Path(folder) / f"{name}_{counter + number:05}_.png"

        paths = editing.saved(images, marks, path_of, workflow_texts(cls))
        results = [ui.SavedResult(path.name, subfolder, io.FolderType.output) for path in paths]
        return io.NodeOutput(ui=ui.SavedImages(results))


def workflow_texts(node: type[io.ComfyNode]) -> dict[str, str]:
    """Returns the texts from which ComfyUI opens a file's workflow; none where metadata is disabled."""
    if args.disable_metadata or node.hidden is None:
        return {}
    texts = {"prompt": node.hidden.prompt, **(node.hidden.extra_pnginfo or {})}
    return {name: json.dumps(value) for name, value in texts.items() if value is not None}


NODES = [
    MagicEditLoadEditor,
    MagicEditMeasure,
    MagicEditEdit,
    MagicEditSweep,
    MagicEditExpressionFromImage,
    MagicEditExpressionFromText,
    MagicEditApplyExpression,
    MagicEditFrames,
    MagicEditExample,
    MagicEditSave,
]
