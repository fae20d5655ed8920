"""The nodes: what they are called, what goes in and comes out. What they do is in `editing`."""

from comfy_api.latest import io

from magicedit.action_units import GEOMETRIC, NAMES, RECIPES
from magicedit.editor import QUALITIES
from magicedit.vocabulary import Control

from . import editing

Editor = io.Custom("MAGICEDIT_EDITOR")
Expression = io.Custom("MAGICEDIT_EXPRESSION")

CATEGORY = "magicedit"
CONTROLS = (*NAMES, *GEOMETRIC)  # of models that compose; others say which of them they lack
OWN = "model's own"  # what a quality or a device is called that is left to the model
NO_EMOTION = "none"
DEVICES = (OWN, "cpu", "cuda", "mps")
LARGEST_SEED = 2**53 - 1  # a browser's numbers are exact up to here


def _faces() -> io.String.Input:
    return io.String.Input("face", default="all", tooltip="all, largest, or a number from 0, the largest")


def _one_face() -> io.Int.Input:
    return io.Int.Input("face", default=0, min=0, max=99, tooltip="which face, counted from 0, the largest")


def _sampling() -> list:
    return [
        io.Combo.Input(
            "quality", options=[OWN, *QUALITIES], default=OWN, tooltip="how much time the model takes"
        ),
        io.Int.Input("seed", default=0, min=0, max=LARGEST_SEED, tooltip="of the initial noise"),
    ]


def _keep_faceless() -> io.Boolean.Input:
    return io.Boolean.Input(
        "keep_faceless", default=False, tooltip="leave images without a face as they are, instead of failing"
    )


def _slider(control: Control) -> io.Float.Input:
    low, high = control.range if control.is_angle else (-5.0, 5.0)
    return io.Float.Input(
        control.name,
        display_name=f"{control.name} {control.description}" + " (degrees)" * control.is_angle,
        default=0.0,
        min=low,
        max=high,
        step=0.1,
        display_mode=io.NumberDisplay.slider,
    )


def _quality(choice: str) -> str | None:
    return None if choice == OWN else choice


class MagicEditLoadEditor(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MagicEditLoadEditor",
            display_name="Load expression editor",
            category=CATEGORY,
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


class MagicEditMeasure(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MagicEditMeasure",
            display_name="Measure faces",
            category=CATEGORY,
            description="Finds faces and measures their action units, intensities from 0 to 5.",
            inputs=[Editor.Input("editor"), io.Image.Input("image"), _one_face()],
            outputs=[
                io.String.Output(display_name="text"),
                io.String.Output(display_name="json"),
                Expression.Output(display_name="expression"),
            ],
        )

    @classmethod
    def execute(cls, editor, image, face: int) -> io.NodeOutput:
        return io.NodeOutput(*editing.measure(editor, image, face))


class MagicEditEdit(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MagicEditEdit",
            display_name="Edit expression",
            category=CATEGORY,
            description="Changes the expression of faces by action units. Sliders add to what is there; "
            "the rest of the picture stays as it is.",
            inputs=[
                Editor.Input("editor"),
                io.Image.Input("image"),
                *(_slider(control) for control in NAMES.controls),
                io.String.Input(
                    "add", default="", tooltip="more variations, also of one side: AU12L=+2,AU2R=-1"
                ),
                io.String.Input(
                    "set_to", default="", tooltip="intensities to arrive at, 0 to 5: AU12=2,AU25=0"
                ),
                io.Combo.Input("emotion", options=[NO_EMOTION, *RECIPES], default=NO_EMOTION),
                io.Float.Input("emotion_strength", default=1.0, min=0.0, max=1.25, step=0.05),
                io.Boolean.Input(
                    "neutral",
                    default=False,
                    tooltip="take the measured expression back; all else adds to that",
                ),
                _faces(),
                *_sampling(),
                _keep_faceless(),
                # Last: saved workflows hold their values by position
                *(_slider(control) for control in GEOMETRIC.controls),
                io.Image.Input(
                    "reference",
                    optional=True,
                    tooltip="other photographs of the person, whose teeth show where the mouth opens",
                ),
            ],
            outputs=[io.Image.Output(display_name="image"), io.String.Output(display_name="report")],
        )

    @classmethod
    def execute(
        cls,
        editor,
        image,
        add: str,
        set_to: str,
        emotion: str,
        emotion_strength: float,
        neutral: bool,
        face: str,
        quality: str,
        seed: int,
        keep_faceless: bool,
        reference=None,
        **sliders: float,
    ) -> io.NodeOutput:
        moved = [f"{name}={sliders[name]}" for name in CONTROLS if sliders.get(name)]
        images, report = editing.edit(
            editor,
            image,
            keep_faceless=keep_faceless,
            add=",".join([*moved, *([add] if add.strip() else [])]) or None,
            set=set_to.strip() or None,
            emotion=None if emotion == NO_EMOTION else (emotion, emotion_strength),
            neutral=neutral,
            face=editing.face_choice(face),
            quality=_quality(quality),
            seed=seed,
            references=() if reference is None else editing.photos_of(reference),
        )
        return io.NodeOutput(images, report)


class MagicEditSweep(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MagicEditSweep",
            display_name="Sweep one action unit",
            category=CATEGORY,
            description="A batch of one image with an action unit at evenly spaced variations.",
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
            outputs=[io.Image.Output(display_name="images"), io.String.Output(display_name="report")],
        )

    @classmethod
    def execute(
        cls,
        editor,
        image,
        au: str,
        start: float,
        stop: float,
        steps: int,
        face: int,
        quality: str,
        seed: int,
    ) -> io.NodeOutput:
        return io.NodeOutput(
            *editing.sweep(editor, image, au, start, stop, steps, face, quality=_quality(quality), seed=seed)
        )


class MagicEditExpressionFromImage(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MagicEditExpressionFromImage",
            display_name="Expression from image",
            category=CATEGORY,
            description="The measured expression of one face of the first image.",
            inputs=[Editor.Input("editor"), io.Image.Input("image"), _one_face()],
            outputs=[Expression.Output(display_name="expression"), io.String.Output(display_name="text")],
        )

    @classmethod
    def execute(cls, editor, image, face: int) -> io.NodeOutput:
        expression = editing.expression_of(editor, image, face)
        return io.NodeOutput(expression, editing.text_of(expression))


class MagicEditExpressionFromText(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MagicEditExpressionFromText",
            display_name="Expression from text",
            category=CATEGORY,
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
        return io.Schema(
            node_id="MagicEditApplyExpression",
            display_name="Apply expression",
            category=CATEGORY,
            description="Puts an expression on faces; pose, light and identity stay those of the image.",
            inputs=[
                Editor.Input("editor"),
                io.Image.Input("image"),
                Expression.Input("expression"),
                io.Float.Input("strength", default=1.0, min=0.0, max=2.0, step=0.05),
                io.Boolean.Input("mirror", default=False, tooltip="exchange left and right"),
                _faces(),
                *_sampling(),
                _keep_faceless(),
            ],
            outputs=[io.Image.Output(display_name="image"), io.String.Output(display_name="report")],
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
    ) -> io.NodeOutput:
        images, report = editing.edit(
            editor,
            image,
            keep_faceless=keep_faceless,
            expression=expression.mirrored() if mirror else expression,
            strength=strength,
            face=editing.face_choice(face),
            quality=_quality(quality),
            seed=seed,
        )
        return io.NodeOutput(images, report)


NODES = [
    MagicEditLoadEditor,
    MagicEditMeasure,
    MagicEditEdit,
    MagicEditSweep,
    MagicEditExpressionFromImage,
    MagicEditExpressionFromText,
    MagicEditApplyExpression,
]
