"""Small pictures of what controls do, shown beside the slider that is pointed at or has the focus."""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from magicedit.app.views import describe

ATLAS = Path(__file__).with_name("atlas.jpg")  # drawn by dev/app_atlas.py
COLUMNS = 7
TILES = (  # of the picture, row by row
    *("AU1", "AU2", "AU4", "AU5", "AU6", "AU7", "AU9"),
    *("AU10", "AU12", "AU14", "AU15", "AU16", "AU17", "AU18"),
    *("AU20", "AU22", "AU23", "AU24", "AU25", "AU26", "AU27"),
    *("AU28", "AU43", "gaze_yaw", "gaze_pitch", "head_yaw", "head_pitch", "head_roll"),
)


def atlas(units: Sequence[str]) -> dict[str, Any]:
    """Returns what page.js shows of a model's controls.

    url: of the picture, `columns` x `rows` tiles. controls: by name, a description, and the tile's column and
    row, None where there is none.
    """
    places = {name: divmod(number, COLUMNS)[::-1] for number, name in enumerate(TILES)}
    return {
        "url": "data:image/jpeg;base64," + base64.b64encode(ATLAS.read_bytes()).decode(),
        "columns": COLUMNS,
        "rows": -(-len(TILES) // COLUMNS),
        "controls": {name: {"told": describe(name), "tile": places.get(name)} for name in units},
    }
