"""Runs that a signal asks to end."""

import contextlib
import os
import signal
import threading

import pytest
from test_training import assert_same_weights, environment
from warm import run_ranks, run_warm

from magicedit.train.config import parse_config
from magicedit.train.loop import Run, train
from magicedit.train.signals import SIGNALS, Signals

STEPS = ("--max_train_steps=4", "--checkpointing_steps=0")
LATEST = "--resume_from_checkpoint=latest"

# The entry point, which sends itself a signal where step 2 is logged: number of the signal, process, flags
SIGNALLED = """
import os, sys
from magicedit.train.loop import Run
from magicedit.train.train import main

number, process = map(int, sys.argv[1:3])
log = Run._log

def logged(self, *arguments):
    log(self, *arguments)
    if self.step == 2 and self.accelerator.process_index == process:
        os.kill(os.getpid(), number)

Run._log = logged
sys.exit(main(sys.argv[3:]))
"""


@pytest.fixture
def straight(tiny_flags, tmp_path):
    """Trains without a signal, and returns the folder."""

    def run():
        folder = tmp_path / "straight"
        train(parse_config(tiny_flags(folder, *STEPS)))
        return folder

    return run


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_ends_in_a_checkpoint_of_the_step_reached(
    tiny_flags, tmp_path, straight, monkeypatch, caplog, number
):
    folder = tmp_path / "run"
    flags = tiny_flags(folder, *STEPS)
    run = Run(parse_config(flags))
    log = run._log

    def logged(*arguments):
        log(*arguments)
        if run.step == 2:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(run, "_log", logged)
    with pytest.raises(KeyboardInterrupt) if number == signal.SIGINT else contextlib.nullcontext():
        run.train()
    assert f"stopped by {number.name} after step 2" in caplog.text
    assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-2"]
    assert not (folder / "model_index.json").exists()
    if number == signal.SIGTERM:
        train(parse_config([*flags, LATEST]))
        assert_same_weights(straight(), folder)


def test_the_entry_point_ends_with_130_after_ctrl_c(tiny_flags, tmp_path):
    flags = tiny_flags(tmp_path, *STEPS)
    ended = run_warm(["-c", SIGNALLED, str(int(signal.SIGINT)), "0", *flags], environment())
    assert ended.returncode == 130
    assert "Traceback" not in ended.stderr
    assert ended.stderr.splitlines()[-1] == "train.py: interrupted"


def test_processes_agree_where_one_of_them_gets_the_signal(tiny_flags, tmp_path):
    flags = tiny_flags(tmp_path, *STEPS, "--train_batch_size=1")
    command = ["-c", SIGNALLED, str(int(signal.SIGTERM)), "1", *flags]
    ended = run_ranks(2, command, environment(CUDA_VISIBLE_DEVICES=""))
    assert [process.returncode for process in ended] == [0, 0], ended[0].stderr[-2000:]
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]


def test_a_signal_while_the_result_is_written_does_not_tear_it(tiny_flags, tmp_path, straight, monkeypatch):
    run = Run(parse_config(tiny_flags(tmp_path / "run", *STEPS)))
    export = run.method.export

    def interrupted(*arguments):
        os.kill(os.getpid(), signal.SIGINT)
        export(*arguments)

    monkeypatch.setattr(run.method, "export", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run.train()
    assert_same_weights(straight(), tmp_path / "run")


def test_handlers_are_restored_and_ignored_signals_stay_ignored():
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signals = Signals()
        with signals, signals:
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            os.kill(os.getpid(), signal.SIGTERM)
            assert signals.received == signal.SIGTERM
            os.kill(os.getpid(), signal.SIGINT)
            with pytest.raises(KeyboardInterrupt):  # the second time, at once
                os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGTERM) == before[signal.SIGTERM]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_run_outside_the_main_thread_notes_nothing():
    def enter():
        with Signals():
            pass

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) == before
