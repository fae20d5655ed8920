"""Frames between two photographs of one person, for models that know the flow between them."""

from collections.abc import Sequence

import cv2
import numpy as np
import PIL.Image

from magicedit.editor.editor import ExpressionEditor
from magicedit.editor.finding import PhotoLike, select_faces
from magicedit.editor.results import shown_model
from magicedit.errors import MagicEditError, ModelError
from magicedit.faces import align, crop_face
from magicedit.files import shown
from magicedit.imaging import Photo, open_photo
from magicedit.provenance import Mark
from magicedit.warping.warp import read_at


def interpolate_photographs(
    editor: ExpressionEditor,
    first: PhotoLike,
    second: PhotoLike,
    frames: int = 9,
    *,
    size: int = 512,
    face: str | int = "largest",
    match_colours: bool = False,
) -> list[PIL.Image.Image]:
    """Moves the face of one photograph into that of another, as aligned square pictures.

    The two ends are the photographs' own crops. Between them both crops are moved by upsampled flows and
    blended by confidence (Yeh et al. 2016, arXiv:1611.09961).

    Args:
        editor: with a model that has `between`, such as the flow autoencoder.
        first, second: photographs of one person.
        frames: number of pictures, both ends included, at least 2.
        size: px a side of the pictures.
        face: which face of the first photograph, for "all" the largest; of the second it is the largest.
        match_colours: bring both crops of a picture between the ends to the colours that lie as far between
            the photographs' (mean and spread in CIELAB; Reinhard et al. 2001, doi:10.1109/38.946629), so that
            light of two kinds does not show twice.

    Raises:
        ModelError: where the model cannot interpolate photographs.
        MagicEditError: where frames or size are too small, or a photograph shows no such face.
    """
    model = editor.changer.model
    if not hasattr(model, "between"):
        raise ModelError(f"the model {editor.model} cannot interpolate photographs; use a flow autoencoder")
    if frames < 2 or size < model.resolution:
        raise MagicEditError(
            f"expected at least 2 frames of at least {model.resolution} px, got {frames} of {size} px"
        )
    which = "largest" if face == "all" else face
    first, second = open_photo(first), open_photo(second)
    crops = [_crops(editor, *one, size) for one in ((first, which), (second, "largest"))]
    small, large = zip(*crops, strict=True)
    ends = [PIL.Image.fromarray(crop) for crop in large]
    if frames == 2:
        return ends
    shares = np.linspace(0, 1, frames)[1:-1]
    blend = model.between(*small, shares.tolist())
    between, colours = [], [_colours(crop) for crop in large] if match_colours else None
    for place, first_flow, second_flow, share in zip(
        shares, blend.first, blend.second, blend.share, strict=True
    ):
        moved = [_moved(crop, flow) for crop, flow in zip(large, (first_flow, second_flow), strict=True)]
        if colours is not None:
            wanted = (1 - place) * colours[0] + place * colours[1]
            moved = [_in_colours(crop, of, wanted) for crop, of in zip(moved, colours, strict=True)]
        share = cv2.resize(share, (size, size), interpolation=cv2.INTER_LINEAR)[..., None]
        blended = share * moved[0] + (1 - share) * moved[1]
        between.append(PIL.Image.fromarray(np.rint(blended).astype(np.uint8)))
    if editor.mark:
        other = second.source and shown(second.source.name)
        known = {"model": shown_model(editor.model), "fingerprint": editor.fingerprint, "towards": other}
        mark = Mark.of_edit(first.source, first.info, **known)
        for picture in between:
            mark.put_on(picture)
    return [ends[0], *between, ends[1]]


def _crops(editor: ExpressionEditor, photo: Photo, face: str | int, size: int) -> Sequence[np.ndarray]:
    """The crop of a face at the model's resolution, and at `size` px."""
    (found,) = select_faces(editor.measure(photo), face, photo)
    alignment = align(found, editor.changer.model.resolution)
    return [crop_face(photo.pixels, place) for place in (alignment, alignment.scaled(size))]


def _moved(crop: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """A crop (size, size, 3) read along a smaller flow (s, s, 2) px of its own grid."""
    factor = len(crop) / len(flow)
    return read_at(crop, cv2.resize(flow, crop.shape[:2], interpolation=cv2.INTER_CUBIC) * factor)


def _colours(crop: np.ndarray) -> np.ndarray:
    """(2, 3): means and standard deviations of a crop (size, size, 3) uint8 RGB in CIELAB."""
    lab = cv2.cvtColor(np.float32(crop) / 255, cv2.COLOR_RGB2LAB).reshape(-1, 3)
    return np.stack([lab.mean(0), lab.std(0)])


def _in_colours(crop: np.ndarray, has: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """A crop (size, size, 3) uint8 RGB with other means and standard deviations, (2, 3) of `_colours`."""
    lab = cv2.cvtColor(np.float32(crop) / 255, cv2.COLOR_RGB2LAB)
    lab = (lab - has[0]) * (wanted[1] / np.maximum(has[1], 1e-3)) + wanted[0]
    rgb = cv2.cvtColor(lab.astype(np.float32), cv2.COLOR_LAB2RGB)
    return np.rint(255 * rgb.clip(0, 1)).astype(np.uint8)
