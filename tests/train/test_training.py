"""Real training runs, each of seconds, on tiny models."""

import dataclasses
import hashlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import randomise_new_layers, tiny_stable_diffusion
from warm import run_warm

from magicedit.errors import MagicEditError, ModelError, OutputError, TrainingError
from magicedit.files import locked
from magicedit.models import from_stable_diffusion, load_pipeline
from magicedit.train import loop
from magicedit.train.config import parse_config
from magicedit.train.loop import Run, train
from magicedit.train.methods import composed
from magicedit.train.samples import SampleOrder
from magicedit.train.train import main

REPOSITORY = Path(__file__).resolve().parents[2]
ENTRY = str(REPOSITORY / "train" / "train.py")


def environment(**extra):
    return os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"} | extra


def weights(folder):
    return load_file(folder / "unet" / "diffusion_pytorch_model.safetensors") | {
        f"reference.{k}": v
        for k, v in load_file(folder / "reference_unet" / "diffusion_pytorch_model.safetensors").items()
    }


def assert_same_weights(first, second):
    first, second = weights(first), weights(second)
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different


def log(folder):
    return [json.loads(line) for line in (folder / "train_log.jsonl").read_text().splitlines()]


def test_a_run_ends_in_a_pipeline_with_a_card(tiny_flags, tmp_path):
    train(parse_config(tiny_flags(tmp_path, "--max_train_steps", "3", "--validation_steps", "2")))
    pipeline = load_pipeline(tmp_path, device="cpu")
    assert pipeline.config.prediction == "flow_mask_paint"
    card = (tmp_path / "README.md").read_text()
    assert "--block_out_channels 16,32" in card
    assert "| 2 | 1 |" in card  # photographs and people
    assert not {"ann", "bob"} & set(re.findall(r"\w+", card))  # nobody's name
    assert [p.name for p in (tmp_path / "previews").iterdir()] == ["step-0000002.png"]
    assert [line["step"] for line in log(tmp_path)] == [1, 2, 3]
    assert all(line["images_per_second"] > 0 for line in log(tmp_path))


def test_training_learns(tiny_flags, tmp_path):
    """Warped pairs of one photograph: the first things learned are to copy, then to move."""
    steps = ("--max_train_steps", "40", "--checkpointing_steps", "0", "--warped", "1", "--no_augment")
    train(parse_config(tiny_flags(tmp_path, *steps)))
    losses = [line["pixels"] for line in log(tmp_path)]
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])


def run_killed(flags, folder, after_step):
    """Starts the entry point and kills it, without warning, once the log shows `after_step`."""
    process = subprocess.Popen(
        [sys.executable, ENTRY, *flags],
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and process.poll() is None:
        file = folder / "train_log.jsonl"
        if file.exists() and len(file.read_text().splitlines()) >= after_step:
            break
        time.sleep(0.02)
    assert process.poll() is None, "the run ended before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_a_killed_and_resumed_run_ends_bit_equal(tiny_flags, tmp_path):
    steps = ("--max_train_steps", "40", "--checkpointing_steps", "3", "--gradient_accumulation_steps", "2",
             "--lr_scheduler", "cosine")  # fmt: skip
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    run_warm([ENTRY, *tiny_flags(straight, *steps)], environment()).check_returncode()
    run_killed(tiny_flags(killed, *steps), killed, after_step=8)
    assert not (killed / "model_index.json").exists()
    resumed = tiny_flags(killed, *steps, "--resume_from_checkpoint", "latest")
    run_warm([ENTRY, *resumed], environment()).check_returncode()
    assert_same_weights(straight, killed)


def test_the_end_of_a_run_ends_the_processes_that_prepare_batches(tiny_flags, tmp_path):
    """They ignore signals, and Python waits for them at its exit."""
    before = multiprocessing.active_children()
    run = Run(parse_config(tiny_flags(tmp_path, "--max_train_steps", "1", "--dataloader_num_workers", "2")))
    run.train()
    assert multiprocessing.active_children() == before


def test_two_processes_train_and_save(tiny_flags, tmp_path):
    """As the docs start them: nothing tells the launcher that there is no GPU."""
    flags = tiny_flags(tmp_path, "--max_train_steps", "3", "--train_batch_size", "1")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", ENTRY]
    result = subprocess.run(
        [*launcher, *flags],
        env=environment(CUDA_VISIBLE_DEVICES=""),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    assert json.loads((tmp_path / "train_config.json").read_text())["world_size"] == 2
    state = json.loads((tmp_path / "checkpoint-3" / "state.json").read_text())
    assert state["world_size"] == 2
    assert state["samples_seen"] == 3 * 2
    assert all(torch.isfinite(weight).all() for weight in weights(tmp_path).values())


def test_a_used_folder_is_not_trained_into_unasked(tiny_flags, tmp_path):
    train(parse_config(tiny_flags(tmp_path, "--max_train_steps=1")))
    with pytest.raises(TrainingError, match="resume_from_checkpoint"):
        train(parse_config(tiny_flags(tmp_path, "--max_train_steps=1")))
    with pytest.raises(TrainingError, match="use_ema"):
        train(
            parse_config(
                tiny_flags(tmp_path, "--max_train_steps=2", "--no_use_ema", "--resume_from_checkpoint=latest")
            )
        )


def test_two_processes_see_what_one_sees():
    def order(rank, world_size, batch_size):
        return list(SampleOrder(2, 4, 2, batch_size, rank, world_size))

    together = sorted(order(0, 2, 3) + order(1, 2, 3))
    assert together == sorted(order(0, 1, 6)) == list(range(24, 48))
    assert not set(order(0, 2, 3)) & set(order(1, 2, 3))


def test_non_finite_steps_change_nothing(tiny_flags, tmp_path, monkeypatch):
    run = Run(parse_config(tiny_flags(tmp_path, "--max_train_steps", "8")))
    objective = composed.composed_objective
    calls = iter(range(100))

    def sometimes_infinite(*args, **kwargs):
        result = objective(*args, **kwargs)
        factor = float("nan") if next(calls) in (2, 3) else 1.0
        return dataclasses.replace(result, total=result.total * factor)

    monkeypatch.setattr(composed, "composed_objective", sometimes_infinite)
    batches = iter(run._loader())
    for step in range(6):
        before = [p.detach().clone() for p in run.parameters]
        averages = [p.clone() for p in run.ema.shadow_params]
        logged = run._train_step(batches)
        same = all(torch.equal(a, b) for a, b in zip(before, run.parameters, strict=True))
        same_average = all(torch.equal(a, b) for a, b in zip(averages, run.ema.shadow_params, strict=True))
        assert (logged is None) == same == same_average == (step in (2, 3))


def test_a_run_that_stays_non_finite_is_given_up(tiny_flags, tmp_path):
    flags = tiny_flags(
        tmp_path, "--max_train_steps", "50", "--learning_rate", "1e20", "--checkpointing_steps", "0"
    )
    with pytest.raises(TrainingError, match="not finite"):
        train(parse_config(flags))
    assert not (tmp_path / "model_index.json").exists()


@pytest.fixture(scope="module")
def sd_folder(tmp_path_factory):
    return tiny_stable_diffusion(tmp_path_factory.mktemp("sd"))


def sd_flags(pairs_folder, sd_folder, output_dir, *more):
    return [
        f"--pretrained_model_name_or_path={sd_folder}",
        f"--train_data_dir={pairs_folder}",
        f"--output_dir={output_dir}",
        "--resolution=64",
        "--train_batch_size=2",
        "--max_train_steps=3",
        "--validation_steps=0",
        "--lr_warmup_steps=0",
        "--learning_rate=1e-3",
        *more,
    ]


@pytest.mark.parametrize(
    "more",
    [
        (),
        ("--gradient_checkpointing", "--gradient_accumulation_steps", "2"),
        ("--lora_rank", "4", "--merge", "--use_ema"),
        ("--freeze_reference", "--no_cache_latents"),
        ("--warped", "1", "--augment"),
    ],
    ids=["full", "checkpointing", "lora", "frozen reference", "warped"],
)
def test_stable_diffusion_layout_trains(pairs_folder, sd_folder, tmp_path, more):
    train(parse_config(sd_flags(pairs_folder, sd_folder, tmp_path, *more)))
    before = load_file(sd_folder / "unet" / "diffusion_pytorch_model.safetensors")
    after = weights(tmp_path)

    def moved(name):
        return not torch.equal(before[name], after[name])

    assert moved("mid_block.attentions.0.transformer_blocks.0.attn1.to_k.weight")  # merged, where it is LoRA
    assert not any("lora" in name for name in after)
    assert after["class_embedding.weight"].abs().max() > 0
    assert after["conv_in.weight"][:, 4:].abs().max() > 0
    first = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    assert torch.equal(before[first], after["reference." + first]) == ("--freeze_reference" in more)
    resnet = "mid_block.resnets.0.conv1.weight"
    assert moved(resnet) != ("--lora_rank" in more)
    pipeline = load_pipeline(tmp_path, device="cpu")
    assert pipeline.vae is not None
    assert pipeline.config.prediction == "noise"


def test_cached_latents_are_those_of_the_images(pairs_folder, sd_folder, tmp_path):
    run = Run(parse_config(sd_flags(pairs_folder, sd_folder, tmp_path)))
    assert set(run.method.latents) == {"image", "condition"}
    cached = next(iter(run._loader()))
    from_cache = run.method._encode({k: v for k, v in cached.items() if torch.is_tensor(v)})
    for row in range(2):
        image, _ = run.method.pairs.record_images(int(cached["source_index"][row]))
        _, condition = run.method.pairs.record_images(int(cached["target_index"][row]))
        with torch.no_grad():
            identity, background = (run.method.pipeline.encode_images(x[None])[0] for x in (image, condition))
        torch.testing.assert_close(from_cache["identity"][row], identity, rtol=0, atol=1e-5)
        torch.testing.assert_close(from_cache["condition"][row], background, rtol=0, atol=1e-5)


def test_training_goes_on_from_our_own_folder(tiny_flags, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    train(parse_config(tiny_flags(first, "--max_train_steps", "2")))
    train(
        parse_config(
            tiny_flags(
                second,
                "--max_train_steps",
                "1",
                "--pretrained_model_name_or_path",
                str(first),
                "--learning_rate",
                "1e-9",
            )
        )
    )
    for name, tensor in weights(first).items():
        torch.testing.assert_close(weights(second)[name], tensor, rtol=0, atol=1e-6)


def test_a_published_checkpoint_trains_on(pairs_folder, sd_folder, tmp_path):
    """MagicFace's layout holds the two UNets only; the rest comes from its base model."""
    unet, reference_unet = from_stable_diffusion(sd_folder)
    randomise_new_layers(unet)
    unet.save_pretrained(tmp_path / "magicface" / "denoising_unet")
    reference_unet.save_pretrained(tmp_path / "magicface" / "ID_enc")
    file = tmp_path / "magicface" / "denoising_unet" / "diffusion_pytorch_model.safetensors"
    save_file({k.replace("class_embedding.", "au_aug_mlp."): v for k, v in load_file(file).items()}, file)
    flags = sd_flags(pairs_folder, tmp_path / "magicface", tmp_path / "out", "--learning_rate=1e-9")
    with pytest.raises(ModelError, match="base_model"):
        train(parse_config(flags))
    train(parse_config([*flags, f"--base_model={sd_folder}", "--max_train_steps=1"]))
    trained = load_pipeline(tmp_path / "out", device="cpu")
    for name, tensor in unet.state_dict().items():
        torch.testing.assert_close(trained.unet.state_dict()[name], tensor, rtol=0, atol=1e-6)


def test_previews_and_losses_reach_the_tracker(tiny_flags, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    flags = tiny_flags(tmp_path, "--max_train_steps=2", "--validation_steps=2", "--report_to=tensorboard")
    train(parse_config(flags))
    events = EventAccumulator(str(tmp_path / "logs" / "magicedit")).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2]
    assert [event.step for event in events.Images("preview")] == [2]


def test_a_run_starts_from_another_at_another_resolution(tiny_flags, tmp_path):
    """One step at no learning rate: the earlier run's weights, a finer head, the new size."""
    first = tmp_path / "first"
    train(parse_config(tiny_flags(first, "--max_train_steps", "2", "--fine_flow", "false")))
    more = ["--pretrained_model_name_or_path", str(first), "--resolution", "48", "--learning_rate", "1e-12"]
    with pytest.raises(ModelError, match="--resolution 32, not 48, or with --refine"):
        train(parse_config(tiny_flags(tmp_path / "second", *more)))
    more.append("--refine")
    train(parse_config(tiny_flags(tmp_path / "second", "--max_train_steps", "1", *more)))
    old, new = load_pipeline(first, device="cpu"), load_pipeline(tmp_path / "second", device="cpu")
    assert new.config.resolution == new.unet.config.sample_size * 4 == 48
    assert (old.unet.config.out_channels, new.unet.config.out_channels) == (66, 98)
    for name, tensor in old.unet.state_dict().items():
        torch.testing.assert_close(new.unet.state_dict()[name][: len(tensor)], tensor, rtol=0, atol=1e-6)
    assert new.unet.conv_out.weight[66:].abs().max() < 1e-6


def test_training_resumes_from_a_checkpoint_that_was_being_replaced(tiny_flags, tmp_path):
    """As a kill between the two renames leaves it."""
    train(parse_config(tiny_flags(tmp_path, "--max_train_steps", "2")))
    (tmp_path / "checkpoint-2").rename(tmp_path / "old-2")
    with pytest.raises(TrainingError, match="holds checkpoints of an earlier run"):
        train(parse_config(tiny_flags(tmp_path, "--max_train_steps", "3")))
    (tmp_path / "checkpoint-2").rename(tmp_path / "old-2")
    flags = tiny_flags(tmp_path, "--max_train_steps", "3", "--resume_from_checkpoint", "latest")
    assert Run(parse_config(flags)).step == 2


def test_a_checkpoint_of_before_fine_flow_says_what_differs(tiny_flags, tmp_path):
    train(parse_config(tiny_flags(tmp_path, "--max_train_steps", "1", "--fine_flow", "false")))
    (checkpoint,) = tmp_path.glob("checkpoint-*")
    state = json.loads((checkpoint / "state.json").read_text())
    del state["config"]["fine_flow"]
    (checkpoint / "state.json").write_text(json.dumps(state))
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    digest = hashlib.sha256((checkpoint / "state.json").read_bytes()).hexdigest()
    manifest["sha256"]["state.json"] = digest
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(TrainingError, match="other settings: fine_flow"):
        train(parse_config(tiny_flags(tmp_path, "--resume_from_checkpoint", "latest")))


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        (("--train_data_dir", "nowhere"), MagicEditError, "nowhere"),
        (("--pretrained_model_name_or_path", "nowhere/at/all"), ModelError, "nowhere/at/all"),
        (("--resolution", "36"), ModelError, "divisible by 8"),
        (("--lr_scheduler", "nope"), TrainingError, "lr_scheduler nope"),
        (("--lr_scheduler", "piecewise_constant"), TrainingError, "needs more than a name"),
        (("--report_to", "nonsense"), TrainingError, "report_to must be none or an installed tracker"),
        (("--attention_heads", "1000"), ModelError, "attention_heads"),
        (("--resume_from_checkpoint", "checkpoint-7"), TrainingError, "checkpoint-7"),
    ],
)
def test_what_a_user_can_get_wrong(tiny_flags, tmp_path, more, error, message):
    with pytest.raises(error, match=message):
        train(parse_config(tiny_flags(tmp_path, "--max_train_steps", "1", *more)))


def test_the_entry_point_ends_with_one_line_and_2(tiny_flags, tmp_path):
    flags = tiny_flags(tmp_path, "--train_data_dir", str(tmp_path / "none"))
    result = run_warm([ENTRY, *flags], environment())
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith("train.py: error: ")
    assert "Traceback" not in result.stderr


def test_one_of_several_processes_exits_at_once_after_an_unexpected_error(monkeypatch, capsys):
    """At Python's ordinary end it may wait for processes that wait for it."""

    def fail(argv):
        raise RuntimeError("no such collective")

    monkeypatch.setattr("magicedit.train.config.parse_config", fail)
    monkeypatch.setattr("os._exit", sys.exit)
    with pytest.raises(RuntimeError):
        main([])
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 1
    assert capsys.readouterr().err.splitlines()[-1] == "RuntimeError: no such collective"


def test_a_killed_worker_costs_no_step(tiny_flags, tmp_path, monkeypatch):
    flags = ["--max_train_steps=20", "--checkpointing_steps=0", "--dataloader_num_workers=1"]
    run = Run(parse_config(tiny_flags(tmp_path, *flags)))
    log = run._log

    def logged(*arguments):
        log(*arguments)
        if run.step == 2:
            for worker in multiprocessing.active_children():
                worker.kill()

    monkeypatch.setattr(run, "_log", logged)
    with pytest.raises(TrainingError, match="prepares batches was killed after step"):
        run.train()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == [f"checkpoint-{run.step}"]
    assert 2 <= run.step < 20


# --- The output folder ---


def test_a_second_run_into_a_folder_is_refused(tiny_flags, tmp_path):
    """Before it touches anything there, and where it begins to train."""
    run = Run(parse_config(tiny_flags(tmp_path)))
    (tmp_path / "tmp-4").mkdir()  # as of the run that is saving
    with locked(tmp_path):
        with pytest.raises(OutputError, match=f"another run is writing into {tmp_path}"):
            Run(parse_config(tiny_flags(tmp_path)))
        with pytest.raises(OutputError, match=f"another run is writing into {tmp_path}"):
            run.train()
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["tmp-4"]


@pytest.mark.parametrize("name", ["file", "file/below", "a" * 300, "\0"])
def test_an_output_folder_that_cannot_be_made_is_one_sentence(tiny_flags, tmp_path, name):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written to"):
        train(parse_config([*tiny_flags(tmp_path), f"--output_dir={tmp_path}/{name}"]))


def test_a_named_resume_sets_later_checkpoints_aside(tiny_flags, tmp_path):
    """Killed before its first checkpoint, it goes on from the one that was named."""
    first, second = tmp_path / "first", tmp_path / "second"
    more = ("--max_train_steps=3", "--checkpointing_steps=1", "--checkpoints_total_limit=none")
    train(parse_config(tiny_flags(first, *more)))

    def resumed(folder, which):
        return Run(parse_config(tiny_flags(folder, *more, f"--resume_from_checkpoint={which}"))).step

    assert resumed(second, first / "checkpoint-2") == 2  # of another folder: it becomes this one's
    assert resumed(second, "latest") == 2
    assert resumed(first, "checkpoint-1") == 1
    assert resumed(first, "latest") == 1
    names = [path.name for path in first.iterdir() if "-" in path.name]
    assert sorted(names) == ["abandoned-2", "abandoned-3", "checkpoint-1"]


def test_a_resumed_abandoned_branch_is_what_latest_finds(tiny_flags, tmp_path):
    more = ("--max_train_steps=3", "--checkpointing_steps=1", "--checkpoints_total_limit=none")
    train(parse_config(tiny_flags(tmp_path, *more)))
    file = next(tmp_path.glob("checkpoint-3/*.safetensors")).relative_to(tmp_path)
    wanted = (tmp_path / file).read_bytes()
    train(parse_config(tiny_flags(tmp_path, *more, "--resume_from_checkpoint=checkpoint-1", "--seed=7")))
    assert (tmp_path / file).read_bytes() != wanted
    # Killed before its next checkpoint
    assert Run(parse_config(tiny_flags(tmp_path, *more, "--resume_from_checkpoint=abandoned-3"))).step == 3
    assert (tmp_path / file).read_bytes() == wanted
    assert Run(parse_config(tiny_flags(tmp_path, *more, "--resume_from_checkpoint=latest"))).step == 3
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-3"]


def test_resuming_says_where_the_dataset_changed(tiny_flags, pairs_folder, tmp_path, caplog):
    train(parse_config(tiny_flags(tmp_path / "run", "--max_train_steps=1")))
    other = shutil.copytree(pairs_folder, tmp_path / "other")
    again = tiny_flags(tmp_path / "run", "--max_train_steps=2", "--resume_from_checkpoint=latest")
    Run(parse_config([*again, f"--train_data_dir={other}"]))
    assert "another dataset" not in caplog.text  # its place does not matter
    shard = other / "data" / "train-00000.parquet"
    table = pq.read_table(shard)
    rows = table.to_pylist()
    rows[0]["action_units"][0] = 4.5
    pq.write_table(table.from_pylist(rows, table.schema), shard)
    Run(parse_config([*again, f"--train_data_dir={other}"]))
    assert "resuming with another dataset than before" in caplog.text


# --- Other ways to encode AUs and identity ---

VARIANTS = [
    *(("padded", "unet"), ("latent_map", "unet")),
    *(("linear", "convolution"), ("linear", "clip"), ("linear", "none"), ("latent_map", "clip")),
]
each_variant = pytest.mark.parametrize(
    ("au_encoder", "identity_encoder"), VARIANTS, ids=["-".join(v) for v in VARIANTS]
)


def variant_flags(au_encoder, identity_encoder):
    return ["--au_encoder", au_encoder, "--identity_encoder", identity_encoder, "--concat_identity", "false"]


@each_variant
def test_a_variant_trains_and_is_saved(tiny_flags, tmp_path, au_encoder, identity_encoder):
    flags = tiny_flags(tmp_path, *variant_flags(au_encoder, identity_encoder), "--max_train_steps", "2")
    run = Run(parse_config(flags))
    start = {k: v.clone() for k, v in run.method.networks.state_dict().items()}
    run.train()
    trained = {k: v for k, v in run.method.networks.state_dict().items() if not torch.equal(v, start[k])}
    folders = {name.split(".")[0] for name in start}
    assert {name.split(".")[0] for name in trained} == folders
    assert folders == {"unet"} | (
        {"reference_unet"} if identity_encoder == "unet" else set()
    ) | ({"image_encoder"} if identity_encoder == "clip" else set()) | (
        {"au_map"} if au_encoder == "latent_map" else set()
    )  # fmt: skip

    averaged = dict(zip([id(p) for p in run.parameters], run.ema.shadow_params, strict=True))
    loaded = load_pipeline(tmp_path, device="cpu")
    for name, parameter in run.method.networks.named_parameters():
        part, rest = name.split(".", 1)
        expected = averaged.get(id(parameter), parameter)
        assert torch.equal(getattr(loaded, part).get_parameter(rest), expected), name
    assert f"--identity_encoder {identity_encoder}" in (tmp_path / "README.md").read_text() or (
        identity_encoder == "unet"
    )


@each_variant
@pytest.mark.parametrize("prediction", ["flow_mask_paint", "noise"])
def test_every_trained_parameter_of_a_variant_gets_a_gradient(
    tiny_flags, tmp_path, au_encoder, identity_encoder, prediction
):
    """Else data parallelism waits for it in vain and refuses to go on."""
    flags = tiny_flags(tmp_path, *variant_flags(au_encoder, identity_encoder), "--prediction", prediction)
    run = Run(parse_config(flags))
    _, loss, _ = next(run.method.losses(next(iter(run._loader())), run.networks))
    loss.backward()
    named = dict(run.method.networks.named_parameters())
    assert not [name for name, p in named.items() if p.requires_grad and p.grad is None]
    frozen = {name for name, p in named.items() if not p.requires_grad}
    assert all("reference_unet" in name or "post_layernorm" in name for name in frozen), frozen
    for part in ("image_encoder", "au_map"):
        reached = [
            bool(p.grad.abs().max() > 0) for n, p in named.items() if n.startswith(part) and p.requires_grad
        ]
        assert not reached or sum(reached) > 0.8 * len(reached)  # a key's bias changes no softmax


def test_a_variant_goes_on_from_its_folder_with_lora(tiny_flags, tmp_path):
    """The denoiser's matrices by LoRA, the AU map in full; the image encoder stays what it was."""
    first, second = tmp_path / "first", tmp_path / "second"
    train(parse_config(tiny_flags(first, *variant_flags("latent_map", "clip"), "--max_train_steps", "1")))
    more = ["--pretrained_model_name_or_path", str(first), "--lora_rank=2", "--merge", "--max_train_steps=1"]
    train(parse_config(tiny_flags(second, *more)))
    old, new = load_pipeline(first, device="cpu"), load_pipeline(second, device="cpu")

    def moved(part):
        before, after = (getattr(pipeline, part).state_dict() for pipeline in (old, new))
        return {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}

    assert {name.split(".")[0] for name in moved("au_map")} == {"layers"}
    assert "conv_in.weight" in moved("unet")
    assert "conv_out.weight" not in moved("unet")
    assert not moved("image_encoder")


def test_freezing_the_reference_freezes_the_image_encoder(tiny_flags, tmp_path):
    flags = variant_flags("linear", "clip")
    run = Run(parse_config(tiny_flags(tmp_path, *flags, "--freeze_reference", "--max_train_steps", "1")))
    start = {k: v.clone() for k, v in run.method.networks.image_encoder.state_dict().items()}
    run.train()
    assert all(torch.equal(v, start[k]) for k, v in run.method.networks.image_encoder.state_dict().items())


@pytest.mark.parametrize("known", [True, False], ids=["now", "before there were variants"])
@pytest.mark.parametrize("other", [("au_encoder", "padded"), ("identity_encoder", "none")])
def test_a_checkpoint_refuses_another_variant(tiny_flags, tmp_path, monkeypatch, known, other):
    """By the name of the setting, before its tensors do not fit."""
    train(parse_config(tiny_flags(tmp_path, "--max_train_steps", "1")))
    opened = loop.Checkpoint.open

    def open_old(folder):
        saved = opened(folder)
        settings = saved.state["config"].items()
        config = {k: v for k, v in settings if known or not k.endswith("_encoder")}
        return dataclasses.replace(saved, state=saved.state | {"config": config})

    monkeypatch.setattr(loop.Checkpoint, "open", open_old)
    again = ["--max_train_steps", "2", "--resume_from_checkpoint", "latest"]
    with pytest.raises(TrainingError, match=f"other settings: {other[0]}"):
        train(parse_config(tiny_flags(tmp_path, *again, f"--{other[0]}", other[1])))
    train(parse_config(tiny_flags(tmp_path, *again)))


def test_an_interrupted_variant_ends_bit_equal(tiny_flags, tmp_path):
    flags = [*variant_flags("latent_map", "clip"), "--lr_scheduler", "constant"]
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    train(parse_config(tiny_flags(straight, *flags, "--max_train_steps", "3")))
    train(parse_config(tiny_flags(resumed, *flags, "--max_train_steps", "2")))
    again = ["--max_train_steps", "3", "--resume_from_checkpoint", "latest"]
    train(parse_config(tiny_flags(resumed, *flags, *again)))
    for file in straight.glob("*/*.safetensors"):
        if file.parent.name.startswith("checkpoint"):
            continue
        first, second = load_file(file), load_file(resumed / file.relative_to(straight))
        assert all(torch.equal(tensor, second[name]) for name, tensor in first.items()), file


@pytest.mark.parametrize("setting", ["au_encoder", "identity_encoder"])
def test_unknown_encoders_end_before_the_data_is_read(tiny_flags, tmp_path, setting):
    flags = tiny_flags(tmp_path, f"--{setting}", "nonsense", "--train_data_dir", "nowhere")
    with pytest.raises(ModelError, match=r"got .*nonsense"):
        train(parse_config(flags))
