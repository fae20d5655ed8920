"""Other editors to compare with, one folder each; all are callables (photo, au_delta, seed) -> pixels."""

from magicedit.baselines.copy import copy
from magicedit.baselines.warp import WarpEditor

__all__ = ["WarpEditor", "copy"]
