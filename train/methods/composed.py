"""Pairs for a denoiser that gives flow, mask and paint."""

import torch

from magicedit.train.config import TrainConfig
from magicedit.train.methods.editing import Editing, Noised
from magicedit.train.objectives import ComposedWeights, Relation, composed_objective


def composed_loss(
    config: TrainConfig, output, source, target, patch_size: int, relation: Relation, mask_weight: float
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """`composed_objective` as `config` weighs it, and its terms for the log.

    mask_weight: in place of the config's own.
    """
    weights = ComposedWeights(
        change=config.change_weight,
        edges=config.edge_weight,
        flow=config.flow_weight,
        known_mask=config.known_mask_weight,
        mask=mask_weight,
    )
    loss = composed_objective(output, source, target, patch_size, weights, relation)
    return loss.total, {"pixels": loss.pixels, "edges": loss.edges, "flow": loss.flow, "mask": loss.mask}


class Composed(Editing):
    """Learns the composed picture, and the movement and mask where a pair knows them."""

    relations = True

    def _loss(self, noised: Noised, output: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        batch, config = noised.batch, self.config
        relation = Relation(batch["flow"], batch["mask"], batch["weight"])
        pictures = (batch["source"], batch["target"], self.pipeline.config.patch_size)
        return composed_loss(config, output, *pictures, relation, config.mask_weight)
