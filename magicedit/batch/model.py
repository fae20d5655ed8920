"""What a model's files say of it without loading it."""

import hashlib
import json

from magicedit.embedded import model_folder

ENDS = 2**20  # bytes at either end of a file that are read to tell it from others


def action_units_of(model: str) -> tuple[str, ...] | None:
    """What it can edit, in its order; None where its files do not tell: loading it will."""
    folder = model_folder(model)
    try:
        index = json.loads((folder / "model_index.json").read_text("utf-8")) if folder else {}
        return tuple(index["action_units"].split(","))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def digest_of(model: str) -> str | None:
    """Of its files, of large ones the ends; None for a model of a hub, which its name stands for."""
    folder = model_folder(model)
    if folder is None:
        return None
    patterns = ("*.json", "*/*.json", "*/*.safetensors")  # not of checkpoints, which lie deeper
    digest = hashlib.sha256()
    for path in sorted(path for pattern in patterns for path in folder.glob(pattern)):
        size = path.stat().st_size
        with path.open("rb") as file:
            digest.update(f"{path.relative_to(folder)} {size} ".encode() + file.read(ENDS))
            file.seek(max(0, size - ENDS))
            digest.update(file.read())
    return digest.hexdigest()
