"""Signals that ask a run to end: they are noted, and the loop saves a checkpoint after the step it is in."""

import signal
import threading
from types import FrameType

# Of schedulers (TERM; Slurm's --signal=USR1), closed terminals and Ctrl-C; Windows lacks some
SIGNALS = [
    getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGUSR1", "SIGINT") if hasattr(signal, name)
]


class Signals:
    """Notes signals while it is entered, as often as it is; handlers of before are restored.

    A second Ctrl-C raises KeyboardInterrupt at once. Signals that the process ignores, as SIGHUP under nohup,
    stay ignored. Outside the main thread nothing is noted, because Python gives signals to that thread only.
    """

    def __init__(self) -> None:
        self.received = 0  # the number of the last signal; 0: none
        self._entered, self._before = 0, {}

    def __enter__(self) -> "Signals":
        self._entered += 1
        if self._entered == 1 and threading.current_thread() is threading.main_thread():
            heard = [number for number in SIGNALS if signal.getsignal(number) not in (signal.SIG_IGN, None)]
            self._before = {number: signal.signal(number, self._note) for number in heard}
        return self

    def __exit__(self, *_: object) -> None:
        self._entered -= 1
        while not self._entered and self._before:
            signal.signal(*self._before.popitem())

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == self.received == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number


def ignore_signals(worker: int) -> None:
    """Lets a process that prepares batches outlive signals to the whole group, until its run has ended."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
