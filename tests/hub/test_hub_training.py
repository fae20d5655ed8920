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


def test_a_run_publishes_weights_and_card(machine, tiny_flags, tmp_path):
    flags = tiny_flags(tmp_path, "--max_train_steps=2", "--push_to_hub", "--hub_model_id=alice/from-training")
    done = machine.run(TRAIN, token=OWNER, flags=flags)
    assert done["code"] == 0
    online = machine.run(LOAD, repo_id="alice/from-training")
    offline = machine.run(LOAD, offline=True, repo_id="alice/from-training")
    local = machine.run(LOAD, repo_id=str(tmp_path))
    assert online == offline == local
    card = machine.run(
        "import huggingface_hub\n"
        "result['text'] = open(huggingface_hub.hf_hub_download(repo_id, 'README.md')).read()\n"
        "result['files'] = huggingface_hub.list_repo_files(repo_id)",
        repo_id="alice/from-training",
    )
    assert "accelerate launch" in card["text"]
    assert not [name for name in card["files"] if name.startswith(("checkpoint-", "logs"))]


def test_a_run_that_may_not_push_keeps_its_result(machine, tiny_flags, tmp_path):
    flags = tiny_flags(tmp_path, "--max_train_steps=1", "--push_to_hub", "--hub_model_id=alice/refused")
    assert machine.run(TRAIN, flags=flags)["code"] == 2  # no token
    assert machine.run(LOAD, repo_id=str(tmp_path))["prediction"] == "flow_mask_paint"
