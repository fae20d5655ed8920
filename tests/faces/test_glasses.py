"""Glasses: who wears them, and what an edit leaves in place."""

import csv
from pathlib import Path

import numpy as np
import pytest

from magicedit import ExpressionEditor
from magicedit.editor.doubts import doubts_before
from magicedit.faces import Face, align, crop_face, editing_region, load_backend
from magicedit.faces.frame import face_frame
from magicedit.faces.glasses import glasses_presence, glasses_score
from magicedit.imaging import open_photo

SYNTHETIC = Path(__file__).resolve().parents[3] / "shared" / "faces" / "synthetic"


def presence_of(picture: np.ndarray, face: Face, size: int = 128) -> float:
    alignment = align(face, size)
    crop, landmarks = crop_face(picture, alignment), alignment.apply(face.landmarks)
    return glasses_presence(glasses_score(crop, landmarks, face.scheme))


def test_drawn_glasses_are_seen_and_a_bare_face_wears_none(with_glasses, closed_mouth):
    backend = load_backend()
    for picture, wears in ((with_glasses, True), (closed_mouth, False)):
        face = backend.detect(picture)[0]
        assert (presence_of(picture, face) == 1.0) == wears


@pytest.mark.skipif(not SYNTHETIC.is_dir(), reason="needs the validation portraits of ../shared")
def test_validation_portraits_with_glasses_are_told_from_those_without():
    """Nine of 42 wear some; the classifier was fitted to others, in crops of 128 px."""
    backend = load_backend()
    wrong = []
    for row in csv.DictReader((SYNTHETIC / "index.csv").open()):
        if row["split"] == "validation":
            pixels = open_photo(SYNTHETIC.parent / row["file"]).pixels
            face = backend.detect(pixels)[0]
            for size in (128, 512):
                if (presence_of(pixels, face, size) > 0.5) != ("glasses" in row["tags"]):
                    wrong.append((row["file"], size))
    assert wrong == []


def test_the_region_of_an_edit_spares_rims_and_moves_lids_and_mouth(closed_mouth):
    face = load_backend().detect(closed_mouth)[0]
    alignment = align(face, 256)
    landmarks = alignment.apply(face.landmarks)
    region = editing_region(landmarks, 256, face.scheme, glasses=1.0)
    iod = face_frame(landmarks).interocular

    def at(point) -> float:
        x, y = np.rint(point).astype(int)
        return float(region[y, x])

    for eye in landmarks[[468, 473]]:
        assert at(eye) > 0.9
        assert at(eye + np.array([0, 0.36 * iod])) < 0.05  # the lower rim
        assert at(eye - np.array([0, 0.36 * iod])) < 0.05
    assert at(landmarks[13]) == pytest.approx(1.0)
    assert at(landmarks[152]) > 0.9


def test_a_smile_does_not_bend_glasses(with_glasses):
    editor = ExpressionEditor.from_pretrained("mini")
    result = editor.edit(with_glasses, emotion="happiness")
    edited, face = np.asarray(result.image), editor.backend.detect(with_glasses)[0]
    iod = face_frame(face.landmarks).interocular
    for eye in face.landmarks[[468, 473]] + (0, 0.06 * iod):
        angles = np.linspace(0.15 * np.pi, 0.85 * np.pi, 40)  # the lower half of the rim
        places = eye + 0.38 * iod * np.stack([np.cos(angles), np.sin(angles)], 1)
        x, y = np.rint(places).astype(int).T
        assert with_glasses[y, x].mean() < 45  # it is the rim
        assert np.abs(edited[y, x].astype(int) - with_glasses[y, x]).mean() < 6
    mouth = np.rint(face.landmarks[14]).astype(int)
    box = slice(mouth[1] - 8, mouth[1] + 8), slice(mouth[0] - 8, mouth[0] + 8)
    assert np.abs(edited[box].astype(int) - with_glasses[box]).mean() > 20


def test_an_edit_of_brows_beside_glasses_says_so(with_glasses):
    editor = ExpressionEditor.from_pretrained("mini")
    (face,) = editor.edit(with_glasses, add={"AU1": 2}, measure=False).faces
    assert any("glasses" in warning for warning in face.warnings)


def test_brows_beside_glasses_are_warned_of(with_glasses, closed_mouth):
    backend = load_backend()
    cases = ((with_glasses, "AU1", True), (with_glasses, "AU12", False), (closed_mouth, "AU1", False))
    for picture, name, warned in cases:
        face = backend.detect(picture)[0]
        doubts = doubts_before(picture, face, {name: 2.0}, 64, presence_of(picture, face))
        assert any("glasses" in doubt for doubt in doubts) == warned
