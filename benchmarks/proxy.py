"""Models of Stable Diffusion 1.5's architecture with random weights, at three sizes.

`FULL` is the published size. `PROXY` stands for it on a CPU: a quarter of its width on a quarter of its
tokens, with heads, norm groups, text width and text tokens in proportion, so that the shares of attention,
projections and convolutions in the FLOPs, and with them the ratio of naive to exact, stay what they are at
full size; shrinking the width alone would inflate that ratio. `TINY` is for tests.
"""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from magicedit.models.unets import make_denoiser
from magicedit.pipelines.pipeline_magicedit import MAGICFACE_ACTION_UNITS, MagicEditPipeline


@dataclass(frozen=True)
class ModelSize:
    """resolution: pixels a side. heads: of each attention layer, diffusers' `attention_head_dim`. text_*: of
    the CLIP text encoder, as wide as the cross-attention's tokens."""

    resolution: int
    unet_channels: tuple[int, int, int, int]
    heads: int
    norm_groups: int
    text_width: int
    text_layers: int
    text_heads: int
    text_tokens: int
    vae_channels: tuple[int, int, int, int]


FULL = ModelSize(512, (320, 640, 1280, 1280), 8, 32, 768, 12, 12, 77, (128, 256, 512, 512))
PROXY = ModelSize(256, (80, 160, 320, 320), 2, 8, 192, 12, 3, 19, (32, 64, 128, 128))
TINY = ModelSize(64, (16, 32, 32, 32), 2, 8, 32, 2, 4, 19, (8, 8, 8, 8))
SIZES = {"full": FULL, "proxy": PROXY, "tiny": TINY}


def make_unets(size: ModelSize, action_units: str) -> tuple[UNet2DConditionModel, UNet2DConditionModel]:
    """The denoiser and the ID encoder, on the default device."""

    def unet():
        return UNet2DConditionModel(
            sample_size=size.resolution // 8,
            block_out_channels=size.unet_channels,
            attention_head_dim=size.heads,
            norm_num_groups=size.norm_groups,
            cross_attention_dim=size.text_width,
        )

    return make_denoiser(unet(), num_aus=len(action_units.split(","))), unet()


def make_pipeline(
    size: ModelSize,
    *,
    seed: int = 0,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    action_units: str = MAGICFACE_ACTION_UNITS,
) -> MagicEditPipeline:
    """A whole pipeline with random weights; on "meta" it has shapes and no numbers.

    Layers that start at zero get weights too, so that outputs depend on every input.
    """
    on_meta = torch.device(device).type == "meta"
    with torch.device(device), torch.random.fork_rng():  # on a GPU the numbers are others than on a CPU
        torch.manual_seed(seed)
        unet, reference_unet = make_unets(size, action_units)
        vae = AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
            block_out_channels=size.vae_channels,
            layers_per_block=2,
            latent_channels=4,
            norm_num_groups=min(size.norm_groups, size.vae_channels[0] // 2),
            sample_size=size.resolution,
        )
        tokenizer = make_tokenizer(size.text_tokens)
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer) if size is not FULL else 49408,
                hidden_size=size.text_width,
                intermediate_size=4 * size.text_width,
                num_hidden_layers=size.text_layers,
                num_attention_heads=size.text_heads,
                max_position_embeddings=size.text_tokens,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )
        )
        with torch.no_grad():
            unet.conv_in.weight[:, 4:].normal_(std=0.1)
            unet.class_embedding.weight.normal_()
    tiny_vae = make_tiny_decoder(size, device)
    pipeline = MagicEditPipeline(
        unet=unet.eval(),
        reference_unet=reference_unet.eval(),
        vae=vae.eval(),
        tiny_vae=tiny_vae,
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer,
        scheduler=DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        resolution=size.resolution,
        action_units=action_units,
    )
    pipeline.set_progress_bar_config(disable=True)
    for network in (unet, reference_unet, vae, text_encoder, tiny_vae):
        network.requires_grad_(False)
        torch.nn.Module.to(network, dtype=dtype)  # diffusers' own warns of modules to keep, of which: none
    return pipeline if on_meta else pipeline.to(device)


def make_tokenizer(tokens: int) -> CLIPTokenizer:
    """CLIP's tokenizer over the few words of the prompt, padding to `tokens`."""
    words = ["a", "close", "up", "of", "person", "."]
    vocabulary = {f"{word}</w>": number for number, word in enumerate(words)}
    for token in (*"acersuolpfn.", "<|startoftext|>", "<|endoftext|>"):
        vocabulary[token] = len(vocabulary)
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "vocab.json").write_text(json.dumps(vocabulary))
        (Path(name) / "merges.txt").write_text("#version: 0.2\n")
        return CLIPTokenizer.from_pretrained(name, model_max_length=tokens)


def make_tiny_decoder(
    size: ModelSize, device: str | torch.device = "meta", dtype: torch.dtype = torch.float32
):
    """`AutoencoderTiny`: at full size of its published width, else narrower as the other networks are."""
    widths = (size.vae_channels[0] // 2,) * 4
    with torch.device(device):
        tiny = AutoencoderTiny(encoder_block_out_channels=widths, decoder_block_out_channels=widths)
    return torch.nn.Module.to(tiny.eval(), dtype=dtype)


def distilled(pipeline: MagicEditPipeline, steps: int) -> MagicEditPipeline:
    """The same networks, said to be distilled: sampled in `steps` steps without guidance."""
    config = {name: pipeline.config[name] for name in ("resolution", "action_units")}
    other = MagicEditPipeline(
        **pipeline.components, **config, default_guidance_scale=1.0, distilled_steps=steps
    )
    other.set_progress_bar_config(disable=True)
    return other


def random_faces(
    size: ModelSize, faces: int = 1, seed: int = 0, device: str | torch.device = "cpu"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Smooth random pictures and condition pictures, each (faces, 3, resolution, resolution) in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(2, faces, 3, 8, 8, generator=generator).flatten(0, 1)
    images = torch.nn.functional.interpolate(coarse, size=(size.resolution,) * 2, mode="bilinear")
    image, condition = images.clamp(0, 1).to(device).chunk(2)
    return image, condition


def random_au_deltas(rows: int, pipeline: MagicEditPipeline, seed: int = 0) -> torch.Tensor:
    """(rows, aus) in intensity steps, one AU a row, all of them at three steps up or down, none zero."""
    aus = len(pipeline.action_units)
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, (rows,), generator=generator) * 2 - 1
    deltas = torch.zeros(rows, aus)
    deltas[torch.arange(rows), torch.arange(rows) % aus] = 3.0 * signs
    return deltas
