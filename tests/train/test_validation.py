"""The validation loss: the same draws every time, nothing of training changed, the best checkpoint kept."""

import dataclasses
import json
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_models import tiny_stable_diffusion
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from toy_method import Adversarial, Points

from magicedit.data import prepare_dataset
from magicedit.errors import TrainingError
from magicedit.train import compiled
from magicedit.train.config import parse_config
from magicedit.train.loop import Run, train
from magicedit.train.methods import OBJECTIVES
from magicedit.train.state import best_checkpoints, list_checkpoints
from magicedit.train.validation import evaluating

FLAGS = ["--resolution=32", "--train_batch_size=2", "--lr_warmup_steps=0", "--logging_steps=1"]
FLAGS += ["--learning_rate=1e-3", "--validation_faces=1"]
SMALL = ["--block_out_channels=16,32", "--attention_heads=2", "--default_steps=2"]
UNET = ["--block_out_channels=8,16", "--layers_per_block=1", "--default_steps=2"]
FAMILIES = {
    "composed": [*SMALL, "--warped=1", "--augment", "--use_ema"],
    "noise": [*SMALL, "--warped=1", "--prediction=noise"],
    "flow": [
        "--objective=flow-autoencoder",
        "--warped=1",
        "--settings=channels=8,latent_size=4,confidence_channels=4,early_stopping_patience=0",
    ],
    "ganimation": [
        "--objective=ganimation",
        "--warped=1",
        "--settings=channels=4,blocks=1,style_size=4,critic_channels=4,critic_steps=2",
    ],
    "emotion-vae": ["--objective=emotion-vae", "--augment", "--settings=vae_channels=4,vae_levels=2"],
    "attribute": [
        *(*UNET, "--objective=attribute-diffusion", "--warped=1"),
        "--settings=feature_channels=4,predicts=picture",
    ],
}


def log(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "train_log.jsonl").read_text().splitlines()]


def checkpoint(folder: Path, step: int) -> dict[str, torch.Tensor]:
    files = (folder / f"checkpoint-{step}").glob("*.safetensors")
    return {f"{file.stem}.{name}": tensor for file in files for name, tensor in load_file(file).items()}


@pytest.fixture(scope="module")
def sd_folder(tmp_path_factory) -> Path:
    return tiny_stable_diffusion(tmp_path_factory.mktemp("sd"))


@pytest.fixture
def config(pairs_folder):
    def parse(output_dir, *more, data=pairs_folder):
        return parse_config([*FLAGS, f"--train_data_dir={data}", f"--output_dir={output_dir}", *more])

    return parse


@pytest.fixture(scope="module")
def resting(closed_mouth, tmp_path_factory) -> Path:
    """Two people at rest, the second for validation: emotions are warps of such."""
    photographs = tmp_path_factory.mktemp("photographs")
    for name, picture in (("ann", closed_mouth), ("bob", np.ascontiguousarray(closed_mouth[:, ::-1]))):
        (photographs / name).mkdir()
        Image.fromarray(picture).save(photographs / name / "one.png")
    output = tmp_path_factory.mktemp("datasets") / "resting"
    prepare_dataset(photographs, output, size=64, validation=["bob"], progress=False)
    return output


# --- The loss -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_validation_changes_no_bit_of_training(config, resting, tmp_path, family):
    flags = (*FAMILIES[family], "--max_train_steps=3")
    with_it = ("--validation_steps=1", "--validation_pairs=3")
    train(config(tmp_path / "with", *flags, *with_it, data=resting))
    train(config(tmp_path / "without", *flags, "--validation_steps=0", data=resting))
    measured = {"images_per_second", "data_share", "mfu", "memory_mb"}
    own = [{k: v for k, v in line.items() if k not in measured} for line in log(tmp_path / "without")]
    validated = log(tmp_path / "with")
    assert [{name: line[name] for name in own[0]} for line in validated] == own
    losses = [line["validation_loss"] for line in validated]
    assert all(loss > 0 for loss in losses)
    assert len(set(losses)) == 3  # it is of the weights, which move
    one, other = (checkpoint(tmp_path / name, 3) for name in ("with", "without"))
    assert one.keys() == other.keys()
    assert not [name for name, tensor in one.items() if not torch.equal(tensor, other[name])]


def test_latents_of_held_out_emotions_are_not_kept(config, resting, tmp_path):
    vae = config(tmp_path / "vae", *FAMILIES["emotion-vae"], "--max_train_steps=1", data=resting)
    train(dataclasses.replace(vae, validation_steps=0))
    flags = (*UNET, "--objective=emotion-diffusion", f"--pretrained_model_name_or_path={tmp_path / 'vae'}")
    run = Run(config(tmp_path / "run", *flags, "--validation_pairs=4", data=resting))
    assert run.validation.losses(run.networks, run.accelerator)["validation_loss"] > 0
    assert not run.method._encoded


def test_the_loss_is_of_the_weights_alone(config, tmp_path):
    """Neither the seed, nor the step, nor how often it was computed changes it; other weights do."""
    flags = (*SMALL, "--warped=0.5", "--validation_pairs=6")
    runs = [Run(config(tmp_path / f"{seed}", *flags, f"--seed={seed}")) for seed in (0, 7)]
    for name, module in runs[1].modules.items():
        module.load_state_dict(runs[0].modules[name].state_dict())
    first, second, again = (run.validation.losses(run.networks, run.accelerator) for run in (*runs, runs[1]))
    assert first == second == again
    with torch.no_grad():
        runs[1].parameters[0].add_(0.1)
    assert runs[1].validation.losses(runs[1].networks, runs[1].accelerator) != first


def test_a_resumed_run_has_the_same_losses(config, tmp_path):
    steps = ("--validation_steps=1", "--validation_pairs=3", "--checkpointing_steps=2", "--use_ema", *SMALL)
    train(config(tmp_path / "straight", *steps, "--max_train_steps=4"))
    train(config(tmp_path / "resumed", *steps, "--max_train_steps=2"))
    train(config(tmp_path / "resumed", *steps, "--max_train_steps=4", "--resume_from_checkpoint=latest"))
    straight, resumed = (
        [line["validation_loss"] for line in log(tmp_path / n)] for n in ("straight", "resumed")
    )
    assert straight == resumed
    assert len(straight) == 4


def test_the_loss_reaches_progress_and_tracker(config, tmp_path, capsys):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    steps = ("--max_train_steps=3", "--validation_steps=2", "--validation_pairs=2", "--logging_steps=3")
    train(config(tmp_path, *SMALL, *steps, "--report_to=tensorboard"))
    (line,) = [line for line in log(tmp_path) if line["step"] == 2]  # which is not logged but for this
    events = EventAccumulator(str(tmp_path / "logs" / "magicedit")).Reload()
    (event,) = events.Scalars("validation_loss")
    assert (event.step, event.value) == (2, pytest.approx(line["validation_loss"], rel=1e-5))
    assert f"validation_loss={line['validation_loss']:.4f}" in capsys.readouterr().err


def test_a_mean_of_uneven_batches_is_of_the_samples(config, tmp_path):
    run = Run(config(tmp_path, *SMALL, "--validation_pairs=5"))
    whole = run.validation.losses(run.networks, run.accelerator)["validation_loss"]
    with evaluating(run.networks), torch.no_grad():
        rows = [torch.utils.data.default_collate([run.validation.samples[n]]) for n in range(5)]
        single = [float(run.method.validate(row, run.networks)["loss"]) for row in rows]
    assert whole == pytest.approx(sum(single) / 5, rel=1e-4)


def test_people_of_the_validation_split_are_shown(config, tmp_path):
    run = Run(config(tmp_path, *SMALL))
    assert {record.identity for record in run.validation.samples.pairs.records} == {"bob"}
    assert {record.identity for record in run.method.pairs.records} == {"ann"}


def test_without_a_validation_split_that_is_said_once(tmp_path, caplog, closed_mouth):
    (tmp_path / "photos").mkdir()
    Image.fromarray(closed_mouth).save(tmp_path / "photos" / "one.png")
    prepare_dataset(tmp_path / "photos", tmp_path / "data", size=64, validation=[], progress=False)
    flags = [*FLAGS, *SMALL, f"--train_data_dir={tmp_path / 'data'}", f"--output_dir={tmp_path / 'run'}"]
    flags += ["--warped=1", "--max_train_steps=2", "--validation_steps=1"]
    with caplog.at_level("INFO"):
        train(parse_config(flags))
    assert caplog.text.count("there is no validation loss: ") == 1
    assert not any("validation_loss" in line for line in log(tmp_path / "run"))


def test_ganimation_without_known_targets_has_no_loss(config, tmp_path, caplog):
    with caplog.at_level("INFO"):
        run = Run(config(tmp_path, *FAMILIES["ganimation"], "--warped=0"))
    assert run.validation is None
    assert "there is no validation loss: --objective ganimation has none here" in caplog.text


def test_modes_are_as_before(config, tmp_path):
    """A frozen reference is in evaluation mode already, and stays in it."""
    run = Run(config(tmp_path, *SMALL, "--freeze_reference", "--validation_pairs=1"))
    modes = [module.training for module in run.method.networks.modules()]
    with evaluating(run.networks):
        assert not any(module.training for module in run.method.networks.modules())
    assert [module.training for module in run.method.networks.modules()] == modes
    assert len(set(modes)) == 2


@pytest.mark.slow
def test_compiled_networks_are_not_compiled_again_to_be_validated(config, tmp_path, monkeypatch):
    import torch._dynamo

    monkeypatch.setattr(compiled, "BACKEND", "aot_eager")  # no compiler is needed
    monkeypatch.setenv("CXX", sys.executable)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    more = ("--compile", "--max_train_steps=2", "--validation_steps=1", "--validation_pairs=3")
    train(config(tmp_path, *SMALL, *more))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2  # of both networks' training
    assert all(line["validation_loss"] > 0 for line in log(tmp_path))
    torch._dynamo.reset()


# --- Memory -------------------------------------------------------------------------------------------------


class PeakBytes(TorchDispatchMode):
    """Bytes of the storages that were made within it and are alive, at most."""

    def __init__(self):
        super().__init__()
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in self._known:
                storage = tensor.untyped_storage()
                self._known.add(storage._cdata)
                self.live += storage.nbytes()
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self._freed, storage._cdata, storage.nbytes())
        return out

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


@pytest.mark.parametrize("more", [(), ("--freeze_reference",), ("--gradient_checkpointing",)])
def test_validation_takes_less_memory_than_a_step(config, tmp_path, sd_folder, more):
    """From cached latents, so that training never has the autoencoder's activations; previews neither."""
    base = (f"--pretrained_model_name_or_path={sd_folder}", "--resolution=64", "--validation_pairs=3")
    run = Run(config(tmp_path, *base, "--max_train_steps=2", *more))
    batches = run._batches()
    run._train_step(batches)
    with PeakBytes() as training:
        run._train_step(batches)
    with PeakBytes() as validating:
        run.validation.losses(run.networks, run.accelerator)
    assert 0 < validating.peak < training.peak


def test_previews_have_no_larger_batches_than_training(config, tmp_path):
    run = Run(config(tmp_path, *SMALL, "--validation_faces=2", "--default_guidance_scale=1"))
    rows, first_layer = [], run.method.networks.unet.conv_in
    first_layer.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    picture = run.method.preview()
    assert max(rows) == run.config.train_batch_size
    assert picture.shape == (2 * 32, 8 * 32, 3)  # a face a row, its source and seven requests


# --- The best checkpoint ------------------------------------------------------------------------------------


class Told(Adversarial):
    """Its validation losses are those of `losses_of`, by the number of times that they were asked for."""

    losses_of: tuple[float, ...] = ()

    def held_out(self) -> Points:
        return Points(1)

    def validate(self, batch, networks):
        self.asked = getattr(self, "asked", 0) + 1
        return {"loss": torch.tensor(self.losses_of[self.asked - 1])}


@pytest.fixture
def told(monkeypatch, tmp_path):
    monkeypatch.setitem(OBJECTIVES, "adversarial", Told)

    def run(losses, *more, output_dir=tmp_path):
        monkeypatch.setattr(Told, "losses_of", losses)
        flags = ["--objective=adversarial", "--train_data_dir=data", "--lr_warmup_steps=0"]
        flags += ["--validation_steps=1", "--validation_pairs=1", "--checkpoints_total_limit=1"]
        return Run(parse_config([*flags, f"--output_dir={output_dir}", *more]))

    return run


def steps(folder: Path) -> list[int]:
    return sorted(int(path.name.split("-")[1]) for path in list_checkpoints(folder))


def test_the_best_checkpoint_is_never_pruned(told, tmp_path):
    told((5.0, 3.0, 4.0, 6.0, 7.0), "--max_train_steps=5", "--checkpointing_steps=1").train()
    assert steps(tmp_path) == [2, 5]


def test_a_new_lowest_loss_is_saved_at_once(told, tmp_path):
    """Though checkpoints are due at other steps; not where none are due before the end."""
    told((5.0, 3.0, 4.0), "--max_train_steps=3", "--checkpointing_steps=100").train()
    assert steps(tmp_path) == [2, 3]
    told(
        (5.0, 3.0, 4.0), "--max_train_steps=3", "--checkpointing_steps=0", output_dir=tmp_path / "end"
    ).train()
    assert steps(tmp_path / "end") == [3]


def test_a_resumed_run_remembers_the_best(told, tmp_path):
    told((5.0, 3.0, 4.0), "--max_train_steps=3", "--checkpointing_steps=1").train()
    more = ("--max_train_steps=5", "--checkpointing_steps=1", "--resume_from_checkpoint=latest")
    told((3.5, 9.0), *more).train()
    assert steps(tmp_path) == [2, 5]
    told((1.0,), "--max_train_steps=6", *more[1:]).train()
    assert steps(tmp_path) == [6]


def test_a_run_resumes_from_the_best(told, tmp_path):
    told((5.0, 3.0, 4.0), "--max_train_steps=3", "--checkpointing_steps=1").train()
    more = ("--max_train_steps=3", "--checkpointing_steps=1", "--resume_from_checkpoint=best")
    run = told((9.0,), *more)
    assert run.step == 2
    assert run.best == (3.0, 2)
    assert (tmp_path / "abandoned-3").is_dir()
    run.train()
    assert steps(tmp_path) == [2, 3]


def test_a_damaged_best_is_skipped_by_name(told, tmp_path, caplog):
    told((5.0, 3.0, 4.0), "--max_train_steps=3", "--checkpointing_steps=1").train()
    (tmp_path / "checkpoint-2" / "generator.safetensors").write_bytes(b"gone")
    run = told((9.0,), "--max_train_steps=3", "--resume_from_checkpoint=best")
    assert run.step == 3
    assert "checkpoint-2 is damaged and skipped: generator.safetensors was changed" in caplog.text


def test_losses_of_other_samples_are_not_compared(told, tmp_path):
    told((1.0,), "--max_train_steps=1").train()
    more = ("--max_train_steps=2", "--validation_pairs=2", "--resume_from_checkpoint=latest")
    run = told((8.0, 8.0), *more, "--train_batch_size=1")
    assert run.best is None
    run.train()
    assert [path.name for path in best_checkpoints(tmp_path)] == ["checkpoint-2"]


def test_an_infinite_loss_is_never_the_best(told, tmp_path):
    told((float("nan"), 4.0, float("inf")), "--max_train_steps=3", "--checkpointing_steps=1").train()
    assert steps(tmp_path) == [2, 3]


def test_without_a_validated_checkpoint_there_is_no_best(told, tmp_path):
    told((), "--max_train_steps=1", "--validation_pairs=0").train()
    with pytest.raises(TrainingError, match="has a validation loss; resume from latest instead"):
        told((), "--max_train_steps=2", "--resume_from_checkpoint=best")
