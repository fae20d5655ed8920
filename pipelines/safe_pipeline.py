"""Saving a pipeline with its code, and loading it without running any.

`self_contained` writes this file into those that ship with weights. `SafePipeline` is for families whose
components are always the same classes.
"""

import inspect
import json
import re
from pathlib import Path
from typing import ClassVar, Self

import huggingface_hub
import numpy as np
import PIL.Image
import torch
from diffusers import DiffusionPipeline, ModelMixin
from diffusers.image_processor import VaeImageProcessor

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


class SafePipeline(DiffusionPipeline):
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

    def save_pretrained(self, save_directory, safe_serialization: bool = True, **kwargs):
        """Saves the networks as safetensors, and the code beside them, for diffusers to load them by.

        Raises:
            ValueError: where `safe_serialization` is off.
        """
        if not safe_serialization:
            raise ValueError("weights are saved as safetensors only; leave safe_serialization=True")
        remove_digests(Path(save_directory))
        super().save_pretrained(save_directory, safe_serialization=True, **kwargs)
        folder, file = Path(save_directory), Path(inspect.getfile(type(self)))
        code, module, kinds = self_contained(file), file.stem, self.component_classes
        own = {
            name: [module, kind.__name__]
            for name, kind in kinds.items()
            if kind.__module__ == type(self).__module__
        }
        rewrite_json(folder / "model_index.json", _class_name=[module, type(self).__name__], **own)
        for place in (folder, *(folder / name for name in own)):
            (place / file.name).write_text(code, "utf-8", newline="\n")
        for config in folder.glob("*/*config.json"):
            rewrite_json(config)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        torch_dtype: torch.dtype | None = None,
        **hub_kwargs,
    ) -> Self:
        """Loads a folder or hub id without running code from it; safetensors only.

        Args:
            torch_dtype: of the weights; default float32.
            hub_kwargs: of `huggingface_hub.snapshot_download`, such as `revision` and `token`.

        Raises:
            ValueError: where the folder holds another pipeline, or tensors are missing or do not fit.
            OSError: where files are missing or cannot be downloaded.
        """
        folder = Path(pretrained_model_name_or_path)
        if not folder.is_dir():
            patterns = ["*.json", "*.safetensors", "*/*.json", "*/*.safetensors"]
            found = huggingface_hub.snapshot_download(str(folder), allow_patterns=patterns, **hub_kwargs)
            folder = Path(found)
        index_file = folder / "model_index.json"
        if not index_file.is_file():
            raise ValueError(f"{folder} is not a pipeline folder: it has no model_index.json")
        index = json.loads(index_file.read_text("utf-8"))
        named = index.get("_class_name") if isinstance(index, dict) else None
        named = named[-1] if isinstance(named, list) and named else named
        if named != cls.__name__:
            raise ValueError(f"{folder} holds a {named}, not a {cls.__name__}")
        components = {
            name: _load_component(folder / name, kind, torch_dtype or torch.float32)
            for name, kind in cls.component_classes.items()
        }
        accepted = inspect.signature(cls.__init__).parameters
        settings = {name: index[name] for name in accepted if name in index and name not in components}
        return cls(**components, **settings)


def _load_component(folder: Path, kind: type, dtype: torch.dtype):
    """A scheduler, or a network from safetensors, every tensor accounted for."""
    if not folder.is_dir():  # else diffusers would take the path for a hub id
        raise ValueError(f"{folder.parent} has no folder {folder.name}")
    if not issubclass(kind, ModelMixin):
        return kind.from_pretrained(folder, local_files_only=True)
    if not list(folder.glob("*.safetensors")):
        raise ValueError(f"{folder} has no safetensors weights")
    network, info = kind.from_pretrained(
        folder,
        use_safetensors=True,
        variant=weights_variant(folder),
        local_files_only=True,
        torch_dtype=dtype,
        output_loading_info=True,
    )
    if problems := [f"{name}: {info[name]}" for name in ("missing_keys", "unexpected_keys") if info[name]]:
        raise ValueError(f"the tensors of {folder} do not fit its config ({'; '.join(problems)})")
    return network.eval()
