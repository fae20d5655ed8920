"""The folder comfyui/ loaded as ComfyUI loads it: a module by its path, with ComfyUI's API or a stand-in."""

import importlib.util
import sys
import types
from pathlib import Path

import comfy_stand_in

FOLDER = Path(__file__).resolve().parents[2] / "comfyui"


def has_comfyui() -> bool:
    """Whether ComfyUI itself can be imported, not the stand-in."""
    return importlib.util.find_spec("comfy_api") is not None


def load_extension() -> types.ModuleType:
    """By ComfyUI's API, where it is, else by the stand-in, which nothing sees afterwards."""
    if has_comfyui():
        return _load_folder()
    api, latest = types.ModuleType("comfy_api"), types.ModuleType("comfy_api.latest")
    api.latest, latest.io, latest.ComfyExtension = latest, comfy_stand_in.io, comfy_stand_in.ComfyExtension
    sys.modules |= {"comfy_api": api, "comfy_api.latest": latest}
    try:
        return _load_folder()
    finally:
        del sys.modules["comfy_api"], sys.modules["comfy_api.latest"]


def _load_folder() -> types.ModuleType:
    """Under a name that nothing else imports, so that the folder's own imports must be relative."""
    name = "custom_nodes_magicedit"
    spec = importlib.util.spec_from_file_location(
        name, FOLDER / "__init__.py", submodule_search_locations=[str(FOLDER)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
