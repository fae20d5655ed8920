"""dlib's identity descriptor and its 68 landmarks; for evaluation only (an extra).

The descriptor has 128 numbers, which are close for photographs of one person. Its network and the five-point
predictor (both public domain, Davis King) are in the package `face_recognition_models`. So is the 68-point
predictor, whose training set (iBUG 300-W) excludes commercial use: it only scores, for research. That package
needs pkg_resources and no longer imports, so its files are found without importing it.
"""

import functools
import importlib.util
import threading
from pathlib import Path
from typing import Any

import numpy as np

from magicedit.errors import MissingDependencyError
from magicedit.faces.alignment import align, crop_face
from magicedit.faces.types import Face, check_pixels

_REMEDY = "dlib's measurements need the evaluation extra: pip install 'magicedit[evaluation]'"
_PREDICTOR, _NETWORK = "shape_predictor_5_face_landmarks.dat", "dlib_face_recognition_resnet_model_v1.dat"
_PREDICTOR_68 = "shape_predictor_68_face_landmarks.dat"

# The square that dlib's own frontal detector draws, in the unit square of our alignment: its centre and side.
# Mean over 60 photographs of 30 people (London Set, none of the validation identities); deviations 0.01 to
# 0.04. The predictor was trained on such squares.
_CENTRE, _SIDE = (0.50, 0.48), 0.674
_CROP_68 = 1024  # px a side
_computing = threading.Lock()  # the network keeps what its layers hold between two calls


def available() -> bool:
    """Whether dlib and its model files are installed."""
    return importlib.util.find_spec("dlib") is not None and _models_folder() is not None


def check() -> None:
    """Loads the descriptor's models; MissingDependencyError without the extra."""
    _predictor()
    _network()


def descriptor(pixels: np.ndarray, face: Face) -> np.ndarray:
    """The identity descriptor of a face in an RGB photograph: (128,) float64, of length about 1.

    Distances (L2) below 0.6 are the usual threshold for "the same person". MissingDependencyError without
    the extra.
    """
    return crop_descriptor(descriptor_crop(pixels, face))


def descriptor_crop(pixels: np.ndarray, face: Face) -> np.ndarray:
    """What `descriptor` sees of a face in an RGB photograph: (150, 150, 3) uint8, upright.

    MissingDependencyError without the extra.
    """
    pixels = check_pixels(pixels)
    dlib, predictor = _predictor()
    to_photograph = align(face, 1).inverse()
    centre = to_photograph[:, :2] @ (np.array(_CENTRE) - 0.5) + to_photograph[:, 2]
    half = _SIDE / 2 * float(np.hypot(*to_photograph[:, 0]))
    left, top, right, bottom = (round(float(v)) for v in (*(centre - half), *(centre + half)))
    return dlib.get_face_chip(pixels, predictor(pixels, dlib.rectangle(left, top, right, bottom)))


def crop_descriptor(crop: np.ndarray) -> np.ndarray:
    """The identity descriptor of a `descriptor_crop`: nearly all of the time of `descriptor`."""
    network = _network()
    with _computing:
        return np.array(network.compute_face_descriptor(crop))


def landmarks68(pixels: np.ndarray, face: Face) -> np.ndarray:
    """iBUG's 68 landmarks of a face in an RGB photograph, (68, 2) float64 px.

    They come from a regression on the picture that gets only the face's position. MissingDependencyError
    without the extra.
    """
    dlib, predictor = _predictor(_PREDICTOR_68)
    alignment = align(face, _CROP_68)  # enlarged and upright, because dlib returns whole pixels
    left, top = (_CROP_68 * (centre - _SIDE / 2) for centre in _CENTRE)
    side = _CROP_68 * _SIDE
    square = dlib.rectangle(round(left), round(top), round(left + side), round(top + side))
    shape = predictor(crop_face(pixels, alignment), square)
    points = np.array([(point.x, point.y) for point in shape.parts()], np.float64)
    to_photograph = alignment.inverse()
    return points @ to_photograph[:, :2].T + to_photograph[:, 2]


def _models_folder() -> Path | None:
    package = importlib.util.find_spec("face_recognition_models")
    for folder in package.submodule_search_locations or () if package else ():
        models = Path(folder) / "models"
        if (models / _PREDICTOR).is_file() and (models / _NETWORK).is_file():
            return models
    return None


@functools.cache
def _library() -> tuple[Any, Path]:
    """dlib and the folder of its models."""
    folder = _models_folder()
    if folder is None:
        raise MissingDependencyError(f"the model files of face-recognition-models are missing; {_REMEDY}")
    try:
        import dlib
    except ImportError as error:
        raise MissingDependencyError(f"the package dlib cannot be imported ({error}); {_REMEDY}") from error
    return dlib, folder


@functools.cache
def _predictor(file: str = _PREDICTOR) -> tuple[Any, Any]:
    dlib, folder = _library()
    return dlib, dlib.shape_predictor(str(folder / file))


@functools.cache
def _network() -> Any:
    dlib, folder = _library()
    return dlib.face_recognition_model_v1(str(folder / _NETWORK))
