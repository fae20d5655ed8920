"""The result of an edit: the picture and the measurements of each face."""

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import PIL.Image

from magicedit.action_units import UNSEEN
from magicedit.errors import ImageError, ModelError
from magicedit.faces import Face, Gaze, IdentityCrop, Pose, levels_of
from magicedit.faces.measure import is_seen_by_landmarks
from magicedit.faces.types import Box
from magicedit.files import opened, replacing, shown
from magicedit.imaging import Photo, check_output, is_file_of, save_image, strip
from magicedit.models.folder import INDEX, ModelFolder
from magicedit.provenance import Mark
from magicedit.vocabulary import whole_name

if TYPE_CHECKING:
    from magicedit.request import Sampling


@dataclass(frozen=True, eq=False)
class FaceEdit:
    """The request and the measurements of one face.

    Attributes:
        index: among the faces of the photograph, from the largest, 0.
        box: (x0, y0, x1, y1) in pixels of the upright photograph.
        pose: of the head, in degrees; None where the face backend measures none.
        requested: AU name -> variation in intensity steps, target minus source.
        before: AU name -> intensity 0 to 5 in the photograph by blendshapes, which hardly respond to some
            units, see `achieved`; empty where the backend measures none.
        after: the same in the result; None if it was not measured or the face was not found again.
        moved: AU name -> change in intensity steps from landmark movement alone, a second scorer that sees
            units the first misses, see `magicedit.faces.geometry`; None as for `after`, or without such
            landmarks.
        identity: the face before and after, cut out for `identity_distance`; None when not measured or
            without the `evaluation` extra.
        warnings: reasons to check the result by eye, in sentences.
        edits: number of edits made of this face; more than 1 in a closed loop.
        sent: AU name -> variation sent to the model. A closed loop corrects the request, and sends 0 if no
            edit shows the face. `ExpressionEditor.edit_faces` makes the same picture from it.
        reached: whether a closed loop came within its tolerance; None without one.
    """

    index: int
    box: tuple[float, float, float, float]
    pose: Pose | None
    requested: dict[str, float]
    before: dict[str, float]
    after: dict[str, float] | None
    moved: dict[str, float] | None
    identity: tuple[IdentityCrop, IdentityCrop] | None = field(repr=False)
    warnings: tuple[str, ...]
    edits: int = 1
    sent: dict[str, float] = field(default_factory=dict)
    reached: bool | None = None

    @property
    def identity_distance(self) -> float | None:
        """L2 of dlib's descriptors before and after, computed when it is read; None where `identity` is."""
        return self.identity and self.identity[0].distance(self.identity[1])

    @property
    def achieved(self) -> dict[str, float]:
        """AU name -> intensity in the result, of each requested unit that a scorer sees.

        Those that landmarks see better are `before` plus `moved`, not clipped; the others are as in `after`.
        It lacks UNSEEN units, units that are not measured, and all units where `after` is None.
        """
        if self.after is None:
            return {}
        moved = {name: change for name, change in (self.moved or {}).items() if is_seen_by_landmarks(name)}
        return {
            name: self.before[name] + moved[name] if name in moved else self.after[name]
            for name in self.requested
            if name in self.before and name in self.after and whole_name(name) not in UNSEEN
        }

    def measurement_of(self, name: str) -> str:
        """Returns in words what both scorers measure of a requested unit; "" where `after` is None."""
        if self.after is None:
            return ""
        if name not in self.before or name not in self.after:
            return "not measured"
        moved = (self.moved or {}).get(name)
        if whole_name(name) in UNSEEN:
            return "no measurement sees it well"
        by_landmarks = "" if moved is None else f"{moved:+z.1f} by landmarks"
        if by_landmarks and is_seen_by_landmarks(name):
            return f"measured {by_landmarks}"
        by_blendshapes = f"measured {self.before[name]:z.1f} -> {self.after[name]:z.1f}"
        return ", ".join(filter(None, (by_blendshapes, by_landmarks)))

    def to_json(self) -> dict[str, Any]:
        """Returns JSON-ready values, rounded to the precision of the measurements."""
        loop = {}
        if self.reached is not None:
            loop = {"reached": self.reached, "edits": self.edits, "sent": rounded(self.sent)}
        return {
            **numbers_of(self.index),
            "box": [round(float(edge), 1) for edge in self.box],
            "requested": rounded(self.requested),
            "before": rounded(self.before),
            "after": None if self.after is None else rounded(self.after),
            "moved": None if self.moved is None else rounded(self.moved),
            "achieved": rounded(self.achieved),
            "pose": pose_to_json(self.pose),
            "identity_distance": None if self.identity_distance is None else round(self.identity_distance, 4),
            "warnings": list(self.warnings),
            **loop,
        }


@dataclass(frozen=True, eq=False)
class EditResult:
    """An edited photograph.

    Attributes:
        image: upright, in the mode of the photograph, with its colour profile and metadata in `image.info`.
        faces: one entry per edited face, largest first.
        seconds: wall time of the edit, without loading the model.
        model: name, folder or hub id of the model.
        left_alone: number of detected faces that were not edited because a far larger one is present.
        lost: what the photograph's file holds and the result does not, as of `Photo.lost`.
        unchanged: the photograph's file, where the edit changed nothing and metadata stay; else None.
    """

    image: PIL.Image.Image
    faces: list[FaceEdit]
    seconds: float
    model: str
    left_alone: int = 0
    lost: tuple[str, ...] = ()
    unchanged: Path | None = None

    @property
    def marked(self) -> bool:
        """Whether the image is marked as edited: False if marks are switched off or nothing changed."""
        return Mark.carried(self.image) is not None

    def copies(self, path: str | Path) -> bool:
        """Whether `save` copies the photograph's file: nothing was changed, in `image` neither, and the
        format stays."""
        return self.unchanged is not None and is_file_of(self.unchanged, path, self.image)

    def save(self, path: str | Path, *, overwrite: bool = False, forbid: Path | None = None) -> Path:
        """Writes the image with its metadata and mark, see `imaging.save_image`, or copies the file that it
        `copies`."""
        self.write(path, overwrite=overwrite, forbid=forbid)
        return Path(path)

    def write(
        self, path: str | Path, *, overwrite: bool = False, forbid: Path | None = None
    ) -> tuple[str, ...]:
        """Writes as `save` does; returns what the photograph's file holds and the written one does not."""
        check_output(path, overwrite=overwrite, forbid=forbid)
        if self.copies(path):
            with opened(self.unchanged, ImageError) as source, replacing(path) as file:
                shutil.copyfileobj(source, file)
            return ()
        save_image(self.image, path, overwrite=overwrite, forbid=forbid)
        return self.lost


def mark_of(
    photo: Photo, model: str, fingerprint: str | None, sampling: "Sampling", faces: Sequence[FaceEdit]
) -> Mark:
    """Returns the mark of an edit of a photograph.

    model: its name, folder (of which the name is told) or hub id. fingerprint: see `fingerprint_of`.
    """
    asked = {
        name: getattr(sampling, name) for name in ("seed", "steps", "guidance", "quality", "noise_level")
    }
    return Mark.of_edit(
        photo.source,
        photo.info,
        model=shown_model(model),
        fingerprint=fingerprint,
        faces=[
            {"face": face.index, "requested": rounded(face.requested)}
            | ({"sent": rounded(face.sent)} if face.sent and face.sent != face.requested else {})
            for face in faces
        ],
        **asked,
    )


def shown_model(model: str) -> str:
    """Returns a model's name without the folders around it, which may tell a person's name."""
    return shown(Path(model).name if os.path.isabs(model) or os.path.isdir(model) else model)


def fingerprint_of(model: str) -> str | None:
    """Returns the fingerprint of a model's files; None for one that has none, or that was made in memory."""
    folder = ModelFolder.find(model)
    try:
        return folder.fetched(INDEX, local_files_only=True).fingerprint
    except ModelError:  # no model of a hub that was fetched
        return None


def measured_as_asked(face: Face, requested: Mapping[str, float]) -> dict[str, float]:
    """Returns the face's AUs, and of sides, gaze and head what is requested."""
    levels = levels_of(face)
    return face.action_units | {name: levels[name] for name in requested if name in levels}


def rounded(values: Mapping[str, float]) -> dict[str, float]:
    return {name: round(float(value), 3) for name, value in values.items()}


def pose_to_json(pose: Pose | None) -> dict[str, float] | None:
    """Degrees, rounded."""
    return pose and {axis: round(float(getattr(pose, axis)), 1) for axis in ("yaw", "pitch", "roll")}


def numbers_of(index: int) -> dict[str, int]:
    """Returns a face's index, from 0, and its number, from 1, as people count."""
    return {"face": index, "number": index + 1}


def gaze_to_json(gaze: Gaze | None) -> dict[str, float] | None:
    """Degrees, rounded; None where the face backend finds no irises."""
    return gaze and {axis: round(angle, 1) for axis, angle in gaze._asdict().items()}


def face_to_json(face: Face, index: int) -> dict[str, Any]:
    """Returns what `magicedit measure --json` prints for one face; index: among those of the photograph."""
    return {
        **numbers_of(index),
        "box": [round(float(edge), 1) for edge in face.box],
        "action_units": rounded(face.action_units),
        "sides": rounded(face.sides),
        "pose": pose_to_json(face.pose),
        "gaze": gaze_to_json(face.gaze),
        "score": round(float(face.score), 4),
    }


def face_window(box: Box, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Returns left, top, right, bottom px of a face's surroundings; `size`: photograph's width, height."""
    x0, y0, x1, y1 = box
    half = 0.8 * max(x1 - x0, y1 - y0)
    centre_x, centre_y = (x0 + x1) / 2, (y0 + y1) / 2
    width, height = size
    return (
        max(0, round(centre_x - half)),
        max(0, round(centre_y - half)),
        min(width, round(centre_x + half)),
        min(height, round(centre_y + half)),
    )


def face_pictures(results: Sequence[EditResult], side: int = 384) -> list[PIL.Image.Image]:
    """Returns the surroundings of the first edited face of each result of one photograph, RGB, equally sized.

    They have native resolution unless that exceeds `side` pixels.
    """
    window = face_window(results[0].faces[0].box, results[0].image.size)
    pictures = []
    for result in results:
        picture = result.image.convert("RGB").crop(window)
        picture.thumbnail((side, side), PIL.Image.Resampling.LANCZOS)
        pictures.append(picture)
    return pictures


def sweep_caption(face: FaceEdit) -> str:
    """Returns a caption with the request of one unit and its measurement."""
    ((name, delta),) = face.requested.items()
    measured = face.achieved.get(name)
    return f"{name} {delta:+z.1f}" + ("" if measured is None else f" ({measured:z.1f})")


def sweep_strip(
    results: Sequence[EditResult], side: int = 384, captions: Sequence[str] | None = None
) -> PIL.Image.Image:
    """Returns a row of pictures, the first edited face of each result of one photograph, with captions.

    captions: default: request and measurement, for results that each request one unit.
    """
    if captions is None:
        captions = [sweep_caption(result.faces[0]) for result in results]
    return strip(face_pictures(results, side), captions)
