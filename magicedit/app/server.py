"""Starts and stops the page's server.

Gradio's page is mounted in our own application behind `magicedit.app.guard`, and served by uvicorn.
"""

import contextlib
import ipaddress
import logging
import os
import secrets
import signal
import socket
import threading
import time
import webbrowser
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from magicedit.app.folders import Sweeper, temporary_folder
from magicedit.app.stubs import without_stubs
from magicedit.editor import ExpressionEditor
from magicedit.errors import MagicEditError, needs_extra
from magicedit.request import EditRequest, Sampling

LIVE_SECONDS = 0.6  # an edit that takes longer does not follow a slider
PASSWORD = "MAGICEDIT_PASSWORD"  # variable of the environment
GRACE_SECONDS = 2  # for open connections when the server ends
MOST_STATES = 64  # pages whose components Gradio remembers; ours need none of it


def serve(
    load_editor: Callable[[], ExpressionEditor],
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    password: str | None = None,
    allow_hosts: Collection[str] = (),
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
            page, and a password is asked for.
        port: 0 takes any that is free.
        password: of the page and its API, which take any user name. None: MAGICEDIT_PASSWORD of the
            environment; without that, none on a loopback address, else a random one, which is printed.
        allow_hosts: further names under which this machine may be addressed, as of a proxy.
        quality, guidance, seed: what the page starts with; None: the model's own.
        say: gets the address, and remarks.

    Raises:
        MissingDependencyError: without the extra `app`.
        MagicEditError: where the address cannot be had, or the password is empty.
    """
    settings = EditRequest(quality=quality, guidance=guidance, seed=seed)
    address, port = free_address(host, port)
    alone = ipaddress.ip_address(address).is_loopback
    password = os.environ.get(PASSWORD) or None if password is None else password
    if password == "":
        raise MagicEditError("the password is empty; give another one, or none")
    made = None if alone or password is not None else secrets.token_urlsafe(12)
    until = until or threading.Event()
    with ended_by_signals(until), temporary_folder() as folder, own_environment(folder):
        with needs_extra("app", "the web page needs the package gradio"), without_stubs():
            from magicedit.app.page import KEPT_SECONDS, Page
            from magicedit.app.sessions import Sessions

        editor = load_editor()
        if until.is_set():
            return
        sessions = Sessions(editor, folder)

        def needed() -> set[Path]:
            sessions.put_away_old()
            return sessions.needed()

        live = live_seconds(editor) <= LIVE_SECONDS
        blocks = Page(sessions, live=live, settings=settings).blocks
        app = guarded(blocks, folder, known_hosts(host, address) | {*allow_hosts}, password or made)
        try:
            with Sweeper(folder, KEPT_SECONDS, needed), listening(app, address, port):
                url = f"http://{'localhost' if address == '0.0.0.0' else address}:{port}/"
                if not alone:
                    say(f"other machines can reach this page: it listens on {host}:{port}")
                if made is not None:
                    say(f"the password is {made}  (with any user name; --password sets another)")
                say(f"the page is at {url}  (Ctrl-C ends it)")
                if open_browser:
                    webbrowser.open(url)
                until.wait()
                blocks.is_running = False  # ends Gradio's streams
        finally:
            sessions.close()


def guarded(blocks: Any, folder: Path, hosts: set[str], password: str | None) -> Any:
    """Returns Gradio's page as an application behind a `Guard`."""
    import gradio
    from starlette.applications import Starlette

    from magicedit.app.guard import Guard
    from magicedit.app.page import CSS

    blocks.queue(default_concurrency_limit=4)
    blocks.state_session_capacity = MOST_STATES
    app = gradio.mount_gradio_app(
        Starlette(),
        blocks,
        path="/",
        show_error=False,  # our own errors are `gradio.Error`s, which are shown all the same
        allowed_paths=[],
        blocked_paths=[],
        root_path="",
        enable_monitoring=False,
        run_history=False,
        pwa=False,
        mcp_server=False,
        ssr_mode=False,
        footer_links=["api"],
        head=f"<style>{CSS.read_text(encoding='utf-8')}</style>",  # `css=` would rewrite selectors
        theme=theme(),
    )
    blocks.has_launched = True  # else Gradio checks no path of a file
    return Guard(app, hosts=hosts, password=password, folder=folder, events=blocks.fns)


def theme() -> Any:
    """Returns Gradio's default look with fonts of the system, and contrasts that WCAG asks for (4.5)."""
    import gradio

    dark = "*primary_700"
    return gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]).set(
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_400",
        color_accent=dark,
        button_primary_background_fill=dark,
        button_primary_background_fill_dark=dark,
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_hover_dark="*primary_800",
    )


@contextlib.contextmanager
def listening(app: Any, address: str, port: int) -> Iterator[None]:
    """Serves an application in another thread. MagicEditError where it cannot start."""
    import uvicorn

    config = uvicorn.Config(
        app,
        host=address,
        port=port,
        log_level="warning",
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, name="server", daemon=True)
    thread.start()
    try:
        while not server.started:
            if not thread.is_alive():
                raise MagicEditError(
                    f"the page cannot be served on {address}, port {port}; choose another --port"
                )
            time.sleep(0.01)
        yield
    finally:
        # Else it prints a traceback for each page that is still open
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        server.should_exit = True
        thread.join()


@contextlib.contextmanager
def own_environment(folder: Path) -> Iterator[None]:
    """Sets Gradio's variables of the environment, and none but ours, for as long as the page is served: they
    could open any file, another address, or its editor of code to visitors."""
    before = {name: os.environ.pop(name) for name in [*os.environ] if name.upper().startswith("GRADIO_")}
    ours = {"GRADIO_TEMP_DIR": str(folder), "GRADIO_ANALYTICS_ENABLED": "False"}
    os.environ |= ours
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)
        os.environ |= before


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


def known_hosts(host: str, address: str) -> set[str]:
    """Returns the names under which the page is reached; on other addresses than loopback, also the
    machine's own."""
    known = {host, address, "127.0.0.1", "localhost"}
    if not ipaddress.ip_address(address).is_loopback:
        own = {socket.gethostname(), socket.getfqdn()}
        known |= own | {f"{name}.local" for name in own}
    return known


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
