"""The record that batches and evaluations resume from."""

import json
import signal
import subprocess
import sys
from operator import itemgetter

import pytest

from magicedit.errors import OutputError
from magicedit.ledger import Ledger, read_ledger

NAME = itemgetter("name")
ANN, BOB = {"name": "Änn", "n": 1}, {"name": "bob", "n": 2}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "record.jsonl"


def line(entry: dict) -> bytes:
    return json.dumps(entry, ensure_ascii=False).encode() + b"\n"


def test_the_last_entry_of_a_key_counts_in_the_order_of_the_first(path):
    with Ledger(path, NAME) as ledger:
        for entry in (ANN, BOB, ANN | {"n": 3}):
            ledger.add(entry)
        assert list(ledger.entries.values()) == [ANN | {"n": 3}, BOB]
    assert path.read_bytes() == line(ANN) + line(BOB) + line(ANN | {"n": 3})
    assert read_ledger(path, NAME) == ledger.entries
    with Ledger(path, NAME) as again:
        assert again.entries == ledger.entries
        again.compact()
    assert path.read_bytes() == line(ANN | {"n": 3}) + line(BOB)
    written = path.stat().st_mtime_ns
    with Ledger(path, NAME) as again:
        again.compact()
    assert path.stat().st_mtime_ns == written


@pytest.mark.parametrize("cut", range(1, len(line(BOB))))
def test_a_line_cut_off_anywhere_is_no_entry_and_is_taken_away(path, cut):
    path.write_bytes(line(ANN) + line(BOB)[:-cut])
    if cut > 1:  # else only the end of the line is missing
        assert list(read_ledger(path, NAME)) == ["Änn"]
    with Ledger(path, NAME) as ledger:
        assert list(ledger.entries) == ["Änn"]
        ledger.add(BOB)
    assert path.read_bytes() == line(ANN) + line(BOB)


def test_a_long_torn_line_is_taken_away_whole(path):
    path.write_bytes(line(ANN) + b'{"name": "' + b"x" * 200_000)
    with Ledger(path, NAME) as ledger:
        assert list(ledger.entries) == ["Änn"]
    assert path.read_bytes() == line(ANN)


@pytest.mark.parametrize("text", [b"hello\n", b'{"n": 1}\n', b"[1]\n", b"{\n"])
def test_lines_of_others_are_refused(path, text):
    path.write_bytes(line(ANN) + text + line(BOB))
    for read in (lambda: read_ledger(path, NAME), lambda: Ledger(path, NAME).__enter__()):
        with pytest.raises(OutputError, match="line 2 was not written by magicedit"):
            read()
    path.write_bytes(line(ANN))
    with Ledger(path, NAME):  # what was refused is not held
        pass


def test_one_process_writes_at_a_time_and_others_read(path):
    with Ledger(path, NAME) as ledger:
        for _ in range(2):
            ledger.add(ANN)
            with pytest.raises(OutputError, match="another run is writing"):
                Ledger(path, NAME).__enter__()
            assert read_ledger(path, NAME) == {"Änn": ANN}
            ledger.rewrite()  # the file is another one, and still held
        ledger.add(BOB)
    with Ledger(path, NAME) as again:
        assert list(again.entries) == ["Änn", "bob"]


def test_a_killed_process_leaves_what_it_added(path):
    script = f"""
import os, signal
from operator import itemgetter
from pathlib import Path
from magicedit.ledger import Ledger
with Ledger(Path({str(path)!r}), itemgetter("name")) as ledger:
    ledger.add({ANN!r})
    os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    with Ledger(path, NAME) as ledger:
        assert ledger.entries == {"Änn": ANN}


def test_a_folder_that_is_not_there_is_said(path):
    with pytest.raises(OutputError, match="cannot be written"):
        Ledger(path.parent / "none" / "record.jsonl", NAME).__enter__()
