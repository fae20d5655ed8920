"""Boxes of faces, and which face of another picture is the same."""

import numpy as np
import pytest

from magicedit.faces.types import SAME_FACE_OVERLAP, Face, overlap, same_face


def face(*box: float) -> Face:
    return Face(box=box, landmarks=np.zeros((68, 2), np.float32), scheme="ibug68", score=1.0)


def test_overlap_is_intersection_over_union():
    assert overlap((0, 0, 10, 10), (5, 0, 15, 10)) == pytest.approx(50 / 150)
    assert overlap((0, 0, 10, 10), (10, 0, 20, 10)) == 0


def test_the_same_face_is_the_one_that_overlaps_most():
    near, nearer, elsewhere = face(4, 0, 14, 10), face(1, 0, 11, 10), face(50, 0, 60, 10)
    assert same_face([near, nearer, elsewhere], (0, 0, 10, 10)) is nearer
    assert same_face([elsewhere], (0, 0, 10, 10)) is None
    assert same_face([], (0, 0, 10, 10)) is None


def test_a_face_that_overlaps_too_little_is_another():
    assert same_face([face(0, 0, 10, 100 * SAME_FACE_OVERLAP)], (0, 0, 10, 100)) is not None
    assert same_face([face(0, 0, 10, 99 * SAME_FACE_OVERLAP)], (0, 0, 10, 100)) is None
