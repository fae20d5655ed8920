"""magicedit.json: what the columns of a prepared dataset mean."""

import json
from pathlib import Path
from typing import Any

from magicedit.errors import DatasetError

FORMAT_VERSION = 1
DESCRIPTION_FILE = "magicedit.json"


def read_description(folder: str | Path) -> dict[str, Any]:
    """What magicedit.json of a dataset says. DatasetError where there is none, or of another format."""
    path = Path(folder) / DESCRIPTION_FILE
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DatasetError(
            f"{folder} is no prepared dataset ({DESCRIPTION_FILE} is missing); make one with "
            "`magicedit prepare PHOTOGRAPHS -o DATASET`"
        ) from None
    except (OSError, ValueError) as error:
        raise DatasetError(f"cannot read {path}: {error}; run `magicedit prepare` again") from error
    if not isinstance(description, dict) or description.get("format") != FORMAT_VERSION:
        found = description.get("format") if isinstance(description, dict) else None
        raise DatasetError(
            f"{path} has format {found!r}, this version reads {FORMAT_VERSION}; run `magicedit prepare` again"
        )
    return description
