"""The validation loss: what the weights reach on held-out people, always on the same draws."""

import contextlib
import dataclasses
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator

from magicedit.errors import DatasetError
from magicedit.train.config import TrainConfig
from magicedit.train.methods import Method

logger = logging.getLogger(__name__)

SEED = 0  # of held-out draws: runs of different --seed are compared on the same ones
MEMORY = 2**28  # bytes of pictures that held-out pairs may cache
# Settings that change what the loss means
MEANING = (
    *("objective", "settings", "prediction", "resolution", "warped", "au_dropout", "zero_keeps"),
    *("snr_gamma", "change_weight", "edge_weight", "flow_weight", "known_mask_weight", "mask_weight"),
    *("distill_steps", "distill_teacher_steps", "distill_guidance", "train_batch_size", "validation_pairs"),
)


@dataclass(frozen=True)
class Validation:
    """Held-out samples of a method, `count` of them, in batches of `batch_size`.

    meaning: what the loss depends on but the weights; losses of equal meaning can be compared.
    """

    method: Method
    samples: torch.utils.data.Dataset
    count: int
    batch_size: int
    meaning: dict

    @classmethod
    def open(cls, method: Method) -> "Validation | None":
        """Opens the validation of a method; None, with the reason in the log, where there is none."""
        config = method.config
        if not (config.validation_steps and config.validation_pairs):
            return None
        try:
            samples = method.held_out()
        except DatasetError as error:
            logger.warning("there is no validation loss: %s", error)
            return None
        if samples is None:
            logger.info("there is no validation loss: --objective %s has none here", config.objective)
            return None
        settings = config.to_dict()
        meaning = {name: settings[name] for name in MEANING} | {"data": method.data_digest()}
        size = min(config.train_batch_size, config.validation_pairs)
        return cls(method, samples, config.validation_pairs, size, meaning)

    def _batch(self, number: int) -> dict:
        first = number * self.batch_size
        numbers = range(first, min(first + self.batch_size, self.count))
        # In this process: a loader would draw from the generator that training draws from
        return torch.utils.data.default_collate([self.samples[n] for n in numbers])

    def losses(self, networks: Mapping[str, torch.nn.Module], accelerator: Accelerator) -> dict[str, float]:
        """Returns `validation_loss` and its parts, means over the held-out samples, equal in all processes.

        Batches are no larger than those of training, one is in memory at a time, and nothing is kept for a
        backward pass. Every process runs as many of them, since sharded networks wait for each other; the
        networks' modes and the state of random generators are as before afterwards.
        """
        batches = -(-self.count // self.batch_size)
        rounds = -(-batches // accelerator.num_processes)
        sums: dict[str, torch.Tensor] = {}
        with evaluating(networks), torch.no_grad(), torch.compiler.set_stance("force_eager"):
            for turn in range(rounds):
                number = turn * accelerator.num_processes + accelerator.process_index
                share = min(self.batch_size, self.count - number * self.batch_size) / self.count
                batch = self._batch(min(number, batches - 1))
                for name, value in self.method.validate(batch, networks).items():
                    own = value.detach().float() * max(share, 0.0)  # 0: of a process without a batch
                    sums[name] = sums.get(name, 0.0) + own
        totals = accelerator.reduce(torch.stack(list(sums.values())), reduction="sum").tolist()
        return {f"validation_{name}": total for name, total in zip(sums, totals, strict=True)}


def held_out_config(config: TrainConfig) -> TrainConfig:
    """Returns `config` for held-out samples: a seed of their own, and pictures as they are."""
    return dataclasses.replace(config, seed=SEED, augment=False)


def pair_settings(config: TrainConfig, held_out: bool) -> dict[str, Any]:
    """Returns the arguments of `PairDataset` that the flags of every objective set, of held-out samples or of
    those to train on."""
    drawn = held_out_config(config) if held_out else config
    names = ("resolution", "seed", "augment", "au_dropout", "max_bad_fraction")
    return {name: getattr(drawn, name) for name in names} | ({"memory": MEMORY} if held_out else {})


@contextlib.contextmanager
def evaluating(networks: Mapping[str, torch.nn.Module]) -> Iterator[None]:
    """Sets networks to evaluation mode, and each of their modules back to its own mode afterwards."""
    modes = [(module, module.training) for network in networks.values() for module in network.modules()]
    for network in networks.values():
        network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
