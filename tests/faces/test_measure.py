"""Blendshapes to action units, and the transformation matrix to pose."""

import numpy as np
import pytest

from magicedit.action_units import NAMES
from magicedit.faces.measure import (
    BLENDSHAPES_OF_UNIT,
    blendshapes_to_action_units,
    blendshapes_to_sides,
    lip_gap,
    pose_of,
)

BLENDSHAPES = {name for names in BLENDSHAPES_OF_UNIT.values() for name in names}


def landmarks_with_gap(gap: float) -> np.ndarray:
    """A face of interocular distance 100 px, with open eyes, its inner lips `gap` such distances apart."""
    landmarks = np.zeros((478, 2), np.float32)
    landmarks[[33, 133]] = (-60, 0), (-40, 0)
    landmarks[[362, 263]] = (40, 0), (60, 0)
    landmarks[[160, 159, 158, 385, 386, 387]] = [(x, -6) for x in (-55, -50, -45, 45, 50, 55)]
    landmarks[[144, 145, 153, 380, 374, 373]] = [(x, 0) for x in (-55, -50, -45, 45, 50, 55)]
    landmarks[[82, 13, 312]] = (-8, 60), (0, 60), (8, 60)
    landmarks[[87, 14, 317]] = landmarks[[82, 13, 312]] + (0, 100 * gap)
    return landmarks


def test_every_unit_of_the_vocabulary_and_the_measured_only_ones_are_measured():
    units = blendshapes_to_action_units(dict.fromkeys(BLENDSHAPES, 0.0), landmarks_with_gap(0.0))
    assert set(units) == {
        *NAMES, "AU7", "AU10", "AU14", "AU16", "AU18", "AU22", "AU24", "AU28", "AU43", "AU45"
    }  # fmt: skip
    assert set(units.values()) == {0.0}


@pytest.mark.parametrize("unit", sorted(BLENDSHAPES_OF_UNIT))
def test_a_blendshape_moves_its_unit_alone(unit: str):
    scores = dict.fromkeys(BLENDSHAPES, 0.0)
    scores[BLENDSHAPES_OF_UNIT[unit][0]] = 0.8
    units = blendshapes_to_action_units(scores, landmarks_with_gap(0.0))
    # one side of a bilateral unit counts half
    same = {name for name, names in BLENDSHAPES_OF_UNIT.items() if names == BLENDSHAPES_OF_UNIT[unit]}
    assert same == ({"AU43", "AU45"} if unit in ("AU43", "AU45") else {unit})  # a blink closes the eyes
    assert {name: value for name, value in units.items() if value} == dict.fromkeys(
        same, pytest.approx(5 * 0.8 / len(BLENDSHAPES_OF_UNIT[unit]))
    )


def test_lips_part_by_their_gap():
    scores = dict.fromkeys(BLENDSHAPES, 0.0)
    intensities = [
        blendshapes_to_action_units(scores, landmarks_with_gap(gap))["AU25"]
        for gap in (0, 0.015, 0.1, 0.2, 0.3, 0.9)
    ]
    assert intensities[:2] == pytest.approx([0.0, 0.0], abs=1e-4)
    assert intensities[2] == pytest.approx(5 * (0.1 - 0.015) / (0.30 - 0.015), abs=1e-4)
    assert intensities[3] == pytest.approx(5 * (0.2 - 0.015) / (0.30 - 0.015), abs=1e-4)
    assert intensities[4:] == pytest.approx([5.0, 5.0], abs=1e-4)


@pytest.mark.parametrize(("height", "closed"), [(5, 0.5), (4, 0.5), (3.2, 2.5), (2.4, 5), (0, 5)])
def test_eyes_close_by_their_lids_where_the_score_says_less(height: float, closed: float):
    """The left eye is 20 px wide."""
    landmarks = landmarks_with_gap(0.0)
    landmarks[[385, 386, 387], 1] = -height
    scores = dict.fromkeys(BLENDSHAPES, 0.0) | {"eyeBlinkLeft": 0.1, "eyeBlinkRight": 0.4}
    sides = blendshapes_to_sides(scores, landmarks)
    assert sides["AU43L"] == pytest.approx(closed, abs=1e-5)
    assert sides["AU43R"] == 2
    units = blendshapes_to_action_units(scores, landmarks)
    assert units["AU43"] == pytest.approx((closed + 2) / 2, abs=1e-5)
    assert units["AU45"] == 1.25


def test_the_gap_does_not_depend_on_the_photographs_size():
    landmarks = landmarks_with_gap(0.2)
    assert lip_gap(landmarks * 7 + 100) == pytest.approx(lip_gap(landmarks), rel=1e-5)


def rotation(axis: int, degrees: float) -> np.ndarray:
    """Right-handed rotation about x, y or z, as a (4, 4) matrix."""
    angle, (i, j) = np.radians(degrees), [(1, 2), (2, 0), (0, 1)][axis]
    matrix = np.eye(4)
    matrix[i, i] = matrix[j, j] = np.cos(angle)
    matrix[i, j], matrix[j, i] = -np.sin(angle), np.sin(angle)
    return matrix


@pytest.mark.parametrize(
    ("yaw", "pitch", "roll"), [(30, 0, 0), (0, 20, 0), (0, 0, 40), (-25, 15, -10), (50, -30, 20)]
)
def test_pose_of_known_rotations(yaw: float, pitch: float, roll: float):
    # x right, y up, z to the viewer: turning right is a positive turn about y, looking up and tilting
    # clockwise are negative ones about x and z
    matrix = rotation(1, yaw) @ rotation(0, -pitch) @ rotation(2, -roll)
    pose = pose_of(matrix)
    assert (pose.yaw, pose.pitch, pose.roll) == pytest.approx((yaw, pitch, roll), abs=1e-6)
    nose = matrix[:3, :3] @ (0, 0, 1)
    assert np.sign(nose[0]) == np.sign(yaw)
    assert np.sign(nose[1]) == np.sign(pitch)
