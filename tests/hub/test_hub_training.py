"""A training run that publishes its result, against a real server of the hub's protocol."""

from machines import OWNER

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
