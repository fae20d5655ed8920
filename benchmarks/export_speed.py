"""Whether the two networks are faster outside of PyTorch on a CPU: ONNX Runtime and OpenVINO beside eager
PyTorch and `torch.compile`.

    python benchmarks/export_speed.py mini proxy

One evaluation of the denoiser with projected keys and values, and one pass of the ID encoder up to its
last feature; and a whole edit of a known face by `use_onnx` beside eager PyTorch; float32, one face, one
thread. Every arm computes the same numbers (`difference`, the greatest absolute one to eager PyTorch;
`largest`, the greatest absolute output). Times are CPU seconds of this process, which other processes disturb
less than wall time; with one thread both are the same work. The wall times of the same calls stand beside
them, unless their control does not come out at 1. Preparing is counted in CPU seconds of this process:
without g++'s for `torch.compile`, and less where its cache is warm. Needs the packages onnx, onnxscript,
onnxruntime and openvino; rows are merged into export_speed.json.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from machine import circumstances
from pairs import DiscardedRun, compare, interleave
from proxy import PROXY, make_pipeline, random_au_deltas

from magicedit.evaluation.circumstances import PACKAGES, versions
from magicedit.models import export_onnx, load_pipeline, predict_noise, use_onnx
from magicedit.pipelines.pipeline_magicedit import MagicEditPipeline
from magicedit.pipelines.reference_attention import ReferenceCache, encode_reference, transformer_blocks

Tensors = tuple[torch.Tensor, ...]
Run = Callable[[], Tensors]

NETWORKS = DENOISER, ENCODER, EDIT = "denoiser", "ID encoder", "edit"
TOLERANCE = 1e-4  # greatest absolute difference, relative to the largest output or 1
FASTER = 1.1  # an export pays where it is faster than `torch.compile` by more
DISCARDED = 3  # exit status
TIMESTEP = 500
ARM_SECONDS = 0.4  # calls of an arm are repeated to take about this long


class Seconds(float):
    """Wall seconds that know the process's CPU seconds of the same work."""

    cpu: float


# --- The networks as functions of tensors -------------------------------------------------------------------


class Denoiser(torch.nn.Module):
    """`predict_noise` with the reference's keys and values as inputs, by layer in the order of the modules;
    the prompt's are constants, as every edit has the same prompt."""

    def __init__(self, unet, reference: ReferenceCache, prompt_embeds: torch.Tensor):
        super().__init__()
        self.unet, self.prompt_embeds = unet, prompt_embeds
        self.layers = list(transformer_blocks(unet))
        self.text = {layer: reference.text(layer, None) for layer in self.layers}

    def forward(self, latents, condition_latents, timestep, au_delta, projections: list[torch.Tensor]):
        pairs = zip(projections[::2], projections[1::2], strict=True)
        cache = ReferenceCache(dict(zip(self.layers, pairs, strict=True)), self.prompt_embeds)
        cache._text = self.text
        return (
            predict_noise(
                self.unet, latents, condition_latents, timestep, self.prompt_embeds, au_delta, cache
            ),
        )


class Encoder(torch.nn.Module):
    """`encode_reference` without its exception, which compilers do not take; they drop what lies behind the
    last feature themselves."""

    def __init__(self, reference_unet, prompt_embeds: torch.Tensor):
        super().__init__()
        self.reference_unet, self.prompt_embeds = reference_unet, prompt_embeds
        self.features: dict[str, torch.Tensor] = {}
        for name, block in transformer_blocks(reference_unet).items():
            block.norm1.register_forward_pre_hook(self.keeper(name))

    def keeper(self, name: str):
        def keep(module, args):
            self.features[name] = args[0]

        return keep

    def forward(self, identity_latents):
        timestep = torch.zeros(1, dtype=torch.long)
        self.reference_unet(identity_latents, timestep, encoder_hidden_states=self.prompt_embeds)
        features, self.features = self.features, {}
        return tuple(features.values())


def networks(pipeline: MagicEditPipeline, size: int) -> dict[str, tuple[torch.nn.Module, tuple, Run]]:
    """By name: the network as a function of tensors, its inputs, and what the pipeline itself calls."""
    pair = torch.rand(2, 1, 3, size, size, generator=torch.Generator().manual_seed(0))
    faces = pipeline.encode_faces(*pair)
    faces.reference.fill(pipeline.unet)
    latents = torch.randn(faces.identity_latents.shape, generator=torch.Generator().manual_seed(1))
    timestep = torch.tensor([TIMESTEP])
    au_delta = random_au_deltas(1, pipeline)
    layers = list(transformer_blocks(pipeline.unet))
    projections = [x for layer in layers for x in faces.reference.reference(layer, None)]
    denoiser = Denoiser(pipeline.unet, faces.reference, faces.prompt_embeds)
    inputs = (latents, faces.condition_latents, timestep, au_delta, projections)

    def denoise():
        return (
            predict_noise(
                pipeline.unet,
                latents,
                faces.condition_latents,
                timestep,
                faces.prompt_embeds,
                au_delta,
                faces.reference,
            ),
        )

    def encode():
        found = encode_reference(pipeline.reference_unet, faces.identity_latents, faces.prompt_embeds)
        return tuple(found.values())

    return {
        DENOISER: (denoiser, inputs, denoise),
        ENCODER: (
            Encoder(pipeline.reference_unet, faces.prompt_embeds),
            (faces.identity_latents,),
            encode,
        ),
    }


# --- The arms -----------------------------------------------------------------------------------------------


def flat(inputs: Sequence) -> list[torch.Tensor]:
    return [x for entry in inputs for x in (entry if isinstance(entry, list) else [entry])]


def compiled(network: torch.nn.Module) -> Callable[..., Tensors]:
    """As `optimize_pipeline` compiles on a CPU."""
    return torch.compile(network, fullgraph=True, dynamic=False)


def in_onnxruntime(exported: torch.export.ExportedProgram, inputs: tuple, folder: Path) -> Run:
    import onnxruntime

    path = folder / "network.onnx"
    torch.onnx.export(exported, dynamo=True, f=path, verbose=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]

    def run():
        given = dict(zip(names, (x.numpy() for x in flat(inputs)), strict=True))
        return tuple(torch.from_numpy(x) for x in session.run(None, given))

    return run


def in_openvino(exported: torch.export.ExportedProgram, inputs: tuple) -> Run:
    import openvino

    model = openvino.convert_model(exported)
    settings = {
        "INFERENCE_NUM_THREADS": 1,
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()

    def run():
        found = request.infer([x.numpy() for x in flat(inputs)], share_inputs=True)
        return tuple(torch.from_numpy(np.array(x)) for x in found.values())

    return run


def arm(run: Run, calls: int):
    """Seconds a call, of `calls` in a row."""

    def measure() -> Seconds:
        cpu, wall = time.process_time(), time.perf_counter()
        for _ in range(calls):
            run()
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        seconds = Seconds(wall / calls)
        seconds.cpu = cpu / calls
        return seconds

    return measure


# --- The measurement ----------------------------------------------------------------------------------------


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def prepared(network: torch.nn.Module, inputs: tuple, eager: Run) -> tuple[dict[str, Run], dict[str, object]]:
    """The arms, and what their preparation took and changed.

    Raises:
        AssertionError: where an arm does not compute what the pipeline does.
    """
    with tempfile.TemporaryDirectory() as name:
        started = time.process_time()
        exported = torch.export.export(network, inputs)
        exporting = time.process_time() - started
        make = {
            "torch.compile": lambda: partial(compiled(network), *inputs),
            "ONNX Runtime": lambda: in_onnxruntime(exported, inputs, Path(name)),
            "OpenVINO": lambda: in_openvino(exported, inputs),
        }
        expected = eager()
        largest = max(float(x.abs().max()) for x in expected)
        runs, about = {"eager": eager}, {}
        for key, call in make.items():
            started = time.process_time()
            runs[key] = call()
            pairs = zip(runs[key](), expected, strict=True)  # the first call compiles
            seconds = time.process_time() - started + (0 if key == "torch.compile" else exporting)
            difference = max(float((found - x).abs().max()) for found, x in pairs)
            assert difference <= TOLERANCE * max(1, largest), (key, difference, largest)
            about[key] = {
                "difference": float(f"{difference:.2g}"),
                "cpu_seconds_to_prepare": round(seconds, 1),
            }
            note(f"{key}: {about[key]}")
    return runs, {"largest": float(f"{largest:.3g}"), "prepared": about}


def measure(network: torch.nn.Module, inputs: tuple, eager: Run, passes: int) -> dict[str, object]:
    """Raises DiscardedRun where the control of the CPU times does not come out at 1."""
    return compared(*prepared(network, inputs, eager), passes)


def measure_edit(make: Callable[[], MagicEditPipeline], passes: int) -> dict[str, object]:
    """The pipeline as it is, and with its denoiser in ONNX Runtime; raises as `measure`."""
    runs = {}
    for key in ("eager", "ONNX Runtime"):
        pipeline = make()
        if key != "eager":
            with tempfile.TemporaryDirectory() as name:
                export_onnx(pipeline, name)
                use_onnx(pipeline, name, threads=1)
        size = pipeline.config.resolution
        pair = torch.rand(2, 1, 3, size, size, generator=torch.Generator().manual_seed(0))
        faces = pipeline.encode_faces(*pair)

        def edit(pipeline=pipeline, faces=faces):
            generator = torch.Generator().manual_seed(1)
            au_delta = random_au_deltas(1, pipeline)
            return pipeline(None, None, au_delta, faces=faces, generator=generator, output_type="pt").images

        runs[key] = edit
    difference = float((runs["ONNX Runtime"]() - runs["eager"]()).abs().max())
    assert difference <= TOLERANCE, difference
    return compared(runs, {"difference": float(f"{difference:.2g}")}, passes)


def compared(runs: dict[str, Run], about: dict[str, object], passes: int) -> dict[str, object]:
    eager = runs["eager"]
    eager()
    once = float(arm(eager, 2)().cpu)
    calls = max(1, round(ARM_SECONDS / once))
    wall = interleave({key: arm(run, calls) for key, run in runs.items()}, passes, note=note)
    cpu = {key: [seconds.cpu for seconds in values] for key, values in wall.items()}
    note("median CPU seconds: " + ", ".join(f"{k} {statistics.median(v):.4g}" for k, v in cpu.items()))
    figures = compare(cpu, "eager")
    try:
        about["wall"] = compare(wall, "eager")
    except DiscardedRun as error:
        about["wall"] = {"discarded": str(error)}
    return figures | {"calls": calls} | about


def verdict_of(row: dict) -> dict[str, float]:
    """How many times faster than `torch.compile` (of an edit: than eager PyTorch) each export is, by the
    medians of CPU time."""
    seconds = {key: values["median"] for key, values in row["seconds"].items()}
    usual = seconds.get("torch.compile", seconds["eager"])
    return {key: round(usual / seconds[key], 3) for key in ("ONNX Runtime", "OpenVINO") if key in seconds}


def keep(output: Path, name: str, row: dict[str, object]) -> None:
    """Merges a row into the results."""
    packages = (*PACKAGES, "onnx", "onnxscript", "onnxruntime", "openvino")
    found = circumstances() | {"versions": versions(packages)}
    rows = json.loads(output.read_text()) if output.exists() else {}
    rows[name] = row | {"verdict": verdict_of(row), "threads": 1} | found
    output.write_text(json.dumps(rows, indent=1) + "\n")
    note(f"{name}: times faster: {rows[name]['verdict']}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("models", nargs="+", choices=("mini", "proxy"))
    parser.add_argument("--networks", nargs="+", default=NETWORKS, choices=NETWORKS)
    parser.add_argument("--passes", type=int, default=16)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    status = 0
    for model in arguments.models:
        make = partial(load_pipeline, "mini", "cpu") if model == "mini" else partial(make_pipeline, PROXY)
        with torch.no_grad():
            pipeline = make()
            parts = networks(pipeline, pipeline.config.resolution)
            for name in arguments.networks:
                note(f"{model}, {name}")
                try:
                    if name == EDIT:
                        row = measure_edit(make, arguments.passes)
                    else:
                        row = measure(*parts[name], arguments.passes)
                except DiscardedRun as error:
                    note(str(error))
                    status = DISCARDED
                    continue
                keep(arguments.output, f"{model}, {name}", row)
    return status


if __name__ == "__main__":
    sys.exit(main())
