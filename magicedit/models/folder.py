"""The only reader of model folders: reads a model's properties from its files before it is loaded.

Imports no torch, because commands read properties before they load anything.
"""

import dataclasses
import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from magicedit.action_units import editable, vocabulary_of
from magicedit.embedded import EMBEDDED, embedded_folder, model_origin
from magicedit.errors import ModelError, needs_whole
from magicedit.files import open_regular, read_json, shown
from magicedit.models import checks
from magicedit.vocabulary import Control, Vocabulary

INDEX = "model_index.json"
ADAPTERS, ADAPTERS_INDEX = "pytorch_lora_weights.safetensors", "lora_index.json"
PIPELINE_CLASS = "MagicEditPipeline"
PICKLE_SUFFIXES = frozenset({".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth"})
FETCHED = ("json", "safetensors", "txt", "model")  # suffixes of files downloaded from a hub
ENDS = 2**20  # bytes at either end of a file that identify it
FINISHED = ".finished"  # in a folder: the whole new model while it replaces the earlier one


def _whole(folder: Path) -> Path:
    """Returns where a whole model is: beside a replacement that a kill has interrupted, the new one."""
    new = folder / FINISHED
    return new if os.path.isdir(new) else folder


@dataclass(frozen=True)
class Base:
    """The model that LoRA adapters were trained on.

    model: a Stable Diffusion, a MagicFace checkpoint or an editing pipeline: its folder, or a name as
    `ModelFolder` takes it. base_model: the Stable Diffusion of a MagicFace checkpoint. revision: of a hub's
    model. variant: of the files of weights, such as "fp16". fingerprint: see `models.base.fingerprint_of`.
    """

    model: str
    base_model: str | None = None
    revision: str | None = None
    variant: str | None = None
    fingerprint: str | None = None

    @property
    def name(self) -> str:
        """What others may know of it: the name of a folder, or a hub id."""
        return Path(self.model).name if Path(self.model).is_absolute() else self.model

    def located(self, adapters: Path) -> "Base":
        """Returns it with the places of its folders: the recorded ones, else beside the folder of adapters,
        else in the working directory. ModelError where one is nowhere."""
        places = {field: self._place(getattr(self, field), adapters) for field in ("model", "base_model")}
        return dataclasses.replace(self, **places)

    def _place(self, model: str | None, adapters: Path) -> str | None:
        if model is None or model in EMBEDDED or (model.count("/") == 1 and not os.path.isabs(model)):
            return model  # the latter is a hub id
        for place in (Path(model), adapters.resolve().parent / Path(model).name, Path(Path(model).name)):
            if place.is_dir():
                return str(place)
        raise ModelError(
            f"{shown(adapters)} holds LoRA adapters of {shown(model)}, which is not here; put that folder "
            "beside it, or merge them with another copy: magicedit convert ADAPTERS --base FOLDER"
        )


@dataclass(frozen=True)
class ModelFolder:
    """A model name and its folder, if there is one. Files are read once, on first use.

    It holds a whole pipeline, or LoRA adapters of a base, whose index states the settings too.

    name: "mini", a path, or a hub id, pinned to a commit or tag by "owner/name@revision".
    origin: "embedded", "folder" or "hub".
    path: None for a hub model.
    """

    name: str
    origin: str
    path: Path | None

    @classmethod
    def find(cls, model: str | Path) -> "ModelFolder":
        """Returns the model of that name; the name of an embedded model never means a local folder."""
        origin = model_origin(model)
        if origin == "embedded":
            return cls(str(model), origin, embedded_folder(str(model)))
        return cls(str(model), origin, _whole(Path(model)) if origin == "folder" else None)

    @classmethod
    def local(cls, folder: str | Path) -> "ModelFolder":
        """Returns the folder at that path, or the embedded model of that name if there is no such folder."""
        return cls(str(folder), "folder", _whole(Path(folder))) if os.path.isdir(folder) else cls.find(folder)

    @property
    def has_index(self) -> bool:
        return self.path is not None and self._index_file.is_file()

    @property
    def _index_file(self) -> Path:
        whole = self.path / INDEX
        return (
            whole
            if whole.is_file() or not (self.path / ADAPTERS_INDEX).is_file()
            else whole.with_name(ADAPTERS_INDEX)
        )

    @property
    def is_adapters(self) -> bool:
        """Whether it holds LoRA adapters, which need their base."""
        return self.has_index and self._index_file.name == ADAPTERS_INDEX

    @property
    def base(self) -> Base:
        """The base of its adapters, as recorded. ModelError where the index names none."""
        recorded = self.index.get("base")
        texts = isinstance(recorded, dict) and all(isinstance(v, str | None) for v in recorded.values())
        if (
            not texts
            or not recorded.get("model")
            or set(recorded) - {f.name for f in dataclasses.fields(Base)}
        ):
            raise ModelError(
                f"{shown(self._index_file)} must name the base of the adapters; export them again"
            )
        return Base(**recorded)

    @cached_property
    def index(self) -> dict[str, Any]:
        """The content of `model_index.json`. ModelError where it is missing or unusable."""
        if not self.has_index:
            if self.origin == "embedded":
                raise ModelError(
                    f"the embedded model {self.name} is missing from this installation; reinstall the package"
                )
            raise ModelError(
                f"{self.name} is not a pipeline folder: it has no {INDEX}. Name the folder that "
                "save_pretrained or the training wrote"
            )
        file = self._index_file
        index = read_json(file, ModelError, limit=checks.LARGEST_INDEX)
        checks.check_index(file, index)
        return index

    def pipeline_class(self, **hub_kwargs: Any) -> str | None:
        """Name of the pipeline's class; None for a folder without an index. A hub's index is downloaded.

        Raises ModelError where the index is unusable, or cannot be downloaded.
        """
        if self.origin == "hub":
            return self.fetched(INDEX, ADAPTERS_INDEX, **hub_kwargs).pipeline_class()
        named = self.index.get("_class_name") if self.has_index else None  # a class of its own: [file, class]
        return named[-1] if isinstance(named, list) and named else named

    def check_name(self) -> None:
        """Raises ModelError where the name is neither a folder nor a valid hub id."""
        name = self.name
        if self.origin == "hub" and (
            os.path.exists(name) or name.count("/") != 1 or name.startswith((".", "/")) or len(name) > 200
        ):
            embedded = ", ".join(f'"{known}"' for known in EMBEDDED)
            raise ModelError(
                f'model must be {embedded}, a pipeline folder or a hub id like "owner/name" or '
                '"owner/name@revision"; '
                f"there is no folder {shown(name)}"
            )

    def fetched(self, *patterns: str, **hub_kwargs: Any) -> "ModelFolder":
        """Downloads a hub's model, without code and pickles, and returns its folder; other models unchanged.

        Args:
            patterns: of the files to download; default: all files needed to load a model.
            hub_kwargs: `revision`, `token`, `cache_dir`, `local_files_only`.

        Raises:
            ModelError: where it cannot be downloaded.
            MissingDependencyError: with `magicedit-light`.
        """
        if self.origin != "hub":
            return self
        with needs_whole(f"there is no folder {shown(self.name)}; fetching it from a hub"):
            import huggingface_hub

        patterns = patterns or tuple(f"{place}*.{suffix}" for place in ("", "*/") for suffix in FETCHED)
        repository, _, revision = self.name.partition("@")
        hub_kwargs = ({"revision": revision} if revision else {}) | hub_kwargs
        try:
            path = huggingface_hub.snapshot_download(repository, allow_patterns=list(patterns), **hub_kwargs)
        except (OSError, ValueError) as error:
            raise ModelError(
                f"{self.name} is not a model folder and cannot be fetched from the hub: {error}"
            ) from error
        return ModelFolder(self.name, "folder", Path(path))

    @property
    def components(self) -> tuple[str, ...]:
        """Names of the components that the index names; ModelError where it cannot be read."""
        return tuple(
            name
            for name, value in sorted(self.index.items())
            if name.isidentifier() and not name.startswith("_")  # no path outside the folder
            # a component is [library, class]; an absent one is [null, null]
            if isinstance(value, list) and len(value) == 2 and value[1] is not None
        )

    def component(self, name: str) -> Path:
        """Returns the folder of a component: its own, or that of the embedded model that provides it."""
        own = self.path / name
        donor = EMBEDDED[self.name] if self.origin == "embedded" else None
        return embedded_folder(donor) / name if donor and not own.is_dir() else own

    def check(self) -> None:
        """Raises ModelError unless index, component folders and weights are there and can be what they say;
        names what is missing or wrong. Nothing is built."""
        if not self.components:
            raise ModelError(f"{self._index_file} names no components; save the pipeline again")
        size = self._check_adapters() if self.is_adapters else 0
        for name in self.components:
            folder = self.component(name)
            if not folder.is_dir():
                raise ModelError(f"{self.path} has no folder {name}, which its {self._index_file.name} names")
            checks.check_files(folder)
            # a network has a config.json; schedulers and tokenizers have none
            if (folder / "config.json").is_file() and not any(folder.glob("*.safetensors")):
                pickles = sorted(file.name for file in folder.iterdir() if is_pickle(file))
                found = f" ({', '.join(pickles)} may run code when opened and is refused)" if pickles else ""
                raise ModelError(
                    f"{folder} has a configuration but no safetensors weights{found}; save the pipeline again"
                )
            size += checks.check_component(folder)
        checks.check_memory(size, self.name)
        _ = self.action_units  # which raises where they are unusable
        for place in dict.fromkeys((self.path, *(self.component(n).parent for n in self.components))):
            checks.check_parts(place)

    def _check_adapters(self) -> int:
        """Returns the bytes of the adapters. ModelError where the file is missing or not whole."""
        file = self.path / ADAPTERS
        if not file.is_file():
            raise ModelError(
                f"{self.path} has no {ADAPTERS}, which its {ADAPTERS_INDEX} is of; copy it again"
            )
        _ = self.base
        if not checks.read_header(file):
            raise ModelError(f"{file} holds no tensors; export the adapters again")
        return file.stat().st_size

    def _value(self, key: str, kind: type) -> Any:
        """A value of the index; None where there is none of that kind, or no readable index."""
        try:
            value = self.index.get(key)
        except ModelError:
            return None
        return value if isinstance(value, kind) else None

    @cached_property
    def action_units(self) -> Vocabulary | None:
        """Its controls, in order; None if the files do not state them.

        `action_units` of the index holds the names, `controls` those that are not plain action units, see
        `Vocabulary.to_index`. ModelError where these cannot be read.
        """
        names = self._value("action_units", str)
        if names is None:
            return None
        try:
            controls = [Control.from_json(entry) for entry in self._value("controls", list) or ()]
            return vocabulary_of(names.split(",")).described(controls)
        except ValueError as error:
            reason = str(error)[:500]  # which may list every control
            raise ModelError(f"{self._index_file} has unusable controls ({reason})") from error

    @property
    def editable(self) -> Vocabulary | None:
        """What an editor with this model can be asked for; None if the files do not state it."""
        names = self.action_units
        composes = self._value("prediction", str) == "flow_mask_paint"
        return editable(names) if composes and names is not None else names

    @property
    def resolution(self) -> int | None:
        """Pixels a side of its crops; None if the files do not state it."""
        return self._value("resolution", int)

    @cached_property
    def fingerprint(self) -> str | None:
        """Digest over the settings and all networks, borrowed ones too; None for a model of a hub, and where
        the index cannot be read."""
        try:
            folders = {"": self.path} | {name: self.component(name) for name in self.components}
        except ModelError:
            return None
        files = {
            Path(name, path.name): path
            for name, folder in folders.items()
            for path in folder.glob("*")
            if path.name.endswith((".json", ".safetensors")) and path.is_file()
        }
        return digest_of_files(files[name] for name in sorted(files))


def is_pickle(file: Path) -> bool:
    """Whether a file may run code when it is opened, by its name."""
    return file.suffix.lower() in PICKLE_SUFFIXES


def digest_of_files(paths: Iterable[Path]) -> str:
    """16 digits over names, sizes and contents, in this order; of large files only the ends are read."""
    digest = hashlib.sha256()
    for path in paths:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            digest.update(f"{path.name} {size} ".encode() + file.read(ENDS))
            file.seek(max(0, size - ENDS))
            digest.update(file.read())
    return digest.hexdigest()[:16]
