"""The eye layer: closing lids and gaze, where they change a photograph, and what stays as it was."""

import cv2
import numpy as np
import pytest

from magicedit.faces import load_backend
from magicedit.faces.frame import face_frame
from magicedit.faces.gaze import CLOSED, eye_openness
from magicedit.faces.regions import region_polygon
from magicedit.imaging import open_photo
from magicedit.warping import lids
from magicedit.warping.eyes import move_eyes

LEFT_IRIS, RIGHT_IRIS = 473, 468
LEFT_CORNERS, RIGHT_CORNERS = (362, 263), (33, 133)
IRISES = {"left_eye": LEFT_IRIS, "right_eye": RIGHT_IRIS}
EYEBALL = 1.03  # radius of the eyeball, diameters of the iris
GAIN = 1.2  # of the movement over the eyeball's turn


class Portrait:
    """A photograph with its face, and what requests make of its eyes."""

    def __init__(self, pixels):
        self.pixels = pixels
        self.landmarks = load_backend().detect(pixels)[0].landmarks.astype(np.float64)
        self.frame = face_frame(self.landmarks)

    def moved(self, glasses=0.0, **request):
        return move_eyes(self.pixels, self.landmarks, request, glasses)

    def seen(self, **request):
        """MediaPipe's landmarks of the changed photograph, (478, 2) px."""
        return load_backend().detect(self.moved(**request))[0].landmarks.astype(np.float64)

    def radius(self, iris):
        return np.linalg.norm(self.landmarks[iris + 1 : iris + 5] - self.landmarks[iris], axis=1).mean()

    def changed(self, **request):
        """Places of changed pixels, (n, 2) interocular distances to the subject's left and down."""
        difference = np.abs(self.moved(**request).astype(int) - self.pixels).max(-1)
        y, x = np.nonzero(difference)
        return self.frame.to_face(np.stack([x, y], 1))


def iris_shift(before, after, openings, centre, radius, axis):
    """px along `axis` between the circles of one radius around which two photographs brighten most.

    openings: (n, 2) px, the eye's outline in each; edges of lids do not count.
    """
    angles = np.deg2rad([*range(-40, 56, 5), *range(125, 221, 5)])
    rays = np.stack([np.cos(angles), np.sin(angles)], -1)
    shifts = np.linspace(-0.9, 0.9, 181) * radius
    centres = (centre + shifts[:, None] * axis)[:, None]
    inner, outer = ((centres + share * radius * rays).astype(np.float32) for share in (0.85, 1.1))
    places = []
    for pixels, opening in zip((before, after), openings, strict=True):
        outline = opening.astype(np.float32)
        inside = [
            [cv2.pointPolygonTest(outline, tuple(map(float, at)), True) > 1 for at in row] for row in outer
        ]
        grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).astype(np.float32)
        rise = cv2.remap(grey, outer, None, cv2.INTER_LINEAR) - cv2.remap(grey, inner, None, cv2.INTER_LINEAR)
        score = (np.clip(rise, -20, 60) * inside).sum(1) / (np.sum(inside, 1) + 6)
        places.append(shifts[score.argmax()])
    return places[1] - places[0]


@pytest.fixture(scope="module")
def portrait(closed_mouth):
    return Portrait(closed_mouth)


@pytest.fixture
def blue_eyes(london):
    return Portrait(london("138", "neutral"))


@pytest.fixture
def synthetic(shared):
    return lambda name: Portrait(open_photo(shared / "faces/synthetic/validation" / f"{name}.jpg").pixels)


def test_requests_without_eyes_return_the_photograph_itself(portrait):
    assert portrait.moved() is portrait.pixels
    assert portrait.moved(AU12=4.0, AU5L=2.0, gaze_yaw=0.0, AU43=0.0) is portrait.pixels
    assert portrait.moved(AU43=-3.0) is portrait.pixels


def test_the_photograph_passed_in_is_not_written_to(portrait):
    before = portrait.pixels.copy()
    portrait.moved(AU43=5.0, gaze_yaw=10.0)
    assert np.array_equal(portrait.pixels, before)


def test_au43_closes_the_eyes_step_by_step(portrait):
    openness = [np.mean(eye_openness(portrait.seen(AU43=steps))) for steps in (0.0, 2.5, 5.0)]
    assert openness[1] < openness[0] - 0.06
    assert openness[2] < min(CLOSED, openness[1] - 0.06)


def test_more_than_closed_is_closed(portrait):
    assert np.array_equal(portrait.moved(AU43=5.0), portrait.moved(AU43=9.0))


def test_a_wink_leaves_the_other_eye_alone(portrait):
    assert portrait.changed(AU43L=5.0)[:, 0].min() > 0
    assert portrait.changed(AU43R=5.0)[:, 0].max() < 0
    left, right = eye_openness(portrait.seen(AU43L=5.0))
    assert left < CLOSED < 0.2 < right


def test_pixels_away_from_the_eyes_are_equal(portrait):
    places = np.abs(portrait.changed(AU43=5.0, gaze_yaw=20.0, gaze_pitch=-15.0))
    assert len(places) > 500
    assert places[:, 0].max() < 1.0
    assert places[:, 1].max() < 0.4


def test_nothing_of_the_iris_shows_through_a_closed_lid(blue_eyes):
    def blueness(pixels):
        x, y = np.rint(blue_eyes.landmarks[LEFT_IRIS]).astype(int)
        red, _, blue = pixels[y - 4 : y + 5, x - 4 : x + 5].reshape(-1, 3).mean(0)
        return blue - red

    assert blueness(blue_eyes.pixels) > 5
    assert blueness(blue_eyes.moved(AU43=5.0)) < -10


def test_a_closed_lid_has_light_and_grain_of_the_skin_around(london):
    portrait = Portrait(london("036", "neutral"))
    closed = portrait.moved(AU43=5.0).astype(np.float32)
    grain = closed - cv2.GaussianBlur(closed, (0, 0), 2)

    def box(pixels, below):
        x, y = np.rint(portrait.landmarks[LEFT_IRIS] + (0, below * portrait.frame.interocular)).astype(int)
        return pixels[y - 5 : y + 6, x - 7 : x + 8]

    lid, cheek = -0.04, 0.22  # interocular distances below the iris's centre
    assert 0.75 < box(closed, lid).mean() / box(closed, cheek).mean() < 1.25
    assert box(grain, lid).std() > 0.4 * box(grain, cheek).std()


def test_a_closed_lid_has_the_hue_of_the_cheek_and_not_of_make_up(london):
    portrait = Portrait(london("126", "neutral"))  # silver make-up on the lids
    closed = portrait.moved(AU43=5.0).astype(np.float64)
    width = np.linalg.norm(np.subtract(*portrait.landmarks[list(LEFT_CORNERS)]))

    def redness(below, half):
        """Red over blue of a box below the left iris's centre, eye widths."""
        x, y = np.rint(portrait.landmarks[LEFT_IRIS] + (0, below * width)).astype(int)
        size = max(round(half * width), 1)
        red, _, blue = closed[y - size : y + size + 1, x - size : x + size + 1].reshape(-1, 3).mean(0)
        return red / blue

    assert redness(-0.03, 0.06) == pytest.approx(redness(0.65, 0.1), rel=0.08)


def test_an_eye_that_closes_alone_is_squeezed(portrait):
    alone, both = portrait.moved(AU43L=5.0).astype(int), portrait.moved(AU43=5.0).astype(int)
    x, y = np.rint(portrait.landmarks[LEFT_IRIS]).astype(int)
    radius = portrait.radius(LEFT_IRIS)

    def darkest(picture):
        """Row of the lash line below the iris's centre, radii of the iris."""
        column = picture[y - round(radius) : y + round(1.5 * radius), x - 2 : x + 3].sum((1, 2))
        return (column.argmin() - round(radius)) / radius

    assert darkest(alone) < darkest(both)
    below = slice(y + round(1.2 * radius), y + round(2.0 * radius)), slice(x - 8, x + 9)
    assert np.abs(alone[below] - both[below]).mean() > 1


def test_a_wink_lowers_its_brow_and_raises_its_cheek(portrait):
    brow, other_brow, cheek = (334, 296, 282), (105, 66, 52), (330, 347, 346)
    seen = portrait.seen(AU43L=5.0) - portrait.landmarks
    down = portrait.frame.vectors_to_face(seen)[:, 1]  # interocular distances
    assert 0.02 < down[list(brow)].mean() < 0.08
    assert abs(down[list(other_brow)].mean()) < 0.01
    assert -0.09 < down[list(cheek)].mean() < -0.02


def test_rims_of_glasses_hold_the_brow_and_cheek_of_a_wink(portrait):
    def reach(glasses):
        difference = np.abs(portrait.moved(glasses, AU43L=5.0).astype(int) - portrait.pixels).max(-1)
        y, x = np.nonzero(difference)
        return np.abs(portrait.frame.to_face(np.stack([x, y], 1))[:, 1]).max()

    assert reach(1.0) < 0.4 < 0.6 < reach(0.0)
    assert np.array_equal(portrait.moved(1.0, AU43=5.0), portrait.moved(AU43=5.0))


@pytest.mark.parametrize("degrees", [-15.0, -10.0, 10.0, 15.0])
# Lids hide the ends of an iris that moves up or down, so the outline shows its place less exactly
@pytest.mark.parametrize(
    ("name", "axis", "sign", "tolerance"), [("gaze_yaw", 0, 1, 0.2), ("gaze_pitch", 1, -1, 0.35)]
)
def test_gaze_moves_the_irises_by_the_eyeballs_turn(blue_eyes, name, axis, sign, tolerance, degrees):
    moved, landmarks = blue_eyes.moved(**{name: degrees}), blue_eyes.landmarks
    seen = blue_eyes.seen(**{name: degrees})
    radii = {eye: blue_eyes.radius(iris) for eye, iris in IRISES.items()}
    shifts = [
        iris_shift(
            blue_eyes.pixels,
            moved,
            [region_polygon(of, "mediapipe478", eye) for of in (landmarks, seen)],
            landmarks[iris],
            radii[eye],
            blue_eyes.frame.rotation[axis],
        )
        for eye, iris in IRISES.items()
    ]
    asked = sign * GAIN * EYEBALL * 2 * np.mean([*radii.values()]) * np.sin(np.deg2rad(degrees))
    assert np.mean(shifts) / asked == pytest.approx(1, abs=tolerance)


def test_mediapipe_sees_the_gaze_in_its_direction(portrait):
    def gaze(landmarks):
        ways = [
            landmarks[iris] - landmarks[list(corners)].mean(0)
            for iris, corners in ((LEFT_IRIS, LEFT_CORNERS), (RIGHT_IRIS, RIGHT_CORNERS))
        ]
        return np.mean(ways, 0)

    middle, iris = gaze(portrait.seen()), portrait.radius(LEFT_IRIS)
    assert (gaze(portrait.seen(gaze_yaw=15.0)) - middle)[0] > 0.25 * iris
    assert (gaze(portrait.seen(gaze_yaw=-15.0)) - middle)[0] < -0.25 * iris
    up, down = (gaze(portrait.seen(gaze_pitch=degrees))[1] for degrees in (20.0, -20.0))
    assert down - up > 0.1 * iris


def test_lids_follow_pitch_and_not_yaw(portrait):
    before = portrait.seen()

    def lowered(**request):
        """How far MediaPipe sees the upper lids' middles lower, diameters of the iris."""
        way = (portrait.seen(**request) - before)[[386, 159], 1].mean()
        return way / (2 * portrait.radius(LEFT_IRIS))

    assert abs(lowered(gaze_yaw=15.0)) < 0.06
    assert abs(lowered(gaze_yaw=-15.0)) < 0.06
    assert lowered(gaze_pitch=-25.0) > 0.15
    assert lowered(gaze_pitch=25.0) < -0.06


def test_narrow_eyes_that_look_down_stay_open(synthetic):
    """Else they look sleepy."""
    people = [synthetic(name) for name in ("schnell_0043372", "sdxl_0012827", "sdxl_0039848")]
    before = [eye_openness(person.seen()) for person in people]
    after = [eye_openness(person.seen(gaze_pitch=-15.0)) for person in people]
    assert 0.8 < np.mean(np.divide(after, before)) < 0.95


def test_eyes_that_look_down_show_less_below_the_iris(blue_eyes):
    """Else they look sleepy."""
    ways = (blue_eyes.seen(gaze_pitch=-15.0) - blue_eyes.seen())[:, 1]
    for upper, lower in ((386, 374), (159, 145)):
        assert ways[lower] < 0.6 * ways[upper]


def test_lashes_hang_before_an_eye_that_looks_down(blue_eyes, monkeypatch):
    """Lashes that point at the viewer would be a broad dark line, as in the photograph of a tired person."""
    seen = blue_eyes.moved(gaze_pitch=-15.0).astype(int)
    monkeypatch.setattr(lids, "_LENGTH", (0.0, 0.0))
    bare = blue_eyes.moved(gaze_pitch=-15.0)
    assert (bare - seen).max() > 15
    monkeypatch.undo()
    monkeypatch.setattr(lids, "_TURNED", 2.0)
    assert (seen - blue_eyes.moved(gaze_pitch=-15.0)).max() > 40


def test_a_moved_iris_leaves_white_and_is_no_second_one(blue_eyes):
    def iris_pixels(pixels):
        """Number of bluish pixels in the left eye's opening."""
        x, y = np.rint(blue_eyes.landmarks[LEFT_IRIS]).astype(int)
        box = pixels[y - 12 : y + 13, x - 28 : x + 29].astype(int)
        return int((box[..., 2] > box[..., 0] + 5).sum())

    before, after = (iris_pixels(blue_eyes.moved(gaze_yaw=degrees)) for degrees in (0.0, 15.0))
    assert before > 100
    assert after == pytest.approx(before, rel=0.3)


def test_a_lamps_reflection_moves_half_as_far_as_the_iris(portrait):
    scale = 4
    pixels = cv2.resize(portrait.pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    landmarks = portrait.landmarks * scale + (scale - 1) / 2
    radius, centre = scale * portrait.radius(LEFT_IRIS), landmarks[LEFT_IRIS]
    spot = tuple(int(value) for value in np.rint(centre - (0, 0.3 * radius)))
    degrees = 12.0
    cv2.circle(pixels, spot, round(0.12 * radius), (255, 255, 255), cv2.FILLED, cv2.LINE_AA)
    moved = move_eyes(pixels, landmarks, {"gaze_yaw": degrees})

    def brightest(picture):
        tall, wide = round(0.2 * radius), round(0.8 * radius)
        box = picture[spot[1] - tall : spot[1] + tall, spot[0] - wide : spot[0] + wide]
        return np.nonzero(box.min(-1) > 235)[1].mean()

    iris = GAIN * EYEBALL * 2 * np.mean([scale * portrait.radius(i) for i in (LEFT_IRIS, RIGHT_IRIS)])
    shift = (brightest(moved) - brightest(pixels)) / (iris * np.sin(np.deg2rad(degrees)))
    assert shift == pytest.approx(0.5, abs=0.12)


def test_eyes_closed_already_and_hidden_eyes_stay(synthetic):
    closed = synthetic("schnell_0009223")
    assert max(eye_openness(closed.landmarks)) < CLOSED
    assert closed.moved(AU43=5.0, gaze_yaw=15.0) is closed.pixels
    sunglasses = synthetic("sdxl_0042683")
    assert min(eye_openness(sunglasses.landmarks)) > CLOSED
    assert sunglasses.moved(AU43=5.0, gaze_yaw=15.0) is sunglasses.pixels


def test_landmarks_of_a_closed_eye_leave_it_alone(portrait):
    landmarks = portrait.landmarks.copy()
    for upper, lower in ((387, 373), (386, 374), (385, 380)):
        landmarks[upper] = landmarks[lower] - (0, 1)
    left, right = eye_openness(landmarks)
    assert left < CLOSED < right
    moved = move_eyes(portrait.pixels, landmarks, {"AU43": 5.0})
    y, x = np.nonzero((moved != portrait.pixels).any(-1))
    assert portrait.frame.to_face(np.stack([x, y], 1))[:, 0].max() < 0


def test_an_iris_in_the_corner_turns_no_farther(synthetic):
    aside = synthetic("schnell_0023604")  # looks to the subject's right
    assert aside.moved(gaze_yaw=-30.0) is aside.pixels
    assert len(aside.changed(gaze_yaw=15.0)) > 100


def test_rims_of_glasses_stay_while_eyes_close(with_glasses):
    portrait = Portrait(with_glasses)
    rim = with_glasses.max(-1) < 40
    eyes = portrait.landmarks[[LEFT_IRIS, RIGHT_IRIS]]
    y, x = np.indices(rim.shape)
    far = np.min([np.hypot(x - eye[0], y - eye[1]) for eye in eyes], 0) / portrait.frame.interocular
    rim &= (far > 0.3) & (far < 0.5)
    change = np.abs(portrait.moved(AU43=5.0).astype(int) - with_glasses).max(-1)
    assert rim.sum() > 500
    assert (change[rim] > 25).mean() < 0.02


@pytest.mark.parametrize("interocular", [38.0, 15.0])
def test_small_faces_change_like_large_ones(portrait, interocular):
    factor = interocular / portrait.frame.interocular
    small = cv2.resize(portrait.pixels, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
    landmarks = portrait.landmarks * factor + (factor - 1) / 2
    request = {"AU43": 5.0}
    changed = move_eyes(small, landmarks, request)
    large = cv2.resize(portrait.moved(**request), small.shape[1::-1], interpolation=cv2.INTER_AREA)
    opened = np.abs(small.astype(int) - large).max(-1)
    different = np.abs(changed.astype(int) - large).max(-1)
    eyes = opened > 25
    assert eyes.any()
    assert different[eyes].mean() < 0.4 * opened[eyes].mean()


def test_eyes_cut_by_the_pictures_border(portrait):
    x, y = np.rint(portrait.landmarks[LEFT_IRIS]).astype(int)
    for top, left in ((y, 0), (0, x), (y + 1, x + 1)):
        part = np.ascontiguousarray(portrait.pixels[top:, left:])
        moved = move_eyes(part, portrait.landmarks - (left, top), {"AU43": 4.0, "gaze_yaw": 20.0})
        assert moved.shape == part.shape
    elsewhere = portrait.landmarks + np.array([5000.0, 0.0])
    beyond = move_eyes(portrait.pixels, elsewhere, {"AU43": 5.0})
    assert beyond is portrait.pixels


def test_a_picture_on_its_side_changes_alike(portrait):
    height = portrait.pixels.shape[0]
    x, y = portrait.landmarks.T
    turned = np.ascontiguousarray(np.rot90(portrait.pixels, -1))  # clockwise
    request = {"AU43R": 5.0, "gaze_yaw": 12.0}
    changed = move_eyes(turned, np.stack([height - 1 - y, x], -1), request)
    upright = portrait.moved(**request).astype(int)
    difference = np.abs(np.rot90(changed, 1).astype(int) - upright).mean()
    assert difference < 0.1 * np.abs(upright - portrait.pixels).mean()
