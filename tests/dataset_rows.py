"""Datasets whose rows were changed after they were prepared."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq


def changed_rows(dataset: Path, output: Path, change: Callable[[list[dict[str, Any]]], object]) -> Path:
    """A copy whose rows of the training split `change` has changed, in place."""
    shutil.copytree(dataset, output)
    shard = output / "data" / "train-00000.parquet"
    table = pq.read_table(shard)
    rows = table.to_pylist()
    change(rows)
    pq.write_table(table.from_pylist(rows, table.schema), shard)
    return output
