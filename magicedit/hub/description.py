"""Describes a pipeline folder for its model card."""

import math
from pathlib import Path
from typing import Any

from magicedit.action_units import canonical_name
from magicedit.errors import ActionUnitError, ModelError
from magicedit.hub.push import check_pipeline_folder
from magicedit.models.checks import parameters_of, read_header
from magicedit.models.folder import ADAPTERS, ModelFolder

ANSWERS = {
    "flow_mask_paint": "It answers with a flow that moves the photograph's own pixels, a mask, and paint for "
    "what was not there.",
    "noise": "It predicts the noise of a latent diffusion model.",
}


def describe_folder(folder: str | Path) -> dict[str, Any]:
    """`description`, `action_units`, `resolution` and `adapters_of` of `model_card`, read from a folder of
    our pipelines or adapters.

    Raises ModelError where the folder is not fit to be published, or is another pipeline's.
    """
    components = check_pipeline_folder(folder)
    found = ModelFolder.local(folder)
    try:
        units = [canonical_name(unit) for unit in found.action_units or ()]
    except ActionUnitError:
        units = []
    resolution = found.resolution
    if not units or resolution is None:
        raise ModelError(
            f"{folder} is not the pipeline of an expression editor: its model_index.json says no usable "
            "action_units and resolution"
        )
    base = found.base.name if found.is_adapters else None
    sizes = {name: size for name in components if (size := parameters_of(found.component(name)))}
    if base is not None:
        sizes |= {"adapters": sum(math.prod(shape) for shape in read_header(found.path / ADAPTERS).values())}
    networks = ", ".join(f"`{name}` {_rounded(size)}" for name, size in sizes.items())
    steps = found.index.get("default_steps")
    parts = [
        f"It edits square crops of {resolution} px. Parameters: {networks}.",
        ANSWERS.get(found.index.get("prediction"), ""),
        f"It is sampled in {steps} steps unless asked otherwise." if isinstance(steps, int) else "",
    ]
    return {
        "description": " ".join(part for part in parts if part),
        "action_units": units,
        "resolution": resolution,
        "adapters_of": base,
    }


def _rounded(count: int) -> str:
    """Returns a parameter count in words: 7100000 -> "7.1 million"."""
    if count >= 1e6:
        return f"{count / 1e6:.3g} million" if count < 1e9 else f"{count / 1e9:.3g} billion"
    return f"{count:,}"
