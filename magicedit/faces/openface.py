"""Measured faces as rows of OpenFace 2's table, so that tools that read its files read ours.

Columns, order, units and signs are those of OpenFace's `FeatureExtraction` with its outputs of gaze, pose and
action units, without landmarks. Its camera looks along z, x points to the right of the picture and y down.
Sources: T. Baltrusaitis, A. Zadeh, Y. Lim, L.-P. Morency, "OpenFace 2.0", FG 2018, and the project's wiki,
"Output Format".
"""

from collections.abc import Sequence

import numpy as np

from magicedit.faces.types import Face, Gaze, Pose

# Numbers of action units with an intensity, and those with presence
INTENSITIES = (1, 2, 4, 5, 6, 7, 9, 10, 12, 14, 15, 17, 20, 23, 25, 26, 45)
PRESENCES = (*INTENSITIES[:-1], 28, 45)
PRESENT = 1.0  # intensity steps, FACS letter A, from which a unit counts as present
COLUMNS = (
    *("frame", "face_id", "timestamp", "confidence", "success"),
    *(f"gaze_{eye}_{axis}" for eye in (0, 1) for axis in "xyz"),
    *("gaze_angle_x", "gaze_angle_y"),
    *(f"pose_{kind}{axis}" for kind in "TR" for axis in "xyz"),
    *(f"AU{number:02}_r" for number in INTENSITIES),
    *(f"AU{number:02}_c" for number in PRESENCES),
)
_TO_OPENFACE = np.array([1.0, -1.0, -1.0])  # from axes with y up and z towards the viewer


def openface_row(face: Face | None, frame: int, seconds: float) -> list[str]:
    """Returns the cells of one frame in the order of `COLUMNS`; those that are not measured are empty.

    Intensities are 0 to 5, presence is 1 from intensity `PRESENT` on. Gaze is in the camera's axes, as unit
    vectors and in radians, for both eyes the mean of the two; the head's rotation is in radians. Where the
    head is, in millimetres, and AU23 are not measured.

    Args:
        face: None where the frame does not show it.
        frame: from 1. seconds: since the first frame.
    """
    start = [str(frame), "0", f"{seconds:.3f}"]
    if face is None:
        return [*start, "0.00", "0", *[""] * (len(COLUMNS) - 5)]
    gaze, pose = _gaze_cells(face.gaze, face.pose), _pose_cells(face.pose)
    levels = face.action_units
    intensities = [_cell(levels.get(f"AU{number}"), ".2f") for number in INTENSITIES]
    presences = (levels.get(f"AU{number}") for number in PRESENCES)
    present = [_cell(None if level is None else float(level >= PRESENT), ".2f") for level in presences]
    return [*start, f"{face.score:.2f}", "1", *gaze, *["", "", ""], *pose, *intensities, *present]


def _gaze_cells(gaze: Gaze | None, pose: Pose | None) -> list[str]:
    if gaze is None or pose is None:
        return [""] * 8
    yaw, pitch = np.radians(gaze)
    in_head = np.array([np.cos(pitch) * np.sin(yaw), np.sin(pitch), np.cos(pitch) * np.cos(yaw)])
    x, y, z = direction = _TO_OPENFACE * (_rotation(pose) @ in_head)
    cells = _cells(direction, ".6f")
    return [*cells, *cells, *_cells([np.arctan2(x, -z), np.arctan2(y, -z)], ".3f")]


def _pose_cells(pose: Pose | None) -> list[str]:
    """Angles about x, then y, then z, of the rotation Rx Ry Rz."""
    if pose is None:
        return [""] * 3
    rotation = _TO_OPENFACE[:, None] * _rotation(pose) * _TO_OPENFACE
    x = np.arctan2(-rotation[1, 2], rotation[2, 2])
    y = np.arcsin(np.clip(rotation[0, 2], -1, 1))
    z = np.arctan2(-rotation[0, 1], rotation[0, 0])
    return _cells([x, y, z], ".3f")


def _rotation(pose: Pose) -> np.ndarray:
    """(3, 3), head to camera, y up and z towards the viewer; the inverse of `measure.pose_of`."""
    (sy, sp, sr), (cy, cp, cr) = (
        turn(np.radians([pose.yaw, pose.pitch, pose.roll])) for turn in (np.sin, np.cos)
    )
    turn = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    nod = np.array([[1, 0, 0], [0, cp, sp], [0, -sp, cp]])
    tilt = np.array([[cr, sr, 0], [-sr, cr, 0], [0, 0, 1]])
    return turn @ nod @ tilt


def _cells(values: Sequence[float] | np.ndarray, form: str) -> list[str]:
    return [_cell(float(value), form) for value in values]


def _cell(value: float | None, form: str) -> str:
    return "" if value is None else format(value + 0.0, form)
