"""The page's temporary folder: what is swept, and what is not."""

import os
from pathlib import Path

import pytest

from magicedit.app.folders import PREFIX, Sweeper, sweep_dead, temporary_folder
from magicedit.errors import OutputError


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_only_own_folders_of_the_dead_are_swept(folder):
    dead, kept = folder / f"{PREFIX}dead", folder / "others"
    for place in (dead, kept):
        (place / "inside").mkdir(parents=True)
        (place / "inside" / "one.png").write_bytes(b"x")
    (folder / f"{PREFIX}link").symlink_to(kept)
    (folder / f"{PREFIX}file").write_bytes(b"x")
    with temporary_folder() as living:
        sweep_dead()
        assert living.is_dir()
        assert not dead.exists()
    assert not living.exists()
    names = {path.name for path in folder.rglob("*")}
    assert names == {"others", "inside", "one.png", f"{PREFIX}link", f"{PREFIX}file"}


def test_a_place_without_a_temporary_folder_is_told(folder, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(folder / "missing"))
    with pytest.raises(OutputError, match="temporary folder"), temporary_folder():
        pass


def test_files_are_deleted_by_age_on_the_monotonic_clock(folder):
    old, changed, needed = (folder / "a" / name for name in ("old", "changed", "needed"))
    old.parent.mkdir()
    for path in (old, changed, needed):
        path.write_bytes(b"x")
        os.utime(path, (0, 0))  # a clock that was set does not matter
    sweeper = Sweeper(folder, 10, lambda: {needed})
    sweeper.sweep(1000)
    assert old.exists()
    changed.write_bytes(b"y")
    sweeper.sweep(1009)
    sweeper.sweep(1011)
    assert {path.name for path in folder.rglob("*")} == {"a", "changed", "needed"}
    sweeper.sweep(1020)
    assert {path.name for path in folder.rglob("*")} == {"a", "needed"}


def test_a_needed_folder_keeps_what_is_in_it(folder):
    """Else a video that takes longer than files are kept would lose its first pieces."""
    (folder / "made" / ".out.mp4.partial").mkdir(parents=True)
    piece = folder / "made" / ".out.mp4.partial" / "piece-00000.mp4"
    piece.write_bytes(b"x")
    needed = {folder / "made"}
    sweeper = Sweeper(folder, 10, lambda: needed)
    for now in (0, 11, 22):
        sweeper.sweep(now)
    assert piece.exists()
    needed.clear()
    sweeper.sweep(33)
    assert not piece.exists()


def test_folders_and_what_cannot_be_deleted_do_not_end_sweeping(folder, monkeypatch):
    """Gradio's own sweeping ended for good at the first folder that it took for a file."""
    for name in ("empty", "full/empty"):
        (folder / name).mkdir(parents=True)
    (folder / "full" / "stuck").write_bytes(b"x")
    (folder / "link").symlink_to(folder)
    unlink = Path.unlink

    def sticks(path: Path, *arguments: object) -> None:
        if path.name == "stuck":
            raise PermissionError(path)
        unlink(path, *arguments)

    monkeypatch.setattr(Path, "unlink", sticks)
    sweeper = Sweeper(folder, 10, set)
    for now in (0, 11, 22):
        sweeper.sweep(now)
    assert {path.name for path in folder.rglob("*")} == {"full", "stuck"}


def test_the_thread_sweeps_until_it_ends_whatever_fails(folder):
    path, calls = folder / "old", []
    path.write_bytes(b"x")

    def needed() -> set[Path]:
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("a page that fails")
        return set()

    with Sweeper(folder, 0.05, needed) as sweeper:
        while path.exists():
            pass
    assert not sweeper._thread.is_alive()
