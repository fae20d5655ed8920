"""The part of ComfyUI's node API that comfyui/ uses, with the documented names of arguments, for machines
without ComfyUI: https://docs.comfy.org/custom-nodes/v3_migration. It holds definitions and runs nothing.
"""

import enum
import types
from dataclasses import dataclass, field


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
        self, id, *, default=None, min=None, max=None, step=None, round=None, display_mode=None, **others
    ):
        super().__init__(id, default=default, **others)
        self.min, self.max, self.step, self.display_mode = min, max, step, display_mode


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


class ComfyNode:
    pass


class NodeOutput:
    def __init__(self, *args, ui=None):
        self.args = args


class ComfyExtension:
    async def on_load(self):
        pass


io = types.SimpleNamespace(
    Custom=comfy_type,
    Image=comfy_type("IMAGE"),
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
