"""What stands before the page's server: who may ask, for what, how much, and what errors say.

`Guard` is an ASGI application around Gradio's. It serves uploads itself; everything else that it lets through
is on a list of Gradio's addresses that the page and Gradio's clients use.
"""

import asyncio
import base64
import binascii
import contextlib
import hmac
import inspect
import json
import logging
import os
import re
import secrets
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

READ = re.compile(
    r"/|/config/?|/theme\.css|/favicon\.ico|/robots\.txt|/manifest\.json|/(assets|static|svelte)/[^/].*"
    r"|/gradio_api/(info/?|theme\.css|app_id/?|startup-events|queue/(data|status)"
    r"|heartbeat/[\w-]{1,100}|call/(v2/)?\w+/\w+|file=.+)"
)
WRITE = re.compile(r"/gradio_api/(queue/join|cancel|reset|(run|call|call/v2)/[\w-]+)/?")
UPLOAD, LOGIN = "/gradio_api/upload", "/login"
COOKIE = "magicedit-page"
HEADERS = {
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": "frame-ancestors 'none'; object-src 'none'; base-uri 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
SENTENCES = {
    403: "this file is none of the page's; ask for what it uploaded or made",
    404: "there is nothing at this address; see the page's API documentation",
    405: "this address does not answer this method",
    422: "the request is not what this address expects; see the page's API documentation",
    500: "the server failed; its console says why",
    503: "too much waits already; try again later",
}
NOT_AS_EXPECTED = SENTENCES[422]
MOST_FILES, MOST_FIELDS = 20, 20  # of one upload
LONGEST_NAME = 100  # bytes of an uploaded file's name
GUESS_SECONDS = 1  # between two wrong passwords

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """upload, body: bytes of an upload with its form, and of any other request. pause, whole: seconds that a
    client may take between two parts of a body, and for all of it."""

    upload: int = 256 * 2**20 + 2**16
    body: int = 2**20
    pause: float = 20
    whole: float = 600


class Refused(Exception):
    """An answer to the client: a status and one sentence."""

    def __init__(self, status: int, sentence: str, headers: Mapping[str, str] | None = None):
        super().__init__(sentence)
        self.status, self.sentence, self.headers = status, sentence, dict(headers or {})


class Guard:
    """Refuses what is not the page's own, and answers uploads.

    Args:
        app: Gradio's application.
        hosts: names under which this machine may be addressed; the address that a client reached is one.
        password: None: nobody is asked for one.
        folder: of uploads.
        events: Gradio's events by index: their API name, inputs, and whether they wait in the queue.
        limits: of bodies.
    """

    def __init__(
        self,
        app: Callable[..., Awaitable[None]],
        *,
        hosts: set[str],
        password: str | None,
        folder: Path,
        events: Mapping[int, Any],
        limits: Limits = Limits(),
    ):
        self.app, self.folder, self.events, self.limits = app, folder.resolve(), events, limits
        self.hosts = {name.lower() for name in hosts}
        self.password = password
        self._ticket = secrets.token_urlsafe(32)  # of those who logged in
        self._guesses = asyncio.Lock()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":  # the page has none
                await send({"type": "websocket.close", "code": 1008})
            else:
                await self.app(scope, receive, send)
            return
        plain = scope["path"].rstrip("/") == UPLOAD  # the page shows the whole answer
        reply, body = Reply(send, plain), Body(receive)
        try:
            await self._answer(Request(scope, body), reply)
        except Refused as refused:
            if refused.status != 408:
                await self._read_rest(Request(scope, body), body)
            await reply.refuse(refused)
        except Exception as error:  # whatever Gradio raises at a request that it cannot read
            if reply.started:
                raise
            log.warning("%s %s failed", scope["method"], scope["path"], exc_info=error)
            await reply.refuse(self._failed(scope["method"]))

    async def _answer(self, request: Request, reply: "Reply") -> None:
        self._check_host(request)
        check_origin(request)
        method, path = request.method, request.scope["path"]
        if path.rstrip("/") == LOGIN and method == "POST":
            await (await self._login(request))(request.scope, request.receive, reply)
            return
        await self._check_password(request)
        reply.failed = self._failed(method)
        if method == "POST" and path.rstrip("/") == UPLOAD:
            await (await self._upload(request))(request.scope, request.receive, reply)
        elif method == "POST" and WRITE.fullmatch(path):
            body = await self._body(request, self.limits.body)
            self._check_body(path, body)
            await self.app(request.scope, replayed(body, request.receive), reply)
        elif method in ("GET", "HEAD") and READ.fullmatch(path):
            self._check_file(path)
            await self.app(request.scope, request.receive, reply)
        else:
            known = READ.fullmatch(path) or WRITE.fullmatch(path) or path == UPLOAD
            raise Refused(405 if known else 404, SENTENCES[405 if known else 404])

    @staticmethod
    def _failed(method: str) -> Refused:
        """The answer where Gradio fails: events run later, so that what fails at once is the body."""
        return Refused(400, NOT_AS_EXPECTED) if method == "POST" else Refused(500, SENTENCES[500])

    # --- who asks ---

    def _check_host(self, request: Request) -> None:
        """Else a stranger's page whose name points here could use the API (DNS rebinding)."""
        given = request.headers.getlist("host")
        try:
            name = urlsplit(f"//{given[0]}").hostname if len(given) == 1 else None
        except ValueError:
            name = None
        server = request.scope.get("server") or (None,)
        if name is None or (name.rstrip(".") not in self.hosts and name != server[0]):
            raise Refused(
                400, "this server does not know that name; start it with --allow-host NAME to allow one"
            )

    async def _check_password(self, request: Request) -> None:
        if self.password is None:
            return
        kind, _, text = request.headers.get("authorization", "").partition(" ")
        if kind.lower() != "basic":
            if hmac.compare_digest(request.cookies.get(COOKIE, "").encode(), self._ticket.encode()):
                return
            raise unknown_client()
        try:
            password = base64.b64decode(text, validate=True).partition(b":")[2]
        except (binascii.Error, ValueError):
            password = b""
        await self._compare(password)

    async def _compare(self, password: bytes) -> None:
        """Raises Refused unless it is the password; wrong ones take a second each, one after another."""
        assert self.password is not None
        if hmac.compare_digest(password, self.password.encode("utf-8", "surrogateescape")):
            return
        if self._guesses.locked():
            raise Refused(429, "too many wrong passwords; try again in a moment")
        async with self._guesses:
            await asyncio.sleep(GUESS_SECONDS)
        raise unknown_client()

    async def _login(self, request: Request) -> Response:
        """Answers Gradio's clients that log in by a form, `Client(address, auth=(name, password))`."""
        try:
            async with self._form(request, self.limits.body) as form:
                given = form.get("password")
        except (HTTPException, MultiPartException, ClientDisconnect) as error:
            raise Refused(400, NOT_AS_EXPECTED) from error
        answer = JSONResponse({"success": True})
        if self.password is not None:
            await self._compare(given.encode("utf-8", "surrogateescape") if isinstance(given, str) else b"")
            answer.set_cookie(COOKIE, self._ticket, httponly=True, samesite="strict")
        return answer

    # --- what comes ---

    def _form(self, request: Request, limit: int) -> Any:
        bounded = Request(request.scope, self._bounded(request, limit))
        return bounded.form(max_files=MOST_FILES, max_fields=MOST_FIELDS)

    async def _upload(self, request: Request) -> Response:
        """Keeps uploaded files in a folder of their own, and returns their paths, as Gradio's clients expect.

        Nothing is left of an upload that is broken off, malformed or too large: until it is whole, its files
        have no name.
        """
        try:
            async with self._form(request, self.limits.upload) as form:
                files = [file for file in form.getlist("files") if isinstance(file, UploadFile)]
                if not files:
                    raise Refused(400, 'no file was sent; send a form with files under the name "files"')
                paths = await run_in_threadpool(self._keep, files)
        except (HTTPException, MultiPartException, ClientDisconnect) as error:
            raise Refused(
                400, f"the form is malformed, broken off, or has more than {MOST_FILES} files; send it again"
            ) from error
        return JSONResponse([str(path) for path in paths])

    def _keep(self, files: list[UploadFile]) -> list[Path]:
        paths = []
        try:
            folder = Path(tempfile.mkdtemp(prefix="upload-", dir=self.folder))
            for number, file in enumerate(files):
                place = folder / str(number)
                place.mkdir()
                paths.append(place / safe_name(file.filename))
                with open(paths[-1], "xb") as kept:
                    while part := file.file.read(2**20):
                        kept.write(part)
        except OSError as error:
            for path in paths:
                path.unlink(missing_ok=True)
            raise Refused(507, f"the server cannot keep the upload ({error.strerror})") from error
        return paths

    async def _read_rest(self, request: Request, body: "Body") -> None:
        """Reads what is left of a body, within limits: many clients read no answer before they sent all."""
        with contextlib.suppress(Refused):
            receive = self._bounded(request, 4 * self.limits.upload)
            while not body.ended:
                await receive()

    async def _body(self, request: Request, limit: int) -> bytes:
        receive, parts, more = self._bounded(request, limit), [], True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Refused(400, "the request was broken off")
            parts.append(message.get("body", b""))
            more = message.get("more_body", False)
        return b"".join(parts)

    def _bounded(self, request: Request, limit: int) -> Receive:
        """Returns a `receive` that refuses bodies above `limit` bytes, and those that come too slowly."""
        length = request.headers.get("content-length", "0")
        too_large = Refused(413, f"the request has more than {limit // 2**20} MB, which is too much")
        if not (length.isascii() and length.isdigit()) or (len(length) < 19 and int(length) > limit):
            raise too_large
        end, size = time.monotonic() + self.limits.whole, 0

        async def receive() -> Message:
            nonlocal size
            left = min(self.limits.pause, end - time.monotonic())
            try:
                message = await asyncio.wait_for(request.receive(), max(left, 0.001))
            except TimeoutError as error:
                raise Refused(408, "the request came too slowly; try again") from error
            size += len(message.get("body", b""))
            if size > limit:
                raise too_large
            return message

        return receive

    def _check_body(self, path: str, body: bytes) -> None:
        """Raises Refused where a body is not JSON, or not what Gradio reads at this address."""
        content = parsed(body)
        address = path.removeprefix("/gradio_api/").rstrip("/")
        name = address.rsplit("/", 1)[-1]
        if "session_hash" in content and not is_name(content["session_hash"]):
            raise Refused(422, "session_hash must be text of 1 to 100 letters and digits")
        if address in ("cancel", "reset"):
            return
        if address.startswith("call/"):
            event = next((event for event in self.events.values() if event.api_name == name), None)
            if event is None or event.api_visibility != "public":
                raise Refused(404, SENTENCES[404])
            if address.startswith("call/v2/"):
                self._check_arguments(event, content)
                return
        else:
            index = content.get("fn_index")
            event = self.events.get(index) if isinstance(index, int) and not isinstance(index, bool) else None
            if event is None or "session_hash" not in content:
                raise Refused(422, "fn_index must be the number of an event, and session_hash must be given")
            if address.startswith("run/") and event.queue:
                raise Refused(404, f"{event.api_name} waits in the queue; ask at /gradio_api/call/ for it")
        data, expected = content.get("data"), len(event.inputs)
        if not isinstance(data, list) or len(data) != expected:
            given = f"{len(data)}" if isinstance(data, list) else "none"
            raise Refused(422, f"data must be a list of {expected} values, got {given}")

    @staticmethod
    def _check_arguments(event: Any, content: dict[str, Any]) -> None:
        known = inspect.signature(event.fn).parameters
        missing = [name for name, part in known.items() if part.default is part.empty and name not in content]
        unknown = [name for name in content if name not in known and name not in ("session_hash",)]
        if missing or unknown:
            raise Refused(422, f"this address takes {', '.join(known)}; the first must be given")

    def _check_file(self, path: str) -> None:
        """Raises Refused unless a file that is asked for lies in the page's folder."""
        if "\0" in path:
            raise Refused(404, SENTENCES[404])
        _, asked, place = path.partition("/gradio_api/file=")
        if asked and not Path(os.path.abspath(place)).is_relative_to(self.folder):
            raise Refused(403, SENTENCES[403])


class Body:
    """Receives a request. ended: whether all of its body came, or its client left."""

    def __init__(self, receive: Receive):
        self.receive = receive
        self.ended = False

    async def __call__(self) -> Message:
        message = await self.receive()
        self.ended = message["type"] == "http.disconnect" or not message.get("more_body", False)
        return message


class Reply:
    """Sends an answer with our headers; the body of an error is our sentence, whatever it was.

    plain: as text instead of JSON.
    """

    def __init__(self, send: Send, plain: bool = False):
        self.send, self.plain = send, plain
        self.started = False
        self.failed: Refused | None = None  # instead of 500 and more
        self._replaced = False

    async def __call__(self, message: Message) -> None:
        if self._replaced:
            return
        if message["type"] == "http.response.start":
            status = message["status"]
            if status >= 400:
                told = Refused(status, SENTENCES.get(status, NOT_AS_EXPECTED))
                await self._replace(self.failed if status >= 500 and status != 503 and self.failed else told)
                return
            self.started = True
            kept = [header for header in message["headers"] if not header[0].lower().startswith(b"access-")]
            ours = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
            message = message | {"headers": kept + ours}
        await self.send(message)

    async def refuse(self, refused: Refused) -> None:
        if not self.started and not self._replaced:
            await self._replace(refused)

    async def _replace(self, refused: Refused) -> None:
        self._replaced = True
        headers = HEADERS | refused.headers
        if self.plain:
            answer = PlainTextResponse(refused.sentence, refused.status, headers=headers)
        else:
            told = {"detail": refused.sentence, "error": refused.sentence}  # Gradio's clients read either
            answer = JSONResponse(told, refused.status, headers=headers)
        await self.send(
            {"type": "http.response.start", "status": refused.status, "headers": answer.raw_headers}
        )
        await self.send({"type": "http.response.body", "body": answer.body})


def check_origin(request: Request) -> None:
    """Raises Refused for what another site's page asks for, except a link to this page."""
    origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site", "none")
    host = request.headers.get("host", "").lower()
    follows = (
        request.method in ("GET", "HEAD")
        and origin is None
        and request.headers.get("sec-fetch-mode") == "navigate"
    )
    if origin is not None and (
        origin.partition("://")[2].lower() != host or len(request.headers.getlist("origin")) > 1
    ):
        raise Refused(403, "another site's page may not use this one")
    if site.lower() not in ("same-origin", "none") and not follows:
        raise Refused(403, "another site's page may not use this one")


def unknown_client() -> Refused:
    return Refused(
        401,
        "this page needs its password, which the server said when it started; any user name will do",
        {"WWW-Authenticate": 'Basic realm="magicedit", charset="UTF-8"'},
    )


def parsed(body: bytes) -> dict[str, Any]:
    """Returns a JSON object. Refused for other content, and for numbers and texts that no reply can hold."""

    def constant(name: str) -> None:
        raise ValueError(name)

    try:
        content = json.loads(body, parse_constant=constant)
        json.dumps(content, ensure_ascii=False, allow_nan=False).encode()  # without half a character
    except (ValueError, RecursionError) as error:
        raise Refused(400, "the body is not JSON") from error
    if not isinstance(content, dict):
        raise Refused(422, "the body must be a JSON object")
    return content


def is_name(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[\w.-]{1,100}", value) is not None


def safe_name(name: str | None) -> str:
    """Returns an uploaded file's name without folders, control characters and what is too long."""
    last = re.split(r"[/\\]", name or "")[-1]
    last = re.sub(r"[\x00-\x1f\x7f<>:\"|?*#%]", "_", last).strip(". ")
    stem, dot, suffix = last.rpartition(".")
    suffix = (dot + suffix).encode("utf-8", "replace")[:20]
    stem = (stem if dot else last).encode("utf-8", "replace")[: LONGEST_NAME - len(suffix)]
    kept = (stem + (suffix if dot else b"")).decode("utf-8", "ignore")
    return kept or "file"


def replayed(body: bytes, receive: Receive) -> Receive:
    """Returns a `receive` that gives a body that was read, and then what comes."""
    rest = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return rest.pop() if rest else await receive()

    return replay
