"""Graphs of ONNX Runtime give what the pipeline gives with torch, and refuse what they were not made for."""

import inspect
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from safetensors.torch import load_file, save_file
from tiny_models import random_crop, tiny_patch_pipeline

from magicedit.editor import ExpressionEditor
from magicedit.embedded import embedded_folder
from magicedit.errors import ModelError
from magicedit.models import graph_model as graphs
from magicedit.models import load_pipeline, write_graphs
from magicedit.models.face_model import PipelineModel, load_face_model, runs_as_graphs
from magicedit.models.folder import ModelFolder
from magicedit.models.graph_model import Ddim, GraphModel, Head, initial_noise
from magicedit.pipelines import heads
from magicedit.pipelines.pipeline_magicedit import MagicEditPipeline
from magicedit.pipelines.sampling import QUALITIES
from magicedit.request import Sampling
from magicedit.workers import cores

ROUNDING = 1e-5  # greatest absolute difference of what is computed from the same float32 numbers
# Of a change, by part: pixels, share, colour; the tables of edits ask for 1 level of 255
PARITY = 1e-3
SMILE = np.eye(12, dtype=np.float32)[6] * 3
BROWS = np.eye(12, dtype=np.float32)[2] * -2


def by_torch(name) -> PipelineModel:
    return PipelineModel(load_pipeline(name, device="cpu"))


def assert_same_changes(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        for part in ("flow", "mask", "paint"):
            assert getattr(one, part).dtype == np.float32
            np.testing.assert_allclose(getattr(one, part), getattr(other, part), rtol=0, atol=PARITY)


# --- NumPy as torch and diffusers ---


@pytest.mark.parametrize("seed", [0, 5, 2**32 + 5, 2**63 - 1])
def test_initial_noise_is_torchs(seed):
    expected = torch.randn((1, 12, 8, 8), generator=torch.Generator("cpu").manual_seed(seed))[0]
    np.testing.assert_allclose(initial_noise((12, 8, 8), seed), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 50, 1000])
def test_steps_are_those_of_the_scheduler(steps):
    scheduler = DDIMScheduler.from_pretrained(embedded_folder("mini") / "scheduler")
    scheduler.set_timesteps(steps)
    ddim, draws = Ddim(1000), np.random.default_rng(0)
    assert ddim.timesteps(steps).tolist() == scheduler.timesteps.tolist()
    for timestep in scheduler.timesteps[:: max(1, steps // 5)].tolist():
        clean, noisy = draws.standard_normal((2, 3, 4, 4), np.float32)
        expected = scheduler.step(*map(torch.from_numpy, (clean,)), timestep, torch.from_numpy(noisy))
        found = ddim.step(clean, timestep, noisy, steps)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected.prev_sample, rtol=1e-5, atol=ROUNDING)


@pytest.mark.parametrize("fine", [False, True])
def test_a_head_composes_as_the_pipelines(tiny, fine):
    """Guided, with flows beyond the border."""
    model, patch = GraphModel.load(ModelFolder.find(tiny)), 4
    draws = np.random.default_rng(0)
    outputs = draws.standard_normal((2, heads.head_channels(patch, fine), 8, 8), np.float32)
    outputs[:, 64:66] *= 8  # flow: a tenth of that in halves of the side
    identity = draws.uniform(-1, 1, (3, 32, 32)).astype(np.float32)
    conditioned, unguided = (heads.split_head(torch.from_numpy(output)[None], patch) for output in outputs)
    expected = heads.guide_head(conditioned, unguided, 2.5)
    found, plain = map(model._split, outputs)
    found = found.guided(plain, 2.5)
    assert np.abs(found.flow_px).max() > 16
    for part in ("paint", "mask", "flow"):
        np.testing.assert_allclose(getattr(found, part), getattr(expected, part)[0].squeeze(0), atol=ROUNDING)
    picture = heads.compose_head(expected, torch.from_numpy(identity)[None]).clamp(-1, 1)[0]
    np.testing.assert_allclose(found.compose(identity), picture, rtol=0, atol=1e-4)
    unmoved = Head(found.paint, found.mask_logits, np.zeros_like(found.flow)).compose(identity)
    assert np.abs(found.compose(identity) - unmoved).max() > 0.1


def test_constants_and_defaults_are_the_pipelines():
    assert (graphs.FLOW_SCALE, graphs.MASK_BIAS) == (heads.FLOW_SCALE, heads.MASK_BIAS)
    parameters = inspect.signature(MagicEditPipeline.__init__).parameters
    assert {name: parameters[name].default for name in graphs.DEFAULTS} == graphs.DEFAULTS


# --- The embedded models ---


@pytest.fixture(scope="module")
def both(closed_mouth):
    """By name of an embedded model: its editors by graphs and by torch, of one face backend."""
    found = {}
    for name in ("mini", "mini-live"):
        backend = found["mini"][0].backend if found else "mediapipe"
        by_graphs = ExpressionEditor.from_pretrained(name, backend=backend)
        found[name] = (by_graphs, ExpressionEditor(by_torch(name), by_graphs.backend, model=name))
        assert isinstance(by_graphs.changer.model, GraphModel)
    return found


@pytest.mark.parametrize("model", ["mini", "mini-live"])
def test_settings_are_the_pipelines(both, model):
    one, other = (editor.changer.model for editor in both[model])
    for quality in (None, *QUALITIES):
        assert one.sampling(quality) == other.pipeline.sampling(quality)
        assert one.steps(None, quality) == other.steps(None, quality)
    for name in ("vocabulary", "resolution", "composes", "follows_muscles"):
        assert getattr(one, name) == getattr(other, name)


@pytest.mark.parametrize("model", ["mini", "mini-live"])
@pytest.mark.parametrize(
    ("request_", "options"),
    [
        ({"AU12": 3}, {}),
        ({"AU25": 3, "AU26": 4}, {"quality": "fast", "seed": 3}),
        ({"AU26": 3, "AU6L": 2}, {"quality": "live"}),
        ({"AU4": 3, "AU1": -2}, {"quality": "balanced", "guidance": 2.0}),
        ({"AU12": 2, "AU25": 2}, {"steps": 3, "guidance": 1.7}),
    ],
)
def test_photographs_differ_by_one_level_at_most(both, closed_mouth, model, request_, options):
    one, other = (
        editor.edit(closed_mouth, add=request_, measure=False, **options).image for editor in both[model]
    )
    one, other = (np.asarray(image, np.int16) for image in (one, other))
    assert np.abs(one - other).max() <= 1
    assert np.abs(one - closed_mouth).max() > 20


def test_two_faces_and_sweeps_differ_by_one_level_at_most(both, closed_mouth):
    pair = np.hstack([closed_mouth, closed_mouth[:, ::-1]])
    one, other = (editor.edit(pair, add={"AU12": 3}, measure=False) for editor in both["mini"])
    assert len(one.faces) == 2
    pairs = [(one, other)]
    sweeps = [list(editor.sweep(closed_mouth, "AU26", 1, 3, 2, measure=False)) for editor in both["mini"]]
    pairs += zip(*sweeps, strict=True)
    assert len(pairs) == 3
    for one, other in pairs:
        assert np.abs(np.asarray(one.image, np.int16) - np.asarray(other.image, np.int16)).max() <= 1


def test_rows_of_a_call_are_those_of_single_calls(both):
    model = both["mini"][0].changer.model
    faces = [model.encode(random_crop_array(128, seed), random_crop_array(128, seed + 9)) for seed in (0, 1)]
    steps: list[int] = []
    sampling = Sampling(steps=3, guidance=2.0)
    together = model.change(faces, [SMILE, np.zeros(12, np.float32)], sampling, steps.append)
    assert steps == [0, 1, 2]
    for face, delta, change in zip(faces, (SMILE, 0 * SMILE), together, strict=True):
        (alone,) = model.change([face], [delta], sampling)
        assert np.array_equal(alone.flow, change.flow)
    assert not np.array_equal(together[0].flow, together[1].flow)


def test_fingerprints_tell_models_apart(both):
    prints = {editor.changer.model.fingerprint() for name in both for editor in both[name]}
    assert len(prints) == 4
    assert load_face_model("mini").fingerprint() in prints


def test_the_pipeline_of_an_editor_counts_from_then_on(closed_mouth):
    editor = ExpressionEditor.from_pretrained("mini-live")
    first = np.asarray(editor.edit(closed_mouth, add={"AU12": 3}, measure=False).image, np.int16)
    encoded = editor.changer.model.encode(closed_mouth[:128, :128], closed_mouth[:128, :128])
    pipeline = editor.pipeline
    assert editor.pipeline is pipeline
    assert not editor.changer.model.is_current(encoded)
    same = editor.edit(closed_mouth, add={"AU12": 3}, measure=False).image
    assert np.abs(np.asarray(same, np.int16) - first).max() <= 1
    with torch.no_grad():
        pipeline.unet.conv_out.weight.zero_()
    other = editor.edit(closed_mouth, add={"AU12": 3}, measure=False).image
    assert np.abs(np.asarray(other, np.int16) - first).max() > 20


def test_optimizing_keeps_the_graphs(both):
    editor = both["mini-live"][0]
    model = editor.changer.model
    assert "float32, contiguous, not compiled on cpu (a denoiser evaluation: ONNX Runtime" in str(
        editor.optimize()
    )
    assert editor.changer.model is model


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({}, GraphModel),
        ({"device": "cpu", "dtype": "float32"}, GraphModel),
        ({"device": torch.device("cpu"), "dtype": torch.float32}, GraphModel),
        ({"dtype": "bfloat16"}, PipelineModel),
    ],
)
def test_graphs_serve_the_cpu_in_float32(options, kind):
    assert type(load_face_model("mini-live", **options)) is kind
    by_graphs = runs_as_graphs(ModelFolder.find("mini-live"), **({"device": None, "dtype": None} | options))
    assert by_graphs is (kind is GraphModel)


def test_sessions_own_their_weights(both):
    """ONNX Runtime is given memory of NumPy's, which is freed after loading."""
    folder = ModelFolder.find("mini")
    weights = {name: array.astype(np.float32) for name, array in graphs.read_weights(folder).items()}
    tensors = graphs.read_about(folder)[graphs.ENCODER]
    session = graphs.open_session(folder.component(graphs.GRAPHS) / graphs.ENCODER, tensors, weights, 1)
    draws = np.random.default_rng(0)
    inputs = {entry.name: draws.standard_normal(entry.shape, np.float32) for entry in session.get_inputs()}
    inputs["timestep"] = np.array([0])
    before = session.run(None, inputs)
    for array in weights.values():
        array.fill(np.nan)
    assert all(map(np.array_equal, before, session.run(None, inputs)))


@pytest.mark.slow
def test_the_shipped_graphs_are_those_that_the_command_writes(tmp_path):
    onnx = pytest.importorskip("onnx", reason="writing graphs needs the package onnx")
    pytest.importorskip("onnxscript", reason="writing graphs needs the package onnxscript")
    ours = embedded_folder("mini") / graphs.GRAPHS
    copy = shutil.copytree(embedded_folder("mini"), tmp_path / "mini")
    shutil.rmtree(copy / graphs.GRAPHS)
    write_graphs(copy)

    def structure(folder, name):
        graph = onnx.load(folder / name, load_external_data=False).graph
        return [(node.op_type, list(node.input), list(node.output)) for node in graph.node]

    for name in (graphs.ENCODER, graphs.DENOISER):
        assert structure(copy / graphs.GRAPHS, name) == structure(ours, name)
    written = json.loads((copy / graphs.GRAPHS / graphs.ABOUT).read_text())
    assert written == json.loads((ours / graphs.ABOUT).read_text())


# --- Models of others ---


def random_crop_array(size: int, seed: int) -> np.ndarray:
    return np.asarray(random_crop(size, seed))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A folder of a tiny model with graphs."""
    pytest.importorskip("onnx", reason="writing graphs needs the package onnx")
    pytest.importorskip("onnxscript", reason="writing graphs needs the package onnxscript")
    folder = tmp_path_factory.mktemp("tiny")
    tiny_patch_pipeline().save_pretrained(folder)
    write_graphs(folder)
    return folder


@pytest.fixture
def copied(tiny, tmp_path):
    return shutil.copytree(tiny, tmp_path / "model")


def rewrite(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize("seed", [0, 1])
def test_graphs_serve_all_weights_of_their_structure(copied, seed):
    tiny_patch_pipeline(seed).save_pretrained(copied)
    one, other = load_face_model(copied), by_torch(copied)
    assert isinstance(one, GraphModel)
    crop, condition = random_crop_array(32, 3), random_crop_array(32, 4)
    for sampling in (Sampling(), Sampling(steps=4, guidance=3.0, seed=9), Sampling(quality="live")):
        changes = [
            model.change([model.encode(crop, condition)] * 2, [SMILE, BROWS], sampling)
            for model in (one, other)
        ]
        assert_same_changes(*changes)
    assert np.abs(changes[0][0].flow - changes[0][1].flow).max() > 1e-2


def test_a_folder_without_graphs_is_a_pipeline(copied):
    shutil.rmtree(copied / graphs.GRAPHS)
    assert isinstance(load_face_model(copied, device="cpu"), PipelineModel)


def test_what_does_not_fit_is_named_in_one_line(copied):
    def problem():
        with pytest.raises(ModelError) as caught:
            load_face_model(copied)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    scheduler, about = copied / "scheduler" / "scheduler_config.json", copied / graphs.GRAPHS / graphs.ABOUT
    index = copied / "model_index.json"
    kept = {file: file.read_bytes() for file in (scheduler, about, index)}
    rewrite(scheduler, timestep_spacing="leading")
    assert "timestep_spacing" in problem()
    scheduler.write_bytes(kept[scheduler])
    rewrite(index, action_units="AU1,AU2")
    assert "names 2 action units, but its denoiser takes 12" in problem()
    rewrite(index, action_units=json.loads(kept[index])["action_units"], patch_size=3)
    assert "multiples of 12 px, got 32" in problem()
    rewrite(index, patch_size=4, resolution=64)
    assert "resolution" in problem()
    assert "write_graphs" in problem()
    index.write_bytes(kept[index])
    about.write_text("[]")
    assert "another model" in problem()
    content = json.loads(kept[about])
    del content[graphs.DENOISER]
    about.write_text(json.dumps(content))
    assert "do not fit" in problem()
    content[graphs.DENOISER] = {"unet.missing.weight": [4]}
    about.write_text(json.dumps(content))
    assert "unet.missing.weight" in problem()
    about.write_bytes(kept[about])
    (copied / graphs.GRAPHS / graphs.DENOISER).write_bytes(b"no graph")
    assert "do not fit" in problem()


@pytest.mark.parametrize(
    ("named", "threads"), [("4,2", 4), (" 3", 3), ("", None), ("0", None), ("many", None), ("²", None)]
)
def test_threads_are_those_that_torch_takes(tiny, monkeypatch, named, threads):
    monkeypatch.setenv("OMP_NUM_THREADS", named)
    used = GraphModel.load(ModelFolder.find(tiny))._denoiser.get_session_options().intra_op_num_threads
    assert used == (threads or cores())


@pytest.mark.parametrize("place", ["", "..", "absolute"])
def test_graphs_read_no_files(copied, monkeypatch, place):
    """A graph may name a file of any kind as a tensor's values, and give them out."""
    onnx = pytest.importorskip("onnx", reason="writing graphs needs the package onnx")
    folder = copied / graphs.GRAPHS
    secret = {"": folder, "..": copied, "absolute": copied}[place] / "secret"
    secret.write_bytes(b"secret")
    monkeypatch.chdir(folder)
    values = onnx.TensorProto(name="values", data_type=onnx.TensorProto.UINT8, dims=[6])
    values.data_location = onnx.TensorProto.EXTERNAL
    location = str(secret) if place == "absolute" else str(Path(place) / "secret")
    values.external_data.add(key="location", value=location)
    tell = onnx.helper.make_node("Gather", ["values", "places"], ["told"])
    places = onnx.helper.make_tensor_value_info("places", onnx.TensorProto.INT64, [6])
    told = onnx.helper.make_tensor_value_info("told", onnx.TensorProto.UINT8, [6])
    graph = onnx.helper.make_graph([tell], "telling", [places], [told], [values])
    opset = onnx.helper.make_opsetid("", 17)
    content = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=9).SerializeToString()
    (folder / graphs.ENCODER).write_bytes(content)
    rewrite(folder / graphs.ABOUT, **{graphs.ENCODER: {}})
    with pytest.raises(ModelError, match="do not fit"):
        load_face_model(copied)


def test_more_steps_than_noise_levels_are_refused():
    with pytest.raises(ModelError, match="100 steps at most, got 101"):
        Ddim(100).timesteps(101)


def test_broken_weights_are_named(copied):
    file = copied / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["conv_out.bias"][:] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})
    model = load_face_model(copied)
    face = model.encode(random_crop_array(32, 0), random_crop_array(32, 1))
    with pytest.raises(ModelError, match="not finite"):
        model.change([face], [SMILE], Sampling())


def test_graphs_are_written_for_models_that_compose_only(tmp_path):
    for changes, named in (
        ({"prediction": "noise"}, "flow_mask_paint"),
        ({"au_encoder": "padded"}, "class_embed_type 'simple_projection'"),
        ({"identity_encoder": "none"}, "reference_unet"),
    ):
        folder = tmp_path / named
        tiny_patch_pipeline(**changes).save_pretrained(folder)
        with pytest.raises(ModelError, match=named):
            write_graphs(folder)
