"""The GPU kit on the CPU: its rows, tasks that fail or take too long, shards, wheels, and a whole dry run."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_patch_pipeline

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "dev" / "gpu")]
import assemble  # noqa: E402
import continue_training  # noqa: E402
import pack  # noqa: E402
import run  # noqa: E402
import speed_rows  # noqa: E402
from proxy import TINY  # noqa: E402

from magicedit.models import load_pipeline  # noqa: E402


def bench(folder: Path, until: float = 1e12) -> speed_rows.Bench:
    return speed_rows.Bench(
        TINY, torch.device("cpu"), torch.float32, folder / "speed.json", until,
        steps=(2,), batches=(1, 2), variants=2, repeats=1, backend="eager",
    )  # fmt: skip


def test_rows_are_written_at_once_and_measured_once(tmp_path):
    calls = []

    def call() -> None:
        calls.append(torch.zeros(8, 8) @ torch.zeros(8, 8))

    found = bench(tmp_path)
    found.row("product", call, images=4, steps=2)
    row = json.loads(found.results.read_text())["product"]
    assert row["steps"] == 2
    assert row["tflop"] == pytest.approx(2 * 8**3 / 1e12, rel=1e-3)
    assert row["images_per_second"] == pytest.approx(4 / row["seconds"], rel=1e-3)
    assert row["utilisation"] == pytest.approx(2 * 8**3 / row["seconds"] / found.peak, rel=0.01)
    before = len(calls)
    found.row("product", call, images=4, steps=2)
    assert len(calls) == before


def test_row_that_fails_is_recorded_and_measured_again(tmp_path):
    found = bench(tmp_path)

    def fail() -> None:
        raise torch.OutOfMemoryError("no memory\nfor this")

    found.row("first", fail, images=1)
    assert json.loads(found.results.read_text())["first"]["failed"] == "OutOfMemoryError: no memory"
    assert not found.failed  # a card is smaller than another
    found.row("first", lambda: torch.zeros(2) @ torch.zeros(2, 2), images=1)
    assert "seconds" in json.loads(found.results.read_text())["first"]
    found.row("second", lambda: torch.zeros(2) @ torch.zeros(3), images=1)
    assert found.failed == ["second"]


def test_row_after_the_time_is_left_out(tmp_path):
    with pytest.raises(speed_rows.NoTimeLeftError):
        bench(tmp_path, until=0.0).row("late", lambda: None, images=1)
    assert not (tmp_path / "speed.json").exists()


def test_work_of_many_steps_follows_from_short_edits(tmp_path):
    found = bench(tmp_path)
    pipeline = found.pipeline()
    image, condition = speed_rows.random_faces(TINY, 1)
    deltas = speed_rows.random_au_deltas(1, pipeline)

    def edit(steps: int):
        return speed_rows.exact_edit(pipeline, image, condition, deltas, steps)

    assert speed_rows.work_by_steps(edit)(5) == speed_rows.flops(edit(5))


def test_graphs_measures_the_denoiser(tmp_path):
    speed_rows.graphs(bench(tmp_path))
    rows = json.loads((tmp_path / "speed.json").read_text())
    assert list(rows) == ["guided step, exact, batch 1", "guided step, exact, batch 2"]
    one, two = (row["tflop"] for row in rows.values())
    assert two == pytest.approx(2 * one, rel=0.05)


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("print('done')", "ok"),
        ("raise SystemExit('no card')", "failed"),
        ("import time; print('begun', flush=True); time.sleep(60)", "stopped"),
    ],
)
def test_task_is_recorded_whatever_becomes_of_it(tmp_path, monkeypatch, code, status):
    monkeypatch.setattr(run, "GRACE", 1.0)
    script = tmp_path / "task.py"
    script.write_text(code)
    started = time.monotonic()
    found = run.run_task(
        run.Task("task", str(script), (), 1.0), [], 1.0, dict(os.environ), tmp_path / "log.txt"
    )
    assert found["status"] == status
    assert time.monotonic() - started < 30
    assert found.get("last_lines") == {"ok": None, "failed": ["no card"], "stopped": ["begun"]}[status]


def test_a_kit_that_is_asked_to_end_leaves_no_task(tmp_path):
    script = tmp_path / "task.py"
    script.write_text("import os, time; print(os.getpid(), flush=True); time.sleep(600)")
    code = f"""
import os, signal, sys
sys.path.insert(0, {str(ROOT / "dev" / "gpu")!r})
import run

run.STAGES = {{"speed": (run.Task("task", {str(script)!r}, (), 1.0),)}}
sys.exit(run.main())
"""
    command = [sys.executable, "-c", code, "--stages=speed", f"--output={tmp_path / 'out'}"]
    command += [f"--work={tmp_path / 'work'}", f"--packed={tmp_path}"]
    kit = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    log = tmp_path / "work" / "log.txt"
    while not (log.is_file() and log.read_text().endswith("\n")):
        assert kit.poll() is None
        time.sleep(0.05)
    kit.terminate()
    assert kit.wait(60) == 128 + signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(int(log.read_text()), 0)


@pytest.mark.parametrize(
    ("place", "more", "message"),
    [
        ("full", (), "not by this command"),
        ("new", ("missing",), "no folder missing"),
        ("packed", ("--earlier", "packed/earlier"), "move it out"),
    ],
)
def test_pack_deletes_nothing_but_what_it_packed(tmp_path, monkeypatch, capsys, place, more, message):
    monkeypatch.chdir(tmp_path)
    for name in ("full/own", "packed/wheels", "packed/earlier"):
        Path(name).mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(sys, "argv", ["pack", "-o", place, *more])
    with pytest.raises(SystemExit):
        pack.main()
    assert message in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_packages_are_laid_out_as_if_installed(tmp_path):
    (tmp_path / "wheels").mkdir()
    with zipfile.ZipFile(tmp_path / "wheels" / "some-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("some_package/__init__.py", "VALUE = 3\n")
    run.lay_out_packages(tmp_path, tmp_path / "site")
    code = (
        "import magicedit.train, magicedit.pipelines, some_package; "
        "print(magicedit.__path__[0], some_package.VALUE)"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.split() == [str(tmp_path / "site" / "magicedit"), "3"]


def test_shards_join_into_the_pipeline(tmp_path, monkeypatch):
    monkeypatch.setattr(continue_training, "SHARD_BYTES", 2**16)
    pipeline = tiny_patch_pipeline()
    pipeline.save_pretrained(tmp_path / "trained")
    (tmp_path / "trained" / "checkpoint-7").mkdir()
    (tmp_path / "trained" / "checkpoint-7" / "model.safetensors").write_bytes(b"0" * 2**20)
    results = tmp_path / "results"
    results.mkdir()
    continue_training.write_shards(tmp_path / "trained", results, {"step": 7, "last": {}})
    shards = sorted(results.glob("*.part"))
    assert len(shards) > 1
    assert max(shard.stat().st_size for shard in shards) <= 2**16
    assert assemble.join(results, tmp_path / "joined")["step"] == 7
    assert not (tmp_path / "joined" / "checkpoint-7").exists()
    loaded = load_pipeline(tmp_path / "joined", device="cpu")
    for name, tensor in loaded.unet.state_dict().items():
        assert torch.equal(tensor, pipeline.unet.state_dict()[name])

    shards[1].write_bytes(shards[1].read_bytes()[:-1])
    with pytest.raises(SystemExit, match=f"{shards[1].name} is damaged"):
        assemble.join(results, tmp_path / "again")
    shards[1].unlink()
    with pytest.raises(SystemExit, match=f"{shards[1].name} is missing"):
        assemble.join(results, tmp_path / "again")


def test_trim_keeps_what_is_imported(tmp_path):
    wheel = tmp_path / "diffusers-1-py3-none-any.whl"
    unused = pack.UNUSED[0]
    names = ["diffusers/__init__.py", f"{unused}__init__.py", f"{unused}flux/__init__.py"]
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in names:
            archive.writestr(name, "")
    pack.trim(wheel)
    assert zipfile.ZipFile(wheel).namelist() == names[:2]


def test_travelling_counts_what_git_does_not_ignore():
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a checkout of git")
    sizes = [
        (ROOT / name).stat().st_size
        for name in tracked.stdout.split("\0")
        if (ROOT / name).is_file() and name
    ]
    assert pack.travelling() >= sum(sizes) > 10**6


@pytest.mark.slow
def test_dry_run_measures_trains_and_brings_weights_back(tmp_path, pairs_folder):
    """The whole kit: rows of every group, and training of a tiny model on prepared photographs."""
    packed = tmp_path / "packed"
    shutil.copytree(pairs_folder, packed / "dataset")
    tiny_patch_pipeline().save_pretrained(packed / "start")
    python = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for stage, budget in (("speed", "3000"), ("train", "300")):  # speed ends early, training does not
        command = [str(ROOT / "dev" / "gpu" / "run"), "--dry-run", "--stages", stage, "--budget", budget]
        command += [
            "--packed",
            str(packed),
            "--output",
            str(tmp_path / "out"),
            "--work",
            str(tmp_path / "work"),
        ]
        ran = subprocess.run(command, env=os.environ | python, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stdout
    rows = json.loads((tmp_path / "out" / "speed.json").read_text())
    for kind in ("edit, naive", "edit, exact", "sweep of", "training step, sd15-lora", "edit, compiled"):
        assert any(name.startswith(kind) and "seconds" in row for name, row in rows.items())
    assert assemble.join(tmp_path / "out", tmp_path / "joined")["step"] >= 1
    load_pipeline(tmp_path / "joined", device="cpu")
