"""A served page that the tests of this folder share, and photographs to drop on it."""

import contextlib
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio", reason="the page needs the extra `app`")


@pytest.fixture(scope="session")
def photographs(tmp_path_factory) -> Path:
    """one.png: a face; two.png: two of them; large.jpg: 2400 px; grey.png: none; broken.jpg: no picture."""
    folder = tmp_path_factory.mktemp("photographs")
    astronaut = pytest.importorskip("skimage.data").astronaut()
    Image.fromarray(astronaut).save(folder / "one.png")
    Image.fromarray(np.concatenate([astronaut, astronaut[:, ::-1]], axis=1)).save(folder / "two.png")
    Image.fromarray(astronaut).resize((2400, 2400), Image.Resampling.BICUBIC).save(folder / "large.jpg")
    Image.new("RGB", (300, 300), "grey").save(folder / "grey.png")
    (folder / "broken.jpg").write_bytes(b"not a picture" * 100)
    return folder


@contextlib.contextmanager
def served(cwd: Path, **environment: str) -> Iterator[tuple[str, subprocess.Popen]]:
    """`magicedit app` in a process of its own: its address, and the process, which is ended with SIGTERM."""
    process = subprocess.Popen(
        [sys.executable, "-m", "magicedit.cli", "app", "--port", "0"],
        cwd=cwd,
        env=os.environ | environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        lines = []
        for line in process.stderr:
            lines.append(line)
            if found := re.search(r"the page is at (http\S+)", line):
                # A full pipe would stop a server that logs
                drain = threading.Thread(target=lambda: lines.extend(process.stderr), daemon=True)
                drain.start()
                yield found[1].rstrip("/"), process
                break
        else:
            raise AssertionError("".join(lines))
    finally:
        process.terminate()
        process.wait(timeout=30)
    drain.join()
    assert "Traceback" not in "".join(lines)  # also where pages are open as it ends


@pytest.fixture(scope="session")
def address(tmp_path_factory) -> Iterator[str]:
    """Of a page with `mini`."""
    with served(tmp_path_factory.mktemp("working")) as (address, _):
        yield address


@pytest.fixture
def serving(tmp_path) -> Callable[..., contextlib.AbstractContextManager[tuple[str, subprocess.Popen]]]:
    """`with serving(VARIABLE=value) as (address, process)`: another page."""

    def serve(**environment: str):
        return served(tmp_path, **environment)

    return serve
