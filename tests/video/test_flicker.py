"""The flicker metric on sequences whose flicker is known."""

import numpy as np
import pytest
from test_smoothing import face_at

from magicedit.video.flicker import FlickerMeter, face_window

FACE = face_at(100, 100)
SHAPE = (200, 200, 3)


def grey(level: int) -> np.ndarray:
    return np.full(SHAPE, level, np.uint8)


def measured(inputs: list[int], outputs: list[int], names: str = "a" * 99) -> FlickerMeter:
    meter = FlickerMeter()
    for before, after, name in zip(inputs, outputs, names, strict=False):
        meter.add(grey(before), grey(after), {name: FACE})
    return meter


def test_mean_absolute_difference_from_frame_to_frame():
    flicker = measured([10, 12, 10, 12], [10, 16, 10, 16]).result()
    assert (flicker.input, flicker.output, flicker.ratio) == pytest.approx((2, 6, 3))
    assert flicker.pairs == 3


def test_an_output_that_is_the_input_has_ratio_1():
    assert measured([10, 30, 20], [10, 30, 20]).result().ratio == 1


def test_only_the_face_counts():
    meter = FlickerMeter()
    window, inside = face_window(FACE, SHAPE)
    mask = np.zeros(SHAPE[:2], bool)
    mask[window] = inside > 0
    for index in range(3):
        output = grey(10)
        output[~mask] = 200 * (index % 2)
        meter.add(grey(10 + index), output, {"a": FACE})
    assert meter.result().output == 0
    assert meter.result().input == pytest.approx(1)


def test_pairs_need_the_face_in_both_frames():
    flicker = measured([10, 20, 21, 22], [10, 20, 21, 22], "abbb").result()
    assert (flicker.pairs, flicker.input) == (2, pytest.approx(1))
    assert measured([10], [10]).result().ratio is None
    assert measured([10, 10], [10, 20]).result().ratio is None  # the input stands still


def test_a_restored_meter_goes_on():
    whole = measured([10, 12, 15, 11], [10, 18, 15, 12]).result()
    first, second = measured([10, 12], [10, 18]), FlickerMeter()
    second.restore(first.state())
    for before, after in ((15, 15), (11, 12)):
        second.add(grey(before), grey(after), {"a": FACE})
    assert second.result() == whole


@pytest.mark.parametrize("place", [(-500, 50), (50, 900)])
def test_a_face_outside_is_left_out(place):
    assert face_window(face_at(*place), SHAPE) == (None, None)
