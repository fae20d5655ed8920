"""The loop trains a family that it has never heard of, see `toy_method`, without an edit of its own."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
import toy_method
from safetensors.torch import load_file
from toy_method import Adversarial, Points
from warm import run_ranks, run_warm

from magicedit.train.config import parse_config
from magicedit.train.loop import Run, train
from magicedit.train.methods import OBJECTIVES

ADVERSARIAL = [
    *("--objective=adversarial", "--train_data_dir=data", "--lr_warmup_steps=0", "--logging_steps=1"),
    *("--learning_rate=0.05", "--validation_steps=3", "--validation_pairs=0", "--checkpointing_steps=0"),
]


@pytest.fixture
def config(monkeypatch):
    monkeypatch.setitem(OBJECTIVES, "adversarial", Adversarial)

    def parse(output_dir, *more):
        return parse_config([*ADVERSARIAL, f"--output_dir={output_dir}", *more])

    return parse


def script(output_dir, *more, processes=1, **extra):
    """The finished process of a run of the toy's own script, of several one that failed, if any."""
    command = [toy_method.__file__, *ADVERSARIAL, f"--output_dir={output_dir}", *more]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"} | extra
    if processes == 1:
        return run_warm(command, environment)
    return max(run_ranks(processes, command, environment), key=lambda done: abs(done.returncode))


def checkpoint(folder: Path, step: int) -> dict[str, torch.Tensor]:
    files = (folder / f"checkpoint-{step}").glob("*.safetensors")
    return {f"{file.stem}.{name}": tensor for file in files for name, tensor in load_file(file).items()}


def validation_losses(folder: Path) -> dict[int, float]:
    """By step, as the log has them."""
    lines = map(json.loads, (folder / "train_log.jsonl").read_text().splitlines())
    return {line["step"]: line["validation_loss"] for line in lines if "validation_loss" in line}


def assert_equal(first, second):
    assert first.keys() == second.keys()
    assert not [name for name, tensor in first.items() if not torch.equal(tensor, second[name])]


def test_alternating_losses_are_those_of_a_loop_by_hand(config, tmp_path):
    """To the bit: each loss updates its own network, and the later one meets what the earlier one left."""
    run = Run(config(tmp_path, "--max_train_steps=5", "--train_batch_size=3", "--max_grad_norm=0.5"))
    by_hand = Adversarial(run.config, None)
    for name, module in by_hand.modules().items():
        module.load_state_dict(run.modules[name].state_dict())
    optimizers, points = by_hand.optimizers(), Points(run.config.seed)
    run.train()
    for step in range(5):
        batch = torch.utils.data.default_collate([points[n] for n in range(3 * step, 3 * step + 3)])
        for name, loss, _ in by_hand.losses(batch, by_hand.modules()):
            parameters = list(by_hand.modules()[name].parameters())
            for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                parameter.grad = gradient
            torch.nn.utils.clip_grad_norm_(parameters, 0.5)
            optimizers[name].step()
    for name, module in by_hand.modules().items():
        assert_equal(module.state_dict(), run.modules[name].state_dict())
    assert_equal(load_file(tmp_path / "generator.safetensors"), by_hand.generator.state_dict())
    lines = [json.loads(line) for line in (tmp_path / "train_log.jsonl").read_text().splitlines()]
    for name, rate in (("discriminator", 0.1), ("generator", 0.05)):
        assert [line[f"{name}_lr"] for line in lines] == [rate] * 5
        assert all(line[f"{name}_loss"] > 0 and line[f"{name}_grad_norm"] > 0 for line in lines)
    assert 0 < lines[0]["discriminator_real"] < 1
    assert not (tmp_path / "previews").exists()


def test_micro_batches_of_alternating_losses_are_one_batch(config, tmp_path):
    whole, parts = (
        Run(config(tmp_path / name, "--max_train_steps=4", f"--train_batch_size={size}", *more))
        for name, size, more in (("whole", 4, ()), ("parts", 2, ("--gradient_accumulation_steps=2",)))
    )
    for run in (whole, parts):
        run.train()
    for name, module in whole.modules.items():
        for key, tensor in module.state_dict().items():
            torch.testing.assert_close(parts.modules[name].state_dict()[key], tensor, rtol=1e-4, atol=1e-6)


def test_a_killed_adversarial_run_resumes_bit_equal(tmp_path):
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    flags = ("--max_train_steps=9", "--checkpointing_steps=2", "--train_batch_size=2", "--use_ema",
             "--lr_scheduler=cosine", "--gradient_accumulation_steps=2", "--validation_pairs=4")  # fmt: skip
    assert script(straight, *flags).returncode == 0
    assert script(killed, *flags, KILLED_AT="30").returncode == -signal.SIGKILL  # in the eighth step
    assert sorted(path.name for path in killed.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-6"]
    assert not (killed / "generator.safetensors").exists()
    assert script(killed, *flags, "--resume_from_checkpoint=latest").returncode == 0
    assert validation_losses(killed) == validation_losses(straight)
    assert len(validation_losses(straight)) == 3
    kept = [sorted(path.name for path in folder.glob("checkpoint-*")) for folder in (straight, killed)]
    assert kept[0] == kept[1]
    first = checkpoint(straight, 9)
    assert {name.split(".")[0] for name in first} == {
        *("generator", "discriminator", "generator_optimizer", "discriminator_optimizer", "ema")
    }
    assert_equal(first, checkpoint(killed, 9))
    exported = load_file(straight / "generator.safetensors")
    assert_equal(exported, load_file(killed / "generator.safetensors"))
    assert not torch.equal(exported["0.weight"], first["generator.0.weight"])  # it is the average


def test_two_processes_alternate_as_one(tmp_path):
    for name, size, processes in (("one", 2, 1), ("two", 1, 2)):
        # Of five pairs, the second process has none in the last round
        more = ("--max_train_steps=3", f"--train_batch_size={size}", "--validation_pairs=5")
        done = script(tmp_path / name, *more, processes=processes)
        assert done.returncode == 0, done.stderr[-4000:]
    one, two = (checkpoint(tmp_path / name, 3) for name in ("one", "two"))
    for key, tensor in one.items():
        torch.testing.assert_close(two[key], tensor, rtol=1e-4, atol=1e-6)
    losses = [validation_losses(tmp_path / name) for name in ("one", "two")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert losses[0].keys() == {3}


def test_a_non_finite_loss_leaves_out_its_own_update(config, tmp_path, monkeypatch):
    run = Run(config(tmp_path, "--max_train_steps=3"))
    losses = Adversarial.losses

    def broken(self, batch, networks):
        for name, loss, parts in losses(self, batch, networks):
            yield name, loss * (float("nan") if name == "discriminator" else 1.0), parts

    monkeypatch.setattr(Adversarial, "losses", broken)
    before = {name: module[0].weight.detach().clone() for name, module in run.modules.items()}
    assert run._train_step(iter(run._loader())) is None
    assert torch.equal(run.modules["discriminator"][0].weight, before["discriminator"])
    assert not torch.equal(run.modules["generator"][0].weight, before["generator"])


def test_a_single_optimizer_keeps_the_names_of_earlier_checkpoints(tiny_flags, tmp_path):
    train(parse_config(tiny_flags(tmp_path, "--max_train_steps=1")))
    folder = tmp_path / "checkpoint-1"
    assert {file.stem for file in folder.glob("*.safetensors")} == {"model", "optimizer", "ema"}
    assert set(json.loads((folder / "state.json").read_text())) == {
        *("step", "samples_seen", "world_size", "config", "versions", "optimizer", "lr_scheduler", "ema"),
        *("data", "groups"),
    }
    assert {name.split(".")[0] for name in load_file(folder / "model.safetensors")} == {
        *("unet", "reference_unet")
    }
