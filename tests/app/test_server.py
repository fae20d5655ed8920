"""Starting and ending the server: addresses, files, signals."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from gradio_client import Client, handle_file

from magicedit.app.folders import temporary_folder
from magicedit.app.server import free_address, own_environment, serve
from magicedit.cli import main
from magicedit.errors import MagicEditError, ModelError


@pytest.fixture
def taken_port():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


def test_without_stubs_an_import_of_the_page_parses_no_stub_files():
    """Their parsing would take a second of the page's start."""
    code = """if True:
        import sys
        from magicedit.app.stubs import without_stubs
        opened = []
        sys.addaudithook(lambda event, told: event == "open" and opened.append(str(told[0])))
        with without_stubs():
            import magicedit.app.page
        print(sum(name.endswith(".pyi") for name in opened))
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0"


def test_a_taken_port_is_told_before_the_model_loads(taken_port, capsys):
    assert main(["app", "--port", str(taken_port)]) == 2
    told = capsys.readouterr().err
    assert f"cannot listen on 127.0.0.1, port {taken_port}" in told
    assert "choose another --port" in told
    assert "loading" not in told


@pytest.mark.parametrize(
    ("host", "port"), [("127.0.0.1", 70000), ("192.0.2.1", 0), ("no.such.host.invalid", 0), ("::1", 0)]
)
def test_addresses_that_cannot_be_had(host, port):
    with pytest.raises(MagicEditError):
        free_address(host, port)


def test_any_free_port():
    address, port = free_address("localhost", 0)
    assert address == "127.0.0.1"
    assert 1024 <= port < 65536


def test_a_model_that_does_not_load_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv("GRADIO_TEMP_DIR", raising=False)

    def fails():
        raise ModelError("no such model")

    with pytest.raises(ModelError):
        serve(fails, port=0)
    assert list(tmp_path.iterdir()) == []
    assert "GRADIO_TEMP_DIR" not in os.environ


@contextlib.contextmanager
def served_here(temporary: Path) -> Iterator[Path]:
    """The folder of a server that starts now."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tempfile.tempdir", str(temporary))
        with temporary_folder() as folder:
            yield folder


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGHUP])
def test_uploads_and_results_are_deleted_when_it_ends(serving, photographs, tmp_path, kind):
    with serving(TMPDIR=str(tmp_path)) as (address, process):
        client = Client(address, verbose=False)
        client.predict(handle_file(photographs / "one.png"), "AU12=-1", api_name="/edit")
        folder = next(tmp_path.glob("magicedit-app-*"))
        assert [path.name for path in folder.rglob("*.png")] != []
        assert address.startswith("http://127.0.0.1:")
        process.send_signal(kind)
        assert process.wait(timeout=30) == 0
    assert list(tmp_path.glob("magicedit-app-*")) == []


HOSTILE = {
    "GRADIO_ALLOWED_PATHS": "/",
    "GRADIO_VIBE_MODE": "1",
    "GRADIO_LOCAL_DEV_MODE": "1",
    "GRADIO_ROOT_PATH": "https://evil.example",
    "GRADIO_MCP_SERVER": "True",
    "GRADIO_SSR_MODE": "True",
    "GRADIO_NUM_WORKERS": "2",
    "GRADIO_PROFILING": "1",
    "GRADIO_TEMP_DIR": "/nonexistent",
}


def test_variables_of_gradio_change_nothing_and_a_killed_servers_folder_is_removed(
    serving, photographs, tmp_path
):
    with serving(TMPDIR=str(tmp_path), **HOSTILE) as (address, process):
        assert httpx.get(f"{address}/config").json()["root"] == address
        for route in (
            f"file={photographs / 'one.png'}",
            "vibe-code/",
            "mcp/",
            "profiling/summary",
            "dev/reload",
        ):
            assert httpx.get(f"{address}/gradio_api/{route}").status_code in (403, 404)
        assert httpx.get(f"{address}/monitoring/summary").status_code == 404
        assert httpx.get(f"{address}/config", headers={"Origin": "null"}).status_code == 403
        httpx.post(f"{address}/gradio_api/upload", files={"files": ("a.png", b"x")})
        (dead,) = tmp_path.glob("magicedit-app-*")
        process.kill()
        process.wait()
    assert list(dead.rglob("a.png")) != []
    with served_here(tmp_path) as living:
        assert not dead.exists()
        with served_here(tmp_path) as other:
            assert living.exists()
            assert other != living


def test_the_environment_is_as_before_when_it_ends(monkeypatch, tmp_path):
    monkeypatch.setenv("GRADIO_ALLOWED_PATHS", "/")
    before = dict(os.environ)
    with own_environment(tmp_path):
        told = {name: text for name, text in os.environ.items() if name.startswith("GRADIO_")}
        assert told == {"GRADIO_TEMP_DIR": str(tmp_path), "GRADIO_ANALYTICS_ENABLED": "False"}
    assert dict(os.environ) == before


def test_other_names_of_this_machine_are_refused(address):
    """Else a stranger's page whose name points here could use the API (DNS rebinding)."""
    for name, status in (("evil.example", 400), ("localhost", 200), ("127.0.0.1:7860", 200)):
        assert httpx.get(f"{address}/config", headers={"Host": name}).status_code == status


def test_it_is_reached_from_this_machine_alone(address):
    """The page listens on loopback, whatever other addresses this machine has."""
    port = int(address.rsplit(":", 1)[1])
    others = subprocess.run(["hostname", "-I"], capture_output=True, text=True, check=False).stdout.split()
    others = [host for host in others if ":" not in host]
    if not others:
        pytest.skip("this machine has no address but loopback")
    with pytest.raises(OSError, match=r"refused|unreachable"):
        socket.create_connection((others[0], port), timeout=5)


def test_nothing_of_the_page_comes_from_elsewhere(address):
    """No fonts, no analytics; links that only people follow are none."""
    page = httpx.get(address).text
    assert "fonts.googleapis.com" not in page
    config = httpx.get(f"{address}/config").json()
    assert config["analytics_enabled"] is False
