"""The doctor looks at the real machine; what is broken is broken for real."""

import json

import pytest

from magicedit import doctor
from magicedit.cli import main
from magicedit.embedded import embedded_folder

trained = (embedded_folder("mini") / "model_index.json").is_file()


@pytest.fixture(scope="module")
def report():
    return doctor.examine()


def test_sees_versions_devices_and_models(report):
    import torch

    found = report.to_json()
    assert set(found) == {"healthy", "versions", "devices", "models", "extras"}
    assert found["versions"]["torch"]["status"] == "ok"
    assert found["versions"]["torch"]["detail"].startswith(torch.__version__.split("+")[0])
    assert found["devices"]["cpu"]["status"] == "ok"
    assert ("cuda:0" in found["devices"]) == torch.cuda.is_available()
    assert found["models"]["face landmarker"]["status"] == "ok"
    assert found["models"]["face landmarker"]["detail"].endswith("face_landmarker.task (package)")
    assert found["models"]["mini"]["status"] == ("ok" if trained else "broken")
    assert found["healthy"] == trained


def test_command_prints_json_and_text(capsys):
    expected = 0 if trained else 1
    assert main(["doctor", "--json"]) == expected
    assert json.loads(capsys.readouterr().out)["healthy"] == trained
    assert main(["doctor"]) == expected
    out = capsys.readouterr().out
    assert "mediapipe" in out
    assert ("everything essential works" in out) == trained


def test_a_missing_model_is_essential(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("magicedit.models.folder.embedded_folder", lambda name: tmp_path / name)
    assert main(["doctor", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["models"]["mini"]["status"] == "broken"
    assert "missing from this installation" in found["models"]["mini"]["detail"]


def test_a_damaged_landmarker_is_essential(capsys, monkeypatch, tmp_path):
    (tmp_path / "face_landmarker.task").write_bytes(b"half of it")
    monkeypatch.setattr(
        "magicedit.faces.backends.mediapipe.LANDMARKER_FILE", tmp_path / "face_landmarker.task"
    )
    assert main(["doctor", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["models"]["face landmarker"]["status"] == "broken"
    assert "SHA-256" in found["models"]["face landmarker"]["detail"]


def test_tells_what_runs_the_models(report):
    models = report.to_json()["models"]
    assert models["mini"]["detail"].endswith("runs on ONNX Runtime, without PyTorch")
    assert models["other models"]["detail"].startswith("run on PyTorch")


@pytest.mark.parametrize("light", [True, False])
def test_torch_is_essential_unless_only_the_light_package_is_installed(monkeypatch, light):
    installed = {"magicedit-light" if light else "magicedit": "0.1.0"}
    monkeypatch.setattr(doctor, "version_of", installed.get)
    monkeypatch.setattr("magicedit.errors.is_installed", installed.__contains__)
    monkeypatch.setattr(doctor, "is_installed", installed.__contains__)
    checks = {check.name: check for check in doctor.check_versions()}
    assert ("torch" in checks) is not light
    assert checks["onnxruntime"].essential
    assert checks["onnxruntime"].status == "broken"
    whole = f"{'pip uninstall magicedit-light, then ' * light}pip install magicedit"
    assert doctor.check_other_models().detail.endswith(f": {whole}")
    assert doctor.check_opencv().detail.endswith("-headless") is light
    extras = {check.name: check.detail for check in doctor.check_extras()}
    assert extras["gradio"] == f"pip install 'magicedit{'-light' if light else ''}[app]'"
    assert ("ray" in extras) is not light
    assert {"pi-heif", "OpenEXR", "c2pa-python"} <= set(extras)
    installed |= {"magicedit": "0.1.0", "magicedit-light": "0.1.0"}
    assert "uninstall both" in doctor.check_installation().detail


def test_opencv_variants_must_agree(monkeypatch):
    versions = {"opencv-python": "5.0.0", "opencv-contrib-python": "4.12.0"}
    monkeypatch.setattr(doctor, "version_of", versions.get)
    check = doctor.check_opencv()
    assert (check.status, check.essential) == ("broken", True)
    assert "opencv-python 5.0.0, opencv-contrib-python 4.12.0" in check.detail
    versions["opencv-contrib-python"] = "5.0.0"
    assert doctor.check_opencv().status == "ok"


def test_only_what_is_essential_decides():
    fine, optional = doctor.Check("a", "ok", "", True), doctor.Check("b", "missing", "")
    broken = doctor.Check("c", "broken", "gone", True)
    assert doctor.Report({"s": [fine, optional]}).healthy
    assert not doctor.Report({"s": [fine, optional, broken]}).healthy
    assert str(doctor.Report({"s": [fine, broken]})).endswith("broken: c")


@pytest.mark.parametrize(("version", "told"), [("12.3.0", True), ("13.0.0", False)])
def test_versions_with_known_faults_are_told(monkeypatch, version, told):
    monkeypatch.setattr(doctor, "version_of", lambda package: version)
    (pillow,) = (check for check in doctor.check_versions() if check.name == "pillow")
    assert pillow.status == "ok"
    assert ("CVE-2026-112403" in pillow.detail) is told
