"""The denoiser as an ONNX graph, which ONNX Runtime evaluates faster on a CPU than PyTorch does.

`benchmarks/export_speed.py` measures the speedup. The graph takes one face and one AU vector; further rows
are evaluated one after the other. The ID encoder runs once per face and stays in PyTorch.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput

from magicedit.errors import ModelError
from magicedit.pipelines.pipeline_magicedit import MagicEditPipeline, weights_version
from magicedit.pipelines.reference_attention import ReferenceCache, is_compiled, transformer_blocks

GRAPH, ABOUT = "denoiser.onnx", "denoiser.json"


class DenoiserGraph(torch.nn.Module):
    """The denoiser as a function of tensors alone, to export.

    Inputs: sample (1, in channels, height, width), timestep (1,), class_labels (1, aus), and by layer, in the
    modules' order, what `projections_of` returns. Output: (1, out channels, height, width).
    """

    def __init__(self, unet: UNet2DConditionModel, prompt_embeds: torch.Tensor):
        super().__init__()
        self.unet = unet
        self.prompt_embeds = prompt_embeds  # only its shape is used: its projections are inputs
        self.layers = list(transformer_blocks(unet))

    def forward(self, sample, timestep, class_labels, projections: list[torch.Tensor]):
        by_layer = dict(zip(self.layers, zip(*[iter(projections)] * 4, strict=True), strict=True))
        cache = ReferenceCache({layer: four[:2] for layer, four in by_layer.items()}, self.prompt_embeds)
        for layer, four in by_layer.items():
            cache.text(layer, lambda _, text=four[2:]: text)
        return self.unet(
            sample,
            timestep,
            encoder_hidden_states=self.prompt_embeds,
            class_labels=class_labels,
            cross_attention_kwargs={"reference": cache},
        ).sample


def projections_of(unet: UNet2DConditionModel, cache: ReferenceCache) -> list[torch.Tensor]:
    """Returns key and value of the reference, then of the text, by layer: (faces or 1, tokens, inner_dim)."""
    cache.fill(unet)
    found = []
    for layer in transformer_blocks(unet):
        found += [*cache.reference(layer, None), *cache.text(layer, None)]
    return found


def weights_digest(network: torch.nn.Module) -> str:
    """Returns the SHA-256 over names, shapes and values of all weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def pipeline_digest(pipeline: MagicEditPipeline) -> str:
    """Returns the SHA-256 over everything an edit depends on: weights of all networks, scheduler, settings.

    The place they were loaded from is not included.
    """
    parts: dict[str, Any] = {"settings": _plain(pipeline.config)}
    for name, part in pipeline.components.items():
        if isinstance(part, torch.nn.Module):
            parts[name] = weights_digest(part)
    parts["scheduler"] = [type(pipeline.scheduler).__name__, _plain(pipeline.scheduler.config)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _plain(config: Mapping[str, Any]) -> dict[str, str]:
    """Returns a config without the origin of its component and the version that saved it."""
    return {name: repr(value) for name, value in config.items() if not name.startswith("_")}


@torch.no_grad()
def export_onnx(pipeline: MagicEditPipeline, folder: str | Path) -> Path:
    """Writes the denoiser as an ONNX graph with its weights, for crops of the pipeline's resolution.

    Args:
        pipeline: on the CPU, in float32, not compiled, without adapters.
        folder: created if missing; gets `denoiser.onnx` (and its weights) and `denoiser.json`.

    Returns:
        path of the graph.

    Raises:
        ModelError: where the package onnxscript is missing, or the pipeline is not as above.
    """
    try:
        import onnxscript  # noqa: F401 (torch needs it, and its error is less clear)
    except ImportError:
        raise ModelError("exporting needs the package onnxscript; pip install 'magicedit[export]'") from None
    unet = pipeline.unet
    check_exportable(pipeline)
    size = pipeline.config.resolution
    grey = torch.full((1, 3, size, size), 0.5)
    faces = pipeline.encode_faces(grey, grey)
    network = DenoiserGraph(unet, torch.zeros_like(faces.prompt_embeds))
    side = faces.identity_latents.shape[-2:]
    inputs = (
        torch.zeros(1, unet.config.in_channels, *side),
        torch.tensor([1]),
        torch.zeros(1, unet.config.projection_class_embeddings_input_dim),
        projections_of(unet, faces.reference),
    )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    names = ["sample", "timestep", "class_labels"]
    names += [f"projection_{number}" for number in range(len(inputs[-1]))]
    torch.onnx.export(
        torch.export.export(network, inputs), f=folder / GRAPH, dynamo=True, input_names=names, verbose=False
    )
    about = {"weights_sha256": weights_digest(unet), "resolution": size}
    (folder / ABOUT).write_text(json.dumps(about, indent=1) + "\n")
    return folder / GRAPH


def check_exportable(pipeline: MagicEditPipeline) -> None:
    """Raises ModelError unless the pipeline meets the requirements of `export_onnx` and `use_onnx`."""
    unet = pipeline.unet
    if is_compiled(unet):
        raise ModelError("the denoiser is compiled or exported already; load the model anew")
    if unet.device.type != "cpu" or unet.dtype != torch.float32:
        raise ModelError(f"the pipeline must be float32 on the CPU, got {unet.dtype} on {unet.device}")
    if any(hasattr(module, "merged_adapters") for module in unet.modules()):
        raise ModelError(
            "the denoiser has LoRA adapters; put them into its weights: fuse_lora(), unload_lora_weights()"
        )
    if pipeline.reference_unet is None or unet.config.class_embed_type != "simple_projection":
        raise ModelError(
            "only denoisers with an ID encoder and a class embedding of the AUs (class_embed_type "
            f"'simple_projection') can be exported, got {unet.config.class_embed_type!r}"
        )


class OnnxDenoiser:
    """Replaces a denoiser's forward. Arguments and result are those of `UNet2DConditionModel` that
    `predict_noise` uses."""

    def __init__(self, unet: UNet2DConditionModel, session):
        self.unet, self.session = unet, session
        self.names = [entry.name for entry in session.get_inputs()]
        self.shape = tuple(session.get_inputs()[self.names.index("sample")].shape)
        self.weights = weights_version(unet)

    def __call__(self, sample, timestep, encoder_hidden_states, class_labels, cross_attention_kwargs):
        if weights_version(self.unet) != self.weights:
            raise ModelError(
                "the denoiser's weights or adapters changed since its graph was loaded; export it again"
            )
        if tuple(sample.shape[1:]) != self.shape[1:]:
            raise ModelError(
                f"the graph takes (channels, height, width) {self.shape[1:]}, got {tuple(sample.shape[1:])}; "
                "use crops of the model's resolution"
            )
        cache = cross_attention_kwargs["reference"]
        if not isinstance(cache, ReferenceCache):
            raise ModelError(f"the graph needs a ReferenceCache, got {type(cache).__name__}")
        projections = projections_of(self.unet, cache)
        timesteps = torch.as_tensor(timestep).reshape(-1).long()
        # A timestep or a projection may serve several rows; faces are innermost
        inputs = {"sample": sample, "timestep": timesteps, "class_labels": class_labels}
        inputs |= {f"projection_{number}": x for number, x in enumerate(projections)}
        rows = []
        for row in range(sample.shape[0]):
            given = {name: inputs[name][row % len(inputs[name])][None] for name in self.names}
            arrays = {name: x.detach().contiguous().numpy() for name, x in given.items()}
            rows.append(torch.from_numpy(self.session.run(None, arrays)[0]))
        return UNet2DConditionOutput(sample=torch.cat(rows))


def use_onnx(pipeline: MagicEditPipeline, folder: str | Path, threads: int | None = None) -> None:
    """Lets ONNX Runtime evaluate the pipeline's denoiser, by the graph that `export_onnx` wrote.

    The networks stay in memory: the ID encoder and the projections of the reference use them. As with a
    compiled denoiser, features cannot be cached across steps. Nothing can be trained through the graph.

    Args:
        threads: of ONNX Runtime; default: as many as PyTorch uses.

    Raises:
        ModelError: where onnxruntime or the graph is missing, or it is of other weights than the pipeline's.
    """
    try:
        import onnxruntime
    except ImportError:
        raise ModelError(
            "running the graph needs the package onnxruntime; pip install 'magicedit[export]'"
        ) from None
    folder = Path(folder)
    check_exportable(pipeline)
    if not (folder / GRAPH).is_file() or not (folder / ABOUT).is_file():
        raise ModelError(f"there must be {GRAPH} and {ABOUT} in {folder}; export_onnx writes them")
    if json.loads((folder / ABOUT).read_text())["weights_sha256"] != weights_digest(pipeline.unet):
        raise ModelError(f"{folder / GRAPH} is of other weights than this pipeline's; export it again")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    session = onnxruntime.InferenceSession(folder / GRAPH, options, providers=["CPUExecutionProvider"])
    # Where `torch.nn.Module.compile` puts its function: weights, config and saving stay the denoiser's own
    pipeline.unet._compiled_call_impl = OnnxDenoiser(pipeline.unet, session)
