"""What the nodes do, on ComfyUI's tensors and without ComfyUI.

Images are (batch, height, width, 3) float tensors, 0 to 1, or 4 with alpha, which edits keep.
`watch(done, total)` is called with progress: pictures done and asked for. If it raises, the work stops.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL.Image
import torch

from magicedit.action_units import FACS
from magicedit.editor import EditResult, ExpressionEditor, face_to_json
from magicedit.errors import ImageError, NoFaceError
from magicedit.expression import Expression
from magicedit.imaging import open_photo, save_image
from magicedit.provenance import Mark
from magicedit.request import face_number
from magicedit.video import Smoothing, VideoSettings, edit_frames
from magicedit.vocabulary import quoted

Watch = Callable[[int, int], None]

EXAMPLES = {"calm": "calm.jpg", "smile": "smile.jpg"}  # in the folder examples/


@dataclass(frozen=True, eq=False)
class Edited:
    """Edited pictures.

    images: (batch, height, width, 3, or 4 with alpha). report: request and measurement, one line per face.
    masks: (batch, height, width), 1 where the edit changed pixels and 0 where all of them are the input's.
    marks: of each picture, for `saved`; None where nothing was changed.
    """

    images: torch.Tensor
    report: str
    masks: torch.Tensor
    marks: list[Mark | None]


def load(model: str, device: str | None = None) -> ExpressionEditor:
    """Loads the editor of an embedded model, a folder or a hub id; runs no code of the model's."""
    with torch.inference_mode(False):  # in which ComfyUI runs nodes; weights loaded so hide their changes
        return ExpressionEditor.from_pretrained(model.strip(), device=device)


def example(name: str) -> torch.Tensor:
    """Returns a portrait of this folder, one of EXAMPLES, (1, height, width, 3)."""
    photo = open_photo(Path(__file__).parent / "examples" / EXAMPLES[name])
    return torch.from_numpy(photo.pixels.copy()).float()[None] / 255


def photos_of(images: torch.Tensor) -> list[np.ndarray]:
    """Returns the pictures of a batch, (height, width, 3 or 4) uint8 RGB each, with alpha where it has any.

    Raises:
        ImageError: where the tensor is no batch of RGB or RGBA pictures.
    """
    if images.ndim != 4 or images.shape[3] not in (3, 4) or not images.shape[0]:
        raise ImageError(
            f"expected images (batch, height, width, 3), or 4 with alpha, got {tuple(images.shape)}"
        )
    # One by one: the frames of a video may fill most of the memory
    return [image.detach().float().mul(255).round_().clamp_(0, 255).byte().cpu().numpy() for image in images]


def joined(images: torch.Tensor, before: list[np.ndarray], edited: list[np.ndarray]) -> torch.Tensor:
    """Returns edited pictures as a batch; where a pixel's 8 bits did not change, with the value that came in.

    images: (batch, height, width, 3, or 4 with alpha), or one for all of `edited`. before: its pictures.
    """
    result = torch.empty((len(edited), *images.shape[1:]))
    sources = images.detach().expand(result.shape)
    for place, source, old, new in zip(result, sources, before, edited, strict=True):
        pixels = np.where(old == new, source.float().cpu().numpy(), new.astype(np.float32) / 255)
        place.copy_(torch.from_numpy(pixels))
    return result


def changed_region(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Returns (height, width) float32, 1 where pixels differ and inside such regions, 0 elsewhere.

    before, after: (height, width, channels) of one shape.
    """
    differ = (before != after).any(-1).astype(np.uint8)
    outlines, _ = cv2.findContours(differ, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(differ, outlines, -1, 1, cv2.FILLED).astype(np.float32)


def collected(
    images: torch.Tensor, edited: list[np.ndarray], lines: list[str], marks: list[Mark | None]
) -> Edited:
    """Returns the edit of `images`, (batch, height, width, 3 or 4), or of one for all of `edited`."""
    before = photos_of(images) * (len(edited) if len(images) == 1 else 1)
    masks = torch.empty((len(edited), *images.shape[1:3]))
    for mask, *pair in zip(masks, before, edited, strict=True):
        mask.copy_(torch.from_numpy(changed_region(*pair)))
    return Edited(joined(images, before, edited), "\n".join(lines), masks, marks)


def measure(
    editor: ExpressionEditor, images: torch.Tensor, face: str | int, watch: Watch
) -> tuple[str, str, Expression]:
    """Returns the faces of all pictures as text and JSON, and the expression of one face of the first one."""
    lines, content = [], []
    photos = photos_of(images)
    for number, photo in enumerate(photos):
        watch(number, len(photos))
        faces = editor.measure(photo)
        content.append([face_to_json(found, index) for index, found in enumerate(faces)])
        for index, found in enumerate(faces):
            units = ", ".join(f"{name} {value:.1f}" for name, value in found.action_units.items())
            lines.append(f"image {number}, face {index + 1}: {units}")
    return "\n".join(lines), json.dumps(content), expression_of(editor, images, face)


def expression_of(editor: ExpressionEditor, images: torch.Tensor, face: str | int) -> Expression:
    """Returns the expression measured in the first picture; errors as in `ExpressionEditor.expression`."""
    return editor.expression(photos_of(images)[0], face)


def expression_of_text(units: str, arrive: bool) -> Expression:
    """Returns the expression of a text such as "AU12=3,AU25=1"; ActionUnitError where it is invalid.

    arrive: whether its numbers are target intensities; else variations.
    """
    parse = FACS.levels if arrive else FACS.deltas
    return Expression(parse(units), relative=not arrive, source="text")


def text_of(expression: Expression) -> str:
    """Returns the text of an expression, which `expression_of_text` reads."""
    return ",".join(f"{name}={value:.3g}" for name, value in expression.values.items())


def face_choice(text: str) -> str | int:
    """Returns the `face` of a request: a word, or the index from 0 of a number such as "#2", from 1.

    Raises NoFaceError for anything else, and for a bare number: workflows saved by earlier versions hold
    such, counted from 0.
    """
    text = text.strip().lower()
    number = text.removeprefix("#")
    if text in ("all", "largest"):
        return text
    if not number.isdecimal() or len(number) > 9:
        raise NoFaceError(
            f"expected all, largest, or a number such as #1, the largest face, got {quoted(text)}"
        )
    if number == text:
        raise NoFaceError(
            f'expected all, largest, or a number such as #1, the largest face, got "{text}"; one without '
            f"# is of a workflow that counts faces from 0: write #{int(number) + 1}"
        )
    return face_number(number)


def edit(
    editor: ExpressionEditor,
    images: torch.Tensor,
    watch: Watch,
    *,
    keep_faceless: bool = False,
    **request: Any,
) -> Edited:
    """Edits every picture of a batch by one request.

    Args:
        keep_faceless: whether pictures without the requested face stay as they are.
        request: as in `ExpressionEditor.edit`.
    """
    edited, lines, marks = [], [], []
    photos = photos_of(images)
    for number, photo in enumerate(photos):
        try:
            result = _edited(editor, photo, watch, number, len(photos), **request)
        except NoFaceError as error:
            if not keep_faceless:
                raise
            edited.append(photo)
            marks.append(None)
            lines.append(f"image {number}: left as it is, {error}")
            continue
        edited.append(np.asarray(result.image))
        marks.append(Mark.carried(result.image))
        lines += report_lines(result, f"image {number}")
    return collected(images, edited, lines, marks)


def sweep(
    editor: ExpressionEditor,
    images: torch.Tensor,
    watch: Watch,
    au: str,
    start: float,
    stop: float,
    steps: int,
    **request: Any,
) -> Edited:
    """Edits the first picture by evenly spaced variations of one action unit, both ends included.

    Pictures are made one by one, so that `watch` can stop a long sweep.
    request: as in `ExpressionEditor.edit`.
    """
    (photo,) = photos_of(images[:1])
    results = [
        _edited(editor, photo, watch, number, steps, add={au: float(value)}, **request)
        for number, value in enumerate(np.linspace(start, stop, steps))
    ]
    lines = [line for index, result in enumerate(results) for line in report_lines(result, f"image {index}")]
    pictures = [np.asarray(result.image) for result in results]
    return collected(images[:1], pictures, lines, [Mark.carried(result.image) for result in results])


def _edited(
    editor: ExpressionEditor, photo: np.ndarray, watch: Watch, number: int, total: int, **request: Any
) -> EditResult:
    watch(number, total)
    result = editor.edit(photo, on_step=lambda step: watch(number, total), **request)
    watch(number + 1, total)
    return result


def film(
    editor: ExpressionEditor,
    images: torch.Tensor,
    watch: Watch,
    rate: float,
    *,
    smooth: bool = True,
    **request: Any,
) -> Edited:
    """Edits the frames of a video; follows faces from frame to frame, and fades edits in and out with them.

    Args:
        rate: frames per second.
        smooth: whether the model's changes are smoothed over time; faces always are.
        request: as in `magicedit.video.edit_frames`.
    """
    photos = photos_of(images)
    total = 2 * len(photos)  # each frame is searched, then edited
    smoothing = Smoothing() if smooth else replace(Smoothing(), change=None)
    result = edit_frames(
        editor,
        [photo[..., :3] for photo in photos],
        rate,
        settings=VideoSettings(smoothing=smoothing),
        progress=lambda done, frame: watch(done, total),
        **request,
    )
    edited = [
        np.dstack([after, before[..., 3:]]) for after, before in zip(result.frames, photos, strict=True)
    ]
    lines = [
        f"face {face.number + 1}: in {face.seen} of {len(edited)} frames, {face.seconds[0]:.2f} to "
        f"{face.seconds[1]:.2f} s"
        for face in result.faces
    ]
    lines += [f"changed frames: {sum(result.changed)}"]
    marks = [result.mark if changed else None for changed in result.changed]
    return collected(images, edited, lines, marks)


def saved(
    images: torch.Tensor, marks: Sequence[Mark | None], path_of: Callable[[int], Path], texts: dict[str, str]
) -> list[Path]:
    """Writes pictures as PNG with the marks of their edits, and returns the files.

    Args:
        marks: one for each picture, or one for all.
        path_of: the file of a picture's number.
        texts: of each file, such as ComfyUI's "workflow".

    Raises:
        ImageError: where the numbers of pictures and marks differ.
    """
    photos = photos_of(images)
    if len(marks) not in (1, len(photos)):
        raise ImageError(
            f"got {len(photos)} images and the marks of {len(marks)}; connect both outputs of the same node"
        )
    paths = []
    for number, photo in enumerate(photos):
        image = PIL.Image.fromarray(photo)
        image.info.update(texts)
        mark = marks[number if len(marks) > 1 else 0]
        if mark is not None:
            mark.put_on(image)
        paths.append(save_image(image, path_of(number)))
    return paths


def report_lines(result: EditResult, name: str) -> list[str]:
    """Returns a line for each face, and one for each warning."""
    lines = []
    for face in result.faces:
        parts = []
        for unit, delta in face.requested.items():
            measured = face.measurement_of(unit)
            parts.append(f"{unit} {delta:+.1f}{f' ({measured})' if measured else ''}")
        lines.append(f"{name}, face {face.index + 1}: {', '.join(parts) or 'nothing asked'}")
        lines += [f"  warning: {warning}" for warning in face.warnings]
    return lines
