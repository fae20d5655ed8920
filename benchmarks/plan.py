"""What a training at the published scale takes: hours, disk and memory, from measured costs of single items.

    python benchmarks/plan.py step                        # FLOPs of a pair, counted at full size
    python benchmarks/plan.py items --photographs FOLDER  # a photograph and a pair, measured here
    python benchmarks/plan.py                             # prints the plan of plan.json and memory.json

`step` and `items` write their rows into plan.json. The scale is that of MagicFace (Wei et al. 2025,
arXiv:2501.02260): Stable Diffusion 1.5, 512 px, 100,000 steps, with a million photographs and eight GPUs; the
batch is that of the recipe `sd15`, since none was published. How much of its peak a GPU reaches is assumed.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "plan.json"

PHOTOGRAPHS, GPUS, STEPS, BATCH = 1_000_000, 8, 100_000, 8  # batch: pairs a GPU, as in sd15.yaml
CORES = 64  # of the cluster that prepares
UTILISATION = (0.25, 0.4)  # assumed, of the published peak
PEAKS = {"A100": 312e12, "H100": 989.4e12}  # FLOP/s, see train/throughput.py
LORA = {
    "device": "RTX 4090",
    "peak": 165.2e12,
    "steps": 50_000,
    "pairs": 8,
}  # pairs a step, as in sd15-lora.yaml
LATENT_BYTES = 2 * 4 * 64 * 64 * 4  # of a photograph and its condition image, float32
FLOAT = 4  # bytes
SAMPLES = 200


def measure_step() -> dict[str, Any]:
    """FLOPs of a pair of each recipe and numbers of weights at full size, counted on the meta device."""
    import torch
    from proxy import SIZES, make_pipeline
    from speed_counts import Shapes
    from training_step import training_batch

    from magicedit.train.config import parse_config
    from magicedit.train.networks import Networks, prepare_for_training
    from magicedit.train.objectives import noise_objective
    from magicedit.train.throughput import StepFlops

    size, meta, tflop = SIZES["full"], torch.device("meta"), {}
    for recipe in ("sd15", "sd15-lora"):
        pipeline = make_pipeline(size, device=meta)
        weights = sum(p.numel() for net in (pipeline.unet, pipeline.reference_unet) for p in net.parameters())
        named = ["--pretrained_model_name_or_path=-", "--train_data_dir=-"]
        config = parse_config(["--config", recipe, *named])
        prepare_for_training(pipeline, config, denoiser_only=False)
        data = training_batch(size, pipeline.scheduler, 1, len(pipeline.action_units), meta)
        with StepFlops(config.gradient_checkpointing) as counter:
            output = Networks(pipeline, config.gradient_checkpointing)(*data.inputs)
            noise_objective(output, data.clean, data.noise, data.alphas).backward()
        tflop[recipe] = round(counter.total / 1e12, 3)
    shapes = Shapes(size, len(pipeline.action_units))
    with StepFlops() as encoding, torch.no_grad():
        pipeline.encode_images(shapes.images())
    return {
        "what": "FLOPs of a training pair at 512 px, forward and backward, without what checkpointing "
        "repeats; of encoding a picture; weights of both UNets",
        "kind": "counted",
        "tflop": tflop,
        "encoding_tflop": round(encoding.total / 1e12, 3),
        "weights": weights,
    }


def prepared(photographs: list[Path], folder: Path) -> float:
    """Prepares photographs at 512 px into `folder`; returns CPU seconds of the process and its children."""
    source = folder.with_suffix(".photographs")
    for number, photograph in enumerate(photographs):
        person = source / photograph.parent.name
        person.mkdir(parents=True, exist_ok=True)
        (person / f"{number}{photograph.suffix}").symlink_to(photograph.resolve())
    command = [
        sys.executable,
        "-m",
        "magicedit.cli",
        "prepare",
        str(source),
        "-o",
        str(folder),
        "--size",
        "512",
    ]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure_items(folder: Path) -> dict[str, Any]:
    """CPU seconds and bytes of a photograph that is prepared, and CPU seconds of a pair as `sd15` draws it.

    Of the seconds, those of starting are left out: half of the photographs are prepared alone first.
    """
    from magicedit.data.pairs import PairDataset
    from magicedit.imaging import PHOTO_SUFFIXES

    photographs = sorted(p for p in folder.rglob("*") if p.suffix.lower() in PHOTO_SUFFIXES)
    half = photographs[: len(photographs) // 2]
    with tempfile.TemporaryDirectory() as work:
        first = prepared(half, Path(work) / "half")
        seconds = prepared(photographs, Path(work) / "all") - first
        dataset = Path(work) / "all"
        size = sum(path.stat().st_size for path in dataset.rglob("*.parquet"))
        pairs = PairDataset(dataset, resolution=512, augment=False, relations=False, teeth=False, memory=1)
        pairs[0]
        started = time.process_time()
        for number in range(SAMPLES):
            pairs[number]
        drawing = time.process_time() - started
        records = len(pairs)
    return {
        "what": "of a photograph prepared at 512 px (detecting, measuring, aligning, writing): CPU seconds, "
        "and bytes of shards; of a real pair drawn from these, nothing held: CPU seconds",
        "kind": "measured",
        "photographs": len(photographs),
        "prepare_seconds": round(seconds / (len(photographs) - len(half)), 4),
        "bytes": round(size / records),
        "pair_seconds": round(drawing / SAMPLES, 4),
    }


def plan(step: dict[str, Any], items: dict[str, Any], memory: dict[str, Any]) -> dict[str, float]:
    """The totals of the scale above: seconds, bytes, pairs, cores.

    step, items: rows of plan.json. memory: rows of memory.json.
    """
    pairs = STEPS * BATCH * GPUS
    flops = pairs * step["tflop"]["sd15"] * 1e12
    weights = step["weights"] * FLOAT
    lora = LORA["steps"] * LORA["pairs"] * step["tflop"]["sd15-lora"] * 1e12
    slow, fast = UTILISATION
    found = {
        "prepare_seconds": PHOTOGRAPHS * items["prepare_seconds"] / CORES,
        "dataset_bytes": PHOTOGRAPHS * items["bytes"],
        "latent_bytes": PHOTOGRAPHS * LATENT_BYTES,
        "encoding_flops": PHOTOGRAPHS * 2 * step["encoding_tflop"] * 1e12,
        "pairs": pairs,
        "flops": flops,
        "checkpoint_bytes": 4 * weights,  # weights, their average, and two moments of AdamW
        "result_bytes": weights,
        "gpu_bytes": memory["sd15"]["reserved_mb"] * 1e6,
        "lora_bytes": memory["sd15-lora"]["reserved_mb"] * 1e6,
        "lora_slow_seconds": lora / (LORA["peak"] * slow),
        "lora_fast_seconds": lora / (LORA["peak"] * fast),
    }
    # Sharded: weights, gradients, averages and two moments; the rest stays as it is
    found["sharded_bytes"] = found["gpu_bytes"] - 5 * weights * (1 - 1 / GPUS)
    for name, peak in PEAKS.items():
        found[f"{name}_slow_seconds"] = flops / (peak * slow * GPUS)
        found[f"{name}_fast_seconds"] = flops / (peak * fast * GPUS)
        a_second = peak * fast * GPUS / (step["tflop"]["sd15"] * 1e12)
        found[f"{name}_cores"] = a_second * items["pair_seconds"]
    return found


def hours(seconds: float) -> str:
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h" if seconds < 100 * 3600 else f"{seconds / 86400:.1f} days"


def gigabytes(size: float) -> str:
    return f"{size / 1e9:,.0f} GB"


def plan_table(content: dict[str, Any], memory: dict[str, Any]) -> str:
    """The plan of written rows as a Markdown table, with the costs that it follows from."""
    step, items = content["step"], content["items"]
    total = plan(step, items, memory)
    shares = " to ".join(f"{share:.0%}" for share in UTILISATION)
    rows = [
        (
            f"prepare {PHOTOGRAPHS:,} photographs on {CORES} cores",
            hours(total["prepare_seconds"]),
            f"{1e3 * items['prepare_seconds']:.0f} ms of one core a photograph, measured",
        ),
        (
            "dataset at 512 px",
            gigabytes(total["dataset_bytes"]),
            f"{items['bytes'] / 1e3:.0f} kB a photograph",
        ),
        (
            "latents of all photographs, once for all processes",
            gigabytes(total["latent_bytes"]),
            f"{LATENT_BYTES / 1e3:.0f} kB a photograph; without them (`--no_cache_latents`) a pair costs "
            f"{3 * step['encoding_tflop']:.1f} TFLOP more",
        ),
        (
            f"{STEPS:,} steps of {GPUS} x {BATCH} pairs",
            f"{total['flops'] / 1e18:,.0f} x 10^18 FLOP",
            f"{step['tflop']['sd15']:.2f} TFLOP a pair, counted; {total['pairs'] / 1e6:.1f} million pairs",
        ),
        *(
            (
                f"training on {GPUS} {name}",
                f"{hours(total[f'{name}_fast_seconds'])} to {hours(total[f'{name}_slow_seconds'])}",
                f"assumed: {shares} of {peak / 1e12:.0f} TFLOP/s",
            )
            for name, peak in PEAKS.items()
        ),
        (
            f"cores that feed {GPUS} H100 without cached latents",
            f"{total['H100_cores']:.0f}",
            f"{1e3 * items['pair_seconds']:.0f} ms of one core a pair, measured",
        ),
        (
            "memory of a GPU, all weights on each (`ddp`)",
            gigabytes(total["gpu_bytes"]),
            f"batch {BATCH}, bf16, gradient checkpointing: counted",
        ),
        (
            f"memory of a GPU, split over {GPUS} (`fsdp2`)",
            gigabytes(total["sharded_bytes"]),
            "the same less seven eighths of weights, gradients, average and AdamW's state",
        ),
        (
            "a checkpoint; three are kept at most",
            gigabytes(total["checkpoint_bytes"]),
            f"{step['weights'] / 1e9:.2f} x 10^9 weights, their average, AdamW's state",
        ),
        (
            f"`sd15-lora` on one {LORA['device']}: {LORA['steps']:,} steps of {LORA['pairs']} pairs",
            f"{hours(total['lora_fast_seconds'])} to {hours(total['lora_slow_seconds'])}",
            f"{step['tflop']['sd15-lora']:.2f} TFLOP a pair; {gigabytes(total['lora_bytes'])}, counted",
        ),
    ]
    lines = ["| | takes | because |", "|---|---:|---|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "row", nargs="?", choices=["step", "items"], help="what to measure; none: print the plan"
    )
    parser.add_argument("--photographs", type=Path, help="items: photographs to prepare, some dozen")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    content = json.loads(args.output.read_text()) if args.output.is_file() else {}
    if args.row is None:
        print(plan_table(content, json.loads((HERE / "memory.json").read_text())))
        return 0
    if args.row == "items" and args.photographs is None:
        parser.error("items needs --photographs")
    from machine import circumstances

    found = measure_step() if args.row == "step" else measure_items(args.photographs)
    content[args.row] = found | circumstances()
    args.output.write_text(json.dumps(content, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
