"""Evaluation of editors: protocols, metrics, tables, reports. The caller passes the editors."""

from magicedit.evaluation.circumstances import plain_command
from magicedit.evaluation.compare import compare
from magicedit.evaluation.editors import Editor, Entrant, ModelEditor, PictureFolder, entry_point
from magicedit.evaluation.evaluate import evaluate
from magicedit.evaluation.protocol import Protocol, load_protocol, protocol_names
from magicedit.evaluation.report import headline_table, write_report
from magicedit.evaluation.subjects import read_subjects

__all__ = [
    "Editor",
    "Entrant",
    "ModelEditor",
    "PictureFolder",
    "Protocol",
    "compare",
    "entry_point",
    "evaluate",
    "headline_table",
    "load_protocol",
    "plain_command",
    "protocol_names",
    "read_subjects",
    "write_report",
]
