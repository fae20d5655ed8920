"""Batch editing: one request for all photographs of a folder, or a manifest with one edit per row."""

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
