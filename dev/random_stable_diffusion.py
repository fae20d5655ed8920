"""Writes a Stable Diffusion folder of random weights at the true shapes, for tests and benchmarks.

    python dev/random_stable_diffusion.py sd15-random
    python dev/random_stable_diffusion.py sd21-tiny --family sd21 --tiny --variant fp16
    python dev/random_stable_diffusion.py magicface-random --family magicface    # 6.9 GB: two UNets, no base

It takes the memory of one component (3.4 GB for the UNet in float32) and 4.3 GB of disk.
"""

import argparse
import json
import math
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, ModelMixin, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedModel

from magicedit.models.magicface import PUBLISHED_AU_LAYER
from magicedit.models.unets import make_denoiser
from magicedit.pipelines.safe_pipeline import rewrite_json

NOT_PUBLISHED = ("in_channels", "class_embed_type", "projection_class_embeddings_input_dim")
VOCABULARY = 49408  # tokens of CLIP
TINY_VOCABULARY = 600
# By family, true and tiny; attention_head_dim is diffusers' historical name for the number of heads
WIDTHS = {False: (320, 640, 1280, 1280), True: (32, 64, 64, 64)}
HEADS = {
    ("sd15", False): 8,
    ("sd15", True): 4,
    ("sd21", False): (5, 10, 20, 20),
    ("sd21", True): (2, 4, 4, 4),
}
TEXT = {  # width, layers, heads
    ("sd15", False): (768, 12, 12),
    ("sd21", False): (1024, 23, 16),
    ("sd15", True): (48, 2, 4),
    ("sd21", True): (64, 2, 4),
}


def networks(family: str, tiny: bool) -> dict[str, ModelMixin | PreTrainedModel]:
    """The networks of a family by component, without weights."""
    width, layers, heads = TEXT[family, tiny]
    words = TINY_VOCABULARY if tiny else VOCABULARY
    with torch.device("meta"):
        return {
            "unet": UNet2DConditionModel(
                sample_size=(96 if family == "sd21" else 64) // (8 if tiny else 1),
                block_out_channels=WIDTHS[tiny],
                cross_attention_dim=width,
                attention_head_dim=HEADS[family, tiny],
                use_linear_projection=family == "sd21",
            ),
            "vae": AutoencoderKL(
                sample_size=512,
                down_block_types=["DownEncoderBlock2D"] * 4,
                up_block_types=["UpDecoderBlock2D"] * 4,
                block_out_channels=(32, 32, 32, 32) if tiny else (128, 256, 512, 512),
                layers_per_block=1 if tiny else 2,
            ),
            "text_encoder": CLIPTextModel(
                CLIPTextConfig(
                    vocab_size=words,
                    bos_token_id=words - 2,
                    eos_token_id=words - 1,
                    hidden_size=width,
                    intermediate_size=4 * width,
                    num_hidden_layers=layers,
                    num_attention_heads=heads,
                    hidden_act="gelu" if family == "sd21" else "quick_gelu",
                )
            ),
        }


def write_weights(
    network: ModelMixin | PreTrainedModel, folder: Path, seed: int, variant: str | None
) -> None:
    """Writes the configuration of a network on the meta device, and weights drawn as torch's layers do."""
    network.save_config(folder) if isinstance(network, ModelMixin) else network.config.save_pretrained(folder)
    generator = torch.Generator().manual_seed(seed)
    dtype = torch.float16 if variant == "fp16" else torch.float32
    tensors = {}
    for name, shape in ((name, tensor.shape) for name, tensor in network.state_dict().items()):
        if len(shape) == 1:  # norms start as the identity
            filled = torch.ones(shape) if name.endswith("weight") else torch.zeros(shape)
        else:
            bound = 1 / math.sqrt(math.prod(shape[1:]))
            filled = torch.empty(shape).uniform_(-bound, bound, generator=generator)
        tensors[name.replace("class_embedding.", PUBLISHED_AU_LAYER)] = filled.to(dtype)
    stem = "diffusion_pytorch_model" if isinstance(network, ModelMixin) else "model"
    file = folder / ".".join(filter(None, [stem, variant, "safetensors"]))
    save_file(tensors, file, metadata={"format": "pt"})


def write_tokenizer(folder: Path, tiny: bool) -> None:
    """Writes a CLIP tokenizer of letters: no words of several tokens are merged."""
    folder.mkdir(parents=True)
    letters = [chr(code) for code in range(33, 127)] + [chr(code) for code in range(161, 256)]
    vocabulary = {token: n for n, token in enumerate([*letters, *(f"{letter}</w>" for letter in letters)])}
    words = TINY_VOCABULARY if tiny else VOCABULARY
    vocabulary |= {"<|startoftext|>": words - 2, "<|endoftext|>": words - 1}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def write_stable_diffusion(
    folder: Path, family: str = "sd15", tiny: bool = False, variant: str | None = None, seed: int = 0
) -> None:
    """Writes the folder, which must not exist.

    family: "sd15", or "sd21" (v-prediction, linear projections, 1024-wide text). tiny: narrow networks of the
    same layout. variant: of the names of weights' files; "fp16" is also their precision.
    """
    folder.mkdir(parents=True)
    for number, (name, network) in enumerate(networks(family, tiny).items()):
        write_weights(network, folder / name, seed + number, variant)
    write_tokenizer(folder / "tokenizer", tiny)
    DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction" if family == "sd21" else "epsilon",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    ).save_pretrained(folder / "scheduler")
    parts = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "scheduler": "DDIMScheduler"}
    index = {
        "_class_name": "StableDiffusionPipeline",
        **{name: ["diffusers", kind] for name, kind in parts.items()},
    }
    index |= {
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=1) + "\n")


def write_magicface(folder: Path, tiny: bool = False, seed: int = 0) -> None:
    """Writes a checkpoint in the layout of the published MagicFace, whose configurations are those of Stable
    Diffusion 1.5. The folder must not exist."""
    folder.mkdir(parents=True)
    unet = networks("sd15", tiny)["unet"]
    for number, (name, network) in enumerate((("denoising_unet", make_denoiser(unet)), ("ID_enc", unet))):
        write_weights(network, folder / name, seed + number, variant=None)
        rewrite_json(folder / name / "config.json", **{key: unet.config[key] for key in NOT_PUBLISHED})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="to write; must not exist")
    parser.add_argument("--family", choices=["sd15", "sd21", "magicface"], default="sd15")
    parser.add_argument("--tiny", action="store_true", help="narrow networks")
    parser.add_argument("--variant", choices=["fp16"], help="files of half precision, named so")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.family == "magicface":
        if args.variant:
            parser.error("the published checkpoint has no variants")
        write_magicface(args.folder, args.tiny, args.seed)
    else:
        write_stable_diffusion(args.folder, args.family, args.tiny, args.variant, args.seed)


if __name__ == "__main__":
    main()
