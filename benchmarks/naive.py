"""The yardstick: what the published system computes, re-implemented by us on the same stock networks.

Nothing here is MagicFace's own code (Wei et al. 2025, arXiv:2501.02260). It is a re-implementation of its
order of computation, to measure against: the ID encoder runs to its end, on a batch doubled for guidance; in
each step and layer the reference's hidden states are concatenated with the image's *before* `norm1`, so that
normalisation, queries, keys, values and the output projection see both, and the second half of the result is
dropped; guidance always takes two branches; the text's keys and values are projected in each step; nothing is
kept from one edit to the next. Its numbers are those of `MagicEditPipeline` but for rounding.
"""

import copy
import inspect
from collections.abc import Callable
from itertools import chain

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0
from diffusers.utils.torch_utils import randn_tensor

from magicedit.pipelines.pipeline_magicedit import MagicEditPipeline
from magicedit.pipelines.reference_attention import Features, transformer_blocks


def stock_twin(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """Modules of its own around the same parameters, with the stock attention processors."""
    shared = {id(tensor): tensor for tensor in chain(unet.parameters(), unet.buffers())}
    twin = copy.deepcopy(unet, shared)
    twin.set_attn_processor(AttnProcessor2_0())
    return twin


class NaiveNetworks(torch.nn.Module):
    """Both UNets of a pipeline, computing as the published system does; parameters stay the pipeline's.

    One call at a time: what the layers pass on to each other lies in the module during a call.
    """

    def __init__(self, pipeline: MagicEditPipeline):
        super().__init__()
        if pipeline.reference_unet is None or pipeline.image_encoder is not None:
            raise ValueError("the published system has an ID encoder and no image encoder; got another model")
        if pipeline.config.concat_identity or pipeline.au_map is not None:
            raise ValueError("the published denoiser takes latents and condition alone; got more channels")
        self.denoiser = stock_twin(pipeline.unet)
        self.id_encoder = stock_twin(pipeline.reference_unet)
        self._seen: Features = {}
        self._reference: Features | None = None
        for name, block in transformer_blocks(self.id_encoder).items():
            block.norm1.register_forward_pre_hook(self._keep(name))
        for name, block in transformer_blocks(self.denoiser).items():
            block.norm1.register_forward_pre_hook(self._join(name))
            block.attn1.register_forward_hook(self._drop_second_half)

    def _keep(self, layer: str):
        def hook(module, args):
            self._seen[layer] = args[0]

        return hook

    def _join(self, layer: str):
        def hook(module, args):
            if self._reference is None:
                return None
            return (torch.cat([args[0], self._reference[layer]], dim=1),)  # (batch, 2 tokens, channels)

        return hook

    def _drop_second_half(self, module, args, output):
        return output if self._reference is None else output.chunk(2, dim=1)[0]

    def encode_identity(self, identity_latents: torch.Tensor, prompt_embeds: torch.Tensor) -> Features:
        """`identity_latents` (batch, channels, height, width), `prompt_embeds` (1, text tokens, channels) ->
        hidden states (batch, tokens, channels) by layer name."""
        batch = identity_latents.shape[0]
        timestep = torch.zeros(batch, dtype=torch.long, device=identity_latents.device)
        self._seen = {}
        self.id_encoder(identity_latents, timestep, encoder_hidden_states=prompt_embeds.expand(batch, -1, -1))
        seen, self._seen = self._seen, {}
        return seen

    def predict_noise(
        self, noisy, condition_latents, timesteps, prompt_embeds, au_delta, features: Features | None
    ) -> torch.Tensor:
        """As `magicedit.models.predict_noise`, but `features` have the batch's own size, a row each."""
        self._reference = features
        try:
            return self.denoiser(
                torch.cat([noisy, condition_latents], dim=1),
                timesteps,
                encoder_hidden_states=prompt_embeds.expand(noisy.shape[0], -1, -1),
                class_labels=au_delta.to(noisy.dtype),
            ).sample
        finally:
            self._reference = None

    def forward(self, noisy, condition_latents, identity_latents, timesteps, prompt_embeds, au_delta):
        """What a training step evaluates, see `magicedit.train.networks.Networks`."""
        features = self.encode_identity(identity_latents, prompt_embeds)
        return self.predict_noise(noisy, condition_latents, timesteps, prompt_embeds, au_delta, features)


class NaiveSystem:
    """Edits as the published system does, with a pipeline's own components.

    Raises:
        ValueError: for pipelines of another architecture than the published.
    """

    def __init__(self, pipeline: MagicEditPipeline):
        if pipeline.vae is None or pipeline.config.prediction != "noise":
            raise ValueError("the published system predicts the noise of a VAE's latents; got another model")
        self.pipeline = pipeline
        self.networks = NaiveNetworks(pipeline)

    @torch.no_grad()
    def __call__(
        self,
        image,
        condition_image,
        au_delta: torch.Tensor,
        num_inference_steps: int = 50,
        guidance_scale: float = 3.0,
        generator: torch.Generator | None = None,
        output_type: str = "pt",
        callback: Callable[[int], None] | None = None,
        reference: bool = True,
    ) -> torch.Tensor:
        """Edits `image`, one AU vector a face.

        Args:
            image, condition_image: as in `MagicEditPipeline.__call__`, (batch, 3, height, width) in [0, 1].
            au_delta: (batch, aus).
            output_type: "pt", images (batch, 3, height, width) in [0, 1], or "latent".
            callback: called with the number of each finished step.
            reference: False leaves the identity out, for control experiments.
        """
        pipeline = self.pipeline
        device, dtype = pipeline._execution_device, pipeline.unet.dtype
        preprocess, scaling = pipeline.image_processor.preprocess, pipeline.vae.config.scaling_factor
        prompt_embeds = self._encode_prompt(device, dtype)
        identity, condition = (
            pipeline.vae.encode(preprocess(x).to(device, dtype)).latent_dist.mode()
            for x in (image, condition_image)
        )  # (batch, 4, height/8, width/8)
        features = None
        if reference:
            features = self.networks.encode_identity(torch.cat([identity] * 2), prompt_embeds)
        condition = torch.cat([condition] * 2)
        au_delta = au_delta.to(device, dtype)
        au_condition = torch.cat([torch.zeros_like(au_delta), au_delta])  # (2 batch, aus)

        scheduler = copy.deepcopy(pipeline.scheduler)
        scheduler.set_timesteps(num_inference_steps, device=device)
        latents = randn_tensor(identity.shape, generator=generator, device=device, dtype=dtype)
        latents = latents * scheduler.init_noise_sigma
        stochastic = "generator" in inspect.signature(scheduler.step).parameters
        step_kwargs = {"generator": generator} if stochastic else {}
        for step, timestep in enumerate(scheduler.timesteps):
            noisy = scheduler.scale_model_input(latents, timestep)
            output = self.networks.predict_noise(
                torch.cat([noisy] * 2), condition, timestep, prompt_embeds, au_condition, features
            )
            without, conditioned = output.chunk(2)
            guided = without + guidance_scale * (conditioned - without)
            latents = scheduler.step(guided, timestep, latents, **step_kwargs, return_dict=False)[0]
            if callback is not None:
                callback(step)
        if output_type == "latent":
            return latents
        images = pipeline.vae.decode(latents / scaling).sample
        return pipeline.image_processor.postprocess(images.float(), output_type=output_type)

    def _encode_prompt(self, device, dtype) -> torch.Tensor:
        tokenizer = self.pipeline.tokenizer
        tokens = tokenizer(
            self.pipeline.config.prompt,
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        return self.pipeline.text_encoder(tokens.to(device))[0].to(dtype)
