"""Configuring, initialising, converting and loading the two UNets.

Importing this package is cheap, and so is `models.folder`: torch and diffusers are imported when the first
name is used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from magicedit.embedded import model_origin
    from magicedit.models.base import load_adapters, merge, open_base
    from magicedit.models.export import export_onnx, pipeline_digest, use_onnx, weights_digest, write_graphs
    from magicedit.models.face_model import Optimization
    from magicedit.models.loading import load_pipeline
    from magicedit.models.magicface import convert, load_magicface
    from magicedit.models.optimize import call_in_batches, optimize_pipeline, rows_that_fit
    from magicedit.models.unets import (
        TRAINED_NETWORKS,
        PatchModelConfig,
        create_patch_pipeline,
        freeze_unused_reference,
        from_stable_diffusion,
        hold_matrices,
        refine_patch_pipeline,
        unused_reference_parameters,
    )
    from magicedit.pipelines.reference_attention import (
        encode_identity,
        encode_reference,
        install_reference_attention,
        predict_noise,
        project_reference,
    )

__all__ = [
    "TRAINED_NETWORKS",
    "Optimization",
    "PatchModelConfig",
    "call_in_batches",
    "convert",
    "create_patch_pipeline",
    "encode_identity",
    "encode_reference",
    "export_onnx",
    "freeze_unused_reference",
    "from_stable_diffusion",
    "hold_matrices",
    "install_reference_attention",
    "load_adapters",
    "load_magicface",
    "load_pipeline",
    "merge",
    "model_origin",
    "open_base",
    "optimize_pipeline",
    "pipeline_digest",
    "predict_noise",
    "project_reference",
    "refine_patch_pipeline",
    "rows_that_fit",
    "unused_reference_parameters",
    "use_onnx",
    "weights_digest",
    "write_graphs",
]

_HOMES = (
    "magicedit.embedded",
    *(
        "magicedit.models.base",
        "magicedit.models.export",
        "magicedit.models.loading",
        "magicedit.models.magicface",
    ),
    *("magicedit.models.optimize", "magicedit.models.unets", "magicedit.pipelines.reference_attention"),
)


def __getattr__(name: str) -> Any:
    if name in __all__:
        for module in map(importlib.import_module, _HOMES):
            if hasattr(module, name):
                return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
