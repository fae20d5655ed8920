import json
import os
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from magicedit.errors import OutputError, TrainingError
from magicedit.files import sha256_of
from magicedit.train.state import (
    best_checkpoints,
    find_checkpoint,
    flatten_optimizer,
    list_checkpoints,
    load_checkpoint,
    recover_checkpoints,
    restore_optimizer,
    retire_checkpoints,
    save_checkpoint,
    verify_checkpoint,
)


def save(folder, step, limit=None, value=None):
    tensors = {"model": {"weight": torch.full((3, 2), float(step if value is None else value))}}
    return save_checkpoint(folder, step, tensors, {"step": step}, limit)


def test_round_trip(tmp_path):
    folder = save(tmp_path, 5)
    tensors, state = load_checkpoint(folder)
    assert state == {"step": 5}
    assert torch.equal(tensors["model"]["weight"], torch.full((3, 2), 5.0))


@pytest.mark.parametrize(
    "damage", ["truncated", "flipped", "missing file", "missing manifest", "torn manifest"]
)
def test_latest_is_the_newest_that_verifies(tmp_path, damage):
    good, bad = save(tmp_path, 5), save(tmp_path, 10)
    weights, manifest = bad / "model.safetensors", bad / "manifest.json"
    content = weights.read_bytes()
    match damage:
        case "truncated":
            weights.write_bytes(content[:-1])
        case "flipped":
            weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        case "missing file":
            weights.unlink()
        case "missing manifest":
            manifest.unlink()
        case "torn manifest":
            manifest.write_text(manifest.read_text()[:20])
    assert not verify_checkpoint(bad)
    assert find_checkpoint(tmp_path, "latest") == good
    with pytest.raises(TrainingError, match="not a whole checkpoint"):
        find_checkpoint(tmp_path, "checkpoint-10")


def test_half_written_folders_are_not_checkpoints(tmp_path):
    (tmp_path / "tmp-20").mkdir()
    (tmp_path / "tmp-20" / "model.safetensors").write_bytes(b"half")
    assert find_checkpoint(tmp_path, "latest") is None
    save(tmp_path, 20)
    assert find_checkpoint(tmp_path, "latest").name == "checkpoint-20"
    assert not (tmp_path / "tmp-20").exists()


def test_old_ones_go_only_after_the_new_one_is_whole(tmp_path):
    for step in (1, 2, 3):
        save(tmp_path, step, limit=2)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["checkpoint-3", "checkpoint-2"]
    with pytest.raises(TypeError):  # what JSON cannot hold stops the writing half-way
        save_checkpoint(tmp_path, 4, {"model": {"weight": torch.zeros(1)}}, {"step": object()}, 1)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["checkpoint-3", "checkpoint-2"]


def test_a_step_may_be_written_again(tmp_path):
    save(tmp_path, 3, value=1)
    folder = save(tmp_path, 3, value=2)
    assert load_checkpoint(folder)[0]["model"]["weight"].unique().tolist() == [2.0]


@pytest.mark.parametrize("target", ["old-3", "checkpoint-3"])
@pytest.mark.parametrize("before", [True, False])
def test_a_checkpoint_killed_between_its_renames_is_found(tmp_path, monkeypatch, target, before):
    """Killed before the old folder, or the new one, gets its name; with and without an old one."""
    if before:
        save(tmp_path, 3, value=1)
    rename = Path.rename

    def killed(self, to):
        if Path(to).name == target:
            raise KeyboardInterrupt
        return rename(self, to)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt) if before or target == "checkpoint-3" else nullcontext():
            save(tmp_path, 3, value=2)
    recover_checkpoints(tmp_path)
    assert not (tmp_path / "old-3").exists()
    found = find_checkpoint(tmp_path, "latest")
    assert found == find_checkpoint(tmp_path, "checkpoint-3") == tmp_path / "checkpoint-3"
    expected = 1.0 if before and target == "old-3" else 2.0
    assert load_checkpoint(found)[0]["model"]["weight"].unique().tolist() == [expected]
    save(tmp_path, 3, value=4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-3"]


def test_an_old_checkpoint_is_found_where_the_new_one_is_torn(tmp_path):
    save(tmp_path, 3, value=1).rename(tmp_path / "old-3")
    (tmp_path / "tmp-3").mkdir()
    (tmp_path / "tmp-3" / "model.safetensors").write_bytes(b"half")
    (tmp_path / "old-times").mkdir()
    recover_checkpoints(tmp_path)
    assert load_checkpoint(find_checkpoint(tmp_path, "latest"))[1] == {"step": 3}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-3", "old-times"]


def test_optimizer_round_trip_continues_bit_equal(tmp_path):
    def make():
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 4)
        return model, torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)

    def step(model, optimizer, k):
        optimizer.zero_grad()
        model(torch.full((2, 4), float(k + 1))).pow(2).sum().backward()
        optimizer.step()

    model, optimizer = make()
    for k in range(3):
        step(model, optimizer, k)
    tensors, rest = flatten_optimizer(optimizer)
    folder = save_checkpoint(
        tmp_path, 3, {"optimizer": tensors, "model": model.state_dict()}, {"rest": rest}, None
    )
    loaded, state = load_checkpoint(folder)
    other, other_optimizer = make()
    other.load_state_dict(loaded["model"])
    restore_optimizer(other_optimizer, loaded["optimizer"], json.loads(json.dumps(state["rest"])))
    for k in range(3, 6):
        step(model, optimizer, k)
        step(other, other_optimizer, k)
    assert torch.equal(model.weight, other.weight)


@pytest.mark.parametrize("now", [True, False])
def test_a_restored_optimizer_computes_as_it_was_made(now):
    """A checkpoint of before fused optimisers, or of a device that has them, goes on on any."""

    def make(fused):
        parameter = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        return parameter, torch.optim.AdamW([parameter], lr=0.1, weight_decay=0.1, fused=fused)

    def step(parameter, optimizer, k):
        parameter.grad = torch.tensor([0.5, -1.0]) * (k + 1)
        optimizer.step()

    saved = make(not now)
    for k in range(3):
        step(*saved, k)
    tensors, rest = flatten_optimizer(saved[1])
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}  # as a file has them
    parameter, optimizer = make(now)
    parameter.data.copy_(saved[0].data)
    restore_optimizer(optimizer, tensors, json.loads(json.dumps(rest)))
    assert optimizer.param_groups[0]["fused"] is now
    for k in range(3, 6):
        step(*saved, k)
        step(parameter, optimizer, k)
    torch.testing.assert_close(parameter, saved[0], rtol=1e-6, atol=0)  # other rounding in one pass


def test_pruning_never_touches_later_or_just_written_steps(tmp_path):
    """A run that starts again at an earlier step keeps what it writes."""
    for step in (900, 1000):
        save(tmp_path, step)
    for step in (400, 500, 600):
        save(tmp_path, step, limit=2)
    assert [p.name for p in list_checkpoints(tmp_path)] == [f"checkpoint-{s}" for s in (1000, 900, 600, 500)]


def test_nested_optimizer_state_round_trips():
    """As 8-bit optimisers hold it: quantisation tables beside the state, in a dict of their own."""

    def make(value):
        parameter = torch.nn.Parameter(torch.zeros(2))
        optimizer = torch.optim.SGD([parameter], lr=0.1)
        optimizer.state[parameter] = {"step": 3, "quant": {"map": torch.full((2,), value), "block": 256}}
        return optimizer

    tensors, rest = flatten_optimizer(make(7.0))
    other = make(0.0)
    restore_optimizer(other, tensors, json.loads(json.dumps(rest)))
    (state,) = other.state.values()
    assert state["step"] == 3
    assert state["quant"]["block"] == 256
    assert state["quant"]["map"].tolist() == [7.0, 7.0]


# --- Damage ---


@pytest.mark.parametrize(
    "manifest",
    [
        *(b"", b"null", b"[]", b"7", b"\xff\xfe{", b"[" * 100_000, b"9" * 5000, b'{"sha256": {}}'),
        *(b'{"sha256": []}', b'{"sha256": "model"}', b'{"sha256": {"state.json": 7}}', b"{}"),
    ],
    ids=range(12),
)
def test_whatever_a_manifest_holds_the_one_before_is_taken(tmp_path, manifest, caplog):
    good, bad = save(tmp_path, 5), save(tmp_path, 10)
    (bad / "manifest.json").write_bytes(manifest)
    assert find_checkpoint(tmp_path, "latest") == good
    assert f"{bad} is damaged and skipped" in caplog.text
    with pytest.raises(TrainingError, match="not a whole checkpoint"):
        find_checkpoint(tmp_path, "checkpoint-10")


def rewritten(folder, change):
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    change(content["sha256"])
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("name", ["/etc/hostname", "../secret", "a\0b", "a" * 5000, "..", ""])
def test_a_manifest_names_files_of_its_folder_only(tmp_path, name):
    (tmp_path / "secret").write_text("x")
    digest = sha256_of(tmp_path / "secret")
    folder = save(tmp_path, 5)
    rewritten(folder, lambda hashes: hashes.update({name: digest}))
    assert not verify_checkpoint(folder)


def test_a_manifest_leaves_no_group_out(tmp_path):
    folder = save(tmp_path, 5)
    rewritten(folder, lambda hashes: hashes.pop("model.safetensors"))
    assert not verify_checkpoint(folder)


def test_only_listed_files_are_loaded(tmp_path):
    folder = save(tmp_path, 5)
    (folder / "planted.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    (folder / "other.safetensors").write_bytes(b"no tensors")
    assert load_checkpoint(folder)[0].keys() == {"model"}


@pytest.mark.parametrize("kind", ["pipe", "endless device", "folder"])
def test_what_is_no_file_does_not_verify(tmp_path, kind):
    folder = save(tmp_path, 5)
    weights = folder / "model.safetensors"
    weights.unlink()
    match kind:
        case "pipe":
            os.mkfifo(weights)
        case "endless device":
            weights.symlink_to("/dev/zero")
        case "folder":
            weights.mkdir()
    assert not verify_checkpoint(folder)


def test_checkpoints_of_an_abandoned_branch_are_set_aside(tmp_path):
    for step in (4, 8, 12):
        save(tmp_path, step)
    names = [path.name for path in retire_checkpoints(tmp_path, 4)]
    assert names == ["abandoned-12", "abandoned-8"]
    assert find_checkpoint(tmp_path, "latest") == tmp_path / "checkpoint-4"
    save(tmp_path, 8)
    assert [path.name for path in retire_checkpoints(tmp_path, 4)] == ["abandoned-8-2"]


def test_a_damaged_checkpoint_is_replaced_by_a_whole_one_beside_it(tmp_path):
    save(tmp_path, 3, value=1).rename(tmp_path / "old-3")
    folder = save(tmp_path, 3, value=2)
    (tmp_path / "old-3").mkdir(exist_ok=True)
    (folder / "model.safetensors").write_bytes(b"half")
    save(tmp_path / "elsewhere", 3, value=1).rename(tmp_path / "tmp-3")
    recover_checkpoints(tmp_path)
    assert load_checkpoint(tmp_path / "checkpoint-3")[0]["model"]["weight"].unique().tolist() == [1.0]


@pytest.mark.parametrize("record", [7, [], {"loss": 1.0}, {"loss": "low", "meaning": {}}])
def test_a_state_with_an_unusable_validation_is_of_no_best_checkpoint(tmp_path, record):
    tensors = {"model": {"weight": torch.zeros(1)}}
    save_checkpoint(tmp_path, 1, tensors, {"validation": {"loss": 2.0, "meaning": {}}}, None)
    save_checkpoint(tmp_path, 2, tensors, {"validation": record}, None)
    assert [folder.name for folder in best_checkpoints(tmp_path)] == ["checkpoint-1"]


def test_a_checkpoint_that_cannot_be_written_is_an_error_that_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="could not be written"):
        save(tmp_path / "file", 3)
