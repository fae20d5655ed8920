"""Models that ship inside the package, and what the name of a model stands for."""

import os
from importlib.resources import files
from pathlib import Path

EMBEDDED = {"mini": None, "mini-live": "mini"}  # name -> the one whose ID encoder it shares


def embedded_folder(name: str) -> Path:
    """Folder of a model that ships inside the package."""
    return Path(str(files("magicedit"))) / "pretrained" / name


def model_origin(model: str | Path) -> str:
    """Where a model of that name is loaded from: "embedded", "folder" or "hub".

    The name of an embedded model never means a folder: `./mini` does.
    """
    if str(model) in EMBEDDED:
        return "embedded"
    # Path.is_dir raises for a name that is too long
    return "folder" if os.path.isdir(model) else "hub"
