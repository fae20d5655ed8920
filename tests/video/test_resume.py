"""Killed and run again: the same frames as without; interrupted by Ctrl-C; other work does not mix in."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_video

from magicedit.editor import ExpressionEditor
from magicedit.errors import OutputError
from magicedit.models import load_pipeline
from magicedit.video import VideoResult, edit_video, reenact
from magicedit.video.partial import Partial
from magicedit.video.reading import Video
from magicedit.video.rendering import BATCH, PIECE

ASKED = ["--au", "AU12=-3,AU26=2", "--quality", "live"]
FRAMES = PIECE + BATCH + 3
ARGUMENTS = {"add": "AU12=-3,AU26=2", "quality": "live"}


@pytest.fixture(scope="module")
def source(tmp_path_factory, moving) -> Path:
    """Two pieces, the last one short and ending within a batch."""
    return write_video(tmp_path_factory.mktemp("source") / "in.mp4", moving(FRAMES), sound="aac")


@pytest.fixture(scope="module")
def result(tmp_path_factory, editor, source) -> VideoResult:
    """Made without interruption."""
    return edit_video(editor, source, tmp_path_factory.mktemp("whole") / "out.mp4", **ARGUMENTS)


@pytest.fixture(scope="module")
def whole(result) -> Path:
    return result.path


def planes_of(path: Path) -> list[np.ndarray]:
    return [frame.planes for frame in Video(path).frames()]


def same_frames(a: Path, b: Path) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(planes_of(a), planes_of(b), strict=True))


def begun(source: Path, output: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "magicedit.cli", "video", source, "-o", output, *ASKED]
    return subprocess.Popen(
        list(map(str, command)),
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # Whoever runs the tests in the background ignores Ctrl-C, and so would the child
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def wait_for(happened, process: subprocess.Popen) -> None:
    until = time.monotonic() + 120
    while not happened():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < until, "nothing happened"
        time.sleep(0.01)


def test_killed_twice_and_gone_on_with(tmp_path, editor, source, whole):
    """Once while faces are looked for, once while frames are made."""
    output = tmp_path / "out.mp4"
    folder = tmp_path / ".out.mp4.partial"
    rows = folder / "faces.jsonl"

    first = begun(source, output)
    wait_for(lambda: rows.is_file() and rows.read_bytes().count(b"\n") > 5, first)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert not output.exists()
    looked_at = rows.read_bytes().count(b"\n")
    assert not (folder / "faces.done").exists()

    second = begun(source, output)
    wait_for((folder / "piece-00000.json").is_file, second)
    second.send_signal(signal.SIGKILL)
    second.wait()
    assert not output.exists()
    assert len(list(folder.glob("piece-*.json"))) == 1
    assert looked_at < rows.read_bytes().count(b"\n") == FRAMES

    result = edit_video(editor, source, output, **ARGUMENTS)
    assert result.resumed == PIECE
    assert not folder.exists()
    assert same_frames(output, whole)


def test_ctrl_c_keeps_the_work_and_says_so(tmp_path, editor, moving):
    """After the first of four pieces, so that on a busy machine too some are left when the signal comes."""
    source = write_video(tmp_path / "in.mp4", moving(4 * PIECE))
    whole = edit_video(editor, source, tmp_path / "whole.mp4", **ARGUMENTS).path
    output = tmp_path / "out.mp4"
    process = begun(source, output)
    wait_for((tmp_path / ".out.mp4.partial" / "piece-00000.json").is_file, process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command resumes" in errors
    assert ".out.mp4.partial" in errors
    assert not output.exists()

    assert edit_video(editor, source, output, **ARGUMENTS).resumed in (PIECE, 2 * PIECE, 3 * PIECE)
    assert same_frames(output, whole)


def stop_after(frames: int):
    """A progress callback that interrupts."""

    def progress(told) -> None:
        if told.stage == "frames" and told.done >= frames:
            raise KeyboardInterrupt

    return progress


def test_what_the_filters_and_the_meter_know_is_kept(tmp_path, editor, source, result):
    output = tmp_path / "out.mp4"
    with pytest.raises(KeyboardInterrupt):
        edit_video(editor, source, output, progress=stop_after(PIECE + 1), **ARGUMENTS)
    again = edit_video(editor, source, output, **ARGUMENTS)
    assert again.resumed == PIECE
    assert again.flicker == result.flicker
    assert again.flicker.pairs == FRAMES - 1
    assert same_frames(output, result.path)


def test_a_step_of_the_model_may_stop_the_work_which_is_resumed(tmp_path, editor, source, whole):
    output, steps = tmp_path / "out.mp4", []

    def stop(step: int) -> None:
        steps.append(step)
        if len(steps) > PIECE // BATCH:  # the first batch of the second piece
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        edit_video(editor, source, output, on_step=stop, **ARGUMENTS)
    assert steps == [0] * (PIECE // BATCH + 1)  # quality "live": one step a batch
    assert edit_video(editor, source, output, **ARGUMENTS).resumed == PIECE
    assert same_frames(output, whole)


@pytest.mark.parametrize("change", ["request", "input", "ID encoder"])
def test_other_work_does_not_mix_with_it(tmp_path, editor, source, moving, whole, change):
    output, film = tmp_path / "out.mp4", tmp_path / "in.mp4"
    film.write_bytes(source.read_bytes())
    with pytest.raises(KeyboardInterrupt):
        edit_video(editor, film, output, progress=stop_after(PIECE + 1), **ARGUMENTS)
    arguments = dict(ARGUMENTS)
    if change == "request":
        arguments["add"] = "AU12=-3,AU26=1"
    elif change == "ID encoder":
        pipeline = load_pipeline("mini", device="cpu")
        with torch.no_grad():
            pipeline.reference_unet.conv_in.weight.mul_(0.5)
        editor = ExpressionEditor(pipeline, editor.backend, model=editor.model)
    else:
        write_video(film, moving(PIECE + 3)[::-1])
    assert edit_video(editor, film, output, **arguments).resumed == 0
    for frame, other in zip(planes_of(output), planes_of(whole), strict=False):
        assert not np.array_equal(frame, other)


def test_a_reenacted_photograph_goes_on_too(tmp_path, editor, source, portrait):
    outputs = tmp_path / "out.mp4", tmp_path / "whole.mp4"
    with pytest.raises(KeyboardInterrupt):
        reenact(editor, portrait, source, outputs[0], quality="live", progress=stop_after(PIECE + 5))
    assert reenact(editor, portrait, source, outputs[0], quality="live").resumed == PIECE
    reenact(editor, portrait, source, outputs[1], quality="live")
    assert same_frames(*outputs)


def test_only_one_program_at_a_time(tmp_path):
    with Partial(tmp_path / "out.mp4", {"a": 1}), pytest.raises(OutputError, match="another run"):
        Partial(tmp_path / "out.mp4", {"a": 1}).__enter__()
    with Partial(tmp_path / "out.mp4", {"a": 1}) as partial:
        partial.remove()
    assert os.listdir(tmp_path) == []


def test_a_stranger_s_file_is_not_deleted(tmp_path):
    with Partial(tmp_path / "out.mp4", {"a": 1}) as partial:
        (partial.folder / "notes.txt").write_text("mine")
        partial.remove()
    assert (tmp_path / ".out.mp4.partial" / "notes.txt").read_text() == "mine"
