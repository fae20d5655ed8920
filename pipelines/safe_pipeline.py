"""Saving a pipeline with its code, and loading it without running any.

`self_contained` writes this file into those that ship with weights. `ShippedPipeline` saves them;
`SafePipeline` is for families whose components are always the same classes.
"""

import dataclasses
import inspect
import json
import re
import shutil
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import huggingface_hub
import numpy as np
import PIL.Image
import torch
from diffusers import DiffusionPipeline, ModelMixin, PipelineQuantizationConfig
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.hub_utils import load_or_create_model_card, populate_model_card

Images = PIL.Image.Image | list[PIL.Image.Image] | np.ndarray | torch.Tensor

# An import that `self_contained` replaces by the imported file
_SIBLING = re.compile(r"^from \.(\w+) import (?:\([^)]*\)|.*)\n", re.MULTILINE)


def self_contained(file: Path) -> str:
    """Returns the text of a file with the siblings that it imports in place of the imports, each once.

    diffusers can load several files, but reuses the siblings of the first loaded model for all others in the
    process. Files outside this folder keep their imports.
    """
    written = {file.stem}

    def sibling(match: re.Match) -> str:
        if match[1] in written:
            return ""
        written.add(match[1])
        return _SIBLING.sub(sibling, file.with_name(f"{match[1]}.py").read_text("utf-8"))

    text = file.read_text("utf-8")
    return _SIBLING.sub(sibling, text) if file.parent == Path(__file__).parent else text


def rewrite_json(file: Path, **changes) -> None:
    """Sets values of an object in a file, and removes the path it was loaded from."""
    content = json.loads(file.read_text("utf-8")) | changes
    content.pop("_name_or_path", None)
    file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", "utf-8")


def remove_digests(folder: Path) -> None:
    """Removes the list of digests of a model that is to be overwritten."""
    (folder / "parts.json").unlink(missing_ok=True)


def variant_of(file: Path) -> str | None:
    """The variant, such as "fp16", in the name of a file of weights; None for a plain one."""
    return file.name.removesuffix(".safetensors").split("-00")[0].partition(".")[2] or None


def weights_variant(folder: Path) -> str | None:
    """The variant, such as "fp16", of a component's weights; None where there are plain ones or none.

    Raises ValueError where there are several.
    """
    found = {variant_of(file) for file in folder.glob("*.safetensors")}
    if len(found) > 1 and None not in found:
        raise ValueError(f"{folder} has the variants {', '.join(sorted(found))}; keep the files of one")
    return None if None in found or not found else found.pop()


HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "revision")
CARD = "README.md"
GRAPHS = "onnx"  # folder of a model's graphs, beside its components
FETCHED = ("json", "safetensors", "txt", "model")  # suffixes of files that are downloaded from a hub
# What the examples of a card load while its model has no name at a hub
UNPUBLISHED = json.dumps("path/to/this/folder")


@dataclass(frozen=True)
class LoadingOptions:
    """Arguments of `from_pretrained`, as of diffusers' own.

    dtype: of the weights, or a dict of dtypes by component, with "default" for the others; default: float32.
    torch_dtype: the same by its older name.
    variant: of the files of weights, such as "fp16"; a component without such files loads its plain ones.
    device_map: a device onto which weights are loaded, such as "cuda"; default: the CPU.
    low_cpu_mem_usage: whether networks are built without weights of their own before they load them.
    quantization_config: a `PipelineQuantizationConfig`, whose library must be installed.
    use_safetensors, trust_remote_code: always true, and always false.
    cache_dir, force_download, local_files_only, token, revision: of a hub's model.

    Raises:
        ValueError: on a value that is not served.
    """

    dtype: torch.dtype | Mapping[str, torch.dtype] | None = None
    torch_dtype: torch.dtype | Mapping[str, torch.dtype] | None = None
    variant: str | None = None
    device_map: str | torch.device | None = None
    low_cpu_mem_usage: bool = True
    quantization_config: PipelineQuantizationConfig | None = None
    use_safetensors: bool | None = True
    trust_remote_code: bool = False
    cache_dir: str | Path | None = None
    force_download: bool = False
    local_files_only: bool = False
    token: str | bool | None = None
    revision: str | None = None

    def __post_init__(self):
        if self.trust_remote_code:
            raise ValueError(
                "this class never runs code of a folder; leave trust_remote_code out, or pass it to "
                "DiffusionPipeline.from_pretrained, which runs the folder's own pipeline"
            )
        if self.use_safetensors is False:
            raise ValueError("weights are loaded from safetensors only; leave use_safetensors out")
        if self.dtype is not None and self.torch_dtype is not None:
            raise ValueError("dtype and torch_dtype are the same; pass one of them")
        dtypes = self._dtypes.values() if isinstance(self._dtypes, Mapping) else [self._dtypes]
        if wrong := [dtype for dtype in dtypes if not isinstance(dtype, torch.dtype | None)]:
            raise ValueError(f"dtype must be a torch.dtype, or a dict of them by component, got {wrong[0]!r}")
        if self.device_map is not None:
            try:
                torch.device(self.device_map)
            except (RuntimeError, TypeError) as error:
                raise ValueError(
                    f'device_map must be one device, such as "cuda", got {self.device_map!r}; to save '
                    "memory, load onto the CPU and call enable_model_cpu_offload()"
                ) from error
        if not isinstance(self.quantization_config, PipelineQuantizationConfig | None):
            raise ValueError("quantization_config must be a diffusers.PipelineQuantizationConfig")

    @classmethod
    def split(cls, arguments: Mapping[str, Any]) -> tuple[Self, dict[str, Any]]:
        """Returns the options among arguments, and the others."""
        names = {field.name for field in dataclasses.fields(cls)}
        options = {name: value for name, value in arguments.items() if name in names}
        return cls(**options), {name: value for name, value in arguments.items() if name not in names}

    @property
    def _dtypes(self) -> torch.dtype | Mapping[str, torch.dtype] | None:
        return self.torch_dtype if self.dtype is None else self.dtype

    def check_dtypes(self, components: Collection[str]) -> None:
        """Raises ValueError where a dtype is given for what is not among the components."""
        given = self._dtypes if isinstance(self._dtypes, Mapping) else {}
        if unknown := sorted(given.keys() - {"default", *components}):
            raise ValueError(f"dtype names {', '.join(unknown)}; components: {', '.join(components)}")

    def dtype_of(self, name: str) -> torch.dtype:
        """Returns the dtype of a component's weights."""
        dtypes = self._dtypes
        if isinstance(dtypes, Mapping):
            dtypes = dtypes.get(name, dtypes.get("default"))
        return dtypes or torch.float32

    def fetched(self, model: str | Path) -> Path:
        """Returns a model's folder; a hub's is downloaded, without code. OSError where that fails."""
        folder = Path(model)
        if folder.is_dir():
            return folder
        patterns = [f"{place}*.{suffix}" for place in ("", "*/") for suffix in FETCHED]
        hub = {name: getattr(self, name) for name in HUB_ARGUMENTS}
        return Path(huggingface_hub.snapshot_download(str(model), allow_patterns=[*patterns, CARD], **hub))

    def check_variant(self, folder: Path) -> None:
        """Raises ValueError where no component of a folder has weights of the variant."""
        found = {variant_of(file) for file in folder.glob("*/*.safetensors")}
        if self.variant is not None and self.variant not in found:
            named = ", ".join(sorted(filter(None, found)))
            raise ValueError(
                f"{folder} has no weights of the variant {self.variant!r}; "
                + (f"it has {named}" if named else "leave variant out")
            )

    def of_network(self, folder: Path, kind: type) -> dict[str, Any]:
        """Returns the arguments of a network's own `from_pretrained`; folder: of the component."""
        has_variant = self.variant in {variant_of(file) for file in folder.glob("*.safetensors")}
        of_diffusers = issubclass(kind, ModelMixin)
        arguments = {
            "use_safetensors": True,
            "variant": self.variant if has_variant else weights_variant(folder),
            "local_files_only": True,
            "output_loading_info": True,
            "low_cpu_mem_usage": self.low_cpu_mem_usage,
            "torch_dtype" if of_diffusers else "dtype": self.dtype_of(folder.name),
        }
        if self.device_map is not None:
            arguments["device_map"] = str(self.device_map)
        if self.quantization_config is not None:
            config = self.quantization_config._resolve_quant_config(of_diffusers, folder.name)
            if config is not None:
                arguments["quantization_config"] = config
        return arguments


class ShippedPipeline(DiffusionPipeline):
    """A pipeline whose folder holds its code and what came with its weights: the card, and graphs."""

    # The folders that it was loaded from, by component; "" the pipeline's own, "onnx" that of its graphs
    sources: Mapping[str, Path] | None = None

    def _write_code(self, folder: Path) -> None:
        """Writes the code of the class, and names it in the index."""
        raise NotImplementedError

    def save_pretrained(
        self,
        save_directory,
        safe_serialization: bool = True,
        variant: str | None = None,
        push_to_hub: bool = False,
        **kwargs,
    ):
        """Saves the components as safetensors, and the code of the class beside them.

        A new folder also gets the card of the folder that the pipeline was loaded from, and its ONNX graphs
        unless networks, scheduler or settings are others. kwargs: `max_shard_size`, and those of
        `push_to_hub`.

        Raises:
            ValueError: where `safe_serialization` is off, or the class is not defined in a file.
        """
        if not safe_serialization or kwargs.pop("use_flashpack", False):
            raise ValueError("weights are saved as safetensors only; leave safe_serialization=True")
        for_hub = kwargs.keys() & {"repo_id", "commit_message", "private", "token", "create_pr"}
        hub_kwargs = {key: kwargs.pop(key) for key in for_hub}
        folder = Path(save_directory)
        remove_digests(folder)
        super().save_pretrained(folder, safe_serialization=True, variant=variant, **kwargs)
        self._write_code(folder)
        for config_file in self._configs(folder):
            rewrite_json(config_file)
        self._keep(folder)
        if push_to_hub:
            self.push_to_hub(hub_kwargs.pop("repo_id", folder.name), variant=variant, **hub_kwargs)

    def enable_sequential_cpu_offload(
        self, gpu_id: int | None = None, device: torch.device | str | None = None
    ) -> None:
        """As of diffusers. ValueError for the CPU, where there is nothing to move layers to."""
        if device is not None and torch.device(device).type == "cpu":
            raise ValueError(
                "sequential offload computes layers on a GPU, and the device is the CPU; leave it out"
            )
        super().enable_sequential_cpu_offload(gpu_id, device)

    def _configs(self, folder: Path) -> list[Path]:
        """The configuration files of the components in a folder, which may hold files of others."""
        return [file for name in self.components for file in (folder / name).glob("*config.json")]

    def _keep(self, folder: Path) -> None:
        """Copies card and graphs of the folders that the pipeline was loaded from."""
        sources = self.sources
        if sources is None:  # diffusers itself has loaded it, or it is not from a folder
            place = Path(self.config.get("_name_or_path") or "")
            if not self.config.get("_name_or_path") or not (place / "model_index.json").is_file():
                return
            sources = {name: place / name for name in ("", GRAPHS, *self.components)}
        card = sources[""] / CARD
        if card.is_file() and not (folder / CARD).exists():
            shutil.copyfile(card, folder / CARD)
        graphs = sources[GRAPHS]
        if not list(graphs.glob("*.onnx")) or (folder / GRAPHS).exists() or self.dtype == torch.bfloat16:
            return
        same = [_settings(sources[""] / "model_index.json") == _settings(folder / "model_index.json")]
        for file in self._configs(folder):
            same.append(_settings(file) == _settings(sources[file.parent.name] / file.name))
        if all(same):
            shutil.copytree(graphs, folder / GRAPHS)

    def push_to_hub(
        self, repo_id: str, *, private: bool | None = None, token: str | None = None, **kwargs
    ) -> str:
        """Uploads what `save_pretrained` writes, as diffusers does, with the card of the folder that the
        pipeline was loaded from. A card that the repository already has stays.

        kwargs: `commit_message`, `create_pr`, `variant` and `subfolder` of diffusers' own.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(
                folder, kwargs.pop("safe_serialization", True), variant=kwargs.pop("variant", None)
            )
            card = Path(folder, CARD)
            repo_id = huggingface_hub.create_repo(
                repo_id, private=private, token=token, exist_ok=True
            ).repo_id
            if huggingface_hub.file_exists(repo_id, CARD, token=token):
                card.unlink(missing_ok=True)
            elif card.is_file():
                card.write_text(card.read_text("utf-8").replace(UNPUBLISHED, json.dumps(repo_id)), "utf-8")
            else:
                populate_model_card(load_or_create_model_card(repo_id, token, is_pipeline=True)).save(card)
            return self._upload_folder(folder, repo_id, token=token, **kwargs)


def _settings(file: Path) -> dict[str, Any] | None:
    """The settings in a configuration file, without what tells of versions and places; None: no file."""
    if not file.is_file():
        return None
    content = json.loads(file.read_text("utf-8"))
    return {name: value for name, value in content.items() if not name.startswith("_")}


class SafePipeline(ShippedPipeline):
    """A pipeline for crops of one size, of fixed components. It saves safetensors and its own code, and loads
    without running code.

    A family is one file named `pipeline_FAMILY.py`, which is saved under that name: diffusers keeps one
    module of a name in a process. `component_classes` has the components by the names of `__init__`; its
    other arguments are settings, which the index of a folder holds.
    """

    component_classes: ClassVar[dict[str, type]]

    def __init__(self):
        super().__init__()
        self.image_processor = VaeImageProcessor(vae_scale_factor=1, do_resize=False)

    def pictures(self, images: Images, what: str = "source") -> torch.Tensor:
        """Pictures as (batch, 3, resolution, resolution) in [-1, 1] on the pipeline's device.

        images: PIL pictures, or arrays or tensors in [0, 1] as diffusers takes them. what: of errors.

        Raises:
            ValueError: where the size is another one.
        """
        found = self.image_processor.preprocess(images)
        size = self.config.resolution
        if tuple(found.shape[1:]) != (3, size, size):
            raise ValueError(f"{what} must be RGB of {size} x {size} px, got {tuple(found.shape)}")
        return found.to(self.device, self.dtype)

    def finished(self, pictures: torch.Tensor, output_type: str):
        """Pictures (batch, 3, height, width) in [-1, 1] as a call returns them.

        output_type: "pil", "np" (batch, height, width, 3) or "pt" (batch, 3, height, width), both in [0, 1].

        Raises:
            ValueError: on another type.
        """
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f'output_type must be "pil", "np" or "pt", got {output_type!r}')
        return self.image_processor.postprocess(pictures, output_type=output_type)

    def _write_code(self, folder: Path) -> None:
        file = Path(inspect.getfile(type(self)))
        code, module, kinds = self_contained(file), file.stem, self.component_classes
        own = {
            name: [module, kind.__name__]
            for name, kind in kinds.items()
            if kind.__module__ == type(self).__module__
        }
        rewrite_json(folder / "model_index.json", _class_name=[module, type(self).__name__], **own)
        for place in (folder, *(folder / name for name in own)):
            (place / file.name).write_text(code, "utf-8", newline="\n")

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **arguments) -> Self:
        """Loads a folder or hub id without running code from it; safetensors only.

        arguments: see `LoadingOptions`.

        Raises:
            ValueError: where the folder holds another pipeline, or tensors are missing or do not fit, and on
                an unknown argument.
            OSError: where files are missing or cannot be downloaded.
        """
        options, others = LoadingOptions.split(arguments)
        if others:
            raise ValueError(f"unknown arguments: {', '.join(sorted(others))}")
        options.check_dtypes(cls.component_classes)
        folder = options.fetched(pretrained_model_name_or_path)
        index_file = folder / "model_index.json"
        if not index_file.is_file():
            raise ValueError(f"{folder} is not a pipeline folder: it has no model_index.json")
        index = json.loads(index_file.read_text("utf-8"))
        named = index.get("_class_name") if isinstance(index, dict) else None
        named = named[-1] if isinstance(named, list) and named else named
        if named != cls.__name__:
            raise ValueError(f"{folder} holds a {named}, not a {cls.__name__}")
        options.check_variant(folder)
        components = {
            name: _load_component(folder / name, kind, options)
            for name, kind in cls.component_classes.items()
        }
        accepted = inspect.signature(cls.__init__).parameters
        settings = {name: index[name] for name in accepted if name in index and name not in components}
        pipeline = cls(**components, **settings)
        pipeline.sources = {name: folder / name for name in ("", GRAPHS, *components)}
        return pipeline


def _load_component(folder: Path, kind: type, options: LoadingOptions):
    """A scheduler, or a network from safetensors, every tensor accounted for."""
    if not folder.is_dir():  # else diffusers would take the path for a hub id
        raise ValueError(f"{folder.parent} has no folder {folder.name}")
    if not issubclass(kind, ModelMixin):
        return kind.from_pretrained(folder, local_files_only=True)
    if not list(folder.glob("*.safetensors")):
        raise ValueError(f"{folder} has no safetensors weights")
    network, info = kind.from_pretrained(folder, **options.of_network(folder, kind))
    if problems := [f"{name}: {info[name]}" for name in ("missing_keys", "unexpected_keys") if info[name]]:
        raise ValueError(f"the tensors of {folder} do not fit its config ({'; '.join(problems)})")
    return network.eval()
