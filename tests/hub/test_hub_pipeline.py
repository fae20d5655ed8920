"""A pipeline published, and loaded by its id on other machines: safely, and without magicedit."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from machines import OWNER, STRANGER, Machine

from magicedit.hub import TrainingData, model_card, named_card
from magicedit.models import PatchModelConfig, create_patch_pipeline

REPO = "alice/tiny"

# Runs `pipe` and notes what it is and what it makes. All processes start from the same noise.
USE = """
import hashlib
import numpy as np
import torch

rng = np.random.default_rng(0)
crop, condition = (torch.tensor(rng.random((1, 3, 32, 32), dtype=np.float32)) for _ in range(2))
latents = torch.tensor(rng.standard_normal((2, 48, 8, 8), dtype=np.float32))
pipe.set_progress_bar_config(disable=True)
au_delta = [[0.0] * 12, [3.0] + [0.0] * 11]
images = pipe(crop, condition, au_delta, num_inference_steps=2, latents=latents, output_type="np").images
digest = hashlib.sha256()
for network in (pipe.unet, pipe.reference_unet):
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
result.update(images=images.tolist(), weights=digest.hexdigest(), module=type(pipe).__module__)
"""


@pytest.fixture(scope="module")
def pipeline():
    config = PatchModelConfig(
        resolution=32,
        block_out_channels=(16, 32),
        attention_heads=2,
        cross_attention_dim=8,
        norm_num_groups=8,
    )
    pipeline = create_patch_pipeline(config)
    with torch.no_grad():  # a fresh AU layer may be zero; the commands shall show in what is made
        for parameter in pipeline.unet.class_embedding.parameters():
            parameter.copy_(torch.linspace(-1, 1, parameter.numel()).view_as(parameter))
    return pipeline


@pytest.fixture(scope="module")
def expected(pipeline) -> dict:
    """What a machine must get: the run of the pipeline that was never saved."""
    result = {}
    exec(USE, {"pipe": pipeline, "result": result})
    return result


@pytest.fixture(scope="module")
def folder(pipeline, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipelines") / "tiny"
    pipeline.save_pretrained(folder)
    card = model_card("Tiny", repo_id=REPO, data=[TrainingData("Noise", 1, 1, "CC0-1.0")], resolution=32)
    (folder / "README.md").write_text(card, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def published(hub, folder, tmp_path_factory) -> str:
    publisher = Machine(tmp_path_factory.mktemp("publisher"), hub.url)
    code = "from magicedit.hub import push_folder\nresult['url'] = push_folder(folder, repo)"
    done = publisher.run(code, token=OWNER, folder=str(folder), repo=REPO)
    assert done["url"] == f"{hub.url}/{REPO}"
    return REPO


def snippet(folder, containing: str) -> str:
    """The code block of the model card that readers would copy."""
    blocks = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text("utf-8"), re.DOTALL)
    (block,) = [block for block in blocks if containing in block]
    return block


def same_model(result: dict, expected: dict) -> bool:
    """The same weights to the bit, and the same pictures but for the order in which threads sum."""
    difference = np.abs(np.asarray(result["images"]) - np.asarray(expected["images"])).max()
    return result["weights"] == expected["weights"] and difference < 1e-5


def test_the_probe_tells_models_and_commands_apart(pipeline, expected):
    kept, moved = np.asarray(expected["images"])
    assert kept.shape == (32, 32, 3)
    assert np.abs(kept - moved).max() > 1e-3
    other, result = create_patch_pipeline(PatchModelConfig(resolution=32, block_out_channels=(32, 64))), {}
    exec(USE, {"pipe": other, "result": result})
    assert not same_model(result, expected)


@pytest.fixture(scope="module")
def visitor(hub, tmp_path_factory) -> Machine:
    """Somebody else's machine, which has magicedit and no token."""
    return Machine(tmp_path_factory.mktemp("visitor"), hub.url)


@pytest.fixture(scope="module")
def visit(hub, visitor, published, folder) -> dict:
    """The visitor loads the published model, publishes it privately for the owner, and may not load that."""
    code = """
from magicedit.errors import ModelError
from magicedit.models import load_pipeline

pipe.push_to_hub("alice/pushed", private=True, token=owner)
result["refusals"] = []
for token in (None, stranger):
    try:
        load_pipeline("alice/pushed", token=token)
    except ModelError as error:
        result["refusals"].append(str(error))
"""
    asked_before = len(hub.requests)
    load = snippet(folder, "MagicEditPipeline.from_pretrained")
    result = visitor.run(load + USE + code, owner=OWNER, stranger=STRANGER)
    return result | {"requests": hub.requests[asked_before:]}


def test_loaded_by_id_without_running_its_code(visit, expected):
    assert same_model(visit, expected)
    assert visit["module"] == "magicedit.pipelines.pipeline_magicedit"
    tiny = [path for _, path in visit["requests"] if path.startswith(f"/{REPO}/resolve/")]
    assert any(path.endswith("/model_index.json") for path in tiny)
    assert not any(path.endswith(".py") for path in tiny)  # not even downloaded


def test_a_revision_in_the_name_is_the_one_that_is_loaded(hub, visitor, published):
    """And one that the hub does not have is refused, instead of the newest."""
    code = """
from magicedit.errors import ModelError
from magicedit.models.face_model import load_face_model
try:
    result["resolution"] = load_face_model(name, device="cpu").resolution
except ModelError as error:
    result["refused"] = str(error)
"""
    head = hub.repositories[published].head
    assert visitor.run(code, name=f"{published}@{head}") == {"resolution": 32}
    asked_before = len(hub.requests)
    assert "cannot be fetched" in visitor.run(code, name=f"{published}@{'0' * 40}")["refused"]
    assert not [path for _, path in hub.requests[asked_before:] if "/revision/main" in path]


def test_loaded_offline_from_the_cache(hub, visit, visitor, folder, expected):
    asked_before = len(hub.requests)
    load = snippet(folder, "MagicEditPipeline.from_pretrained")
    assert same_model(visitor.run(load + USE, offline=True), expected)
    assert len(hub.requests) == asked_before


def config_of(content: bytes) -> dict:
    config = json.loads(content)
    config.pop("_name_or_path", None)  # where diffusers found the component, not what it is
    return config


def test_push_to_hub_publishes_what_save_pretrained_writes(hub, visit, folder):
    files = hub.files("alice/pushed")
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.suffix == ".json":
            assert config_of(files[name]) == config_of(path.read_bytes()), name
        elif path.is_file():
            assert files[name] == path.read_bytes(), name
    assert json.loads(files["model_index.json"])["_class_name"] == ["pipeline", "MagicEditPipeline"]
    assert hub.large_files("alice/pushed") >= {
        "unet/diffusion_pytorch_model.safetensors",
        "reference_unet/diffusion_pytorch_model.safetensors",
    }


def test_push_to_hub_sends_the_card_of_the_folder(hub, machine, folder, tmp_path):
    """With the repository's name in its examples. A card that the repository has is not replaced, and a
    pipeline without one gets that of diffusers."""
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "README.md").write_text(model_card("Tiny", resolution=32), encoding="utf-8")
    code = """
import huggingface_hub
from pathlib import Path
from magicedit.pipelines.pipeline_magicedit import MagicEditPipeline

pipe = MagicEditPipeline.from_pretrained(copy)
pipe.push_to_hub("alice/named", token=owner, commit_message="Mine")
huggingface_hub.create_repo("alice/written", token=owner)
huggingface_hub.upload_file(
    path_or_fileobj=b"# Written there", path_in_repo="README.md", repo_id="alice/written", token=owner
)
pipe.push_to_hub("alice/written", token=owner)
pipe.save_pretrained(Path(copy, "again"), push_to_hub=True, repo_id="alice/again", token=owner)
Path(copy, "README.md").unlink()
pipe.push_to_hub("alice/bare", token=owner)
"""
    machine.run(code, owner=OWNER, copy=str(copy))
    cards = {name: hub.files(f"alice/{name}")["README.md"].decode() for name in ("named", "again", "bare")}
    assert cards["named"] == named_card(model_card("Tiny", resolution=32), "alice/named")
    assert 'from_pretrained("alice/again"' in cards["again"]
    assert "automatically generated" in cards["bare"]
    assert hub.files("alice/written")["README.md"] == b"# Written there"
    assert "unet/diffusion_pytorch_model.safetensors" in hub.files("alice/written")


def test_private_models_are_refused_with_what_to_do(visit):
    assert len(visit["refusals"]) == 2  # without a token, and with somebody else's
    for message in visit["refusals"]:
        assert "alice/pushed" in message
        assert "private" in message
        assert "token" in message


def test_loaded_with_diffusers_alone_where_magicedit_is_absent(hub, published, folder, machine, expected):
    code = """
try:
    import magicedit
except ModuleNotFoundError:
    result["absent"] = True
"""
    load = snippet(folder, f'from_pretrained("{REPO}", trust_remote_code=True)')
    download = "\nfrom huggingface_hub import snapshot_download\nsnapshot_download(repo)\n"
    online = machine.run(code + load + USE + download, magicedit=False, repo=REPO)
    assert online["absent"]
    assert same_model(online, expected)
    assert online["module"].startswith("diffusers_modules.")

    # diffusers 0.42 asks the hub for the commit of an id's code even offline, hence the folder
    asked_before = len(hub.requests)
    load = snippet(folder, "snapshot_download")
    offline = machine.run(code + load + USE, magicedit=False, offline=True)
    assert offline["absent"]
    assert same_model(offline, expected)
    assert len(hub.requests) == asked_before


def test_a_component_of_our_own_is_loaded_by_id_with_diffusers_alone(hub, machine, tmp_path_factory):
    """diffusers looks for the class of an `au_map` beside that component's weights."""
    config = PatchModelConfig(
        resolution=32,
        block_out_channels=(16, 32),
        attention_heads=2,
        norm_num_groups=8,
        au_encoder="latent_map",
    )
    pipeline, expected = create_patch_pipeline(config), {}
    exec(USE, {"pipe": pipeline, "result": expected})
    folder = tmp_path_factory.mktemp("pipelines") / "mapped"
    pipeline.save_pretrained(folder)
    publisher = Machine(tmp_path_factory.mktemp("mapper"), hub.url)
    code = "from magicedit.hub import push_folder\npush_folder(folder, repo)"
    publisher.run(code, token=OWNER, folder=str(folder), repo="alice/mapped")
    load = """
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained(repo, trust_remote_code=True)
"""
    assert same_model(machine.run(load + USE, magicedit=False, repo="alice/mapped"), expected)
