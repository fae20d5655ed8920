"""Pairs for a denoiser that predicts flow, mask and paint."""

import torch

from magicedit.train.config import TrainConfig
from magicedit.train.methods.editing import Editing, Noised
from magicedit.train.objectives import ComposedWeights, Relation, composed_objective


def composed_loss(
    config: TrainConfig, output, source, target, patch_size: int, relation: Relation, mask_weight: float
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """`composed_objective` by the weights of `config`, but for `mask_weight`, and its terms for the log."""
    weights = ComposedWeights(
        change=config.change_weight,
        edges=config.edge_weight,
        flow=config.flow_weight,
        known_mask=config.known_mask_weight,
        mask=mask_weight,
    )
    terms = dict(vars(composed_objective(output, source, target, patch_size, weights, relation)))
    return terms.pop("total"), terms


class Composed(Editing):
    """Learns the composed picture, and movement and mask where they are known."""

    relations = True

    def _loss(self, noised: Noised, output: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        batch, config = noised.batch, self.config
        relation = Relation(batch["flow"], batch["mask"], batch["weight"])
        pictures = (batch["source"], batch["target"], self.pipeline.config.patch_size)
        return composed_loss(config, output, *pictures, relation, config.mask_weight)
