"""The mouth's layer: where lips part, a real mouth shows; where they do not, nothing is painted."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from magicedit.action_units import NAMES, to_vector
from magicedit.faces import align, crop_face, editing_region, load_backend
from magicedit.faces.frame import face_frame
from magicedit.warping import (
    Change,
    backward_flow,
    carry_change,
    carry_mouth,
    choose_mouth,
    displacement_fields,
    embedded_mouths,
    no_change,
    own_mouth,
    parts_lips,
    warp_landmarks,
)
from magicedit.warping.inside import Opening, Parting, along_row, render_inside
from magicedit.warping.mouth import GATE, _lengthened, part_lips
from magicedit.warping.muscles import LOWER_LIP_EDGE, UPPER_LIP_EDGE
from magicedit.warping.seam import LOWER_LIP_OUTLINE, UPPER_LIP_OUTLINE, snap_seam
from magicedit.warping.teeth import _CHEEKS, _incisors_edge, has_colour, light_gain, skin_colour

SIZE = 128


class FaceInPhoto:
    """A photograph's face with the muscles' fields of its crop."""

    def __init__(self, pixels: np.ndarray):
        self.pixels = pixels
        self.face = load_backend().detect(pixels)[0]
        self.alignment = align(self.face, SIZE)
        self.in_crop = self.alignment.apply(self.face.landmarks)
        self.fields = displacement_fields(self.in_crop, SIZE)
        self.region = editing_region(self.in_crop, SIZE, self.face.scheme)

    def flow(self, **request: float) -> np.ndarray:
        return backward_flow(self.fields, to_vector(request, NAMES), self.in_crop, SIZE)[0].astype(np.float32)

    def by_flow(self, **request: float) -> np.ndarray:
        change = Change(self.flow(**request), no_change(SIZE).mask, no_change(SIZE).paint)
        return carry_change(self.pixels, self.alignment, change, self.region)

    def carry(self, mouth, parts=True, **request: float) -> np.ndarray:
        base = no_change(SIZE)
        change = Change(self.flow(**request), base.mask, base.paint)
        return carry_mouth(
            self.pixels, self.alignment, change, self.region, self.face.landmarks, mouth, parts=parts
        )

    def between_lips(self, picture: np.ndarray, **request: float) -> np.ndarray:
        """(n, 3) pixels of the middle of the opened mouth, upper half."""
        after = warp_landmarks(self.in_crop, self.fields, to_vector(request, NAMES))
        inverse = self.alignment.inverse()
        after = after @ inverse[:, :2].T + inverse[:, 2]
        (x0, y0), (x1, y1) = after[82], (after[312] + after[317]) / 2
        return picture[int(y0) + 2 : int(y1), int(x0) : int(x1)].reshape(-1, 3)


@pytest.fixture(scope="module")
def closed(closed_mouth) -> FaceInPhoto:
    return FaceInPhoto(closed_mouth)


@pytest.fixture(scope="module")
def laughing() -> FaceInPhoto:
    return FaceInPhoto(pytest.importorskip("skimage.data").astronaut())


# --- where the lips go ---


@pytest.mark.parametrize("request_", [{"AU25": 4.0}, {"AU26": 4.0}, {"AU12": 4.0, "AU25": 3.0}])
def test_the_lips_part_as_the_flow_says(closed, request_):
    parting = part_lips(closed.flow(**request_), closed.in_crop)
    after = warp_landmarks(closed.in_crop, closed.fields, to_vector(request_, NAMES))
    for edge, ids in ((parting.upper, UPPER_LIP_EDGE), (parting.lower, LOWER_LIP_EDGE)):
        error = np.linalg.norm(edge - after[list(ids)], axis=1) / parting.interocular
        assert np.median(error[1:-1]) < 0.06  # the flesh near the corners does not move as the edge does
    gap = after[14, 1] - after[13, 1]
    assert parting.gap * parting.interocular == pytest.approx(gap, abs=0.03 * parting.interocular)
    assert (parting.jaw > 0.2) == ("AU26" in request_)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("AU25", "AU26")])
def test_units_that_part_no_lips_open_no_mouth(closed, name):
    for steps in (5.0, -3.0):
        request = {name: steps}
        parting = part_lips(closed.flow(**request), closed.in_crop, parts=parts_lips(request))
        assert steps < 0 or parting.opened < GATE[0]
        carried = closed.carry(embedded_mouths()[0], parts=parts_lips(request), **request)
        assert np.array_equal(carried, closed.by_flow(**request))


def test_a_request_that_parts_no_lips_keeps_the_layer_away(closed):
    """Whatever the flow says: a smile that a model opens by mistake stays a smile."""
    mouth = embedded_mouths()[0]
    assert np.array_equal(closed.carry(mouth, parts=False, AU25=4.0), closed.by_flow(AU25=4.0))
    assert not np.array_equal(closed.carry(mouth, AU25=4.0), closed.by_flow(AU25=4.0))


def test_a_jaw_opens_an_oval(closed):
    """A diamond of a flow, lips that part in proportion to the distance from the corners, is rounded."""
    middle = closed.in_crop[[78, 308], 0].mean()
    half = np.ptp(closed.in_crop[[78, 308], 0]) / 2

    def fullness(
        jaw: float,
    ) -> float:  # height of the opening at three fifths of its half width, by the middle's
        y, x = np.mgrid[:SIZE, :SIZE].astype(np.float32)
        drop = jaw * np.clip(1 - np.abs(x - middle) / half / 1.2, 0, 1)
        flow = np.stack([0 * x, np.where(y > closed.in_crop[13, 1], -drop, 0)], -1)
        parting = part_lips(flow.astype(np.float32), closed.in_crop)
        gaps = (parting.lower - parting.upper)[:, 1]
        along = 2 * (parting.lower[:, 0] - parting.lower[0, 0]) / np.ptp(parting.lower[:, 0]) - 1
        return float(np.interp([-0.6, 0.6], along, gaps).mean() / gaps[5])

    assert fullness(jaw=16) > 0.72  # 0.8 of an ellipse, 0.4 of a diamond
    assert fullness(jaw=3) < 0.66  # lips alone keep their shape


def test_lips_stay_as_thick_beside_a_dropped_jaw(closed, monkeypatch):
    """Down a column the lip of a slanting edge is longer than that of a level one."""
    level, x = np.zeros((3, 40)), np.tile(np.arange(40) / 2.0, (3, 1))
    assert _lengthened(level, x) == pytest.approx(1)
    assert _lengthened(level + x, x) == pytest.approx(np.sqrt(2))  # the columns' spacing does not matter
    lips = np.rint(closed.face.landmarks[[*UPPER_LIP_OUTLINE, *LOWER_LIP_OUTLINE[::-1]]]).astype(np.int32)
    painted = FaceInPhoto(closed.pixels)
    painted.pixels = cv2.fillPoly(np.full_like(closed.pixels, 128), [lips], (255, 0, 0))

    def red(request: dict[str, float]) -> np.ndarray:
        """Length of the lower lip's red down columns at both sides of the mouth, px."""
        parting = part_lips(painted.flow(**request), painted.in_crop)
        left, right = parting.lower[[0, -1], 0]
        crop = crop_face(painted.carry(None, **request), painted.alignment.scaled(4 * SIZE))
        columns = [int(4 * (left + share * (right - left))) for share in (0.06, 0.1, 0.9, 0.94)]
        below = np.arange(4 * SIZE)[:, None] > 4 * parting.lower[[0, 1, -2, -1], 1]
        return ((crop[:, columns, 0] > 190) & (crop[:, columns, 1] < 90) & below).sum(0)

    jaw, smile = {"AU26": 4.0}, {"AU12": 4.0, "AU25": 3.0}
    thick, smiling = red(jaw), red(smile)
    monkeypatch.setattr("magicedit.warping.mouth._THICKER", 1.0)
    thin = red(jaw)
    assert (thick >= thin).all()
    assert thick.sum() > 1.2 * thin.sum()
    assert (red(smile) == smiling).all()  # which thins its lips


# --- what shows between them ---


def test_a_dropped_jaw_shows_the_tongue(closed):
    """Between the upper teeth and the lower lip it is red, neither black nor pale."""
    for mouth in (embedded_mouths()[0], None):
        carried = closed.carry(mouth, AU26=4.0)
        after = warp_landmarks(closed.in_crop, closed.fields, to_vector({"AU26": 4.0}, NAMES))
        inverse = closed.alignment.inverse()
        after = after @ inverse[:, :2].T + inverse[:, 2]
        (x, top), bottom = after[13], after[14, 1]
        reach = 0.15 * (bottom - top)
        tongue = carried[int(top + 0.6 * (bottom - top)) : int(top + 0.75 * (bottom - top))]
        red, green, _ = tongue[:, int(x - reach) : int(x + reach)].reshape(-1, 3).mean(0)
        assert red > 1.3 * green
        assert 35 < red < 170


def test_no_teeth_means_neither_upper_nor_lower_ones(closed):
    request = {"AU26": 4.0}
    toothed, toothless = (closed.carry(mouth, **request) for mouth in (embedded_mouths()[0], None))
    in_crop = closed.alignment.apply(snap_seam(closed.pixels, closed.face.landmarks))
    parting = part_lips(closed.flow(**request), in_crop)
    inverse = closed.alignment.inverse()
    x, y = parting.lower[5] @ inverse[:, :2].T + inverse[:, 2]
    tall = 0.05 * parting.interocular / closed.alignment.scale
    above_lip = (slice(int(y - tall), int(y - 0.3 * tall)), slice(int(x - tall), int(x + tall)))
    teeth, tongue = (np.median(p[above_lip].reshape(-1, 3), 0) for p in (toothed, toothless))
    assert teeth[1] / teeth[0] > 0.7  # green by red: pale
    assert tongue[1] / tongue[0] < 0.6


def test_upper_teeth_follow_the_tilt_of_closed_lips():
    columns = np.linspace(20, 80, 11)
    edge = np.stack([columns, 60 + 0.2 * (columns - 50)], 1)
    parting = Parting(edge, edge, edge, edge + np.array([0, 10]), edge, edge, jaw=0.0, interocular=60.0)
    y, x = np.mgrid[40:90, 20:81].astype(np.float32)
    landmarks = np.full((478, 2), 50.0)
    opening = Opening(np.zeros((9, 9, 3), np.uint8), landmarks, landmarks, parting, 128, 1.0, x, y, y, y, y)
    assert opening.teeth[0, 60] - opening.teeth[0, 0] == pytest.approx(0.2 * 60)
    assert opening.teeth[0, 30] == pytest.approx(60 + 0.085 * 60)


def test_a_turned_row_of_teeth_fills_both_sides():
    """Its ends are where they should be, its nearer end is longer than its middle, nothing runs back."""
    places = np.linspace(-0.4, 0.7, 111)[None]
    read = along_row(places, np.array([0.3, 0.6]), 0.4)[0]
    assert np.interp([-0.3, 0, 0.6], places[0], read) == pytest.approx([-0.4, 0, 0.4], abs=0.01)
    assert (np.diff(read) > 0).all()
    lengths = 1 / np.gradient(read, places[0])  # of what was one
    far, middle, near = (np.interp(at, places[0], lengths) for at in (-0.25, 0.02, 0.5))
    assert far < middle < 1.25
    assert near > 1.5 * middle
    even = along_row(places, np.array([0.5, 0.5]), 0.4)[0]
    assert even == pytest.approx(places[0] * 0.8)


def test_lips_that_do_not_smile_shade_the_teeth(closed, monkeypatch):
    """By the height of the lips' middle over the corners: none where that is an eighth of an iod lower."""

    def teeth(hang: float) -> float:
        """Light of the teeth between lips whose corners lie `hang` iod above the middle of both."""
        x = np.linspace(-24, 24, 11) + closed.in_crop[13, 0]
        y = closed.in_crop[13, 1] - 2
        iod = face_frame(closed.in_crop).interocular
        sides = np.abs(np.linspace(-1, 1, 11)) ** 2 * hang * iod
        source = np.stack([x, np.full(11, y)], 1)
        upper, lower = (np.stack([x, y + by - sides], 1) for by in (0, 0.2 * iod))
        upper[[0, -1], 1] = lower[[0, -1], 1] = (upper[5, 1] + lower[5, 1]) / 2 - hang * iod
        parting = Parting(source, source, upper, lower, upper, lower, jaw=0.0, interocular=iod)
        rows, columns = np.mgrid[y : y + 0.2 * iod : 0.25, x[1] : x[-2] : 0.25].astype(np.float32)
        edges = np.full_like(rows, y), np.full_like(rows, y + 0.2 * iod)
        crop = crop_face(closed.pixels, closed.alignment)
        opening = Opening(
            crop,
            closed.in_crop,
            closed.in_crop,
            parting,
            SIZE,
            4.0,
            columns,
            rows,
            *edges,
            np.ones_like(rows),
        )
        return float(np.percentile(render_inside(opening, embedded_mouths()[0]).mean(-1), 90))

    smiling, level = teeth(0.15), teeth(0.0)
    assert 0.75 < level / smiling < 0.93
    monkeypatch.setattr("magicedit.warping.inside._UNSMILING", 1.0)
    assert teeth(0.15) == smiling
    assert teeth(0.0) > 1.1 * level


def test_grey_skin_alone_makes_no_grey_teeth(closed):
    grey = np.repeat(closed.pixels.mean(-1, keepdims=True), 3, -1).astype(np.uint8)
    assert has_colour(closed.pixels, closed.face.landmarks)
    assert not has_colour(grey, closed.face.landmarks)
    skin = closed.pixels.copy()
    for x, y in np.rint(closed.face.landmarks[list(_CHEEKS)]).astype(int):
        spot = slice(y - 8, y + 9), slice(x - 8, x + 9)
        skin[spot] = grey[spot]
    assert np.ptp(skin_colour(skin, closed.face.landmarks)) < 1
    assert has_colour(skin, closed.face.landmarks)
    for pixels, is_grey in ((grey, True), (skin, False)):
        face = FaceInPhoto(closed.pixels)
        face.pixels = pixels
        inside = face.between_lips(face.carry(embedded_mouths()[0], AU25=4.0), AU25=4.0).astype(int)
        assert (np.abs(np.ptp(inside, axis=1)).max() <= 2) == is_grey


def test_an_opened_mouth_shows_teeth(closed):
    request = {"AU12": 4.0, "AU25": 3.0}
    mouth = choose_mouth(closed.face.landmarks)
    toothed, dark = (closed.between_lips(closed.carry(m, **request), **request) for m in (mouth, None))
    assert np.median(toothed.mean(1)) > 130
    assert np.median(dark.mean(1)) < 70
    # No band: teeth have edges
    rows = closed.carry(mouth, **request).mean(-1)
    assert np.abs(np.diff(rows, axis=1)).max() > 15


def test_only_the_mouth_is_composed(closed):
    carried, moved = closed.carry(embedded_mouths()[0], AU25=4.0), closed.by_flow(AU25=4.0)
    rows, columns = np.nonzero((carried != moved).any(-1))
    iod = np.linalg.norm(closed.face.landmarks[468] - closed.face.landmarks[473])
    corners = closed.face.landmarks[[61, 291]]
    assert len(rows) > 100
    assert columns.min() > corners[0, 0] - 0.5 * iod
    assert columns.max() < corners[1, 0] + 0.5 * iod
    assert rows.min() > closed.face.landmarks[2, 1] - 0.15 * iod  # the base of the nose


def test_the_same_edit_gives_the_same_pixels(closed):
    mouth = choose_mouth(closed.face.landmarks, seed=3)
    assert np.array_equal(closed.carry(mouth, AU25=3.0), closed.carry(mouth, AU25=3.0))


# --- whose mouth ---


def test_embedded_mouths_show_teeth_and_nobody():
    mouths = embedded_mouths()
    assert len(mouths) >= 8
    for mouth in mouths:
        assert mouth.teeth_colour.mean() > 150
        assert 0.1 < mouth.shown < 0.25
        rows = np.arange(len(mouth.pixels))[:, None]
        outside = (rows < mouth.upper - 10) | (rows > mouth.lower + 10)
        assert outside.mean() > 0.4
        assert mouth.pixels[outside].std(0).max() < 4  # one colour, but for compression
    tints = np.stack([mouth.teeth_colour / mouth.teeth_colour.mean() for mouth in mouths])
    assert np.ptp(tints, axis=0).max() < 0.02  # nobody's yellow


def test_donors_are_chosen_by_face_and_seed(closed):
    landmarks = closed.face.landmarks
    assert choose_mouth(landmarks) is choose_mouth(landmarks)
    assert len({id(choose_mouth(landmarks, seed)) for seed in range(8)}) == 4
    assert choose_mouth(landmarks * 2) is choose_mouth(landmarks)  # the photograph's size has no say


def test_an_open_mouth_is_its_own(laughing, closed):
    own = own_mouth(laughing.pixels, laughing.face.landmarks, laughing.alignment, "photograph")
    assert own is not None
    assert own.is_own
    assert own.teeth_colour.mean() > 150
    assert own_mouth(closed.pixels, closed.face.landmarks, closed.alignment, "photograph") is None


def test_own_teeth_stay_where_they_are(laughing):
    """A laugh opened a little further shows the same teeth, at the same place."""
    own = own_mouth(laughing.pixels, laughing.face.landmarks, laughing.alignment, "photograph")
    carried = laughing.carry(own, AU26=0.5)
    x, y = np.rint(laughing.face.landmarks[[13, 14]].mean(0)).astype(int)
    patch = (slice(y - 2, y + 3), slice(x - 4, x + 5))
    assert np.abs(carried[patch].astype(int) - laughing.pixels[patch]).mean() < 12


def test_lower_teeth_below_a_dark_gap_are_not_taken_for_upper_ones():
    """They go with the jaw; of teeth right below the upper lip the edge is their lower end."""
    size, upper, lower = 120, np.full(120, 20.0), np.full(120, 90.0)
    picture = np.full((size, size, 3), (160, 80, 80), np.uint8)
    picture[20:90] = (20, 8, 8)
    lower_teeth, upper_teeth = picture.copy(), picture.copy()
    lower_teeth[60:88] = 220
    upper_teeth[20:62] = 220
    assert _incisors_edge(lower_teeth, upper, lower, scale=500.0)[40:80] == pytest.approx(20, abs=4)
    assert _incisors_edge(upper_teeth, upper, lower, scale=500.0)[40:80] == pytest.approx(62, abs=4)


def test_teeth_take_the_tint_of_the_light(closed):
    mouth, warm = embedded_mouths()[0], np.float64((1.0, 0.94, 0.82))
    gains = [
        light_gain((closed.pixels * tint).astype(np.uint8), closed.face.landmarks, mouth)
        for tint in (np.ones(3), warm)
    ]
    neutral, warmed = (gain[2] / gain[0] for gain in gains)  # blue by red
    assert 0.8 < warmed / neutral < 0.93  # less than the light's 0.82: its colour is not sure


def test_the_reference_lends_its_teeth(laughing, closed):
    reference = own_mouth(laughing.pixels, laughing.face.landmarks, laughing.alignment, "reference")
    request = {"AU12": 4.0, "AU25": 3.0}
    inside = closed.between_lips(closed.carry(reference, **request), **request)
    assert np.median(inside.mean(1)) > 110
    assert not np.array_equal(
        closed.carry(reference, **request), closed.carry(embedded_mouths()[0], **request)
    )


def test_a_reference_with_a_raised_head_lends_its_teeth(laughing, closed):
    """They lie nearer to the eyes there, where the upper lip of a level head would hide them."""
    level = own_mouth(laughing.pixels, laughing.face.landmarks, laughing.alignment, "reference")
    higher = 0.2 * face_frame(laughing.alignment.apply(laughing.face.landmarks)).interocular
    raised = replace(level, place=level.place - (0, higher / laughing.alignment.size))
    request = {"AU12": 4.0, "AU25": 3.0}
    shown = [
        (closed.between_lips(closed.carry(mouth, **request), **request).mean(1) > 110).mean()
        for mouth in (level, raised)
    ]
    assert shown[1] > 0.8 * shown[0]


def test_a_reference_with_darker_skin_does_not_lend_glowing_teeth(laughing, closed):
    reference = own_mouth(laughing.pixels, laughing.face.landmarks, laughing.alignment, "reference")
    darker = replace(reference, skin=reference.skin / 3)
    gains = [light_gain(closed.pixels, closed.face.landmarks, mouth) for mouth in (reference, darker)]
    assert gains[0] == pytest.approx(skin_colour(closed.pixels, closed.face.landmarks) / reference.skin)
    assert (gains[1] * darker.teeth_colour).mean() == pytest.approx(205)


def test_teeth_do_not_darken_with_skin(closed):
    """Half the light on the skin alone is darker skin: teeth lose far less than half."""
    mouth = embedded_mouths()[0]
    dark = (closed.pixels * 0.4).astype(np.uint8)
    eyes = closed.face.landmarks[[33, 133, 362, 263, 159, 145, 386, 374]]
    (x0, y0), (x1, y1) = np.floor(eyes.min(0)).astype(int), np.ceil(eyes.max(0)).astype(int)
    dark[y0:y1, x0:x1] = closed.pixels[y0:y1, x0:x1]  # the eyes keep their light
    before, after = (
        light_gain(pixels, closed.face.landmarks, mouth).mean() for pixels in (closed.pixels, dark)
    )
    assert after > 0.7 * before
    # A photograph that is dark as a whole has darker teeth
    night = light_gain((closed.pixels * 0.4).astype(np.uint8), closed.face.landmarks, mouth).mean()
    assert night < after
