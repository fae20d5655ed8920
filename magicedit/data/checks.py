"""Whether rows of a prepared dataset can be trained on: numbers, ranges and shapes, many rows at once."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from magicedit.faces.types import LANDMARK_COUNTS
from magicedit.files import shown

CHECKED = ("identity", "source", "action_units", "landmarks", "pose")  # columns that `examined` needs
ROUNDING = 1e-3  # intensity steps by which a label may miss 0 to 5
HIGHEST = 5  # intensity steps
LEAST_FACE = 0.05  # extent of the landmarks, of the crop's side; a face fills most of it


@dataclass(frozen=True)
class BadRow:
    """A row that is left out. row: its number in the shard, from 0. source: of its photograph, or empty."""

    shard: str
    row: int
    source: str
    reason: str

    def __str__(self) -> str:
        named = f" ({shown(self.source)})" if self.source else ""
        return f"{self.shard} row {self.row}{named}: {self.reason}"


class Examined(NamedTuple):
    """What `examined` found. labels: (rows, labelled) float32, 0..5. landmarks: (rows, points, 2) float32, px
    of the stored pictures. reasons: why rows are unusable, in a few words; their numbers mean nothing."""

    labels: np.ndarray
    landmarks: np.ndarray
    reasons: dict[int, str]


def examined(table: pa.Table | pa.RecordBatch, description: Mapping[str, Any]) -> Examined:
    """Checks the columns `CHECKED` of rows; pictures are not looked at.

    description: magicedit.json's action_units, landmarks (the scheme) and crop_size.
    """
    size, points = description["crop_size"], LANDMARK_COUNTS[description["landmarks"]]
    reasons: dict[int, str] = {}
    for name in ("identity", "source"):
        _note(reasons, ~_named(table.column(name)), lambda _, name=name: f"it has no {name}")
    labels = _numbers(table, "action_units", len(description["action_units"]), reasons)
    lowest, highest = labels.min(1, initial=0), labels.max(1, initial=0)
    _note(
        reasons,
        (lowest < -ROUNDING) | (highest > HIGHEST + ROUNDING),
        lambda row: (
            f"its action_units are outside 0 to {HIGHEST}: {labels[row].min():g} to {labels[row].max():g}"
        ),
    )
    landmarks = _numbers(table, "landmarks", 2 * points, reasons).reshape(-1, points, 2)
    first, last = landmarks.min(1), landmarks.max(1)  # (rows, 2)
    outside = np.maximum(np.abs(first / size - 0.5), np.abs(last / size - 0.5)).max(1) > 2
    small = (last - first).min(1) < LEAST_FACE * size
    _note(reasons, outside | small, lambda _: "its landmarks are no face in the picture")
    _numbers(table, "pose", 3, reasons, optional=True)
    return Examined(labels, landmarks, reasons)


def _note(reasons: dict[int, str], wrong: np.ndarray, reason: Any) -> None:
    """Adds `reason(row)` for rows (rows,) bool that have none yet."""
    for row in np.flatnonzero(wrong).tolist():
        if row not in reasons:
            reasons[row] = reason(row)


def _named(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Which cells (rows,) are texts that are not empty."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return np.zeros(len(column), bool)
    return pc.greater(pc.fill_null(pc.binary_length(column), 0), 0).to_numpy(zero_copy_only=False)


def _numbers(
    table: pa.Table | pa.RecordBatch, name: str, count: int, reasons: dict[int, str], optional: bool = False
) -> np.ndarray:
    """Returns the cells of a column of lists, (rows, count) float32, those of unusable ones 0.

    optional: whether cells may be empty.
    """
    column = table.column(name)
    values = np.zeros((len(column), count), np.float32)
    try:
        column = column.cast(pa.list_(pa.float32()))
    except pa.ArrowException:
        _note(reasons, np.ones(len(column), bool), lambda _: f"its {name} are no numbers")
        return values
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    right = lengths == count
    _note(
        reasons,
        ~right & ~(optional & (lengths == 0)),
        lambda row: f"it has {lengths[row]} {name}, expected {count}",
    )
    flat = pc.list_flatten(column if right.all() else column.filter(pa.array(right)))
    values[right] = flat.to_numpy(zero_copy_only=False).reshape(-1, count)  # null becomes NaN
    finite = np.isfinite(values).all(1)
    _note(reasons, ~finite, lambda _: f"its {name} are not finite")
    values[~finite] = 0
    return values
