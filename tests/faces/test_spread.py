"""Error bars of measurements, and levels relative to a neutral face."""

import numpy as np
import pytest

from magicedit.errors import NoFaceError
from magicedit.faces import distorted, levels_of, levels_relative_to, load_backend, spread_of


@pytest.fixture(scope="module")
def backend():
    return load_backend()


def test_distortions_are_mild_and_repeatable(astronaut):
    pictures = [*distorted(astronaut)]
    assert [scale for _, scale in pictures] == [1, 1, 1, 0.97, 0.5, 1, 1]
    for picture, scale in pictures:
        assert picture.dtype == np.uint8
        assert picture.shape == (round(512 * scale), round(512 * scale), 3)
        if scale == 1:
            assert 0 < np.abs(picture.astype(float) - astronaut).mean() < 25
    assert all(np.array_equal(a, b) for (a, _), (b, _) in zip(pictures, distorted(astronaut), strict=True))


def test_the_spread_is_that_of_the_distorted_pictures(backend, astronaut):
    face = backend.detect(astronaut)[0]
    spread = spread_of(backend, astronaut, face)
    assert spread.keys() == levels_of(face).keys()
    assert 0 < spread["AU25"] < 0.3
    assert 0 < spread["gaze_yaw"] < 2
    values = [levels_of(face)["AU25"]]
    values += [levels_of(backend.detect(picture)[0])["AU25"] for picture, _ in distorted(astronaut)]
    assert spread["AU25"] == pytest.approx(np.std(values, ddof=1), abs=0.05)  # of the whole photograph


def test_a_face_that_vanishes_has_no_error_bars(astronaut):
    face = load_backend().detect(astronaut)[0]

    class Blind:
        name = "blind"

        def detect(self, pixels):
            return []

    with pytest.raises(NoFaceError, match="found in 0 of 7"):
        spread_of(Blind(), astronaut, face)


def test_relative_levels_and_their_error_bars(backend, astronaut, closed_mouth):
    smiling, calm = ((pixels, backend.detect(pixels)[0]) for pixels in (astronaut, closed_mouth))
    difference, bar = levels_relative_to(backend, smiling, calm)
    levels, rest = levels_of(smiling[1]), levels_of(calm[1])
    assert difference["AU12"] == pytest.approx(levels["AU12"] - rest["AU12"])
    assert difference["AU12"] > 10 * bar["AU12"]
    both = spread_of(backend, *smiling)["AU25"], spread_of(backend, *calm)["AU25"]
    assert bar["AU25"] == pytest.approx(np.hypot(*both))
    same, _ = levels_relative_to(backend, calm, calm)
    assert set(same.values()) == {0.0}
