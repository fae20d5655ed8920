"""Scores of one edit: measures the original once, and each result against it."""

import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from magicedit.errors import MagicEditError, NoFaceError
from magicedit.evaluation.circumstances import without_folders
from magicedit.evaluation.metrics.au_error import achieved_share, au_error, possible_change
from magicedit.evaluation.metrics.background import background_rmse
from magicedit.evaluation.metrics.expression_gain import expression_gain
from magicedit.evaluation.metrics.head_pose import pose_rmse_degrees, pose_rmse_matrix
from magicedit.evaluation.metrics.identity import descriptor_distance, embedding_cosine
from magicedit.evaluation.metrics.mobileface import load_mobileface
from magicedit.evaluation.metrics.mouth import mouth_window
from magicedit.evaluation.metrics.perceptual import load_lpips
from magicedit.evaluation.metrics.regions import change_by_region, unrequested_change
from magicedit.evaluation.metrics.st_lpips import load_st_lpips
from magicedit.evaluation.metrics.structure import finite_psnr, ssim
from magicedit.evaluation.subjects import Subject
from magicedit.faces import (
    Alignment,
    Face,
    align,
    crop_face,
    entangled,
    face_region,
    geometric_change,
    load_backend,
)
from magicedit.faces.backends import dlib as dlib_backend
from magicedit.faces.types import same_face
from magicedit.imaging import Photo
from magicedit.vocabulary import whole_name

CROP = 384  # px a side of the crops that are compared and kept
LPIPS_FACE = LPIPS_MOUTH = 128  # px a side of what ST-LPIPS sees; at 384 it takes a second of a core
TURNED = 15.0  # degrees of yaw or pitch from which on a head counts as turned
_REMEMBERED = 2  # originals
AU_COLUMNS = ("au_mse", "au_mae", "au_mse_asked", "achieved", "gain")  # of a row, each by scorer

SCORERS: dict[str, dict[str, Any]] = {
    "blendshapes": {
        "title": "MediaPipe blendshapes",
        "relation": "it labelled the photographs that mini was trained on, and sized the warp's muscles",
        "note": "intensities 0 to 5 from a network's expression scores; hardly sees AU5, AU6, AU9 and AU15",
    },
    "landmarks68": {
        "title": "dlib's 68 landmarks",
        "relation": "it labelled nothing of ours, but its full distances are those of the face mesh that "
        "gave the warp's muscles their directions",
        "note": "changes from the movement of landmarks of another network and family; for research use; "
        "errors leave out units that move the same points as the asked ones, which it cannot tell apart",
    },
}


@dataclass(frozen=True, eq=False)
class Measured:
    """A face measured by all scorers. crop: (CROP, CROP, 3) by the original's alignment."""

    face: Face
    crop: np.ndarray
    landmarks68: np.ndarray | None
    descriptor: np.ndarray | None
    embedding: np.ndarray | None
    mobileface: np.ndarray | None


@dataclass(frozen=True, eq=False)
class Original:
    """A subject's photograph, measured. landmarks: (points, 2) px of the crop. mask: (CROP, CROP) bool, where
    the face is."""

    photo: Photo
    alignment: Alignment
    landmarks: np.ndarray
    mask: np.ndarray
    measured: Measured


class Scoring:
    """Measures edits; not for several threads.

    aus: those that errors are taken over. skipped: metric -> why it is not measured here.
    """

    def __init__(self, aus: tuple[str, ...]):
        self.aus = aus
        self.backend = load_backend("mediapipe")
        self.skipped: dict[str, str] = {}
        if not dlib_backend.available():
            reason = "dlib and its models are not installed: pip install 'magicedit[evaluation]'"
            self.skipped |= {"identity_distance": reason, "landmarks68": reason}
        self._lpips = self._optional("lpips", load_lpips)
        self._arcface = self._optional("arcface_cosine", lambda: load_backend("insightface"))
        self._mobileface = self._optional("mobileface_cosine", load_mobileface)
        self._st_lpips = self._optional("st_lpips", load_st_lpips)
        self._optional("ssim", lambda: ssim(*[np.zeros((16, 16, 3), np.uint8)] * 2))
        self._originals: OrderedDict[str, Original] = OrderedDict()

    def _optional(self, name: str, load):
        """Result of `load`; None, with the reason in `skipped`, if packages or weights are missing."""
        try:
            return load()
        except MagicEditError as error:
            reason = re.split(r"[;\n]", str(error))[0]
            self.skipped[name] = without_folders(reason)
        return None

    def original(self, subject: Subject) -> Original:
        """The subject's photograph and its largest face. ImageError, NoFaceError."""
        if subject.name not in self._originals:
            photo = subject.open()
            faces = self.backend.detect(photo.pixels)
            if not faces:
                raise NoFaceError(f"no face was found in the photograph of {subject.name}")
            alignment = align(faces[0], CROP)
            landmarks = alignment.apply(faces[0].landmarks)
            mask = face_region(landmarks, CROP, faces[0].scheme)
            measured = self._measure(photo.pixels, faces[0], alignment)
            self._originals[subject.name] = Original(photo, alignment, landmarks, mask, measured)
            if len(self._originals) > _REMEMBERED:
                self._originals.popitem(last=False)
        self._originals.move_to_end(subject.name)
        return self._originals[subject.name]

    def score(
        self, original: Original, pixels: np.ndarray, asked: Mapping[str, float]
    ) -> tuple[dict[str, Any], np.ndarray]:
        """The measured part of a row, and the result's crop.

        Raises MagicEditError where the result has another shape, or its face is not found.
        """
        before = original.measured
        if pixels.shape != original.photo.pixels.shape or pixels.dtype != np.uint8:
            raise MagicEditError(
                f"the editor returned {pixels.dtype} {pixels.shape} for uint8 {original.photo.pixels.shape}"
            )
        pixels = np.ascontiguousarray(pixels)
        face = same_face(self.backend.detect(pixels), before.face.box)
        if face is None:
            raise NoFaceError("the face was not found again in the result")
        after = self._measure(pixels, face, original.alignment)

        intensities = {"blendshapes": before.face.action_units | before.face.sides}
        seen = face.action_units | face.sides
        changed = {"blendshapes": changed_from(intensities["blendshapes"], seen)}
        if after.landmarks68 is not None:
            changed["landmarks68"] = geometric_change(before.landmarks68, after.landmarks68, "ibug68")
        by_region = change_by_region(before.crop, after.crop, original.landmarks, before.face.scheme)
        row: dict[str, Any] = {"before": intensities, "changed": changed}
        row |= au_columns(asked, changed, intensities, self.aus)
        row |= {
            "identity_distance": _where_known(descriptor_distance, before.descriptor, after.descriptor),
            "arcface_cosine": _where_known(embedding_cosine, before.embedding, after.embedding),
            "mobileface_cosine": _where_known(embedding_cosine, before.mobileface, after.mobileface),
            "background_rmse": background_rmse(before.crop, after.crop, original.mask),
            "pose_degrees": pose_rmse_degrees(before.face.pose, face.pose),
            "pose_matrix": pose_rmse_matrix(before.face.pose, face.pose),
            "ssim": None if "ssim" in self.skipped else ssim(before.crop, after.crop),
            "lpips": None if self._lpips is None else self._lpips(before.crop, after.crop),
            **self._perceptual(original, after.crop),
            "change_by_region": by_region,
            "unrequested_change": unrequested_change(asked, by_region),
            "pixels_changed": int((pixels != original.photo.pixels).any(-1).sum()),
        }
        return row, after.crop

    def against(
        self,
        smile: Subject,
        original: Original,
        crop: np.ndarray,
        changed: Mapping[str, Mapping[str, float]],
    ) -> dict[str, Any]:
        """Compares an edit with the same person's real smile, each crop aligned by its own face.

        Returns `psnr_real` and `st_lpips_real` of the crops; `au_mse_real`, by scorer the mean squared
        difference of the changes of the action units, steps^2; `sharpness`, the mean absolute Laplacian of
        the square around the mouth over that of the smile's: below 1 is a blur.

        crop: of `score`. changed: by scorer, AU name -> change in steps. ImageError or NoFaceError where the
        smile's photograph has no face that is found.
        """
        real, before = self.original(smile), original.measured
        there = {"blendshapes": changed_from(before.face.action_units, real.measured.face.action_units)}
        if before.landmarks68 is not None:
            there["landmarks68"] = geometric_change(before.landmarks68, real.measured.landmarks68, "ibug68")
        errors = {
            scorer: float(np.mean([(changed[scorer][au] - found[au]) ** 2 for au in self.aus if au in found]))
            for scorer, found in there.items()
        }
        edited, smiling = (
            float(np.abs(cv2.Laplacian(cv2.cvtColor(window, cv2.COLOR_RGB2GRAY), cv2.CV_32F)).mean())
            for window in (
                picture[mouth_window(of.landmarks, of.measured.face.scheme, CROP)]
                for picture, of in ((crop, original), (real.measured.crop, real))
            )
        )
        small = (
            cv2.resize(picture, (LPIPS_FACE, LPIPS_FACE), interpolation=cv2.INTER_AREA)
            for picture in (real.measured.crop, crop)
        )
        return {
            "psnr_real": finite_psnr(crop, real.measured.crop),
            "st_lpips_real": None if self._st_lpips is None else self._st_lpips(*small),
            "au_mse_real": errors,
            "sharpness": edited / max(smiling, 1e-6),
        }

    def _perceptual(self, original: Original, after: np.ndarray) -> dict[str, float | None]:
        """ST-LPIPS of the crop and of the square around the original's mouth."""
        if self._st_lpips is None:
            return {"st_lpips": None, "st_lpips_mouth": None}
        before = original.measured.crop
        mouth = mouth_window(original.landmarks, original.measured.face.scheme, CROP)
        whole, close = (
            self._st_lpips(*(cv2.resize(p, (side, side), interpolation=cv2.INTER_AREA) for p in pair))
            for side, pair in ((LPIPS_FACE, (before, after)), (LPIPS_MOUTH, (before[mouth], after[mouth])))
        )
        return {"st_lpips": whole, "st_lpips_mouth": close}

    def _measure(self, pixels: np.ndarray, face: Face, alignment: Alignment) -> Measured:
        landmarks68 = descriptor = embedding = None
        if "landmarks68" not in self.skipped:
            landmarks68 = dlib_backend.landmarks68(pixels, face)
            descriptor = dlib_backend.descriptor(pixels, face)
        if self._arcface is not None:
            same = same_face(self._arcface.detect(pixels), face.box)
            embedding = None if same is None else same.embedding
        mobileface = None if self._mobileface is None else self._mobileface(pixels, face)
        return Measured(face, crop_face(pixels, alignment), landmarks68, descriptor, embedding, mobileface)


def changed_from(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """AU name -> change of the intensity, in steps, of what was measured after."""
    return {name: value - before[name] for name, value in after.items()}


def _where_known(
    compare: Callable[[np.ndarray, np.ndarray], float], before: np.ndarray | None, after: np.ndarray | None
) -> float | None:
    return None if before is None or after is None else compare(before, after)


def au_columns(
    asked: Mapping[str, float],
    changed: Mapping[str, Mapping[str, float]],
    before: Mapping[str, Mapping[str, float]],
    aus: tuple[str, ...],
) -> dict[str, dict[str, float | None]]:
    """`au_mse`, `au_mae`, `au_mse_asked`, `achieved` and `gain` of a row, each by scorer.

    A side requested alone counts separately in `achieved` and in the errors of the request; among `aus`, the
    whole unit should change by the mean of its sides. A scorer without intensities takes the starting level
    from the blendshapes. Landmarks cannot separate units that move the same points as the requested ones, so
    their errors leave these units out.
    """
    whole = dict(asked)
    for name, value in asked.items():
        if name not in aus:  # one side
            unit = whole_name(name)
            whole[unit] = whole.get(unit, 0.0) + value / 2
    columns: dict[str, dict[str, float | None]] = {name: {} for name in AU_COLUMNS}
    for scorer, changes in changed.items():
        start = before.get(scorer) or before.get("blendshapes", {})
        confused = entangled(whole, "ibug68") if scorer == "landmarks68" else ()
        error = au_error(whole, changes, start, tuple(au for au in aus if au not in confused))
        measured = tuple(name for name in asked if name in changes)
        columns["au_mse"][scorer] = error.mse
        columns["au_mae"][scorer] = error.mae
        columns["au_mse_asked"][scorer] = (
            au_error(asked, changes, start, measured).asked_mse if measured else None
        )
        columns["achieved"][scorer] = achieved_share(asked, changes, start)
        columns["gain"][scorer] = expression_gain(
            possible_change(whole, start), changes, (au for au in aus if au not in confused)
        )
    return columns


def head_group(face: Face) -> str:
    """ "frontal" or "turned", by the measured pose."""
    if face.pose is None:
        return "unknown"
    return "turned" if max(abs(face.pose.yaw), abs(face.pose.pitch)) >= TURNED else "frontal"


def rounded(value: Any) -> Any:
    """Rounds floats to five places: the precision of the measurements, and files of half the size."""
    if isinstance(value, Mapping):
        return {key: rounded(item) for key, item in value.items()}
    return round(value, 5) if isinstance(value, float) else value
