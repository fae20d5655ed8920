"""Batch editing: one request for all photographs of a folder, a manifest with one edit per row, or the design
of a stimulus set."""

from magicedit.batch.designs import Design
from magicedit.batch.rows import FORMATS, JOURNAL, Row
from magicedit.batch.run import BatchReport, RowResult, edit_folder, edit_manifest, edit_photographs
from magicedit.batch.stimuli import StimuliReport, make_stimuli
from magicedit.request import EditRequest

__all__ = [
    "FORMATS",
    "JOURNAL",
    "BatchReport",
    "Design",
    "EditRequest",
    "Row",
    "RowResult",
    "StimuliReport",
    "edit_folder",
    "edit_manifest",
    "edit_photographs",
    "make_stimuli",
]
