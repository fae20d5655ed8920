"""Batches: one request for every photograph of a folder, or one row of a manifest an edit."""

from magicedit.batch.rows import FORMATS, JOURNAL, Row
from magicedit.batch.run import BatchReport, RowResult, edit_folder, edit_manifest
from magicedit.request import EditRequest

__all__ = [
    "FORMATS",
    "JOURNAL",
    "BatchReport",
    "EditRequest",
    "Row",
    "RowResult",
    "edit_folder",
    "edit_manifest",
]
