import dataclasses
import os
import shlex
from pathlib import Path

import pytest
import yaml

from magicedit.errors import ModelError, TrainingError
from magicedit.models import checks
from magicedit.train import config as config_module
from magicedit.train.config import TrainConfig, parse_config
from magicedit.train.publish import command_of

RECIPES = sorted(p.stem for p in (Path(config_module.__file__).parent / "configs").glob("*.yaml"))


def test_flags_win_over_yaml_over_defaults(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump({"seed": 3, "learning_rate": 2e-4, "block_out_channels": [8, 16]}))
    config = parse_config(["--config", str(file), "--seed", "5", "--train_data_dir", "data"])
    assert config.seed == 5
    assert config.learning_rate == 2e-4
    assert config.block_out_channels == (8, 16)
    assert config.au_dropout == 0.1


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_valid_and_repeated_by_the_command_of_a_card(name):
    named = {"train_data_dir": "data", "push_to_hub": True, "hub_model_id": "ann/mine"}
    if name == "sd15-lora":  # whose adapters need a base
        named["pretrained_model_name_or_path"] = "sd15"
    recipe = parse_config(["--config", name, *(f"--{setting}={value}" for setting, value in named.items())])
    assert recipe != TrainConfig(**named)
    command = shlex.split(command_of(recipe, processes=2))
    assert command[:5] == ["torchrun", "--standalone", "--nproc_per_node", "2", "train/train.py"]
    again = parse_config(command[5:])
    words = None if recipe.settings is None else {key: str(value) for key, value in recipe.settings.items()}
    mine = {"settings": words, "push_to_hub": False, "hub_model_id": None}  # nobody pushes to the author's
    assert again == dataclasses.replace(recipe, **mine)


def test_a_command_names_folders_without_their_place_and_hub_ids_whole(tmp_path):
    settings = {"transfer_from": str(tmp_path / "first"), "relative": True}
    config = TrainConfig(
        objective="ganimation",
        settings=settings,
        train_data_dir=str(tmp_path / "people"),
        pretrained_model_name_or_path="ann/base",
    )
    command = command_of(config)
    assert str(tmp_path) not in command
    assert "--settings transfer_from=first,relative=True --pretrained_model_name_or_path ann/base" in command
    assert "--train_data_dir people" in command


@pytest.mark.parametrize("place", ["output_dir", "train_data_dir"])
def test_an_empty_name_is_not_taken_for_the_current_folder(place):
    with pytest.raises(TrainingError, match=f"--{place} must be a name"):
        TrainConfig(**{"train_data_dir": "data"} | {place: ""})


@pytest.mark.parametrize("license", ["other", ""])
def test_a_licence_that_needs_a_name_is_refused_before_training(license):
    with pytest.raises(TrainingError, match="--license must be an identifier of the hub"):
        TrainConfig(train_data_dir="data", license=license)


def test_settings_of_an_objective_are_a_mapping(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("{objective: flow-autoencoder, settings: {channels: 8}}\n")
    flags = ["--config", str(file), "--train_data_dir", "data"]
    assert parse_config(flags).settings == {"channels": 8}
    assert parse_config([*flags, "--settings", "channels=4,relative=true"]).settings == {
        "channels": "4",
        "relative": "true",
    }
    with pytest.raises(TrainingError, match="settings must be of type dict"):
        parse_config([*flags, "--settings", "channels"])
    with pytest.raises(TrainingError, match="settings must be empty: --objective pairs has none"):
        parse_config([*flags, "--objective", "pairs"])


def test_there_are_recipes():
    assert {"mini-cpu", "mini-gpu", "sd15", "sd15-lora"} <= set(RECIPES)


def test_unknown_settings_of_a_file_are_named(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("learning_rte: 1\n")
    with pytest.raises(TrainingError, match="learning_rte"):
        parse_config(["--config", str(file), "--train_data_dir", "data"])


def test_unknown_flags_end_the_program(capsys):
    with pytest.raises(SystemExit) as stop:
        parse_config(["--train_data_dir", "data", "--learning_rte", "1"])
    assert stop.value.code == 2
    told = "train.py: error: unrecognized arguments: --learning_rte 1 (see --help)\n"
    assert capsys.readouterr().err == told  # without the usage of a hundred flags


def test_an_unknown_recipe_says_which_there_are():
    with pytest.raises(TrainingError, match="mini-cpu"):
        parse_config(["--config", "maxi", "--train_data_dir", "data"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--au_dropout", "1.5"], "au_dropout must be between 0 and 1"),
        (["--max_train_steps", "many"], "max_train_steps must be of type int"),
        (["--max_train_steps", "0"], "max_train_steps must be at least 1"),
        (["--max_train_steps", "2.5"], "max_train_steps must be of type int"),
        (["--logging_steps", "0"], "logging_steps must be at least 1"),
        (["--checkpoints_total_limit", "0"], "checkpoints_total_limit must be at least 1"),
        (["--max_train_steps", "inf"], "max_train_steps must be of type int"),
        (["--learning_rate", "-1"], "learning_rate must be above 0"),
        (["--augment", "perhaps"], "augment must be of type bool"),
        (["--mixed_precision", "fp8"], "mixed_precision"),
        (["--reference_cache_gb", "-1"], "reference_cache_gb must be 0 or more"),
        (["--reference_cache_gb", "inf"], "reference_cache_gb must be 0 or more"),
        (["--compile", "--gradient_checkpointing"], "exclude each other"),
        (["--dataset_name", "owner/data"], "either --train_data_dir"),
        *(([f"--seed={seed}"], "seed must be from 0") for seed in (-1, 10**23)),
        *(([f"--block_out_channels={w}"], "block_out_channels must be widths") for w in ("0,0", "16,-1")),
        (["--attention_heads", "0"], "attention_heads must be at least 1"),
        (["--validation_steps=1", "--validation_faces=0"], "validation_faces must be at least 1"),
        *(([f"--max_grad_norm={norm}"], "max_grad_norm must be above 0") for norm in (0, -1)),
        (["--ema_decay", "2"], "ema_decay must be between 0 and 1"),
        (["--snr_gamma", "-1"], "snr_gamma must be above 0, or none"),
        (["--flow_weight", "-1"], "flow_weight must be 0 or more"),
    ],
)
def test_values_that_do_not_fit(flags, message):
    with pytest.raises(TrainingError, match=message):
        parse_config(["--train_data_dir", "data", *flags])


SETTINGS = {field.name for field in dataclasses.fields(TrainConfig)}


@pytest.mark.parametrize("name", sorted(checks.RANGES.keys() & SETTINGS))
def test_what_no_load_would_accept_is_refused_before_the_training(tmp_path, name):
    kind, low, high = checks.RANGES[name]
    for value in (low, high):
        settings = parse_config(["--train_data_dir", "data", f"--{name}", str(value)])
        checks.check_index(tmp_path, {name: getattr(settings, name)})
    for value in (low - 1, high + 1):
        with pytest.raises(TrainingError, match=f"{name} must be from"):
            parse_config(["--train_data_dir", "data", f"--{name}", str(value)])
        with pytest.raises(ModelError, match=name):
            checks.check_index(tmp_path, {name: kind(value)})


def test_none_and_booleans():
    base = ["--train_data_dir", "data"]
    assert parse_config([*base, "--snr_gamma", "none"]).snr_gamma is None
    assert parse_config([*base, "--snr_gamma", "3"]).snr_gamma == 3.0
    assert parse_config([*base, "--use_ema"]).use_ema is True
    assert parse_config([*base, "--use_ema", "false"]).use_ema is False
    assert parse_config([*base, "--no_cache_latents"]).cache_latents is False
    assert parse_config([*base, "--resume_from_checkpoint", "none"]).resume_from_checkpoint is None
    with pytest.raises(TrainingError, match="seed"):
        parse_config([*base, "--seed", "none"])


@pytest.mark.parametrize(
    "content",
    [
        *(b"{", b"a: b: c", b"- 1", b"7", b"text", b"\xff\xfe\x00", b"\x00", b"[" * 10_000),
        *(b"a: " + b"9" * 5000, b"a: &x [1]\nb: *x", b"!!python/object/apply:os.system [ls]"),
        *(
            b"seed: 1\nseed: 2",
            b"seed: 2020-13-45",
            b"seed: [1, 2]",
            b"output_dir: [a]",
            b"output_dir: {a: b}",
        ),
        *(b"1: 2\nnull: 3\na: 4", b"learning_rate: .nan", b"max_train_steps: 1e400", b"settings: [[1]]"),
        *(b"augment: [true]", b"block_out_channels: {a: 1}", b"[1]: 2", b"seed: " + b"x" * 9000),
        *(b"x" * 200_000, b"adam_beta1: 2", b"ema_decay: .inf"),
    ],
    ids=range(27),
)
def test_a_malformed_config_is_one_short_sentence(tmp_path, content):
    file = tmp_path / "run.yaml"
    file.write_bytes(content)
    with pytest.raises(TrainingError) as error:
        parse_config(["--config", str(file), "--train_data_dir", "data"])
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize("kind", ["folder", "pipe", "long name", "NUL", "link"])
def test_a_config_that_is_no_file_is_refused(tmp_path, kind):
    path = tmp_path / "run.yaml"
    match kind:
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "long name":
            path = tmp_path / ("a" * 5000)
        case "NUL":
            path = f"{path}\0"
        case "link":
            path.symlink_to("nowhere")
    with pytest.raises(TrainingError):
        parse_config(["--config", str(path), "--train_data_dir", "data"])


def test_an_empty_config_is_the_defaults(tmp_path):
    (tmp_path / "run.yaml").write_text("# nothing\n")
    flags = ["--train_data_dir", "data"]
    assert parse_config(["--config", str(tmp_path / "run.yaml"), *flags]) == parse_config(flags)
