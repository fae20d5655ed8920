"""Frames between two photographs of one person, for models that know the flow between them."""

from collections.abc import Sequence

import cv2
import numpy as np
import PIL.Image

from magicedit.editor.editor import ExpressionEditor
from magicedit.editor.finding import PhotoLike, select_faces
from magicedit.errors import MagicEditError, ModelError
from magicedit.faces import align, crop_face
from magicedit.imaging import open_photo
from magicedit.warping.warp import read_at


def interpolate_photographs(
    editor: ExpressionEditor,
    first: PhotoLike,
    second: PhotoLike,
    frames: int = 9,
    *,
    size: int = 512,
    face: str | int = "largest",
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
    crops = [_crops(editor, *one, size) for one in ((first, which), (second, "largest"))]
    small, large = zip(*crops, strict=True)
    ends = [PIL.Image.fromarray(crop) for crop in large]
    if frames == 2:
        return ends
    blend = model.between(*small, np.linspace(0, 1, frames)[1:-1].tolist())
    between = []
    for first_flow, second_flow, share in zip(blend.first, blend.second, blend.share, strict=True):
        moved = [_moved(crop, flow) for crop, flow in zip(large, (first_flow, second_flow), strict=True)]
        share = cv2.resize(share, (size, size), interpolation=cv2.INTER_LINEAR)[..., None]
        blended = share * moved[0] + (1 - share) * moved[1]
        between.append(PIL.Image.fromarray(np.rint(blended).astype(np.uint8)))
    return [ends[0], *between, ends[1]]


def _crops(editor: ExpressionEditor, photo: PhotoLike, face: str | int, size: int) -> Sequence[np.ndarray]:
    """The crop of a face at the model's resolution, and at `size` px."""
    photo = open_photo(photo)
    (found,) = select_faces(editor.measure(photo), face, photo)
    alignment = align(found, editor.changer.model.resolution)
    return [crop_face(photo.pixels, place) for place in (alignment, alignment.scaled(size))]


def _moved(crop: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """A crop (size, size, 3) read along a smaller flow (s, s, 2) px of its own grid."""
    factor = len(crop) / len(flow)
    return read_at(crop, cv2.resize(flow, crop.shape[:2], interpolation=cv2.INTER_CUBIC) * factor)
