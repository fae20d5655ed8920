"""Reading what pages show: their code blocks, and the commands in them."""

import re


def blocks(language: str, page: str) -> list[str]:
    """The contents of a page's fenced blocks of a language, at the beginning of a line."""
    return re.findall(rf"^```{language}\n(.*?)^```", page, flags=re.M | re.S)


def shell_commands(page: str) -> list[str]:
    """The commands of its `sh` blocks, one a line, without remarks and without what make does."""
    lines = [line.split("  #")[0].strip() for block in blocks("sh", page) for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("make ")]
