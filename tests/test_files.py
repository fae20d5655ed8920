"""Files that users name, and files that are written: what every door of the package relies on."""

import errno
import os
import subprocess
import sys

import pytest

from magicedit.errors import DatasetError, ImageError, OutputError
from magicedit.files import locked, open_regular, opened, read_bytes, read_text, replacing, shown


def test_only_regular_files_are_opened_and_none_blocks(tmp_path):
    os.mkfifo(tmp_path / "pipe")  # opening it to read would wait for a writer
    for path in (tmp_path / "pipe", tmp_path, "/dev/zero", tmp_path / ("a" * 5000), "a\0b"):
        with pytest.raises(OSError, match=r"file|File") as refusal:
            open_regular(path)
        assert refusal.value.errno in (errno.EINVAL, errno.ENAMETOOLONG, errno.ENXIO)
        with pytest.raises(ImageError, match="cannot be read") as refusal, opened(path, ImageError):
            pass
        assert len(str(refusal.value)) < 500


def test_what_is_larger_than_its_limit_is_refused(tmp_path):
    path = tmp_path / "text"
    path.write_bytes(b"\xef\xbb\xbf12345")
    assert read_text(path, limit=8) == "12345"
    with pytest.raises(DatasetError, match="8 bytes, more than 7"):
        read_text(path, DatasetError, limit=7)
    if os.path.exists("/proc/self/maps"):  # a file that tells no size
        with pytest.raises(DatasetError, match="more than 10 bytes"):
            read_bytes("/proc/self/maps", DatasetError, limit=10)
    path.write_bytes(b"\xff")
    with pytest.raises(DatasetError, match="no text in UTF-8"):
        read_text(path, DatasetError)


def test_names_in_messages_are_text_whatever_their_bytes():
    assert shown(os.fsdecode(b"caf\xe9.jpg")) == "caf\\xe9.jpg"
    assert shown("a\0b") == "a\\0b"
    assert len(shown("x" * 5000)) < 300


def test_a_file_that_is_replaced_keeps_its_permissions(tmp_path):
    """A private photograph must not become everybody's by an edit."""
    private, link = tmp_path / "private", tmp_path / "link"
    private.write_bytes(b"old")
    private.chmod(0o600)
    link.symlink_to(private)
    with replacing(link) as file:
        file.write(b"new")
    assert (private.read_bytes(), private.stat().st_mode & 0o777) == (b"new", 0o600)
    assert link.is_symlink()


def test_one_run_at_a_time_holds_a_folder(tmp_path):
    """Also against another process; a kill releases it."""
    code = (
        "import sys, time; from pathlib import Path; from magicedit.files import locked\n"
        "with locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, tmp_path / "out"], stdout=subprocess.PIPE)
    assert other.stdout.readline() == b"held\n"
    with pytest.raises(OutputError, match="another run is writing"), locked(tmp_path / "out"):
        pass
    other.kill()
    other.communicate()
    with (
        locked(tmp_path / "out"),
        pytest.raises(OutputError, match="another run is writing"),
        locked(tmp_path / "out"),
    ):
        pass
