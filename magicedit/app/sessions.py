"""The sessions of all open pages."""

import threading
from collections import OrderedDict
from pathlib import Path

import gradio as gr

from magicedit.app.session import Session
from magicedit.editor import ExpressionEditor

MOST_SESSIONS = 16  # open pages at most; each keeps a photograph in memory


class Sessions:
    """The open pages by Gradio's session hash."""

    def __init__(self, editor: ExpressionEditor, folder: Path):
        self.editor, self.folder = editor, folder
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, request: gr.Request) -> Session:
        """Returns the page's session, created at its first event; closes the oldest one of too many."""
        with self._lock:
            name = request.session_hash
            if name not in self._sessions:
                self._sessions[name] = Session(self.editor, self.folder)
            self._sessions.move_to_end(name)
            oldest = self._sessions.popitem(last=False)[1] if len(self._sessions) > MOST_SESSIONS else None
            session = self._sessions[name]
        if oldest is not None:
            oldest.close()
        return session

    def known(self, request: gr.Request) -> Session | None:
        """Returns the page's session; None before its first event and after closing."""
        with self._lock:
            return self._sessions.get(request.session_hash)

    def end(self, request: gr.Request) -> None:
        """Forgets a page that was closed."""
        with self._lock:
            session = self._sessions.pop(request.session_hash, None)
        if session is not None:
            session.close()

    def close(self) -> None:
        """Forgets all pages."""
        with self._lock:
            sessions, self._sessions = list(self._sessions.values()), OrderedDict()
        for session in sessions:
            session.close()
