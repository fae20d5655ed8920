"""Measuring faces, never generating them: detection, landmarks, pose, action units, regions, alignment."""

from typing import Any

from magicedit.faces.alignment import Alignment, align, crop_face
from magicedit.faces.gaze import gaze_of, levels_of
from magicedit.faces.geometry import entangled, geometric_change
from magicedit.faces.identity import IdentityCrop, identity_crop, identity_distance
from magicedit.faces.occlusion import covered_parts
from magicedit.faces.regions import (
    condition_image,
    editing_region,
    face_region,
    feathered_region,
    left_side,
    region_polygon,
)
from magicedit.faces.spread import distorted, levels_relative_to, spread_of
from magicedit.faces.types import Face, FaceBackend, Found, Gaze, Pose, search

BACKENDS = ("mediapipe", "insightface")

__all__ = [
    "BACKENDS",
    "Alignment",
    "Face",
    "FaceBackend",
    "Found",
    "Gaze",
    "IdentityCrop",
    "Pose",
    "align",
    "condition_image",
    "covered_parts",
    "crop_face",
    "distorted",
    "editing_region",
    "entangled",
    "face_region",
    "feathered_region",
    "gaze_of",
    "geometric_change",
    "identity_crop",
    "identity_distance",
    "left_side",
    "levels_of",
    "levels_relative_to",
    "load_backend",
    "region_polygon",
    "search",
    "spread_of",
]


def load_backend(name: str = "mediapipe", **settings: Any) -> FaceBackend:
    """Creates the named backend with these settings; its library is imported only here."""
    if name == "mediapipe":
        from magicedit.faces.backends.mediapipe import MediaPipeBackend

        return MediaPipeBackend(**settings)
    if name == "insightface":
        from magicedit.faces.backends.insightface import InsightFaceBackend

        return InsightFaceBackend(**settings)
    raise ValueError(f"no face backend {name!r}; there are {', '.join(BACKENDS)}")
