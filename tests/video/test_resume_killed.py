"""A program that is killed, or interrupted by Ctrl-C, and run again: the same frames as without."""

import signal
import subprocess
import sys
import time
from pathlib import Path

from conftest import same_frames, write_video

from magicedit.video import edit_video
from magicedit.video.rendering import BATCH, PIECE

ASKED = ["--au", "AU12=-3,AU26=2", "--quality", "live"]
FRAMES = PIECE + BATCH + 3  # two pieces, the last one short
ARGUMENTS = {"add": "AU12=-3,AU26=2", "quality": "live"}


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


def test_killed_twice_and_gone_on_with(tmp_path, editor, moving):
    """Once while faces are looked for, once while frames are made."""
    source = write_video(tmp_path / "in.mp4", moving(FRAMES), sound="aac")
    whole = edit_video(editor, source, tmp_path / "whole.mp4", **ARGUMENTS).path
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
