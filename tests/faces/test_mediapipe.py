"""Finding and measuring faces in photographs with the real MediaPipe models."""

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from magicedit.errors import ImageError, ModelError
from magicedit.faces import load_backend, search
from magicedit.faces.backends import mediapipe as room
from magicedit.faces.backends.mediapipe import MediaPipeBackend, landmarker_file
from magicedit.imaging import open_photo

REPOSITORY = Path(__file__).resolve().parents[2]


def error_in_faces(found: np.ndarray, expected: np.ndarray) -> float:
    """Mean distance of landmarks in parts of the interocular distance."""
    interocular = np.linalg.norm(expected[[33, 133]].mean(0) - expected[[362, 263]].mean(0))
    return float(np.linalg.norm(found - expected, axis=1).mean() / interocular)


def moved(landmarks: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    return landmarks @ matrix[:, :2].T + matrix[:, 2]


# --- one face ---


def test_the_astronaut(astronaut_face):
    face = astronaut_face
    assert face.scheme == "mediapipe478"
    assert face.landmarks.shape == (478, 2)
    assert face.landmarks.dtype == np.float32
    # read off the enlarged photograph: outer eye corners, tip of the nose, chin, corners of the mouth
    by_eye = np.array([(194, 100), (257, 103), (223, 126), (222, 177), (203, 140), (246, 141)])
    assert face.landmarks[[33, 263, 4, 152, 61, 291]] == pytest.approx(by_eye, abs=4)
    assert face.box == (*face.landmarks.min(0).tolist(), *face.landmarks.max(0).tolist())
    assert face.score > 0.8
    # she smiles broadly, with open lips and a level gaze
    assert face.action_units["AU12"] > 3.5
    assert face.action_units["AU25"] > 1.5
    assert face.action_units["AU4"] < 1.0
    assert face.action_units["AU26"] < 1.0
    assert abs(face.pose.yaw) < 8
    assert abs(face.pose.roll) < 8
    assert len(face.blendshapes) == 51


def test_a_photograph_without_faces(backend):
    rng = np.random.default_rng(1)
    assert backend.detect(np.full((480, 640, 3), 128, np.uint8)) == []
    assert backend.detect(rng.integers(0, 255, (700, 900, 3), dtype=np.uint8)) == []


@pytest.mark.parametrize("size", [(16, 16), (1, 1), (20, 3000), (3000, 20)])
def test_any_size_and_shape_is_looked_at(backend, size):
    assert backend.detect(np.full((*size, 3), 90, np.uint8)) == []


def test_views_and_fortran_order_are_measured_like_copies(backend, astronaut, astronaut_face):
    view = np.pad(astronaut, ((5, 9), (3, 8), (0, 0)))[5:-9, 3:-8]
    (face,) = backend.detect(np.asfortranarray(view))
    assert np.array_equal(face.landmarks, astronaut_face.landmarks)


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((64, 64), np.uint8),
        np.zeros((64, 64, 4), np.uint8),
        np.zeros((64, 64, 3), np.float32),
        np.zeros((0, 64, 3), np.uint8),
        "photo.jpg",
    ],
)
def test_other_than_rgb_bytes_is_refused(backend, pixels):
    with pytest.raises(ImageError, match="height, width, 3"):
        backend.detect(pixels)


@pytest.mark.parametrize("degrees", [-25, 25])
def test_roll_follows_a_turned_photograph(backend, astronaut, astronaut_face, degrees):
    # OpenCV counts counter-clockwise as positive
    turn = cv2.getRotationMatrix2D((225, 125), -degrees, 1.0)
    (face,) = backend.detect(cv2.warpAffine(astronaut, turn, (512, 512), borderMode=cv2.BORDER_REPLICATE))
    assert face.pose.roll - astronaut_face.pose.roll == pytest.approx(degrees, abs=4)
    assert error_in_faces(face.landmarks, moved(astronaut_face.landmarks, turn)) < 0.05


def test_a_mirrored_photograph_turns_yaw_around(backend, london):
    # the profile-most of a few frontal photographs still has some yaw
    photo = london("011", "smiling")
    (face,) = backend.detect(photo)
    (mirrored,) = backend.detect(np.ascontiguousarray(photo[:, ::-1]))
    assert mirrored.pose.yaw == pytest.approx(-face.pose.yaw, abs=2)
    assert mirrored.action_units["AU12"] == pytest.approx(face.action_units["AU12"], abs=0.5)


def test_smiling_raises_the_smile(backend, london):
    for identity in ("001", "036", "083"):
        (neutral,), (smiling,) = (backend.detect(london(identity, kind)) for kind in ("neutral", "smiling"))
        assert smiling.action_units["AU12"] > neutral.action_units["AU12"] + 1


def test_enlarging_the_photograph_changes_nothing(backend, astronaut, astronaut_face):
    large = cv2.resize(astronaut, None, fx=5, fy=5, interpolation=cv2.INTER_CUBIC)
    (face,) = backend.detect(large)
    assert error_in_faces((face.landmarks + 0.5) / 5 - 0.5, astronaut_face.landmarks) < 0.02
    for name, value in astronaut_face.action_units.items():
        assert face.action_units[name] == pytest.approx(value, abs=0.7), name


def test_turned_by_exif(backend, astronaut, astronaut_face, tmp_path):
    path = tmp_path / "turned.png"
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise to be upright, so stored turned counter-clockwise
    Image.fromarray(np.ascontiguousarray(np.rot90(astronaut))).save(path, exif=exif)
    (face,) = backend.detect(open_photo(path).pixels)
    assert np.array_equal(face.landmarks, astronaut_face.landmarks)


# --- several, at the border, small ---


def test_several_faces_come_largest_first(backend, astronaut_face, paste):
    photo, matrices = paste(1600, 900, [(90, 40, 30), (160, 800, 20), (120, 60, 330)])
    faces = backend.detect(photo)
    assert len(faces) == 3
    assert [face.area for face in faces] == sorted((face.area for face in faces), reverse=True)
    for face, matrix in zip(faces, (matrices[1], matrices[2], matrices[0]), strict=True):
        assert error_in_faces(face.landmarks, moved(astronaut_face.landmarks, matrix)) < 0.05


def test_only_the_largest_are_measured_on_demand(paste):
    photo, _ = paste(1600, 900, [(90, 40, 30), (160, 800, 20), (120, 60, 330)])
    (face,) = MediaPipeBackend(max_faces=1).detect(photo)
    assert 800 < face.box[0] < 1600


@pytest.mark.parametrize(("left", "top"), [(200, 0), (0, 90), (200, 90)])
def test_a_face_at_the_border(backend, astronaut, astronaut_face, left, top):
    # cut away the subject's right cheek and ear, her hairline, or both
    (face,) = backend.detect(astronaut[top:, left:])
    expected = astronaut_face.landmarks - (left, top)
    visible = (expected > 0).all(1)
    assert error_in_faces(face.landmarks, expected) < 0.12
    assert np.linalg.norm((face.landmarks - expected)[visible], axis=1).mean() < 5
    if left:
        assert face.box[0] < 0  # not clipped: the face goes on beyond the photograph


def test_faces_of_80_px_in_a_4000_px_photograph(backend, astronaut_face, paste):
    places = [(80, 60, 40), (80, 3500, 100), (80, 1777, 1333), (80, 3550, 2550)]
    photo, matrices = paste(4000, 3000, places)
    faces = backend.detect(photo)
    assert len(faces) == len(places)
    for matrix in matrices:
        expected = moved(astronaut_face.landmarks, matrix)
        nearest = min(faces, key=lambda face: np.linalg.norm(face.landmarks[4] - expected[4]))
        assert error_in_faces(nearest.landmarks, expected) < 0.06
        assert nearest.action_units["AU12"] == pytest.approx(astronaut_face.action_units["AU12"], abs=1.0)


def test_every_size_between_small_and_large_is_found_once(backend, paste):
    for face_height, left, top in [
        (75, 900, 700),
        (110, 613, 333),
        (200, 1, 2),
        (330, 500, 700),
        (500, 900, 200),
    ]:
        photo, _ = paste(3400, 2700, [(face_height, left, top)])
        faces = backend.detect(photo)
        assert len(faces) == 1, face_height
        assert faces[0].box[3] - faces[0].box[1] == pytest.approx(face_height, rel=0.06)


def test_flat_windows_are_not_shown_but_those_of_pale_faces(backend, paste, monkeypatch):
    mottled, _ = paste(2000, 1500, [(90, 1200, 700)])
    plain = np.full_like(mottled, np.linspace(150, 170, 1500)[:, None, None])
    plain[700:1000, 1200:1500] = mottled[700:1000, 1200:1500]
    pale = np.rint(150 + 0.12 * (plain.astype(float) - 150)).astype(np.uint8)
    shown, find = [], backend._find
    monkeypatch.setattr(backend, "_find", lambda *look: shown.append(look) or find(*look))
    looks = []
    for photo in (mottled, plain, pale):
        assert len(backend.detect(photo)) == 1
        looks.append(len(shown))
        shown.clear()
    assert looks[0] >= 35  # the photograph, 24 and 6 windows of it, and crops of what they show
    assert max(looks[1:]) <= 20


def test_what_only_looks_like_a_face_when_small_is_not_one(backend, astronaut):
    # windows of this enlargement show a ring's stone and folds of the suit to the detector, which says 0.7
    look = MediaPipeBackend(second_look="always")
    for factor in (5, 6):
        assert len(look.detect(cv2.resize(astronaut, None, fx=factor, fy=factor))) == 1


def test_when_the_second_look_is_taken(paste):
    photo, _ = paste(3000, 2700, [(560, 0, 0), (80, 2600, 1700)])
    photo = photo[:2200, 800:]
    found = {look: len(MediaPipeBackend(second_look=look).detect(photo)) for look in (False, True, "always")}
    # beside a face of a fifth of the photograph, small ones are not looked for unless it is asked
    assert found == {False: 1, True: 1, "always": 2}
    alone, _ = paste(3000, 2200, [(80, 2000, 1000)])
    assert MediaPipeBackend(second_look=False).detect(alone) == []


@pytest.fixture
def crowd(backend, london) -> tuple[np.ndarray, dict[str, tuple[float, float]]]:
    """A large face in the middle, one cut by the right border and two tiny ones; their noses, (x, y) px."""
    photo = np.full((1500, 2000, 3), (96, 104, 112), np.uint8)
    noses = {}
    places = {
        "large": ("001", 600, 1000, 800), "border": ("036", 200, 1965, 1150),
        "tiny": ("083", 90, 180, 200), "tiny too": ("011", 100, 260, 1200),
    }  # fmt: skip
    for name, (identity, height, x, y) in places.items():
        portrait = london(identity, "neutral")
        (face,) = backend.detect(portrait)
        scale = height / (face.box[3] - face.box[1])
        nose = face.landmarks[4] * scale
        portrait = cv2.resize(portrait, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        left, top = round(x - nose[0]), round(y - nose[1])
        x0, y0 = max(0, left), max(0, top)
        x1, y1 = min(2000, left + portrait.shape[1]), min(1500, top + portrait.shape[0])
        photo[y0:y1, x0:x1] = portrait[y0 - top : y1 - top, x0 - left : x1 - left]
        noses[name] = x, y
    return photo, noses


def test_a_face_at_the_border_is_found_beside_a_large_one_and_tiny_ones_are_counted(backend, crowd):
    photo, noses = crowd
    assert len(backend.detect(photo)) == 1
    found = search(backend, photo)
    assert found.left_alone == 2
    large, border = found.faces
    assert large.landmarks[4] == pytest.approx(noses["large"], abs=8)
    assert border.landmarks[4] == pytest.approx(noses["border"], abs=8)
    assert border.box[2] > 2000  # a part of it lies outside
    every = MediaPipeBackend(second_look="always").search(photo)
    assert (len(every.faces), every.left_alone) == (4, 0)
    none = MediaPipeBackend(second_look=False).search(photo)
    assert (len(none.faces), none.left_alone) == (1, 0)


def test_a_search_among_small_faces_leaves_none_alone(backend, paste):
    photo, _ = paste(4000, 3000, [(300, 60, 40), (80, 3500, 100), (80, 1777, 1600)])
    found = search(backend, photo)
    assert (len(found.faces), found.left_alone) == (3, 0)


def test_a_part_of_a_large_face_is_no_face_of_its_own(backend, london):
    portrait = cv2.resize(london("024", "smiling"), None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC)
    found = search(backend, portrait)
    assert (len(found.faces), found.left_alone) == (1, 0)


def test_the_second_look_is_no_matter_of_minutes(backend, paste):
    photo, _ = paste(4000, 3000, [(80, 60, 40)])
    start = time.process_time()
    backend.detect(photo)
    # 0.4 s on two cores; the bound only catches a change of the order of magnitude
    assert time.process_time() - start < 5


# --- settings, the log, the model's file ---


def test_settings_are_checked():
    with pytest.raises(ValueError, match="second_look"):
        MediaPipeBackend(second_look="sometimes")
    with pytest.raises(ValueError, match="max_faces"):
        MediaPipeBackend(max_faces=0)
    with pytest.raises(ValueError, match="mediapipe, insightface"):
        load_backend("opencv")


def test_nothing_but_real_messages_on_stderr():
    program = (
        "import os, numpy as np, skimage.data\n"
        "from magicedit.faces import load_backend\n"
        "from magicedit.faces.backends.mediapipe import _without_log_noise\n"
        "assert len(load_backend().detect(skimage.data.astronaut())) == 1\n"
        "with _without_log_noise():\n"
        "    os.write(2, b'I0000 00:00:1.1 1 x.cc:1] noise\\na real message\\n')\n"
    )
    run = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "a real message\n")


def test_what_is_logged_once_is_logged_while_the_backend_is_made():
    program = (
        "import contextlib\n"
        "from magicedit.faces.backends import mediapipe\n"
        "held = mediapipe._without_log_noise\n"
        "answers = []\n"
        "@contextlib.contextmanager\n"
        "def watched():\n"
        "    with held() as is_written:\n"
        "        yield is_written\n"
        "        answers.append(is_written(mediapipe._ONCE))\n"
        "mediapipe._without_log_noise = watched\n"
        "mediapipe.MediaPipeBackend().close()\n"
        "print(answers, mediapipe._has_logged_once)\n"
    )
    # The heap instead of mappings for large blocks: there, one process in seven logs it with a later picture.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "30000000"}
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout == "[False, True, False] True\n"


def test_pictures_are_shown_until_it_is_logged(backend, monkeypatch):
    for after, shown in ((1, 0), (3, 2), (1000, room._ONCE_PICTURES)):
        monkeypatch.setattr(room, "_has_logged_once", False)
        asked = []
        for _ in range(2):  # once a process
            backend._log_once(
                lambda text, asked=asked, after=after: asked.append(text) or len(asked) == after
            )
        assert asked == [room._ONCE] * (shown + 1)


def test_the_landmarker_is_the_packages_own_or_the_users(tmp_path):
    path, origin = landmarker_file()
    assert (path.parent, origin) == (Path(room.__file__).parents[1], "package")
    mine = tmp_path / "mine.task"
    mine.write_bytes(path.read_bytes())
    assert landmarker_file(str(mine)) == (mine, "user")


def test_another_landmarker_is_refused(tmp_path, monkeypatch):
    content = landmarker_file()[0].read_bytes()
    wrong = content[:-1] + bytes([content[-1] ^ 1])
    mine = tmp_path / "mine.task"
    with pytest.raises(ModelError, match=r"no face landmarker at .*mine\.task; give another file"):
        MediaPipeBackend(mine)
    mine.write_bytes(wrong)
    with pytest.raises(ModelError, match=hashlib.sha256(wrong).hexdigest()):
        MediaPipeBackend(mine)
    monkeypatch.setattr(room, "LANDMARKER_FILE", mine)
    with pytest.raises(ModelError, match="install magicedit again"):
        landmarker_file()


COLLECTED = """
import concurrent.futures.thread, gc, threading, time
from magicedit.faces import load_backend

importing = load_backend("mediapipe")  # the first stays: a frame of its import is kept
backend = load_backend("mediapipe")
tasks = [backend._detector, backend._landmarker]
with concurrent.futures.thread._global_shutdown_lock:  # as within a submit to any executor
    del backend
    gc.collect()
deadline = time.monotonic() + 60
while any(task._handle is not None for task in tasks) and time.monotonic() < deadline:
    time.sleep(0.01)
print([task._handle for task in tasks])
"""


def test_a_collection_amidst_another_threads_work_does_not_hang():
    """MediaPipe closes its graphs through an executor, whose lock the collecting thread may hold."""
    done = subprocess.run(
        [sys.executable, "-c", COLLECTED], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.strip() == "[None, None]"
    assert done.returncode == 0
    assert not done.stderr
