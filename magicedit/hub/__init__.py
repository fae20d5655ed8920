"""Model hubs: the card of a model, and pushing a model's folder."""

from magicedit.hub.cards import (
    TrainingData,
    gated_card,
    license_of,
    licensed_card,
    measured_card,
    model_card,
    named_card,
)
from magicedit.hub.description import describe_folder
from magicedit.hub.push import check_pipeline_folder, push_folder
from magicedit.hub.results import MeasuredResults, read_results

__all__ = [
    "MeasuredResults",
    "TrainingData",
    "check_pipeline_folder",
    "describe_folder",
    "gated_card",
    "license_of",
    "licensed_card",
    "measured_card",
    "model_card",
    "named_card",
    "push_folder",
    "read_results",
]
