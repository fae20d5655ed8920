"""Files that users name, opened safely; atomic writing, locks, and small YAML documents."""

import contextlib
import errno
import functools
import hashlib
import json
import os
import reprlib
import secrets
import stat
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import IO, Any

from magicedit.errors import LONGEST_REASON, MagicEditError, OutputError, reason_of

# What we write has a few thousand bytes, two levels, and no anchors or tags
LARGEST_DOCUMENT = 100_000  # bytes
LONGEST_TEXT = 10_000  # characters of one name or value
DEEPEST = 10  # levels
LOCK = ".magicedit.lock"  # in a folder while a run writes into it


def open_regular(path: str | Path) -> IO[bytes]:
    """Opens a regular file to read bytes.

    Raises OSError for everything else: a missing or unreadable one, a folder, a pipe or device (which would
    block or never end), a name that is too long or that no file can have.
    """
    try:
        # O_NONBLOCK: else opening a pipe waits for its writer
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        handle = os.open(path, flags | getattr(os, "O_CLOEXEC", 0))
    except ValueError as error:  # a NUL, or a character that the file system's encoding lacks
        raise OSError(errno.EINVAL, f"no file can have this name ({error})") from error
    if stat.S_ISREG(os.fstat(handle).st_mode):
        return os.fdopen(handle, "rb")
    os.close(handle)
    raise OSError(errno.EINVAL, "it is not a file")


@contextlib.contextmanager
def opened(
    path: str | Path, error: type[MagicEditError] = MagicEditError, *, limit: int | None = None
) -> Iterator[IO[bytes]]:
    """Opens a file that a user names, to read bytes; every door of the package opens files by this.

    limit: bytes that it may have. Raises `error`, with one sentence, for whatever `open_regular` refuses, for
    a larger file, and where reading in the block fails.
    """
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if limit is not None and size > limit:
                raise error(f"{shown(path)} has {size:,} bytes, more than {limit:,}; is it the right file?")
            yield file
    except FileNotFoundError as problem:
        raise error(f"{shown(path)} does not exist; check its path") from problem
    except OSError as problem:
        reason = problem.strerror or str(problem)
        raise error(
            f"{shown(path)} cannot be read ({reason}); check the path and its permissions"
        ) from problem


def read_bytes(
    path: str | Path, error: type[MagicEditError] = MagicEditError, *, limit: int | None = None
) -> bytes:
    """Returns the content of a file that a user names; errors as `opened`."""
    with opened(path, error, limit=limit) as file:
        content = file.read(-1 if limit is None else limit + 1)
    if limit is not None and len(content) > limit:  # it has grown, or tells no size, as in /proc
        raise error(f"{shown(path)} has more than {limit:,} bytes; is it the right file?")
    return content


def read_text(
    path: str | Path, error: type[MagicEditError] = MagicEditError, *, limit: int | None = None
) -> str:
    """Returns the UTF-8 text of a file that a user names, a byte-order mark left out; errors as `opened`, and
    for other encodings."""
    try:
        return read_bytes(path, error, limit=limit).decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise error(f"{shown(path)} is no text in UTF-8; is it the right file?") from problem


def read_json(
    path: str | Path, error: type[MagicEditError] = MagicEditError, *, limit: int | None = None
) -> Any:
    """Returns the content of a JSON file; errors as `read_text`, and for what is no JSON or too deep."""
    text = read_text(path, error, limit=limit)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as problem:  # ValueError: an integer of 5,000 digits too
        reason = str(problem)[:LONGEST_REASON]
        raise error(f"{shown(path)} cannot be read as JSON ({reason}); is it the right file?") from problem


def named(folder: Path, name: str) -> Path:
    """The path below a folder, relative to it, of the file that a table or an option names.

    Where there is no file of that very name, backslashes are separators, and letters may be composed (NFC) or
    not (NFD), as a Mac writes them. Where there is none either, the name with slashes.
    """
    if os.path.lexists(folder / name):
        return Path(name)
    found = Path()
    for part in PurePosixPath(name.replace("\\", "/")).parts:
        if not os.path.lexists(folder / found / part):
            wanted = unicodedata.normalize("NFC", part)
            with contextlib.suppress(OSError, ValueError):  # what is no folder has no files
                there = sorted(os.listdir(folder / found))
                part = next((n for n in there if unicodedata.normalize("NFC", n) == wanted), part)
        found /= part
    return found


def shown(path: object) -> str:
    """A name for messages and JSON: bytes that are not UTF-8 become \\xNN, and a long one is shortened."""
    text = (
        str(path).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace").replace("\0", "\\0")
    )
    if not text:
        return '""'
    return text if len(text) <= LONGEST_REASON else f"{text[:100]}...{text[-100:]}"


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """A number of things for messages: "1 photograph", "2 photographs", "0 people".

    plural: default: `noun` with an s.
    """
    return f"{count} {noun if count == 1 else plural or f'{noun}s'}"


@contextlib.contextmanager
def locked(folder: Path, error: type[MagicEditError] = OutputError) -> Iterator[None]:
    """Holds a folder, made where it does not exist, for one writing run; a kill releases it.

    Raises `error` where another process, or another run of this one, holds it, or it cannot be written to.
    """
    from filelock import FileLock, Timeout

    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK, timeout=0, is_singleton=False)
        lock.acquire()
    except Timeout as problem:
        raise error(
            f"another run is writing into {shown(folder)}; wait for it, or choose another folder"
        ) from problem
    except (OSError, ValueError, NotImplementedError) as problem:
        raise error(f"{shown(folder)} cannot be written to ({problem}); choose another folder") from problem
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[IO[bytes]]:
    """Opens a file to write that becomes `path` when the block succeeds: a crash leaves the old one or none.

    It has another name in the same folder until then, and the permissions of the old one. Raises OutputError
    where the file cannot be created, written or renamed.
    """
    try:
        target = Path(path).resolve()  # a link keeps pointing where it did
        temporary = target.with_name(f".magicedit-{secrets.token_hex(8)}.tmp")
    except (OSError, ValueError, RuntimeError) as error:  # a circle of links, a NUL
        raise OutputError(f"{shown(path)} could not be written ({error}); choose another place") from error
    try:
        with open(temporary, "x+b") as file:
            with contextlib.suppress(FileNotFoundError):
                temporary.chmod(stat.S_IMODE(target.stat().st_mode))
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
        sync_names(target.parent)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(f"{shown(path)} could not be written ({reason}); choose another place") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Removes what killed runs left of `replacing` in a folder and below; only for who holds its lock."""
    for root, _, names in os.walk(folder):
        for name in filter(is_temporary, names):
            with contextlib.suppress(OSError):  # it is in nobody's way
                os.unlink(os.path.join(root, name))


def is_address(place: object) -> bool:
    """Whether a place is a URL, or a command after `pipe:`, and no folder."""
    return "://" in str(place) or str(place).startswith("pipe:")


def is_temporary(name: str) -> bool:
    """Whether a file of this name says nothing about its folder: a temporary of `replacing`."""
    return name.startswith(".magicedit-") and name.endswith(".tmp")


def write_text(path: str | Path, text: str) -> None:
    """Writes UTF-8 text as `replacing` does."""
    with replacing(path) as file:
        file.write(text.encode())


@contextlib.contextmanager
def writing(path: Path, *errors: type[Exception]) -> Iterator[None]:
    """Turns failures to make, write, rename or delete something at or below `path` into an OutputError.

    errors: further ones that say so, beside OSError.
    """
    try:
        yield
    except (OSError, *errors) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(
            f"{shown(path)} could not be written ({reason}); check the disk's space and the permissions"
        ) from error


def sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_names(folder: Path) -> None:
    """Waits until the names in a folder are on the disk, where its file system supports that."""
    with contextlib.suppress(OSError):
        sync(folder)


def walk(
    folder: Path, leave_out: Callable[[Path], bool], unreadable: Callable[[OSError], None]
) -> Iterator[Path]:
    """Files in a folder and its sub-folders, links followed, each folder once; hidden ones and sub-folders to
    leave out are not among them. unreadable: called for every folder that cannot be listed, with its name in
    the error's `filename`."""
    visited = set()
    for root, folders, names in os.walk(folder, onerror=unreadable, followlinks=True):
        here = Path(root)
        if here.resolve() in visited:  # a link to a folder above
            folders.clear()
            continue
        visited.add(here.resolve())
        folders[:] = [name for name in folders if not name.startswith(".") and not leave_out(here / name)]
        yield from (here / name for name in names if not name.startswith("."))


def sha256_of(path: Path) -> str:
    """Returns the SHA-256 of a regular file's content; OSError as `open_regular`."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remembered_sha256(path: Path) -> str:
    """`sha256_of`, computed once for a file that stays the same by its number, size and time."""
    state = os.stat(path)
    return _sha256_of_state(path, state.st_ino, state.st_size, state.st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _sha256_of_state(path: Path, number: int, size: int, changed: int) -> str:
    return sha256_of(path)


def write_document(path: str | Path, format: str, content: Mapping[str, Any]) -> Path:
    """Writes YAML with the format's name first; OutputError where that fails."""
    import yaml

    text = yaml.safe_dump({"magicedit": format, **content}, sort_keys=False, allow_unicode=True)
    write_text(path, text)
    return Path(path)


def read_document(path: str | Path, format: str) -> dict[str, Any]:
    """Reads the mapping that `write_document` wrote under that format's name.

    Raises MagicEditError where the file is missing, too large, not YAML, or of another format.
    """
    content = read_yaml(path, MagicEditError, f"`{format}`")
    if not isinstance(content, dict) or content.get("magicedit") != format:
        said = content.get("magicedit") if isinstance(content, dict) else None
        says = f"says {reprlib.repr(said)}" if isinstance(said, str) else "is missing"
        raise MagicEditError(
            f"{shown(path)} is not in the format `{format}`: its line `magicedit:` {says}; "
            "give one that magicedit wrote for this"
        )
    del content["magicedit"]
    return content


def read_yaml(path: str | Path, error: type[MagicEditError], what: str) -> Any:
    """Returns the content of a small YAML file of plain values.

    Raises `error`, naming the file `what`, for everything else: see `opened`, `_check_plain`, `_check_keys`.
    """
    import yaml

    text = read_text(path, error, limit=LARGEST_DOCUMENT)
    try:
        _check_plain(text)
        _check_keys(yaml.compose(text, Loader=yaml.SafeLoader))
        return yaml.safe_load(text)
    except (ValueError, OverflowError, RecursionError, yaml.YAMLError) as problem:  # ValueError: 2020-13-45
        raise error(f"{shown(path)} cannot be read as {what}: {reason_of(problem)}") from problem


def _check_plain(text: str) -> None:
    """Raises ValueError for YAML that expands enormously, or that yields anything but plain values.

    An alias repeats the whole content of its anchor, so that aliases of aliases can fill any memory.
    """
    import yaml

    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"it has an alias (*{reprlib.repr(event.anchor)[1:-1]}); write the value itself")
        if getattr(event, "tag", None) is not None:
            raise ValueError(f"it has a tag ({reprlib.repr(event.tag)}); leave it out")
        if isinstance(event, yaml.ScalarEvent) and len(event.value) > LONGEST_TEXT:
            raise ValueError(f"it has a text of {len(event.value)} characters; {LONGEST_TEXT} are allowed")
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise ValueError(f"it is nested more than {DEEPEST} levels deep")


def _check_keys(node: Any) -> None:
    """Raises ValueError on duplicate keys, which YAML would silently overwrite."""
    import yaml

    if isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                line = key.start_mark.line + 1
                if key.value in lines:
                    both = f"lines {lines[key.value]} and {line}"
                    raise ValueError(f"it has {reprlib.repr(key.value)} twice, in {both}; keep one")
                lines[key.value] = line
            _check_keys(value)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _check_keys(item)
