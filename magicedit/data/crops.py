"""The row of a measured face: its aligned crop, region and measurements, without labels."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from magicedit.data.shards import MEASURED, Row, encoded, encoded_region
from magicedit.faces import Face, align, crop_face
from magicedit.faces.identity import identity_descriptor

MAX_YAW, MAX_PITCH = 40.0, 30.0  # degrees; beyond, half of the face is hidden and its landmarks unreliable


def is_far_turned(face: Face) -> bool:
    """Whether a head is turned too far to measure its face well; False where its pose is unknown."""
    return face.pose is not None and (abs(face.pose.yaw) > MAX_YAW or abs(face.pose.pitch) > MAX_PITCH)


def face_row(
    pixels: np.ndarray,
    face: Face,
    settings: Mapping[str, Any],
    *,
    source: str,
    identity: str,
    sha256: str,
    notes: Iterable[str] = (),
) -> Row:
    """Returns the row of a face in an RGB picture (height, width, 3) uint8; see `shards.features`.

    notes: of the picture; what the face itself gives reason for is added.
    """
    size, notes = settings["size"], list(notes)
    if is_far_turned(face):
        notes.append(f"turned far away: yaw {face.pose.yaw:.0f}, pitch {face.pose.pitch:.0f} degrees")
    alignment = align(face, size)
    if alignment.scale > 2:
        notes.append(f"small face, enlarged {alignment.scale:.1f} times")
    landmarks = alignment.apply(face.landmarks)
    return {
        "image": encoded(crop_face(pixels, alignment), settings["image_format"]),
        "mask": encoded_region(landmarks, size, face.scheme),
        "identity": identity,
        "source": source,
        "action_units": [],  # filled from the labels when the dataset is written
        "measured": [face.action_units.get(name, np.nan) for name in MEASURED] if face.action_units else [],
        "landmarks": np.asarray(landmarks, np.float32).reshape(-1).tolist(),
        "scheme": face.scheme,
        "pose": [face.pose.yaw, face.pose.pitch, face.pose.roll] if face.pose else [],
        "box": list(face.box),
        "notes": notes,
        "sha256": sha256,
        "descriptor": identity_descriptor(pixels, face).tolist() if "descriptor" in settings else [],
    }
