"""dlib's identity descriptor on real faces."""

import itertools

import numpy as np
import pytest

from magicedit.errors import MissingDependencyError
from magicedit.faces import align, crop_face, identity_distance
from magicedit.faces.backends import dlib as room

needs_dlib = pytest.mark.skipif(
    not room.available(), reason="the evaluation extra (dlib, face-recognition-models) is not installed"
)


@needs_dlib
def test_persons_differ_more_than_expressions(backend, london):
    """Thirty identities: 0.22 (0.33 at most) neutral to smiling, 0.83 (0.58 at least) between persons."""
    shots = {}
    for identity in ("001", "036", "083"):
        for kind in ("neutral", "smiling"):
            photo = london(identity, kind)
            shots[identity, kind] = photo, backend.detect(photo)[0]
    for a, b in itertools.combinations(shots, 2):
        distance = identity_distance(*shots[a], *shots[b])
        if a[0] == b[0]:
            assert distance < 0.4, (a, b)
        else:
            assert distance > 0.5, (a, b)


@needs_dlib
def test_a_face_is_itself(backend, astronaut, astronaut_face):
    assert identity_distance(astronaut, astronaut_face, astronaut, astronaut_face) == 0.0
    alignment = align(astronaut_face, 400, margin=1.4)
    crop = crop_face(astronaut, alignment)
    (in_crop,) = backend.detect(crop)
    assert identity_distance(astronaut, astronaut_face, crop, in_crop) < 0.2


@needs_dlib
def test_our_box_serves_as_well_as_the_detectors(backend, london):
    """The descriptor from our landmarks' rectangle is that from dlib's own detection (0.03, 0.08 at most)."""
    import dlib

    photo = london("115", "neutral")
    (found,) = dlib.get_frontal_face_detector()(photo, 0)
    _, predictor, network = room._models()
    theirs = np.array(network.compute_face_descriptor(photo, predictor(photo, found)))
    ours = room.descriptor(photo, backend.detect(photo)[0])
    assert ours.shape == (128,)
    assert np.linalg.norm(ours - theirs) < 0.12


@needs_dlib
def test_a_descriptor_is_the_same_at_any_resolution(backend, astronaut, astronaut_face):
    import cv2

    large = cv2.resize(astronaut, None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC)
    (face,) = backend.detect(large)
    assert identity_distance(astronaut, astronaut_face, large, face) < 0.15


def test_without_the_extra_there_is_no_distance(astronaut, astronaut_face, monkeypatch):
    find = room.importlib.util.find_spec
    monkeypatch.setattr(
        room.importlib.util,
        "find_spec",
        lambda name: None if name == "face_recognition_models" else find(name),
    )
    room._models.cache_clear()
    assert identity_distance(astronaut, astronaut_face, astronaut, astronaut_face) is None
    with pytest.raises(MissingDependencyError, match="evaluation"):
        room.descriptor(astronaut, astronaut_face)
