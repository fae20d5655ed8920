"""The folder comfyui/ loaded as ComfyUI loads it: a module by its path, with a stand-in for ComfyUI's API."""

import importlib.util
import sys
import types
from pathlib import Path

import comfy_stand_in

FOLDER = Path(__file__).resolve().parents[2] / "comfyui"


def load_extension() -> types.ModuleType:
    """By the stand-in for ComfyUI's modules, which nothing sees afterwards."""
    made = comfy_stand_in.modules()
    sys.modules |= made
    try:
        return _load_folder()
    finally:
        for name in made:
            del sys.modules[name]


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
