"""InsightFace's own loading code on tiny ONNX models, and what we make of its answers.

The published weights may not be used freely and are not here, so the tests write models with the inputs and
outputs by which InsightFace tells a detector, a landmark and a recognition model apart. They do compute: the
detector finds red cells, the landmark model draws a turned mean face, the recognition model averages colours.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("insightface", reason="the extra insightface is not installed")
onnx = pytest.importorskip("onnx", reason="the tests write ONNX files")

from insightface.data import get_object  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from magicedit.errors import ImageError, MissingDependencyError, ModelError  # noqa: E402
from magicedit.faces import align, face_region, load_backend  # noqa: E402

ANGLES = (20.0, -30.0, 10.0)  # pitch, yaw, roll of the face that the landmark model draws
STRIDES = (8, 16, 32)
HALF_BOX = 4.0  # strides from an anchor to the sides of its box
KEYPOINTS = np.array([(-1.5, -1), (1.5, -1), (0, 0.2), (-1.2, 1.6), (1.2, 1.6)], np.float32)  # strides


def save(path: Path, nodes: list, inputs: list, outputs: list, constants: dict[str, np.ndarray]) -> None:
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def write_detector(path: Path) -> None:
    """SCRFD's nine outputs: scores, boxes and keypoints at three strides, two anchors a cell."""
    nodes, constants = (
        [],
        {"shape1": np.array([-1, 1]), "shape4": np.array([-1, 4]), "shape10": np.array([-1, 10])},
    )
    outputs = {1: [], 4: [], 10: []}
    for stride in STRIDES:
        nodes.append(
            helper.make_node(
                "AveragePool", ["input"], [f"pooled{stride}"], kernel_shape=[stride] * 2, strides=[stride] * 2
            )
        )
        for width, bias in (
            (1, [-8.0]),
            (4, [HALF_BOX] * 4),
            (10, KEYPOINTS.ravel().tolist()),
        ):
            # only cells of stride 16 look at colour: red, and neither green nor blue
            weight = np.zeros((2 * width, 3, 1, 1), np.float32)
            if width == 1 and stride == 16:
                weight[0, :, 0, 0] = 6, -6, -6  # the first anchor
            constants[f"w{stride}_{width}"] = weight
            constants[f"b{stride}_{width}"] = np.array(bias * 2, np.float32)
            name = f"{width}_{stride}"
            nodes += [
                helper.make_node(
                    "Conv", [f"pooled{stride}", f"w{stride}_{width}", f"b{stride}_{width}"], [f"c{name}"]
                ),
                helper.make_node("Transpose", [f"c{name}"], [f"t{name}"], perm=[0, 2, 3, 1]),
                helper.make_node("Reshape", [f"t{name}", f"shape{width}"], [f"r{name}"]),
                helper.make_node("Sigmoid" if width == 1 else "Identity", [f"r{name}"], [f"out{name}"]),
            ]
            outputs[width].append(
                helper.make_tensor_value_info(f"out{name}", TensorProto.FLOAT, ["n", width])
            )
    image = helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, "height", "width"])
    save(path, nodes, [image], outputs[1] + outputs[4] + outputs[10], constants)


def drawn_landmarks() -> np.ndarray:
    """The mean face turned by ANGLES, (68, 3) in the landmark model's units: -1..1 over its crop."""
    pitch, yaw, roll = np.radians(ANGLES)
    about_x = np.array([[1, 0, 0], [0, np.cos(pitch), -np.sin(pitch)], [0, np.sin(pitch), np.cos(pitch)]])
    about_y = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
    about_z = np.array([[np.cos(roll), -np.sin(roll), 0], [np.sin(roll), np.cos(roll), 0], [0, 0, 1]])
    mean = get_object("meanshape_68.pkl")
    return (0.6 * (mean - mean.mean(0)) @ (about_z @ about_y @ about_x).T).astype(np.float32)


def write_landmarks(path: Path) -> None:
    """1x3x192x192 to 3309 numbers, of which the last 204 are the 68 landmarks."""
    answer = np.zeros((1, 3309), np.float32)
    answer[0, -204:] = drawn_landmarks().ravel()
    nodes = [
        helper.make_node("GlobalAveragePool", ["data"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("MatMul", ["flat", "nothing"], ["zeros"]),
        helper.make_node("Add", ["zeros", "answer"], ["fc1"]),
    ]
    image = helper.make_tensor_value_info("data", TensorProto.FLOAT, [1, 3, 192, 192])
    result = helper.make_tensor_value_info("fc1", TensorProto.FLOAT, [1, 3309])
    save(path, nodes, [image], [result], {"nothing": np.zeros((3, 3309), np.float32), "answer": answer})


def write_recognition(path: Path) -> None:
    """1x3x112x112 to three numbers: the crop's mean red, green and blue, -1..1."""
    nodes = [
        helper.make_node("GlobalAveragePool", ["data"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["id"]),
    ]
    image = helper.make_tensor_value_info("data", TensorProto.FLOAT, [1, 3, 112, 112])
    save(path, nodes, [image], [helper.make_tensor_value_info("id", TensorProto.FLOAT, [1, 3])], {})


@pytest.fixture
def pack(tmp_path) -> Callable[..., Path]:
    """`pack("detector", ...)`: a folder with these models."""
    writers = {"detector": write_detector, "landmarks": write_landmarks, "recognition": write_recognition}

    def build(*names: str, folder: Path = tmp_path / "pack") -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            writers[name](folder / f"{name}.onnx")
        return folder

    return build


@pytest.fixture
def photo() -> np.ndarray:
    """640 px, green-blue, with two red cells of the detector's grid of 16 px."""
    pixels = np.full((640, 640, 3), (20, 120, 120), np.uint8)
    pixels[176:192, 128:144] = 255, 0, 0
    pixels[416:432, 448:464] = 255, 0, 0
    return pixels


def test_everything_that_the_models_say_arrives(pack, photo):
    faces = load_backend("insightface", models=pack("detector", "landmarks", "recognition")).detect(photo)
    assert len(faces) == 2
    for face in faces:
        assert face.scheme == "ibug68"
        assert face.action_units == {}
        assert 0.9 < face.score < 1
        x0, y0, x1, y1 = face.box
        assert (x1 - x0, y1 - y0) == pytest.approx((2 * HALF_BOX * 16, 2 * HALF_BOX * 16))
        # the landmark model's crop is 1.5 boxes wide
        centre = np.array([x0 + x1, y0 + y1]) / 2
        expected = centre + drawn_landmarks()[:, :2] * 1.5 * (x1 - x0) / 2
        assert face.landmarks == pytest.approx(expected, abs=0.05)
        assert face.landmarks.dtype == np.float32
        pose = face.pose
        assert (pose.pitch, pose.yaw, pose.roll) == pytest.approx(ANGLES, abs=0.1)
        assert np.linalg.norm(face.embedding) == pytest.approx(1, abs=1e-6)
    # boxes stand around the anchors, the upper left corners of the cells
    assert sorted((face.box[0] + 64, face.box[1] + 64) for face in faces) == [(128, 176), (448, 416)]


def test_the_signs_of_the_pose_are_ours():
    landmarks = drawn_landmarks()
    # yaw -30: turned to the subject's right, the picture's left; roll 10: the left eye sinks
    assert landmarks[30, 0] < landmarks[[0, 16], 0].mean()
    assert landmarks[45, 1] > landmarks[36, 1]


def test_colours_are_not_swapped(pack, photo):
    backend = load_backend("insightface", models=pack("detector", "landmarks", "recognition"))
    assert backend.detect(np.ascontiguousarray(photo[..., ::-1])) == []  # its squares are blue
    yellow = np.where(photo == (20, 120, 120), np.uint8([120, 120, 20]), photo)
    for pixels, least in ((photo, 0), (yellow, 2)):
        for face in backend.detect(pixels):
            assert face.embedding.argmin() == least


def test_its_faces_can_be_aligned_and_masked(pack, photo):
    face = load_backend("insightface", models=pack("detector", "landmarks")).detect(photo)[0]
    assert face.embedding is None
    alignment = align(face, 128)
    landmarks = alignment.apply(face.landmarks)
    assert landmarks[[0, 16], 1].mean() < landmarks[8, 1]
    assert face_region(landmarks, 128, face.scheme).mean() > 0.1


def test_a_pack_is_found_by_name(pack, photo, tmp_path):
    pack("detector", "landmarks", folder=tmp_path / "home" / "models" / "tiny_pack")
    backend = load_backend("insightface", models="tiny_pack", root=tmp_path / "home")
    assert len(backend.detect(photo)) == 2


def test_no_face_and_no_photograph(pack):
    backend = load_backend("insightface", models=pack("detector", "landmarks"))
    assert backend.detect(np.zeros((300, 500, 3), np.uint8)) == []
    with pytest.raises(ImageError, match="height, width, 3"):
        backend.detect(np.zeros((300, 500), np.uint8))


def test_absent_models_are_named_with_remedy_and_licence(tmp_path):
    for models in ("buffalo_l", tmp_path / "nothing", tmp_path):
        with pytest.raises(MissingDependencyError, match="non-commercial") as error:
            load_backend("insightface", models=models, root=tmp_path / "home")
        assert str(tmp_path / "home" / "models") in str(error.value) or str(tmp_path) in str(error.value)
        assert "mediapipe" in str(error.value)
    assert not (tmp_path / "home").exists()  # nothing was fetched


def test_incomplete_and_broken_packs(pack, tmp_path):
    with pytest.raises(ModelError, match="landmark_3d_68"):
        load_backend("insightface", models=pack("detector", "recognition", folder=tmp_path / "a"))
    with pytest.raises(ModelError, match="complete pack"):
        load_backend("insightface", models=pack("landmarks", folder=tmp_path / "b"))
    broken = pack("detector", "landmarks", folder=tmp_path / "c")
    (broken / "detector.onnx").write_bytes(b"not a model")
    with pytest.raises(ModelError, match="complete pack"):
        load_backend("insightface", models=broken)


def test_detection_size_is_checked():
    with pytest.raises(ValueError, match="multiple of 32"):
        load_backend("insightface", detection_size=600)
