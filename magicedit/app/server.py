"""Starts and stops the page's server."""

import contextlib
import ipaddress
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from magicedit.editor import ExpressionEditor
from magicedit.errors import MagicEditError, needs_extra
from magicedit.request import EditRequest, Sampling

LIVE_SECONDS = 0.6  # an edit that takes longer does not follow a slider
LARGEST_UPLOAD = "64mb"


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
    """Serves the page until Ctrl-C, SIGTERM, SIGHUP or `until`. Uploads and results are deleted when it ends.

    Args:
        load_editor: called once the address is known to be free.
        host: an IPv4 address or name of this machine; unless it is a loopback one, other machines reach the
            page.
        port: 0 takes any that is free.
        quality, guidance, seed: what the page starts with; None: the model's own.
        say: gets the address, and remarks.

    Raises:
        MissingDependencyError: without the extra `app`.
        MagicEditError: where the address cannot be had.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    with needs_extra("app", "the web page needs the package gradio"):
        import gradio

    from magicedit.app.page import CSS, Page
    from magicedit.app.sessions import Sessions

    settings = EditRequest(quality=quality, guidance=guidance, seed=seed)
    address, port = free_address(host, port)
    alone = ipaddress.ip_address(address).is_loopback
    until = until or threading.Event()
    with ended_by_signals(until), temporary_folder() as folder:
        editor = load_editor()
        if until.is_set():
            return
        sessions = Sessions(editor, folder)
        live = live_seconds(editor) <= LIVE_SECONDS
        blocks = Page(sessions, live=live, settings=settings).blocks
        blocks.queue(default_concurrency_limit=4)
        try:
            blocks.launch(
                server_name=address,
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
                app_kwargs={"middleware": known_hosts(host) if alone else []},
            )
            if not alone:
                say(f"other machines can reach this page, without a password: it listens on {host}:{port}")
            say(f"the page is at {blocks.local_url}  (Ctrl-C ends it)")
            until.wait()
        finally:
            blocks.close(verbose=False)
            sessions.close()


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """A temporary folder for the files of Gradio and the page."""
    before = os.environ.pop("GRADIO_TEMP_DIR", None)
    with tempfile.TemporaryDirectory(prefix="magicedit-app-", ignore_cleanup_errors=True) as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        try:
            yield Path(folder)
        finally:
            del os.environ["GRADIO_TEMP_DIR"]
            os.environ |= {} if before is None else {"GRADIO_TEMP_DIR": before}


@contextlib.contextmanager
def ended_by_signals(until: threading.Event) -> Iterator[None]:
    """Lets SIGTERM and SIGHUP set `until`, so that files are deleted; only in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kinds = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {kind: signal.signal(kind, lambda *_: until.set()) for kind in kinds}
    try:
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


def free_address(host: str, port: int) -> tuple[str, int]:
    """Returns the host's IPv4 address and the port, or a free one for 0. MagicEditError if it is taken."""
    if not 0 <= port < 65536:
        raise MagicEditError(f"a port is a number from 0 to 65535, got {port}")
    try:
        address = socket.getaddrinfo(host, port, socket.AF_INET, socket.SOCK_STREAM)[0][4][0]
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((address, port))
            return address, probe.getsockname()[1]
    except OSError as error:
        raise MagicEditError(
            f"the page cannot listen on {host}, port {port} ({error}); choose another --port, or 0 for any, "
            "and an IPv4 address of this machine"
        ) from error


def known_hosts(host: str) -> list[Any]:
    """Returns middleware that rejects requests to other host names, as in DNS rebinding attacks."""
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    return [Middleware(TrustedHostMiddleware, allowed_hosts=[host, "127.0.0.1", "localhost"])]


def live_seconds(editor: ExpressionEditor) -> float:
    """Returns the seconds of the model's quickest call, the better of two; the first one warms it up."""
    model = editor.changer.model
    grey = np.full((model.resolution, model.resolution, 3), 128, np.uint8)
    encoded = model.encode(grey, grey)
    taken = []
    for _ in range(2):
        started = time.perf_counter()
        model.change([encoded], [np.ones(len(model.vocabulary))], Sampling(quality="live"))
        taken.append(time.perf_counter() - started)
    return min(taken)
