"""Training on shards: the result, resuming, and what ends a run."""

import shutil

import pytest
from safetensors.torch import load_file

from magicedit.data.webdataset_shards import write_shards
from magicedit.errors import DatasetError
from magicedit.models import load_pipeline
from magicedit.train.config import parse_config
from magicedit.train.loop import train
from magicedit.train.publish import command_of

pytest.importorskip("webdataset")


@pytest.fixture(scope="module")
def stream(pairs_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stream") / "shards"
    write_shards(pairs_folder, folder, shard_bytes=1, progress=False)
    return folder


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_resumed_run_on_shards_ends_bit_equal(tiny_flags, stream, tmp_path, workers):
    flags = ("--train_data_dir", str(stream), "--max_train_steps", "6", "--checkpointing_steps", "3")
    flags += ("--dataloader_num_workers", workers)
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    train(parse_config(tiny_flags(straight, *flags)))
    resumed.mkdir()
    shutil.copytree(straight / "checkpoint-3", resumed / "checkpoint-3")
    train(parse_config(tiny_flags(resumed, *flags, "--resume_from_checkpoint", "latest")))
    for name in ("unet", "reference_unet"):
        file = f"{name}/diffusion_pytorch_model.safetensors"
        first, second = load_file(straight / file), load_file(resumed / file)
        assert all(first[key].equal(second[key]) for key in first)
    assert "| 2 | 1 |" in (resumed / "README.md").read_text()  # photographs and people
    assert load_pipeline(resumed, device="cpu").config.prediction == "flow_mask_paint"


def test_shards_that_vanish_end_a_run_in_one_line(tiny_flags, stream, tmp_path):
    copy = shutil.copytree(stream, tmp_path / "copy")
    for path in copy.glob("train-*.tar"):
        path.unlink()
    with pytest.raises(DatasetError, match=r"2 unusable photographs of 2, .*-00000\.tar .* No such file"):
        train(parse_config(tiny_flags(tmp_path / "run", "--train_data_dir", str(copy))))


def test_objectives_that_do_not_stream_say_so(tiny_flags, stream, tmp_path):
    flags = tiny_flags(tmp_path / "run", "--train_data_dir", str(stream), "--objective", "ganimation")
    flags = [flag for flag in flags if not flag.startswith(("--block_out", "--attention_heads"))]
    with pytest.raises(DatasetError, match="holds shards to stream, which the objectives pairs and distill"):
        train(parse_config(flags))


def test_cards_do_not_tell_the_address_of_shards(tiny_flags, tmp_path):
    for place in ("https://host/shards/{}?key=secret", "pipe:fetch --password secret {}"):
        command = command_of(parse_config(tiny_flags(tmp_path, "--train_data_dir", place)))
        assert "--train_data_dir shards " in command
        assert "secret" not in command
