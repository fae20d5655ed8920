"""A family of its own for the training loop: a generator of points against a discriminator.

As a script it is `train/train.py` with this objective; KILLED_AT=N kills it where sample N is drawn.
"""

import os
import signal
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from magicedit.train.methods import OBJECTIVES, Losses, Method

REAL_MEAN = (2.0, -1.0)


class Points(torch.utils.data.Dataset):
    def __init__(self, seed: int):
        self.seed = seed

    def __getitem__(self, n: int) -> dict[str, torch.Tensor]:
        if n == int(os.environ.get("KILLED_AT", -1)):
            os.kill(os.getpid(), signal.SIGKILL)
        drawn = np.random.default_rng((self.seed, n)).standard_normal((2, 2), dtype=np.float32)
        return {"real": torch.from_numpy(drawn[0] / 4) + torch.tensor(REAL_MEAN), "latent": drawn[1]}


def network(outputs: int) -> torch.nn.Sequential:
    return torch.nn.Sequential(torch.nn.Linear(2, 16), torch.nn.Tanh(), torch.nn.Linear(16, outputs))


class Adversarial(Method):
    """Two networks, two optimizers, two losses a step; the generator's meets the updated discriminator."""

    def __init__(self, config, accelerator):
        self.config = config
        self.generator, self.discriminator = network(2), network(1)

    def modules(self) -> dict[str, torch.nn.Module]:
        return {"generator": self.generator, "discriminator": self.discriminator}

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        rate = self.config.learning_rate
        return {
            "discriminator": torch.optim.AdamW(self.discriminator.parameters(), lr=2 * rate),
            "generator": torch.optim.SGD(self.generator.parameters(), lr=rate, momentum=0.9),
        }

    def samples(self) -> Points:
        return Points(self.config.seed)

    def losses(self, batch: dict, networks) -> Losses:
        with torch.no_grad():
            fake = self.generator(batch["latent"])
        real_logits, fake_logits = networks["discriminator"](torch.cat([batch["real"], fake])).chunk(2)
        loss = F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()
        yield "discriminator", loss, {"real": real_logits.sigmoid().mean()}
        judged = self.discriminator(networks["generator"](batch["latent"]))
        yield "generator", F.softplus(-judged).mean(), {}

    def held_out(self) -> Points:
        return Points(self.config.seed + 1)

    def validate(self, batch: dict, networks) -> dict[str, torch.Tensor]:
        made = self.generator(batch["latent"])
        return {"loss": (made - batch["real"]).pow(2).mean()}

    def export(self, folder: Path, step: int, samples_seen: int) -> None:
        save_file(self.generator.state_dict(), folder / "generator.safetensors")


if __name__ == "__main__":
    from magicedit.train.train import main

    OBJECTIVES["adversarial"] = Adversarial
    sys.exit(main())
