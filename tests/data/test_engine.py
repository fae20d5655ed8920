"""Ray: the same dataset and the same edits as without it, and what happens where it fails."""

import functools
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from magicedit import cluster
from magicedit.batch import edit_folder
from magicedit.cli import main
from magicedit.data import prepare_dataset
from magicedit.errors import DatasetError, MagicEditError, OutputError
from magicedit.request import EditRequest

SETTINGS = {"size": 64, "validation": ["bob"], "progress": False}


@pytest.fixture(scope="module")
def ray():
    """A cluster of two cores, which what runs in this process uses."""
    ray = pytest.importorskip("ray")
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # actors cannot import it
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.*")}


def test_a_token_is_asked_for_only_by_a_ray_that_is_not_imported_yet(tmp_path):
    """Later, processes that Ray starts would ask for it, and this one would not send it."""
    pytest.importorskip("ray")
    (tmp_path / "token").write_text("0" * 64)
    asked = "import os; from magicedit import cluster; cluster.check_engine('ray', None); " + (
        "print(os.environ.get('RAY_AUTH_MODE'))"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_AUTH")}
    environment["RAY_AUTH_TOKEN_PATH"] = str(tmp_path / "token")
    for code, said in ((asked, "token"), (f"import ray; {asked}", "None")):
        command = [sys.executable, "-c", code]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert ended.stdout.strip() == said


# --- What cannot work ---


def test_addresses_that_are_none_or_do_not_answer(tmp_path, photographs, capsys):
    pytest.importorskip("ray")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for address, message in {
        f"127.0.0.1:{port}": "no Ray cluster answers at",
        "somewhere": "must be HOST:PORT",
        "127.0.0.1:99999": "must be HOST:PORT",
    }.items():
        with pytest.raises(MagicEditError, match=f"(?i){message}"):
            prepare_dataset(photographs, tmp_path / "out", engine="ray", address=address, **SETTINGS)
        assert not (tmp_path / "out" / "magicedit.json").exists()
    assert main(["prepare", str(photographs), "-o", str(tmp_path / "other"), "--address", "auto"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.slow  # it waits for an answer
def test_an_address_where_something_else_listens(monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setattr(cluster, "ANSWER_SECONDS", 8)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address, started = f"127.0.0.1:{silent.getsockname()[1]}", time.monotonic()
        with pytest.raises(MagicEditError, match="is no Ray cluster"):
            list(cluster.each(refuse, [1], 1, lambda item, reason: reason, address=address))
    assert time.monotonic() - started < 60


def test_engines_that_are_unknown_or_not_installed(tmp_path, photographs, monkeypatch):
    with pytest.raises(MagicEditError, match="one of local, ray"):
        prepare_dataset(photographs, tmp_path / "out", engine="spark", **SETTINGS)
    monkeypatch.setitem(sys.modules, "ray.data", None)
    with pytest.raises(MagicEditError, match=r"pip install 'magicedit\[scale\]'"):
        prepare_dataset(photographs, tmp_path / "out", engine="ray", **SETTINGS)
    assert not (tmp_path / "out").exists()


def test_nodes_that_do_not_see_the_folders_say_so(tmp_path):
    from magicedit.batch.workers import EditorSettings, _worker_elsewhere
    from magicedit.data.measuring import _measurer

    with pytest.raises(DatasetError, match="put the photographs on a disk that all nodes see"):
        _measurer("mediapipe", {}, tmp_path / "a.png")
    with pytest.raises(OutputError, match="disk that all nodes see"):
        _worker_elsewhere(EditorSettings(tmp_path / "nowhere", tmp_path))


# --- The same results as without it ---


def test_every_engine_and_number_of_jobs_writes_the_same_bytes(tmp_path, photographs, ray):
    for name, how in {"one": {}, "two": {"jobs": 2}, "ray": {"engine": "ray", "jobs": 2}}.items():
        report = prepare_dataset(photographs, tmp_path / name, **how, **SETTINGS)
        assert report.measured == 7  # three of which hold no face that can be used
    assert contents(tmp_path / "one") == contents(tmp_path / "two") == contents(tmp_path / "ray")
    assert report.photographs == {"train": 3, "validation": 1}
    assert {"bob/wall.png", "ann/torn.png"} <= {entry["source"] for entry in report.rejected}
    assert ray.is_initialized()  # it was not started by `prepare`


def square(poisonous: int, number: int) -> int:
    if number == poisonous:
        os._exit(1)
    return number * number


def blunder(number: int) -> int:
    return number // 0


def refuse():
    raise DatasetError("there is nothing to start with")


@pytest.mark.slow
def test_an_item_that_kills_its_process_fails_alone(ray):
    items, begun = list(range(12)), []
    start = functools.partial(functools.partial, square, 5)
    results = dict(cluster.each(start, items, 2, lambda item, reason: (item, reason), begun.append))
    item, reason = results.pop(5)
    assert (item, begun) == (5, items)
    assert "ended every time" in reason
    assert results == {number: number**2 for number in items if number != 5}


def test_errors_of_the_start_are_raised_here(ray):
    with pytest.raises(DatasetError, match="nothing to start with"):
        list(cluster.each(refuse, [1, 2], 2, lambda item, reason: reason))


@pytest.mark.slow
def test_our_own_errors_keep_their_traceback(ray):
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        list(cluster.each(lambda: blunder, [1, 2], 2, lambda item, reason: reason))


@pytest.mark.slow
def test_folders_are_edited_as_without_it(tmp_path, ray):
    astronaut = pytest.importorskip("skimage.data").astronaut()
    folder = tmp_path / "photographs"
    folder.mkdir()
    Image.fromarray(astronaut).save(folder / "a.png")
    Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(folder / "wall.png")
    request = EditRequest(add={"AU12": 2.0})
    for name, how in {"here": {}, "ray": {"engine": "ray", "workers": 1}}.items():
        report = edit_folder(folder, tmp_path / name, request, **how)
        assert [result.status for result in report.results] == ["done", "failed"]
        assert "no face" in report.results[1].reason
    edited = [np.asarray(Image.open(tmp_path / name / "a.png")) for name in ("here", "ray")]
    np.testing.assert_array_equal(*edited)
    again = edit_folder(folder, tmp_path / "ray", request, engine="ray", workers=1)
    assert [result.status for result in again.results] == ["skipped", "failed"]


# --- Runs of their own ---


def running_under(process: int) -> list[int]:
    import psutil

    return [child.pid for child in psutil.Process(process).children(recursive=True)]


@pytest.mark.slow
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "killed"])
def test_an_interrupted_run_leaves_no_process_and_continues(tmp_path, photographs, backend, ending):
    import psutil

    pytest.importorskip("ray")
    folder, output = tmp_path / "photographs", tmp_path / "dataset"
    picture = Image.open(photographs / "ann" / "light.png")
    (folder / "ann").mkdir(parents=True)
    for number in range(400):
        small = picture.copy()
        small.putpixel((0, 0), (number % 256, number // 256, 0))
        small.save(folder / "ann" / f"{number:03}.png", compress_level=1)
    command = [sys.executable, "-m", "magicedit.cli", "prepare", folder, "-o", output, "--size", "64"]
    command += ["--engine", "ray", "--jobs", "2"]
    run = subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, start_new_session=True)
    while not any((output / ".work").glob("*.parquet")) and run.poll() is None:
        time.sleep(0.1)
    children = running_under(run.pid)
    run.send_signal(ending)
    _, said = run.communicate(timeout=60)
    assert children
    assert b"Traceback" not in said
    _, alive = psutil.wait_procs([psutil.Process(p) for p in children if psutil.pid_exists(p)], timeout=240)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
    report = prepare_dataset(folder, output, size=64, backend=backend, progress=False)
    assert report.reused >= 64
    assert report.measured + report.reused == 400
    assert report.photographs == {"train": 400}
    shutil.rmtree(output)
