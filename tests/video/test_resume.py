"""Interrupted and run again: the same frames as without; other work does not mix in. Pieces are short."""

import os
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
