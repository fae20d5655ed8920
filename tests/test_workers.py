"""The pool of processes that batches and evaluations share."""

import multiprocessing
import os
from functools import partial
from pathlib import Path

import pytest

from magicedit.errors import MagicEditError
from magicedit.workers import cores, each

DEADLY = 2


class Doubled:
    """Doubles numbers; ends its process at one of them, and says which process it is."""

    def __init__(self, problem: Exception | None = None):
        if problem is not None:
            raise problem

    def __call__(self, number: int) -> tuple[int, int]:
        if number == DEADLY and multiprocessing.parent_process() is not None:
            os._exit(3)
        return 2 * number, os.getpid()


def failed(number: int, reason: str) -> tuple[str, int]:
    return reason, 0


@pytest.mark.parametrize("workers", [1, 2])
def test_each_begins_and_returns_every_item(workers):
    begun = []
    numbers = [0, 1, 3, 4, 5]
    results = dict(each(Doubled, numbers, workers, failed, begun.append))
    assert begun == numbers
    assert {number: double for number, (double, _) in results.items()} == {n: 2 * n for n in numbers}
    assert (os.getpid() in {process for _, process in results.values()}) == (workers == 1)


def test_each_fails_only_the_item_whose_process_died():
    results = dict(each(Doubled, range(6), 2, failed))
    reasons = {number: result for number, (result, _) in results.items() if isinstance(result, str)}
    assert list(reasons) == [DEADLY]
    assert "ended with code 3" in reasons[DEADLY]
    assert {results[n][0] for n in (0, 1, 3, 4, 5)} == {0, 2, 6, 8, 10}


def test_each_loses_no_item_whose_process_died_before_it_arrived():
    begun = []

    def begin(number: int) -> None:
        for process in [] if begun else multiprocessing.active_children():
            process.kill()
            process.join()
        begun.append(number)

    results = dict(each(Doubled, [0, 1, 3, 4], 2, failed, begin))
    assert {number: double for number, (double, _) in results.items()} == {0: 0, 1: 2, 3: 6, 4: 8}
    assert begun[:2] == [0, 0]


def started_twice(folder: Path) -> Doubled:
    """Two processes may start, no third."""
    if len(list(folder.iterdir())) == 2:
        raise MagicEditError("the model is gone")
    (folder / str(os.getpid())).touch()
    return Doubled()


def test_each_fails_what_is_left_when_no_process_can_start_again(tmp_path):
    results = list(each(partial(started_twice, tmp_path), [DEADLY, DEADLY, 0, 1], 2, failed))
    reasons = [(number, reason) for number, (reason, _) in results]
    assert [number for number, _ in reasons] == [DEADLY, DEADLY, 0, 1]
    assert all("ended with code 3" in reason for _, reason in reasons[:2])
    assert all("no worker could start again: the model is gone" in reason for _, reason in reasons[2:])


@pytest.mark.parametrize("workers", [1, 2])
def test_each_raises_what_keeps_it_from_starting(workers):
    with pytest.raises(MagicEditError, match="no such model"):
        list(each(partial(Doubled, MagicEditError("no such model")), range(3), workers, failed))


def test_each_hands_over_our_own_faults_with_their_traceback():
    with pytest.raises(RuntimeError, match=r"(?s)could not start:\nTraceback .*KeyError: 'ours'"):
        list(each(partial(Doubled, KeyError("ours")), range(3), 2, failed))


def test_each_ends_its_processes_when_nobody_asks_any_more():
    results = each(Doubled, range(1000), 2, failed)
    next(results)
    assert multiprocessing.active_children()
    results.close()
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("workers", [1, 2])
def test_each_of_nothing_starts_no_process(workers):
    assert list(each(Doubled, [], workers, failed)) == []
    assert multiprocessing.active_children() == []


def test_cores_are_at_least_one():
    assert cores() >= 1
