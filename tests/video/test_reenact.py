"""The expressions of a video on a photograph."""

import numpy as np
import pytest
from conftest import SIDE, read_pictures, seconds_of, sound_of, write_video
from PIL import Image
from test_edit import LOSSLESS, changed

from magicedit.action_units import FACS, NAMES, editable
from magicedit.errors import ImageError, MagicEditError, NoFaceError, OutputError, VideoError
from magicedit.faces import align, crop_face, levels_of
from magicedit.faces.tracking import Tracking
from magicedit.imaging import open_photo
from magicedit.video import reenact
from magicedit.video.analysis import analyse, scan
from magicedit.video.reenact import ReenactMaker, followed, neutral_of
from magicedit.video_reading import Video, split_planes
from magicedit.warping import displacement_fields, move_eyes, turn_head, warp_photo

FRAMES = 12


@pytest.fixture(scope="module")
def acted(editor, portrait):
    """`acted(level)`: the portrait with its smile changed by so many steps, by the muscles' warp."""
    (face,) = editor.backend.detect(portrait)
    alignment = align(face, SIDE)
    crop = crop_face(portrait, alignment)
    fields = displacement_fields(alignment.apply(face.landmarks), SIDE)

    def picture(level: float) -> np.ndarray:
        vector = np.zeros(len(NAMES), np.float32)
        vector[NAMES.index("AU12")] = level
        return warp_photo(crop, fields, vector, alignment.apply(face.landmarks))

    return picture


@pytest.fixture(scope="module")
def driving(tmp_path_factory, acted):
    """Grave for half a second, then a smile that grows; with sound, at uneven times."""
    levels = [-4] * 6 + [-3, -2, -1, 0, 0, 0]
    stamps = [0, 512, 1000, 1536, 2048, 2560, 3100, 3584, 4096, 4700, 5120, 5632]
    path = tmp_path_factory.mktemp("driving") / "in.mp4"
    return write_video(path, [acted(level) for level in levels], stamps=stamps, sound="aac")


@pytest.fixture
def photo(tmp_path, acted):
    """Grave, and wider than the driving video, with an odd side."""
    picture = np.pad(acted(-3), ((0, 1), (30, 30), (0, 0)), mode="edge")
    path = tmp_path / "photo.png"
    Image.fromarray(picture).save(path)
    return path


def smiles(editor, path) -> list[float]:
    return [editor.backend.detect(picture)[0].action_units["AU12"] for picture in read_pictures(path)]


def test_the_photograph_smiles_when_the_driving_face_does(tmp_path, editor, driving, photo):
    result = reenact(editor, photo, driving, tmp_path / "out.mp4", head=0, settings=LOSSLESS)
    assert seconds_of(tmp_path / "out.mp4") == seconds_of(driving)
    assert np.array_equal(sound_of(tmp_path / "out.mp4")[1], sound_of(driving)[1])
    given = np.asarray(Image.open(photo))
    shown = read_pictures(tmp_path / "out.mp4")
    assert (result.width, result.height) == (given.shape[1], given.shape[0] + 1) == (300, 242)
    measured = smiles(editor, tmp_path / "out.mp4")
    assert measured[-1] > measured[0] + 1
    assert abs(measured[3] - editor.backend.detect(given)[0].action_units["AU12"]) < 0.4  # at rest: as it is
    assert np.corrcoef(measured, smiles(editor, driving))[0, 1] > 0.9

    first = split_planes(next(Video(tmp_path / "out.mp4").frames()).planes)[0]
    for frame in Video(tmp_path / "out.mp4").frames():  # the whole photograph, still outside the face
        luma = split_planes(frame.planes)[0]
        assert np.array_equal(luma[:, :40], first[:, :40])
    assert changed(shown[0][:-1], given) < 3
    assert result.flicker.ratio is None
    assert result.flicker.output > 0


# Requests by frame: rest, a blink, a look to the subject's left, a turned head
ACTED = [{}] * 8 + [{"AU43": level} for level in (2, 5, 5, 2)] + [{}] * 4
ACTED += [{"gaze_yaw": 20}] * 6 + [{}] * 6 + [{"head_yaw": 10}] * 6
BLINK, LOOK, TURN = 10, 21, 33


@pytest.fixture(scope="module")
def looking(tmp_path_factory, editor, portrait):
    """The portrait that blinks, looks and turns, by the layers of geometry."""
    (face,) = editor.backend.detect(portrait)
    pictures = [
        turn_head(move_eyes(portrait, face.landmarks, asked), face.landmarks, asked) for asked in ACTED
    ]
    return write_video(tmp_path_factory.mktemp("looking") / "in.mp4", pictures)


def reenacted(editor, photo, driving, folder, monkeypatch, **options) -> tuple[list[dict], list[dict]]:
    """The requests by frame, and the levels of the photograph's face."""
    asked = []

    def requests(self, original=ReenactMaker.requests):
        for row, request in original(self):
            asked.append(request)
            yield row, request

    with monkeypatch.context() as patch:
        patch.setattr(ReenactMaker, "requests", requests)
        reenact(editor, photo, driving, folder / "out.mp4", quality="live", settings=LOSSLESS, **options)
    return asked, [levels_of(editor.backend.detect(shown)[0]) for shown in read_pictures(folder / "out.mp4")]


def test_blinks_gaze_and_half_of_the_head_follow(tmp_path, editor, looking, photo, monkeypatch):
    asked, levels = reenacted(editor, photo, looking, tmp_path, monkeypatch)
    rest = levels[5]
    assert levels[BLINK]["AU43"] > rest["AU43"] + 1.2
    assert abs(levels[15]["AU43"] - rest["AU43"]) < 0.5  # open again
    assert levels[LOOK]["gaze_yaw"] > rest["gaze_yaw"] + 10
    assert abs(levels[LOOK]["head_yaw"] - rest["head_yaw"]) < 1
    assert 1.5 < levels[TURN]["head_yaw"] - rest["head_yaw"] < 6
    assert asked[LOOK]["gaze_yaw"] == pytest.approx(20, abs=6)
    # closed lids read as eyes that look down
    assert asked[BLINK]["gaze_pitch"] == asked[BLINK - 1]["gaze_pitch"] != asked[LOOK]["gaze_pitch"]


def test_the_share_of_the_head(tmp_path, editor, looking, photo, monkeypatch):
    still, levels = reenacted(editor, photo, looking, tmp_path, monkeypatch, head=0)
    assert abs(levels[TURN]["head_yaw"] - levels[5]["head_yaw"]) < 0.5
    assert not any(request["head_yaw"] for request in still)
    whole, _ = reenacted(editor, photo, looking, tmp_path, monkeypatch, head=1)
    half, _ = reenacted(editor, photo, looking, tmp_path, monkeypatch)
    assert whole[TURN]["head_yaw"] > 5
    assert half[TURN]["head_yaw"] == pytest.approx(whole[TURN]["head_yaw"] / 2)
    assert half[LOOK]["gaze_yaw"] == pytest.approx(whole[LOOK]["gaze_yaw"], abs=1)
    # The face looks where its head points: with a head that stays, the eyes go there
    assert half[TURN]["gaze_yaw"] > whole[TURN]["gaze_yaw"] + 2
    assert still[TURN]["gaze_yaw"] > half[TURN]["gaze_yaw"] + 2
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(MagicEditError, match="share of the head"):
            reenact(editor, photo, looking, tmp_path / "out.mp4", head=share)


def test_requests_stay_within_the_ranges(tmp_path, editor, looking, photo, monkeypatch):
    asked, _ = reenacted(editor, photo, looking, tmp_path, monkeypatch, strength=2.0, head=1)
    assert asked[LOOK]["gaze_yaw"] == 30.0
    for request in asked:
        assert editor.action_units.deltas(request) == request  # raises beyond a range


def test_the_angles_of_a_face_at_rest_are_their_median(tmp_path, editor, looking):
    video = Video(looking)
    analysis = analyse(video, editor.backend, tmp_path / "faces.jsonl", Tracking())
    base = float(video.info.time_base)
    (track,) = scan(analysis.rows(), base)
    names = followed(editor.action_units)
    rest = neutral_of(analysis, track, base, names, None, "mediapipe")
    yaws = [levels_of(row.face(track.number))["gaze_yaw"] for row in analysis.rows()]
    low, high = np.percentile(yaws, (40, 60))  # between frames the median is a matter of rounding
    assert low - 0.1 <= rest["gaze_yaw"] <= high + 0.1 < np.mean(yaws)
    assert set(rest) == set(names)
    looked = neutral_of(analysis, track, base, names, 19 / 25, "mediapipe")
    assert looked["gaze_yaw"] > rest["gaze_yaw"] + 10


def test_what_follows_a_driving_face():
    angles = {"gaze_yaw", "gaze_pitch", "head_yaw", "head_pitch", "head_roll"}
    assert set(followed(editable(NAMES))) == {*NAMES, "AU43"} | angles
    assert tuple(followed(NAMES)) == tuple(NAMES)  # a model without geometry
    blinking = followed(editable(FACS.named([*NAMES, "AU45"])))
    assert set(blinking) == {*NAMES, "AU45"} | angles  # AU43 is the same score


def test_strength(tmp_path, editor, driving, photo):
    reached = []
    for strength in (0.0, 0.5, 1.0):
        reenact(
            editor, photo, driving, tmp_path / "out.mp4", strength=strength, quality="live", settings=LOSSLESS
        )
        shown = read_pictures(tmp_path / "out.mp4")
        reached.append(changed(shown[0], shown[-1]))
    assert reached[0] == 0
    assert 0.2 * reached[2] < reached[1] < 0.8 * reached[2]
    for strength in (float("nan"), 3):
        with pytest.raises(MagicEditError, match="strength"):
            reenact(editor, photo, driving, tmp_path / "out.mp4", strength=strength)


def test_neutral_is_what_is_shown_least_or_what_is_said(tmp_path, editor, driving):
    video = Video(driving)
    analysis = analyse(video, editor.backend, tmp_path / "faces.jsonl", Tracking())
    base = float(video.info.time_base)
    (track,) = scan(analysis.rows(), base)
    levels = sorted(row.face(track.number).action_units["AU12"] for row in analysis.rows())
    least = neutral_of(analysis, track, base, NAMES, None, "mediapipe")
    assert levels[0] - 0.01 <= least["AU12"] <= levels[2]
    assert set(least) == set(NAMES)
    late = neutral_of(analysis, track, base, NAMES, 0.44, "mediapipe")
    assert late["AU12"] > levels[-4] - 0.1
    with pytest.raises(MagicEditError, match="not visible at 9 s"):
        neutral_of(analysis, track, base, NAMES, 9.0, "mediapipe")


def test_relative_to_the_moment_that_is_neutral(tmp_path, editor, driving, photo):
    """With the smile as neutral, the grave beginning makes the photograph graver still."""
    quick = {"quality": "live", "settings": LOSSLESS}
    reenact(editor, open_photo(photo), driving, tmp_path / "out.mp4", neutral_at=0.44, **quick)
    shown = read_pictures(tmp_path / "out.mp4")
    given = np.asarray(Image.open(photo))
    assert changed(shown[-1][:-1], given) < changed(shown[0][:-1], given)
    reenact(editor, photo, driving, tmp_path / "other.mp4", **quick)
    assert smiles(editor, tmp_path / "out.mp4")[0] < smiles(editor, tmp_path / "other.mp4")[0] + 0.1


def test_a_large_photograph_is_reduced_only_when_asked(tmp_path, editor, driving, portrait):
    large = np.asarray(Image.fromarray(portrait).resize((4000, 4000)))
    with pytest.raises(VideoError, match="--longest"):
        reenact(editor, large, driving, tmp_path / "out.mp4")
    result = reenact(editor, large, driving, tmp_path / "out.mp4", longest=401, quality="live")
    assert (result.width, result.height) == (402, 402)
    with pytest.raises(MagicEditError, match="at least 64"):
        reenact(editor, large, driving, tmp_path / "out.mp4", longest=10)


def test_where_the_driving_face_is_gone_the_photograph_rests(tmp_path, editor, acted, photo):
    empty = np.full((SIDE, SIDE, 3), 120, np.uint8)
    pictures = [acted(-4)] * 4 + [acted(0)] * 8 + [empty] * 10
    path = write_video(tmp_path / "in.mp4", pictures)
    settings = type(LOSSLESS)(encoding=LOSSLESS.encoding, tracking=Tracking(cut_levels=255))
    reenact(editor, photo, path, tmp_path / "out.mp4", quality="live", settings=settings, neutral_at=0.04)
    shown = read_pictures(tmp_path / "out.mp4")
    given = np.pad(np.asarray(Image.open(photo)), ((0, 1), (0, 0), (0, 0)), mode="edge")
    distances = [changed(picture, given) for picture in shown]
    rest = distances[-1]  # of the conversion to yuv420p
    assert distances[7] > rest + 0.3
    assert all(distance == pytest.approx(rest, abs=0.01) for distance in distances[12:])
    assert distances[11] < distances[7]  # it faded before


def test_what_cannot_be_done(tmp_path, editor, driving, photo):
    blank = np.full((SIDE, SIDE, 3), 120, np.uint8)
    nobody = write_video(tmp_path / "nobody.mp4", [blank] * 3)
    for source, film, output, error in [
        (blank, driving, "out.mp4", NoFaceError),
        (photo, nobody, "out.mp4", NoFaceError),
        (tmp_path / "none.png", driving, "out.mp4", ImageError),
        (photo, tmp_path / "none.mp4", "out.mp4", VideoError),
        (photo, driving, "none/out.mp4", OutputError),
        (photo, driving, "out.gif", OutputError),
        (photo, driving, "photo.png", OutputError),
    ]:
        with pytest.raises(error):
            reenact(editor, source, film, tmp_path / output)
    with pytest.raises(NoFaceError, match="face 2"):
        reenact(editor, photo, driving, tmp_path / "out.mp4", face=1)
    with pytest.raises(NoFaceError, match="face 2"):
        reenact(editor, photo, driving, tmp_path / "out.mp4", driving_face=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["nobody.mp4", "photo.png"]
