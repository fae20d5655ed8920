"""OpenFace's table of measured faces."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from magicedit.cli import main
from magicedit.expression import Expression
from magicedit.faces import Face, Gaze, Pose, load_backend
from magicedit.faces.measure import pose_of
from magicedit.faces.openface import COLUMNS, _rotation, openface_row


def cells_of(**measured) -> dict[str, str]:
    face = Face((0, 0, 1, 1), np.zeros((478, 2)), "mediapipe478", 0.98, **measured)
    return dict(zip(COLUMNS, openface_row(face, 7, 0.24), strict=True))


def numbers(cells, *names) -> list[float]:
    return [float(cells[name]) for name in names]


def test_columns_are_openfaces(shared):
    """Those of a table of OpenFace 2 which also has corners of the jaw; their order too."""
    with (shared / "cases" / "16-openface-video-as-curve" / "openface.csv").open() as file:
        header = [name.strip() for name in next(csv.reader(file))]
    assert {name for name in header if not name.startswith("x_")} <= {*COLUMNS}
    ours = [name for name in COLUMNS if name in header and name != "AU28_c"]
    assert ours == [name for name in header if name in COLUMNS and name != "AU28_c"]
    assert len(COLUMNS) == len({*COLUMNS}) == 54


def test_a_photograph(closed_mouth):
    face = load_backend().detect(closed_mouth)[0]
    cells = dict(zip(COLUMNS, openface_row(face, 1, 0.0), strict=True))
    for number in (1, 12, 25, 45):
        level = face.action_units[f"AU{number}"]
        assert float(cells[f"AU{number:02}_r"]) == pytest.approx(level, abs=0.005)
        assert float(cells[f"AU{number:02}_c"]) == (level >= 1)
    unmeasured = {name for name, cell in cells.items() if not cell}
    assert unmeasured == {"AU23_r", "AU23_c", "pose_Tx", "pose_Ty", "pose_Tz"}


def test_the_command_writes_a_table_that_can_be_copied(closed_mouth, tmp_path, capsys):
    Image.fromarray(closed_mouth).save(photo := tmp_path / "photo.png")
    assert main(["measure", str(photo), "--openface", str(tmp_path / "units.csv"), "--json"]) == 0
    (face,) = json.loads(capsys.readouterr().out)["faces"]
    copied = Expression.read(str(tmp_path / "units.csv"))
    for name in ("AU1", "AU12", "AU26", "AU45"):
        assert copied.values[name] == pytest.approx(face["action_units"][name], abs=0.01)
    assert "AU23" not in copied.values


def test_units_present_from_intensity_a():
    cells = cells_of(action_units={"AU12": 1.0, "AU4": 0.99, "AU28": 2.0})
    assert (cells["AU12_r"], cells["AU12_c"]) == ("1.00", "1.00")
    assert (cells["AU04_r"], cells["AU04_c"]) == ("0.99", "0.00")
    assert cells["AU28_c"] == "1.00"
    assert cells["AU01_r"] == cells["gaze_0_x"] == cells["pose_Rx"] == ""
    assert [cells[name] for name in COLUMNS[:5]] == ["7", "0", "0.240", "0.98", "1"]


@pytest.mark.parametrize(
    ("pose", "angles"),
    [
        (Pose(10, 0, 0), [0, -10, 0]),  # to the right of the picture: about y, which points down
        (Pose(0, 10, 0), [-10, 0, 0]),  # up
        (Pose(0, 0, 10), [0, 0, 10]),  # clockwise
    ],
)
def test_signs_of_the_head(pose, angles):
    cells = cells_of(pose=pose)
    assert numbers(cells, "pose_Rx", "pose_Ry", "pose_Rz") == pytest.approx(np.radians(angles), abs=1e-3)


def test_the_rotation_is_the_inverse_of_the_poses():
    pose = Pose(22.0, -13.0, 31.0)
    matrix = np.eye(4)
    matrix[:3, :3] = _rotation(pose)
    assert vars(pose_of(matrix)) == pytest.approx(vars(pose))
    # Rx Ry Rz, as OpenFace composes them
    x, y, z = numbers(cells_of(pose=pose), "pose_Rx", "pose_Ry", "pose_Rz")
    (sx, sy, sz), (cx, cy, cz) = np.sin([x, y, z]), np.cos([x, y, z])
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    flip = np.diag([1, -1, -1])
    assert about_x @ about_y @ about_z == pytest.approx(flip @ _rotation(pose) @ flip, abs=2e-3)


def test_gaze_is_in_the_cameras_axes():
    ahead = cells_of(pose=Pose(0, 0, 0), gaze=Gaze(0, 0))
    assert numbers(ahead, "gaze_0_x", "gaze_0_y", "gaze_0_z") == [0, 0, -1]
    aside = cells_of(pose=Pose(0, 0, 0), gaze=Gaze(10, -20))  # right in the picture, and down
    assert numbers(aside, "gaze_angle_x", "gaze_angle_y")[0] == pytest.approx(np.radians(10), abs=1e-3)
    assert float(aside["gaze_angle_y"]) > np.radians(19)
    assert numbers(aside, "gaze_1_x", "gaze_1_y", "gaze_1_z") == pytest.approx(
        numbers(aside, "gaze_0_x", "gaze_0_y", "gaze_0_z")
    )
    into_the_camera = cells_of(pose=Pose(12, 0, 0), gaze=Gaze(-12, 0))
    assert float(into_the_camera["gaze_angle_x"]) == pytest.approx(0, abs=1e-3)


def test_a_frame_without_the_face():
    row = openface_row(None, 3, 0.08)
    assert row[:5] == ["3", "0", "0.080", "0.00", "0"]
    assert len(row) == len(COLUMNS)
    assert not any(row[5:])
