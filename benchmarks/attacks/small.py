"""A folder for what attacks share, and a model of a few kilobytes."""

import atexit
import functools
import os
import shutil
import tempfile
from pathlib import Path

from magicedit.models import PatchModelConfig

SMALL = PatchModelConfig(
    resolution=32, block_out_channels=(16, 32), attention_heads=2, cross_attention_dim=16, norm_num_groups=8
)


@functools.cache
def scratch() -> Path:
    """A folder that is deleted when this process ends."""
    folder = Path(tempfile.mkdtemp(prefix="campaign-"))
    owner = os.getpid()
    atexit.register(lambda: os.getpid() == owner and shutil.rmtree(folder, ignore_errors=True))
    return folder
