"""Networks split over two processes, by the configurations that are committed for accelerate."""

import json
import re
import socket
from pathlib import Path

import pytest
import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.state import AcceleratorState
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from test_training import ENTRY, REPOSITORY, environment, weights
from tiny_models import tiny_stable_diffusion
from warm import run_ranks

from magicedit.errors import TrainingError
from magicedit.models import load_pipeline
from magicedit.train.config import parse_config
from magicedit.train.loop import Run
from magicedit.train.samples import Latents
from magicedit.train.state import find_checkpoint, load_checkpoint, verify_checkpoint

STEPS = 4
RUN = ("--prediction=noise", "--mixed_precision=no", f"--max_train_steps={STEPS}", "--checkpointing_steps=2")
RESUMED = "--resume_from_checkpoint="
UNUSED = ("--block_out_channels", "--attention_heads", "--use_ema")  # by all objectives
BAD = 2  # the step whose loss is not a number in the last process

# Trains several times in the same processes: JSON of flags, and of the step after which the last process gets
# a SIGTERM, 0: none. Prints the losses of each run and how many numbers of the last this process held.
RUNS = f"""
import json, os, signal, sys
import torch
from magicedit.train.config import parse_config
from magicedit.train.loop import Run

def part(parameter):
    return getattr(parameter, "_local_tensor", parameter).detach().clone()

def watched(flags, stop=0):
    run, losses = Run(parse_config(flags)), []
    last = run.accelerator.is_last_process
    log, step, loss = run._log, run._train_step, run.method._loss

    def logged(values, progress):
        log(values, progress)
        losses.append((run.step, values["loss"], values["grad_norm"]))
        if last and run.step == stop:
            os.kill(os.getpid(), signal.SIGTERM)

    def lost(*arguments):
        value, parts = loss(*arguments)
        return value * (float("nan") if last and run.step + 1 == {BAD} else 1.0), parts

    def stepped(batches):
        before = [part(p) for p in run.parameters]
        done = step(batches)
        same = all(torch.equal(part(p), q) for p, q in zip(run.parameters, before))
        assert same == (done is None) == (run.step + 1 == {BAD}), (run.step, same)
        return done

    run._log, run._train_step, run.method._loss = logged, stepped, lost
    return run, losses
"""
IN_RANKS = """
runs = []  # kept: freeing one would join Gloo's threads
for flags, stop in json.loads(sys.argv[1]):
    runs.append(watched(flags, stop))
    runs[-1][0].accelerator.end_training = lambda: None  # the next run needs the processes' group
    runs[-1][0].train()
held = sum(part(p).numel() for p in runs[-1][0].parameters)
print(json.dumps({"held": held, "losses": [losses for _, losses in runs]}))
sys.stdout.flush()
os._exit(0)
"""


def in_one(flags: list[str]) -> list[tuple[int, float, float]]:
    """Trains in this process; returns step, loss and norm of gradients of each step that was applied."""
    names: dict = {}
    exec(RUNS, names)
    run, losses = names["watched"](flags)
    run.train()
    return losses


def launched(name: str) -> dict[str, str]:
    """The environment of processes that `accelerate launch` starts by a configuration."""
    config = REPOSITORY / "train" / "configs" / "accelerate" / f"{name}.yaml"
    words = ["--config_file", str(config), "--num_processes", "2", ENTRY]
    arguments, *_ = _validate_launch_command(launch_command_parser().parse_args(words))
    if arguments.use_deepspeed:
        arguments.deepspeed_fields_from_accelerate_config = ""
        found = prepare_deepspeed_cmd_env(arguments)[1]
    else:
        found = prepare_multi_gpu_env(arguments)
    named = ("ACCELERATE_", "FSDP_")
    return environment(CUDA_VISIBLE_DEVICES="", DS_ACCELERATOR="cpu") | {
        key: value for key, value in found.items() if key.startswith(named)
    }


def in_two(name: str, runs: list, timeout: float = 900) -> list[dict]:
    """Runs `RUNS` in two processes; returns what they printed."""
    if name.startswith("deepspeed"):
        pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
    ended = run_ranks(2, ["-c", RUNS + IN_RANKS, json.dumps(runs)], launched(name), timeout)
    assert [process.returncode for process in ended] == [0, 0], ended[0].stderr[-4000:]
    return [json.loads(process.stdout.splitlines()[-1]) for process in ended]


def assert_same_checkpoints(first: Path, second: Path) -> None:
    (first, _), (second, _) = load_checkpoint(first), load_checkpoint(second)
    assert first.keys() == second.keys()
    for group in first:
        different = [key for key, x in first[group].items() if not torch.equal(x, second[group][key])]
        assert not different, group


def close(first: list, second: list) -> bool:
    """Whether steps, losses and norms of gradients are equal but for rounding."""
    assert [step for step, *_ in first] == [step for step, *_ in second]
    losses, norms = ([abs(a[i] - b[i]) for a, b in zip(first, second, strict=True)] for i in (1, 2))
    return max(losses) <= 1e-5 and max(norms) <= 1e-4


@pytest.fixture
def check_engine(tiny_flags, tmp_path):
    """Trains with an engine in two processes, and holds the result to that of one process."""

    def check(name: str, *more: str) -> Path:
        def flags(folder, batch, *further):
            return tiny_flags(tmp_path / folder, *RUN, f"--train_batch_size={batch}", *more, *further)

        one, straight, stopped = (tmp_path / folder for folder in ("one", "straight", "stopped"))
        middle = f"{RESUMED}{straight / 'checkpoint-2'}"
        runs = [
            (flags("straight", 1, "--validation_steps=3", "--validation_pairs=2"), 0),
            (flags("stopped", 1, middle), 3),
            (flags("stopped", 1, f"{RESUMED}latest"), 0),
        ]
        found = in_two(name, runs)
        alone = in_one(flags("one", 2))
        assert [step for step, *_ in alone] == [1, 3, 4]
        assert close(alone, found[0]["losses"][0])
        saved = load_checkpoint(one / f"checkpoint-{STEPS}")[0]
        trained = sum(x.numel() for x in saved["ema"].values())
        assert all(process["held"] < 0.55 * trained for process in found)
        assert [path.name for path in (straight / "previews").iterdir()] == ["step-0000003.png"]
        assert weights(straight).keys() == weights(one).keys()
        assert load_pipeline(straight, device="cpu").config.prediction == "noise"

        # Resumed, stopped by SIGTERM to one of them, and resumed again
        assert [len(losses) for losses in found[0]["losses"]] == [3, 1, 1]
        assert {path.name for path in stopped.glob("checkpoint-*")} == {"checkpoint-3", "checkpoint-4"}
        assert_same_checkpoints(straight / "checkpoint-4", stopped / "checkpoint-4")

        # Another engine and another number of processes
        rest = in_one(flags("resumed", 2, middle))
        assert close(rest, found[0]["losses"][0][1:])
        return straight

    return check


def test_fsdp2_trains_as_one_process_does_and_resumes_equally(check_engine):
    folder = check_engine("fsdp2") / f"checkpoint-{STEPS}"
    names = {path.name for path in folder.iterdir()}
    assert {"manifest.json", "state.json"} < names
    assert all(re.fullmatch(r"shard-0000[12]-.*\.safetensors|(state|manifest)\.json", name) for name in names)

    # Damage is noticed; what the manifest does not name is not read
    (folder / "shard-00009-model-00001-of-00001.safetensors").write_bytes(b"planted")
    assert len(load_checkpoint(folder)[0]) == 3
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["sha256"][min(name for name in names if name.startswith("shard"))]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert not verify_checkpoint(folder)
    assert find_checkpoint(folder.parent, "latest").name == "checkpoint-3"


@pytest.mark.slow
def test_deepspeed_zero2_trains_as_one_process_does_and_resumes_equally(check_engine):
    check_engine("deepspeed-zero2")


@pytest.fixture
def alone(monkeypatch):
    """Makes this process the only one of an engine's."""

    def enter(name: str, changes: dict[str, str]) -> None:
        if name.startswith("deepspeed"):
            pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        ranks = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
        for key, value in {**launched(name), **place, **ranks, **changes}.items():
            monkeypatch.setenv(key, value)
        AcceleratorState._reset_state(reset_partial_state=True)

    yield enter
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize(
    ("name", "more", "changes", "message"),
    [
        ("fsdp2", ("--compile",), {}, "--compile does not work with sharded networks"),
        ("fsdp2", (), {"FSDP_VERSION": "1"}, "set fsdp_version: 2"),
        ("fsdp2", (), {"FSDP_ACTIVATION_CHECKPOINTING": "true"}, "--gradient_checkpointing instead"),
        ("fsdp2", (), {"FSDP_TRANSFORMER_CLS_TO_WRAP": "Layer"}, "cannot be split.*class Layer in the model"),
        ("fsdp2", ("--objective=ganimation",), {}, "--objective ganimation cannot be sharded"),
        ("deepspeed-zero2", ("--mixed_precision=fp16",), {}, "fp16 does not work with DeepSpeed; set bf16"),
        ("deepspeed-zero2", (), {"ACCELERATE_DEEPSPEED_CONFIG_FILE": "none.json"}, "cannot be set up"),
    ],
)
def test_what_an_engine_excludes_is_one_sentence(alone, tiny_flags, tmp_path, name, more, changes, message):
    alone(name, changes)
    with pytest.raises(TrainingError, match=message):
        Run(parse_config([flag for flag in tiny_flags(tmp_path, *more) if not flag.startswith(UNUSED)]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"gradient_accumulation_steps": 4}, "gradient_accumulation_steps to 4, but --gradient_acc.* is 2"),
        ({"train_micro_batch_size_per_gpu": 8}, "per_gpu to 8, but --train_batch_size is 2"),
        ({"gradient_clipping": 0.5}, "gradient_clipping to 0.5, but --max_grad_norm is 1.0"),
        ({"optimizer": {"type": "AdamW"}}, "its own optimizer"),
        ({"bf16": {"enabled": True}}, "set --mixed_precision"),
        ({"zero_optimization": {"stage": 0}}, "ZeRO stage 0; set it to 2 or 3"),
        (
            {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}},
            "offload_optimizer to cpu",
        ),
    ],
)
def test_a_deepspeed_configuration_that_contradicts_flags_is_one_sentence(
    alone, tiny_flags, tmp_path, content, message
):
    path = tmp_path / "deepspeed.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 2}} | content))
    alone("deepspeed-zero2", {"ACCELERATE_DEEPSPEED_CONFIG_FILE": str(path)})
    with pytest.raises(TrainingError, match=message):
        Run(parse_config(tiny_flags(tmp_path / "run", "--gradient_accumulation_steps=2")))


def test_networks_become_whole_whatever_buffers_they_have(alone, tiny_flags, tmp_path):
    """CLIP's encoder has one that state dicts leave out."""
    alone("fsdp2", {})
    flags = ("--identity_encoder=clip", "--prediction=noise", "--mixed_precision=no", "--validation_pairs=0")
    run = Run(parse_config(tiny_flags(tmp_path, *flags)))
    own = dict(run.method.networks.image_encoder.named_parameters())
    buffers = dict(run.method.networks.image_encoder.named_buffers())
    for _ in range(2):
        with run.engine.whole(torch.device("cpu")) as method:
            encoder = method.networks.image_encoder
            for name, parameter in encoder.named_parameters():
                assert torch.equal(parameter, own[name].full_tensor())
            assert buffers.keys() == dict(encoder.named_buffers()).keys() != set()
            assert all(torch.equal(buffer, buffers[name]) for name, buffer in encoder.named_buffers())
        assert all(parameter.is_meta for parameter in run.engine.skeleton.parameters())


def test_latents_of_several_files_are_found_by_number(tmp_path):
    shape = torch.Size((2, 1, 3))
    whole = torch.arange(5 * shape.numel(), dtype=torch.float32).view(5, *shape)
    for number, part in enumerate(whole.split(2)):
        (tmp_path / str(number)).write_bytes(part.numpy().tobytes())
    latents = Latents([tmp_path / str(number) for number in range(3)], shape, 5)
    numbers = torch.tensor([4, 0, 3, 1, 2, 0])
    assert torch.equal(latents[numbers], whole[numbers])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fsdp2", "deepspeed-zero3"])
def test_adapters_train_from_latents_that_processes_share(check_engine, tmp_path, name):
    base = tiny_stable_diffusion(tmp_path / "base")
    latents = (f"--pretrained_model_name_or_path={base}", "--resolution=64", "--no_augment", "--warped=0")
    check_engine(name, *latents, "--lora_rank=4", "--merge")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("deepspeed-zero3", ()),
        ("fsdp2", ("--gradient_checkpointing", "--gradient_accumulation_steps=2")),
        ("fsdp2", ("--freeze_reference", "--no_augment")),
        ("deepspeed-zero2", ("--freeze_reference", "--no_augment", "--gradient_accumulation_steps=2")),
        ("deepspeed-zero3", ("--gradient_accumulation_steps=2",)),
    ],
)
def test_engines_with_other_settings(check_engine, name, more):
    check_engine(name, *more)
