"""magicedit: an editor of facial expressions controlled by FACS action units.

    from magicedit import ExpressionEditor

    editor = ExpressionEditor.from_pretrained("mini")
    editor.edit("photo.jpg", add={"AU12": 3}).save("smile.png")

`import magicedit` alone is cheap: torch and the face libraries are imported with the editor, on first use.
"""

import os
from typing import TYPE_CHECKING, Any

# From 1.29 on, ONNX Runtime sends data on its use to its publisher, unless this is set before it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from magicedit.editor import EditResult, ExpressionEditor, FaceEdit
    from magicedit.expression import Expression

__version__ = "0.1.0"

__all__ = ["EditResult", "Expression", "ExpressionEditor", "FaceEdit", "__version__"]


def __getattr__(name: str) -> Any:
    if name in ("EditResult", "ExpressionEditor", "FaceEdit"):
        from magicedit import editor

        return getattr(editor, name)
    if name == "Expression":
        from magicedit.expression import Expression

        return Expression
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
