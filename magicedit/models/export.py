"""Networks as ONNX graphs, which ONNX Runtime evaluates faster on a CPU than PyTorch does.

`write_graphs` writes the two graphs of a small composing model, by which `GraphModel` edits without torch.
`export_onnx` writes the denoiser of any model with its weights, for `use_onnx` in a pipeline: its ID encoder
runs once per face and stays in PyTorch. `benchmarks/export_speed.py` measures the speedup. A graph takes one
face and one AU vector; further rows are evaluated one after the other.
"""

import hashlib
import json
import tempfile
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput

from magicedit.errors import ModelError, needs_extra
from magicedit.models.folder import ModelFolder
from magicedit.models.graph_model import (
    ABOUT,
    DENOISER,
    ENCODER,
    GRAPHS,
    NETWORKS,
    TRANSPOSED,
    architecture,
    check_graphs_serve,
)
from magicedit.pipelines.pipeline_magicedit import MagicEditPipeline, weights_version
from magicedit.pipelines.reference_attention import (
    ReferenceCache,
    encode_reference,
    install_reference_attention,
    is_compiled,
    project_reference,
    transformer_blocks,
)

GRAPH, GRAPH_WEIGHTS = "denoiser.onnx", "denoiser.json"
# Of ONNX Runtime, switched off when structure is written: they compute tensors from weights
MERGING = ["ConstantFolding", "ConvAddFusion", "ConvMulFusion"]


class DenoiserGraph(torch.nn.Module):
    """The denoiser as a function of tensors alone, to export.

    Inputs: sample (1, in channels, height, width), timestep (1,), class_labels (1, aus), and by layer, in the
    modules' order, what `projections_of` returns; or of that the reference's alone, and prompt_embeds (1,
    text tokens, cross_attention_dim). Output: (1, out channels, height, width).
    """

    def __init__(self, unet: UNet2DConditionModel, prompt_embeds: torch.Tensor):
        super().__init__()
        self.unet = unet
        self.prompt_embeds = prompt_embeds  # only its shape is used where its projections are inputs
        self.layers = list(transformer_blocks(unet))

    def forward(self, sample, timestep, class_labels, projections: list[torch.Tensor], prompt_embeds=None):
        of_layer = zip(*[iter(projections)] * (len(projections) // len(self.layers)), strict=True)
        by_layer = dict(zip(self.layers, of_layer, strict=True))
        prompt_embeds = self.prompt_embeds if prompt_embeds is None else prompt_embeds
        cache = ReferenceCache({layer: found[:2] for layer, found in by_layer.items()}, prompt_embeds)
        for layer, found in by_layer.items():
            if found[2:]:
                cache.text(layer, lambda _, text=found[2:]: text)
        return self.unet(
            sample,
            timestep,
            encoder_hidden_states=prompt_embeds,
            class_labels=class_labels,
            cross_attention_kwargs={"reference": cache},
        ).sample


class EncoderGraph(torch.nn.Module):
    """The ID encoder and the denoiser's projections of its features as a function of tensors alone.

    Inputs: identity latents (1, channels, height, width), timestep (1,), prompt_embeds (1, text tokens,
    cross_attention_dim). Output: by layer, in the denoiser's modules' order, key and value of the reference,
    each (1, tokens, inner_dim). It changes `reference_unet`.
    """

    def __init__(self, reference_unet: UNet2DConditionModel, unet: UNet2DConditionModel):
        super().__init__()
        self.reference_unet, self.unet = reference_unet, unet
        self.encode = reference_unet.forward
        install_reference_attention(reference_unet)  # by whose processors a single token needs no attention

    def forward(self, identity, timestep, prompt_embeds):
        def encode(sample, _, encoder_hidden_states):
            text_alone = {"reference": ReferenceCache(None, encoder_hidden_states)}
            return self.encode(sample, timestep, encoder_hidden_states, cross_attention_kwargs=text_alone)

        self.reference_unet.forward = encode
        # The tracer does not take the exception that ends it early; unused nodes leave the graph anyway
        features = encode_reference(self.reference_unet, identity, prompt_embeds, to_end=True)
        projected = project_reference(self.unet, features)
        return [x for layer in transformer_blocks(self.unet) for x in projected[layer]]


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


def _needs_exporter() -> AbstractContextManager[None]:
    return needs_extra("export", "exporting needs the packages onnx and onnxscript")


@torch.no_grad()
def write_graphs(folder: str | Path) -> Path:
    """Writes the graphs of a model folder into its subfolder `onnx`; `--model FOLDER` then needs no torch.

    They hold the structure of the networks alone, so they serve all weights of the same settings, for crops
    of the model's resolution.

    Args:
        folder: of a flow_mask_paint model without VAE and text, with a DDIM scheduler, such as `train.py
            --config mini` writes.

    Returns:
        the subfolder.

    Raises:
        ModelError: where the model is of another kind, see `graph_model.check_graphs_serve`.
        MissingDependencyError: where the packages onnx and onnxscript are missing.
    """
    found = ModelFolder.local(folder)
    found.check()
    check_graphs_serve(found)
    shape = architecture(found)
    # Random weights, so that each tensor of the graphs is recognised by its values
    networks = {name: _random_network(shape[name], seed) for seed, name in enumerate(NETWORKS)}
    unet, side = networks["unet"], shape["resolution"] // shape["patch_size"]
    install_reference_attention(unet)
    # Timestep and text are inputs, although constant: else the exporter computes tensors from the weights
    constants = {
        "timestep": torch.tensor([0]),
        "prompt_embeds": torch.zeros(1, 1, unet.config.cross_attention_dim),
    }
    encoder = EncoderGraph(networks["reference_unet"], unet)
    encoder_inputs = {"identity": torch.zeros(1, networks["reference_unet"].config.in_channels, side, side)}
    encoder_inputs |= constants
    projections = encoder(**encoder_inputs)
    names = [f"projection_{number}" for number in range(len(projections))]
    denoiser = DenoiserGraph(unet, constants["prompt_embeds"])
    denoiser_inputs = (*_blank_inputs(unet, side), projections, constants["prompt_embeds"])
    denoiser_names = ["sample", "timestep", "class_labels", *names, "prompt_embeds"]
    graphs = {
        ENCODER: (encoder, tuple(encoder_inputs.values()), list(encoder_inputs), names),
        DENOISER: (denoiser, denoiser_inputs, denoiser_names, ["output"]),
    }
    known = {
        f"{network}.{name}": tensor
        for network, module in networks.items()
        for name, tensor in module.state_dict().items()
    }
    place = found.path / GRAPHS
    place.mkdir(exist_ok=True)
    about = {"architecture": shape}
    for file, (module, inputs, input_names, output_names) in graphs.items():
        about[file] = _write_structure(place / file, module, inputs, input_names, output_names, known)
    (place / ABOUT).write_text(json.dumps(about, sort_keys=True) + "\n", encoding="utf-8")
    return place


def _random_network(config: dict[str, Any], seed: int) -> UNet2DConditionModel:
    """A network of normally distributed weights."""
    network, generator = UNet2DConditionModel.from_config(config).eval(), torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return network


def _blank_inputs(unet: UNet2DConditionModel, side: int) -> tuple[torch.Tensor, ...]:
    """Sample, timestep and class labels of a `DenoiserGraph` with latents of `side` a side."""
    return (
        torch.zeros(1, unet.config.in_channels, side, side),
        torch.tensor([1]),
        torch.zeros(1, unet.config.projection_class_embeddings_input_dim),
    )


def _write_structure(
    file: Path,
    module: torch.nn.Module,
    inputs: tuple,
    input_names: list[str],
    output_names: list[str],
    known: Mapping[str, torch.Tensor],
) -> dict[str, list[int]]:
    """Writes the optimised graph of a module without the values of its `known` tensors; returns the shapes of
    those that it takes, by name."""
    with _needs_exporter():
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401 (torch needs it, and its error is less clear)
    exported = torch.onnx.export(
        torch.export.export(module, inputs),
        dynamo=True,
        input_names=input_names,
        output_names=output_names,
        verbose=False,
    )
    with tempfile.TemporaryDirectory() as temporary:
        plain, optimised = (Path(temporary) / name for name in ("plain.onnx", "optimised.onnx"))
        exported.save(plain)
        options = onnxruntime.SessionOptions()
        # What suits every CPU; layouts of this machine's are chosen when a graph is loaded
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(optimised)
        options.log_severity_level = 3  # it warns that such files are for the same machine
        onnxruntime.InferenceSession(
            plain,
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=MERGING,
        )
        model = onnx.load(optimised)
    shapes = _name_weights(model, known)
    onnx.save(model, file)
    return shapes


def _name_weights(model: Any, known: Mapping[str, torch.Tensor]) -> dict[str, list[int]]:
    """Replaces the weights among a graph's tensors by external ones of their names; returns their shapes."""
    from onnx import TensorProto, numpy_helper

    by_value = {}
    for name, tensor in known.items():
        by_value[tensor.numpy().tobytes()] = name
        if tensor.ndim == 2:
            by_value[tensor.numpy().T.tobytes()] = name + TRANSPOSED
    renamed, shapes, graph = {}, {}, model.graph
    for tensor in graph.initializer:
        name = by_value.get(numpy_helper.to_array(tensor).tobytes())
        if name is None:  # a shape, or a constant of normalisation and the like
            continue
        assert name not in shapes, f"{name} is in the graph twice"
        renamed[tensor.name], shapes[name] = name, list(tensor.dims)
        tensor.name, tensor.data_location = name, TensorProto.EXTERNAL
        tensor.ClearField("raw_data")
        del tensor.external_data[:]
        tensor.external_data.add(key="location", value="weights")  # no file: the session is given the tensors
    for node in graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = renamed.get(name, name)
        node.ClearField("doc_string")
        node.ClearField("name")
        del node.metadata_props[:]
    del graph.value_info[:], model.metadata_props[:], graph.metadata_props[:]
    return shapes


@torch.no_grad()
def export_onnx(pipeline: MagicEditPipeline, folder: str | Path) -> Path:
    """Writes the denoiser as an ONNX graph with its weights, for crops of the pipeline's resolution.

    Args:
        pipeline: on the CPU, in float32, not compiled, without adapters.
        folder: created if missing; gets `denoiser.onnx` (and its weights) and `denoiser.json`.

    Returns:
        path of the graph.

    Raises:
        ModelError: where the pipeline is not as above.
        MissingDependencyError: where the package onnxscript is missing.
    """
    with _needs_exporter():
        import onnxscript  # noqa: F401 (torch needs it, and its error is less clear)
    unet = pipeline.unet
    check_exportable(pipeline)
    size = pipeline.config.resolution
    grey = torch.full((1, 3, size, size), 0.5)
    faces = pipeline.encode_faces(grey, grey)
    network = DenoiserGraph(unet, torch.zeros_like(faces.prompt_embeds))
    side = faces.identity_latents.shape[-1]
    inputs = (*_blank_inputs(unet, side), projections_of(unet, faces.reference))
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    names = ["sample", "timestep", "class_labels"]
    names += [f"projection_{number}" for number in range(len(inputs[-1]))]
    torch.onnx.export(
        torch.export.export(network, inputs), f=folder / GRAPH, dynamo=True, input_names=names, verbose=False
    )
    about = {"weights_sha256": weights_digest(unet), "resolution": size}
    (folder / GRAPH_WEIGHTS).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    return folder / GRAPH


def check_exportable(pipeline: MagicEditPipeline) -> None:
    """Raises ModelError unless the pipeline meets the requirements of `export_onnx` and `use_onnx`."""
    unet = pipeline.unet
    if is_compiled(unet):
        raise ModelError("the denoiser is compiled or exported already; load the model again")
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
        ModelError: where the graph is missing, or is of other weights than the pipeline's.
    """
    import onnxruntime

    folder = Path(folder)
    check_exportable(pipeline)
    if not (folder / GRAPH).is_file() or not (folder / GRAPH_WEIGHTS).is_file():
        raise ModelError(f"there must be {GRAPH} and {GRAPH_WEIGHTS} in {folder}; export_onnx writes them")
    exported = json.loads((folder / GRAPH_WEIGHTS).read_text(encoding="utf-8"))
    if exported["weights_sha256"] != weights_digest(pipeline.unet):
        raise ModelError(f"{folder / GRAPH} is of other weights than this pipeline's; export it again")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    session = onnxruntime.InferenceSession(folder / GRAPH, options, providers=["CPUExecutionProvider"])
    # Where `torch.nn.Module.compile` puts its function: weights, config and saving stay the denoiser's own
    pipeline.unet._compiled_call_impl = OnnxDenoiser(pipeline.unet, session)
