"""Work ahead in another thread: order, bound, errors and the end."""

import threading
import time

import pytest

from magicedit.video.threads import ahead


def test_ahead_gives_the_items_in_order_and_is_no_further_than_its_depth():
    made = []

    def items():
        for number in range(20):
            made.append(threading.current_thread())
            yield number

    found = []
    for item in ahead(items(), 3):
        found.append(item)
        time.sleep(0.005)
        assert len(made) - len(found) <= 3
    assert found == [*range(20)]
    assert len(set(made)) == 1
    assert made[0] is not threading.current_thread()


def test_ahead_raises_what_making_an_item_raises_after_those_before():
    def items():
        yield 1
        raise KeyboardInterrupt("decoder")

    made = ahead(items(), 4)
    assert next(made) == 1
    with pytest.raises(KeyboardInterrupt, match="decoder"):
        next(made)


def test_ahead_ends_its_thread_when_it_is_closed():
    before, made = threading.active_count(), []

    def items():
        while True:
            made.append(1)
            yield 1

    endless = ahead(items(), 2)
    next(endless)
    endless.close()
    known = len(made)
    time.sleep(0.05)
    assert len(made) == known <= 4
    assert threading.active_count() == before
