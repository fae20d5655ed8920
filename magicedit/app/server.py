"""Starting and ending the page's server."""

import contextlib
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import PIL.Image

from magicedit.editor import ExpressionEditor
from magicedit.errors import MagicEditError, MissingDependencyError

LIVE_SECONDS = 0.6  # an edit that takes longer does not follow a slider
LARGEST_UPLOAD = "64mb"
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def serve(
    load_editor: Callable[[], ExpressionEditor],
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    quality: str | None = None,
    guidance: float | None = None,
    seed: int = 0,
    open_browser: bool = False,
    say: Callable[[str], None] = print,
    until: threading.Event | None = None,
) -> None:
    """Serves the page until Ctrl-C, SIGTERM or `until`. Uploads and results are deleted when it ends.

    Args:
        load_editor: called once the address is known to be free.
        host: an address of this machine; other machines reach the page unless it is a loopback one.
        port: 0 takes any that is free.
        quality, guidance, seed: what the page starts with; None: the model's own.
        say: gets the address, and remarks.

    Raises:
        MissingDependencyError: without the extra `app`.
        MagicEditError: where the address cannot be had.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio
    except ImportError as error:
        raise MissingDependencyError(
            f"the web page needs the package gradio ({error}); pip install 'magicedit[app]'"
        ) from error

    from magicedit.app.page import CSS, Page, Sessions
    from magicedit.app.session import EditSettings

    port = free_port(host, port)
    until = until or threading.Event()
    with temporary_folder() as folder:
        editor = load_editor()
        sessions = Sessions(editor, folder)
        live = live_seconds(editor) <= LIVE_SECONDS
        blocks = Page(
            sessions, live=live, settings=EditSettings(quality, guidance=guidance, seed=seed)
        ).blocks
        blocks.queue(default_concurrency_limit=4)
        try:
            blocks.launch(
                server_name=host,
                server_port=port,
                inbrowser=open_browser,
                prevent_thread_lock=True,
                quiet=True,
                show_error=True,
                max_file_size=LARGEST_UPLOAD,
                footer_links=["api"],
                head=f"<style>{CSS.read_text(encoding='utf-8')}</style>",  # `css=` would rewrite selectors
                theme=gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
                ssr_mode=False,
                share=False,
            )
            if host not in LOOPBACK:
                say(f"other machines can reach this page, without a password: it listens on {host}:{port}")
            say(f"the page is at {blocks.local_url}  (Ctrl-C ends it)")
            with ended_by_sigterm(until):
                until.wait()
        finally:
            blocks.close(verbose=False)
            sessions.close()


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """Where Gradio and the page keep files meanwhile."""
    before = os.environ.get("GRADIO_TEMP_DIR")
    with tempfile.TemporaryDirectory(prefix="magicedit-app-", ignore_cleanup_errors=True) as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        try:
            yield Path(folder)
        finally:
            if before is None:
                del os.environ["GRADIO_TEMP_DIR"]
            else:
                os.environ["GRADIO_TEMP_DIR"] = before


@contextlib.contextmanager
def ended_by_sigterm(until: threading.Event) -> Iterator[None]:
    """SIGTERM sets `until`, so that files are deleted; outside the main thread it stays as it is."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: until.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def free_port(host: str, port: int) -> int:
    """The port, or any free one for 0. MagicEditError where it cannot be had."""
    if not 0 <= port < 65536:
        raise MagicEditError(f"a port is a number from 0 to 65535, got {port}")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            return probe.getsockname()[1]
    except OSError as error:
        raise MagicEditError(
            f"the page cannot listen on {host}, port {port} ({error}); choose another --port, or 0 for any"
        ) from error


def live_seconds(editor: ExpressionEditor) -> float:
    """Seconds that the quickest call of the model takes, the better of two; the first one warms it up."""
    size = editor.pipeline.config.resolution
    grey = PIL.Image.fromarray(np.full((size, size, 3), 128, np.uint8))
    encoded = editor.pipeline.encode_faces(grey, grey)
    taken = []
    for _ in range(2):
        started = time.perf_counter()
        editor.pipeline(faces=encoded, au_delta=np.ones((1, len(editor.action_units))), quality="live")
        taken.append(time.perf_counter() - started)
    return min(taken)
