"""Folders and files that no well-meant program makes."""

import os
from pathlib import Path


def unlistable_folder(folder: Path) -> Path:
    """Makes nested folders in this one until their path is too long for the system, which root cannot list
    either; returns the first whose content cannot be asked for."""
    here, depth = os.open(folder, os.O_RDONLY), folder
    while len(os.fsencode(depth)) < 4096:
        os.mkdir("d" * 200, dir_fd=here)
        below = os.open("d" * 200, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here, depth = below, depth / ("d" * 200)
    os.close(here)
    return depth
