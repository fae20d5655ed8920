"""Reading what pages show, their code blocks and the commands in them, and making a video that they name."""

import re
from pathlib import Path

from PIL import Image


def blocks(language: str, page: str) -> list[str]:
    """The contents of a page's fenced blocks of a language, at the beginning of a line."""
    return re.findall(rf"^```{language}\n(.*?)^```", page, flags=re.M | re.S)


def shell_commands(page: str) -> list[str]:
    """The commands of its `sh` blocks, one a line, without remarks and without what make does."""
    lines = [line.split("  #")[0].strip() for block in blocks("sh", page) for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("make ")]


def write_clip(path: Path, picture: Image.Image, frames: int = 10) -> None:
    """A film of a picture of a face that drifts, 25 frames a second."""
    from magicedit.video import save_film

    width, height = picture.size
    boxes = [(number, 0, width - frames + number, height - frames) for number in range(frames)]
    save_film([picture.crop(box).resize((256, 256)) for box in boxes], path, 1 / 25)
