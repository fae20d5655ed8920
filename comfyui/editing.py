"""What the nodes do, on ComfyUI's tensors and without ComfyUI.

Images are (batch, height, width, 3) float tensors, 0 to 1, or 4 with alpha, which edits keep.
"""

import json
from typing import Any

import numpy as np
import torch

from magicedit.action_units import FACS
from magicedit.editor import EditResult, ExpressionEditor, face_to_json
from magicedit.errors import ImageError, NoFaceError
from magicedit.expression import Expression


def load(model: str, device: str | None = None) -> ExpressionEditor:
    """An editor by the name of an embedded model, a folder or a hub id; no code of the model's is run."""
    with torch.inference_mode(False):  # in which ComfyUI runs nodes; weights loaded so hide their changes
        return ExpressionEditor.from_pretrained(model.strip(), device=device)


def photos_of(images: torch.Tensor) -> list[np.ndarray]:
    """Pictures of a batch, each (height, width, 3 or 4) uint8 RGB, with alpha where the tensor has it.

    Raises:
        ImageError: where the tensor is no batch of RGB or RGBA pictures.
    """
    if images.ndim != 4 or images.shape[3] not in (3, 4) or not images.shape[0]:
        raise ImageError(
            f"expected images (batch, height, width, 3), or 4 with alpha, got {tuple(images.shape)}"
        )
    return list(images.detach().float().mul(255).round().clamp(0, 255).byte().cpu().numpy())


def joined(images: torch.Tensor, edited: list[np.ndarray]) -> torch.Tensor:
    """Edited pictures as a batch; where a pixel's 8 bits did not change, with the value that came in.

    images: (batch, height, width, 3, or 4 with alpha), or one for all of `edited`.
    """
    before = torch.from_numpy(np.stack(photos_of(images)))  # (batch or 1, height, width, 3 or 4)
    after = torch.from_numpy(np.stack(edited))  # (batch, height, width, 3 or 4)
    source = images.detach().float().cpu()
    return torch.where(before == after, source, after.float() / 255)


def measure(editor: ExpressionEditor, images: torch.Tensor, face: int) -> tuple[str, str, Expression]:
    """Faces of all pictures as text and as JSON, and the expression of one face of the first picture."""
    lines, content = [], []
    for number, photo in enumerate(photos_of(images)):
        faces = editor.measure(photo)
        content.append([face_to_json(found) for found in faces])
        for index, found in enumerate(faces):
            units = ", ".join(f"{name} {value:.1f}" for name, value in found.action_units.items())
            lines.append(f"image {number}, face {index}: {units}")
    return "\n".join(lines), json.dumps(content), expression_of(editor, images, face)


def expression_of(editor: ExpressionEditor, images: torch.Tensor, face: int) -> Expression:
    """As measured in the first picture. Errors as of `ExpressionEditor.expression`."""
    return editor.expression(photos_of(images)[0], face)


def expression_of_text(units: str, arrive: bool) -> Expression:
    """Of "AU12=3,AU25=1": intensities to arrive at, or variations to add. ActionUnitError as the parser."""
    parse = FACS.levels if arrive else FACS.deltas
    return Expression(parse(units), relative=not arrive, source="text")


def text_of(expression: Expression) -> str:
    """The inverse of `expression_of_text`."""
    return ",".join(f"{name}={value:.3g}" for name, value in expression.values.items())


def face_choice(text: str) -> str | int:
    text = text.strip().lower()
    return int(text) if text.isdecimal() and len(text) < 10 else text  # the editor says what it expects


def edit(
    editor: ExpressionEditor, images: torch.Tensor, *, keep_faceless: bool = False, **request: Any
) -> tuple[torch.Tensor, str]:
    """Every picture of the batch by one request, and what was asked and measured.

    Args:
        keep_faceless: whether pictures without the face that is asked for stay as they are.
        request: of `ExpressionEditor.edit`.
    """
    edited, lines = [], []
    for number, photo in enumerate(photos_of(images)):
        try:
            result = editor.edit(photo, **request)
        except NoFaceError as error:
            if not keep_faceless:
                raise
            edited.append(photo)
            lines.append(f"image {number}: left as it is, {error}")
            continue
        edited.append(np.asarray(result.image))
        lines += report_lines(result, f"image {number}")
    return joined(images, edited), "\n".join(lines)


def sweep(
    editor: ExpressionEditor,
    images: torch.Tensor,
    au: str,
    start: float,
    stop: float,
    steps: int,
    face: int = 0,
    **settings: Any,
) -> tuple[torch.Tensor, str]:
    """The first picture with one action unit at evenly spaced variations: (steps, height, width, 3)."""
    results = editor.sweep(photos_of(images)[0], au, start, stop, steps, face, **settings)
    lines = [line for index, result in enumerate(results) for line in report_lines(result, f"image {index}")]
    return joined(images[:1], [np.asarray(result.image) for result in results]), "\n".join(lines)


def report_lines(result: EditResult, name: str) -> list[str]:
    """A line for each face, and one for each warning."""
    lines = []
    for face in result.faces:
        parts = []
        for unit, delta in face.requested.items():
            measured = ""
            if face.after is not None and unit in face.before and unit in face.after:
                measured = f" (measured {face.before[unit]:.1f} -> {face.after[unit]:.1f})"
            parts.append(f"{unit} {delta:+.1f}{measured}")
        lines.append(f"{name}, face {face.index}: {', '.join(parts) or 'nothing asked'}")
        lines += [f"  warning: {warning}" for warning in face.warnings]
    return lines
