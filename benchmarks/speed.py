"""How fast it is, against a re-implementation of what the published system computes (`naive.py`).

    python benchmarks/speed.py count                 # FLOPs, simulated GPU times, counted memory
    python benchmarks/speed.py step edit train       # measured ratios, CPU proxy of the full-size model
    python benchmarks/speed.py utilisation           # of the peak, by a training step of the proxy
    python benchmarks/speed.py mini                  # the embedded model on this machine, by quality
    python benchmarks/speed.py step train --size full --device cuda --dtype bfloat16 --batch 8

Each row is merged into speed.json with hardware, versions, date and command. Times are compared in one
process, interleaved (`pairs.py`); a run whose control does not come out at 1 is discarded: nothing is written
and the exit status is 3. What needs a GPU that is not there is simulated from counted FLOPs and bytes
(`counting.py`) and says so. Networks have random weights where only time matters (`proxy.py`).
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from counting import flops
from machine import circumstances, merge
from naive import NaiveSystem
from pairs import CLOCKS, DiscardedRun, compare, interleave, synchronise, timed
from proxy import SIZES, distilled, make_pipeline, random_au_deltas, random_faces
from speed_counts import COUNTS, DISTILLED_STEPS, TRAINING_TARGETS, branch_flops, tera
from training_step import optimiser_step, training_batch, training_losses

from magicedit.action_units import NAMES
from magicedit.pipelines.pipeline_magicedit import MAGICFACE_ACTION_UNITS, MagicEditPipeline
from magicedit.train.throughput import PRODUCT, StepFlops

NAIVE_STEPS = 50  # of the published system
TOLERANCE = 1e-5  # relative, float32: what counts as the same numbers
GUIDANCE = 3.0
DISCARDED = 3  # exit status
TIMED_STEPS = 4  # of a step row's calls; the first, which projects the reference, is not timed
DISTILLED = "distilled-"
EDIT_SETTINGS = ("distilled-balanced", "balanced")  # the first, a short one, is its own control
SWEEP_SETTINGS = ("fast", "distilled-fast")

# What the issue asks for: (unit, must reach, goal)
TARGETS = {
    "step": ("times faster", 1.2, 1.35),
    "step on a GPU": ("times faster", 1.4, 2.0),
    "edit": ("times faster", 6.0, 12.0),
    "sweep": ("times faster", 15.0, 30.0),
    "train": TRAINING_TARGETS,
    "utilisation": ("of the peak", None, None),
    "mini": ("seconds", 0.5, {"live": 0.15}),
}


@dataclass(frozen=True)
class Setup:
    """What a row is measured with. settings: see `chosen`, in place of the row's own. variants: AU vectors of
    a sweep; at_once: of them in one call. clock: of `pairs.CLOCKS`."""

    size: str = "proxy"
    device: str = "cpu"
    dtype: str = "float32"
    batch: int = 1
    passes: int = 16
    settings: tuple[str, ...] = ()
    variants: int = 25
    at_once: int = 5
    naive_steps: int = NAIVE_STEPS
    clock: str = "wall"

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    def key(self, row: str) -> str:
        """The row's name, with what differs from the standard set-up."""
        usual = Setup()
        differing = [
            getattr(self, n) for n in ("size", "device", "dtype") if getattr(self, n) != getattr(usual, n)
        ]
        if self.batch != usual.batch:
            differing.append(f"batch{self.batch}")
        return "-".join([row, *differing, *self.settings])


# --- Where the fast path is called --------------------------------------------------------------------------


def chosen(pipeline: MagicEditPipeline, setting: str) -> tuple[MagicEditPipeline, dict[str, object]]:
    """The pipeline and the arguments of a call by a setting: a quality, a number of exact steps, or a quality
    of the distilled model ("distilled-live")."""
    if setting.isdigit():
        steps = {"quality": "exact", "num_inference_steps": int(setting), "guidance_scale": GUIDANCE}
        return pipeline, steps
    if setting.startswith(DISTILLED):
        return distilled(pipeline, DISTILLED_STEPS), {"quality": setting.removeprefix(DISTILLED)}
    return pipeline, {"quality": setting}


def edit_face(pipeline: MagicEditPipeline, image, condition, au_delta, setting: str, **more) -> torch.Tensor:
    """One call of the fast path from pictures to pictures (or latents); one face, or one a row."""
    pipeline, arguments = chosen(pipeline, setting)
    arguments |= {"output_type": "pt", "generator": torch.Generator().manual_seed(1), **more}
    return pipeline(image, condition, au_delta, **arguments).images


def sweep_face(
    pipeline: MagicEditPipeline, image, condition, au_deltas, setting: str, at_once: int
) -> list[torch.Tensor]:
    """Many edits of one face from one encoding of it, `at_once` in a call."""
    faces = pipeline.encode_faces(image, condition)
    return [edit_face(pipeline, None, None, part, setting, faces=faces) for part in au_deltas.split(at_once)]


# --- Measured rows ------------------------------------------------------------------------------------------


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def measured(
    row: str, what: str, arms: dict, setup: Setup, baseline: str, repeated: str | None = None, **more
) -> dict[str, object]:
    """Runs the arms and describes what came out.

    Raises:
        DiscardedRun: where the control does not come out at 1.
    """
    seconds = interleave(arms, setup.passes, repeated=repeated or baseline, note=note)
    target = TARGETS["step on a GPU" if row == "step" and setup.device == "cuda" else row]
    return {
        "kind": "measured",
        "what": what,
        **dict(zip(("unit", "must_reach", "goal"), target, strict=True)),
        **compare(seconds, baseline, repeated),
        **more,
    }


def about(setup: Setup) -> dict[str, object]:
    return {
        "size": setup.size,
        "device": torch.cuda.get_device_name() if setup.device == "cuda" else setup.device,
        "dtype": setup.dtype,
        "batch": setup.batch,
        "resolution": SIZES[setup.size].resolution,
        "weights": "random",
        "clock": setup.clock,
    }


def prepare(setup: Setup, action_units: str = MAGICFACE_ACTION_UNITS, faces: int = 1):
    pipeline = make_pipeline(
        SIZES[setup.size], device=setup.device, dtype=setup.torch_dtype, action_units=action_units
    )
    return pipeline, NaiveSystem(pipeline), *random_faces(SIZES[setup.size], faces, device=setup.device)


def relative_difference(result: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference over largest magnitude."""
    return float((result.float() - expected.float()).abs().max() / expected.float().abs().max())


def step_row(setup: Setup) -> dict[str, object]:
    """One guided denoising step, within a call: from the end of a step to the end of the next."""
    pipeline, naive, image, condition = prepare(setup, faces=setup.batch)
    au_deltas = random_au_deltas(setup.batch, pipeline)
    ends: list[float] = []

    def tick() -> None:
        synchronise(setup.device)
        ends.append(CLOCKS[setup.clock]())

    def ticking(pipeline, step, timestep, tensors):
        tick()
        return tensors

    def run_naive(callback=None):
        generator = torch.Generator().manual_seed(1)
        return naive(
            image,
            condition,
            au_deltas,
            TIMED_STEPS,
            GUIDANCE,
            generator=generator,
            output_type="latent",
            callback=callback,
        )

    def run_exact(callback=None):
        return edit_face(
            pipeline,
            image,
            condition,
            au_deltas,
            str(TIMED_STEPS),
            output_type="latent",
            callback_on_step_end=callback,
        )

    def arm(run, callback):
        def seconds_of_a_step() -> float:
            ends.clear()
            run(callback)
            return (ends[-1] - ends[0]) / (TIMED_STEPS - 1)

        return seconds_of_a_step

    difference = relative_difference(run_exact(), run_naive())
    if setup.dtype == "float32" and not difference <= TOLERANCE:
        raise SystemExit(f"exact and naive must agree within {TOLERANCE} (relative), got {difference:.2e}")
    return measured(
        "step",
        "one guided denoising step, exact against naive",
        {"naive": arm(run_naive, lambda step: tick()), "exact": arm(run_exact, ticking)},
        setup,
        "naive",
        relative_difference=float(f"{difference:.3g}"),
        **about(setup),
    )


def edit_row(setup: Setup) -> dict[str, object]:
    """Whole edits of one face, pictures to picture, and each of many edits of one face ("sweep ...")."""
    pipeline, naive, image, condition = prepare(setup, ",".join(NAMES))
    au_deltas = random_au_deltas(setup.variants, pipeline)
    settings = setup.settings or EDIT_SETTINGS
    sweeps = () if setup.settings else SWEEP_SETTINGS

    def run_naive():
        return naive(
            image,
            condition,
            au_deltas[:1],
            setup.naive_steps,
            GUIDANCE,
            generator=torch.Generator().manual_seed(1),
        )

    def run_fast(setting):
        return lambda: edit_face(pipeline, image, condition, au_deltas[:1], setting)

    def run_sweep(setting):
        return lambda: sweep_face(pipeline, image, condition, au_deltas, setting, setup.at_once)

    calls = {"naive": run_naive} | {setting: run_fast(setting) for setting in settings}
    arms = {name: timed(call, setup.device, clock=setup.clock) for name, call in calls.items()}
    arms |= {
        f"sweep {setting}": timed(run_sweep(setting), setup.device, setup.variants, setup.clock)
        for setting in sweeps
    }
    counted = {name: flops(call) for name, call in calls.items()}
    missing = (
        2 * (NAIVE_STEPS - setup.naive_steps) * branch_flops(SIZES[setup.size], ",".join(NAMES))["naive"]
    )
    return measured(
        "edit",
        f"a whole edit by quality, against naive in {setup.naive_steps} steps; `distilled-`: of a model "
        f"distilled to {DISTILLED_STEPS} steps; `sweep`: each of {setup.variants} AUs of one face. Ratios to "
        f"{NAIVE_STEPS} naive steps are these times `to_published_steps`, a ratio of counted FLOPs",
        arms,
        setup,
        "naive",
        settings[0],
        targets={"sweep": dict(zip(("must_reach", "goal"), TARGETS["sweep"][1:], strict=True))},
        variants=setup.variants,
        at_once=setup.at_once,
        naive_steps=setup.naive_steps,
        to_published_steps=round(1 + missing / counted["naive"], 4),
        tflop={name: tera(count) for name, count in counted.items()},
        **about(setup),
    )


def train_row(setup: Setup) -> dict[str, object]:
    """One optimiser step of both UNets from cached latents: forward, backward, clipping, AdamW."""
    pipeline = make_pipeline(SIZES[setup.size], device=setup.device)
    batch = training_batch(
        SIZES[setup.size],
        pipeline.scheduler,
        setup.batch,
        len(pipeline.action_units),
        torch.device(setup.device),
    )
    losses = training_losses(pipeline, batch, setup.torch_dtype)
    with torch.no_grad():
        naive, exact = (float(losses[name][0]()) for name in ("naive", "exact"))
    if setup.dtype == "float32" and not abs(naive - exact) <= TOLERANCE * naive:
        raise SystemExit(f"naive and exact must have the same loss, got {naive} and {exact}")

    arms = {
        name: timed(optimiser_step(*parts), setup.device, clock=setup.clock) for name, parts in losses.items()
    }
    return measured(
        "train",
        "one optimiser step of both UNets with cached latents; `cached`: of the denoiser, with the features "
        "of a frozen reference",
        arms,
        setup,
        "naive",
        optimizer="AdamW, fused",
        **about(setup),
    )


def utilisation_row(setup: Setup) -> dict[str, object]:
    """Model FLOP utilisation of an optimiser step of both UNets, as the training log's `mfu` counts it: the
    FLOP/s of the step's products over those of a product of two matrices, timed in turn."""
    device = torch.device(setup.device)
    pipeline = make_pipeline(SIZES[setup.size], device=setup.device)
    batch = training_batch(
        SIZES[setup.size], pipeline.scheduler, setup.batch, len(pipeline.action_units), device
    )
    step = optimiser_step(*training_losses(pipeline, batch, setup.torch_dtype)["exact"])
    with StepFlops() as counter:
        step()
    matrix = torch.ones(PRODUCT, PRODUCT, device=device, dtype=setup.torch_dtype)
    products = max(1, round(counter.total / (2 * PRODUCT**3)))  # as many FLOPs as the step

    def multiply() -> None:
        for _ in range(products):
            matrix @ matrix

    arms = {"product": multiply, "step": step}
    found = measured(
        "utilisation",
        f"products of two matrices of {PRODUCT} rows and a training step of as many FLOPs; the ratio times "
        "`share` is the step's model FLOP utilisation",
        {name: timed(call, setup.device, clock=setup.clock) for name, call in arms.items()},
        setup,
        "product",
        share=round(counter.total / (products * 2 * PRODUCT**3), 4),
        **about(setup),
    )
    utilisation = found["share"] * found["ratios"]["step"]["median"]
    images = setup.batch / found["seconds"]["step"]["median"]
    return found | {"mfu": round(utilisation, 3), "images_per_second": round(images, 3)}


def mini_row(setup: Setup) -> dict[str, object]:
    """The next edit of a face that the editor has seen, by quality, nothing measured in the result."""
    import numpy as np
    from edit_speed import EDIT, photograph

    from magicedit.editor import ExpressionEditor

    editor = ExpressionEditor.from_pretrained("mini", device="cpu")
    pixels = np.asarray(photograph())
    settings = setup.settings or ("exact", "balanced", "fast", "live")
    seeds = iter(range(1_000_000))

    def run(setting):
        arguments = {"steps": int(setting)} if setting.isdigit() else {"quality": setting}
        return lambda: editor.edit(pixels, add=EDIT, seed=next(seeds), measure=False, **arguments)

    return measured(
        "mini",
        "the next edit of a known face in a 1024 px photograph with mini; no scoring of the result",
        {setting: timed(run(setting), clock=setup.clock) for setting in settings},
        setup,
        settings[0],
        settings=list(settings),
    )


ROWS = {
    "step": step_row,
    "edit": edit_row,
    "train": train_row,
    "utilisation": utilisation_row,
    "mini": mini_row,
}


def main() -> None:
    usual = Setup()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="+", choices=["count", *ROWS])
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--size", choices=list(SIZES), default=usual.size)
    parser.add_argument("--device", choices=["cpu", "cuda"], default=usual.device)
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default=usual.dtype)
    parser.add_argument("--batch", type=int, default=usual.batch)
    parser.add_argument("--passes", type=int, default=usual.passes)
    parser.add_argument(
        "--settings", nargs="+", default=(), help="qualities, or numbers of exact steps, to time instead"
    )
    parser.add_argument("--variants", type=int, default=usual.variants, help="AU vectors of a sweep")
    parser.add_argument("--at-once", type=int, default=usual.at_once, help="of them in one call")
    parser.add_argument(
        "--clock",
        choices=list(CLOCKS),
        default=usual.clock,
        help="cpu: CPU time, on a machine that is not quiet; for one thread (OMP_NUM_THREADS=1)",
    )
    parser.add_argument("--naive-steps", type=int, default=usual.naive_steps)
    args = parser.parse_args()
    setup = Setup(
        size=args.size,
        device=args.device,
        dtype=args.dtype,
        batch=args.batch,
        passes=args.passes,
        settings=tuple(args.settings),
        variants=args.variants,
        at_once=args.at_once,
        naive_steps=args.naive_steps,
        clock=args.clock,
    )
    if setup.clock == "cpu" and (setup.device != "cpu" or torch.get_num_threads() != 1):
        raise SystemExit("--clock cpu is for one thread on a CPU: set OMP_NUM_THREADS=1")
    discarded = []
    for name in args.rows:
        if name == "count":
            found = {key: count() for key, count in COUNTS.items()}
        else:
            try:
                found = {setup.key(name): ROWS[name](setup)}
            except DiscardedRun as error:
                note(f"{name}: {error}")
                discarded.append(name)
                continue
        for key, row in found.items():
            row = {**row, "threads": torch.get_num_threads(), **circumstances()}
            merge(args.output, key, row)
            print(json.dumps({key: row}, indent=1))
    if discarded:
        sys.exit(DISCARDED)


if __name__ == "__main__":
    main()
