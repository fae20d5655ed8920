"""dlib's identity descriptor and its 68 landmarks on real faces."""

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
    predictor, network = room._predictor()[1], room._network()
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
    for loaded in (room._library, room._predictor, room._network):
        loaded.cache_clear()
    assert identity_distance(astronaut, astronaut_face, astronaut, astronaut_face) is None
    with pytest.raises(MissingDependencyError, match="evaluation"):
        room.descriptor(astronaut, astronaut_face)
    with pytest.raises(MissingDependencyError, match="evaluation"):
        room.landmarks68(astronaut, astronaut_face)


# --- The 68 landmarks ---

# Eye corners, bridge and base of the nose, mouth corners and chin: iBUG's points on MediaPipe's mesh. The
# jaw's ends are left out, which iBUG puts at the ears.
IBUG_ON_MESH = {36: 33, 39: 133, 42: 362, 45: 263, 27: 168, 33: 2, 48: 61, 54: 291, 8: 152}


@pytest.fixture
def landmarks68(astronaut, astronaut_face):
    return room.landmarks68(astronaut, astronaut_face)


@needs_dlib
def test_landmarks68_lie_where_the_mesh_has_them(astronaut, astronaut_face, landmarks68):
    """Two networks of different families: apart by 0.04 interocular distances at most."""
    assert landmarks68.shape == (68, 2)
    assert landmarks68.dtype == np.float64
    interocular = np.linalg.norm(landmarks68[36:42].mean(0) - landmarks68[42:48].mean(0))
    mesh = astronaut_face.landmarks[list(IBUG_ON_MESH.values())]
    apart = np.linalg.norm(landmarks68[list(IBUG_ON_MESH)] - mesh, axis=1) / interocular
    assert apart.max() < 0.08
    # the jaw runs from the subject's right, in the left of the picture, to their left
    assert landmarks68[0, 0] < landmarks68[8, 0] < landmarks68[16, 0]
    assert landmarks68[8, 1] == landmarks68[:, 1].max()


@needs_dlib
def test_landmarks68_follow_a_turned_and_enlarged_photograph(backend, astronaut, landmarks68):
    """The face is read upright and at one size: 0.007 interocular distances off on average, 0.022 at most."""
    import cv2

    matrix = cv2.getRotationMatrix2D((220.0, 120.0), 20, 1.5)
    matrix[:, 2] += 50
    turned = cv2.warpAffine(astronaut, matrix, (800, 800), flags=cv2.INTER_CUBIC)
    found = room.landmarks68(turned, backend.detect(turned)[0])
    expected = landmarks68 @ matrix[:, :2].T + matrix[:, 2]
    interocular = np.linalg.norm(expected[36:42].mean(0) - expected[42:48].mean(0))
    apart = np.linalg.norm(found - expected, axis=1) / interocular
    assert apart.mean() < 0.015
    assert apart.max() < 0.05


@needs_dlib
def test_landmarks68_differ_by_less_than_a_pixel(backend, astronaut, astronaut_face, landmarks68):
    """dlib answers in whole pixels of what it reads; enlarged before, places between pixels are told too."""
    fractions = landmarks68 % 1
    assert len(np.unique(fractions.round(3))) > 30
    np.testing.assert_array_equal(room.landmarks68(astronaut, astronaut_face), landmarks68)
