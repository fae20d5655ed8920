"""LoRA adapters of an editing pipeline: matrices of both UNets, and the layers that an editor adds.

A file of adapters is diffusers' `pytorch_lora_weights.safetensors`: `unet.*` and `reference_unet.*` hold the
matrices, `new_layers.*` whole parameters by component and name, such as `new_layers.unet.conv_in.weight`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import torch
from diffusers import DiffusionPipeline
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from diffusers.utils import get_adapter_name

NEW_LAYERS = "new_layers"
ADAPTED = ("unet", "reference_unet")


class NewLayers:
    """Parameters that adapters bring whole. They count as differences from the pipeline's own, so that
    several add up, and weights scale them."""

    def __init__(self, pipeline: DiffusionPipeline):
        self.pipeline = pipeline
        self.own: dict[str, torch.Tensor] = {}  # the pipeline's values of what adapters replace
        self.adapters: dict[str, dict[str, torch.Tensor]] = {}
        self.weights: dict[str, float] = {}  # of the active adapters
        self.enabled = True

    def parameter(self, name: str) -> torch.nn.Parameter:
        """The parameter `component.name`. ValueError where the pipeline has none."""
        component, _, path = name.partition(".")
        try:
            return self.pipeline.components[component].get_parameter(path)
        except (AttributeError, KeyError) as error:
            raise ValueError(f"the adapters bring {name}, which this pipeline does not have") from error

    def check(self, layers: Mapping[str, torch.Tensor]) -> None:
        """Raises ValueError where layers do not fit the pipeline, or its weights are offloaded."""
        for name, tensor in layers.items():
            parameter = self.parameter(name)
            if parameter.shape != tensor.shape:
                raise ValueError(
                    f"the adapters' {name} has the shape {tuple(tensor.shape)}, the pipeline's "
                    f"{tuple(parameter.shape)}: they were trained on another base"
                )
            if parameter.is_meta:
                raise ValueError("the pipeline's weights are offloaded; load adapters before that")

    def add(self, adapter: str, layers: dict[str, torch.Tensor]) -> None:
        """Makes an adapter the only active one, as loading one does."""
        for name in layers:
            self.own.setdefault(name, self.parameter(name).detach().clone())
        self.adapters[adapter] = layers
        self.enabled = True
        self.activate({adapter: 1.0})

    @torch.no_grad()
    def activate(self, weights: Mapping[str, float]) -> None:
        """Sets the pipeline's parameters to its own plus the weighted differences of adapters."""
        self.weights = dict(weights)
        for name, own in self.own.items():
            value = own
            for adapter, weight in weights.items() if self.enabled else ():
                if name in self.adapters.get(adapter, {}):
                    new = self.adapters[adapter][name].to(own)
                    value = torch.lerp(own, new, weight) + (value - own)  # exact for the first
            self.parameter(name).copy_(value)

    def enable(self, enabled: bool) -> None:
        self.enabled = enabled
        self.activate(self.weights)

    def remove(self, adapters: list[str]) -> None:
        """Forgets adapters; without any, the parameters are the pipeline's own."""
        for adapter in adapters:
            self.adapters.pop(adapter, None)
        self.activate({name: weight for name, weight in self.weights.items() if name not in adapters})

    def keep(self) -> None:
        """Makes the present values the pipeline's own."""
        self.own, self.adapters, self.weights, self.enabled = {}, {}, {}, True


class EditingLoraMixin(StableDiffusionLoraLoaderMixin):
    """Loads and switches adapters of both UNets as `StableDiffusionLoraLoaderMixin` does those of one."""

    _lora_loadable_modules: ClassVar = [*ADAPTED, "text_encoder"]
    _new_layers: NewLayers  # made by the pipeline's `__init__`

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: str | Path | dict[str, torch.Tensor],
        adapter_name: str | None = None,
        hotswap: bool = False,
        **kwargs,
    ) -> None:
        """Loads adapters from a folder, a file, a hub id or a state dict; they become the active ones.

        Adapters of an editor fit pipelines of the base they were trained on. Those of a plain Stable
        Diffusion act on the denoiser alone. Safetensors only.

        Args:
            adapter_name: name for `set_adapters` and `delete_adapters`; default: "default_N".
            hotswap: replace the loaded adapter of that name in place.
            kwargs: of `lora_state_dict`, such as `weight_name`, `revision` and `token`.

        Raises:
            ValueError: where they do not fit the pipeline, which is then unchanged.
        """
        source = pretrained_model_name_or_path_or_dict
        if isinstance(source, dict):
            source = dict(source)
        kwargs = {"use_safetensors": True, "return_lora_metadata": True} | kwargs
        low_memory = kwargs.pop("low_cpu_mem_usage", True)
        state, alphas, metadata = self.lora_state_dict(source, **kwargs)
        prefix = f"{NEW_LAYERS}."
        layers = {name.removeprefix(prefix): state.pop(name) for name in [*state] if name.startswith(prefix)}
        if not all("lora" in name or "lokr" in name for name in state):
            strays = ", ".join(name for name in state if "lora" not in name)[:200]
            raise ValueError(
                f"{source if isinstance(source, str | Path) else 'it'} is no LoRA: it has {strays}"
            )
        self._check_modules(state)
        self._new_layers.check(layers)
        adapter = adapter_name or get_adapter_name(self.unet)
        options = {"network_alphas": alphas, "metadata": metadata, "adapter_name": adapter}
        options |= {"_pipeline": self, "low_cpu_mem_usage": low_memory, "hotswap": hotswap}
        try:
            for name in ADAPTED:
                if any(key.startswith(f"{name}.") for key in state):
                    network = getattr(self, name)
                    if network is None:
                        raise ValueError(f"the adapters are of a {name}, which this pipeline does not have")
                    network.load_lora_adapter(state, prefix=name, **options)
            if self.text_encoder is not None and any(key.startswith("text_encoder.") for key in state):
                options.pop("network_alphas")
                self.load_lora_into_text_encoder(
                    state, alphas, self.text_encoder, lora_scale=self.lora_scale, **options
                )
        except (RuntimeError, ValueError) as error:
            if not hotswap:
                loaded = [part for part, names in self.get_list_adapters().items() if adapter in names]
                for part in loaded:
                    getattr(self, part).delete_adapters(adapter)
            raise ValueError(f"the adapters do not fit this pipeline: {error}") from error
        self._new_layers.add(adapter, layers)

    def _check_modules(self, state: Mapping[str, torch.Tensor]) -> None:
        """Raises ValueError where matrices are of layers that a UNet does not have; diffusers skips these."""
        for name in state:
            component, _, path = name.partition(".")
            layer, found, _ = path.partition(".lora_A.")
            if (
                found
                and component in ADAPTED
                and isinstance(network := getattr(self, component), torch.nn.Module)
            ):
                try:
                    network.get_submodule(layer)
                except AttributeError as error:
                    raise ValueError(
                        f"the adapters are of {component}.{layer}, which this pipeline does not have"
                    ) from error

    @classmethod
    def save_lora_weights(
        cls,
        save_directory: str | Path,
        unet_lora_layers: dict[str, torch.Tensor] | None = None,
        text_encoder_lora_layers: dict[str, torch.Tensor] | None = None,
        *,
        reference_unet_lora_layers: dict[str, torch.Tensor] | None = None,
        new_layers: dict[str, torch.Tensor] | None = None,
        weight_name: str | None = None,
    ) -> None:
        """Writes adapters as `load_lora_weights` reads them.

        Args:
            unet_lora_layers, text_encoder_lora_layers, reference_unet_lora_layers: state dicts of `peft`.
            new_layers: whole parameters by component and name.

        Raises:
            ValueError: where there is nothing to save.
        """
        parts = {
            "unet": unet_lora_layers,
            "reference_unet": reference_unet_lora_layers,
            "text_encoder": text_encoder_lora_layers,
            NEW_LAYERS: new_layers,
        }
        state = {}
        for prefix, layers in parts.items():
            state |= cls.pack_weights(layers or {}, prefix)
        if not state:
            raise ValueError("there are no adapters to save")
        cls.write_lora_layers(
            state_dict=state,
            save_directory=save_directory,
            is_main_process=True,
            weight_name=weight_name,
            save_function=None,
            safe_serialization=True,
        )

    def set_adapters(self, adapter_names: list[str] | str, adapter_weights=None) -> None:
        """Activates adapters with these weights, see `LoraBaseMixin.set_adapters`; the layers that adapters
        bring whole follow the weight of the unet."""
        super().set_adapters(adapter_names, adapter_weights)
        names = [adapter_names] if isinstance(adapter_names, str) else adapter_names
        weights = adapter_weights if isinstance(adapter_weights, list) else [adapter_weights] * len(names)
        weights = [weight.get("unet") if isinstance(weight, dict) else weight for weight in weights]
        numbers = [float(weight) if isinstance(weight, int | float) else 1.0 for weight in weights]
        self._new_layers.activate(dict(zip(names, numbers, strict=True)))

    def disable_lora(self) -> None:
        super().disable_lora()
        self._new_layers.enable(False)

    def enable_lora(self) -> None:
        super().enable_lora()
        self._new_layers.enable(True)

    def delete_adapters(self, adapter_names: list[str] | str) -> None:
        super().delete_adapters(adapter_names)
        self._new_layers.remove([adapter_names] if isinstance(adapter_names, str) else adapter_names)

    def unload_lora_weights(self) -> None:
        """Removes all adapters: the pipeline is that of its base again, or as `fuse_lora` left it."""
        super().unload_lora_weights()
        self._new_layers.remove([*self._new_layers.adapters])
        self._new_layers.keep()

    def fuse_lora(self, components: list[str] | None = None, **kwargs) -> None:
        """Adds the active adapters to the weights for good; default: of all components that have some.

        kwargs: of `LoraBaseMixin.fuse_lora`, such as `lora_scale` and `adapter_names`.
        """
        super().fuse_lora(components=components or [*self.get_list_adapters()], **kwargs)
        scale, active = kwargs.get("lora_scale", 1.0), self._new_layers.weights
        fused = kwargs.get("adapter_names") or active
        self._new_layers.activate({name: scale * active.get(name, 0.0) for name in fused})
        self._new_layers.keep()

    def unfuse_lora(self, components: list[str] | None = None, **kwargs) -> None:
        """Takes fused matrices out again; the layers that adapters brought whole stay."""
        super().unfuse_lora(components=components or [*self.get_list_adapters()], **kwargs)
