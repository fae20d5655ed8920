"""The sessions of all open pages."""

import threading
import time
from collections import OrderedDict
from pathlib import Path

import gradio as gr

from magicedit.app.session import Session
from magicedit.app.turns import Turns
from magicedit.editor import ExpressionEditor
from magicedit.errors import MagicEditError

MOST_BYTES = 1_000_000_000  # of decoded pixels of all pages; those of idle pages are dropped, and read again
MOST_PHOTOGRAPHS = 200  # pages with one; their uploads lie on the disk
MOST_EMPTY = 500  # pages without one
IDLE_SECONDS = 1800  # a page that waits as long gives way to a new one where there are too many
LONGEST_SECONDS = 12 * 3600  # so long a page that nobody uses keeps its photograph
GRACE_SECONDS = 30  # within which a browser that reloads a page comes back
MOST_FORMER = 1000  # names of reloaded pages that are remembered

FULL = (
    f"{MOST_PHOTOGRAPHS} pages are in use, which is as many as this server takes; "
    "close one, or try again in half an hour"
)
GONE = "this page was not used for long, and its photograph was deleted: drop it again"


class Sessions:
    """The open pages by Gradio's session hash, the least recently used one first.

    A name costs nothing: a page that has no photograph only takes the place of other ones without.
    """

    def __init__(self, editor: ExpressionEditor, folder: Path):
        self.editor, self.folder, self.turns = editor, folder, Turns()
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._used: dict[str, float] = {}  # seconds of the monotonic clock
        self._former: dict[str, str] = {}  # names that pages had before reloading, and the present ones
        self._lock = threading.Lock()

    def of(self, request: gr.Request) -> Session:
        """Returns the page's session, created at its first event."""
        name = request.session_hash
        with self._lock:
            if name not in self._sessions:
                self._sessions[name] = Session(self.editor, self.folder, self.turns)
            self._sessions.move_to_end(name)
            self._used[name] = time.monotonic()
            empty = [other for other, session in self._sessions.items() if session.empty]
            closed = [self._forget(other) for other in empty[:-MOST_EMPTY] if other != name]
            session = self._sessions[name]
        for other in closed:
            other.close()
        self._rest(name)
        return session

    def make_room(self, request: gr.Request) -> None:
        """Call before a page opens a photograph. MagicEditError where too many pages in use have one."""
        with self._lock:
            holding = [name for name, session in self._sessions.items() if not session.empty]
        if request.session_hash in holding or len(holding) < MOST_PHOTOGRAPHS:
            return
        if not any(self.put_away([name], IDLE_SECONDS) for name in holding):
            raise MagicEditError(FULL)

    def put_away_old(self) -> None:
        """Deletes the photographs of pages that nobody has used for LONGEST_SECONDS."""
        with self._lock:
            names = [*self._sessions]
        self.put_away(names, LONGEST_SECONDS)

    def put_away(self, names: list[str], seconds: float) -> int:
        """Deletes the photographs of those of these pages that were not used for so long; returns how many.
        They say so when they are used again."""
        closed = []
        with self._lock:
            for name in names:
                session = self._sessions.get(name)
                idle = time.monotonic() - self._used.get(name, 0)
                if session is not None and not session.empty and not session.busy and idle >= seconds:
                    closed.append(session)
                    self._sessions[name] = Session(self.editor, self.folder, self.turns)
                    self._sessions[name].nothing_open = GONE
        for session in closed:
            session.close()
        return len(closed)

    def _rest(self, name: str) -> None:
        """Drops decoded pixels of the least recently used pages until the others need MOST_BYTES at most."""
        with self._lock:
            sessions = [(other == name, session) for other, session in self._sessions.items()]
        total = sum(session.weight() for _, session in sessions)
        for asking, session in sessions:
            if total > MOST_BYTES and not asking:
                total -= session.weight()
                session.rest()

    def known(self, request: gr.Request) -> Session | None:
        """Returns the page's session; None before its first event and after closing."""
        with self._lock:
            return self._sessions.get(request.session_hash)

    def needed(self) -> set[Path]:
        """Returns the files that open pages still need."""
        with self._lock:
            sessions = [*self._sessions.values()]
        return set().union(*(session.needed() for session in sessions))

    def part(self, request: gr.Request) -> None:
        """Stops the work of a page that was closed or reloads, and forgets it GRACE_SECONDS later."""
        if (session := self.known(request)) is not None:
            session.cancel()
            self._end_later(request.session_hash, GRACE_SECONDS)

    def _end_later(self, name: str, seconds: float) -> None:
        timer = threading.Timer(seconds, self._end_unused, [name, time.monotonic()])
        timer.daemon = True
        timer.start()

    def _end_unused(self, name: str, since: float) -> None:
        """Forgets a page, unless it was used since then: only its connection had broken off, for good."""
        with self._lock:
            used = self._used.get(name, since) > since
        if used:
            self._end_later(name, IDLE_SECONDS)
        else:
            self.end(name)

    def resume(self, name: str, request: gr.Request) -> bool:
        """Gives the session of the page called `name` to the page that the browser loaded in its place;
        returns whether there is one with a photograph.

        A browser that reloads again before it got the answer still knows the name before that one.
        """
        new = request.session_hash
        with self._lock:
            name = self._former.get(name, name)
            session = self._sessions.get(name)
            if session is None or session.empty or new == name:
                return False
            self._forget(name)
            self._sessions[new] = session
            self._used[new] = time.monotonic()
            former = {old: new if now == name else now for old, now in self._former.items()} | {name: new}
            self._former = dict([*former.items()][-MOST_FORMER:])
            return True

    def end(self, name: str) -> None:
        """Forgets a page."""
        with self._lock:
            session = self._forget(name)
        if session is not None:
            session.close()

    def close(self) -> None:
        """Forgets all pages."""
        with self._lock:
            sessions = [self._forget(name) for name in [*self._sessions]]
        for session in sessions:
            session.close()

    def _forget(self, name: str) -> Session | None:
        self._used.pop(name, None)
        return self._sessions.pop(name, None)
