"""The part of ComfyUI's node API that comfyui/ uses, with the documented names of arguments, for machines
without ComfyUI: https://docs.comfy.org/custom-nodes/v3_migration. It holds definitions and runs nothing;
of a running ComfyUI it has what nodes report to and ask: the progress bar, Cancel and the output folder.
"""

import enum
import types
from dataclasses import dataclass, field
from typing import ClassVar


class Input:
    io_type = ""

    def __init__(self, id, display_name=None, optional=False, tooltip=None, lazy=None, extra_dict=None):
        self.id, self.optional = id, optional


class Output:
    io_type = ""

    def __init__(self, id=None, display_name=None, tooltip=None, is_output_list=False):
        self.id, self.display_name = id, display_name


class Widget(Input):
    """An input that the node itself shows a value for."""

    def __init__(
        self, id, display_name=None, optional=False, tooltip=None, lazy=None, default=None, socketless=None
    ):
        super().__init__(id, display_name, optional, tooltip, lazy)
        self.default = default


class BooleanInput(Widget):
    def __init__(self, id, *, default=None, label_on=None, label_off=None, **others):
        super().__init__(id, default=default, **others)


class NumberInput(Widget):
    def __init__(
        self, id, *, default=None, min=None, max=None, step=None, round=None, display_mode=None,
        control_after_generate=None, **others,
    ):  # fmt: skip
        super().__init__(id, default=default, **others)
        self.min, self.max, self.step, self.display_mode = min, max, step, display_mode
        self.control_after_generate = control_after_generate


class StringInput(Widget):
    def __init__(self, id, *, default=None, multiline=False, placeholder=None, **others):
        super().__init__(id, default=default, **others)


class ComboInput(Widget):
    def __init__(self, id, *, options, default=None, **others):
        super().__init__(id, default=default, **others)
        self.options = options


class NumberDisplay(enum.StrEnum):
    number = "number"
    slider = "slider"


def comfy_type(io_type: str, input_class: type = Input) -> types.SimpleNamespace:
    return types.SimpleNamespace(
        io_type=io_type,
        Input=type("Input", (input_class,), {"io_type": io_type}),
        Output=type("Output", (Output,), {"io_type": io_type}),
    )


@dataclass
class Schema:
    node_id: str
    category: str
    display_name: str | None = None
    inputs: list = field(default_factory=list)
    outputs: list = field(default_factory=list)
    hidden: list = field(default_factory=list)
    description: str = ""
    is_output_node: bool = False
    search_aliases: list = field(default_factory=list)


class ComfyNode:
    hidden = None


class NodeOutput:
    def __init__(self, *args, ui=None):
        self.args, self.ui = args, ui


class ComfyExtension:
    async def on_load(self):
        pass


io = types.SimpleNamespace(
    Custom=comfy_type,
    FolderType=enum.StrEnum("FolderType", ("input", "output", "temp")),
    Image=comfy_type("IMAGE"),
    Mask=comfy_type("MASK"),
    String=comfy_type("STRING", StringInput),
    Int=comfy_type("INT", NumberInput),
    Float=comfy_type("FLOAT", NumberInput),
    Boolean=comfy_type("BOOLEAN", BooleanInput),
    Combo=comfy_type("COMBO", ComboInput),
    NumberDisplay=NumberDisplay,
    Schema=Schema,
    ComfyNode=ComfyNode,
    NodeOutput=NodeOutput,
)


class PreviewImage:
    def __init__(self, image, animated=False, cls=None):
        self.image = image


class SavedResult(dict):
    def __init__(self, filename, subfolder, type):
        super().__init__(filename=filename, subfolder=subfolder, type=type.value)


class SavedImages:
    def __init__(self, results, is_animated=False):
        self.results = results


ui = types.SimpleNamespace(PreviewImage=PreviewImage, SavedResult=SavedResult, SavedImages=SavedImages)


class ProgressBar:
    """`seen` has (done, total) of all bars; the user cancels at `cancel_at` done."""

    seen: ClassVar[list] = []
    cancel_at = None

    def __init__(self, total, node_id=None):
        self.total = total

    def update_absolute(self, value, total=None, preview=None):
        self.seen.append((value, total))


class InterruptProcessingException(Exception):
    pass


def throw_exception_if_processing_interrupted():
    bar = ProgressBar
    if bar.cancel_at is not None and bar.seen and bar.seen[-1][0] >= bar.cancel_at:
        raise InterruptProcessingException


def get_save_image_path(filename_prefix, output_dir, image_width=0, image_height=0):
    """Folder, name, number of the next file, folder within `output_dir`, prefix; as folder_paths has it."""
    return output_dir, filename_prefix, 1, "", filename_prefix


output_directory = ""  # of the test that saves


def modules() -> dict[str, types.ModuleType]:
    """What nodes import, by the names of ComfyUI's modules."""

    def module(name, **content):
        made = types.ModuleType(name)
        vars(made).update(content)
        return made

    utils = module("comfy.utils", ProgressBar=ProgressBar)
    management = module(
        "comfy.model_management",
        throw_exception_if_processing_interrupted=throw_exception_if_processing_interrupted,
        InterruptProcessingException=InterruptProcessingException,
    )
    args = module("comfy.cli_args", args=types.SimpleNamespace(disable_metadata=False))
    latest = module("comfy_api.latest", io=io, ui=ui, ComfyExtension=ComfyExtension)
    paths = module(
        "folder_paths",
        get_save_image_path=get_save_image_path,
        get_output_directory=lambda: output_directory,
    )
    comfy = module("comfy", utils=utils, model_management=management, cli_args=args)
    made = (comfy, utils, management, args, module("comfy_api", latest=latest), latest, paths)
    return {one.__name__: one for one in made}
