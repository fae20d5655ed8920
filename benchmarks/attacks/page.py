"""The web page: foreign sites, malformed bodies, paths, broken uploads, environments; all is refused."""

import contextlib
import io
import json
import os
import random
import re
import signal
import socket
import string
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from attacks import LONGEST_MESSAGE, Attack
from magicedit import ExpressionEditor
from magicedit.app import serve

TITLE = "Page: foreign sites, malformed bodies, leaks, uploads, environments"
PASSWORD = "correct horse"
API = "/gradio_api"
LEAKS = (
    "Traceback",
    "gradio.components",
    "gradio.data",
    "pydantic",
    "site-packages",
    "<class",
    "object at 0x",
)
Check = Callable[[Path], str | None]


def attacks(seed: int, short: bool) -> list[Attack]:
    """Those of one server stand together: a server starts when its first attack does."""
    chance = random.Random(seed)
    alone = [*foreign("127.0.0.1"), *hosts("127.0.0.1"), *malformed(chance), *paths(), *uploads(chance)]
    for name, files in (("invented names", invented_names), ("one page in 300 edits", one_page)):
        alone.append(Attack(name, files, seconds=1800))
    alone.append(Attack("50 pages in turn", pages_in_turn, seconds=1800))
    others = [*foreign("0.0.0.0"), *hosts("0.0.0.0"), *passwords()]
    processes = [*environments(), Attack("a killed server's folder", killed, seconds=120)]
    if short:
        slow = {"invented names", "one page in 300 edits", "50 pages in turn", "upload: slow"}
        alone = [attack for attack in alone if attack.name not in slow]
        return [*chance.sample(alone, 30), *chance.sample(others, 8)]
    return [*alone, *others, *processes]


# --- the server ---


class Server:
    """A page served in this process, and one at a time: Gradio's folder is a variable of the environment."""

    current: "Server | None" = None
    editor: ExpressionEditor | None = None

    def __init__(self, host: str):
        self.host, self.said, self.until = host, [], threading.Event()
        if Server.editor is None:
            Server.editor = ExpressionEditor.from_pretrained("mini", device="cpu")
        options = {"host": host, "port": 0, "say": self.said.append, "until": self.until}
        password = None if host == "127.0.0.1" else PASSWORD
        self.thread = threading.Thread(
            target=serve, args=(lambda: Server.editor,), kwargs=options | {"password": password}, daemon=True
        )
        self.thread.start()
        while not any("the page is at" in text for text in self.said):
            if not self.thread.is_alive():
                raise RuntimeError("the server did not start")
            time.sleep(0.05)
        self.port = int(re.search(r":(\d+)/", self.said[-1])[1])
        self.folder = Path(os.environ["GRADIO_TEMP_DIR"])
        auth = None if password is None else ("anybody", password)
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=60, auth=auth)
        self.events = self.http.get("/config").json()["dependencies"]

    @classmethod
    def at(cls, host: str = "127.0.0.1") -> "Server":
        if cls.current is None or cls.current.host != host:
            if cls.current is not None:
                cls.current.http.close()
                cls.current.until.set()
                cls.current.thread.join()
            cls.current = cls(host)
        return cls.current

    def event(self, name: str) -> dict[str, Any]:
        return next(event for event in self.events if event["api_name"] == name)

    def upload(self) -> dict[str, Any]:
        path = self.http.post(f"{API}/upload", files={"files": ("face.png", face())}).json()[0]
        return {"path": path, "orig_name": "face.png", "meta": {"_type": "gradio.FileData"}}

    def call(self, name: str, data: list[Any]) -> str:
        """The answer of an API event, whatever it is."""
        asked = self.http.post(f"{API}/call/{name}", json={"data": data})
        if asked.status_code != 200:
            return asked.text
        return self.http.get(f"{API}/call/{name}/{asked.json()['event_id']}").text

    def event_of_page(self, session: str, name: str, data: list[Any]) -> dict[str, Any]:
        """The outcome of an event that the page sends."""
        body = {"data": data, "fn_index": self.event(name)["id"], "session_hash": session}
        assert self.http.post(f"{API}/queue/join", json=body).status_code == 200
        with self.http.stream("GET", f"{API}/queue/data", params={"session_hash": session}) as lines:
            for line in lines.iter_lines():
                said = json.loads(line.removeprefix("data: ")) if line else {}
                if said.get("msg") == "process_completed":
                    return said
        raise RuntimeError("the stream ended without an outcome")


def face() -> bytes:
    from skimage import data

    made = io.BytesIO()
    Image.fromarray(data.astronaut()[:256, 96:352]).save(made, "PNG")
    return made.getvalue()


def wrong(answer: httpx.Response, statuses: range | set[int]) -> str | None:
    """What is wrong with an answer that should refuse."""
    if answer.status_code not in statuses:
        return f"answered {answer.status_code}: {answer.text[:200]}"
    if "access-control-allow-origin" in answer.headers:
        return f"lets {answer.headers['access-control-allow-origin']} read"
    if answer.headers.get("x-frame-options") != "DENY":
        return "may be framed"
    return leak(answer.text)


def leak(text: str) -> str | None:
    """What an answer tells of the server."""
    found = [word for word in (*LEAKS, os.getcwd(), str(Path.home()), tempfile.gettempdir()) if word in text]
    if found:
        return f"tells {found[0]!r}: {text[:300]}"
    return f"says {len(text)} characters" if len(text) > LONGEST_MESSAGE else None


# --- who asks ---


def foreign(host: str) -> list[Attack]:
    headers = [
        *({"Origin": origin} for origin in (
            "http://evil.com", "https://evil.example:7860", "null", "http://localhost:3000", "file://",
            "http://127.0.0.1.evil.com", "chrome-extension://abcdef", "http://127.0.0.1",
            "http://evil.com#{host}",
        )),
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors"},
    ]  # fmt: skip
    routes = [
        ("POST", f"{API}/upload", {"files": {"files": ("a.png", b"x")}}),
        ("POST", f"{API}/queue/join", {"json": {"data": [], "fn_index": 0, "session_hash": "a"}}),
        ("POST", f"{API}/call/edit", {"json": {"data": []}}),
        ("POST", f"{API}/run/predict", {"json": {"data": [], "fn_index": 0, "session_hash": "a"}}),
        ("POST", f"{API}/cancel", {"json": {"session_hash": "a", "fn_index": 0, "event_id": "b"}}),
        ("POST", "/login", {"data": {"username": "a", "password": PASSWORD}}),
        ("OPTIONS", f"{API}/upload", {"headers": {"Access-Control-Request-Method": "POST"}}),
        ("DELETE", f"{API}/upload", {}),
        ("GET", "/config", {}),
    ]

    def check(method: str, route: str, options: dict, given: dict[str, str]) -> Check:
        def run(_: Path) -> str | None:
            server = Server.at(host)
            sent = {name: text.replace("{host}", f"127.0.0.1:{server.port}") for name, text in given.items()}
            both = options | {"headers": options.get("headers", {}) | sent}
            return wrong(server.http.request(method, route, **both), {403})

        return run

    return [
        Attack(f"{host}: {method} {route} {given}", check(method, route, options, given), seconds=60)
        for given in headers
        for method, route, options in routes
    ]


def hosts(host: str) -> list[Attack]:
    def check(name: str) -> Check:
        def run(_: Path) -> str | None:
            answer = Server.at(host).http.get("/config", headers={"Host": name})
            return wrong(answer, {400})

        return run

    names = (
        "evil.example",
        "127.0.0.1.evil.example",
        "evil.example:7860",
        "localhost.evil",
        "[::1",
        "",
        "@",
        "a b",
    )
    return [Attack(f"{host}: named {name!r}", check(name), seconds=60) for name in names]


def passwords() -> list[Attack]:
    def check(route: str, auth: Any, headers: dict[str, str]) -> Check:
        def run(_: Path) -> str | None:
            address = f"http://127.0.0.1:{Server.at('0.0.0.0').port}"
            return wrong(httpx.get(address + route, auth=auth, headers=headers, timeout=60), {401, 429})

        return run

    ways = [
        ("none", None, {}),
        ("empty", ("a", ""), {}),
        ("another", ("a", "incorrect horse"), {}),
        ("longer", ("a", PASSWORD + " "), {}),
        ("as the name", (PASSWORD, ""), {}),
        ("no base64", None, {"Authorization": "Basic %%%"}),
        ("bearer", None, {"Authorization": f"Bearer {PASSWORD}"}),
        ("a cookie", None, {"Cookie": "magicedit-page=" + PASSWORD}),
        ("an empty cookie", None, {"Cookie": "magicedit-page="}),
    ]
    routes = ("/", "/config", f"{API}/info", f"{API}/queue/data?session_hash=a", f"{API}/file=/etc/passwd")
    return [
        Attack(f"password: {name} at {route}", check(route, auth, headers), seconds=60)
        for name, auth, headers in ways
        for route in routes
    ]


# --- what is asked ---


def malformed(chance: random.Random) -> list[Attack]:
    """Bodies that no client sends, over every address: a refusal, or an event that ends with a sentence."""
    routes = ("queue/join", "call/edit", "call/measure", "call/v2/edit", "run/predict", "cancel", "reset",
              "call/on_upload", "call/nothing", "component_server", "upload", "process_recording",
              "vibe-edit", "stream/a", "api/edit", "run/edit")  # fmt: skip
    bodies: list[tuple[str, bytes]] = [
        ("nothing", b""),
        ("no JSON", b"{"),
        ("no UTF-8", b'{"data": "\xff"}'),
        ("half a character", b'{"data": ["\\ud800"]}'),
        ("null", b"null"),
        ("a list", b"[]"),
        ("a number", b"7"),
        ("NaN", b'{"data": [NaN]}'),
        ("many digits", b'{"data": [' + b"9" * 5000 + b"]}"),
        ("deep", b'{"data": ' + b"[" * 5000 + b"]" * 5000 + b"}"),
        ("no data", b"{}"),
        ("few values", b'{"data": []}'),
        ("many values", json.dumps({"data": [None] * 500}).encode()),
        ("data is an object", b'{"data": {"a": 1}}'),
        ("data is text", b'{"data": "abc"}'),
        ("another name", b'{"data": [], "session_hash": 7}'),
        ("a long name", json.dumps({"data": [], "session_hash": "a" * 10_000}).encode()),
        ("an index that is text", b'{"data": [], "fn_index": "0", "session_hash": "a"}'),
        ("a negative index", b'{"data": [], "fn_index": -1, "session_hash": "a"}'),
        ("a large index", b'{"data": [], "fn_index": 99999, "session_hash": "a"}'),
        ("a true index", b'{"data": [], "fn_index": true, "session_hash": "a"}'),
        ("large", b'{"data": ["' + b"a" * 2_000_000 + b'"]}'),
    ]  # fmt: skip

    def posted(route: str, body: bytes) -> Check:
        def run(_: Path) -> str | None:
            headers = {"Content-Type": "application/json"}
            answer = Server.at().http.post(f"{API}/{route}", content=body, headers=headers)
            if route in ("cancel", "reset") and answer.status_code == 200:
                return leak(answer.text)
            return wrong(answer, range(400, 500))

        return run

    found = [
        Attack(f"{route}: {name}", posted(route, body), seconds=60)
        for route in routes
        for name, body in bodies
    ]
    values = [None, True, 0, -1, 1e300, 10**400, "", "a" * 5000, "9" * 5000, "AU12=nan", "AU12=" + "9" * 400,
              [], [[]], {}, {"path": 7}, {"path": "\0"}, {"path": None, "meta": {"_type": "gradio.FileData"}},
              "../../etc/passwd", "١", {"__type__": "update"}]  # fmt: skip
    proper = [None, "AU12=1", "", "", False, "all", "", 0, 0]

    def called(place: int, value: Any) -> Check:
        def run(_: Path) -> str | None:
            server = Server.at()
            data = [server.upload(), *proper[1:]]
            data[place] = value
            answer = server.call("edit", data)
            if answer.startswith("event: complete"):
                return None
            return leak(answer)

        return run

    found += [
        Attack(f"edit: value {place} is number {number}", called(place, value), seconds=60)
        for place in range(len(proper))
        for number, value in enumerate(values)
        if not isinstance(value, int) or abs(value) < 10**300  # httpx writes no larger ones
    ]

    def scribbled(number: int, body: str) -> Attack:
        route = chance.choice(routes)
        return Attack(f"{route}: random body {number}", posted(route, body.encode()), seconds=60)

    return found + [
        scribbled(number, "".join(chance.choices('{}[]":,0123e-.tfn \\u' + string.ascii_letters, k=60)))
        for number in range(40)
    ]


def paths() -> list[Attack]:
    """Places of files that were not uploaded: none is read, and no answer tells where anything lies."""
    own = Path(__file__).resolve()
    places = ["/etc/passwd", "../../../../etc/passwd", str(own), own.name, "", ".", "/", "~", "~/.bashrc",
              "\\\\host\\a",               "C:\\Windows\\win.ini", "/proc/self/environ", "/dev/zero",
              "/dev/stdin", "a" * 300, "/" + "a/" * 3000,
              "http://127.0.0.1:9/a", "http://169.254.169.254/latest/meta-data", "https://example.com/a.png",
              "file:///etc/passwd", "ftp://host/a", "data:image/png;base64,AAAA", "%2fetc%2fpasswd",
              "/etc/./passwd",
              "x\0.png", "http:example.com", "HTTP://EXAMPLE.COM/a"]  # fmt: skip

    def sent(name: str, place: str, meta: bool) -> Check:
        def run(_: Path) -> str | None:
            photo = {"path": place, "url": place} | ({"meta": {"_type": "gradio.FileData"}} if meta else {})
            data = [photo, "AU12=1", "", "", False, "all", "", 0, 0] if name == "edit" else [photo]
            answer = Server.at().call(name, data)
            own_words = answer.replace(place, "") if len(place) > 3 else answer
            return "it was read" if answer.startswith("event: complete") else leak(own_words)

        return run

    def fetched(place: str) -> Check:
        def run(_: Path) -> str | None:
            server = Server.at()
            for route in (f"{API}/file=", f"{API}/file/", f"{API}/proxy=", "/static/", "/assets/"):
                answer = server.http.get(httpx.URL(path=route + place))
                if answer.status_code < 400:
                    return f"{route} answered {answer.status_code}"
                if problem := leak(answer.text):
                    return problem
            return None

        return run

    found = [
        Attack(
            f"{name}: {place[:40]!r}{' with its kind' if meta else ''}", sent(name, place, meta), seconds=60
        )
        for place in places
        for name in ("edit", "measure")
        for meta in (True, False)
    ]
    return found + [
        Attack(f"fetched: {place[:40]!r}", fetched(place), seconds=60)
        for place in places
        if "\0" not in place and place not in ("", ".", "/") and len(place) < 4000
    ]


# --- what is sent ---


def uploads(chance: random.Random) -> list[Attack]:
    """Uploads that are broken off, malformed or endless: 4xx, and no file is left."""
    head = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    kind = "multipart/form-data; boundary=b"
    forms = {
        "no boundary": ("multipart/form-data", head + b"x\r\n--b--\r\n"),
        "no end": (kind, head + b"x" * 3_000_000),
        "another boundary": (kind, head.replace(b"--b", b"--c") + b"x\r\n--c--\r\n"),
        "another field": (kind, head.replace(b'"files"', b'"other"') + b"x" * 100 + b"\r\n--b--\r\n"),
        "no name of a field": (kind, head.replace(b' name="files";', b"") + b"x\r\n--b--\r\n"),
        "text for a file": (kind, head.replace(b'; filename="a.png"', b"") + b"x\r\n--b--\r\n"),
        "a long header": (kind, head.replace(b"a.png", b"a" * 100_000) + b"x\r\n--b--\r\n"),
        "many files": (kind, (head + b"x\r\n") * 2000 + b"--b--\r\n"),
        "another kind": ("text/plain", b"x" * 100),
        "an odd kind": ("multipart/form-data; boundary=\xff".encode("latin-1").decode("latin-1"), head),
        "an empty form": (kind, b""),
        "too large": (kind, head + b"x" * (66 * 2**20) + b"\r\n--b--\r\n"),
    }

    def left(server: Server, before: set[Path], patience: float = 5) -> str | None:
        end = time.monotonic() + patience
        while found := files(server) - before:
            if time.monotonic() > end:
                return f"{len(found)} files are left"
            time.sleep(0.05)
        return None

    def files(server: Server) -> set[Path]:
        return {path for path in server.folder.rglob("*") if path.is_file()}

    def posted(content_type: str, body: bytes) -> Check:
        def run(_: Path) -> str | None:
            server = Server.at()
            before = files(server)
            answer = server.http.post(
                f"{API}/upload", content=body, headers={"Content-Type": content_type.encode("latin-1")}
            )
            return wrong(answer, range(400, 500)) or left(server, before)

        return run

    @contextlib.contextmanager
    def begun(server: Server, size: int, body: bytes) -> Iterator[socket.socket]:
        """A connection that has sent the beginning of an upload of that size."""
        with socket.create_connection(("127.0.0.1", server.port), timeout=60) as line:
            line.sendall(
                f"POST {API}/upload HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\n"
                f"Content-Length: {size}\r\n\r\n".encode()
            )
            line.sendall(body)
            yield line

    def broken(share: float, size: int) -> Check:
        def run(_: Path) -> str | None:
            server = Server.at()
            before = files(server)
            with begun(server, size, head + b"x" * int(share * size)):
                pass
            return left(server, before)

        return run

    def named(name: str) -> Check:
        def run(_: Path) -> str | None:
            server = Server.at()
            answer = server.http.post(f"{API}/upload", files={"files": (name, b"x")})
            for place in answer.json() if answer.status_code == 200 else []:
                path = Path(place)
                if not path.resolve().is_relative_to(server.folder.resolve()) or not path.is_file():
                    return f"kept as {place}"
                path.unlink()
            return wrong(answer, range(400, 500)) if answer.status_code != 200 else None

        return run

    def slow(_: Path) -> str | None:
        server = Server.at()
        before = files(server)
        with begun(server, 1_000_000, head) as line:
            status = line.recv(100).split()[1:2]
        return left(server, before) if status == [b"408"] else f"answered {status}"

    names = ("../../evil", "/etc/evil", "..", ".", "a\0b.png", "a" * 5000 + ".png", "\\..\\..\\evil",
             "CON", "é" * 200,
             "a.png/../../b", "%2e%2e%2f", "<img src=x>.png", "\u202egnp.exe", "a\nb.png")  # fmt: skip
    found = [Attack(f"upload: {name}", posted(*form), seconds=60) for name, form in forms.items()]
    found += [
        Attack(
            f"upload: broken off, number {number}",
            broken(chance.random(), chance.choice([100, 10**5, 10**7])),
            60,
        )
        for number in range(20)
    ]
    found += [Attack(f"upload: named, number {n}", named(name), seconds=60) for n, name in enumerate(names)]
    return [*found, Attack("upload: slow", slow, seconds=60)]


# --- pages ---


def on_upload(server: Server, session: str) -> dict[str, Any]:
    return server.event_of_page(session, "on_upload", values(server, "on_upload", {0: server.upload()}))


def values(server: Server, name: str, given: dict[int, Any]) -> list[Any]:
    """What the page sends with an event: its components' first values, but for those of places given; the
    place of the only file is 0."""
    components = {part["id"]: part for part in server.http.get("/config").json()["components"]}
    inputs = [components[number] for number in server.event(name)["inputs"]]
    sent = [part["props"].get("value") for part in inputs]
    for place, part in enumerate(inputs):
        if part["type"] == "file":
            sent[place] = given[0]
    return sent


def invented_names(_: Path) -> str | None:
    """600 names without photographs take no photograph away, and 20 pages in turn keep theirs."""
    server = Server.at()
    pages = [f"page{number}" for number in range(20)]
    for page in pages:
        if not on_upload(server, page)["success"]:
            return f"{page} could not open a photograph"
    for number in range(600):
        if not server.event_of_page(f"invented{number}", "on_view", [False]).get("output"):
            return "an invented name got no answer"
    for page in pages:
        said = server.event_of_page(page, "on_view", [False])
        if not said["success"]:
            return f"{page} lost its photograph: {said['output']}"
    return None


def one_page(_: Path) -> str | None:
    """300 edits of one page: memory grows by less than 60 MB."""
    return growth_of_edits(pages=1, edits=300)


def pages_in_turn(_: Path) -> str | None:
    """50 pages, one after another, with a few edits each."""
    return growth_of_edits(pages=50, edits=6)


def growth_of_edits(pages: int, edits: int) -> str | None:
    """Opens pages in turn, which edit and are closed: each gets its own edits, and memory does not grow."""
    server = Server.at()
    asking = server.event("on_ask")["inputs"]
    known = {part["id"]: part["props"] for part in server.http.get("/config").json()["components"]}
    named = {known[number].get("elem_id"): place for place, number in enumerate(asking)}
    data = [known[number].get("value") for number in asking]
    data[named["faces"]], data[asking.index(server.event("on_cancel")["outputs"][0])] = "Face 1", 1
    settled, grown = None, 0.0
    for number in range(pages):
        name = f"turn{pages}-{number}"
        with server.http.stream("GET", f"{API}/heartbeat/{name}"):  # its end is the page's
            if not on_upload(server, name)["success"]:
                return f"{name} could not open its photograph"
            for edit in range(edits):
                value = round(0.1 * (1 + (number * edits + edit) % 49), 1)
                data[named["slider-AU12L"]] = value
                said = json.dumps(server.event_of_page(name, "on_ask", data))
                if f"AU12 +{value}" not in said or f"Edit {min(edit + 1, 50)} of" not in said:
                    return f"{name} asked for AU12 {value} as edit {edit + 1}: {leak(said) or said[:200]}"
                if number * edits + edit == 60:
                    settled = resident()
                if settled is not None:
                    grown = max(grown, resident() - settled)
    return f"grew by {grown:.0f} MB" if grown > 60 else None


def resident() -> float:
    """Resident memory of this process in MB (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


# --- processes of their own ---


@contextlib.contextmanager
def process(folder: Path, **environment: str) -> Iterator[tuple[subprocess.Popen, str]]:
    """`magicedit app`, and its address."""
    command = [sys.executable, "-m", "magicedit.cli", "app", "--port", "0"]
    given = os.environ | {"TMPDIR": str(folder)} | environment
    started = subprocess.Popen(
        command, env=given, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    try:
        for line in started.stderr:
            if found := re.search(r"the page is at (http\S+)", line):
                yield started, found[1].rstrip("/")
                return
        raise RuntimeError("the server did not start")
    finally:
        started.kill()
        started.wait()


def environments() -> list[Attack]:
    everything = {
        "GRADIO_ALLOWED_PATHS": "/", "GRADIO_VIBE_MODE": "1", "GRADIO_LOCAL_DEV_MODE": "1",
        "GRADIO_ROOT_PATH": "https://evil.com", "GRADIO_MCP_SERVER": "True", "GRADIO_SHARE": "True",
        "GRADIO_SERVER_NAME": "0.0.0.0", "GRADIO_NUM_WORKERS": "2", "GRADIO_SSR_MODE": "True",
        "GRADIO_PROFILING": "1", "GRADIO_WATCH_DIRS": "/tmp", "GRADIO_DEBUG": "1",
        "GRADIO_BLOCKED_PATHS": "/tmp", "GRADIO_TEMP_DIR": "/nonexistent", "GRADIO_RUN_HISTORY": "True",
        "GRADIO_NODE_PATH": "/bin/false",
        "GRADIO_DEFAULT_CONCURRENCY_LIMIT": "0", "GRADIO_CACHE_EXAMPLES": "1", "GRADIO_FLAGGING_MODE": "auto",
    }  # fmt: skip

    def check(given: dict[str, str]) -> Check:
        def run(folder: Path) -> str | None:
            secret = folder.parent / f"{folder.name}-secret.txt"
            secret.write_text("secret")
            with process(folder, **given) as (started, address):
                for route in (f"{API}/file={secret}", f"{API}/file=/etc/passwd", "/monitoring",
                              f"{API}/vibe-code/", f"{API}/profiling/summary", f"{API}/mcp/", f"{API}/runs",
                              f"{API}/dev/reload"):  # fmt: skip
                    status = httpx.get(address + route, timeout=60).status_code
                    if status < 400:
                        return f"{route} answered {status}"
                config = httpx.get(f"{address}/config", timeout=60)
                if "evil.com" in config.text or config.json()["root"] != address:
                    return f"its root is {config.json()['root']}"
                if (
                    answer := httpx.get(f"{address}/config", headers={"Origin": "null"}, timeout=60)
                ).status_code != 403:
                    return f"answered {answer.status_code} to an origin without a name"
                started.send_signal(signal.SIGTERM)
                if started.wait(timeout=15) != 0:
                    return f"ended with {started.returncode}"
            left = [*folder.glob("magicedit-app-*")]
            return f"left {left}" if left else None

        return run

    each = [
        Attack(f"environment: {name}", check({name: text}), seconds=120) for name, text in everything.items()
    ]
    return [*each, Attack("environment: all of it", check(everything), seconds=120)]


def killed(folder: Path) -> str | None:
    """What a killed server left is removed by the next start; a living server's folder is not."""
    with process(folder) as (living, _):
        own = set(folder.glob("magicedit-app-*"))
        with process(folder) as (dead, address):
            httpx.post(f"{address}{API}/upload", files={"files": ("a.png", face())}, timeout=60)
            both = set(folder.glob("magicedit-app-*"))
            dead.kill()
            dead.wait()
        with process(folder):
            left = set(folder.glob("magicedit-app-*"))
        living.poll()
    if len(both) != 2 or not own <= left or (both - own) & left:
        return f"there were {len(both)} folders, {len(left & both)} of them are left"
    return None
