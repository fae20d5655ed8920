"""The published system's own code as the yardstick: its classes against ours, with the same random weights.

    git clone https://github.com/weimengting/MagicFace
    OMP_NUM_THREADS=1 python benchmarks/yardstick.py --published MagicFace              # every row
    OMP_NUM_THREADS=1 python benchmarks/yardstick.py --published MagicFace --only edit

The checkout is MagicFace's (Wei et al. 2025, arXiv:2501.02260), which is not part of this package. Its UNets
and pipeline run unchanged on this diffusers; only a module that diffusers has moved gets its former name.
Both sides share their parameters. They run in turn on one thread, in CPU seconds, with a control
(`pairs.py`). A row whose control does not come out at 1 is not written, and the exit status is 3. The row at
full size takes 9 GB of memory.
"""

import argparse
import importlib
import json
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from machine import circumstances, merge
from pairs import DiscardedRun, compare, interleave, timed
from proxy import SIZES, make_pipeline, random_au_deltas, random_faces

from magicedit.models import encode_reference, predict_noise, project_reference
from magicedit.pipelines.pipeline_magicedit import MagicEditPipeline

GUIDANCE = 3.0
TOLERANCE = 5e-6  # largest difference relative to the largest value, float32
STEPS, PUBLISHED_STEPS = 10, 50
UNITS = 5  # of a sweep
DISCARDED = 3  # exit status


def published_pipeline(checkout: Path, ours: MagicEditPipeline) -> Any:
    """The published pipeline, as its code in `checkout` builds it, on the parameters of ours."""
    sys.modules["diffusers.models.dual_transformer_2d"] = importlib.import_module(
        "diffusers.models.transformers.dual_transformer_2d"
    )
    warnings.filterwarnings("ignore", category=FutureWarning)  # of arguments that diffusers has dropped since
    sys.path.insert(0, str(checkout))
    package = "mgface.pipelines_mgface"
    denoiser_class = importlib.import_module(f"{package}.unet_deno_2d_condition").UNetDeno2DConditionModel
    encoder_class = importlib.import_module(f"{package}.unet_ID_2d_condition").UNetID2DConditionModel
    pipeline_class = importlib.import_module(f"{package}.pipeline_mgface").MgPipeline
    config = {name: value for name, value in ours.reference_unet.config.items() if not name.startswith("_")}
    with torch.device("meta"):
        denoiser, encoder = denoiser_class.from_config(config), encoder_class.from_config(config)
    # As loading its checkpoint does, which has layers of other sizes than the code
    denoiser.conv_in, denoiser.au_aug_mlp = ours.unet.conv_in, ours.unet.class_embedding
    named = {key.replace("class_embedding.", "au_aug_mlp."): x for key, x in ours.unet.state_dict().items()}
    denoiser.load_state_dict(named, assign=True)
    encoder.load_state_dict(ours.reference_unet.state_dict(), assign=True)
    pipeline = pipeline_class(
        vae=ours.vae,
        text_encoder=ours.text_encoder,
        tokenizer=ours.tokenizer,
        unet_ID=encoder.eval().requires_grad_(False),
        unet_deno=denoiser.eval().requires_grad_(False),
        scheduler=ours.scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def noise() -> torch.Generator:
    return torch.Generator().manual_seed(1)


# --- What is timed: each makes two calls with the same result, the published one and ours -------------------

Calls = dict[str, Callable[[], torch.Tensor]]


@torch.no_grad()
def step_calls(published: Any, ours: MagicEditPipeline, resolution: int) -> Calls:
    """A guided step of the denoiser: both branches and their combination. The reference is there already."""
    identity, condition, latents = torch.randn(3, 1, 4, resolution // 8, resolution // 8, generator=noise())
    au_delta = random_au_deltas(1, ours)
    text = ours.encode_prompt()
    timestep = torch.tensor(601)
    _, states = published.unet_ID(
        torch.cat([identity] * 2), 0, encoder_hidden_states=text.expand(2, -1, -1), return_dict=False
    )
    reference = project_reference(ours.unet, encode_reference(ours.reference_unet, identity, text))
    both = {"noisy": torch.cat([latents] * 2), "condition": torch.cat([condition] * 2)}

    @torch.no_grad()
    def theirs() -> torch.Tensor:
        au = torch.cat([au_delta, torch.zeros_like(au_delta)])
        arguments = {"encoder_hidden_states": text.expand(2, -1, -1), "return_dict": False}
        (output,) = published.unet_deno(*both.values(), au, states.copy(), timestep, **arguments)
        conditioned, without = output.chunk(2)
        return without + GUIDANCE * (conditioned - without)

    @torch.no_grad()
    def own() -> torch.Tensor:
        au = torch.cat([torch.zeros_like(au_delta), au_delta])
        output = predict_noise(ours.unet, *both.values(), timestep, text, au, reference)
        without, conditioned = output.chunk(2)
        return without + GUIDANCE * (conditioned - without)

    return {"published": theirs, "ours": own}


def edit_with_published(published: Any, ours: MagicEditPipeline, faces, au_delta, steps: int) -> torch.Tensor:
    image, condition = faces
    return published(
        prompt_embeds=ours.encode_prompt(),
        source=image,
        bg=condition,
        au=au_delta,
        num_inference_steps=steps,
        image_guidance_scale=GUIDANCE,
        generator=noise(),
        output_type="pt",
    ).images


def edit_calls(published: Any, ours: MagicEditPipeline, resolution: int) -> Calls:
    """An edit of ten steps, pictures to picture."""
    faces, au_delta = random_faces(SIZES["proxy"]), random_au_deltas(1, ours)
    own = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "quality": "exact", "output_type": "pt"}
    return {
        "published": partial(edit_with_published, published, ours, faces, au_delta, STEPS),
        "ours": lambda: ours(*faces, au_delta, generator=noise(), **own).images,
    }


def sweep_calls(published: Any, ours: MagicEditPipeline, resolution: int) -> Calls:
    """Edits of one face by five units, ten steps each."""
    faces, au_deltas = random_faces(SIZES["proxy"]), random_au_deltas(UNITS, ours)
    own = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "quality": "exact", "output_type": "pt"}

    def theirs() -> torch.Tensor:
        rows = au_deltas.split(1)
        return torch.cat([edit_with_published(published, ours, faces, row, STEPS) for row in rows])

    def sweep() -> torch.Tensor:
        generators = [noise() for _ in range(UNITS)]
        return ours(faces=ours.encode_faces(*faces), au_delta=au_deltas, generator=generators, **own).images

    return {"published": theirs, "ours": sweep}


def quality_calls(published: Any, ours: MagicEditPipeline, resolution: int) -> Calls:
    """An edit as published, in fifty steps, against the qualities, whose results differ."""
    faces, au_delta = random_faces(SIZES["proxy"]), random_au_deltas(1, ours)

    def own(quality: str) -> Callable[[], torch.Tensor]:
        return lambda: ours(*faces, au_delta, quality=quality, generator=noise(), output_type="pt").images

    theirs = partial(edit_with_published, published, ours, faces, au_delta, PUBLISHED_STEPS)
    return {"published": theirs} | {quality: own(quality) for quality in ("balanced", "fast")}


@dataclass(frozen=True)
class Row:
    """size: of `proxy.SIZES`. repeated: the arm that is its own control; default: the published one."""

    size: str
    calls: Callable[[Any, MagicEditPipeline, int], Calls]
    passes: int
    repeated: str = "published"


ROWS = {
    "step at full size": Row("full", step_calls, 4),
    "step": Row("proxy", step_calls, 16),
    "edit": Row("proxy", edit_calls, 6),
    "sweep": Row("proxy", sweep_calls, 4, "ours"),
    "qualities": Row("proxy", quality_calls, 4, "balanced"),
}


def measure(row: Row, published: Any, ours: MagicEditPipeline) -> dict[str, object]:
    """Raises SystemExit where the numbers differ, and `DiscardedRun` where the control is not at 1."""
    resolution = SIZES[row.size].resolution
    calls = row.calls(published, ours, resolution)
    found: dict[str, object] = {"what": row.calls.__doc__, "size": row.size, "resolution": resolution}
    if "ours" in calls:
        expected, output = calls["published"](), calls["ours"]()
        difference = float((output - expected).abs().max() / expected.abs().max())
        if not difference <= TOLERANCE:
            raise SystemExit(f"both must agree within {TOLERANCE} (relative), got {difference:.2e}")
        found["relative_difference"] = float(f"{difference:.2g}")
    seconds = interleave(
        {name: timed(call, clock="cpu") for name, call in calls.items()},
        row.passes,
        repeated=row.repeated,
        warmup=0 if "ours" in calls else 1,
        fewest=4,
        note=lambda text: print(text, file=sys.stderr, flush=True),
    )
    return found | compare(seconds, "published", row.repeated)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--published", type=Path, required=True, metavar="CHECKOUT", help="of weimengting/MagicFace"
    )
    parser.add_argument("--only", nargs="+", choices=list(ROWS), default=list(ROWS), help="of the rows")
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    if not (args.published / "mgface" / "pipelines_mgface").is_dir():
        parser.error(f"{args.published} must be a checkout of MagicFace, with mgface/pipelines_mgface")
    if torch.get_num_threads() != 1:
        parser.error("CPU time is compared on one thread: set OMP_NUM_THREADS=1")
    discarded = []
    for size in dict.fromkeys(ROWS[name].size for name in args.only):
        ours = make_pipeline(SIZES[size])
        published = published_pipeline(args.published.resolve(), ours)
        for name in (name for name in args.only if ROWS[name].size == size):
            try:
                row = {**measure(ROWS[name], published, ours), **circumstances()}
            except DiscardedRun as error:
                print(f"{name}: {error}", file=sys.stderr)
                discarded.append(name)
                continue
            merge(args.output, name, row)
            print(json.dumps({name: {key: r["median"] for key, r in row["ratios"].items()}}), flush=True)
    if discarded:
        sys.exit(DISCARDED)


if __name__ == "__main__":
    main()
