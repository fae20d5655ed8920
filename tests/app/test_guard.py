"""What the page's server refuses, and what its answers say and leave."""

import base64
import contextlib
import json
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from gradio_client import Client, handle_file
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from magicedit.app.guard import MOST_FILES, Guard, Limits, safe_name
from magicedit.app.server import free_address, listening, serve
from magicedit.editor import ExpressionEditor
from magicedit.errors import MagicEditError
from magicedit.imaging import open_photo

API = "/gradio_api"
PHOTO = {"meta": {"_type": "gradio.FileData"}}
REST = ["AU12=1", "", "", False, "all", "", 0, 0]  # of the arguments of /edit
PART = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
FORM = "multipart/form-data; boundary=b"


class Served:
    """A page for other machines, in this process. said: what it tells when it starts."""

    def __init__(self, editor: ExpressionEditor, **options):
        self.said, self.until = [], threading.Event()
        known = {"host": "0.0.0.0", "port": 0, "say": self.said.append, "until": self.until}
        self.thread = threading.Thread(target=serve, args=(lambda: editor,), kwargs=known | options)
        self.thread.start()
        while not any("the page is at" in text for text in self.said):
            assert self.thread.is_alive()
            time.sleep(0.02)
        port = int(re.search(r":(\d+)/", self.said[-1])[1])
        self.address = f"http://127.0.0.1:{port}"

    def end(self) -> None:
        self.until.set()
        self.thread.join()


@pytest.fixture(scope="module")
def editor() -> ExpressionEditor:
    return ExpressionEditor.from_pretrained("mini")


@pytest.fixture(scope="module")
def shared_page(editor) -> Iterator[Served]:
    """With a password that it made itself, and a further name."""
    served = Served(editor, allow_hosts=["photos.example"])
    yield served
    served.end()


@pytest.fixture(scope="module")
def password(shared_page) -> str:
    return next(
        re.search(r"the password is (\S+)", text)[1] for text in shared_page.said if "password" in text
    )


def writes(address: str) -> list[tuple[str, dict]]:
    session = {"data": [], "fn_index": 0, "session_hash": "a"}
    return [
        (f"{address}{API}/upload", {"files": {"files": ("a.png", b"x")}}),
        (f"{address}{API}/queue/join", {"json": session}),
        (f"{address}{API}/call/edit", {"json": {"data": []}}),
        (f"{address}{API}/run/predict", {"json": session}),
        (f"{address}{API}/cancel", {"json": session | {"event_id": "a"}}),
    ]


FOREIGN = [
    {"Origin": "http://evil.com"},
    {"Origin": "null"},
    {"Origin": "http://localhost:1"},
    {"Origin": "http://127.0.0.1.evil.com"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
]


def refused(answer: httpx.Response, status: int) -> None:
    assert answer.status_code == status, answer.text
    assert "access-control-allow-origin" not in answer.headers
    assert sentence(answer)


def sentence(answer: httpx.Response) -> str:
    """What a refusal says: in plain text where the page shows all of it, which it does of an upload's."""
    if answer.url.path.endswith("/upload"):
        assert answer.headers["content-type"].startswith("text/plain")
        assert "{" not in answer.text
        return answer.text
    assert {*answer.json()} == {"detail", "error"}
    return answer.json()["detail"]


@pytest.mark.parametrize("headers", FOREIGN)
def test_other_sites_may_neither_write_nor_read(address, shared_page, password, headers):
    for place, auth in ((address, None), (shared_page.address, ("", password))):
        for url, sent in writes(place):
            refused(httpx.post(url, headers=headers, auth=auth, **sent), 403)
            asks = headers | {"Access-Control-Request-Method": "POST"}
            refused(httpx.options(url, headers=asks, auth=auth), 403)
        refused(httpx.get(f"{place}/config", headers=headers, auth=auth), 403)


def test_the_page_itself_and_links_to_it_are_served(address):
    own = {"Origin": address, "Sec-Fetch-Site": "same-origin"}
    answer = httpx.post(f"{address}{API}/upload", files={"files": ("a.png", b"x")}, headers=own)
    assert answer.status_code == 200
    assert "access-control-allow-origin" not in answer.headers
    Path(answer.json()[0]).unlink()
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    answer = httpx.get(address, headers=link)
    assert answer.status_code == 200
    assert answer.headers["x-frame-options"] == "DENY"
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "same-origin"


def test_other_machines_need_the_password_for_everything(shared_page, password):
    place = shared_page.address
    for route in ("/", "/config", f"{API}/info", "/theme.css", f"{API}/queue/data?session_hash=a"):
        refused(httpx.get(place + route), 401)
    for url, sent in writes(place):
        refused(httpx.post(url, **sent), 401)
    started = time.perf_counter()
    refused(httpx.get(place, auth=("", password + "x")), 401)
    assert time.perf_counter() - started > 0.9  # guessing takes time
    refused(httpx.get(place, headers={"Authorization": "Basic %"}), 401)
    assert httpx.get(place, auth=("anybody", password)).status_code == 200


def test_the_api_works_with_the_password(shared_page, password, photographs):
    told = "Basic " + base64.b64encode(f":{password}".encode()).decode()
    for given in ({"headers": {"Authorization": told}}, {"auth": ("anybody", password)}):
        client = Client(shared_page.address, verbose=False, **given)
        edited, report = client.predict(handle_file(photographs / "one.png"), "AU12=-1", api_name="/edit")
        assert Path(edited).is_file()
        assert report["faces"][0]["requested"] == {"AU12": -1.0}


def test_names_of_the_machine(shared_page, password):
    """Its address, its own names and those that were allowed; else a stranger's name could point here."""
    known = ("127.0.0.1", "localhost:80", socket.gethostname(), "photos.example", "PHOTOS.example:8080")
    for name in known:
        answer = httpx.get(f"{shared_page.address}/config", auth=("", password), headers={"Host": name})
        assert answer.status_code == 200, name
    for name in ("evil.example", "photos.example.evil", "", "[::1"):
        refused(httpx.get(f"{shared_page.address}/config", auth=("", password), headers={"Host": name}), 400)


def test_passwords_of_the_environment_and_empty_ones(editor, monkeypatch):
    with pytest.raises(MagicEditError, match="password is empty"):
        serve(lambda: editor, port=0, password="")
    monkeypatch.setenv("MAGICEDIT_PASSWORD", "pa:ss wörd")
    served = Served(editor, host="127.0.0.1")
    try:
        assert not any("password" in text for text in served.said)
        assert httpx.get(served.address).status_code == 401
        assert httpx.get(served.address, auth=httpx.BasicAuth(b"a", "pa:ss wörd".encode())).status_code == 200
    finally:
        served.end()


BODIES = [
    b"",
    b"{",
    b'{"data": "\xff"}',
    b'{"data": ["\\ud800"]}',
    b"null",
    b"[]",
    b'{"data": [NaN]}',
    b'{"data": [' + b"9" * 5000 + b"]}",
    b'{"data": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    b"{}",
    b'{"data": []}',
    b'{"data": "abc"}',
    b'{"data": [], "session_hash": 7}',
    b'{"data": [], "fn_index": "0", "session_hash": "a"}',
    b'{"data": [], "fn_index": 99999, "session_hash": "a"}',
    b'{"data": [], "fn_index": -1, "session_hash": "a"}',
    b'{"data": ["' + b"a" * 2_000_000 + b'"]}',
]


@pytest.mark.parametrize(
    "route",
    ["queue/join", "call/edit", "call/v2/edit", "call/on_upload", "run/predict", "component_server", "upload",
     "process_recording", "vibe-edit", "call/nothing"],
)  # fmt: skip
def test_malformed_bodies_are_refused_with_a_sentence(address, route):
    for body in BODIES:
        answer = httpx.post(f"{address}{API}/{route}", content=body, headers={"Content-Type": "text/json"})
        assert 400 <= answer.status_code < 500, (body[:80], answer.text)
        assert 0 < len(sentence(answer)) < 500


def test_events_that_wait_cannot_pass_the_queue(address):
    config = httpx.get(f"{address}/config").json()
    event = next(event for event in config["dependencies"] if event["api_name"] == "edit")
    body = {"data": [None, *REST], "fn_index": event["id"], "session_hash": "a"}
    refused(httpx.post(f"{address}{API}/run/edit", json=body), 404)


def outcome(address: str, data: list, name: str = "edit") -> str:
    event = httpx.post(f"{address}{API}/call/{name}", json={"data": data}).json()["event_id"]
    return httpx.get(f"{address}{API}/call/{name}/{event}", timeout=60).text


@pytest.fixture(scope="module")
def uploaded(address, photographs) -> dict:
    files = {"files": ("one.png", (photographs / "one.png").read_bytes())}
    return PHOTO | {"path": httpx.post(f"{address}{API}/upload", files=files).json()[0]}


@pytest.mark.parametrize(
    "place",
    [
        "/etc/passwd",
        "setup.cfg",
        "../../etc/passwd",
        "",
        "/dev/zero",
        "http://127.0.0.1:9/a",
        "http:a",
    ],
)
def test_errors_tell_no_paths_of_the_server(address, place):
    for photo in (PHOTO | {"path": place}, {"path": place}, [PHOTO | {"path": place}], {"a": PHOTO}):
        answer = outcome(address, [photo], "measure")
        assert answer.startswith("event: error")
        assert json.loads(answer.split("data: ")[1])["error"]
        assert not re.search(r"/tmp|gradio|pydantic|<|" + re.escape(os.getcwd()), answer), answer
    answer = httpx.get(httpx.URL(address, path=f"{API}/file={place}"))
    refused(answer, 404 if place in ("", "../../etc/passwd") else 403)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (5, "9" * 50, "face must be"),
        (5, "9" * 5000, "face must have at most"),
        (5, "b" * 5000, "face must have at most"),
        (5, "third", "face must be"),
        (1, "a" * 5000, "add must have at most"),
        (4, "yes", "neutral must be true or false"),
        (8, "much", "tolerance must be a number"),
        (7, "much", "the values are not those"),
        (7, {"a": 1}, "the values are not those"),
        (0, 7, "the values are not those"),
    ],
)
def test_values_of_another_kind_are_told(address, uploaded, place, value, message):
    data = [uploaded, *REST]
    data[place] = value
    answer = outcome(address, data)
    assert answer.startswith("event: error")
    told = json.loads(answer.split("data: ")[1])["error"]
    assert message in told
    assert len(told) < 300


def test_what_the_api_hands_out_says_nothing_of_place_and_camera(address, photographs, tmp_path):
    from PIL import ExifTags, Image

    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "Maker"
    exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] = "N"
    exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitude] = (51.0, 28.0, 40.0)
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.BodySerialNumber] = "SERIAL-1234"
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.CameraOwnerName] = "Somebody"
    xmp = (
        b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        b'<rdf:Description xmlns:exif="http://ns.adobe.com/exif/1.0/" exif:GPSLatitude="51,28.667N"/>'
        b"</rdf:RDF></x:xmpmeta>"
    )
    with Image.open(photographs / "one.png") as image:
        image.save(tmp_path / "placed.jpg", exif=exif, xmp=xmp, quality=95)
    assert b"SERIAL-1234" in open_photo(tmp_path / "placed.jpg").exif
    client = Client(address, verbose=False)
    edited, _ = client.predict(handle_file(tmp_path / "placed.jpg"), "AU12=-1", api_name="/edit")
    with Image.open(edited) as image:
        kept = image.getexif()
        assert kept[ExifTags.Base.Make] == "Maker"
        assert kept.get_ifd(ExifTags.IFD.GPSInfo) == {}
        content = Path(edited).read_bytes() + str(image.info).encode()
    for private in (b"SERIAL-1234", b"Somebody", b"51,28.667N", b"GPSLatitude"):
        assert private not in content


# --- uploads; with an application of a few lines, whose guard has short limits ---


@pytest.fixture
def guarded(tmp_path) -> Iterator[tuple[int, Path]]:
    """A guarded server's port and its folder of uploads."""

    async def echo(request: Request) -> PlainTextResponse:
        return PlainTextResponse(await request.body())

    app = Starlette(routes=[Route(f"{API}/reset", echo, methods=["POST"])])
    guard = Guard(
        app,
        hosts={"127.0.0.1", "localhost"},
        password=None,
        folder=tmp_path,
        events={},
        limits=Limits(upload=1_000_000, body=1000, pause=0.5, whole=1.5),
    )
    _, port = free_address("127.0.0.1", 0)
    with listening(guard, "127.0.0.1", port):
        yield port, tmp_path


def opened(port: int, length: int, kind: str = FORM, route: str = "upload") -> socket.socket:
    line = socket.create_connection(("127.0.0.1", port), timeout=30)
    head = f"POST {API}/{route} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\n"
    line.sendall(f"{head}Content-Length: {length}\r\n\r\n".encode())
    return line


def test_uploads_are_kept_whole_under_their_names(guarded):
    port, folder = guarded
    content = os.urandom(900_000)
    answer = httpx.post(f"http://localhost:{port}{API}/upload", files={"files": ("mé 1.png", content)})
    (place,) = answer.json()
    assert Path(place).read_bytes() == content
    assert Path(place).name == "mé 1.png"
    assert Path(place).is_relative_to(folder)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (FORM, PART + b"x" * 900_000),
        (FORM, PART.replace(b'"files"', b'"other"') + b"x\r\n--b--\r\n"),
        (FORM, PART.replace(b'; filename="a.png"', b"") + b"x\r\n--b--\r\n"),
        (FORM, PART.replace(b' name="files";', b"") + b"x\r\n--b--\r\n"),
        (FORM, PART.replace(b"a.png", b"a" * 100_000) + b"x\r\n--b--\r\n"),
        (FORM, (PART + b"x\r\n") * 500 + b"--b--\r\n"),
        (FORM, b""),
        ("multipart/form-data", PART + b"x\r\n--b--\r\n"),
        ("text/plain", b"x"),
    ],
)
def test_malformed_uploads_leave_nothing(guarded, kind, body):
    port, folder = guarded
    answer = httpx.post(
        f"http://localhost:{port}{API}/upload", content=body, headers={"Content-Type": kind}, timeout=30
    )
    refused(answer, 400)
    assert list(folder.iterdir()) == []


def test_how_many_files_an_upload_may_have_is_told(guarded):
    port, folder = guarded
    files = [("files", (f"{number}.png", b"x")) for number in range(MOST_FILES + 1)]
    answer = httpx.post(f"http://localhost:{port}{API}/upload", files=files, timeout=30)
    refused(answer, 400)
    assert "more than 20 files" in sentence(answer)
    assert list(folder.iterdir()) == []
    assert httpx.post(f"http://localhost:{port}{API}/upload", files=files[1:], timeout=30).status_code == 200


@pytest.mark.parametrize("count", [0, 10, 500_000])
def test_uploads_that_are_broken_off_leave_nothing(guarded, count):
    port, folder = guarded
    with opened(port, 900_000) as line:
        line.sendall(PART + b"x" * count)
    time.sleep(0.1)
    httpx.post(
        f"http://localhost:{port}{API}/reset", content=b"{}"
    )  # the server has seen the end of the other
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("route", ["upload", "reset"])
def test_clients_that_send_too_slowly_are_told_so(guarded, route):
    """One that pauses, and one that never does and never ends; meanwhile others are served."""
    port, folder = guarded
    with opened(port, 900, route=route) as pausing:
        pausing.sendall(PART)
        assert httpx.post(f"http://localhost:{port}{API}/reset", content=b"{}").text == "{}"
        assert pausing.recv(100).startswith(b"HTTP/1.1 408")
    with opened(port, 900, route=route) as endless:
        endless.sendall(PART)
        endless.settimeout(0.1)
        answer = b""
        while not answer:
            with contextlib.suppress(ConnectionError):  # the server has answered, and closed
                endless.sendall(b"x")
            with contextlib.suppress(TimeoutError):
                answer = endless.recv(100)
        assert answer.startswith(b"HTTP/1.1 408")
    assert list(folder.iterdir()) == []


def test_bodies_that_are_too_large_are_refused(guarded):
    port, folder = guarded

    def parts() -> Iterator[bytes]:  # tells no length
        yield PART
        for _ in range(30):
            yield b"x" * 100_000

    for content in (PART + b"x" * 3_000_000, parts()):
        answer = httpx.post(
            f"http://localhost:{port}{API}/upload",
            content=content,
            headers={"Content-Type": FORM},
            timeout=30,
        )
        refused(answer, 413)
    refused(httpx.post(f"http://localhost:{port}{API}/reset", content=b"x" * 2000), 413)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("one.png", "one.png"),
        ("../../etc/passwd", "passwd"),
        ("C:\\photos\\a.jpg", "a.jpg"),
        ("..", "file"),
        (None, "file"),
        ("a\0b\n.png", "a_b_.png"),
        ("é" * 200 + ".jpeg", "é" * 47 + ".jpeg"),
        (".png", "png"),
    ],
)
def test_names_of_uploads(name, kept):
    assert safe_name(name) == kept
