"""What is installed, what the machine offers, and whether editing can work: `magicedit doctor`."""

import os
import platform
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from packaging.version import Version

from magicedit import __version__
from magicedit.errors import (
    LEFT_OUT,
    LIGHT_EXTRAS,
    MagicEditError,
    installing,
    is_installed,
    is_light,
    version_of,
)

WHOLE, LIGHT = "magicedit", "magicedit-light"  # names under which the package is installed
ESSENTIAL_PACKAGES = ("onnxruntime", "mediapipe", "numpy", "pillow", "safetensors")
WHOLE_PACKAGES = tuple(sorted(LEFT_OUT))  # essential unless only LIGHT is installed
OPTIONAL_PACKAGES = {  # package -> the extra that brings it
    "gradio": "app",
    "av": "video",
    "pi-heif": "heic",
    "OpenEXR": "exr",
    "c2pa-python": "c2pa",
    "dlib-bin": "evaluation",
    "face-recognition-models": "evaluation",
    "stlpips-pytorch": "lpips",
    "insightface": "insightface",
    "scikit-image": "demo",
    "ray": "scale",
    "webdataset": "scale",
    "deepspeed": "deepspeed",
}
OPENCV_VARIANTS = tuple(
    f"opencv-{kind}python{screen}" for screen in ("", "-headless") for kind in ("", "contrib-")
)
# package -> the first version without known faults in what we call, and which; gradio still asks for an older
# Pillow, so that no requirement of ours can say it
SAFE_VERSIONS = {"pillow": ("13", "reading JPEG and TIFF: CVE-2026-112403, -112395, -112393, -96778")}


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: what.
        status: "ok", "missing" (optional and absent) or "broken".
        detail: version, place, or what is wrong and what to do.
        essential: whether editing a photograph needs it.
    """

    name: str
    status: str
    detail: str
    essential: bool = False


@dataclass(frozen=True)
class Report:
    """Checks by section: "versions", "devices", "models", "extras"."""

    sections: dict[str, list[Check]] = field(default_factory=dict)

    @property
    def healthy(self) -> bool:
        """Whether everything essential works."""
        checks = [check for section in self.sections.values() for check in section]
        return not any(check.essential and check.status != "ok" for check in checks)

    def to_json(self) -> dict[str, Any]:
        return {
            "healthy": self.healthy,
            **{
                section: {check.name: {"status": check.status, "detail": check.detail} for check in checks}
                for section, checks in self.sections.items()
            },
        }

    def __str__(self) -> str:
        lines = []
        for section, checks in self.sections.items():
            lines.append(section)
            lines += [f"  {check.status:<8} {check.name:<24} {check.detail}" for check in checks]
        broken = [c.name for cs in self.sections.values() for c in cs if c.essential and c.status != "ok"]
        lines.append(f"broken: {', '.join(broken)}" if broken else "everything essential works")
        return "\n".join(lines)


def examine() -> Report:
    """Looks at versions, devices, models and extras; what it can run, it runs."""
    return Report(
        {
            "versions": check_versions(),
            "devices": check_devices(),
            "models": check_models(),
            "extras": check_extras(),
        }
    )


def check_installation() -> Check:
    place = f"{__version__} in {Path(__file__).parent}"
    if is_installed(LIGHT) and is_installed(WHOLE):
        what = f"{WHOLE} and {LIGHT} are the same files: uninstall both, then install one of them"
        return Check(WHOLE, "broken", f"{place}; {what}")
    return Check(LIGHT if is_light() else WHOLE, "ok", place)


def check_versions() -> list[Check]:
    light = is_light()
    checks = [
        check_installation(),
        Check("python", "ok", f"{platform.python_version()} on {platform.platform()}"),
    ]
    for package in (*ESSENTIAL_PACKAGES, *WHOLE_PACKAGES):
        version = version_of(package)
        if version is None and light and package in WHOLE_PACKAGES:
            continue
        detail = version or f"not installed: pip install {package}"
        safe, faults = SAFE_VERSIONS.get(package, ("0", ""))
        if version and Version(version) < Version(safe):
            detail += f"; known faults in {faults}; pip install --no-deps '{package}>={safe}'"
        checks.append(Check(package, "ok" if version else "broken", detail, essential=True))
    return [*checks, check_opencv()]


def check_opencv() -> Check:
    """All OpenCV packages install into one folder, so several at different versions overwrite each other."""
    found = {package: version_of(package) for package in OPENCV_VARIANTS}
    found = {package: version for package, version in found.items() if version}
    listed = ", ".join(f"{package} {version}" for package, version in found.items())
    status = "ok" if len(set(found.values())) == 1 else "broken"
    if status == "broken":
        different = f"variants differ: {listed}; install all at one version"
        package = "opencv-python-headless" if is_light() else "opencv-contrib-python"
        listed = different if found else f"not installed: pip install {package}"
    return Check("opencv", status, listed, essential=True)


def check_devices() -> list[Check]:
    if is_light() and version_of("torch") is None:
        return [Check("cpu", "ok", f"{os.cpu_count()} cores", essential=True)]
    try:
        import torch
    except (ImportError, OSError) as error:
        return [Check("torch", "broken", f"does not import: {error}", essential=True)]
    threads = torch.get_num_threads()
    checks = [Check("cpu", "ok", f"{os.cpu_count()} cores, {threads} threads used", essential=True)]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            memory = properties.total_memory / 2**30
            checks.append(Check(f"cuda:{index}", "ok", f"{properties.name}, {memory:.0f} GiB"))
    else:
        checks.append(Check("cuda", "missing", f"none seen by torch {torch.__version__}"))
    if torch.backends.mps.is_available():
        checks.append(Check("mps", "ok", "Apple GPU"))
    return checks


def attempt(name: str, run: Callable[[], str], *, essential: bool = False) -> Check:
    """ "ok" with what `run` returns, or "broken" with what it raised. The doctor outlives every patient."""
    try:
        return Check(name, "ok", run(), essential)
    except MagicEditError as error:
        return Check(name, "broken", str(error), essential)
    except Exception as error:
        return Check(name, "broken", f"{type(error).__name__}: {error}", essential)


def check_models() -> list[Check]:
    checks = [
        attempt("face landmarker", run_landmarker, essential=True),
        attempt("mini", run_mini, essential=True),
        check_other_models(),
    ]
    root = Path("~/.insightface/models").expanduser()
    packs = sorted(str(folder) for folder in root.glob("*") if any(folder.glob("*.onnx")))
    detail = f"{', '.join(packs) or 'none downloaded'} (optional; non-commercial use only)"
    checks.append(Check("insightface weights", "ok" if packs else "missing", detail))
    from magicedit.faces.backends import dlib

    if dlib.available():  # else `identity_distance` is None
        return [*checks, attempt("identity descriptor", run_identity)]
    return [*checks, Check("identity descriptor", "missing", installing("evaluation"))]


def run_landmarker() -> str:
    """Loads MediaPipe's model and lets it look at an empty picture."""
    import numpy as np

    from magicedit.faces import load_backend
    from magicedit.faces.backends.mediapipe import landmarker_file

    path, origin = landmarker_file()
    load_backend("mediapipe").detect(np.full((64, 64, 3), 128, np.uint8))
    return f"{path} ({origin})"


def run_mini() -> str:
    """Loads the embedded model, and tells what runs it."""
    from magicedit.embedded import embedded_folder
    from magicedit.models.face_model import load_face_model
    from magicedit.models.graph_model import GraphModel

    model = load_face_model("mini")
    folder = embedded_folder("mini")
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6
    about = f"embedded, {size:.0f} MB, {model.resolution} px, {len(model.vocabulary)} AUs"
    runs = "ONNX Runtime, without PyTorch" if isinstance(model, GraphModel) else "PyTorch"
    return f"{folder} ({about}); runs on {runs}"


def check_other_models() -> Check:
    name = "other models"
    if version_of("torch") is None:
        return Check(name, "missing", f"run on PyTorch, and so do --device and --dtype: {installing()}")
    return Check(name, "ok", "run on PyTorch, and so do --device and --dtype")


def run_identity() -> str:
    """Loads dlib's models and lets them look at an empty picture."""
    import numpy as np

    from magicedit.faces import Face
    from magicedit.faces.backends import dlib

    anywhere = np.linspace((10, 10), (50, 50), 68, dtype=np.float32)
    dlib.descriptor(np.full((64, 64, 3), 128, np.uint8), Face((10, 10, 50, 50), anywhere, "ibug68", 1.0))
    return f"dlib {version_of('dlib-bin') or version_of('dlib')}"


def check_extras() -> list[Check]:
    checks, light = [], is_light()
    for package, extra in OPTIONAL_PACKAGES.items():
        version = version_of(package)
        if version is None and light and extra not in LIGHT_EXTRAS:
            continue
        detail = version or installing(extra)
        checks.append(Check(package, "ok" if version else "missing", detail))
    return checks
