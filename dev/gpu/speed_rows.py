"""Measures rows of one group on the GPU, and writes each into speed.json at once; see `run.py`.

    python dev/gpu/speed_rows.py edits|training|graphs|compiled --output DIR --seconds N [--dry-run]

Models have Stable Diffusion 1.5's size and random weights, 512 px, bfloat16. A row has the median seconds of
its calls, images a second, the most memory allocated, and the utilisation: counted FLOPs over seconds and the
peak of the device. A row that cannot be measured has the reason under "failed". The rows most wanted come
first; one that would end after the time given is left out.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import torch
from counting import flops
from naive import NaiveSystem
from proxy import SIZES, ModelSize, distilled, make_pipeline, random_au_deltas, random_faces
from run import write_json
from training_step import optimiser_step, training_batch, training_losses

from magicedit.action_units import NAMES
from magicedit.models.optimize import short
from magicedit.pipelines.pipeline_magicedit import MagicEditPipeline
from magicedit.pipelines.reference_attention import encode_reference, predict_noise, project_reference
from magicedit.train.config import parse_config
from magicedit.train.networks import Networks, prepare_for_training
from magicedit.train.objectives import noise_objective
from magicedit.train.throughput import peak_flops

GUIDANCE = 3.0
LORA_BATCHES = (2, 8)
ENOUGH_SECONDS = 4.0  # of one row's repeats

Step = Callable[[], object]


class NoTimeLeftError(Exception):
    """A row does not fit into the time given."""


@dataclass(frozen=True)
class Bench:
    """Where and what is measured. until: by `time.monotonic`. variants: AU vectors of a
    sweep. repeats: timed calls of a row, where they are short. backend: of `torch.compile`."""

    size: ModelSize
    device: torch.device
    dtype: torch.dtype
    results: Path
    until: float
    steps: tuple[int, ...]
    batches: tuple[int, int]
    variants: int
    repeats: int
    backend: str
    failed: list[str] = field(default_factory=list)

    @cached_property
    def peak(self) -> float:
        return peak_flops(self.device, self.dtype)

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def pipeline(self, **more) -> MagicEditPipeline:
        return make_pipeline(self.size, device=self.device, **{"dtype": self.dtype, **more})

    def synchronize(self) -> None:
        torch.get_device_module(self.device).synchronize()

    def row(self, name: str, call: Step, images: int, work: int | None = None, **about) -> None:
        """Measures a call and writes its row. work: its FLOPs, counted where None."""
        known = json.loads(self.results.read_text()) if self.results.is_file() else {}
        if "seconds" in known.get(name, {}):
            return
        try:
            found = self._measured(call, images, work)
        except RuntimeError as error:
            found = self._failure(name, error)
        self._write(name, {**about, **found})

    def attempt(self, name: str, part: Callable[..., None], *arguments) -> None:
        """Calls what prepares and measures rows; a failure is recorded under `name`."""
        try:
            part(self, *arguments)
        except RuntimeError as error:
            self._write(name, self._failure(name, error))

    def _failure(self, name: str, error: RuntimeError) -> dict[str, object]:
        """Notes a failure of CUDA, its memory or the compiler, after which other rows may work."""
        if not isinstance(error, torch.OutOfMemoryError):
            self.failed.append(name)
        return {"failed": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"}

    def _write(self, name: str, row: dict[str, object]) -> None:
        known = json.loads(self.results.read_text()) if self.results.is_file() else {}
        write_json(self.results, known | {name: row | self._circumstances()})
        print(name, row, flush=True)

    def _measured(self, call: Step, images: int, work: int | None) -> dict[str, object]:
        if time.monotonic() > self.until:
            raise NoTimeLeftError
        if self.on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        first = self._seconds(call)  # warms up, and compiles
        second = self._seconds(call)
        seconds = [second]
        repeats = min(self.repeats - 1, int(ENOUGH_SECONDS / second))
        for _ in range(repeats):
            if time.monotonic() + second > self.until:
                break
            seconds.append(self._seconds(call))
        median = statistics.median(seconds)
        found: dict[str, object] = {
            "seconds": float(f"{median:.4g}"),
            "all_seconds": [float(f"{one:.4g}") for one in seconds],
            "first_seconds": float(f"{first:.4g}"),
            "images_per_second": float(f"{images / median:.4g}"),
        }
        if self.on_gpu:
            found["peak_memory_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
        work = flops(call) if work is None else work
        return found | {
            "tflop": float(f"{work / 1e12:.4g}"),
            "utilisation": float(f"{work / median / self.peak:.3g}"),
        }

    def _seconds(self, call: Step) -> float:
        self.synchronize()
        started = time.perf_counter()
        call()
        self.synchronize()
        return time.perf_counter() - started

    def _circumstances(self) -> dict[str, object]:
        return {
            "device": torch.cuda.get_device_name() if self.on_gpu else "cpu",
            "peak_tflops": round(self.peak / 1e12, 3),
            "resolution": self.size.resolution,
            "torch": torch.__version__,
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
        }


def edits(bench: Bench) -> None:
    """Whole edits, pictures to pictures: as published ("naive"), exact, by quality; sweeps of one face."""
    pipeline = bench.pipeline(action_units=",".join(NAMES))
    naive = NaiveSystem(pipeline)
    about = {"dtype": short(bench.dtype)}

    def calls(image, condition, deltas) -> dict[str, Callable[[int], Step]]:
        return {
            "exact": lambda steps: exact_edit(pipeline, image, condition, deltas, steps),
            "naive": lambda steps: lambda: naive(image, condition, deltas, steps, GUIDANCE),
        }

    one = (*random_faces(bench.size, 1, device=bench.device), random_au_deltas(1, pipeline))
    counted = {arm: work_by_steps(edit) for arm, edit in calls(*one).items()}
    for batch in bench.batches:
        faces = (*random_faces(bench.size, batch, device=bench.device), random_au_deltas(batch, pipeline))
        for steps in bench.steps:
            for arm, edit in calls(*faces).items():
                name, work = f"edit, {arm}, {steps} steps, batch {batch}", batch * counted[arm](steps)
                bench.row(name, edit(steps), batch, work, steps=steps, batch=batch, **about)
        if batch == 1:
            bench.attempt("sweeps", sweeps, pipeline, *one[:2])
    for quality in ("balanced", "fast", "live"):
        call = exact_edit(pipeline, *one, quality=quality)
        bench.row(f"edit, {quality}, batch 1", call, 1, batch=1, **about)


def work_by_steps(edit: Callable[[int], Step]) -> Callable[[int], int]:
    """FLOPs of an edit by its number of steps, counted on two short ones."""
    one, two = flops(edit(1)), flops(edit(2))
    return lambda steps: one + (steps - 1) * (two - one)


def exact_edit(pipeline, image, condition, deltas, steps: int | None = None, **more) -> Step:
    exact = {"quality": "exact", "num_inference_steps": steps, "guidance_scale": GUIDANCE}
    arguments = (exact if steps else {}) | {"output_type": "pt"} | more
    return lambda: pipeline(image, condition, deltas, generator=torch.Generator().manual_seed(1), **arguments)


def sweeps(bench: Bench, pipeline: MagicEditPipeline, image, condition) -> None:
    """Many AUs of one face in one call, from one encoding of it; seconds are of all of them."""
    deltas = random_au_deltas(bench.variants, pipeline)
    models = {
        "10 steps": (pipeline, {"steps": 10}),
        "4 steps": (pipeline, {"steps": 4}),
        "1 step, distilled": (distilled(pipeline, 1), {"quality": "live"}),
    }
    for name, (model, how) in models.items():

        def sweep(model=model, how=how) -> object:
            faces = model.encode_faces(image, condition)
            return exact_edit(model, None, None, deltas, faces=faces, **how)()

        bench.row(
            f"sweep of {bench.variants} AUs, {name}",
            sweep,
            bench.variants,
            batch=bench.variants,
            dtype=short(bench.dtype),
        )


def denoising(bench: Bench, pipeline: MagicEditPipeline, rows: int) -> Step:
    """One evaluation of the denoiser with the reference's projections, `rows` images or guidance halves."""
    side, unet = bench.size.resolution // 8, pipeline.unet
    like = {"device": bench.device, "dtype": bench.dtype}
    prompt = torch.randn(1, bench.size.text_tokens, bench.size.text_width, **like)
    latents, condition = torch.randn(2, rows, 4, side, side, **like)
    timesteps = torch.full((rows,), 500, device=bench.device)
    deltas = torch.ones(rows, len(pipeline.action_units), **like)
    with torch.no_grad():
        features = encode_reference(pipeline.reference_unet, latents[:1], prompt)
        projections = project_reference(unet, features)

    @torch.no_grad()
    def evaluate() -> torch.Tensor:
        return predict_noise(unet, latents, condition, timesteps, prompt, deltas, projections)

    return evaluate


def graphs(bench: Bench) -> None:
    """One denoising step, launched by Python, and replayed as a CUDA graph without compilation."""
    pipeline = bench.pipeline()
    for batch in bench.batches:
        evaluate = denoising(bench, pipeline, 2 * batch)
        work = flops(evaluate)
        about = {"batch": batch, "dtype": short(bench.dtype)}
        bench.row(f"guided step, exact, batch {batch}", evaluate, batch, work, **about)
        if bench.on_gpu:
            name = f"guided step, CUDA graph, batch {batch}"
            bench.row(name, replayed(evaluate), batch, work, **about)


def replayed(call: Step) -> Step:
    """A call that is captured as a CUDA graph when it is first made."""
    graphs_made: list[torch.cuda.CUDAGraph] = []

    def replay() -> None:
        if not graphs_made:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                call()
            graphs_made.append(graph)
        graphs_made[0].replay()

    return replay


def compiled(bench: Bench) -> None:
    """Whole edits with the denoiser compiled: with CUDA graphs, as `Optimization` does, and without."""
    pipeline = bench.pipeline(action_units=",".join(NAMES))
    original = pipeline.unet
    modes = {"compiled, CUDA graphs": "reduce-overhead"} if bench.on_gpu else {}
    modes |= {"compiled": None}
    for batch in bench.batches:
        image, condition = random_faces(bench.size, batch, device=bench.device)
        deltas = random_au_deltas(batch, pipeline)
        edit = partial(exact_edit, pipeline, image, condition, deltas)
        pipeline.unet = original
        work = work_by_steps(edit)
        for mode_name, mode in modes.items():
            pipeline.unet = torch.compile(
                original, fullgraph=True, dynamic=False, mode=mode, backend=bench.backend
            )
            for steps in bench.steps:
                about = {"steps": steps, "batch": batch, "dtype": short(bench.dtype)}
                name = f"edit, {mode_name}, {steps} steps, batch {batch}"
                bench.row(name, edit(steps), batch, work(steps), **about)


def training(bench: Bench) -> None:
    """Optimiser steps from cached latents: LoRA, both UNets as published and as here, and a frozen reference.

    Weights are float32, computed with in bfloat16; LoRA is the recipe `sd15-lora`.
    """
    for batch in LORA_BATCHES:
        bench.attempt(f"training step, sd15-lora, batch {batch}", lora_step, batch)
    for batch in bench.batches:
        bench.attempt(f"training step, both UNets, batch {batch}", full_steps, batch)


def full_steps(bench: Bench, batch: int) -> None:
    pipeline = bench.pipeline(dtype=torch.float32)
    data = training_batch(bench.size, pipeline.scheduler, batch, len(pipeline.action_units), bench.device)
    names = {"exact": "both UNets, exact", "naive": "both UNets, naive", "cached": "frozen reference"}
    losses = training_losses(pipeline, data, bench.dtype)
    for arm, what in names.items():
        step = optimiser_step(*losses[arm])
        name = f"training step, {what}, batch {batch}"
        bench.row(name, step, batch, batch=batch, dtype="bfloat16 autocast")


def lora_step(bench: Bench, batch: int) -> None:
    flags = ("--config", "sd15-lora", "--train_data_dir", "-", "--pretrained_model_name_or_path", "-")
    config = parse_config(list(flags))
    pipeline = bench.pipeline(dtype=torch.float32)
    prepare_for_training(pipeline, config, denoiser_only=False, held_as=bench.dtype)
    networks = Networks(pipeline, config.gradient_checkpointing)
    data = training_batch(bench.size, pipeline.scheduler, batch, len(pipeline.action_units), bench.device)

    def loss() -> torch.Tensor:
        with torch.autocast(bench.device.type, bench.dtype, enabled=bench.dtype != torch.float32):
            output = networks(*data.inputs)
        return noise_objective(output, data.clean, data.noise, data.alphas)

    step = optimiser_step(loss, [p for p in networks.parameters() if p.requires_grad])
    bench.row(f"training step, sd15-lora, batch {batch}", step, batch, batch=batch, dtype="bfloat16 autocast")


GROUPS = {"edits": edits, "training": training, "graphs": graphs, "compiled": compiled}


def main() -> None:
    started = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("group", choices=GROUPS)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--packed", type=Path)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--dry-run", action="store_true")
    args = parser.parse_args()
    if not args.dry_run and not torch.cuda.is_available():
        raise SystemExit("torch sees no CUDA device; try --dry-run")
    torch.backends.cuda.matmul.allow_tf32 = True
    bench = Bench(
        SIZES["tiny" if args.dry_run else "full"],
        torch.device("cpu" if args.dry_run else "cuda"),
        torch.float32 if args.dry_run else torch.bfloat16,  # many CPUs have no 16 bits
        args.output / "speed.json",
        started + args.seconds,
        steps=(2,) if args.dry_run else (10, 50, 4, 1),
        batches=(1, 2) if args.dry_run else (1, 8),
        variants=3 if args.dry_run else 25,
        repeats=1 if args.dry_run else 5,
        backend="eager" if args.dry_run else "inductor",
    )
    try:
        GROUPS[args.group](bench)
    except NoTimeLeftError:
        print(f"{args.group}: the other rows do not fit into the time")
    if bench.failed:
        raise SystemExit(f"{args.group}: {len(bench.failed)} rows failed, see speed.json")


if __name__ == "__main__":
    main()
