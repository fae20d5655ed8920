"""The layers of an edit, for compositing programs: where its pixels come from, and what was drawn over them.

    result = mouth over (paint over the photograph read at `source`)

holds to the byte. Movement is the model's own. What it does not explain (shading, eyes, a turned head, paint
of models that paint) is in `paint`, and what shows between the lips in `mouth`.

Layers have the photograph's size and are zero nearly everywhere. They are made by `np.zeros`, whose pages
take no memory until they are written; what has values everywhere is computed in bands of rows.
"""

from collections.abc import Iterator
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
BAND = 128  # rows


@dataclass(frozen=True, eq=False)
class Layers:
    """Layers of a photograph of height x width pixels, upright, all float32.

    shift: (height, width, 2), x and y in pixels: from each pixel to where the photograph is read.
    mask: (height, width), 0..1, the weight of the edit.
    paint, mouth: (height, width, 4), RGB 0..1 as encoded in the photograph, and alpha 0 or 1.
    """

    shift: np.ndarray
    mask: np.ndarray
    paint: np.ndarray
    mouth: np.ndarray

    @property
    def source(self) -> np.ndarray:
        """Where the photograph is read, by bicubic interpolation: (height, width, 2), x and y in pixels."""
        return _source_of(self.shift, slice(None))

    def st_map(self) -> np.ndarray:
        """Returns `source` as an STMap, (height, width, 2), 0..1 from left and bottom at pixel centres."""
        st = _planes(self.mask.shape, 2)
        size = np.float32(self.mask.shape[::-1])  # width, height
        for rows in _bands(len(st)):
            st[rows] = (_source_of(self.shift, rows) + np.float32(0.5)) / size
            st[rows, :, 1] = 1 - st[rows, :, 1]
        return st


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
        (change,) = changer.requested_changes([cut], [asked], settings, smiling=settings.mouths.smile)
        if change is None:
            continue
        _add_movement(shift, mask, cut.alignment, change, cut.region(change))
        own = pixels is not photo.pixels
        pixels = changer.carry(pixels, cut, change, asked, settings, in_place=own)

    # 2. Pixels that movement does not explain
    image = result.image if result.image.mode == "RGB" else result.image.convert("RGB")
    after, drawn = np.asarray(image), np.zeros(shape, bool)
    for rows in _bands(shape[0]):
        source = _source_of(shift, rows)
        moved = cv2.remap(photo.pixels, source, None, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)
        drawn[rows] = (after[rows] != moved).any(-1)
    between_lips = np.zeros(shape, np.uint8)
    for edit in result.faces if drawn.any() else ():
        face = editor._finder.find_again(after, faces[edit.index])
        if face is not None and face.scheme == "mediapipe478":
            outline = region_polygon(face.landmarks, face.scheme, "mouth")
            edge = max(1, round(LIPS_EDGE * float(np.ptp(outline[:, 0]))))
            cv2.fillPoly(between_lips, [np.rint(outline).astype(np.int32)], 1)
            cv2.polylines(between_lips, [np.rint(outline).astype(np.int32)], True, 1, 2 * edge)
    inside = between_lips.astype(bool)
    return Layers(shift, mask, _drawn(after, drawn & ~inside), _drawn(after, drawn & inside))


def _bands(height: int) -> Iterator[slice]:
    """Yields slices of at most BAND rows, which cover all."""
    for top in range(0, height, BAND):
        yield slice(top, min(top + BAND, height))


def _planes(shape: tuple[int, ...], channels: int) -> np.ndarray:
    """Returns zeros (height, width, channels) that lie channel by channel, as OpenEXR takes them."""
    return np.zeros((channels, *shape), np.float32).transpose(1, 2, 0)


def _source_of(shift: np.ndarray, rows: slice) -> np.ndarray:
    """Returns where these rows are read: (rows, width, 2), x and y in pixels."""
    part = shift[rows]
    y, x = np.indices(part.shape[:2], np.float32)
    return part + np.dstack([x, y + np.float32(rows.start or 0)])


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
    layer, drawn = _planes(where.shape, 4), np.nonzero(where)
    layer[..., :3][drawn] = pixels[drawn].astype(np.float32) / 255
    layer[..., 3][drawn] = 1
    return layer


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
    parts = {
        "st": zip("RG", layers.st_map().transpose(2, 0, 1), strict=True),
        "mask": [("A", layers.mask)],
        "paint": zip("RGBA", _in_linear_light(layers.paint).transpose(2, 0, 1), strict=True),
        "mouth": zip("RGBA", _in_linear_light(layers.mouth).transpose(2, 0, 1), strict=True),
    }
    header = {"compression": openexr.ZIP_COMPRESSION, "type": openexr.scanlineimage}
    written = [openexr.Part(dict(header), dict(channels), name) for name, channels in parts.items()]
    with replacing(path) as file:
        openexr.File(written).write(file.name)
    return Path(path)


def _in_linear_light(layer: np.ndarray) -> np.ndarray:
    """Returns the layer with its colours in linear light."""
    linear, drawn = _planes(layer.shape[:2], 4), np.nonzero(layer[..., 3])
    encoded = layer[..., :3][drawn]
    linear[..., :3][drawn] = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    linear[..., 3][drawn] = layer[..., 3][drawn]
    return linear
