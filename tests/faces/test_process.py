"""A face backend in a process of its own: the same faces, the same errors, and no process left behind."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from magicedit.errors import ImageError, MagicEditError, ModelError
from magicedit.faces import load_backend
from magicedit.faces.process import BackendProcess

REPOSITORY = Path(__file__).resolve().parents[2]


def equal(some, others):
    assert len(some) == len(others)
    for one, other in zip(some, others, strict=True):
        ours, theirs = vars(one).copy(), vars(other).copy()
        assert np.array_equal(ours.pop("landmarks"), theirs.pop("landmarks"))
        assert ours == theirs
    return True


def test_finds_what_the_backend_finds(astronaut):
    """To the bit, whether it was asked ahead for this photograph, for another one, or not at all."""
    mirrored = np.ascontiguousarray(astronaut[:, ::-1])
    here = load_backend()
    expected = here.detect(astronaut), here.detect(mirrored)
    assert len(expected[0]) == 1
    with BackendProcess() as there:
        there.search_ahead(astronaut)
        assert equal(there.search(astronaut).faces, expected[0])
        there.search_ahead(astronaut)
        assert equal(there.search(mirrored).faces, expected[1])
        there.search_ahead(astronaut)
        assert equal(there.detect(mirrored), expected[1])
        assert equal(there.detect(astronaut[::1, ::-1]), expected[1])  # not contiguous
        assert there.detect(np.full((200, 300, 3), 128, np.uint8)) == []
        with pytest.raises(ImageError, match="float64"):
            there.detect(astronaut / 255)
    assert there.name == here.name


def test_a_backend_that_cannot_be_loaded_says_the_same(tmp_path, astronaut):
    missing = tmp_path / "no.task"
    with pytest.raises(ModelError) as here:
        load_backend(model_path=missing)
    with BackendProcess(model_path=missing) as there:
        there.search_ahead(astronaut)  # more than a pipe holds: the child must read what it cannot use
        for _ in range(2):
            with pytest.raises(ModelError) as elsewhere:
                there.detect(astronaut)
            assert str(elsewhere.value) == str(here.value)


def test_our_own_faults_keep_their_traceback(astronaut):
    with BackendProcess("no such backend") as there, pytest.raises(RuntimeError, match="in load_backend"):
        there.detect(astronaut)


def test_a_child_that_dies_is_told(astronaut):
    with BackendProcess() as there:
        there.detect(astronaut)
        there._process.kill()
        with pytest.raises(MagicEditError, match="has ended with code -9"):
            there.detect(astronaut)


def test_closing_ends_the_child_at_once():
    pixels = np.zeros((4000, 4000, 3), np.uint8)
    there = BackendProcess()
    there.search_ahead(pixels)
    started = time.perf_counter()
    there.close()
    assert time.perf_counter() - started < 1  # loading and this photograph take longer
    assert there._process.returncode == -9


def test_the_child_ends_with_its_parent():
    code = "import os\nfrom magicedit.faces.process import BackendProcess\nBackendProcess()\nos._exit(0)"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    # The child has the parent's stdout, so this waits for the end of both.
    subprocess.run(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, timeout=60, check=True
    )
