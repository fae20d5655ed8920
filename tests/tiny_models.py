"""Real classes at tiny width, with random weights, for tests."""

import json
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from warm import run_warm

from magicedit.cli import main
from magicedit.models import PatchModelConfig, create_patch_pipeline, from_stable_diffusion
from magicedit.pipelines.pipeline_magicedit import MagicEditPipeline

TINY_PATCH = PatchModelConfig(
    resolution=32, block_out_channels=(16, 32), attention_heads=2, cross_attention_dim=16, norm_num_groups=8
)

_WITHOUT_PACKAGE = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "magicedit":
            raise ImportError("magicedit is blocked in this process")

sys.meta_path.insert(0, Blocked())
"""


def tiny_patch_pipeline(seed: int = 0, **changes) -> MagicEditPipeline:
    """A flow-mask-paint (or noise) model at 32 px whose output responds to every input."""
    pipeline = create_patch_pipeline(PatchModelConfig(**{**TINY_PATCH.__dict__, **changes}), seed=seed)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


# One level with attention in place of three, and a layer in place of two: 4 transformer blocks
SHALLOW = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
}


def tiny_unet(
    seed: int = 0, in_channels: int = 4, cross_attention_dim: int = 32, **layout
) -> UNet2DConditionModel:
    """A Stable Diffusion UNet, without `layout` of the published blocks (16 transformer blocks)."""
    torch.manual_seed(seed)
    layout = {"block_out_channels": (16, 32, 32, 32)} | layout
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=in_channels,
        **layout,
        attention_head_dim=4,
        cross_attention_dim=cross_attention_dim,
        norm_num_groups=8,
    )


def tiny_stable_diffusion(folder: Path, seed: int = 0, **layout) -> Path:
    """Writes a folder laid out as Stable Diffusion 1.5: unet, vae, text_encoder, tokenizer, scheduler."""
    tiny_unet(seed, **layout).save_pretrained(folder / "unet")
    torch.manual_seed(seed + 1)
    AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=(8, 8, 8, 8),
        norm_num_groups=4,
        layers_per_block=1,
    ).save_pretrained(folder / "vae")
    words = ["a", "close", "up", "of", "person", "."]
    vocabulary = {f"{w}</w>": i for i, w in enumerate(words)}
    vocabulary |= {c: len(vocabulary) + i for i, c in enumerate("acersuolpfn.")}
    for token in ("<|startoftext|>", "<|endoftext|>"):
        vocabulary[token] = len(vocabulary)
    tokenizer_folder = folder / "tokenizer"
    tokenizer_folder.mkdir(parents=True)
    (tokenizer_folder / "vocab.json").write_text(json.dumps(vocabulary))
    (tokenizer_folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer.from_pretrained(tokenizer_folder, model_max_length=77)
    tokenizer.save_pretrained(tokenizer_folder)
    CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=37,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=77,
            bos_token_id=vocabulary["<|startoftext|>"],
            eos_token_id=vocabulary["<|endoftext|>"],
        )
    ).save_pretrained(folder / "text_encoder")
    DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    ).save_pretrained(folder / "scheduler")
    return folder


def tiny_stable_diffusion_pipeline(folder: Path, **layout) -> MagicEditPipeline:
    """Stable Diffusion layout: VAE, text encoder, tokenizer and all, written to `folder` first; 64 px."""
    tiny_stable_diffusion(folder, **layout)
    unet, reference_unet = from_stable_diffusion(folder)
    randomise_new_layers(unet)
    pipeline = MagicEditPipeline(
        unet=unet,
        reference_unet=reference_unet,
        scheduler=DDIMScheduler.from_pretrained(folder, subfolder="scheduler"),
        vae=AutoencoderKL.from_pretrained(folder, subfolder="vae"),
        text_encoder=CLIPTextModel.from_pretrained(folder, subfolder="text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer"),
        resolution=64,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def randomise_new_layers(unet: UNet2DConditionModel, seed: int = 7) -> None:
    """Gives the layers that start at zero (condition input, AU layer) weights, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        unet.conv_in.weight[:, 4:] = 0.1 * torch.randn(unet.conv_in.weight[:, 4:].shape, generator=generator)
        unet.class_embedding.weight.copy_(torch.randn(unet.class_embedding.weight.shape, generator=generator))


def random_crop(size: int, seed: int = 0) -> Image.Image:
    """A smooth random picture: low-frequency noise."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((size, size), Image.Resampling.BICUBIC)


def run_without_package(script: str, *arguments: Path, work: Path) -> None:
    """Runs Python code in a process of its own, offline, as on a machine with diffusers but not this package.

    `work` is its folder, where its caches go too. CalledProcessError where it fails.
    """
    environment = {"PATH": "/usr/bin:/bin", "HF_HOME": str(work / "cache"), "HF_HUB_OFFLINE": "1"}
    done = run_warm(["-c", _WITHOUT_PACKAGE + textwrap.dedent(script), *arguments], environment, work)
    print(done.stdout + done.stderr)
    done.check_returncode()


def evaluated(editor: str, photo: np.ndarray, folder: Path) -> list[dict]:
    """Rows of `magicedit evaluate` for an editor, NAME=MODEL: AU12 by -2 and +2 on one photograph."""
    (folder / "people" / "ann").mkdir(parents=True)
    Image.fromarray(photo).save(folder / "people" / "ann" / "one.png")
    protocol = folder / "smiles.yaml"
    protocol.write_text(
        "{name: smiles, version: 1, title: Smiles, description: Two, identities: 1, "
        "action_units: [AU12], levels: {values: [-2, 2]}}"
    )
    command = ["evaluate", "--editor", editor, "--protocol", str(protocol)]
    assert main([*command, "--data", str(folder / "people"), "-o", str(folder / "report")]) == 0
    return [json.loads(line) for line in (folder / "report" / "rows.jsonl").read_text().splitlines()]


def edited_film(photo: np.ndarray, folder: Path, *asked: str, frames: int = 4) -> Path:
    """The film that `magicedit video` makes of a still one; the test is skipped where no film can be made."""
    pytest.importorskip("av")
    from magicedit.video import save_film

    film, edited = folder / "film.mp4", folder / "edited.mp4"
    save_film([Image.fromarray(photo)] * frames, film, 0.1)
    assert main(["video", str(film), "-o", str(edited), *asked]) == 0
    return edited


def train_for(steps: int, run) -> None:
    """Trains a `Run` for some steps, and stops it in the next one as if it were killed."""
    left = iter(range(steps))
    stop = type("Stopped", (Exception,), {})

    def interrupted(batches, train_step=run._train_step):
        if next(left, None) is None:
            raise stop
        return train_step(batches)

    run._train_step = interrupted
    with pytest.raises(stop):
        run.train()
