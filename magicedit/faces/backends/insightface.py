"""InsightFace behind the same protocol: SCRFD detection, 68 landmarks in 3D, head pose, ArcFace embedding.

The package is MIT-licensed; the model packs that its authors publish (buffalo_l, antelopev2, ...) are for
non-commercial research only. So nothing is downloaded here: the user passes a folder or a pack that they
downloaded themselves. It measures no action units.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from magicedit.errors import MissingDependencyError, ModelError, needs_extra
from magicedit.faces.types import Face, Pose, check_pixels, largest_first

_TASKS = ("detection", "landmark_3d_68", "recognition")
_NEEDED = ("detection", "landmark_3d_68")
_LICENCE = "the published packs are licensed for non-commercial research only"


class InsightFaceBackend:
    """Finds faces with an InsightFace model pack.

    models: a folder with the pack's ONNX files, or the name of a pack in `root`/models. It needs a detector
        and the 68-point model (`1k3d68.onnx` in the published packs); with a recognition model, faces have
        embeddings.
    root: where InsightFace keeps its packs.
    providers: ONNX Runtime's execution providers, the preferred first.
    detection_size: side in pixels at which the detector sees the photograph, a multiple of 32; faces below
        about 2 % of it are missed.
    threshold: minimum detection score, 0..1.

    Raises MissingDependencyError without the package or the models, ModelError for unusable models.
    """

    name = "insightface"

    def __init__(
        self,
        models: str | Path = "buffalo_l",
        root: str | Path = "~/.insightface",
        providers: Sequence[str] = ("CPUExecutionProvider",),
        detection_size: int = 640,
        threshold: float = 0.5,
    ) -> None:
        if detection_size < 32 or detection_size % 32:
            raise ValueError(f"detection_size must be a positive multiple of 32, got {detection_size}")
        needed = "the face backend 'insightface' needs the packages insightface and onnxruntime"
        with needs_extra("insightface", needed):
            from insightface.app import FaceAnalysis

        folder = self._folder(models, root)
        try:
            self._analysis = FaceAnalysis(
                name=str(folder), allowed_modules=list(_TASKS), providers=list(providers)
            )
        except Exception as error:  # any error of ONNX Runtime or the package about the user's files
            raise ModelError(
                f"InsightFace cannot load the models in {folder} ({error!r}); it needs the ONNX files of one "
                "complete pack"
            ) from error
        missing = [task for task in _NEEDED if task not in self._analysis.models]
        if missing:
            raise ModelError(
                f"the models in {folder} can do {', '.join(self._analysis.models)}; needed besides: "
                f"{', '.join(missing)} (det_10g.onnx and 1k3d68.onnx in the published packs)"
            )
        if "recognition" in self._analysis.models and not self._analysis.det_model.use_kps:
            raise ModelError(
                f"the detector in {folder} finds no keypoints, by which the recognition model aligns its "
                "crops; use a detector with keypoints, or remove the recognition model"
            )
        self._analysis.prepare(ctx_id=0, det_thresh=threshold, det_size=(detection_size, detection_size))
        self.folder = folder

    @staticmethod
    def _folder(models: str | Path, root: str | Path) -> Path:
        """Returns the pack's folder; checked here, because InsightFace itself would start a download."""
        given = Path(models).expanduser()
        named = Path(root).expanduser() / "models" / str(models)
        for folder in (given, named):
            if folder.is_dir() and any(folder.glob("*.onnx")):
                return folder
        raise MissingDependencyError(
            f"no InsightFace models (*.onnx) in {given} nor in {named}; fetch a pack from "
            f"https://github.com/deepinsight/insightface/releases ({_LICENCE}) and unpack it there, or use "
            "the backend 'mediapipe', which needs none"
        )

    def detect(self, pixels: np.ndarray) -> list[Face]:
        """Faces of an RGB photograph, (height, width, 3) uint8, largest first. ImageError for other arrays.

        box is the detector's (forehead to chin), landmarks are the 68 of iBUG/300-W, embedding is ArcFace's.
        """
        bgr = np.ascontiguousarray(check_pixels(pixels)[..., ::-1])
        return largest_first([self._face(found) for found in self._analysis.get(bgr)])

    @staticmethod
    def _face(found: dict) -> Face:
        # InsightFace's frame has x to the right, y down and z towards the viewer, so its angles have the
        # signs of ours.
        pitch, yaw, roll = (float(angle) for angle in found["pose"])
        embedding = found.normed_embedding
        return Face(
            box=tuple(float(value) for value in found["bbox"]),
            landmarks=np.asarray(found["landmark_3d_68"][:, :2], np.float32),
            scheme="ibug68",
            score=float(found["det_score"]),
            pose=Pose(yaw=yaw, pitch=pitch, roll=roll),
            embedding=None if embedding is None else np.asarray(embedding, np.float32),
        )
