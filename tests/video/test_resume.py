"""Interrupted and run again: the same frames as without; other work does not mix in. Pieces are short."""

import os
import resource
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import planes_of, same_frames, write_video

from magicedit.editor import ExpressionEditor
from magicedit.errors import OutputError
from magicedit.models import load_pipeline
from magicedit.video import VideoResult, edit_video, reenact, rendering
from magicedit.video.partial import Partial

BATCH, PIECE = 4, 8
FRAMES = PIECE + BATCH + 3
ARGUMENTS = {"add": "AU12=-3,AU26=2", "quality": "live"}


@pytest.fixture(scope="module", autouse=True)
def short_pieces():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rendering, "BATCH", BATCH)
        patch.setattr(rendering, "PIECE", PIECE)
        yield


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
    if change == "ID encoder":
        pipeline = load_pipeline("mini", device="cpu")
        editor = ExpressionEditor(pipeline, editor.backend, model=editor.model)
    with pytest.raises(KeyboardInterrupt):
        edit_video(editor, film, output, progress=stop_after(PIECE + 1), **ARGUMENTS)
    arguments = dict(ARGUMENTS)
    if change == "request":
        arguments["add"] = "AU12=-3,AU26=1"
    elif change == "ID encoder":
        with torch.no_grad():
            pipeline.reference_unet.conv_in.weight.mul_(0.5)
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


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory, editor, source) -> Path:
    """The work folder of a run that ended in its second piece."""
    output = tmp_path_factory.mktemp("interrupted") / "out.mp4"
    with pytest.raises(KeyboardInterrupt):
        edit_video(editor, source, output, progress=stop_after(PIECE + 1), **ARGUMENTS)
    return output.with_name(".out.mp4.partial")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(bytes(content))


DAMAGES = {
    "faces of another shape": lambda f: (f / "faces.jsonl").write_text('{"index": [], "faces": 3}\n[]\n'),
    "rows lost before they were complete": lambda f: (
        (f / "faces.done").unlink(),
        (f / "faces.jsonl").write_bytes((f / "faces.jsonl").read_bytes()[3:]),
    ),
    "a note of another shape": lambda f: (f / "piece-00000.json").write_text('{"pts": 3, "piece": null}'),
    "a flipped bit in the state": lambda f: flip(f / "state-00001.npz"),
    "a pipe": lambda f: ((f / "faces.jsonl").unlink(), os.mkfifo(f / "faces.jsonl")),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_what_was_changed_since_is_made_again(tmp_path, editor, source, whole, interrupted, damage):
    folder = tmp_path / ".out.mp4.partial"
    shutil.copytree(interrupted, folder)
    damage(folder)
    edit_video(editor, source, tmp_path / "out.mp4", **ARGUMENTS)
    assert same_frames(tmp_path / "out.mp4", whole)
    assert not folder.exists()


def test_without_room_nothing_half_is_left_and_the_work_goes_on(tmp_path, editor, source, whole):
    """A file may grow to 120,000 bytes: too few for the state of a piece, which is written last."""
    output, before = tmp_path / "out.mp4", signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (120_000, hard))
    try:
        with pytest.raises(OutputError, match="File too large"):
            edit_video(editor, source, output, **ARGUMENTS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert not output.exists()
    edit_video(editor, source, output, **ARGUMENTS)
    assert same_frames(output, whole)


def test_a_work_folder_that_cannot_be_cleared_is_an_error(tmp_path):
    (tmp_path / ".out.mp4.partial" / "faces.jsonl" / "x").mkdir(parents=True)
    with pytest.raises(OutputError, match="cannot be cleared"):
        Partial(tmp_path / "out.mp4", {"a": 1}).__enter__()
    shutil.rmtree(tmp_path / ".out.mp4.partial")
    (tmp_path / ".out.mp4.partial").touch()
    with pytest.raises(OutputError, match="cannot be made"):
        Partial(tmp_path / "out.mp4", {"a": 1}).__enter__()
