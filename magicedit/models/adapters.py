"""Writing LoRA adapters beside their base, or merged into it, without a second copy of the networks."""

import contextlib
import dataclasses
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import diffusers
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict

from magicedit.models.folder import ADAPTERS_INDEX, PIPELINE_CLASS, Base
from magicedit.models.unets import TRAINED_NETWORKS
from magicedit.pipelines.lora import ADAPTED
from magicedit.pipelines.pipeline_magicedit import MagicEditPipeline
from magicedit.pipelines.safe_pipeline import remove_digests, rewrite_json

ADAPTER = "default"  # the name that `add_adapter` gives


@contextlib.contextmanager
def saved_as(networks: Iterable[torch.nn.Module], dtype: torch.dtype) -> Iterator[None]:
    """Meanwhile, state dicts of networks are what they save: of `dtype`, with adapters merged.

    The networks stay as they are. Matrices are merged in float32, one network at a time.
    """
    hooks = [network.register_state_dict_post_hook(_merger(dtype)) for network in networks]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _merger(dtype: torch.dtype):
    def merge(network: torch.nn.Module, state: dict, prefix: str, _metadata: dict) -> None:
        deltas = {
            f"{prefix}{name}.base_layer.weight": layer
            for name, layer in network.named_modules()
            if isinstance(layer, BaseTunerLayer)
        }
        for name in [name for name in state if ".lora_" not in name]:
            tensor = state[name]
            if name in deltas:
                tensor = tensor.float() + deltas[name].get_delta_weight(ADAPTER).float()
            state[name] = tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name in [*state]:
            if ".lora_" in name:
                del state[name]
            elif ".base_layer." in name:
                state[name.replace(".base_layer.", ".")] = state.pop(name)

    return merge


def save_adapters(pipeline: MagicEditPipeline, folder: Path, base: Base, dtype: torch.dtype) -> None:
    """Writes what a pipeline has beyond its base: `pytorch_lora_weights.safetensors`, the settings and the
    base as `lora_index.json`, and the scheduler.

    pipeline: trained parameters, and matrices of peft's, are what the base does not have.
    """
    remove_digests(folder)
    adapted = {
        name: network for name in ADAPTED if hasattr(network := getattr(pipeline, name), "peft_config")
    }
    layers = {
        f"{name}_lora_layers": _saved(get_peft_model_state_dict(network, adapter_name=ADAPTER), dtype)
        for name, network in adapted.items()
    }
    new_layers = {
        f"{component}.{name}": parameter
        for component in TRAINED_NETWORKS
        if (network := getattr(pipeline, component)) is not None
        for name, parameter in network.named_parameters()
        if parameter.requires_grad and ".lora_" not in name
    }
    pipeline.save_lora_weights(folder, **layers, new_layers=_saved(new_layers, dtype))
    pipeline.scheduler.save_pretrained(folder / "scheduler")
    rewrite_json(folder / "scheduler" / "scheduler_config.json")
    settings = {name: value for name, value in pipeline.config.items() if not isinstance(value, tuple | list)}
    index = {
        name: value for name, value in settings.items() if not name.startswith("_") and value is not None
    }
    index |= {"_class_name": PIPELINE_CLASS, "_diffusers_version": diffusers.__version__}
    index |= {"scheduler": ["diffusers", type(pipeline.scheduler).__name__], "base": dataclasses.asdict(base)}
    (folder / ADAPTERS_INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", "utf-8")


def _saved(tensors: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in tensors.items()}
