"""A model hub on loopback, speaking over HTTP what `huggingface_hub` asks of one.

Two servers, as at the real hub: the hub itself (API and small files) and a storage host for large files. That
one is another origin, hands out content for signed URLs only and refuses requests that carry a token.
Contents lie in a folder; repositories, commits and trees are git's, reduced to what the protocol shows.

Follows the requests of huggingface_hub 2.4 with Xet switched off; a request it does not know is answered with
501 and noted in `HubServer.unknown`, so that a test notices when the client asks for something else.
"""

import base64
import hashlib
import json
import re
import secrets
import shutil
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qs, quote, unquote, urlsplit

import yaml

CHUNK = 1 << 16
GIT_ATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"
LARGE_SUFFIXES = (".safetensors",)
LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {size}\n"


@dataclass(frozen=True)
class Account:
    """What a token stands for."""

    user: str
    may_write: bool = True


@dataclass(frozen=True)
class Entry:
    """A file of a tree: `blob_id` as git counts it (for a large file of its LFS pointer), size in bytes."""

    blob_id: str
    size: int
    sha256: str | None = None  # of a large file
    pointer_size: int | None = None


@dataclass
class Repository:
    repo_id: str
    private: bool
    gated: str | bool = False
    gated_before_files: bool = False  # whether it was gated when nothing but the hub's own file was in it
    commits: dict[str, dict[str, Entry]] = field(default_factory=dict)  # commit -> path -> entry
    messages: dict[str, str] = field(default_factory=dict)  # commit -> summary
    head: str = ""


class Refusal(Exception):
    """An error reply with the headers from which the client makes its typed errors."""

    def __init__(self, status: int, message: str, code: str | None = None, commit: str | None = None):
        super().__init__(message)
        self.status, self.message, self.code, self.commit = status, message, code, commit


@dataclass
class Reply:
    status: int = 200
    json: object = None
    file: Path | None = None
    headers: dict[str, str] = field(default_factory=dict)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 30  # seconds without a byte; a client that vanished does not hold its thread
    answer: Callable[["_Handler"], Reply]  # set by the server that the handler belongs to

    def log_message(self, *args):
        pass

    def read_body(self, write: Callable[[bytes], object]) -> int:
        """Streams the request's body into `write`; returns how many bytes came before the client ended."""
        received = 0
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            while size := int(self.rfile.readline().split(b";")[0] or b"0", 16):
                received += self._copy(size, write)
                self.rfile.readline()
            self.rfile.readline()
        else:
            received = self._copy(int(self.headers.get("Content-Length", 0)), write)
        return received

    def _copy(self, size: int, write: Callable[[bytes], object]) -> int:
        received = 0
        while received < size and (data := self.rfile.read(min(CHUNK, size - received))):
            write(data)
            received += len(data)
        return received

    def body(self) -> bytes:
        data = bytearray()
        self.read_body(data.extend)
        return bytes(data)

    def _handle(self):
        try:
            reply = self.answer()
        except Refusal as refusal:
            self.close_connection = True  # its body may not have been read
            headers = {"X-Error-Message": refusal.message}
            if refusal.code:
                headers["X-Error-Code"] = refusal.code
            if refusal.commit:
                headers["X-Repo-Commit"] = refusal.commit
            reply = Reply(refusal.status, {"error": refusal.message}, headers=headers)
        self._send(reply)

    do_GET = do_HEAD = do_POST = do_PUT = _handle  # the names that http.server looks up

    def _send(self, reply: Reply):
        content = b"" if reply.json is None else json.dumps(reply.json).encode()
        size = reply.file.stat().st_size if reply.file else len(content)
        first, last, status = 0, size - 1, reply.status
        if reply.file and (asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))):
            first, last = int(asked[1]), min(int(asked[2] or last), last)
            if first > last:
                status, first, last = 416, 0, -1
                reply.headers["Content-Range"] = f"bytes */{size}"
            else:
                status = 206
                self.server.hub.ranges.append((reply.file.name, first))
                reply.headers["Content-Range"] = f"bytes {first}-{last}/{size}"

        self.send_response(status)
        self.send_header("X-Request-Id", secrets.token_hex(8))
        self.send_header("Content-Type", "application/octet-stream" if reply.file else "application/json")
        self.send_header("Content-Length", str(last - first + 1))
        if reply.file:
            self.send_header("Accept-Ranges", "bytes")
        for name, value in reply.headers.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command == "HEAD":
            return
        if not reply.file:
            self.wfile.write(content)
            return
        cut = self.server.hub.take_cut(reply.file.name)
        with reply.file.open("rb") as file:
            file.seek(first)
            left = last - first + 1 if cut is None else min(cut, last - first + 1)
            while left:
                data = file.read(min(CHUNK, left))
                self.wfile.write(data)
                left -= len(data)
        if cut is not None:
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True


class HubServer:
    """The hub; a context manager, listening on free ports of 127.0.0.1 while it is open.

    Args:
        folder: where contents are kept; must exist.
        accounts: by token. Users create and write below their name, and read their private repositories.
        large_file_bytes: files from this size on, and all safetensors, are large files (LFS).
    """

    def __init__(self, folder: Path, accounts: dict[str, Account], large_file_bytes: int = 16_384):
        self.folder, self.accounts, self.large_file_bytes = folder, accounts, large_file_bytes
        self.repositories: dict[str, Repository] = {}
        self.requests: list[tuple[str, str]] = []  # method and path of each request, to both hosts
        self.ranges: list[tuple[str, int]] = []  # content and first byte of each answered part
        self.unknown: list[tuple[str, str]] = []
        self._tickets: dict[str, tuple[str, str]] = {}  # of signed URLs: method and object
        self._cuts: dict[str, int] = {}
        self._lock = threading.RLock()
        for name in ("blobs", "objects", "incoming"):
            (folder / name).mkdir()
        self._servers = [self._listen(self._answer_hub), self._listen(self._answer_storage)]
        self.url, self.storage_url = (f"http://127.0.0.1:{server.server_port}" for server in self._servers)

    def _listen(self, answer: Callable[[_Handler], Reply]) -> ThreadingHTTPServer:
        handler_class = type("Handler", (_Handler,), {"answer": lambda handler: answer(handler)})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler_class)
        server.hub = self
        return server

    def __enter__(self) -> "HubServer":
        for server in self._servers:
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_):
        for server in self._servers:
            server.shutdown()
            server.server_close()

    # -- for tests --

    def files(self, repo_id: str) -> dict[str, bytes]:
        """The files of the newest commit."""
        repository = self.repositories[repo_id]
        tree = repository.commits[repository.head]
        return {path: self._content(entry).read_bytes() for path, entry in tree.items()}

    def large_files(self, repo_id: str) -> set[str]:
        repository = self.repositories[repo_id]
        return {path for path, entry in repository.commits[repository.head].items() if entry.sha256}

    def cut_next_download(self, sha256: str, after: int) -> None:
        """The next download of this large file breaks off after that many bytes."""
        self._cuts[sha256] = after

    def take_cut(self, name: str) -> int | None:
        with self._lock:
            return self._cuts.pop(name, None)

    # -- the hub --

    def _answer_hub(self, handler: _Handler) -> Reply:
        url = urlsplit(handler.path)
        self.requests.append((handler.command, url.path))
        for methods, pattern, answer in self._ROUTES:
            match = re.fullmatch(pattern, url.path)
            if match and handler.command in methods:
                parts = {name: unquote(value) for name, value in match.groupdict().items()}
                with self._lock:
                    return answer(self, handler, **parts)
        self.unknown.append((handler.command, url.path))
        raise Refusal(501, f"this hub has no {handler.command} {url.path}")

    def _account(self, handler: _Handler) -> Account | None:
        header = handler.headers.get("Authorization")
        if header is None:
            return None
        account = self.accounts.get(header.removeprefix("Bearer "))
        if account is None:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return account

    def _writer(self, handler: _Handler, namespace: str) -> Account:
        account = self._account(handler)
        if account is None:
            raise Refusal(401, "Invalid username or password.")
        if not account.may_write or account.user != namespace:
            raise Refusal(403, f"You don't have the rights to create a model under the namespace {namespace}")
        return account

    def _readable(self, handler: _Handler, repo_id: str) -> Repository:
        """A repository that the caller may see.

        What one may not see does not exist, and anonymous callers are asked who they are: like the real hub,
        which thus never tells whether a private name is taken.
        """
        account = self._account(handler)
        repository = self.repositories.get(repo_id)
        owned = account is not None and account.user == repo_id.split("/")[0]
        if repository and (owned or not repository.private):
            return repository
        if account is None:
            raise Refusal(401, "Invalid username or password.", "RepoNotFound")
        raise Refusal(404, "Repository not found", "RepoNotFound")

    def _writable(self, handler: _Handler, repo_id: str) -> Repository:
        repository = self._readable(handler, repo_id)
        self._writer(handler, repo_id.split("/")[0])
        return repository

    @staticmethod
    def _commit_of(repository: Repository, revision: str) -> str:
        commit = repository.head if revision == "main" else revision
        if commit not in repository.commits:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    def _whoami(self, handler: _Handler) -> Reply:
        account = self._account(handler)
        if account is None:
            raise Refusal(401, "Invalid username or password.")
        role = "write" if account.may_write else "read"
        auth = {"type": "access_token", "accessToken": {"displayName": "test", "role": role}}
        return Reply(json={"type": "user", "name": account.user, "orgs": [], "auth": auth})

    def _create(self, handler: _Handler) -> Reply:
        asked = json.loads(handler.body())
        if asked.get("type", "model") != "model":
            raise Refusal(501, "this hub keeps models only")
        account = self._account(handler)
        namespace = asked.get("organization") or (account.user if account else "")
        self._writer(handler, namespace)
        repo_id = f"{namespace}/{asked['name']}"
        known = {"url": f"{self.url}/{repo_id}", "name": repo_id}
        if repo_id in self.repositories:
            return Reply(409, {"error": "You already created this model repo", **known})
        private = asked.get("visibility") == "private" or asked.get("private") is True
        repository = self.repositories[repo_id] = Repository(repo_id, private)
        self._commit(repository, {".gitattributes": self._store_blob(GIT_ATTRIBUTES)}, "initial commit")
        return Reply(json=known)

    def _settings(self, handler: _Handler, repo: str) -> Reply:
        repository = self._writable(handler, repo)
        asked = json.loads(handler.body())
        if asked.keys() != {"gated"} or asked["gated"] not in ("auto", "manual", False):
            raise Refusal(400, f"unknown settings: {asked}")
        repository.gated = asked["gated"]
        repository.gated_before_files = set(repository.commits[repository.head]) == {".gitattributes"}
        return Reply(json=asked)

    def _validate_card(self, handler: _Handler) -> Reply:
        content = json.loads(handler.body())["content"]
        try:
            metadata = _card_metadata(content)
        except yaml.YAMLError as error:
            return Reply(400, {"errors": [{"message": f"invalid YAML: {error}"}], "warnings": []})
        warnings = [] if metadata else [{"message": "empty or missing yaml metadata in repo card"}]
        return Reply(json={"errors": [], "warnings": warnings})

    def _info(self, handler: _Handler, repo: str, revision: str = "main") -> Reply:
        repository = self._readable(handler, repo)
        commit = self._commit_of(repository, revision)
        tree = repository.commits[commit]
        card = (
            _card_metadata(self._content(tree["README.md"]).read_text("utf-8")) if "README.md" in tree else {}
        )
        return Reply(
            json={
                "_id": hashlib.sha1(repo.encode()).hexdigest()[:24],
                "id": repo,
                "modelId": repo,
                "author": repo.split("/")[0],
                "sha": commit,
                "private": repository.private,
                "gated": repository.gated,
                "disabled": False,
                "downloads": 0,
                "likes": 0,
                "tags": card.get("tags") or [],
                "library_name": card.get("library_name"),
                "pipeline_tag": card.get("pipeline_tag"),
                "cardData": card,
                "siblings": [{"rfilename": path} for path in sorted(tree)],
            }
        )

    def _refs(self, handler: _Handler, repo: str) -> Reply:
        repository = self._readable(handler, repo)
        main = {"name": "main", "ref": "refs/heads/main", "targetCommit": repository.head}
        return Reply(json={"branches": [main], "converts": [], "tags": []})

    def _tree(self, handler: _Handler, repo: str, revision: str) -> Reply:
        repository = self._readable(handler, repo)
        tree = repository.commits[self._commit_of(repository, revision)]
        recursive = parse_qs(urlsplit(handler.path).query).get("recursive", ["false"])[0].lower() == "true"
        folders = {str(parent) for path in tree for parent in PurePosixPath(path).parents if parent.name}
        listing = []
        for path in sorted(folders | tree.keys()):
            if "/" in path and not recursive:
                continue
            if path in folders:
                oid = hashlib.sha1(path.encode()).hexdigest()
                listing.append({"type": "directory", "path": path, "oid": oid, "size": 0})
                continue
            entry = tree[path]
            item = {"type": "file", "path": path, "oid": entry.blob_id, "size": entry.size}
            if entry.sha256:
                item["lfs"] = {"oid": entry.sha256, "size": entry.size, "pointerSize": entry.pointer_size}
            listing.append(item)
        return Reply(json=listing)

    def _preupload(self, handler: _Handler, repo: str, revision: str) -> Reply:
        repository = self._writable(handler, repo)
        commit = self._commit_of(repository, revision)
        files = []
        for file in json.loads(handler.body())["files"]:
            large = file["path"].endswith(LARGE_SUFFIXES) or file["size"] >= self.large_file_bytes
            item = {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
            if there := repository.commits[commit].get(file["path"]):
                item["oid"] = there.sha256 or there.blob_id
            files.append(item)
        return Reply(json={"files": files, "commitOid": commit})

    def _lfs_batch(self, handler: _Handler, repo: str) -> Reply:
        self._writable(handler, repo)
        asked = json.loads(handler.body())
        kind = (asked["operation"], asked["hash_algo"])
        if kind != ("upload", "sha256") or "basic" not in asked["transfers"]:
            raise Refusal(422, "this hub takes basic uploads of SHA-256 objects")
        objects = []
        for wanted in asked["objects"]:
            oid, size = wanted["oid"], wanted["size"]
            item = {"oid": oid, "size": size, "authenticated": True}
            if not re.fullmatch(r"[0-9a-f]{64}", oid):
                item["error"] = {"code": 422, "message": f"not a SHA-256: {oid}"}
            elif not (self.folder / "objects" / oid).exists():
                item["actions"] = {
                    "upload": {"href": self._sign("PUT", oid)},
                    "verify": {"href": f"{self.url}/{repo}.git/info/lfs/objects/verify"},
                }
            objects.append(item)
        return Reply(json={"transfer": "basic", "objects": objects})

    def _lfs_verify(self, handler: _Handler, repo: str) -> Reply:
        self._writable(handler, repo)
        asked = json.loads(handler.body())
        self._require_object(asked["oid"], asked["size"])
        return Reply(json={})

    def _require_object(self, oid: str, size: int) -> None:
        stored = self.folder / "objects" / oid
        if not stored.is_file() or stored.stat().st_size != size:
            raise Refusal(400, f"the large file {oid} of {size} bytes has not been uploaded")

    def _commit_request(self, handler: _Handler, repo: str, revision: str) -> Reply:
        repository = self._writable(handler, repo)
        parent = self._commit_of(repository, revision)
        tree, header = dict(repository.commits[parent]), None
        for line in handler.body().splitlines():
            item = json.loads(line)
            key, value = item["key"], item["value"]
            if key == "header":
                header = value
            elif key == "file" and value["encoding"] == "base64":
                content = base64.b64decode(value["content"], validate=True)
                if len(content) >= self.large_file_bytes:
                    raise Refusal(400, f"{value['path']} is too large for a regular file")
                tree[value["path"]] = self._store_blob(content)
            elif key == "lfsFile" and value["algo"] == "sha256":
                self._require_object(value["oid"], value["size"])
                pointer = LFS_POINTER.format(**value).encode()
                tree[value["path"]] = Entry(_git_blob_id(pointer), value["size"], value["oid"], len(pointer))
            elif key == "deletedFile":
                if tree.pop(value["path"], None) is None:
                    raise Refusal(404, "A file with this name doesn't exist", "EntryNotFound")
            elif key == "deletedFolder":
                prefix = value["path"].rstrip("/") + "/"
                tree = {path: entry for path, entry in tree.items() if not path.startswith(prefix)}
            else:
                raise Refusal(400, f"unknown operation {key!r}")
        if header is None or not header["summary"]:
            raise Refusal(400, "a commit needs a summary")
        if header.get("parentCommit") not in (None, repository.head):
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        commit = self._commit(repository, tree, header["summary"])
        return Reply(
            json={"success": True, "commitOid": commit, "commitUrl": f"{self.url}/{repo}/commit/{commit}"}
        )

    def _resolve(self, handler: _Handler, repo: str, revision: str, path: str) -> Reply:
        repository = self._readable(handler, repo)
        account = self._account(handler)
        if repository.gated and (account is None or account.user != repo.split("/")[0]):
            raise Refusal(403, f"Access to model {repo} is restricted. Visit its page to ask.", "GatedRepo")
        commit = self._commit_of(repository, revision)
        entry = repository.commits[commit].get(path)
        if entry is None:
            raise Refusal(404, "Entry not found", "EntryNotFound", commit)
        headers = {"X-Repo-Commit": commit, "ETag": f'"{entry.blob_id}"'}
        if entry.sha256 is None:
            return Reply(file=self._content(entry), headers=headers)
        headers |= {
            "X-Linked-ETag": f'"{entry.sha256}"',
            "X-Linked-Size": str(entry.size),
            "Location": self._sign("GET", entry.sha256),
        }
        return Reply(302, headers=headers)

    # A route: methods, pattern of the path, answer. Revisions and paths arrive percent-encoded.
    _REPO = r"(?P<repo>[^/]+/[^/]+)"
    _API = rf"/api/models/{_REPO}"
    _REVISION = r"(?P<revision>[^/]+)"
    _ROUTES = (
        (("GET",), r"/api/whoami-v2", _whoami),
        (("POST",), r"/api/repos/create", _create),
        (("POST",), r"/api/validate-yaml", _validate_card),
        (("GET",), _API, _info),
        (("GET",), rf"{_API}/revision/{_REVISION}", _info),
        (("PUT",), rf"{_API}/settings", _settings),
        (("GET",), rf"{_API}/refs", _refs),
        (("GET",), rf"{_API}/tree/{_REVISION}", _tree),
        (("POST",), rf"{_API}/preupload/{_REVISION}", _preupload),
        (("POST",), rf"{_API}/commit/{_REVISION}", _commit_request),
        (("POST",), rf"/{_REPO}\.git/info/lfs/objects/batch", _lfs_batch),
        (("POST",), rf"/{_REPO}\.git/info/lfs/objects/verify", _lfs_verify),
        (("GET", "HEAD"), rf"/{_REPO}/resolve/{_REVISION}/(?P<path>.+)", _resolve),
    )

    # -- the storage host --

    def _sign(self, method: str, oid: str) -> str:
        ticket = secrets.token_urlsafe(16)
        self._tickets[ticket] = (method, oid)
        return f"{self.storage_url}/{quote(oid)}?ticket={ticket}"

    def _answer_storage(self, handler: _Handler) -> Reply:
        url = urlsplit(handler.path)
        self.requests.append((handler.command, url.path))
        oid = url.path.lstrip("/")
        if "Authorization" in handler.headers:
            raise Refusal(400, "a signed URL and a token at once: the token must not leave the hub")
        if self._tickets.get(parse_qs(url.query).get("ticket", [""])[0]) != (handler.command, oid):
            raise Refusal(403, "Access denied")
        if handler.command == "PUT":
            return self._receive(handler, oid)
        return Reply(file=self.folder / "objects" / oid, headers={"ETag": f'"{oid}"'})

    def _receive(self, handler: _Handler, oid: str) -> Reply:
        """Keeps an upload only if it arrived whole and is what its name says."""
        incoming = self.folder / "incoming" / secrets.token_hex(8)
        digest = hashlib.sha256()
        try:
            with incoming.open("wb") as file:
                received = handler.read_body(lambda data: (digest.update(data), file.write(data)))
            announced = int(handler.headers.get("Content-Length", received))
            if received != announced:
                raise Refusal(400, f"the upload broke off after {received} of {announced} bytes")
            if digest.hexdigest() != oid:
                raise Refusal(400, f"the content's SHA-256 is {digest.hexdigest()}, announced was {oid}")
            shutil.move(incoming, self.folder / "objects" / oid)
        finally:
            incoming.unlink(missing_ok=True)
        return Reply()

    # -- contents --

    def _store_blob(self, content: bytes) -> Entry:
        blob_id = _git_blob_id(content)
        (self.folder / "blobs" / blob_id).write_bytes(content)
        return Entry(blob_id, len(content))

    def _content(self, entry: Entry) -> Path:
        return (
            self.folder / "objects" / entry.sha256 if entry.sha256 else self.folder / "blobs" / entry.blob_id
        )

    @staticmethod
    def _commit(repository: Repository, tree: dict[str, Entry], summary: str) -> str:
        listing = [(path, entry.blob_id) for path, entry in sorted(tree.items())]
        described = json.dumps([repository.repo_id, repository.head, summary, listing])
        commit = hashlib.sha1(described.encode()).hexdigest()
        repository.commits[commit], repository.messages[commit] = tree, summary
        repository.head = commit
        return commit


def _git_blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _card_metadata(content: str) -> dict:
    """The YAML block at the top of a README."""
    block = re.match(r"\s*---\r?\n(.*?)\r?\n---", content, re.DOTALL)
    return (yaml.safe_load(block[1]) or {}) if block else {}
