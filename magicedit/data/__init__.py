"""From photographs and label files to identity-paired, AU-labelled batches."""

from magicedit.data.labels import read_labels
from magicedit.data.pairs import PairDataset
from magicedit.data.prepare import PrepareReport, prepare_dataset

__all__ = ["PairDataset", "PrepareReport", "prepare_dataset", "read_labels"]
