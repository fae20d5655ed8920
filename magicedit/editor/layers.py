"""The layers of an edit, for compositing programs: where its pixels come from, and what was drawn over them.

    result = mouth over (paint over the photograph read at `source`)

holds to the byte. Movement is the model's own. What it does not explain (shading, eyes, a turned head, paint
of models that paint) is in `paint`, and what shows between the lips in `mouth`.
"""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from magicedit.change import Change
from magicedit.editor.editor import ExpressionEditor
from magicedit.editor.results import EditResult
from magicedit.errors import needs_extra
from magicedit.faces import Alignment
from magicedit.faces.regions import region_polygon
from magicedit.files import replacing
from magicedit.imaging import Photo
from magicedit.request import EditRequest
from magicedit.warping.change import weighted_flow, window_of

LIPS_EDGE = 0.04  # of the mouth's width, by which the mouth's layer reaches over the inner edge of the lips


@dataclass(frozen=True, eq=False)
class Layers:
    """Layers of a photograph of height x width pixels, upright, all float32.

    source: (height, width, 2), x and y in pixels: where the photograph is read, by bicubic interpolation.
    mask: (height, width), 0..1, the weight of the edit.
    paint, mouth: (height, width, 4), RGB 0..1 as encoded in the photograph, and alpha 0 or 1.
    """

    source: np.ndarray
    mask: np.ndarray
    paint: np.ndarray
    mouth: np.ndarray

    def st_map(self) -> np.ndarray:
        """Returns `source` as an STMap, (height, width, 2), 0..1 from left and bottom at pixel centres."""
        height, width = self.mask.shape
        s, t = (self.source + np.float32(0.5)).transpose(2, 0, 1) / np.float32([[[width]], [[height]]])
        return np.dstack([s, 1 - t])


def layers_of(editor: ExpressionEditor, photo: Photo, request: EditRequest, result: EditResult) -> Layers:
    """Returns the layers of an edit that `editor` made of `photo` by `request`; runs the model once more."""
    # 1. The movement of each face, in the order of the edit
    changer, settings = editor.changer, editor.sampling(**request.sampling())
    faces, pixels = editor.measure(photo), photo.pixels
    shape = pixels.shape[:2]
    shift, mask = np.zeros((*shape, 2), np.float32), np.zeros(shape, np.float32)
    for edit in result.faces:
        asked = edit.sent or edit.requested
        cut = changer.cut(pixels, faces[edit.index])
        (change,) = changer.requested_changes([cut], [asked], settings)
        if change is None:
            continue
        _add_movement(shift, mask, cut.alignment, change, cut.region(change))
        own = pixels is not photo.pixels
        pixels = changer.carry(pixels, cut, change, asked, settings, in_place=own)

    # 2. Pixels that movement does not explain
    y, x = np.indices(shape, np.float32)
    source = shift + np.dstack([x, y])
    after = np.asarray(result.image.convert("RGB"))
    moved = cv2.remap(photo.pixels, source, None, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)
    drawn = (after != moved).any(-1)
    between_lips = np.zeros(shape, np.uint8)
    for edit in result.faces if drawn.any() else ():
        face = editor._finder.find_again(after, faces[edit.index])
        if face is not None and face.scheme == "mediapipe478":
            outline = region_polygon(face.landmarks, face.scheme, "mouth")
            edge = max(1, round(LIPS_EDGE * float(np.ptp(outline[:, 0]))))
            cv2.fillPoly(between_lips, [np.rint(outline).astype(np.int32)], 1)
            cv2.polylines(between_lips, [np.rint(outline).astype(np.int32)], True, 1, 2 * edge)
    inside = between_lips.astype(bool)
    return Layers(source, mask, _drawn(after, drawn & ~inside), _drawn(after, drawn & inside))


def _add_movement(
    shift: np.ndarray, mask: np.ndarray, alignment: Alignment, change: Change, region: np.ndarray
) -> None:
    """Adds a change of a crop to the shift (height, width, 2) in pixels, as `warping.carry_change` moves it,
    and its weight to the mask."""
    window = window_of(region > 0, alignment, shift.shape)
    if window is None:
        return
    x0, y0, x1, y1 = window
    flow, weight = weighted_flow(change, region, alignment, window)
    y, x = np.mgrid[y0:y1, x0:x1].astype(np.float32)
    before = cv2.remap(
        shift, flow + np.dstack([x, y]), None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    shift[y0:y1, x0:x1] = flow + before  # of a face that was moved already
    mask[y0:y1, x0:x1] = np.maximum(mask[y0:y1, x0:x1], weight)


def _drawn(pixels: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Returns the pixels, (height, width, 4) 0..1, with alpha 1 where `where` is true; all 0 elsewhere."""
    return np.dstack([pixels.astype(np.float32) / 255, np.ones(where.shape, np.float32)]) * where[..., None]


def import_openexr():
    """Imports OpenEXR; MissingDependencyError where it is not installed."""
    with needs_extra("exr", "layers are written by the package OpenEXR"):
        import OpenEXR
    return OpenEXR


def save_layers(layers: Layers, path: str | Path) -> Path:
    """Writes layers as one OpenEXR file of four parts, 32-bit float; all or nothing. Returns the path.

    Parts: `st` (R, G: the STMap), `mask` (A), `paint` and `mouth` (RGBA). Colours are in linear light, by the
    transfer function of sRGB, as OpenEXR's are.

    Raises:
        MissingDependencyError: without the extra `exr`.
        OutputError: where the file cannot be written.
    """
    openexr = import_openexr()
    st = layers.st_map()
    parts = {
        "st": {"R": st[..., 0], "G": st[..., 1]},
        "mask": {"A": layers.mask},
        "paint": _channels(layers.paint),
        "mouth": _channels(layers.mouth),
    }
    header = {"compression": openexr.ZIP_COMPRESSION, "type": openexr.scanlineimage}
    written = [
        openexr.Part(dict(header), {k: np.ascontiguousarray(v) for k, v in channels.items()}, name)
        for name, channels in parts.items()
    ]
    with replacing(path) as file:
        openexr.File(written).write(file.name)
    return Path(path)


def _channels(layer: np.ndarray) -> dict[str, np.ndarray]:
    """Returns R, G, B in linear light, and A."""
    encoded = layer[..., :3]
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    colours = np.dstack([linear, layer[..., 3]]).astype(np.float32)
    return dict(zip("RGBA", colours.transpose(2, 0, 1), strict=True))
