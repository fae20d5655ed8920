"""Pushing a folder, and downloading it: what is sent, to whom, and what is refused."""

import hashlib
import http.client
import json
import pickle
import shutil
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from machines import OWNER, READER, STRANGER
from safetensors.numpy import save_file

from magicedit.errors import ModelError
from magicedit.hub import check_pipeline_folder, push_folder

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"

PUSH = """
from magicedit.errors import MagicEditError
from magicedit.hub import push_folder

try:
    result["url"] = push_folder(folder, repo, **options)
except MagicEditError as error:
    result["error"], result["message"] = type(error).__name__, str(error)
"""
DOWNLOAD = """
import hashlib
from pathlib import Path
from huggingface_hub import snapshot_download

try:
    snapshot = Path(snapshot_download(repo))
    files = [path for path in snapshot.rglob("*") if path.is_file()]
    result["files"] = {
        str(path.relative_to(snapshot)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }
except Exception as error:
    result["error"], result["message"] = type(error).__name__, str(error)
"""


def push(machine, folder: Path, repo: str, *, token: str | None = OWNER, offline=False, **options) -> dict:
    return machine.run(PUSH, token=token, offline=offline, folder=str(folder), repo=repo, options=options)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def digests(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): sha256(path) for path in folder.rglob("*") if path.is_file()}


def test_what_is_pushed_comes_back_and_again_offline(hub, machine, small_folder):
    done = push(machine, small_folder, "alice/small", commit_message="First weights")
    assert done == {"url": f"{hub.url}/alice/small"}
    assert hub.repositories["alice/small"].messages[hub.repositories["alice/small"].head] == "First weights"
    assert hub.large_files("alice/small") == {WEIGHTS}

    online = machine.run(DOWNLOAD, repo="alice/small")
    assert set(online["files"]) - set(digests(small_folder)) == {".gitattributes"}  # the hub's own
    assert digests(small_folder).items() <= online["files"].items()

    asked_before = len(hub.requests)
    assert machine.run(DOWNLOAD, repo="alice/small", offline=True) == online
    assert len(hub.requests) == asked_before


def test_a_second_push_sends_only_what_changed(hub, machine, small_folder):
    push(machine, small_folder, "alice/twice")
    first = hub.repositories["alice/twice"].head
    (small_folder / "README.md").write_text("---\nlicense: mit\n---\n\n# Changed\n")
    asked_before = len(hub.requests)
    assert "url" in push(machine, small_folder, "alice/twice")
    assert hub.repositories["alice/twice"].head != first
    assert hub.files("alice/twice")["README.md"] == (small_folder / "README.md").read_bytes()
    assert not any(method == "PUT" for method, _ in hub.requests[asked_before:])


def test_only_the_pipeline_is_sent(hub, machine, small_folder):
    expected = set(digests(small_folder)) | {".gitattributes"}
    (small_folder / ".env").write_text("SECRET=1")
    (small_folder / "unet" / ".notes").write_text("private")
    (small_folder / "checkpoint-500").mkdir()
    (small_folder / "checkpoint-500" / "state.json").write_text("{}")
    settings = {
        "train_data_dir": "/home/alice/people",
        "base_model": "owner/base",
        "output_dir": "C:\\runs\\one",
    }
    (small_folder / "train_config.json").write_text(json.dumps(settings | {"block_out_channels": [16, 32]}))
    assert "url" in push(machine, small_folder, "alice/clean")
    assert set(hub.files("alice/clean")) == expected | {"train_config.json"}
    published = json.loads(hub.files("alice/clean")["train_config.json"])
    assert published == {  # names in place of folders, which tell of a machine
        "train_data_dir": "people",
        "base_model": "owner/base",
        "output_dir": "one",
        "block_out_channels": [16, 32],
    }


def test_the_address_of_shards_is_not_published(hub, machine, small_folder):
    settings = {"train_data_dir": "https://host/shards/{}?key=secret", "data_license": "https://host/license"}
    (small_folder / "train_config.json").write_text(json.dumps(settings))
    assert "url" in push(machine, small_folder, "alice/shards")
    published = json.loads(hub.files("alice/shards")["train_config.json"])
    assert published == settings | {"train_data_dir": "shards"}


def test_a_private_repository_is_for_its_owner(hub, machine, small_folder):
    assert "url" in push(machine, small_folder, "alice/secret", private=True)
    assert hub.repositories["alice/secret"].private
    for token, reason in ((None, "401"), (STRANGER, "404")):
        refused = machine.run(DOWNLOAD, repo="alice/secret", token=token)
        assert refused["error"] == "RepositoryNotFoundError"
        assert reason in refused["message"]
        assert "make sure you are authenticated" in refused["message"]
    assert set(machine.run(DOWNLOAD, repo="alice/secret", token=READER)["files"]) == set(
        hub.files("alice/secret")
    )


def test_nothing_private_goes_to_a_public_repository(hub, machine, small_folder):
    push(machine, small_folder, "alice/public")
    before = hub.repositories["alice/public"].head
    (small_folder / "README.md").write_text("---\nlicense: mit\n---\n\n# Private\n")
    done = push(machine, small_folder, "alice/public", private=True)
    assert done["error"] == "OutputError"
    assert "is public" in done["message"]
    assert hub.repositories["alice/public"].head == before


@pytest.mark.parametrize(
    ("token", "repo", "expected"),
    [
        (None, "alice/new", ["needs an access token", "hf auth login", "HF_TOKEN"]),
        ("token-made-up", "alice/new", ["does not accept the access token", "hf auth login"]),
        (READER, "alice/new", ["may not write to alice/new", "write permission"]),
        (STRANGER, "alice/new", ["may not write to alice/new", "write permission"]),
        (OWNER, "alice/new/model", ["owner/name", "alice/new/model"]),
    ],
)
def test_refusals_say_what_to_do(hub, machine, small_folder, token, repo, expected):
    done = push(machine, small_folder, repo, token=token)
    assert done["error"] == "OutputError"
    for part in expected:
        assert part in done["message"]
    assert "alice/new" not in hub.repositories


def test_a_reader_of_an_existing_repository_may_not_write(hub, machine, small_folder):
    push(machine, small_folder, "alice/read")
    before = hub.repositories["alice/read"].head
    done = push(machine, small_folder, "alice/read", token=READER)
    assert done["error"] == "OutputError"
    assert "may not write to alice/read" in done["message"]
    assert hub.repositories["alice/read"].head == before


def test_without_a_network(hub, machine, small_folder):
    done = push(machine, small_folder, "alice/offline", offline=True)
    assert done["error"] == "OutputError"
    assert "unset" in done["message"]
    assert "HF_HUB_OFFLINE" in done["message"]

    machine.endpoint = "http://127.0.0.1:9"  # the discard port: nobody listens
    done = push(machine, small_folder, "alice/offline")
    assert done["error"] == "OutputError"
    assert "http://127.0.0.1:9 cannot be reached" in done["message"]
    assert "alice/offline" not in hub.repositories


# -- what the hub and the client do about damage --


def test_an_upload_that_is_not_what_it_says_is_refused(hub, machine, small_folder):
    code = """
from huggingface_hub.lfs import UploadInfo

UploadInfo.sha256 = property(lambda info: bytes(32))  # as if the file had changed since it was hashed
"""
    before = set(hub.repositories)
    done = machine.run(code + PUSH, token=OWNER, folder=str(small_folder), repo="alice/damaged", options={})
    assert done["error"] == "OutputError"
    assert sha256(small_folder / WEIGHTS) in done["message"]
    assert set(hub.repositories) - before == {"alice/damaged"}
    assert set(hub.files("alice/damaged")) == {".gitattributes"}  # created, and nothing committed
    assert not (hub.folder / "objects" / ("0" * 64)).exists()


def request(url: str, method: str, body: bytes, headers: dict) -> tuple[int, dict]:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=10)
    try:
        connection.request(method, parts.path + (f"?{parts.query}" if parts.query else ""), body, headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read() or b"{}")
    finally:
        connection.close()


def test_an_upload_that_breaks_off_leaves_nothing(hub, machine, small_folder):
    push(machine, small_folder, "alice/broken")
    before = hub.repositories["alice/broken"].head
    content = np.random.default_rng(1).bytes(50_000)
    oid, owner = hashlib.sha256(content).hexdigest(), {"Authorization": f"Bearer {OWNER}"}
    batch = {
        "operation": "upload",
        "transfers": ["basic"],
        "hash_algo": "sha256",
        "objects": [{"oid": oid, "size": len(content)}],
    }
    status, reply = request(
        f"{hub.url}/alice/broken.git/info/lfs/objects/batch", "POST", json.dumps(batch).encode(), owner
    )
    assert status == 200
    upload = urlsplit(reply["objects"][0]["actions"]["upload"]["href"])

    connection = http.client.HTTPConnection(upload.hostname, upload.port, timeout=10)
    connection.putrequest("PUT", f"{upload.path}?{upload.query}")
    connection.putheader("Content-Length", str(len(content)))
    connection.endheaders(content[:20_000])
    connection.sock.shutdown(1)  # the sender's cable is pulled; it still hears the answer
    assert connection.getresponse().status == 400
    connection.close()
    assert not (hub.folder / "objects" / oid).exists()
    assert list((hub.folder / "incoming").iterdir()) == []

    lines = [
        {"key": "header", "value": {"summary": "half a file", "description": ""}},
        {
            "key": "lfsFile",
            "value": {"path": WEIGHTS, "algo": "sha256", "oid": oid, "size": len(content)},
        },
    ]
    status, reply = request(
        f"{hub.url}/api/models/alice/broken/commit/main",
        "POST",
        b"".join(json.dumps(line).encode() + b"\n" for line in lines),
        owner,
    )
    assert status == 400
    assert "has not been uploaded" in reply["error"]
    assert hub.repositories["alice/broken"].head == before
    assert hub.files("alice/broken")[WEIGHTS] == (small_folder / WEIGHTS).read_bytes()


def test_a_download_that_breaks_off_is_resumed(hub, machine, small_folder):
    block = 10 * 1024 * 1024  # the client keeps what it has in blocks of this many bytes
    save_file(
        {"weight": np.random.default_rng(2).integers(0, 256, block + 500_000, np.uint8)},
        small_folder / WEIGHTS,
    )
    push(machine, small_folder, "alice/resumed")
    hub.cut_next_download(sha256(small_folder / WEIGHTS), after=block + 100_000)
    done = machine.run(DOWNLOAD, repo="alice/resumed")
    assert done["files"][WEIGHTS] == sha256(small_folder / WEIGHTS)
    assert hub.ranges == [(sha256(small_folder / WEIGHTS), block)]


# -- folders that are not fit to be published: nothing of the hub is needed to see it --


class RunsCode:
    def __reduce__(self):
        return print, ("opened",)


def remove_index(folder: Path) -> None:
    (folder / "model_index.json").unlink()


def break_index(folder: Path) -> None:
    (folder / "model_index.json").write_text("{")


def remove_component(folder: Path) -> None:
    shutil.rmtree(folder / "scheduler")


def remove_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()


def truncate_weights(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: len(content) // 2])


def disguise_pickle(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(pickle.dumps(RunsCode()))


def add_pickle(name: str):
    def add(folder: Path) -> None:
        (folder / name).write_bytes(pickle.dumps(RunsCode()))

    return add


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (remove_index, "model_index.json"),
        (break_index, "cannot be read"),
        (remove_component, "no folder scheduler"),
        (remove_weights, "no safetensors weights"),
        (truncate_weights, "diffusion_pytorch_model.safetensors is not a whole safetensors file"),
        (disguise_pickle, "diffusion_pytorch_model.safetensors is not a whole safetensors file"),
        (add_pickle("unet/diffusion_pytorch_model.bin"), "unet/diffusion_pytorch_model.bin"),
        (add_pickle("optimizer.PT"), "optimizer.PT"),
        (add_pickle("scheduler/state.pkl"), "scheduler/state.pkl"),
        (add_pickle("last.ckpt"), "last.ckpt"),
    ],
)
def test_unfit_folders_are_refused(small_folder, capsys, spoil, expected):
    assert check_pipeline_folder(small_folder) == ("scheduler", "unet")
    spoil(small_folder)
    with pytest.raises(ModelError) as raised:
        push_folder(small_folder, "alice/unfit", token=OWNER, endpoint="http://127.0.0.1:9")
    assert expected in str(raised.value)
    assert capsys.readouterr().out == ""  # and no pickle was opened


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(ModelError, match="not a pipeline folder"):
        check_pipeline_folder(tmp_path / "nowhere")
