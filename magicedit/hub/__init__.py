"""Model hubs: the card of a model, and pushing a model's folder."""

from magicedit.hub.cards import TrainingData, model_card
from magicedit.hub.push import check_pipeline_folder, push_folder

__all__ = ["TrainingData", "check_pipeline_folder", "model_card", "push_folder"]
