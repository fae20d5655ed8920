"""Pairs for a denoiser that predicts noise, velocity or the clean sample."""

import torch

from magicedit.train.methods.editing import Editing, Noised
from magicedit.train.objectives import noise_objective


class Noise(Editing):
    """Learns the scheduler's `prediction_type`."""

    def _loss(self, noised: Noised, output: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        prediction_type = self.pipeline.scheduler.config.prediction_type
        noise, gamma = noised.batch["noise"], self.config.snr_gamma
        return noise_objective(output, noised.clean, noise, noised.alphas, prediction_type, gamma), {}
