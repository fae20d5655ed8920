"""What the loop trains: a `Method`, chosen by `--objective`.

A new family is one more method and a line in `OBJECTIVES`; the loop and its checkpoints stay as they are.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:  # the command line reads the names of objectives without waiting for torch
    import numpy as np
    import torch
    from accelerate import Accelerator

    from magicedit.train.config import TrainConfig

Losses = Iterator[tuple[str, "torch.Tensor", Mapping[str, "torch.Tensor"]]]


class Method(Protocol):
    """Networks, what they learn from, and what they become. It is made after the seed is set.

    config: settings with what the method resolved in them; they are saved with every checkpoint.
    """

    config: "TrainConfig"
    shardable = False  # whether `with_modules` exists, and losses call what they train through `networks`

    def modules(self) -> dict[str, "torch.nn.Module"]:
        """Networks by name, each a file of a checkpoint; parameters that are not trained need no gradient."""

    def optimizers(self) -> dict[str, "torch.optim.Optimizer"]:
        """Optimizers by name, each of the parameters that its losses train; no parameter is in two."""

    def samples(self) -> "torch.utils.data.Dataset":
        """What batches are collated from: sample n is a function of (seed, n), for every n >= 0."""

    def losses(self, batch: dict, networks: Mapping[str, "torch.nn.Module"]) -> Losses:
        """Yields optimizer name, loss and further values to log, one update after the other.

        The loop updates between two yields, so that a later loss sees the networks after the earlier one.
        Under gradient accumulation every micro-batch gives its first loss before any gives its second. A
        loss gives gradients to the parameters of its own optimizer only.

        networks: the modules as data parallelism wraps them. What a loss trains is called through these,
            once; what it passes through untrained is called as the module itself.
        """

    def held_out(self) -> "torch.utils.data.Dataset | None":
        """Samples of held-out people for `validate`: sample n is a function of n, whatever the run's seed.

        None: the method has no loss that tells which of two states of its weights is better. Raises
        DatasetError where the dataset has no such people.
        """
        return None

    def validate(
        self, batch: dict, networks: Mapping[str, "torch.nn.Module"]
    ) -> Mapping[str, "torch.Tensor"]:
        """Returns `loss`, which is lower for better weights, and its parts: means over a held-out batch.

        It is called without gradients, with the networks in evaluation mode, and changes nothing that a
        training step reads. By default it is the first of `losses`.
        """
        _, loss, parts = next(self.losses(batch, networks))
        return {"loss": loss, **parts}

    def finished(self) -> bool:
        """Whether training ends before `max_train_steps`; asked before each step, equal in all processes."""
        return False

    def export(self, folder: Path, step: int, samples_seen: int) -> None:
        """Writes the result into an empty folder, whose files then replace those of an earlier result.

        It is called in one process. Meanwhile the modules hold averaged weights; leave them so.
        """

    def preview(self) -> "np.ndarray | None":
        """A picture (height, width, 3), uint8, of what the present weights do; None: there is none."""
        return None

    def with_modules(self, modules: Mapping[str, "torch.nn.Module"]) -> "Method":
        """Returns this method with other modules in place of its own, to preview and export: whole ones,
        where its own are sharded."""
        raise NotImplementedError

    def counters(self) -> dict[str, float]:
        """Counts since the last call, for the log; the loop sums them over processes."""
        return {}

    def data_digest(self) -> str:
        """Digest of the data that samples are drawn from; empty: unknown."""
        return ""

    def state(self) -> dict[str, Any]:
        """JSON values that a checkpoint keeps for `check`."""
        return {}

    def check(self, state: dict[str, Any]) -> None:
        """Raises TrainingError where a checkpoint of this `state` was of something else."""


def _pairs(config: "TrainConfig", accelerator: "Accelerator") -> Method:
    from magicedit.train.methods.composed import Composed
    from magicedit.train.methods.noise import Noise
    from magicedit.train.networks import open_pipeline

    pipeline = open_pipeline(config, accelerator.mixed_precision)
    predictions = {"flow_mask_paint": Composed, "noise": Noise}
    return predictions[pipeline.config.prediction](config, accelerator, pipeline)


def _distill(config: "TrainConfig", accelerator: "Accelerator") -> Method:
    from magicedit.train.methods.distill import Distillation
    from magicedit.train.networks import open_pipeline

    return Distillation(config, accelerator, open_pipeline(config, accelerator.mixed_precision))


def _flow_autoencoder(config: "TrainConfig", accelerator: "Accelerator") -> Method:
    from magicedit.train.methods.flow_autoencoder import FlowAutoencoder

    return FlowAutoencoder(config, accelerator)


def _ganimation(config: "TrainConfig", accelerator: "Accelerator") -> Method:
    from magicedit.train.methods.ganimation import GANimation

    return GANimation(config, accelerator)


def _emotion_vae(config: "TrainConfig", accelerator: "Accelerator") -> Method:
    from magicedit.train.methods.emotion_diffusion import EmotionVAE

    return EmotionVAE(config, accelerator)


def _emotion_diffusion(config: "TrainConfig", accelerator: "Accelerator") -> Method:
    from magicedit.train.methods.emotion_diffusion import EmotionDiffusion

    return EmotionDiffusion(config, accelerator)


def _attribute_diffusion(config: "TrainConfig", accelerator: "Accelerator") -> Method:
    from magicedit.train.methods.attribute_diffusion import AttributeDiffusion

    return AttributeDiffusion(config, accelerator)


OBJECTIVES: dict[str, Callable[["TrainConfig", "Accelerator"], Method]] = {
    "pairs": _pairs,
    "distill": _distill,
    "flow-autoencoder": _flow_autoencoder,
    "ganimation": _ganimation,
    "emotion-vae": _emotion_vae,
    "emotion-diffusion": _emotion_diffusion,
    "attribute-diffusion": _attribute_diffusion,
}
