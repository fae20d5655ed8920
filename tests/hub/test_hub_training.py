"""A training run that publishes its result, against a real server of the hub's protocol."""

import json

from machines import OWNER
from tiny_models import tiny_patch_pipeline

TRAIN = """
from magicedit.train.train import main
result["code"] = main(flags)
"""

LOAD = """
from magicedit.models import load_pipeline
pipeline = load_pipeline(repo_id, device="cpu")
result["prediction"] = pipeline.config.prediction
result["total"] = float(sum(p.double().abs().sum() for p in pipeline.unet.parameters()))
"""

LOAD_FOLDER = f"""
published, repo_id, result = result, folder, {{}}
{LOAD}
result = published | {{"local": result}}
"""

PUSH_BASE = """
from magicedit.hub import push_folder
result["url"] = push_folder(folder, "alice/base", card="# base")
"""

INTO_BASE = """
def total(pipeline):
    return float(sum(p.double().abs().sum() for p in pipeline.unet.parameters()))

pipeline = load_pipeline(base, device="cpu")
result["plain"] = total(pipeline)
pipeline.load_lora_weights(repo_id, weight_name="pytorch_lora_weights.safetensors")
result["into base"] = total(pipeline)
"""

CARD = """
import huggingface_hub
text = open(huggingface_hub.hf_hub_download(repo_id, "README.md")).read()
result["card"] = {"text": text, "files": huggingface_hub.list_repo_files(repo_id)}
"""


def test_a_run_publishes_weights_and_card(machine, tiny_flags, tmp_path):
    flags = tiny_flags(tmp_path, "--max_train_steps=2", "--push_to_hub", "--hub_model_id=alice/from-training")
    done = machine.run(TRAIN, token=OWNER, flags=flags)
    assert done["code"] == 0
    online = machine.run(LOAD + CARD, repo_id="alice/from-training")
    card = online.pop("card")
    offline = machine.run(
        LOAD + LOAD_FOLDER, offline=True, repo_id="alice/from-training", folder=str(tmp_path)
    )
    local = offline.pop("local")
    assert online == offline == local
    assert "accelerate launch" in card["text"]
    assert not [name for name in card["files"] if name.startswith(("checkpoint-", "logs"))]


def test_a_run_that_may_not_push_keeps_its_result(machine, tiny_flags, tmp_path):
    flags = tiny_flags(tmp_path, "--max_train_steps=1", "--push_to_hub", "--hub_model_id=alice/refused")
    assert machine.run(TRAIN, flags=flags)["code"] == 2  # no token
    assert machine.run(LOAD, repo_id=str(tmp_path))["prediction"] == "flow_mask_paint"


def test_adapters_of_a_hubs_base_are_published_and_loaded_with_it(machine, pairs_folder, tmp_path):
    """The base is pinned to the commit that was trained on."""
    tiny_patch_pipeline().save_pretrained(tmp_path / "base")
    machine.run(PUSH_BASE, token=OWNER, folder=str(tmp_path / "base"))
    flags = ["--pretrained_model_name_or_path=alice/base", "--lora_rank=2", "--resolution=32"]
    flags += [f"--train_data_dir={pairs_folder}", f"--output_dir={tmp_path / 'run'}", "--max_train_steps=2"]
    flags += ["--train_batch_size=1", "--validation_steps=0", "--learning_rate=1e-2", "--lr_warmup_steps=0"]
    flags += ["--push_to_hub", "--hub_model_id=alice/adapters"]
    assert machine.run(TRAIN, token=OWNER, flags=flags)["code"] == 0
    base = json.loads((tmp_path / "run" / "lora_index.json").read_text())["base"]
    assert base["model"] == "alice/base"
    assert base["revision"] == base["fingerprint"]
    found = machine.run(LOAD + INTO_BASE + CARD, repo_id="alice/adapters", base="alice/base")
    assert found["into base"] == found["total"]
    assert found["plain"] != found["total"]
    assert "base_model: alice/base" in found["card"]["text"]
    files = [
        "README.md",
        "lora_index.json",
        "pytorch_lora_weights.safetensors",
        "scheduler/scheduler_config.json",
    ]
    assert set(files) <= set(found["card"]["files"])
    assert not [name for name in found["card"]["files"] if name.endswith(".py")]
