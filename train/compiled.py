"""`torch.compile` for training: whole networks, static shapes, no graph breaks.

It compiles functions, not modules, so that checkpoints and saved pipelines stay the same.
"""

import contextlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from diffusers import UNet2DConditionModel

from magicedit.errors import TrainingError
from magicedit.models.optimize import cpp_compiler
from magicedit.pipelines.reference_attention import Features, transformer_blocks

BACKEND = "inductor"


def compiled(function: Callable) -> Callable:
    """Returns `function`, compiled as one graph for each input shape."""
    return torch.compile(function, fullgraph=True, dynamic=False, backend=BACKEND)


def check_compiler(device: torch.device) -> None:
    """Raises TrainingError where compiling for `device` needs a C++ compiler and none is found."""
    compiler = cpp_compiler()
    if device.type == "cpu" and shutil.which(compiler) is None:
        raise TrainingError(
            f"--compile needs a C++ compiler on a CPU, and there is no {compiler}: install one, name yours "
            "in the environment variable CXX, or train without --compile"
        )


@contextlib.contextmanager
def compilation_explained() -> Iterator[None]:
    """Turns compilation errors into a TrainingError of one line."""
    from torch._dynamo.exc import TorchDynamoException  # takes a second to import

    try:
        yield
    except TorchDynamoException as error:
        reason = " ".join(str(error).splitlines()[:2])
        raise TrainingError(f"torch.compile failed; train without --compile ({reason})") from error


@dataclass(frozen=True)
class _Keep:
    """A hook that stores a layer's input."""

    features: Features
    layer: str

    def __call__(self, module: torch.nn.Module, args: tuple) -> None:
        self.features[self.layer] = args[0]


class CompiledReference:
    """`encode_reference`, compiled.

    The original stops the ID encoder's forward by an exception and checks its thread, which cannot be traced.
    Here the forward runs to its end, and the compiler drops unused results.
    """

    def __init__(self):
        self._features: Features = {}
        self._run = compiled(_run_reference)

    def __call__(
        self,
        reference_unet: UNet2DConditionModel,
        identity_latents: torch.Tensor,
        prompt_embeds: torch.Tensor,
    ) -> Features:
        """See `encode_reference`."""
        handles = [
            block.norm1.register_forward_pre_hook(_Keep(self._features, name))
            for name, block in transformer_blocks(reference_unet).items()
        ]
        try:
            return self._run(reference_unet, self._features, identity_latents, prompt_embeds)
        finally:
            for handle in handles:
                handle.remove()
            self._features.clear()


def _run_reference(
    reference_unet: UNet2DConditionModel,
    features: Features,
    identity_latents: torch.Tensor,
    prompt_embeds: torch.Tensor,
) -> Features:
    """Runs the ID encoder; its hooks write to `features`."""
    faces = identity_latents.shape[0]
    timestep = torch.zeros(faces, dtype=torch.long, device=identity_latents.device)
    reference_unet(identity_latents, timestep, encoder_hidden_states=prompt_embeds.expand(faces, -1, -1))
    kept = dict(features)
    features.clear()
    return kept
